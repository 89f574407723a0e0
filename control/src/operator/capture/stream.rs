//! The thread of a capture: takes what workers copied, puts it in order, and writes it to the client.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringway_pmd::counters::QueueCounters;
use ringway_pmd::net::capture::{QueueCapture, Wanted, buffer, records};
use ringway_ring::tsc;
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::Value;

use super::{End, Shared, direction_of};
use crate::fault::{Fault, Kind};
use crate::operator::api::{CaptureBegun, Direction};
use crate::operator::methods::text_of;
use crate::operator::pcapng::{self, Packet, Totals};
use crate::operator::rpc::{answer, error_answer, line_of};

/// Bytes of the buffers of one capture: half of them is filled while the other half is read.
const BUFFERS_BYTES: usize = 16 << 20;
/// Bytes of the buffer of one queue, at most and at least: the largest frame fits into it.
const QUEUE_BYTES: [usize; 2] = [2 << 20, 128 << 10];
/// Bytes that wait for the client, but for the frame that goes beyond it.
const OUT_BYTES: usize = 4 << 20;
/// Bytes of frames that were taken and are not written, beyond which no more are taken: what is taken at once is half of the
/// buffers.
const LEFT_BYTES: usize = 1 << 20;
/// How long a client may take nothing of the end of a capture.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How often queues' buffers are emptied.
const SWEEP: Duration = Duration::from_millis(5);
/// How long frames are kept for those of other queues that came before them.
const HELD_BACK: Duration = Duration::from_millis(2);
/// How often a thread that begins or ends tries whether a worker lets go.
const TRIES: u32 = 100;
/// How long it rests between tries after that, where it ends.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// What the thread of a capture has.
pub(super) struct Capture {
    /// Of the request, for its answer.
    pub(super) request: Value,
    pub(super) name: String,
    pub(super) description: String,
    pub(super) wanted: Arc<Wanted>,
    pub(super) count: Option<u64>,
    pub(super) queues: Vec<(u16, Arc<QueueCounters>)>,
    pub(super) shared: Arc<Shared>,
    /// How long the client may read nothing.
    pub(super) patience: Duration,
}

/// A queue that is captured.
struct Captured {
    queue: u16,
    counters: Arc<QueueCounters>,
    capture: Arc<QueueCapture>,
    /// Of the counters when it began.
    unseen: u64,
    /// What is read while the other one is filled.
    spare: Vec<u8>,
    /// Told so far.
    missed: u64,
    /// Where it is told that its end waits.
    shared: Arc<Shared>,
}

impl Capture {
    /// From the answer to the last word; `begun` is called once workers copy. An error: it could not begin, and the client was
    /// told why.
    pub(super) fn run(self, stream: UnixStream, unsent: Vec<u8>, begun: impl FnOnce()) -> Result<End, Fault> {
        let mut client = Connection { stream, out: unsent, sent: 0, moved: Instant::now() };
        let mut queues = Vec::new();
        let outcome = match self.begin(&mut queues) {
            Ok(()) => {
                begun();
                Ok(self.stream(&mut queues, &mut client))
            }
            Err(fault) => {
                client.out.extend(line_of(&error_answer(self.request.clone(), &fault)));
                client.drain(LAST_WORDS);
                Err(fault)
            }
        };
        // The client waits for no worker.
        drop(client);
        outcome
    }

    /// Makes the buffers and has workers fill them.
    fn begin(&self, begun: &mut Vec<Captured>) -> Result<(), Fault> {
        let bytes = bytes_for(self.queues.len());
        let no_memory = |_| {
            let hint =
                "fewer queues (queue N), or more memory for ringwayd (MemoryMax= of its unit, ulimit -v)";
            Fault::new(Kind::Runtime, "there is no memory for the capture").hint(hint).retryable()
        };
        for (queue, counters) in &self.queues {
            let capture = QueueCapture::new(Arc::clone(&self.wanted), bytes).map_err(no_memory)?;
            let captured = Captured {
                queue: *queue,
                counters: Arc::clone(counters),
                capture: Arc::new(capture),
                unseen: counters.unseen(),
                spare: buffer(bytes).map_err(no_memory)?,
                missed: 0,
                shared: Arc::clone(&self.shared),
            };
            begun.push(captured);
        }
        for captured in begun.iter() {
            if !(0..TRIES).any(|_| captured.counters.begin_capture(&captured.capture)) {
                let why = format!("the core that serves queue {} gets no time", captured.queue);
                return Err(Fault::new(Kind::Runtime, why).hint("ringway core show").retryable());
            }
        }
        Ok(())
    }

    /// Until it ends.
    fn stream(&self, queues: &mut [Captured], client: &mut Connection) -> End {
        let begun = CaptureBegun {
            capturing: self.name.clone(),
            queues: queues.iter().map(|captured| captured.queue).collect(),
            snaplen: self.wanted.snaplen,
        };
        client.out.extend(match text_of(&begun) {
            Ok(begun) => answer(&self.request, &begun),
            Err(fault) => line_of(&error_answer(self.request.clone(), &fault)),
        });
        pcapng::begin(&mut client.out, concat!("ringway ", env!("CARGO_PKG_VERSION")));
        pcapng::interface(&mut client.out, &self.name, &self.description, self.wanted.snaplen);
        let mut frames = Frames::default();
        let end = loop {
            if let Some(end) = self.shared.end.get() {
                break *end;
            }
            match client.wait(SWEEP) {
                Ok(true) => {}
                Ok(false) if client.moved.elapsed() >= self.patience => break End::SlowReader,
                // It has not taken the last: the queues' buffers keep what comes, as far as there is room.
                Ok(false) => {
                    self.note_missed(queues);
                    continue;
                }
                Err(_) => break End::Stopped,
            }
            // What was taken before goes first, so that it does not pile up here.
            if frames.bytes.len() <= LEFT_BYTES {
                frames.take(queues);
            }
            if self.write(&mut frames, queues, client, Some(HELD_BACK)) == Some(0) {
                break End::Count;
            }
            self.note_missed(queues);
        };
        let mut unwritten = 0;
        if end != End::Count {
            frames.take(queues);
            let mut is_taken = end != End::SlowReader;
            while is_taken
                && !frames.all.is_empty()
                && self.write(&mut frames, queues, client, None) != Some(0)
            {
                client.drain(LAST_WORDS);
                is_taken = client.is_empty();
            }
            // What nobody takes is as good as missed.
            if !is_taken {
                unwritten = frames.all.len() as u64;
            }
        }
        let missed = self.note_missed(queues) + unwritten;
        self.shared.missed.store(missed, Ordering::Relaxed);
        let comment = format!("{}: {}", end.name(), end.words());
        let totals = Totals {
            time_ns: now_ns(),
            received: self.shared.captured.load(Ordering::Relaxed) + missed,
            missed,
            comment: &comment,
        };
        pcapng::end(&mut client.out, &totals);
        client.drain(LAST_WORDS);
        end
    }

    /// Writes frames that are older than so much: how many are left then of those that were asked for.
    fn write(
        &self,
        frames: &mut Frames,
        queues: &mut [Captured],
        client: &mut Connection,
        older_than: Option<Duration>,
    ) -> Option<u64> {
        let left = self.count.map(|count| count - self.shared.captured.load(Ordering::Relaxed));
        let written = frames.write(queues, &mut client.out, left, older_than);
        self.shared.captured.fetch_add(written, Ordering::Relaxed);
        left.map(|left| left - written)
    }

    /// Brings the count of what was missed up to date.
    fn note_missed(&self, queues: &[Captured]) -> u64 {
        let missed = queues.iter().map(Captured::missed_in_all).sum();
        self.shared.missed.store(missed, Ordering::Relaxed);
        missed
    }
}

impl Captured {
    fn missed_in_all(&self) -> u64 {
        self.capture.missed() + self.counters.unseen().saturating_sub(self.unseen)
    }
}

/// Bytes of the buffer of each of so many queues.
fn bytes_for(queues: usize) -> usize {
    let [most, least] = QUEUE_BYTES;
    (BUFFERS_BYTES / 2 / queues.max(1)).clamp(least, most)
}

impl Drop for Captured {
    /// Workers fill the buffer no more.
    fn drop(&mut self) {
        let_go(|| self.counters.end_capture(&self.capture), &self.shared);
    }
}

/// Tries to end it until that is done. A worker that is kept from its core while it looks who looks on is waited for, however long
/// that takes: nothing is copied meanwhile, and the capture keeps its place, which is shown with what it waits for.
fn let_go(mut end: impl FnMut() -> bool, shared: &Shared) {
    if (0..TRIES).any(|_| end()) {
        return;
    }
    shared.waits.store(true, Ordering::Relaxed);
    while !end() {
        std::thread::sleep(TRY_AGAIN);
    }
    shared.waits.store(false, Ordering::Relaxed);
}

/// Frames that were taken from the queues and are not written yet, since others may come that are older.
#[derive(Default)]
struct Frames {
    bytes: Vec<u8>,
    all: Vec<Taken>,
    /// The time of the last that was written.
    last_ns: u64,
}

#[derive(Clone, Copy)]
struct Taken {
    at: u64,
    /// Its record in `bytes`.
    begin: usize,
    end: usize,
    /// Which of the queues.
    nth: usize,
}

impl Frames {
    /// Empties the queues' buffers.
    fn take(&mut self, queues: &mut [Captured]) {
        for (nth, captured) in queues.iter_mut().enumerate() {
            if !captured.capture.exchange(&mut captured.spare) {
                // What was there before is no news.
                captured.spare.clear();
                continue;
            }
            let mut at = self.bytes.len();
            self.bytes.reserve_exact(captured.spare.len());
            self.bytes.extend_from_slice(&captured.spare);
            self.all.reserve_exact(records(&captured.spare).count());
            for record in records(&captured.spare) {
                let begin = at;
                at += record.space();
                self.all.push(Taken { at: record.at, begin, end: at, nth });
            }
        }
    }

    /// Writes those that are older than so much, in order of their time; `most` of them at most, and as many as there is room
    /// for. How many that were.
    fn write(
        &mut self,
        queues: &mut [Captured],
        out: &mut Vec<u8>,
        most: Option<u64>,
        older_than: Option<Duration>,
    ) -> u64 {
        let (cycles, ns, hertz) = (tsc::cycles(), now_ns(), u128::from(tsc::hertz().max(1)));
        let held_back = older_than.map_or(0, |time| (time.as_nanos() * hertz / 1_000_000_000) as u64);
        self.all.sort_unstable_by_key(|taken| (taken.at, taken.begin));
        let due = self.all.partition_point(|taken| cycles.saturating_sub(taken.at) >= held_back);
        let due = most.map_or(due, |most| due.min(usize::try_from(most).unwrap_or(usize::MAX)));
        let mut written = 0;
        for taken in self.all.iter().take(due) {
            if out.len() >= OUT_BYTES {
                break;
            }
            written += 1;
            let bytes = self.bytes.get(taken.begin..taken.end).unwrap_or_default();
            let (Some(record), Some(captured)) = (records(bytes).next(), queues.get_mut(taken.nth)) else {
                continue;
            };
            let ago_ns = u128::from(cycles.saturating_sub(taken.at)) * 1_000_000_000 / hertz;
            let time_ns = ns.saturating_sub(ago_ns as u64);
            // By two readings of the clock; one that was set back is believed.
            let time_ns = if self.last_ns.abs_diff(time_ns) < CLOCK_STEP_NS {
                time_ns.max(self.last_ns)
            } else {
                time_ns
            };
            self.last_ns = time_ns;
            let comment = record.dropped.map(|reason| format!("dropped: {}", reason.name()));
            let packet = Packet {
                time_ns,
                len: record.len,
                bytes: record.bytes,
                queue: captured.queue.into(),
                is_inbound: direction_of(captured.queue) == Direction::In,
                missed: record.missed.saturating_sub(captured.missed),
                comment: comment.as_deref(),
            };
            captured.missed = record.missed;
            pcapng::packet(out, &packet);
        }
        self.all.drain(..written);
        // What stays moves to the front, each to where it ends before it began.
        self.all.sort_unstable_by_key(|taken| taken.begin);
        let mut end = 0;
        for taken in &mut self.all {
            let (begin, len) = (end, taken.end - taken.begin);
            self.bytes.copy_within(taken.begin..taken.end, begin);
            end += len;
            (taken.begin, taken.end) = (begin, end);
        }
        self.bytes.truncate(end);
        written as u64
    }
}

/// Times of frames may differ by so much from each other's order without the clock having been set.
const CLOCK_STEP_NS: u64 = 1_000_000;

/// The client's connection.
struct Connection {
    stream: UnixStream,
    out: Vec<u8>,
    sent: usize,
    /// When something went last.
    moved: Instant,
}

impl Connection {
    fn is_empty(&self) -> bool {
        self.sent == self.out.len()
    }

    /// Writes for as long at most; and waits as long if there is nothing to write. True: all is written. An error: the client has
    /// gone or wants no more.
    fn wait(&mut self, within: Duration) -> io::Result<bool> {
        let until = Instant::now() + within;
        loop {
            self.write()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(self.is_empty());
            }
            let flags = if self.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            let mut fds = [PollFd::new(&self.stream, flags)];
            let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if fds[0].revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                self.read()?;
            }
        }
    }

    /// What a client says meanwhile means nothing; that it says no more does.
    fn read(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(()),
            Err(error) if is_no_error(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn write(&mut self) -> io::Result<()> {
        while let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.sent += count;
                    self.moved = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_no_error(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.sent = 0;
        // Who has taken all is not slow.
        self.moved = Instant::now();
        Ok(())
    }

    /// Writes the last of it, to a client that may have said that it says no more, for as long as it takes something now and then.
    fn drain(&mut self, within: Duration) {
        self.moved = Instant::now();
        while self.write().is_ok() && !self.is_empty() && self.moved.elapsed() < within {
            let mut fds = [PollFd::new(&self.stream, PollFlags::OUT)];
            let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            let _ = poll(&mut fds, Some(&timeout));
        }
    }
}

fn is_no_error(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use ringway_pmd::counters::DropReason;
    use serde_json::json;

    use super::super::{SLOWEST_READER, SNAPLEN};
    use super::*;

    struct Bed {
        counters: Arc<QueueCounters>,
        shared: Arc<Shared>,
        client: UnixStream,
        thread: std::thread::JoinHandle<End>,
    }

    impl Bed {
        fn begin(patience: Duration, count: Option<u64>) -> Bed {
            let (ours, client) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let (counters, shared) = (Arc::<QueueCounters>::default(), Arc::<Shared>::default());
            let wanted = Wanted { filter: None, snaplen: SNAPLEN, only_drops: false };
            let capture = Capture {
                request: json!(7),
                name: "a".into(),
                description: "sim/net".into(),
                wanted: Arc::new(wanted),
                count,
                queues: vec![(1, Arc::clone(&counters))],
                shared: Arc::clone(&shared),
                patience,
            };
            let run = move || capture.run(ours, b"before\n".to_vec(), || ()).unwrap();
            let thread = std::thread::spawn(run);
            while !counters.is_captured() {
                std::thread::yield_now();
            }
            Bed { counters, shared, client, thread }
        }

        fn show(&self, frames: usize) {
            let frame = [0x55; 1500];
            (0..frames)
                .for_each(|_| self.counters.capture_bytes(&frame, Some(DropReason::Vlan), tsc::cycles()));
        }
    }

    /// Frames and totals of what a client was sent, behind two lines.
    fn read(bytes: &[u8]) -> (u64, u64, u64, String) {
        let mut lines = bytes.splitn(3, |byte| *byte == b'\n');
        assert_eq!(lines.next(), Some(&b"before"[..]));
        let begun: Value = serde_json::from_slice(lines.next().unwrap()).unwrap();
        assert_eq!(begun["result"], json!({ "capturing": "a", "queues": [1], "snaplen": SNAPLEN }));
        let (mut rest, mut frames) = (lines.next().unwrap(), 0);
        while let Some((kind, block)) = pcapng::first_block(rest).unwrap() {
            frames += u64::from(kind == pcapng::ENHANCED_PACKET);
            if let Some(totals) = pcapng::totals(kind, block) {
                return (frames, totals.received, totals.missed, totals.comment.to_owned());
            }
            rest = &rest[block.len()..];
        }
        panic!("no totals behind {frames} frames");
    }

    #[test]
    fn client_may_leave_a_capture_unread_for_so_long_and_no_longer() {
        // Far longer than a machine that is busy keeps who reads from his core.
        let patience = Duration::from_millis(1500);
        let bed = Bed::begin(patience, None);
        let begun = Instant::now();
        // More than the socket holds.
        bed.show(1000);
        assert_eq!(bed.thread.join().unwrap(), End::SlowReader);
        assert!(begun.elapsed() >= patience && !bed.counters.is_captured());
        // One that reads now and then goes on for as long as it likes.
        let mut bed = Bed::begin(patience, None);
        let mut bytes = vec![0; 1 << 20];
        let mut taken = Vec::new();
        for _ in 0..8 {
            bed.show(400);
            std::thread::sleep(patience / 5);
            let count = bed.client.read(&mut bytes).unwrap();
            taken.extend_from_slice(&bytes[..count]);
        }
        assert!(!bed.thread.is_finished());
        bed.client.shutdown(std::net::Shutdown::Write).unwrap();
        bed.client.read_to_end(&mut taken).unwrap();
        assert_eq!(bed.thread.join().unwrap(), End::Stopped);
        let (frames, received, missed, comment) = read(&taken);
        assert_eq!((received, frames + missed), (3200, 3200));
        assert_eq!(comment, "stopped: by whoever asked for it");
    }

    #[test]
    fn capture_ends_after_as_many_frames_as_were_asked_for_or_when_control_says_so() {
        let mut bed = Bed::begin(SLOWEST_READER, Some(5));
        bed.show(9);
        let mut bytes = Vec::new();
        bed.client.read_to_end(&mut bytes).unwrap();
        assert_eq!(bed.thread.join().unwrap(), End::Count);
        assert_eq!(read(&bytes), (5, 5, 0, "count: as many frames as were asked for".to_owned()));
        let mut bed = Bed::begin(SLOWEST_READER, None);
        bed.show(9);
        bed.shared.end.set(End::DeviceRemoved).unwrap();
        let mut bytes = Vec::new();
        bed.client.read_to_end(&mut bytes).unwrap();
        assert_eq!(bed.thread.join().unwrap(), End::DeviceRemoved);
        assert_eq!(read(&bytes), (9, 9, 0, "device_removed: the device was removed".to_owned()));
    }

    #[test]
    fn end_waits_for_a_worker_that_gets_no_time_and_says_so_until_it_is_done() {
        for (needed, told) in [(1, 0), (TRIES, 0), (TRIES + 1, 1), (TRIES + 3, 3)] {
            let (shared, mut was_told) = (Shared::default(), Vec::new());
            let end = || {
                was_told.push(shared.waits.load(Ordering::Relaxed));
                was_told.len() == needed as usize
            };
            let_go(end, &shared);
            assert_eq!(was_told.iter().filter(|told| **told).count(), told, "{needed}");
            assert!(!shared.waits.load(Ordering::Relaxed));
        }
    }

    #[test]
    fn what_finds_no_room_in_a_queues_buffer_is_missed_and_counted() {
        let mut bed = Bed::begin(SLOWEST_READER, None);
        // Faster than it is taken: several times the buffer.
        let frames = 4 * bytes_for(1) / 1500;
        bed.show(frames);
        bed.client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut bytes = Vec::new();
        bed.client.read_to_end(&mut bytes).unwrap();
        bed.thread.join().unwrap();
        let (written, received, missed, _) = read(&bytes);
        assert_eq!((received, written + missed), (frames as u64, frames as u64));
        assert_eq!(bed.shared.missed.load(Ordering::Relaxed), missed);
    }

    #[test]
    fn capture_of_small_frames_takes_no_more_memory_than_is_said() {
        let counters = Arc::<QueueCounters>::default();
        let wanted = Arc::new(Wanted { filter: None, snaplen: 14, only_drops: false });
        let bytes = BUFFERS_BYTES / 2;
        let capture = Arc::new(QueueCapture::new(Arc::clone(&wanted), bytes).unwrap());
        assert!(counters.begin_capture(&capture));
        let spare = buffer(bytes).unwrap();
        let shared = Arc::default();
        let captured = Captured { queue: 1, counters, capture, unseen: 0, spare, missed: 0, shared };
        let (mut queues, mut frames, mut out) = (vec![captured], Frames::default(), Vec::new());
        let mut all: u64 = 0;
        while queues[0].capture.missed() == 0 {
            queues[0].counters.capture_bytes(&[0x55; 60], None, all);
            all += 1;
        }
        all -= 1;
        frames.take(&mut queues);
        assert_eq!(frames.all.len() as u64, all);
        assert!(frames.bytes.capacity() <= bytes + LEFT_BYTES);
        let taken = frames.all.capacity() * size_of::<Taken>();
        assert!(BUFFERS_BYTES + bytes + LEFT_BYTES + taken + OUT_BYTES <= 40 << 20, "{taken}");
        let (mut written, mut pieces) = (0, 0);
        while !frames.all.is_empty() {
            written += frames.write(&mut queues, &mut out, None, None);
            assert!(out.len() < OUT_BYTES + 1000, "{}", out.len());
            pieces += 1;
            out.clear();
            // What is left of it is as it was.
            assert!(records(&frames.bytes).map(|record| record.at).eq(written..all));
        }
        assert!(written == all && pieces > 2 && frames.bytes.is_empty(), "{written} {pieces}");
    }

    #[test]
    fn queues_of_a_device_share_the_memory_of_a_capture_and_each_has_room_for_the_largest_frame() {
        assert_eq!([1, 4, 8, 64, 1000].map(bytes_for), [2 << 20, 2 << 20, 1 << 20, 128 << 10, 128 << 10]);
        // The largest frame, with its headers.
        assert!(bytes_for(1000) > 64 * 1024 + 4096);
        assert!(2 * 64 * bytes_for(64) <= BUFFERS_BYTES);
    }
}
