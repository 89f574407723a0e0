//! A virtio function at work: opened, brought up with rings of our own, and made quiet again, whatever it works for.
//!
//! Owned by a session's thread. What the function tells unasked comes by the thread that listens to all functions.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use ringway_ring::features::Features;
use ringway_ring::queue::{Format, RingSize};

use super::{RESET, Seen};
use crate::bus::pci::Function;
use crate::bus::pci::listener::Listening;
use crate::dma::{Division, OwnMemory, Window};
use crate::net::relay::FunctionQueue;
use crate::net::{F_CTRL_RX, F_CTRL_VQ, F_MQ, F_STATUS, Mac};
use crate::notify::EventFd;
use crate::vdpa::{DeviceHost, DriverError};
use crate::virtio::control::{ControlQueue, F_CTRL_MAC_ADDR};
use crate::virtio::rings::OwnRings;
use crate::virtio::transport::{FunctionFault, QueueSetup, Transport};

/// The function, open. It is let go after what keeps its registers mapped and its memory.
pub(super) struct Open {
    /// Told of its configuration.
    config: Listening,
    /// Told that the host wants it back.
    wanted: Listening,
    transport: Arc<Transport>,
    /// By vector; the next one is its configuration's.
    interrupts: Vec<Arc<EventFd>>,
    pub(super) window: Window,
    /// Where its own rings are.
    own: u64,
    function: Arc<dyn Function>,
}

/// The function, at work.
pub(super) struct Up {
    pub(super) control: Option<ControlQueue>,
    /// By queue: what is not in service since it came up.
    pub(super) idle: Vec<Option<FunctionQueue>>,
    /// Held for their memory, which goes last.
    _rings: OwnRings,
}

/// What of it has begun.
struct Begun {
    control: Option<ControlQueue>,
    idle: Vec<Option<FunctionQueue>>,
}

impl Open {
    pub(super) fn new(
        function: Arc<dyn Function>,
        name: &str,
        pairs: u16,
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
        let count = function.vectors();
        if count < 2 {
            let why = format!("it has {count}, and needs one for its queues and one for its configuration");
            return Err(resource("interrupt vectors", io::Error::other(why)));
        }
        let (told, its) = (host.clone(), Arc::clone(&transport));
        let config = Listening::start(move || match its.check() {
            Ok(()) => told.config_changed(),
            Err(fault @ FunctionFault::Gone) => told.gone(fault.to_string()),
            Err(fault) => told.needs_reset(fault.to_string()),
        });
        let told = host.clone();
        let wanted = Listening::start(move || told.gone("the host takes the function back"));
        let listen = |error| resource("interrupts", error);
        let (config, wanted) = (config.map_err(listen)?, wanted.map_err(listen)?);
        let interrupts: io::Result<Vec<Arc<EventFd>>> =
            (0..(count - 1).min(pairs * 2)).map(|_| EventFd::new().map(Arc::new)).collect();
        let interrupts = interrupts.map_err(listen)?;
        let window = Window::new(space, 0, guest);
        let open = Open { config, wanted, transport, interrupts, window, own, function };
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

    /// From a reset to its work, with all rings begun and none in service.
    pub(super) fn bring_up(
        &self,
        seen: &Seen,
        driven: Features,
        pairs: u16,
        mac: Option<Mac>,
    ) -> Result<Up, FunctionFault> {
        let transport = &self.transport;
        transport.reset(RESET)?;
        let missing = driven.without(transport.features());
        if missing != Features::NONE {
            return Err(FunctionFault::Refused(format!("{missing:?}, which it offered before")));
        }
        transport.negotiate(driven)?;
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
        let begun = self.begin(&rings, &numbers, control).and_then(|mut begun| {
            begun.control.as_mut().map_or(Ok(()), |control| set_receiving(control, driven, mac))?;
            Ok(begun)
        });
        if begun.is_err() {
            // Before the memory of its rings goes.
            let _ = transport.reset(RESET);
        }
        let Begun { control, idle } = begun?;
        Ok(Up { control, idle, _rings: rings })
    }

    /// Gives the function its rings, all of them begun, and has it work.
    fn begin(&self, rings: &OwnRings, numbers: &[u16], control: Option<u16>) -> Result<Begun, FunctionFault> {
        let transport = &self.transport;
        transport.set_config_vector(self.interrupts.len() as u16)?;
        let mut begun = Begun { control: None, idle: Vec::new() };
        for (at, number) in numbers.iter().enumerate() {
            let ring = rings
                .begin(at)
                .map_err(|why| FunctionFault::Host(format!("its rings cannot begin: {why}")))?;
            let Some((size, areas)) = rings.layout(at) else { continue };
            let is_control = Some(*number) == control;
            let vector = at % self.interrupts.len().max(1);
            let setup = QueueSetup { size, areas, vector: (!is_control).then_some(vector as u16) };
            let doorbell = transport.enable(*number, &setup)?;
            if is_control {
                begun.control = Some(ControlQueue::new(ring, doorbell, rings.spare()));
            } else if let Some(interrupt) = self.interrupts.get(vector).map(Arc::clone) {
                begun.idle.push(Some(FunctionQueue { ring, size: size.get(), doorbell, interrupt }));
            }
        }
        transport.start()?;
        Ok(begun)
    }

    /// It touches no memory once this returns Ok: by its own reset, or else by the host's.
    pub(super) fn quiet(&self, within: Duration) -> Result<(), FunctionFault> {
        match self.transport.reset(within.min(RESET)) {
            // It is not there to touch any.
            Ok(()) | Err(FunctionFault::Gone) => Ok(()),
            Err(late) => {
                self.function.reset().map_err(|_| late.clone())?;
                self.bind().map_err(|_| late)
            }
        }
    }

    /// Its link, as far as it says.
    pub(super) fn has_link(&self, seen: &Seen) -> bool {
        if !seen.offered.contains(F_STATUS) {
            return true;
        }
        self.transport.config().is_ok_and(|[_, _, _, _, _, _, status, _]: [u8; 8]| status & LINK_UP != 0)
    }
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
/// `VIRTIO_NET_S_LINK_UP`.
const LINK_UP: u8 = 1;
