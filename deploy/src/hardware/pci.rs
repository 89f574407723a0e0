//! What an operator does with PCI functions before Ringway drives them: virtual functions made, addresses set, drivers changed.

use std::time::Duration;

use super::Machine;
use crate::ensure;
use crate::error::{Error, Result};
use crate::lab::wait_for;

impl Machine<'_> {
    /// Sets a function's network interface up and waits for its link; gives the interface's name.
    pub fn pf_up(&mut self, function: &str) -> Result<String> {
        self.step(&format!("{function} up, with its link"), |machine| {
            let interface = machine.interface_of(function)?;
            machine.guest.set_up(&interface)?;
            machine.await_link(&interface)?;
            Ok(interface)
        })
    }

    /// Makes that many virtual functions, to which no driver of the kernel's is bound.
    pub fn make_vfs(&mut self, function: &str, count: usize, places: &[&str]) -> Result<()> {
        let now = self.sh(&format!("cat {}/sriov_numvfs", folder(function)))?;
        if now == count.to_string() {
            return Ok(());
        }
        self.step(&format!("{function}: {count} virtual functions"), |machine| {
            let folder = folder(function);
            machine.sh(&format!("echo 0 > {folder}/sriov_numvfs"))?;
            machine.sh(&format!("echo 0 > {folder}/sriov_drivers_autoprobe"))?;
            machine.sh(&format!("echo {count} > {folder}/sriov_numvfs"))?;
            for place in places.iter().take(count) {
                machine.sh(&format!("test -d {}", self::folder(place)))?;
            }
            Ok(())
        })
    }

    /// Removes a function's virtual functions.
    pub fn remove_vfs(&mut self, function: &str) -> Result<()> {
        self.step(&format!("{function}: no virtual functions"), |machine| {
            machine.sh(&format!("echo 0 > {}/sriov_numvfs", folder(function))).map(|_| ())
        })
    }

    /// Sets the Ethernet address of a virtual function of an interface, by number.
    pub fn set_vf_mac(&mut self, interface: &str, number: usize, mac: &str) -> Result<()> {
        self.step(&format!("{interface}: virtual function {number} is {mac}"), |machine| {
            machine.ip(&format!("link set {interface} vf {number} mac {mac}")).map(|_| ())
        })
    }

    /// Waits for an interface's link. Every reset of a physical function, so a new MTU or number of virtual functions, takes it
    /// away, and what is sent before it is back is lost.
    pub fn await_link(&mut self, interface: &str) -> Result<()> {
        wait_for(&format!("link of {interface}"), LINK_LIMIT, || {
            Ok(self.guest.nic(interface)?.carrier.then_some(()))
        })
    }

    /// [`Machine::await_link`] as a step.
    pub fn link_is_back(&mut self, interface: &str) -> Result<()> {
        self.step(&format!("{interface}: link"), |machine| machine.await_link(interface))
    }

    /// The name of a function's network interface.
    pub fn interface_of(&mut self, function: &str) -> Result<String> {
        let place = if function.starts_with(VIRTIO_BUS) { "virtio*/net" } else { "net" };
        let name = self.sh(&format!("ls {}/{place}", folder(function)))?;
        ensure!(
            !name.is_empty() && !name.contains(char::is_whitespace),
            "{function} has the interfaces {name}"
        );
        Ok(name)
    }

    /// A function's IOMMU group, in which no other function may be.
    pub fn group_of_its_own(&mut self, function: &str) -> Result<u32> {
        let members = self.sh(&format!("ls {}/iommu_group/devices", folder(function)))?;
        ensure!(members == function, "{function} shares its IOMMU group: {members}");
        let group = self.sh(&format!("basename $(readlink {}/iommu_group)", folder(function)))?;
        group.parse().map_err(|_| Error::new(format!("{function}: {group} is no group")))
    }

    /// The driver that is bound to a function.
    pub fn driver_of(&mut self, function: &str) -> Result<Option<String>> {
        let link = self.sh(&format!("readlink {}/driver || true", folder(function)))?;
        Ok(link.rsplit('/').next().filter(|name| !name.is_empty()).map(str::to_string))
    }

    /// Gives a function to VFIO: takes its driver off and binds vfio-pci, as `driverctl set-override` does.
    pub fn give_to_vfio(&mut self, function: &str) -> Result<()> {
        if self.driver_of(function)?.as_deref() == Some(VFIO) {
            return Ok(());
        }
        let group = self.group_of_its_own(function)?;
        self.step(&format!("{function} given to vfio-pci, group {group}"), |machine| {
            machine.bind_to_vfio(function)?;
            machine.sh(&format!("test -c /dev/vfio/{group}")).map(|_| ())
        })
    }

    /// The same without a look at its group.
    pub fn bind_to_vfio(&mut self, function: &str) -> Result<()> {
        self.override_driver(function, VFIO)
    }

    /// Takes a function from VFIO: no driver is bound to it.
    pub fn take_from_vfio(&mut self, function: &str) -> Result<()> {
        if self.driver_of(function)?.as_deref() != Some(VFIO) {
            return Ok(());
        }
        self.step(&format!("{function} taken from vfio-pci"), |machine| {
            let folder = folder(function);
            machine
                .sh(&format!("echo {function} > {folder}/driver/unbind; echo > {folder}/driver_override"))?;
            ensure!(machine.driver_of(function)?.is_none(), "it still has a driver");
            Ok(())
        })
    }

    /// Gives a function to one of the kernel's own drivers.
    pub fn give_to_linux(&mut self, function: &str, driver: &str) -> Result<()> {
        if self.driver_of(function)?.as_deref() == Some(driver) {
            return Ok(());
        }
        self.step(&format!("{function} given to {driver}"), |machine| {
            machine.override_driver(function, driver)
        })
    }

    /// Runs iproute2's `ip` with these words, which must succeed: busybox's own does not know them all.
    pub fn ip(&mut self, words: &str) -> Result<String> {
        self.sh(&format!("{} {words}", super::programs::IP))
    }

    /// By name: a virtual function that was made without drivers takes no other.
    fn override_driver(&mut self, function: &str, driver: &str) -> Result<()> {
        let folder = folder(function);
        self.sh(&format!("echo {driver} > {folder}/driver_override"))?;
        if self.driver_of(function)?.is_some() {
            self.sh(&format!("echo {function} > {folder}/driver/unbind"))?;
        }
        self.sh(&format!("echo {function} > /sys/bus/pci/drivers_probe"))?;
        let bound = self.driver_of(function)?;
        ensure!(bound.as_deref() == Some(driver), "{driver} did not take it: its driver is {bound:?}");
        Ok(())
    }
}

/// Where the kernel shows a function.
pub(super) fn folder(function: &str) -> String {
    format!("/sys/bus/pci/devices/{function}")
}

/// The igb's physical function.
pub const IGB: &str = "0000:01:00.0";
/// Its virtual functions, the first two.
pub const IGB_VFS: [&str; 2] = ["0000:01:10.0", "0000:01:10.2"];
/// The virtio function, which has virtual functions where the machine's model has them.
pub const VIRTIO: &str = "0000:02:00.0";
/// The virtio function's virtual functions.
pub const VIRTIO_VFS: [&str; 2] = ["0000:02:00.1", "0000:02:00.2"];
/// The NVMe controller.
pub const NVME: &str = "0000:03:00.0";
/// Its virtual functions.
pub const NVME_VFS: [&str; 2] = ["0000:03:00.1", "0000:03:00.2"];
const VIRTIO_BUS: &str = "0000:02:";
const VFIO: &str = "vfio-pci";
/// It takes up to 3 s on a free machine, and 5 s after a link that was down.
const LINK_LIMIT: Duration = Duration::from_secs(40);
