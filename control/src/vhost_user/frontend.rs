//! A front-end: what a VMM speaks. Blocking, with a deadline on every answer; for the built-in guest, the tests and
//! the benchmark suite.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use ringway_ring::features::Features;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// The socket failed or was closed.
    #[error("vhost-user socket: {0}")]
    Io(#[from] std::io::Error),
    /// The back-end refused (a non-zero acknowledgement).
    #[error("back-end refused {request} ({code})")]
    Refused {
        /// The request's name.
        request: &'static str,
        /// What it answered.
        code: u64,
    },
    /// The back-end broke the protocol.
    #[error("back-end answered {request} wrongly: {why}")]
    Protocol {
        /// The request's name.
        request: &'static str,
        /// How.
        why: String,
    },
}

/// A region of our memory that the back-end shall map.
#[derive(Debug, Clone, Copy)]
pub struct MemoryRegion<'fd> {
    /// Guest physical address that we give it.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// Our own address of it.
    pub user_addr: u64,
    /// Where it starts in the file.
    pub file_offset: u64,
    /// The file.
    pub file: BorrowedFd<'fd>,
}

/// Addresses of a ring, as our own addresses.
#[derive(Debug, Clone, Copy)]
pub struct VringAddr {
    /// Descriptor area.
    pub desc: u64,
    /// Driver area (avail).
    pub driver: u64,
    /// Device area (used).
    pub device: u64,
    /// Guest address for the dirty log of the used ring, if logged.
    pub log: Option<u64>,
}

/// A connection to a back-end.
#[derive(Debug)]
pub struct Frontend {
    _todo: (),
}

impl Frontend {
    /// Connects to a back-end that owns the socket at `path`; retries until `within` has passed.
    pub fn connect(path: &Path, within: Duration) -> Result<Frontend, FrontendError> {
        let _ = (path, within);
        unimplemented!("skeleton")
    }
    /// Owns the socket at `path` and waits for a back-end (client mode) to connect.
    pub fn listen(path: &Path, within: Duration) -> Result<Frontend, FrontendError> {
        let _ = (path, within);
        unimplemented!("skeleton")
    }
    /// GET_FEATURES, GET/SET_PROTOCOL_FEATURES (all that both sides know), SET_OWNER. Returns the device's features.
    pub fn handshake(&mut self) -> Result<Features, FrontendError> {
        unimplemented!("skeleton")
    }
    /// SET_FEATURES; adds `PROTOCOL_FEATURES` itself if it was offered.
    pub fn set_features(&mut self, features: Features) -> Result<(), FrontendError> {
        let _ = features;
        unimplemented!("skeleton")
    }
    /// GET_QUEUE_NUM.
    pub fn queue_num(&mut self) -> Result<u64, FrontendError> {
        unimplemented!("skeleton")
    }
    /// SET_MEM_TABLE.
    pub fn set_mem_table(&mut self, regions: &[MemoryRegion<'_>]) -> Result<(), FrontendError> {
        let _ = regions;
        unimplemented!("skeleton")
    }
    /// SET_VRING_NUM, _BASE, _ADDR, _CALL, _KICK in this order: starts ring `index`. `base` as on the wire; no kick
    /// descriptor: the back-end polls; no call descriptor: it never notifies.
    pub fn start_ring(
        &mut self,
        index: u32,
        size: u32,
        base: u32,
        addr: VringAddr,
        kick: Option<BorrowedFd<'_>>,
        call: Option<BorrowedFd<'_>>,
    ) -> Result<(), FrontendError> {
        let _ = (index, size, base, addr, kick, call);
        unimplemented!("skeleton")
    }
    /// SET_VRING_ENABLE.
    pub fn enable_ring(&mut self, index: u32, enable: bool) -> Result<(), FrontendError> {
        let _ = (index, enable);
        unimplemented!("skeleton")
    }
    /// GET_VRING_BASE: stops the ring and returns its base as on the wire.
    pub fn stop_ring(&mut self, index: u32) -> Result<u32, FrontendError> {
        let _ = index;
        unimplemented!("skeleton")
    }
    /// SET_STATUS, if STATUS was negotiated.
    pub fn set_status(&mut self, status: u8) -> Result<(), FrontendError> {
        let _ = status;
        unimplemented!("skeleton")
    }
}
