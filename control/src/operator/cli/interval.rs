//! `interval SECONDS`: what happened since the line before, again and again.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::fault::Fault;
use crate::operator::api::{CoreShow, Named, Queue, QueueSample, VstatsShow};
use crate::operator::cli::requests::Looks;
use crate::operator::cli::run::Output;
use crate::operator::client::Client;
use crate::operator::rates::{CoreRates, QueueRates, cores_between, queues_between, short};

/// Rates of the workers.
pub(super) fn cores(looks: Looks, client: &mut Client, output: Output) -> Result<(), Fault> {
    let look = |client: &mut Client| -> Result<CoreShow, Fault> { client.call("core.show", &json!({})) };
    again_and_again(looks, client, look, |before, now, passed, shown| {
        let core = cores_between(&before.core, &now.core);
        let line = json!({ "interval_ms": millis(passed), "core": core });
        output.line(&line, || core_lines(&core, shown))
    })
}

/// Rates of a device's queues, or of one.
pub(super) fn queues(looks: Looks, of: Queue, client: &mut Client, output: Output) -> Result<(), Fault> {
    let look = |client: &mut Client| -> Result<Vec<QueueSample>, Fault> {
        let stats: VstatsShow = client.call("dev.vstats.show", &of)?;
        let queues = stats.vstats.0.into_iter().flat_map(|(_, stats)| stats.into_queues());
        Ok(queues.map(QueueSample::from).collect())
    };
    again_and_again(looks, client, look, |before, now, passed, shown| {
        let queues = queues_between(before, now, passed);
        let line = json!({ "interval_ms": millis(passed), "vstats": { &of.name: { "queues": queues } } });
        output.line(&line, || queue_lines(&queues, shown))
    })
}

/// Looks, and shows what there is to show of each look and the one before; `shown` is how often it was.
fn again_and_again<T>(
    looks: Looks,
    client: &mut Client,
    look: impl Fn(&mut Client) -> Result<T, Fault>,
    mut show: impl FnMut(&T, &T, Duration, u64) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let (mut before, mut at) = (look(client)?, Instant::now());
    let mut next = at;
    for shown in 0..looks.count.unwrap_or(u64::MAX) {
        // A look that took long delays no other.
        next = (next + looks.every).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let now = look(client)?;
        let passed = at.elapsed();
        at = Instant::now();
        show(&before, &now, passed, shown)?;
        before = now;
    }
    Ok(())
}

fn core_lines(cores: &Named<CoreRates>, shown: u64) -> String {
    let mut text = String::new();
    if shown.is_multiple_of(HEADER_EVERY) {
        let _ = writeln!(
            text,
            "{:>4} {:>6} {:>6} {:>6} {:>9} {:>9} {:>6} {:>13} {:>9} {:>9} {:>13}",
            "core",
            "busy%",
            "idle%",
            "sleep%",
            "packets/s",
            "bursts/s",
            "burst",
            "cycles/packet",
            "turns/s",
            "wakeups/s",
            "preemptions/s"
        );
    }
    for (core, rates) in &cores.0 {
        let _ = writeln!(
            text,
            "{core:>4} {:>6.1} {:>6.1} {:>6.1} {:>9} {:>9} {:>6} {:>13} {:>9} {:>9} {:>13}",
            rates.busy_pct,
            rates.idle_pct,
            rates.sleep_pct,
            short(rates.packets_per_s),
            short(rates.bursts_per_s),
            or_dash(rates.burst),
            or_dash(rates.cycles_per_packet),
            short(rates.turns_per_s),
            short(rates.wakeups_per_s),
            or_dash(rates.preemptions_per_s)
        );
    }
    text
}

fn queue_lines(queues: &[QueueRates], shown: u64) -> String {
    let mut text = String::new();
    if shown.is_multiple_of(HEADER_EVERY) {
        let _ = writeln!(
            text,
            "{:>4} {:<7} {:>9} {:>9} {:>9} {:>6} {:>9} {:>9} {:>6}",
            "qidx", "type", "packets/s", "bits/s", "bursts/s", "burst", "calls/s", "drops/s", "faults"
        );
    }
    for queue in queues {
        let _ = writeln!(
            text,
            "{:>4} {:<7} {:>9} {:>9} {:>9} {:>6} {:>9} {:>9} {:>6}",
            queue.qidx,
            queue.queue_type,
            short(queue.flow.packets_per_s),
            short(queue.flow.bits_per_s),
            short(queue.bursts_per_s),
            or_dash(queue.burst),
            short(queue.calls_per_s),
            short(queue.all_drops_per_s()),
            queue.all_faults()
        );
    }
    text
}

/// A number in few places; a dash where there is none.
pub(super) fn or_dash(number: Option<f64>) -> String {
    number.map_or_else(|| "-".to_owned(), short)
}

fn millis(passed: Duration) -> u64 {
    u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
}

/// The header stands above so many looks.
const HEADER_EVERY: u64 = 20;
