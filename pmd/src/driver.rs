//! Hardware drivers on their bus: who drives what the bus announces.
//!
//! ```text
//!   Bus --Announced--> first driver that matches --probe--> ManagementDevice --> subsystem registers it
//!       --Withdrawn--> its management device --> subsystem unregisters it, and revokes what it made
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::BorrowedFd;

use crate::bus::{Bus, BusEvent, BusInfo};
use crate::vdpa::{DriverError, ManagementDevice, MgmtInfo};

/// A driver of devices of one bus. Called by the control thread; waits for nobody: what takes long (a reset, mapping) is
/// for the devices' sessions.
pub trait Driver<D>: Send {
    /// Its name, for people.
    fn name(&self) -> &'static str;
    /// What its management devices can be at most, with what their names begin with, if that is not any device's of the bus: for
    /// checks of what is asked of one that is not there yet.
    fn at_most(&self) -> MgmtInfo;
    /// It drives this device.
    fn matches(&self, device: &D) -> bool;
    /// Takes the device over. `name` is the management device's.
    ///
    /// # Errors
    /// It cannot be driven; it is let go.
    fn probe(&mut self, name: &str, device: D) -> Result<Box<dyn ManagementDevice>, DriverError>;
}

/// A bus with its drivers, as the subsystem sees it.
pub trait Attachments: Send {
    /// What the bus says of itself.
    fn info(&self) -> BusInfo;
    /// Readable when there may be something to take.
    fn news(&self) -> Option<BorrowedFd<'_>>;
    /// What changed since the last time.
    fn take(&mut self) -> Vec<Change>;
}

/// What changed of a bus's devices.
pub enum Change {
    /// A driver has one: it is to be registered.
    Attached(Box<dyn ManagementDevice>),
    /// A driver matched and could not have it.
    Failed {
        /// The management device's name, had it been made.
        name: String,
        /// The driver's.
        driver: &'static str,
        /// Why.
        error: DriverError,
    },
    /// One is gone: its management device is to be unregistered, if it was made.
    Detached {
        /// The management device's name.
        name: String,
        /// Why, for people.
        why: String,
    },
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Attached(mgmtdev) => f.debug_tuple("Attached").field(&mgmtdev.info().name).finish(),
            Change::Failed { name, driver, error } => f
                .debug_struct("Failed")
                .field("name", name)
                .field("driver", driver)
                .field("error", error)
                .finish(),
            Change::Detached { name, why } => {
                f.debug_struct("Detached").field("name", name).field("why", why).finish()
            }
        }
    }
}

/// A bus and its drivers. What no driver matches is let go at once.
pub struct Attached<B: Bus> {
    bus: B,
    drivers: Vec<Box<dyn Driver<B::Device>>>,
    /// Management devices by address, those that a driver could not make too.
    driven: BTreeMap<String, String>,
}

impl<B: Bus> fmt::Debug for Attached<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached")
            .field("bus", &self.bus.info().name)
            .field("driven", &self.driven)
            .finish_non_exhaustive()
    }
}

impl<B: Bus> Attached<B> {
    /// Drivers are asked in this order.
    pub fn new(bus: B, drivers: Vec<Box<dyn Driver<B::Device>>>) -> Attached<B> {
        Attached { bus, drivers, driven: BTreeMap::new() }
    }

    fn announced(&mut self, address: String, device: B::Device) -> Option<Change> {
        let driver = self.drivers.iter_mut().find(|driver| driver.matches(&device))?;
        let name = format!("{}/{address}", self.bus.info().name);
        match driver.probe(&name, device) {
            Ok(mgmtdev) => {
                self.driven.insert(address, name);
                Some(Change::Attached(mgmtdev))
            }
            Err(error) => {
                self.driven.insert(address, name.clone());
                Some(Change::Failed { name, driver: driver.name(), error })
            }
        }
    }
}

impl<B: Bus> Attachments for Attached<B> {
    fn info(&self) -> BusInfo {
        self.bus.info()
    }

    fn news(&self) -> Option<BorrowedFd<'_>> {
        self.bus.news()
    }

    fn take(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for event in self.bus.take() {
            changes.extend(match event {
                BusEvent::Announced { address, device } => self.announced(address, device),
                BusEvent::Withdrawn { address, why } => {
                    self.driven.remove(&address).map(|name| Change::Detached { name, why })
                }
            });
        }
        changes
    }
}
