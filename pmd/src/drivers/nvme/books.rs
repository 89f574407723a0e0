//! Who has what of a controller: its namespaces, and its queue pairs, of which some are promised to functions.
//!
//! A function's share of the pairs is its own, whether it uses them or not; the controller's own disks use what is left, as it
//! comes. Requests may outlive their device: what they hold, its namespace and a pair for each queue, is nobody else's until then.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::vdpa::DriverError;

/// See the module's head.
pub(super) struct Books {
    controller: String,
    total: u16,
    pages: Mutex<Pages>,
    /// Told when a pair is given back.
    given_back: Condvar,
}

#[derive(Default)]
struct Pages {
    /// By number, the pairs of the functions.
    shares: BTreeMap<u32, u16>,
    /// By name, the devices that are there.
    devices: BTreeMap<String, Arc<Tenure>>,
    used: Vec<Used>,
    next: u64,
}

/// A pair that a queue has.
struct Used {
    id: u64,
    tenure: Arc<Tenure>,
}

/// The time of a device on a controller.
#[derive(Debug)]
pub(super) struct Tenure {
    device: String,
    /// The function that it is of.
    of: Option<u32>,
    namespace: u32,
    writes: bool,
    /// The device was removed, or made anew.
    is_over: AtomicBool,
}

/// A queue's pair, given back with this.
pub(super) struct Claim {
    books: Arc<Books>,
    id: u64,
}

impl Tenure {
    /// Of a device of the controller's own, or of this function's.
    pub(super) fn new(device: &str, of: Option<u32>, namespace: u32, writes: bool) -> Arc<Tenure> {
        Arc::new(Tenure { device: device.to_owned(), of, namespace, writes, is_over: false.into() })
    }

    fn is_over(&self) -> bool {
        // Relaxed: set and read under the books' lock.
        self.is_over.load(Ordering::Relaxed)
    }

    /// Who it is, to an operator.
    fn told(&self) -> String {
        format!("device {}{}", self.device, if self.is_over() { ", which is gone" } else { "" })
    }

    /// Both cannot be: they have the same namespace, and one of them writes.
    fn excludes(&self, other: &Tenure) -> bool {
        self.namespace == other.namespace && (self.writes || other.writes)
    }
}

impl Books {
    /// Of a controller with so many queue pairs.
    pub(super) fn new(controller: &str, total: u16) -> Books {
        let (pages, given_back) = (Mutex::default(), Condvar::new());
        Books { controller: controller.to_owned(), total, pages, given_back }
    }

    /// Queue pairs of the controller.
    pub(super) fn total(&self) -> u16 {
        self.total
    }

    /// The most pairs that devices of a function can have, or of the controller's own.
    pub(super) fn most(&self, of: Option<u32>) -> u16 {
        self.pages().most(self.total, of)
    }

    /// Pairs that are in use, of the same.
    pub(super) fn in_use(&self, of: Option<u32>) -> usize {
        self.pages().in_use(of)
    }

    /// The functions, by their ports, and the controller's own devices, with the pairs that they have.
    pub(super) fn holders(&self) -> Option<String> {
        self.pages().holders(&self.controller, None)
    }

    /// So many pairs are a function's from now on, whatever it had before.
    ///
    /// # Errors
    /// There are not as many left. It has what it had.
    pub(super) fn promise(&self, function: u32, pairs: u16) -> Result<(), DriverError> {
        let mut pages = self.pages();
        let others = pages.shares.iter().filter(|(of, _)| **of != function);
        let others: u16 = others.map(|(_, pairs)| pairs).sum();
        // Those of devices that are gone are given back soon.
        let is_own = |used: &&Used| used.tenure.of.is_none() && !used.tenure.is_over();
        let own = pages.used.iter().filter(is_own).count();
        let left = usize::from(self.total - others).saturating_sub(own);
        if usize::from(pairs) > left {
            let Books { controller, total, .. } = self;
            return Err(DriverError::Conflict {
                what: format!("{controller} has {left} of {total} queue pairs left, not {pairs}"),
                held_by: pages.holders(controller, Some(function)),
                hint: "ringway port del of one of these, port function set PORT max_io_eqs N with fewer, or ringway dev del"
                    .to_owned(),
            });
        }
        pages.shares.insert(function, pairs);
        Ok(())
    }

    /// What a function had is the controller's again.
    pub(super) fn take_back(&self, function: u32) {
        self.pages().shares.remove(&function);
    }

    /// Checks that a device can have its namespace: one device writes it, or any number of them read.
    ///
    /// # Errors
    /// Another has it, or requests of one that is gone are under way.
    pub(super) fn check(&self, wanted: &Tenure) -> Result<(), DriverError> {
        let (pages, namespace, controller) = (self.pages(), wanted.namespace, &self.controller);
        let others = || pages.devices.values().filter(|other| other.device != wanted.device);
        if let Some(Tenure { device, writes, .. }) =
            others().find(|other| wanted.excludes(other)).map(|other| &**other)
        {
            let cure = if *writes { "another namespace" } else { "ro on, another namespace" };
            return Err(DriverError::Conflict {
                what: format!("namespace {namespace} of {controller} is a device's"),
                held_by: Some(format!("device {device}")),
                hint: format!("{cure}, or ringway dev del {device}"),
            });
        }
        // What was submitted before may be done after what a new device submits.
        if let Some(before) = pages.used.iter().find(|used| wanted.excludes(&used.tenure)) {
            return Err(DriverError::Conflict {
                what: format!(
                    "namespace {namespace} of {controller}: requests of the guest before are still under way"
                ),
                held_by: Some(before.tenure.told()),
                hint: "try again once the controller has answered or was reset, which takes some seconds"
                    .to_owned(),
            });
        }
        Ok(())
    }

    /// The device is there, in place of one of its name.
    pub(super) fn begin(&self, tenure: Arc<Tenure>) {
        let mut pages = self.pages();
        if let Some(before) = pages.devices.insert(tenure.device.clone(), tenure) {
            before.is_over.store(true, Ordering::Relaxed);
        }
        drop(pages);
        self.given_back.notify_all();
    }

    /// The device of this name was removed: no queue of it begins any more.
    pub(super) fn end(&self, device: &str) {
        let mut pages = self.pages();
        if let Some(tenure) = pages.devices.remove(device) {
            tenure.is_over.store(true, Ordering::Relaxed);
        }
        drop(pages);
        self.given_back.notify_all();
    }

    /// Takes a pair for a queue of a device. Waits while devices that are gone have pairs still: called by who may.
    ///
    /// # Errors
    /// The device was removed, or there is none, and who has them.
    pub(super) fn claim(self: &Arc<Books>, tenure: &Arc<Tenure>) -> Result<Claim, String> {
        let (mut pages, begun, total) = (self.pages(), Instant::now(), usize::from(self.total));
        loop {
            if tenure.is_over() {
                return Err("the device was removed".to_owned());
            }
            let most = pages.most(self.total, tenure.of);
            if pages.in_use(tenure.of) < usize::from(most) && pages.used.len() < total {
                let id = pages.next;
                pages.next += 1;
                pages.used.push(Used { id, tenure: Arc::clone(tenure) });
                return Ok(Claim { books: Arc::clone(self), id });
            }
            let left = GIVEN_BACK_WITHIN.checked_sub(begun.elapsed());
            let Some(left) = left.filter(|_| pages.used.iter().any(|used| used.tenure.is_over())) else {
                let whose = match tenure.of {
                    Some(_) => format!("the function has {most} of {total} queue pairs"),
                    None => format!("{most} of {total} queue pairs are no port's"),
                };
                let holders = pages.holders(&self.controller, None).unwrap_or_default();
                return Err(format!("{whose}, and none of them is free: {holders}"));
            };
            pages = self.given_back.wait_timeout(pages, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Held for an assignment, or a look through some 100 entries.
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    fn most(&self, total: u16, of: Option<u32>) -> u16 {
        match of {
            Some(of) => self.shares.get(&of).copied().unwrap_or(0),
            None => total - self.shares.values().sum::<u16>(),
        }
    }

    fn in_use(&self, of: Option<u32>) -> usize {
        self.used.iter().filter(|used| used.tenure.of == of).count()
    }

    fn holders(&self, controller: &str, but: Option<u32>) -> Option<String> {
        let ports = self.shares.iter().filter(|(of, _)| Some(**of) != but);
        let ports = ports.map(|(of, pairs)| format!("port {controller}/{of} ({pairs})"));
        let mut devices: BTreeMap<String, usize> = BTreeMap::new();
        // Those of functions have their ports'.
        let is_named = |used: &&Used| {
            used.tenure.is_over() || used.tenure.of.is_none_or(|of| !self.shares.contains_key(&of))
        };
        for Used { tenure, .. } in self.used.iter().filter(is_named) {
            *devices.entry(tenure.told()).or_default() += 1;
        }
        let devices = devices.into_iter().map(|(device, pairs)| format!("{device} ({pairs})"));
        let holders: Vec<String> = ports.chain(devices).collect();
        Some(holders.join(", ")).filter(|holders| !holders.is_empty())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.books.pages().used.retain(|used| used.id != self.id);
        self.books.given_back.notify_all();
    }
}

/// Devices that are gone have left their pairs within this, unless the controller hangs.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(30);
