//! The registers of a virtio function on PCI (virtio 1.3 §4.1): found, checked, and used in the order that the specification
//! demands. Every wait has an end, and a function that is gone (all ones) is named.
//!
//! Owned by the device's session; the doorbells go to the pumps.

use std::fmt;
use std::time::{Duration, Instant};

use ringway_ring::features::Features;
use ringway_ring::layout::Areas;
use ringway_ring::queue::{Format, RingSize};

use crate::bus::pci::capability::capabilities;
use crate::bus::pci::{self, Function, View, Width};

/// What a function did wrong, or that it is gone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FunctionFault {
    /// Its registers read all ones.
    #[error("the function does not answer any more")]
    Gone,
    /// It is no virtio function as the specification has them.
    #[error("not a modern virtio function: {0}")]
    NotVirtio(String),
    /// It did not do something in time.
    #[error("the function did not {what} within {} ms", within.as_millis())]
    Late {
        /// What.
        what: &'static str,
        /// The time that it had.
        within: Duration,
    },
    /// It refuses what it offered.
    #[error("the function refuses {0}")]
    Refused(String),
    /// Not the function: the host lacks something for it.
    #[error("{0}")]
    Host(String),
    /// It asks to be reset (DEVICE_NEEDS_RESET).
    #[error("the function needs a reset")]
    NeedsReset,
}

/// See the module's head.
#[derive(Debug, Clone)]
pub struct Transport {
    common: View,
    notify: View,
    /// Where the notification area is: which BAR, and where in it.
    notify_at: (u8, u64),
    /// Bytes between the doorbells of two queues that have different ones.
    multiplier: u32,
    device: Option<View>,
}

/// A queue of the function, as it is to be.
#[derive(Debug, Clone, Copy)]
pub struct QueueSetup {
    /// Entries: at most what the function has.
    pub size: RingSize,
    /// Where its areas are, as the function reaches them.
    pub areas: Areas<u64>,
    /// The interrupt vector that tells of used buffers.
    pub vector: Option<u16>,
}

/// What tells the function that a queue has something.
#[derive(Clone)]
pub struct Doorbell {
    register: View,
    queue: u16,
    /// The same as the host can ring it.
    at: pci::Doorbell,
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorbell").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Doorbell {
    /// For tests: of queue 0.
    #[cfg(test)]
    pub(crate) fn of(register: View) -> Doorbell {
        let at = pci::Doorbell { bar: 0, at: 0, width: Width::B2, value: 0 };
        Doorbell { register, queue: 0, at }
    }

    /// The write that it is. It names the queue alone: not enough where NOTIFICATION_DATA was agreed on
    /// (virtio 1.3 §4.1.5.2).
    pub fn at(&self) -> pci::Doorbell {
        self.at
    }

    /// Rings it: one register write. What was written to memory before is seen by the function.
    #[inline]
    pub fn ring(&self) {
        self.register.write16(0, self.queue);
    }
}

impl Transport {
    /// Finds the registers (virtio 1.3 §4.1.4). The first capability of each type that can be one is taken.
    ///
    /// # Errors
    /// It has not those that it must have.
    pub fn find(function: &dyn Function) -> Result<Transport, FunctionFault> {
        let config = function.config();
        if config.read16(0) == u16::MAX {
            return Err(FunctionFault::Gone);
        }
        let mut bars: [Option<View>; 6] = Default::default();
        let mut found: [Option<(View, Place)>; 5] = Default::default();
        for capability in capabilities(&config).into_iter().filter(|capability| capability.id == VENDOR) {
            let body = &capability.body;
            let (kind, bar) = (body.read8(3), usize::from(body.read8(4)));
            // Others are skipped before they are looked at: one that gives access by configuration space has no length.
            let Some((least, align)) = shape(kind) else { continue };
            let Some(place) = found.get_mut(usize::from(kind)).filter(|place| place.is_none()) else {
                continue;
            };
            let Some(slot) = bars.get_mut(bar) else { continue };
            if slot.is_none() {
                *slot = function.bar(bar as u8).ok();
            }
            let (offset, length) = (body.read32(8), body.read32(12));
            if length < least || !offset.is_multiple_of(align) {
                continue;
            }
            let view = slot.as_ref().and_then(|bar| bar.part(offset.into(), length.into()));
            let at = Place { bar: bar as u8, at: offset.into(), multiplier: body.read32(16) };
            *place = view.map(|view| (view, at));
        }
        let [_, common, notify, isr, device] = found;
        let missing = |what: &str| FunctionFault::NotVirtio(format!("it has no usable {what}"));
        let (common, _) = common.ok_or_else(|| missing("common configuration"))?;
        let (notify, Place { bar, at, multiplier }) = notify.ok_or_else(|| missing("notification area"))?;
        isr.ok_or_else(|| missing("interrupt status"))?;
        let device = device.map(|(device, _)| device);
        Ok(Transport { common, notify, notify_at: (bar, at), multiplier, device })
    }

    /// Device status (virtio 1.3 §2.1).
    ///
    /// # Errors
    /// It is gone.
    pub fn status(&self) -> Result<u8, FunctionFault> {
        match self.common.read8(STATUS) {
            u8::MAX => Err(FunctionFault::Gone),
            status => Ok(status),
        }
    }

    /// Looks whether it works still.
    ///
    /// # Errors
    /// It is gone, or says that it needs a reset.
    pub fn check(&self) -> Result<(), FunctionFault> {
        if self.status()? & NEEDS_RESET != 0 { Err(FunctionFault::NeedsReset) } else { Ok(()) }
    }

    /// Whether it works: it does not once somebody has reset it.
    ///
    /// # Errors
    /// It is gone, or says that it needs a reset.
    pub fn works(&self) -> Result<bool, FunctionFault> {
        match self.status()? {
            status if status & NEEDS_RESET != 0 => Err(FunctionFault::NeedsReset),
            status => Ok(status & DRIVER_OK != 0),
        }
    }

    /// Resets it, and waits until it has (virtio 1.3 §4.1.4.3.2): it touches no memory then.
    ///
    /// # Errors
    /// It did not in time, or is gone: then it touches no memory either.
    pub fn reset(&self, within: Duration) -> Result<(), FunctionFault> {
        self.common.write8(STATUS, 0);
        let begun = Instant::now();
        while self.status()? != 0 {
            if begun.elapsed() >= within {
                return Err(FunctionFault::Late { what: "reset", within });
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// The features that it offers.
    pub fn features(&self) -> Features {
        let word = |select: u32| {
            self.common.write32(DEVICE_FEATURE_SELECT, select);
            u64::from(self.common.read32(DEVICE_FEATURE))
        };
        Features(word(0) | word(1) << 32)
    }

    /// Takes a function that was reset to where its queues can be set up: it is driven with these features (virtio 1.3 §3.1.1).
    ///
    /// # Errors
    /// It refuses them, or is gone.
    pub fn negotiate(&self, features: Features) -> Result<(), FunctionFault> {
        self.common.write8(STATUS, ACKNOWLEDGE);
        self.common.write8(STATUS, ACKNOWLEDGE | DRIVER);
        for (select, word) in [(0, features.0), (1, features.0 >> 32)] {
            self.common.write32(DRIVER_FEATURE_SELECT, select);
            self.common.write32(DRIVER_FEATURE, word as u32);
        }
        self.common.write8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if self.status()? & FEATURES_OK == 0 {
            return Err(FunctionFault::Refused(format!(
                "the features {:#x}, of which it offered all",
                features.0
            )));
        }
        Ok(())
    }

    /// Which vector tells that its configuration changed.
    ///
    /// # Errors
    /// It does not take it.
    pub fn set_config_vector(&self, vector: u16) -> Result<(), FunctionFault> {
        self.common.write16(CONFIG_VECTOR, vector);
        self.took_vector(CONFIG_VECTOR, vector)
    }

    fn took_vector(&self, register: u64, vector: u16) -> Result<(), FunctionFault> {
        if self.common.read16(register) == vector {
            return Ok(());
        }
        self.status()?;
        Err(FunctionFault::Refused(format!("interrupt vector {vector}")))
    }

    /// How many queues it has.
    pub fn queues(&self) -> u16 {
        self.common.read16(NUM_QUEUES)
    }

    /// The most entries that a queue can have; 0: there is no such queue.
    pub fn max_queue_size(&self, queue: u16) -> u16 {
        self.common.write16(QUEUE_SELECT, queue);
        self.common.read16(QUEUE_SIZE)
    }

    /// A legal size at most so large, by which a queue of the function can be driven.
    pub fn queue_size(&self, queue: u16, format: Format, at_most: u16) -> Option<RingSize> {
        let most = self.max_queue_size(queue).min(at_most);
        let most = if format == Format::Split && most > 0 { 1 << most.ilog2() } else { most };
        RingSize::new(format, most.into()).ok()
    }

    /// Sets a queue up and enables it; before [`Transport::start`].
    ///
    /// # Errors
    /// It does not take it.
    pub fn enable(&self, queue: u16, setup: &QueueSetup) -> Result<Doorbell, FunctionFault> {
        self.common.write16(QUEUE_SELECT, queue);
        self.common.write16(QUEUE_SIZE, setup.size.get());
        if self.common.read16(QUEUE_SIZE) != setup.size.get() {
            self.status()?;
            return Err(FunctionFault::Refused(format!("queue {queue} with {} entries", setup.size.get())));
        }
        let vector = setup.vector.unwrap_or(NO_VECTOR);
        self.common.write16(QUEUE_VECTOR, vector);
        self.took_vector(QUEUE_VECTOR, vector)?;
        let Areas { desc, driver, device } = setup.areas;
        for (register, address) in [(QUEUE_DESC, desc), (QUEUE_DRIVER, driver), (QUEUE_DEVICE, device)] {
            // virtio 1.3 §4.1.3.1: two accesses of 32 bits.
            self.common.write32(register, address as u32);
            self.common.write32(register + 4, (address >> 32) as u32);
        }
        let at = u64::from(self.common.read16(QUEUE_NOTIFY_OFF)) * u64::from(self.multiplier);
        let doorbell = self.notify.part(at, Width::B2.bytes());
        let register = doorbell.filter(|_| at.is_multiple_of(2)).ok_or_else(|| {
            FunctionFault::NotVirtio(format!(
                "the doorbell of queue {queue}, at {at:#x}, is not in its notification area"
            ))
        })?;
        self.common.write16(QUEUE_ENABLE, 1);
        let (bar, start) = self.notify_at;
        let at = pci::Doorbell { bar, at: start + at, width: Width::B2, value: queue.into() };
        Ok(Doorbell { register, queue, at })
    }

    /// Resets one queue of a function at work that was negotiated RING_RESET with, and waits until it has (virtio 1.3 §2.6.1,
    /// §4.1.4.3.2): it touches neither that queue nor the buffers in it any more, and the queue can be enabled anew.
    ///
    /// # Errors
    /// It did not in time, or is gone.
    pub fn reset_queue(&self, queue: u16, within: Duration) -> Result<(), FunctionFault> {
        self.common.write16(QUEUE_SELECT, queue);
        self.common.write16(QUEUE_RESET, 1);
        let begun = Instant::now();
        while self.common.read16(QUEUE_RESET) != 0 || self.common.read16(QUEUE_ENABLE) != 0 {
            self.status()?;
            if begun.elapsed() >= within {
                return Err(FunctionFault::Late { what: "reset a queue", within });
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// It has the register by which a queue is reset: younger than the others.
    pub fn can_reset_queues(&self) -> bool {
        self.common.size() >= QUEUE_RESET + Width::B2.bytes()
    }

    /// It works from now on.
    ///
    /// # Errors
    /// It does not.
    pub fn start(&self) -> Result<(), FunctionFault> {
        self.common.write8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        self.check()
    }

    /// Reads the configuration of its class, whole (virtio 1.3 §2.5.1). What it does not have reads as zeros.
    ///
    /// # Errors
    /// It is gone, or changed it again and again.
    pub fn config<const LEN: usize>(&self) -> Result<[u8; LEN], FunctionFault> {
        let Some(device) = &self.device else { return Ok([0; LEN]) };
        for _ in 0..GENERATIONS {
            let before = self.common.read8(GENERATION);
            let mut bytes = [0; LEN];
            for (at, byte) in (0..device.size()).zip(&mut bytes) {
                *byte = device.read8(at);
            }
            if self.common.read8(GENERATION) == before {
                self.status()?;
                return Ok(bytes);
            }
        }
        Err(FunctionFault::Refused(format!("to hold its configuration still for one of {GENERATIONS} reads")))
    }
}

/// Where a capability says that its registers are.
#[derive(Clone, Copy)]
struct Place {
    bar: u8,
    at: u64,
    /// Of the notification area alone.
    multiplier: u32,
}

/// The least bytes and the alignment of the registers of a type; None: a type that is not needed.
fn shape(kind: u8) -> Option<(u32, u32)> {
    match kind {
        COMMON => Some((COMMON_BYTES, 4)),
        NOTIFY => Some((2, 2)),
        ISR => Some((1, 1)),
        DEVICE => Some((1, 4)),
        _ => None,
    }
}

/// The capability id of the vendor's own.
const VENDOR: u8 = 0x09;

// Types of registers (virtio 1.3 §4.1.4).
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;

// Common configuration (virtio 1.3 §4.1.4.3).
const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_VECTOR: u64 = 0x10;
const NUM_QUEUES: u64 = 0x12;
const STATUS: u64 = 0x14;
const GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFF: u64 = 0x1e;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;
const QUEUE_RESET: u64 = 0x3a;
const COMMON_BYTES: u32 = 0x38;

/// What stands in a vector register for none.
const NO_VECTOR: u16 = 0xffff;

// Device status (virtio 1.3 §2.1).
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;

/// How often a configuration is read that changes meanwhile.
const GENERATIONS: usize = 64;
