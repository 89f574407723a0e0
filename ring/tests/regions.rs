//! A guest of many regions whose neighbouring buffers lie in different ones: each is found where it is, whatever stood before it in
//! the burst.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::sync::Arc;

use ringway_ring::chain::Burst;
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::queue::{Completion, DriverBuffer, Format};
use support::{DATA_GPA, RINGS_GPA, Shape};

const REGIONS: u64 = 61;
const PAGE: u64 = 4096;

/// Regions of a page side by side, so that a buffer may cross into the next.
fn map() -> Arc<GuestMap> {
    let mut regions = vec![support::region(RINGS_GPA, 0x20_0000)];
    regions.extend((0..REGIONS).map(|nth| support::region(DATA_GPA + nth * PAGE, PAGE)));
    Arc::new(GuestMap::new(regions).unwrap())
}

/// The buffers of a chain: one in a region far from the last chain's; now and then two, one that crosses, or several in one region.
fn buffers(nth: u64) -> Vec<DriverBuffer> {
    let at = |region: u64, offset: u64| DATA_GPA + region % REGIONS * PAGE + offset;
    let one = |gpa: u64, len: u32| DriverBuffer { gpa, len, writable: false };
    match nth % 11 {
        3 => vec![one(at(nth * 7, 8), 40), one(at(nth * 13, 0), 4096)],
        5 => vec![one(DATA_GPA + nth * 17 % (REGIONS - 1) * PAGE + 4000, 200)],
        7..=9 => vec![one(at(30, nth % 3000), 100)],
        _ => vec![one(at(nth * 29, nth % 3000), 64 + (nth % 900) as u32)],
    }
}

/// Where `len` bytes of the guest lie here, in pieces.
fn places(map: &GuestMap, buffer: &DriverBuffer) -> Vec<(u64, usize, usize)> {
    let (mut gpa, end) = (buffer.gpa, buffer.gpa + u64::from(buffer.len));
    let mut places = Vec::new();
    while gpa < end {
        let len = (end - gpa).min(PAGE - gpa % PAGE);
        places.push((gpa, map.resolve(gpa, len).unwrap().as_ptr().addr(), len as usize));
        gpa += len;
    }
    places
}

#[test]
fn buffers_all_over_the_regions_are_found_where_they_are() {
    for (format, shape) in
        [Format::Split, Format::Packed].map(|format| (format, Shape::new(format, 64, Features::VERSION_1)))
    {
        let map = map();
        let (mut driver, mut device) = shape.start(&map);
        let mut burst = Burst::new(Arc::clone(&map));
        let mut done = vec![Completion::default(); 64];
        let mut next = 0;
        // Several laps, with bursts of every size.
        for most in (1..=64).chain([64, 33, 2]) {
            let first = next;
            while driver.free_slots() >= 2 {
                driver.add(&buffers(next), next as u32).unwrap();
                next += 1;
            }
            driver.publish();
            let mut seen = first;
            while seen < next {
                let peeked = device.peek(&mut burst, most).unwrap();
                assert!(peeked > 0, "{format:?}, bursts of {most}");
                for chain in burst.chains() {
                    let found: Vec<_> = burst
                        .addresses(chain)
                        .zip(burst.readable(chain))
                        .map(|(gpa, slice)| (gpa, slice.as_ptr().addr(), slice.len()))
                        .collect();
                    let wanted: Vec<_> =
                        buffers(seen).iter().flat_map(|buffer| places(&map, buffer)).collect();
                    assert_eq!(found, wanted, "{format:?}, chain {seen}, bursts of {most}");
                    seen += 1;
                }
                device.consume(burst.chains());
                for chain in burst.chains() {
                    device.complete(chain, 0);
                }
                device.publish();
            }
            assert_eq!(driver.collect(&mut done).unwrap() as u64, next - first);
        }
    }
}
