//! A run on functions: two children of a simulated NIC, which its embedded switch joins.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringway_bench::generator::{Generator, Load};
use ringway_bench::options::{PortOptions, Ring};
use ringway_control::operator::api::{DeviceEntry, MgmtEntry, PortEntry, PortState};
use ringway_control::subsystem::{Options, Subsystem};

/// Long enough for a round that nothing disturbs.
const SOON: Duration = Duration::from_secs(60);

fn port(sfnum: u32) -> PortEntry {
    PortEntry {
        mgmtdev: "simnic/n".to_owned(),
        flavour: "pcisf".to_owned(),
        pfnum: 0,
        sfnum,
        state: PortState::Active,
        attributes: BTreeMap::new(),
    }
}

#[test]
fn frames_between_two_functions_are_accounted_for() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let device = |sfnum: u32| DeviceEntry {
        name: format!("f{sfnum}"),
        mgmtdev: format!("auxiliary/simnic.n.sf.{sfnum}"),
        ..DeviceEntry::default()
    };
    let named = vec![MgmtEntry { name: "simnic/n".to_owned(), ..MgmtEntry::default() }];
    let (ports, devices) = (vec![port(1), port(2)], vec![device(1), device(2)]);
    let options = Options { named, ports, devices, ..Options::embedded(folder.path()) };
    let subsystem = Subsystem::start(options).unwrap();
    let sockets = [1, 2].map(|sfnum| folder.path().join(format!("dev/f{sfnum}.sock")));
    for ring in Ring::ALL {
        let options = PortOptions { ring, ..PortOptions::default() };
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        let core = (0..1024).find(|core| allowed.is_set(*core)).unwrap();
        let mut generator = Generator::open(&sockets, &options, &[core]).unwrap();
        let begun = Instant::now();
        // A machine that has others to serve may give the generator or the switch no time in one round.
        loop {
            let counts = generator.round(Load::Closed, Duration::from_millis(200)).unwrap().counts;
            assert_eq!((counts.corrupt, counts.duplicated, counts.reordered), (0, 0, 0), "{counts:?}");
            // A switch presses nobody back: what a port cannot take meanwhile is lost, and counted.
            if counts.received > 1000 && counts.lost < counts.sent / 10 {
                break;
            }
            assert!(begun.elapsed() < SOON, "{counts:?}");
        }
        generator.close().unwrap();
    }
    drop(subsystem);
}
