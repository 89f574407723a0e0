//! The regions that buffers were last found in, of the map that a burst holds.

use super::Segment;
use crate::guest::{GuestMap, LastHit};

/// The regions that buffers were last found in: two, since most guests have memory below and above 4 GiB. An inner loop
/// keeps a copy in registers; a look at them is a lookup that costs two comparisons.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    windows: [Window; 2],
    /// For lookups in the map itself.
    pub(super) hint: LastHit,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    gpa: u64,
    /// Bytes.
    len: u64,
    start: *mut u8,
}

impl Default for Windows {
    /// None yet.
    fn default() -> Windows {
        let none = Window { gpa: 0, len: 0, start: std::ptr::null_mut() };
        Windows { windows: [none; 2], hint: LastHit::default() }
    }
}

impl Windows {
    /// A buffer that lies in one of them as a whole.
    #[inline(always)]
    pub(super) fn find(&self, gpa: u64, len: u32) -> Option<Segment> {
        let [first, second] = &self.windows;
        first.find(gpa, len).or_else(|| second.find(gpa, len))
    }

    /// Looks a buffer up that lies in none of them, and has the next ones in its region found faster. None if it does
    /// not lie in one region as a whole.
    #[inline(never)]
    pub(super) fn look_up(&mut self, map: &GuestMap, gpa: u64, len: u32) -> Option<Segment> {
        let (first, bytes) = map.region_around(gpa)?;
        let window = Window { gpa: first, len: bytes.len() as u64, start: bytes.as_ptr() };
        self.windows = [window, self.windows[0]];
        window.find(gpa, len)
    }
}

impl Window {
    #[inline(always)]
    fn find(&self, gpa: u64, len: u32) -> Option<Segment> {
        let at = gpa.wrapping_sub(self.gpa);
        // An empty buffer needs an address that exists too.
        let fits = at < self.len && u64::from(len) <= self.len - at;
        fits.then(|| Segment { start: self.start.wrapping_add(at as usize), gpa, len })
    }
}
