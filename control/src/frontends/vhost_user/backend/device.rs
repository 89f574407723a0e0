//! Requests that concern the device as a whole: features, memory, configuration, status, reset.

use ringway_pmd::counters::DropReason;
use ringway_pmd::net::Mac;
use ringway_pmd::vdpa::{Class, ConfigError};
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;

use super::super::life::{Connection, ConnectionEvent, RingEvent, State, StatusEvent, status};
use super::memory::MemoryError;
use super::plane::Plane;
use super::refusal::{Kind, Refusal};
use super::{Answer, Backend, memory};
use crate::frontends::session::Report;
use ringway_vhost_user::message::{ConfigRange, MAX_CONFIG_BYTES, Request, protocol};

impl Backend {
    pub(super) fn protocol_offered(&self) -> u64 {
        match self.class {
            Class::Net => protocol::OFFERED,
            Class::Block => protocol::OFFERED & !(protocol::RARP | protocol::MTU),
        }
    }

    /// Pairs for net, as every front-end takes it; queues for others.
    pub(super) fn queue_num(&self) -> u64 {
        match self.class {
            Class::Net => self.rings.len() as u64 / 2,
            Class::Block => self.rings.len() as u64,
        }
    }

    pub(super) fn set_protocol_features(&mut self, bits: u64) -> Result<Answer, Refusal> {
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

    pub(super) fn set_features(
        &mut self,
        plane: &mut dyn Plane,
        features: Features,
    ) -> Result<Answer, Refusal> {
        let unknown = features.without(self.offered);
        if unknown != Features::NONE {
            return Err(Refusal::breach("features", format!("{unknown:?} were not offered")));
        }
        // Front-ends repeat the same set once a queue pair, with earlier pairs running.
        if self.connection_has_features() && features == self.features {
            // After a reset they are news to the device, and to operators.
            if !self.told {
                self.tell_features(plane)?;
            }
            return Ok(Answer::Ack);
        }
        if self.connection_has_features() && self.rings.iter().any(|ring| ring.life.is_started()) {
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

    /// Tells the device and control the features that are agreed on, for the first time since a reset.
    pub(super) fn tell_features(&mut self, plane: &mut dyn Plane) -> Result<(), Refusal> {
        let features = self.features.without(Features::PROTOCOL_FEATURES);
        plane
            .device()
            .negotiated(features)
            .map_err(|e| Refusal::breach("features", format!("the driver refused them: {e}")))?;
        self.told = true;
        plane.report(Report::Negotiated { features, protocol: self.protocol });
        Ok(())
    }

    pub(super) fn connection_has_features(&self) -> bool {
        matches!(self.connection, Connection::Unowned | Connection::Ready)
    }

    /// Puts a new map in force: rings are taken from their pumps, and served anew where they lie in the new map.
    pub(super) fn set_map(
        &mut self,
        plane: &mut dyn Plane,
        map: Result<GuestMap, MemoryError>,
    ) -> Result<Answer, Refusal> {
        let outcome = map.map_err(Refusal::from).and_then(|map| self.put_in_force(plane, map));
        plane.lease().settle(memory::held(self.map.as_deref()));
        outcome
    }

    fn put_in_force(&mut self, plane: &mut dyn Plane, map: GuestMap) -> Result<Answer, Refusal> {
        if memory::same(self.map.as_deref(), &map) {
            return Ok(Answer::Ack);
        }
        let (regions, bytes) = (map.regions().len(), map.regions().iter().map(|region| region.size()).sum());
        // All pumps let go before any sees the new map: to the rings, the set is replaced at once.
        for group in self.all_groups() {
            plane.retire(group)?;
        }
        let map = memory::in_force(map, plane.lease());
        if let Err(error) = plane.set_map(Some(&map)) {
            // The one before is in force still.
            for group in self.all_groups() {
                self.refresh(plane, group)?;
            }
            return Err(MemoryError::from(error).into());
        }
        self.map = Some(map);
        plane.report(Report::Memory { regions, bytes });
        for group in self.all_groups() {
            self.refresh(plane, group)?;
        }
        Ok(Answer::Ack)
    }

    pub(super) fn set_mtu(&self, plane: &mut dyn Plane, mtu: u64) -> Result<Answer, Refusal> {
        let mtu = u16::try_from(mtu).map_err(|_| Refusal::soft("mtu", format!("{mtu} is no MTU")))?;
        let net = plane.device().class().net();
        let net = net.ok_or_else(|| Refusal::soft("mtu", "it is no network device"))?;
        net.set_mtu(mtu).map_err(|e| Refusal::soft("mtu", e.to_string()))?;
        plane.report(Report::Mtu(mtu));
        Ok(Answer::Ack)
    }

    /// SEND_RARP, which QEMU sends for a guest that arrived and does not announce itself: also before it has told the
    /// features.
    pub(super) fn announce(&self, plane: &mut dyn Plane, address: u64) -> Result<Answer, Refusal> {
        // The address's first byte comes first, in whatever order of bytes.
        let [a, b, c, d, e, f, ..] = address.to_ne_bytes();
        let mac = Mac([a, b, c, d, e, f]);
        if mac.is_multicast() || mac == Mac([0; 6]) {
            return Err(Refusal::soft("announced_address", format!("SEND_RARP of {mac}, which no NIC has")));
        }
        let name = DropReason::SpoofedMac.name();
        let net = plane.device().class().net();
        let net = net.ok_or_else(|| Refusal::soft(name, "it is no network device"))?;
        net.announce(Some(mac)).map_err(|e| Refusal::soft(name, e.to_string()))?;
        Ok(Answer::Ack)
    }

    pub(super) fn get_config(&self, plane: &mut dyn Plane, payload: &[u8]) -> Result<Answer, Refusal> {
        let (range, _) = ConfigRange::decode(Request::GetConfig, payload)?;
        let space = config_space(plane);
        let bytes = slice_of(&space, &range).ok_or_else(|| {
            Refusal::soft("config_range", format!("{} bytes at {}", range.size, range.offset))
        })?;
        Ok(Answer::Bytes(range.encode(bytes)))
    }

    /// What a driver may write is the device's to say; a migration may repeat what is there.
    pub(super) fn set_config(&self, plane: &mut dyn Plane, payload: &[u8]) -> Result<Answer, Refusal> {
        let (range, bytes) = ConfigRange::decode(Request::SetConfig, payload)?;
        let detail = || format!("{} bytes at {}", range.size, range.offset);
        if slice_of(&[0; MAX_CONFIG_BYTES], &range).is_none() {
            return Err(Refusal::soft("config_range", detail()));
        }
        if range.flags > 1 {
            return Err(Refusal::soft("config_read_only", detail()));
        }
        match plane.device().config().write(range.offset as usize, bytes) {
            Ok(()) => Ok(Answer::Ack),
            Err(ConfigError::ReadOnly) => Err(Refusal::soft("config_read_only", detail())),
            Err(ConfigError::Value) => Err(Refusal::soft("config_value", detail())),
        }
    }

    pub(super) fn set_status(&mut self, plane: &mut dyn Plane, value: u64) -> Result<Answer, Refusal> {
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

    pub(super) fn status_now(&self) -> u8 {
        self.status_bits | if self.needs_reset { status::NEEDS_RESET } else { 0 }
    }

    /// The device's reset: rings stop and are disabled, status and positions are forgotten; the guest's memory, the
    /// features and the connection stay.
    pub(super) fn reset(&mut self, plane: &mut dyn Plane) -> Result<(), Refusal> {
        let next = self.status.after(StatusEvent::Reset)?;
        for group in self.all_groups() {
            plane.retire(group)?;
            self.take_reported(plane, group);
        }
        for ring in &mut self.rings {
            ring.life = ring.life.after(RingEvent::Reset)?;
            ring.placed = false;
            ring.reset();
        }
        self.status = next;
        (self.status_bits, self.status_used, self.needs_reset) = (0, false, false);
        plane.reset()?;
        self.told = false;
        plane.report(Report::Status(0));
        if self.connection_has_features() && !self.features.contains(Features::PROTOCOL_FEATURES) {
            self.for_every_ring(plane, RingEvent::Enable)?;
        }
        Ok(())
    }
}

/// Configuration space: the device's own bytes, zeros behind them.
fn config_space(plane: &mut dyn Plane) -> [u8; MAX_CONFIG_BYTES] {
    let mut space = [0; MAX_CONFIG_BYTES];
    plane.device().config().read(0, &mut space);
    space
}

/// The part of configuration space that a message means; None if it is empty or not inside.
fn slice_of<'space>(space: &'space [u8], range: &ConfigRange) -> Option<&'space [u8]> {
    let (offset, size) = (range.offset as usize, range.size as usize);
    if size == 0 { None } else { space.get(offset..offset.checked_add(size)?) }
}
