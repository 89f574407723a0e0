//! The desk between one worker and everybody else: where pumps are handed in and out, what the worker is asked to do,
//! and what it says of itself.
//!
//! Every slot has one holder from `admit` to `release`, and both are done by threads that are not workers; what is
//! handed over lies in the slot's [`Berth`], and the mailbox tells the worker at which slot to look. What the worker
//! gives back after its holder has gone is dropped by the reaper.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, epoll, eventfd};

use crate::account::WorkerAccount;
use crate::alarm::Alarm;
use crate::berth::{Berth, LET_GO};
use crate::config::IdlePolicy;
use crate::error::PlaceError;
use crate::mailbox::Mailbox;
use crate::tenant::{Seat, Tenant};

/// One worker's desk. Shared by the worker, the engine, the holders of its pumps and the reaper.
pub(crate) struct Desk {
    pub(crate) core: usize,
    pub(crate) mailbox: Mailbox,
    /// Written to wake the worker; it sits in the epoll and is never read.
    bell: OwnedFd,
    /// What a sleeping worker waits on: the bell and every wake source, edge-triggered, each under its slot's number.
    pub(crate) epoll: OwnedFd,
    berths: Box<[Berth<Box<Tenant>>]>,
    pub(crate) account: WorkerAccount,
    /// The worker's thread id, once it runs.
    pub(crate) tid: AtomicU32,
    idle: AtomicU8,
    /// It is to rest now and then.
    gives_way: AtomicBool,
    stop: AtomicBool,
    /// Slots whose holder has gone, for the reaper.
    pub(crate) graves: Mailbox,
    alarm: Arc<Alarm>,
    /// Who has which slot. Never locked by a worker.
    book: Mutex<Book>,
}

struct Book {
    free: Vec<u32>,
    seats: Vec<Option<Arc<Seat>>>,
    /// No more admissions.
    closed: bool,
    /// The reaper has gone; whoever abandons a pump now reclaims it himself.
    reaperless: bool,
}

impl Desk {
    pub(crate) fn new(core: usize, idle: IdlePolicy, alarm: Arc<Alarm>) -> std::io::Result<Arc<Desk>> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, bell.as_fd(), epoll::EventData::new_u64(BELL), flags)?;
        Ok(Arc::new(Desk {
            core,
            mailbox: Mailbox::new(SLOTS),
            bell,
            epoll,
            berths: (0..SLOTS).map(|_| Berth::new()).collect(),
            account: WorkerAccount::default(),
            tid: AtomicU32::new(0),
            idle: AtomicU8::new(idle as u8),
            gives_way: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            graves: Mailbox::new(SLOTS),
            alarm,
            book: Mutex::new(Book {
                free: (0..SLOTS as u32).rev().collect(),
                seats: vec![None; SLOTS],
                closed: false,
                reaperless: false,
            }),
        }))
    }

    // The holder's side.

    /// Reserves a slot.
    pub(crate) fn admit(&self) -> Result<u32, PlaceError> {
        let mut book = self.book();
        if book.closed {
            return Err(PlaceError::Full(self.core));
        }
        book.free.pop().ok_or(PlaceError::Full(self.core))
    }

    /// Hands a tenant to the worker. Its wake sources are already watched. It comes back, and its slot is free, if the desk
    /// is closed.
    pub(crate) fn deliver(&self, slot: u32, tenant: Box<Tenant>) -> Result<(), Box<Tenant>> {
        let mut book = self.book();
        // The worker takes its mail for the last time after the book was closed.
        if book.closed {
            drop(book);
            self.release(slot, &tenant.seat);
            return Err(tenant);
        }
        book.seats[slot as usize] = Some(Arc::clone(&tenant.seat));
        self.berth(slot).deliver(tenant);
        drop(book);
        self.post(slot);
        Ok(())
    }

    /// Has the worker poll what lies at a slot, should it sleep.
    pub(crate) fn wake(&self, slot: u32) {
        self.post(slot);
    }

    /// Asks for a tenant and waits until the worker has given it back.
    pub(crate) fn recall(&self, slot: u32, order: u32, within: Duration) -> Result<Box<Tenant>, PlaceError> {
        let berth = self.berth(slot);
        if let Some(tenant) = berth.take() {
            return Ok(tenant);
        }
        berth.order(order);
        self.post(slot);
        if let Some(tenant) = berth.recall(within) {
            return Ok(tenant);
        }
        if order & LET_GO != 0 {
            // The worker has not turned since. Later it would give back what nobody waits for any more.
            berth.countermand(LET_GO);
            if let Some(tenant) = berth.take() {
                return Ok(tenant);
            }
        }
        Err(PlaceError::Timeout { core: self.core, waited: within })
    }

    /// Puts a tenant that was recalled back to where it can be recalled from again.
    pub(crate) fn keep(&self, slot: u32, tenant: Box<Tenant>) {
        self.berth(slot).keep(tenant);
    }

    /// Reserves a slot and has the worker's epoll watch the wake sources.
    pub(crate) fn reserve(&self, seat: &Seat) -> Result<u32, PlaceError> {
        let slot = self.admit()?;
        if let Err(error) = seat.watch(&self.epoll, slot) {
            self.release(slot, seat);
            return Err(error);
        }
        Ok(slot)
    }

    /// Frees the slot of a tenant that was given back, or that was never delivered.
    pub(crate) fn release(&self, slot: u32, seat: &Seat) {
        seat.unwatch(&self.epoll);
        let mut book = self.book();
        book.seats[slot as usize] = None;
        self.berth(slot).clear();
        book.free.push(slot);
    }

    /// Lets go of a slot without waiting: the worker retires the pump, the reaper drops it.
    pub(crate) fn abandon(&self, slot: u32) {
        self.berth(slot).abandon();
        self.post(slot);
        self.bury(slot);
        if self.book().reaperless {
            self.reclaim(slot);
        }
    }

    /// Drops what was given back at a slot whose holder has gone. Not on a worker.
    pub(crate) fn reclaim(&self, slot: u32) {
        let mut book = self.book();
        // Under the lock: a slot is freed once, and none that was taken anew is touched.
        let Some(tenant) = self.berth(slot).reclaim() else { return };
        tenant.seat.unwatch(&self.epoll);
        tenant.seat.close_sources();
        book.seats[slot as usize] = None;
        self.berth(slot).clear();
        book.free.push(slot);
        drop(book);
        // A pump that panics while it is dropped takes neither the reaper nor a holder with it.
        let _ = crate::contain::contained(|| drop(tenant));
    }

    /// Admits nobody any more and asks the worker to give everything back and end.
    pub(crate) fn close(&self) {
        self.book().closed = true;
        // Release: pairs with the Acquire in `must_stop`.
        self.stop.store(true, Ordering::Release);
        self.knock();
    }

    /// As [`Desk::close`], if no slot is taken. False: one is, and all is as before.
    pub(crate) fn close_if_empty(&self) -> bool {
        let mut book = self.book();
        if book.free.len() < SLOTS {
            return false;
        }
        book.closed = true;
        drop(book);
        self.close();
        true
    }

    /// From now on there is no reaper.
    pub(crate) fn set_reaperless(&self) {
        self.book().reaperless = true;
    }

    pub(crate) fn set_idle(&self, idle: IdlePolicy) {
        self.idle.store(idle as u8, Ordering::Relaxed);
        self.knock();
    }

    pub(crate) fn set_gives_way(&self, gives_way: bool) {
        if self.gives_way.swap(gives_way, Ordering::Relaxed) != gives_way {
            self.knock();
        }
    }

    /// The seats of its pumps, by slot.
    pub(crate) fn seats(&self) -> Vec<Arc<Seat>> {
        self.book().seats.iter().flatten().cloned().collect()
    }

    /// The seat at a slot.
    pub(crate) fn seat(&self, slot: u32) -> Option<Arc<Seat>> {
        self.book().seats.get(slot as usize)?.clone()
    }

    // The worker's side: no lock, no allocation.

    /// What was delivered at a slot.
    pub(crate) fn take_delivery(&self, slot: u32) -> Option<Box<Tenant>> {
        self.berth(slot).take_delivery()
    }

    /// What the holder of a slot asks for.
    pub(crate) fn orders(&self, slot: u32) -> u32 {
        self.berth(slot).orders()
    }

    /// Gives a tenant back: the worker touches neither it nor its memory from here on.
    pub(crate) fn give_back(&self, slot: u32, tenant: Box<Tenant>) {
        if self.berth(slot).give_back(tenant) {
            self.bury(slot);
        }
    }

    pub(crate) fn must_stop(&self) -> bool {
        // Acquire: pairs with the Release in `close`.
        self.stop.load(Ordering::Acquire)
    }

    // Either side.

    /// Whether the worker is to rest now and then.
    pub(crate) fn gives_way(&self) -> bool {
        self.gives_way.load(Ordering::Relaxed)
    }

    pub(crate) fn idle(&self) -> IdlePolicy {
        if self.idle.load(Ordering::Relaxed) == IdlePolicy::Poll as u8 {
            IdlePolicy::Poll
        } else {
            IdlePolicy::Adaptive
        }
    }

    fn berth(&self, slot: u32) -> &Berth<Box<Tenant>> {
        &self.berths[slot as usize]
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bury(&self, slot: u32) {
        // The reaper does not sleep on this mailbox but on its alarm, which is raised in any case.
        let _ = self.graves.post(slot as usize);
        self.alarm.raise();
    }

    fn post(&self, slot: u32) {
        if self.mailbox.post(slot as usize) {
            self.ring();
        }
    }

    fn knock(&self) {
        if self.mailbox.knock() {
            self.ring();
        }
    }

    fn ring(&self) {
        // It can only fail when the counter is full, which is as good as a ring.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

/// The pumps that one worker can have.
pub(crate) const SLOTS: usize = 8192;

/// The bell's token in the epoll; those of pumps are their slots.
pub(crate) const BELL: u64 = u64::MAX;
