//! DPDK's testpmd as a back-end that tells what it spent, and as a driver, beside each other.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::time::Duration;

use ringway_bench::backend::{Backend, Testpmd, Wanted};
use ringway_bench::driver::{DriverOptions, DriverPath, VirtioUser};
use ringway_bench::generator::{Generator, Load};
use ringway_bench::options::{Job, PortOptions, Ring, Touch};

#[test]
#[ignore = "needs dpdk-testpmd: run deploy/test"]
fn a_peer_tells_what_it_spent_and_goes_on_after_it_was_stopped() {
    let mut peer = peer(Job::Loopback);
    assert_eq!(peer.busy().unwrap(), None, "it has moved nothing");
    for touch in [Touch::None, Touch::Header] {
        let options = PortOptions { touch, ..PortOptions::default() };
        let mut generator = Generator::open(&peer.sockets(), &options, &[cores()[0]]).unwrap();
        for _ in 0..2 {
            let before = peer.busy().unwrap().unwrap_or_default();
            let round = generator.round(Load::Closed, Duration::from_millis(200)).unwrap();
            assert_eq!((round.counts.corrupt, round.counts.duplicated), (0, 0), "{round:?}");
            let spent = peer.busy().unwrap().unwrap().since(&before).unwrap();
            assert!(round.counts.received > 10_000 && spent.cycles_per_packet > 10.0, "{spent:?}");
            assert!((1.0..=32.0).contains(&spent.packets_per_burst), "{spent:?}");
            peer.pause().unwrap();
            peer.proceed().unwrap();
        }
        generator.close().unwrap();
    }
}

#[test]
#[ignore = "needs dpdk-testpmd: run deploy/test"]
fn dpdks_driver_moves_frames_by_each_of_its_paths() {
    for (job, ring, path, told) in [
        (Job::Loopback, Ring::Split, DriverPath::InOrderMergeable, "inorder"),
        (Job::Link, Ring::Packed, DriverPath::Mergeable, "packed"),
    ] {
        let peer = peer(job);
        let options =
            DriverOptions { program: None, ring, path, queue_size: 256, frame: 64, core: cores()[0] };
        let mut driver = VirtioUser::open(&peer.sockets(), &options).unwrap();
        assert!(driver.paths().iter().any(|path| path.contains(told)), "{:?}", driver.paths());
        for _ in 0..2 {
            let round = driver.round(Duration::from_millis(300)).unwrap();
            assert!(round.counts.received > 1_000 && round.mpps > 0.0, "{round:?}");
        }
    }
}

fn peer(job: Job) -> Backend {
    let cores = cores();
    let wanted = Wanted {
        program: None,
        job,
        core: *cores.last().unwrap(),
        main_core: cores[0],
        queue_size: 256,
        max_frame: 64,
        pairs: 1,
    };
    Backend::Dpdk(Testpmd::start(wanted).unwrap())
}

/// Those that this process may run on.
fn cores() -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    (0..1024).filter(|core| allowed.is_set(*core)).collect()
}
