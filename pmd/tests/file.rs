//! Files as disks: what is written is there, for the guest and in the file, whatever the file system, the cache and the guest's
//! memory; what fails is told with its error; nobody else has the file.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of a test stop it where something is not as it must be"
)]

#[path = "../../engine/tests/common/allocations.rs"]
mod allocations;
#[path = "shared/bed.rs"]
mod bed;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use ringway_engine::{Armed, Clock, Engine, EngineConfig, IdlePolicy, Watcher};
use ringway_pmd::block::F_FLUSH;
use ringway_pmd::block::disk::BlockDevice;
use ringway_pmd::counters::DropReason;
use ringway_pmd::drivers::file::{FileDisk, FileDisks};
use ringway_pmd::vdpa::{DeviceHost, DeviceSpec, DriverError, MakePump, Placer, Upcall, VdpaDevice};
use ringway_ring::queue::{Completion, Format, RingFault};
use ringway_ring::tsc;
use rustix::event::{PollFd, PollFlags, poll};
use tempfile::TempDir;

use bed::{Bed, DISCARD, FLUSH, IN, OUT, WRITE_ZEROES, formats, range, spec};

const DISK: usize = 1 << 20;

/// A directory on the file system that things are built on, or on tmpfs, if there is any.
fn dir(is_tmpfs: bool) -> TempDir {
    let shm = Path::new("/dev/shm");
    let root = if is_tmpfs && shm.is_dir() { shm } else { Path::new(env!("CARGO_TARGET_TMPDIR")) };
    TempDir::new_in(root).unwrap()
}

fn disk_in(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(DISK as u64).unwrap();
    path
}

fn device(path: &Path, words: &[(&str, &str)]) -> Result<BlockDevice<FileDisk>, DriverError> {
    let mut words = words.to_vec();
    words.push(("path", path.to_str().unwrap()));
    FileDisks::new().device(&spec(&words), DeviceHost::unheard())
}

fn note(device: &BlockDevice<FileDisk>) -> String {
    device.health().unwrap().words().unwrap_or_default()
}

/// Waits until something is so.
fn wait_for(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn file_is_what_was_written_to_it(
        format in formats(),
        is_tmpfs in any::<bool>(),
        cache in prop_oneof![Just("direct"), Just("buffered")],
        write_back in any::<bool>(),
        register in prop_oneof![Just("on"), Just("off")],
        asks in prop::collection::vec((0..8u32, 0u64..2048, 1u64..600, prop::collection::vec(0usize..300_000, 0..5), any::<u8>()), 1..24),
    ) {
        let dir = dir(is_tmpfs);
        let path = disk_in(&dir);
        let write_back = if write_back { "on" } else { "off" };
        let words = [("cache", cache), ("write_back", write_back), ("register", register)];
        let mut device = device(&path, &words).unwrap();
        let mut bed = Bed::new(format, F_FLUSH, &mut device);
        let mut model = vec![0u8; DISK];
        for (kind, sector, sectors, cuts, seed) in asks {
            let (at, len) = (sector as usize * 512, sectors as usize * 512);
            let is_on = at + len <= DISK;
            let expected = if is_on { 0 } else { 1 };
            match kind {
                0 | 1 => {
                    let (status, written, data) = bed.done(IN, sector, &[], len, &cuts);
                    prop_assert_eq!((status, written), (expected, if is_on { len as u32 + 1 } else { 1 }));
                    if is_on { prop_assert_eq!(&data[..], &model[at..at + len]); }
                }
                2 | 3 => {
                    let bytes: Vec<u8> = (0..len).map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed)).collect();
                    let (status, written, _) = bed.done(OUT, sector, &bytes, 0, &cuts);
                    prop_assert_eq!((status, written), (expected, 1));
                    if is_on { model[at..at + len].copy_from_slice(&bytes); }
                }
                4 => prop_assert_eq!(bed.done(FLUSH, 0, &[], 0, &cuts).0, 0),
                5 => {
                    // A file reads as zeroes where its space was given back.
                    let ranges = range(sector, sectors as u32, 0);
                    prop_assert_eq!(bed.done(DISCARD, 0, &ranges, 0, &cuts).0, expected);
                    if is_on { model[at..at + len].fill(0); }
                }
                _ => {
                    let ranges = [range(0, 3, 1), range(sector, sectors as u32, kind & 1)].concat();
                    prop_assert_eq!(bed.done(WRITE_ZEROES, 0, &ranges, 0, &cuts).0, expected);
                    model[..3 * 512].fill(0);
                    if is_on { model[at..at + len].fill(0); }
                }
            }
        }
        prop_assert_eq!(bed.fault.reported(), None);
        prop_assert!(fs::read(&path).unwrap() == model, "the file is another");
    }
}

#[test]
fn many_requests_under_way_end_once_each_and_flushes_among_them() {
    for (cache, write_back) in [("direct", "on"), ("direct", "off"), ("buffered", "on"), ("buffered", "off")]
    {
        let dir = dir(false);
        let path = disk_in(&dir);
        let mut device = device(&path, &[("cache", cache), ("write_back", write_back)]).unwrap();
        let mut bed = Bed::new(Format::Split, F_FLUSH, &mut device);
        let mut asked = Vec::new();
        for token in 0..80u32 {
            let block = [token as u8; 4096];
            let kind = if token % 4 == 0 { FLUSH } else { OUT };
            let output: &[u8] = if kind == OUT { &block } else { &[] };
            asked.push(bed.ask(token, kind, u64::from(token) * 8, output, 0, &[]));
        }
        let mut seen = vec![0; asked.len()];
        let begun = Instant::now();
        while seen.iter().sum::<u32>() < 80 && begun.elapsed() < Duration::from_secs(60) {
            bed.poll();
            bed.collect().iter().for_each(|done| seen[done.token as usize] += 1);
        }
        assert!(seen.iter().all(|times| *times == 1), "{seen:?}");
        assert!(asked.iter().all(|asked| bed.status(asked) == 0));
        let bytes = fs::read(&path).unwrap();
        for token in (0..80).filter(|token| token % 4 != 0) {
            assert!(bytes[token * 4096..(token + 1) * 4096].iter().all(|byte| *byte == token as u8));
        }
    }
}

#[test]
fn ranges_beyond_the_limits_are_refused() {
    let dir = dir(true);
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(4 << 30).unwrap();
    let mut device = device(&path, &[]).unwrap();
    let mut bed = Bed::new(Format::Split, F_FLUSH, &mut device);
    assert_eq!(bed.done(WRITE_ZEROES, 0, &range(0, 1 << 21, 1), 0, &[]).0, 0);
    assert_eq!(bed.done(WRITE_ZEROES, 0, &range(0, (1 << 21) + 1, 1), 0, &[]).0, 1);
    assert_eq!(bed.done(DISCARD, 0, &range(0, 8, 0).repeat(256), 0, &[]).0, 0);
    assert_eq!(bed.done(DISCARD, 0, &range(0, 8, 0).repeat(257), 0, &[]).0, 1);
    assert_eq!(bed.drops(DropReason::BadRange), 2);
}

#[test]
fn memory_that_does_not_lie_as_the_file_demands_is_copied_and_counted() {
    let dir = dir(false);
    let path = disk_in(&dir);
    let mut device = device(&path, &[("cache", "direct")]).unwrap();
    let mut bed = Bed::new(Format::Packed, F_FLUSH, &mut device);
    // More than a room to copy to, in pieces at odd places.
    let bytes: Vec<u8> = (0..300 << 10).map(|n: u32| (n >> 3) as u8).collect();
    assert_eq!(bed.done(OUT, 8, &bytes, 0, &[16 + 777, 100_001]).0, 0);
    assert_eq!(bed.done(IN, 8, &[], bytes.len(), &[5, 200_003]).2, bytes);
    assert!(fs::read(&path).unwrap()[4096..][..bytes.len()] == bytes);
    assert!(note(&device).contains("requests were copied"), "{}", note(&device));
}

#[test]
fn file_that_was_cut_fails_what_is_beyond_its_end_under_its_name() {
    for cache in ["direct", "buffered"] {
        let dir = dir(false);
        let path = disk_in(&dir);
        let mut device = device(&path, &[("cache", cache)]).unwrap();
        let mut bed = Bed::new(Format::Split, F_FLUSH, &mut device);
        File::options().write(true).open(&path).unwrap().set_len(4096 + 512).unwrap();
        assert_eq!(bed.done(IN, 8, &[], 512, &[]).0, 0);
        assert_eq!(bed.done(IN, 0, &[], 8192, &[]).0, 1, "half of it is there");
        assert_eq!(bed.done(IN, 1024, &[], 512, &[]).0, 1);
        assert_eq!(bed.drops(DropReason::BackingFailed), 2);
        let note = note(&device);
        assert!(note.contains("2 x the file ends before") && note.contains("at sector 1024"), "{note}");
    }
}

#[test]
fn error_of_the_file_is_the_guests_error_and_the_operators_reason() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let memfd = File::from(memfd_create("disk", MemfdFlags::ALLOW_SEALING).unwrap());
    memfd.set_len(DISK as u64).unwrap();
    let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), memfd.as_raw_fd()));
    let mut device = device(&path, &[]).unwrap();
    let mut bed = Bed::new(Format::Split, F_FLUSH, &mut device);
    assert_eq!(bed.done(OUT, 0, &[1; 512], 0, &[]).0, 0);
    fcntl_add_seals(&memfd, SealFlags::WRITE).unwrap();
    assert_eq!(bed.done(OUT, 16, &[2; 512], 0, &[]).0, 1);
    assert_eq!(bed.done(IN, 0, &[], 512, &[]).2, [1; 512]);
    assert_eq!(bed.drops(DropReason::BackingFailed), 1);
    let note = note(&device);
    assert!(note.contains("1 x Operation not permitted") && note.contains("at sector 16"), "{note}");
}

#[test]
fn memory_that_its_vmm_cut_is_the_guests_fault_and_not_the_files() {
    for (cache, kind, format) in [
        ("direct", IN, Format::Split),
        ("direct", OUT, Format::Packed),
        ("buffered", IN, Format::Packed),
        ("buffered", OUT, Format::Split),
    ] {
        let dir = dir(false);
        let mut device = device(&disk_in(&dir), &[("cache", cache)]).unwrap();
        let mut bed = Bed::new(format, F_FLUSH, &mut device);
        assert_eq!(bed.done(OUT, 0, &[1; 8192], 0, &[]).0, 0);
        // Its data lies as the file demands, behind its header or the buffer of that; all but seven blocks of it are missing.
        let cut = bed.free.next_multiple_of(4096) + 4096;
        bed.free = cut - 7 * 512 - if kind == OUT { 16 } else { 23 };
        let (output, input) = if kind == OUT { (vec![2; 8192], 0) } else { (Vec::new(), 8192) };
        bed.ask(9, kind, 0, &output, input, &[]);
        bed.cut(cut);
        wait_for(|| {
            bed.poll();
            bed.fault.reported().is_some()
        });
        assert_eq!(bed.fault.reported(), Some(RingFault::Poisoned));
        assert_eq!((bed.drops(DropReason::GuestMemory), bed.drops(DropReason::BackingFailed)), (1, 0));
        assert_eq!(device.health().unwrap().failures(), 0);
    }
}

#[test]
fn requests_allocate_nothing() {
    let dir = dir(false);
    let path = disk_in(&dir);
    let mut device = device(&path, &[("cache", "direct")]).unwrap();
    let mut bed = Bed::new(Format::Split, F_FLUSH, &mut device);
    let ask = |bed: &mut Bed| {
        for token in 0..40u32 {
            // Some of it lies as the file demands, and some has to be copied.
            let kinds = [IN, OUT, FLUSH, WRITE_ZEROES];
            let kind = kinds[token as usize % 4];
            let output = match kind {
                OUT => vec![7; 8192],
                WRITE_ZEROES => range(token.into(), 8, token % 2),
                _ => Vec::new(),
            };
            bed.ask(token, kind, token.into(), &output, if kind == IN { 4096 } else { 0 }, &[512 + 16]);
        }
    };
    let calls = std::thread::scope(|scope| {
        let bed = &mut bed;
        let worker = scope.spawn(move || {
            bed.done(IN, 0, &[], 512, &[]);
            ask(bed);
            allocations::watch();
            let (begun, mut ended) = (Instant::now(), 0);
            let mut done = [Completion::default(); 64];
            while ended < 40 && begun.elapsed() < Duration::from_secs(60) {
                bed.poll();
                ended += bed.driver.collect(&mut done).unwrap_or_default();
                std::thread::sleep(Duration::from_millis(1));
            }
            // Before the thread ends, which frees what it has.
            (allocations::calls(), ended)
        });
        worker.join().unwrap()
    });
    assert_eq!(calls, (0, 40), "allocations, and requests that ended");
}

#[test]
fn helpers_of_the_kernel_keep_off_the_cores_that_are_polled() {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let allowed = sched_getaffinity(None).unwrap();
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    let (Some(polled), Some(_)) = (cores.next(), cores.next()) else {
        println!("skipped: one core alone");
        return;
    };
    let dir = dir(false);
    let path = disk_in(&dir);
    let mut device = device(&path, &[("cache", "buffered")]).unwrap();
    device.polled(&[polled]);
    let mut bed = Bed::new(Format::Split, F_FLUSH, &mut device);
    let seen = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut own = CpuSet::new();
            own.set(polled);
            sched_setaffinity(None, &own).unwrap();
            let own = rustix::thread::gettid().as_raw_nonzero().get();
            let mut seen = Vec::new();
            for round in 0..50u8 {
                assert_eq!(bed.done(OUT, round.into(), &[round; 8192], 0, &[]).0, 0);
                assert_eq!(bed.done(FLUSH, 0, &[], 0, &[]).0, 0);
                seen.extend(cores_of_helpers(own));
            }
            seen
        });
        worker.join().unwrap()
    });
    assert!(!seen.is_empty(), "a flush is always a helper's");
    assert!(seen.iter().all(|set| !set.is_set(polled) && set.count() > 0));
}

/// The cores that the kernel's threads may use which work for a thread.
fn cores_of_helpers(tid: i32) -> Vec<rustix::thread::CpuSet> {
    use rustix::thread::{Pid, sched_getaffinity};
    let mut seen = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let comm = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let number = task.file_name().to_str().and_then(|name| name.parse().ok());
        if comm.trim() == format!("iou-wrk-{tid}")
            && let Some(helper) = number.and_then(Pid::from_raw)
            && let Ok(set) = sched_getaffinity(Some(helper))
        {
            seen.push(set);
        }
    }
    seen
}

#[test]
fn helpers_of_a_workers_disks_keep_off_the_cores_of_all_workers_wherever_queues_are() {
    use rustix::thread::{CpuSet, sched_getaffinity};
    struct Nobody;
    impl Watcher for Nobody {
        fn pump_ended(&self) {}
    }
    let allowed = sched_getaffinity(None).unwrap();
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    let [core, .., other] = cores[..] else {
        println!("skipped: one core alone");
        return;
    };
    // With two cores, the other one is free at first; with more, both are workers'.
    let workers = if cores.len() > 2 { vec![core, other] } else { vec![core] };
    let clock = Clock { cycles: tsc::cycles, hertz: tsc::hertz() };
    let engine =
        Engine::start(EngineConfig { cores: workers.clone(), idle: IdlePolicy::Adaptive, clock }).unwrap();
    let dir = dir(false);
    let mut device = device(&disk_in(&dir), &[("cache", "buffered")]).unwrap();
    // Its own pump is never polled.
    let mut bed = Bed::new(Format::Split, F_FLUSH, &mut device);
    let home = Arc::new(AtomicUsize::new(core));
    let theirs = Arc::clone(&home);
    let placer = Placer {
        name: "d0".to_owned(),
        engine: engine.clone(),
        core_of: Arc::new(move |_| theirs.load(Ordering::Relaxed)),
        watcher: Arc::new(Nobody),
    };
    let binding = bed.binding.clone();
    let within = Duration::from_secs(20);
    device.queues().start(0, vec![binding.clone()], &placer, within).unwrap();
    for core in &workers {
        home.store(*core, Ordering::Relaxed);
        device.queues().follow(within).unwrap();
        for round in 0..50u8 {
            for (kind, data) in [(OUT, &[round; 8192][..]), (FLUSH, &[])] {
                let asked = bed.ask(1, kind, 0, data, 0, &[]);
                binding.kick.as_ref().unwrap().signal();
                wait_for(|| !bed.collect().is_empty());
                assert_eq!(bed.status(&asked), 0);
            }
        }
        let worker = engine.workers().into_iter().find(|worker| worker.core == *core).unwrap();
        let seen = cores_of_helpers(worker.tid);
        assert!(!seen.is_empty(), "a flush is always a helper's");
        assert!(seen.iter().all(|set| workers.iter().all(|core| !set.is_set(*core)) && set.count() > 0));
    }
    device.queues().stop(0, within).unwrap();
    engine.shutdown();
}

/// A loop device, until it is dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &Path, blk_size: &str) -> Loop {
        let out =
            Command::new("losetup").args(["--find", "--show", "--sector-size", blk_size]).arg(file).output();
        let out = out.unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Loop(PathBuf::from(String::from_utf8(out.stdout).unwrap().trim()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
#[ignore = "makes loop devices: needs root"]
fn block_device_is_a_disk_of_its_own_blocks_and_size() {
    for (size, cache) in [("512", "direct"), ("4096", "direct"), ("4096", "buffered")] {
        let dir = dir(false);
        let path = disk_in(&dir);
        let device_path = Loop::new(&path, size);
        let host = DeviceHost::unheard();
        let words = [("path", device_path.0.to_str().unwrap()), ("cache", cache)];
        let mut ours = FileDisks::new().device(&spec(&words), host.clone()).unwrap();
        let mut config = [0; 60];
        ours.config().read(0, &mut config);
        let blk_size = u32::from_le_bytes(config[20..24].try_into().unwrap());
        assert_eq!(blk_size.to_string(), size);
        if blk_size == 4096 {
            let smaller = [words[0], words[1], ("blk_size", "512")];
            drop(ours);
            let why = FileDisks::new().device(&spec(&smaller), host.clone()).unwrap_err().to_string();
            assert!(why.contains("blocks of 4096"), "{why}");
            let mut again = None;
            wait_for(|| {
                again = FileDisks::new().device(&spec(&words), host.clone()).ok();
                again.is_some()
            });
            ours = again.unwrap();
        }
        let mut bed = Bed::new(Format::Packed, F_FLUSH, &mut ours);
        assert_eq!(bed.done(OUT, 0, &[3; 16384], 0, &[777]).0, 0);
        assert_eq!(bed.done(FLUSH, 0, &[], 0, &[]).0, 0);
        assert_eq!(bed.done(IN, 8, &[], 4096, &[]).2, [3; 4096]);
        assert_eq!(bed.done(WRITE_ZEROES, 0, &range(0, 8, 0), 0, &[]).0, 0);
        assert_eq!(bed.done(WRITE_ZEROES, 0, &range(8, 8, 1), 0, &[]).0, 0);
        assert_eq!(bed.done(DISCARD, 0, &range(16, 8, 0), 0, &[]).0, 0);
        assert_eq!(bed.done(IN, 0, &[], 8192, &[]).2, [0; 8192]);
        assert_eq!(bed.done(IN, 24, &[], 4096, &[]).2, [3; 4096]);
        // It grows with what is behind it, once it is told.
        File::options().write(true).open(&path).unwrap().set_len(2 * DISK as u64).unwrap();
        assert!(
            Command::new("losetup").arg("--set-capacity").arg(&device_path.0).status().unwrap().success()
        );
        wait_for(|| host.take() == [Upcall::ConfigChanged]);
        ours.config().read(0, &mut config);
        assert_eq!(u64::from_le_bytes(config[..8].try_into().unwrap()), 4096);
        assert_eq!(bed.done(OUT, 4088, &[4; 4096], 0, &[]).0, 0);
        drop((bed, ours));
        wait_for(|| FileDisks::new().device(&spec(&words), DeviceHost::unheard()).is_ok());
    }
}

#[test]
fn guests_memory_is_pinned_on_the_operators_word_alone_and_as_far_as_the_host_lets() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let dir = dir(false);
    let path = disk_in(&dir);
    let mut first = device(&path, &[]).unwrap();
    let bed = Bed::new(Format::Split, F_FLUSH, &mut first);
    assert_eq!((first.note(), first.attributes()["register"].as_str()), (None, "off"));
    drop((bed, first));
    wait_for(|| device(&path, &[]).is_ok());
    let most = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let is_bound = most.is_some_and(|most| most < bed::MEMORY);
    let try_it = || {
        let mut device = device(&path, &[("register", "on")]).unwrap();
        let mut bed = Bed::new(Format::Split, F_FLUSH, &mut device);
        assert_eq!(bed.done(OUT, 0, &[1; 4096], 0, &[]).0, 0);
        assert_eq!(bed.done(IN, 0, &[], 4096, &[]).2, [1; 4096]);
        device.note().unwrap()
    };
    let mut own = capabilities(None).unwrap();
    if !is_bound || own.effective.contains(CapabilitySet::IPC_LOCK) {
        assert_eq!(try_it(), "register on: 16 MiB are pinned");
        wait_for(|| device(&path, &[]).is_ok());
    }
    if is_bound {
        // This thread's alone.
        own.effective.remove(CapabilitySet::IPC_LOCK);
        set_capabilities(None, own).unwrap();
        let note = try_it();
        assert!(
            note.contains("not pinned")
                && note.contains("KiB may be locked")
                && note.contains("LimitMEMLOCK"),
            "{note}"
        );
    }
}

#[test]
fn queue_goes_on_with_another_worker() {
    for register in ["off", "on"] {
        queue_goes_on_with_another(register);
    }
}

fn queue_goes_on_with_another(register: &str) {
    let dir = dir(false);
    let path = disk_in(&dir);
    let mut device = device(&path, &[("cache", "direct"), ("register", register)]).unwrap();
    let mut bed = Bed::new(Format::Split, F_FLUSH, &mut device);
    for round in 0..4u8 {
        std::thread::scope(|scope| {
            let bed = &mut bed;
            scope.spawn(move || {
                assert_eq!(bed.done(OUT, round.into(), &[round; 512], 0, &[]).0, 0);
                assert_eq!(bed.done(FLUSH, 0, &[], 0, &[]).0, 0);
                assert_eq!(bed.done(IN, round.into(), &[], 512, &[]).2, [round; 512]);
            });
        });
    }
}

#[test]
fn one_who_sleeps_is_woken_by_what_ends() {
    for cache in ["direct", "buffered"] {
        let dir = dir(false);
        let path = disk_in(&dir);
        let mut device = device(&path, &[("cache", cache)]).unwrap();
        let mut bed = Bed::new(Format::Split, F_FLUSH, &mut device);
        for token in 0..16 {
            let asked = bed.ask(token, OUT, token.into(), &[7; 512], 0, &[]);
            let flushed = bed.ask(100 + token, FLUSH, 0, &[], 0, &[]);
            let mut done = 0;
            let begun = Instant::now();
            while done < 2 {
                assert!(begun.elapsed() < Duration::from_secs(60));
                bed.poll();
                done += bed.collect().len();
                if done == 2 || bed.pump.arm() == Armed::HasWork {
                    continue;
                }
                let sources = bed.pump.wake_sources();
                // The first is the guest's kick.
                let mut fds: Vec<PollFd<'_>> =
                    sources[1..].iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
                let woken = poll(&mut fds, Some(&rustix::time::Timespec { tv_sec: 30, tv_nsec: 0 }));
                assert!(woken.is_ok_and(|count| count == 1) || woken == Err(rustix::io::Errno::INTR));
                bed.pump.disarm();
            }
            assert_eq!((bed.status(&asked), bed.status(&flushed)), (0, 0));
        }
    }
}

#[test]
fn what_is_no_disk_is_refused_by_its_name() {
    let dir = dir(false);
    let path = disk_in(&dir);
    let refused = |path: &Path, words: &[(&str, &str)]| device(path, words).unwrap_err().to_string();
    let circle = dir.path().join("circle");
    std::os::unix::fs::symlink(&circle, &circle).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
    for (name, what) in [("", "a directory"), ("circle", "leads to itself"), ("s", "a socket")] {
        for ro in ["on", "off"] {
            match device(&dir.path().join(name), &[("ro", ro)]) {
                Err(DriverError::Conflict { what: why, held_by: None, .. }) => {
                    assert!(why.contains(what), "{why}")
                }
                other => panic!("{name} {ro}: {other:?}"),
            }
        }
    }
    assert!(refused(&dir.path().join("n".repeat(300)), &[]).contains("longer than"));
    assert!(refused(&dir.path().join("none"), &[]).contains("no such file"));
    assert!(refused(Path::new("disk"), &[]).contains("must begin with /"));
    assert!(refused(&path, &[("cache", "none")]).contains("direct or buffered"));
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(refused(&pipe, &[]).contains("a pipe"));
    File::create(&path).unwrap().set_len(511).unwrap();
    assert!(refused(&path, &[]).contains("less than a block"));
    let none = FileDisks::new().device(&spec(&[]), DeviceHost::unheard()).unwrap_err();
    assert!(none.to_string().contains("path FILE"), "{none}");
}

#[test]
fn what_a_file_system_cannot_do_is_found_out_when_the_file_is_opened() {
    let on_disk = dir(false);
    let ours = device(&disk_in(&on_disk), &[]).unwrap();
    assert_eq!(ours.note(), None);
    let in_memory = dir(true);
    let note = device(&disk_in(&in_memory), &[]).unwrap().note().unwrap_or_default();
    assert!(note.contains("no reads and writes that do not wait"), "{note}");
    assert!(note.contains("zeroes are written as data") && !note.contains("gives no space back"), "{note}");
}

#[test]
fn nobody_else_has_the_file_unless_both_only_read() {
    let dir = dir(false);
    let path = disk_in(&dir);
    let first = device(&path, &[]).unwrap();
    for words in [&[][..], &[("ro", "on")]] {
        match device(&path, words) {
            Err(DriverError::Conflict { held_by: Some(who), .. }) => {
                assert!(who.contains(&std::process::id().to_string()), "{who}");
            }
            other => panic!("{other:?}"),
        }
    }
    drop(first);
    // Of the same daemon it is named by its device, whatever path leads there.
    let mut disks = FileDisks::new();
    let mut named = |name: &str, path: &Path| {
        let words = spec(&[("path", path.to_str().unwrap())]);
        disks.device(&DeviceSpec { name: name.to_owned(), ..words }, DeviceHost::unheard())
    };
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let first = named("vm1", &path).unwrap();
    match named("vm2", &link) {
        Err(DriverError::Conflict { held_by, .. }) => assert_eq!(held_by.as_deref(), Some("device vm1")),
        other => panic!("{other:?}"),
    }
    drop(first);
    let reader = device(&path, &[("ro", "on")]).unwrap();
    let other = device(&path, &[("ro", "on")]).unwrap();
    assert!(device(&path, &[]).is_err());
    drop((reader, other));
    // What serves a queue has it, too.
    let mut first = device(&path, &[]).unwrap();
    let bed = Bed::new(Format::Split, F_FLUSH, &mut first);
    drop(first);
    assert!(device(&path, &[]).is_err());
    drop(bed);
    // The kernel lets go of it in a moment.
    wait_for(|| device(&path, &[]).is_ok());
}

#[test]
fn size_that_changes_is_told_and_one_that_shrinks_is_named() {
    let dir = dir(false);
    let path = disk_in(&dir);
    let host = DeviceHost::unheard();
    let mut device =
        FileDisks::new().device(&spec(&[("path", path.to_str().unwrap())]), host.clone()).unwrap();
    let capacity = |device: &mut BlockDevice<FileDisk>| {
        let mut bytes = [0; 8];
        device.config().read(0, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    assert_eq!(capacity(&mut device), DISK as u64 / 512);
    let file = File::options().write(true).open(&path).unwrap();
    for (bytes, sectors) in [(2 << 20, 4096), ((1 << 20) + 700, 2049)] {
        file.set_len(bytes).unwrap();
        let mut told = Vec::new();
        wait_for(|| {
            told.extend(host.take());
            told == [Upcall::ConfigChanged]
        });
        assert_eq!(capacity(&mut device), sectors);
    }
    assert!(note(&device).contains("smaller than the 2097152 bytes"), "{}", note(&device));
    let mut bed = Bed::new(Format::Split, F_FLUSH, &mut device);
    assert_eq!(bed.done(IN, 2048, &[], 512, &[]).0, 0);
    assert_eq!(bed.done(IN, 2049, &[], 512, &[]).0, 1);
}

#[test]
#[ignore = "needs qemu-io (qemu-utils)"]
fn neither_qemu_nor_we_open_what_the_other_has() {
    let dir = dir(false);
    let path = disk_in(&dir);
    let qemu = |options: &str| {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw", "-c", "read 0 512"]).args(options.split_whitespace()).arg(&path);
        let out = command.output().unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let mut ours = device(&path, &[]).unwrap();
    let bed = Bed::new(Format::Split, F_FLUSH, &mut ours);
    let (is_open, why) = qemu("");
    assert!(!is_open && why.contains("lock"), "{why}");
    drop((ours, bed));
    wait_for(|| qemu("").0);
    let reader = device(&path, &[("ro", "on")]).unwrap();
    assert!(!qemu("").0);
    assert!(qemu("-r").0, "both only read");
    drop(reader);
    // While it has it open.
    let mut theirs =
        Command::new("qemu-io").args(["-f", "raw", "-c", "sleep 60000"]).arg(&path).spawn().unwrap();
    let mut held_by = None;
    wait_for(|| match device(&path, &[]) {
        Err(DriverError::Conflict { held_by: who, .. }) => {
            held_by = who;
            true
        }
        _ => false,
    });
    theirs.kill().unwrap();
    theirs.wait().unwrap();
    assert!(held_by.is_some_and(|who| who.starts_with("qemu-io (pid")));
    wait_for(|| device(&path, &[]).is_ok());
}

/// A file system whose server can be stopped: QEMU's storage daemon, as long as it lives.
struct Server(std::process::Child);

impl Server {
    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(rustix::process::Signal::CONT);
        self.signal(rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs qemu-storage-daemon with FUSE exports, and /dev/fuse"]
fn file_that_hangs_is_given_up_and_nobody_has_it_before_it_answers() {
    use rustix::process::Signal;
    let dir = dir(false);
    let (path, shown) = (disk_in(&dir), dir.path().join("shown"));
    File::create(&shown).unwrap();
    let server = Command::new("qemu-storage-daemon")
        .arg("--blockdev")
        .arg(format!("driver=file,filename={},node-name=f,locking=off", path.display()))
        .arg("--export")
        .arg(format!("type=fuse,id=e,node-name=f,mountpoint={},writable=on", shown.display()))
        .spawn()
        .unwrap();
    let server = Server(server);
    wait_for(|| fs::metadata(&shown).is_ok_and(|facts| facts.len() == DISK as u64));
    let mut ours = device(&shown, &[("cache", "direct")]).unwrap();
    let health = ours.health().unwrap();
    let mut bed = Bed::new(Format::Split, F_FLUSH, &mut ours);
    assert_eq!(bed.done(OUT, 0, &[1; 4096], 0, &[]).0, 0);
    server.signal(Signal::STOP);
    let asked = bed.ask(1, OUT, 8, &[2; 4096], 0, &[]);
    let begun = Instant::now();
    for _ in 0..1000 {
        bed.poll();
    }
    assert!(!bed.pump.begin_stop() && bed.collect().is_empty());
    assert!(begun.elapsed() < Duration::from_secs(20), "the worker never waits");
    let what = health.under_way().unwrap();
    assert!(what.contains("1 requests under way, the oldest a write at sector 8"), "{what}");
    wait_for(|| health.words().is_some_and(|words| words.contains("it does not answer")));
    // The device is gone, and another guest's cannot begin before this one's write is done.
    let another = Bed::try_new(Format::Split, F_FLUSH, &mut ours).err().unwrap();
    assert!(another.to_string().contains("of the guest before"), "{another}");
    drop(ours);
    // Nobody waits for it: the guest may have been reset, and its memory be anything by now.
    let before = bed.all();
    bed.pump.give_up();
    assert!(!health.is_over());
    let begun = Instant::now();
    let mut disks = FileDisks::new();
    let words = spec(&[("path", shown.to_str().unwrap())]);
    let why = disks.device(&words, DeviceHost::unheard()).unwrap_err().to_string();
    assert!(begun.elapsed() < Duration::from_secs(20), "control never waits");
    assert!(why.contains("does not answer") || why.contains("in use as a disk"), "{why}");
    server.signal(Signal::CONT);
    wait_for(|| {
        bed.poll();
        bed.pump.stopped()
    });
    assert!(bed.all() == before && bed.collect().is_empty() && bed.status(&asked) == 0xff);
    assert_eq!(health.under_way(), None);
    drop(bed);
    wait_for(|| health.is_over());
    assert_eq!(fs::read(&path).unwrap()[4096..8192], [2; 4096]);
}
