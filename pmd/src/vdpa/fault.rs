//! A ring's fault on its way from a pump to the session.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use ringway_ring::queue::RingFault;

use crate::notify::EventFd;

/// Tells the session of a ring's fault without waiting: the pump calls it once and leaves the ring alone from then on.
#[derive(Clone)]
pub struct FaultReporter(Arc<FaultCell>);

struct FaultCell {
    fault: AtomicU8,
    attention: Arc<EventFd>,
}

impl fmt::Debug for FaultReporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FaultReporter").field(&self.reported()).finish()
    }
}

impl FaultReporter {
    /// A reporter that wakes its session by `attention`.
    pub fn new(attention: Arc<EventFd>) -> FaultReporter {
        FaultReporter(Arc::new(FaultCell { fault: AtomicU8::new(0), attention }))
    }
    /// Reports a fault: one store and one write to an eventfd of our own.
    pub fn report(&self, fault: RingFault) {
        // Release: pairs with the Acquire in `reported`; what the pump wrote before is visible to the session.
        self.0.fault.store(fault as u8, Ordering::Release);
        self.0.attention.signal();
    }
    /// The fault reported, if any.
    pub fn reported(&self) -> Option<RingFault> {
        // Acquire: pairs with the Release in `report`.
        let number = self.0.fault.load(Ordering::Acquire);
        RingFault::ALL.into_iter().find(|fault| *fault as u8 == number)
    }
}
