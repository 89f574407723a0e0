//! A configuration file that is applied to what runs: what is foretold, what is done, and what is undone.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::time::Instant;

use ringway_vhost_user::frontend::Frontend;
use rustix::fs::inotify;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::machine_cores::two_cores;
use crate::support::{Daemon, SOON, ringwayd, wait_for};

const FIRST: &str = r#"
[[mgmtdev]]
name = "bridge/b"
ageing = 60

[[device]]
name = "d0"
mgmtdev = "sim/blk"
size = "8M"

[[device]]
name = "n0"
mgmtdev = "bridge/b"

[[device]]
name = "n1"
mgmtdev = "bridge/b"
mac = "52:54:00:00:00:01"
"#;

/// A daemon that was started with this file.
fn with_file(text: &str) -> (Daemon, PathBuf) {
    let mut daemon = Daemon::start();
    daemon.terminate();
    let file = daemon.dir.join("r.toml");
    std::fs::write(&file, text).unwrap();
    daemon.start_again(&["--config", file.to_str().unwrap()]);
    (daemon, file)
}

fn connect(daemon: &Daemon, name: &str) -> Frontend {
    let mut frontend = Frontend::connect(&daemon.socket(name), SOON).unwrap();
    frontend.set_timeout(SOON);
    frontend.handshake().unwrap();
    wait_for("it is connected", || daemon.device(name)["state"] == "connected");
    frontend
}

/// What a plan says of each thing: what, name, action and what is disrupted.
fn steps(plan: &Value) -> Vec<String> {
    let word = |step: &Value, key: &str| step[key].as_str().unwrap_or_default().to_owned();
    let steps = plan["steps"].as_array().unwrap();
    steps
        .iter()
        .map(|step| ["what", "name", "action", "disrupts"].map(|key| word(step, key)).join(" "))
        .collect()
}

#[test]
fn what_is_logged_follows_the_file_at_once_and_is_undone_with_the_rest_of_it() {
    let (daemon, file) = with_file(&format!("[daemon]\nlog = \"warn\"\n{FIRST}"));
    let level = || daemon.run("-j log show").json()["level"].as_str().unwrap().to_owned();
    assert_eq!(level(), "warn");
    let other = daemon.dir.join("debug.toml");
    std::fs::write(&other, format!("[daemon]\nlog = \"debug\"\n{FIRST}")).unwrap();
    let diff = daemon.run(&format!("config diff {}", other.display())).good();
    assert!(diff.starts_with("~ daemon: is changed\n    log warn -> debug\n"), "{diff}");
    assert_eq!(level(), "warn");
    let plan = daemon.run(&format!("-j config apply {}", other.display())).json();
    assert_eq!(steps(&plan), ["daemon  set nothing"]);
    assert_eq!(level(), "debug");
    // For a while something else; by default what the file says, and the file goes before what was set.
    daemon.run("log set info").good();
    daemon.run("log set default").good();
    assert_eq!(level(), "debug");
    daemon.run("log set trace").good();
    daemon.run(&format!("config apply {}", file.display())).good();
    assert_eq!(level(), "warn");
    // Set by hand to what a file says then: from now on it is what the file says.
    daemon.run("log set debug").good();
    let plan = daemon.run(&format!("-j config apply {}", other.display())).json();
    assert_eq!(steps(&plan), ["daemon  set nothing"]);
    daemon.run("log set default").good();
    assert_eq!(level(), "debug");
    // What was asked for before has it too.
    let previous = plan["previous"].as_str().unwrap();
    daemon.run(&format!("config apply {previous}")).good();
    assert_eq!(level(), "warn");
    // One that fails leaves it as it was: the disk's file is a folder.
    let bad = daemon.dir.join("bad.toml");
    let disk = "[[device]]\nname = \"d1\"\nmgmtdev = \"file\"\npath = \"/\"\n";
    std::fs::write(&bad, format!("[daemon]\nlog = \"debug\"\n{FIRST}{disk}")).unwrap();
    let refused = daemon.run(&format!("config apply {}", bad.display()));
    assert!(refused.code != 0 && refused.err.contains("d1"), "{}", refused.err);
    assert_eq!(level(), "warn");
    // A reload is the same; what the command line says goes before the file.
    std::fs::copy(&other, &file).unwrap();
    daemon.signal(Signal::HUP);
    wait_for("it is reloaded", || level() == "debug");
    let mut daemon = daemon;
    daemon.terminate();
    daemon.start_again(&["--config", file.to_str().unwrap(), "--log", "info"]);
    let plan = daemon.run(&format!("-j config apply {}", other.display())).json();
    let notes = plan["notes"].to_string();
    assert!(notes.contains("log is info after each start: the file's debug is overridden by"), "{plan}");
    assert_eq!(daemon.run("-j log show").json()["level"], "info");
}

#[test]
fn what_runs_applied_to_itself_changes_nothing() {
    let (daemon, _) = with_file(FIRST);
    daemon.run("dev add name own mgmtdev sim/net max_vqp 2").good();
    let dump = daemon.run("config dump").good();
    let file = daemon.dir.join("dump.toml");
    std::fs::write(&file, &dump).unwrap();
    let plan = daemon.run(&format!("-j config diff {}", file.display())).json();
    // What an operator added is named by this file.
    assert_eq!(steps(&plan), ["device own adopt nothing"], "{plan}");
    assert_eq!(plan["unchanged"], 3);
    daemon.run(&format!("config apply {}", file.display())).good();
    assert_eq!(daemon.device("own")["origin"], "config");
    let plan = daemon.run(&format!("-j config diff {}", file.display())).json();
    assert_eq!((steps(&plan), &plan["unchanged"]), (vec![], &json!(4)));
    assert_eq!(daemon.run("config dump").good(), dump);
}

#[test]
fn each_change_is_foretold_with_whom_it_disrupts_and_then_done() {
    let (daemon, file) = with_file(FIRST);
    daemon.run("dev add name own mgmtdev sim/net").good();
    let (mut disk, mut kept) = (connect(&daemon, "d0"), connect(&daemon, "n1"));
    let text = FIRST
        .replace("ageing = 60", "ageing = 90")
        .replace("size = \"8M\"", "size = \"8M\"\niops = 500")
        .replace("name = \"n0\"\nmgmtdev = \"bridge/b\"", "name = \"n2\"\nmgmtdev = \"bridge/b\"")
        + "mtu = 1400\n[daemon]\nidle = \"poll\"\n";
    std::fs::write(&file, &text).unwrap();
    let before = daemon.run("config dump").good();
    let diff = format!("config diff {}", file.display());
    let plan = daemon.run(&format!("-j {diff}")).json();
    let expected = [
        "daemon  restart daemon",
        "device n0 del nothing",
        "mgmtdev bridge/b set nothing",
        "device d0 set nothing",
        "device n2 add nothing",
        "device n1 set nothing",
    ];
    assert_eq!(steps(&plan), expected, "{plan}");
    assert_eq!(plan["steps"][3]["changes"], json!([{ "key": "iops", "after": "500" }]));
    assert_eq!(plan["beside"], json!(["own"]));
    assert_eq!(daemon.run("config dump").good(), before, "nothing was changed");
    let told = daemon.run(&diff).good();
    assert!(told.contains("~ device d0: is changed\n    iops default -> 500\n"), "{told}");
    assert!(told.contains("- device n0: is removed\n"), "{told}");

    let done = daemon.run(&format!("-j config apply {}", file.display()));
    assert_eq!(done.code, 65, "one of them is not in force yet: {done:?}");
    let done: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(steps(&done), expected);
    assert_eq!(
        (&plan["steps"][5]["deferred"], &done["steps"][5]["deferred"]),
        (&json!(["mtu"]), &json!(["mtu"]))
    );
    assert!(
        done["steps"][5]["notes"][0].as_str().unwrap().contains("in force when the next one connects"),
        "{done}"
    );
    assert_eq!(daemon.device("d0")["attributes"]["iops"], "500");
    assert_eq!(daemon.run("dev show n0").code, 3);
    assert_eq!(daemon.device("n2")["origin"], "config");
    daemon.device("own");
    // Neither front-end has noticed.
    disk.queue_num().unwrap();
    kept.queue_num().unwrap();
    let plan = daemon.run(&format!("-j {diff}")).json();
    assert_eq!(steps(&plan), ["daemon  restart daemon"], "{plan}");
    let event = daemon.run("-j events --once --since 0 --type config.applied").json();
    assert_eq!((&event["added"], &event["changed"], &event["removed"]), (&json!(1), &json!(3), &json!(1)));

    // Back to what ran before.
    let previous = done["previous"].as_str().unwrap();
    assert_eq!(std::fs::metadata(previous).unwrap().permissions().mode() & 0o777, 0o640);
    daemon.run(&format!("config apply {previous}")).good();
    // What is as good as no limit is set, not made anew.
    disk.queue_num().unwrap();
    daemon.device("n0");
    assert_eq!(daemon.device("own")["origin"], "operator", "it was nobody's but the operator's");
    // It is what the file asked for, so that the file itself changes nothing now.
    std::fs::write(&file, FIRST).unwrap();
    let plan = daemon.run(&format!("-j {diff}")).json();
    assert_eq!((steps(&plan), &plan["unchanged"]), (vec![], &json!(3)), "{plan}");
    assert_eq!(daemon.run("dev show n2").code, 3);
}

#[test]
fn what_needs_a_new_device_says_that_its_guest_loses_it() {
    let (daemon, file) = with_file(FIRST);
    let mut gone = connect(&daemon, "n1");
    let text = FIRST.replace("mac = \"52:54:00:00:00:01\"", "max_vqp = 2");
    std::fs::write(&file, &text).unwrap();
    let told = daemon.run(&format!("config diff {}", file.display())).good();
    assert!(
        told.contains("! device n1: is removed and made anew; its guest loses the device for a moment\n"),
        "{told}"
    );
    gone.queue_num().unwrap();
    daemon.run(&format!("config apply {}", file.display())).good();
    assert!(gone.queue_num().is_err(), "it lost its device");
    assert_eq!(daemon.device("n1")["state"], "waiting");
    connect(&daemon, "n1");
}

#[test]
fn file_of_which_a_part_cannot_be_changes_nothing() {
    let (daemon, file) = with_file(FIRST);
    daemon.run("dev add name own mgmtdev sim/net").good();
    let mut kept = connect(&daemon, "d0");
    let before = daemon.run("config dump").good();
    let (devices, origins) =
        (daemon.run("dev show").good().matches("mgmtdev").count(), daemon.run("-j dev show").json());
    let text = FIRST
        .replace("ageing = 60", "ageing = 90")
        .replace("size = \"8M\"", "size = \"8M\"\niops = 500")
        .replace("mac = \"52:54:00:00:00:01\"", "max_vqp = 2")
        .replace("name = \"n0\"", "name = \"n2\"")
        + "[[mgmtdev]]\nname = \"bridge/other\"\n[[device]]\nname = \"own\"\nmgmtdev = \"sim/net\"\n"
        + CANNOT_BE;
    std::fs::write(&file, &text).unwrap();
    let error = daemon.run(&format!("config apply {}", file.display()));
    assert!(
        error.code != 0 && error.err.contains("device f0: ") && error.err.contains("; nothing is changed"),
        "{error:?}"
    );
    // A device that was made again stands last.
    let sorted = |dump: &str| {
        let mut blocks: Vec<String> = dump.split("\n\n").map(|it| it.trim().to_owned()).collect();
        blocks.sort();
        blocks
    };
    assert_eq!(sorted(&daemon.run("config dump").good()), sorted(&before));
    assert_eq!(daemon.run("dev show").good().matches("mgmtdev").count(), devices);
    for name in ["d0", "n0", "n1", "own"] {
        assert_eq!(daemon.device(name)["origin"], origins["dev"][name]["origin"], "{name}");
    }
    kept.queue_num().unwrap();
    // Nor is there a limit that nobody asked for, while the front-end stays and when it is gone.
    assert_eq!(daemon.device("d0")["attributes"]["iops"], Value::Null);
    drop(kept);
    wait_for("it is gone", || daemon.device("d0")["state"] == "waiting");
    assert_eq!(daemon.device("d0")["attributes"]["iops"], Value::Null);
    // What can never be is refused by its line before anything is done.
    std::fs::write(&file, FIRST.replace("mac = \"52:54:00:00:00:01\"", "mtu = 3")).unwrap();
    let error = daemon.run(&format!("config apply {}", file.display())).bad(2);
    assert!(error.contains("r.toml:18: "), "{error}");
}

#[test]
fn sighup_applies_the_daemons_own_file() {
    let (daemon, file) = with_file(FIRST);
    let hup = || daemon.signal(Signal::HUP);
    std::fs::write(&file, FIRST.replace("ageing = 60", "ageing = 61")).unwrap();
    hup();
    wait_for("it is applied", || {
        daemon.run("events --once --since 0 --type config").good().contains("config.applied")
    });
    assert!(daemon.run("mgmtdev show bridge/b").good().contains("61"));
    std::fs::write(&file, "[[device]]\nname = \"a\"\n").unwrap();
    hup();
    wait_for("it is refused", || {
        let events = daemon.run("events --once --since 0 --type config.refused").good();
        events.contains("r.toml:1: ")
    });
    daemon.device("n0");
    daemon.logged("is not applied: ");
}

#[test]
fn bridge_that_came_with_its_device_is_the_files_though_that_device_goes() {
    let (daemon, file) = with_file("[[device]]\nname = \"a\"\nmgmtdev = \"bridge/b\"\n");
    let text =
        "[[mgmtdev]]\nname = \"bridge/b\"\nageing = 77\n[[device]]\nname = \"z\"\nmgmtdev = \"bridge/b\"\n";
    std::fs::write(&file, text).unwrap();
    let plan = daemon.run(&format!("-j config apply {}", file.display())).json();
    assert_eq!(
        steps(&plan),
        ["device a del nothing", "mgmtdev bridge/b set nothing", "device z add nothing"],
        "{plan}"
    );
    assert!(daemon.run("mgmtdev show bridge/b").good().contains("77"));
    // Its table is gone, and it stays for its device: what was asked of it is told.
    std::fs::write(&file, "[[device]]\nname = \"z\"\nmgmtdev = \"bridge/b\"\n").unwrap();
    let plan = daemon.run(&format!("-j config diff {}", file.display())).json();
    assert_eq!(steps(&plan), ["mgmtdev bridge/b restart daemon"], "{plan}");
}

#[test]
fn devices_of_a_port_that_is_made_anew_are_made_anew_and_stand_once() {
    let text = "[[mgmtdev]]\nname = \"simnic/n\"\n[[port]]\nmgmtdev = \"simnic/n\"\nsfnum = 8\nstate = \"active\"\nmax_io_eqs = 2\n\
                [[device]]\nname = \"p\"\nmgmtdev = \"auxiliary/simnic.n.sf.8\"\n";
    let (daemon, file) = with_file(text);
    wait_for("it is made", || daemon.run("dev show p").code == 0);
    // A key of the port is gone, and its device is changed with it.
    std::fs::write(&file, text.replace("max_io_eqs = 2\n", "") + "mtu = 1400\n").unwrap();
    let plan = daemon.run(&format!("-j config apply {}", file.display())).json();
    assert_eq!(steps(&plan), ["port simnic/n/8 remake device", "device p remake nothing"], "{plan}");
    assert_eq!(daemon.device("p")["provisioned"]["mtu"], 1400);
    // The last device of another file cannot be: the port and its device are as they were, and nothing stands twice.
    std::fs::write(&file, format!("{text}{CANNOT_BE}")).unwrap();
    let error = daemon.run(&format!("config apply {}", file.display()));
    assert!(error.err.contains("; nothing is changed"), "{error:?}");
    assert_eq!(daemon.device("p")["provisioned"]["mtu"], 1400);
    assert!(!daemon.run("dev show").good().contains("not made"), "{}", daemon.run("dev show").good());
}

#[test]
fn file_without_a_device_takes_away_what_it_made_only_if_that_is_asked_for() {
    let (daemon, file) = with_file(FIRST);
    daemon.run("dev add name own mgmtdev sim/net").good();
    let mut kept = connect(&daemon, "n1");
    // Cut short while it was written, say.
    std::fs::write(&file, "").unwrap();
    let shown = file.display().to_string();
    let why = format!("{shown} names no device, and of what it made this would go: d0, n0, n1");
    for line in ["config apply", "--dry-run config apply"] {
        let error = daemon.run(&format!("{line} {shown}")).bad(4);
        assert!(error.contains(&why), "{error}");
        assert!(error.contains(&format!("try: ringway config apply {shown} --force")), "{error}");
    }
    daemon.signal(Signal::HUP);
    wait_for("it is refused", || {
        daemon.run("events --once --since 0 --type config.refused").good().contains(" --force")
    });
    let diff = daemon.run(&format!("config diff {shown}"));
    assert!(diff.err.contains("it is not applied without --force: ") && diff.err.contains(&why), "{diff:?}");
    assert!(diff.good().contains("- device n1: is removed; its guest loses the device"));
    kept.queue_num().unwrap();
    assert_eq!(daemon.device("d0")["origin"], "config");

    // A file that had none, and one that leaves some, are as any other.
    std::fs::write(&file, "[[device]]\nname = \"n0\"\nmgmtdev = \"bridge/b\"\n").unwrap();
    assert_eq!(
        daemon.run(&format!("config apply {shown}")).code,
        65,
        "the bridge has its settings until a restart"
    );
    std::fs::write(&file, "").unwrap();
    daemon.run(&format!("config apply {shown}")).bad(4);
    assert!(daemon.run(&format!("--dry-run config apply {shown} --force")).good().contains("- device n0"));
    daemon.device("n0");
    let done = daemon.run(&format!("-j config apply {shown} --force")).json();
    assert!(steps(&done).contains(&"device n0 del nothing".to_owned()), "{done}");
    daemon.run("dev show n0").bad(3);
    daemon.device("own");
    let unchanged = daemon.run(&format!("-j config apply {shown}")).json();
    assert_eq!(steps(&unchanged), Vec::<String>::new());
    daemon.run(&format!("config apply {}", done["previous"].as_str().unwrap())).good();
    daemon.device("n0");
}

#[test]
fn file_without_ports_management_devices_or_what_is_not_made_yet_is_refused_as_one_without_devices() {
    let parent = "[[mgmtdev]]\nname = \"simnic/n\"\n";
    let port = "[[port]]\nmgmtdev = \"simnic/n\"\nsfnum = 8\nstate = \"active\"\n";
    let (daemon, file) = with_file(&format!("{parent}{port}"));
    let shown = file.display().to_string();
    let own = "dev add name own mgmtdev auxiliary/simnic.n.sf.8";
    wait_for("the function is there", || daemon.run(own).code == 0);
    let refused = |text: &str, what: &str| {
        std::fs::write(&file, text).unwrap();
        let why = format!("{shown} names no device, and of what it made this would go: {what}");
        for line in ["config apply", "--dry-run config apply"] {
            let error = daemon.run(&format!("{line} {shown}")).bad(4);
            assert!(
                error.contains(&why) && error.contains(&format!("config apply {shown} --force")),
                "{error}"
            );
        }
        let diff = daemon.run(&format!("config diff {shown}"));
        assert!(
            diff.err.contains("it is not applied without --force: ") && diff.err.contains(&why),
            "{diff:?}"
        );
    };
    let with = "; with that, of what operators added: own\n";
    refused("", &format!("port simnic/n/8, management device simnic/n{with}"));
    refused(parent, &format!("port simnic/n/8{with}"));
    daemon.signal(Signal::HUP);
    wait_for("it is refused", || {
        daemon.run("events --once --since 0 --type config.refused").good().contains(" --force")
    });
    daemon.device("own");
    daemon.run(&format!("config apply {shown} --force")).good();
    daemon.run("dev show own").bad(3);
    assert_eq!(daemon.run("port show").good(), "");
    // Nothing of the file's goes where a port was an operator's.
    daemon.run("port add simnic/n sfnum 9").good();
    daemon.run(&format!("config apply {shown}")).good();

    // A bridge whose devices are operators'.
    std::fs::write(&file, "[[mgmtdev]]\nname = \"bridge/b\"\nageing = 60\n").unwrap();
    daemon.run(&format!("config apply {shown}")).good();
    daemon.run("dev add name b0 mgmtdev bridge/b").good();
    refused("", "management device bridge/b (its devices stay)\n");
    // A disk whose file is not there yet.
    let (daemon, file) = with_file(CANNOT_BE);
    daemon.logged("f0");
    let shown = file.display().to_string();
    std::fs::write(&file, "").unwrap();
    let error = daemon.run(&format!("config apply {shown}")).bad(4);
    assert!(error.contains("names no device, and of what it made this would go: f0\n"), "{error}");
    daemon.run(&format!("config apply {shown} --force")).good();
    daemon.run("status").good();
}

#[test]
fn what_operators_made_and_the_file_names_is_told_to_become_its_own() {
    let (daemon, file) = with_file("");
    daemon.run("mgmtdev add name bridge/a ageing 60").good();
    daemon.run("mgmtdev add name bridge/b ageing 60").good();
    daemon.run("mgmtdev add name simnic/n").good();
    daemon.run("port add simnic/n sfnum 8").good();
    daemon.run("dev add name x mgmtdev bridge/a").good();
    let text = "[[mgmtdev]]\nname = \"bridge/a\"\nageing = 60\n[[mgmtdev]]\nname = \"bridge/b\"\nageing = 90\n\
                [[mgmtdev]]\nname = \"simnic/n\"\n[[port]]\nmgmtdev = \"simnic/n\"\nsfnum = 8\n\
                [[device]]\nname = \"x\"\nmgmtdev = \"bridge/a\"\nmtu = 1400\n";
    std::fs::write(&file, text).unwrap();
    let shown = file.display();
    let expected = [
        "mgmtdev bridge/a adopt nothing",
        "mgmtdev bridge/b set nothing",
        "mgmtdev simnic/n adopt nothing",
        "port simnic/n/8 adopt nothing",
        "device x set nothing",
    ];
    let told = daemon.run(&format!("-j config diff {shown}")).json();
    assert_eq!(steps(&told), expected, "{told}");
    for nth in [1, 4] {
        let note = told["steps"][nth]["notes"][0].as_str().unwrap();
        assert_eq!(note, "it is the file's from now on, not an operator's", "{told}");
    }
    let done = daemon.run(&format!("config apply {shown}")).good();
    assert!(done.contains("= mgmtdev bridge/a: the file's now, not an operator's\n"), "{done}");
    assert_eq!(daemon.device("x")["origin"], "config");
    let again = daemon.run(&format!("-j config diff {shown}")).json();
    assert_eq!((steps(&again), &again["unchanged"]), (vec![], &json!(1)), "{again}");
}

#[test]
fn what_waits_for_a_restart_is_told_by_the_exit_code_until_there_is_one() {
    let table = |words: &str| format!("[[mgmtdev]]\nname = \"bridge/b\"\n{words}\n");
    let device = "[[device]]\nname = \"x\"\nmgmtdev = \"bridge/b\"\n";
    let (mut daemon, file) = with_file(&format!("{}{device}", table("ageing = 60")));
    let words = |words: &str| format!("{words} {}", file.display());
    let told = |text: String, waiting: &str| {
        std::fs::write(&file, text).unwrap();
        // As often as it is asked for.
        for _ in 0..2 {
            let note = daemon.run(&words("config apply")).bad(65);
            assert!(note.contains(&format!("not in force yet: {waiting}\n")), "{note}");
            assert!(note.contains("a restart of ringwayd, for what is marked `*`"), "{note}");
            let event = daemon.run("-j events --once --since 0 --type config.applied").good();
            let event: Value = serde_json::from_str(event.lines().last().unwrap()).unwrap();
            assert_eq!(event["restart"], waiting.matches('(').count(), "{event}");
        }
        assert!(daemon.run(&words("config diff")).good().contains("waits for a restart of ringwayd"));
    };
    told(format!("[daemon]\nidle = \"poll\"\n{}{device}", table("")), "daemon (idle), bridge/b (ageing)");
    told(device.to_owned(), "bridge/b (ageing)");
    // What could not be applied leaves nothing that waits.
    std::fs::write(&file, table("ageing = 70") + device + CANNOT_BE).unwrap();
    assert!(daemon.run(&words("config apply")).err.contains("; nothing is changed"));
    told(device.to_owned(), "bridge/b (ageing)");
    daemon.terminate();
    daemon.start_again(&["--config", file.to_str().unwrap()]);
    let done = daemon.run(&words("config apply")).good();
    assert!(done.starts_with("nothing to change"), "{done}");
    std::fs::write(&file, table("ageing = 70") + device + CANNOT_BE).unwrap();
    assert!(daemon.run(&words("config apply")).err.contains("; nothing is changed"));
    std::fs::write(&file, device).unwrap();
    daemon.run(&words("config apply")).good();
}

/// What the command line or the environment gives goes before the file: a restart, which it would take otherwise, changes nothing.
#[test]
fn what_the_command_line_overrides_waits_for_no_restart_and_is_told() {
    let device = "[[device]]\nname = \"x\"\nmgmtdev = \"sim/net\"\n";
    let (mut daemon, file) = with_file(device);
    daemon.terminate();
    let metrics = daemon.dir.join("m.sock");
    let options =
        ["--config", file.to_str().unwrap(), "--idle", "adaptive", "--metrics", metrics.to_str().unwrap()];
    daemon.start_again(&options);
    let words = |words: &str| format!("{words} {}", file.display());
    let write = |keys: &str| std::fs::write(&file, format!("[daemon]\n{keys}\n{device}")).unwrap();
    let overridden = |option: &str, after: &str| {
        format!(" after each start: the file's {after} is overridden by the command line: `{option} ")
    };
    write(
        "idle = \"poll\"\nmetrics = \"127.0.0.1:9\"\nctl = \"/nowhere/ctl.sock\"\nstate_dir = \"/nowhere/state\"",
    );
    for line in ["config diff", "config apply", "--dry-run config apply", "config apply"] {
        let done = daemon.run(&words(line));
        assert!(done.out.starts_with("nothing to change: 1 device as the file says\n"), "{done:?}");
        for (key, option, after) in [
            ("idle", "--idle", "poll"),
            ("metrics", "--metrics", "127.0.0.1:9"),
            ("ctl", "--ctl", "/nowhere/ctl.sock"),
            ("state_dir", "--state-dir", "/nowhere/state"),
        ] {
            assert!(done.err.contains(&format!("daemon: {key} is ")), "{key}: {done:?}");
            assert!(done.err.contains(&overridden(option, after)), "{key}: {done:?}");
        }
        assert_eq!(done.code, 0, "{done:?}");
    }
    // A restart is what brings the others, and only they are counted.
    write("idle = \"poll\"\nview = \"/nowhere/view.sock\"");
    let note = daemon.run(&words("config apply")).bad(65);
    assert!(
        note.contains("not in force yet: daemon (view)\n") && note.contains("`--idle adaptive`"),
        "{note}"
    );
    // What is as it is to be is not worth a word, however its path is written.
    write(&format!("idle = \"adaptive\"\nstate_dir = \"{}/.//state\"", daemon.dir.display()));
    let done = daemon.run(&words("config apply"));
    assert!(done.code == 0 && !done.err.contains("overridden"), "{done:?}");
    // What makes a core that is added last is not the file either.
    daemon.terminate();
    let Some([one, other]) = two_cores() else { return };
    daemon.start_again(&["--config", file.to_str().unwrap(), "--cores", &one.to_string()]);
    let added = daemon.run(&format!("core add {other}")).err;
    assert!(added.contains("for good: --cores on its command line, which goes before /"), "{added}");
    // A start takes what the command line says, not what runs since.
    for after in [other.to_string(), format!("{one}, {other}")] {
        write(&format!("cores = [{after}]"));
        let done = daemon.run(&words("config apply"));
        let note = format!("daemon: cores is {one}{}{one}`", overridden("--cores", &after));
        assert!(done.code == 0 && done.err.contains(&note), "{done:?}");
    }
    write(&format!("cores = [{one}]"));
    let done = daemon.run(&words("config apply"));
    assert!(done.code == 0 && !done.err.contains("overridden"), "{done:?}");
}

#[test]
fn file_is_taken_up_to_its_bound_wherever_it_is_read() {
    const LONGEST: usize = 1 << 20;
    let (daemon, file) = with_file(FIRST);
    let shown = file.display();
    // Of what takes two bytes each on the way.
    let text = |len: usize| format!("{FIRST}{}", "\n".repeat(len - FIRST.len()));
    std::fs::write(&file, text(LONGEST)).unwrap();
    for line in ["config check", "config diff", "config apply"] {
        daemon.run(&format!("{line} {shown}")).good();
    }
    std::fs::write(&file, text(LONGEST + 1)).unwrap();
    for line in ["config check", "config diff", "config apply"] {
        let error = daemon.run(&format!("{line} {shown}")).bad(2);
        assert!(error.contains("has 1048577 bytes: a configuration file has 1048576 at most"), "{error}");
    }
    daemon.signal(Signal::HUP);
    wait_for("it is refused", || {
        daemon.run("events --once --since 0 --type config.refused").good().contains("1048576 at most")
    });
    let given = json!({ "file": "/f", "text": text(LONGEST + 1) });
    for method in ["config.diff", "config.apply"] {
        let refused = &daemon.wire().call(method, given.clone())["error"];
        assert!(refused["message"].as_str().unwrap().contains("1048576 at most"), "{refused}");
    }
    let mut start = crate::support::ringwayd();
    start.args(["--ctl", "/tmp/none/ctl.sock", "--config"]).arg(&file);
    assert!(crate::support::finish(start).bad(2).contains("1048576 at most"));
}

/// The last device of a file that cannot be applied.
const CANNOT_BE: &str = "[[device]]\nname = \"f0\"\nmgmtdev = \"file\"\npath = \"/nonexistent/disk\"\n";

#[test]
fn what_waits_is_as_it_was_once_a_file_is_undone() {
    let text = |words: &str| format!("[[device]]\nname = \"vm0\"\nmgmtdev = \"bridge/b\"\n{words}\n");
    let (daemon, file) = with_file(&text("mtu = 1500"));
    let apply = |text: String| {
        std::fs::write(&file, text).unwrap();
        daemon.run(&format!("config apply {}", file.display()))
    };
    let mut kept = connect(&daemon, "vm0");
    let (none, mtu) = (Value::Null, json!(["mtu"]));
    let others = ["mtu = 1400", "mtu = 1500\nmac = \"52:54:00:00:00:09\"", "mtu = 1500"];
    for (now, before) in [("mtu = 1500", &none), ("mtu = 1400", &mtu)] {
        apply(text(now));
        assert_eq!(&daemon.device("vm0")["deferred"], before, "{now}");
        let dump = daemon.run("config dump").good();
        for other in others {
            let error = apply(text(other) + CANNOT_BE);
            assert!(error.code != 0 && error.err.contains("; nothing is changed"), "{error:?}");
            assert_eq!(&daemon.device("vm0")["deferred"], before, "{now}, then {other}");
            assert_eq!(daemon.run("config dump").good(), dump);
        }
        // What waits is all that the exit code stands for.
        assert_eq!(apply(text(now)).code, if *before == none { 0 } else { 65 });
    }
    kept.queue_num().unwrap();
    // Who lost a device on the way is told.
    let error = apply(text("max_vqp = 2") + CANNOT_BE);
    assert!(error.err.contains("; nothing is changed; gone for a moment, and made anew: vm0"), "{error:?}");
    wait_for("its front-end has lost it", || kept.queue_num().is_err());
}

/// Counts how often the kept devices are written.
struct Writes(OwnedFd);

impl Writes {
    fn of(daemon: &Daemon) -> Writes {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
        let state: &Path = &daemon.dir.join("state");
        // The kernel makes one of two that are alike: each is told apart by the name that it had before.
        let moves = inotify::WatchFlags::MOVED_FROM | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&inotify, state, moves).unwrap();
        Writes(inotify)
    }

    /// Since it was asked for last.
    fn count(&self) -> usize {
        let mut buffer = [const { MaybeUninit::uninit() }; 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut buffer);
        let mut count = 0;
        while let Ok(event) = reader.next() {
            assert!(!event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW));
            count += usize::from(event.file_name().is_some_and(|name| name.to_bytes() == b"devices.json"));
        }
        count
    }
}

/// Devices of the simulated wire, each with this MTU.
fn many(count: usize, mtu: u16) -> String {
    (0..count).map(|n| format!("[[device]]\nname = \"m{n}\"\nmgmtdev = \"sim/net\"\nmtu = {mtu}\n")).collect()
}

#[test]
fn file_that_changes_many_devices_is_kept_twice_however_many_they_are() {
    const DEVICES: usize = 300;
    let (daemon, file) = with_file(&many(DEVICES, 1400));
    daemon.run("dev add name own mgmtdev sim/net").good();
    let shown = file.display();
    let writes = Writes::of(&daemon);
    std::fs::write(&file, many(DEVICES, 1300)).unwrap();
    let begun = Instant::now();
    let done = daemon.run(&format!("-j config apply {shown}")).json();
    println!("{DEVICES} devices are changed in {:?}", begun.elapsed());
    assert_eq!(steps(&done).len(), DEVICES, "{done}");
    assert_eq!(daemon.device("m299")["provisioned"]["mtu"], 1300);
    assert_eq!(writes.count(), 2, "before and behind");
    // One that cannot be applied: what is on disk then is what the undoing leaves.
    std::fs::write(&file, many(DEVICES, 1200) + CANNOT_BE).unwrap();
    let error = daemon.run(&format!("config apply {shown}"));
    assert!(error.code != 0 && error.err.contains("; nothing is changed"), "{error:?}");
    assert_eq!(daemon.device("m299")["provisioned"]["mtu"], 1300);
    assert_eq!(writes.count(), 1, "before");
    // What operators do is on disk before it is answered, as ever; the file's devices are not among it.
    daemon.run("dev set name own mtu 1400").good();
    assert_eq!(writes.count(), 1);
    std::fs::write(&file, "").unwrap();
    daemon.run(&format!("config apply {shown} --force")).good();
    assert_eq!(writes.count(), 2);
    let kept = std::fs::read_to_string(daemon.dir.join("state/devices.json")).unwrap();
    let kept: Value = serde_json::from_str(&kept).unwrap();
    assert_eq!((kept["devices"].as_array().unwrap().len(), &kept["devices"][0]["mtu"]), (1, &json!(1400)));
}

#[test]
fn watchdog_is_fed_while_a_large_file_is_applied() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let mut command = ringwayd();
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "30000");
    let daemon = Daemon::start_as(command, Stdio::null());
    let (beat, beats) = channel();
    std::thread::spawn(move || {
        let mut told = [0; 128];
        while let Ok(n) = manager.recv(&mut told) {
            if &told[..n] == b"WATCHDOG=1" && beat.send(Instant::now()).is_err() {
                return;
            }
        }
    });
    let given = json!({ "file": "/f", "text": many(1000, 1400) });
    let mut wire = daemon.wire();
    let begun = Instant::now();
    let done = wire.call("config.apply", given);
    let ended = Instant::now();
    assert_eq!(done["result"]["steps"].as_array().unwrap().len(), 1000);
    let within = beats.try_iter().filter(|at| (begun..ended).contains(at)).count();
    // One each ten milliseconds, if nothing else wants the processor; behind the whole of it there is none within.
    println!("{within} beats in {:?}", ended - begun);
    assert!(within >= 3, "{within} beats in {:?}", ended - begun);
}
