//! Traffic from the built-in guest through a session and `sim/net` and back.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_control::guest::{Guest, GuestOptions};
use ringway_control::session::{Command, Report};
use ringway_control::vhost_user::frontend::{Frontend, FrontendListener};
use ringway_pmd::notify::EventFd;
use ringway_ring::position::Position;
use ringway_ring::queue::Format;

use crate::support::*;

/// Sends until `frames` came back; nothing may be lost or damaged.
fn exchange(guest: &mut Guest, frames: u64) {
    let deadline = Instant::now() + SOON;
    let before = guest.stats().received;
    while guest.stats().received - before < frames {
        assert!(Instant::now() < deadline, "{:?}", guest.stats());
        guest.turn(16).unwrap();
    }
    let stats = guest.stats();
    assert_eq!((stats.skipped, stats.stale, stats.corrupt), (0, 0, 0), "{stats:?}");
}

fn options(format: Format) -> GuestOptions {
    GuestOptions { format, ..GuestOptions::default() }
}

#[test]
fn frames_sent_by_a_guest_come_back_in_both_formats() {
    for format in [Format::Split, Format::Packed] {
        for in_order in [false, true] {
            let (running, frontend) = sim_with_frontend("traffic", 1);
            let mut guest = Guest::start(frontend, GuestOptions { in_order, ..options(format) }).unwrap();
            exchange(&mut guest, 20_000);
            let stats = guest.stop().unwrap();
            assert!(stats.received >= 20_000);
            let counters = &running.shared.counters;
            assert!(counters[1].snapshot().packets >= 20_000);
            let (device, reason) = running.wait_for_end();
            assert!(device.is_some(), "{reason}");
        }
    }
}

#[test]
fn four_pairs_all_carry_traffic() {
    let (mut running, frontend) = sim_with_frontend("pairs", 4);
    let mut guest = Guest::start(frontend, GuestOptions { pairs: 4, ..options(Format::Packed) }).unwrap();
    exchange(&mut guest, 20_000);
    running.wait_for_rings(|rings| rings.len() == 8 && rings.iter().all(|ring| ring.core.is_some()));
    for pair in guest.pairs_mut() {
        assert!(pair.stats().received > 0);
    }
}

#[test]
fn both_socket_modes_carry_traffic() {
    let (_folder, path) = folder();
    // Server mode: the device's side owns the socket.
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let frontend = Frontend::connect(&path, SOON).unwrap();
    let device = sim_net("server", 1);
    let shared_server = shared("server", &*device);
    let _running = start_on(device, shared_server, listener.accept().unwrap().0);
    exchange(&mut Guest::start(frontend, options(Format::Split)).unwrap(), 1000);
    drop(listener);
    std::fs::remove_file(&path).unwrap();
    // Client mode: the front-end does.
    let listener = FrontendListener::bind(&path).unwrap();
    let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let device = sim_net("client", 1);
    let shared_client = shared("client", &*device);
    let _running = start_on(device, shared_client, stream);
    let frontend = listener.accept(SOON).unwrap();
    exchange(&mut Guest::start(frontend, options(Format::Split)).unwrap(), 1000);
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn device_removed_under_traffic_is_gone_at_once() {
    let (running, frontend) = sim_with_frontend("removed", 1);
    let mut guest = Guest::start(frontend, options(Format::Split)).unwrap();
    exchange(&mut guest, 1000);
    let began = Instant::now();
    assert!(running.handle.send(Command::Revoke));
    let (device, reason) = running.wait_for_end();
    assert!(device.is_none());
    assert_eq!(reason, "the device was removed");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // The guest's rings are left alone from then on: what it sends stays where it is.
    for _ in 0..10 {
        guest.turn(16).unwrap();
    }
}

#[test]
fn driver_that_may_have_missed_a_call_gets_one_when_it_is_connected_again() {
    let device = sim_net("calls", 1);
    let kept = shared("calls", &*device);
    let rig = Rig::new(Format::Split, 2);
    let call = EventFd::new().unwrap();
    let mut pair = HandPair::new(&rig, 0, Position::START);
    let (running, stream) = start(device, Arc::clone(&kept));
    let mut frontend = Frontend::from_stream(stream);
    rig.introduce(&mut frontend);
    pair.start(&mut frontend, 0);
    frontend.set_vring_call(1, Some(call.as_fd())).unwrap();
    // Also where it began: that it stands there does not tell that it never ran.
    eventually(|| call.clear());
    pair.tx.disable_calls();
    pair.exchange(3);
    let device = running.close();
    call.clear();

    let (_running, stream) = start(device, kept);
    let mut frontend = Frontend::from_stream(stream);
    rig.introduce(&mut frontend);
    pair.start(&mut frontend, 3);
    frontend.set_vring_call(1, Some(call.as_fd())).unwrap();
    // Nothing is available that would bring one.
    eventually(|| call.clear());
}

#[test]
fn features_repeated_after_a_reset_are_told_again() {
    let (mut running, mut frontend) = sim_with_frontend("again", 1);
    let rig = Rig::new(Format::Split, 2);
    rig.introduce(&mut frontend);
    let told = |report: &Report| matches!(report, Report::Negotiated { .. }).then_some(());
    running.wait_for(told);
    frontend.set_status(15).unwrap();
    frontend.set_status(0).unwrap();
    running.wait_for(|report| matches!(report, Report::Status(0)).then_some(()));
    frontend.set_features(rig.features).unwrap();
    running.wait_for(told);
}
