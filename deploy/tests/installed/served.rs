//! Front-ends of the daemon under its unit: every frame and block is there, before and after all that an operator does.

use ringway_lab::agent::EchoOrder;
use ringway_lab::debian::Machine;
use ringway_lab::ensure;
use ringway_lab::error::{Context, Error, Result};
use serde_json::Value;

/// Front-ends that stay, each by what it is called: two guests on a bridge, and one with a disk.
const GUESTS: [(&str, &str); 2] = [("guest1", "10.77.0.1"), ("guest2", "10.77.0.2")];
const DISK: &str = "disk0";
/// Asked of the other guest in one go: as many as a ring has room for.
const QUESTIONS: u64 = 200;

/// Makes their devices: what they are, and where a disk's file lies, is all that a unit without drop-ins allows.
pub(crate) fn make(machine: &mut Machine<'_>) -> Result<()> {
    machine.well("ringway mgmtdev add name bridge/guests")?;
    for (name, _) in GUESTS {
        machine.well(&format!("ringway dev add name {name} mgmtdev bridge/guests"))?;
    }
    machine.well(&format!(
        "install -o ringway -g ringway -m 0660 /dev/null {DISK_FILE} && truncate -s 1M {DISK_FILE} && ringway dev add name {DISK} mgmtdev file path {DISK_FILE}"
    ))?;
    machine.well("ringway status").map(drop)
}

/// Connects them, as a user whom the group lets in.
pub(crate) fn connect(machine: &mut Machine<'_>) -> Result<()> {
    for (name, address) in GUESTS {
        machine.launch(
            name,
            &as_member(&format!("{FRONT} echo {} reconnect address={address}", socket(name))),
        )?;
        machine.says(name, "ready", 1)?;
    }
    connect_disk(machine, DISK)?;
    all_is_served(machine)
}

/// Nothing is lost: of frames that go as fast as they can, of those between two guests, and of what a disk has.
pub(crate) fn all_is_served(machine: &mut Machine<'_>) -> Result<()> {
    frames_at_full_speed(machine, "vm0")?;
    guests_reach_each_other(machine)?;
    disk_works(machine, DISK)
}

/// The daemon was ended and is there again: guests go on by themselves, where their rings stood; the disk's program, which does not,
/// is begun anew.
pub(crate) fn again(machine: &mut Machine<'_>) -> Result<()> {
    for (name, _) in GUESTS {
        machine.well(&format!("ringway wait {name} up --within 50"))?;
    }
    machine.kill(DISK)?;
    connect_disk(machine, DISK)?;
    all_is_served(machine)
}

/// Ends them in order, and removes their devices.
pub(crate) fn remove(machine: &mut Machine<'_>) -> Result<()> {
    for (name, _) in GUESTS {
        machine.tell(name, "quit")?;
        machine.ends_well(name)?;
        machine.well(&format!("ringway dev del {name}"))?;
    }
    machine.tell(DISK, "quit")?;
    machine.ends_well(DISK)?;
    machine
        .well(&format!("ringway dev del {DISK} && rm {DISK_FILE} && ringway mgmtdev del bridge/guests"))?;
    machine.well("ringway status").map(drop)
}

/// How often each of the front-ends that stay has connected.
pub(crate) fn connections(machine: &mut Machine<'_>) -> Result<Vec<u64>> {
    let names = GUESTS.iter().map(|(name, _)| *name).chain([DISK]);
    let of = |name| {
        let shown = json(machine, &format!("ringway -j dev show {name}"))?;
        number(&shown["dev"][name]["history"]["connections"], name)
    };
    names.map(of).collect()
}

/// A disk on a block device, by its drop-in.
pub(crate) fn block_device(machine: &mut Machine<'_>) -> Result<()> {
    machine.well("ringway dev add name disk1 mgmtdev file path /dev/vdc")?;
    connect_disk(machine, "disk1")?;
    disk_works(machine, "disk1")?;
    machine.tell("disk1", "quit")?;
    machine.ends_well("disk1")?;
    // It is the disk that was written to.
    machine.well("test $(head -c 262144 /dev/vdc | tr -d '\\0' | wc -c) -gt 1000")?;
    machine.well("ringway dev del disk1").map(drop)
}

/// The kernel of the host reaches a guest on a management device by an interface at its other side.
pub(crate) fn host_reaches_a_guest(machine: &mut Machine<'_>, interface: &str, mgmtdev: &str) -> Result<()> {
    let (name, address) = ("guest3", "10.77.1.2");
    machine.well(&format!("ringway dev add name {name} mgmtdev {mgmtdev}"))?;
    machine.launch(name, &as_member(&format!("{FRONT} echo {} address={address}", socket(name))))?;
    machine.says(name, "ready", 1)?;
    machine.well(&format!(
        "ip addr replace 10.77.1.1/24 dev {interface} && ip link set {interface} up && ringway wait {name} up"
    ))?;
    // Its agent asks as ping(8) does without a privilege.
    machine.well("echo '0 2147483647' > /proc/sys/net/ipv4/ping_group_range")?;
    let to = address.parse().context(|| address.into())?;
    machine.echo(EchoOrder { to, shortest: 0, longest: 1400, step: 100, window: 4, quiet_ms: 10_000 })?;
    machine.tell(name, "quit")?;
    machine.ends_well(name)?;
    machine.well(&format!("ringway dev del {name}")).map(drop)
}

fn connect_disk(machine: &mut Machine<'_>, name: &str) -> Result<()> {
    machine.launch(name, &as_member(&format!("{FRONT} disk {}", socket(name))))?;
    machine.says(name, "ready", 1)
}

/// Each block that is read is what was written last.
fn disk_works(machine: &mut Machine<'_>, name: &str) -> Result<()> {
    for line in ["more 100", "check"] {
        let done = format!("done: {line}");
        let before = machine.said(name, &done)?;
        machine.tell(name, line)?;
        machine.says(name, &done, before + 1)?;
    }
    Ok(())
}

/// The benchmark suite of the package, which accounts for every frame.
fn frames_at_full_speed(machine: &mut Machine<'_>, name: &str) -> Result<()> {
    let line = format!(
        "ringway-bench -j net --socket {} --ring split --rounds 2 --seconds 1 --max-gap-us 5e6",
        socket(name)
    );
    let result = json(machine, &as_member(&line))?;
    let rounds = result["runs"][0]["series"]["rounds"].as_array();
    let rounds = rounds.map_or(&[][..], Vec::as_slice);
    ensure!(rounds.len() == 2, "{result}");
    for round in rounds {
        let counts = &round["counts"];
        let wrong = ["lost", "duplicated", "reordered", "corrupt", "stale"];
        let wrong = wrong.iter().any(|what| counts[*what].as_u64() != Some(0));
        let sent = counts["sent"].as_u64().unwrap_or_default();
        ensure!(sent > RING && counts["received"] == sent && !wrong, "frames of {name}: {counts}");
    }
    Ok(())
}

/// Each question of the first guest is answered by the second, once.
fn guests_reach_each_other(machine: &mut Machine<'_>) -> Result<()> {
    let [(first, _), (second, address)] = GUESTS;
    machine.well(&format!("ringway wait {first} up && ringway wait {second} up"))?;
    // A guest's receive queue is its first.
    let frames = |machine: &mut Machine<'_>, name: &str| -> Result<u64> {
        let shown = json(machine, &format!("ringway -j dev vstats show {name} qidx 0"))?;
        number(&shown["vstats"][name]["packets"], name)
    };
    let before = [frames(machine, first)?, frames(machine, second)?];
    let line = format!("ask {address}");
    let done = format!("done: {line}");
    let asked = machine.said(first, &done)?;
    for _ in 0..QUESTIONS {
        machine.tell(first, &line)?;
    }
    machine.says(first, &done, asked + QUESTIONS as usize)?;
    machine.within("every answer", |machine| {
        let now = [frames(machine, first)?, frames(machine, second)?];
        let came = [now[0] - before[0], now[1] - before[1]];
        ensure!(came.iter().all(|came| *came <= QUESTIONS), "{came:?} of {QUESTIONS}");
        Ok(came == [QUESTIONS; 2])
    })
}

fn number(value: &Value, of: &str) -> Result<u64> {
    value.as_u64().ok_or_else(|| Error::new(format!("no number of {of}: {value}")))
}

fn json(machine: &mut Machine<'_>, line: &str) -> Result<Value> {
    let said = machine.well(line)?;
    serde_json::from_str(&said).context(|| format!("{line}: {said}"))
}

/// As a VMM's user, who is in the group.
fn as_member(line: &str) -> String {
    format!("setpriv --reuid games --regid games --groups $(getent group ringway | cut -d: -f3) {line}")
}

fn socket(name: &str) -> String {
    format!("/run/ringway/dev/{name}.sock")
}

/// Entries of a ring of the benchmark suite: with more frames than that it went round.
const RING: u64 = 256;
const FRONT: &str = "/mnt/ringway-front";
const DISK_FILE: &str = "/var/lib/ringway/disk0.img";
