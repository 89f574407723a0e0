//! Queue pairs of a controller, handed out: functions that an operator makes of it, each a child on the virtual bus with pairs of
//! its own, and with a namespace if its port says so. A child makes one disk.
//!
//! Nothing is done to the controller for it: pairs are made when a guest's queues begin. The IOMMU knows the controller alone, so
//! its functions reach what it reaches, as its own devices do.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{NAMESPACE, NvmeController, Stand, attributes, namespace};
use crate::block::BLOCK;
use crate::block::plan::{MAX_QUEUES, Plan};
use crate::bus::virt::Child;
use crate::driver::Driver;
use crate::vdpa::{
    AttributeInfo, Class, DeviceHost, DeviceSpec, DriverError, FunctionState, Functions, ManagementDevice,
    MgmtInfo, Parent, Unfit, VdpaDevice,
};

/// What a function has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Function {
    pairs: u16,
    namespace: Option<u32>,
}

impl Function {
    /// Before anything is asked for.
    const NEW: Function = Function { pairs: 1, namespace: None };

    /// As it is asked for, on top of what it was.
    fn with(self, attributes: &BTreeMap<String, String>) -> Result<Function, Unfit> {
        let namespace = match number(attributes, NAMESPACE, 0, u32::MAX - 1)? {
            None => self.namespace,
            Some(0) => None,
            set => set,
        };
        let pairs = number(attributes, IO_EQS, 1, MAX_QUEUES.into())?;
        Ok(Function { pairs: pairs.map_or(self.pairs, |pairs| pairs as u16), namespace })
    }
}

/// What can be asked of functions.
pub(super) fn functions() -> Functions {
    Functions {
        attributes: vec![
            AttributeInfo {
                name: NAMESPACE,
                value: "N",
                help: "the namespace that its device has (default 0: its device's own choice)",
                live: None,
            },
            AttributeInfo {
                name: IO_EQS,
                value: "N",
                help: "the function's queue pairs, of its controller's (default 1)",
                live: None,
            },
        ],
        check: |attributes| Function::NEW.with(attributes).map(drop),
        // What a controller has is known once it is there.
        fit: |_| Ok(()),
    }
}

impl Parent for NvmeController {
    fn add(
        &mut self,
        pfnum: u32,
        number: u32,
        attributes: &BTreeMap<String, String>,
    ) -> Result<(), DriverError> {
        if pfnum != 0 {
            let name = &self.stand.name;
            return Err(DriverError::NotFound(format!("{name} has no pfnum {pfnum}: it has one, 0")));
        }
        let function = self.checked(Function::NEW, attributes)?;
        if self.children.get(number).is_err() {
            self.stand.books.promise(number, function.pairs)?;
        }
        self.children.add(number, function)
    }

    fn set(&mut self, number: u32, attributes: &BTreeMap<String, String>) -> Result<(), DriverError> {
        let before = *self.children.get(number)?;
        let function = self.checked(before, attributes)?;
        // What can be refused whatever else goes on comes first: what was promised is not given back for a moment.
        self.children.change(number, function)?;
        self.stand.books.promise(number, function.pairs).inspect_err(|_| {
            // It could be changed just now.
            let _ = self.children.change(number, before);
        })
    }

    fn set_active(&mut self, number: u32, is_active: bool) -> Result<(), DriverError> {
        if !is_active {
            return self.children.withdraw(number, "the function was made inactive");
        }
        let stand = self.stand.clone();
        self.children.announce(number, |function| Share { stand, number, function: *function })
    }

    fn remove(&mut self, number: u32) -> Result<(), DriverError> {
        self.children.remove(number, "the port was deleted")?;
        self.stand.books.take_back(number);
        Ok(())
    }

    fn revoke(&mut self, why: &str) {
        let numbers: Vec<u32> = self.children.all().map(|(number, _)| number).collect();
        self.children.revoke(why);
        numbers.into_iter().for_each(|number| self.stand.books.take_back(number));
    }

    fn function(&self, number: u32) -> Option<FunctionState> {
        let Function { pairs, namespace } = self.children.get(number).ok()?;
        let attributes = BTreeMap::from([
            (NAMESPACE.to_owned(), namespace.unwrap_or(0).to_string()),
            (IO_EQS.to_owned(), pairs.to_string()),
        ]);
        Some(FunctionState { attributes, is_active: self.children.is_active(number) })
    }
}

impl NvmeController {
    /// A function as it is asked for, on top of what it was; its namespace is there.
    fn checked(
        &self,
        before: Function,
        attributes: &BTreeMap<String, String>,
    ) -> Result<Function, DriverError> {
        let function = before.with(attributes)?;
        if attributes.contains_key(NAMESPACE) && function.namespace.is_some() {
            self.stand.namespace(function.namespace)?;
        }
        Ok(function)
    }
}

/// What a function's driver gets.
struct Share {
    stand: Stand,
    number: u32,
    function: Function,
}

/// The driver of the functions.
#[derive(Debug, Default)]
pub struct NvmeFunction;

impl Driver<Child> for NvmeFunction {
    fn name(&self) -> &'static str {
        "nvme-sf"
    }

    fn at_most(&self) -> MgmtInfo {
        describe("auxiliary/pci.".to_owned(), MAX_QUEUES)
    }

    fn matches(&self, child: &Child) -> bool {
        child.share::<Share>().is_some()
    }

    fn probe(&mut self, name: &str, child: Child) -> Result<Box<dyn ManagementDevice>, DriverError> {
        let Some(share) = child.share::<Share>() else {
            return Err(DriverError::NotFound(format!("{name} is no function of an NVMe controller")));
        };
        Ok(Box::new(FunctionMgmtdev { name: name.to_owned(), share }))
    }
}

/// The management device of a function.
struct FunctionMgmtdev {
    name: String,
    share: Arc<Share>,
}

impl ManagementDevice for FunctionMgmtdev {
    fn info(&self) -> MgmtInfo {
        describe(self.name.clone(), self.share.function.pairs)
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let Share { stand, number, function } = &*self.share;
        let known = [
            ("controller", Some(stand.name.clone())),
            ("data_paths", Some("pumped".to_owned())),
            (NAMESPACE, function.namespace.map(|id| id.to_string())),
            ("queue_pairs", Some(function.pairs.to_string())),
            ("queue_pairs_in_use", Some(stand.books.in_use(Some(*number)).to_string())),
        ];
        known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    fn create(&mut self, spec: &DeviceSpec, host: DeviceHost) -> Result<Box<dyn VdpaDevice>, DriverError> {
        let Share { stand, number, function } = &*self.share;
        let asked = namespace(spec)?;
        if let (Some(asked), Some(own)) = (asked, function.namespace)
            && asked != own
        {
            let why = format!("namespace {asked}: {} has the namespace {own} of its port", self.name);
            return Err(DriverError::Misconfigured(why));
        }
        stand.create(Some(*number), function.namespace.or(asked), spec, host)
    }

    fn removed(&mut self, name: &str) {
        self.share.stand.books.end(name);
    }
}

fn describe(name: String, pairs: u16) -> MgmtInfo {
    MgmtInfo {
        name,
        class: Class::Block,
        max_supported_vqs: pairs.into(),
        max_devices: Some(1),
        features: BLOCK,
        attributes: attributes(
            "which of the controller's namespaces (default: its port's, or the one that there is)",
        ),
        functions: None,
        summary: "queue pairs of an NVMe controller: a disk as the controller's own, with a share of its queue pairs",
        check: |_, spec| {
            namespace(spec)?;
            Plan::of_attributes(spec).map(drop)
        },
    }
}

fn number(
    attributes: &BTreeMap<String, String>,
    name: &'static str,
    least: u32,
    most: u32,
) -> Result<Option<u32>, Unfit> {
    let Some(text) = attributes.get(name) else { return Ok(None) };
    match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
        _ => Err(Unfit::new(name, format!("{name} {}: must be {least} to {most}", text.escape_debug()))),
    }
}

/// Named as devlink's.
const IO_EQS: &str = "max_io_eqs";
