//! Cores: what they spend their time on, and what goes from one to another.

use std::fmt::Write as _;

use super::queues::{sizes_text, times_text};
use crate::operator::api::{CoreChanged, CoreInfo, CoreMove, CorePlan, CoreShow};
use crate::operator::doctor::ranges;
use crate::operator::rates::pump_state;

/// `core show`.
pub(crate) fn cores(answer: &CoreShow) -> String {
    let mut text = String::new();
    for (core, info) in &answer.core.0 {
        let all = (info.busy_cycles + info.idle_cycles + info.sleep_cycles).max(1);
        let share = |cycles: u64| cycles as f64 * 100.0 / all as f64;
        let _ = writeln!(
            text,
            "core {core}: busy {:.1}% idle {:.1}% sleep {:.1}% policy {} tid {} groups {}",
            share(info.busy_cycles),
            share(info.idle_cycles),
            share(info.sleep_cycles),
            info.idle_policy,
            info.tid,
            info.groups
        );
        work(&mut text, info);
        place(&mut text, info);
        for other in &info.others {
            let _ = writeln!(text, "  shared with {other}");
        }
        for pump in &info.pumps {
            let _ = writeln!(
                text,
                "  pump {}: {} packets {} bursts {} busy_cycles {}",
                pump.name,
                pump_state(pump),
                pump.packets,
                pump.bursts,
                pump.busy_cycles
            );
        }
    }
    text
}

/// Where a core is, where there is something to say of it.
fn place(text: &mut String, info: &CoreInfo) {
    let mut words = Vec::new();
    words.extend(info.node.map(|node| format!("node {node}")));
    if !info.siblings.is_empty() {
        words.push(format!("beside {}", ranges(&info.siblings)));
    }
    if info.draining {
        words.push("draining".to_owned());
    }
    if !words.is_empty() {
        let _ = writeln!(text, "  {}", words.join(" "));
    }
}

/// `core add`, `core drain`, `core del`.
pub(crate) fn core_changed(changed: &CoreChanged) -> String {
    changed
        .moved
        .iter()
        .map(|step| format!("{} goes from core {} to core {}\n", moved(step), step.from, step.to))
        .collect()
}

/// `core balance`.
pub(crate) fn core_plan(plan: &CorePlan) -> String {
    let mut text = String::new();
    let percent = |x100: u64| format!("{}.{} %", x100 / 100, x100 / 10 % 10);
    for (core, load) in &plan.core.0 {
        let _ =
            write!(text, "core {core}: busy {}, groups {}", percent(load.before_x100), load.groups_before);
        if load.before_x100 != load.after_x100 || load.groups_before != load.groups_after {
            let _ = write!(text, "; then busy {}, groups {}", percent(load.after_x100), load.groups_after);
        }
        text.push('\n');
    }
    let goes = if plan.applied { "goes" } else { "would go" };
    for step in &plan.moves {
        let _ = writeln!(
            text,
            "{} {goes} from core {} to core {} (busy {})",
            moved(step),
            step.from,
            step.to,
            percent(step.busy_x100)
        );
    }
    match (plan.moves.is_empty(), plan.applied) {
        (true, _) => text += "nothing to move\n",
        (false, false) => text += "nothing is done yet: ringway core balance --apply\n",
        (false, true) => {}
    }
    text
}

fn moved(step: &CoreMove) -> String {
    match step.group {
        Some(group) => format!("{} group {group}", step.name),
        None => step.name.clone(),
    }
}

fn work(text: &mut String, info: &CoreInfo) {
    let _ = write!(text, "  packets {} bursts {}", info.packets, info.bursts);
    if let Some(cycles) = info.cycles_per_packet {
        let _ = write!(text, " cycles_per_packet {cycles}");
    }
    if let Some(packets) = info.packets_per_burst_x100 {
        let _ = write!(text, " packets_per_burst {}.{:02}", packets / 100, packets % 100);
    }
    let _ = write!(text, " wakeups {} longest_turn_us {}", info.wakeups, info.longest_turn_ns / 1000);
    if let Some(preemptions) = info.preemptions {
        let _ = write!(text, " preemptions {preemptions}");
    }
    if let Some(ns) = info.run_delay_ns {
        let _ = write!(text, " run_delay_us {}", ns / 1000);
    }
    text.push('\n');
    if let (Some(sizes), Some(turns)) = (&info.burst_sizes, &info.busy_turns) {
        let _ = writeln!(text, "  burst {} turn_us {}", sizes_text(sizes), times_text(turns));
    }
    if info.gives_way || info.rests > 0 {
        let now = if info.gives_way { "gives way" } else { "gave way" };
        let policy = info.scheduling.as_deref().unwrap_or("unknown");
        let _ = writeln!(
            text,
            "  {now}: rests {} rest_us {} scheduling {policy}",
            info.rests,
            info.rest_ns / 1000
        );
    }
    if info.panics > 0 {
        let _ = writeln!(text, "  panics {}: a pump was taken out; ringway events tells which", info.panics);
    }
}
