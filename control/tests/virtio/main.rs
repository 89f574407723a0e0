//! The driver of virtio functions on a function in this process, under the whole subsystem and a front-end of ours: frames by
//! the relay, and what is done about a function that lies, hangs, or goes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]
#![expect(unreachable_pub, reason = "modules that the test has for itself")]

#[path = "../shared/cores.rs"]
mod cores;
mod hardware;
#[path = "../shared/lies.rs"]
mod lies;
mod lives;
mod model;
#[path = "../shared/net_life.rs"]
mod net_life;
#[path = "../shared/pace.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod pace;
#[path = "../shared/slot.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod slot;
#[path = "../vhost_user/support.rs"]
#[expect(dead_code, reason = "shared with another test")]
mod support;
mod uplink;

use ringway_control::fault::{Fault, Kind};
use ringway_control::frontends::life::status;
use ringway_control::operator::api::{DevShow, DeviceEntry, MgmtdevShow, Select};
use ringway_control::subsystem::{Options, Subsystem};
use ringway_pmd::bus::virt::VirtualBus;
use ringway_pmd::driver::{Attached, Driver as _};
use ringway_pmd::drivers::functions::drivers;
use ringway_pmd::drivers::virtio_pci::VirtioPci;
use ringway_pmd::vdpa::DriverError;
use ringway_ring::features::Features;
use ringway_ring::position::Position;
use ringway_ring::queue::Format;
use ringway_vhost_user::frontend::Frontend;
use serde_json::Value;

use self::model::{MAC, Model, On, QUEUE_VECTOR, STATUS, Then};
use self::slot::ModelBus;
use self::support::{HandPair, Rig, SOON, eventually};

const NAME: &str = "pci/0000:07:00.1";

struct Host {
    subsystem: Subsystem,
    bus: ModelBus,
    model: Model,
    folder: tempfile::TempDir,
}

impl Host {
    /// A subsystem with the function, and no device yet.
    fn bare(model: Model) -> Host {
        let (bus, folder) = (ModelBus::new(), tempfile::tempdir().unwrap());
        bus.plug(model.device());
        let attached = Attached::new(bus.clone(), drivers(&VirtualBus::default()));
        let options = Options { attachments: vec![Box::new(attached)], ..Options::embedded(folder.path()) };
        Host { subsystem: Subsystem::start(options).unwrap(), bus, model, folder }
    }

    /// With a device of so many pairs.
    fn new(pairs: u16) -> Host {
        let host = Host::bare(Model::new());
        host.add(pairs);
        host
    }

    fn add(&self, pairs: u16) {
        self.subsystem.add(&entry(pairs)).unwrap();
    }

    /// With a device of so many pairs that is to be in hardware, if it can.
    fn in_hardware(model: Model, pairs: u16) -> Host {
        let host = Host::bare(model);
        let mut entry = entry(pairs);
        entry.attributes.insert("datapath".to_owned(), "hardware".to_owned());
        host.subsystem.add(&entry).unwrap();
        host
    }

    fn connect(&self) -> Frontend {
        // Who comes before the end of the one before it was noticed is turned away after a moment.
        eventually(|| self.field("state") == "waiting");
        let mut frontend = None;
        eventually(|| {
            frontend = Frontend::connect(&self.folder.path().join("dev/d0.sock"), SOON).ok();
            frontend.is_some()
        });
        frontend.unwrap()
    }

    /// A front-end with the first pair of a rig in service.
    fn serve<'rig>(&self, rig: &'rig Rig) -> (Frontend, HandPair<'rig>) {
        let mut frontend = self.connect();
        rig.introduce(&mut frontend);
        let pair = HandPair::new(rig, 0, Position::START);
        pair.start(&mut frontend, rig.fresh());
        (frontend, pair)
    }

    fn show(&self) -> Value {
        let shown: DevShow = self.subsystem.show(None).unwrap();
        serde_json::to_value(shown).unwrap()
    }

    fn field(&self, pointer: &str) -> Value {
        self.show().pointer(&format!("/dev/d0/{pointer}")).cloned().unwrap_or(Value::Null)
    }

    fn mgmtdevs(&self) -> MgmtdevShow {
        self.subsystem.call("mgmtdev.show", &Select { name: None }).unwrap()
    }

    /// The driver kept to the rules, and to the end let the function go as it has to be let go.
    fn finish(self) {
        let Host { subsystem, model, .. } = self;
        drop(subsystem);
        eventually(|| !model.is_open());
        assert_eq!(model.faults(), Vec::<String>::new());
    }
}

fn entry(pairs: u16) -> DeviceEntry {
    let mut entry = DeviceEntry { name: "d0".to_owned(), mgmtdev: NAME.to_owned(), ..DeviceEntry::default() };
    entry.max_vqp = Some(pairs);
    entry
}

#[test]
fn function_is_shown_with_what_it_is_and_its_device_has_its_address() {
    let host = Host::new(1);
    let shown = serde_json::to_value(host.mgmtdevs()).unwrap();
    let function = &shown["mgmtdev"][NAME];
    assert_eq!(function["max_supported_vqs"], 8);
    let its = serde_json::json!({ "data_paths": "relay,hardware", "mac": MAC.to_string(), "mtu": "1500", "numa_node": "1" });
    assert_eq!(function["settings"], its);
    assert_eq!(host.field("provisioned/mac"), MAC.to_string());
    assert_eq!(host.field("data_path"), "relay");
    host.finish();
}

#[test]
fn guests_rings_of_either_format_are_relayed_and_go_on_where_they_stopped() {
    let host = Host::new(1);
    for format in [Format::Split, Format::Packed] {
        let rig = Rig::new(format, 2);
        let (mut frontend, mut pair) = host.serve(&rig);
        // Around every ring of the way several times: the guest's has 64 entries, the function's 256.
        pair.exchange(700);
        // Buffers that the function has are the guest's again after a stop, and are filled after the next start.
        pair.post(3);
        eventually(|| host.model.works());
        let bases = [0, 1].map(|queue| frontend.stop_ring(queue).unwrap());
        assert!(!host.model.works(), "a function that has a guest's buffers works on");
        for (queue, base) in (0u32..).zip(bases) {
            rig.start_ring(&mut frontend, queue, base);
            frontend.enable_ring(queue, true).unwrap();
        }
        pair.send(3);
        pair.settle(3, true);
        pair.exchange(70);
        drop(frontend);
        // Nothing of a guest that left can be reached by the function.
        eventually(|| host.model.mapped() == 0 && !host.model.works());
    }
    host.finish();
}

#[test]
fn pair_that_stops_has_its_function_begin_anew_and_the_others_go_on() {
    let host = Host::new(4);
    let rig = Rig::new(Format::Split, 8);
    let mut frontend = host.connect();
    rig.introduce(&mut frontend);
    let mut pairs: Vec<HandPair<'_>> =
        (0..4).map(|pair| HandPair::new(&rig, pair, Position::START)).collect();
    for pair in &pairs {
        pair.start(&mut frontend, 0);
    }
    for pair in &mut pairs {
        pair.exchange(20);
        pair.post(2);
    }
    let told = |host: &Host| host.model.commands().iter().filter(|(class, ..)| *class == 4).count();
    eventually(|| host.model.commands().contains(&(4, 0, vec![4, 0])));
    let (resets, before) = (host.model.resets(), told(&host));
    for queue in [6, 7] {
        frontend.stop_ring(queue).unwrap();
    }
    assert!(host.model.resets() > resets);
    eventually(|| told(&host) > before && host.model.commands().last() == Some(&(4, 0, vec![3, 0])));
    for pair in &mut pairs[..3] {
        // What was posted before is filled by what is sent now.
        pair.send(2);
        pair.settle(2, true);
        pair.exchange(20);
    }
    drop(frontend);
    host.finish();
}

#[test]
fn function_is_told_how_many_pairs_are_used() {
    let host = Host::new(4);
    let rig = Rig::new(Format::Split, 8);
    let mut frontend = host.connect();
    rig.introduce(&mut frontend);
    let pairs: Vec<HandPair<'_>> = (0..4).map(|pair| HandPair::new(&rig, pair, Position::START)).collect();
    for pair in &pairs {
        pair.start(&mut frontend, 0);
    }
    // A guest that uses two of four pairs leaves the others started and disabled.
    for (pairs, queues) in [(2, [4, 5, 6, 7]), (1, [2, 3, 2, 3])] {
        for queue in queues {
            frontend.enable_ring(queue, false).unwrap();
        }
        eventually(|| host.model.commands().last() == Some(&(4, 0, vec![pairs, 0])));
    }
    for queue in 2..8 {
        frontend.enable_ring(queue, true).unwrap();
    }
    eventually(|| host.model.commands().last() == Some(&(4, 0, vec![4, 0])));
    drop(frontend);
    host.finish();
}

#[test]
fn function_that_is_pulled_out_takes_its_device_along_and_brings_it_back() {
    let host = Host::new(1);
    let rig = Rig::new(Format::Split, 2);
    let (mut frontend, mut pair) = host.serve(&rig);
    pair.exchange(20);
    pair.post(4);
    host.model.pull();
    host.bus.unplug(NAME);
    eventually(|| host.show()["absent"]["d0"].is_string());
    // The front-end is told by the end of its connection.
    eventually(|| frontend.queue_num().is_err());
    eventually(|| host.model.mapped() == 0 && !host.model.is_open());
    let other = Model::new();
    host.bus.plug(other.device());
    eventually(|| host.field("state") == "waiting");
    let rig = Rig::new(Format::Packed, 2);
    let (_frontend, mut pair) = host.serve(&rig);
    pair.exchange(20);
    assert_eq!((host.model.faults(), other.faults()), (vec![], vec![]));
}

#[test]
fn function_that_somebody_else_resets_begins_anew_where_its_rings_stand() {
    for model in [Model::new(), Model::with(Features::RING_RESET, 4)] {
        let host = Host::bare(model);
        host.add(1);
        let rig = Rig::new(Format::Split, 2);
        let (frontend, mut pair) = host.serve(&rig);
        pair.exchange(20);
        for turn in 0..3 {
            pair.post(2);
            eventually(|| host.model.works());
            if turn == 1 {
                // While that goes on it answers nothing: it reads as zeros, or all ones.
                host.model.rule(On::Read(0x04), Then::Give(0), 6);
                host.model.rule(On::Read(STATUS), Then::Give(0xff), 1);
            }
            host.model.reset_underneath();
            pair.send(2);
            pair.settle(2, true);
        }
        drop(frontend);
        host.finish();
    }
}

#[test]
fn function_that_the_host_wants_back_is_let_go() {
    let host = Host::new(1);
    let rig = Rig::new(Format::Split, 2);
    let (mut frontend, mut pair) = host.serve(&rig);
    pair.exchange(20);
    host.model.want_back();
    eventually(|| frontend.queue_num().is_err());
    eventually(|| !host.model.is_open());
    host.finish();
}

#[test]
fn link_of_the_function_is_the_guests() {
    let host = Host::new(1);
    let rig = Rig::new(Format::Split, 2);
    let (mut frontend, _pair) = host.serve(&rig);
    assert_eq!(frontend.config(6, 2).unwrap(), [1, 0]);
    host.model.set_link(false);
    eventually(|| host.field("provisioned/link") == "down");
    eventually(|| frontend.config(6, 2).unwrap() == [0, 0]);
    let why: Value = host.subsystem.call("dev.why", &serde_json::json!({ "name": "d0" })).unwrap();
    let first = &why["why"]["d0"][0];
    assert!(
        first["cause"] == "link_down" && first["says"].as_str().unwrap().contains("has no link"),
        "{why}"
    );
    drop(frontend);
    host.finish();
}

#[test]
fn function_that_needs_a_reset_says_so_to_operator_and_guest() {
    let host = Host::new(1);
    let rig = Rig::new(Format::Split, 2);
    let (mut frontend, _pair) = host.serve(&rig);
    host.model.rule(On::Read(STATUS), Then::Give(0x4f), 1);
    // An interrupt of its configuration comes with it (virtio 1.3 §2.1.2).
    host.model.set_link(true);
    let is_told = |why: &Value| why.as_str().is_some_and(|why| why.contains("the function needs a reset"));
    eventually(|| is_told(&host.field("history/last_failure")));
    eventually(|| frontend.status().unwrap() & status::NEEDS_RESET != 0);
    drop(frontend);
    host.finish();
}

/// What a function does wrong, and what is said of it where its guest's queues are to start.
#[test]
fn function_that_lies_costs_its_own_guest_alone_and_is_named() {
    let status = On::Read(STATUS);
    for (on, then, times, words) in [
        (status, Then::Give(0x03), 10_000, "refuses the features"),
        (status, Then::Give(0xff), 10_000, "does not answer any more"),
        (status, Then::Give(0x0f), usize::MAX, "did not reset"),
        (On::Read(0x18), Then::Give(0), 10_000, "no legal size"),
        (On::Read(QUEUE_VECTOR), Then::Give(0xffff), 10_000, "interrupt vector"),
        (On::Read(0x1e), Then::Give(0xffff), 10_000, "not in its notification area"),
        (On::Read(0x04), Then::Give(0), 10_000, "which it offered before"),
    ] {
        let host = Host::new(1);
        let rig = Rig::new(Format::Split, 2);
        let mut frontend = host.connect();
        rig.introduce(&mut frontend);
        // Its reset on the way up is the first that is read: with the third rule it never comes to its end.
        if then == Then::Give(0x03) {
            host.model.rule(status, Then::Give(0), 1);
        }
        host.model.rule(on, then, times);
        rig.start_ring(&mut frontend, 0, 0);
        let _ = frontend.enable_ring(0, true);
        eventually(|| host.field("rings/0/fault") == "driver_refused");
        eventually(|| host.field("history/last_host_failure").to_string().contains(words));
        host.model.forget_rules();
        // It serves the next.
        drop(frontend);
        eventually(|| host.field("state") == "waiting");
        let rig = Rig::new(Format::Packed, 2);
        let (frontend, mut pair) = host.serve(&rig);
        pair.exchange(5);
        drop(frontend);
        host.finish();
    }
}

#[test]
fn function_that_does_not_stop_is_reset_by_the_host() {
    let host = Host::new(1);
    let rig = Rig::new(Format::Split, 2);
    let (mut frontend, mut pair) = host.serve(&rig);
    pair.exchange(5);
    pair.post(1);
    eventually(|| host.model.works());
    host.model.rule(On::Write(STATUS), Then::Ignore, 1);
    frontend.stop_ring(0).unwrap();
    frontend.stop_ring(1).unwrap();
    assert!(!host.model.works());
    drop(frontend);
    host.finish();
}

#[test]
fn function_without_queues_or_a_still_configuration_is_told_of_and_one_in_use_with_its_holder() {
    for (on, then, words) in [
        (On::Read(0x12), Then::Give(1), "no pair"),
        (On::Read(0x04), Then::Give(0), "VERSION_1"),
        // Its 33rd feature is missing.
        (On::Read(0x04), Then::Give(0xffff_fffd), "iommu_platform=on"),
        // Of 4 pairs it has the queues of 2.
        (On::Read(0x12), Then::Give(5), "says that it has 4 pairs"),
        (On::Read(STATUS), Then::Give(0xff), "does not answer"),
    ] {
        let model = Model::new();
        model.rule(on, then, 10_000);
        let refused = VirtioPci.probe(NAME, model.device()).err().unwrap();
        assert!(refused.to_string().contains(words), "{refused}");
        let host = Host::bare(model);
        assert!(host.mgmtdevs().mgmtdev.0.iter().all(|(name, _)| name != NAME));
        host.finish();
    }
    let model = Model::new();
    model.rule_of_generations();
    assert!(VirtioPci.probe(NAME, model.device()).err().unwrap().to_string().contains("configuration still"));
    let model = Model::new();
    let opened = model.device().opener;
    let opened = opened().unwrap();
    let refused = VirtioPci.probe(NAME, model.device()).err().unwrap();
    let DriverError::Conflict { held_by: Some(holder), .. } = refused else { panic!("{refused}") };
    assert_eq!(holder, "process 1 (other)");
    drop(opened);
}

#[test]
fn function_that_cannot_be_had_says_why_wherever_it_is_named() {
    let host = Host::bare(Model::with(Features::NONE, 1));
    let in_list =
        || host.mgmtdevs().unusable.0.iter().find(|(name, _)| name == NAME).map(|(_, why)| why.clone());
    let asked = || -> Result<MgmtdevShow, Fault> {
        host.subsystem.call("mgmtdev.show", &Select { name: Some(NAME.to_owned()) })
    };
    let says = |words: &str| {
        eventually(|| in_list().is_some_and(|why| why.contains(words)));
        let (shown, added) = (asked().err().unwrap(), host.subsystem.add(&entry(1)).err().unwrap());
        assert_eq!(shown, added);
        assert!(added.message.starts_with(NAME) && added.message.contains(words), "{added:?}");
        added
    };
    let few = says("it has 1 interrupt vectors, and needs one for its queues and one for its configuration");
    assert!(few.hint.is_some_and(|hint| hint.contains("function")));
    host.bus.unplug(NAME);
    eventually(|| in_list().is_none());
    assert_eq!(asked().err().unwrap().kind, Kind::NotFound);

    // A device that was there waits, and says what for.
    let model = Model::new();
    host.bus.plug(model.device());
    eventually(|| asked().is_ok_and(|shown| shown.mgmtdev.0.len() == 1));
    host.add(1);
    host.bus.unplug(NAME);
    let waits = || host.show()["absent"]["d0"].as_str().unwrap_or_default().to_owned();
    eventually(|| waits().contains("gone"));
    let opened = (model.device().opener)().unwrap();
    host.bus.plug(model.device());
    eventually(|| waits().contains("in use by process 1 (other); try: stop that process"));
    let busy = says("in use by process 1 (other)");
    assert_eq!((busy.kind, busy.held_by.as_deref()), (Kind::Conflict, Some("process 1 (other)")));
    drop(opened);
    host.bus.plug(model.device());
    eventually(|| host.field("state") == "waiting");
    assert_eq!(in_list(), None);
}

#[test]
fn address_that_the_function_cannot_have_and_an_mtu_beyond_its_own_are_refused() {
    let host = Host::bare(Model::new());
    for (entry, words) in [
        (
            DeviceEntry { mac: Some("52:54:00:00:00:09".parse().unwrap()), ..entry(1) },
            "ip link set PF vf N mac",
        ),
        (DeviceEntry { mtu: Some(1501), ..entry(1) }, "at most 1500"),
        (entry(5), "supports 8"),
    ] {
        let refused = host.subsystem.add(&entry).unwrap_err();
        assert!(refused.message.contains(words), "{refused:?}");
    }
    host.finish();
}

#[test]
fn function_that_does_not_send_is_stopped_all_the_same_and_what_waited_goes_later() {
    let host = Host::new(1);
    let rig = Rig::new(Format::Split, 2);
    let (mut frontend, mut pair) = host.serve(&rig);
    pair.exchange(5);
    host.model.stall(true);
    pair.post(1);
    pair.send(1);
    pair.rests();
    let bases = [0, 1].map(|queue| frontend.stop_ring(queue).unwrap());
    assert_eq!(bases, [5, 5], "what the function did not finish is the guest's again");
    host.model.stall(false);
    for (queue, base) in (0u32..).zip(bases) {
        rig.start_ring(&mut frontend, queue, base);
        frontend.enable_ring(queue, true).unwrap();
    }
    pair.settle(1, true);
    drop(frontend);
    host.finish();
}

#[test]
fn large_function_is_used_as_far_as_a_device_may_be() {
    let model = Model::new();
    // As many queues, and pairs, as none of ours has.
    model.rule(On::Read(0x12), Then::Give(201), usize::MAX);
    model.rule(On::Read(0x2008), Then::Give(100), usize::MAX);
    model.rule(On::Read(0x2009), Then::Give(0), usize::MAX);
    let host = Host::bare(model);
    let shown = serde_json::to_value(host.mgmtdevs()).unwrap();
    assert_eq!(shown["mgmtdev"][NAME]["max_supported_vqs"], 32);
    host.finish();
    // Its queues have more entries than are ever with a function.
    let host = Host::new(1);
    let rig = Rig::new(Format::Split, 2);
    let mut frontend = host.connect();
    rig.introduce(&mut frontend);
    host.model.set_most_entries(4096);
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, 0);
    pair.exchange(5);
    assert_eq!(host.model.queue_size(0), 1024);
    drop(frontend);
    host.finish();
}
