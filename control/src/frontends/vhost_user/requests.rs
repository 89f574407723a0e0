//! Requests that are vhost-user's own: protocol features, configuration space, MTU, a guest that arrived.

use std::os::fd::{AsFd as _, OwnedFd};

use ringway_pmd::counters::DropReason;
use ringway_pmd::net::Mac;
use ringway_pmd::vdpa::{Class, ConfigError};
use ringway_vhost_user::message::{ConfigRange, Inflight, MAX_CONFIG_BYTES, Request, protocol};

use super::{Answer, Backend};
use crate::frontends::report::Report;
use crate::frontends::virtdev::{Kind, Plane, RecordsClaim, Refusal};

impl Backend {
    pub(super) fn protocol_offered(&self) -> u64 {
        match self.dev.class() {
            Class::Net => protocol::OFFERED,
            Class::Block => protocol::OFFERED & !(protocol::RARP | protocol::MTU) | protocol::INFLIGHT_SHMFD,
        }
    }

    /// Pairs for net, as every front-end takes it; queues for others.
    pub(super) fn queue_num(&self) -> u64 {
        match self.dev.class() {
            Class::Net => self.dev.queues() as u64 / 2,
            Class::Block => self.dev.queues() as u64,
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
        self.dev.set_protocol(bits);
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

    /// A region for records of what is in flight. The front-end keeps it, and gives it at every start.
    pub(super) fn get_inflight(&self, payload: &[u8]) -> Result<Answer, Refusal> {
        let Inflight { queues, entries, .. } = Inflight::decode(payload);
        let (file, mmap_size) = self.dev.make_records(queues, entries)?;
        let region = Inflight { mmap_size, mmap_offset: 0, queues, entries };
        Ok(Answer::File(region.encode().to_vec(), file.into()))
    }

    pub(super) fn set_inflight(
        &mut self,
        plane: &mut dyn Plane,
        payload: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<Answer, Refusal> {
        let Inflight { mmap_size, mmap_offset, queues, entries } = Inflight::decode(payload);
        let claim = RecordsClaim { offset: mmap_offset, bytes: mmap_size, queues, entries };
        match fds.into_iter().next() {
            Some(file) => self.dev.set_records(plane, claim, file.as_fd())?,
            None if mmap_size == 0 => self.dev.forget_records(plane)?,
            None => return Err(Refusal::breach("message_fds", "SET_INFLIGHT_FD without its descriptor")),
        }
        Ok(Answer::Ack)
    }

    pub(super) fn get_config(&self, plane: &mut dyn Plane, payload: &[u8]) -> Result<Answer, Refusal> {
        let (range, _) = ConfigRange::decode(Request::GetConfig, payload)?;
        let space = config_space(plane);
        // Some front-ends ask by the place that configuration has behind the registers of a transport.
        let offset = match (self.dev.class(), range.offset) {
            (Class::Block, CONFIG_BEHIND_REGISTERS) => 0,
            (_, offset) => offset,
        };
        let bytes = slice_of(&space, &ConfigRange { offset, ..range }).ok_or_else(|| {
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
}

/// The offset of configuration space in virtio's registers on memory (virtio 1.3, MMIO transport).
const CONFIG_BEHIND_REGISTERS: u32 = 0x100;

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
