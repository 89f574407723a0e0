//! Daemons that die under traffic, and those that come after them: rings go on, whatever the moment.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ringway_guest::{Guest, GuestOptions};
use ringway_ring::queue::Format;

use crate::support::{Daemon, SOON};
use crate::taps::Namespace;

/// A guest and its device.
struct Vm {
    name: &'static str,
    guest: Guest,
}

impl Vm {
    fn boot(daemon: &Daemon, name: &'static str, format: Format, in_order: bool, give_up: Duration) -> Vm {
        daemon.run(&format!("dev add name {name} mgmtdev sim/net")).good();
        // What a death delivers twice has a buffer too, though the guest looks at none while others connect again.
        let window = Some(32);
        let options =
            GuestOptions { format, in_order, queue_size: 64, window, give_up, ..GuestOptions::default() };
        Vm { name, guest: Guest::connect(&daemon.socket(name), options).unwrap() }
    }

    fn reconnect(&mut self, daemon: &Daemon) {
        self.guest.reconnect(&daemon.socket(self.name)).unwrap();
    }

    fn counts(&self) -> String {
        let stats = self.guest.stats();
        format!(
            "sent {} transmitted {} received {} skipped {} stale {} corrupt {}",
            stats.sent, stats.transmitted, stats.received, stats.skipped, stats.stale, stats.corrupt
        )
    }

    /// Frames that came for the first time.
    fn unique(&self) -> u64 {
        let stats = self.guest.stats();
        stats.received - stats.stale
    }
}

/// One guest of each kind of ring.
fn boot(daemon: &Daemon, give_up: Duration) -> Vec<Vm> {
    [
        ("split", Format::Split, false),
        ("packed", Format::Packed, false),
        ("split-in-order", Format::Split, true),
        ("packed-in-order", Format::Packed, true),
    ]
    .map(|(name, format, in_order)| Vm::boot(daemon, name, format, in_order, give_up))
    .into()
}

fn turn(vms: &mut [Vm]) {
    for vm in vms {
        vm.guest.turn(32).unwrap();
    }
}

/// Traffic of all until each received `frames` more.
fn exchange(vms: &mut [Vm], frames: u64) {
    let begun = Instant::now();
    let wanted: Vec<u64> = vms.iter().map(|vm| vm.guest.stats().received + frames).collect();
    while vms.iter().zip(&wanted).any(|(vm, wanted)| vm.guest.stats().received < *wanted) {
        turn(vms);
        let stuck = || vms.iter().map(|vm| (vm.name, vm.counts())).collect::<Vec<_>>();
        assert!(begun.elapsed() < SOON, "{wanted:?} {:?}", stuck());
    }
}

/// Kills the daemon after so long, with traffic until it is dead; starts `next` in its place, and connects all to it.
fn kill_under_traffic(daemon: &mut Daemon, next: &Path, vms: &mut [Vm], after: Duration) {
    let killer = daemon.killer();
    std::thread::scope(|scope| {
        let killer = scope.spawn(move || {
            std::thread::sleep(after);
            killer();
        });
        while !killer.is_finished() {
            turn(vms);
        }
    });
    daemon.kill();
    daemon.programs = next.to_owned();
    daemon.start_again(&[]);
    vms.iter_mut().for_each(|vm| vm.reconnect(daemon));
}

/// Everything that was sent came back but so many, nothing was spoiled, and no more came twice than deaths explain. The
/// previous revision loses the burst that a death cut.
fn settle(daemon: &Daemon, vms: &mut [Vm], deaths: u64, lost: u64) {
    for vm in vms {
        let begun = Instant::now();
        while vm.unique() + lost < vm.guest.stats().sent {
            vm.guest.turn(0).unwrap();
            let stats = || daemon.run(&format!("dev vstats show {}", vm.name)).good();
            assert!(begun.elapsed() < SOON, "{}: {}\n{}", vm.name, vm.counts(), stats());
        }
        let stats = vm.guest.stats();
        println!("{}: {} frames, {} of them twice, {deaths} deaths", vm.name, stats.sent, stats.stale);
        assert!(stats.corrupt == 0 && stats.skipped <= lost, "{}: {}", vm.name, vm.counts());
        // What was delivered of the one burst that was not yet given back to its sender.
        assert!(stats.stale <= deaths * 32, "{}: {}", vm.name, vm.counts());
    }
}

#[test]
fn frames_come_back_whenever_the_daemon_is_killed() {
    const DEATHS: u64 = 24;
    let mut daemon = Daemon::start();
    let programs = daemon.programs.clone();
    let mut vms = boot(&daemon, SOON);
    for death in 0..DEATHS {
        // Another moment at each run.
        let after = (u64::from(std::process::id()) + death).wrapping_mul(7919) % 10_000;
        exchange(&mut vms, 200);
        kill_under_traffic(&mut daemon, &programs, &mut vms, Duration::from_micros(after));
    }
    exchange(&mut vms, 200);
    settle(&daemon, &mut vms, DEATHS, 0);
}

/// The revision whose state directory, positions and interfaces the present one takes over.
const PREVIOUS: &str = "9377c8315f983dffd1a075b77b2abe218fb78fb4";

/// Where the programs of the previous revision are, built once from the repository that this is a clone of. With two cores
/// to itself it takes a minute, the first time. None, and said so: the clone is without it.
fn previous_programs() -> Option<PathBuf> {
    let lab = std::env::var_os("RINGWAY_LAB").map(PathBuf::from);
    let lab = lab.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("lab"));
    let folder = lab.join("previous");
    let git = |words: &[&str]| {
        let mut git = Command::new("git");
        git.arg("-C").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).args(words);
        git
    };
    let commit = format!("{PREVIOUS}^{{commit}}");
    let is_there = git(&["cat-file", "-e", &commit]).output().is_ok_and(|done| done.status.success());
    if !is_there {
        println!(
            "NOT RUN: revision {PREVIOUS} is not in this clone, which is shallow or no clone at all: run `git fetch --unshallow`, \
             or `git fetch --depth=1 origin {PREVIOUS}`"
        );
        return None;
    }
    let source = folder.join("source");
    if !source.exists() {
        // Whole or not at all.
        let (fresh, archive) = (folder.join("source.new"), folder.join("source.tar"));
        std::fs::create_dir_all(&fresh).unwrap();
        run(&mut git(&["archive", "-o", archive.to_str().unwrap(), PREVIOUS]));
        run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&fresh));
        std::fs::rename(fresh, &source).unwrap();
        std::fs::remove_file(archive).unwrap();
    }
    let target = folder.join("target");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--locked", "--package", "ringway-control", "--bins", "--target-dir"]);
    cargo.arg(&target).current_dir(source);
    run(cargo.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_INCREMENTAL", "0"));
    Some(target.join("debug"))
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}

#[test]
#[ignore = "builds the previous revision, a minute the first time: run deploy/test"]
fn what_the_previous_revision_left_is_taken_over_and_handed_back() {
    let Some(previous) = previous_programs() else { return };
    let host = Namespace::new("previous");
    let mut daemon = Daemon::start();
    let present = daemon.programs.clone();
    daemon.terminate();
    std::fs::remove_dir_all(daemon.dir.join("state")).unwrap();
    daemon.programs.clone_from(&previous);
    daemon.start_again(&[]);

    let mut vms = boot(&daemon, Duration::from_millis(500));
    daemon.run("dev add name joined mgmtdev bridge/b max_vqp 2 mtu 9000").good();
    if let Some(host) = &host {
        daemon.run(&format!("dev add name h0 mgmtdev bridge/b tap rwp0 netns {}", host.0)).good();
    }
    let kept = |daemon: &Daemon| {
        let devices = ["split", "packed", "split-in-order", "packed-in-order", "joined"];
        let of = |name: &str| daemon.device(name)["provisioned"].to_string();
        // The name of an interface and its address, without its number, which is another each time.
        let interface = host.as_ref().map(|host| {
            let shown = host.link("rwp0");
            let address = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
            address.map(str::to_owned)
        });
        (devices.map(of), interface)
    };
    let before = kept(&daemon);
    let mut deaths = 0;
    for _ in 0..4 {
        for next in [&present, &previous] {
            exchange(&mut vms, 200);
            kill_under_traffic(&mut daemon, next, &mut vms, Duration::from_millis(3));
            deaths += 1;
            if host.is_some() {
                crate::support::wait_for("the interface", || kept(&daemon).1 == before.1);
            }
            assert_eq!(kept(&daemon), before, "under {}", next.display());
        }
    }
    exchange(&mut vms, 200);
    settle(&daemon, &mut vms, deaths, deaths * 64);
    // In order, too.
    daemon.terminate();
    daemon.programs = present;
    daemon.start_again(&[]);
    vms.iter_mut().for_each(|vm| vm.reconnect(&daemon));
    exchange(&mut vms, 200);
    settle(&daemon, &mut vms, deaths, deaths * 64);
    assert_eq!(kept(&daemon), before);
}
