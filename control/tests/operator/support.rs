//! A daemon of a test's own, and the command that talks to it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::pace::Pace;

/// Nothing is measured by it: it ends a test that waits for what does not happen, and is far longer than a busy machine needs.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Waits until `what` is true.
#[track_caller]
pub(crate) fn wait_for(why: &str, mut what: impl FnMut() -> bool) {
    let until = Instant::now() + SOON;
    while !what() {
        assert!(Instant::now() < until, "{why}: not within {SOON:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A daemon that polls has its core alone among those who poll, and tests run side by side: held by each that starts one.
pub(crate) fn polling() -> MutexGuard<'static, ()> {
    static POLLING: Mutex<()> = Mutex::new(());
    POLLING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts a file, a link or a socket that lies elsewhere in the place of what is there, which is gone then: nobody finds the place free
/// in between.
pub(crate) fn put_in_place(other: &Path, place: &Path) {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, other, CWD, place, RenameFlags::EXCHANGE).unwrap();
    match std::fs::symlink_metadata(other).unwrap().is_dir() {
        true => std::fs::remove_dir_all(other).unwrap(),
        false => std::fs::remove_file(other).unwrap(),
    }
}

/// Removes a directory in which a daemon may make anew meanwhile what was removed of it.
pub(crate) fn remove_directory(dir: &Path) {
    use std::io::ErrorKind::{DirectoryNotEmpty, NotFound};
    wait_for("it to be removed", || match std::fs::remove_dir_all(dir) {
        Ok(()) => true,
        Err(error) if error.kind() == NotFound => true,
        Err(error) if error.kind() == DirectoryNotEmpty => false,
        Err(error) => panic!("{}: {error}", dir.display()),
    });
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    /// The output of a command that succeeded.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }
    /// The same as JSON.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let out = self.good();
        assert_eq!(out.matches('\n').count(), 1, "one line: {out}");
        serde_json::from_str(&out).unwrap()
    }
    /// The error of a command that failed with this exit code.
    #[track_caller]
    pub(crate) fn bad(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        self.err
    }
}

/// Runs a program to its end.
pub(crate) fn finish(mut command: Command) -> Done {
    let output = command.stdin(Stdio::null()).output().unwrap();
    Done {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// `ringway` with these words, split at blanks.
pub(crate) fn ringway(ctl: &Path, line: &str) -> Done {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    command.env("RINGWAY_CTL", ctl).args(line.split_whitespace());
    finish(command)
}

/// `ringwayd`, not yet started, in a clean environment.
pub(crate) fn ringwayd() -> Command {
    in_a_clean_environment(Path::new(env!("CARGO_BIN_EXE_ringwayd")))
}

/// Where the programs of this build are.
fn programs() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_ringwayd")).parent().unwrap().to_owned()
}

fn in_a_clean_environment(program: &Path) -> Command {
    let mut command = Command::new(program);
    for variable in
        ["RINGWAY_CTL", "RINGWAY_LOG", "NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "JOURNAL_STREAM"]
    {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// A daemon in a directory of its own. Killed when dropped.
pub(crate) struct Daemon {
    pub(crate) dir: PathBuf,
    /// Where `ringwayd` and `ringway` are.
    pub(crate) programs: PathBuf,
    child: Option<Child>,
    started_in: Duration,
    /// Kept until the end, unless it belongs to an earlier start.
    _temp: Option<tempfile::TempDir>,
}

impl Daemon {
    pub(crate) fn start() -> Daemon {
        Daemon::start_with(&[])
    }

    pub(crate) fn start_with(args: &[&str]) -> Daemon {
        // A short path, whatever TMPDIR says: a socket's address holds 107 bytes.
        let temp = tempfile::tempdir_in("/tmp").unwrap();
        let mut daemon = Daemon::in_folder(temp);
        daemon.start_again(args);
        daemon
    }

    fn in_folder(temp: tempfile::TempDir) -> Daemon {
        let dir = temp.path().to_owned();
        Daemon { dir, programs: programs(), child: None, started_in: Duration::ZERO, _temp: Some(temp) }
    }

    /// Starts this command, which is or becomes `ringwayd`, in a directory of its own.
    pub(crate) fn start_as(command: Command, stderr: impl Into<Stdio>) -> Daemon {
        let temp = tempfile::tempdir_in("/tmp").unwrap();
        let mut daemon = Daemon::in_folder(temp);
        daemon.spawn(command, &[], stderr.into());
        daemon
    }

    /// Starts the daemon in its directory and waits until it answers.
    pub(crate) fn start_again(&mut self, args: &[&str]) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log")).unwrap();
        let command = in_a_clean_environment(&self.programs.join("ringwayd"));
        self.spawn(command, args, log.into());
    }

    fn spawn(&mut self, mut command: Command, args: &[&str], stderr: Stdio) {
        assert!(self.child.is_none());
        command.arg("--ctl").arg(self.ctl());
        if !args.contains(&"--state-dir") {
            command.arg("--state-dir").arg(self.dir.join("state"));
        }
        let begun = Instant::now();
        let mut child = command.args(args).stderr(stderr).spawn().unwrap();
        wait_for("the daemon answers", || {
            assert!(child.try_wait().unwrap().is_none(), "{}", self.log());
            UnixStream::connect(self.ctl()).is_ok()
        });
        self.child = Some(child);
        self.started_in = begun.elapsed();
    }

    /// How long a program takes here to start and to answer.
    pub(crate) fn pace(&self) -> Pace {
        Pace(self.started_in)
    }

    pub(crate) fn ctl(&self) -> PathBuf {
        self.dir.join("ctl.sock")
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.dir.join("dev").join(format!("{name}.sock"))
    }

    /// What is in its log by now, in whole lines: the last one may be half written.
    pub(crate) fn log(&self) -> String {
        whole_lines(&self.dir.join("log"))
    }

    /// What it logged, once that has `text` in it: the log is written by a thread that nobody waits for.
    pub(crate) fn logged(&self, text: &str) -> String {
        let mut log = String::new();
        wait_for(text, || {
            log = self.log();
            log.contains(text)
        });
        log
    }

    /// All that it has logged until now, where `info` is logged: lines are written in their order.
    pub(crate) fn log_until_now(&self) -> String {
        static MARKS: AtomicU32 = AtomicU32::new(0);
        let mark = format!("mark-{}-of-the-log", MARKS.fetch_add(1, Ordering::Relaxed));
        self.run(&format!("dev del {mark}")).bad(3);
        self.logged(&mark)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Runs `ringway` against this daemon.
    pub(crate) fn run(&self, line: &str) -> Done {
        let mut command = Command::new(self.programs.join("ringway"));
        command.env("RINGWAY_CTL", self.ctl()).args(line.split_whitespace());
        finish(command)
    }

    /// One device as `dev show -j` has it.
    pub(crate) fn device(&self, name: &str) -> Value {
        self.run(&format!("-j dev show {name}")).json()["dev"][name].clone()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Kills it from another thread.
    pub(crate) fn killer(&self) -> impl FnOnce() + Send + use<> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        move || rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap()
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; its exit code, and how long it took.
    pub(crate) fn terminate(&mut self) -> (i32, Duration) {
        let before = Instant::now();
        self.signal(rustix::process::Signal::TERM);
        let status = self.child.take().unwrap().wait().unwrap();
        (status.code().unwrap_or(-1), before.elapsed())
    }

    /// Processor time of its control thread, in ticks of 10 ms.
    pub(crate) fn control_ticks(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let is_control = |task: &PathBuf| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "control")
        };
        let task = tasks.map(|task| task.unwrap().path()).find(is_control).unwrap();
        let stat = std::fs::read_to_string(task.join("stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Memory that it has touched, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Open descriptors of the daemon.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// A raw connection to the operator socket.
    pub(crate) fn wire(&self) -> Wire {
        Wire::to(&self.ctl())
    }
}

/// The lines of a file that are whole; none if it is not there.
pub(crate) fn whole_lines(path: &Path) -> String {
    let mut text = std::fs::read(path).unwrap_or_default();
    text.truncate(text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
    String::from_utf8(text).unwrap()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A raw connection to the operator socket.
pub(crate) struct Wire(pub(crate) BufReader<UnixStream>);

impl Wire {
    pub(crate) fn to(path: &Path) -> Wire {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        Wire(BufReader::new(stream))
    }
    pub(crate) fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }
    pub(crate) fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the daemon hung up");
        serde_json::from_str(&line).unwrap()
    }
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        self.send(&format!("{request}\n"));
        self.receive()
    }
}
