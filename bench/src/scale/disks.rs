//! Disks: busy ones on one core, and what idle ones on files cost under the policy `adaptive`.

use std::path::Path;
use std::time::{Duration, Instant};

use ringway_guest::GuestError;
use ringway_guest::block::lane::{Mix, Offer, Work};
use ringway_guest::block::{BlockOptions, Lane, Port, Request, Status, stamp};
use ringway_guest::presence::Presence;
use ringway_ring::memory::PageKind;
use serde::{Deserialize, Serialize};

use super::curve::Curve;
use super::load::{Driven, balance, round};
use super::{Options, ScaleError, Subject, on_core};
use crate::{idle, progress};

/// Idle disks on files.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Idle {
    /// How many.
    pub devices: usize,
    /// Processor time of the daemon with all of them, in per cent of a core.
    pub cpu_percent: f64,
    /// What that is more than with none, a device.
    pub each_percent: f64,
}

/// Disks in memory, each read as fast as it goes, on one worker.
pub fn busy(options: &Options) -> Result<Curve, ScaleError> {
    let mut setups = Vec::new();
    for count in COUNTS {
        let mut subject = Subject::start(options, &[])?;
        let words = [("size", BYTES.to_string())];
        let sockets = (0..count).map(|number| subject.add_with(&format!("disk{number}"), "sim/blk", &words));
        let sockets = sockets.collect::<Result<Vec<_>, ScaleError>>()?;
        setups.push((subject, sockets, 0));
    }
    let found = on_core(options.guest_core, || {
        let mut done = 0;
        let mut curve = Curve::measure("busy disks", &COUNTS, options.rounds, |place| {
            done += 1;
            let all = COUNTS.len() * options.rounds as usize;
            progress::show(&format!("busy disks: {}, round {done} of {all}", COUNTS[place]));
            let (subject, sockets, lost) = &mut setups[place];
            let failed = |source| ScaleError::Guest { device: "the round".to_owned(), source };
            let disks = sockets.iter().map(|socket| Disk::connect(socket, options));
            let mut disks = disks.collect::<Result<Vec<_>, _>>().map_err(failed)?;
            let made = round(subject, &mut disks, options.round)?;
            *lost += balance(&disks);
            disks.into_iter().try_for_each(|disk| disk.port.stop()).map_err(failed)?;
            Ok(made)
        })?;
        for (point, (.., lost)) in curve.points.iter_mut().zip(&setups) {
            point.lost = *lost;
        }
        Ok(curve)
    });
    progress::show("");
    found
}

/// A port with a load of reads on its one queue.
struct Disk {
    port: Port,
    lane: Lane,
}

impl Disk {
    fn connect(socket: &Path, options: &Options) -> Result<Disk, GuestError> {
        let block = BlockOptions { format: options.format, depth: DEPTH, ..BlockOptions::default() };
        let work = Work {
            mix: Mix { read: 1, ..Mix::default() },
            request_bytes: REQUEST,
            block_bytes: REQUEST,
            // What nobody has written reads as zeroes, which is checked.
            touch: stamp::Touch::Head,
            sequential: false,
            overlap: false,
            first_sector: 0,
            bytes: BYTES,
            seed: 0,
        };
        Ok(Disk { port: Port::connect(socket, block)?, lane: Lane::new(work, DEPTH.into())? })
    }
}

impl Driven for Disk {
    fn turn(&mut self, send: u32) -> Result<u32, GuestError> {
        let Some(queue) = self.port.queues_mut().first_mut() else { return Ok(0) };
        self.lane.turn(queue, Offer::AtMost(send), &mut { Presence::ASSUMED })
    }

    fn lost(&self) -> i64 {
        let counts = self.lane.counts();
        counts.submitted as i64 - counts.completed as i64 + counts.faults() as i64
    }
}

/// Disks on files that nobody uses any more, by count.
pub fn idle(options: &Options) -> Result<Vec<Idle>, ScaleError> {
    let folder = tempfile::tempdir().map_err(ScaleError::system("cannot make a directory"))?;
    let mut subject = Subject::start(options, &["--idle", "adaptive"])?;
    let block = BlockOptions { depth: 1, pages: Some(PageKind::Base), ..BlockOptions::default() };
    let mut ports = Vec::new();
    let mut found: Vec<Idle> = Vec::new();
    for devices in [0].into_iter().chain(COUNTS) {
        for number in ports.len()..devices {
            progress::show(&format!("idle disks: {number} of {devices} connected"));
            let (name, path) = (format!("disk{number}"), folder.path().join(number.to_string()));
            let file = std::fs::File::create(&path).and_then(|file| file.set_len(BYTES));
            file.map_err(ScaleError::system("cannot make a file"))?;
            let socket = subject.add_with(&name, "file", &[("path", path.display().to_string())])?;
            let mut port = Port::connect(&socket, block).map_err(ScaleError::guest(&name))?;
            // It has been in use.
            let read = port.perform(Request::read(0, REQUEST), &mut [0; REQUEST as usize]);
            let (status, _) = read.map_err(ScaleError::guest(&name))?;
            if status != Status::Ok {
                let source = GuestError::Load { what: format!("a read ended with {status:?}") };
                return Err(ScaleError::Guest { device: name, source });
            }
            ports.push(port);
        }
        progress::show(&format!("idle disks: {devices}"));
        std::thread::sleep(ASLEEP);
        let (before, begun) = (idle::processor_time(subject.daemon.pid())?, Instant::now());
        std::thread::sleep(IDLE_FOR);
        let used = idle::processor_time(subject.daemon.pid())?.saturating_sub(before);
        let cpu_percent = used.as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0;
        let alone = found.first().map_or(cpu_percent, |none| none.cpu_percent);
        let each_percent = (cpu_percent - alone).max(0.0) / devices.max(1) as f64;
        found.push(Idle { devices, cpu_percent, each_percent });
    }
    progress::show("");
    Ok(found)
}

/// Disks on one core.
pub const COUNTS: [usize; 4] = [1, 4, 16, 64];

/// Bytes of each.
const BYTES: u64 = 4 << 20;

/// Bytes of a request.
const REQUEST: u32 = 4096;

/// Requests under way, a disk.
const DEPTH: u16 = 16;

/// By then every pump that finds nothing sleeps.
const ASLEEP: Duration = Duration::from_millis(500);

const IDLE_FOR: Duration = Duration::from_secs(5);
