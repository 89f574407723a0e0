//! The back-end's rules: what each request means for the rings, the memory and the device.
//!
//! A pure state machine: it neither reads a socket nor waits for one. Messages come in whole ([`Backend::handle`]),
//! verdicts go out; what moves descriptors is reached through [`Plane`]. Everything a front-end says is a claim:
//! compared with [`ringway_vhost_user::message::RULES`] first, then checked where it is used.
//!
//! - A ring *starts* with SET_VRING_KICK and is *served* once size, addresses, memory and features are there, and, if
//!   the front-end uses SET_STATUS, DRIVER_OK. What changes while it is served retires the pump of its group, changes,
//!   and places a new one.
//! - A ring that is started and *disabled* is served too: the driver drops what it sends. One that the front-end has
//!   not yet called enabled or disabled waits for that word, so that a reconnect costs no frame.
//! - A ring whose addresses, size or base cannot be fails alone, by name; the connection stays.
//! - What is refused is answered by a non-zero acknowledgement if one was asked for. Otherwise the connection is
//!   closed, since the front-end would go on in the belief that it was heard; so it is where the request has an
//!   answer of its own, which a refusal could be taken for.
//! - A device reset (SET_STATUS 0, RESET_DEVICE) stops and disables the rings; the guest's memory and the features
//!   stay until they are set anew, as front-ends expect.
//!
//! Thread and owner: the session.

mod channel;
mod device;
mod memory;
mod plane;
mod refusal;
mod resume;
mod ring;
mod serve;
mod vring;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use ringway_pmd::notify::{CallGate, EventFd};
use ringway_pmd::vdpa::{Class, Ended, FaultReporter};
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::position::PositionPage;

use self::channel::Channel;
use self::plane::NOT_PLACED;
pub use self::plane::{Plane, PlaneError};
use self::refusal::{Kind, Refusal};
use self::ring::{Call, Kick, Ring};
use super::life::{Connection, ConnectionEvent, RingEvent, State, Status};
use crate::frontends::session::{Lack, Report, RingReport};
use ringway_vhost_user::bucket::Bucket;
use ringway_vhost_user::connection::{Frame, LostFds};
use ringway_vhost_user::message::{
    FLAG_REPLY, FLAG_VERSION, Header, MAX_MEM_SLOTS, MemRegion, Request, Rule, VringAddrs, VringState,
    decode_mem_table, decode_u64, protocol,
};

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
    /// When to look at the rings again, without a message.
    look_at: Option<Instant>,
    /// What rings lack for long, as far as it was told.
    lacks_told: Vec<Lack>,
    /// Bounds reports of misbehaviour; those beyond are counted and told with the next.
    breaches: Bucket,
    untold: u64,
    /// What the last message cost beyond its reading.
    cost: u32,
    /// What its call descriptors have in common.
    gate: Arc<CallGate>,
    /// It has paid for a descriptor that blocked a core, or its session: it can make none block a core again.
    paid_for_blocking: bool,
    /// An error descriptor of it blocked: none is written to any more.
    hears_no_errors: bool,
    /// When to write again to those descriptors for which there were too many writers.
    write_at: Option<Instant>,
}

impl Backend {
    /// A new connection.
    pub fn new(plane: &mut dyn Plane, now: Instant) -> Backend {
        let attention = plane.attention();
        let facts = plane.device().facts();
        let (class, limits) = (facts.class, facts.limits);
        let offered = facts.features | Features::PROTOCOL_FEATURES;
        // The bits of `Channel` and the slots of a page bound the rings of one session.
        let count = limits.max_vqs.min(PositionPage::QUEUES as u16);
        let groups: Vec<u16> = (0..count).map(|index| facts.group_of(index)).collect();
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
            look_at: None,
            lacks_told: Vec::new(),
            breaches: Bucket::new(BREACH_BURST, BREACHES_PER_SECOND, now),
            untold: 0,
            cost: 0,
            gate: CallGate::new(attention),
            paid_for_blocking: false,
            hears_no_errors: false,
            write_at: None,
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
                match kind {
                    Kind::Host | Kind::HostFatal => self.host_failed(plane, what, detail, now),
                    Kind::Breach | Kind::Soft | Kind::Fatal => self.misbehaved(plane, what, detail, now),
                }
                let answers = request.and_then(Rule::of).is_some_and(|rule| rule.answers);
                match kind {
                    Kind::Fatal | Kind::HostFatal => Verdict::Close { reason },
                    // An empty payload is how GET_CONFIG fails.
                    _ if request == Some(Request::GetConfig) && kind == Kind::Soft => {
                        Verdict::Reply { header: answered(FLAG_REPLY), payload: Vec::new() }
                    }
                    _ if header.needs_reply() && !answers => {
                        Verdict::Reply { header: answered(FLAG_REPLY), payload: 1u64.to_ne_bytes().to_vec() }
                    }
                    Kind::Soft => Verdict::Done,
                    Kind::Breach | Kind::Host => Verdict::Close { reason },
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
            if self.members(group).map(|index| &self.rings[index]).any(faulty) {
                self.refresh(plane, group)?;
            }
        }
        self.make_owed_calls(plane)?;
        self.report_rings(plane);
        Ok(())
    }

    /// A pump ended by itself. The rings of one that panicked are stopped; those of one that could not be placed wait, and
    /// run when the front-end next touches them.
    pub fn pump_ended(&mut self, plane: &mut dyn Plane, group: u16, how: &Ended) {
        for index in self.members(group).collect::<Vec<_>>() {
            if !std::mem::take(&mut self.rings[index].placed) {
                continue;
            }
            match how {
                Ended::Panicked(_) => self.fault(plane, index, "pump_panicked"),
                Ended::DeviceLost(_) => self.fault(plane, index, "device_lost"),
                Ended::NotPlaced(_) => self.cannot_run(plane, index, NOT_PLACED),
            }
        }
        self.report_rings(plane);
    }

    /// When [`Backend::look`] is to be called; None while nothing waits for the time.
    pub fn look_at(&self) -> Option<Instant> {
        [self.look_at, self.write_at].into_iter().flatten().min()
    }

    /// Looks whether rings have got what they lacked, or lack it for too long, and writes what found no writer.
    ///
    /// # Errors
    /// As [`Backend::attend`].
    pub fn look(&mut self, plane: &mut dyn Plane, now: Instant) -> Result<(), PlaneError> {
        if self.write_at.is_some_and(|at| at <= now) {
            self.write_again(plane)?;
        }
        self.report_rings(plane);
        Ok(())
    }

    /// The core of a group changed: it is told with the rings.
    pub fn moved(&mut self, plane: &mut dyn Plane) {
        self.report_rings(plane);
    }

    /// The device works no more until the driver resets it (virtio 1.3 §2.1.2).
    pub fn device_needs_reset(&mut self, plane: &mut dyn Plane) {
        if !std::mem::replace(&mut self.needs_reset, true) {
            self.config_changed();
            plane.report(Report::Status(self.status_now()));
        }
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
            Call::InBand(fd) => Some((index as u16, fd.event())),
            _ => None,
        })
    }

    /// A pump asked for a call of this ring as a message.
    pub fn call_in_band(&mut self, index: u16) {
        if let Some(Call::InBand(fd)) = self.rings.get(usize::from(index)).map(|ring| &ring.call) {
            fd.event().clear();
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
            match plane.retire(group) {
                Ok(()) => self.take_reported(plane, group),
                Err(error) => outcome = Err(error),
            }
        }
        // The next guest is another one. To take back what waits is never refused.
        if let Some(net) = plane.device().class().net() {
            let _ = net.announce(None);
        }
        if outcome.is_ok() {
            outcome = plane.set_map(None).map_err(|error| PlaneError::Device(error.to_string()));
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
        if frame.lost_fds == Some(LostFds::NoneLeft) {
            return Err(Refusal::no_descriptor(name));
        }
        if frame.lost_fds.is_some() {
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
                let map = memory::replace(self.map.as_deref(), specs, plane.lease(), || plane.is_revoked());
                self.set_map(plane, map)
            }
            Request::AddMemReg => {
                let file = first(fds, request)?;
                let spec = memory::spec(MemRegion::decode_single(payload), file);
                let map = memory::add(self.map.as_deref(), spec, plane.lease());
                self.set_map(plane, map)
            }
            Request::RemMemReg => {
                let map = memory::remove(self.map.as_deref(), &MemRegion::decode_single(payload));
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
            Request::SendRarp => self.announce(plane, decode_u64(payload)),
            Request::NetSetMtu => self.set_mtu(plane, decode_u64(payload)),
            Request::SetBackendReqFd => {
                let channel = Channel::new(first(fds, request)?)
                    .map_err(|e| Refusal::system("backend_channel", format!("{name}: {e}"), &e))?;
                self.set_channel(plane, channel)
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
}

/// The one descriptor of a request.
fn first(fds: Vec<OwnedFd>, request: Request) -> Result<OwnedFd, Refusal> {
    let missing = || Refusal::breach("message_fds", format!("{} without its descriptor", request.name()));
    fds.into_iter().next().ok_or_else(missing)
}

/// Misbehaviour reported at once, and per second in the long run.
const BREACH_BURST: u32 = 32;
const BREACHES_PER_SECOND: u32 = 4;
