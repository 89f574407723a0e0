//! VLANs of a bridge's ports: who is in one hears of it, with a tag or without, and of no other, whatever he sends.

use super::*;

const OFFLOADING: Features = Features(
    Features::VERSION_1.0 | F_MRG_RXBUF.0 | F_CSUM.0 | F_HOST_TSO4.0 | F_GUEST_CSUM.0 | F_GUEST_TSO4.0,
);
const EVERYBODY: Mac = Mac([0xff; 6]);

/// A port with these VLANs, started, with buffers.
fn port(
    bridge: &mut dyn ManagementDevice,
    name: &str,
    vlan: Option<&'static str>,
    setup: Setup,
    engine: &Engine,
) -> Nic {
    let mut nic = Nic::new(bridge, name, Setup { vlan, flood_pps: Some("off"), ..setup }, engine);
    nic.start(1);
    nic.post(0, 64);
    nic
}

/// A frame with these tags, each its type, its priority and its VLAN.
fn tagged(to: Mac, from: Mac, tags: &[(u16, u16)], seed: u8) -> Vec<u8> {
    let plain = frame(to, from, 100, seed);
    let tags = tags.iter().flat_map(|(kind, tci)| [kind.to_be_bytes(), tci.to_be_bytes()].concat());
    plain[..12].iter().copied().chain(tags).chain([8, 0]).chain(plain[14..].iter().copied()).collect()
}

const Q: u16 = 0x8100;
const AD: u16 = 0x88a8;

/// What each of these has received, once all that was sent is done with.
fn heard(nics: &mut [Nic], from: usize, frames: u64) -> Vec<Vec<Vec<u8>>> {
    let deadline = Instant::now() + SOON;
    while nics[from].stats(1).completed_desc < frames {
        assert!(Instant::now() < deadline, "{:?}", nics[from].stats(1));
    }
    // Its receivers are published before it has them back.
    while nics[from].rings[1].free_slots() < usize::from(RING) {
        assert!(Instant::now() < deadline, "{:?}", nics[from].stats(1));
        nics[from].rings[1].collect(&mut [Completion::default(); 64]).unwrap();
    }
    nics.iter_mut().map(|nic| nic.received(0).into_iter().map(|(_, frame)| frame).collect()).collect()
}

#[test]
fn frames_go_to_the_ports_of_their_vlan_each_with_its_tag_or_without() {
    let engine = engine(1);
    for (one, other) in all_formats() {
        let mut bridge = bridge(&engine);
        let ports = [
            Some("100 pvid untagged"),
            Some("100 pvid untagged"),
            Some("200 pvid untagged"),
            Some("100,200"),
            Some("200 pvid untagged,100"),
            None,
        ];
        let mut nics: Vec<Nic> = ports
            .into_iter()
            .enumerate()
            .map(|(n, vlan)| {
                let format = if n % 2 == 0 { one } else { other };
                port(&mut *bridge, &format!("p{n}"), vlan, Setup { format, ..Setup::default() }, &engine)
            })
            .collect();
        let from: Vec<Mac> = nics.iter().map(|nic| nic.mac).collect();
        let in_form = |n: usize, vid: u16, priority: u16| {
            move |tag: bool| match tag {
                true => tagged(EVERYBODY, from_of(n), &[(Q, priority << 13 | vid)], 7),
                false => tagged(EVERYBODY, from_of(n), &[], 7),
            }
        };
        // Who sends what, of which VLAN and priority it is then; who hears it, with a tag.
        type Case = (usize, Vec<u8>, u16, u16, &'static [(usize, bool)]);
        let cases: [Case; 8] = [
            (0, tagged(EVERYBODY, from[0], &[], 7), 100, 0, &[(1, false), (3, true), (4, true)]),
            // A tag that is a priority alone, and one of its own VLAN.
            (0, tagged(EVERYBODY, from[0], &[(Q, 5 << 13)], 7), 100, 5, &[(1, false), (3, true), (4, true)]),
            (0, tagged(EVERYBODY, from[0], &[(Q, 100)], 7), 100, 0, &[(1, false), (3, true), (4, true)]),
            (2, tagged(EVERYBODY, from[2], &[], 7), 200, 0, &[(3, true), (4, false)]),
            (3, tagged(EVERYBODY, from[3], &[(Q, 3 << 13 | 200)], 7), 200, 3, &[(2, false), (4, false)]),
            (3, tagged(EVERYBODY, from[3], &[(Q, 100)], 7), 100, 0, &[(0, false), (1, false), (4, true)]),
            (4, tagged(EVERYBODY, from[4], &[], 7), 200, 0, &[(2, false), (3, true)]),
            // Of no VLAN that others have.
            (5, tagged(EVERYBODY, from[5], &[], 7), 1, 0, &[]),
        ];
        for (sender, bytes, vid, priority, hear) in cases {
            let before = nics[sender].stats(1).completed_desc;
            nics[sender].send_plain(0, &bytes);
            let heard = heard(&mut nics, sender, before + 1);
            let form = in_form(sender, vid, priority);
            for (n, frames) in heard.into_iter().enumerate() {
                let expected: Vec<Vec<u8>> =
                    hear.iter().filter(|(to, _)| *to == n).map(|(_, tag)| form(*tag)).collect();
                assert_eq!(frames, expected, "{sender} in {vid} to {n}");
            }
        }
        nics[5].expect_drops(1, DropReason::Vlan, 1);
        // To one station, that was heard of by now: with its tag put in, and taken out.
        nics[0].send_plain(0, &tagged(from[3], from[0], &[], 9));
        assert_eq!(nics[3].expect(0, 1)[0].1, tagged(from[3], from[0], &[(Q, 100)], 9));
        nics[3].send_plain(0, &tagged(from[0], from[3], &[(Q, 100)], 9));
        assert_eq!(nics[0].expect(0, 1)[0].1, tagged(from[0], from[3], &[], 9));
        // An address is known in each VLAN by itself, and shown so.
        let deadline = Instant::now() + SOON;
        loop {
            let learned = bridge.net().unwrap().stations().stations;
            let mut of_trunk: Vec<_> =
                learned.iter().filter(|seen| seen.mac == from[3]).map(|seen| seen.vid).collect();
            of_trunk.sort_unstable();
            if of_trunk == [Some(100), Some(200)] {
                break;
            }
            assert!(Instant::now() < deadline, "{learned:?}");
            nics[0].send_plain(0, &tagged(EVERYBODY, from[0], &[], 7));
        }
    }

    fn from_of(n: usize) -> Mac {
        Mac::from_name(&format!("p{n}"))
    }
}

#[test]
fn hostile_guest_reaches_nobody_of_another_vlan_whatever_its_tags() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    // The last one is a way out whose own VLAN goes without a tag: what is beyond would read a second tag as the first.
    let ports = ["100 pvid untagged", "200 pvid untagged", "100 untagged,200"];
    let mut nics: Vec<Nic> = ports
        .into_iter()
        .enumerate()
        .map(|(n, vlan)| port(&mut *bridge, &format!("p{n}"), Some(vlan), Setup::default(), &engine))
        .collect();
    let [bad, victim, out] = [0, 1, 2].map(|n: usize| nics[n].mac);
    // The victim has been heard of.
    nics[1].send_plain(0, &tagged(EVERYBODY, victim, &[], 1));
    assert_eq!(nics[2].expect(0, 1).len(), 1);
    let attacks: [(&[(u16, u16)], DropReason); 9] = [
        (&[(Q, 200)], DropReason::Vlan),
        (&[(Q, 0xfff)], DropReason::Vlan),
        (&[(Q, 200), (Q, 100)], DropReason::Vlan),
        // Double tags: inside its own, inside a priority, inside nothing.
        (&[(Q, 100), (Q, 200)], DropReason::Vlan),
        (&[(Q, 0), (Q, 200)], DropReason::Vlan),
        (&[(Q, 100), (AD, 200)], DropReason::Vlan),
        (&[(AD, 200)], DropReason::Vlan),
        (&[(0x9100, 200)], DropReason::Vlan),
        (&[(Q, 0), (Q, 100), (Q, 200)], DropReason::Vlan),
    ];
    let mut sent = 0;
    for to in [victim, EVERYBODY] {
        for (tags, reason) in attacks {
            nics[0].send_plain(0, &tagged(to, bad, tags, 3));
            sent += 1;
            nics[0].expect_drops(1, reason, sent);
        }
    }
    // A tag and nothing behind it; and the victim's address claimed in one's own VLAN.
    nics[0].send_plain(0, &tagged(victim, bad, &[(Q, 100)], 3)[..16]);
    nics[0].expect_drops(1, DropReason::Runt, 1);
    nics[0].send_plain(0, &tagged(EVERYBODY, victim, &[], 3));
    assert_eq!(nics[2].expect(0, 1)[0].1, tagged(EVERYBODY, victim, &[], 3));
    assert!(nics.iter_mut().all(|nic| nic.received(0).is_empty()), "nobody heard anything else");
    nics[2].send_plain(0, &tagged(victim, out, &[(Q, 200)], 4));
    assert_eq!(nics[1].expect(0, 1)[0].1, tagged(victim, out, &[], 4));
}

#[test]
fn tags_are_put_in_and_taken_out_of_frames_that_are_to_be_cut_or_summed_up() {
    let engine = engine(1);
    for takes in [OFFLOADING, Features::VERSION_1 | F_MRG_RXBUF] {
        let mut bridge = bridge(&engine);
        let setup = |features| Setup { features, buffer: 2048, ..Setup::default() };
        let mut access = port(&mut *bridge, "a", Some("7 pvid untagged"), setup(OFFLOADING), &engine);
        let mut trunk = port(&mut *bridge, "t", Some("7"), setup(OFFLOADING), &engine);
        let mut to_trunk = port(&mut *bridge, "x", Some("7"), setup(takes), &engine);
        let mut to_access = port(&mut *bridge, "y", Some("7 pvid untagged"), setup(takes), &engine);
        let (plain, claim) = large(EVERYBODY, access.mac, 20_000, 1448);
        let put_in = |frame: &[u8]| [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat();
        let moved = |by: u8| NetHeader::from_bytes(&[1, 1, 54 + by, 0, 0xa8, 5, 34 + by, 0, 16, 0, 0, 0]);
        assert_eq!(claim, moved(0));
        access.send(0, claim, &plain);
        let (with_tag, from_trunk) = large(EVERYBODY, trunk.mac, 20_000, 1448);
        let from_trunk_tagged = put_in(&with_tag);
        for (to, by) in [(&mut to_trunk, 4), (&mut to_access, 0)] {
            let whole = if by > 0 { put_in(&plain) } else { plain.clone() };
            expect_large(to, takes, moved(by), &whole);
        }
        trunk.received(0);
        trunk.send(0, moved(4), &from_trunk_tagged);
        for (to, by) in [(&mut to_trunk, 4), (&mut to_access, 0)] {
            let whole = if by > 0 { from_trunk_tagged.clone() } else { with_tag.clone() };
            expect_large(to, takes, moved(by), &whole);
        }
        assert_eq!(from_trunk, moved(0));
        // What would be summed up begins in the tag itself.
        let lie = NetHeader::from_bytes(&[1, 0, 0, 0, 0, 0, 14, 0, 0, 0, 0, 0]);
        trunk.send(0, lie, &tagged(EVERYBODY, trunk.mac, &[(Q, 7)], 1));
        trunk.expect_drops(1, DropReason::BadOffload, 1);
    }
}

/// A frame arrives whole, or cut, with all that was sent in it.
fn expect_large(to: &mut Nic, takes: Features, claim: NetHeader, whole: &[u8]) {
    let headers = whole.len() - 20_000;
    if takes.contains(F_GUEST_TSO4) {
        assert_eq!(to.expect(0, 1)[0], (claim, whole.to_vec()));
        to.post(0, 16);
        return;
    }
    let (mut got, deadline) = (Vec::new(), Instant::now() + SOON);
    while got.len() < 20_000 {
        assert!(Instant::now() < deadline, "{} bytes", got.len());
        for (_, frame) in to.received(0) {
            assert!(frame.len() <= headers + 1448);
            assert_eq!(frame[..12], whole[..12]);
            got.extend(payload(&frame));
        }
    }
    assert_eq!(got, whole[headers..]);
    to.post(0, 16);
}

#[test]
fn vlans_of_a_port_change_under_traffic_and_what_is_in_force_holds_at_once() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let mut a = port(&mut *bridge, "a", None, Setup::default(), &engine);
    let mut b = port(&mut *bridge, "b", None, Setup::default(), &engine);
    let set = |nic: &mut Nic, vlan: &str| {
        let attributes = BTreeMap::from([("vlan".to_owned(), vlan.to_owned())]);
        nic.device.set(&attributes, WITHIN).unwrap();
    };
    let sees = |a: &mut Nic, b: &mut Nic, tags: &[(u16, u16)], expected: Option<&[(u16, u16)]>, seed: u8| {
        let (before, lost) = (a.stats(1).packets, a.drops(1, DropReason::Vlan));
        a.send_plain(0, &tagged(b.mac, a.mac, tags, seed));
        match expected {
            Some(tags) => {
                assert_eq!(b.expect(0, 1)[0].1, tagged(b.mac, a.mac, tags, seed));
                a.expect_packets(1, before + 1);
            }
            None => {
                a.expect_drops(1, DropReason::Vlan, lost + 1);
                assert_eq!((b.received(0).len(), a.stats(1).packets), (0, before));
            }
        }
        b.post(0, 1);
    };
    // Nobody looks at tags.
    sees(&mut a, &mut b, &[(Q, 9)], Some(&[(Q, 9)]), 1);
    sees(&mut a, &mut b, &[], Some(&[]), 2);
    // One has VLANs: the other is in VLAN 1.
    set(&mut b, "9");
    sees(&mut a, &mut b, &[(Q, 9)], None, 3);
    sees(&mut a, &mut b, &[], None, 4);
    set(&mut b, "1,9");
    sees(&mut a, &mut b, &[], Some(&[(Q, 1)]), 5);
    set(&mut a, "9 pvid untagged");
    sees(&mut a, &mut b, &[], Some(&[(Q, 9)]), 6);
    assert_eq!(a.device.attributes().get("vlan").unwrap(), "9 pvid untagged");
    // Its queues go on where they were, each time.
    for round in 0..50 {
        set(&mut b, if round % 2 == 0 { "9 untagged pvid" } else { "9" });
        let tag = [(Q, 9)];
        sees(&mut a, &mut b, &[], Some(if round % 2 == 0 { &[] } else { &tag }), round);
    }
    set(&mut b, "none");
    sees(&mut a, &mut b, &[], None, 7);
    // Nobody has any: tags are not looked at.
    set(&mut a, "off");
    set(&mut b, "off");
    sees(&mut a, &mut b, &[(Q, 5), (Q, 6)], Some(&[(Q, 5), (Q, 6)]), 8);
    assert!(!a.device.attributes().contains_key("vlan"));
    // The last device with VLANs goes: the same, without that anybody asked.
    set(&mut b, "5");
    let mut c = port(&mut *bridge, "c", None, Setup::default(), &engine);
    b.stop();
    drop(b);
    let deadline = Instant::now() + SOON;
    loop {
        a.send_plain(0, &tagged(EVERYBODY, a.mac, &[(Q, 5)], 9));
        if !c.received(0).is_empty() {
            break;
        }
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn arrival_is_announced_in_the_vlan_of_its_port() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let mut port = |name, vlan| port(&mut *bridge, name, Some(vlan), Setup::default(), &engine);
    let mut a = port("a", "5 pvid untagged");
    let [mut same, mut trunk, other] =
        [("s", "5 untagged"), ("t", "5"), ("o", "6 pvid untagged")].map(|(name, vlan)| port(name, vlan));
    let trunk_mac = trunk.mac;
    a.device.class().net().unwrap().announce(Some(a.mac)).unwrap();
    let plain = same.expect(0, 1).remove(0).1;
    assert_eq!((&plain[6..12], &plain[12..14]), (&a.mac.0[..], &[0x80, 0x35][..]));
    assert_eq!(trunk.expect(0, 1)[0].1, [&plain[..12], &[0x81, 0, 0, 5], &plain[12..]].concat());
    // What has no VLAN of its own is sent in none.
    trunk.device.class().net().unwrap().announce(Some(trunk_mac)).unwrap();
    trunk.expect_drops(1, DropReason::Vlan, 1);
    assert!([a, same, other].iter_mut().all(|nic| nic.received(0).is_empty()));
}

#[test]
fn bridge_looks_at_tags_while_a_port_was_given_vlans_though_that_one_never_runs() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let mut a = port(&mut *bridge, "a", None, Setup::default(), &engine);
    let mut b = port(&mut *bridge, "b", None, Setup::default(), &engine);
    let of_7 = tagged(EVERYBODY, a.mac, &[(Q, 7)], 1);
    a.send_plain(0, &of_7);
    assert_eq!(b.expect(0, 1)[0].1, of_7);
    // Whoever was given none is in VLAN 1 from now on, soon: until then each try takes a buffer of the receiver's.
    let never = Nic::new(&mut *bridge, "c", Setup { vlan: Some("100"), ..Setup::default() }, &engine);
    let mut arrives = || {
        let before = a.stats(1).completed_desc;
        a.send_plain(0, &of_7);
        heard(std::slice::from_mut(&mut a), 0, before + 1);
        let arrived = b.received(0).len();
        b.post(0, arrived);
        arrived > 0
    };
    until(|| !arrives());
    // And with it goes that.
    drop(never);
    until(arrives);
    assert_ne!(a.drops(1, DropReason::Vlan), 0);
}

/// Tries until it is so.
fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}
