//! A `ringwayd` of our own with one disk.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::backend::Identity;
use crate::daemon::Daemon;
use crate::error::BenchError;

/// What the disk is to be.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Core of the one worker.
    pub core: usize,
    /// What it does when idle.
    pub idle: &'a str,
    /// The management device.
    pub mgmtdev: &'a str,
    /// Words behind it.
    pub words: &'a [String],
    /// What `ringwayd` starts with.
    pub config: Option<&'a Path>,
}

/// A running daemon with its disk. Killed when dropped.
#[derive(Debug)]
pub struct Ours {
    daemon: Daemon,
    identity: Identity,
}

impl Ours {
    /// Starts it.
    pub fn start(wanted: Wanted<'_>) -> Result<Ours, BenchError> {
        let cores = wanted.core.to_string();
        let config = wanted.config.map(|path| path.display().to_string());
        let mut flags = vec!["--cores", &cores, "--idle", wanted.idle];
        flags.extend(config.iter().flat_map(|path| ["--config", path]));
        let daemon = Daemon::start(&flags)?;
        let mut words = vec!["dev", "add", "name", NAME, "mgmtdev", wanted.mgmtdev];
        words.extend(wanted.words.iter().map(String::as_str));
        // A function is there once the daemon has looked at it.
        let begun = Instant::now();
        while let Err(error) = daemon.ringway(&words) {
            if wanted.config.is_none() || begun.elapsed() > FUNCTION_WITHIN {
                return Err(error.into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let identity = Identity {
            name: "ringway".to_owned(),
            version: format!("{} ({})", env!("CARGO_PKG_VERSION"), env!("RINGWAY_REVISION")),
            flags: flags.into_iter().chain(words).map(str::to_owned).collect(),
        };
        Ok(Ours { daemon, identity })
    }

    /// Where its disk listens.
    pub fn socket(&self) -> PathBuf {
        self.daemon.socket(NAME)
    }

    /// What it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }
}

const NAME: &str = "bench";

/// How long a function may take to be there.
const FUNCTION_WITHIN: Duration = Duration::from_secs(3);
