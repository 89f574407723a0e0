//! A front-end: what a VMM speaks. Blocking, with a deadline on every answer; for the built-in guest, the tests and
//! the benchmark suite.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringway_ring::features::Features;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::connection::{Broken, Frame, FrameReader, send_frame, wait_for};
use crate::message::{
    BackendRequest, ConfigRange, FLAG_NEED_REPLY, FLAG_VERSION, Header, Inflight, MemRegion, Request,
    VRING_NO_FD, VringAddrs, VringState, decode_u64, encode_mem_table, protocol,
};

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

/// What a back-end says on its own channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendMessage {
    /// CONFIG_CHANGE_MSG.
    ConfigChanged,
    /// VRING_CALL of a ring.
    Call(u32),
    /// VRING_ERR of a ring.
    RingError(u32),
    /// Any other request, by its number.
    Other(u32),
}

/// A socket that front-ends own and back-ends (client mode) connect to. Removed from the file system when dropped.
#[derive(Debug)]
pub struct FrontendListener {
    listener: UnixListener,
    path: PathBuf,
}

impl FrontendListener {
    /// Makes the socket at `path`, in place of one that nobody serves any more.
    pub fn bind(path: &Path) -> Result<FrontendListener, FrontendError> {
        let stale = || UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
        let listener = match UnixListener::bind(path) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && stale() => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            bound => bound?,
        };
        listener.set_nonblocking(true)?;
        Ok(FrontendListener { listener, path: path.to_owned() })
    }

    /// Waits for a back-end.
    pub fn accept(&self, within: Duration) -> Result<Frontend, FrontendError> {
        let deadline = Instant::now() + within;
        loop {
            wait_for(&self.listener, PollFlags::IN, deadline)?;
            match self.listener.accept() {
                Ok((stream, _)) => return Ok(Frontend::from_stream(stream)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Drop for FrontendListener {
    fn drop(&mut self) {
        // Nothing to be done if it is gone already.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A connection to a back-end.
#[derive(Debug)]
pub struct Frontend {
    stream: UnixStream,
    reader: FrameReader,
    /// How long each answer may take.
    timeout: Duration,
    /// Virtio features offered, vhost-user's own included.
    offered: Features,
    /// Protocol features agreed on.
    protocol: u64,
    /// Our end of the back-end channel.
    channel: Option<(UnixStream, FrameReader)>,
    /// The socket, if we own it.
    listener: Option<FrontendListener>,
}

impl Frontend {
    /// Connects to a back-end that owns the socket at `path`; retries until `within` has passed.
    pub fn connect(path: &Path, within: Duration) -> Result<Frontend, FrontendError> {
        let deadline = Instant::now() + within;
        let address = SocketAddrUnix::new(path).map_err(io::Error::from)?;
        let mut pause = Duration::from_millis(1);
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket =
                socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(io::Error::from)?;
            match connect(&socket, &address) {
                Ok(()) => return Ok(Frontend::from_stream(UnixStream::from(socket))),
                // Not there yet, nobody listens, or its queue of connections is full.
                Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN | Errno::INTR)
                    if Instant::now() + pause < deadline => {}
                Err(other) => return Err(io::Error::from(other).into()),
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(64));
        }
    }

    /// Owns the socket at `path` and waits for a back-end (client mode) to connect. To outlive a back-end's restart,
    /// use a [`FrontendListener`].
    pub fn listen(path: &Path, within: Duration) -> Result<Frontend, FrontendError> {
        let listener = FrontendListener::bind(path)?;
        let mut frontend = listener.accept(within)?;
        frontend.listener = Some(listener);
        Ok(frontend)
    }

    /// On a connected socket.
    pub fn from_stream(stream: UnixStream) -> Frontend {
        Frontend {
            stream,
            reader: FrameReader::default(),
            timeout: ANSWER_TIMEOUT,
            offered: Features::NONE,
            protocol: 0,
            channel: None,
            listener: None,
        }
    }

    /// Changes how long each answer may take (10 s).
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The protocol features agreed on.
    pub fn protocol_features(&self) -> u64 {
        self.protocol
    }

    /// GET_FEATURES, GET/SET_PROTOCOL_FEATURES (all that both sides know), SET_OWNER. Returns the device's features.
    pub fn handshake(&mut self) -> Result<Features, FrontendError> {
        self.handshake_with(protocol::KNOWN)
    }

    /// As [`Frontend::handshake`], but agrees on no more protocol features than `known`.
    pub fn handshake_with(&mut self, known: u64) -> Result<Features, FrontendError> {
        self.offered = Features(self.query_u64(Request::GetFeatures)?);
        if self.offered.contains(Features::PROTOCOL_FEATURES) {
            let protocol = self.query_u64(Request::GetProtocolFeatures)? & known;
            self.send(Request::SetProtocolFeatures, &protocol.to_ne_bytes(), &[])?;
            self.protocol = protocol;
        }
        self.send(Request::SetOwner, &[], &[])?;
        Ok(self.offered.without(Features::PROTOCOL_FEATURES))
    }

    /// SET_FEATURES; adds `PROTOCOL_FEATURES` itself if it was offered.
    pub fn set_features(&mut self, features: Features) -> Result<(), FrontendError> {
        let features = features | (self.offered & Features::PROTOCOL_FEATURES);
        self.send(Request::SetFeatures, &features.0.to_ne_bytes(), &[])
    }

    /// GET_QUEUE_NUM: queue pairs for a network device, queues for others.
    pub fn queue_num(&mut self) -> Result<u64, FrontendError> {
        self.query_u64(Request::GetQueueNum)
    }

    /// GET_MAX_MEM_SLOTS.
    pub fn max_mem_slots(&mut self) -> Result<u64, FrontendError> {
        self.query_u64(Request::GetMaxMemSlots)
    }

    /// SET_MEM_TABLE: at most eight regions.
    pub fn set_mem_table(&mut self, regions: &[MemoryRegion<'_>]) -> Result<(), FrontendError> {
        let wire: Vec<MemRegion> = regions.iter().map(MemoryRegion::on_wire).collect();
        let fds: Vec<BorrowedFd<'_>> = regions.iter().map(|region| region.file).collect();
        self.send(Request::SetMemTable, &encode_mem_table(&wire), &fds)
    }

    /// ADD_MEM_REG.
    pub fn add_mem_reg(&mut self, region: &MemoryRegion<'_>) -> Result<(), FrontendError> {
        self.send(Request::AddMemReg, &region.on_wire().encode_single(), &[region.file])
    }

    /// REM_MEM_REG.
    pub fn rem_mem_reg(&mut self, region: &MemoryRegion<'_>) -> Result<(), FrontendError> {
        self.send(Request::RemMemReg, &region.on_wire().encode_single(), &[])
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
        self.send(Request::SetVringNum, &VringState { index, num: size }.encode(), &[])?;
        self.send(Request::SetVringBase, &VringState { index, num: base }.encode(), &[])?;
        self.set_vring_addr(index, addr)?;
        self.set_vring_call(index, call)?;
        self.set_vring_kick(index, kick)
    }

    /// SET_VRING_ADDR.
    pub fn set_vring_addr(&mut self, index: u32, addr: VringAddr) -> Result<(), FrontendError> {
        let VringAddr { desc, driver, device, log } = addr;
        let flags = if log.is_some() { VringAddrs::FLAG_LOG } else { 0 };
        let wire = VringAddrs { index, flags, desc, device, driver, log: log.unwrap_or(0) };
        self.send(Request::SetVringAddr, &wire.encode(), &[])
    }

    /// SET_VRING_KICK: starts the ring. None: the back-end polls.
    pub fn set_vring_kick(&mut self, index: u32, kick: Option<BorrowedFd<'_>>) -> Result<(), FrontendError> {
        self.send_ring_fd(Request::SetVringKick, index, kick)
    }

    /// SET_VRING_CALL. None: the back-end does not notify.
    pub fn set_vring_call(&mut self, index: u32, call: Option<BorrowedFd<'_>>) -> Result<(), FrontendError> {
        self.send_ring_fd(Request::SetVringCall, index, call)
    }

    /// SET_VRING_ERR: signalled when the back-end stops the ring for a fault.
    pub fn set_vring_err(&mut self, index: u32, err: Option<BorrowedFd<'_>>) -> Result<(), FrontendError> {
        self.send_ring_fd(Request::SetVringErr, index, err)
    }

    /// VRING_KICK: a kick as a message.
    pub fn kick_in_band(&mut self, index: u32) -> Result<(), FrontendError> {
        self.send(Request::VringKick, &VringState { index, num: 0 }.encode(), &[])
    }

    /// SET_VRING_ENABLE.
    pub fn enable_ring(&mut self, index: u32, enable: bool) -> Result<(), FrontendError> {
        self.send(Request::SetVringEnable, &VringState { index, num: enable.into() }.encode(), &[])
    }

    /// GET_VRING_BASE: stops the ring and returns its base as on the wire.
    pub fn stop_ring(&mut self, index: u32) -> Result<u32, FrontendError> {
        let request = Request::GetVringBase;
        let answer = self.query(request, &VringState { index, num: 0 }.encode())?;
        let state = VringState::decode(sized(request, &answer, VringState::BYTES)?);
        if state.index == index {
            Ok(state.num)
        } else {
            Err(wrong(request, format!("for ring {} instead of {index}", state.index)))
        }
    }

    /// SET_STATUS, if STATUS was negotiated; else nothing is sent.
    pub fn set_status(&mut self, status: u8) -> Result<(), FrontendError> {
        if self.protocol & protocol::STATUS == 0 {
            return Ok(());
        }
        self.send(Request::SetStatus, &u64::from(status).to_ne_bytes(), &[])
    }

    /// GET_STATUS.
    pub fn status(&mut self) -> Result<u8, FrontendError> {
        let status = self.query_u64(Request::GetStatus)?;
        u8::try_from(status).map_err(|_| wrong(Request::GetStatus, format!("{status:#x} is no status")))
    }

    /// GET_CONFIG: `size` bytes of configuration space from `offset`.
    pub fn config(&mut self, offset: u32, size: u32) -> Result<Vec<u8>, FrontendError> {
        let request = Request::GetConfig;
        let range = ConfigRange { offset, size, flags: 0 };
        let answer = self.query(request, &range.encode(&vec![0; size as usize]))?;
        let payload = answer.payload().unwrap_or_default();
        if payload.is_empty() {
            return Err(FrontendError::Refused { request: request.name(), code: 1 });
        }
        match ConfigRange::decode(request, payload) {
            Ok((got, bytes)) if (got.offset, got.size) == (offset, size) => Ok(bytes.to_vec()),
            Ok((got, _)) => Err(wrong(request, format!("for {} bytes at {}", got.size, got.offset))),
            Err(malformed) => Err(wrong(request, malformed.to_string())),
        }
    }

    /// GET_INFLIGHT_FD: a region for the records of so many queues of so many entries. None: the back-end has none to give.
    pub fn inflight(
        &mut self,
        queues: u16,
        entries: u16,
    ) -> Result<Option<(Inflight, OwnedFd)>, FrontendError> {
        let request = Request::GetInflightFd;
        let asked = Inflight { queues, entries, ..Inflight::default() };
        let mut answer = self.query(request, &asked.encode())?;
        let region = Inflight::decode(sized(request, &answer, Inflight::BYTES)?);
        match answer.fds.pop() {
            _ if region.mmap_size == 0 => Ok(None),
            Some(fd) => Ok(Some((region, fd))),
            None => Err(wrong(request, "without its descriptor".to_owned())),
        }
    }

    /// SET_INFLIGHT_FD.
    pub fn set_inflight(&mut self, region: &Inflight, fd: BorrowedFd<'_>) -> Result<(), FrontendError> {
        self.send(Request::SetInflightFd, &region.encode(), &[fd])
    }

    /// SET_CONFIG: writes configuration space, as the driver (`migration` false) or on behalf of a migration.
    pub fn set_config(&mut self, offset: u32, bytes: &[u8], migration: bool) -> Result<(), FrontendError> {
        let range = ConfigRange { offset, size: bytes.len() as u32, flags: migration.into() };
        self.send(Request::SetConfig, &range.encode(bytes), &[])
    }

    /// SEND_RARP: the guest with this address has arrived here.
    pub fn send_rarp(&mut self, mac: [u8; 6]) -> Result<(), FrontendError> {
        let mut payload = [0; 8];
        payload[..6].copy_from_slice(&mac);
        self.send(Request::SendRarp, &payload, &[])
    }

    /// NET_SET_MTU.
    pub fn set_mtu(&mut self, mtu: u16) -> Result<(), FrontendError> {
        self.send(Request::NetSetMtu, &u64::from(mtu).to_ne_bytes(), &[])
    }

    /// RESET_DEVICE: stops and disables every ring.
    pub fn reset_device(&mut self) -> Result<(), FrontendError> {
        self.send(Request::ResetDevice, &[], &[])
    }

    /// SET_BACKEND_REQ_FD: gives the back-end a channel of its own; read it by [`Frontend::backend_message`].
    pub fn set_backend_req_fd(&mut self) -> Result<(), FrontendError> {
        let (ours, theirs) = UnixStream::pair()?;
        self.send(Request::SetBackendReqFd, &[], &[theirs.as_fd()])?;
        self.channel = Some((ours, FrameReader::default()));
        Ok(())
    }

    /// The next message of the back-end on its channel; None if none comes in time.
    pub fn backend_message(&mut self, within: Duration) -> Result<Option<BackendMessage>, FrontendError> {
        let Some((stream, reader)) = &mut self.channel else { return Ok(None) };
        let deadline = Instant::now() + within;
        let frame = loop {
            match reader.read(&*stream, Instant::now()).map_err(broken)? {
                Some(frame) => break frame,
                None => match wait_for(&*stream, PollFlags::IN, deadline) {
                    Err(e) if e.kind() == io::ErrorKind::TimedOut => return Ok(None),
                    waited => waited?,
                },
            }
        };
        let state = VringState::decode(frame.payload().unwrap_or_default());
        Ok(Some(match BackendRequest::from_number(frame.header.request) {
            Some(BackendRequest::ConfigChange) => BackendMessage::ConfigChanged,
            Some(BackendRequest::VringCall) => BackendMessage::Call(state.index),
            Some(BackendRequest::VringErr) => BackendMessage::RingError(state.index),
            _ => BackendMessage::Other(frame.header.request),
        }))
    }

    /// Sends a ring's descriptor, or none.
    fn send_ring_fd(
        &mut self,
        request: Request,
        index: u32,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), FrontendError> {
        let payload = u64::from(index) | if fd.is_none() { VRING_NO_FD } else { 0 };
        self.send(request, &payload.to_ne_bytes(), fd.as_slice())
    }

    /// Sends a request without an answer of its own; asks for an acknowledgement if both sides know them.
    pub fn send(
        &mut self,
        request: Request,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), FrontendError> {
        let acknowledged = self.protocol & protocol::REPLY_ACK != 0;
        let flags = FLAG_VERSION | if acknowledged { FLAG_NEED_REPLY } else { 0 };
        let deadline = Instant::now() + self.timeout;
        send_frame(&self.stream, Header { request: request as u32, flags, size: 0 }, payload, fds, deadline)?;
        if !acknowledged {
            return Ok(());
        }
        let answer = self.answer(request, deadline)?;
        match decode_u64(sized(request, &answer, 8)?) {
            0 => Ok(()),
            code => Err(FrontendError::Refused { request: request.name(), code }),
        }
    }

    /// Sends a request that has an answer of its own and waits for it.
    pub fn query(&mut self, request: Request, payload: &[u8]) -> Result<Frame, FrontendError> {
        let deadline = Instant::now() + self.timeout;
        let header = Header { request: request as u32, flags: FLAG_VERSION, size: 0 };
        send_frame(&self.stream, header, payload, &[], deadline)?;
        self.answer(request, deadline)
    }

    /// As [`Frontend::query`], for requests without payload that are answered by one number.
    fn query_u64(&mut self, request: Request) -> Result<u64, FrontendError> {
        let answer = self.query(request, &[])?;
        Ok(decode_u64(sized(request, &answer, 8)?))
    }

    /// Waits for the answer to `request`.
    fn answer(&mut self, request: Request, deadline: Instant) -> Result<Frame, FrontendError> {
        loop {
            if let Some(frame) = self.reader.read(&self.stream, Instant::now()).map_err(broken)? {
                let Header { request: number, flags, .. } = frame.header;
                return if number == request as u32 && frame.header.is_reply() {
                    Ok(frame)
                } else {
                    Err(wrong(request, format!("request {number}, flags {flags:#x}")))
                };
            }
            wait_for(&self.stream, PollFlags::IN, deadline)?;
        }
    }
}

impl MemoryRegion<'_> {
    fn on_wire(&self) -> MemRegion {
        let MemoryRegion { gpa, size, user_addr, file_offset, .. } = *self;
        MemRegion { gpa, size, user_addr, mmap_offset: file_offset }
    }
}

/// The payload of an answer, if it has the length that it must have.
fn sized(request: Request, frame: &Frame, bytes: usize) -> Result<&[u8], FrontendError> {
    match frame.payload() {
        Some(payload) if payload.len() == bytes => Ok(payload),
        _ => Err(wrong(request, format!("{} bytes instead of {bytes}", frame.header.size))),
    }
}

fn wrong(request: Request, why: String) -> FrontendError {
    FrontendError::Protocol { request: request.name(), why }
}

/// A connection that can no longer be read.
fn broken(broken: Broken) -> FrontendError {
    FrontendError::Io(match broken {
        Broken::Io(e) => e,
        Broken::Closed => io::Error::new(io::ErrorKind::UnexpectedEof, Broken::Closed),
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    })
}

/// How long each answer may take unless told otherwise.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
