//! The function as a bridge's uplink, beside guests.

use std::os::fd::AsFd;
use std::sync::Arc;

use ringway_control::operator::api::{DevChanged, DevSet, DeviceEntry, Queue, VstatsShow};
use ringway_control::operator::client::Client;
use ringway_control::settings::Settings;
use ringway_control::subsystem::{Options, Subsystem};
use ringway_pmd::driver::Attached;
use ringway_pmd::drivers::bridge::BridgeKind;
use ringway_pmd::drivers::virtio_pci::VirtioPci;
use ringway_pmd::notify::EventFd;
use ringway_ring::position::Position;
use ringway_ring::queue::{Completion, DriverBuffer, Format};
use ringway_vhost_user::frontend::Frontend;
use serde_json::Value;

use super::cores::two_cores;
use super::model::{MAC, Model, On, STATUS, Then};
use super::slot::ModelBus;
use super::support::{HandPair, Rig, SOON, eventually};
use super::{NAME, entry};

struct Bed {
    subsystem: Subsystem,
    bus: ModelBus,
    folder: tempfile::TempDir,
}

impl Bed {
    /// A bridge; the function is there if there is a model.
    fn new(model: Option<&Model>, devices: Vec<DeviceEntry>) -> Bed {
        Bed::on(model, devices, Vec::new())
    }

    /// The same, with workers on these cores.
    fn on(model: Option<&Model>, devices: Vec<DeviceEntry>, cores: Vec<usize>) -> Bed {
        let (bus, folder) = (ModelBus::new(), tempfile::tempdir().unwrap());
        if let Some(model) = model {
            bus.plug(model.device());
        }
        let attached = Attached::new(bus.clone(), vec![Box::new(VirtioPci)]);
        let options = Options {
            attachments: vec![Box::new(attached)],
            kinds: vec![Box::new(BridgeKind)],
            devices,
            ctl: Some(folder.path().join("ctl.sock")),
            settings: Settings { cores, ..Settings::default() },
            ..Options::embedded(folder.path())
        };
        Bed { subsystem: Subsystem::start(options).unwrap(), bus, folder }
    }

    /// A bridge with the function as its uplink, which works.
    fn with_uplink(model: &Model) -> Bed {
        let bed = Bed::new(Some(model), Vec::new());
        bed.subsystem.add(&uplink()).unwrap();
        bed.waits_for_uplink(model);
        bed
    }

    fn waits_for_uplink(&self, model: &Model) {
        eventually(|| model.works() && self.field("up0", "provisioned/link") == "up");
    }

    /// Another guest of the bridge, in service. `last`: of its address.
    fn guest<'rig>(&self, rig: &'rig Rig, last: u8) -> Guest<'rig> {
        self.guest_on(rig, last, None)
    }

    fn guest_on<'rig>(&self, rig: &'rig Rig, last: u8, core: Option<usize>) -> Guest<'rig> {
        let name = format!("vm{last}");
        let entry = DeviceEntry { name, mgmtdev: "bridge/br0".to_owned(), core, ..DeviceEntry::default() };
        self.subsystem.add(&entry).unwrap();
        let mut frontend = None;
        eventually(|| {
            frontend =
                Frontend::connect(&self.folder.path().join(format!("dev/{}.sock", entry.name)), SOON).ok();
            frontend.is_some()
        });
        let mut frontend = frontend.unwrap();
        rig.introduce(&mut frontend);
        let pair = HandPair::new(rig, 0, Position::START);
        pair.start(&mut frontend, rig.fresh());
        Guest { frontend, pair, mac: [2, 0, 0, 0, 0, last], posted: 0, sent: 0 }
    }

    /// Its pump, which there is one of.
    fn is_asleep(&self) -> bool {
        let shown: Value = self.subsystem.call("core.show", &serde_json::json!({})).unwrap();
        let cores = shown["core"].as_object().unwrap().values();
        let pumps: Vec<&Value> = cores.flat_map(|core| core["pumps"].as_array().unwrap()).collect();
        assert!(pumps.len() < 2, "{pumps:?}");
        // None while it is made anew.
        pumps.iter().any(|pump| pump["asleep"] == true)
    }

    fn field(&self, dev: &str, pointer: &str) -> Value {
        let shown = serde_json::to_value(self.subsystem.show(None).unwrap()).unwrap();
        shown.pointer(&format!("/dev/{dev}/{pointer}")).cloned().unwrap_or(Value::Null)
    }

    fn absent(&self, dev: &str) -> String {
        let shown = serde_json::to_value(self.subsystem.show(None).unwrap()).unwrap();
        shown["absent"][dev].as_str().unwrap_or_default().to_owned()
    }

    /// A counter of a queue.
    fn counter(&self, dev: &str, qidx: u32, pointer: &str) -> u64 {
        let queue = Queue { name: dev.to_owned(), qidx: Some(qidx) };
        let shown: VstatsShow = self.subsystem.call("dev.vstats.show", &queue).unwrap();
        let shown = serde_json::to_value(shown).unwrap();
        let found = shown.pointer(&format!("/vstats/{dev}/{pointer}")).and_then(Value::as_u64);
        found.unwrap_or_else(|| panic!("{pointer}: {shown}"))
    }

    /// Frames that were taken back from lanes to workers that had no core for a second or two, as on a busy machine.
    fn lost_in_lanes(&self) -> u64 {
        let of = |dev: &str| [0, 1].map(|qidx| self.counter(dev, qidx, "drops/lane_full"));
        ["up0", "vm1", "vm2"].into_iter().flat_map(of).sum()
    }

    /// How often it was told that the uplink is back.
    fn restored(&self) -> usize {
        let mut client = Client::connect(&self.folder.path().join("ctl.sock"), SOON).unwrap();
        let asked = serde_json::json!({ "since": 0, "types": ["uplink.restored"] });
        let page: Value = client.call("events", &asked).unwrap();
        page["events"].as_array().unwrap().len()
    }

    fn finish(self, models: &[&Model]) {
        drop(self.subsystem);
        for model in models {
            eventually(|| !model.is_open());
            assert_eq!(model.faults(), Vec::<String>::new());
        }
    }
}

fn uplink() -> DeviceEntry {
    let mut entry =
        DeviceEntry { name: "up0".to_owned(), mgmtdev: "bridge/br0".to_owned(), ..DeviceEntry::default() };
    entry.attributes.insert("uplink".to_owned(), NAME.to_owned());
    entry
}

/// Somebody on the wire.
const FAR: [u8; 6] = [2, 0, 0, 0, 0xff, 1];

struct Guest<'rig> {
    frontend: Frontend,
    pair: HandPair<'rig>,
    mac: [u8; 6],
    posted: u32,
    sent: u32,
}

impl Guest<'_> {
    /// Posts room for a frame.
    fn post(&mut self, frames: u32) {
        self.pair.post(frames);
        self.posted += frames;
    }

    /// Sends a frame of so many bytes.
    fn send(&mut self, to: [u8; 6], bytes: usize) {
        let rig = self.pair.rig;
        let gpa = rig.buffer(1, self.sent);
        let body: Vec<u8> = (0..bytes - 14).map(|at| (at as u32 * 7 + self.sent) as u8).collect();
        let frame = [&[0; 12][..], &to, &self.mac, &[0x88, 0xb5], &body].concat();
        rig.map.resolve(gpa, frame.len() as u64).unwrap().write(&frame);
        let buffer = DriverBuffer { gpa, len: frame.len() as u32, writable: false };
        self.pair.tx.add(&[buffer], self.sent).unwrap();
        self.sent += 1;
        if self.pair.tx.publish()
            && let Some(kick) = &self.pair.kick
        {
            kick.signal();
        }
        eventually(|| self.pair.tx.collect(&mut [Completion::default()]).unwrap() == 1);
    }

    /// The next frame that comes: to whom, from whom, bytes, and its last byte.
    fn next(&mut self) -> ([u8; 6], [u8; 6], usize, u8) {
        let mut came = None;
        eventually(|| {
            came = self.came();
            came.is_some()
        });
        came.unwrap()
    }

    /// A frame that has come.
    fn came(&mut self) -> Option<([u8; 6], [u8; 6], usize, u8)> {
        let mut done = [Completion::default()];
        if self.pair.rx.collect(&mut done).unwrap() == 0 {
            return None;
        }
        let mut frame = vec![0; done[0].written as usize];
        self.pair
            .rig
            .map
            .resolve(self.pair.rig.buffer(0, done[0].token), frame.len() as u64)
            .unwrap()
            .read(&mut frame);
        let frame = &frame[12..];
        Some((
            frame[..6].try_into().unwrap(),
            frame[6..12].try_into().unwrap(),
            frame.len(),
            *frame.last().unwrap(),
        ))
    }

    /// Asks somebody on the wire, and is answered.
    fn asks_far(&mut self, bytes: usize) {
        self.post(1);
        self.send(FAR, bytes);
        let last = ((bytes - 15) as u32 * 7 + self.sent - 1) as u8;
        assert_eq!(self.next(), (self.mac, FAR, bytes, last));
    }

    /// The same over lanes between cores, once more for each time that it got lost there.
    fn asks_far_across(&mut self, bed: &Bed, lost: &mut u64, bytes: usize) {
        self.post(1);
        loop {
            self.send(FAR, bytes);
            let last = ((bytes - 15) as u32 * 7 + self.sent - 1) as u8;
            let (mut came, before) = (None, *lost);
            eventually(|| {
                came = self.came();
                if came.is_none() {
                    *lost = bed.lost_in_lanes();
                }
                came.is_some() || *lost > before
            });
            if let Some(came) = came {
                return assert_eq!(came, (self.mac, FAR, bytes, last));
            }
        }
    }

    /// The same while earlier frames of other lengths may fill the way there, and their answers the way back.
    fn asks_far_behind_others(&mut self, bytes: usize) {
        self.post(1);
        eventually(|| {
            self.send(FAR, bytes);
            let Some((to, from, length, _)) = self.came() else { return false };
            assert_eq!((to, from), (self.mac, FAR));
            if length != bytes {
                self.post(1);
            }
            length == bytes
        });
    }
}

/// From one guest of a bridge to another and back.
fn talk<'rig>(a: &mut Guest<'rig>, b: &mut Guest<'rig>) {
    for _ in 0..2 {
        b.post(1);
        a.send(b.mac, 80);
        let (to, from, bytes, _) = b.next();
        assert_eq!((to, from, bytes), (b.mac, a.mac, 80));
        std::mem::swap(a, b);
    }
}

#[test]
fn guests_of_a_bridge_reach_the_wire_and_each_other_and_the_uplink_is_shown() {
    for format in [Format::Split, Format::Packed] {
        let model = Model::new().answers();
        let bed = Bed::with_uplink(&model);
        // It hears all that the wire has.
        assert!(model.commands().contains(&(0, 0, vec![1])), "{:?}", model.commands());
        let rigs = [Rig::new(format, 2), Rig::new(Format::Split, 2)];
        let mut a = bed.guest(&rigs[0], 1);
        let mut b = bed.guest(&rigs[1], 2);
        b.post(1);
        a.asks_far(60);
        // The first one to an unknown address goes to everybody.
        assert_eq!(b.next().1, a.mac);
        // Around every ring of the way several times: the guest's has 64 entries, the function's 256.
        for _ in 0..700 {
            a.asks_far(1514);
        }
        b.asks_far(14 + 46);
        // What a guest has got is counted a moment later.
        let counted = || [0, 1].map(|queue| bed.counter("up0", queue, "packets"));
        eventually(|| counted() == [702, 702]);
        talk(&mut b, &mut a);
        assert_eq!(counted(), [702, 702], "the wire has what is for a guest alone");
        for (pointer, is) in
            [("uplink", NAME), ("mode", "uplink"), ("state", "connected"), ("attributes/uplink", NAME)]
        {
            assert_eq!(bed.field("up0", pointer), is, "{pointer}");
        }
        assert_eq!(bed.field("up0", "provisioned/mac"), MAC.to_string());
        assert_eq!(bed.field("up0", "netdev"), Value::Null);
        // Longer than the function's MTU: dropped and counted at the uplink.
        let before = bed.counter("up0", 0, "drops/rx_oversize");
        a.send(FAR, 1519);
        eventually(|| {
            bed.counter("up0", 0, "drops/rx_oversize") + bed.counter("vm1", 1, "drops/oversize") > before
        });
        drop((a, b));
        bed.finish(&[&model]);
    }
}

#[test]
fn uplink_on_another_core_than_a_guest_is_reached_by_both_wherever_each_is_moved() {
    let Some(cores) = two_cores() else { return };
    let model = Model::new().answers();
    let bed = Bed::on(Some(&model), Vec::new(), cores.to_vec());
    bed.subsystem.add(&DeviceEntry { core: Some(cores[0]), ..uplink() }).unwrap();
    bed.waits_for_uplink(&model);
    let rigs = [Rig::new(Format::Split, 2), Rig::new(Format::Packed, 2)];
    let mut a = bed.guest_on(&rigs[0], 1, Some(cores[1]));
    let mut b = bed.guest_on(&rigs[1], 2, Some(cores[0]));
    // The first one to an unknown address goes to everybody.
    b.post(1);
    a.asks_far(60);
    assert_eq!(b.next().1, a.mac);
    let (mut asked, mut lost) = (1, bed.lost_in_lanes());
    for (dev, core) in [("vm2", 1), ("vm1", 0), ("up0", 1), ("vm2", 0), ("up0", 0), ("vm1", 1)] {
        for bytes in [60, 300, 1514].into_iter().cycle().take(60) {
            a.asks_far_across(&bed, &mut lost, bytes);
            b.asks_far_across(&bed, &mut lost, bytes);
        }
        talk(&mut a, &mut b);
        asked += 120;
        let set = DevSet { name: dev.to_owned(), core: Some(cores[core]), ..DevSet::default() };
        let _: DevChanged = bed.subsystem.call("dev.set", &set).unwrap();
        // At once, while it is moved, and after.
        a.asks_far_across(&bed, &mut lost, 100);
        b.asks_far_across(&bed, &mut lost, 100);
        asked += 2;
        eventually(|| bed.field(dev, "rings/0/core") == cores[core]);
    }
    // The wire has what is for the wire alone, and nothing got lost on either way without a name.
    let all = asked..=asked + lost;
    eventually(|| [0, 1].iter().all(|queue| all.contains(&bed.counter("up0", *queue, "packets"))));
    drop((a, b));
    bed.finish(&[&model]);
}

#[test]
fn function_is_one_devices_and_the_other_is_told_whose() {
    let model = Model::new();
    let bed = Bed::with_uplink(&model);
    let refused = bed.subsystem.add(&entry(1)).unwrap_err();
    assert_eq!((refused.held_by.as_deref(), refused.path.as_deref()), (Some("device up0"), Some("mgmtdev")));
    let mut second = DeviceEntry { name: "up1".to_owned(), ..uplink() };
    second.mgmtdev = "bridge/br1".to_owned();
    let refused = bed.subsystem.add(&second).unwrap_err();
    assert_eq!((refused.held_by.as_deref(), refused.path.as_deref()), (Some("device up0"), Some("uplink")));
    assert!(refused.hint.unwrap().contains("ringway dev del up0"));
    bed.subsystem.remove("up0").unwrap();
    eventually(|| !model.is_open());
    bed.subsystem.add(&entry(1)).unwrap();
    let refused = bed.subsystem.add(&uplink()).unwrap_err();
    assert_eq!((refused.held_by.as_deref(), refused.path.as_deref()), (Some("device d0"), Some("uplink")));
    bed.finish(&[&model]);
}

#[test]
fn function_that_goes_takes_its_port_along_and_brings_it_back_and_the_bridge_goes_on() {
    let model = Model::new().answers();
    let bed = Bed::with_uplink(&model);
    let rigs = [Rig::new(Format::Split, 2), Rig::new(Format::Packed, 2)];
    let (mut a, mut b) = (bed.guest(&rigs[0], 1), bed.guest(&rigs[1], 2));
    a.asks_far(100);
    talk(&mut a, &mut b);
    model.pull();
    // Under traffic to it, which goes nowhere.
    for _ in 0..100 {
        a.send(FAR, 100);
    }
    bed.bus.unplug(NAME);
    eventually(|| !bed.absent("up0").is_empty());
    eventually(|| !model.is_open() && model.mapped() == 0);
    talk(&mut a, &mut b);
    let other = Model::new().answers();
    bed.bus.plug(other.device());
    bed.waits_for_uplink(&other);
    a.asks_far(100);
    talk(&mut a, &mut b);
    // The host wants it back, and gives it once more.
    other.want_back();
    bed.bus.unplug(NAME);
    eventually(|| !other.is_open());
    talk(&mut a, &mut b);
    bed.bus.plug(other.device());
    bed.waits_for_uplink(&other);
    a.asks_far(100);
    drop((a, b));
    bed.finish(&[&model, &other]);
}

#[test]
fn uplink_that_was_asked_for_waits_for_its_function() {
    let bed = Bed::new(None, vec![uplink()]);
    assert!(bed.absent("up0").contains(NAME), "{}", bed.absent("up0"));
    let model = Model::new().answers();
    bed.bus.plug(model.device());
    bed.waits_for_uplink(&model);
    let rig = Rig::new(Format::Split, 2);
    let mut a = bed.guest(&rig, 1);
    a.asks_far(100);
    drop(a);
    bed.finish(&[&model]);
}

#[test]
fn idle_bridge_sleeps_until_its_guest_kicks_or_the_function_interrupts() {
    let model = Model::new().answers();
    let bed = Bed::with_uplink(&model);
    // Nothing comes.
    eventually(|| bed.is_asleep());
    let rig = Rig::new(Format::Split, 2);
    let mut a = bed.guest(&rig, 1);
    let kick = Arc::new(EventFd::new().unwrap());
    for (queue, base) in [(0, 0), (1, 0)] {
        a.frontend.stop_ring(queue).unwrap();
        let kick = Some(kick.as_fd());
        a.frontend.start_ring(queue, Rig::SIZE.into(), base, rig.addr(queue), kick, None).unwrap();
        a.frontend.enable_ring(queue, true).unwrap();
    }
    a.pair.kick = Some(Arc::clone(&kick));
    a.asks_far(100);
    for _ in 0..5 {
        eventually(|| bed.is_asleep());
        model.stall(true);
        a.post(1);
        a.send(FAR, 100);
        eventually(|| bed.is_asleep());
        // What the guest does is no part of what wakes it now.
        model.stall(false);
        assert_eq!(a.next().1, FAR);
    }
    drop(a);
    bed.finish(&[&model]);
}

#[test]
fn function_that_breaks_the_rules_of_its_rings_is_named_and_begins_anew() {
    for (queue, fault_of) in [(0, 1), (1, 0)] {
        let model = Model::new().answers();
        let bed = Bed::with_uplink(&model);
        let rig = Rig::new(Format::Split, 2);
        let mut a = bed.guest(&rig, 1);
        a.asks_far(100);
        let resets = model.resets();
        model.stall(true);
        model.lies_of_ids(queue);
        // What it sent is looked at when there is no room.
        for _ in 0..300 {
            a.send(FAR, 100);
        }
        eventually(|| model.resets() > resets);
        model.stall(false);
        let why = "the function broke the rules of its ring: device completed a buffer that it does not have";
        eventually(|| bed.field("up0", "history/last_end") == why);
        eventually(|| bed.counter("up0", fault_of, "faults/used_id") == 1);
        bed.waits_for_uplink(&model);
        eventually(|| bed.restored() == 1);
        a.asks_far_behind_others(101);
        drop(a);
        bed.finish(&[&model]);
    }
}

#[test]
fn function_that_is_not_trusted_is_no_uplink_and_is_taken_once_it_is() {
    let model = Model::new();
    model.rule(On::Command(0), Then::Give(1), usize::MAX);
    let bed = Bed::new(Some(&model), Vec::new());
    bed.subsystem.add(&uplink()).unwrap();
    let says = |words: &str| {
        let notes = bed.field("up0", "notes");
        notes.as_array().is_some_and(|notes| notes.iter().any(|note| note.as_str().unwrap().contains(words)))
    };
    eventually(|| {
        says("it cannot be promiscuous: the function refuses promiscuous mode") && says("trust on")
    });
    assert_eq!(bed.field("up0", "provisioned/link"), "down");
    model.forget_rules();
    bed.waits_for_uplink(&model);
    eventually(|| !says("promiscuous"));
    bed.finish(&[&model]);
}

#[test]
fn uplink_shows_its_link_and_a_function_that_needs_a_reset_gets_one() {
    let model = Model::new().answers();
    let bed = Bed::with_uplink(&model);
    let rig = Rig::new(Format::Split, 2);
    let mut a = bed.guest(&rig, 1);
    model.set_link(false);
    eventually(|| bed.field("up0", "provisioned/link") == "down");
    let why: Value = bed.subsystem.call("dev.why", &serde_json::json!({ "name": "up0" })).unwrap();
    assert_eq!(why["why"]["up0"][0]["cause"], "link_down", "{why}");
    model.set_link(true);
    eventually(|| bed.field("up0", "provisioned/link") == "up");
    let resets = model.resets();
    model.rule(On::Read(STATUS), Then::Give(0x4f), 1);
    model.set_link(true);
    eventually(|| model.resets() > resets);
    bed.waits_for_uplink(&model);
    eventually(|| bed.restored() == 1);
    a.asks_far(100);
    drop(a);
    bed.finish(&[&model]);
}

#[test]
fn function_without_a_promiscuous_mode_and_words_that_do_not_fit_are_refused() {
    let model = Model::new();
    // Without CTRL_RX.
    let offered = ringway_pmd::net::NIC.0 & !(1 << 18);
    model.rule(On::Read(0x04), Then::Give(offered & 0xffff_ffff), 1);
    let bed = Bed::new(Some(&model), Vec::new());
    eventually(|| bed.subsystem.add(&uplink()).unwrap_err().message.contains("no promiscuous mode"));
    let with = |key: &str, value: &str| {
        let mut entry = uplink();
        entry.attributes.insert(key.to_owned(), value.to_owned());
        entry
    };
    for (entry, at) in [
        (with("uplink", "pci/nowhere"), "uplink"),
        (with("uplink", "sim/net"), "uplink"),
        (with("tap", "tap0"), "tap"),
        (with("spoofchk", "on"), "spoofchk"),
        (with("flood_pps", "9"), "flood_pps"),
        (with("netns", "blue"), "netns"),
        (DeviceEntry { mac: Some("02:00:00:00:00:01".to_owned()), ..uplink() }, "mac"),
        (DeviceEntry { max_vqp: Some(2), ..uplink() }, "max_vqp"),
        (DeviceEntry { socket: Some("/tmp/up0.sock".into()), ..uplink() }, "socket"),
        (DeviceEntry { mode: Some(ringway_control::operator::api::Mode::Uplink), ..entry(1) }, "mode"),
    ] {
        let refused = bed.subsystem.add(&entry).unwrap_err();
        assert_eq!(refused.path.as_deref(), Some(at), "{refused:?}");
    }
    bed.finish(&[&model]);
    let model = Model::new();
    let bed = Bed::new(Some(&model), Vec::new());
    let refused = bed.subsystem.add(&DeviceEntry { mtu: Some(1501), ..uplink() }).unwrap_err();
    assert!(refused.message.contains("at most 1500"), "{refused:?}");
    bed.finish(&[&model]);
}
