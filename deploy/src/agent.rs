//! What the harness and the agent in the guest say to each other.
//!
//! One JSON object a line, over the guest's second serial port: the harness sends a [`Command`], the agent answers with one
//! [`Reply`]. Once after each boot the agent says [`Ready`] unasked. A NIC is named by its Ethernet address, since its
//! kernel name may change whenever its driver is bound again.

use serde::{Deserialize, Serialize};

/// What the agent says first after each boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// The running kernel's release.
    pub ready: String,
}

/// What the harness asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Command {
    /// Answered with `null`, to know that the agent lives.
    Ping,
    /// The guest's virtio NICs that have a driver: a list of [`Nic`].
    Nics,
    /// The guest's virtio network devices, with or without a driver: a list of [`Device`].
    Devices,
    /// Sets the link up or down; promiscuous when up.
    Link {
        /// Which NIC.
        nic: String,
        /// Which way.
        up: bool,
    },
    /// Sets the MTU.
    Mtu {
        /// Which NIC.
        nic: String,
        /// In bytes, without the Ethernet header.
        mtu: u32,
    },
    /// Sets the number of queue pairs that the driver uses, as `ethtool -L` does.
    Channels {
        /// Which NIC.
        nic: String,
        /// How many.
        pairs: u32,
    },
    /// Sends frames and checks each that returns: [`FramesReport`].
    Frames(FramesOrder),
    /// Starts background traffic.
    TrafficStart(TrafficOrder),
    /// What the background traffic has seen so far: [`TrafficReport`].
    TrafficReport {
        /// Which NIC.
        nic: String,
    },
    /// Stops the background traffic, waits for what is still under way: [`TrafficReport`].
    TrafficStop {
        /// Which NIC.
        nic: String,
    },
    /// Takes the driver off a virtio device.
    Unbind {
        /// Its name on the virtio bus, `virtio0`.
        device: String,
    },
    /// Puts the driver onto a virtio device.
    Bind {
        /// Its name on the virtio bus, `virtio0`.
        device: String,
    },
    /// Runs a line in busybox's shell for 20 s at most: [`ShellReport`].
    Shell {
        /// The line.
        line: String,
    },
    /// Restarts the guest; there is no answer but the next [`Ready`].
    Reboot,
    /// Ends the guest; there is no answer but QEMU's end.
    PowerOff,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Done; the value is what the command promises.
    Ok(serde_json::Value),
    /// Not done, and why.
    Error(String),
}

/// A virtio NIC with its driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The kernel's name, `eth0`.
    pub name: String,
    /// The Ethernet address, which names it towards the agent.
    pub mac: String,
    /// Its name on the virtio bus.
    pub device: String,
    /// The negotiated virtio features, bit by bit.
    pub features: u64,
    /// In bytes, without the Ethernet header.
    pub mtu: u32,
    /// Whether the link is set up.
    pub up: bool,
    /// Whether the device says that the link is there.
    pub carrier: bool,
    /// Frames that the driver has received.
    pub rx_packets: u64,
    /// Frames that the driver has sent and got back from the device.
    pub tx_packets: u64,
    /// How many queue pairs the driver uses now.
    pub pairs: u32,
    /// How many it could use.
    pub max_pairs: u32,
}

impl Nic {
    /// Whether a feature bit was negotiated.
    pub fn has(&self, feature: u32) -> bool {
        self.features & (1 << feature) != 0
    }
}

/// A virtio network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its name on the virtio bus.
    pub device: String,
    /// Whether a driver is bound to it.
    pub bound: bool,
}

/// Which frames to send, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FramesOrder {
    /// Which NIC.
    pub nic: String,
    /// The first length, Ethernet header included.
    pub shortest: usize,
    /// The last length.
    pub longest: usize,
    /// How often the lengths are gone through.
    pub rounds: u32,
    /// How many frames may be out at a time.
    pub window: u32,
    /// Over how many UDP flows, and vCPUs, they are spread.
    pub flows: u16,
    /// Whether the wire swaps the two Ethernet addresses.
    pub swapped: bool,
    /// Without a returned frame for so long, those that are out are missing.
    pub quiet_ms: u64,
}

/// What became of the frames.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FramesReport {
    /// Given to the driver.
    pub sent: u64,
    /// Came back, intact, each counted once.
    pub received: u64,
    /// Came back again.
    pub duplicated: u64,
    /// Came back changed.
    pub corrupt: u64,
    /// Did not come back.
    pub missing: u64,
    /// The lengths of some that are missing or came back changed.
    pub bad_lengths: Vec<usize>,
    /// What was wrong with the first that came back changed.
    pub first_corruption: Option<String>,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// Background traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficOrder {
    /// Which NIC.
    pub nic: String,
    /// Every frame's length, Ethernet header included.
    pub length: usize,
    /// How many frames may be out at a time; those that are out without any return for 20 ms are given up.
    pub window: u32,
    /// Over how many UDP flows, and vCPUs, they are spread.
    pub flows: u16,
    /// Whether the wire swaps the two Ethernet addresses.
    pub swapped: bool,
}

/// What background traffic has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficReport {
    /// Given to the driver.
    pub sent: u64,
    /// The driver took no frame: link or queue not there.
    pub refused: u64,
    /// Came back, intact, each counted once.
    pub received: u64,
    /// Came back again.
    pub duplicated: u64,
    /// Came back changed.
    pub corrupt: u64,
    /// The longest time between two returned frames.
    pub longest_gap_ms: u64,
    /// Time since the last returned frame, or since the start.
    pub since_last_ms: u64,
    /// Time since the start.
    pub elapsed_ms: u64,
}

/// How a shell line ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShellReport {
    /// Its exit code, 128 + signal when one ended it.
    pub code: i32,
    /// What it wrote, both streams.
    pub output: String,
}
