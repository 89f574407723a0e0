//! `pci/DDDD:BB:DD.F`: an NVMe controller, whoever made it: the physical function, or a virtual one whose primary gave it queues
//! and brought it online.
//!
//! A device is a disk on one namespace of it, served by a pump and a queue pair for each of its virtqueues; the controller reads
//! and writes the guest's memory by itself. All devices of a controller share what it reaches: each has a window of its own, and
//! only addresses that were looked up in a device's own memory go into commands for it.
//!
//! Its queue pairs can be handed out one by one, to children on the virtual bus, each of which makes a disk as the controller does:
//!
//! ```text
//!   auxiliary/pci.DDDD:BB:DD.F.sf.1 --its pairs------+
//!   auxiliary/pci.DDDD:BB:DD.F.sf.2 --its pairs------+-- controller -- namespaces
//!   pci/DDDD:BB:DD.F -----------what pairs are left--+
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use super::functions;
use crate::block::BLOCK;
use crate::block::disk::BlockDevice;
use crate::block::plan::{ATTRIBUTES, MAX_QUEUES, NUM_QUEUES, Plan, number};
use crate::bus::pci::{self, Examiner, Id};
use crate::bus::virt::{Children, VirtualBus};
use crate::driver::Driver;
use crate::nvme::NvmeFault;
use crate::nvme::controller::Controller;
use crate::nvme::identify::{ControllerInfo, Limits, NamespaceInfo};
use crate::vdpa::{
    AttributeInfo, Class, DeviceHost, DeviceSpec, DriverError, ManagementDevice, MgmtInfo, Parent, Unfit,
    VdpaDevice,
};

// Who has what of a controller.
mod books;
// A namespace as a disk.
mod disk;
// Queue pairs of a controller as management devices of their own.
mod function;
// A controller that is open, and who stands on it.
mod live;
// What a pump's requests go to.
mod queue;

pub use function::NvmeFunction;

use books::{Books, Tenure};
use disk::NvmeDisk;
use function::{Function, functions};
use live::Shelf;

/// The driver; functions of its controllers are children on this bus.
#[derive(Debug, Default)]
pub struct Nvme(pub VirtualBus);

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
        let books = Arc::new(Books::new(name, seen.pairs));
        let stand = Stand { name: name.to_owned(), seen: Arc::new(seen), shelf, books };
        Ok(Box::new(NvmeController { children: Children::new(self.0.clone(), name), stand, numa_node }))
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
    fn look(function: &Arc<dyn pci::Function>) -> Result<Seen, NvmeFault> {
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

/// A controller, as all have it that make devices on it.
#[derive(Clone)]
struct Stand {
    /// The controller's management device.
    name: String,
    seen: Arc<Seen>,
    shelf: Arc<Shelf>,
    books: Arc<Books>,
}

impl Stand {
    /// The namespace that a device is to have.
    fn namespace(&self, id: Option<u32>) -> Result<NamespaceInfo, DriverError> {
        let (name, all) = (&self.name, &self.seen.namespaces);
        let listed = || all.keys().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let id = match (id, all.len()) {
            (Some(id), _) => id,
            (None, 1) => all.keys().next().copied().unwrap_or(0),
            (None, 0) => {
                let unfit: Vec<String> =
                    self.seen.unfit.iter().map(|(id, why)| format!("namespace {id}: {why}")).collect();
                let why = match unfit.is_empty() {
                    true => "make one on its primary (nvme create-ns, nvme attach-ns)".to_owned(),
                    false => unfit.join("; "),
                };
                return Err(DriverError::NotFound(format!(
                    "{name} has no namespace that can be a disk: {why}"
                )));
            }
            (None, _) => {
                let why = format!("{name} has the namespaces {}: say namespace N", listed());
                return Err(DriverError::Misconfigured(why));
            }
        };
        if let Some(why) = self.seen.unfit.get(&id) {
            return Err(DriverError::Misconfigured(format!("namespace {id}: {why}")));
        }
        let info = all.get(&id);
        info.copied().ok_or_else(|| {
            let others = if all.is_empty() { "none".to_owned() } else { listed() };
            DriverError::NotFound(format!("{name} has no namespace {id}; it has {others}"))
        })
    }

    /// Makes a device of the controller's own, or of a function's.
    fn create(
        &self,
        of: Option<u32>,
        id: Option<u32>,
        spec: &DeviceSpec,
        host: DeviceHost,
    ) -> Result<Box<dyn VdpaDevice>, DriverError> {
        let mut plan = Plan::new(spec)?;
        let info = self.namespace(id)?;
        let most = self.books.most(of);
        if most == 0 {
            return Err(DriverError::Conflict {
                what: format!(
                    "all {} queue pairs of {} are promised to ports",
                    self.books.total(),
                    self.name
                ),
                held_by: self.books.holders(),
                hint: "ringway port del of one of these, or a device of one (ringway port show)".to_owned(),
            });
        }
        if number(spec, NUM_QUEUES, 1, MAX_QUEUES)?.is_some_and(|queues| queues > most) {
            let why = match of {
                Some(of) => format!(
                    "the function has {most} queue pairs; more by ringway port function set {}/{of} state inactive max_io_eqs N \
                     state active",
                    self.name
                ),
                None if most < self.books.total() => {
                    format!("{} has {most} queue pairs that are not promised to ports", self.name)
                }
                None => format!("{} has {most} queue pairs", self.name),
            };
            return Err(DriverError::Misconfigured(format!("num_queues {}: {why}", plan.num_queues)));
        }
        plan.num_queues = plan.num_queues.min(most);
        let writes = !plan.is_read_only && !info.is_read_only;
        let tenure = Tenure::new(&spec.name, of, info.id, writes);
        self.books.check(&tenure)?;
        let (shelf, books) = (Arc::clone(&self.shelf), Arc::clone(&self.books));
        let Seen { info: controller, limits, .. } = &*self.seen;
        let disk = NvmeDisk::new(shelf, controller, limits, info, (books, Arc::clone(&tenure)), host.clone());
        let device = BlockDevice::new(plan, disk, host)?;
        self.books.begin(tenure);
        Ok(Box::new(device))
    }
}

/// The management device of a controller.
struct NvmeController {
    stand: Stand,
    numa_node: Option<u32>,
    children: Children<Function>,
}

impl ManagementDevice for NvmeController {
    fn info(&self) -> MgmtInfo {
        let queues = self.stand.books.most(None).min(MAX_QUEUES);
        MgmtInfo { name: self.stand.name.clone(), max_supported_vqs: queues.into(), ..at_most() }
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let Stand { seen, books, shelf, .. } = &self.stand;
        let Seen { info, namespaces, unfit, .. } = &**seen;
        let sizes = namespaces.values().map(|info| format!("{}:{}x{}", info.id, info.blocks, info.block()));
        let sizes = sizes.chain(unfit.keys().map(|id| format!("{id}:unfit"))).collect::<Vec<_>>().join(",");
        let known = [
            ("data_paths", Some("pumped".to_owned())),
            ("model", Some(info.model.clone())),
            ("serial", Some(info.serial.clone())),
            ("firmware", Some(info.firmware.clone())),
            ("namespaces", Some(sizes)),
            ("queue_pairs", Some(books.total().to_string())),
            ("own_queue_pairs", Some(books.most(None).to_string())),
            ("own_queue_pairs_in_use", Some(books.in_use(None).to_string())),
            ("numa_node", self.numa_node.map(|node| node.to_string())),
        ];
        let known = known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        known.chain(shelf.counts().attributes()).collect()
    }

    fn create(&mut self, spec: &DeviceSpec, host: DeviceHost) -> Result<Box<dyn VdpaDevice>, DriverError> {
        self.stand.create(None, namespace(spec)?, spec, host)
    }

    fn removed(&mut self, name: &str) {
        self.stand.books.end(name);
    }

    fn parent(&mut self) -> Option<&mut dyn Parent> {
        Some(self)
    }
}

fn at_most() -> MgmtInfo {
    MgmtInfo {
        name: String::new(),
        class: Class::Block,
        max_supported_vqs: MAX_QUEUES.into(),
        max_devices: None,
        features: BLOCK,
        attributes: attributes("which of the controller's namespaces (default: the one that it has)"),
        functions: Some(functions()),
        summary: "NVMe controller; a core passes the guest's requests on, and the controller reaches the guest's memory",
        check: |_, spec| {
            namespace(spec)?;
            Plan::of_attributes(spec).map(drop)
        },
    }
}

/// What `dev add` takes.
fn attributes(namespace: &'static str) -> Vec<AttributeInfo> {
    let namespace = AttributeInfo { name: NAMESPACE, value: "N", help: namespace, live: None };
    std::iter::once(namespace).chain(ATTRIBUTES).collect()
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
