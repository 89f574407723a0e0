//! What the harness and an agent say to each other: the one in a guest, or one in a network namespace of the host.
//!
//! One JSON object a line, over the guest's second serial port or the agent's standard streams: the harness sends a
//! [`Command`], the agent answers with one [`Reply`]. Once after each boot the agent says [`Ready`] unasked. A guest's NIC is
//! named by its Ethernet address, since its kernel name may change whenever its driver is bound again; the kernel's name does
//! as well where it is known to stay, as a TAP's.

use std::net::{IpAddr, SocketAddr};

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
    /// The Ethernet interfaces, so a guest's virtio NICs that have a driver: a list of [`Nic`].
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
    /// Gives a NIC an IP address, usable at once.
    Address {
        /// Which NIC.
        nic: String,
        /// The address and its prefix's length, `10.0.0.1/24` or `fd00::1/64`.
        address: String,
    },
    /// Turns one of the kernel's offloads on or off, as `ethtool -K` does.
    SetOffload {
        /// Which NIC.
        nic: String,
        /// Which of them.
        offload: Offload,
        /// Which way.
        on: bool,
    },
    /// Sends frames and checks each that returns: [`FramesReport`].
    Frames(FramesOrder),
    /// Sends frames with whatever addresses and awaits none: how many were sent.
    Cast(CastOrder),
    /// Sends ICMP echo requests of many sizes and checks each reply: [`EchoReport`].
    Echo(EchoOrder),
    /// Starts a pulse: an echo request every few milliseconds, in the background.
    PulseStart(PulseOrder),
    /// What a pulse has seen so far: [`TrafficReport`].
    PulseReport {
        /// To whom it goes.
        to: IpAddr,
    },
    /// Stops a pulse: [`TrafficReport`].
    PulseStop {
        /// To whom it goes.
        to: IpAddr,
    },
    /// Serves TCP transfers on a port of every address from now on.
    TcpServe {
        /// The port.
        port: u16,
    },
    /// Sends and fetches by TCP, both at once where both are asked for: [`TcpReport`].
    Tcp(TcpOrder),
    /// The transfers that the server on a port has ended since this was last asked: a list of [`TcpEnd`].
    TcpServed {
        /// The port.
        port: u16,
    },
    /// Receives the datagrams that come to a port of any address from now on.
    UdpReceive {
        /// The port.
        port: u16,
    },
    /// Sends numbered datagrams: [`UdpSent`].
    UdpSend(UdpOrder),
    /// What has come of a run of datagrams: [`UdpReceived`].
    UdpReceived {
        /// The port.
        port: u16,
        /// Whose.
        run: u32,
    },
    /// Carries out a command that takes long ([`Command::Echo`], [`Command::Tcp`], [`Command::UdpSend`]) in the background.
    Start {
        /// The name by which its end is awaited.
        job: String,
        /// The command.
        command: Box<Command>,
    },
    /// Waits for the end of a background command; answers what it would have answered.
    Finish {
        /// Its name.
        job: String,
    },
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
    /// Gives a controller of the kernel's an admin command without data: its result, a number.
    NvmeAdmin {
        /// The controller, `nvme0`.
        controller: String,
        /// Which command.
        opcode: u8,
        /// Its dwords 10 and 11.
        dwords: [u32; 2],
    },
    /// Runs a line in busybox's shell for 20 s at most: [`ShellReport`].
    Shell {
        /// The line.
        line: String,
    },
    /// Runs a program to its end: [`ShellReport`].
    Run {
        /// The program's path, and its words.
        words: Vec<String>,
        /// When it is killed.
        limit_ms: u64,
    },
    /// Starts a program in the background, its input a pipe, its output in a file.
    Launch {
        /// The name by which it is spoken of from now on.
        name: String,
        /// The program's path, and its words.
        words: Vec<String>,
    },
    /// Writes a line to the input of a program in the background.
    Tell {
        /// Its name.
        name: String,
        /// The line.
        line: String,
    },
    /// How a program in the background stands: [`ProgramReport`].
    Program {
        /// Its name.
        name: String,
    },
    /// Sends a signal to a program in the background.
    Signal {
        /// Its name.
        name: String,
        /// The signal's number.
        signal: i32,
    },
    /// Kills a program in the background, unless it has ended, and forgets it: [`ProgramReport`].
    End {
        /// Its name.
        name: String,
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

/// A NIC: of a guest a virtio one with its driver, in a namespace any Ethernet interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The kernel's name, `eth0`.
    pub name: String,
    /// The Ethernet address, which names it towards the agent.
    pub mac: String,
    /// Its name on the virtio bus; empty for an interface that is not there.
    pub device: String,
    /// The negotiated virtio features, bit by bit; none for an interface that has none.
    pub features: u64,
    /// The kernel's offloads that are on.
    pub offloads: Vec<Offload>,
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
    /// Received bytes, as the driver counts them.
    pub rx_bytes: u64,
    /// Sent bytes, as the driver counts them.
    pub tx_bytes: u64,
    /// Frames that were received and could not be kept.
    pub rx_dropped: u64,
    /// Frames that could not be sent.
    pub tx_dropped: u64,
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

/// One of the kernel's offloads, as `ethtool -k` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Offload {
    /// Received checksums are believed.
    RxChecksum,
    /// Checksums of what is sent are left to the device.
    TxChecksum,
    /// Frames may lie in pieces.
    ScatterGather,
    /// TCP is cut into segments by the device.
    Tso,
    /// What the device cannot cut is cut late, by the kernel.
    Gso,
    /// Received segments are joined by the kernel.
    Gro,
}

impl Offload {
    /// All of them.
    pub const ALL: [Offload; 6] = [
        Offload::RxChecksum,
        Offload::TxChecksum,
        Offload::ScatterGather,
        Offload::Tso,
        Offload::Gso,
        Offload::Gro,
    ];
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

/// Frames to send as they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CastOrder {
    /// From which NIC.
    pub nic: String,
    /// The frames' destination.
    pub destination: String,
    /// The frames' source, which need not be the NIC's.
    pub source: String,
    /// Every frame's length, Ethernet header included.
    pub length: usize,
    /// How many.
    pub frames: u64,
}

/// Which echo requests to send, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EchoOrder {
    /// To whom.
    pub to: IpAddr,
    /// The first size: bytes after the ICMP header. What exceeds the MTU goes in fragments.
    pub shortest: usize,
    /// The last size, 65,507 at most.
    pub longest: usize,
    /// From one size to the next.
    pub step: usize,
    /// How many requests may be out at a time.
    pub window: u32,
    /// Without a reply for so long, those that are out are missing.
    pub quiet_ms: u64,
}

/// What became of the echo requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EchoReport {
    /// Requests sent.
    pub sent: u64,
    /// Replies with the request's content, each counted once.
    pub received: u64,
    /// Replies that came again.
    pub duplicated: u64,
    /// Replies with another content.
    pub mismatched: u64,
    /// Requests without a reply.
    pub missing: u64,
    /// The sizes of some that are missing or mismatched.
    pub bad_sizes: Vec<usize>,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// An echo request every few milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PulseOrder {
    /// To whom.
    pub to: IpAddr,
    /// From one to the next.
    pub every_ms: u64,
    /// Bytes after the ICMP header.
    pub size: usize,
}

/// What to move by TCP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpOrder {
    /// Where a [`Command::TcpServe`] listens.
    pub to: SocketAddr,
    /// What is sent follows from it; what is fetched from its successor.
    pub seed: u64,
    /// Bytes to send; 0: nothing is sent.
    pub send_bytes: u64,
    /// Bytes to fetch, on a connection of their own; 0: nothing is fetched.
    pub fetch_bytes: u64,
}

/// What was moved by TCP, as the side that asked for it saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpReport {
    /// What was sent.
    pub sent: Option<TcpEnd>,
    /// What was fetched.
    pub fetched: Option<TcpEnd>,
}

/// One end of a TCP transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpEnd {
    /// From which the content followed.
    pub seed: u64,
    /// Whether this end sent it.
    pub sender: bool,
    /// Bytes that went through this end.
    pub bytes: u64,
    /// Their SHA-256, in hexadecimal digits.
    pub sha256: String,
    /// From the first byte to the last one's acknowledgement.
    pub elapsed_ms: u64,
}

/// Which datagrams to send, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpOrder {
    /// Where a [`Command::UdpReceive`] listens.
    pub to: SocketAddr,
    /// Tells these datagrams from others.
    pub run: u32,
    /// How many.
    pub packets: u64,
    /// Bytes in each, 16 at least; what exceeds the MTU goes in fragments.
    pub size: usize,
    /// How many a second; 0: as many as the socket takes.
    pub per_second: u64,
}

/// What became of datagrams at their sender.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpSent {
    /// Taken by the kernel.
    pub sent: u64,
    /// Refused by the kernel, such as for want of a route, and not sent.
    pub refused: u64,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// What has come of datagrams at their receiver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpReceived {
    /// Came intact, each counted once.
    pub received: u64,
    /// Came again.
    pub duplicated: u64,
    /// Came after one that was sent later.
    pub reordered: u64,
    /// Came with another content.
    pub corrupt: u64,
    /// Datagrams of whatever run that the receiver's kernel had no room for since it started.
    pub overflowed: u64,
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

/// How a program in the background stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramReport {
    /// Its process.
    pub pid: u32,
    /// Its exit code if it has ended, 128 + signal when one ended it.
    pub code: Option<i32>,
    /// What it wrote, both streams; the last of it if that is much.
    pub output: String,
}
