//! A device side that dies before and after each of its stores, and the successor that goes on: everything completes
//! exactly once for the driver.

use std::fs::File;
use std::sync::Arc;

use crate::chain::Burst;
use crate::features::Features;
use crate::guest::{Region, RegionSpec};
use crate::layout::{Areas, DriverConfig, Layout};
use crate::mortal::{Life, Mortal};
use crate::packed::device::PackedDevice;
use crate::position::{PositionPage, PositionSlot};
use crate::queue::{Completion, DeviceRing, DriverBuffer, DriverRing, QueueConfig};
use crate::split::device::SplitDevice;

use super::*;

const BYTES: u64 = 0x10_0000;
const DATA: u64 = 0x8_0000;
const TABLES: u64 = 0xa_0000;
const BUFFER: u64 = 64;

/// What happens between the death and the successor.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Meanwhile {
    Nothing,
    /// The driver collects what was published, and makes as much available again as it can.
    AvailableAgain,
    /// The VMM completes what is available, from where it believes the ring to stand; the driver collects it.
    VmmCompletes,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    format: Format,
    size: u16,
    /// Descriptors in a chain.
    len: usize,
    /// They are in an indirect table.
    indirect: bool,
    features: Features,
    /// Chains that went through before.
    before: usize,
    meanwhile: Meanwhile,
}

struct World {
    case: Case,
    map: Arc<GuestMap>,
    driver: Box<dyn DriverRing>,
    slot: PositionSlot,
    areas: Areas<u64>,
    /// Chains made available so far, and how often each came back.
    back: Vec<u32>,
}

impl World {
    fn new(case: Case) -> World {
        let file = File::from(rustix::fs::memfd_create("deaths", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(BYTES).unwrap();
        let spec = RegionSpec { gpa: 0, size: BYTES, user_addr: 0, file_offset: 0, file: file.into() };
        let map = Arc::new(GuestMap::new(vec![Region::map(spec).unwrap()]).unwrap());
        let size = RingSize::new(case.format, case.size.into()).unwrap();
        let areas = Layout::new(case.format, size).at(0);
        let config = DriverConfig {
            size,
            features: case.features,
            map: Arc::clone(&map),
            areas,
            position: Position::START,
        };
        let driver: Box<dyn DriverRing> = match case.format {
            Format::Split => Box::new(config.start_split().unwrap()),
            Format::Packed => Box::new(config.start_packed().unwrap()),
        };
        let slot = PositionPage::anonymous().unwrap().slot(0).unwrap();
        World { case, map, driver, slot, areas, back: Vec::new() }
    }

    fn size(&self) -> RingSize {
        RingSize::new(self.case.format, self.case.size.into()).unwrap()
    }

    fn config(&self, position: Position, slot: PositionSlot) -> QueueConfig {
        QueueConfig {
            size: self.size(),
            features: self.case.features,
            map: Arc::clone(&self.map),
            desc_user_addr: self.areas.desc,
            driver_user_addr: self.areas.driver,
            device_user_addr: self.areas.device,
            position,
            keeper: slot,
            skip_used: true,
        }
    }

    fn device(&self, position: Position, slot: PositionSlot) -> Box<dyn DeviceRing> {
        self.activate(self.config(position, slot))
    }

    fn activate(&self, config: QueueConfig) -> Box<dyn DeviceRing> {
        match self.case.format {
            Format::Split => Box::new(config.activate_split().unwrap()),
            Format::Packed => Box::new(config.activate_packed().unwrap()),
        }
    }

    fn mortal(&self, position: Position, life: &Arc<Life>) -> Box<dyn DeviceRing> {
        let config = self.config(position, self.slot.clone());
        let area = |start, len| Mortal::new(&self.map, start, len, life);
        let Areas { desc, driver, device } = self.areas;
        let rest = 6 + 8 * usize::from(self.case.size);
        let areas = Areas {
            desc: area(desc, 16 * usize::from(self.case.size)),
            driver: area(driver, rest),
            device: area(device, rest),
        };
        match self.case.format {
            Format::Split => Box::new(SplitDevice::over(config, areas).unwrap()),
            Format::Packed => Box::new(PackedDevice::over(config, areas).unwrap()),
        }
    }

    /// Makes up to `most` chains available.
    fn post(&mut self, most: usize) {
        for _ in 0..most {
            let token = self.back.len();
            let buffer = DriverBuffer {
                gpa: DATA + token as u64 % 64 * BUFFER,
                len: BUFFER as u32,
                // In order, nothing is written, so that runs are skipped.
                writable: !self.case.features.contains(Features::IN_ORDER),
            };
            let added = if self.case.indirect {
                let table = self.write_table(token, &vec![buffer; self.case.len]);
                self.driver.add(&[table], token as u32)
            } else {
                self.driver.add(&vec![buffer; self.case.len], token as u32)
            };
            if added.is_err() {
                break;
            }
            self.back.push(0);
        }
        self.driver.publish();
        self.mark_indirect();
    }

    /// Writes an indirect table; what refers to it.
    fn write_table(&self, token: usize, buffers: &[DriverBuffer]) -> DriverBuffer {
        let gpa = TABLES + token as u64 % 64 * BUFFER;
        for (at, buffer) in (0..).zip(buffers) {
            let is_last = at + 1 == buffers.len() as u16;
            // The places of NEXT and WRITE are those of split and packed descriptors alike.
            let flags = u16::from(!is_last) | u16::from(buffer.writable) << 1;
            let rest = match self.case.format {
                Format::Split => u64::from(buffer.len) | u64::from(flags) << 32 | u64::from(at + 1) << 48,
                Format::Packed => u64::from(buffer.len) | u64::from(flags & 2) << 48,
            };
            let place = self.map.resolve(gpa + 16 * u64::from(at), 16).unwrap();
            place.write(&[buffer.gpa.to_le_bytes(), rest.to_le_bytes()].concat());
        }
        DriverBuffer { gpa, len: 16 * buffers.len() as u32, writable: false }
    }

    /// Makes what refers to a table and is available indirect: our driver knows no tables.
    fn mark_indirect(&self) {
        for slot in 0..u64::from(self.case.size) {
            let place = self.map.resolve(self.areas.desc + 16 * slot, 16).unwrap();
            let mut bytes = [0; 16];
            place.read(&mut bytes);
            let (at, addr) = match self.case.format {
                Format::Split => (12, u64::from_le_bytes(bytes[..8].try_into().unwrap())),
                Format::Packed => (14, u64::from_le_bytes(bytes[..8].try_into().unwrap())),
            };
            let is_used =
                self.case.format == Format::Packed && (bytes[14] & 0x80 != 0) == (bytes[15] & 0x80 != 0);
            if (TABLES..TABLES + 64 * BUFFER).contains(&addr) && !is_used {
                bytes[at] |= 4;
                place.write(&bytes);
            }
        }
    }

    /// What a VMM does with what a guest sends while no back-end is there. Where it believes the ring to stand then, as
    /// a base: it goes by the used index of a split ring, and by where a packed ring was set up.
    fn complete_as_vmm(&self) -> Position {
        let at = self.base();
        if self.case.format == Format::Split {
            let slot = PositionPage::anonymous().unwrap().slot(0).unwrap();
            let mut device = self.device(at, slot);
            while self.serve(&mut *device, 32) > 0 {}
            return self.base();
        }
        let (mut index, mut wrap) = (at.used_idx, at.used_wrap);
        let word = |index: u16| {
            let mut bytes = [0; 8];
            self.map.resolve(self.areas.desc + 16 * u64::from(index) + 8, 8).unwrap().read(&mut bytes);
            u64::from_le_bytes(bytes)
        };
        let avail = |word: u64, wrap: bool| {
            let flags = word >> 48;
            (flags & 0x80 != 0) == wrap && (flags & 0x8000 != 0) != wrap
        };
        while avail(word(index), wrap) {
            let head = index;
            let head_wrap = wrap;
            loop {
                let last = word(index);
                index += 1;
                if index == self.case.size {
                    (index, wrap) = (0, !wrap);
                }
                if last >> 48 & 1 == 0 {
                    let flags: u64 = if head_wrap { 0x8080 } else { 0 };
                    let used = last & 0xffff_0000_0000 | flags << 48;
                    let place = self.map.resolve(self.areas.desc + 16 * u64::from(head) + 8, 8).unwrap();
                    place.write(&used.to_le_bytes());
                    break;
                }
            }
        }
        Position { avail_idx: index, avail_wrap: wrap, used_idx: index, used_wrap: wrap }
    }

    /// What a front-end says where the ring stands.
    fn base(&self) -> Position {
        match self.case.format {
            Format::Split => {
                let used = idx(&self.map, self.areas.device).unwrap();
                Position { avail_idx: used, used_idx: used, ..Position::START }
            }
            Format::Packed => Position::START,
        }
    }

    fn collect(&mut self) {
        let mut into = [Completion::default(); 64];
        loop {
            let count =
                self.driver.collect(&mut into).unwrap_or_else(|fault| panic!("{fault}: {:?}", self.case));
            for completion in &into[..count] {
                self.back[completion.token as usize] += 1;
            }
            if count == 0 {
                return;
            }
        }
    }

    /// One burst of up to `most` chains: how many it had.
    fn serve(&self, device: &mut dyn DeviceRing, most: usize) -> usize {
        let mut burst = Burst::new(Arc::clone(&self.map));
        let count = device.peek(&mut burst, most).unwrap_or_else(|fault| panic!("{fault}: {:?}", self.case));
        device.consume(burst.chains());
        for (nth, chain) in burst.chains().iter().enumerate() {
            let written = if self.case.features.contains(Features::IN_ORDER) { 0 } else { 10 + nth as u32 };
            device.complete(chain, written);
        }
        device.publish();
        count
    }
}

/// One life that ends at its `death`th store, and what comes after it. False: it made fewer stores.
fn live(case: Case, death: usize, after: bool) -> bool {
    let mut world = World::new(case);
    let mut device = world.device(Position::START, world.slot.clone());
    for _ in 0..case.before {
        world.post(1);
        world.serve(&mut *device, 1);
        world.collect();
    }
    let start = device.position();
    drop(device);
    world.slot.store(start);

    let life = Life::until(death, after, vec![world.slot.clone()]);
    let mut device = world.mortal(start, &life);
    let most = usize::from(case.size) / if case.indirect { 1 } else { case.len };
    for most in [most, most.div_ceil(2), 2] {
        world.post(most);
        // A burst of three leaves some available behind it.
        world.serve(&mut *device, 3);
        if life.is_over() {
            break;
        }
        world.collect();
    }
    let Some(kept) = life.kept() else { return false };
    let kept = kept[0];
    drop(device);

    let mut base = world.base();
    match case.meanwhile {
        Meanwhile::Nothing => {}
        Meanwhile::AvailableAgain => {
            world.collect();
            world.post(most);
        }
        Meanwhile::VmmCompletes => {
            base = world.complete_as_vmm();
            world.collect();
        }
    }
    if case.format == Format::Split {
        base = world.base();
    }
    let position = decide(case.format, world.size(), &world.map, &world.areas, base, kept);
    // A ring without a trace of another lap is one that was filled first (see the head of `resume`): its base holds.
    let as_at_first = case.format == Format::Packed
        && (0..case.size).all(|at| descriptor(&world.map, world.areas.desc, at).unwrap().avail);
    if as_at_first && position == base {
        return true;
    }
    let mut successor = world.device(position, world.slot.clone());
    for _ in 0..3 * case.size {
        world.serve(&mut *successor, 32);
        world.collect();
    }
    world.post(2);
    world.serve(&mut *successor, 32);
    world.collect();
    assert!(
        world.back.iter().all(|&times| times == 1),
        "{case:?}, store {death}, after {after}: kept {kept:?}, went on at {position:?}: {:?}",
        world.back
    );
    true
}

fn every_death(format: Format, sizes: &[u16]) {
    let mut deaths = 0;
    for &size in sizes {
        for (len, indirect) in [(1, false), (2, false), (2, true)] {
            for features in [Features::VERSION_1, Features::VERSION_1 | Features::IN_ORDER] {
                for meanwhile in [Meanwhile::Nothing, Meanwhile::AvailableAgain, Meanwhile::VmmCompletes] {
                    for before in (1..2 * usize::from(size) + 2).step_by(if indirect { 3 } else { 1 }) {
                        for after in [false, true] {
                            let features =
                                if indirect { features | Features::INDIRECT_DESC } else { features };
                            let case = Case { format, size, len, indirect, features, before, meanwhile };
                            deaths += (1..).take_while(|&death| live(case, death, after)).count();
                        }
                    }
                }
            }
        }
    }
    assert!(deaths > 500, "{deaths}");
}

#[test]
fn packed_ring_goes_on_wherever_its_device_died() {
    every_death(Format::Packed, &[7, 8]);
}

#[test]
fn split_ring_goes_on_wherever_its_device_died() {
    every_death(Format::Split, &[8]);
}

/// A sender's ring and a receiver's, and frames on the way between them, each in so many of the receiver's buffers.
struct Carrier {
    from: World,
    to: World,
    span: usize,
    /// How often each frame arrived whole.
    arrived: Vec<u32>,
    /// Of the one that is arriving, its number and parts.
    arriving: Option<(u32, usize)>,
}

impl Carrier {
    fn new(format: Format, size: u16, span: usize) -> Carrier {
        let case = |features| Case {
            format,
            size,
            len: 1,
            indirect: false,
            features,
            before: 0,
            meanwhile: Meanwhile::Nothing,
        };
        // Sent frames are only read, as in order.
        let from = World::new(case(Features::VERSION_1 | Features::IN_ORDER));
        let to = World::new(case(Features::VERSION_1));
        Carrier { from, to, span, arrived: Vec::new(), arriving: None }
    }

    /// Makes up to `most` frames available, and every buffer.
    fn post(&mut self, most: usize) {
        let first = self.from.back.len();
        self.from.post(most);
        for number in first..self.from.back.len() {
            let place = self.from.map.resolve(DATA + number as u64 % 64 * BUFFER, 4).unwrap();
            place.write(&(number as u32).to_le_bytes());
            self.arrived.push(0);
        }
        self.to.post(self.to.case.size.into());
    }

    /// Carries up to `most` frames, as pumps do: the receiver is given all of them, then the sender gets its buffers back.
    fn carry(&self, source: &mut dyn DeviceRing, sink: &mut dyn DeviceRing, most: usize) {
        let (mut frames, mut buffers) =
            (Burst::new(Arc::clone(&self.from.map)), Burst::new(Arc::clone(&self.to.map)));
        let sent = source.peek(&mut frames, most).unwrap();
        let room = sink.peek(&mut buffers, 32).unwrap() / self.span;
        let frames_moved = sent.min(room);
        for (frame, into) in
            frames.chains().iter().zip(buffers.chains().chunks_exact(self.span)).take(frames_moved)
        {
            let mut number = [0; 4];
            frames.readable(frame).next().unwrap().read(&mut number);
            sink.consume(into);
            for (part, chain) in (0..).zip(into) {
                let bytes = [&number[..], &[part]].concat();
                buffers.writable(chain).next().unwrap().write(&bytes);
                sink.complete(chain, bytes.len() as u32);
            }
        }
        sink.publish();
        let done = &frames.chains()[..frames_moved];
        source.consume(done);
        done.iter().for_each(|chain| source.complete(chain, 0));
        source.publish();
    }

    /// The receiver takes what came: frames in parts, in their order; what is empty is no frame.
    fn collect(&mut self) {
        self.from.collect();
        let mut into = [Completion::default(); 64];
        let count = self.to.driver.collect(&mut into).unwrap();
        for completion in &into[..count] {
            self.to.back[completion.token as usize] += 1;
            if completion.written == 0 {
                assert_eq!(self.arriving, None, "a frame has an end");
                continue;
            }
            let mut bytes = [0; 5];
            let place = self.to.map.resolve(DATA + u64::from(completion.token) % 64 * BUFFER, 5).unwrap();
            place.read(&mut bytes);
            let number = u32::from_le_bytes(bytes[..4].try_into().unwrap());
            let part = usize::from(bytes[4]);
            assert_eq!((number, part), self.arriving.unwrap_or((number, 0)), "a frame is one frame");
            self.arriving = (part + 1 < self.span).then_some((number, part + 1));
            self.arrived[number as usize] += u32::from(self.arriving.is_none());
        }
    }
}

/// A process that dies while it carries frames. False: it made fewer stores.
fn carry_and_die(format: Format, size: u16, span: usize, before: usize, death: usize, after: bool) -> bool {
    const MOST: usize = 3;
    let mut world = Carrier::new(format, size, span);
    let (mut source, mut sink) = (
        world.from.device(Position::START, world.from.slot.clone()),
        world.to.device(Position::START, world.to.slot.clone()),
    );
    for _ in 0..before {
        world.post(1);
        world.carry(&mut *source, &mut *sink, 1);
        world.collect();
    }
    let starts = [source.position(), sink.position()];
    drop((source, sink));
    world.from.slot.store(starts[0]);
    world.to.slot.store(starts[1]);

    let life = Life::until(death, after, vec![world.from.slot.clone(), world.to.slot.clone()]);
    let (mut source, mut sink) = (world.from.mortal(starts[0], &life), world.to.mortal(starts[1], &life));
    for _ in 0..3 {
        world.post(MOST);
        world.carry(&mut *source, &mut *sink, MOST);
        if life.is_over() {
            break;
        }
        world.collect();
    }
    let Some(kept) = life.kept() else { return false };
    drop((source, sink));
    // The receiver may look before the successor is there, or not.
    if death.is_multiple_of(2) {
        world.collect();
    }
    let goes_on = |side: &World, kept| decide(format, side.size(), &side.map, &side.areas, side.base(), kept);
    let mut source = world.from.device(goes_on(&world.from, kept[0]), world.from.slot.clone());
    let mut config = world.to.config(goes_on(&world.to, kept[1]), world.to.slot.clone());
    if span > 1 {
        config.give_back_torn();
    }
    let mut sink = world.to.activate(config);
    for _ in 0..4 * size {
        world.collect();
        world.post(0);
        world.carry(&mut *source, &mut *sink, MOST);
    }
    world.collect();
    let twice = world.arrived.iter().filter(|&&times| times == 2).count();
    assert!(
        world.arrived.iter().all(|times| (1..=2).contains(times))
            && twice <= MOST
            && world.from.back.iter().all(|&times| times == 1)
            && world.to.back.iter().all(|&times| times <= 1),
        "{format:?} {size}, {span} buffers a frame, {before} before, store {death}, after {after}: {:?} {:?} {:?}",
        world.arrived,
        world.from.back,
        world.to.back
    );
    true
}

fn every_death_on_the_way(format: Format, sizes: &[u16], span: usize) {
    let mut deaths = 0;
    for &size in sizes {
        for before in 1..2 * usize::from(size) + 2 {
            for after in [false, true] {
                let dies = |&death: &usize| carry_and_die(format, size, span, before, death, after);
                deaths += (1..).take_while(dies).count();
            }
        }
    }
    assert!(deaths > 200, "{deaths}");
}

#[test]
fn frames_that_a_process_died_carrying_arrive_whole_once_or_twice_over_split_rings() {
    every_death_on_the_way(Format::Split, &[8], 1);
    every_death_on_the_way(Format::Split, &[8], 2);
}

#[test]
fn frames_that_a_process_died_carrying_arrive_whole_once_or_twice_over_packed_rings() {
    every_death_on_the_way(Format::Packed, &[7, 8], 1);
}

#[test]
fn frames_in_several_buffers_each_arrive_whole_once_or_twice_over_packed_rings() {
    every_death_on_the_way(Format::Packed, &[8], 2);
    every_death_on_the_way(Format::Packed, &[7], 3);
}

/// Why the base holds for a full ring at the start of a lap with wrap counter 1 whose last chain crossed the ring's end: one
/// that was filled for the first time has the very same flags, and what else there is (ids, addresses, lengths) is up to
/// the driver.
#[test]
fn full_ring_whose_last_chain_crossed_its_end_cannot_be_told_from_a_fresh_one() {
    let case = |len| Case {
        format: Format::Packed,
        size: 7,
        len,
        indirect: false,
        features: Features::VERSION_1,
        before: 5,
        meanwhile: Meanwhile::Nothing,
    };
    let mut ran = World::new(case(3));
    let mut device = ran.device(Position::START, ran.slot.clone());
    for _ in 0..5 {
        ran.post(1);
        ran.serve(&mut *device, 1);
        ran.collect();
    }
    ran.post(2);
    let kept = device.position();
    assert_eq!((kept.used_idx, kept.used_wrap), (1, true));
    let mut fresh = World::new(case(1));
    fresh.post(1);
    fresh.case.len = 3;
    fresh.post(2);
    let flags = |world: &World| {
        let of = |slot: u64| {
            let mut flags = [0; 2];
            world.map.resolve(world.areas.desc + 16 * slot + 14, 2).unwrap().read(&mut flags);
            flags
        };
        [0, 1, 2, 3, 4, 5, 6].map(of)
    };
    assert_eq!(flags(&ran), flags(&fresh));
    for world in [&ran, &fresh] {
        let position =
            decide(Format::Packed, world.size(), &world.map, &world.areas, world.base(), Some(kept));
        assert_eq!(position, Position::START);
    }
}
