//! A card that is divided, which is no NIC: its children have queue pairs of it, each another driver's. It comes and goes on a bus
//! of its own, and what was made of it with it.

use std::collections::BTreeMap;

use ringway_control::operator::api::{
    DevShow, DeviceEntry, MgmtdevShow, PortEntry, PortShow, PortState, Select,
};
use ringway_control::subsystem::{Options, Subsystem};
use ringway_pmd::bus::virt::{Child, Children, VirtualBus};
use ringway_pmd::driver::{Attached, Driver};
use ringway_pmd::drivers::sim_net::SimNet;
use ringway_pmd::vdpa::{
    AttributeInfo, Class, DeviceHost, DeviceSpec, DriverError, FunctionState, Functions, ManagementDevice,
    MgmtInfo, Parent, VdpaDevice,
};
use ringway_ring::features::Features;
use ringway_ring::position::Position;
use ringway_ring::queue::Format;
use ringway_vhost_user::frontend::Frontend;

use crate::support::{HandPair, Rig, SOON, eventually};

const NAME: &str = "model/multi";

/// The card: so many queue pairs, one for each child.
struct Multi {
    children: Children<u16>,
    left: Vec<u16>,
}

impl Multi {
    fn new(bus: &VirtualBus) -> Box<Multi> {
        Box::new(Multi { children: Children::new(bus.clone(), NAME), left: vec![7, 6, 5] })
    }
}

impl ManagementDevice for Multi {
    fn info(&self) -> MgmtInfo {
        MgmtInfo {
            name: NAME.to_owned(),
            class: Class::Block,
            max_supported_vqs: 0,
            max_devices: Some(0),
            features: Features::NONE,
            attributes: Vec::new(),
            functions: Some(Functions {
                attributes: vec![AttributeInfo { name: "weight", value: "N", help: "", live: None }],
                check: |_| Ok(()),
                fit: |_| Ok(()),
            }),
            summary: "a model card that is divided",
            check: |_, _| Ok(()),
        }
    }

    fn create(&mut self, _: &DeviceSpec, _: DeviceHost) -> Result<Box<dyn VdpaDevice>, DriverError> {
        Err(DriverError::misconfigured("its functions make devices"))
    }

    fn parent(&mut self) -> Option<&mut dyn Parent> {
        Some(self)
    }
}

impl Parent for Multi {
    fn add(&mut self, _: u32, number: u32, _: &BTreeMap<String, String>) -> Result<(), DriverError> {
        let pair = self.left.pop().ok_or_else(|| DriverError::misconfigured("no pair is left"))?;
        self.children.add(number, pair)
    }

    fn set(&mut self, number: u32, _: &BTreeMap<String, String>) -> Result<(), DriverError> {
        let pair = *self.children.get(number)?;
        self.children.change(number, pair)
    }

    fn set_active(&mut self, number: u32, is_active: bool) -> Result<(), DriverError> {
        match is_active {
            true => self.children.announce(number, |pair| Pair(*pair)),
            false => self.children.withdraw(number, "made inactive"),
        }
    }

    fn remove(&mut self, number: u32) -> Result<(), DriverError> {
        self.left.push(self.children.remove(number, "deleted")?);
        Ok(())
    }

    fn revoke(&mut self, why: &str) {
        self.children.revoke(why);
    }

    fn function(&self, number: u32) -> Option<FunctionState> {
        let pair = self.children.get(number).ok()?;
        let attributes = BTreeMap::from([("pair".to_owned(), pair.to_string())]);
        Some(FunctionState { attributes, is_active: self.children.is_active(number) })
    }
}

/// A child's share.
struct Pair(u16);

/// Whoever drives such a share.
struct PairDriver;

impl Driver<Child> for PairDriver {
    fn name(&self) -> &'static str {
        "pair"
    }

    fn at_most(&self) -> MgmtInfo {
        SimNet::new().info()
    }

    fn matches(&self, child: &Child) -> bool {
        child.share::<Pair>().is_some()
    }

    fn probe(&mut self, name: &str, child: Child) -> Result<Box<dyn ManagementDevice>, DriverError> {
        let pair = child.share::<Pair>().unwrap().0;
        Ok(Box::new(PairMgmtdev { name: name.to_owned(), pair }))
    }
}

struct PairMgmtdev {
    name: String,
    pair: u16,
}

impl ManagementDevice for PairMgmtdev {
    fn info(&self) -> MgmtInfo {
        MgmtInfo { name: self.name.clone(), max_devices: Some(1), ..SimNet::new().info() }
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("pair".to_owned(), self.pair.to_string())])
    }

    fn create(&mut self, spec: &DeviceSpec, host: DeviceHost) -> Result<Box<dyn VdpaDevice>, DriverError> {
        SimNet::new().create(spec, host)
    }
}

fn port(sfnum: u32, state: PortState) -> PortEntry {
    let (mgmtdev, flavour) = (NAME.to_owned(), "pcisf".to_owned());
    PortEntry { mgmtdev, flavour, pfnum: 0, sfnum, state, attributes: BTreeMap::new() }
}

#[test]
fn card_that_is_pulled_out_takes_its_children_along_and_brings_them_back() {
    let (bus, folder) = (VirtualBus::default(), tempfile::tempdir().unwrap());
    let attached = Attached::new(bus.clone(), vec![Box::new(PairDriver)]);
    let options = Options { attachments: vec![Box::new(attached)], ..Options::embedded(folder.path()) };
    let subsystem = Subsystem::start(options).unwrap();
    let ports = || subsystem.call::<_, PortShow>("port.show", &Select { name: None }).unwrap();
    let child = |number: u32| {
        let all = Select { name: None };
        let shown: MgmtdevShow = subsystem.call("mgmtdev.show", &all).unwrap();
        shown.mgmtdev.find(&format!("auxiliary/model.multi.sf.{number}")).cloned()
    };
    let devices = || subsystem.call::<_, DevShow>("dev.show", &Select { name: None }).unwrap();
    subsystem.register(Multi::new(&bus)).unwrap();
    for port in [port(40, PortState::Active), port(41, PortState::Inactive)] {
        subsystem.call::<_, PortShow>("port.add", &port).unwrap();
    }
    assert_eq!(child(40).unwrap().settings["pair"], "5");
    assert!(child(41).is_none());
    let mgmtdev = "auxiliary/model.multi.sf.40".to_owned();
    subsystem.add(&DeviceEntry { name: "d0".to_owned(), mgmtdev, ..DeviceEntry::default() }).unwrap();
    for format in [Format::Split, Format::Packed] {
        let rig = Rig::new(format, 2);
        let mut frontend = None;
        eventually(|| {
            frontend = Frontend::connect(&folder.path().join("dev/d0.sock"), SOON).ok();
            frontend.is_some()
        });
        let mut frontend = frontend.unwrap();
        rig.introduce(&mut frontend);
        let mut pair = HandPair::new(&rig, 0, Position::START);
        pair.start(&mut frontend, rig.fresh());
        pair.exchange(20);
        subsystem.unregister(NAME, "pulled out").unwrap();
        // All of it is gone when that is answered; the front-end is told by the end of its connection.
        assert!(child(40).is_none() && devices().dev.0.is_empty());
        let why = devices().absent.find("d0").cloned().unwrap();
        assert!(
            why.contains("auxiliary/model.multi.sf.40 is gone: model/multi is gone: pulled out"),
            "{why}"
        );
        let shown = ports();
        assert!(shown.port.is_empty(), "{shown:?}");
        assert_eq!(shown.absent.find("model/multi/41").unwrap(), "model/multi is gone: pulled out");
        eventually(|| frontend.queue_num().is_err());
        // Another card in its place: what was asked of the first is asked of it.
        subsystem.register(Multi::new(&bus)).unwrap();
        let shown = ports();
        assert_eq!(shown.port.find("model/multi/40").unwrap().function.opstate, "attached");
        assert_eq!(shown.port.find("model/multi/41").unwrap().function.state, PortState::Inactive);
        eventually(|| devices().dev.find("d0").is_some());
    }
}
