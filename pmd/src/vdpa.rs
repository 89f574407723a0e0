//! The contract between drivers and the vDPA subsystem: what a driver must offer, and what it is given.
//!
//! ```text
//!   bus --announces--> Driver --probe--> ManagementDevice --register--> subsystem
//!                                              |  create
//!                                              v
//!   subsystem, session --operations--> VdpaDevice --upcalls--> DeviceHost
//! ```
//!
//! Who knows the kernel's `vdpa.h` finds here what became of its operations; those not named (address space ids, `resume`,
//! `get_vq_irq`, vendor statistics) have no counterpart. *Control* is the control thread: it never waits, so
//! what it calls must not wait for a peer, a worker or the kernel. *Session* is the thread of the device's session, alone
//! in having the device while it lasts: it may wait until the deadline that it gives. *R*: required; else there is a
//! default that does nothing, or refuses by name.
//!
//! | operation | by | when | | pairs with | in the kernel |
//! | --- | --- | --- | --- | --- | --- |
//! | [`Driver::matches`](crate::driver::Driver::matches), `probe` | control | its bus announced a device | R | dropping the management device | `driver.probe`, `remove` |
//! | [`Driver::at_most`](crate::driver::Driver::at_most) | any | any; it never changes | R | | |
//! | [`Bus::news`](crate::bus::Bus::news), `take`, `info` | control | any | R | | `bus_type` |
//! | [`ManagementDevice::info`] | control | any | R | | `vdpa_mgmt_dev` |
//! | [`ManagementDevice::create`] | control | any | R | [`VdpaDevice::removed`], dropping the device | `dev_add`, `dev_del` |
//! | [`ManagementDevice::set`] | control | any | | | `dev_set_attr` |
//! | [`ManagementDevice::removed`] | control | a device was removed; its session may hold it still | | [`ManagementDevice::create`] | |
//! | [`ManagementDevice::create_uplink`] | control | any, with what another's [`ManagementDevice::uplink`] gave | | [`VdpaDevice::removed`], dropping the device | |
//! | [`ManagementDevice::implied`], `attributes`, `shared_core`, `net`, `parent` | control | any | | | |
//! | [`Parent::add`], `set`, `set_active`, `function` | control | any | R | [`Parent::remove`], `revoke` | devlink's `port_new`, `port_del`, `port_fn_state_set` |
//! | [`MgmtKind::info`], `make` | control | it was named | R | dropping the management device | |
//! | [`VdpaDevice::facts`] | any holder | any; they never change | R | | `get_device_id`, `get_vendor_id`, `get_device_features`, `get_vq_num_max`, `get_vq_num_min`, `get_vq_align`, `get_vq_group` |
//! | [`VdpaDevice::config`] | session | any | R | [`DeviceHost::config_changed`] | `get_config`, `set_config`, `get_generation`, `set_config_cb` |
//! | [`VdpaDevice::negotiated`] | session | features settled, no queue in service | | [`VdpaDevice::reset`] | `set_driver_features` |
//! | [`VdpaDevice::set_map`] | session | no queue in service | | itself, with no map | `set_map`, `dma_map`, `dma_unmap`, `reset_map` |
//! | [`Queues::start`] | session | no queue of the group in service, map and features set | R | [`Queues::stop`] | `set_vq_address`, `set_vq_num`, `set_vq_state`, `set_vq_cb`, `set_vq_ready`, `kick_vq` |
//! | [`Queues::stop`] | session | any | R | [`Queues::start`] | `set_vq_ready`, `get_vq_state`, `suspend` |
//! | [`VdpaDevice::queues`] | session | any | R | | |
//! | [`Queues::served_by`] | session | any | R | | `get_vq_notification` |
//! | [`Queues::beside`] | session | any | | | |
//! | [`Queues::adjust`] | session | a queue of it in service | | [`Queues::start`] | `set_vq_cb`, `set_vq_ready` |
//! | [`Queues::follow`] | session | cores were changed by control | R | | `set_vq_affinity` |
//! | [`Queues::take_ended`] | session | it was woken | R | | |
//! | [`VdpaDevice::reset`] | session | no queue in service | | [`VdpaDevice::negotiated`] | `reset`, `set_status` 0 |
//! | [`VdpaDevice::class`], `attributes` | session; control, while no session has it | any; waits for nobody | `class` R | | `mac`, `mtu` of `vdpa_dev_set_config` |
//! | [`VdpaDevice::set`] | session | any | | [`ManagementDevice::create`] | `dev_set_attr` |
//! | [`VdpaDevice::note`] | session | any | | | |
//! | [`VdpaDevice::health`] | control | while no session has it | | | |
//! | [`Health`] | any | any | | | |
//! | [`BlockOps::block_config`] | session; control, while no session has it | any | R | | |
//! | [`NetOps::set_mtu`], `announce` | session | any | `set_mtu` R | | |
//! | [`VdpaDevice::host_end`] | session; control asks its name and whose it is | any | | | |
//! | [`VdpaDevice::removed`] | session, or a thread that may wait | last, no queue in service | | [`ManagementDevice::create`] | `dev_del` |
//! | [`DeviceHost::config_changed`], `needs_reset`, `gone` | the driver, any thread | any | | | `set_config_cb` |
//!
//! Status and its machine are the session's (`get_status`, `set_status`), as are kick and call descriptors, which a driver
//! is handed with a queue ([`QueueBinding`]).
//!
//! A device is an owned value: control holds it while nobody is connected, the session while somebody is. Dropping it
//! ends it.

// Kinds of virtio devices, and what each kind has of its own.
mod class;
// Configuration space.
mod config;
// A device.
mod device;
// Why a driver refuses.
mod error;
// A ring's fault on its way to the session.
mod fault;
// A device without a front-end.
mod host_end;
// What a device tells unasked.
mod host;
// Management devices.
mod mgmtdev;
// Hardware that can be divided.
mod parent;
// A pump a group: the common way to serve queues.
mod own_pumps;
// Queues in and out of service.
mod queues;
// What an operator asks of a new device.
mod spec;

pub use self::class::{BlockOps, Class, ClassOps, Learned, LearnedStation, NetMgmt, NetOps, VENDOR_ID};
pub use self::config::{ConfigError, ConfigSpace};
pub use self::device::{Condition, DataPath, Facts, Health, QueueLimits, VdpaDevice};
pub use self::error::{DriverError, Unfit};
pub use self::fault::FaultReporter;
pub use self::host::{DeviceHost, Upcall};
pub use self::host_end::{HostEnd, NetdevChange};
pub use self::mgmtdev::{AttributeInfo, Live, ManagementDevice, MgmtInfo, MgmtKind, MgmtKindInfo};
pub use self::own_pumps::{MakePump, OwnPumps};
pub use self::parent::{FunctionState, Functions, Parent, Planned};
pub use self::queues::{
    Ended, Kept, Placer, QueueBinding, QueueEnds, Queues, ServeError, ServedBy, Stopped, Stuck,
};
pub use self::spec::{ClassSpec, DeviceSpec, NetSpec};
