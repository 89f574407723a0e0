//! Dry runs: what a change would do, said before it is done, and nothing done.

use ringway_guest::{Guest, GuestOptions};
use serde_json::{Value, json};

use crate::support::Daemon;

/// All that a change could change: what is asked for, what runs, and how many events there were, without those that front-ends cause
/// when they like.
fn everything(daemon: &Daemon) -> Value {
    let generation = daemon.run("-j hello").json()["generation"].clone();
    let events = daemon.run("-j events --once --since 0").good();
    let events = events.lines().filter(|line| !line.contains("\"type\":\"session.")).count();
    let devices = daemon.run("-j dev show").json();
    let cores: Vec<(String, Value)> = devices["dev"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, device)| (name.clone(), device["cores"].clone()))
        .collect();
    let dump = daemon.run("-j config dump").json();
    let mgmtdevs = daemon.run("-j mgmtdev show").json();
    let mgmtdevs: Vec<&String> = mgmtdevs["mgmtdev"].as_object().unwrap().keys().collect();
    json!([generation, events, cores, dump, mgmtdevs, daemon.run("-j port show").json()])
}

/// What a dry run says that would be done: sign, thing and name, and what is disrupted.
#[track_caller]
fn foretold(daemon: &Daemon, line: &str) -> Vec<String> {
    let before = everything(daemon);
    let plan = daemon.run(&format!("-j --dry-run {line}")).json();
    assert_eq!(everything(daemon), before, "{line}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let step =
        |step: &Value| [&step["what"], &step["name"], &step["action"], &step["disrupts"]].map(text).join(" ");
    plan["steps"].as_array().unwrap().iter().map(step).collect()
}

#[test]
fn each_change_is_foretold_and_nothing_is_done() {
    let daemon = Daemon::start();
    let core = daemon.run("-j core show").json()["core"].as_object().unwrap().keys().next().unwrap().clone();
    // Each is foretold, then done: what the next one says rests on it.
    for (line, expected) in [
        ("dev add name vm0 mgmtdev sim/net mtu 1500", &["device vm0 add nothing"][..]),
        ("dev add name a mgmtdev bridge/br0", &["mgmtdev bridge/br0 add nothing", "device a add nothing"]),
        ("bridge vlan add dev a vid 100 pvid untagged", &["device a set nothing"]),
        ("bridge vlan del dev a vid 100", &["device a set nothing"]),
        ("mgmtdev add name simnic/nic0 queues 8", &["mgmtdev simnic/nic0 add nothing"]),
        ("mgmtdev set name simnic/nic0 queues 16", &["mgmtdev simnic/nic0 set nothing"]),
        ("mgmtdev set name simnic/nic0 queues 16", &[]),
        ("port add simnic/nic0 sfnum 7", &["port simnic/nic0/7 add nothing"]),
        ("port function set simnic/nic0/7 state active", &["port simnic/nic0/7 set nothing"]),
        ("port function set simnic/nic0/7 state active", &[]),
        ("dev add name f mgmtdev auxiliary/simnic.nic0.sf.7", &["device f add nothing"]),
        ("dev set name vm0 mtu 1400", &["device vm0 set nothing"]),
        ("dev set name vm0 mtu 1400", &[]),
        ("port del simnic/nic0/7", &["port simnic/nic0/7 del nothing"]),
        ("mgmtdev del simnic/nic0", &["mgmtdev simnic/nic0 del nothing"]),
        ("dev del a", &["device a del nothing", "mgmtdev bridge/br0 del nothing"]),
        ("dev del vm0", &["device vm0 del nothing"]),
    ] {
        assert_eq!(foretold(&daemon, line), expected, "{line}");
        let done = daemon.run(line);
        assert_eq!(done.code, 0, "{line}: {done:?}");
    }
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let mut guest = Guest::connect(&daemon.socket("vm0"), GuestOptions::default()).unwrap();
    while guest.turn(16).unwrap() == 0 {}
    assert_eq!(foretold(&daemon, "dev del vm0"), ["device vm0 del device"]);
    assert_eq!(foretold(&daemon, &format!("dev set name vm0 core {core}")), ["device vm0 set nothing"]);
    let said = daemon.run("--dry-run dev set name vm0 mac 52:54:00:00:00:01").good();
    assert!(
        said.starts_with("~ device vm0: is changed\n    mac ")
            && said.contains("mac: a front-end is connected: in force when the next one connects"),
        "{said}"
    );
    assert_eq!(daemon.run("--dry-run dev set name vm0 core").code, 2);
}

#[test]
fn dry_run_refuses_what_the_change_itself_refuses_in_the_same_words() {
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    daemon.run("dev add name a mgmtdev bridge/br0").good();
    daemon.run("mgmtdev add name simnic/nic0 queues 2").good();
    daemon.run("port add simnic/nic0 sfnum 7").good();
    daemon.run("port function set simnic/nic0/7 state active").good();
    daemon.run("dev add name l0 mgmtdev link/l").good();
    daemon.run("dev add name l1 mgmtdev link/l").good();
    for line in [
        "dev add name vm0 mgmtdev sim/net",
        "dev add name b mgmtdev nope/x",
        "dev add name b mgmtdev pci/0000:7f:1f.7",
        "dev add name b mgmtdev sim/net mtu 5",
        "dev add name b mgmtdev sim/net core 4095",
        "dev add name b mgmtdev sim/net swpa on",
        "dev add name b mgmtdev sim/net owner nobody-of-this-name",
        "dev add name l2 mgmtdev link/l",
        "dev del zzz",
        "dev set name zzz mtu 1500",
        "dev set name vm0 core 4095",
        "bridge vlan add dev vm0 vid 1",
        "bridge vlan add dev a vid 5000",
        "bridge vlan del dev a vid 77",
        "mgmtdev add name bridge/br0",
        "mgmtdev add name bridge/br1 agging 5",
        "mgmtdev set name bridge/br0",
        "mgmtdev set name bridge/br0 ageing soon",
        "mgmtdev del sim/net",
        "mgmtdev del bridge/none",
        "port add simnic/nic0 sfnum 7",
        "port add simnic/nic1 sfnum 7",
        "port add sim/net sfnum 7",
        "port del simnic/nic0/9",
        "port function set simnic/nic0/7",
        "port function set simnic/nic0/7 max_io_eqs 1 hw_addr 52:54:00:00:00:01",
        "config apply /nowhere",
    ] {
        let before = everything(&daemon);
        let (dry, real) = (daemon.run(&format!("--dry-run {line}")), daemon.run(line));
        assert_ne!(real.code, 0, "{line}");
        assert_eq!((dry.code, dry.err), (real.code, real.err), "{line}");
        assert_eq!(everything(&daemon), before, "{line}");
    }
    let mut wire = daemon.wire();
    let refused = &wire.call("dry_run", json!({ "method": "dev.show", "params": {} }))["error"];
    assert!(refused["data"]["expected"].as_array().unwrap().contains(&json!("dev.add")), "{refused}");
}

#[test]
fn file_is_foretold_by_its_dry_run_as_by_its_diff() {
    let daemon = Daemon::start();
    let file = daemon.dir.join("r.toml");
    std::fs::write(&file, "[[device]]\nname = \"a\"\nmgmtdev = \"sim/net\"\n").unwrap();
    let shown = file.display();
    let diff = daemon.run(&format!("config diff {shown}")).good();
    assert_eq!(daemon.run(&format!("--dry-run config apply {shown}")).good(), diff);
    assert!(diff.contains("+ device a: is added"), "{diff}");
    assert!(daemon.run("dev show").good().is_empty());
}
