//! DPDK's own driver as the load: a testpmd whose `net_virtio_user` ports connect to a back-end's sockets and pass frames on as
//! they come. What it forwards is counted by itself; no frame is looked at.
//!
//! So many frames go round as half a ring holds, so that what comes always finds room. They stay under way between the rounds,
//! in which both sides are stopped where they are.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use ringway_guest::ledger::Counts;
use serde::{Deserialize, Serialize};

use crate::backend::console::{self, Console, Forwarded};
use crate::backend::{Identity, Memory, send};
use crate::error::BenchError;
use crate::generator::Round;
use crate::options::Ring;
use crate::stats::Latency;
use rustix::process::Signal;

/// Who drives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// The suite's own guest.
    Ours,
    /// DPDK's `net_virtio_user`.
    Testpmd,
    /// A Linux guest of the lab's, for shape: see [`crate::linux`].
    Linux,
}

/// Which of the driver's paths: what it negotiates decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverPath {
    /// MRG_RXBUF.
    Mergeable,
    /// Neither MRG_RXBUF nor IN_ORDER.
    Plain,
    /// MRG_RXBUF and IN_ORDER.
    InOrderMergeable,
    /// IN_ORDER.
    InOrder,
    /// Vector instructions, for which it needs plain split rings, or packed ones in order. Where the processor lacks them it
    /// takes another path, which the result names.
    Vectorised,
}

impl DriverPath {
    /// `mrg_rxbuf`, `in_order`, `vectorized`.
    fn arguments(self, ring: Ring) -> [bool; 3] {
        match self {
            DriverPath::Mergeable => [true, false, false],
            DriverPath::Plain => [false, false, false],
            DriverPath::InOrderMergeable => [true, true, false],
            DriverPath::InOrder => [false, true, false],
            DriverPath::Vectorised => [false, ring == Ring::Packed, true],
        }
    }
}

impl fmt::Display for DriverPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DriverPath::Mergeable => "mergeable",
            DriverPath::Plain => "plain",
            DriverPath::InOrderMergeable => "in-order-mergeable",
            DriverPath::InOrder => "in-order",
            DriverPath::Vectorised => "vectorised",
        })
    }
}

/// What it shall be like.
#[derive(Debug, Clone, PartialEq)]
pub struct DriverOptions {
    /// The program; the one that is found without it.
    pub program: Option<PathBuf>,
    /// Ring layout.
    pub ring: Ring,
    /// Its path.
    pub path: DriverPath,
    /// Entries in each ring.
    pub queue_size: u16,
    /// Bytes of each frame.
    pub frame: u16,
    /// The core that forwards.
    pub core: usize,
}

/// A running one, connected.
#[derive(Debug)]
pub struct VirtioUser {
    console: Console,
    frame: u16,
    /// The paths that it says it took.
    paths: Vec<String>,
    started: Option<String>,
}

impl VirtioUser {
    /// Starts it on a back-end's sockets. It forwards from the first round on.
    pub fn open(sockets: &[PathBuf], options: &DriverOptions) -> Result<VirtioUser, BenchError> {
        let flags = flags(sockets, options, Memory::find(console::MEMORY_MIB));
        let mut console = Console::start(options.program.as_deref(), flags, |line| line.starts_with("Done"))?;
        console.identity.name = "dpdk net_virtio_user".to_owned();
        let paths = console.lines().iter().filter_map(|line| path_told(line)).collect();
        let bursts = (options.queue_size / 2 / BURST).max(1);
        let started = Some(format!("start tx_first {bursts}"));
        Ok(VirtioUser { console, frame: options.frame, paths, started })
    }

    /// What it is.
    pub fn identity(&self) -> &Identity {
        &self.console.identity
    }

    /// The paths that it says it took, of each port for each direction.
    pub fn paths(&self) -> &[String] {
        &self.paths
    }

    /// One round: a warm-up that does not count, and `duration` that does. The back-end must be running.
    pub fn round(&mut self, duration: Duration) -> Result<Round, BenchError> {
        self.signal(Signal::CONT)?;
        let round = self.forwarding(duration);
        self.signal(Signal::STOP)?;
        round
    }

    fn forwarding(&mut self, duration: Duration) -> Result<Round, BenchError> {
        if let Some(start) = self.started.take() {
            self.console.ask(&start)?;
        }
        std::thread::sleep(WARM_UP);
        let (before, begun) = self.counted()?;
        std::thread::sleep(duration);
        let (after, ended) = self.counted()?;
        let seconds = ended.duration_since(begun).as_secs_f64();
        let since = |of: fn(&Forwarded) -> u64| of(&after).saturating_sub(of(&before));
        let (sent, received, lost) = (since(|one| one.tx), since(|one| one.rx), since(|one| one.dropped));
        if received == 0 {
            return Err(BenchError::Peer {
                peer: self.console.identity.name.clone(),
                what: "nothing came back to it".to_owned(),
            });
        }
        let bytes = received * u64::from(self.frame);
        Ok(Round {
            seconds,
            mpps: received as f64 / seconds / 1e6,
            gbps: bytes as f64 * 8.0 / seconds / 1e9,
            counts: Counts { sent, received, bytes, lost, ..Counts::default() },
            latency: Latency::default(),
            set_aside: 0,
            absences: 0,
            unsent: 0,
            kicks: 0,
            gap_us: 0.0,
        })
    }

    /// What it forwarded, and when it was asked.
    fn counted(&mut self) -> Result<(Forwarded, Instant), BenchError> {
        let asked = Instant::now();
        let told = self.console.forwarded()?;
        Ok((told, asked + asked.elapsed() / 2))
    }

    fn signal(&self, signal: Signal) -> Result<(), BenchError> {
        send(self.console.pid(), &self.console.identity.name, signal)
    }
}

/// `virtio: using packed ring standard Tx path on port 0`.
fn path_told(line: &str) -> Option<String> {
    Some(line.split_once("virtio: using ")?.1.trim().to_owned())
}

fn flags(sockets: &[PathBuf], options: &DriverOptions, memory: Memory) -> Vec<String> {
    let DriverOptions { ring, path, queue_size, frame, core, .. } = options;
    let mut line = console::environment(*core, *core, "driver", memory);
    line.push("--log-level=pmd.net.virtio.init:info".to_owned());
    let [mergeable, in_order, vectorised] = path.arguments(*ring).map(u8::from);
    let packed = u8::from(*ring == Ring::Packed);
    for (port, socket) in sockets.iter().enumerate() {
        let socket = socket.display();
        line.push(format!(
            "--vdev=net_virtio_user{port},path={socket},queues=1,queue_size={queue_size},packed_vq={packed},\
             mrg_rxbuf={mergeable},in_order={in_order},vectorized={vectorised}"
        ));
    }
    if vectorised == 1 {
        line.push("--force-max-simd-bitwidth=512".to_owned());
    }
    line.extend(["--", "--nb-cores=1", "-i", "--forward-mode=io", "--no-mlockall"].map(str::to_owned));
    line.extend(["--rxd", "--txd"].map(|word| format!("{word}={queue_size}")));
    line.extend([format!("--txpkts={frame}"), format!("--burst={BURST}")]);
    line.push(format!("--total-num-mbufs={MBUFS}"));
    line
}

const BURST: u16 = 32;
const MBUFS: u32 = 16_384;
const WARM_UP: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    fn options(ring: Ring, path: DriverPath) -> DriverOptions {
        DriverOptions { program: None, ring, path, queue_size: 1024, frame: 64, core: 2 }
    }

    #[test]
    fn each_path_is_asked_for_by_what_it_negotiates() {
        let line = |ring, path| {
            flags(&[PathBuf::from("/x/0"), PathBuf::from("/x/1")], &options(ring, path), Memory::Huge)
                .join(" ")
        };
        for (ring, path, part) in [
            (Ring::Split, DriverPath::Mergeable, "packed_vq=0,mrg_rxbuf=1,in_order=0,vectorized=0"),
            (Ring::Packed, DriverPath::InOrderMergeable, "packed_vq=1,mrg_rxbuf=1,in_order=1,vectorized=0"),
            (Ring::Split, DriverPath::Vectorised, "packed_vq=0,mrg_rxbuf=0,in_order=0,vectorized=1"),
            (Ring::Packed, DriverPath::Vectorised, "packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1"),
        ] {
            let line = line(ring, path);
            assert!(line.contains(part), "{part}: {line}");
            assert!(line.contains("net_virtio_user1,path=/x/1,queues=1,queue_size=1024"), "{line}");
            assert!(line.contains("--lcores 0@2,1@2"), "{line}");
        }
    }

    #[test]
    fn the_path_that_it_took_is_what_it_says() {
        let line = "set_rxtx_funcs(): virtio: using inorder Rx path on port 0";
        assert_eq!(path_told(line).as_deref(), Some("inorder Rx path on port 0"));
        assert_eq!(path_told("Port 0: FE:FA:96:81:3F:53"), None);
    }
}
