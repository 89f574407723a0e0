//! The rings of a function, in memory of our own that it reaches: laid out once, begun anew whenever the function was reset.

use std::io;
use std::sync::Arc;

use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::layout::{Areas, DriverConfig, Layout};
use ringway_ring::packed::driver::PackedDriver;
use ringway_ring::position::Position;
use ringway_ring::queue::{DriverRing, Format, RingSize, SetupError};
use ringway_ring::split::driver::SplitDriver;

use crate::dma::{DmaSpace, OwnMemory};

/// See the module's head.
#[derive(Debug)]
pub struct OwnRings {
    memory: OwnMemory,
    format: Format,
    features: Features,
    /// By queue: its entries, and where its areas are, as the function reaches them.
    queues: Vec<(RingSize, Areas<u64>)>,
    /// Where [`SPARE_BYTES`] are that no ring takes.
    spare: u64,
}

/// A ring's driver side, whichever the format.
#[derive(Debug)]
pub enum OwnRing {
    /// Split.
    Split(Box<SplitDriver>),
    /// Packed.
    Packed(Box<PackedDriver>),
}

impl OwnRing {
    /// As a ring of either format, where the cost of a call does not matter.
    pub fn boxed(self) -> Box<dyn DriverRing> {
        match self {
            OwnRing::Split(ring) => ring,
            OwnRing::Packed(ring) => ring,
        }
    }
}

impl OwnRings {
    /// Rings of these sizes, driven with these features, in memory that the function sees at `iova`.
    ///
    /// # Errors
    /// The host has no memory, or does not map it.
    pub fn new(
        space: Arc<dyn DmaSpace>,
        iova: u64,
        features: Features,
        sizes: &[RingSize],
    ) -> io::Result<OwnRings> {
        let is_packed = features.contains(Features::RING_PACKED);
        let format = if is_packed { Format::Packed } else { Format::Split };
        let mut at = iova;
        let queues: Vec<(RingSize, Areas<u64>)> = sizes
            .iter()
            .map(|&size| {
                let layout = Layout::new(format, size);
                let areas = layout.at(at);
                at += layout.total;
                (size, areas)
            })
            .collect();
        let memory = OwnMemory::new(space, iova, at - iova + SPARE_BYTES)?;
        Ok(OwnRings { memory, format, features, queues, spare: at })
    }

    /// A queue's entries, and where its areas are; None: there is no such ring.
    pub fn layout(&self, queue: usize) -> Option<(RingSize, Areas<u64>)> {
        self.queues.get(queue).copied()
    }

    /// Begins a queue's ring, empty. The function must not use it: it was reset.
    ///
    /// # Errors
    /// There is no such ring.
    pub fn begin(&self, queue: usize) -> Result<OwnRing, SetupError> {
        let (size, areas) = self.layout(queue).ok_or(SetupError::Size { size: 0 })?;
        let (features, map) = (self.features, Arc::clone(self.memory.map()));
        let config = DriverConfig { size, features, map, areas, position: Position::START };
        Ok(match self.format {
            Format::Split => OwnRing::Split(Box::new(config.start_split()?)),
            Format::Packed => OwnRing::Packed(Box::new(config.start_packed()?)),
        })
    }

    /// Memory for a command, and where the function sees it.
    pub fn spare(&self) -> (&Arc<GuestMap>, u64) {
        (self.memory.map(), self.spare)
    }
}

/// Bytes beside the rings.
pub const SPARE_BYTES: u64 = 256;
