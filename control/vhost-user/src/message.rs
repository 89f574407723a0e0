//! Messages: request numbers, flags, protocol features and payloads, decoded and encoded by hand.
//!
//! What it is not: no socket ([`crate::connection`] frames them), no state (a back-end's rules are elsewhere).
//!
//! ```text
//!   u32 request | u32 flags | u32 size | size bytes of payload        host byte order, at most 8 descriptors beside
//! ```
//!
//! [`RULES`] says of each request what it may look like; [`Rule::check`] is the one place that compares a message
//! with it. Everything decoded here is still a claim of the peer.

/// Bytes of a header.
pub const HEADER_BYTES: usize = 12;
/// The most descriptors beside one message.
pub const MAX_FDS: usize = 8;
/// The most regions in one SET_MEM_TABLE.
pub const MAX_TABLE_REGIONS: usize = 8;
/// The most configuration bytes in one message (QEMU's own bound).
pub const MAX_CONFIG_BYTES: usize = 256;
/// The longest payload that any supported message has: a configuration message. Longer ones are refused unread.
pub const MAX_PAYLOAD: usize = 12 + MAX_CONFIG_BYTES;
/// The longest payload that is skipped to answer the next message; a peer that claims more is dropped.
pub const MAX_SKIPPED: usize = 4096;

/// Flag: the version, which is 1.
pub const FLAG_VERSION: u32 = 1;
/// Mask of the version.
pub const FLAG_VERSION_MASK: u32 = 3;
/// Flag: this is a reply.
pub const FLAG_REPLY: u32 = 1 << 2;
/// Flag: an acknowledgement is wanted.
pub const FLAG_NEED_REPLY: u32 = 1 << 3;

/// Payload bit of SET_VRING_KICK, _CALL and _ERR: no descriptor comes with it.
pub const VRING_NO_FD: u64 = 1 << 8;

/// Protocol features, by bit.
pub mod protocol {
    /// Names: defines each bit and the table of names.
    macro_rules! bits {
        ($($(#[$doc:meta])* $name:ident = $bit:literal;)*) => {
            $($(#[$doc])* pub const $name: u64 = 1 << $bit;)*
            /// Every bit that has a name here.
            pub const NAMES: &[(u64, &str)] = &[$(($name, stringify!($name))),*];
        };
    }
    bits! {
        /// Several queues; GET_QUEUE_NUM.
        MQ = 0;
        /// Dirty log in shared memory.
        LOG_SHMFD = 1;
        /// SEND_RARP.
        RARP = 2;
        /// Acknowledgements on request.
        REPLY_ACK = 3;
        /// NET_SET_MTU.
        MTU = 4;
        /// A channel for requests of the back-end.
        BACKEND_REQ = 5;
        /// Rings of the other byte order.
        CROSS_ENDIAN = 6;
        /// Crypto sessions.
        CRYPTO_SESSION = 7;
        /// Postcopy migration.
        PAGEFAULT = 8;
        /// Configuration space by messages.
        CONFIG = 9;
        /// Descriptors on the back-end channel.
        BACKEND_SEND_FD = 10;
        /// Doorbells mapped into the guest.
        HOST_NOTIFIER = 11;
        /// In-flight records.
        INFLIGHT_SHMFD = 12;
        /// RESET_DEVICE.
        RESET_DEVICE = 13;
        /// Kicks and calls as messages.
        INBAND_NOTIFICATIONS = 14;
        /// Memory region by region.
        CONFIGURE_MEM_SLOTS = 15;
        /// Virtio device status.
        STATUS = 16;
        /// Xen grant mappings.
        XEN_MMAP = 17;
        /// Shared virtio objects.
        SHARED_OBJECT = 18;
        /// Device state for migration.
        DEVICE_STATE = 19;
    }

    /// What the back-end offers. Bits 20 to 22 are never offered: their meaning differs between peers.
    pub const OFFERED: u64 = MQ
        | RARP
        | REPLY_ACK
        | MTU
        | BACKEND_REQ
        | CONFIG
        | RESET_DEVICE
        | INBAND_NOTIFICATIONS
        | CONFIGURE_MEM_SLOTS
        | STATUS;

    /// What devices of some class are offered with, beside [`OFFERED`] or in place of some of it.
    pub const KNOWN: u64 = OFFERED | INFLIGHT_SHMFD;

    /// The names of the bits of a set, bits without a name left out.
    pub fn names(bits: u64) -> impl Iterator<Item = &'static str> {
        NAMES.iter().filter(move |(bit, _)| bits & bit != 0).map(|(_, name)| *name)
    }
}

/// Defines the requests of one direction with their numbers and names.
macro_rules! requests {
    ($(#[$doc:meta])* $enum:ident { $($(#[$vdoc:meta])* $variant:ident = $number:literal $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $enum { $($(#[$vdoc])* $variant = $number),* }

        impl $enum {
            /// Every request, ascending.
            pub const ALL: &[$enum] = &[$($enum::$variant),*];
            /// The request of a number.
            pub fn from_number(number: u32) -> Option<$enum> {
                match number { $($number => Some($enum::$variant),)* _ => None }
            }
            /// Its name in the protocol.
            pub fn name(self) -> &'static str {
                match self { $($enum::$variant => $name),* }
            }
        }
    };
}

requests! {
    /// What a front-end asks.
    Request {
        /// Virtio features offered.
        GetFeatures = 1 "GET_FEATURES",
        /// Virtio features agreed on.
        SetFeatures = 2 "SET_FEATURES",
        /// The front-end owns the session.
        SetOwner = 3 "SET_OWNER",
        /// Deprecated: disables the rings.
        ResetOwner = 4 "RESET_OWNER",
        /// The whole memory table.
        SetMemTable = 5 "SET_MEM_TABLE",
        /// Dirty log.
        SetLogBase = 6 "SET_LOG_BASE",
        /// Dirty log's eventfd.
        SetLogFd = 7 "SET_LOG_FD",
        /// Ring size.
        SetVringNum = 8 "SET_VRING_NUM",
        /// Ring addresses.
        SetVringAddr = 9 "SET_VRING_ADDR",
        /// Ring position.
        SetVringBase = 10 "SET_VRING_BASE",
        /// Stops a ring, returns its position.
        GetVringBase = 11 "GET_VRING_BASE",
        /// Kick descriptor: starts a ring.
        SetVringKick = 12 "SET_VRING_KICK",
        /// Call descriptor.
        SetVringCall = 13 "SET_VRING_CALL",
        /// Error descriptor.
        SetVringErr = 14 "SET_VRING_ERR",
        /// Protocol features offered.
        GetProtocolFeatures = 15 "GET_PROTOCOL_FEATURES",
        /// Protocol features agreed on.
        SetProtocolFeatures = 16 "SET_PROTOCOL_FEATURES",
        /// Queues (pairs, for net).
        GetQueueNum = 17 "GET_QUEUE_NUM",
        /// Enables or disables a ring.
        SetVringEnable = 18 "SET_VRING_ENABLE",
        /// Announce the guest on the wire.
        SendRarp = 19 "SEND_RARP",
        /// The guest's MTU.
        NetSetMtu = 20 "NET_SET_MTU",
        /// The back-end channel.
        SetBackendReqFd = 21 "SET_BACKEND_REQ_FD",
        /// IOTLB.
        IotlbMsg = 22 "IOTLB_MSG",
        /// Byte order of rings.
        SetVringEndian = 23 "SET_VRING_ENDIAN",
        /// Reads configuration space.
        GetConfig = 24 "GET_CONFIG",
        /// Writes configuration space.
        SetConfig = 25 "SET_CONFIG",
        /// Crypto.
        CreateCryptoSession = 26 "CREATE_CRYPTO_SESSION",
        /// Crypto.
        CloseCryptoSession = 27 "CLOSE_CRYPTO_SESSION",
        /// Postcopy.
        PostcopyAdvise = 28 "POSTCOPY_ADVISE",
        /// Postcopy.
        PostcopyListen = 29 "POSTCOPY_LISTEN",
        /// Postcopy.
        PostcopyEnd = 30 "POSTCOPY_END",
        /// In-flight records.
        GetInflightFd = 31 "GET_INFLIGHT_FD",
        /// In-flight records.
        SetInflightFd = 32 "SET_INFLIGHT_FD",
        /// GPU.
        GpuSetSocket = 33 "GPU_SET_SOCKET",
        /// Resets the device.
        ResetDevice = 34 "RESET_DEVICE",
        /// A kick as a message.
        VringKick = 35 "VRING_KICK",
        /// Memory slots offered.
        GetMaxMemSlots = 36 "GET_MAX_MEM_SLOTS",
        /// Adds a memory region.
        AddMemReg = 37 "ADD_MEM_REG",
        /// Removes a memory region.
        RemMemReg = 38 "REM_MEM_REG",
        /// Sets the virtio status.
        SetStatus = 39 "SET_STATUS",
        /// Reads the virtio status.
        GetStatus = 40 "GET_STATUS",
        /// Shared objects.
        GetSharedObject = 41 "GET_SHARED_OBJECT",
        /// Device state.
        SetDeviceStateFd = 42 "SET_DEVICE_STATE_FD",
        /// Device state.
        CheckDeviceState = 43 "CHECK_DEVICE_STATE",
        /// Shared memory regions.
        GetShmemConfig = 44 "GET_SHMEM_CONFIG",
    }
}

requests! {
    /// What a back-end asks, on its own channel.
    BackendRequest {
        /// IOTLB.
        IotlbMsg = 1 "IOTLB_MSG",
        /// The configuration space changed.
        ConfigChange = 2 "CONFIG_CHANGE_MSG",
        /// A doorbell to map.
        VringHostNotifier = 3 "VRING_HOST_NOTIFIER_MSG",
        /// A call as a message.
        VringCall = 4 "VRING_CALL",
        /// A ring's error as a message.
        VringErr = 5 "VRING_ERR",
    }
}

/// What a supported request may look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The request.
    pub request: Request,
    /// The shortest payload, in bytes.
    pub min_bytes: usize,
    /// The longest payload, in bytes. Payloads of variable length state their length once more; that is compared
    /// when they are decoded.
    pub max_bytes: usize,
    /// The fewest descriptors.
    pub min_fds: usize,
    /// The most descriptors.
    pub max_fds: usize,
    /// It has an answer of its own, so that no acknowledgement follows.
    pub answers: bool,
    /// Protocol features without which it must not come.
    pub needs: u64,
}

const fn rule(
    request: Request,
    bytes: (usize, usize),
    fds: (usize, usize),
    answers: bool,
    needs: u64,
) -> Rule {
    Rule { request, min_bytes: bytes.0, max_bytes: bytes.1, min_fds: fds.0, max_fds: fds.1, answers, needs }
}

const NONE: (usize, usize) = (0, 0);
const U64: (usize, usize) = (8, 8);
const STATE: (usize, usize) = (8, 8);
const CONFIG: (usize, usize) = (12, MAX_PAYLOAD);
const REGION: (usize, usize) = (40, 40);
const INFLIGHT: (usize, usize) = (Inflight::FIELDS, Inflight::BYTES);
const TABLE: (usize, usize) = (8, 8 + 32 * MAX_TABLE_REGIONS);

/// The requests that the back-end supports. Every other one, known or not, is refused.
pub const RULES: &[Rule] = &[
    rule(Request::GetFeatures, NONE, NONE, true, 0),
    rule(Request::SetFeatures, U64, NONE, false, 0),
    rule(Request::SetOwner, NONE, NONE, false, 0),
    rule(Request::ResetOwner, NONE, NONE, false, 0),
    rule(Request::SetMemTable, TABLE, (0, MAX_TABLE_REGIONS), false, 0),
    rule(Request::SetVringNum, STATE, NONE, false, 0),
    rule(Request::SetVringAddr, REGION, NONE, false, 0),
    rule(Request::SetVringBase, STATE, NONE, false, 0),
    rule(Request::GetVringBase, STATE, NONE, true, 0),
    rule(Request::SetVringKick, U64, (0, 1), false, 0),
    rule(Request::SetVringCall, U64, (0, 1), false, 0),
    rule(Request::SetVringErr, U64, (0, 1), false, 0),
    rule(Request::GetProtocolFeatures, NONE, NONE, true, 0),
    rule(Request::SetProtocolFeatures, U64, NONE, false, 0),
    rule(Request::GetQueueNum, NONE, NONE, true, protocol::MQ),
    rule(Request::SetVringEnable, STATE, NONE, false, 0),
    rule(Request::SendRarp, U64, NONE, false, protocol::RARP),
    rule(Request::NetSetMtu, U64, NONE, false, protocol::MTU),
    rule(Request::SetBackendReqFd, NONE, (1, 1), false, protocol::BACKEND_REQ),
    rule(Request::GetConfig, CONFIG, NONE, true, protocol::CONFIG),
    rule(Request::SetConfig, CONFIG, NONE, false, protocol::CONFIG),
    rule(Request::GetInflightFd, INFLIGHT, NONE, true, protocol::INFLIGHT_SHMFD),
    rule(Request::SetInflightFd, INFLIGHT, (0, 1), false, protocol::INFLIGHT_SHMFD),
    rule(Request::ResetDevice, NONE, NONE, false, protocol::RESET_DEVICE),
    rule(Request::VringKick, STATE, NONE, false, protocol::INBAND_NOTIFICATIONS),
    rule(Request::GetMaxMemSlots, NONE, NONE, true, protocol::CONFIGURE_MEM_SLOTS),
    rule(Request::AddMemReg, REGION, (1, 1), false, protocol::CONFIGURE_MEM_SLOTS),
    // A stray descriptor beside REM_MEM_REG is what deployed front-ends send: closed, not refused.
    rule(Request::RemMemReg, REGION, (0, 1), false, protocol::CONFIGURE_MEM_SLOTS),
    rule(Request::SetStatus, U64, NONE, false, protocol::STATUS),
    rule(Request::GetStatus, NONE, NONE, true, protocol::STATUS),
];

/// How a message broke the rule of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Its payload has a length that the request cannot have.
    #[error("{request} of {size} bytes, not {min} to {max}")]
    Size {
        /// The request's name.
        request: &'static str,
        /// The length claimed.
        size: usize,
        /// Shortest.
        min: usize,
        /// Longest.
        max: usize,
    },
    /// It came with a number of descriptors that it cannot have.
    #[error("{request} with {fds} descriptors, not {min} to {max}")]
    Fds {
        /// The request's name.
        request: &'static str,
        /// How many came.
        fds: usize,
        /// Fewest.
        min: usize,
        /// Most.
        max: usize,
    },
    /// What it says of its own length is not its length.
    #[error("{request}: the payload of {size} bytes claims to hold {claimed}")]
    Inner {
        /// The request's name.
        request: &'static str,
        /// The payload's length.
        size: usize,
        /// The length that its own fields claim.
        claimed: u64,
    },
}

impl Malformed {
    /// A stable short name.
    pub fn name(self) -> &'static str {
        match self {
            Malformed::Size { .. } | Malformed::Inner { .. } => "message_size",
            Malformed::Fds { .. } => "message_fds",
        }
    }
}

impl Rule {
    /// The rule of a request; None if it is not supported.
    pub fn of(request: Request) -> Option<&'static Rule> {
        RULES.iter().find(|rule| rule.request == request)
    }
    /// Compares a message with the rule.
    pub fn check(&self, size: usize, fds: usize) -> Result<(), Malformed> {
        let request = self.request.name();
        if !(self.min_bytes..=self.max_bytes).contains(&size) {
            Err(Malformed::Size { request, size, min: self.min_bytes, max: self.max_bytes })
        } else if !(self.min_fds..=self.max_fds).contains(&fds) {
            Err(Malformed::Fds { request, fds, min: self.min_fds, max: self.max_fds })
        } else {
            Ok(())
        }
    }
}

/// A message's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Number of the request.
    pub request: u32,
    /// Version, reply, need reply.
    pub flags: u32,
    /// Bytes of payload.
    pub size: u32,
}

impl Header {
    /// From the wire.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Header {
        Header { request: u32_at(bytes, 0), flags: u32_at(bytes, 4), size: u32_at(bytes, 8) }
    }
    /// To the wire.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.size.to_ne_bytes());
        bytes
    }
    /// An acknowledgement is wanted.
    pub fn needs_reply(&self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }
    /// It answers a request.
    pub fn is_reply(&self) -> bool {
        self.flags & FLAG_REPLY != 0
    }
}

/// Reads 32 bits at a place; 0 beyond the end (lengths are checked before).
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_ne_bytes(*word))
}

/// Reads 64 bits at a place; 0 beyond the end (lengths are checked before).
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_ne_bytes(*word))
}

/// The payload of requests that carry one number; [`Rule::check`] made sure of its length.
pub fn decode_u64(payload: &[u8]) -> u64 {
    u64_at(payload, 0)
}

/// Payload of SET_VRING_NUM, _BASE, _ENABLE, GET_VRING_BASE and VRING_KICK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringState {
    /// Which ring: all 32 bits count.
    pub index: u32,
    /// Size, base or 0/1.
    pub num: u32,
}

impl VringState {
    /// Bytes on the wire.
    pub const BYTES: usize = 8;
    /// From the wire.
    pub fn decode(payload: &[u8]) -> VringState {
        VringState { index: u32_at(payload, 0), num: u32_at(payload, 4) }
    }
    /// To the wire.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..4].copy_from_slice(&self.index.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.num.to_ne_bytes());
        bytes
    }
}

/// Payload of SET_VRING_ADDR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringAddrs {
    /// Which ring: all 32 bits count.
    pub index: u32,
    /// Bit 0: log writes to the used ring.
    pub flags: u32,
    /// Descriptor area, by the front-end's address.
    pub desc: u64,
    /// Device area (used), by the front-end's address.
    pub device: u64,
    /// Driver area (avail), by the front-end's address.
    pub driver: u64,
    /// Guest address of the used ring for the log.
    pub log: u64,
}

impl VringAddrs {
    /// Bytes on the wire.
    pub const BYTES: usize = 40;
    /// Flag bit 0.
    pub const FLAG_LOG: u32 = 1;
    /// From the wire.
    pub fn decode(payload: &[u8]) -> VringAddrs {
        VringAddrs {
            index: u32_at(payload, 0),
            flags: u32_at(payload, 4),
            desc: u64_at(payload, 8),
            device: u64_at(payload, 16),
            driver: u64_at(payload, 24),
            log: u64_at(payload, 32),
        }
    }
    /// To the wire.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..4].copy_from_slice(&self.index.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.desc.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.device.to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.driver.to_ne_bytes());
        bytes[32..40].copy_from_slice(&self.log.to_ne_bytes());
        bytes
    }
}

/// Payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Inflight {
    /// Bytes of the region; 0: there is none.
    pub mmap_size: u64,
    /// Where in its file it starts.
    pub mmap_offset: u64,
    /// Queues that have a part in it.
    pub queues: u16,
    /// Entries of each part: as many as a ring may have.
    pub entries: u16,
}

impl Inflight {
    /// Bytes of its fields; what front-ends pad is not always sent.
    pub const FIELDS: usize = 20;
    /// Bytes on the wire, padded as a C structure is: what QEMU sends, and the only length that it takes.
    pub const BYTES: usize = 24;
    /// From the wire.
    pub fn decode(payload: &[u8]) -> Inflight {
        let both = u32_at(payload, 16).to_ne_bytes();
        let [a, b, c, d] = both;
        Inflight {
            mmap_size: u64_at(payload, 0),
            mmap_offset: u64_at(payload, 8),
            queues: u16::from_ne_bytes([a, b]),
            entries: u16::from_ne_bytes([c, d]),
        }
    }
    /// To the wire.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..8].copy_from_slice(&self.mmap_size.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.mmap_offset.to_ne_bytes());
        bytes[16..18].copy_from_slice(&self.queues.to_ne_bytes());
        bytes[18..20].copy_from_slice(&self.entries.to_ne_bytes());
        bytes
    }
}

/// One region of SET_MEM_TABLE, ADD_MEM_REG and REM_MEM_REG.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemRegion {
    /// Guest physical address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// Front-end's own address.
    pub user_addr: u64,
    /// Where in the file it starts.
    pub mmap_offset: u64,
}

impl MemRegion {
    /// Bytes on the wire.
    pub const BYTES: usize = 32;
    /// From the wire.
    pub fn decode(bytes: &[u8]) -> MemRegion {
        MemRegion {
            gpa: u64_at(bytes, 0),
            size: u64_at(bytes, 8),
            user_addr: u64_at(bytes, 16),
            mmap_offset: u64_at(bytes, 24),
        }
    }
    /// To the wire.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..8].copy_from_slice(&self.gpa.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.size.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.user_addr.to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.mmap_offset.to_ne_bytes());
        bytes
    }
    /// The region of ADD_MEM_REG and REM_MEM_REG: behind eight bytes of padding.
    pub fn decode_single(payload: &[u8]) -> MemRegion {
        MemRegion::decode(payload.get(8..).unwrap_or_default())
    }
    /// The payload of ADD_MEM_REG and REM_MEM_REG.
    pub fn encode_single(&self) -> [u8; 8 + Self::BYTES] {
        let mut bytes = [0; 8 + Self::BYTES];
        bytes[8..].copy_from_slice(&self.encode());
        bytes
    }
}

/// The regions of SET_MEM_TABLE. Their number must be that of the descriptors and fit the payload exactly.
pub fn decode_mem_table(payload: &[u8], fds: usize) -> Result<Vec<MemRegion>, Malformed> {
    let request = Request::SetMemTable.name();
    let count = u32_at(payload, 0);
    let claimed = 8 + u64::from(count) * MemRegion::BYTES as u64;
    if claimed != payload.len() as u64 {
        return Err(Malformed::Inner { request, size: payload.len(), claimed });
    }
    // The payload's own length bounds `count` to MAX_TABLE_REGIONS from here on.
    if fds as u64 != u64::from(count) {
        let want = count as usize;
        return Err(Malformed::Fds { request, fds, min: want, max: want });
    }
    Ok(payload[8..].chunks_exact(MemRegion::BYTES).map(MemRegion::decode).collect())
}

/// The payload of SET_MEM_TABLE.
pub fn encode_mem_table(regions: &[MemRegion]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + regions.len() * MemRegion::BYTES);
    bytes.extend_from_slice(&(regions.len() as u32).to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    for region in regions {
        bytes.extend_from_slice(&region.encode());
    }
    bytes
}

/// Payload of GET_CONFIG and SET_CONFIG, before its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigRange {
    /// Where in configuration space.
    pub offset: u32,
    /// How many bytes follow.
    pub size: u32,
    /// 0: written by the driver; 1: by migration.
    pub flags: u32,
}

impl ConfigRange {
    /// Bytes on the wire, before the configuration's.
    pub const BYTES: usize = 12;
    /// From the wire; the size must be that of the bytes that follow.
    pub fn decode(request: Request, payload: &[u8]) -> Result<(ConfigRange, &[u8]), Malformed> {
        let range =
            ConfigRange { offset: u32_at(payload, 0), size: u32_at(payload, 4), flags: u32_at(payload, 8) };
        let bytes = payload.get(Self::BYTES..).unwrap_or_default();
        if u64::from(range.size) == bytes.len() as u64 {
            Ok((range, bytes))
        } else {
            let claimed = Self::BYTES as u64 + u64::from(range.size);
            Err(Malformed::Inner { request: request.name(), size: payload.len(), claimed })
        }
    }
    /// To the wire, with the bytes.
    pub fn encode(&self, config: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES + config.len());
        for word in [self.offset, self.size, self.flags] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(config);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_names_and_rules_agree() {
        for (at, request) in Request::ALL.iter().enumerate() {
            assert_eq!(*request as usize, at + 1);
            assert_eq!(Request::from_number(*request as u32), Some(*request));
        }
        assert_eq!(Request::from_number(0), None);
        assert_eq!(Request::from_number(45), None);
        assert_eq!(Request::from_number(0x1_0000 + 1), None);
        for pair in RULES.windows(2) {
            assert!((pair[0].request as u32) < pair[1].request as u32, "one rule a request, ascending");
        }
        for rule in RULES {
            assert!(rule.min_bytes <= rule.max_bytes && rule.max_bytes <= MAX_PAYLOAD);
            assert!(rule.min_fds <= rule.max_fds && rule.max_fds <= MAX_FDS);
            assert_eq!(rule.needs & !protocol::KNOWN, 0, "{:?} needs what is not offered", rule.request);
        }
    }

    #[test]
    fn features_without_behaviour_are_not_offered() {
        let names: Vec<_> = protocol::names(protocol::OFFERED).collect();
        assert_eq!(
            names,
            [
                "MQ",
                "RARP",
                "REPLY_ACK",
                "MTU",
                "BACKEND_REQ",
                "CONFIG",
                "RESET_DEVICE",
                "INBAND_NOTIFICATIONS",
                "CONFIGURE_MEM_SLOTS",
                "STATUS"
            ]
        );
        assert_eq!(protocol::OFFERED >> 20, 0);
    }

    #[test]
    fn payload_one_byte_off_is_refused() {
        for rule in RULES {
            let fds = rule.min_fds;
            assert_eq!(rule.check(rule.min_bytes, fds), Ok(()));
            assert!(rule.check(rule.max_bytes + 1, fds).is_err());
            if rule.min_bytes > 0 {
                assert!(rule.check(rule.min_bytes - 1, fds).is_err());
            }
            assert!(rule.check(rule.min_bytes, rule.max_fds + 1).is_err());
        }
    }

    #[test]
    fn mem_table_whose_count_and_length_differ_is_refused() {
        let region = MemRegion { gpa: 1, size: 2, user_addr: 3, mmap_offset: 4 };
        let table = encode_mem_table(&[region, region]);
        assert_eq!(decode_mem_table(&table, 2), Ok(vec![region, region]));
        assert!(decode_mem_table(&table, 1).is_err());
        assert!(decode_mem_table(&table[..40], 1).is_err());
        let mut huge = table.clone();
        huge[0..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(decode_mem_table(&huge, 2).is_err());
    }

    #[test]
    fn payloads_survive_a_round_trip() {
        let addrs = VringAddrs { index: 1, flags: 0, desc: 2, device: 3, driver: 4, log: 5 };
        assert_eq!(VringAddrs::decode(&addrs.encode()), addrs);
        let region = MemRegion { gpa: 1, size: 2, user_addr: u64::MAX, mmap_offset: 4 };
        assert_eq!(MemRegion::decode_single(&region.encode_single()), region);
        let range = ConfigRange { offset: 3, size: 2, flags: 1 };
        assert_eq!(ConfigRange::decode(Request::GetConfig, &range.encode(&[7, 8])), Ok((range, &[7, 8][..])));
        assert!(ConfigRange::decode(Request::GetConfig, &range.encode(&[7])).is_err());
    }
}
