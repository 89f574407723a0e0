//! `ringway top` and `interval`: rates that are those of the counters, over a daemon's death, by lines and on a terminal.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringway_guest::{Guest, GuestOptions, load};
use serde_json::Value;

use crate::support::{Daemon, finish, wait_for};

/// A guest that sends all the time.
struct Busy {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Busy {
    fn guest(daemon: &Daemon, name: &str) -> Busy {
        let mut guest = Guest::connect(&daemon.socket(name), GuestOptions::default()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) && guest.turn(16).is_ok() {
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Busy { stop, thread: Some(thread) }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// `ringway -j top` that runs.
struct Lines {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Lines {
    fn of(daemon: &Daemon, words: &[&str]) -> Lines {
        let mut command = Command::new(daemon.programs.join("ringway"));
        command.env("RINGWAY_CTL", daemon.ctl()).args(["-j", "top"]).args(words);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Lines { child, out }
    }

    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn packets(daemon: &Daemon, name: &str, qidx: usize) -> u64 {
    let stats = daemon.run(&format!("-j dev vstats show {name}")).json();
    stats["vstats"][name]["queues"][qidx]["packets"].as_u64().unwrap()
}

#[test]
fn rates_of_all_looks_together_are_what_the_counters_grew_by() {
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let mut guest = Guest::connect(&daemon.socket("vm0"), GuestOptions::default()).unwrap();
    while guest.turn(16).unwrap() == 0 {}
    wait_for("nothing is under way", || {
        guest.turn(0).unwrap();
        let stats = guest.stats();
        stats.received == stats.sent
    });
    // A burst is shown to the guest before it is counted.
    wait_for("all to be counted", || packets(&daemon, "vm0", 1) == guest.stats().sent);
    let before = packets(&daemon, "vm0", 1);
    let mut lines = Lines::of(&daemon, &["interval", "0.2"]);
    let first = lines.next().unwrap();
    assert_eq!(first["dev"]["vm0"]["tx"]["packets_per_s"], 0.0, "{first}");
    let wanted = guest.stats().received + 20_000;
    while guest.stats().received < wanted {
        guest.turn(16).unwrap();
    }
    load::drain(&mut guest).unwrap();
    let (mut moved, mut busiest) = (0.0, 0.0f64);
    let begun = Instant::now();
    // Until a look in which nothing moved any more.
    loop {
        assert!(begun.elapsed() < crate::support::SOON);
        let line = lines.next().unwrap();
        let device = &line["dev"]["vm0"];
        let seconds = line["interval_ms"].as_f64().unwrap() / 1000.0;
        moved += device["tx"]["packets_per_s"].as_f64().unwrap() * seconds;
        assert_eq!(device["queues"][1]["packets_per_s"], device["tx"]["packets_per_s"]);
        assert_eq!((&device["state"], &device["faults"]), (&Value::from("connected"), &Value::from(0)));
        for core in line["core"].as_object().unwrap().values() {
            let share = |of: &str| core[of].as_f64().unwrap();
            let all = share("busy_pct") + share("idle_pct") + share("sleep_pct");
            assert!((99.9..100.1).contains(&all), "{core}");
            busiest = busiest.max(share("busy_pct"));
        }
        if moved > 0.0
            && device["tx"]["packets_per_s"] == 0.0
            && packets(&daemon, "vm0", 1) == guest.stats().sent
        {
            break;
        }
    }
    let looks = daemon.run("-j top interval 0.1 -n 3").good();
    assert_eq!(looks.lines().count(), 3);
    let grown = packets(&daemon, "vm0", 1) - before;
    // Each look's time is told in whole milliseconds.
    assert!((moved - grown as f64).abs() < grown as f64 * 0.02, "{moved} of {grown}");
    assert!(grown >= 20_000 && busiest > 0.0, "{grown} {busiest}");
}

#[test]
fn top_goes_on_over_the_death_of_a_daemon_and_with_the_next() {
    let mut daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let mut lines = Lines::of(&daemon, &["interval", "0.1"]);
    let first = lines.next().unwrap();
    assert!(first["dev"]["vm0"].is_object(), "{first}");
    daemon.kill();
    let mut line = first.clone();
    while line["away"].is_null() {
        line = lines.next().unwrap();
    }
    assert!(line["away"].as_str().unwrap().contains("ringwayd"), "{line}");
    daemon.start_again(&[]);
    while line["away"].is_string() {
        line = lines.next().unwrap();
    }
    assert!(line["dev"]["vm0"].is_object(), "{line}");
    assert_ne!(line["instance"], first["instance"]);
    // Nothing that another daemon counted is taken for a rate.
    assert_eq!(line["dev"]["vm0"]["rx"]["packets_per_s"], 0.0);
}

#[test]
fn top_without_a_daemon_ends_after_its_looks_and_says_why() {
    let daemon = Daemon::start();
    let ctl = daemon.ctl();
    drop(daemon);
    let done = crate::support::ringway(&ctl, "-j top interval 0.1 -n 2");
    assert_eq!(done.out.matches("\"away\"").count(), 2, "{done:?}");
    assert!(done.bad(6).contains("ringwayd is not reachable"));
    let done = crate::support::ringway(&ctl, "top");
    assert!(done.bad(2).contains("ringway -j top"));
}

#[test]
fn core_show_and_vstats_show_tell_rates_at_an_interval() {
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let _busy = Busy::guest(&daemon, "vm0");
    wait_for("packets", || packets(&daemon, "vm0", 0) > 0);
    let text = daemon.run("core show interval 0.3 count 2").good();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("core  busy%  idle% sleep% packets/s"), "{text}");
    let cores = daemon.run("-j core show").json()["core"].as_object().unwrap().len();
    assert_eq!(lines.len(), 1 + 2 * cores, "{text}");
    // Guest and worker may both be off their cores for as long as one look takes.
    wait_for("a look in which packets were moved", || {
        let text = daemon.run("-j core show interval 0.3 count 2").good();
        let looks: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(looks.len(), 2);
        let busy = looks[1]["core"].as_object().unwrap().values();
        let busy = busy.max_by_key(|core| core["packets_per_s"].as_f64().unwrap() as u64).unwrap();
        let number = |of: &str| busy[of].as_f64().unwrap();
        if number("packets_per_s") == 0.0 {
            return false;
        }
        assert!(number("cycles_per_packet") > 0.0, "{busy}");
        assert!(number("burst") >= 1.0 && number("turns_per_s") > 0.0, "{busy}");
        true
    });

    let text = daemon.run("dev vstats show vm0 qidx 1 interval 0.3 count 2").good();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("qidx type    packets/s    bits/s"), "{text}");
    assert!(lines.len() == 3 && lines[1].starts_with("   1 tx "), "{text}");
    wait_for("a look in which both queues moved some", || {
        let text = daemon.run("-j dev vstats show vm0 interval 0.3 count 1").good();
        let look: Value = serde_json::from_str(&text).unwrap();
        let queues = look["vstats"]["vm0"]["queues"].as_array().unwrap();
        queues.iter().all(|queue| queue["packets_per_s"].as_f64().unwrap() > 0.0)
    });
    daemon.run("core show interval 0").bad(2);
    daemon.run("core show intervall 1").bad(2);
    daemon.run("core show count 1").bad(2);
}

/// A terminal that a test reads.
struct Terminal<'a> {
    socket: std::path::PathBuf,
    daemon: &'a Path,
}

impl Terminal<'_> {
    fn tmux(&self, args: &[&str]) -> String {
        let mut tmux = Command::new("tmux");
        tmux.env_remove("TMUX").arg("-S").arg(&self.socket).arg("-f").arg("/dev/null").args(args);
        finish(tmux).out
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-t", "top"])
    }

    fn press(&self, keys: &str) {
        self.tmux(&["send-keys", "-t", "top", keys]);
    }

    #[track_caller]
    fn shows(&self, what: &str) -> String {
        let mut screen = String::new();
        let until = Instant::now() + crate::support::SOON;
        while !screen.contains(what) {
            assert!(Instant::now() < until, "`{what}` is not shown:\n{screen}");
            std::thread::sleep(Duration::from_millis(20));
            screen = self.screen();
        }
        screen
    }

    fn start(&self, environment: &str) {
        let program = self.daemon.display();
        let line = format!("{environment} exec {program} top interval 0.2");
        self.tmux(&["new-session", "-d", "-s", "top", "-x", "80", "-y", "24", &line]);
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

/// A number as the screen has it.
fn number(text: &str) -> f64 {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        _ => 1.0,
    };
    digits.parse::<f64>().unwrap() * unit
}

#[test]
#[ignore = "needs a terminal that can be read (tmux): run deploy/test"]
fn top_on_a_terminal_shows_what_happens_and_follows_keys_sizes_and_daemons() {
    let mut daemon = Daemon::start();
    for name in ["vm0", "vm1", "idle"] {
        daemon.run(&format!("dev add name {name} mgmtdev sim/net")).good();
    }
    let busy: Vec<Busy> = ["vm0", "vm1"].iter().map(|name| Busy::guest(&daemon, name)).collect();
    wait_for("packets", || packets(&daemon, "vm1", 0) > 0);
    let program = daemon.programs.join("ringway");
    let terminal = Terminal { socket: daemon.dir.join("tmux"), daemon: &program };
    let environment = format!("RINGWAY_CTL={} NO_COLOR=1 TERM=screen", daemon.ctl().display());
    terminal.start(&environment);
    terminal.shows("vm0");
    // Drawn from its first line to its last.
    let screen = terminal.shows("q end");
    let lines: Vec<&str> = screen.lines().collect();
    assert!(lines[0].starts_with("ringway top: devices, ringwayd up "), "{screen}");
    assert!(lines[1].starts_with("2/3 up; cores "), "{screen}");
    assert!(lines[23].ends_with("q end"), "every line is there:\n{screen}");
    // The screen that operators are shown beforehand has these columns.
    let page = include_str!("../../../docs/operating.md");
    let columns = page.lines().find(|line| line.starts_with("DEVICE ")).unwrap();
    assert!(lines.iter().any(|line| line.split_whitespace().eq(columns.split_whitespace())), "{screen}");
    // What it shows is what the counters say, at the same time.
    wait_for("numbers of the screen are those of vstats", || {
        let (before, at) = (packets(&daemon, "vm0", 0), Instant::now());
        std::thread::sleep(Duration::from_millis(300));
        let rate = (packets(&daemon, "vm0", 0) - before) as f64 / at.elapsed().as_secs_f64();
        let screen = terminal.screen();
        let row = screen.lines().find(|line| line.starts_with("vm0 ")).unwrap();
        let shown = number(row.split_whitespace().nth(3).unwrap());
        (0.8..1.25).contains(&(shown / rate))
    });
    terminal.press("u");
    assert!(terminal.shows("top: queues").contains("P99us"));
    terminal.press("x");
    terminal.shows("top: drops and faults");
    terminal.press("c");
    terminal.shows("core ");
    terminal.press("d");
    terminal.press("/");
    terminal.shows("filter: _");
    terminal.tmux(&["send-keys", "-t", "top", "-l", "idle"]);
    terminal.press("Enter");
    terminal.shows("filter `idle`");
    wait_for("the one that is wanted, and no other", || {
        let screen = terminal.screen();
        screen.contains("idle ") && !screen.contains("vm0")
    });
    terminal.press("Escape");
    terminal.shows("vm0");
    terminal.press("Space");
    terminal.shows("PAUSED");
    // What was drawn when it was told so may come a moment later.
    let mut paused = terminal.screen();
    wait_for("it to stand still", || {
        std::thread::sleep(Duration::from_millis(500));
        let now = terminal.screen();
        std::mem::replace(&mut paused, now.clone()) == now
    });
    terminal.press("Space");
    wait_for("it goes on", || terminal.screen() != paused);
    terminal.tmux(&["resize-window", "-t", "top", "-x", "120", "-y", "40"]);
    wait_for("the keys are on the last of 40 lines", || {
        terminal.screen().lines().nth(39).is_some_and(|line| line.ends_with("q end"))
    });
    let coloured = terminal.tmux(&["capture-pane", "-p", "-e", "-t", "top"]);
    assert!(coloured.contains(";7m") && !coloured.contains("\u{1b}[31m"), "{coloured:?}");
    drop(busy);
    daemon.kill();
    terminal.shows("not reachable");
    daemon.start_again(&[]);
    terminal.shows("0/3 up; ");
    wait_for("nothing is to be known", || !terminal.screen().contains("ringwayd is"));
    terminal.press("q");
    wait_for("it has ended, and its terminal with it", || terminal.screen().is_empty());
}
