//! The log and the history of events as operators see them: changed while the daemon runs, and there after it.

use std::os::unix::fs::MetadataExt as _;

use ringway_guest::{Guest, GuestOptions};
use serde_json::json;

use crate::support::{Daemon, put_in_place, ringwayd, wait_for, whole_lines};

#[test]
fn messages_of_one_device_are_logged_while_an_operator_wants_them() {
    let daemon = Daemon::start();
    for name in ["a", "b"] {
        daemon.run(&format!("dev add name {name} mgmtdev sim/net")).good();
    }
    assert_eq!(daemon.run("log").good(), "level info to standard error\n");
    let shown = daemon.run("log set debug device a").good();
    assert_eq!(shown, "level info to standard error\n  device a level debug\n");
    let connect = |name: &str| Guest::connect(&daemon.socket(name), GuestOptions::default()).unwrap();
    drop((connect("a"), connect("b")));
    let log = daemon.logged("SET_VRING_KICK");
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("vhost-user ")).collect();
    assert!(lines.iter().all(|line| line.contains("DEBUG") && line.contains("dev=\"a\"")), "{lines:#?}");
    let features = lines.iter().find(|line| line.contains("GET_FEATURES")).unwrap();
    assert!(features.contains("flags 0x1 0 bytes: answered with 8 bytes"), "{features}");
    assert!(lines.iter().any(|line| line.contains("SET_VRING_KICK") && line.contains("1 descriptors: ")));
    // With their bytes; and no more.
    wait_for("it to have left", || daemon.device("a")["state"] == "waiting");
    assert_eq!(daemon.run("-j log set trace device a").json()["dev"], json!({ "a": "trace" }));
    drop(connect("a"));
    daemon.logged("TRACE");
    daemon.run("log set default device a").good();
    wait_for("it to have left", || daemon.device("a")["state"] == "waiting");
    let before = daemon.log_until_now().matches("vhost-user ").count();
    drop(connect("a"));
    wait_for("it to have left", || daemon.device("a")["state"] == "waiting");
    assert_eq!(daemon.log_until_now().matches("vhost-user ").count(), before);
    // Of all.
    daemon.run("log set warn,ringway_control=debug").good();
    drop(connect("b"));
    let is_of_b = |line: &str| line.contains("vhost-user ") && line.contains("dev=\"b\"");
    wait_for("those of the other", || daemon.log().lines().any(is_of_b));
}

#[test]
fn level_of_the_log_changes_while_the_daemon_runs_and_what_is_none_is_refused() {
    let daemon = Daemon::start();
    daemon.run("log set warn").good();
    daemon.run("dev add name quiet mgmtdev sim/net").good();
    assert_eq!(daemon.run("log set default").good(), "level info to standard error\n");
    daemon.run("dev add name loud mgmtdev sim/net").good();
    let log = daemon.logged("dev.added loud");
    assert!(!log.contains("dev.added quiet"), "{log}");
    // The change itself is told to whoever reads the log then.
    assert!(log.contains("method=\"log.set\" asked={\"level\":\"default\"}"), "{log}");
    for (line, code, said) in [
        ("log set loud", 2, "`loud` is not a level"),
        ("log set x=loud", 2, "error, warn, info, debug or trace"),
        ("log set debug device nobody", 3, "nobody"),
        ("log set debug quiet", 2, "takes a level, then `device NAME`"),
        ("log set warn device loud", 2, "`warn` is no level of a device"),
        ("log set debgu device loud", 2, "did you mean debug?"),
        ("log sett", 2, "did you mean set?"),
    ] {
        let told = daemon.run(line).bad(code);
        assert!(told.contains(said), "{line}: {told}");
    }
}

#[test]
fn lines_for_the_journal_have_a_priority_and_no_time() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("stream");
    let stream = std::fs::File::create(&path).unwrap();
    let facts = stream.metadata().unwrap();
    let mut command = ringwayd();
    command.env("JOURNAL_STREAM", format!("{}:{}", facts.dev(), facts.ino()));
    let daemon = Daemon::start_as(command, stream);
    // Where journald runs, it is told by its socket, and these lines are there.
    if std::path::Path::new("/run/systemd/journal/socket").exists() {
        assert_eq!(daemon.run("-j log").json()["to"], "journald");
        return;
    }
    assert_eq!(daemon.run("-j log").json()["to"], "standard error, for journald");
    daemon.run("dev add name a mgmtdev sim/net").good();
    let mut text = String::new();
    wait_for("both to be told", || {
        text = whole_lines(&path);
        text.contains("\n<6>dev.added a mgmtdev=") && text.contains("\n<6>operator method=dev.add")
    });
    assert!(text.lines().all(|line| line.starts_with("<6>") || line.starts_with("<4>")), "{text}");
    // That of another process is not ours.
    let mut command = ringwayd();
    command.env("JOURNAL_STREAM", format!("{}:{}", facts.dev(), facts.ino()));
    let other = temp.path().join("other");
    let _other = Daemon::start_as(command, std::fs::File::create(&other).unwrap());
    wait_for("it to be told", || whole_lines(&other).contains(" INFO "));
}

#[test]
fn events_are_there_after_a_daemon_that_was_killed_and_followers_go_on_where_they_were() {
    let mut daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev sim/net").good();
    daemon.run("dev del a").good();
    let first = daemon.run("-j hello").json()["instance"].as_str().unwrap().to_owned();
    let path = daemon.dir.join("state/events.jsonl");
    wait_for("the disk to have them", || {
        std::fs::read_to_string(&path).is_ok_and(|text| text.contains("dev.removed"))
    });
    daemon.kill();
    // The last line was cut off.
    let mut text = std::fs::read(&path).unwrap();
    text.extend_from_slice(b"{\"seq\":3,\"time_ns\":17");
    std::fs::write(&path, text).unwrap();
    daemon.start_again(&[]);
    daemon.logged("lines that a crash cut off");
    daemon.run("dev add name b mgmtdev sim/net").good();
    let all = daemon.run("events --once --since 0 --type dev").good();
    let lines: Vec<&str> = all.lines().collect();
    assert!(
        lines[0].starts_with(&format!("{}:1 ", &first[..8])) && lines[0].contains("dev.added a"),
        "{all}"
    );
    assert!(
        lines[1].contains("dev.removed a") && lines[2].starts_with("1 ") && lines[2].contains("dev.added b")
    );
    let after = daemon.run(&format!("-j events --once --since {first}:1 --type dev")).good();
    let after: Vec<serde_json::Value> =
        after.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(after.len(), 2, "{after:?}");
    assert_eq!((&after[0]["instance"], &after[0]["seq"]), (&json!(first), &json!(2)));
    let second = daemon.run("-j hello").json()["instance"].clone();
    assert_eq!((&after[1]["instance"], &after[1]["seq"]), (&second, &json!(1)));
    // A follower of the dead daemon's events, on the wire.
    let mut wire = daemon.wire();
    wire.call("events", json!({ "since": 2, "instance": first, "follow": true }));
    assert_eq!(wire.receive()["params"]["dev"], "b");
    daemon.run("dev del b").good();
    assert_eq!(wire.receive()["params"]["type"], "dev.removed");
    drop(wire);
    // Another file in its place is left as it is, under another name.
    daemon.terminate();
    std::fs::write(&path, "not ours\n").unwrap();
    daemon.start_again(&[]);
    daemon.logged("is no history of events");
    let other = daemon.dir.join("state/events.jsonl.other");
    assert_eq!(std::fs::read_to_string(other).unwrap(), "not ours\n");
    daemon.run("dev add name c mgmtdev sim/net").good();
    assert!(daemon.run("events --once --since 0 --type dev").good().contains("dev.added c"));
}

#[test]
fn events_that_cannot_be_kept_on_disk_are_told_and_kept_again_once_they_can() {
    let daemon = Daemon::start();
    let path = daemon.dir.join("state/events.jsonl");
    daemon.run("dev add name a mgmtdev sim/net").good();
    wait_for("the file", || path.exists());
    let other = daemon.dir.join("other");
    std::fs::create_dir(&other).unwrap();
    put_in_place(&other, &path);
    daemon.run("dev del a").good();
    let told = daemon.logged("events are not kept in");
    assert!(told.contains("host.missing") && told.contains("try="), "{told}");
    std::fs::remove_dir(&path).unwrap();
    daemon.run("dev add name b mgmtdev sim/net").good();
    wait_for("it to be kept", || {
        std::fs::read_to_string(&path).is_ok_and(|text| text.contains("\"dev\":\"b\""))
    });
}
