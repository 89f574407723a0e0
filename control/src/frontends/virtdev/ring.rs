//! One ring of a session: what the front-end said of it, and whether that makes a queue.

use std::sync::Arc;
use std::time::Instant;

use ringway_pmd::notify::{CallFd, EventFd};
use ringway_pmd::vdpa::FaultReporter;
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::layout::Areas;
use ringway_ring::position::{Position, PositionSlot};
use ringway_ring::queue::{Format, QueueConfig, RingSize};
use ringway_ring::resume;

use crate::frontends::life::RingLife;

/// How the driver's kicks come.
#[derive(Debug, Clone)]
pub(super) enum Kick {
    /// Not at all: the ring is polled.
    Polled,
    /// By the front-end's eventfd.
    Fd(Arc<EventFd>),
    /// By word of the front-end, which the session turns into signals of its own eventfd.
    Told(Arc<EventFd>),
}

impl Kick {
    pub(super) fn source(&self) -> Option<Arc<EventFd>> {
        match self {
            Kick::Polled => None,
            Kick::Fd(fd) | Kick::Told(fd) => Some(Arc::clone(fd)),
        }
    }
}

/// How the driver is called.
#[derive(Debug, Clone)]
pub(super) enum Call {
    /// Not at all.
    Never,
    /// By word to the front-end, once there is a way to tell it.
    Unheard,
    /// By the front-end's eventfd.
    Fd(Arc<CallFd>),
    /// By word to the front-end: the pump signals our own eventfd, the session tells the front-end.
    Told(Arc<CallFd>),
}

impl Call {
    pub(super) fn sink(&self) -> Option<Arc<CallFd>> {
        match self {
            Call::Never | Call::Unheard => None,
            Call::Fd(fd) | Call::Told(fd) => Some(Arc::clone(fd)),
        }
    }
}

/// What is known of a ring: plain data, as a successor of this process would need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RingState {
    pub(super) life: RingLife,
    /// The front-end said whether it is enabled. Between the start and that word, a ring rests: what a guest left in
    /// it while nobody was connected is not to be dropped for that moment's sake.
    pub(super) enable_told: bool,
    /// Entries, as the front-end says.
    pub(super) size: Option<u32>,
    /// Where its areas are, by the front-end's addresses.
    pub(super) areas: Option<Areas<u64>>,
    /// Where it starts, as front-ends write it.
    pub(super) base: u32,
    /// It ran since it was started, so that its position is the kept one, not the base.
    pub(super) begun: bool,
    /// Its driver is to be called once, when it is served: a predecessor may have died between publishing and calling, and
    /// the driver may wait for that call, and make nothing available until then that would bring the next.
    pub(super) owes_call: bool,
    /// An error is yet to be told to the front-end's descriptor.
    pub(super) owes_error: bool,
    /// Its driver has posted a buffer since it was started.
    pub(super) posted: bool,
    /// Why it was stopped, or why it cannot run as it was set up; until it is started anew or set up rightly.
    pub(super) fault: Option<&'static str>,
}

/// The descriptors of a ring, beside its state.
#[derive(Debug)]
pub(super) struct RingFds {
    pub(super) kick: Kick,
    pub(super) call: Call,
    pub(super) err: Option<EventFd>,
}

/// One ring.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) state: RingState,
    pub(super) fds: RingFds,
    /// Where its position is kept, in a page that outlives this process.
    pub(super) slot: PositionSlot,
    /// It is part of a pump that was placed.
    pub(super) placed: bool,
    /// Told by the pump.
    pub(super) reporter: Option<FaultReporter>,
    /// Since when it lacks something.
    pub(super) lacks_since: Option<Instant>,
}

impl Ring {
    pub(super) fn new(slot: PositionSlot) -> Ring {
        Ring {
            state: RingState {
                life: RingLife::Stopped,
                enable_told: false,
                size: None,
                areas: None,
                base: 0,
                begun: false,
                owes_call: true,
                owes_error: false,
                posted: false,
                fault: None,
            },
            fds: RingFds { kick: Kick::Polled, call: Call::Never, err: None },
            slot,
            placed: false,
            reporter: None,
            lacks_since: None,
        }
    }

    /// Forgets what a reset undoes. Call and error descriptors stay: front-ends pass them long before they start a
    /// ring and do not repeat them.
    pub(super) fn reset(&mut self) {
        self.state.enable_told = false;
        self.state.size = None;
        self.state.areas = None;
        self.state.base = 0;
        self.fds.kick = Kick::Polled;
        self.state.fault = None;
        self.stop();
    }

    /// Forgets that it ran: the next start begins at the base.
    pub(super) fn stop(&mut self) {
        self.slot.clear();
        self.state.begun = false;
        self.state.owes_call = true;
        self.state.posted = false;
        self.reporter = None;
    }

    /// Whether its driver has posted a buffer since it was started. Once it has, it is not asked again.
    pub(super) fn has_posted(&mut self, format: Format, map: &GuestMap) -> bool {
        if !self.state.posted {
            let at = self.slot.load().unwrap_or(Position::START);
            self.state.posted = self.state.areas.is_none_or(|areas| resume::is_used(format, map, &areas, at));
        }
        self.state.posted
    }

    /// Where it stands, as front-ends write it: the used position, so that buffers taken but not filled are taken
    /// anew.
    pub(super) fn base_now(&self, format: Format) -> u32 {
        match self.slot.load() {
            Some(kept) if self.state.begun => resume::rewound(kept).to_vhost_base(format),
            _ => self.state.base,
        }
    }

    /// The queue that this ring makes; None if it is not set up completely or not started, an error's name if what it
    /// is set up to be cannot be.
    pub(super) fn configure(
        &self,
        features: Features,
        map: &Arc<GuestMap>,
        skip_used: bool,
    ) -> Result<Option<QueueConfig>, &'static str> {
        let (Some(size), Some(areas)) = (self.state.size, self.state.areas) else { return Ok(None) };
        if !self.state.life.is_started() {
            return Ok(None);
        }
        let format = format_of(features);
        let size = RingSize::new(format, size).map_err(|_| "ring_size")?;
        for area in areas.of(format, size) {
            // A ring area lies in one region.
            if area.address % area.align != 0 {
                return Err("ring_misaligned");
            }
            let slice = map.resolve_user(area.address, area.len).map_err(|_| "ring_unmapped")?;
            if !self.state.begun {
                // So that no worker waits for the kernel to make a page of the ring. Before Linux 5.14 it does.
                match slice.populate() {
                    Err(e) if e.kind() != std::io::ErrorKind::InvalidInput => return Err("ring_unmapped"),
                    _ => {}
                }
            }
        }
        let position = match self.slot.load() {
            Some(kept) if self.state.begun => resume::rewound(kept),
            kept => {
                let base = Position::from_vhost_base(format, self.state.base).map_err(|_| "ring_base")?;
                resume::decide(format, size, map, &areas, base, kept)
            }
        };
        if format == Format::Packed && position.avail_idx.max(position.used_idx) >= size.get() {
            return Err("ring_base");
        }
        Ok(Some(QueueConfig {
            size,
            features,
            map: Arc::clone(map),
            desc_user_addr: areas.desc,
            driver_user_addr: areas.driver,
            device_user_addr: areas.device,
            position,
            keeper: self.slot.clone(),
            skip_used,
        }))
    }
}

/// The layout that features ask for.
pub(super) fn format_of(features: Features) -> Format {
    if features.contains(Features::RING_PACKED) { Format::Packed } else { Format::Split }
}
