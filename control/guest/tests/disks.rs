//! A block port over QEMU's storage daemon, a back-end of others: what the port says of it is right, whatever shape its
//! requests have, and what goes wrong is told.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringway_guest::block::config::{F_DISCARD, F_FLUSH, F_MQ, F_WRITE_ZEROES};
use ringway_guest::block::lane::{Mix, Offer, Work};
use ringway_guest::block::options::{BlockOptions, Shape};
use ringway_guest::block::stamp::Touch;
use ringway_guest::block::{Lane, Operation, Port, Request, Status};
use ringway_guest::error::GuestError;
use ringway_guest::presence::Presence;

/// `qemu-storage-daemon` with a raw file. Killed when dropped.
struct Storage {
    folder: tempfile::TempDir,
    child: Child,
}

impl Storage {
    fn start(more: &str) -> Storage {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("disk")).unwrap().set_len(BYTES).unwrap();
        let child = Storage::run(folder.path(), more);
        Storage { folder, child }
    }

    fn run(folder: &Path, more: &str) -> Child {
        let (disk, socket) = (folder.join("disk"), folder.join("b.sock"));
        let child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=file,filename={},node-name=f,discard=unmap", disk.display()))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=e,addr.type=unix,addr.path={},node-name=f,num-queues=2{more}",
                socket.display()
            ))
            .stdin(Stdio::null())
            .spawn();
        child.expect("qemu-storage-daemon is not installed: run deploy/test, which installs it")
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("b.sock")
    }

    fn disk(&self) -> File {
        File::open(self.folder.path().join("disk")).unwrap()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::fs::remove_file(self.socket()).unwrap();
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn work(mix: Mix) -> Work {
    Work {
        mix,
        request_bytes: 16384,
        block_bytes: 4096,
        touch: Touch::All,
        sequential: false,
        overlap: false,
        first_sector: 0,
        bytes: BYTES,
        seed: 1,
    }
}

/// Drives lanes on the queues until each has completed so many requests.
fn drive(port: &mut Port, lanes: &mut [Lane], requests: u64) {
    let mut presence = Presence::ASSUMED;
    let begun = Instant::now();
    let before: Vec<u64> = lanes.iter().map(|lane| lane.counts().completed).collect();
    while lanes.iter().zip(&before).any(|(lane, before)| lane.counts().completed < before + requests) {
        for (queue, lane) in port.queues_mut().iter_mut().zip(&mut *lanes) {
            lane.turn(queue, Offer::All, &mut presence).unwrap();
        }
        assert!(begun.elapsed() < SOON, "{:?}", lanes[0].counts());
    }
    for (queue, lane) in port.queues_mut().iter_mut().zip(lanes) {
        lane.drain(queue, SOON).unwrap();
    }
}

const BYTES: u64 = 16 << 20;
const SOON: Duration = Duration::from_secs(60);
const WRITABLE: &str = ",writable=on";

#[test]
#[ignore = "needs qemu-storage-daemon: run deploy/test"]
fn each_kind_of_request_does_what_it_says() {
    let storage = Storage::start(WRITABLE);
    let options = BlockOptions { shift: 7, max_bytes: 8192, ..BlockOptions::default() };
    let mut port = Port::connect(&storage.socket(), options).unwrap();
    assert_eq!((port.config().bytes(), port.config().num_queues), (BYTES, 2));
    assert!(port.features().contains(F_FLUSH | F_MQ | F_DISCARD | F_WRITE_ZEROES));
    assert_eq!(port.id().unwrap().as_deref(), Some("vhost_user_blk"));
    let mut data: Vec<u8> = (0..8192u32).map(|at| (at % 251) as u8).collect();
    let written = data.clone();
    assert_eq!(port.perform(Request::write(3, 8192), &mut data).unwrap(), (Status::Ok, 1));
    assert_eq!(port.perform(Request::FLUSH, &mut []).unwrap().0, Status::Ok);
    let mut on_disk = vec![0; 8192];
    storage.disk().read_exact_at(&mut on_disk, 3 * 512).unwrap();
    assert!(on_disk == written);
    data.fill(0);
    assert_eq!(port.perform(Request::read(3, 8192), &mut data).unwrap(), (Status::Ok, 8193));
    assert!(data == written);
    let zeroes = Request { operation: Operation::WriteZeroes { unmap: true }, sector: 4, bytes: 1024 };
    assert_eq!(port.perform(zeroes, &mut []).unwrap().0, Status::Ok);
    let discard = Request { operation: Operation::Discard, sector: 8, bytes: 512 };
    assert_eq!(port.perform(discard, &mut []).unwrap().0, Status::Ok);
    port.perform(Request::read(3, 8192), &mut data).unwrap();
    assert!(data[..512] == written[..512] && data[512..1536].iter().all(|byte| *byte == 0));
    assert!(data[1536..2560] == written[1536..2560] && data[3072..] == written[3072..]);
    let strange = Request { operation: Operation::Other(77), sector: 0, bytes: 0 };
    assert_eq!(port.perform(strange, &mut []).unwrap().0, Status::Unsupported);
    let beyond = Request::read(BYTES / 512, 512);
    assert_eq!(port.perform(beyond, &mut data).unwrap().0, Status::IoError);
    port.stop().unwrap();
}

#[test]
#[ignore = "needs qemu-storage-daemon: run deploy/test"]
fn requests_of_every_shape_and_kind_find_what_was_written() {
    let storage = Storage::start(WRITABLE);
    let mix = Mix { read: 4, write: 4, flush: 1, discard: 1, zeroes: 1 };
    for (shape, indirect, segment_bytes) in [
        (Shape::Usual, false, None),
        (Shape::Usual, true, Some(4096)),
        (Shape::SplitHeader, false, Some(8192)),
        (Shape::Joined, true, Some(512)),
    ] {
        let options = BlockOptions {
            queues: 2,
            max_bytes: 16384,
            depth: 16,
            shape,
            indirect,
            segment_bytes,
            table: indirect,
            ..BlockOptions::default()
        };
        let mut port = Port::connect(&storage.socket(), options).unwrap();
        let mut lanes: Vec<Lane> = (0..2)
            .map(|half| {
                let first_sector = half * BYTES / 2 / 512;
                Lane::new(Work { first_sector, bytes: BYTES / 2, ..work(mix) }, 16).unwrap()
            })
            .collect();
        for (queue, lane) in port.queues_mut().iter_mut().zip(&mut lanes) {
            lane.fill(queue, SOON).unwrap();
        }
        drive(&mut port, &mut lanes, 500);
        for (queue, lane) in port.queues_mut().iter_mut().zip(&mut lanes) {
            lane.check_all(queue, SOON).unwrap();
            let counts = lane.counts();
            assert_eq!((counts.faults(), counts.submitted), (0, counts.completed), "{:?}", lane.wrong());
            assert!(counts.checked > 2048 && counts.flushes > 10 && counts.discards > 10, "{counts:?}");
        }
        port.stop().unwrap();
    }
}

#[test]
#[ignore = "needs qemu-storage-daemon: run deploy/test"]
fn what_others_wrote_or_failed_to_write_is_found() {
    let storage = Storage::start(WRITABLE);
    let options = BlockOptions { max_bytes: 16384, depth: 1, ..BlockOptions::default() };
    let mut port = Port::connect(&storage.socket(), options).unwrap();
    let mut lane = Lane::new(work(Mix { read: 1, ..Mix::default() }), 1).unwrap();
    let queue = &mut port.queues_mut()[0];
    lane.fill(queue, SOON).unwrap();
    let disk = File::options().write(true).open(storage.folder.path().join("disk")).unwrap();
    let mut one = vec![0; 4096];
    let mut copy = |from: u64, to: u64, len: usize| {
        storage.disk().read_exact_at(&mut one[..len], from).unwrap();
        disk.write_all_at(&one[..len], to).unwrap();
    };
    // Another block; a sector that is out of its place; a bit; zeroes where something was written.
    copy(0, 40960, 4096);
    copy(81920, 81920 + 512, 512);
    disk.write_all_at(&[0x55], 122_880 + 4000).unwrap();
    disk.write_all_at(&[0; 4096], 163_840).unwrap();
    disk.write_all_at(&[0; 512], 204_800).unwrap();
    lane.check_all(queue, SOON).unwrap();
    let counts = lane.counts();
    assert_eq!((counts.misplaced, counts.damaged, counts.stale, counts.torn), (1, 2, 1, 1), "{counts:?}");
    assert!(lane.wrong().unwrap().to_string().starts_with("block 10 holds Stamped { block: 0, "));
    port.stop().unwrap();
}

#[test]
#[ignore = "needs qemu-storage-daemon: run deploy/test"]
fn device_that_only_reads_says_so_and_what_is_not_offered_is_refused() {
    let storage = Storage::start("");
    let mut port = Port::connect(&storage.socket(), BlockOptions::default()).unwrap();
    let mut data = [0; 512];
    assert_eq!(port.perform(Request::write(0, 512), &mut data).unwrap().0, Status::IoError);
    assert_eq!(port.perform(Request::read(0, 512), &mut data).unwrap().0, Status::Ok);
    port.stop().unwrap();
    let refused = |options| Port::connect(&storage.socket(), options).unwrap_err();
    let packed = BlockOptions { format: ringway_ring::queue::Format::Packed, ..BlockOptions::default() };
    assert!(matches!(refused(packed), GuestError::Features { missing } if missing == 1 << 34));
    let many = BlockOptions { queues: 3, ..BlockOptions::default() };
    assert!(matches!(refused(many), GuestError::Queues { queues: 2, wanted: 3 }));
}

#[test]
#[ignore = "needs qemu-storage-daemon: run deploy/test"]
fn port_goes_on_at_a_successor_with_what_was_under_way() {
    let mut storage = Storage::start(WRITABLE);
    // A back-end without in-flight records takes anew what it had not completed, in the order of the ring: safe with one
    // request under way.
    let options = BlockOptions { max_bytes: 16384, depth: 1, ..BlockOptions::default() };
    let mut port = Port::connect(&storage.socket(), options).unwrap();
    let mut lane = Lane::new(work(Mix { read: 1, write: 1, ..Mix::default() }), 1).unwrap();
    lane.fill(&mut port.queues_mut()[0], SOON).unwrap();
    for _ in 0..3 {
        drive(&mut port, std::slice::from_mut(&mut lane), 200);
        storage.kill();
        lane.turn(&mut port.queues_mut()[0], Offer::All, &mut { Presence::ASSUMED }).unwrap();
        assert_eq!(port.queues_mut()[0].under_way(), 1);
        storage.child = Storage::run(storage.folder.path(), WRITABLE);
        port.reconnect(&storage.socket()).unwrap();
        drive(&mut port, std::slice::from_mut(&mut lane), 200);
    }
    lane.check_all(&mut port.queues_mut()[0], SOON).unwrap();
    assert_eq!(lane.counts().faults(), 0, "{:?}", lane.wrong());
    port.stop().unwrap();
}
