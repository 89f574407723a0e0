//! Where each queue stands, kept by one 64-bit store per burst in a small page of shared memory that outlives the
//! process: a restarted daemon trusts it over what the front-end repeats once it agrees with the ring's own flags.

use std::io;
use std::path::Path;
use std::sync::Arc;

/// How far a queue has come (virtio 1.3 §2.7, §2.8). For a split ring the wrap counters are unused and the indexes run
/// freely over 16 bits; for a packed ring they are below the ring's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Next available entry to look at.
    pub avail_idx: u16,
    /// Device's avail wrap counter (packed).
    pub avail_wrap: bool,
    /// Next used entry to write.
    pub used_idx: u16,
    /// Device's used wrap counter (packed).
    pub used_wrap: bool,
}

impl Position {
    /// Where a fresh queue of either format starts.
    pub const START: Position = Position { avail_idx: 0, avail_wrap: true, used_idx: 0, used_wrap: true };
}

/// One page of positions for up to [`PositionPage::QUEUES`] queues of one device.
#[derive(Debug)]
pub struct PositionPage {
    _todo: (),
}

/// The slot of one queue in a [`PositionPage`].
#[derive(Debug, Clone)]
pub struct PositionSlot {
    _todo: (),
}

impl PositionPage {
    /// Slots in a page.
    pub const QUEUES: usize = 64;

    /// A page in anonymous shared memory.
    pub fn anonymous() -> io::Result<Arc<PositionPage>> {
        unimplemented!("skeleton")
    }
    /// A page in a file, kept over restarts; made if it is not there. Contents are claims until checked.
    pub fn open(path: &Path) -> io::Result<Arc<PositionPage>> {
        let _ = path;
        unimplemented!("skeleton")
    }
    /// The slot of queue `index`, or None beyond [`PositionPage::QUEUES`].
    pub fn slot(self: &Arc<PositionPage>, index: usize) -> Option<PositionSlot> {
        let _ = index;
        unimplemented!("skeleton")
    }
}

impl PositionSlot {
    /// Keeps a position: one store.
    #[inline]
    pub fn store(&self, position: Position) {
        let _ = position;
    }
    /// The position kept, or None if none was stored since [`PositionSlot::clear`].
    pub fn load(&self) -> Option<Position> {
        unimplemented!("skeleton")
    }
    /// Forgets the position.
    pub fn clear(&self) {}
}
