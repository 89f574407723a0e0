//! The back-end's rules: what each request means for the rings, the memory and the device.
//!
//! A pure state machine: it neither reads a socket nor waits for one. Messages come in whole ([`Backend::handle`]),
//! verdicts go out; what moves descriptors is reached through [`Plane`]. Everything a front-end says is a claim:
//! compared with [`super::message::RULES`] first, then checked where it is used.
//!
//! - A ring *starts* with SET_VRING_KICK and is *served* once size, addresses, memory and features are there, and, if
//!   the front-end uses SET_STATUS, DRIVER_OK. What changes while it is served retires the pump of its group, changes,
//!   and places a new one.
//! - A ring whose addresses, size or base cannot be fails alone, by name; the connection stays.
//! - What is refused is answered by a non-zero acknowledgement if one was asked for. Otherwise the connection is
//!   closed, since the front-end would go on in the belief that it was heard; so it is where the request has an
//!   answer of its own, which a refusal could be taken for.
//! - A device reset (SET_STATUS 0, RESET_DEVICE) stops and disables the rings; the guest's memory and the features
//!   stay until they are set anew, as front-ends expect.
//!
//! Thread and owner: the session.

mod channel;
mod memory;
mod resume;
mod ring;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use ringway_pmd::counters::QueueCounters;
use ringway_pmd::notify::EventFd;
use ringway_pmd::vdpa::{Class, FaultReporter, QueueBinding, VdpaDevice};
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::position::{PositionPage, PositionSlot};

use self::channel::Channel;
use self::memory::MemoryError;
use self::ring::{Call, Kick, Ring, format_of};
use super::bucket::Bucket;
use super::connection::Frame;
use super::life::{Connection, ConnectionEvent, Illegal, RingEvent, State, Status, StatusEvent, status};
use super::message::{
    ConfigRange, FLAG_REPLY, FLAG_VERSION, Header, MAX_CONFIG_BYTES, MAX_MEM_SLOTS, Malformed, MemRegion,
    Request, Rule, VRING_NO_FD, VringAddrs, VringState, decode_mem_table, decode_u64, protocol,
};
use crate::session::{Report, RingReport};

/// What the protocol needs of the data plane. The session has one over the engine.
pub trait Plane {
    /// The device.
    fn device(&mut self) -> &mut dyn VdpaDevice;
    /// The counters of a queue.
    fn counters(&self, index: u16) -> Arc<QueueCounters>;
    /// Where the position of a queue is kept.
    fn slot(&self, index: u16) -> Option<PositionSlot>;
    /// Signalled when the session shall look after its rings ([`Backend::attend`]).
    fn attention(&self) -> Arc<EventFd>;
    /// Makes the pump of a group and places it. None exists.
    fn place(&mut self, group: u16, queues: Vec<QueueBinding>) -> Result<(), PlaneError>;
    /// Takes the pump of a group back, if there is one: once this returns Ok nobody touches its rings.
    fn retire(&mut self, group: u16) -> Result<(), PlaneError>;
    /// A pump of the group is placed.
    fn is_placed(&self, group: u16) -> bool;
    /// The core that the pump of a group runs on.
    fn core(&self, group: u16) -> Option<usize>;
    /// The device is being removed: give up what takes long.
    fn is_revoked(&self) -> bool;
    /// Tells control.
    fn report(&mut self, report: Report);
}

/// Why a pump was not placed or not taken back.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// The driver did not make it.
    #[error("the driver refused: {0}")]
    Driver(String),
    /// The engine did not take it.
    #[error("no worker took it: {0}")]
    Engine(String),
    /// The worker did not give it back in time; its memory is still in use.
    #[error("a worker did not let go: {0}")]
    Stuck(String),
}

impl PlaneError {
    /// A stable short name.
    pub fn name(&self) -> &'static str {
        match self {
            PlaneError::Driver(_) => "driver_refused",
            PlaneError::Engine(_) => "worker_refused",
            PlaneError::Stuck(_) => "worker_stuck",
        }
    }
}

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Obeyed; no answer.
    Done,
    /// To be answered.
    Reply {
        /// Header; the size is the payload's.
        header: Header,
        /// Payload.
        payload: Vec<u8>,
    },
    /// The connection is to be closed.
    Close {
        /// Why, for people.
        reason: String,
    },
}

/// The answer to an obeyed request.
enum Answer {
    /// None of its own.
    Ack,
    /// A number.
    Number(u64),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// A request that is not obeyed.
#[derive(Debug)]
struct Refusal {
    /// Stable short name.
    what: &'static str,
    /// For people.
    detail: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The peer broke the protocol: refused, else closed.
    Breach,
    /// It asked for something that is not to be had, and can go on without: refused, else ignored.
    Soft,
    /// Nothing can go on.
    Fatal,
}

impl Refusal {
    fn breach(what: &'static str, detail: impl Into<String>) -> Refusal {
        Refusal { what, detail: detail.into(), kind: Kind::Breach }
    }
    fn soft(what: &'static str, detail: impl Into<String>) -> Refusal {
        Refusal { what, detail: detail.into(), kind: Kind::Soft }
    }
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Refusal {
        Refusal::breach(malformed.name(), malformed.to_string())
    }
}

impl From<Illegal> for Refusal {
    fn from(illegal: Illegal) -> Refusal {
        Refusal::breach("illegal_event", illegal.to_string())
    }
}

impl From<MemoryError> for Refusal {
    fn from(error: MemoryError) -> Refusal {
        Refusal::breach(error.name(), error.to_string())
    }
}

impl From<PlaneError> for Refusal {
    fn from(error: PlaneError) -> Refusal {
        Refusal { what: error.name(), detail: error.to_string(), kind: Kind::Fatal }
    }
}

/// One front-end's negotiation with one device.
#[derive(Debug)]
pub struct Backend {
    class: Class,
    /// Virtio features offered, vhost-user's own included.
    offered: Features,
    max_vq_size: u16,
    connection: Connection,
    status: Status,
    /// As the front-end set them.
    status_bits: u8,
    /// The front-end used SET_STATUS since the last reset, so that DRIVER_OK is waited for.
    status_used: bool,
    needs_reset: bool,
    protocol: u64,
    /// As agreed on, vhost-user's own included.
    features: Features,
    /// The device knows the features.
    told: bool,
    rings: Vec<Ring>,
    /// Group by ring.
    groups: Vec<u16>,
    map: Option<Arc<GuestMap>>,
    channel: Option<Channel>,
    /// What was last reported of the rings.
    reported: Vec<RingReport>,
    /// Bounds reports of misbehaviour; those beyond are counted and told with the next.
    breaches: Bucket,
    untold: u64,
    /// What the last message cost beyond its reading.
    cost: u32,
}

impl Backend {
    /// A new connection.
    pub fn new(plane: &mut dyn Plane, now: Instant) -> Backend {
        let device = plane.device();
        let (class, limits) = (device.class(), device.limits());
        let offered = device.features() | Features::PROTOCOL_FEATURES;
        // The bits of `Channel` and the slots of a page bound the rings of one session.
        let count = limits.max_vqs.min(PositionPage::QUEUES as u16);
        let groups: Vec<u16> = (0..count).map(|index| device.group_of(index)).collect();
        let rings = (0..count).map_while(|index| plane.slot(index)).map(Ring::new).collect();
        Backend {
            class,
            offered,
            max_vq_size: limits.max_vq_size,
            connection: Connection::Connected,
            status: Status::Reset,
            status_bits: 0,
            status_used: false,
            needs_reset: false,
            protocol: 0,
            features: Features::NONE,
            told: false,
            rings,
            groups,
            map: None,
            channel: None,
            reported: Vec::new(),
            breaches: Bucket::new(BREACH_BURST, BREACHES_PER_SECOND, now),
            untold: 0,
            cost: 0,
        }
    }

    /// Obeys one message, or refuses it.
    pub fn handle(&mut self, plane: &mut dyn Plane, frame: Frame, now: Instant) -> Verdict {
        let header = frame.header;
        let answered = |flags| Header { request: header.request, flags: FLAG_VERSION | flags, size: 0 };
        let request = Request::from_number(header.request);
        let verdict = match self.obey(plane, request, frame) {
            Ok(Answer::Ack) if header.needs_reply() => {
                Verdict::Reply { header: answered(FLAG_REPLY), payload: 0u64.to_ne_bytes().to_vec() }
            }
            Ok(Answer::Ack) => Verdict::Done,
            Ok(Answer::Number(number)) => {
                Verdict::Reply { header: answered(FLAG_REPLY), payload: number.to_ne_bytes().to_vec() }
            }
            Ok(Answer::Bytes(payload)) => Verdict::Reply { header: answered(FLAG_REPLY), payload },
            Err(Refusal { what, detail, kind }) => {
                let reason = format!("{what}: {detail}");
                self.misbehaved(plane, what, detail, now);
                let answers = request.and_then(Rule::of).is_some_and(|rule| rule.answers);
                match kind {
                    Kind::Fatal => Verdict::Close { reason },
                    // An empty payload is how GET_CONFIG fails.
                    _ if request == Some(Request::GetConfig) && kind == Kind::Soft => {
                        Verdict::Reply { header: answered(FLAG_REPLY), payload: Vec::new() }
                    }
                    _ if header.needs_reply() && !answers => {
                        Verdict::Reply { header: answered(FLAG_REPLY), payload: 1u64.to_ne_bytes().to_vec() }
                    }
                    Kind::Soft => Verdict::Done,
                    Kind::Breach => Verdict::Close { reason },
                }
            }
        };
        self.report_rings(plane);
        verdict
    }

    /// What the last messages cost beyond their reading, in tokens of the session's bucket; reading it resets it.
    pub fn take_cost(&mut self) -> u32 {
        std::mem::take(&mut self.cost)
    }

    /// Looks after the rings: the attention descriptor was signalled.
    pub fn attend(&mut self, plane: &mut dyn Plane) -> Result<(), PlaneError> {
        for group in self.all_groups() {
            let faulty = |ring: &Ring| ring.reporter.as_ref().and_then(FaultReporter::reported).is_some();
            if self.members(group).any(|index| faulty(&self.rings[index])) {
                self.refresh(plane, group)?;
            }
        }
        self.report_rings(plane);
        Ok(())
    }

    /// A pump panicked and was taken out: its rings are stopped.
    pub fn pump_panicked(&mut self, plane: &mut dyn Plane, group: u16) {
        for index in self.members(group).collect::<Vec<_>>() {
            if self.rings[index].placed {
                self.rings[index].placed = false;
                self.fault(plane, index, "pump_panicked");
            }
        }
        self.report_rings(plane);
    }

    /// The core of a group changed: it is told with the rings.
    pub fn moved(&mut self, plane: &mut dyn Plane) {
        self.report_rings(plane);
    }

    /// Tells the front-end that configuration space changed, if it can be told.
    pub fn config_changed(&mut self) {
        if self.protocol & protocol::CONFIG != 0
            && let Some(channel) = &mut self.channel
        {
            channel.config_changed();
        }
    }

    /// The back-end channel and whether something waits to be sent on it.
    pub fn channel(&self) -> Option<(BorrowedFd<'_>, bool)> {
        self.channel.as_ref().map(|channel| (channel.as_fd(), channel.wants_out()))
    }

    /// Sends on the back-end channel what the front-end takes, and reads what it says there if `readable`.
    pub fn serve_channel(&mut self, readable: bool, now: Instant) {
        let Some(channel) = &mut self.channel else { return };
        let open = !readable || channel.discard();
        if !open || channel.flush(now).is_err() {
            // The front-end closed it: it is not told of changes any more, which is its choice.
            self.channel = None;
        }
    }

    /// The eventfds by which pumps ask for calls as messages, with their rings.
    pub fn in_band_calls(&self) -> impl Iterator<Item = (u16, &EventFd)> {
        self.rings.iter().enumerate().filter_map(|(index, ring)| match &ring.call {
            Call::InBand(fd) => Some((index as u16, &**fd)),
            _ => None,
        })
    }

    /// A pump asked for a call of this ring as a message.
    pub fn call_in_band(&mut self, index: u16) {
        if let Some(Call::InBand(fd)) = self.rings.get(usize::from(index)).map(|ring| &ring.call) {
            fd.clear();
            if let Some(channel) = &mut self.channel {
                channel.call(index);
            }
        }
    }

    /// The connection is over: takes every pump back and lets go of the guest's memory. Positions stay kept, so that
    /// the next connection can go on from them.
    pub fn close(&mut self, plane: &mut dyn Plane) -> Result<(), PlaneError> {
        self.connection = self.connection.after(ConnectionEvent::Close).unwrap_or(Connection::Closed);
        let mut outcome = Ok(());
        for group in self.all_groups() {
            if let Err(error) = plane.retire(group) {
                outcome = Err(error);
            }
        }
        for ring in &mut self.rings {
            ring.placed = false;
            ring.kick = Kick::Polled;
            ring.call = Call::Never;
            ring.err = None;
        }
        self.map = None;
        self.channel = None;
        outcome
    }

    /// Checks the message, then does what it asks.
    fn obey(
        &mut self,
        plane: &mut dyn Plane,
        request: Option<Request>,
        mut frame: Frame,
    ) -> Result<Answer, Refusal> {
        let number = frame.header.request;
        let request =
            request.ok_or_else(|| Refusal::breach("request_unknown", format!("request {number}")))?;
        let name = request.name();
        let Some(rule) = Rule::of(request) else {
            return Err(Refusal::breach("request_unsupported", name));
        };
        if frame.header.is_reply() {
            return Err(Refusal::breach("message_reply", format!("{name} with the reply flag")));
        }
        if frame.lost_fds {
            return Err(Refusal::breach(
                "message_fds",
                format!("{name} with more descriptors than can be taken"),
            ));
        }
        rule.check(frame.header.size as usize, frame.fds.len())?;
        if rule.needs & !self.protocol != 0 {
            let missing: Vec<_> = protocol::names(rule.needs).collect();
            let detail = format!("{name} without {}", missing.join(", "));
            return Err(Refusal::breach("request_not_negotiated", detail));
        }
        let fds = std::mem::take(&mut frame.fds);
        let payload = frame.payload().unwrap_or_default();
        match request {
            Request::GetFeatures => Ok(Answer::Number(self.offered.0)),
            Request::SetFeatures => self.set_features(plane, Features(decode_u64(payload))),
            Request::SetOwner => {
                self.connection = self.connection.after(ConnectionEvent::SetOwner)?;
                Ok(Answer::Ack)
            }
            Request::ResetOwner => {
                self.connection = self.connection.after(ConnectionEvent::ResetOwner)?;
                // Without PROTOCOL_FEATURES nothing could enable them again.
                if self.features.contains(Features::PROTOCOL_FEATURES) {
                    self.for_every_ring(plane, RingEvent::Disable)
                } else {
                    Ok(Answer::Ack)
                }
            }
            Request::GetProtocolFeatures => Ok(Answer::Number(self.protocol_offered())),
            Request::SetProtocolFeatures => self.set_protocol_features(decode_u64(payload)),
            Request::GetQueueNum => Ok(Answer::Number(self.queue_num())),
            Request::GetMaxMemSlots => Ok(Answer::Number(MAX_MEM_SLOTS)),
            Request::SetMemTable => {
                let regions = decode_mem_table(payload, fds.len())?;
                let specs =
                    regions.into_iter().zip(fds).map(|(region, file)| memory::spec(region, file)).collect();
                let map = memory::replace(self.map.as_deref(), specs, || plane.is_revoked())?;
                self.set_map(plane, map)
            }
            Request::AddMemReg => {
                let file = first(fds, request)?;
                let spec = memory::spec(MemRegion::decode_single(payload), file);
                let map = memory::add(self.map.as_deref(), spec)?;
                self.set_map(plane, map)
            }
            Request::RemMemReg => {
                let map = memory::remove(self.map.as_deref(), &MemRegion::decode_single(payload))?;
                self.set_map(plane, map)
            }
            Request::SetVringNum => self.set_vring_num(plane, VringState::decode(payload)),
            Request::SetVringAddr => self.set_vring_addr(plane, VringAddrs::decode(payload)),
            Request::SetVringBase => self.set_vring_base(plane, VringState::decode(payload)),
            Request::GetVringBase => self.get_vring_base(plane, VringState::decode(payload)),
            Request::SetVringKick => self.set_vring_kick(plane, decode_u64(payload), fds),
            Request::SetVringCall => self.set_vring_call(plane, decode_u64(payload), fds),
            Request::SetVringErr => self.set_vring_err(decode_u64(payload), fds),
            Request::SetVringEnable => self.set_vring_enable(plane, VringState::decode(payload)),
            Request::VringKick => self.vring_kick(plane, VringState::decode(payload)),
            // Nobody hears an announcement on a wire that ends in this host: taken and done.
            Request::SendRarp => Ok(Answer::Ack),
            Request::NetSetMtu => self.set_mtu(plane, decode_u64(payload)),
            Request::SetBackendReqFd => {
                let channel = Channel::new(first(fds, request)?)
                    .map_err(|e| Refusal::breach("backend_channel", format!("{name}: {e}")))?;
                self.channel = Some(channel);
                Ok(Answer::Ack)
            }
            Request::GetConfig => self.get_config(plane, payload),
            Request::SetConfig => self.set_config(plane, payload),
            Request::ResetDevice => {
                self.reset(plane)?;
                Ok(Answer::Ack)
            }
            Request::SetStatus => self.set_status(plane, decode_u64(payload)),
            Request::GetStatus => Ok(Answer::Number(self.status_now().into())),
            _ => Err(Refusal::breach("request_unsupported", name)),
        }
    }

    fn protocol_offered(&self) -> u64 {
        match self.class {
            Class::Net => protocol::OFFERED,
            Class::Block => protocol::OFFERED & !(protocol::RARP | protocol::MTU),
        }
    }

    /// Pairs for net, as every front-end takes it; queues for others.
    fn queue_num(&self) -> u64 {
        match self.class {
            Class::Net => self.rings.len() as u64 / 2,
            Class::Block => self.rings.len() as u64,
        }
    }

    fn set_protocol_features(&mut self, bits: u64) -> Result<Answer, Refusal> {
        let unknown = bits & !self.protocol_offered();
        if unknown != 0 {
            return Err(Refusal::breach("protocol_features", format!("{unknown:#x} were not offered")));
        }
        let needed = protocol::BACKEND_REQ | protocol::REPLY_ACK;
        if bits & protocol::INBAND_NOTIFICATIONS != 0 && bits & needed != needed {
            let detail = "INBAND_NOTIFICATIONS without BACKEND_REQ and REPLY_ACK";
            return Err(Refusal { what: "protocol_features", detail: detail.into(), kind: Kind::Fatal });
        }
        self.protocol = bits;
        Ok(Answer::Ack)
    }

    fn set_features(&mut self, plane: &mut dyn Plane, features: Features) -> Result<Answer, Refusal> {
        let unknown = features.without(self.offered);
        if unknown != Features::NONE {
            return Err(Refusal::breach("features", format!("{unknown:?} were not offered")));
        }
        // Front-ends repeat the same set once a queue pair, with earlier pairs running.
        if self.connection_has_features() && features == self.features {
            return Ok(Answer::Ack);
        }
        if self.rings.iter().any(|ring| ring.life.is_started()) {
            return Err(Refusal::breach("features", "changed while rings run"));
        }
        let next = self.connection.after(ConnectionEvent::SetFeatures)?;
        let device_features = features.without(Features::PROTOCOL_FEATURES);
        plane
            .device()
            .negotiated(device_features)
            .map_err(|e| Refusal::breach("features", format!("the driver refused them: {e}")))?;
        self.told = true;
        let was_without =
            self.connection_has_features() && !self.features.contains(Features::PROTOCOL_FEATURES);
        (self.connection, self.features) = (next, features);
        plane.report(Report::Negotiated { features: device_features, protocol: self.protocol });
        // Without PROTOCOL_FEATURES there is no SET_VRING_ENABLE: rings are enabled from the start.
        if !features.contains(Features::PROTOCOL_FEATURES) {
            self.for_every_ring(plane, RingEvent::Enable)
        } else if was_without {
            self.for_every_ring(plane, RingEvent::Disable)
        } else {
            Ok(Answer::Ack)
        }
    }

    fn connection_has_features(&self) -> bool {
        matches!(self.connection, Connection::Unowned | Connection::Ready)
    }

    /// Puts a new map in force: rings are taken from their pumps, and served anew where they lie in the new map.
    fn set_map(&mut self, plane: &mut dyn Plane, map: GuestMap) -> Result<Answer, Refusal> {
        if memory::same(self.map.as_deref(), &map) {
            return Ok(Answer::Ack);
        }
        let (regions, bytes) = (map.regions().len(), map.regions().iter().map(|region| region.size()).sum());
        // All pumps let go before any sees the new map: to the rings, the set is replaced at once.
        for group in self.all_groups() {
            plane.retire(group)?;
        }
        self.map = Some(Arc::new(map));
        plane.report(Report::Memory { regions, bytes });
        for group in self.all_groups() {
            self.refresh(plane, group)?;
        }
        Ok(Answer::Ack)
    }

    fn set_vring_num(&mut self, plane: &mut dyn Plane, state: VringState) -> Result<Answer, Refusal> {
        let index = self.index(state.index)?;
        if state.num == 0 || state.num > self.max_vq_size.into() {
            let detail = format!("ring {index}: {} is not 1 to {}", state.num, self.max_vq_size);
            return Err(Refusal::breach("ring_size", detail));
        }
        self.rings[index].size = Some(state.num);
        self.refresh_ring(plane, index)
    }

    fn set_vring_addr(&mut self, plane: &mut dyn Plane, addrs: VringAddrs) -> Result<Answer, Refusal> {
        let index = self.index(addrs.index)?;
        if addrs.flags != 0 {
            return Err(Refusal::breach(
                "ring_log",
                format!("ring {index}: flags {:#x} not offered", addrs.flags),
            ));
        }
        self.rings[index].addrs = Some(addrs);
        self.refresh_ring(plane, index)
    }

    fn set_vring_base(&mut self, plane: &mut dyn Plane, state: VringState) -> Result<Answer, Refusal> {
        let index = self.index(state.index)?;
        let group = self.groups[index];
        if self.rings[index].begun {
            plane.retire(group)?;
            self.rings[index].stop();
        }
        self.rings[index].base = state.num;
        self.refresh_ring(plane, index)
    }

    fn get_vring_base(&mut self, plane: &mut dyn Plane, state: VringState) -> Result<Answer, Refusal> {
        let index = self.index(state.index)?;
        plane.retire(self.groups[index])?;
        let format = format_of(self.features);
        let ring = &mut self.rings[index];
        ring.life = ring.life.after(RingEvent::Stop)?;
        ring.base = ring.base_now(format);
        ring.kick = Kick::Polled;
        ring.fault = None;
        // A position kept by a session before this one stays, for the start that has yet to come.
        if ring.begun {
            ring.stop();
        }
        let num = ring.base;
        self.refresh_ring(plane, index)?;
        Ok(Answer::Bytes(VringState { index: state.index, num }.encode().to_vec()))
    }

    fn set_vring_kick(
        &mut self,
        plane: &mut dyn Plane,
        payload: u64,
        fds: Vec<OwnedFd>,
    ) -> Result<Answer, Refusal> {
        let (index, fd) = self.ring_fd(Request::SetVringKick, payload, fds)?;
        let ring = &mut self.rings[index];
        ring.life = ring.life.after(RingEvent::Start)?;
        ring.fault = None;
        ring.kick = match fd {
            Some(fd) => Kick::Fd(Arc::new(fd)),
            // Polled also where kicks may come as messages: not every front-end that agrees to them sends them.
            None => Kick::Polled,
        };
        self.refresh_ring(plane, index)
    }

    fn set_vring_call(
        &mut self,
        plane: &mut dyn Plane,
        payload: u64,
        fds: Vec<OwnedFd>,
    ) -> Result<Answer, Refusal> {
        let (index, fd) = self.ring_fd(Request::SetVringCall, payload, fds)?;
        let in_band = self.protocol & protocol::INBAND_NOTIFICATIONS != 0;
        self.rings[index].call = match fd {
            Some(fd) => Call::Fd(Arc::new(fd)),
            None if in_band => Call::InBand(Arc::new(own_eventfd()?)),
            None => Call::Never,
        };
        self.refresh_ring(plane, index)
    }

    fn set_vring_err(&mut self, payload: u64, fds: Vec<OwnedFd>) -> Result<Answer, Refusal> {
        let (index, fd) = self.ring_fd(Request::SetVringErr, payload, fds)?;
        self.rings[index].err = fd;
        Ok(Answer::Ack)
    }

    fn set_vring_enable(&mut self, plane: &mut dyn Plane, state: VringState) -> Result<Answer, Refusal> {
        let index = self.index(state.index)?;
        let event = match state.num {
            0 => RingEvent::Disable,
            1 => RingEvent::Enable,
            other => {
                return Err(Refusal::breach("ring_enable", format!("ring {index}: {other} is not 0 or 1")));
            }
        };
        let ring = &mut self.rings[index];
        let before = ring.life;
        ring.life = ring.life.after(event)?;
        if ring.life == before { Ok(Answer::Ack) } else { self.refresh_ring(plane, index) }
    }

    /// A kick as a message. The first one proves that this front-end sends them, so that the ring need not be polled
    /// any more.
    fn vring_kick(&mut self, plane: &mut dyn Plane, state: VringState) -> Result<Answer, Refusal> {
        let index = self.index(state.index)?;
        match &self.rings[index].kick {
            Kick::Fd(_) => Ok(Answer::Ack),
            Kick::InBand(fd) => {
                fd.signal();
                Ok(Answer::Ack)
            }
            Kick::Polled if self.rings[index].life.is_started() => {
                self.rings[index].kick = Kick::InBand(Arc::new(own_eventfd()?));
                self.refresh_ring(plane, index)
            }
            Kick::Polled => Ok(Answer::Ack),
        }
    }

    fn set_mtu(&mut self, plane: &mut dyn Plane, mtu: u64) -> Result<Answer, Refusal> {
        let mtu = u16::try_from(mtu).map_err(|_| Refusal::soft("mtu", format!("{mtu} is no MTU")))?;
        plane.device().set_mtu(mtu).map_err(|e| Refusal::soft("mtu", e.to_string()))?;
        plane.report(Report::Mtu(mtu));
        Ok(Answer::Ack)
    }

    fn get_config(&mut self, plane: &mut dyn Plane, payload: &[u8]) -> Result<Answer, Refusal> {
        let (range, _) = ConfigRange::decode(Request::GetConfig, payload)?;
        let space = config_space(plane);
        let bytes = slice_of(&space, &range).ok_or_else(|| {
            Refusal::soft("config_range", format!("{} bytes at {}", range.size, range.offset))
        })?;
        Ok(Answer::Bytes(range.encode(bytes)))
    }

    /// No field of a device here can be written by a driver; a migration may repeat what is there.
    fn set_config(&mut self, plane: &mut dyn Plane, payload: &[u8]) -> Result<Answer, Refusal> {
        let (range, bytes) = ConfigRange::decode(Request::SetConfig, payload)?;
        let space = config_space(plane);
        match slice_of(&space, &range) {
            None => Err(Refusal::soft("config_range", format!("{} bytes at {}", range.size, range.offset))),
            Some(there) if range.flags <= 1 && there == bytes => Ok(Answer::Ack),
            Some(_) => {
                Err(Refusal::soft("config_read_only", format!("{} bytes at {}", range.size, range.offset)))
            }
        }
    }

    fn set_status(&mut self, plane: &mut dyn Plane, value: u64) -> Result<Answer, Refusal> {
        let value = u8::try_from(value)
            .map_err(|_| Refusal::breach("status", format!("{value:#x} is no virtio status")))?;
        let event = StatusEvent::of(value);
        if event == StatusEvent::Reset {
            self.reset(plane)?;
            return Ok(Answer::Ack);
        }
        self.status = self.status.after(event)?;
        self.status_used = true;
        self.status_bits = value & !status::NEEDS_RESET;
        // virtio 1.3 §2.2.2: a device that did not accept features leaves FEATURES_OK off.
        if !self.connection_has_features() {
            self.status_bits &= !status::FEATURES_OK;
        }
        plane.report(Report::Status(self.status_now()));
        for group in self.all_groups() {
            // Only DRIVER_OK, or its absence, changes what is served.
            if self.members(group).any(|index| self.rings[index].placed != self.is_served(index)) {
                self.refresh(plane, group)?;
            }
        }
        Ok(Answer::Ack)
    }

    fn status_now(&self) -> u8 {
        self.status_bits | if self.needs_reset { status::NEEDS_RESET } else { 0 }
    }

    /// The device's reset: rings stop and are disabled, status and positions are forgotten; the guest's memory, the
    /// features and the connection stay.
    fn reset(&mut self, plane: &mut dyn Plane) -> Result<(), Refusal> {
        let next = self.status.after(StatusEvent::Reset)?;
        for group in self.all_groups() {
            plane.retire(group)?;
        }
        for ring in &mut self.rings {
            ring.life = ring.life.after(RingEvent::Reset)?;
            ring.placed = false;
            ring.reset();
        }
        self.status = next;
        (self.status_bits, self.status_used, self.needs_reset) = (0, false, false);
        plane.device().reset();
        self.told = false;
        plane.report(Report::Status(0));
        if self.connection_has_features() && !self.features.contains(Features::PROTOCOL_FEATURES) {
            self.for_every_ring(plane, RingEvent::Enable)?;
        }
        Ok(())
    }

    /// A ring's number as the front-end claims it: all 32 bits of it.
    fn index(&self, claimed: u32) -> Result<usize, Refusal> {
        let index = claimed as usize;
        if index < self.rings.len() {
            Ok(index)
        } else {
            Err(Refusal::breach("ring_index", format!("ring {claimed} of {}", self.rings.len())))
        }
    }

    /// The ring and the descriptor of SET_VRING_KICK, _CALL and _ERR.
    fn ring_fd(
        &self,
        request: Request,
        payload: u64,
        mut fds: Vec<OwnedFd>,
    ) -> Result<(usize, Option<EventFd>), Refusal> {
        let name = request.name();
        let none = payload & VRING_NO_FD != 0;
        let index = u32::try_from(payload & !VRING_NO_FD).unwrap_or(u32::MAX);
        let index = self.index(index)?;
        match fds.pop() {
            None if none => Ok((index, None)),
            Some(fd) if !none => {
                let fd =
                    event_fd(fd).map_err(|e| Refusal::breach("not_an_eventfd", format!("{name}: {e}")))?;
                Ok((index, Some(fd)))
            }
            Some(_) => Err(Refusal::breach("message_fds", format!("{name} with a descriptor and without"))),
            None => Err(Refusal::breach("message_fds", format!("{name} without its descriptor"))),
        }
    }

    fn all_groups(&self) -> std::ops::Range<u16> {
        0..self.groups.iter().max().map_or(0, |last| last + 1)
    }

    fn members(&self, group: u16) -> impl Iterator<Item = usize> + '_ {
        self.groups.iter().enumerate().filter(move |(_, of)| **of == group).map(|(index, _)| index)
    }

    /// Makes something happen to every ring, and serves those that are to be served.
    fn for_every_ring(&mut self, plane: &mut dyn Plane, event: RingEvent) -> Result<Answer, Refusal> {
        for group in self.all_groups() {
            let mut changed = false;
            for index in self.members(group).collect::<Vec<_>>() {
                let ring = &mut self.rings[index];
                let next = ring.life.after(event)?;
                changed |= next != ring.life;
                ring.life = next;
            }
            if changed {
                self.refresh(plane, group)?;
            }
        }
        Ok(Answer::Ack)
    }

    /// True if a ring is to be served as far as the connection and the device go.
    fn is_served(&self, index: usize) -> bool {
        self.connection_has_features()
            && self.map.is_some()
            && (!self.status_used || self.status == Status::DriverOk)
            && self.rings[index].life.is_started()
    }

    /// Something about a ring changed.
    fn refresh_ring(&mut self, plane: &mut dyn Plane, index: usize) -> Result<Answer, Refusal> {
        if self.rings[index].placed || self.is_served(index) || !plane.is_placed(self.groups[index]) {
            self.refresh(plane, self.groups[index])?;
        }
        Ok(Answer::Ack)
    }

    /// Takes the pump of a group back and places one for what its rings are now.
    fn refresh(&mut self, plane: &mut dyn Plane, group: u16) -> Result<(), PlaneError> {
        if plane.is_placed(group) {
            self.cost += COST_OF_PLACING;
            plane.retire(group)?;
        }
        let mut queues = Vec::new();
        for index in self.members(group).collect::<Vec<_>>() {
            self.rings[index].placed = false;
            let reported = self.rings[index].reporter.take().and_then(|reporter| reporter.reported());
            if let Some(fault) = reported {
                self.fault(plane, index, fault.name());
            }
            match self.bind(plane, index) {
                Ok(Some(binding)) => queues.push(binding),
                Ok(None) => {}
                Err(name) => self.cannot_run(plane, index, name),
            }
        }
        if queues.is_empty() {
            return Ok(());
        }
        self.cost += COST_OF_PLACING;
        let indexes: Vec<usize> = queues.iter().map(|queue| queue.index.into()).collect();
        let told = self.told
            || plane.device().negotiated(self.features.without(Features::PROTOCOL_FEATURES)).is_ok();
        self.told = told;
        match plane.place(group, queues) {
            Ok(()) => indexes.into_iter().for_each(|index| self.rings[index].placed = true),
            Err(error) => {
                tracing::debug!(group, %error, "pump not placed");
                indexes.into_iter().for_each(|index| self.cannot_run(plane, index, error.name()));
            }
        }
        Ok(())
    }

    /// The queue of a ring, if it is to be served.
    fn bind(&mut self, plane: &mut dyn Plane, index: usize) -> Result<Option<QueueBinding>, &'static str> {
        let (true, Some(map)) = (self.is_served(index), &self.map) else { return Ok(None) };
        let features = self.features.without(Features::PROTOCOL_FEATURES);
        // Transmit queues of a network device complete everything with length 0.
        let skip_used = self.class == Class::Net && index % 2 == 1;
        let ring = &mut self.rings[index];
        let Some(config) = ring.configure(features, map, skip_used)? else { return Ok(None) };
        let fault = FaultReporter::new(plane.attention());
        // Kept from now on: if the process dies before the first burst, its successor finds the true position.
        ring.slot.store(config.position);
        ring.begun = true;
        ring.reporter = Some(fault.clone());
        ring.fault = None;
        Ok(Some(QueueBinding {
            index: index as u16,
            enabled: ring.life.is_enabled(),
            format: format_of(features),
            config,
            kick: ring.kick.source(),
            call: ring.call.sink(),
            counters: plane.counters(index as u16),
            fault,
        }))
    }

    /// A ring that cannot run as it is set up. It may be set up better; until then it waits, and its fault is shown.
    fn cannot_run(&mut self, plane: &mut dyn Plane, index: usize, name: &'static str) {
        if self.rings[index].fault != Some(name) {
            self.rings[index].fault = Some(name);
            self.signal_error(index);
            plane.report(Report::RingFault { queue: index as u16, fault: name });
        }
    }

    /// A ring that broke the rules: stopped until it is started anew. The driver is told that the device needs a
    /// reset; the other rings go on.
    fn fault(&mut self, plane: &mut dyn Plane, index: usize, name: &'static str) {
        let ring = &mut self.rings[index];
        let Ok(next) = ring.life.after(RingEvent::Fault) else { return };
        ring.life = next;
        ring.fault = Some(name);
        self.signal_error(index);
        if !std::mem::replace(&mut self.needs_reset, true) {
            self.config_changed();
        }
        plane.report(Report::RingFault { queue: index as u16, fault: name });
        plane.report(Report::Status(self.status_now()));
    }

    /// Tells the front-end of a ring's error by descriptor, else by message.
    fn signal_error(&mut self, index: usize) {
        match &self.rings[index].err {
            Some(fd) => {
                // A peer that makes its descriptor blocking again is not told: this thread waits for nobody.
                let nonblocking = |flags: rustix::fs::OFlags| flags.contains(rustix::fs::OFlags::NONBLOCK);
                if rustix::fs::fcntl_getfl(fd).is_ok_and(nonblocking) {
                    fd.signal();
                }
            }
            None if self.protocol & protocol::INBAND_NOTIFICATIONS != 0 => {
                if let Some(channel) = &mut self.channel {
                    channel.ring_error(index as u16);
                }
            }
            None => {}
        }
    }

    /// Reports a breach, unless there were too many lately.
    pub fn misbehaved(
        &mut self,
        plane: &mut dyn Plane,
        what: &'static str,
        mut detail: String,
        now: Instant,
    ) {
        if !self.breaches.take(now) {
            self.untold += 1;
            return;
        }
        let untold = std::mem::take(&mut self.untold);
        if untold > 0 {
            detail.push_str(&format!(" (and {untold} other breaches since the last that was told)"));
        }
        plane.report(Report::PeerMisbehaved { what, detail });
    }

    /// Reports the rings if they are not what was last reported.
    fn report_rings(&mut self, plane: &mut dyn Plane) {
        let report = |(index, ring): (usize, &Ring)| RingReport {
            index: index as u16,
            // Bounded by the device's largest size when it was set.
            size: ring.size.unwrap_or(0) as u16,
            started: ring.life.is_started(),
            enabled: ring.life.is_enabled(),
            kicks: !matches!(ring.kick, Kick::Polled),
            fault: ring.fault,
            core: plane.core(self.groups[index]).filter(|_| ring.placed),
        };
        let rings: Vec<RingReport> = self.rings.iter().enumerate().map(report).collect();
        if rings != self.reported {
            plane.report(Report::Rings(rings.clone()));
            self.reported = rings;
        }
    }
}

/// The one descriptor of a request.
fn first(fds: Vec<OwnedFd>, request: Request) -> Result<OwnedFd, Refusal> {
    let missing = || Refusal::breach("message_fds", format!("{} without its descriptor", request.name()));
    fds.into_iter().next().ok_or_else(missing)
}

/// An eventfd of a peer. Made non-blocking, which is what VMMs make them to begin with, so that signalling it waits for
/// nobody.
fn event_fd(fd: OwnedFd) -> std::io::Result<EventFd> {
    let fd = EventFd::from_peer(fd)?;
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(fd)
}

fn own_eventfd() -> Result<EventFd, Refusal> {
    EventFd::new().map_err(|e| Refusal::breach("eventfd", format!("cannot make an eventfd: {e}")))
}

/// Configuration space: the device's own bytes, zeros behind them.
fn config_space(plane: &mut dyn Plane) -> [u8; MAX_CONFIG_BYTES] {
    let mut space = [0; MAX_CONFIG_BYTES];
    for (to, from) in space.iter_mut().zip(plane.device().config().to_bytes()) {
        *to = from;
    }
    space
}

/// The part of configuration space that a message means; None if it is empty or not inside.
fn slice_of<'space>(space: &'space [u8], range: &ConfigRange) -> Option<&'space [u8]> {
    let (offset, size) = (range.offset as usize, range.size as usize);
    if size == 0 { None } else { space.get(offset..offset.checked_add(size)?) }
}

/// Misbehaviour reported at once, and per second in the long run.
const BREACH_BURST: u32 = 32;
const BREACHES_PER_SECOND: u32 = 4;

/// What retiring or placing a pump costs, in messages: it takes time of a worker that others share.
const COST_OF_PLACING: u32 = 12;
