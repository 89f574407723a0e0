//! Hardware that is divided: ports as operators make, see, change, keep and remove them, and what becomes of their devices.

use std::time::Instant;

use ringway_guest::frame::Addresses;
use ringway_guest::{Guest, GuestOptions};
use serde_json::json;

use crate::support::{Daemon, SOON, put_in_place, wait_for};

const CHILD: &str = "auxiliary/simnic.nic0.sf";

/// A daemon with `simnic/nic0`.
fn with_nic(attributes: &str) -> Daemon {
    let daemon = Daemon::start();
    daemon.run(&format!("mgmtdev add name simnic/nic0 {attributes}")).good();
    daemon
}

/// An active function with a device named as it.
fn function(daemon: &Daemon, number: u32) {
    daemon.run(&format!("port add simnic/nic0 flavour pcisf pfnum 0 sfnum {number}")).good();
    daemon.run(&format!("port function set simnic/nic0/{number} state active")).good();
    daemon
        .run(&format!("dev add name f{number} mgmtdev {CHILD}.{number} mac 52:54:00:00:00:0{number}"))
        .good();
}

/// A guest on a device, sending to another one's address.
fn guest(daemon: &Daemon, name: &str, own: u8, to: u8) -> Guest {
    let addresses = Addresses { from: [0x52, 0x54, 0, 0, 0, own], to: [0x52, 0x54, 0, 0, 0, to] };
    let options = GuestOptions { addresses, window: Some(64), ..GuestOptions::default() };
    Guest::connect(&daemon.socket(name), options).unwrap()
}

/// Traffic until each has received so many frames more.
fn exchange(guests: &mut [&mut Guest], frames: u64) {
    let begun = Instant::now();
    let wanted: Vec<u64> = guests.iter().map(|guest| guest.stats().received + frames).collect();
    while guests.iter().zip(&wanted).any(|(guest, wanted)| guest.stats().received < *wanted) {
        for guest in &mut *guests {
            guest.turn(16).unwrap();
        }
        assert!(begun.elapsed() < SOON, "{:?}", guests.iter().map(|guest| guest.stats()).collect::<Vec<_>>());
    }
    for guest in guests {
        assert_eq!(guest.stats().corrupt, 0);
    }
}

#[test]
fn functions_of_one_nic_and_its_uplink_see_each_other() {
    let daemon = with_nic("");
    function(&daemon, 1);
    function(&daemon, 2);
    daemon.run("dev add name up mgmtdev simnic/nic0 mac 52:54:00:00:00:09").good();
    let (mut one, mut two) = (guest(&daemon, "f1", 1, 2), guest(&daemon, "f2", 2, 1));
    exchange(&mut [&mut one, &mut two], 500);
    drop(two);
    wait_for("f2 to be free", || daemon.device("f2")["state"] == "waiting");
    drop(one);
    wait_for("f1 to be free", || daemon.device("f1")["state"] == "waiting");
    let (mut one, mut up) = (guest(&daemon, "f1", 1, 9), guest(&daemon, "up", 9, 1));
    exchange(&mut [&mut one, &mut up], 500);
    // The switch knows who is where, whichever management device made it.
    wait_for("the switch to tell", || {
        let shown = daemon.run("mgmtdev show simnic/nic0").good();
        shown.contains("station 52:54:00:00:00:01 dev f1")
            && shown.contains("station 52:54:00:00:00:09 dev up")
    });
}

#[test]
fn port_is_a_share_then_a_management_device_then_a_device() {
    let daemon = with_nic("queues 4");
    let added = daemon.run("port add simnic/nic0 flavour pcisf pfnum 0 sfnum 88").good();
    assert!(added.starts_with(
        "simnic/nic0/88: flavour pcisf pfnum 0 sfnum 88\n  function:\n    state inactive opstate detached"
    ));
    daemon.run(&format!("dev add name v mgmtdev {CHILD}.88")).bad(3);
    daemon.run("port function set simnic/nic0/88 hw_addr 52:54:00:00:88:88 max_io_eqs 3").good();
    let set = daemon.run("-j port function set simnic/nic0/88 state active").json();
    let function = json!({
        "state": "active", "opstate": "attached", "hw_addr": "52:54:00:00:88:88", "max_io_eqs": 3 });
    assert_eq!(set["port"]["simnic/nic0/88"]["function"], function);
    assert_eq!(set["port"]["simnic/nic0/88"]["mgmtdev"], format!("{CHILD}.88"));
    let shown = daemon.run("-j mgmtdev show").json();
    assert_eq!(shown["mgmtdev"][format!("{CHILD}.88")]["max_supported_vqs"], 6);
    assert_eq!(shown["mgmtdev"]["simnic/nic0"]["ports"], json!(["simnic/nic0/88"]));
    daemon.run(&format!("dev add name v mgmtdev {CHILD}.88 max_vqp 3")).good();
    assert_eq!(daemon.device("v")["provisioned"]["mac"], "52:54:00:00:88:88");
    let shown = daemon.run("port show").good();
    assert!(
        shown.contains("max_io_eqs 3\n  mgmtdev auxiliary/simnic.nic0.sf.88 origin operator devices v\n"),
        "{shown}"
    );
    for line in ["port", "port list", "port show simnic/nic0", "port show simnic/nic0/88"] {
        assert_eq!(daemon.run(line).good(), shown, "{line}");
    }
    // Inactive, the device is gone and the share still taken; active, the device is there again.
    daemon.run("port function set simnic/nic0/88 state inactive").good();
    assert!(daemon.run("dev show v").bad(3).contains("v: not made"));
    let gone = daemon.run("events --once --since 0 --type dev.gone").good();
    assert!(gone.contains("the function was made inactive"), "{gone}");
    daemon.run("port add simnic/nic0 sfnum 1").good();
    daemon.run("port function set simnic/nic0/88 max_io_eqs 2 state active").good();
    wait_for("the device's refusal", || {
        daemon.run("dev show").good().contains("v: not made: max_vqp 3 needs 6 queues")
    });
    // What it lacked before is not what it waits for, however often it was tried since.
    let told = || daemon.run("dev show v").bad(3);
    daemon.run("port function set simnic/nic0/88 state inactive").good();
    let inactive = format!("{CHILD}.88 is gone: the function was made inactive");
    assert!(told().contains(&inactive), "{}", told());
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert!(told().contains(&inactive), "{}", told());
    daemon.run("dev del v").good();
    let deleted = daemon.run("-j port del simnic/nic0/88").json();
    assert_eq!(deleted, json!({ "deleted": "simnic/nic0/88", "devices": [] }));
    let left = daemon.run("-j port show").json();
    assert_eq!(left["port"].as_object().unwrap().keys().collect::<Vec<_>>(), ["simnic/nic0/1"]);
    let events = daemon.run("events --once --since 0 --type port").good();
    for kind in ["port.added", "port.changed", "port.removed"] {
        assert!(events.contains(kind), "{events}");
    }
}

#[test]
fn what_cannot_be_is_refused_with_cause_holder_and_cure() {
    let daemon = with_nic("queues 2");
    daemon.run("port add simnic/nic0 sfnum 1").good();
    daemon.run("port function set simnic/nic0/1 state active").good();
    daemon.run("port add simnic/nic0 sfnum 2").good();
    for (line, code, said) in [
        ("port add simnic/nic1 sfnum 3", 3, "ringway mgmtdev add name simnic/nic1"),
        ("port add simnick/nic0 sfnum 3", 3, "did you mean simnic/nic0?"),
        ("port add sim/net sfnum 3", 2, "sim/net cannot be divided"),
        ("port add bridge/b sfnum 3", 2, "bridge/b cannot be divided"),
        ("port add simnic/nic0 sfnum 1", 4, "held by: port simnic/nic0/1"),
        ("port add simnic/nic0 sfnum 3", 4, "held by: simnic/nic0/1 (1), simnic/nic0/2 (1)"),
        ("port add simnic/nic0 pfnum 1 sfnum 3", 3, "has no pfnum 1"),
        ("port add simnic/nic0 flavour pcivf sfnum 3", 2, "flavour pcisf"),
        ("port add simnic/nic0", 2, "sfnum N, your choice"),
        ("port add simnic/nic0 sfnum x", 2, "sfnum `x` is not a whole number"),
        ("port add simnic/nic0 sfnmu 3", 2, "did you mean sfnum?"),
        ("port function set simnic/nic0/1", 2, "nothing to set"),
        ("port function set simnic/nic0/7 state active", 3, "there is no port `simnic/nic0/7`"),
        ("port function set simnic/nic0/2 state on", 2, "state active, or state inactive"),
        ("port function set simnic/nic0/2 hw_adr 52:54:00:00:00:01", 2, "did you mean hw_addr?"),
        ("port function set simnic/nic0/2 hw_addr 01:00:5e:00:00:01", 2, "is a group address"),
        ("port function set simnic/nic0/2 max_io_eqs 17", 2, "must be 1 to 16"),
        ("port function set simnic/nic0/2 max_io_eqs 2", 4, "has 1 of 2 queue pairs left, not 2"),
        ("port function set simnic/nic0/1 hw_addr 52:54:00:00:00:01", 4, "state inactive"),
        ("port del simnic/nic0/7", 3, "there is no port"),
        ("port add simnic/nic0 sfnum 3", 4, "ringway mgmtdev set name simnic/nic0 queues N"),
        ("mgmtdev del auxiliary/simnic.nic0.sf.1", 2, "ringway port del simnic/nic0/1"),
        ("port show simnic/nic0/7", 3, "there is no port"),
        ("port wipe", 2, "one of: show"),
        ("mgmtdev set name simnic/nic0 queues 1", 4, "ringway port del"),
        ("mgmtdev add name simnic/nic1 queues 257", 2, "must be 1 to 256"),
        ("dev add name v mgmtdev auxiliary/simnic.nic0.sf.1 max_vqp 2", 2, "supports 2"),
        (
            "dev add name v mgmtdev auxiliary/simnic.nic0.sf.1 core 1",
            2,
            "ringway mgmtdev set name simnic/nic0 core 1",
        ),
        (
            "dev add name v mgmtdev auxiliary/simnic.nic0.sf.2",
            3,
            "ringway port function set simnic/nic0/2 state active",
        ),
        ("dev add name v mgmtdev auxiliary/nic0", 3, "as in simnic.nic0.sf.88"),
    ] {
        let told = daemon.run(line).bad(code);
        assert!(told.contains(said), "{line}: {told}");
    }
    daemon.run("dev add name v mgmtdev auxiliary/simnic.nic0.sf.1").good();
    let told = daemon.run("dev add name w mgmtdev auxiliary/simnic.nic0.sf.1").bad(4);
    assert!(told.contains("held by: v"), "{told}");
    daemon.run("port function set simnic/nic0/2 hw_addr 52:54:00:00:00:02 state active").good();
    let told = daemon.run("dev add name w mgmtdev auxiliary/simnic.nic0.sf.2 mac 52:54:00:00:00:03").bad(2);
    assert!(told.contains("has the hw_addr 52:54:00:00:00:02 of its port"), "{told}");
}

#[test]
fn change_that_is_refused_leaves_the_guest_its_device() {
    let daemon = with_nic("queues 2");
    function(&daemon, 1);
    function(&daemon, 2);
    let (mut one, mut two) = (guest(&daemon, "f1", 1, 2), guest(&daemon, "f2", 2, 1));
    exchange(&mut [&mut one, &mut two], 100);
    let shown = daemon.run("port show").good();
    for line in ["max_io_eqs 2 state inactive", "state inactive max_io_eqs 17", "max_io_eqs 1"] {
        let code = daemon.run(&format!("port function set simnic/nic0/1 {line}")).code;
        assert!(matches!(code, 2 | 4), "{line}: {code}");
    }
    // On a disk that takes nothing.
    let kept = daemon.dir.join("state/devices.json");
    let other = daemon.dir.join("other");
    std::fs::create_dir(&other).unwrap();
    put_in_place(&other, &kept);
    for line in ["state inactive", "hw_addr 52:54:00:00:00:07 state inactive"] {
        daemon.run(&format!("port function set simnic/nic0/1 {line}")).bad(4);
    }
    assert_eq!(daemon.run("port show").good(), shown);
    exchange(&mut [&mut one, &mut two], 100);
    let events = daemon.run("events --once --since 0").good();
    assert!(!events.contains("dev.gone"), "{events}");
}

#[test]
fn nic_of_which_nothing_was_asked_has_so_many_queues() {
    let daemon = with_nic("");
    daemon.run("port add simnic/nic0 sfnum 1").good();
    daemon.run("port function set simnic/nic0/1 max_io_eqs 15").good();
    daemon.run("port add simnic/nic0 sfnum 2").good();
    assert!(
        daemon.run("port add simnic/nic0 sfnum 3").bad(4).contains("has 0 of 16 queue pairs left, not 1")
    );
    daemon.run("mgmtdev set name simnic/nic0 queues 256").good();
    daemon.run("port add simnic/nic0 sfnum 3").good();
}

#[test]
fn ports_outlive_the_daemon_and_may_stand_in_a_file() {
    let mut daemon = with_nic("queues 4");
    daemon.run("port add simnic/nic0 sfnum 1").good();
    daemon.run("port function set simnic/nic0/1 hw_addr 52:54:00:00:00:01 max_io_eqs 2 state active").good();
    daemon.run("port add simnic/nic0 sfnum 2").good();
    daemon.run(&format!("dev add name v mgmtdev {CHILD}.1")).good();
    let (shown, dump) = (daemon.run("port show").good(), daemon.run("config dump").good());
    daemon.terminate();
    daemon.start_again(&[]);
    assert_eq!(daemon.run("port show").good(), shown);
    assert_eq!(daemon.run("config dump").good(), dump);
    daemon.terminate();
    let file = daemon.dir.join("dump.toml");
    std::fs::write(&file, &dump).unwrap();
    let check = format!("config check {}", file.display());
    daemon.run(&check).good();
    std::fs::remove_file(daemon.dir.join("state/devices.json")).unwrap();
    daemon.start_again(&["--config", file.to_str().unwrap()]);
    assert_eq!(daemon.run("config dump").good(), dump);
    assert_eq!(daemon.run("port show").good(), shown.replace("origin operator", "origin config"));
    let told = daemon.run("port del simnic/nic0/1").err;
    assert!(told.contains("dump.toml") && told.contains("gone with it: v"), "{told}");
    let nic = "[[mgmtdev]]\nname = \"simnic/n\"\n";
    let port = "[[port]]\nmgmtdev = \"simnic/n\"\nsfnum = 1\n";
    for (text, code, said) in [
        (port.to_owned(), 3, "dump.toml:2: no [[mgmtdev]] of this file is named simnic/n"),
        (format!("{nic}{port}{port}"), 4, "dump.toml:8: a second port is simnic/n/1"),
        (format!("{nic}{port}max_io_qes = 2\n"), 2, "did you mean max_io_eqs?"),
        (format!("{nic}{port}state = \"on\"\n"), 2, "dump.toml:6: state is"),
        (format!("{nic}[[port]]\nmgmtdev = \"simnic/n\"\n"), 2, "a port has an sfnum"),
        (format!("{nic}[[port]]\nmgmtdev = \"sim/net\"\nsfnum = 1\n"), 2, "sim/net cannot be divided"),
        (format!("{nic}{port}pfnum = 3\n"), 4, "dump.toml:6: pfnum 3: there is one, 0"),
        (
            format!("{nic}queues = 2\n{port}max_io_eqs = 2\n{}", port.replace("1", "2")),
            4,
            "dump.toml:8: 0 of 2 queue pairs are left by the ports before, not 1",
        ),
        ("[port]\nsfnum = 1\n".to_owned(), 2, "a list of tables: [[port]]"),
    ] {
        std::fs::write(&file, &text).unwrap();
        let told = daemon.run(&check).bad(code);
        assert!(told.contains(said), "{text}: {told}");
    }
    // What its device asks for is checked, too, though the function is not there yet.
    std::fs::write(
        &file,
        format!(
            "{nic}{port}[[device]]\nname = \"v\"\nmgmtdev = \"auxiliary/simnic.n.sf.1\"\nspoofchk = true\n"
        ),
    )
    .unwrap();
    daemon.run(&check).good();
    // So is what is asked of functions of a controller, whether it is there or not.
    let port = "[[port]]\nmgmtdev = \"pci/0000:02:00.0\"\nsfnum = 1\nstate = \"active\"\n";
    let disk = "[[device]]\nname = \"v\"\nmgmtdev = \"auxiliary/pci.0000:02:00.0.sf.1\"\n";
    for (more, said) in [
        ("", None),
        ("namespace = 1\nmax_io_eqs = 2\n", None),
        ("max_io_eqs = 65\n", Some("dump.toml:5: max_io_eqs 65: must be 1 to 64")),
        ("hw_addr = 1\n", Some("has no attribute `hw_addr`")),
    ] {
        std::fs::write(&file, [port, more, disk, "seg_max = 1\n"].concat()).unwrap();
        match said {
            None => drop(daemon.run(&check).good()),
            Some(said) => {
                let told = daemon.run(&check).bad(2);
                assert!(told.contains(said), "{told}");
            }
        }
    }
    for (more, said) in [("seg_max = 0\n", "seg_max 0"), ("spoofchk = true\n", "unknown key `spoofchk`")] {
        std::fs::write(&file, [disk, more].concat()).unwrap();
        let told = daemon.run(&check).bad(2);
        assert!(told.contains(said), "{told}");
    }
}

#[test]
fn port_that_is_not_made_is_dumped_with_why_and_its_dump_is_good() {
    let mut daemon = with_nic("queues 2");
    daemon.run("port add simnic/nic0 sfnum 1").good();
    daemon.run("port function set simnic/nic0/1 max_io_eqs 2").good();
    daemon.terminate();
    // The file goes first, and leaves less.
    let file = daemon.dir.join("dump.toml");
    let nic =
        "[[mgmtdev]]\nname = \"simnic/nic0\"\nqueues = 2\n[[port]]\nmgmtdev = \"simnic/nic0\"\nsfnum = 2\n";
    std::fs::write(&file, nic).unwrap();
    daemon.start_again(&["--config", file.to_str().unwrap()]);
    let dump = daemon.run("config dump").good();
    let said = "\n# not made: simnic/nic0 has 1 of 2 queue pairs left, not 2";
    assert!(dump.contains(said) && dump.contains("\n# [[port]]\n"), "{dump}");
    std::fs::write(&file, &dump).unwrap();
    daemon.run(&format!("config check {}", file.display())).good();
    let json = daemon.run("-j config dump").json();
    assert!(json["not_made"]["simnic/nic0/1"].is_string(), "{json}");
}

#[test]
fn port_of_the_file_and_of_the_state_directory_is_one_port() {
    let mut daemon = with_nic("queues 2");
    daemon.run("port add simnic/nic0 sfnum 1").good();
    daemon.run("port function set simnic/nic0/1 state active").good();
    let (shown, dump) = (daemon.run("port show").good(), daemon.run("config dump").good());
    let file = daemon.dir.join("dump.toml");
    std::fs::write(&file, &dump).unwrap();
    let check = format!("config check {}", file.display());
    daemon.terminate();
    // Its own dump, and the state that it came from.
    for _ in 0..2 {
        daemon.start_again(&["--config", file.to_str().unwrap()]);
        assert_eq!(daemon.run("config dump").good(), dump);
        assert_eq!(daemon.run("port show").good(), shown.replace("origin operator", "origin config"));
        daemon.run(&check).good();
        let log = daemon.logged("also in the configuration file, which goes first");
        assert!(!log.contains("port cannot be made"), "{log}");
        daemon.terminate();
    }
    // Without the file it is the operator's again.
    daemon.start_again(&[]);
    assert_eq!(daemon.run("port show").good(), shown);
    daemon.terminate();
    daemon.start_again(&["--config", file.to_str().unwrap()]);
    daemon.run("port del simnic/nic0/1").good();
    assert_eq!(daemon.run("port show").good(), "");
    (1..=2).for_each(|number| drop(daemon.run(&format!("port add simnic/nic0 sfnum {number}")).good()));
    daemon.run("port del simnic/nic0/1").good();
    daemon.terminate();
    daemon.start_again(&[]);
    assert!(!daemon.run("port show").good().contains("simnic/nic0/1:"), "deleted in both");
}

#[test]
fn ports_that_wait_are_made_once_their_parent_has_them() {
    let mut daemon = Daemon::start_with(&["--cores", "0,1"]);
    daemon.run("mgmtdev add name simnic/nic0 core 1 queues 3").good();
    (1..=3).for_each(|number| drop(daemon.run(&format!("port add simnic/nic0 sfnum {number}")).good()));
    daemon.terminate();
    // Its core is not there: it comes with its first device, as one of which nothing was asked.
    daemon.start_again(&["--cores", "0"]);
    let ports = |daemon: &Daemon| {
        let shown = daemon.run("-j port show").json();
        shown["port"].as_object().map_or(0, serde_json::Map::len)
    };
    assert_eq!(ports(&daemon), 0);
    daemon.run("dev add name up mgmtdev simnic/nic0").good();
    assert_eq!(ports(&daemon), 3);
    daemon.run("dev del up").good();
    assert_eq!(ports(&daemon), 3, "they hold what they stand on");
    daemon.terminate();
    daemon.start_again(&["--cores", "0,1"]);
    assert_eq!(ports(&daemon), 3);
    let dump = daemon.run("config dump").good();
    assert!(
        dump.contains("core = \"1\"") && dump.contains("queues = \"3\""),
        "what was asked for was kept: {dump}"
    );
    // More than there is room for.
    let file = daemon.dir.join("file.toml");
    let nic = "[[mgmtdev]]\nname = \"simnic/n\"\nqueues = 1\n";
    let port = |number: u32| format!("[[port]]\nmgmtdev = \"simnic/n\"\nsfnum = {number}\n");
    std::fs::write(&file, [nic.to_owned(), port(1), port(2), port(3)].concat()).unwrap();
    daemon.terminate();
    std::fs::remove_file(daemon.dir.join("state/devices.json")).unwrap();
    daemon.start_again(&["--config", file.to_str().unwrap()]);
    assert_eq!(ports(&daemon), 1);
    let shown = daemon.run("port show").good();
    assert!(
        shown.contains("queue pairs left, not 1; try: ringway mgmtdev set name simnic/n queues N"),
        "{shown}"
    );
    let told = daemon.run("port function set simnic/n/2 state active").bad(4);
    assert!(told.contains("ringway port del simnic/n/2 removes it"), "{told}");
    // Of this daemon: what those before it told is kept, too.
    let instance = daemon.run("-j hello").json()["instance"].as_str().unwrap().to_owned();
    let events = daemon.run(&format!("events --once --since {instance}:0 --type port.failed")).good();
    assert_eq!(events.matches("port.failed").count(), 2, "{events}");
    daemon.run("port del simnic/n/1").good();
    assert_eq!(ports(&daemon), 1, "what was given back is the next one's");
    daemon.run("mgmtdev set name simnic/n queues 2").good();
    assert_eq!(ports(&daemon), 2);
    let events = daemon.run(&format!("events --once --since {instance}:0 --type port")).good();
    assert_eq!(events.matches("port.added").count(), 2, "{events}");
}

#[test]
fn functions_that_are_taken_away_under_traffic_take_their_devices_along_and_nothing_else() {
    let daemon = with_nic("");
    (1..=4).for_each(|number| function(&daemon, number));
    let (mut one, mut two) = (guest(&daemon, "f1", 1, 2), guest(&daemon, "f2", 2, 1));
    let (mut three, mut four) = (guest(&daemon, "f3", 3, 4), guest(&daemon, "f4", 4, 3));
    exchange(&mut [&mut one, &mut two, &mut three, &mut four], 200);
    let told = daemon.run("port del simnic/nic0/1");
    assert_eq!(told.code, 0, "{told:?}");
    assert!(told.err.contains("note: gone with it: f1;"), "{told:?}");
    assert!(daemon.run("dev show f1").bad(3).contains("f1: not made"));
    exchange(&mut [&mut three, &mut four], 200);
    drop(one);
    // It comes back with its port, and so does its device.
    function_again(&daemon, 1);
    wait_for("f1 to be there", || daemon.run("dev show f1").code == 0);
    let mut one = guest(&daemon, "f1", 1, 2);
    exchange(&mut [&mut one, &mut two, &mut three, &mut four], 200);
    // The parent goes with all of them; nobody is asked and nobody waits.
    let begun = Instant::now();
    let deleted = daemon.run("-j mgmtdev del simnic/nic0").json();
    daemon.pace().allows_since(10, begun);
    assert_eq!(deleted["devices"], json!([]));
    let shown = daemon.run("-j dev show").json();
    assert_eq!(shown["dev"], json!({}));
    assert_eq!(shown["absent"].as_object().unwrap().len(), 4);
    assert_eq!(daemon.run("port show").good(), "");
    assert!(!daemon.run("mgmtdev show").good().contains("auxiliary"));
    let events = daemon.run("events --once --since 0").good();
    assert_eq!(events.matches("dev.gone").count(), 5, "{events}");
    // Nothing of it is left on the workers.
    wait_for("its pump to go", || !daemon.run("core show").good().contains("simnic"));
    daemon.run("mgmtdev add name simnic/nic0").good();
    (1..=4).for_each(|number| function_again(&daemon, number));
    wait_for("its devices to be there", || daemon.run("-j dev show").json().get("absent").is_none());
}

/// A function whose device is asked for already.
fn function_again(daemon: &Daemon, number: u32) {
    daemon.run(&format!("port add simnic/nic0 sfnum {number}")).good();
    daemon.run(&format!("port function set simnic/nic0/{number} state active")).good();
}

#[test]
fn nic_moves_to_another_core_with_all_its_functions() {
    let daemon = Daemon::start_with(&["--cores", "0,1"]);
    daemon.run("mgmtdev add name simnic/nic0 core 0").good();
    function(&daemon, 1);
    function(&daemon, 2);
    let (mut one, mut two) = (guest(&daemon, "f1", 1, 2), guest(&daemon, "f2", 2, 1));
    exchange(&mut [&mut one, &mut two], 100);
    daemon.run("mgmtdev set name simnic/nic0 core 1").good();
    wait_for("the queues to be there", || {
        ["f1", "f2"].iter().all(|device| daemon.device(device)["rings"][0]["core"] == 1)
    });
    exchange(&mut [&mut one, &mut two], 100);
    assert_eq!(daemon.device("f1")["cores"], json!([1]));
}
