//! What operators ask of a block device, checked once for every driver that makes one.

use std::collections::BTreeMap;

use ringway_ring::features::Features;

use super::disk::Geometry;
use super::request::SERIAL;
use super::{BLOCK, F_CONFIG_WCE, F_DISCARD, F_FLUSH, F_RO, F_WRITE_ZEROES};
use crate::limit::Limits;
use crate::net::plan::{switch, word};
use crate::vdpa::{AttributeInfo, ClassSpec, DeviceSpec, DriverError, Live, Unfit};

/// A device to be made, as far as its disk does not decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What it offers at most.
    pub features: Option<Features>,
    /// Request queues.
    pub num_queues: u16,
    /// Data segments of a request.
    pub seg_max: u16,
    /// Bytes of a logical block, if the operator said so.
    pub blk_size: Option<u32>,
    /// Nothing is written.
    pub is_read_only: bool,
    /// It has a write cache until the guest says otherwise.
    pub write_back: bool,
    /// Discards are offered where the disk can.
    pub discard: bool,
    /// What identifies it.
    pub serial: String,
    /// How much is done for the guest.
    pub rates: Rates,
    /// The same, in the operator's words.
    pub rate_words: BTreeMap<String, String>,
}

/// What an operator allows; 0: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Requests a second.
    pub iops: u64,
    /// Requests at once.
    pub iops_burst: u64,
    /// Bytes a second.
    pub bps: u64,
    /// Bytes at once.
    pub bps_burst: u64,
}

impl Rates {
    /// Has them hold from now on, for all queues of a device together.
    pub(super) fn hold(self, limits: &Limits) {
        limits.count.set(self.iops, self.iops_burst);
        limits.amount.set(self.bps, self.bps_burst);
    }
}

/// The attributes that every block device has.
pub const ATTRIBUTES: [AttributeInfo; 11] = [
    AttributeInfo { name: RO, value: "on|off", help: "the guest cannot write (default off)", live: None },
    AttributeInfo {
        name: BLK_SIZE,
        value: "512|1024|2048|4096",
        help: "bytes of a logical block (default: the disk's, mostly 512); SeaBIOS boots from 512 alone",
        live: None,
    },
    AttributeInfo {
        name: NUM_QUEUES,
        value: "1..64",
        help: "request queues at most (default 16); a guest uses as many as it has CPUs",
        live: None,
    },
    AttributeInfo {
        name: SEG_MAX,
        value: "1..254",
        help: "pieces of memory in one request (default 126)",
        live: None,
    },
    AttributeInfo {
        name: SERIAL_NAME,
        value: "TEXT",
        help: "what identifies the disk in the guest, up to 20 bytes (default: the device's name)",
        live: None,
    },
    AttributeInfo {
        name: WRITE_BACK,
        value: "on|off",
        help: "writes last once they are flushed (default on); off: before they are answered. The guest may change it",
        live: None,
    },
    AttributeInfo {
        name: DISCARD,
        value: "on|off",
        help: "the guest may give space back (default on where the disk can)",
        live: None,
    },
    AttributeInfo {
        name: IOPS,
        value: "REQUESTS",
        help: "a second at most, of all queues together (default 0: no limit); in force at once",
        live: Some(Live::unless("0")),
    },
    AttributeInfo {
        name: IOPS_BURST,
        value: "REQUESTS",
        help: "beyond iops that may come at once (default: a tenth of iops)",
        live: Some(Live::AT_ONCE),
    },
    AttributeInfo {
        name: BPS,
        value: "BYTES[K|M|G|T]",
        help: "a second at most, read and written together (default 0: no limit); in force at once",
        live: Some(Live::unless("0")),
    },
    AttributeInfo {
        name: BPS_BURST,
        value: "BYTES[K|M|G|T]",
        help: "beyond bps that may come at once (default: a tenth of bps)",
        live: Some(Live::AT_ONCE),
    },
];

impl Plan {
    /// Checks a request and fills in what it leaves open.
    ///
    /// # Errors
    /// Something was asked for that cannot be; the text names it.
    pub fn new(spec: &DeviceSpec) -> Result<Plan, DriverError> {
        if spec.class != ClassSpec::Block {
            return Err(DriverError::misconfigured("it makes block devices"));
        }
        if let Some(wanted) = spec.features.filter(|wanted| !BLOCK.contains(*wanted)) {
            let bits: Vec<String> = wanted.without(BLOCK).bits().map(|bit| bit.to_string()).collect();
            let why = format!("device_features: a block device does not offer bits {}", bits.join(", "));
            return Err(DriverError::misconfigured(why));
        }
        Ok(Plan::of_attributes(spec)?)
    }

    /// The same, of the attributes alone.
    ///
    /// # Errors
    /// One has a value that it cannot have.
    pub fn of_attributes(spec: &DeviceSpec) -> Result<Plan, Unfit> {
        let serial = match spec.attributes.get(SERIAL_NAME) {
            None => spec.name.chars().scan(0, |len, c| fits(len, c).then_some(c)).collect(),
            Some(text)
                if text.is_empty() || text.len() > SERIAL || !text.bytes().all(|b| b.is_ascii_graphic()) =>
            {
                let why =
                    format!("{SERIAL_NAME} {}: 1 to {SERIAL} printable characters", text.escape_debug());
                return Err(Unfit::new(SERIAL_NAME, why));
            }
            Some(text) => text.clone(),
        };
        Ok(Plan {
            features: spec.features,
            num_queues: number(spec, NUM_QUEUES, 1, MAX_QUEUES)?.unwrap_or(DEFAULT_QUEUES),
            seg_max: number(spec, SEG_MAX, 1, MAX_SEGMENTS)?.unwrap_or(DEFAULT_SEGMENTS),
            blk_size: block_size(spec)?,
            is_read_only: switch(spec, RO)?,
            write_back: !spec.attributes.contains_key(WRITE_BACK) || switch(spec, WRITE_BACK)?,
            discard: !spec.attributes.contains_key(DISCARD) || switch(spec, DISCARD)?,
            serial,
            rates: Plan::rates_among(&spec.attributes, Rates::default())?,
            rate_words: rate_words(&spec.attributes).collect(),
        })
    }

    /// The rates as they are with these attributes; what is not among them is as in `before`.
    ///
    /// # Errors
    /// One has a value that it cannot have.
    pub fn rates_among(attributes: &BTreeMap<String, String>, before: Rates) -> Result<Rates, Unfit> {
        let word = |name: &'static str| attributes.get(name).map(|text| amount(name, text)).transpose();
        let pair = |rate, burst, (rate_before, burst_before): (u64, u64)| -> Result<(u64, u64), Unfit> {
            let (rate, burst) = (word(rate)?, word(burst)?);
            let default = rate.map_or(burst_before, |rate| rate / 10);
            Ok((rate.unwrap_or(rate_before), burst.unwrap_or(default)))
        };
        let (iops, iops_burst) = pair(IOPS, IOPS_BURST, (before.iops, before.iops_burst))?;
        let (bps, bps_burst) = pair(BPS, BPS_BURST, (before.bps, before.bps_burst))?;
        Ok(Rates { iops, iops_burst, bps, bps_burst })
    }

    /// The attributes as they are in force: a limit that there is not is none of them.
    pub fn attributes(&self) -> BTreeMap<String, String> {
        let mut attributes = BTreeMap::new();
        let mut put = |name: &str, value: String| {
            attributes.insert(name.to_owned(), value);
        };
        put(NUM_QUEUES, self.num_queues.to_string());
        put(SEG_MAX, self.seg_max.to_string());
        put(SERIAL_NAME, self.serial.clone());
        put(RO, word(self.is_read_only));
        put(WRITE_BACK, word(self.write_back));
        put(DISCARD, word(self.discard));
        if let Some(size) = self.blk_size {
            put(BLK_SIZE, size.to_string());
        }
        for (name, text) in &self.rate_words {
            let is_limit = match name.as_str() {
                IOPS => self.rates.iops > 0,
                BPS => self.rates.bps > 0,
                _ => true,
            };
            if is_limit {
                put(name, text.clone());
            }
        }
        attributes
    }

    /// What a device with this disk offers.
    pub fn offered(&self, geometry: &Geometry) -> Features {
        let mut features = BLOCK;
        let is_read_only = self.is_read_only || geometry.is_read_only;
        if !is_read_only {
            features = features.without(F_RO);
        }
        if is_read_only || !self.discard || geometry.discard.is_none() {
            features = features.without(F_DISCARD);
        }
        if is_read_only || geometry.write_zeroes.is_none() {
            features = features.without(F_WRITE_ZEROES);
        }
        // RO is no offer that can be left out.
        let features = self.features.map_or(features, |wanted| features & (wanted | F_RO));
        // Nothing can be switched that cannot be flushed.
        if features.contains(F_FLUSH) { features } else { features.without(F_CONFIG_WCE) }
    }
}

/// The attributes that say how much is done for the guest.
pub(super) fn rate_words(attributes: &BTreeMap<String, String>) -> impl Iterator<Item = (String, String)> {
    let is_one = |(name, _): &(&String, &String)| [IOPS, IOPS_BURST, BPS, BPS_BURST].contains(&name.as_str());
    attributes.iter().filter(is_one).map(|(name, text)| (name.clone(), text.clone()))
}

/// The text has room for one more character.
fn fits(len: &mut usize, c: char) -> bool {
    *len += c.len_utf8();
    *len <= SERIAL
}

/// Reads a number of an attribute.
///
/// # Errors
/// It is none, or beyond the limits.
pub fn number<N>(spec: &DeviceSpec, name: &'static str, least: N, most: N) -> Result<Option<N>, Unfit>
where
    N: std::str::FromStr + PartialOrd + std::fmt::Display + Copy,
{
    let Some(text) = spec.attributes.get(name) else { return Ok(None) };
    match text.parse::<N>() {
        Ok(number) if (least..=most).contains(&number) && number.to_string() == *text => Ok(Some(number)),
        _ => Err(Unfit::new(name, format!("{name} {}: must be {least} to {most}", text.escape_debug()))),
    }
}

/// Reads a size in bytes: a number, or one with K, M, G or T behind it, which are powers of 1024.
///
/// # Errors
/// It is none.
pub fn size(name: &'static str, text: &str) -> Result<u64, Unfit> {
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (text.get(..at), 1 << 10),
        Some((at, 'M' | 'm')) => (text.get(..at), 1 << 20),
        Some((at, 'G' | 'g')) => (text.get(..at), 1 << 30),
        Some((at, 'T' | 't')) => (text.get(..at), 1 << 40),
        _ => (Some(text), 1),
    };
    let number = digits.and_then(|digits| digits.parse::<u64>().ok());
    number.and_then(|number| number.checked_mul(unit)).ok_or_else(|| {
        let why = format!("{name} {}: bytes, or a number with K, M, G or T behind it", text.escape_debug());
        Unfit::new(name, why)
    })
}

/// Reads how much a second: requests, or bytes as [`size`] has them.
fn amount(name: &'static str, text: &str) -> Result<u64, Unfit> {
    if name == BPS || name == BPS_BURST {
        return size(name, text);
    }
    text.parse()
        .map_err(|_| Unfit::new(name, format!("{name} {}: must be a whole number", text.escape_debug())))
}

fn block_size(spec: &DeviceSpec) -> Result<Option<u32>, Unfit> {
    let Some(text) = spec.attributes.get(BLK_SIZE) else { return Ok(None) };
    match text.parse() {
        Ok(size @ (512 | 1024 | 2048 | 4096)) => Ok(Some(size)),
        _ => {
            let why = format!("{BLK_SIZE} {}: must be 512, 1024, 2048 or 4096", text.escape_debug());
            Err(Unfit::new(BLK_SIZE, why))
        }
    }
}

/// Attributes of every block device.
pub const RO: &str = "ro";
/// Bytes of a block.
pub const BLK_SIZE: &str = "blk_size";
/// Request queues.
pub const NUM_QUEUES: &str = "num_queues";
const SEG_MAX: &str = "seg_max";
const SERIAL_NAME: &str = "serial";
const WRITE_BACK: &str = "write_back";
pub(super) const DISCARD: &str = "discard";
const IOPS: &str = "iops";
const IOPS_BURST: &str = "iops_burst";
const BPS: &str = "bps";
const BPS_BURST: &str = "bps_burst";

/// Request queues at most.
pub const MAX_QUEUES: u16 = 64;
const DEFAULT_QUEUES: u16 = 16;
const MAX_SEGMENTS: u16 = 254;
const DEFAULT_SEGMENTS: u16 = 126;
