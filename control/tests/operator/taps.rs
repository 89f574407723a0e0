//! Kernel interfaces as devices: each the other side of one, known for what it is, and there again when taken away. As root,
//! in a network namespace that goes with the test.

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use ringway_guest::{Guest, GuestOptions};
use ringway_vhost_user::frontend::Frontend;

use crate::support::{Daemon, SOON, wait_for};

/// A namespace that `ip netns` knows.
pub(crate) struct Namespace(pub(crate) String);

impl Namespace {
    /// None without the rights for it, which `deploy/test` has.
    pub(crate) fn new(name: &str) -> Option<Namespace> {
        let name = format!("rwo-{name}-{}", std::process::id());
        // One after the other: the first ones of a host make what all of them stand on.
        static MAKES: Mutex<()> = Mutex::new(());
        let _makes = MAKES.lock().unwrap_or_else(PoisonError::into_inner);
        let is_there = Path::new("/dev/net/tun").exists()
            && rustix::process::geteuid().is_root()
            && Command::new("ip").args(["netns", "add", &name]).status().is_ok_and(|status| status.success());
        if !is_there {
            println!("skipped: needs root, /dev/net/tun and iproute2");
        }
        is_there.then_some(Namespace(name))
    }

    pub(crate) fn ip(&self, words: &str) -> bool {
        let words = words.split_whitespace();
        Command::new("ip").args(["-n", &self.0]).args(words).output().unwrap().status.success()
    }

    pub(crate) fn link(&self, name: &str) -> String {
        let shown = Command::new("ip").args(["-n", &self.0, "-o", "link", "show", name]).output().unwrap();
        String::from_utf8(shown.stdout).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[test]
fn interface_of_one_device_is_refused_to_another_by_whatever_way() {
    let Some(host) = Namespace::new("once") else { return };
    let (daemon, other) = (Daemon::start(), Daemon::start());
    let ns = &host.0;
    daemon.run(&format!("dev add name h0 mgmtdev bridge/b tap rwt0 netns {ns}")).good();
    // One of that name in another namespace is another one, and a younger process is looked at first.
    let Some(elsewhere) = Namespace::new("elsewhere") else { return };
    let stray = Daemon::start();
    stray.run(&format!("dev add name h0 mgmtdev bridge/b tap rwt0 netns {}", elsewhere.0)).good();
    for line in [
        format!("dev add name h1 mgmtdev bridge/b tap rwt0 netns {ns}"),
        format!("dev add name h1 mgmtdev link/l tap rwt0 netns {ns}"),
        format!("dev add name h1 mgmtdev link/l tap rwt0 netns /run/netns/{ns}"),
        format!("dev add name h1 mgmtdev tap/rwt0 netns {ns}"),
    ] {
        let told = daemon.run(&line).bad(4);
        assert!(told.contains("held by: device h0"), "{line}: {told}");
        let told = other.run(&line).bad(4);
        assert!(told.contains(&format!("(pid {})", daemon.pid())), "{line}: {told}");
    }
    assert_eq!(daemon.run("-j dev show").json()["dev"].as_object().unwrap().len(), 1);
    // Given up, it is anybody's, at once.
    daemon.run("dev del h0").good();
    daemon.run(&format!("dev add name h1 mgmtdev link/l tap rwt0 netns {ns}")).good();
    wait_for("the interface to be in service", || daemon.device("h1")["state"] == "connected");
}

#[test]
fn hint_names_the_device_that_can_be_removed() {
    let Some(host) = Namespace::new("hint") else { return };
    let daemon = Daemon::start();
    let ns = &host.0;
    daemon.run(&format!("dev add name g mgmtdev tap/rwt3 netns {ns}")).good();
    for line in [
        format!("dev add name h mgmtdev bridge/b tap rwt3 netns {ns}"),
        "dev add name rwt3 mgmtdev sim/net".to_owned(),
    ] {
        let told = daemon.run(&line).bad(4);
        assert!(told.ends_with("or ringway dev del g\n"), "{line}: {told}");
    }
}

#[test]
fn interfaces_of_one_name_on_two_hosts_have_addresses_of_their_own() {
    let (Some(here), Some(there)) = (Namespace::new("here"), Namespace::new("there")) else { return };
    let addresses = [&here, &there].map(|host| {
        let daemon = Daemon::start();
        daemon.run("dev add name vm0 mgmtdev bridge/br0").good();
        daemon.run(&format!("dev add name host0 mgmtdev bridge/br0 tap rwt5 netns {}", host.0)).good();
        wait_for("the interface to be in service", || daemon.device("host0")["state"] == "connected");
        let guest = daemon.device("vm0")["provisioned"]["mac"].as_str().unwrap().to_owned();
        let shown = host.link("rwt5");
        let own = shown.split("link/ether ").nth(1).unwrap()[..17].to_owned();
        assert_eq!(daemon.device("host0")["provisioned"]["mac"], own.as_str());
        [guest, own]
    });
    let all: std::collections::BTreeSet<&String> = addresses.iter().flatten().collect();
    assert_eq!(all.len(), 4, "{addresses:?}");
}

#[test]
fn interface_that_an_earlier_daemon_left_is_taken() {
    let Some(host) = Namespace::new("left") else { return };
    let mut daemon = Daemon::start();
    daemon.run(&format!("dev add name x mgmtdev tap/rwt1 netns {}", host.0)).good();
    daemon.kill();
    daemon.start_again(&[]);
    wait_for("the interface to be in service", || daemon.device("rwt1")["state"] == "connected");
    let log = daemon.logged("1 of 1 devices made");
    assert!(log.contains("1 of 1 devices made") && !log.contains("2 of 1"), "{log}");
}

#[test]
fn what_is_no_tap_is_named_and_never_to_be_deleted() {
    let Some(host) = Namespace::new("kinds") else { return };
    let daemon = Daemon::start();
    assert!(host.ip("tuntap add dev one mode tap") && host.ip("tuntap add dev raw mode tun"));
    for (line, code, said) in [
        (format!("dev add name a mgmtdev tap/one max_vqp 4 netns {}", host.0), 4, "a TAP with one queue"),
        (format!("dev add name a mgmtdev tap/raw netns {}", host.0), 4, "a TUN interface"),
        (format!("dev add name a mgmtdev tap/lo netns {}", host.0), 4, "the loopback interface"),
        ("dev add name a mgmtdev tap/x netns rwo-nowhere".to_owned(), 3, "no network namespace"),
        ("dev add name a mgmtdev tap/sixteen-bytes-xx".to_owned(), 2, "at most 15 bytes"),
    ] {
        let told = daemon.run(&line).bad(code);
        assert!(told.contains(said) && !told.contains("link del"), "{line}: {told}");
    }
    assert_eq!(daemon.run("dev show").good(), "");
}

#[test]
fn interface_that_ringway_made_comes_back_and_one_that_it_found_is_waited_for() {
    let Some(host) = Namespace::new("back") else { return };
    let daemon = Daemon::start();
    assert!(host.ip("tuntap add dev found mode tap multi_queue"));
    daemon.run(&format!("dev add name own mgmtdev bridge/b tap rwt2 mtu 1400 netns {}", host.0)).good();
    daemon.run(&format!("dev add name his mgmtdev bridge/b tap found netns {}", host.0)).good();
    let is_in_service = |name: &str| daemon.device(name)["state"] == "connected";
    wait_for("both to be in service", || is_in_service("own") && is_in_service("his"));
    let mac = |shown: &str| shown.split("link/ether ").nth(1).unwrap_or_default()[..17].to_owned();
    let before = mac(&host.link("rwt2"));
    for _ in 0..2 {
        assert!(host.ip("link del rwt2"));
        let taken = std::time::Instant::now();
        wait_for("it to be made again", || {
            host.link("rwt2").contains("mtu 1400")
                && host.link("rwt2").contains(",UP")
                && is_in_service("own")
        });
        assert_eq!(mac(&host.link("rwt2")), before);
        println!("made again after {:?}", taken.elapsed());
    }
    let events = |kind: &str| daemon.run(&format!("-j events --once --since 0 --type {kind}")).good();
    wait_for("it is told", || events("host.remade").matches("\"path\":\"rwt2\"").count() == 2);
    assert_eq!(events("host.missing"), "");

    assert!(host.ip("link del found"));
    wait_for("it to be told", || daemon.run("dev show his").good().contains("found, which was there before"));
    assert_eq!(host.link("found"), "");
    let told = daemon.run("dev show his").good();
    assert!(told.contains("taken again once it is back"), "{told}");
    assert!(host.ip("tuntap add dev found mode tap multi_queue"));
    wait_for("it to be taken again", || is_in_service("his"));
    assert!(
        told.contains(&format!("try: ip -n {} tuntap add dev found mode tap multi_queue", host.0)),
        "{told}"
    );
    assert_eq!(events("host.missing").matches("\"path\":\"found\"").count(), 1, "{}", events("host.missing"));
    wait_for("its return is told", || events("netdev.restored").contains("\"netdev\":\"found\""));
    assert!(!daemon.run("dev show his").good().contains("note:"));
}

#[test]
fn removal_of_each_device_of_a_tap_is_told_once() {
    let Some(host) = Namespace::new("gone") else { return };
    let daemon = Daemon::start();
    for remove in ["mgmtdev del tap/rwt4", "dev del g"] {
        daemon.run(&format!("dev add name g mgmtdev tap/rwt4 netns {}", host.0)).good();
        let before = daemon.run("-j hello").json()["seq"].as_u64().unwrap();
        daemon.run(remove).good();
        let told = daemon.run(&format!("-j events --once --since {before} --type dev.removed")).good();
        assert_eq!(told.lines().count(), 2, "{remove}: {told}");
    }
    // Made anew while the kernel takes the one before away: it is waited for.
    for _ in 0..10 {
        daemon.run(&format!("dev add name g mgmtdev tap/rwt4 netns {}", host.0)).good();
        daemon.run("dev del g").good();
    }
}

#[test]
fn what_others_change_of_an_interface_is_told_once_and_not_undone() {
    let Some(host) = Namespace::new("set") else { return };
    let daemon = Daemon::start();
    daemon.run(&format!("dev add name own mgmtdev bridge/b tap rwt3 mtu 1400 netns {}", host.0)).good();
    assert!(host.ip("tuntap add dev found mode tap multi_queue"));
    daemon.run(&format!("dev add name his mgmtdev bridge/b tap found netns {}", host.0)).good();
    let is_in_service = |name: &str| daemon.device(name)["state"] == "connected";
    wait_for("both to be in service", || is_in_service("own") && is_in_service("his"));
    let told = |kind: &str| daemon.run(&format!("-j events --once --since 0 --type {kind}")).good();
    let times = |kind: &str| told(kind).lines().count();
    let cases = [
        ("own", "rwt3", "link set rwt3 down", "rwt3 was set down", "link set rwt3 up"),
        ("own", "rwt3", "link set rwt3 mtu 9000", "changed from 1400 to 9000", "link set rwt3 mtu 1400"),
        ("own", "rwt3", "link set rwt3 name other", "was renamed to other", "link set other name rwt3"),
        ("his", "found", "link set found mtu 1300", "changed from 1500 to 1300", "link set found mtu 1500"),
    ];
    let (mut changed, mut restored) = (0, 0);
    for (name, ifname, change, said, cure) in cases {
        assert!(host.ip(change), "{change}");
        wait_for("it is told", || daemon.run(&format!("dev show {name}")).good().contains(said));
        let shown = daemon.run(&format!("dev show {name}")).good();
        assert!(shown.contains(&format!("ip -n {} {cure}", host.0)), "{shown}");
        changed += 1;
        std::thread::sleep(std::time::Duration::from_secs(1));
        assert_eq!(times("netdev.changed"), changed, "once: {}", told("netdev.changed"));
        // The operator's will stands.
        assert!(daemon.run(&format!("dev show {name}")).good().contains(said), "{change}");
        let why = daemon.run(&format!("-j why {name}")).json()["why"][name][0].clone();
        let is_down = why["cause"] == "host_down" && why["says"].as_str().unwrap().contains(said);
        assert_eq!(is_down, change.ends_with(" down"), "{change}: {why}");
        assert!(is_in_service(name));
        // A name can be changed of what is down alone.
        assert!(
            host.ip(cure) || (host.ip("link set other down") && host.ip(cure) && host.ip("link set rwt3 up"))
        );
        restored += 1;
        wait_for("it is as it was", || times("netdev.restored") >= restored);
        restored = times("netdev.restored");
        changed = times("netdev.changed");
        assert!(!daemon.run(&format!("dev show {name}")).good().contains(said), "{ifname}");
    }
    let before = host.link("rwt3").split("link/ether ").nth(1).unwrap()[..17].to_owned();
    assert!(host.ip("link set rwt3 address 52:54:00:00:00:01"));
    wait_for("the address is told", || {
        let shown = daemon.run("dev show own").good();
        shown.contains(&format!("changed from {before} to 52:54:00:00:00:01"))
            && shown.contains(&format!("link set rwt3 address {before}"))
    });
    assert!(host.link("rwt3").contains("52:54:00:00:00:01"));
}

#[test]
fn one_interface_twice_in_a_file_is_found_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        crate::support::ringway(&dir.path().join("none"), &format!("config check {}", file.display()))
    };
    let two = |first: &str, second: &str| {
        format!("[[device]]\nname = \"a\"\n{first}\n[[device]]\nname = \"b\"\n{second}\n")
    };
    let told = check(&two("mgmtdev = \"bridge/x\"\ntap = \"t\"", "mgmtdev = \"link/y\"\ntap = \"t\"")).bad(4);
    assert!(told.contains("b has the same interface as a"), "{told}");
    let path = "mgmtdev = \"bridge/x\"\ntap = \"t\"\nnetns = \"/run/netns/n\"";
    check(&two("mgmtdev = \"tap/t\"\nnetns = \"n\"", path)).bad(4);
    check(&two("mgmtdev = \"tap/t\"", path)).good();
    check(&two("mgmtdev = \"tap/sixteen-bytes-xx\"", path)).bad(2);
}

/// The kernel's own bridge learns from it, as any switch beyond would.
#[test]
fn arrival_of_a_guest_is_told_to_the_hosts_network() {
    let Some(host) = Namespace::new("rarp") else { return };
    let daemon = Daemon::start();
    if !host.ip("link add br0 type bridge") {
        println!("skipped: the kernel has no bridge");
        return;
    }
    daemon.run(&format!("dev add name vm0 mgmtdev tap/rwt7 netns {}", host.0)).good();
    for words in ["link set rwt7 master br0", "link set br0 up", "link set rwt7 up"] {
        assert!(host.ip(words), "{words}");
    }
    // It learns once the port forwards.
    wait_for("the port to forward", || {
        let shown = Command::new("ip").args(["-n", &host.0, "-d", "link", "show", "rwt7"]).output().unwrap();
        String::from_utf8(shown.stdout).unwrap().contains("state forwarding")
    });
    let is_learned = |address: &str| {
        let shown =
            Command::new("bridge").args(["-n", &host.0, "fdb", "show", "br", "br0"]).output().unwrap();
        String::from_utf8(shown.stdout)
            .unwrap()
            .lines()
            .any(|line| line.contains(address) && line.contains("rwt7"))
    };
    let mut frontend = Frontend::connect(&daemon.socket("vm0"), SOON).unwrap();
    frontend.set_timeout(SOON);
    frontend.handshake().unwrap();
    frontend.send_rarp([0x52, 0x54, 0, 0, 0, 0x71]).unwrap();
    let mut same = Frontend::from_stream(frontend.stream().try_clone().unwrap());
    let _guest = Guest::start(frontend, GuestOptions::default()).unwrap();
    wait_for("the kernel to learn it", || is_learned("52:54:00:00:00:71"));
    same.send_rarp([0x52, 0x54, 0, 0, 0, 0x72]).unwrap();
    wait_for("the kernel to learn another", || is_learned("52:54:00:00:00:72"));
}

/// A pipe without a writer, where a namespace should be: whoever opens it waits.
#[test]
fn namespace_that_is_a_pipe_is_refused_and_waited_for_by_nobody() {
    let daemon = Daemon::start();
    let pipe = daemon.dir.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for kind in ["bridge/b tap rwt0", "link/l tap rwt0", "tap/rwt0"] {
        let line = format!("dev add name h mgmtdev {kind} netns {}", pipe.display());
        let told = daemon.run(&line).bad(2);
        assert!(told.contains("is no network namespace"), "{told}");
    }
    daemon.run("hello").good();
    assert!(daemon.run("dev show").good().is_empty());
}

/// Nobody connects anew to the host's own end: it is said what brings in force there what was set, and a file brings it.
#[test]
fn what_is_set_of_an_interface_in_service_waits_for_a_new_device_which_a_file_makes() {
    let Some(host) = Namespace::new("wait") else { return };
    let mut daemon = Daemon::start();
    daemon.terminate();
    let (file, metrics) = (daemon.dir.join("r.toml"), daemon.dir.join("metrics.sock"));
    let write = |mtu: u16| {
        let text = format!(
            "[[device]]\nname = \"host0\"\nmgmtdev = \"bridge/b\"\ntap = \"rwt8\"\nnetns = \"{}\"\nmtu = {mtu}\n",
            host.0
        );
        std::fs::write(&file, text).unwrap();
    };
    write(1400);
    let arguments = ["--config", file.to_str().unwrap(), "--metrics", metrics.to_str().unwrap()];
    daemon.start_again(&arguments);
    let has = |daemon: &Daemon, mtu: u16| {
        // For a moment it may be the former one's.
        wait_for("the interface to be in service", || {
            daemon.run("dev show host0").out.contains("connected")
                && host.link("rwt8").contains(&format!(" mtu {mtu} "))
        });
    };
    let counted = |count: u64| {
        let line = format!("ringway_device_deferred{{dev=\"host0\"}} {count}\n");
        crate::metrics::ask(&metrics, "GET /metrics HTTP/1.1\r\n\r\n").contains(&line)
    };
    has(&daemon, 1400);
    let foretold = daemon.run("--dry-run dev set name host0 mtu 1300").good();
    let told = daemon.run("dev set name host0 mtu 1300").bad(65);
    for said in [&foretold, &told, &daemon.run("dev show host0").good()] {
        assert!(
            said.contains(
                "in force once the file says so too and the device is made anew: ringway config apply FILE"
            ),
            "{said}"
        );
        // A restart makes it as the file says.
        let others = ["connects", "QEMU", "dev del", "or a restart"];
        assert!(others.iter().all(|other| !said.contains(other)), "{said}");
    }
    let status = daemon.run("status").good();
    assert!(
        status.contains(
            "  host0: not in force before it is made anew (ringway config apply FILE, once the file says so too): mtu\n"
        ),
        "{status}"
    );
    assert_eq!(daemon.device("host0")["deferred"], serde_json::json!(["mtu"]));
    assert!(counted(1) && host.link("rwt8").contains(" mtu 1400 "));
    // What it has is what it has: set back, nothing waits.
    daemon.run("dev set name host0 mtu 1400").good();
    assert!(counted(0) && daemon.device("host0").get("deferred").is_none());

    // A file makes the device anew: also one that says what was set before.
    let line = |words: &str| format!("-j config {words} {}", file.display());
    daemon.run("dev set name host0 mtu 1300").bad(65);
    for (mtu, before) in [(1300, "1400"), (1200, "1300")] {
        write(mtu);
        for words in ["diff", "apply"] {
            let plan = daemon.run(&line(words)).json();
            let step = &plan["steps"][0];
            assert_eq!(
                (&step["action"], plan["steps"].as_array().unwrap().len()),
                (&"remake".into(), 1),
                "{plan}"
            );
            let changes = serde_json::json!([{ "key": "mtu", "before": before, "after": mtu.to_string() }]);
            assert_eq!(step["changes"], changes, "{plan}");
        }
        has(&daemon, mtu);
        assert!(counted(0));
        assert_eq!(daemon.run(&line("diff")).json()["unchanged"], 1);
    }
    // What is done instead of what is said above: a restart, which brings what the file says.
    daemon.run("dev set name host0 mtu 1300").bad(65);
    daemon.terminate();
    daemon.start_again(&arguments);
    has(&daemon, 1200);
    assert!(counted(0));
    // A file that says what the interface has leaves it, whatever was set meanwhile.
    daemon.run("dev set name host0 mtu 1300").bad(65);
    let plan = daemon.run(&line("apply")).json();
    assert_eq!(plan["steps"][0]["action"], "set", "{plan}");
    assert!(counted(0) && host.link("rwt8").contains(" mtu 1200 "));
}

/// What an operator added is kept as he set it: it is made so when the daemon starts again.
#[test]
fn what_is_set_of_an_operators_interface_in_service_is_in_force_after_a_restart() {
    let Some(host) = Namespace::new("again") else { return };
    let mut daemon = Daemon::start();
    daemon.run(&format!("dev add name host0 mgmtdev bridge/b tap rwt9 netns {} mtu 1400", host.0)).good();
    let has = |daemon: &Daemon, mtu: u16| {
        wait_for("the interface to be in service", || {
            daemon.run("dev show host0").out.contains("connected")
                && host.link("rwt9").contains(&format!(" mtu {mtu} "))
        });
    };
    has(&daemon, 1400);
    let told = daemon.run("dev set name host0 mtu 1300").bad(65);
    let cure = "in force once the device is made anew: ringway dev del and dev add, or a restart of ringwayd";
    assert!(told.contains(cure) && daemon.run("dev show host0").good().contains(cure), "{told}");
    let status = daemon.run("status").good();
    assert!(
        status.contains("  host0: not in force before it is made anew (ringway dev del and dev add, "),
        "{status}"
    );
    daemon.terminate();
    daemon.start_again(&[]);
    has(&daemon, 1300);
    assert!(!daemon.run("status").good().contains("not in force"));
}
