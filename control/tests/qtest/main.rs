//! The drivers on QEMU's own device models, through its qtest socket: the same drivers as on the models in the process and on VFIO,
//! on functions that neither of them wrote.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]
#![expect(unreachable_pub, reason = "modules that the test has for itself")]

mod ground;
mod igbvf;
mod nvme;
#[path = "../shared/pace.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod pace;
mod pf;
#[path = "../vhost_user/support.rs"]
#[expect(dead_code, reason = "shared with another test")]
mod support;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use ringway_control::operator::api::{DevChanged, DevSet, DevShow, DeviceEntry, MgmtdevShow, Select};
use ringway_control::subsystem::{Options, Subsystem};
use ringway_pmd::bus::pci::{Device, host};
use ringway_pmd::bus::virt::VirtualBus;
use ringway_pmd::bus::{Bus, BusEvent, BusInfo};
use ringway_pmd::driver::Attached;
use ringway_pmd::drivers::functions::{Seen, drivers, examiners};
use ringway_pmd::notify::EventFd;
use ringway_ring::position::Position;
use ringway_ring::queue::Format;
use ringway_vhost_user::frontend::Frontend;
use serde_json::Value;

use self::ground::Ground;
use self::support::{HandPair, Rig, SOON, eventually};

/// The bus of a ground: one function, there from the start.
struct OneFunction(Option<Mutex<Device<Seen>>>);

impl Bus for OneFunction {
    type Device = Device<Seen>;

    fn info(&self) -> BusInfo {
        host::INFO
    }

    fn news(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn take(&mut self) -> Vec<BusEvent<Device<Seen>>> {
        let device = self.0.take().map(|device| device.into_inner().unwrap());
        let announced =
            |device: Device<Seen>| BusEvent::Announced { address: device.address.to_string(), device };
        device.map(announced).into_iter().collect()
    }
}

struct Host {
    subsystem: Subsystem,
    ground: Ground,
    folder: tempfile::TempDir,
}

impl Host {
    /// A subsystem with a device of so many pairs on a virtio function with these properties.
    fn new(properties: &str, pairs: u16) -> Host {
        Host::on(virtio(properties), pairs, &[])
    }

    /// The same on the function of a ground.
    fn on(ground: Ground, pairs: u16, attributes: &[(&str, &str)]) -> Host {
        let (address, opener, id) = (ground.address(), ground.opener(), ground.id());
        let examiner = examiners().into_iter().find(|examiner| (examiner.wants)(id)).unwrap();
        let seen = examiner.examine(address, &opener);
        let bus = OneFunction(Some(Mutex::new(Device { address, id, numa_node: None, opener, seen })));
        let folder = tempfile::tempdir().unwrap();
        let attached = Attached::new(bus, drivers(&VirtualBus::default()));
        let options = Options { attachments: vec![Box::new(attached)], ..Options::embedded(folder.path()) };
        let subsystem = Subsystem::start(options).unwrap();
        let mgmtdev = format!("pci/{address}");
        let mut entry = DeviceEntry { name: "d0".to_owned(), mgmtdev, ..DeviceEntry::default() };
        entry.max_vqp = Some(pairs);
        entry.attributes.extend(attributes.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        subsystem.add(&entry).unwrap();
        Host { subsystem, ground, folder }
    }

    fn name(&self) -> String {
        format!("pci/{}", self.ground.address())
    }

    fn rig(&self, format: Format, queues: u16) -> Rig {
        Rig::within(format, queues, |bytes| self.ground.memory(Rig::GPA, bytes.next_multiple_of(4096)))
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

    fn field(&self, pointer: &str) -> Value {
        let shown: DevShow = self.subsystem.show(None).unwrap();
        let shown = serde_json::to_value(shown).unwrap();
        shown.pointer(&format!("/dev/d0/{pointer}")).cloned().unwrap_or(Value::Null)
    }

    /// The function is let go in the end.
    fn finish(self) {
        let Host { subsystem, ground, .. } = self;
        drop(subsystem);
        eventually(|| ground.is_closed());
    }
}

/// A virtio function with these properties.
fn virtio(properties: &str) -> Ground {
    Ground::start(&format!("virtio-net-pci,disable-legacy=on,iommu_platform=on,mac={MAC}{properties}"))
}

const MAC: &str = "52:54:00:00:07:01";

#[test]
#[ignore = "needs QEMU >= 8: run deploy/test"]
fn qemus_function_is_looked_at_as_what_it_is() {
    let host = Host::new("", 1);
    let shown: MgmtdevShow = host.subsystem.call("mgmtdev.show", &Select { name: None }).unwrap();
    let function = shown.mgmtdev.find(&host.name()).unwrap();
    assert_eq!((function.max_supported_vqs, function.settings["mac"].as_str()), (2, MAC));
    assert_eq!(host.field("provisioned/mac"), MAC);
    host.finish();
}

/// Rings of either format, of the guest's and of the function's.
#[test]
#[ignore = "needs QEMU >= 8: run deploy/test"]
fn frames_go_through_qemus_function_and_come_back() {
    for (properties, format) in [
        (",packed=off", Format::Split),
        (",packed=off", Format::Packed),
        (",packed=on", Format::Split),
        (",packed=on", Format::Packed),
    ] {
        let host = Host::new(properties, 1);
        let rig = host.rig(format, 2);
        let mut frontend = host.connect();
        rig.introduce(&mut frontend);
        let mut pair = HandPair::new(&rig, 0, Position::START);
        pair.start(&mut frontend, rig.fresh());
        // Around every ring of the way: the guest's has 64 entries, the function's 256.
        pair.exchange(300);
        // Buffers that the function has are the guest's again after a stop, and are filled after the next start.
        pair.post(3);
        let bases = [0, 1].map(|queue| frontend.stop_ring(queue).unwrap());
        for (queue, base) in (0u32..).zip(bases) {
            rig.start_ring(&mut frontend, queue, base);
            frontend.enable_ring(queue, true).unwrap();
        }
        pair.send(3);
        pair.settle(3, true);
        pair.exchange(20);
        drop((pair, frontend));
        host.finish();
    }
}

/// The function consumes the guest's rings, hears its kicks and calls it by itself.
#[test]
#[ignore = "needs QEMU >= 8: run deploy/test"]
fn qemus_function_has_the_guests_own_rings_and_its_relay_goes_on_where_they_stand() {
    let host = Host::on(virtio(""), 1, &[("datapath", "hardware")]);
    let rig = host.rig(Format::Split, 2);
    let mut frontend = host.connect();
    rig.introduce(&mut frontend);
    let mut pair = HandPair::new(&rig, 0, Position::START);
    let (kick, call) = (Arc::new(EventFd::new().unwrap()), EventFd::new().unwrap());
    for queue in 0..2u32 {
        let (addr, kick) = (rig.addr(queue), Some(kick.as_fd()));
        frontend.start_ring(queue, Rig::SIZE.into(), 0, addr, kick, Some(call.as_fd())).unwrap();
        frontend.enable_ring(queue, true).unwrap();
    }
    pair.kick = Some(kick);
    eventually(|| host.field("data_path") == "hardware");
    pair.exchange(200);
    assert_eq!((host.field("data_path"), host.field("rings/0/core")), ("hardware".into(), Value::Null));
    call.clear();
    pair.rx.enable_calls();
    pair.post(1);
    pair.send(1);
    eventually(|| call.clear());
    pair.rx.disable_calls();
    pair.settle(1, true);
    let mut set = DevSet { name: "d0".to_owned(), ..DevSet::default() };
    set.attributes.insert("datapath".to_owned(), "relay".to_owned());
    let _: DevChanged = host.subsystem.call("dev.set", &set).unwrap();
    eventually(|| host.field("data_path") == "relay");
    pair.exchange(20);
    drop((pair, frontend));
    host.finish();
}

/// What a function that was pulled out does: every register reads all ones, and what was under way never comes back. Who notices
/// first tells of it: the driver when it brings the function up anew for a queue that stopped, or whoever looks now and then, also
/// when no queue stops. The device is taken away by the latter.
#[test]
#[ignore = "needs QEMU >= 8: run deploy/test"]
fn function_that_is_gone_under_traffic_is_told_of_and_let_go() {
    for stops in [true, false] {
        let mut host = Host::new("", 1);
        let rig = host.rig(Format::Split, 2);
        let mut frontend = host.connect();
        rig.introduce(&mut frontend);
        let mut pair = HandPair::new(&rig, 0, Position::START);
        pair.start(&mut frontend, 0);
        pair.exchange(20);
        pair.post(3);
        host.ground.kill();
        pair.send(3);
        if stops {
            let _ = frontend.stop_ring(0);
        }
        let why = "does not answer any more";
        eventually(|| {
            let shown: DevShow = host.subsystem.show(None).unwrap();
            let shown = serde_json::to_value(shown).unwrap();
            let says = |pointer| shown.pointer(pointer).is_some_and(|said| said.to_string().contains(why));
            let is_refused = shown.pointer("/dev/d0/rings/1/fault") == Some(&"driver_refused".into());
            let is_told_to_the_session = says("/dev/d0/history/last_host_failure") && is_refused;
            (stops && is_told_to_the_session) || says("/absent/d0")
        });
        drop(frontend);
        host.finish();
    }
}
