//! Registers of the function, in its BAR 0: found, checked, and used in the order that the hardware demands.

use std::time::{Duration, Instant};

use crate::bus::pci::{Function, View};
use crate::net::Mac;

/// What a function, or its PF, did wrong, or that it is gone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VfFault {
    /// Its registers read all ones.
    #[error("the function does not answer any more")]
    Gone,
    /// Its registers read nothing but zeros, which none does that is reached.
    #[error(
        "the function's registers cannot be reached: all of them read 0 (QEMU before 10.1.2 needs its BAR below 4 GiB)"
    )]
    NotDecoded,
    /// It has no registers such as it must have.
    #[error("not a virtual function of an 82576: {0}")]
    NotOne(String),
    /// It did not do something in time.
    #[error("the function did not {what} within {} ms", within.as_millis())]
    Late {
        /// What.
        what: &'static str,
        /// The time that it had.
        within: Duration,
    },
    /// Its PF does not serve it: it is down or resets itself.
    #[error("its PF does not serve it: {0}; bring it up (ip link set PF up)")]
    NoPf(&'static str),
    /// Its PF refuses something.
    #[error("its PF refuses {0}")]
    Refused(String),
    /// Its PF gave it another address than it is to have.
    #[error(
        "its PF gave it the address {fixed}, which wins, and the device has {mac}: give it that one (ip link set PF vf N mac {mac}), \
         or make the device with mac {fixed}"
    )]
    OtherMac {
        /// What the PF gave it.
        fixed: Mac,
        /// What it is to have.
        mac: Mac,
    },
    /// Not the function: the host lacks something for it.
    #[error("{0}")]
    Host(String),
}

/// The registers.
#[derive(Debug, Clone)]
pub struct Registers {
    bar: View,
}

/// A descriptor ring, as the function is to have it.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Where it is, as the function reaches it: a multiple of 128.
    pub at: u64,
    /// Its descriptors: a multiple of 8.
    pub size: u16,
}

impl Registers {
    /// Those of a function.
    ///
    /// # Errors
    /// It has none that answer.
    pub fn find(function: &dyn Function) -> Result<Registers, VfFault> {
        let bar = function.bar(BAR).map_err(|error| VfFault::NotOne(format!("BAR {BAR}: {error}")))?;
        if bar.size() < BAR_BYTES {
            return Err(VfFault::NotOne(format!("BAR {BAR} has {} bytes", bar.size())));
        }
        let registers = Registers { bar };
        registers.status()?;
        Ok(registers)
    }

    /// All of them.
    pub fn bar(&self) -> &View {
        &self.bar
    }

    fn status(&self) -> Result<u32, VfFault> {
        match self.bar.read32(STATUS) {
            u32::MAX => Err(VfFault::Gone),
            // Speed and duplex are never 0.
            0 => Err(VfFault::NotDecoded),
            status => Ok(status),
        }
    }

    /// It answers.
    ///
    /// # Errors
    /// It does not.
    pub fn check(&self) -> Result<(), VfFault> {
        self.status().map(drop)
    }

    /// Its PF has a link.
    pub fn has_link(&self) -> bool {
        self.status().is_ok_and(|status| status & LINK_UP != 0)
    }

    /// Resets the function, which forgets who it is for its PF: what comes next is [`Mailbox::reset`](super::mailbox::Mailbox::reset).
    ///
    /// # Errors
    /// It is gone.
    pub fn reset(&self) -> Result<(), VfFault> {
        self.bar.write32(INTERRUPT_MASK_CLEAR, ALL_VECTORS);
        self.bar.write32(CONTROL, CONTROL_RESET);
        // The write has arrived once something was read.
        self.status()?;
        std::thread::sleep(AFTER_RESET);
        self.check()
    }

    /// Receive and transmit queue 0 interrupt by vectors 0 and 1, once each is asked to.
    pub fn set_vectors(&self) {
        self.bar.write32(INTERRUPT_MASK_CLEAR, ALL_VECTORS);
        self.bar.write32(INTERRUPT_CAUSE, ALL_VECTORS);
        self.bar.write32(INTERRUPT_VECTORS, RX_BY_0 | TX_BY_1);
        self.bar.write32(INTERRUPT_AUTO_CLEAR, ALL_VECTORS);
    }

    /// Receive queue 0 works from now on, into buffers of so many KiB: 1 to 127.
    ///
    /// # Errors
    /// It does not begin.
    pub fn start_receive(&self, place: Place, buffer_kib: u8) -> Result<(), VfFault> {
        self.set_ring(RX, place, RX_THRESHOLDS);
        let buffers = u32::from(buffer_kib) | ONE_BUFFER | DROP_WITHOUT_BUFFER;
        self.bar.write32(RX_BUFFERS, buffers);
        self.begin(RX, RX_THRESHOLDS, "begin to receive")
    }

    /// Transmit queue 0 works from now on.
    ///
    /// # Errors
    /// It does not begin.
    pub fn start_transmit(&self, place: Place) -> Result<(), VfFault> {
        self.set_ring(TX, place, 0);
        let access = self.bar.read32(TX + ACCESS);
        // Write-backs keep their order.
        self.bar.write32(TX + ACCESS, access & !RELAXED_WRITE_BACK);
        // Descriptors are written back, not the head.
        self.bar.write32(TX_WRITE_BACK, 0);
        self.begin(TX, TX_THRESHOLDS, "begin to transmit")
    }

    /// Where a ring is, disabled and empty.
    fn set_ring(&self, queue: u64, place: Place, disabled: u32) {
        self.bar.write32(queue + QUEUE_CONTROL, disabled);
        self.bar.write32(queue + BASE_LOW, place.at as u32);
        self.bar.write32(queue + BASE_HIGH, (place.at >> 32) as u32);
        self.bar.write32(queue + LENGTH, u32::from(place.size) * 16);
        self.bar.write32(queue + HEAD, 0);
        self.bar.write32(queue + TAIL, 0);
    }

    fn begin(&self, queue: u64, thresholds: u32, what: &'static str) -> Result<(), VfFault> {
        self.bar.write32(queue + QUEUE_CONTROL, thresholds | ENABLE);
        self.wait_for(queue, true, what)
    }

    fn wait_for(&self, queue: u64, is_enabled: bool, what: &'static str) -> Result<(), VfFault> {
        let begun = Instant::now();
        while (self.bar.read32(queue + QUEUE_CONTROL) & ENABLE != 0) != is_enabled {
            self.check()?;
            if begun.elapsed() >= QUEUE_WITHIN {
                return Err(VfFault::Late { what, within: QUEUE_WITHIN });
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        self.check()
    }

    /// Both queues work: false once the function, or its PF, was reset underneath.
    pub fn works(&self) -> bool {
        let is_enabled = |queue| self.bar.read32(queue + QUEUE_CONTROL) & ENABLE != 0;
        is_enabled(RX) && is_enabled(TX) && self.bar.read32(RX + LENGTH) != 0
    }

    /// It touches no memory once this returns Ok.
    ///
    /// # Errors
    /// It did not stop in time, or is gone: then it touches no memory either.
    pub fn stop(&self) -> Result<(), VfFault> {
        self.bar.write32(INTERRUPT_MASK_CLEAR, ALL_VECTORS);
        for queue in [RX, TX] {
            let control = self.bar.read32(queue + QUEUE_CONTROL);
            self.bar.write32(queue + QUEUE_CONTROL, control & !ENABLE);
        }
        self.wait_for(RX, false, "stop receiving")?;
        self.wait_for(TX, false, "stop transmitting")?;
        // Rings that are not there any more: should somebody enable it as it is.
        for queue in [RX, TX] {
            self.bar.write32(queue + LENGTH, 0);
        }
        self.reset()
    }

    /// The register that tells of receive buffers.
    pub(super) fn rx_tail(&self) -> Doorbell {
        Doorbell { bar: self.bar.clone(), at: RX + TAIL }
    }

    /// The register that tells of frames to be sent.
    pub(super) fn tx_tail(&self) -> Doorbell {
        Doorbell { bar: self.bar.clone(), at: TX + TAIL }
    }

    /// What has the interrupts of a queue.
    pub fn interrupt(&self, vector: u8) -> Interrupt {
        Interrupt { bar: self.bar.clone(), bit: 1 << vector }
    }
}

/// The tail register of a ring.
#[derive(Debug)]
pub(super) struct Doorbell {
    bar: View,
    at: u64,
}

impl Doorbell {
    /// Rings it: one register write. What was written to memory before is seen by the function.
    #[inline]
    pub(super) fn ring(&self, tail: u16) {
        self.bar.write32(self.at, tail.into());
    }
}

/// One interrupt vector, masked until it is asked for.
#[derive(Debug)]
pub struct Interrupt {
    bar: View,
    bit: u32,
}

impl Interrupt {
    /// Asks for it: of what comes from now on. What came before is to be looked for behind this.
    pub fn enable(&self) {
        self.bar.write32(INTERRUPT_CAUSE, self.bit);
        self.bar.write32(INTERRUPT_MASK_SET, self.bit);
    }

    /// Takes that back.
    pub fn disable(&self) {
        self.bar.write32(INTERRUPT_MASK_CLEAR, self.bit);
    }
}

/// The registers' BAR.
const BAR: u8 = 0;
const BAR_BYTES: u64 = 0x4000;

const CONTROL: u64 = 0x0000;
const CONTROL_RESET: u32 = 1 << 26;
const STATUS: u64 = 0x0008;
const LINK_UP: u32 = 1 << 1;

const INTERRUPT_MASK_SET: u64 = 0x1524;
const INTERRUPT_MASK_CLEAR: u64 = 0x1528;
const INTERRUPT_AUTO_CLEAR: u64 = 0x152c;
const INTERRUPT_CAUSE: u64 = 0x1580;
const INTERRUPT_VECTORS: u64 = 0x1700;
const ALL_VECTORS: u32 = 7;
const RX_BY_0: u32 = 0x80;
const TX_BY_1: u32 = 0x8100;

// A queue's registers, by direction, and where each is.
const RX: u64 = 0x2800;
const TX: u64 = 0x3800;
const BASE_LOW: u64 = 0x00;
const BASE_HIGH: u64 = 0x04;
const LENGTH: u64 = 0x08;
const HEAD: u64 = 0x10;
const ACCESS: u64 = 0x14;
const TAIL: u64 = 0x18;
const QUEUE_CONTROL: u64 = 0x28;
const RX_BUFFERS: u64 = RX + 0x0c;
const TX_WRITE_BACK: u64 = TX + 0x38;
const ENABLE: u32 = 1 << 25;
const RELAXED_WRITE_BACK: u32 = 1 << 11;
/// Descriptors fetched ahead by 16, from 8 on, and each written back at once: an erratum keeps more than one for ever.
const RX_THRESHOLDS: u32 = 16 | 8 << 8 | 1 << 16;
const TX_THRESHOLDS: u32 = 8 | 1 << 8 | 1 << 16;
/// Advanced descriptors, a buffer each.
const ONE_BUFFER: u32 = 1 << 25;
const DROP_WITHOUT_BUFFER: u32 = 1 << 31;

/// A queue begins or stops within this.
const QUEUE_WITHIN: Duration = Duration::from_millis(100);
/// The function is not to be touched for so long after its reset.
const AFTER_RESET: Duration = Duration::from_millis(1);
