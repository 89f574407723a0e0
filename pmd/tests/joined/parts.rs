//! A bridge on two cores: what holds for one holds for it, and what is between the cores is nobody's hindrance.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::scene::in_own_namespace;
use super::taps::Wire;
use super::*;

const PARTS: &str = "RINGWAY_TEST_PARTS";
/// The tests of this file run: see [`parts_on_two_cores_are_tried_by_themselves`].
const ALONE: &str = "RINGWAY_TEST_PARTS_ALONE";

/// Cores over which tests spread the ports of a bridge.
pub(super) fn parts() -> usize {
    std::env::var(PARTS).ok().and_then(|parts| parts.parse().ok()).unwrap_or(1)
}

/// The core of a port, where they are spread: by the last letter of its name, one beside the other.
pub(super) fn core_of(name: &str, engine: &Engine) -> usize {
    let cores = engine.cores();
    let nth = if parts() > 1 { usize::from(name.bytes().last().unwrap_or(0)) } else { 0 };
    cores[nth % cores.len()]
}

/// An engine with two workers, if the machine has two cores.
fn two_cores() -> Option<Engine> {
    std::env::var_os(ALONE)?;
    let engine = engine(2);
    if engine.cores().len() < 2 {
        println!("left out: this needs two cores");
        return None;
    }
    Some(engine)
}

/// A port on a core that can be changed, started, with buffers.
fn port(
    bridge: &mut dyn ManagementDevice,
    name: &str,
    setup: Setup,
    engine: &Engine,
    core: usize,
) -> (Nic, Arc<AtomicUsize>) {
    let mut nic = Nic::new(bridge, name, setup, engine);
    let core = Arc::new(AtomicUsize::new(core));
    let placed_on = Arc::clone(&core);
    nic.placer.core_of = Arc::new(move |_| placed_on.load(Ordering::SeqCst));
    nic.start(1);
    nic.post(0, 200);
    (nic, core)
}

/// One on each core, twice: a and b on the first, c and d on the second.
fn four(bridge: &mut dyn ManagementDevice, setup: Setup, engine: &Engine) -> [Nic; 4] {
    [("a", 0), ("b", 0), ("c", 1), ("d", 1)]
        .map(|(name, nth)| port(bridge, name, setup, engine, engine.cores()[nth]).0)
}

fn core(nic: &mut Nic) -> Option<usize> {
    nic.device.queues().served_by(0).and_then(ServedBy::core)
}

/// Has been heard of by all.
fn introduce<N: std::borrow::BorrowMut<Nic>>(nics: &mut [N]) {
    for at in 0..nics.len() {
        let nic: &mut Nic = nics[at].borrow_mut();
        let from = nic.mac;
        nic.send_plain(0, &frame(Mac([0xff; 6]), from, 64, 0));
        for (_, other) in nics.iter_mut().enumerate().filter(|(other, _)| *other != at) {
            let other: &mut Nic = other.borrow_mut();
            assert_eq!(other.expect(0, 1)[0].1[6..12], from.0);
            other.post(0, 1);
        }
    }
}

/// Runs tests of this program in a process of its own, one after the other, while nothing else runs: those of two cores poll on every
/// core that there may be, and some of them hold a worker.
fn run_alone(variable: (&str, &str), tests: &[&str]) {
    workers::alone();
    let exe = std::env::current_exe().unwrap();
    let output = std::process::Command::new(exe)
        .args(["--test-threads", "1"])
        .args(tests)
        .env(variable.0, variable.1)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains(" 0 passed"), "{said}");
}

fn is_run_by_another() -> bool {
    std::env::var_os(PARTS).is_some() || std::env::var_os(ALONE).is_some()
}

#[test]
fn what_is_proved_of_a_bridge_on_one_core_holds_on_two() {
    if !is_run_by_another() {
        let tests =
            ["bridges::", "vlans::", "announce::", "races::", "offloads::", "policies::", "changes::moves"];
        run_alone((PARTS, "2"), &tests);
    }
}

/// The others of this file.
#[test]
fn parts_on_two_cores_are_tried_by_themselves() {
    if !is_run_by_another() {
        run_alone((ALONE, "1"), &["parts::"]);
    }
}

#[test]
fn ports_are_served_by_the_cores_that_they_were_given_and_each_part_is_shown() {
    let Some(engine) = two_cores() else { return };
    let mut bridge = bridge(&engine);
    let mut nics = four(&mut *bridge, Setup::default(), &engine);
    let [first, second] = [0, 1].map(|nth| engine.cores()[nth]);
    assert_eq!(nics.each_mut().map(core), [Some(first), Some(first), Some(second), Some(second)]);
    let mut pumps: Vec<(usize, String)> = engine
        .workers()
        .into_iter()
        .flat_map(|worker| worker.pumps.into_iter().map(move |pump| (worker.core, pump.name)))
        .collect();
    pumps.sort();
    let mut expected = [first, second].map(|core| (core, format!("bridge/b@{core}")));
    expected.sort();
    assert_eq!(pumps, expected);
    introduce(&mut nics);
    let [a, b, c, d] = &mut nics;
    for (seed, (from, to)) in [(&mut *a, &mut *b), (&mut *c, &mut *d)].into_iter().enumerate() {
        passes(from, to, seed as u8);
    }
    passes(a, c, 3);
    passes(d, b, 4);
    // Every station is shown once, whichever part knows it.
    let deadline = Instant::now() + SOON;
    loop {
        let stations = bridge.net().unwrap().stations().stations;
        let mut devices: Vec<String> = stations.into_iter().map(|station| station.device).collect();
        devices.sort();
        if devices == ["a", "b", "c", "d"] {
            break;
        }
        assert!(Instant::now() < deadline, "{devices:?}");
    }
    // With the last port on a core goes its part.
    c.stop();
    d.stop();
    assert_eq!(core(a), Some(first));
    let names: Vec<String> =
        engine.workers().into_iter().flat_map(|worker| worker.pumps).map(|pump| pump.name).collect();
    assert_eq!(names, ["bridge/b"]);
    passes(a, b, 5);
}

/// Frames that are numbered, in bytes that nothing else looks at.
fn numbered(to: Mac, from: Mac, number: u32) -> Vec<u8> {
    let mut bytes = frame(to, from, 80, 0);
    bytes[20..24].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn number_of(frame: &[u8]) -> u32 {
    u32::from_le_bytes(frame[20..24].try_into().unwrap())
}

#[test]
fn flows_keep_their_order_and_lose_nothing_while_ports_move_between_the_cores() {
    let Some(engine) = two_cores() else { return };
    for (one, other) in all_formats() {
        let mut bridge = bridge(&engine);
        let at = engine.cores().to_vec();
        let setup = |format| Setup { format, ..Setup::default() };
        let (mut a, core_a) = port(&mut *bridge, "a", setup(one), &engine, at[0]);
        let (mut b, core_b) = port(&mut *bridge, "b", setup(other), &engine, at[1]);
        let (mut c, core_c) = port(&mut *bridge, "c", setup(one), &engine, at[0]);
        let (to_b, to_c, from) = (b.mac, c.mac, a.mac);
        for nic in [&mut b, &mut c] {
            nic.send_plain(0, &frame(Mac([0xff; 6]), nic.mac, 64, 0));
        }
        a.expect(0, 2);
        b.expect(0, 1);
        c.expect(0, 1);
        let mut next = [VecDeque::new(), VecDeque::new()];
        let (mut sent, mut moves) = (0u32, 0usize);
        let deadline = Instant::now() + SOON;
        while sent < 6_000 || next.iter().any(|left| !left.is_empty()) {
            assert!(Instant::now() < deadline, "{sent}: {:?} {:?}", b.stats(0), a.stats(1));
            // No more than its receivers have buffers for.
            if sent < 6_000 && next.iter().all(|left| left.len() < 150) {
                for (to, left) in [to_b, to_c].into_iter().zip(&mut next) {
                    a.send_plain(0, &numbered(to, from, sent));
                    left.push_back(sent);
                    sent += 1;
                }
            }
            for (nic, left) in [&mut b, &mut c].into_iter().zip(&mut next) {
                let came = nic.received(0);
                nic.post(0, came.len());
                for (_, frame) in came {
                    assert_eq!(Some(number_of(&frame)), left.pop_front());
                }
            }
            if sent / 100 > moves as u32 {
                moves += 1;
                let moved = [&core_a, &core_b, &core_c][moves % 3];
                moved.store(at[(moves / 3) % 2], Ordering::SeqCst);
                let nic = [&mut a, &mut b, &mut c].into_iter().nth(moves % 3).unwrap();
                nic.device.queues().follow(WITHIN).unwrap();
            }
        }
        assert!(moves >= 50);
        for nic in [&a, &b, &c] {
            for queue in 0..2 {
                let stats = nic.stats(queue);
                assert!(stats.drops.iter().all(|(_, frames)| *frames == 0), "{stats:?}");
            }
        }
        a.expect_packets(1, sent.into());
    }
}

#[test]
fn interface_on_another_core_than_its_guest_loses_nothing_either_way_while_both_move() {
    if std::env::var_os(ALONE).is_none() {
        return;
    }
    in_own_namespace(|| {
        let Some(engine) = two_cores() else { return };
        let at = engine.cores().to_vec();
        let on = Arc::new(AtomicUsize::new(at[1]));
        let placed_on = Arc::clone(&on);
        let core_of = Arc::new(move |_| placed_on.load(Ordering::SeqCst));
        let mut wire = Wire::of_bridge(bridge(&engine), &engine, core_of);
        let (mut a, core_a) = port(&mut *wire.mgmtdev, "a", Setup::default(), &engine, at[0]);
        let (own, station) = (a.mac, Mac([2, 0, 0, 0, 0, 9]));
        let (mut to_guest, mut to_host) = (VecDeque::new(), VecDeque::new());
        let (mut sent, mut moves) = (0u32, 0usize);
        let mut deadline = Instant::now() + SOON;
        while sent < 3_000 || !to_guest.is_empty() || !to_host.is_empty() {
            assert!(Instant::now() < deadline, "{sent}: {} {}", to_guest.len(), to_host.len());
            if sent < 3_000 && to_guest.len().max(to_host.len()) < 100 {
                a.send_plain(0, &numbered(station, own, sent));
                to_host.push_back(sent);
                wire.give(&numbered(own, station, sent));
                to_guest.push_back(sent);
                sent += 1;
            }
            let came = a.received(0);
            a.post(0, came.len());
            for (_, frame) in came.iter().filter(|(_, frame)| frame[..6] == own.0) {
                assert_eq!(Some(number_of(frame)), to_guest.pop_front());
            }
            for (_, frame) in wire.sent_on().iter().filter(|(_, frame)| frame[..6] == station.0) {
                assert_eq!(Some(number_of(frame)), to_host.pop_front());
            }
            if sent / 100 > moves as u32 {
                moves += 1;
                // Apart, together on the other core, apart, together on the first one.
                let core = at[(moves / 2 + 1) % 2];
                if moves % 2 == 0 {
                    on.store(core, Ordering::SeqCst);
                    wire.host.queues().follow(WITHIN).unwrap();
                    assert_eq!(wire.host.queues().served_by(0).and_then(ServedBy::core), Some(core));
                } else {
                    core_a.store(core, Ordering::SeqCst);
                    a.device.queues().follow(WITHIN).unwrap();
                    assert_eq!(self::core(&mut a), Some(core));
                }
                deadline = Instant::now() + SOON;
            }
        }
        assert!(moves >= 29);
        let stats = a.stats(1);
        assert!(stats.drops.iter().all(|(_, frames)| *frames == 0), "{stats:?}");
    });
}

#[test]
fn port_that_never_reads_stops_no_other_core_either_way() {
    let Some(engine) = two_cores() else { return };
    for slow in [1, 2] {
        let mut bridge = bridge(&engine);
        let mut nics = four(&mut *bridge, Setup::default(), &engine);
        introduce(&mut nics);
        // It has what was posted, and nothing is posted any more.
        let far = if slow == 1 { 2 } else { 1 };
        let (to_slow, to_far) = (nics[slow].mac, nics[far].mac);
        for sender in [0, 3] {
            let from = nics[sender].mac;
            for _ in 0..300 {
                nics[sender].send_plain(0, &frame(to_slow, from, 64, 1));
            }
        }
        // Those that its buffers were for have come, all others are dropped there, and by nobody else.
        let deadline = Instant::now() + SOON;
        while nics[slow].drops(0, DropReason::NoRxBuffer) + nics[slow].stats(0).packets < 600 + 3 {
            assert!(Instant::now() < deadline, "{:?} {:?}", nics[slow].stats(0), nics[0].stats(1));
        }
        assert!(nics[slow].drops(0, DropReason::NoRxBuffer) > 300);
        // It has heard of the three others, and of nothing that was not for it.
        let mut had = 3;
        for sender in [0, 3] {
            let from = nics[sender].mac;
            for seed in 0..50 {
                nics[sender].send_plain(0, &frame(to_far, from, 64, seed));
            }
            let came = nics[far].expect(0, 50);
            nics[far].post(0, came.len());
            had += 50;
            nics[far].expect_packets(0, had);
            assert_eq!(nics[sender].drops(1, DropReason::LaneFull), 0);
        }
    }
}

#[test]
fn worker_that_is_held_costs_those_who_send_to_it_by_name_and_nobody_else() {
    let Some(engine) = two_cores() else { return };
    let mut bridge = bridge(&engine);
    // The one that is held is the first.
    let mut nics = four(&mut *bridge, Setup { flood_pps: Some("off"), ..Setup::default() }, &engine);
    introduce(&mut nics);
    let (holds, _holder) = hold(&engine);
    let [a, _, c, d] = &mut nics;
    let to_held = frame(a.mac, c.mac, 64, 1);
    // More than may be out: for a moment they wait, and then they go nowhere.
    for _ in 0..600 {
        c.send_plain(0, &to_held);
    }
    let deadline = Instant::now() + SOON;
    while c.stats(1).completed_desc < 601 {
        assert!(Instant::now() < deadline, "{:?}", c.stats(1));
    }
    c.expect_drops(1, DropReason::LaneFull, 600);
    // Whoever sent there reaches everybody else meanwhile, as who did not.
    for seed in 0..100 {
        passes(d, c, seed);
        passes(c, d, seed);
    }
    holds.store(false, std::sync::atomic::Ordering::SeqCst);
    // Nothing of that is delivered, and what comes later is, once it turns.
    let deadline = Instant::now() + SOON;
    let mut sent = 600;
    let mut came = 0;
    while came == 0 || came + c.drops(1, DropReason::LaneFull) < sent {
        assert!(Instant::now() < deadline, "{came} of {sent}: {:?} {:?}", a.stats(0), c.stats(1));
        if came == 0 {
            c.send_plain(0, &to_held);
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
        came += a.received(0).len() as u64;
    }
    a.post(0, 16);
    passes(c, a, 9);
    passes(a, d, 10);
    assert!(c.drops(1, DropReason::LaneFull) >= 600 && a.drops(0, DropReason::NoRxBuffer) == 0);
}

#[test]
fn change_beside_a_worker_that_is_held_has_all_others_served_again() {
    let Some(engine) = two_cores() else { return };
    let mut bridge = bridge(&engine);
    let mut nics = four(&mut *bridge, Setup { flood_pps: Some("off"), ..Setup::default() }, &engine);
    introduce(&mut nics);
    let (holds, _holder) = hold(&engine);
    let [a, b, c, d] = &mut nics;
    // Something is on its way there.
    for _ in 0..20 {
        c.send_plain(0, &frame(a.mac, c.mac, 64, 1));
    }
    c.expect_packets(1, 21);
    // Nobody waits for the one that is held but who has something there.
    let (mut e, _) = port(&mut *bridge, "e", Setup::default(), &engine, engine.cores()[1]);
    let refused = a.device.queues().stop(0, Duration::from_millis(500)).unwrap_err();
    assert!(refused.to_string().contains("did not"), "{refused}");
    for seed in 0..20 {
        passes(c, d, seed);
        passes(&mut e, c, seed);
    }
    // What is for somebody there is shown to nobody else.
    let before = c.drops(1, DropReason::LaneFull);
    for seed in 0..10 {
        c.send_plain(0, &frame(b.mac, c.mac, 64, seed));
    }
    c.expect_drops(1, DropReason::LaneFull, before + 10);
    assert!(d.received(0).is_empty() && e.received(0).is_empty());
    d.stop();
    passes(c, &mut e, 1);
    d.start(1);
    d.post(0, 200);
    passes(d, c, 2);
    let begun = Instant::now();
    assert!(a.device.queues().served_by(0).is_some(), "a worker has it");
    holds.store(false, Ordering::SeqCst);
    // The others' ports there are served with them again; the one that was to stop is out.
    while a.device.queues().served_by(0).is_some() {
        assert!(begun.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(1));
    }
    passes(b, c, 3);
    passes(c, b, 4);
    passes(&mut e, b, 5);
    a.start(1);
    a.post(0, 200);
    passes(a, d, 6);
    passes(d, a, 7);
}

#[test]
fn whoever_waits_for_a_worker_that_holds_his_port_keeps_nobody_elses_waiting() {
    let Some(engine) = two_cores() else { return };
    let mut bridge = bridge(&engine);
    let [mut a, _b, mut c, mut d] = four(&mut *bridge, Setup::default(), &engine);
    let (holds, _holder) = hold(&engine);
    // From here on it is known to be held.
    d.stop();
    std::thread::scope(|scope| {
        let queues = &mut a.device;
        let waits = scope.spawn(move || queues.queues().stop(0, WITHIN).is_ok());
        let begun = Instant::now();
        for seed in 0..5 {
            d.start(1);
            d.post(0, 200);
            passes(&mut c, &mut d, seed);
            d.stop();
        }
        assert!(begun.elapsed() < WITHIN / 3, "{:?}", begun.elapsed());
        assert!(!waits.is_finished());
        holds.store(false, Ordering::SeqCst);
        assert!(waits.join().unwrap());
    });
    assert_eq!(core(&mut a), None);
}

#[test]
fn worker_that_is_held_for_a_moment_is_waited_for_by_a_change_that_nobody_asked_for() {
    let Some(engine) = two_cores() else { return };
    let mut bridge = bridge(&engine);
    let setup = Setup { flood_pps: Some("off"), ..Setup::default() };
    let [mut a, mut b, mut c, mut d] = four(&mut *bridge, setup, &engine);
    introduce(&mut [&mut a, &mut b, &mut c, &mut d]);
    let (holds, _holder) = hold(&engine);
    // What runs of it is taken out by nobody's session.
    drop(d.device);
    std::thread::sleep(Duration::from_millis(300));
    let sent = frame(a.mac, c.mac, 64, 1);
    c.send_plain(0, &sent);
    std::thread::sleep(Duration::from_millis(100));
    holds.store(false, Ordering::SeqCst);
    // The others were not made anew without it.
    assert_eq!(a.expect(0, 1)[0].1, sent);
    assert_eq!(c.drops(1, DropReason::LaneFull), 0);
}

#[test]
fn port_on_a_core_that_turns_is_served_though_all_that_was_there_before_is_held() {
    let Some(engine) = two_cores() else { return };
    let mut bridge = bridge(&engine);
    let at = engine.cores().to_vec();
    let setup = Setup { flood_pps: Some("off"), ..Setup::default() };
    // One pump, and no part.
    let [mut a, mut b] = ["a", "b"].map(|name| port(&mut *bridge, name, setup, &engine, at[0]).0);
    introduce(&mut [&mut a, &mut b]);
    let (holds, _holder) = hold(&engine);
    let [mut c, mut d] = ["c", "d"].map(|name| port(&mut *bridge, name, setup, &engine, at[1]).0);
    for seed in 0..20 {
        passes(&mut c, &mut d, seed);
        passes(&mut d, &mut c, seed);
    }
    // It is with the others once its worker turns.
    holds.store(false, Ordering::SeqCst);
    let deadline = Instant::now() + SOON;
    while c.received(0).is_empty() {
        assert!(Instant::now() < deadline);
        a.send_plain(0, &frame(c.mac, a.mac, 64, 1));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn worker_that_is_held_keeps_out_who_comes_to_its_core_wherever_the_ports_that_it_has_are_to_go() {
    let Some(engine) = two_cores() else { return };
    let mut bridge = bridge(&engine);
    let at = engine.cores().to_vec();
    let setup = Setup { flood_pps: Some("off"), ..Setup::default() };
    let [(mut a, of_a), (mut b, of_b)] =
        ["a", "b"].map(|name| port(&mut *bridge, name, setup, &engine, at[0]));
    introduce(&mut [&mut a, &mut b]);
    let (holds, _holder) = hold(&engine);
    let mut c = port(&mut *bridge, "c", setup, &engine, at[1]).0;
    // They cannot follow.
    [of_a, of_b].iter().for_each(|core| core.store(at[1], Ordering::SeqCst));
    let mut d = port(&mut *bridge, "d", setup, &engine, at[1]).0;
    passes(&mut c, &mut d, 1);
    let mut e = Nic::new(&mut *bridge, "e", setup, &engine);
    let first = at[0];
    (e.placer.core_of, e.within) = (Arc::new(move |_| first), Duration::from_millis(300));
    let refused = e.try_start(1).unwrap_err();
    assert!(refused.to_string().contains("did not"), "{refused}");
    for seed in 0..20 {
        passes(&mut c, &mut d, seed);
        passes(&mut d, &mut c, seed);
    }
    holds.store(false, Ordering::SeqCst);
    e.within = WITHIN;
    e.start(1);
    e.post(0, 200);
    introduce(&mut [&mut a, &mut b, &mut c, &mut d, &mut e]);
    for nic in [&mut a, &mut b, &mut c] {
        passes(&mut d, nic, 2);
        passes(nic, &mut e, 3);
    }
    assert_eq!([core(&mut a), core(&mut b), core(&mut e)], [Some(at[1]), Some(at[1]), Some(at[0])]);
}

#[test]
fn port_that_leaves_a_worker_which_holds_it_is_not_in_the_way_of_who_is_elsewhere_from_then_on() {
    for is_dropped in [false, true] {
        let Some(engine) = two_cores() else { return };
        let mut bridge = bridge(&engine);
        let setup = Setup { flood_pps: Some("off"), ..Setup::default() };
        let mut nics = four(&mut *bridge, setup, &engine);
        introduce(&mut nics);
        let (holds, _holder) = hold(&engine);
        let [a, b, mut c, mut d] = nics;
        // From here on it is known to be held.
        d.stop();
        d.start(1);
        d.post(0, 200);
        let to_it = frame(a.mac, c.mac, 64, 1);
        c.send_plain(0, &to_it);
        c.expect_drops(1, DropReason::LaneFull, 1);
        let mut a = Some(a);
        if is_dropped {
            a = None;
        } else if let Some(a) = &mut a {
            a.device.queues().stop(0, Duration::from_millis(200)).unwrap_err();
        }
        // Nobody knows where it is.
        let deadline = Instant::now() + SOON;
        while d.received(0).is_empty() {
            assert!(Instant::now() < deadline, "{is_dropped}: {:?}", c.stats(1));
            c.send_plain(0, &to_it);
            std::thread::sleep(Duration::from_millis(1));
        }
        // What its worker holds of others is for nobody else.
        let before = c.drops(1, DropReason::LaneFull);
        c.send_plain(0, &frame(b.mac, c.mac, 64, 2));
        c.expect_drops(1, DropReason::LaneFull, before + 1);
        holds.store(false, Ordering::SeqCst);
        drop(a);
    }
}

#[test]
fn arrival_beside_a_worker_that_is_held_is_told_there_once_it_turns_whatever_changes_meanwhile() {
    let moved = Mac([0x52, 0x54, 0, 0xaa, 0xbb, 0xcc]);
    let told = ringway_pmd::net::announce::frame(moved);
    for is_known in [false, true] {
        let Some(engine) = two_cores() else { return };
        let mut bridge = bridge(&engine);
        let mut nics = four(&mut *bridge, Setup { flood_pps: Some("off"), ..Setup::default() }, &engine);
        introduce(&mut nics);
        let (holds, _holder) = hold(&engine);
        let [a, b, c, d] = &mut nics;
        let change = |d: &mut Nic| {
            d.stop();
            d.start(1);
            d.post(0, 200);
        };
        if is_known {
            // Those that are held are left out.
            change(d);
        }
        c.device.class().net().unwrap().announce(Some(moved)).unwrap();
        assert_eq!(d.expect(0, 1)[0].1, told, "{is_known}");
        change(d);
        change(d);
        holds.store(false, Ordering::SeqCst);
        for nic in [a, b] {
            assert_eq!(nic.expect(0, 1)[0].1, told, "{is_known}");
            // Once.
            passes(c, nic, 1);
        }
        drop(d.received(0));
        change(d);
        passes(c, d, 2);
    }
}

#[test]
fn station_that_moves_between_the_cores_is_found_where_it_was_heard_last() {
    let Some(engine) = two_cores() else { return };
    let mut bridge = bridge(&engine);
    let mut nics = four(&mut *bridge, Setup { flood_pps: Some("off"), ..Setup::default() }, &engine);
    introduce(&mut nics);
    let station = Mac([2, 0, 0, 0, 0, 0x77]);
    // Port by port, and back: each time all of the others find it there.
    for round in 0..40usize {
        let at = [0, 2, 1, 3][round % 4];
        nics[at].send_plain(0, &frame(Mac([0xff; 6]), station, 64, round as u8));
        for other in (0..4).filter(|other| *other != at) {
            nics[other].expect(0, 1);
            nics[other].post(0, 1);
        }
        for other in (0..4).filter(|other| *other != at) {
            let from = nics[other].mac;
            let ask = frame(station, from, 64, round as u8);
            nics[other].send_plain(0, &ask);
            assert_eq!(nics[at].expect(0, 1)[0].1, ask, "round {round} from {other}");
            nics[at].post(0, 1);
        }
        // Nobody else was asked.
        assert!(nics.iter_mut().all(|nic| nic.received(0).is_empty()), "round {round}");
    }
    let shown = bridge.net().unwrap().stations().stations;
    assert!(shown.iter().filter(|seen| seen.mac == station).count() <= 2, "{shown:?}");
}

#[test]
fn station_that_goes_on_sending_is_not_forgotten_by_the_other_core_and_one_that_does_not_is() {
    let Some(engine) = two_cores() else { return };
    let mut bridge = bridge(&engine);
    let mut nics = four(&mut *bridge, Setup { flood_pps: Some("off"), ..Setup::default() }, &engine);
    bridge.set(&BTreeMap::from([("ageing".to_owned(), "1".to_owned())])).unwrap();
    introduce(&mut nics);
    let macs: Vec<Mac> = nics.iter().map(|nic| nic.mac).collect();
    let ask = frame(macs[0], macs[3], 64, 1);
    let begun = Instant::now();
    // Half a second is how long a copy may be behind.
    while begun.elapsed() < Duration::from_millis(2500) {
        // Within its core: the other hears of it in no other way than by being told.
        nics[0].send_plain(0, &frame(macs[1], macs[0], 64, 2));
        nics[1].expect(0, 1);
        nics[1].post(0, 1);
        // Nor is the other forgotten, so that nothing of this is flooded.
        nics[1].send_plain(0, &frame(macs[0], macs[1], 64, 2));
        nics[0].expect(0, 1);
        nics[0].post(0, 1);
        std::thread::sleep(Duration::from_millis(20));
    }
    for nic in &mut nics {
        nic.received(0);
    }
    nics[3].send_plain(0, &ask);
    assert_eq!(nics[0].expect(0, 1)[0].1, ask);
    assert!(nics[1].received(0).is_empty() && nics[2].received(0).is_empty(), "it was flooded");
    // From now on nothing: within some seconds it is not known anywhere.
    let deadline = Instant::now() + SOON;
    loop {
        std::thread::sleep(Duration::from_millis(300));
        nics[3].send_plain(0, &ask);
        nics[0].expect(0, 1);
        nics[0].post(0, 1);
        if nics[1].received(0).len() + nics[2].received(0).len() > 0 {
            break;
        }
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn parts_that_sleep_are_woken_by_each_other() {
    let Some(engine) = two_cores() else { return };
    let mut bridge = bridge(&engine);
    let mut nics: Vec<Nic> = [("a", 0), ("c", 1)]
        .map(|(name, nth)| {
            let mut nic = Nic::new(&mut *bridge, name, Setup::default(), &engine);
            let core = engine.cores()[nth];
            nic.placer.core_of = Arc::new(move |_| core);
            nic.kicks = true;
            nic.start(1);
            nic.post(0, 100);
            nic
        })
        .into();
    introduce(&mut nics);
    for round in 0..30u8 {
        let deadline = Instant::now() + SOON;
        while !engine.workers().iter().flat_map(|worker| &worker.pumps).all(|pump| pump.asleep) {
            assert!(Instant::now() < deadline, "{:?}", engine.workers());
        }
        let [a, c] = &mut nics[..] else { unreachable!() };
        let (from, to) = if round % 2 == 0 { (a, c) } else { (c, a) };
        passes(from, to, round);
        // Its sender has it back, too.
        let sent = from.stats(1).packets;
        while from.stats(1).completed_desc < sent {
            assert!(Instant::now() < deadline);
        }
    }
}

#[test]
fn frames_that_nobody_has_on_the_other_core_are_counted_as_on_one() {
    let Some(engine) = two_cores() else { return };
    let mut bridge = bridge(&engine);
    let [first, second] = [0, 1].map(|nth| engine.cores()[nth]);
    let (mut a, _) = port(&mut *bridge, "a", Setup::default(), &engine, first);
    let mut c = Nic::new(&mut *bridge, "c", Setup::default(), &engine);
    c.placer.core_of = Arc::new(move |_| second);
    // It sends, and receives nothing.
    c.try_start(0).unwrap();
    a.send_plain(0, &frame(Mac([0xff; 6]), a.mac, 64, 1));
    a.expect_drops(1, DropReason::PeerDown, 1);
    c.stop();
    c.try_start(1).unwrap();
    c.send_plain(0, &frame(Mac([0xff; 6]), c.mac, 64, 1));
    a.expect(0, 1);
    // Without a buffer it is dropped where it would have been.
    a.send_plain(0, &frame(c.mac, a.mac, 64, 2));
    c.expect_drops(0, DropReason::NoRxBuffer, 1);
    a.expect_packets(1, 1);
}

#[test]
fn frames_in_many_pieces_cross_whole_though_only_some_can_be_copied_at_a_time() {
    // A worker that has no CPU for a moment would cost what waits for a place.
    let Some(_) = two_cores() else { return };
    let engine = workers::patient_engine_of(2);
    let mut bridge = bridge(&engine);
    let [first, second] = [0, 1].map(|nth| engine.cores()[nth]);
    let (mut a, _) = port(&mut *bridge, "a", Setup::default(), &engine, first);
    let (mut c, _) = port(&mut *bridge, "c", Setup::default(), &engine, second);
    introduce(&mut [&mut a, &mut c]);
    // All are there at once: more than a burst.
    let count = 40usize;
    for number in 0..count as u32 {
        let frame = numbered(c.mac, a.mac, number);
        let bytes = [&[0; 12][..], &frame].concat();
        let gpa = a.allocate(bytes.len());
        a.map.resolve(gpa, bytes.len() as u64).unwrap().write(&bytes);
        // Pieces that end anywhere: in the header, in the addresses, behind them.
        let cuts = [0, 5, 12, 17, 30, 31, bytes.len()];
        let chain: Vec<DriverBuffer> = cuts
            .windows(2)
            .map(|cut| DriverBuffer {
                gpa: gpa + cut[0] as u64,
                len: (cut[1] - cut[0]) as u32,
                writable: false,
            })
            .collect();
        a.rings[1].add(&chain, 0).unwrap();
    }
    a.rings[1].publish();
    for (number, (_, got)) in (0..).zip(c.expect(0, count)) {
        assert_eq!(got, numbered(c.mac, a.mac, number));
    }
    a.expect_packets(1, count as u64 + 1);
    assert_eq!(a.drops(1, DropReason::LaneFull), 0);
}
