//! A virtual function of an 82576 as a bridge's uplink. It has no promiscuous mode: its PF has one unicast filter a station sent
//! here, and what is sent to groups comes back, as the hardware has it. What is left to be done to frames is done by the core.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use ringway_engine::Watcher;
use ringway_ring::queue::{Completion, DriverBuffer, RingFault, RingFull};

use super::function::{Open, Standing, Up, Wanted};
use crate::bus::pci::Opener;
use crate::dma::OwnMemory;
use crate::igb::mailbox::Mailbox;
use crate::igb::registers::VfFault;
use crate::igb::rings::{RxRing, TxRing, Work as ToDo, data};
use crate::net::igb_relay::{Alarm, Receiving, Transmitting};
use crate::net::offload::{Offload, Offloads};
use crate::net::side::{Sink, Source};
use crate::net::uplink::{
    Buffers, PAGE_BYTES, Pages, ReceiveRing, TransmitRing, Uplink, UplinkFacts, UplinkFunction,
    UplinkOptions, UplinkSink, UplinkSource, UplinkWatch,
};
use crate::net::{MAX_MTU, Mac, NetConfig};
use crate::vdpa::{DeviceHost, DriverError, NetdevChange, Stuck};

/// See the module's head.
pub(super) struct IgbvfUplink {
    pub(super) name: String,
    pub(super) opener: Opener,
    /// The address that its PF fixed.
    pub(super) mac: Option<Mac>,
    pub(super) standing: Arc<Standing>,
}

impl fmt::Debug for IgbvfUplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IgbvfUplink").field("name", &self.name).finish_non_exhaustive()
    }
}

impl UplinkFunction for IgbvfUplink {
    fn facts(&self) -> UplinkFacts {
        UplinkFacts { mac: self.mac, most_mtu: MAX_MTU, mtu: None, reflects: true }
    }

    fn open(&self, options: UplinkOptions) -> Result<Box<dyn Uplink>, DriverError> {
        let name = &self.name;
        let refused = |why: &str| DriverError::Resource { what: name.clone(), source: io::Error::other(why) };
        let open = Open::new((self.opener)()?, name, Arc::clone(&self.standing), &options.host)?;
        let UplinkOptions { mac, mtu, sent, received, watch, host } = options;
        let pages = u64::from(PAGES) * PAGE_BYTES as u64;
        let memory = open.own_memory(PAGES_AT, pages);
        let memory = memory.map_err(|source| DriverError::Resource {
            what: format!("{name}: memory for its frames"),
            source,
        })?;
        let config = NetConfig { mac, mtu, max_vq_pairs: 1, link_up: true };
        let up = open.bring_up(&Wanted { config, vlans: &[] });
        let up = up.map_err(|fault: VfFault| refused(&fault.to_string()))?;
        open.port.tell(Some(Arc::new(Attention(Arc::clone(&watch)))));
        let mut work = Work {
            name: name.clone(),
            sides: None,
            up,
            pages: memory,
            mac,
            filtered: Vec::new(),
            host,
            open,
        };
        let (Some(receive), Some(transmit)) = (work.up.receive.take(), work.up.transmit.take()) else {
            return Err(refused("it has no pair of queues"));
        };
        let Receiving { ring, alarm, map, buffers: at, buffer_bytes: bytes, .. } = receive;
        let buffers = Buffers { map, at, count: ring.room() as u16, bytes };
        let tokens = VecDeque::with_capacity(buffers.count.into());
        let ring = Receive { ring, alarm, bytes, tokens, is_new: false, is_long: false, is_armed: false };
        let source = UplinkSource::new(ring, buffers, Offloads::NONE, mtu, received, Arc::clone(&watch));
        let source = source
            .map_err(|source| DriverError::Resource { what: format!("{name}: scratch memory"), source })?;
        let Transmitting { ring, .. } = transmit;
        let ring = Transmit { given: VecDeque::with_capacity(ring.room()), ring, is_new: false };
        let pages = Pages { map: Arc::clone(work.pages.map()), at: work.pages.iova(), count: PAGES };
        let sink = UplinkSink::new(ring, pages, mtu, sent, watch);
        work.sides = Some((Box::new(source), Box::new(sink)));
        Ok(Box::new(work))
    }
}

/// Has the session look at it when its PF was reset.
struct Attention(Arc<UplinkWatch>);

impl Watcher for Attention {
    fn pump_ended(&self) {
        self.0.wake();
    }
}

/// The function, at work. What it reaches goes once it is quiet.
struct Work {
    name: String,
    sides: Option<(Box<dyn Source>, Box<dyn Sink>)>,
    up: Up,
    pages: OwnMemory,
    mac: Mac,
    /// Stations that the PF has a filter for.
    filtered: Vec<Mac>,
    host: DeviceHost,
    open: Open,
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Uplink for Work {
    fn sides(&mut self) -> Option<(Box<dyn Source>, Box<dyn Sink>)> {
        self.sides.take()
    }

    fn has_link(&self) -> bool {
        self.open.port.has_link()
    }

    fn gone(&self) -> Option<String> {
        self.open.port.is_lost().then(|| "the function, or its PF, was reset: it begins anew".to_owned())
    }

    fn is_selective(&self) -> bool {
        true
    }

    fn set_stations(&mut self, stations: &[Mac]) -> Result<(), NetdevChange> {
        let wanted: Vec<Mac> = stations.iter().copied().filter(|mac| *mac != self.mac).collect();
        let mut mailbox = self.open.port.mailbox();
        let mut set = || -> Result<(), VfFault> {
            let is_stale = self.filtered.iter().any(|mac| !wanted.contains(mac));
            // What is missing comes first: those that are reached stay so meanwhile.
            let added = add_filters(&mut mailbox, &mut self.filtered, &wanted);
            match added {
                // One alone cannot be taken back: what nobody needs any more makes room once there is none.
                Err(VfFault::Refused(_)) if is_stale => {
                    self.filtered.clear();
                    mailbox.clear_filters(self.mac)?;
                    add_filters(&mut mailbox, &mut self.filtered, &wanted)
                }
                added => added,
            }
        };
        let Err(fault) = set() else { return Ok(()) };
        drop(mailbox);
        let missing: Vec<String> =
            wanted.iter().filter(|mac| !self.filtered.contains(mac)).map(Mac::to_string).collect();
        let named = missing.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        let what = format!(
            "{} of {} stations are not reached through {}: {named}",
            missing.len(),
            stations.len(),
            self.name
        );
        let cure = match fault {
            VfFault::Refused(_) if self.filtered.is_empty() => {
                "its PF does not trust it: ip link set PF vf N trust on".to_owned()
            }
            VfFault::Refused(_) => {
                format!(
                    "its PF has no filter left beside {}: use fewer VFs or guests, or another function",
                    self.filtered.len()
                )
            }
            other => other.to_string(),
        };
        Err(NetdevChange { what, cure, stops: false })
    }

    fn close(&mut self, _within: Duration) -> Result<(), Stuck> {
        self.open.port.tell(None);
        self.clear_filters();
        self.open.quiet().map_err(|why| {
            // Nobody is given it as it is: the host resets what is closed.
            self.host.gone(format!("the function does not stop: {why}"));
            Stuck::Device(format!("{}: {why}", self.name))
        })
    }
}

impl Work {
    /// Who has the function next gets nothing of what is for the stations here: its PF keeps filters over a reset.
    fn clear_filters(&mut self) {
        // One whose PF was reset would be waited for: it is cleared by whoever brings it up next.
        if !std::mem::take(&mut self.filtered).is_empty() && !self.open.port.is_lost() {
            let _ = self.open.port.mailbox().clear_filters(self.mac);
        }
    }
}

/// Asks for a filter for each that has none.
fn add_filters(mailbox: &mut Mailbox, filtered: &mut Vec<Mac>, wanted: &[Mac]) -> Result<(), VfFault> {
    for mac in wanted {
        if !filtered.contains(mac) {
            mailbox.add_filter(*mac)?;
            filtered.push(*mac);
        }
    }
    Ok(())
}

impl Drop for Work {
    fn drop(&mut self) {
        self.open.port.tell(None);
        self.clear_filters();
        // What it does not do by itself, the host's reset does when the function is closed.
        let _ = self.open.quiet();
    }
}

/// The receive ring. Buffers come back in the order in which they were given.
struct Receive {
    ring: RxRing,
    alarm: Alarm,
    bytes: u32,
    tokens: VecDeque<u16>,
    /// Something was posted that the function was not told of.
    is_new: bool,
    /// The frame goes on in the next buffer.
    is_long: bool,
    is_armed: bool,
}

impl fmt::Debug for Receive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receive").field("ring", &self.ring).finish_non_exhaustive()
    }
}

impl ReceiveRing for Receive {
    const HEADER_BYTES: usize = 0;

    fn add(&mut self, buffer: DriverBuffer, token: u16) -> Result<(), RingFull> {
        if self.ring.room() == 0 {
            return Err(RingFull);
        }
        self.ring.post(buffer.gpa);
        self.tokens.push_back(token);
        self.is_new = true;
        Ok(())
    }

    fn publish(&mut self) {
        if std::mem::take(&mut self.is_new) {
            self.ring.ring();
        }
    }

    fn collect(&mut self, into: &mut [Completion]) -> Result<usize, RingFault> {
        let mut count = 0;
        for done in into {
            let Some(received) = self.ring.next() else { break };
            if u32::from(received.len) > self.bytes {
                // What else it says is not believed either.
                return Err(RingFault::UsedLength);
            }
            let Some(token) = self.tokens.pop_front() else { return Err(RingFault::UsedIndex) };
            self.ring.advance();
            let was_long = std::mem::replace(&mut self.is_long, !received.is_last);
            // Of a VLAN, damaged, or longer than a buffer: none that is passed on.
            let is_whole = !was_long && received.is_last && !received.is_damaged && received.vlan.is_none();
            *done =
                Completion { token: token.into(), written: if is_whole { received.len.into() } else { 0 } };
            count += 1;
        }
        Ok(count)
    }

    fn arm(&mut self) -> bool {
        self.alarm.interrupt.enable();
        self.is_armed = true;
        // What came before is looked for behind that.
        self.ring.next().is_some()
    }

    fn disarm(&mut self) {
        if std::mem::take(&mut self.is_armed) {
            self.alarm.interrupt.disable();
        }
    }

    fn wake_source(&self) -> BorrowedFd<'_> {
        self.alarm.wake.as_fd()
    }
}

/// The transmit ring.
#[derive(Debug)]
struct Transmit {
    ring: TxRing,
    /// By frame: its last descriptor, how many it has, its token.
    given: VecDeque<(u16, u16, u16)>,
    is_new: bool,
}

impl TransmitRing for Transmit {
    const HEADER_BYTES: usize = 0;
    /// The hardware hangs on less.
    const LEAST_FRAME: usize = 17;

    /// The core does it all.
    fn takes(&self) -> Offloads {
        Offloads::NONE
    }

    fn most_buffers(&self) -> usize {
        MOST_PIECES
    }

    fn add(&mut self, frame: &[DriverBuffer], _offload: Offload, token: u16) -> Result<(), RingFull> {
        if self.ring.room() < frame.len() {
            return Err(RingFull);
        }
        let bytes = frame.iter().map(|buffer| buffer.len).sum();
        let mut last = 0;
        for (nth, buffer) in frame.iter().enumerate() {
            let to_do = ToDo { bytes, ..ToDo::default() };
            last = self.ring.put(data(buffer.gpa, buffer.len as u16, nth + 1 == frame.len(), to_do));
        }
        self.given.push_back((last, frame.len() as u16, token));
        self.is_new = true;
        Ok(())
    }

    fn publish(&mut self) {
        if std::mem::take(&mut self.is_new) {
            self.ring.ring();
        }
    }

    fn collect(&mut self, into: &mut [Completion]) -> Result<usize, RingFault> {
        let mut count = 0;
        for done in into {
            let Some((last, descriptors, token)) = self.given.front().copied() else { break };
            if !self.ring.is_done(last) {
                break;
            }
            self.given.pop_front();
            self.ring.free(descriptors);
            *done = Completion { token: token.into(), written: 0 };
            count += 1;
        }
        Ok(count)
    }
}

/// Pieces of a frame that the function is given: 9,018 bytes are in five pages.
const MOST_PIECES: usize = 8;
/// Pages from which frames are sent.
const PAGES: u16 = 512;
/// Where they lie behind the rings, in what is kept for our own.
const PAGES_AT: u64 = 1 << 28;
/// Stations that are named of those that are not reached.
const NAMED: usize = 4;
