//! The function as the uplink of a bridge on two cores: on another than its guests, and moved under traffic.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use ringway_control::operator::api::{DevChanged, DevSet};
use ringway_pmd::net::{Mac, announce};
use ringway_ring::queue::{Completion, DriverBuffer, Format};

use super::cores::two_cores;
use super::model::Model;
use super::support::{HandPair, Rig, SOON, eventually};
use super::uplink::{ALL, Bed, filters, frame, mac, next, send};

/// Somebody on the wire.
const FAR: Mac = mac(0xee);
/// Frames of a flow that are on their way at most: of the two that a guest sends and of the two that it is sent together fewer
/// than its rings have entries.
const WINDOW: usize = 16;

/// Longer than anything is under way: a worker that is held is waited for for a second.
const LOST_AFTER: Duration = Duration::from_secs(4);

/// Frames from one to another, numbered, in bytes that nothing else looks at.
#[derive(Debug)]
struct Flow {
    from: Mac,
    to: Mac,
    sent: u32,
    out: VecDeque<u32>,
    /// Those that did not come while later ones did.
    lost: u64,
}

impl Flow {
    fn new(from: Mac, to: Mac) -> Flow {
        Flow { from, to, sent: 0, out: VecDeque::new(), lost: 0 }
    }

    fn next(&mut self) -> Vec<u8> {
        let mut bytes = frame(self.to, self.from, 100);
        bytes[20..24].copy_from_slice(&self.sent.to_le_bytes());
        self.out.push_back(self.sent);
        self.sent += 1;
        bytes
    }

    /// One has come: after those that were sent before it, or without them.
    fn has_come(&mut self, bytes: &[u8]) {
        let number = u32::from_le_bytes(bytes[20..24].try_into().unwrap());
        let before = self.out.iter().position(|sent| *sent == number);
        let before = before.unwrap_or_else(|| panic!("{number} of {self:?}"));
        self.lost += before as u64;
        self.out.drain(..=before);
    }
}

/// A guest that sends to the wire and to the other guest at once, and hears of both.
struct Talker<'rig> {
    pair: HandPair<'rig>,
    /// To the wire, to the other guest, from the wire.
    flows: [Flow; 3],
    /// Frames that it made available, and how many of them it has back.
    made: u32,
    back: u32,
}

impl<'rig> Talker<'rig> {
    fn new(mut pair: HandPair<'rig>, own: Mac, other: Mac) -> Talker<'rig> {
        pair.post(Rig::SIZE.into());
        let flows = [Flow::new(own, FAR), Flow::new(own, other), Flow::new(FAR, own)];
        Talker { pair, flows, made: 0, back: 0 }
    }

    /// Sends what may be on its way; the wire as well.
    fn send(&mut self, model: &Model) {
        while self.flows[..2].iter().all(|flow| flow.out.len() < WINDOW)
            && self.made - self.back < 2 * WINDOW as u32
        {
            for flow in &mut self.flows[..2] {
                let bytes = [&[0; 12][..], &flow.next()].concat();
                let gpa = self.pair.rig.buffer(1, self.made);
                self.pair.rig.map.resolve(gpa, bytes.len() as u64).unwrap().write(&bytes);
                let buffer = DriverBuffer { gpa, len: bytes.len() as u32, writable: false };
                self.pair.tx.add(&[buffer], self.made).unwrap();
                self.made += 1;
            }
        }
        self.pair.tx.publish();
        while self.flows[2].out.len() < WINDOW {
            model.receive(&self.flows[2].next(), None);
        }
    }

    /// Takes in what has come: from the wire, and from the other guest, by what that one has sent.
    fn take(&mut self, other: &mut Flow) {
        let mut done = [Completion::default(); 64];
        self.back += self.pair.tx.collect(&mut done).unwrap() as u32;
        let came = self.pair.rx.collect(&mut done).unwrap();
        for done in &done[..came] {
            let mut bytes = vec![0; done.written as usize];
            let gpa = self.pair.rig.buffer(0, done.token);
            self.pair.rig.map.resolve(gpa, bytes.len() as u64).unwrap().read(&mut bytes);
            let from = if bytes[18..24] == FAR.0 { &mut self.flows[2] } else { &mut *other };
            assert_eq!(
                bytes[12..24],
                [from.to.0, from.from.0].concat(),
                "{:?} {:?}",
                &bytes[24..36],
                self.flows
            );
            from.has_come(&bytes[12..]);
            let buffer = DriverBuffer { gpa, len: Rig::BUFFER, writable: true };
            self.pair.rx.add(&[buffer], done.token).unwrap();
        }
        self.pair.rx.publish();
    }
}

/// All of the traffic of two guests, each with the wire and with the other.
struct Traffic<'rig> {
    talkers: [Talker<'rig>; 2],
    /// Frames that the wire had before and has had.
    before: usize,
    heard: usize,
    /// When something came last.
    moved: Instant,
}

impl Traffic<'_> {
    fn step(&mut self, model: &Model, is_over: bool) {
        let before = self.come();
        if !is_over {
            self.talkers.iter_mut().for_each(|talker| talker.send(model));
        }
        let [a, b] = &mut self.talkers;
        a.take(&mut b.flows[1]);
        b.take(&mut a.flows[1]);
        for sent in model.sent_since(self.before + self.heard) {
            assert_eq!(sent.bytes[..6], FAR.0, "the wire has what is for the wire alone");
            let of = self.talkers.iter_mut().find(|talker| sent.bytes[6..12] == talker.flows[0].from.0);
            of.unwrap().flows[0].has_come(&sent.bytes);
            self.heard += 1;
        }
        if self.come() > before {
            self.moved = Instant::now();
        } else if self.moved.elapsed() > LOST_AFTER {
            // No later one will come to tell.
            for flow in self.talkers.iter_mut().flat_map(|talker| &mut talker.flows) {
                flow.lost += flow.out.drain(..).count() as u64;
            }
        }
    }

    fn flows(&self) -> impl Iterator<Item = &Flow> {
        self.talkers.iter().flat_map(|talker| &talker.flows)
    }

    /// Frames that are on their way.
    fn out(&self) -> usize {
        self.flows().map(|flow| flow.out.len()).sum()
    }

    /// Frames that were sent and are not any more.
    fn come(&self) -> usize {
        self.sent() as usize - self.out()
    }

    fn lost(&self) -> u64 {
        self.flows().map(|flow| flow.lost).sum()
    }

    /// Frames that were sent of each flow at least.
    fn least(&self) -> u32 {
        self.flows().map(|flow| flow.sent).min().unwrap_or(0)
    }

    fn sent(&self) -> u32 {
        self.flows().map(|flow| flow.sent).sum()
    }

    fn is_settled(&self) -> bool {
        self.out() == 0 && self.talkers.iter().all(|talker| talker.made == talker.back)
    }
}

fn core_of(bed: &Bed, dev: &str) -> Option<u64> {
    bed.field_of(dev, "rings/0/core").as_u64()
}

/// What all queues dropped, by reason.
fn drops(bed: &Bed) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for (dev, queue) in ["up0", "vm1", "vm2"].into_iter().flat_map(|dev| [(dev, 0), (dev, 1)]) {
        for (reason, frames) in bed.counters(dev, queue)["drops"].as_object().unwrap() {
            *all.entry(reason.clone()).or_default() += frames.as_u64().unwrap();
        }
    }
    all.retain(|_, frames| *frames > 0);
    all
}

#[test]
fn uplink_on_another_core_than_its_guests_loses_nothing_and_keeps_the_order_wherever_they_are_moved() {
    let Some(cores) = two_cores() else { return };
    let model = Model::new();
    let bed = Bed::on(&model, cores.to_vec(), Some(cores[0]));
    let rigs = [Rig::new(Format::Split, 2), Rig::new(Format::Packed, 2)];
    let (mut one, mut a) = bed.guest_on(&rigs[0], mac(1), Some(cores[1]));
    let (two, mut b) = bed.guest_on(&rigs[1], mac(2), Some(cores[0]));
    // Placed, and each part tells the other who is behind it: the function has a filter for both.
    for (dev, core) in [("up0", cores[0]), ("vm1", cores[1]), ("vm2", cores[0])] {
        eventually(|| core_of(&bed, dev) == Some(core as u64));
    }
    eventually(|| [1, 2].iter().all(|last| filters(&model).contains(&mac(*last))));
    eventually(|| !bed.notes().contains("not reached"));
    // Stations behind a guest of the other core: what comes back of theirs is known for what it is, each time.
    let stations = 40;
    for (nth, station) in (0..).zip((0..stations).map(|nth| mac(0x40 + nth))) {
        b.post(1);
        let called = frame(ALL, station, 60);
        send(&mut a, nth, &called);
        assert_eq!(next(&mut b), called);
        eventually(|| model.sent().len() == nth as usize + 1);
        assert_eq!(model.sent()[nth as usize].bytes, called);
        eventually(|| bed.counter(1, "drops/reflected") == u64::from(nth) + 1);
        let answer = frame(station, FAR, 60);
        a.post(1);
        model.receive(&answer, None);
        assert_eq!(next(&mut a), answer);
    }
    // An arrival there is told on the wire, once.
    let told = announce::frame(mac(1));
    b.post(1);
    one.send_rarp(mac(1).0).unwrap();
    assert_eq!(next(&mut b), told);
    let before = usize::from(stations) + 1;
    eventually(|| model.sent().len() == before);
    assert_eq!(model.sent()[before - 1].bytes, told);
    // The other guest says where it is.
    a.post(1);
    let called = frame(ALL, mac(2), 60);
    send(&mut b, 0, &called);
    assert_eq!(next(&mut a), called);
    let before = before + 1;
    eventually(|| bed.counter(1, "drops/reflected") == before as u64);

    let talkers = [Talker::new(a, mac(1), mac(2)), Talker::new(b, mac(2), mac(1))];
    let mut traffic = Traffic { talkers, before, heard: 0, moved: Instant::now() };
    let mut at = [0, 1, 0];
    for moves in 0..24 {
        let nth = [0, 1, 2, 1, 0, 2, 2][moves % 7];
        at[nth] ^= 1;
        let (dev, core) = (["up0", "vm1", "vm2"][nth], cores[at[nth]]);
        let set = DevSet { name: dev.to_owned(), core: Some(core), ..DevSet::default() };
        let before = traffic.least();
        let _: DevChanged = bed.subsystem.call("dev.set", &set).unwrap();
        let begun = Instant::now();
        while core_of(&bed, dev) != Some(core as u64) || traffic.least() < before + 40 {
            assert!(
                begun.elapsed() < SOON,
                "{dev} to {core}: {:?} {:?}",
                traffic.talkers.each_ref().map(|talker| &talker.flows),
                drops(&bed)
            );
            for _ in 0..10 {
                traffic.step(&model, false);
            }
        }
    }
    let begun = Instant::now();
    while !traffic.is_settled() {
        assert!(
            begun.elapsed() < SOON,
            "{:?} {:?}",
            traffic.talkers.each_ref().map(|talker| &talker.flows),
            drops(&bed)
        );
        traffic.step(&model, true);
    }
    // All that the wire had of them came back from it, and went to nobody. None was lost, but what a worker costs that has no CPU for a second,
    // by name.
    assert!(traffic.heard > 1_000, "{}", traffic.heard);
    let reflected = (before + traffic.heard) as u64;
    let expected = [("reflected", reflected), ("lane_full", traffic.lost())].into_iter();
    let expected =
        expected.filter(|(_, frames)| *frames > 0).map(|(reason, frames)| (reason.to_owned(), frames));
    let expected: BTreeMap<String, u64> = expected.collect();
    eventually(|| drops(&bed) == expected);
    drop((traffic, one, two));
    bed.finish(&model);
}
