//! An NVMe controller in this process, with namespaces in memory, on a bus of its own. It keeps the rules of the specification and
//! watches that its driver does; faults are [`Rules`]: what happens at an access or a command instead of what should.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use ringway_pmd::bus::pci::{Device, Doorbell, Function, Id, Opener, Registers, View, Width};
use ringway_pmd::dma::DmaSpace;
use ringway_pmd::drivers::functions::Seen;
use ringway_pmd::drivers::nvme::EXAMINER;
use ringway_pmd::notify::EventFd;
use ringway_ring::guest::GuestMap;

use super::slot::{Rules, Slot, dup, read_bytes};

const CC: u64 = 0x14;
pub const CSTS: u64 = 0x1c;
const DOORBELLS: u64 = 0x1000;
const PAGE: u64 = 4096;
/// Entries of a queue at most.
const ENTRIES: u64 = 256;
const VECTORS: usize = 9;

// Opcodes of admin commands.
pub const DELETE_SQ: u8 = 0x00;
pub const CREATE_SQ: u8 = 0x01;
pub const DELETE_CQ: u8 = 0x04;
pub const CREATE_CQ: u8 = 0x05;
pub const IDENTIFY: u8 = 0x06;
pub const ABORT: u8 = 0x08;
// Of commands for I/O.
pub const FLUSH: u8 = 0x00;
pub const WRITE: u8 = 0x01;
pub const READ: u8 = 0x02;
pub const WRITE_ZEROES: u8 = 0x08;
pub const DEALLOCATE: u8 = 0x09;

/// At what something else happens than should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// A read of the register at this offset.
    Read(u64),
    /// A write likewise.
    Write(u64),
    /// An admin command of this opcode.
    Admin(u8),
    /// A command for I/O likewise.
    Io(u8),
}

/// What happens instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It reads as this.
    Give(u32),
    /// It does not happen, and a command does not end.
    Ignore,
    /// It is not done before it is aborted.
    Hang,
    /// It is done, and does not end.
    Late,
    /// It ends with this status, and is not done.
    Fail(u16),
    /// It is done and ends, and ends once more.
    Twice,
    /// It is done, and something that never was ends before it: a command, one of another queue, one at a place that was not reached.
    Stray(Stray),
    /// The controller fails.
    Die,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stray {
    Command,
    Queue,
    Head,
}

/// The controller; all clones are the same one.
#[derive(Clone)]
pub struct Model(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    slot: Slot,
    rules: Rules<On, Then>,
}

#[derive(Default)]
struct State {
    command: u16,
    plain: BTreeMap<u64, u32>,
    is_ready: bool,
    has_failed: bool,
    queues: BTreeMap<u16, Queues>,
    vectors: Vec<Option<Arc<EventFd>>>,
    wanted: Option<Arc<EventFd>>,
    namespaces: BTreeMap<u32, Namespace>,
    /// Commands that were fetched and did not end.
    out: BTreeSet<(u16, u16)>,
    hanging: Vec<(u16, u16)>,
    event: Option<u16>,
    has_changed: bool,
    scatter: u32,
    pairs: u16,
    counts: BTreeMap<u8, usize>,
}

#[derive(Default)]
struct Queues {
    sq: Option<Submissions>,
    cq: Option<Completions>,
}

struct Submissions {
    at: u64,
    size: u64,
    head: u64,
}

struct Completions {
    at: u64,
    size: u64,
    tail: u64,
    head: u64,
    phase: bool,
    vector: Option<u16>,
    /// What finds no room.
    held: VecDeque<[u64; 2]>,
}

struct Namespace {
    block_log: u32,
    bytes: Vec<u8>,
}

/// A command as it was fetched.
struct Fetched {
    queue: u16,
    id: u16,
    opcode: u8,
    is_sgl: bool,
    namespace: u32,
    data: (u64, u64),
    dwords: [u32; 3],
}

/// How a command ends: status and result. None: not now.
type End = Option<(u16, u32)>;

impl Model {
    /// With namespaces of so many bytes: 1 of blocks of 512, 2 of 4096.
    pub fn new() -> Model {
        let bytes = || vec![0; 8 << 20];
        let namespaces = BTreeMap::from([
            (1, Namespace { block_log: 9, bytes: bytes() }),
            (2, Namespace { block_log: 12, bytes: bytes() }),
        ]);
        let vectors = (0..VECTORS).map(|_| None).collect();
        let state = State { namespaces, vectors, pairs: 8, scatter: 1, ..State::default() };
        Model(Arc::new(Shared {
            state: Mutex::new(state),
            slot: Slot::new("0000:02:00.0"),
            rules: Rules::default(),
        }))
    }

    /// Its scatter-gather lists: 0 none, 1 of bytes, 2 of dwords.
    pub fn with_scatter(scatter: u32) -> Model {
        let model = Model::new();
        model.state().scatter = scatter;
        model
    }

    pub fn with_pairs(pairs: u16) -> Model {
        let model = Model::new();
        model.state().pairs = pairs;
        model
    }

    pub fn rule(&self, on: On, then: Then, times: usize) {
        self.0.rules.add(on, then, times);
    }

    pub fn rules_are_used_up(&self) -> bool {
        self.0.rules.are_used_up()
    }

    pub fn forget_rules(&self) {
        self.0.rules.forget();
    }

    pub fn pull(&self) {
        self.0.slot.pull();
    }

    /// Somebody resets it: it is as it was before it was enabled.
    pub fn reset_by_somebody(&self) {
        let mut state = self.state();
        self.disable(&mut state);
        state.plain.clear();
    }

    pub fn want_back(&self) {
        self.state().wanted.clone().unwrap().signal();
    }

    /// A namespace has another size from now on, and the driver is told.
    pub fn resize(&self, id: u32, bytes: usize) {
        let mut state = self.state();
        state.namespaces.get_mut(&id).unwrap().bytes.resize(bytes, 0);
        state.has_changed = true;
        self.tell(&mut state);
    }

    pub fn stored(&self, id: u32, at: usize, len: usize) -> Vec<u8> {
        self.state().namespaces[&id].bytes[at..at + len].to_vec()
    }

    /// Commands for I/O of this opcode that were begun.
    pub fn count(&self, opcode: u8) -> usize {
        self.state().counts.get(&opcode).copied().unwrap_or(0)
    }

    /// Queue pairs that it has.
    pub fn pairs(&self) -> usize {
        self.state().queues.range(1..).filter(|(_, queues)| queues.sq.is_some()).count()
    }

    pub fn is_open(&self) -> bool {
        self.0.slot.is_open()
    }

    pub fn faults(&self) -> Vec<String> {
        self.0.slot.faults()
    }

    /// As a bus announces it.
    pub fn device(&self) -> Device<Seen> {
        let id = Id { vendor: 0x1b36, device: 0x0010, subsystem_vendor: 0, subsystem: 0, class: 0x010802 };
        let model = self.clone();
        let opener: Opener = Arc::new(move || {
            model.0.slot.open()?;
            model.state().command = 6;
            Ok(Arc::new(Opened(model.clone())))
        });
        let address = self.0.slot.address;
        let seen = EXAMINER.examine(address, &opener);
        Device { address, id, numa_node: Some(1), opener, seen }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    fn fault(&self, what: impl Into<String>) {
        self.0.slot.fault(what);
    }

    fn memory(&self) -> Arc<GuestMap> {
        self.0.slot.space.map()
    }

    fn read(&self, at: u64) -> u32 {
        let state = self.state();
        match at {
            // 256 entries that are contiguous, 1 s, the NVM command set.
            0x00 => (ENTRIES - 1) as u32 | 1 << 16 | 2 << 24,
            0x04 => 1 << 5,
            0x08 => 0x1_0400,
            CSTS => u32::from(state.is_ready) | u32::from(state.has_failed) << 1 | state.shut_down() << 2,
            _ => state.plain.get(&at).copied().unwrap_or(0),
        }
    }

    fn write(&self, at: u64, value: u32) {
        let mut state = self.state();
        if at >= DOORBELLS {
            let (queue, is_completion) = (((at - DOORBELLS) / 8) as u16, at % 8 == 4);
            if state.is_ready && !state.has_failed {
                if is_completion {
                    self.read_up_to(&mut state, queue, value.into());
                } else {
                    self.work(&mut state, queue, value.into());
                }
            }
            return;
        }
        let was = state.plain.insert(at, value).unwrap_or(0);
        if at == CC && (was ^ value) & 1 != 0 {
            if value & 1 != 0 { self.enable(&mut state) } else { self.disable(&mut state) }
        }
    }

    fn enable(&self, state: &mut State) {
        let plain = |at| state.plain.get(&at).copied().unwrap_or(0);
        let wide = |at| u64::from(plain(at)) | u64::from(plain(at + 4)) << 32;
        let (sizes, asq, acq) = (plain(0x24), wide(0x28), wide(0x30));
        let size = |shift: u32| u64::from(sizes >> shift & 0xfff) + 1;
        if plain(CC) & !0xc000 != 0x0046_0001 || asq % PAGE != 0 || acq % PAGE != 0 {
            self.fault(format!("enabled with {:#x}, {asq:#x}, {acq:#x}", plain(CC)));
        }
        let queues = Queues {
            sq: Some(Submissions { at: asq, size: size(0), head: 0 }),
            cq: Some(Completions::new(acq, size(16), Some(0))),
        };
        state.queues.insert(0, queues);
        (state.is_ready, state.has_failed) = (true, false);
    }

    fn disable(&self, state: &mut State) {
        state.queues.clear();
        state.out.clear();
        state.hanging.clear();
        (state.is_ready, state.has_failed, state.event) = (false, false, None);
    }

    /// The driver has read completions.
    fn read_up_to(&self, state: &mut State, queue: u16, head: u64) {
        let Some(cq) = state.queues.get_mut(&queue).and_then(|queues| queues.cq.as_mut()) else {
            return self.fault(format!("completion queue {queue} is not there"));
        };
        let distance = |to: u64| (to + cq.size - cq.head) % cq.size;
        if head >= cq.size || distance(head) > distance(cq.tail) {
            self.fault(format!("completion queue {queue} was read up to {head}, and written to {}", cq.tail));
        }
        cq.head = head % cq.size;
        while let Some(entry) = cq.held.pop_front() {
            if !cq.put(&self.memory(), entry) {
                cq.held.push_front(entry);
                break;
            }
        }
        let vector = cq.vector;
        state.interrupt(vector);
    }

    /// There are commands.
    fn work(&self, state: &mut State, queue: u16, tail: u64) {
        let memory = self.memory();
        loop {
            if state.command & 4 == 0 {
                state.has_failed = true;
                return;
            }
            let Some(sq) = state.queues.get_mut(&queue).and_then(|queues| queues.sq.as_mut()) else {
                return self.fault(format!("submission queue {queue} is not there"));
            };
            if tail >= sq.size {
                return self.fault(format!("submission queue {queue} has no place {tail}"));
            }
            if sq.head == tail {
                return;
            }
            let at = sq.at + sq.head * 64;
            sq.head = (sq.head + 1) % sq.size;
            let Ok(entry) = memory.resolve(at, 64) else {
                return self.fault(format!("submission queue {queue} is not in memory"));
            };
            let word = |n: usize| entry.word(n * 8);
            let fetched = Fetched {
                queue,
                id: (word(0) >> 16) as u16,
                opcode: word(0) as u8,
                is_sgl: word(0) >> 14 & 3 == 1,
                namespace: (word(0) >> 32) as u32,
                data: (word(3), word(4)),
                dwords: [word(5) as u32, (word(5) >> 32) as u32, word(6) as u32],
            };
            if !state.out.insert((queue, fetched.id)) {
                self.fault(format!("command {:#x} of queue {queue} is out twice", fetched.id));
            }
            self.begin(state, &memory, &fetched);
            if state.has_failed {
                return;
            }
        }
    }

    fn begin(&self, state: &mut State, memory: &GuestMap, command: &Fetched) {
        let Fetched { queue, id, opcode, .. } = *command;
        if queue > 0 {
            *state.counts.entry(opcode).or_default() += 1;
        }
        let on = if queue == 0 { On::Admin(opcode) } else { On::Io(opcode) };
        let then = self.0.rules.take(&on);
        match then {
            Some(Then::Ignore) => return,
            Some(Then::Hang) => return state.hanging.push((queue, id)),
            Some(Then::Fail(status)) => return self.complete(state, queue, id, status, 0),
            Some(Then::Die) => {
                state.has_failed = true;
                return;
            }
            _ => {}
        }
        let end =
            if queue == 0 { self.admin(state, memory, command) } else { self.io(state, memory, command) };
        let Some((status, result)) = end else { return };
        match then {
            Some(Then::Late) => {}
            Some(Then::Stray(stray)) => {
                let head = state.queues[&queue].sq.as_ref().map_or(0, |sq| sq.head);
                let (queue_said, id_said, head) = match stray {
                    Stray::Command => (queue, id ^ 0x8000, head),
                    Stray::Queue => (queue + 1, id, head),
                    Stray::Head => (queue, id, 0xfff0),
                };
                let entry = u64::from(queue_said) << 16 | u64::from(id_said) << 32 | head;
                self.post(state, queue, [0, entry]);
                self.complete(state, queue, id, status, result);
            }
            Some(Then::Twice) => {
                self.complete(state, queue, id, status, result);
                self.complete(state, queue, id, status, result);
            }
            _ => self.complete(state, queue, id, status, result),
        }
    }

    fn complete(&self, state: &mut State, queue: u16, id: u16, status: u16, result: u32) {
        state.out.remove(&(queue, id));
        let Some(sq) = state.queues.get(&queue).and_then(|queues| queues.sq.as_ref()) else { return };
        let entry = sq.head | u64::from(queue) << 16 | u64::from(id) << 32 | u64::from(status) << 49;
        self.post(state, queue, [result.into(), entry]);
    }

    fn post(&self, state: &mut State, queue: u16, entry: [u64; 2]) {
        let memory = self.memory();
        let Some(cq) = state.queues.get_mut(&queue).and_then(|queues| queues.cq.as_mut()) else { return };
        if !cq.put(&memory, entry) {
            cq.held.push_back(entry);
        }
        let vector = cq.vector;
        state.interrupt(vector);
    }

    /// The driver asked to be told, and there is something.
    fn tell(&self, state: &mut State) {
        if state.has_changed
            && let Some(id) = state.event.take()
        {
            self.complete(state, 0, id, 0, 2 | 4 << 16);
        }
    }

    fn admin(&self, state: &mut State, memory: &GuestMap, command: &Fetched) -> End {
        let [ten, eleven, _] = command.dwords;
        let (id, size) = (ten as u16, u64::from(ten >> 16) + 1);
        match command.opcode {
            IDENTIFY => {
                let answer = state.identify(ten as u8, command.namespace);
                let Some(answer) = answer else { return Some((0x0b, 0)) };
                let Some(page) = self.slice(memory, command.data.0, PAGE) else { return Some((0x04, 0)) };
                page.write(&answer);
                Some((0, 0))
            }
            // Set and get features: number of queues, write cache.
            0x09 if ten == 7 => {
                let granted = u32::from(state.pairs - 1);
                Some((0, granted << 16 | granted))
            }
            0x09 if ten == 6 => Some((0, 0)),
            0x0a if ten == 6 => Some((0, 1)),
            CREATE_CQ | CREATE_SQ => {
                if id == 0 || id > state.pairs || !(2..=ENTRIES).contains(&size) || eleven & 1 == 0 {
                    self.fault(format!("queue {id} of {size} entries"));
                    return Some((0x101, 0));
                }
                if self.slice(memory, command.data.0, size * 16).is_none()
                    || !command.data.0.is_multiple_of(PAGE)
                {
                    self.fault(format!("queue {id} at {:#x}", command.data.0));
                }
                let queues = state.queues.entry(id).or_default();
                if command.opcode == CREATE_CQ {
                    if queues.cq.is_some() {
                        self.fault(format!("completion queue {id} is there"));
                    }
                    let vector = (eleven & 2 != 0).then_some((eleven >> 16) as u16);
                    queues.cq = Some(Completions::new(command.data.0, size, vector));
                } else {
                    if queues.sq.is_some() || queues.cq.is_none() || eleven >> 16 != u32::from(id) {
                        self.fault(format!("submission queue {id} is there, or has no completion queue"));
                    }
                    queues.sq = Some(Submissions { at: command.data.0, size, head: 0 });
                }
                Some((0, 0))
            }
            DELETE_SQ | DELETE_CQ => {
                let is_there = state.queues.get_mut(&id).filter(|_| id > 0).is_some_and(|queues| {
                    if command.opcode == DELETE_SQ {
                        queues.sq.take().is_some()
                    } else {
                        queues.sq.is_none() && queues.cq.take().is_some()
                    }
                });
                if !is_there {
                    self.fault(format!("{:#x} of queue {id}, which is not there", command.opcode));
                    return Some((0x101, 0));
                }
                state.out.retain(|(queue, _)| *queue != id);
                state.hanging.retain(|(queue, _)| *queue != id);
                Some((0, 0))
            }
            ABORT => {
                let its = (ten as u16, (ten >> 16) as u16);
                if !state.queues.contains_key(&its.0) {
                    self.fault(format!("a command of queue {} is to be aborted, which is not there", its.0));
                }
                let at = state.hanging.iter().position(|hanging| *hanging == its);
                let Some(at) = at else { return Some((0, 1)) };
                state.hanging.remove(at);
                self.complete(state, its.0, its.1, 0x007, 0);
                Some((0, 0))
            }
            0x0c => {
                if state.event.replace(command.id).is_some() {
                    self.fault("more events are asked for than it tells");
                }
                self.tell(state);
                None
            }
            0x02 => {
                state.has_changed = false;
                Some((0, 0))
            }
            other => {
                self.fault(format!("admin command {other:#x}"));
                Some((0x001, 0))
            }
        }
    }

    fn io(&self, state: &mut State, memory: &GuestMap, command: &Fetched) -> End {
        let Some(namespace) = state.namespaces.get_mut(&command.namespace) else {
            self.fault(format!("namespace {}", command.namespace));
            return Some((0x0b, 0));
        };
        let [ten, eleven, twelve] = command.dwords;
        let log = namespace.block_log;
        let size = namespace.bytes.len();
        let place = |first: u64, blocks: u64| {
            let (start, end) = ((first as usize) << log, ((first + blocks) as usize) << log);
            (end <= size).then_some(start..end)
        };
        let first = u64::from(ten) | u64::from(eleven) << 32;
        let place_of_command = place(first, u64::from(twelve & 0xffff) + 1);
        match command.opcode {
            FLUSH => Some((0, 0)),
            READ | WRITE => {
                let Some(range) = place_of_command else { return Some((0x4080, 0)) };
                let pieces = match self.pieces(memory, command, range.len() as u64, state.scatter) {
                    Ok(pieces) => pieces,
                    Err(status) => return Some((status, 0)),
                };
                let mut at = range.start;
                for (address, len) in pieces {
                    let Some(slice) = self.slice(memory, address, len) else { return Some((0x04, 0)) };
                    let Some(bytes) = namespace.bytes.get_mut(at..at + len as usize) else {
                        return Some((0x0f, 0));
                    };
                    let moved = if command.opcode == READ { slice.write(bytes) } else { slice.read(bytes) };
                    assert_eq!(moved as u64, len);
                    at += len as usize;
                }
                Some((0, 0))
            }
            WRITE_ZEROES => {
                let Some(range) = place_of_command else { return Some((0x4080, 0)) };
                namespace.bytes[range].fill(0);
                Some((0, 0))
            }
            DEALLOCATE => {
                let count = u64::from(ten & 0xff) + 1;
                let Some(ranges) = self.slice(memory, command.data.0, count * 16) else {
                    return Some((0x04, 0));
                };
                for n in 0..count as usize {
                    let (words, first) = (ranges.word(n * 16), ranges.word(n * 16 + 8));
                    let Some(range) = place(first, words >> 32) else { return Some((0x4080, 0)) };
                    namespace.bytes[range].fill(0);
                }
                Some((0, 0))
            }
            other => {
                self.fault(format!("command {other:#x}"));
                Some((0x001, 0))
            }
        }
    }

    /// Memory that a driver may name.
    fn slice<'map>(
        &self,
        memory: &'map GuestMap,
        at: u64,
        len: u64,
    ) -> Option<ringway_ring::guest::HostSlice<'map>> {
        let slice = memory.resolve(at, len).ok();
        if slice.is_none() {
            self.fault(format!("{len:#x} bytes at {at:#x} are not mapped"));
        }
        slice
    }

    /// Where a command's data are.
    fn pieces(
        &self,
        memory: &GuestMap,
        command: &Fetched,
        bytes: u64,
        scatter: u32,
    ) -> Result<Vec<(u64, u64)>, u16> {
        let (first, second) = command.data;
        if bytes > 128 << 10 {
            self.fault(format!("{bytes:#x} bytes of data"));
            return Err(0x4002);
        }
        if command.is_sgl {
            let list: Vec<(u64, u64)> = match second >> 56 {
                0 => vec![(first, second)],
                0x30 => {
                    let length = second & 0xffff_ffff;
                    let Some(list) = self.slice(memory, first, length) else { return Err(0x04) };
                    (0..length as usize / 16).map(|n| (list.word(n * 16), list.word(n * 16 + 8))).collect()
                }
                _ => return Err(0x4011),
            };
            let is_odd = list.iter().any(|(at, len)| (at | len) % 4 != 0);
            if scatter == 0 || scatter == 2 && is_odd || list.iter().map(|(_, len)| len).sum::<u64>() != bytes
            {
                self.fault(format!("a list that it does not take: {list:x?}"));
                return Err(0x400f);
            }
            return Ok(list);
        }
        let mut pages = vec![first];
        let count = (first % PAGE + bytes).div_ceil(PAGE);
        if count == 2 {
            pages.push(second);
        } else if count > 2 {
            let Some(list) = self.slice(memory, second, (count - 1) * 8) else { return Err(0x04) };
            pages.extend((0..count as usize - 1).map(|n| list.word(n * 8)));
        }
        if first % 4 != 0 || pages.iter().skip(1).any(|page| page % PAGE != 0) {
            self.fault(format!("pages at {pages:x?}"));
            return Err(0x4013);
        }
        let mut left = bytes;
        let piece = |at: u64| {
            let len = (PAGE - at % PAGE).min(left);
            left -= len;
            (at, len)
        };
        Ok(pages.into_iter().map(piece).collect())
    }
}

impl Completions {
    fn new(at: u64, size: u64, vector: Option<u16>) -> Completions {
        Completions { at, size, tail: 0, head: 0, phase: true, vector, held: VecDeque::new() }
    }

    /// False: there is no room.
    fn put(&mut self, memory: &GuestMap, [first, second]: [u64; 2]) -> bool {
        if (self.tail + 1) % self.size == self.head {
            return false;
        }
        if let Ok(entry) = memory.resolve(self.at + self.tail * 16, 16) {
            entry.put_word(0, first);
            entry.put_word(8, second | u64::from(self.phase) << 48);
        }
        self.tail = (self.tail + 1) % self.size;
        self.phase ^= self.tail == 0;
        true
    }
}

impl State {
    fn shut_down(&self) -> u32 {
        if self.plain.get(&CC).is_some_and(|control| control & 0xc000 != 0) { 2 } else { 0 }
    }

    fn interrupt(&self, vector: Option<u16>) {
        if let Some(to) = vector.and_then(|vector| self.vectors.get(usize::from(vector))?.as_ref()) {
            to.signal();
        }
    }

    fn identify(&self, what: u8, namespace: u32) -> Option<Vec<u8>> {
        let mut answer = vec![0; PAGE as usize];
        let mut put = |at: usize, bytes: &[u8]| answer[at..at + bytes.len()].copy_from_slice(bytes);
        match what {
            0 => {
                let Namespace { block_log, bytes } = self.namespaces.get(&namespace)?;
                put(0, &((bytes.len() >> block_log) as u64).to_le_bytes());
                put(33, &[1]);
                put(128, &(block_log << 16).to_le_bytes());
            }
            1 => {
                put(4, b"M0001               ");
                put(24, b"Model");
                // 128 KiB a command.
                put(77, &[5]);
                put(92, &(1u32 << 8).to_le_bytes());
                put(512, &[0x66, 0x44]);
                put(516, &8u32.to_le_bytes());
                put(520, &0x0cu16.to_le_bytes());
                put(525, &[1]);
                put(536, &self.scatter.to_le_bytes());
            }
            2 => {
                let ids = self.namespaces.keys().filter(|id| **id > namespace);
                ids.enumerate().for_each(|(n, id)| put(n * 4, &id.to_le_bytes()));
            }
            _ => {}
        }
        Some(answer)
    }
}

/// The function, open.
struct Opened(Model);

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened")
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.0.state().is_ready && !self.0.0.slot.is_gone() && self.0.0.rules.are_none() {
            self.0.fault("closed at work");
        }
        // The host resets it.
        let mut state = self.0.state();
        self.0.disable(&mut state);
        state.plain.clear();
        state.vectors.iter_mut().for_each(|vector| *vector = None);
        drop(state);
        self.0.0.slot.close();
    }
}

impl Function for Opened {
    fn config(&self) -> View {
        View::new(Arc::new(ConfigSpace(self.0.clone())))
    }

    fn bar(&self, index: u8) -> io::Result<View> {
        if index != 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(View::new(Arc::new(Bar(self.0.clone()))))
    }

    fn dma(&self) -> Arc<dyn DmaSpace> {
        Arc::clone(&self.0.0.slot.space) as _
    }

    fn vectors(&self) -> u16 {
        VECTORS as u16
    }

    fn bind(&self, vector: u16, to: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.0.state().vectors[usize::from(vector)] = to.map(|fd| Arc::new(dup(fd)));
        Ok(())
    }

    fn bind_doorbell(&self, _: &Doorbell, _: Option<BorrowedFd<'_>>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn on_wanted_back(&self, told: BorrowedFd<'_>) -> io::Result<()> {
        self.0.state().wanted = Some(Arc::new(dup(told)));
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        let mut state = self.0.state();
        self.0.disable(&mut state);
        state.plain.clear();
        Ok(())
    }
}

struct ConfigSpace(Model);

impl Registers for ConfigSpace {
    fn size(&self) -> u64 {
        256
    }
    fn read(&self, at: u64, width: Width) -> u64 {
        if self.0.0.slot.is_gone() {
            return width.ones();
        }
        let mut bytes = vec![0; 256];
        bytes[4..6].copy_from_slice(&self.0.state().command.to_le_bytes());
        read_bytes(&bytes, at, width)
    }
    fn write(&self, at: u64, _: Width, value: u64) {
        if at == 4 {
            self.0.state().command = value as u16;
        }
    }
}

struct Bar(Model);

impl Registers for Bar {
    fn size(&self) -> u64 {
        DOORBELLS + PAGE
    }
    fn read(&self, at: u64, width: Width) -> u64 {
        let model = &self.0;
        if model.0.slot.is_gone() {
            return width.ones();
        }
        match model.0.rules.take(&On::Read(at)) {
            Some(Then::Give(value)) => value.into(),
            _ => model.read(at).into(),
        }
    }
    fn write(&self, at: u64, width: Width, value: u64) {
        let model = &self.0;
        if width != Width::B4 {
            model.fault(format!("{width:?} at {at:#x}"));
        }
        if model.0.slot.is_gone() || model.0.rules.take(&On::Write(at)) == Some(Then::Ignore) {
            return;
        }
        model.write(at, value as u32);
    }
}
