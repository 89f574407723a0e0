//! What operators read: the registry, the devices, their queues, the workers and the events, as the protocol's
//! answers. Nothing here changes anything.

mod devices;
mod dump;
mod mgmtdevs;
mod queues;

pub(crate) use devices::in_use;
pub(crate) use dump::in_force;
pub(crate) use mgmtdevs::kind_info;
pub(crate) use queues::{drop_meaning, fault_cure, queue_info};

use crate::daemon::Daemon;
use crate::devices::device::Device;
use crate::fault::Fault;
use crate::operator::api::{Hello, Select, VERSION};
use crate::operator::role::Role;

impl Daemon {
    pub(crate) fn hello(&self, role: Role) -> Hello {
        Hello {
            api: VERSION.to_owned(),
            build: format!("ringway {}", env!("CARGO_PKG_VERSION")),
            pid: std::process::id(),
            boot_id: crate::host::gap::boot_id(),
            instance: self.instance.clone(),
            generation: self.generation,
            seq: self.events.last(),
            device_dir: self.runtime_dir.join("dev"),
            state_dir: self.state.as_ref().map(|state| state.path().to_owned()),
            clients: self.clients.len(),
            dropped_clients: self.clients.dropped.clone(),
            role: role.name().to_owned(),
            refused_requests: self.clients.refused,
            viewer_waits: self.clients.viewers.waits,
            lost_log_lines: crate::host::log::lost(),
            lost_events: self.events.lost_on_disk(),
            binary: self.program.standing(),
            up_ms: millis(self.started.elapsed()),
            gap_ms: self.gap.map(millis),
            addresses_copied: self.registry.has_copied_addresses(),
        }
    }

    /// A device by its name; of one that could not be made, why.
    pub(crate) fn find(&self, name: &str) -> Result<&Device, Fault> {
        self.registry.find(name).map_err(|fault| self.if_absent(name, fault))
    }

    /// The fault of a device that is not there: if it was asked for, why it could not be made.
    pub(crate) fn if_absent(&self, name: &str, fault: Fault) -> Fault {
        let Some(absent) = self.absent.iter().find(|absent| absent.entry.name == name) else { return fault };
        let cure = if absent.is_final {
            format!("it is kept and not tried again: ringway dev del {name}, then add it as it can be")
        } else {
            format!("it is kept and tried again every 2 s; ringway dev del {name} removes it")
        };
        Fault { message: format!("{name}: not made: {}", absent.why), ..fault }.hint(cure)
    }

    /// The devices asked for: one, or all.
    pub(super) fn selected(&self, select: &Select) -> Result<Vec<&Device>, Fault> {
        match &select.name {
            Some(name) => Ok(vec![self.find(name)?]),
            None => Ok(self.registry.devices().collect()),
        }
    }
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
