//! `file`: a file or a block device of the host as a disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity};

use crate::block::disk::{BlockDevice, Disk, Geometry, QueueSeat};
use crate::block::file::{Cache, FileQueue, Identity, OpenFile, Wish, watch};
use crate::block::plan::{ATTRIBUTES, MAX_QUEUES, Plan, RO};
use crate::block::{BLOCK, RangeLimits};
use crate::later;
use crate::net::plan::switch;
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
    open: Vec<(Weak<OpenFile>, Identity, String)>,
}

impl FileDisks {
    /// Ready to make devices.
    pub fn new() -> FileDisks {
        FileDisks::default()
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
        let mark = Arc::new(());
        self.opening.insert(path.clone(), Arc::downgrade(&mark));
        self.open.retain(|(file, ..)| file.strong_count() > 0);
        let ours: Vec<_> =
            self.open.iter().map(|(_, identity, name)| (*identity, format!("device {name}"))).collect();
        let opened = later::within(LOOK_WITHIN, move || {
            let opened = OpenFile::open(wish, LOCKED_WITHIN, &ours);
            drop(mark);
            opened
        });
        let opened = opened.unwrap_or_else(|| Err(hangs()))?;
        self.open.push((Arc::downgrade(&opened), opened.identity, name.to_owned()));
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
        let made = BlockDevice::new(plan, FileDisk { file: Arc::clone(&file) }, host.clone());
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
    Ok(Wish { path: path.to_owned(), cache, is_read_only: switch(spec, RO)? })
}

/// The disk of a device.
#[derive(Debug)]
pub struct FileDisk {
    file: Arc<OpenFile>,
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
        FileQueue::new(&self.file, &seat, helpers(seat.polled))
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let wish = &self.file.wish;
        BTreeMap::from([
            (PATH.to_owned(), wish.path.display().to_string()),
            (CACHE.to_owned(), self.file.cache.name().to_owned()),
        ])
    }

    fn note(&self) -> Option<String> {
        self.file.lacks()
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
/// How long control waits for a file that is opened.
const LOOK_WITHIN: Duration = Duration::from_millis(300);
/// How long of that for one who lets go of it.
const LOCKED_WITHIN: Duration = Duration::from_millis(100);
/// Sectors of one discard or write of zeroes: 1 GiB.
const RANGE_SECTORS: u32 = 1 << 21;
/// Ranges of one request.
const RANGES: u32 = 256;
/// Requests of a queue under way.
const DEPTH: u16 = 256;
