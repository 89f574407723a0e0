use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;

use rustix::fs::MemfdFlags;

use super::*;
use crate::guest::{GuestMap, LastHit, Region, RegionSpec};

const PAGE: usize = 4096;

fn memfd(size: usize) -> OwnedFd {
    let file = rustix::fs::memfd_create("sigbus-test", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, size as u64).unwrap();
    file
}

fn map_of(file: &OwnedFd, gpa: u64, size: usize) -> GuestMap {
    let file = file.try_clone().unwrap();
    let spec = RegionSpec { gpa, size: size as u64, user_addr: gpa, file_offset: 0, file };
    GuestMap::new(vec![Region::map(spec).unwrap()]).unwrap()
}

/// Runs `body` in a forked child, which may only make system calls, and returns the status that it ended with.
fn status_of_child(body: impl FnOnce()) -> c_int {
    // SAFETY: the child makes system calls and ends by a signal or `_exit`, without unwinding into the test harness.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &none);
            body();
            libc::_exit(0);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        status
    }
}

#[test]
fn truncated_region_is_poisoned_and_the_process_lives() {
    let file = memfd(4 * PAGE);
    let map = map_of(&file, 0, 4 * PAGE);
    let whole = map.lookup(&mut LastHit::default(), 0, 4 * PAGE as u32).unwrap();
    whole.write(&[7; 4 * PAGE]);
    assert!(!map.is_poisoned());
    let before = contained_faults();

    rustix::fs::ftruncate(&file, PAGE as u64).unwrap();
    let mut back = [1; 4 * PAGE];
    assert_eq!(whole.read(&mut back), 4 * PAGE);

    assert!(map.is_poisoned());
    assert!(map.regions()[0].is_poisoned());
    assert!(contained_faults() >= before + 3);
    assert_eq!(back[..PAGE], [7; PAGE], "the page that was left");
    assert_eq!(back[PAGE..], [0; 3 * PAGE], "the pages that were not");
    // Writes go nowhere that matters, and do not fault again.
    assert_eq!(whole.write(&[9; 4 * PAGE]), 4 * PAGE);
}

#[test]
fn write_into_a_truncated_region_is_contained() {
    let file = memfd(PAGE);
    let map = map_of(&file, 0, PAGE);
    rustix::fs::ftruncate(&file, 0).unwrap();
    map.resolve(0, 8).unwrap().write(&[1; 8]);
    assert!(map.is_poisoned());
}

#[test]
fn only_the_truncated_one_of_two_maps_is_poisoned() {
    let (file, other_file) = (memfd(PAGE), memfd(PAGE));
    let (map, other) = (map_of(&file, 0, PAGE), map_of(&other_file, 0, PAGE));
    rustix::fs::ftruncate(&file, 0).unwrap();
    map.resolve(0, 1).unwrap().read(&mut [0]);
    other.resolve(0, 1).unwrap().read(&mut [0]);
    assert!(map.is_poisoned());
    assert!(!other.is_poisoned());
}

#[test]
fn poison_shows_in_every_map_that_shares_the_region() {
    let file = memfd(PAGE);
    let map = map_of(&file, 0, PAGE);
    let more = map.with(map_of(&memfd(PAGE), 0x10000, PAGE).regions()[0].clone()).unwrap();
    assert!(!more.is_poisoned());
    rustix::fs::ftruncate(&file, 0).unwrap();
    more.resolve(0, 1).unwrap().read(&mut [0]);
    assert!(map.is_poisoned());
    assert!(more.is_poisoned());
    assert!(!more.without(0, 0, PAGE as u64).unwrap().is_poisoned());
}

#[test]
fn slot_of_a_dropped_poisoned_region_is_clean_for_the_next() {
    let file = memfd(PAGE);
    let map = map_of(&file, 0, PAGE);
    rustix::fs::ftruncate(&file, 0).unwrap();
    map.resolve(0, 1).unwrap().read(&mut [0]);
    assert!(map.is_poisoned());
    drop(map);
    // Whichever of them takes the slot.
    let files: Vec<_> = (0..8).map(|_| memfd(PAGE)).collect();
    assert!(files.iter().map(|file| map_of(file, 0, PAGE)).all(|map| !map.is_poisoned()));
}

#[test]
fn regions_mapped_and_dropped_while_another_faults_confuse_nobody() {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = memfd(PAGE);
            while !stop.load(Ordering::Relaxed) {
                let map = map_of(&file, 0, PAGE);
                map.resolve(0, 1).unwrap().write(&[1]);
                assert!(!map.is_poisoned());
            }
        });
        for _ in 0..200 {
            let file = memfd(16 * PAGE);
            let map = map_of(&file, 0, 16 * PAGE);
            rustix::fs::ftruncate(&file, 0).unwrap();
            map.resolve(0, 16 * PAGE as u64).unwrap().read(&mut [0; 16 * PAGE]);
            assert!(map.is_poisoned());
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn fault_at_an_unknown_address_still_kills() {
    let installed = map_of(&memfd(PAGE), 0, PAGE);
    let file = memfd(PAGE);
    // SAFETY: a fresh mapping that nothing else points to.
    let page = unsafe {
        rustix::mm::mmap(
            ptr::null_mut(),
            PAGE,
            rustix::mm::ProtFlags::READ,
            rustix::mm::MapFlags::SHARED,
            file.as_fd(),
            0,
        )
        .unwrap()
    };
    rustix::fs::ftruncate(&file, 0).unwrap();
    let status = status_of_child(|| {
        // SAFETY: mapped, though without a file behind: this is the fault.
        unsafe { page.cast::<u8>().read_volatile() };
    });
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS, "status {status:#x}");
    drop(installed);
}

#[test]
fn known_fault_in_the_same_child_does_not_kill() {
    // The counterpart of the test above: what it forks is able to contain.
    let file = memfd(PAGE);
    let map = map_of(&file, 0, PAGE);
    let slice = map.resolve(0, 1).unwrap();
    rustix::fs::ftruncate(&file, 0).unwrap();
    let status = status_of_child(|| {
        slice.read(&mut [0]);
    });
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "status {status:#x}");
    assert!(!map.is_poisoned(), "only the child touched it");
}

#[test]
fn sigbus_sent_by_a_process_still_kills() {
    let installed = map_of(&memfd(PAGE), 0, PAGE);
    let status = status_of_child(|| {
        // SAFETY: a signal to the child itself.
        unsafe { libc::kill(libc::getpid(), libc::SIGBUS) };
    });
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS, "status {status:#x}");
    drop(installed);
}

#[test]
fn only_signals_of_an_access_are_contained() {
    for code in [libc::BUS_ADRERR, libc::BUS_MCEERR_AR] {
        assert!(is_of_an_access(code), "{code}");
    }
    for code in [libc::BUS_ADRALN, libc::BUS_OBJERR, libc::BUS_MCEERR_AO, libc::SI_USER, libc::SI_QUEUE, 0x80]
    {
        assert!(!is_of_an_access(code), "{code}");
    }
}
