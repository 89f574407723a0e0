//! The load generator of disks: queues on one or more threads, each pinned to a core, whose every block is stamped and
//! checked.
//!
//! *Closed loop*: as many requests under way as the depth lets, each one's completion brings the next. *Open loop*: requests
//! at intended times, whatever became of those before. Either ends with a drain: a request that never comes back is an
//! error, not a number.

use std::path::Path;
use std::time::Duration;

use ringway_guest::GuestError;
use ringway_guest::block::config::SECTOR;
use ringway_guest::block::lane::{Counts, Offer, Work};
use ringway_guest::block::request::{Request, Status};
use ringway_guest::block::{BlockConfig, Lane, Port, Queue};
use ringway_guest::lane::histogram;
use ringway_guest::pace::Pace;
use ringway_guest::presence::Presence;
use ringway_ring::tsc;
use serde::{Deserialize, Serialize};

use super::options::{DiskOptions, Op, Touch};
use crate::drive::{self, Lanes};
use crate::error::BenchError;
use crate::rounds::Timed;
use crate::stats::Latency;

/// How requests are offered.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// As many as the depth lets.
    Closed,
    /// So many a second, over all queues.
    Open {
        /// Requests a second.
        iops: f64,
    },
}

/// What one round came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// How long requests were submitted, in seconds.
    pub seconds: f64,
    /// Thousands of requests a second that were completed in that time.
    pub kiops: f64,
    /// Megabytes (10^6) a second of them.
    pub mbps: f64,
    /// What became of each request and block, after the drain.
    pub counts: Counts,
    /// From intended submission to completion, in nanoseconds.
    pub latency: Latency,
    /// Requests whose latency was not recorded since the generator was off its core meanwhile.
    pub set_aside: u64,
    /// How often that was.
    pub absences: u64,
    /// Requests of an open loop that were due and could not be submitted, since as many were under way as may be.
    pub unsent: u64,
    /// Kicks that the back-end asked for.
    pub kicks: u64,
    /// The longest time in which the generator was not running, in microseconds.
    pub gap_us: f64,
}

impl Timed for Round {
    fn gap_us(&self) -> f64 {
        self.gap_us
    }
}

/// What makes load on a disk.
pub trait Generates: std::fmt::Debug {
    /// One round: a warm-up that does not count, `duration` that does, a drain.
    ///
    /// # Errors
    /// The back-end broke the rules, or something never came back.
    fn round(&mut self, load: Load, duration: Duration) -> Result<Round, BenchError>;
    /// Bytes of the disk.
    fn bytes(&self) -> u64;
    /// The pages that its memory stands on.
    fn pages(&self) -> String;
    /// The first thing that went wrong, in words.
    fn wrong(&self) -> Option<String>;
    /// Leaves.
    ///
    /// # Errors
    /// The back-end did not answer.
    fn close(self: Box<Self>) -> Result<(), BenchError>;
}

/// A connected port with a lane on each of its queues.
#[derive(Debug)]
pub struct Generator {
    name: String,
    port: Port,
    lanes: Vec<Lane>,
    cores: Vec<usize>,
    patience: Duration,
    before: Counts,
}

impl Generator {
    /// Connects to the socket. Unless nothing is touched, every block that will be used is written.
    pub fn open(socket: &Path, options: &DiskOptions, cores: &[usize]) -> Result<Generator, BenchError> {
        let name = socket.display().to_string();
        let of = |source| BenchError::Guest { socket: name.clone(), source };
        let port = Port::connect(socket, options.port()).map_err(of)?;
        fits(port.config(), options).map_err(|what| of(GuestError::Load { what }))?;
        let size = options.size.0;
        let span = options.span.0.min(port.config().bytes()) / u64::from(options.queues);
        // Whole requests.
        let share = span / size * size;
        let lanes = (0..options.queues).map(|queue| {
            let work = Work {
                mix: options.mix(),
                request_bytes: size as u32,
                block_bytes: options.block_bytes(),
                touch: options.touch.stamped(),
                sequential: options.sequential,
                overlap: false,
                first_sector: u64::from(queue) * share / SECTOR,
                bytes: share,
                seed: queue.into(),
            };
            Lane::new(work, options.depth.into())
        });
        let lanes = lanes.collect::<Result<Vec<Lane>, GuestError>>().map_err(of)?;
        let patience = options.patience;
        let mut generator =
            Generator { name, port, lanes, cores: cores.to_vec(), patience, before: Counts::default() };
        if options.touch != Touch::None {
            let cached = options.durable && generator.port.can_write_back();
            if cached {
                generator.write_back(true)?;
            }
            generator.fill()?;
            if cached {
                generator.flush()?;
                generator.write_back(false)?;
            }
        }
        Ok(generator)
    }

    fn write_back(&mut self, on: bool) -> Result<(), BenchError> {
        self.port.set_write_back(on).map_err(|source| self.guest(source))
    }

    fn flush(&mut self) -> Result<(), BenchError> {
        match self.port.perform(Request::FLUSH, &mut []).map_err(|source| self.guest(source))? {
            (Status::Ok, _) => Ok(()),
            (status, _) => Err(BenchError::Peer {
                peer: self.name.clone(),
                what: format!("a flush ended with {status:?}"),
            }),
        }
    }

    fn fill(&mut self) -> Result<(), BenchError> {
        let patience = self.patience;
        let mut pairs = self.port.queues_mut().iter_mut().zip(&mut self.lanes);
        let filled = pairs.try_for_each(|(queue, lane)| lane.fill(queue, patience));
        filled.map_err(|source| self.guest(source))?;
        // What was counted meanwhile is no round's.
        self.before = self.counts();
        match self.wrong() {
            None => Ok(()),
            Some(what) => Err(BenchError::Peer { peer: self.name.clone(), what }),
        }
    }

    fn guest(&self, source: GuestError) -> BenchError {
        BenchError::Guest { socket: self.name.clone(), source }
    }

    fn counts(&self) -> Counts {
        self.lanes.iter().fold(Counts::default(), |sum, lane| sum.plus(lane.counts()))
    }
}

impl Generates for Generator {
    fn round(&mut self, load: Load, duration: Duration) -> Result<Round, BenchError> {
        let every = match load {
            Load::Closed => CLOSED_SAMPLE,
            Load::Open { iops } => (iops / OPEN_SAMPLES_PER_SECOND).max(1.0) as u64,
        };
        let count = self.lanes.len();
        let per_lane = match load {
            Load::Closed => None,
            Load::Open { iops } => Some(iops / count.max(1) as f64),
        };
        let threads = self.cores.len().clamp(1, count.max(1));
        // Queue i belongs to core i mod n.
        let patience = self.patience;
        let mut shares: Vec<Queues<'_>> =
            (0..threads).map(|_| Queues { driven: Vec::new(), patience }).collect();
        for (index, (queue, lane)) in self.port.queues_mut().iter_mut().zip(&mut self.lanes).enumerate() {
            lane.sample_every(every);
            if let Some(share) = shares.get_mut(index % threads) {
                share.driven.push(Driven { queue, lane });
            }
        }
        let gone = |what| GuestError::Load { what };
        let driven = drive::on_cores(shares, &self.cores, per_lane, duration, gone);
        let sum = driven.map_err(|source| self.guest(source))?;
        let hertz = tsc::hertz();
        let seconds = sum.cycles as f64 / hertz as f64;
        let all = self.counts();
        let counts = all.since(&self.before);
        self.before = all;
        let mut latency = histogram();
        let mut set_aside = 0;
        for lane in &mut self.lanes {
            // Same bounds and precision: adding cannot fail.
            let _ = latency.add(lane.take_latency());
            set_aside += lane.take_set_aside();
        }
        let kicks = self.port.queues_mut().iter_mut().map(Queue::take_kicks).sum();
        Ok(Round {
            seconds,
            kiops: sum.came as f64 / seconds / 1e3,
            mbps: sum.bytes as f64 / seconds / 1e6,
            counts,
            latency: Latency::of(&latency, hertz),
            set_aside,
            absences: sum.absences,
            unsent: sum.unsent,
            kicks,
            gap_us: sum.gap as f64 / hertz as f64 * 1e6,
        })
    }

    fn bytes(&self) -> u64 {
        self.port.config().bytes()
    }

    fn pages(&self) -> String {
        self.port.page_kind().to_string()
    }

    fn wrong(&self) -> Option<String> {
        self.lanes.iter().find_map(|lane| lane.wrong().map(ToString::to_string))
    }

    /// Stops every ring in order.
    fn close(self: Box<Self>) -> Result<(), BenchError> {
        let name = self.name;
        self.port.stop().map_err(|source| BenchError::Guest { socket: name, source })
    }
}

/// What the device cannot do of what is asked.
fn fits(config: &BlockConfig, options: &DiskOptions) -> Result<(), String> {
    let (size, block) = (options.size.0, config.block_bytes());
    if size == 0 || !size.is_multiple_of(block) {
        return Err(format!("requests of {size} bytes: the device has blocks of {block}"));
    }
    if config.bytes() < size {
        return Err(format!("the device has {} bytes, and requests are to have {size}", config.bytes()));
    }
    let ranges = match options.op {
        Op::Discard => Some(("discards", config.max_discard_seg, config.max_discard_sectors)),
        Op::Zeroes => {
            Some(("writes of zeroes", config.max_write_zeroes_seg, config.max_write_zeroes_sectors))
        }
        _ => None,
    };
    if let Some((what, ranges, sectors)) = ranges {
        if ranges == 0 {
            return Err(format!("the device does no {what}"));
        }
        if size / SECTOR > sectors.into() {
            return Err(format!(
                "{what} of {size} bytes: the device takes {} at most",
                u64::from(sectors) * SECTOR
            ));
        }
    }
    Ok(())
}

/// A queue and the load on it.
struct Driven<'a> {
    queue: &'a mut Queue,
    lane: &'a mut Lane,
}

/// Queues of one thread.
struct Queues<'a> {
    driven: Vec<Driven<'a>>,
    patience: Duration,
}

impl Lanes for Queues<'_> {
    type Error = GuestError;

    fn senders(&self) -> usize {
        self.driven.len()
    }

    #[inline]
    fn turn(&mut self, paces: &mut [Pace], presence: &mut Presence) -> Result<(), GuestError> {
        for (index, Driven { queue, lane }) in self.driven.iter_mut().enumerate() {
            let offer = match paces.get_mut(index) {
                None => Offer::All,
                Some(pace) => Offer::Due(pace),
            };
            lane.turn(queue, offer, presence)?;
        }
        Ok(())
    }

    fn came(&self) -> (u64, u64) {
        let lanes = self.driven.iter().map(|driven| driven.lane.counts());
        let counts = lanes.fold(Counts::default(), Counts::plus);
        (counts.completed, counts.bytes)
    }

    fn forget_latencies(&mut self) {
        for Driven { lane, .. } in &mut self.driven {
            lane.take_latency();
            lane.take_set_aside();
        }
    }

    fn drain(&mut self, _: &mut Presence) -> Result<(), GuestError> {
        self.driven.iter_mut().try_for_each(|Driven { queue, lane }| lane.drain(queue, self.patience))
    }
}

/// In a closed loop, one request in so many has its latency recorded.
const CLOSED_SAMPLE: u64 = 4;

/// In an open loop, so many are recorded a second at least, if there are so many.
const OPEN_SAMPLES_PER_SECOND: f64 = 1e6;
