//! The function consumes the guest's rings itself.

use std::os::fd::AsFd;
use std::sync::Arc;

use ringway_control::operator::api::{DevChanged, DevSet};
use ringway_pmd::notify::EventFd;
use ringway_ring::features::Features;
use ringway_ring::position::Position;
use ringway_ring::queue::Format;
use serde_json::Value;

use super::model::{Model, On, QUEUE_RESET, Then};
use super::support::{HandPair, Rig, eventually};
use super::{Host, entry};

const RESETS_QUEUES: Features = Features::RING_RESET;

fn path(host: &Host) -> String {
    host.field("data_path").as_str().unwrap_or_default().to_owned()
}

fn note(host: &Host) -> String {
    let notes = host.field("notes");
    let notes: Vec<&str> = notes.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    notes.join("; ")
}

fn set(host: &Host, path: &str) -> DevChanged {
    let mut set = DevSet { name: "d0".to_owned(), ..DevSet::default() };
    set.attributes.insert("datapath".to_owned(), path.to_owned());
    host.subsystem.call("dev.set", &set).unwrap()
}

/// Kicks a pair by hand, as its driver does.
fn kicked<'rig>(
    frontend: &mut ringway_vhost_user::frontend::Frontend,
    pair: &mut HandPair<'rig>,
    queues: [u32; 2],
) {
    let kick = Arc::new(EventFd::new().unwrap());
    for queue in queues {
        frontend.set_vring_kick(queue, Some(kick.as_fd())).unwrap();
    }
    pair.kick = Some(kick);
}

#[test]
fn guests_rings_are_the_functions_and_are_relayed_from_where_they_stop() {
    for more in [RESETS_QUEUES, Features::NONE] {
        let host = Host::in_hardware(Model::with(more, 4), 1);
        assert_eq!(path(&host), "relay", "nothing is in hardware yet");
        let rig = Rig::new(Format::Split, 2);
        let (mut frontend, mut pair) = host.serve(&rig);
        kicked(&mut frontend, &mut pair, [0, 1]);
        eventually(|| path(&host) == "hardware");
        assert_eq!(host.model.doorbells(), [0, 1]);
        eventually(|| note(&host).is_empty() && host.field("rings/0/core") == Value::Null);
        assert_eq!(host.field("attributes/datapath"), "hardware");
        pair.exchange(700);
        // What it has not used is the guest's again, and filled by whoever serves it then.
        pair.post(5);
        let bases = [0, 1].map(|queue| frontend.stop_ring(queue).unwrap());
        assert_eq!(bases, [700, 700]);
        assert!(host.model.doorbells().is_empty());
        for (queue, base) in (0u32..).zip(bases) {
            rig.start_ring(&mut frontend, queue, base);
            frontend.enable_ring(queue, true).unwrap();
        }
        pair.send(5);
        pair.settle(5, true);
        eventually(|| {
            path(&host) == "relay" && note(&host).contains("once the guest's driver starts them anew")
        });
        pair.exchange(20);
        drop(frontend);
        eventually(|| host.model.mapped() == 0 && !host.model.works());
        // The next driver begins anew.
        let rig = Rig::new(Format::Split, 2);
        let (mut frontend, mut pair) = host.serve(&rig);
        kicked(&mut frontend, &mut pair, [0, 1]);
        eventually(|| path(&host) == "hardware");
        pair.exchange(20);
        drop(frontend);
        host.finish();
    }
}

#[test]
fn operator_takes_a_guest_from_hardware_to_the_relay_under_traffic_and_back_at_its_next_start() {
    for more in [RESETS_QUEUES, Features::NONE] {
        let host = Host::in_hardware(Model::with(more, 4), 1);
        let rig = Rig::new(Format::Split, 2);
        let (mut frontend, mut pair) = host.serve(&rig);
        kicked(&mut frontend, &mut pair, [0, 1]);
        eventually(|| path(&host) == "hardware");
        pair.exchange(10);
        pair.post(3);
        let resets = host.model.resets();
        assert!(set(&host, "relay").applied);
        eventually(|| path(&host) == "relay");
        assert_eq!(host.model.resets() == resets, more == RESETS_QUEUES, "one queue alone, where it can");
        pair.send(3);
        pair.settle(3, true);
        pair.exchange(100);
        let changed = set(&host, "hardware");
        assert!(!changed.applied && changed.notes[0].contains("starts its rings anew"), "{changed:?}");
        pair.exchange(10);
        assert_eq!(path(&host), "relay");
        // Its driver is loaded anew.
        for queue in [0, 1] {
            frontend.stop_ring(queue).unwrap();
        }
        drop(frontend);
        let rig = Rig::new(Format::Split, 2);
        let (mut frontend, mut pair) = host.serve(&rig);
        kicked(&mut frontend, &mut pair, [0, 1]);
        eventually(|| path(&host) == "hardware");
        pair.exchange(10);
        drop(frontend);
        host.finish();
    }
}

#[test]
fn guest_goes_on_relayed_when_somebody_resets_the_function_that_has_its_rings() {
    for more in [RESETS_QUEUES, Features::NONE] {
        let host = Host::in_hardware(Model::with(more, 4), 1);
        let rig = Rig::new(Format::Split, 2);
        let (mut frontend, mut pair) = host.serve(&rig);
        kicked(&mut frontend, &mut pair, [0, 1]);
        eventually(|| path(&host) == "hardware");
        pair.exchange(20);
        pair.post(2);
        eventually(|| host.model.works());
        // It answers nothing for a moment.
        host.model.rule(On::Read(0x04), Then::Give(0), 6);
        host.model.reset_underneath();
        pair.send(2);
        pair.settle(2, true);
        eventually(|| path(&host) == "relay" && note(&host).contains("were in use before"));
        pair.exchange(20);
        drop(frontend);
        host.finish();
    }
}

#[test]
fn descriptors_that_change_are_the_functions_at_once() {
    let host = Host::in_hardware(Model::with(RESETS_QUEUES, 4), 1);
    let rig = Rig::new(Format::Split, 2);
    let (mut frontend, mut pair) = host.serve(&rig);
    for _ in 0..3 {
        kicked(&mut frontend, &mut pair, [0, 1]);
        pair.exchange(5);
        let call = EventFd::new().unwrap();
        frontend.set_vring_call(0, Some(call.as_fd())).unwrap();
        frontend.status().unwrap();
        // It is owed one, since it may have missed others.
        eventually(|| call.clear());
        pair.rx.enable_calls();
        pair.post(1);
        pair.send(1);
        eventually(|| call.clear());
        pair.rx.disable_calls();
        pair.settle(1, true);
    }
    eventually(|| path(&host) == "hardware");
    // A front-end that polls gives no kicks, so that a core is needed.
    frontend.set_vring_kick(0, None).unwrap();
    frontend.status().unwrap();
    eventually(|| path(&host) == "relay");
    pair.exchange(5);
    drop(frontend);
    host.finish();
}

#[test]
fn pairs_are_in_hardware_together_and_one_that_stops_leaves_the_others_there() {
    for more in [RESETS_QUEUES, Features::NONE] {
        let host = Host::in_hardware(Model::with(more, 16), 4);
        let rig = Rig::new(Format::Split, 8);
        let mut frontend = host.connect();
        rig.introduce(&mut frontend);
        let mut pairs: Vec<HandPair<'_>> =
            (0..4).map(|pair| HandPair::new(&rig, pair, Position::START)).collect();
        for (at, pair) in (0..).zip(&mut pairs) {
            pair.start(&mut frontend, 0);
            kicked(&mut frontend, pair, [at * 2, at * 2 + 1]);
        }
        eventually(|| host.model.doorbells() == [0, 1, 2, 3, 4, 5, 6, 7]);
        for pair in &mut pairs {
            pair.exchange(20);
            pair.post(2);
        }
        eventually(|| host.model.commands().last() == Some(&(4, 0, vec![4, 0])));
        for queue in [6, 7] {
            frontend.enable_ring(queue, false).unwrap();
        }
        eventually(|| host.model.commands().last() == Some(&(4, 0, vec![3, 0])));
        for queue in [2, 3] {
            assert_eq!(frontend.stop_ring(queue).unwrap(), 20);
        }
        let left: &[u64] = if more == RESETS_QUEUES { &[0, 1, 4, 5, 6, 7] } else { &[] };
        assert_eq!(host.model.doorbells(), left);
        for at in [0, 2] {
            pairs[at].send(2);
            pairs[at].settle(2, true);
            pairs[at].exchange(20);
        }
        drop(frontend);
        host.finish();
    }
}

#[test]
fn what_cannot_be_in_hardware_is_relayed_and_says_why() {
    // One vector for two queues.
    let host = Host::in_hardware(Model::with(RESETS_QUEUES, 2), 1);
    let rig = Rig::new(Format::Split, 2);
    let (frontend, mut pair) = host.serve(&rig);
    eventually(|| note(&host).contains("fewer than 3 interrupt vectors"));
    pair.exchange(5);
    drop(frontend);
    host.finish();
    // Packed rings do not say where they stand: they are not offered, and relayed where they were.
    let host = Host::in_hardware(Model::with(RESETS_QUEUES, 4), 1);
    let offered = host.field("device_features").to_string();
    assert!(!offered.contains("RING_PACKED") && offered.contains("EVENT_IDX"), "{offered}");
    host.finish();
    let host = Host::bare(Model::with(RESETS_QUEUES, 4));
    host.add(1);
    let rig = Rig::new(Format::Packed, 2);
    let (frontend, mut pair) = host.serve(&rig);
    pair.exchange(5);
    assert!(!set(&host, "hardware").applied);
    eventually(|| note(&host).contains("not in force"));
    pair.exchange(5);
    drop(frontend);
    host.finish();
    // A pair whose other queue never comes.
    let host = Host::in_hardware(Model::with(RESETS_QUEUES, 4), 1);
    let rig = Rig::new(Format::Split, 2);
    let mut frontend = host.connect();
    rig.introduce(&mut frontend);
    rig.start_ring(&mut frontend, 1, 0);
    frontend.enable_ring(1, true).unwrap();
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.send(3);
    pair.settle(3, false);
    eventually(|| note(&host).contains("one queue that is started"));
    drop(frontend);
    host.finish();
    // Words that are none.
    let host = Host::bare(Model::new());
    let mut entry = entry(1);
    entry.attributes.insert("datapath".to_owned(), "fast".to_owned());
    let refused = host.subsystem.add(&entry).unwrap_err();
    assert!(refused.message.contains("must be relay or hardware"), "{refused:?}");
    host.finish();
}

#[test]
fn function_that_does_not_reset_a_queue_or_refuses_a_guests_ring_costs_nothing_but_its_path() {
    // It never says that the queue is reset: all of it is.
    let host = Host::in_hardware(Model::with(RESETS_QUEUES, 4), 1);
    let rig = Rig::new(Format::Split, 2);
    let (mut frontend, mut pair) = host.serve(&rig);
    kicked(&mut frontend, &mut pair, [0, 1]);
    eventually(|| path(&host) == "hardware");
    pair.exchange(5);
    host.model.rule(On::Read(QUEUE_RESET), Then::Give(1), usize::MAX);
    assert!(set(&host, "relay").applied);
    eventually(|| path(&host) == "relay");
    pair.exchange(5);
    host.model.forget_rules();
    drop(frontend);
    host.finish();
    // Its queues are smaller than the guest's.
    let model = Model::with(RESETS_QUEUES, 4);
    model.set_most_entries(16);
    let host = Host::in_hardware(model, 1);
    let rig = Rig::new(Format::Split, 2);
    let (mut frontend, mut pair) = host.serve(&rig);
    kicked(&mut frontend, &mut pair, [0, 1]);
    eventually(|| note(&host).contains("refuses queue 0 with 64 entries"));
    pair.exchange(70);
    drop(frontend);
    host.finish();
}

#[test]
fn function_whose_rings_begin_anywhere_goes_to_the_relay_and_back_at_once() {
    for more in [RESETS_QUEUES, Features::NONE] {
        let host = Host::in_hardware(Model::movable(more, 16), 4);
        let rig = Rig::new(Format::Split, 8);
        let mut frontend = host.connect();
        rig.introduce(&mut frontend);
        let mut pairs: Vec<HandPair<'_>> =
            (0..4).map(|pair| HandPair::new(&rig, pair, Position::START)).collect();
        for (at, pair) in (0..).zip(&mut pairs) {
            pair.start(&mut frontend, 0);
            kicked(&mut frontend, pair, [at * 2, at * 2 + 1]);
        }
        let all = [0, 1, 2, 3, 4, 5, 6, 7];
        eventually(|| host.model.doorbells() == all);
        for _ in 0..3 {
            for pair in &mut pairs {
                pair.exchange(30);
                pair.post(2);
            }
            assert!(set(&host, "relay").applied);
            eventually(|| path(&host) == "relay");
            for pair in &mut pairs {
                pair.send(2);
                pair.settle(2, true);
                pair.exchange(30);
                pair.post(2);
            }
            let changed = set(&host, "hardware");
            assert!(changed.applied && changed.notes.is_empty(), "{changed:?}");
            eventually(|| host.model.doorbells() == all);
            for pair in &mut pairs {
                pair.send(2);
                pair.settle(2, true);
            }
        }
        // A pair that stops and starts is in hardware again, and so are the others.
        let bases = [2, 3].map(|queue| frontend.stop_ring(queue).unwrap());
        for (queue, base) in (2u32..).zip(bases) {
            rig.start_ring(&mut frontend, queue, base);
            frontend.enable_ring(queue, true).unwrap();
        }
        kicked(&mut frontend, &mut pairs[1], [2, 3]);
        eventually(|| host.model.doorbells() == all);
        pairs.iter_mut().for_each(|pair| pair.exchange(30));
        drop(frontend);
        host.finish();
    }
}

/// A function that says late that a queue is reset: what is started meanwhile is served all the same, and so is what was.
#[test]
fn pair_that_cannot_be_handed_over_is_served_once_all_of_the_function_is_reset() {
    let host = Host::in_hardware(Model::with(RESETS_QUEUES, 16), 2);
    let rig = Rig::new(Format::Split, 4);
    let mut frontend = host.connect();
    rig.introduce(&mut frontend);
    let mut pairs: Vec<HandPair<'_>> =
        (0..2).map(|pair| HandPair::new(&rig, pair, Position::START)).collect();
    pairs[0].start(&mut frontend, 0);
    kicked(&mut frontend, &mut pairs[0], [0, 1]);
    eventually(|| host.model.doorbells() == [0, 1]);
    pairs[0].exchange(20);
    pairs[0].post(2);
    host.model.rule(On::Read(QUEUE_RESET), Then::Give(1), usize::MAX);
    pairs[1].start(&mut frontend, 0);
    kicked(&mut frontend, &mut pairs[1], [2, 3]);
    pairs[1].exchange(20);
    pairs[0].send(2);
    pairs[0].settle(2, true);
    pairs[0].exchange(20);
    host.model.forget_rules();
    drop(frontend);
    host.finish();
}
