//! `ringway capture`: writes a device's frames to a file or to standard output, as they come, in whole blocks of pcapng.

// Its words.
pub(super) mod words;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Read as _, Seek as _, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::fault::{Fault, Kind};
use crate::operator::api::{CaptureRequest, Event, EventPage, Follow};
use crate::operator::capture::End;
use crate::operator::client::Client;
use crate::operator::pcapng;

/// What a capture came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Outcome {
    /// The device.
    pub(super) name: String,
    /// Frames that were written.
    pub(super) captured: u64,
    /// Frames that found no room on the way. None: the daemon did not come to say how many.
    pub(super) missed: Option<u64>,
    /// Why it ended.
    pub(super) reason: String,
}

impl Outcome {
    /// For people.
    pub(super) fn text(&self) -> String {
        let frames = if self.captured == 1 { "frame" } else { "frames" };
        let missed =
            self.missed.map_or_else(|| "an unknown number of".to_owned(), |missed| missed.to_string());
        format!("{}: {} {frames} captured, {missed} missed\n", self.name, self.captured)
    }
}

/// How often it is looked whether a signal came.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often it is looked why the daemon ended it.
const LOOKS: u32 = 10;
/// How long the daemon has to finish a capture once it is told to.
const FINISH_WITHIN: Duration = Duration::from_secs(3);
/// Bytes taken at a time.
const PIECE: usize = 256 * 1024;

/// Captures until it ends.
pub(super) fn run(request: &CaptureRequest, file: &Path, client: Client) -> Result<Outcome, Fault> {
    let is_out = file == Path::new("-");
    if is_out && io::stdout().is_terminal() {
        return Err(Fault::usage("a capture is not for a terminal")
            .at("-w")
            .hint("-w FILE, or `-w - | tcpdump -r -`"));
    }
    let told = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // The second one ends it, also where nobody reads what is written.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&told))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&told)))
            .map_err(|error| Fault::system("cannot catch signals", error))?;
    }
    // What cannot be written is found out before anything is captured.
    let place = if is_out { None } else { Some(Place::open(file)?) };
    let (path, within) = (client.path().to_owned(), client.within());
    let (stream, first) = match client.capture(request) {
        Ok(begun) => begun,
        Err(fault) => {
            if let Some(place) = place {
                place.leave();
            }
            return Err(fault);
        }
    };
    let to = match place {
        Some(place) => Target::File(place.begin()?),
        None => Target::Out(io::stdout()),
    };
    let mut writer = Writer { to, shown: file.display().to_string(), whole: 0 };
    let mut outcome = Outcome { name: request.name.clone(), ..Outcome::default() };
    if follow(stream, first, &told, &mut writer, &mut outcome)? == Stopped::ByDaemon {
        // Without a last word: there was no room for it, or nobody is there who would say it.
        outcome.reason = told_end(&path, within, &request.name).map_err(|_| {
            let message = format!("{}: the daemon has gone", outcome.name);
            let hint = format!("what came before is written: {}", outcome.text().trim());
            Fault::new(Kind::Unreachable, message).hint(hint)
        })?;
    }
    match outcome.reason.split(':').next().unwrap_or_default() {
        reason if [End::Count.name(), End::Stopped.name(), ""].contains(&reason) => Ok(outcome),
        _ => {
            let frames = outcome.text();
            let message = format!("{}: the capture ended: {}", outcome.name, outcome.reason);
            Err(Fault::new(Kind::Runtime, message)
                .hint(format!("what came before is written: {}", frames.trim())))
        }
    }
}

/// Who ended the connection of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// This process, or the daemon with the capture's last word.
    AsAgreed,
    /// The daemon, without a word.
    ByDaemon,
}

/// Why a capture of this process ended, as the daemon's events have it.
///
/// # Errors
/// No daemon answers.
fn told_end(path: &Path, within: Duration, name: &str) -> Result<String, Fault> {
    let ended = Follow { since: Some(0), types: vec!["capture.ended".to_owned()], ..Follow::default() };
    let who = format!("(pid {}, ", std::process::id());
    let text = |event: &Event, field: &str| Some(event.details.get(field)?.as_str()?.to_owned());
    let is_ours = |event: &&Event| {
        event.dev.as_deref() == Some(name) && text(event, "by").is_some_and(|by| by.contains(&who))
    };
    // Its last step may still be under way.
    for _ in 0..LOOKS {
        let page: EventPage = Client::connect(path, within)?.call("events", &ended)?;
        if let Some(reason) = page.events.iter().rfind(is_ours).and_then(|event| text(event, "reason")) {
            return Ok(match End::named(&reason) {
                Some(end) => format!("{reason}: {}", end.words()),
                None => reason,
            });
        }
        std::thread::sleep(LOOK_EVERY);
    }
    // In another namespace of processes, or by a daemon that is not there any more.
    Ok("without a word: ringway events --once --since 0 --type capture has the reason".to_owned())
}

/// Writes what comes until the daemon ends it. Once whoever reads wants no more, or a signal came, the daemon is told so, and
/// what it says last is waited for.
fn follow(
    mut stream: UnixStream,
    mut waiting: Vec<u8>,
    told: &AtomicBool,
    writer: &mut Writer,
    outcome: &mut Outcome,
) -> Result<Stopped, Fault> {
    stream
        .set_read_timeout(Some(LOOK_EVERY))
        .map_err(|error| Fault::system("cannot set a deadline", error))?;
    let mut piece = vec![0; PIECE];
    let mut until = None;
    let mut is_read = true;
    loop {
        let (mut at, mut frames) = (0, 0);
        while let Some((kind, block)) = pcapng::first_block(waiting.get(at..).unwrap_or_default())
            .map_err(|error| Fault::new(Kind::Runtime, format!("{}: {error}", outcome.name)))?
        {
            at += block.len();
            frames += u64::from(kind == pcapng::ENHANCED_PACKET);
            if let Some(totals) = pcapng::totals(kind, block) {
                outcome.missed = Some(totals.missed);
                outcome.reason = totals.comment.to_owned();
            }
        }
        is_read = is_read && writer.write(waiting.get(..at).unwrap_or_default(), outcome)?;
        if is_read {
            outcome.captured += frames;
        }
        waiting.drain(..at);
        is_read = is_read && !writer.is_left();
        if until.is_none() && (!is_read || told.load(Ordering::Relaxed)) {
            // The daemon writes what is left, and says what was missed.
            let _ = stream.shutdown(Shutdown::Write);
            until = Some(Instant::now() + FINISH_WITHIN);
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(Stopped::AsAgreed);
        }
        match stream.read(&mut piece) {
            Ok(0) if outcome.reason.is_empty() && until.is_none() => return Ok(Stopped::ByDaemon),
            Ok(0) => return Ok(Stopped::AsAgreed),
            Ok(count) => waiting.extend_from_slice(piece.get(..count).unwrap_or_default()),
            Err(error) if is_no_error(&error) => {}
            Err(error) => return Err(Fault::system("cannot read from the daemon", error)),
        }
    }
}

fn is_no_error(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// Where a capture is written.
enum Target {
    Out(io::Stdout),
    File(File),
}

/// Where one is to be written, which is as it was so far.
struct Place {
    file: File,
    path: PathBuf,
    /// It was not there before.
    is_new: bool,
    /// A file that others may read, or have open.
    is_shared: bool,
}

impl Place {
    /// Of a file, pipe or device of this user's own; not through a symbolic link.
    fn open(path: &Path) -> Result<Place, Fault> {
        let shown = path.display();
        let failed = |error| cannot_write(path, error);
        let options = || {
            let mut options = OpenOptions::new();
            options.write(true).mode(0o600).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
            options
        };
        let (file, is_new) = match options().create_new(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                (options().open(path).map_err(failed)?, false)
            }
            made => (made.map_err(failed)?, true),
        };
        let meta = file.metadata().map_err(failed)?;
        let is_pipe = meta.file_type().is_fifo();
        if !(meta.is_file() || is_pipe || meta.file_type().is_char_device()) {
            return Err(Fault::conflict(format!("{shown} is no file, pipe or device")).at("-w"));
        }
        if meta.is_file() && meta.nlink() > 1 {
            return Err(Fault::conflict(format!("{shown} has another name besides"))
                .at("-w")
                .hint("a file of its own: who reads the other name would read guests' payload"));
        }
        if (meta.is_file() || is_pipe) && meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(Fault::conflict(format!("{shown} belongs to the user {}", meta.uid()))
                .at("-w")
                .hint("a file of its own: who owns it would read guests' payload"));
        }
        let is_shared = meta.is_file() && !is_new && meta.mode() & 0o077 != 0;
        Ok(Place { file, path: path.to_owned(), is_new, is_shared })
    }

    /// Empty, and nobody else's.
    fn begin(self) -> Result<File, Fault> {
        let failed = |error| cannot_write(&self.path, error);
        if self.is_shared {
            // Who has the old one open reads on in that.
            std::fs::remove_file(&self.path).map_err(failed)?;
            return OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&self.path)
                .map_err(failed);
        }
        if self.file.metadata().map_err(failed)?.is_file() {
            self.file.set_len(0).map_err(failed)?;
        }
        Ok(self.file)
    }

    /// As if it had not been looked at.
    fn leave(self) {
        if self.is_new {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn cannot_write(path: &Path, error: io::Error) -> Fault {
    Fault::system(format!("cannot write {}", path.display()), error).at("-w")
}

struct Writer {
    to: Target,
    shown: String,
    /// Bytes that are written, in whole blocks.
    whole: u64,
}

impl Writer {
    /// Whoever read what is written is gone, as far as can be told without writing.
    fn is_left(&self) -> bool {
        let mut fds = match &self.to {
            Target::Out(out) => [PollFd::new(out, PollFlags::empty())],
            Target::File(file) => [PollFd::new(file, PollFlags::empty())],
        };
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&at_once)).is_ok() && fds[0].revents().contains(PollFlags::ERR)
    }

    /// Writes whole blocks. False: whoever reads them wants no more.
    fn write(&mut self, blocks: &[u8], outcome: &Outcome) -> Result<bool, Fault> {
        let written = match &mut self.to {
            Target::Out(out) => out.write_all(blocks).and_then(|()| out.flush()),
            Target::File(file) => file.write_all(blocks),
        };
        match written {
            Ok(()) => {
                self.whole += blocks.len() as u64;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => {
                if let Target::File(file) = &mut self.to {
                    // A block that was cut off would make the rest of no use to some readers.
                    let _ = file.set_len(self.whole).and_then(|()| file.seek(io::SeekFrom::End(0)).map(drop));
                }
                let fault = Fault::system(format!("cannot write {}", self.shown), error).at("-w");
                Err(fault.hint(format!(
                    "what was written before can be read; of what came: {}",
                    outcome.text().trim()
                )))
            }
        }
    }
}
