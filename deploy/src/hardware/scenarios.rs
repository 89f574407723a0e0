//! What is proved on a machine, by name. Each scenario leaves the machine so that the next can follow, and ends with a look at
//! the kernel's log.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use super::{Machine, Model, VIRTIO, VIRTIO_VFS};
use crate::error::{Error, Result};
use crate::fail;
use crate::lab::Lab;

mod configuration;
mod ground;
mod hardware;
mod igbvf;
mod nvme;
mod pairs;
mod relay;
mod safety;
mod traffic;
mod uplink;

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
        act: ground::ground,
    },
    Scenario {
        name: "tap",
        proves: "guests answer Linux through Ringway and a TAP: split and packed rings, MTU 1500 and 9000, VLAN",
        model: Model::Function,
        act: ground::tap,
    },
    Scenario {
        name: "virtio",
        proves: "a virtio function, relayed: mgmtdev, split and packed rings, MTU 1500 and 9000, VLAN",
        model: Model::Function,
        act: |machine| relay::relayed(machine, VIRTIO, VIRTIO_MAC),
    },
    Scenario {
        name: "virtio-hardware",
        proves: "a virtio function in hardware: no CPU; taken to the relay under traffic and back, removed under traffic",
        model: Model::Function,
        act: |machine| hardware::in_hardware(machine, VIRTIO, VIRTIO_MAC),
    },
    Scenario {
        name: "virtio-restart",
        proves: "a virtio function, relayed: its front-end killed, its daemon killed, both started again",
        model: Model::Function,
        act: |machine| relay::restarted(machine, VIRTIO, VIRTIO_MAC),
    },
    Scenario {
        name: "virtio-disturbed",
        proves: "a virtio function under traffic: links down and up on either side, its front-end killed; nothing leaks",
        model: Model::Function,
        act: traffic::disturbed,
    },
    Scenario {
        name: "virtio-removed",
        proves: "a virtio function removed under traffic, of a guest of 512 MiB too: the answer first; nothing leaks; made anew at once",
        model: Model::Function,
        act: traffic::removed,
    },
    Scenario {
        name: "virtio-unplugged",
        proves: "a virtio function pulled out under traffic, and another put in its place: the stored device serves again",
        model: Model::Function,
        act: traffic::unplugged,
    },
    Scenario {
        name: "virtio-reset",
        proves: "a virtio function that somebody resets under traffic, relayed and in hardware: its guest goes on",
        model: Model::Function,
        act: traffic::reset,
    },
    Scenario {
        name: "virtio-vectors",
        proves: "a virtio function with too few interrupt vectors: told so, by each command; relayed with two",
        model: Model::Function,
        act: configuration::few_vectors,
    },
    Scenario {
        name: "virtio-astray",
        proves: "the positive control: a virtio function that reads where it must not is in the kernel's log",
        model: Model::Function,
        act: safety::led_astray,
    },
    Scenario {
        name: "virtio-busy",
        proves: "a virtio function whose group another process has: who has it is told, and it is served when let go",
        model: Model::Function,
        act: configuration::busy,
    },
    Scenario {
        name: "virtio-unprivileged",
        proves: "a daemon without root, given the group: served; with too little memory to lock: told so; other driver: told so",
        model: Model::Function,
        act: configuration::unprivileged,
    },
    Scenario {
        name: "virtio-uplink",
        proves: "a virtio function as a bridge's uplink: Linux and two guests behind it, MTU 1500 and 9000, VLAN",
        model: Model::Function,
        act: uplink::of_function,
    },
    Scenario {
        name: "igbvf",
        proves: "a virtual function of the igb, relayed: split and packed rings, MTU 1500 and 9000, VLAN",
        model: Model::Function,
        act: igbvf::relayed,
    },
    Scenario {
        name: "igbvf-pf",
        proves: "a virtual function of the igb, relayed: its PF down and up, reset, its virtual functions taken away and made again",
        model: Model::Function,
        act: igbvf::pf,
    },
    Scenario {
        name: "igbvf-uplink",
        proves: "a virtual function of the igb as a bridge's uplink: a filter a guest, once its PF trusts it",
        model: Model::Function,
        act: uplink::of_igb,
    },
    Scenario {
        name: "nvme",
        proves: "an NVMe controller: disks on queue pairs of its own each, under load while it is reset, and one is taken away",
        model: Model::Function,
        act: nvme::queue_pairs,
    },
    Scenario {
        name: "nvme-vf",
        proves: "virtual functions of an NVMe controller: a disk, while the IOMMU stops the other one; taken away under load, and back",
        model: Model::Function,
        act: nvme::virtual_functions,
    },
    Scenario {
        name: "virtio-vf-ground",
        proves: "a virtio function's virtual functions: their groups, vfio-pci, the wire between Linux's own drivers",
        model: Model::VirtualFunctions,
        act: ground::virtio_vf_ground,
    },
    Scenario {
        name: "virtio-vf",
        proves: "a virtio function's virtual function, relayed: the same as of a function",
        model: Model::VirtualFunctions,
        act: |machine| {
            virtual_functions_of_virtio(machine)?;
            relay::relayed(machine, VIRTIO_VFS[0], VIRTIO_MAC)
        },
    },
    Scenario {
        name: "virtio-vf-hardware",
        proves: "a virtual function in hardware: the same as of a function",
        model: Model::VirtualFunctions,
        act: |machine| {
            virtual_functions_of_virtio(machine)?;
            hardware::in_hardware(machine, VIRTIO_VFS[0], VIRTIO_MAC)
        },
    },
    Scenario {
        name: "virtio-vf-neighbours",
        proves: "two virtual functions: no copy of payload; one guest stopped, or with a stray address, is nothing to the other",
        model: Model::VirtualFunctions,
        act: safety::neighbours,
    },
    Scenario {
        name: "virtio-vf-astray",
        proves: "two virtual functions in hardware: one guest's stray address is stopped by the IOMMU, and is nothing to the other",
        model: Model::VirtualFunctions,
        act: safety::astray_in_hardware,
    },
    Scenario {
        name: "virtio-vf-killed",
        proves: "two virtual functions, one in hardware: the daemon killed and started again, their front-ends go on",
        model: Model::VirtualFunctions,
        act: hardware::killed,
    },
    Scenario {
        name: "virtio-vf-taken",
        proves: "virtual functions taken away under traffic: the daemon lets go at once, serves what comes again, and says what does not",
        model: Model::VirtualFunctions,
        act: traffic::taken,
    },
    Scenario {
        name: "virtio-vf-uplink",
        proves: "a virtual function as a bridge's uplink, taken away under traffic: the guests stay, and it comes back",
        model: Model::VirtualFunctions,
        act: uplink::of_virtual_function,
    },
    Scenario {
        name: "no-iommu",
        proves: "a machine without an IOMMU: the cure is told, and no other",
        model: Model::NoIommu,
        act: configuration::no_iommu,
    },
    Scenario {
        name: "virtio-pairs",
        proves: "a virtio function with four queue pairs: how many are used changes under traffic; testpmd with 2 and 4",
        model: Model::QueuePairs,
        act: pairs::changed,
    },
];

/// A scenario by its name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

/// Boots a machine of a model and plays all its scenarios.
pub fn play_all(lab: &Lab, model: Model) -> Result<()> {
    let of_model: Vec<&Scenario> = ALL.iter().filter(|scenario| scenario.model == model).collect();
    play(lab, model, &of_model)
}

/// Boots a machine of a model and plays some scenarios on it; one that fails keeps no other from being played.
pub fn play(lab: &Lab, model: Model, scenarios: &[&Scenario]) -> Result<()> {
    let mut machine = Machine::boot(lab, model)?;
    let mut failed = Vec::new();
    for scenario in scenarios {
        if let Err(error) = scenario.play(&mut machine) {
            machine.say(format_args!("{} FAILED: {error}", scenario.name));
            failed.push(format!("{}: {error}", scenario.name));
        }
    }
    if !failed.is_empty() {
        fail!("{} of {} scenarios failed:\n{}", failed.len(), scenarios.len(), failed.join("\n"));
    }
    machine.power_off()
}

impl Scenario {
    fn play(&self, machine: &mut Machine<'_>) -> Result<()> {
        let begun = Instant::now();
        machine.say(format_args!("---- {}: {}", self.name, self.proves));
        // The boot's own messages, or what a failed one has left, are no part of it.
        machine.kernel_log()?;
        // A way to an address that an earlier one used must not lead into its interface.
        machine.ip("-4 address flush scope global")?;
        for address in [HERE, THERE, NEIGHBOUR] {
            // None need be there.
            let _ = machine.linux().stop_pulse(address);
        }
        // Nor must devices that a failed one has left.
        machine.sh("rm -rf /var/lib/ringway /run/ringway")?;
        let outcome = (self.act)(machine);
        let said = outcome.as_ref().map_or_else(|_| machine.end_of_log(), |()| String::new());
        machine.end_programs();
        // Read whatever happened: it may say why.
        let log = machine.kernel_log()?;
        outcome.map_err(|error| {
            let end = log.end();
            Error::new(format!("{error}\nringwayd's log ends:\n{said}\n\nthe kernel's log ends:\n{end}"))
        })?;
        machine.step("the kernel's log is clean", |_| log.clean())?;
        machine.say(format_args!("{}: {:.1} s", self.name, begun.elapsed().as_secs_f64()));
        Ok(())
    }
}

fn virtual_functions_of_virtio(machine: &mut Machine<'_>) -> Result<()> {
    machine.pf_up(VIRTIO)?;
    machine.make_vfs(VIRTIO, VIRTIO_VFS.len(), &VIRTIO_VFS)
}

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));
const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2));
/// Of a second guest.
const NEIGHBOUR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 3));
/// The virtio function's own, or any for a virtual function.
const VIRTIO_MAC: &str = "52:54:00:00:02:01";
// `ringway`'s exit codes.
const RUNTIME: i32 = 1;
const NOT_FOUND: i32 = 3;
const CONFLICT: i32 = 4;
const PULSE_MS: u64 = 10;
