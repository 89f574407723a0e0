//! The steady state of either side of either format allocates nothing.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use ringway_ring::chain::Burst;
use ringway_ring::features::Features;
use ringway_ring::queue::{Completion, DriverBuffer, Format};
use support::{DATA_BYTES, DATA_GPA, Desc, INDIRECT, RawRing, Shape};

/// The system's allocator, counting what this thread asks of it.
struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    CALLS.set(CALLS.get() + 1);
}

// SAFETY: hands every call on to the system's allocator unchanged; the counter is a plain cell of the thread, without
// a destructor, and so allocates nothing itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Calls of the allocator in `work`.
fn calls(work: impl FnOnce()) -> u64 {
    let before = CALLS.get();
    work();
    CALLS.get() - before
}

#[test]
fn planted_allocation_is_counted() {
    assert_eq!(calls(|| drop(std::hint::black_box(Box::new(1)))), 2);
}

#[test]
fn steady_state_allocates_nothing() {
    for format in [Format::Split, Format::Packed] {
        for features in [Features::VERSION_1, Features::EVENT_IDX, Features::IN_ORDER] {
            let map = support::memory();
            let (mut driver, mut device) = Shape::new(format, 128, features).start(&map);
            let mut burst = Burst::new(Arc::clone(&map));
            let mut into = [Completion::default(); 64];
            let buffers: Vec<DriverBuffer> = (0..3)
                .map(|nth| DriverBuffer {
                    // The second one lies over a border of regions.
                    gpa: DATA_GPA + DATA_BYTES - 1500 + nth * 1000,
                    len: 1000,
                    writable: nth == 2,
                })
                .collect();
            let mut round = |chains: u32| {
                for token in 0..chains {
                    driver.add(&buffers[..1 + token as usize % 3], token).unwrap();
                }
                driver.publish();
                device.disable_kicks();
                let count = device.peek(&mut burst, 64).unwrap();
                device.consume(burst.chains());
                for chain in burst.chains() {
                    device.complete(chain, chain.writable_bytes);
                }
                device.publish();
                device.enable_kicks();
                driver.enable_calls();
                assert_eq!(driver.collect(&mut into).unwrap(), count);
                driver.disable_calls();
                assert_eq!(count, chains as usize);
            };
            round(32);
            assert_eq!(calls(|| (0..1000).for_each(|nth| round(nth % 60))), 0, "{format:?} {features:?}");
        }
    }
}

#[test]
fn indirect_chains_and_faults_allocate_nothing() {
    for format in [Format::Split, Format::Packed] {
        let ring = RawRing::new(&support::memory(), Shape::new(format, 8, Features::INDIRECT_DESC));
        // A table over a border of regions, at an odd address.
        let table = DATA_GPA + DATA_BYTES - 23;
        for nth in 0..2u16 {
            let entry = Desc { addr: DATA_GPA, len: 10, flags: u16::from(nth == 0), link: 1 };
            support::write(&ring.map, table + 16 * u64::from(nth), &entry.bytes(format));
        }
        ring.desc(0, Desc { addr: table, len: 32, flags: INDIRECT, link: 0 });
        ring.desc(1, Desc { addr: 0, len: 32, flags: 0, link: 1 });
        ring.offer(&[0, 1]);
        let mut device = ring.device();
        let mut burst = Burst::new(Arc::clone(&ring.map));
        let counted = calls(|| {
            assert_eq!(device.peek(&mut burst, 8), Ok(1));
            assert_eq!(burst.readable(&burst.chains()[0]).len(), 2);
            device.consume(burst.chains());
            assert!(device.peek(&mut burst, 8).is_err());
        });
        assert_eq!(counted, 0, "{format:?}");
    }
}
