//! Every rule of the specification that a driver (or, for the driver's side, a device) can break, and the fault that
//! names it; and what looks like a breach and is none.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

mod support;

use std::sync::Arc;

use ringway_ring::chain::{Burst, MAX_CHAIN};
use ringway_ring::features::Features;
use ringway_ring::position::Position;
use ringway_ring::queue::{Completion, DriverBuffer, Format, RingFault, RingSize, SetupError};
use support::{DATA_BYTES, DATA_GPA, Desc, INDIRECT, NEXT, RawRing, Shape, WRITE};

const BOTH: [Format; 2] = [Format::Split, Format::Packed];
/// One byte behind the last region.
const END: u64 = DATA_GPA + 2 * DATA_BYTES;
/// Where indirect tables are put.
const TABLE: u64 = DATA_GPA + 0x8000;

fn ring(format: Format, size: u16) -> RawRing {
    RawRing::new(&support::memory(), Shape::new(format, size, Features::INDIRECT_DESC))
}

fn good(len: u32) -> Desc {
    Desc { addr: DATA_GPA, len, flags: 0, link: 0 }
}

/// Offers the chain at head 0 and asserts that it is this fault, now and for ever.
fn faults(ring: &RawRing, fault: RingFault) {
    ring.offer(&[0]);
    let mut device = ring.device();
    let mut burst = Burst::new(Arc::clone(&ring.map));
    for _ in 0..3 {
        assert_eq!(device.peek(&mut burst, 8), Err(fault), "{:?}", ring.shape.format);
        assert!(burst.chains().is_empty());
    }
    // It is left alone from then on, and tells so.
    assert!(!device.has_available() && !device.enable_kicks() && !device.publish());
}

/// Offers the chain at head 0 and returns the lengths of its readable and writable segments.
fn accepted(ring: &RawRing) -> (Vec<usize>, Vec<usize>) {
    ring.offer(&[0]);
    let mut device = ring.device();
    let mut burst = Burst::new(Arc::clone(&ring.map));
    assert_eq!(device.peek(&mut burst, 1), Ok(1), "{:?}", ring.shape.format);
    let chain = burst.chains()[0];
    (burst.readable(&chain).map(|s| s.len()).collect(), burst.writable(&chain).map(|s| s.len()).collect())
}

fn table(ring: &RawRing, at: u64, entries: &[Desc]) {
    for (nth, entry) in (0..).zip(entries) {
        support::write(&ring.map, at + 16 * nth, &entry.bytes(ring.shape.format));
    }
}

fn indirect(addr: u64, len: u32) -> Desc {
    Desc { addr, len, flags: INDIRECT, link: 0 }
}

#[test]
fn avail_index_more_than_a_ring_ahead_is_a_fault() {
    let ring = ring(Format::Split, 8);
    ring.set_avail_idx(9);
    let mut device = ring.device();
    let mut burst = Burst::new(Arc::clone(&ring.map));
    assert_eq!(device.peek(&mut burst, 1), Err(RingFault::AvailIndex));
    assert_eq!(device.peek(&mut burst, 1), Err(RingFault::AvailIndex));
}

#[test]
fn avail_index_that_goes_back_is_a_fault() {
    let ring = ring(Format::Split, 8);
    ring.desc(0, good(1));
    ring.offer(&[0, 0, 0]);
    let mut device = ring.device();
    let mut burst = Burst::new(Arc::clone(&ring.map));
    assert_eq!(device.peek(&mut burst, 8), Ok(3));
    device.consume(burst.chains());
    ring.set_avail_idx(2);
    assert_eq!(device.peek(&mut burst, 8), Err(RingFault::AvailIndex));
}

#[test]
fn avail_index_that_counts_chains_not_yet_returned_is_a_fault() {
    let ring = ring(Format::Split, 8);
    ring.desc(0, good(1));
    ring.offer(&[0; 8]);
    let mut device = ring.device();
    let mut burst = Burst::new(Arc::clone(&ring.map));
    assert_eq!(device.peek(&mut burst, 8), Ok(8));
    device.consume(burst.chains());
    // Eight chains are with the device: there is no descriptor for a ninth.
    ring.set_avail_idx(9);
    assert_eq!(device.peek(&mut burst, 8), Err(RingFault::AvailIndex));
}

#[test]
fn packed_descriptors_made_available_twice_are_not_taken_twice() {
    let ring = ring(Format::Packed, 4);
    for slot in 0..4 {
        ring.desc(slot, Desc { link: slot, ..good(1) });
    }
    let mut device = ring.device();
    let mut burst = Burst::new(Arc::clone(&ring.map));
    assert_eq!(device.peek(&mut burst, 8), Ok(4));
    device.consume(burst.chains());
    // The next lap's flags, though the device has all slots.
    support::write(&ring.map, ring.shape.areas().desc + 14, &0x8000u16.to_le_bytes());
    assert!(!device.has_available());
    assert_eq!(device.peek(&mut burst, 8), Ok(0));
}

#[test]
fn head_beyond_the_table_is_a_fault() {
    let ring = ring(Format::Split, 8);
    ring.offer(&[8]);
    let mut device = ring.device();
    let mut burst = Burst::new(Arc::clone(&ring.map));
    assert_eq!(device.peek(&mut burst, 1), Err(RingFault::DescIndex));
}

#[test]
fn next_beyond_the_table_is_a_fault() {
    let ring = ring(Format::Split, 8);
    ring.desc(0, Desc { flags: NEXT, link: 8, ..good(1) });
    faults(&ring, RingFault::DescIndex);
}

#[test]
fn chain_that_loops_is_a_fault() {
    for format in BOTH {
        let ring = ring(format, 8);
        for slot in 0..8 {
            ring.desc(slot, Desc { flags: NEXT, link: (slot + 1) % 8, ..good(1) });
        }
        faults(&ring, RingFault::ChainLength);
    }
}

#[test]
fn chain_as_long_as_the_ring_is_none() {
    for format in BOTH {
        let ring = ring(format, 8);
        for slot in 0..8 {
            let last = slot == 7;
            ring.desc(slot, Desc { flags: if last { 0 } else { NEXT }, link: (slot + 1) % 8, ..good(1) });
        }
        assert_eq!(accepted(&ring), (vec![1; 8], vec![]));
    }
}

#[test]
fn chain_longer_than_any_may_be_is_a_fault_in_a_ring_that_could_hold_it() {
    for format in BOTH {
        for (len, fits) in [(MAX_CHAIN as u16, true), (MAX_CHAIN as u16 + 1, false)] {
            let ring = ring(format, 2048);
            for slot in 0..len {
                let last = slot + 1 == len;
                ring.desc(slot, Desc { flags: if last { 0 } else { NEXT }, link: slot + 1, ..good(1) });
            }
            match fits {
                true => assert_eq!(accepted(&ring).0.len(), MAX_CHAIN),
                false => faults(&ring, RingFault::ChainLength),
            }
        }
    }
}

#[test]
fn packed_chain_that_runs_into_slots_of_the_device_is_a_fault() {
    let ring = ring(Format::Packed, 4);
    ring.desc(0, good(1));
    let mut device = ring.device();
    let mut burst = Burst::new(Arc::clone(&ring.map));
    assert_eq!(device.peek(&mut burst, 1), Ok(1));
    device.consume(burst.chains());
    for slot in 1..4 {
        ring.desc(slot, Desc { flags: NEXT, ..good(1) });
    }
    assert_eq!(device.peek(&mut burst, 1), Err(RingFault::ChainLength));
}

#[test]
fn chain_that_crosses_more_regions_than_a_burst_has_room_for_is_a_fault() {
    // 384 regions of a page each, side by side: four descriptors over all of them are 1,536 segments.
    let mut regions = vec![support::region(support::RINGS_GPA, 0x20_0000)];
    regions.extend((0..384).map(|nth| support::region(DATA_GPA + nth * 4096, 4096)));
    let map = Arc::new(ringway_ring::guest::GuestMap::new(regions).unwrap());
    for format in BOTH {
        let ring = RawRing::new(&map, Shape::new(format, 8, Features::NONE));
        for slot in 0..4 {
            ring.desc(
                slot,
                Desc { flags: if slot < 3 { NEXT } else { 0 }, link: slot + 1, ..good(384 * 4096) },
            );
        }
        faults(&ring, RingFault::ChainLength);
    }
}

#[test]
fn indirect_that_was_not_negotiated_is_a_fault() {
    for format in BOTH {
        let ring = RawRing::new(&support::memory(), Shape::new(format, 8, Features::VERSION_1));
        table(&ring, TABLE, &[good(1)]);
        ring.desc(0, indirect(TABLE, 16));
        faults(&ring, RingFault::Indirect);
    }
}

#[test]
fn indirect_of_a_bad_length_is_a_fault() {
    for format in BOTH {
        for len in [0, 1, 15, 17, 40, u32::MAX] {
            let ring = ring(format, 8);
            ring.desc(0, indirect(TABLE, len));
            faults(&ring, RingFault::Indirect);
        }
    }
}

#[test]
fn indirect_with_next_is_a_fault() {
    for format in BOTH {
        let ring = ring(format, 8);
        table(&ring, TABLE, &[good(1)]);
        ring.desc(0, Desc { flags: INDIRECT | NEXT, link: 1, ..indirect(TABLE, 16) });
        ring.desc(1, good(1));
        faults(&ring, RingFault::Indirect);
    }
}

#[test]
fn nested_indirect_is_a_fault_in_a_split_ring_and_ignored_in_a_packed_one() {
    for format in BOTH {
        let ring = ring(format, 8);
        table(&ring, TABLE, &[Desc { flags: INDIRECT, ..good(32) }]);
        ring.desc(0, indirect(TABLE, 16));
        match format {
            Format::Split => faults(&ring, RingFault::Indirect),
            // virtio 1.3 §2.8.7: all flags but WRITE are ignored there.
            Format::Packed => assert_eq!(accepted(&ring), (vec![32], vec![])),
        }
    }
}

#[test]
fn indirect_chain_out_of_its_table_is_a_fault() {
    let ring = ring(Format::Split, 8);
    table(&ring, TABLE, &[Desc { flags: NEXT, link: 2, ..good(1) }, good(1)]);
    ring.desc(0, indirect(TABLE, 32));
    faults(&ring, RingFault::DescIndex);
}

#[test]
fn indirect_chain_that_loops_is_a_fault() {
    let ring = ring(Format::Split, 8);
    table(
        &ring,
        TABLE,
        &[Desc { flags: NEXT, link: 1, ..good(1) }, Desc { flags: NEXT, link: 0, ..good(1) }],
    );
    ring.desc(0, indirect(TABLE, 32));
    faults(&ring, RingFault::ChainLength);
}

#[test]
fn indirect_table_with_more_entries_than_a_chain_may_have_is_a_fault() {
    for format in BOTH {
        let ring = ring(format, 8);
        let entries: Vec<Desc> =
            (0..=MAX_CHAIN as u16).map(|nth| Desc { flags: NEXT, link: nth + 1, ..good(1) }).collect();
        table(&ring, TABLE, &entries);
        ring.desc(0, indirect(TABLE, 16 * entries.len() as u32));
        faults(&ring, RingFault::ChainLength);
    }
}

#[test]
fn indirect_table_outside_memory_is_a_fault() {
    for format in BOTH {
        for addr in [END, END - 16, u64::MAX - 15, 0] {
            let ring = ring(format, 8);
            if addr == END - 16 {
                table(&ring, addr, &[Desc { flags: NEXT, link: 1, ..good(1) }]);
            }
            ring.desc(0, indirect(addr, 32));
            faults(&ring, RingFault::Unmapped);
        }
    }
}

#[test]
fn indirect_table_over_a_region_border_is_read_whole_at_any_alignment() {
    for format in BOTH {
        for back in [16, 24, 17, 1, 32] {
            let at = DATA_GPA + DATA_BYTES - back;
            let ring = ring(format, 8);
            let entries = [
                Desc { flags: NEXT, link: 1, ..good(10) },
                Desc { flags: NEXT, link: 2, ..good(20) },
                Desc { flags: WRITE, ..good(30) },
            ];
            table(&ring, at, &entries);
            ring.desc(0, indirect(at, 48));
            assert_eq!(accepted(&ring), (vec![10, 20], vec![30]), "{back} bytes before the border");
        }
    }
}

#[test]
fn indirect_descriptor_behind_direct_ones_continues_the_chain() {
    for format in BOTH {
        let ring = ring(format, 8);
        table(&ring, TABLE, &[Desc { flags: WRITE, ..good(7) }]);
        ring.desc(0, Desc { flags: NEXT, link: 1, ..good(5) });
        // WRITE on a descriptor that refers to a table is ignored (virtio 1.3 §2.7.5.3.2, §2.8.7).
        ring.desc(1, Desc { flags: INDIRECT | WRITE, ..indirect(TABLE, 16) });
        assert_eq!(accepted(&ring), (vec![5], vec![7]));
    }
}

#[test]
fn readable_after_writable_is_a_fault() {
    for format in BOTH {
        let ring = ring(format, 8);
        ring.desc(0, Desc { flags: NEXT | WRITE, link: 1, ..good(1) });
        ring.desc(1, good(1));
        faults(&ring, RingFault::Order);
        // An empty one counts.
        ring.desc(0, Desc { flags: NEXT | WRITE, link: 1, ..good(0) });
        faults(&ring, RingFault::Order);
        table(&ring, TABLE, &[Desc { flags: WRITE | NEXT, link: 1, ..good(1) }, good(1)]);
        ring.desc(0, indirect(TABLE, 32));
        faults(&ring, RingFault::Order);
    }
}

#[test]
fn address_outside_memory_is_a_fault_whatever_the_length() {
    for format in BOTH {
        for (addr, len) in [
            (END, 1),
            (END, 0),
            (0, 0),
            (END - 1, 2),
            (DATA_GPA - 1, 1),
            (DATA_GPA - 1, 2),
            (u64::MAX, 1),
            (u64::MAX, 0),
            (u64::MAX - 1, u32::MAX),
            (DATA_GPA, u32::MAX),
        ] {
            let ring = ring(format, 8);
            ring.desc(0, Desc { addr, len, ..good(0) });
            faults(&ring, RingFault::Unmapped);
            ring.desc(0, Desc { flags: NEXT, link: 1, ..good(1) });
            ring.desc(1, Desc { addr, len, ..good(0) });
            faults(&ring, RingFault::Unmapped);
        }
    }
}

#[test]
fn every_piece_of_a_chain_tells_where_the_guest_has_it() {
    for format in BOTH {
        let ring = ring(format, 8);
        let border = DATA_GPA + DATA_BYTES;
        let desc = |slot: u16, addr: u64, len, flags| {
            let link = if format == Format::Split { slot + 1 } else { 0 };
            ring.desc(slot, Desc { addr, len, flags, link });
        };
        desc(0, DATA_GPA + 5, 7, NEXT);
        // Over a border.
        desc(1, border - 3, 8, NEXT);
        desc(2, border + 64, 0, WRITE);
        ring.offer(&[0]);
        let mut device = ring.device();
        let mut burst = Burst::new(Arc::clone(&ring.map));
        assert_eq!(device.peek(&mut burst, 1), Ok(1), "{format:?}");
        let chain = burst.chains()[0];
        let addresses: Vec<u64> = burst.addresses(&chain).collect();
        assert_eq!(addresses, [DATA_GPA + 5, border - 3, border, border + 64], "{format:?}");
        // Each is the address of the bytes that the slice beside it shows.
        for (gpa, slice) in addresses.iter().zip(burst.readable(&chain).chain(burst.writable(&chain))) {
            assert_eq!(ring.map.resolve(*gpa, slice.len() as u64).unwrap().as_ptr(), slice.as_ptr());
        }
    }
}

#[test]
fn burst_that_goes_over_to_another_map_finds_nothing_in_the_one_before() {
    for format in BOTH {
        let (one, two) = (ring(format, 8), ring(format, 8));
        let mut burst = Burst::new(Arc::clone(&one.map));
        for ring in [&one, &two, &one] {
            ring.desc(0, good(64));
            ring.offer(&[0]);
            let mut device = ring.device();
            assert_eq!(device.peek(&mut burst, 8), Ok(1), "{format:?}");
            let slice = burst.single_readable(&burst.chains()[0]).unwrap();
            assert_eq!(slice.as_ptr(), ring.map.resolve(DATA_GPA, 64).unwrap().as_ptr());
        }
    }
}

#[test]
fn buffer_over_a_region_border_comes_in_pieces() {
    for format in BOTH {
        let ring = ring(format, 8);
        ring.desc(0, Desc { addr: DATA_GPA + DATA_BYTES - 3, flags: WRITE, ..good(10) });
        assert_eq!(accepted(&ring), (vec![], vec![3, 7]));
        ring.desc(0, Desc { addr: END - 10, ..good(10) });
        assert_eq!(accepted(&ring), (vec![10], vec![]));
    }
}

#[test]
fn empty_buffer_in_memory_is_none() {
    for format in BOTH {
        let ring = ring(format, 8);
        ring.desc(0, good(0));
        assert_eq!(accepted(&ring), (vec![0], vec![]));
    }
}

#[test]
fn lengths_that_add_up_to_more_than_32_bits_are_a_fault() {
    // One region that is large enough to be claimed so often; none of it is ever touched.
    let mut regions = vec![support::region(support::RINGS_GPA, 0x20_0000)];
    regions.push(support::region(DATA_GPA, 1 << 31));
    let map = Arc::new(ringway_ring::guest::GuestMap::new(regions).unwrap());
    for format in BOTH {
        let ring = RawRing::new(&map, Shape::new(format, 8, Features::NONE));
        ring.desc(0, Desc { flags: NEXT, link: 1, ..good(1 << 31) });
        ring.desc(1, Desc { flags: WRITE, ..good(1 << 31) });
        faults(&ring, RingFault::Overflow);
        ring.desc(1, Desc { flags: WRITE, ..good((1 << 31) - 1) });
        assert_eq!(accepted(&ring), (vec![1 << 31], vec![(1 << 31) - 1]));
    }
}

#[test]
fn buffer_id_beyond_the_ring_is_a_fault() {
    let ring = ring(Format::Packed, 8);
    ring.desc(0, Desc { link: 8, ..good(1) });
    faults(&ring, RingFault::BufferId);
    ring.desc(0, Desc { flags: NEXT, ..good(1) });
    ring.desc(1, Desc { link: 0xffff, ..good(1) });
    faults(&ring, RingFault::BufferId);
    table(&ring, TABLE, &[good(1)]);
    ring.desc(0, Desc { link: 8, ..indirect(TABLE, 16) });
    faults(&ring, RingFault::BufferId);
    // That of a descriptor that is not the last one means nothing.
    ring.desc(0, Desc { flags: NEXT, link: 8, ..good(1) });
    ring.desc(1, Desc { link: 7, ..good(1) });
    assert_eq!(accepted(&ring).0, [1, 1]);
}

#[test]
fn memory_truncated_by_the_peer_is_a_fault() {
    for format in BOTH {
        let ring = ring(format, 8);
        ring.desc(0, Desc { addr: DATA_GPA + DATA_BYTES, ..good(64) });
        ring.offer(&[0]);
        let mut device = ring.device();
        let mut burst = Burst::new(Arc::clone(&ring.map));
        assert_eq!(device.peek(&mut burst, 1), Ok(1));
        rustix::fs::ftruncate(ring.map.regions()[2].file(), 0).unwrap();
        burst.single_readable(&burst.chains()[0]).unwrap().read(&mut [0; 64]);
        assert_eq!(device.peek(&mut burst, 1), Err(RingFault::Poisoned));
        assert_eq!(device.peek(&mut burst, 1), Err(RingFault::Poisoned));
    }
}

#[test]
fn ring_truncated_by_the_peer_is_called_so_and_not_by_what_is_read_there() {
    let ring = ring(Format::Split, 8);
    ring.desc(0, good(64));
    ring.offer(&[0]);
    let mut device = ring.device();
    let mut burst = Burst::new(Arc::clone(&ring.map));
    assert_eq!(device.peek(&mut burst, 1), Ok(1));
    device.consume(burst.chains());
    device.complete(&burst.chains()[0], 0);
    device.publish();
    // The available index is read as 0, which is less than was consumed.
    rustix::fs::ftruncate(ring.map.regions()[0].file(), 0).unwrap();
    assert_eq!(device.peek(&mut burst, 1), Err(RingFault::Poisoned));
}

#[test]
fn chains_before_the_one_at_fault_are_delivered_first() {
    for format in BOTH {
        let ring = ring(format, 8);
        ring.desc(0, Desc { link: 0, ..good(1) });
        ring.desc(1, Desc { link: 1, ..good(2) });
        ring.desc(2, Desc { addr: END, link: 2, ..good(3) });
        ring.offer(&[0, 1, 2]);
        let mut device = ring.device();
        let mut burst = Burst::new(Arc::clone(&ring.map));
        assert_eq!(device.peek(&mut burst, 8), Ok(2));
        device.consume(&burst.chains()[..1]);
        assert_eq!(device.peek(&mut burst, 8), Ok(1));
        assert_eq!(burst.chains()[0].readable_bytes, 2);
        assert!(device.has_available());
        device.consume(burst.chains());
        assert_eq!(device.peek(&mut burst, 8), Err(RingFault::Unmapped));
        // Mending it does not help.
        ring.desc(2, good(3));
        assert_eq!(device.peek(&mut burst, 8), Err(RingFault::Unmapped));
    }
}

#[test]
fn used_index_ahead_of_what_was_made_available_is_a_fault() {
    let map = support::memory();
    let shape = Shape::new(Format::Split, 8, Features::NONE);
    let mut driver = shape.start_driver(&map);
    driver.add(&[DriverBuffer { gpa: DATA_GPA, len: 1, writable: true }], 5).unwrap();
    driver.publish();
    for idx in [2u16, 9, 0xffff] {
        support::write(&map, shape.areas().device + 2, &idx.to_le_bytes());
        assert_eq!(driver.collect(&mut [Completion::default(); 4]), Err(RingFault::UsedIndex));
    }
    assert!(!driver.enable_calls());
}

#[test]
fn used_id_that_is_not_outstanding_is_a_fault() {
    for (format, features) in BOTH.into_iter().flat_map(|f| [(f, Features::NONE), (f, Features::IN_ORDER)]) {
        for id in [1u16, 7, 8, 0xffff] {
            let map = support::memory();
            let shape = Shape::new(format, 8, features);
            let mut driver = shape.start_driver(&map);
            driver.add(&[DriverBuffer { gpa: DATA_GPA, len: 1, writable: true }], 5).unwrap();
            driver.publish();
            used_by_hand(&map, shape, id, 0);
            assert_eq!(
                driver.collect(&mut [Completion::default(); 4]),
                Err(RingFault::UsedId),
                "{format:?} {id}"
            );
            assert_eq!(driver.collect(&mut [Completion::default(); 4]), Err(RingFault::UsedId));
        }
    }
}

#[test]
fn used_length_beyond_the_buffer_is_cut() {
    for format in BOTH {
        let map = support::memory();
        let shape = Shape::new(format, 8, Features::NONE);
        let mut driver = shape.start_driver(&map);
        driver.add(&[DriverBuffer { gpa: DATA_GPA, len: 100, writable: true }], 5).unwrap();
        driver.publish();
        used_by_hand(&map, shape, 0, 4000);
        let mut into = [Completion::default(); 4];
        assert_eq!(driver.collect(&mut into), Ok(1));
        assert_eq!(into[0], Completion { token: 5, written: 100 });
    }
}

/// The first used entry of a fresh ring, by a device of our own making.
fn used_by_hand(map: &ringway_ring::guest::GuestMap, shape: Shape, id: u16, written: u32) {
    match shape.format {
        Format::Split => {
            let entry = u64::from(id) | u64::from(written) << 32;
            support::write(map, shape.areas().device + 4, &entry.to_le_bytes());
            support::write(map, shape.areas().device + 2, &1u16.to_le_bytes());
        }
        Format::Packed => {
            let word = u64::from(written) | u64::from(id) << 32 | 0x8080 << 48;
            support::write(map, shape.areas().desc + 8, &word.to_le_bytes());
        }
    }
}

#[test]
fn areas_that_are_misaligned_or_unmapped_are_refused() {
    let map = support::memory();
    for (format, aligns) in [(Format::Split, [16, 2, 4]), (Format::Packed, [16, 4, 4])] {
        let shape = Shape::new(format, 8, Features::NONE);
        for (area, align) in (0..3).zip(aligns) {
            let activate = |address: u64| {
                let mut config = shape.device_config(&map, support::slot());
                let claim =
                    [&mut config.desc_user_addr, &mut config.driver_user_addr, &mut config.device_user_addr];
                *claim.into_iter().nth(area).unwrap() = address;
                match format {
                    Format::Split => config.activate_split().err(),
                    Format::Packed => config.activate_packed().err(),
                }
            };
            let base = DATA_GPA + support::USER_OFFSET;
            let misaligned = base + align / 2;
            assert_eq!(activate(misaligned), Some(SetupError::Misaligned { address: misaligned, align }));
            assert_eq!(activate(base + align), None);
            // The last bytes of memory: too short for any area but a packed ring's events.
            let last = END + support::USER_OFFSET - align;
            let fits = format == Format::Packed && area > 0;
            assert_eq!(activate(last).is_none(), fits, "{format:?} area {area}");
            assert!(matches!(activate(0), Some(SetupError::Unmapped { address: 0, .. })));
        }
    }
}

#[test]
fn size_that_its_format_cannot_have_is_refused() {
    for size in [0, 3, 32769, 65536, 0x1_0008] {
        assert_eq!(RingSize::new(Format::Split, size), Err(SetupError::Size { size }));
    }
    for (format, size) in
        [(Format::Split, 16384), (Format::Split, 32768), (Format::Packed, 32767), (Format::Packed, 32768)]
    {
        assert!(RingSize::new(format, size).is_ok());
    }
    assert_eq!(RingSize::new(Format::Packed, 32769), Err(SetupError::Size { size: 32769 }));
    assert_eq!(RingSize::new(Format::Packed, 0x1_0008), Err(SetupError::Size { size: 0x1_0008 }));
    // A size made for the other format does not get by.
    let map = support::memory();
    let shape = Shape::new(Format::Packed, 3, Features::NONE);
    assert_eq!(
        shape.device_config(&map, support::slot()).activate_split().err(),
        Some(SetupError::Size { size: 3 })
    );
}

#[test]
fn packed_position_beyond_the_ring_is_refused() {
    let map = support::memory();
    for (avail_idx, used_idx) in [(8, 0), (0, 8), (0x7fff, 0x7fff)] {
        let mut shape = Shape::new(Format::Packed, 8, Features::NONE);
        shape.position = Position { avail_idx, used_idx, ..Position::START };
        let config = shape.device_config(&map, support::slot());
        assert_eq!(config.activate_packed().err(), Some(SetupError::Position));
    }
}

#[test]
fn every_fault_of_either_side_has_its_test_here() {
    // Raised by what uses a ring, for what a chain or a call means to it; or by rings that record their chains, beside which
    // it has its test.
    let elsewhere = [
        RingFault::Direction,
        RingFault::TooShort,
        RingFault::CallBlocked,
        RingFault::UsedLength,
        RingFault::Twice,
    ];
    let source = include_str!("faults.rs");
    for fault in RingFault::ALL.into_iter().filter(|fault| !elsewhere.contains(fault)) {
        assert!(source.contains(&format!("RingFault::{fault:?})")), "{fault:?}");
    }
}
