//! What the addresses of devices that were given none are made of: a random number, kept once in the state directory, and
//! the name. So two hosts, or two daemons of one, that name a device alike give it different addresses, and each gives
//! the same one again after a restart.
//!
//! The file `addresses.json` stands beside the devices. It also names the devices of an earlier version, whose addresses
//! were made of the name alone: they keep them.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Write as _};
use std::path::Path;

use ringway_pmd::net::{AddressSeed, Mac};
use serde::{Deserialize, Serialize};

use crate::fault::{Fault, Kind};
use crate::host::input;
use crate::operator::api::DeviceEntry;

/// The name of the file.
pub(crate) const FILE: &str = "addresses.json";

/// Where default addresses come from.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    seed: Option<AddressSeed>,
    /// Devices whose address is made of the name alone.
    by_name: BTreeSet<String>,
}

/// The file. Keys of a newer version are left alone: it is written once.
#[derive(Debug, Serialize, Deserialize)]
struct File {
    seed: String,
    #[serde(default)]
    by_name: BTreeSet<String>,
}

impl Addresses {
    /// Those of the machine, for what keeps nothing: from its id, or random where it has none.
    pub(crate) fn of_machine() -> Addresses {
        let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let seed = u128::from_str_radix(id.trim(), 16).map_or_else(|_| random(), u128::to_le_bytes);
        Addresses { seed: Some(AddressSeed(seed)), by_name: BTreeSet::new() }
    }

    /// Those of a state directory, and what is kept there of an earlier version.
    pub(crate) fn open(dir: &Path, kept: &[DeviceEntry]) -> Result<Addresses, Fault> {
        let path = dir.join(FILE);
        let text = match input::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Addresses::begin(&path, kept),
            Err(error) => return Err(Fault::system(format!("cannot read {}", path.display()), error)),
        };
        let refuse = |why: String| {
            let what = format!("the file {} cannot be used: {why}", path.display());
            Fault::new(Kind::Runtime, what)
                .at(path.display().to_string())
                .hint("mend it, or move it away: devices without a `mac` of their own then get new addresses")
        };
        if text.is_empty() {
            let why = refuse("it is empty, as a crash of the host may leave it".to_owned());
            return Err(Fault { hint: None, ..why }.hint(format!(
                "put a copy of it back, or rm {}: devices without a `mac` of their own then get new addresses",
                path.display()
            )));
        }
        let file: File = serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
        let seed =
            u128::from_str_radix(&file.seed, 16).map_err(|_| refuse("the seed is no number".into()))?;
        Ok(Addresses { seed: Some(AddressSeed(seed.to_le_bytes())), by_name: file.by_name })
    }

    fn begin(path: &Path, kept: &[DeviceEntry]) -> Result<Addresses, Fault> {
        let without = kept.iter().filter(|entry| entry.mac.is_none());
        let by_name: BTreeSet<String> = without
            .flat_map(|entry| {
                // The host's side of a TAP is a device that is not kept, of the interface's name.
                let tap = entry.mgmtdev.strip_prefix("tap/").map(str::to_owned);
                [entry.name.clone()].into_iter().chain(tap)
            })
            .collect();
        let seed = random();
        let file = File { seed: format!("{:032x}", u128::from_le_bytes(seed)), by_name: by_name.clone() };
        let written = || -> io::Result<()> {
            let mut beside =
                tempfile::Builder::new().prefix("addresses.").tempfile_in(path.parent().unwrap_or(path))?;
            beside.write_all(&serde_json::to_vec_pretty(&file)?)?;
            beside.as_file().sync_all()?;
            beside.persist(path)?;
            Ok(())
        };
        written().map_err(|error| {
            Fault::system(format!("cannot keep {}", path.display()), error)
                .hint("free space or mend the state directory")
        })?;
        Ok(Addresses { seed: Some(AddressSeed(seed)), by_name })
    }

    /// What the default address of a device of this name is made of, beside the name.
    pub(crate) fn seed_of(&self, name: &str) -> Option<AddressSeed> {
        self.seed.filter(|_| !self.by_name.contains(name))
    }

    /// The default address of what has no name but a place.
    pub(crate) fn mac_of(&self, what: &str) -> Mac {
        Mac::default_of(self.seed, what)
    }
}

/// The standard library's keys are random, from the system.
fn random() -> [u8; 16] {
    let halves = [0u64, 1].map(|nth| RandomState::new().hash_one(nth));
    (u128::from(halves[0]) << 64 | u128::from(halves[1])).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, mgmtdev: &str) -> DeviceEntry {
        DeviceEntry { name: name.into(), mgmtdev: mgmtdev.into(), ..DeviceEntry::default() }
    }

    fn mac(addresses: &Addresses, name: &str) -> Mac {
        Mac::default_of(addresses.seed_of(name), name)
    }

    #[test]
    fn each_directory_has_addresses_of_its_own_and_keeps_them() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = Addresses::open(a.path(), &[]).unwrap();
        let other = Addresses::open(b.path(), &[]).unwrap();
        let again = Addresses::open(a.path(), &[entry("vm0", "sim/net")]).unwrap();
        assert_ne!(mac(&first, "vm0"), mac(&other, "vm0"));
        assert_ne!(mac(&first, "vm0"), mac(&first, "vm1"));
        assert_eq!(mac(&first, "vm0"), mac(&again, "vm0"));
        assert!(!mac(&first, "vm0").is_multicast());
    }

    #[test]
    fn devices_of_an_earlier_version_keep_their_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let kept = [entry("vm0", "sim/net"), entry("x", "tap/rwt0")];
        for kept in [&kept[..], &[]] {
            let addresses = Addresses::open(dir.path(), kept).unwrap();
            for name in ["vm0", "x", "rwt0"] {
                assert_eq!(mac(&addresses, name), Mac::from_name(name));
            }
            assert_ne!(mac(&addresses, "vm1"), Mac::from_name("vm1"));
        }
    }

    #[test]
    fn file_that_cannot_be_read_is_named_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("addresses.json");
        for bad in ["", "{\"seed\":\"x\"}"] {
            std::fs::write(&path, bad).unwrap();
            let fault = Addresses::open(dir.path(), &[]).unwrap_err();
            assert!(fault.to_string().contains("addresses.json"), "{fault}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), bad);
        }
        // A newer version's key is no reason to stand still.
        std::fs::write(&path, "{\"seed\":\"12\",\"newer\":1}").unwrap();
        Addresses::open(dir.path(), &[]).unwrap();
    }
}
