//! Maps of a guest's memory, made from file descriptors that a front-end passed.
//!
//! An address from a guest is a *claim*. Only a lookup here turns a claim and a length into a [`HostSlice`], which can
//! be read and written for as long as the map is held. A map never changes: a new memory table makes a new map that
//! shares the [`Region`]s that stayed.

use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The most regions in one map. vhost-user front-ends use up to 509 memory slots.
pub const MAX_REGIONS: usize = 512;

/// What a front-end says of one region. All numbers in bytes; all are claims.
#[derive(Debug)]
pub struct RegionSpec {
    /// Guest physical address of the first byte.
    pub gpa: u64,
    /// Size.
    pub size: u64,
    /// Address of the first byte in the front-end's own address space.
    pub user_addr: u64,
    /// Where in the file the region starts.
    pub file_offset: u64,
    /// The file.
    pub file: OwnedFd,
}

/// One mapped region. Unmapped when the last map that holds it is dropped.
#[derive(Debug)]
pub struct Region {
    _todo: (),
}

/// Why a region or a map was refused.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The helper that owns this file replaces these variants.
    #[error("region refused")]
    Refused,
}

/// A claim that no region covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no guest memory at {address:#x}, {len} bytes")]
pub struct Miss {
    /// The address claimed.
    pub address: u64,
    /// The length claimed.
    pub len: u64,
}

impl Region {
    /// Checks the claims against the file (tmpfs or hugetlbfs, large enough, aligned to its pages) and maps it.
    pub fn map(spec: RegionSpec) -> Result<Arc<Region>, MapError> {
        let _ = spec;
        unimplemented!("skeleton")
    }

    /// Guest physical address of the first byte.
    pub fn gpa(&self) -> u64 {
        unimplemented!("skeleton")
    }
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        unimplemented!("skeleton")
    }
    /// Front-end's address of the first byte.
    pub fn user_addr(&self) -> u64 {
        unimplemented!("skeleton")
    }
    /// True if mapping `spec` anew would give the same memory at the same place (device, inode, offset, gpa, size,
    /// user address), so that this region can stay.
    pub fn is_same(&self, spec: &RegionSpec) -> bool {
        let _ = spec;
        unimplemented!("skeleton")
    }
}

/// An ordered set of regions.
#[derive(Debug)]
pub struct GuestMap {
    _todo: (),
}

/// Bytes of a guest that were found in its map: valid to read and write, never to be borrowed as a Rust reference,
/// since the guest writes to them at the same time. Access goes through [`crate::copy`].
#[derive(Debug, Clone, Copy)]
pub struct HostSlice<'map> {
    /// Where.
    pub(crate) start: *mut u8,
    /// Bytes.
    pub(crate) len: usize,
    /// Held for as long as the map.
    pub(crate) map: PhantomData<&'map GuestMap>,
}

/// The region that the last lookup hit, kept by each queue so that most lookups cost one comparison.
#[derive(Debug, Clone, Copy, Default)]
pub struct LastHit(pub(crate) u32);

impl GuestMap {
    /// Orders the regions and refuses overlaps, wraps and more than [`MAX_REGIONS`].
    pub fn new(regions: Vec<Arc<Region>>) -> Result<GuestMap, MapError> {
        let _ = regions;
        unimplemented!("skeleton")
    }

    /// The regions in order of their guest physical address.
    pub fn regions(&self) -> &[Arc<Region>] {
        unimplemented!("skeleton")
    }

    /// The longest prefix of `len` bytes at `gpa` that is contiguous in this process: a range that crosses into an
    /// adjoining region takes two lookups. Never empty unless `len` is 0 (a zero length with a bad address misses).
    #[inline]
    pub fn lookup(&self, hint: &mut LastHit, gpa: u64, len: u32) -> Result<HostSlice<'_>, Miss> {
        let _ = hint;
        Err(Miss { address: gpa, len: len.into() })
    }

    /// The whole range in one piece, by guest physical address.
    pub fn resolve(&self, gpa: u64, len: u64) -> Result<HostSlice<'_>, Miss> {
        Err(Miss { address: gpa, len })
    }

    /// The whole range in one piece, by the front-end's own address (vhost-user ring addresses).
    pub fn resolve_user(&self, user_addr: u64, len: u64) -> Result<HostSlice<'_>, Miss> {
        Err(Miss { address: user_addr, len })
    }

    /// True once a fault in this guest's memory was contained (see [`crate::sigbus`]): its file was truncated.
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        unimplemented!("skeleton")
    }
}
