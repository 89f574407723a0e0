//! Errors as data: with `-j`, each is an object on a line of standard error, whoever found it.

use serde_json::{Value, json};

use crate::support::{Daemon, ringway};

/// The one error of a command line that ends with this exit code.
#[track_caller]
fn error(daemon: &Daemon, line: &str, code: i32) -> Value {
    let done = daemon.run(line);
    assert_eq!((done.code, done.out.as_str()), (code, ""), "{done:?}");
    assert_eq!(done.err.matches('\n').count(), 1, "{done:?}");
    let told: Value = serde_json::from_str(&done.err).unwrap();
    assert_eq!(told["error"]["exit_code"], code, "{told}");
    told["error"].clone()
}

#[test]
fn errors_of_grammar_and_daemon_name_the_word_and_what_was_expected() {
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    // What is wrong, its number among the words, and one of what was expected.
    for (line, code, given, word, expected) in [
        ("-j dev shwo", 2, "shwo", 3, "show"),
        ("dvv show -j", 2, "dvv", 1, "dev"),
        ("-j dev add name a mgmtdev sim/net mtu x", 2, "x", 9, "a whole number from 68 to 9000"),
        ("-j dev add name a mgmtdev sim/net mtu 5", 2, "5", 9, "a whole number from 68 to 9000"),
        ("-j dev add name a -p mgmtdev sim/net mac zz", 2, "zz", 10, "an Ethernet address"),
        ("-j dev add name a mgmtdev sim/net swpa on", 2, "swpa", 8, "swap"),
        ("-j dev add name a mgmtdev sim/net swap maybe", 2, "maybe", 9, "on"),
        ("-j dev add name a mgmtdev sim/net mode both", 2, "both", 9, "client"),
        ("-j dev set name vm0 socket /x", 2, "socket", 6, "mac"),
        ("-j events --type nothing", 2, "nothing", 4, "dev.added"),
        ("-j wait vm0 soon", 2, "soon", 4, "connected"),
        ("-j --timeout 0 hello", 2, "0", 3, ""),
        ("-j hello --nonsense", 2, "--nonsense", 3, ""),
        ("-j dev add name a mgmtdev nope/x", 3, "nope/x", 7, ""),
        ("-j dev add name a mgmtdev sim/net core 4095", 3, "4095", 9, ""),
        ("-j dev del vm9", 3, "vm9", 4, ""),
        ("-j dev add name vm0 mgmtdev sim/net", 4, "vm0", 5, ""),
    ] {
        let error = error(&daemon, line, code);
        assert_eq!((&error["given"], &error["word"]), (&json!(given), &json!(word)), "{line}: {error}");
        let all = error["expected"].as_array().cloned().unwrap_or_default();
        assert!(expected.is_empty() || all.contains(&json!(expected)), "{line}: {error}");
        assert!(!error["message"].as_str().unwrap().is_empty() && error["retryable"].is_boolean(), "{error}");
    }
    let taken = error(&daemon, "-j dev add name b mgmtdev sim/net core 4095", 3);
    assert!(
        taken["held_by"].is_string() && taken["hint"].is_string() && taken["kind"] == "not_found",
        "{taken}"
    );
}

#[test]
fn errors_before_there_is_a_daemon_and_notes_are_objects_too() {
    let dir = tempfile::tempdir().unwrap();
    let done = ringway(&dir.path().join("none.sock"), "-j dev show");
    let told: Value = serde_json::from_str(&done.err).unwrap();
    assert_eq!((done.code, &told["error"]["kind"]), (6, &json!("unreachable")));
    assert_eq!(told["error"]["retryable"], true);

    // A file with two mistakes: an object each, then one that counts them.
    let file = dir.path().join("r.toml");
    std::fs::write(
        &file,
        "[[device]]\nname = \"a\"\nmgmtdev = \"sim/net\"\nmtu = 5\n[[device]]\nname = \"b\"\n",
    )
    .unwrap();
    let done = ringway(&dir.path().join("none.sock"), &format!("-j config check {}", file.display()));
    let told: Vec<Value> = done.err.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(done.code == 2 && told.len() == 3, "{told:#?}");
    assert!(told[0]["error"]["path"].as_str().unwrap().contains("r.toml:"), "{told:#?}");

    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net mtu 9000").good();
    let done = daemon.run("-j dev set name vm0 mtu 1500");
    let told: Value = serde_json::from_str(&done.err).unwrap();
    assert!(done.code == 0 && told["note"].as_str().unwrap().contains("host_mtu=1500"), "{done:?}");
}
