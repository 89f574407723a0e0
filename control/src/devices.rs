//! Management devices and devices: their life, what is asked of them, where they run, what is kept of them.

// The checks of what is asked for.
pub mod checks;
// The drivers that this build has.
pub mod drivers;
// What there is to make devices with.
pub mod known;
// The life of a device.
pub mod life;
// The names that devices may have.
pub mod naming;
// Which cores become workers, and what goes where.
pub mod placement;
// Management devices and devices.
pub mod registry;

// What was asked for and is not there.
pub(crate) mod absent;
// MAC addresses: given, kept and drawn.
pub(crate) mod addresses;
// What a configuration file changes of what runs.
pub(crate) mod apply;
// Front-ends that come and go.
pub(crate) mod connect;
// When a change is in force.
pub(crate) mod deferral;
// A device as control has it.
pub(crate) mod device;
// What a change would do.
pub(crate) mod dry_run;
// Management devices that are made and go.
pub(crate) mod mgmtdevs;
// What is asked of devices.
pub(crate) mod ops;
// Functions of hardware that is divided.
pub(crate) mod ports;
// Management devices and devices that come and go by themselves.
pub(crate) mod register;
// The state directory.
pub(crate) mod state;
// What was taken away is made again.
pub(crate) mod upkeep;
// VLANs of bridges' ports.
pub(crate) mod vlans;
// Workers that are started, drained and ended.
pub(crate) mod workers;
