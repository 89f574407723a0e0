//! The drivers on QEMU's own device models, through its qtest socket: the same drivers as on the models in the process and on VFIO,
//! on functions that neither of them wrote.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]
#![expect(unreachable_pub, reason = "modules that the test has for itself")]

mod ground;
mod nvme;
#[path = "../shared/pace.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod pace;
#[path = "../vhost_user/support.rs"]
#[expect(dead_code, reason = "shared with another test")]
mod support;

use std::os::fd::BorrowedFd;
use std::sync::Mutex;

use ringway_control::operator::api::{DevShow, DeviceEntry, MgmtdevShow, Select};
use ringway_control::subsystem::{Options, Subsystem};
use ringway_pmd::bus::pci::{Device, host};
use ringway_pmd::bus::{Bus, BusEvent, BusInfo};
use ringway_pmd::driver::Attached;
use ringway_pmd::drivers::functions::Seen;
use ringway_pmd::drivers::virtio_pci::{EXAMINER, VirtioPci};
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
        let address = ground::address().to_string();
        device.map(|device| BusEvent::Announced { address, device }).into_iter().collect()
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
        let device = format!("virtio-net-pci,disable-legacy=on,iommu_platform=on,mac={MAC}{properties}");
        let ground = Ground::start(&device);
        let (address, opener) = (ground::address(), ground.opener());
        let seen = EXAMINER.examine(address, &opener);
        let device = Device { address, id: ground.id(), numa_node: None, opener, seen };
        let bus = OneFunction(Some(Mutex::new(device)));
        let folder = tempfile::tempdir().unwrap();
        let attached = Attached::new(bus, vec![Box::new(VirtioPci)]);
        let options = Options { attachments: vec![Box::new(attached)], ..Options::embedded(folder.path()) };
        let subsystem = Subsystem::start(options).unwrap();
        let mut entry = DeviceEntry { name: "d0".to_owned(), mgmtdev: name(), ..DeviceEntry::default() };
        entry.max_vqp = Some(pairs);
        subsystem.add(&entry).unwrap();
        Host { subsystem, ground, folder }
    }

    fn rig(&self, format: Format, queues: u16) -> Rig {
        Rig::within(format, queues, |bytes| self.ground.memory(Rig::GPA, bytes.next_multiple_of(4096)))
    }

    fn connect(&self) -> Frontend {
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

fn name() -> String {
    format!("pci/{}", ground::address())
}

const MAC: &str = "52:54:00:00:07:01";

#[test]
#[ignore = "needs QEMU >= 8: run deploy/test"]
fn qemus_function_is_looked_at_as_what_it_is() {
    let host = Host::new("", 1);
    let shown: MgmtdevShow = host.subsystem.call("mgmtdev.show", &Select { name: None }).unwrap();
    let function = shown.mgmtdev.find(&name()).unwrap();
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

/// What a function that was pulled out does: every register reads all ones, and what was under way never comes back.
#[test]
#[ignore = "needs QEMU >= 8: run deploy/test"]
fn function_that_is_gone_under_traffic_is_told_of_and_let_go() {
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
    let _ = frontend.stop_ring(0);
    eventually(|| host.field("history/last_host_failure").to_string().contains("does not answer any more"));
    eventually(|| host.field("rings/1/fault") == "driver_refused");
    drop(frontend);
    host.finish();
}
