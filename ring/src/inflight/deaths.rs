//! A device side that dies before and after each of its stores, in the ring and in the record, again and again: whatever was
//! taken completes exactly once for the driver, what is done again is done first and in order. And the same with a store
//! left out, which must show.

use std::fs::File;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::chain::{Burst, Chain};
use crate::features::Features;
use crate::guest::{GuestMap, Region as GuestRegion, RegionSpec};
use crate::layout::{Areas, DriverConfig, Layout};
use crate::mortal::{Life, Mortal};
use crate::packed::device::PackedDevice;
use crate::position::{Position, PositionPage, PositionSlot};
use crate::queue::{Completion, DeviceRing, DriverBuffer, DriverRing, QueueConfig, RingSize};
use crate::split::device::SplitDevice;

const BYTES: u64 = 0x10_0000;
/// Where the record is: a part of the same memory.
const RECORD: u64 = 0x4_0000;
const DATA: u64 = 0x8_0000;
const TABLES: u64 = 0xa_0000;
const BUFFER: u64 = 64;
/// More than any run has stores.
const NEVER: usize = 1_000_000;

#[derive(Debug, Clone, Copy)]
struct Case {
    format: Format,
    size: u16,
    indirect: bool,
    /// Where a split ring starts.
    start: u16,
    /// What happens, and in which order.
    seed: u64,
    /// Stores to the record that are left out.
    left_out: fn(usize) -> bool,
}

impl Case {
    fn new(format: Format, size: u16, seed: u64) -> Case {
        Case { format, size, indirect: false, start: 65530, seed, left_out: |_| false }
    }
}

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % end
    }
}

/// The record, some of whose stores are left out.
struct Forgetful {
    record: Mortal,
    left_out: fn(usize) -> bool,
}

impl Forgetful {
    fn keeps(&self, at: usize) -> bool {
        // The first start is not what is left out.
        self.record.read_u16(VERSION) == 0 || !(self.left_out)(at)
    }
}

impl Words for Forgetful {
    fn size(&self) -> usize {
        self.record.size()
    }
    fn read_u16(&self, at: usize) -> u16 {
        self.record.read_u16(at)
    }
    fn read_u32(&self, at: usize) -> u32 {
        self.record.read_u32(at)
    }
    fn read_u64(&self, at: usize) -> u64 {
        self.record.read_u64(at)
    }
    fn write_u16(&self, at: usize, value: u16) {
        if self.keeps(at) {
            self.record.write_u16(at, value);
        }
    }
    fn write_u32(&self, at: usize, value: u32) {
        if self.keeps(at) {
            self.record.write_u32(at, value);
        }
    }
    fn write_u64(&self, at: usize, value: u64) {
        if self.keeps(at) {
            self.record.write_u64(at, value);
        }
    }
}

/// The device side of one process: its ring, and the chains that it works on.
struct Device {
    ring: Box<dyn DeviceRing>,
    taken_before: usize,
    burst: Burst,
    working: Vec<(u32, Chain)>,
}

struct World {
    case: Case,
    dice: Dice,
    map: Arc<GuestMap>,
    driver: Box<dyn DriverRing>,
    slot: PositionSlot,
    areas: Areas<u64>,
    /// How often each chain that was made available came back.
    back: Vec<u32>,
    /// Chains that something was done about, in the order in which that was first so.
    executed: Vec<u32>,
}

impl World {
    fn new(case: Case) -> World {
        let file = File::from(rustix::fs::memfd_create("deaths", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(BYTES).unwrap();
        let spec = RegionSpec { gpa: 0, size: BYTES, user_addr: 0, file_offset: 0, file: file.into() };
        let map = Arc::new(GuestMap::new(vec![GuestRegion::map(spec).unwrap()]).unwrap());
        let size = RingSize::new(case.format, case.size.into()).unwrap();
        let areas = Layout::new(case.format, size).at(0);
        let mut position = Position::START;
        if case.format == Format::Split {
            (position.avail_idx, position.used_idx) = (case.start, case.start);
            for ring in [areas.driver, areas.device] {
                map.resolve(ring + 2, 2).unwrap().write(&case.start.to_le_bytes());
            }
        }
        let features = Features::VERSION_1 | Features::INDIRECT_DESC;
        let config = DriverConfig { size, features, map: Arc::clone(&map), areas, position };
        let driver: Box<dyn DriverRing> = match case.format {
            Format::Split => Box::new(config.start_split().unwrap()),
            Format::Packed => Box::new(config.start_packed().unwrap()),
        };
        let slot = PositionPage::anonymous().unwrap().slot(0).unwrap();
        let dice = Dice(case.seed);
        World { case, dice, map, driver, slot, areas, back: Vec::new(), executed: Vec::new() }
    }

    /// A process that goes on with the ring, for as long as it lives.
    fn device(&self, life: &Arc<Life>) -> Result<Device, String> {
        let Case { format, size, left_out, .. } = self.case;
        let config = QueueConfig {
            size: RingSize::new(format, size.into()).unwrap(),
            features: Features::VERSION_1 | Features::INDIRECT_DESC,
            map: Arc::clone(&self.map),
            desc_user_addr: 0,
            driver_user_addr: 0,
            device_user_addr: 0,
            position: Position::START,
            keeper: self.slot.clone(),
            skip_used: true,
        };
        let area = |start, len| Mortal::new(&self.map, start, len, life);
        let Areas { desc, driver, device } = self.areas;
        let rest = 6 + 8 * usize::from(size);
        let areas = Areas {
            desc: area(desc, 16 * usize::from(size)),
            driver: area(driver, rest),
            device: area(device, rest),
        };
        let record = area(RECORD, part_bytes(format, size) as usize);
        let record = Forgetful { record, left_out };
        let burst = Burst::new(Arc::clone(&self.map));
        let (ring, taken_before): (Box<dyn DeviceRing>, usize) = match format {
            Format::Split => {
                let ring =
                    SplitDevice::recorded(config, areas, record, size).map_err(|error| error.to_string())?;
                let taken_before = ring.taken_before();
                (Box::new(ring), taken_before)
            }
            Format::Packed => {
                let ring =
                    PackedDevice::recorded(config, areas, record, size).map_err(|error| error.to_string())?;
                let taken_before = ring.taken_before();
                (Box::new(ring), taken_before)
            }
        };
        Ok(Device { ring, taken_before, burst, working: Vec::new() })
    }

    /// Makes up to `most` chains available, each with its number in its first buffer.
    fn post(&mut self, most: usize) {
        for _ in 0..most {
            let token = self.back.len() as u32;
            let gpa = DATA + u64::from(token) % 64 * BUFFER;
            let mut buffers = vec![DriverBuffer { gpa, len: 4, writable: false }];
            let more = DriverBuffer { gpa: gpa + 4, len: 8, writable: true };
            buffers.extend(vec![more; self.dice.below(3)]);
            let added = if self.case.indirect && self.dice.below(2) == 0 {
                let table = self.write_table(token, &buffers);
                self.driver.add(&[table], token)
            } else {
                self.driver.add(&buffers, token)
            };
            if added.is_err() {
                break;
            }
            self.map.resolve(gpa, 4).unwrap().write(&token.to_le_bytes());
            self.back.push(0);
        }
        self.driver.publish();
        self.mark_indirect();
    }

    /// Writes an indirect table; what refers to it.
    fn write_table(&self, token: u32, buffers: &[DriverBuffer]) -> DriverBuffer {
        let gpa = TABLES + u64::from(token) % 64 * BUFFER;
        for (at, buffer) in (0..).zip(buffers) {
            let is_last = at + 1 == buffers.len() as u16;
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
            let addr = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let at = if self.case.format == Format::Split { 12 } else { 14 };
            let is_used =
                self.case.format == Format::Packed && (bytes[14] & 0x80 != 0) == (bytes[15] & 0x80 != 0);
            if (TABLES..TABLES + 64 * BUFFER).contains(&addr) && !is_used {
                bytes[at] |= 4;
                place.write(&bytes);
            }
        }
    }

    /// The driver takes what it sees.
    fn collect(&mut self) -> Result<(), String> {
        let mut into = [Completion::default(); 64];
        loop {
            let count = self.driver.collect(&mut into).map_err(|fault| fault.to_string())?;
            for completion in &into[..count] {
                self.back[completion.token as usize] += 1;
            }
            if count == 0 {
                return Ok(());
            }
        }
    }

    /// What was done, and is not known to the driver to be, in the order in which it was first done.
    fn unfinished(&self) -> Vec<u32> {
        self.executed.iter().copied().filter(|token| self.back[*token as usize] == 0).collect()
    }

    /// Takes up to `most` chains and does them. Those of a dead process are not done.
    fn take(&mut self, device: &mut Device, life: &Life, most: usize) -> Result<Vec<u32>, String> {
        let count = device.ring.peek(&mut device.burst, most).map_err(|fault| fault.to_string())?;
        let (mut chains, mut tokens) = (device.burst.chains().to_vec(), Vec::new());
        chains.truncate(count);
        for chain in chains {
            let mut token = [0; 4];
            device.burst.readable(&chain).next().unwrap().read(&mut token);
            let token = u32::from_le_bytes(token);
            // One by one: recorded before it is done.
            device.ring.consume(&[chain]);
            if life.is_over() {
                break;
            }
            if !self.executed.contains(&token) {
                self.executed.push(token);
            }
            device.working.push((token, chain));
            tokens.push(token);
        }
        Ok(tokens)
    }

    /// Completes up to `most` of the chains that it works on, whichever, in one burst.
    fn complete(&mut self, device: &mut Device, most: usize) {
        for _ in 0..most.min(device.working.len()) {
            let nth = self.dice.below(device.working.len());
            let (_, chain) = device.working.swap_remove(nth);
            device.ring.complete(&chain, chain.writable_bytes);
        }
        device.ring.publish();
    }

    /// One process, to its end or for as many turns.
    fn live(&mut self, death: usize, after: bool, turns: usize) -> Result<bool, String> {
        let life = Life::until(death, after, vec![self.slot.clone()]);
        let mut device = self.device(&life)?;
        if life.is_over() {
            return Ok(true);
        }
        // Those that something was done about come first, and in order.
        let unfinished = self.unfinished();
        let before = device.taken_before;
        let (mut again, mut left) = (Vec::new(), before);
        while left > 0 && !life.is_over() {
            let most = 1 + self.dice.below(3);
            let tokens = self.take(&mut device, &life, most.min(left))?;
            if tokens.is_empty() {
                break;
            }
            left -= tokens.len();
            again.extend(tokens);
        }
        if life.is_over() {
            return Ok(true);
        }
        if !again.starts_with(&unfinished) || left > 0 {
            return Err(format!(
                "done again are {again:?} of {before}, where {unfinished:?} were unfinished"
            ));
        }
        for _ in 0..turns {
            let most = self.dice.below(5);
            self.post(most);
            let most = self.dice.below(5);
            self.take(&mut device, &life, most)?;
            if life.is_over() {
                return Ok(true);
            }
            let most = self.dice.below(5);
            self.complete(&mut device, most);
            if life.is_over() {
                return Ok(true);
            }
            self.collect()?;
        }
        Ok(false)
    }

    /// A process that lives, and finishes everything.
    fn finish(&mut self) -> Result<(), String> {
        let life = Life::until(NEVER, false, vec![self.slot.clone()]);
        let mut device = self.device(&life)?;
        let unfinished = self.unfinished();
        let before = device.taken_before;
        let again = self.take(&mut device, &life, before)?;
        if !again.starts_with(&unfinished) {
            return Err(format!("done again are {again:?}, where {unfinished:?} were unfinished"));
        }
        for _ in 0..4 * self.case.size {
            let most = self.dice.below(4);
            self.take(&mut device, &life, 64)?;
            self.complete(&mut device, most);
            self.collect()?;
        }
        self.post(3);
        self.take(&mut device, &life, 64)?;
        self.complete(&mut device, 64);
        self.collect()?;
        drop(device);
        if !self.back.iter().all(|&times| times == 1) {
            return Err(format!("came back so often: {:?}", self.back));
        }
        // Drained: nothing is in flight, and a successor is at one with the ring.
        let device = self.device(&life)?;
        if device.taken_before != 0 {
            return Err("something is in flight after all came back".into());
        }
        Ok(())
    }
}

/// Processes that end at their `deaths`th stores each, and one that lives. False: the last of them made fewer stores.
fn run(case: Case, deaths: &[(usize, bool)]) -> Result<bool, String> {
    let mut world = World::new(case);
    let fail =
        |why| format!("{:?} of {}, seed {}, deaths {deaths:?}: {why}", case.format, case.size, case.seed);
    for &(death, after) in deaths {
        if !world.live(death, after, 6).map_err(fail)? {
            return Ok(false);
        }
        if world.dice.below(2) == 0 {
            world.collect().map_err(fail)?;
            let most = world.dice.below(4);
            world.post(most);
        }
        // The test knows what is visible, whether or not the driver has looked.
        world.collect().map_err(fail)?;
    }
    world.finish().map_err(fail)?;
    Ok(true)
}

/// How many ways there were to die, and the first that was not survived.
fn every_death(case: Case) -> Result<usize, String> {
    let mut deaths = 0;
    for after in [false, true] {
        for death in 1.. {
            if !run(case, &[(death, after)])? {
                break;
            }
            deaths += 1;
        }
    }
    Ok(deaths)
}

fn cases(format: Format) -> Vec<Case> {
    let sizes: &[u16] = if format == Format::Split { &[4, 8] } else { &[5, 8] };
    let mut cases = Vec::new();
    for &size in sizes {
        for seed in 1..8 {
            for indirect in [false, true] {
                cases.push(Case { indirect, ..Case::new(format, size, seed) });
            }
        }
    }
    cases
}

fn survives_every_death(format: Format) {
    let deaths: usize = cases(format).into_iter().map(|case| every_death(case).unwrap()).sum();
    assert!(deaths > 1000, "{deaths}");
}

#[test]
fn split_ring_loses_nothing_and_repeats_nothing_wherever_its_device_died() {
    survives_every_death(Format::Split);
}

#[test]
fn packed_ring_loses_nothing_and_repeats_nothing_wherever_its_device_died() {
    survives_every_death(Format::Packed);
}

#[test]
fn device_may_die_again_wherever_it_is_in_its_recovery() {
    for format in [Format::Split, Format::Packed] {
        let case = Case { indirect: true, ..Case::new(format, 8, 3) };
        let mut deaths = 0;
        for first in (1..).step_by(3) {
            if !run(case, &[(first, false)]).unwrap() {
                break;
            }
            for second in 1..40 {
                deaths += usize::from(run(case, &[(first, false), (second, true)]).unwrap());
            }
        }
        assert!(deaths > 1000, "{deaths}");
    }
}

proptest! {
    #[test]
    fn any_row_of_deaths_is_survived(
        packed: bool, indirect: bool, seed: u64, start: u16, size in 1..4u16,
        deaths in prop::collection::vec((1..160usize, any::<bool>()), 1..6),
    ) {
        let (format, size) = if packed { (Format::Packed, 4 * size + 1) } else { (Format::Split, 4 << size) };
        let case = Case { indirect, start, ..Case::new(format, size, seed) };
        if let Err(why) = run(case, &deaths) {
            prop_assert!(false, "{}", why);
        }
    }
}

/// The control: leaving out any kind of store is found.
#[test]
fn record_without_one_of_its_stores_does_not_survive() {
    fn entry_of(at: usize, head: usize, entry: usize) -> Option<usize> {
        at.checked_sub(head).map(|at| at % entry)
    }
    type Kind = (&'static str, Format, fn(usize) -> bool);
    let left_out: [Kind; 12] = [
        ("split inflight", Format::Split, |at| entry_of(at, 16, 16) == Some(0)),
        ("split next", Format::Split, |at| entry_of(at, 16, 16) == Some(6)),
        ("split counter", Format::Split, |at| entry_of(at, 16, 16) == Some(8)),
        ("split last_batch_head", Format::Split, |at| at == 12),
        ("split used_idx", Format::Split, |at| at == 14),
        ("packed inflight, next, last, num", Format::Packed, |at| entry_of(at, 32, 32) == Some(0)),
        ("packed next", Format::Packed, |at| entry_of(at, 32, 32) == Some(2)),
        ("packed counter", Format::Packed, |at| entry_of(at, 32, 32) == Some(8)),
        ("packed id, flags, len", Format::Packed, |at| entry_of(at, 32, 32) == Some(16)),
        ("packed addr", Format::Packed, |at| entry_of(at, 32, 32) == Some(24)),
        ("packed free heads", Format::Packed, |at| at == 12),
        ("packed used", Format::Packed, |at| at == 16),
    ];
    for (what, format, left_out) in left_out {
        let found = cases(format).into_iter().any(|case| every_death(Case { left_out, ..case }).is_err());
        assert!(found, "nobody missed {what}");
    }
}
