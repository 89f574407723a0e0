//! What a restart keeps, and who may start.

use std::time::Duration;

use crate::support::{Daemon, finish, ringwayd, wait_for};

#[test]
fn devices_are_there_again_after_sigkill_with_what_was_changed() {
    let mut daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev sim/net max_vqp 2 mtu 9000").good();
    daemon.run("dev add name b mgmtdev sim/net").good();
    daemon.run("dev add name gone mgmtdev sim/net").good();
    daemon.run("dev set name b mac 52:54:00:00:00:07").good();
    daemon.run("dev del gone").good();
    let before = daemon.run("config dump").good();
    let generation = daemon.run("-j hello").json()["generation"].clone();
    daemon.kill();
    assert!(daemon.socket("a").exists(), "a killed daemon leaves its sockets");
    daemon.start_again(&[]);
    assert_eq!(daemon.run("config dump").good(), before);
    assert_eq!(daemon.device("b")["provisioned"]["mac"], "52:54:00:00:00:07");
    assert_eq!(daemon.run("-j hello").json()["generation"], generation);
    assert_eq!(daemon.run("dev show gone").code, 3);
}

/// What is kept and the configuration file name the same device, and neither can be made: a JSON object has each key once.
#[test]
fn device_that_two_lists_name_and_neither_can_have_is_told_once() {
    let mut daemon = Daemon::start();
    let (kept, file) = (daemon.dir.join("kept.img"), daemon.dir.join("r.toml"));
    std::fs::write(&kept, [0; 4096]).unwrap();
    daemon.run(&format!("dev add name d0 mgmtdev file path {}", kept.display())).good();
    daemon.terminate();
    std::fs::remove_file(&kept).unwrap();
    let missing = daemon.dir.join("missing.img");
    let device = format!("[[device]]\nname = \"d0\"\nmgmtdev = \"file\"\npath = \"{}\"\n", missing.display());
    std::fs::write(&file, device).unwrap();
    daemon.start_again(&["--config", file.to_str().unwrap()]);
    let absent = daemon.run("-j dev show").json()["absent"].to_string();
    assert!(
        absent.contains("missing.img") && !absent.contains("kept.img"),
        "the file's goes first: {absent}"
    );
    // The other is not forgotten for that.
    std::fs::write(&kept, [0; 4096]).unwrap();
    wait_for("the operator's is made", || daemon.run("dev show d0").code == 0);
    assert!(daemon.run("-j dev show").json()["absent"]["d0"].is_string());
}

#[test]
fn sigterm_and_sigint_end_it_at_once_and_leave_no_socket() {
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let mut daemon = Daemon::start();
        daemon.run("dev add name a mgmtdev sim/net").good();
        let mut follower = daemon.wire();
        follower.call("events", serde_json::json!({ "follow": true }));
        daemon.signal(signal);
        assert_eq!(follower.receive()["params"]["type"], "daemon.stopping");
        let (code, took) = daemon.terminate();
        assert_eq!(code, 0);
        daemon.pace().allows(20, took);
        assert!(!daemon.ctl().exists() && !daemon.socket("a").exists());
    }
}

#[test]
fn status_and_wait_answer_scripts_by_their_exit_codes() {
    let mut daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev sim/net").good();
    let status = daemon.run("-j status").json();
    assert_eq!((&status["status"]["state"], &status["status"]["devices"]), (&"running".into(), &1.into()));
    assert!(status["status"].get("gap_ms").is_none(), "the first of its directory: {status}");
    daemon.run("wait").good();
    daemon.run("wait a made --within 0").good();
    for (line, told) in [
        ("wait a --within 0", "error: not within 0 s: a is waiting"),
        ("wait a connected --within 0", "error: not within 0 s: a is waiting"),
        ("wait b made --within 0", "error: not within 0 s: there is no device b"),
    ] {
        let error = daemon.run(line).bad(7);
        assert!(error.starts_with(told), "{line}: {error}");
    }
    let mut frontend =
        ringway_vhost_user::frontend::Frontend::connect(&daemon.socket("a"), crate::support::SOON).unwrap();
    frontend.handshake().unwrap();
    daemon.run("wait a connected").good();
    let error = daemon.run("wait a ready --within 0").bad(7);
    assert!(error.contains("no driver of its guest runs"), "{error}");
    drop(frontend);
    daemon.terminate();
    let error = daemon.run("status").bad(6);
    assert!(error.starts_with("error: ringwayd is not reachable"), "{error}");
    daemon.run("wait --within 0").bad(7);
    daemon.start_again(&[]);
    let status = daemon.run("-j status").json();
    assert!(status["status"]["gap_ms"].is_u64(), "{status}");
    assert!(daemon.run("status").good().contains("  gap "));
}

#[test]
fn signals_that_are_sent_out_of_habit_change_nothing() {
    use rustix::process::Signal;
    let daemon = Daemon::start();
    for signal in [Signal::HUP, Signal::USR1, Signal::USR2, Signal::PIPE, Signal::XFSZ] {
        daemon.signal(signal);
        std::thread::sleep(Duration::from_millis(20));
        daemon.run("hello").good();
    }
}

#[test]
fn file_that_may_not_grow_is_a_named_failure_and_no_death() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev sim/net").good();
    let before = daemon.run("config dump").good();
    let pid = Pid::from_raw(daemon.run("-j hello").json()["pid"].as_i64().unwrap() as i32);
    // The log cannot grow either.
    prlimit(pid, Resource::Fsize, Rlimit { current: Some(10), maximum: None }).unwrap();
    let error = daemon.run("dev add name b mgmtdev sim/net").bad(1);
    assert!(error.contains("File too large"), "{error}");
    assert_eq!(daemon.run("config dump").good(), before);
    prlimit(pid, Resource::Fsize, Rlimit { current: None, maximum: None }).unwrap();
    daemon.run("dev add name b mgmtdev sim/net").good();
}

#[test]
fn second_instance_is_refused_and_the_first_named() {
    let daemon = Daemon::start();
    let elsewhere = tempfile::tempdir().unwrap();
    for (ctl, state) in [
        (daemon.ctl(), elsewhere.path().join("state")),
        (elsewhere.path().join("ctl.sock"), daemon.dir.join("state")),
    ] {
        let mut command = ringwayd();
        command.arg("--ctl").arg(ctl).arg("--state-dir").arg(state);
        let error = finish(command).bad(4);
        assert!(error.contains(&format!("held by: ringwayd (pid {})", daemon.pid())), "{error}");
        assert!(error.contains("  try: "), "{error}");
    }
    daemon.run("hello").good();
}

#[test]
fn corrupt_state_stops_the_start_and_is_left_alone() {
    let mut daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev sim/net").good();
    daemon.terminate();
    let file = daemon.dir.join("state/devices.json");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, &good[..good.len() / 2]).unwrap();
    let mut command = ringwayd();
    command.arg("--ctl").arg(daemon.ctl()).arg("--state-dir").arg(daemon.dir.join("state"));
    let error = finish(command).bad(1);
    assert!(error.contains("the state file ") && error.contains("devices.json cannot be used"), "{error}");
    assert!(error.contains("  try: mend it, or move it away"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), good[..good.len() / 2]);
    std::fs::write(&file, good).unwrap();
    daemon.start_again(&[]);
    daemon.run("dev show a").good();
}

#[test]
fn state_that_cannot_be_written_fails_the_change_and_makes_nothing() {
    let daemon = Daemon::start();
    let state = daemon.dir.join("state");
    // A directory in the place of the file that is written first: no right of root's gets past it.
    std::fs::create_dir(state.join("devices.json.new")).unwrap();
    let error = daemon.run("dev add name a mgmtdev sim/net").bad(4);
    assert!(error.contains("cannot keep the change in "), "{error}");
    assert_eq!(daemon.run("-j dev show").good(), "{\"dev\":{}}\n");
    assert!(!daemon.socket("a").exists());
    std::fs::remove_dir(state.join("devices.json.new")).unwrap();
    daemon.run("dev add name a mgmtdev sim/net").good();
    std::fs::create_dir(state.join("devices.json.new")).unwrap();
    daemon.run("dev del a").bad(4);
    daemon.run("dev show a").good();
    daemon.run("dev set name a mtu 2000").bad(4);
    assert_eq!(daemon.device("a")["provisioned"]["mtu"], 1500);
}

#[test]
fn device_that_cannot_be_made_at_the_start_is_kept_and_comes_when_it_can() {
    let mut daemon = Daemon::start();
    let path = daemon.dir.join("other.sock");
    daemon.run(&format!("dev add name a mgmtdev sim/net socket {}", path.display())).good();
    daemon.terminate();
    let held = std::os::unix::net::UnixListener::bind(&path).unwrap();
    daemon.start_again(&[]);
    let shown = daemon.run("dev show").good();
    assert!(shown.contains("a: not made: cannot listen on ") && shown.contains("in use"), "{shown}");
    assert!(daemon.run("dev show a").bad(3).contains("not made"));
    // A change to another device does not lose it.
    daemon.run("dev add name b mgmtdev sim/net").good();
    let log = daemon.logged("0 of 1 devices made at the start");
    let failure = log.lines().find(|line| line.contains("device cannot be made")).unwrap();
    assert!(failure.contains("in use") && failure.contains("dev=\"a\""), "{log}");
    drop(held);
    wait_for("it is made", || daemon.run("dev show a").code == 0);
    assert!(daemon.run("events --once --since 0").good().contains(" dev.added a "));
    daemon.kill();
    daemon.start_again(&[]);
    daemon.run("dev show a").good();
    daemon.run("dev show b").good();
}

#[test]
fn second_daemon_in_the_runtime_directory_is_refused_and_the_first_is_named() {
    let daemon = Daemon::start();
    let mut second = ringwayd();
    second.arg("--ctl").arg(daemon.dir.join("other.sock")).arg("--state-dir").arg(daemon.dir.join("other"));
    let error = finish(second).bad(4);
    assert!(error.contains("another ringwayd holds the runtime directory"), "{error}");
    assert!(error.contains(&format!("held by: ringwayd (pid {})", daemon.pid())), "{error}");
    daemon.run("hello").good();
}

#[test]
fn default_addresses_are_the_daemons_own_and_stay_and_kept_ones_are_kept() {
    let mac = |daemon: &Daemon, name: &str| daemon.device(name)["provisioned"]["mac"].clone();
    let (mut a, b) = (Daemon::start(), Daemon::start());
    for daemon in [&a, &b] {
        daemon.run("dev add name vm0 mgmtdev bridge/br0").good();
    }
    let before = mac(&a, "vm0");
    assert_ne!(before, mac(&b, "vm0"));
    a.kill();
    a.start_again(&[]);
    assert_eq!(mac(&a, "vm0"), before);
    // A directory that an earlier version left: no seed, and a device whose address was made of its name.
    a.kill();
    std::fs::remove_file(a.dir.join("state/addresses.json")).unwrap();
    a.start_again(&[]);
    a.run("dev add name vm1 mgmtdev bridge/br0").good();
    assert_eq!(mac(&a, "vm0"), "52:57:d4:96:c5:4e");
    assert_ne!(mac(&a, "vm1"), "52:57:87:98:c5:4e");
    a.kill();
    a.start_again(&[]);
    assert_eq!(mac(&a, "vm0"), "52:57:d4:96:c5:4e");
}

/// A host that was made of the image of another one.
#[test]
fn addresses_of_another_machine_are_told_and_others_are_drawn_on_demand() {
    let mac = |daemon: &Daemon| daemon.device("vm0")["provisioned"]["mac"].clone();
    let mut daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev bridge/br0").good();
    let before = mac(&daemon);
    assert!(!daemon.run("status").good().contains("another machine"));
    daemon.kill();
    let file = daemon.dir.join("state/addresses.json");
    let mut kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    // A machine without an id is like any other.
    if kept["machine"].is_null() {
        return;
    }
    kept["machine"] = "00:00:00:00:00:00".into();
    std::fs::write(&file, kept.to_string()).unwrap();
    daemon.start_again(&[]);
    daemon.logged("addresses.json was made on another machine");
    let said = daemon.run("status").good();
    assert!(said.contains(&format!("{} was made on another machine", file.display())), "{said}");
    assert_eq!(mac(&daemon), before);
    daemon.kill();
    std::fs::write(&file, "{}").unwrap();
    daemon.start_again(&[]);
    assert!(!daemon.run("status").good().contains("another machine"));
    assert_ne!(mac(&daemon), before);
}

#[test]
fn management_device_that_cannot_be_made_at_the_start_is_kept_and_shown() {
    let mut daemon = Daemon::start();
    daemon.run("mgmtdev add name bridge/b ageing 77").good();
    daemon.run("mgmtdev add name bridge/good ageing 60").good();
    daemon.kill();
    let file = daemon.dir.join("state/devices.json");
    let text = std::fs::read_to_string(&file).unwrap();
    // As of a host that has fewer cores than before.
    let broken = text.replacen("\"ageing\": \"77\"", "\"ageing\": \"77\", \"core\": \"9999\"", 1);
    assert_ne!(broken, text);
    std::fs::write(&file, broken).unwrap();
    daemon.start_again(&[]);
    daemon.logged("management device cannot be made, it is kept");
    for line in ["mgmtdev show", "mgmtdev show bridge/b"] {
        let shown = daemon.run(line).good();
        assert!(shown.contains("bridge/b: not made as it was asked for: "), "{shown}");
    }
    // Its devices make one of defaults; what was asked for stays through every change.
    daemon.run("dev add name a mgmtdev bridge/b").good();
    daemon.run("mgmtdev set name bridge/good ageing 61").good();
    let shown = daemon.run("mgmtdev show bridge/good").good();
    let own_core = shown.split("setting core ").nth(1).unwrap().lines().next().unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("\"9999\"") && text.contains("\"77\""), "{text}");
    daemon.kill();
    std::fs::write(&file, text.replacen("9999", own_core, 1)).unwrap();
    daemon.start_again(&[]);
    let shown = daemon.run("mgmtdev show bridge/b").good();
    assert!(shown.contains("setting ageing 77") && !shown.contains("not made"), "{shown}");
    // It goes by being removed, also one that was not made.
    daemon.kill();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("\"77\"", "\"a week\"", 1)).unwrap();
    daemon.start_again(&[]);
    assert!(daemon.run("mgmtdev show").good().contains("bridge/b: not made"));
    daemon.run("mgmtdev del bridge/b").good();
    assert!(!std::fs::read_to_string(&file).unwrap().contains("a week"));
    assert!(!daemon.run("mgmtdev show").good().contains("not made"));
}

#[test]
fn state_file_of_a_newer_version_keeps_nobody_off_the_network() {
    let mut daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev sim/net").good();
    daemon.kill();
    let file = daemon.dir.join("state/devices.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("\"generation\"", "\"newkey\": 5, \"generation\"", 1)).unwrap();
    daemon.start_again(&[]);
    daemon.run("dev show a").good();
    daemon.logged("does not know are kept and have no effect: newkey");
    daemon.run("dev add name b mgmtdev sim/net").good();
    assert!(std::fs::read_to_string(&file).unwrap().contains("\"newkey\": 5"));
}

#[test]
fn ctl_that_is_a_directory_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let (ctl, state) = (dir.path().join("d"), dir.path().join("state"));
    std::fs::create_dir(&ctl).unwrap();
    let mut daemon = ringwayd();
    daemon.arg("--ctl").arg(&ctl).arg("--state-dir").arg(&state);
    let error = finish(daemon).bad(4);
    assert!(error.contains("is a directory\n  try: --ctl "), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
