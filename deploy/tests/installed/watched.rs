//! What is told of the daemon under its unit, to whom it concerns: the journal, the service manager, a Prometheus.

use ringway_lab::debian::Machine;
use ringway_lab::ensure;
use ringway_lab::error::{Error, Result};
use serde_json::Value;

/// Who changed something is in the journal, with a priority and by fields: the user, the process, and the program as far as the unit
/// has the daemon see it.
pub(crate) fn changes_name_who_asked(machine: &mut Machine<'_>, program: &str) -> Result<()> {
    // A user of the group, as the page for those who install it has it: number 5 everywhere in Debian.
    let operator = "setpriv --reuid games --regid games --groups $(getent group ringway | cut -d: -f3) ringway --ctl /run/ringway/ctl.sock";
    machine
        .well(&format!("{operator} dev add name audited mgmtdev sim/net && {operator} dev del audited"))?;
    for method in ["dev.add", "dev.del"] {
        let entry = entry(machine, &format!("RINGWAY_METHOD={method} RINGWAY_UID=5"))?;
        ensure!(
            entry["PRIORITY"] == "6"
                && entry["RINGWAY_COMM"] == program
                && entry["RINGWAY_OUTCOME"] == "ok"
                && entry["_SYSTEMD_UNIT"] == "ringwayd.service"
                && entry["SYSLOG_IDENTIFIER"] == "ringwayd"
                && entry["RINGWAY_ASKED"].as_str().is_some_and(|asked| asked.contains("audited"))
                && entry["RINGWAY_PID"]
                    .as_str()
                    .is_some_and(|pid| pid.parse::<u32>().is_ok_and(|pid| pid > 1)),
            "{method}: {entry}"
        );
    }
    Ok(())
}

/// What could not be made is an error there, by the device's name.
pub(crate) fn what_is_not_made_is_an_error(machine: &mut Machine<'_>, device: &str) -> Result<()> {
    let entry = entry(machine, &format!("-p err RINGWAY_DEV={device}"))?;
    let message = entry["MESSAGE"].as_str().unwrap_or_default();
    ensure!(entry["PRIORITY"] == "3" && message.starts_with("device cannot be made"), "{entry}");
    Ok(())
}

/// The newest entry of this boot that matches.
fn entry(machine: &mut Machine<'_>, matches: &str) -> Result<Value> {
    let line = format!("journalctl --boot --output json --lines 1 {matches}");
    let mut found = Value::Null;
    machine.within(&line, |machine| {
        let (_, said) = machine.shell(&line)?;
        // Journald writes it down a moment later.
        found = serde_json::from_str(said.trim()).unwrap_or_default();
        Ok(found.is_object())
    })?;
    Ok(found)
}

/// `systemctl status` shows what there is now.
pub(crate) fn status_line_is(machine: &mut Machine<'_>, wanted: &str) -> Result<()> {
    machine.within(&format!("StatusText {wanted}"), |machine| {
        Ok(machine.well("systemctl show -P StatusText ringwayd")? == wanted)
    })
}

/// The Prometheus that was set up has what the daemon tells, also after its restart, and then is stopped. What its package had is kept.
pub(crate) fn is_scraped(machine: &mut Machine<'_>) -> Result<()> {
    machine.well("grep 'job_name: node' /etc/prometheus/prometheus.yml.before")?;
    is_asked(machine, "vector(1)")?;
    is_asked(machine, "up{job=\"ringway\"} == 1")?;
    is_asked(machine, "ringway_device_state{job=\"ringway\",dev=\"vm0\"}")?;
    // The second scrape tells of the first; the first of another daemon, of none.
    is_asked(machine, "ringway_scrapes_total{job=\"ringway\"} > 0")?;
    machine.well("systemctl restart ringwayd && ringway wait vm0 made")?;
    is_asked(machine, "resets(ringway_scrapes_total{job=\"ringway\"}[10m]) > 0 and up == 1")?;
    let alerts = machine.well("promtool query instant http://127.0.0.1:9090 'ALERTS{alertname=\"RingwayNotScraped\",alertstate=\"firing\"}'")?;
    ensure!(alerts.is_empty(), "{alerts}");
    machine.well("systemctl stop prometheus").map(drop)
}

/// Waits until a query is answered with something.
fn is_asked(machine: &mut Machine<'_>, query: &str) -> Result<()> {
    machine.within(query, |machine| {
        // The machine has better to do than to be asked all the time.
        let line = format!(
            "promtool query instant http://127.0.0.1:9090 '{query}' | grep . || {{ sleep 1; exit 1; }}"
        );
        Ok(machine.shell(&line)?.0 == 0)
    })
}

/// The kernel's workqueues are kept off a worker's core, from the next boot on as well.
pub(crate) fn workqueues(machine: &mut Machine<'_>) -> Result<()> {
    let said = machine.shell("ringway doctor")?.1;
    ensure!(
        said.contains("unbound workqueues may use core 1") && said.contains("ringway-workqueue"),
        "{said}"
    );
    machine.well("systemctl start ringway-workqueue && systemctl stop ringway-workqueue")?;
    ensure!(mask(machine)? == 3, "without a mask of its own it changes nothing");
    let folder = "/etc/systemd/system/ringway-workqueue.service.d";
    for wanted in [2, 1] {
        machine.well(&format!("mkdir -p {folder} && printf '[Service]\\nEnvironment=MASK={wanted}\\n' > {folder}/mask.conf && systemctl daemon-reload && systemctl enable ringway-workqueue && systemctl restart ringway-workqueue"))?;
        let found = mask(machine)?;
        ensure!(found == wanted, "the mask is {found:x}, and not {wanted:x}");
    }
    workqueues_are_kept_off(machine)
}

/// They are.
pub(crate) fn workqueues_are_kept_off(machine: &mut Machine<'_>) -> Result<()> {
    let mask = mask(machine)?;
    ensure!(mask == 1, "workqueues may use {mask:x}");
    let said = machine.shell("ringway doctor")?.1;
    ensure!(said.contains("no unbound workqueue may use a worker's core"), "{said}");
    Ok(())
}

fn mask(machine: &mut Machine<'_>) -> Result<u64> {
    let said = machine.well("cat /sys/devices/virtual/workqueue/cpumask")?;
    u64::from_str_radix(&said, 16).map_err(|_| Error::new(format!("no mask: {said}")))
}
