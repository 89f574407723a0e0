//! Both sides of a ring over the same memory, against a model of a virtqueue in plain Rust: every buffer comes back
//! exactly once, in ring order, with its contents and lengths, and notifications are asked for exactly when required.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

mod support;

use std::collections::VecDeque;
use std::sync::Arc;

use proptest::prelude::*;
use ringway_ring::chain::Burst;
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::position::{Position, PositionSlot};
use ringway_ring::queue::{Completion, DeviceRing, DriverBuffer, DriverRing, Format, RingFull};
use support::{DATA_BYTES, DATA_GPA, Shape};

#[derive(Debug, Clone)]
enum Op {
    /// Driver: a chain of these (length, writable) buffers, readable ones first.
    Add(Vec<(u32, bool)>),
    DriverPublish,
    Collect(usize),
    EnableCalls,
    DisableCalls,
    Peek(usize),
    /// Device: consume and complete so many of the peeked chains.
    Take(usize),
    DevicePublish,
    EnableKicks,
    DisableKicks,
    /// The device's side goes away and a new one starts from the position kept.
    RestartDevice,
}

/// One direction of notifications as the specification has it: counters are of entries (split) or slots (packed).
#[derive(Debug, Clone, Copy)]
enum Wish {
    Never,
    Always,
    /// When the entry with this number is there, and every so many entries after it: numbers come round.
    At(u64, u64),
}

impl Wish {
    fn asks(self, old: u64, new: u64) -> bool {
        match self {
            Wish::Never => false,
            Wish::Always => new > old,
            Wish::At(event, round) => (old..new).any(|entry| entry >= event && (entry - event) % round == 0),
        }
    }
}

#[derive(Debug, Clone)]
struct ModelChain {
    token: u32,
    buffers: Vec<DriverBuffer>,
    fill: u8,
    /// In a packed ring: its descriptors; in a split one: 1.
    slots: u64,
}

/// The virtqueue in plain Rust.
struct Oracle {
    shape: Shape,
    map: Arc<GuestMap>,
    driver: Box<dyn DriverRing>,
    device: Box<dyn DeviceRing>,
    keeper: PositionSlot,
    burst: Burst,

    sequence: u32,
    added: VecDeque<ModelChain>,
    /// Published by the driver, not consumed.
    available: VecDeque<ModelChain>,
    /// How many chains of `available` were peeked last.
    peeked: usize,
    /// Consumed and completed, with the bytes written, not published.
    completed: VecDeque<(ModelChain, u32)>,
    /// Published by the device, not collected.
    used: VecDeque<(ModelChain, u32)>,

    free: usize,
    /// Entries (or slots) published by the driver, consumed, published by the device, collected: since index 0.
    avail_count: u64,
    consumed_count: u64,
    used_count: u64,
    collected_count: u64,
    kicks: Wish,
    calls: Wish,
    /// The device may ask for a call it cannot know not to be needed.
    first_after_start: bool,
}

impl Oracle {
    fn new(shape: Shape) -> Oracle {
        let map = support::memory();
        let driver = shape.start_driver(&map);
        let keeper = support::slot();
        let device = shape.start_device(shape.device_config(&map, keeper.clone()));
        let start = u64::from(shape.position.used_idx);
        let initial = match shape.format {
            Format::Split if shape.event_idx() => Wish::At(start, 1 << 16),
            _ => Wish::Always,
        };
        Oracle {
            shape,
            burst: Burst::new(Arc::clone(&map)),
            map,
            driver,
            device,
            keeper,
            sequence: 0,
            added: VecDeque::new(),
            available: VecDeque::new(),
            peeked: 0,
            completed: VecDeque::new(),
            used: VecDeque::new(),
            free: shape.size.into(),
            avail_count: start,
            consumed_count: start,
            used_count: start,
            collected_count: start,
            kicks: initial,
            calls: initial,
            first_after_start: true,
        }
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Add(buffers) => self.add(buffers),
            Op::DriverPublish => {
                let slots: u64 = self.added.iter().map(|chain| chain.slots).sum();
                let (old, new) = (self.avail_count, self.avail_count + slots);
                assert_eq!(self.driver.publish(), self.kicks.asks(old, new), "kick from {old} to {new}");
                self.avail_count = new;
                self.available.append(&mut self.added);
            }
            Op::Collect(most) => self.collect(*most),
            Op::EnableCalls => {
                assert_eq!(self.driver.enable_calls(), !self.used.is_empty());
                self.calls = self.wish(self.collected_count);
            }
            Op::DisableCalls => {
                self.driver.disable_calls();
                self.calls = Wish::Never;
            }
            Op::Peek(most) => self.peek(*most),
            Op::Take(most) => self.take(*most),
            Op::DevicePublish => self.device_publish(),
            Op::EnableKicks => {
                assert_eq!(self.device.enable_kicks(), !self.available.is_empty());
                self.kicks = self.wish(self.consumed_count);
            }
            Op::DisableKicks => {
                self.device.disable_kicks();
                self.kicks = Wish::Never;
            }
            Op::RestartDevice => self.restart_device(),
        }
        assert_eq!(self.driver.free_slots(), self.free);
        assert_eq!(self.device.has_available(), !self.available.is_empty());
        assert_eq!(self.device.position(), self.position());
    }

    fn wish(&self, event: u64) -> Wish {
        let round = match self.shape.format {
            Format::Split => 1 << 16,
            Format::Packed => 2 * u64::from(self.shape.size),
        };
        if self.shape.event_idx() { Wish::At(event, round) } else { Wish::Always }
    }

    /// Where the device's side stands: at what it published.
    fn position(&self) -> Position {
        let (idx, wrap) = match self.shape.format {
            Format::Split => (self.used_count as u16, true),
            Format::Packed => {
                let size = u64::from(self.shape.size);
                let laps = self.used_count / size;
                ((self.used_count % size) as u16, self.shape.position.used_wrap == laps.is_multiple_of(2))
            }
        };
        Position { avail_idx: idx, avail_wrap: wrap, used_idx: idx, used_wrap: wrap }
    }

    fn add(&mut self, spec: &[(u32, bool)]) {
        let sequence = self.sequence;
        // 128 places of 512 bytes, the middle one over the border between the two data regions.
        let mut gpa = DATA_GPA + DATA_BYTES - 64 * 512 - 37 + u64::from(sequence % 128) * 512;
        let fill = sequence as u8;
        let mut buffers = Vec::new();
        for &(len, writable) in spec {
            buffers.push(DriverBuffer { gpa, len, writable });
            for (at, byte) in (0u8..len as u8).enumerate() {
                support::write(&self.map, gpa + at as u64, &[if writable { 0 } else { fill ^ byte }]);
            }
            gpa += u64::from(len);
        }
        let token = sequence.wrapping_mul(0x9e37_79b9);
        let fits = buffers.len() <= self.free;
        assert_eq!(self.driver.add(&buffers, token), if fits { Ok(()) } else { Err(RingFull) });
        if fits {
            self.free -= buffers.len();
            let slots = if self.shape.format == Format::Packed { buffers.len() as u64 } else { 1 };
            self.added.push_back(ModelChain { token, buffers, fill, slots });
            self.sequence += 1;
        }
    }

    fn collect(&mut self, most: usize) {
        let mut completions = vec![Completion::default(); most];
        let count = self.driver.collect(&mut completions).unwrap();
        assert_eq!(count, most.min(self.used.len()));
        for completion in &completions[..count] {
            let (chain, written) = self.used.pop_front().unwrap();
            assert_eq!(*completion, Completion { token: chain.token, written });
            let mut left = written;
            for buffer in chain.buffers.iter().filter(|buffer| buffer.writable) {
                let bytes = support::read(&self.map, buffer.gpa, buffer.len as usize);
                let filled = left.min(buffer.len);
                for (at, byte) in bytes.iter().enumerate() {
                    assert_eq!(*byte, if (at as u32) < filled { !chain.fill } else { 0 });
                }
                left -= filled;
            }
            self.free += chain.buffers.len();
            self.collected_count += chain.slots;
        }
    }

    fn peek(&mut self, most: usize) {
        let count = self.device.peek(&mut self.burst, most).unwrap();
        assert_eq!(count, most.min(self.available.len()).min(Burst::CHAINS));
        assert_eq!(self.burst.chains().len(), count);
        self.peeked = count;
        for (chain, model) in self.burst.chains().iter().zip(&self.available) {
            let bytes = |writable| -> u32 {
                model
                    .buffers
                    .iter()
                    .filter(|buffer| buffer.writable == writable)
                    .map(|buffer| buffer.len)
                    .sum()
            };
            assert_eq!((chain.readable_bytes, chain.writable_bytes), (bytes(false), bytes(true)));
            assert_eq!(u64::from(chain.slots), model.slots);
            let mut seen = Vec::new();
            for slice in self.burst.readable(chain) {
                let mut bytes = vec![0; slice.len()];
                slice.read(&mut bytes);
                seen.extend(bytes);
            }
            let expected: Vec<u8> = model
                .buffers
                .iter()
                .filter(|buffer| !buffer.writable)
                .flat_map(|buffer| (0u8..buffer.len as u8).map(|byte| model.fill ^ byte))
                .collect();
            assert_eq!(seen, expected);
            let room: usize = self.burst.writable(chain).map(|slice| slice.len()).sum();
            assert_eq!(room, chain.writable_bytes as usize);
            let single = (self.burst.single_readable(chain), self.burst.single_writable(chain));
            match (self.burst.readable(chain).len(), self.burst.writable(chain).len()) {
                (1, 0) => assert_eq!(single.0.unwrap().len(), chain.readable_bytes as usize),
                (0, 1) => assert_eq!(single.1.unwrap().len(), chain.writable_bytes as usize),
                _ => assert!(single.0.is_none() && single.1.is_none()),
            }
        }
    }

    fn take(&mut self, most: usize) {
        let count = most.min(self.peeked);
        let chains = self.burst.chains()[..count].to_vec();
        self.device.consume(&chains);
        for chain in &chains {
            let model = self.available.pop_front().unwrap();
            self.consumed_count += model.slots;
            // Half of what there is room for; nothing where one used entry stands for many.
            let written = if self.shape.skip_used { 0 } else { chain.writable_bytes.div_ceil(2) };
            let mut left = written as usize;
            for slice in self.burst.writable(chain) {
                let part = slice.part(0, left);
                assert_eq!(part.write(&vec![!model.fill; part.len()]), part.len());
                left -= part.len();
            }
            assert_eq!(left, 0);
            self.device.complete(chain, written);
            self.completed.push_back((model, written));
        }
        self.peeked = 0;
        self.burst.clear();
    }

    fn device_publish(&mut self) {
        let slots: u64 = self.completed.iter().map(|(chain, _)| chain.slots).sum();
        let (old, new) = (self.used_count, self.used_count + slots);
        let mut expected = self.calls.asks(old, new);
        let by_event = match self.shape.format {
            Format::Split => self.shape.event_idx(),
            Format::Packed => matches!(self.calls, Wish::At(..)),
        };
        if slots > 0 && self.first_after_start && by_event {
            expected = true;
            self.first_after_start = false;
        }
        assert_eq!(self.device.publish(), expected, "call from {old} to {new}");
        self.used_count = new;
        self.used.append(&mut self.completed);
        if slots > 0 {
            assert_eq!(self.keeper.load(), Some(self.position()));
        }
    }

    fn restart_device(&mut self) {
        let mut config = self.shape.device_config(&self.map, self.keeper.clone());
        config.position = self.keeper.load().unwrap_or(self.shape.position);
        self.first_after_start = true;
        self.device = self.shape.start_device(config);
        // What was consumed and completed but not published is there again; its buffers are as they were.
        while let Some((chain, _)) = self.completed.pop_back() {
            self.consumed_count -= chain.slots;
            for buffer in chain.buffers.iter().filter(|buffer| buffer.writable) {
                support::write(&self.map, buffer.gpa, &vec![0; buffer.len as usize]);
            }
            self.available.push_front(chain);
        }
        self.peeked = 0;
        self.burst.clear();
    }
}

impl Shape {
    fn event_idx(&self) -> bool {
        self.features.contains(Features::EVENT_IDX)
    }
}

fn chain() -> impl Strategy<Value = Vec<(u32, bool)>> {
    (proptest::collection::vec(0u32..64, 0..4), proptest::collection::vec(0u32..64, 0..4)).prop_map(
        |(readable, writable)| {
            let buffers = readable.into_iter().map(|len| (len, false));
            let mut chain: Vec<_> = buffers.chain(writable.into_iter().map(|len| (len, true))).collect();
            if chain.is_empty() {
                chain.push((17, false));
            }
            chain
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => chain().prop_map(Op::Add),
        4 => (1u32..64).prop_map(|len| Op::Add(vec![(len, false)])),
        6 => Just(Op::DriverPublish),
        5 => (0usize..40).prop_map(Op::Collect),
        1 => Just(Op::EnableCalls),
        1 => Just(Op::DisableCalls),
        8 => (0usize..80).prop_map(Op::Peek),
        8 => (0usize..80).prop_map(Op::Take),
        6 => Just(Op::DevicePublish),
        1 => Just(Op::EnableKicks),
        1 => Just(Op::DisableKicks),
        1 => Just(Op::RestartDevice),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    let features = (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(event, order, indirect)| {
        let mut features = Features::VERSION_1;
        for (on, feature) in
            [(event, Features::EVENT_IDX), (order, Features::IN_ORDER), (indirect, Features::INDIRECT_DESC)]
        {
            if on {
                features |= feature;
            }
        }
        features
    });
    let split = (0u32..8, 0u16..12, any::<bool>()).prop_map(|(power, back, wrap)| {
        // Fresh, or shortly before the indexes wrap.
        let start = if wrap { 65535 - back } else { 0 };
        (Format::Split, 1 << power, Position { avail_idx: start, used_idx: start, ..Position::START })
    });
    let packed =
        (1u16..70, any::<proptest::sample::Index>(), any::<bool>()).prop_map(|(size, start, wrap)| {
            let start = start.index(usize::from(size)) as u16;
            let position = Position { avail_idx: start, avail_wrap: wrap, used_idx: start, used_wrap: wrap };
            (Format::Packed, size, position)
        });
    (features, prop_oneof![split, packed], any::<bool>()).prop_map(
        |(features, (format, size, position), skip_used)| Shape {
            format,
            size,
            features: if format == Format::Packed { features | Features::RING_PACKED } else { features },
            position,
            skip_used: skip_used && features.contains(Features::IN_ORDER),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn rings_behave_as_the_model(shape in shape(), ops in proptest::collection::vec(op(), 1..300)) {
        let mut oracle = Oracle::new(shape);
        for op in &ops {
            oracle.run(op);
        }
    }
}

/// Every index of 16 bits, in uneven bursts.
fn run_round(shape: Shape) {
    let mut oracle = Oracle::new(shape);
    let mut chains = 0u64;
    while chains < 3 * 65536 / 2 {
        for burst in [1usize, 5, 31, 2] {
            for _ in 0..burst.min(usize::from(shape.size) / 2) {
                oracle.run(&Op::Add(vec![(1, false), (1, true)]));
            }
            for op in [Op::DriverPublish, Op::Peek(64), Op::Take(64), Op::DevicePublish, Op::Collect(64)] {
                oracle.run(&op);
            }
            chains += burst.min(usize::from(shape.size) / 2) as u64;
        }
        if chains.is_multiple_of(7) {
            oracle.run(&Op::EnableCalls);
            oracle.run(&Op::EnableKicks);
        }
    }
    assert!(oracle.used.is_empty() && oracle.available.is_empty());
}

#[test]
fn split_rings_wrap_all_indexes() {
    run_round(Shape::new(Format::Split, 64, Features::EVENT_IDX));
    run_round(Shape::new(Format::Split, 64, Features::VERSION_1));
}

#[test]
fn packed_rings_wrap_all_indexes() {
    run_round(Shape::new(Format::Packed, 61, Features::EVENT_IDX));
    run_round(Shape::new(Format::Packed, 64, Features::VERSION_1));
}

#[test]
fn disabled_calls_and_kicks_stay_quiet_over_every_index() {
    for format in [Format::Split, Format::Packed] {
        for features in [Features::EVENT_IDX, Features::VERSION_1] {
            let map = support::memory();
            let (mut driver, mut device) = Shape::new(format, 32, features).start(&map);
            driver.disable_calls();
            device.disable_kicks();
            let mut burst = Burst::new(Arc::clone(&map));
            let mut into = [Completion::default(); 32];
            for round in 0..70_000u32 {
                driver.add(&[DriverBuffer { gpa: DATA_GPA, len: 1, writable: false }], round).unwrap();
                assert!(!driver.publish(), "kick in round {round}");
                assert_eq!(device.peek(&mut burst, 32), Ok(1));
                device.consume(burst.chains());
                device.complete(&burst.chains()[0], 0);
                // The first one cannot know of an event index that it is one which was asked for long ago.
                let is_owed = round == 0 && format == Format::Split && features == Features::EVENT_IDX;
                assert_eq!(device.publish(), is_owed, "call in round {round}");
                assert_eq!(driver.collect(&mut into), Ok(1));
            }
        }
    }
}
