//! A queue of a block device between a driver-side ring and the pump behind it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use ringway_engine::{Budget, Polled, Pump};
use ringway_pmd::counters::{DropReason, QueueCounters};
use ringway_pmd::notify::EventFd;
use ringway_pmd::vdpa::{ClassSpec, DeviceSpec, DriverError, FaultReporter, MakePump, QueueBinding};
use ringway_ring::features::Features;
use ringway_ring::guest::{GuestMap, Region, RegionSpec};
use ringway_ring::inflight::Part;
use ringway_ring::layout::{DriverConfig, Layout};
use ringway_ring::position::{Position, PositionPage};
use ringway_ring::queue::{Completion, DriverBuffer, DriverRing, Format, QueueConfig, RingSize};
use ringway_ring::tsc;

pub(crate) const GPA: u64 = 0x4000_0000;
/// Where its VMM has it.
const USER: u64 = 0x7000_0000_0000;
pub(crate) const RINGS: u64 = 1 << 20;
pub(crate) const MEMORY: u64 = 16 << 20;
pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const DISCARD: u32 = 11;
pub(crate) const WRITE_ZEROES: u32 = 13;

/// A guest's queue, and the pump behind it.
pub(crate) struct Bed {
    pub(crate) driver: Box<dyn DriverRing>,
    pub(crate) pump: Box<dyn Pump>,
    pub(crate) map: Arc<GuestMap>,
    pub(crate) counters: Arc<QueueCounters>,
    pub(crate) fault: FaultReporter,
    pub(crate) free: u64,
    #[allow(dead_code, reason = "of those tests in which pumps die, or are placed")]
    pub(crate) binding: QueueBinding,
    #[allow(dead_code, reason = "of those tests in which memory is cut")]
    memory: OwnedFd,
}

/// A request under way: where its data and its status are.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) input: Vec<DriverBuffer>,
    pub(crate) status: u64,
}

impl Bed {
    pub(crate) fn new(format: Format, features: Features, device: &mut dyn MakePump) -> Bed {
        Bed::try_new(format, features, device).unwrap()
    }

    pub(crate) fn try_new(
        format: Format,
        features: Features,
        device: &mut dyn MakePump,
    ) -> Result<Bed, DriverError> {
        let packed = if format == Format::Packed { Features::RING_PACKED } else { Features::NONE };
        let features = features | Features::VERSION_1 | packed;
        let memory = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memory, MEMORY).unwrap();
        let file = memory.try_clone().unwrap();
        let region = RegionSpec { gpa: GPA, size: MEMORY, user_addr: USER, file_offset: 0, file };
        let map = Arc::new(GuestMap::new(vec![Region::map(region).unwrap()]).unwrap());
        let size = RingSize::new(format, 256).unwrap();
        let layout = Layout::new(format, size);
        let config = DriverConfig {
            size,
            features,
            map: Arc::clone(&map),
            areas: layout.at(GPA),
            position: Position::START,
        };
        let driver: Box<dyn DriverRing> = match format {
            Format::Split => Box::new(config.start_split().unwrap()),
            Format::Packed => Box::new(config.start_packed().unwrap()),
        };
        let areas = layout.at(USER);
        let counters = Arc::new(QueueCounters::default());
        let fault = FaultReporter::new(Arc::new(EventFd::new().unwrap()));
        let binding = QueueBinding {
            index: 0,
            enabled: true,
            format,
            config: QueueConfig {
                size,
                features,
                map: Arc::clone(&map),
                desc_user_addr: areas.desc,
                driver_user_addr: areas.driver,
                device_user_addr: areas.device,
                position: Position::START,
                keeper: PositionPage::anonymous().unwrap().slot(0).unwrap(),
                skip_used: false,
            },
            record: None,
            kick: Some(Arc::new(EventFd::new().unwrap())),
            call: None,
            counters: Arc::clone(&counters),
            fault: fault.clone(),
        };
        let pump = device.pump(0, vec![binding.clone()])?;
        Ok(Bed { driver, pump, map, counters, fault, free: GPA + RINGS, binding, memory })
    }

    /// The process dies with its pump, and another takes over, which finds what is `recorded`.
    #[allow(dead_code, reason = "of those tests in which pumps die")]
    pub(crate) fn die(&mut self, device: &mut dyn MakePump, recorded: Option<Part>) {
        self.binding.record = recorded;
        self.pump = device.pump(0, vec![self.binding.clone()]).unwrap();
    }

    /// Buffers of `bytes`, cut at `cuts`; each at an odd place of its own.
    pub(crate) fn buffers(&mut self, len: usize, cuts: &[usize], writable: bool) -> Vec<DriverBuffer> {
        let mut edges: Vec<usize> = cuts.iter().map(|cut| cut % len.max(1)).collect();
        edges.extend([0, len]);
        edges.sort_unstable();
        edges.dedup();
        let mut buffers = Vec::new();
        for pair in edges.windows(2) {
            let len = (pair[1] - pair[0]) as u32;
            if self.free + u64::from(len) + 8 > GPA + MEMORY {
                self.free = GPA + RINGS;
            }
            buffers.push(DriverBuffer { gpa: self.free, len, writable });
            self.free += u64::from(len) + 7;
        }
        buffers
    }

    /// Makes a request available: `output` behind its header, room for `input` bytes before its status.
    pub(crate) fn ask(
        &mut self,
        token: u32,
        kind: u32,
        sector: u64,
        output: &[u8],
        input: usize,
        cuts: &[usize],
    ) -> Asked {
        let mut bytes = Vec::new();
        bytes.extend(kind.to_le_bytes());
        bytes.extend([0xee; 4]);
        bytes.extend(sector.to_le_bytes());
        bytes.extend(output);
        let mut buffers = self.buffers(bytes.len(), cuts, false);
        let mut at = 0;
        for buffer in &buffers {
            let part = &bytes[at..at + buffer.len as usize];
            self.map.resolve(buffer.gpa, buffer.len.into()).unwrap().write(part);
            at += buffer.len as usize;
        }
        let input_buffers = self.buffers(input + 1, cuts, true);
        let last = *input_buffers.last().unwrap();
        let status = last.gpa + u64::from(last.len) - 1;
        self.map.resolve(status, 1).unwrap().write(&[0xff]);
        buffers.extend(&input_buffers);
        self.driver.add(&buffers, token).unwrap();
        self.driver.publish();
        Asked { input: input_buffers, status }
    }

    pub(crate) fn poll(&mut self) -> Polled {
        self.pump.poll(&Budget::default(), tsc::cycles())
    }

    pub(crate) fn collect(&mut self) -> Vec<Completion> {
        let mut done = [Completion::default(); 256];
        let count = self.driver.collect(&mut done).unwrap();
        done[..count].to_vec()
    }

    pub(crate) fn status(&self, asked: &Asked) -> u8 {
        let mut status = [0];
        self.map.resolve(asked.status, 1).unwrap().read(&mut status);
        status[0]
    }

    pub(crate) fn input(&self, asked: &Asked) -> Vec<u8> {
        let mut bytes = Vec::new();
        for buffer in &asked.input {
            let mut part = vec![0; buffer.len as usize];
            self.map.resolve(buffer.gpa, buffer.len.into()).unwrap().read(&mut part);
            bytes.extend(part);
        }
        bytes.pop();
        bytes
    }

    /// Asks, waits, and returns the status, the bytes said to be written, and the data.
    pub(crate) fn done(
        &mut self,
        kind: u32,
        sector: u64,
        output: &[u8],
        input: usize,
        cuts: &[usize],
    ) -> (u8, u32, Vec<u8>) {
        let asked = self.ask(7, kind, sector, output, input, cuts);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(60) {
            self.poll();
            if let [done] = self.collect()[..] {
                assert_eq!(done.token, 7);
                return (self.status(&asked), done.written, self.input(&asked));
            }
        }
        panic!("it does not end");
    }

    /// The VMM cuts the guest's memory, and what is left ends below the guest's address.
    #[allow(dead_code, reason = "of those tests in which memory is cut")]
    pub(crate) fn cut(&self, gpa: u64) {
        rustix::fs::ftruncate(&self.memory, gpa - GPA).unwrap();
    }

    /// All of the guest's memory.
    #[allow(dead_code, reason = "of those tests in which guests are given up")]
    pub(crate) fn all(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY as usize];
        self.map.resolve(GPA, MEMORY).unwrap().read(&mut bytes);
        bytes
    }

    pub(crate) fn drops(&self, reason: DropReason) -> u64 {
        self.counters.snapshot().drops.into_iter().find(|(other, _)| *other == reason).unwrap().1
    }
}

pub(crate) fn spec(words: &[(&str, &str)]) -> DeviceSpec {
    let attributes = words.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    DeviceSpec { name: "d0".to_owned(), features: None, class: ClassSpec::Block, attributes }
}

pub(crate) fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

pub(crate) fn formats() -> impl Strategy<Value = Format> {
    prop_oneof![Just(Format::Split), Just(Format::Packed)]
}
