//! One slot's cells: how a pump passes from its holder to a worker and back, whoever lets go first.
//!
//! ```text
//!   holder   --- deliver ------->  inbox   --- take_delivery -->  worker
//!            --- order, abandon -> orders  --- orders --------->
//!            <-- take, recall ---  outbox  <-- give_back -------
//!   reaper   <-- reclaim --------  outbox, once the slot is an orphan
//! ```
//!
//! Filled by one side and emptied by the other; neither waits for the other, but for the holder in `recall`.
//! `tests/loom.rs` checks that what is given back reaches exactly one of holder and reaper, and is never left behind.

use std::time::{Duration, Instant};

use crate::sync::{AtomicU32, Exchange, Futex, Ordering};

/// The cells of one slot; `T` is what is placed there.
#[derive(Debug)]
pub struct Berth<T> {
    inbox: Exchange<T>,
    outbox: Exchange<T>,
    /// What the holder asks for: [`RETIRE`], [`LET_GO`], `ORPHAN`. Set back when the slot is freed.
    orders: AtomicU32,
    /// Counts what was given back; the holder waits on it.
    done: Futex,
}

impl<T: Send> Berth<T> {
    /// An empty slot without orders.
    #[expect(clippy::new_without_default, reason = "only desks make them")]
    pub fn new() -> Berth<T> {
        Berth {
            inbox: Exchange::new(),
            outbox: Exchange::new(),
            orders: AtomicU32::new(0),
            done: Futex::new(),
        }
    }

    /// Holder: fills the inbox. The worker's mailbox tells it.
    pub fn deliver(&self, tenant: T) {
        self.inbox.put(tenant);
    }

    /// Worker: empties the inbox.
    pub fn take_delivery(&self) -> Option<T> {
        self.inbox.take()
    }

    /// Holder: gives an order. The worker's mailbox tells it.
    pub fn order(&self, order: u32) {
        // Release: pairs with the Acquire in `orders`.
        self.orders.fetch_or(order, Ordering::Release);
    }

    /// Worker: the orders.
    pub fn orders(&self) -> u32 {
        // Acquire: pairs with the Release in `order`.
        self.orders.load(Ordering::Acquire)
    }

    /// Worker: gives back; it touches the tenant no more. True: the holder has gone, the reaper is to be called.
    #[must_use = "a tenant without holder is the reaper's"]
    pub fn give_back(&self, tenant: T) -> bool {
        self.outbox.put(tenant);
        // The exchange comes first here, and in `abandon` and `reclaim` the order comes before the exchange. The two
        // exchanges are ordered: either this one is first and `reclaim` finds the tenant, or this one acquires what
        // `reclaim` released and sees ORPHAN.
        if self.orders() & ORPHAN != 0 {
            return true;
        }
        self.done.raise();
        false
    }

    /// Holder: what was given back already.
    pub fn take(&self) -> Option<T> {
        self.outbox.take()
    }

    /// Holder: waits for what the worker gives back.
    pub fn recall(&self, within: Duration) -> Option<T> {
        let asked = Instant::now();
        loop {
            // Before the cell is looked at: what is given back after this makes the wait return at once.
            let seen = self.done.seen();
            if let Some(tenant) = self.outbox.take() {
                return Some(tenant);
            }
            let left = within.saturating_sub(asked.elapsed());
            if left.is_zero() {
                return None;
            }
            self.done.wait(seen, Some(left));
        }
    }

    /// Holder: puts back what it took, to take it again later.
    pub fn keep(&self, tenant: T) {
        self.outbox.put(tenant);
    }

    /// Holder: takes an order back that was not obeyed yet.
    pub fn countermand(&self, order: u32) {
        // Release: pairs with the Acquire in `orders`.
        self.orders.fetch_and(!order, Ordering::Release);
    }

    /// Holder: lets go for good. The worker is to be told, and the reaper to be called.
    pub fn abandon(&self) {
        // Nobody could end what is under way: it stays with the worker until it has ended.
        self.countermand(LET_GO);
        self.order(RETIRE | ORPHAN);
    }

    /// Reaper: what an orphaned slot was given back. One at a time.
    pub fn reclaim(&self) -> Option<T> {
        if self.orders() & ORPHAN == 0 { None } else { self.outbox.take() }
    }

    /// Whoever took the tenant for good: the slot is free.
    pub fn clear(&self) {
        self.orders.store(0, Ordering::Relaxed);
    }
}

/// Order: stop the pump and give it back.
pub const RETIRE: u32 = 1;
/// Order: give the pump back even though it has work in flight.
pub const LET_GO: u32 = 2;
/// Nobody holds the pump any more.
const ORPHAN: u32 = 4;
