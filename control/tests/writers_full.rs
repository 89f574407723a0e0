//! As many threads as can be watched write to peers' descriptors that block: who is owed a call just then gets it a moment
//! later, and is not placed anew until then. A program of its own, since all sessions of a process share those places.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::time::{Duration, Instant};

use ringway_control::operator::api::DeviceEntry;
use ringway_control::subsystem::{Options, Subsystem};
use ringway_guest::{Guest, GuestOptions};
use ringway_pmd::interrupt::as_writer;

const SOON: Duration = Duration::from_secs(20);

/// Does something while all places are taken.
fn with_all_places_taken(work: &mut dyn FnMut()) {
    if as_writer(|| with_all_places_taken(work)).is_none() {
        work();
    }
}

#[test]
fn calls_that_find_no_place_among_the_writers_are_made_later_and_place_nothing_anew() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Subsystem::start(Options::embedded(folder.path())).unwrap();
    let entry = DeviceEntry { name: "vm0".into(), mgmtdev: "sim/net".into(), ..DeviceEntry::default() };
    let socket = plane.add(&entry).unwrap().socket;
    let turns = || plane.engine().workers().iter().map(|worker| worker.turns).sum::<u64>();
    let mut guest = None;
    with_all_places_taken(&mut || {
        guest = Some(Guest::connect(&socket, GuestOptions::default()).unwrap());
        // Once it has found that there is nothing to do.
        let begun = Instant::now();
        loop {
            let before = turns();
            std::thread::sleep(Duration::from_millis(500));
            let turned = turns() - before;
            if turned < 50 {
                break;
            }
            assert!(begun.elapsed() < SOON, "workers turned {turned} times for a guest that does nothing");
        }
    });
    let begun = Instant::now();
    let mut guest = guest.unwrap();
    while guest.stats().received < 1000 {
        assert!(begun.elapsed() < SOON, "no traffic: {:?}", guest.stats());
        guest.turn(16).unwrap();
    }
    plane.stop();
}
