//! What there is too little of, or what somebody does not take: descriptors, address space, a log that nobody reads, a
//! service manager that hangs, front-ends that flood. The operator is answered all the same, and told who holds it.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringway_ring::features::Features;
use ringway_vhost_user::frontend::{Frontend, MemoryRegion};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::json;

use crate::pace::Pace;
use crate::support::{Daemon, SOON, finish, ringwayd, wait_for};
use crate::taps::Namespace;

fn connect(daemon: &Daemon, name: &str) -> Frontend {
    let mut frontend = Frontend::connect(&daemon.socket(name), SOON).unwrap();
    frontend.set_timeout(SOON);
    frontend.handshake().unwrap();
    frontend
}

/// A socket that nobody reads and that holds nothing more: the end for the reader, and the one for the daemon.
fn full_log() -> (UnixStream, OwnedFd) {
    let (reader, writer) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    while (&writer).write(&[b'-'; 4096]).is_ok() {}
    while (&writer).write(b"-").is_ok() {}
    writer.set_nonblocking(false).unwrap();
    (reader, writer.into())
}

#[test]
fn log_that_nobody_reads_delays_nobody_and_tells_its_reader_what_it_missed() {
    let (mut reader, writer) = full_log();
    let mut daemon = Daemon::start_as(ringwayd(), writer);
    let lost = || daemon.run("-j hello").json()["lost_log_lines"].as_u64().unwrap();
    assert_eq!(lost(), 0);
    // Each is a line.
    let mut wire = daemon.wire();
    for n in 0..1500 {
        assert!(wire.call("dev.del", json!({ "name": format!("d{n}") }))["error"].is_object());
    }
    assert!((1..1500).contains(&lost()), "{}", lost());
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    drop(connect(&daemon, "vm0"));
    let shown = daemon.run("hello").good();
    assert!(shown.contains("lost lines of the log: "), "{shown}");
    // Its reader is back: what waited comes first, then how many are missing.
    let text = Arc::new(Mutex::new(Vec::new()));
    let reading = std::thread::spawn({
        let text = Arc::clone(&text);
        move || {
            let mut bytes = [0; 4096];
            loop {
                match reader.read(&mut bytes).unwrap() {
                    0 => break,
                    count => text.lock().unwrap().extend_from_slice(&bytes[..count]),
                }
            }
        }
    });
    let read = || String::from_utf8(text.lock().unwrap().clone()).unwrap();
    wait_for("all before a line to be read", || {
        assert!(wire.call("dev.del", json!({ "name": "mark" }))["error"].is_object());
        read().contains("`mark`")
    });
    let lost = lost();
    daemon.run("dev del vm0").good();
    assert_eq!(daemon.terminate().0, 0);
    reading.join().unwrap();
    let text = read();
    let told = |line: &str| line.split(" lines of the log were lost").next()?.parse::<u64>().ok();
    let told: u64 = text.lines().filter(|line| line.contains(" were lost: ")).filter_map(told).sum();
    assert!(told >= lost, "{told} of {lost}");
    let whole = |line: &str| line.contains(" INFO ") || line.contains(" were lost: ");
    let odd = text.trim_start_matches('-').lines().find(|line| !whole(line));
    assert_eq!(odd, None);
    assert!(text.lines().last().unwrap().contains("daemon.stopping"), "the last words are written");
}

#[test]
fn daemon_whose_log_nobody_reads_ends_in_time() {
    let (_reader, writer) = full_log();
    let another = writer.try_clone().unwrap();
    let mut daemon = Daemon::start_as(ringwayd(), writer);
    // One that may not start ends too, by its code.
    let mut second = ringwayd();
    second.arg("--ctl").arg(daemon.ctl()).arg("--state-dir").arg(daemon.dir.join("other"));
    let mut second = second.stderr(Stdio::from(another)).spawn().unwrap();
    wait_for("the second ends", || second.try_wait().unwrap().is_some());
    assert_eq!(second.wait().unwrap().code(), Some(4));
    let (code, took) = daemon.terminate();
    assert!(code == 0 && took < SOON, "{code} {took:?}");
}

#[test]
fn error_after_the_log_has_begun_is_the_last_word_on_standard_error() {
    let daemon = Daemon::start();
    let mut second = ringwayd();
    second.arg("--ctl").arg(daemon.ctl()).arg("--state-dir").arg(daemon.dir.join("other"));
    let error = finish(second).bad(4);
    assert!(error.contains("error: another ringwayd holds ") && error.ends_with('\n'), "{error}");
}

#[test]
fn service_manager_that_takes_nothing_delays_neither_service_nor_end() {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let path = dir.path().join("notify");
    let _manager = UnixDatagram::bind(&path).unwrap();
    let other = UnixDatagram::unbound().unwrap();
    other.set_nonblocking(true).unwrap();
    while other.send_to(b"x", &path).is_ok() {}
    let mut command = ringwayd();
    command.env("NOTIFY_SOCKET", &path);
    let mut daemon = Daemon::start_as(command, Stdio::null());
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    drop(connect(&daemon, "vm0"));
    let (code, took) = daemon.terminate();
    assert!(code == 0 && took < SOON, "{code} {took:?}");
}

/// `n` regions of a page each, in as many memory slots.
fn take_slots(frontend: &mut Frontend, file: BorrowedFd<'_>, n: u64) -> u64 {
    let region = |slot: u64| MemoryRegion {
        gpa: slot << 13,
        size: 4096,
        user_addr: 1 << 40 | slot << 13,
        file_offset: slot << 12,
        file,
    };
    (0..n).take_while(|slot| frontend.add_mem_reg(&region(*slot)).is_ok()).count() as u64
}

fn memfd(bytes: u64) -> OwnedFd {
    let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, bytes).unwrap();
    file
}

/// Processor time of control in a second, while `daemon` is left alone.
fn ticks_of_a_second(daemon: &Daemon) -> u64 {
    let before = daemon.control_ticks();
    std::thread::sleep(Duration::from_secs(1));
    daemon.control_ticks() - before
}

#[test]
fn front_ends_that_use_all_their_memory_slots_leave_descriptors_for_the_others_and_the_operator() {
    let mut limited = Command::new("/bin/sh");
    limited.args(["-c", "ulimit -n 1024; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_ringwayd")]);
    limited.env_remove("RINGWAY_CTL").env_remove("RINGWAY_LOG").env_remove("NOTIFY_SOCKET");
    let daemon = Daemon::start_as(limited, Stdio::null());
    for name in ["a", "b", "c"] {
        daemon.run(&format!("dev add name {name} mgmtdev sim/net")).good();
    }
    let idle = ticks_of_a_second(&daemon);
    let file = memfd(509 << 12);
    let mut held = Vec::new();
    for name in ["a", "b"] {
        let mut frontend = connect(&daemon, name);
        let slots = take_slots(&mut frontend, file.as_fd(), 509);
        assert!((8..509).contains(&slots), "{name}: {slots}");
        held.push(frontend);
    }
    daemon.run("dev show").good();
    let _waits = daemon.wire();
    let busy = ticks_of_a_second(&daemon);
    assert!(busy <= idle + 20, "{busy} ticks of 10 ms in a second, {idle} before");
    // Who comes later has what everybody needs.
    let mut late = connect(&daemon, "c");
    assert!(take_slots(&mut late, file.as_fd(), 8) == 8);
    daemon.run("dev add name d mgmtdev sim/net").good();
    daemon.run("-j hello").json();
    let events = daemon.run("events --once --since 0 --type session.host_failed").good();
    let told = |line: &str, words: &[&str]| words.iter().all(|word| line.contains(word));
    for words in [
        ["session.host_failed a", "share_exceeded", "a would hold", "LimitNOFILE"],
        ["session.host_failed b", "share_exceeded", "b would hold", "held by: a "],
    ] {
        assert!(events.lines().any(|line| told(line, &words)), "{words:?} in {events}");
    }
    assert!(!events.contains("breach"), "{events}");
    // Once they have left, there is all of it again.
    drop(held);
    wait_for("others can have it", || {
        let mut frontend = Frontend::connect(&daemon.socket("d"), SOON).unwrap();
        frontend.set_timeout(SOON);
        frontend.handshake().is_ok() && take_slots(&mut frontend, file.as_fd(), 100) == 100
    });
}

#[test]
fn interfaces_leave_what_is_kept_for_the_operator() {
    let Some(host) = Namespace::new("scarce") else { return };
    let mut limited = Command::new("/bin/sh");
    limited.args(["-c", "ulimit -n 256; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_ringwayd")]);
    limited.env_remove("RINGWAY_CTL").env_remove("RINGWAY_LOG").env_remove("NOTIFY_SOCKET");
    let daemon = Daemon::start_as(limited, Stdio::null());
    let count = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let before = count();
    let add = |n: usize| {
        let what = format!("dev add name h{n} mgmtdev bridge/b tap rwq{n} netns {} max_vqp 4", host.0);
        let made = daemon.run(&what);
        if made.code == 0 {
            wait_for("it is in service", || daemon.device(&format!("h{n}"))["state"] == "connected");
        }
        made
    };
    add(0).good();
    // Whoever asked last has one, until that is closed.
    wait_for("an interface of 4 queues has 31 descriptors", || count() <= before + 3 + 4 * 7);
    let refused = (1..16).map(add).find(|made| made.code != 0).expect("one is refused");
    let told = refused.bad(1);
    assert!(told.contains("not enough descriptors: h") && told.contains("held by: h0 31"), "{told}");
    assert!(told.contains("LimitNOFILE") && told.contains("max_vqp"), "{told}");
    assert!(count() <= before + 256 - 64, "{} descriptors, {before} before", count());
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    daemon.run("dev del h0").good();
    wait_for("another has them", || {
        daemon.run(&format!("dev add name last mgmtdev bridge/b tap rwl netns {} max_vqp 4", host.0)).code
            == 0
    });
}

/// Not one descriptor is left, for which no budget accounts: neither listener spins, and both are served afterwards.
#[test]
fn no_descriptor_at_all_costs_no_processor_time_and_is_overcome() {
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let idle = ticks_of_a_second(&daemon);
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    let ours = getrlimit(Resource::Nofile);
    let before = prlimit(pid, Resource::Nofile, Rlimit { current: Some(3), ..ours }).unwrap();
    let mut operator = daemon.wire();
    operator.send("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"hello\",\"params\":{}}\n");
    let stream = UnixStream::connect(daemon.socket("vm0")).unwrap();
    let busy = ticks_of_a_second(&daemon);
    prlimit(pid, Resource::Nofile, before).unwrap();
    assert!(busy <= idle + 20, "{busy} ticks of 10 ms in a second, {idle} before");
    assert!(operator.receive()["result"].is_object());
    let mut frontend = Frontend::from_stream(stream);
    frontend.set_timeout(SOON);
    frontend.handshake().unwrap();
    let log = daemon.logged("cannot accept an operator: ");
    assert!(log.contains("cannot accept an operator: ") && log.contains("LimitNOFILE"), "{log}");
    assert_eq!(log.matches("cannot accept an operator").count(), 1, "{log}");
}

#[test]
fn front_ends_with_vast_sparse_memory_leave_address_space_for_the_others() {
    const VAST: u64 = 1 << 42;
    let daemon = Daemon::start();
    let names: Vec<String> = (0..32).map(|n| format!("a{n}")).collect();
    for name in names.iter().map(String::as_str).chain(["n"]) {
        daemon.run(&format!("dev add name {name} mgmtdev sim/net")).good();
    }
    let idle = ticks_of_a_second(&daemon);
    let file = memfd(VAST);
    let region = |size| MemoryRegion { gpa: 0, size, user_addr: 1 << 43, file_offset: 0, file: file.as_fd() };
    let mut held = Vec::new();
    let mut refused = 0;
    for name in &names {
        let mut frontend = connect(&daemon, name);
        // The most that it may have.
        let got = (12..=42).rev().find(|shift| frontend.set_mem_table(&[region(1 << shift)]).is_ok());
        assert!(got.unwrap() >= 38, "{name}: {got:?}");
        refused += u32::from(got != Some(42));
        held.push(frontend);
    }
    assert!((1..32).contains(&refused), "{refused} of 32 were refused 4 TiB");
    // A guest of ordinary size, and a new device.
    let mut neighbour = connect(&daemon, "n");
    neighbour.set_mem_table(&[region(64 << 30)]).unwrap();
    daemon.run("dev add name late mgmtdev sim/net").good();
    drop(connect(&daemon, "late"));
    let busy = ticks_of_a_second(&daemon);
    assert!(busy <= idle + 20, "{busy} ticks of 10 ms in a second, {idle} before");
    let events = daemon.run("events --once --since 0 --type session.host_failed").good();
    let told = events.lines().find(|line| line.contains("not enough address space: "));
    let told = told.unwrap_or_else(|| unreachable!("nobody was told: {events}"));
    assert!(told.contains("held by: a") && told.contains("4194304 MiB"), "{told}");
    let shown = daemon.run("dev show a31").good();
    assert!(!shown.contains("broke the vhost-user protocol"), "{shown}");
}

#[test]
fn floods_of_states_leave_the_daemon_small_and_the_last_one_known() {
    let daemon = Daemon::start();
    let names: Vec<String> = (0..4).map(|n| format!("f{n}")).collect();
    for name in &names {
        daemon.run(&format!("dev add name {name} mgmtdev sim/net")).good();
    }
    let mut frontends: Vec<Frontend> = names.iter().map(|name| connect(&daemon, name)).collect();
    let flood = |frontends: &mut Vec<Frontend>, rounds: u32| {
        std::thread::scope(|scope| {
            for frontend in frontends {
                scope.spawn(move || {
                    for n in 0..rounds {
                        frontend.set_status([0, 1, 3][n as usize % 3]).unwrap();
                        frontend.enable_ring(n % 2, n % 4 < 2).unwrap();
                    }
                    frontend.set_status(0).unwrap();
                    frontend.set_status(3).unwrap();
                    frontend.enable_ring(0, true).unwrap();
                    frontend.enable_ring(1, false).unwrap();
                });
            }
        });
    };
    for frontend in &mut frontends {
        frontend.set_features(Features::VERSION_1).unwrap();
    }
    flood(&mut frontends, 200);
    let before = daemon.resident_kib();
    flood(&mut frontends, 10_000);
    let grown = daemon.resident_kib().saturating_sub(before);
    assert!(grown < 4096, "{grown} KiB more");
    for name in &names {
        wait_for("the newest status and the newest rings are known", || {
            let shown = daemon.device(name);
            let enabled = [0, 1].map(|ring| shown["rings"][ring]["enabled"].clone());
            shown["front_end"]["status"] == json!(["ACKNOWLEDGE", "DRIVER"])
                && enabled == [json!(true), json!(false)]
        });
    }
}

#[test]
fn front_ends_that_sent_garbage_and_left_delay_nobody() {
    const LEFT: u32 = 3000;
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let descriptors = daemon.descriptors();
    let pace = Pace::of(|| {
        drop(connect(&daemon, "vm0"));
        wait_for("its end is seen", || daemon.device("vm0")["state"] == "waiting");
    });
    let until = Instant::now() + SOON;
    for _ in 0..LEFT {
        let mut stream = loop {
            match UnixStream::connect(daemon.socket("vm0")) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
        };
        let _ = stream.write_all(&[0xee; 64]);
    }
    let begun = Instant::now();
    let _served = connect(&daemon, "vm0");
    // Those before it are looked at all the same, each for a small part of what one that is served takes.
    pace.allows_since(LEFT / 10, begun);
    wait_for("every descriptor is closed", || daemon.descriptors() <= descriptors + 16);
    let history = daemon.device("vm0")["history"].clone();
    assert!(history["left"].as_u64().unwrap() > 2000, "{history}");
}
