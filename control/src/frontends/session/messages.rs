//! What a front-end says and is answered, in the log: for everybody at the level `debug`, or for the devices that an operator
//! asked for; at `trace` with the bytes. A front-end that says much fills no log, however often it connects: what exceeds a
//! rate of its device is counted.
//!
//! Owner: the device. Thread: the session; control sets the level.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use ringway_vhost_user::bucket::Bucket;
use ringway_vhost_user::connection::Frame;
use ringway_vhost_user::message::Request;
use tracing::Level;

use super::DeviceShared;
use crate::frontends::vhost_user::Verdict;
use crate::host::logging::OF_DEVICE;

/// What is logged of a device beside what is of everybody, and how much of it may be still.
#[derive(Debug, Default)]
pub struct MessageLog {
    /// 0 nothing, 1 `debug`, 2 `trace`.
    level: AtomicU8,
    /// Locked by sessions of the device for a moment, where messages are logged. None: none was yet.
    allowance: Mutex<Option<Allowance>>,
}

#[derive(Debug)]
struct Allowance {
    bucket: Bucket,
    /// Messages that were not logged since the last that was.
    left_out: u64,
}

/// A message that is about to be obeyed and logged.
#[derive(Debug)]
pub(super) struct Heard {
    text: String,
    /// For the device's own level, not everybody's.
    is_of_device: bool,
    level: Level,
}

impl MessageLog {
    /// Its own level; None: everybody's.
    pub(super) fn level(&self) -> Option<Level> {
        match self.level.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(Level::DEBUG),
            _ => Some(Level::TRACE),
        }
    }

    /// Gives it a level of its own.
    pub(super) fn set_level(&self, level: Option<Level>) {
        let number = level.map_or(0, |level| if level == Level::TRACE { 2 } else { 1 });
        self.level.store(number, Ordering::Relaxed);
    }

    /// Whether one more message may be logged; counted if not.
    fn allows(&self, now: Instant) -> bool {
        let mut allowance = self.allowance.lock().unwrap_or_else(PoisonError::into_inner);
        let full = || Allowance { bucket: Bucket::new(LINES_AT_ONCE, LINES_PER_SECOND, now), left_out: 0 };
        let Allowance { bucket, left_out } = allowance.get_or_insert_with(full);
        let is_allowed = bucket.take(now);
        *left_out += u64::from(!is_allowed);
        is_allowed
    }

    /// Messages that were not logged since this was last asked.
    fn left_out(&self) -> u64 {
        let mut allowance = self.allowance.lock().unwrap_or_else(PoisonError::into_inner);
        allowance.as_mut().map_or(0, |allowance| std::mem::take(&mut allowance.left_out))
    }

    /// What is to be logged of a message. None: nothing.
    pub(super) fn hear(&self, frame: &Frame, now: Instant) -> Option<Heard> {
        let own = self.level();
        let (level, is_of_device) = match own {
            Some(level) => (level, true),
            None if tracing::enabled!(Level::TRACE) => (Level::TRACE, false),
            None if tracing::enabled!(Level::DEBUG) => (Level::DEBUG, false),
            None => return None,
        };
        if !self.allows(now) {
            return None;
        }
        let mut text = String::new();
        let header = frame.header;
        match Request::from_number(header.request) {
            Some(request) => text.push_str(request.name()),
            None => drop(write!(text, "request {}", header.request)),
        }
        let _ = write!(text, " flags {:#x} {} bytes", header.flags, header.size);
        if !frame.fds.is_empty() {
            let _ = write!(text, " {} descriptors", frame.fds.len());
        }
        if level == Level::TRACE {
            put_bytes(&mut text, frame.payload().unwrap_or_default());
        }
        Some(Heard { text, is_of_device, level })
    }

    /// Logs it, with what became of it.
    pub(super) fn tell(&self, shared: &DeviceShared, heard: Heard, verdict: &Verdict) {
        let Heard { mut text, is_of_device, level } = heard;
        match verdict {
            Verdict::Done => text.push_str(": done"),
            Verdict::Reply { payload, .. } | Verdict::ReplyWith { payload, .. } => {
                let _ = write!(text, ": answered with {} bytes", payload.len());
                if level == Level::TRACE {
                    put_bytes(&mut text, payload);
                }
            }
            Verdict::Close { reason } => drop(write!(text, ": the connection is closed: {reason}")),
        }
        let left_out = self.left_out();
        if left_out > 0 {
            let _ = write!(text, "; {left_out} before it are not told, so many came");
        }
        let dev = shared.name.as_str();
        match (is_of_device, level == Level::TRACE) {
            (true, false) => tracing::debug!(target: OF_DEVICE, dev, "vhost-user {text}"),
            (true, true) => tracing::trace!(target: OF_DEVICE, dev, "vhost-user {text}"),
            (false, false) => tracing::debug!(dev, "vhost-user {text}"),
            (false, true) => tracing::trace!(dev, "vhost-user {text}"),
        }
    }
}

/// The first of some bytes, in hexadecimal, eight together.
fn put_bytes(text: &mut String, bytes: &[u8]) {
    for (nth, byte) in bytes.iter().take(MOST_BYTES).enumerate() {
        let gap = if nth % 8 == 0 { " " } else { "" };
        let _ = write!(text, "{gap}{byte:02x}");
    }
    if bytes.len() > MOST_BYTES {
        text.push_str(" ...");
    }
}

/// Lines of one device at once, and a second in the long run: QEMU starts 16 pairs of queues with some 400 messages.
const LINES_AT_ONCE: u32 = 1000;
const LINES_PER_SECOND: u32 = 100;
/// Bytes of a message that are told.
const MOST_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_in_words_up_to_a_bound() {
        let mut text = String::new();
        put_bytes(&mut text, &[0, 1, 2, 3, 4, 5, 6, 255, 16]);
        assert_eq!(text, " 00010203040506ff 10");
        for (len, is_cut) in [(MOST_BYTES, false), (MOST_BYTES + 1, true)] {
            let mut text = String::new();
            put_bytes(&mut text, &vec![7; len]);
            assert_eq!((text.matches("07").count(), text.ends_with(" ...")), (MOST_BYTES, is_cut));
        }
    }

    #[test]
    fn front_end_that_says_much_is_told_at_a_rate() {
        let now = Instant::now();
        let log = MessageLog::default();
        let taken = (0..LINES_AT_ONCE + 50).filter(|_| log.allows(now)).count();
        assert_eq!(taken, LINES_AT_ONCE as usize);
        let later = now + std::time::Duration::from_secs(1);
        let taken = (0..LINES_PER_SECOND + 50).filter(|_| log.allows(later)).count();
        assert_eq!(taken, LINES_PER_SECOND as usize);
        assert_eq!((log.left_out(), log.left_out()), (100, 0));
    }
}
