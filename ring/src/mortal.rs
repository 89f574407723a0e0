//! For tests: memory whose stores end with the life of the process that makes them.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::sync::{Arc, Mutex};

use crate::guest::GuestMap;
use crate::position::{Position, PositionSlot};
use crate::words::Words;

/// The life of the device sides of one process.
pub(crate) struct Life {
    slots: Vec<PositionSlot>,
    /// Stores that it still makes.
    left: Mutex<usize>,
    /// It dies right after its last store, not only when it would make the next.
    after: bool,
    /// What was kept of each when it died.
    kept: Mutex<Option<Vec<Option<Position>>>>,
}

impl Life {
    /// One that ends at its `death`th store.
    pub(crate) fn until(death: usize, after: bool, slots: Vec<PositionSlot>) -> Arc<Life> {
        Arc::new(Life { slots, left: Mutex::new(death), after, kept: Mutex::new(None) })
    }

    /// What was kept of each slot when it died; None: it lives.
    pub(crate) fn kept(&self) -> Option<Vec<Option<Position>>> {
        self.kept.lock().unwrap().clone()
    }

    fn die(&self) {
        *self.kept.lock().unwrap() = Some(self.slots.iter().map(PositionSlot::load).collect());
    }

    fn store(&self, store: impl FnOnce()) {
        let mut left = self.left.lock().unwrap();
        if self.is_over() {
            return;
        }
        if *left == 0 {
            self.die();
            return;
        }
        store();
        *left -= 1;
        if *left == 0 && self.after {
            self.die();
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.kept.lock().unwrap().is_some()
    }
}

/// An area of a ring whose stores end with the life of the process that makes them.
pub(crate) struct Mortal {
    map: Arc<GuestMap>,
    start: u64,
    len: usize,
    life: Arc<Life>,
}

impl Mortal {
    /// The `len` bytes at guest address `start`.
    pub(crate) fn new(map: &Arc<GuestMap>, start: u64, len: usize, life: &Arc<Life>) -> Mortal {
        Mortal { map: Arc::clone(map), start, len, life: Arc::clone(life) }
    }

    fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.map.resolve(self.start + at as u64, N as u64).unwrap().read(&mut bytes);
        bytes
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        self.life.store(|| {
            self.map.resolve(self.start + at as u64, bytes.len() as u64).unwrap().write(bytes);
        });
    }
}

impl Words for Mortal {
    fn size(&self) -> usize {
        self.len
    }
    fn read_u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.read(at))
    }
    fn read_u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.read(at))
    }
    fn read_u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.read(at))
    }
    fn write_u16(&self, at: usize, value: u16) {
        self.write(at, &value.to_le_bytes());
    }
    fn write_u32(&self, at: usize, value: u32) {
        self.write(at, &value.to_le_bytes());
    }
    fn write_u64(&self, at: usize, value: u64) {
        self.write(at, &value.to_le_bytes());
    }
}
