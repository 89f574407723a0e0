//! Ports that come, go and move to other cores, and workers that take nothing or do not answer: whoever asked for a change bears
//! its failure, and the others go on.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Its ports are served where this says, as control has it of those that were given no core of their own.
fn place_on(nic: &mut Nic, core: &Arc<AtomicUsize>) {
    let core = Arc::clone(core);
    nic.placer.core_of = Arc::new(move |_| core.load(Ordering::SeqCst));
}

#[test]
fn moves_between_cores_and_ports_that_come_and_go_lose_nothing_of_the_others() {
    let engine = engine(2);
    let cores = engine.cores().to_vec();
    if cores.len() < 2 {
        println!("left out: this needs two cores");
        return;
    }
    let mut bridge = bridge(&engine);
    let mut a = Nic::new(&mut *bridge, "a", Setup::default(), &engine);
    let mut b = Nic::new(&mut *bridge, "b", Setup { format: Format::Packed, ..Setup::default() }, &engine);
    let core = Arc::new(AtomicUsize::new(cores[0]));
    place_on(&mut a, &core);
    place_on(&mut b, &core);
    a.start(1);
    b.start(1);
    a.post(0, 1);
    b.send_plain(0, &frame(a.mac, b.mac, 64, 0));
    a.expect(0, 1);
    for round in 0..50u16 {
        b.post(0, 8);
        for seed in 0..8 {
            a.send_plain(0, &frame(b.mac, a.mac, 64, seed));
        }
        let to = cores[usize::from(round) % 2];
        core.store(to, Ordering::SeqCst);
        bridge.set(&BTreeMap::from([("core".to_owned(), to.to_string())])).unwrap();
        a.device.queues().follow(WITHIN).unwrap();
        let mut c = Nic::new(&mut *bridge, "c", Setup::default(), &engine);
        place_on(&mut c, &core);
        c.start(1);
        c.stop();
        b.expect(0, 8);
    }
    b.expect_packets(0, 400);
}

#[test]
fn port_that_no_worker_takes_leaves_the_others_of_its_bridge_in_service() {
    if is_alone("changes::port_that_no_worker_takes_leaves_the_others_of_its_bridge_in_service") {
        // Three are its own.
        refused_without_descriptors(true, 3..4);
    }
}

#[test]
fn port_that_no_worker_takes_leaves_the_other_end_of_its_link_in_service() {
    if is_alone("changes::port_that_no_worker_takes_leaves_the_other_end_of_its_link_in_service") {
        // The first pump may find the two that it needs beside the newcomer's three, and the second one none.
        refused_without_descriptors(false, 3..5);
    }
}

/// In a process of its own, and once: what an engine before it leaves closes its descriptors when it likes.
fn refused_without_descriptors(is_bridge: bool, more: std::ops::Range<u64>) {
    let engine = engine(1);
    let mut mgmtdev = if is_bridge { bridge(&engine) } else { link() };
    // Watched by nobody: none of them may be told that a pump ended.
    let mut make = |name: &str| {
        let mut nic = Nic::new(&mut *mgmtdev, name, Setup::default(), &engine);
        nic.kicks = true;
        nic
    };
    let mut old: Vec<Nic> = if is_bridge { vec![make("a"), make("b")] } else { vec![make("a")] };
    let mut newcomer = make("newcomer");
    old.iter_mut().for_each(|nic| nic.start(1));
    for more in more {
        newcomer.kicked.clear();
        let refused = with_descriptors(more, || newcomer.try_start(1)).unwrap_err();
        let is_named = matches!(&refused, ServeError::NotPlaced(why) if why.contains("LimitNOFILE"));
        assert!(is_named, "{more}: {refused}");
        assert!(newcomer.device.queues().served_by(0).is_none());
        assert!(newcomer.device.queues().take_ended(WITHIN).is_empty());
        for nic in &mut old {
            assert!(nic.device.queues().served_by(0).is_some());
            assert!(nic.device.queues().take_ended(WITHIN).is_empty());
        }
        if let [a, b] = &mut old[..] {
            passes(a, b, more as u8);
            passes(b, a, more as u8);
        }
    }
    newcomer.start(1);
    passes(&mut old[0], &mut newcomer, 1);
    passes(&mut newcomer, &mut old[0], 2);
}

#[test]
fn port_whose_pump_cannot_be_placed_any_more_is_told_so_and_not_of_a_panic() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let mut a = Nic::new(&mut *bridge, "a", Setup::default(), &engine);
    let mut b = Nic::new(&mut *bridge, "b", Setup::default(), &engine);
    let core = Arc::new(AtomicUsize::new(engine.cores()[0]));
    for nic in [&mut a, &mut b] {
        nic.placer.watcher = Arc::new(Deaf);
        place_on(nic, &core);
        nic.start(1);
    }
    // A core that has no worker: neither the new plan nor the old one can be placed.
    core.store(999, Ordering::SeqCst);
    bridge.set(&BTreeMap::from([("core".to_owned(), "999".to_owned())])).unwrap();
    b.stop();
    // It is tried again for a while first.
    assert!(a.device.queues().take_ended(WITHIN).is_empty());
    let begun = Instant::now();
    while a.device.queues().served_by(0).is_some() {
        assert!(begun.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(5));
    }
    let ended = a.device.queues().take_ended(WITHIN);
    assert!(matches!(&ended[..], [(0, Ended::NotPlaced(why))] if why.contains("core 999")), "{ended:?}");
    core.store(engine.cores()[0], Ordering::SeqCst);
    bridge.set(&BTreeMap::from([("core".to_owned(), engine.cores()[0].to_string())])).unwrap();
    for nic in [&mut a, &mut b] {
        nic.start(1);
    }
    passes(&mut a, &mut b, 1);
}

#[test]
fn port_whose_pump_cannot_be_placed_for_a_moment_is_served_again_and_told_nothing() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    // Watched by nobody: none of them may be told that a pump ended.
    let mut a = Nic::new(&mut *bridge, "a", Setup::default(), &engine);
    let mut b = Nic::new(&mut *bridge, "b", Setup::default(), &engine);
    let mut c = Nic::new(&mut *bridge, "c", Setup::default(), &engine);
    let core = Arc::new(AtomicUsize::new(engine.cores()[0]));
    for nic in [&mut a, &mut b, &mut c] {
        place_on(nic, &core);
        nic.start(1);
    }
    core.store(999, Ordering::SeqCst);
    bridge.set(&BTreeMap::from([("core".to_owned(), "999".to_owned())])).unwrap();
    c.stop();
    assert_eq!(a.device.queues().served_by(0).and_then(ServedBy::core), None, "nobody serves it");
    core.store(engine.cores()[0], Ordering::SeqCst);
    bridge.set(&BTreeMap::from([("core".to_owned(), engine.cores()[0].to_string())])).unwrap();
    passes(&mut a, &mut b, 1);
    passes(&mut b, &mut a, 2);
    for nic in [&mut a, &mut b] {
        assert!(nic.device.queues().take_ended(WITHIN).is_empty());
    }
}

#[test]
fn start_that_a_held_worker_does_not_answer_leaves_nothing_behind() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let mut a = Nic::new(&mut *bridge, "a", Setup::default(), &engine);
    let mut b = Nic::new(&mut *bridge, "b", Setup::default(), &engine);
    let mut c = Nic::new(&mut *bridge, "c", Setup::default(), &engine);
    a.start(1);
    b.start(1);
    let (holds, _holder) = hold(&engine);
    c.within = Duration::from_millis(20);
    let refused = c.try_start(1).unwrap_err();
    assert!(matches!(refused, ServeError::Stuck(_)), "{refused}");
    assert!(c.device.queues().served_by(0).is_none(), "it is told that none is in service");
    holds.store(false, Ordering::SeqCst);
    // The others go on, though nobody asks for a change.
    passes(&mut a, &mut b, 1);
    // Nor does one serve what was refused.
    b.stop();
    b.start(1);
    assert!(c.device.queues().served_by(0).is_none());
    passes(&mut a, &mut b, 2);
    c.within = WITHIN;
    c.start(1);
    passes(&mut a, &mut c, 3);
}

#[test]
fn stop_that_a_held_worker_does_not_answer_leaves_the_others_in_service() {
    for is_bridge in [true, false] {
        let engine = engine(1);
        let mut mgmtdev = if is_bridge { bridge(&engine) } else { link() };
        // A third port of the bridge stops, or the second pair of the link's end.
        let pairs = if is_bridge { 1 } else { 2 };
        let setup = || Setup { pairs, ..Setup::default() };
        let mut a = Nic::new(&mut *mgmtdev, "a", setup(), &engine);
        let mut b = Nic::new(&mut *mgmtdev, "b", setup(), &engine);
        let mut c = is_bridge.then(|| Nic::new(&mut *mgmtdev, "c", setup(), &engine));
        [&mut a, &mut b].into_iter().chain(&mut c).for_each(|nic| nic.start(pairs));
        passes(&mut a, &mut b, 1);
        let (holds, _holder) = hold(&engine);
        let group = pairs - 1;
        let service = c.as_mut().unwrap_or(&mut b).device.queues();
        let stuck = service.stop(group, Duration::from_millis(20)).unwrap_err();
        assert!(stuck.to_string().contains("did not"), "{stuck}");
        assert!(service.served_by(group).is_some(), "a worker has it");
        holds.store(false, Ordering::SeqCst);
        passes(&mut a, &mut b, 2);
        passes(&mut b, &mut a, 3);
        let stopped = c.as_mut().unwrap_or(&mut b);
        // A thread of its own takes it out, as soon as the worker gives it back.
        let deadline = Instant::now() + SOON;
        while stopped.device.queues().served_by(group).is_some() {
            assert!(Instant::now() < deadline, "it is out in the end");
            std::thread::sleep(Duration::from_millis(1));
        }
        stopped.start_pair(group, true).unwrap();
        passes(&mut a, &mut b, 4);
    }
}

#[test]
fn move_that_a_held_worker_does_not_answer_leaves_all_in_service() {
    for is_bridge in [true, false] {
        let engine = engine(2);
        if engine.cores().len() < 2 {
            println!("left out: this needs two cores");
            return;
        }
        let mut mgmtdev = if is_bridge { bridge(&engine) } else { link() };
        let mut a = Nic::new(&mut *mgmtdev, "a", Setup::default(), &engine);
        let mut b = Nic::new(&mut *mgmtdev, "b", Setup::default(), &engine);
        let core = Arc::new(AtomicUsize::new(engine.cores()[0]));
        for nic in [&mut a, &mut b] {
            let core = Arc::clone(&core);
            nic.placer.core_of = Arc::new(move |_| core.load(Ordering::SeqCst));
            nic.start(1);
        }
        passes(&mut a, &mut b, 1);
        let (holds, _holder) = hold(&engine);
        core.store(engine.cores()[1], Ordering::SeqCst);
        bridge_core(&mut *mgmtdev, is_bridge, engine.cores()[1]);
        let stuck = a.device.queues().follow(Duration::from_millis(20)).unwrap_err();
        assert!(matches!(stuck, ServeError::Stuck(_)), "{stuck}");
        // It is to stay where it was after all, so that nothing is left to move.
        core.store(engine.cores()[0], Ordering::SeqCst);
        bridge_core(&mut *mgmtdev, is_bridge, engine.cores()[0]);
        holds.store(false, Ordering::SeqCst);
        passes(&mut a, &mut b, 2);
        passes(&mut b, &mut a, 3);
        assert_eq!(a.device.queues().served_by(0).and_then(ServedBy::core), Some(engine.cores()[0]));
    }
}

/// Decides on the core of a bridge; a link has none of its own.
fn bridge_core(mgmtdev: &mut dyn ManagementDevice, is_bridge: bool, core: usize) {
    if is_bridge {
        mgmtdev.set(&BTreeMap::from([("core".to_owned(), core.to_string())])).unwrap();
    }
}

#[test]
fn port_that_is_dropped_waits_neither_for_a_worker_nor_for_the_lock() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let mut a = Nic::new(&mut *bridge, "a", Setup::default(), &engine);
    let mut b = Nic::new(&mut *bridge, "b", Setup::default(), &engine);
    let spare = Nic::new(&mut *bridge, "spare", Setup::default(), &engine);
    a.start(1);
    b.start(1);
    // As long as the same takes while nobody holds the worker.
    let undisturbed = {
        let mut first = Nic::new(&mut *bridge, "first", Setup::default(), &engine);
        let second = Nic::new(&mut *bridge, "second", Setup::default(), &engine);
        first.start(1);
        let begun = Instant::now();
        drop(second.device);
        bridge.removed("first");
        drop(first.device);
        let _first = Nic::new(&mut *bridge, "first", Setup::default(), &engine);
        begun.elapsed()
    };
    let (holds, _holder) = hold(&engine);
    // A session that waits for the worker, under the lock.
    let session = std::thread::spawn(move || {
        a.stop();
        a
    });
    std::thread::sleep(Duration::from_millis(50));
    let begun = Instant::now();
    // One that never ran, and one that runs, as after a session that ended badly.
    drop(spare.device);
    bridge.removed("b");
    drop(b.device);
    // Another of the same name, at once.
    let mut b = Nic::new(&mut *bridge, "b", Setup::default(), &engine);
    let took = begun.elapsed();
    // A second at least: a busy machine may take the thread's core away meanwhile.
    assert!(
        took < 100 * undisturbed.max(Duration::from_millis(10)),
        "waited for {took:?}; undisturbed it takes {undisturbed:?}"
    );
    assert!(!session.is_finished(), "the worker was not held");
    holds.store(false, Ordering::SeqCst);
    let mut a = session.join().unwrap();
    a.start(1);
    b.start(1);
    passes(&mut a, &mut b, 1);
    passes(&mut b, &mut a, 2);
    assert!(ringway_pmd::later::settle(SOON));
    // Nothing of the dropped ones is served any more: a frame to everybody has one receiver.
    a.expect_packets(1, 1);
    passes(&mut a, &mut b, 3);
    a.expect_packets(1, 2);
}
