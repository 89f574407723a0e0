//! vhost-user as a back-end speaks it: what each request means for the device under it, and what is answered.
//!
//! It neither reads a socket nor waits for one. Messages come in whole ([`Backend::handle`]), verdicts go out. Everything a
//! front-end says is a claim: compared with [`ringway_vhost_user::message::RULES`] first, then decoded for
//! [`VirtDev`], which checks it where it is used.
//!
//! - A ring *starts* with SET_VRING_KICK and stops with GET_VRING_BASE.
//! - What is refused is answered by a non-zero acknowledgement if one was asked for. Otherwise the connection is
//!   closed, since the front-end would go on in the belief that it was heard; so it is where the request has an
//!   answer of its own, which a refusal could be taken for.
//!
//! Thread and owner: the session.

mod channel;
mod requests;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use ringway_pmd::notify::EventFd;
use ringway_pmd::vdpa::Ended;
use ringway_ring::features::Features;
use ringway_ring::guest::RegionSpec;
use ringway_ring::layout::Areas;
use ringway_vhost_user::connection::{Frame, LostFds};
use ringway_vhost_user::message::{
    FLAG_REPLY, FLAG_VERSION, Header, Malformed, MemRegion, Request, Rule, VRING_NO_FD, VringAddrs,
    VringState, decode_mem_table, decode_u64, protocol,
};

use self::channel::Channel;
use super::life::{Connection, ConnectionEvent, State, StatusEvent};
use super::virtdev::{CallTo, Kind, MAX_REGIONS, Notices, Plane, PlaneError, Refusal, Setting, VirtDev};

/// What became of a message.
#[derive(Debug)]
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
    /// To be answered, with a descriptor.
    ReplyWith {
        /// Header; the size is the payload's.
        header: Header,
        /// Payload.
        payload: Vec<u8>,
        /// The descriptor.
        fd: OwnedFd,
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
    /// Bytes and a descriptor.
    File(Vec<u8>, OwnedFd),
}

/// One front-end's negotiation with one device.
#[derive(Debug)]
pub struct Backend {
    connection: Connection,
    /// Protocol features that are agreed on.
    protocol: u64,
    /// Features as agreed on, vhost-user's own bit included.
    features: Option<Features>,
    channel: Option<Channel>,
    dev: VirtDev,
}

impl Backend {
    /// A new connection.
    pub fn new(plane: &mut dyn Plane, now: Instant) -> Backend {
        Backend {
            connection: Connection::Connected,
            protocol: 0,
            features: None,
            channel: None,
            dev: VirtDev::new(plane, now),
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
            Ok(Answer::File(payload, fd)) => Verdict::ReplyWith { header: answered(FLAG_REPLY), payload, fd },
            Err(Refusal { what, detail, kind }) => {
                let reason = format!("{what}: {detail}");
                match kind {
                    Kind::Host | Kind::HostFatal => self.dev.host_failed(plane, what, detail, now),
                    Kind::Breach | Kind::Soft | Kind::Fatal => self.dev.misbehaved(plane, what, detail, now),
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
        self.dev.report_rings(plane);
        self.pass_on();
        verdict
    }

    /// What the last messages cost beyond their reading, in tokens of the session's bucket; reading it resets it.
    pub fn take_cost(&mut self) -> u32 {
        self.dev.take_cost()
    }

    /// Looks after the rings: the attention descriptor was signalled.
    ///
    /// # Errors
    /// A worker did not give a ring back.
    pub fn attend(&mut self, plane: &mut dyn Plane) -> Result<(), PlaneError> {
        let outcome = self.dev.attend(plane);
        self.pass_on();
        outcome
    }

    /// A pump ended by itself: see [`VirtDev::pump_ended`].
    pub fn pump_ended(&mut self, plane: &mut dyn Plane, group: u16, how: &Ended) {
        self.dev.pump_ended(plane, group, how);
        self.pass_on();
    }

    /// When [`Backend::look`] is to be called: see [`VirtDev::look_at`].
    pub fn look_at(&self) -> Option<Instant> {
        self.dev.look_at()
    }

    /// Does what waited for its time: see [`VirtDev::look`].
    ///
    /// # Errors
    /// A worker did not give a ring back.
    pub fn look(&mut self, plane: &mut dyn Plane, now: Instant) -> Result<(), PlaneError> {
        let outcome = self.dev.look(plane, now);
        self.pass_on();
        outcome
    }

    /// The core of a group changed: it is told with the rings.
    pub fn moved(&mut self, plane: &mut dyn Plane) {
        self.dev.report_rings(plane);
    }

    /// The device works no more until the driver resets it: see [`VirtDev::device_needs_reset`].
    pub fn device_needs_reset(&mut self, plane: &mut dyn Plane) {
        self.dev.device_needs_reset(plane);
        self.pass_on();
    }

    /// Reports a breach: see [`VirtDev::misbehaved`].
    pub fn misbehaved(&mut self, plane: &mut dyn Plane, what: &'static str, detail: String, now: Instant) {
        self.dev.misbehaved(plane, what, detail, now);
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
        self.dev.own_calls()
    }

    /// A pump asked for a call of this ring as a message.
    pub fn call_in_band(&mut self, index: u16) {
        if self.dev.take_call(index)
            && let Some(channel) = &mut self.channel
        {
            channel.call(index);
        }
    }

    /// The connection is over: see [`VirtDev::close`].
    ///
    /// # Errors
    /// A worker did not give a ring back.
    pub fn close(&mut self, plane: &mut dyn Plane) -> Result<(), PlaneError> {
        self.connection = self.connection.after(ConnectionEvent::Close).unwrap_or(Connection::Closed);
        self.channel = None;
        self.dev.close(plane)
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
            Request::GetFeatures => Ok(Answer::Number((self.dev.offered() | Features::PROTOCOL_FEATURES).0)),
            Request::SetFeatures => self.set_features(plane, Features(decode_u64(payload))),
            Request::SetOwner => {
                self.connection = self.connection.after(ConnectionEvent::SetOwner)?;
                Ok(Answer::Ack)
            }
            Request::ResetOwner => {
                self.connection = self.connection.after(ConnectionEvent::ResetOwner)?;
                // Without PROTOCOL_FEATURES nothing could enable them again.
                if self.has_protocol_features() {
                    self.dev.enable_all(plane, false)?;
                }
                Ok(Answer::Ack)
            }
            Request::GetProtocolFeatures => Ok(Answer::Number(self.protocol_offered())),
            Request::SetProtocolFeatures => self.set_protocol_features(decode_u64(payload)),
            Request::GetQueueNum => Ok(Answer::Number(self.queue_num())),
            Request::GetMaxMemSlots => Ok(Answer::Number(MAX_REGIONS)),
            Request::SetMemTable => {
                let regions = decode_mem_table(payload, fds.len())?;
                let specs = regions.into_iter().zip(fds).map(|(region, file)| spec(region, file)).collect();
                done(self.dev.set_map(plane, specs))
            }
            Request::AddMemReg => {
                let file = first(fds, request)?;
                done(self.dev.add_region(plane, spec(MemRegion::decode_single(payload), file)))
            }
            Request::RemMemReg => {
                let MemRegion { gpa, size, user_addr, .. } = MemRegion::decode_single(payload);
                done(self.dev.remove_region(plane, gpa, user_addr, size))
            }
            Request::SetVringNum => {
                let VringState { index, num } = VringState::decode(payload);
                let index = self.dev.index(index)?;
                done(self.dev.set_ring(plane, index, Setting::Size(num)))
            }
            Request::SetVringAddr => {
                let VringAddrs { index, flags, desc, driver, device, .. } = VringAddrs::decode(payload);
                let index = self.dev.index(index)?;
                if flags != 0 {
                    let detail = format!("ring {index}: flags {flags:#x} not offered");
                    return Err(Refusal::breach("ring_log", detail));
                }
                done(self.dev.set_ring(plane, index, Setting::Areas(Areas { desc, driver, device })))
            }
            Request::SetVringBase => {
                let VringState { index, num } = VringState::decode(payload);
                let index = self.dev.index(index)?;
                done(self.dev.set_ring(plane, index, Setting::Base(num)))
            }
            Request::GetVringBase => {
                let index = VringState::decode(payload).index;
                let num = self.dev.stop_ring(plane, self.dev.index(index)?)?;
                Ok(Answer::Bytes(VringState { index, num }.encode().to_vec()))
            }
            Request::SetVringKick => {
                // Polled without a descriptor, also where kicks may come as messages: not every front-end that agrees to
                // them sends them.
                let (index, fd) = self.ring_fd(request, decode_u64(payload), fds)?;
                done(self.dev.start_ring(plane, index, fd))
            }
            Request::SetVringCall => {
                let (index, fd) = self.ring_fd(request, decode_u64(payload), fds)?;
                let in_band = self.protocol & protocol::INBAND_NOTIFICATIONS != 0;
                let to = match fd {
                    Some(fd) => CallTo::Peer(fd),
                    None if in_band => CallTo::Frontend { can_hear: self.channel.is_some() },
                    None => CallTo::Nobody,
                };
                done(self.dev.set_call(plane, index, to))
            }
            Request::SetVringErr => {
                let (index, fd) = self.ring_fd(request, decode_u64(payload), fds)?;
                self.dev.set_error(index, fd);
                Ok(Answer::Ack)
            }
            Request::SetVringEnable => {
                let VringState { index, num } = VringState::decode(payload);
                let index = self.dev.index(index)?;
                if num > 1 {
                    return Err(Refusal::breach("ring_enable", format!("ring {index}: {num} is not 0 or 1")));
                }
                done(self.dev.enable(plane, index, num == 1))
            }
            Request::VringKick => {
                let index = self.dev.index(VringState::decode(payload).index)?;
                done(self.dev.kick(plane, index))
            }
            Request::SendRarp => self.announce(plane, decode_u64(payload)),
            Request::NetSetMtu => self.set_mtu(plane, decode_u64(payload)),
            Request::SetBackendReqFd => {
                let channel = Channel::new(first(fds, request)?)
                    .map_err(|e| Refusal::system("backend_channel", format!("{name}: {e}"), &e))?;
                self.channel = Some(channel);
                done(self.dev.calls_are_heard(plane))
            }
            Request::GetInflightFd => self.get_inflight(payload),
            Request::SetInflightFd => self.set_inflight(plane, payload, fds),
            Request::GetConfig => self.get_config(plane, payload),
            Request::SetConfig => self.set_config(plane, payload),
            Request::ResetDevice => {
                self.dev.reset(plane)?;
                done(self.enable_after_reset(plane))
            }
            Request::SetStatus => {
                let value = decode_u64(payload);
                let value = u8::try_from(value)
                    .map_err(|_| Refusal::breach("status", format!("{value:#x} is no virtio status")))?;
                self.dev.set_status(plane, value)?;
                match StatusEvent::of(value) {
                    StatusEvent::Reset => done(self.enable_after_reset(plane)),
                    _ => Ok(Answer::Ack),
                }
            }
            Request::GetStatus => Ok(Answer::Number(self.dev.status_now().into())),
            _ => Err(Refusal::breach("request_unsupported", name)),
        }
    }

    /// virtio features, and vhost-user's own bit among them.
    fn set_features(&mut self, plane: &mut dyn Plane, features: Features) -> Result<Answer, Refusal> {
        // Front-ends repeat the same set once a queue pair, with earlier pairs running.
        if self.features == Some(features) {
            return done(self.dev.repeat_features(plane));
        }
        let next = self.connection.after(ConnectionEvent::SetFeatures)?;
        self.dev.set_features(plane, features.without(Features::PROTOCOL_FEATURES))?;
        let was_without = self.features.is_some() && !self.has_protocol_features();
        (self.connection, self.features) = (next, Some(features));
        // Without PROTOCOL_FEATURES there is no SET_VRING_ENABLE: rings are enabled from the start.
        if !self.has_protocol_features() {
            self.dev.enable_all(plane, true)?;
        } else if was_without {
            self.dev.enable_all(plane, false)?;
        }
        Ok(Answer::Ack)
    }

    /// As after SET_FEATURES: where nothing can enable rings, they are.
    fn enable_after_reset(&mut self, plane: &mut dyn Plane) -> Result<(), Refusal> {
        if self.features.is_some() && !self.has_protocol_features() {
            self.dev.enable_all(plane, true)?;
        }
        Ok(())
    }

    fn has_protocol_features(&self) -> bool {
        self.features.is_some_and(|features| features.contains(Features::PROTOCOL_FEATURES))
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
        let index = self.dev.index(index)?;
        match fds.pop() {
            None if none => Ok((index, None)),
            Some(fd) if !none => {
                // Made non-blocking, which is what VMMs make them to begin with, so that signalling it waits for nobody.
                let fd = EventFd::from_peer(fd)
                    .map_err(|e| Refusal::system("not_an_eventfd", format!("{name}: {e}"), &e))?;
                Ok((index, Some(fd)))
            }
            Some(_) => Err(Refusal::breach("message_fds", format!("{name} with a descriptor and without"))),
            None => Err(Refusal::breach("message_fds", format!("{name} without its descriptor"))),
        }
    }

    /// Puts into the channel what the device has to tell.
    fn pass_on(&mut self) {
        let Notices { config_changed, ring_errors } = self.dev.take_notices();
        if config_changed {
            self.config_changed();
        }
        if self.protocol & protocol::INBAND_NOTIFICATIONS != 0
            && let Some(channel) = &mut self.channel
        {
            channel.ring_errors(ring_errors);
        }
    }
}

/// The answer to a request that has none of its own.
fn done(outcome: Result<(), Refusal>) -> Result<Answer, Refusal> {
    outcome.map(|()| Answer::Ack)
}

/// The claims of a region with its file.
fn spec(region: MemRegion, file: OwnedFd) -> RegionSpec {
    let MemRegion { gpa, size, user_addr, mmap_offset } = region;
    RegionSpec { gpa, size, user_addr, file_offset: mmap_offset, file }
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Refusal {
        Refusal::breach(malformed.name(), malformed.to_string())
    }
}

/// The one descriptor of a request.
fn first(fds: Vec<OwnedFd>, request: Request) -> Result<OwnedFd, Refusal> {
    let missing = || Refusal::breach("message_fds", format!("{} without its descriptor", request.name()));
    fds.into_iter().next().ok_or_else(missing)
}
