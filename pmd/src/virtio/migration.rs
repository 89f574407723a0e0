//! The live-migration block of Intel's IFC functions: registers beside virtio's by which a ring begins anywhere.
//!
//! There is no specification of it; this is the layout that DPDK's driver has for network functions, in BAR 4: the state of a
//! queue is one word, available index in the low half and used index in the high one, and pairs of queues are 64 bytes apart.
//! Dirty logging, which the block has too, is not used. Owned by the device's session.

use crate::bus::pci::{Function, View};

/// See the module's head.
#[derive(Debug, Clone)]
pub struct MigrationBlock(View);

impl MigrationBlock {
    /// Finds it; None: the function has none, as a PF.
    pub fn find(function: &dyn Function) -> Option<MigrationBlock> {
        let bar = function.bar(BAR).ok()?;
        (bar.size() >= STATES + PAIR_BYTES).then_some(MigrationBlock(bar))
    }

    /// So many pairs are used; before their queues are enabled.
    pub fn set_pairs(&self, pairs: u16) {
        self.0.write32(PAIRS, pairs.into());
    }

    /// A split queue begins here; before it is enabled.
    pub fn set_position(&self, queue: u16, avail: u16, used: u16) {
        let at = STATES + u64::from(queue / 2) * PAIR_BYTES + u64::from(queue % 2) * 4;
        self.0.write32(at, u32::from(avail) | u32::from(used) << 16);
    }
}

const BAR: u8 = 4;
const STATES: u64 = 0x20;
const PAIRS: u64 = 0x28;
const PAIR_BYTES: u64 = 0x40;
