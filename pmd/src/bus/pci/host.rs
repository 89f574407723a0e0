//! The functions of this host that are bound to vfio-pci: found in sysfs, and watched.
//!
//! A thread of its own looks once a second, and whenever the kernel tells that a device came, went or was bound. A function that a
//! driver wants it opens, looks at and closes again, which takes some 200 ms that control does not wait, and announces it. It
//! waits a second before: who binds a function for somebody else has it by then.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::DirEntry;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, netlink};

use super::vfio::{self, VFIO_PCI, link_name};
use super::{Address, BadAddress, Device, Examiner, Id, OpenError, Opener, bind_hint};
use crate::bus::{Bus, BusEvent, BusInfo};
use crate::notify::EventFd;

/// The bus of this host.
pub struct HostBus<T> {
    shared: Arc<Shared<T>>,
    news: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl<T> fmt::Debug for HostBus<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostBus").finish_non_exhaustive()
    }
}

struct Shared<T> {
    devices: PathBuf,
    examiners: Vec<Examiner<T>>,
    events: Mutex<Vec<BusEvent<Device<T>>>>,
    news: Arc<EventFd>,
    /// Wakes the thread.
    wake: EventFd,
    is_ending: AtomicBool,
}

/// A function as the thread knows it.
struct Known {
    since: Instant,
    /// When it was looked at last.
    tried: Instant,
    /// What was told of it last: Some is the reason why it could not be looked at.
    told: Option<Option<OpenError>>,
}

impl<T: Send + 'static> HostBus<T> {
    /// Starts to look. Where there is no PCI bus, nothing is ever found.
    ///
    /// # Errors
    /// No thread, or no descriptors.
    pub fn start(examiners: Vec<Examiner<T>>) -> io::Result<HostBus<T>> {
        HostBus::at(Path::new(DEVICES), examiners)
    }

    fn at(devices: &Path, examiners: Vec<Examiner<T>>) -> io::Result<HostBus<T>> {
        let news = Arc::new(EventFd::new()?);
        let shared = Arc::new(Shared {
            devices: devices.to_owned(),
            examiners,
            events: Mutex::default(),
            news: Arc::clone(&news),
            wake: EventFd::new()?,
            is_ending: AtomicBool::new(false),
        });
        let looker = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("rw-pci".to_owned()).spawn(move || look(&looker))?;
        Ok(HostBus { shared, news, thread: Some(thread) })
    }
}

/// What the bus says of itself.
pub const INFO: BusInfo = BusInfo {
    name: "pci",
    shape: "DDDD:BB:DD.F",
    check: |text| text.parse::<Address>().map(drop).map_err(|bad| bad.to_string()),
    missing: |text| text.parse().map_or_else(|bad: BadAddress| bad.to_string(), missing),
};

/// What an operator does so that a function of this address is found.
fn missing(address: Address) -> String {
    missing_of(Path::new(DEVICES), address)
}

fn missing_of(devices: &Path, address: Address) -> String {
    let path = devices.join(address.to_string());
    if !path.exists() {
        return OpenError::NotThere(address).hint();
    }
    if !path.join("iommu_group").exists() {
        // vfio-pci would not take it.
        return format!("it has no IOMMU group: {}", OpenError::NoIommu(String::new()).hint());
    }
    match link_name(&path.join("driver")) {
        Some(driver) if driver == VFIO_PCI => {
            "ringwayd looks at it within some two seconds of its binding; if it is not shown then, it is no function that this build drives \
             (docs/hardware.md)"
                .to_owned()
        }
        driver => bind_hint(address, driver.is_some()),
    }
}

impl<T: Send + 'static> Bus for HostBus<T> {
    type Device = Device<T>;

    fn info(&self) -> BusInfo {
        INFO
    }

    fn news(&self) -> Option<BorrowedFd<'_>> {
        Some(self.news.as_fd())
    }

    fn take(&mut self) -> Vec<BusEvent<Device<T>>> {
        self.news.clear();
        std::mem::take(&mut *self.shared.events.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> Drop for HostBus<T> {
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::Relaxed);
        self.shared.wake.signal();
        if let Some(thread) = self.thread.take() {
            // It panics nowhere; if it did, there is nothing to do about it here.
            let _ = thread.join();
        }
    }
}

/// The thread.
fn look<T>(shared: &Shared<T>) {
    let (events, mut known) = (kernel_events().ok(), BTreeMap::new());
    // What is there at the start was bound before.
    once(shared, &mut known, Duration::ZERO);
    while !shared.is_ending.load(Ordering::Relaxed) {
        let mut wait = vec![PollFd::new(&shared.wake, PollFlags::IN)];
        wait.extend(events.iter().map(|events| PollFd::new(events, PollFlags::IN)));
        // Interrupted: looked again at once.
        let _ = rustix::event::poll(&mut wait, Some(&EVERY));
        shared.wake.clear();
        // What they say does not matter, nor that some were lost: that something changed is enough.
        let mut said = [0u8; 4096];
        while events.as_ref().is_some_and(|events| rustix::io::read(events, &mut said).is_ok()) {}
        once(shared, &mut known, OTHERS_FIRST);
    }
}

/// The kernel's events of devices.
fn kernel_events() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::KOBJECT_UEVENT))?;
    net::bind(&socket, &netlink::SocketAddrNetlink::new(0, KERNEL_GROUP))?;
    Ok(socket)
}

/// One look. A function that is new is left to others for so long.
fn once<T>(shared: &Shared<T>, known: &mut BTreeMap<Address, Known>, others_first: Duration) {
    let bound = bound(&shared.devices);
    let gone: Vec<Address> = known.keys().filter(|address| !bound.contains(address)).copied().collect();
    for address in gone {
        if known.remove(&address).is_none_or(|known| known.told.is_none()) {
            continue;
        }
        let is_there = shared.devices.join(address.to_string()).exists();
        let why = if is_there { "it is not bound to vfio-pci any more" } else { "it is gone from the bus" };
        shared.tell(BusEvent::Withdrawn { address: address.to_string(), why: why.to_owned() });
    }
    for address in bound {
        let path = shared.devices.join(address.to_string());
        // Gone since, or nobody's.
        let Some(id) = id(&path) else { continue };
        let Some(examiner) = shared.examiners.iter().find(|examiner| (examiner.wants)(id)) else { continue };
        let known = known.entry(address).or_insert_with(|| {
            let now = Instant::now();
            Known { since: now, tried: now, told: None }
        });
        let is_done = match &known.told {
            None => known.since.elapsed() < others_first,
            // What it is does not change.
            Some(None | Some(OpenError::Unfit { .. })) => true,
            Some(Some(_)) => known.tried.elapsed() < RETRY_AFTER,
        };
        if is_done {
            continue;
        }
        known.tried = Instant::now();
        let numa_node = text(&path.join("numa_node")).and_then(|node| node.parse().ok());
        let opener: Opener = Arc::new(move || vfio::open(&path, address));
        let seen = examiner.examine(address, &opener);
        let failed = seen.as_ref().err().cloned();
        if known.told.as_ref() == Some(&failed) {
            continue;
        }
        known.told = Some(failed);
        let device = Device { address, id, numa_node, opener, seen };
        shared.tell(BusEvent::Announced { address: address.to_string(), device });
    }
}

/// The functions that are bound to vfio-pci.
fn bound(devices: &Path) -> Vec<Address> {
    let entries = std::fs::read_dir(devices).into_iter().flatten().flatten();
    let is_bound = |entry: &DirEntry| link_name(&entry.path().join("driver")).as_deref() == Some(VFIO_PCI);
    let address = |entry: DirEntry| entry.file_name().to_str()?.parse().ok();
    let mut bound: Vec<Address> = entries.filter(is_bound).filter_map(address).collect();
    bound.sort_unstable();
    bound
}

/// What a function is, by sysfs.
fn id(path: &Path) -> Option<Id> {
    let wide = |name: &str| {
        let text = text(&path.join(name))?;
        u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
    };
    let number = |name: &str| wide(name).and_then(|number| u16::try_from(number).ok());
    Some(Id {
        vendor: number("vendor")?,
        device: number("device")?,
        subsystem_vendor: number("subsystem_vendor")?,
        subsystem: number("subsystem_device")?,
        class: wide("class").unwrap_or(0),
    })
}

fn text(path: &Path) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

impl<T> Shared<T> {
    fn tell(&self, event: BusEvent<Device<T>>) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        self.news.signal();
    }
}

/// Where the kernel has the functions of this host.
const DEVICES: &str = "/sys/bus/pci/devices";
/// Between two looks, where the kernel tells nothing (in a network namespace of ours).
const EVERY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// Who binds a function to vfio-pci for somebody else has this time.
const OTHERS_FIRST: Duration = Duration::from_secs(1);
/// What could not be opened is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// The group of netlink messages that come from the kernel, and not from udev.
const KERNEL_GROUP: u32 = 1;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// What the bus tells next.
    fn next(bus: &mut HostBus<()>) -> BusEvent<Device<()>> {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < Duration::from_secs(20));
            if let Some(event) = bus.take().pop() {
                return event;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn function_that_is_not_driven_is_told_of_by_what_it_lacks_first() {
        let sysfs = tempfile::tempdir().unwrap();
        let address: Address = "0000:01:10.2".parse().unwrap();
        let missing = || missing_of(sysfs.path(), address);
        assert!(missing().contains("sriov_numvfs"));
        let function = sysfs.path().join(address.to_string());
        std::fs::create_dir(&function).unwrap();
        symlink("../../drivers/virtio-pci", function.join("driver")).unwrap();
        assert!(missing().starts_with("it has no IOMMU group: start the kernel with intel_iommu=on"));
        symlink("..", function.join("iommu_group")).unwrap();
        assert!(missing().contains("driver/unbind; echo vfio-pci"), "{}", missing());
        std::fs::remove_file(function.join("driver")).unwrap();
        symlink("../../drivers/vfio-pci", function.join("driver")).unwrap();
        assert!(missing().contains("within some two seconds"));
    }

    #[test]
    fn functions_are_announced_once_they_are_bound_and_withdrawn_once_they_are_not() {
        let sysfs = tempfile::tempdir().unwrap();
        let function = sysfs.path().join("0000:01:10.2");
        std::fs::create_dir(&function).unwrap();
        for (file, text) in [
            ("vendor", "0x1af4"),
            ("device", "0x1041"),
            ("subsystem_vendor", "0x1af4"),
            ("subsystem_device", "0x1100"),
            ("class", "0x020000"),
            ("numa_node", "-1"),
        ] {
            std::fs::write(function.join(file), format!("{text}\n")).unwrap();
        }
        let other = sysfs.path().join("0000:01:10.3");
        std::fs::create_dir(&other).unwrap();
        for file in ["vendor", "device", "subsystem_vendor", "subsystem_device"] {
            std::fs::write(other.join(file), "0x1234\n").unwrap();
        }
        symlink("../../drivers/vfio-pci", other.join("driver")).unwrap();
        let other_one = Examiner { wants: |id| id.vendor == 0x8086, look: |_| Ok(()) };
        let examiner = Examiner { wants: |id| id.vendor == 0x1af4, look: |_| Ok(()) };
        let mut bus = HostBus::at(sysfs.path(), vec![other_one, examiner]).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(bus.take().is_empty(), "bound to nothing");
        let bound = Instant::now();
        symlink("../../drivers/vfio-pci", function.join("driver")).unwrap();
        let BusEvent::Announced { address, device } = next(&mut bus) else { unreachable!("not announced") };
        assert!(bound.elapsed() >= OTHERS_FIRST, "others come first");
        assert_eq!((address.as_str(), device.numa_node), ("0000:01:10.2", None));
        let id = Id {
            vendor: 0x1af4,
            device: 0x1041,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            class: 0x020000,
        };
        assert_eq!(device.id, id);
        assert!(matches!(device.seen, Err(OpenError::NoIommu(_))), "{:?}", device.seen);
        // At once, as the kernel does it.
        std::fs::rename(&function, sysfs.path().join("gone")).unwrap();
        let BusEvent::Withdrawn { why, .. } = next(&mut bus) else { unreachable!("not withdrawn") };
        assert_eq!(why, "it is gone from the bus");
    }
}
