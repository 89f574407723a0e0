//! Chains that are kept beyond the burst that they were peeked in, for devices that work on them meanwhile: disks.
//!
//! Owned by the pump that owns the queue. Budget of all but making: no allocation, no lock, no system call, no panic.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;

use super::{Burst, Chain, Segment, Span};
use crate::guest::GuestMap;

/// Room for a number of chains, each in a slot.
pub struct Held {
    /// Every segment lies in it.
    map: Arc<GuestMap>,
    /// `per_slot` for each slot.
    segments: Vec<MaybeUninit<Segment>>,
    per_slot: usize,
    /// By slot; the segments of a chain that is here were written, from its `first` on.
    chains: Vec<Option<Chain>>,
}

// SAFETY: the segments point into `map`, which is held beside them; they are only ever turned into slices borrowed from
// here, whose accesses tolerate any other writer. Nothing in it is tied to a thread.
unsafe impl Send for Held {}

impl Held {
    /// Room for `slots` chains of at most `per_slot` segments, of queues whose buffers lie in `map`.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn try_new(map: Arc<GuestMap>, slots: u16, per_slot: u16) -> io::Result<Held> {
        let count = usize::from(slots) * usize::from(per_slot);
        let mut segments = Vec::new();
        segments.try_reserve_exact(count).map_err(|_| io::ErrorKind::OutOfMemory)?;
        segments.resize_with(count, MaybeUninit::uninit);
        Ok(Held { map, segments, per_slot: per_slot.into(), chains: vec![None; slots.into()] })
    }

    /// Segments of a chain at most.
    #[inline]
    pub fn per_slot(&self) -> usize {
        self.per_slot
    }

    /// Keeps a chain of a burst. False: the slot is taken or there is none, the chain has more segments than fit, or it lies in
    /// another map.
    #[inline]
    pub fn keep(&mut self, slot: u16, burst: &Burst, chain: &Chain) -> bool {
        let segments = burst.segments(chain.first as usize, chain.segments());
        let first = usize::from(slot) * self.per_slot;
        let (Some(place @ None), Some(room)) =
            (self.chains.get_mut(usize::from(slot)), self.segments.get_mut(first..first + self.per_slot))
        else {
            return false;
        };
        if segments.len() > room.len()
            || segments.len() != chain.segments()
            || !Arc::ptr_eq(&self.map, burst.map())
        {
            return false;
        }
        for (to, from) in room.iter_mut().zip(segments) {
            to.write(*from);
        }
        *place = Some(Chain { first: first as u32, ..*chain });
        true
    }

    /// The chain in a slot.
    #[inline]
    pub fn chain(&self, slot: u16) -> Option<&Chain> {
        self.chains.get(usize::from(slot))?.as_ref()
    }

    /// Takes the chain out of a slot, which is free then.
    #[inline]
    pub fn release(&mut self, slot: u16) -> Option<Chain> {
        self.chains.get_mut(usize::from(slot))?.take()
    }

    /// What the device may read of the chain in a slot; nothing of an empty one.
    #[inline]
    pub fn readable(&self, slot: u16) -> Span<'_> {
        self.chain(slot).map_or(Span::EMPTY, |chain| {
            self.span(chain.first as usize, chain.readable.into(), chain.readable_bytes.into())
        })
    }

    /// What the device may write of the chain in a slot; nothing of an empty one.
    #[inline]
    pub fn writable(&self, slot: u16) -> Span<'_> {
        self.chain(slot).map_or(Span::EMPTY, |chain| {
            let first = chain.first as usize + usize::from(chain.readable);
            self.span(first, chain.writable.into(), chain.writable_bytes.into())
        })
    }

    #[inline]
    fn span(&self, first: usize, count: usize, len: u64) -> Span<'_> {
        let segments = self.segments.get(first..first + count).unwrap_or_default();
        // SAFETY: they belong to a chain that is in its slot, so that `keep` wrote them, and nothing unwrites them; it saw that
        // they lie in the map, which is held here and borrowed with them.
        unsafe { Span::new(segments.assume_init_ref(), len) }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("slots", &self.chains.len()).finish_non_exhaustive()
    }
}
