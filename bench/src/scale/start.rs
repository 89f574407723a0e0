//! From the start of a process to the first packet through a device of it: ringwayd's, and DPDK's `net_vhost`.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ringway_guest::Guest;
use ringway_vhost_user::frontend::Frontend;
use serde::{Deserialize, Serialize};

use super::curve::turns;
use super::{Options, ScaleError, driven, on_core};
use crate::daemon::Daemon;
use crate::mortal;
use crate::progress;
use crate::stats::Spread;

/// What was found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start {
    /// ringwayd with one device in its configuration file.
    pub ours: Vec<Launch>,
    /// The peer, if there is one.
    pub peer: Option<Peer>,
}

/// One start, in milliseconds since the process was started.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Launch {
    /// The device's socket took a connection.
    pub socket_ms: f64,
    /// The front-end's rings were enabled.
    pub rings_ms: f64,
    /// A frame was back.
    pub packet_ms: f64,
    /// Frames that were sent until then: testpmd loses those that it receives before it may send.
    pub frames: u64,
}

/// The peer's starts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Peer {
    /// Its program.
    pub name: String,
    /// What it says of its version.
    pub version: String,
    /// The words that it was started with.
    pub words: Vec<String>,
    /// Its starts.
    pub launches: Vec<Launch>,
}

/// The times to the first packet.
pub fn packet_ms(launches: &[Launch]) -> Option<Spread> {
    Spread::of(&launches.iter().map(|launch| launch.packet_ms).collect::<Vec<_>>())
}

/// Starts both in turns, or ringwayd alone where testpmd is missing.
pub fn measure(options: &Options) -> Result<Start, ScaleError> {
    let folder = tempfile::tempdir().map_err(ScaleError::system("cannot make a directory"))?;
    let config = folder.path().join("ringwayd.toml");
    std::fs::write(&config, CONFIG).map_err(ScaleError::system("cannot write a configuration file"))?;
    let testpmd = testpmd_program();
    let mut ours = Vec::new();
    let mut peer: Option<Peer> = None;
    let sides = if testpmd.is_some() { 2 } else { 1 };
    for side in turns(sides, STARTS) {
        progress::show(&format!("start {} of {}", ours.len() + 1, STARTS));
        if side == 0 {
            let core = options.worker_core.to_string();
            let begun = Instant::now();
            let daemon = Daemon::spawn(&["--cores", &core, "--config", &config.display().to_string()])?;
            ours.push(first_packet("ringwayd", options, begun, &daemon.socket("first"))?);
        } else if let Some(program) = &testpmd {
            let socket = folder.path().join("peer.sock");
            let _ = std::fs::remove_file(&socket);
            let begun = Instant::now();
            let running = Testpmd::spawn(program, options, &socket)?;
            let launch = first_packet("testpmd", options, begun, &socket)?;
            let peer = peer.get_or_insert_with(|| Peer {
                name: program.display().to_string(),
                version: running.version(),
                words: running.words.clone(),
                launches: Vec::new(),
            });
            peer.launches.push(launch);
        }
    }
    progress::show("");
    Ok(Start { ours, peer })
}

/// Waits for the socket of `who`, connects, sends until a frame is back.
fn first_packet(who: &str, options: &Options, begun: Instant, socket: &Path) -> Result<Launch, ScaleError> {
    on_core(options.guest_core, || {
        let ms = || begun.elapsed().as_secs_f64() * 1e3;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(_) if begun.elapsed() < PATIENCE => std::thread::sleep(LOOK),
                Err(source) => {
                    let what = format!("{who} does not serve {} after {PATIENCE:?}", socket.display());
                    return Err(ScaleError::System { what, source });
                }
            }
        };
        let socket_ms = ms();
        stream.set_nonblocking(true).map_err(ScaleError::system("cannot set up the socket"))?;
        let mut guest =
            Guest::start(Frontend::from_stream(stream), driven(options)).map_err(ScaleError::guest(who))?;
        let rings_ms = ms();
        let frames = frame_back(&mut guest, who)?;
        Ok(Launch { socket_ms, rings_ms, packet_ms: ms(), frames })
    })
}

/// Sends a frame, and another one whenever none is back for some time; how many it took.
fn frame_back(guest: &mut Guest, who: &str) -> Result<u64, ScaleError> {
    let (begun, mut sent) = (Instant::now(), 0);
    loop {
        let is_due = begun.elapsed() >= AGAIN * sent as u32;
        sent += u64::from(is_due);
        if guest.turn(u32::from(is_due)).map_err(ScaleError::guest(who))? > 0 {
            return Ok(sent);
        }
        if begun.elapsed() > PATIENCE {
            return Err(ScaleError::NoFrame { device: who.to_owned(), within: PATIENCE });
        }
    }
}

/// A testpmd with one `net_vhost` port that exchanges MAC addresses. Killed when dropped.
#[derive(Debug)]
struct Testpmd {
    child: Child,
    words: Vec<String>,
    versions: mpsc::Receiver<String>,
}

impl Testpmd {
    fn spawn(program: &Path, options: &Options, socket: &Path) -> Result<Testpmd, ScaleError> {
        let (main, worker) = (options.guest_core, options.worker_core);
        // `-v` has it say its version; no files of its own are left behind by `--in-memory`.
        let words = format!(
            "-l {main},{worker} --main-lcore {main} -v --no-pci --in-memory --single-file-segments -m {MEMORY_MIB} \
             --no-telemetry --vdev=net_vhost0,iface={},queues=1 -- -i --auto-start --forward-mode=macswap \
             --nb-cores=1 --no-lsc-interrupt --disable-link-check --total-num-mbufs=16384",
            socket.display()
        );
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        let mut child = mortal::command(program)
            .args(&words)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(ScaleError::system(&format!("cannot start {}", program.display())))?;
        let (found, versions) = mpsc::channel();
        if let Some(log) = child.stderr.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(log).lines().map_while(Result::ok) {
                    if let Some(version) = version_in(&line) {
                        let _ = found.send(version.to_owned());
                    }
                }
            });
        }
        Ok(Testpmd { child, words, versions })
    }

    fn version(&self) -> String {
        self.versions.recv_timeout(Duration::from_secs(1)).unwrap_or_else(|_| "unknown".to_owned())
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `EAL: RTE Version: 'DPDK 22.11.7'`.
fn version_in(line: &str) -> Option<&str> {
    Some(line.split_once("RTE Version:")?.1.trim().trim_matches('\''))
}

/// The one that is named, else the one on PATH.
fn testpmd_program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("RINGWAY_DPDK_TESTPMD") {
        return Some(PathBuf::from(named));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("dpdk-testpmd")).find(|program| program.is_file())
}

const CONFIG: &str = "[[device]]\nname = \"first\"\nmgmtdev = \"sim/net\"\n";

/// Starts of each.
const STARTS: u32 = 10;

/// Between two frames, if none is back.
const AGAIN: Duration = Duration::from_millis(10);

/// Between two looks for the socket.
const LOOK: Duration = Duration::from_micros(200);

const PATIENCE: Duration = Duration::from_secs(20);

const MEMORY_MIB: u32 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_what_the_line_quotes() {
        assert_eq!(version_in("EAL: RTE Version: 'DPDK 22.11.11'"), Some("DPDK 22.11.11"));
        assert_eq!(version_in("EAL: Detected CPU lcores: 2"), None);
    }
}
