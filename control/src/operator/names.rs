//! Names of virtio feature bits, as `vdpa(8)` prints them, both ways.

use ringway_pmd::vdpa::Class;
use ringway_ring::features::Features;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fault::nearest;

/// A feature in a list: its name, or the bare number of a bit without one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum FeatureName {
    /// A bit that has a name for this class of device.
    Name(String),
    /// A bit that has none.
    Bit(u32),
}

impl FeatureName {
    /// As Ringway's own text output has it: the specification's name also where `vdpa(8)` knows none.
    pub fn shown(&self) -> String {
        match self {
            FeatureName::Bit(bit) => unnamed().find(|(number, _)| number == bit).map(|(_, name)| *name),
            FeatureName::Name(_) => None,
        }
        .map_or_else(|| self.text(), str::to_owned)
    }

    /// As in the text output of `vdpa(8)`: `bit_52` for a bit without a name.
    pub fn text(&self) -> String {
        match self {
            FeatureName::Name(name) => name.clone(),
            FeatureName::Bit(bit) => format!("bit_{bit}"),
        }
    }
}

/// The name of a bit, if it has one for this class. Bits 28 to 42 belong to the transport, whatever the device.
pub fn feature_name(class: Class, bit: u32) -> Option<&'static str> {
    let table: &[(u32, &str)] = match (bit, class) {
        (28..=42, _) => TRANSPORT,
        (_, Class::Net) => NET,
        (_, Class::Block) => &[],
    };
    table.iter().find(|(number, _)| *number == bit).map(|(_, name)| *name)
}

/// The features as a list in order of their bits.
pub fn feature_names(class: Class, features: Features) -> Vec<FeatureName> {
    features
        .bits()
        .map(|bit| match feature_name(class, bit) {
            Some(name) => FeatureName::Name(name.to_owned()),
            None => FeatureName::Bit(bit),
        })
        .collect()
}

/// Reads features as an operator writes them: a hexadecimal mask with or without `0x`, or names and `bit_N` joined by
/// commas.
///
/// # Errors
/// A sentence that names what is not understood, and the nearest name.
pub fn parse_features(class: Class, text: &str) -> Result<Features, String> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let is_mask = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_mask {
        return u64::from_str_radix(digits, 16)
            .map(Features)
            .map_err(|_| format!("`{text}` does not fit 64 bits"));
    }
    let mut features = Features::NONE;
    for word in text.split(',') {
        features |= Features(1 << parse_bit(class, word)?);
    }
    Ok(features)
}

fn parse_bit(class: Class, word: &str) -> Result<u32, String> {
    if let Some(bit) =
        word.strip_prefix("bit_").and_then(|number| number.parse().ok()).filter(|bit| *bit < 64)
    {
        return Ok(bit);
    }
    let known = || {
        let tables: [&[(u32, &'static str)]; 2] = match class {
            Class::Net => [NET, NEWER],
            Class::Block => [&[], BLOCK],
        };
        tables.into_iter().flatten().chain(TRANSPORT)
    };
    if let Some((bit, _)) = known().find(|(_, name)| name.eq_ignore_ascii_case(word)) {
        return Ok(*bit);
    }
    let meant = nearest(&word.to_ascii_uppercase(), known().map(|(_, name)| *name));
    Err(match meant {
        Some(name) => format!("unknown feature `{word}`; did you mean {name}?"),
        None => format!("unknown feature `{word}`: write a hexadecimal mask or names joined by commas"),
    })
}

const TRANSPORT: &[(u32, &str)] = &[
    (28, "RING_INDIRECT_DESC"),
    (29, "RING_EVENT_IDX"),
    (32, "VERSION_1"),
    (33, "ACCESS_PLATFORM"),
    (34, "RING_PACKED"),
    (35, "IN_ORDER"),
    (36, "ORDER_PLATFORM"),
    (37, "SR_IOV"),
    (38, "NOTIFICATION_DATA"),
];

const NET: &[(u32, &str)] = &[
    (0, "CSUM"),
    (1, "GUEST_CSUM"),
    (2, "CTRL_GUEST_OFFLOADS"),
    (3, "MTU"),
    (5, "MAC"),
    (7, "GUEST_TSO4"),
    (8, "GUEST_TSO6"),
    (9, "GUEST_ECN"),
    (10, "GUEST_UFO"),
    (11, "HOST_TSO4"),
    (12, "HOST_TSO6"),
    (13, "HOST_ECN"),
    (14, "HOST_UFO"),
    (15, "MRG_RXBUF"),
    (16, "STATUS"),
    (17, "CTRL_VQ"),
    (18, "CTRL_RX"),
    (19, "CTRL_VLAN"),
    (20, "CTRL_RX_EXTRA"),
    (21, "GUEST_ANNOUNCE"),
    (22, "MQ"),
    (23, "CTRL_MAC_ADDR"),
    (24, "NOTIFY_ON_EMPTY"),
    (27, "ANY_LAYOUT"),
    (57, "HASH_REPORT"),
    (60, "RSS"),
    (61, "RSC_EXT"),
    (62, "STANDBY"),
    (63, "SPEED_DUPLEX"),
];

/// Features of network devices that `vdpa(8)` prints as numbers (virtio 1.3 §5.1.3).
const NEWER: &[(u32, &str)] = &[(54, "GUEST_USO4"), (55, "GUEST_USO6"), (56, "HOST_USO")];

/// Features of block devices, all of which `vdpa(8)` prints as numbers (virtio 1.3 §5.2.3). None has the name of another
/// class's feature: MQ is a network device's.
const BLOCK: &[(u32, &str)] = &[
    (1, "SIZE_MAX"),
    (2, "SEG_MAX"),
    (4, "GEOMETRY"),
    (5, "RO"),
    (6, "BLK_SIZE"),
    (9, "FLUSH"),
    (10, "TOPOLOGY"),
    (11, "CONFIG_WCE"),
    (12, "BLK_MQ"),
    (13, "DISCARD"),
    (14, "WRITE_ZEROES"),
    (15, "LIFETIME"),
    (16, "SECURE_ERASE"),
    (17, "ZONED"),
];

/// Names of bits that `vdpa(8)` has none for. A bit without a name is of one class only: the other one's has one, or is not
/// offered by any device.
fn unnamed() -> impl Iterator<Item = &'static (u32, &'static str)> {
    NEWER.iter().chain(BLOCK)
}

/// A word of Ringway's own text as `vdpa(8)` has it.
pub(crate) fn as_vdpa(word: &str) -> String {
    let newer = unnamed().find(|(_, name)| *name == word);
    newer.map_or_else(|| word.to_owned(), |(bit, _)| format!("bit_{bit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_bit_is_a_number_in_a_list_of_names() {
        let names = feature_names(Class::Net, Features(1 << 52 | 1 << 5 | 1 << 40));
        assert_eq!(serde_json::to_string(&names).unwrap(), r#"["MAC",40,52]"#);
        assert_eq!(names[2].text(), "bit_52");
    }

    #[test]
    fn features_that_vdpa_does_not_know_are_named_in_text_and_numbers_in_json() {
        let names = feature_names(Class::Net, Features(1 << 54 | 1 << 56 | 1 << 52));
        assert_eq!(serde_json::to_string(&names).unwrap(), "[52,54,56]");
        let shown: Vec<String> = names.iter().map(FeatureName::shown).collect();
        assert_eq!(shown, ["bit_52", "GUEST_USO4", "HOST_USO"]);
        assert_eq!(parse_features(Class::Net, &shown.join(",")), Ok(Features(1 << 54 | 1 << 56 | 1 << 52)));
        assert_eq!(as_vdpa("HOST_USO"), "bit_56");
        assert_eq!(as_vdpa("CSUM"), "CSUM");
    }

    #[test]
    fn block_has_transport_names_alone() {
        let names = feature_names(Class::Block, Features(1 << 5 | 1 << 32));
        assert_eq!(serde_json::to_string(&names).unwrap(), r#"[5,"VERSION_1"]"#);
        let shown: Vec<String> = names.iter().map(FeatureName::shown).collect();
        assert_eq!(shown, ["RO", "VERSION_1"]);
        assert_eq!(
            parse_features(Class::Block, "ro,VERSION_1,blk_mq"),
            Ok(Features(1 << 5 | 1 << 12 | 1 << 32))
        );
        assert_eq!(as_vdpa("RO"), "bit_5");
    }

    #[test]
    fn masks_and_names_mean_the_same() {
        let expected = Ok(Features(1 << 3 | 1 << 5 | 1 << 32));
        assert_eq!(parse_features(Class::Net, "0x100000028"), expected);
        assert_eq!(parse_features(Class::Net, "100000028"), expected);
        assert_eq!(parse_features(Class::Net, "MTU,MAC,VERSION_1"), expected);
        assert_eq!(parse_features(Class::Net, "mtu,bit_5,version_1"), expected);
    }

    #[test]
    fn bad_features_name_the_nearest() {
        let error = parse_features(Class::Net, "MRG_RXBUFF").unwrap_err();
        assert!(error.contains("did you mean MRG_RXBUF?"), "{error}");
        assert!(parse_features(Class::Net, "bit_64").is_err());
        assert!(parse_features(Class::Net, "").is_err());
        assert!(parse_features(Class::Net, "11112222333344445").unwrap_err().contains("64 bits"));
    }

    #[test]
    fn no_name_reads_as_a_mask() {
        for (_, name) in NET.iter().chain(TRANSPORT) {
            assert!(!name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
        }
    }

    #[test]
    fn every_name_reads_back_as_its_bit() {
        for bit in 0..64 {
            for name in feature_names(Class::Net, Features(1 << bit)) {
                assert_eq!(parse_features(Class::Net, &name.text()), Ok(Features(1 << bit)));
            }
        }
    }
}
