//! What every network device of Ringway's has in common, beside its queues: configuration, features, the MTU in use. With a
//! pump for each pair it is a whole device.

use std::collections::BTreeMap;
use std::time::Duration;

use ringway_ring::features::Features;

use super::NetConfig;
use super::plan::Plan;
use crate::vdpa::{
    Class, ClassOps, ConfigSpace, DataPath, DriverError, Facts, MakePump, NetOps, OwnPumps, QueueLimits,
    Queues, Stuck, VENDOR_ID, VdpaDevice,
};

/// A network device whose rings are served by cores.
#[derive(Debug, Clone, Copy)]
pub struct Nic {
    config: NetConfig,
    features: Features,
    max_vq_size: u16,
    /// What the front-end told, at most what the operator gave.
    mtu_in_use: u16,
    generation: u32,
}

impl Nic {
    /// As an operator's request came out. `max_vq_size`: entries of a ring at most; 0 for what has no guest.
    pub fn new(plan: Plan, max_vq_size: u16) -> Nic {
        let Plan { config, features } = plan;
        Nic { config, features, max_vq_size, mtu_in_use: config.mtu, generation: 0 }
    }

    /// Its configuration.
    pub fn config(&self) -> NetConfig {
        self.config
    }

    /// The MTU that its guest uses.
    pub fn mtu(&self) -> u16 {
        self.mtu_in_use
    }

    /// It is the host's own, whose address is this.
    pub fn set_mac(&mut self, mac: super::Mac) {
        self.change(NetConfig { mac, ..self.config });
    }

    /// Its link came up or went down.
    pub fn set_link(&mut self, is_up: bool) {
        self.change(NetConfig { link_up: is_up, ..self.config });
    }

    fn change(&mut self, config: NetConfig) {
        if config != self.config {
            self.config = config;
            self.generation = self.generation.wrapping_add(1);
        }
    }

    /// What it is, to the subsystem: pairs of queues, receive and transmit (virtio 1.3 §5.1.2).
    pub fn facts(&self) -> Facts {
        Facts {
            class: Class::Net,
            vendor_id: VENDOR_ID,
            data_path: DataPath::Pumped,
            dma: false,
            features: self.features,
            limits: QueueLimits { max_vqs: self.config.max_vq_pairs * 2, max_vq_size: self.max_vq_size },
            queues_per_group: 2,
        }
    }

    /// Back to what it was when it was made.
    pub fn reset(&mut self) {
        self.mtu_in_use = self.config.mtu;
    }
}

impl NetOps for Nic {
    fn net_config(&self) -> NetConfig {
        self.config
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DriverError> {
        self.mtu_in_use = Plan { config: self.config, features: self.features }.checked_mtu(mtu)?;
        Ok(())
    }
}

impl ConfigSpace for Nic {
    fn read(&self, at: usize, bytes: &mut [u8]) {
        let space = self.config.to_bytes();
        let rest = space.iter().skip(at).chain(std::iter::repeat(&0));
        bytes.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    }

    fn generation(&self) -> u32 {
        self.generation
    }
}

/// A NIC each of whose pairs has a pump of its own: what is left to bring for a device. See [`OwnPumps`].
pub trait PumpedNic: MakePump + Send {
    /// The NIC.
    fn nic(&self) -> &Nic;
    /// The NIC, to be changed.
    fn nic_mut(&mut self) -> &mut Nic;
    /// The driver's own attributes as they are in force.
    fn attributes(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
}

impl<M: PumpedNic> VdpaDevice for OwnPumps<M> {
    fn facts(&self) -> Facts {
        self.maker.nic().facts()
    }

    fn config(&mut self) -> &mut dyn ConfigSpace {
        self.maker.nic_mut()
    }

    fn queues(&mut self) -> &mut dyn Queues {
        self
    }

    fn class(&mut self) -> ClassOps<'_> {
        ClassOps::Net(self.maker.nic_mut())
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        self.maker.attributes()
    }

    fn reset(&mut self, _within: Duration) -> Result<(), Stuck> {
        self.maker.nic_mut().reset();
        Ok(())
    }
}
