//! What a connected device that does nothing costs: memory by proportional set size and kernel stacks. A program of its
//! own, so that nothing else is counted.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]
#![allow(unreachable_pub, dead_code, reason = "modules of one test program, which needs a part of them")]

#[path = "shared/pace.rs"]
mod pace;
#[path = "vhost_user/support.rs"]
mod support;

use std::time::Duration;

use ringway_ring::features::Features;
use support::*;

/// Proportional set size of this process and its kernel stacks (16 KiB a task), in KiB.
fn cost_kib() -> u64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    let pss: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    pss + 16 * std::fs::read_dir("/proc/self/task").unwrap().count() as u64
}

#[test]
fn idle_session_costs_less_than_56_kib() {
    const SESSIONS: u64 = 200;
    // All but memory and rings: what a map, the driver's pumps and the engine cost is theirs, and the whole is measured
    // by the benchmark suite.
    let start = |n: u64| {
        let (running, mut frontend) = sim_with_frontend(&format!("idle{n}"), 1);
        frontend.handshake().unwrap();
        frontend.set_features(Features::VERSION_1).unwrap();
        frontend.set_backend_req_fd().unwrap();
        frontend.enable_ring(0, true).unwrap();
        (running, frontend)
    };
    // The first pay for what all share.
    let first: Vec<_> = (0..8).map(start).collect();
    std::thread::sleep(Duration::from_millis(200));
    let before = cost_kib();
    let sessions: Vec<_> = (8..8 + SESSIONS).map(start).collect();
    std::thread::sleep(Duration::from_millis(500));
    let each = (cost_kib() - before) / SESSIONS;
    println!("a connected, idle session costs {each} KiB, front-end included");
    // Most of it is stack that was touched, several times more without optimisation than with.
    assert!(each < 56, "{each} KiB each");
    drop((first, sessions));
}
