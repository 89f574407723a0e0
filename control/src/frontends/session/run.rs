//! The thread of a session: one loop around one `poll`.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ringway_pmd::vdpa::VdpaDevice;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::plane::EnginePlane;
use super::{Command, DeviceConfig, Inbox, Report, SessionSetup};
use crate::frontends::vhost_user::{Backend, Verdict};
use crate::frontends::virtdev::{Plane, PlaneError};
use ringway_vhost_user::bucket::Bucket;
use ringway_vhost_user::connection::{Broken, FrameReader, Outbox, PEER_DEADLINE, timespec};
use ringway_vhost_user::message::Request;

/// How a session ends.
struct SessionEnd {
    reason: String,
    /// The device is gone: it is dropped, not given back.
    revoked: bool,
}

impl SessionEnd {
    fn because(reason: impl Into<String>) -> SessionEnd {
        SessionEnd { reason: reason.into(), revoked: false }
    }
}

impl From<PlaneError> for SessionEnd {
    fn from(error: PlaneError) -> SessionEnd {
        SessionEnd::because(error.to_string())
    }
}

/// Runs a session to its end. A panic here is a bug of ours; it ends this session and is told.
pub(super) fn run(setup: SessionSetup, inbox: &Inbox) {
    let (id, reports) = (setup.id, Arc::clone(&setup.reports));
    let mut session = Session::new(setup, inbox);
    let end = catch_unwind(AssertUnwindSafe(|| session.serve())).unwrap_or_else(|panic| {
        SessionEnd::because(format!("bug: the session panicked: {}", text_of(&*panic)))
    });
    let (device, reason, last) = session.close(end);
    reports(id, Report::Ended { device, reason, last });
}

/// Waits until the peer's debt is paid, or control wants the device: no front-end sheds its debt by connecting again.
fn serve_sentence(bucket: &mut Bucket, inbox: &Inbox) {
    while let Some(left) = bucket.wait(Instant::now())
        && !inbox.leave.load(Ordering::Relaxed)
    {
        let mut wake = [PollFd::new(&*inbox.wake, PollFlags::IN)];
        match poll(&mut wake, Some(&timespec(left))) {
            Ok(_) => inbox.wake.clear(),
            Err(Errno::INTR) => continue,
            Err(_) => return,
        };
    }
}

/// What a panic said.
pub(super) fn text_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

struct Session<'inbox> {
    plane: EnginePlane<'inbox>,
    backend: Backend,
    stream: UnixStream,
    inbox: &'inbox Inbox,
    reader: FrameReader,
    outbox: Outbox,
    /// Bounds the messages of the peer; what exceeds it waits in the socket.
    bucket: Bucket,
    /// The name of the last request.
    last: Option<&'static str>,
}

/// What became ready.
#[derive(Default)]
struct Ready {
    wake: bool,
    /// The peer is gone, while its socket is not read.
    hung_up: bool,
    socket: bool,
    channel_in: bool,
    channel_out: bool,
    calls: Vec<u16>,
}

impl<'inbox> Session<'inbox> {
    /// On the heap: what this thread's stack holds for as long as the session lasts is touched once for each session.
    fn new(setup: SessionSetup, inbox: &'inbox Inbox) -> Box<Session<'inbox>> {
        let SessionSetup { id, device, shared, stream, engine, lease, reports } = setup;
        let mut plane = EnginePlane::new(id, device, shared, engine, Arc::new(lease), reports, inbox);
        let now = Instant::now();
        let backend = Backend::new(&mut plane, now);
        Box::new(Session {
            plane,
            backend,
            stream,
            inbox,
            reader: FrameReader::default(),
            outbox: Outbox::default(),
            bucket: Bucket::new(MESSAGE_BURST, MESSAGES_PER_SECOND, now),
            last: None,
        })
    }

    /// Takes every queue out of service and lets go of the connection: the device if it can serve another, why it ended, and
    /// at which request.
    fn close(
        self: Box<Self>,
        end: SessionEnd,
    ) -> (Option<Box<dyn VdpaDevice>>, String, Option<&'static str>) {
        let Session { mut plane, mut backend, stream, inbox, mut bucket, last, .. } = *self;
        let closed = catch_unwind(AssertUnwindSafe(|| backend.close(&mut plane)));
        // Only now: a front-end that sees the connection end may give its rings to another device at once, so no core may
        // touch them any more.
        drop(stream);
        let mut reason = end.reason;
        let mut is_lost = false;
        match &closed {
            Ok(Ok(())) if end.revoked => plane.device.removed(),
            Ok(Ok(())) => {
                if let Err(error) = plane.reset() {
                    // Of no use to the next front-end: it is made anew.
                    is_lost = true;
                    reason.push_str(&format!("; {error}"));
                }
            }
            // Hardware may have its queues or its guest's memory still: of no use to the next front-end. What cores serve is
            // kept by whoever has it, and touches nothing new.
            Ok(Err(error)) => {
                is_lost = plane.device.facts().dma;
                reason.push_str(&format!("; {error}"));
            }
            Err(panic) => {
                is_lost = plane.device.facts().dma;
                reason.push_str(&format!("; bug: closing panicked: {}", text_of(&**panic)));
            }
        }
        bucket.spend(backend.take_cost(), Instant::now());
        drop(backend);
        serve_sentence(&mut bucket, inbox);
        inbox.over.store(true, Ordering::Relaxed);
        // Before it is told: whoever comes next may need it. Given back unless a worker did not let go, whose map keeps it.
        drop(plane.lease);
        let device = Some(plane.device).filter(|_| !end.revoked && !is_lost);
        (device, reason, last)
    }
}

impl Session<'_> {
    fn serve(&mut self) -> SessionEnd {
        loop {
            match self.turn() {
                Ok(()) => {}
                Err(end) => return end,
            }
        }
    }

    /// Waits until there is something to do, and does it.
    fn turn(&mut self) -> Result<(), SessionEnd> {
        let ready = self.wait()?;
        let now = Instant::now();
        if ready.wake {
            self.inbox.wake.clear();
            self.obey_commands()?;
            for (group, how) in self.plane.take_ended() {
                self.backend.pump_ended(&mut self.plane, group, &how);
            }
            self.backend.attend(&mut self.plane)?;
            self.bucket.spend(self.backend.take_cost(), now);
        }
        for index in &ready.calls {
            self.backend.call_in_band(*index);
        }
        let anything_to_say = self.backend.channel().is_some_and(|(_, wants_out)| wants_out);
        if ready.channel_in || ready.channel_out || anything_to_say {
            if ready.channel_in {
                self.bucket.spend(1, now);
            }
            self.backend.serve_channel(ready.channel_in, now);
        }
        if ready.hung_up {
            return Err(self.broken(Broken::Closed, now));
        }
        if ready.socket {
            self.serve_socket(now)?;
        }
        if self.backend.look_at().is_some_and(|at| at <= now) {
            self.backend.look(&mut self.plane, now)?;
            self.bucket.spend(self.backend.take_cost(), now);
        }
        self.check_deadlines(now)
    }

    /// Waits for the first of: a command, a worker or pump, the socket, the back-end channel, a call to be passed on,
    /// a deadline.
    fn wait(&mut self) -> Result<Ready, SessionEnd> {
        let pause = self.bucket.wait(Instant::now());
        let mut fds = Vec::with_capacity(3);
        fds.push(PollFd::new(&*self.inbox.wake, PollFlags::IN));
        // While the peer leaves an answer unread, no further request of it is read. While it is over its rate, nothing of its
        // socket is looked at but whether it hung up, which is told unasked.
        let socket_at = fds.len();
        let socket = match pause {
            Some(_) => PollFlags::empty(),
            None if self.outbox.is_empty() => PollFlags::IN,
            None => PollFlags::OUT,
        };
        fds.push(PollFd::new(&self.stream, socket));
        let channel_at = fds.len();
        let channel = self.backend.channel().filter(|_| pause.is_none());
        if let Some((channel, wants_out)) = channel {
            let what = if wants_out { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            fds.push(PollFd::from_borrowed_fd(channel, what));
        }
        let calls_at = fds.len();
        let mut calls = Vec::new();
        for (index, fd) in self.backend.in_band_calls() {
            calls.push(index);
            fds.push(PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
        }
        let deadlines = [self.reader.deadline(), self.outbox.deadline(), self.backend.look_at()];
        let deadline = deadlines.into_iter().flatten().min();
        let until_deadline = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = [until_deadline, pause].into_iter().flatten().min().map(timespec);
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(SessionEnd::because(format!("poll: {e}"))),
        }
        let is_ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        let out = PollFlags::OUT;
        Ok(Ready {
            wake: is_ready(0),
            socket: pause.is_none() && is_ready(socket_at),
            hung_up: pause.is_some() && is_ready(socket_at),
            channel_in: channel.is_some() && fds[channel_at].revents().intersects(!out),
            channel_out: channel.is_some() && fds[channel_at].revents().contains(out),
            calls: (calls_at..)
                .zip(&calls)
                .filter(|(at, _)| is_ready(*at))
                .map(|(_, index)| *index)
                .collect(),
        })
    }

    fn obey_commands(&mut self) -> Result<(), SessionEnd> {
        while let Some(command) = self.inbox.commands.pop() {
            match command {
                Command::Revoke => {
                    return Err(SessionEnd { reason: "the device was removed".into(), revoked: true });
                }
                Command::Close => return Err(SessionEnd::because("closed by ringway")),
                Command::Move => {
                    self.plane.follow_cores()?;
                    self.backend.moved(&mut self.plane);
                }
                Command::Set(attributes) => {
                    self.plane.set(&attributes)?;
                    self.backend.moved(&mut self.plane);
                }
                Command::ConfigChanged => {
                    let config = DeviceConfig::of(&mut *self.plane.device);
                    self.plane.report(Report::Config(config));
                    self.backend.config_changed();
                }
                Command::NeedsReset => self.backend.device_needs_reset(&mut self.plane),
            }
        }
        Ok(())
    }

    /// Goes on with an answer that is not sent yet, else with the next message.
    fn serve_socket(&mut self, now: Instant) -> Result<(), SessionEnd> {
        if !self.outbox.is_empty() {
            return self.flush();
        }
        let frame = match self.reader.read(&self.stream, now) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(()),
            Err(broken) => return Err(self.broken(broken, now)),
        };
        self.bucket.spend(1, now);
        self.last =
            Some(Request::from_number(frame.header.request).map_or("an unknown request", Request::name));
        let heard = self.plane.shared.log.hear(&frame, now);
        let verdict = self.backend.handle(&mut self.plane, frame, now);
        if let Some(heard) = heard {
            self.plane.shared.log.tell(&self.plane.shared, heard, &verdict);
        }
        self.bucket.spend(self.backend.take_cost(), now);
        match verdict {
            Verdict::Done => Ok(()),
            Verdict::Reply { header, payload } => {
                // It is empty: see above. Every answer of ours fits.
                self.outbox.put(header, &payload, now);
                self.flush()
            }
            Verdict::ReplyWith { header, payload, fd } => {
                self.outbox.put_with(header, &payload, fd, now);
                self.flush()
            }
            Verdict::Close { reason } => Err(SessionEnd::because(reason)),
        }
    }

    fn flush(&mut self) -> Result<(), SessionEnd> {
        self.outbox
            .flush(&self.stream)
            .map_err(|e| SessionEnd::because(format!("the peer closed the connection: {e}")))?;
        Ok(())
    }

    fn check_deadlines(&mut self, now: Instant) -> Result<(), SessionEnd> {
        let passed = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        if passed(self.reader.deadline()) {
            return Err(self.broken(Broken::Stalled(PEER_DEADLINE), now));
        }
        if passed(self.outbox.deadline()) {
            let detail = format!("the peer left an answer unread for {PEER_DEADLINE:?}");
            self.backend.misbehaved(&mut self.plane, "answer_unread", detail.clone(), now);
            return Err(SessionEnd::because(detail));
        }
        Ok(())
    }

    /// The connection cannot be read any more.
    fn broken(&mut self, broken: Broken, now: Instant) -> SessionEnd {
        if let Some(what) = broken.breach() {
            self.backend.misbehaved(&mut self.plane, what, broken.to_string(), now);
        }
        SessionEnd::because(broken.to_string())
    }
}

/// Messages at once, and per second in the long run. Retiring and placing a pump counts as several: see the back-end.
/// QEMU starts 16 queue pairs with some 400.
const MESSAGE_BURST: u32 = 50_000;
const MESSAGES_PER_SECOND: u32 = 25_000;
