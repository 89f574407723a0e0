//! The pump of a disk in memory, polled by hand over a ring of our own: what a request costs on its way, without the worker.

use ringway_engine::{Budget, Polled, Pump};
use ringway_pmd::drivers::sim_blk;
use ringway_pmd::vdpa::{ClassSpec, DeviceHost, DeviceSpec, MakePump};
use ringway_ring::features::Features;
use ringway_ring::queue::{Completion, DriverBuffer, DriverRing};
use ringway_ring::tsc;

use super::bed::{BUFFERS, Bed, GPA};
use super::pump::{binding, refused, write};
use super::{Access, Done, PUMP_BATCH, REQUEST, Subject};
use crate::error::BenchError;
use crate::options::Ring;

/// A disk's pump and the requests of a batch.
struct Asked {
    pump: Box<dyn Pump>,
    ring: Box<dyn DriverRing>,
    requests: Vec<[DriverBuffer; 3]>,
    completions: Vec<Completion>,
    /// Bytes that each request has the device write.
    written: u32,
    /// The time that the pump is told: it stands still.
    now: u64,
    /// Requests that are to come back.
    sent: usize,
    bed: Bed,
}

/// The pump of one kind of request.
pub(super) fn subject(access: Access, ring: Ring) -> Result<Box<dyn Subject>, BenchError> {
    let bed = Bed::new(ring, Features::NONE, u64::from(PUMP_BATCH) * ROOM)?;
    let words = [("size", DISK.to_string()), ("num_queues", "1".to_owned())];
    let attributes = words.map(|(name, value)| (name.to_owned(), value)).into();
    let spec = DeviceSpec { name: "bench".to_owned(), features: None, class: ClassSpec::Block, attributes };
    let mut disk = sim_blk::device(&spec, DeviceHost::unheard()).map_err(refused)?;
    let pump = disk.pump(0, vec![binding(&bed, 0)?]).map_err(refused)?;
    let driver = bed.boxed_driver(0)?;
    let is_read = access == Access::Read;
    let request = |number: u16| {
        let at = GPA + BUFFERS + u64::from(number) * ROOM;
        [
            DriverBuffer { gpa: at, len: HEADER, writable: false },
            DriverBuffer { gpa: at + DATA_AT, len: REQUEST, writable: is_read },
            DriverBuffer { gpa: at + STATUS_AT, len: 1, writable: true },
        ]
    };
    let requests: Vec<[DriverBuffer; 3]> = (0..PUMP_BATCH).map(request).collect();
    for (number, [header, ..]) in (0u64..).zip(&requests) {
        let kind = u64::from(!is_read);
        // Blocks far from each other.
        let sector = number * 7 % u64::from(PUMP_BATCH) * STRIDE;
        write(&bed, header, &[kind.to_le_bytes(), sector.to_le_bytes()].concat())?;
    }
    let written = if is_read { REQUEST + 1 } else { 1 };
    let completions = vec![Completion::default(); PUMP_BATCH.into()];
    Ok(Box::new(Asked {
        pump,
        ring: driver,
        requests,
        completions,
        written,
        now: tsc::cycles(),
        sent: 0,
        bed,
    }))
}

impl Subject for Asked {
    fn prepare(&mut self) -> Result<(), BenchError> {
        let count = self.ring.collect(&mut self.completions)?;
        let done = self.completions.get(..count).unwrap_or_default();
        if count != self.sent || done.iter().any(|done| done.written != self.written) {
            return Err(refused(format!("of {} requests came {done:?}", self.sent)));
        }
        for [.., status] in &self.requests {
            let mut byte = [0];
            if self.sent > 0 {
                self.bed.map.resolve(status.gpa, 1).map_err(refused)?.read(&mut byte);
            }
            if byte != [0] {
                return Err(refused(format!("a request ended with status {}", byte[0])));
            }
            write(&self.bed, status, &[UNWRITTEN])?;
        }
        self.sent = self.requests.len();
        for (token, request) in (0..).zip(&self.requests) {
            self.ring.add(request, token)?;
        }
        self.ring.publish();
        Ok(())
    }

    #[inline]
    fn work(&mut self) -> Result<Done, BenchError> {
        match self.pump.poll(&Budget::default(), self.now) {
            Polled::Moved(requests) => Ok(Done { units: requests.into(), bytes: 0 }),
            Polled::Idle | Polled::Blocked => Ok(Done::default()),
        }
    }

    fn batch(&self) -> Done {
        Done { units: self.requests.len() as u64, bytes: 0 }
    }
}

/// Bytes of the disk.
const DISK: u64 = 16 << 20;
/// Sectors between two requests.
const STRIDE: u64 = DISK / 512 / PUMP_BATCH as u64;
/// Room of a request in the guest's memory, and what is where in it.
const ROOM: u64 = 8192;
const HEADER: u32 = 16;
const STATUS_AT: u64 = 64;
const DATA_AT: u64 = 4096;
const UNWRITTEN: u8 = 0xff;
