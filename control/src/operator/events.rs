//! What happened, in order, for those who follow: a bounded history with a number for each event.
//!
//! A follower has a cursor into the history and takes what it can when it can. One that is slower than the history is
//! long is told how many events it lost; nobody waits for it.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::fault::{Fault, nearest, printable};
use crate::operator::api::Event;

/// The types of events, as they are told and asked for, and what each means.
pub(crate) const MEANINGS: [(&str, &str); 42] = [
    ("config.applied", "a configuration file was applied: how much it added, changed, made anew and removed"),
    ("config.refused", "the daemon's own file was to be applied (SIGHUP) and was not, and why"),
    ("daemon.stopping", "the daemon was told to stop"),
    ("dev.added", "a device is there"),
    ("dev.changed", "a device was changed; `applied` false: in force when the next front-end connects"),
    ("dev.failing", "what is behind a disk failed, how often since this was told last, and why"),
    ("dev.gone", "a device went with what it stood on; it is kept, and made again should that come back"),
    ("dev.needs_reset", "a device cannot go on until its guest resets it, and why"),
    ("dev.removed", "a device was removed"),
    ("dev.resized", "a disk has another size than before"),
    ("events.lost", "so many events were forgotten before this follower read them"),
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

/// Events kept for followers that come late or are slow.
pub(crate) const HISTORY: usize = 4096;

/// The history. Owned by the control thread.
#[derive(Debug)]
pub(crate) struct Events {
    kept: VecDeque<Event>,
    last: u64,
}

impl Events {
    pub(crate) fn new() -> Events {
        Events { kept: VecDeque::new(), last: 0 }
    }

    /// The number of the last event, 0 before the first.
    pub(crate) fn last(&self) -> u64 {
        self.last
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
        self.kept.push_back(Event {
            seq: self.last,
            time_ns: now_ns(),
            kind: kind.to_owned(),
            dev: dev.map(str::to_owned),
            details,
        });
        if self.kept.len() > HISTORY {
            self.kept.pop_front();
        }
    }

    /// The events after `seq`, preceded by `events.lost` if some of them are gone.
    pub(crate) fn after(&self, seq: u64) -> impl Iterator<Item = Event> + '_ {
        let oldest = self.last + 1 - self.kept.len() as u64;
        // A number that was never given belongs to an earlier instance: all of this one's events are news.
        let seq = if seq > self.last { 0 } else { seq };
        let lost = oldest.saturating_sub(seq + 1);
        let skip = (seq + 1).saturating_sub(oldest) as usize;
        let notice = (lost > 0).then(|| lost_notice(oldest - 1, lost));
        notice.into_iter().chain(self.kept.iter().skip(skip).cloned())
    }
}

/// The event that stands for `n` lost ones, the last of which was `seq`.
fn lost_notice(seq: u64, n: u64) -> Event {
    let details = match json!({ "n": n }) {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    Event { seq, time_ns: now_ns(), kind: "events.lost".to_owned(), dev: None, details }
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
        let mut events = Events::new();
        for _ in 0..n {
            events.push("dev.added", Some("a"), json!({}));
        }
        events
    }

    fn seqs(events: &Events, since: u64) -> Vec<u64> {
        events.after(since).map(|event| event.seq).collect()
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
        let first = events.after(3).next().unwrap();
        assert_eq!((first.kind.as_str(), first.seq, &first.details["n"]), ("events.lost", 10, &json!(7)));
        assert_eq!(events.after(3).count(), HISTORY + 1);
        assert_eq!(events.after(10).next().unwrap().seq, 11);
    }

    #[test]
    fn history_that_is_just_full_has_lost_nothing_and_one_event_more_loses_one() {
        let mut events = filled(HISTORY);
        assert!(seqs(&events, 0).into_iter().eq(1..=HISTORY as u64), "all of them, and no word of a loss");
        events.push("dev.added", Some("a"), json!({}));
        let told: Vec<Event> = events.after(0).collect();
        assert_eq!(
            (told[0].kind.as_str(), told[0].seq, &told[0].details["n"]),
            ("events.lost", 1, &json!(1))
        );
        assert!(told[1..].iter().map(|event| event.seq).eq(2..=HISTORY as u64 + 1));
        assert_eq!(seqs(&events, 1)[0], 2);
        assert_eq!(events.after(1).count(), HISTORY, "who has seen the one that went has lost nothing");
    }

    #[test]
    fn number_of_an_earlier_instance_gives_everything() {
        assert_eq!(seqs(&filled(2), 900), [1, 2]);
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
