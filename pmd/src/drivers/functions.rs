//! The drivers of functions on the PCI bus, together: how functions are looked at, who drives them.

use super::ifc::{self, Ifc};
use super::igbvf::{self, Igbvf};
use super::nvme::{self, Nvme};
use super::virtio_pci::{self, VirtioPci};
use crate::bus::pci::{Device, Examiner};
use crate::bus::virt::VirtualBus;
use crate::driver::Driver;

/// What a function was like when it was looked at.
#[derive(Debug, Clone)]
pub enum Seen {
    /// A virtio network function.
    Virtio(virtio_pci::Seen),
    /// A virtual function of an 82576.
    Igbvf(igbvf::Seen),
    /// An NVMe controller.
    Nvme(nvme::Seen),
}

/// How functions are looked at, by what they are.
pub fn examiners() -> Vec<Examiner<Seen>> {
    // The first that wants a function looks at it: an IFC function is a virtio function, too.
    vec![ifc::EXAMINER, virtio_pci::EXAMINER, igbvf::EXAMINER, nvme::EXAMINER]
}

/// Who drives them; `bus` is where those that can be divided have their children.
pub fn drivers(bus: &VirtualBus) -> Vec<Box<dyn Driver<Device<Seen>>>> {
    vec![Box::new(Ifc::default()), Box::new(VirtioPci), Box::new(Igbvf), Box::new(Nvme(bus.clone()))]
}
