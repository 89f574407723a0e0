//! A back-end that loses, doubles, exchanges or damages one frame in a million is caught, and each is counted as what it
//! is; one that does nothing wrong has nothing counted against it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringway_bench::generator::{Generator, Load};
use ringway_bench::null::{NullBackend, NullOptions, Wrong};
use ringway_bench::options::{PortOptions, Ring, Touch};
use ringway_guest::frame::Sizes;
use ringway_guest::ledger::Counts;

/// Sends frames until the back-end did `times` of them wrong, one in `every`; returns what was counted, and how many it
/// did wrong.
///
/// A host that had no time for the back-end makes a round give up frames that come in the next one. What became of a frame
/// does not depend on when it came: the books are closed over all rounds together, and further ones are driven as long as
/// more are missing than were made to be.
fn counted(wrong: Option<Wrong>, ring: Ring, touch: Touch, every: u64, times: u64) -> (Counts, u64) {
    let _alone = alone();
    let options = NullOptions { copies_payload: true, bare: false, wrong: wrong.map(|wrong| (wrong, every)) };
    let last = *cores().last().unwrap();
    let null = NullBackend::start(last, options).unwrap();
    let port = PortOptions { ring, touch, size: Sizes::Fixed(128), ..PortOptions::default() };
    let mut generator = Generator::open(&[null.socket()], &port, &[cores()[0]]).unwrap();
    let mut sum = Counts::default();
    while sum.sent < every * times + every / 2 {
        let round = generator.round(Load::Closed, Duration::from_millis(200)).unwrap();
        sum = sum.plus(&round.counts);
    }
    let made_to_be_lost = || if wrong == Some(Wrong::Drop) { null.done_wrong() } else { 0 };
    let counts = closed(&mut generator, sum, made_to_be_lost);
    generator.close().unwrap();
    (counts, null.done_wrong())
}

/// The closed books of all rounds until now, and of further ones while more are missing than were made to be.
fn closed(generator: &mut Generator, mut sum: Counts, made_to_be_lost: impl Fn() -> u64) -> Counts {
    let mut further = 0;
    while sum.closed().lost > made_to_be_lost() && further < FURTHER_ROUNDS {
        sum = sum.plus(&generator.round(Load::Closed, Duration::from_millis(20)).unwrap().counts);
        further += 1;
    }
    sum.closed()
}

/// Every test here polls with two threads on two cores: side by side they would starve each other's.
fn alone() -> impl Drop {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A frame that did not come within so many rounds does not come.
const FURTHER_ROUNDS: u32 = 50;

fn cores() -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    (0..1024).filter(|core| allowed.is_set(*core)).collect()
}

#[test]
fn nothing_wrong_is_nothing_counted() {
    for ring in Ring::ALL {
        for touch in [Touch::None, Touch::Header, Touch::All] {
            let (counts, _) = counted(None, ring, touch, 100_000, 1);
            assert_eq!((counts.faults(), counts.sent), (0, counts.received), "{ring} {touch} {counts:?}");
        }
    }
}

#[test]
fn each_fault_of_one_in_a_million_is_counted_as_what_it_is() {
    let cases = [
        (Wrong::Drop, Touch::Header),
        (Wrong::Duplicate, Touch::Header),
        (Wrong::Reorder, Touch::Header),
        (Wrong::CorruptHead, Touch::Header),
        (Wrong::CorruptPayload, Touch::All),
        (Wrong::Drop, Touch::None),
        (Wrong::Duplicate, Touch::None),
    ];
    for (number, (wrong, touch)) in cases.into_iter().enumerate() {
        let ring = Ring::ALL[number % 2];
        let (counts, done) = counted(Some(wrong), ring, touch, 1_000_000, 1);
        assert!(done >= 1, "{wrong:?} was not done");
        let only = |found: u64| found == done && counts.faults() == done;
        let is_right = match wrong {
            Wrong::Drop => only(counts.lost),
            Wrong::Duplicate => only(counts.duplicated),
            Wrong::Reorder => only(counts.reordered),
            Wrong::CorruptHead | Wrong::CorruptPayload => only(counts.corrupt),
        };
        assert!(is_right, "{wrong:?} on {ring} rings, {done} times: {counts:?}");
    }
}

#[test]
fn where_no_frame_is_touched_some_are_looked_at_as_a_whole() {
    // Every third frame is damaged: of those looked at, one in 1,024, a third are.
    let (counts, _) = counted(Some(Wrong::CorruptPayload), Ring::Split, Touch::None, 3, 100_000);
    let looked = counts.sent / 1024;
    assert!((looked / 4..=looked / 2).contains(&counts.corrupt) && counts.corrupt > 10, "{counts:?}");
}

#[test]
fn a_back_end_that_moves_no_frame_is_found_out() {
    let _alone = alone();
    let options = NullOptions { copies_payload: false, bare: true, wrong: None };
    for ring in Ring::ALL {
        let null = NullBackend::start(*cores().last().unwrap(), options).unwrap();
        let port = PortOptions { ring, touch: Touch::None, ..PortOptions::default() };
        let mut generator = Generator::open(&[null.socket()], &port, &[cores()[0]]).unwrap();
        let (mut counts, begun) = (Counts::default(), Instant::now());
        while counts.received <= 10_000 {
            assert!(begun.elapsed() < Duration::from_secs(60), "{ring} {counts:?}");
            counts = counts.plus(&generator.round(Load::Closed, Duration::from_millis(200)).unwrap().counts);
        }
        let counts = closed(&mut generator, counts, || 0);
        generator.close().unwrap();
        // Not one that was looked at is a frame.
        assert!(counts.corrupt > 0 && counts.lost == 0, "{ring} {counts:?}");
    }
}

#[test]
fn open_loop_sends_what_it_was_told_to() {
    let _alone = alone();
    let null = NullBackend::start(
        *cores().last().unwrap(),
        NullOptions { copies_payload: true, bare: false, wrong: None },
    );
    let null = null.unwrap();
    let mut generator = Generator::open(&[null.socket()], &PortOptions::default(), &[cores()[0]]).unwrap();
    let first = Instant::now();
    // The generator itself may be off its core for much of the time: again, until it had it for most of a round.
    let round = loop {
        let begun = Instant::now();
        let round = generator.round(Load::Open { pps: 20_000.0 }, Duration::from_millis(500)).unwrap();
        let most = (begun.elapsed().as_secs_f64() * 20_000.0) as u64;
        let counts = closed(&mut generator, round.counts, || 0);
        // Of the warm-up too: 550 ms. A machine that is busy may be late with the last ones, but loses none; and takes
        // longer for both.
        assert_eq!(counts.faults(), 0, "{counts:?} {round:?}");
        assert!((10_500..=most).contains(&(round.counts.sent + round.unsent)), "{round:?}");
        if round.latency.count + round.set_aside > 5_000 {
            break round;
        }
        assert!(first.elapsed() < Duration::from_secs(60), "{round:?}");
    };
    generator.close().unwrap();
    assert!(round.latency.p50 <= round.latency.p99, "{round:?}");
}
