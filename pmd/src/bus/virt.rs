//! The virtual bus: its devices are the children of multi-function devices, each with a share of its parent. What the share is
//! made of is between the parent's driver and the child's: queues of a NIC, queue pairs of an NVMe controller.
//!
//! ```text
//!   parent's driver -- Children --announces, withdraws--> VirtualBus --> a driver that knows the share
//! ```
//!
//! It is the kernel's auxiliary bus, and named so. A child is called by its parent and the number that the operator gave it:
//! `simnic.nic0.sf.88` is child 88 of `simnic/nic0`.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Bus, BusEvent, BusInfo};
use crate::vdpa::DriverError;

/// What the bus says of itself.
pub const INFO: BusInfo = BusInfo {
    name: "auxiliary",
    shape: "PARENT.sf.N",
    check: |text| match parse(text) {
        Some(_) => Ok(()),
        None => Err(format!(
            "`{}` is no child's name: write its parent with a point for the slash, and its number, as in simnic.nic0.sf.88",
            text.escape_debug()
        )),
    },
    missing: |text| {
        let Some((parent, number)) = parse(text) else { return String::new() };
        format!(
            "ringway port show; it is there while port {parent}/{number} is active: ringway port add {parent} flavour pcisf pfnum 0 \
             sfnum {number}, ringway port function set {parent}/{number} state active"
        )
    },
};

/// The address of a child.
pub fn address(parent: &str, number: u32) -> String {
    format!("{}.sf.{number}", parent.replacen('/', ".", 1))
}

/// The parent and the number that an address says.
fn parse(address: &str) -> Option<(String, u32)> {
    let (parent, number) = address.rsplit_once(".sf.")?;
    let (bus, name) = parent.split_once('.')?;
    let value: u32 = number.parse().ok()?;
    let is_one = !bus.is_empty() && !name.is_empty() && value.to_string() == number;
    is_one.then(|| (format!("{bus}/{name}"), value))
}

/// The bus: one for the process, in the hands of all parents. Control, which alone makes parents and changes their children, looks at it after
/// each change.
#[derive(Clone, Default)]
pub struct VirtualBus(Arc<Mutex<Vec<BusEvent<Child>>>>);

impl fmt::Debug for VirtualBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualBus").finish_non_exhaustive()
    }
}

impl VirtualBus {
    /// Held for an assignment.
    fn events(&self) -> MutexGuard<'_, Vec<BusEvent<Child>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bus for VirtualBus {
    type Device = Child;

    fn info(&self) -> BusInfo {
        INFO
    }

    fn news(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn take(&mut self) -> Vec<BusEvent<Child>> {
        std::mem::take(&mut *self.events())
    }
}

/// A child as its driver gets it.
#[derive(Clone)]
pub struct Child {
    /// Its parent's management device.
    pub parent: String,
    /// Its number there.
    pub number: u32,
    share: Arc<dyn Any + Send + Sync>,
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child")
            .field("parent", &self.parent)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Child {
    /// Its share, if it is one of these: who drives such shares drives the child.
    pub fn share<S: Any + Send + Sync>(&self) -> Option<Arc<S>> {
        Arc::clone(&self.share).downcast().ok()
    }
}

/// The children of one parent, in its driver's hands, each with what the driver keeps of it. Dropped, all of them are withdrawn.
pub struct Children<F> {
    bus: VirtualBus,
    parent: String,
    slots: BTreeMap<u32, Slot<F>>,
}

struct Slot<F> {
    function: F,
    is_active: bool,
    /// What it was when it was announced last.
    announced: Option<F>,
}

impl<F: fmt::Debug> fmt::Debug for Children<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Children").field("parent", &self.parent).finish_non_exhaustive()
    }
}

impl<F> Children<F> {
    /// None yet, of this parent's.
    pub fn new(bus: VirtualBus, parent: &str) -> Children<F> {
        Children { bus, parent: parent.to_owned(), slots: BTreeMap::new() }
    }

    /// Takes a number. Nobody sees the child yet.
    ///
    /// # Errors
    /// It is taken.
    pub fn add(&mut self, number: u32, function: F) -> Result<(), DriverError> {
        if self.slots.contains_key(&number) {
            let port = self.port(number);
            return Err(DriverError::Conflict {
                what: format!("sfnum {number} of {} is taken", self.parent),
                held_by: Some(format!("port {port}")),
                hint: format!("another sfnum, or ringway port del {port}"),
            });
        }
        self.slots.insert(number, Slot { function, is_active: false, announced: None });
        Ok(())
    }

    /// What is kept of a child.
    ///
    /// # Errors
    /// There is none of this number.
    pub fn get(&self, number: u32) -> Result<&F, DriverError> {
        Ok(&self.slot(number)?.function)
    }

    /// All of them, in the order of their numbers.
    pub fn all(&self) -> impl Iterator<Item = (u32, &F)> {
        self.slots.iter().map(|(number, slot)| (*number, &slot.function))
    }

    /// Changes what is kept of a child.
    ///
    /// # Errors
    /// There is none of this number, or it is active: its driver has what it was.
    pub fn change(&mut self, number: u32, function: F) -> Result<(), DriverError> {
        let (port, is_active) = (self.port(number), self.slot(number)?.is_active);
        if is_active {
            return Err(DriverError::Conflict {
                what: format!("the function of port {port} is active"),
                held_by: Some(format!("{}/{}", INFO.name, address(&self.parent, number))),
                hint: format!(
                    "ringway port function set {port} state inactive, which takes its device out; then again"
                ),
            });
        }
        if let Some(slot) = self.slots.get_mut(&number) {
            slot.function = function;
        }
        Ok(())
    }

    /// True if it was announced.
    pub fn is_active(&self, number: u32) -> bool {
        self.slots.get(&number).is_some_and(|slot| slot.is_active)
    }

    /// Announces a child with its share, if it was not yet. One that was withdrawn, and nobody heard of it, was never away if
    /// it is what it was: its devices stay.
    ///
    /// # Errors
    /// There is none of this number.
    pub fn announce<S: Any + Send + Sync>(
        &mut self,
        number: u32,
        share: impl FnOnce(&F) -> S,
    ) -> Result<(), DriverError>
    where
        F: Clone + PartialEq,
    {
        self.slot(number)?;
        let Children { bus, parent, slots } = self;
        if let Some(slot) = slots.get_mut(&number).filter(|slot| !slot.is_active) {
            slot.is_active = true;
            let address = address(parent, number);
            let mut events = bus.events();
            let of = |event: &BusEvent<Child>| match event {
                BusEvent::Announced { address, .. } | BusEvent::Withdrawn { address, .. } => address.clone(),
            };
            let last = events.iter().rposition(|event| of(event) == address);
            let is_unheard = |at: &usize| matches!(events.get(*at), Some(BusEvent::Withdrawn { .. }));
            if slot.announced.as_ref() == Some(&slot.function)
                && let Some(at) = last.filter(is_unheard)
            {
                events.remove(at);
                return Ok(());
            }
            slot.announced = Some(slot.function.clone());
            let share = Arc::new(share(&slot.function));
            let device = Child { parent: parent.clone(), number, share };
            events.push(BusEvent::Announced { address, device });
        }
        Ok(())
    }

    /// Withdraws a child, if it was announced. Its number stays taken.
    ///
    /// # Errors
    /// There is none of this number.
    pub fn withdraw(&mut self, number: u32, why: &str) -> Result<(), DriverError> {
        self.slot(number)?;
        let Children { bus, parent, slots } = self;
        if let Some(slot) = slots.get_mut(&number).filter(|slot| slot.is_active) {
            slot.is_active = false;
            let address = address(parent, number);
            bus.events().push(BusEvent::Withdrawn { address, why: why.to_owned() });
        }
        Ok(())
    }

    /// Withdraws a child and gives its number free.
    ///
    /// # Errors
    /// There is none of this number.
    pub fn remove(&mut self, number: u32, why: &str) -> Result<F, DriverError> {
        self.withdraw(number, why)?;
        let slot = self.slots.remove(&number);
        slot.map(|slot| slot.function).ok_or_else(|| self.no_such(number))
    }

    /// Removes all of them: their parent goes.
    pub fn revoke(&mut self, why: &str) {
        while let Some(number) = self.slots.keys().next().copied() {
            let _ = self.remove(number, why);
        }
    }

    fn slot(&self, number: u32) -> Result<&Slot<F>, DriverError> {
        self.slots.get(&number).ok_or_else(|| self.no_such(number))
    }

    fn no_such(&self, number: u32) -> DriverError {
        DriverError::NotFound(format!("there is no port {}", self.port(number)))
    }

    fn port(&self, number: u32) -> String {
        format!("{}/{number}", self.parent)
    }
}

impl<F> Drop for Children<F> {
    fn drop(&mut self) {
        let why = format!("{} is gone", self.parent);
        self.revoke(&why);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "what fails here fails the test")]
mod tests {
    use super::*;

    fn told(bus: &mut VirtualBus) -> Vec<String> {
        let told = bus.take().into_iter().map(|event| match event {
            BusEvent::Announced { address, .. } => format!("+{address}"),
            BusEvent::Withdrawn { address, why } => format!("-{address}: {why}"),
        });
        told.collect()
    }

    #[test]
    fn addresses_say_parent_and_number() {
        for (parent, number, text) in [
            ("simnic/nic0", 88, "simnic.nic0.sf.88"),
            ("pci/0000:01:00.0", 0, "pci.0000:01:00.0.sf.0"),
            ("simnic/a.sf.1", u32::MAX, "simnic.a.sf.1.sf.4294967295"),
        ] {
            assert_eq!(address(parent, number), text);
            assert_eq!(parse(text), Some((parent.to_owned(), number)));
            assert_eq!((INFO.check)(text), Ok(()));
            assert!((INFO.missing)(text).contains(&format!("set {parent}/{number} state active")));
        }
        for text in [
            "",
            "nic0.sf.1",
            ".nic0.sf.1",
            "simnic..sf.1",
            "simnic.nic0.sf.",
            "simnic.nic0.sf.01",
            "simnic.nic0",
        ]
        .into_iter()
        .chain(["simnic.nic0.sf.4294967296", "simnic.nic0.sf.-1", "simnic.nic0.sf.+1"])
        {
            assert!((INFO.check)(text).is_err(), "{text}");
        }
    }

    #[test]
    fn withdrawal_that_nobody_heard_of_is_taken_back_unless_the_child_changed() {
        let mut bus = VirtualBus::default();
        let mut children = Children::new(bus.clone(), "simnic/n");
        for number in [1, 2] {
            children.add(number, "one").unwrap();
            children.announce(number, |_| 0).unwrap();
        }
        told(&mut bus);
        // Changed, and changed back.
        children.withdraw(1, "asked").unwrap();
        children.change(1, "other").unwrap();
        children.change(1, "one").unwrap();
        children.announce(1, |_| 0).unwrap();
        assert_eq!((told(&mut bus), children.is_active(1)), (Vec::new(), true));
        children.withdraw(2, "asked").unwrap();
        children.withdraw(1, "asked").unwrap();
        children.change(1, "other").unwrap();
        children.announce(1, |_| 0).unwrap();
        children.announce(2, |_| 0).unwrap();
        assert_eq!(told(&mut bus), ["-simnic.n.sf.1: asked", "+simnic.n.sf.1"]);
        // One that was heard of stands, and so does that of a number given to another one.
        children.withdraw(2, "asked").unwrap();
        assert_eq!(told(&mut bus), ["-simnic.n.sf.2: asked"]);
        children.announce(2, |_| 0).unwrap();
        assert_eq!(told(&mut bus), ["+simnic.n.sf.2"]);
        children.remove(2, "deleted").unwrap();
        children.add(2, "one").unwrap();
        children.announce(2, |_| 0).unwrap();
        assert_eq!(told(&mut bus), ["-simnic.n.sf.2: deleted", "+simnic.n.sf.2"]);
    }

    #[test]
    fn children_are_seen_while_they_are_active_and_go_with_their_parent() {
        let mut bus = VirtualBus::default();
        let mut children = Children::new(bus.clone(), "simnic/n");
        children.add(1, "one").unwrap();
        children.add(2, "two").unwrap();
        children.add(7, "seven").unwrap();
        assert!(matches!(children.add(2, "again"), Err(DriverError::Conflict { .. })));
        assert!(told(&mut bus).is_empty(), "nobody sees them yet");
        children.announce(2, |function| function.len()).unwrap();
        children.announce(2, |_| -> usize { unreachable!("it is active") }).unwrap();
        let [BusEvent::Announced { address, device }] = &bus.take()[..] else { unreachable!("one event") };
        assert_eq!(
            (address.as_str(), device.parent.as_str(), device.number),
            ("simnic.n.sf.2", "simnic/n", 2)
        );
        assert_eq!(device.share::<usize>().as_deref(), Some(&3));
        assert!(device.share::<u32>().is_none(), "of another kind");
        assert!(matches!(children.change(2, "other"), Err(DriverError::Conflict { .. })));
        children.withdraw(2, "told so").unwrap();
        children.withdraw(2, "told so").unwrap();
        children.change(2, "other").unwrap();
        assert_eq!(children.get(2).unwrap(), &"other");
        assert_eq!(told(&mut bus), ["-simnic.n.sf.2: told so"]);
        for outcome in [children.withdraw(3, ""), children.announce(3, |_| 0), children.change(3, "")] {
            assert!(matches!(outcome, Err(DriverError::NotFound(_))));
        }
        children.announce(1, |_| 0).unwrap();
        children.announce(2, |_| 0).unwrap();
        assert_eq!(children.remove(1, "deleted").unwrap(), "one");
        drop(children);
        let seen = [
            "+simnic.n.sf.1",
            "+simnic.n.sf.2",
            "-simnic.n.sf.1: deleted",
            "-simnic.n.sf.2: simnic/n is gone",
        ];
        assert_eq!(told(&mut bus), seen);
    }
}
