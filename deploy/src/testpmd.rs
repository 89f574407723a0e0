//! DPDK's testpmd: as a vhost-user front-end (`net_virtio_user`), independent of QEMU and Linux, and as a back-end
//! (`net_vhost`) against which this lab itself is proved.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::lab::{Lab, wait_for};
use crate::pace::WATCHDOG;
use crate::process::{self, Process};
use crate::{ensure, fail};

/// What testpmd is to be.
#[derive(Debug, Clone)]
pub enum Role {
    /// A front-end with virtio-user's rings on each port; queues and ring sizes are equal. Two ports forward to each other.
    FrontEnds(Vec<FrontEnd>),
    /// A front-end, joined with a TAP interface that it makes in a namespace of the host.
    FrontEndAndTap {
        /// The front-end.
        front: FrontEnd,
        /// The interface's name.
        interface: String,
        /// The namespace.
        netns: String,
    },
    /// A back-end, which sends back what it gets by its forward mode, or from each of two ports to the other.
    BackEnds {
        /// The sockets that it owns, a port for each.
        sockets: Vec<PathBuf>,
        /// Queue pairs of each.
        queues: u32,
    },
}

impl Role {
    /// A front-end of one port.
    pub fn front_end(front: FrontEnd) -> Role {
        Role::FrontEnds(vec![front])
    }

    /// A back-end of one port.
    pub fn back_end(socket: impl Into<PathBuf>, queues: u32) -> Role {
        Role::BackEnds { sockets: vec![socket.into()], queues }
    }
}

/// A virtio-user port.
#[derive(Debug, Clone)]
pub struct FrontEnd {
    /// The device's socket.
    pub socket: PathBuf,
    /// Own the socket and wait for the device to connect.
    pub server: bool,
    /// Packed rings, else split ones.
    pub packed: bool,
    /// Offer to use buffers in order.
    pub in_order: bool,
    /// Offer mergeable receive buffers.
    pub mergeable: bool,
    /// Ask for the vectorised paths.
    pub vectorized: bool,
    /// Queue pairs.
    pub queues: u32,
    /// Descriptors in each ring.
    pub queue_size: u32,
    /// The port's Ethernet address; `None`: the device's, or one by chance.
    pub mac: Option<String>,
    /// To which address the `mac` mode and the first frames send from this port; `None`: testpmd's own choice.
    pub peer: Option<String>,
}

impl FrontEnd {
    /// One pair of split rings of 1,024 descriptors, mergeable, not in order.
    pub fn new(socket: impl Into<PathBuf>) -> FrontEnd {
        FrontEnd {
            socket: socket.into(),
            server: false,
            packed: false,
            in_order: false,
            mergeable: true,
            vectorized: false,
            queues: 1,
            queue_size: 1024,
            mac: None,
            peer: None,
        }
    }
}

impl FrontEnd {
    /// The words that make a port of it.
    fn vdev(&self, port: usize) -> String {
        let mut vdev = format!(
            "net_virtio_user{port},path={},queues={},queue_size={},packed_vq={},mrg_rxbuf={},in_order={},vectorized={}",
            self.socket.display(),
            self.queues,
            self.queue_size,
            u8::from(self.packed),
            u8::from(self.mergeable),
            u8::from(self.in_order),
            u8::from(self.vectorized),
        );
        if self.server {
            vdev += ",server=1";
        }
        if let Some(mac) = &self.mac {
            vdev += &format!(",mac={mac}");
        }
        vdev
    }
}

/// A running testpmd, at its prompt.
#[derive(Debug)]
pub struct Testpmd {
    process: Process,
    input: ChildStdin,
    output: Receiver<Vec<u8>>,
    log: PathBuf,
}

/// A port's counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames that the driver took from its receive rings.
    pub rx_packets: u64,
    /// Frames lost for want of buffers of its own.
    pub rx_nombuf: u64,
    /// Frames that the driver refused.
    pub rx_errors: u64,
    /// Frames that the rings accepted.
    pub tx_packets: u64,
    /// Frames that could not be sent.
    pub tx_errors: u64,
}

impl Testpmd {
    /// Starts testpmd with a forward mode and waits for its prompt; `name` tells it from another one's files.
    pub fn start(lab: &Lab, name: &str, role: &Role, forward: &str) -> Result<Testpmd> {
        require_testpmd()?;
        // testpmd's own output goes through the C library's buffer: have that written a line at a time.
        let mut arguments: Vec<String> = Vec::new();
        if let Role::FrontEndAndTap { netns, .. } = role {
            arguments.extend(["netns", "exec", netns, STDBUF].map(String::from));
        }
        arguments.extend(["-oL", TESTPMD].map(String::from));
        arguments.extend(arguments_for(name, role, forward, huge_pages_free()));
        let program = if matches!(role, Role::FrontEndAndTap { .. }) { IP } else { STDBUF };
        let log = lab.path(&format!("{name}-testpmd.log"));
        let (process, input, output) = Process::start_talking(program, &arguments, &log)?;
        let mut testpmd = Testpmd { process, input, output, log };
        testpmd.until_prompt("its start", WATCHDOG)?;
        lab.say(format_args!("{name}: testpmd is up"));
        Ok(testpmd)
    }

    /// Gives it one command and returns what it wrote before its next prompt.
    pub fn command(&mut self, line: &str) -> Result<String> {
        writeln!(self.input, "{line}").context(|| format!("testpmd, {line}"))?;
        self.until_prompt(line, WATCHDOG)
    }

    /// The paths that virtio-user chose, in its own words: what was asked for is only a wish to it.
    pub fn paths(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(&self.log).context(|| self.log.display().to_string())?;
        let paths = text.lines().filter_map(|line| Some(line.split_once("virtio: using ")?.1.to_string()));
        Ok(paths.collect())
    }

    /// The first port's counters.
    pub fn stats(&mut self) -> Result<PortStats> {
        self.port_stats(0)
    }

    /// A port's counters.
    pub fn port_stats(&mut self, port: usize) -> Result<PortStats> {
        let text = self.command(&format!("show port stats {port}"))?;
        let value = |name: &str| {
            field(&text, name).ok_or_else(|| Error::new(format!("testpmd showed no {name} in:\n{text}")))
        };
        Ok(PortStats {
            rx_packets: value("RX-packets:")?,
            rx_nombuf: value("RX-nombuf:")?,
            rx_errors: value("RX-errors:")?,
            tx_packets: value("TX-packets:")?,
            tx_errors: value("TX-errors:")?,
        })
    }

    /// Has every port send that many bursts of 32 frames, forwards for that long what comes, takes without sending it what is
    /// still under way, and gives each port's counters once they stand still.
    pub fn circulate(&mut self, ports: usize, bursts: u32, duration: Duration) -> Result<Vec<PortStats>> {
        self.command(&format!("start tx_first {bursts}"))?;
        std::thread::sleep(duration);
        self.command("stop")?;
        self.command("set fwd rxonly")?;
        self.command("start")?;
        let mut last = Vec::new();
        wait_for("counters that stand still", WATCHDOG, || {
            let stats = (0..ports).map(|port| self.port_stats(port)).collect::<Result<Vec<_>>>()?;
            if stats == last {
                return Ok(Some(stats));
            }
            last = stats;
            std::thread::sleep(Duration::from_millis(200));
            Ok(None)
        })
    }

    /// The first port's extended counters by name.
    pub fn extended_stats(&mut self) -> Result<BTreeMap<String, u64>> {
        let text = self.command("show port xstats 0")?;
        let mut stats = BTreeMap::new();
        for line in text.lines() {
            if let Some((name, value)) = line.split_once(": ")
                && let Ok(value) = value.trim().parse()
            {
                stats.insert(name.trim().to_string(), value);
            }
        }
        ensure!(!stats.is_empty(), "testpmd showed no extended counters in:\n{text}");
        Ok(stats)
    }

    /// Ends it as its user would, and says how it ended.
    pub fn quit(mut self) -> Result<()> {
        writeln!(self.input, "quit").context(|| "testpmd, quit".into())?;
        let status = self.process.wait(WATCHDOG)?;
        ensure!(status.success(), "testpmd ended with {status}");
        Ok(())
    }

    /// Ends it with SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()
    }

    fn until_prompt(&mut self, what: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut text = Vec::new();
        loop {
            match self.output.recv_timeout(Duration::from_millis(100)) {
                Ok(bytes) => text.extend_from_slice(&bytes),
                Err(RecvTimeoutError::Timeout) => self.process.check()?,
                Err(RecvTimeoutError::Disconnected) => {
                    self.process.wait(Duration::from_secs(5))?;
                    self.process.check()?;
                }
            }
            if text.ends_with(PROMPT.as_bytes()) {
                return Ok(String::from_utf8_lossy(&text[..text.len() - PROMPT.len()]).into_owned());
            }
            if Instant::now() > deadline {
                fail!("testpmd, {what}: no prompt within {:.0} s", limit.as_secs_f64());
            }
        }
    }
}

/// DPDK's version as testpmd gives it; an error names what is missing.
pub fn require_testpmd() -> Result<()> {
    ensure!(Path::new(TESTPMD).exists(), "{TESTPMD} is not installed: run deploy/test, which installs it");
    Ok(())
}

/// DPDK's version, from its package; `None` when it is not known.
pub fn version() -> Option<String> {
    let words = ["--show", "--showformat=${Version}", "dpdk-dev"].map(String::from);
    let finished = process::run("/usr/bin/dpkg-query", &words, Duration::from_secs(10)).ok()?;
    (finished.code == 0).then_some(finished.stdout)
}

fn arguments_for(name: &str, role: &Role, forward: &str, huge_pages: u64) -> Vec<String> {
    let mut line: Vec<String> = Vec::new();
    // A worker on core 0 for a front-end, on core 1 for a back-end: each the other's sleeping main thread.
    let (main, vdevs, queues, descriptors) = match role {
        Role::FrontEnds(fronts) => {
            let vdevs = fronts.iter().enumerate().map(|(port, front)| front.vdev(port)).collect::<Vec<_>>();
            let first = fronts.first();
            (1, vdevs, first.map_or(1, |front| front.queues), first.map_or(1024, |front| front.queue_size))
        }
        Role::FrontEndAndTap { front, interface, .. } => {
            let vdevs = vec![front.vdev(0), format!("net_tap0,iface={interface}")];
            (1, vdevs, front.queues, front.queue_size)
        }
        Role::BackEnds { sockets, queues } => {
            let vdevs = sockets
                .iter()
                .enumerate()
                .map(|(port, socket)| format!("net_vhost{port},iface={},queues={queues}", socket.display()));
            (0, vdevs.collect(), *queues, 1024)
        }
    };
    line.extend(["-l", "0,1", "--main-lcore"].map(String::from));
    line.push(main.to_string());
    line.push(format!("--file-prefix=ringway-{name}-{}", std::process::id()));
    line.extend(["--no-pci", "--log-level=pmd.net.virtio.init:debug", "-m"].map(String::from));
    line.push(MEMORY_MIB.to_string());
    if huge_pages * 2 >= MEMORY_MIB {
        // Huge pages from memfds: needs no mounted hugetlbfs.
        line.extend(["--in-memory", "--single-file-segments"].map(String::from));
    } else {
        line.push("--no-huge".into());
    }
    let fronts = match role {
        Role::FrontEnds(fronts) => fronts.as_slice(),
        Role::FrontEndAndTap { front, .. } => std::slice::from_ref(front),
        Role::BackEnds { .. } => &[],
    };
    if fronts.iter().any(|front| front.vectorized) {
        line.push("--force-max-simd-bitwidth=512".into());
    }
    line.extend(vdevs.iter().map(|vdev| format!("--vdev={vdev}")));
    line.extend(["--", "-i", "--nb-cores=1", "--no-lsc-interrupt", "--disable-link-check"].map(String::from));
    line.push(format!("--forward-mode={forward}"));
    line.push(format!("--rxq={queues}"));
    line.push(format!("--txq={queues}"));
    line.push(format!("--rxd={descriptors}"));
    line.push(format!("--txd={descriptors}"));
    line.push(format!("--total-num-mbufs={MBUFS}"));
    for (port, front) in fronts.iter().enumerate() {
        line.extend(front.peer.iter().map(|peer| format!("--eth-peer={port},{peer}")));
    }
    line
}

/// Free 2 MiB pages; none where the kernel shows no such thing.
fn huge_pages_free() -> u64 {
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn field(text: &str, name: &str) -> Option<u64> {
    text[text.find(name)? + name.len()..].split_whitespace().next()?.parse().ok()
}

/// The program; an absolute path, since releases share its name.
pub const TESTPMD: &str = "/usr/bin/dpdk-testpmd";
const STDBUF: &str = "/usr/bin/stdbuf";
const IP: &str = "/sbin/ip";
const PROMPT: &str = "testpmd> ";
const MEMORY_MIB: u64 = 256;
const MBUFS: u32 = 24_000;

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "
  ######################## NIC statistics for port 0  ########################
  RX-packets: 1234       RX-missed: 0          RX-bytes:  75104
  RX-errors: 5
  RX-nombuf:  6
  TX-packets: 78         TX-errors: 9          TX-bytes:  81856
";

    #[test]
    fn counters_are_found_by_name() {
        assert_eq!(field(SHOWN, "RX-packets:"), Some(1234));
        assert_eq!(field(SHOWN, "RX-nombuf:"), Some(6));
        assert_eq!(field(SHOWN, "TX-errors:"), Some(9));
        assert_eq!(field(SHOWN, "Nothing:"), None);
    }

    #[test]
    fn two_ports_have_addresses_and_peers_of_their_own() {
        let front = |socket: &str, mac: &str, peer: &str| FrontEnd {
            mac: Some(mac.into()),
            peer: Some(peer.into()),
            ..FrontEnd::new(socket)
        };
        let fronts = vec![front("/x/0", "M0", "M1"), front("/x/1", "M1", "M0")];
        let line = arguments_for("pair", &Role::FrontEnds(fronts), "mac", 0).join(" ");
        for part in
            ["net_virtio_user0,path=/x/0,", "net_virtio_user1,path=/x/1,", ",mac=M1", "--eth-peer=0,M1"]
        {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    #[test]
    fn the_command_line_says_what_was_asked_for() {
        let front = FrontEnd { packed: true, vectorized: true, queues: 4, ..FrontEnd::new("/x/v.sock") };
        let line = arguments_for("fe", &Role::front_end(front), "io", 0).join(" ");
        for part in [
            "path=/x/v.sock",
            "packed_vq=1",
            "vectorized=1",
            "queues=4",
            "--rxq=4",
            "--no-huge",
            "simd-bitwidth",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        assert!(!line.contains("server=1"));
        let line = arguments_for("be", &Role::back_end("/x/b.sock", 1), "io", 512).join(" ");
        assert!(
            line.contains("--single-file-segments") && line.contains("net_vhost0,iface=/x/b.sock"),
            "{line}"
        );
    }
}
