//! The configuration file: checked, run, dumped.

use std::path::Path;

use crate::support::{Daemon, finish, polling, ringway, ringwayd, wait_for};

fn check(text: &str) -> crate::support::Done {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("r.toml");
    std::fs::write(&file, text).unwrap();
    let mut done = ringway(Path::new("/nonexistent"), &format!("config check {}", file.display()));
    done.err = done.err.replace(&file.display().to_string(), "FILE");
    done
}

#[test]
fn good_file_passes_without_a_daemon() {
    let text = "[daemon]\nidle = \"poll\"\n[[device]]\nname = \"a\"\nmgmtdev = \"sim/net\"\nswap = true\n";
    assert!(check(text).good().ends_with(": good, 1 device\n"));
}

#[test]
fn unknown_key_names_line_and_nearest() {
    let error = check("[daemon]\nidel = \"poll\"\n").bad(2);
    assert_eq!(error, "error: FILE:2: unknown key `idel`\n  try: did you mean idle?\n");
    let error = check("[[device]]\nname = \"a\"\nmgmtdev = \"sim/net\"\nmax_vqps = 2\n").bad(2);
    assert_eq!(error, "error: FILE:4: unknown key `max_vqps`\n  try: did you mean max_vqp?\n");
    assert!(
        check("[[device]]\nname = \"a\"\nmgmtdev = \"sim/nets\"\n")
            .bad(3)
            .starts_with("error: FILE:3: Fail to find")
    );
    assert!(check("[[device]\n").bad(2).starts_with("error: FILE:1: "));
    let device = "[[device]]\nname = \"a\"\nmgmtdev = \"sim/net\"\ncore = 9\n";
    check(device).good();
    let error = check(&format!("{device}[daemon]\ncores = [1, 2]\n")).bad(3);
    assert!(error.starts_with("error: FILE:4: no worker runs on core 9: [daemon] cores is 1"), "{error}");
}

#[test]
fn what_is_no_file_of_text_is_refused_at_once() {
    for path in ["/dev/zero", "/dev/stdin"] {
        let error = ringway(Path::new("/x"), &format!("config check {path}")).bad(4);
        assert!(error.contains("it is not a regular file"), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("r.toml");
    std::fs::write(&file, b"[daemon]\n# \xff\n").unwrap();
    let error = ringway(Path::new("/x"), &format!("config check {}", file.display())).bad(2);
    assert!(error.contains("r.toml:2: this is not UTF-8"), "{error}");
}

#[test]
fn daemon_does_not_start_on_a_bad_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("r.toml");
    std::fs::write(&file, "[daemon]\ncoers = [1]\n").unwrap();
    let mut command = ringwayd();
    command
        .arg("--ctl")
        .arg(dir.path().join("c"))
        .arg("--state-dir")
        .arg(dir.path())
        .arg("--config")
        .arg(&file);
    let error = finish(command).bad(2);
    assert!(error.contains("r.toml:2: unknown key `coers`\n  try: did you mean cores?"), "{error}");
}

#[test]
fn dump_makes_the_same_again() {
    let mut daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev sim/net mac 52:54:00:00:00:01 mtu 9000 max_vqp 2 swap on").good();
    daemon.run("dev add name b mgmtdev sim/net mode client socket /tmp/vmm.sock device_features MRG_RXBUF,VERSION_1").good();
    let group = rustix::process::getgid().as_raw();
    daemon.run(&format!("dev add name c mgmtdev sim/net group {group}")).good();
    let dump = daemon.run("config dump").good();
    assert!(
        dump.contains("[[device]]\nname = \"a\"\nmgmtdev = \"sim/net\"\nmac = \"52:54:00:00:00:01\"\n"),
        "{dump}"
    );
    let json = daemon.run("-j config dump").json();
    assert_eq!(json["device"][0]["swap"], "on");
    assert_eq!(daemon.terminate().0, 0);

    let file = daemon.dir.join("dump.toml");
    std::fs::write(&file, &dump).unwrap();
    ringway(Path::new("/x"), &format!("config check {}", file.display())).good();
    std::fs::remove_file(daemon.dir.join("state/devices.json")).unwrap();
    daemon.start_again(&["--config", file.to_str().unwrap()]);
    assert_eq!(daemon.run("config dump").good(), dump);
    assert_eq!(daemon.device("a")["origin"], "config");
}

#[test]
fn device_of_the_file_goes_before_one_of_the_state_directory() {
    let mut daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev sim/net mtu 2000").good();
    daemon.run("dev add name b mgmtdev sim/net").good();
    daemon.terminate();
    let file = daemon.dir.join("r.toml");
    std::fs::write(&file, "[[device]]\nname = \"a\"\nmgmtdev = \"sim/net\"\nmtu = 3000\n").unwrap();
    daemon.start_again(&["--config", file.to_str().unwrap()]);
    assert_eq!(daemon.device("a")["provisioned"]["mtu"], 3000);
    assert_eq!(daemon.device("b")["origin"], "operator");
    assert!(
        daemon
            .run("dev show")
            .good()
            .contains("a: not made: a device of this name is in the configuration file")
    );
    // Removed, it is gone from both, and the operator is told of the file.
    let told = daemon.run("dev del a");
    assert!(told.err.contains("a stays in ") && told.code == 0, "{told:?}");
    daemon.terminate();
    daemon.start_again(&[]);
    assert_eq!(daemon.run("dev show a").code, 3);
    daemon.run("dev show b").good();
}

#[test]
fn settings_come_from_the_command_line_then_from_the_file() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("r.toml");
    std::fs::write(&file, "[daemon]\nidle = \"poll\"\nlog = \"warn\"\n").unwrap();
    let polling = polling();
    let mut daemon = Daemon::start_with(&["--config", file.to_str().unwrap()]);
    assert!(daemon.run("core show").good().contains(" policy poll "));
    // Its log is whole once it has ended.
    assert_eq!(daemon.terminate().0, 0);
    assert_eq!(daemon.log(), "", "nothing to warn of");
    drop((daemon, polling));
    let daemon =
        Daemon::start_with(&["--config", file.to_str().unwrap(), "--idle", "adaptive", "--log", "info"]);
    assert!(daemon.run("core show").good().contains(" policy adaptive "));
    daemon.logged(" ready at ");
}

/// Every mistake that a value can be, with what is said of it: `[daemon]` and tables, the line, the exit code, the words.
const MISTAKES: &[(&str, u32, i32, &str)] = &[
    // Values of a driver's own attributes, as text, number and switch.
    ("mgmtdev = \"bridge/b\"\nflood_pps = \"-5\"", 4, 2, "flood_pps -5: must be a number of frames, or off"),
    ("mgmtdev = \"bridge/b\"\nflood_pps = -5", 4, 2, "flood_pps -5: must be a number"),
    ("mgmtdev = \"bridge/b\"\nflood_pps = 0", 4, 2, "flood_pps 0: must be a number"),
    ("mgmtdev = \"bridge/b\"\nflood_pps = \"18446744073709551616\"", 4, 2, "must be a number of frames"),
    ("mgmtdev = \"bridge/b\"\nflood_pps = true", 4, 2, "flood_pps on: must be a number of frames"),
    ("mgmtdev = \"bridge/b\"\nflood_pps = 1.5", 4, 2, "flood_pps must be a string, a number or a switch"),
    ("mgmtdev = \"bridge/b\"\nspoofchk = \"maybe\"", 4, 2, "spoofchk maybe: must be on or off"),
    ("mgmtdev = \"link/l\"\nspoofchk = 1", 4, 2, "spoofchk 1: must be on or off"),
    ("mgmtdev = \"tap/t\"\nspoofchk = \"ON\"", 4, 2, "spoofchk ON: must be on or off"),
    ("mgmtdev = \"sim/net\"\nswap = \"\"", 4, 2, "swap : must be on or off"),
    // What a class does not have, and what does not go together.
    ("mgmtdev = \"link/l\"\nflood_pps = 5", 4, 2, "unknown key `flood_pps`"),
    ("mgmtdev = \"sim/net\"\nspoofchk = true", 4, 2, "unknown key `spoofchk`"),
    ("mgmtdev = \"bridge/b\"\nnetns = \"n\"", 4, 2, "netns: goes with tap IFNAME"),
    ("mgmtdev = \"tap/t\"\nnetns = \"../n\"", 4, 2, "must be a name as `ip netns list` has it"),
    ("mgmtdev = \"tap/t\"\nnetns = \"\"", 4, 2, "must be a name as `ip netns list` has it"),
    ("mgmtdev = \"bridge/b\"\ntap = \"t\"\nmac = \"52:54:00:00:00:01\"", 5, 2, "mac: the host gives"),
    ("mgmtdev = \"bridge/b\"\ntap = \"t\"\nspoofchk = true", 5, 2, "spoofchk: the host is trusted"),
    ("mgmtdev = \"bridge/b\"\ntap = \"t\"\nsocket = \"/tmp/s\"", 5, 2, "socket: t is the host's interface"),
    ("mgmtdev = \"link/l\"\ntap = \"t\"\nowner = \"root\"", 5, 2, "owner: t is the host's interface"),
    ("mgmtdev = \"link/l\"\ntap = \"a/b\"", 4, 2, "not a name that the kernel takes"),
    ("mgmtdev = \"tap/sixteen-bytes-xx\"", 3, 2, "at most 15 bytes"),
    ("mgmtdev = \"tap/d\"", 2, 2, "d is the name of the host's device"),
    ("mgmtdev = \"tap/t\"\ntap = \"u\"", 4, 2, "joins a guest with t, whose device comes by itself"),
    (
        "mgmtdev = \"sim/net\"\nmode = \"client\"\nsocket = \"/tmp/s\"\ngroup = 0",
        4,
        2,
        "in client mode the VMM does",
    ),
    ("mgmtdev = \"sim/net\"\nowner = \"no such user\"", 4, 3, "there is no user `no such user`"),
    ("mgmtdev = \"sim/net\"\ngroup = \"no such group\"", 4, 3, "there is no group `no such group`"),
    // Management devices.
    (
        "mgmtdev = \"sim/net\"\n[[mgmtdev]]\nname = \"bridge/b\"\nageing = -1",
        6,
        2,
        "ageing -1: must be 1 to 1000000",
    ),
    (
        "mgmtdev = \"sim/net\"\n[[mgmtdev]]\nname = \"bridge/b\"\nageing = \"1000001\"",
        6,
        2,
        "must be 1 to 1000000",
    ),
    (
        "mgmtdev = \"sim/net\"\n[[mgmtdev]]\nname = \"bridge/b\"\nageing = true",
        6,
        2,
        "ageing on: must be 1 to",
    ),
    (
        "mgmtdev = \"sim/net\"\n[[mgmtdev]]\nname = \"bridge/b\"\ncore = \"x\"",
        6,
        2,
        "core x: must be the number of a core",
    ),
    ("mgmtdev = \"sim/net\"\n[[mgmtdev]]\nname = \"link/l\"\nageing = 5", 6, 2, "link/l has none"),
    ("mgmtdev = \"sim/net\"\n[[mgmtdev]]\nname = \"tap/sixteen-bytes-xx\"", 5, 2, "at most 15 bytes"),
    // What is there twice, or too often.
    (
        "mgmtdev = \"file\"\npath = \"/d\"\n[[device]]\nname = \"e\"\nmgmtdev = \"file\"\npath = \"//d\"\nro = true",
        8,
        4,
        "e is on the same file as d\n  held by: device d",
    ),
    (
        "mgmtdev = \"sim/net\"\nsocket = \"/tmp/s\"\n[[device]]\nname = \"e\"\nmgmtdev = \"sim/net\"\nsocket = \"/tmp/../tmp//s\"",
        8,
        4,
        "held by: device d",
    ),
    (
        "mgmtdev = \"sim/net\"\n[[device]]\nname = \"e\"\nmgmtdev = \"sim/net\"\nsocket = \"CTL/dev/d.sock\"",
        7,
        4,
        "held by: device d",
    ),
    ("mgmtdev = \"sim/net\"\nsocket = \"CTL/ctl.sock\"", 4, 4, "held by: the operator socket"),
    (
        "mgmtdev = \"link/l\"\n[[device]]\nname = \"e\"\nmgmtdev = \"link/l\"\n[[device]]\nname = \"f\"\nmgmtdev = \"link/l\"",
        9,
        4,
        "link/l has as many devices as it can: 2\n  held by: d, e",
    ),
    (
        "mgmtdev = \"tap/t\"\n[[device]]\nname = \"e\"\nmgmtdev = \"tap/t\"\nnetns = \"n\"",
        6,
        4,
        "tap/t has as many devices as it can: 2\n  held by: d, t",
    ),
    ("mgmtdev = \"tap/t\"\n[[device]]\nname = \"t\"\nmgmtdev = \"sim/net\"", 5, 4, "held by: device d"),
    ("mgmtdev = \"sim/net\"\n[[device]]\nname = \"e\"\nmgmtdev = \"tap/d\"", 6, 4, "held by: device d"),
    (
        "mgmtdev = \"sim/net\"\n[[device]]\nname = \"d\"\nmgmtdev = \"sim/net\"",
        5,
        4,
        "a second device is named d",
    ),
    ("mgmtdev = \"sim/net\"\n[daemon]\ncores = []", 5, 2, "cores names no core: leave the key out"),
    ("mgmtdev = \"sim/net\"\n[daemon]\ncores = [1, 1]", 5, 2, "core 1 is named twice"),
    ("mgmtdev = \"sim/net\"\n[daemon]\ncores = \"0-1,1\"", 5, 2, "core 1 is named twice"),
    ("mgmtdev = \"sim/net\"\n[daemon]\ncores = \"4099\"", 5, 3, "there is no core 4099"),
    ("mgmtdev = \"sim/net\"\n[daemon]\nlog = \"loud\"", 5, 2, "`loud` is not a level"),
    (
        "mgmtdev = \"sim/net\"\n[[mgmtdev]]\nname = \"bridge/b\"\ncore = 4098\n[daemon]\ncores = [0]",
        6,
        3,
        "no worker runs on core 4098",
    ),
];

#[test]
fn what_can_never_be_is_found_by_the_check_and_at_the_start_with_its_line() {
    let temp = tempfile::tempdir_in("/tmp").unwrap();
    let dir = temp.path();
    let file = dir.join("r.toml");
    for (text, line, code, said) in MISTAKES {
        let text = text.replace("CTL", dir.to_str().unwrap());
        std::fs::write(&file, format!("[[device]]\nname = \"d\"\n{text}\n")).unwrap();
        let place = format!("error: {}:{line}: ", file.display());
        let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_ringway"));
        check.env("RINGWAY_CTL", dir.join("ctl.sock")).args(["config", "check"]).arg(&file);
        let told = finish(check).bad(*code);
        assert!(told.starts_with(&place) && told.contains(said), "{text}: {told}");
        // Who is to own a socket may come to be known later, by a directory service that starts behind the daemon.
        if said.contains("there is no user") || said.contains("there is no group") {
            continue;
        }
        let mut start = ringwayd();
        start.arg("--ctl").arg(dir.join("ctl.sock")).arg("--state-dir").arg(dir.join("state"));
        start.arg("--config").arg(&file);
        let told = finish(start).bad(*code);
        assert!(told.starts_with(&place) && told.contains(said), "start: {text}: {told}");
    }
}

#[test]
fn function_that_is_not_there_may_stand_in_the_file_and_its_device_waits_for_it() {
    let text = "[[device]]\nname = \"vm0\"\nmgmtdev = \"pci/0000:fe:1f.7\"\nmtu = 1500\n";
    check(text).good();
    let told = check(&text.replace("1f.7", "1f.8")).bad(3);
    assert!(told.contains("0000:01:10.0"), "{told}");
    let told = check(&text.replace("mtu = 1500", "max_vqp = 17")).bad(2);
    assert!(told.contains("supports 32"), "{told}");
}

#[test]
fn check_tells_every_mistake_in_order_and_how_many_there_are() {
    let text = "[daemon]\nidel = \"poll\"\nlog = \"loud\"\n[[device]]\nname = \"a\"\nmgmtdev = \"sim/net\"\nmtu = 5\nmax_vpq = 2\n\
                [[device]]\nname = \"b\"\nmgmtdev = \"bridge/b\"\nmac = \"52:54:00:00:00:0a\"\n\
                [[device]]\nname = \"c\"\nmgmtdev = \"bridge/b\"\nmac = \"52:54:00:00:00:0A\"\n\
                [[device]]\nname = \"c\"\nmgmtdev = \"bridge/e\"\nmac = \"52:54:00:00:00:0a\"\n";
    let told = check(text).bad(2);
    let heads: Vec<&str> = told.lines().filter_map(|line| line.strip_prefix("error: FILE:")).collect();
    assert_eq!(heads.len(), 6, "{told}");
    for (head, said) in heads.iter().zip([
        "2: unknown key `idel`",
        "3: log `loud`",
        "8: unknown key `max_vpq`",
        "16: c has the mac of b, and both are on bridge/b",
        "18: a second device is named c",
        " 5 mistakes",
    ]) {
        assert!(head.starts_with(said), "{said}: {told}");
    }
    // A guest that moves within a host has both devices for a while: a daemon takes that.
    let daemon = Daemon::start();
    for name in ["b", "c"] {
        daemon.run(&format!("dev add name {name} mgmtdev bridge/b mac 52:54:00:00:00:0a")).good();
    }
}

#[test]
fn core_of_a_device_without_a_worker_is_told_by_the_check_and_ends_the_start() {
    let temp = tempfile::tempdir_in("/tmp").unwrap();
    let dir = temp.path();
    let file = dir.join("r.toml");
    std::fs::write(&file, "[[device]]\nname = \"d\"\nmgmtdev = \"sim/net\"\ncore = 4097\n").unwrap();
    let done = ringway(&dir.join("ctl.sock"), &format!("config check {}", file.display()));
    assert!(done.code == 0 && done.err.contains(":4: no worker runs on core 4097"), "{done:?}");
    let mut start = ringwayd();
    start.arg("--ctl").arg(dir.join("ctl.sock")).arg("--state-dir").arg(dir.join("state"));
    let told = finish({
        start.arg("--config").arg(&file);
        start
    })
    .bad(3);
    assert!(told.contains("r.toml:4: no worker runs on core 4097\n  held by: workers run on core"), "{told}");
}

#[test]
fn device_that_the_state_directory_keeps_and_that_can_never_be_is_not_tried_again() {
    let temp = tempfile::tempdir_in("/tmp").unwrap();
    let state = temp.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let kept = r#"{"format":1,"generation":3,"devices":[
        {"name":"a","mgmtdev":"tap/a-name-of-more-than-15"},
        {"name":"b","mgmtdev":"bridge/b","attributes":{"flood_pps":"-5"}},
        {"name":"c","mgmtdev":"sim/net","core":4097},
        {"name":"e","mgmtdev":"sim/no"},
        {"name":"f","mgmtdev":"sim/net","socket":"/nowhere/at/all/f.sock"},
        {"name":"g","mgmtdev":"sim/net"}]}"#;
    std::fs::write(state.join("devices.json"), kept).unwrap();
    let daemon = Daemon::start_with(&["--state-dir", state.to_str().unwrap()]);
    for name in ["a", "b", "c", "e"] {
        let told = daemon.run(&format!("dev show {name}")).bad(3);
        let cure = format!("kept and not tried again: ringway dev del {name}");
        assert!(told.contains("not made: ") && told.contains(&cure), "{told}");
    }
    let told = daemon.run("dev show f").bad(3);
    assert!(told.contains("tried again every 2 s"), "{told}");
    assert!(daemon.run("dev show").good().contains("a: not made: interface a-name-of-more-than-15"));
    wait_for("all four to be told", || daemon.log().matches("it is kept and not tried again").count() == 4);
    // What waits is dumped as it is; what can never be is no part of a file that a daemon can start with.
    let dump = daemon.run("config dump").good();
    assert!(dump.contains("\n# not made: cannot listen on /nowhere/at/all/f.sock"), "{dump}");
    assert!(dump.contains("\n[[device]]\nname = \"f\"\n") && dump.contains("\n# name = \"a\"\n"), "{dump}");
    let json = daemon.run("-j config dump").json();
    assert_eq!((json["device"].as_array().unwrap().len(), &json["device"][1]["name"]), (2, &"f".into()));
    assert_eq!(json["not_made"].as_object().unwrap().len(), 5, "{json}");
    std::fs::write(temp.path().join("dump.toml"), &dump).unwrap();
    ringway(Path::new("/x"), &format!("config check {}", temp.path().join("dump.toml").display())).good();
    for line in ["dev config show f", "dev vstats show f", "dev set name f mtu 1400"] {
        let told = daemon.run(line).bad(3);
        assert!(told.contains("f: not made: cannot listen") && told.contains("ringway dev del f"), "{told}");
    }
    // All are kept until they are removed.
    daemon.run("dev del b").good();
    let kept = std::fs::read_to_string(state.join("devices.json")).unwrap();
    for name in ["a", "c", "e", "f", "g"] {
        assert!(kept.contains(&format!("\"name\": \"{name}\"")), "{kept}");
    }
    assert!(!kept.contains("flood_pps"), "{kept}");
}
