//! DPDK's testpmd as a back-end.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Identity, Memory};
use crate::error::BenchError;
use crate::mortal;
use crate::options::Job;

/// DPDK's testpmd with `net_vhost` ports: one that swaps addresses, or two that are joined. Killed when dropped.
#[derive(Debug)]
pub struct Testpmd {
    pub(super) child: Child,
    pub(super) sockets: Vec<PathBuf>,
    pub(super) identity: Identity,
    _folder: tempfile::TempDir,
}

impl Testpmd {
    /// Starts it with its forwarding core on `core` and waits until it forwards.
    pub fn start(
        job: Job,
        core: usize,
        main_core: usize,
        queue_size: u16,
        max_frame: u16,
        pairs: u16,
    ) -> Result<Testpmd, BenchError> {
        if job == Job::Bridge {
            return Err(BenchError::Usage("testpmd is no learning switch: --peer ovs".to_owned()));
        }
        let program = find()?;
        let folder = tempfile::tempdir().map_err(BenchError::system("cannot make a directory"))?;
        let sockets: Vec<PathBuf> =
            (0..job.ports()).map(|port| folder.path().join(format!("{port}.sock"))).collect();
        let flags =
            flags(job, &sockets, core, main_core, queue_size, max_frame, pairs, Memory::find(MEMORY_MIB));
        // Into a pipe it would keep its lines until it has a page of them; waiting for one of them then takes luck.
        let mut child = mortal::command("stdbuf")
            .arg("--output=L")
            .arg(&program)
            .args(&flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(BenchError::system(format!("cannot start stdbuf (coreutils) {}", program.display())))?;
        let said = Arc::new(Mutex::new(Vec::new()));
        for stream in [child.stdout.take().map(Stream::Out), child.stderr.take().map(Stream::Error)]
            .into_iter()
            .flatten()
        {
            stream.collect_into(Arc::clone(&said));
        }
        let lines = || said.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let begun = Instant::now();
        // It says so once its cores are about to forward.
        while !lines().iter().any(|line: &String| line.contains("packets/burst"))
            || !sockets.iter().all(|s| s.exists())
        {
            let is_over = matches!(child.try_wait(), Ok(Some(_)) | Err(_));
            if is_over || begun.elapsed() > PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                let what = if is_over { "ended at once" } else { "did not begin to forward" };
                let end: Vec<String> = lines().into_iter().rev().take(12).collect();
                let end = end.into_iter().rev().collect::<Vec<_>>().join("\n");
                return Err(BenchError::Peer {
                    peer: program.display().to_string(),
                    what: format!("{what}:\n{end}"),
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let identity = Identity { name: "dpdk".to_owned(), version: version(&lines()), flags };
        Ok(Testpmd { child, sockets, identity, _folder: folder })
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where its words come from.
enum Stream {
    Out(std::process::ChildStdout),
    Error(std::process::ChildStderr),
}

impl Stream {
    /// Reads on, on a thread of its own, so that the program never waits for a reader.
    fn collect_into(self, lines: Arc<Mutex<Vec<String>>>) {
        let reader: Box<dyn std::io::Read + Send> = match self {
            Stream::Out(stream) => Box::new(stream),
            Stream::Error(stream) => Box::new(stream),
        };
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.len() < MOST_LINES {
                    lines.push(line);
                }
            }
        });
    }
}

#[allow(clippy::too_many_arguments, reason = "a command line is made of many things")]
fn flags(
    job: Job,
    sockets: &[PathBuf],
    core: usize,
    main_core: usize,
    queue_size: u16,
    max_frame: u16,
    pairs: u16,
    memory: Memory,
) -> Vec<String> {
    let mut line = vec!["-v".to_owned(), "-l".to_owned(), format!("{main_core},{core}")];
    line.extend(["--main-lcore".to_owned(), main_core.to_string(), "--no-pci".to_owned()]);
    line.extend(["--no-telemetry".to_owned(), format!("--file-prefix=ringway-bench-{}", std::process::id())]);
    line.extend(["-m".to_owned(), MEMORY_MIB.to_string()]);
    match memory {
        Memory::Huge => line.extend(["--in-memory", "--single-file-segments"].map(str::to_owned)),
        Memory::Base => line.push("--no-huge".to_owned()),
    }
    for (port, socket) in sockets.iter().enumerate() {
        line.push(format!("--vdev=net_vhost{port},iface={},queues={pairs}", socket.display()));
    }
    // Without a period it waits for a key, and takes being stopped for one.
    line.extend(["--", "--nb-cores=1", "--auto-start", "--stats-period=3600"].map(str::to_owned));
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

/// The program: named by the environment, or on the path.
fn find() -> Result<PathBuf, BenchError> {
    let missing =
        |program: String| BenchError::MissingPeer { program, package: "dpdk-dev", variable: VARIABLE };
    if let Some(named) = std::env::var_os(VARIABLE) {
        let path = PathBuf::from(named);
        return if path.is_file() { Ok(path) } else { Err(missing(path.display().to_string())) };
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .map(|folder| folder.join(PROGRAM))
        .find(|path| path.is_file())
        .ok_or_else(|| missing(PROGRAM.to_owned()))
}

/// What it told of its version: `EAL: RTE Version: 'DPDK 22.11.11'`.
fn version(lines: &[String]) -> String {
    let told = lines.iter().find_map(|line| line.split_once("RTE Version:"));
    told.map_or_else(|| "unknown".to_owned(), |(_, version)| version.trim_matches([' ', '\'']).to_owned())
}

/// Names the program, if it is not on the path.
const VARIABLE: &str = "RINGWAY_DPDK_TESTPMD";
const PROGRAM: &str = "dpdk-testpmd";
const PATIENCE: Duration = Duration::from_secs(30);
const MEMORY_MIB: u64 = 256;
const MBUFS: u32 = 16_384;
const MOST_LINES: usize = 10_000;

/// Longest frame that a buffer of the standard size takes.
const STANDARD_FRAME: u16 = 1518;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_what_the_peer_tells() {
        let lines = ["EAL: Detected CPU lcores: 2", "EAL: RTE Version: 'DPDK 22.11.11'"].map(str::to_owned);
        assert_eq!(version(&lines), "DPDK 22.11.11");
        assert_eq!(version(&lines[..1]), "unknown");
    }

    #[test]
    fn each_job_has_its_ports_and_mode() {
        let sockets = ["/x/0", "/x/1"].map(PathBuf::from);
        let link = flags(Job::Link, &sockets, 3, 2, 256, 9014, 4, Memory::Huge).join(" ");
        for part in [
            "-l 2,3 --main-lcore 2",
            "net_vhost1,iface=/x/1,queues=4",
            "--forward-mode=io",
            "--mbuf-size=9270",
        ] {
            assert!(link.contains(part), "{part}: {link}");
        }
        let net = flags(Job::Loopback, &sockets[..1], 1, 0, 256, 64, 1, Memory::Base).join(" ");
        assert!(
            net.contains("--forward-mode=macswap") && net.contains("--no-huge") && !net.contains("mbuf-size")
        );
    }
}
