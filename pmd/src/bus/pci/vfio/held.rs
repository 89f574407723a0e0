//! Which functions this process has open: a group is open once, and a device that is removed is let go of on another thread than
//! the one that makes the next.

use std::sync::{Mutex, PoisonError};

use crate::bus::pci::Address;

/// What is open, each as often as somebody holds it: whoever is refused lets go again, and that is not the other's end.
static HELD: Mutex<Vec<Address>> = Mutex::new(Vec::new());

/// A function that this process has open, until the last of its descriptors is closed and its registers are mapped no more.
#[derive(Debug)]
pub(super) struct Held(Address);

impl Held {
    pub(super) fn new(address: Address) -> Held {
        HELD.lock().unwrap_or_else(PoisonError::into_inner).push(address);
        Held(address)
    }

    /// This process has it open, or closes it at this moment.
    pub(super) fn is(address: Address) -> bool {
        HELD.lock().unwrap_or_else(PoisonError::into_inner).contains(&address)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = held.iter().position(|address| *address == self.0) {
            held.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn function_is_held_until_the_last_of_it_is_let_go() {
        let address: Address = "0000:fe:1d.7".parse().unwrap();
        assert!(!Held::is(address));
        let (first, second) = (Held::new(address), Held::new(address));
        drop(first);
        assert!(Held::is(address));
        drop(second);
        assert!(!Held::is(address));
    }
}
