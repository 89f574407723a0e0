//! What a front-end says of the device as a whole: features, memory, status, reset.

use ringway_ring::features::Features;
use ringway_ring::guest::{GuestMap, RegionSpec};

use super::memory::MemoryError;
use super::plane::Plane;
use super::refusal::Refusal;
use super::{VirtDev, memory};
use crate::frontends::life::{RingEvent, State, StatusEvent, status};
use crate::frontends::report::Report;

impl VirtDev {
    /// Agrees on features.
    ///
    /// # Errors
    /// They were not offered, rings run with others, or the driver refused them.
    pub fn set_features(&mut self, plane: &mut dyn Plane, features: Features) -> Result<(), Refusal> {
        let unknown = features.without(self.offered);
        if unknown != Features::NONE {
            return Err(Refusal::breach("features", format!("{unknown:?} were not offered")));
        }
        if self.state.features.is_some() && self.rings.iter().any(|ring| ring.state.life.is_started()) {
            return Err(Refusal::breach("features", "changed while rings run"));
        }
        let before = self.state.features.replace(features);
        let told = self.tell_features(plane);
        if told.is_err() {
            self.state.features = before;
        }
        told
    }

    /// The front-end repeats the features that it set: after a reset they are news to the device, and to operators.
    ///
    /// # Errors
    /// The driver refused them.
    pub fn repeat_features(&mut self, plane: &mut dyn Plane) -> Result<(), Refusal> {
        if self.state.told { Ok(()) } else { self.tell_features(plane) }
    }

    /// Tells the device and control the features that are agreed on.
    pub(super) fn tell_features(&mut self, plane: &mut dyn Plane) -> Result<(), Refusal> {
        let features = self.agreed();
        plane
            .device()
            .negotiated(features)
            .map_err(|e| Refusal::breach("features", format!("the driver refused them: {e}")))?;
        self.state.told = true;
        plane.report(Report::Negotiated { features, protocol: self.state.protocol });
        Ok(())
    }

    /// What the front-end's own protocol agreed on: told with the features.
    pub fn set_protocol(&mut self, bits: u64) {
        self.state.protocol = bits;
    }

    /// Enables or disables every ring.
    ///
    /// # Errors
    /// A worker did not give a ring back.
    pub fn enable_all(&mut self, plane: &mut dyn Plane, on: bool) -> Result<(), Refusal> {
        self.for_every_ring(plane, if on { RingEvent::Enable } else { RingEvent::Disable })
    }

    /// Puts a whole new table of the guest's memory in force.
    ///
    /// # Errors
    /// It cannot be mapped, is more than may be, or a worker did not let go of the old one, which stays in force.
    pub fn set_map(&mut self, plane: &mut dyn Plane, specs: Vec<RegionSpec>) -> Result<(), Refusal> {
        let map = memory::replace(self.map.as_deref(), specs, plane.lease(), || plane.is_revoked());
        self.take_map(plane, map)
    }

    /// The same with one region more.
    ///
    /// # Errors
    /// As [`VirtDev::set_map`].
    pub fn add_region(&mut self, plane: &mut dyn Plane, spec: RegionSpec) -> Result<(), Refusal> {
        let map = memory::add(self.map.as_deref(), spec, plane.lease());
        self.take_map(plane, map)
    }

    /// The same without one region.
    ///
    /// # Errors
    /// There is no such region; as [`VirtDev::set_map`].
    pub fn remove_region(
        &mut self,
        plane: &mut dyn Plane,
        gpa: u64,
        user_addr: u64,
        size: u64,
    ) -> Result<(), Refusal> {
        let map = memory::remove(self.map.as_deref(), gpa, user_addr, size);
        self.take_map(plane, map)
    }

    /// Puts a new map in force: rings are taken from their pumps, and served anew where they lie in the new map.
    fn take_map(&mut self, plane: &mut dyn Plane, map: Result<GuestMap, MemoryError>) -> Result<(), Refusal> {
        let outcome = map.map_err(Refusal::from).and_then(|map| self.put_in_force(plane, map));
        plane.lease().settle(memory::held(self.map.as_deref()));
        outcome
    }

    fn put_in_force(&mut self, plane: &mut dyn Plane, map: GuestMap) -> Result<(), Refusal> {
        if memory::same(self.map.as_deref(), &map) {
            return Ok(());
        }
        let (regions, bytes) = (map.regions().len(), map.regions().iter().map(|region| region.size()).sum());
        // All pumps let go before any sees the new map: to the rings, the set is replaced at once.
        for group in self.all_groups() {
            plane.retire(group)?;
        }
        let map = memory::in_force(map, plane.lease());
        if let Err(error) = plane.set_map(Some(&map)) {
            // The one before is in force still; unless neither is, or nobody wants it: then nothing is served, and the session
            // ends.
            use ringway_pmd::dma::MapError;
            if !matches!(error, MapError::Lost(_) | MapError::Cancelled) {
                for group in self.all_groups() {
                    self.refresh(plane, group)?;
                }
            }
            return Err(MemoryError::from(error).into());
        }
        self.map = Some(map);
        plane.report(Report::Memory { regions, bytes });
        for group in self.all_groups() {
            self.refresh(plane, group)?;
        }
        Ok(())
    }

    /// Sets the device's status (virtio 1.3 §2.1); 0 resets it.
    ///
    /// # Errors
    /// It cannot be in the present one, or a worker did not give a ring back.
    pub fn set_status(&mut self, plane: &mut dyn Plane, value: u8) -> Result<(), Refusal> {
        let event = StatusEvent::of(value);
        if event == StatusEvent::Reset {
            return self.reset(plane);
        }
        self.state.status = self.state.status.after(event)?;
        self.state.status_used = true;
        self.state.status_bits = value & !status::NEEDS_RESET;
        // virtio 1.3 §2.2.2: a device that did not accept features leaves FEATURES_OK off.
        if self.state.features.is_none() {
            self.state.status_bits &= !status::FEATURES_OK;
        }
        plane.report(Report::Status(self.status_now()));
        for group in self.all_groups() {
            // Only DRIVER_OK, or its absence, changes what is served.
            if self.members(group).any(|index| self.rings[index].placed != self.is_served(index)) {
                self.refresh(plane, group)?;
            }
        }
        Ok(())
    }

    /// The device's status.
    pub fn status_now(&self) -> u8 {
        self.state.status_bits | if self.state.needs_reset { status::NEEDS_RESET } else { 0 }
    }

    /// The device's reset: rings stop and are disabled, status and positions are forgotten; the guest's memory and the
    /// features stay.
    ///
    /// # Errors
    /// A worker did not give a ring back.
    pub fn reset(&mut self, plane: &mut dyn Plane) -> Result<(), Refusal> {
        let next = self.state.status.after(StatusEvent::Reset)?;
        for group in self.all_groups() {
            plane.retire(group)?;
            self.take_reported(plane, group);
        }
        for ring in &mut self.rings {
            ring.state.life = ring.state.life.after(RingEvent::Reset)?;
            ring.placed = false;
            ring.reset();
        }
        // A front-end drops it with the device's reset, and gives another.
        self.records = None;
        self.state.status = next;
        (self.state.status_bits, self.state.status_used, self.state.needs_reset) = (0, false, false);
        plane.reset()?;
        self.state.told = false;
        plane.report(Report::Status(0));
        Ok(())
    }
}
