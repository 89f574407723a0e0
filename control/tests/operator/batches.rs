//! Batches: commands from a file or from standard input.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Daemon, Done};

/// Runs these lines from standard input.
fn piped(daemon: &Daemon, options: &str, lines: &str) -> Done {
    let mut command = Command::new(daemon.programs.join("ringway"));
    command.env("RINGWAY_CTL", daemon.ctl()).args(options.split_whitespace()).args(["-b", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

fn devices(daemon: &Daemon) -> Vec<String> {
    let shown = daemon.run("-j dev show").json();
    shown["dev"].as_object().unwrap().keys().cloned().collect()
}

const LINES: &str = "# two guests\n\
    dev add name a \\\n  mgmtdev sim/net\n\
    dev add name b mgmtdev 'sim/net' # another\n\n\
    dev add name a mgmtdev sim/net\n\
    dev add name c mgmtdev sim/net\n\
    dev del nothing\n";

#[test]
fn batch_ends_at_the_first_error_with_its_line_and_what_was_done_stays() {
    let daemon = Daemon::start();
    let file = daemon.dir.join("batch");
    std::fs::write(&file, LINES).unwrap();
    let error = daemon.run(&format!("-b {}", file.display())).bad(4);
    let expected = format!("error: {}:6: device a is there already\n", file.display());
    assert!(error.starts_with(&expected), "{error}");
    assert_eq!(devices(&daemon), ["a", "b"]);
}

#[test]
fn forced_batch_goes_on_and_ends_with_the_code_of_its_first_error() {
    let daemon = Daemon::start();
    let done = piped(&daemon, "-j --force", LINES);
    let told: Vec<Value> = done.err.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let places: Vec<_> =
        told.iter().map(|told| (told["error"]["file"].clone(), told["error"]["line"].clone())).collect();
    assert_eq!(places, [(json!("-"), json!(6)), (json!("-"), json!(8))], "{told:#?}");
    assert_eq!((&told[1]["error"]["given"], &told[1]["error"]["word"]), (&json!("nothing"), &json!(3)));
    assert_eq!((done.code, devices(&daemon)), (4, vec!["a".to_owned(), "b".to_owned(), "c".to_owned()]));
    // With -j for all of it, each command answers on a line of its own.
    let added: Vec<Value> = done.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(added.iter().map(|line| &line["added"]).collect::<Vec<_>>(), ["a", "b", "c"]);
}

#[test]
fn commands_are_run_as_they_come_and_what_is_wrong_with_a_batch_is_told() {
    let daemon = Daemon::start();
    let mut command = Command::new(daemon.programs.join("ringway"));
    command.env("RINGWAY_CTL", daemon.ctl()).args(["-b", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = child.stdin.take().unwrap();
    lines.write_all(b"dev add name early mgmtdev sim/net\n").unwrap();
    crate::support::wait_for("the first, before the second is written", || devices(&daemon) == ["early"]);
    lines.write_all(b"dev del early\n").unwrap();
    drop(lines);
    assert!(child.wait().unwrap().success());
    assert!(devices(&daemon).is_empty());

    assert!(daemon.run("-b /nowhere/batch").bad(3).contains("cannot read /nowhere/batch"));
    assert!(daemon.run("-b /dev/null dev show").bad(2).contains("takes its commands from its file"));
    assert!(daemon.run("--force dev show").code == 2);
    daemon.run("-b /dev/null").good();
    assert!(piped(&daemon, "", "-b /dev/null\n").bad(2).contains("error: -:1: a batch within a batch"));
    assert!(piped(&daemon, "", "hello\ndev 'show\n").bad(2).contains("error: -:2: a quote is not closed"));
}

#[test]
fn command_that_is_accepted_and_not_in_force_does_not_end_a_batch() {
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net mtu 1500").good();
    let mut guest =
        ringway_guest::Guest::connect(&daemon.socket("vm0"), ringway_guest::GuestOptions::default()).unwrap();
    while guest.turn(16).unwrap() == 0 {}
    let done = piped(&daemon, "", "dev set name vm0 mtu 2000\ndev add name b mgmtdev sim/net\n");
    assert_eq!((done.code, devices(&daemon).len()), (65, 2), "{done:?}");
    assert!(done.err.starts_with("note: -:1: vm0 is changed, but not in force yet"), "{done:?}");
}
