//! A virtual function at work: opened, brought up with rings of our own, watched, and made quiet again.
//!
//! Owned by a session's thread. No interrupt tells of its PF, so the thread that listens to all functions looks at it now and then.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringway_engine::Watcher;

use crate::bus::pci::Function;
use crate::bus::pci::listener::Listening;
use crate::dma::{Division, OwnMemory, Window};
use crate::igb::mailbox::{Mailbox, News};
use crate::igb::registers::{Place, Registers, VfFault};
use crate::igb::rings::{BYTES, RxRing, TxRing};
use crate::net::frame::longest_frame;
use crate::net::igb_relay::{Alarm, HEADER_ROOM, Receiving, STAGE_BYTES, STAGES, Transmitting};
use crate::net::{Mac, NetConfig};
use crate::notify::EventFd;
use crate::vdpa::{DeviceHost, DriverError};

/// How a function stands with its PF, for who asks.
#[derive(Debug)]
pub(super) struct Standing {
    is_served: AtomicBool,
    /// How often it was lost while it worked.
    resets: AtomicU32,
}

impl Standing {
    pub(super) fn new(is_served: bool) -> Standing {
        Standing { is_served: AtomicBool::new(is_served), resets: AtomicU32::new(0) }
    }

    // Relaxed, all of them: nothing else is told by these.

    pub(super) fn word(&self) -> &'static str {
        if self.is_served.load(Ordering::Relaxed) { "serves" } else { "does not serve" }
    }

    pub(super) fn resets(&self) -> u32 {
        self.resets.load(Ordering::Relaxed)
    }
}

/// The function, open. It is let go after what keeps its registers mapped and its memory.
pub(super) struct Open {
    /// Looks at its PF.
    _looks: Listening,
    /// Told that the host wants it back.
    wanted: Listening,
    pub(super) port: Arc<Port>,
    /// Of the receive and of the transmit queue.
    wakes: [Arc<EventFd>; 2],
    pub(super) window: Window,
    /// Where its own memory is.
    own: u64,
    function: Arc<dyn Function>,
}

/// What the session and who looks now and then have in common.
pub(super) struct Port {
    registers: Registers,
    mailbox: Mutex<Mailbox>,
    /// It was brought up, and not down since.
    is_up: AtomicBool,
    /// It, or its PF, was reset underneath: it has to begin anew.
    is_lost: AtomicBool,
    had_link: AtomicBool,
    standing: Arc<Standing>,
    /// The session that has it, if it has queues in service or about to be.
    session: Mutex<Option<Arc<dyn Watcher>>>,
}

/// The function, at work.
pub(super) struct Up {
    pub(super) receive: Option<Receiving>,
    pub(super) transmit: Option<Transmitting>,
    /// Held for its rings and buffers.
    _memory: OwnMemory,
}

/// What it is to be.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) config: NetConfig,
    pub(super) vlans: &'a [u16],
}

impl Port {
    /// Held while the PF is asked for something: a second at most, by the session alone.
    pub(super) fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its link, as far as frames can pass.
    pub(super) fn has_link(&self) -> bool {
        self.registers.has_link()
    }

    /// It has to begin anew.
    pub(super) fn is_lost(&self) -> bool {
        // Acquire, with the Release where it is set: nothing of the time before is taken for news.
        self.is_lost.load(Ordering::Acquire)
    }

    /// Wakes this session when it has to begin anew, or may.
    pub(super) fn tell(&self, session: Option<Arc<dyn Watcher>>) {
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = session;
    }

    /// Looks at function and PF. Waits for nobody.
    fn look(&self, host: &DeviceHost) {
        // The session is just talking with it.
        let Ok(mut mailbox) = self.mailbox.try_lock() else { return };
        let is_up = self.is_up.load(Ordering::Acquire);
        let news = self.registers.check().and_then(|()| mailbox.news());
        let is_lost = match news {
            Err(fault) => return host.gone(fault.to_string()),
            Ok(news) => is_up && (news == News::Lost || !self.registers.works()),
        };
        if is_lost && !self.is_lost.swap(true, Ordering::Release) {
            self.standing.resets.fetch_add(1, Ordering::Relaxed);
            self.standing.is_served.store(false, Ordering::Relaxed);
        }
        drop(mailbox);
        let has_link = self.has_link();
        if self.had_link.swap(has_link, Ordering::Relaxed) != has_link {
            host.config_changed();
        }
        if !self.standing.is_served.load(Ordering::Relaxed)
            && let Some(session) = &*self.session.lock().unwrap_or_else(PoisonError::into_inner)
        {
            session.pump_ended();
        }
    }
}

impl Open {
    pub(super) fn new(
        function: Arc<dyn Function>,
        name: &str,
        standing: Arc<Standing>,
        host: &DeviceHost,
    ) -> Result<Open, DriverError> {
        let resource =
            |what: &str, source: io::Error| DriverError::Resource { what: format!("{name}: {what}"), source };
        let registers = Registers::find(&*function);
        let registers =
            registers.map_err(|fault| resource("registers", io::Error::other(fault.to_string())))?;
        let space = function.dma();
        let Some(Division { guest, own }) = Division::of(&*space) else {
            let why = "the IOMMU has no range of 1 GiB for our own rings";
            return Err(resource("addresses", io::Error::other(why)));
        };
        if function.vectors() < 2 {
            let why = format!("it has {}, and needs one for each of its queues", function.vectors());
            return Err(resource("interrupt vectors", io::Error::other(why)));
        }
        let port = Arc::new(Port {
            mailbox: Mutex::new(Mailbox::new(&registers)),
            is_up: AtomicBool::new(false),
            is_lost: AtomicBool::new(false),
            had_link: AtomicBool::new(registers.has_link()),
            standing,
            session: Mutex::new(None),
            registers,
        });
        let (told, its) = (host.clone(), Arc::clone(&port));
        let looks = Listening::every(LOOK, move || its.look(&told));
        let told = host.clone();
        let wanted = Listening::start(move || told.gone("the host takes the function back"));
        let listen = |error| resource("interrupts", error);
        let (looks, wanted) = (looks.map_err(listen)?, wanted.map_err(listen)?);
        let wake = || EventFd::new().map(Arc::new).map_err(listen);
        let wakes = [wake()?, wake()?];
        let window = Window::new(space, 0, guest);
        let open = Open { _looks: looks, wanted, port, wakes, window, own, function };
        open.bind().map_err(listen)?;
        Ok(open)
    }

    fn bind(&self) -> io::Result<()> {
        for (vector, wake) in (0u16..).zip(&self.wakes) {
            self.function.bind(vector, Some(wake.as_fd()))?;
        }
        self.function.on_wanted_back(self.wanted.fd())
    }

    /// Memory of our own that the function reaches, so far behind its rings.
    pub(super) fn own_memory(&self, at: u64, bytes: u64) -> io::Result<OwnMemory> {
        OwnMemory::new(self.function.dma(), self.own + at, bytes)
    }

    /// From a reset to its work, with rings that are begun and not in service.
    pub(super) fn bring_up(&self, wanted: &Wanted<'_>) -> Result<Up, VfFault> {
        let mut mailbox = self.port.mailbox();
        let up = self.begin(&mut mailbox, wanted);
        self.port.standing.is_served.store(up.is_ok(), Ordering::Relaxed);
        self.port.is_lost.store(false, Ordering::Release);
        self.port.is_up.store(up.is_ok(), Ordering::Release);
        up
    }

    fn begin(&self, mailbox: &mut Mailbox, wanted: &Wanted<'_>) -> Result<Up, VfFault> {
        let registers = &self.port.registers;
        let NetConfig { mac, mtu, .. } = wanted.config;
        if mailbox.is_pf_in_reset()? {
            return Err(VfFault::NoPf("it is in reset or down"));
        }
        registers.reset()?;
        match mailbox.reset()? {
            Some(fixed) if fixed != mac => return Err(VfFault::OtherMac { fixed, mac }),
            Some(_) => {}
            None => mailbox.set_mac(mac)?,
        }
        clear_filters(mailbox, mac)?;
        mailbox.set_groups(&groups(mac))?;
        match mailbox.set_all_groups(true) {
            // One that may not, receives the groups without which no guest is reached.
            Ok(()) | Err(VfFault::Refused(_)) => {}
            Err(fault) => return Err(fault),
        }
        let longest = longest_frame(mtu);
        if mtu > PLAIN_MTU {
            mailbox.set_longest_frame(longest + FCS)?;
        }
        for vlan in wanted.vlans {
            mailbox.add_vlan(*vlan)?;
        }
        if !wanted.vlans.is_empty() {
            // Linux's igb has tags taken out from the first VLAN on, and left in after this one.
            mailbox.add_vlan(0)?;
        }

        let kib = longest.div_ceil(1024);
        let memory = Layout::new(self.own, kib * 1024);
        let own = OwnMemory::new(self.function.dma(), self.own, memory.end - self.own);
        let own = own.map_err(|why| VfFault::Host(format!("no memory for its rings: {why}")))?;
        let map = own.map();
        registers.set_vectors();
        let receives = registers.start_receive(memory.rx, kib as u8);
        if let Err(fault) = receives.and_then(|()| registers.start_transmit(memory.tx)) {
            // Before the memory of its rings goes.
            let _ = registers.stop();
            return Err(fault);
        }
        let alarm = |vector: u8, wake: &Arc<EventFd>| Alarm {
            interrupt: registers.interrupt(vector),
            wake: Arc::clone(wake),
        };
        let [rx, tx] = &self.wakes;
        let receive = Receiving {
            ring: RxRing::new(registers, Arc::clone(map), memory.rx),
            alarm: alarm(0, rx),
            map: Arc::clone(map),
            buffers: memory.buffers,
            buffer_bytes: kib * 1024,
            own: mac,
            vlans: wanted.vlans.to_vec(),
        };
        let transmit = Transmitting {
            ring: TxRing::new(registers, Arc::clone(map), memory.tx),
            alarm: alarm(1, tx),
            map: Arc::clone(map),
            headers: memory.headers,
            stages: memory.stages,
        };
        Ok(Up { receive: Some(receive), transmit: Some(transmit), _memory: own })
    }

    /// It touches no memory once this returns Ok: by its own means, or else by the host's.
    pub(super) fn quiet(&self) -> Result<(), VfFault> {
        self.port.is_up.store(false, Ordering::Release);
        self.port.is_lost.store(false, Ordering::Release);
        // Nobody looks meanwhile.
        let _mailbox = self.port.mailbox();
        match self.port.registers.stop() {
            // It is not there to touch any.
            Ok(()) | Err(VfFault::Gone) => Ok(()),
            Err(late) => {
                self.function.reset().map_err(|_| late.clone())?;
                self.bind().map_err(|_| late)
            }
        }
    }
}

/// Filters of who had the function before: its PF keeps them over a reset. One that it does not trust has none.
fn clear_filters(mailbox: &mut Mailbox, mac: Mac) -> Result<(), VfFault> {
    match mailbox.clear_filters(mac) {
        Ok(()) | Err(VfFault::Refused(_)) => Ok(()),
        Err(fault) => Err(fault),
    }
}

/// Groups without which a guest is not reached: all hosts of IPv4 and IPv6, and those who ask for its IPv6 addresses that are made
/// of its own.
fn groups(mac: Mac) -> [Mac; 3] {
    let [_, _, _, d, e, f] = mac.0;
    [Mac([1, 0, 0x5e, 0, 0, 1]), Mac([0x33, 0x33, 0, 0, 0, 1]), Mac([0x33, 0x33, 0xff, d, e, f])]
}

/// Where things are in memory of our own.
struct Layout {
    rx: Place,
    tx: Place,
    headers: u64,
    stages: u64,
    buffers: u64,
    end: u64,
}

impl Layout {
    fn new(start: u64, buffer_bytes: u32) -> Layout {
        let ring = u64::from(RING) * BYTES;
        let (rx, tx) = (Place { at: start, size: RING }, Place { at: start + ring, size: RING });
        let headers = start + 2 * ring;
        let stages = headers + u64::from(RING) * HEADER_ROOM;
        let buffers = stages + u64::from(STAGES) * STAGE_BYTES;
        Layout { rx, tx, headers, stages, buffers, end: buffers + u64::from(RING) * u64::from(buffer_bytes) }
    }
}

/// Descriptors of our own rings on a function: as many frames are with it at most.
const RING: u16 = 512;
/// How often function and PF are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// The largest MTU whose frames are received without being asked for.
const PLAIN_MTU: u16 = 1500;
/// Bytes of a frame's checksum.
const FCS: u32 = 4;
