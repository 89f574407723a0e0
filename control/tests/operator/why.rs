//! What keeps packets from a device: each cause brought about, named, and gone once it is mended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ringway_guest::frame::Addresses;
use ringway_guest::{Guest, GuestOptions};
use ringway_ring::queue::Format;
use ringway_vhost_user::frontend::Frontend;

use crate::front_ends::EmptyPair;
use crate::support::{Daemon, SOON, wait_for};

/// The causes that are named, the first of them first.
fn causes(daemon: &Daemon, name: &str) -> Vec<String> {
    let why = daemon.run(&format!("-j why {name}")).json();
    let causes = why["why"][name].as_array().unwrap().clone();
    assert!(causes.iter().all(|cause| !cause["says"].as_str().unwrap().is_empty()), "{causes:?}");
    causes.iter().map(|cause| cause["cause"].as_str().unwrap().to_owned()).collect()
}

/// Does something while a guest runs.
fn with_traffic<T>(guest: &mut Guest, done: impl FnOnce() -> T + Send) -> T
where
    T: Send,
{
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let said = done();
            stop.store(true, Ordering::Relaxed);
            said
        });
        while !stop.load(Ordering::Relaxed) && !asking.is_finished() {
            guest.turn(8).unwrap();
            thread::sleep(Duration::from_micros(500));
        }
        asking.join().unwrap()
    })
}

#[test]
fn each_step_from_the_socket_to_the_guest_is_named_until_it_is_made() {
    let daemon = Daemon::start();
    assert!(daemon.run("why vm0").bad(3).contains("vm0"));
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let said = daemon.run("why vm0").good();
    let expected = format!("vm0: no VMM is connected to vm0 at {}", daemon.socket("vm0").display());
    assert!(
        said.starts_with(&expected) && said.contains("and none was since it was added\n  try: start the VM"),
        "{said}"
    );

    let mut frontend = Frontend::connect(&daemon.socket("vm0"), SOON).unwrap();
    frontend.set_timeout(SOON);
    frontend.handshake().unwrap();
    wait_for("it is connected", || daemon.device("vm0")["state"] == "connected");
    let said = daemon.run("why vm0").good();
    assert!(
        said.contains(&format!("(pid {}) is connected and shares no memory yet", std::process::id())),
        "{said}"
    );
    assert_eq!(causes(&daemon, "vm0"), ["driver_not_up"]);

    let pair = EmptyPair::new(Format::Split);
    frontend.set_features(pair.features()).unwrap();
    pair.start(&mut frontend);
    frontend.set_status(15).unwrap();
    wait_for("memory is missing", || causes(&daemon, "vm0")[0] == "no_memory");
    pair.share(&mut frontend);
    wait_for("buffers are missing", || causes(&daemon, "vm0")[0] == "not_run");
    let said = daemon.run("why vm0").good();
    assert!(said.contains("no receive buffers posted yet\n  try: bring the interface up"), "{said}");
    pair.post();
    wait_for("nothing is missing", || causes(&daemon, "vm0") == ["idle"]);

    frontend.enable_ring(0, false).unwrap();
    wait_for("it is not enabled", || causes(&daemon, "vm0")[0] == "not_enabled");
    drop(frontend);
    wait_for("it waits", || daemon.device("vm0")["state"] == "waiting");
    assert!(daemon.run("why vm0").good().contains("; the last one left: "));
}

#[test]
fn traffic_that_flows_and_traffic_that_is_lost_are_told_apart() {
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let mut guest = Guest::connect(&daemon.socket("vm0"), GuestOptions::default()).unwrap();
    // On a machine that is busy with other tests the core may be taken away in between, and that is told first.
    with_traffic(&mut guest, || {
        wait_for("it flows", || {
            let said = daemon.run("why vm0").good();
            said.starts_with("vm0: nothing keeps frames from vm0: ") && !said.contains(" 0 from it")
        });
    });

    // Nobody at the other end.
    daemon.run("dev add name a mgmtdev link/l").good();
    let options = GuestOptions { addresses: Addresses::TO_ALL, ..GuestOptions::default() };
    let mut guest = Guest::connect(&daemon.socket("a"), options).unwrap();
    with_traffic(&mut guest, || {
        wait_for("it is named", || causes(&daemon, "a").iter().any(|cause| cause == "peer_down"));
    });

    // Another's address.
    daemon.run("dev add name s mgmtdev bridge/b spoofchk on mac 52:54:00:00:00:01").good();
    daemon.run("dev add name t mgmtdev bridge/b").good();
    let mut guest = Guest::connect(&daemon.socket("s"), options).unwrap();
    with_traffic(&mut guest, || {
        wait_for("it is named", || {
            let said = daemon.run("why s").good();
            said.contains("loses frames, ") && said.contains("the device's is 52:54:00:00:00:01")
        });
        wait_for("by its name", || causes(&daemon, "s").iter().any(|cause| cause == "spoofed_mac"));
    });
}

#[test]
fn what_could_not_be_made_or_broke_the_protocol_says_so() {
    let mut daemon = Daemon::start();
    daemon.terminate();
    let file = daemon.dir.join("r.toml");
    std::fs::write(&file, "[[device]]\nname = \"d\"\nmgmtdev = \"file\"\npath = \"/nonexistent/disk\"\n")
        .unwrap();
    daemon.start_again(&["--config", file.to_str().unwrap()]);
    assert_eq!(causes(&daemon, "d"), ["not_made"]);
    assert!(daemon.run("why d").good().contains("/nonexistent/disk"));
    daemon.run("dev add name vm0 mgmtdev sim/net mode client socket /nonexistent/vm.sock").good();
    let said = daemon.run("why vm0").good();
    assert!(said.contains("waits for a VMM that listens at /nonexistent/vm.sock"), "{said}");
}
