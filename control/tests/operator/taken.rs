//! What the daemon made on the host and somebody takes away: there again within a second, for as long as it is wanted; what
//! was put in its place is left alone and told.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringway_guest::{Guest, GuestOptions};
use ringway_ring::position::PositionPage;
use serde_json::Value;

use crate::support::{Daemon, SOON, put_in_place, remove_directory, wait_for};

/// Within this time it is there again, on a machine of its own.
const SECOND: Duration = Duration::from_secs(1);

fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|facts| facts.ino())
}

/// Events of a kind, without those told before.
fn events(daemon: &Daemon, kind: &str) -> Vec<Value> {
    let told = daemon.run(&format!("-j events --once --since 0 --type {kind}")).good();
    told.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn has_event(daemon: &Daemon, kind: &str, path: &Path) -> bool {
    events(daemon, kind).iter().any(|event| event["path"] == path.to_str().unwrap())
}

/// Takes something away by whatever way, and waits until it is there again.
#[track_caller]
fn comes_back(daemon: &Daemon, path: &Path, take: impl FnOnce(&Path)) {
    let before = fs::read(path).ok();
    take(path);
    let taken = Instant::now();
    wait_for(&format!("{} is there again", path.display()), || path.exists());
    println!("{}: there again after {:?}", path.display(), taken.elapsed());
    wait_for("it is told", || {
        UnixStream::connect(daemon.ctl()).is_ok() && has_event(daemon, "host.remade", path)
    });
    if before.is_some() {
        wait_for("it says the same", || fs::read(path).ok() == before);
    }
}

fn unlink(path: &Path) {
    fs::remove_file(path).unwrap();
}

fn with_device(line: &str) -> Daemon {
    let daemon = Daemon::start();
    daemon.run(&format!("dev add name vm0 mgmtdev sim/net {line}")).good();
    daemon
}

/// Every file that the daemon made.
fn all_files(daemon: &Daemon) -> Vec<PathBuf> {
    let files = ["ctl.sock", "ctl.sock.lock", "ringwayd.lock", "dev/vm0.sock", "positions/vm0"];
    let state = ["state/devices.json", "state/addresses.json", "state/lock"];
    files.iter().chain(&state).map(|file| daemon.dir.join(file)).collect()
}

#[test]
fn every_file_that_is_unlinked_comes_back() {
    let mut daemon = with_device("");
    for path in all_files(&daemon) {
        comes_back(&daemon, &path, unlink);
    }
    // As good as the first ones.
    for (file, mode) in [("addresses.json", 0o600), ("devices.json", 0o640)] {
        assert_eq!(fs::metadata(daemon.dir.join("state").join(file)).unwrap().mode() & 0o777, mode, "{file}");
    }
    let mode = fs::metadata(daemon.socket("vm0")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o660);
    let dir = daemon.dir.clone();
    let mut command = crate::support::ringwayd();
    command.arg("--ctl").arg(dir.join("other.sock")).arg("--state-dir").arg(dir.join("other"));
    let told = crate::support::finish(command).bad(4);
    assert!(told.contains("holds the runtime directory"), "{told}");
    daemon.kill();
    daemon.start_again(&[]);
    assert_eq!(daemon.device("vm0")["state"], "waiting");
}

#[test]
fn directories_that_are_removed_come_back_with_what_belongs_into_them() {
    let daemon = with_device("");
    for dir in ["dev", "positions", "state"] {
        let dir = daemon.dir.join(dir);
        remove_directory(&dir);
        wait_for("all is there again", || all_files(&daemon).iter().all(|path| path.exists()));
        wait_for("it is told", || has_event(&daemon, "host.remade", &dir));
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o007, 0);
    }
    // A change that comes at once finds the directory again.
    remove_directory(&daemon.dir.join("state"));
    daemon.run("dev add name vm1 mgmtdev sim/net").good();
    let kept = fs::read_to_string(daemon.dir.join("state/devices.json")).unwrap();
    assert!(kept.contains("vm0") && kept.contains("vm1"));
}

#[test]
fn runtime_directory_that_is_removed_or_moved_comes_back() {
    let temp = tempfile::tempdir_in("/tmp").unwrap();
    let run = temp.path().join("run");
    let mut command = crate::support::ringwayd();
    command.arg("--ctl").arg(run.join("ctl.sock")).arg("--state-dir").arg(temp.path().join("state"));
    let mut child = command.stderr(fs::File::create(temp.path().join("log")).unwrap()).spawn().unwrap();
    let ctl = run.join("ctl.sock");
    wait_for("it answers", || UnixStream::connect(&ctl).is_ok());
    crate::support::ringway(&ctl, "dev add name vm0 mgmtdev sim/net").good();
    let mut guest = Guest::connect(&run.join("dev/vm0.sock"), GuestOptions::default()).unwrap();
    for round in 0..2 {
        match round {
            0 => remove_directory(&run),
            _ => fs::rename(&run, temp.path().join("moved")).unwrap(),
        }
        let taken = Instant::now();
        wait_for("all is there again", || {
            guest.turn(8).unwrap();
            UnixStream::connect(&ctl).is_ok()
                && ["dev/vm0.sock", "positions/vm0", "ctl.sock.lock", "ringwayd.lock"]
                    .iter()
                    .all(|path| run.join(path).exists())
        });
        println!("there again after {:?}", taken.elapsed());
        let shown = crate::support::ringway(&ctl, "-j dev show vm0").json();
        assert_eq!(shown["dev"]["vm0"]["state"], "connected");
        assert_eq!(shown["dev"]["vm0"]["history"]["connections"], 1, "{shown}");
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn front_end_stays_connected_and_its_positions_are_kept_on() {
    let daemon = with_device("");
    let mut guest = Guest::connect(&daemon.socket("vm0"), GuestOptions::default()).unwrap();
    let positions = daemon.dir.join("positions/vm0");
    let kept = || PositionPage::open(&positions).unwrap().slot(1).unwrap().load();
    wait_for("frames are sent", || {
        guest.turn(8).unwrap();
        kept().is_some_and(|position| position.avail_idx > 100)
    });
    type Way<'a> = (&'a str, &'a dyn Fn());
    let ways: [Way<'_>; 4] = [
        ("unlinked", &|| unlink(&positions)),
        ("cut", &|| drop(fs::File::create(&positions).unwrap())),
        ("moved", &|| fs::rename(&positions, daemon.dir.join("moved")).unwrap()),
        ("removed with its directory", &|| remove_directory(positions.parent().unwrap())),
    ];
    for (way, take) in ways {
        let before = inode(&positions).unwrap();
        let held = fs::File::open(&positions).unwrap();
        take();
        unlink(&daemon.socket("vm0"));
        wait_for(way, || {
            guest.turn(8).unwrap();
            inode(&positions).is_some_and(|inode| inode != before) && daemon.socket("vm0").exists()
        });
        drop(held);
        // What stands there is that of the rings that run.
        let then = kept();
        wait_for("positions are kept in the new file", || {
            guest.turn(8).unwrap();
            kept().is_some() && kept() != then
        });
    }
    let shown = daemon.device("vm0");
    assert_eq!((&shown["state"], &shown["history"]["connections"]), (&"connected".into(), &1.into()));
    drop(guest);
    wait_for("its end is seen", || daemon.device("vm0")["state"] == "waiting");
    // The new socket is the device's.
    let mut again = Guest::connect(&daemon.socket("vm0"), GuestOptions::default()).unwrap();
    again.turn(8).unwrap();
    wait_for("the next is served", || daemon.device("vm0")["history"]["connections"] == 2);
}

#[test]
fn what_stands_in_the_place_of_ours_is_left_alone_and_told_once() {
    let daemon = with_device("");
    let socket = daemon.socket("vm0");
    let other = daemon.dir.join("his");
    for foreign in ["file", "socket", "stale socket", "directory", "link"] {
        let _listener = match foreign {
            "file" => fs::write(&other, "his").map(|()| None),
            "directory" => fs::create_dir(&other).map(|()| None),
            "link" => std::os::unix::fs::symlink("/nowhere", &other).map(|()| None),
            kind => UnixListener::bind(&other).map(|listener| (kind == "socket").then_some(listener)),
        }
        .unwrap();
        put_in_place(&other, &socket);
        let his = inode(&socket).unwrap();
        wait_for("it is told", || daemon.run("dev show vm0").good().contains("is in its place"));
        let told = events(&daemon, "host.missing").len();
        std::thread::sleep(SECOND);
        assert_eq!(events(&daemon, "host.missing").len(), told, "once");
        let shown = daemon.run("dev show vm0").good();
        assert!(shown.contains("move ") && shown.contains(socket.to_str().unwrap()), "{shown}");
        assert_eq!(inode(&socket), Some(his), "{foreign} is left alone");
        if foreign == "directory" {
            fs::remove_dir(&socket).unwrap();
        } else {
            unlink(&socket);
        }
        wait_for("ours is there again", || UnixStream::connect(&socket).is_ok());
        assert!(!daemon.run("dev show vm0").good().contains("is in its place"));
    }
    // Of a device that is removed, what is another's stays.
    let positions = daemon.dir.join("positions/vm0");
    for path in [&socket, &positions] {
        fs::write(&other, "his").unwrap();
        put_in_place(&other, path);
    }
    daemon.run("dev del vm0").good();
    assert_eq!(fs::read(&positions).unwrap(), b"his");
    assert_eq!(fs::read(&socket).unwrap(), b"his");
    std::thread::sleep(SECOND);
    assert!(socket.exists());
}

#[test]
fn file_in_the_place_of_a_directory_is_told_once_for_all_that_belongs_below() {
    let daemon = with_device("");
    daemon.run("dev add name vm1 mgmtdev sim/net").good();
    let (dir, other) = (daemon.dir.join("dev"), daemon.dir.join("his"));
    fs::write(&other, "his").unwrap();
    put_in_place(&other, &dir);
    wait_for("it is told", || has_event(&daemon, "host.missing", &dir));
    std::thread::sleep(SECOND);
    assert_eq!(events(&daemon, "host.missing").len(), 1, "{:?}", events(&daemon, "host.missing"));
    assert_eq!(fs::read(&dir).unwrap(), b"his");
    unlink(&dir);
    wait_for("the sockets are there again", || {
        daemon.socket("vm0").exists() && daemon.socket("vm1").exists()
    });
}

#[test]
fn directory_of_the_operators_is_named_and_waited_for() {
    let daemon = Daemon::start();
    let dir = daemon.dir.join("his");
    fs::create_dir(&dir).unwrap();
    let socket = dir.join("a.sock");
    daemon.run(&format!("dev add name vm0 mgmtdev sim/net socket {}", socket.display())).good();
    remove_directory(&dir);
    wait_for("it is told", || {
        daemon.run("dev show vm0").good().contains(&format!("mkdir -p {}", dir.display()))
    });
    assert!(!dir.exists(), "it is not ours to make");
    fs::create_dir(&dir).unwrap();
    wait_for("the socket is there again", || UnixStream::connect(&socket).is_ok());
}

#[test]
fn state_that_somebody_else_wrote_is_not_overwritten() {
    let daemon = with_device("");
    let file = daemon.dir.join("state/devices.json");
    let ours = fs::read_to_string(&file).unwrap();
    // Whoever reads it meanwhile finds all of one or all of the other.
    let write = |text: &str| {
        use std::os::unix::fs::FileExt as _;
        let place = fs::OpenOptions::new().write(true).open(&file).unwrap();
        assert_eq!(place.metadata().unwrap().len(), text.len() as u64);
        place.write_all_at(text.as_bytes(), 0).unwrap();
    };
    // The same again is no other, nor is one that was touched.
    write(&ours);
    daemon.run("dev add name vm1 mgmtdev sim/net").good();
    let his = fs::read_to_string(&file).unwrap().replace("vm1", "vm7");
    write(&his);
    wait_for("it is told", || has_event(&daemon, "host.missing", &file));
    let told = daemon.run("dev add name vm2 mgmtdev sim/net").bad(4);
    assert!(told.contains("somebody else wrote") && told.contains("move it away"), "{told}");
    assert_eq!(fs::read_to_string(&file).unwrap(), his);
    assert!(!daemon.socket("vm2").exists());
    fs::rename(&file, daemon.dir.join("state/his.json")).unwrap();
    wait_for("ours is there again", || file.exists());
    assert!(fs::read_to_string(&file).unwrap().contains("vm1"));
    daemon.run("dev add name vm2 mgmtdev sim/net").good();
}

#[test]
fn operator_who_is_connected_stays_so_and_others_come_by_the_new_socket() {
    let daemon = with_device("");
    let mut wire = daemon.wire();
    comes_back(&daemon, &daemon.ctl(), unlink);
    assert_eq!(wire.call("hello", serde_json::json!({}))["result"]["pid"], daemon.pid());
    // Another's socket at the path is told in the log, and to those who follow.
    let other = daemon.dir.join("his");
    let _his = UnixListener::bind(&other).unwrap();
    put_in_place(&other, &daemon.ctl());
    let told = || wire_events(&mut wire);
    let until = Instant::now() + SOON;
    let mut told = told;
    while !told().contains("host.missing") {
        assert!(Instant::now() < until);
    }
    daemon.logged("another socket is in its place");
    unlink(&daemon.ctl());
    wait_for("ours is there again", || daemon.run("hello").code == 0);
}

fn wire_events(wire: &mut crate::support::Wire) -> String {
    wire.call("events", serde_json::json!({ "since": 0 })).to_string()
}
