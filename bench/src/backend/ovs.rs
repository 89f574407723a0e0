//! Open vSwitch on DPDK as a back-end: a learning switch whose ports connect to sockets of the generator's.
//!
//! Runs in a folder and in a network namespace of its own, beside whatever the machine has of it: database, control socket
//! and log are in the one, the interfaces that it makes for its own use in the other. Its ports stand under the rule NORMAL,
//! which is what a bridge is.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::{Busy, Identity, Memory};
use crate::error::BenchError;
use crate::mortal;

/// A running one. Killed when dropped.
#[derive(Debug)]
pub struct Ovs {
    switch: Child,
    database: Child,
    sockets: Vec<PathBuf>,
    pub(super) identity: Identity,
    ask: PathBuf,
    folder: tempfile::TempDir,
}

impl Ovs {
    /// Starts it with so many ports, its polling thread on `core`, and waits until they are there. They connect once the
    /// generator listens.
    pub fn start(ports: usize, core: usize, main_core: usize) -> Result<Ovs, BenchError> {
        let programs = Programs::find()?;
        let folder = tempfile::tempdir().map_err(BenchError::system("cannot make a directory"))?;
        let at = |name: &str| folder.path().join(name);
        let tool = |program: &Path, words: &[String]| done(program, folder.path(), words);
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let path = |path: PathBuf| path.display().to_string();

        tool(&programs.tool, &words(&["create", &path(at("conf.db")), &path(programs.schema.clone())]))?;
        let database = started(
            &programs.database,
            folder.path(),
            "database.log",
            &words(&[&path(at("conf.db")), &format!("--remote=punix:{}", path(at("db.sock"))), "--no-chdir"]),
        )?;
        let mut database = Killed(Some(database));
        let begun = Instant::now();
        while !at("db.sock").exists() {
            if begun.elapsed() > PATIENCE {
                return Err(failed(&programs.database, "did not open its socket", &at("database.log")));
            }
            std::thread::sleep(STEP);
        }
        let control = |more: &[String]| {
            let mut line =
                words(&[&format!("--db=unix:{}", path(at("db.sock"))), &format!("--timeout={TIMEOUT_S}")]);
            line.extend_from_slice(more);
            tool(&programs.control, &line)
        };
        let memory = Memory::find(MEMORY_MIB);
        let settings = settings(core, main_core, memory)?;
        control(&words(&["--no-wait", "init"]))?;
        let mut set = words(&["--no-wait", "set", "Open_vSwitch", "."]);
        set.extend(settings.iter().cloned());
        control(&set)?;
        let switch = started(
            &programs.switch,
            folder.path(),
            "switch.log",
            &words(&[
                &format!("unix:{}", path(at("db.sock"))),
                "--no-chdir",
                &format!("--unixctl={}", path(at("switch.ctl"))),
            ]),
        )?;
        let mut switch = Killed(Some(switch));
        let sockets: Vec<PathBuf> = (0..ports).map(|port| at(&format!("{port}.sock"))).collect();
        let added = control(&bridge(&sockets));
        let is_over = |child: &mut Killed| {
            child.0.as_mut().is_none_or(|child| matches!(child.try_wait(), Ok(Some(_)) | Err(_)))
        };
        if let Err(error) = added {
            let ended = if is_over(&mut switch) { "ended at once" } else { "did not make its ports" };
            let BenchError::Peer { what, .. } = error else { return Err(error) };
            return Err(failed(&programs.switch, &format!("{ended}: {what}"), &at("switch.log")));
        }
        let told = tool(&programs.switch, &words(&["--version"]))?;
        let lines = told.lines().map(str::trim).filter(|line| !line.is_empty());
        let version = lines.collect::<Vec<_>>().join(", ");
        let identity = Identity { name: "ovs".to_owned(), version, flags: settings };
        let (Some(switch), Some(database)) = (switch.0.take(), database.0.take()) else {
            return Err(BenchError::Usage("bug: a started program is gone".to_owned()));
        };
        Ok(Ovs { switch, database, sockets, identity, ask: programs.ask, folder })
    }

    /// Where its ports connect to.
    pub fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    /// It goes on.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.switch.try_wait(), Ok(None))
    }

    /// What its polling threads have spent.
    pub(super) fn busy(&self) -> Result<Option<Busy>, BenchError> {
        let target = format!("--target={}", self.folder.path().join("switch.ctl").display());
        let line = [target, format!("--timeout={TIMEOUT_S}"), "dpif-netdev/pmd-stats-show".to_owned()];
        Ok(busy(&done(&self.ask, self.folder.path(), &line)?))
    }

    /// The process that polls.
    pub(super) fn pid(&self) -> u32 {
        self.switch.id()
    }
}

impl Drop for Ovs {
    fn drop(&mut self) {
        for child in [&mut self.switch, &mut self.database] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A child that is killed unless it is taken.
struct Killed(Option<Child>);

impl Drop for Killed {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What it consists of.
struct Programs {
    switch: PathBuf,
    database: PathBuf,
    tool: PathBuf,
    control: PathBuf,
    ask: PathBuf,
    schema: PathBuf,
}

impl Programs {
    /// Under the folder that the environment names, else in the system's.
    fn find() -> Result<Programs, BenchError> {
        let root = std::env::var_os(VARIABLE).map_or_else(|| PathBuf::from("/"), PathBuf::from);
        let one = |places: &[&str]| {
            places.iter().map(|place| root.join(place)).find(|path| path.is_file()).ok_or_else(|| {
                BenchError::MissingPeer {
                    program: root.join(places.first().copied().unwrap_or_default()).display().to_string(),
                    package: "openvswitch-switch-dpdk",
                    variable: VARIABLE,
                }
            })
        };
        Ok(Programs {
            // Debian's, and where there is one that has DPDK in it.
            switch: one(&["usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk", "usr/sbin/ovs-vswitchd"])?,
            database: one(&["usr/sbin/ovsdb-server"])?,
            tool: one(&["usr/bin/ovsdb-tool"])?,
            control: one(&["usr/bin/ovs-vsctl"])?,
            ask: one(&["usr/bin/ovs-appctl"])?,
            schema: one(&["usr/share/openvswitch/vswitch.ovsschema"])?,
        })
    }
}

/// Reads the answer to `dpif-netdev/pmd-stats-show`: a section for each polling thread, and one for the main thread, which
/// polls nothing. Bursts are those that it sends.
fn busy(told: &str) -> Option<Busy> {
    let mut sum = Busy::default();
    for section in told.split("pmd thread").skip(1) {
        let section = section.split("main thread").next().unwrap_or_default();
        let value = |name: &str| {
            let line = section.lines().find_map(|line| line.trim().strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        let packets = value("packets received:")?;
        sum.packets += packets as u64;
        sum.cycles += value("processing cycles:").unwrap_or_default() as u64;
        let batch = value("avg. packets per output batch:").unwrap_or_default();
        sum.bursts += if batch > 0.0 { packets / batch } else { 0.0 };
    }
    (sum.packets > 0).then_some(sum)
}

/// How its database is set: cores, memory, no devices of the machine's.
fn settings(core: usize, main_core: usize, memory: Memory) -> Result<Vec<String>, BenchError> {
    let mask = |core: usize| {
        let bit = u32::try_from(core).ok().and_then(|core| 1u128.checked_shl(core));
        bit.map(|mask| format!("{mask:#x}")).ok_or_else(|| {
            BenchError::Usage(format!("core {core}: Open vSwitch is told of 128 at most here"))
        })
    };
    let extra = match memory {
        Memory::Huge => "--no-pci --no-telemetry --in-memory".to_owned(),
        Memory::Base => format!(
            "--no-pci --no-telemetry --no-huge -m {MEMORY_MIB} --file-prefix=ringway-bench-ovs-{}",
            std::process::id()
        ),
    };
    let mut settings = vec![
        "other_config:dpdk-init=true".to_owned(),
        format!("other_config:pmd-cpu-mask={}", mask(core)?),
        format!("other_config:dpdk-lcore-mask={}", mask(main_core)?),
        format!("other_config:dpdk-extra=\"{extra}\""),
    ];
    if memory == Memory::Huge {
        settings.push(format!("other_config:dpdk-socket-mem={MEMORY_MIB}"));
    }
    Ok(settings)
}

/// A bridge whose ports connect to these sockets, in one transaction.
fn bridge(sockets: &[PathBuf]) -> Vec<String> {
    let mut line: Vec<String> =
        ["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"].map(str::to_owned).to_vec();
    for (port, socket) in sockets.iter().enumerate() {
        let name = format!("p{port}");
        line.extend(["--", "add-port", "br0", &name, "--", "set", "Interface", &name].map(str::to_owned));
        line.push("type=dpdkvhostuserclient".to_owned());
        line.push(format!("options:vhost-server-path={}", socket.display()));
    }
    line
}

/// A command with its folders in `folder`, in a namespace that `namespace` makes.
fn command(namespace: &[&str], program: &Path, folder: &Path) -> Command {
    let mut command = match namespace {
        [first, rest @ ..] => {
            let mut command = mortal::command(first);
            command.args(rest).arg(program);
            command
        }
        [] => mortal::command(program),
    };
    for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
        command.env(variable, folder);
    }
    command.current_dir(folder).stdin(Stdio::null());
    command
}

/// Starts what goes on, its log in the folder.
fn started(program: &Path, folder: &Path, log: &str, words: &[String]) -> Result<Child, BenchError> {
    let file = std::fs::File::create(folder.join(log)).map_err(BenchError::system("cannot make a log"))?;
    let twin = file.try_clone().map_err(BenchError::system("cannot make a log"))?;
    let namespace: &[&str] = match rustix::process::geteuid().is_root() {
        true => &["unshare", "--net"],
        false => &["unshare", "--map-root-user", "--net"],
    };
    let mut command = command(namespace, program, folder);
    command.args(words).stdout(file).stderr(twin);
    command.spawn().map_err(BenchError::system(format!("cannot start {}", program.display())))
}

/// Runs what ends; returns what it printed.
fn done(program: &Path, folder: &Path, words: &[String]) -> Result<String, BenchError> {
    let output = command(&[], program, folder).args(words).output();
    let Output { status, stdout, stderr } =
        output.map_err(BenchError::system(format!("cannot run {}", program.display())))?;
    let said = String::from_utf8_lossy(&stderr).trim().to_owned();
    // What the switch refuses is told so, with a status of success.
    if status.success() && !said.contains("Error detected") {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    Err(BenchError::Peer { peer: program.display().to_string(), what: format!("{status}: {said}") })
}

fn failed(program: &Path, what: &str, log: &Path) -> BenchError {
    BenchError::Peer { peer: program.display().to_string(), what: format!("{what}\n{}", tail(log)) }
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

/// Names the folder under which its `usr` is, if that is not the system's own.
const VARIABLE: &str = "RINGWAY_OVS";
/// For its buffers.
const MEMORY_MIB: u64 = 384;
const PATIENCE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(10);
/// How long each of its commands may take, in seconds.
const TIMEOUT_S: u32 = 30;
const LAST_LINES: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_told_as_masks_and_memory_as_there_is() {
        let huge = settings(1, 0, Memory::Huge).unwrap().join(" ");
        assert!(huge.contains("pmd-cpu-mask=0x2") && huge.contains("dpdk-lcore-mask=0x1"), "{huge}");
        assert!(huge.contains("--in-memory") && huge.contains("dpdk-socket-mem"), "{huge}");
        let base = settings(100, 64, Memory::Base).unwrap().join(" ");
        assert!(base.contains("pmd-cpu-mask=0x10000000000000000000000000"), "{base}");
        assert!(base.contains("--no-huge") && !base.contains("socket-mem"), "{base}");
        assert!(settings(128, 0, Memory::Huge).is_err());
    }

    #[test]
    fn what_was_spent_is_that_of_the_polling_threads() {
        let told = "pmd thread numa_id 0 core_id 1:
  packets received: 1000
  packet recirculations: 0
  avg. datapath passes per packet: 1.00
  avg. packets per output batch: 20.00
  idle cycles: 900 (90.00%)
  processing cycles: 300000 (10.00%)
  avg processing cycles per packet: 300.00 (300000/1000)
main thread:
  packets received: 5
  processing cycles: 7
";
        assert_eq!(busy(told), Some(Busy { cycles: 300_000, packets: 1000, bursts: 50.0 }));
        // Before the first packet it tells no cycles.
        assert_eq!(busy("pmd thread numa_id 0 core_id 1:\n  packets received: 0\nmain thread:\n"), None);
    }

    #[test]
    fn every_port_is_made_in_one_transaction() {
        let line = bridge(&[PathBuf::from("/x/0.sock"), PathBuf::from("/x/1.sock")]).join(" ");
        assert_eq!(line.matches("type=dpdkvhostuserclient").count(), 2, "{line}");
        assert!(line.ends_with("options:vhost-server-path=/x/1.sock"), "{line}");
    }
}
