//! That workers which poll leave the kernel its share of their cores: in a guest whose kernel writes to a disk throughout.
//!
//! `RINGWAY_POLL_SECONDS` has each measurement last longer.

use std::time::Duration;

use ringway_lab::ensure;
use ringway_lab::error::Result;
use ringway_lab::lab::Lab;
use ringway_lab::pollers::{ALL_CORES, FIFO, Machine};

#[test]
#[ignore = "needs QEMU >= 8, e2fsprogs and the 6.12 guest kernel: run deploy/test"]
fn polling_cores_do_not_starve_the_kernel() {
    for (name, words) in [
        ("plain", ""),
        ("isolcpus", "isolcpus=1-2"),
        ("nohz", "nohz_full=1-2"),
        ("isolated", "isolcpus=1-2 nohz_full=1-2"),
    ] {
        Lab::run(&format!("polling-{name}"), |lab| {
            let mut machine = Machine::boot(lab, words)?;
            machine.free_real_time()?;
            idle(lab, &mut machine)?;
            spinner(lab, &mut machine)?;
            machine.start_ringwayd(&ALL_CORES)?;
            polls(lab, &mut machine, "workers that poll")?;
            let shown = machine.ringway("core show")?;
            ensure!(!shown.contains("gives way"), "nothing is to make room for: {shown}");
            machine.kill_ringwayd()?;
            machine.start_ringwayd(&[&ALL_CORES[..], &FIFO].concat())?;
            // Its look at how it is scheduled comes first.
            std::thread::sleep(Duration::from_secs(2));
            polls(lab, &mut machine, "workers that poll at a real-time priority")?;
            let shown = machine.ringway("core show")?;
            lab.say(&shown);
            ensure!(shown.contains("policy poll") && shown.contains("gives way"), "{shown}");
            machine.kill_ringwayd()?;
            starved(lab, &mut machine)?;
            machine.power_off()
        });
    }
}

/// Nothing polls: what the machine takes undisturbed.
fn idle(lab: &Lab, machine: &mut Machine<'_>) -> Result<()> {
    machine.begin_collecting(2)?;
    let collected = machine.collected(Duration::from_secs(60))?;
    lab.say(format_args!("nothing polls: {collected:?}"));
    ensure!(collected.is_some(), "the kernel's work does not end though nothing polls");
    Ok(())
}

/// The control: this is seen to starve the kernel, so that what follows says something.
fn spinner(lab: &Lab, machine: &mut Machine<'_>) -> Result<()> {
    machine.start_spinner()?;
    machine.begin_collecting(1)?;
    let starved = machine.collected(STARVED)?;
    lab.say(format_args!("a real-time task that spins: {starved:?}"));
    machine.end_spinner()?;
    let after = machine.collected(Duration::from_secs(60))?;
    lab.say(format_args!("after its end: {after:?}"));
    ensure!(starved.is_none(), "a real-time task that spins does not starve the kernel: {starved:?}");
    ensure!(after.is_some_and(|(longest, _)| longest >= BOUND), "its end frees nothing: {after:?}");
    Ok(())
}

fn polls(lab: &Lab, machine: &mut Machine<'_>, what: &str) -> Result<()> {
    machine.begin_collecting(seconds())?;
    let collected = machine.collected(Duration::from_secs(seconds() + 60))?;
    lab.say(format_args!("{what}: {collected:?}"));
    ensure!(
        collected.is_some_and(|(longest, reads)| longest < BOUND && reads > 1),
        "{what} hold up the kernel's own work: {collected:?}"
    );
    Ok(())
}

/// A worker whose core is taken whole is told of where the operator asks.
fn starved(lab: &Lab, machine: &mut Machine<'_>) -> Result<()> {
    machine.start_ringwayd(&ALL_CORES)?;
    machine.ringway("dev add name d0 mgmtdev sim/net core 1")?;
    machine.start_spinner()?;
    // It is there by then.
    std::thread::sleep(Duration::from_secs(1));
    let said = machine.ringway("-j why d0")?;
    machine.end_spinner()?;
    lab.say(&said);
    ensure!(said.contains("core_taken"), "{said}");
    machine.kill_ringwayd()
}

fn seconds() -> u64 {
    std::env::var("RINGWAY_POLL_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4)
}

/// The kernel's work on every core is done within this.
const BOUND: Duration = Duration::from_secs(1);
/// How long what starves the kernel is looked at.
const STARVED: Duration = Duration::from_secs(4);
