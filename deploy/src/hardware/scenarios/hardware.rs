//! A virtio function that consumes its guest's rings itself.

use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use super::{HERE, NEIGHBOUR, PULSE_MS, THERE};
use crate::ensure;
use crate::error::{Error, Result};
use crate::hardware::{Echoer, Front, IGB, Machine, VIRTIO_VFS};
use crate::lab::wait_for;
use crate::pace::WATCHDOG;

pub(super) fn in_hardware(machine: &mut Machine<'_>, function: &str, mac: &str) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_mtu(&pf, 9000)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    machine.give_to_vfio(function)?;
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(function)?;
    let add = ["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev, "mac", mac, "mtu", "9000", "datapath"];
    machine.refused(&[&add[..], &["fast"]].concat(), USAGE, "relay or hardware")?;
    machine.ringway(&[&add[..], &["hardware"]].concat())?;
    let echoer = Echoer { mac: Some(mac.into()), ..Echoer::new("vm0", false) };
    machine.start_testpmd(&echoer)?;
    machine.data_path_is("vm0", "hardware")?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.pings_of_all_sizes(THERE, 9000)?;
    machine.make_vlan(&pf, 7, "10.9.7.1/24")?;
    machine.pings_of_all_sizes(IpAddr::V4(Ipv4Addr::new(10, 9, 7, 2)), 1500)?;
    machine.ip(&format!("link delete {pf}.7"))?;

    let idle = machine.cpu()?;
    machine.linux().start_pulse(THERE, PULSE_MS)?;
    pulse_goes_on(machine)?;
    let busy = machine.cpu()?;
    machine.ringway(&["dev", "set", "name", "vm0", "datapath", "relay"])?;
    machine.data_path_is("vm0", "relay")?;
    pulse_goes_on(machine)?;
    // What it takes for the same with a core shows what can be seen.
    let relayed = machine.cpu()?;
    let seen = format!("{idle:.1} % of a processor idle, {busy:.1} % in hardware, {relayed:.1} % relaying");
    let is_measurable = (busy - idle) * 4.0 >= relayed - idle;
    ensure!(!is_measurable, "{seen}");
    machine.say(format_args!("  ringwayd takes {seen}"));
    machine.linux().stop_pulse(THERE)?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.refused(
        &["dev", "set", "name", "vm0", "datapath", "hardware"],
        NOT_IN_FORCE,
        "starts its rings anew",
    )?;
    machine.kill_testpmd()?;
    machine.start_testpmd(&echoer)?;
    machine.data_path_is("vm0", "hardware")?;
    machine.linux().start_pulse(THERE, PULSE_MS)?;
    pulse_goes_on(machine)?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.step("the pulse is answered no more", |machine| {
        machine.linux().pulse_stalled(THERE)?;
        machine.linux().stop_pulse(THERE).map(|_| ())
    })?;
    machine.kill_testpmd()?;
    machine.stop_ringwayd()?;
    machine.set_mtu(&pf, 1500)
}

/// The daemon of two guests, of which one is in hardware, is killed and started again: their front-ends connect again, and both go
/// on where their rings stand.
pub(super) fn killed(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    super::virtual_functions_of_virtio(machine)?;
    machine.start_ringwayd()?;
    let guests = [("vm0", VIRTIO_VFS[0], THERE, "hardware"), ("vm1", VIRTIO_VFS[1], NEIGHBOUR, "relay")];
    for (device, function, address, path) in guests {
        machine.give_to_vfio(function)?;
        let mgmtdev = machine.function_is_shown(function)?;
        machine.ringway(&["dev", "add", "name", device, "mgmtdev", &mgmtdev, "datapath", path])?;
        machine.start_front(&Front { reconnect: true, ..Front::new(device).of(address) })?;
        machine.data_path_is(device, path)?;
        machine.linux().start_pulse(address, PULSE_MS)?;
        machine.pulse_goes_on(address)?;
    }
    machine.kill_ringwayd()?;
    machine.pulse_stands(THERE)?;
    machine.start_ringwayd()?;
    for (device, _, address, _) in guests {
        machine.front_is_back(device)?;
        machine.pulse_goes_on(address)?;
        // One whose rings were in use is relayed until its driver starts them anew.
        machine.data_path_is(device, "relay")?;
    }
    machine.kill_front("vm0")?;
    machine.start_front(&Front::new("vm0").of(THERE))?;
    machine.data_path_is("vm0", "hardware")?;
    for (device, _, address, _) in guests {
        machine.pulse_goes_on(address)?;
        machine.linux().stop_pulse(address)?;
        machine.stop_front(device)?;
        machine.ringway(&["dev", "del", device])?;
    }
    machine.stop_ringwayd()
}

fn pulse_goes_on(machine: &mut Machine<'_>) -> Result<()> {
    machine.step("a pulse is answered", |machine| {
        let received = machine.linux().pulse(THERE)?.received;
        machine.linux().pulse_resumed(THERE, received + 20, Instant::now()).map(|_| ())
    })
}

impl Machine<'_> {
    /// Waits until a device's rings are served so.
    pub(super) fn data_path_is(&mut self, device: &str, path: &str) -> Result<()> {
        self.step(&format!("{device} is served by {path}"), |machine| {
            let mut last = String::new();
            let is_so = wait_for("the data path", WATCHDOG, || {
                let shown = machine.ringway_json(&["dev", "show", device])?;
                let device = &shown["dev"][device];
                last = format!("{} {}", device["data_path"], device["notes"]);
                Ok((device["data_path"] == path).then_some(()))
            });
            is_so.map_err(|error| Error::new(format!("{error}: {last}")))
        })
    }

    /// How much of a processor the daemon's whole process takes, in percent, whatever goes on.
    fn cpu(&mut self) -> Result<f64> {
        let (before, begun) = (self.cpu_ticks()?, Instant::now());
        thread::sleep(CPU_MEASURED);
        let percent = (self.cpu_ticks()? - before) as f64 / begun.elapsed().as_secs_f64();
        Ok(percent)
    }

    /// The processor time of `ringwayd`, in hundredths of a second.
    fn cpu_ticks(&mut self) -> Result<u64> {
        let stat = self.sh("cat /proc/$(pidof ringwayd)/stat")?;
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        match (ticks(11), ticks(12)) {
            (Some(user), Some(system)) => Ok(user + system),
            _ => Err(Error::new(format!("no times in {stat}"))),
        }
    }
}

/// So long a process is looked at: its time is told in hundredths of a second.
const CPU_MEASURED: Duration = Duration::from_secs(3);
/// `ringway`'s exit code.
const USAGE: i32 = 2;
/// `ringway`'s exit code.
const NOT_IN_FORCE: i32 = 65;
