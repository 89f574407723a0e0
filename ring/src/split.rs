//! Split virtqueues: see the head of [`crate::queue`] for the contract.


pub mod device;

pub mod driver;
