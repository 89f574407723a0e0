//! What keeps packets from a device: each cause brought about, named, and gone once it is mended.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ringway_guest::block::request::Request;
use ringway_guest::block::{BlockOptions, Port, Queue};
use ringway_guest::frame::Addresses;
use ringway_guest::{Guest, GuestOptions};
use ringway_ring::queue::Format;
use ringway_vhost_user::frontend::{Frontend, MemoryRegion};
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Value, json};

use crate::front_ends::EmptyPair;
use crate::support::{Daemon, SOON, wait_for};

/// The causes that are named, the first of them first.
fn causes(daemon: &Daemon, name: &str) -> Vec<String> {
    let why = daemon.run(&format!("-j why {name}")).json();
    let causes = why["why"][name].as_array().unwrap().clone();
    assert!(causes.iter().all(|cause| !cause["says"].as_str().unwrap().is_empty()), "{causes:?}");
    causes.iter().map(|cause| cause["cause"].as_str().unwrap().to_owned()).collect()
}

/// Whether this is among the causes.
fn is_named(daemon: &Daemon, name: &str, cause: &str) -> bool {
    causes(daemon, name).iter().any(|named| named == cause)
}

/// Does something while something else goes on, of which a turn is made again and again.
fn meanwhile<T: Send>(mut turn: impl FnMut(), done: impl FnOnce() -> T + Send) -> T {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let said = done();
            stop.store(true, Ordering::Relaxed);
            said
        });
        while !stop.load(Ordering::Relaxed) && !asking.is_finished() {
            turn();
        }
        asking.join().unwrap()
    })
}

/// Does something while a guest runs.
fn with_traffic<T: Send>(guest: &mut Guest, done: impl FnOnce() -> T + Send) -> T {
    let turn = || {
        guest.turn(8).unwrap();
        thread::sleep(Duration::from_micros(500));
    };
    meanwhile(turn, done)
}

/// A connected front-end that has agreed on features.
fn connect(daemon: &Daemon, name: &str) -> Frontend {
    let mut frontend = Frontend::connect(&daemon.socket(name), SOON).unwrap();
    frontend.set_timeout(SOON);
    frontend.handshake().unwrap();
    frontend
}

/// A guest with a disk.
fn disk(daemon: &Daemon, name: &str, depth: u16, max_bytes: u32) -> Port {
    let options = BlockOptions { queue_size: 1024, depth, max_bytes, ..BlockOptions::default() };
    Port::connect(&daemon.socket(name), options).unwrap()
}

/// Has as many reads under way as there may be.
fn read_all(queue: &mut Queue, bytes: u32) {
    while let Some(slot) = queue.reserve() {
        if let Err(slot) = queue.submit(slot, Request::read(0, bytes), 0) {
            queue.release(slot);
            break;
        }
    }
    queue.publish();
    let mut done = Vec::new();
    queue.collect(&mut done).unwrap();
    done.into_iter().for_each(|done| queue.release(done.slot));
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
    wait_for("buffers are missing", || causes(&daemon, "vm0")[0] == "no_buffers");
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

/// By the method itself: the later look decides, and nothing is kept of the first one but by who asks.
#[test]
fn later_look_is_judged_and_the_first_one_comes_back_with_the_request() {
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let mut wire = daemon.wire();
    let mut why = |before: Value| -> (Vec<Value>, Value) {
        let mut params = json!({ "name": "vm0" });
        if !before.is_null() {
            params["before"] = before;
        }
        let mut answer = wire.call("dev.why", params)["result"].take();
        let causes = answer["why"]["vm0"].as_array().unwrap();
        (causes.iter().map(|cause| cause["cause"].clone()).collect(), answer["look"].take())
    };
    let (causes, first) = why(Value::Null);
    assert_eq!(causes, ["waiting"]);
    // A look from later than now is of no time at all: nothing is told by it, and it goes on to be the first.
    let mut young = first.clone();
    young["up_ns"] = u64::MAX.into();
    assert_eq!(why(young.clone()), (causes, young));

    let mut guest = Guest::connect(&daemon.socket("vm0"), GuestOptions::default()).unwrap();
    let counted = || daemon.run("-j dev vstats show vm0 qidx 1").json()["vstats"]["vm0"]["packets"].as_u64();
    wait_for("frames are counted", || {
        guest.turn(16).unwrap();
        counted() > Some(0)
    });
    thread::sleep(Duration::from_millis(100));
    let (causes, second) = why(first.clone());
    assert!(!causes.iter().any(|cause| cause == "waiting"), "{causes:?}");
    assert_ne!(second, first);
    assert!(second["up_ns"].as_u64() > first["up_ns"].as_u64());
    assert!(second["queues"][1]["packets"].as_u64() > first["queues"][1]["packets"].as_u64(), "{second:#}");
    // One of another device of this name tells nothing: whether frames flow is not known.
    let mut other = first;
    other["id"] = u64::MAX.into();
    let mut says = wire.call("dev.why", json!({ "name": "vm0", "before": other }))["result"].take();
    assert_eq!(says["look"]["id"], second["id"]);
    let says = says["why"]["vm0"][0]["says"].take();
    assert!(!says.as_str().unwrap().contains("just now"), "{says}");

    // What is not there has the words that it has everywhere.
    let of = |method: &str| daemon.wire().call(method, json!({ "name": "vm1" }))["error"].take();
    assert_eq!(of("dev.why"), of("dev.show"));
    let refused =
        daemon.wire().call("dev.why", json!({ "name": "vm0", "before": { "up_ns": 1 } }))["error"].take();
    assert_eq!(refused["data"]["kind"], "usage", "{refused}");
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

#[test]
fn ring_that_broke_its_rules_and_front_end_that_broke_the_protocol_are_told() {
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let mut frontend = connect(&daemon, "vm0");
    let pair = EmptyPair::new(Format::Split);
    frontend.set_features(pair.features()).unwrap();
    pair.share(&mut frontend);
    pair.start(&mut frontend);
    frontend.set_status(15).unwrap();
    pair.post();
    wait_for("it runs", || daemon.device("vm0")["rings"][1]["runs"] == true);
    pair.send_from_nowhere();
    wait_for("it is stopped", || causes(&daemon, "vm0")[0] == "ring_fault");
    let said = daemon.run("why vm0").good();
    assert!(said.contains("queue 1 is stopped by a fault, unmapped: "), "{said}");
    drop(frontend);
    wait_for("it is gone", || causes(&daemon, "vm0") == ["waiting"]);

    let mut stream = UnixStream::connect(daemon.socket("vm0")).unwrap();
    stream.write_all(&[0xff; 64]).unwrap();
    wait_for("it is told", || causes(&daemon, "vm0") == ["breach"]);
    let said = daemon.run("why vm0").good();
    assert!(said.contains("disconnected since it broke the protocol: "), "{said}");
    // The one after it did not.
    drop(connect(&daemon, "vm0"));
    wait_for("that is over", || causes(&daemon, "vm0") == ["waiting"]);
}

/// A front-end that is refused something while its guest works goes on; that it is paused later does not come of it.
#[test]
fn what_was_refused_while_rings_ran_is_no_reason_for_a_pause() {
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let mut frontend = connect(&daemon, "vm0");
    let pair = EmptyPair::new(Format::Split);
    frontend.set_features(pair.features()).unwrap();
    pair.share(&mut frontend);
    pair.start(&mut frontend);
    frontend.set_status(15).unwrap();
    pair.post();
    wait_for("it runs", || causes(&daemon, "vm0") == ["idle"]);
    // One that goes on would tell of itself when the other is stopped.
    frontend.stop_ring(0).unwrap();
    let runs = |nth: usize| daemon.device("vm0")["rings"][nth]["runs"] == true;
    wait_for("one is stopped", || !runs(0) && runs(1));
    assert!(frontend.send_rarp([0; 6]).is_err());
    wait_for("it is counted", || daemon.device("vm0")["history"]["breaches"]["announced_address"] == 1);
    assert_eq!(daemon.device("vm0")["front_end"]["breach"], Value::Null);
    frontend.stop_ring(1).unwrap();
    wait_for("both are stopped", || !runs(1));
    assert_eq!(causes(&daemon, "vm0"), ["driver_not_up"]);
    // While nothing runs it is one.
    assert!(frontend.send_rarp([0; 6]).is_err());
    wait_for("it is told", || causes(&daemon, "vm0") == ["breach", "driver_not_up"]);
}

/// What this host lacked once is no reason for what is now.
#[test]
fn what_the_host_lacks_is_told_while_it_does_and_not_ever_after() {
    let mut limited = Command::new("/bin/sh");
    limited.args(["-c", "ulimit -v 16777216; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_ringwayd")]);
    limited.env_remove("RINGWAY_CTL").env_remove("RINGWAY_LOG").env_remove("NOTIFY_SOCKET");
    let daemon = Daemon::start_as(limited, Stdio::null());
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let mut frontend = connect(&daemon, "vm0");
    let pair = EmptyPair::new(Format::Split);
    frontend.set_features(pair.features()).unwrap();
    let size = 1 << 36;
    let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, size).unwrap();
    let vast = MemoryRegion { gpa: 0, size, user_addr: 1 << 43, file_offset: 0, file: file.as_fd() };
    assert!(frontend.set_mem_table(&[vast]).is_err());
    wait_for("it is told", || causes(&daemon, "vm0") == ["host_failure"]);
    let said = daemon.run("why vm0").good();
    assert!(said.contains("this host lacked what ") && said.contains("memory"), "{said}");
    pair.share(&mut frontend);
    pair.start(&mut frontend);
    frontend.set_status(15).unwrap();
    pair.post();
    wait_for("it runs", || causes(&daemon, "vm0") == ["idle"]);
    frontend.stop_ring(0).unwrap();
    frontend.stop_ring(1).unwrap();
    wait_for("it is stopped", || causes(&daemon, "vm0") == ["driver_not_up"]);
    frontend.set_status(0).unwrap();
    wait_for("its driver is gone", || {
        daemon.run("why vm0").good().contains("its queues ran, and were stopped")
    });
    drop(frontend);
    wait_for("it is gone", || causes(&daemon, "vm0") == ["waiting"]);
    let _frontend = connect(&daemon, "vm0");
    wait_for("another", || causes(&daemon, "vm0") == ["driver_not_up"]);
    assert_ne!(daemon.device("vm0")["history"]["host_failures"], serde_json::Value::Null);
}

#[test]
fn receiver_without_buffers_and_sender_above_its_rate_are_told() {
    let daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev link/l").good();
    daemon.run("dev add name b mgmtdev link/l").good();
    let mut frontend = connect(&daemon, "b");
    let pair = EmptyPair::new(Format::Split);
    frontend.set_features(pair.features()).unwrap();
    pair.share(&mut frontend);
    pair.start(&mut frontend);
    frontend.set_status(15).unwrap();
    pair.post();
    let mut guest = Guest::connect(&daemon.socket("a"), GuestOptions::default()).unwrap();
    with_traffic(&mut guest, || {
        wait_for("one buffer is not enough", || is_named(&daemon, "b", "no_rx_buffer"));
    });

    daemon.run("dev add name s mgmtdev bridge/b max_tx_pps 1").good();
    daemon.run("dev add name t mgmtdev bridge/b").good();
    let mut guest = Guest::connect(&daemon.socket("s"), GuestOptions::default()).unwrap();
    with_traffic(&mut guest, || wait_for("it is held", || is_named(&daemon, "s", "rate")));
}

#[test]
fn disks_tell_of_requests() {
    let daemon = Daemon::start();
    daemon.run("dev add name d0 mgmtdev sim/blk size 1048576 iops 1").good();
    daemon.run("dev add name d1 mgmtdev sim/blk size 1048576").good();
    let mut port = disk(&daemon, "d0", 16, 4096);
    let said = meanwhile(
        || {
            read_all(&mut port.queues_mut()[0], 4096);
            thread::sleep(Duration::from_millis(1));
        },
        || {
            wait_for("it is held", || is_named(&daemon, "d0", "rate"));
            daemon.run("why d0").good()
        },
    );
    assert!(said.contains("what is more waits in its queue (iops, bps)"), "{said}");
    let mut port = disk(&daemon, "d1", 4, 4096);
    wait_for("nothing is asked", || causes(&daemon, "d1") == ["idle"]);
    // Beyond its end.
    let said = meanwhile(
        || {
            port.perform(Request::read(1 << 20, 4096), &mut [0; 4096]).unwrap();
        },
        || {
            wait_for("it fails", || is_named(&daemon, "d1", "beyond_end"));
            daemon.run("why d1").good()
        },
    );
    assert!(said.contains("queue 0 fails requests, ") && !said.contains("frames"), "{said}");
    wait_for("that is over", || causes(&daemon, "d1") == ["idle", "beyond_end"]);
    // All of it is done, and counted so.
    let counted = daemon.run("-j dev vstats show d1").json()["vstats"]["d1"]["queues"][0].clone();
    assert_eq!(counted["received_desc"], counted["completed_desc"]);
    assert!(counted["completed_desc"].as_u64().unwrap() > 0);
}

#[test]
fn file_that_shrank_and_socket_that_another_took_are_told() {
    let daemon = Daemon::start();
    let path = daemon.dir.join("disk");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    daemon.run(&format!("dev add name d0 mgmtdev file path {}", path.display())).good();
    file.set_len(1 << 19).unwrap();
    wait_for("it is told", || causes(&daemon, "d0") == ["waiting", "failing"]);
    assert!(daemon.run("why d0").good().contains("it became smaller than the 1048576 bytes"));
    file.set_len(1 << 20).unwrap();
    wait_for("it is as it was", || causes(&daemon, "d0") == ["waiting"]);

    let socket = daemon.socket("d0");
    std::fs::remove_file(&socket).unwrap();
    let mut taken = UnixListener::bind(&socket);
    // Ringway may have been faster.
    while taken.is_err() {
        let _ = std::fs::remove_file(&socket);
        taken = UnixListener::bind(&socket);
    }
    wait_for("it is told", || causes(&daemon, "d0") == ["socket_missing"]);
    let said = daemon.run("why d0").good();
    assert!(said.contains("was taken away, and ") && said.contains("try: move "), "{said}");
    std::fs::remove_file(&socket).unwrap();
    wait_for("it is made again", || causes(&daemon, "d0") == ["waiting"]);
}

/// The only worker's core, and its thread.
fn worker(daemon: &Daemon) -> (usize, u64) {
    let shown = daemon.run("-j core show").json();
    let (core, info) = shown["core"].as_object().unwrap().iter().next().unwrap();
    (core.parse().unwrap(), info["tid"].as_u64().unwrap())
}

#[test]
fn core_that_is_at_its_limit_taken_by_others_or_shared_by_order_is_told() {
    let daemon = Daemon::start_with(&["--idle", "poll"]);
    let (core, tid) = worker(&daemon);
    const REQUEST: u32 = 1 << 20;
    daemon.run("dev add name d0 mgmtdev sim/blk size 16777216").good();
    // So many that the worker has some to do whenever this thread has no core.
    let mut port = disk(&daemon, "d0", 128, REQUEST);
    let read = || {
        read_all(&mut port.queues_mut()[0], REQUEST);
        thread::sleep(Duration::from_millis(1));
    };
    meanwhile(read, || wait_for("it is busy", || is_named(&daemon, "d0", "core_at_limit")));

    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut only = rustix::thread::CpuSet::new();
                only.set(core);
                rustix::thread::sched_setaffinity(None, &only).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("it is taken", || is_named(&daemon, "d0", "core_taken"));
        }));
        stop.store(true, Ordering::Relaxed);
        taken.unwrap();
    });

    let order = format!("-f -p 1 {tid}");
    let done = Command::new("chrt").args(order.split(' ')).status();
    // Not everybody may.
    if done.is_ok_and(|status| status.success()) {
        wait_for("it gives way", || is_named(&daemon, "d0", "core_gives_way"));
    }
}
