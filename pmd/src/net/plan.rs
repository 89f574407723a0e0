//! What operators ask of a network device, checked once for every driver that makes one.

use ringway_ring::features::Features;

use super::{MAX_MTU, MIN_MTU, Mac, NetConfig};
use crate::vdpa::{ClassSpec, DeviceSpec, DriverError, Unfit};

/// What a driver of network devices can make.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    /// As `mgmtdev show` has it.
    pub mgmtdev: &'static str,
    /// The features of a device.
    pub features: Features,
    /// Queue pairs at most.
    pub max_pairs: u16,
}

/// A device to be made.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Its configuration space.
    pub config: NetConfig,
    /// What it offers.
    pub features: Features,
}

impl Offer {
    /// Checks a request and fills in what it leaves open: one pair, an MTU of 1500, an address made from the name, every
    /// feature.
    ///
    /// # Errors
    /// Something was asked for that cannot be; the text names it.
    pub fn plan(&self, spec: &DeviceSpec) -> Result<Plan, DriverError> {
        let (mgmtdev, max_pairs) = (self.mgmtdev, self.max_pairs);
        let ClassSpec::Net(net) = spec.class else {
            return Err(DriverError::misconfigured(format!("{mgmtdev} makes network devices")));
        };
        let pairs = net.max_vqp.unwrap_or(1);
        if !(1..=max_pairs).contains(&pairs) {
            let why = format!("max_vqp {pairs}: {mgmtdev} has 1 to {max_pairs} queue pairs");
            return Err(DriverError::misconfigured(why));
        }
        let mtu = net.mtu.unwrap_or(DEFAULT_MTU);
        if !(MIN_MTU..=MAX_MTU).contains(&mtu) {
            return Err(DriverError::misconfigured(format!("mtu {mtu}: must be {MIN_MTU} to {MAX_MTU}")));
        }
        let mac = net.mac.unwrap_or_else(|| Mac::default_of(net.seed, &spec.name));
        if mac.is_multicast() {
            let why = format!("mac {mac}: is a group address, a device needs a unicast one");
            return Err(DriverError::misconfigured(why));
        }
        let features = match spec.features {
            None => self.features,
            Some(wanted) if self.features.contains(wanted) => wanted,
            Some(wanted) => {
                let bits: Vec<String> =
                    wanted.without(self.features).bits().map(|bit| bit.to_string()).collect();
                let why = format!("device_features: {mgmtdev} does not offer bits {}", bits.join(", "));
                return Err(DriverError::misconfigured(why));
            }
        };
        Ok(Plan { config: NetConfig { mac, mtu, max_vq_pairs: pairs, link_up: true }, features })
    }
}

impl Plan {
    /// Takes the MTU that a front-end says its guest will use.
    ///
    /// # Errors
    /// It is beyond the device's.
    pub fn checked_mtu(&self, mtu: u16) -> Result<u16, DriverError> {
        let max = self.config.mtu;
        if (MIN_MTU..=max).contains(&mtu) {
            Ok(mtu)
        } else {
            Err(DriverError::PeerMisbehaved(format!("set MTU {mtu}, the device has {max}")))
        }
    }
}

/// Reads `on` or `off`; absent is off.
///
/// # Errors
/// It is another word.
pub fn switch(spec: &DeviceSpec, name: &'static str) -> Result<bool, Unfit> {
    match spec.attributes.get(name).map(String::as_str) {
        None | Some("off") => Ok(false),
        Some("on") => Ok(true),
        Some(other) => Err(Unfit::new(name, format!("{name} {}: must be on or off", other.escape_debug()))),
    }
}

/// The word for a switch.
pub fn word(is_on: bool) -> String {
    if is_on { "on" } else { "off" }.to_owned()
}

const DEFAULT_MTU: u16 = 1500;
