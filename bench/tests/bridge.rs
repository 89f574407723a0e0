//! Open vSwitch as a peer: that its ports come to the generator's sockets, and that it is a switch.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::time::{Duration, Instant};

use ringway_bench::backend::Ovs;
use ringway_bench::generator::{Generator, Load};
use ringway_bench::options::{PortOptions, Ring};

#[test]
#[ignore = "needs Open vSwitch on DPDK: run deploy/test"]
fn frames_of_every_port_of_a_peer_come_to_their_neighbour_and_nobody_else() {
    let cores = cores();
    let (own, its) = (cores[0], *cores.last().unwrap());
    let mut ovs = Ovs::start(4, its, own).unwrap();
    let options = PortOptions { ring: Ring::Split, window: Some(64), listen: true, ..PortOptions::default() };
    let mut generator = Generator::open(ovs.sockets(), &options, &[own]).unwrap();
    // Two pairs, then one port alone.
    for talkers in [4, 1] {
        generator.introduce(talkers).unwrap();
        let begun = Instant::now();
        loop {
            let counts = generator.round(Load::Closed, Duration::from_millis(200)).unwrap().counts;
            assert_eq!(counts.corrupt, 0, "{counts:?}");
            // It floods what it has forgotten or not heard of yet, as it may when it has no core for a while.
            if counts.received > 1000 && counts.lost < counts.sent / 10 && counts.duplicated == 0 {
                break;
            }
            assert!(begun.elapsed() < SOON, "{counts:?}");
        }
    }
    generator.close().unwrap();
    assert!(ovs.is_alive(), "it ended");
}

/// Those that this process may run on.
fn cores() -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    (0..1024).filter(|core| allowed.is_set(*core)).collect()
}

/// Long enough for a round that nothing disturbs.
const SOON: Duration = Duration::from_secs(60);
