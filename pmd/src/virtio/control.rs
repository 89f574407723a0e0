//! The control queue of a network function (virtio 1.3 §5.1.6.5): ours, not the guest's. One command at a time, waited for by
//! the session's thread.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::queue::{Completion, DriverBuffer, DriverRing};

use super::rings::{OwnRing, SPARE_BYTES};
use super::transport::{Doorbell, FunctionFault};
use crate::net::Mac;

/// See the module's head.
pub struct ControlQueue {
    ring: Box<dyn DriverRing>,
    doorbell: Doorbell,
    /// Memory for a command, and where the function sees it.
    map: Arc<GuestMap>,
    at: u64,
    /// The function has a command still, and its memory.
    is_late: bool,
}

impl fmt::Debug for ControlQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlQueue").finish_non_exhaustive()
    }
}

impl ControlQueue {
    /// On a ring that has just begun.
    pub fn new(ring: OwnRing, doorbell: Doorbell, (map, at): (&Arc<GuestMap>, u64)) -> ControlQueue {
        let mut ring = ring.boxed();
        ring.disable_calls();
        ControlQueue { ring, doorbell, map: Arc::clone(map), at, is_late: false }
    }

    /// All frames are received, whoever they are for.
    ///
    /// # Errors
    /// The function does not do it.
    pub fn set_promiscuous(&mut self, is_on: bool, within: Duration) -> Result<(), FunctionFault> {
        self.command("promiscuous mode", RX, RX_PROMISC, &[is_on.into()], within)
    }

    /// The address of the function.
    ///
    /// # Errors
    /// The function does not take it.
    pub fn set_mac(&mut self, mac: Mac, within: Duration) -> Result<(), FunctionFault> {
        self.command("the MAC address", MAC, MAC_ADDR_SET, &mac.0, within)
    }

    /// So many queue pairs are in use from now on.
    ///
    /// # Errors
    /// The function does not take it.
    pub fn set_pairs(&mut self, pairs: u16, within: Duration) -> Result<(), FunctionFault> {
        self.command("the number of queue pairs", MQ, MQ_VQ_PAIRS_SET, &pairs.to_le_bytes(), within)
    }

    fn command(
        &mut self,
        what: &'static str,
        class: u8,
        command: u8,
        data: &[u8],
        within: Duration,
    ) -> Result<(), FunctionFault> {
        if self.is_late {
            return Err(FunctionFault::Late { what: "finish its last command", within });
        }
        let out: Vec<u8> = [class, command].iter().chain(data).copied().collect();
        let (len, ack) = (out.len() as u64, self.at + SPARE_BYTES - 1);
        let beyond = |_| FunctionFault::NotVirtio("its own memory does not hold a command".to_owned());
        self.map.resolve(self.at, len).map_err(beyond)?.write(&out);
        let answer = self.map.resolve(ack, 1).map_err(beyond)?;
        answer.write(&[u8::MAX]);
        let buffers = [
            DriverBuffer { gpa: self.at, len: len as u32, writable: false },
            DriverBuffer { gpa: ack, len: 1, writable: true },
        ];
        let full = |_| FunctionFault::Late { what: "finish its last command", within };
        self.ring.add(&buffers, 0).map_err(full)?;
        if self.ring.publish() {
            self.doorbell.ring();
        }
        let begun = Instant::now();
        let mut done = [Completion::default()];
        loop {
            match self.ring.collect(&mut done) {
                Ok(0) => {}
                Ok(_) => break,
                Err(fault) => {
                    return Err(FunctionFault::Refused(format!("to keep the rules of its ring: {fault}")));
                }
            }
            if begun.elapsed() >= within {
                self.is_late = true;
                return Err(FunctionFault::Late { what: "answer a command", within });
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        let mut said = [0u8];
        answer.read(&mut said);
        if said == [OK] { Ok(()) } else { Err(FunctionFault::Refused(what.to_owned())) }
    }
}

/// `VIRTIO_NET_F_CTRL_MAC_ADDR`: the address can be set.
pub const F_CTRL_MAC_ADDR: Features = Features(1 << 23);

// Classes and commands (virtio 1.3 §5.1.6.5).
const RX: u8 = 0;
const RX_PROMISC: u8 = 0;
const MAC: u8 = 1;
const MAC_ADDR_SET: u8 = 1;
const MQ: u8 = 4;
const MQ_VQ_PAIRS_SET: u8 = 0;
const OK: u8 = 0;
