//! DPDK's testpmd as a back-end.

use std::path::{Path, PathBuf};

use super::Memory;
use super::console::{self, Console};
use crate::error::BenchError;
use crate::options::Job;

/// DPDK's testpmd with `net_vhost` ports: one that swaps addresses, or two that are joined.
#[derive(Debug)]
pub struct Testpmd {
    pub(super) console: Console,
    pub(super) sockets: Vec<PathBuf>,
    _folder: tempfile::TempDir,
}

/// What it shall be like.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The program; the one that is found without it.
    pub program: Option<&'a Path>,
    /// The job.
    pub job: Job,
    /// The core that forwards.
    pub core: usize,
    /// Where its other thread waits.
    pub main_core: usize,
    /// Entries of the rings.
    pub queue_size: u16,
    /// The longest frame.
    pub max_frame: u16,
    /// Queue pairs.
    pub pairs: u16,
}

impl Testpmd {
    /// Starts it and waits until it forwards.
    pub fn start(wanted: Wanted<'_>) -> Result<Testpmd, BenchError> {
        if wanted.job == Job::Bridge {
            return Err(BenchError::Usage("testpmd is no learning switch: --peer ovs".to_owned()));
        }
        let folder = tempfile::tempdir().map_err(BenchError::system("cannot make a directory"))?;
        let sockets: Vec<PathBuf> =
            (0..wanted.job.ports()).map(|port| folder.path().join(format!("{port}.sock"))).collect();
        let flags = flags(&wanted, &sockets, Memory::find(console::MEMORY_MIB));
        // It says so once its cores are about to forward.
        let mut console = Console::start(wanted.program, flags, |line| line.contains("packets/burst"))?;
        console.wait("did not make its sockets", |_| sockets.iter().all(|socket| socket.exists()))?;
        Ok(Testpmd { console, sockets, _folder: folder })
    }
}

fn flags(wanted: &Wanted<'_>, sockets: &[PathBuf], memory: Memory) -> Vec<String> {
    let Wanted { job, core, main_core, queue_size, max_frame, pairs, .. } = *wanted;
    let mut line = console::environment(main_core, core, "peer", memory);
    for (port, socket) in sockets.iter().enumerate() {
        line.push(format!("--vdev=net_vhost{port},iface={},queues={pairs}", socket.display()));
    }
    line.extend(["--", "--nb-cores=1", "--auto-start", "-i"].map(str::to_owned));
    // Two looks at the clock a burst, which Ringway has too.
    line.extend(["--record-core-cycles", "--record-burst-stats"].map(str::to_owned));
    let mode = if job == Job::Loopback { "macswap" } else { "io" };
    line.push(format!("--forward-mode={mode}"));
    line.extend(["--rxq", "--txq"].map(|word| format!("{word}={pairs}")));
    line.extend(["--rxd", "--txd"].map(|word| format!("{word}={}", queue_size.max(512))));
    line.push(format!("--total-num-mbufs={MBUFS}"));
    if max_frame > STANDARD_FRAME {
        line.push(format!("--mbuf-size={}", u32::from(max_frame) + 256));
        line.push(format!("--max-pkt-len={}", u32::from(max_frame) + 4));
    }
    line
}

const MBUFS: u32 = 16_384;

/// Longest frame that a buffer of the standard size takes.
const STANDARD_FRAME: u16 = 1518;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_job_has_its_ports_and_mode() {
        let wanted = Wanted {
            program: None,
            job: Job::Link,
            core: 3,
            main_core: 2,
            queue_size: 256,
            max_frame: 9014,
            pairs: 4,
        };
        let sockets = ["/x/0", "/x/1"].map(PathBuf::from);
        let link = flags(&wanted, &sockets, Memory::Huge).join(" ");
        for part in [
            "--lcores 0@2,1@3 --main-lcore 0",
            "net_vhost1,iface=/x/1,queues=4",
            "--forward-mode=io",
            "--mbuf-size=9270",
            "--record-core-cycles",
        ] {
            assert!(link.contains(part), "{part}: {link}");
        }
        let wanted = Wanted { job: Job::Loopback, max_frame: 64, ..wanted };
        let net = flags(&wanted, &sockets[..1], Memory::Base).join(" ");
        assert!(
            net.contains("--forward-mode=macswap") && net.contains("--no-huge") && !net.contains("mbuf-size")
        );
    }
}
