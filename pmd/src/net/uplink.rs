//! A function of the host's as a bridge's way out: what its driver brings, and the two sides of a path that are made of it.
//!
//! ```text
//!   wire -> function --DMA--> buffers of ours --[ UplinkSource ]--> bridge
//!   wire <- function <--DMA-- pages of ours  <--[ UplinkSink ]---- bridge: one copy, from the sender's buffers
//! ```
//!
//! A driver brings a [`ReceiveRing`] and a [`TransmitRing`], which know descriptors and registers and nothing of frames, and
//! an [`UplinkFunction`], by which the function is opened, told of stations, and made quiet. Memory is ours alone: no guest's
//! memory is ever mapped for an uplink. What the function says is a claim: an id that it does not have is a fault, a length
//! beyond its buffer is the buffer's.

// Frames from the wire.
mod source;
// Frames to the wire.
mod sink;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use ringway_ring::queue::{Completion, DriverBuffer, RingFault, RingFull};

use super::Mac;
use super::offload::{Offload, Offloads};
use super::side::{Sink, Source};
use crate::counters::QueueCounters;
use crate::notify::EventFd;
use crate::vdpa::{DeviceHost, DriverError, NetdevChange, Stuck};

pub use sink::{PAGE_BYTES, Pages, UplinkSink};
pub use source::{Buffers, UplinkSource};

/// A function that can be an uplink, as its driver found it. Nobody has it open. Asked by control; opened by a session.
pub trait UplinkFunction: Send + Sync + fmt::Debug {
    /// What it is.
    fn facts(&self) -> UplinkFacts;
    /// Opens it and has it work. Takes some 100 ms.
    ///
    /// # Errors
    /// It cannot be had, or does not work; it is closed again.
    fn open(&self, options: UplinkOptions) -> Result<Box<dyn Uplink>, DriverError>;
}

/// What is known of a function before it is opened.
#[derive(Debug, Clone, Copy)]
pub struct UplinkFacts {
    /// Its own address.
    pub mac: Option<Mac>,
    /// The largest MTU that it has.
    pub most_mtu: u16,
    /// The MTU that it says it has, if it says so.
    pub mtu: Option<u16>,
    /// Its hardware gives frames to groups back to who sent them.
    pub reflects: bool,
}

/// How a function is to work.
#[derive(Debug)]
pub struct UplinkOptions {
    /// Its address, if it has none of its own.
    pub mac: Mac,
    /// Longest packet, either way.
    pub mtu: u16,
    /// Counts what the function is given to send.
    pub sent: Arc<QueueCounters>,
    /// Counts what it received.
    pub received: Arc<QueueCounters>,
    /// Told by the sides should the function break the rules of its rings.
    pub watch: Arc<UplinkWatch>,
    /// Told what the function tells unasked: its link changed, it needs a reset, it is gone.
    pub host: DeviceHost,
}

/// A function at work. Owned by a session. Quiet at the latest when it is dropped.
pub trait Uplink: Send + fmt::Debug {
    /// The two sides of its path, the first time.
    fn sides(&mut self) -> Option<(Box<dyn Source>, Box<dyn Sink>)>;
    /// Its link is up, as far as it says.
    fn has_link(&self) -> bool;
    /// It is of no use any more, and why: it is closed and opened anew. Asked when its [watch](UplinkOptions::watch) was woken.
    fn gone(&self) -> Option<String> {
        None
    }
    /// It receives nothing but what is for addresses that it was [told](Uplink::set_stations), and for groups.
    fn is_selective(&self) -> bool {
        false
    }
    /// These are behind the bridge's other ports, and no others: what is for them is received. Those that come first matter most.
    /// Called now and then, where it is selective, by its session.
    ///
    /// # Errors
    /// Not all of them are received: which and why, and what helps. It is called again.
    fn set_stations(&mut self, stations: &[Mac]) -> Result<(), NetdevChange> {
        let _ = stations;
        Ok(())
    }
    /// It touches no memory of ours any more once this returns Ok. Its sides are out of service.
    ///
    /// # Errors
    /// It does not stop within that time.
    fn close(&mut self, within: Duration) -> Result<(), Stuck>;
}

/// A function's ring of buffers to receive into. Of each call the budget of a pump holds.
pub trait ReceiveRing: Send + fmt::Debug {
    /// Bytes that the function puts before each frame: a header as virtio has it, or none.
    const HEADER_BYTES: usize;
    /// Gives the function a buffer; `token` comes back with it, once.
    ///
    /// # Errors
    /// The ring has no room.
    fn add(&mut self, buffer: DriverBuffer, token: u16) -> Result<(), RingFull>;
    /// Shows the function what was added.
    fn publish(&mut self);
    /// Takes up to `into.len()` buffers with a frame each, in the order in which they came; returns how many.
    ///
    /// # Errors
    /// The function broke the rules.
    fn collect(&mut self, into: &mut [Completion]) -> Result<usize, RingFault>;
    /// Asks for an interrupt; true if there is something already.
    fn arm(&mut self) -> bool;
    /// Takes that back.
    fn disarm(&mut self);
    /// What the interrupt signals.
    fn wake_source(&self) -> BorrowedFd<'_>;
}

/// A function's ring of frames to send. Of each call the budget of a pump holds.
pub trait TransmitRing: Send + fmt::Debug {
    /// Bytes before each frame for what is left to be done to it: a header as virtio has it, or none.
    const HEADER_BYTES: usize;
    /// Bytes of a frame at least: shorter ones are filled up with zeros.
    const LEAST_FRAME: usize = 0;
    /// What the function does to frames before it sends them.
    fn takes(&self) -> Offloads;
    /// How many buffers one frame may be in, if the ring is empty.
    fn most_buffers(&self) -> usize;
    /// Gives the function a frame in these buffers; `token` comes back once it is sent.
    ///
    /// # Errors
    /// The ring has no room now.
    fn add(&mut self, frame: &[DriverBuffer], offload: Offload, token: u16) -> Result<(), RingFull>;
    /// Shows the function what was added.
    fn publish(&mut self);
    /// Takes up to `into.len()` frames that were sent; returns how many.
    ///
    /// # Errors
    /// The function broke the rules.
    fn collect(&mut self, into: &mut [Completion]) -> Result<usize, RingFault>;
}

/// Tells the session of an uplink that its function broke the rules of a ring.
#[derive(Debug)]
pub struct UplinkWatch {
    /// The number of the fault; 0 while there is none.
    fault: AtomicU8,
    attention: Arc<EventFd>,
}

impl UplinkWatch {
    /// Signals `attention` then.
    pub fn new(attention: Arc<EventFd>) -> Arc<UplinkWatch> {
        Arc::new(UplinkWatch { fault: AtomicU8::new(0), attention })
    }

    /// What the function did.
    pub fn fault(&self) -> Option<RingFault> {
        let number = self.fault.load(Ordering::Relaxed);
        RingFault::ALL.get(usize::from(number.checked_sub(1)?)).copied()
    }

    /// Has the session look whether the function is [gone](Uplink::gone).
    pub fn wake(&self) {
        self.attention.signal();
    }

    #[cold]
    fn tell(&self, fault: RingFault) {
        // Relaxed: it publishes nothing else.
        self.fault.store(fault as u8, Ordering::Relaxed);
        self.attention.signal();
    }
}
