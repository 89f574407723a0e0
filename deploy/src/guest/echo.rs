//! ICMP echo: requests of every size, each reply compared with its request, and the pulse, one request every few
//! milliseconds in the background.
//!
//! The kernel's own ICMP socket gives requests their identifier and checksum and takes replies apart; the other side's kernel
//! answers. Fragments are the kernels' as well.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringway_lab::agent::{EchoOrder, EchoReport, PulseOrder, TrafficReport};
use ringway_lab::content::Content;
use ringway_lab::ensure;
use ringway_lab::error::{Context, Error, Result};
use ringway_lab::exchange::new_run;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, sockopt};

use crate::counts::Counts;

/// Sends requests as ordered; returns when every reply is there, or none has come for the quiet time.
pub(crate) fn run(order: &EchoOrder) -> Result<EchoReport> {
    ensure!(
        order.shortest <= order.longest && order.longest <= LONGEST && order.step > 0 && order.window > 0,
        "sizes must lie within 0..={LONGEST}, step and window are at least 1"
    );
    let sizes: Vec<usize> = (order.shortest..=order.longest).step_by(order.step).collect();
    ensure!(sizes.len() <= SEQUENCES, "{} sizes are more than the {SEQUENCES} sequence numbers", sizes.len());
    let mut socket = EchoSocket::open(order.to)?;
    let start = Instant::now();
    let quiet = Duration::from_millis(order.quiet_ms);
    let mut last_progress = Instant::now();
    let mut seen = vec![false; sizes.len()];
    let mut report = EchoReport::default();
    let mut back = 0;
    while back < sizes.len() as u64 && last_progress.elapsed() < quiet {
        let next = report.sent as usize;
        // The other kernel keeps what it answers in a buffer of some 128 KiB, and says nothing when it is full.
        let window =
            u64::from(order.window).min((ANSWERED_BYTES / sizes.get(next).map_or(1, |size| size + 1)) as u64);
        if next < sizes.len() && report.sent - back < window.max(1) {
            match socket.send(next as u16, sizes[next]) {
                Ok(()) => {
                    report.sent += 1;
                    continue;
                }
                Err(Errno::AGAIN) => {}
                // A neighbour that is not known yet, a link that comes up soon.
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        let Some((sequence, size, intact)) =
            socket.receive(|sequence| sizes.get(usize::from(sequence)).copied())
        else {
            socket.wait(Duration::from_millis(20));
            continue;
        };
        last_progress = Instant::now();
        match seen.get_mut(usize::from(sequence)) {
            Some(seen) if !intact => {
                report.mismatched += 1;
                back += u64::from(!std::mem::replace(seen, true));
                note_size(&mut report, size);
            }
            Some(seen) if *seen => report.duplicated += 1,
            Some(seen) => {
                *seen = true;
                back += 1;
                report.received += 1;
            }
            None => report.mismatched += 1,
        }
    }
    for (size, _) in sizes.iter().zip(&seen).take(report.sent as usize).filter(|(_, seen)| !**seen) {
        report.missing += 1;
        note_size(&mut report, *size);
    }
    ensure!(
        report.sent == sizes.len() as u64,
        "only {} of {} requests could be sent, {} were answered",
        report.sent,
        sizes.len(),
        report.received
    );
    report.elapsed_ms = start.elapsed().as_millis() as u64;
    Ok(report)
}

fn note_size(report: &mut EchoReport, size: usize) {
    if report.bad_sizes.len() < 16 && !report.bad_sizes.contains(&size) {
        report.bad_sizes.push(size);
    }
}

/// A running pulse.
pub(crate) struct Pulse {
    counts: Arc<Counts>,
    thread: JoinHandle<()>,
}

impl Pulse {
    /// Starts.
    pub(crate) fn start(order: PulseOrder) -> Result<Pulse> {
        ensure!(order.size <= LONGEST && order.every_ms > 0, "at most {LONGEST} bytes, at least 1 ms apart");
        let socket = EchoSocket::open(order.to)?;
        let counts = Arc::new(Counts::new());
        let thread = std::thread::Builder::new()
            .name("pulse".into())
            .spawn({
                let counts = Arc::clone(&counts);
                move || keep_going(&order, &counts, socket)
            })
            .context(|| "pulse thread".into())?;
        Ok(Pulse { counts, thread })
    }

    /// What has been seen so far.
    pub(crate) fn report(&self) -> TrafficReport {
        self.counts.report()
    }

    /// Stops sending, gives replies under way a moment, and reports.
    pub(crate) fn stop(self) -> Result<TrafficReport> {
        self.counts.stop.store(true, Ordering::Release);
        self.thread.join().map_err(|_| Error::new("the pulse's thread panicked"))?;
        Ok(self.counts.report())
    }
}

/// Sends and receives until told to stop; a socket whose NIC went away is opened again.
fn keep_going(order: &PulseOrder, counts: &Counts, socket: EchoSocket) {
    let mut socket = socket;
    let every = Duration::from_millis(order.every_ms);
    let mut out = vec![false; SEQUENCES];
    let mut next = 0_u16;
    let mut due = Instant::now();
    while !counts.stop.load(Ordering::Acquire) {
        if Instant::now() >= due {
            // Behind its time it does not catch up: that would be a burst.
            due = (due + every).max(Instant::now());
            match socket.send(next, order.size) {
                Ok(()) => {
                    counts.sent.fetch_add(1, Ordering::AcqRel);
                    out[usize::from(next)] = true;
                    next = next.wrapping_add(1);
                }
                Err(_) => {
                    counts.refused.fetch_add(1, Ordering::AcqRel);
                    if let Ok(opened) = EchoSocket::open(order.to) {
                        out.fill(false);
                        socket = opened;
                    }
                }
            }
        }
        socket.take_all(order, counts, &mut out);
        socket.wait(due.saturating_duration_since(Instant::now()));
    }
    let end = Instant::now() + SETTLE;
    let last = usize::from(next.wrapping_sub(1));
    while Instant::now() < end && out[last] {
        socket.take_all(order, counts, &mut out);
        socket.wait(Duration::from_millis(5));
    }
}

/// The kernel's socket for echo requests to one address.
struct EchoSocket {
    socket: OwnedFd,
    request_type: u8,
    reply_type: u8,
    run: u32,
    out: Vec<u8>,
    expected: Vec<u8>,
    received: Vec<u8>,
}

impl EchoSocket {
    fn open(to: IpAddr) -> Result<EchoSocket> {
        let (family, protocol, request_type, reply_type) = match to {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8, 0),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128, 129),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, Some(protocol))
            .context(|| "ICMP socket".into())?;
        sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BYTES)
            .context(|| "receive buffer".into())?;
        rustix::net::connect(&socket, &SocketAddr::new(to, 0)).context(|| format!("a way to {to}"))?;
        let run = new_run();
        let (out, expected, received) = (Vec::new(), Vec::new(), vec![0; 1 << 16]);
        Ok(EchoSocket { socket, request_type, reply_type, run, out, expected, received })
    }

    fn send(&mut self, sequence: u16, size: usize) -> rustix::io::Result<()> {
        content(self.run, sequence, size, &mut self.out);
        self.out[0] = self.request_type;
        rustix::net::send(&self.socket, &self.out, SendFlags::DONTWAIT).map(|_| ())
    }

    /// The next reply: its sequence number, its request's size, and whether it is equal to it. A reply's size comes from
    /// `size_of_request`.
    fn receive(&mut self, size_of_request: impl Fn(u16) -> Option<usize>) -> Option<(u16, usize, bool)> {
        loop {
            // An error is one about an earlier request, such as "no such host": a missing reply tells the same.
            let Ok((_, count)) =
                rustix::net::recv(&self.socket, self.received.as_mut_slice(), RecvFlags::DONTWAIT)
            else {
                return None;
            };
            let reply = &self.received[..count.min(self.received.len())];
            if reply.len() < HEADER_BYTES || reply[0] != self.reply_type {
                continue;
            }
            let sequence = u16::from_be_bytes([reply[6], reply[7]]);
            let Some(size) = size_of_request(sequence) else {
                return Some((sequence, reply.len() - HEADER_BYTES, false));
            };
            content(self.run, sequence, size, &mut self.expected);
            return Some((sequence, size, reply[HEADER_BYTES..] == self.expected[HEADER_BYTES..]));
        }
    }

    /// Counts every reply that is there.
    fn take_all(&mut self, order: &PulseOrder, counts: &Counts, out: &mut [bool]) {
        while let Some((sequence, _, intact)) = self.receive(|_| Some(order.size)) {
            if !intact {
                counts.corrupt.fetch_add(1, Ordering::AcqRel);
            } else if !std::mem::replace(&mut out[usize::from(sequence)], false) {
                counts.duplicated.fetch_add(1, Ordering::AcqRel);
            } else {
                let now_ms = counts.now_ms();
                let gap_ms = now_ms.saturating_sub(counts.last_ms.load(Ordering::Acquire));
                counts.longest_gap_ms.fetch_max(gap_ms, Ordering::AcqRel);
                counts.last_ms.store(now_ms, Ordering::Release);
                counts.received.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    fn wait(&self, limit: Duration) {
        let mut poll = [PollFd::new(&self.socket, PollFlags::IN)];
        let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
        // An interrupted or failed wait is a short one: the caller looks again and has its own deadline.
        let _ = rustix::event::poll(&mut poll, Some(&limit));
    }
}

/// Header and content of a request; the type, the identifier and the checksum are not in it.
fn content(run: u32, sequence: u16, size: usize, into: &mut Vec<u8>) {
    into.clear();
    into.resize(HEADER_BYTES + size, 0);
    into[6..8].copy_from_slice(&sequence.to_be_bytes());
    Content::new((u64::from(run) << 32) | u64::from(sequence)).fill(&mut into[HEADER_BYTES..]);
}

const HEADER_BYTES: usize = 8;
/// What an IPv4 packet can hold.
const LONGEST: usize = 65_535 - 20 - HEADER_BYTES;
/// What may be under way at a time: a quarter of the kernel's buffer, since it counts memory, not bytes.
const ANSWERED_BYTES: usize = 32 << 10;
const SEQUENCES: usize = 1 << 16;
const SOCKET_BYTES: usize = 4 << 20;
const SETTLE: Duration = Duration::from_millis(100);
