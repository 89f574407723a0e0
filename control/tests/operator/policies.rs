//! What of a device changes while its guest runs, and what is deferred until its front-end connects next, and told so.

use std::fs;

use ringway_guest::frame::Addresses;
use ringway_guest::{Guest, GuestOptions};
use ringway_vhost_user::frontend::Frontend;
use serde_json::{Value, json};

use crate::support::{Daemon, SOON, wait_for};

const fn mac(last: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, last]
}

fn send(guest: &mut Guest, frames: u64) {
    let before = guest.stats().sent;
    while guest.stats().sent < before + frames {
        let left = u32::try_from(before + frames - guest.stats().sent).unwrap();
        guest.turn(left.min(32)).unwrap();
    }
}

/// What a device's transmit queue has dropped for a reason.
fn dropped(daemon: &Daemon, name: &str, reason: &str) -> u64 {
    let stats = daemon.run(&format!("-j dev vstats show {name} qidx 1")).json();
    stats["vstats"][name]["drops"][reason].as_u64().unwrap_or(0)
}

/// Frames that a device was given.
fn given(daemon: &Daemon, name: &str) -> u64 {
    daemon.run(&format!("-j dev vstats show {name} qidx 0")).json()["vstats"][name]["packets"]
        .as_u64()
        .unwrap()
}

/// Waits until all that a guest has sent is done with.
fn settle(daemon: &Daemon, name: &str, guest: &mut Guest) {
    wait_for("all of it is done with", || {
        guest.turn(0).unwrap();
        let stats = daemon.run(&format!("-j dev vstats show {name} qidx 1")).json();
        stats["vstats"][name]["completed_desc"] == guest.stats().sent
    });
}

/// Sends one frame after another until it is so.
fn send_until(what: &str, guest: &mut Guest, mut is_so: impl FnMut() -> bool) {
    wait_for(what, || {
        send(guest, 1);
        is_so()
    });
}

#[test]
fn spoofchk_of_a_connected_device_is_in_force_at_once_and_it_stays_connected() {
    let daemon = Daemon::start();
    let file = daemon.dir.join("policies.toml");
    for mgmtdev in ["link/l", "bridge/b"] {
        daemon.run(&format!("dev add name a mgmtdev {mgmtdev} mac 52:54:00:00:00:01")).good();
        daemon.run(&format!("dev add name b mgmtdev {mgmtdev}")).good();
        let forged = Addresses { to: mac(2), from: mac(9) };
        let options = GuestOptions { addresses: forged, ..GuestOptions::default() };
        let mut b = Guest::connect(&daemon.socket("b"), GuestOptions::default()).unwrap();
        let mut a = Guest::connect(&daemon.socket("a"), options).unwrap();
        send_until("what is forged to pass", &mut a, || {
            b.turn(0).unwrap();
            given(&daemon, "b") > 0
        });
        let passed = || dropped(&daemon, "a", "spoofed_mac") == 0;
        assert!(passed());
        assert_eq!(daemon.run("dev set name a spoofchk on").good(), "");
        assert_eq!(daemon.device("a")["attributes"]["spoofchk"], "on");
        send_until("what is forged to be dropped", &mut a, || !passed());
        // From then on each of them.
        let before = (dropped(&daemon, "a", "spoofed_mac"), given(&daemon, "b"));
        send(&mut a, 40);
        wait_for("all to be dropped", || dropped(&daemon, "a", "spoofed_mac") == before.0 + 40);
        assert_eq!(given(&daemon, "b"), before.1);
        // The cure that is printed helps.
        assert!(daemon.run("dev vstats show a qidx 1").good().contains("or set spoofchk off"));
        daemon.run("dev set name a spoofchk off").good();
        send_until("what is forged to pass", &mut a, || {
            b.turn(0).unwrap();
            given(&daemon, "b") > before.1
        });
        // By a file, and by one that says nothing of it any more.
        let dump = daemon.run("config dump").good();
        for (word, text) in [("on", dump.replace("spoofchk = \"off\"", "spoofchk = \"on\"")), ("off", dump)] {
            fs::write(&file, &text).unwrap();
            let plan = daemon.run(&format!("-j config diff {}", file.display())).json();
            let of_a = plan["steps"].as_array().unwrap().iter().find(|step| step["name"] == "a").unwrap();
            assert!(of_a.get("deferred").is_none(), "{plan}");
            daemon.run(&format!("config apply {}", file.display())).good();
            assert_eq!(daemon.device("a")["attributes"]["spoofchk"], word);
        }
        assert_eq!(daemon.device("a")["history"]["connections"], 1);
        assert_eq!(daemon.device("b")["history"]["connections"], 1);
        drop((a, b));
        daemon.run("dev del a").good();
        daemon.run("dev del b").good();
    }
}

#[test]
fn bound_on_floods_of_a_connected_device_is_in_force_at_once() {
    let daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev bridge/b flood_pps off").good();
    daemon.run("dev add name b mgmtdev bridge/b").good();
    let options = GuestOptions { addresses: Addresses::TO_ALL, ..GuestOptions::default() };
    let _b = Guest::connect(&daemon.socket("b"), GuestOptions::default()).unwrap();
    let mut a = Guest::connect(&daemon.socket("a"), options).unwrap();
    send(&mut a, 200);
    settle(&daemon, "a", &mut a);
    let over = || dropped(&daemon, "a", "flood_limit");
    assert_eq!(over(), 0);
    daemon.run("dev set name a flood_pps 1").good();
    wait_for("more than may be", || {
        send(&mut a, 64);
        over() > 0
    });
    assert_eq!(daemon.device("a")["attributes"]["flood_pps"], "1");
    daemon.run("dev set name a flood_pps off").good();
    wait_for("none of them to be dropped", || {
        let before = over();
        send(&mut a, 50);
        settle(&daemon, "a", &mut a);
        over() == before
    });
    let before = over();
    send(&mut a, 200);
    settle(&daemon, "a", &mut a);
    assert_eq!(over(), before);
    assert_eq!(daemon.device("a")["history"]["connections"], 1);
}

/// A front-end that is connected.
fn connect(daemon: &Daemon, name: &str) -> Frontend {
    let mut frontend = Frontend::connect(&daemon.socket(name), SOON).unwrap();
    frontend.set_timeout(SOON);
    frontend.handshake().unwrap();
    wait_for("it is connected", || daemon.device(name)["state"] == "connected");
    frontend
}

#[test]
fn what_is_deferred_is_foretold_told_and_shown_until_it_is_in_force() {
    let mut daemon = Daemon::start();
    daemon.terminate();
    let metrics = daemon.dir.join("metrics.sock");
    daemon.start_again(&["--metrics", metrics.to_str().unwrap()]);
    daemon.run("dev add name n mgmtdev bridge/b mac 52:54:00:00:00:01 mtu 1500").good();
    let frontend = connect(&daemon, "n");
    let file = daemon.dir.join("n.toml");
    let text = daemon.run("config dump").good();
    let other = text.replace("52:54:00:00:00:01", "52:54:00:00:00:02").replace("mtu = 1500", "mtu = 1600");
    fs::write(&file, &other).unwrap();
    let (diff, apply) =
        (format!("config diff {}", file.display()), format!("config apply {}", file.display()));
    let none = || daemon.device("n").get("deferred").is_none();

    // Foretold, by both, and nothing is changed.
    let step_of = |plan: &Value| {
        plan["steps"]
            .as_array()
            .unwrap()
            .iter()
            .find(|step| step["name"] == "n" && step["action"] == "set")
            .cloned()
    };
    let keys = json!(["mac", "mtu"]);
    let plan = daemon.run(&format!("-j {diff}")).json();
    assert_eq!(step_of(&plan).unwrap()["deferred"], keys, "{plan}");
    let said = daemon.run(&diff).good();
    assert!(
        said.contains("mac, mtu: a front-end is connected: in force when the next one connects"),
        "{said}"
    );
    let plan = daemon.run("-j --dry-run dev set name n mtu 1600").json();
    assert_eq!(step_of(&plan).unwrap()["deferred"], json!(["mtu"]), "{plan}");
    assert!(none());

    // Done, and told: to scripts by the exit code.
    let done = daemon.run(&format!("-j {apply}"));
    assert_eq!(done.code, 65, "{done:?}");
    assert!(done.err.contains("not in force yet: n (mac, mtu)"), "{done:?}");
    let plan: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(step_of(&plan).unwrap()["deferred"], keys, "{plan}");
    // Applied again it is as the file says, and not in force all the same.
    let plan = daemon.run(&format!("-j {diff}")).json();
    assert_eq!((step_of(&plan), &plan["deferred"]["n"]), (None, &keys), "{plan}");
    assert!(daemon.run(&apply).bad(65).contains("n (mac, mtu)"));

    // Shown, by all who show devices.
    assert_eq!(daemon.device("n")["deferred"], keys);
    assert!(
        daemon
            .run("dev show n")
            .good()
            .contains("  note: mac, mtu changed: in force when the next front-end")
    );
    assert_eq!(daemon.run("-j inspect devices/n/deferred").json()["state"]["devices/n/deferred"], keys);
    let said = daemon.run("status").good();
    assert!(said.contains("  n: not in force before its next front-end connects: mac, mtu\n"), "{said}");
    assert_eq!(daemon.run("-j status").json()["status"]["deferred"]["n"], keys);
    let counted = |count: u64| {
        let line = format!("ringway_device_deferred{{dev=\"n\"}} {count}\n");
        crate::metrics::ask(&metrics, "GET /metrics HTTP/1.1\r\n\r\n").contains(&line)
    };
    assert!(counted(2));

    // What is set back to what there is was never deferred.
    daemon.run("dev set name n mac 52:54:00:00:00:01").good();
    assert_eq!(daemon.device("n")["deferred"], json!(["mtu"]));
    daemon.run("dev set name n mac 52:54:00:00:00:02").bad(65);

    // In force for the next.
    drop(frontend);
    wait_for("it is in force", none);
    let provisioned = daemon.device("n")["provisioned"].clone();
    assert_eq!((&provisioned["mac"], &provisioned["mtu"]), (&json!("52:54:00:00:00:02"), &json!(1600)));
    assert!(counted(0) && !daemon.run("status").good().contains("not in force"));
    daemon.run(&apply).good();
    connect(&daemon, "n");
}
