//! Load on disks: every request and block is accounted for over disks of Ringway's own, whatever shape requests have, and a
//! disk that forgets what is written is caught.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringway_bench::disk::generator::Load;
use ringway_bench::disk::null;
use ringway_bench::disk::options::Driver;
use ringway_bench::disk::options::{Bytes, DiskOptions, Op, Touch};
use ringway_bench::options::Ring;
use ringway_control::operator::api::DeviceEntry;
use ringway_control::subsystem::{Options, Subsystem};
use ringway_guest::block::lane::{Mix, Offer, Work};
use ringway_guest::block::options::{BlockOptions, Shape};
use ringway_guest::block::{Lane, Port, stamp};
use ringway_guest::presence::Presence;

const ROUND: Duration = Duration::from_millis(50);
const SOON: Duration = Duration::from_secs(60);
const BYTES: u64 = 8 << 20;

/// Every test here polls with two threads on two cores: side by side they would starve each other's.
fn alone() -> impl Drop {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cores() -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    (0..1024).filter(|core| allowed.is_set(*core)).collect()
}

/// A daemon in this process with a disk in memory, and where that listens.
fn disk(folder: &std::path::Path) -> (Subsystem, std::path::PathBuf) {
    disk_of(folder, "sim/blk", &[("size", &BYTES.to_string())])
}

/// The same of any kind.
fn disk_of(
    folder: &std::path::Path,
    mgmtdev: &str,
    words: &[(&str, &str)],
) -> (Subsystem, std::path::PathBuf) {
    let attributes: BTreeMap<String, String> =
        words.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let device = DeviceEntry {
        name: "d".to_owned(),
        mgmtdev: mgmtdev.to_owned(),
        attributes,
        ..DeviceEntry::default()
    };
    let options = Options { devices: vec![device], ..Options::embedded(folder) };
    (Subsystem::start(options).unwrap(), folder.join("dev/d.sock"))
}

#[test]
fn requests_of_every_kind_are_accounted_for() {
    let _alone = alone();
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let (subsystem, socket) = disk(folder.path());
    for (op, ring, size) in [
        (Op::Read, Ring::Split, 4096),
        (Op::Mix, Ring::Packed, 512),
        (Op::Write, Ring::Packed, 65536),
        (Op::Zeroes, Ring::Split, 4096),
        (Op::Discard, Ring::Packed, 4096),
        (Op::Flush, Ring::Split, 4096),
    ] {
        let options = DiskOptions {
            op,
            ring,
            size: Bytes(size),
            touch: Touch::All,
            queues: 2,
            indirect: ring == Ring::Packed,
            segment: (size > 4096).then_some(Bytes(4096)),
            flush_every: (op == Op::Mix).then_some(8),
            span: Bytes(BYTES),
            ..DiskOptions::default()
        };
        let mut generator = ringway_bench::disk::open(&socket, &options, &[cores()[0]]).unwrap();
        let mut sum = ringway_guest::block::lane::Counts::default();
        for load in [Load::Closed, Load::Open { iops: 2000.0 }] {
            let round = generator.round(load, ROUND).unwrap();
            assert!(
                round.counts.completed > 0 && round.counts.submitted == round.counts.completed,
                "{round:?}"
            );
            sum = sum.plus(&round.counts);
        }
        assert_eq!(sum.faults(), 0, "{op} {ring}: {:?}", generator.wrong());
        let kinds = [sum.reads, sum.writes, sum.flushes, sum.discards].map(|count| count > 0);
        let expected = match op {
            Op::Read => [true, false, false, false],
            Op::Mix => [true, true, true, false],
            Op::Write | Op::Zeroes => [false, true, false, false],
            Op::Flush => [false, false, true, false],
            Op::Discard => [false, false, false, true],
        };
        assert_eq!(kinds, expected, "{op}: {sum:?}");
        assert_eq!(sum.checked, sum.reads * (size / 4096).max(1));
        generator.close().unwrap();
    }
    drop(subsystem);
}

#[test]
fn requests_of_every_shape_find_what_was_written() {
    let _alone = alone();
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let (subsystem, socket) = disk(folder.path());
    for (shape, ring, indirect, segment_bytes, overlap) in [
        (Shape::Usual, Ring::Split, true, Some(1536), false),
        (Shape::SplitHeader, Ring::Packed, false, None, false),
        (Shape::Joined, Ring::Split, false, Some(5000), false),
        (Shape::Joined, Ring::Packed, true, None, true),
    ] {
        let options = BlockOptions {
            format: ring.format(),
            max_bytes: 12288,
            depth: 16,
            shift: 3,
            shape,
            indirect,
            segment_bytes,
            table: indirect,
            ..BlockOptions::default()
        };
        let work = Work {
            mix: Mix { read: 5, write: 5, flush: 1, discard: 1, zeroes: 1 },
            request_bytes: 12288,
            block_bytes: 4096,
            touch: stamp::Touch::All,
            sequential: false,
            overlap,
            first_sector: 24,
            // Writes meet each other where there is little room.
            bytes: if overlap { 12288 * 3 } else { 4 << 20 },
            seed: 7,
        };
        let mut port = Port::connect(&socket, options).unwrap();
        assert_eq!(port.id().unwrap().as_deref(), Some("d"));
        let mut lane = Lane::new(work, 16).unwrap();
        let queue = &mut port.queues_mut()[0];
        lane.fill(queue, SOON).unwrap();
        for _ in 0..200 {
            lane.turn(queue, Offer::AtMost(8), &mut { Presence::ASSUMED }).unwrap();
        }
        lane.check_all(queue, SOON).unwrap();
        let counts = lane.counts();
        assert_eq!(
            (counts.faults(), counts.submitted),
            (0, counts.completed),
            "{shape:?}: {:?}",
            lane.wrong()
        );
        port.stop().unwrap();
    }
    drop(subsystem);
}

#[test]
fn disk_that_keeps_nothing_is_caught_and_one_that_is_not_looked_at_is_not() {
    let _alone = alone();
    let null = null::start(*cores().last().unwrap(), BYTES).unwrap();
    for ring in Ring::ALL {
        let options = DiskOptions { ring, touch: Touch::None, span: Bytes(BYTES), ..DiskOptions::default() };
        let mut generator = ringway_bench::disk::open(&null.socket(), &options, &[cores()[0]]).unwrap();
        let counts = generator.round(Load::Closed, ROUND).unwrap().counts;
        assert!(counts.reads > 0 && counts.checked == 0 && counts.faults() == 0, "{counts:?}");
        generator.close().unwrap();
        let options = DiskOptions { touch: Touch::Head, ..options };
        let mut generator = ringway_bench::disk::open(&null.socket(), &options, &[cores()[0]]).unwrap();
        let counts = generator.round(Load::Closed, ROUND).unwrap().counts;
        assert!(counts.misplaced > 0 && generator.wrong().is_some(), "{counts:?}");
        generator.close().unwrap();
    }
}

#[test]
fn others_driver_does_as_ours() {
    let _alone = alone();
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let (subsystem, socket) = disk(folder.path());
    for (op, indirect) in [(Op::Read, false), (Op::Write, true), (Op::Mix, false)] {
        let options = DiskOptions {
            driver: Driver::VirtioDriver,
            touch: Touch::None,
            op,
            indirect,
            span: Bytes(BYTES),
            ..DiskOptions::default()
        };
        let mut generator = ringway_bench::disk::open(&socket, &options, &[cores()[0]]).unwrap();
        // A busy host may leave the driver no time in a round.
        let begun = Instant::now();
        let round = loop {
            let round = generator.round(Load::Closed, ROUND).unwrap();
            assert!(round.counts.errors == 0 && begun.elapsed() < SOON, "{round:?}");
            if round.latency.count > 0 {
                break round;
            }
        };
        assert!(round.counts.completed > 0 && round.latency.p50 > 0, "{round:?}");
        assert_eq!((generator.bytes(), generator.wrong()), (BYTES, None));
        generator.close().unwrap();
        let refused = DiskOptions { ring: Ring::Packed, ..options };
        let refused = ringway_bench::disk::open(&socket, &refused, &[0]).unwrap_err().to_string();
        assert!(refused.contains("--ring split"), "{refused}");
    }
    drop(subsystem);
}

#[test]
fn load_that_does_not_fit_the_disk_is_refused_in_words() {
    let _alone = alone();
    let null = null::start(*cores().last().unwrap(), 1 << 20).unwrap();
    let refused = |options: DiskOptions| {
        let opened = ringway_bench::disk::open(&null.socket(), &options, &[cores()[0]]);
        opened.map(|_| ()).unwrap_err().to_string()
    };
    let options = || DiskOptions { touch: Touch::None, ..DiskOptions::default() };
    assert!(
        refused(DiskOptions { size: Bytes(1000), ..options() }).ends_with("the device has blocks of 512")
    );
    assert!(
        refused(DiskOptions { size: Bytes(2 << 20), ..options() }).contains("the device has 1048576 bytes")
    );
    assert!(
        refused(DiskOptions { depth: 64, size: Bytes(32768), ..options() }).contains("room for 32 requests")
    );
    assert!(refused(DiskOptions { queues: 17, ..options() }).contains("16 virtqueues, not 17"));
    assert!(
        refused(DiskOptions { depth: 200, queue_size: Some(128), ..options() }).contains("must be 1 to 42")
    );
}

#[test]
#[ignore = "needs qemu-storage-daemon: run deploy/test"]
fn storage_daemon_takes_turns_with_ringway() {
    let _alone = alone();
    let (generator, back_end) = (cores()[0].to_string(), cores().last().unwrap().to_string());
    // Not in memory: there is nothing to go past.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for backing in ["memory", "none", "cached", "direct"] {
        let is_file = matches!(backing, "cached" | "direct");
        let touch = if backing == "none" { "none" } else { "head" };
        let output = Command::new(env!("CARGO_BIN_EXE_ringway-bench"))
            .args(["compare", "blk", "--json", "--ring", "split", "--op", "mix", "--span", "8M"])
            .args(["--backing", backing, "--touch", touch, "--rounds", "2", "--seconds", "0.05"])
            .args(["--max-gap-us", "1000000", "--cores", &generator, "--backend-core", &back_end])
            .arg("--folder")
            .arg(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let record: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&record["parameters"]["job"], &record["peer"]["name"]), (&"blk".into(), &"qsd".into()));
        assert!(record["ratio"]["median"].as_f64().unwrap() > 0.0, "{record}");
        assert_eq!(record["tried"].as_array().unwrap().len(), if backing == "memory" { 2 } else { 1 });
        let of_fio = record["fio"]["ratio"]["median"].as_f64();
        assert_eq!(of_fio.map(|ratio| ratio > 0.0), is_file.then_some(true), "{record}");
        let flags = record["peer"]["flags"].to_string();
        assert_eq!(flags.contains("writethrough=on"), is_file, "{flags}");
        for side in ["ours", "peer"] {
            let rounds = record[side]["throughput"]["rounds"].as_array().unwrap();
            assert!(
                rounds.iter().all(|round| round["counts"]["completed"].as_u64().unwrap() > 0),
                "{record}"
            );
            assert!(rounds.iter().all(|round| round["counts"]["stale"] == 0), "{record}");
        }
    }
}

#[test]
fn comparison_of_files_without_fio_ends_at_once_and_names_the_package() {
    let output = Command::new(env!("CARGO_BIN_EXE_ringway-bench"))
        .args(["compare", "blk", "--backing", "cached", "--ring", "split"])
        .env("RINGWAY_FIO", "/nowhere/fio")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("/nowhere/fio is not here"), "{said}");
    assert!(said.contains("`fio`") && said.contains("RINGWAY_FIO"), "{said}");
}

#[test]
fn disk_that_makes_writes_durable_is_written_before_with_its_cache_on_and_measured_with_it_off() {
    let _alone = alone();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = folder.path().join("disk");
    std::fs::write(&file, vec![0; BYTES as usize]).unwrap();
    let words = [("path", file.to_str().unwrap()), ("cache", "buffered"), ("write_back", "off")];
    let (subsystem, socket) = disk_of(folder.path(), "file", &words);
    let options = DiskOptions { durable: true, op: Op::Mix, span: Bytes(BYTES), ..DiskOptions::default() };
    let mut generator = ringway_bench::disk::open(&socket, &options, &[cores()[0]]).unwrap();
    let counts = generator.round(Load::Closed, ROUND).unwrap().counts;
    assert!(counts.reads > 0 && counts.writes > 0 && counts.faults() == 0, "{counts:?}");
    generator.close().unwrap();
    // The device's own word again: a driver that comes after finds it off.
    let port = Port::connect(&socket, BlockOptions::default()).unwrap();
    assert!(port.can_write_back() && port.config().writeback == 0);
    port.stop().unwrap();
    drop(subsystem);
}
