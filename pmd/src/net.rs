//! What network devices have in common (virtio 1.3 §5.1): feature bits, configuration space, frame header.

// A guest's arrival, told to the network.
pub mod announce;
// The pump of a learning bridge.
pub mod bridge;
// Copies of the frames that pass a queue, for who looks on.
pub mod capture;
// A place in a sequence of slices of guest memory.
mod cursor;
// A guest's end of a path: a started queue.
pub mod guest_queue;
// What joins devices: their running queues, and the pumps between them.
pub mod fabric;
// The forwarding database of a learning bridge.
pub mod fdb;
// Frames that do not go on as they are.
pub mod finish;
// The frames of one burst, looked at.
pub mod frame;
// A kernel netdev as a side of a path.
pub mod netdev;
// Checksum and segmentation offloads: what a header claims, checked, and done in software.
pub mod offload;
// What network devices have in common as devices.
pub mod nic;
// What operators ask of a network device, checked.
pub mod plan;
// How much a bridge's ports may send and are given.
pub mod rates;
// The pump that forwards descriptors to an 82576 VF.
pub mod igb_relay;
// Frames that sinks still read.
mod in_flight;
// The pump that forwards descriptors to a virtio function.
pub mod relay;
// How a receive queue takes frames.
mod receive;
// Where a pump works on frames that do not go on as they are.
pub mod scratch;
// The two sides of a path.
pub mod side;
// What a bridge has learned, for those who ask.
pub mod stations;
// A kernel TAP netdev.
pub mod tap;
// The pump that carries frames from sources to one destination.
pub mod transfer;
// How a transmit queue gives frames.
mod transmit;
// A function of the host's as a bridge's way out.
pub mod uplink;
// Which VLANs a bridge's ports carry, and their frames' tags.
pub mod vlan;

use std::fmt;
use std::str::FromStr;

use ringway_ring::features::Features;

/// `VIRTIO_NET_F_CSUM`: the driver may leave checksums to the device.
pub const F_CSUM: Features = Features(1 << 0);
/// `VIRTIO_NET_F_GUEST_CSUM`: the driver takes frames with partial checksums.
pub const F_GUEST_CSUM: Features = Features(1 << 1);
/// `VIRTIO_NET_F_MTU`.
pub const F_MTU: Features = Features(1 << 3);
/// `VIRTIO_NET_F_MAC`.
pub const F_MAC: Features = Features(1 << 5);
/// `VIRTIO_NET_F_GUEST_TSO4`: the driver takes TCP segments over IPv4 that are not yet cut.
pub const F_GUEST_TSO4: Features = Features(1 << 7);
/// `VIRTIO_NET_F_GUEST_TSO6`: the same over IPv6.
pub const F_GUEST_TSO6: Features = Features(1 << 8);
/// `VIRTIO_NET_F_GUEST_ECN`: the same with CWR set.
pub const F_GUEST_ECN: Features = Features(1 << 9);
/// `VIRTIO_NET_F_HOST_TSO4`: the driver may send TCP segments over IPv4 that the device is to cut.
pub const F_HOST_TSO4: Features = Features(1 << 11);
/// `VIRTIO_NET_F_HOST_TSO6`: the same over IPv6.
pub const F_HOST_TSO6: Features = Features(1 << 12);
/// `VIRTIO_NET_F_HOST_ECN`: the same with CWR set.
pub const F_HOST_ECN: Features = Features(1 << 13);
/// `VIRTIO_NET_F_MRG_RXBUF`.
pub const F_MRG_RXBUF: Features = Features(1 << 15);
/// `VIRTIO_NET_F_STATUS`.
pub const F_STATUS: Features = Features(1 << 16);
/// `VIRTIO_NET_F_CTRL_VQ`.
pub const F_CTRL_VQ: Features = Features(1 << 17);
/// `VIRTIO_NET_F_CTRL_RX`.
pub const F_CTRL_RX: Features = Features(1 << 18);
/// `VIRTIO_NET_F_GUEST_ANNOUNCE`.
pub const F_GUEST_ANNOUNCE: Features = Features(1 << 21);
/// `VIRTIO_NET_F_MQ`.
pub const F_MQ: Features = Features(1 << 22);
/// `VIRTIO_NET_F_GUEST_USO4`: the driver takes UDP datagrams over IPv4 that are not yet cut.
pub const F_GUEST_USO4: Features = Features(1 << 54);
/// `VIRTIO_NET_F_GUEST_USO6`: the same over IPv6.
pub const F_GUEST_USO6: Features = Features(1 << 55);
/// `VIRTIO_NET_F_HOST_USO`: the driver may send UDP datagrams that the device is to cut.
pub const F_HOST_USO: Features = Features(1 << 56);

/// What every network device offers, offloads apart.
pub const NIC: Features = Features(
    Features::INDIRECT_DESC.0
        | Features::EVENT_IDX.0
        | Features::VERSION_1.0
        | Features::RING_PACKED.0
        | Features::IN_ORDER.0
        | Features::ANY_LAYOUT.0
        | F_MTU.0
        | F_MAC.0
        | F_MRG_RXBUF.0
        | F_STATUS.0
        | F_CTRL_VQ.0
        | F_CTRL_RX.0
        | F_GUEST_ANNOUNCE.0
        | F_MQ.0,
);

/// The offloads, for devices that pass them through or carry them out.
pub const OFFLOADS: Features = Features(
    F_CSUM.0
        | F_GUEST_CSUM.0
        | F_HOST_TSO4.0
        | F_HOST_TSO6.0
        | F_HOST_ECN.0
        | F_HOST_USO.0
        | F_GUEST_TSO4.0
        | F_GUEST_TSO6.0
        | F_GUEST_ECN.0
        | F_GUEST_USO4.0
        | F_GUEST_USO6.0,
);

/// Bytes of the header before each frame: `struct virtio_net_hdr_mrg_rxbuf` (virtio 1.3 §5.1.6). With VERSION_1 the
/// field `num_buffers` is always there; legacy drivers without MRG_RXBUF use two bytes less.
pub fn header_len(features: Features) -> usize {
    if features.contains(Features::VERSION_1) || features.contains(F_MRG_RXBUF) { 12 } else { 10 }
}

/// Bytes of an Ethernet header: two addresses and a type.
pub const ETHERNET_HEADER: u32 = 14;

/// Bytes of a VLAN tag, which a frame may carry beyond its MTU.
pub const VLAN_TAG: u32 = 4;

/// The largest MTU that a device may have: what jumbo frames are by convention.
pub const MAX_MTU: u16 = 9000;

/// The smallest MTU that a device may have (`ETH_MIN_MTU` of the kernel's vDPA).
pub const MIN_MTU: u16 = 68;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not an Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a MAC address: write six pairs of hex digits, as in 52:54:00:12:34:56")]
pub struct BadMac(String);

impl FromStr for Mac {
    type Err = BadMac;
    fn from_str(text: &str) -> Result<Mac, BadMac> {
        let bad = || BadMac(text.to_owned());
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Mac(bytes)) }
    }
}

impl Mac {
    /// A locally administered unicast address made from a name: the same name gives the same address.
    pub fn from_name(name: &str) -> Mac {
        // FNV-1a, 64 bits: spread is all that is needed.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let [a, b, c, d, ..] = hash.to_le_bytes();
        Mac([0x52, 0x57, a, b, c, d])
    }

    /// The address of a device or interface that was given none: made of its name and of what is the host's alone. Without
    /// that, by the name alone, as devices of earlier versions have theirs.
    pub fn default_of(seed: Option<AddressSeed>, name: &str) -> Mac {
        let Some(AddressSeed(seed)) = seed else { return Mac::from_name(name) };
        let fnv = seed.iter().copied().chain(name.bytes()).fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        // Every byte of the seed reaches every bit: MurmurHash3's last step.
        let mixed = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        let [a, b, c, d, ..] = (mixed ^ (mixed >> 33)).to_le_bytes();
        Mac([0x52, 0x57, a, b, c, d])
    }

    /// The address in the low 48 bits, its first byte highest.
    pub fn to_bits(self) -> u64 {
        self.0.iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte))
    }

    /// The address that the low 48 bits say; those above do not matter.
    pub fn from_bits(bits: u64) -> Mac {
        let [_, _, a, b, c, d, e, f] = bits.to_be_bytes();
        Mac([a, b, c, d, e, f])
    }

    /// True for a group address, which no device can have as its own.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

/// What makes default addresses one host's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressSeed(pub [u8; 16]);

/// `struct virtio_net_config` (virtio 1.3 §5.1.4), as far as Ringway fills it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetConfig {
    /// The device's address.
    pub mac: Mac,
    /// Largest packet without the Ethernet header.
    pub mtu: u16,
    /// Queue pairs that the device has at most.
    pub max_vq_pairs: u16,
    /// `VIRTIO_NET_S_LINK_UP`.
    pub link_up: bool,
}

impl NetConfig {
    /// The configuration space as the driver reads it.
    pub fn to_bytes(&self) -> [u8; 12] {
        let mut bytes = [0u8; 12];
        bytes[0..6].copy_from_slice(&self.mac.0);
        bytes[6..8].copy_from_slice(&u16::from(self.link_up).to_le_bytes());
        bytes[8..10].copy_from_slice(&self.max_vq_pairs.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.mtu.to_le_bytes());
        bytes
    }
}
