//! `bundle`: all that is shown of a daemon and its host, in one file for a report.
//!
//! ```text
//!   ringway-bundle-SECONDS.tar.gz
//!     ringway-bundle-SECONDS/contents.json   what is in it, and why what is not
//!                            hello.json ...  one file for each answer
//! ```
//! It is put together by the command, of what the daemon answers to anybody: nothing in it is what a guest sends or stores, since the
//! daemon shows nothing of that. Of a frame that was dropped it shows an address or a length. Of the kernel's command line only
//! words about cores and memory are taken: others may be secrets.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::fault::{Fault, Kind, reason};
use crate::operator::api::{CoreShow, DevShow, Follow, Hello};
use crate::operator::cli::{status, why};
use crate::operator::client::Client;
use crate::operator::doctor::{self, Told};

/// Every file of a bundle, and what is in it.
pub(crate) const CONTENTS: [(&str, &str); 21] = [
    ("contents.json", "this list: each file's size, or why it is not there"),
    ("hello.json", "ringway hello: version, process, directories"),
    ("status.json", "ringway status: whether everything that was asked for is made"),
    ("why.json", "ringway why of each device: what keeps frames or requests from it"),
    ("mgmtdev.json", "ringway mgmtdev show"),
    ("port.json", "ringway port show"),
    ("dev.json", "ringway dev show: devices, front-ends, rings"),
    ("dev-config.json", "ringway dev config show"),
    ("vstats.json", "ringway dev vstats show of each device: counters, drops, faults"),
    ("vlan.json", "ringway bridge vlan show"),
    ("core.json", "ringway core show"),
    ("core-balance.json", "ringway core balance: what would be moved"),
    ("config.toml", "ringway config dump: what runs, as a configuration file"),
    ("events.json", "ringway events --once --since 0: the history"),
    ("metrics.txt", "what is scraped"),
    ("doctor.json", "ringway doctor"),
    ("doctor.txt", "the same, to read"),
    ("log.txt", "the last 2000 lines of the unit ringwayd in the journal"),
    ("interrupts.txt", "/proc/interrupts"),
    ("host.txt", "/proc/version, and of /proc/cmdline what is about cores and memory"),
    ("limits.txt", "/proc/PID/limits of the daemon"),
];

/// What was made.
#[derive(Debug, Serialize)]
pub(super) struct Made {
    bundle: PathBuf,
    bytes: u64,
    files: usize,
    /// What is not in it, and why.
    missing: Map<String, Value>,
}

impl Made {
    /// As a text.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{}: {} files, {} bytes\n", self.bundle.display(), self.files, self.bytes);
        for (name, why) in &self.missing {
            text += &format!("  without {name}: {}\n", why.as_str().unwrap_or_default());
        }
        text
    }
}

/// Gathers everything and writes it. Without a daemon, what is of the host.
///
/// # Errors
/// The file is there, or cannot be written.
pub(super) fn make(
    file: Option<PathBuf>,
    connect: &impl Fn() -> Result<Client, Fault>,
) -> Result<Made, Fault> {
    let seconds = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let name = format!("ringway-bundle-{seconds}");
    let path = file.unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    let shown = path.display().to_string();
    // Its owner's alone: names and addresses are in it.
    let to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let to =
        to.map_err(|error| Fault::system(format!("cannot write {shown}"), error).hint("another file"))?;
    let mut gathered = Gathered::default();
    gathered.of_daemon(connect);
    gathered.of_host();
    let files = gathered.files.len() + 1;
    let written = gathered.write(to, &name, seconds);
    if let Err(error) = written {
        // Half of one is none.
        let _ = std::fs::remove_file(&path);
        return Err(Fault::system(format!("cannot write {shown}"), error));
    }
    let bytes = std::fs::metadata(&path).map_or(0, |facts| facts.len());
    Ok(Made { bundle: path, bytes, files, missing: gathered.missing })
}

/// What was gathered so far.
#[derive(Default)]
struct Gathered {
    files: Vec<(&'static str, Vec<u8>)>,
    missing: Map<String, Value>,
    told: Told,
    pid: Option<u32>,
}

impl Gathered {
    fn put(&mut self, name: &'static str, content: Result<Vec<u8>, String>) {
        match content {
            Ok(content) => self.files.push((name, content)),
            Err(why) => drop(self.missing.insert(name.to_owned(), why.into())),
        }
    }

    /// All that the daemon answers.
    fn of_daemon(&mut self, connect: &impl Fn() -> Result<Client, Fault>) {
        let mut client = match connect() {
            Ok(client) => client,
            Err(fault) => {
                for name in OF_DAEMON {
                    self.put(name, Err(fault.message.clone()));
                }
                return;
            }
        };
        let all = json!({});
        for (name, method) in [
            ("hello.json", "hello"),
            ("mgmtdev.json", "mgmtdev.show"),
            ("port.json", "port.show"),
            ("dev.json", "dev.show"),
            ("dev-config.json", "dev.config.show"),
            ("vlan.json", "bridge.vlan.show"),
            ("core.json", "core.show"),
            ("core-balance.json", "core.plan"),
        ] {
            let answer = client.call::<_, Value>(method, &all);
            self.put(name, answer.map_err(|fault| fault.message).and_then(|answer| pretty(&answer)));
        }
        let follow = Follow { since: Some(0), follow: false, ..Follow::default() };
        let events = client.call::<_, Value>("events", &follow);
        self.put("events.json", events.map_err(|fault| fault.message).and_then(|answer| pretty(&answer)));
        let status = status::look(&mut client).map_err(|fault| fault.message);
        self.put("status.json", status.and_then(|status| pretty(&status)));
        let why = names(&mut client)
            .and_then(|names| why::ask(&mut client, &names.iter().map(String::as_str).collect::<Vec<_>>()));
        self.put("why.json", why.map_err(|fault| fault.message).and_then(|why| pretty(&why)));
        let vstats = vstats(&mut client);
        self.put("vstats.json", vstats.map_err(|fault| fault.message).and_then(|answer| pretty(&answer)));
        for (name, method, field) in
            [("config.toml", "config.dump", "toml"), ("metrics.txt", "metrics.show", "text")]
        {
            let answer = client.call::<_, Value>(method, &all).map_err(|fault| fault.message);
            let text = answer.and_then(|answer| {
                let text = answer.get(field).and_then(Value::as_str).map(|text| text.as_bytes().to_vec());
                text.ok_or_else(|| format!("the answer to {method} has no {field}"))
            });
            self.put(name, text);
        }
        let hello: Result<Hello, Fault> = client.call("hello", &all);
        let cores: Result<CoreShow, Fault> = client.call("core.show", &all);
        if let (Ok(hello), Ok(cores)) = (hello, cores) {
            self.pid = Some(hello.pid);
            self.told = Told::of(&hello, &cores);
        }
    }

    /// What the host tells.
    fn of_host(&mut self) {
        match doctor::examine(Path::new("/"), &self.told, &[]) {
            Ok(report) => {
                self.put("doctor.json", pretty(&json!({ "doctor": report })));
                self.put("doctor.txt", Ok(report.text().into_bytes()));
            }
            Err(fault) => {
                for name in ["doctor.json", "doctor.txt"] {
                    self.put(name, Err(fault.message.clone()));
                }
            }
        }
        self.put("log.txt", journal());
        self.put("interrupts.txt", read("/proc/interrupts"));
        self.put("host.txt", host());
        let limits = match self.pid {
            Some(pid) => read(&format!("/proc/{pid}/limits")),
            None => Err("no daemon".to_owned()),
        };
        self.put("limits.txt", limits);
    }

    fn write(&self, to: File, name: &str, seconds: u64) -> io::Result<()> {
        let mut tar = tar::Builder::new(GzEncoder::new(to, Compression::default()));
        let list: Map<String, Value> = self
            .files
            .iter()
            .map(|(name, content)| ((*name).to_owned(), json!({ "bytes": content.len() })))
            .collect();
        let contents = json!({
            "ringway": env!("CARGO_PKG_VERSION"),
            "made_at": seconds,
            "files": list,
            "missing": self.missing,
        });
        let contents = pretty(&contents).map_err(io::Error::other)?;
        let first = ("contents.json", contents);
        for (file, content) in std::iter::once(&first).chain(&self.files) {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(seconds);
            tar.append_data(&mut header, format!("{name}/{file}"), content.as_slice())?;
        }
        tar.into_inner()?.finish()?.flush()
    }
}

/// The names of the devices that are there.
fn names(client: &mut Client) -> Result<Vec<String>, Fault> {
    let shown: DevShow = client.call("dev.show", &json!({}))?;
    Ok(shown.dev.0.into_iter().map(|(name, _)| name).collect())
}

/// The counters of each device.
fn vstats(client: &mut Client) -> Result<Value, Fault> {
    let mut all = Map::new();
    for name in names(client)? {
        match client.call::<_, Value>("dev.vstats.show", &json!({ "name": name })) {
            Ok(Value::Object(mut answer)) => {
                let of_it = answer.get_mut("vstats").and_then(|stats| stats.get_mut(&name)).map(Value::take);
                all.insert(name, of_it.unwrap_or_default());
            }
            Ok(_) => {}
            // Removed meanwhile.
            Err(fault) if fault.kind == Kind::NotFound => {}
            Err(fault) => return Err(fault),
        }
    }
    Ok(json!({ "vstats": all }))
}

/// The end of the unit's journal.
fn journal() -> Result<Vec<u8>, String> {
    let words =
        ["--unit", "ringwayd", "--lines", "2000", "--no-pager", "--quiet", "--output", "short-iso-precise"];
    let child = Command::new("journalctl").args(words).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let output = child.map_err(|error| format!("journalctl: {}", reason(&error)))?;
    if !output.status.success() {
        return Err(format!("journalctl: {}", output.status));
    }
    match output.stdout.is_empty() {
        true => Err("the journal has nothing of a unit ringwayd, or not for this user".to_owned()),
        false => Ok(output.stdout),
    }
}

/// The kernel's version, and what it was told of cores and memory.
fn host() -> Result<Vec<u8>, String> {
    let mut text = read("/proc/version")?;
    let line = String::from_utf8_lossy(&read("/proc/cmdline")?).into_owned();
    let told = |word: &&str| COMMAND_LINE.contains(&word.split('=').next().unwrap_or_default());
    for word in line.split_whitespace().filter(told) {
        text.extend(format!("{word}\n").into_bytes());
    }
    Ok(text)
}

fn read(path: &str) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let file = File::open(path).map_err(|error| format!("{path}: {}", reason(&error)))?;
    file.take(MOST_BYTES).read_to_end(&mut content).map_err(|error| format!("{path}: {}", reason(&error)))?;
    Ok(content)
}

fn pretty(value: &impl Serialize) -> Result<Vec<u8>, String> {
    serde_json::to_vec_pretty(value).map_err(|error| error.to_string())
}

/// What only a daemon tells.
const OF_DAEMON: [&str; 14] = [
    "hello.json",
    "status.json",
    "why.json",
    "mgmtdev.json",
    "port.json",
    "dev.json",
    "dev-config.json",
    "vstats.json",
    "vlan.json",
    "core.json",
    "core-balance.json",
    "config.toml",
    "events.json",
    "metrics.txt",
];
/// What is taken of the kernel's command line.
const COMMAND_LINE: [&str; 14] = [
    "isolcpus",
    "nohz_full",
    "rcu_nocbs",
    "irqaffinity",
    "default_hugepagesz",
    "hugepagesz",
    "hugepages",
    "intel_iommu",
    "amd_iommu",
    "iommu",
    "iommu.passthrough",
    "nosmt",
    "mitigations",
    "preempt",
];
/// Of one file of the host's.
const MOST_BYTES: u64 = 8 << 20;
