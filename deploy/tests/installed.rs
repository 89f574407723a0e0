//! The package on a fresh Debian with systemd: installed, sandboxed, watched, upgraded, rebooted, removed.

#[path = "installed/hardware.rs"]
mod hardware;
#[path = "installed/served.rs"]
mod served;
#[path = "installed/watched.rs"]
mod watched;

use std::path::PathBuf;
use std::time::Duration;

use ringway_lab::daemon;
use ringway_lab::debian::{self, Machine};
use ringway_lab::document::{self, Kind};
use ringway_lab::ensure;
use ringway_lab::error::{Context, Error, Result};
use ringway_lab::lab::Lab;
use ringway_lab::walk::page;

#[test]
#[ignore = "needs QEMU >= 8, the 6.12 guest kernel, a Debian with systemd and cargo-deb: run deploy/test"]
fn package_is_installed_upgraded_and_removed() {
    Lab::run("installed", |lab| {
        let mut machine = Machine::boot(lab, &files(lab)?)?;
        begin(&mut machine)?;
        install(&mut machine)?;
        sandbox(&mut machine)?;
        troubles(&mut machine)?;
        served::make(&mut machine)?;
        served::connect(&mut machine)?;
        deaths(&mut machine)?;
        drop_ins(&mut machine)?;
        degraded(&mut machine)?;
        viewers(&mut machine)?;
        sockets(&mut machine)?;
        cores(&mut machine)?;
        reload(&mut machine)?;
        upgrade(&mut machine)?;
        activation(&mut machine)?;
        watched::workqueues(&mut machine)?;
        reboot(&mut machine)?;
        served::remove(&mut machine)?;
        remove(&mut machine)?;
        machine.power_off()
    });
}

#[test]
#[ignore = "needs QEMU >= 8, the 6.12 guest kernel, a Debian with systemd and Prometheus, and cargo-deb: run deploy/test"]
fn page_of_what_is_installed_is_run_as_it_is_written() {
    Lab::run("installed-page", |lab| {
        let mut machine = Machine::boot(lab, &files(lab)?)?;
        begin(&mut machine)?;
        as_documented(&mut machine)?;
        machine.power_off()
    });
}

#[test]
#[ignore = "needs QEMU >= 8, the 6.12 guest kernel, a Debian with systemd and cargo-deb: run deploy/test"]
fn installed_unit_serves_a_function_of_hardware() {
    Lab::run("installed-hardware", |lab| {
        let mut machine = Machine::boot_with_functions(lab, &files(lab)?)?;
        begin(&mut machine)?;
        machine.well("dpkg -i /packages/ringway_*-1_amd64.deb")?;
        hardware::serve(&mut machine)?;
        machine.well("dpkg -P ringway")?;
        nothing_left(&mut machine)?;
        machine.power_off()
    });
}

/// Two packages, the second an upgrade of the first, and the front-end.
fn files(lab: &Lab) -> Result<Vec<PathBuf>> {
    let front = daemon::binaries()?.join("ringway-front");
    Ok(vec![debian::package(lab, 1)?, debian::package(lab, 2)?, front])
}

/// Waits until all units of the machine are started.
fn begin(machine: &mut Machine<'_>) -> Result<()> {
    machine.well("mkdir /packages; cp /mnt/*.deb /packages; touch /packages/before")?;
    machine.well("systemctl is-system-running --wait || systemctl --failed").map(drop)
}

/// It runs once it is installed, as nobody much; a device can be made and is kept.
fn install(machine: &mut Machine<'_>) -> Result<()> {
    machine.well("dpkg -i /packages/ringway_*-1_amd64.deb")?;
    machine.well("systemctl is-active ringwayd && systemctl is-enabled ringwayd")?;
    machine.well("ringway status")?;
    machine.well("test $(stat -c %U /proc/$(pidof ringwayd)) = ringway")?;
    machine.well("grep -x 'CapEff:\t0000000000000000' /proc/$(pidof ringwayd)/status")?;
    exposed(machine, 0.5)?;
    machine.well("ringway dev add name vm0 mgmtdev sim/net && ringway wait vm0 made --within 5")?;
    watched::status_line_is(machine, "1 device made")?;
    watched::changes_name_who_asked(machine, "?")?;
    machine.ends_with(7, "ringway wait vm0 connected --within 0")?;
    machine.well("stat -c '%a %U %G' /run/ringway/dev/vm0.sock | grep -x '660 ringway ringway'")?;
    // A stranger is kept out, a member of the group is let in.
    machine.ends_with(
        5,
        "setpriv --reuid 1 --regid 1 --clear-groups ringway --ctl /run/ringway/ctl.sock status",
    )?;
    machine.well(
        "setpriv --reuid 1 --regid 1 --groups $(getent group ringway | cut -d: -f3) ringway --ctl /run/ringway/ctl.sock status",
    )?;
    machine
        .well("test -e /usr/share/man/man8/ringwayd.8.gz && test -e /usr/share/man/man8/ringway-bench.8.gz && test -e /usr/share/man/man7/ringway-reference.7.gz && test -e /usr/share/bash-completion/completions/ringway-bench && test -e /usr/share/doc/ringway/installing.md")
        .map(drop)
}

/// What the unit forbids is tried by a probe in the daemon's place.
fn sandbox(machine: &mut Machine<'_>) -> Result<()> {
    machine.well("systemctl stop ringwayd")?;
    let drop_in = "[Service]\\nType=oneshot\\nRestart=no\\nWatchdogSec=0\\nExecStart=\\nExecStart=/mnt/ringway-guest --probe /var/lib/ringway/report\\n";
    machine.well(&format!(
        "mkdir -p {UNIT_D} && printf '{drop_in}' > {UNIT_D}/zz-probe.conf && systemctl daemon-reload"
    ))?;
    machine.well("systemctl start ringwayd")?;
    let report = machine.well("cat /var/lib/ringway/report")?;
    let could: Vec<&str> = report.lines().filter_map(|line| line.strip_suffix(": could")).collect();
    ensure!(could == ["write its runtime", "write its state"], "under its unit the probe could: {could:?}");
    // Without the unit the same probe can: it is the unit that keeps it.
    machine.well("/mnt/ringway-guest --probe /var/lib/ringway/report")?;
    let report = machine.well("cat /var/lib/ringway/report; rm -f /etc/ringway-probe /usr/ringway-probe /run/ringway-probe; rmdir /sys/fs/cgroup/ringway-probe; umount /srv || true")?;
    for name in [
        "write /etc",
        "read shadow",
        "read the disk",
        "open tun",
        "udp",
        "mount",
        "a new namespace",
        "real-time",
    ] {
        ensure!(
            report.contains(&format!("{name}: could\n")),
            "without its unit the probe could not: {name}\n{report}"
        );
    }
    machine.well(&format!(
        "rm {UNIT_D}/zz-probe.conf /var/lib/ringway/probe /var/lib/ringway/report /run/ringway/probe.sock; systemctl daemon-reload; systemctl start ringwayd; ringway wait vm0 made"
    ))
    .map(drop)
}

/// The page for when something is wrong, run as it is written: here the journal is one that its commands read.
fn troubles(machine: &mut Machine<'_>) -> Result<()> {
    let mut ran = 0;
    for block in document::blocks(&page("troubleshooting.md")?)? {
        for step in block.steps() {
            let (code, said) = machine.shell(&format!("cd /packages; {}", step.command))?;
            // It may find something on this machine.
            let is_good = code == 0 || (step.command == "ringway doctor" && code == 8);
            ensure!(is_good && !said.trim().is_empty(), "{step}: exit code {code}: {said}");
            ran += 1;
        }
    }
    ensure!(ran > 6, "the page has {ran} commands");
    machine.well("systemctl status ringwayd && journalctl -u ringwayd -n 50 | grep 'ready at'").map(drop)
}

/// Killed, and hanging: it is there again, with its devices and where their rings stood.
fn deaths(machine: &mut Machine<'_>) -> Result<()> {
    machine.well("stat -c %i /run/ringway/positions > /packages/inode; pidof ringwayd > /packages/pid; kill -9 $(pidof ringwayd)")?;
    machine.well(AGAIN)?;
    served::again(machine)?;
    machine.well("test $(stat -c %i /run/ringway/positions) = $(cat /packages/inode)")?;
    let watchdog = "[Service]\\nWatchdogSec=3s\\nTimeoutAbortSec=1s\\n";
    machine.well(&format!("printf '{watchdog}' > {UNIT_D}/zz-watchdog.conf && systemctl daemon-reload && systemctl restart ringwayd"))?;
    // Three limits long it is fed, by the thread that is then stopped: the others go on.
    machine.well("pidof ringwayd > /packages/pid; sleep 9; test $(pidof ringwayd) = $(cat /packages/pid)")?;
    machine.well("kill -STOP $(pidof ringwayd)")?;
    machine.well(AGAIN)?;
    machine.well("journalctl -b -u ringwayd | grep -i watchdog")?;
    machine.well(&format!(
        "rm {UNIT_D}/zz-watchdog.conf && systemctl daemon-reload && systemctl restart ringwayd"
    ))?;
    served::again(machine)
}

/// An interface of the host's needs its drop-in, and has it at a price that is known.
fn drop_ins(machine: &mut Machine<'_>) -> Result<()> {
    machine.shell("ringway dev add name host0 mgmtdev bridge/br0 tap rwt0").and_then(|(code, said)| {
        ensure!(code != 0, "an interface without its drop-in: {said}");
        Ok(())
    })?;
    machine.well(&format!(
        "ln -s {SHARE}/tap.conf {UNIT_D}/ && systemctl daemon-reload && systemctl restart ringwayd"
    ))?;
    exposed(machine, 1.6)?;
    machine.well("ringway dev add name host0 mgmtdev bridge/br0 tap rwt0 && ip link show rwt0 && ringway wait host0 up")?;
    served::host_reaches_a_guest(machine, "rwt0", "bridge/br0")?;
    machine.well(&format!(
        "ln -s {SHARE}/netns.conf {UNIT_D}/ && systemctl daemon-reload && systemctl restart ringwayd"
    ))?;
    exposed(machine, 2.0)?;
    machine.well("ip netns add blue && ringway dev add name host1 mgmtdev bridge/br0 tap rwt1 netns blue && ip -n blue link show rwt1")?;
    machine.well("ringway dev del host1 && ip netns del blue")?;
    machine.well(&format!(
        "ln -s {SHARE}/disks.conf {UNIT_D}/ && systemctl daemon-reload && systemctl restart ringwayd"
    ))?;
    served::block_device(machine)?;
    machine.well(&format!(
        "ln -s {SHARE}/audit.conf {UNIT_D}/ && systemctl daemon-reload && systemctl restart ringwayd"
    ))?;
    watched::changes_name_who_asked(machine, "ringway")?;
    exposures_are_as_documented(machine)?;
    machine.well(&format!("rm -f {UNIT_D}/*.conf; ln -s {SHARE}/tap.conf {SHARE}/netns.conf {SHARE}/disks.conf {UNIT_D}/; systemctl daemon-reload"))?;
    // All of them are units that systemd takes.
    machine
        .well(&format!("ln -s {SHARE}/vfio.conf {SHARE}/cores.conf {UNIT_D}/ && systemctl daemon-reload"))?;
    let verified = machine.well(
        "systemd-analyze verify ringwayd.service --man=no ringwayd.socket ringway-metrics.socket ringway-metrics.service ringway-workqueue.service 2>&1 | grep -i ringway || true",
    )?;
    ensure!(verified.is_empty(), "{verified}");
    machine
        .well(&format!("rm {UNIT_D}/vfio.conf {UNIT_D}/disks.conf {UNIT_D}/cores.conf {UNIT_D}/netns.conf"))
        .map(drop)
}

/// It is started though a device cannot be made, which is named everywhere.
fn degraded(machine: &mut Machine<'_>) -> Result<()> {
    machine
        .well(&format!("rm {UNIT_D}/tap.conf && systemctl daemon-reload && systemctl restart ringwayd"))?;
    let said = machine.ends_with(8, "ringway status")?;
    ensure!(said.contains("host0: not made: "), "{said}");
    machine.well(
        "systemctl is-active ringwayd && systemctl show -P StatusText ringwayd | grep 'not made: host0'",
    )?;
    machine.ends_with(7, "ringway wait host0 made --within 0")?;
    watched::what_is_not_made_is_an_error(machine, "host0")?;
    machine.well("ringway dev del host0 && ringway status").map(drop)
}

/// Who is in their group sees, and changes nothing.
fn viewers(machine: &mut Machine<'_>) -> Result<()> {
    machine.well(&format!(
        "ln -s {SHARE}/view.conf {UNIT_D}/ && cp /etc/ringway/ringwayd.toml /packages/without && sed -i 's/^# \\(view\\)/\\1/' /etc/ringway/ringwayd.toml && systemctl daemon-reload && systemctl restart ringwayd"
    ))?;
    let viewer =
        "setpriv --reuid 1 --regid 1 --groups $(getent group ringway-view | cut -d: -f3) ringway --ctl";
    machine.well(&format!("{viewer} /run/ringway/view.sock dev show"))?;
    machine.ends_with(5, &format!("{viewer} /run/ringway/view.sock dev del vm0"))?;
    machine.ends_with(5, &format!("{viewer} /run/ringway/ctl.sock dev show"))?;
    machine.ends_with(
        5,
        "setpriv --reuid 1 --regid 1 --clear-groups ringway --ctl /run/ringway/view.sock dev show",
    )?;
    machine
        .well(&format!("rm {UNIT_D}/view.conf && cp /packages/without /etc/ringway/ringwayd.toml && systemctl daemon-reload && systemctl restart ringwayd && test ! -e /run/ringway/view.sock"))
        .map(drop)
}

/// A device's socket is given to a group of the VMMs' with the drop-in for it, and without it the error names that.
fn sockets(machine: &mut Machine<'_>) -> Result<()> {
    let add = "ringway dev add name vm9 mgmtdev sim/net group daemon";
    let said = machine.ends_with(5, add)?;
    ensure!(said.contains("to group 1: ") && said.contains("drop-in sockets.conf"), "{said}");
    machine.well(&format!(
        "sed 's/=kvm/=daemon/' {SHARE}/sockets.conf > {UNIT_D}/sockets.conf && systemctl daemon-reload && systemctl restart ringwayd && {add}"
    ))?;
    let vmm = "setpriv --reuid 1 --regid 65534 --groups 1 test";
    machine.well(&format!("{vmm} -w /run/ringway/dev/vm9.sock && {vmm} ! -w /run/ringway/ctl.sock"))?;
    machine.well("setpriv --reuid 1 --regid 65534 --clear-groups test ! -w /run/ringway/dev/vm9.sock")?;
    machine
        .well(&format!(
            "ringway dev del vm9 && rm {UNIT_D}/sockets.conf && systemctl daemon-reload && systemctl restart ringwayd"
        ))
        .map(drop)
}

/// All threads run on the cores of the drop-in, and the worker on the last of them or where the file has it.
fn cores(machine: &mut Machine<'_>) -> Result<()> {
    let file = "/etc/ringway/ringwayd.toml";
    machine.well(&format!("cp {file} /packages/without"))?;
    let share = format!("{SHARE}/cores.conf");
    for (drop_in, setting, worker, all) in
        [("0", None, 0, "0"), ("1-3", None, 1, "1"), ("0-1", Some("0"), 0, "0\n0-1")]
    {
        if let Some(cores) = setting {
            machine.well(&format!(
                "sed -i 's/^# cores = \"[0-9-]*\"/cores = \"{cores}\"/' {file} && grep '^cores = ' {file}"
            ))?;
        }
        machine.well(&format!(
            "sed 's/=1-3$/={drop_in}/' {share} > {UNIT_D}/cores.conf && grep -x CPUAffinity={drop_in} {UNIT_D}/cores.conf && systemctl daemon-reload && systemctl restart ringwayd"
        ))?;
        let of = |thread: &str| {
            format!(
                "grep -h ^Cpus_allowed_list: $(grep -lx '{thread}' /proc/$(pidof ringwayd)/task/*/comm | sed 's/comm$/status/') | cut -f2 | sort -u"
            )
        };
        let said = machine.well(&of(&format!("rw-core-{worker}")))?;
        ensure!(said == worker.to_string(), "{drop_in}: the worker on core {worker} may run on {said}");
        let said = machine.well(&of("rw-.*\\|ringwayd"))?;
        ensure!(said == all, "{drop_in}: its threads may run on {said}");
    }
    served::again(machine)?;
    machine
        .well(&format!("rm {UNIT_D}/cores.conf && cp /packages/without {file} && systemctl daemon-reload && systemctl restart ringwayd"))
        .map(drop)
}

/// The configuration file is applied to what runs.
fn reload(machine: &mut Machine<'_>) -> Result<()> {
    machine.well(
        "printf '[[device]]\\nname = \"vm1\"\\nmgmtdev = \"sim/net\"\\n' >> /etc/ringway/ringwayd.toml",
    )?;
    machine.well("pidof ringwayd > /packages/pid; systemctl reload ringwayd && ringway wait vm1 made")?;
    // One that is refused is a reload that failed, and changes nothing.
    machine.well("cp /etc/ringway/ringwayd.toml /packages/good && sed -i /vm1/,+1d /etc/ringway/ringwayd.toml && printf 'mgmtdev = 7\\n' >> /etc/ringway/ringwayd.toml")?;
    machine.shell("systemctl reload ringwayd").and_then(|(code, said)| {
        ensure!(code != 0, "a file with an error: {said}");
        Ok(())
    })?;
    machine.well("journalctl -b -u ringwayd -n 20 | grep ringwayd.toml")?;
    machine.well("ringway wait vm1 made --within 0 && cp /packages/good /etc/ringway/ringwayd.toml && systemctl reload ringwayd")?;
    machine.well("test $(pidof ringwayd) = $(cat /packages/pid)").map(drop)
}

/// An upgrade leaves the daemon alone; its restart is the operator's, and the gap is told.
fn upgrade(machine: &mut Machine<'_>) -> Result<()> {
    served::again(machine)?;
    let connections = served::connections(machine)?;
    machine.well("pidof ringwayd > /packages/pid; dpkg -i /packages/ringway_*-2_amd64.deb")?;
    machine.well("test $(pidof ringwayd) = $(cat /packages/pid)")?;
    // Guests notice nothing.
    served::all_is_served(machine)?;
    let after = served::connections(machine)?;
    ensure!(after == connections, "connections over the upgrade: {connections:?}, {after:?}");
    let said = machine.ends_with(9, "ringway status")?;
    ensure!(said.contains("an older program runs"), "{said}");
    machine.well("systemctl restart ringwayd")?;
    let said = machine.well("ringway status")?;
    ensure!(said.contains("gap "), "no gap: {said}");
    machine.well("ringway wait vm0 made --within 0")?;
    served::again(machine)
}

/// With the socket unit, a command starts what is stopped.
fn activation(machine: &mut Machine<'_>) -> Result<()> {
    machine.well("systemctl stop ringwayd")?;
    machine.ends_with(6, "ringway status")?;
    machine.well("systemctl enable --now ringwayd.socket")?;
    machine.well("ringway status && ringway wait vm0 made && systemctl is-active ringwayd")?;
    machine.well("systemctl stop ringwayd; ringway hello")?;
    machine
        .well("systemctl disable --now ringwayd.socket; systemctl restart ringwayd; ringway status")
        .map(drop)
}

fn reboot(machine: &mut Machine<'_>) -> Result<()> {
    machine.well("ringway hello > /packages/hello; sync")?;
    machine.reboot()?;
    machine.well("ringway wait vm0 made && ringway status")?;
    let failed = machine.well("systemctl --failed --no-legend --plain")?;
    ensure!(failed.is_empty(), "{failed}");
    watched::workqueues_are_kept_off(machine)?;
    machine.well("rm -r /etc/systemd/system/ringway-workqueue.service.d")?;
    served::connect(machine)
}

/// Removed it keeps what is the operator's; purged, nothing.
fn remove(machine: &mut Machine<'_>) -> Result<()> {
    machine.well(&format!("ln -s {SHARE}/tap.conf {UNIT_D}/"))?;
    machine.well(
        "dpkg -r ringway && test -e /etc/ringway/ringwayd.toml && test -e /var/lib/ringway/devices.json",
    )?;
    machine.well("dpkg -P ringway")?;
    nothing_left(machine)
}

/// The page for those who install it, run as it is written.
fn as_documented(machine: &mut Machine<'_>) -> Result<()> {
    let all = document::blocks(&page("installing.md")?)?;
    ensure!(all.iter().all(|block| block.kind == Kind::Host), "it has nothing but commands");
    let mut seen = [("workqueue/cpumask", false), ("restart prometheus", false)];
    for block in all {
        let script = format!("cd /packages; set -e\n{}", block.text);
        machine
            .well_within(BLOCK_LIMIT, &["/bin/bash", "-c", &script])
            .context(|| format!("line {}", block.line))?;
        for (words, is_seen) in seen.iter_mut().filter(|(words, _)| block.text.contains(words)) {
            match *words {
                "restart prometheus" => watched::is_scraped(machine)?,
                _ => watched::workqueues_are_kept_off(machine)?,
            }
            *is_seen = true;
        }
    }
    ensure!(seen.iter().all(|(_, is_seen)| *is_seen), "the page has no block for some of these: {seen:?}");
    nothing_left(machine)
}

fn nothing_left(machine: &mut Machine<'_>) -> Result<()> {
    let left = machine.well(
        "find / -xdev -name '*ringway*' -not -path '/packages*' -not -path '/proc/*' -not -name 'ringway-guest*' -not -name 'ringway-run-*'; find /run /sys/fs/cgroup -name 'ringway*' -not -path '/run/systemd/propagate/*' -not -name 'ringway-guest*'; \
         getent passwd ringway; getent group ringway ringway-view; dpkg -l | grep ringway || true",
    )?;
    ensure!(left.is_empty(), "left behind:\n{left}");
    Ok(())
}

/// How exposed the unit is, as systemd counts.
fn exposed(machine: &mut Machine<'_>, limit: f64) -> Result<()> {
    let level = exposure(machine)?;
    ensure!(level <= limit, "exposed by {level}, and {limit} at most");
    Ok(())
}

fn exposure(machine: &mut Machine<'_>) -> Result<f64> {
    let said = machine.well("systemd-analyze security --no-pager ringwayd.service | tail -n 1")?;
    let level = said.split_whitespace().find_map(|word| word.parse::<f64>().ok());
    level.ok_or_else(|| Error::new(format!("no number: {said}")))
}

/// What the page says that each drop-in counts is what it counts, by itself or with the one that it needs.
fn exposures_are_as_documented(machine: &mut Machine<'_>) -> Result<()> {
    let page = page("installing.md")?;
    let mut wrong = Vec::new();
    for row in page.lines().filter(|line| line.starts_with("| `ringwayd.service.d/")) {
        let cells: Vec<&str> = row.trim_matches(['|', ' ']).split(" | ").map(str::trim).collect();
        let (Some(files), Some(told)) = (cells.first(), cells.last()) else { continue };
        let names = files.split('`').filter(|word| word.ends_with(".conf"));
        let files: Vec<String> =
            names.map(|name| format!("{SHARE}/{}", name.trim_start_matches("ringwayd.service.d/"))).collect();
        machine.well(&format!(
            "rm -f {UNIT_D}/*.conf; ln -s {} {UNIT_D}/; systemctl daemon-reload",
            files.join(" ")
        ))?;
        let level = exposure(machine)?;
        if *told != format!("{level:.1}") {
            wrong.push(format!("{level:.1}, and not: {row}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Of the page's, which is as long as its slowest commands are together.
const BLOCK_LIMIT: Duration = Duration::from_secs(180);
const UNIT_D: &str = "/etc/systemd/system/ringwayd.service.d";
const SHARE: &str = "/usr/share/ringway/ringwayd.service.d";
/// Another process of it answers, and has the device.
const AGAIN: &str = "for turn in $(seq 200); do pid=$(systemctl show -P MainPID ringwayd); test $pid != 0 -a $pid != $(cat /packages/pid) && ringway wait vm0 made --within 0 && exit 0; sleep 0.1; done; exit 1";
