//! What has to be there before the first command: file systems, modules, the port to the harness.

use std::fs::{self, File};
use std::path::Path;

use ringway_lab::error::{Context, Result};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::termios::OptionalActions;

/// Mounts the kernel's file systems and a place for files.
pub(crate) fn mount_all() -> Result<()> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")] {
        fs::create_dir_all(at)?;
        match rustix::mount::mount(kind, at, kind, MountFlags::empty(), None) {
            // The kernel may have mounted /dev by itself.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno).context(|| format!("mount {at}")),
        }
    }
    Ok(())
}

/// Loads `/modules/*` in the order of their names.
pub(crate) fn load_modules() -> Result<()> {
    let Ok(entries) = fs::read_dir("/modules") else { return Ok(()) };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        let module = File::open(&path).context(|| path.display().to_string())?;
        match rustix::system::finit_module(&module, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).context(|| format!("load {}", path.display())),
        }
    }
    Ok(())
}

/// Has links queue frames in order and drop none: the kernel's own choice, fq_codel, drops what has waited for some
/// milliseconds, which on a busy host is nobody's fault but looks like a loss on the wire.
pub(crate) fn queue_plainly() -> Result<()> {
    let setting = "/proc/sys/net/core/default_qdisc";
    fs::write(setting, "pfifo_fast").context(|| format!("pfifo_fast to {setting}"))
}

/// Has the kernel let us send echo requests, answer for an address only where it is, and hold what a fast sender sends.
pub(crate) fn answer_plainly() -> Result<()> {
    let settings = [
        ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
        ("/proc/sys/net/ipv4/conf/all/arp_ignore", "1"),
        ("/proc/sys/net/ipv4/conf/all/arp_announce", "2"),
        // Neither a reply that comes back nor its absence is to depend on how fast they are asked for.
        ("/proc/sys/net/ipv4/icmp_ratelimit", "0"),
    ];
    for (setting, value) in settings {
        fs::write(setting, value).context(|| format!("{value} to {setting}"))?;
    }
    Ok(())
}

/// Has the kernel keep what it knows of a NIC's neighbours when the NIC's link goes down. Else it asks for them anew into
/// the link that is down, and then once a second: what a test would measure is that timer, not how soon a device is back.
pub(crate) fn keep_neighbours() -> Result<()> {
    for setting in [
        "/proc/sys/net/ipv4/conf/all/arp_evict_nocarrier",
        "/proc/sys/net/ipv6/conf/all/ndisc_evict_nocarrier",
    ] {
        match fs::write(setting, "0") {
            // A kernel that does not have it: IPv6 may be a module that is not there.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            done => done.context(|| format!("0 to {setting}"))?,
        }
    }
    Ok(())
}

/// Sets the loopback interface up: a kernel without it does not reach its own addresses.
pub(crate) fn loopback_up() -> Result<()> {
    fs::write("/sys/class/net/lo/flags", "0x49").context(|| "loopback".into())
}

/// The second serial port, in raw mode: what is written arrives as written, nothing is echoed.
pub(crate) fn open_port() -> Result<File> {
    let port =
        rustix::fs::open(Path::new(PORT), OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, 0o600.into())
            .context(|| PORT.into())?;
    let mut modes = rustix::termios::tcgetattr(&port).context(|| PORT.into())?;
    modes.make_raw();
    rustix::termios::tcsetattr(&port, OptionalActions::Now, &modes).context(|| PORT.into())?;
    Ok(File::from(port))
}

const PORT: &str = "/dev/ttyS1";
