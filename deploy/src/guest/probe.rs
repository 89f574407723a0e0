//! The probe of a sandbox: tries what a unit of the data plane is to be kept from, and writes down what it could do.
//!
//! It is started in the daemon's place, under the daemon's unit: `ExecStart=` is another, the rest is the unit's own.

use std::fs;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use ringway_lab::error::{Context, Result};
use rustix::process::{Resource, Rlimit};

/// Something that is tried.
type Try = fn() -> std::io::Result<()>;

/// Tries everything; the report has a line for each, `NAME could` or `NAME could not: WHY`.
pub(crate) fn run(report: &Path) -> Result<()> {
    let tries: [(&str, Try); 18] = [
        ("write /etc", || fs::write("/etc/ringway-probe", "")),
        ("write /usr", || fs::write("/usr/ringway-probe", "")),
        ("write /run", || fs::write("/run/ringway-probe", "")),
        ("read /root", || fs::read_dir("/root").and_then(|mut entries| entries.next().transpose().map(drop))),
        ("read shadow", || fs::read("/etc/shadow").map(drop)),
        ("read the disk", || fs::File::open("/dev/vda").map(drop)),
        ("open tun", || fs::File::options().read(true).write(true).open("/dev/net/tun").map(drop)),
        ("see init", || fs::read("/proc/1/comm").map(drop)),
        ("set a sysctl", || fs::write("/proc/sys/kernel/printk", "1")),
        ("make a cgroup", || fs::create_dir("/sys/fs/cgroup/ringway-probe")),
        ("udp", || UdpSocket::bind("127.0.0.1:0").map(drop)),
        ("tcp", || {
            TcpStream::connect_timeout(&([10, 0, 0, 1], 80).into(), Duration::from_millis(100)).map(drop)
        }),
        ("a new namespace", || run_program("unshare", &["--mount", "true"])),
        ("mount", || mount().map_err(Into::into)),
        ("real-time", || run_program("chrt", &["-f", "1", "true"])),
        ("raise a limit", || {
            let limit = Rlimit { current: None, maximum: None };
            rustix::process::setrlimit(Resource::Memlock, limit).map_err(Into::into)
        }),
        // What it is to be able to do.
        ("write its runtime", || UnixListener::bind("/run/ringway/probe.sock").map(drop)),
        ("write its state", || fs::write("/var/lib/ringway/probe", "")),
    ];
    let mut text = String::new();
    for (name, attempt) in tries {
        text += &match attempt() {
            Ok(()) => format!("{name}: could\n"),
            Err(error) => format!("{name}: could not: {error}\n"),
        };
    }
    fs::write(report, text).context(|| report.display().to_string())
}

fn mount() -> rustix::io::Result<()> {
    rustix::mount::mount("none", "/srv", "tmpfs", rustix::mount::MountFlags::empty(), None)
}

fn run_program(program: &str, words: &[&str]) -> std::io::Result<()> {
    let ended = std::process::Command::new(program).args(words).output()?;
    if ended.status.success() { Ok(()) } else { Err(std::io::Error::other(ended.status.to_string())) }
}
