//! A bundle has all that is shown, and nothing of what guests send.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use flate2::read::GzDecoder;
use ringway_guest::frame::Addresses;
use ringway_guest::{Guest, GuestOptions, load};
use serde_json::Value;

use crate::support::{Daemon, ringway, wait_for};

/// Reads a bundle back, by the names below its one folder.
fn read(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(GzDecoder::new(File::open(path).unwrap()));
    let mut files = BTreeMap::new();
    let mut folder = None;
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let (of, name) = path.split_once('/').unwrap();
        assert_eq!(folder.get_or_insert_with(|| of.to_owned()), of);
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        assert_eq!(content.len() as u64, entry.header().size().unwrap());
        assert!(files.insert(name.to_owned(), content).is_none(), "{path} twice");
    }
    files
}

#[test]
fn bundle_has_what_is_shown_and_reads_back() {
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    daemon.run("dev add name p0 mgmtdev bridge/br0 spoofchk on").good();
    // Frames that come back, and frames that are dropped: an address is shown of them.
    let mut guest = Guest::connect(&daemon.socket("vm0"), GuestOptions::default()).unwrap();
    let addresses = Addresses { from: [0x52, 0x54, 0, 0xab, 0xcd, 0xef], to: [0x52, 0x54, 0, 0, 0, 9] };
    let options = GuestOptions { addresses, ..GuestOptions::default() };
    let mut spoofing = Guest::connect(&daemon.socket("p0"), options).unwrap();
    let counted =
        |name: &str| daemon.run(&format!("-j dev vstats show {name}")).json()["vstats"][name].clone();
    wait_for("both to be counted", || {
        guest.turn(8).unwrap();
        spoofing.turn(8).unwrap();
        let is_dropped = counted("p0")["queues"][1]["drops"]["spoofed_mac"].as_u64() > Some(0);
        is_dropped && counted("vm0")["queues"][0]["packets"].as_u64() > Some(0)
    });
    load::drain(&mut guest).unwrap();
    let path = daemon.dir.join("b.tar.gz");
    let made = daemon.run(&format!("-j bundle {}", path.display())).json();
    let files = read(&path);
    assert_eq!(made["files"], files.len());
    assert_eq!(made["bytes"], std::fs::metadata(&path).unwrap().len());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let json =
        |name: &str| -> Value { serde_json::from_slice(&files[name]).unwrap_or_else(|_| panic!("{name}")) };
    let text = |name: &str| String::from_utf8(files[name].clone()).unwrap();
    // Each file is in the list, with its size or with why it is not there, and the help has it.
    let contents = json("contents.json");
    let help = daemon.run("bundle --help").good();
    for line in
        help.lines().skip_while(|line| *line != "In it:").skip(1).take_while(|line| line.starts_with("  "))
    {
        let name = line.split_whitespace().next().unwrap();
        if name == "contents.json" {
            continue;
        }
        match files.get(name) {
            Some(content) => assert_eq!(contents["files"][name]["bytes"], content.len(), "{name}"),
            None => assert!(!contents["missing"][name].as_str().unwrap().is_empty(), "{name}"),
        }
    }
    assert_eq!(json("hello.json")["pid"], daemon.pid());
    assert!(json("dev.json")["dev"]["vm0"].is_object() && json("core.json")["core"].is_object());
    assert_eq!(json("status.json")["state"], "running");
    let why = json("why.json");
    for name in ["vm0", "p0"] {
        assert!(why["why"][name][0]["cause"].is_string(), "{name}: {why}");
    }
    assert!(json("mgmtdev.json")["mgmtdev"]["sim/net"].is_object());
    assert!(json("vstats.json")["vstats"]["vm0"]["queues"][0]["packets"].as_u64().unwrap() > 0);
    let drops = json("vstats.json")["vstats"]["p0"].to_string();
    assert!(drops.contains("spoofed_mac") && drops.contains("52:54:00:ab:cd:ef"), "{drops}");
    assert!(json("events.json").to_string().contains("dev.added"));
    assert!(json("doctor.json")["doctor"]["findings"].is_array() && text("doctor.txt").contains("isolated"));
    assert!(
        text("config.toml").contains("mgmtdev = \"bridge/br0\"")
            && text("metrics.txt").contains("ringway_queue_packets_total")
    );
    assert!(text("limits.txt").contains("Max open files") && text("host.txt").contains("Linux version"));
    // Made back into what ran.
    let file = daemon.dir.join("again.toml");
    std::fs::write(&file, text("config.toml")).unwrap();
    daemon.run(&format!("config check {}", file.display())).good();
    // Nothing of what the guests sent.
    let filler = ringway_guest::frame::Filler::new();
    for (name, content) in &files {
        let payload = &filler.payload(0, 512)[..24];
        assert!(
            !content.windows(payload.len()).any(|window| window == payload),
            "{name} has a frame's payload"
        );
    }
    // What is there is left alone.
    assert!(daemon.run(&format!("bundle {}", path.display())).bad(4).contains("another file"));
}

#[test]
fn bundle_of_a_host_without_a_daemon_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.tar.gz");
    let made = ringway("/nonexistent/ctl.sock".as_ref(), &format!("bundle {}", path.display())).good();
    assert!(made.contains("without dev.json: "), "{made}");
    let files = read(&path);
    assert!(files.contains_key("doctor.json") && !files.contains_key("dev.json"));
    // One that cannot be written is not left half.
    let nowhere = dir.path().join("none/b.tar.gz");
    ringway("/nonexistent/ctl.sock".as_ref(), &format!("bundle {}", nowhere.display())).bad(3);
}
