//! Rings of standing buffers against the devices' side of `ringway-ring`, and against a device that lies.

use std::sync::Arc;

use ringway_ring::chain::Burst;
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::layout::{DriverConfig, Layout};
use ringway_ring::memory::{HostMemory, PageKind};
use ringway_ring::position::{Position, PositionPage};
use ringway_ring::queue::{DeviceRing, Format, QueueConfig, RingSize};

use super::*;

/// A ring of each side in one memory.
struct Bed<R> {
    ring: R,
    device: Box<dyn DeviceRing>,
    burst: Burst,
    map: Arc<GuestMap>,
    areas: Areas<u64>,
    bytes: u64,
    _memory: HostMemory,
    _positions: Arc<PositionPage>,
}

impl<R: StandingRing> Bed<R> {
    fn new(format: Format, features: Features, writable: bool) -> Bed<R> {
        let size = RingSize::new(format, SIZE.into()).unwrap();
        let features = features
            | Features::VERSION_1
            | if format == Format::Packed { Features::RING_PACKED } else { Features::NONE };
        let memory = HostMemory::allocate_on(PageKind::Base, "standing", 1 << 20).unwrap();
        let map = Arc::new(memory.guest_map(GPA).unwrap());
        let layout = Layout::new(format, size);
        let areas = layout.at(GPA);
        let config = DriverConfig { size, features, map: Arc::clone(&map), areas, position: Position::START };
        match format {
            Format::Split => drop(config.start_split().unwrap()),
            Format::Packed => drop(config.start_packed().unwrap()),
        }
        let buffers: Vec<Buffer> = (0..u64::from(SIZE))
            .map(|nth| Buffer { gpa: GPA + (1 << 16) + nth * 128, len: 100, writable })
            .collect();
        let place = Place {
            areas: Areas {
                desc: 0,
                driver: (areas.driver - GPA) as usize,
                device: (areas.device - GPA) as usize,
            },
            buffers: &buffers,
            event_idx: features.contains(Features::EVENT_IDX),
            in_order: features.contains(Features::IN_ORDER),
        };
        let ring = R::start(place, map.resolve(GPA, layout.total).unwrap());
        let positions = PositionPage::anonymous().unwrap();
        let own = layout.at(memory.address());
        let config = QueueConfig {
            size,
            features,
            map: Arc::clone(&map),
            desc_user_addr: own.desc,
            driver_user_addr: own.driver,
            device_user_addr: own.device,
            position: Position::START,
            keeper: positions.slot(0).unwrap(),
            skip_used: !writable && features.contains(Features::IN_ORDER),
        };
        let device: Box<dyn DeviceRing> = match format {
            Format::Split => Box::new(config.activate_split().unwrap()),
            Format::Packed => Box::new(config.activate_packed().unwrap()),
        };
        let burst = Burst::new(Arc::clone(&map));
        let bytes = layout.total;
        Bed { ring, device, burst, map, areas, bytes, _memory: memory, _positions: positions }
    }

    fn offer(&mut self, ids: impl IntoIterator<Item = u16>) -> bool {
        let block = self.map.resolve(GPA, self.bytes).unwrap();
        ids.into_iter().for_each(|id| self.ring.offer(block, id));
        self.ring.publish(block)
    }

    /// The device completes up to `most`, each with `written` bytes and one more than the one before.
    fn complete(&mut self, most: usize, written: u32) -> usize {
        let count = self.device.peek(&mut self.burst, most).unwrap();
        for (nth, chain) in self.burst.chains().iter().enumerate() {
            self.device.consume(std::slice::from_ref(chain));
            self.device.complete(chain, if written == 0 { 0 } else { written + nth as u32 });
        }
        self.device.publish();
        count
    }

    fn collect(&mut self) -> Result<Vec<Done>, RingFault> {
        let mut done = [Done::default(); 64];
        let block = self.map.resolve(GPA, self.bytes).unwrap();
        let count = self.ring.collect(block, &mut done)?;
        Ok(done[..count].to_vec())
    }

    /// Stores bytes in one of the areas, as a device that lies would.
    fn store(&self, at: u64, bytes: &[u8]) {
        self.map.resolve(at, bytes.len() as u64).unwrap().write(bytes);
    }
}

/// Buffers go round many times, by bursts of every size: each comes back once for each time that it went, with its bytes.
fn goes_round<R: StandingRing>(format: Format, features: Features, writable: bool) {
    let mut bed = Bed::<R>::new(format, features, writable);
    let mut out = [false; SIZE as usize];
    let mut free: VecDeque<u16> = (0..SIZE).collect();
    let (mut state, mut came) = (7u64, 0u32);
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for _ in 0..20_000 {
        let count = random(free.len() as u64 + 1) as usize;
        let ids: Vec<u16> = free.drain(..count).collect();
        ids.iter().for_each(|id| assert!(!std::mem::replace(&mut out[usize::from(*id)], true)));
        bed.offer(ids);
        bed.complete(random(40) as usize, if writable { 60 } else { 0 });
        for done in bed.collect().unwrap() {
            assert!(std::mem::take(&mut out[usize::from(done.id)]), "{done:?} was not under way");
            assert_eq!(done.written >= 60, writable, "{done:?}");
            free.push_back(done.id);
            came += 1;
        }
    }
    // What is left of a line comes alone.
    bed.complete(64, if writable { 60 } else { 0 });
    while let Some(done) = bed.collect().ok().filter(|done| !done.is_empty()) {
        done.iter().for_each(|done| assert!(std::mem::take(&mut out[usize::from(done.id)])));
    }
    assert!(came > 100_000 && out.iter().all(|out| !out), "{came} came");
}

#[test]
fn buffers_go_round_on_split_rings() {
    for features in [Features::NONE, Features::EVENT_IDX, Features::IN_ORDER] {
        for writable in [true, false] {
            goes_round::<Split>(Format::Split, features, writable);
        }
    }
}

#[test]
fn buffers_go_round_on_packed_rings() {
    for features in [Features::NONE, Features::EVENT_IDX, Features::IN_ORDER] {
        for writable in [true, false] {
            goes_round::<Packed>(Format::Packed, features, writable);
        }
    }
}

#[test]
fn a_line_is_taken_and_given_as_a_whole_where_there_is_one() {
    assert_eq!((up_to_line(0, 7, 4), up_to_line(2, 7, 4), up_to_line(1, 3, 4)), (4, 6, 3));
    assert_eq!((up_to_line(1, 2, 4), up_to_line(3, 1, 4), up_to_line(0, 0, 4)), (2, 1, 0));
    let mut bed = Bed::<Packed>::new(Format::Packed, Features::NONE, true);
    bed.offer(0..SIZE);
    bed.complete(7, 60);
    let taken = [bed.collect().unwrap().len(), bed.collect().unwrap().len(), bed.collect().unwrap().len()];
    assert_eq!(taken, [4, 3, 0]);
}

#[test]
fn descriptors_and_entries_that_stay_are_not_written_again() {
    let mut bed = Bed::<Split>::new(Format::Split, Features::NONE, true);
    bed.offer(0..SIZE);
    // Over the descriptor of buffer 9 and the available entry that names it.
    let (desc, entry) = (bed.areas.desc + 9 * 16, bed.areas.driver + 4 + 9 * 2);
    bed.complete(SIZE.into(), 60);
    let ids: Vec<u16> = std::iter::from_fn(|| bed.collect().ok().filter(|done| !done.is_empty()))
        .flatten()
        .map(|done| done.id)
        .collect();
    bed.store(desc, &[0xee; 8]);
    bed.store(entry, &[0xee; 2]);
    assert!(bed.offer(ids), "a device that never said otherwise wants to be kicked");
    let mut found = [0; 2];
    bed.map.resolve(entry, 2).unwrap().read(&mut found);
    assert_eq!(found, [0xee; 2]);
    bed.map.resolve(desc, 2).unwrap().read(&mut found);
    assert_eq!(found, [0xee; 2]);
}

#[test]
fn a_device_that_lies_is_a_fault_and_no_buffer_is_had_twice() {
    // More used than was available.
    let mut bed = Bed::<Split>::new(Format::Split, Features::NONE, true);
    bed.offer(0..3);
    bed.store(bed.areas.device + 2, &4u16.to_le_bytes());
    assert_eq!(bed.collect(), Err(RingFault::UsedIndex));
    // The same one twice; one that is not under way; one that is none.
    for ids in [[1u32, 1], [1, 7], [1, 0x1_0001]] {
        let mut bed = Bed::<Split>::new(Format::Split, Features::NONE, true);
        bed.offer(0..3);
        for (nth, id) in (0..).zip(ids) {
            bed.store(bed.areas.device + 4 + 8 * nth, &id.to_le_bytes());
        }
        bed.store(bed.areas.device + 2, &2u16.to_le_bytes());
        assert_eq!(bed.collect(), Err(RingFault::UsedId), "{ids:?}");
        let mut bed = Bed::<Packed>::new(Format::Packed, Features::NONE, true);
        bed.offer(0..3);
        for (nth, id) in (0..).zip(ids) {
            let word = 60 | u64::from(id as u16) << 32 | (F_AVAIL | F_USED) << 48;
            bed.store(bed.areas.desc + 16 * nth + 8, &word.to_le_bytes());
        }
        assert_eq!(bed.collect(), Err(RingFault::UsedId), "{ids:?}");
    }
}

#[test]
fn kicks_are_told_as_the_device_wishes() {
    let mut bed = Bed::<Packed>::new(Format::Packed, Features::EVENT_IDX, true);
    assert!(bed.offer(0..1));
    bed.device.disable_kicks();
    assert!(!bed.offer(1..3));
    bed.complete(3, 60);
    bed.device.enable_kicks();
    assert!(bed.offer(3..4));
    let mut bed = Bed::<Split>::new(Format::Split, Features::EVENT_IDX, true);
    assert!(bed.offer(0..1));
    bed.complete(1, 60);
    bed.device.disable_kicks();
    assert!(!bed.offer(1..3));
}

const SIZE: u16 = 64;
const GPA: u64 = 0x1_0000_0000;
