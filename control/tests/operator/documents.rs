//! The pages for operators, run as they are written where that needs no guest, no service manager and no root: each command ends as
//! the page has it, and prints what the page shows, numbers and times aside.
//!
//! A block that is not run here is named in the page's test with who runs it, and each that is named is there: nobody adds one that
//! nobody runs. What needs guests is run by `deploy/tests/documents.rs`, what needs systemd by `deploy/tests/installed.rs`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use ringway_lab::document::{self, HOST, Kind, Step};
use serde_json::Value;

use crate::support::{Daemon, Done, finish, ringway};

/// A page of `docs`.
fn text_of(page: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The page's commands in their order. What is only shown is a step, too, at no place, called by its first line.
fn steps_of(page: &str) -> Vec<Step> {
    let shown = |block: &document::Block| Step {
        line: block.line,
        place: String::new(),
        command: block.text.clone(),
        shown: Vec::new(),
    };
    let steps = |block: document::Block| match block.kind {
        Kind::Shown => vec![shown(&block)],
        Kind::Host | Kind::Guest | Kind::Console => block.steps(),
    };
    document::blocks(&text_of(page)).unwrap().into_iter().flat_map(steps).collect()
}

/// Runs a line in a shell, in the daemon's own folder; what it writes and what it says of errors is in `out`, with paths as root's
/// daemon has them.
fn typed(daemon: &Daemon, line: &str) -> Done {
    let path = format!("{}:{}", daemon.programs.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("bash");
    command.args(["--norc", "-e", "-o", "pipefail", "-c", &format!("exec 2>&1\n{line}")]);
    command.env("PATH", path).env("RINGWAY_CTL", daemon.ctl()).current_dir(&daemon.dir);
    let done = finish(command);
    let state = daemon.dir.join("state").display().to_string();
    let out = done.out.replace(&state, "/var/lib/ringway");
    Done { out: out.replace(&daemon.dir.display().to_string(), "/run/ringway"), ..done }
}

/// Runs a page but for those of `elsewhere`, each by its first line with who runs it; `before` prepares a step, and says which exit
/// codes it may have beside that which the page shows.
fn run_page(
    daemon: &Daemon,
    page: &str,
    elsewhere: &[(&str, &str)],
    mut before: impl FnMut(&Step) -> &'static [i32],
) {
    let mut left_out = BTreeSet::new();
    let mut ran = 0;
    for step in steps_of(page) {
        let first = step.command.lines().next().unwrap_or_default();
        let key = if [HOST, ""].contains(&step.place.as_str()) {
            first.to_owned()
        } else {
            format!("{}# {first}", step.place)
        };
        if let Some(at) = elsewhere.iter().position(|(line, _)| *line == key) {
            left_out.insert(at);
            continue;
        }
        assert_eq!(step.place, HOST, "{page}: {step}: it is run by no test");
        let allowed = before(&step);
        let done = typed(daemon, &step.command);
        let is_expected = if step.fails() { done.code != 0 } else { done.code == 0 };
        assert!(is_expected || allowed.contains(&done.code), "{page}: {step}: {done:?}");
        if let Some(line) = document::missing(&step.shown, &done.out) {
            panic!("{page}: {step}\nshown and not printed: {line}\nprinted:\n{}", done.out);
        }
        ran += 1;
    }
    assert_eq!(left_out.len(), elsewhere.len(), "{page}: {elsewhere:?}: some are not on the page");
    assert!(ran > 3, "{page}: {ran} commands");
}

#[test]
fn first_steps_are_as_their_page_says() {
    let daemon = Daemon::start();
    let elsewhere = [
        ("cargo build --release", "this test is built by it"),
        ("export PATH=$PWD/target/release:$PATH", "the programs are on this test's PATH"),
        ("ringwayd", "the daemon of this test; deploy/tests/documents.rs starts it as written"),
        (
            r#"eval "qemu-system-x86_64 -accel kvm -accel tcg -cpu max -nographic \"#,
            "deploy/tests/documents.rs has the guests",
        ),
        ("vm0# ip addr add 10.0.0.1/24 dev eth0 && ip link set eth0 up", "deploy/tests/documents.rs"),
        ("vm1# ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up", "deploy/tests/documents.rs"),
        ("vm0# ping 10.0.0.2", "deploy/tests/documents.rs"),
        ("ringway top", "needs a terminal: deploy/tests/documents.rs"),
    ];
    run_page(&daemon, "first-steps.md", &elsewhere, |_| &[]);
    // What the page says of what it removed, and of what it did not ask for.
    assert_eq!(daemon.run("-j dev show").json()["dev"], serde_json::json!({}));
    daemon.run("mgmtdev show bridge/br0").bad(3);
}

#[test]
fn what_is_wrong_is_looked_for_as_its_page_says() {
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev bridge/br0").good();
    let elsewhere = [("journalctl -u ringwayd --since -1h", "deploy/tests/installed.rs has a journal")];
    // The doctor may find something on this machine, and then says so by its exit code.
    run_page(&daemon, "troubleshooting.md", &elsewhere, |step| match step.command.as_str() {
        "ringway doctor" => &[8],
        _ => &[],
    });
    let bundle = std::fs::read_dir(&daemon.dir).unwrap().flatten();
    let bundle = bundle.filter(|entry| entry.file_name().to_string_lossy().ends_with(".tar.gz"));
    assert_eq!(bundle.count(), 1, "one file");

    // The checks that it names are those that there are.
    let page = text_of("troubleshooting.md");
    let (_, doctors) = page.split_once("## 4. Is it the host?").unwrap();
    let (doctors, _) = doctors.split_once("## 5.").unwrap();
    let report = typed(&daemon, "ringway -j doctor || test $? = 8").out;
    let report: Value = serde_json::from_str(report.lines().next().unwrap()).unwrap();
    let findings = report["doctor"]["findings"].as_array().unwrap();
    let known: Vec<&str> = findings.iter().map(|finding| finding["check"].as_str().unwrap()).collect();
    let named: Vec<&str> = doctors.split("(`").skip(1).map(|rest| rest.split('`').next().unwrap()).collect();
    assert!(
        named.len() >= 5 && named.iter().all(|name| known.contains(name)),
        "{named:?}, and not {known:?}"
    );

    // What is safe to do, of what is done without guests.
    let core = daemon.device("vm0")["cores"][0].clone();
    daemon.run(&format!("dev set name vm0 core {core}")).good();
    daemon.run("dev del vm0").good();
}

#[test]
fn exit_codes_of_status_are_those_of_their_table() {
    let page = text_of("troubleshooting.md");
    let (_, table) = page.split_once("| exit code | it says | then |\n").unwrap();
    let rows: Vec<(i32, &str)> = table
        .lines()
        .skip(1)
        .map_while(|row| {
            let mut cells = row.split('|').skip(1).map(str::trim);
            Some((cells.next()?.parse().ok()?, cells.next()?))
        })
        .collect();
    let says = |code: i32| {
        let row = rows.iter().find(|(listed, _)| *listed == code);
        let (_, says) = row.unwrap_or_else(|| panic!("no {code} in {rows:?}"));
        // The word that it is about, where it has one.
        says.split('`').nth(1).unwrap_or_default().to_owned()
    };
    let codes: Vec<i32> = rows.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [0, 6, 8, 9]);

    ringway("/nonexistent/ctl.sock".as_ref(), "status").bad(6);
    let mut daemon = Daemon::start();
    let said = daemon.run("status");
    assert!(said.code == 0 && said.out.starts_with(&says(0)), "{said:?}");
    // A disk whose file is not there yet.
    daemon.terminate();
    let file = daemon.dir.join("config.toml");
    let disk = daemon.dir.join("disk");
    let text = format!("[[device]]\nname = \"d0\"\nmgmtdev = \"file\"\npath = \"{}\"\n", disk.display());
    std::fs::write(&file, text).unwrap();
    daemon.start_again(&["--config", file.to_str().unwrap()]);
    let said = daemon.run("status");
    assert!(said.code == 8 && said.out.starts_with(&says(8)), "{said:?}");
    assert!(said.out.contains("  d0: not made: ") && said.out.contains("disk"), "{said:?}");
    // Mended, it is made without a word to the daemon.
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    crate::support::wait_for("the disk is made", || daemon.run("status").code == 0);
    // Another program is put in the place of the one that runs, as a package does it.
    daemon.terminate();
    let installed = daemon.dir.join("bin");
    std::fs::create_dir(&installed).unwrap();
    for name in ["ringwayd", "ringway"] {
        std::fs::copy(daemon.programs.join(name), installed.join(name)).unwrap();
    }
    daemon.programs = installed.clone();
    daemon.start_again(&[]);
    daemon.run("status").good();
    std::fs::copy(installed.join("ringwayd"), installed.join("new")).unwrap();
    std::fs::rename(installed.join("new"), installed.join("ringwayd")).unwrap();
    let said = daemon.run("status");
    assert!(said.code == 9 && said.out.starts_with(&says(9)), "{said:?}");
    assert!(said.out.contains("an older program runs than is installed"), "{said:?}");
}

#[test]
fn scripts_can_rely_on_what_their_page_says() {
    let daemon = Daemon::start();
    let elsewhere = [(
        r#"ringway rpc discover | jq -c '.methods[] | select(.name == "dev.vstats.show") | .params'"#,
        "needs jq: the test below it reads the same without, deploy/tests/documents.rs runs it",
    )];
    run_page(&daemon, "scripting.md", &elsewhere, |step| {
        match step.command.as_str() {
            // The two devices that the page shows values of.
            "ringway inspect 'devices/*/queues/1/packets'" => {
                daemon.run("dev add name vm0 mgmtdev sim/net mtu 9000").good();
                daemon.run("dev add name vm1 mgmtdev sim/net").good();
            }
            // The batch begins without them, and its file is the one that is shown.
            "cat guests" => {
                daemon.run("dev del vm0").good();
                daemon.run("dev del vm1").good();
                std::fs::write(daemon.dir.join("guests"), step.shown.join("\n") + "\n").unwrap();
            }
            "ringway --dry-run dev add name vm0 mgmtdev bridge/br0 mtu 9000" => {
                daemon.run("mgmtdev del bridge/br0").good();
            }
            _ => {}
        }
        &[]
    });
    // A dry run changed nothing.
    assert_eq!(daemon.run("-j dev show").json()["dev"], serde_json::json!({}));

    let step = steps_of("scripting.md").into_iter().find(|step| step.command.contains("| jq ")).unwrap();
    let discovered: Value = serde_json::from_str(&daemon.run("rpc discover").good()).unwrap();
    let methods = discovered["methods"].as_array().unwrap();
    let method = methods.iter().find(|method| method["name"] == "dev.vstats.show").unwrap();
    let shown: Value = serde_json::from_str(&step.shown[0]).unwrap();
    assert_eq!(method["params"], shown);
}

/// The table of an error's keys has those that there are, and says of each rightly whether it is always there.
#[test]
fn keys_of_errors_are_those_of_their_table() {
    let page = text_of("scripting.md");
    let (_, table) = page.split_once("| key | is there | meaning |\n").unwrap();
    let (mut listed, mut always) = (BTreeSet::new(), BTreeSet::new());
    for row in table.lines().skip(1).take_while(|row| row.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        for key in cells[1].split('`').skip(1).step_by(2) {
            listed.insert(key.to_owned());
            if cells[2] == "always" {
                always.insert(key.to_owned());
            }
        }
    }
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let file = daemon.dir.join("batch");
    std::fs::write(&file, "dev add name vm1 mgmtdev sim/net mtu 70000\n").unwrap();
    let socket = daemon.socket("vm0").display().to_string();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for line in [
        "dev add name vm0 mgmtdev sim/net mtu 70000".to_owned(),
        format!("-b {}", file.display()),
        format!("dev add name vm1 mgmtdev sim/net socket {socket}"),
        "dev del vm9".to_owned(),
        "config check /nonexistent".to_owned(),
    ] {
        let done = daemon.run(&format!("-j {line}"));
        assert!(done.code != 0 && done.out.is_empty() && done.err.lines().count() == 1, "{line}: {done:?}");
        let error: Value = serde_json::from_str(&done.err).unwrap();
        let keys: BTreeSet<String> = error["error"].as_object().unwrap().keys().cloned().collect();
        assert!(always.is_subset(&keys), "{line}: {always:?}, and not {keys:?}");
        assert_eq!(error["error"]["exit_code"], done.code, "{line}");
        seen.extend(keys);
    }
    assert_eq!(seen, listed);
}
