//! What a session has told and control has not taken yet: the newest of each kind, so that no front-end makes it grow.
//!
//! What only says how things are (features, status, rings, memory, MTU) replaces what was said before; what happened
//! (faults, breaches, pumps that ended) is kept once for each name, with how often. So a session holds at most one report
//! of each kind, ring and name, however slow control is, and never waits for it.
//!
//! ```text
//!   session --put--> [ pending ] --take--> control
//!              |                             ^
//!              +--first one: "there is news"-+
//! ```

use std::mem::discriminant;
use std::sync::{Mutex, PoisonError};

use ringway_pmd::vdpa::Ended;

use crate::frontends::session::Report;

/// A report, and how many of its kind it stands for.
pub(crate) type Told = (Report, u64);

/// One session's. The lock is held for a search among some reports, never across a system call.
#[derive(Debug, Default)]
pub(crate) struct Reports(Mutex<Vec<Told>>);

impl Reports {
    /// Adds a report. True: there was none, so control has to be told.
    pub(crate) fn put(&self, report: Report) -> bool {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = pending.is_empty();
        let before = pending.iter().position(|(other, _)| is_same(other, &report));
        // At the end, where it would be if the older one had been taken: the order of what is newest is kept.
        let times = before.map_or(0, |at| pending.remove(at).1);
        pending.push((report, times + 1));
        was_empty
    }

    /// Takes all there is.
    pub(crate) fn take(&self) -> Vec<Told> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// True if the second stands for both.
fn is_same(one: &Report, other: &Report) -> bool {
    match (one, other) {
        // A reset ends what was negotiated; a status that follows it does not.
        (Report::Status(one), Report::Status(other)) => (*one == 0) == (*other == 0),
        (
            Report::RingFault { queue, fault },
            Report::RingFault { queue: other_queue, fault: other_fault },
        ) => (queue, fault) == (other_queue, other_fault),
        (Report::Lacks { lack, .. }, Report::Lacks { lack: other, .. }) => lack == other,
        (Report::PeerMisbehaved { what, .. }, Report::PeerMisbehaved { what: other, .. })
        | (Report::HostFailed { what, .. }, Report::HostFailed { what: other, .. }) => what == other,
        (Report::PumpEnded { group, how }, Report::PumpEnded { group: other_group, how: other_how }) => {
            group == other_group && discriminant::<Ended>(how) == discriminant(other_how)
        }
        _ => discriminant(one) == discriminant(other),
    }
}

#[cfg(test)]
mod tests {
    use ringway_ring::features::Features;

    use super::*;
    use crate::frontends::session::RingReport;

    fn ring(enabled: bool) -> Report {
        let ring = RingReport {
            index: 0,
            size: 256,
            started: true,
            enabled,
            kicks: true,
            fault: None,
            runs: enabled,
            lacks: None,
            served_by: None,
        };
        Report::Rings(vec![ring])
    }

    fn shown(reports: &Reports) -> Vec<String> {
        reports.take().iter().map(|(report, times)| format!("{report:?} {times}")).collect()
    }

    #[test]
    fn flood_of_states_leaves_the_newest_of_each_kind() {
        let reports = Reports::default();
        assert!(reports.put(Report::Status(1)));
        for n in 0..100_000u64 {
            for report in [
                Report::Status(n as u8 | 1),
                ring(n % 2 == 0),
                Report::Memory { regions: 1, bytes: n },
                Report::Mtu(n as u16),
            ] {
                assert!(!reports.put(report));
            }
        }
        let pending = reports.take();
        assert_eq!(pending.len(), 4);
        assert!(matches!(pending[0].0, Report::Status(159)));
        assert!(matches!(&pending[1].0, Report::Rings(rings) if !rings[0].enabled));
        assert!(matches!(pending[2].0, Report::Memory { bytes: 99_999, .. }));
        assert!(matches!(pending[3].0, Report::Mtu(34_463)));
        assert!(reports.put(Report::Mtu(1)), "control has to be told anew");
    }

    #[test]
    fn what_happened_is_counted_by_ring_and_name_and_an_end_stays_last() {
        let reports = Reports::default();
        let breach = |what, detail: u64| Report::PeerMisbehaved { what, detail: detail.to_string() };
        for n in 0..1000 {
            reports.put(Report::RingFault { queue: 0, fault: "a" });
            reports.put(Report::RingFault { queue: 1, fault: "a" });
            reports.put(Report::RingFault { queue: 1, fault: "b" });
            reports.put(breach("x", n));
            reports.put(Report::HostFailed { what: "x", detail: n.to_string() });
            reports.put(Report::PumpEnded { group: 0, how: Ended::Panicked(n.to_string()) });
            reports.put(Report::PumpEnded { group: 0, how: Ended::NotPlaced(n.to_string()) });
        }
        reports.put(breach("y", 0));
        reports.put(Report::Ended { device: None, reason: "gone".to_owned(), last: None });
        assert_eq!(
            shown(&reports),
            [
                "RingFault { queue: 0, fault: \"a\" } 1000",
                "RingFault { queue: 1, fault: \"a\" } 1000",
                "RingFault { queue: 1, fault: \"b\" } 1000",
                "PeerMisbehaved { what: \"x\", detail: \"999\" } 1000",
                "HostFailed { what: \"x\", detail: \"999\" } 1000",
                "PumpEnded { group: 0, how: Panicked(\"999\") } 1000",
                "PumpEnded { group: 0, how: NotPlaced(\"999\") } 1000",
                "PeerMisbehaved { what: \"y\", detail: \"0\" } 1",
                "Ended { device: None, reason: \"gone\", last: None } 1",
            ]
        );
    }

    #[test]
    fn reset_that_a_status_follows_still_ends_what_was_negotiated() {
        let reports = Reports::default();
        let negotiated = || Report::Negotiated { features: Features(1), protocol: 0 };
        let run = |with: Vec<Report>| {
            for report in with {
                reports.put(report);
            }
            let mut is_negotiated = false;
            let mut status = None;
            for (report, _) in reports.take() {
                match report {
                    Report::Negotiated { .. } => is_negotiated = true,
                    Report::Status(0) => (is_negotiated, status) = (false, Some(0)),
                    Report::Status(other) => status = Some(other),
                    _ => {}
                }
            }
            (is_negotiated, status)
        };
        let status = Report::Status;
        assert_eq!(run(vec![negotiated(), status(15), status(0), status(1)]), (false, Some(1)));
        assert_eq!(run(vec![status(1), negotiated(), status(0), negotiated(), status(7)]), (true, Some(7)));
        assert_eq!(run(vec![status(0), status(3), negotiated(), status(15), status(0)]), (false, Some(0)));
    }

    /// Control takes while sessions put: nothing is taken twice, nothing stays, and it is told whenever there is news.
    #[test]
    fn nothing_is_lost_between_putting_and_taking() {
        let reports = std::sync::Arc::new(Reports::default());
        let (news, told) = crossbeam::channel::unbounded();
        let session = {
            let reports = std::sync::Arc::clone(&reports);
            std::thread::spawn(move || {
                for _ in 0..200_000 {
                    if reports.put(Report::RingFault { queue: 0, fault: "a" }) {
                        news.send(()).unwrap();
                    }
                }
            })
        };
        let mut seen = 0;
        while told.recv().is_ok() {
            let taken = reports.take();
            assert_eq!(taken.len(), 1);
            seen += taken[0].1;
            assert!(told.len() <= 1, "one word of news a session");
        }
        session.join().unwrap();
        assert_eq!(seen, 200_000);
    }
}
