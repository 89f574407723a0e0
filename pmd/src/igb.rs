//! The virtual function of an Intel 82576 (8086:10ca), driven from here: its registers, its mailbox to the PF, its descriptors.
//!
//! A library: it knows neither guests nor devices. What a function or its PF says is a claim: every wait has an end, and all
//! ones is a function that is gone.

// What it says to its PF, and the PF to it.
pub mod mailbox;
// Its registers.
pub mod registers;
// Its descriptor rings.
pub mod rings;
