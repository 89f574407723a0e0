//! The driver of NVMe controllers on one in this process, under the whole subsystem and a guest's block port: what is written is
//! there, and what is done about a controller that lies, hangs, fails, or goes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]
#![expect(unreachable_pub, reason = "modules that the test has for itself")]

mod functions;
mod model;
#[path = "../shared/slot.rs"]
mod slot;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use ringway_control::operator::api::{DevShow, DeviceEntry, MgmtdevShow, Select};
use ringway_control::subsystem::{Options, Subsystem};
use ringway_guest::block::lane::{Mix, Offer, Work};
use ringway_guest::block::stamp::Touch;
use ringway_guest::block::{BlockOptions, Lane, Operation, Port, Request, Status};
use ringway_guest::presence::Presence;
use ringway_pmd::bus::virt::VirtualBus;
use ringway_pmd::driver::{Attached, Attachments};
use ringway_pmd::drivers::nvme::{Nvme, NvmeFunction};
use ringway_ring::memory::{HostMemory, PageKind};
use ringway_ring::queue::Format;
use ringway_vhost_user::frontend::MemoryRegion;
use serde_json::Value;

use self::model::{
    ABORT, CSTS, DEALLOCATE, DELETE_SQ, FLUSH, IDENTIFY, Model, On, READ, Stray, Then, WRITE, WRITE_ZEROES,
};
use self::slot::ModelBus;

const NAME: &str = "pci/0000:02:00.0";
const SOON: Duration = Duration::from_secs(40);

struct Host {
    subsystem: Subsystem,
    bus: ModelBus,
    model: Model,
    folder: tempfile::TempDir,
}

fn eventually(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < SOON, "it did not become so");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn entry(name: &str, attributes: &[(&str, &str)]) -> DeviceEntry {
    let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    DeviceEntry {
        name: name.to_owned(),
        mgmtdev: NAME.to_owned(),
        attributes: attributes.collect::<BTreeMap<_, _>>(),
        ..DeviceEntry::default()
    }
}

impl Host {
    fn bare(model: Model) -> Host {
        let (bus, folder) = (ModelBus::new(), tempfile::tempdir().unwrap());
        bus.plug(model.device());
        let virt = VirtualBus::default();
        let attachments: Vec<Box<dyn Attachments>> = vec![
            Box::new(Attached::new(virt.clone(), vec![Box::new(NvmeFunction)])),
            Box::new(Attached::new(bus.clone(), vec![Box::new(Nvme(virt))])),
        ];
        let options = Options { attachments, ..Options::embedded(folder.path()) };
        Host { subsystem: Subsystem::start(options).unwrap(), bus, model, folder }
    }

    /// With device d0 on namespace 1.
    fn new(model: Model) -> Host {
        let host = Host::bare(model);
        host.subsystem.add(&entry("d0", &[("namespace", "1")])).unwrap();
        host
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("dev/{name}.sock"))
    }

    fn connect(&self, name: &str, options: BlockOptions) -> Port {
        let options = BlockOptions { patience: SOON, ..options };
        // Who comes before the end of the one before it was noticed is turned away after a moment.
        eventually(|| self.field(&format!("{name}/state")) == "waiting" && self.socket(name).exists());
        Port::connect(&self.socket(name), options).unwrap()
    }

    fn field(&self, pointer: &str) -> Value {
        let shown: DevShow = self.subsystem.show(None).unwrap();
        let shown = serde_json::to_value(shown).unwrap();
        shown.pointer(&format!("/dev/{pointer}")).cloned().unwrap_or(Value::Null)
    }

    fn setting(&self, name: &str) -> String {
        self.setting_of(NAME, name)
    }

    fn setting_of(&self, mgmtdev: &str, name: &str) -> String {
        let shown: MgmtdevShow = self.subsystem.call("mgmtdev.show", &Select { name: None }).unwrap();
        let shown = serde_json::to_value(shown).unwrap();
        shown["mgmtdev"][mgmtdev]["settings"][name].as_str().unwrap_or_default().to_owned()
    }

    /// The driver kept to the rules, and let the controller go as it has to be let go.
    fn finish(self) {
        let Host { subsystem, model, .. } = self;
        drop(subsystem);
        eventually(|| !model.is_open());
        assert_eq!(model.faults(), Vec::<String>::new());
    }
}

fn work(request_bytes: u32, block_bytes: u32) -> Work {
    Work {
        mix: Mix { read: 4, write: 4, flush: 1, discard: 1, zeroes: 1 },
        request_bytes,
        block_bytes,
        touch: Touch::All,
        sequential: false,
        overlap: false,
        first_sector: 0,
        bytes: 4 << 20,
        seed: 7,
    }
}

/// A load of so many requests on a port's first queue, checked to the end.
fn load(port: &mut Port, work: Work, requests: u64) -> Lane {
    let depth = port.options().depth.into();
    let mut lane = Lane::new(work, depth).unwrap();
    let queue = &mut port.queues_mut()[0];
    lane.fill(queue, SOON).unwrap();
    go_on(&mut lane, queue, requests);
    lane.check_all(queue, SOON).unwrap();
    assert_eq!(lane.counts().faults(), 0, "{:?}: {:?}", lane.counts(), lane.wrong());
    lane
}

fn go_on(lane: &mut Lane, queue: &mut ringway_guest::block::Queue, requests: u64) {
    let until = lane.counts().completed + requests;
    let begun = Instant::now();
    while lane.counts().completed < until {
        assert!(begun.elapsed() < SOON, "{:?}", lane.counts());
        if lane.turn(queue, Offer::All, &mut { Presence::ASSUMED }).unwrap() == 0 {
            std::thread::yield_now();
        }
    }
    lane.drain(queue, SOON).unwrap();
}

/// Requests of all kinds and sizes, in pieces of all kinds, on blocks of both sizes; what a controller cannot be pointed to is
/// copied, and nothing else.
#[test]
fn what_a_guest_writes_is_there_whatever_lists_its_controller_takes() {
    for (scatter, copies) in [(0, true), (1, false), (2, true)] {
        for (namespace, block) in [("1", 512), ("2", 4096)] {
            let host = Host::bare(Model::with_scatter(scatter));
            host.subsystem.add(&entry("d0", &[("namespace", namespace)])).unwrap();
            let plain = BlockOptions { max_bytes: 64 << 10, ..BlockOptions::default() };
            let options = [
                plain,
                BlockOptions { format: Format::Packed, indirect: true, ..plain },
                BlockOptions {
                    segment_bytes: Some(8192 + 100),
                    shift: 2,
                    queue_size: 256,
                    depth: 16,
                    ..plain
                },
                BlockOptions { segment_bytes: Some(700), shift: 1, queue_size: 256, depth: 2, ..plain },
            ];
            for options in options {
                let mut port = host.connect("d0", options);
                assert_eq!(port.config().bytes(), 8 << 20);
                assert_eq!(port.config().block_bytes(), block);
                load(&mut port, work(4096, 4096), 300);
                load(&mut port, work(64 << 10, 4096), 60);
                port.stop().unwrap();
            }
            let copied = host.setting("copied_commands");
            assert_eq!(copied != "0", copies, "{scatter}: {copied}");
            assert!(host.model.count(FLUSH) > 0);
            eventually(|| host.model.pairs() == 0);
            host.finish();
        }
    }
}

#[test]
fn every_queue_has_a_pair_and_pairs_are_the_controllers() {
    let host = Host::bare(Model::with_pairs(4));
    let error = host.subsystem.add(&entry("d0", &[("namespace", "1"), ("num_queues", "5")])).unwrap_err();
    assert!(error.to_string().contains("4 queue pairs"), "{error}");
    host.subsystem.add(&entry("d0", &[("namespace", "1")])).unwrap();
    let mut port = host.connect("d0", BlockOptions { queues: 4, ..BlockOptions::default() });
    let mut lanes: Vec<Lane> = (0..4)
        .map(|n| {
            let work = Work { first_sector: n * 2048, bytes: 1 << 20, seed: n, ..work(4096, 4096) };
            Lane::new(work, 32).unwrap()
        })
        .collect();
    for (lane, queue) in lanes.iter_mut().zip(port.queues_mut()) {
        lane.fill(queue, SOON).unwrap();
    }
    assert_eq!(host.model.pairs(), 4);
    for (lane, queue) in lanes.iter_mut().zip(port.queues_mut()) {
        go_on(lane, queue, 200);
        lane.check_all(queue, SOON).unwrap();
        assert_eq!(lane.counts().faults(), 0);
    }
    port.stop().unwrap();
    host.finish();
}

/// Two devices on one controller share what it reaches, and neither reaches the other's memory.
#[test]
fn devices_of_one_controller_have_a_namespace_and_a_window_each() {
    let host = Host::bare(Model::new());
    let error = host.subsystem.add(&entry("d0", &[])).unwrap_err();
    assert!(error.to_string().contains("has the namespaces 1, 2"), "{error}");
    let error = host.subsystem.add(&entry("d0", &[("namespace", "3")])).unwrap_err();
    assert!(error.to_string().contains("has no namespace 3"), "{error}");
    host.subsystem.add(&entry("d0", &[("namespace", "1")])).unwrap();
    let error = host.subsystem.add(&entry("d1", &[("namespace", "1")])).unwrap_err();
    assert!(error.to_string().contains("is a device's"), "{error}");
    host.subsystem.add(&entry("d1", &[("namespace", "2")])).unwrap();
    let mut first = host.connect("d0", BlockOptions::default());
    let mut second = host.connect("d1", BlockOptions::default());
    let mut one = load(&mut first, work(4096, 4096), 100);
    load(&mut second, Work { seed: 9, ..work(4096, 4096) }, 100);
    one.check_all(&mut first.queues_mut()[0], SOON).unwrap();
    assert_eq!(one.counts().faults(), 0);
    assert_ne!(host.model.stored(1, 0, 4096), host.model.stored(2, 0, 4096));
    host.subsystem.remove("d0").unwrap();
    load(&mut second, Work { seed: 10, ..work(4096, 4096) }, 100);
    host.subsystem.add(&entry("d0", &[("namespace", "1")])).unwrap();
    let mut first = host.connect("d0", BlockOptions::default());
    one.check_all(&mut first.queues_mut()[0], SOON).unwrap();
    assert_eq!(one.counts().faults(), 0);
    host.finish();
}

/// Two guests whose memory has the same addresses, and grows beyond what was kept for it, while they work: what the second one has is in
/// the first one's way, which goes elsewhere. What is beyond all that the controller reaches is refused, and changes nothing.
#[test]
fn guests_memory_that_grows_has_its_room_whoever_is_behind_it() {
    let host = Host::new(Model::new());
    host.subsystem.add(&entry("d1", &[("namespace", "2")])).unwrap();
    let options = BlockOptions { table: false, ..BlockOptions::default() };
    let mut ports = ["d0", "d1"].map(|name| host.connect(name, options));
    let mut lanes = [7, 9].map(|seed| Lane::new(Work { seed, ..work(4096, 4096) }, 32).unwrap());
    for (lane, port) in lanes.iter_mut().zip(&mut ports) {
        lane.fill(&mut port.queues_mut()[0], SOON).unwrap();
    }
    let more = HostMemory::allocate_on(PageKind::Base, "more", 1 << 20).unwrap();
    let grow = |port: &mut Port, gpa: u64| {
        let user_addr = (1 << 46) + gpa;
        let region = MemoryRegion { gpa, size: 1 << 20, user_addr, file_offset: 0, file: more.file() };
        port.frontend().add_mem_reg(&region)
    };
    for gib in [100, 300, 1000] {
        for at in [0, 1] {
            let (lane, port) = (&mut lanes[at], &mut ports[at]);
            for _ in 0..10 {
                lane.turn(&mut port.queues_mut()[0], Offer::All, &mut { Presence::ASSUMED }).unwrap();
            }
            grow(port, gib << 30).unwrap();
            for (lane, port) in lanes.iter_mut().zip(&mut ports) {
                go_on(lane, &mut port.queues_mut()[0], 50);
            }
        }
    }
    for (lane, port) in lanes.iter_mut().zip(&mut ports) {
        lane.check_all(&mut port.queues_mut()[0], SOON).unwrap();
        assert_eq!(lane.counts().faults(), 0, "{:?}: {:?}", lane.counts(), lane.wrong());
    }
    assert!(grow(&mut ports[0], 1 << 51).is_err());
    let told = || host.field("d0/history").to_string();
    eventually(|| told().contains("is beyond what the device can reach"));
    let (lane, port) = (&mut lanes[1], &mut ports[1]);
    go_on(lane, &mut port.queues_mut()[0], 50);
    // The next guest of the device has no more to do with what this one had.
    let [first, second] = ports;
    drop(first);
    let mut again = host.connect("d0", options);
    grow(&mut again, 2000 << 30).unwrap();
    load(&mut again, work(4096, 4096), 50);
    drop(second);
    host.finish();
}

/// Writes last before they are answered where the guest has no write cache, and the cache is flushed for it.
#[test]
fn write_of_a_guest_without_cache_is_flushed_before_it_is_answered() {
    let host = Host::bare(Model::new());
    host.subsystem.add(&entry("d0", &[("namespace", "1"), ("write_back", "off")])).unwrap();
    let mut port = host.connect("d0", BlockOptions::default());
    let mut data = vec![7; 4096];
    for n in 1..4 {
        assert_eq!(port.perform(Request::write(8, 4096), &mut data).unwrap().0, Status::Ok);
        assert_eq!((host.model.count(WRITE), host.model.count(FLUSH)), (n, n));
    }
    host.model.rule(On::Io(FLUSH), Then::Fail(0x4280), 1);
    assert_eq!(port.perform(Request::write(8, 4096), &mut data).unwrap().0, Status::IoError);
    host.finish();
}

#[test]
fn status_of_a_command_is_the_guests_or_is_tried_again() {
    let host = Host::new(Model::new());
    let mut port = host.connect("d0", BlockOptions::default());
    let mut data = vec![0; 4096];
    host.model.rule(On::Io(READ), Then::Fail(0x4281), 1);
    assert_eq!(port.perform(Request::read(0, 4096), &mut data).unwrap().0, Status::IoError);
    host.model.rule(On::Io(READ), Then::Fail(0x4001), 1);
    assert_eq!(port.perform(Request::read(0, 4096), &mut data).unwrap().0, Status::Unsupported);
    host.model.rule(On::Io(READ), Then::Fail(0x0082), 2);
    assert_eq!(port.perform(Request::read(0, 4096), &mut data).unwrap().0, Status::Ok);
    host.model.rule(On::Io(READ), Then::Fail(0x0082), 3);
    assert_eq!(port.perform(Request::read(0, 4096), &mut data).unwrap().0, Status::IoError);
    eventually(|| host.setting("failed_commands") == "7");
    assert_eq!(host.setting("last_status"), "0x082");
    let beyond = Request { operation: Operation::Read, sector: 16384, bytes: 4096 };
    assert_eq!(port.perform(beyond, &mut data).unwrap().0, Status::IoError);
    host.finish();
}

/// Completions that cannot be change nothing, and are counted.
#[test]
fn completions_that_come_twice_or_are_of_nothing_are_counted_and_believed_by_nobody() {
    let host = Host::new(Model::new());
    let mut port = host.connect("d0", BlockOptions::default());
    let lies =
        [Then::Twice, Then::Stray(Stray::Command), Then::Stray(Stray::Queue), Then::Stray(Stray::Head)];
    for lie in lies {
        for opcode in [READ, WRITE, FLUSH] {
            host.model.rule(On::Io(opcode), lie, 5);
        }
    }
    load(&mut port, work(4096, 4096), 500);
    assert!(host.model.rules_are_used_up());
    port.stop().unwrap();
    eventually(|| host.setting("stray_completions") == "60");
    host.finish();
}

/// A command that does not end is aborted, and done again.
#[test]
fn command_that_hangs_is_aborted_and_done_again() {
    let host = Host::new(Model::new());
    let mut port = host.connect("d0", BlockOptions::default());
    let mut data = vec![9; 4096];
    host.model.rule(On::Io(WRITE), Then::Hang, 1);
    assert_eq!(port.perform(Request::write(0, 4096), &mut data).unwrap().0, Status::Ok);
    assert_eq!(host.model.stored(1, 0, 4096), data);
    assert_eq!((host.setting("aborts").as_str(), host.setting("queue_pair_renewals").as_str()), ("1", "0"));
    host.finish();
}

/// One that cannot be aborted is lost with its queue pair, and done again on another; what the others had is so, too.
#[test]
fn command_that_is_lost_costs_its_queue_pair_and_nothing_else() {
    let host = Host::bare(Model::new());
    host.subsystem.add(&entry("d0", &[("namespace", "1")])).unwrap();
    host.subsystem.add(&entry("d1", &[("namespace", "2")])).unwrap();
    let mut port = host.connect("d0", BlockOptions::default());
    let mut other = host.connect("d1", BlockOptions::default());
    load(&mut other, work(4096, 4096), 10);
    host.model.rule(On::Io(WRITE), Then::Ignore, 3);
    host.model.rule(On::Io(READ), Then::Late, 2);
    load(&mut port, work(4096, 4096), 200);
    load(&mut other, work(4096, 4096), 10);
    assert!(host.setting("queue_pair_renewals") != "0");
    assert_eq!(host.setting("controller_resets"), "0");
    host.finish();
}

/// A controller that does not let a queue pair go is reset, under the load of another device, which loses nothing.
#[test]
fn controller_that_hangs_is_reset_under_load_and_nothing_is_lost() {
    let host = Host::bare(Model::new());
    host.subsystem.add(&entry("d0", &[("namespace", "1")])).unwrap();
    host.subsystem.add(&entry("d1", &[("namespace", "2")])).unwrap();
    let mut port = host.connect("d0", BlockOptions::default());
    let mut other = host.connect("d1", BlockOptions::default());
    let mut lane = load(&mut other, work(4096, 4096), 10);
    host.model.rule(On::Io(WRITE), Then::Ignore, 1);
    host.model.rule(On::Admin(ABORT), Then::Ignore, 1);
    host.model.rule(On::Admin(DELETE_SQ), Then::Ignore, 1);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| load(&mut port, work(4096, 4096), 200));
        while !first.is_finished() {
            go_on(&mut lane, &mut other.queues_mut()[0], 20);
        }
    });
    lane.check_all(&mut other.queues_mut()[0], SOON).unwrap();
    assert_eq!(lane.counts().faults(), 0, "{:?}", lane.counts());
    assert_eq!(host.setting("controller_resets"), "1");
    host.model.forget_rules();
    host.finish();
}

#[test]
fn controller_that_fails_is_reset_under_load_and_nothing_is_lost() {
    let host = Host::new(Model::new());
    let mut port = host.connect("d0", BlockOptions { depth: 64, queue_size: 256, ..BlockOptions::default() });
    for opcode in [WRITE, READ, FLUSH] {
        host.model.rule(On::Io(opcode), Then::Die, 1);
    }
    load(&mut port, work(4096, 4096), 500);
    assert!(host.model.rules_are_used_up());
    let resets = host.setting("controller_resets");
    assert!((1..=3).contains(&resets.parse::<u32>().unwrap()), "{resets}");
    host.model.forget_rules();
    host.finish();
}

/// It says nothing of it but that it is not ready. No command has to be late for that to be seen.
#[test]
fn controller_that_somebody_resets_begins_anew_and_nothing_is_lost() {
    let host = Host::new(Model::new());
    let mut port = host.connect("d0", BlockOptions::default());
    let mut lane = load(&mut port, work(4096, 4096), 100);
    host.model.reset_by_somebody();
    let queue = &mut port.queues_mut()[0];
    go_on(&mut lane, queue, 200);
    lane.check_all(queue, SOON).unwrap();
    assert_eq!(lane.counts().faults(), 0, "{:?}", lane.counts());
    assert_eq!((host.setting("controller_resets").as_str(), host.setting("aborts").as_str()), ("1", "0"));
    host.finish();
}

#[test]
fn controller_that_is_pulled_takes_its_devices_along_and_brings_them_back() {
    let host = Host::new(Model::new());
    let mut port = host.connect("d0", BlockOptions::default());
    load(&mut port, work(4096, 4096), 10);
    host.model.pull();
    // Nobody tells of it but the controller's silence.
    eventually(|| port.frontend().queue_num().is_err());
    host.bus.unplug(NAME);
    eventually(|| !host.model.is_open());
    let other = Model::new();
    host.bus.plug(other.device());
    eventually(|| host.field("d0/state") == "waiting");
    let mut port = host.connect("d0", BlockOptions::default());
    load(&mut port, work(4096, 4096), 10);
    assert_eq!((host.model.faults(), other.faults()), (vec![], vec![]));
}

#[test]
fn controller_that_the_host_wants_back_is_let_go() {
    let host = Host::new(Model::new());
    let mut port = host.connect("d0", BlockOptions::default());
    load(&mut port, work(4096, 4096), 10);
    host.model.want_back();
    eventually(|| !host.model.is_open());
    host.finish();
}

#[test]
fn namespace_that_changes_its_size_is_told_to_the_guest() {
    let host = Host::new(Model::new());
    let mut port = host.connect("d0", BlockOptions::default());
    load(&mut port, work(4096, 4096), 10);
    // It is asked for what changes once the controller is looked at.
    std::thread::sleep(Duration::from_millis(1500));
    host.model.resize(1, 16 << 20);
    eventually(|| port.refresh_config().unwrap().bytes() == 16 << 20);
    let mut data = vec![1; 4096];
    assert_eq!(port.perform(Request::write(32760, 4096), &mut data).unwrap().0, Status::Ok);
    host.finish();
}

/// Writes so many bytes of this from a queue's memory, and does not wait for it.
fn begin_write(port: &mut Port, fill: u8, bytes: u32) {
    let queue = &mut port.queues_mut()[0];
    let slot = queue.reserve().unwrap();
    queue.data(&slot).write(&vec![fill; bytes as usize]);
    queue.submit(slot, Request::write(0, bytes), 0).unwrap();
    queue.publish();
    queue.kick();
}

/// The pump of a device whose command hangs goes on without its device. Until it has ended, what the controller reaches for it is the
/// memory of its own guest, and its namespace is nobody else's.
#[test]
fn command_that_outlives_its_device_keeps_its_guests_memory_and_its_namespace() {
    let host = Host::new(Model::new());
    let mut port = host.connect("d0", BlockOptions::default());
    // Lost three times, which takes longer than a session waits for a disk.
    host.model.rule(On::Io(WRITE), Then::Ignore, 3);
    begin_write(&mut port, 9, 4096);
    eventually(|| host.model.count(WRITE) == 1);
    host.subsystem.remove("d0").unwrap();
    // The session is over, its pump is not.
    eventually(|| port.frontend().queue_num().is_err());
    assert_eq!(host.model.pairs(), 1);
    let again = || host.subsystem.add(&entry("d1", &[("namespace", "1")]));
    let refusal = again().unwrap_err().to_string();
    let told = ["namespace 1", "still under way", "device d0", "once the controller has answered"];
    assert!(told.iter().all(|word| refusal.contains(word)), "{refusal}");
    // Another guest, whose memory has the same addresses.
    host.subsystem.add(&entry("d2", &[("namespace", "2")])).unwrap();
    let mut other = host.connect("d2", BlockOptions::default());
    load(&mut other, Work { bytes: 1 << 20, ..work(4096, 4096) }, 10);
    assert_eq!((host.model.pairs(), host.model.stored(1, 0, 4096)), (2, vec![0; 4096]));
    eventually(|| again().is_ok());
    // It was given up, and no queue is left that could do it once more.
    assert_eq!((host.model.pairs(), host.model.stored(1, 0, 4096)), (1, vec![0; 4096]));
    let mut port = host.connect("d1", BlockOptions::default());
    assert_eq!(port.perform(Request::write(0, 4096), &mut [5; 4096]).unwrap().0, Status::Ok);
    load(&mut other, Work { bytes: 1 << 20, ..work(4096, 4096) }, 10);
    assert_eq!(host.model.stored(1, 0, 4096), vec![5; 4096]);
    host.model.forget_rules();
    host.finish();
}

/// Registers that cannot be are named.
#[test]
fn function_that_is_no_controller_is_told_of_with_what_is_wrong() {
    let lies: [(u64, u32, &str); 5] = [
        (CSTS, u32::MAX, "does not answer any more"),
        (0x04, 0, "has no NVM command set"),
        (0x04, 1 << 5 | 1 << 16, "smallest page has 8 KiB"),
        (0x00, 1 << 16, "queues have one entry"),
        (CSTS, 2, "says that it failed"),
    ];
    for (at, value, why) in lies {
        let model = Model::new();
        model.rule(On::Read(at), Then::Give(value), if why.contains("failed") { 1000 } else { 1 });
        let refusal = model.device().seen.unwrap_err().to_string();
        assert!(refusal.contains(why), "{refusal}");
    }
    let model = Model::new();
    model.rule(On::Admin(IDENTIFY), Then::Fail(0x4006), 1);
    let refusal = model.device().seen.unwrap_err().to_string();
    assert!(refusal.contains("refuses to say who it is: internal error"), "{refusal}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 20, ..ProptestConfig::default() })]

    /// Whatever a controller does to completions and statuses, in whatever order, every request ends, what was told to be written is
    /// there, and the driver keeps to the rules.
    #[test]
    fn controller_that_lies_at_random_loses_nothing(
        lies in proptest::collection::vec(
            (
                prop_oneof![Just(READ), Just(WRITE), Just(FLUSH), Just(WRITE_ZEROES), Just(DEALLOCATE)],
                prop_oneof![
                    Just(Then::Twice),
                    Just(Then::Stray(Stray::Command)),
                    Just(Then::Stray(Stray::Queue)),
                    Just(Then::Stray(Stray::Head)),
                    Just(Then::Die),
                    Just(Then::Fail(0x0006)),
                    Just(Then::Fail(0x4006)),
                ],
                1usize..4,
            ),
            1..12,
        ),
        packed: bool,
        scatter in 0u32..3,
    ) {
        let host = Host::new(Model::with_scatter(scatter));
        let format = if packed { Format::Packed } else { Format::Split };
        let mut port = host.connect("d0", BlockOptions { format, max_bytes: 16384, ..BlockOptions::default() });
        for (opcode, lie, times) in &lies {
            host.model.rule(On::Io(*opcode), *lie, *times);
        }
        let mut lane = Lane::new(work(16384, 4096), 32).unwrap();
        go_on(&mut lane, &mut port.queues_mut()[0], 200);
        host.model.forget_rules();
        lane.check_all(&mut port.queues_mut()[0], SOON).unwrap();
        let counts = lane.counts();
        // What failed for good was told to have failed.
        prop_assert_eq!(counts.faults(), counts.errors, "{:?}: {:?}", counts, lane.wrong());
        port.stop().unwrap();
        host.finish();
    }
}
