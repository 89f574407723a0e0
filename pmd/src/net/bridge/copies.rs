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
    /// By place: lanes that read it, and one more while it is held.
    readers: Vec<u16>,
    /// What was copied of the run of frames that is being put into lanes: which frame of it, where, and the number of the place.
    held: Vec<(usize, u64, u16)>,
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
        let (readers, held) = (vec![0; places.into()], Vec::with_capacity(places.into()));
        Ok(Copies { map: Arc::new(map), free: (0..places).collect(), places, readers, held, read })
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

    /// Copies the frame with a number in its run together, unless it was for another lane: where it is, and the number of its place,
    /// held until the run's are [released](Copies::release). None: there is no room.
    pub(super) fn copy(&mut self, nth: usize, from: &Passage<'_>) -> Option<(u64, u16)> {
        if let Some((_, at, place)) = self.held.iter().find(|(of, ..)| *of == nth) {
            return Some((*at, *place));
        }
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
        self.read_by_one_more(place);
        self.held.push((nth, at, place));
        Some((at, place))
    }

    /// A lane reads a place until it is finished with a mark.
    pub(super) fn keep(&mut self, lane: usize, mark: u64, place: u16) {
        if let Some(read) = self.read.get_mut(lane) {
            read.push_back((mark, place));
            self.read_by_one_more(place);
        }
    }

    /// A run of frames is in the lanes that it was for, or was not put into any.
    #[inline]
    pub(super) fn release(&mut self) {
        while let Some((_, _, place)) = self.held.pop() {
            read_by_one_less(&mut self.readers, &mut self.free, place);
        }
    }

    /// A lane is finished with all up to a mark.
    pub(super) fn finished(&mut self, lane: usize, mark: u64) {
        let Copies { read, readers, free, .. } = self;
        let Some(read) = read.get_mut(lane) else { return };
        while let Some((_, place)) = read.pop_front_if(|(until, _)| *until <= mark) {
            read_by_one_less(readers, free, place);
        }
    }

    /// A lane does not read what it was given beyond a mark.
    pub(super) fn take_back(&mut self, lane: usize, mark: u64) {
        let Copies { read, readers, free, .. } = self;
        let Some(read) = read.get_mut(lane) else { return };
        while let Some((_, place)) = read.pop_back_if(|(until, _)| *until > mark) {
            read_by_one_less(readers, free, place);
        }
    }

    fn read_by_one_more(&mut self, place: u16) {
        self.readers.get_mut(usize::from(place)).into_iter().for_each(|readers| *readers += 1);
    }
}

/// A place that nobody reads any more is free.
fn read_by_one_less(readers: &mut [u16], free: &mut Vec<u16>, place: u16) {
    if let Some(readers) = readers.get_mut(usize::from(place)) {
        *readers = readers.saturating_sub(1);
        if *readers == 0 {
            free.push(place);
        }
    }
}

/// Room for the largest frame that passes the checks, in bytes: an IP packet of 64 KiB with an Ethernet header and tags.
const PLACE_BYTES: u64 = (64 << 10) + 4096;
