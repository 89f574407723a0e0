//! The host's end of a device that has no front-end: an interface of the kernel's, or a function.

use std::sync::Arc;
use std::time::Duration;

use super::{DriverError, Placer};
use crate::counters::QueueCounters;
use crate::notify::EventFd;

/// The host's end of a device without a front-end. Called by its session, which has no socket;
/// [`HostEnd::name`] and [`HostEnd::is_own`] also by control.
pub trait HostEnd {
    /// Its name on the host.
    fn name(&self) -> &str;
    /// Opens it, if it is not open, and puts its queues into service. `attention` is signalled when it is gone.
    ///
    /// # Errors
    /// It cannot be opened, or nobody serves it.
    fn open(
        &mut self,
        counters: &[Arc<QueueCounters>],
        attention: Arc<EventFd>,
        placer: &Placer,
        within: Duration,
    ) -> Result<(), DriverError>;
    /// Ringway made it, and makes it again if it is gone.
    fn is_own(&self) -> bool;
    /// It is gone, or of no use any more, and why: it is opened anew.
    fn gone(&self) -> Option<String>;
    /// What somebody set otherwise since it was opened, as it is now, or what it lacks. Asks the kernel. Called now and then.
    fn changes(&mut self) -> Vec<NetdevChange>;
}

/// Something of a kernel's interface that somebody else changed, or that an uplink's function lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetdevChange {
    /// What was changed, and of which interface; what is missing.
    pub what: String,
    /// What sets it back, or helps.
    pub cure: String,
    /// No frame passes while it is so.
    pub stops: bool,
}
