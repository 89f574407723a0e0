//! Daemons that die under requests to disks, and those that come after them: nothing is lost, nothing is done twice to the guest's
//! eye, whatever the moment and whoever keeps the record.

use std::path::Path;
use std::time::{Duration, Instant};

use ringway_guest::block::lane::{Mix, Offer, Work};
use ringway_guest::block::stamp::Touch;
use ringway_guest::block::{BlockOptions, Lane, Port};
use ringway_guest::presence::Presence;
use ringway_ring::queue::Format;
use rustix::process::Signal;

use crate::support::{Daemon, SOON};

/// A guest with a disk, and what each queue's part of it must hold.
struct Vm {
    name: &'static str,
    port: Port,
    lanes: Vec<Lane>,
    /// When something was last completed.
    moved: Instant,
}

const QUEUES: u16 = 2;
/// Of each queue.
const BYTES: u64 = 4 << 20;
const SIZE: u64 = BYTES * QUEUES as u64;

impl Vm {
    /// A device on memory in a file on tmpfs, which outlives the daemon.
    fn boot(daemon: &Daemon, name: &'static str, files: &Path, options: BlockOptions, overlap: bool) -> Vm {
        let words = format!("sim/blk size {SIZE} path {}", files.join(name).display());
        Vm::with(daemon, name, &words, options, overlap)
    }

    /// A device on a file.
    fn on_file(
        daemon: &Daemon,
        name: &'static str,
        path: &Path,
        cache: &str,
        options: BlockOptions,
        overlap: bool,
    ) -> Vm {
        std::fs::File::create(path).unwrap().set_len(SIZE).unwrap();
        let words = format!("file path {} cache {cache}", path.display());
        Vm::with(daemon, name, &words, options, overlap)
    }

    fn with(daemon: &Daemon, name: &'static str, of: &str, options: BlockOptions, overlap: bool) -> Vm {
        daemon.run(&format!("dev add name {name} mgmtdev {of} num_queues {QUEUES}")).good();
        let options = BlockOptions {
            queues: QUEUES,
            depth: 16,
            max_bytes: REQUEST,
            segment_bytes: Some(32 << 10),
            ..options
        };
        let port = Port::connect(&daemon.socket(name), options).unwrap();
        let lanes = (0..QUEUES).map(|queue| {
            let work = Work {
                mix: Mix { read: 4, write: 8, flush: 1, discard: 0, zeroes: 1 },
                request_bytes: REQUEST,
                block_bytes: 4096,
                touch: Touch::All,
                sequential: false,
                overlap,
                first_sector: u64::from(queue) * BYTES / 512,
                bytes: BYTES,
                seed: u64::from(queue) + 1,
            };
            Lane::new(work, 16).unwrap()
        });
        Vm { name, port, lanes: lanes.collect(), moved: Instant::now() }
    }

    /// False: the device broke the rules of the ring.
    fn turn(&mut self, offer: fn() -> Offer<'static>) -> bool {
        let mut presence = Presence::ASSUMED;
        for (queue, lane) in self.port.queues_mut().iter_mut().zip(&mut self.lanes) {
            match lane.turn(queue, offer(), &mut presence) {
                Ok(0) => {}
                Ok(_) => self.moved = Instant::now(),
                Err(error) => {
                    println!("{}: {error}", self.name);
                    return false;
                }
            }
        }
        true
    }

    fn completed(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.counts().completed).sum()
    }

    fn under_way(&mut self) -> usize {
        self.port.queues_mut().iter().map(|queue| queue.under_way()).sum()
    }

    /// Everything comes back, and is what it must be. False: it does not within this time, or is not.
    fn settles(&mut self, within: Duration) -> bool {
        self.moved = Instant::now();
        while self.under_way() > 0 {
            if !self.turn(|| Offer::Nothing) || self.moved.elapsed() > within {
                return false;
            }
            std::thread::yield_now();
        }
        for (queue, lane) in self.port.queues_mut().iter_mut().zip(&mut self.lanes) {
            if lane.check_all(queue, within).is_err() {
                return false;
            }
            if lane.counts().faults() > 0 {
                println!("{}: {:?} {:?}", self.name, lane.counts(), lane.wrong());
                return false;
            }
        }
        true
    }
}

/// Requests of all until each has completed so many more. False: one does not get on.
fn exchange(vms: &mut [Vm], requests: u64, within: Duration) -> bool {
    let wanted: Vec<u64> = vms.iter().map(|vm| vm.completed() + requests).collect();
    vms.iter_mut().for_each(|vm| vm.moved = Instant::now());
    while vms.iter().zip(&wanted).any(|(vm, wanted)| vm.completed() < *wanted) {
        for vm in &mut *vms {
            if !vm.turn(|| Offer::All) || vm.moved.elapsed() > within {
                return false;
            }
        }
    }
    true
}

/// Kills the daemon so long after all have submitted what they may; starts another, and connects all to it.
fn kill_under_requests(daemon: &mut Daemon, vms: &mut [Vm], after: Duration) {
    // It finds all of them at once.
    daemon.signal(Signal::STOP);
    for vm in &mut *vms {
        vm.turn(|| Offer::All);
    }
    daemon.signal(Signal::CONT);
    let begun = Instant::now();
    while begun.elapsed() < after {
        std::hint::spin_loop();
    }
    daemon.kill();
    daemon.start_again(&[]);
    for vm in vms {
        vm.port.reconnect(&daemon.socket(vm.name)).unwrap();
    }
}

/// Another moment at each death of each run, a part of the golden ratio from the one before, so that few of them are spread as well.
fn moment(death: u64) -> Duration {
    Duration::from_micros((u64::from(std::process::id()) + death).wrapping_mul(4_944) % 8_000)
}

fn again(daemon: &Daemon, name: &str) -> u64 {
    let stats = daemon.run(&format!("-j dev vstats show {name}")).json();
    let queues = stats.pointer(&format!("/vstats/{name}/queues"));
    let queues = queues.or_else(|| stats.pointer(&format!("/dev/{name}/queues")));
    let of = |queue: &serde_json::Value| queue["resubmitted"].as_u64().unwrap_or(0);
    queues.and_then(|queues| queues.as_array()).map_or(0, |queues| queues.iter().map(of).sum())
}

#[test]
fn requests_are_done_once_whenever_the_daemon_is_killed() {
    const DEATHS: u64 = 25;
    let files = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut daemon = Daemon::start();
    let options =
        |format, inflight, indirect| BlockOptions { format, inflight, indirect, ..Default::default() };
    let mut vms: Vec<Vm> = [
        ("split", options(Format::Split, true, false), false),
        ("packed", options(Format::Packed, true, true), false),
        ("split-own", options(Format::Split, false, true), false),
        ("packed-own", options(Format::Packed, false, false), false),
        ("split-overlap", options(Format::Split, true, true), true),
        ("packed-overlap", options(Format::Packed, true, false), true),
    ]
    .into_iter()
    .map(|(name, options, overlap)| Vm::boot(&daemon, name, files.path(), options, overlap))
    .collect();
    die_and_settle(&mut daemon, &mut vms, DEATHS);
}

/// Writes that the kernel does for a dead process may come after those of its successor: it opens no file that they are under way to.
#[test]
fn requests_to_files_are_done_once_whenever_the_daemon_is_killed() {
    const DEATHS: u64 = 6;
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    // Where the build lies is no tmpfs.
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut daemon = Daemon::start();
    let options = |format, inflight| BlockOptions { format, inflight, indirect: true, ..Default::default() };
    // What the host has in its page cache it copies byte by byte, so that a read beside a write of the same block may meet the
    // middle of a sector: requests overlap past the cache alone.
    let mut vms: Vec<Vm> = [
        ("memory-split", &memory, "buffered", options(Format::Split, true), false),
        ("memory-packed-own", &memory, "buffered", options(Format::Packed, false), false),
        ("direct-split", &disk, "direct", options(Format::Split, true), false),
        ("direct-split-own", &disk, "direct", options(Format::Split, false), true),
        ("direct-packed", &disk, "direct", options(Format::Packed, true), true),
        ("direct-packed-own", &disk, "direct", options(Format::Packed, false), false),
        ("buffered-split", &disk, "buffered", options(Format::Split, true), false),
        ("buffered-packed-own", &disk, "buffered", options(Format::Packed, false), false),
    ]
    .into_iter()
    .map(|(name, folder, cache, options, overlap)| {
        Vm::on_file(&daemon, name, &folder.path().join(name), cache, options, overlap)
    })
    .collect();
    die_and_settle(&mut daemon, &mut vms, DEATHS);
}

/// Kills the daemon so often; everything comes back, once, and is what it must be.
fn die_and_settle(daemon: &mut Daemon, vms: &mut [Vm], deaths: u64) {
    let mut resubmitted = std::collections::BTreeMap::<&str, u64>::new();
    // So often, and more often where the machine was so quick that some guest had none under way: ever sooner.
    let mut death = 0;
    while death < deaths || (death < 10 * deaths && resubmitted.values().any(|again| *again == 0)) {
        assert!(exchange(vms, 20, SOON), "{death}: {}", daemon.log());
        kill_under_requests(daemon, vms, moment(death) / (1 + death / deaths) as u32);
        death += 1;
        assert!(exchange(vms, 1, SOON), "{death}: {}", daemon.log());
        for vm in &*vms {
            *resubmitted.entry(vm.name).or_default() += again(daemon, vm.name);
        }
    }
    for vm in &mut *vms {
        let again = resubmitted[vm.name];
        assert!(vm.settles(SOON), "{}: {}", vm.name, daemon.log());
        println!("{}: {} requests, {again} of them done again, {death} deaths", vm.name, vm.completed());
    }
    assert!(
        resubmitted.values().all(|again| *again > 0),
        "no death met a request under way: {resubmitted:?}"
    );
    // The one after the last death says so, to people too.
    let told = "requests were done again that a process before this one had not completed";
    let name = vms.iter().map(|vm| vm.name).find(|name| again(daemon, name) > 0);
    if let Some(name) = name {
        assert!(daemon.run(&format!("dev show {name}")).good().contains(told));
        assert!(daemon.run(&format!("dev vstats show {name}")).good().contains(told));
    }
}

/// More than is done as a request is handed over, so that some are under way.
const REQUEST: u32 = 128 << 10;
