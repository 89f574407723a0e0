//! Requests that concern one ring.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringway_pmd::notify::{CallFd, EventFd};

use super::super::life::{RingEvent, State};
use super::channel::Channel;
use super::plane::Plane;
use super::refusal::Refusal;
use super::ring::{Call, Kick, format_of};
use super::{Answer, Backend};
use ringway_vhost_user::message::{Request, VRING_NO_FD, VringAddrs, VringState, protocol};

impl Backend {
    pub(super) fn set_vring_num(
        &mut self,
        plane: &mut dyn Plane,
        state: VringState,
    ) -> Result<Answer, Refusal> {
        let index = self.index(state.index)?;
        if state.num == 0 || state.num > self.max_vq_size.into() {
            let detail = format!("ring {index}: {} is not 1 to {}", state.num, self.max_vq_size);
            return Err(Refusal::breach("ring_size", detail));
        }
        self.rings[index].size = Some(state.num);
        self.refresh_ring(plane, index)
    }

    pub(super) fn set_vring_addr(
        &mut self,
        plane: &mut dyn Plane,
        addrs: VringAddrs,
    ) -> Result<Answer, Refusal> {
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

    pub(super) fn set_vring_base(
        &mut self,
        plane: &mut dyn Plane,
        state: VringState,
    ) -> Result<Answer, Refusal> {
        let index = self.index(state.index)?;
        let group = self.groups[index];
        if self.rings[index].begun {
            plane.retire(group)?;
            self.take_reported(plane, group);
            self.rings[index].stop();
        }
        self.rings[index].base = state.num;
        self.refresh_ring(plane, index)
    }

    pub(super) fn get_vring_base(
        &mut self,
        plane: &mut dyn Plane,
        state: VringState,
    ) -> Result<Answer, Refusal> {
        let index = self.index(state.index)?;
        plane.retire(self.groups[index])?;
        self.take_reported(plane, self.groups[index]);
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

    pub(super) fn set_vring_kick(
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

    pub(super) fn set_vring_call(
        &mut self,
        plane: &mut dyn Plane,
        payload: u64,
        fds: Vec<OwnedFd>,
    ) -> Result<Answer, Refusal> {
        let (index, fd) = self.ring_fd(Request::SetVringCall, payload, fds)?;
        let in_band = self.protocol & protocol::INBAND_NOTIFICATIONS != 0;
        self.rings[index].call = match fd {
            Some(fd) => Call::Fd(Arc::new(CallFd::of_peer(fd, &self.gate))),
            None if in_band && self.channel.is_none() => Call::Unheard,
            None if in_band => Call::InBand(Arc::new(CallFd::own(own_eventfd()?))),
            None => Call::Never,
        };
        // Who waits at the new descriptor did not hear what the old one was told.
        self.rings[index].owes_call = true;
        self.refresh_ring(plane, index)
    }

    /// There is a channel now: rings that are called by message can be.
    pub(super) fn set_channel(&mut self, plane: &mut dyn Plane, channel: Channel) -> Result<Answer, Refusal> {
        self.channel = Some(channel);
        for index in 0..self.rings.len() {
            if matches!(self.rings[index].call, Call::Unheard) {
                self.rings[index].call = Call::InBand(Arc::new(CallFd::own(own_eventfd()?)));
                self.rings[index].owes_call = true;
                self.refresh_ring(plane, index)?;
            }
        }
        Ok(Answer::Ack)
    }

    pub(super) fn set_vring_err(&mut self, payload: u64, fds: Vec<OwnedFd>) -> Result<Answer, Refusal> {
        let (index, fd) = self.ring_fd(Request::SetVringErr, payload, fds)?;
        self.rings[index].err = fd.filter(|_| !self.hears_no_errors);
        Ok(Answer::Ack)
    }

    pub(super) fn set_vring_enable(
        &mut self,
        plane: &mut dyn Plane,
        state: VringState,
    ) -> Result<Answer, Refusal> {
        let index = self.index(state.index)?;
        let event = match state.num {
            0 => RingEvent::Disable,
            1 => RingEvent::Enable,
            other => {
                return Err(Refusal::breach("ring_enable", format!("ring {index}: {other} is not 0 or 1")));
            }
        };
        let ring = &mut self.rings[index];
        let before = (ring.life, ring.enable_told);
        ring.life = ring.life.after(event)?;
        ring.enable_told = true;
        if (ring.life, true) == before { Ok(Answer::Ack) } else { self.refresh_ring(plane, index) }
    }

    /// A kick as a message. The first one proves that this front-end sends them, so that the ring need not be polled
    /// any more.
    pub(super) fn vring_kick(&mut self, plane: &mut dyn Plane, state: VringState) -> Result<Answer, Refusal> {
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

    /// A ring's number as the front-end claims it: all 32 bits of it.
    pub(super) fn index(&self, claimed: u32) -> Result<usize, Refusal> {
        let index = claimed as usize;
        if index < self.rings.len() {
            Ok(index)
        } else {
            Err(Refusal::breach("ring_index", format!("ring {claimed} of {}", self.rings.len())))
        }
    }

    /// The ring and the descriptor of SET_VRING_KICK, _CALL and _ERR.
    pub(super) fn ring_fd(
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
                // Made non-blocking, which is what VMMs make them to begin with, so that signalling it waits for nobody.
                let fd = EventFd::from_peer(fd)
                    .map_err(|e| Refusal::system("not_an_eventfd", format!("{name}: {e}"), &e))?;
                Ok((index, Some(fd)))
            }
            Some(_) => Err(Refusal::breach("message_fds", format!("{name} with a descriptor and without"))),
            None => Err(Refusal::breach("message_fds", format!("{name} without its descriptor"))),
        }
    }
}

fn own_eventfd() -> Result<EventFd, Refusal> {
    EventFd::new().map_err(|e| Refusal::system("eventfd", format!("cannot make an eventfd: {e}"), &e))
}
