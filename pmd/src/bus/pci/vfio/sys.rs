//! System calls on VFIO's descriptors that `vfio-ioctls` does not make, and registers that are mapped.
//!
//! `unsafe` is here alone: numbers and layouts are those of linux/vfio.h.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};
use ringway_ring::guest::Region;
use vfio_ioctls::{VfioContainer, VfioDevice};

use super::held::Held;
use crate::bus::pci::{Registers, Width};

/// The device's descriptor.
pub(super) fn fd(device: &VfioDevice) -> BorrowedFd<'_> {
    // SAFETY: the device owns the descriptor, and is borrowed for as long as this.
    unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) }
}

/// Has the interrupts from `first` on signal these eventfds, one each; -1 none.
pub(super) fn set_eventfds(
    device: &VfioDevice,
    index: u32,
    first: u32,
    eventfds: &[RawFd],
) -> io::Result<()> {
    // struct vfio_irq_set: argsz, flags, index, start, count, then the descriptors.
    let count = eventfds.len() as u32;
    let argsz = (5 + count) * 4;
    let words = [argsz, IRQ_DATA_EVENTFD | IRQ_ACTION_TRIGGER, index, first, count];
    let mut set: Vec<u32> = words.into_iter().chain(eventfds.iter().map(|fd| *fd as u32)).collect();
    // SAFETY: the argument is a whole `vfio_irq_set` of `argsz` bytes, which the kernel reads alone; it lives over the call.
    match unsafe { libc::ioctl(device.as_raw_fd(), SET_IRQS as _, set.as_mut_ptr()) } {
        0 => Ok(()),
        // So many could be had, and none was taken.
        fewer if fewer > 0 => {
            Err(io::Error::other(format!("the host has only {fewer} interrupt vectors for it")))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the kernel write to a place of the device's file whenever an eventfd is signalled; -1: not any more.
pub(super) fn ioeventfd(
    device: &VfioDevice,
    offset: u64,
    width: Width,
    value: u64,
    eventfd: RawFd,
) -> io::Result<()> {
    let argument = Ioeventfd {
        argsz: size_of::<Ioeventfd>() as u32,
        // Bits 0 to 3: one, two, four, eight bytes. The numbers of bytes are these bits.
        flags: width.bytes() as u32,
        offset,
        data: value,
        fd: eventfd,
        reserved: 0,
    };
    // SAFETY: the argument is a whole `vfio_device_ioeventfd`, which the kernel reads alone; it lives over the call.
    match unsafe { libc::ioctl(device.as_raw_fd(), IOEVENTFD as _, &raw const argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `struct vfio_device_ioeventfd`.
#[repr(C)]
struct Ioeventfd {
    argsz: u32,
    flags: u32,
    offset: u64,
    data: u64,
    fd: i32,
    reserved: u32,
}

/// Resets the function, if it can be.
pub(super) fn reset(device: &VfioDevice) -> io::Result<()> {
    // SAFETY: the call takes no argument.
    let outcome = unsafe { libc::ioctl(device.as_raw_fd(), RESET as _) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Maps part of a region for the device.
pub(super) fn map(
    container: &VfioContainer,
    iova: u64,
    region: &Region,
    at: u64,
    len: u64,
) -> io::Result<()> {
    if at.checked_add(len).is_none_or(|end| end > region.size()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let start = (region.host_address() + at) as usize as *mut u8;
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the bytes lie in the region, which is a shared mapping of a file: it is reached by raw pointers alone (see
    // `ringway_ring::guest`), never by reference, and others write to it at any time anyway. The kernel pins the pages, so
    // that until they are unmapped the device reaches these pages of the file and no others, whatever is mapped where they
    // were.
    let mapped = unsafe { container.vfio_dma_map(iova, len, start) };
    mapped.map_err(|error| match error {
        vfio_ioctls::VfioError::IommuDmaMap(error) => io::Error::from_raw_os_error(error.errno()),
        other => io::Error::other(other.to_string()),
    })
}

/// The addresses that the container can map. Kernels before 5.4 do not say: what every IOMMU can is taken then.
pub(super) fn iova_ranges(container: &impl AsRawFd) -> io::Result<Vec<RangeInclusive<u64>>> {
    let mut info = vec![0u8; INFO_BYTES];
    let bytes = info.len() as u32;
    info.get_mut(..4).unwrap_or_default().copy_from_slice(&bytes.to_ne_bytes());
    // SAFETY: the argument is a buffer of `argsz` bytes, of which the kernel writes at most so many; it lives over the call.
    if unsafe { libc::ioctl(container.as_raw_fd(), IOMMU_GET_INFO as _, info.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let ranges = ranges_in(&info);
    Ok(if ranges.is_empty() { vec![0..=(1 << 39) - 1] } else { ranges })
}

/// The list of ranges in a `struct vfio_iommu_type1_info`.
fn ranges_in(info: &[u8]) -> Vec<RangeInclusive<u64>> {
    let bytes = |at: usize, len: usize| at.checked_add(len).and_then(|end| info.get(at..end));
    let u16_at = |at| bytes(at, 2).and_then(|b| Some(u16::from_ne_bytes(b.try_into().ok()?)));
    let u32_at = |at| bytes(at, 4).and_then(|b| Some(u32::from_ne_bytes(b.try_into().ok()?)));
    let u64_at = |at| bytes(at, 8).and_then(|b| Some(u64::from_ne_bytes(b.try_into().ok()?)));
    if u32_at(4).is_none_or(|flags| flags & INFO_CAPS == 0) {
        return Vec::new();
    }
    let mut next = u32_at(16).unwrap_or(0) as usize;
    // Each is behind the one before, so this ends.
    while next != 0 {
        if u16_at(next) == Some(CAP_IOVA_RANGE) {
            let count = u32_at(next + 8).unwrap_or(0) as usize;
            let range = |n: usize| Some(u64_at(next + 16 + n * 16)?..=u64_at(next + 24 + n * 16)?);
            return (0..count).map_while(range).filter(|range| !range.is_empty()).collect();
        }
        next = u32_at(next + 4).map(|after| after as usize).filter(|after| *after > next).unwrap_or(0);
    }
    Vec::new()
}

/// Registers in memory: each access is one instruction.
pub(super) struct Mapped {
    mapping: MmapRaw,
    // The kernel has the function open for as long as it is mapped: let go of last.
    _held: Arc<Held>,
}

impl Mapped {
    /// Maps a region of the device.
    pub(super) fn new(device: &VfioDevice, held: Arc<Held>, offset: u64, size: u64) -> io::Result<Mapped> {
        let len = usize::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mapping = MmapOptions::new().offset(offset).len(len).map_raw(device)?;
        Ok(Mapped { mapping, _held: held })
    }

    /// Where the access goes; None: beyond it.
    #[inline]
    fn place(&self, at: u64, width: Width) -> Option<*mut u8> {
        let end = at.checked_add(width.bytes())?;
        if end > self.mapping.len() as u64 || !at.is_multiple_of(width.bytes()) {
            return None;
        }
        Some(self.mapping.as_mut_ptr().wrapping_add(at as usize))
    }
}

impl Registers for Mapped {
    fn size(&self) -> u64 {
        self.mapping.len() as u64
    }

    #[inline]
    fn read(&self, at: u64, width: Width) -> u64 {
        let Some(place) = self.place(at, width) else { return width.ones() };
        // SAFETY: `place` is aligned to the width, and all of it lies in the mapping, which lives as long as `self` and is
        // never reached by reference. Device memory: a volatile access is one access.
        unsafe {
            match width {
                Width::B1 => place.read_volatile().into(),
                Width::B2 => u16::from_le(place.cast::<u16>().read_volatile()).into(),
                Width::B4 => u32::from_le(place.cast::<u32>().read_volatile()).into(),
                Width::B8 => u64::from_le(place.cast::<u64>().read_volatile()),
            }
        }
    }

    #[inline]
    fn write(&self, at: u64, width: Width, value: u64) {
        let Some(place) = self.place(at, width) else { return };
        before_device();
        // SAFETY: as for `read`.
        unsafe {
            match width {
                Width::B1 => place.write_volatile(value as u8),
                Width::B2 => place.cast::<u16>().write_volatile((value as u16).to_le()),
                Width::B4 => place.cast::<u32>().write_volatile((value as u32).to_le()),
                Width::B8 => place.cast::<u64>().write_volatile(value.to_le()),
            }
        }
    }
}

/// What was written to memory is seen by the device before what is written to it next.
#[inline]
fn before_device() {
    // x86: uncached writes are not done before earlier writes. The compiler is held by this.
    #[cfg(target_arch = "x86_64")]
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    // Elsewhere a fence between processors is not one between a processor and a device.
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier touches no memory.
    unsafe {
        std::arch::asm!("dmb oshst", options(nostack, preserves_flags));
    }
}

// _IO(';', 100 + n) of linux/vfio.h.
const SET_IRQS: u32 = 0x3b6e;
const RESET: u32 = 0x3b6f;
const IOMMU_GET_INFO: u32 = 0x3b70;
const IOEVENTFD: u32 = 0x3b74;
const IRQ_DATA_EVENTFD: u32 = 1 << 2;
const IRQ_ACTION_TRIGGER: u32 = 1 << 5;
const INFO_CAPS: u32 = 1 << 1;
const CAP_IOVA_RANGE: u16 = 1;
/// Room for what the kernel tells of a container: some 200 bytes.
const INFO_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_among_other_capabilities_and_nonsense_gives_none() {
        let mut info = vec![0u8; 128];
        info[4] = 2;
        info[16] = 24;
        // Another capability, then the ranges.
        info[24] = 2;
        info[28] = 40;
        info[40] = 1;
        info[48] = 2;
        info[64..72].copy_from_slice(&0xfed_fffffu64.to_ne_bytes());
        info[72..80].copy_from_slice(&0xfef0_0000u64.to_ne_bytes());
        info[80..88].copy_from_slice(&0xffff_ffff_ffffu64.to_ne_bytes());
        assert_eq!(ranges_in(&info), [0..=0xfed_fffff, 0xfef0_0000..=0xffff_ffff_ffff]);
        info[28] = 24;
        assert!(ranges_in(&info).is_empty(), "a list in a circle");
        info[28] = 40;
        info[48] = 200;
        assert_eq!(ranges_in(&info).len(), 4, "as many as there is room for, empty ones left out");
        assert!(ranges_in(&[]).is_empty() && ranges_in(&[0xff; 20]).is_empty());
    }
}
