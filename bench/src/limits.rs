//! What this machine could do at best: what it costs to move cache lines between two cores, to copy, to wake a thread.
//! From these, a *floor* for each job: the packets a second that no back-end with rings in shared memory can exceed here.
//!
//! # The model
//!
//! A packet costs at least the cache lines that must change cores for it, and the bytes that must be copied:
//!
//! | what | lines a packet | split | packed |
//! | --- | --- | --- | --- |
//! | head of the frame, sent and received | written by one core, read by the other | 2 | 2 |
//! | descriptors of both rings, 16 bytes | to the device | 2/4 | 2/4 |
//! | and back, as used descriptors | to the driver | | 2/4 |
//! | available entries of both rings, 2 bytes | to the device | 2/32 | |
//! | used entries of both rings, 8 bytes | to the driver | 2/8 | |
//! | rest of the frame, if the generator touches all of it, sent and received | 2 x lines beyond the first | | |
//!
//! Where the generator touches no frame, its head does not change cores, and of split rings only used entries do: descriptors and
//! available entries stay as they are.
//!
//! Both cores work at once, so that a line each way costs what [`Limits::exchange_ns`] says, or [`Limits::stretch_ns`]
//! for those that follow the first of a frame: measured with the same pattern, bursts, prefetching and pages as rings
//! have, and nothing else. The back-end copies the frame once
//! meanwhile: where the generator does not touch what is behind the first line, those bytes are in the back-end's own
//! cache and cost what a copy there costs; where it does, moving them is the cost. Index lines (one or two a burst),
//! notifications, and every instruction are left out: a floor is not to be reached.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use ringway_pmd::notify::EventFd;

use ringway_ring::guest::GuestMap;
use ringway_ring::memory::HostMemory;
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::host;
use crate::options::{Job, Ring, Touch};

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// The two cores.
    pub cores: [usize; 2],
    /// A line to the other core and back, one at a time, in nanoseconds.
    pub round_trip_ns: f64,
    /// A line each way, many at a time, in nanoseconds.
    pub exchange_ns: f64,
    /// The same for each of 24 lines that follow each other, as in a large frame.
    pub stretch_ns: f64,
    /// Copying within the caches of one core and from memory.
    pub copies: Vec<Copy>,
    /// An eventfd signalled, waited for on the other core, and answered, in nanoseconds.
    pub eventfd_round_trip_ns: f64,
}

/// What a copy costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Copy {
    /// Bytes of each copy.
    pub bytes: u32,
    /// Source and destination are in the core's caches; else in memory.
    pub cached: bool,
    /// Nanoseconds of each.
    pub ns: f64,
}

impl Limits {
    /// The floor of a job, in packets a second; of a link, both ways together.
    pub fn floor(&self, job: Job, ring: Ring, size: u16, touch: Touch) -> f64 {
        // A packet of any job passes from a driver to the back-end and from there to a driver.
        let (Job::Loopback | Job::Link | Job::Bridge) = job;
        let all = lines_per_packet(ring, size, touch);
        let lines = all.min(lines_per_packet(ring, size, Touch::Header));
        let moved = lines / 2.0 * self.exchange_ns + (all - lines) / 2.0 * self.stretch_ns;
        let copied = match touch {
            Touch::All => 0.0,
            Touch::None => self.copy_ns(size.into()),
            Touch::Header => self.copy_ns(u32::from(size).saturating_sub(FIRST_BYTES)),
        };
        1e9 / (moved + copied)
    }

    /// A copy within the caches, between the sizes that were measured by their nanoseconds a byte.
    fn copy_ns(&self, bytes: u32) -> f64 {
        let cached = || self.copies.iter().filter(|copy| copy.cached);
        let per_byte = |copy: &Copy| copy.ns / f64::from(copy.bytes.max(1));
        let above = cached().find(|copy| copy.bytes >= bytes).or_else(|| cached().next_back());
        above.map_or(0.0, |copy| per_byte(copy) * f64::from(bytes))
    }
}

/// Cache lines that change cores for a packet.
pub fn lines_per_packet(ring: Ring, size: u16, touch: Touch) -> f64 {
    let rings = match ring {
        Ring::Split if touch == Touch::None => 2.0 / 8.0,
        Ring::Split => 2.0 / 4.0 + 2.0 / 32.0 + 2.0 / 8.0,
        Ring::Packed => 2.0 / 4.0 + 2.0 / 4.0,
    };
    let payload = match touch {
        Touch::None => 0.0,
        Touch::Header => 2.0,
        Touch::All => 2.0 * f64::from((HEADER_BYTES + u32::from(size)).div_ceil(LINE as u32)),
    };
    rings + payload
}

/// Measures what a line each way costs again and again, between the rounds of something else.
#[derive(Debug)]
pub struct Gauge {
    cores: [usize; 2],
    touch: Touch,
    map: GuestMap,
    _memory: HostMemory,
}

impl Gauge {
    /// Allocates. What is touched of frames decides which lines are measured: those alone, or those in a row.
    pub fn new(cores: [usize; 2], touch: Touch) -> Result<Gauge, BenchError> {
        let memory = HostMemory::allocate("ringway-limits", GAUGE_BYTES)
            .map_err(|source| BenchError::Memory { bytes: GAUGE_BYTES, source })?;
        let map = memory.guest_map(0)?;
        Ok(Gauge { cores, touch, map, _memory: memory })
    }

    /// What a line each way costs now, in nanoseconds.
    pub fn line_ns(&self) -> f64 {
        let stretch = match self.touch {
            Touch::None | Touch::Header => 1,
            Touch::All => STRETCH,
        };
        best_place(|place| exchange(self.cores, &self.map, place, GAUGED, stretch))
    }

    /// The limits at a cost that it measured.
    pub fn limits(&self, line_ns: f64, limits: &Limits) -> Limits {
        match self.touch {
            Touch::None | Touch::Header => Limits { exchange_ns: line_ns, ..limits.clone() },
            Touch::All => Limits { stretch_ns: line_ns, ..limits.clone() },
        }
    }
}

/// Measures on two cores. Tells `progress` what it does.
pub fn measure(cores: [usize; 2], mut progress: impl FnMut(&str)) -> Result<Limits, BenchError> {
    progress("cache lines, one at a time");
    let round_trip_ns = best(|| round_trip(cores));
    progress("cache lines, many at a time");
    let memory = HostMemory::allocate("ringway-limits", MEMORY_BYTES)
        .map_err(|source| BenchError::Memory { bytes: MEMORY_BYTES, source })?;
    let map = memory.guest_map(0)?;
    let exchange_ns = best_place(|place| best(|| exchange(cores, &map, place, EXCHANGES, 1)));
    progress("cache lines in a row");
    let stretch_ns = best_place(|place| best(|| exchange(cores, &map, place, EXCHANGES, STRETCH)));
    progress("copies");
    let mut copies = Vec::new();
    for cached in [true, false] {
        for bytes in [64, 256, 1024, 1536, 4096, 16_384, 65_536, 1 << 20] {
            copies.push(Copy { bytes, cached, ns: best(|| copy(cores[1], &map, bytes, cached)) });
        }
    }
    progress("eventfds");
    let eventfds =
        [EventFd::new(), EventFd::new()].map(|fd| fd.map_err(BenchError::system("cannot make an eventfd")));
    let [there, back] = eventfds;
    let (there, back) = (there?, back?);
    let eventfd_round_trip_ns = best(|| wake(cores, &there, &back));
    Ok(Limits { cores, round_trip_ns, exchange_ns, stretch_ns, copies, eventfd_round_trip_ns })
}

/// The median of some rounds: a floor must hold for the rounds of the suite, whose medians count.
fn best(round: impl Fn() -> f64) -> f64 {
    let series: Vec<f64> = (0..ROUNDS).map(|_| round()).collect();
    crate::stats::Spread::of(&series).map_or(f64::NAN, |spread| spread.median)
}

/// The best of some places. Where memory lies in the machine decides how far its lines are from the cores, by up to one
/// half, and the floor is what the best place lets.
fn best_place(of: impl Fn(u64) -> f64) -> f64 {
    (0..PLACES).map(|place| of(place * PLACE_BYTES)).fold(f64::INFINITY, f64::min)
}

/// Two cores take turns at one line.
fn round_trip(cores: [usize; 2]) -> f64 {
    #[repr(align(128))]
    struct Line(AtomicU64);
    let turn = Line(AtomicU64::new(0));
    let side = |core: usize, parity: u64| {
        host::pin(core);
        for number in 0..TURNS {
            let mine = number * 2 + parity;
            // Acquire and Release: of each other; the number is all there is.
            while turn.0.load(Ordering::Acquire) != mine {
                std::hint::spin_loop();
            }
            turn.0.store(mine + 1, Ordering::Release);
        }
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| side(cores[1], 1));
        scope
            .spawn(|| {
                host::pin(cores[0]);
                let begun = Instant::now();
                side(cores[0], 0);
                let ns = begun.elapsed().as_nanos() as f64 / TURNS as f64;
                let _ = other.join();
                ns
            })
            .join()
            .unwrap_or(f64::NAN)
    })
}

/// Both cores work on a ring of slots, each of a stretch of lines that goes and one that comes back: a burst is read and
/// the next one written while the other core does the same. Returns the nanoseconds of a line each way.
fn exchange(cores: [usize; 2], map: &GuestMap, place: u64, lines: u64, stretch: usize) -> f64 {
    let exchanges = lines / stretch as u64;
    let bytes = LINE * stretch;
    // More lines than a core can wait for at once are asked for in portions.
    let ahead = if stretch == 1 { BURST } else { 2 };
    #[repr(align(128))]
    struct Count(AtomicU64);
    // Slots that the first core has written, and that the second has answered.
    let (sent, answered) = (Count(AtomicU64::new(0)), Count(AtomicU64::new(0)));
    let line = |slot: u64, which: u64| {
        let at = place + (slot % SLOTS) * 2 * SLOT_BYTES + which * SLOT_BYTES;
        map.resolve(at, bytes as u64).ok()
    };
    // Waits until `count` is beyond `done`; up to where to work.
    let ready = |count: &Count, done: u64| {
        loop {
            let seen = count.0.load(Ordering::Acquire);
            if seen > done {
                return seen.min(done + BURST);
            }
            std::hint::spin_loop();
        }
    };
    let pass = |from: u64, to: u64, read: u64, write: u64, count: u64| {
        let ask = |slot: u64| {
            if let (Some(from), Some(to)) = (line(slot, read), line(slot + count, write)) {
                (0..bytes).step_by(LINE).for_each(|at| {
                    from.prefetch_read(at);
                    to.prefetch_write(at);
                });
            }
        };
        (from..to.min(from + ahead)).for_each(ask);
        for slot in from..to {
            if slot + ahead < to {
                ask(slot + ahead);
            }
            if let (Some(from), Some(to)) = (line(slot, read), line(slot + count, write)) {
                to.copy_from(from);
            }
        }
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            host::pin(cores[1]);
            let mut done = 0;
            while done < exchanges {
                let to = ready(&sent, done);
                pass(done, to, 0, 1, 0);
                answered.0.store(to, Ordering::Release);
                done = to;
            }
        });
        scope
            .spawn(|| {
                host::pin(cores[0]);
                let begun = Instant::now();
                sent.0.store(SLOTS, Ordering::Release);
                let mut done = 0;
                while done < exchanges {
                    let to = ready(&answered, done);
                    pass(done, to, 1, 0, SLOTS);
                    sent.0.store(to + SLOTS, Ordering::Release);
                    done = to;
                }
                let ns = begun.elapsed().as_nanos() as f64 / (exchanges * stretch as u64) as f64;
                let _ = other.join();
                ns
            })
            .join()
            .unwrap_or(f64::NAN)
    })
}

/// Copies between halves of the memory: always the same two places, or one after the other through all of it.
fn copy(core: usize, map: &GuestMap, bytes: u32, cached: bool) -> f64 {
    let half = MEMORY_BYTES / 2;
    let step = if cached { 0 } else { u64::from(bytes).max(4096) };
    let count =
        (COPIED_BYTES / u64::from(bytes)).max(16).min(if cached { u64::MAX } else { half / step.max(1) });
    thread::scope(|scope| {
        scope
            .spawn(|| {
                host::pin(core);
                let run = || {
                    for number in 0..count {
                        let at = number * step % (half - u64::from(bytes) + 1);
                        if let (Ok(from), Ok(to)) =
                            (map.resolve(at, bytes.into()), map.resolve(half + at, bytes.into()))
                        {
                            to.copy_from(from);
                        }
                    }
                };
                run();
                let begun = Instant::now();
                run();
                begun.elapsed().as_nanos() as f64 / count as f64
            })
            .join()
            .unwrap_or(f64::NAN)
    })
}

/// Two threads wake each other.
fn wake(cores: [usize; 2], there: &EventFd, back: &EventFd) -> f64 {
    let wait = |fd: &EventFd| {
        let _ = poll(&mut [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)], None);
        fd.clear();
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            host::pin(cores[1]);
            for _ in 0..WAKES {
                wait(there);
                back.signal();
            }
        });
        scope
            .spawn(|| {
                host::pin(cores[0]);
                let begun = Instant::now();
                for _ in 0..WAKES {
                    there.signal();
                    wait(back);
                }
                let ns = begun.elapsed().as_nanos() as f64 / WAKES as f64;
                let _ = other.join();
                ns
            })
            .join()
            .unwrap_or(f64::NAN)
    })
}

const ROUNDS: usize = 5;
const TURNS: u64 = 100_000;
const EXCHANGES: u64 = 1_000_000;
const GAUGED: u64 = 200_000;
const WAKES: u64 = 2_000;
const COPIED_BYTES: u64 = 256 << 20;
const MEMORY_BYTES: u64 = 128 << 20;

/// All slots twice, which is a huge page.
const PLACE_BYTES: u64 = 2 << 20;

/// Places in memory where lines are exchanged.
const PLACES: u64 = 5;
const GAUGE_BYTES: u64 = PLACES * PLACE_BYTES;

/// As rings of 256 have them.
const SLOTS: u64 = 256;
const BURST: u64 = 64;

/// An odd number of lines, as buffers have, so that slots spread over all sets of the caches.
const SLOT_BYTES: u64 = 33 * LINE as u64;
const LINE: usize = 64;

/// Lines of a large frame.
const STRETCH: usize = 24;

/// Bytes of the virtio header before a frame.
const HEADER_BYTES: u32 = 12;

/// Bytes of the frame in its first line.
const FIRST_BYTES: u32 = LINE as u32 - HEADER_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        let copies = vec![
            Copy { bytes: 64, cached: true, ns: 3.2 },
            Copy { bytes: 2048, cached: true, ns: 40.96 },
            Copy { bytes: 64, cached: false, ns: 1000.0 },
        ];
        Limits {
            cores: [0, 1],
            round_trip_ns: 100.0,
            exchange_ns: 20.0,
            stretch_ns: 10.0,
            copies,
            eventfd_round_trip_ns: 1.0,
        }
    }

    #[test]
    fn lines_are_those_of_the_table() {
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(lines_per_packet(Ring::Split, 64, Touch::Header), 2.8125));
        assert!(close(lines_per_packet(Ring::Packed, 64, Touch::Header), 3.0));
        assert!(close(lines_per_packet(Ring::Split, 1518, Touch::None), 0.25));
        assert!(close(lines_per_packet(Ring::Packed, 64, Touch::None), 1.0));
        // 12 + 1518 bytes are 24 lines.
        assert!(close(lines_per_packet(Ring::Packed, 1518, Touch::All), 49.0));
    }

    #[test]
    fn floor_is_lines_and_copies() {
        // 1.5 lines each way of 20 ns, and a copy of 12 bytes at 0.05 ns.
        let floor = limits().floor(Job::Loopback, Ring::Packed, 64, Touch::Header);
        assert!((floor - 1e9 / (30.0 + 0.6)).abs() < 1.0, "{floor}");
        // Half a line each way, and a copy of the frame.
        let floor = limits().floor(Job::Loopback, Ring::Packed, 64, Touch::None);
        assert!((floor - 1e9 / (10.0 + 3.2)).abs() < 1.0, "{floor}");
        // 1.5 lines each way, and 23 in a row; the copy is the moving.
        let floor = limits().floor(Job::Link, Ring::Packed, 1518, Touch::All);
        assert!((floor - 1e9 / 260.0).abs() < 1.0, "{floor}");
    }

    #[test]
    fn copies_beyond_those_measured_cost_as_much_a_byte() {
        assert!((limits().copy_ns(4096) - 81.92).abs() < 1e-9);
        assert!((limits().copy_ns(1024) - 20.48).abs() < 1e-9);
    }
}
