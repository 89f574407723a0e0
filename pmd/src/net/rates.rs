//! How much a port of a bridge may send and is given, in frames and in bits a second: what operators say of it.
//!
//! What a port sends beyond it stays where it is until it may pass: a guest's ring, which presses its guest back, the kernel's queue, a
//! function's buffers. What is for a port beyond it is dropped there and counted.

use std::collections::BTreeMap;

use crate::limit::{Limit, Limits};
use crate::vdpa::{AttributeInfo, Live, Unfit};

/// See the module's head. Set by anybody at any time, used by the pump that has the port.
#[derive(Debug, Default)]
pub struct PortRates {
    /// What it sends.
    pub sent: Limits,
    /// What it is given.
    pub received: Limits,
}

/// The attributes.
pub const ATTRIBUTES: [AttributeInfo; 4] = [
    AttributeInfo {
        name: "max_tx_pps",
        value: "FRAMES",
        help: "a second that the port may send at most (default 0: no limit); in force at once",
        live: Some(Live::unless("0")),
    },
    AttributeInfo {
        name: "max_tx_rate",
        value: "BITS[kbit|mbit|gbit]",
        help: "a second that the port may send at most (default 0: no limit); in force at once",
        live: Some(Live::unless("0")),
    },
    AttributeInfo {
        name: "max_rx_pps",
        value: "FRAMES",
        help: "a second that the port is given at most (default 0: no limit); in force at once",
        live: Some(Live::unless("0")),
    },
    AttributeInfo {
        name: "max_rx_rate",
        value: "BITS[kbit|mbit|gbit]",
        help: "a second that the port is given at most (default 0: no limit); in force at once",
        live: Some(Live::unless("0")),
    },
];

impl PortRates {
    /// Each limit with its attribute, and whether it is one of bits.
    fn all(&self) -> [(&'static str, &Limit, bool); 4] {
        let [tx_pps, tx_rate, rx_pps, rx_rate] = ATTRIBUTES.map(|attribute| attribute.name);
        [
            (tx_pps, &self.sent.count, false),
            (tx_rate, &self.sent.amount, true),
            (rx_pps, &self.received.count, false),
            (rx_rate, &self.received.amount, true),
        ]
    }

    /// Sets those that are among the attributes.
    ///
    /// # Errors
    /// One has a value that it cannot have; those before it are set.
    pub fn set(&self, attributes: &BTreeMap<String, String>) -> Result<(), Unfit> {
        for (name, limit, is_bits) in self.all() {
            if let Some(text) = attributes.get(name) {
                let rate = parse(text, is_bits).ok_or_else(|| {
                    let what = if is_bits {
                        "bits a second, or a number with kbit, mbit or gbit behind it"
                    } else {
                        "a number of frames"
                    };
                    Unfit::new(name, format!("{name} {}: must be {what}", text.escape_debug()))
                })?;
                limit.set(rate, rate / BURSTS);
            }
        }
        Ok(())
    }

    /// Those that are limits, in an operator's words.
    pub fn words(&self) -> impl Iterator<Item = (String, String)> {
        let set = self.all().into_iter().filter(|(_, limit, _)| limit.per_second() > 0);
        set.map(|(name, limit, is_bits)| {
            let rate = limit.per_second();
            let unit = UNITS.iter().find(|(_, factor)| is_bits && rate.is_multiple_of(*factor));
            let word = unit.map(|(unit, factor)| format!("{}{unit}", rate / factor));
            (name.to_owned(), word.unwrap_or_else(|| rate.to_string()))
        })
    }
}

/// Reads a rate: a number, of bits with a unit as tc(8) has them behind it, or not.
fn parse(text: &str, is_bits: bool) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let unit = UNITS
        .iter()
        .filter(|_| is_bits)
        .find_map(|(unit, factor)| Some((lower.strip_suffix(unit)?, *factor)));
    let (digits, factor) = unit.unwrap_or((&lower, 1));
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse::<u64>().ok().filter(|_| is_number)?.checked_mul(factor)
}

/// The units of bits, the largest first: one that ends like another comes before it.
const UNITS: [(&str, u64); 4] = [("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1000), ("bit", 1)];

/// A burst is what a rate comes to in this part of a second.
const BURSTS: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn set(rates: &PortRates, name: &str, text: &str) -> Result<(), Unfit> {
        rates.set(&BTreeMap::from([(name.to_owned(), text.to_owned())]))
    }

    #[test]
    fn rates_are_read_as_tc_writes_them_and_shown_so() {
        let rates = PortRates::default();
        assert_eq!(rates.words().count(), 0);
        for (name, text, shown) in [
            ("max_tx_rate", "100mbit", "100mbit"),
            ("max_tx_rate", "1500Kbit", "1500kbit"),
            ("max_rx_rate", "2gbit", "2gbit"),
            ("max_rx_rate", "2000000", "2mbit"),
            ("max_rx_rate", "2000001bit", "2000001bit"),
            ("max_tx_pps", "5000", "5000"),
        ] {
            set(&rates, name, text).unwrap();
            let words: BTreeMap<String, String> = rates.words().collect();
            assert_eq!(words[name], shown);
        }
        for name in ATTRIBUTES.map(|attribute| attribute.name) {
            set(&rates, name, "0").unwrap();
        }
        assert_eq!(rates.words().count(), 0);
        for (name, text) in [
            ("max_tx_pps", "5kbit"),
            ("max_tx_pps", "-1"),
            ("max_tx_pps", ""),
            ("max_rx_rate", "fast"),
            ("max_rx_rate", "mbit"),
            ("max_rx_rate", "+5"),
            ("max_rx_rate", "99999999999gbit"),
        ] {
            assert!(set(&rates, name, text).is_err(), "{name} {text}");
        }
    }
}
