//! Framing: whole messages out of a stream socket and into it, whatever the peer does to their pieces.
//!
//! [`FrameReader`] reads what is there and never waits: one byte and then silence costs nobody anything, a body may
//! come in pieces, and the frame that has begun keeps a deadline. [`Outbox`] holds at most one message that the peer
//! has not taken yet; while it does, its owner reads no further request. Neither allocates: a payload longer than any
//! supported message has ([`MAX_PAYLOAD`]) is skipped without being kept, one longer than [`MAX_SKIPPED`] ends the
//! connection.
//!
//! Descriptors that come with a message belong to it and are closed with it; those beyond [`MAX_FDS`] are closed at
//! once and make the message a failed one.
//!
//! Owned by the session's thread (or the front-end's caller).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, send, sendmsg,
};
use rustix::time::Timespec;

use crate::message::{
    FLAG_VERSION, FLAG_VERSION_MASK, HEADER_BYTES, Header, MAX_FDS, MAX_PAYLOAD, MAX_SKIPPED,
};

/// How long a peer may take from the first byte of a message to its last, and to take a reply.
pub const PEER_DEADLINE: Duration = Duration::from_secs(10);

/// A whole message. Its descriptors are closed when it is dropped.
#[derive(Debug)]
pub struct Frame {
    /// The header.
    pub header: Header,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
    /// Why not all of its descriptors are here; those are closed already.
    pub lost_fds: Option<LostFds>,
    body: [u8; MAX_PAYLOAD],
}

impl Frame {
    /// The payload, or None if it was longer than [`MAX_PAYLOAD`] and skipped.
    pub fn payload(&self) -> Option<&[u8]> {
        self.body.get(..self.header.size as usize)
    }
}

/// Why descriptors of a message were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostFds {
    /// There were more than [`MAX_FDS`].
    TooMany,
    /// This process has no descriptor left to take them.
    NoneLeft,
}

/// Why nothing more can be read from a connection.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The peer closed it between messages.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer closed it inside a message.
    #[error("the peer closed the connection inside a message")]
    Truncated,
    /// The header has another version than 1.
    #[error("message {request} has flags {flags:#x}: not version 1")]
    Version {
        /// Number of the request.
        request: u32,
        /// The flags.
        flags: u32,
    },
    /// The payload claimed is longer than is skipped.
    #[error("message {request} claims {size} bytes")]
    Oversize {
        /// Number of the request.
        request: u32,
        /// Bytes claimed.
        size: u32,
    },
    /// The message that was begun did not end in time.
    #[error("a message that was begun did not end within {0:?}")]
    Stalled(Duration),
    /// The socket failed.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
}

impl Broken {
    /// A stable short name if the peer broke the protocol; None if it just left.
    pub fn breach(&self) -> Option<&'static str> {
        match self {
            Broken::Closed | Broken::Io(_) => None,
            Broken::Truncated => Some("message_truncated"),
            Broken::Version { .. } => Some("message_version"),
            Broken::Oversize { .. } => Some("message_oversize"),
            Broken::Stalled(_) => Some("message_stalled"),
        }
    }
}

/// Reads messages, as far as they have come.
#[derive(Debug)]
pub struct FrameReader {
    head: [u8; HEADER_BYTES],
    body: [u8; MAX_PAYLOAD],
    /// Bytes of the current message that have come, header included.
    got: usize,
    fds: Vec<OwnedFd>,
    lost_fds: Option<LostFds>,
    /// When the first byte of the current message came.
    since: Option<Instant>,
}

impl Default for FrameReader {
    fn default() -> FrameReader {
        FrameReader {
            head: [0; HEADER_BYTES],
            body: [0; MAX_PAYLOAD],
            got: 0,
            fds: Vec::new(),
            lost_fds: None,
            since: None,
        }
    }
}

impl FrameReader {
    /// Reads on without waiting. `Ok(None)`: the message is not whole yet; come back when the socket is readable.
    /// Consumes at most one message.
    pub fn read(&mut self, socket: impl AsFd, now: Instant) -> Result<Option<Frame>, Broken> {
        let socket = socket.as_fd();
        loop {
            let header = Header::decode(&self.head);
            let end =
                if self.got < HEADER_BYTES { HEADER_BYTES } else { HEADER_BYTES + header.size as usize };
            if self.got >= HEADER_BYTES && self.got == end {
                return Ok(Some(self.take(header)));
            }
            let wanted = end - self.got;
            let mut skipped = [0u8; 512];
            let into = if self.got < HEADER_BYTES {
                &mut self.head[self.got..]
            } else if header.size as usize <= MAX_PAYLOAD {
                &mut self.body[self.got - HEADER_BYTES..end - HEADER_BYTES]
            } else {
                &mut skipped[..wanted.min(512)]
            };
            let came = match receive(socket, into, &mut self.fds, &mut self.lost_fds) {
                Ok(0) if self.got == 0 => return Err(Broken::Closed),
                Ok(0) => return Err(Broken::Truncated),
                Ok(came) => came,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::CONNRESET) => return Err(Broken::Closed),
                Err(other) => return Err(Broken::Io(other.into())),
            };
            if self.got == 0 {
                self.since = Some(now);
            }
            self.got += came;
            if self.got == HEADER_BYTES {
                let Header { request, flags, size } = Header::decode(&self.head);
                if flags & FLAG_VERSION_MASK != FLAG_VERSION {
                    return Err(Broken::Version { request, flags });
                }
                if size as usize > MAX_SKIPPED {
                    return Err(Broken::Oversize { request, size });
                }
            }
        }
    }

    /// When the message that was begun must have ended; None between messages.
    pub fn deadline(&self) -> Option<Instant> {
        self.since.map(|since| since + PEER_DEADLINE)
    }

    /// The current message is whole: hands it out and begins anew.
    fn take(&mut self, header: Header) -> Frame {
        self.got = 0;
        self.since = None;
        Frame {
            header,
            fds: std::mem::take(&mut self.fds),
            lost_fds: std::mem::take(&mut self.lost_fds),
            body: self.body,
        }
    }
}

/// One `recvmsg` without waiting. Adds descriptors to `fds` up to [`MAX_FDS`]; closes those beyond and says so.
fn receive(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    lost: &mut Option<LostFds>,
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(into)], &mut control, flags)?;
    let mut came = 0;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            for fd in rights {
                came += 1;
                if fds.len() < MAX_FDS {
                    fds.push(fd);
                } else {
                    *lost = Some(LostFds::TooMany);
                }
            }
        }
    }
    // The kernel closed what did not fit: into our buffer, or, if there was room in that, into this process.
    if received.flags.contains(ReturnFlags::CTRUNC) {
        *lost = Some(if came < MAX_FDS { LostFds::NoneLeft } else { LostFds::TooMany });
    }
    Ok(received.bytes)
}

/// At most one outgoing message, with a descriptor at most.
#[derive(Debug)]
pub struct Outbox {
    bytes: [u8; HEADER_BYTES + MAX_PAYLOAD],
    len: usize,
    sent: usize,
    /// Goes with the first byte.
    fd: Option<OwnedFd>,
    since: Option<Instant>,
}

impl Default for Outbox {
    fn default() -> Outbox {
        Outbox { bytes: [0; HEADER_BYTES + MAX_PAYLOAD], len: 0, sent: 0, fd: None, since: None }
    }
}

impl Outbox {
    /// True if the peer has taken everything.
    pub fn is_empty(&self) -> bool {
        self.sent == self.len
    }

    /// Puts a message in; false if one is there still, or if it is longer than any message of ours.
    pub fn put(&mut self, header: Header, payload: &[u8], now: Instant) -> bool {
        if !self.is_empty() || payload.len() > MAX_PAYLOAD {
            return false;
        }
        let header = Header { size: payload.len() as u32, ..header };
        self.bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
        self.bytes[HEADER_BYTES..HEADER_BYTES + payload.len()].copy_from_slice(payload);
        (self.len, self.sent, self.since) = (HEADER_BYTES + payload.len(), 0, Some(now));
        true
    }

    /// As [`Outbox::put`], with a descriptor.
    pub fn put_with(&mut self, header: Header, payload: &[u8], fd: OwnedFd, now: Instant) -> bool {
        let is_put = self.put(header, payload, now);
        if is_put {
            self.fd = Some(fd);
        }
        is_put
    }

    /// Sends as much as the peer takes without waiting. True once nothing is left.
    pub fn flush(&mut self, socket: impl AsFd) -> io::Result<bool> {
        while !self.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let bytes = &self.bytes[self.sent..self.len];
            let sent = match &self.fd {
                None => send(&socket, bytes, flags),
                Some(fd) => {
                    let fd = [fd.as_fd()];
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                    let mut control = SendAncillaryBuffer::new(&mut space);
                    // There is room for it.
                    control.push(SendAncillaryMessage::ScmRights(&fd));
                    sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags)
                }
            };
            match sent {
                Ok(sent) => {
                    self.sent += sent;
                    self.fd = None;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(other) => return Err(other.into()),
            }
        }
        self.since = None;
        Ok(true)
    }

    /// When the peer must have taken the message; None if it has.
    pub fn deadline(&self) -> Option<Instant> {
        self.since.map(|since| since + PEER_DEADLINE)
    }
}

/// Sends one message with its descriptors, waiting until `deadline` at most. For the front-end's side.
pub fn send_frame(
    socket: impl AsFd,
    header: Header,
    payload: &[u8],
    fds: &[BorrowedFd<'_>],
    deadline: Instant,
) -> io::Result<()> {
    let header = Header { size: payload.len() as u32, ..header };
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend_from_slice(&header.encode());
    bytes.extend_from_slice(payload);
    let mut sent = 0;
    while sent < bytes.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        // The descriptors go with the first byte, once.
        let beside = if sent == 0 { fds } else { &[] };
        if !beside.is_empty() && !control.push(SendAncillaryMessage::ScmRights(beside)) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "more descriptors than a message may have",
            ));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(&socket, &[IoSlice::new(&bytes[sent..])], &mut control, flags) {
            Ok(more) => sent += more,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(&socket, PollFlags::OUT, deadline)?,
            Err(other) => return Err(other.into()),
        }
    }
    Ok(())
}

/// Waits until the socket is ready or the deadline has passed (`TimedOut`).
pub fn wait_for(socket: impl AsFd, what: PollFlags, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut polled = [PollFd::new(&socket, what)];
        match poll(&mut polled, Some(&timespec(left))) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::TimedOut)),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(other) => return Err(other.into()),
        }
    }
}

/// A duration as the kernel takes it.
pub fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs().min(i32::MAX as u64) as i64,
        tv_nsec: duration.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::message::{FLAG_NEED_REPLY, MemRegion, Request, encode_mem_table};

    fn header(request: Request) -> Header {
        Header { request: request as u32, flags: FLAG_VERSION, size: 0 }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    fn a_file(name: &str) -> OwnedFd {
        rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap()
    }

    /// Open descriptors of files that `a_file` made under this name: other tests run in the same process.
    fn open_files(name: &str) -> usize {
        let start = format!("/memfd:{name}");
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter(|link| link.to_string_lossy().starts_with(&start))
            .count()
    }

    #[test]
    fn message_split_at_every_byte_arrives_whole() {
        let region = MemRegion { gpa: 0, size: 4096, user_addr: 7, mmap_offset: 0 };
        let payload = encode_mem_table(&[region, region]);
        let mut wire =
            Header { size: payload.len() as u32, ..header(Request::SetMemTable) }.encode().to_vec();
        wire.extend_from_slice(&payload);
        for at in 0..=wire.len() {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let mut reader = FrameReader::default();
            theirs.write_all(&wire[..at]).unwrap();
            let early = reader.read(&ours, Instant::now()).unwrap();
            assert_eq!(early.is_some(), at == wire.len());
            assert_eq!(reader.deadline().is_some(), at > 0 && at < wire.len());
            theirs.write_all(&wire[at..]).unwrap();
            let frame = early.or_else(|| reader.read(&ours, Instant::now()).unwrap()).expect("whole");
            assert_eq!(frame.payload(), Some(&payload[..]));
            assert!(reader.read(&ours, Instant::now()).unwrap().is_none());
        }
    }

    #[test]
    fn two_messages_in_one_write_are_two_messages() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let one = header(Request::GetFeatures).encode();
        theirs.write_all(&[one, one].concat()).unwrap();
        let mut reader = FrameReader::default();
        for _ in 0..2 {
            assert_eq!(
                reader.read(&ours, Instant::now()).unwrap().unwrap().header,
                header(Request::GetFeatures)
            );
        }
        drop(theirs);
        assert!(matches!(reader.read(&ours, Instant::now()), Err(Broken::Closed)));
    }

    #[test]
    fn descriptors_arrive_with_their_message_and_close_with_it() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let files: Vec<_> = (0..MAX_FDS).map(|_| a_file("arrive")).collect();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        send_frame(&theirs, header(Request::SetMemTable), &[0; 8], &fds, soon()).unwrap();
        drop(files);
        let frame = FrameReader::default().read(&ours, Instant::now()).unwrap().unwrap();
        assert_eq!((frame.fds.len(), frame.lost_fds), (MAX_FDS, None));
        drop(frame);
        assert_eq!(open_files("arrive"), 0);
    }

    #[test]
    fn descriptors_beyond_the_limit_are_closed_and_told() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut reader = FrameReader::default();
        // In two parts of one message, and more than fit the control buffer in one.
        let wire = Header { size: 8, ..header(Request::SetFeatures) }.encode();
        let files: Vec<_> = (0..20).map(|_| a_file("beyond")).collect();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        for (part, fds) in [(&wire[..4], &fds[..6]), (&wire[4..], &fds[6..]), (&[0; 8], &fds[..1])] {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(20))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
            sendmsg(&theirs, &[IoSlice::new(part)], &mut control, SendFlags::empty()).unwrap();
        }
        drop(files);
        let frame = reader.read(&ours, Instant::now()).unwrap().unwrap();
        assert_eq!((frame.fds.len(), frame.lost_fds), (MAX_FDS, Some(LostFds::TooMany)));
        drop(frame);
        assert_eq!(open_files("beyond"), 0);
    }

    #[test]
    fn as_many_descriptors_as_a_message_may_have_are_kept() {
        for count in [MAX_FDS - 1, MAX_FDS, MAX_FDS + 1] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let files: Vec<_> = (0..count).map(|_| a_file("border")).collect();
            let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(20))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
            let wire = header(Request::GetFeatures).encode();
            sendmsg(&theirs, &[IoSlice::new(&wire)], &mut control, SendFlags::empty()).unwrap();
            let frame = FrameReader::default().read(&ours, Instant::now()).unwrap().unwrap();
            let lost = (count > MAX_FDS).then_some(LostFds::TooMany);
            assert_eq!((frame.fds.len(), frame.lost_fds), (count.min(MAX_FDS), lost));
        }
    }

    #[test]
    fn half_a_message_with_descriptors_leaks_none_when_dropped() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = a_file("half");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [file.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&theirs, &[IoSlice::new(&[1])], &mut control, SendFlags::empty()).unwrap();
        let mut reader = FrameReader::default();
        assert!(reader.read(&ours, Instant::now()).unwrap().is_none());
        drop(file);
        drop(theirs);
        assert!(matches!(reader.read(&ours, Instant::now()), Err(Broken::Truncated)));
        drop(reader);
        assert_eq!(open_files("half"), 0);
    }

    #[test]
    fn long_payload_is_skipped_and_the_next_message_read() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let long = vec![7; MAX_PAYLOAD + 1];
        send_frame(&theirs, header(Request::SetConfig), &long, &[], soon()).unwrap();
        send_frame(&theirs, header(Request::GetFeatures), &[], &[], soon()).unwrap();
        let mut reader = FrameReader::default();
        assert!(reader.read(&ours, Instant::now()).unwrap().unwrap().payload().is_none());
        let next = reader.read(&ours, Instant::now()).unwrap().unwrap();
        assert_eq!(next.header.request, Request::GetFeatures as u32);
    }

    #[test]
    fn lengths_at_the_borders_are_kept_skipped_or_the_end() {
        for (len, is_kept) in [(MAX_PAYLOAD - 1, true), (MAX_PAYLOAD, true), (MAX_PAYLOAD + 1, false)] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            send_frame(&theirs, header(Request::SetConfig), &vec![7; len], &[], soon()).unwrap();
            let frame = FrameReader::default().read(&ours, Instant::now()).unwrap().unwrap();
            assert_eq!(frame.payload().map(<[u8]>::len), is_kept.then_some(len));
        }
        for (len, is_skipped) in [(MAX_SKIPPED - 1, true), (MAX_SKIPPED, true), (MAX_SKIPPED + 1, false)] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(&Header { size: len as u32, ..header(Request::SetConfig) }.encode()).unwrap();
            theirs.write_all(&vec![7; len]).unwrap();
            match FrameReader::default().read(&ours, Instant::now()) {
                Ok(frame) => assert!(is_skipped && frame.unwrap().payload().is_none(), "{len}"),
                Err(why) => assert!(!is_skipped && matches!(why, Broken::Oversize { .. }), "{len}: {why:?}"),
            }
        }
    }

    #[test]
    fn half_a_message_has_until_the_deadline() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (began, mut reader) = (Instant::now(), FrameReader::default());
        assert!(reader.read(&ours, began).unwrap().is_none());
        assert_eq!(reader.deadline(), None, "silence is no half of a message");
        theirs.write_all(&[1]).unwrap();
        assert!(reader.read(&ours, began).unwrap().is_none());
        // More of it does not move the deadline.
        theirs.write_all(&[0]).unwrap();
        assert!(reader.read(&ours, began + Duration::from_secs(1)).unwrap().is_none());
        assert_eq!(reader.deadline(), Some(began + PEER_DEADLINE));
    }

    #[test]
    fn claim_of_4_gib_ends_the_connection_at_once() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&Header { size: u32::MAX, ..header(Request::SetConfig) }.encode()).unwrap();
        let read = FrameReader::default().read(&ours, Instant::now());
        assert!(matches!(read, Err(Broken::Oversize { size: u32::MAX, .. })));
    }

    #[test]
    fn wrong_version_ends_the_connection() {
        for flags in [0, 2, 3, FLAG_NEED_REPLY] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(&Header { request: 1, flags, size: 0 }.encode()).unwrap();
            assert!(matches!(
                FrameReader::default().read(&ours, Instant::now()),
                Err(Broken::Version { .. })
            ));
        }
    }

    #[test]
    fn outbox_of_a_peer_that_does_not_read_waits_for_nobody() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut outbox = Outbox::default();
        let mut messages = 0;
        loop {
            assert!(outbox.put(header(Request::GetConfig), &[1; MAX_PAYLOAD], Instant::now()));
            if !outbox.flush(&ours).unwrap() {
                break;
            }
            messages += 1;
            assert!(messages < 100_000, "the socket never filled");
        }
        assert!(outbox.deadline().is_some());
        assert!(!outbox.put(header(Request::GetConfig), &[], Instant::now()), "one message at a time");
        // Once the peer reads, it gets every byte of every message.
        let mut reader = FrameReader::default();
        for _ in 0..messages {
            let frame = reader.read(&theirs, Instant::now()).unwrap().unwrap();
            assert_eq!(frame.payload(), Some(&[1; MAX_PAYLOAD][..]));
        }
        while !outbox.flush(&ours).unwrap() {}
        assert!(reader.read(&theirs, Instant::now()).unwrap().is_some());
        theirs.flush().unwrap();
    }

    proptest::proptest! {
        /// Whatever bytes come, in whatever pieces: no panic, and what was written is what is read.
        #[test]
        fn garbage_in_any_pieces_never_panics(
            pieces in proptest::collection::vec(proptest::collection::vec(0u8.., 0..64), 0..40)
        ) {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let mut reader = FrameReader::default();
            'pieces: for piece in pieces {
                theirs.write_all(&piece).unwrap();
                loop {
                    match reader.read(&ours, Instant::now()) {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'pieces,
                    }
                }
            }
        }

        /// Any sequence of well-formed messages, cut anywhere, is read back as it was.
        #[test]
        fn messages_cut_anywhere_are_read_as_written(
            messages in proptest::collection::vec((1u32..60, proptest::collection::vec(0u8.., 0..MAX_PAYLOAD)), 1..12),
            cuts in proptest::collection::vec(1usize..97, 1..50),
        ) {
            let mut wire = Vec::new();
            for (request, payload) in &messages {
                let header = Header { request: *request, flags: FLAG_VERSION, size: payload.len() as u32 };
                wire.extend_from_slice(&header.encode());
                wire.extend_from_slice(payload);
            }
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let (mut reader, mut read, mut rest) = (FrameReader::default(), Vec::new(), &wire[..]);
            for cut in cuts.iter().cycle() {
                let (piece, later) = rest.split_at((*cut).min(rest.len()));
                theirs.write_all(piece).unwrap();
                while let Some(frame) = reader.read(&ours, Instant::now()).unwrap() {
                    read.push((frame.header.request, frame.payload().unwrap().to_vec()));
                }
                rest = later;
                if rest.is_empty() { break; }
            }
            proptest::prop_assert_eq!(read, messages);
        }
    }
}
