//! The host's network behind a guest, measured for a moment: that all of it arrives as it was sent, both ways and beside each
//! peer that this machine has; and that a frame that is damaged on its way is noticed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::process::Command;
use std::sync::{Mutex, Once, PoisonError};

use ringway_bench::options::Ring;
use ringway_bench::rounds::Rounds;
use ringway_bench::tap::{self, Comparison, Direction, Peer, Protocol, Row, Setup};

/// One measurement at a time: each has two cores to itself.
fn alone() -> impl Drop {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn setup() -> Setup {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let cores: Vec<usize> = (0..1024).filter(|core| allowed.is_set(*core)).collect();
    Setup {
        protocols: vec![Protocol::Tcp, Protocol::Udp],
        directions: vec![Direction::ToHost, Direction::ToGuest],
        sizes: vec![64, 1514],
        ring: Ring::Split,
        mtu: 1500,
        how: Rounds { rounds: 1, seconds: 0.1, max_gap_us: 1000.0 },
        cores: vec![cores[0]],
        backend_core: *cores.last().unwrap(),
        idle: "adaptive",
        states: false,
        wrong: None,
    }
}

/// Builds the programs that are measured, which are another package's.
fn build() {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "ringway-control", "--bins"]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        assert!(cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
    });
}

fn compare(setup: &Setup, peer: Peer) -> Comparison {
    build();
    let compared = tap::compare(setup, peer, |_| {});
    compared.unwrap_or_else(|why| panic!("{why}"))
}

fn check_row(row: &Row) {
    for side in [&row.ours, &row.peer] {
        let books = side.books;
        assert!(books.received > 0 && side.gbps.median > 0.0 && side.mpps.median > 0.0, "{row:?}");
        assert_eq!((books.corrupt, books.out_of_order), (0, 0), "{row:?}");
        assert_eq!(books.sent, books.received + books.lost, "{row:?}");
        match row.job.protocol {
            Protocol::Tcp => assert_eq!(books.lost, 0, "{row:?}"),
            // Where a socket had no time a few may be lost, and are told.
            Protocol::Udp => assert!(books.lost * 10 < books.sent, "{row:?}"),
        }
        // A round in which one side had no time has no cycles.
        let was_busy = side.rounds.iter().all(|round| round.mpps > 0.0);
        assert!(!was_busy || side.cycles_per_frame.is_some_and(|cycles| cycles.median > 10.0), "{row:?}");
    }
}

#[test]
fn what_is_sent_arrives_as_it_was_both_ways_and_beside_every_peer() {
    let _alone = alone();
    for peer in Peer::present() {
        let compared = compare(&setup(), peer);
        assert_eq!(compared.rows.len(), 6);
        compared.rows.iter().for_each(check_row);
    }
}

#[test]
fn packed_rings_and_a_worker_that_polls_do_too() {
    let _alone = alone();
    let setup = Setup { ring: Ring::Packed, idle: "poll", sizes: vec![1514], ..setup() };
    let compared = compare(&setup, Peer::Plain);
    assert_eq!(compared.rows.len(), 4);
    compared.rows.iter().for_each(check_row);
}

#[test]
fn a_frame_that_is_damaged_on_its_way_is_noticed() {
    let _alone = alone();
    let directions = vec![Direction::ToHost];
    let setup = Setup { wrong: Some(20), directions, sizes: vec![1514], ..setup() };
    let compared = compare(&setup, Peer::Plain);
    for row in &compared.rows {
        for side in [&row.ours, &row.peer] {
            let books = side.books;
            assert!(books.corrupt > 0 && books.corrupt < books.sent / 4, "{row:?}");
            assert_eq!(books.out_of_order, 0, "{row:?}");
        }
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let own = setup();
    let shared = Setup { backend_core: own.cores[0], ..own.clone() };
    let long = Setup { sizes: vec![1515], ..own.clone() };
    let packed = Setup { ring: Ring::Packed, ..own };
    for (setup, peer, said) in [
        (shared, Peer::Plain, "core of its own"),
        (long, Peer::Plain, "64 to 1514"),
        (packed, Peer::VhostNet, "split"),
    ] {
        let refused = tap::compare(&setup, peer, |_| {}).unwrap_err().to_string();
        assert!(refused.contains(said), "{refused}");
    }
}
