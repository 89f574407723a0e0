//! Hardware that can be divided: functions that operators make of one management device, each a child on the virtual bus.

use std::collections::BTreeMap;

use super::{AttributeInfo, DriverError, Unfit};

/// What can be made of a management device whose hardware can be divided.
#[derive(Debug, Clone)]
pub struct Functions {
    /// Attributes of a function: of `port function set`, beside its state.
    pub attributes: Vec<AttributeInfo>,
    /// Checks their values.
    pub check: fn(&BTreeMap<String, String>) -> Result<(), Unfit>,
    /// Checks whether a last one fits beside the others, before any of it is there.
    pub fit: fn(&Planned<'_>) -> Result<(), Unfit>,
}

/// Functions of one management device that are to be made together.
#[derive(Debug)]
pub struct Planned<'a> {
    /// Attributes of the management device.
    pub parent: &'a BTreeMap<String, String>,
    /// Attributes of the functions before it.
    pub others: Vec<&'a BTreeMap<String, String>>,
    /// Of which physical function the last is, and its attributes.
    pub last: (u32, &'a BTreeMap<String, String>),
}

/// A function as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionState {
    /// Its attributes as they are in force.
    pub attributes: BTreeMap<String, String>,
    /// It was announced on the virtual bus.
    pub is_active: bool,
}

/// What only management devices do whose hardware can be divided. Called by the control thread, which looks at the virtual bus
/// afterwards; waits for nobody. A function is known by the number that the operator gave it.
pub trait Parent {
    /// Takes the share of a new function out of what is left. Nobody sees it yet. `attributes`: only declared ones.
    ///
    /// # Errors
    /// The number is taken, nothing is left, or it cannot be so; nothing is changed.
    fn add(
        &mut self,
        pfnum: u32,
        number: u32,
        attributes: &BTreeMap<String, String>,
    ) -> Result<(), DriverError>;
    /// Changes attributes of a function that is not active.
    ///
    /// # Errors
    /// It is active or not there, or cannot be so; nothing is changed.
    fn set(&mut self, number: u32, attributes: &BTreeMap<String, String>) -> Result<(), DriverError>;
    /// Announces a function on the bus, or withdraws it from there; both when it is so already.
    ///
    /// # Errors
    /// There is none of this number.
    fn set_active(&mut self, number: u32, is_active: bool) -> Result<(), DriverError>;
    /// Withdraws a function and takes its share back.
    ///
    /// # Errors
    /// There is none of this number.
    fn remove(&mut self, number: u32) -> Result<(), DriverError>;
    /// Removes all of them: the management device goes, and why, for people.
    fn revoke(&mut self, why: &str);
    /// A function, if it is there.
    fn function(&self, number: u32) -> Option<FunctionState>;
}
