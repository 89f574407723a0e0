//! A virtio network function in this process, whose wire is a loop, on a bus of its own. It keeps the rules of virtio 1.3 §4.1 and
//! watches that its driver does; faults are [`Rules`]: what happens at an access or a command instead of what should.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use ringway_engine::{Armed, Budget, Polled};
use ringway_pmd::bus::pci::{Device, Doorbell, Function, Id, Opener, Registers, View, Width};
use ringway_pmd::dma::DmaSpace;
use ringway_pmd::drivers::functions::{Seen, examiners};
use ringway_pmd::drivers::sim_net::Loop;
use ringway_pmd::net::{Mac, NIC};
use ringway_pmd::notify::{CallFd, EventFd};
use ringway_pmd::vdpa::{DeviceSpec, FaultReporter, MakePump as _, NetSpec, QueueBinding};
use ringway_ring::chain::Burst;
use ringway_ring::features::Features;
use ringway_ring::position::{Position, PositionPage};
use ringway_ring::queue::{DeviceRing, Format, QueueConfig, RingSize};
use ringway_ring::tsc;

use super::lies::{Liar, Lie, Word, near, often};
use super::slot::{Rules, Slot, dup, read_bytes};

pub const MAC: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
pub const PAIRS: u16 = 4;
const CONTROL: usize = PAIRS as usize * 2;
const QUEUES: usize = CONTROL + 1;
/// Interrupt vectors that it can have; mostly it has fewer.
const MOST_VECTORS: usize = 16;

// Where its registers are in its one BAR.
const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const BAR_BYTES: u64 = 0x4000;
pub const STATUS: u64 = 0x14;
const GENERATION: u64 = 0x15;
const QUEUE_ENABLE: u64 = 0x1c;
pub const QUEUE_VECTOR: u64 = 0x1a;
pub const QUEUE_RESET: u64 = 0x3a;

/// At what something else happens than should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// A read of the register at this offset of the BAR.
    Read(u64),
    /// A write likewise.
    Write(u64),
    /// A read of its configuration space at this offset.
    Config(u64),
    /// A command of this class on the control queue.
    Command(u8),
}

/// What happens instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It reads as this; a command is answered so.
    Give(u64),
    /// It reads as something with this bit wrong.
    Flip(u8),
    /// It does not happen.
    Ignore,
}

/// The function; all clones are the same one.
#[derive(Clone)]
pub struct Model(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    slot: Slot,
    rules: Rules<On, Then>,
    is_stalled: AtomicBool,
    /// Of the thread that serves its queues.
    turns: AtomicU64,
    vectors: Mutex<[Option<Arc<EventFd>>; MOST_VECTORS]>,
    /// Those that the host rings.
    doorbells: Mutex<Vec<(Doorbell, EventFd)>>,
    /// By queue: it was kicked, and has not looked since.
    kicked: [AtomicBool; QUEUES],
    /// Where its queues stand.
    positions: Arc<PositionPage>,
    commands: Mutex<Vec<(u8, u8, Vec<u8>)>>,
}

#[derive(Default)]
struct State {
    status: u8,
    features: [u32; 2],
    select: [u32; 2],
    queue: usize,
    config_vector: u16,
    queues: [QueueRegisters; QUEUES],
    wanted: Option<Arc<EventFd>>,
    works: Option<Works>,
    resets: u32,
    link: bool,
    /// What its queues have at most.
    most_entries: u16,
    offered: Features,
    /// How many interrupt vectors it has.
    vectors: u16,
    /// What its wire brings back has its addresses exchanged.
    swaps: bool,
    /// It is one of Intel's, with registers by which its queues begin anywhere.
    is_movable: bool,
    /// These: by queue, where it begins; and how many pairs are used.
    begins: [Option<u32>; QUEUES],
    used_pairs: u32,
    /// It was reset underneath, and its driver has not begun anew since.
    is_unexpected: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct QueueRegisters {
    size: u16,
    vector: u16,
    enable: u16,
    areas: [u64; 3],
}

/// The thread that serves its queues.
struct Works {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Model {
    pub fn new() -> Model {
        Model::with(Features::NONE, 4)
    }

    /// One that offers these beside the usual, and has so many interrupt vectors.
    pub fn with(more: Features, vectors: u16) -> Model {
        let offered = Features(OFFERED.0 | more.0);
        let state = State { link: true, most_entries: 256, offered, vectors, ..State::default() };
        let model = Model(Arc::new(Shared {
            state: Mutex::new(state),
            slot: Slot::new("0000:07:00.1"),
            rules: Rules::default(),
            is_stalled: AtomicBool::new(false),
            turns: AtomicU64::new(0),
            vectors: Mutex::default(),
            doorbells: Mutex::default(),
            kicked: Default::default(),
            positions: PositionPage::anonymous().unwrap(),
            commands: Mutex::default(),
        }));
        model.reset(&mut model.state());
        model
    }

    /// One of Intel's, whose queues begin anywhere.
    pub fn movable(more: Features, vectors: u16) -> Model {
        let model = Model::with(more, vectors);
        model.state().is_movable = true;
        model
    }

    /// One whose rings are split ones alone.
    pub fn split(vectors: u16) -> Model {
        let model = Model::with(Features::NONE, vectors);
        let offered = model.state().offered;
        model.state().offered = offered.without(Features::RING_PACKED);
        model
    }

    /// In which BAR virtio's registers are.
    fn bar(&self) -> u8 {
        if self.state().is_movable { 0 } else { 4 }
    }

    pub fn rule(&self, on: On, then: Then, times: usize) {
        self.0.rules.add(on, then, times);
    }

    /// It serves nothing for a while.
    pub fn stall(&self, is_stalled: bool) {
        self.0.is_stalled.store(is_stalled, Ordering::SeqCst);
        // A turn that began before has ended once another two have begun.
        let turn = self.0.turns.load(Ordering::SeqCst);
        while self.works() && self.0.turns.load(Ordering::SeqCst) < turn + 2 {
            std::thread::yield_now();
        }
    }

    /// Its queues have so many entries from its next reset on.
    pub fn set_most_entries(&self, entries: u16) {
        self.state().most_entries = entries;
    }

    /// What is sent comes back from its receiver, from its next start on.
    pub fn answers(self) -> Model {
        self.state().swaps = true;
        self
    }

    /// It says that every buffer of a packed queue is used, with an id that it was never given.
    pub fn lies_of_ids(&self, queue: usize) {
        let QueueRegisters { size, vector, areas: [ring, ..], .. } = self.state().queues[queue];
        let map = self.0.slot.space.map();
        for slot in 0..u64::from(size) {
            // Nothing written, id 0xffff, available and used in the first round.
            let entry = [0u8, 0, 0, 0, 0xff, 0xff, 0x80, 0x80];
            map.resolve(ring + slot * 16 + 8, 8).unwrap().write(&entry);
        }
        self.interrupt(vector);
    }

    pub fn queue_size(&self, queue: usize) -> u16 {
        self.state().queues[queue].size
    }

    /// Its configuration changes while it is read, again and again.
    pub fn rule_of_generations(&self) {
        for generation in 0..500 {
            self.rule(On::Read(GENERATION), Then::Give(generation % 256), 1);
        }
    }

    pub fn forget_rules(&self) {
        self.0.rules.forget();
    }

    /// It is pulled out: everything reads all ones, and it touches no memory.
    pub fn pull(&self) {
        self.0.slot.pull();
        self.halt(&mut self.state());
    }

    /// Somebody else resets it.
    pub fn reset_underneath(&self) {
        let mut state = self.state();
        self.reset(&mut state);
        state.is_unexpected = true;
    }

    /// The host wants it back.
    pub fn want_back(&self) {
        let wanted = self.state().wanted.clone();
        wanted.unwrap().signal();
    }

    pub fn set_link(&self, is_up: bool) {
        let vector = {
            let mut state = self.state();
            state.link = is_up;
            state.config_vector
        };
        self.interrupt(vector);
    }

    /// Queues that the host kicks it for.
    pub fn doorbells(&self) -> Vec<u64> {
        let mut queues: Vec<u64> =
            self.0.doorbells.lock().unwrap().iter().map(|(doorbell, _)| doorbell.value).collect();
        queues.sort_unstable();
        queues
    }

    fn interrupt(&self, vector: u16) {
        let vector = self.0.vectors.lock().unwrap().get(usize::from(vector)).cloned().flatten();
        assert!(vector.is_none_or(|vector| vector.signal()));
    }

    pub fn resets(&self) -> u32 {
        self.state().resets
    }

    pub fn is_open(&self) -> bool {
        self.0.slot.is_open()
    }

    /// Bytes that it can reach.
    pub fn mapped(&self) -> u64 {
        self.0.slot.space.mapped()
    }

    pub fn works(&self) -> bool {
        self.state().works.is_some()
    }

    pub fn commands(&self) -> Vec<(u8, u8, Vec<u8>)> {
        self.0.commands.lock().unwrap().clone()
    }

    /// What the driver did that it must not.
    pub fn faults(&self) -> Vec<String> {
        self.0.slot.faults()
    }

    fn opener(&self) -> Opener {
        let model = self.clone();
        Arc::new(move || {
            model.0.slot.open()?;
            Ok(Arc::new(Opened(model.clone())))
        })
    }

    /// As a bus announces it.
    pub fn device(&self) -> Device<Seen> {
        let (subsystem_vendor, subsystem) =
            if self.state().is_movable { (0x8086, 0x001a) } else { (0x1af4, 0x1100) };
        let id = Id { vendor: 0x1af4, device: 0x1041, subsystem_vendor, subsystem, class: 0x020000 };
        let (address, opener) = (self.0.slot.address, self.opener());
        let examiners = examiners();
        let examiner = examiners.iter().find(|examiner| (examiner.wants)(id)).unwrap();
        let seen = examiner.examine(address, &opener);
        Device { address, id, numa_node: Some(1), opener, seen }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    fn fault(&self, what: impl Into<String>) {
        self.0.slot.fault(what);
    }

    fn ruled(&self, on: On) -> Option<Then> {
        self.0.rules.take(&on)
    }

    fn halt(&self, state: &mut State) {
        if let Some(works) = state.works.take() {
            works.stop.store(true, Ordering::SeqCst);
            works.thread.join().unwrap();
        }
    }

    fn reset(&self, state: &mut State) {
        self.halt(state);
        state.resets += 1;
        state.status = 0;
        state.features = [0; 2];
        state.config_vector = 0xffff;
        let size = state.most_entries;
        state.queues = [QueueRegisters { size, vector: 0xffff, ..QueueRegisters::default() }; QUEUES];
        (0..QUEUES).for_each(|queue| self.0.positions.slot(queue).unwrap().clear());
    }

    /// Resets one queue; the others go on.
    fn reset_queue(&self, state: &mut State, queue: usize) {
        if !features(state).contains(Features::RING_RESET) || state.works.is_none() {
            return self.fault(format!("queue {queue} was reset without RING_RESET, or before DRIVER_OK"));
        }
        self.halt(state);
        let size = state.most_entries;
        state.queues[queue] = QueueRegisters { size, vector: 0xffff, ..QueueRegisters::default() };
        self.0.positions.slot(queue).unwrap().clear();
        state.works = Some(self.start(state));
    }

    /// What a doorbell says.
    fn kick(&self, at: u64, value: u64) {
        if (at - NOTIFY) / 4 != value {
            return self.fault(format!("doorbell at {at:#x} was rung for queue {value}"));
        }
        self.0.kicked[value as usize].store(true, Ordering::SeqCst);
    }

    fn write(&self, at: u64, value: u64) {
        let mut state = self.state();
        let queue = state.queue;
        match at {
            0x00 => state.select[0] = value as u32,
            0x08 => state.select[1] = value as u32,
            0x0c if state.select[1] < 2 => {
                let word = state.select[1] as usize;
                state.features[word] = value as u32;
            }
            0x10 => state.config_vector = value as u16,
            STATUS if value == 0 => self.reset(&mut state),
            STATUS => {
                state.is_unexpected = false;
                if value & 0x08 != 0 && state.status & 0x08 == 0 && !state.offered.contains(features(&state))
                {
                    return self.fault("accepted what was not offered");
                }
                let refused = if features(&state).contains(Features::VERSION_1) { 0 } else { 0x08 };
                state.status = value as u8 & !refused;
                if value & 4 != 0 && state.works.is_none() {
                    state.works = Some(self.start(&state));
                }
            }
            0x16 => state.queue = value as usize,
            0x18..0x3c if queue >= QUEUES => {}
            // It keeps the most that it can have where more is asked for.
            0x18 if value > state.most_entries.into() => {}
            0x18 => state.queues[queue].size = value as u16,
            QUEUE_VECTOR => state.queues[queue].vector = value as u16,
            QUEUE_ENABLE => {
                if state.is_movable && queue != CONTROL {
                    let Some(begin) = state.begins[queue].take() else {
                        return self
                            .fault(format!("queue {queue} was enabled, and not said where it begins"));
                    };
                    if state.used_pairs == 0 {
                        return self.fault("a queue was enabled, and not said how many pairs are used");
                    }
                    let (avail_idx, used_idx) = (begin as u16, (begin >> 16) as u16);
                    let position = Position { avail_idx, used_idx, ..Position::START };
                    self.0.positions.slot(queue).unwrap().store(position);
                }
                state.queues[queue].enable = value as u16;
                if state.status & 4 != 0 {
                    if !features(&state).contains(Features::RING_RESET) {
                        return self.fault("a queue was enabled behind DRIVER_OK");
                    }
                    self.halt(&mut state);
                    state.works = Some(self.start(&state));
                }
            }
            QUEUE_RESET if value == 1 => self.reset_queue(&mut state, queue),
            0x20..0x38 => {
                let area = &mut state.queues[queue].areas[(at as usize - 0x20) / 8];
                let shift = (at % 8) * 8;
                *area = *area & !(0xffff_ffff << shift) | value << shift;
            }
            NOTIFY.. => {
                if state.status & 4 == 0 && !state.is_unexpected {
                    self.fault(format!("queue {value} was kicked before DRIVER_OK"));
                }
                self.kick(at, value);
            }
            _ => self.fault(format!("{value:#x} was written to {at:#x}")),
        }
    }

    fn read(&self, at: u64, width: Width) -> u64 {
        let state = self.state();
        let queue = state.queues.get(state.queue).copied().unwrap_or_default();
        match at {
            0x04 if state.select[0] < 2 => state.offered.0 >> (32 * state.select[0]) & 0xffff_ffff,
            0x10 => state.config_vector.into(),
            // Like QEMU's, it counts the queues of one pair alone until MQ is accepted.
            0x12 if state.features[0] & 1 << 22 == 0 => 3,
            0x12 => QUEUES as u64,
            STATUS => state.status.into(),
            GENERATION => 0,
            0x18 => queue.size.into(),
            QUEUE_VECTOR => queue.vector.into(),
            QUEUE_ENABLE => queue.enable.into(),
            0x1e => state.queue as u64,
            DEVICE..NOTIFY => {
                let config = [
                    &MAC.0[..],
                    &u16::from(state.link).to_le_bytes(),
                    &PAIRS.to_le_bytes(),
                    &1500u16.to_le_bytes(),
                ]
                .concat();
                read_bytes(&config, at - DEVICE, width)
            }
            _ => 0,
        }
    }

    /// Serves what is enabled until it is told to stop.
    fn start(&self, state: &State) -> Works {
        let features = features(state);
        let format = if features.contains(Features::RING_PACKED) { Format::Packed } else { Format::Split };
        let map = self.0.slot.space.map();
        let positions = Arc::clone(&self.0.positions);
        let attention = Arc::new(EventFd::new().unwrap());
        let ring = |index: usize| {
            let registers = state.queues[index];
            let [desc, driver, device] = registers.areas;
            let size = RingSize::new(format, registers.size.into()).unwrap_or_else(|_| {
                self.fault(format!("queue {index} has {} entries", registers.size));
                RingSize::new(format, 2).unwrap()
            });
            let config = QueueConfig {
                size,
                features,
                map: Arc::clone(&map),
                desc_user_addr: desc,
                driver_user_addr: driver,
                device_user_addr: device,
                position: positions.slot(index).unwrap().load().unwrap_or(Position::START),
                keeper: positions.slot(index).unwrap(),
                skip_used: false,
            };
            (config, registers.vector, registers.enable == 1)
        };
        let mut spec = DeviceSpec::net("model", NetSpec { max_vqp: Some(PAIRS), ..NetSpec::default() });
        spec.attributes.extend(state.swaps.then(|| ("swap".to_owned(), "on".to_owned())));
        let mut wire = Loop::new(&spec).unwrap();
        let mut pumps = Vec::new();
        // By queue: what calls for it, and the vector to which that goes.
        let mut calls: Vec<(EventFd, u16)> = Vec::new();
        for pair in 0..PAIRS {
            let queues: Vec<QueueBinding> = (pair * 2..pair * 2 + 2)
                .filter_map(|index| {
                    let (config, vector, is_enabled) = ring(index.into());
                    let call = EventFd::new().unwrap();
                    calls.push((dup(call.as_fd()), vector));
                    let call = Some(Arc::new(CallFd::own(call)));
                    // It looks whenever it was just enabled.
                    self.0.kicked[usize::from(index)].store(true, Ordering::SeqCst);
                    is_enabled.then(|| QueueBinding {
                        index,
                        enabled: true,
                        format,
                        config,
                        record: None,
                        kick: Some(Arc::new(EventFd::new().unwrap())),
                        call,
                        counters: Arc::default(),
                        fault: FaultReporter::new(Arc::clone(&attention)),
                    })
                })
                .collect();
            if !queues.is_empty() {
                match wire.pump(pair, queues) {
                    Ok(pump) => pumps.push((pair, pump, false)),
                    Err(why) => self.fault(format!("pair {pair} cannot begin: {why}")),
                }
            }
        }
        let control = ring(CONTROL);
        let mut control: Option<Box<dyn DeviceRing>> = control
            .2
            .then(|| match format {
                Format::Split => control.0.activate_split().map(|ring| Box::new(ring) as _),
                Format::Packed => control.0.activate_packed().map(|ring| Box::new(ring) as _),
            })
            .and_then(|ring| ring.inspect_err(|why| self.fault(format!("its commands: {why}"))).ok());
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, model) = (Arc::clone(&stop), self.clone());
        let thread = std::thread::spawn(move || {
            let mut burst = Burst::new(map);
            while !theirs.load(Ordering::SeqCst) {
                let mut is_idle = true;
                model.0.turns.fetch_add(1, Ordering::SeqCst);
                let is_stalled = model.0.is_stalled.load(Ordering::SeqCst);
                for (doorbell, eventfd) in model.0.doorbells.lock().unwrap().iter() {
                    if eventfd.clear() {
                        model.kick(doorbell.at, doorbell.value);
                    }
                }
                // Like hardware, it looks at a queue that it found empty once it is kicked again.
                for (pair, pump, sleeps) in pumps.iter_mut().filter(|_| !is_stalled) {
                    let kicked = model.0.kicked.iter().skip(usize::from(*pair) * 2).take(2);
                    // Both are looked at: one that is seen later would be taken for news.
                    let kicks = kicked.filter(|kicked| kicked.swap(false, Ordering::SeqCst)).count();
                    if kicks > 0 && *sleeps {
                        pump.disarm();
                        *sleeps = false;
                    }
                    if !*sleeps && pump.poll(&Budget::default(), tsc::cycles()) == Polled::Idle {
                        *sleeps = matches!(pump.arm(), Armed::Sleep { .. });
                    }
                    is_idle &= *sleeps;
                }
                for (call, vector) in &calls {
                    if call.clear() {
                        model.interrupt(*vector);
                    }
                }
                if let Some(control) = &mut control {
                    model.obey(&mut **control, &mut burst);
                }
                if is_idle {
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
        });
        Works { stop, thread }
    }

    /// Answers a command.
    fn obey(&self, ring: &mut dyn DeviceRing, burst: &mut Burst) {
        if !ring.peek(burst, 1).is_ok_and(|chains| chains > 0) {
            return;
        }
        let chain = burst.chains()[0];
        let mut said = Vec::new();
        for slice in burst.readable(&chain) {
            let mut bytes = vec![0; slice.len()];
            slice.read(&mut bytes);
            said.extend(bytes);
        }
        let [class, command, ref data @ ..] = said[..] else { return self.fault("a command of no length") };
        let ruled = self.ruled(On::Command(class));
        self.0.commands.lock().unwrap().push((class, command, data.to_vec()));
        let answer = match ruled {
            Some(Then::Ignore) => return,
            Some(Then::Give(answer)) => answer as u8,
            Some(Then::Flip(bit)) => 1 << (bit % 8),
            None => 0,
        };
        let Some(to) = burst.writable(&chain).next() else {
            return self.fault("a command without an answer");
        };
        to.write(&[answer]);
        ring.consume(&[chain]);
        ring.complete(&chain, 1);
        ring.publish();
    }
}

/// What the driver accepted.
fn features(state: &State) -> Features {
    Features(u64::from(state.features[0]) | u64::from(state.features[1]) << 32)
}

const OFFERED: Features = Features(NIC.0 | Features::ACCESS_PLATFORM.0);

/// The function, open.
struct Opened(Model);

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened")
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let model = &self.0;
        if model.works() {
            model.fault("closed while it works");
        }
        model.0.slot.close();
    }
}

impl Function for Opened {
    fn config(&self) -> View {
        View::new(Arc::new(ConfigSpace(self.0.clone())))
    }
    fn bar(&self, index: u8) -> io::Result<View> {
        let is_movable = self.0.state().is_movable;
        match index {
            4 if is_movable => Ok(View::new(Arc::new(Positions(self.0.clone())))),
            index if index == self.0.bar() => Ok(View::new(Arc::new(Bar(self.0.clone())))),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
    fn dma(&self) -> Arc<dyn DmaSpace> {
        Arc::clone(&self.0.0.slot.space) as _
    }
    fn vectors(&self) -> u16 {
        self.0.state().vectors
    }
    fn bind(&self, vector: u16, to: Option<BorrowedFd<'_>>) -> io::Result<()> {
        assert!(vector < self.vectors());
        self.0.0.vectors.lock().unwrap()[usize::from(vector)] = to.map(|fd| Arc::new(dup(fd)));
        Ok(())
    }
    fn bind_doorbell(&self, at: &Doorbell, from: Option<BorrowedFd<'_>>) -> io::Result<()> {
        assert_eq!((at.bar, at.width), (self.0.bar(), Width::B2));
        let mut doorbells = self.0.0.doorbells.lock().unwrap();
        doorbells.retain(|(doorbell, _)| doorbell != at);
        doorbells.extend(from.map(|from| (*at, dup(from))));
        Ok(())
    }
    fn on_wanted_back(&self, told: BorrowedFd<'_>) -> io::Result<()> {
        self.0.state().wanted = Some(Arc::new(dup(told)));
        Ok(())
    }
    fn reset(&self) -> io::Result<()> {
        self.0.reset(&mut self.0.state());
        Ok(())
    }
}

/// The registers by which its queues begin anywhere.
struct Positions(Model);

impl Registers for Positions {
    fn size(&self) -> u64 {
        0x1000
    }
    fn read(&self, _: u64, width: Width) -> u64 {
        width.ones()
    }
    fn write(&self, at: u64, _: Width, value: u64) {
        let mut state = self.0.state();
        let (pair, rest) = ((at.saturating_sub(0x20) / 0x40) as usize, at.saturating_sub(0x20) % 0x40);
        match rest {
            0 | 4 if at >= 0x20 && pair < usize::from(PAIRS) => {
                state.begins[pair * 2 + rest as usize / 4] = Some(value as u32);
            }
            8 if pair == 0 => state.used_pairs = value as u32,
            _ => self.0.fault(format!("{value:#x} was written to {at:#x} of the block of positions")),
        }
    }
}

struct Bar(Model);

impl Registers for Bar {
    fn size(&self) -> u64 {
        BAR_BYTES
    }
    fn read(&self, at: u64, width: Width) -> u64 {
        if self.0.0.slot.is_gone() {
            return width.ones();
        }
        match self.0.ruled(On::Read(at)) {
            Some(Then::Give(value)) => value & width.ones(),
            Some(Then::Flip(bit)) => (self.0.read(at, width) ^ 1 << (bit % 64)) & width.ones(),
            Some(Then::Ignore) => 0,
            None => self.0.read(at, width),
        }
    }
    fn write(&self, at: u64, _width: Width, value: u64) {
        if !self.0.0.slot.is_gone() && self.0.ruled(On::Write(at)).is_none() {
            self.0.write(at, value);
        }
    }
}

/// Its capabilities, as QEMU's function has them: one without length first.
struct ConfigSpace(Model);

impl Registers for ConfigSpace {
    fn size(&self) -> u64 {
        256
    }
    fn read(&self, at: u64, width: Width) -> u64 {
        if self.0.0.slot.is_gone() {
            return width.ones();
        }
        let mut bytes = [0u8; 256];
        bytes[..4].copy_from_slice(&[0xf4, 0x1a, 0x41, 0x10]);
        bytes[6] = 0x10;
        bytes[0x34] = 0x40;
        let capabilities =
            [(5u8, 0u64, 0u32), (2, NOTIFY, 0x1000), (4, DEVICE, 12), (3, ISR, 4), (1, COMMON, 0x3c)];
        for (n, (kind, offset, length)) in capabilities.into_iter().enumerate() {
            let at = 0x40 + n * 0x18;
            let next = if n + 1 < capabilities.len() { at + 0x18 } else { 0 };
            bytes[at..at + 5].copy_from_slice(&[9, next as u8, 20, kind, self.0.bar()]);
            bytes[at + 8..at + 12].copy_from_slice(&(offset as u32).to_le_bytes());
            bytes[at + 12..at + 16].copy_from_slice(&length.to_le_bytes());
            bytes[at + 16..at + 20].copy_from_slice(&4u32.to_le_bytes());
        }
        match self.0.ruled(On::Config(at)) {
            Some(Then::Give(value)) => value & width.ones(),
            Some(Then::Flip(bit)) => (read_bytes(&bytes, at, width) ^ 1 << (bit % 64)) & width.ones(),
            Some(Then::Ignore) => 0,
            None => read_bytes(&bytes, at, width),
        }
    }
    fn write(&self, _: u64, _: Width, _: u64) {}
}

impl Liar for Model {
    fn slot(&self) -> &Slot {
        &self.0.slot
    }

    fn device(&self) -> Device<Seen> {
        self.device()
    }

    fn lie(&self, lie: &Lie) {
        match *lie {
            Lie::Read { register, value, times } => {
                let on = READS[usize::from(register) % READS.len()];
                let then = match value {
                    Word::Is(value) => Then::Give(value),
                    Word::Flip(bit) => Then::Flip(bit),
                };
                self.rule(on, then, often(times));
            }
            Lie::Write { register, times } => {
                self.rule(WRITES[usize::from(register) % WRITES.len()], Then::Ignore, often(times));
            }
            Lie::Answer { what, value, times } => {
                let then = value.map_or(Then::Ignore, |value| Then::Give(value.into()));
                self.rule(On::Command([0, 1, 4][usize::from(what) % 3]), then, often(times));
            }
            Lie::Complete { queue, entry, id, len, more } => {
                self.complete(queue.into(), entry, id, len, more)
            }
            Lie::Interrupt { vector } => self.interrupt(u16::from(vector) % self.state().vectors),
            Lie::Stall => self.stall(true),
            Lie::Reset => self.reset_underneath(),
            Lie::Honest => {
                self.forget_rules();
                self.stall(false);
            }
        }
    }

    fn pull(&self) {
        self.pull();
    }
}

impl Model {
    /// A completion of a queue of the driver's own says this.
    fn complete(&self, queue: usize, entry: u8, id: u32, len: u32, more: u8) {
        let queue = if queue == 2 { CONTROL } else { queue };
        let (QueueRegisters { size, vector, enable, areas: [desc, _, used] }, is_packed) = {
            let state = self.state();
            (state.queues[queue], features(&state).contains(Features::RING_PACKED))
        };
        let map = self.0.slot.space.map();
        // A guest's own ring it may spoil as it likes: that one is told by its guest.
        if enable != 1 || OF_GUESTS.contains(&desc) {
            return;
        }
        let place = |next: u16| (u64::from(next) + near(entry)) % u64::from(size.max(1));
        if is_packed {
            let position = self.0.positions.slot(queue).unwrap().load().unwrap_or(Position::START);
            let used = if position.used_wrap { 0x8080u16 } else { 0 };
            let flags = [0x80, used, used ^ 0x8080, 0x8000][usize::from(more) % 4];
            // What is available still it takes as it stands: no more than there is, so that it writes nothing that it was not given.
            let len = if flags & 0x80 == flags >> 8 & 0x80 { len } else { len % 2049 };
            let Ok(slot) = map.resolve(desc + place(position.used_idx) * 16 + 8, 8) else { return };
            slot.write(&[len.to_le_bytes(), (id & 0xffff | u32::from(flags) << 16).to_le_bytes()].concat());
        } else {
            let Ok(index) = map.resolve(used + 2, 2) else { return };
            let mut is = [0; 2];
            index.read(&mut is);
            let is = u16::from_le_bytes(is);
            let Ok(slot) = map.resolve(used + 4 + place(is) * 8, 8) else { return };
            slot.write(&[id.to_le_bytes(), len.to_le_bytes()].concat());
            index.write(&is.wrapping_add(more.into()).to_le_bytes());
        }
        self.interrupt(vector);
    }
}

/// Where guests have their memory.
const OF_GUESTS: Range<u64> = 0x4000_0000..0x8000_0000;
/// What can be lied about when it is read.
const READS: [On; 24] = [
    On::Read(0x04),
    On::Read(0x10),
    On::Read(0x12),
    On::Read(STATUS),
    On::Read(STATUS),
    On::Read(GENERATION),
    On::Read(0x18),
    On::Read(QUEUE_VECTOR),
    On::Read(QUEUE_ENABLE),
    On::Read(0x1e),
    On::Read(QUEUE_RESET),
    On::Read(DEVICE),
    On::Read(DEVICE + 6),
    On::Read(DEVICE + 8),
    On::Read(DEVICE + 9),
    On::Read(DEVICE + 10),
    On::Config(0x06),
    On::Config(0x34),
    On::Config(0x41),
    On::Config(0x43),
    On::Config(0x59),
    On::Config(0x60),
    On::Config(0x64),
    On::Config(0xa8),
];
/// What can be lost when it is written; but for where rings are: no driver can see that they are elsewhere.
const WRITES: [On; 14] = [
    On::Write(0x00),
    On::Write(0x08),
    On::Write(0x0c),
    On::Write(0x10),
    On::Write(STATUS),
    On::Write(STATUS),
    On::Write(0x16),
    On::Write(0x18),
    On::Write(QUEUE_VECTOR),
    On::Write(QUEUE_ENABLE),
    On::Write(QUEUE_RESET),
    On::Write(NOTIFY),
    On::Write(NOTIFY + 4),
    On::Write(NOTIFY + CONTROL as u64 * 4),
];
