//! The device's side of a split ring in lockstep with rust-vmm's `virtio-queue` on the same memory: the same chains
//! popped, the same used ring written, the same answer to "does the driver want to be notified" (with EVENT_IDX:
//! `virtio-queue` does not know `NO_INTERRUPT`).
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

mod support;

use std::sync::Arc;

use proptest::prelude::*;
use ringway_ring::chain::{Burst, Chain};
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::position::Position;
use ringway_ring::queue::{DeviceRing, Format};
use support::{DATA_GPA, Desc, INDIRECT, NEXT, RawRing, Shape, WRITE};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

const SIZE: u16 = 64;

/// One chain: lengths of its readable and of its writable buffers, and how many of its descriptors stand in the ring
/// itself; the others are in an indirect table.
#[derive(Debug, Clone)]
struct ChainSpec {
    buffers: Vec<(u32, bool)>,
    direct: usize,
}

/// One turn: the driver offers chains and says after how many more used entries it wants to be told, then the device
/// takes them in bursts of these sizes.
#[derive(Debug, Clone)]
struct Turn {
    chains: Vec<ChainSpec>,
    event: u16,
    bursts: Vec<usize>,
}

struct Lockstep {
    ring: RawRing,
    device: Box<dyn DeviceRing>,
    burst: Burst,
    peer: Queue,
    peer_memory: GuestMemoryMmap,
    avail_idx: u16,
    used_idx: u16,
    published: bool,
}

impl Lockstep {
    fn new(start: u16) -> Lockstep {
        let features = Features::EVENT_IDX | Features::INDIRECT_DESC;
        let mut shape = Shape::new(Format::Split, SIZE, features);
        shape.position = Position { avail_idx: start, used_idx: start, ..Position::START };
        let ring = RawRing::new(&support::memory(), shape);
        let areas = shape.areas();
        let mut peer = Queue::new(SIZE).unwrap();
        peer.try_set_desc_table_address(GuestAddress(areas.desc)).unwrap();
        peer.try_set_avail_ring_address(GuestAddress(areas.driver)).unwrap();
        peer.try_set_used_ring_address(GuestAddress(areas.device)).unwrap();
        peer.set_event_idx(true);
        peer.set_next_avail(start);
        peer.set_next_used(start);
        peer.set_ready(true);
        Lockstep {
            device: ring.device(),
            burst: Burst::new(Arc::clone(&ring.map)),
            peer,
            peer_memory: peer_memory(&ring.map),
            ring,
            avail_idx: start,
            used_idx: start,
            published: false,
        }
    }

    fn map(&self) -> &GuestMap {
        &self.ring.map
    }

    /// Writes chains into descriptors from 0 on and makes them available; all descriptors are free before.
    fn offer(&mut self, turn: &Turn) {
        let mut slot = 0u16;
        let mut data = DATA_GPA + 0x1_0000;
        let mut table = DATA_GPA;
        for chain in &turn.chains {
            let head = slot;
            let mut descs: Vec<Desc> = Vec::new();
            for (len, writable) in &chain.buffers {
                descs.push(Desc { addr: data, len: *len, flags: if *writable { WRITE } else { 0 }, link: 0 });
                let fill = vec![data as u8 ^ 0x5a; *len as usize];
                support::write(self.map(), data, &fill);
                data += u64::from(*len);
            }
            let direct = chain.direct.min(descs.len());
            let behind = descs.split_off(direct);
            if !behind.is_empty() {
                let count = behind.len();
                for (nth, mut desc) in behind.into_iter().enumerate() {
                    if nth + 1 < count {
                        desc.flags |= NEXT;
                        desc.link = nth as u16 + 1;
                    }
                    support::write(self.map(), table + 16 * nth as u64, &desc.bytes(Format::Split));
                }
                descs.push(Desc { addr: table, len: 16 * count as u32, flags: INDIRECT, link: 0 });
                table += 16 * count as u64;
            }
            let count = descs.len();
            for (nth, mut desc) in descs.into_iter().enumerate() {
                if nth + 1 < count {
                    desc.flags |= NEXT;
                    desc.link = slot + 1;
                }
                self.ring.desc(slot, desc);
                slot += 1;
            }
            let entry = self.ring.shape.areas().driver + 4 + 2 * u64::from(self.avail_idx % SIZE);
            support::write(self.map(), entry, &head.to_le_bytes());
            self.avail_idx = self.avail_idx.wrapping_add(1);
        }
        let event = self.ring.shape.areas().driver + 4 + 2 * u64::from(SIZE);
        let used_event = self.used_idx.wrapping_add(turn.event).wrapping_sub(4);
        support::write(self.map(), event, &used_event.to_le_bytes());
        self.ring.set_avail_idx(self.avail_idx);
    }

    fn used_ring(&self) -> Vec<u8> {
        support::read(self.map(), self.ring.shape.areas().device, 4 + 8 * usize::from(SIZE))
    }

    fn take(&mut self, most: usize) {
        let count = self.device.peek(&mut self.burst, most).unwrap();
        let heads: Vec<u16> = self.burst.chains().iter().map(|chain| chain.id).collect();
        let chains: Vec<Chain> = self.burst.chains().to_vec();
        let theirs: Vec<_> = self.peer.iter(&self.peer_memory).unwrap().take(most).collect();
        assert_eq!(theirs.iter().map(|chain| chain.head_index()).collect::<Vec<_>>(), heads);
        let mut used = Vec::new();
        for (ours, theirs) in chains.iter().zip(theirs) {
            let mut readable = self.burst.readable(ours);
            let mut writable = self.burst.writable(ours);
            for desc in theirs {
                let slice = if desc.is_write_only() { writable.next() } else { readable.next() }.unwrap();
                assert_eq!(slice.len(), desc.len() as usize);
                let mut ours = vec![0; slice.len()];
                let mut theirs = vec![0; slice.len()];
                if desc.is_write_only() {
                    // What is written through one shows through the other.
                    ours.fill(desc.addr().0 as u8 ^ 0xc3);
                    slice.write(&ours);
                } else {
                    slice.read(&mut ours);
                }
                self.peer_memory.read_slice(&mut theirs, desc.addr()).unwrap();
                assert_eq!(ours, theirs);
            }
            assert!(readable.next().is_none() && writable.next().is_none());
            used.push((ours.id, ours.writable_bytes));
        }
        let before = self.used_ring();
        self.device.consume(&chains);
        for chain in &chains {
            self.device.complete(chain, chain.writable_bytes);
        }
        let called = self.device.publish();
        let ours = self.used_ring();
        support::write(self.map(), self.ring.shape.areas().device, &before);
        for (head, written) in used {
            self.peer.add_used(&self.peer_memory, head, written).unwrap();
        }
        assert_eq!(self.used_ring(), ours);
        if count > 0 {
            let needed = self.peer.needs_notification(&self.peer_memory).unwrap();
            // A queue that starts asks once more than it knows to be needed: it may go on where another one ended.
            let first = !std::mem::replace(&mut self.published, true);
            assert_eq!(called, needed || first);
        } else {
            assert!(!called);
        }
        self.used_idx = self.used_idx.wrapping_add(count as u16);
        let position = self.device.position();
        assert_eq!((position.avail_idx, position.used_idx), (self.peer.next_avail(), self.peer.next_used()));
        assert_eq!(self.device.enable_kicks(), self.peer.enable_notification(&self.peer_memory).unwrap());
    }
}

fn peer_memory(map: &GuestMap) -> GuestMemoryMmap {
    let ranges: Vec<_> = map
        .regions()
        .iter()
        .map(|region| {
            let file = std::fs::File::from(region.file().try_clone_to_owned().unwrap());
            (GuestAddress(region.gpa()), region.size() as usize, Some(FileOffset::new(file, 0)))
        })
        .collect();
    GuestMemoryMmap::from_ranges_with_files(ranges).unwrap()
}

fn chain() -> impl Strategy<Value = ChainSpec> {
    let lens = || proptest::collection::vec(1u32..200, 0..4);
    (lens(), lens(), 0usize..6).prop_map(|(readable, writable, direct)| {
        let buffers = readable.into_iter().map(|len| (len, false));
        let mut buffers: Vec<_> = buffers.chain(writable.into_iter().map(|len| (len, true))).collect();
        if buffers.is_empty() {
            buffers.push((60, false));
        }
        ChainSpec { buffers, direct }
    })
}

fn turn() -> impl Strategy<Value = Turn> {
    let chains = proptest::collection::vec(chain(), 0..9);
    let bursts = proptest::collection::vec(0usize..9, 1..6);
    (chains, 0u16..14, bursts).prop_map(|(chains, event, bursts)| Turn { chains, event, bursts })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn split_device_does_as_virtio_queue_does(
        start in prop_oneof![Just(0u16), 65500u16..=65535],
        turns in proptest::collection::vec(turn(), 1..20),
    ) {
        let mut both = Lockstep::new(start);
        for turn in &turns {
            both.offer(turn);
            for most in &turn.bursts {
                both.take(*most);
            }
            both.take(64);
        }
    }
}
