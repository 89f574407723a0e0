//! Disks over vhost-user: in-flight records, and what else front-ends of disks do that those of networks do not.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use ringway_guest::block::{BlockOptions, Port, Request as Ask, Status};
use ringway_pmd::notify::EventFd;
use ringway_ring::queue::Format;
use ringway_vhost_user::frontend::{Frontend, FrontendError};
use ringway_vhost_user::message::{Inflight, Request, VringState, protocol};

use crate::support::{Heard, Raw, Running, shared, sim_blk, start, start_sim};

fn disk(name: &str, queues: u16) -> (Running, Frontend) {
    let device = sim_blk(name, queues);
    let shared = shared(name, &*device);
    let (running, stream) = start(device, shared);
    (running, Frontend::from_stream(stream))
}

/// A front-end that has agreed on everything, with no features yet.
fn greeted(name: &str, queues: u16) -> (Running, Frontend) {
    let (running, mut frontend) = disk(name, queues);
    frontend.handshake().unwrap();
    assert!(frontend.protocol_features() & protocol::INFLIGHT_SHMFD != 0);
    (running, frontend)
}

/// Rows 16 and 17 of the checklist: the region is the front-end's to keep; what was in flight is done again by a back-end that
/// is given it; nothing is in flight after a stop.
pub fn records_are_the_front_ends(format: Format) {
    let device = sim_blk("records", 2);
    let of_device = shared("records", &*device);
    let (running, stream) = start(device, Arc::clone(&of_device));
    let options = BlockOptions { format, queues: 2, ..BlockOptions::default() };
    let mut port = Port::start(Frontend::from_stream(stream), options).unwrap();
    let mut written = vec![7; 4096];
    assert_eq!(port.perform(Ask::write(8, 4096), &mut written).unwrap().0, Status::Ok);
    let (region, file) = port.inflight().unwrap();
    assert_eq!((region.queues, region.entries, region.mmap_offset), (2, 128, 0));
    let file = File::from(file.try_clone().unwrap());
    let record = |at: u64| {
        let mut word = [0; 2];
        file.read_exact_at(&mut word, at).unwrap();
        u16::from_le_bytes(word)
    };
    assert_eq!((record(8), record(10)), (1, 128), "version and entries");
    port.stop().unwrap();
    drop(running.wait_for_end());
    let (used, slots, head, entry) = match format {
        Format::Split => (14, 1, 16, 16),
        Format::Packed => (16, 3, 32, 32),
    };
    assert_eq!(record(used), slots, "one request, and its descriptors in a packed ring");
    assert!((0..128).all(|nth| record(head + entry * nth) & 0xff == 0), "nothing is in flight");
}

#[test]
fn region_is_made_as_front_ends_ask_for_it() {
    let (_running, mut frontend) = greeted("made", 4);
    for (queues, entries, bytes) in [(1, 1, 64), (4, 128, 4 * 2112), (2, 1024, 2 * 16448)] {
        let (region, file) = frontend.inflight(queues, entries).unwrap().unwrap();
        assert_eq!(region, Inflight { mmap_size: bytes, mmap_offset: 0, queues, entries });
        let file = File::from(file);
        assert_eq!(file.metadata().unwrap().len(), bytes);
        assert!(file.set_len(bytes - 1).is_err() && file.set_len(bytes + 1).is_err(), "sealed");
        frontend.set_inflight(&region, file.as_fd()).unwrap();
    }
}

/// Nothing is allocated for a claim of 65535 queues of 65535 entries.
#[test]
fn region_of_more_queues_or_entries_than_there_are_is_refused() {
    for (queues, entries) in [(0, 128), (5, 128), (1, 0), (1, 1025), (u16::MAX, u16::MAX)] {
        let (running, mut frontend) = greeted("claims", 4);
        assert!(frontend.inflight(queues, entries).is_err(), "{queues} {entries}");
        let (_, reason) = running.wait_for_end();
        assert!(reason.starts_with("inflight_queues"), "{reason}");
    }
}

#[test]
fn region_that_is_none_of_the_device_is_refused() {
    let (mut running, mut frontend) = greeted("refused", 2);
    let (region, file) = frontend.inflight(2, 128).unwrap().unwrap();
    let file = File::from(file);
    let mut refused = |region: Inflight, file: &File| {
        let outcome = frontend.set_inflight(&region, file.as_fd());
        assert!(matches!(outcome, Err(FrontendError::Refused { .. })), "{region:?}: {outcome:?}");
        running.wait_for_breach()
    };
    assert_eq!(refused(Inflight { queues: 3, ..region }, &file), "inflight_queues");
    assert_eq!(refused(Inflight { entries: 1025, ..region }, &file), "inflight_queues");
    for claim in [
        Inflight { mmap_size: region.mmap_size - 1, ..region },
        Inflight { mmap_offset: 64, ..region },
        Inflight { mmap_offset: 4, mmap_size: u64::MAX, ..region },
        Inflight { mmap_offset: u64::MAX - 7, ..region },
        Inflight { entries: 256, mmap_size: 2 * 4160, ..region },
    ] {
        assert_eq!(refused(claim, &file), "inflight_region");
    }
    // Of another version, or another size, in the second queue's part.
    for bytes in [[2, 0, 128, 0], [1, 0, 64, 0]] {
        file.write_all_at(&bytes, 2112 + 8).unwrap();
        assert_eq!(refused(region, &file), "inflight_region");
    }
    file.write_all_at(&[0; 4], 2112 + 8).unwrap();
    // What its writer would wait for: a file on a disk.
    let on_disk = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    on_disk.set_len(region.mmap_size).unwrap();
    assert_eq!(refused(region, &on_disk), "inflight_region");
    frontend.set_inflight(&region, file.as_fd()).unwrap();
}

#[test]
fn region_that_its_front_end_cuts_ends_nobody() {
    let (running, mut frontend) = greeted("cut", 1);
    let file = File::from(rustix::fs::memfd_create("cut", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(4096).unwrap();
    let region = Inflight { mmap_size: 2112, mmap_offset: 0, queues: 1, entries: 128 };
    frontend.set_inflight(&region, file.as_fd()).unwrap();
    file.set_len(0).unwrap();
    assert!(frontend.set_inflight(&region, file.as_fd()).is_err());
    frontend.queue_num().unwrap();
    drop(frontend);
    drop(running.wait_for_end());
}

#[test]
fn region_is_not_replaced_under_rings_that_run() {
    let device = sim_blk("running", 1);
    let shared = shared("running", &*device);
    let (mut running, stream) = start(device, shared);
    let mut port = Port::start(Frontend::from_stream(stream), BlockOptions::default()).unwrap();
    running.wait_for_rings(|rings| rings[0].runs);
    let frontend = port.frontend();
    let (region, file) = frontend.inflight(1, 128).unwrap().unwrap();
    assert!(frontend.set_inflight(&region, file.as_fd()).is_err());
    assert_eq!(running.wait_for_breach(), "inflight_region");
    assert_eq!(port.perform(Ask::read(0, 512), &mut [0; 512]).unwrap().0, Status::Ok);
}

/// QEMU pads the messages to 24 bytes, and takes no other answer; the protocol's text has 20 bytes of fields.
#[test]
fn messages_of_24_bytes_and_of_20_are_heard_and_24_are_answered() {
    let device = sim_blk("padded", 1);
    let shared = shared("padded", &*device);
    let (_running, stream) = start(device, shared);
    let mut peer = Raw::new(stream);
    let known = protocol::KNOWN & !(protocol::RARP | protocol::MTU);
    assert_eq!(peer.ask(Request::SetProtocolFeatures, &known.to_ne_bytes(), &[]), Some(0));
    let asked = Inflight { queues: 1, entries: 128, ..Inflight::default() }.encode();
    for bytes in [24, 20] {
        assert!(peer.send(Request::GetInflightFd as u32, 0, &asked[..bytes], &[]));
        let Heard::Answer(frame) = peer.hear() else { panic!("closed") };
        assert_eq!((frame.payload().unwrap().len(), frame.fds.len()), (24, 1));
        let region = frame.payload().unwrap().to_vec();
        let file = [frame.fds[0].as_fd()];
        assert_eq!(peer.ask(Request::SetInflightFd, &region[..bytes], &file), Some(0));
    }
    assert_eq!(peer.ask(Request::SetInflightFd, &asked[..16], &[]), Some(1));
    // There is none any more.
    assert_eq!(peer.ask(Request::SetInflightFd, &[0; 24], &[]), Some(0));
}

#[test]
fn network_device_has_no_records() {
    let (_running, stream) = start_sim("net", 1);
    let mut peer = Raw::new(stream);
    assert_eq!(peer.ask(Request::SetProtocolFeatures, &protocol::KNOWN.to_ne_bytes(), &[]), Some(1));
    peer.agree();
    assert_eq!(peer.ask(Request::SetInflightFd, &[0; 24], &[]), Some(1));
    assert!(peer.send(Request::GetInflightFd as u32, 0, &[0; 24], &[]));
    assert!(matches!(peer.hear(), Heard::Closed));
}

/// QEMU asks for the end of the last field that it knows: 36, 48, 57 bytes; others for 60 or 256, or at the place where the
/// registers on memory have it.
#[test]
fn configuration_is_answered_in_the_length_that_was_asked_for() {
    let (_running, mut frontend) = greeted("config", 3);
    let all = frontend.config(0, 256).unwrap();
    assert_eq!(u64::from_le_bytes(all[..8].try_into().unwrap()), (1 << 20) / 512);
    assert_eq!(u16::from_le_bytes([all[34], all[35]]), 3, "queues");
    for size in [1, 8, 36, 48, 57, 60, 72, 96, 255, 256] {
        assert_eq!(frontend.config(0, size).unwrap(), all[..size as usize], "{size}");
    }
    assert_eq!(frontend.config(0x100, 60).unwrap(), all[..60]);
    assert_eq!(frontend.config(34, 2).unwrap(), all[34..36]);
    for (offset, size) in [(0, 257), (1, 256), (0x100, 257), (0x101, 1)] {
        assert!(frontend.config(offset, size).is_err(), "{offset} {size}");
    }
}

/// QEMU enables, and gives descriptors for, queues that it never configures.
#[test]
fn queues_that_are_never_configured_disturb_nobody() {
    let device = sim_blk("others", 4);
    let shared = shared("others", &*device);
    let (mut running, stream) = start(device, shared);
    let mut port = Port::start(Frontend::from_stream(stream), BlockOptions::default()).unwrap();
    let frontend = port.frontend();
    assert_eq!(frontend.queue_num().unwrap(), 4);
    let call = EventFd::new().unwrap();
    for index in 1..4 {
        frontend.set_vring_call(index, Some(call.as_fd())).unwrap();
        frontend.set_vring_err(index, Some(call.as_fd())).unwrap();
        frontend.send(Request::SetVringEnable, &VringState { index, num: 1 }.encode(), &[]).unwrap();
    }
    let rings = running.wait_for_rings(|rings| rings[0].runs && rings[3].enabled);
    assert!(rings.iter().all(|ring| ring.fault.is_none()));
    assert!(rings[1..].iter().all(|ring| !ring.started && !ring.runs));
    assert_eq!(port.perform(Ask::read(0, 512), &mut [0; 512]).unwrap().0, Status::Ok);
    // And all of them disabled, as before a stop.
    for index in 0..4 {
        port.frontend().enable_ring(index, false).unwrap();
    }
    port.stop().unwrap();
}
