//! Management devices and devices: their life, what is asked of them, where they run, what is kept of them.

// The drivers that this build has.
pub mod drivers;
// The life of a device.
pub mod life;
// Which cores become workers, and what goes where.
pub mod placement;
// Management devices, devices, and the checks of a new one.
pub mod registry;

// MAC addresses: given, kept and drawn.
pub(crate) mod addresses;
// Front-ends that come and go.
pub(crate) mod connect;
// A device as control has it.
pub(crate) mod device;
// Management devices that are made and go.
pub(crate) mod mgmtdevs;
// What is asked of devices.
pub(crate) mod ops;
// Management devices and devices that come and go by themselves.
pub(crate) mod register;
// The state directory.
pub(crate) mod state;
// What was taken away is made again.
pub(crate) mod upkeep;
