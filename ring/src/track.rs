//! What is kept of the chains that a device has, so that a successor knows them: a type parameter of the rings, so that who
//! needs less of it does not pay for more.
//!
//! Called by the ring, on the thread that uses it, under the ring's rules: no allocation, no lock, no system call, no panic.

use crate::position::{Position, PositionSlot};

/// A descriptor of a chain, as the ring has it: claims of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest physical address of its buffer.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Of its format.
    pub flags: u16,
}

/// Follows the chains of one ring.
///
/// A chain is known by its id: the head of its descriptors (split) or its buffer id (packed), as the driver gave it and below
/// the ring's size. Between [`taken`](Track::taken) and [`completed`](Track::completed) the device has it.
pub trait Track: Send {
    /// Chains complete in the order in which they were taken, and it relies on that; else in any.
    const IN_ORDER: bool;

    /// The device takes a chain, before it does anything about it. `descriptors` are those that only the ring holds (packed;
    /// none for a split ring, whose table keeps them). False: the device has a chain of this id, or it cannot be followed,
    /// which is the driver's fault.
    fn taken(&mut self, id: u16, descriptors: impl Iterator<Item = Descriptor>) -> bool;

    /// The device is done with a chain. The driver does not see it yet.
    fn completed(&mut self, id: u16);

    /// Makes all completed chains visible to the driver, by `make_visible`, which is called once: a process may die at any
    /// instruction before it, in it and behind it. `with_burst` says where the ring stands without (used half) and with them
    /// (available half), `after` where it stands then.
    fn publish(&mut self, with_burst: Position, after: Position, make_visible: impl FnOnce());

    /// The ring goes on elsewhere: others completed what is before.
    fn moved(&mut self, to: Position);
}

/// Chains complete in the order in which they were taken: where the ring stands says all.
#[derive(Debug)]
pub struct InOrder {
    keeper: PositionSlot,
}

impl InOrder {
    /// Keeps it there.
    pub fn new(keeper: PositionSlot) -> InOrder {
        InOrder { keeper }
    }
}

impl Track for InOrder {
    const IN_ORDER: bool = true;

    #[inline(always)]
    fn taken(&mut self, _: u16, _: impl Iterator<Item = Descriptor>) -> bool {
        true
    }

    #[inline(always)]
    fn completed(&mut self, _: u16) {}

    #[inline(always)]
    fn publish(&mut self, with_burst: Position, after: Position, make_visible: impl FnOnce()) {
        let keeping = self.keeper.keeping();
        keeping.store(with_burst);
        make_visible();
        keeping.store(after);
    }

    fn moved(&mut self, to: Position) {
        self.keeper.store(to);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
