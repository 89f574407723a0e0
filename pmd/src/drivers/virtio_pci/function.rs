//! A virtio function at work: opened, brought up with rings of our own or a guest's, and made quiet again, whatever it works for.
//!
//! Owned by a session's thread. What the function tells unasked comes by the thread that listens to all functions, which also looks
//! at it now and then: who resets a function underneath (`echo 1 > …/reset`) is told of by no interrupt.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringway_engine::Watcher;
use ringway_ring::features::Features;
use ringway_ring::layout::Areas;
use ringway_ring::queue::{Format, RingSize};

use super::{RESET, Seen};
use crate::bus::pci::Function;
use crate::bus::pci::listener::Listening;
use crate::dma::{Division, OwnMemory, Window};
use crate::net::relay::FunctionQueue;
use crate::net::{F_CTRL_RX, F_CTRL_VQ, F_MQ, F_STATUS, Mac};
use crate::notify::{CallFd, EventFd};
use crate::vdpa::{DeviceHost, DriverError};
use crate::virtio::control::{ControlQueue, F_CTRL_MAC_ADDR};
use crate::virtio::migration::MigrationBlock;
use crate::virtio::rings::{OwnRing, OwnRings};
use crate::virtio::transport::{Doorbell, FunctionFault, QueueSetup, Transport};

/// The function, open. It is let go after what keeps its registers mapped and its memory.
pub(super) struct Open {
    /// Has it looked at.
    _looks: Listening,
    work: Arc<Work>,
    /// Told of its configuration.
    config: Listening,
    /// Told that the host wants it back.
    wanted: Listening,
    transport: Arc<Transport>,
    /// It did not reset itself in time when it was asked last.
    was_late: AtomicBool,
    /// By vector; the next one is its configuration's.
    interrupts: Vec<Arc<EventFd>>,
    pub(super) window: Window,
    /// By which its rings begin anywhere, if it has it and it is used.
    positions: Option<MigrationBlock>,
    /// Where its own rings are.
    own: u64,
    function: Arc<dyn Function>,
}

/// What the session and who looks now and then have in common.
#[derive(Default)]
struct Work {
    /// It was brought up, and not made quiet since.
    goes_on: AtomicBool,
    /// It was reset underneath.
    was_reset: AtomicBool,
    /// That it does not go on was told.
    is_told: AtomicBool,
    /// It did not answer when it was looked at last.
    is_silent: AtomicBool,
    /// It was found reset underneath, which may not be over, and was not brought up since.
    is_settling: AtomicBool,
    /// Woken then. None: the device is told that it needs a reset.
    session: Mutex<Option<Arc<dyn Watcher>>>,
}

impl Work {
    /// Looks whether it goes on.
    fn look(&self, transport: &Transport, host: &DeviceHost) {
        if !self.goes_on.load(Ordering::Acquire) {
            return;
        }
        let state = transport.works();
        let was_silent = self.is_silent.swap(state == Err(FunctionFault::Gone), Ordering::Relaxed);
        if state == Ok(true) || self.is_told.load(Ordering::Relaxed) {
            return;
        }
        match state {
            // Who makes it quiet says so first.
            Ok(_) if !self.goes_on.load(Ordering::Acquire) => {}
            // While somebody resets it, it answers nothing for some 100 ms.
            Err(FunctionFault::Gone) if !was_silent => {}
            Ok(_) => {
                self.is_told.store(true, Ordering::Relaxed);
                self.is_settling.store(true, Ordering::Relaxed);
                let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
                match session {
                    Some(session) => {
                        // Release: pairs with the Acquire in `Open::was_reset`.
                        self.was_reset.store(true, Ordering::Release);
                        session.pump_ended();
                    }
                    None => host.needs_reset("the function was reset by somebody else"),
                }
            }
            Err(fault) => {
                self.is_told.store(true, Ordering::Relaxed);
                match fault {
                    FunctionFault::NeedsReset => host.needs_reset(fault.to_string()),
                    fault => host.gone(fault.to_string()),
                }
            }
        }
    }
}

/// The function, at work.
pub(super) struct Up {
    pub(super) control: Option<ControlQueue>,
    /// By queue: what is not in service since it came up.
    pub(super) idle: Vec<Option<FunctionQueue>>,
    /// What it is driven with.
    pub(super) driven: Features,
    /// The host's doorbells of the guest's rings that it consumes, by queue.
    given: BTreeMap<u16, Doorbell>,
    /// Their memory goes last.
    rings: OwnRings,
}

impl Up {
    /// One queue can be reset while the others work.
    pub(super) fn can_reset_queues(&self) -> bool {
        self.driven.contains(Features::RING_RESET)
    }
}

/// A guest's ring as the function is to consume it.
pub(super) struct GuestRing {
    pub(super) size: RingSize,
    /// By the guest's addresses, which are the function's.
    pub(super) areas: Areas<u64>,
    pub(super) kick: Arc<EventFd>,
    pub(super) call: Option<Arc<CallFd>>,
    /// Where it begins: at 0, unless the function begins anywhere.
    pub(super) begin: u16,
}

/// What of it has begun.
struct Begun {
    control: Option<ControlQueue>,
    idle: Vec<Option<FunctionQueue>>,
    /// Of the guest's rings.
    doorbells: Vec<(u16, Doorbell)>,
}

impl Open {
    pub(super) fn new(
        function: Arc<dyn Function>,
        name: &str,
        pairs: u16,
        seen: &Seen,
        host: &DeviceHost,
    ) -> Result<Open, DriverError> {
        let resource =
            |what: &str, source: io::Error| DriverError::Resource { what: format!("{name}: {what}"), source };
        let transport = Transport::find(&*function);
        let transport =
            transport.map_err(|fault| resource("registers", io::Error::other(fault.to_string())))?;
        let transport = Arc::new(transport);
        let space = function.dma();
        let Some(Division { guest, own }) = Division::of(&*space) else {
            return Err(resource(
                "addresses",
                io::Error::other("the IOMMU has no range of 1 GiB for our own rings"),
            ));
        };
        // It may have fewer than when it was looked at.
        let lacks = super::enough_vectors(&*function);
        lacks.map_err(|fault| resource("interrupts", io::Error::other(fault.to_string())))?;
        let count = function.vectors();
        let (told, its) = (host.clone(), Arc::clone(&transport));
        let config = Listening::start(move || match its.check() {
            Ok(()) => told.config_changed(),
            Err(fault @ FunctionFault::Gone) => told.gone(fault.to_string()),
            Err(fault) => told.needs_reset(fault.to_string()),
        });
        let told = host.clone();
        let wanted = Listening::start(move || told.gone("the host takes the function back"));
        let listen = |error| resource("interrupts", error);
        let work = Arc::new(Work::default());
        let (its, told) = (Arc::clone(&work), host.clone());
        let registers = Arc::clone(&transport);
        let looks = Listening::every(LOOK, move || its.look(&registers, &told)).map_err(listen)?;
        let (config, wanted) = (config.map_err(listen)?, wanted.map_err(listen)?);
        let interrupts: io::Result<Vec<Arc<EventFd>>> =
            (0..(count - 1).min(pairs * 2)).map(|_| EventFd::new().map(Arc::new)).collect();
        let interrupts = interrupts.map_err(listen)?;
        let window = Window::new(space, 0, guest);
        let positions = MigrationBlock::find(&*function).filter(|_| seen.begins_anywhere);
        let open = Open {
            _looks: looks,
            work,
            config,
            wanted,
            transport,
            was_late: AtomicBool::new(false),
            interrupts,
            window,
            positions,
            own,
            function,
        };
        open.bind().map_err(listen)?;
        Ok(open)
    }

    /// Binds all interrupts: those of queues, and the next one for its configuration.
    fn bind(&self) -> io::Result<()> {
        for (vector, interrupt) in (0u16..).zip(&self.interrupts) {
            self.function.bind(vector, Some(interrupt.as_fd()))?;
        }
        self.function.bind(self.interrupts.len() as u16, Some(self.config.fd()))?;
        self.function.on_wanted_back(self.wanted.fd())
    }

    /// Entries of the rings of its first pair, as it came up last: the function says so, and may say otherwise the next time.
    pub(super) fn pair_entries(&self, driven: Features) -> Option<[u16; 2]> {
        let size = |queue| self.transport.queue_size(queue, format_of(driven), MAX_RING).map(RingSize::get);
        Some([size(0)?, size(1)?])
    }

    /// Memory of our own that the function reaches, so far behind its rings.
    pub(super) fn own_memory(&self, at: u64, bytes: u64) -> io::Result<OwnMemory> {
        OwnMemory::new(self.function.dma(), self.own + at, bytes)
    }

    /// From a reset to its work: it consumes these rings of the guest's; all others are our own, begun and none in service.
    pub(super) fn bring_up(
        &self,
        seen: &Seen,
        driven: Features,
        pairs: u16,
        mac: Option<Mac>,
        guests: &BTreeMap<u16, GuestRing>,
    ) -> Result<Up, FunctionFault> {
        let transport = &self.transport;
        self.rests();
        let patience = if self.work.is_settling.load(Ordering::Relaxed) { RESET } else { Duration::ZERO };
        let begun = Instant::now();
        while let Err(fault) = self.offers(driven) {
            if begun.elapsed() >= patience {
                return Err(fault);
            }
            std::thread::sleep(SETTLES);
        }
        self.work.is_settling.store(false, Ordering::Relaxed);
        transport.negotiate(driven)?;
        if let Some(positions) = &self.positions {
            positions.set_pairs(pairs);
        }
        let format = format_of(driven);
        let control = driven
            .contains(F_CTRL_VQ)
            .then(|| if driven.contains(F_MQ) { seen.numbered_pairs * 2 } else { 2 });
        let numbers: Vec<u16> = (0..pairs * 2).chain(control).collect();
        let size = |queue: &u16| {
            let size = transport.queue_size(*queue, format, MAX_RING);
            size.ok_or_else(|| FunctionFault::NotVirtio(format!("queue {queue} has no legal size")))
        };
        let sizes = numbers.iter().map(size).collect::<Result<Vec<RingSize>, FunctionFault>>()?;
        let rings = OwnRings::new(self.function.dma(), self.own, driven, &sizes);
        let rings = rings.map_err(|why| FunctionFault::Host(format!("no memory for its rings: {why}")))?;
        let begun = self.begin(&rings, &numbers, control, guests).and_then(|mut begun| {
            begun.control.as_mut().map_or(Ok(()), |control| set_receiving(control, driven, mac))?;
            Ok(begun)
        });
        let mut given = BTreeMap::new();
        let begun = begun.and_then(|begun| {
            for (queue, doorbell) in &begun.doorbells {
                let Some(guest) = guests.get(queue) else { continue };
                given.insert(*queue, doorbell.clone());
                self.answer_kicks(doorbell, guest)?;
            }
            Ok(begun)
        });
        if begun.is_err() {
            self.silence(&mut given);
            // Before the memory of its rings goes.
            self.quiet(RESET)?;
        }
        let Begun { control, idle, .. } = begun?;
        self.work.goes_on.store(true, Ordering::Release);
        Ok(Up { control, idle, driven, given, rings })
    }

    /// Resets it: it offers then all that it is to be driven with.
    fn offers(&self, driven: Features) -> Result<(), FunctionFault> {
        self.reset(RESET)?;
        match driven.without(self.transport.features()) {
            Features::NONE => Ok(()),
            missing => Err(FunctionFault::Refused(format!("{missing:?}, which it offered before"))),
        }
    }

    /// Gives the function its rings, all of them begun, and has it work.
    fn begin(
        &self,
        rings: &OwnRings,
        numbers: &[u16],
        control: Option<u16>,
        guests: &BTreeMap<u16, GuestRing>,
    ) -> Result<Begun, FunctionFault> {
        let transport = &self.transport;
        transport.set_config_vector(self.interrupts.len() as u16)?;
        let mut begun = Begun { control: None, idle: Vec::new(), doorbells: Vec::new() };
        for (at, number) in numbers.iter().enumerate() {
            if Some(*number) == control {
                let (ring, size, areas) = own_ring(rings, at)?;
                let doorbell = transport.enable(*number, &QueueSetup { size, areas, vector: None })?;
                begun.control = Some(ControlQueue::new(ring, doorbell, rings.spare()));
            } else if let Some(guest) = guests.get(number) {
                begun.doorbells.push((*number, self.hand_over(*number, guest)?));
                begun.idle.push(None);
            } else {
                begun.idle.push(Some(self.begin_own(rings, *number)?));
            }
        }
        transport.start()?;
        Ok(begun)
    }

    /// Gives the function a queue on a ring of our own, begun.
    fn begin_own(&self, rings: &OwnRings, queue: u16) -> Result<FunctionQueue, FunctionFault> {
        let (ring, size, areas) = own_ring(rings, queue.into())?;
        let vector = usize::from(queue) % self.interrupts.len().max(1);
        let interrupt = self.interrupts.get(vector).map(Arc::clone);
        let interrupt = interrupt.ok_or_else(|| FunctionFault::Host("it has no interrupts".to_owned()))?;
        self.begin_at(queue, 0);
        // Whatever it was bound to before: nobody else is to hear of our own ring.
        let bound = self.function.bind(vector as u16, Some(interrupt.as_fd()));
        bound.map_err(|error| FunctionFault::Host(format!("interrupt vector {vector}: {error}")))?;
        let doorbell =
            self.transport.enable(queue, &QueueSetup { size, areas, vector: Some(vector as u16) })?;
        Ok(FunctionQueue { ring, size: size.get(), doorbell, interrupt })
    }

    /// Gives the function a queue on a guest's ring, whose interrupt goes to the guest.
    fn hand_over(&self, queue: u16, guest: &GuestRing) -> Result<Doorbell, FunctionFault> {
        self.bind_call(queue, guest.call.as_deref())?;
        let GuestRing { size, areas, begin, .. } = *guest;
        self.begin_at(queue, begin);
        self.transport.enable(queue, &QueueSetup { size, areas, vector: Some(queue) })
    }

    /// Where a queue begins that is enabled next.
    fn begin_at(&self, queue: u16, index: u16) {
        if let Some(positions) = &self.positions {
            positions.set_position(queue, index, index);
        }
    }

    /// From now on the function is told of the guest's kicks, and now of what the guest has made available before.
    fn answer_kicks(&self, doorbell: &Doorbell, guest: &GuestRing) -> Result<(), FunctionFault> {
        self.bind_kick(doorbell, Some(&guest.kick))?;
        doorbell.ring();
        Ok(())
    }

    fn bind_call(&self, queue: u16, call: Option<&CallFd>) -> Result<(), FunctionFault> {
        let bound = self.function.bind(queue, call.map(|call| call.event().as_fd()));
        bound.map_err(|error| FunctionFault::Host(format!("interrupt vector {queue}: {error}")))
    }

    fn bind_kick(&self, doorbell: &Doorbell, kick: Option<&EventFd>) -> Result<(), FunctionFault> {
        let at = doorbell.at();
        let bound = self.function.bind_doorbell(&at, kick.map(|kick| kick.as_fd()));
        bound.map_err(|error| FunctionFault::Host(format!("doorbell of queue {}: {error}", at.value)))
    }

    /// The function is told of no guest's kicks any more, and calls none.
    fn silence(&self, given: &mut BTreeMap<u16, Doorbell>) {
        for (queue, doorbell) in std::mem::take(given) {
            // A host that does not take one back has lost the function.
            let _ = self.bind_kick(&doorbell, None);
            self.bind_own(queue);
        }
    }

    /// A queue's interrupt is ours again, as far as the host lets it.
    fn bind_own(&self, queue: u16) {
        if let Some(interrupt) = self.interrupts.get(usize::from(queue)) {
            let _ = self.function.bind(queue, Some(interrupt.as_fd()));
        }
    }

    /// Every queue of so many pairs can have an interrupt of its own.
    pub(super) fn has_vectors_for(&self, pairs: u16) -> bool {
        self.interrupts.len() >= usize::from(pairs) * 2
    }

    /// A queue of our own goes, with what the function has of it, and begins anew; the others work on. Only where
    /// [`Up::can_reset_queues`].
    ///
    /// # Errors
    /// The function may have it still.
    pub(super) fn begin_anew(&self, up: &mut Up, queue: u16) -> Result<(), FunctionFault> {
        self.transport.reset_queue(queue, RESET)?;
        let begun = self.begin_own(&up.rings, queue)?;
        if let Some(idle) = up.idle.get_mut(usize::from(queue)) {
            *idle = Some(begun);
        }
        Ok(())
    }

    /// The function consumes a guest's ring from now on, in place of our own, which is idle. Only where
    /// [`Up::can_reset_queues`].
    ///
    /// # Errors
    /// It does not; it may have something of it still.
    pub(super) fn give(&self, up: &mut Up, queue: u16, guest: &GuestRing) -> Result<(), FunctionFault> {
        if up.idle.get_mut(usize::from(queue)).and_then(Option::take).is_none() {
            return Err(FunctionFault::Host(format!("queue {queue} is in service")));
        }
        self.transport.reset_queue(queue, RESET)?;
        let doorbell = self.hand_over(queue, guest)?;
        up.given.insert(queue, doorbell.clone());
        self.answer_kicks(&doorbell, guest)
    }

    /// The function consumes a guest's ring no longer; our own is idle in its place. Only where [`Up::can_reset_queues`].
    ///
    /// # Errors
    /// It may have something of it still.
    pub(super) fn take_away(&self, up: &mut Up, queue: u16) -> Result<(), FunctionFault> {
        if let Some(doorbell) = up.given.get(&queue) {
            let _ = self.bind_kick(doorbell, None);
        }
        self.transport.reset_queue(queue, RESET)?;
        up.given.remove(&queue);
        // Its last interrupts were the guest's.
        self.bind_own(queue);
        let begun = self.begin_own(&up.rings, queue)?;
        if let Some(idle) = up.idle.get_mut(usize::from(queue)) {
            *idle = Some(begun);
        }
        Ok(())
    }

    /// A guest's ring that the function consumes has these descriptors from now on.
    ///
    /// # Errors
    /// The host's: it has its old ones, or none.
    pub(super) fn rebind(
        &self,
        up: &Up,
        queue: u16,
        kick: &EventFd,
        call: Option<&CallFd>,
    ) -> Result<(), FunctionFault> {
        let doorbell = up.given.get(&queue);
        let doorbell = doorbell.ok_or_else(|| FunctionFault::Host(format!("queue {queue} is not its")))?;
        self.bind_kick(doorbell, Some(kick))?;
        self.bind_call(queue, call)?;
        // What the old descriptor said last may have been heard by nobody.
        doorbell.ring();
        Ok(())
    }

    /// It touches no memory of a guest's, nor any ring, once this returns Ok.
    pub(super) fn bring_down(&self, up: &mut Up, within: Duration) -> Result<(), FunctionFault> {
        for doorbell in up.given.values() {
            let _ = self.bind_kick(doorbell, None);
        }
        let quiet = self.quiet(within);
        self.silence(&mut up.given);
        quiet
    }

    /// It touches no memory once this returns Ok: by its own reset, or else by the host's.
    pub(super) fn quiet(&self, within: Duration) -> Result<(), FunctionFault> {
        self.rests();
        match self.reset(within.min(RESET)) {
            // It is not there to touch any.
            Ok(()) | Err(FunctionFault::Gone) => Ok(()),
            Err(late) => {
                self.function.reset().map_err(|_| late.clone())?;
                self.bind().map_err(|_| late)
            }
        }
    }

    /// Resets it by its own means. One that was late is not waited for so long again: the host resets it, and whoever brings it
    /// up next would have a front-end wait for each of its queues.
    fn reset(&self, within: Duration) -> Result<(), FunctionFault> {
        let patience = if self.was_late.load(Ordering::Relaxed) { within.min(AGAIN) } else { within };
        let outcome = self.transport.reset(patience);
        self.was_late.store(matches!(outcome, Err(FunctionFault::Late { .. })), Ordering::Relaxed);
        outcome
    }

    /// Nobody looks at it meanwhile.
    fn rests(&self) {
        self.work.goes_on.store(false, Ordering::Release);
        self.work.was_reset.store(false, Ordering::Relaxed);
        self.work.is_told.store(false, Ordering::Relaxed);
        self.work.is_silent.store(false, Ordering::Relaxed);
    }

    /// Wakes this session when it was reset underneath.
    pub(super) fn tell(&self, session: Arc<dyn Watcher>) {
        *self.work.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
    }

    /// Somebody else reset it: it has to begin anew.
    pub(super) fn was_reset(&self) -> bool {
        self.work.was_reset.load(Ordering::Acquire)
    }

    /// Its link, as far as it says.
    pub(super) fn has_link(&self, seen: &Seen) -> bool {
        if !seen.offered.contains(F_STATUS) {
            return true;
        }
        self.transport.config().is_ok_and(|[_, _, _, _, _, _, status, _]: [u8; 8]| status & LINK_UP != 0)
    }
}

/// A ring of our own, begun, and where it is.
fn own_ring(rings: &OwnRings, at: usize) -> Result<(OwnRing, RingSize, Areas<u64>), FunctionFault> {
    let begun = rings.begin(at);
    let ring = begun.map_err(|why| FunctionFault::Host(format!("its rings cannot begin: {why}")))?;
    let laid_out = rings.layout(at);
    let (size, areas) = laid_out.ok_or_else(|| FunctionFault::Host(format!("it has no ring {at}")))?;
    Ok((ring, size, areas))
}

fn format_of(driven: Features) -> Format {
    if driven.contains(Features::RING_PACKED) { Format::Packed } else { Format::Split }
}

/// What the function receives: all that its wire has, since a guest tells its VMM alone what it wants.
fn set_receiving(
    control: &mut ControlQueue,
    driven: Features,
    mac: Option<Mac>,
) -> Result<(), FunctionFault> {
    if driven.contains(F_CTRL_RX) {
        // One that may not, receives what is for it.
        let _ = control.set_promiscuous(true, RESET);
    }
    match mac.filter(|_| driven.contains(F_CTRL_MAC_ADDR)) {
        Some(mac) => control.set_mac(mac, RESET),
        None => Ok(()),
    }
}

/// Entries of our own rings at most: as many frames are with the function at a time, either way.
const MAX_RING: u16 = 1024;
/// How long a function is waited for that was late with its last reset.
const AGAIN: Duration = Duration::from_millis(50);
/// One that somebody else resets is tried again after this.
const SETTLES: Duration = Duration::from_millis(10);
/// How often it is looked at while it is at work.
const LOOK: Duration = Duration::from_millis(200);
/// `VIRTIO_NET_S_LINK_UP`.
const LINK_UP: u8 = 1;
