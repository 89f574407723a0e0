//! The history of events on disk, so that what led to a restart is there after it.
//!
//! Two files in the state directory, `events.jsonl` and the one before, `events.jsonl.1`: a line that says what it is, then a
//! line of JSON for each event. Lines are only added; a full file takes the place of the one before. So what a crash can
//! cost is the last lines, and one that was cut off is passed over when it is read.
//!
//! A file that says something else is not ours: it is moved aside, to `events.jsonl.other` (or `.other.2` and so on), and
//! told; one that just cannot be read is left where it is, and told. A thread of its own writes (`rw-events`), which may wait
//! for the disk; nobody waits for it. What cannot be written is counted and told.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};

use crate::fault::reason;
use crate::operator::api::Event;

/// Bytes of a file at most, but for the line that goes beyond it.
const FILE_BYTES: u64 = 1 << 20;
/// Lines that wait for the disk.
const WAITING: usize = 4096;
/// The longest line that is read: an event holds what a request did.
const LONGEST_LINE: usize = 256 * 1024;
const STACK_BYTES: usize = 128 * 1024;

/// Files that are moved aside and kept, of each of the two.
const MOST_OTHERS: u32 = 9;

/// The line with which a file begins.
const FIRST_LINE: &str = "{\"ringway_events\":1}";

/// Adds to the history on disk.
#[derive(Debug)]
pub(crate) struct EventsFile {
    lines: Sender<Item>,
    path: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Events that are not on disk, and never will be.
    lost: AtomicU64,
    trouble: Mutex<Trouble>,
}

/// Why the last of them is not.
#[derive(Debug, Default)]
struct Trouble {
    why: Option<String>,
    is_told: bool,
    /// Later ones are on disk.
    is_over: bool,
}

impl Shared {
    fn lose(&self, events: u64, why: String) {
        self.lost.fetch_add(events, Ordering::Relaxed);
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        *trouble = Trouble {
            is_told: trouble.is_told && trouble.why.as_ref() == Some(&why),
            is_over: false,
            why: Some(why),
        };
    }

    /// Events are kept again: that they were not is told all the same, once.
    fn keep(&self) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.is_told {
            *trouble = Trouble::default();
        }
        trouble.is_over = true;
    }
}

#[derive(Debug)]
enum Item {
    Line(Vec<u8>),
    /// Tells when everything before it is on disk.
    Mark(Sender<()>),
}

/// What was read at the start.
#[derive(Debug, Default)]
pub(crate) struct Earlier {
    /// In the order in which they happened, the newest of them.
    pub(crate) events: Vec<Event>,
    /// Lines that are no events: cut off by a crash, or damaged.
    pub(crate) unreadable: u64,
    /// What was not ours, and where it is now; and what could not be read.
    pub(crate) moved: Vec<String>,
}

impl EventsFile {
    /// Reads what is there, at most so many events of it, and goes on behind it.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn open(dir: &Path, most: usize) -> io::Result<(EventsFile, Earlier)> {
        let path = dir.join("events.jsonl");
        let mut earlier = Earlier::default();
        for path in [before(&path), path.clone()] {
            read(&path, most, &mut earlier);
        }
        let surplus = earlier.events.len().saturating_sub(most);
        earlier.events.drain(..surplus);
        let (lines, taken) = bounded(WAITING);
        let shared = Arc::<Shared>::default();
        // What cannot be opened now is tried again with the first event, and told then.
        let open = Open::at(&path).ok();
        let writer = Writer { path: path.clone(), open, shared: Arc::clone(&shared) };
        std::thread::Builder::new()
            .name("rw-events".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || writer.run(&taken))?;
        Ok((EventsFile { lines, path, shared }, earlier))
    }

    /// Adds an event. Never waits.
    pub(crate) fn add(&self, event: &Event) {
        let Ok(mut line) = serde_json::to_vec(event) else { return };
        line.push(b'\n');
        match self.lines.try_send(Item::Line(line)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.shared.lose(1, "the disk takes too long".to_owned()),
            Err(TrySendError::Disconnected(_)) => {
                self.shared.lose(1, "the thread that writes it ended".to_owned());
            }
        }
    }

    /// Why events are not on disk, while the last one is not, and once if that is over before it was asked for.
    pub(crate) fn trouble(&self) -> Option<String> {
        let mut trouble = self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.is_told = true;
        if trouble.is_over { std::mem::take(&mut *trouble).why } else { trouble.why.clone() }
    }

    /// Events that are not on disk, and never will be.
    pub(crate) fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until what was added is on disk, for as long at most.
    pub(crate) fn flush(&self, within: Duration) {
        let begun = std::time::Instant::now();
        let (told, written) = bounded(1);
        if self.lines.send_timeout(Item::Mark(told), within).is_ok() {
            let _ = written.recv_timeout(within.saturating_sub(begun.elapsed()));
        }
    }
}

fn before(path: &Path) -> PathBuf {
    with_suffix(path, "1")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}.{suffix}", path.display()))
}

/// Reads the events of a file, at least `most` of the newest, if it is ours; else it is moved aside.
fn read(path: &Path, most: usize, into: &mut Earlier) {
    let text = match crate::host::input::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        // What the system says may pass, and the history be there again.
        Err(error) if error.raw_os_error().is_some() => {
            let shown = path.display();
            into.moved.push(format!("{shown} cannot be read ({}): it is left as it is", reason(&error)));
            return;
        }
        Err(error) => return move_aside(path, &reason(&error), into),
    };
    let mut lines = text.split(|byte| *byte == b'\n');
    // One that a crash left empty, or with a first line that is not whole, is ours.
    let first = lines.next().unwrap_or_default();
    if first != FIRST_LINE.as_bytes() {
        let is_cut = text.len() == first.len() && FIRST_LINE.as_bytes().starts_with(first);
        if !is_cut {
            move_aside(path, "it does not begin as a file of events does", into);
        }
        return;
    }
    for line in lines.filter(|line| !line.is_empty()) {
        let event = Some(line).filter(|line| line.len() <= LONGEST_LINE);
        match event.and_then(|line| serde_json::from_slice::<Event>(line).ok()) {
            Some(event) if event.instance.is_some() => {
                // A file of any length takes no more memory than twice what is wanted of it.
                if into.events.len() >= 2 * most {
                    into.events.drain(..most);
                }
                into.events.push(event);
            }
            _ => into.unreadable += 1,
        }
    }
}

/// Not over what was moved aside before.
fn move_aside(path: &Path, why: &str, into: &mut Earlier) {
    let shown = path.display();
    let mut tried = (1..=MOST_OTHERS).map(|nth| {
        let suffix = if nth == 1 { "other".to_owned() } else { format!("other.{nth}") };
        let other = with_suffix(path, &suffix);
        rename_to_free(path, &other).map(|()| other)
    });
    let is_decided = |tried: &io::Result<PathBuf>| !matches!(tried, Err(error) if error.kind() == io::ErrorKind::AlreadyExists);
    let all_taken = || Err(io::Error::other(format!("there are {MOST_OTHERS} such already")));
    into.moved.push(match tried.find(is_decided).unwrap_or_else(all_taken) {
        Ok(other) => format!("{shown} is no history of events ({why}): moved to {}", other.display()),
        Err(error) => {
            format!("{shown} is no history of events ({why}), and cannot be moved: {}", reason(&error))
        }
    });
}

/// Renames it, unless something has that name.
fn rename_to_free(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system without it.
        Err(rustix::io::Errno::INVAL) if fs::symlink_metadata(to).is_err() => fs::rename(from, to),
        Err(rustix::io::Errno::INVAL) => Err(io::ErrorKind::AlreadyExists.into()),
        renamed => Ok(renamed?),
    }
}

/// The thread's side.
struct Writer {
    path: PathBuf,
    open: Option<Open>,
    shared: Arc<Shared>,
}

struct Open {
    file: File,
    bytes: u64,
    /// The last line was cut off.
    is_cut: bool,
}

/// What came together.
#[derive(Debug, Default)]
struct Batch {
    written: u64,
    is_last_written: bool,
}

impl Writer {
    fn run(mut self, taken: &Receiver<Item>) {
        while let Ok(item) = taken.recv() {
            let mut told = Vec::new();
            let mut batch = Batch::default();
            self.take(item, &mut told, &mut batch);
            while let Ok(item) = taken.try_recv() {
                self.take(item, &mut told, &mut batch);
            }
            // Once for all that came together: whether the disk has them is known only now.
            match self.open.as_ref().filter(|_| batch.written > 0).map(|open| open.file.sync_data()) {
                Some(Ok(())) if batch.is_last_written => self.shared.keep(),
                Some(Err(error)) => self.shared.lose(batch.written, reason(&error)),
                _ => {}
            }
            for mark in told {
                let _ = mark.send(());
            }
        }
    }

    fn take(&mut self, item: Item, told: &mut Vec<Sender<()>>, batch: &mut Batch) {
        match item {
            Item::Mark(mark) => told.push(mark),
            Item::Line(line) => {
                let written = self.write(&line);
                batch.is_last_written = written.is_ok();
                match written {
                    Ok(()) => batch.written += 1,
                    Err(error) => self.shared.lose(1, reason(&error)),
                }
            }
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        // What stands there is looked at first: nothing else than ours takes the place of the one before.
        if self.open.as_ref().is_some_and(|open| !open.is_at(&self.path)) {
            self.open = None;
        }
        let open = self.opened()?;
        if open.bytes >= FILE_BYTES {
            open.file.sync_data()?;
            // If that fails it stays as it is, however often it is tried.
            fs::rename(&self.path, before(&self.path))?;
            self.open = None;
        }
        self.opened()?.add(line)
    }

    fn opened(&mut self) -> io::Result<&mut Open> {
        match &mut self.open {
            Some(open) => Ok(open),
            empty => Ok(empty.insert(Open::at(&self.path)?)),
        }
    }
}

impl Open {
    /// Opens a file of ours, or makes one.
    fn at(path: &Path) -> io::Result<Open> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(flags.bits() as i32)
            .open(path)?;
        let facts = file.metadata()?;
        if !facts.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        let mut open = Open { file, bytes: facts.len(), is_cut: false };
        if open.bytes == 0 {
            open.add(format!("{FIRST_LINE}\n").as_bytes())?;
            return Ok(open);
        }
        // Somebody may have put another one there since it was read.
        let mut first = vec![0; FIRST_LINE.len()];
        let count = rustix::io::pread(&open.file, &mut first, 0)?;
        if first != FIRST_LINE.as_bytes() {
            let is_cut = count < FIRST_LINE.len() && first.get(..count) == FIRST_LINE.as_bytes().get(..count);
            if !is_cut {
                return Err(io::Error::other("somebody put another file in its place"));
            }
            open.file.set_len(0)?;
            open.bytes = 0;
            open.add(format!("{FIRST_LINE}\n").as_bytes())?;
            return Ok(open);
        }
        let mut last = [0];
        rustix::io::pread(&open.file, &mut last, open.bytes - 1)?;
        open.is_cut = last != *b"\n";
        Ok(open)
    }

    /// The file is still there under its name.
    fn is_at(&self, path: &Path) -> bool {
        let (Ok(own), Ok(there)) = (self.file.metadata(), fs::symlink_metadata(path)) else { return false };
        (own.dev(), own.ino()) == (there.dev(), there.ino())
    }

    fn add(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_cut {
            self.file.write_all(b"\n")?;
            self.bytes += 1;
        }
        self.is_cut = true;
        self.file.write_all(line)?;
        self.is_cut = false;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64, text: &str) -> Event {
        let details = serde_json::json!({ "text": text });
        let details = details.as_object().unwrap().clone();
        Event {
            seq,
            time_ns: seq * 1000,
            kind: "dev.added".into(),
            dev: Some("a".into()),
            instance: Some("i".into()),
            details,
        }
    }

    fn seqs(earlier: &Earlier) -> Vec<u64> {
        earlier.events.iter().map(|event| event.seq).collect()
    }

    const SOON: Duration = Duration::from_secs(20);

    fn filled(dir: &Path, seqs: std::ops::RangeInclusive<u64>, text: &str) {
        let (file, _) = EventsFile::open(dir, 1000).unwrap();
        seqs.for_each(|seq| file.add(&event(seq, text)));
        file.flush(SOON);
        assert_eq!(file.trouble(), None);
    }

    #[test]
    fn events_are_there_again_the_newest_of_them_whatever_line_a_crash_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 1..=5, "x");
        filled(dir.path(), 6..=9, "x");
        let path = dir.path().join("events.jsonl");
        let whole = fs::read(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        let ends: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').collect();
        for len in 0..=whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            let (file, earlier) = EventsFile::open(dir.path(), 1000).unwrap();
            let lines = ends.iter().filter(|end| **end < len).count() as u64;
            // A line that lacks only its end says all the same what it says.
            let is_whole_but_end = lines > 0 && whole.get(len) == Some(&b'\n');
            let expected = lines.saturating_sub(1) + u64::from(is_whole_but_end);
            assert_eq!(seqs(&earlier), (1..=expected).collect::<Vec<_>>(), "{len}");
            assert!(earlier.moved.is_empty());
            // What comes next stands in a line of its own.
            file.add(&event(77, "y"));
            file.flush(SOON);
            let (_, earlier) = EventsFile::open(dir.path(), 1000).unwrap();
            assert_eq!(earlier.events.last().unwrap().seq, 77, "{len}");
            assert_eq!(earlier.events.len() as u64, expected + 1, "{len}");
        }
        let (_, earlier) = EventsFile::open(dir.path(), 3).unwrap();
        assert_eq!(seqs(&earlier), [8, 9, 77]);
    }

    #[test]
    fn files_are_bounded_and_the_newest_events_are_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let text = "x".repeat(10_000);
        let count = 5 * FILE_BYTES / 10_000;
        let (file, _) = EventsFile::open(dir.path(), 1000).unwrap();
        for seq in 1..=count {
            file.add(&event(seq, &text));
            if seq % 50 == 0 {
                file.flush(SOON);
            }
        }
        file.flush(SOON);
        let bytes: u64 = ["events.jsonl", "events.jsonl.1"]
            .map(|name| fs::metadata(dir.path().join(name)).unwrap().len())
            .iter()
            .sum();
        assert!(bytes <= 2 * (FILE_BYTES + 11_000), "{bytes}");
        let (_, earlier) = EventsFile::open(dir.path(), 100_000).unwrap();
        assert_eq!(earlier.events.last().unwrap().seq, count);
        assert!(earlier.events.len() as u64 * 10_000 >= FILE_BYTES, "{}", earlier.events.len());
        assert!(seqs(&earlier).is_sorted());
    }

    #[test]
    fn file_that_is_not_ours_is_moved_aside_and_what_cannot_be_is_left_alone_and_told() {
        for text in ["#!/bin/sh\nrm -rf x\n", "{\"ringway_events\":2}\n{}\n", "{\"ringway_eventsX"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("events.jsonl");
            fs::write(&path, text).unwrap();
            let (file, earlier) = EventsFile::open(dir.path(), 10).unwrap();
            assert!(earlier.moved[0].contains("events.jsonl.other") && earlier.events.is_empty());
            assert_eq!(fs::read_to_string(dir.path().join("events.jsonl.other")).unwrap(), text);
            file.add(&event(1, "x"));
            file.flush(SOON);
            assert_eq!(seqs(&EventsFile::open(dir.path(), 10).unwrap().1), [1]);
            // Put there while it runs.
            fs::remove_file(&path).unwrap();
            fs::write(&path, text).unwrap();
            file.add(&event(2, "x"));
            file.flush(SOON);
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(file.trouble().as_deref(), Some("somebody put another file in its place"));
            assert_eq!(file.lost(), 1);
            // Taken away, it is made again.
            fs::remove_file(&path).unwrap();
            file.add(&event(3, "x"));
            file.flush(SOON);
            assert_eq!(file.trouble(), None);
            assert_eq!(seqs(&EventsFile::open(dir.path(), 10).unwrap().1), [3]);
        }
    }

    #[test]
    fn events_that_the_disk_takes_too_slowly_are_counted_and_delay_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        // In the place of a file, a directory: nothing can be written.
        fs::create_dir(&path).unwrap();
        fs::create_dir(dir.path().join("events.jsonl.other")).unwrap();
        (2..=MOST_OTHERS).for_each(|nth| fs::write(other(dir.path(), nth), "").unwrap());
        let (file, earlier) = EventsFile::open(dir.path(), 10).unwrap();
        assert!(earlier.moved[0].contains("cannot be moved"), "{:?}", earlier.moved);
        let begun = std::time::Instant::now();
        (0..2 * WAITING as u64).for_each(|seq| file.add(&event(seq, "x")));
        assert!(begun.elapsed() < SOON);
        file.flush(SOON);
        file.trouble().unwrap();
        assert_eq!(file.lost(), 2 * WAITING as u64);
        // That some were lost is told, also where later ones were kept before anybody asked.
        fs::remove_dir(&path).unwrap();
        file.shared.lose(1, "for a moment".to_owned());
        file.add(&event(1, "x"));
        file.flush(SOON);
        assert_eq!(file.trouble().as_deref(), Some("for a moment"));
        assert_eq!(file.trouble(), None);
        assert_eq!(seqs(&EventsFile::open(dir.path(), 10).unwrap().1), [1]);
    }

    fn other(dir: &Path, nth: u32) -> PathBuf {
        dir.join(format!("events.jsonl.other.{nth}"))
    }

    /// One that is just full.
    fn full(dir: &Path) -> EventsFile {
        let (file, _) = EventsFile::open(dir, 10).unwrap();
        let text = "x".repeat(LONGEST_LINE / 2);
        (1..=FILE_BYTES / text.len() as u64).for_each(|seq| file.add(&event(seq, &text)));
        file.flush(SOON);
        assert!(!before(&dir.join("events.jsonl")).exists() && file.trouble().is_none());
        file
    }

    #[test]
    fn full_file_stays_as_it_is_while_it_cannot_take_the_place_of_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let (path, file) = (dir.path().join("events.jsonl"), full(dir.path()));
        let bytes = fs::metadata(&path).unwrap().len();
        assert!(bytes >= FILE_BYTES);
        fs::create_dir(before(&path)).unwrap();
        for lost in 1..=10 {
            file.add(&event(100 + lost, "y"));
            file.flush(SOON);
            assert_eq!((file.lost(), file.trouble().is_some()), (lost, true));
            assert_eq!(fs::metadata(&path).unwrap().len(), bytes);
        }
        fs::remove_dir(before(&path)).unwrap();
        file.add(&event(200, "y"));
        file.flush(SOON);
        assert_eq!((file.lost(), file.trouble()), (10, None));
        assert_eq!(fs::metadata(before(&path)).unwrap().len(), bytes);
    }

    #[test]
    fn another_file_in_the_place_of_a_full_one_is_left_alone_and_so_is_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        fs::write(before(&path), format!("{FIRST_LINE}\n")).unwrap();
        let (file, _) = EventsFile::open(dir.path(), 10).unwrap();
        let text = "x".repeat(LONGEST_LINE / 2);
        (1..=FILE_BYTES / text.len() as u64).for_each(|seq| file.add(&event(seq, &text)));
        file.flush(SOON);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "theirs").unwrap();
        file.add(&event(100, "y"));
        file.flush(SOON);
        assert_eq!(file.trouble().as_deref(), Some("somebody put another file in its place"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
        assert_eq!(fs::read_to_string(before(&path)).unwrap(), format!("{FIRST_LINE}\n"));
        // Neither is a second one put over the first that was moved aside.
        for nth in 1..=3 {
            fs::write(&path, nth.to_string()).unwrap();
            EventsFile::open(dir.path(), 10).unwrap();
            let _ = fs::remove_file(&path);
        }
        assert_eq!(fs::read_to_string(dir.path().join("events.jsonl.other")).unwrap(), "1");
        assert_eq!([2, 3].map(|nth| fs::read_to_string(other(dir.path(), nth)).unwrap()), ["2", "3"]);
    }

    #[test]
    fn history_that_just_cannot_be_read_is_left_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        // Any error that the system tells.
        std::os::unix::fs::symlink("events.jsonl", &path).unwrap();
        let (_, earlier) = EventsFile::open(dir.path(), 10).unwrap();
        assert!(
            earlier.moved[0].contains("cannot be read") && earlier.moved.len() == 1,
            "{:?}",
            earlier.moved
        );
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
        assert!(!dir.path().join("events.jsonl.other").exists());
    }

    #[test]
    fn line_that_is_longer_than_any_may_be_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        for (len, events) in [(LONGEST_LINE, 2), (LONGEST_LINE + 1, 1)] {
            let empty = serde_json::to_vec(&event(1, "")).unwrap().len();
            let long = serde_json::to_string(&event(1, &"x".repeat(len - empty))).unwrap();
            let next = serde_json::to_string(&event(2, "")).unwrap();
            fs::write(&path, format!("{FIRST_LINE}\n{long}\n{next}\n")).unwrap();
            let (_, earlier) = EventsFile::open(dir.path(), 10).unwrap();
            assert_eq!((earlier.events.len(), earlier.unreadable), (events, 2 - events as u64));
        }
    }
}
