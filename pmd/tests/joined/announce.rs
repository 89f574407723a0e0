//! A guest that has arrived is announced at its port: peers hear it, tables follow, and nobody gets by it what he may not
//! send himself.

use ringway_pmd::net::announce::frame as announcement;

use super::*;

const MOVED: Mac = Mac([0x52, 0x54, 0, 0xaa, 0xbb, 0xcc]);

/// Waits until the one pump of an engine sleeps.
fn asleep(engine: &Engine) {
    let deadline = Instant::now() + SOON;
    while !engine.workers().iter().flat_map(|worker| &worker.pumps).all(|pump| pump.asleep) {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn bridge_peers_hear_of_an_arrival_and_the_table_moves_the_station() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let formats = [Format::Split, Format::Packed, Format::Split];
    let mut nics: Vec<Nic> = (0..3)
        .zip(formats)
        .map(|(n, format)| {
            Nic::new(&mut *bridge, &format!("p{n}"), Setup { format, ..Setup::default() }, &engine)
        })
        .collect();
    for nic in &mut nics {
        nic.kicks = true;
        nic.start(1);
        nic.post(0, 64);
    }
    // It was behind port 2.
    let from_there = frame(nics[1].mac, MOVED, 64, 1);
    nics[2].send_plain(0, &from_there);
    nics[0].expect(0, 1);
    nics[1].expect(0, 1);
    let ask = frame(MOVED, nics[1].mac, 64, 2);
    nics[1].send_plain(0, &ask);
    nics[2].expect(0, 1);
    for _ in 0..3 {
        // Whoever sleeps is woken.
        asleep(&engine);
        nics[0].device.class().net().unwrap().announce(Some(MOVED)).unwrap();
        for nic in &mut nics[1..] {
            assert_eq!(nic.expect(0, 1)[0].1, announcement(MOVED));
        }
    }
    assert!(nics[0].received(0).is_empty(), "it does not come back");
    nics[1].send_plain(0, &ask);
    assert_eq!(nics[0].expect(0, 1)[0].1, ask);
    assert!(nics[2].received(0).is_empty());
    assert_eq!(nics[0].stats(1).packets, 0, "the guest sent nothing");
}

#[test]
fn link_tells_its_other_end() {
    let engine = engine(1);
    for (a, b) in all_formats() {
        let mut link = link();
        let mut a = Nic::new(&mut *link, "a", Setup { format: a, pairs: 2, ..Setup::default() }, &engine);
        let mut b = Nic::new(&mut *link, "b", Setup { format: b, pairs: 2, ..Setup::default() }, &engine);
        for nic in [&mut a, &mut b] {
            nic.kicks = true;
            nic.start(1);
            nic.post(0, 8);
        }
        asleep(&engine);
        a.device.class().net().unwrap().announce(Some(MOVED)).unwrap();
        assert_eq!(b.expect(0, 1)[0].1, announcement(MOVED));
        assert!(a.received(0).is_empty());
        a.stop();
        b.stop();
    }
}

#[test]
fn arrival_waits_until_the_port_sends_and_is_told_once() {
    let engine = engine(1);
    for is_bridge in [false, true] {
        let mut mgmtdev = if is_bridge { bridge(&engine) } else { link() };
        let mut a = Nic::new(&mut *mgmtdev, "a", Setup::default(), &engine);
        let mut b = Nic::new(&mut *mgmtdev, "b", Setup::default(), &engine);
        b.start(1);
        b.post(0, 8);
        a.device.class().net().unwrap().announce(Some(Mac([2; 6]))).unwrap();
        // Another one before it was told takes its place.
        a.device.class().net().unwrap().announce(Some(MOVED)).unwrap();
        // Started, and what it sends goes nowhere yet.
        a.start(0);
        b.send_plain(0, &frame(a.mac, b.mac, 64, 1));
        let deadline = Instant::now() + SOON;
        while b.stats(1).completed_desc == 0 {
            assert!(Instant::now() < deadline);
        }
        assert!(b.received(0).is_empty());
        a.stop();
        a.start(1);
        assert_eq!(b.expect(0, 1)[0].1, announcement(MOVED));
        a.stop();
        a.start(1);
        a.send_plain(0, &frame(b.mac, a.mac, 64, 2));
        assert_eq!(b.expect(0, 1)[0].1[6..12], a.mac.0, "not told again");
        // What was taken back is not told.
        a.stop();
        a.device.class().net().unwrap().announce(Some(MOVED)).unwrap();
        a.device.class().net().unwrap().announce(None).unwrap();
        a.start(1);
        a.send_plain(0, &frame(b.mac, a.mac, 64, 3));
        assert_eq!(b.expect(0, 1)[0].1[6..12], a.mac.0);
    }
}

#[test]
fn arrival_that_nobody_hears_is_counted_as_any_frame() {
    let engine = engine(1);
    for is_bridge in [false, true] {
        let mut mgmtdev = if is_bridge { bridge(&engine) } else { link() };
        let mut a = Nic::new(&mut *mgmtdev, "a", Setup::default(), &engine);
        let mut b = Nic::new(&mut *mgmtdev, "b", Setup::default(), &engine);
        a.start(1);
        a.device.class().net().unwrap().announce(Some(MOVED)).unwrap();
        a.expect_drops(1, DropReason::PeerDown, 1);
        // A peer without buffers.
        b.start(1);
        a.device.class().net().unwrap().announce(Some(MOVED)).unwrap();
        b.expect_drops(0, DropReason::NoRxBuffer, 1);
        assert_eq!(a.drops(1, DropReason::PeerDown), 1);
    }
}

#[test]
fn address_of_an_arrival_is_held_against_spoofchk() {
    let engine = engine(1);
    for is_bridge in [false, true] {
        let mut mgmtdev = if is_bridge { bridge(&engine) } else { link() };
        let checked = Setup { spoofchk: true, ..Setup::default() };
        let mut a = Nic::new(&mut *mgmtdev, "a", checked, &engine);
        let mut b = Nic::new(&mut *mgmtdev, "b", Setup::default(), &engine);
        for nic in [&mut a, &mut b] {
            nic.start(1);
            nic.post(0, 8);
        }
        let refused = a.device.class().net().unwrap().announce(Some(MOVED)).unwrap_err().to_string();
        assert!(refused.contains(&MOVED.to_string()) && refused.contains(&a.mac.to_string()), "{refused}");
        a.device.class().net().unwrap().announce(Some(a.mac)).unwrap();
        assert_eq!(b.expect(0, 1)[0].1, announcement(a.mac));
    }
}

#[test]
fn arrivals_are_bounded_by_the_rate_of_the_port() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let mut a = Nic::new(&mut *bridge, "a", Setup { flood_pps: Some("1"), ..Setup::default() }, &engine);
    let mut b = Nic::new(&mut *bridge, "b", Setup::default(), &engine);
    a.start(1);
    b.start(1);
    b.post(0, 200);
    let (begun, mut heard) = (Instant::now(), 0);
    for told in 1..=100 {
        a.device.class().net().unwrap().announce(Some(MOVED)).unwrap();
        while heard + a.drops(1, DropReason::FloodLimit) < told {
            heard += b.received(0).len() as u64;
            assert!(begun.elapsed() < SOON, "{told}: {heard} {:?}", a.stats(1));
        }
    }
    // As many as may be sent to everybody at once, and one a second.
    assert!(heard >= 32 && heard <= 33 + begun.elapsed().as_secs(), "{heard} in {:?}", begun.elapsed());
}
