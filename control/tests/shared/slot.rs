//! What functions in this process have in common, whatever they are: the slot that one is in, by which it is opened, reaches memory
//! and is pulled; what its driver did that it must not; faults as data; and a bus that announces it.
//!
//! A model of a function is a value with a [`Slot`] and its [`Rules`], and a type that implements
//! [`Function`](ringway_pmd::bus::pci::Function) for who has it open; its registers ask the rules first.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use ringway_pmd::bus::pci::host::INFO;
use ringway_pmd::bus::pci::{Address, Device, OpenError, Width};
use ringway_pmd::bus::{Bus, BusEvent, BusInfo};
use ringway_pmd::dma::DmaSpace;
use ringway_pmd::drivers::functions::Seen;
use ringway_pmd::notify::EventFd;
use ringway_ring::guest::{GuestMap, Region, RegionSpec};

/// Where a function is.
pub struct Slot {
    pub address: Address,
    pub space: Arc<Space>,
    is_gone: AtomicBool,
    /// Somebody has it open.
    is_open: AtomicBool,
    /// What the driver did that it must not.
    faults: Mutex<Vec<String>>,
}

impl Slot {
    pub fn new(address: &str) -> Slot {
        Slot {
            address: address.parse().unwrap(),
            space: Arc::default(),
            is_gone: AtomicBool::new(false),
            is_open: AtomicBool::new(false),
            faults: Mutex::default(),
        }
    }

    /// It is pulled out: everything reads all ones.
    pub fn pull(&self) {
        self.is_gone.store(true, Ordering::SeqCst);
    }

    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::SeqCst)
    }

    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::SeqCst)
    }

    pub fn fault(&self, what: impl Into<String>) {
        self.faults.lock().unwrap().push(what.into());
    }

    pub fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap().clone()
    }

    /// Somebody opens it, or is told why not.
    pub fn open(&self) -> Result<(), OpenError> {
        let address = self.address;
        if self.is_gone() {
            return Err(OpenError::NotThere(address));
        }
        if self.is_open.swap(true, Ordering::SeqCst) {
            let holder = Some("process 1 (other)".to_owned());
            return Err(OpenError::Busy { address, group: 7, holder });
        }
        Ok(())
    }

    /// Who opened it lets it go, by its being dropped.
    pub fn close(&self) {
        if self.space.mapped() > 0 {
            self.fault("closed with memory mapped");
        }
        self.is_open.store(false, Ordering::SeqCst);
    }
}

/// What happens instead of what should: at something (an access, a command, a frame), something else, so often.
pub struct Rules<On, Then>(Mutex<Vec<(On, Then, usize)>>);

impl<On, Then> Default for Rules<On, Then> {
    fn default() -> Rules<On, Then> {
        Rules(Mutex::default())
    }
}

impl<On: PartialEq, Then: Copy> Rules<On, Then> {
    pub fn add(&self, on: On, then: Then, times: usize) {
        self.0.lock().unwrap().push((on, then, times));
    }

    /// What a rule says of this, if one does.
    pub fn take(&self, on: &On) -> Option<Then> {
        let mut rules = self.0.lock().unwrap();
        let (_, then, times) = rules.iter_mut().find(|(its, _, times)| its == on && *times > 0)?;
        *times -= 1;
        Some(*then)
    }

    /// All that was to happen instead of something has begun to.
    pub fn are_used_up(&self) -> bool {
        self.0.lock().unwrap().iter().all(|(_, _, times)| *times == 0)
    }

    pub fn are_none(&self) -> bool {
        self.0.lock().unwrap().is_empty()
    }

    pub fn forget(&self) {
        self.0.lock().unwrap().clear();
    }
}

/// What a function can reach.
#[derive(Default)]
pub struct Space(Mutex<BTreeMap<u64, Arc<Region>>>);

impl Space {
    /// All of it, by the addresses that the function has for it.
    pub fn map(&self) -> Arc<GuestMap> {
        Arc::new(GuestMap::new(self.0.lock().unwrap().values().cloned().collect()).unwrap())
    }

    /// Bytes of it.
    pub fn mapped(&self) -> u64 {
        self.0.lock().unwrap().values().map(|region| region.size()).sum()
    }
}

impl DmaSpace for Space {
    fn map(&self, iova: u64, region: &Region, at: u64, len: u64) -> io::Result<()> {
        let file = region.file().try_clone_to_owned()?;
        let file_offset = region.file_offset() + at;
        let spec = RegionSpec { gpa: iova, size: len, user_addr: iova, file_offset, file };
        let region = Region::map(spec).map_err(io::Error::other)?;
        assert!(self.0.lock().unwrap().insert(iova, region).is_none());
        Ok(())
    }
    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        let region = self.0.lock().unwrap().remove(&iova);
        assert!(region.is_some_and(|region| region.size() == len));
        Ok(())
    }
    fn ranges(&self) -> Vec<RangeInclusive<u64>> {
        vec![0..=0xfedf_ffff, 0xfef0_0000..=0xffff_ffff_ffff]
    }
}

/// A bus on which functions in this process are.
#[derive(Clone)]
pub struct ModelBus {
    news: Arc<EventFd>,
    events: Arc<Mutex<Vec<BusEvent<Device<Seen>>>>>,
}

impl ModelBus {
    pub fn new() -> ModelBus {
        ModelBus { news: Arc::new(EventFd::new().unwrap()), events: Arc::default() }
    }

    pub fn plug(&self, device: Device<Seen>) {
        self.tell(BusEvent::Announced { address: device.address.to_string(), device });
    }

    /// Takes the function of this name off it.
    pub fn unplug(&self, name: &str) {
        let address = name.trim_start_matches("pci/").to_owned();
        self.tell(BusEvent::Withdrawn { address, why: "it is gone from the bus".to_owned() });
    }

    fn tell(&self, event: BusEvent<Device<Seen>>) {
        self.events.lock().unwrap().push(event);
        self.news.signal();
    }
}

impl Bus for ModelBus {
    type Device = Device<Seen>;
    fn info(&self) -> BusInfo {
        INFO
    }
    fn news(&self) -> Option<BorrowedFd<'_>> {
        Some(self.news.as_fd())
    }
    fn take(&mut self) -> Vec<BusEvent<Device<Seen>>> {
        self.news.clear();
        std::mem::take(&mut *self.events.lock().unwrap())
    }
}

/// The same event, by a descriptor of one's own.
pub fn dup(fd: BorrowedFd<'_>) -> EventFd {
    EventFd::from_peer(fd.try_clone_to_owned().unwrap()).unwrap()
}

/// What registers that hold these bytes read as; 0 behind them.
pub fn read_bytes(bytes: &[u8], at: u64, width: Width) -> u64 {
    let read = bytes.iter().skip(at as usize).take(width.bytes() as usize).rev();
    read.fold(0, |value, byte| value << 8 | u64::from(*byte))
}
