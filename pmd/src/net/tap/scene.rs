//! A network namespace for a test, which goes with it.

use std::process::Command;

/// Runs a test in a network namespace of its own. Not without the rights for it, which `deploy/test` has.
pub(super) fn in_own_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            #[expect(deprecated, reason = "of a thread that does nothing else and ends here")]
            let unshared = rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET);
            if unshared.is_err() || !std::path::Path::new("/dev/net/tun").exists() {
                println!("skipped: needs CAP_SYS_ADMIN and /dev/net/tun");
                return;
            }
            run("ip link set lo up");
            test();
        });
        thread.join().unwrap();
    });
}

/// Runs a command of the shell, which must succeed.
pub(super) fn run(command: &str) {
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success(), "{command}");
}
