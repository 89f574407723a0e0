//! A device side that dies before and after each of its stores, and the successor that goes on: everything completes
//! exactly once for the driver.

use std::fs::File;
use std::sync::Arc;
use std::sync::Mutex;

use ringway_ring::chain::Burst;
use ringway_ring::features::Features;
use ringway_ring::guest::{Region, RegionSpec};
use ringway_ring::layout::{Areas, DriverConfig, Layout};
use ringway_ring::packed::device::PackedDevice;
use ringway_ring::position::{PositionPage, PositionSlot};
use ringway_ring::queue::{Completion, DeviceRing, DriverBuffer, DriverRing, QueueConfig};
use ringway_ring::split::device::SplitDevice;
use ringway_ring::words::Words;

use super::*;

const BYTES: u64 = 0x10_0000;
const DATA: u64 = 0x8_0000;
const BUFFER: u64 = 64;

/// The life of one device side.
struct Life {
    slot: PositionSlot,
    /// Stores that it still makes.
    left: Mutex<usize>,
    /// It dies right after its last store, not only when it would make the next.
    after: bool,
    /// What was kept when it died.
    kept: Mutex<Option<Option<Position>>>,
}

impl Life {
    fn store(&self, store: impl FnOnce()) {
        let mut left = self.left.lock().unwrap();
        if self.is_over() {
            return;
        }
        if *left == 0 {
            *self.kept.lock().unwrap() = Some(self.slot.load());
            return;
        }
        store();
        *left -= 1;
        if *left == 0 && self.after {
            *self.kept.lock().unwrap() = Some(self.slot.load());
        }
    }

    fn is_over(&self) -> bool {
        self.kept.lock().unwrap().is_some()
    }
}

/// An area of a ring whose stores end with the life of the process that makes them.
struct Mortal {
    map: Arc<GuestMap>,
    start: u64,
    len: usize,
    life: Arc<Life>,
}

impl Mortal {
    fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.map.resolve(self.start + at as u64, N as u64).unwrap().read(&mut bytes);
        bytes
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        self.life.store(|| {
            self.map.resolve(self.start + at as u64, bytes.len() as u64).unwrap().write(bytes);
        });
    }
}

impl Words for Mortal {
    fn size(&self) -> usize {
        self.len
    }
    fn read_u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.read(at))
    }
    fn read_u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.read(at))
    }
    fn read_u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.read(at))
    }
    fn write_u16(&self, at: usize, value: u16) {
        self.write(at, &value.to_le_bytes());
    }
    fn write_u32(&self, at: usize, value: u32) {
        self.write(at, &value.to_le_bytes());
    }
    fn write_u64(&self, at: usize, value: u64) {
        self.write(at, &value.to_le_bytes());
    }
}

/// What happens between the death and the successor.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Meanwhile {
    Nothing,
    /// The driver collects what was published, and makes as much available again as it can.
    AvailableAgain,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    format: Format,
    size: u16,
    /// Descriptors in a chain.
    len: usize,
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
        let config = self.config(position, slot);
        match self.case.format {
            Format::Split => Box::new(config.activate_split().unwrap()),
            Format::Packed => Box::new(config.activate_packed().unwrap()),
        }
    }

    fn mortal(&self, position: Position, life: &Arc<Life>) -> Box<dyn DeviceRing> {
        let config = self.config(position, self.slot.clone());
        let area = |start, len| Mortal { map: Arc::clone(&self.map), start, len, life: Arc::clone(life) };
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
            if self.driver.add(&vec![buffer; self.case.len], token as u32).is_err() {
                break;
            }
            self.back.push(0);
        }
        self.driver.publish();
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

    fn addrs(&self) -> VringAddrs {
        VringAddrs {
            index: 0,
            flags: 0,
            desc: self.areas.desc,
            device: self.areas.device,
            driver: self.areas.driver,
            log: 0,
        }
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

    let life =
        Arc::new(Life { slot: world.slot.clone(), left: Mutex::new(death), after, kept: Mutex::new(None) });
    let mut device = world.mortal(start, &life);
    let most = usize::from(case.size) / case.len;
    for most in [most, most.div_ceil(2), 2] {
        world.post(most);
        // A burst of three leaves some available behind it.
        world.serve(&mut *device, 3);
        if life.is_over() {
            break;
        }
        world.collect();
    }
    let Some(kept) = life.kept.lock().unwrap().take() else { return false };
    drop(device);

    match case.meanwhile {
        Meanwhile::Nothing => {}
        Meanwhile::AvailableAgain => {
            world.collect();
            world.post(most);
        }
    }
    // A split ring's base is its used index; a packed one's is where it was set up.
    let base = match case.format {
        Format::Split => {
            let used = idx(&world.map, world.areas.device).unwrap();
            Position { avail_idx: used, used_idx: used, ..Position::START }
        }
        Format::Packed => Position::START,
    };
    let position = decide(case.format, world.size(), &world.map, &world.addrs(), base, kept);
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

fn every_death(format: Format, sizes: &[u16], meanwhile: &[Meanwhile]) {
    let mut deaths = 0;
    for &size in sizes {
        for len in [1, 2] {
            for features in [Features::VERSION_1, Features::VERSION_1 | Features::IN_ORDER] {
                for &meanwhile in meanwhile {
                    for before in 1..2 * usize::from(size) + 2 {
                        for after in [false, true] {
                            let case = Case { format, size, len, features, before, meanwhile };
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
    every_death(Format::Packed, &[7, 8], &[Meanwhile::Nothing, Meanwhile::AvailableAgain]);
}

#[test]
fn split_ring_goes_on_wherever_its_device_died() {
    every_death(Format::Split, &[8], &[Meanwhile::Nothing, Meanwhile::AvailableAgain]);
}
