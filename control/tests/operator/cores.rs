//! Cores are the host's: who polls one has it alone among those who poll, and daemons see each other there.

use crate::support::{Daemon, finish, ringwayd};

/// Not the default one, which other tests poll.
const CORE: &str = "0";

#[test]
fn core_that_a_daemon_polls_is_refused_to_another_that_would_and_shared_with_one_that_sleeps() {
    let poll = ["--cores", CORE, "--idle", "poll"];
    let mut first = Daemon::start_with(&poll);
    let named = format!("ringwayd (pid {})", first.pid());
    let temp = tempfile::tempdir_in("/tmp").unwrap();
    let dir = temp.path();
    let refused = |words: &[&str]| {
        let mut second = ringwayd();
        second.args(poll).args(words);
        let told = finish(second).bad(4);
        assert!(told.starts_with("error: core 0 is claimed: another process polls it"), "{told}");
        assert!(told.contains(&format!("held by: {named}")) && told.contains("try: --cores"), "{told}");
    };
    let (ctl, state) = (dir.join("ctl.sock"), dir.join("state"));
    refused(&["--ctl", ctl.to_str().unwrap(), "--state-dir", state.to_str().unwrap()]);
    // A back-end of one device as well, and a file that asks for it.
    refused(&["--socket-path", dir.join("net.sock").to_str().unwrap()]);
    let file = dir.join("r.toml");
    std::fs::write(&file, "[daemon]\ncores = [0]\nidle = \"poll\"\n").unwrap();
    let mut by_file = ringwayd();
    by_file.arg("--ctl").arg(&ctl).arg("--state-dir").arg(&state).arg("--config").arg(&file);
    assert!(finish(by_file).bad(4).contains(&named));

    // Two that sleep share it, with each other and with the one that polls; each sees the others.
    let adaptive = ["--cores", CORE];
    let (second, third) = (Daemon::start_with(&adaptive), Daemon::start_with(&adaptive));
    let shown = second.run("core show").good();
    assert!(shown.contains(&format!("  shared with {named}, which polls\n")), "{shown}");
    assert!(shown.contains(&format!("  shared with ringwayd (pid {}), adaptive\n", third.pid())), "{shown}");
    assert!(!shown.contains(&format!("(pid {})", second.pid())), "{shown}");
    let others = first.run("-j core show").json()["core"][CORE]["others"].clone();
    for other in [&second, &third] {
        let is_it =
            |text: &serde_json::Value| text.as_str().unwrap().contains(&format!("(pid {})", other.pid()));
        assert!(others.as_array().unwrap().iter().any(is_it), "{others}");
    }

    // What died holds nothing.
    first.kill();
    first.start_again(&poll);
    drop(second);
    assert!(!third.run("core show").good().contains(&named));
}
