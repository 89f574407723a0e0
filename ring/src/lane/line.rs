//! A cache line that counts how often it goes from one core to another: the model that tests are run on. Cores are numbers that a
//! test gives; no clock and no thread has a part in it.

use std::cell::Cell;
use std::sync::{Mutex, PoisonError};

/// As the one that is not counted.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Line<T> {
    value: T,
    /// Cores that have a copy, a bit each; whoever wrote it last among them.
    copies: Mutex<u64>,
}

impl<T> Line<T> {
    pub(super) fn new(value: T) -> Line<T> {
        // Nobody has asked for it: whoever comes first has it from memory.
        Line { value, copies: Mutex::new(0) }
    }

    pub(super) fn read(&self) -> &T {
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        let own = 1 << CORE.get();
        if *copies != 0 && *copies & own == 0 {
            TRANSFERS.set(TRANSFERS.get() + 1);
        }
        *copies |= own;
        &self.value
    }

    pub(super) fn write(&self) -> &T {
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        let own = 1 << CORE.get();
        if *copies != 0 && *copies & own == 0 {
            // It has to come here first, if only a part of it is written.
            TRANSFERS.set(TRANSFERS.get() + 1);
        }
        *copies = own;
        &self.value
    }
}

/// This thread is on another core from now on.
pub(super) fn on_core(core: u32) {
    CORE.set(core);
}

/// Lines that came from another core since this was last asked.
pub(super) fn transfers() -> u64 {
    TRANSFERS.replace(0)
}

thread_local! {
    static CORE: Cell<u32> = const { Cell::new(0) };
    static TRANSFERS: Cell<u64> = const { Cell::new(0) };
}
