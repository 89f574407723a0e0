//! What is proved on a machine, by name. Each scenario leaves the machine so that the next can follow, and ends with a look at
//! the kernel's log.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use super::{Echoer, IGB, IGB_VFS, Machine, Model, VIRTIO, VIRTIO_VFS};
use crate::error::{Error, Result};
use crate::lab::Lab;
use crate::{ensure, fail};

/// One of them.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// By which it is asked for.
    pub name: &'static str,
    /// What it proves, in a line.
    pub proves: &'static str,
    /// On which machine.
    pub model: Model,
    act: fn(&mut Machine<'_>) -> Result<()>,
}

/// All of them; those of one machine in an order in which they can follow each other.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "ground",
        proves: "the machine: virtual functions, IOMMU groups, vfio-pci, the wire between Linux's own drivers",
        model: Model::Function,
        act: ground,
    },
    Scenario {
        name: "tap",
        proves: "testpmd answers Linux through Ringway and a TAP: split and packed rings, MTU 1500 and 9000, VLAN",
        model: Model::Function,
        act: tap,
    },
    Scenario {
        name: "virtio",
        proves: "a virtio function, relayed: mgmtdev, split and packed rings, MTU 1500 and 9000, VLAN",
        model: Model::Function,
        act: |machine| relayed(machine, VIRTIO, VIRTIO_MAC),
    },
    Scenario {
        name: "virtio-restart",
        proves: "a virtio function, relayed: its front-end killed, its daemon killed, both started again",
        model: Model::Function,
        act: |machine| restarted(machine, VIRTIO, VIRTIO_MAC),
    },
    Scenario {
        name: "virtio-removed",
        proves: "a virtio function, relayed: removed under traffic and added again",
        model: Model::Function,
        act: removed,
    },
    Scenario {
        name: "virtio-busy",
        proves: "a virtio function whose group another process has: who has it is told, and it is served when let go",
        model: Model::Function,
        act: busy,
    },
    Scenario {
        name: "virtio-unprivileged",
        proves: "a daemon without root, given the group: served; with too little memory to lock: told so; other driver: told so",
        model: Model::Function,
        act: unprivileged,
    },
    Scenario {
        name: "virtio-vf-ground",
        proves: "a virtio function's virtual functions: their groups, vfio-pci, the wire between Linux's own drivers",
        model: Model::VirtualFunctions,
        act: virtio_vf_ground,
    },
    Scenario {
        name: "virtio-vf",
        proves: "a virtio function's virtual function, relayed: the same as of a function",
        model: Model::VirtualFunctions,
        act: |machine| {
            virtual_functions_of_virtio(machine)?;
            relayed(machine, VIRTIO_VFS[0], VIRTIO_MAC)
        },
    },
    Scenario {
        name: "virtio-vf-taken",
        proves: "virtual functions taken away under traffic: the daemon lets go at once, and serves those that come again",
        model: Model::VirtualFunctions,
        act: taken,
    },
];

/// A scenario by its name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

/// Boots a machine of a model and plays all its scenarios; one that fails keeps no other from being played.
pub fn play_all(lab: &Lab, model: Model) -> Result<()> {
    let mut machine = Machine::boot(lab, model)?;
    let of_model: Vec<&Scenario> = ALL.iter().filter(|scenario| scenario.model == model).collect();
    let mut failed = Vec::new();
    for scenario in &of_model {
        if let Err(error) = scenario.play(&mut machine) {
            machine.say(format_args!("{} FAILED: {error}", scenario.name));
            failed.push(format!("{}: {error}", scenario.name));
        }
    }
    if !failed.is_empty() {
        fail!("{} of {} scenarios failed:\n{}", failed.len(), of_model.len(), failed.join("\n"));
    }
    machine.power_off()
}

impl Scenario {
    /// Boots a machine for this scenario alone, and plays it.
    pub fn play_alone(&self, lab: &Lab) -> Result<()> {
        let mut machine = Machine::boot(lab, self.model)?;
        self.play(&mut machine)?;
        machine.power_off()
    }

    fn play(&self, machine: &mut Machine<'_>) -> Result<()> {
        let begun = Instant::now();
        machine.say(format_args!("---- {}: {}", self.name, self.proves));
        // The boot's own messages, or what a failed one has left, are no part of it.
        machine.kernel_log()?;
        // A way to an address that an earlier one used must not lead into its interface.
        machine.ip("-4 address flush scope global")?;
        let outcome = (self.act)(machine);
        machine.end_programs();
        // Read whatever happened: it may say why.
        let log = machine.kernel_log()?;
        outcome.map_err(|error| Error::new(format!("{error}\nthe kernel's log ends:\n{}", log.end())))?;
        machine.step("the kernel's log is clean", |_| log.clean())?;
        machine.say(format_args!("{}: {:.1} s", self.name, begun.elapsed().as_secs_f64()));
        Ok(())
    }
}

fn ground(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.make_vfs(IGB, IGB_VFS.len(), &IGB_VFS)?;
    for (number, mac) in IGB_VF_MACS.iter().enumerate() {
        machine.set_vf_mac(&pf, number, mac)?;
    }
    machine.link_is_back(&pf)?;
    linux_answers_linux(machine, &pf, VIRTIO)?;
    let functions = [IGB_VFS[0], IGB_VFS[1], VIRTIO];
    bound_and_unbound(machine, &functions)?;
    machine.give_to_linux(VIRTIO, "virtio-pci")?;
    machine.interface_of(VIRTIO).map(|_| ())
}

fn virtual_functions_of_virtio(machine: &mut Machine<'_>) -> Result<()> {
    machine.pf_up(VIRTIO)?;
    machine.make_vfs(VIRTIO, VIRTIO_VFS.len(), &VIRTIO_VFS)
}

fn virtio_vf_ground(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    virtual_functions_of_virtio(machine)?;
    machine.give_to_linux(VIRTIO_VFS[0], "virtio-pci")?;
    linux_answers_linux(machine, &pf, VIRTIO_VFS[0])?;
    bound_and_unbound(machine, &VIRTIO_VFS)?;
    machine.remove_vfs(VIRTIO)
}

/// Every function has a group of its own, can be given to vfio-pci, and taken from it.
fn bound_and_unbound(machine: &mut Machine<'_>, functions: &[&str]) -> Result<()> {
    let mut groups = Vec::new();
    for function in functions {
        groups.push(machine.group_of_its_own(function)?);
        machine.give_to_vfio(function)?;
    }
    groups.dedup();
    ensure!(groups.len() == functions.len(), "functions share groups: {groups:?}");
    for function in functions {
        machine.take_from_vfio(function)?;
    }
    Ok(())
}

/// Linux's own drivers on both sides of the wire: when this fails, look at the machine first.
fn linux_answers_linux(machine: &mut Machine<'_>, pf: &str, function: &str) -> Result<()> {
    let other = machine.interface_of(function)?;
    machine.step(&format!("{other} of {function} is in a namespace of its own, up"), |machine| {
        machine.ip("netns add other")?;
        machine.ip(&format!("link set {other} netns other"))?;
        machine.ip(&format!("-n other address add {THERE}/24 dev {other}"))?;
        machine.ip(&format!("-n other link set {other} up")).map(|_| ())
    })?;
    machine.set_address(pf, &format!("{HERE}/24"))?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.step("the namespace is gone", |machine| {
        machine.ip(&format!("-n other link set {other} netns 1"))?;
        machine.ip("netns delete other").map(|_| ())
    })
}

fn tap(machine: &mut Machine<'_>) -> Result<()> {
    machine.start_ringwayd()?;
    for packed in [false, true] {
        machine.ringway(&["dev", "add", "name", "vm0", "mgmtdev", "tap/rwt0", "mtu", "9000"])?;
        machine.start_testpmd(&Echoer::new("vm0", packed))?;
        machine.set_address("rwt0", &format!("{HERE}/24"))?;
        machine.ip("link set rwt0 up")?;
        machine.link_is_back("rwt0")?;
        machine.pings_of_all_sizes(THERE, 1500)?;
        machine.pings_of_all_sizes(THERE, 9000)?;
        machine.make_vlan("rwt0", 7, "10.9.7.1/24")?;
        machine.pings_of_all_sizes(IpAddr::V4(Ipv4Addr::new(10, 9, 7, 2)), 1500)?;
        machine.stop_testpmd()?;
        machine.ringway(&["dev", "del", "vm0"])?;
    }
    machine.stop_ringwayd()
}

/// Linux on the igb pings what testpmd answers through Ringway on a virtio function.
fn relayed(machine: &mut Machine<'_>, function: &str, mac: &str) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_mtu(&pf, 9000)?;
    machine.give_to_vfio(function)?;
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(function)?;
    for packed in [false, true] {
        let words = ["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev, "mac", mac, "mtu", "9000"];
        machine.ringway(&words)?;
        machine.start_testpmd(&Echoer { mac: Some(mac.into()), ..Echoer::new("vm0", packed) })?;
        machine.set_address(&pf, &format!("{HERE}/24"))?;
        machine.pings_of_all_sizes(THERE, 1500)?;
        machine.pings_of_all_sizes(THERE, 9000)?;
        machine.make_vlan(&pf, 7, "10.9.7.1/24")?;
        machine.pings_of_all_sizes(IpAddr::V4(Ipv4Addr::new(10, 9, 7, 2)), 1500)?;
        machine.ip(&format!("link delete {pf}.7"))?;
        machine.stop_testpmd()?;
        machine.ringway(&["dev", "del", "vm0"])?;
    }
    machine.stop_ringwayd()?;
    machine.set_mtu(&pf, 1500)
}

/// A relayed function serves again after either side was killed.
fn restarted(machine: &mut Machine<'_>, function: &str, mac: &str) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    machine.give_to_vfio(function)?;
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(function)?;
    machine.ringway(&["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev, "mac", mac])?;
    let echoer = Echoer { mac: Some(mac.into()), ..Echoer::new("vm0", true) };
    machine.start_testpmd(&echoer)?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.kill_testpmd()?;
    machine.start_testpmd(&echoer)?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.kill_ringwayd()?;
    machine.kill_testpmd()?;
    machine.start_ringwayd()?;
    // Its device waits for the function.
    machine.function_is_shown(function)?;
    machine.start_testpmd(&echoer)?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.stop_testpmd()?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.stop_ringwayd()
}

/// `dev del` under traffic makes the function quiet and answers soon; the function can be had again.
fn removed(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    machine.give_to_vfio(VIRTIO)?;
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(VIRTIO)?;
    let words = ["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev, "mac", VIRTIO_MAC];
    let echoer = Echoer { mac: Some(VIRTIO_MAC.into()), ..Echoer::new("vm0", true) };
    machine.ringway(&words)?;
    machine.start_testpmd(&echoer)?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.linux().start_pulse(THERE, PULSE_MS)?;
    machine.step("a pulse is answered", |machine| {
        machine.linux().pulse_resumed(THERE, 20, Instant::now()).map(|_| ())
    })?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.step("the pulse is answered no more", |machine| {
        machine.linux().pulse_stalled(THERE)?;
        machine.linux().stop_pulse(THERE).map(|_| ())
    })?;
    machine.kill_testpmd()?;
    machine.ringway(&words)?;
    machine.start_testpmd(&echoer)?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.stop_testpmd()?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.stop_ringwayd()
}

/// The group of a function is another process's.
fn busy(machine: &mut Machine<'_>) -> Result<()> {
    machine.pf_up(IGB)?;
    machine.give_to_vfio(VIRTIO)?;
    let group = machine.group_of_its_own(VIRTIO)?;
    let holder = machine.step(&format!("another process opens group {group}"), |machine| {
        let line = format!("exec 5<>/dev/vfio/{group}; echo held; exec /bin/sleep 1000");
        machine.hold(&line)
    })?;
    machine.start_ringwayd()?;
    machine.log_says("ringwayd", &format!("is in use by process {holder} ("))?;
    machine.release()?;
    machine.function_is_shown(VIRTIO)?;
    machine.stop_ringwayd()
}

/// Access to the group is all that a daemon needs, with memory that it may lock.
fn unprivileged(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    machine.give_to_linux(VIRTIO, "virtio-pci")?;
    machine.start_ringwayd()?;
    let mgmtdev = format!("pci/{VIRTIO}");
    let words = ["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev, "mac", VIRTIO_MAC];
    machine.refused(&words, NOT_FOUND, "driver_override")?;
    machine.stop_ringwayd()?;
    machine.give_to_vfio(VIRTIO)?;
    let echoer = Echoer { mac: Some(VIRTIO_MAC.into()), ..Echoer::new("vm0", false) };
    machine.start_ringwayd_unprivileged(VIRTIO, "8192")?;
    machine.function_is_shown(VIRTIO)?;
    machine.ringway(&words)?;
    machine.begin_testpmd(&echoer)?;
    machine.log_says("ringwayd", "RLIMIT_MEMLOCK")?;
    machine.kill_testpmd()?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.stop_ringwayd()?;
    machine.start_ringwayd_unprivileged(VIRTIO, "unlimited")?;
    machine.function_is_shown(VIRTIO)?;
    machine.ringway(&words)?;
    machine.start_testpmd(&echoer)?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.stop_testpmd()?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.stop_ringwayd()
}

/// The host takes its virtual functions back while a guest uses one.
fn taken(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    virtual_functions_of_virtio(machine)?;
    machine.give_to_vfio(VIRTIO_VFS[0])?;
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(VIRTIO_VFS[0])?;
    machine.ringway(&["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev, "mac", VIRTIO_MAC])?;
    let echoer = Echoer { mac: Some(VIRTIO_MAC.into()), ..Echoer::new("vm0", false) };
    machine.start_testpmd(&echoer)?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.linux().start_pulse(THERE, PULSE_MS)?;
    machine.step("a pulse is answered", |machine| {
        machine.linux().pulse_resumed(THERE, 20, Instant::now()).map(|_| ())
    })?;
    machine.remove_vfs(VIRTIO)?;
    machine.step("the pulse is answered no more", |machine| {
        machine.linux().pulse_stalled(THERE)?;
        machine.linux().stop_pulse(THERE).map(|_| ())
    })?;
    machine.function_is_gone(VIRTIO_VFS[0])?;
    machine.ringway(&["dev", "show"])?;
    machine.kill_testpmd()?;
    virtual_functions_of_virtio(machine)?;
    machine.give_to_vfio(VIRTIO_VFS[0])?;
    machine.function_is_shown(VIRTIO_VFS[0])?;
    machine.start_testpmd(&echoer)?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.stop_testpmd()?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.stop_ringwayd()
}

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));
const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2));
/// The virtio function's own, or any for a virtual function.
const VIRTIO_MAC: &str = "52:54:00:00:02:01";
/// `ringway`'s exit code.
const NOT_FOUND: i32 = 3;
const PULSE_MS: u64 = 10;
const IGB_VF_MACS: [&str; 2] = ["52:54:00:00:01:01", "52:54:00:00:01:02"];
