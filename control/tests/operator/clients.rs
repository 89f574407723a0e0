//! The operator socket's protocol, and clients that are slow, silent, loud or hostile.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::pace::Pace;
use crate::support::{Daemon, SOON, wait_for};

/// How long an operator who asks alone waits.
fn pace(daemon: &Daemon) -> Pace {
    Pace::of(|| drop(daemon.run("dev show").good()))
}

/// The daemon answers an operator, hardly later than one who asks alone.
#[track_caller]
fn answers(daemon: &Daemon, pace: Pace) {
    let before = Instant::now();
    daemon.run("dev show").good();
    pace.allows_since(50, before);
}

#[test]
fn socket_and_directories_are_closed_to_others() {
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&daemon.ctl()), 0o660);
    assert_eq!(mode(&daemon.socket("vm0")), 0o660);
    for dir in ["dev", "positions", "state"] {
        assert_eq!(mode(&daemon.dir.join(dir)), 0o750, "{dir}");
    }
    assert_eq!(mode(&daemon.dir.join("state/devices.json")), 0o640);
}

#[test]
fn viewers_see_everything_and_change_nothing() {
    let temp = tempfile::tempdir_in("/tmp").unwrap();
    let view = temp.path().join("view.sock");
    let group = rustix::process::getgid().as_raw().to_string();
    let daemon = Daemon::start_with(&["--view", view.to_str().unwrap(), "--view-group", &group]);
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let look = |line: &str| crate::support::ringway(&view, line);
    wait_for("the view-only socket", || look("hello").code == 0);
    assert_eq!(std::fs::metadata(&view).unwrap().mode() & 0o777, 0o660);
    assert!(look("dev show").good().contains("vm0"));
    assert!(look("dev vstats show vm0").good().contains("qidx"));
    assert_eq!(look("-j hello").json()["role"], "viewer");
    assert_eq!(daemon.run("-j hello").json()["role"], "administrator");
    for line in [
        "dev del vm0",
        "dev add name vm1 mgmtdev sim/net",
        "mgmtdev del sim/net",
        "dev set name vm0 mtu 1400",
    ] {
        let error = look(line).bad(5);
        assert!(error.contains("this socket is view-only") && error.contains("--ctl"), "{line}: {error}");
    }
    // What guests send is not for everybody, however it is asked for.
    let mut wire = crate::support::Wire::to(&view);
    for method in ["capture", "core.plan"] {
        let answer = wire.call(method, json!({ "name": "vm0" }));
        assert_eq!(answer["error"]["data"]["kind"], "permission", "{method}: {answer}");
    }
    // Nor is anybody asked who somebody is, so that viewers cost nothing that others wait for.
    let rehearse = |params| json!({ "method": "dev.add", "params": params });
    for keyword in ["owner", "group"] {
        let device = json!({ "name": "vm1", "mgmtdev": "sim/net", keyword: "somebody-unknown" });
        let answer = wire.call("dry_run", rehearse(device));
        assert_eq!(answer["error"]["data"]["kind"], "permission", "{answer}");
        assert_eq!(answer["error"]["data"]["path"], keyword, "{answer}");
        let device = json!({ "name": "vm1", "mgmtdev": "sim/net", keyword: "0" });
        let answer = wire.call("dry_run", rehearse(device));
        assert_eq!(answer["result"]["steps"][0]["name"], "vm1", "{answer}");
    }
    // And what it would be to spread the load takes no measurement away from whoever asks for it.
    let mut own = daemon.wire();
    own.call("core.plan", json!({}));
    std::thread::sleep(Duration::from_millis(300));
    let rehearsed = wire.call("dry_run", json!({ "method": "core.balance", "params": {} }));
    assert!(rehearsed["result"]["steps"].is_array(), "{rehearsed}");
    let over_ms = own.call("core.plan", json!({}))["result"]["over_ms"].as_u64().unwrap();
    assert!(over_ms >= 300, "{over_ms}");
    assert!(look("hello").good().contains("refused requests of viewers"));
    assert!(daemon.run("dev show").good().contains("vm0"));
    let log = daemon.log_until_now();
    assert_eq!(log.matches("refused: the socket is view-only").count(), 5, "{log}");
    // What runs is what its own description makes again.
    let dump = daemon.run("config dump").good();
    assert!(dump.contains(&format!("view = \"{}\"", view.display())), "{dump}");
    // Taken away, it comes again.
    std::fs::remove_file(&view).unwrap();
    wait_for("the socket is made again", || look("hello").code == 0);
    assert!(look("dev show").good().contains("vm0"));
}

#[test]
fn viewers_who_ask_for_all_that_there_is_leave_the_administrators_their_time() {
    let temp = tempfile::tempdir_in("/tmp").unwrap();
    let view = temp.path().join("view.sock");
    let daemon = Daemon::start_with(&["--view", view.to_str().unwrap()]);
    let mut own = daemon.wire();
    for nth in 0..10 {
        own.call("dev.add", json!({ "name": format!("vm{nth}"), "mgmtdev": "sim/net", "max_vqp": 4 }));
    }
    wait_for("the view-only socket", || view.exists());
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let asked = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut wire = crate::support::Wire::to(&view);
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    let answer = wire.call("inspect", json!({}));
                    assert!(answer["result"]["state"].is_object());
                    asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
        wait_for("they wait", || own.call("hello", json!({}))["result"]["viewer_waits"] != 0);
        let (before, begun) = (daemon.control_ticks(), Instant::now());
        std::thread::sleep(Duration::from_secs(3));
        let busy = Duration::from_millis(10) * u32::try_from(daemon.control_ticks() - before).unwrap();
        // A quarter is theirs, without what it takes to write the answers.
        assert!(busy < begun.elapsed() / 2, "{busy:?}");
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    // And each of them was answered.
    assert!(asked.into_inner() >= 8);
    assert!(
        crate::support::ringway(&view, "--timeout 60 hello")
            .good()
            .contains("waits of viewers for their part")
    );
}

/// What was made for a viewer is its own as soon as it takes it, and who only comes and goes takes time as well.
#[test]
fn viewers_take_what_was_made_without_a_turn_and_their_coming_is_counted() {
    let temp = tempfile::tempdir_in("/tmp").unwrap();
    let view = temp.path().join("view.sock");
    let daemon = Daemon::start_with(&["--view", view.to_str().unwrap()]);
    let mut own = daemon.wire();
    for nth in 0..150 {
        own.call("dev.add", json!({ "name": format!("vm{nth}"), "mgmtdev": "sim/net", "max_vqp": 4 }));
    }
    wait_for("the view-only socket", || view.exists());
    let mut wire = crate::support::Wire::to(&view);
    // Longer than what a socket holds. While it is read all viewers owe three times what it took, and more if it is much.
    let is_at_once = |wire: &mut crate::support::Wire| {
        let begun = Instant::now();
        wire.send("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"inspect\"}\n");
        std::io::BufRead::fill_buf(&mut wire.0).unwrap();
        let (made_in, begun) = (begun.elapsed(), Instant::now());
        let mut answer = String::new();
        std::io::BufRead::read_line(&mut wire.0, &mut answer).unwrap();
        let read_in = begun.elapsed();
        println!("{} bytes made in {made_in:?}, read in {read_in:?}", answer.len());
        std::thread::sleep(Duration::from_secs(1));
        answer.len() > 300_000 && read_in < made_in.max(Duration::from_millis(10))
    };
    let tries = (0..10).filter(|_| is_at_once(&mut wire)).count();
    assert!(tries > 0, "what was made waits for its reader's turn");

    let waits =
        |own: &mut crate::support::Wire| own.call("hello", json!({}))["result"]["viewer_waits"].as_u64();
    let before = waits(&mut own);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    drop(UnixStream::connect(&view));
                    // Others have the processor, too, and what waits to be taken is not without end.
                    std::thread::sleep(Duration::from_micros(100));
                }
            });
        }
        let begun = Instant::now();
        while waits(&mut own) == before && begun.elapsed() < SOON {
            std::thread::sleep(Duration::from_millis(5));
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(waits(&mut own) > before);
    // Who comes after them is let in, once those who left are let go of: that takes of the viewers' time as well.
    wait_for("who comes after them is let in", || {
        let hello = crate::support::ringway(&view, "hello");
        hello.code == 0 && hello.out.contains("waits of viewers for their part")
    });
}

/// One viewer that asks for much, again and again.
#[test]
fn viewer_that_asks_without_a_pause_keeps_neither_others_nor_followers_out() {
    let temp = tempfile::tempdir_in("/tmp").unwrap();
    let view = temp.path().join("view.sock");
    let daemon = Daemon::start_with(&["--view", view.to_str().unwrap()]);
    let mut own = daemon.wire();
    for nth in 0..100 {
        own.call("dev.add", json!({ "name": format!("vm{nth}"), "mgmtdev": "sim/net" }));
    }
    wait_for("the view-only socket", || view.exists());
    let mut follower = crate::support::Wire::to(&view);
    follower.call("events", json!({ "follow": true }));
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (mut asks, is_over) = (crate::support::Wire::to(&view), &is_over);
        let asked = scope.spawn(move || {
            let (mut count, begun) = (0, Instant::now());
            // Where a look below fails, it ends, too.
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) && begun.elapsed() < SOON * 2 {
                asks.call("inspect", json!({}));
                count += 1;
            }
            count
        });
        for nth in 0..3 {
            // Viewers have had their part by then.
            std::thread::sleep(Duration::from_millis(300));
            crate::support::ringway(&view, "hello").good();
            own.call("dev.add", json!({ "name": format!("new{nth}"), "mgmtdev": "sim/net" }));
            while !follower.receive().to_string().contains(&format!("new{nth}")) {}
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        let asked = asked.join().unwrap();
        assert!(asked > 3, "{asked}");
    });
}

/// Whatever is asked for, by whichever method, and what is said of it.
#[test]
fn what_is_asked_for_and_answered_stands_in_the_log_up_to_its_bound() {
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let mut wire = daemon.wire();
    let long = "x".repeat(300_000);
    for (method, params) in [
        ("capture", json!({ "name": "vm0", "filter": long })),
        ("capture", json!({ "name": "vm0", &*long: 1 })),
        ("config.apply", json!({ "file": long, "text": "[" })),
        ("config.apply", json!({ "file": "f", "text": "", "force": long })),
        ("dev.add", json!({ "name": long, "mgmtdev": "sim/net" })),
    ] {
        assert!(wire.call(method, params)["error"].is_object(), "{method}");
    }
    let log = daemon.log_until_now();
    let told: Vec<usize> = log.lines().filter(|line| line.contains("xxxx")).map(str::len).collect();
    // Twice 64 KiB, and who asked.
    assert!(told.len() >= 4 && told.iter().all(|len| *len < 140_000), "{told:?}");
}

#[test]
fn group_of_a_socket_that_there_is_not_is_refused() {
    let mut command = crate::support::ringwayd();
    command.args(["--ctl", "/tmp/none/ctl.sock", "--view-group", "0"]);
    assert!(crate::support::finish(command).bad(2).contains("view_group"));
}

#[test]
fn errors_carry_code_kind_hint_and_path() {
    let daemon = Daemon::start();
    let mut wire = daemon.wire();
    let answer = wire.call("dev.add", json!({ "name": "a", "mgmtdev": "sim/net", "mtu": 5 }));
    assert_eq!(answer["error"]["code"], -32602);
    let data = &answer["error"]["data"];
    assert_eq!(
        (&data["kind"], &data["path"], &data["retryable"]),
        (&json!("usage"), &json!("mtu"), &json!(false))
    );
    let answer = wire.call("dev.del", json!({ "name": "zzz" }));
    assert_eq!(
        (&answer["error"]["code"], &answer["error"]["data"]["hint"]),
        (&json!(-32003), &json!("ringway dev show"))
    );
    let answer = wire.call("dev.shwo", json!({}));
    assert_eq!(
        (&answer["error"]["code"], &answer["error"]["data"]["hint"]),
        (&json!(-32601), &json!("did you mean dev.show?"))
    );
    let answer = wire.call("dev.add", json!({ "name": "a", "mgmtdev": "sim/net", "sokcet": "/x" }));
    let data = &answer["error"]["data"];
    assert_eq!((&data["path"], &data["hint"]), (&json!("sokcet"), &json!("did you mean socket?")));
    for (text, code) in
        [("{\n", -32700), ("[]\n", -32600), ("{\"id\":4,\"method\":\"hello\"}\n", -32600), ("\n", -32700)]
    {
        wire.send(text);
        assert_eq!(wire.receive()["error"]["code"], code, "{text}");
    }
    assert!(wire.call("hello", json!({}))["result"]["api"].is_string());
}

#[test]
fn notification_is_done_and_not_answered() {
    let daemon = Daemon::start();
    let mut wire = daemon.wire();
    wire.send(
        "{\"jsonrpc\":\"2.0\",\"method\":\"dev.add\",\"params\":{\"name\":\"n\",\"mgmtdev\":\"sim/net\"}}\n",
    );
    let answer = wire.call("dev.show", json!({ "name": "n" }));
    assert_eq!(answer["result"]["dev"]["n"]["state"], "waiting");
}

#[test]
fn requests_sent_at_once_are_answered_in_order() {
    let daemon = Daemon::start();
    let mut wire = daemon.wire();
    let requests: String =
        (0..500).map(|n| format!("{{\"jsonrpc\":\"2.0\",\"id\":{n},\"method\":\"hello\"}}\n")).collect();
    wire.send(&requests);
    for n in 0..500 {
        assert_eq!(wire.receive()["id"], n);
    }
}

#[test]
fn two_clients_see_each_others_changes() {
    let daemon = Daemon::start();
    let (mut one, mut two) = (daemon.wire(), daemon.wire());
    one.call("dev.add", json!({ "name": "a", "mgmtdev": "sim/net" }));
    assert_eq!(two.call("dev.show", json!({}))["result"]["dev"]["a"]["state"], "waiting");
    two.call("dev.del", json!({ "name": "a" }));
    assert_eq!(one.call("dev.show", json!({}))["result"]["dev"], json!({}));
}

#[test]
fn silent_clients_give_way_and_half_a_request_delays_nobody() {
    let daemon = Daemon::start();
    let mut silent: Vec<UnixStream> = Vec::new();
    for _ in 0..64 {
        let mut stream = UnixStream::connect(daemon.ctl()).unwrap();
        stream.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"meth").unwrap();
        silent.push(stream);
    }
    // Once they have been silent for a second, an operator takes the place of one of them.
    wait_for("an operator is let in", || daemon.run("dev show").code == 0);
    let hello = daemon.run("-j hello").json();
    assert!(hello["dropped_clients"]["silent"].as_u64().unwrap() >= 1, "{hello}");
    assert!(hello["clients"].as_u64().unwrap() <= 64);
    // The longest silent one: which that is, the daemon decides by when it read what each had said.
    silent.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
    let has_ended = |mut stream: &UnixStream| stream.read(&mut [0u8; 1]).is_ok_and(|bytes| bytes == 0);
    wait_for("one of them is told", || silent.iter().any(has_ended));
}

#[test]
fn client_that_floods_and_never_reads_is_dropped_and_delays_nobody() {
    let daemon = Daemon::start();
    let pace = pace(&daemon);
    let mut loud = UnixStream::connect(daemon.ctl()).unwrap();
    loud.set_nonblocking(true).unwrap();
    let request = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"mgmtdev.show\"}\n".repeat(100);
    // For two seconds, and until it said as much as a socket holds.
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < Duration::from_secs(2) || sent <= 100_000 {
        assert!(begun.elapsed() < SOON, "{sent}");
        match loud.write(&request) {
            Ok(n) => sent += n,
            Err(_) => {
                answers(&daemon, pace);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    let rss = |daemon: &Daemon| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().to_owned();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    assert!(rss(&daemon) < 64 * 1024, "{} KiB", rss(&daemon));
    wait_for("the client that does not read is dropped", || {
        daemon.run("-j hello").json()["dropped_clients"]["slow_reader"] == 1
    });
}

#[test]
fn oversize_request_is_refused_and_the_client_dropped_by_name() {
    let daemon = Daemon::start();
    let mut wire = daemon.wire();
    let giant = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{}\"}}\n", "x".repeat(2150 * 1024));
    let _ = wire.0.get_mut().write_all(giant.as_bytes());
    let answer = wire.receive();
    assert_eq!(answer["error"]["code"], -32600);
    assert!(answer["error"]["message"].as_str().unwrap().contains("longer than"), "{answer}");
    assert_eq!(daemon.run("-j hello").json()["dropped_clients"]["oversize_request"], 1);
}

#[test]
fn garbage_of_every_kind_leaves_the_daemon_answering() {
    let daemon = Daemon::start();
    let pace = pace(&daemon);
    for garbage in [
        vec![0u8; 4096],
        vec![b'\n'; 4096],
        [b"{\"a\":".repeat(20_000), b"\n".to_vec()].concat(),
        b"\xff\xfe\xfd\n".to_vec(),
        b"{\"jsonrpc\":\"2.0\",\"id\":1e999,\"method\":\"hello\"}\n".to_vec(),
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"dev.add\",\"params\":{\"name\":[],\"mgmtdev\":{}}}\n"
            .to_vec(),
    ] {
        let mut stream = UnixStream::connect(daemon.ctl()).unwrap();
        let _ = stream.write_all(&garbage);
        drop(stream);
        answers(&daemon, pace);
    }
}

#[test]
fn slow_follower_is_told_what_it_lost() {
    // Many changes, each on disk before it is answered: kept in memory where that is possible.
    let memory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let daemon = Daemon::start_with(&["--log", "warn", "--state-dir", memory.path().to_str().unwrap()]);
    let mut follower = daemon.wire();
    follower.call("events", json!({ "since": 0, "follow": true }));
    let mut wire = daemon.wire();
    // More than the history and its outbox hold, while it reads nothing.
    for _ in 0..4000 {
        wire.call("dev.add", json!({ "name": "a", "mgmtdev": "sim/net", "mode": "client" }));
        wire.call("dev.del", json!({ "name": "a" }));
    }
    let (mut expected, mut lost) = (1, 0);
    while expected <= 8000 {
        let event = follower.receive()["params"].clone();
        let seq = event["seq"].as_u64().unwrap();
        if event["type"] == "events.lost" {
            lost += event["n"].as_u64().unwrap();
            assert_eq!(seq, expected + event["n"].as_u64().unwrap() - 1);
        } else {
            assert_eq!(seq, expected, "in order, without a gap that was not told");
        }
        expected = seq + 1;
    }
    assert!(lost > 0, "it was slow enough to lose some");
}

#[test]
fn changes_are_logged_with_who_asked() {
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    daemon.run("dev del nobody").bad(3);
    let log = daemon.logged("there is no device `nobody`");
    let uid = rustix::process::getuid().as_raw();
    let line = log.lines().find(|line| line.contains("dev.add") && line.contains("operator")).unwrap();
    assert!(line.contains(&format!("uid={uid}")) && line.contains("comm=\"ringway\""), "{line}");
    assert!(line.contains("outcome=\"ok\""), "{line}");
    let line = log.lines().find(|line| line.contains("dev.del")).unwrap();
    assert!(line.contains("outcome=\"there is no device `nobody`\""), "{line}");
    assert!(!log.lines().any(|line| line.contains("dev.show")), "reading is not a change");
}
