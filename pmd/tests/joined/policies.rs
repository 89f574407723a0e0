//! What a port may send changes under traffic: in force once the change returns, and nothing of what goes on is lost or overtaken.

use std::collections::VecDeque;

use super::*;

const EVERYBODY: Mac = Mac([0xff; 6]);
/// An address that is nobody's device's.
const FORGED: Mac = Mac([2, 9, 9, 9, 9, 9]);

fn set(nic: &mut Nic, name: &str, value: &str) {
    try_set(nic, name, value, WITHIN).unwrap();
    assert_eq!(nic.device.attributes().get(name).map(String::as_str), Some(value));
}

fn try_set(nic: &mut Nic, name: &str, value: &str, within: Duration) -> Result<(), ringway_pmd::vdpa::Stuck> {
    nic.device.set(&BTreeMap::from([(name.to_owned(), value.to_owned())]), within)
}

/// Waits until all that was sent is done with, and its receivers have it.
fn settled(nic: &mut Nic) {
    let deadline = Instant::now() + SOON;
    while nic.rings[1].free_slots() < usize::from(RING) {
        assert!(Instant::now() < deadline, "{:?}", nic.stats(1));
        nic.rings[1].collect(&mut [Completion::default(); 64]).unwrap();
    }
}

/// Ends of a link or ports of a bridge, started, with buffers.
fn pair(mgmtdev: &mut dyn ManagementDevice, formats: (Format, Format), engine: &Engine) -> (Nic, Nic) {
    let mut port = |name: &str, format| {
        let mut nic = Nic::new(mgmtdev, name, Setup { format, ..Setup::default() }, engine);
        nic.start(1);
        nic.post(0, 200);
        nic
    };
    (port("a", formats.0), port("b", formats.1))
}

#[test]
fn spoofchk_is_in_force_once_it_is_set_and_while_it_changes_a_flow_loses_nothing() {
    let engine = engine(1);
    for is_bridge in [false, true] {
        for formats in all_formats() {
            let mut mgmtdev = if is_bridge { bridge(&engine) } else { link() };
            let (mut a, mut b) = pair(&mut *mgmtdev, formats, &engine);
            // Both have been heard of, so that no bound on floods is met.
            b.send_plain(0, &frame(EVERYBODY, b.mac, 64, 0));
            a.expect(0, 1);
            let (to, from) = (b.mac, a.mac);
            let numbered = |number: u32, from: Mac| {
                let mut bytes = frame(to, from, 80, 0);
                bytes[20..24].copy_from_slice(&number.to_le_bytes());
                bytes
            };
            let (mut left, mut sent, mut forged, mut changes) = (VecDeque::new(), 0u32, 0u64, 0u32);
            let deadline = Instant::now() + SOON;
            while sent < 1_200 || !left.is_empty() {
                assert!(Instant::now() < deadline, "{sent}: {:?} {:?}", b.stats(0), a.stats(1));
                if sent < 1_200 && left.len() < 150 {
                    a.send_plain(0, &numbered(sent, from));
                    left.push_back(sent);
                    sent += 1;
                }
                let came = b.received(0);
                b.post(0, came.len());
                for (_, frame) in came {
                    let number = u32::from_le_bytes(frame[20..24].try_into().unwrap());
                    assert_eq!((Some(number), &frame[6..12]), (left.pop_front(), &from.0[..]));
                }
                if sent / 60 > changes {
                    changes += 1;
                    // What was sent while it was on may wait in the ring.
                    a.expect_drops(1, DropReason::SpoofedMac, forged);
                    set(&mut a, "spoofchk", if changes % 2 == 1 { "on" } else { "off" });
                    if changes % 2 == 1 {
                        a.send_plain(0, &numbered(u32::MAX, FORGED));
                        forged += 1;
                    }
                }
            }
            assert!(changes >= 19);
            a.expect_drops(1, DropReason::SpoofedMac, forged);
            assert_eq!(a.example(1, DropReason::SpoofedMac), Some(Example::Address(FORGED)));
            settled(&mut a);
            // That it is off, is in force as well.
            set(&mut a, "spoofchk", "off");
            a.send_plain(0, &numbered(1, FORGED));
            assert_eq!(b.expect(0, 1)[0].1, numbered(1, FORGED));
            assert_eq!(a.stats(1).packets, u64::from(sent) + 1);
            for (nic, queue) in [(&a, 0), (&b, 0), (&b, 1)] {
                assert!(nic.stats(queue).drops.iter().all(|(_, frames)| *frames == 0));
            }
            let dropped: u64 = a.stats(1).drops.iter().map(|(_, frames)| frames).sum();
            assert_eq!(dropped, forged);
        }
    }
}

#[test]
fn spoofchk_that_is_set_while_nothing_runs_holds_for_what_runs_next() {
    let engine = engine(1);
    for is_bridge in [false, true] {
        let mut mgmtdev = if is_bridge { bridge(&engine) } else { link() };
        let (mut a, mut b) = pair(&mut *mgmtdev, (Format::Split, Format::Split), &engine);
        a.stop();
        // By control, which waits for nobody.
        try_set(&mut a, "spoofchk", "on", Duration::ZERO).unwrap();
        a.start(1);
        a.send_plain(0, &frame(b.mac, FORGED, 64, 1));
        a.expect_drops(1, DropReason::SpoofedMac, 1);
        passes(&mut a, &mut b, 2);
    }
}

#[test]
fn spoofchk_that_a_held_worker_does_not_answer_is_in_force_once_it_turns() {
    for is_bridge in [false, true] {
        let engine = engine(1);
        let mut mgmtdev = if is_bridge { bridge(&engine) } else { link() };
        let (mut a, mut b) = pair(&mut *mgmtdev, (Format::Split, Format::Split), &engine);
        passes(&mut a, &mut b, 1);
        let (holds, _holder) = hold(&engine);
        if try_set(&mut a, "spoofchk", "on", Duration::from_millis(20)).is_ok() {
            // All of it is on another worker.
            assert!(engine.cores().len() > 1);
        }
        holds.store(false, std::sync::atomic::Ordering::SeqCst);
        assert!(ringway_pmd::later::settle(SOON));
        a.send_plain(0, &frame(b.mac, FORGED, 64, 1));
        a.expect_drops(1, DropReason::SpoofedMac, 1);
        b.received(0);
        passes(&mut a, &mut b, 2);
        passes(&mut b, &mut a, 3);
    }
}

#[test]
fn address_that_was_stolen_is_given_back_once_spoofchk_is_on() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let mut nics: Vec<Nic> = ["a", "b", "c"]
        .map(|name| {
            let mut nic = Nic::new(&mut *bridge, name, Setup::default(), &engine);
            nic.start(1);
            nic.post(0, 64);
            nic
        })
        .into();
    let [thief, victim, other] = [0, 1, 2].map(|at: usize| nics[at].mac);
    let say = |nics: &mut [Nic], at: usize, from: Mac, to: Mac| {
        nics[at].send_plain(0, &frame(to, from, 64, 1));
        settled(&mut nics[at]);
    };
    let hear = |nics: &mut [Nic]| -> Vec<usize> {
        let heard: Vec<usize> = nics.iter_mut().map(|nic| nic.received(0).len()).collect();
        nics.iter_mut().zip(&heard).for_each(|(nic, heard)| nic.post(0, *heard));
        heard
    };
    // Where ports are on several cores, the others hear of it a moment later.
    let once_known = |nics: &mut [Nic], heard: [usize; 3]| {
        let deadline = Instant::now() + SOON;
        loop {
            say(nics, 2, other, victim);
            let by = hear(nics);
            if by == heard {
                break;
            }
            assert!(Instant::now() < deadline, "{by:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    for (at, from) in [(1, victim), (2, other), (0, thief)] {
        say(&mut nics, at, from, EVERYBODY);
    }
    hear(&mut nics);
    once_known(&mut nics, [0, 1, 0]);
    // It is stolen.
    say(&mut nics, 0, victim, EVERYBODY);
    hear(&mut nics);
    once_known(&mut nics, [1, 0, 0]);
    set(&mut nics[0], "spoofchk", "on");
    // Nobody knows where it is, until it says so; its own address is known still, and so is the other's.
    say(&mut nics, 2, other, victim);
    assert_eq!(hear(&mut nics), [1, 1, 0]);
    say(&mut nics, 2, other, thief);
    assert_eq!(hear(&mut nics), [1, 0, 0]);
    say(&mut nics, 1, victim, other);
    assert_eq!(hear(&mut nics), [0, 0, 1]);
    once_known(&mut nics, [0, 1, 0]);
    say(&mut nics, 0, victim, EVERYBODY);
    nics[0].expect_drops(1, DropReason::SpoofedMac, 1);
    say(&mut nics, 2, other, victim);
    assert_eq!(hear(&mut nics), [0, 1, 0]);
}

#[test]
fn announcement_of_another_address_that_waits_is_not_made_once_spoofchk_is_on() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let (mut a, mut b) = pair(&mut *bridge, (Format::Split, Format::Split), &engine);
    let own = a.mac;
    for (announced, is_heard) in [(FORGED, false), (own, true)] {
        set(&mut a, "spoofchk", "off");
        a.stop();
        a.device.class().net().unwrap().announce(Some(announced)).unwrap();
        set(&mut a, "spoofchk", "on");
        a.start(1);
        // The announcement comes before what the queues send.
        a.send_plain(0, &frame(b.mac, a.mac, 64, 1));
        let heard = b.expect(0, 1 + usize::from(is_heard));
        assert!(heard.iter().all(|(_, frame)| frame[6..12] == own.0));
        b.post(0, 2);
    }
}

#[test]
fn bound_on_floods_changes_under_traffic_either_way() {
    // Its clock is so slow that no further token comes while this runs.
    let engine = patient_engine();
    let mut bridge = bridge(&engine);
    let (mut a, mut b) = pair(&mut *bridge, (Format::Split, Format::Packed), &engine);
    b.send_plain(0, &frame(EVERYBODY, b.mac, 64, 0));
    a.expect(0, 1);
    let (everybody, to_one) = (frame(EVERYBODY, a.mac, 64, 1), frame(b.mac, a.mac, 64, 2));
    let mut dropped = 0;
    for _ in 0..3 {
        // As many as may come at once, and not one more; what is for one station is no flood.
        set(&mut a, "flood_pps", "1");
        (0..40).for_each(|_| a.send_plain(0, &everybody));
        a.send_plain(0, &to_one);
        dropped += 8;
        a.expect_drops(1, DropReason::FloodLimit, dropped);
        assert_eq!(b.expect(0, 33).last().unwrap().1, to_one);
        b.post(0, 33);
        settled(&mut a);
        set(&mut a, "flood_pps", "off");
        (0..150).for_each(|_| a.send_plain(0, &everybody));
        b.expect(0, 150);
        b.post(0, 150);
        settled(&mut a);
        set(&mut a, "flood_pps", "20000");
        (0..150).for_each(|_| a.send_plain(0, &everybody));
        b.expect(0, 150);
        b.post(0, 150);
        settled(&mut a);
    }
    assert_eq!(a.drops(1, DropReason::FloodLimit), dropped);
    assert!(b.stats(0).drops.iter().all(|(_, frames)| *frames == 0));
}

#[test]
fn policies_that_are_as_good_as_not_asked_for_are_what_a_new_device_has() {
    let engine = engine(1);
    for mut mgmtdev in [link(), bridge(&engine)] {
        let attributes = mgmtdev.info().attributes;
        let net = NetSpec { mac: Some(FORGED), ..NetSpec::default() };
        let made = mgmtdev.create(&DeviceSpec::net("p", net), DeviceHost::unheard()).unwrap().attributes();
        let policies = attributes.iter().filter(|one| ["spoofchk", "flood_pps"].contains(&one.name));
        let unset = policies.map(|one| (one.name.to_owned(), one.live.unwrap().unset.unwrap().to_owned()));
        assert_eq!(made, unset.collect());
    }
}
