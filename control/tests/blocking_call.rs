//! A front-end that makes its call descriptor block the worker is faulted by name, and the other guests of that core go
//! on.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_control::api::{DeviceEntry, Queue, VstatsShow};
use ringway_control::guest::{Guest, GuestOptions};
use ringway_control::subsystem::{Options, Subsystem};
use ringway_control::vhost_user::frontend::{Frontend, MemoryRegion, VringAddr};
use ringway_ring::features::Features;
use ringway_ring::layout::{DriverConfig, Layout};
use ringway_ring::memory::HostMemory;
use ringway_ring::position::Position;
use ringway_ring::queue::{DriverBuffer, DriverRing, Format, RingSize};
use rustix::event::{EventfdFlags, eventfd};

const SOON: Duration = Duration::from_secs(20);
const GPA: u64 = 0x1000_0000;

#[test]
fn front_end_whose_call_descriptor_blocks_is_faulted_and_its_neighbour_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Subsystem::start(Options::embedded(folder.path())).unwrap();
    let add = |name: &str| {
        let entry = DeviceEntry { name: name.into(), mgmtdev: "sim/net".into(), ..DeviceEntry::default() };
        plane.add(&entry).unwrap().socket
    };
    let (good, bad) = (add("good"), add("bad"));
    let mut neighbour = Guest::connect(&good, GuestOptions::default()).unwrap();
    receive(&mut neighbour, 1000);

    // The transmit queue of the other device, with a call descriptor that is full and blocks.
    let mut frontend = Frontend::connect(&bad, SOON).unwrap();
    frontend.handshake().unwrap();
    frontend.set_features(Features::VERSION_1).unwrap();
    let memory = HostMemory::allocate("bad", 1 << 20).unwrap();
    let map = Arc::new(memory.guest_map(GPA).unwrap());
    frontend
        .set_mem_table(&[MemoryRegion {
            gpa: GPA,
            size: memory.size(),
            user_addr: memory.address(),
            file_offset: 0,
            file: memory.file(),
        }])
        .unwrap();
    let size = RingSize::new(Format::Split, 16).unwrap();
    let layout = Layout::new(Format::Split, size);
    let config = DriverConfig {
        size,
        features: Features::VERSION_1,
        map,
        areas: layout.at(GPA),
        position: Position::START,
    };
    let mut tx = config.start_split().unwrap();
    let call: OwnedFd = eventfd(0, EventfdFlags::empty()).unwrap();
    let kick: OwnedFd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let areas = layout.at(memory.address());
    let address = VringAddr { desc: areas.desc, driver: areas.driver, device: areas.device, log: None };
    frontend.start_ring(1, 16, 0, address, Some(kick.as_fd()), Some(call.as_fd())).unwrap();
    frontend.set_status(15).unwrap();
    frontend.enable_ring(1, true).unwrap();
    // So does its error descriptor, which the session writes.
    let err: OwnedFd = eventfd(0, EventfdFlags::empty()).unwrap();
    frontend.set_vring_err(1, Some(err.as_fd())).unwrap();
    frontend.queue_num().unwrap();
    for fd in [&call, &err] {
        rustix::io::write(fd, &(u64::MAX - 1).to_ne_bytes()).or_else(|_| full(fd)).unwrap();
        rustix::fs::fcntl_setfl(fd, rustix::fs::OFlags::RDWR).unwrap();
    }

    tx.add(&[DriverBuffer { gpa: GPA + 0x8000, len: 72, writable: false }], 0).unwrap();
    tx.publish();
    rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();

    let begun = Instant::now();
    while blocked_calls(&plane) == 0 {
        assert!(begun.elapsed() < SOON, "the fault was not told");
        std::thread::sleep(Duration::from_millis(5));
    }
    let faulted = Instant::now();
    receive(&mut neighbour, 1000);
    assert_eq!(neighbour.stats().corrupt, 0);
    // It cannot hold the core again at once, not even by connecting anew.
    drop(frontend);
    while !Frontend::connect(&bad, SOON).is_ok_and(|mut again| again.handshake().is_ok()) {
        assert!(begun.elapsed() < SOON, "nobody is let in any more");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(faulted.elapsed() > Duration::from_millis(1500), "{:?}", faulted.elapsed());
    plane.stop();
}

/// Fills a counter that the back-end has signalled before.
fn full(call: &OwnedFd) -> rustix::io::Result<usize> {
    let mut count = [0u8; 8];
    rustix::io::read(call, &mut count)?;
    rustix::io::write(call, &(u64::MAX - 1).to_ne_bytes())
}

fn receive(guest: &mut Guest, frames: u64) {
    let (begun, before) = (Instant::now(), guest.stats().received);
    while guest.stats().received - before < frames {
        assert!(begun.elapsed() < SOON, "no traffic: {:?}", guest.stats());
        guest.turn(16).unwrap();
    }
}

/// How often the transmit queue of the device was faulted for its call descriptor.
fn blocked_calls(plane: &Subsystem) -> u64 {
    let asked = Queue { name: "bad".into(), qidx: Some(1) };
    let shown: serde_json::Value = plane.call("dev.vstats.show", &asked).unwrap();
    let _: VstatsShow = serde_json::from_value(shown.clone()).unwrap();
    let text = shown.to_string();
    let Some((_, rest)) = text.split_once("\"call_blocked\":") else { return 0 };
    rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap_or(0)
}
