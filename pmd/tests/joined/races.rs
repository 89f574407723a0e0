//! A guest's second processor changes a frame while it is carried: what was checked of it is what arrives.

use std::sync::atomic::{AtomicBool, Ordering};

use super::scene::in_own_namespace;
use super::taps::Wire;
use super::*;

/// What a guest sends over and over, and what its second processor does to it meanwhile.
struct Attack {
    claim: NetHeader,
    good: Vec<u8>,
    /// Where in the frame, and what it puts there for a while.
    at: u64,
    other: Vec<u8>,
    /// The frame in this many pieces behind its header's: 1 is one descriptor for all.
    pieces: u32,
}

/// Has `a` send the frame until so many have come to `b` that some would have been caught, and one was dropped for `caught`,
/// which shows that the second processor ran; hands each to `look`.
fn race(
    a: &mut Nic,
    b: &mut Nic,
    attack: &Attack,
    caught: Option<DropReason>,
    look: impl FnMut(&NetHeader, &[u8]),
) {
    let receive = || {
        let have = b.posted[0].len();
        b.post(0, 200usize.saturating_sub(have));
        b.received(0)
    };
    race_to(receive, a, attack, caught, look);
}

/// The same, with whatever receives.
fn race_to(
    mut receive: impl FnMut() -> Vec<(NetHeader, Vec<u8>)>,
    a: &mut Nic,
    attack: &Attack,
    caught: Option<DropReason>,
    mut look: impl FnMut(&NetHeader, &[u8]),
) {
    const ENOUGH: usize = 4_000;
    let Attack { claim, good, at, other, pieces } = attack;
    let mut bytes = claim.to_bytes().to_vec();
    bytes.extend_from_slice(good);
    let gpa = GPA + (30 << 20);
    a.map.resolve(gpa, bytes.len() as u64).unwrap().write(&bytes);
    let stop = Arc::new(AtomicBool::new(false));
    let flipper = {
        let (map, stop, at, other) = (Arc::clone(&a.map), Arc::clone(&stop), *at, other.clone());
        let original = good[at as usize..at as usize + other.len()].to_vec();
        std::thread::spawn(move || {
            let place = map.resolve(gpa + 12 + at, other.len() as u64).unwrap();
            while !stop.load(Ordering::Relaxed) {
                for bytes in [&other, &original] {
                    place.write(bytes);
                    (0..40).for_each(|_| std::hint::spin_loop());
                }
            }
        })
    };
    // Pieces that end inside of what is looked at.
    let cuts: Vec<u32> = match pieces {
        1 => vec![0, bytes.len() as u32],
        2 => vec![0, 12 + 7, bytes.len() as u32],
        _ => vec![0, 5, 12, 12 + 1, 12 + 6, 12 + 11, 12 + 13, 12 + 40, bytes.len() as u32],
    };
    let chain: Vec<DriverBuffer> = cuts
        .windows(2)
        .map(|cut| DriverBuffer { gpa: gpa + u64::from(cut[0]), len: cut[1] - cut[0], writable: false })
        .collect();
    let deadline = Instant::now() + SOON;
    let mut came = 0;
    while came < ENOUGH || caught.is_some_and(|reason| a.drops(1, reason) == 0) {
        assert!(Instant::now() < deadline, "{came} came: {:?}", a.stats(1));
        let ring = &mut a.rings[1];
        for _ in 0..32 {
            if ring.free_slots() < chain.len() {
                break;
            }
            ring.add(&chain, 0).unwrap();
        }
        ring.publish();
        let _ = ring.collect(&mut [Completion::default(); 64]).unwrap();
        for (header, frame) in receive() {
            came += 1;
            look(&header, &frame);
        }
    }
    stop.store(true, Ordering::Relaxed);
    flipper.join().unwrap();
}

fn two(mgmtdev: &mut dyn ManagementDevice, a: Setup, b: Setup, engine: &Engine) -> (Nic, Nic) {
    let (mut a, mut b) = (Nic::new(mgmtdev, "a", a, engine), Nic::new(mgmtdev, "b", b, engine));
    a.start(1);
    b.start(1);
    (a, b)
}

const FALSE: Mac = Mac([2, 0, 0, 0, 0, 0x66]);

#[test]
fn false_source_address_arrives_nowhere_and_is_not_learned_however_it_is_timed() {
    for (format, pieces) in
        [(Format::Split, 1), (Format::Packed, 1), (Format::Split, 2), (Format::Split, 8), (Format::Packed, 8)]
    {
        let engine = engine(1);
        let mut bridge = bridge(&engine);
        let setup = Setup { spoofchk: true, format, ..Setup::default() };
        let (mut a, mut b) = two(&mut *bridge, setup, Setup { format, ..Setup::default() }, &engine);
        let good = frame(b.mac, a.mac, 60, 1);
        // `b` has spoken, so that frames to it are no flood.
        b.send_plain(0, &frame(a.mac, b.mac, 60, 1));
        let attack = Attack { claim: NetHeader::default(), good, at: 6, other: FALSE.0.to_vec(), pieces };
        race(&mut a, &mut b, &attack, Some(DropReason::SpoofedMac), |_, frame| {
            assert_ne!(frame[6..12], FALSE.0, "{format:?} in {pieces} pieces");
        });
        let learned = bridge.net().unwrap().stations();
        assert!(learned.stations.iter().all(|station| station.mac != FALSE), "{learned:?}");
    }
}

#[test]
fn address_that_was_looked_up_is_the_one_that_is_delivered() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let (mut a, mut b) = two(&mut *bridge, Setup::default(), Setup::default(), &engine);
    let mut c = Nic::new(&mut *bridge, "c", Setup::default(), &engine);
    c.start(1);
    c.post(0, 200);
    for nic in [&mut b, &mut c] {
        nic.send_plain(0, &frame(Mac([0xff; 6]), nic.mac, 60, 1));
        let deadline = Instant::now() + SOON;
        while nic.stats(1).completed_desc == 0 {
            assert!(Instant::now() < deadline, "its address is learned");
        }
    }
    let (to_b, to_c) = (b.mac, c.mac);
    // Both receive the flood of the other.
    let good = frame(to_b, a.mac, 60, 1);
    let attack = Attack { claim: NetHeader::default(), good, at: 0, other: to_c.0.to_vec(), pieces: 1 };
    let (mut wrong, mut to_others) = (0, 0);
    race(&mut a, &mut b, &attack, None, |_, frame| match () {
        () if frame[..6] == to_b.0 => {}
        () if frame[..6] == [0xff; 6] => {}
        // Half of each, as two processors write and read it: to nobody known, so to all.
        () if frame[..6] != to_c.0 => to_others += 1,
        () => wrong += 1,
    });
    assert_eq!(wrong, 0, "frames to the one came to the other; {to_others} to neither");
    for (_, frame) in c.received(0) {
        assert_ne!(frame[..6], to_b.0);
    }
}

/// A TSO frame of IPv4 whose Ethertype becomes that of IPv6.
fn offload_attack(to: Mac, from: Mac, pieces: u32) -> Attack {
    let (good, claim) = large(to, from, 2000, 1000);
    Attack { claim, good, at: 12, other: vec![0x86, 0xdd], pieces }
}

const LARGE: Features = Features(
    Features::VERSION_1.0 | F_MRG_RXBUF.0 | F_CSUM.0 | F_GUEST_CSUM.0 | F_HOST_TSO4.0 | F_GUEST_TSO4.0,
);

#[test]
fn offload_that_is_passed_through_is_borne_out_by_the_frame_that_arrives() {
    for is_bridge in [false, true] {
        for pieces in [1, 2, 8] {
            let engine = engine(1);
            let mut joined = if is_bridge { bridge(&engine) } else { link() };
            let setup = Setup { features: LARGE, buffer: 4096, ..Setup::default() };
            let (mut a, mut b) = two(&mut *joined, setup, setup, &engine);
            b.send_plain(0, &frame(a.mac, b.mac, 60, 1));
            let attack = offload_attack(b.mac, a.mac, pieces);
            race(&mut a, &mut b, &attack, Some(DropReason::BadOffload), |header, frame| {
                assert!(!header.needs_head() || frame[12..14] == [8, 0], "{header:?} {:?}", &frame[..60]);
            });
        }
    }
}

#[test]
fn offload_that_is_carried_out_here_follows_the_headers_that_were_checked() {
    for pieces in [1, 8] {
        let engine = engine(1);
        let mut link = link();
        let sender = Setup { features: LARGE, buffer: 4096, ..Setup::default() };
        let (mut a, mut b) = two(&mut *link, sender, Setup::default(), &engine);
        let attack = offload_attack(b.mac, a.mac, pieces);
        race(&mut a, &mut b, &attack, Some(DropReason::BadOffload), |header, frame| {
            assert!(header.is_plain());
            // Checksums are right, and all are IPv4.
            assert_eq!(payload(frame).len(), 1000);
        });
    }
}

#[test]
fn frame_that_is_changed_when_half_of_its_segments_went_takes_nothing_from_the_next() {
    let engine = patient_engine();
    let mut link = link();
    let sender = Setup { features: LARGE, ..Setup::default() };
    let (mut a, mut b) = two(&mut *link, sender, Setup::default(), &engine);
    let (sent, claim) = large(b.mac, a.mac, 30_000, 1448);
    let first = a.free;
    b.post(0, 4);
    a.send(0, claim, &sent);
    let deadline = Instant::now() + SOON;
    let mut begun = Vec::new();
    while begun.len() < 4 * 1448 {
        assert!(Instant::now() < deadline, "{} bytes", begun.len());
        begun.extend(b.received(0).iter().flat_map(|(_, frame)| payload(frame)));
    }
    // No longer what it claims to be: looked at again, it is dropped.
    a.map.resolve(first + 12 + 12, 2).unwrap().write(&[0x86, 0xdd]);
    a.expect_drops(1, DropReason::BadOffload, 1);
    a.send(0, claim, &sent);
    b.post(0, 32);
    let mut whole = Vec::new();
    while whole.len() < sent.len() - 54 {
        assert!(Instant::now() < deadline, "{} bytes, {:?}", whole.len(), b.stats(0));
        whole.extend(b.received(0).iter().flat_map(|(_, frame)| payload(frame)));
    }
    assert!(whole == sent[54..]);
}

#[test]
fn kernel_is_given_what_was_checked_and_sends_it_on() {
    in_own_namespace(|| {
        for (is_spoof, pieces) in [(true, 1), (true, 8), (false, 1), (false, 8)] {
            let engine = engine(1);
            let mut wire = Wire::new(&engine);
            let setup = Setup { features: LARGE, spoofchk: is_spoof, buffer: 4096, ..Setup::default() };
            let mut a = Nic::new(&mut *wire.mgmtdev, "a", setup, &engine);
            a.start(1);
            let own = a.mac;
            let everybody = Mac([0xff; 6]);
            let (attack, caught) = if is_spoof {
                let good = frame(everybody, own, 60, 1);
                let claim = NetHeader::default();
                (Attack { claim, good, at: 6, other: FALSE.0.to_vec(), pieces }, DropReason::SpoofedMac)
            } else {
                (offload_attack(everybody, own, pieces), DropReason::BadOffload)
            };
            let rest = attack.good[14..].to_vec();
            // The kernel has something to say of its own.
            let receive = || {
                let mut frames = wire.sent_on();
                frames.retain(|(_, frame)| frame.get(14..) == Some(&rest[..]));
                frames
            };
            race_to(receive, &mut a, &attack, Some(caught), |header, frame| {
                if is_spoof {
                    assert_eq!(frame[6..12], own.0, "{pieces} pieces");
                } else {
                    // The kernel believes the header, and tells the next what it was told.
                    assert!(!header.needs_head() || frame[12..14] == [8, 0], "{header:?} {:?}", &frame[..60]);
                }
            });
        }
    });
}
