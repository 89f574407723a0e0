//! `pci/DDDD:BB:DD.F`: an NVMe controller, whoever made it: the physical function, or a virtual one whose primary gave it queues
//! and brought it online.
//!
//! A device is a disk on one namespace of it, served by a pump and a queue pair for each of its virtqueues; the controller reads
//! and writes the guest's memory by itself. All devices of a controller share what it reaches: each has a window of its own, and
//! only addresses that were looked up in a device's own memory go into commands for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::functions;
use crate::block::BLOCK;
use crate::block::disk::BlockDevice;
use crate::block::plan::{ATTRIBUTES, MAX_QUEUES, NUM_QUEUES, Plan, number};
use crate::bus::pci::{self, Examiner, Function, Id};
use crate::driver::Driver;
use crate::nvme::NvmeFault;
use crate::nvme::controller::Controller;
use crate::nvme::identify::{ControllerInfo, Limits, NamespaceInfo};
use crate::vdpa::{
    AttributeInfo, Class, DeviceHost, DeviceSpec, DriverError, ManagementDevice, MgmtInfo, Unfit, VdpaDevice,
};

// A namespace as a disk.
mod disk;
// A controller that is open, and who stands on it.
mod live;
// What a pump's requests go to.
mod queue;

use disk::NvmeDisk;
use live::{Shelf, Tenure};

/// The driver.
#[derive(Debug, Default)]
pub struct Nvme;

impl Driver<pci::Device<functions::Seen>> for Nvme {
    fn name(&self) -> &'static str {
        "nvme"
    }

    fn at_most(&self) -> MgmtInfo {
        at_most()
    }

    fn matches(&self, device: &pci::Device<functions::Seen>) -> bool {
        is_nvme(device.id)
    }

    fn probe(
        &mut self,
        name: &str,
        device: pci::Device<functions::Seen>,
    ) -> Result<Box<dyn ManagementDevice>, DriverError> {
        let pci::Device { numa_node, opener, seen, .. } = device;
        let functions::Seen::Nvme(seen) = seen? else {
            return Err(DriverError::Misconfigured(format!("{name} was looked at as something else")));
        };
        let shelf = Arc::new(Shelf::new(name, opener));
        Ok(Box::new(NvmeFunction {
            name: name.to_owned(),
            seen,
            numa_node,
            shelf,
            taken: BTreeMap::new(),
            users: BTreeMap::new(),
        }))
    }
}

/// How its functions are looked at.
pub const EXAMINER: Examiner<functions::Seen> = Examiner {
    wants: is_nvme,
    look: |function| Seen::look(function).map(functions::Seen::Nvme).map_err(|fault| fault.to_string()),
};

fn is_nvme(id: Id) -> bool {
    id.class == NVME
}

/// What a controller was like when it was looked at.
#[derive(Debug, Clone)]
pub struct Seen {
    info: ControllerInfo,
    limits: Limits,
    pairs: u16,
    /// Those that can be driven, by number.
    namespaces: BTreeMap<u32, NamespaceInfo>,
    /// Those that cannot, and why.
    unfit: BTreeMap<u32, String>,
}

impl Seen {
    /// Looks at one that nobody drives.
    fn look(function: &Arc<dyn Function>) -> Result<Seen, NvmeFault> {
        let controller = Controller::open(Arc::clone(function))?;
        let (mut namespaces, mut unfit) = (BTreeMap::new(), BTreeMap::new());
        for id in controller.namespaces()? {
            match controller.namespace(id) {
                Ok(info) if info.block() <= MOST_BLOCK => drop(namespaces.insert(id, info)),
                Ok(info) => {
                    let why = format!("blocks of {} bytes, and guests can have 4096 at most", info.block());
                    unfit.insert(id, why);
                }
                Err(fault @ NvmeFault::NotOne(_)) => drop(unfit.insert(id, fault.to_string())),
                Err(fault) => return Err(fault),
            }
        }
        Ok(Seen {
            info: controller.info().clone(),
            limits: *controller.limits(),
            pairs: controller.pairs(),
            namespaces,
            unfit,
        })
    }
}

/// The management device.
struct NvmeFunction {
    name: String,
    seen: Seen,
    numa_node: Option<u32>,
    shelf: Arc<Shelf>,
    /// Which device has which namespace.
    taken: BTreeMap<String, u32>,
    /// By namespace: the last device that had it, and whether its queues are there still.
    users: BTreeMap<u32, (String, Arc<Tenure>)>,
}

impl NvmeFunction {
    /// The namespace that a device is to have.
    fn namespace(&self, spec: &DeviceSpec) -> Result<NamespaceInfo, DriverError> {
        let (name, all) = (&self.name, &self.seen.namespaces);
        let listed = || all.keys().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let id = match (namespace(spec)?, all.len()) {
            (Some(id), _) => id,
            (None, 1) => all.keys().next().copied().unwrap_or(0),
            (None, _) => {
                let why = format!("{name} has the namespaces {}: say namespace N", listed());
                return Err(DriverError::Misconfigured(why));
            }
        };
        if let Some(why) = self.seen.unfit.get(&id) {
            return Err(DriverError::Misconfigured(format!("namespace {id}: {why}")));
        }
        let info = all.get(&id).ok_or_else(|| {
            DriverError::NotFound(format!("{name} has no namespace {id}, but {}", listed()))
        })?;
        let is_another = |(holder, taken): &(&String, &u32)| **taken == id && **holder != spec.name;
        if let Some((holder, _)) = self.taken.iter().find(is_another) {
            return Err(DriverError::Conflict {
                what: format!("namespace {id} of {name} is a device's"),
                held_by: Some(format!("device {holder}")),
                hint: format!("another namespace, or ringway dev del {holder}"),
            });
        }
        // What was submitted before may be done after what a new device submits.
        if let Some((before, _)) = self.users.get(&id).filter(|(_, tenure)| tenure.is_in_use()) {
            return Err(DriverError::Conflict {
                what: format!("namespace {id} of {name}: requests of the guest before are still under way"),
                held_by: Some(format!("device {before}, which is gone")),
                hint: "try again once the controller has answered or was reset, which takes some seconds"
                    .to_owned(),
            });
        }
        Ok(*info)
    }
}

impl ManagementDevice for NvmeFunction {
    fn info(&self) -> MgmtInfo {
        let queues = self.seen.pairs.min(MAX_QUEUES);
        MgmtInfo { name: self.name.clone(), max_supported_vqs: queues.into(), ..at_most() }
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let Seen { info, pairs, namespaces, unfit, .. } = &self.seen;
        let sizes = namespaces.values().map(|info| format!("{}:{}x{}", info.id, info.blocks, info.block()));
        let sizes = sizes.chain(unfit.keys().map(|id| format!("{id}:unfit"))).collect::<Vec<_>>().join(",");
        let known = [
            ("data_paths", Some("pumped".to_owned())),
            ("model", Some(info.model.clone())),
            ("serial", Some(info.serial.clone())),
            ("firmware", Some(info.firmware.clone())),
            ("namespaces", Some(sizes)),
            ("queue_pairs", Some(pairs.to_string())),
            ("numa_node", self.numa_node.map(|node| node.to_string())),
        ];
        let known = known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        known.chain(self.shelf.counts().attributes()).collect()
    }

    fn create(&mut self, spec: &DeviceSpec, host: DeviceHost) -> Result<Box<dyn VdpaDevice>, DriverError> {
        let mut plan = Plan::new(spec)?;
        let info = self.namespace(spec)?;
        if number(spec, NUM_QUEUES, 1, MAX_QUEUES)?.is_some_and(|queues| queues > self.seen.pairs) {
            let why =
                format!("num_queues {}: {} has {} queue pairs", plan.num_queues, self.name, self.seen.pairs);
            return Err(DriverError::Misconfigured(why));
        }
        plan.num_queues = plan.num_queues.min(self.seen.pairs);
        let (shelf, tenure) = (Arc::clone(&self.shelf), Arc::new(Tenure::default()));
        let Seen { info: controller, limits, .. } = &self.seen;
        let disk = NvmeDisk::new(shelf, controller, limits, info, Arc::clone(&tenure), host.clone());
        let device = BlockDevice::new(plan, disk, host)?;
        self.removed(&spec.name);
        self.taken.insert(spec.name.clone(), info.id);
        self.users.insert(info.id, (spec.name.clone(), tenure));
        Ok(Box::new(device))
    }

    fn removed(&mut self, name: &str) {
        if let Some((_, tenure)) = self.taken.remove(name).and_then(|id| self.users.get(&id)) {
            tenure.end();
        }
    }
}

fn at_most() -> MgmtInfo {
    let mut attributes = vec![AttributeInfo {
        name: NAMESPACE,
        value: "N",
        help: "which of the controller's namespaces (default: the one that it has)",
        live: None,
    }];
    attributes.extend(ATTRIBUTES);
    MgmtInfo {
        name: String::new(),
        class: Class::Block,
        max_supported_vqs: MAX_QUEUES.into(),
        max_devices: None,
        features: BLOCK,
        attributes,
        functions: None,
        summary: "NVMe controller; a core passes the guest's requests on, and the controller reaches the guest's memory",
        check: |_, spec| {
            namespace(spec)?;
            Plan::of_attributes(spec).map(drop)
        },
    }
}

/// The namespace that is asked for.
fn namespace(spec: &DeviceSpec) -> Result<Option<u32>, Unfit> {
    number(spec, NAMESPACE, 1, u32::MAX - 1)
}

const NAMESPACE: &str = "namespace";
/// Class, subclass and programming interface of a controller.
const NVME: u32 = 0x01_08_02;
/// Bytes of a block at most, as guests have it.
const MOST_BLOCK: u64 = 4096;
