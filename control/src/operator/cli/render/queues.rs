//! What queues have counted.

use std::fmt::Write as _;

use crate::operator::api::{Explained, QueueInfo, RequestInfo, SizeInfo, TimeInfo, Vstats, VstatsShow};

/// `dev vstats show`.
pub(crate) fn vstats(answer: &VstatsShow) -> String {
    let mut text = String::new();
    for (name, vstats) in &answer.vstats.0 {
        match vstats {
            Vstats::One(queue) => {
                let _ = writeln!(
                    text,
                    "{name}: queue_type {} received_desc {} completed_desc {} ",
                    queue.queue_type, queue.received_desc, queue.completed_desc
                );
                let _ = writeln!(
                    text,
                    "  qidx {} packets {} bytes {} calls {} bursts {}",
                    queue.qidx, queue.packets, queue.bytes, queue.calls, queue.bursts
                );
                not_run(&mut text, queue);
                bursts(&mut text, queue);
                finished(&mut text, queue);
                batches(&mut text, queue);
                requests(&mut text, queue);
                again(&mut text, queue);
                held(&mut text, queue);
                explained(&mut text, queue);
            }
            Vstats::All { queues } => {
                let _ = writeln!(text, "{name}: ");
                let _ = writeln!(
                    text,
                    "  {:>4} {:<7} {:>14} {:>14} {:>14} {:>16} {:>12} {:>12} {:>10} {:>6}",
                    "qidx",
                    "type",
                    "received_desc",
                    "completed_desc",
                    "packets",
                    "bytes",
                    "calls",
                    "bursts",
                    "drops",
                    "faults"
                );
                for queue in queues {
                    let _ = writeln!(
                        text,
                        "  {:>4} {:<7} {:>14} {:>14} {:>14} {:>16} {:>12} {:>12} {:>10} {:>6}",
                        queue.qidx,
                        queue.queue_type,
                        queue.received_desc,
                        queue.completed_desc,
                        queue.packets,
                        queue.bytes,
                        queue.calls,
                        queue.bursts,
                        queue.drops.total(),
                        queue.faults.total()
                    );
                }
                for queue in queues {
                    not_run(&mut text, queue);
                    bursts(&mut text, queue);
                    finished(&mut text, queue);
                    batches(&mut text, queue);
                    requests(&mut text, queue);
                    again(&mut text, queue);
                    held(&mut text, queue);
                    explained(&mut text, queue);
                }
            }
        }
    }
    text
}

/// Why it is not served.
fn not_run(text: &mut String, queue: &QueueInfo) {
    if let Some(why) = &queue.not_run {
        let _ = writeln!(text, "  queue {} {why}", queue.qidx);
    }
}

/// How large bursts were, and how long they took.
fn bursts(text: &mut String, queue: &QueueInfo) {
    let Some(sizes) = &queue.burst_sizes else { return };
    let _ = write!(text, "  queue {} burst {}", queue.qidx, sizes_text(sizes));
    if let Some(latency) = &queue.latency {
        let _ = write!(text, " latency_us {}", times_text(latency));
    }
    text.push('\n');
}

pub(super) fn sizes_text(sizes: &SizeInfo) -> String {
    format!("p50 {} p99 {} max {}", sizes.p50, sizes.p99, sizes.max)
}

/// In microseconds, with a tenth.
pub(super) fn times_text(times: &TimeInfo) -> String {
    let TimeInfo { p50_ns, p99_ns, p999_ns, max_ns } = *times;
    format!("p50 {} p99 {} p99.9 {} max {}", us(p50_ns), us(p99_ns), us(p999_ns), us(max_ns))
}

pub(super) fn us(ns: u64) -> String {
    format!("{}.{}", ns / 1000, ns % 1000 / 100)
}

/// What was done for a guest that did not agree to do it.
fn finished(text: &mut String, queue: &QueueInfo) {
    if queue.sw_checksums | queue.sw_segmented != 0 {
        let _ = writeln!(
            text,
            "  queue {} done for the guest: {} checksums, {} large frames cut into {}",
            queue.qidx, queue.sw_checksums, queue.sw_segmented, queue.sw_segments
        );
    }
}

/// What was done again of what another process began.
fn again(text: &mut String, queue: &QueueInfo) {
    if queue.resubmitted != 0 {
        let _ = writeln!(
            text,
            "  queue {} {} requests were done again that a process before this one had not completed",
            queue.qidx, queue.resubmitted
        );
    }
}

/// How often frames had to stay.
fn held(text: &mut String, queue: &QueueInfo) {
    if queue.held != 0 {
        let _ = writeln!(
            text,
            "  queue {} held {} times: it sends as much as max_tx_pps and max_tx_rate let it",
            queue.qidx, queue.held
        );
    }
}

/// How many frames a system call moved, of a queue whose other side is the kernel.
fn batches(text: &mut String, queue: &QueueInfo) {
    if let Some(tenths) = queue.packets.saturating_mul(10).checked_div(queue.netdev_calls) {
        let _ = writeln!(
            text,
            "  queue {} kernel: {} system calls, {}.{} frames each",
            queue.qidx,
            queue.netdev_calls,
            tenths / 10,
            tenths % 10
        );
    }
}

/// How many requests of each kind a disk's queue did, and how long they took.
fn requests(text: &mut String, queue: &QueueInfo) {
    for &RequestInfo { ref kind, count, bytes, p50_ns, p99_ns, p999_ns, max_ns } in
        queue.requests.iter().filter(|requests| requests.count > 0)
    {
        let times = times_text(&TimeInfo { p50_ns, p99_ns, p999_ns, max_ns });
        let _ = writeln!(text, "  queue {} {kind} {count} bytes {bytes} us {times}", queue.qidx);
    }
}

fn explained(text: &mut String, queue: &QueueInfo) {
    for Explained { name, count, meaning, example, cure } in &queue.explain {
        let _ = write!(text, "  queue {} {name} {count}: {meaning}", queue.qidx);
        let _ = writeln!(text, "{}", example.as_ref().map(|last| format!("; {last}")).unwrap_or_default());
        let _ = writeln!(text, "    try: {cure}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::api::Named;

    fn named<T>(name: &str, value: T) -> Named<T> {
        Named(vec![(name.to_owned(), value)])
    }

    #[test]
    fn batches_of_the_kernels_side_are_shown_and_a_guests_queue_has_none() {
        let queue = |packets: u64, netdev_calls: u64| {
            serde_json::from_value(serde_json::json!({
                "queue_type": "rx", "received_desc": 0, "completed_desc": 0, "qidx": 0, "packets": packets, "bytes": 0,
                "calls": 0, "bursts": 0, "netdev_calls": netdev_calls, "drops": {}, "faults": {},
            }))
            .unwrap()
        };
        for (packets, calls, line) in [
            (640, 20, Some("  queue 0 kernel: 20 system calls, 32.0 frames each\n")),
            (33, 2, Some("  queue 0 kernel: 2 system calls, 16.5 frames each\n")),
            (0, 1, Some("  queue 0 kernel: 1 system calls, 0.0 frames each\n")),
            (640, 0, None),
        ] {
            let answer = VstatsShow { vstats: named("h0", Vstats::One(queue(packets, calls))) };
            let shown = vstats(&answer);
            assert!(line.map_or(!shown.contains("kernel:"), |line| shown.contains(line)), "{shown}");
        }
    }
}
