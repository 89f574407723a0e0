//! What an operator does with an NVMe controller and its virtual functions, and the front-ends of disks on them.

use super::programs::FRONT;
use super::{Machine, NVME, NVME_VFS};
use crate::error::Result;
use crate::lab::wait_for;
use crate::pace::WATCHDOG;
use crate::{ensure, fail};

impl Machine<'_> {
    /// Gives the controller to Linux, makes its virtual functions, brings them online and gives them to VFIO.
    pub fn nvme_vfs_online(&mut self) -> Result<()> {
        self.give_to_linux(NVME, "nvme")?;
        let controller = self.step("Linux drives the controller", |machine| {
            wait_for("the controller", WATCHDOG, || {
                let live = format!("cd /sys/bus/pci/devices/{NVME}/nvme && grep -l live */state || true");
                let found = machine.sh(&live).unwrap_or_default();
                Ok(found.split('/').next().filter(|name| !name.is_empty()).map(str::to_owned))
            })
        })?;
        self.make_vfs(NVME, NVME_VFS.len(), &NVME_VFS)?;
        for (number, function) in (1u32..).zip(NVME_VFS) {
            self.step(&format!("{function}: two vectors, three queues, online"), |machine| {
                for (action, resource, count) in
                    [(ASSIGN, VECTORS, 2), (ASSIGN, QUEUES, 3), (ONLINE, QUEUES, 0)]
                {
                    let dwords = [action | resource << 8 | number << 16, count];
                    let granted = machine.linux().nvme_admin(&controller, VIRTUALIZATION, dwords)?;
                    ensure!(granted >= count, "{granted} of {count} were granted");
                }
                Ok(())
            })?;
            self.give_to_vfio(function)?;
        }
        Ok(())
    }

    /// Makes a port of a controller, active, with this namespace and so many queue pairs; gives its management device.
    pub fn nvme_port(&mut self, mgmtdev: &str, number: u32, namespace: u32, pairs: u32) -> Result<String> {
        let (port, of) = (format!("{mgmtdev}/{number}"), number.to_string());
        self.ringway(&["port", "add", mgmtdev, "sfnum", &of])?;
        let (namespace, pairs) = (namespace.to_string(), pairs.to_string());
        let what = ["namespace", &namespace, "max_io_eqs", &pairs, "state", "active"];
        self.ringway(&[&["port", "function", "set", &port], &what[..]].concat())?;
        Ok(format!("auxiliary/{}.sf.{number}", mgmtdev.replacen('/', ".", 1)))
    }

    /// Starts a disk's load on a device; returns when its blocks are written.
    pub fn start_disk(&mut self, device: &str, packed: bool) -> Result<()> {
        let kind = if packed { "packed" } else { "split" };
        self.step(&format!("a disk's front-end on {device}: {kind} rings"), |machine| {
            let socket = format!("/run/ringway/dev/{device}.sock");
            let mut words = vec![FRONT, "disk", &socket];
            words.extend(packed.then_some("packed"));
            machine.guest.launch(&super::front::name(device), &words)?;
            machine.front_says(device, "ready")
        })
    }

    /// Waits until so many requests more of a disk's load have ended.
    pub fn disk_goes_on(&mut self, device: &str, more: u32) -> Result<()> {
        self.tell_front(device, &format!("more {more}"))
    }

    /// Waits until a disk's front-end has ended because its device is gone.
    pub fn disk_has_ended(&mut self, device: &str) -> Result<()> {
        self.step(&format!("the front-end on {device} is told by the end of its connection"), |machine| {
            let name = super::front::name(device);
            let code = wait_for("its end", WATCHDOG, || Ok(machine.guest.program(&name)?.code))?;
            let said = machine.end_program(&name)?;
            match code {
                1 if said.contains("connection") => Ok(()),
                _ => fail!("exit code {code}: {said}"),
            }
        })
    }

    /// Has an NVMe controller that is bound to vfio-pci, and nobody's, read an address that nobody mapped for it.
    pub fn lead_controller_astray(&mut self, function: &str) -> Result<()> {
        self.step(&format!("{function} is told to read what it must not"), |machine| {
            let report = machine.run(&[FRONT, "stray", function], WATCHDOG)?;
            ensure!(report.code == 0, "{}", report.output.trim());
            machine.say(report.output.trim());
            Ok(())
        })
    }
}

/// The admin command, and what it does.
const VIRTUALIZATION: u8 = 0x1c;
const ASSIGN: u32 = 8;
const ONLINE: u32 = 9;
const QUEUES: u32 = 0;
const VECTORS: u32 = 1;
