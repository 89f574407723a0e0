//! A virtio function as a bridge's uplink: driven for nobody's guest, promiscuous, with one pair of queues on memory of ours.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use ringway_ring::features::Features;
use ringway_ring::queue::{Completion, DriverBuffer, DriverRing, RingFault, RingFull};

use super::function::{Open, Up};
use super::{RESET, Seen};
use crate::bus::pci::Opener;
use crate::dma::OwnMemory;
use crate::net::offload::{Offload, Offloads};
use crate::net::relay::FunctionQueue;
use crate::net::side::{Sink, Source};
use crate::net::uplink::{
    Buffers, PAGE_BYTES, Pages, ReceiveRing, TransmitRing, Uplink, UplinkFacts, UplinkFunction,
    UplinkOptions, UplinkSink, UplinkSource,
};
use crate::net::{
    F_CSUM, F_CTRL_RX, F_GUEST_CSUM, F_HOST_ECN, F_HOST_TSO4, F_HOST_TSO6, F_HOST_USO, MAX_MTU,
};
use crate::notify::EventFd;
use crate::vdpa::{DeviceHost, DriverError, Stuck};
use crate::virtio::rings::OwnRing;
use crate::virtio::transport::Doorbell;

/// See the module's head.
pub(super) struct VirtioUplink {
    name: String,
    opener: Opener,
    seen: Seen,
}

impl fmt::Debug for VirtioUplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioUplink").field("name", &self.name).finish_non_exhaustive()
    }
}

impl VirtioUplink {
    /// A function, if it can be one.
    pub(super) fn new(name: &str, opener: &Opener, seen: Seen) -> Result<VirtioUplink, DriverError> {
        if !seen.driven(Features::NONE).contains(F_CTRL_RX) {
            return Err(DriverError::Misconfigured(format!(
                "{name} cannot be an uplink: it has no promiscuous mode (VIRTIO_NET_F_CTRL_RX), so that the guests behind the \
                 bridge would hear nothing"
            )));
        }
        Ok(VirtioUplink { name: name.to_owned(), opener: Arc::clone(opener), seen })
    }
}

impl UplinkFunction for VirtioUplink {
    fn facts(&self) -> UplinkFacts {
        let Seen { mac, mtu, .. } = self.seen;
        UplinkFacts { mac, mtu, most_mtu: mtu.unwrap_or(MAX_MTU).min(MAX_MTU), reflects: false }
    }

    fn open(&self, options: UplinkOptions) -> Result<Box<dyn Uplink>, DriverError> {
        let name = &self.name;
        let refused =
            |why: String| DriverError::Resource { what: name.clone(), source: io::Error::other(why) };
        let seen = self.seen;
        // One core serves a bridge, which one pair keeps busy.
        let open = Open::new((self.opener)()?, name, 1, &seen, &options.host)?;
        let driven = seen.driven(PASSED_ON & seen.offered);
        // There before the function begins.
        let layout = open.pair_entries(driven).map(|entries| Layout::new(entries, options.mtu));
        let layout = layout.ok_or_else(|| refused("it has no pair of queues".to_owned()))?;
        let frames = open.own_memory(FRAMES_AT, layout.bytes()).map_err(|source| DriverError::Resource {
            what: format!("{name}: memory for its frames"),
            source,
        })?;
        let up = open
            .bring_up(&seen, driven, 1, None, &BTreeMap::new())
            .map_err(|fault| refused(fault.to_string()))?;
        let mut work =
            Work { name: name.clone(), seen, sides: None, up, frames, host: options.host.clone(), open };
        if let Some(Err(why)) = work.up.control.as_mut().map(|control| control.set_promiscuous(true, RESET)) {
            let cure = "if it is a VF, its PF has to trust it: ip link set PF vf N trust on";
            return Err(refused(format!("it cannot be promiscuous: {why}; {cure}")));
        }
        let mut idle = work.up.idle.iter_mut().map(Option::take);
        let (Some(Some(receive)), Some(Some(transmit))) = (idle.next(), idle.next()) else {
            return Err(refused("it has no pair of queues".to_owned()));
        };
        if [receive.size, transmit.size] != layout.entries {
            return Err(refused("its queues have another size after a reset".to_owned()));
        }
        let sides = sides(receive, transmit, driven, &work.frames, &layout, options);
        work.sides =
            Some(sides.map_err(|source| DriverError::Resource {
                what: format!("{name}: scratch memory"),
                source,
            })?);
        Ok(Box::new(work))
    }
}

/// The function, at work. What it reaches goes once it is quiet.
struct Work {
    name: String,
    seen: Seen,
    sides: Option<(Box<dyn Source>, Box<dyn Sink>)>,
    up: Up,
    frames: OwnMemory,
    host: DeviceHost,
    open: Open,
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Where frames lie: first those that are received.
struct Layout {
    entries: [u16; 2],
    mtu: u16,
}

impl Layout {
    fn new(entries: [u16; 2], mtu: u16) -> Layout {
        Layout { entries, mtu }
    }

    fn buffer_bytes(&self) -> u32 {
        Buffers::bytes_for(VIRTIO_HEADER, self.mtu)
    }

    fn received(&self) -> u64 {
        let [receive, _] = self.entries;
        (u64::from(receive) * u64::from(self.buffer_bytes())).next_multiple_of(PAGE_BYTES as u64)
    }

    fn bytes(&self) -> u64 {
        let [_, transmit] = self.entries;
        self.received() + u64::from(transmit) * PAGE_BYTES as u64
    }
}

/// The two sides of a pair that has just begun; the function is given all buffers to receive into.
fn sides(
    receive: FunctionQueue,
    transmit: FunctionQueue,
    driven: Features,
    frames: &OwnMemory,
    layout: &Layout,
    options: UplinkOptions,
) -> io::Result<(Box<dyn Source>, Box<dyn Sink>)> {
    let (map, at, mtu) = (Arc::clone(frames.map()), frames.iova(), layout.mtu);
    let bytes = layout.buffer_bytes();
    let buffers = Buffers { map: Arc::clone(&map), at, count: receive.size, bytes };
    let pages = Pages { map, at: at + layout.received(), count: transmit.size };
    let (may, takes) = (Offloads::received(driven), Offloads::sent(driven));
    let UplinkOptions { sent, received, watch, .. } = options;
    let FunctionQueue { ring, size, doorbell, interrupt } = receive;
    let (from_wire, to_wire) = (Arc::clone(&watch), watch);
    let source: Box<dyn Source> = match ring {
        OwnRing::Split(ring) => {
            let ring = Ring { ring, size, doorbell, interrupt, takes };
            Box::new(UplinkSource::new(ring, buffers, may, mtu, received, from_wire)?)
        }
        OwnRing::Packed(ring) => {
            let ring = Ring { ring, size, doorbell, interrupt, takes };
            Box::new(UplinkSource::new(ring, buffers, may, mtu, received, from_wire)?)
        }
    };
    let FunctionQueue { ring, size, doorbell, interrupt } = transmit;
    let sink: Box<dyn Sink> = match ring {
        OwnRing::Split(ring) => {
            let ring = Ring::quiet(ring, size, doorbell, interrupt, takes);
            Box::new(UplinkSink::new(ring, pages, mtu, sent, to_wire))
        }
        OwnRing::Packed(ring) => {
            let ring = Ring::quiet(ring, size, doorbell, interrupt, takes);
            Box::new(UplinkSink::new(ring, pages, mtu, sent, to_wire))
        }
    };
    Ok((source, sink))
}

impl Uplink for Work {
    fn sides(&mut self) -> Option<(Box<dyn Source>, Box<dyn Sink>)> {
        self.sides.take()
    }

    fn has_link(&self) -> bool {
        self.open.has_link(&self.seen)
    }

    fn close(&mut self, within: Duration) -> Result<(), Stuck> {
        self.open.quiet(within).map_err(|why| {
            // Nobody is given it as it is: the host resets what is closed.
            self.host.gone(format!("the function does not stop: {why}"));
            Stuck::Device(format!("{}: {why}", self.name))
        })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What it does not do by itself, the host's reset does when the function is closed.
        let _ = self.open.quiet(RESET);
    }
}

/// A ring of the function's with what tells either side of it.
struct Ring<D> {
    ring: Box<D>,
    size: u16,
    doorbell: Doorbell,
    interrupt: Arc<EventFd>,
    takes: Offloads,
}

impl<D> fmt::Debug for Ring<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("size", &self.size).finish_non_exhaustive()
    }
}

impl<D: DriverRing> Ring<D> {
    /// One that never interrupts.
    fn quiet(
        mut ring: Box<D>,
        size: u16,
        doorbell: Doorbell,
        interrupt: Arc<EventFd>,
        takes: Offloads,
    ) -> Ring<D> {
        ring.disable_calls();
        Ring { ring, size, doorbell, interrupt, takes }
    }

    fn show(&mut self) {
        if self.ring.publish() {
            self.doorbell.ring();
        }
    }
}

impl<D: DriverRing> ReceiveRing for Ring<D> {
    const HEADER_BYTES: usize = VIRTIO_HEADER;

    fn add(&mut self, buffer: DriverBuffer, token: u16) -> Result<(), RingFull> {
        self.ring.add(&[buffer], token.into())
    }

    fn publish(&mut self) {
        self.show();
    }

    fn collect(&mut self, into: &mut [Completion]) -> Result<usize, RingFault> {
        self.ring.collect(into)
    }

    fn arm(&mut self) -> bool {
        self.ring.enable_calls()
    }

    fn disarm(&mut self) {
        self.ring.disable_calls();
    }

    fn wake_source(&self) -> BorrowedFd<'_> {
        self.interrupt.as_fd()
    }
}

impl<D: DriverRing> TransmitRing for Ring<D> {
    const HEADER_BYTES: usize = VIRTIO_HEADER;

    fn takes(&self) -> Offloads {
        self.takes
    }

    fn most_buffers(&self) -> usize {
        self.size.into()
    }

    fn add(&mut self, frame: &[DriverBuffer], _offload: Offload, token: u16) -> Result<(), RingFull> {
        self.ring.add(frame, token.into())
    }

    fn publish(&mut self) {
        self.show();
    }

    fn collect(&mut self, into: &mut [Completion]) -> Result<usize, RingFault> {
        self.ring.collect(into)
    }
}

/// What is passed on as it is, where the function offers it: checksums either way, and what it cuts up. It receives no frames
/// that are longer than the wire's: the buffers for them would be 64 KiB each.
const PASSED_ON: Features =
    Features(F_CSUM.0 | F_GUEST_CSUM.0 | F_HOST_TSO4.0 | F_HOST_TSO6.0 | F_HOST_ECN.0 | F_HOST_USO.0);

/// `struct virtio_net_hdr_mrg_rxbuf`, which stands before each frame with VERSION_1 (virtio 1.3 §5.1.6).
const VIRTIO_HEADER: usize = 12;

/// Where frames lie behind the rings, in what is kept for our own.
const FRAMES_AT: u64 = 1 << 28;
