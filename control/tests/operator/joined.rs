//! Links and bridges as operators make, see, change, keep and remove them.

use ringway_guest::frame::Addresses;
use ringway_guest::{Guest, GuestOptions};
use ringway_vhost_user::frontend::Frontend;

use crate::support::{Daemon, SOON, wait_for};

#[test]
fn link_comes_with_its_first_device_takes_two_and_goes_with_its_last() {
    let daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev link/l0").good();
    daemon.run("dev add name b mgmtdev link/l0").good();
    let refused = daemon.run("dev add name c mgmtdev link/l0").bad(4);
    assert!(
        refused.contains("link/l0 has as many devices as it can: 2") && refused.contains("a, b"),
        "{refused}"
    );
    let shown = daemon.run("-j mgmtdev show link/l0").json();
    assert_eq!(shown["mgmtdev"]["link/l0"]["joined"], serde_json::json!(["a", "b"]));
    daemon.run("dev del a").good();
    daemon.run("dev add name c mgmtdev link/l0").good();
    daemon.run("dev del b").good();
    daemon.run("dev del c").good();
    daemon.run("mgmtdev show link/l0").bad(3);
    // What could not be made leaves nothing behind.
    daemon.run("dev add name a mgmtdev link/l1 mtu 60000").bad(2);
    daemon.run("mgmtdev show link/l1").bad(3);
}

#[test]
fn names_that_are_none_and_words_that_do_not_fit_say_what_would() {
    let daemon = Daemon::start();
    for (line, code, said) in [
        ("dev add name a mgmtdev lnk/l0", 3, "did you mean link/l0?"),
        ("dev add name a mgmtdev link/-x", 2, "cannot be a management device's name"),
        ("dev add name a mgmtdev bridge/b spoofchck on", 2, "did you mean spoofchk?"),
        ("dev add name a mgmtdev bridge/b spoofchk maybe", 2, "must be on or off"),
        ("dev add name a mgmtdev bridge/b flood_pps 0", 2, "must be a number of frames, or off"),
        ("dev add name a mgmtdev bridge/b core 999", 3, "no worker runs on core 999"),
        ("dev add name a mgmtdev bridge/b netns x", 2, "goes with tap IFNAME"),
        ("dev add name a mgmtdev bridge/b tap a/b", 2, "not a name that the kernel takes"),
        ("dev add name a mgmtdev tap/a%d", 2, "cannot be a management device's name"),
        ("dev add name a mgmtdev bridge/b vlan 4095", 2, "`4095` begins with no VLAN: 1 to 4094"),
        ("dev add name a mgmtdev bridge/b max_tx_rate fast", 2, "max_tx_rate fast: must be bits a second"),
        ("dev add name a mgmtdev bridge/b max_rx_pps 5kbit", 2, "must be a number of frames"),
        ("dev add name a mgmtdev link/l vlan 5", 2, "link/l has no attribute `vlan`"),
        ("bridge vlan add dev a vid 5", 3, "a"),
        ("bridge vlan add vid 5", 2, "dev NAME is missing"),
        ("bridge vlan add dev a vid 5 untaged", 2, "`untaged` is no word of bridge vlan"),
        ("bridge vlan show a", 2, "takes `dev NAME`"),
        ("mgmtdev add name link/l ageing 5", 2, "link/l has none"),
        ("mgmtdev add name bridge/b agein 5", 2, "did you mean ageing?"),
        ("mgmtdev add name bridge/b ageing 0", 2, "must be 1 to 1000000 seconds"),
        ("mgmtdev add name bridge/b core 999", 3, "no worker runs on core 999"),
        ("mgmtdev add ageing 5", 2, "name KIND/NAME"),
        ("mgmtdev set name sim/net", 2, "sim/net is a driver's own and has no settings"),
        ("mgmtdev set name bridge/b ageing 5", 3, "there is no `bridge/b`"),
        ("mgmtdev del sim/net", 2, "belongs to a driver and stays"),
        ("mgmtdev del bridge/b", 3, "there is no `bridge/b`"),
    ] {
        let told = daemon.run(line).bad(code);
        assert!(told.contains(said), "{line}: {told}");
    }
    assert_eq!(daemon.run("dev show").good(), "");
    assert!(!daemon.run("mgmtdev show").good().contains("bridge/b"));
}

#[test]
fn bridge_that_was_added_or_changed_stays_and_is_there_again_after_a_restart() {
    let mut daemon = Daemon::start();
    daemon.run("mgmtdev add name bridge/b0 ageing 60").good();
    daemon.run("mgmtdev add name bridge/b0").bad(4);
    daemon.run("dev add name a mgmtdev bridge/b0 spoofchk on flood_pps 100").good();
    daemon.run("dev add name b mgmtdev bridge/b1").good();
    let changed = daemon.run("-j mgmtdev set name bridge/b1 ageing 7").json();
    assert_eq!(changed["settings"]["ageing"], "7");
    daemon.run("dev del b").good();
    daemon.terminate();
    daemon.start_again(&[]);
    let shown = daemon.run("-j mgmtdev show").json();
    assert_eq!(shown["mgmtdev"]["bridge/b0"]["settings"]["ageing"], "60");
    assert_eq!(shown["mgmtdev"]["bridge/b0"]["learned"]["refused"], 0);
    assert_eq!(shown["mgmtdev"]["bridge/b1"]["settings"]["ageing"], "7");
    assert_eq!(daemon.device("a")["attributes"]["spoofchk"], "on");
    assert_eq!(daemon.device("a")["attributes"]["flood_pps"], "100");
    // As a file that makes the same again.
    let dump = daemon.run("config dump").good();
    assert!(dump.contains("[[mgmtdev]]\nname = \"bridge/b0\"\nageing = \"60\"\n"), "{dump}");
    daemon.terminate();
    let file = daemon.dir.join("dump.toml");
    std::fs::write(&file, &dump).unwrap();
    std::fs::remove_file(daemon.dir.join("state/devices.json")).unwrap();
    daemon.start_again(&["--config", file.to_str().unwrap()]);
    assert_eq!(daemon.run("config dump").good(), dump);
}

#[test]
fn management_device_is_removed_with_all_that_it_made() {
    let daemon = Daemon::start();
    for name in ["a", "b", "c"] {
        daemon.run(&format!("dev add name {name} mgmtdev bridge/b0")).good();
    }
    daemon.run("dev add name d mgmtdev sim/net").good();
    let deleted = daemon.run("-j mgmtdev del bridge/b0").json();
    assert_eq!(deleted["devices"], serde_json::json!(["a", "b", "c"]));
    let left = daemon.run("-j dev show").json();
    assert_eq!(left["dev"].as_object().unwrap().keys().collect::<Vec<_>>(), ["d"]);
    daemon.run("mgmtdev show bridge/b0").bad(3);
    assert!(!daemon.socket("a").exists());
}

/// QEMU says on the destination of a migration that its guest has come, the first times before it has told the features.
#[test]
fn arrival_of_a_guest_is_told_on_its_bridge_and_an_address_that_is_not_its_own_is_refused_by_name() {
    const OWN: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
    let daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev bridge/b mac 52:54:00:00:00:01 spoofchk on").good();
    daemon.run("dev add name b mgmtdev bridge/b").good();
    let _b = Guest::connect(&daemon.socket("b"), GuestOptions::default()).unwrap();
    let heard =
        || daemon.run("-j dev vstats show b qidx 0").json()["vstats"]["b"]["packets"].as_u64().unwrap();
    let mut a = Frontend::connect(&daemon.socket("a"), SOON).unwrap();
    a.set_timeout(SOON);
    a.handshake().unwrap();
    a.send_rarp(OWN).unwrap();
    for other in [[0x52, 0x54, 0, 0, 0, 2], [1, 0, 0x5e, 0, 0, 1], [0; 6]] {
        assert!(a.send_rarp(other).is_err(), "{other:?}");
    }
    let mut same = Frontend::from_stream(a.stream().try_clone().unwrap());
    let a = Guest::start(a, GuestOptions::default()).unwrap();
    wait_for("the first to be told", || heard() == 1);
    // While it runs; asked for no answer.
    same.send_rarp(OWN).unwrap();
    wait_for("the second to be told", || heard() == 2);
    let shown = daemon.run("dev show a").good();
    assert!(shown.contains("spoofed_mac 1") && shown.contains("announced_address 2"), "{shown}");
    wait_for("the bridge to know it", || {
        daemon.run("mgmtdev show bridge/b").good().contains("52:54:00:00:00:01")
    });
    // What one front-end has left is not told for the next.
    drop((a, same));
    wait_for("it to leave", || daemon.device("a")["state"] == "waiting");
    let mut left = Frontend::connect(&daemon.socket("a"), SOON).unwrap();
    left.set_timeout(SOON);
    left.handshake().unwrap();
    left.send_rarp(OWN).unwrap();
    drop(left);
    wait_for("it to leave", || daemon.device("a")["state"] == "waiting");
    let mut next = Guest::connect(&daemon.socket("a"), GuestOptions::default()).unwrap();
    next.turn(1).unwrap();
    wait_for("what it sends to be dropped", || {
        daemon.run("-j dev vstats show a qidx 1").json()["vstats"]["a"]["drops"]["spoofed_mac"] == 1
    });
    assert_eq!(heard(), 2);
}

#[test]
fn one_function_twice_in_a_file_is_found_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    let check = |first: &str, second: &str| {
        let text = format!("[[device]]\nname = \"a\"\n{first}\n[[device]]\nname = \"b\"\n{second}\n");
        std::fs::write(&file, text).unwrap();
        crate::support::ringway(&dir.path().join("none"), &format!("config check {}", file.display()))
    };
    let uplink =
        |bridge: &str, last: u8| format!("mgmtdev = \"bridge/{bridge}\"\nuplink = \"pci/0000:01:00.{last}\"");
    let own = "mgmtdev = \"pci/0000:01:00.1\"";
    check(&uplink("x", 1), &uplink("x", 2)).good();
    for (first, second) in
        [(uplink("x", 1), uplink("y", 1)), (uplink("x", 1), own.into()), (own.into(), uplink("x", 1))]
    {
        let told = check(&first, &second).bad(4);
        assert!(told.contains("b has the same function as a"), "{told}");
    }
    let with = |word: &str| format!("{}\n{word}", uplink("y", 2));
    for word in [
        "tap = \"t\"",
        "spoofchk = \"on\"",
        "socket = \"/run/s\"",
        "max_vqp = 2",
        "mac = \"02:00:00:00:00:01\"",
    ] {
        check(own, &with(word)).bad(2);
    }
}

#[test]
fn vlans_of_ports_are_given_in_the_words_of_bridge_vlan_shown_and_kept() {
    let mut daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev bridge/b0").good();
    daemon.run("dev add name b mgmtdev bridge/b0").good();
    daemon.run("dev add name l mgmtdev link/l0").good();
    // Nobody looks at VLANs.
    assert_eq!(daemon.run("bridge vlan show").good(), "");
    daemon.run("bridge vlan add dev a vid 100 pvid untagged").good();
    daemon.run("bridge vlan add dev a vid 200-210").good();
    let shown = daemon.run("bridge vlan show").good();
    assert_eq!(
        shown,
        "port              vlan-id\n\
         a                 100 PVID Egress Untagged\n                  200-210\n\
         b                 1 PVID Egress Untagged\n"
    );
    let json = daemon.run("-j bridge vlan show dev a").json();
    assert_eq!(
        json["vlan"]["a"]["vlans"],
        serde_json::json!([
            { "vlan": 100, "flags": ["PVID", "Egress Untagged"] }, { "vlan": 200, "vlanEnd": 210 }
        ])
    );
    assert_eq!(daemon.device("a")["attributes"]["vlan"], "100 pvid untagged,200-210");
    assert!(daemon.device("b")["attributes"]["vlan"].is_null());
    for (line, code, said) in [
        ("bridge vlan del dev a vid 300", 3, "a was given no VLAN 300"),
        ("bridge vlan del dev b vid 1", 3, "b was given no VLAN 1"),
        ("bridge vlan add dev a vid 5-7 pvid", 2, "only one VLAN can be the pvid"),
        ("bridge vlan add dev a vid 0", 2, "vid `0` is no VLAN"),
        ("bridge vlan add dev l vid 5", 2, "l is no port of a bridge: its mgmtdev is link/l0"),
        ("bridge vlan add dev c vid 5", 3, "c"),
    ] {
        let told = daemon.run(line).bad(code);
        assert!(told.contains(said), "{line}: {told}");
    }
    daemon.run("bridge vlan del dev a vid 201-209").good();
    // While a front-end is connected it is in force at once: exit 0, no note.
    let mut guest = Frontend::connect(&daemon.socket("a"), SOON).unwrap();
    guest.handshake().unwrap();
    wait_for("connected", || daemon.device("a")["state"] == "connected");
    daemon.run("bridge vlan add dev a vid 300").good();
    // So are rates.
    daemon.run("dev set name a max_tx_rate 100mbit max_rx_pps 5000").good();
    assert_eq!(daemon.device("a")["attributes"]["max_tx_rate"], "100mbit");
    assert_eq!(daemon.device("a")["attributes"]["vlan"], "100 pvid untagged,200,210,300");
    drop(guest);
    let dump = daemon.run("config dump").good();
    assert!(dump.contains("vlan = \"100 pvid untagged,200,210,300\"\n"), "{dump}");
    daemon.terminate();
    daemon.start_again(&[]);
    assert_eq!(daemon.device("a")["attributes"]["vlan"], "100 pvid untagged,200,210,300");
    assert_eq!(daemon.device("a")["attributes"]["max_rx_pps"], "5000");
    for vid in ["100", "200", "210", "300"] {
        daemon.run(&format!("bridge vlan del dev a vid {vid}")).good();
    }
    // None is not the same as never given any.
    assert!(daemon.run("bridge vlan show dev a").good().ends_with("a                 none\n"));
    daemon.run("dev set name a vlan off").good();
    assert_eq!(daemon.run("bridge vlan show").good(), "");
}

/// The pumps of each core, by name.
fn pumps(daemon: &Daemon) -> Vec<(String, Vec<String>)> {
    let shown = daemon.run("-j core show").json();
    let names = |core: &serde_json::Value| {
        let pumps = core["pumps"].as_array().unwrap().iter();
        pumps.map(|pump| pump["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let cores = shown["core"].as_object().unwrap().iter();
    cores.map(|(core, shown)| (core.clone(), names(shown))).filter(|(_, names)| !names.is_empty()).collect()
}

#[test]
fn ports_of_a_bridge_have_cores_of_their_own_shown_kept_and_changed_while_their_guests_run() {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        println!("left out: this needs two cores");
        return;
    }
    let args = ["--cores", "0,1"];
    let mut daemon = Daemon::start_with(&args);
    daemon.run("mgmtdev add name bridge/b core 0").good();
    daemon.run("dev add name a mgmtdev bridge/b").good();
    daemon.run("dev add name b mgmtdev bridge/b core 1").good();
    daemon.run("dev add name c mgmtdev bridge/b core 1").good();
    assert_eq!(daemon.run("-j dev show b").json()["dev"]["b"]["cores"], serde_json::json!([1]));
    let groups = || {
        let shown = daemon.run("-j core show").json();
        ["0", "1"].map(|core| shown["core"][core]["groups"].as_u64().unwrap())
    };
    assert_eq!(groups(), [1, 2], "the bridge, and two that have their own");
    let address = |last: u8| [0x52, 0x57, 0, 1, 0, last];
    let connect = |name: &str, from: u8, to: u8| {
        let addresses = Addresses { to: address(to), from: address(from) };
        let options = GuestOptions { addresses, window: Some(64), ..GuestOptions::default() };
        Guest::connect(&daemon.socket(name), options).unwrap()
    };
    let mut guests = [connect("a", 1, 2), connect("b", 2, 1)];
    let of_core = |core: &str, name: &str| (core.to_owned(), vec![name.to_owned()]);
    wait_for("a part on each", || pumps(&daemon) == [of_core("0", "bridge/b@0"), of_core("1", "bridge/b@1")]);
    // They talk to each other, over both cores and over one, whoever moves.
    let mut talk = |frames: u64| {
        let before: Vec<u64> = guests.iter().map(|guest| guest.stats().received).collect();
        wait_for("frames both ways", || {
            for guest in &mut guests {
                guest.turn(16).unwrap();
            }
            guests.iter().zip(&before).all(|(guest, before)| guest.stats().received >= before + frames)
        });
    };
    talk(2_000);
    daemon.run("dev set name b core 0").good();
    wait_for("one pump", || pumps(&daemon) == [of_core("0", "bridge/b")]);
    assert_eq!(groups(), [2, 1]);
    talk(2_000);
    daemon.run("dev set name b core 1").good();
    wait_for("two of them", || pumps(&daemon).len() == 2);
    talk(2_000);
    // Those that were given none go where the bridge goes, and no others.
    daemon.run("mgmtdev set name bridge/b core 1").good();
    wait_for("one pump", || pumps(&daemon) == [of_core("1", "bridge/b")]);
    daemon.run("dev set name b core 0").good();
    daemon.run("mgmtdev set name bridge/b core 0").good();
    wait_for("one pump", || pumps(&daemon) == [of_core("0", "bridge/b")]);
    talk(2_000);
    for guest in &guests {
        let stats = guest.stats();
        assert_eq!(stats.corrupt, 0, "{stats:?}");
    }
    for name in ["a", "b"] {
        let drops = daemon.run(&format!("-j dev vstats show {name}")).json();
        assert!(!drops.to_string().contains("lane_full\":1"), "{drops}");
    }
    // Kept over a restart, and forgotten with the device.
    drop(guests);
    daemon.terminate();
    daemon.start_again(&args);
    assert_eq!(daemon.device("b")["cores"], serde_json::json!([0]));
    assert_eq!(daemon.device("c")["cores"], serde_json::json!([1]));
    assert!(daemon.run("config dump").good().contains("core = 1\n"));
    daemon.run("dev del c").good();
    let shown = daemon.run("-j core show").json();
    assert_eq!(shown["core"]["1"]["groups"], 0);
}
