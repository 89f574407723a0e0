//! The driver of 82576 VFs on a function in this process, under the whole subsystem and a front-end of ours: frames by its
//! descriptors, offloads, and what is done about a function or a PF that lies, hangs, is reset, or goes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]
#![expect(unreachable_pub, reason = "modules that the test has for itself")]

#[path = "../shared/cores.rs"]
mod cores;
#[path = "../shared/lies.rs"]
mod lies;
mod lives;
mod model;
#[path = "../shared/net_life.rs"]
mod net_life;
#[path = "../shared/pace.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod pace;
mod parts;
#[path = "../shared/slot.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod slot;
#[path = "../vhost_user/support.rs"]
#[expect(dead_code, reason = "shared with another test")]
mod support;
mod uplink;

use ringway_control::operator::api::{DevShow, DeviceEntry, MgmtdevShow, Select};
use ringway_control::subsystem::{Options, Subsystem};
use ringway_pmd::driver::{Attached, Driver as _};
use ringway_pmd::drivers::igbvf::Igbvf;
use ringway_pmd::net::{F_CSUM, F_GUEST_CSUM, F_HOST_TSO4, Mac};
use ringway_pmd::vdpa::{DeviceHost, DeviceSpec, NetSpec};
use ringway_ring::position::Position;
use ringway_ring::queue::{Completion, DriverBuffer, Format};
use ringway_vhost_user::frontend::Frontend;
use serde_json::Value;

use self::model::{MAILBOX, Model, On, RESET, RXDCTL, SET_LONGEST, SET_MAC, SET_VLAN, STATUS, TX_TAIL, Then};
use self::slot::ModelBus;
use self::support::{HandPair, Rig, SOON, eventually};

const NAME: &str = "pci/0000:01:10.0";

struct Host {
    subsystem: Subsystem,
    bus: ModelBus,
    model: Model,
    folder: tempfile::TempDir,
}

impl Host {
    fn bare(model: Model) -> Host {
        let (bus, folder) = (ModelBus::new(), tempfile::tempdir().unwrap());
        bus.plug(model.device());
        let attached = Attached::new(bus.clone(), vec![Box::new(Igbvf)]);
        let options = Options { attachments: vec![Box::new(attached)], ..Options::embedded(folder.path()) };
        Host { subsystem: Subsystem::start(options).unwrap(), bus, model, folder }
    }

    fn new() -> Host {
        Host::with(Model::new(), &entry())
    }

    fn with(model: Model, entry: &DeviceEntry) -> Host {
        let host = Host::bare(model);
        host.subsystem.add(entry).unwrap();
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

    fn serve<'rig>(&self, rig: &'rig Rig) -> (Frontend, HandPair<'rig>) {
        let mut frontend = self.connect();
        rig.introduce(&mut frontend);
        let pair = HandPair::new(rig, 0, Position::START);
        pair.start(&mut frontend, rig.fresh());
        (frontend, pair)
    }

    fn field(&self, pointer: &str) -> Value {
        let shown: DevShow = self.subsystem.show(None).unwrap();
        let shown = serde_json::to_value(shown).unwrap();
        shown.pointer(&format!("/dev/d0/{pointer}")).cloned().unwrap_or(Value::Null)
    }

    fn setting(&self, name: &str) -> Value {
        let shown: MgmtdevShow = self.subsystem.call("mgmtdev.show", &Select { name: None }).unwrap();
        serde_json::to_value(shown).unwrap()["mgmtdev"][NAME]["settings"][name].clone()
    }

    /// Frames that were dropped on a queue for a reason.
    fn dropped(&self, queue: u32, reason: &str) -> Value {
        let counted: Value = self
            .subsystem
            .call("dev.vstats.show", &serde_json::json!({ "name": "d0" }))
            .unwrap_or(Value::Null);
        find(&counted, queue, reason)
    }

    /// The driver kept to the rules, and to the end let the function go as it has to be let go.
    fn finish(self) {
        let Host { subsystem, model, .. } = self;
        drop(subsystem);
        eventually(|| !model.is_open());
        assert_eq!(model.faults(), Vec::<String>::new());
    }
}

/// The number behind a reason among what is counted of a queue.
fn find(counted: &Value, queue: u32, reason: &str) -> Value {
    match counted {
        Value::Object(all) => {
            let its = all.get("qidx").is_some_and(|index| *index == queue);
            if its && let Some(drops) = all.get("drops") {
                return drops.get(reason).cloned().unwrap_or(Value::Null);
            }
            all.values().map(|value| find(value, queue, reason)).find(|v| !v.is_null()).unwrap_or(Value::Null)
        }
        Value::Array(all) => {
            all.iter().map(|value| find(value, queue, reason)).find(|v| !v.is_null()).unwrap_or(Value::Null)
        }
        _ => Value::Null,
    }
}

fn entry() -> DeviceEntry {
    DeviceEntry { name: "d0".to_owned(), mgmtdev: NAME.to_owned(), ..DeviceEntry::default() }
}

/// The guest's receive buffers, of 2 KiB, take a frame of the function's with its header.
fn direct() -> DeviceEntry {
    DeviceEntry { mtu: Some(1000), ..entry() }
}

/// What the guest got, in order: bytes with their header.
fn got(pair: &mut HandPair<'_>, frames: usize) -> Vec<Vec<u8>> {
    let mut done = Vec::new();
    eventually(|| {
        let mut some = [Completion::default(); 16];
        let count = pair.rx.collect(&mut some).unwrap();
        done.extend_from_slice(&some[..count]);
        done.len() >= frames
    });
    let read = |done: &Completion| {
        let mut bytes = vec![0; done.written as usize];
        let at = pair.rig.buffer(0, done.token);
        pair.rig.map.resolve(at, bytes.len() as u64).unwrap().read(&mut bytes);
        bytes
    };
    done.iter().map(read).collect()
}

/// Sends one chain of these pieces, the first of which begins with a header.
fn send_pieces(pair: &mut HandPair<'_>, pieces: &[&[u8]]) {
    let at = pair.rig.buffer(1, 0);
    let mut next = at;
    let mut buffers = Vec::new();
    for piece in pieces {
        pair.rig.map.resolve(next, piece.len() as u64).unwrap().write(piece);
        buffers.push(DriverBuffer { gpa: next, len: piece.len() as u32, writable: false });
        next += piece.len() as u64;
    }
    pair.tx.add(&buffers, 0).unwrap();
    pair.tx.publish();
    eventually(|| pair.tx.collect(&mut [Completion::default()]).unwrap() == 1);
}

#[test]
fn function_is_shown_with_what_it_is_and_its_device_has_the_address_that_its_pf_fixed() {
    let mac = Mac([2, 0, 0, 0, 0, 0x10]);
    let host = Host::with(Model::with_mac(mac), &entry());
    let made = Igbvf
        .probe(NAME, Model::new().device())
        .unwrap()
        .create(&DeviceSpec::net("d1", NetSpec::default()), DeviceHost::unheard());
    assert!(made.unwrap().facts().dma, "a function that reaches the guest's memory does not say so");
    let shown: MgmtdevShow = host.subsystem.call("mgmtdev.show", &Select { name: None }).unwrap();
    let function = serde_json::to_value(shown).unwrap()["mgmtdev"][NAME].clone();
    assert_eq!(function["max_supported_vqs"], 2);
    let its = serde_json::json!({
        "data_paths": "pumped", "mac": mac.to_string(), "numa_node": "1", "pf": "serves", "pf_resets": "0"
    });
    assert_eq!(function["settings"], its);
    assert_eq!(host.field("provisioned/mac"), mac.to_string());
    assert_eq!(host.field("data_path"), "pumped");
    host.finish();
}

#[test]
fn guests_rings_of_either_format_are_relayed_and_go_on_where_they_stopped() {
    for entry in [direct(), entry()] {
        let host = Host::with(Model::new(), &entry);
        for format in [Format::Split, Format::Packed] {
            let rig = Rig::new(format, 2);
            let (mut frontend, mut pair) = host.serve(&rig);
            // Around every ring of the way: the guest's has 64 entries, the function's 512.
            pair.exchange(600);
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
}

#[test]
fn frames_arrive_as_they_were_whether_the_guests_buffers_fit_or_not() {
    for entry in [direct(), entry()] {
        let host = Host::with(Model::new(), &entry);
        let rig = Rig::new(Format::Split, 2);
        let (frontend, mut pair) = host.serve(&rig);
        pair.post(8);
        eventually(|| host.model.works());
        let frames: Vec<Vec<u8>> = [14u8, 60, 99, 255].map(|len| vec![len; len.into()]).into();
        for frame in &frames {
            host.model.receive(frame, None);
        }
        for (bytes, frame) in got(&mut pair, 4).iter().zip(&frames) {
            assert_eq!(bytes[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            assert_eq!(&bytes[12..], frame);
        }
        drop(frontend);
        host.finish();
    }
}

#[test]
fn what_comes_back_from_the_wire_to_its_sender_is_dropped_and_counted() {
    let own = Mac([2; 6]);
    for (entry, is_direct) in [(direct(), true), (entry(), false)] {
        let host = Host::with(Model::with_mac(own), &entry);
        let rig = Rig::new(Format::Split, 2);
        let (frontend, mut pair) = host.serve(&rig);
        pair.post(4);
        // The third consists of twos.
        pair.send(4);
        let lens: Vec<usize> = got(&mut pair, if is_direct { 4 } else { 3 }).iter().map(Vec::len).collect();
        let wanted = if is_direct { vec![76, 76, 12, 76] } else { vec![76, 76, 76] };
        assert_eq!(lens, wanted);
        eventually(|| host.dropped(0, "reflected") == 1);
        drop(frontend);
        host.finish();
    }
}

#[test]
fn tags_that_a_pf_takes_out_are_put_back_for_the_vlans_of_the_device() {
    for entry in [direct(), entry()] {
        let entry = DeviceEntry {
            attributes: [("vlans".to_owned(), "9,7".to_owned())].into_iter().collect(),
            ..entry
        };
        let host = Host::with(Model::new(), &entry);
        let rig = Rig::new(Format::Split, 2);
        let (frontend, mut pair) = host.serve(&rig);
        pair.post(4);
        eventually(|| host.model.works());
        // VLAN 0 last: tags stay in frames.
        assert_eq!(host.model.messages(SET_VLAN)[..3], [(1, 7, 0), (1, 9, 0), (1, 0, 0)]);
        let frame: Vec<u8> = (0..60).collect();
        host.model.receive(&frame, Some(0x6007));
        host.model.receive(&frame, Some(8));
        let came = got(&mut pair, 2);
        let tagged = [&frame[..12], &[0x81, 0, 0x60, 7], &frame[12..]].concat();
        assert_eq!((&came[0][12..], &came[1][12..]), (&tagged[..], &frame[..]));
        drop(frontend);
        host.finish();
    }
}

#[test]
fn checksums_and_cutting_are_left_to_the_function_and_what_it_cannot_do_is_done_here() {
    let host = Host::new();
    let mut rig = Rig::new(Format::Split, 2);
    rig.features = rig.features | F_CSUM | F_HOST_TSO4 | F_GUEST_CSUM;
    let (frontend, mut pair) = host.serve(&rig);
    let frame = tcp4(100);
    // TCP: by the function.
    let header = |kind: u8, mss: u16| [1, kind, 54, 0, mss as u8, (mss >> 8) as u8, 34, 0, 16, 0, 0, 0];
    send_pieces(&mut pair, &[&header(0, 0), &frame[..20], &frame[20..]]);
    let sent = host.model.sent();
    assert_eq!((&sent[0].bytes, sent[0].options & 0x300, sent[0].pieces), (&frame, 0x200, 2));
    assert_eq!(sent[0].context[0], 14 << 9 | 20);
    assert_eq!(sent[0].context[2], 0x2020_0000 | 1 << 10 | 1 << 11);
    // Another sum than that of its transport: here.
    let mut other = [1, 0, 0, 0, 0, 0, 54, 0, 2, 0, 0, 0].to_vec();
    other.extend(&frame);
    send_pieces(&mut pair, &[&other]);
    let sent = host.model.sent();
    assert_eq!(sent[1].options & 0x300, 0);
    assert_ne!(sent[1].bytes[56..58], frame[56..58]);
    assert_eq!((&sent[1].bytes[..56], &sent[1].bytes[58..]), (&frame[..56], &frame[58..]));
    // To be cut up: with headers of ours.
    let large = tcp4(3000);
    send_pieces(&mut pair, &[&header(1, 1000), &large]);
    let sent = host.model.sent();
    let cut = &sent[2];
    assert_eq!((cut.command >> 31, cut.options & 0x300, cut.options >> 14), (1, 0x300, 3000));
    assert_eq!(cut.context[3] >> 16, 1000);
    assert_eq!((&cut.bytes[16..18], &cut.bytes[24..26]), (&[0, 0][..], &[0, 0][..]));
    assert_eq!(cut.bytes[54..], large[54..]);
    // The guest's own is as it was.
    let mut its = vec![0; 54];
    rig.map.resolve(rig.buffer(1, 0) + 12, 54).unwrap().read(&mut its);
    assert_eq!(its, large[..54]);
    // Too short for the hardware, and in more pieces than it takes.
    send_pieces(&mut pair, &[&[0; 12], &[5; 14]]);
    let bytes: Vec<[u8; 2]> = (0..50).map(|n| [n, n]).collect();
    let pieces: Vec<&[u8]> =
        std::iter::once(&[0u8; 12][..]).chain(bytes.iter().map(|piece| &piece[..])).collect();
    send_pieces(&mut pair, &pieces);
    let sent = host.model.sent();
    assert_eq!(sent[3].bytes, [[5; 14].as_slice(), &[0; 3]].concat());
    assert_eq!((&sent[4].bytes, sent[4].pieces), (&bytes.concat(), 1));
    // What was verified is said to be.
    pair.post(5);
    host.model.receive(&frame, None);
    let came = got(&mut pair, 5).pop().unwrap();
    assert_eq!(came[0], 2);
    drop(frontend);
    host.finish();
}

/// A TCP frame over IPv4 with so much payload.
fn tcp4(payload: usize) -> Vec<u8> {
    let total = (40 + payload) as u16;
    let mut frame = vec![6, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, (total >> 8) as u8, total as u8, 0, 1, 0, 0, 64, 6, 0xaa, 0xbb]);
    frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0x12, 0x34, 0, 0]);
    frame.extend((0..payload).map(|n| n as u8));
    frame
}

#[test]
fn function_that_is_pulled_out_takes_its_device_along_and_brings_it_back() {
    let host = Host::new();
    let rig = Rig::new(Format::Split, 2);
    let (mut frontend, mut pair) = host.serve(&rig);
    pair.exchange(20);
    host.model.pull();
    // Nobody tells of it but the function's silence.
    eventually(|| frontend.queue_num().is_err());
    host.bus.unplug(NAME);
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
fn function_that_the_host_wants_back_is_let_go() {
    let host = Host::new();
    let rig = Rig::new(Format::Split, 2);
    let (mut frontend, mut pair) = host.serve(&rig);
    pair.exchange(20);
    host.model.want_back();
    eventually(|| frontend.queue_num().is_err());
    eventually(|| !host.model.is_open());
    host.finish();
}

#[test]
fn filters_that_a_predecessor_left_are_cleared() {
    let host = Host::new();
    host.model.leave_filter(Mac([2, 0, 0, 0, 0, 7]));
    let rig = Rig::new(Format::Split, 2);
    let (frontend, mut pair) = host.serve(&rig);
    pair.exchange(1);
    assert_eq!(host.model.filters(), []);
    drop(frontend);
    host.finish();
}

#[test]
fn link_of_the_pf_is_the_guests() {
    let host = Host::new();
    let rig = Rig::new(Format::Split, 2);
    let (mut frontend, _pair) = host.serve(&rig);
    assert_eq!(frontend.config(6, 2).unwrap(), [1, 0]);
    for (is_up, word, bytes) in [(false, "down", [0, 0]), (true, "up", [1, 0])] {
        host.model.set_link(is_up);
        eventually(|| host.field("provisioned/link") == word);
        eventually(|| frontend.config(6, 2).unwrap() == bytes);
    }
    drop(frontend);
    host.finish();
}

#[test]
fn reset_of_the_pf_or_of_the_function_is_survived_and_shown() {
    for format in [Format::Split, Format::Packed] {
        let host = Host::new();
        let rig = Rig::new(format, 2);
        let (frontend, mut pair) = host.serve(&rig);
        pair.exchange(20);
        pair.post(2);
        host.model.reset_pf();
        eventually(|| host.setting("pf_resets") == "1" && host.setting("pf") == "serves");
        // What was posted before is filled by what is sent now.
        pair.send(2);
        pair.settle(2, true);
        // The function alone: its queues are off, and nobody says a word.
        host.model.rule(On::Read(RXDCTL), Then::Give(0x0001_0000), 1);
        eventually(|| host.setting("pf_resets") == "2" && host.setting("pf") == "serves");
        pair.exchange(20);
        drop(frontend);
        host.finish();
    }
}

#[test]
fn pf_that_is_down_or_silent_is_waited_for_and_traffic_goes_on() {
    let host = Host::new();
    let rig = Rig::new(Format::Split, 2);
    // Down when the guest comes.
    host.model.set_pf(false);
    let (mut frontend, mut pair) = host.serve(&rig);
    pair.post(1);
    pair.send(1);
    pair.rests();
    assert_eq!(host.field("rings/0/fault"), Value::Null);
    host.model.set_pf(true);
    pair.settle(1, true);
    // Down, and silent once it is up.
    host.model.rule(On::Message(RESET), Then::Ignore, 1);
    host.model.set_pf(false);
    eventually(|| host.setting("pf") == "does not serve");
    pair.post(1);
    pair.send(1);
    pair.rests();
    host.model.set_pf(true);
    pair.settle(1, true);
    // Down when the guest goes.
    host.model.set_pf(false);
    eventually(|| host.setting("pf") == "does not serve");
    frontend.stop_ring(0).unwrap();
    frontend.stop_ring(1).unwrap();
    drop(frontend);
    host.finish();
    // Down when it is looked at: shown all the same.
    let model = Model::new();
    model.set_pf(false);
    let host = Host::bare(model);
    eventually(|| host.setting("pf") == "does not serve");
    host.finish();
}

#[test]
fn function_that_lies_costs_its_own_guest_alone_and_is_named() {
    for (on, then, words) in [
        (On::Read(RXDCTL), Then::Give(0), "did not begin to receive"),
        (On::Message(SET_MAC), Then::Give(0x6000_0002), "refuses the address"),
        (On::Message(SET_LONGEST), Then::Give(0x6000_0005), "refuses frames of 9022 bytes"),
    ] {
        let host = Host::with(Model::new(), &DeviceEntry { mtu: Some(9000), ..entry() });
        let rig = Rig::new(Format::Split, 2);
        let mut frontend = host.connect();
        rig.introduce(&mut frontend);
        host.model.rule(on, then, 10_000);
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
fn buffer_that_is_said_to_hold_more_than_it_does_costs_the_queue_by_name() {
    for entry in [direct(), entry()] {
        let host = Host::with(Model::new(), &entry);
        let rig = Rig::new(Format::Split, 2);
        let (frontend, mut pair) = host.serve(&rig);
        pair.exchange(3);
        host.model.rule(On::Received, Then::Give(3 | 0xffff << 32), 1);
        pair.post(1);
        pair.send(1);
        eventually(|| host.field("rings/0/fault") == "used_length");
        drop(frontend);
        host.finish();
    }
}

#[test]
fn frames_that_end_nowhere_are_damaged_or_empty_are_dropped_by_name() {
    for (back, reason) in [
        (1 | 60u64 << 32, "rx_oversize"),
        (3 | 1 << 31 | 60 << 32, "damaged"),
        (3 | 13 << 32, "runt"),
        (3 | 1019 << 32, "rx_oversize"),
    ] {
        for entry in [direct(), DeviceEntry { mtu: Some(1000), ..entry() }] {
            let host = Host::with(Model::new(), &entry);
            let rig = Rig::new(Format::Split, 2);
            let (frontend, mut pair) = host.serve(&rig);
            pair.post(3);
            eventually(|| host.model.works());
            host.model.rule(On::Received, Then::Give(back), 1);
            // The second ends the first, should that not have ended.
            for number in 0..3 {
                host.model.receive(&[number; 60], None);
            }
            let came = got(&mut pair, 3);
            assert_eq!(came[0].len(), 12);
            assert_eq!(came[2][12..], [2; 60]);
            eventually(|| host.dropped(0, reason) == 1);
            drop(frontend);
            host.finish();
        }
    }
}

#[test]
fn function_that_does_not_stop_is_reset_by_the_host() {
    let host = Host::new();
    let rig = Rig::new(Format::Split, 2);
    let (mut frontend, mut pair) = host.serve(&rig);
    pair.exchange(5);
    host.model.rule(On::Write(RXDCTL), Then::Ignore, 1);
    frontend.stop_ring(0).unwrap();
    frontend.stop_ring(1).unwrap();
    assert!(!host.model.works() && host.model.resets() > 0);
    drop(frontend);
    host.finish();
}

#[test]
fn function_that_does_not_send_is_stopped_all_the_same_and_what_waited_goes_later() {
    let host = Host::new();
    let rig = Rig::new(Format::Split, 2);
    let (mut frontend, mut pair) = host.serve(&rig);
    pair.exchange(5);
    host.model.rule(On::Sent, Then::Ignore, 100);
    pair.post(1);
    pair.send(1);
    pair.rests();
    let bases = [0, 1].map(|queue| frontend.stop_ring(queue).unwrap());
    assert_eq!(bases, [5, 5], "what the function did not finish is the guest's again");
    host.model.forget_rules();
    for (queue, base) in (0u32..).zip(bases) {
        rig.start_ring(&mut frontend, queue, base);
        frontend.enable_ring(queue, true).unwrap();
    }
    pair.settle(1, true);
    drop(frontend);
    host.finish();
}

#[test]
fn frame_that_goes_while_the_function_is_stopped_goes_once() {
    let host = Host::new();
    let rig = Rig::new(Format::Split, 2);
    let (mut frontend, mut pair) = host.serve(&rig);
    pair.exchange(5);
    host.model.rule(On::Sent, Then::Late, 1);
    pair.send(1);
    eventually(|| host.model.sent().len() == 6);
    pair.rests();
    assert_eq!(host.model.sent().len(), 6);
    frontend.stop_ring(0).unwrap();
    let base = frontend.stop_ring(1).unwrap();
    assert_eq!(base, 6, "what has gone is not the guest's to be sent");
    rig.start_ring(&mut frontend, 1, base);
    frontend.enable_ring(1, true).unwrap();
    pair.send(1);
    eventually(|| host.model.sent().len() > 6);
    assert_eq!(host.model.sent().len(), 7);
    drop(frontend);
    host.finish();
}

#[test]
fn function_is_not_brought_up_under_a_pump_that_cannot_be_had() {
    let host = Host::new();
    let rig = Rig::new(Format::Split, 2);
    let (mut frontend, mut pair) = host.serve(&rig);
    pair.exchange(5);
    host.model.rule(On::Write(TX_TAIL), Then::Wait, 1);
    pair.send(1);
    eventually(|| host.model.rules_are_used_up());
    let (was_stopped, is_up) = (frontend.stop_ring(1), host.model.works());
    // Tried again, whatever is said of it.
    let begun = frontend.enable_ring(1, true);
    let is_up_again = host.model.works();
    host.model.forget_rules();
    assert!(!is_up && !is_up_again, "{is_up} {was_stopped:?}, {is_up_again} {begun:?}");
    drop(frontend);
    let rig = Rig::new(Format::Split, 2);
    let (frontend, mut pair) = host.serve(&rig);
    pair.exchange(5);
    drop(frontend);
    host.finish();
}

#[test]
fn frames_without_a_buffer_wait_as_far_as_the_ring_goes() {
    let host = Host::new();
    let rig = Rig::new(Format::Split, 2);
    let (frontend, mut pair) = host.serve(&rig);
    // The first buffer does not fit: frames are copied from here on, and wait for buffers.
    pair.exchange(1);
    pair.send(20);
    pair.settle(20, false);
    pair.post(20);
    assert_eq!(got(&mut pair, 20).len(), 20);
    drop(frontend);
    host.finish();
}

#[test]
fn function_that_cannot_be_reached_is_told_of_and_what_it_cannot_be_is_refused() {
    for (value, words) in [(0, "cannot be reached"), (0xffff_ffff, "does not answer")] {
        let model = Model::new();
        model.rule(On::Read(STATUS), Then::Give(value), 10_000);
        let refused = Igbvf.probe(NAME, model.device()).err().unwrap();
        assert!(refused.to_string().contains(words), "{refused}");
    }
    let model = Model::with_mac(Mac([2, 0, 0, 0, 0, 0x10]));
    // Bits of a dead predecessor do not matter.
    model.rule(On::Read(MAILBOX), Then::Give(0xb4), 1);
    let host = Host::bare(model);
    let vlans = |text: &str| DeviceEntry {
        attributes: [("vlans".to_owned(), text.to_owned())].into_iter().collect(),
        ..entry()
    };
    let many: Vec<String> = (1..=32).map(|id| id.to_string()).collect();
    for (entry, words) in [
        (
            DeviceEntry { mac: Some("52:54:00:00:00:09".parse().unwrap()), ..entry() },
            "ip link set PF vf N mac",
        ),
        (DeviceEntry { mtu: Some(9001), ..entry() }, "9000"),
        (DeviceEntry { max_vqp: Some(2), ..entry() }, "supports 2"),
        (vlans("7,0"), "`0` is not a VLAN"),
        (vlans("4095"), "1 to 4094"),
        (vlans(&many.join(",")), "more than the 31"),
    ] {
        let refused = host.subsystem.add(&entry).unwrap_err();
        assert!(refused.message.contains(words), "{words}: {refused:?}");
    }
    // The PF changed its mind since.
    host.subsystem.add(&entry()).unwrap();
    host.model.fix_mac(Mac([2, 0, 0, 0, 0, 0x20]));
    let rig = Rig::new(Format::Split, 2);
    let (frontend, _pair) = host.serve(&rig);
    eventually(|| host.field("rings/0/fault") == "driver_refused");
    let why = "02:00:00:00:00:20, which wins";
    eventually(|| host.field("history/last_host_failure").to_string().contains(why));
    drop(frontend);
    host.finish();
}
