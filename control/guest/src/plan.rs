//! Where things are in a guest's memory, in bytes from its start.
//!
//! ```text
//!   | rings of pair 0 | rings of pair 1 | .. | RX buffers, TX buffers of pair 0 | of pair 1 | .. |
//! ```
//! Side by side, a pair's receive buffers come first, then those for sending. Scattered, both lie in slots on pages of
//! their own, neighbours in a ring far apart, and the slots are cut into regions of memory.

use ringway_pmd::net::header_len;
use ringway_ring::features::Features;
use ringway_ring::layout::{Areas, Layout};
use ringway_ring::queue::RingSize;

use crate::error::GuestError;
use crate::options::{GuestOptions, Touch};

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Plan {
    layout: Layout,
    pub(crate) header_len: u64,
    /// One ring.
    ring_bytes: u64,
    /// What a receive buffer tells the device it has.
    pub(crate) rx_buffer_bytes: u32,
    /// What a receive and a transmit buffer take.
    bytes: [u64; 2],
    /// Entries in each ring, and buffers for it.
    entries: u64,
    pairs: u64,
    scattered: Option<Scattered>,
}

/// Buffers in slots.
#[derive(Debug)]
struct Scattered {
    /// Room of a slot: whole pages.
    bytes: u64,
    /// Slots of a pair: a power of two, which an odd step meets all of.
    slots: u64,
    /// Regions that the slots of all pairs are cut into.
    regions: u64,
}

impl Plan {
    pub(crate) fn new(
        options: &GuestOptions,
        size: RingSize,
        features: Features,
    ) -> Result<Plan, GuestError> {
        let layout = Layout::new(options.format, size);
        let header_len = header_len(features) as u64;
        // Odd multiples of a cache line, so that buffers spread over all sets of the caches.
        let odd = |bytes: u64| bytes.next_multiple_of(LINE) | LINE;
        let longest = header_len + u64::from(options.sizes.max());
        let rx = match options.rx_buffer {
            // Counted by descriptor: a frame must not take more than one.
            Some(bytes) if options.touch == Touch::None => longest.max(bytes.into()),
            Some(bytes) => u64::from(bytes),
            None => odd(longest),
        };
        let bytes = [odd(rx), odd(longest)];
        let (entries, pairs) = (u64::from(size.get()), u64::from(options.pairs));
        let scattered = options.regions.map(|regions| Scattered {
            bytes: bytes[0].max(bytes[1]).next_multiple_of(PAGE),
            slots: (entries * 2).next_power_of_two(),
            regions: regions.into(),
        });
        if let Some(Scattered { slots, regions, .. }) = scattered
            && (regions == 0 || regions > slots * pairs)
        {
            return Err(GuestError::Regions { regions: regions as u16, most: slots * pairs });
        }
        let ring_bytes = layout.total.next_multiple_of(PAGE);
        let rx_buffer_bytes = rx as u32;
        Ok(Plan { layout, header_len, ring_bytes, rx_buffer_bytes, bytes, entries, pairs, scattered })
    }

    /// All of the memory.
    pub(crate) fn total(&self) -> u64 {
        (self.buffers_at() + self.pairs * self.of_pair()).next_multiple_of(PAGE)
    }

    /// The areas of a ring in a memory that starts at `base`: 0 receive, 1 transmit.
    pub(crate) fn ring(&self, pair: u16, direction: u64, base: u64) -> Areas<u64> {
        self.layout.at(base + (u64::from(pair) * 2 + direction) * self.ring_bytes)
    }

    /// Where each receive buffer of a pair begins.
    pub(crate) fn rx_buffers(&self, pair: u16, base: u64) -> Box<[u64]> {
        (0..self.entries).map(|number| base + self.buffer(pair, 0, number)).collect()
    }

    /// Where each transmit buffer of a pair begins.
    pub(crate) fn tx_buffers(&self, pair: u16, base: u64) -> Box<[u64]> {
        (0..self.entries).map(|number| base + self.buffer(pair, 1, number)).collect()
    }

    /// Where each region begins and ends in a memory of `bytes`. The rings are in the first; the buffers' room is cut as
    /// evenly as whole buffers allow.
    pub(crate) fn regions(&self, bytes: u64) -> Vec<(u64, u64)> {
        let Some(Scattered { bytes: slot, slots, regions }) = self.scattered else { return vec![(0, bytes)] };
        let cut = |number: u64| match number {
            0 => 0,
            last if last == regions => bytes,
            _ => self.buffers_at() + slots * self.pairs * number / regions * slot,
        };
        (0..regions).map(|number| (cut(number), cut(number + 1))).collect()
    }

    fn buffers_at(&self) -> u64 {
        self.pairs * 2 * self.ring_bytes
    }

    /// The buffers of a pair.
    fn of_pair(&self) -> u64 {
        match &self.scattered {
            Some(Scattered { bytes, slots, .. }) => bytes * slots,
            None => self.entries * (self.bytes[0] + self.bytes[1]),
        }
    }

    fn buffer(&self, pair: u16, direction: u64, number: u64) -> u64 {
        let first = self.buffers_at() + u64::from(pair) * self.of_pair();
        let [rx, tx] = self.bytes;
        let Some(Scattered { bytes, slots, .. }) = self.scattered else {
            return first + if direction == 0 { number * rx } else { self.entries * rx + number * tx };
        };
        let slot = (direction * self.entries + number) * SCATTER % slots;
        // Not at the beginning of each page: those would all meet in one set of the caches.
        let room = rx.max(tx);
        first + slot * bytes + slot % (bytes / room) * room
    }
}

/// Between consecutive scattered buffers, in slots; odd.
const SCATTER: u64 = 331;

const PAGE: u64 = 4096;

/// A cache line, in bytes.
const LINE: u64 = 64;

#[cfg(test)]
mod tests {
    use ringway_ring::queue::Format;

    use super::*;
    use crate::frame::Sizes;

    const BASE: u64 = 0x1_0000_0000;

    fn scattered(regions: Option<u16>) -> Result<Plan, GuestError> {
        let options = GuestOptions { regions, ..GuestOptions::default() };
        Plan::new(&options, RingSize::new(Format::Split, 256).unwrap(), Features::VERSION_1)
    }

    #[test]
    fn regions_cover_the_memory_without_gap_and_whole_buffers_each() {
        for count in [1u16, 2, 8, 509, 512] {
            let plan = scattered(Some(count)).unwrap();
            let bytes = plan.total();
            let regions = plan.regions(bytes);
            assert_eq!(regions.len(), usize::from(count));
            assert_eq!((regions[0].0, regions[regions.len() - 1].1), (0, bytes));
            for pair in regions.windows(2) {
                assert_eq!(pair[0].1, pair[1].0);
                assert_eq!((pair[0].1 - plan.buffers_at()) % plan.scattered.as_ref().unwrap().bytes, 0);
                assert!(pair[0].0 < pair[0].1 && pair[1].0 < pair[1].1);
            }
        }
    }

    #[test]
    fn regions_without_a_buffer_are_refused() {
        assert!(matches!(scattered(Some(513)), Err(GuestError::Regions { regions: 513, most: 512 })));
        assert!(matches!(scattered(Some(0)), Err(GuestError::Regions { .. })));
    }

    #[test]
    fn one_region_is_all_of_the_memory() {
        assert_eq!(scattered(None).unwrap().regions(1 << 21), [(0, 1 << 21)]);
    }

    #[test]
    fn rings_and_buffers_do_not_overlap() {
        let jumbo = Sizes::Fixed(9014);
        for (format, rx_buffer, sizes, regions) in [
            (Format::Split, Some(2048), Sizes::Fixed(64), None),
            (Format::Packed, None, jumbo, None),
            (Format::Split, Some(2048), jumbo, Some(7)),
            (Format::Packed, None, Sizes::Fixed(64), Some(509)),
        ] {
            let options =
                GuestOptions { format, rx_buffer, sizes, regions, pairs: 3, ..GuestOptions::default() };
            let size = RingSize::new(format, 256).unwrap();
            let plan = Plan::new(&options, size, Features::VERSION_1).unwrap();
            let mut spans: Vec<(u64, u64)> = Vec::new();
            for pair in 0..3 {
                for direction in 0..2 {
                    let start = plan.ring(pair, direction, BASE).desc;
                    spans.push((start, start + plan.layout.total));
                }
                let room = [u64::from(plan.rx_buffer_bytes), plan.header_len + u64::from(sizes.max())];
                let buffers = [plan.rx_buffers(pair, BASE), plan.tx_buffers(pair, BASE)];
                for (buffers, room) in buffers.iter().zip(room) {
                    spans.extend(buffers.iter().map(|at| (*at, at + room)));
                }
            }
            spans.sort_unstable();
            assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0));
            assert!(spans.last().unwrap().1 <= BASE + plan.total());
        }
    }
}
