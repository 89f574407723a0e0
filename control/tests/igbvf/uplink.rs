//! The function as a bridge's uplink: a filter a guest, and its own broadcasts that come back.

use ringway_control::operator::api::{DeviceEntry, Queue, VstatsShow};
use ringway_control::operator::client::Client;
use ringway_control::settings::Settings;
use ringway_control::subsystem::{Options, Subsystem};
use ringway_pmd::driver::Attached;
use ringway_pmd::drivers::bridge::BridgeKind;
use ringway_pmd::drivers::igbvf::Igbvf;
use ringway_pmd::net::Mac;
use ringway_ring::position::Position;
use ringway_ring::queue::{Completion, DriverBuffer, Format};
use ringway_vhost_user::frontend::Frontend;
use serde_json::Value;

use super::NAME;
use super::model::{Model, SET_MAC};
use super::slot::ModelBus;
use super::support::{HandPair, Rig, SOON, eventually};

pub(super) struct Bed {
    pub(super) subsystem: Subsystem,
    _bus: ModelBus,
    folder: tempfile::TempDir,
}

impl Bed {
    fn new(model: &Model) -> Bed {
        Bed::on(model, Vec::new(), None)
    }

    /// With workers on these cores; the uplink's port is on `core`, and so is what was given no other.
    pub(super) fn on(model: &Model, cores: Vec<usize>, core: Option<usize>) -> Bed {
        let (bus, folder) = (ModelBus::new(), tempfile::tempdir().unwrap());
        bus.plug(model.device());
        let attached = Attached::new(bus.clone(), vec![Box::new(Igbvf)]);
        let options = Options {
            attachments: vec![Box::new(attached)],
            kinds: vec![Box::new(BridgeKind)],
            ctl: Some(folder.path().join("ctl.sock")),
            settings: Settings { cores, ..Settings::default() },
            ..Options::embedded(folder.path())
        };
        let bed = Bed { subsystem: Subsystem::start(options).unwrap(), _bus: bus, folder };
        let mut entry = DeviceEntry { core, ..bed.entry("up0") };
        entry.attributes.insert("uplink".to_owned(), NAME.to_owned());
        bed.subsystem.add(&entry).unwrap();
        eventually(|| bed.field("provisioned/link") == "up");
        bed
    }

    fn entry(&self, name: &str) -> DeviceEntry {
        DeviceEntry { name: name.to_owned(), mgmtdev: "bridge/br0".to_owned(), ..DeviceEntry::default() }
    }

    fn guest<'rig>(&self, rig: &'rig Rig, mac: Mac) -> (Frontend, HandPair<'rig>) {
        self.guest_on(rig, mac, None)
    }

    pub(super) fn guest_on<'rig>(
        &self,
        rig: &'rig Rig,
        mac: Mac,
        core: Option<usize>,
    ) -> (Frontend, HandPair<'rig>) {
        let name = format!("vm{}", mac.0[5]);
        self.subsystem.add(&DeviceEntry { mac: Some(mac.to_string()), core, ..self.entry(&name) }).unwrap();
        let mut frontend = None;
        eventually(|| {
            frontend = Frontend::connect(&self.folder.path().join(format!("dev/{name}.sock")), SOON).ok();
            frontend.is_some()
        });
        let mut frontend = frontend.unwrap();
        rig.introduce(&mut frontend);
        let pair = HandPair::new(rig, 0, Position::START);
        pair.start(&mut frontend, rig.fresh());
        (frontend, pair)
    }

    fn field(&self, pointer: &str) -> Value {
        self.field_of("up0", pointer)
    }

    pub(super) fn field_of(&self, dev: &str, pointer: &str) -> Value {
        let shown = serde_json::to_value(self.subsystem.show(None).unwrap()).unwrap();
        shown.pointer(&format!("/dev/{dev}/{pointer}")).cloned().unwrap_or(Value::Null)
    }

    pub(super) fn notes(&self) -> String {
        self.field("notes").to_string()
    }

    pub(super) fn counter(&self, qidx: u32, pointer: &str) -> u64 {
        self.counters("up0", qidx).pointer(&format!("/{pointer}")).and_then(Value::as_u64).unwrap()
    }

    /// All of a queue.
    pub(super) fn counters(&self, dev: &str, qidx: u32) -> Value {
        let queue = Queue { name: dev.to_owned(), qidx: Some(qidx) };
        let shown: VstatsShow = self.subsystem.call("dev.vstats.show", &queue).unwrap();
        let shown = serde_json::to_value(shown).unwrap();
        shown["vstats"][dev].clone()
    }

    /// How often it was told that the uplink is back.
    fn restored(&self) -> usize {
        let mut client = Client::connect(&self.folder.path().join("ctl.sock"), SOON).unwrap();
        let asked = serde_json::json!({ "since": 0, "types": ["uplink.restored"] });
        let page: Value = client.call("events", &asked).unwrap();
        page["events"].as_array().unwrap().len()
    }

    pub(super) fn finish(self, model: &Model) {
        drop(self.subsystem);
        eventually(|| !model.is_open());
        assert_eq!(model.faults(), Vec::<String>::new());
    }
}

pub(super) const fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

pub(super) const ALL: Mac = Mac([0xff; 6]);

pub(super) fn frame(to: Mac, from: Mac, bytes: usize) -> Vec<u8> {
    let body: Vec<u8> = (0..bytes - 14).map(|at| at as u8).collect();
    [&to.0[..], &from.0, &[0x88, 0xb5], &body].concat()
}

pub(super) fn send(pair: &mut HandPair<'_>, nth: u32, frame: &[u8]) {
    let gpa = pair.rig.buffer(1, nth);
    let bytes = [&[0; 12][..], frame].concat();
    pair.rig.map.resolve(gpa, bytes.len() as u64).unwrap().write(&bytes);
    pair.tx.add(&[DriverBuffer { gpa, len: bytes.len() as u32, writable: false }], nth).unwrap();
    pair.tx.publish();
    eventually(|| pair.tx.collect(&mut [Completion::default()]).unwrap() == 1);
}

pub(super) fn next(pair: &mut HandPair<'_>) -> Vec<u8> {
    let mut done = [Completion::default()];
    eventually(|| pair.rx.collect(&mut done).unwrap() == 1);
    let mut bytes = vec![0; done[0].written as usize];
    pair.rig.map.resolve(pair.rig.buffer(0, done[0].token), bytes.len() as u64).unwrap().read(&mut bytes);
    bytes.split_off(12)
}

/// Stations that the PF was asked for a filter for.
pub(super) fn filters(model: &Model) -> Vec<Mac> {
    let asked = model.messages(SET_MAC).into_iter().filter(|(info, ..)| *info == 2);
    let mac = |(_, low, high): (u32, u32, u32)| {
        let ([a, b, c, d], [e, f, ..]) = (low.to_le_bytes(), high.to_le_bytes());
        Mac([a, b, c, d, e, f])
    };
    asked.map(mac).collect()
}

#[test]
fn guests_reach_the_wire_by_a_filter_each_and_what_comes_back_of_theirs_is_dropped() {
    let model = Model::new();
    let bed = Bed::new(&model);
    let rigs = [Rig::new(Format::Split, 2), Rig::new(Format::Packed, 2)];
    let (one, mut a) = bed.guest(&rigs[0], mac(1));
    let (two, mut b) = bed.guest(&rigs[1], mac(2));
    eventually(|| {
        let filters = filters(&model);
        filters.contains(&mac(1)) && filters.contains(&mac(2))
    });
    eventually(|| !bed.notes().contains("not reached"));
    let far = mac(0xee);
    // To everybody: the other guest has it, the wire has it, and gives it back.
    b.post(1);
    let called = frame(ALL, mac(1), 60);
    send(&mut a, 0, &called);
    assert_eq!(next(&mut b), called);
    eventually(|| model.sent().len() == 1);
    assert_eq!(model.sent()[0].bytes, called);
    a.post(2);
    b.post(1);
    // The model's wire gives back what it is sent.
    eventually(|| bed.counter(1, "drops/reflected") == 1);
    // It is where it was: what comes for it gets there, small and large, and nobody else has it.
    for bytes in [60, 1514] {
        let answer = frame(mac(1), far, bytes);
        model.receive(&answer, None);
        assert_eq!(next(&mut a), answer);
    }
    // Shorter than the hardware takes.
    send(&mut a, 1, &frame(far, mac(1), 15));
    send(&mut a, 2, &frame(far, mac(1), 1514));
    eventually(|| model.sent().len() == 3);
    let sent = model.sent();
    assert_eq!((sent[1].bytes.len(), sent[2].bytes.len()), (17, 1514));
    assert_eq!(sent[1].bytes[15..], [0, 0]);
    // A guest that leaves needs no filter: it is taken back, with all others, once another one needs the room.
    model.set_most_filters(2);
    drop((two, b));
    bed.subsystem.remove("vm2").unwrap();
    let (three, c) = bed.guest(&rigs[1], mac(3));
    eventually(|| model.filters() == [mac(1), mac(3)]);
    eventually(|| !bed.notes().contains("not reached"));
    drop((one, a, three, c));
    bed.finish(&model);
}

#[test]
fn uplink_whose_pf_does_not_trust_it_says_so_and_one_whose_pf_was_reset_begins_anew() {
    // A PF that fixed the address lets nobody else be reached.
    let model = Model::with_mac(mac(9));
    let bed = Bed::new(&model);
    let rig = Rig::new(Format::Split, 2);
    let (one, a) = bed.guest(&rig, mac(1));
    eventually(|| {
        bed.notes().contains("1 of 1 stations are not reached") && bed.notes().contains("trust on")
    });
    assert!(bed.notes().contains(&mac(1).to_string()));
    drop((one, a));
    bed.finish(&model);

    let model = Model::new();
    let bed = Bed::new(&model);
    let (_one, mut a) = bed.guest(&rig, mac(1));
    eventually(|| filters(&model).contains(&mac(1)));
    let (before, resets) = (filters(&model).len(), model.resets());
    model.reset_pf();
    eventually(|| model.resets() > resets && filters(&model).len() > before);
    eventually(|| bed.field("provisioned/link") == "up" && model.works());
    eventually(|| bed.restored() == 1);
    let begun = model.sent().len();
    send(&mut a, 0, &frame(ALL, mac(1), 60));
    eventually(|| model.sent().len() == begun + 1);
    drop(a);
    bed.finish(&model);
}
