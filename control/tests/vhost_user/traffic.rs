//! Traffic from the built-in guest through a session and `sim/net` and back.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use ringway_control::frontends::session::{Command, Report};
use ringway_engine::IdlePolicy;
use ringway_guest::{Guest, GuestOptions};
use ringway_pmd::notify::EventFd;
use ringway_ring::chain::Burst;
use ringway_ring::position::Position;
use ringway_ring::queue::Format;
use ringway_vhost_user::frontend::{Frontend, FrontendListener};

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
    running.wait_for_rings(|rings| rings.len() == 8 && rings.iter().all(|ring| ring.core().is_some()));
    for pair in guest.lanes() {
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
    let stream = UnixStream::connect(&path).unwrap();
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
    let pace = pace_of_revoking();
    let (running, frontend) = sim_with_frontend("removed", 1);
    let mut guest = Guest::start(frontend, options(Format::Split)).unwrap();
    exchange(&mut guest, 1000);
    let began = Instant::now();
    assert!(running.handle.send(Command::Revoke));
    let (device, reason) = running.wait_for_end();
    assert!(device.is_none());
    assert_eq!(reason, "the device was removed");
    pace.allows_since(REVOKED_WITHIN, began);
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
fn call_that_a_predecessor_died_before_is_made_up_whatever_the_workers_do_when_idle() {
    for idle in [IdlePolicy::Poll, IdlePolicy::Adaptive] {
        let engine = engine_with(1, idle);
        for format in [Format::Split, Format::Packed] {
            let device = sim_net("owed", 1);
            let kept = shared("owed", &*device);
            let rig = Rig::new(format, 2);
            let mut pair = HandPair::new(&rig, 0, Position::START);
            // It publishes what was sent, and dies before it calls.
            pair.send(2);
            let mut predecessor = rig.predecessor(1, kept.positions.slot(1).unwrap());
            let mut burst = Burst::new(Arc::clone(&rig.map));
            assert_eq!(predecessor.peek(&mut burst, 32).unwrap(), 2);
            predecessor.consume(burst.chains());
            burst.chains().iter().for_each(|chain| predecessor.complete(chain, 0));
            assert!(predecessor.publish(), "the driver waits for a call");
            drop(predecessor);

            let (ours, theirs) = UnixStream::pair().unwrap();
            let running = start_with(device, Arc::clone(&kept), ours, engine.clone());
            let mut frontend = Frontend::from_stream(theirs);
            rig.introduce(&mut frontend);
            let calls = [EventFd::new().unwrap(), EventFd::new().unwrap()];
            for (index, call) in (0..).zip(&calls) {
                let base = if format == Format::Split && index == 1 { 2 } else { rig.fresh() };
                let call = Some(call.as_fd());
                frontend.start_ring(index, Rig::SIZE.into(), base, rig.addr(index), None, call).unwrap();
                frontend.enable_ring(index, true).unwrap();
            }
            // The driver makes nothing available that would bring a call by itself.
            calls.iter().for_each(|call| eventually(|| call.clear()));
            pair.settle(2, false);
            // Each was called once, and it was counted, a moment later.
            eventually(|| [0, 1].map(|queue| kept.counters[queue].snapshot().calls) == [1, 1]);
            // A descriptor that is replaced is called too: whoever waits at it heard nothing of the old one.
            let anew = EventFd::new().unwrap();
            frontend.set_vring_call(0, Some(anew.as_fd())).unwrap();
            eventually(|| anew.clear());
            drop(running.close());
        }
    }
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
