//! What happened, in order, for those who follow: a bounded history with a number for each event.
//!
//! A follower has a cursor into the history and takes what it can when it can. One that is slower than the history is
//! long is told how many events it lost; nobody waits for it.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::fault::{Fault, nearest, printable};
use crate::operator::api::Event;

/// The types of events, as they are told and asked for.
pub(crate) const TYPES: [&str; 42] = [
    "config.applied",
    "config.refused",
    "daemon.stopping",
    "dev.added",
    "dev.changed",
    "dev.failing",
    "dev.gone",
    "dev.needs_reset",
    "dev.removed",
    "dev.resized",
    "events.lost",
    "host.missing",
    "host.remade",
    "mgmtdev.added",
    "mgmtdev.changed",
    "mgmtdev.failed",
    "mgmtdev.registered",
    "mgmtdev.removed",
    "mgmtdev.unregistered",
    "netdev.changed",
    "netdev.restored",
    "port.added",
    "port.changed",
    "port.failed",
    "port.removed",
    "pump.not_placed",
    "pump.panicked",
    "queues.lost",
    "ring.fault",
    "session.breach",
    "session.connected",
    "session.ended",
    "session.host_failed",
    "session.mtu",
    "session.negotiated",
    "session.no_buffers",
    "session.not_run",
    "session.refused",
    "session.repeated",
    "session.rings",
    "uplink.limited",
    "uplink.restored",
];

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
