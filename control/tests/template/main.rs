//! The template driver on the model bus, under the whole subsystem and a front-end of ours: what the contract promises of
//! devices that hardware serves, that come and go, and that fail.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]
#![expect(unreachable_pub, reason = "modules that the test has for itself")]

mod card;
mod divided;
mod driver;
#[path = "../shared/pace.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod pace;
#[path = "../vhost_user/support.rs"]
#[expect(dead_code, reason = "shared with another test")]
mod support;

use ringway_control::frontends::life::status;
use ringway_control::operator::api::{DevShow, DeviceEntry, MgmtdevShow, Select};
use ringway_control::subsystem::{Options, Subsystem};
use ringway_pmd::driver::Attached;
use ringway_ring::position::Position;
use ringway_ring::queue::Format;
use ringway_vhost_user::frontend::{BackendMessage, Frontend};
use serde_json::Value;

use self::card::{Card, Cause, LOOP_CARD, ModelBus};
use self::driver::LoopCardDriver;
use self::support::{HandPair, Rig, SOON, eventually};

struct Host {
    subsystem: Subsystem,
    bus: ModelBus,
    card: Card,
    folder: tempfile::TempDir,
}

impl Host {
    /// A subsystem with the card in its slot and a device on it.
    fn new() -> Host {
        let (bus, card) = (ModelBus::new(), Card::new(LOOP_CARD));
        bus.plug("slot0", &card);
        let host = Host::empty(bus, card);
        host.subsystem.add(&entry()).unwrap();
        host
    }

    fn empty(bus: ModelBus, card: Card) -> Host {
        Host::with(bus, card, Vec::new())
    }

    fn with(bus: ModelBus, card: Card, devices: Vec<DeviceEntry>) -> Host {
        let folder = tempfile::tempdir().unwrap();
        let attached = Attached::new(bus.clone(), vec![Box::new(LoopCardDriver)]);
        let options =
            Options { attachments: vec![Box::new(attached)], devices, ..Options::embedded(folder.path()) };
        Host { subsystem: Subsystem::start(options).unwrap(), bus, card, folder }
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

    fn mgmtdevs(&self) -> Vec<String> {
        let shown: MgmtdevShow = self.subsystem.call("mgmtdev.show", &Select { name: None }).unwrap();
        shown.mgmtdev.0.into_iter().map(|(name, _)| name).collect()
    }

    fn show(&self) -> DevShow {
        self.subsystem.show(None).unwrap()
    }

    /// One field of the device.
    fn field(&self, pointer: &str) -> Value {
        let shown = serde_json::to_value(self.show()).unwrap();
        shown.pointer(&format!("/dev/d0/{pointer}")).cloned().unwrap_or(Value::Null)
    }

    fn is_absent_because(&self, why: &str) -> bool {
        let shown = self.show();
        shown.dev.0.is_empty() && shown.absent.0.iter().any(|(name, text)| name == "d0" && text.contains(why))
    }
}

fn entry() -> DeviceEntry {
    DeviceEntry { name: "d0".to_owned(), mgmtdev: "model/slot0".to_owned(), ..DeviceEntry::default() }
}

#[test]
fn rings_that_the_card_serves_carry_frames_and_cost_no_core() {
    let host = Host::new();
    assert!(host.mgmtdevs().contains(&"model/slot0".to_owned()));
    assert_eq!(host.field("data_path"), "hardware");
    for format in [Format::Split, Format::Packed] {
        let rig = Rig::new(format, 2);
        let mut frontend = host.connect();
        rig.introduce(&mut frontend);
        assert_eq!(host.card.mapped(), rig.memory.size().next_multiple_of(4096));
        let mut pair = HandPair::new(&rig, 0, Position::START);
        pair.start(&mut frontend, rig.fresh());
        pair.exchange(200);
        eventually(|| host.field("rings/0/runs") == true);
        assert_eq!(host.field("rings/0/core"), Value::Null);
        let cores: Value = host.subsystem.call("core.show", &serde_json::json!({})).unwrap();
        assert!(!cores.to_string().contains("d0.0"), "no worker has it: {cores}");
        // Where it stops, it goes on.
        let bases = [0, 1].map(|queue| frontend.stop_ring(queue).unwrap());
        for (queue, base) in (0u32..).zip(bases) {
            rig.start_ring(&mut frontend, queue, base);
            frontend.enable_ring(queue, true).unwrap();
        }
        pair.exchange(50);
        drop(frontend);
        // Nothing of a guest that left can be reached by the card.
        eventually(|| host.card.mapped() == 0);
    }
}

#[test]
fn card_that_is_pulled_out_under_traffic_takes_its_device_along_and_brings_it_back() {
    let host = Host::new();
    let rig = Rig::new(Format::Split, 2);
    let mut frontend = host.connect();
    rig.introduce(&mut frontend);
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, 0);
    pair.exchange(20);
    host.bus.pull("slot0");
    eventually(|| host.is_absent_because("pulled out"));
    assert!(!host.mgmtdevs().contains(&"model/slot0".to_owned()));
    // The front-end is told by the end of its connection.
    eventually(|| frontend.queue_num().is_err());
    eventually(|| host.card.mapped() == 0 && !host.card.is_enabled(0));
    // Another card in the same slot.
    let other = Card::new(LOOP_CARD);
    host.bus.plug("slot0", &other);
    eventually(|| host.field("state") == "waiting");
    let rig = Rig::new(Format::Packed, 2);
    let mut frontend = host.connect();
    rig.introduce(&mut frontend);
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, rig.fresh());
    pair.exchange(20);
    assert!(other.mapped() > 0 && host.card.mapped() == 0);
}

#[test]
fn device_waits_for_a_card_that_is_not_plugged_in_yet() {
    let host = Host::with(ModelBus::new(), Card::new(LOOP_CARD), vec![entry()]);
    assert!(host.is_absent_because("Fail to find"));
    host.bus.plug("slot0", &host.card);
    eventually(|| host.field("state") == "waiting");
    // One function has one device.
    let second = DeviceEntry { name: "d1".to_owned(), ..entry() };
    assert!(host.subsystem.add(&second).unwrap_err().message.contains("as many devices as it can"));
}

#[test]
fn card_that_no_driver_matches_is_left_alone_and_one_that_is_broken_is_told_of() {
    let (bus, card) = (ModelBus::new(), Card::new(LOOP_CARD));
    bus.plug("slot1", &Card::new(1));
    let broken = Card::new(LOOP_CARD);
    broken.break_down();
    bus.plug("slot2", &broken);
    let host = Host::empty(bus, card);
    assert!(host.mgmtdevs().iter().all(|name| !name.starts_with("model/")), "{:?}", host.mgmtdevs());
    assert!(host.subsystem.add(&entry()).is_err());
}

#[test]
fn card_that_keeps_rings_or_memory_costs_the_session_and_is_not_given_to_the_next_as_it_is() {
    for keeps_memory in [false, true] {
        let host = Host::new();
        let rig = Rig::new(Format::Split, 2);
        let mut frontend = host.connect();
        rig.introduce(&mut frontend);
        let mut pair = HandPair::new(&rig, 0, Position::START);
        pair.start(&mut frontend, 0);
        pair.exchange(5);
        if keeps_memory {
            host.card.unmap_fails(true)
        } else {
            host.card.stop_hangs(true)
        }
        drop(frontend);
        eventually(|| host.field("history/last_end").as_str().is_some_and(|end| end.contains("did not")));
        let end = host.field("history/last_end");
        // It is the card that hangs, and no core of the host's.
        assert!(keeps_memory || end.as_str().is_some_and(|end| end.contains("the device did not")), "{end}");
        host.card.unmap_fails(false);
        host.card.stop_hangs(false);
        assert!(host.card.disable(0, SOON));
        // What could not be taken away is neither reused nor taken for somebody else's.
        let kept = host.card.mapped();
        assert_eq!(kept > 0, keeps_memory, "{kept}");
        eventually(|| host.field("state") == "waiting");
        let rig = Rig::new(Format::Packed, 2);
        if !keeps_memory {
            let mut frontend = host.connect();
            rig.introduce(&mut frontend);
            let mut pair = HandPair::new(&rig, 0, Position::START);
            pair.start(&mut frontend, rig.fresh());
            pair.exchange(5);
        }
    }
}

#[test]
fn function_is_not_handed_over_before_it_is_quiet() {
    let host = Host::new();
    let rig = Rig::new(Format::Split, 2);
    let mut frontend = host.connect();
    rig.introduce(&mut frontend);
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, 0);
    pair.exchange(5);
    host.card.stop_hangs(true);
    // Answered at once, though the card works on.
    host.subsystem.remove("d0").unwrap();
    let refused = host.subsystem.add(&entry()).unwrap_err();
    assert!(refused.retryable && refused.message.contains("still lets go"), "{refused:?}");
    eventually(|| host.subsystem.add(&entry()).is_ok());
    host.card.stop_hangs(false);
    assert!(host.card.disable(0, SOON) && host.card.mapped() == 0);
}

#[test]
fn what_the_card_tells_unasked_reaches_operator_and_guest() {
    let host = Host::new();
    let rig = Rig::new(Format::Split, 2);
    let mut frontend = host.connect();
    rig.introduce(&mut frontend);
    frontend.set_backend_req_fd().unwrap();
    let link = |frontend: &mut Frontend| frontend.config(6, 2).unwrap();
    assert_eq!((link(&mut frontend), host.field("provisioned/link")), (vec![1, 0], "up".into()));
    host.card.set_link(false);
    let told = frontend.backend_message(SOON).unwrap();
    assert!(matches!(told, Some(BackendMessage::ConfigChanged)), "{told:?}");
    assert_eq!(link(&mut frontend), [0, 0]);
    eventually(|| host.field("provisioned/link") == "down");
    host.card.interrupt(Cause::Error);
    assert!(frontend.backend_message(SOON).unwrap().is_some());
    assert_eq!(frontend.status().unwrap() & status::NEEDS_RESET, status::NEEDS_RESET);
    // A reset mends it.
    frontend.reset_device().unwrap();
    assert_eq!(frontend.status().unwrap(), 0);
    host.card.interrupt(Cause::Gone);
    eventually(|| frontend.queue_num().is_err());
    // The slot is not empty: the device is made again by itself.
    eventually(|| host.field("state") == "waiting");
}

#[test]
fn queues_that_the_card_gives_up_are_stopped_by_name_and_the_others_go_on() {
    let host = Host::empty_with_two_pairs();
    let rig = Rig::new(Format::Split, 4);
    let mut frontend = host.connect();
    rig.introduce(&mut frontend);
    let (mut first, mut second) =
        (HandPair::new(&rig, 0, Position::START), HandPair::new(&rig, 1, Position::START));
    first.start(&mut frontend, 0);
    second.start(&mut frontend, 0);
    first.exchange(5);
    second.exchange(5);
    host.card.lose(0);
    eventually(|| host.field("rings/0/fault") == "device_lost");
    assert_eq!(frontend.status().unwrap() & status::NEEDS_RESET, status::NEEDS_RESET);
    second.exchange(5);
}

#[test]
fn reset_that_hangs_costs_the_session_and_the_device_is_made_anew() {
    let host = Host::new();
    let mut frontend = host.connect();
    frontend.handshake().unwrap();
    host.card.reset_hangs(true);
    // Not answered: the device is not what a reset device is.
    assert!(frontend.reset_device().and_then(|()| frontend.queue_num()).is_err());
    host.card.reset_hangs(false);
    eventually(|| host.field("state") == "waiting");
    assert_eq!(host.field("history/host_failures/device_stuck"), 1);
    let rig = Rig::new(Format::Split, 2);
    let mut frontend = host.connect();
    rig.introduce(&mut frontend);
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, 0);
    pair.exchange(5);
}

#[test]
fn memory_that_cannot_be_pinned_is_refused_and_none_of_it_stays_mapped() {
    let host = Host::new();
    let rig = Rig::new(Format::Split, 2);
    host.card.pins_at_most(4096);
    let mut frontend = host.connect();
    frontend.handshake().unwrap();
    assert!(frontend.set_mem_table(&[rig.region()]).is_err());
    assert_eq!(host.card.mapped(), 0);
    host.card.pins_at_most(1 << 40);
    frontend.set_mem_table(&[rig.region()]).unwrap();
    assert!(host.card.mapped() > 0);
}

impl Host {
    fn empty_with_two_pairs() -> Host {
        let (bus, card) = (ModelBus::new(), Card::new(LOOP_CARD));
        bus.plug("slot0", &card);
        let host = Host::empty(bus, card);
        host.subsystem.add(&DeviceEntry { max_vqp: Some(2), ..entry() }).unwrap();
        host
    }
}

#[test]
fn management_device_of_an_embedder_comes_and_goes_at_run_time() {
    let host = Host::empty(ModelBus::new(), Card::new(LOOP_CARD));
    let mut driver = LoopCardDriver;
    let probe = |driver: &mut LoopCardDriver| {
        ringway_pmd::driver::Driver::probe(driver, "model/slot0", host.card.clone()).unwrap()
    };
    host.subsystem.register(probe(&mut driver)).unwrap();
    let again = host.subsystem.register(probe(&mut driver));
    assert!(again.unwrap_err().message.contains("two drivers"));
    host.subsystem.add(&entry()).unwrap();
    host.subsystem.unregister("model/slot0", "the embedder ends").unwrap();
    assert!(host.is_absent_because("the embedder ends"));
    assert!(host.subsystem.unregister("model/slot0", "twice").is_err());
    host.subsystem.register(probe(&mut driver)).unwrap();
    eventually(|| host.field("state") == "waiting");
}
