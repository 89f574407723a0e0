//! `sim/blk`: a disk in memory, on no bus. It needs no storage and no privilege, and shows what all that is not a disk costs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::block::disk::{BlockDevice, Disk, Geometry, QueueSeat};
use crate::block::memory::{DiskMemory, MemoryQueue, Place};
use crate::block::plan::{ATTRIBUTES, BLK_SIZE, MAX_QUEUES, Plan, size};
use crate::block::{BLOCK, RangeLimits};
use crate::net::plan::{switch, word};
use crate::vdpa::{
    AttributeInfo, Class, DeviceHost, DeviceSpec, DriverError, Live, ManagementDevice, MgmtInfo, Stuck,
    Unfit, VdpaDevice,
};

/// The management device.
#[derive(Debug, Default)]
pub struct SimBlk {
    /// What is on the disks, by the device's name: a device that is made anew with other attributes has it still.
    memories: BTreeMap<String, Arc<DiskMemory>>,
}

impl SimBlk {
    /// Ready to make devices.
    pub fn new() -> SimBlk {
        SimBlk::default()
    }
}

impl ManagementDevice for SimBlk {
    fn info(&self) -> MgmtInfo {
        let mut attributes = vec![
            AttributeInfo {
                name: SIZE,
                value: "BYTES[K|M|G|T]",
                help: "of the disk (default 1G); a guest that runs is told of another",
                live: Some(Live::AT_ONCE),
            },
            AttributeInfo {
                name: DATA,
                value: "on|off",
                help: "off: no byte is moved, to measure what the rest costs (default on)",
                live: None,
            },
            AttributeInfo {
                name: PATH,
                value: "FILE",
                help: "keep it in this file on tmpfs or hugetlbfs, which outlives ringwayd (default: in memory that does not)",
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
            summary: "disk in memory",
            check: |_, spec| MemoryDisk::check(spec).map(drop),
        }
    }

    fn create(&mut self, spec: &DeviceSpec, host: DeviceHost) -> Result<Box<dyn VdpaDevice>, DriverError> {
        let place = MemoryDisk::check(spec)?.place();
        let memory = match self.memories.get(&spec.name).filter(|memory| *memory.place() == place) {
            Some(memory) => Arc::clone(memory),
            None => Arc::new(DiskMemory::new(place)?),
        };
        let device = on(&memory, spec, host)?;
        self.memories.insert(spec.name.clone(), memory);
        Ok(Box::new(device))
    }

    fn removed(&mut self, name: &str) {
        self.memories.remove(name);
    }
}

/// A device as an operator asks for it, without a management device.
///
/// # Errors
/// Something was asked for that cannot be.
pub fn device(spec: &DeviceSpec, host: DeviceHost) -> Result<BlockDevice<MemoryDisk>, DriverError> {
    let memory = Arc::new(DiskMemory::new(MemoryDisk::check(spec)?.place())?);
    on(&memory, spec, host)
}

fn on(
    memory: &Arc<DiskMemory>,
    spec: &DeviceSpec,
    host: DeviceHost,
) -> Result<BlockDevice<MemoryDisk>, DriverError> {
    let disk = MemoryDisk { memory: Some(Arc::clone(memory)), ..MemoryDisk::check(spec)? };
    BlockDevice::new(Plan::new(spec)?, disk, host)
}

/// The disk of a device.
#[derive(Debug)]
pub struct MemoryDisk {
    bytes: u64,
    /// The same, in the operator's words.
    size: String,
    moves_data: bool,
    path: Option<PathBuf>,
    /// None while it is only being checked.
    memory: Option<Arc<DiskMemory>>,
    /// Why it is not as large as it was to be.
    lacks: Option<String>,
}

impl MemoryDisk {
    /// As an operator asks for it.
    fn check(spec: &DeviceSpec) -> Result<MemoryDisk, Unfit> {
        let plan = Plan::of_attributes(spec)?;
        let size = spec.attributes.get(SIZE).map_or(DEFAULT_SIZE, String::as_str);
        let bytes = disk_size(size, plan.blk_size.unwrap_or(512))?;
        let path = spec.attributes.get(PATH).map(PathBuf::from);
        if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
            return Err(Unfit::new(PATH, format!("path {}: must begin with /", path.display())));
        }
        let moves_data = !spec.attributes.contains_key(DATA) || switch(spec, DATA)?;
        Ok(MemoryDisk { bytes, size: size.to_owned(), moves_data, path, memory: None, lacks: None })
    }

    fn place(&self) -> Place {
        self.path.clone().map_or(Place::Own, Place::File)
    }
}

fn disk_size(text: &str, blk_size: u32) -> Result<u64, Unfit> {
    let bytes = size(SIZE, text)?;
    if bytes == 0 || !bytes.is_multiple_of(blk_size.into()) {
        let why = format!("size {bytes}: must be a multiple of the {BLK_SIZE}, {blk_size}, and not 0");
        return Err(Unfit::new(SIZE, why));
    }
    let most = host_memory();
    if bytes > most {
        return Err(Unfit::new(SIZE, format!("size {text}: this host has {most} bytes of memory")));
    }
    Ok(bytes)
}

/// Bytes of memory that the host has.
fn host_memory() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(info.mem_unit.into())
}

impl Disk for MemoryDisk {
    type Queue = MemoryQueue;

    fn geometry(&self) -> Geometry {
        let limits = RangeLimits { max_sectors: RANGE_SECTORS, max_ranges: RANGES };
        Geometry {
            bytes: self.bytes,
            blk_size: 512,
            physical: 4096,
            optimal: 0,
            is_read_only: false,
            discard: Some((limits, 512)),
            write_zeroes: Some((limits, true)),
            depth: DEPTH,
        }
    }

    fn queue(&mut self, seat: QueueSeat<'_>) -> Result<MemoryQueue, DriverError> {
        let memory = self.memory.as_ref().ok_or_else(|| DriverError::misconfigured("no memory"))?;
        // Of which no byte is moved needs none.
        let bytes = if self.moves_data { self.bytes } else { 0 };
        MemoryQueue::new(memory, bytes, self.moves_data, &seat)
    }

    fn note(&self) -> Option<String> {
        self.lacks.clone()
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let mut attributes =
            BTreeMap::from([(SIZE.to_owned(), self.size.clone()), (DATA.to_owned(), word(self.moves_data))]);
        if let Some(path) = &self.path {
            attributes.insert(PATH.to_owned(), path.display().to_string());
        }
        attributes
    }

    fn set(&mut self, attributes: &BTreeMap<String, String>, within: Duration) -> Result<(), Stuck> {
        let Some(text) = attributes.get(SIZE) else { return Ok(()) };
        let Ok(bytes) = size(SIZE, text) else { return Ok(()) };
        // Without time, the memory is taken when the next queue is made.
        if let Some(memory) = self.memory.as_ref().filter(|_| self.moves_data && !within.is_zero())
            && let Err(error) = memory.reach(bytes)
        {
            // It stays as large as it was.
            self.lacks = Some(format!("size {text}: {error}"));
            return Ok(());
        }
        (self.bytes, self.size, self.lacks) = (bytes, text.clone(), None);
        Ok(())
    }
}

const NAME: &str = "sim/blk";
const SIZE: &str = "size";
const DATA: &str = "data";
const PATH: &str = "path";

const DEFAULT_SIZE: &str = "1G";
/// Sectors of one discard or write of zeroes: 64 MiB.
const RANGE_SECTORS: u32 = 1 << 17;
/// Ranges of one request.
const RANGES: u32 = 16;
/// Requests of a queue under way.
const DEPTH: u16 = 256;
