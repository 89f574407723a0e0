//! The protocols between a worker and everybody else, in every interleaving that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ringway-engine --release --test loom`
#![cfg(loom)]

use std::sync::Arc;
use std::time::Duration;

use loom::sync::Notify;
use loom::thread;
use ringway_engine::berth::{Berth, RETIRE};
use ringway_engine::mailbox::{Mailbox, NO_OWNER_FENCE, NO_POSTER_FENCE, NO_RECHECK, PLAIN_PENDING, SOUND};

/// Posters post one letter each, in words of their own; the owner sleeps until it has them all. A letter that it
/// misses leaves it asleep for ever, which loom calls a deadlock.
fn owner_gets_every_letter<const FAULT: u8>(posters: usize) {
    let mut model = loom::model::Builder::new();
    if posters > 1 {
        // Three threads in full would take hours; forced preemptions are bounded instead, as loom's authors advise.
        model.preemption_bound = Some(3);
    }
    model.check(move || {
        let mailbox: Arc<Mailbox<FAULT>> = Arc::new(Mailbox::new(64 * posters));
        // An eventfd in an edge-triggered epoll: a ring during no wait ends the next one. No guard lives across the
        // wait: a deadlock is reported by unwinding.
        let bell = Arc::new(Notify::new());
        for poster in 0..posters {
            let (mailbox, bell) = (mailbox.clone(), bell.clone());
            thread::spawn(move || {
                if mailbox.post(64 * poster) {
                    bell.notify();
                }
            });
        }
        let mut opened = 0;
        while opened < posters {
            if mailbox.has_mail() {
                mailbox.collect(|_| opened += 1);
            } else if mailbox.fall_asleep() {
                bell.wait();
                mailbox.wake_up();
            }
        }
        assert_eq!(opened, posters);
    });
}

#[test]
fn owner_misses_no_letter_of_one_poster() {
    owner_gets_every_letter::<SOUND>(1);
}

#[test]
fn owner_misses_no_letter_of_two_posters() {
    owner_gets_every_letter::<SOUND>(2);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_posters_fence_a_letter_is_missed() {
    owner_gets_every_letter::<NO_POSTER_FENCE>(1);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_owners_fence_a_letter_is_missed() {
    owner_gets_every_letter::<NO_OWNER_FENCE>(1);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_second_look_a_letter_is_missed() {
    owner_gets_every_letter::<NO_RECHECK>(1);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_exchange_of_pending_an_earlier_letter_is_missed() {
    owner_gets_every_letter::<PLAIN_PENDING>(2);
}

/// What a worker wrote before it gave back is seen by the holder that waited for it, in a cell that loom checks for
/// races: the quiescent point.
#[test]
fn holder_that_recalls_gets_the_tenant_and_sees_the_workers_last_writes() {
    loom::model(|| {
        let berth: Arc<Berth<u32>> = Arc::new(Berth::new());
        let memory = Arc::new(loom::cell::UnsafeCell::new(0u32));
        berth.deliver(7);
        let worker = {
            let (berth, memory) = (berth.clone(), memory.clone());
            thread::spawn(move || {
                let tenant = berth.take_delivery().expect("it was delivered before");
                memory.with_mut(|_| ());
                assert!(!berth.give_back(tenant), "its holder waits");
            })
        };
        berth.order(RETIRE);
        assert_eq!(berth.recall(Duration::from_secs(3600)), Some(7));
        memory.with_mut(|_| ());
        worker.join().unwrap();
        assert_eq!(berth.take(), None);
    });
}

/// The holder lets go while the worker gives back: exactly one call of the reaper finds the tenant.
#[test]
fn tenant_abandoned_while_it_is_given_back_is_reclaimed_once() {
    loom::model(|| {
        let berth: Arc<Berth<u32>> = Arc::new(Berth::new());
        let reclaimed = Arc::new(loom::sync::atomic::AtomicU32::new(0));
        let reap = |berth: &Berth<u32>, reclaimed: &loom::sync::atomic::AtomicU32| {
            if berth.reclaim().is_some() {
                reclaimed.fetch_add(1, loom::sync::atomic::Ordering::Relaxed);
            }
        };
        let worker = {
            let (berth, reclaimed) = (berth.clone(), reclaimed.clone());
            thread::spawn(move || {
                if berth.give_back(7) {
                    reap(&berth, &reclaimed);
                }
            })
        };
        berth.abandon();
        reap(&berth, &reclaimed);
        worker.join().unwrap();
        assert_eq!(reclaimed.load(loom::sync::atomic::Ordering::Relaxed), 1);
    });
}
