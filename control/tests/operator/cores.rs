//! Cores are the host's: who polls one has it alone among those who poll, and daemons see each other there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ringway_guest::{Guest, GuestOptions, load};
use serde_json::Value;

use crate::support::{Daemon, finish, polling, ringwayd, wait_for};

/// Not the default one, which other tests poll.
const CORE: &str = "0";

#[test]
fn core_that_a_daemon_polls_is_refused_to_another_that_would_and_shared_with_one_that_sleeps() {
    let _polling = polling();
    let poll = ["--cores", CORE, "--idle", "poll"];
    let mut first = Daemon::start_with(&poll);
    let named = format!("ringwayd (pid {})", first.pid());
    let temp = tempfile::tempdir_in("/tmp").unwrap();
    let dir = temp.path();
    let refused = |words: &[&str]| {
        let mut second = ringwayd();
        second.args(poll).args(words);
        let told = finish(second).bad(4);
        assert!(told.starts_with("error: core 0 is claimed: another process polls it"), "{told}");
        assert!(told.contains(&format!("held by: {named}")) && told.contains("try: --cores"), "{told}");
    };
    let (ctl, state) = (dir.join("ctl.sock"), dir.join("state"));
    refused(&["--ctl", ctl.to_str().unwrap(), "--state-dir", state.to_str().unwrap()]);
    // A back-end of one device as well, and a file that asks for it.
    refused(&["--socket-path", dir.join("net.sock").to_str().unwrap()]);
    let file = dir.join("r.toml");
    std::fs::write(&file, "[daemon]\ncores = [0]\nidle = \"poll\"\n").unwrap();
    let mut by_file = ringwayd();
    by_file.arg("--ctl").arg(&ctl).arg("--state-dir").arg(&state).arg("--config").arg(&file);
    assert!(finish(by_file).bad(4).contains(&named));

    // Two that sleep share it, with each other and with the one that polls; each sees the others.
    let adaptive = ["--cores", CORE];
    let (second, third) = (Daemon::start_with(&adaptive), Daemon::start_with(&adaptive));
    let shown = second.run("core show").good();
    assert!(shown.contains(&format!("  shared with {named}, which polls\n")), "{shown}");
    assert!(shown.contains(&format!("  shared with ringwayd (pid {}), adaptive\n", third.pid())), "{shown}");
    assert!(!shown.contains(&format!("(pid {})", second.pid())), "{shown}");
    let others = first.run("-j core show").json()["core"][CORE]["others"].clone();
    for other in [&second, &third] {
        let is_it =
            |text: &serde_json::Value| text.as_str().unwrap().contains(&format!("(pid {})", other.pid()));
        assert!(others.as_array().unwrap().iter().any(is_it), "{others}");
    }

    // What died holds nothing.
    first.kill();
    first.start_again(&poll);
    drop(second);
    assert!(!third.run("core show").good().contains(&named));
}

/// Does something while a guest sends and receives.
fn with_traffic(guest: &mut Guest, done: impl FnOnce() + Send) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            done();
            stop.store(true, Ordering::Relaxed);
        });
        while !stop.load(Ordering::Relaxed) && !asking.is_finished() {
            guest.turn(8).unwrap();
        }
        asking.join().unwrap();
    });
}

/// The pumps of a core.
fn pumps(daemon: &Daemon, core: &str) -> Vec<String> {
    let shown = daemon.run("-j core show").json();
    let pumps = shown["core"][core]["pumps"].as_array().cloned().unwrap_or_default();
    pumps.iter().map(|pump| pump["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn workers_come_are_drained_and_go_under_traffic_without_a_loss() {
    let daemon = Daemon::start_with(&["--cores", "1"]);
    daemon.run("dev add name vm0 mgmtdev sim/net max_vqp 2").good();
    daemon.run("dev add name vm1 mgmtdev sim/net").good();
    daemon.run("mgmtdev add name bridge/br0").good();
    let options = GuestOptions { pairs: 2, ..GuestOptions::default() };
    let mut guest = Guest::connect(&daemon.socket("vm0"), options).unwrap();
    with_traffic(&mut guest, || {
        wait_for("both pairs run", || pumps(&daemon, "1").len() == 2);
        assert!(daemon.run("core drain 1").bad(4).contains("core 1 has the only worker"));
        assert!(daemon.run("core del 1").bad(4).contains("try: ringway core drain 1 first"));
        daemon.run("core del 9").bad(3);
        assert!(daemon.run("core add 999").bad(3).contains("there is no core 999"));
        assert!(daemon.run("core add 1").bad(4).contains("core 1 has a worker"));
        let added = daemon.run("core add 0");
        assert!(added.code == 0 && added.err.contains("core 0 has work of the kernel's"), "{added:?}");
        assert!(pumps(&daemon, "0").is_empty(), "nothing is moved by itself");
        // By hand, and back.
        daemon.run("dev set name vm0 core 0").good();
        wait_for("both pairs are moved", || pumps(&daemon, "0").len() == 2);
        daemon.run("dev set name vm0 core 1").good();
        wait_for("both pairs are back", || pumps(&daemon, "1").len() == 2);
        for (from, to) in [("1", "0"), ("0", "1"), ("1", "0")] {
            let told = daemon.run(&format!("core drain {from}"));
            assert!(
                told.out.contains(&format!("vm0 group 1 goes from core {from} to core {to}\n")),
                "{told:?}"
            );
            assert!(
                told.out.contains(&format!("bridge/br0 goes from core {from} to core {to}\n")),
                "{told:?}"
            );
            assert_eq!(told.code, 0, "{told:?}");
            wait_for("both are there", || pumps(&daemon, from).is_empty() && pumps(&daemon, to).len() == 2);
            let refused = daemon.run(&format!("dev add name vm2 mgmtdev sim/net core {from}")).bad(4);
            assert!(refused.contains("is being drained"), "{refused}");
            assert!(daemon.run("core show").good().contains("draining"));
            if from != "1" || to != "0" {
                daemon.run(&format!("core add {from}")).good();
                continue;
            }
            daemon.run(&format!("core del {from}")).good();
            let shown = daemon.run("-j core show").json();
            assert_eq!(shown["core"].as_object().unwrap().keys().collect::<Vec<_>>(), [to]);
            assert!(!daemon.run("config dump").good().contains(&format!("cores = [{from}")));
            // Its thread is gone, and so is what was claimed.
            wait_for("its thread to be gone", || {
                let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
                let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
                tasks.flatten().filter_map(name).all(|name| name.trim() != format!("rw-core-{from}"))
            });
            daemon.run(&format!("core add {from}")).good();
        }
    });
    load::drain(&mut guest).unwrap();
    let stats = guest.stats();
    assert_eq!((load::lost(&stats), stats.corrupt, stats.skipped), (0, 0, 0), "{stats:?}");
    let events = daemon.run("-j events --once --since 0 --type core").good();
    for kind in ["core.added", "core.drained", "core.removed"] {
        assert!(events.contains(kind), "{events}");
    }
}

#[test]
fn balance_says_first_and_moves_only_when_told_and_nothing_that_was_given_a_core() {
    let daemon = Daemon::start_with(&["--cores", "1"]);
    for name in ["a", "b", "c"] {
        daemon.run(&format!("dev add name {name} mgmtdev sim/net")).good();
    }
    daemon.run("dev add name pinned mgmtdev sim/net core 1").good();
    daemon.run("core add 0").good();
    let mut guest = Guest::connect(&daemon.socket("a"), GuestOptions::default()).unwrap();
    with_traffic(&mut guest, || {
        wait_for("it runs", || pumps(&daemon, "1") == ["a.0"]);
        let balance =
            |how: &str| -> Value { daemon.run(&format!("-j core balance --seconds 1{how}")).json() };
        let said = balance("");
        assert_eq!(
            (&said["applied"], said["over_ms"].as_u64().unwrap() >= 1000),
            (&Value::from(false), true),
            "{said}"
        );
        let moves = said["moves"].as_array().unwrap();
        assert_eq!(moves.len(), 2, "{said}");
        assert!(
            moves.iter().all(|step| step["from"] == 1 && step["to"] == 0 && step["name"] != "pinned"),
            "{said}"
        );
        assert!(said["core"]["1"]["before_x100"].as_u64().unwrap() > 0, "{said}");
        // Said, and not done.
        for name in ["a", "b", "c"] {
            assert_eq!(daemon.device(name)["cores"], serde_json::json!([1]));
        }
        assert!(daemon.run("core balance --dry-run --seconds 1").good().contains("nothing is done yet"));
        let done = balance(" --apply");
        assert_eq!(
            (&done["applied"], done["moves"].as_array().unwrap().len()),
            (&Value::from(true), 2),
            "{done}"
        );
        let cores: Vec<Value> =
            ["a", "b", "c", "pinned"].map(|name| daemon.device(name)["cores"][0].clone()).into();
        assert_eq!(cores.iter().filter(|core| **core == 0).count(), 2, "{cores:?}");
        assert_eq!(cores[3], 1);
        let again = daemon.run("core balance --seconds 1").good();
        assert!(again.contains("nothing to move\n"), "{again}");
    });
    load::drain(&mut guest).unwrap();
    let stats = guest.stats();
    assert_eq!((load::lost(&stats), stats.corrupt), (0, 0), "{stats:?}");
}

#[test]
fn core_that_another_daemon_polls_is_not_added_and_named() {
    let _polling = polling();
    let first = Daemon::start_with(&["--cores", CORE, "--idle", "poll"]);
    let second = Daemon::start_with(&["--cores", "1", "--idle", "adaptive"]);
    // One that sleeps shares it.
    second.run(&format!("core add {CORE}")).good();
    assert!(
        second
            .run("core show")
            .good()
            .contains(&format!("  shared with ringwayd (pid {}), which polls\n", first.pid()))
    );
    drop(second);
    drop(first);
    let first = Daemon::start_with(&["--cores", CORE]);
    let second = Daemon::start_with(&["--cores", "1", "--idle", "poll"]);
    let third = {
        let mut other = ringwayd();
        let temp = tempfile::tempdir_in("/tmp").unwrap();
        let (ctl, state) = (temp.path().join("ctl.sock"), temp.path().join("state"));
        other.arg("--ctl").arg(&ctl).arg("--state-dir").arg(&state).args(["--cores", "1", "--idle", "poll"]);
        finish(other).bad(4)
    };
    assert!(third.contains(&format!("(pid {})", second.pid())), "{third}");
    second.run(&format!("core add {CORE}")).good();
    second.run(&format!("core drain {CORE}")).good();
    second.run(&format!("core del {CORE}")).good();
    // Let go of: another may poll it.
    let mut third = first;
    third.terminate();
    third.start_again(&["--cores", CORE, "--idle", "poll"]);
    let refused = second.run(&format!("core add {CORE}")).bad(4);
    assert!(refused.contains("claimed") && refused.contains(&format!("(pid {})", third.pid())), "{refused}");
}
