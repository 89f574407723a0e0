//! The guest's memory as a session maps it: the difference between the map that is and the one that is asked for.

use std::sync::Arc;

use ringway_pmd::dma::MapError as DmaError;
use ringway_ring::guest::{GuestMap, MapError, Region, RegionSpec};

use crate::frontends::budget::{Lease, Memory, Short};

/// The most regions of one front-end's memory: what QEMU uses.
pub const MAX_REGIONS: u64 = 509;

/// The most bytes that one front-end may have mapped here, in whole pages of its files: a peer with sparse files must not
/// fill the address space that all devices share. How much of it is there for one more: see [`Lease`].
const MAX_BYTES: u64 = 1 << 42;

/// Why a memory table was refused. The one that was is still in force.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryError {
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("{0} regions are more than the {MAX_REGIONS} offered")]
    Slots(usize),
    #[error("{0:#x} bytes are more than the {MAX_BYTES:#x} that one guest may have")]
    Bytes(u64),
    #[error(transparent)]
    Short(#[from] Short),
    #[error("the device is being removed")]
    Revoked,
    #[error(transparent)]
    Device(#[from] DmaError),
}

impl MemoryError {
    /// True if this host, not the front-end, is why.
    pub(super) fn is_of_host(&self) -> bool {
        use rustix::io::Errno;
        match self {
            MemoryError::Map(MapError::Map(error)) => {
                let lacks = [Errno::NOMEM, Errno::AGAIN, Errno::NFILE, Errno::MFILE];
                error.raw_os_error().is_some_and(|raw| lacks.iter().any(|errno| errno.raw_os_error() == raw))
            }
            MemoryError::Revoked => true,
            MemoryError::Device(error) => {
                !matches!(error, DmaError::Beyond { .. } | DmaError::Unaligned { .. })
            }
            _ => false,
        }
    }

    /// A stable short name.
    pub(super) fn name(&self) -> &'static str {
        match self {
            MemoryError::Map(MapError::Map(_) | MapError::Stat(_)) => "memory_map_failed",
            MemoryError::Map(MapError::NotMemory { .. }) => "memory_not_shareable",
            MemoryError::Map(MapError::BeyondFile { .. }) => "memory_beyond_file",
            MemoryError::Map(MapError::Overlap { .. }) => "memory_overlap",
            MemoryError::Map(MapError::NoSuchRegion { .. }) => "memory_no_such_region",
            MemoryError::Map(_) => "memory_region",
            MemoryError::Slots(_) | MemoryError::Bytes(_) => "memory_too_much",
            MemoryError::Short(_) => "share_exceeded",
            MemoryError::Revoked | MemoryError::Device(DmaError::Cancelled) => "revoked",
            MemoryError::Device(DmaError::Beyond { .. } | DmaError::Unaligned { .. }) => {
                "memory_beyond_device"
            }
            MemoryError::Device(DmaError::Host { .. }) => "memory_not_mapped",
            MemoryError::Device(DmaError::Lost(_)) => "memory_lost",
            MemoryError::Device(DmaError::NoDevice(_)) => "device_unavailable",
        }
    }
}

/// The map for a whole new table. Regions that stay the same stay mapped; between two mappings, `revoked` is asked.
pub(super) fn replace(
    old: Option<&GuestMap>,
    specs: Vec<RegionSpec>,
    lease: &Lease,
    revoked: impl Fn() -> bool,
) -> Result<GuestMap, MemoryError> {
    let new = bounded(specs.len(), specs.iter().map(RegionSpec::mapped_bytes))?;
    let now = held(old);
    let both = Memory { regions: now.regions + new.regions, bytes: now.bytes.saturating_add(new.bytes) };
    lease.take(both, new)?;
    let mut regions = Vec::with_capacity(specs.len());
    for spec in specs {
        if revoked() {
            return Err(MemoryError::Revoked);
        }
        let same = old.and_then(|map| map.regions().iter().find(|region| region.is_same(&spec)));
        regions.push(match same {
            Some(region) => Arc::clone(region),
            None => Region::map(spec)?,
        });
    }
    Ok(GuestMap::new(regions)?)
}

/// The map with one region more.
pub(super) fn add(old: Option<&GuestMap>, spec: RegionSpec, lease: &Lease) -> Result<GuestMap, MemoryError> {
    let old_regions = old.map_or(&[][..], GuestMap::regions);
    let sizes = old_regions.iter().map(|region| Ok(region.mapped_bytes()));
    let new = bounded(old_regions.len() + 1, sizes.chain([spec.mapped_bytes()]))?;
    lease.take(new, new)?;
    let region = Region::map(spec)?;
    Ok(match old {
        Some(old) => old.with(region)?,
        None => GuestMap::new(vec![region])?,
    })
}

/// The map without one region.
pub(super) fn remove(
    old: Option<&GuestMap>,
    gpa: u64,
    user_addr: u64,
    size: u64,
) -> Result<GuestMap, MemoryError> {
    match old {
        Some(old) => Ok(old.without(gpa, user_addr, size)?),
        None => Err(MemoryError::Map(MapError::NoSuchRegion { gpa, user_addr, size })),
    }
}

/// What a map takes of the process.
pub(super) fn held(map: Option<&GuestMap>) -> Memory {
    let regions = map.map_or(&[][..], GuestMap::regions);
    Memory { regions: regions.len(), bytes: regions.iter().map(|region| region.mapped_bytes()).sum() }
}

/// The map as it is put in force. What it takes of the process is taken for as long as anybody holds it, also a worker
/// that does not let go when the session ends.
pub(super) fn in_force(map: GuestMap, lease: &Arc<Lease>) -> Arc<GuestMap> {
    let lease: Arc<Lease> = Arc::clone(lease);
    Arc::new(map.keeping(lease))
}

/// True if both maps show the same regions, so that nothing need be placed anew.
pub(super) fn same(old: Option<&GuestMap>, new: &GuestMap) -> bool {
    old.is_some_and(|old| {
        old.regions().len() == new.regions().len()
            && old.regions().iter().zip(new.regions()).all(|(one, other)| Arc::ptr_eq(one, other))
    })
}

fn bounded(count: usize, sizes: impl Iterator<Item = Result<u64, MapError>>) -> Result<Memory, MemoryError> {
    if count as u64 > MAX_REGIONS {
        return Err(MemoryError::Slots(count));
    }
    let mut bytes = 0u64;
    for size in sizes {
        bytes = bytes.saturating_add(size?);
    }
    if bytes > MAX_BYTES { Err(MemoryError::Bytes(bytes)) } else { Ok(Memory { regions: count, bytes }) }
}

#[cfg(test)]
mod tests {
    use ringway_pmd::vdpa::Class;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use std::os::fd::OwnedFd;

    use super::*;
    use crate::frontends::budget::Budget;

    fn claim(file: &OwnedFd, file_offset: u64, size: u64) -> RegionSpec {
        let file = file.try_clone().unwrap();
        RegionSpec { gpa: 0, size, user_addr: 0, file_offset, file }
    }

    fn memfd(flags: MemfdFlags, size: u64) -> Option<OwnedFd> {
        let file = memfd_create("claim", flags | MemfdFlags::CLOEXEC).ok()?;
        ftruncate(&file, size).ok()?;
        Some(file)
    }

    #[test]
    fn regions_and_bytes_are_taken_up_to_the_bound_and_not_beyond() {
        for (count, is_good) in [(508, true), (509, true), (510, false)] {
            let sizes = std::iter::repeat_with(|| Ok(4096)).take(count);
            assert_eq!(bounded(count, sizes).is_ok(), is_good, "{count}");
        }
        for (bytes, is_good) in [(MAX_BYTES - 1, true), (MAX_BYTES, true), (MAX_BYTES + 1, false)] {
            assert_eq!(bounded(2, [Ok(bytes - 4096), Ok(4096)].into_iter()).is_ok(), is_good, "{bytes}");
        }
        let most = || Ok(u64::MAX);
        assert!(matches!(bounded(2, [most(), most()].into_iter()), Err(MemoryError::Bytes(u64::MAX))));
    }

    #[test]
    fn claims_count_as_the_whole_pages_that_are_mapped_for_them() {
        let small = memfd(MemfdFlags::empty(), 1 << 20).unwrap();
        for (offset, size, bytes) in
            [(0, 1, 4096), (0, 4096, 4096), (0, 4097, 8192), (4095, 2, 8192), (8191, 1, 4096)]
        {
            assert_eq!(claim(&small, offset, size).mapped_bytes().unwrap(), bytes, "{offset} {size}");
            let region = Region::map(claim(&small, offset, size)).unwrap();
            assert_eq!(region.mapped_bytes(), bytes, "{offset} {size}");
        }
        // No page of these sizes need be free: the claims are refused before they are mapped.
        for (flag, page) in [(MemfdFlags::HUGE_2MB, 2 << 20), (MemfdFlags::HUGE_1GB, 1 << 30)] {
            let Some(huge) = memfd(MemfdFlags::HUGETLB | flag, 2 * page) else {
                println!("skipped: this host has no pages of {page:#x} bytes");
                continue;
            };
            for (offset, size, bytes) in [(0, 1, page), (page - 1, 1, page), (page - 1, 2, 2 * page)] {
                assert_eq!(claim(&huge, offset, size).mapped_bytes().unwrap(), bytes, "{offset} {size}");
            }
            // One front-end may hold an eighth of what there is.
            let lease = Budget::new(1000, 8 * (page - 1)).admit(1, "a", Class::Net, 2).unwrap();
            let refused = add(None, claim(&huge, 0, 1), &lease);
            assert!(matches!(refused, Err(MemoryError::Short(_))), "{refused:?}");
            let refused = replace(None, vec![claim(&huge, 0, 1)], &lease, || false);
            assert!(matches!(refused, Err(MemoryError::Short(_))), "{refused:?}");
        }
    }

    #[test]
    fn budget_is_held_as_long_as_anybody_holds_the_map() {
        let budget = Budget::new(1000, 8 * 4096);
        let lease = Arc::new(budget.admit(1, "a", Class::Net, 2).unwrap());
        let file = memfd(MemfdFlags::empty(), 4096).unwrap();
        let map = add(None, claim(&file, 0, 4096), &lease).unwrap();
        lease.settle(held(Some(&map)));
        let of_worker = in_force(map, &lease);
        // The session ends while a worker has the map still.
        drop(lease);
        let next = budget.admit(2, "b", Class::Net, 2).unwrap();
        assert!(
            add(None, claim(&file, 0, 4096), &next).is_err(),
            "its part is given away while it is mapped"
        );
        drop(of_worker);
        add(None, claim(&file, 0, 4096), &next).unwrap();
    }
}
