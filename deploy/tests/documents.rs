//! What documents tell an operator to do, done as it is written: disks, first steps, and the one command of scripts that needs a
//! program more. The long walk is `operating.rs`.

use std::time::{Duration, Instant};

use ringway_lab::console::Console;
use ringway_lab::document::{Kind, blocks};
use ringway_lab::error::{Error, Result};
use ringway_lab::host::{Host, Said, wait_until};
use ringway_lab::lab::Lab;
use ringway_lab::pace::WATCHDOG;
use ringway_lab::process;
use ringway_lab::walk::{Walk, key, page};
use ringway_lab::{ensure, system};

#[test]
#[ignore = "needs QEMU >= 8, syslinux, growpart, the 6.12 guest kernel and root: run deploy/test"]
fn disks_are_served_as_their_document_says() {
    Lab::run("document-disks", |lab| {
        // Under the name that the document has; its own is a few hundred megabytes that are not at hand.
        system::write_image(lab, &IN_GUEST, &lab.path("debian-12-nocloud-amd64.qcow2"))?;
        let mut host = Host::start(lab)?;
        // The first command that fails ends the shell.
        host.shell().run("set -eu -o pipefail")?;
        let console = host.path("/run/vm0.console");
        let mut guest = None;
        for block in blocks(&page("disks.md")?)? {
            if block.kind == Kind::Shown {
                continue;
            }
            lab.say(&block);
            let said = match block.kind {
                Kind::Host => {
                    let said = host.shell().run(&block.text)?.text;
                    // From the firmware's first word on.
                    if guest.is_none() && block.text.contains("qemu-system") {
                        guest = Some(Console::at(&console)?);
                    }
                    said
                }
                _ => {
                    let console = guest
                        .as_mut()
                        .ok_or_else(|| Error::new(format!("{block} comes before its guest")))?;
                    in_guest(console, &block.text)?
                }
            };
            lab.say(said.trim());
            std::thread::sleep(READS_ON);
        }
        host.end()?;
        let image = format!("{}?offset={}", lab.path("srv/vm0.img").display(), system::root_offset());
        let checked = process::run(E2FSCK, &["-f".into(), "-n".into(), image], WATCHDOG)?;
        ensure!(checked.code == 0, "{}{}", checked.stdout, checked.stderr);
        lab.say(checked.stdout.lines().last().unwrap_or_default());
        Ok(())
    });
}

/// Types the lines; one that fails is an error.
fn in_guest(console: &mut Console, text: &str) -> Result<String> {
    let mut all = String::new();
    for line in text.lines() {
        if line == "poweroff" {
            console.write("poweroff\n")?;
            return Ok(all);
        }
        let Said { code, text } = console.run(line)?;
        ensure!(code == 0, "exit code {code} of `{line}` in the guest\n{text}");
        all.push_str(&text);
    }
    Ok(all)
}

#[test]
#[ignore = "needs QEMU >= 9.2, syslinux, the 6.12 guest kernel and root: run deploy/test"]
fn two_guests_ping_each_other_over_a_restart_as_their_document_says() {
    Lab::run("document-first-steps", |lab| {
        system::write_image(lab, &[], &lab.path("vm0.qcow2"))?;
        std::fs::copy(lab.path("vm0.qcow2"), lab.path("vm1.qcow2"))?;
        let elsewhere = [
            ("cargo build --release", "the lab builds what it tests"),
            ("export PATH=$PWD/target/release:$PATH", "the terminals have the programs on their PATH"),
        ];
        let mut walk = Walk::begin(lab, &elsewhere, &[])?;
        let mut daemon = walk.terminal()?;
        let mut pinging_since = Instant::now();
        for step in walk.steps(&page("first-steps.md")?)? {
            match key(&step).as_str() {
                // It keeps its terminal.
                "ringwayd" => {
                    daemon.write(&step.command)?;
                    walk.also(ANSWERS)?;
                }
                line if line.starts_with("eval \"qemu-system-x86_64 ") => {
                    let name = if step.command.contains("vm0.qcow2") { "vm0" } else { "vm1" };
                    walk.boot(name, &step.command)?;
                }
                // It goes on while the next commands are typed.
                "vm0# ping 10.0.0.2" => {
                    let console = walk.guest("vm0")?;
                    pinging_since = Instant::now();
                    console.write(&format!("{}\n", step.command))?;
                    console.until("64 bytes from 10.0.0.2: seq=3 ", WATCHDOG)?;
                }
                // A screen of the size that it needs, and a key after a moment.
                "ringway top" => {
                    let on_terminal =
                        "(sleep 3; printf q) | script -qec 'stty rows 24 cols 80; ringway top' /dev/null";
                    let said = walk.run_as(&step, on_terminal)?;
                    // Between the words are the screen's own.
                    let is_there = |word: &&str| said.text.contains(*word);
                    ensure!(
                        ["devices,", "ringwayd up", "vm1", "connected"].iter().all(is_there),
                        "{}",
                        said.text
                    );
                }
                "ringway why vm0" => {
                    let said = walk.run(&step)?;
                    ensure!(said.text.starts_with("vm0: "), "{}", said.text);
                }
                "ringway dev vstats show vm0" => {
                    let said = walk.run(&step)?;
                    ensure!(said.text.contains(" tx ") && said.text.contains(" rx "), "{}", said.text);
                }
                "ringway dev del vm1" => {
                    // What the page says in words: Ctrl-C, and the daemon again.
                    walk.also(
                        "kill -INT $(pidof ringwayd); while pidof ringwayd > /dev/null; do sleep 0.1; done",
                    )?;
                    daemon.write("ringwayd")?;
                    walk.also(ANSWERS)?;
                    walk.also("ringway wait vm0 up && ringway wait vm1 up")?;
                    let console = walk.guest("vm0")?;
                    // One a second: this one is asked for after the restart.
                    let next = pinging_since.elapsed().as_secs() + 2;
                    console.until(&format!(": seq={next} "), WATCHDOG)?;
                    console.write("\u{3}")?;
                    let ended = console.until(" packet loss", WATCHDOG)?;
                    lab.say(ended.lines().last().unwrap_or_default());
                    walk.run(&step)?;
                    // Its guest sees its link go down, and goes on.
                    walk.also_in(
                        "vm1",
                        "until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 0.1; done",
                    )?;
                }
                _ => {
                    walk.run(&step)?;
                }
            }
        }
        let left = walk.also("ringway dev show")?;
        ensure!(left.trim().is_empty(), "{left}");
        walk.end()
    });
}

#[test]
#[ignore = "needs jq and root: run deploy/test"]
fn scripts_ask_for_the_protocol_as_their_document_says() {
    Lab::run("document-scripting", |lab| {
        let mut host = Host::start(lab)?;
        let mut terminal = host.terminal()?;
        terminal.write("ringwayd &")?;
        wait_until(&mut terminal, "ringway status")?;
        let all = blocks(&page("scripting.md")?)?;
        let steps: Vec<_> = all.iter().flat_map(|block| block.steps()).collect();
        let step = steps.iter().find(|step| step.command.contains(" | jq "));
        let step = step.ok_or_else(|| Error::new("the page has no jq any more"))?;
        let said = terminal.run(&step.command)?;
        ensure!(said.code == 0 && said.text.trim() == step.shown.join("\n"), "{step}\n{}", said.text);
        host.end()
    });
}

/// What the document's commands need in the guest, as a distribution's image has it.
const IN_GUEST: [&str; 5] =
    ["/usr/bin/growpart", "/usr/sbin/sfdisk", "/usr/bin/partx", "/usr/bin/flock", "/usr/sbin/resize2fs"];
const E2FSCK: &str = "/usr/sbin/e2fsck";
const ANSWERS: &str = "until ringway status > /dev/null 2>&1; do sleep 0.1; done";
/// An operator reads on before the next command.
const READS_ON: Duration = Duration::from_secs(1);
