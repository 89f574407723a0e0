//! What a session tells control, whatever protocol its front-end speaks.

use std::fmt;
use std::sync::Arc;

use ringway_pmd::block::BlockConfig;
use ringway_pmd::net::NetConfig;
use ringway_pmd::vdpa::{ClassOps, Ended, NetdevChange, ServedBy, VdpaDevice};
use ringway_ring::features::Features;

/// A device's configuration by class, as control shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceConfig {
    /// Of a network device.
    Net(NetConfig),
    /// Of a block device.
    Block(BlockConfig),
}

impl DeviceConfig {
    /// A device's as it is now.
    pub fn of(device: &mut dyn VdpaDevice) -> DeviceConfig {
        match device.class() {
            ClassOps::Net(net) => DeviceConfig::Net(net.net_config()),
            ClassOps::Block(block) => DeviceConfig::Block(block.block_config()),
        }
    }

    /// Of a network device, if it is one.
    pub fn net(&self) -> Option<&NetConfig> {
        match self {
            DeviceConfig::Net(config) => Some(config),
            DeviceConfig::Block(_) => None,
        }
    }

    /// Of a block device, if it is one.
    pub fn block(&self) -> Option<&BlockConfig> {
        match self {
            DeviceConfig::Net(_) => None,
            DeviceConfig::Block(config) => Some(config),
        }
    }
}

/// State of one ring, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingReport {
    /// Which queue.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// Started by the front-end.
    pub started: bool,
    /// Enabled by the front-end.
    pub enabled: bool,
    /// The front-end kicks; false: it polls, and the core cannot sleep.
    pub kicks: bool,
    /// The name of the fault that stopped it, until it is started anew.
    pub fault: Option<&'static str>,
    /// A core serves it: it is started and enabled, and nothing that it needs is missing.
    pub runs: bool,
    /// What it lacks to be of use, though nothing is wrong with it.
    pub lacks: Option<Lack>,
    /// Who serves it.
    pub served_by: Option<ServedBy>,
}

impl RingReport {
    /// The core that serves it, if one does.
    pub fn core(&self) -> Option<usize> {
        self.served_by.and_then(ServedBy::core)
    }
}

/// What a started ring may lack, for its VMM's or its guest's part, without a fault of either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// The VMM shares no memory of its guest: it cannot run.
    Memory,
    /// The guest has posted no receive buffers since it was started: nothing can be delivered.
    Buffers,
}

impl Lack {
    /// As operators read it.
    pub fn what(self) -> &'static str {
        match self {
            Lack::Memory => "started, not run: no guest memory: the VMM shares none",
            Lack::Buffers => "no receive buffers posted yet",
        }
    }
    /// What to do.
    pub fn cure(self) -> &'static str {
        match self {
            Lack::Memory => {
                "QEMU: -object memory-backend-memfd,id=m,size=SIZE,share=on -machine memory-backend=m; libvirt: <memoryBacking><source type='memfd'/><access mode='shared'/>"
            }
            Lack::Buffers => {
                "bring the interface up in the guest; if it is up, the guest's memory is not shared (QEMU: share=on)"
            }
        }
    }
    /// The event that tells of it.
    pub fn event(self) -> &'static str {
        match self {
            Lack::Memory => "session.not_run",
            Lack::Buffers => "session.no_buffers",
        }
    }
}

/// What a session tells control.
pub enum Report {
    /// Features were agreed on.
    Negotiated {
        /// Without vhost-user's own bits.
        features: Features,
        /// Protocol features.
        protocol: u64,
    },
    /// The front-end set the virtio status (or a reset set it to 0).
    Status(u8),
    /// Rings started, stopped or changed: the whole set.
    Rings(Vec<RingReport>),
    /// What an operator is to know of how the rings are served.
    Note(Option<String>),
    /// A ring lacks something for long: told once a connection for each thing.
    Lacks {
        /// Which queue.
        queue: u16,
        /// What.
        lack: Lack,
    },
    /// The memory table changed.
    Memory {
        /// Regions.
        regions: usize,
        /// Their bytes.
        bytes: u64,
    },
    /// A ring broke the rules and was stopped.
    RingFault {
        /// Which queue.
        queue: u16,
        /// Its name.
        fault: &'static str,
    },
    /// The peer broke the protocol (counted by name); the session goes on, or `Ended` follows.
    PeerMisbehaved {
        /// Stable short name of the breach.
        what: &'static str,
        /// Details for people.
        detail: String,
    },
    /// This host lacked something that the session needed; the peer did nothing wrong. `Ended` follows.
    HostFailed {
        /// Stable short name.
        what: &'static str,
        /// Details for people.
        detail: String,
    },
    /// The device's configuration space is another.
    Config(DeviceConfig),
    /// What somebody changed of the kernel's interface: all that is changed now.
    Netdev(Vec<NetdevChange>),
    /// The front-end set the MTU.
    Mtu(u16),
    /// A pump was taken out, or could not be placed; its rings are stopped.
    PumpEnded {
        /// The group.
        group: u16,
        /// What happened.
        how: Ended,
    },
    /// The session is over: pumps retired, memory unmapped. The device comes back unless it was revoked.
    Ended {
        /// The device.
        device: Option<Box<dyn VdpaDevice>>,
        /// Why, for people.
        reason: String,
        /// The last request of the front-end, if there was one.
        last: Option<&'static str>,
    },
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Report::Negotiated { features, protocol } => {
                f.debug_struct("Negotiated").field("features", features).field("protocol", protocol).finish()
            }
            Report::Status(status) => f.debug_tuple("Status").field(status).finish(),
            Report::Rings(rings) => f.debug_tuple("Rings").field(rings).finish(),
            Report::Note(note) => f.debug_tuple("Note").field(note).finish(),
            Report::Lacks { queue, lack } => {
                f.debug_struct("Lacks").field("queue", queue).field("lack", lack).finish()
            }
            Report::Memory { regions, bytes } => {
                f.debug_struct("Memory").field("regions", regions).field("bytes", bytes).finish()
            }
            Report::RingFault { queue, fault } => {
                f.debug_struct("RingFault").field("queue", queue).field("fault", fault).finish()
            }
            Report::PeerMisbehaved { what, detail } => {
                f.debug_struct("PeerMisbehaved").field("what", what).field("detail", detail).finish()
            }
            Report::HostFailed { what, detail } => {
                f.debug_struct("HostFailed").field("what", what).field("detail", detail).finish()
            }
            Report::Config(config) => f.debug_tuple("Config").field(config).finish(),
            Report::Netdev(changes) => f.debug_tuple("Netdev").field(changes).finish(),
            Report::Mtu(mtu) => f.debug_tuple("Mtu").field(mtu).finish(),
            Report::PumpEnded { group, how } => {
                f.debug_struct("PumpEnded").field("group", group).field("how", how).finish()
            }
            Report::Ended { device, reason, last } => f
                .debug_struct("Ended")
                .field("device", &device.as_ref().map(|device| device.facts().class))
                .field("reason", reason)
                .field("last", last)
                .finish(),
        }
    }
}

/// Takes a session's reports; called with its number.
pub type Reporter = Arc<dyn Fn(u64, Report) + Send + Sync>;
