//! A generator that is not ours: the crate `virtio-driver`, libblkio's, over its own vhost-user transport and rings. It says whether
//! ours measures what others would.
//!
//! Closed loops of reads and writes on one queue; no block is stamped or checked. It needs REPLY_ACK, CONFIG and
//! CONFIGURE_MEM_SLOTS of a back-end. A request takes three descriptors.
#![allow(unsafe_code, reason = "the crate takes buffers that a device writes to as raw pointers")]

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringway_guest::block::lane::Counts;
use ringway_guest::lane::histogram;
use ringway_ring::guest::GuestMap;
use ringway_ring::memory::HostMemory;
use ringway_ring::tsc;
use virtio_driver::{
    QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};

use super::generator::{Generates, Load, Round};
use super::options::{DiskOptions, Op, Touch};
use crate::error::BenchError;
use crate::host;
use crate::options::Ring;
use crate::stats::Latency;

/// A connected queue.
pub struct VirtioDriver {
    /// Before the transport, whose memory it uses.
    queue: VirtioBlkQueue<'static, usize>,
    notifier: Box<dyn QueueNotifier>,
    transport: Box<VirtioBlkTransport>,
    /// What the device reads and writes: after what has it do so.
    map: GuestMap,
    memory: HostMemory,
    name: String,
    core: usize,
    size: u64,
    places: u64,
    /// Percent of the requests that are reads.
    reads: u64,
    depth: usize,
    patience: Duration,
    /// Slots that the device does not hold, and when each request was submitted.
    free: Vec<usize>,
    submitted_at: Vec<u64>,
    chance: u64,
    counts: Counts,
    latency: Histogram<u64>,
}

impl std::fmt::Debug for VirtioDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtioDriver").field("name", &self.name).finish_non_exhaustive()
    }
}

impl VirtioDriver {
    /// Connects to the socket.
    ///
    /// # Errors
    /// It does not do what is asked, or the back-end lacks what it needs.
    pub fn open(socket: &Path, options: &DiskOptions, cores: &[usize]) -> Result<VirtioDriver, BenchError> {
        let reads = match options.op {
            Op::Read => 100,
            Op::Write => 0,
            Op::Mix => u64::from(options.reads),
            other => {
                return Err(BenchError::Usage(format!("virtio-driver does reads and writes, not {other}")));
            }
        };
        if options.touch != Touch::None || options.queues != 1 || options.flush_every.is_some() {
            let what = "virtio-driver has one queue here, does not flush, and checks nothing: --queues 1 --touch none";
            return Err(BenchError::Usage(what.to_owned()));
        }
        if options.ring == Ring::Packed {
            // Its base of a packed ring has no wrap counter.
            return Err(BenchError::Usage(
                "virtio-driver starts no packed ring right: --ring split".to_owned(),
            ));
        }
        let name = socket.display().to_string();
        let failed = |source| BenchError::System { what: format!("virtio-driver on {name}"), source };
        let mut features = VirtioFeatureFlags::VERSION_1.bits()
            | VirtioBlkFeatureFlags::FLUSH.bits()
            | VirtioBlkFeatureFlags::MQ.bits();
        if options.event_idx {
            features |= VirtioFeatureFlags::RING_EVENT_IDX.bits();
        }
        if options.indirect {
            features |= VirtioFeatureFlags::RING_INDIRECT_DESC.bits();
        }
        let transport = VhostUser::new(&name, features).map_err(failed)?;
        let mut transport: Box<VirtioBlkTransport> = Box::new(transport);
        let entries = (u32::from(options.depth) * DESCRIPTORS).next_power_of_two().max(LEAST_RING) as u16;
        let queues =
            VirtioBlkQueue::setup_queues(transport.as_mut(), 1, options.queue_size.unwrap_or(entries));
        let queue = queues.map_err(failed)?.into_iter().next();
        let mut queue = queue.ok_or_else(|| BenchError::Usage("virtio-driver made no queue".to_owned()))?;
        queue.set_used_notif_enabled(false);
        let (size, depth) = (options.size.0, usize::from(options.depth));
        let bytes = size * depth as u64;
        let memory = HostMemory::allocate("ringway-bench", bytes)
            .map_err(|source| BenchError::Memory { bytes, source })?;
        let map = memory.guest_map(0)?;
        let (address, len) = (memory.address() as usize, memory.size() as usize);
        transport.map_mem_region(address, len, memory.file().as_raw_fd(), 0).map_err(failed)?;
        let capacity = u64::from(transport.get_config().map_err(failed)?.capacity) * 512;
        let places = options.span.0.min(capacity) / size;
        if places == 0 {
            return Err(BenchError::Usage(format!(
                "the device has {capacity} bytes, and requests are to have {size}"
            )));
        }
        Ok(VirtioDriver {
            queue,
            notifier: transport.get_submission_notifier(0),
            transport,
            map,
            memory,
            core: cores.first().copied().unwrap_or_default(),
            name,
            size,
            places,
            reads,
            depth,
            patience: options.patience,
            free: (0..depth).collect(),
            submitted_at: vec![0; depth],
            chance: 0,
            counts: Counts::default(),
            latency: histogram(),
        })
    }

    /// Submits as many requests as there are slots.
    fn submit(&mut self) -> Result<(), std::io::Error> {
        let mut submitted = 0;
        while let Some(slot) = self.free.pop() {
            self.chance =
                self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let place = (self.chance >> 33) % self.places;
            let is_read = (self.chance >> 20) % 100 < self.reads;
            let Ok(data) = self.map.resolve(slot as u64 * self.size, self.size) else { break };
            self.submitted_at[slot] = tsc::cycles();
            let (offset, len) = (place * self.size, data.len());
            // SAFETY: the buffer lies in `memory`, which outlives the queue and is mapped at this address for the device, too;
            // no reference to it is ever made, and no other request has it until this one is completed.
            unsafe {
                match is_read {
                    true => self.queue.read_raw(offset, data.as_ptr(), len, slot)?,
                    false => self.queue.write_raw(offset, data.as_ptr(), len, slot)?,
                }
            }
            submitted += 1;
        }
        self.counts.submitted += submitted;
        if submitted > 0 && self.queue.avail_notif_needed() {
            self.notifier.notify()?;
        }
        Ok(())
    }

    /// Takes what was completed; how many.
    fn collect(&mut self) -> u64 {
        let now = tsc::cycles();
        let mut came = 0;
        for done in self.queue.completions() {
            came += 1;
            if done.ret == 0 {
                self.counts.bytes += self.size;
            } else {
                self.counts.errors += 1;
            }
            let taken = now.saturating_sub(self.submitted_at[done.context]);
            self.latency.saturating_record(taken.max(1));
            self.free.push(done.context);
        }
        self.counts.completed += came;
        came
    }

    fn drive(&mut self, duration: Duration) -> Result<Round, BenchError> {
        host::pin(self.core);
        let name = self.name.clone();
        let failed = |source| BenchError::System { what: format!("virtio-driver on {name}"), source };
        let hertz = tsc::hertz();
        let cycles = |span: Duration| (span.as_secs_f64() * hertz as f64) as u64;
        let (mut start, mut before) = (0, self.counts);
        let (mut gap, mut last) = (0, tsc::cycles());
        let warm = last + cycles(WARM_UP);
        let mut end = u64::MAX;
        loop {
            self.collect();
            self.submit().map_err(&failed)?;
            let now = tsc::cycles();
            if start == 0 && now >= warm {
                (start, end, gap, before) = (now, now + cycles(duration), 0, self.counts);
                self.latency.reset();
            } else {
                gap = gap.max(now - last);
            }
            last = now;
            if now >= end {
                break;
            }
        }
        let (done, seconds) = (self.counts.since(&before), (last - start) as f64 / hertz as f64);
        let latency = Latency::of(&self.latency, hertz);
        let begun = Instant::now();
        while self.free.len() < self.depth {
            if self.collect() == 0 && begun.elapsed() > self.patience {
                let what = format!("{} requests were not completed", self.depth - self.free.len());
                return Err(BenchError::Peer { peer: self.name.clone(), what });
            }
        }
        Ok(Round {
            seconds,
            kiops: done.completed as f64 / seconds / 1e3,
            mbps: done.bytes as f64 / seconds / 1e6,
            counts: self.counts.since(&before),
            latency,
            set_aside: 0,
            absences: 0,
            unsent: 0,
            kicks: 0,
            gap_us: gap as f64 / hertz as f64 * 1e6,
        })
    }
}

impl Generates for VirtioDriver {
    fn round(&mut self, load: Load, duration: Duration) -> Result<Round, BenchError> {
        if load != Load::Closed {
            return Err(BenchError::Usage("virtio-driver has no open loop here: without --rate".to_owned()));
        }
        // Its own thread: the caller's is not pinned.
        let gone = || Err(BenchError::Usage("bug: a thread of the generator panicked".to_owned()));
        std::thread::scope(|scope| scope.spawn(|| self.drive(duration)).join().unwrap_or_else(|_| gone()))
    }

    fn bytes(&self) -> u64 {
        self.transport.get_config().map_or(0, |config| u64::from(config.capacity) * 512)
    }

    fn pages(&self) -> String {
        self.memory.kind().to_string()
    }

    fn wrong(&self) -> Option<String> {
        (self.counts.errors > 0).then(|| format!("{} requests failed", self.counts.errors))
    }

    /// It knows no end but closing the socket.
    fn close(self: Box<Self>) -> Result<(), BenchError> {
        Ok(())
    }
}

/// Descriptors of a request.
const DESCRIPTORS: u32 = 3;
const LEAST_RING: u32 = 128;
const WARM_UP: Duration = Duration::from_millis(50);
