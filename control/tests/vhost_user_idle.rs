//! What a connected device that does nothing costs: memory by proportional set size and kernel stacks. A program of its
//! own, so that nothing else is counted.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]
#![allow(unreachable_pub, dead_code, reason = "modules of one test program, which needs a part of them")]

#[path = "vhost_user/support.rs"]
mod support;

use std::time::Duration;

use ringway_ring::queue::Format;
use support::*;

/// Proportional set size of this process and its kernel stacks (16 KiB a task), in KiB.
fn cost_kib() -> u64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    let pss: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    pss + 16 * std::fs::read_dir("/proc/self/task").unwrap().count() as u64
}

#[test]
fn idle_device_costs_less_than_64_kib() {
    const DEVICES: u64 = 200;
    let rig = Rig::new(Format::Split, 2);
    let start = |n: u64| {
        let (mut running, mut frontend) = sim_with_frontend(&format!("idle{n}"), 1);
        rig.introduce(&mut frontend);
        let kick = ringway_pmd::notify::EventFd::new().unwrap();
        for queue in 0..2 {
            let fd = std::os::fd::AsFd::as_fd(&kick);
            frontend.enable_ring(queue, true).unwrap();
            frontend.start_ring(queue, Rig::SIZE.into(), 0, rig.addr(queue), Some(fd), Some(fd)).unwrap();
        }
        running.wait_for_rings(|rings| rings.iter().all(|ring| ring.core.is_some()));
        (running, frontend)
    };
    // The first pays for what all share.
    let first: Vec<_> = (0..8).map(start).collect();
    std::thread::sleep(Duration::from_millis(200));
    let before = cost_kib();
    let devices: Vec<_> = (8..8 + DEVICES).map(start).collect();
    std::thread::sleep(Duration::from_millis(500));
    let each = (cost_kib() - before) / DEVICES;
    println!("a connected, idle device costs {each} KiB");
    assert!(each < 64, "{each} KiB each");
    drop((first, devices));
}
