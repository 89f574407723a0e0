//! A block port: a vhost-user-blk front-end with its own memory, over any back-end's socket.
//!
//! It does what a driver in a guest does, with the features that [`BlockOptions`] name, and those of the device's own that it
//! offers. When the back-end is lost, the port keeps its memory and its rings with all that is under way in them, and
//! connects to a successor. One thread owns it; its queues may be driven by others.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use ringway_ring::features::Features;
use ringway_ring::layout::Areas;
use ringway_ring::memory::{HostMemory, PageKind};
use ringway_ring::position::Position;
use ringway_ring::queue::{Format, RingSize};
use ringway_vhost_user::frontend::{Frontend, MemoryRegion, VringAddr};
use ringway_vhost_user::message::{Inflight, protocol};

use super::config::{
    BlockConfig, F_BLK_SIZE, F_CONFIG_WCE, F_DISCARD, F_FLUSH, F_MQ, F_RO, F_SEG_MAX, F_TOPOLOGY,
    F_WRITE_ZEROES,
};
use super::options::BlockOptions;
use super::plan::Plan;
use super::queue::{Queue, name};
use super::request::{ID_BYTES, Request, Status};
use crate::error::GuestError;

/// A port that is connected, with its rings started.
#[derive(Debug)]
pub struct Port {
    frontend: Frontend,
    config: BlockConfig,
    offered: Features,
    features: Features,
    options: BlockOptions,
    plan: Plan,
    queues: Vec<Queue>,
    /// What back-ends record there outlives them.
    inflight: Option<(Inflight, OwnedFd)>,
    /// The memory outlives the rings in it.
    memory: HostMemory,
}

impl Port {
    /// Connects to the device behind the socket and starts its rings.
    ///
    /// # Errors
    /// The back-end is not there, cannot do what is asked for, or there is no memory.
    pub fn connect(socket: &Path, options: BlockOptions) -> Result<Port, GuestError> {
        Port::start(Frontend::connect(socket, options.patience)?, options)
    }

    /// Starts the rings over a connection that stands.
    ///
    /// # Errors
    /// As [`Port::connect`].
    pub fn start(mut frontend: Frontend, options: BlockOptions) -> Result<Port, GuestError> {
        frontend.set_timeout(options.patience);
        let needed = needed(&options);
        let offered = greet(&mut frontend, needed, &options)?;
        let features = needed | (offered & TAKEN.without(options.decline));
        if frontend.protocol_features() & protocol::CONFIG == 0 {
            return Err(GuestError::Load {
                what: "the back-end does not tell its configuration space (CONFIG)".to_owned(),
            });
        }
        let config = BlockConfig::read(&frontend.config(0, BlockConfig::BYTES)?, offered);
        let queues = match frontend.protocol_features() & protocol::MQ {
            0 => 1,
            _ => frontend.queue_num()?,
        };
        if options.queues == 0 || u64::from(options.queues) > queues {
            return Err(GuestError::Queues { queues, wanted: options.queues });
        }
        let size = RingSize::new(options.format, options.queue_size.into())?;
        let plan = Plan::new(&options, size)?;
        let bytes = plan.total();
        let memory = match options.pages {
            Some(kind) => HostMemory::allocate_on(kind, "ringway-guest", bytes),
            None => HostMemory::allocate("ringway-guest", bytes),
        }
        .map_err(|source| GuestError::Memory { bytes, source })?;
        let map = Arc::new(memory.guest_map(GPA)?);
        let queues = (0..options.queues)
            .map(|index| Queue::new(&options, index, size, features, &map, &plan, GPA))
            .collect::<Result<Vec<Queue>, GuestError>>()?;
        let mut port =
            Port { frontend, config, offered, features, options, plan, queues, inflight: None, memory };
        port.introduce(|_| Position::START.to_vhost_base(options.format))?;
        port.queues.iter().for_each(Queue::kick);
        Ok(port)
    }

    /// Connects again after the back-end was lost, as a VMM does whose guest has gone on: with the rings as they are, and
    /// without asking for the configuration space.
    ///
    /// # Errors
    /// As [`Port::connect`].
    pub fn reconnect(&mut self, socket: &Path) -> Result<(), GuestError> {
        self.frontend = Frontend::connect(socket, self.options.patience)?;
        self.frontend.set_timeout(self.options.patience);
        greet(&mut self.frontend, self.features, &self.options)?;
        // QEMU's bases: it reads those of split rings in the rings, and repeats those of packed ones from their start.
        let format = self.options.format;
        self.introduce(|used_idx| match format {
            Format::Split => used_idx.into(),
            Format::Packed => Position::START.to_vhost_base(format),
        })?;
        self.queues.iter().for_each(Queue::kick);
        Ok(())
    }

    /// Tells the back-end everything, and starts every ring at the base that belongs to the used index in it.
    fn introduce(&mut self, base: impl Fn(u16) -> u32) -> Result<(), GuestError> {
        self.frontend.set_features(self.features)?;
        let region = MemoryRegion {
            gpa: GPA,
            size: self.memory.size(),
            user_addr: self.memory.address(),
            file_offset: 0,
            file: self.memory.file(),
        };
        if self.frontend.protocol_features() & protocol::INFLIGHT_SHMFD != 0 {
            // Asked for once, given at every start.
            if self.inflight.is_none() {
                self.inflight = self.frontend.inflight(self.options.queues, self.options.queue_size)?;
            }
            if let Some((region, file)) = &self.inflight {
                self.frontend.set_inflight(region, file.as_fd())?;
            }
        }
        let slots = self.frontend.protocol_features() & protocol::CONFIGURE_MEM_SLOTS != 0;
        if slots && !self.options.table {
            self.frontend.add_mem_reg(&region)?;
        } else {
            self.frontend.set_mem_table(&[region])?;
        }
        for queue in &self.queues {
            let Areas { desc, driver, device } = self.plan.ring(queue.index(), self.memory.address());
            let address = VringAddr { desc, driver, device, log: None };
            let (size, base) = (self.options.queue_size.into(), base(queue.used_idx()));
            let (kick, call) = (Some(queue.kick_fd()), Some(queue.call_fd()));
            self.frontend.start_ring(queue.index().into(), size, base, address, kick, call)?;
        }
        self.frontend.set_status(DRIVER_OK)?;
        for queue in &self.queues {
            self.frontend.enable_ring(queue.index().into(), true)?;
        }
        Ok(())
    }

    /// The region in which back-ends record what they have in flight, if there is one.
    pub fn inflight(&self) -> Option<(&Inflight, &OwnedFd)> {
        self.inflight.as_ref().map(|(region, file)| (region, file))
    }

    /// What the configuration space said when the port was started.
    pub fn config(&self) -> &BlockConfig {
        &self.config
    }

    /// Reads the configuration space again.
    ///
    /// # Errors
    /// The back-end did not answer.
    pub fn refresh_config(&mut self) -> Result<&BlockConfig, GuestError> {
        let bytes = self.frontend.config(0, BlockConfig::BYTES)?;
        self.config = BlockConfig::read(&bytes, self.offered);
        Ok(&self.config)
    }

    /// It may tell the device whether to cache writes.
    pub fn can_write_back(&self) -> bool {
        self.features.contains(F_FLUSH | F_CONFIG_WCE)
    }

    /// Has the device complete writes before they are durable, or not (virtio 1.3 §5.2.5).
    ///
    /// # Errors
    /// The back-end refused it, or did not answer.
    pub fn set_write_back(&mut self, on: bool) -> Result<(), GuestError> {
        self.frontend.set_config(BlockConfig::WRITEBACK_AT, &[on.into()], false)?;
        self.config.writeback = on.into();
        Ok(())
    }

    /// The features that it negotiated.
    pub fn features(&self) -> Features {
        self.features
    }

    /// What it was made with.
    pub fn options(&self) -> &BlockOptions {
        &self.options
    }

    /// The pages that its memory stands on.
    pub fn page_kind(&self) -> PageKind {
        self.memory.kind()
    }

    /// Its connection.
    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// Its queues, to be driven.
    pub fn queues_mut(&mut self) -> &mut [Queue] {
        &mut self.queues
    }

    /// Does one request on the first queue and waits for it: see [`Queue::perform`].
    ///
    /// # Errors
    /// As [`Queue::perform`].
    pub fn perform(&mut self, request: Request, data: &mut [u8]) -> Result<(Status, u32), GuestError> {
        let within = self.options.patience;
        match self.queues.first_mut() {
            Some(queue) => queue.perform(request, data, within),
            None => Err(GuestError::Queues { queues: 0, wanted: 1 }),
        }
    }

    /// The device's name, if it has one.
    ///
    /// # Errors
    /// As [`Queue::perform`].
    pub fn id(&mut self) -> Result<Option<String>, GuestError> {
        let mut bytes = [0; ID_BYTES as usize];
        let (status, _) = self.perform(Request::GET_ID, &mut bytes)?;
        Ok((status == Status::Ok).then(|| name(&bytes)))
    }

    /// Stops every ring in order and leaves.
    ///
    /// # Errors
    /// The back-end did not answer.
    pub fn stop(mut self) -> Result<(), GuestError> {
        for queue in 0..self.queues.len() as u32 {
            self.frontend.stop_ring(queue)?;
        }
        Ok(())
    }
}

/// The features that must be offered.
fn needed(options: &BlockOptions) -> Features {
    let mut features = Features::VERSION_1;
    if options.event_idx {
        features |= Features::EVENT_IDX;
    }
    if options.format == Format::Packed {
        features |= Features::RING_PACKED;
    }
    if options.indirect {
        features |= Features::INDIRECT_DESC;
    }
    features
}

/// Shakes hands; what the device offers, if that is all that is needed.
fn greet(frontend: &mut Frontend, needed: Features, options: &BlockOptions) -> Result<Features, GuestError> {
    let known = if options.inflight { protocol::KNOWN } else { protocol::OFFERED };
    let offered = frontend.handshake_with(known)?;
    if offered.contains(needed) {
        return Ok(offered);
    }
    Err(GuestError::Features { missing: needed.without(offered).0 })
}

/// What is taken of a device's own features if it is offered.
const TAKEN: Features = Features(
    F_SEG_MAX.0
        | F_RO.0
        | F_BLK_SIZE.0
        | F_FLUSH.0
        | F_TOPOLOGY.0
        | F_CONFIG_WCE.0
        | F_MQ.0
        | F_DISCARD.0
        | F_WRITE_ZEROES.0,
);

/// Where the guest's memory starts in its own physical addresses.
const GPA: u64 = 0x1_0000_0000;

/// `ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK` (virtio 1.3 §2.1).
const DRIVER_OK: u8 = 1 | 2 | 8 | 4;
