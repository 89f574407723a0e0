//! A guest's memory, pinned once and known to the kernel, so that it looks up no page of it for each request.
//!
//! Registered in a ring of its own, from which the rings of a device's queues have it: to register takes seconds for a large guest,
//! to have it from another ring a moment. Pinned for as long as one of them is there.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, Probe, opcode};
use ringway_ring::guest::GuestMap;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// See the module's head.
pub(crate) struct Registered {
    // Goes before what it has pinned.
    ring: IoUring,
    /// By address.
    chunks: Box<[Chunk]>,
    /// Requests in several pieces can be of it, too.
    takes_lists: bool,
    map: Arc<GuestMap>,
}

/// A range of addresses under one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chunk {
    address: u64,
    len: u64,
    number: u16,
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered").field("chunks", &self.chunks).finish_non_exhaustive()
    }
}

impl Registered {
    /// Pins all of the map. May take seconds.
    ///
    /// # Errors
    /// The host's: a limit, or memory that is not there.
    pub(crate) fn new(map: &Arc<GuestMap>) -> io::Result<Registered> {
        // The kernel looks at the limit once all is pinned.
        let bytes: u64 = map.regions().iter().map(|region| region.size()).sum();
        let most = getrlimit(Resource::Memlock).current;
        let is_bound = !capabilities(None).is_ok_and(|own| own.effective.contains(CapabilitySet::IPC_LOCK));
        if let Some(most) = most.filter(|most| is_bound && *most < bytes) {
            let why = format!("no more than {} KiB may be locked (RLIMIT_MEMLOCK)", most >> 10);
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, why));
        }
        let mut chunks = Vec::new();
        for region in map.regions() {
            let (start, size) = (region.host_address(), region.size());
            for at in (0..size).step_by(MOST as usize) {
                let number = u16::try_from(chunks.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
                chunks.push(Chunk { address: start + at, len: MOST.min(size - at), number });
            }
        }
        let vectors: Vec<libc::iovec> = chunks
            .iter()
            .map(|chunk| libc::iovec { iov_base: chunk.address as *mut _, iov_len: chunk.len as usize })
            .collect();
        let ring = IoUring::builder().dontfork().build(1)?;
        // SAFETY: all of it is memory of the map, which is held for as long as the ring is, and whose bytes are never borrowed.
        unsafe { ring.submitter().register_buffers(&vectors) }?;
        let mut probe = Probe::new();
        let takes_lists = ring.submitter().register_probe(&mut probe).is_ok()
            && probe.is_supported(opcode::ReadvFixed::CODE);
        chunks.sort_unstable_by_key(|chunk| chunk.address);
        Ok(Registered { ring, chunks: chunks.into(), takes_lists, map: Arc::clone(map) })
    }

    /// Whose memory it is.
    pub(crate) fn is_of(&self, map: &Arc<GuestMap>) -> bool {
        Arc::ptr_eq(&self.map, map)
    }

    /// Bytes that are pinned.
    pub(crate) fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.len).sum()
    }

    /// Lets another ring have it, too.
    ///
    /// # Errors
    /// The kernel cannot.
    pub(super) fn lend(&self, ring: &IoUring) -> io::Result<()> {
        ring.submitter().register_buffers_clone(self.ring.as_raw_fd())
    }

    /// Lists of pieces can be of it.
    #[inline]
    pub(super) fn takes_lists(&self) -> bool {
        self.takes_lists
    }

    /// Under which number the kernel has all of a range.
    #[inline]
    pub(super) fn number(&self, address: u64, len: u64) -> Option<u16> {
        let behind = self.chunks.partition_point(|chunk| chunk.address <= address);
        let chunk = self.chunks.get(behind.checked_sub(1)?)?;
        (len <= chunk.len && address - chunk.address <= chunk.len - len).then_some(chunk.number)
    }
}

/// The kernel takes no larger one.
const MOST: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use ringway_ring::memory::{HostMemory, PageKind};

    use super::*;

    /// Memory of this process that the kernel has pinned, in KiB.
    fn pinned() -> u64 {
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmPin:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn memory_is_pinned_once_and_lent_and_numbers_end_with_it() {
        let memory = HostMemory::allocate_on(PageKind::Base, "test", 4 << 20).unwrap();
        let map = Arc::new(memory.guest_map(0).unwrap());
        let before = pinned();
        let registered = Registered::new(&map).unwrap();
        assert_eq!((registered.bytes(), pinned() - before), (4 << 20, 4 << 10));
        let other = IoUring::new(8).unwrap();
        registered.lend(&other).unwrap();
        assert_eq!(pinned() - before, 4 << 10, "lent, not pinned again");
        let start = map.regions()[0].host_address();
        assert_eq!(registered.number(start, 4 << 20), Some(0));
        assert_eq!(registered.number(start + 4096, (4 << 20) - 4096), Some(0));
        for (address, len) in
            [(start - 1, 2), (start + 4096, 4 << 20), (start + (4 << 20), 1), (start, u64::MAX)]
        {
            assert_eq!(registered.number(address, len), None);
        }
        assert!(registered.is_of(&map) && !registered.is_of(&Arc::new(memory.guest_map(0).unwrap())));
    }
}
