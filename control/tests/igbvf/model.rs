//! A virtual function of an 82576 in this process, with its PF, whose wire is a loop, on a bus of its own. It keeps the rules of
//! the hardware and watches that its driver does; faults are [`Rules`]: what happens at an access, a message or a frame instead of
//! what should.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use ringway_pmd::bus::pci::{Device, Doorbell, Function, Id, Opener, Registers, View, Width};
use ringway_pmd::dma::DmaSpace;
use ringway_pmd::drivers::functions::Seen;
use ringway_pmd::drivers::igbvf::EXAMINER;
use ringway_pmd::net::Mac;
use ringway_pmd::notify::EventFd;

use super::lies::{Liar, Lie, Word, near, often};
use super::slot::{Rules, Slot, dup};

const VECTORS: usize = 3;
const CTRL: u64 = 0x0000;
pub const STATUS: u64 = 0x0008;
const EIMS: u64 = 0x1524;
const EIMC: u64 = 0x1528;
const EICR: u64 = 0x1580;
const IVAR: u64 = 0x1700;
pub const MAILBOX: u64 = 0x0c40;
const MESSAGE: RangeInclusive<u64> = 0x0800..=0x083c;
const RX: u64 = 0x2800;
const TX: u64 = 0x3800;
pub const RXDCTL: u64 = RX + 0x28;
pub const TX_TAIL: u64 = TX + 0x18;
const TXDCTL: u64 = TX + 0x28;
const ENABLE: u32 = 1 << 25;

// Messages, by their numbers.
pub const RESET: u32 = 1;
pub const SET_MAC: u32 = 2;
pub const SET_VLAN: u32 = 4;
pub const SET_LONGEST: u32 = 5;

/// At what something else happens than should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// A read of the register at this offset.
    Read(u64),
    /// A write likewise.
    Write(u64),
    /// A message of this number to the PF.
    Message(u32),
    /// A frame is written to a buffer.
    Received,
    /// A frame is sent.
    Sent,
}

/// What happens instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It reads as this; a message is answered so; a descriptor is written back so.
    Give(u64),
    /// It reads as something with this bit wrong.
    Flip(u8),
    /// It does not happen.
    Ignore,
    /// It happens, and a frame that was sent is reported when the function is stopped.
    Late,
    /// It does not return while this rule is there.
    Wait,
}

/// A frame as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub bytes: Vec<u8>,
    /// Command bits, and what is to be done, of its first descriptor.
    pub command: u32,
    pub options: u32,
    /// The context that was loaded.
    pub context: [u32; 4],
    pub pieces: usize,
}

/// The function; all clones are the same one.
#[derive(Clone)]
pub struct Model(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    slot: Slot,
    rules: Rules<On, Then>,
}

#[derive(Default)]
struct State {
    plain: BTreeMap<u64, u32>,
    message: [u32; 16],
    /// Bits of the mailbox that vanish when read, and VFU.
    bits: u32,
    mask: u32,
    cause: u32,
    vectors: [Option<Arc<EventFd>>; VECTORS],
    wanted: Option<Arc<EventFd>>,
    link: bool,
    pf: Pf,
    context: [u32; 4],
    /// Frames on their way, and the tags that are taken out of them.
    wire: VecDeque<(Vec<u8>, Option<u16>)>,
    sent: Vec<Sent>,
    /// Descriptors of frames that were sent and are not reported.
    late: Vec<u64>,
    resets: u32,
}

#[derive(Default)]
struct Pf {
    is_down: bool,
    knows: bool,
    mac: Option<Mac>,
    messages: Vec<Vec<u32>>,
    /// Filters, which no reset of the function takes away, and how many it has room for.
    filters: Vec<Mac>,
    most_filters: Option<usize>,
}

impl Model {
    pub fn new() -> Model {
        let state = State { link: true, ..State::default() };
        Model(Arc::new(Shared {
            state: Mutex::new(state),
            slot: Slot::new("0000:01:10.0"),
            rules: Rules::default(),
        }))
    }

    /// With an address that the PF fixed.
    pub fn with_mac(mac: Mac) -> Model {
        let model = Model::new();
        model.state().pf.mac = Some(mac);
        model
    }

    pub fn fix_mac(&self, mac: Mac) {
        self.state().pf.mac = Some(mac);
    }

    pub fn rule(&self, on: On, then: Then, times: usize) {
        self.0.rules.add(on, then, times);
    }

    /// All that was to happen instead of something has begun to.
    pub fn rules_are_used_up(&self) -> bool {
        self.0.rules.are_used_up()
    }

    pub fn forget_rules(&self) {
        self.0.rules.forget();
    }

    pub fn pull(&self) {
        self.0.slot.pull();
    }

    pub fn want_back(&self) {
        self.state().wanted.clone().unwrap().signal();
    }

    pub fn set_link(&self, is_up: bool) {
        self.state().link = is_up;
    }

    /// The PF resets itself: the function's rings are gone, and it is told.
    pub fn reset_pf(&self) {
        let mut state = self.state();
        state.forget();
        state.pf.filters.clear();
        state.plain.clear();
        state.message[0] = 0x100;
        state.bits |= 1 << 7 | 1 << 4;
    }

    /// The PF is down, or up again.
    pub fn set_pf(&self, is_up: bool) {
        if !is_up {
            self.reset_pf();
        }
        self.state().pf.is_down = !is_up;
    }

    /// A frame comes from outside, of which a tag is taken out.
    pub fn receive(&self, frame: &[u8], tag: Option<u16>) {
        let mut state = self.state();
        state.wire.push_back((frame.to_vec(), tag));
        self.deliver(&mut state);
    }

    pub fn sent(&self) -> Vec<Sent> {
        self.sent_since(0)
    }

    /// What was sent after the first so many.
    pub fn sent_since(&self, frames: usize) -> Vec<Sent> {
        self.state().sent[frames..].to_vec()
    }

    /// Stations whose frames come here.
    pub fn filters(&self) -> Vec<Mac> {
        self.state().pf.filters.clone()
    }

    /// The PF has room for so many filters.
    pub fn set_most_filters(&self, most: usize) {
        self.state().pf.most_filters = Some(most);
    }

    /// A filter of somebody's who did not clear it.
    pub fn leave_filter(&self, mac: Mac) {
        self.state().pf.filters.push(mac);
    }

    /// Messages to the PF of a number: information, and what follows.
    pub fn messages(&self, number: u32) -> Vec<(u32, u32, u32)> {
        let all = &self.state().pf.messages;
        let its = all.iter().filter(|message| message[0] & 0xffff == number);
        its.map(|message| (message[0] >> 16, message[1], message[2])).collect()
    }

    pub fn resets(&self) -> u32 {
        self.state().resets
    }

    pub fn is_open(&self) -> bool {
        self.0.slot.is_open()
    }

    pub fn mapped(&self) -> u64 {
        self.0.slot.space.mapped()
    }

    pub fn works(&self) -> bool {
        self.state().is_enabled(RXDCTL)
    }

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
        let id = Id {
            vendor: 0x8086,
            device: 0x10ca,
            subsystem_vendor: 0x8086,
            subsystem: 0xa03c,
            class: 0x020000,
        };
        let (address, opener) = (self.0.slot.address, self.opener());
        let seen = EXAMINER.examine(address, &opener);
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

    fn read(&self, at: u64) -> u32 {
        let mut state = self.state();
        match at {
            STATUS => 0x800c_8481 | u32::from(state.link) << 1,
            MAILBOX => {
                let bits = state.bits | u32::from(state.pf.is_down) << 6;
                state.bits &= 0x04;
                bits
            }
            at if MESSAGE.contains(&at) => state.message[(at - MESSAGE.start()) as usize / 4],
            _ => state.plain.get(&at).copied().unwrap_or(0),
        }
    }

    fn write(&self, at: u64, value: u32) {
        let mut state = self.state();
        match at {
            CTRL if value == 1 << 26 => {
                state.resets += 1;
                state.forget();
            }
            EIMS => {
                state.mask |= value;
                self.interrupt(&mut state, 0);
            }
            EIMC => state.mask &= !value,
            EICR => state.cause &= !value,
            0x152c => {}
            MAILBOX => {
                state.bits &= !0x04;
                state.bits |= value & 0x04;
                if value & 1 != 0 {
                    self.answer(&mut state);
                }
            }
            IVAR if value != 0x8180 => self.fault(format!("vectors {value:#x}")),
            IVAR => {}
            at if MESSAGE.contains(&at) => {
                if state.bits & 0x04 == 0 {
                    self.fault("a message was written without the buffer");
                }
                state.message[(at - MESSAGE.start()) as usize / 4] = value;
            }
            RX.. => {
                if at == RXDCTL && value & ENABLE != 0 {
                    self.check_begin(&state, RX);
                    // Not before the PF knows it: nothing would arrive.
                    if !state.pf.knows {
                        self.fault("enabled before it made itself known");
                    }
                }
                if at == TXDCTL && value & ENABLE != 0 {
                    self.check_begin(&state, TX);
                }
                if at == TXDCTL && value & ENABLE == 0 {
                    for at in std::mem::take(&mut state.late) {
                        let map = self.0.slot.space.map();
                        let Ok(slot) = map.resolve(at, 16) else { continue };
                        slot.put_word(8, slot.word(8) | 1 << 32);
                    }
                }
                state.plain.insert(at, value);
                if at == TX + 0x18 {
                    self.transmit(&mut state);
                }
                if at == TX + 0x18 || at == RX + 0x18 {
                    self.deliver(&mut state);
                }
            }
            _ => self.fault(format!("{value:#x} was written to {at:#x}")),
        }
    }

    fn check_begin(&self, state: &State, queue: u64) {
        let ring = state.ring(queue);
        if !ring.at.is_multiple_of(128) || ring.size == 0 || !ring.size.is_multiple_of(8) {
            self.fault(format!("ring at {:#x} of {} descriptors", ring.at, ring.size));
        }
        if self.0.slot.space.map().resolve(ring.at, u64::from(ring.size) * 16).is_err() {
            self.fault("a ring is not in mapped memory");
        }
    }

    /// The PF reads a message, and answers.
    fn answer(&self, state: &mut State) {
        state.bits &= !0x04;
        let message = state.message.to_vec();
        let number = message[0] & 0xffff;
        state.pf.messages.push(message.clone());
        let ruled = self.ruled(On::Message(number));
        if ruled == Some(Then::Ignore) || state.pf.is_down {
            return;
        }
        state.bits |= 1 << 5;
        if number != RESET && !state.pf.knows {
            // It was reset: it reads, and says nothing for a while.
            return;
        }
        let done = 1 << 31 | if number == RESET { 0 } else { 1 << 29 };
        let mut first = message[0] | done;
        match number {
            RESET => {
                state.pf.knows = true;
                let [a, b, c, d, e, f] = state.pf.mac.unwrap_or(Mac([0; 6])).0;
                state.message[1] = u32::from_le_bytes([a, b, c, d]);
                state.message[2] = u32::from_le_bytes([e, f, 0, 0]);
                if state.pf.mac.is_none() {
                    first = 0x4000_0001;
                }
            }
            SET_MAC if message[0] >> 16 == 2 => {
                let has_room = state.pf.most_filters.is_none_or(|most| state.pf.filters.len() < most);
                if state.pf.mac.is_some() || !has_room {
                    first = message[0] | 3 << 29;
                } else {
                    let ([a, b, c, d], [e, f, ..]) = (message[1].to_le_bytes(), message[2].to_le_bytes());
                    state.pf.filters.push(Mac([a, b, c, d, e, f]));
                }
            }
            SET_MAC if message[0] >> 16 == 1 && state.pf.mac.is_none() => state.pf.filters.clear(),
            SET_MAC if state.pf.mac.is_some() => first = message[0] | 3 << 29,
            _ => {}
        }
        if let Some(Then::Give(word)) = ruled {
            first = word as u32;
        }
        state.message[0] = first;
        state.bits |= 1 << 4;
    }

    /// Signals what is asked for of these causes, too.
    fn interrupt(&self, state: &mut State, cause: u32) {
        state.cause |= cause;
        let told = state.cause & state.mask;
        state.cause &= !told;
        for (vector, fd) in state.vectors.iter().enumerate() {
            if told & 1 << vector != 0
                && let Some(fd) = fd
            {
                fd.signal();
            }
        }
    }

    /// Sends what there is to be sent.
    fn transmit(&self, state: &mut State) {
        if !state.is_enabled(TXDCTL) {
            // It was reset, and its driver has not seen it yet.
            return;
        }
        let (map, ring) = (self.0.slot.space.map(), state.ring(TX));
        let mut head = ring.head;
        if ring.size == 0 || ring.tail >= ring.size {
            return self.fault(format!("tail {} of {} descriptors", ring.tail, ring.size));
        }
        let mut frame: Option<Sent> = None;
        while head != ring.tail {
            let at = ring.at + u64::from(head) * 16;
            let Ok(slot) = map.resolve(at, 16) else {
                return self.fault("sends by a ring that is not mapped");
            };
            let mut bytes = [0; 16];
            slot.read(&mut bytes);
            let words: Vec<u32> =
                bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
            head = (head + 1) % ring.size;
            if words[2] >> 20 & 0xf == 2 {
                state.context = words.try_into().unwrap();
                continue;
            }
            let address = u64::from(words[0]) | u64::from(words[1]) << 32;
            let len = words[2] & 0xffff;
            let Ok(piece) = map.resolve(address, len.into()) else {
                self.fault(format!("a piece of {len} bytes at {address:#x} is not mapped"));
                continue;
            };
            let mut data = vec![0; len as usize];
            piece.read(&mut data);
            let sent = frame.get_or_insert_with(|| Sent {
                bytes: Vec::new(),
                command: words[2] & !0xffff,
                options: words[3],
                context: state.context,
                pieces: 0,
            });
            sent.bytes.extend(data);
            sent.pieces += 1;
            if words[2] & 1 << 24 == 0 {
                continue;
            }
            let sent = frame.take().unwrap();
            let is_cut = sent.command & 1 << 31 != 0;
            let wanted = (sent.options >> 14) as usize;
            if !is_cut && sent.bytes.len() != wanted || sent.bytes.len() < 17 || sent.pieces > 64 {
                self.fault(format!("{} bytes in {} pieces, said {wanted}", sent.bytes.len(), sent.pieces));
            }
            let ruled = self.ruled(On::Sent);
            if ruled.is_none_or(|then| then == Then::Late) {
                match ruled {
                    None => slot.put_word(8, slot.word(8) | 1 << 32),
                    Some(_) => state.late.push(at),
                }
                if !is_cut {
                    state.wire.push_back((sent.bytes.clone(), None));
                }
                state.sent.push(sent);
            }
        }
        state.plain.insert(TX + 0x10, head.into());
        self.interrupt(state, 2);
    }

    /// Writes what came into buffers.
    fn deliver(&self, state: &mut State) {
        while state.is_enabled(RXDCTL) && state.ring(RX).size > 0 {
            let (map, ring) = (self.0.slot.space.map(), state.ring(RX));
            let room = (state.plain.get(&(RX + 0x0c)).copied().unwrap_or(0) & 0x7f) * 1024;
            if ring.head == ring.tail || state.wire.is_empty() {
                return;
            }
            let (frame, tag) = state.wire.pop_front().unwrap();
            let (now, rest) = frame.split_at(frame.len().min(room as usize));
            let Ok(slot) = map.resolve(ring.at + u64::from(ring.head) * 16, 16) else {
                return self.fault("receives by a ring that is not mapped");
            };
            let address = slot.word(0);
            if slot.word(8) != 0 || !address.is_multiple_of(2) {
                self.fault(format!("buffer at {address:#x} with {:#x}", slot.word(8)));
            }
            match map.resolve(address, room.into()) {
                Ok(buffer) => {
                    buffer.write(now);
                }
                Err(_) => self.fault(format!("a buffer of {room} bytes at {address:#x} is not mapped")),
            }
            let mut back = 1 | (now.len() as u64) << 32;
            if rest.is_empty() {
                back |= 2 | 1 << 5;
                if let Some(tag) = tag {
                    back |= 1 << 3 | u64::from(tag) << 48;
                }
            } else {
                state.wire.push_front((rest.to_vec(), tag));
            }
            if let Some(Then::Give(word)) = self.ruled(On::Received) {
                back = word;
            }
            slot.put_word(0, 0);
            slot.put_word(8, back);
            state.plain.insert(RX + 0x10, ((ring.head + 1) % ring.size).into());
            self.interrupt(state, 1);
        }
    }
}

/// A ring by its registers.
struct Ring {
    at: u64,
    size: u16,
    head: u16,
    tail: u16,
}

impl State {
    fn is_enabled(&self, control: u64) -> bool {
        self.plain.get(&control).is_some_and(|value| value & ENABLE != 0)
    }

    fn ring(&self, queue: u64) -> Ring {
        let read = |at| self.plain.get(&(queue + at)).copied().unwrap_or(0);
        Ring {
            at: u64::from(read(0)) | u64::from(read(4)) << 32,
            size: (read(8) / 16) as u16,
            head: read(0x10) as u16,
            tail: read(0x18) as u16,
        }
    }

    /// The function is reset.
    fn forget(&mut self) {
        for control in [RXDCTL, TXDCTL] {
            if let Some(value) = self.plain.get_mut(&control) {
                *value &= !ENABLE;
            }
        }
        self.pf.knows = false;
        self.wire.clear();
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
        let model = &self.0;
        if model.works() && !model.0.slot.is_gone() {
            model.fault("closed while it works");
        }
        let is_served = !model.0.slot.is_gone() && !model.state().pf.is_down;
        if is_served && !model.filters().is_empty() {
            model.fault("closed with filters");
        }
        model.0.slot.close();
    }
}

impl Function for Opened {
    fn config(&self) -> View {
        View::new(Arc::new(Bar(self.0.clone())))
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
        state.resets += 1;
        state.forget();
        Ok(())
    }
}

struct Bar(Model);

impl Registers for Bar {
    fn size(&self) -> u64 {
        0x4000
    }
    fn read(&self, at: u64, width: Width) -> u64 {
        if self.0.0.slot.is_gone() {
            return width.ones();
        }
        if width != Width::B4 {
            self.0.fault(format!("{width:?} was read at {at:#x}"));
        }
        match self.0.ruled(On::Read(at)) {
            Some(Then::Give(value)) => value & width.ones(),
            Some(Then::Flip(bit)) => u64::from(self.0.read(at) ^ 1 << (bit % 32)),
            Some(_) => 0,
            None => self.0.read(at).into(),
        }
    }
    fn write(&self, at: u64, width: Width, value: u64) {
        if width != Width::B4 {
            self.0.fault(format!("{width:?} was written at {at:#x}"));
        }
        if self.0.0.slot.is_gone() {
            return;
        }
        let ruled = self.0.ruled(On::Write(at));
        while ruled == Some(Then::Wait) && !self.0.0.rules.are_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        if ruled.is_none_or(|then| then == Then::Wait) {
            self.0.write(at, value as u32);
        }
    }
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
                let then = match value {
                    Word::Is(value) => Then::Give(value),
                    Word::Flip(bit) => Then::Flip(bit),
                };
                self.rule(On::Read(READS[usize::from(register) % READS.len()]), then, often(times));
            }
            Lie::Write { register, times } => {
                let at = WRITES[usize::from(register) % WRITES.len()];
                self.rule(On::Write(at), Then::Ignore, often(times));
            }
            Lie::Answer { what, value, times } => {
                let on = ANSWERS[usize::from(what) % ANSWERS.len()];
                let then = match value {
                    Some(value) if on == On::Received => {
                        Then::Give(u64::from(value) << 32 | u64::from(3 - (what >> 6 & 2)))
                    }
                    Some(value) => Then::Give(value.into()),
                    None if on == On::Sent && what & 1 == 1 => Then::Late,
                    None => Then::Ignore,
                };
                self.rule(on, then, often(times));
            }
            Lie::Complete { queue, entry, id, len, more } => {
                let mut state = self.state();
                let ring = state.ring(if queue & 1 == 0 { RX } else { TX });
                let at = ring.at + (u64::from(ring.head) + near(entry)) % u64::from(ring.size.max(1)) * 16;
                if let Ok(slot) = self.0.slot.space.map().resolve(at, 16) {
                    slot.put_word(8, u64::from(len) << 32 | u64::from(id | u32::from(more & 1)));
                }
                self.interrupt(&mut state, 3);
            }
            Lie::Interrupt { vector } => self.interrupt(&mut self.state(), 1 << (vector % 3)),
            Lie::Stall => {
                [On::Sent, On::Write(TX_TAIL)]
                    .into_iter()
                    .for_each(|on| self.rule(on, Then::Ignore, usize::MAX));
            }
            Lie::Reset => self.reset_pf(),
            Lie::Honest => {
                self.forget_rules();
                self.set_pf(true);
            }
        }
    }

    fn pull(&self) {
        self.pull();
    }
}

/// What can be lied about when it is read.
const READS: [u64; 13] = [
    STATUS,
    MAILBOX,
    MAILBOX,
    *MESSAGE.start(),
    *MESSAGE.start() + 4,
    *MESSAGE.start() + 8,
    RX + 0x08,
    RX + 0x10,
    RXDCTL,
    RXDCTL,
    TX + 0x14,
    TXDCTL,
    EICR,
];
/// What can be lost when it is written; but for where rings are: no driver can see that they are elsewhere.
const WRITES: [u64; 14] = [
    CTRL,
    MAILBOX,
    *MESSAGE.start(),
    *MESSAGE.start() + 4,
    EIMS,
    EIMC,
    EICR,
    IVAR,
    RXDCTL,
    TXDCTL,
    RX + 0x08,
    TX + 0x08,
    RX + 0x18,
    TX_TAIL,
];
const ANSWERS: [On; 8] = [
    On::Message(RESET),
    On::Message(SET_MAC),
    On::Message(3),
    On::Message(SET_VLAN),
    On::Message(SET_LONGEST),
    On::Received,
    On::Received,
    On::Sent,
];
