//! `ringwayd` and `ringway`, as an operator runs them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::ensure;
use crate::error::{Context, Error, Result};
use crate::image::cargo;
use crate::lab::{self, Lab, wait_for};
use crate::pace::{Pace, WATCHDOG};
use crate::process::{self, Finished, Process};

/// A running `ringwayd`, on a folder of its own.
#[derive(Debug)]
pub struct Daemon {
    /// `None` between its end and its next start.
    process: Option<Process>,
    binaries: PathBuf,
    /// The operator's socket and, beside it, the devices'.
    sockets: PathBuf,
    state: PathBuf,
    log: PathBuf,
    options: Vec<String>,
    /// How long its starts took.
    starts: Pace,
}

/// What one queue has done, as `dev vstats show` gives it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// `rx` or `tx`, from the guest's side.
    pub queue_type: String,
    /// Descriptors that the guest made available.
    pub received_desc: u64,
    /// Descriptors given back.
    pub completed_desc: u64,
    /// Frames moved.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Large frames that were cut up for the guest.
    pub sw_segmented: u64,
    /// What they were cut up into, counted among `packets`.
    pub sw_segments: u64,
    /// Frames dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Faults of the ring, by reason.
    pub faults: BTreeMap<String, u64>,
}

/// A device's queues, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceStats {
    /// By queue number: even receive, odd transmit.
    pub queues: Vec<QueueStats>,
}

impl DeviceStats {
    /// From what `dev vstats show` gives of a device.
    pub(crate) fn from_shown(shown: &Value, name: &str) -> Result<DeviceStats> {
        let of_device = &shown["vstats"][name];
        let queues = match of_device {
            Value::Array(queues) => queues.iter().collect::<Vec<_>>(),
            Value::Object(fields) if fields.contains_key("queue_type") => vec![of_device],
            Value::Object(fields) if fields.contains_key("queues") => {
                fields["queues"].as_array().into_iter().flatten().collect()
            }
            _ => Vec::new(),
        };
        ensure!(!queues.is_empty(), "no queues in {shown}");
        Ok(DeviceStats { queues: queues.into_iter().map(queue_stats).collect() })
    }

    /// Frames that the guest sent.
    pub fn tx_packets(&self) -> u64 {
        self.sum("tx")
    }

    /// Frames that the guest was given.
    pub fn rx_packets(&self) -> u64 {
        self.sum("rx")
    }

    /// Frames that the guest was given, as they were sent: one that was cut up for it counts once.
    pub fn rx_frames(&self) -> u64 {
        self.of("rx").map(|queue| queue.packets + queue.sw_segmented - queue.sw_segments).sum()
    }

    /// Bytes that the guest sent.
    pub fn tx_bytes(&self) -> u64 {
        self.of("tx").map(|queue| queue.bytes).sum()
    }

    /// Bytes that the guest was given.
    pub fn rx_bytes(&self) -> u64 {
        self.of("rx").map(|queue| queue.bytes).sum()
    }

    /// Everything dropped, whatever the reason.
    pub fn drops(&self) -> u64 {
        self.rx_drops() + self.tx_drops()
    }

    /// What was sent to the guest and could not be delivered, whatever the reason.
    pub fn rx_drops(&self) -> u64 {
        self.of("rx").flat_map(|queue| queue.drops.values()).sum()
    }

    /// What the guest sent and was not sent on, whatever the reason.
    pub fn tx_drops(&self) -> u64 {
        self.of("tx").flat_map(|queue| queue.drops.values()).sum()
    }

    /// What was dropped for one reason.
    pub fn dropped_as(&self, reason: &str) -> u64 {
        self.queues.iter().filter_map(|queue| queue.drops.get(reason)).sum()
    }

    /// Everything that faulted a ring.
    pub fn faults(&self) -> u64 {
        self.queues.iter().flat_map(|queue| queue.faults.values()).sum()
    }

    fn sum(&self, queue_type: &str) -> u64 {
        self.of(queue_type).map(|queue| queue.packets).sum()
    }

    fn of<'a>(&'a self, queue_type: &'a str) -> impl Iterator<Item = &'a QueueStats> {
        self.queues.iter().filter(move |queue| queue.queue_type == queue_type)
    }
}

impl Daemon {
    /// Starts `ringwayd` with these further options, on the test's folders; returns when it answers.
    pub fn start(lab: &Lab, options: &[&str]) -> Result<Daemon> {
        let mut daemon = Daemon {
            process: None,
            binaries: binaries()?,
            sockets: lab.sockets().to_path_buf(),
            state: lab.path("state"),
            log: lab.path("ringwayd.log"),
            options: options.iter().map(|option| (*option).to_string()).collect(),
            starts: Pace::default(),
        };
        daemon.start_again()?;
        Ok(daemon)
    }

    /// Starts it again after its end; gives when it was started. Returns when it answers.
    pub fn start_again(&mut self) -> Result<Instant> {
        ensure!(self.process.is_none(), "ringwayd already runs");
        let mut arguments = vec!["--ctl".into(), self.sockets.join("ctl.sock").display().to_string()];
        arguments.extend(["--state-dir".into(), self.state.display().to_string()]);
        arguments.extend(self.options.iter().cloned());
        let started = Instant::now();
        let mut process = Process::start(self.binaries.join("ringwayd"), &arguments, &self.log)?;
        wait_for("an answer of ringwayd", WATCHDOG, || {
            process.check()?;
            Ok(self.ctl_raw(&["mgmtdev", "show"]).ok().filter(|finished| finished.code == 0))
        })?;
        self.process = Some(process);
        self.starts.saw(started.elapsed());
        Ok(started)
    }

    /// Ends it with SIGTERM, as a service manager does; it must end well, and soon.
    pub fn terminate(&mut self) -> Result<()> {
        let mut process = self.process.take().ok_or_else(|| Error::new("ringwayd does not run"))?;
        let begun = Instant::now();
        process.signal(Signal::TERM)?;
        let status = process.wait(WATCHDOG)?;
        ensure!(status.success(), "ringwayd ended with {status} after SIGTERM");
        self.starts.allows("the end of ringwayd", ENDS_WITHIN_STARTS, begun.elapsed())
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().ok_or_else(|| Error::new("ringwayd does not run"))?.kill()
    }

    /// An error with the end of its log unless it still runs.
    pub fn check(&mut self) -> Result<()> {
        self.process.as_mut().ok_or_else(|| Error::new("ringwayd does not run"))?.check()
    }

    /// The process id.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Runs `ringway` with these words, which must succeed.
    pub fn ctl(&self, words: &[&str]) -> Result<String> {
        let finished = self.ctl_raw(words)?;
        ensure!(
            finished.code == 0,
            "ringway {}: exit code {}\n{}{}",
            words.join(" "),
            finished.code,
            finished.stdout,
            finished.stderr
        );
        Ok(finished.stdout)
    }

    /// Runs `ringway -j` with these words, which must succeed, and reads its JSON.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let text = self.ctl(&[&["-j"], words].concat())?;
        serde_json::from_str(&text).context(|| format!("ringway -j {}: {text}", words.join(" ")))
    }

    /// Runs `ringway` with these words, however it ends.
    pub fn ctl_raw(&self, words: &[&str]) -> Result<Finished> {
        let mut arguments = vec!["--ctl".to_string(), self.sockets.join("ctl.sock").display().to_string()];
        arguments.extend(words.iter().map(|word| (*word).to_string()));
        process::run(self.binaries.join("ringway"), &arguments, WATCHDOG)
    }

    /// Adds a `sim/net` device with these further words.
    pub fn add(&self, name: &str, words: &[&str]) -> Result<()> {
        self.add_to("sim/net", name, words)
    }

    /// Adds a device of a management device with these further words.
    pub fn add_to(&self, mgmtdev: &str, name: &str, words: &[&str]) -> Result<()> {
        self.ctl(&[&["dev", "add", "name", name, "mgmtdev", mgmtdev], words].concat()).map(|_| ())
    }

    /// Removes a device; gives how long the command took.
    pub fn delete(&self, name: &str) -> Result<Duration> {
        let start = Instant::now();
        self.ctl(&["dev", "del", name])?;
        Ok(start.elapsed())
    }

    /// How long it takes to add and remove a device that nobody uses.
    pub fn pace(&self) -> Result<Pace> {
        Pace::of(|| {
            let begun = Instant::now();
            self.add("spare", &[])?;
            self.delete("spare")?;
            Ok(begun.elapsed())
        })
    }

    /// Where a device's socket lies when the daemon chooses.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.sockets.join("dev").join(format!("{name}.sock"))
    }

    /// The features that a device's front-end has negotiated, by name.
    pub fn features(&self, name: &str) -> Result<Vec<String>> {
        let shown = self.json(&["dev", "config", "show", name])?;
        let features = shown["config"][name]["negotiated_features"].as_array();
        let features = features.ok_or_else(|| Error::new(format!("no negotiated features in {shown}")))?;
        Ok(features.iter().map(|name| name.as_str().unwrap_or_default().to_string()).collect())
    }

    /// What a device's queues have done.
    pub fn stats(&self, name: &str) -> Result<DeviceStats> {
        let shown = self.json(&["dev", "vstats", "show", name])?;
        DeviceStats::from_shown(&shown, name)
    }
}

fn queue_stats(queue: &Value) -> QueueStats {
    let number = |name: &str| queue[name].as_u64().unwrap_or(0);
    let reasons = |name: &str| {
        let map = queue[name].as_object().into_iter().flatten();
        map.filter_map(|(reason, count)| Some((reason.clone(), count.as_u64()?))).collect()
    };
    QueueStats {
        queue_type: queue["queue_type"].as_str().unwrap_or_default().to_string(),
        sw_segmented: number("sw_segmented"),
        sw_segments: number("sw_segments"),
        received_desc: number("received_desc"),
        completed_desc: number("completed_desc"),
        packets: number("packets"),
        bytes: number("bytes"),
        drops: reasons("drops"),
        faults: reasons("faults"),
    }
}

/// It ends within so many times what its start took.
const ENDS_WITHIN_STARTS: u32 = 50;

/// The folder of the release binaries, which are built if they are not up to date; once in a process. `RINGWAY_BIN` names
/// another one, whose are taken as they are.
pub fn binaries() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(|| build().map_err(|error| error.to_string())).clone().map_err(Error::new)
}

fn build() -> Result<PathBuf> {
    build_packages(&["ringway-control", "ringway-front"], &["ringwayd", "ringway", "ringway-front"])
}

/// The benchmark suite, and the programs that it starts beside it: as [`binaries`], built if they are not up to date.
pub fn suite() -> Result<Vec<PathBuf>> {
    let programs = ["ringway-bench", "ringwayd", "ringway"];
    let folder = build_packages(&["ringway-control", "ringway-bench"], &programs)?;
    Ok(programs.iter().map(|name| folder.join(name)).collect())
}

/// Builds packages' release binaries; the folder that these are in.
fn build_packages(packages: &[&str], programs: &[&str]) -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("RINGWAY_BIN") {
        return Ok(PathBuf::from(folder));
    }
    let target = lab::target_folder()?;
    let status = cargo()
        .args(["build", "--quiet", "--release", "--bins", "--target-dir"])
        .arg(&target)
        .args(packages.iter().flat_map(|package| ["--package", package]))
        .status()
        .context(|| "cargo".into())?;
    ensure!(status.success(), "{} could not be built ({status})", packages.join(", "));
    let folder = target.join("release");
    for name in programs {
        ensure!(Path::new(&folder).join(name).exists(), "{name} is not in {}", folder.display());
    }
    Ok(folder)
}
