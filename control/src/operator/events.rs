//! What happened, in order, for those who follow: a bounded history with a number for each event.
//!
//! A follower has a cursor into the history and takes what it can when it can. One that is slower than the history is
//! long is told how many events it lost; nobody waits for it. What earlier processes told is read from disk at the start.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::fault::{Fault, nearest, printable};
use crate::host::look::Missing;
use crate::operator::api::Event;
use crate::operator::events::file::EventsFile;

// The history on disk.
mod file;

/// The types of events, as they are told and asked for, and what each means.
pub(crate) const MEANINGS: [(&str, &str); 51] = [
    ("capture.ended", "a capture ended: who had it, why, how many frames it has and how many it missed"),
    ("capture.failed", "a capture that was asked for could not begin, why, and what to do"),
    (
        "capture.started",
        "somebody captures the frames of a device, by its queues: they are copied from now on",
    ),
    (
        "config.applied",
        "a configuration file was applied: how much it added, changed, made anew and removed, of how many devices something is not in force yet, and how much waits for a restart",
    ),
    ("config.refused", "the daemon's own file was to be applied (SIGHUP) and was not, and why"),
    ("core.added", "a worker was started on a core, or a drained one takes groups again"),
    ("core.balanced", "what the workers have was spread anew: how many groups were moved"),
    ("core.drained", "a worker takes no more groups: how many went elsewhere"),
    (
        "core.gives_way",
        "a worker rests in small steps from now on, since its thread's policy keeps all else from its core, and what to do; or no longer",
    ),
    ("core.removed", "the worker of a core was ended"),
    ("daemon.stopping", "the daemon was told to stop"),
    ("dev.added", "a device is there"),
    (
        "dev.changed",
        "a device was changed; `applied` false: not in force yet, and `dev show` says until when",
    ),
    ("dev.failing", "what is behind a disk failed, how often since this was told last, and why"),
    ("dev.gone", "a device went with what it stood on; it is kept, and made again should that come back"),
    ("dev.needs_reset", "a device cannot go on until its guest resets it, and why"),
    ("dev.removed", "a device was removed"),
    ("dev.resized", "a disk has another size than before"),
    ("events.lost", "so many events were forgotten before this follower read them"),
    (
        "events.repeated",
        "so many more events of this type were told together, since there were too many a second",
    ),
    ("host.missing", "what somebody took away cannot be made again, and why"),
    ("host.remade", "what somebody took away was made again"),
    ("mgmtdev.added", "an operator added a management device"),
    ("mgmtdev.changed", "a management device was changed"),
    ("mgmtdev.failed", "a driver knows a function and cannot use it, and why; it is tried again"),
    ("mgmtdev.registered", "a driver brings a management device"),
    ("mgmtdev.removed", "a management device was removed, with these devices"),
    ("mgmtdev.unregistered", "a management device went with what it drives, and why"),
    ("netdev.changed", "somebody else changed a kernel interface of a device's, and what to do"),
    ("netdev.restored", "a kernel interface is again as its device needs it"),
    ("port.added", "a port is there"),
    ("port.changed", "the function of a port was changed"),
    ("port.failed", "a port that was asked for cannot be made, and why; it is kept"),
    ("port.removed", "a port was removed, with these devices"),
    ("pump.not_placed", "a pair of queues is not served, for its pump could not be placed, and why"),
    (
        "pump.panicked",
        "a pump panicked and was taken out: its queues are not served until they are started anew",
    ),
    ("queues.lost", "the device lost a pair of queues while they were served, and why"),
    ("ring.fault", "a guest broke a rule of a ring, which stopped; the others go on"),
    ("session.breach", "a front-end broke the protocol, how, and what to do"),
    (
        "session.connected",
        "a front-end is connected; `after_short_ones`: how many were gone at once before it",
    ),
    ("session.ended", "a front-end is gone, and why"),
    ("session.host_failed", "this host lacked what a session needed, and what to do"),
    ("session.mtu", "the front-end told the MTU that its guest uses"),
    ("session.negotiated", "features were agreed on"),
    ("session.no_buffers", "a guest's driver runs and has posted no receive buffer"),
    ("session.not_run", "a ring is started and cannot be served, and what it lacks"),
    (
        "session.refused",
        "a front-end was turned away because another is connected, or because nothing is left for it",
    ),
    ("session.repeated", "front-ends end one after another, so often, each in the same way"),
    ("session.rings", "another number of rings is served than before"),
    ("uplink.limited", "the function behind a bridge cannot do all that is asked of it, and what"),
    ("uplink.restored", "the function behind a bridge does all that is asked of it again"),
];

/// The types of events.
pub(crate) const TYPES: [&str; MEANINGS.len()] = {
    let mut types = [""; MEANINGS.len()];
    let mut at = 0;
    while at < types.len() {
        types[at] = MEANINGS[at].0;
        at += 1;
    }
    types
};

/// Checks what a follower asks for: types that there are, by their whole names or the part before the point.
pub(crate) fn check_types(types: &[String]) -> Result<(), Fault> {
    let parts = || TYPES.iter().flat_map(|kind| [*kind, kind.split('.').next().unwrap_or(kind)]);
    let Some(unknown) = types.iter().find(|wanted| parts().all(|known| known != wanted.as_str())) else {
        return Ok(());
    };
    let fault = Fault::usage(format!("there is no event of type `{}`", printable(unknown)))
        .at("types")
        .given(unknown)
        .expected(TYPES);
    Err(fault.hint(match nearest(unknown, parts()) {
        Some(near) => format!("did you mean {near}? There are {}", TYPES.join(", ")),
        None => format!("one of: {}", TYPES.join(", ")),
    }))
}

/// Checks what a follower calls the daemon that it last listened to.
pub(crate) fn check_instance(instance: &str) -> Result<(), Fault> {
    if instance.len() >= 8 && instance.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return Ok(());
    }
    Err(Fault::usage(format!("`{}` is no daemon's instance", printable(instance)))
        .at("instance")
        .hint("the number of an event alone, or INSTANCE:NUMBER as ringway -j events prints them"))
}

/// Events kept for followers that come late or are slow, those of earlier instances included.
pub(crate) const HISTORY: usize = 4096;

/// The history. Owned by the control thread.
///
/// Events have a place in it beside their number: the places of what earlier instances told, as far as it was read, come first.
#[derive(Debug)]
pub(crate) struct Events {
    kept: VecDeque<Event>,
    /// The place of the last event, 0 before the first.
    last: u64,
    /// The place of the last event of an earlier instance.
    earlier: u64,
    instance: String,
    file: Option<EventsFile>,
}

impl Events {
    /// A history that begins now.
    pub(crate) fn new(instance: &str) -> Events {
        Events { kept: VecDeque::new(), last: 0, earlier: 0, instance: instance.to_owned(), file: None }
    }

    /// One that goes on behind what is kept in a directory, and is kept there.
    pub(crate) fn kept_in(dir: &Path, instance: &str) -> Events {
        let mut events = Events::new(instance);
        let (file, found) = match EventsFile::open(dir, HISTORY) {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(%error, "events are not kept over a restart: their thread cannot be started");
                return events;
            }
        };
        for moved in &found.moved {
            tracing::warn!("{moved}");
        }
        if found.unreadable > 0 {
            let file = file.path().display();
            tracing::warn!(%file, "{} lines that a crash cut off, or that are damaged, were passed over", found.unreadable);
        }
        events.earlier = found.events.len() as u64;
        events.last = events.earlier;
        events.kept = found.events.into();
        events.file = Some(file);
        events
    }

    /// The place of the last event.
    pub(crate) fn place(&self) -> u64 {
        self.last
    }

    /// The number of the last event, 0 before the first.
    pub(crate) fn last(&self) -> u64 {
        self.last - self.earlier
    }

    /// The place of what a client has seen last: an event of an instance, or of this one without. Where nobody knows that,
    /// what comes first of what is kept is news.
    pub(crate) fn place_of(&self, seq: u64, instance: Option<&str>) -> u64 {
        match instance {
            None if seq == 0 || seq > self.last() => 0,
            Some(instance) if instance == self.instance && seq > self.last() => self.earlier,
            None => self.earlier + seq,
            Some(instance) if instance == self.instance => self.earlier + seq,
            Some(instance) => {
                let is_of_it = |event: &Event| event.instance.as_deref() == Some(instance);
                let oldest = self.last + 1 - self.kept.len() as u64;
                // Behind the last one that it has seen; before the first of the instance if that one is not kept.
                let seen = self.kept.iter().rposition(|event| is_of_it(event) && event.seq <= seq);
                let first = self.kept.iter().position(is_of_it);
                match (seen, first) {
                    (Some(at), _) => oldest + at as u64,
                    (None, Some(at)) => (oldest + at as u64).saturating_sub(1),
                    (None, None) => 0,
                }
            }
        }
    }

    /// Adds an event.
    pub(crate) fn push(&mut self, kind: &str, dev: Option<&str>, details: Value) {
        self.last += 1;
        let details = match details {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        let told = details.iter().map(|(key, value)| format!(" {key}={value}")).collect::<String>();
        // What has a cure is wrong.
        if details.contains_key("try") {
            tracing::warn!("{kind} {}{told}", dev.unwrap_or("-"));
        } else {
            tracing::info!("{kind} {}{told}", dev.unwrap_or("-"));
        }
        let mut event = Event {
            seq: self.last(),
            time_ns: now_ns(),
            kind: kind.to_owned(),
            dev: dev.map(str::to_owned),
            instance: Some(self.instance.clone()),
            details,
        };
        if let Some(file) = &self.file {
            file.add(&event);
        }
        // Whoever is told of it knows whose it is.
        event.instance = None;
        self.kept.push_back(event);
        if self.kept.len() > HISTORY {
            self.kept.pop_front();
        }
    }

    /// The events behind a place, each with its own, preceded by `events.lost` if some of them are gone.
    pub(crate) fn after(&self, place: u64) -> impl Iterator<Item = (u64, Event)> + '_ {
        let oldest = self.last + 1 - self.kept.len() as u64;
        let lost = oldest.saturating_sub(place + 1);
        let skip = (place + 1).saturating_sub(oldest) as usize;
        let of_this = (oldest - 1).saturating_sub(self.earlier);
        let notice = (lost > 0).then(|| (oldest - 1, lost_notice(of_this, lost)));
        let first = oldest.max(place + 1);
        notice.into_iter().chain((first..).zip(self.kept.iter().skip(skip).cloned()))
    }

    /// What keeps events from the disk, if anything does.
    pub(crate) fn missing(&self) -> Option<Missing> {
        let file = self.file.as_ref()?;
        // How many is no part of it: it is told once.
        let why = file.trouble()?;
        let shown = file.path().display();
        Some(Missing {
            dev: None,
            what: "the file of events",
            path: file.path().to_owned(),
            why: format!("events are not kept in {shown}: {why}"),
            cure: format!("mend what is named: space, permissions, or what is in the place of {shown}"),
        })
    }

    /// Events that are not on disk, and never will be.
    pub(crate) fn lost_on_disk(&self) -> u64 {
        self.file.as_ref().map_or(0, EventsFile::lost)
    }

    /// Waits until all of them are on disk, for as long at most.
    pub(crate) fn flush(&self, within: Duration) {
        if let Some(file) = &self.file {
            file.flush(within);
        }
    }
}

/// The event that stands for `n` lost ones, the last of which was `seq`.
fn lost_notice(seq: u64, n: u64) -> Event {
    let details = match json!({ "n": n }) {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    Event { seq, time_ns: now_ns(), kind: "events.lost".to_owned(), dev: None, instance: None, details }
}

/// True if an event of this kind is wanted: by its whole name or by the part before the point.
pub(crate) fn wanted(types: &[String], kind: &str) -> bool {
    let is_same = |want: &String| kind == want || kind.split('.').next() == Some(want.as_str());
    types.is_empty() || kind == "events.lost" || types.iter().any(is_same)
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(n: usize) -> Events {
        let mut events = Events::new("own");
        for _ in 0..n {
            events.push("dev.added", Some("a"), json!({}));
        }
        events
    }

    fn seqs(events: &Events, since: u64) -> Vec<u64> {
        told(events, since).iter().map(|event| event.seq).collect()
    }

    fn told(events: &Events, since: u64) -> Vec<Event> {
        let all: Vec<(u64, Event)> = events.after(events.place_of(since, None)).collect();
        assert!(all.is_sorted_by(|(one, _), (next, _)| one < next));
        all.into_iter().map(|(_, event)| event).collect()
    }

    #[test]
    fn events_after_a_number_come_once_and_in_order() {
        let events = filled(5);
        assert_eq!(seqs(&events, 3), [4, 5]);
        assert_eq!(seqs(&events, 0), [1, 2, 3, 4, 5]);
        assert!(seqs(&events, 5).is_empty());
    }

    #[test]
    fn slow_follower_is_told_how_many_it_lost() {
        let events = filled(HISTORY + 10);
        let first = told(&events, 3).remove(0);
        assert_eq!((first.kind.as_str(), first.seq, &first.details["n"]), ("events.lost", 10, &json!(7)));
        assert_eq!(told(&events, 3).len(), HISTORY + 1);
        assert_eq!(told(&events, 10)[0].seq, 11);
    }

    #[test]
    fn history_that_is_just_full_has_lost_nothing_and_one_event_more_loses_one() {
        let mut events = filled(HISTORY);
        assert!(seqs(&events, 0).into_iter().eq(1..=HISTORY as u64), "all of them, and no word of a loss");
        events.push("dev.added", Some("a"), json!({}));
        let all: Vec<Event> = told(&events, 0);
        assert_eq!((all[0].kind.as_str(), all[0].seq, &all[0].details["n"]), ("events.lost", 1, &json!(1)));
        assert!(all[1..].iter().map(|event| event.seq).eq(2..=HISTORY as u64 + 1));
        assert_eq!(seqs(&events, 1)[0], 2);
        assert_eq!(told(&events, 1).len(), HISTORY, "who has seen the one that went has lost nothing");
    }

    #[test]
    fn number_that_was_never_given_gives_everything() {
        assert_eq!(seqs(&filled(2), 900), [1, 2]);
    }

    #[test]
    fn events_of_earlier_instances_come_before_this_ones_and_a_follower_of_theirs_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        for instance in ["first", "second"] {
            let mut events = Events::kept_in(dir.path(), instance);
            (0..3).for_each(|_| events.push("dev.added", Some("a"), json!({ "by": instance })));
            events.flush(Duration::from_secs(20));
            assert_eq!(events.last(), 3);
        }
        let mut events = Events::kept_in(dir.path(), "third");
        events.push("dev.added", Some("a"), json!({}));
        let after = |seq: u64, instance: Option<&str>| -> Vec<(String, u64)> {
            let of = |event: Event| (event.instance.unwrap_or_else(|| "third".to_owned()), event.seq);
            events.after(events.place_of(seq, instance)).map(|(_, event)| of(event)).collect()
        };
        let all: Vec<(String, u64)> = [("first", 1..=3), ("second", 1..=3), ("third", 1..=1)]
            .into_iter()
            .flat_map(|(instance, seqs)| seqs.map(move |seq| (instance.to_owned(), seq)))
            .collect();
        assert_eq!(after(0, None), all);
        assert_eq!(after(2, Some("first")), all[2..]);
        assert_eq!(after(3, Some("second")), all[6..]);
        assert_eq!(after(9, Some("second")), all[6..]);
        assert_eq!(after(0, Some("third")), all[6..]);
        assert!(after(1, Some("third")).is_empty() && after(1, None).is_empty());
        assert_eq!(after(5, Some("nobody")), all);
    }

    #[test]
    fn every_type_that_the_sources_tell_is_in_the_list_and_others_are_refused() {
        let mut told = std::collections::BTreeSet::new();
        let parts: std::collections::BTreeSet<&str> =
            TYPES.iter().filter_map(|kind| Some(kind.split_once('.')?.0)).collect();
        let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        for name in [
            "daemon",
            "devices/connect",
            "devices/mgmtdevs",
            "devices/ops",
            "devices/register",
            "devices/upkeep",
            "frontends/report",
            "frontends/session",
            "operator/capture",
            "operator/clients",
            "operator/events",
        ] {
            let text = std::fs::read_to_string(format!("{sources}/{name}.rs")).unwrap();
            for word in text.split("#[cfg(test)]").next().unwrap().split('"') {
                let is_kind = word.split_once('.').is_some_and(|(part, rest)| {
                    parts.contains(part) && rest.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
                });
                // A method of the socket is called likewise.
                if is_kind && crate::operator::methods::names().all(|method| method != word) {
                    told.insert(word.to_owned());
                }
            }
        }
        assert_eq!(told.iter().map(String::as_str).collect::<Vec<_>>(), TYPES);
        check_types(&["dev".into(), "host.remade".into()]).unwrap();
        let fault = check_types(&["dev".into(), "dev.aded".into()]).unwrap_err().to_string();
        assert!(fault.contains("did you mean dev.added?") && fault.contains("session.rings"), "{fault}");
    }

    #[test]
    fn type_is_matched_whole_or_by_its_first_part() {
        let types = vec!["dev".to_owned(), "core.moved".to_owned()];
        assert!(wanted(&types, "dev.added") && wanted(&types, "core.moved") && wanted(&[], "x.y"));
        assert!(!wanted(&types, "core.other") && wanted(&types, "events.lost"));
    }
}
