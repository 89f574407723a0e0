use ringway_ring::chain::Burst;
use ringway_ring::memory::{HostMemory, PageKind};
use ringway_ring::tsc;

use super::super::decision::Decision;
use super::*;
use crate::net::fdb::{Address, FdbOptions, ticks};

/// Parts with one port each, which has two sources; and the memory of all.
fn parts(count: u16) -> (Vec<Part>, Arc<GuestMap>) {
    let memory = HostMemory::allocate_on(PageKind::Base, "test", 1 << 16).unwrap();
    let map = Arc::new(memory.guest_map(0).unwrap());
    let port = |slot| {
        let sources = (0..2).map(|queue| (queue, Arc::clone(&map))).collect();
        vec![PartPort { slot, sources, has_sinks: true, later: 0, vlans: None }]
    };
    let ports: Vec<Vec<PartPort>> = (0..count).map(port).collect();
    (Part::all(&ports).unwrap(), map)
}

/// A burst of so many frames in so many pieces.
fn burst(map: &Arc<GuestMap>, frames: u16, pieces: usize) -> Burst {
    let mut burst = Burst::try_new(Arc::clone(map)).unwrap();
    let all = [(0, 20), (100, 20), (200, 20)];
    (0..frames).for_each(|head| assert!(burst.push_pieces(head, &all[..pieces])));
    burst
}

const STATION: Entry = Entry::Unknown;

fn fill(lane: &mut Lane, entries: usize) {
    (0..entries).for_each(|_| lane.writer.put(&STATION.words()).unwrap());
    lane.writer.publish().unwrap();
}

/// Frames of a source.
fn put(lane: &mut Lane, out: &mut InFlight, source: usize, entries: usize) {
    let begin = lane.writer.given();
    fill(lane, entries);
    (begin + 1..=lane.writer.given()).for_each(|mark| out.read_by(0, mark, source, out.next(source)));
}

fn drain(reader: &mut Reader, entries: usize) {
    reader.look();
    (0..entries).for_each(|_| assert!(reader.read(&mut [])));
    reader.finish(entries as u64);
    reader.tell();
}

/// The lane from one part to another.
fn to(part: &mut Part, peer: usize) -> &mut Lane {
    part.lanes.iter_mut().find(|lane| lane.peer == peer).unwrap()
}

fn stations(part: &mut Part, from: usize) -> Vec<Entry> {
    let reader = to(part, from).reader.as_mut().unwrap();
    reader.look();
    let mut line = [0; LINE_WORDS];
    let mut all = Vec::new();
    while reader.read(&mut line) {
        all.push(Entry::of(&line));
    }
    reader.finish(all.len() as u64);
    reader.tell();
    all
}

fn fdb() -> Fdb {
    let options = FdbOptions { capacity: 8192, ports: 8, per_port: 1024, ageing: 1 << 40, seed: [1, 2] };
    Fdb::try_new(options).unwrap()
}

fn address(last: u16) -> Address {
    let [high, low] = last.to_be_bytes();
    Mac([2, 0, 0, 0, high, low]).into()
}

fn millisecond() -> u64 {
    tsc::hertz() / 1000
}

#[test]
fn source_that_finds_a_lane_full_is_next_whoever_is_asked_first() {
    let (mut parts, map) = parts(2);
    let [one, other] = &mut parts[..] else { unreachable!() };
    let (burst, mut out) = (burst(&map, 32, 1), InFlight::new(2, 1));
    let decisions = [Decision::Port(AWAY | 1); 32];
    put(to(one, 1), &mut out, 0, MOST - RESERVED);
    let mut had = [0; 2];
    for turn in 0..40u64 {
        // It moves, by a burst in a turn, and the first source is always asked first.
        drain(to(other, 0).reader.as_mut().unwrap(), 32);
        out.finished(0, to(one, 1).writer.finished());
        (0..2).for_each(|source| _ = out.give_back(source));
        for (source, had) in had.iter_mut().enumerate() {
            let fits = one.fit(&decisions, &burst, source, (&out, 0), turn * millisecond() / 4);
            *had += fits;
            assert!(one.lanes[0].writer.room() >= fits + RESERVED, "what stations are told by is theirs");
            put(&mut one.lanes[0], &mut out, source, fits);
        }
    }
    assert!(had.iter().all(|had| *had >= 18 * 32), "{had:?}");
    assert_eq!(had[0] + had[1], 40 * 32);
}

#[test]
fn source_is_given_no_more_room_than_may_be_out() {
    let (mut parts, map) = parts(2);
    let (burst, mut out) = (burst(&map, 32, 1), InFlight::new(2, 1));
    // As of the turn's beginning all but five are read by the other part.
    (0..(MOST - RESERVED) as u64 - 5).for_each(|frame| out.read_by(0, frame + 1, 0, frame));
    let decisions = [Decision::Port(AWAY | 1); 32];
    assert_eq!(parts[0].fit(&decisions, &burst, 1, (&out, 0), 0), 5);
}

#[test]
fn what_waits_for_a_lane_that_does_not_move_goes_on_after_a_millisecond() {
    let (mut parts, map) = parts(3);
    let (burst, mut out) = (burst(&map, 32, 1), InFlight::new(2, 2));
    let part = &mut parts[0];
    put(to(part, 1), &mut out, 0, MOST - RESERVED);
    let mut decisions = [Decision::Port(AWAY | 2); 32];
    decisions[3] = Decision::Port(AWAY | 1);
    let now = 1 << 40;
    assert_eq!(part.fit(&decisions, &burst, 0, (&out, 0), now), 3);
    assert!(part.was_short() && !part.was_short());
    assert_eq!(part.fit(&decisions[3..], &burst, 0, (&out, 0), now + millisecond() / 2), 0);
    assert_eq!(part.fit(&decisions[3..], &burst, 0, (&out, 0), now + millisecond()), 29);
    // Nobody else waits for it then.
    assert_eq!(part.fit(&decisions, &burst, 1, (&out, 0), now + millisecond()), 32);
}

#[test]
fn frames_in_many_pieces_wait_for_a_place_no_longer_than_for_a_lane() {
    let (mut parts, map) = parts(3);
    let (burst, out) = (burst(&map, 32, 3), InFlight::new(2, 2));
    let part = &mut parts[0];
    let frame = Frame { len: 60, ..Frames::EMPTY };
    let head = [0; HEAD_BYTES];
    for (nth, chain) in burst.chains().iter().enumerate() {
        let passage = Passage { burst: &burst, chain, skip: 0, frame: &frame, beginning: &head, swap: false };
        let (_, place) = part.copies.copy(nth, &passage).unwrap();
        part.copies.keep(0, nth as u64 + 1, place);
    }
    part.copies.release();
    assert_eq!(part.copies.room(), 0);
    // It is for a lane that is empty.
    let decisions = [Decision::Port(AWAY | 2); 32];
    let now = 1 << 40;
    assert_eq!(part.fit(&decisions, &burst, 0, (&out, 0), now), 0);
    assert_eq!(part.fit(&decisions, &burst, 0, (&out, 0), now + millisecond()), 32);
    part.copies.finished(0, 3);
    assert_eq!(part.fit(&decisions, &burst, 1, (&out, 0), now + millisecond()), 3);
}

#[test]
fn frame_in_many_pieces_to_everybody_takes_one_place_for_any_number_of_lanes() {
    let (mut parts, map) = parts(COPIED + 8);
    let burst = burst(&map, 2, 3);
    let lanes = parts.len() - 1;
    let mut out = InFlight::new(2, lanes);
    let decisions = [Decision::Flood; 2];
    let part = &mut parts[0];
    assert_eq!(part.fit(&decisions, &burst, 0, (&out, 0), 0), 2);
    let frames = [Frame { len: 60, ..Frames::EMPTY }; 2];
    let heads = [[0; HEAD_BYTES]; 2];
    let load = Load { burst: &burst, chains: burst.chains(), skip: 0, frames: &frames, heads: &heads };
    let run = Origin { source: 0, first: 0 };
    assert_eq!(part.flood(false, &load, (0, None), run, &mut out, 0), (lanes as u32, 0));
    assert_eq!(part.copies.room(), usize::from(COPIED) - 2);
    // The last that reads one has it free.
    (1..lanes).for_each(|lane| part.copies.finished(lane, 2));
    assert_eq!(part.copies.room(), usize::from(COPIED) - 2);
    part.copies.finished(0, 1);
    assert_eq!(part.copies.room(), usize::from(COPIED) - 1);
    part.copies.finished(0, 2);
    assert!(part.copies.is_idle());
}

#[test]
fn all_are_told_that_a_claim_was_too_late_not_only_who_made_it() {
    let (mut parts, _) = parts(3);
    let mut known = fdb();
    known.learn(address(1), 0, 11);
    let [one, other, third] = &mut parts[..] else { unreachable!() };
    other.tell_station(address(1), 1, 10);
    other.publish();
    to(one, 1).reader.as_mut().unwrap().look();
    assert_eq!(one.take(0, 32, &mut known, 12), Next::Done);
    one.publish();
    let told = vec![Entry::Station { address: address(1), slot: 0, at: 11 }];
    assert_eq!((stations(other, 0), stations(third, 0)), (told.clone(), told));
}

#[test]
fn station_that_a_lane_had_no_room_for_is_told_as_soon_as_it_has_and_nobody_else_waits() {
    let (mut parts, _) = parts(3);
    let mut known = fdb();
    let ageing = 1 << 40;
    let [one, other, third] = &mut parts[..] else { unreachable!() };
    let mut cycles = 1 << 50;
    let turn = |one: &mut Part, known: &Fdb, cycles: &mut u64| {
        for _ in 0..known.buckets() {
            *cycles += millisecond();
            one.tell_again(known, ageing, *cycles);
            one.publish();
            one.lanes.iter_mut().for_each(|lane| _ = lane.writer.finished());
        }
    };
    turn(one, &known, &mut cycles);
    fill(to(one, 1), MOST);
    let now = ticks(cycles);
    known.learn(address(1), 0, now);
    one.tell_station(address(1), 0, now);
    one.publish();
    let told = vec![Entry::Station { address: address(1), slot: 0, at: now }];
    assert_eq!(stations(third, 0), told);
    turn(one, &known, &mut cycles);
    assert_eq!(stations(other, 0).len(), MOST, "of a lane that is full it has all");
    to(one, 1).writer.finished();
    turn(one, &known, &mut cycles);
    assert_eq!((stations(other, 0), stations(third, 0)), (told, vec![]));
    turn(one, &known, &mut cycles);
    assert_eq!((stations(other, 0), stations(third, 0)), (vec![], vec![]), "once");
}

#[test]
fn stations_are_told_again_beside_a_lane_that_is_full_and_in_bounds() {
    let (mut parts, _) = parts(3);
    let mut known = fdb();
    let mut cycles = 1 << 50;
    (0..500).for_each(|last| _ = known.learn(address(last), 0, ticks(cycles)));
    let [one, _, third] = &mut parts[..] else { unreachable!() };
    fill(to(one, 1), MOST);
    let mut told = 0;
    for _ in 0..2 * known.buckets() {
        cycles += millisecond() / 50;
        one.tell_again(&known, 1 << 33, cycles);
        // Moves beyond what a turn may tell cost nobody an entry.
        one.publish();
        let now = stations(third, 0).len();
        assert!(now < 2 * 8, "{now}");
        told += now;
        to(one, 2).writer.finished();
    }
    assert!(told >= 500, "{told}");
    let many = (0..100).map(|last| one.tell_station(address(last), 0, ticks(cycles))).count();
    one.publish();
    assert!(stations(third, 0).len() < many / 10);
}

#[test]
fn arrival_that_is_taken_back_or_finds_a_lane_barred_is_told_once_its_reader_turns() {
    let (mut parts, _) = parts(2);
    let known = fdb();
    let [one, other] = &mut parts[..] else { unreachable!() };
    let arrival =
        |last| Entry::Announcement { mac: Mac([2, 0, 0, 0, 0, last]), tag: None, to: To::All, queue: 0 };
    let turn = |one: &mut Part, cycles: u64| {
        one.tell_again(&known, 1 << 40, cycles);
        one.publish();
        one.lanes.iter_mut().for_each(|lane| _ = lane.writer.finished());
    };
    let announce = |one: &mut Part, last| one.announce(Mac([2, 0, 0, 0, 0, last]), None, false, 0);
    assert_eq!(announce(one, 1), (1, 0));
    turn(one, 1 << 50);
    to(one, 1).is_held = true;
    assert_eq!(one.take_back(0), Some(0));
    // Of another it is told then, too; of the same once; and no more wait than there is room for.
    assert_eq!([1, 2, 2].map(|last| announce(one, last)), [(1, 0); 3]);
    let refused = (3..20).map(|last| announce(one, last).1).sum::<u64>();
    assert_eq!(refused, 17 - 6);
    turn(one, (1 << 50) + 1);
    assert_eq!(other.look(0), 1);
    assert_eq!(other.take(0, 1, &mut fdb(), 1), Next::TakenBack(1));
    other.finish(0, 1);
    other.tell(0);
    (2..4).for_each(|turns| turn(one, (1 << 50) + turns));
    let told: Vec<Entry> = stations(other, 0);
    assert_eq!(told, (1..9).map(arrival).collect::<Vec<_>>());
    (4..6).for_each(|turns| turn(one, (1 << 50) + turns));
    assert!(stations(other, 0).is_empty(), "once");
    // Those places are for others again.
    assert_eq!((0..8).map(|last| announce(one, last).1).sum::<u64>(), 0);
}

#[test]
fn lane_that_is_empty_when_it_is_to_be_taken_back_goes_on() {
    let (mut parts, _) = parts(2);
    let [one, other] = &mut parts[..] else { unreachable!() };
    fill(to(one, 1), 3);
    to(one, 1).is_held = true;
    drain(to(other, 0).reader.as_mut().unwrap(), 3);
    assert_eq!((one.take_back(0), one.lanes[0].writer.is_open()), (None, true));
}

#[test]
fn lane_that_has_moved_since_it_was_looked_at_is_not_taken_back_but_by_one_that_ends() {
    for ends in [false, true] {
        let (mut parts, _) = parts(2);
        let [one, other] = &mut parts[..] else { unreachable!() };
        fill(to(one, 1), 3);
        for looks in 0..300 {
            one.watch(looks * look_after(), |_| true);
        }
        assert!(to(one, 1).is_held);
        drain(to(other, 0).reader.as_mut().unwrap(), 1);
        one.is_late = ends;
        assert_eq!((one.take_back(0), one.lanes[0].writer.is_open()), (ends.then_some(1), !ends));
        // It is looked at anew.
        one.watch(300 * look_after(), |_| true);
        assert!(!to(one, 1).is_held);
    }
}

#[test]
fn arrival_that_was_read_when_its_lane_is_taken_back_is_told_once() {
    let (mut parts, _) = parts(2);
    let [one, other] = &mut parts[..] else { unreachable!() };
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    assert_eq!(one.announce(mac, None, false, 0), (1, 0));
    one.publish();
    assert_eq!(other.look(0), 1);
    let told = other.take(0, 1, &mut fdb(), 1);
    assert_eq!(told, Next::Announcement { mac, tag: None, to: To::All, queue: 0 });
    // Its reader is held before it says that it is done with it.
    to(one, 1).is_held = true;
    assert_eq!(one.take_back(0), Some(1));
    other.finish(0, 1);
    other.tell(0);
    to(one, 1).writer.finished();
    one.tell_again(&fdb(), 1 << 40, 1 << 50);
    one.publish();
    assert!(one.lanes[0].writer.is_open() && stations(other, 0).is_empty());
}

#[test]
fn part_does_not_sleep_while_an_arrival_waits_for_which_there_is_room_again() {
    let (mut parts, _) = parts(2);
    let [one, other] = &mut parts[..] else { unreachable!() };
    fill(to(one, 1), 1);
    to(one, 1).is_held = true;
    assert_eq!(one.take_back(0), Some(0));
    assert_eq!(one.announce(Mac([2, 0, 0, 0, 0, 1]), None, false, 0), (1, 0));
    one.tell_again(&fdb(), 1 << 40, 1 << 50);
    assert!(!one.arm(), "its reader has not turned");
    one.disarm();
    // That comes between the last look and the sleep: nobody is woken.
    drain(to(other, 0).reader.as_mut().unwrap(), 1);
    assert!(one.arm());
    one.disarm();
    one.tell_again(&fdb(), 1 << 40, (1 << 50) + 1);
    assert!(!one.arm());
    one.publish();
    assert_eq!(stations(other, 0).len(), 1);
}

#[test]
fn part_that_ends_sleeps_though_an_arrival_waits_for_which_there_is_room() {
    let (mut parts, _) = parts(2);
    let [one, other] = &mut parts[..] else { unreachable!() };
    fill(to(one, 1), 1);
    to(one, 1).is_held = true;
    assert_eq!(one.take_back(0), Some(0));
    assert_eq!(one.announce(Mac([2, 0, 0, 0, 0, 1]), None, false, 0), (1, 0));
    drain(to(other, 0).reader.as_mut().unwrap(), 1);
    one.end();
    assert!(!one.arm());
}
