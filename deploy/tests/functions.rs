//! Linux guests on functions of hardware that is divided: a simulated NIC's, with the host at its uplink.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use ringway_lab::daemon::Daemon;
use ringway_lab::ensure;
use ringway_lab::error::Result;
use ringway_lab::lab::Lab;
use ringway_lab::netns::Netns;
use ringway_lab::qemu::{Boot, Guest, Nic};

/// What the parent's removal may take, in times of an unused device's.
const REMOVED: u32 = 20;

const fn host(network: u8, number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 77, network, number))
}

/// Adds function `number` and makes it active.
fn make_function(daemon: &Daemon, number: u8) -> Result<()> {
    let (sfnum, port) = (number.to_string(), format!("simnic/nic0/{number}"));
    daemon.ctl(&["port", "add", "simnic/nic0", "flavour", "pcisf", "pfnum", "0", "sfnum", &sfnum])?;
    daemon.ctl(&["port", "function", "set", &port, "state", "active"]).map(drop)
}

#[test]
#[ignore = "needs QEMU >= 8, the 6.12 guest kernel and root: run deploy/test"]
fn functions_carry_pings_until_their_parent_goes_and_again_when_it_is_back() {
    Lab::run("functions", |lab| {
        let wire = Netns::new("wire")?;
        let mut daemon = Daemon::start(lab, &[])?;
        daemon.ctl(&["mgmtdev", "add", "name", "simnic/nic0"])?;
        let uplink = ["tap", "rwu0", "netns", wire.name()];
        daemon.add_to("simnic/nic0", "up0", &uplink)?;
        let nic = |number: u8| Nic::new(number, daemon.socket(&format!("vm{number}")));
        // A function for each guest, the second with packed rings, and a bridge beside the NIC.
        let nics = [[nic(1), nic(11)], [nic(2).packed(true), nic(12)]];
        for (number, [function, beside]) in (1u8..).zip(&nics) {
            make_function(&daemon, number)?;
            let mgmtdev = format!("auxiliary/simnic.nic0.sf.{number}");
            daemon.add_to(&mgmtdev, &format!("vm{number}"), &["mac", &function.mac])?;
            daemon.add_to("bridge/b", &format!("vm1{number}"), &["mac", &beside.mac])?;
        }
        let first = Guest::begin(lab, "first", Boot::new(1), &nics[0])?;
        let second = Guest::begin(lab, "second", Boot::new(1), &nics[1])?;
        let mut guests = [first.wait_until_up(lab)?, second.wait_until_up(lab)?];
        for (number, (guest, [function, beside])) in (1u8..).zip(guests.iter_mut().zip(&nics)) {
            for (nic, network) in [(function, 1), (beside, 2)] {
                guest.add_address(&nic.mac, &format!("{}/24", host(network, number)))?;
                guest.link_up(&nic.mac)?;
            }
        }
        let mut outside = wire.station(lab, "wire")?;
        outside.add_address("rwu0", &format!("{}/24", host(1, 9)))?;
        outside.link_up("rwu0")?;
        let [first, second] = &mut guests;
        // From function to function, from the wire to a function, and beside the NIC.
        for to in [host(1, 2), host(1, 9), host(2, 2)] {
            first.start_pulse(to, 10)?;
            first.pulse_resumed(to, 20, Instant::now())?;
        }

        let pace = daemon.pace()?;
        let begun = Instant::now();
        daemon.ctl(&["mgmtdev", "del", "simnic/nic0"])?;
        pace.allows("the parent's removal", REMOVED, begun.elapsed())?;
        let shown = daemon.json(&["dev", "show"])?;
        for device in ["vm1", "vm2"] {
            ensure!(shown["absent"][device].is_string(), "{device} is not gone: {shown}");
        }
        first.link_lost(&nics[0][0].mac)?;
        second.link_lost(&nics[1][0].mac)?;
        first.pulse_stalled(host(1, 2))?;
        let before = first.pulse(host(2, 2))?.received;
        first.pulse_resumed(host(2, 2), before + 20, Instant::now())?;

        // Another NIC of that name: the guests' devices come back by themselves, its uplink by its operator.
        let added = Instant::now();
        daemon.ctl(&["mgmtdev", "add", "name", "simnic/nic0"])?;
        make_function(&daemon, 1)?;
        make_function(&daemon, 2)?;
        daemon.add_to("simnic/nic0", "up0", &uplink)?;
        let before = first.pulse(host(1, 2))?.received;
        let took = first.pulse_resumed(host(1, 2), before + 20, added)?;
        lab.say(format_args!("functions made again: replies after {} ms", took.as_millis()));
        outside.add_address("rwu0", &format!("{}/24", host(1, 9)))?;
        outside.link_up("rwu0")?;
        let before = first.pulse(host(1, 9))?.received;
        first.pulse_resumed(host(1, 9), before + 20, Instant::now())?;
        for device in ["vm1", "vm2", "vm11", "vm12"] {
            let stats = daemon.stats(device)?;
            ensure!(stats.faults() == 0, "{device}: {stats:?}");
        }
        let [first, second] = guests;
        first.power_off()?;
        second.power_off()?;
        daemon.check()?;
        daemon.terminate()
    });
}
