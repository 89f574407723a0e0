//! `pci/DDDD:BB:DD.F`: a network VF of Intel's IFC cards (N3000, C5000X-PL): a virtio function whose rings begin anywhere, by a block
//! of registers beside virtio's. So a guest goes to hardware at any time, and comes back to it at once. All else is
//! [`super::virtio_pci`]'s.
//!
//! No emulation of these cards exists, and none was at hand: the driver is tried on a model in the process alone.

use super::functions;
use super::virtio_pci::{self, VirtioPci};
use crate::bus::pci::{Device, Examiner, Id};
use crate::driver::Driver;
use crate::vdpa::{DriverError, ManagementDevice, MgmtInfo};

/// The driver.
#[derive(Debug, Default)]
pub struct Ifc(VirtioPci);

impl Driver<Device<functions::Seen>> for Ifc {
    fn name(&self) -> &'static str {
        "ifc"
    }

    fn at_most(&self) -> MgmtInfo {
        self.0.at_most()
    }

    fn matches(&self, device: &Device<functions::Seen>) -> bool {
        is_ifc(device.id)
    }

    fn probe(
        &mut self,
        name: &str,
        device: Device<functions::Seen>,
    ) -> Result<Box<dyn ManagementDevice>, DriverError> {
        self.0.probe(name, device)
    }
}

/// How its functions are looked at.
pub const EXAMINER: Examiner<functions::Seen> =
    Examiner { wants: is_ifc, look: |function| virtio_pci::look_at_movable(&**function) };

fn is_ifc(id: Id) -> bool {
    IDS.contains(&[id.vendor, id.device, id.subsystem_vendor, id.subsystem])
}

/// Vendor, device, and those of the board.
const IDS: [[u16; 4]; 2] = [[0x1af4, 0x1041, 0x8086, 0x001a], [0x1af4, 0x1000, 0x8086, 0x0001]];
