use std::collections::VecDeque;

use proptest::prelude::*;

use super::line::{on_core, transfers};
use super::*;

fn ends(entries: usize) -> (Writer, Reader) {
    lane(entries, &Sleeper::new(), &Sleeper::new())
}

#[test]
fn entries_come_whole_and_in_order_and_a_full_lane_takes_none() {
    let (mut writer, mut reader) = ends(4);
    let entry = |n: u64| -> Vec<u64> { (0..WORDS as u64).map(|word| n << 32 | word).collect() };
    for n in 0..4 {
        assert_eq!(writer.put(&entry(n)), Ok(()));
    }
    assert_eq!((writer.put(&entry(4)), writer.room(), writer.given()), (Err(Full), 0, 4));
    assert_eq!(reader.look(), 0, "nothing is published");
    assert_eq!(writer.publish(), Ok(false));
    assert_eq!(reader.look(), 4);
    let mut words = [0; WORDS];
    for n in 0..4 {
        assert!(reader.peek(&mut words[..1]) && reader.read(&mut words));
        assert_eq!(words[..], entry(n)[..]);
    }
    assert!(!reader.read(&mut words));
    // What was read is not finished, and what is finished is not told.
    assert_eq!((writer.finished(), writer.room()), (0, 0));
    reader.finish(3);
    assert_eq!(writer.finished(), 0);
    assert!(!reader.tell());
    assert_eq!((writer.finished(), writer.room()), (3, 3));
    // No more than was read.
    reader.finish(7);
    reader.tell();
    assert_eq!(writer.finished(), 4);
    assert_eq!((writer.put(&[]), writer.put(&[0; WORDS + 1])), (Err(Full), Err(Full)));
}

#[test]
fn closing_tells_of_what_was_not_read_and_refuses_the_rest() {
    let (mut writer, mut reader) = ends(8);
    for n in 0..5 {
        writer.put(&[n]).unwrap();
    }
    writer.publish().unwrap();
    reader.look();
    assert!(reader.read(&mut [0; 1]) && reader.read(&mut [0; 1]));
    reader.finish(1);
    writer.put(&[5]).unwrap();
    assert_eq!(reader.close(), (3, false));
    assert_eq!(writer.publish(), Err(Closed { entries: 1 }));
    assert_eq!((writer.finished(), writer.given(), writer.room()), (6, 6, 8));
    writer.put(&[6]).unwrap();
    assert_eq!(writer.publish(), Err(Closed { entries: 1 }));
    assert_eq!(writer.finished(), 7);
}

#[test]
fn what_is_not_claimed_is_taken_back_and_passed_over_before_anything_is_put_in() {
    let (mut writer, mut reader) = ends(8);
    (0..5).for_each(|n| writer.put(&[n]).unwrap());
    writer.publish().unwrap();
    reader.look();
    let mut word = [0];
    assert!(reader.read(&mut word) && reader.read(&mut word));
    assert_eq!(reader.claim(), Ok(()));
    assert!(reader.read(&mut word));
    writer.put(&[5]).unwrap();
    // Two are claimed; one was read and is not, two are published, and one is not.
    assert_eq!((writer.take_back(), writer.take_back()), (2, 2));
    assert_eq!((writer.is_open(), writer.room(), writer.put(&[6])), (false, 0, Err(Full)));
    assert_eq!(reader.claim(), Err(TakenBack));
    assert_eq!(reader.skip(), 2);
    // What it read and could not claim is passed over as well.
    reader.finish(5);
    reader.tell();
    assert_eq!((writer.finished(), writer.left(), writer.is_open()), (5, 1, false));
    // What was not published then is passed over once it is.
    writer.publish().unwrap();
    assert!(reader.look() == 1 && reader.read(&mut word));
    assert_eq!((reader.claim(), reader.skip()), (Err(TakenBack), 0));
    reader.finish(1);
    reader.tell();
    assert_eq!((writer.finished(), writer.left(), writer.is_open(), writer.room()), (6, 0, true, 8));
    // What was passed over is done with, though it was not claimed.
    writer.put(&[7]).unwrap();
    assert_eq!((writer.take_back(), writer.is_open()), (6, false));
    writer.publish().unwrap();
    assert!(reader.look() == 1 && reader.read(&mut word));
    assert_eq!((reader.claim(), reader.skip()), (Err(TakenBack), 0));
    reader.finish(1);
    reader.tell();
    writer.finished();
    writer.put(&[8]).unwrap();
    writer.publish().unwrap();
    assert!(reader.look() == 1 && reader.read(&mut word) && word == [8]);
    assert_eq!(reader.claim(), Ok(()));
}

#[test]
fn entry_that_is_put_in_after_all_was_passed_over_is_not_passed_over_with_it() {
    let (mut writer, mut reader) = ends(8);
    writer.put(&[1]).unwrap();
    writer.publish().unwrap();
    assert!(reader.look() == 1 && reader.read(&mut [0]));
    reader.claim().unwrap();
    assert_eq!(writer.take_back(), 1);
    reader.finish(1);
    reader.tell();
    // It has nothing new, and asks all the same.
    assert_eq!(reader.claim(), Err(TakenBack));
    assert_eq!((writer.finished(), writer.is_open()), (1, true));
    writer.put(&[2]).unwrap();
    writer.publish().unwrap();
    assert_eq!(reader.skip(), 0);
    assert!(reader.look() == 1 && reader.read(&mut [0]) && reader.claim().is_ok());
}

#[test]
fn lane_whose_reader_has_claimed_all_is_open_again_once_that_is_finished() {
    let (mut writer, mut reader) = ends(8);
    writer.put(&[1]).unwrap();
    writer.publish().unwrap();
    assert!(reader.look() == 1 && reader.read(&mut [0]));
    reader.claim().unwrap();
    assert_eq!(writer.take_back(), 1);
    assert!(!writer.is_open());
    reader.finish(1);
    reader.tell();
    assert_eq!((writer.finished(), writer.is_open()), (1, true));
    // One that is gone has finished all.
    writer.put(&[2]).unwrap();
    drop(reader);
    assert_eq!((writer.take_back(), writer.is_open()), (2, false));
}

#[test]
fn who_sleeps_is_to_be_woken_and_who_does_not_is_left_alone() {
    let (from, to) = (Sleeper::new(), Sleeper::new());
    let (mut writer, mut reader) = lane(4, &from, &to);
    writer.put(&[1]).unwrap();
    to.doze();
    assert_eq!((reader.look(), writer.publish()), (0, Ok(true)));
    to.wake();
    from.doze();
    assert!(reader.look() == 1 && reader.read(&mut [0]));
    assert!(!reader.tell(), "nothing is finished");
    reader.finish(1);
    assert!(reader.tell());
    from.wake();
    writer.put(&[1]).unwrap();
    assert_eq!(writer.publish(), Ok(false));
    from.doze();
    assert_eq!(reader.close(), (1, true));
}

/// Sixteen parts that all send to all others, burst by burst: what goes between cores is the first line of each entry once, and two
/// indices a burst.
#[test]
fn entry_between_any_two_of_sixteen_cores_costs_one_line_and_a_burst_two() {
    const CORES: usize = 16;
    const ROUNDS: u64 = 8;
    let sleepers: Vec<Arc<Sleeper>> = (0..CORES).map(|_| Sleeper::new()).collect();
    for (burst, words, lines) in [(1, 1, 1), (32, LINE_WORDS, 1), (32, LINE_WORDS + 1, 2), (32, WORDS, 4)] {
        let mut writers: Vec<Vec<Writer>> = (0..CORES).map(|_| Vec::new()).collect();
        let mut readers: Vec<Vec<Reader>> = (0..CORES).map(|_| Vec::new()).collect();
        for from in 0..CORES {
            for to in (0..CORES).filter(|to| *to != from) {
                let (writer, reader) = lane(32, &sleepers[from], &sleepers[to]);
                writers[from].push(writer);
                readers[to].push(reader);
            }
        }
        let mut round = |is_counted: bool| {
            let mut count = 0;
            for (core, lanes) in writers.iter_mut().enumerate() {
                on_core(core as u32);
                for lane in lanes {
                    lane.finished();
                    (0..burst).for_each(|n| lane.put(&vec![n; words]).unwrap());
                    assert_eq!(lane.publish(), Ok(false));
                }
            }
            for (core, lanes) in readers.iter_mut().enumerate() {
                on_core(core as u32);
                for lane in lanes {
                    assert_eq!(lane.look() as u64, burst);
                    while lane.read(&mut vec![0; words]) {}
                    lane.claim().unwrap();
                    lane.finish(burst);
                    lane.tell();
                    // Turns in which nothing came cost nothing.
                    (0..3).for_each(|_| assert_eq!((lane.look(), lane.tell()), (0, false)));
                }
            }
            count += transfers();
            if is_counted { count } else { 0 }
        };
        // Until every line was used, and every core knows whether the others sleep.
        (0..2 * 32).for_each(|_| assert_eq!(round(false), 0));
        let counted: u64 = (0..ROUNDS).map(|_| round(true)).sum();
        let lanes = (CORES * (CORES - 1)) as u64;
        assert_eq!(counted, lanes * ROUNDS * (burst * lines + 2), "{burst} entries of {words} words");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put(usize),
    Publish,
    Look,
    Read(usize),
    Finish(u64),
    Tell,
    Claim,
    TakeBack,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..6usize).prop_map(Step::Put),
        Just(Step::Publish),
        Just(Step::Look),
        (1..6usize).prop_map(Step::Read),
        (1..6u64).prop_map(Step::Finish),
        Just(Step::Tell),
        Just(Step::Claim),
        Just(Step::TakeBack),
    ]
}

proptest! {
    #[test]
    fn lane_is_a_queue_whatever_its_ends_do_and_closing_accounts_for_all(
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let (mut writer, mut reader) = ends(8);
        let (mut put, mut hidden, mut shown) = (0u64, 0u64, VecDeque::new());
        let (mut seen, mut read, mut finished, mut told) = (0usize, 0u64, 0u64, 0u64);
        let (mut claimed, mut is_barred) = (0, false);
        for step in steps {
            match step {
                Step::Put(many) => for _ in 0..many {
                    let fits = writer.put(&[put, !put]).is_ok();
                    is_barred &= told < put;
                    if is_barred {
                        prop_assert!(!fits);
                        break;
                    }
                    // It may not have looked, and never has less room than there is.
                    prop_assert_eq!(fits, put - told < 8);
                    if fits { (put, hidden) = (put + 1, hidden + 1); }
                },
                Step::Publish => {
                    prop_assert_eq!(writer.publish(), Ok(false));
                    shown.extend(put - hidden..put);
                    hidden = 0;
                }
                Step::Look => {
                    seen = shown.len();
                    prop_assert_eq!(reader.look(), seen);
                }
                Step::Read(many) => for _ in 0..many {
                    let mut words = [0; 2];
                    let is_there = reader.read(&mut words);
                    prop_assert_eq!(is_there, seen > 0);
                    if is_there {
                        let next = shown.pop_front().unwrap();
                        prop_assert_eq!(words, [next, !next]);
                        (seen, read) = (seen - 1, read + 1);
                    }
                },
                Step::Finish(many) => {
                    reader.finish(many);
                    finished = (finished + many).min(read);
                }
                Step::Tell => {
                    reader.tell();
                    told = finished;
                    prop_assert_eq!(writer.finished(), told);
                    is_barred &= told < put;
                    prop_assert_eq!(writer.is_open(), !is_barred);
                }
                Step::Claim if is_barred => {
                    prop_assert_eq!(reader.claim(), Err(TakenBack));
                    prop_assert_eq!(reader.skip(), seen as u64);
                    read += seen as u64;
                    shown.drain(..std::mem::take(&mut seen));
                }
                Step::Claim => {
                    prop_assert_eq!(reader.claim(), Ok(()));
                    claimed = read;
                }
                Step::TakeBack => {
                    prop_assert_eq!(writer.take_back(), claimed.max(told));
                    is_barred = true;
                }
            }
        }
        prop_assert_eq!(reader.close().0, shown.len() as u64);
        let refused = if hidden == 0 { Ok(false) } else { Err(Closed { entries: hidden }) };
        prop_assert_eq!(writer.publish(), refused);
        prop_assert_eq!(writer.finished(), put);
    }
}
