//! A controller that is open, for all who stand on it: devices, each with a window of what the controller reaches, and queue pairs.
//! It is opened for the first of them and closed with the last.
//!
//! One thread for each open controller tends it: it looks whether the controller works, hears what it tells, and does what queues
//! on workers may not wait for. A queue whose command does not end asks for its abortion first; then it hands its pair over, and is
//! given it back made anew; if the controller does not do that either it is reset, and all pairs are made anew, each once its
//! queue has handed it over. What cannot be mended is gone, for all its devices.
//!
//! ```text
//!   worker:  pair --hand over--> Seat [WANTED] --tended: pair made anew--> Seat [READY] --take back--> worker
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::bus::pci::listener::Listening;
use crate::bus::pci::{Function, Opener};
use crate::dma::{Division, Window};
use crate::notify::EventFd;
use crate::nvme::NvmeFault;
use crate::nvme::command::Status;
use crate::nvme::controller::Controller;
use crate::nvme::identify::NamespaceInfo;
use crate::nvme::queue::QueuePair;
use crate::vdpa::{DeviceHost, DriverError};

/// A controller, open or not.
pub(super) struct Shelf {
    name: String,
    opener: Opener,
    live: Mutex<Weak<Live>>,
    counts: Arc<Counts>,
}

impl fmt::Debug for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelf").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Shelf {
    pub(super) fn new(name: &str, opener: Opener) -> Shelf {
        Shelf { name: name.to_owned(), opener, live: Mutex::default(), counts: Arc::default() }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The controller, opened now if it was not: by sessions, which may wait.
    pub(super) fn live(&self) -> Result<Arc<Live>, DriverError> {
        // Held while it is brought up: who else wants it waits for that anyway.
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(live) = live.upgrade() {
            return Ok(live);
        }
        let opened = Live::open((self.opener)()?, Arc::clone(&self.counts)).map_err(|fault| {
            DriverError::Resource { what: self.name.clone(), source: io::Error::other(fault.to_string()) }
        })?;
        *live = Arc::downgrade(&opened);
        Ok(opened)
    }
}

/// What happened on a controller, for operators. All relaxed: nothing is told by these.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) failed: AtomicU64,
    pub(super) last_status: AtomicU32,
    pub(super) copied: AtomicU64,
    pub(super) aborts: AtomicU64,
    pub(super) renewals: AtomicU64,
    pub(super) resets: AtomicU64,
    pub(super) strays: AtomicU64,
}

impl Counts {
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn raise(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }

    /// A command failed so.
    pub(super) fn note(&self, status: Status) {
        Counts::add(&self.failed);
        self.last_status.store(status.code().into(), Ordering::Relaxed);
    }

    pub(super) fn attributes(&self) -> BTreeMap<String, String> {
        let counted = [
            ("failed_commands", &self.failed),
            ("copied_commands", &self.copied),
            ("aborts", &self.aborts),
            ("queue_pair_renewals", &self.renewals),
            ("controller_resets", &self.resets),
            ("stray_completions", &self.strays),
        ];
        let counted =
            counted.map(|(name, counter)| (name.to_owned(), counter.load(Ordering::Relaxed).to_string()));
        let status = self.last_status.load(Ordering::Relaxed);
        let status = (status != 0).then(|| ("last_status".to_owned(), format!("{status:#05x}")));
        counted.into_iter().chain(status).collect()
    }
}

/// A controller that is open.
pub(super) struct Live {
    pub(super) controller: Controller,
    pub(super) counts: Arc<Counts>,
    /// Ticks since it was opened.
    clock: AtomicU32,
    /// How often it was reset: a pair of before is not there any more.
    generation: AtomicU32,
    is_dead: AtomicBool,
    /// Signalled when a seat wants something.
    bell: Arc<EventFd>,
    seats: Mutex<Vec<Weak<Seat>>>,
    members: Mutex<Vec<Weak<Member>>>,
    windows: Mutex<Vec<(u64, u64)>>,
    guest: u64,
    /// Held by who resets it.
    recovery: Mutex<()>,
    /// Told that the host wants it back.
    wanted: OnceLock<Listening>,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("controller", &self.controller).finish_non_exhaustive()
    }
}

/// A device on it.
pub(super) struct Member {
    pub(super) host: DeviceHost,
    pub(super) namespace: u32,
    /// Bytes of the namespace, and of a block.
    pub(super) bytes: AtomicU64,
    pub(super) block: u64,
}

/// Where a queue's pair is handed over.
pub(super) struct Seat {
    state: AtomicU8,
    /// The worker only tries to lock it.
    pair: Mutex<Option<QueuePair>>,
    /// With which generation the pair was made that is to be had.
    generation: AtomicU32,
    /// A command to be aborted: its pair and its own number. 0: none.
    abort: AtomicU32,
    /// Wakes the queue's pump.
    pub(super) wake: Arc<EventFd>,
    /// The pump sleeps, and has commands outstanding.
    pub(super) is_busy: AtomicBool,
    /// The pair's completions are to interrupt, and do.
    wants_interrupts: AtomicBool,
    interrupts: AtomicBool,
    vector: Option<u16>,
}

/// The queue has its pair.
const HELD: u8 = 0;
/// A pair is to be made anew.
const WANTED: u8 = 1;
/// It was.
const READY: u8 = 2;

impl Live {
    fn open(function: Arc<dyn Function>, counts: Arc<Counts>) -> Result<Arc<Live>, NvmeFault> {
        let host = |what: &str, error: io::Error| NvmeFault::Host(format!("{what}: {error}"));
        let Some(Division { guest, .. }) = Division::of(&*function.dma()) else {
            return Err(NvmeFault::Host("the IOMMU has no range of 1 GiB for our own queues".to_owned()));
        };
        enable_vectors(&*function).map_err(|error| host("interrupts", error))?;
        let controller = Controller::open(function)?;
        let live = Arc::new(Live {
            controller,
            counts,
            clock: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            is_dead: AtomicBool::new(false),
            bell: Arc::new(EventFd::new().map_err(|error| host("a descriptor", error))?),
            seats: Mutex::default(),
            members: Mutex::default(),
            windows: Mutex::default(),
            guest,
            recovery: Mutex::default(),
            wanted: OnceLock::new(),
        });
        let its = Arc::downgrade(&live);
        let wanted = Listening::start(move || {
            if let Some(live) = its.upgrade() {
                live.tell_all(|host| host.gone("the host takes the function back"));
            }
        });
        let wanted = wanted.map_err(|error| host("interrupts", error))?;
        let listened = live.controller.function().on_wanted_back(wanted.fd());
        listened.map_err(|error| host("interrupts", error))?;
        // It was not set before.
        let _ = live.wanted.set(wanted);
        let (its, bell) = (Arc::downgrade(&live), Arc::clone(&live.bell));
        let thread = std::thread::Builder::new().name("rw-nvme".to_owned());
        thread.spawn(move || tend(&its, &bell)).map_err(|error| host("a thread", error))?;
        Ok(live)
    }

    /// Ticks since it was opened, as its thread counts them.
    #[inline]
    pub(super) fn clock(&self) -> u32 {
        self.clock.load(Ordering::Relaxed)
    }

    /// How often it was reset.
    #[inline]
    pub(super) fn generation(&self) -> u32 {
        // Acquire: pairs with the Release in `recover`.
        self.generation.load(Ordering::Acquire)
    }

    /// It is gone, or never works again, and reaches no memory any more.
    #[inline]
    pub(super) fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Acquire)
    }

    /// A device stands on it from now on.
    pub(super) fn join(&self, member: &Arc<Member>) {
        let mut members = lock(&self.members);
        members.retain(|member| member.strong_count() > 0);
        members.push(Arc::downgrade(member));
    }

    /// A seat for a new pair of so many entries, which comes with it.
    pub(super) fn seat(&self, entries: u16) -> Result<(Arc<Seat>, QueuePair), NvmeFault> {
        if self.is_dead() {
            return Err(NvmeFault::Gone);
        }
        let wake = EventFd::new().map_err(|error| NvmeFault::Host(format!("a descriptor: {error}")))?;
        let (mut generation, vectors) = (self.generation(), self.controller.function().vectors());
        let pair = match self.controller.make_pair(entries, vectors) {
            // It was waited for in vain: what works is to go on, too.
            Err(NvmeFault::Late { .. } | NvmeFault::Failed) => {
                self.recover(generation)?;
                generation = self.generation();
                self.controller.make_pair(entries, vectors)
            }
            pair => pair,
        }?;
        let seat = Arc::new(Seat {
            state: AtomicU8::new(HELD),
            pair: Mutex::new(None),
            generation: AtomicU32::new(generation),
            abort: AtomicU32::new(0),
            wake: Arc::new(wake),
            is_busy: AtomicBool::new(false),
            wants_interrupts: AtomicBool::new(false),
            interrupts: AtomicBool::new(false),
            vector: Some(pair.id()).filter(|id| *id < vectors),
        });
        let mut seats = lock(&self.seats);
        seats.retain(|seat| seat.strong_count() > 0);
        seats.push(Arc::downgrade(&seat));
        Ok((seat, pair))
    }

    /// A queue goes, and gives its pair back, unless the seat has it. Once this returns, the controller touches no memory for it.
    /// Called by who may wait.
    pub(super) fn leave(&self, seat: &Seat, pair: Option<QueuePair>) {
        let mut handed_over = lock(&seat.pair);
        let Some(pair) = pair.or_else(|| handed_over.take()) else { return };
        seat.state.store(HELD, Ordering::Release);
        Counts::raise(&self.counts.strays, pair.strays().total());
        if seat.interrupts.load(Ordering::Relaxed)
            && let Some(vector) = seat.vector
        {
            let _ = self.controller.function().bind(vector, None);
        }
        let generation = self.generation();
        if !self.is_dead() && self.controller.delete_pair(&pair).is_err() && self.recover(generation).is_ok()
        {
            // It has no pairs any more; the number is free.
            let _ = self.controller.delete_pair(&pair);
        }
    }

    /// A part of what the controller reaches, of at least so many bytes, for one device. None: there is none.
    pub(super) fn reserve(self: &Arc<Live>, bytes: u64) -> Option<Reserved> {
        let ranges = self.controller.function().dma().ranges();
        let mut windows = lock(&self.windows);
        let (base, size) = sizes(bytes).into_iter().find_map(|size| {
            let ends = windows.iter().map(|(base, size)| base + size);
            let mut starts: Vec<u64> = ends.chain([0]).collect();
            starts.extend(ranges.iter().map(|range| range.start().next_multiple_of(WINDOW_STEP)));
            starts.sort_unstable();
            let found = starts.into_iter().find(|base| self.is_room(&windows, &ranges, *base, size));
            found.map(|base| (base, size))
        })?;
        windows.push((base, size));
        Some(Reserved { live: Arc::clone(self), base, size })
    }

    /// These addresses can be a window beside these others.
    fn is_room(&self, others: &[(u64, u64)], ranges: &[RangeInclusive<u64>], base: u64, size: u64) -> bool {
        let Some(end) = base.checked_add(size).filter(|end| *end <= self.guest) else { return false };
        // A guest's own hole is where ours is, if its memory is where it has it itself.
        let is_whole =
            base == 0 || ranges.iter().any(|range| range.contains(&base) && range.contains(&(end - 1)));
        is_whole && others.iter().all(|(other, size)| end <= *other || other + size <= base)
    }

    fn tell_all(&self, tell: impl Fn(&DeviceHost)) {
        for member in self.members() {
            tell(&member.host);
        }
    }

    fn members(&self) -> Vec<Arc<Member>> {
        lock(&self.members).iter().filter_map(Weak::upgrade).collect()
    }

    fn seats(&self) -> Vec<Arc<Seat>> {
        lock(&self.seats).iter().filter_map(Weak::upgrade).collect()
    }

    /// Resets the controller, unless it was since that generation. Once this returns Ok there are no pairs, until they are made.
    fn recover(&self, generation: u32) -> Result<(), NvmeFault> {
        let _recovery = lock(&self.recovery);
        if self.is_dead() {
            return Err(NvmeFault::Gone);
        }
        if self.generation() != generation {
            return Ok(());
        }
        Counts::add(&self.counts.resets);
        let function = self.controller.function();
        let reset = self.controller.reset().or_else(|fault| match fault {
            NvmeFault::Gone | NvmeFault::Offline => Err(fault),
            fault => {
                function.reset().map_err(|_| fault)?;
                let again = enable_vectors(&**function).and_then(|()| match self.wanted.get() {
                    Some(wanted) => function.on_wanted_back(wanted.fd()),
                    None => Ok(()),
                });
                again.map_err(|error| NvmeFault::Host(format!("interrupts: {error}")))?;
                for seat in self.seats() {
                    seat.interrupts.store(false, Ordering::Relaxed);
                }
                self.controller.reset()
            }
        });
        match reset {
            Ok(()) => {
                // Release: pairs with the Acquire in `generation`; there are no pairs of before.
                self.generation.store(generation.wrapping_add(1), Ordering::Release);
                self.seats().iter().for_each(|seat| {
                    seat.wake.signal();
                });
                Ok(())
            }
            Err(fault) => {
                self.die(&fault);
                Err(fault)
            }
        }
    }

    /// It is of no use any more. It reaches no memory from now on.
    fn die(&self, fault: &NvmeFault) {
        self.controller.cut_off();
        // Release: what is seen to be dead reaches no memory.
        self.is_dead.store(true, Ordering::Release);
        self.tell_all(|host| host.gone(fault.to_string()));
        self.seats().iter().for_each(|seat| {
            seat.wake.signal();
        });
    }

    /// What has to be done now and then, and when a seat wants something.
    fn tend(&self, ticks: u32) {
        self.clock.store(ticks, Ordering::Relaxed);
        if self.is_dead() {
            return;
        }
        let generation = self.generation();
        match self.controller.check() {
            Ok(()) => {}
            Err(NvmeFault::Failed) => drop(self.recover(generation)),
            Err(fault) => return self.die(&fault),
        }
        for seat in self.seats() {
            self.serve(&seat);
        }
    }

    /// Does what a seat wants.
    fn serve(&self, seat: &Seat) {
        let abort = seat.abort.swap(0, Ordering::Acquire);
        if abort != 0 {
            Counts::add(&self.counts.aborts);
            // What comes of it, the command's completion tells; if there is none, the pair is made anew.
            let _ = self.controller.abort((abort >> 16) as u16, abort as u16);
        }
        if seat.wants_interrupts.swap(false, Ordering::Acquire)
            && let Some(vector) = seat.vector
            && self.controller.function().bind(vector, Some(seat.wake.as_fd())).is_ok()
        {
            seat.interrupts.store(true, Ordering::Release);
            // What came before is found by looking.
            seat.wake.signal();
        }
        if seat.state.load(Ordering::Acquire) != WANTED {
            return;
        }
        let mut handed_over = lock(&seat.pair);
        let Some(pair) = handed_over.as_mut() else { return };
        let generation = self.generation();
        Counts::add(&self.counts.renewals);
        let vectors = self.controller.function().vectors();
        let made = self.controller.make_anew(pair, vectors).or_else(|_| {
            self.recover(generation)?;
            self.controller.make_anew(pair, vectors)
        });
        // Who is told finds it free.
        drop(handed_over);
        match made {
            Ok(()) => {
                seat.generation.store(self.generation(), Ordering::Relaxed);
                // Release: the pair, and its generation, are there.
                seat.state.store(READY, Ordering::Release);
                seat.wake.signal();
            }
            Err(_) if self.is_dead() => {}
            Err(fault) => self.die(&fault),
        }
    }

    /// Looks for namespaces that changed, and wakes pumps that wait for commands which may never end.
    fn look(&self) {
        for seat in self.seats() {
            if seat.is_busy.load(Ordering::Relaxed) {
                seat.wake.signal();
            }
        }
        if self.is_dead()
            || !self.controller.info().tells_changes
            || !matches!(self.controller.has_changed(), Ok(true))
        {
            return;
        }
        for member in self.members() {
            match self.controller.namespace(member.namespace) {
                Ok(info) if info.block() == member.block => {
                    if member.bytes.swap(info.bytes(), Ordering::Relaxed) != info.bytes() {
                        member.host.config_changed();
                    }
                }
                Ok(info) => {
                    let why =
                        format!("namespace {} was formatted to blocks of {} bytes", info.id, info.block());
                    member.host.gone(why);
                }
                Err(fault @ NvmeFault::NotOne(_)) => member.host.gone(fault.to_string()),
                // Tried again when it tells of the next change; what is the matter with it is seen elsewhere.
                Err(_) => {}
            }
        }
    }
}

impl Member {
    pub(super) fn new(host: DeviceHost, info: &NamespaceInfo) -> Member {
        Member { host, namespace: info.id, bytes: AtomicU64::new(info.bytes()), block: info.block() }
    }
}

impl Seat {
    /// Asks that a command be aborted. One at a time; for the others it is asked again.
    #[inline]
    pub(super) fn ask_to_abort(&self, live: &Live, pair: u16, command: u16) {
        self.abort.store(u32::from(pair) << 16 | u32::from(command), Ordering::Release);
        live.bell.signal();
    }

    /// Hands the pair over, to be made anew. The pair, if it cannot be now.
    #[inline]
    pub(super) fn hand_over(&self, live: &Live, pair: QueuePair) -> Option<QueuePair> {
        let Ok(mut place) = self.pair.try_lock() else { return Some(pair) };
        *place = Some(pair);
        drop(place);
        self.state.store(WANTED, Ordering::Release);
        live.bell.signal();
        None
    }

    /// The pair was made anew.
    #[inline]
    pub(super) fn is_ready(&self) -> bool {
        self.state.load(Ordering::Acquire) == READY
    }

    /// Takes the pair back, if it was made anew, with its generation.
    #[inline]
    pub(super) fn take_back(&self) -> Option<(QueuePair, u32)> {
        if !self.is_ready() {
            return None;
        }
        let pair = self.pair.try_lock().ok()?.take()?;
        self.state.store(HELD, Ordering::Release);
        Some((pair, self.generation()))
    }

    /// With which generation its pair was made.
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Its completions interrupt. Asked for the first time, they will soon.
    #[inline]
    pub(super) fn interrupts(&self, live: &Live) -> bool {
        if self.interrupts.load(Ordering::Acquire) {
            return true;
        }
        if self.vector.is_some() && !self.wants_interrupts.swap(true, Ordering::Release) {
            live.bell.signal();
        }
        false
    }
}

/// A device's part of what the controller reaches, with its guest's memory. Its queues hold it, too: until the last of them has left
/// its pair, nothing is unmapped, and the addresses are nobody else's.
pub(super) struct Place {
    // In this order: the window is let go of before its addresses are, and the controller last.
    pub(super) window: Window,
    reserved: Reserved,
}

impl Place {
    /// With nothing mapped.
    pub(super) fn new(reserved: Reserved) -> Place {
        let space = reserved.live.controller.function().dma();
        Place { window: Window::new(space, reserved.base, reserved.size), reserved }
    }

    /// Where the controller has the guest's memory: this before each address.
    pub(super) fn base(&self) -> u64 {
        self.reserved.base
    }

    /// Has room for at least so many bytes from now on, with all where it is. False: there are others behind it.
    pub(super) fn grow(&mut self, bytes: u64) -> bool {
        let grown = self.reserved.grow(bytes);
        self.window.grow(self.reserved.size);
        grown
    }
}

/// The addresses of a [`Place`].
pub(super) struct Reserved {
    live: Arc<Live>,
    base: u64,
    size: u64,
}

impl Reserved {
    fn grow(&mut self, bytes: u64) -> bool {
        if bytes <= self.size {
            return true;
        }
        let ranges = self.live.controller.function().dma().ranges();
        let mut windows = lock(&self.live.windows);
        let others: Vec<(u64, u64)> =
            windows.iter().copied().filter(|(base, _)| *base != self.base).collect();
        let size =
            sizes(bytes).into_iter().find(|size| self.live.is_room(&others, &ranges, self.base, *size));
        let Some(size) = size else { return false };
        windows.retain(|(base, _)| *base != self.base);
        windows.push((self.base, size));
        self.size = size;
        true
    }
}

/// Bytes of a window for a guest whose memory ends so far, the best first.
fn sizes(bytes: u64) -> [u64; 2] {
    let exact = bytes.max(1).checked_next_multiple_of(WINDOW_STEP).unwrap_or(u64::MAX);
    [exact.saturating_mul(2).max(LEAST_WINDOW), exact]
}

impl Drop for Reserved {
    fn drop(&mut self) {
        lock(&self.live.windows).retain(|(base, _)| *base != self.base);
    }
}

/// All vectors are there, and bound to nobody: a controller's queues interrupt by those alone that are there when it begins.
fn enable_vectors(function: &dyn Function) -> io::Result<()> {
    if function.vectors() > 0 { function.bind(0, None) } else { Ok(()) }
}

/// Tends a controller until it is closed.
fn tend(live: &Weak<Live>, bell: &EventFd) {
    let (begun, mut looked) = (Instant::now(), 0);
    loop {
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(TICK.subsec_nanos()) };
        let _ = poll(&mut [PollFd::new(bell, PollFlags::IN)], Some(&timeout));
        bell.clear();
        let Some(live) = live.upgrade() else { return };
        let ticks = (begun.elapsed().as_millis() / TICK.as_millis()) as u32;
        live.tend(ticks);
        if ticks.wrapping_sub(looked) >= LOOK_TICKS {
            looked = ticks;
            live.look();
        }
    }
}

/// Held for an assignment, or for a few commands, by threads that may wait.
fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often a controller is looked at.
const TICK: Duration = Duration::from_millis(200);
/// How often what it tells is looked for, in ticks.
const LOOK_TICKS: u32 = 5;
/// Windows begin at multiples of this.
const WINDOW_STEP: u64 = 1 << 30;
/// A window has at least so many bytes, where there is room.
const LEAST_WINDOW: u64 = 1 << 36;
