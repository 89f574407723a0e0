//! Exit codes are what the manual says, and every error says what is wrong and what to do.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::process::Command;

use crate::support::{Daemon, finish, ringway};

#[test]
fn success_is_0_and_help_too() {
    let nowhere = std::path::Path::new("/nonexistent/ctl.sock");
    for line in
        ["", "--help", "-h", "dev -h", "dev add --help", "help", "help dev", "mgmtdev", "-V", "dev -V"]
    {
        let done = ringway(nowhere, line);
        assert!(done.code == 0 && !done.out.is_empty(), "{line}: {done:?}");
    }
    assert!(ringway(nowhere, "--version").good().starts_with("ringway "));
    assert!(ringway(nowhere, "dev add --help").good().contains("device_features MASK|NAMES"));
}

#[test]
fn something_that_fails_is_1() {
    let error = ringway("/x".as_ref(), "man /proc/self").bad(3);
    assert!(error.starts_with("error: cannot write /proc/self/ringway.8: No such file"), "{error}");
    // A device without room.
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/full", dir.path().join("ringway.8")).unwrap();
    let error = ringway("/x".as_ref(), &format!("man {}", dir.path().display())).bad(1);
    assert!(error.contains("No space left"), "{error}");
}

/// One cause has one code, by whatever way it is met.
#[test]
fn one_cause_has_one_exit_code() {
    let daemon = Daemon::start();
    let dir = daemon.dir.clone();
    let file = dir.join("file");
    std::fs::write(&file, "").unwrap();
    let shown = file.display().to_string();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let check = |text: &str| {
        std::fs::write(dir.join("c.toml"), text).unwrap();
        daemon.run(&format!("config check {}", dir.join("c.toml").display())).code
    };
    let start = |args: &[&str]| {
        let mut command = crate::support::ringwayd();
        command.args(["--ctl", dir.join("o/ctl.sock").to_str().unwrap()]);
        if !args.contains(&"--state-dir") {
            command.args(["--state-dir", dir.join("o/state").to_str().unwrap()]);
        }
        command.args(args);
        finish(command).code
    };
    let device = "[[device]]\nname = \"a\"\nmgmtdev = \"sim/net\"\n";
    let causes: [(&str, i32, Vec<i32>); 5] = [
        (
            "a name that is taken",
            4,
            vec![daemon.run("dev add name vm0 mgmtdev sim/net").code, check(&device.repeat(2))],
        ),
        (
            "a core without a worker",
            3,
            vec![
                daemon.run("dev add name a mgmtdev sim/net core 4095").code,
                daemon.run("dev set name vm0 core 4095").code,
                check("[daemon]\ncores = [4095]\n"),
                check(&format!("{device}core = 4095\n[daemon]\ncores = [0]\n")),
                start(&["--cores", "4095"]),
            ],
        ),
        (
            "a path that is something else",
            4,
            vec![
                daemon.run(&format!("dev add name a mgmtdev sim/net socket {shown}")).code,
                daemon.run(&format!("dev add name a mgmtdev sim/net socket {shown}/a.sock")).code,
                daemon.run(&format!("config check {}", dir.display())).code,
                daemon.run(&format!("man {shown}")).code,
                start(&["--state-dir", &shown]),
                start(&["--config", dir.to_str().unwrap()]),
            ],
        ),
        (
            "a path that is not there",
            3,
            vec![
                daemon.run("dev add name a mgmtdev sim/net socket /nonexistent/a.sock").code,
                daemon.run("config check /nonexistent.toml").code,
                daemon.run("man /nonexistent").code,
                start(&["--config", "/nonexistent.toml"]),
            ],
        ),
        (
            "a user that nobody knows",
            3,
            vec![
                daemon.run("dev add name a mgmtdev sim/net owner no-such-user").code,
                check(&format!("{device}owner = \"no-such-user\"\n")),
            ],
        ),
    ];
    for (cause, code, codes) in causes {
        assert!(codes.iter().all(|other| *other == code), "{cause}: {code}, not {codes:?}");
    }
}

#[test]
fn wrong_words_are_2_and_name_the_nearest() {
    let daemon = Daemon::start();
    for (line, told) in [
        ("dvv show", "error: Object \"dvv\" not found\n  try: did you mean dev?"),
        ("dev vstat show x", "error: Command \"vstat\" not found\n  try: did you mean vstats?"),
        ("dev vstats", "error: a command is missing\n  try: one of: show"),
        ("config", "error: a command is missing\n  try: one of: check, dump"),
        ("dev add name", "error: String parameter expected\n  try: name NAME"),
        (
            "dev add vm0 mgmtdev sim/net",
            "error: String parameter expected\n  try: each keyword has its value: name NAME mgmtdev MGMTDEV",
        ),
        ("dev add name a mgmtdev sim/net mtu", "error: number expected"),
        ("dev add name a", "error: management device handle not set.\n  try: ringway mgmtdev show"),
        ("dev add mgmtdev sim/net", "error: device name is not set."),
        ("dev add name a mgmtdev sim/net mtu 67", "error: mtu 67 is not a whole number from 68 to 9000"),
        (
            "dev add name a mgmtdev sim/net mtu 99999",
            "error: mtu `99999` is not a whole number from 68 to 9000",
        ),
        ("dev add name a mgmtdev sim/net max_vqp 0", "error: At least one pair of VQs is required"),
        (
            "dev add name a mgmtdev sim/net max_vqp 17",
            "error: max_vqp 17 needs 34 queues; sim/net supports 32",
        ),
        ("dev add name a mgmtdev sim/net mac 1", "error: `1` is not a MAC address\n  try: six pairs"),
        ("dev add name a mgmtdev a/b/c", "error: Wrong vdpa mgmtdev identification string format"),
        (
            "dev add name a mgmtdev sim/net mtu 1500 device_features MAC",
            "error: Missing features 0x8 for provided attributes",
        ),
        ("dev add name a mgmtdev sim/net device_features CSUM", "error: sim/net does not offer CSUM"),
        (
            "dev add name a mgmtdev sim/net mtv 1500",
            "error: sim/net has no attribute `mtv`\n  try: did you mean mtu?",
        ),
        (
            "dev add name a mgmtdev sim/net swab on",
            "error: sim/net has no attribute `swab`\n  try: did you mean swap?",
        ),
        ("dev add name a mgmtdev sim/net swap maybe", "error: "),
        (
            "dev add name a mgmtdev sim/net mode peer",
            "error: mode `peer`\n  try: mode server, or mode client",
        ),
        ("dev add name a mgmtdev sim/net mode client owner root", "error: owner and group are of a socket"),
        ("dev set name a", "error: "),
        ("dev show --nonsense", "error: "),
        ("completion tcsh", "error: "),
        ("dev vstats show a qidx", "error: number expected"),
    ] {
        let done = daemon.run(line);
        // `dev set name a` names a device that there is not, before it looks at what to set.
        let code = if line == "dev set name a" { 3 } else { 2 };
        assert!(done.code == code && done.err.starts_with(told), "{line}: {done:?}");
        assert_eq!(done.out, "", "{line}");
    }
    assert_eq!(daemon.run("-j dev show").good(), "{\"dev\":{}}\n");
}

#[test]
fn what_is_not_there_is_3() {
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    for (line, told) in [
        ("dev del vm1", "error: there is no device `vm1`\n  try: did you mean vm0?"),
        ("dev show zzz", "error: there is no device `zzz`\n  try: ringway dev show"),
        ("dev config show zzz", "error: there is no device `zzz`"),
        ("dev vstats show zzz", "error: there is no device `zzz`"),
        ("dev vstats show vm0 qidx 9", "error: vm0 has no queue 9"),
        ("dev set name zzz mac 52:54:00:00:00:01", "error: there is no device `zzz`"),
        (
            "mgmtdev show sim/nit",
            "error: there is no management device `sim/nit`\n  try: did you mean sim/net?",
        ),
        (
            "dev add name a mgmtdev sim/nit",
            "error: Fail to find the specified management device: there is no `sim/nit`",
        ),
        ("dev add name a mgmtdev sim/net owner no-such-user", "error: there is no user `no-such-user`"),
        ("dev add name a mgmtdev sim/net core 4095", "error: no worker runs on core 4095"),
        ("config check /nonexistent.toml", "error: cannot read /nonexistent.toml: No such file"),
    ] {
        let done = daemon.run(line);
        assert!(done.code == 3 && done.err.starts_with(told), "{line}: {done:?}");
    }
}

#[test]
fn what_is_there_or_held_is_4_and_the_holder_named() {
    let daemon = Daemon::start();
    let live = daemon.dir.join("live.sock");
    let _listener = UnixListener::bind(&live).unwrap();
    let file = daemon.dir.join("file");
    std::fs::write(&file, "precious").unwrap();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let error = daemon.run("dev add name vm0 mgmtdev sim/net").bad(4);
    assert!(error.starts_with("error: device vm0 is there already\n  try: another name"), "{error}");
    let error = daemon.run(&format!("dev add name a mgmtdev sim/net socket {}", live.display())).bad(4);
    assert!(error.contains("it is in use\n  held by: "), "{error}");
    assert!(error.contains(&format!("(pid {}, uid ", std::process::id())), "{error}");
    let error = daemon.run(&format!("dev add name a mgmtdev sim/net socket {}", file.display())).bad(4);
    assert!(error.contains("is not a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    let taken = daemon.socket("vm0");
    let error = daemon.run(&format!("dev add name a mgmtdev sim/net socket {}", taken.display())).bad(4);
    assert!(error.contains("held by: device vm0"), "{error}");
}

#[test]
fn closed_socket_is_5() {
    let daemon = Daemon::start();
    let mut command;
    if rustix::process::geteuid().is_root() {
        // Root may open anything: somebody else asks, with a copy of the program in a place that all may reach.
        use std::os::unix::process::CommandExt as _;
        let copy = daemon.dir.join("ringway");
        // By a process of its own: what a test beside this one starts just then would have it open for writing, too, so that it could
        // not be run.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_ringway")).arg(&copy).status().unwrap();
        assert!(copied.success(), "{copied}");
        std::fs::set_permissions(&daemon.dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        command = Command::new(copy);
        command.uid(65534).gid(65534);
    } else {
        std::fs::set_permissions(daemon.ctl(), std::fs::Permissions::from_mode(0o000)).unwrap();
        command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    }
    command.arg("--ctl").arg(daemon.ctl()).args(["dev", "show"]);
    let error = finish(command).bad(5);
    assert!(error.contains("Permission denied\n  held by: uid "), "{error}");
}

#[test]
fn no_daemon_is_6() {
    let dir = tempfile::tempdir().unwrap();
    let ctl = dir.path().join("ctl.sock");
    let error = ringway(&ctl, "dev show").bad(6);
    assert!(
        error.starts_with(&format!("error: ringwayd is not reachable at {}: No such file", ctl.display())),
        "{error}"
    );
    assert!(error.contains("  try: ringwayd --ctl"), "{error}");
    drop(UnixListener::bind(&ctl).unwrap());
    assert!(ringway(&ctl, "dev show").bad(6).contains("Connection refused"));
    // One that hangs up without an answer.
    std::fs::remove_file(&ctl).unwrap();
    let listener = UnixListener::bind(&ctl).unwrap();
    let closer = std::thread::spawn(move || drop(listener.accept().unwrap()));
    ringway(&ctl, "dev show").bad(6);
    closer.join().unwrap();
}

#[test]
fn daemon_that_does_not_answer_is_7_and_nonsense_is_1() {
    let dir = tempfile::tempdir().unwrap();
    let ctl = dir.path().join("ctl.sock");
    let listener = UnixListener::bind(&ctl).unwrap();
    let error = ringway(&ctl, "--timeout 1 dev show").bad(7);
    assert!(error.contains("did not answer within 1 s"), "{error}");
    let liar = std::thread::spawn(move || {
        // The first connection is that of the command above.
        drop(listener.accept().unwrap());
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":[1]}\n").unwrap();
        stream
    });
    assert!(ringway(&ctl, "dev show").bad(1).contains("not understood"));
    drop(liar.join().unwrap());
}

#[test]
fn hostile_names_are_refused_and_leave_nothing() {
    let daemon = Daemon::start();
    let long = "x".repeat(65);
    let longer = "y".repeat(100_000);
    for name in [
        "../x",
        "..",
        ".",
        "a/b",
        "/etc/passwd",
        "-rf",
        ".hidden",
        "naïve",
        "日本",
        "a\u{1b}[31m",
        &long,
        &longer,
    ] {
        let mut wire = daemon.wire();
        let answer = wire.call("dev.add", serde_json::json!({ "name": name, "mgmtdev": "sim/net" }));
        assert_eq!(answer["error"]["data"]["kind"], "usage", "{name}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.len() < 400 && !message.contains('\u{1b}'), "{message}");
        for method in ["dev.del", "dev.show"] {
            let answer = wire.call(method, serde_json::json!({ "name": name }));
            assert_eq!(answer["error"]["data"]["kind"], "not_found", "{name}: {answer}");
        }
    }
    let deep = format!("/{}", "d/".repeat(60));
    let error = daemon.run(&format!("dev add name a mgmtdev sim/net socket {deep}x")).bad(2);
    assert!(error.contains("a Unix socket's address holds 107"), "{error}");
    assert_eq!(std::fs::read_dir(daemon.dir.join("dev")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(daemon.dir.join("positions")).unwrap().count(), 0);
    assert!(!daemon.log().contains('\u{1b}'));
}
