//! Frames that do not pass plainly allocate nothing on their worker either, and make no system call but those that a kernel's
//! interface needs: offloads handed on and carried out here, large frames that are cut up, frames that are dropped for every
//! reason, a TAP. Proved by a counting allocator and a seccomp filter that kills, as for plain traffic in the steady state;
//! a planted allocation and a planted call are caught.

use std::os::fd::BorrowedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};

use ringway_engine::{Armed, Budget, Polled, Pump};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use super::allocations;
use super::scene::in_own_namespace;
use super::taps::Wire;
use super::*;

/// A pump beside the one under test: when told, it watches its worker's thread, and commits what the case plants.
struct Sentinel {
    watch: Arc<AtomicBool>,
    watching: Arc<AtomicBool>,
    case: String,
}

impl Pump for Sentinel {
    fn poll(&mut self, _: &Budget, _: u64) -> Polled {
        if self.watch.load(Ordering::Acquire) && !self.watching.load(Ordering::Relaxed) {
            deny_system_calls(self.case == "tap");
            allocations::watch();
            match self.case.as_str() {
                "planted allocation" => drop(std::hint::black_box(Box::new(7u64))),
                "planted call" => drop(rustix::process::getppid()),
                _ => {}
            }
            self.watching.store(true, Ordering::Release);
        }
        Polled::Moved(1)
    }
    fn arm(&mut self) -> Armed {
        Armed::HasWork
    }
    fn disarm(&mut self) {}
    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

/// Whatever this thread asks of the kernel from now on kills the process, but for entries into its io_urings.
fn deny_system_calls(but_io_uring: bool) {
    const IO_URING_ENTER: i64 = 426;
    let allowed = but_io_uring.then_some((IO_URING_ENTER, Vec::new())).into_iter().collect();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(allowed, SeccompAction::KillProcess, SeccompAction::Allow, arch);
    let filter = if but_io_uring {
        filter
    } else {
        SeccompFilter::new(Default::default(), SeccompAction::KillProcess, SeccompAction::Allow, arch)
    };
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// One that polls, and whose clock runs so slowly that nothing ever seems idle: a direction without frames is not armed.
fn steady_engine() -> Engine {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let core = (0..1024).rev().find(|core| allowed.is_set(*core)).unwrap();
    let clock = Clock { cycles: || tsc::cycles() >> 24, hertz: tsc::hertz() };
    Engine::start(EngineConfig { cores: vec![core], idle: IdlePolicy::Poll, clock }).unwrap()
}

/// The child: rounds of traffic until all was seen once, then as many under watch. Exits with the number of allocations
/// (100 at most), or is killed.
fn child(case: &str) -> ! {
    if case == "tap" {
        in_own_namespace(|| serve(case));
        // Not without the rights for it.
        std::process::exit(0);
    }
    serve(case)
}

fn serve(case: &str) -> ! {
    let engine = steady_engine();
    let mut wire = (case == "tap").then(|| Wire::new(&engine));
    let mut joined = if case == "dropped" { bridge(&engine) } else { link() };
    let large_buffers = Setup { features: LARGE, buffer: 4096, ..Setup::default() };
    let (sends, takes) = match case {
        "handed on" => (large_buffers, large_buffers),
        "dropped" => (
            Setup { spoofchk: true, flood_pps: Some("1"), ..large_buffers },
            Setup { mtu: 1400, ..Setup::default() },
        ),
        _ => (large_buffers, Setup::default()),
    };
    let mgmtdev = wire.as_mut().map_or(&mut joined, |wire| &mut wire.mgmtdev);
    let mut a = Nic::new(&mut **mgmtdev, "a", sends, &engine);
    a.start(1);
    let mut b = wire.is_none().then(|| Nic::new(&mut *joined, "b", takes, &engine));
    if let Some(b) = &mut b {
        b.start(1);
    }
    let (watch, watching) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let sentinel =
        Sentinel { watch: Arc::clone(&watch), watching: Arc::clone(&watching), case: case.to_owned() };
    let _placed = engine.place(engine.cores()[0], "sentinel", Box::new(sentinel), Arc::new(Nobody)).unwrap();
    for is_watched in [false, true] {
        if is_watched {
            watch.store(true, Ordering::Release);
            while !watching.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
        }
        for _ in 0..100 {
            round(case, &mut a, b.as_mut(), wire.as_mut());
        }
    }
    let seen = |reason| a.drops(1, reason) + b.as_ref().map_or(0, |b| b.drops(0, reason));
    if case == "dropped" {
        for reason in [
            DropReason::SpoofedMac,
            DropReason::BadOffload,
            DropReason::ReservedAddress,
            DropReason::SamePort,
            DropReason::FloodLimit,
            DropReason::Oversize,
            DropReason::RxOversize,
            DropReason::NoRxBuffer,
        ] {
            assert!(seen(reason) >= 200, "{reason:?}: {:?} {:?}", a.stats(1), b.as_ref().map(|b| b.stats(0)));
        }
    }
    if case == "carried out" {
        let stats = b.as_ref().unwrap().stats(0);
        assert!(stats.segmented >= 200 && stats.checksums >= 200, "{stats:?}");
    }
    std::process::exit(allocations::calls().min(100) as i32)
}

/// What one round of a case sends, and waits for.
fn round(case: &str, a: &mut Nic, b: Option<&mut Nic>, wire: Option<&mut Wire>) {
    let to = b.as_ref().map_or(Mac([0xff; 6]), |b| b.mac);
    let own = a.mac;
    let (cut, claim) = large(to, own, 3000, 1000);
    let done = a.stats(1).completed_desc;
    let deadline = Instant::now() + SOON;
    let wait = |a: &Nic, frames: u64| {
        while a.stats(1).completed_desc < done + frames {
            assert!(Instant::now() < deadline, "{:?}", a.stats(1));
        }
    };
    // A checksum alone: one segment.
    let (small, small_claim) = large(to, own, 500, 1000);
    let one = NetHeader::from_bytes(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]);
    debug_assert!(small_claim.needs_head());
    let Some(b) = b else {
        a.send(0, claim, &cut);
        a.send(0, one, &small);
        a.send_plain(0, &frame(to, own, 60, 1));
        wait(a, 3);
        wire.unwrap().sent_on();
        return;
    };
    if case != "dropped" {
        b.post(0, 16usize.saturating_sub(b.posted[0].len()));
        a.send(0, claim, &cut);
        a.send(0, one, &small);
        a.send_plain(0, &frame(to, own, 60, 1));
        wait(a, 3);
        b.received(0);
        return;
    }
    // `b` has been heard of.
    b.send_plain(0, &frame(own, to, 60, 1));
    let heard = b.stats(1).completed_desc;
    while b.stats(1).completed_desc == 0 && heard == 0 {
        assert!(Instant::now() < deadline);
    }
    b.received(0);
    let lie = [&cut[..12], &[0x86, 0xdd], &cut[14..]].concat();
    a.send(0, claim, &lie);
    a.send_plain(0, &frame(to, FALSE, 60, 1));
    a.send_plain(0, &frame(Mac([0x01, 0x80, 0xc2, 0, 0, 1]), own, 60, 1));
    a.send_plain(0, &frame(own, own, 60, 1));
    (0..40).for_each(|_| a.send_plain(0, &frame(Mac([0xff; 6]), own, 60, 1)));
    a.send_plain(0, &frame(to, own, 9000, 1));
    a.send_plain(0, &frame(to, own, 1500, 1));
    a.send_plain(0, &frame(to, own, 60, 1));
    wait(a, 47);
}

const FALSE: Mac = Mac([2, 0, 0, 0, 0, 0x66]);
const LARGE: Features = Features(
    Features::VERSION_1.0 | F_MRG_RXBUF.0 | F_CSUM.0 | F_GUEST_CSUM.0 | F_HOST_TSO4.0 | F_GUEST_TSO4.0,
);
const CASE: &str = "RINGWAY_TEST_QUIET_CASE";

/// Runs one case in a process of its own, since what the filter kills is the process.
fn run_case(case: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "quiet::case_in_a_process_of_its_own", "--nocapture"])
        .env(CASE, case)
        .status()
        .unwrap()
}

/// Not a test by itself: what the others start.
#[test]
fn case_in_a_process_of_its_own() {
    let Ok(case) = std::env::var(CASE) else { return };
    child(&case)
}

#[test]
fn offloads_segments_and_drops_allocate_nothing_and_make_no_system_call() {
    for case in ["handed on", "carried out", "dropped"] {
        assert_eq!(run_case(case).code(), Some(0), "{case}");
    }
}

#[test]
fn tap_allocates_nothing_and_makes_no_system_call_but_its_own() {
    assert_eq!(run_case("tap").code(), Some(0));
}

#[test]
fn planted_allocation_and_call_are_caught() {
    assert_eq!(run_case("planted allocation").code(), Some(2), "one allocation and its release");
    assert_eq!(run_case("planted call").signal(), Some(31), "SIGSYS");
}
