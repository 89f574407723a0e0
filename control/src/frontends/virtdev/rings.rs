//! What a front-end says of one ring.

use std::sync::Arc;

use ringway_pmd::notify::{CallFd, EventFd};
use ringway_ring::features::Features;
use ringway_ring::layout::Areas;

use super::VirtDev;
use super::plane::Plane;
use super::refusal::Refusal;
use super::ring::{Call, Kick, format_of};
use crate::frontends::life::{RingEvent, State};

/// What a ring is set up with, before it is started or while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Entries.
    Size(u32),
    /// Where its areas are, by the front-end's addresses.
    Areas(Areas<u64>),
    /// Where it starts, as front-ends write it.
    Base(u32),
}

/// Who is to hear a ring's calls.
#[derive(Debug)]
pub enum CallTo {
    /// Nobody: the driver polls.
    Nobody,
    /// Whoever waits at the descriptor.
    Peer(EventFd),
    /// The front-end, which is told; once there is a way to tell it.
    Frontend {
        /// There is.
        can_hear: bool,
    },
}

impl VirtDev {
    /// Sets a ring up.
    ///
    /// # Errors
    /// It cannot be of this size, or a worker did not give it back.
    pub fn set_ring(&mut self, plane: &mut dyn Plane, index: usize, what: Setting) -> Result<(), Refusal> {
        match what {
            Setting::Size(size) => {
                if size == 0 || size > self.max_vq_size.into() {
                    let detail = format!("ring {index}: {size} is not 1 to {}", self.max_vq_size);
                    return Err(Refusal::breach("ring_size", detail));
                }
                self.rings[index].state.size = Some(size);
            }
            Setting::Areas(areas) => self.rings[index].state.areas = Some(areas),
            Setting::Base(base) => {
                let group = self.groups[index];
                if self.rings[index].state.begun {
                    plane.retire(group)?;
                    self.take_reported(plane, group);
                    self.rings[index].stop();
                }
                self.rings[index].state.base = base;
            }
        }
        self.refresh_ring(plane, index)
    }

    /// Starts a ring, kicked by a descriptor or polled.
    ///
    /// # Errors
    /// A worker did not give it back.
    pub fn start_ring(
        &mut self,
        plane: &mut dyn Plane,
        index: usize,
        kick: Option<EventFd>,
    ) -> Result<(), Refusal> {
        let ring = &mut self.rings[index];
        ring.state.life = ring.state.life.after(RingEvent::Start)?;
        ring.state.fault = None;
        ring.fds.kick = kick.map_or(Kick::Polled, |fd| Kick::Fd(Arc::new(fd)));
        self.adjust_ring(plane, index)
    }

    /// Stops a ring; where it stands, as front-ends write it: nobody touches it any more.
    ///
    /// # Errors
    /// A worker did not give it back.
    pub fn stop_ring(&mut self, plane: &mut dyn Plane, index: usize) -> Result<u32, Refusal> {
        plane.retire(self.groups[index])?;
        self.take_reported(plane, self.groups[index]);
        let format = format_of(self.agreed());
        let ring = &mut self.rings[index];
        ring.state.life = ring.state.life.after(RingEvent::Stop)?;
        ring.state.base = ring.base_now(format);
        ring.fds.kick = Kick::Polled;
        ring.state.fault = None;
        // A position kept by a session before this one stays, for the start that has yet to come.
        if ring.state.begun {
            ring.stop();
        }
        let base = ring.state.base;
        self.refresh_ring(plane, index)?;
        Ok(base)
    }

    /// Says who is to hear a ring's calls.
    ///
    /// # Errors
    /// No eventfd can be had, or a worker did not give the ring back.
    pub fn set_call(&mut self, plane: &mut dyn Plane, index: usize, to: CallTo) -> Result<(), Refusal> {
        self.rings[index].fds.call = match to {
            CallTo::Nobody => Call::Never,
            CallTo::Peer(fd) => Call::Fd(Arc::new(CallFd::of_peer(fd, &self.gate))),
            CallTo::Frontend { can_hear: false } => Call::Unheard,
            CallTo::Frontend { can_hear: true } => Call::Told(Arc::new(CallFd::own(own_eventfd()?))),
        };
        // Who waits at the new descriptor did not hear what the old one was told.
        self.rings[index].state.owes_call = true;
        self.adjust_ring(plane, index)
    }

    /// There is a way to tell the front-end now: rings that are called by word can be.
    ///
    /// # Errors
    /// As [`VirtDev::set_call`].
    pub fn calls_are_heard(&mut self, plane: &mut dyn Plane) -> Result<(), Refusal> {
        for index in 0..self.rings.len() {
            if matches!(self.rings[index].fds.call, Call::Unheard) {
                self.set_call(plane, index, CallTo::Frontend { can_hear: true })?;
            }
        }
        Ok(())
    }

    /// The descriptor by which the front-end is told of a ring's error.
    pub fn set_error(&mut self, index: usize, fd: Option<EventFd>) {
        self.rings[index].fds.err = fd.filter(|_| !self.hears_no_errors);
    }

    /// Enables or disables a ring.
    ///
    /// # Errors
    /// A worker did not give it back.
    pub fn enable(&mut self, plane: &mut dyn Plane, index: usize, on: bool) -> Result<(), Refusal> {
        let ring = &mut self.rings[index];
        let before = (ring.state.life, ring.state.enable_told);
        ring.state.life = ring.state.life.after(if on { RingEvent::Enable } else { RingEvent::Disable })?;
        ring.state.enable_told = true;
        if (ring.state.life, true) == before { Ok(()) } else { self.adjust_ring(plane, index) }
    }

    /// The front-end passes a kick on. The first one proves that it does, so that the ring need not be polled any more.
    ///
    /// # Errors
    /// No eventfd can be had, or a worker did not give the ring back.
    pub fn kick(&mut self, plane: &mut dyn Plane, index: usize) -> Result<(), Refusal> {
        match &self.rings[index].fds.kick {
            Kick::Fd(_) => Ok(()),
            Kick::Told(fd) => {
                fd.signal();
                Ok(())
            }
            Kick::Polled if self.rings[index].state.life.is_started() => {
                self.rings[index].fds.kick = Kick::Told(Arc::new(own_eventfd()?));
                self.adjust_ring(plane, index)
            }
            Kick::Polled => Ok(()),
        }
    }

    /// The eventfds by which pumps ask that the front-end be told of a call, with their rings.
    pub fn own_calls(&self) -> impl Iterator<Item = (u16, &EventFd)> {
        self.rings.iter().enumerate().filter_map(|(index, ring)| match &ring.fds.call {
            Call::Told(fd) => Some((index as u16, fd.event())),
            _ => None,
        })
    }

    /// A pump asked that the front-end be told of a call of this ring: true if it is to be told.
    pub fn take_call(&mut self, index: u16) -> bool {
        match self.rings.get(usize::from(index)).map(|ring| &ring.fds.call) {
            Some(Call::Told(fd)) => {
                fd.event().clear();
                true
            }
            _ => false,
        }
    }

    /// A ring's number as the front-end claims it: all 32 bits of it.
    ///
    /// # Errors
    /// There is no such ring.
    pub fn index(&self, claimed: u32) -> Result<usize, Refusal> {
        let index = claimed as usize;
        if index < self.rings.len() {
            Ok(index)
        } else {
            Err(Refusal::breach("ring_index", format!("ring {claimed} of {}", self.rings.len())))
        }
    }

    /// The features that are agreed on; none before.
    pub(super) fn agreed(&self) -> Features {
        self.state.features.unwrap_or(Features::NONE)
    }
}

fn own_eventfd() -> Result<EventFd, Refusal> {
    EventFd::new().map_err(|e| Refusal::system("eventfd", format!("cannot make an eventfd: {e}"), &e))
}
