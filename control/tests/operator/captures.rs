//! Captures of frames with the real programs: what is in them, what is missed, how they end, and who can have them.

use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ringway_guest::frame::{Addresses, Sizes};
use ringway_guest::{Guest, GuestOptions};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{Daemon, Done, SOON, wait_for};
use crate::taps::Namespace;

/// A frame of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    time_ns: u64,
    bytes: Vec<u8>,
    /// On the wire.
    len: u32,
    comment: Option<String>,
    is_inbound: bool,
    queue: u32,
    missed: u64,
}

/// A capture file, read block for block.
#[derive(Debug, Default)]
struct Captured {
    interfaces: Vec<String>,
    frames: Vec<Seen>,
    /// Wanted, missed, and why it ended.
    totals: Option<(u64, u64, String)>,
}

impl Captured {
    #[track_caller]
    fn read(file: &Path) -> Captured {
        Captured::parse(&std::fs::read(file).unwrap())
    }

    #[track_caller]
    fn parse(mut rest: &[u8]) -> Captured {
        let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let long = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let mut captured = Captured::default();
        assert_eq!(word(rest, 0), 0x0a0d_0d0a, "a section comes first");
        while !rest.is_empty() {
            let (kind, len) = (word(rest, 0), word(rest, 4) as usize);
            let (block, behind) = rest.split_at(len);
            assert_eq!(word(block, len - 4) as usize, len);
            rest = behind;
            let body = &block[8..len - 4];
            let options = |mut at: usize| {
                let mut found = Vec::new();
                while at < body.len() {
                    let (code, bytes) = (word(body, at) & 0xffff, (word(body, at) >> 16) as usize);
                    found.push((code, body[at + 4..at + 4 + bytes].to_vec()));
                    at += 4 + bytes.next_multiple_of(4);
                }
                found
            };
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            match kind {
                1 => {
                    let options = options(8);
                    assert!(options.contains(&(9, vec![9])), "nanoseconds");
                    let name = options.into_iter().find(|(code, _)| *code == 2).unwrap().1;
                    captured.interfaces.push(text(name));
                }
                6 => {
                    let taken = word(body, 12) as usize;
                    let mut seen = Seen {
                        time_ns: u64::from(word(body, 4)) << 32 | u64::from(word(body, 8)),
                        bytes: body[20..20 + taken].to_vec(),
                        len: word(body, 16),
                        comment: None,
                        is_inbound: false,
                        queue: u32::MAX,
                        missed: 0,
                    };
                    for (code, value) in options(20 + taken.next_multiple_of(4)) {
                        match code {
                            1 => seen.comment = Some(text(value)),
                            2 => seen.is_inbound = word(&value, 0) & 3 == 1,
                            4 => seen.missed = long(&value),
                            6 => seen.queue = word(&value, 0),
                            _ => assert_eq!(code, 0),
                        }
                    }
                    captured.frames.push(seen);
                }
                5 => {
                    let (mut received, mut missed, mut comment) = (0, 0, String::new());
                    for (code, value) in options(12) {
                        match code {
                            1 => comment = text(value),
                            4 => received = long(&value),
                            5 => missed = long(&value),
                            _ => assert_eq!(code, 0),
                        }
                    }
                    captured.totals = Some((received, missed, comment));
                }
                other => assert_eq!(other, 0x0a0d_0d0a),
            }
        }
        captured
    }

    fn of_queue(&self, queue: u32) -> Vec<&Seen> {
        self.frames.iter().filter(|seen| seen.queue == queue).collect()
    }
}

/// `ringway capture` that runs.
struct Running(Option<Child>);

impl Running {
    /// Has begun when this returns.
    fn start(daemon: &Daemon, name: &str, words: &[&str], file: &Path) -> Running {
        let before = count(daemon, name);
        let mut command = Command::new(daemon.programs.join("ringway"));
        command.env("RINGWAY_CTL", daemon.ctl()).args(["capture", name]).args(words).arg("-w").arg(file);
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Its first words are sent once frames are copied.
        let is_written = || std::fs::metadata(file).is_ok_and(|meta| meta.len() > 0);
        wait_for("the capture to begin", || count(daemon, name) > before && is_written());
        Running(Some(child))
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.as_ref().unwrap().id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Waits for its end.
    fn end(mut self) -> Done {
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        Done {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn stop(self) -> Done {
        self.signal(Signal::INT);
        self.end()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn captures(daemon: &Daemon, name: &str) -> Vec<Value> {
    daemon.device(name)["captures"].as_array().cloned().unwrap_or_default()
}

/// Captures of a device that have begun: their buffers are there.
fn count(daemon: &Daemon, name: &str) -> usize {
    captures(daemon, name).len()
}

/// Frames that tcpdump reads in a file that pass its own filter.
#[track_caller]
fn by_tcpdump(file: &Path, filter: &str) -> Vec<String> {
    let output = Command::new("tcpdump").args(["-nne", "-r"]).arg(file).arg(filter).output();
    let output = output.expect("tcpdump is installed (deploy/test installs it)");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    // Of frames that it does not know it shows the bytes as well, in lines of their own.
    lines.lines().filter(|line| !line.starts_with('\t')).map(str::to_owned).collect()
}

/// Sends so many frames, and waits until what came of them has come.
fn send(guest: &mut Guest, frames: u64) {
    let before = guest.stats().sent;
    while guest.stats().sent < before + frames {
        let left = u32::try_from(before + frames - guest.stats().sent).unwrap();
        guest.turn(left.min(32)).unwrap();
    }
}

/// Waits until the device has taken so many frames of what its guest sent.
fn wait_for_sent(daemon: &Daemon, name: &str, frames: u64) {
    wait_for("all to be taken", || {
        let stats = daemon.run(&format!("-j dev vstats show {name} qidx 1")).json();
        stats["vstats"][name]["packets"].as_u64() >= Some(frames)
    });
}

fn file(daemon: &Daemon) -> PathBuf {
    daemon.dir.join("frames.pcapng")
}

#[test]
fn every_frame_of_known_traffic_is_in_a_capture_both_ways_and_in_order() {
    let daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev link/l").good();
    daemon.run("dev add name b mgmtdev link/l").good();
    let options = GuestOptions { sizes: Sizes::Fixed(300), ..GuestOptions::default() };
    let mut a = Guest::connect(&daemon.socket("a"), options).unwrap();
    let mut b = Guest::connect(&daemon.socket("b"), options).unwrap();
    let file = file(&daemon);
    let of_a = Running::start(&daemon, "a", &[], &file);
    let out_of_b = daemon.dir.join("b.pcapng");
    let of_b = Running::start(&daemon, "b", &["direction", "out", "snaplen", "60"], &out_of_b);
    send(&mut a, 200);
    let heard = |name: &str| {
        let stats = daemon.run(&format!("-j dev vstats show {name} qidx 0")).json();
        stats["vstats"][name]["packets"].as_u64().unwrap()
    };
    wait_for("all to arrive", || {
        b.turn(0).unwrap();
        heard("b") == 200
    });
    send(&mut b, 100);
    wait_for("all to arrive", || {
        a.turn(0).unwrap();
        heard("a") == 100
    });
    let said = of_a.stop();
    assert_eq!(said.err, "a: 300 frames captured, 0 missed\n", "{said:?}");
    let said = of_b.stop();
    assert_eq!((said.code, said.err.as_str()), (0, "b: 200 frames captured, 0 missed\n"));

    let captured = Captured::read(&file);
    assert_eq!(captured.interfaces, ["a"]);
    assert_eq!(captured.totals, Some((300, 0, "stopped: by whoever asked for it".to_owned())));
    let (sent, got) = (captured.of_queue(1), captured.of_queue(0));
    assert_eq!((sent.len(), got.len()), (200, 100));
    assert!(sent.iter().all(|seen| seen.is_inbound) && got.iter().all(|seen| !seen.is_inbound));
    assert!(captured.frames.iter().all(|seen| seen.comment.is_none() && seen.missed == 0));
    assert!(captured.frames.iter().all(|seen| seen.len == 300 && seen.bytes.len() == 300));
    assert!(captured.frames.is_sorted_by_key(|seen| seen.time_ns));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let last = u128::from(captured.frames.last().unwrap().time_ns);
    assert!(last <= now && now - last < 60_000_000_000, "{last} {now}");
    // What a sent is what b was given, as much of it as was wanted.
    let of_b = Captured::read(&out_of_b);
    assert_eq!(of_b.frames.len(), 200);
    for (sent, got) in sent.iter().zip(&of_b.frames) {
        assert_eq!((got.queue, got.is_inbound, got.len, got.bytes.len()), (0, false, 300, 60));
        assert_eq!(got.bytes, sent.bytes[..60]);
    }
    for (path, frames) in [(&file, 300), (&out_of_b, 200)] {
        let lines = by_tcpdump(path, "");
        assert_eq!(lines.len(), frames);
        assert!(lines.iter().all(|line| line.contains("length 300")), "{}", lines[0]);
    }
    wait_for("both to be over", || count(&daemon, "a") + count(&daemon, "b") == 0);
    let told = daemon.run("-j events --once --since 0 --type capture").good();
    assert!(told.contains("\"reason\":\"stopped\",\"captured\":300,\"missed\":0"), "{told}");
    daemon.logged("method=\"capture\" asked={\"name\":\"a\"");
}

#[test]
fn dropped_frames_are_captured_where_they_were_dropped_with_their_reasons() {
    let daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev bridge/b spoofchk on mac 52:54:00:00:00:01").good();
    daemon.run("dev add name b mgmtdev bridge/b").good();
    let addresses = |from: u8, to: u8| {
        let mac = |last: u8| [0x52, 0x54, 0, 0, 0, last];
        Addresses { to: mac(to), from: mac(from) }
    };
    let own = GuestOptions { addresses: addresses(1, 2), ..GuestOptions::default() };
    let spoofed = GuestOptions { addresses: addresses(9, 2), ..GuestOptions::default() };
    let dropped = |reason: &str| {
        let stats = daemon.run("-j dev vstats show a qidx 1").json();
        stats["vstats"]["a"]["drops"][reason].as_u64().unwrap_or(0)
    };
    let file = file(&daemon);
    let running = Running::start(&daemon, "a", &["drops"], &file);
    // Nobody is there.
    let mut a = Guest::connect(&daemon.socket("a"), own).unwrap();
    send(&mut a, 40);
    wait_for("all to be dropped", || {
        a.turn(0).unwrap();
        dropped("peer_down") == 40
    });
    drop(a);
    wait_for("it to leave", || daemon.device("a")["state"] == "waiting");
    let _b = Guest::connect(&daemon.socket("b"), GuestOptions::default()).unwrap();
    let mut a = Guest::connect(&daemon.socket("a"), spoofed).unwrap();
    send(&mut a, 30);
    wait_for("all to be dropped", || {
        a.turn(0).unwrap();
        dropped("spoofed_mac") == 30
    });
    drop(a);
    wait_for("it to leave", || daemon.device("a")["state"] == "waiting");
    // What passes is not wanted; the capture goes on over a guest's reconnection.
    let mut a = Guest::connect(&daemon.socket("a"), own).unwrap();
    send(&mut a, 20);
    let passed = || {
        let stats = daemon.run("-j dev vstats show b qidx 0").json();
        stats["vstats"]["b"]["packets"].as_u64().unwrap()
    };
    wait_for("all to pass", || {
        a.turn(0).unwrap();
        passed() == 20
    });
    assert_eq!(running.stop().code, 0);
    let captured = Captured::read(&file);
    let of = |reason: &str| {
        let comment = Some(format!("dropped: {reason}"));
        captured.frames.iter().filter(|seen| seen.comment == comment).collect::<Vec<_>>()
    };
    assert_eq!((of("peer_down").len(), of("spoofed_mac").len(), captured.frames.len()), (40, 30, 70));
    assert!(
        of("spoofed_mac").iter().all(|seen| seen.bytes[6..12] == [0x52, 0x54, 0, 0, 0, 9] && seen.queue == 1)
    );
    assert_eq!(by_tcpdump(&file, "ether src 52:54:00:00:00:09").len(), 30);
}

#[test]
fn receiver_without_buffers_is_shown_at_its_own_queue() {
    let daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev link/l").good();
    daemon.run("dev add name b mgmtdev link/l").good();
    let small = GuestOptions { queue_size: 8, ..GuestOptions::default() };
    let mut a = Guest::connect(&daemon.socket("a"), GuestOptions::default()).unwrap();
    let _b = Guest::connect(&daemon.socket("b"), small).unwrap();
    let file = file(&daemon);
    let running = Running::start(&daemon, "b", &["direction", "out"], &file);
    send(&mut a, 50);
    let stats = || daemon.run("-j dev vstats show b qidx 0").json()["vstats"]["b"].clone();
    wait_for("what finds no room to be dropped", || {
        a.turn(0).unwrap();
        let stats = stats();
        let dropped = stats["drops"]["no_rx_buffer"].as_u64().unwrap_or(0);
        dropped > 0 && stats["packets"].as_u64().unwrap() + dropped == 50
    });
    assert_eq!(running.stop().code, 0);
    let captured = Captured::read(&file);
    let no_buffer = Some("dropped: no_rx_buffer".to_owned());
    let dropped = captured.frames.iter().filter(|seen| seen.comment == no_buffer).count() as u64;
    assert_eq!(dropped, stats()["drops"]["no_rx_buffer"].as_u64().unwrap());
    assert_eq!(captured.frames.len(), 50);
}

#[test]
fn filter_and_count_decide_what_is_captured_and_when_it_ends() {
    let daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev sim/net").good();
    let mut guest = Guest::connect(&daemon.socket("a"), GuestOptions::default()).unwrap();
    let file = file(&daemon);
    let all = Running::start(&daemon, "a", &["count", "25", "queue", "1"], &file);
    let none = daemon.dir.join("none.pcapng");
    let arp = Running::start(&daemon, "a", &["filter", "arp or port 53"], &none);
    let ours = daemon.dir.join("ours.pcapng");
    let mac = Running::start(&daemon, "a", &["filter", "broadcast and not arp", "direction", "in"], &ours);
    send(&mut guest, 100);
    wait_for_sent(&daemon, "a", 100);
    // It ends by itself.
    let said = all.end();
    assert_eq!((said.code, said.err.as_str()), (0, "a: 25 frames captured, 0 missed\n"));
    let captured = Captured::read(&file);
    assert_eq!(captured.frames.len(), 25);
    assert_eq!(captured.totals.unwrap().2, "count: as many frames as were asked for");
    assert_eq!(arp.stop().err, "a: 0 frames captured, 0 missed\n");
    assert!(Captured::read(&none).frames.is_empty());
    assert_eq!(mac.stop().err, "a: 100 frames captured, 0 missed\n");
    assert_eq!(Captured::read(&ours).of_queue(1).len(), 100);
}

#[test]
fn client_that_does_not_read_delays_nobody_and_is_told_what_it_missed() {
    let daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev sim/net").good();
    let options = GuestOptions { sizes: Sizes::Fixed(1500), ..GuestOptions::default() };
    let mut guest = Guest::connect(&daemon.socket("a"), options).unwrap();
    let mut wire = daemon.wire();
    let begun = wire.call("capture", json!({ "name": "a" }));
    assert_eq!(begun["result"]["queues"], json!([0, 1]), "{begun}");
    // Several times what both buffers and the socket hold.
    let frames = 12_000;
    let begun = std::time::Instant::now();
    send(&mut guest, frames);
    wait_for("all to come back", || {
        guest.turn(0).unwrap();
        guest.stats().received >= frames
    });
    assert!(begun.elapsed() < SOON);
    let shown = captures(&daemon, "a");
    let missed = shown[0]["missed"].as_u64().unwrap();
    assert!(missed > 0, "{shown:?}");
    assert!(daemon.run("dev show a").good().contains("captured by "));
    // Others are answered meanwhile.
    daemon.run("hello").good();
    // It reads again: what it missed is told, frame for frame.
    wire.0.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    let mut bytes = Vec::new();
    wire.0.read_to_end(&mut bytes).unwrap();
    let captured = Captured::parse(&bytes);
    let (received, missed, _) = captured.totals.clone().unwrap();
    assert_eq!(received, 2 * frames);
    assert_eq!(captured.frames.len() as u64, received - missed);
    let between: u64 = captured.frames.iter().map(|seen| seen.missed).sum();
    assert!(between <= missed);
    wait_for("it to be over", || count(&daemon, "a") == 0);
}

#[test]
fn reader_that_takes_nothing_for_too_long_is_told_why_its_capture_ended() {
    let daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev sim/net").good();
    let options = GuestOptions { sizes: Sizes::Fixed(1500), ..GuestOptions::default() };
    let mut guest = Guest::connect(&daemon.socket("a"), options).unwrap();
    let mut command = Command::new(daemon.programs.join("ringway"));
    command.env("RINGWAY_CTL", daemon.ctl()).args(["capture", "a", "-w", "-"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    // Its first words are sent once frames are copied.
    out.read_exact(&mut [0; 4]).unwrap();
    assert_eq!(count(&daemon, "a"), 1);
    // More than pipe and socket hold.
    send(&mut guest, 2000);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30) + SOON;
    while count(&daemon, "a") > 0 {
        assert!(std::time::Instant::now() < until, "the capture goes on");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let mut taken = Vec::new();
    out.read_to_end(&mut taken).unwrap();
    let said = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(1), "{told}");
    assert!(told.contains("the capture ended: slow_reader"), "{told}");
    assert!(!taken.is_empty());
}

#[test]
fn capture_of_a_device_that_is_removed_ends_whole_and_says_so() {
    let mut daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev sim/net").good();
    daemon.run("dev add name b mgmtdev sim/net").good();
    let file = file(&daemon);
    let mut guest = Guest::connect(&daemon.socket("a"), GuestOptions::default()).unwrap();
    let running = Running::start(&daemon, "a", &[], &file);
    send(&mut guest, 10);
    wait_for_sent(&daemon, "a", 10);
    daemon.run("dev del a").good();
    let said = running.end().bad(1);
    assert!(said.contains("the capture ended: device_removed: the device was removed"), "{said}");
    assert_eq!(Captured::read(&file).of_queue(1).len(), 10);
    // One that is killed is over as well, and a daemon that stops says so.
    let killed = Running::start(&daemon, "b", &[], &file);
    drop(killed);
    wait_for("it to be over", || count(&daemon, "b") == 0);
    let running = Running::start(&daemon, "b", &[], &file);
    let (code, took) = daemon.terminate();
    assert_eq!(code, 0);
    assert!(took < SOON, "{took:?}");
    let said = running.end().bad(1);
    assert!(said.contains("daemon_stopping"), "{said}");
    assert!(Captured::read(&file).totals.unwrap().2.starts_with("daemon_stopping"));
}

#[test]
fn capture_that_finds_no_memory_is_told_as_one_that_could_not_begin() {
    use rustix::process::{Resource, Rlimit, prlimit};

    let daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev sim/net").good();
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let kib: u64 = size.trim().trim_end_matches(" kB").parse().unwrap();
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    // Enough for a thread, and not for two queues' buffers.
    let limit = Rlimit { current: Some((kib << 10) + (1 << 20)), maximum: None };
    let before = prlimit(pid, Resource::As, limit).unwrap();
    let said = daemon.run("capture a -w /dev/null").bad(1);
    prlimit(pid, Resource::As, before).unwrap();
    assert!(said.contains("there is no memory for the capture") && said.contains("MemoryMax="), "{said}");
    let events = |kind: &str| daemon.run(&format!("events --once --since 0 --type {kind}")).good();
    wait_for("it is told", || events("capture.failed").contains("there is no memory for the capture"));
    assert_eq!((events("capture.started"), events("capture.ended")), (String::new(), String::new()));
    // Its place is free again.
    let file = file(&daemon);
    Running::start(&daemon, "a", &[], &file).stop().good();
    assert!(events("capture.started").contains("capture.started"));
}

#[test]
fn what_cannot_be_captured_is_refused_with_the_reason() {
    let daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev sim/net").good();
    daemon.run("dev add name d mgmtdev sim/blk size 1M").good();
    for (line, code, said) in [
        ("capture x -w /dev/null", 3, "x"),
        ("capture d -w /dev/null", 2, "d is a disk"),
        ("capture a queue 2 -w /dev/null", 3, "it has 2 queues, counted from 0"),
        ("capture a queue 1 direction out -w /dev/null", 2, "queue 1 goes in"),
        ("capture a direction up -w /dev/null", 2, "direction in, or direction out"),
        ("capture a snaplen 13 -w /dev/null", 2, "must be 14 to 262144 bytes"),
        ("capture a snaplen 262145 -w /dev/null", 2, "must be 14 to 262144 bytes"),
        ("capture a count 0 -w /dev/null", 2, "must be 1 or more"),
        ("capture a filter prot -w /dev/null", 2, "there is no such test"),
        ("capture a filter udp and tcp -w /dev/null", 2, "in quotes"),
        ("capture a quue 1 -w /dev/null", 2, "did you mean queue?"),
        ("capture a drops drops -w /dev/null", 2, "given twice"),
        ("capture a count -w /dev/null", 2, "count has no value"),
        ("capture a", 2, "--write"),
    ] {
        let told = daemon.run(line).bad(code);
        assert!(told.contains(said), "{line}: {told}");
    }
    let longest = |len: usize| {
        let filter = format!("{}arp", " ".repeat(len - 3));
        daemon.wire().call("capture", json!({ "name": "a", "filter": filter }))
    };
    assert!(longest(4096)["result"].is_object());
    assert!(longest(4097)["error"]["message"].as_str().unwrap().contains("longer than 4096"));
    // As many at a time as there may be.
    wait_for("the last to be over", || count(&daemon, "a") == 0);
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut wire = daemon.wire();
        assert!(wire.call("capture", json!({ "name": "a" }))["result"].is_object());
        held.push(wire);
    }
    let told = daemon.run("capture a -w /dev/null").bad(4);
    assert!(told.contains("4 captures run already") && told.contains("held by"), "{told}");
    // What was refused is still a client.
    let mut wire = daemon.wire();
    assert!(wire.call("capture", json!({ "name": "x" }))["error"].is_object());
    assert!(wire.call("hello", json!({}))["result"].is_object());
}

#[test]
fn file_of_a_capture_is_its_owners_alone_and_a_full_disk_is_told() {
    let daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev sim/net").good();
    let file = file(&daemon);
    let mode = || std::fs::metadata(&file).unwrap().mode() & 0o777;
    Running::start(&daemon, "a", &[], &file).stop().good();
    assert_eq!(mode(), 0o600);
    std::fs::write(&file, [b'x'; 1 << 16]).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    Running::start(&daemon, "a", &[], &file).stop().good();
    assert_eq!(mode(), 0o600);
    assert!(Captured::read(&file).totals.is_some(), "nothing is left of what was there");
    let (link, twin) = (daemon.dir.join("link"), daemon.dir.join("twin"));
    std::os::unix::fs::symlink(&file, &link).unwrap();
    std::fs::hard_link(&file, &twin).unwrap();
    let line = |path: &Path| format!("capture a -w {}", path.display());
    daemon.run(&line(&link)).bad(1);
    let told = daemon.run(&line(&twin)).bad(4);
    assert!(told.contains("has another name besides"), "{told}");
    let told = daemon.run(&line(&daemon.dir)).bad(4);
    assert!(told.contains("cannot write"), "{told}");
    // One that was somebody else's would stay so: who owns it reads it. Only root gives a file away.
    let others = daemon.dir.join("others");
    let own = rustix::process::geteuid();
    if own.is_root() {
        std::fs::write(&others, "theirs").unwrap();
        std::os::unix::fs::chown(&others, Some(12_345), None).unwrap();
        let told = daemon.run(&line(&others)).bad(4);
        assert!(told.contains("belongs to the user 12345"), "{told}");
        assert_eq!(std::fs::read_to_string(&others).unwrap(), "theirs");
        std::os::unix::fs::chown(&others, Some(own.as_raw()), None).unwrap();
    }
    // Who had it open while it could be read by all reads nothing of it.
    std::fs::write(&others, "old").unwrap();
    std::fs::set_permissions(&others, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut early = std::fs::File::open(&others).unwrap();
    Running::start(&daemon, "a", &[], &others).stop().good();
    let mut read = String::new();
    early.read_to_string(&mut read).unwrap();
    assert_eq!(read, "old");
    assert!(Captured::read(&others).totals.is_some());
    // What cannot be written is found out before anything is captured, and what is refused leaves nothing behind.
    let begun = || daemon.run("-j events --once --since 0 --type capture.started").good().lines().count();
    let before = begun();
    daemon.run("capture a -w /nonexistent/x").bad(3);
    assert_eq!(begun(), before);
    let none = daemon.dir.join("none");
    daemon.run(&format!("capture nosuch -w {}", none.display())).bad(3);
    assert!(!none.exists());
    // What is written at once is refused: the section's beginning.
    let told = daemon.run("capture a -w /dev/full").bad(1);
    assert!(told.contains("cannot write /dev/full") && told.contains("No space left"), "{told}");
    // To standard output, whose reader goes.
    let mut command = Command::new(daemon.programs.join("ringway"));
    command.env("RINGWAY_CTL", daemon.ctl()).args(["capture", "a", "-w", "-"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut first = [0; 4];
    out.read_exact(&mut first).unwrap();
    assert_eq!(first, 0x0a0d_0d0au32.to_le_bytes());
    drop(out);
    // Also while nothing comes; what was missed is what the daemon says.
    wait_for("it to end", || child.try_wait().unwrap().is_some());
    let said = child.wait_with_output().unwrap();
    assert!(said.status.success(), "{said:?}");
    assert_eq!(String::from_utf8_lossy(&said.stderr), "a: 0 frames captured, 0 missed\n");
    wait_for("the daemon to know", || count(&daemon, "a") == 0);
}

#[test]
fn interface_on_another_core_than_the_guest_has_both_ways_and_its_drops_are_captured_there() {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        return;
    }
    let Some(host) = Namespace::new("cores") else { return };
    let daemon = Daemon::start_with(&["--cores", "0,1"]);
    let ns = &host.0;
    daemon.run("mgmtdev add name bridge/b core 0").good();
    daemon.run("dev add name a mgmtdev bridge/b").good();
    daemon.run(&format!("dev add name h mgmtdev bridge/b tap rwt8 netns {ns}")).good();
    daemon.run("dev set name h core 1").good();
    wait_for("the interface to be in service", || daemon.device("h")["state"] == "connected");
    assert!(host.ip("addr add 192.0.2.1/24 dev rwt8") && host.ip("link set rwt8 up"));
    let mut a = Guest::connect(&daemon.socket("a"), GuestOptions::default()).unwrap();
    let served = |name: &str| daemon.run(&format!("-j dev show {name}")).json()["dev"][name]["cores"].clone();
    assert_eq!((served("a"), served("h")), (json!([0]), json!([1])));
    let of = |name: &str, queue: u8| {
        let stats = daemon.run(&format!("-j dev vstats show {name} qidx {queue}")).json();
        stats["vstats"][name].clone()
    };
    let packets = |name: &str, queue: u8| of(name, queue)["packets"].as_u64().unwrap();
    // To the kernel, and from it: it asks everybody for an address that nobody has.
    send(&mut a, 200);
    wait_for("the kernel to be given all", || {
        a.turn(0).unwrap();
        packets("h", 0) == 200
    });
    let before = packets("a", 0);
    let datagram = ["netns", "exec", ns, "bash", "-c", "echo > /dev/udp/192.0.2.9/9"];
    assert!(Command::new("ip").args(datagram).output().unwrap().status.success());
    wait_for("the guest to hear it", || {
        a.turn(0).unwrap();
        packets("a", 0) > before
    });
    // More than it is given.
    daemon.run("dev set name h max_rx_pps 1").good();
    let file = file(&daemon);
    let running = Running::start(&daemon, "h", &["direction", "out", "filter", "ethertype 0x88b5"], &file);
    send(&mut a, 50);
    let dropped = || of("h", 0)["drops"]["rate_limit"].as_u64().unwrap_or(0);
    wait_for("what is beyond its rate to be dropped", || {
        a.turn(0).unwrap();
        packets("h", 0) - 200 + dropped() == 50
    });
    assert_eq!(running.stop().code, 0);
    let captured = Captured::read(&file);
    let limited = Some("dropped: rate_limit".to_owned());
    let shown = captured.frames.iter().filter(|seen| seen.comment == limited).count() as u64;
    assert!(dropped() > 0 && shown == dropped(), "{shown} of {}", dropped());
    assert_eq!(captured.of_queue(0).len(), 50);
    assert_eq!(of("a", 1)["drops"]["lane_full"].as_u64().unwrap_or(0), 0);
}

#[test]
fn frames_of_the_kernels_interface_are_captured_at_the_hosts_device() {
    let Some(host) = Namespace::new("capture") else { return };
    let daemon = Daemon::start();
    let ns = &host.0;
    daemon.run("dev add name a mgmtdev bridge/b").good();
    daemon.run(&format!("dev add name h mgmtdev bridge/b tap rwt9 netns {ns}")).good();
    wait_for("the interface to be in service", || daemon.device("h")["state"] == "connected");
    assert!(host.ip("addr add 192.0.2.1/24 dev rwt9") && host.ip("link set rwt9 up"));
    let mut a = Guest::connect(&daemon.socket("a"), GuestOptions::default()).unwrap();
    let file = file(&daemon);
    let running = Running::start(&daemon, "h", &["filter", "arp or ethertype 0x88b5"], &file);
    send(&mut a, 20);
    // The kernel asks for an address that nobody has.
    let datagram = ["netns", "exec", ns, "bash", "-c", "echo > /dev/udp/192.0.2.9/9"];
    let sent = Command::new("ip").args(datagram).output().unwrap();
    assert!(sent.status.success(), "{sent:?}");
    // Beside what it says of its own accord, which is not wanted.
    wait_for("the kernel to be given all, and to ask", || {
        a.turn(0).unwrap();
        captures(&daemon, "h")[0]["captured"].as_u64() > Some(20)
    });
    assert_eq!(running.stop().code, 0);
    let captured = Captured::read(&file);
    assert_eq!(captured.of_queue(0).len(), 20);
    // Beside it the kernel looks for IPv6 routers, which is not wanted.
    let arp = captured.of_queue(1);
    assert!(
        !arp.is_empty() && arp.iter().all(|seen| seen.is_inbound && seen.bytes[12..14] == [8, 6]),
        "{arp:?}"
    );
    let lines = by_tcpdump(&file, "arp");
    assert!(lines[0].contains("who-has 192.0.2.9 tell 192.0.2.1"), "{lines:?}");
}
