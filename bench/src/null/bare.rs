//! The null back-end's pump where no frame is touched: what is sent is said to be received, and nothing else is done. It
//! neither looks at a frame nor checks a ring, and takes and gives descriptors by whole cache lines, as the guest does.
//! Made for the suite's own guest alone, which sends frames of one descriptor.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use ringway_engine::{Armed, Budget, Polled, Pump};
use ringway_pmd::vdpa::{DriverError, QueueBinding};
use ringway_ring::guest::{GuestMap, HostSlice};
use ringway_ring::layout::{Area, Areas};

/// Both queues of a pair.
#[derive(Debug)]
pub(super) struct BarePump<R> {
    map: Arc<GuestMap>,
    rx: (Places, R),
    tx: (Places, R),
}

/// Where a queue's areas are in the guest's memory.
type Places = [Area; 3];

/// A queue's areas, found anew for each turn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block<'a> {
    desc: HostSlice<'a>,
    driver: HostSlice<'a>,
    device: HostSlice<'a>,
}

impl Block<'_> {
    fn of<'a>(map: &'a GuestMap, places: &Places) -> Option<Block<'a>> {
        let [desc, driver, device] = places;
        let at = |area: &Area| map.resolve_user(area.address, area.len).ok();
        Some(Block { desc: at(desc)?, driver: at(driver)?, device: at(device)? })
    }
}

/// The device's side of a ring whose entries are each one buffer.
pub(super) trait Side: Sized + Send {
    /// Of so many entries, from its start on; says that it wants no kicks.
    fn new(size: u16, ring: Block<'_>) -> Self;
    /// So many buffers are available, of `most` that are looked for.
    fn ready(&mut self, ring: Block<'_>, most: usize) -> usize;
    /// The bytes of the next buffer, as its descriptor has them.
    fn bytes(&self, ring: Block<'_>) -> u32;
    /// Completes the next buffer, not visible before `publish`.
    fn complete(&mut self, ring: Block<'_>, written: u32);
    /// Makes what was completed visible.
    fn publish(&mut self, ring: Block<'_>);
    /// So many of `count` end a line.
    fn whole(&self, count: usize) -> usize;
}

impl<R: Side + 'static> BarePump<R> {
    pub(super) fn new(rx: QueueBinding, tx: QueueBinding) -> Result<BarePump<R>, DriverError> {
        let map = Arc::clone(&rx.config.map);
        let side = |queue: QueueBinding| {
            let config = &queue.config;
            let areas = Areas {
                desc: config.desc_user_addr,
                driver: config.driver_user_addr,
                device: config.device_user_addr,
            };
            let places = areas.of(queue.format, config.size);
            match Block::of(&map, &places) {
                Some(block) => Ok((places, R::new(config.size.get(), block))),
                None => Err(DriverError::PeerMisbehaved("a ring that is not in its memory".to_owned())),
            }
        };
        Ok(BarePump { rx: side(rx)?, tx: side(tx)?, map })
    }
}

impl<R: Side + 'static> Pump for BarePump<R> {
    fn poll(&mut self, _: &Budget, _: u64) -> Polled {
        let (Some(from), Some(to)) = (Block::of(&self.map, &self.tx.0), Block::of(&self.map, &self.rx.0))
        else {
            return Polled::Idle;
        };
        let (rx, tx) = (&mut self.rx.1, &mut self.tx.1);
        let sent = tx.ready(from, BURST);
        if sent == 0 {
            return Polled::Idle;
        }
        let room = rx.ready(to, sent);
        let count = tx.whole(sent.min(room));
        for _ in 0..count {
            rx.complete(to, tx.bytes(from));
            tx.complete(from, 0);
        }
        rx.publish(to);
        tx.publish(from);
        if count > 0 { Polled::Moved(count as u32) } else { Polled::Idle }
    }
    fn arm(&mut self) -> Armed {
        Armed::CannotSleep
    }
    fn disarm(&mut self) {}
    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

/// So many of `count` entries from `at` on that they end where a line does; all, if that were none.
fn up_to_line(at: u16, count: usize, line: usize) -> usize {
    let beyond = (usize::from(at) + count) % line;
    if beyond < count { count - beyond } else { count }
}

/// Of a split virtqueue.
#[derive(Debug)]
pub(super) struct Split {
    mask: u16,
    /// The next entry, those that were seen to be available, those that the driver knows to be used.
    next: u16,
    seen: u16,
    published: u16,
    /// The first used entry's id, which stands in one word with the index.
    first: u32,
}

impl Split {
    /// The next buffer's number: at the end of a word that lies in the area.
    #[inline(always)]
    fn id(&self, ring: Block<'_>) -> u16 {
        (ring.driver.word(2 * usize::from(self.next & self.mask)) >> 32) as u16
    }
}

impl Side for Split {
    fn new(size: u16, ring: Block<'_>) -> Split {
        ring.device.put_word(0, ring.device.word(0) | NO_NOTIFICATION);
        Split { mask: size - 1, next: 0, seen: 0, published: 0, first: 0 }
    }

    #[inline]
    fn ready(&mut self, ring: Block<'_>, most: usize) -> usize {
        let mut ready = self.seen.wrapping_sub(self.next);
        if usize::from(ready) < most {
            self.seen = (ring.driver.word(0) >> 16) as u16;
            ready = self.seen.wrapping_sub(self.next);
            // Acquire: pairs with the driver's Release before its store of avail.idx.
            fence(Ordering::Acquire);
        }
        usize::from(ready).min(most)
    }

    #[inline(always)]
    fn bytes(&self, ring: Block<'_>) -> u32 {
        ring.desc.word(16 * usize::from(self.id(ring)) + 8) as u32
    }

    #[inline(always)]
    fn complete(&mut self, ring: Block<'_>, written: u32) {
        let id = u32::from(self.id(ring));
        let slot = usize::from(self.next & self.mask);
        if slot == 0 {
            self.first = id;
        }
        ring.device.put_word(4 + 8 * slot, u64::from(id) | u64::from(written) << 32);
        self.next = self.next.wrapping_add(1);
    }

    #[inline]
    fn publish(&mut self, ring: Block<'_>) {
        if self.next == self.published {
            return;
        }
        self.published = self.next;
        // Release: pairs with the driver's Acquire after its load of used.idx.
        fence(Ordering::Release);
        let word = NO_NOTIFICATION | u64::from(self.next) << 16 | u64::from(self.first) << 32;
        ring.device.put_word(0, word);
    }

    #[inline]
    fn whole(&self, count: usize) -> usize {
        up_to_line(self.next & self.mask, count, USED_LINE)
    }
}

/// Of a packed virtqueue.
#[derive(Debug)]
pub(super) struct Packed {
    size: u16,
    next: u16,
    lap: bool,
    /// The burst's first descriptor, which is written last.
    held: Option<(usize, u64)>,
}

/// Length, id and flags of a slot.
#[inline(always)]
fn word(ring: Block<'_>, slot: u16) -> u64 {
    ring.desc.word(16 * usize::from(slot) + 8)
}

impl Side for Packed {
    fn new(size: u16, ring: Block<'_>) -> Packed {
        ring.device.write(&[0, 0, 1, 0]);
        Packed { size, next: 0, lap: true, held: None }
    }

    #[inline]
    fn ready(&mut self, ring: Block<'_>, most: usize) -> usize {
        let (mut slot, mut lap, mut ready) = (self.next, self.lap, 0);
        let most = most.min(self.size.into());
        while ready < most {
            let both = if lap { F_AVAIL } else { F_USED };
            if (word(ring, slot) >> 48) & (F_AVAIL | F_USED) != both {
                break;
            }
            slot += 1;
            if slot == self.size {
                (slot, lap) = (0, !lap);
            }
            ready += 1;
        }
        // Acquire: pairs with the driver's Release before its store of a batch's first flags.
        fence(Ordering::Acquire);
        ready
    }

    #[inline(always)]
    fn bytes(&self, ring: Block<'_>) -> u32 {
        word(ring, self.next) as u32
    }

    #[inline(always)]
    fn complete(&mut self, ring: Block<'_>, written: u32) {
        let id = (word(ring, self.next) >> 32) & 0xffff;
        let flags = if self.lap { F_AVAIL | F_USED } else { 0 };
        let (at, word) = (16 * usize::from(self.next) + 8, u64::from(written) | id << 32 | flags << 48);
        if self.held.is_none() {
            self.held = Some((at, word));
        } else {
            ring.desc.put_word(at, word);
        }
        self.next += 1;
        if self.next == self.size {
            (self.next, self.lap) = (0, !self.lap);
        }
    }

    #[inline]
    fn publish(&mut self, ring: Block<'_>) {
        let Some((at, word)) = self.held.take() else { return };
        // Release: pairs with the driver's Acquire after its load of the flags.
        fence(Ordering::Release);
        ring.desc.put_word(at, word);
    }

    #[inline]
    fn whole(&self, count: usize) -> usize {
        up_to_line(self.next, count, DESC_LINE)
    }
}

/// Buffers a turn at most.
const BURST: usize = 64;
/// Entries in a cache line.
const USED_LINE: usize = 8;
const DESC_LINE: usize = 4;
const NO_NOTIFICATION: u64 = 1;
const F_AVAIL: u64 = 1 << 7;
const F_USED: u64 = 1 << 15;
