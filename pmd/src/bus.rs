//! Buses: access to hardware, and nothing else. A bus announces the devices that it has and withdraws those that it loses,
//! for as long as the process runs.

use std::os::fd::BorrowedFd;

// The PCI bus.
pub mod pci;
// Children of multi-function devices.
pub mod virt;

/// A bus. Owned by the control thread; waits for nobody.
pub trait Bus: Send {
    /// Access to one of its devices. Whoever has it has the device; it is let go when dropped.
    type Device;

    /// What it says of itself.
    fn info(&self) -> BusInfo;
    /// Readable when there may be something to take. None: it changes only by what control does, which looks then.
    fn news(&self) -> Option<BorrowedFd<'_>>;
    /// What came and went since the last time, in order; at the first time, what is there.
    fn take(&mut self) -> Vec<BusEvent<Self::Device>>;
}

/// What a bus says of itself: how its devices are named, also those that are not there yet.
#[derive(Debug, Clone, Copy)]
pub struct BusInfo {
    /// Its name, which comes before the `/` in a management device's: `pci`.
    pub name: &'static str,
    /// What an address looks like, which comes behind it: `DDDD:BB:DD.F`.
    pub shape: &'static str,
    /// Checks that a text can be an address; what is wrong with it, for people.
    pub check: fn(&str) -> Result<(), String>,
    /// What an operator does so that a device is there, of an address that passed the check.
    pub missing: fn(&str) -> String,
}

/// What happened on a bus.
#[derive(Debug)]
pub enum BusEvent<D> {
    /// A device is there.
    Announced {
        /// Where: unique on the bus, as its people write it (`0000:01:10.0`).
        address: String,
        /// Access to it.
        device: D,
    },
    /// A device is not there any more.
    Withdrawn {
        /// Where it was.
        address: String,
        /// Why, for people.
        why: String,
    },
}
