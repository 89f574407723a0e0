//! The pumps of a device, polled by hand over rings of our own: what a frame costs on its way, without the worker.
//!
//! What a `sim/net` device or a link's fabric would place on a worker; frames are as a driver sends them, receive
//! buffers are always there.

use std::sync::Arc;

use ringway_engine::{Budget, Polled, Pump};
use ringway_pmd::counters::DropReason;
use ringway_pmd::drivers::sim_net::Loop;
use ringway_pmd::net::announce::Announcement;
use ringway_pmd::net::bridge::{BridgePort, BridgePump};
use ringway_pmd::net::guest_queue::PortRules;
use ringway_pmd::net::side::{receive_queue, transmit_queue};
use ringway_pmd::net::transfer::{Transfer, TransferOptions};
use ringway_pmd::net::{F_MRG_RXBUF, Mac, header_len};
use ringway_pmd::notify::EventFd;
use ringway_pmd::vdpa::{DeviceSpec, FaultReporter, MakePump, NetSpec, QueueBinding};
use ringway_ring::queue::{Completion, DriverBuffer, DriverRing};
use ringway_ring::tsc;

use super::bed::{BUFFERS, Bed, GPA};
use super::{Done, FRAME, PUMP_BATCH, RING_SIZE, Subject};
use crate::error::BenchError;
use crate::options::{Job, Ring};

/// A pump between a transmit queue and a receive queue: the same guest's, or those of two.
struct Carried {
    pump: Box<dyn Pump>,
    rx: Box<dyn DriverRing>,
    tx: Box<dyn DriverRing>,
    /// Receive buffers, by token.
    buffers: Vec<DriverBuffer>,
    frames: Vec<DriverBuffer>,
    completions: Vec<Completion>,
    /// The time that the pump is told: it stands still, so that no wait of a pump ends here or there.
    now: u64,
    /// Frames on their way.
    sent: usize,
    /// Memory of the guests, behind the rings.
    _beds: Vec<Bed>,
}

/// The pump of a job.
pub(super) fn subject(job: Job, ring: Ring) -> Result<Box<dyn Subject>, BenchError> {
    let bytes = u64::from(RING_SIZE) * (ROOM + SLOT);
    let beds: Vec<Bed> =
        (0..job.ports()).map(|_| Bed::new(ring, F_MRG_RXBUF, bytes)).collect::<Result<_, _>>()?;
    let (receiver, sender) = match beds.as_slice() {
        [receiver, sender] => (receiver, sender),
        [both] => (both, both),
        _ => return Err(BenchError::Usage(format!("{job} has no pump of one or two ports"))),
    };
    let rx_binding = binding(receiver, RX)?;
    let tx_binding = binding(sender, TX)?;
    let (rx, tx) = (receiver.boxed_driver(RX)?, sender.boxed_driver(TX)?);
    let pump = match job {
        Job::Loopback => loopback(rx_binding, tx_binding)?,
        Job::Link => link(rx_binding, tx_binding)?,
        Job::Bridge => bridge(rx_binding, tx_binding)?,
    };
    let header_len = header_len(receiver.features());
    let buffer = |index: u16| DriverBuffer {
        gpa: GPA + BUFFERS + u64::from(index) * ROOM,
        len: ROOM as u32,
        writable: true,
    };
    let frame = |index: u16| DriverBuffer {
        gpa: GPA + BUFFERS + u64::from(RING_SIZE) * ROOM + u64::from(index) * SLOT,
        len: header_len as u32 + u32::from(FRAME),
        writable: false,
    };
    let frames: Vec<DriverBuffer> = (0..PUMP_BATCH).map(frame).collect();
    for (number, frame) in (0u8..).zip(&frames) {
        write(sender, frame, &bytes_of(header_len, number))?;
    }
    let mut carried = Carried {
        pump,
        rx,
        tx,
        buffers: (0..RING_SIZE).map(buffer).collect(),
        frames,
        completions: vec![Completion::default(); RING_SIZE.into()],
        now: tsc::cycles(),
        sent: 0,
        _beds: beds,
    };
    for (token, buffer) in (0..).zip(&carried.buffers) {
        carried.rx.add(&[*buffer], token)?;
    }
    carried.rx.publish();
    Ok(Box::new(carried))
}

/// What a `sim/net` device places on a worker.
fn loopback(rx_binding: QueueBinding, tx_binding: QueueBinding) -> Result<Box<dyn Pump>, BenchError> {
    let mut spec = DeviceSpec::net("bench", NetSpec::default());
    spec.attributes.insert("swap".to_owned(), "on".to_owned());
    let mut wire = Loop::new(&spec).map_err(refused)?;
    wire.pump(0, vec![rx_binding, tx_binding]).map_err(refused)
}

/// What the fabric of a link places on a worker: see `ringway_pmd::net::fabric`.
fn link(rx_binding: QueueBinding, tx_binding: QueueBinding) -> Result<Box<dyn Pump>, BenchError> {
    let rules = PortRules { mtu: 1500, only: None };
    let sink = receive_queue(rx_binding, rules)?;
    let source = transmit_queue(tx_binding, rules)?;
    let options = TransferOptions { swap_mac: false, absent: DropReason::PeerDown, hertz: tsc::hertz() };
    let transfer = Transfer::new(Some(sink), vec![source], options);
    Ok(Box::new(transfer.map_err(BenchError::system("cannot make a pump"))?))
}

/// What the fabric of a bridge places on a worker: one port sends to another, whose station is known.
fn bridge(rx_binding: QueueBinding, tx_binding: QueueBinding) -> Result<Box<dyn Pump>, BenchError> {
    let rules = PortRules { mtu: 1500, only: None };
    let port = |slot| BridgePort {
        slot,
        sources: Vec::new(),
        sinks: Vec::new(),
        flood: None,
        rates: Arc::default(),
        announcement: Arc::new(Announcement::new(Arc::default())),
        reflects: false,
        vlans: None,
    };
    let receiver = BridgePort { sinks: vec![(0, receive_queue(rx_binding, rules)?)], ..port(0) };
    let sender = BridgePort { sources: vec![(1, transmit_queue(tx_binding, rules)?)], ..port(1) };
    let known = [(Mac([0x52, 0x57, 0, 0, 0, 2]), 0)];
    let pump = BridgePump::alone(vec![receiver, sender], &known, tsc::hertz());
    Ok(Box::new(pump.map_err(BenchError::system("cannot make a pump"))?))
}

pub(super) fn binding(bed: &Bed, index: u16) -> Result<QueueBinding, BenchError> {
    let attention = EventFd::new().map_err(BenchError::system("cannot make an eventfd"))?;
    Ok(QueueBinding {
        index,
        enabled: true,
        format: bed.format,
        config: bed.device(index)?,
        record: None,
        kick: None,
        call: None,
        counters: Arc::default(),
        fault: FaultReporter::new(Arc::new(attention)),
    })
}

impl Subject for Carried {
    fn prepare(&mut self) -> Result<(), BenchError> {
        let count = self.rx.collect(&mut self.completions)?;
        let received = self.completions.get(..count).unwrap_or_default();
        let length = self.frames.first().map_or(0, |frame| frame.len);
        if count != self.sent || received.iter().any(|done| done.written != length) {
            return Err(refused(format!("of {} frames of {length} bytes came {received:?}", self.sent)));
        }
        for done in received {
            let buffer = self.buffers.get(done.token as usize).copied();
            let buffer = buffer.ok_or_else(|| refused(format!("token {} came back", done.token)))?;
            self.rx.add(&[buffer], done.token)?;
        }
        self.rx.publish();
        self.tx.collect(&mut self.completions)?;
        self.sent = self.frames.len();
        for (token, frame) in (0..).zip(&self.frames) {
            self.tx.add(&[*frame], token)?;
        }
        self.tx.publish();
        Ok(())
    }

    #[inline]
    fn work(&mut self) -> Result<Done, BenchError> {
        match self.pump.poll(&Budget::default(), self.now) {
            Polled::Moved(frames) => {
                // As its worker does.
                self.pump.took(TOOK);
                Ok(Done { units: frames.into(), bytes: 0 })
            }
            Polled::Idle | Polled::Blocked => Ok(Done::default()),
        }
    }

    fn batch(&self) -> Done {
        Done { units: self.frames.len() as u64, bytes: 0 }
    }
}

/// A frame of an unassigned type from one station to another, behind an empty header.
fn bytes_of(header_len: usize, number: u8) -> Vec<u8> {
    let mut bytes = vec![0; header_len];
    bytes.extend_from_slice(&[0x52, 0x57, 0, 0, 0, 2, 0x52, 0x57, 0, 0, 0, 1, 0x88, 0xb5]);
    bytes.resize(header_len + usize::from(FRAME), number);
    bytes
}

pub(super) fn write(bed: &Bed, buffer: &DriverBuffer, bytes: &[u8]) -> Result<(), BenchError> {
    let room = bed.map.resolve(buffer.gpa, buffer.len.into());
    room.map_err(|miss| refused(miss.to_string()))?.write(bytes);
    Ok(())
}

pub(super) fn refused(why: impl std::fmt::Display) -> BenchError {
    BenchError::Peer { peer: "the pump".to_owned(), what: why.to_string() }
}

/// Cycles that a poll is said to have taken.
const TOOK: u64 = 5000;
const RX: u16 = 0;
const TX: u16 = 1;
/// Room of a receive buffer.
const ROOM: u64 = 2048;
/// Room of a frame to be sent.
const SLOT: u64 = 192;
