//! `simnic/NAME`: a simulated multi-function NIC. Its queues are shared out to functions, children on the virtual bus, which an
//! operator makes and removes; an embedded switch joins them with each other and with the NIC's uplink.
//!
//! ```text
//!   auxiliary/simnic.NAME.sf.1 --+
//!   auxiliary/simnic.NAME.sf.2 --+-- embedded switch: a learning bridge -- simnic/NAME: the uplink, a guest or a TAP
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::bridge::{self, DEFAULT_AGEING, FLOOD};
use super::host_port::{HostPort, NETNS, TAP};
use super::joined::{FEATURES, MAX_PAIRS, Members, guest_port};
use super::link::{self, CHECK};
use crate::bus::virt::{Child, Children, VirtualBus};
use crate::driver::Driver;
use crate::net::Mac;
use crate::net::fabric::{BridgeSettings, Fabric};
use crate::net::plan::Offer;
use crate::vdpa::{
    AttributeInfo, Class, ClassSpec, DeviceHost, DeviceSpec, DriverError, FunctionState, Functions, Learned,
    ManagementDevice, MgmtInfo, MgmtKind, MgmtKindInfo, NetMgmt, Parent, Planned, Unfit, VdpaDevice,
};

const CORE: AttributeInfo = AttributeInfo {
    help: "the core that serves the NIC and its functions (default: chosen)",
    ..bridge::CORE
};

/// The kind.
#[derive(Debug)]
pub struct SimNicKind(pub VirtualBus);

impl MgmtKind for SimNicKind {
    fn info(&self) -> MgmtKindInfo {
        MgmtKindInfo {
            name: "simnic",
            attributes: vec![QUEUES, CORE],
            shares_core: true,
            takes_cores: false,
            device: describe(String::new()),
            check: |_, attributes| {
                queues(attributes)?;
                bridge::core(attributes).map(drop)
            },
        }
    }

    fn make(
        &mut self,
        name: &str,
        attributes: &BTreeMap<String, String>,
        core: usize,
    ) -> Result<Box<dyn ManagementDevice>, DriverError> {
        let queues = queues(attributes)?.unwrap_or(DEFAULT_QUEUES);
        let name = format!("simnic/{name}");
        let ageing = Duration::from_secs(DEFAULT_AGEING);
        let (fabric, settings) = Fabric::bridge(&name, core, ageing, bridge::seed());
        let switch = Switch { fabric, settings, members: Arc::default() };
        Ok(Box::new(SimNic { children: Children::new(self.0.clone(), &name), name, switch, queues }))
    }
}

/// The embedded switch.
#[derive(Debug, Clone)]
struct Switch {
    fabric: Arc<Fabric>,
    settings: Arc<BridgeSettings>,
    /// In control's hands alone.
    members: Arc<Mutex<Members>>,
}

impl Switch {
    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One NIC.
#[derive(Debug)]
struct SimNic {
    name: String,
    switch: Switch,
    children: Children<Function>,
    /// Queue pairs that the functions share.
    queues: u16,
}

/// What a function has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Function {
    mac: Option<Mac>,
    pairs: u16,
}

impl Function {
    /// As it is asked for, on top of what it was.
    fn with(self, attributes: &BTreeMap<String, String>) -> Result<Function, Unfit> {
        let mac = match hw_addr(attributes)? {
            None => self.mac,
            Some(NO_MAC) => None,
            set => set,
        };
        Ok(Function { mac, pairs: io_eqs(attributes)?.unwrap_or(self.pairs) })
    }
}

impl SimNic {
    /// Checks that so many pairs are left, beside what one function has.
    fn check_room(&self, pairs: u16, but: Option<u32>) -> Result<(), DriverError> {
        let others = || self.children.all().filter(|(number, _)| Some(*number) != but);
        let left = self.queues - others().map(|(_, function)| function.pairs).sum::<u16>();
        if pairs <= left {
            return Ok(());
        }
        let name = &self.name;
        let holders: Vec<String> =
            others().map(|(number, function)| format!("{name}/{number} ({})", function.pairs)).collect();
        Err(DriverError::Conflict {
            what: format!("{name} has {left} of {} queue pairs left, not {pairs}", self.queues),
            held_by: Some(holders.join(", ")).filter(|holders| !holders.is_empty()),
            hint: format!("ringway mgmtdev set name {name} queues N, or ringway port del of one of these"),
        })
    }
}

impl ManagementDevice for SimNic {
    fn info(&self) -> MgmtInfo {
        describe(self.name.clone())
    }

    fn create(&mut self, spec: &DeviceSpec, _host: DeviceHost) -> Result<Box<dyn VdpaDevice>, DriverError> {
        let (fabric, mut members) = (&self.switch.fabric, self.switch.members());
        if let Some(host) = HostPort::join(fabric, &mut members, spec)? {
            return Ok(Box::new(host));
        }
        let plan = Offer { mgmtdev: "the uplink", features: FEATURES, max_pairs: MAX_PAIRS }.plan(spec)?;
        Ok(Box::new(guest_port(fabric, &mut members, plan, spec)?))
    }

    fn removed(&mut self, name: &str) {
        self.switch.members().leave(name);
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (QUEUES.name.to_owned(), self.queues.to_string()),
            (CORE.name.to_owned(), self.switch.settings.core().to_string()),
        ])
    }

    fn set(&mut self, attributes: &BTreeMap<String, String>) -> Result<bool, DriverError> {
        let (queues, core) = (queues(attributes)?, bridge::core(attributes)?);
        let used = self.children.all().map(|(_, function)| function.pairs).sum::<u16>();
        if let Some(queues) = queues.filter(|queues| *queues < used) {
            return Err(DriverError::Conflict {
                what: format!("queues {queues}: the functions of {} have {used}", self.name),
                held_by: None,
                hint: "ringway port del of some first".to_owned(),
            });
        }
        self.queues = queues.unwrap_or(self.queues);
        // Control knows whether there is a worker on it.
        if let Some(core) = core {
            self.switch.settings.set_core(core);
        }
        Ok(core.is_some())
    }

    fn shared_core(&self) -> Option<usize> {
        Some(self.switch.settings.core())
    }

    fn parent(&mut self) -> Option<&mut dyn Parent> {
        Some(self)
    }

    fn net(&self) -> Option<&dyn NetMgmt> {
        Some(self)
    }
}

impl NetMgmt for SimNic {
    fn stations(&self) -> Learned {
        bridge::learned(&self.switch.settings, &self.switch.members())
    }
}

impl Parent for SimNic {
    fn add(
        &mut self,
        pfnum: u32,
        number: u32,
        attributes: &BTreeMap<String, String>,
    ) -> Result<(), DriverError> {
        if pfnum != 0 {
            return Err(DriverError::NotFound(format!("{} has no pfnum {pfnum}: it has one, 0", self.name)));
        }
        let function = Function { mac: None, pairs: 1 }.with(attributes)?;
        if self.children.get(number).is_err() {
            self.check_room(function.pairs, None)?;
        }
        self.children.add(number, function)
    }

    fn set(&mut self, number: u32, attributes: &BTreeMap<String, String>) -> Result<(), DriverError> {
        let function = self.children.get(number)?.with(attributes)?;
        self.check_room(function.pairs, Some(number))?;
        self.children.change(number, function)
    }

    fn set_active(&mut self, number: u32, is_active: bool) -> Result<(), DriverError> {
        if !is_active {
            return self.children.withdraw(number, "the function was made inactive");
        }
        let switch = self.switch.clone();
        self.children.announce(number, |function| Share { switch, function: *function })
    }

    fn remove(&mut self, number: u32) -> Result<(), DriverError> {
        self.children.remove(number, "the port was deleted").map(drop)
    }

    fn revoke(&mut self, why: &str) {
        self.children.revoke(why);
    }

    fn function(&self, number: u32) -> Option<FunctionState> {
        let Function { mac, pairs } = self.children.get(number).ok()?;
        let attributes = BTreeMap::from([
            (HW_ADDR.name.to_owned(), mac.unwrap_or(NO_MAC).to_string()),
            (IO_EQS.name.to_owned(), pairs.to_string()),
        ]);
        Some(FunctionState { attributes, is_active: self.children.is_active(number) })
    }
}

/// What a function's driver gets.
#[derive(Debug)]
struct Share {
    switch: Switch,
    function: Function,
}

/// The driver of the functions.
#[derive(Debug, Default)]
pub struct SimFunction;

impl Driver<Child> for SimFunction {
    fn name(&self) -> &'static str {
        "simnic-sf"
    }

    fn at_most(&self) -> MgmtInfo {
        describe_function("auxiliary/simnic.".to_owned(), MAX_PAIRS)
    }

    fn matches(&self, child: &Child) -> bool {
        child.share::<Share>().is_some()
    }

    fn probe(&mut self, name: &str, child: Child) -> Result<Box<dyn ManagementDevice>, DriverError> {
        let Some(share) = child.share::<Share>() else {
            return Err(DriverError::NotFound(format!("{name} is no function of a simulated NIC")));
        };
        Ok(Box::new(SimFunctionMgmtdev { name: name.to_owned(), share }))
    }
}

/// One function.
#[derive(Debug)]
struct SimFunctionMgmtdev {
    name: String,
    share: Arc<Share>,
}

impl ManagementDevice for SimFunctionMgmtdev {
    fn info(&self) -> MgmtInfo {
        describe_function(self.name.clone(), self.share.function.pairs)
    }

    fn create(&mut self, spec: &DeviceSpec, _host: DeviceHost) -> Result<Box<dyn VdpaDevice>, DriverError> {
        let (Share { switch, function }, mut spec) = (&*self.share, spec.clone());
        if let (ClassSpec::Net(net), Some(own)) = (&mut spec.class, function.mac) {
            if let Some(other) = net.mac.filter(|mac| *mac != own) {
                let why = format!("mac {other}: {} has the hw_addr {own} of its port", self.name);
                return Err(DriverError::Misconfigured(why));
            }
            net.mac = Some(own);
        }
        let offer = Offer { mgmtdev: "this function", features: FEATURES, max_pairs: function.pairs };
        let plan = offer.plan(&spec)?;
        Ok(Box::new(bridge::join(&switch.fabric, &mut switch.members(), plan, &spec)?))
    }

    fn removed(&mut self, name: &str) {
        self.share.switch.members().leave(name);
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let mac = self.share.function.mac;
        mac.into_iter().map(|mac| ("mac".to_owned(), mac.to_string())).collect()
    }

    fn shared_core(&self) -> Option<usize> {
        Some(self.share.switch.settings.core())
    }
}

fn describe(name: String) -> MgmtInfo {
    MgmtInfo {
        name,
        class: Class::Net,
        max_supported_vqs: u32::from(MAX_PAIRS) * 2,
        max_devices: Some(1),
        features: FEATURES,
        attributes: vec![CHECK, TAP, NETNS],
        functions: Some(Functions {
            attributes: vec![HW_ADDR, IO_EQS],
            check: |attributes| Function { mac: None, pairs: 1 }.with(attributes).map(drop),
            fit,
        }),
        summary: "simulated NIC of many functions (ringway port add); its own device is the uplink",
        check: link::check,
    }
}

/// Whether a function finds queue pairs of its parent left by others.
fn fit(Planned { parent, others, last: (pfnum, last) }: &Planned<'_>) -> Result<(), Unfit> {
    if *pfnum != 0 {
        return Err(Unfit::new("pfnum", format!("pfnum {pfnum}: there is one, 0")));
    }
    let pairs = |attributes: &BTreeMap<String, String>| io_eqs(attributes).map(|pairs| pairs.unwrap_or(1));
    let queues = queues(parent)?.unwrap_or(DEFAULT_QUEUES);
    let used = others.iter().map(|other| pairs(other)).sum::<Result<u16, Unfit>>()?;
    let (left, wanted) = (queues.saturating_sub(used), pairs(last)?);
    if wanted <= left {
        return Ok(());
    }
    let why = format!("{left} of {queues} queue pairs are left by the ports before, not {wanted}");
    Err(Unfit::new(IO_EQS.name, why))
}

fn describe_function(name: String, pairs: u16) -> MgmtInfo {
    MgmtInfo {
        name,
        class: Class::Net,
        max_supported_vqs: u32::from(pairs) * 2,
        max_devices: Some(1),
        features: FEATURES,
        attributes: vec![CHECK, FLOOD],
        functions: None,
        summary: "function of a simulated NIC, joined with the others and the uplink by its embedded switch",
        check: bridge::check,
    }
}

/// The queue pairs that are asked for.
fn queues(attributes: &BTreeMap<String, String>) -> Result<Option<u16>, Unfit> {
    number(attributes, QUEUES.name, MOST_QUEUES)
}

/// The queue pairs of a function that are asked for.
fn io_eqs(attributes: &BTreeMap<String, String>) -> Result<Option<u16>, Unfit> {
    number(attributes, IO_EQS.name, MAX_PAIRS)
}

fn number(
    attributes: &BTreeMap<String, String>,
    name: &'static str,
    most: u16,
) -> Result<Option<u16>, Unfit> {
    let Some(text) = attributes.get(name) else { return Ok(None) };
    match text.parse() {
        Ok(number) if (1..=most).contains(&number) => Ok(Some(number)),
        _ => Err(Unfit::new(name, format!("{name} {}: must be 1 to {most}", text.escape_debug()))),
    }
}

/// The address of a function that is asked for.
fn hw_addr(attributes: &BTreeMap<String, String>) -> Result<Option<Mac>, Unfit> {
    let Some(text) = attributes.get(HW_ADDR.name) else { return Ok(None) };
    let mac: Mac = text.parse().map_err(|bad| Unfit::new(HW_ADDR.name, format!("hw_addr {bad}")))?;
    if mac.is_multicast() {
        return Err(Unfit::new(HW_ADDR.name, format!("hw_addr {mac}: is a group address")));
    }
    Ok(Some(mac))
}

const QUEUES: AttributeInfo = AttributeInfo {
    name: "queues",
    value: "N",
    help: "queue pairs that its functions share (default 16)",
    live: None,
};

/// Named as devlink's.
const HW_ADDR: AttributeInfo = AttributeInfo {
    name: "hw_addr",
    value: "MAC",
    help: "the function's Ethernet address (default 00:00:00:00:00:00: its device's own choice)",
    live: None,
};

/// Named as devlink's.
const IO_EQS: AttributeInfo = AttributeInfo {
    name: "max_io_eqs",
    value: "N",
    help: "the function's queue pairs, of its NIC's (default 1)",
    live: None,
};

/// No address was set, as devlink shows it.
const NO_MAC: Mac = Mac([0; 6]);

const DEFAULT_QUEUES: u16 = 16;

/// Queue pairs of a NIC at most.
const MOST_QUEUES: u16 = 256;
