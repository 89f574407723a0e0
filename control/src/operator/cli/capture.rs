//! `ringway capture`: writes a device's frames to a file or to standard output, as they come, in whole blocks of pcapng.

// Its words.
pub(super) mod words;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Read as _, Seek as _, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::fault::{Fault, Kind};
use crate::operator::api::CaptureRequest;
use crate::operator::capture::End;
use crate::operator::client::Client;
use crate::operator::pcapng;

/// What a capture came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Outcome {
    /// The device.
    pub(super) name: String,
    /// Frames in the file.
    pub(super) captured: u64,
    /// Frames that found no room on the way.
    pub(super) missed: u64,
    /// Why it ended.
    pub(super) reason: String,
}

impl Outcome {
    /// For people.
    pub(super) fn text(&self) -> String {
        let frames = if self.captured == 1 { "frame" } else { "frames" };
        format!("{}: {} {frames} captured, {} missed\n", self.name, self.captured, self.missed)
    }
}

/// How often it is looked whether a signal came.
const LOOK_EVERY: Duration = Duration::from_millis(100);
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
    let (stream, first) = client.capture(request)?;
    let to = if is_out { Target::Out(io::stdout()) } else { Target::open(file)? };
    let mut writer = Writer { to, shown: file.display().to_string(), whole: 0 };
    let mut outcome = Outcome { name: request.name.clone(), ..Outcome::default() };
    follow(stream, first, &told, &mut writer, &mut outcome)?;
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

/// Writes what comes until the daemon ends it.
fn follow(
    mut stream: UnixStream,
    mut waiting: Vec<u8>,
    told: &AtomicBool,
    writer: &mut Writer,
    outcome: &mut Outcome,
) -> Result<(), Fault> {
    stream
        .set_read_timeout(Some(LOOK_EVERY))
        .map_err(|error| Fault::system("cannot set a deadline", error))?;
    let mut piece = vec![0; PIECE];
    let mut until = None;
    loop {
        let mut at = 0;
        while let Some((kind, block)) = pcapng::first_block(waiting.get(at..).unwrap_or_default())
            .map_err(|error| Fault::new(Kind::Runtime, format!("{}: {error}", outcome.name)))?
        {
            at += block.len();
            outcome.captured += u64::from(kind == pcapng::ENHANCED_PACKET);
            if let Some(totals) = pcapng::totals(kind, block) {
                outcome.missed = totals.missed;
                outcome.reason = totals.comment.to_owned();
            }
        }
        if !writer.write(waiting.get(..at).unwrap_or_default(), outcome)? {
            return Ok(());
        }
        waiting.drain(..at);
        if until.is_none() && told.load(Ordering::Relaxed) {
            // The daemon writes what is left, and says what was missed.
            let _ = stream.shutdown(Shutdown::Write);
            until = Some(Instant::now() + FINISH_WITHIN);
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(());
        }
        match stream.read(&mut piece) {
            Ok(0) if outcome.reason.is_empty() && until.is_none() => {
                let message = format!("{}: the daemon has gone", outcome.name);
                let hint = format!("what came before is written: {}", outcome.text().trim());
                return Err(Fault::new(Kind::Unreachable, message).hint(hint));
            }
            Ok(0) => return Ok(()),
            Ok(count) => waiting.extend_from_slice(piece.get(..count).unwrap_or_default()),
            Err(error) if is_no_error(&error) => {}
            Err(error) => return Err(Fault::system("cannot read from the daemon", error)),
        }
    }
}

fn is_no_error(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

enum Target {
    Out(io::Stdout),
    File(File),
}

impl Target {
    /// A file that nobody else may read, whatever it was before; not through a symbolic link.
    fn open(path: &Path) -> Result<Target, Fault> {
        let shown = path.display();
        let failed = |error| Fault::system(format!("cannot write {shown}"), error).at("-w");
        let mut options = OpenOptions::new();
        options.write(true).create(true).mode(0o600);
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
        let file = options.open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if meta.is_file() {
            if meta.nlink() > 1 {
                return Err(Fault::conflict(format!("{shown} has another name besides"))
                    .at("-w")
                    .hint("a file of its own: who reads the other name would read guests' payload"));
            }
            rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o600))
                .map_err(|error| failed(error.into()))?;
            file.set_len(0).map_err(failed)?;
        } else if !(meta.file_type().is_fifo() || meta.file_type().is_char_device()) {
            return Err(Fault::conflict(format!("{shown} is no file, pipe or device")).at("-w"));
        }
        Ok(Target::File(file))
    }
}

struct Writer {
    to: Target,
    shown: String,
    /// Bytes that are written, in whole blocks.
    whole: u64,
}

impl Writer {
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
