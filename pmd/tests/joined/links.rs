//! A link: each end is the other's wire, whatever format and however many pairs it has, and a receiver without buffers holds
//! its sender back for a while.

use super::*;

#[test]
fn link_carries_frames_both_ways_between_any_formats() {
    let engine = engine(1);
    for (one, other) in all_formats() {
        let mut link = link();
        let mut a = Nic::new(&mut *link, "a", Setup { format: one, ..Setup::default() }, &engine);
        let mut b =
            Nic::new(&mut *link, "b", Setup { format: other, buffer: 300, ..Setup::default() }, &engine);
        a.start(1);
        b.start(1);
        for round in 0..40usize {
            a.post(0, 4);
            b.post(0, 24);
            let there = frame(b.mac, a.mac, 60 + round * 36, round as u8);
            let back = frame(a.mac, b.mac, 1514 - round * 36, round as u8);
            a.send_plain(0, &there);
            b.send_plain(0, &back);
            assert_eq!(b.expect(0, 1)[0], (NetHeader::default(), there));
            assert_eq!(a.expect(0, 1)[0], (NetHeader::default(), back));
            // What is not needed of the buffers stays posted; enough room for all rounds.
            let used = b.posted[0].len();
            if used > 200 {
                b.stop();
                b.posted[0].clear();
                b.start(1);
            }
            if a.posted[0].len() > 100 {
                a.stop();
                a.posted[0].clear();
                a.start(1);
            }
        }
        a.stop();
        b.stop();
        assert_eq!((a.stats(1).packets, b.stats(0).packets), (40, 40));
        assert_eq!((b.stats(1).packets, a.stats(0).packets), (40, 40));
    }
}

#[test]
fn link_maps_pairs_onto_those_that_the_receiver_has_enabled() {
    let engine = engine(2);
    let mut link = link();
    let mut a = Nic::new(&mut *link, "a", Setup { pairs: 4, ..Setup::default() }, &engine);
    let mut b =
        Nic::new(&mut *link, "b", Setup { pairs: 4, format: Format::Packed, ..Setup::default() }, &engine);
    a.start(4);
    b.start(2);
    for pair in 0..4 {
        b.post(pair, 8);
    }
    for pair in 0..4u16 {
        let sent = frame(b.mac, a.mac, 100, pair as u8);
        a.send_plain(pair, &sent);
        assert_eq!(b.expect(pair % 2, 1)[0].1, sent, "pair {pair}");
    }
    // Disabled pairs of the sender are drained and dropped.
    b.send_plain(3, &frame(a.mac, b.mac, 100, 9));
    b.expect_drops(7, DropReason::TxDisabled, 1);
}

#[test]
fn frames_to_nobody_are_dropped_by_name_until_somebody_comes() {
    let engine = engine(1);
    let mut link = link();
    let mut a = Nic::new(&mut *link, "a", Setup::default(), &engine);
    a.start(1);
    let mut b = Nic::new(&mut *link, "b", Setup::default(), &engine);
    let sent = frame(b.mac, a.mac, 64, 1);
    a.send_plain(0, &sent);
    a.expect_drops(1, DropReason::PeerDown, 1);
    b.start(1);
    b.post(0, 8);
    a.send_plain(0, &sent);
    assert_eq!(b.expect(0, 1)[0].1, sent);
    // The device is removed with its session still there, and another one takes its place.
    link.removed("b");
    let mut c = Nic::new(&mut *link, "c", Setup::default(), &engine);
    c.start(1);
    c.post(0, 8);
    a.send_plain(0, &sent);
    assert_eq!(c.expect(0, 1)[0].1, sent);
    drop(b);
    a.send_plain(0, &sent);
    assert_eq!(c.expect(0, 1)[0].1, sent);
    drop(c);
    assert!(ringway_pmd::later::settle(SOON));
    a.send_plain(0, &sent);
    a.expect_drops(1, DropReason::PeerDown, 2);
}

#[test]
fn receiver_without_buffers_holds_its_sender_back_and_then_loses_frames_that_are_counted() {
    let engine = engine(1);
    let mut link = link();
    let mut a = Nic::new(&mut *link, "a", Setup::default(), &engine);
    let mut b = Nic::new(&mut *link, "b", Setup::default(), &engine);
    a.start(1);
    b.start(1);
    b.post(0, 2);
    for seed in 0..5 {
        a.send_plain(0, &frame(b.mac, a.mac, 64, seed));
    }
    assert_eq!(b.expect(0, 2).len(), 2);
    b.expect_drops(0, DropReason::NoRxBuffer, 3);
    a.stop();
    assert_eq!(a.stats(1).packets, b.stats(0).packets + 3);
    a.start(1);
    // Buffers come in time.
    a.send_plain(0, &frame(b.mac, a.mac, 64, 9));
    b.post(0, 1);
    b.expect(0, 1);
}

#[test]
fn mtu_of_sender_and_receiver_is_enforced_apart() {
    let engine = engine(1);
    let mut link = link();
    let jumbo = Setup { mtu: 9000, buffer: 9100, ..Setup::default() };
    let mut a = Nic::new(&mut *link, "a", jumbo, &engine);
    let mut b = Nic::new(&mut *link, "b", Setup { buffer: 4000, ..Setup::default() }, &engine);
    a.start(1);
    b.start(1);
    b.post(0, 4);
    a.post(0, 4);
    a.send_plain(0, &frame(b.mac, a.mac, 9018, 1));
    b.expect_drops(0, DropReason::RxOversize, 1);
    assert_eq!(b.example(0, DropReason::RxOversize), Some(Example::Bytes(9018)));
    a.send_plain(0, &frame(b.mac, a.mac, 9019, 1));
    a.expect_drops(1, DropReason::Oversize, 1);
    assert_eq!(a.example(1, DropReason::Oversize), Some(Example::Bytes(9019)));
    b.send_plain(0, &frame(a.mac, b.mac, 1519, 1));
    b.expect_drops(1, DropReason::Oversize, 1);
    a.send_plain(0, &frame(b.mac, a.mac, 1518, 1));
    assert_eq!(b.expect(0, 1)[0].1.len(), 1518);
}

#[test]
fn frames_that_are_wrong_are_not_counted_as_the_receivers_want_of_buffers() {
    let engine = engine(1);
    let mut link = link();
    let mut a = Nic::new(&mut *link, "a", Setup { spoofchk: true, ..Setup::default() }, &engine);
    let mut b = Nic::new(&mut *link, "b", Setup::default(), &engine);
    a.start(1);
    b.start(1);
    let (to, from) = (b.mac, a.mac);
    // Behind a frame that waits for a buffer in vain.
    let good = frame(to, from, 100, 1);
    let forged = frame(to, Mac([2; 6]), 100, 2);
    for bytes in [&good[..], &good[..10], &forged[..], &good[..]] {
        a.send_plain(0, bytes);
    }
    b.expect_drops(0, DropReason::NoRxBuffer, 2);
    a.expect_drops(1, DropReason::Runt, 1);
    a.expect_drops(1, DropReason::SpoofedMac, 1);
    let begun = Instant::now();
    while (a.stats(1).packets, a.stats(1).bytes) != (2, 200) {
        assert!(begun.elapsed() < SOON, "{:?}", a.stats(1));
    }
    assert_eq!(b.drops(0, DropReason::NoRxBuffer), 2);
}

#[test]
fn joined_devices_have_as_many_pairs_as_simulated_ones() {
    for (pairs, is_good) in [(0, false), (1, true), (15, true), (16, true), (17, false)] {
        let spec = DeviceSpec::net("p", NetSpec { max_vqp: Some(pairs), ..NetSpec::default() });
        assert_eq!(link().create(&spec, DeviceHost::unheard()).is_ok(), is_good, "{pairs}");
    }
}
