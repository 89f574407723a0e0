//! fio's io_uring on a file of its own, on one core: what a program gets of the kernel that need not serve a guest. A disk on a
//! file is held against it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::options::{DiskOptions, Op};
use super::qsd::make_file;
use crate::error::BenchError;
use crate::host;
use crate::stats::Spread;

/// What fio came to beside ours, in the same turns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Beside {
    /// Its version.
    pub version: String,
    /// The words that it was started with.
    pub flags: Vec<String>,
    /// Thousands of requests a second.
    pub kiops: Spread,
    /// Requests a second, ours to fio's.
    pub ratio: Spread,
}

/// fio and its file, which goes with this.
#[derive(Debug)]
pub struct Fio {
    program: PathBuf,
    /// The version it tells.
    pub version: String,
    /// The words that it is started with.
    pub flags: Vec<String>,
    core: usize,
    _folder: tempfile::TempDir,
}

impl Fio {
    /// Makes its file in a folder below `place`; None for a load that it does not know.
    ///
    /// # Errors
    /// It is not here, or there is no room.
    pub fn new(
        options: &DiskOptions,
        direct: bool,
        core: usize,
        seconds: f64,
        place: &Path,
    ) -> Result<Option<Fio>, BenchError> {
        let Some(kind) = kind(options) else { return Ok(None) };
        let program = std::env::var_os(VARIABLE).map_or_else(|| PathBuf::from(PROGRAM), PathBuf::from);
        // Before anything is measured.
        let version = run(&program, &["--version".to_owned()], core)?.trim().to_owned();
        let folder = tempfile::Builder::new()
            .prefix("ringway-bench-")
            .tempdir_in(place)
            .map_err(BenchError::system(format!("cannot make a directory in {}", place.display())))?;
        let file = folder.path().join("fio");
        make_file(&file, options.span.0)?;
        let flags = flags(options, kind, direct, core, seconds, &file);
        Ok(Some(Fio { program, version, flags, core, _folder: folder }))
    }

    /// One round: thousands of requests a second.
    ///
    /// # Errors
    /// It failed.
    pub fn round(&self) -> Result<f64, BenchError> {
        let said = run(&self.program, &self.flags, self.core)?;
        iops(&said).map(|iops| iops / 1e3).ok_or_else(|| BenchError::Peer {
            peer: PROGRAM.to_owned(),
            what: format!("told no requests a second: {}", said.trim()),
        })
    }
}

/// Its word for the load.
fn kind(options: &DiskOptions) -> Option<&'static str> {
    let (random, sequential) = match options.op {
        _ if options.flush_every.is_some() => return None,
        Op::Read => ("randread", "read"),
        Op::Write => ("randwrite", "write"),
        Op::Mix => ("randrw", "rw"),
        Op::Flush | Op::Discard | Op::Zeroes => return None,
    };
    Some(if options.sequential { sequential } else { random })
}

/// A write is followed by an fdatasync of its own: durable, as on the other sides.
fn flags(
    options: &DiskOptions,
    kind: &str,
    direct: bool,
    core: usize,
    seconds: f64,
    file: &Path,
) -> Vec<String> {
    let depth = u32::from(options.depth) * u32::from(options.queues);
    let (size, span, reads) = (options.size.0, options.span.0, options.reads);
    let mut words = format!(
        "--name=ringway-bench --ioengine=io_uring --rw={kind} --rwmixread={reads} --bs={size} --size={span} --iodepth={depth} \
         --iodepth_batch_submit={} --iodepth_batch_complete_min=1 --iodepth_batch_complete_max={depth} --direct={} \
         --registerfiles --norandommap --gtod_reduce=1 --invalidate=0 --thread --cpus_allowed={core} --time_based \
         --runtime={}ms --ramp_time={WARM_UP_MS}ms --output-format=json",
        depth.div_ceil(2),
        u8::from(direct),
        (seconds * 1e3).ceil() as u64,
    );
    if options.op != Op::Read {
        words.push_str(" --fdatasync=1");
    }
    let words = words.split_whitespace().map(str::to_owned);
    words.chain([format!("--filename={}", file.display())]).collect()
}

/// Runs it on a core; what it prints.
fn run(program: &Path, words: &[String], core: usize) -> Result<String, BenchError> {
    let spawn = || {
        // The kernel's workers for it may run where it may.
        host::pin(core);
        Command::new(program).args(words).stdin(Stdio::null()).output()
    };
    let ran = std::thread::scope(|scope| scope.spawn(spawn).join());
    let gone = |_| Err(std::io::Error::other("a thread of the suite panicked"));
    let output = ran.unwrap_or_else(gone).map_err(|error| match error.kind() {
        ErrorKind::NotFound => BenchError::MissingPeer {
            program: program.display().to_string(),
            package: "fio",
            variable: VARIABLE,
        },
        _ => BenchError::system(format!("cannot start {}", program.display()))(error),
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let what = format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    Err(BenchError::Peer { peer: PROGRAM.to_owned(), what })
}

/// Reads and writes a second, of what it prints: notes, then JSON.
fn iops(said: &str) -> Option<f64> {
    let json: Value = serde_json::from_str(said.get(said.find('{')?..)?).ok()?;
    let job = json.get("jobs")?.get(0)?;
    let of = |kind: &str| job.get(kind)?.get("iops")?.as_f64();
    Some(of("read")? + of("write")?).filter(|iops| *iops > 0.0)
}

/// Names the program, if it is not on the path.
const VARIABLE: &str = "RINGWAY_FIO";
const PROGRAM: &str = "fio";
const WARM_UP_MS: u32 = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_load_has_its_words() {
        let words = |options: DiskOptions| {
            let kind = kind(&options)?;
            Some(flags(&options, kind, true, 1, 0.25, Path::new("/f/fio")).join(" "))
        };
        let read = words(DiskOptions { queues: 2, ..DiskOptions::default() }).unwrap();
        for part in [
            "--rw=randread",
            "--bs=4096",
            "--iodepth=64",
            "--direct=1",
            "--runtime=250ms",
            "--cpus_allowed=1",
            "--filename=/f/fio",
        ] {
            assert!(read.contains(part), "{part}: {read}");
        }
        assert!(!read.contains("fdatasync"));
        let mix = words(DiskOptions { op: Op::Mix, sequential: true, ..DiskOptions::default() }).unwrap();
        assert!(mix.contains("--rw=rw") && mix.contains("--fdatasync=1"), "{mix}");
        assert_eq!(words(DiskOptions { op: Op::Discard, ..DiskOptions::default() }), None);
        assert_eq!(words(DiskOptions { flush_every: Some(2), ..DiskOptions::default() }), None);
    }

    #[test]
    fn reads_and_writes_are_added_up() {
        let said = "note: x\n{\"jobs\": [{\"read\": {\"iops\": 1000.5}, \"write\": {\"iops\": 500.0}}]}";
        assert_eq!(iops(said), Some(1500.5));
        assert_eq!(iops("note: x"), None);
        assert_eq!(iops("{\"jobs\": [{\"read\": {\"iops\": 0.0}, \"write\": {\"iops\": 0.0}}]}"), None);
    }

    #[test]
    fn program_that_is_missing_is_named_with_what_brings_it() {
        let error = run(Path::new("/nowhere/fio"), &[], 0).unwrap_err().to_string();
        assert!(error.contains("/nowhere/fio is not here") && error.contains("`fio`"), "{error}");
    }
}
