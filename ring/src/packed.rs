//! Packed virtqueues: see the head of [`crate::queue`] for the contract.

/// The device's side.
pub mod device;
/// The driver's side.
pub mod driver;
