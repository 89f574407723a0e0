//! The configuration file: checked, run, dumped.

use std::path::Path;

use crate::support::{Daemon, finish, ringway, ringwayd};

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
    let error = check(&format!("{device}[daemon]\ncores = [1, 2]\n")).bad(2);
    assert!(error.starts_with("error: FILE:4: no worker runs on core 9: [daemon] cores is 1"), "{error}");
}

#[test]
fn what_is_no_file_of_text_is_refused_at_once() {
    for path in ["/dev/zero", "/dev/stdin"] {
        let error = ringway(Path::new("/x"), &format!("config check {path}")).bad(1);
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
    daemon.run("dev add name c mgmtdev sim/net group 0").good();
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
    let daemon = Daemon::start_with(&["--config", file.to_str().unwrap()]);
    assert!(daemon.run("core show").good().contains(" policy poll "));
    assert_eq!(daemon.log(), "", "nothing to warn of");
    drop(daemon);
    let daemon =
        Daemon::start_with(&["--config", file.to_str().unwrap(), "--idle", "adaptive", "--log", "info"]);
    assert!(daemon.run("core show").good().contains(" policy adaptive "));
    assert!(daemon.log().contains(" ready at "));
}
