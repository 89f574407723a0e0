//! The log's way to standard error: a thread of its own, since whoever reads there may have stopped.
//!
//! What is logged, and what a line looks like, is made elsewhere ([`super::logging`]).
//!
//! Everybody else hands over whole lines and goes on; what finds no room is counted, and the count is written once the
//! reader is back.
//!
//! ```text
//!   any thread --line--> [ at most 1 MiB ] --> rw-log --> standard error
//!                 |                             ^
//!                 +--no room--> count ----------+
//! ```

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that were lost in this process, which has one standard error.
static LOST: AtomicU64 = AtomicU64::new(0);

/// How many lines were lost, for operators.
pub(crate) fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// What a line is to whoever reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// For people: with the time and the level.
    Text,
    /// For journald, by its stream: with the priority in front.
    Prefixed,
    /// For journald, by its socket: an entry.
    Journal,
}

impl Form {
    /// A text that came without a level, as a line: something failed.
    fn line_of(self, text: &str) -> Vec<u8> {
        match self {
            Form::Text => format!("{}\n", text.trim_end()).into_bytes(),
            Form::Prefixed => format!("<3>{}\n", text.trim_end().replace('\n', "\n<3>")).into_bytes(),
            Form::Journal => super::logging::entry_of(3, text),
        }
    }
}

/// Hands lines over to the log's thread. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    lines: Sender<Item>,
    count: Arc<Count>,
    form: Form,
}

/// What is counted on both sides. Relaxed throughout: counts that publish nothing.
#[derive(Debug, Default)]
struct Count {
    /// Bytes that wait.
    waiting: AtomicUsize,
    /// Lines lost and not told.
    untold: AtomicU64,
}

impl Count {
    fn lose(&self) {
        self.untold.fetch_add(1, Ordering::Relaxed);
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
enum Item {
    Line(Box<[u8]>),
    /// Tells when everything before it is written.
    Mark(Sender<()>),
}

impl Log {
    /// Starts the thread, which ends when the last sender is gone.
    pub(crate) fn start(to: impl Write + Send + 'static, form: Form) -> io::Result<Log> {
        let (lines, taken) = bounded(LINES);
        let count = Arc::new(Count::default());
        let counted = Arc::clone(&count);
        std::thread::Builder::new()
            .name("rw-log".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || write_out(to, &taken, &counted, form))?;
        Ok(Log { lines, count, form })
    }

    /// What its lines are.
    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// Adds what somebody has to say who knows no levels. Never waits.
    pub(crate) fn add_text(&self, text: &str) {
        self.add(&self.form.line_of(text));
    }

    /// Adds a line, its end included. Never waits.
    pub(crate) fn add(&self, line: &[u8]) {
        let before = self.count.waiting.fetch_add(line.len(), Ordering::Relaxed);
        // One line finds room, however long.
        let has_room = before == 0 || before + line.len() <= BYTES;
        if !has_room || self.lines.try_send(Item::Line(line.into())).is_err() {
            self.count.waiting.fetch_sub(line.len(), Ordering::Relaxed);
            self.count.lose();
        }
    }

    /// Waits until what was logged is written, for as long at most.
    pub(crate) fn flush(&self, within: Duration) {
        let begun = std::time::Instant::now();
        let (told, written) = bounded(1);
        if self.lines.send_timeout(Item::Mark(told), within).is_ok() {
            let _ = written.recv_timeout(within.saturating_sub(begun.elapsed()));
        }
    }

    /// Has panics told here: the standard library writes to standard error on the thread that panicked, which may be one
    /// that must not wait.
    pub(crate) fn take_panics(&self) {
        let log = self.clone();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            let mut text = format!("thread {}: {panic}\n", thread.name().unwrap_or("without a name"));
            let trace = std::backtrace::Backtrace::capture();
            if trace.status() == std::backtrace::BacktraceStatus::Captured {
                text.push_str(&trace.to_string());
            }
            log.add_text(&text);
        }));
    }
}

fn write_out(mut to: impl Write, taken: &Receiver<Item>, count: &Count, form: Form) {
    while let Ok(item) = taken.recv() {
        match item {
            Item::Line(line) => {
                // Standard error does not work: nobody but an operator who asks can be told.
                if to.write_all(&line).is_err() {
                    LOST.fetch_add(1, Ordering::Relaxed);
                }
                count.waiting.fetch_sub(line.len(), Ordering::Relaxed);
            }
            Item::Mark(told) => drop(told.send(())),
        }
        let n = count.untold.swap(0, Ordering::Relaxed);
        if n > 0 {
            let text = format!("{n} lines of the log were lost: whoever reads it was too slow");
            let _ = to.write_all(&form.line_of(&text));
        }
    }
}

/// One event's writer: what is written in one call is a line.
impl Write for &Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'log> MakeWriter<'log> for Log {
    type Writer = &'log Log;

    fn make_writer(&'log self) -> &'log Log {
        self
    }
}

/// What waits for a slow reader, in lines and in bytes: a line holds what an operator asked for, up to 256 KiB.
const LINES: usize = 1024;
const BYTES: usize = 1024 * 1024;
const STACK_BYTES: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    /// Sends `sent` lines of `bytes` while nobody reads; those that came, after it was held that no other is missing uncounted.
    fn came(sent: usize, bytes: usize) -> usize {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        // Whatever a socket of this machine holds else.
        rustix::net::sockopt::set_socket_send_buffer_size(&writer, 100 * 1024).unwrap();
        let log = Log::start(writer, Form::Text).unwrap();
        let line = [b'x'].repeat(bytes - 1).into_iter().chain([b'\n']).collect::<Vec<u8>>();
        for _ in 0..sent {
            (&log).write_all(&line).unwrap();
        }
        let begun = Instant::now();
        log.flush(Duration::from_millis(50));
        assert!(begun.elapsed() < Duration::from_secs(5));
        drop(log);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let lost: usize = text
            .lines()
            .filter_map(|line| {
                line.strip_suffix(" lines of the log were lost: whoever reads it was too slow")
            })
            .map(|n| n.parse::<usize>().unwrap())
            .sum();
        let came = text.lines().filter(|line| line.starts_with('x')).count();
        assert!(lost > 0 && text.lines().all(|line| line.len() == bytes - 1 || line.ends_with("too slow")));
        assert_eq!(came + lost, sent);
        came
    }

    #[test]
    fn reader_that_stopped_delays_nobody_and_learns_how_many_lines_it_missed() {
        // What the socket holds comes on top: some 200 KiB, a kernel buffer of 768 bytes at least for each write.
        let came = came(16 * LINES, 64);
        assert!((LINES..2 * LINES).contains(&came), "{came}");
    }

    #[test]
    fn long_lines_wait_up_to_so_many_bytes() {
        let came = came(64, 100_000);
        assert!((BYTES / 100_000..BYTES / 100_000 + 8).contains(&came), "{came}");
    }

    #[test]
    fn line_that_is_longer_than_the_room_is_written_when_nothing_waits() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let log = Log::start(writer, Form::Text).unwrap();
        log.add(&[b'x'].repeat(2 * BYTES));
        drop(log);
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        assert_eq!(text.len(), 2 * BYTES);
    }

    #[test]
    fn flush_waits_for_what_was_logged() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let log = Log::start(writer, Form::Text).unwrap();
        (&log).write_all(b"last words\n").unwrap();
        log.flush(Duration::from_secs(5));
        let mut text = [0; 11];
        reader.set_nonblocking(true).unwrap();
        reader.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"last words\n");
    }
}
