//! A network namespace of the suite's own: what is made in it goes with it, and it goes with the process, however that ends.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::error::BenchError;

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Namespace {
    /// Holds it: no thread needs to stay in it.
    file: File,
}

impl Namespace {
    /// Makes one.
    ///
    /// # Errors
    /// The right to make it is missing.
    pub(crate) fn new() -> Result<Namespace, BenchError> {
        // A thread of its own, which leaves the caller where it is.
        let file = on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| {
                BenchError::system(
                    "cannot make a network namespace (needs CAP_SYS_ADMIN: run it as root, or under `unshare \
                     --map-root-user`)",
                )(errno.into())
            })?;
            // Interfaces in it are silent until they are spoken to; a kernel without IPv6, or a /proc that cannot be written
            // to, is no reason not to measure.
            let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
            File::open("/proc/thread-self/ns/net")
                .map_err(BenchError::system("cannot hold a network namespace"))
        })?;
        Ok(Namespace { file })
    }

    /// A path by which other processes find it, as long as this one is there.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Moves this thread into it, for good.
    pub(crate) fn enter(&self) -> Result<(), BenchError> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|errno| BenchError::system("cannot enter a network namespace")(errno.into()))
    }

    /// Does something in it, on a thread of its own.
    pub(crate) fn within<T: Send>(
        &self,
        act: impl FnOnce() -> Result<T, BenchError> + Send,
    ) -> Result<T, BenchError> {
        on_thread(|| {
            self.enter()?;
            act()
        })
    }

    /// Runs `ip` with these words in it, which must succeed; returns what it prints.
    pub(crate) fn ip(&self, line: &str) -> Result<String, BenchError> {
        self.within(|| {
            let path = std::env::var("PATH").unwrap_or_default();
            let output = Command::new("ip")
                .args(line.split_whitespace())
                .env("PATH", format!("{path}:/usr/sbin:/sbin"))
                .output()
                .map_err(|source| match source.kind() {
                    std::io::ErrorKind::NotFound => BenchError::MissingPeer {
                        program: "ip".to_owned(),
                        package: "iproute2",
                        variable: "PATH",
                    },
                    _ => BenchError::system("cannot run ip")(source),
                })?;
            if output.status.success() {
                return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(BenchError::Peer { peer: format!("ip {line}"), what: said })
        })
    }

    /// The Ethernet address of an interface.
    pub(crate) fn mac(&self, interface: &str) -> Result<[u8; 6], BenchError> {
        let shown = self.ip(&format!("-j link show dev {interface}"))?;
        let address = || {
            let shown: Value = serde_json::from_str(&shown).ok()?;
            let text = shown.get(0)?.get("address")?.as_str()?.to_owned();
            let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok());
            let mut mac = [0; 6];
            for byte in &mut mac {
                *byte = bytes.next()??;
            }
            Some(mac)
        };
        address().ok_or_else(|| BenchError::Peer {
            peer: format!("ip link show {interface}"),
            what: shown.clone(),
        })
    }
}

/// Does something on a thread of its own.
fn on_thread<T: Send>(act: impl FnOnce() -> Result<T, BenchError> + Send) -> Result<T, BenchError> {
    std::thread::scope(|scope| {
        scope
            .spawn(act)
            .join()
            .unwrap_or_else(|_| Err(BenchError::Usage("bug: a thread panicked".to_owned())))
    })
}
