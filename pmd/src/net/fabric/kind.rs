//! What a kind of fabric decides: which pumps there are, what each is made of, and how it comes apart again.
//!
//! All of it is called under the fabric's lock, by sessions and by the thread that finishes what they left. None of it may
//! wait.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::io;

use ringway_engine::Pump;

use super::ends::{EndKey, Ends, PumpKey};
use crate::net::Mac;

/// One way to join ports. [`Link`](super::Link) and [`Bridge`](super::Bridge) are two.
pub(super) trait Kind: fmt::Debug + Send {
    /// The pumps that what runs asks for, each with its ends. The same ends give the same pumps, in the same order: a pump
    /// whose ends change is taken back and made anew.
    fn plan(&self, ends: &Ends) -> BTreeMap<PumpKey, Vec<EndKey>>;

    /// What the pump is called where operators see it; `fabric` is the fabric's own name.
    fn name(&self, fabric: &str, key: PumpKey, ends: &Ends) -> String;

    /// The core that a pump belongs on.
    fn core(&self, key: PumpKey, members: &[EndKey], ends: &Ends) -> usize;

    /// Its pumps know of each other: they are made together and taken back together.
    fn is_together(&self) -> bool {
        false
    }

    /// These are about to be [made](Kind::make), one after the other, of ends that are free.
    ///
    /// # Errors
    /// The kernel gave no memory; none is made then.
    fn prepare(&mut self, _ends: &Ends, _pumps: &[(PumpKey, Vec<EndKey>)]) -> io::Result<()> {
        Ok(())
    }

    /// Makes a pump of ends that are free, which are [taken](Ends::take) out for it.
    ///
    /// # Errors
    /// The kernel gave no memory; every end is free as before.
    fn make(&mut self, ends: &mut Ends, key: PumpKey, members: &[EndKey]) -> io::Result<Box<dyn Pump>>;

    /// Puts the ends of a pump that it made [back](Ends::put_back), in the order of its members.
    ///
    /// # Errors
    /// It is none of this kind's pumps.
    fn take_apart(&mut self, ends: &mut Ends, members: &[EndKey], pump: Box<dyn Any>) -> Result<(), Foreign>;

    /// The last queue of the port at `slot` stops.
    fn port_stops(&mut self, _slot: u16) {}

    /// The port at `slot` may send from this address only from now on.
    fn port_is_held(&mut self, _slot: u16, _to: Mac) {}

    /// The port at `slot` is gone; another may have the slot from now on.
    fn port_leaves(&mut self, _slot: u16) {}
}

/// A pump is of another kind than its fabric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bug: not a pump of this fabric")]
pub(super) struct Foreign;
