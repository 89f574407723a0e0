//! The programs beside their protocol: service manager, QEMU's conventions, manual.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};

use ringway_vhost_user::frontend::Frontend;
use serde_json::json;

use crate::support::{Daemon, SOON, finish, ringway, ringwayd, wait_for};

/// A child that is killed when dropped.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn service_manager_is_told_when_it_serves_and_when_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let mut command = ringwayd();
    command.env("NOTIFY_SOCKET", &path).arg("--ctl").arg(dir.path().join("ctl.sock"));
    command.arg("--state-dir").arg(dir.path().join("state")).stderr(Stdio::null());
    let mut child = Running(command.spawn().unwrap());
    let mut told = [0u8; 64];
    let n = manager.recv(&mut told).unwrap();
    assert_eq!(&told[..n], b"READY=1\nSTATUS=0 devices made");
    // What is shown of it follows what there is.
    let ctl = dir.path().join("ctl.sock");
    for (line, shown) in [
        ("dev add name vm0 mgmtdev sim/net", "STATUS=1 device made"),
        ("dev add name vm1 mgmtdev sim/net", "STATUS=2 devices made"),
        ("dev del vm0", "STATUS=1 device made"),
    ] {
        ringway(&ctl, line).good();
        let n = manager.recv(&mut told).unwrap();
        assert_eq!(String::from_utf8_lossy(&told[..n]), shown, "{line}");
    }
    let pid = rustix::process::Pid::from_child(&child.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let n = manager.recv(&mut told).unwrap();
    assert_eq!(&told[..n], b"STOPPING=1");
    assert!(child.0.wait().unwrap().success());
}

#[test]
fn ready_names_what_could_not_be_made_and_the_watchdog_is_fed_by_the_control_thread() {
    let dir = tempfile::tempdir().unwrap();
    let (path, config) = (dir.path().join("notify"), dir.path().join("ringwayd.toml"));
    // The second one's socket is where a directory stands.
    std::fs::create_dir(dir.path().join("b.sock")).unwrap();
    let socket = dir.path().join("b.sock");
    let text = format!(
        "[[device]]\nname = \"a\"\nmgmtdev = \"sim/net\"\n[[device]]\nname = \"b\"\nmgmtdev = \"sim/net\"\nsocket = \"{}\"\n",
        socket.display()
    );
    std::fs::write(&config, text).unwrap();
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let ctl = dir.path().join("ctl.sock");
    let mut command = ringwayd();
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000").arg("--ctl").arg(&ctl);
    command
        .arg("--config")
        .arg(&config)
        .arg("--state-dir")
        .arg(dir.path().join("state"))
        .stderr(Stdio::null());
    let child = Running(command.spawn().unwrap());
    let mut told = [0u8; 128];
    let mut next = || {
        let n = manager.recv(&mut told).unwrap();
        String::from_utf8_lossy(&told[..n]).into_owned()
    };
    let mut beats = 0;
    loop {
        match next().as_str() {
            "WATCHDOG=1" => beats += 1,
            "READY=1\nSTATUS=1 device made; not made: b" => break,
            other => panic!("{other}"),
        }
        assert!(beats < 1000);
    }
    for _ in 0..3 {
        assert_eq!(next(), "WATCHDOG=1");
    }
    let status = ringway(&ctl, "status");
    assert!(status.code == 8 && status.out.contains("  b: not made: "), "{status:?}");
    assert!(status.err.starts_with("error: not made: b"), "{status:?}");
    drop(child);
}

#[test]
fn socket_that_the_service_manager_made_is_the_operators_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let ctl = dir.path().join("ctl.sock");
    let listener = UnixListener::bind(&ctl).unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" --state-dir \"$1\""]);
    command.arg(env!("CARGO_BIN_EXE_ringwayd")).arg(dir.path().join("state")).env_remove("RINGWAY_CTL");
    let mut child = Running(
        command
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    // Asked before it listens, which is what the socket is for.
    ringway(&ctl, "status").good();
    assert!(ringway(&ctl, "wait").code == 0 && dir.path().join("dev").is_dir());
    let pid = rustix::process::Pid::from_child(&child.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.0.wait().unwrap().success());
    assert!(ctl.exists(), "it is the service manager's");
}

#[test]
fn capabilities_are_those_of_qemus_convention() {
    let mut command = ringwayd();
    command.arg("--print-capabilities").stdout(Stdio::piped());
    let capabilities: serde_json::Value = serde_json::from_str(&finish(command).good()).unwrap();
    assert_eq!(capabilities["type"], "net");
    assert!(capabilities["features"].is_array());
}

#[test]
fn socket_path_serves_one_device_and_is_gone_after_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one.sock");
    let mut command = ringwayd();
    command.arg("--socket-path").arg(&path).stderr(Stdio::null());
    let mut child = Running(command.spawn().unwrap());
    let mut frontend = Frontend::connect(&path, SOON).unwrap();
    frontend.handshake().unwrap();
    drop(frontend);
    // Who comes before the end of the one before it was noticed is turned away after a moment.
    wait_for("the next to be served", || Frontend::connect(&path, SOON).unwrap().handshake().is_ok());
    let pid = rustix::process::Pid::from_child(&child.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.0.wait().unwrap().success());
    assert!(!path.exists());
}

/// `ringwayd --fd 3` with `socket` as descriptor 3, by way of a shell, which passes standard input on.
fn with_fd(socket: impl Into<std::os::fd::OwnedFd>) -> Running {
    let socket: std::os::fd::OwnedFd = socket.into();
    assert!(socket.as_raw_fd() > 2);
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "exec 3<&0 </dev/null; exec \"$0\" --fd 3", env!("CARGO_BIN_EXE_ringwayd")]);
    Running(command.stdin(Stdio::from(socket)).stderr(Stdio::null()).spawn().unwrap())
}

#[test]
fn connected_descriptor_is_served_and_the_program_ends_with_it() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut child = with_fd(theirs);
    let mut frontend = Frontend::from_stream(ours);
    frontend.set_timeout(SOON);
    frontend.handshake().unwrap();
    drop(frontend);
    wait_for("the program ends", || child.0.try_wait().unwrap().is_some());
    assert!(child.0.wait().unwrap().success());
}

#[test]
fn listening_descriptor_is_served_to_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l.sock");
    let mut child = with_fd(UnixListener::bind(&path).unwrap());
    for _ in 0..2 {
        wait_for("the next to be served", || {
            let mut frontend = Frontend::connect(&path, SOON).unwrap();
            frontend.set_timeout(SOON);
            frontend.handshake().is_ok()
        });
    }
    assert!(child.0.try_wait().unwrap().is_none());
}

#[test]
fn descriptor_that_is_not_there_is_an_error() {
    let mut command = ringwayd();
    command.args(["--fd", "999"]);
    let error = finish(command).bad(1);
    assert!(error.starts_with("error: cannot use descriptor 999: Bad file descriptor"), "{error}");
    let mut command = ringwayd();
    command.args(["--fd", "3", "--socket-path", "/x"]);
    assert_eq!(finish(command).code, 2);
}

#[test]
fn manual_pages_are_written_and_formatted_without_complaint() {
    let dir = tempfile::tempdir().unwrap();
    ringway("/x".as_ref(), &format!("man {}", dir.path().display())).good();
    for page in ["ringway.8", "ringwayd.8", "ringway-reference.7"] {
        let path = dir.path().join(page);
        let text = std::fs::read_to_string(&path).unwrap();
        let section = if page.ends_with('8') { "\"EXIT STATUS\"" } else { "DROPS" };
        assert!(text.contains(".TH ") && text.contains(&format!(".SH {section}")), "{page}");
        // Where there is a formatter, it finds nothing wrong.
        let groff = Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z"]).arg(&path).output();
        if let Ok(output) = groff {
            assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{page}");
        }
    }
}

#[test]
fn output_to_a_reader_that_left_is_no_failure() {
    let daemon = Daemon::start();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    command.env("RINGWAY_CTL", daemon.ctl()).args(["mgmtdev", "show"]).stdout(writer);
    let output = command.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

/// `ringway demo` with these words, in a directory for temporary files of its own.
fn demo(words: &[&str], scratch: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    command.arg("demo").args(words).env("TMPDIR", scratch).stdin(Stdio::null());
    command
}

#[test]
fn demo_moves_packets_over_both_rings_and_prints_one_line() {
    let scratch = tempfile::tempdir().unwrap();
    for ring in ["split", "packed"] {
        let report = finish(demo(&["-j", "--seconds", "1", "--ring", ring], scratch.path())).json();
        assert_eq!((&report["ring"], &report["lost"]), (&json!(ring), &json!(0)), "{report}");
        assert!(report["packets"].as_u64() > Some(0) && report["mpps"].as_f64() > Some(0.0), "{report}");
        assert!(report["seconds"].as_f64() >= Some(1.0), "{report}");
        let memory = report["memory"].as_str().unwrap();
        assert!(["hugetlb-1G", "hugetlb-2M", "thp", "4k"].contains(&memory), "{report}");
        let latency = |quantile: &str| report["latency_ns"][quantile].as_u64().unwrap();
        assert!(0 < latency("p50") && latency("p50") <= latency("p99") && latency("p99") <= latency("p999"));
        assert_eq!(report.as_object().unwrap().len(), 7, "{report}");
    }
    let text = finish(demo(&["--seconds", "1"], scratch.path())).good();
    assert!(
        text.starts_with("worker on core ") && text.contains(" 0 lost\nlatency at full load: "),
        "{text}"
    );
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "nothing stays behind");
}

#[test]
fn interrupted_demo_tells_what_came_of_it_so_far_and_leaves_nothing_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let mut command = demo(&["--seconds", "600"], scratch.path());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    out.read_line(&mut text).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    out.read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    assert!(text.contains(" packets in ") && text.contains("latency at full load: "), "{text}");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "nothing stays behind");
}

#[test]
fn demo_whose_reader_left_ends_well() {
    let scratch = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = demo(&["--seconds", "1"], scratch.path());
    let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn wrong_options_of_the_daemon_have_the_shape_of_every_error() {
    for (words, told) in [
        (&["--nonsense"][..], "error: unexpected argument '--nonsense' found\n  try: "),
        (
            &["--idle", "lazy"],
            "error: invalid value 'lazy' for '--idle <POLICY>' [possible values: adaptive, poll]",
        ),
        (
            &["--log", "dbug"],
            "error: log `dbug`: `dbug` is not a level\n  try: error, warn, info, debug, trace",
        ),
    ] {
        let mut command = ringwayd();
        command.args(words);
        let error = finish(command).bad(2);
        assert!(error.starts_with(told), "{words:?}: {error}");
    }
    let mut command = ringwayd();
    command.arg("--help").stdout(Stdio::piped());
    assert!(finish(command).good().contains("--print-capabilities"));
}
