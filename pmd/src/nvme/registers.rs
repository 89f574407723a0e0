//! Registers of a controller, in its BAR 0: found, checked, and used in the order that the specification demands.

use std::time::{Duration, Instant};

use super::{NvmeFault, PAGE};
use crate::bus::pci::{Function, View};

/// The registers.
#[derive(Debug, Clone)]
pub struct Registers {
    bar: View,
    capabilities: u64,
}

/// The admin queues, as the controller reaches them.
#[derive(Debug, Clone, Copy)]
pub(super) struct AdminPlace {
    pub(super) submissions: u64,
    pub(super) completions: u64,
    /// Entries of either.
    pub(super) size: u16,
}

impl Registers {
    /// Those of a function.
    ///
    /// # Errors
    /// It has none that answer, or is no controller that can be driven.
    pub fn find(function: &dyn Function) -> Result<Registers, NvmeFault> {
        let bar = function.bar(BAR).map_err(|error| NvmeFault::NotOne(format!("BAR {BAR}: {error}")))?;
        let capabilities = u64::from(bar.read32(CAP)) | u64::from(bar.read32(CAP + 4)) << 32;
        let registers = Registers { bar, capabilities };
        registers.check_capabilities()?;
        if registers.doorbells(1).is_none() {
            return Err(NvmeFault::NotOne(format!("BAR {BAR} has {} bytes", registers.bar.size())));
        }
        Ok(registers)
    }

    fn check_capabilities(&self) -> Result<(), NvmeFault> {
        let status = self.bar.read32(CSTS);
        match (self.capabilities, status) {
            (_, u32::MAX) | (u64::MAX, _) => return Err(NvmeFault::Gone),
            (0, 0) => return Err(NvmeFault::NotDecoded),
            (0, _) => return Err(NvmeFault::Offline),
            _ => {}
        }
        let bits = |from: u32, count: u32| self.capabilities >> from & ((1 << count) - 1);
        if bits(48, 4) != 0 {
            return Err(NvmeFault::NotOne(format!("its smallest page has {} KiB, not 4", 4 << bits(48, 4))));
        }
        if bits(37, 8) & 1 == 0 {
            return Err(NvmeFault::NotOne("it has no NVM command set".to_owned()));
        }
        if self.most_entries() < 2 {
            return Err(NvmeFault::NotOne("its queues have one entry".to_owned()));
        }
        Ok(())
    }

    /// Entries of a queue at most.
    pub fn most_entries(&self) -> u16 {
        (self.capabilities as u16).saturating_add(1)
    }

    /// It becomes ready, and ceases to be, within this.
    fn patience(&self) -> Duration {
        let claimed = Duration::from_millis(500) * (self.capabilities >> 24 & 0xff) as u32;
        claimed.clamp(LEAST_PATIENCE, MOST_PATIENCE)
    }

    /// The doorbells of the queues of this number, if they have some.
    pub(super) fn doorbells(&self, queue: u16) -> Option<Doorbells> {
        let stride = 4u64 << (self.capabilities >> 32 & 0xf);
        let view = self.bar.part(DOORBELLS + 2 * u64::from(queue) * stride, stride + 4)?;
        Some(Doorbells { view, stride })
    }

    /// It answers, and works.
    ///
    /// # Errors
    /// It does not.
    pub fn check(&self) -> Result<(), NvmeFault> {
        let status = self.bar.read32(CSTS);
        match status {
            u32::MAX => Err(NvmeFault::Gone),
            _ if status & FAILED == 0 => Ok(()),
            _ if self.bar.read32(CAP) == 0 && self.bar.read32(CAP + 4) == 0 => Err(NvmeFault::Offline),
            _ => Err(NvmeFault::Failed),
        }
    }

    /// It is enabled, and has not failed.
    pub fn is_ready(&self) -> bool {
        self.bar.read32(CSTS) & (READY | FAILED) == READY
    }

    /// It begins, with these admin queues, which are empty.
    ///
    /// # Errors
    /// It does not.
    pub(super) fn enable(&self, admin: AdminPlace) -> Result<(), NvmeFault> {
        let last = u32::from(admin.size - 1);
        self.bar.write32(AQA, last << 16 | last);
        for (at, place) in [(ASQ, admin.submissions), (ACQ, admin.completions)] {
            self.bar.write32(at, place as u32);
            self.bar.write32(at + 4, (place >> 32) as u32);
        }
        self.bar.write32(CC, ENTRIES | ENABLE);
        self.wait_for(READY, "become ready")?;
        self.check()
    }

    /// It stops: there are no queues any more, and it touches no memory once this returns Ok.
    ///
    /// # Errors
    /// It does not. One that is gone, or offline, touches no memory either.
    pub(super) fn disable(&self) -> Result<(), NvmeFault> {
        let control = self.bar.read32(CC);
        if control == u32::MAX {
            return Err(NvmeFault::Gone);
        }
        // One that is about to become ready is not to be told otherwise before it is.
        if control & ENABLE != 0 && self.bar.read32(CSTS) & (READY | FAILED) == 0 {
            self.wait_for(READY, "become ready")?;
        }
        self.bar.write32(CC, control & !(ENABLE | SHUTDOWN));
        self.wait_for(0, "stop")
    }

    /// What it has in its cache lasts: it is about to lose its power, for all that it knows.
    ///
    /// # Errors
    /// It does not say so in time.
    pub(super) fn shut_down(&self) -> Result<(), NvmeFault> {
        let control = self.bar.read32(CC);
        self.bar.write32(CC, control & !SHUTDOWN | SHUT_DOWN);
        let begun = Instant::now();
        let within = self.patience();
        while self.bar.read32(CSTS) & SHUTDOWN_STATUS != SHUTDOWN_DONE {
            self.check()?;
            Registers::pause(begun, within, "shut down")?;
        }
        self.check()
    }

    /// Waits until its being ready is `ready`.
    fn wait_for(&self, ready: u32, what: &'static str) -> Result<(), NvmeFault> {
        let (begun, within) = (Instant::now(), self.patience());
        loop {
            let status = self.bar.read32(CSTS);
            match status {
                u32::MAX => return Err(NvmeFault::Gone),
                _ if status & READY == ready => return Ok(()),
                // It fails to begin.
                _ if ready != 0 && status & FAILED != 0 => return self.check(),
                _ => Registers::pause(begun, within, what)?,
            }
        }
    }

    fn pause(begun: Instant, within: Duration, what: &'static str) -> Result<(), NvmeFault> {
        if begun.elapsed() >= within {
            return Err(NvmeFault::Late { what, within });
        }
        std::thread::sleep(Duration::from_micros(200));
        Ok(())
    }
}

/// The registers that tell a controller of a queue's ends.
#[derive(Debug)]
pub(super) struct Doorbells {
    view: View,
    stride: u64,
}

impl Doorbells {
    /// There are commands up to this place. What was written to memory before is seen by the controller.
    #[inline]
    pub(super) fn submitted(&self, tail: u16) {
        self.view.write32(0, tail.into());
    }

    /// Completions were read up to this place.
    #[inline]
    pub(super) fn read(&self, head: u16) {
        self.view.write32(self.stride, head.into());
    }
}

/// The registers' BAR.
const BAR: u8 = 0;

const CAP: u64 = 0x00;
const CC: u64 = 0x14;
const ENABLE: u32 = 1;
const SHUTDOWN: u32 = 3 << 14;
const SHUT_DOWN: u32 = 1 << 14;
/// Entries of 64 and 16 bytes, pages of 4 KiB, the NVM command set.
const ENTRIES: u32 = 6 << 16 | 4 << 20;
const CSTS: u64 = 0x1c;
const READY: u32 = 1;
const FAILED: u32 = 1 << 1;
const SHUTDOWN_STATUS: u32 = 3 << 2;
const SHUTDOWN_DONE: u32 = 2 << 2;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = PAGE;

/// A controller says itself how long it may take, within these.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);
const MOST_PATIENCE: Duration = Duration::from_secs(30);
