//! A bridge: it learns, floods within bounds, and a slow port costs the others nothing.

use super::*;

#[test]
fn bridge_floods_what_it_does_not_know_and_sends_the_rest_to_one_port() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let formats = [Format::Split, Format::Packed, Format::Split, Format::Packed];
    let mut nics: Vec<Nic> = formats
        .into_iter()
        .enumerate()
        .map(|(n, format)| {
            Nic::new(&mut *bridge, &format!("p{n}"), Setup { format, ..Setup::default() }, &engine)
        })
        .collect();
    for nic in &mut nics {
        nic.start(1);
        nic.post(0, 64);
    }
    let macs: Vec<Mac> = nics.iter().map(|nic| nic.mac).collect();
    // Unknown: to all others.
    let unknown = frame(macs[1], macs[0], 100, 1);
    nics[0].send_plain(0, &unknown);
    for nic in &mut nics[1..] {
        assert_eq!(nic.expect(0, 1)[0].1, unknown);
    }
    // Known by now: back to one port only.
    let answer = frame(macs[0], macs[1], 100, 2);
    nics[1].send_plain(0, &answer);
    assert_eq!(nics[0].expect(0, 1)[0].1, answer);
    nics[0].send_plain(0, &unknown);
    assert_eq!(nics[1].expect(0, 1)[0].1, unknown);
    let everybody = frame(Mac([0xff; 6]), macs[3], 300, 3);
    nics[3].send_plain(0, &everybody);
    for nic in &mut nics[..3] {
        assert_eq!(nic.expect(0, 1)[0].1, everybody);
    }
    // Between bridge and neighbours only; and to a station behind the same port.
    nics[0].send_plain(0, &frame(Mac([1, 0x80, 0xc2, 0, 0, 0]), macs[0], 64, 1));
    nics[0].expect_drops(1, DropReason::ReservedAddress, 1);
    let reserved = Some(Example::Address(Mac([1, 0x80, 0xc2, 0, 0, 0])));
    assert_eq!(nics[0].example(1, DropReason::ReservedAddress), reserved);
    nics[0].send_plain(0, &frame(macs[0], Mac([2, 0, 0, 0, 0, 9]), 64, 1));
    nics[0].expect_drops(1, DropReason::SamePort, 1);
    assert_eq!(nics[0].example(1, DropReason::SamePort), Some(Example::Address(macs[0])));
    // The table, as operators see it.
    let deadline = Instant::now() + SOON;
    loop {
        let learned = bridge.net().unwrap().stations();
        let mut devices: Vec<String> =
            learned.stations.iter().map(|station| station.device.clone()).collect();
        devices.sort();
        if devices == ["p0", "p0", "p1", "p3"] {
            break;
        }
        assert!(Instant::now() < deadline, "{learned:?}");
    }
    // Moved to another port; its station is there from then on.
    nics[2].send_plain(0, &frame(macs[0], macs[1], 64, 7));
    assert_eq!(nics[0].expect(0, 1).len(), 1);
    nics[0].send_plain(0, &frame(macs[1], macs[0], 64, 8));
    assert_eq!(nics[2].expect(0, 1).len(), 1);
    assert!(nics[1].received(0).is_empty());
    // A port that stops is forgotten: what is for it is flooded again, then dropped where nobody else is.
    nics[2].stop();
    let lost = frame(macs[1], macs[0], 64, 9);
    nics[0].send_plain(0, &lost);
    for nic in [1, 3] {
        assert_eq!(nics[nic].expect(0, 1)[0].1, lost);
    }
}

#[test]
fn sixty_four_ports_hear_everybody_and_each_other() {
    // Four thousand frames one by one: on a busy machine some worker has no core for long in one of them.
    let engine = patient_sleeping_engine();
    let mut bridge = bridge(&engine);
    let mut nics: Vec<Nic> = (0..64)
        .map(|n| {
            let format = if n % 2 == 0 { Format::Split } else { Format::Packed };
            Nic::new(&mut *bridge, &format!("p{n}"), Setup { format, ..Setup::default() }, &engine)
        })
        .collect();
    for nic in &mut nics {
        nic.start(1);
        nic.post(0, 80);
    }
    for n in 0..64 {
        let from = nics[n].mac;
        nics[n].send_plain(0, &frame(Mac([0xff; 6]), from, 64, n as u8));
        for (other, nic) in nics.iter_mut().enumerate().filter(|(other, _)| *other != n) {
            assert_eq!(nic.expect(0, 1)[0].1[6..12], from.0, "{n} to {other}");
        }
    }
    // All are known by now.
    for n in 0..64 {
        let (from, to) = (nics[n].mac, nics[(n + 1) % 64].mac);
        nics[n].send_plain(0, &frame(to, from, 64, n as u8));
        assert_eq!(nics[(n + 1) % 64].expect(0, 1)[0].1[6..12], from.0);
    }
    for nic in &mut nics {
        assert!(nic.received(0).is_empty());
        nic.expect_packets(0, 64);
        nic.expect_packets(1, 2);
    }
}

#[test]
fn slow_port_of_a_bridge_costs_the_others_nothing() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let mut nics: Vec<Nic> =
        (0..3).map(|n| Nic::new(&mut *bridge, &format!("p{n}"), Setup::default(), &engine)).collect();
    for nic in &mut nics {
        nic.start(1);
    }
    nics[0].post(0, 200);
    // Port 1 posts nothing.
    nics[2].post(0, 10);
    let everybody = frame(Mac([0xff; 6]), nics[2].mac, 64, 1);
    for _ in 0..100 {
        nics[2].send_plain(0, &everybody);
    }
    nics[0].expect(0, 100);
    nics[1].expect_drops(0, DropReason::NoRxBuffer, 100);
    nics[2].expect_packets(1, 100);
}

#[test]
fn spoofed_addresses_and_floods_are_bounded_where_the_operator_asks() {
    // Its clock is so slow that any machine sends more than the bound, however busy it is.
    let engine = patient_engine();
    let mut bridge = bridge(&engine);
    let mut a = Nic::new(&mut *bridge, "a", Setup { spoofchk: true, ..Setup::default() }, &engine);
    let mut b = Nic::new(&mut *bridge, "b", Setup::default(), &engine);
    a.start(1);
    b.start(1);
    b.post(0, 200);
    for last in [8, 9] {
        a.send_plain(0, &frame(b.mac, Mac([2, 9, 9, 9, 9, last]), 64, 1));
    }
    a.expect_drops(1, DropReason::SpoofedMac, 2);
    assert_eq!(a.example(1, DropReason::SpoofedMac), Some(Example::Address(Mac([2, 9, 9, 9, 9, 9]))));
    a.send_plain(0, &frame(b.mac, a.mac, 64, 1));
    b.expect(0, 1);
    // The default of 20,000 a second, with at most 1,024 at once.
    let everybody = frame(Mac([0xff; 6]), a.mac, 64, 1);
    let (begun, mut sent) = (Instant::now(), 0);
    while a.drops(1, DropReason::FloodLimit) == 0 {
        assert!(begun.elapsed() < SOON, "{:?}", a.stats(1));
        for _ in 0..1000 {
            a.send_plain(0, &everybody);
            if b.posted[0].len() < 100 {
                b.post(0, 100);
            }
            b.received(0);
        }
        sent += 1000;
        while a.stats(1).completed_desc < sent + 3 {
            assert!(begun.elapsed() < SOON, "{:?}", a.stats(1));
        }
    }
    assert_eq!(a.example(1, DropReason::FloodLimit), Some(Example::Address(Mac([0xff; 6]))));
    // Those that were given back are counted, each kind for itself.
    let flooded = || a.stats(1).packets - 1;
    while flooded() + a.drops(1, DropReason::FloodLimit) != sent {
        assert!(begun.elapsed() < SOON, "{sent}: {:?}", a.stats(1));
    }
    let flooded = flooded();
    assert!(
        flooded as f64 <= 1024.0 + 20_000.0 / 256.0 * begun.elapsed().as_secs_f64(),
        "{flooded} in {:?}",
        begun.elapsed()
    );
}

#[test]
fn frames_that_nobody_would_get_take_nothing_of_the_bound_on_floods() {
    // Its clock is so slow that no further token comes while this runs.
    let engine = patient_engine();
    let mut bridge = bridge(&engine);
    let sends = Setup { pairs: 2, flood_pps: Some("1"), ..Setup::default() };
    let mut a = Nic::new(&mut *bridge, "a", sends, &engine);
    let mut b = Nic::new(&mut *bridge, "b", Setup { pairs: 2, ..Setup::default() }, &engine);
    let everybody = frame(Mac([0xff; 6]), a.mac, 64, 1);
    a.start(2);
    let flood =
        |a: &mut Nic, pair: u16, frames: usize| (0..frames).for_each(|_| a.send_plain(pair, &everybody));
    // Nobody else is there; then one is, but with receiving disabled.
    flood(&mut a, 0, 100);
    a.expect_drops(1, DropReason::PeerDown, 100);
    b.try_start(0).unwrap();
    flood(&mut a, 1, 100);
    a.expect_drops(3, DropReason::PeerDown, 100);
    assert_eq!(a.drops(1, DropReason::FloodLimit) + a.drops(3, DropReason::FloodLimit), 0);
    // Once somebody would get them: as many as the least burst, and not one more.
    b.stop();
    b.try_start(1).unwrap();
    b.post(0, 100);
    flood(&mut a, 0, 31);
    b.expect(0, 31);
    flood(&mut a, 0, 1);
    b.expect(0, 1);
    assert_eq!(a.drops(1, DropReason::FloodLimit), 0);
    flood(&mut a, 0, 1);
    a.expect_drops(1, DropReason::FloodLimit, 1);
    // In one burst with what passes: addressed frames are none of these.
    b.send_plain(0, &frame(a.mac, b.mac, 64, 1));
    let deadline = Instant::now() + SOON;
    while b.stats(1).completed_desc == 0 {
        assert!(Instant::now() < deadline);
    }
    // Where the two are on different cores, the other hears of it a moment later: it is a flood until then.
    let to_b = frame(b.mac, a.mac, 64, 1);
    let mut dropped = a.drops(1, DropReason::FloodLimit);
    a.send_plain(0, &to_b);
    while b.received(0).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", a.stats(1));
        if a.drops(1, DropReason::FloodLimit) != dropped {
            dropped += 1;
            a.send_plain(0, &to_b);
        }
    }
    a.send_plain(0, &to_b);
    flood(&mut a, 0, 2);
    a.send_plain(0, &to_b);
    b.expect(0, 2);
    a.expect_drops(1, DropReason::FloodLimit, dropped + 2);
}

#[test]
fn places_of_a_bridge_are_bounded_with_those_that_wind_up_and_refused_by_name() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let mut create = |at: usize| {
        bridge
            .create(&DeviceSpec::net(format!("p{at}"), NetSpec::default()), DeviceHost::unheard())
            .map_err(|why| why.to_string())
    };
    let most = usize::from(ringway_pmd::net::fabric::MOST_PORTS);
    let mut devices: Vec<_> = (0..most).map(|at| create(at).unwrap()).collect();
    // Its session has not ended: the device is not dropped, though the registry has forgotten it.
    let refused = create(most).err().unwrap();
    assert!(refused.contains("no place on bridge/b") && refused.contains("try again"), "{refused}");
    devices.pop();
    create(most).unwrap();
}

/// Sets attributes of a device that is in service.
fn set(nic: &mut Nic, attributes: &[(&str, &str)]) {
    let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    nic.device.set(&attributes.collect(), WITHIN).unwrap();
}

#[test]
fn what_a_port_sends_beyond_its_rate_stays_in_its_ring_and_is_lost_nowhere() {
    let engine = engine(1);
    for format in [Format::Split, Format::Packed] {
        let mut bridge = bridge(&engine);
        let mut a = Nic::new(&mut *bridge, "a", Setup { format, ..Setup::default() }, &engine);
        let mut b = Nic::new(&mut *bridge, "b", Setup::default(), &engine);
        (a.kicks, b.kicks) = (true, true);
        a.start(1);
        b.start(1);
        b.post(0, 200);
        b.send_plain(0, &frame(Mac([0xff; 6]), b.mac, 64, 1));
        // A tenth of a second's at once, one that begins then, and from then on one every 2.5 ms.
        set(&mut a, &[("max_tx_pps", "400")]);
        let begun = Instant::now();
        for n in 0..100 {
            a.send_plain(0, &frame(b.mac, a.mac, 64, n));
        }
        let arrived = b.expect(0, 100);
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(135), "{took:?}");
        for (n, (_, got)) in (0..).zip(arrived) {
            assert_eq!(got, frame(b.mac, a.mac, 64, n));
        }
        a.expect_packets(1, 100);
        assert!(a.stats(1).held > 0);
        assert!(b.stats(0).drops.iter().all(|(_, frames)| *frames == 0), "{:?}", b.stats(0));
        assert_eq!(a.device.attributes()["max_tx_pps"], "400");
        // Bits as well: 80 frames of 1,000 bytes are 640,000. A worker that sleeps meanwhile looks again when it may go on.
        set(&mut a, &[("max_tx_pps", "0"), ("max_tx_rate", "3200kbit")]);
        b.post(0, 100);
        let begun = Instant::now();
        for n in 0..80 {
            a.send_plain(0, &frame(b.mac, a.mac, 1000, n));
        }
        b.expect(0, 80);
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(90), "{took:?}");
        // And none.
        set(&mut a, &[("max_tx_rate", "0")]);
        assert!(!a.device.attributes().contains_key("max_tx_rate"));
    }
}

#[test]
fn what_is_for_a_port_beyond_its_rate_is_dropped_there_and_costs_the_others_nothing() {
    // Its clock is so slow that hardly any further frame may come while this runs.
    let engine = patient_engine();
    let mut bridge = bridge(&engine);
    let mut nics: Vec<Nic> = ["a", "b", "c"]
        .map(|name| {
            Nic::new(&mut *bridge, name, Setup { flood_pps: Some("off"), ..Setup::default() }, &engine)
        })
        .into();
    for nic in &mut nics {
        nic.start(1);
        nic.post(0, 200);
    }
    set(&mut nics[1], &[("max_rx_pps", "300")]);
    let everybody = frame(Mac([0xff; 6]), nics[0].mac, 64, 1);
    (0..100).for_each(|_| nics[0].send_plain(0, &everybody));
    nics[2].expect(0, 100);
    let deadline = Instant::now() + SOON;
    while nics[1].stats(0).packets + nics[1].drops(0, DropReason::RateLimit) < 100 {
        assert!(Instant::now() < deadline, "{:?}", nics[1].stats(0));
    }
    let got = nics[1].received(0).len() as u64;
    assert!((31..=40).contains(&got), "{got}");
    assert_eq!(nics[1].drops(0, DropReason::RateLimit), 100 - got);
    // Also of what is for it alone; until that is changed.
    let (from, to) = (nics[0].mac, nics[1].mac);
    nics[1].send_plain(0, &frame(Mac([0xff; 6]), to, 64, 1));
    nics[0].expect(0, 1);
    (0..50).for_each(|_| nics[0].send_plain(0, &frame(to, from, 64, 2)));
    let deadline = Instant::now() + SOON;
    while nics[1].stats(0).packets + nics[1].drops(0, DropReason::RateLimit) < 150 {
        assert!(Instant::now() < deadline);
    }
    let more = nics[1].received(0).len() as u64;
    assert_eq!(nics[1].drops(0, DropReason::RateLimit), 150 - got - more);
    assert!(more < 10, "{more}");
    set(&mut nics[1], &[("max_rx_pps", "0")]);
    (0..50).for_each(|_| nics[0].send_plain(0, &frame(to, from, 64, 3)));
    nics[1].expect(0, 50);
}
