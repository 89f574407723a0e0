//! `file`: a file or a block device of the host as a disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ringway_ring::guest::GuestMap;
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::block::disk::{BlockDevice, Disk, Geometry, QueueSeat};
use crate::block::file::{Cache, FileQueue, OpenFile, Ours, Wish, watch};
use crate::block::plan::{ATTRIBUTES, MAX_QUEUES, Plan, RO};
use crate::block::{BLOCK, RangeLimits};
use crate::later;
use crate::net::plan::{switch, word};
use crate::uring::Registered;
use crate::vdpa::{
    AttributeInfo, Class, DeviceHost, DeviceSpec, DriverError, Health, ManagementDevice, MgmtInfo, Unfit,
    VdpaDevice,
};

/// The management device.
#[derive(Debug, Default)]
pub struct FileDisks {
    /// Files that are being opened: one that hangs is opened once.
    opening: BTreeMap<PathBuf, Weak<()>>,
    /// Those that are open, and the device of each.
    open: Vec<(Weak<OpenFile>, Ours)>,
}

impl FileDisks {
    /// Ready to make devices.
    pub fn new() -> FileDisks {
        FileDisks::default()
    }

    /// How long control waits for one more file: less while another hangs, since all of a server that is away do.
    fn patience(&self) -> Duration {
        if self.opening.is_empty() { LOOK_WITHIN } else { LOOK_WITHIN_BESIDE }
    }

    /// Opens a file in a moment, or leaves it at that.
    fn open(&mut self, wish: Wish, name: &str) -> Result<Arc<OpenFile>, DriverError> {
        let path = wish.path.clone();
        let hangs = || {
            let what = format!(
                "path {}: it does not answer, as a network file system whose server is away",
                path.display()
            );
            DriverError::Resource { what, source: std::io::ErrorKind::TimedOut.into() }
        };
        self.opening.retain(|_, opening| opening.strong_count() > 0);
        if self.opening.contains_key(&path) {
            return Err(hangs());
        }
        let within = self.patience();
        let mark = Arc::new(());
        self.opening.insert(path.clone(), Arc::downgrade(&mark));
        self.open.retain(|(file, ..)| file.strong_count() > 0);
        // Of the device itself it is what it had before.
        let of_before = |ours: &Ours| Ours { is_gone: ours.is_gone || ours.device == name, ..ours.clone() };
        let ours: Vec<Ours> = self.open.iter().map(|(_, ours)| of_before(ours)).collect();
        let opened = later::within(within, move || {
            let opened = OpenFile::open(wish, LOCKED_WITHIN, &ours);
            drop(mark);
            opened
        });
        let opened = opened.unwrap_or_else(|| Err(hangs()))?;
        let ours = Ours { identity: opened.identity, device: name.to_owned(), is_gone: false };
        self.open.push((Arc::downgrade(&opened), ours));
        Ok(opened)
    }
}

impl ManagementDevice for FileDisks {
    fn info(&self) -> MgmtInfo {
        let mut attributes = vec![
            AttributeInfo {
                name: PATH,
                value: "FILE",
                help: "the file or block device that is the disk, whole; its size is the disk's",
                live: None,
            },
            AttributeInfo {
                name: CACHE,
                value: "direct|buffered",
                help: "direct: past the host's memory; buffered: by way of it (default direct where the file system can)",
                live: None,
            },
        ];
        attributes.push(AttributeInfo {
            name: REGISTER,
            value: "on|off",
            help: "on: all of the guest's memory is pinned, and requests look up no page of it (default off); it ends overcommit, \
                   ballooning and postcopy, and takes seconds where a large guest starts",
            live: None,
        });
        attributes.extend(ATTRIBUTES);
        MgmtInfo {
            name: NAME.to_owned(),
            class: Class::Block,
            max_supported_vqs: MAX_QUEUES.into(),
            max_devices: None,
            features: BLOCK,
            attributes,
            functions: None,
            summary: "files and block devices of the host as disks",
            check: |_, spec| wish(spec).map(drop),
        }
    }

    fn removed(&mut self, name: &str) {
        let its = self.open.iter_mut().filter(|(_, ours)| ours.device == name);
        its.for_each(|(_, ours)| ours.is_gone = true);
    }

    fn create(&mut self, spec: &DeviceSpec, host: DeviceHost) -> Result<Box<dyn VdpaDevice>, DriverError> {
        Ok(Box::new(self.device(spec, host)?))
    }
}

impl FileDisks {
    /// A device of a file.
    ///
    /// # Errors
    /// As [`ManagementDevice::create`].
    pub fn device(
        &mut self,
        spec: &DeviceSpec,
        host: DeviceHost,
    ) -> Result<BlockDevice<FileDisk>, DriverError> {
        let plan = Plan::new(spec)?;
        let file = self.open(wish(spec)?, &spec.name)?;
        let disk = FileDisk { file: Arc::clone(&file), memory: Memory::of(switch(spec, REGISTER)?) };
        let made = BlockDevice::new(plan, disk, host.clone());
        match &made {
            Ok(_) => watch(&file, &host),
            // To close a file may wait for its server.
            Err(_) => later::dispose(move || drop(file)),
        }
        made
    }
}

/// What an operator asks for.
fn wish(spec: &DeviceSpec) -> Result<Wish, Unfit> {
    Plan::of_attributes(spec)?;
    let path = spec.attributes.get(PATH).map(Path::new);
    let path =
        path.ok_or_else(|| Unfit::new(PATH, "path FILE: the file or block device that is the disk"))?;
    if !path.is_absolute() {
        return Err(Unfit::new(PATH, format!("path {}: must begin with /", path.display())));
    }
    let cache = match spec.attributes.get(CACHE).map(String::as_str) {
        None => None,
        Some("direct") => Some(Cache::Direct),
        Some("buffered") => Some(Cache::Buffered),
        Some(other) => {
            let why = format!("cache {}: must be direct or buffered", other.escape_debug());
            return Err(Unfit::new(CACHE, why));
        }
    };
    switch(spec, REGISTER)?;
    Ok(Wish { path: path.to_owned(), cache, is_read_only: switch(spec, RO)? })
}

/// The disk of a device.
#[derive(Debug)]
pub struct FileDisk {
    file: Arc<OpenFile>,
    memory: Memory,
}

/// The guest's memory, as the operator wants the kernel to have it.
#[derive(Debug)]
enum Memory {
    /// Looked up for each request.
    LookedUp,
    /// Pinned, as soon as there is a queue.
    ToBePinned,
    /// Pinned for the queues that are there.
    Pinned { registered: Weak<Registered>, bytes: u64 },
    /// It was to be: of this map, and why it is not.
    NotPinned { map: Weak<GuestMap>, why: String },
}

impl Memory {
    fn of(is_registered: bool) -> Memory {
        if is_registered { Memory::ToBePinned } else { Memory::LookedUp }
    }

    /// For a queue of a guest with this memory. What cannot be pinned is looked up.
    fn registered(&mut self, map: &Arc<GuestMap>) -> Option<Arc<Registered>> {
        match self {
            Memory::LookedUp => return None,
            Memory::Pinned { registered, .. } => {
                if let Some(registered) = registered.upgrade().filter(|own| own.is_of(map)) {
                    return Some(registered);
                }
            }
            Memory::NotPinned { map: tried, .. } if Weak::ptr_eq(tried, &Arc::downgrade(map)) => return None,
            Memory::ToBePinned | Memory::NotPinned { .. } => {}
        }
        match Registered::new(map).map(Arc::new) {
            Ok(registered) => {
                *self = Memory::Pinned { registered: Arc::downgrade(&registered), bytes: registered.bytes() };
                Some(registered)
            }
            Err(error) => {
                *self = Memory::NotPinned { map: Arc::downgrade(map), why: error.to_string() };
                None
            }
        }
    }

    fn note(&self) -> Option<String> {
        match self {
            Memory::Pinned { bytes, .. } => Some(format!("register on: {} MiB are pinned", bytes >> 20)),
            Memory::NotPinned { why, .. } => Some(format!(
                "register on: the guest's memory is not pinned, and looked up for each request: {why}; LimitMEMLOCK=infinity in \
                 ringwayd's unit, or ulimit -l"
            )),
            Memory::LookedUp | Memory::ToBePinned => None,
        }
    }
}

impl Disk for FileDisk {
    type Queue = FileQueue;

    fn geometry(&self) -> Geometry {
        let limits = RangeLimits { max_sectors: RANGE_SECTORS, max_ranges: RANGES };
        let file = &self.file;
        Geometry {
            bytes: file.bytes(),
            blk_size: file.blk_size,
            physical: file.physical,
            optimal: 0,
            is_read_only: file.wish.is_read_only,
            discard: file.discards.then_some((limits, file.blk_size)),
            write_zeroes: Some((limits, file.discards)),
            depth: DEPTH,
        }
    }

    fn queue(&mut self, seat: QueueSeat<'_>) -> Result<FileQueue, DriverError> {
        let registered = self.memory.registered(seat.map);
        FileQueue::new(&self.file, &seat, helpers(seat.polled), registered)
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let wish = &self.file.wish;
        BTreeMap::from([
            (PATH.to_owned(), wish.path.display().to_string()),
            (CACHE.to_owned(), self.file.cache.name().to_owned()),
            (REGISTER.to_owned(), word(!matches!(self.memory, Memory::LookedUp))),
        ])
    }

    fn note(&self) -> Option<String> {
        let notes: Vec<String> = self.memory.note().into_iter().chain(self.file.lacks()).collect();
        (!notes.is_empty()).then(|| notes.join("; "))
    }

    fn health(&self) -> Option<Arc<dyn Health>> {
        Some(self.file.health())
    }
}

/// Cores of this thread's that no worker polls on; all of them if there is no other.
fn helpers(polled: &[usize]) -> Option<CpuSet> {
    let allowed = sched_getaffinity(None).ok()?;
    let mut others = allowed;
    polled.iter().filter(|core| **core < CpuSet::MAX_CPU).for_each(|core| others.unset(*core));
    Some(if others.count() > 0 { others } else { allowed })
}

const NAME: &str = "file";
const PATH: &str = "path";
const CACHE: &str = "cache";
const REGISTER: &str = "register";
/// How long control waits for a file that is opened: several times what is waited for on the way, for a lock and its holder's name.
const LOOK_WITHIN: Duration = Duration::from_secs(1);
/// The same beside one that hangs.
const LOOK_WITHIN_BESIDE: Duration = Duration::from_millis(300);
/// How long of that for one who lets go of it.
const LOCKED_WITHIN: Duration = Duration::from_millis(100);
/// Sectors of one discard or write of zeroes: 1 GiB.
const RANGE_SECTORS: u32 = 1 << 21;
/// Ranges of one request.
const RANGES: u32 = 256;
/// Requests of a queue under way.
const DEPTH: u16 = 256;
