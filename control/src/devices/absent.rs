//! What was asked for and is not there: devices and management devices that could not be made. They are kept, shown with the
//! reason, and tried again where that may help. On the control thread.

use std::time::{Duration, Instant};

use crate::daemon::Daemon;
use crate::devices::checks::uplink_of;
use crate::devices::device::Origin;
use crate::devices::registry::MgmtOrigin;
use crate::fault::{Fault, Kind};
use crate::operator::api::{DeviceEntry, MgmtEntry};

/// A device that was asked for and could not be made: kept, and tried again now and then where that may help.
#[derive(Debug)]
pub(crate) struct Absent {
    pub(crate) entry: DeviceEntry,
    pub(crate) origin: Origin,
    pub(crate) why: String,
    /// It fails as it is, for as long as this process runs.
    pub(crate) is_final: bool,
}

/// A management device that could not be made at the start as it was asked for: kept, for the next one.
#[derive(Debug)]
pub(crate) struct AbsentMgmtdev {
    pub(crate) entry: MgmtEntry,
    pub(crate) origin: MgmtOrigin,
    pub(crate) why: String,
}

/// How often a device that could not be made is tried again.
pub(crate) const RETRY_ABSENT: Duration = Duration::from_secs(2);
/// The same, the first time.
const RETRY_SOON: Duration = Duration::from_millis(300);

impl Daemon {
    /// Makes the devices of a list at the start; what cannot be made is kept and tried again.
    pub(crate) fn make_devices(&mut self, entries: Vec<DeviceEntry>, origin: Origin) {
        // By what was asked for: some devices bring another one.
        let (wanted, mut made) = (entries.len(), 0);
        for entry in entries {
            if origin == Origin::Operator && self.registry.is_taken(&entry.name) {
                tracing::warn!(dev = entry.name, "also in the configuration file, which goes first");
                self.absent.push(Absent {
                    entry,
                    origin,
                    why: "a device of this name is in the configuration file".to_owned(),
                    is_final: false,
                });
                continue;
            }
            match self.make_device(entry.clone(), origin) {
                Ok(()) => made += 1,
                Err(fault) => {
                    let (held_by, hint) = (fault.held_by.as_deref(), fault.hint.as_deref());
                    let is_final = !self.may_come(&entry.mgmtdev)
                        && (fault.kind == Kind::Usage || self.check_for_good(&entry).is_err());
                    let again = if is_final {
                        "it is kept and not tried again".to_owned()
                    } else {
                        format!("it is tried again every {} s", RETRY_ABSENT.as_secs())
                    };
                    let why = &fault.message;
                    if self.may_come(&entry.mgmtdev) {
                        // A bus tells what it has once it has looked.
                        tracing::info!(dev = entry.name, "device waits for {}", entry.mgmtdev);
                    } else {
                        tracing::error!(
                            dev = entry.name,
                            held_by,
                            hint,
                            "device cannot be made, {again}: {why}"
                        );
                    }
                    self.absent.push(Absent { entry, origin, why: fault.message, is_final });
                    if !is_final {
                        // Soon at first: a process that is just dying may hold what it needs.
                        self.retry_absent_at = Some(Instant::now() + RETRY_SOON);
                    }
                }
            }
        }
        if wanted > 0 {
            tracing::info!(origin = origin.name(), "{made} of {wanted} devices made at the start");
        }
    }

    /// A bus may announce it.
    pub(crate) fn may_come(&self, mgmtdev: &str) -> bool {
        let bus = mgmtdev.split_once('/').map(|(bus, _)| bus);
        !self.registry.has_mgmtdev(mgmtdev)
            && self.attachments.iter().any(|known| Some(known.info().name) == bus)
    }

    pub(crate) fn retry_absent(&mut self) {
        self.retry_absent_at = None;
        for absent in std::mem::take(&mut self.absent) {
            // Each may take a moment, as a file of a server that is away.
            self.beat(Instant::now());
            if absent.is_final {
                self.absent.push(absent);
                continue;
            }
            let is_taken = self.registry.is_taken(&absent.entry.name);
            match if is_taken {
                Err(Fault::conflict(absent.why.clone()))
            } else {
                self.make_device(absent.entry.clone(), absent.origin)
            } {
                Ok(()) => self.tell_added(&absent.entry.name),
                Err(fault) => {
                    // While its function is away, why that went says more than that it is not there.
                    let function = uplink_of(&absent.entry).unwrap_or(&absent.entry.mgmtdev);
                    let why = if self.may_come(function) { absent.why.clone() } else { fault.message };
                    self.absent.push(Absent { why, ..absent });
                    self.retry_absent_at = Some(Instant::now() + RETRY_ABSENT);
                }
            }
        }
    }
}
