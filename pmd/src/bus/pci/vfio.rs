//! A function through the kernel's VFIO: a container of its own, which is its DMA space, its registers mapped where the host lets
//! us, its interrupts on eventfds. `vfio-ioctls` opens and maps; what it lacks stands in [`sys`].

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringway_ring::guest::Region;
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError, VfioRegionInfoCap};

use super::{Address, Doorbell, Function, NO_DRIVER, OpenError, Registers, View, Width};
use crate::dma::DmaSpace;

mod held;
// What the kernel offers and `vfio-ioctls` does not; and registers in memory.
mod sys;
use held::Held;
use sys::Mapped;

/// Opens the function at `path` of sysfs. Where this process is just closing it, waits for that.
///
/// # Errors
/// See [`OpenError`].
pub(super) fn open(path: &Path, address: Address) -> Result<Arc<dyn Function>, OpenError> {
    let begun = Instant::now();
    loop {
        // Asked first: it may be closed once it was tried.
        let is_ours = Held::is(address);
        match try_open(path, address) {
            Err(OpenError::Busy { .. }) if is_ours && begun.elapsed() < CLOSED_WITHIN => {
                std::thread::sleep(CLOSED_STEP);
            }
            // Looked for once: a host may have many processes.
            Err(OpenError::Busy { address, group, .. }) => {
                let holder = holder(group);
                // Or all but what nobody lets go of is closed, and another has it.
                return Err(if is_ours && holder.as_deref().is_none_or(is_this_process) {
                    OpenError::Closing(address)
                } else {
                    OpenError::Busy { address, group, holder }
                });
            }
            tried => return tried,
        }
    }
}

/// See [`open`]. Never waits for anybody, and does not look for who has it.
fn try_open(path: &Path, address: Address) -> Result<Arc<dyn Function>, OpenError> {
    if !path.exists() {
        return Err(OpenError::NotThere(address));
    }
    let driver = link_name(&path.join("driver"));
    if driver.as_deref() != Some(VFIO_PCI) {
        let driver = driver.unwrap_or_else(|| NO_DRIVER.to_owned());
        return Err(OpenError::OtherDriver { address, driver });
    }
    let group = link_name(&path.join("iommu_group")).and_then(|name| name.parse().ok());
    let Some(group) = group else {
        return Err(OpenError::NoIommu(format!(
            "PCI function {address} has no IOMMU group: no IOMMU is in use"
        )));
    };
    let named = |error: VfioError| refusal(address, path, group, &error);
    let container = Arc::new(VfioContainer::new(None).map_err(named)?);
    // Let go of after what is opened next, should that fail.
    let held = Arc::new(Held::new(address));
    let device = VfioDevice::new(path, Arc::clone(&container) as _, false).map_err(named)?;
    let host = |what: &str, error: &io::Error| OpenError::Host { address, why: format!("{what}: {error}") };
    let vectors = device.get_irq_info(MSI_X).map_or(0, |irq| irq.count.min(MOST_VECTORS) as u16);
    let function = VfioFunction {
        address,
        vectors,
        space: Arc::new(
            Space::new(container, Arc::clone(&held)).map_err(|error| host("IOVA ranges", &error))?,
        ),
        device: Arc::new(Open { device: Some(device), _held: Some(Arc::clone(&held)) }),
        held,
        is_enabled: Mutex::new(false),
    };
    // Memory and bus mastering: what VFIO leaves off.
    let (config, wanted) = (function.config(), COMMAND_MEMORY | COMMAND_MASTER);
    config.write16(COMMAND, config.read16(COMMAND) | wanted);
    if config.read16(COMMAND) & COMMAND_MASTER == 0 {
        return Err(host("bus mastering", &io::Error::other("does not go on")));
    }
    Ok(Arc::new(function))
}

/// Why, by what the crate says and what the host shows.
fn refusal(address: Address, path: &Path, group: u32, error: &VfioError) -> OpenError {
    match error {
        // The kernel has it, since a function is bound to it.
        VfioError::OpenContainer(error) => OpenError::Hidden { address, why: error.to_string() },
        VfioError::OpenGroup(error, _) => match error.raw_os_error() {
            Some(libc::EBUSY) => OpenError::Busy { address, group, holder: None },
            Some(libc::EACCES | libc::EPERM) => OpenError::Forbidden { address, group },
            _ => OpenError::Host { address, why: format!("/dev/vfio/{group}: {error}") },
        },
        VfioError::GroupViable => OpenError::NotViable { address, group, why: others(path, address) },
        error => OpenError::Host { address, why: error.to_string() },
    }
}

/// The last part of what a link points to.
pub(super) fn link_name(path: &Path) -> Option<String> {
    let target = std::fs::read_link(path).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// Which other functions of the group are bound to what.
fn others(path: &Path, own: Address) -> String {
    let own = own.to_string();
    let names = std::fs::read_dir(path.join("iommu_group/devices")).into_iter().flatten().flatten();
    let bound = names.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let driver = link_name(&entry.path().join("driver"))?;
        (name != own && driver != VFIO_PCI).then(|| format!("{name} is bound to {driver}"))
    });
    let bound: Vec<String> = bound.collect();
    if bound.is_empty() {
        "another function of it is bound to another driver".to_owned()
    } else {
        bound.join(", ")
    }
}

/// Who has the group open, where this process may see it.
fn holder(group: u32) -> Option<String> {
    let file = format!("/dev/vfio/{group}");
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let holds = |process: &std::fs::DirEntry| {
        let files = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        files
            .filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .any(|target| target.as_os_str() == file.as_str())
    };
    let process =
        processes.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok()).find(holds)?;
    let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
    Some(format!("process {} ({})", process.file_name().to_string_lossy(), name.trim().escape_debug()))
}

/// What [`holder`] gives of this process.
fn is_this_process(holder: &str) -> bool {
    holder.starts_with(&format!("process {} (", std::process::id()))
}

/// An open device. `vfio-ioctls` closes it and then looks at its link in sysfs, and panics where that has gone meanwhile: the
/// panic goes no further, and what it left is let go with the container.
struct Open {
    device: Option<VfioDevice>,
    // Let go of last.
    _held: Option<Arc<Held>>,
}

impl Open {
    fn device(&self) -> Option<&VfioDevice> {
        self.device.as_ref()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let device = self.device.take();
        let closed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(device)));
        // Nothing is left to be done for it.
        drop(closed);
    }
}

struct VfioFunction {
    address: Address,
    vectors: u16,
    // In this order: registers and device are let go before the memory that it reaches.
    device: Arc<Open>,
    space: Arc<Space>,
    /// Its vectors are there to be bound.
    is_enabled: Mutex<bool>,
    held: Arc<Held>,
}

impl fmt::Debug for VfioFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioFunction").field("address", &self.address).finish_non_exhaustive()
    }
}

impl VfioFunction {
    fn device(&self) -> io::Result<&VfioDevice> {
        self.device.device().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Registers that are reached by a system call each.
    fn region(&self, index: u32) -> Option<Calls> {
        let device = self.device.device()?;
        let (offset, size) = (device.get_region_offset(index), device.get_region_size(index));
        Some(Calls { device: Arc::clone(&self.device), offset, size })
    }
}

impl Function for VfioFunction {
    fn config(&self) -> View {
        let nothing = || Calls { device: Arc::new(Open { device: None, _held: None }), offset: 0, size: 0 };
        View::new(Arc::new(self.region(CONFIG).unwrap_or_else(nothing)))
    }

    fn bar(&self, index: u8) -> io::Result<View> {
        let index = u32::from(index);
        let calls = self.region(index).filter(|region| index <= LAST_BAR && region.size > 0);
        let calls = calls
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no BAR {index}")))?;
        let device = self.device()?;
        // One with holes in what may be mapped (its vector table) is reached by system calls as a whole.
        let flags = device.get_region_flags(index);
        let has_holes =
            device.get_region_caps(index).iter().any(|cap| matches!(cap, VfioRegionInfoCap::SparseMmap(_)));
        let can_map = flags & REGION_MMAP != 0 && !has_holes;
        match can_map.then(|| Mapped::new(device, Arc::clone(&self.held), calls.offset, calls.size)) {
            Some(mapped) => Ok(View::new(Arc::new(mapped?))),
            None => Ok(View::new(Arc::new(calls))),
        }
    }

    fn dma(&self) -> Arc<dyn DmaSpace> {
        Arc::clone(&self.space) as _
    }

    fn vectors(&self) -> u16 {
        self.vectors
    }

    fn bind(&self, vector: u16, to: Option<BorrowedFd<'_>>) -> io::Result<()> {
        if vector >= self.vectors {
            let why = format!("there is no vector {vector}: the function has {}", self.vectors);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let device = self.device()?;
        // The lock is held for two system calls.
        let mut is_enabled = self.is_enabled.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_enabled {
            // All of them at once, bound to nothing: how many there are cannot change later on every kernel.
            sys::set_eventfds(device, MSI_X, 0, &vec![-1; self.vectors.into()])?;
            *is_enabled = true;
        }
        sys::set_eventfds(device, MSI_X, vector.into(), &[to.map_or(-1, |fd| fd.as_raw_fd())])
    }

    fn bind_doorbell(&self, doorbell: &Doorbell, from: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let Doorbell { bar, at, width, value } = *doorbell;
        let region = self.region(bar.into()).filter(|_| u32::from(bar) <= LAST_BAR);
        let region =
            region.filter(|region| at.checked_add(width.bytes()).is_some_and(|end| end <= region.size));
        let Some(region) = region else {
            let why = format!("there is no doorbell at {at:#x} of BAR {bar}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        };
        let (device, place) = (self.device()?, region.offset + at);
        // The kernel takes one at a time for a place and a value, and says so of a second.
        match sys::ioeventfd(device, place, width, value, -1) {
            Err(error) if error.raw_os_error() != Some(libc::ENODEV) => return Err(error),
            _ => {}
        }
        match from {
            Some(from) => sys::ioeventfd(device, place, width, value, from.as_raw_fd()),
            None => Ok(()),
        }
    }

    fn on_wanted_back(&self, told: BorrowedFd<'_>) -> io::Result<()> {
        sys::set_eventfds(self.device()?, REQUEST, 0, &[told.as_raw_fd()])
    }

    fn reset(&self) -> io::Result<()> {
        sys::reset(self.device()?)
    }
}

/// Registers by `pread` and `pwrite`: configuration space, and BARs that cannot be mapped.
struct Calls {
    device: Arc<Open>,
    offset: u64,
    size: u64,
}

impl Registers for Calls {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, at: u64, width: Width) -> u64 {
        let mut bytes = [0; 8];
        let (want, place) = (width.bytes() as usize, self.offset + at);
        let into = bytes.get_mut(..want).unwrap_or_default();
        match self.device.device().map(|device| rustix::io::pread(sys::fd(device), into, place)) {
            Some(Ok(read)) if read == want => u64::from_le_bytes(bytes),
            _ => width.ones(),
        }
    }

    fn write(&self, at: u64, width: Width, value: u64) {
        let (bytes, place) = (value.to_le_bytes(), self.offset + at);
        let from = bytes.get(..width.bytes() as usize).unwrap_or_default();
        if let Some(device) = self.device.device() {
            // Nothing answers: as if it had been written.
            let _ = rustix::io::pwrite(sys::fd(device), from, place);
        }
    }
}

/// What the function can reach: a container of type 1.
struct Space {
    container: Arc<VfioContainer>,
    ranges: Vec<RangeInclusive<u64>>,
    // Let go of last.
    _held: Arc<Held>,
}

impl Space {
    fn new(container: Arc<VfioContainer>, held: Arc<Held>) -> io::Result<Space> {
        let ranges = sys::iova_ranges(&*container)?;
        Ok(Space { container, ranges, _held: held })
    }
}

impl DmaSpace for Space {
    fn map(&self, iova: u64, region: &Region, at: u64, len: u64) -> io::Result<()> {
        sys::map(&self.container, iova, region, at, len).map_err(|error| {
            if error.raw_os_error() != Some(libc::ENOMEM) {
                return error;
            }
            let most = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
            let most = most.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{} KiB", bytes >> 10));
            let why = format!(
                "no more memory may be locked (RLIMIT_MEMLOCK is {most}; a device needs its guest's memory locked: \
                 LimitMEMLOCK=infinity in ringwayd's unit, or ulimit -l)"
            );
            io::Error::new(io::ErrorKind::OutOfMemory, why)
        })
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.container.vfio_dma_unmap(iova, len).map_err(|error| io::Error::other(error.to_string()))
    }

    fn ranges(&self) -> Vec<RangeInclusive<u64>> {
        self.ranges.clone()
    }
}

/// How long whoever opens a function waits for this process to close it: the memory of its last guest is unlocked first.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);
/// How often it is tried meanwhile.
const CLOSED_STEP: Duration = Duration::from_millis(20);

/// Vectors of a function that are used: one for each queue of a device, and one.
const MOST_VECTORS: u32 = 33;

/// The kernel's driver that makes a function available.
pub(super) const VFIO_PCI: &str = "vfio-pci";

// Regions and interrupts of a PCI function, as linux/vfio.h numbers them.
const LAST_BAR: u32 = 5;
const CONFIG: u32 = 7;
const MSI_X: u32 = 2;
const REQUEST: u32 = 4;
const REGION_MMAP: u32 = 1 << 2;

// In configuration space.
const COMMAND: u64 = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vfio_that_is_hidden_from_this_process_is_no_lack_of_an_iommu() {
        let address: Address = "0000:01:10.2".parse().unwrap();
        for errno in [libc::ENOENT, libc::EPERM] {
            let error = VfioError::OpenContainer(io::Error::from_raw_os_error(errno));
            let refused = refusal(address, Path::new("/nonexistent"), 7, &error);
            assert!(refused.hint().contains("vfio.conf"), "{refused}: {}", refused.hint());
        }
    }
}
