//! Queue pairs of a controller as functions, each a management device of its own: who has how many, which namespace, and what becomes
//! of them when commands hang, the controller is reset, or it goes.

use ringway_control::fault::Fault;
use ringway_control::operator::api::{PortDeleted, PortEntry, PortSet, PortShow, PortState, Target};

use super::*;

fn port_name(number: u32) -> String {
    format!("{NAME}/{number}")
}

fn child(number: u32) -> String {
    format!("auxiliary/pci.0000:02:00.0.sf.{number}")
}

fn on_child(name: &str, number: u32, attributes: &[(&str, &str)]) -> DeviceEntry {
    DeviceEntry { mgmtdev: child(number), ..entry(name, attributes) }
}

impl Host {
    fn add_port(&self, number: u32, attributes: &[(&str, &str)]) -> Result<PortShow, Fault> {
        let attributes = attributes.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let entry = PortEntry {
            mgmtdev: NAME.to_owned(),
            flavour: "pcisf".to_owned(),
            pfnum: 0,
            sfnum: number,
            state: PortState::Active,
            attributes: attributes.collect(),
        };
        self.subsystem.call("port.add", &entry)
    }

    fn set_port(
        &self,
        number: u32,
        state: Option<PortState>,
        attributes: &[(&str, &str)],
    ) -> Result<PortShow, Fault> {
        let attributes = attributes.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let set = PortSet { name: port_name(number), state, attributes: attributes.collect() };
        self.subsystem.call("port.function.set", &set)
    }

    fn delete_port(&self, number: u32) -> PortDeleted {
        self.subsystem.call("port.del", &Target { name: port_name(number) }).unwrap()
    }

    /// With a function and its device on each of the two namespaces: 1 with f1, 2 with f2, of so many pairs each.
    fn with_functions(model: Model, pairs: &str) -> Host {
        let host = Host::bare(model);
        for (number, name) in [(1, "f1"), (2, "f2")] {
            let namespace = number.to_string();
            host.add_port(number, &[("namespace", &namespace), ("max_io_eqs", pairs)]).unwrap();
            host.subsystem.add(&on_child(name, number, &[])).unwrap();
        }
        host
    }
}

/// What is refused says this, who has it, and what to do.
fn refused<T: std::fmt::Debug>(outcome: Result<T, Fault>, words: &[&str]) {
    let fault = outcome.unwrap_err();
    let told = format!(
        "{} | {} | {}",
        fault.message,
        fault.held_by.unwrap_or_default(),
        fault.hint.unwrap_or_default()
    );
    assert!(words.iter().all(|word| told.contains(word)), "{told}");
}

#[test]
fn queue_pairs_are_handed_out_each_with_its_namespace_and_are_nobody_elses() {
    let host = Host::bare(Model::with_pairs(4));
    host.add_port(1, &[("namespace", "1")]).unwrap();
    host.add_port(2, &[("max_io_eqs", "2")]).unwrap();
    let held = ["port pci/0000:02:00.0/1 (1), port pci/0000:02:00.0/2 (2)", "ringway port del"];
    refused(
        host.add_port(3, &[("max_io_eqs", "2")]),
        &["has 1 of 4 queue pairs left, not 2", held[0], held[1]],
    );
    refused(host.add_port(3, &[("namespace", "9")]), &["has no namespace 9; it has 1, 2"]);
    refused(host.add_port(3, &[("max_io_eqs", "65")]), &["max_io_eqs 65: must be 1 to 64"]);
    refused(host.add_port(1, &[]), &["sfnum 1 of pci/0000:02:00.0 is taken"]);
    refused(host.set_port(1, None, &[("namespace", "2")]), &["is active", "state inactive"]);
    let shown = host.add_port(3, &[]).unwrap();
    let shown = serde_json::to_value(shown).unwrap();
    let function = &shown["port"][port_name(3)]["function"];
    assert_eq!((&function["namespace"], &function["max_io_eqs"]), (&0.into(), &1.into()));
    assert_eq!(function["opstate"], "attached");
    // All of them are promised: the controller has none of its own.
    refused(
        host.subsystem.add(&entry("d0", &[("namespace", "1")])),
        &["all 4 queue pairs of pci/0000:02:00.0 are promised to ports", held[0]],
    );
    host.delete_port(3);
    refused(
        host.subsystem.add(&on_child("f1", 1, &[("namespace", "2")])),
        &["has the namespace 1 of its port"],
    );
    refused(
        host.subsystem.add(&on_child("f1", 1, &[("num_queues", "2")])),
        &["the function has 1 queue pairs"],
    );
    refused(host.subsystem.add(&on_child("f2", 2, &[])), &["has the namespaces 1, 2: say namespace N"]);
    host.subsystem.add(&on_child("f1", 1, &[])).unwrap();
    refused(
        host.subsystem.add(&on_child("f2", 2, &[("namespace", "1")])),
        &[
            "namespace 1 of pci/0000:02:00.0 is a device's",
            "device f1",
            "another namespace, or ringway dev del f1",
        ],
    );
    host.subsystem.add(&on_child("f2", 2, &[("namespace", "2")])).unwrap();
    refused(host.subsystem.add(&on_child("g", 2, &[("namespace", "2")])), &["as many devices as it can"]);
    refused(host.subsystem.add(&entry("d0", &[("namespace", "2")])), &["is a device's", "device f2"]);
    let mut first = host.connect("f1", BlockOptions::default());
    let mut second = host.connect("f2", BlockOptions { queues: 2, ..BlockOptions::default() });
    let mut one = load(&mut first, work(4096, 4096), 100);
    load(&mut second, Work { seed: 9, ..work(4096, 4096) }, 100);
    eventually(|| host.model.pairs() == 3);
    one.check_all(&mut first.queues_mut()[0], SOON).unwrap();
    assert_eq!(one.counts().faults(), 0);
    assert_ne!(host.model.stored(1, 0, 4096), host.model.stored(2, 0, 4096));
    let of = |mgmtdev: &str, name: &str| host.setting_of(mgmtdev, name);
    assert_eq!((of(&child(2), "queue_pairs"), of(&child(2), "queue_pairs_in_use")), ("2".into(), "2".into()));
    assert_eq!((of(&child(1), "controller"), of(NAME, "own_queue_pairs")), (NAME.into(), "1".into()));
    host.finish();
}

/// Of one namespace there is one disk that writes, or any number that do not, whosever pairs they have.
#[test]
fn namespace_has_one_device_that_writes_or_any_that_do_not() {
    let host = Host::bare(Model::new());
    for number in 1..=3 {
        host.add_port(number, &[("namespace", "1")]).unwrap();
    }
    host.subsystem.add(&on_child("f1", 1, &[])).unwrap();
    refused(host.subsystem.add(&on_child("f2", 2, &[("ro", "on")])), &["is a device's", "device f1"]);
    let mut port = host.connect("f1", BlockOptions::default());
    assert_eq!(port.perform(Request::write(0, 4096), &mut [7; 4096]).unwrap().0, Status::Ok);
    host.subsystem.remove("f1").unwrap();
    eventually(|| host.subsystem.add(&on_child("f1", 1, &[("ro", "on")])).is_ok());
    host.subsystem.add(&on_child("f2", 2, &[("ro", "on")])).unwrap();
    host.subsystem.add(&entry("d0", &[("namespace", "1"), ("ro", "on")])).unwrap();
    refused(host.subsystem.add(&on_child("f3", 3, &[])), &["device d0", "ro on, another namespace, or"]);
    for name in ["f1", "f2", "d0"] {
        let (mut port, mut data) = (host.connect(name, BlockOptions::default()), [0; 4096]);
        assert_eq!(port.perform(Request::read(0, 4096), &mut data).unwrap().0, Status::Ok);
        assert_eq!(data, [7; 4096], "{name}");
        assert_eq!(port.perform(Request::write(0, 4096), &mut data).unwrap().0, Status::IoError);
    }
    host.finish();
}

/// The controller's own disks use what no port was promised, as it comes; who has the rest is told.
#[test]
fn queue_that_finds_no_pair_is_refused_with_who_has_them() {
    let host = Host::bare(Model::with_pairs(4));
    host.subsystem.add(&entry("d0", &[("namespace", "1")])).unwrap();
    let mut port = host.connect("d0", BlockOptions { queues: 3, ..BlockOptions::default() });
    load(&mut port, work(4096, 4096), 10);
    eventually(|| host.setting("own_queue_pairs_in_use") == "3");
    refused(
        host.add_port(1, &[("max_io_eqs", "2")]),
        &["has 1 of 4 queue pairs left, not 2", "device d0 (3)"],
    );
    host.add_port(1, &[("namespace", "2")]).unwrap();
    host.subsystem.add(&on_child("f1", 1, &[])).unwrap();
    port.stop().unwrap();
    eventually(|| host.field("d0/state") == "waiting");
    // It was made when there were four.
    let port = Port::connect(
        &host.socket("d0"),
        BlockOptions { queues: 4, patience: SOON, ..BlockOptions::default() },
    );
    eventually(|| host.field("d0/history/last_host_failure").is_string());
    let told = host.field("d0/history/last_host_failure").to_string();
    let words = ["3 of 4 queue pairs are no port's", "port pci/0000:02:00.0/1 (1), device d0 (3)"];
    assert!(words.iter().all(|word| told.contains(word)), "{told}");
    // The function's is its own.
    let mut its = host.connect("f1", BlockOptions::default());
    load(&mut its, work(4096, 4096), 10);
    drop(port);
    host.finish();
}

/// A command that is lost costs its own function's pair; the controller's reset is what all wait for. Nobody loses anything.
#[test]
fn functions_commands_that_hang_cost_its_own_pair_or_a_reset_and_nobody_loses_anything() {
    let host = Host::with_functions(Model::with_pairs(4), "1");
    let mut port = host.connect("f1", BlockOptions::default());
    let mut other = host.connect("f2", BlockOptions::default());
    let mut lane = load(&mut other, work(4096, 4096), 10);
    let through = |port: &mut Port, other: &mut Port, lane: &mut Lane| {
        std::thread::scope(|scope| {
            let first = scope.spawn(|| load(port, work(4096, 4096), 200));
            while !first.is_finished() {
                go_on(lane, &mut other.queues_mut()[0], 20);
            }
        });
        lane.check_all(&mut other.queues_mut()[0], SOON).unwrap();
        assert_eq!(lane.counts().faults(), 0, "{:?}", lane.counts());
    };
    host.model.rule(On::Io(WRITE), Then::Ignore, 1);
    through(&mut port, &mut other, &mut lane);
    assert_eq!(
        (host.setting("queue_pair_renewals").as_str(), host.setting("controller_resets").as_str()),
        ("1", "0")
    );
    host.model.rule(On::Io(READ), Then::Die, 1);
    through(&mut port, &mut other, &mut lane);
    assert_eq!(host.setting("controller_resets"), "1");
    host.model.forget_rules();
    assert_eq!(host.model.pairs(), 2);
    host.finish();
}

/// A port that is removed under load takes its device along at once, and nothing else; what its commands have is given on when they
/// are over.
#[test]
fn function_that_is_taken_away_under_load_leaves_nothing_behind() {
    let host = Host::with_functions(Model::with_pairs(2), "1");
    let mut port = host.connect("f1", BlockOptions::default());
    let mut other = host.connect("f2", BlockOptions::default());
    let mut lane = load(&mut other, work(4096, 4096), 10);
    load(&mut port, work(4096, 4096), 10);
    // Not done before it is aborted.
    host.model.rule(On::Io(WRITE), Then::Hang, 1);
    let before = host.model.count(WRITE);
    begin_write(&mut port, 9, 4096);
    eventually(|| host.model.count(WRITE) == before + 1);
    let deleted = host.delete_port(1);
    assert_eq!(deleted.devices, ["f1"]);
    eventually(|| port.frontend().queue_num().is_err());
    go_on(&mut lane, &mut other.queues_mut()[0], 50);
    // Another function has the pair, once the command is over.
    host.add_port(7, &[]).unwrap();
    refused(host.add_port(8, &[]), &["has 0 of 2 queue pairs left", "/2 (1), port pci/0000:02:00.0/7 (1)"]);
    let again = || host.subsystem.add(&on_child("f7", 7, &[("namespace", "1")]));
    eventually(|| again().is_ok());
    let mut port = host.connect("f7", BlockOptions::default());
    load(&mut port, work(4096, 4096), 10);
    lane.check_all(&mut other.queues_mut()[0], SOON).unwrap();
    assert_eq!(lane.counts().faults(), 0);
    // Inactive, it keeps its share, and what it is can be changed.
    host.set_port(7, Some(PortState::Inactive), &[]).unwrap();
    eventually(|| host.field("f7").is_null());
    refused(host.add_port(8, &[]), &["has 0 of 2 queue pairs left"]);
    host.set_port(7, Some(PortState::Active), &[("namespace", "1")]).unwrap();
    eventually(|| !host.field("f7").is_null());
    let mut port = host.connect("f7", BlockOptions::default());
    load(&mut port, work(4096, 4096), 10);
    host.model.forget_rules();
    host.finish();
}

/// Functions go with their controller, and are there again with it.
#[test]
fn controller_that_is_pulled_takes_its_functions_along_and_brings_them_back() {
    let host = Host::with_functions(Model::new(), "2");
    for name in ["f1", "f2"] {
        load(&mut host.connect(name, BlockOptions::default()), work(4096, 4096), 10);
    }
    let mut port = host.connect("f1", BlockOptions::default());
    host.model.pull();
    host.bus.unplug(NAME);
    eventually(|| host.field("f1").is_null() && host.field("f2").is_null());
    eventually(|| port.frontend().queue_num().is_err());
    let shown: PortShow = host.subsystem.call("port.show", &Select { name: None }).unwrap();
    assert_eq!(
        shown.absent.find(&port_name(1)).unwrap(),
        "pci/0000:02:00.0 is gone: it is gone from the bus"
    );
    eventually(|| !host.model.is_open());
    let other = Model::new();
    host.bus.plug(other.device());
    eventually(|| host.field("f1/state") == "waiting" && host.field("f2/state") == "waiting");
    for name in ["f1", "f2"] {
        load(&mut host.connect(name, BlockOptions::default()), work(4096, 4096), 10);
    }
    assert_eq!((host.model.faults(), other.faults()), (vec![], vec![]));
}
