//! Memory of a part's own, for frames that are in more pieces than an entry of a lane has room for: they are copied together, and
//! cross as one piece.
//!
//! Part of a pump. Budget of all but making: no allocation, no lock, no system call, no panic.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use ringway_ring::guest::GuestMap;
use ringway_ring::memory::{HostMemory, PageKind};

use crate::net::side::Passage;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Copies {
    map: Arc<GuestMap>,
    /// Numbers of places that nobody reads.
    free: Vec<u16>,
    places: u16,
    /// By lane: until which mark it reads which place.
    read: Vec<VecDeque<(u64, u16)>>,
}

impl Copies {
    /// So many places to copy to, read through so many lanes.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn new(places: u16, lanes: usize) -> io::Result<Copies> {
        let memory = HostMemory::allocate_on(PageKind::Base, "bridge", u64::from(places) * PLACE_BYTES)?;
        let map = memory.guest_map(0).map_err(io::Error::other)?;
        let read = (0..lanes).map(|_| VecDeque::with_capacity(places.into())).collect();
        Ok(Copies { map: Arc::new(map), free: (0..places).collect(), places, read })
    }

    /// Where the copies lie.
    pub(super) fn map(&self) -> &Arc<GuestMap> {
        &self.map
    }

    /// Frames that can be copied.
    pub(super) fn room(&self) -> usize {
        self.free.len()
    }

    /// True if nobody reads any.
    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == usize::from(self.places)
    }

    /// Copies a frame together: where it is, and the number of its place, which is [kept](Copies::keep) or [free](Copies::free)
    /// again. None: there is no room.
    pub(super) fn copy(&mut self, from: &Passage<'_>) -> Option<(u64, u16)> {
        let place = *self.free.last()?;
        let (at, len) = (u64::from(place) * PLACE_BYTES, u64::from(from.frame.len));
        let room = self.map.resolve(at, len).ok().filter(|_| len <= PLACE_BYTES)?;
        let mut done = 0;
        let rest = from.burst.readable_span(from.chain).part(from.rest_at() as u64, len);
        done += room.write(from.head());
        for piece in rest.pieces() {
            let to = room.part(done, usize::MAX);
            done += to.copy_from(piece.slice.part(0, to.len()));
        }
        self.free.pop();
        Some((at, place))
    }

    /// A lane reads a place until it is finished with a mark.
    pub(super) fn keep(&mut self, lane: usize, mark: u64, place: u16) {
        if let Some(read) = self.read.get_mut(lane) {
            read.push_back((mark, place));
        }
    }

    /// A place was not put into any lane.
    pub(super) fn free(&mut self, place: u16) {
        self.free.push(place);
    }

    /// A lane is finished with all up to a mark.
    pub(super) fn finished(&mut self, lane: usize, mark: u64) {
        let Some(read) = self.read.get_mut(lane) else { return };
        while let Some((_, place)) = read.pop_front_if(|(until, _)| *until <= mark) {
            self.free.push(place);
        }
    }
}

/// Room for the largest frame that passes the checks, in bytes: an IP packet of 64 KiB with an Ethernet header and tags.
const PLACE_BYTES: u64 = (64 << 10) + 4096;
