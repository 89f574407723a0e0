//! What the addresses of devices that were given none are made of: a random number, kept once in the state directory, and
//! the name. So two hosts, or two daemons of one, that name a device alike give it different addresses, and each gives
//! the same one again after a restart.
//!
//! The file `addresses.json` stands beside the devices. It also names the devices of an earlier version, whose addresses
//! were made of the name alone: they keep them. And it has a mark of the machine that it was made on: hosts that were made of one
//! image have one number and so the same addresses, which is told, and changed by nobody but the operator.

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
    /// The number was made on another machine.
    is_copied: bool,
}

/// The file. Keys of a newer version are left alone: it is written once.
#[derive(Debug, Serialize, Deserialize)]
struct File {
    /// Absent: another one is to be drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seed: Option<String>,
    #[serde(default)]
    by_name: BTreeSet<String>,
    /// The [`mark`] of the machine; an earlier version has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    machine: Option<String>,
}

impl Addresses {
    /// Those of the machine, for what keeps nothing: from its id, or random where it has none.
    pub(crate) fn of_machine() -> Addresses {
        let seed = machine().map_or_else(random, u128::to_le_bytes);
        Addresses { seed: Some(AddressSeed(seed)), ..Addresses::default() }
    }

    /// Those of a state directory, and what is kept there of an earlier version.
    pub(crate) fn open(dir: &Path, kept: &[DeviceEntry]) -> Result<Addresses, Fault> {
        Addresses::open_on(machine(), dir, kept)
    }

    fn open_on(machine: Option<u128>, dir: &Path, kept: &[DeviceEntry]) -> Result<Addresses, Fault> {
        let machine = machine.map(mark);
        let path = dir.join(FILE);
        let text = match input::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Addresses::begin(machine, &path, kept);
            }
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
        let Some(seed) = file.seed else { return Addresses::draw(machine, &path, file.by_name) };
        let seed = u128::from_str_radix(&seed, 16).map_err(|_| refuse("the seed is no number".into()))?;
        let is_copied = machine.zip(file.machine).is_some_and(|(here, there)| here != there);
        Ok(Addresses { seed: Some(AddressSeed(seed.to_le_bytes())), by_name: file.by_name, is_copied })
    }

    fn begin(machine: Option<String>, path: &Path, kept: &[DeviceEntry]) -> Result<Addresses, Fault> {
        let without = kept.iter().filter(|entry| entry.mac.is_none());
        let by_name: BTreeSet<String> = without
            .flat_map(|entry| {
                // The host's side of a TAP is a device that is not kept, of the interface's name.
                let tap = entry.mgmtdev.strip_prefix("tap/").map(str::to_owned);
                [entry.name.clone()].into_iter().chain(tap)
            })
            .collect();
        Addresses::draw(machine, path, by_name)
    }

    /// Draws a number and keeps it.
    fn draw(machine: Option<String>, path: &Path, by_name: BTreeSet<String>) -> Result<Addresses, Fault> {
        let seed = random();
        let seed_text = format!("{:032x}", u128::from_le_bytes(seed));
        let file = File { seed: Some(seed_text), by_name: by_name.clone(), machine };
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
        Ok(Addresses { seed: Some(AddressSeed(seed)), by_name, is_copied: false })
    }

    /// What the default address of a device of this name is made of, beside the name.
    pub(crate) fn seed_of(&self, name: &str) -> Option<AddressSeed> {
        self.seed.filter(|_| !self.by_name.contains(name))
    }

    /// The number was made on another machine, which may give its devices the same addresses.
    pub(crate) fn is_copied(&self) -> bool {
        self.is_copied
    }

    /// The default address of what has no name but a place.
    pub(crate) fn mac_of(&self, what: &str) -> Mac {
        Mac::default_of(self.seed, what)
    }
}

/// The id of this machine, if it has one.
fn machine() -> Option<u128> {
    let id = std::fs::read_to_string("/etc/machine-id").ok()?;
    u128::from_str_radix(id.trim(), 16).ok()
}

/// What tells a machine's id from another's. Short: the id itself is not for others to know (machine-id(5)).
fn mark(machine: u128) -> String {
    Mac::default_of(Some(AddressSeed(machine.to_le_bytes())), FILE).to_string()
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
    fn number_of_another_machine_is_used_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let first = Addresses::open_on(Some(7), dir.path(), &[]).unwrap();
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        for (machine, is_copied) in [(Some(7), false), (Some(8), true), (None, false), (Some(7), false)] {
            let again = Addresses::open_on(machine, dir.path(), &[]).unwrap();
            assert_eq!(again.is_copied(), is_copied, "{machine:?}");
            assert_eq!(mac(&first, "vm0"), mac(&again, "vm0"));
        }
        assert_eq!(std::fs::read_to_string(dir.path().join(FILE)).unwrap(), text);
        // Of an earlier version it is not known.
        std::fs::write(dir.path().join(FILE), "{\"seed\":\"12\"}").unwrap();
        assert!(!Addresses::open_on(Some(8), dir.path(), &[]).unwrap().is_copied());
        // The cure: another number is drawn, for the devices that are kept as well, and stays.
        std::fs::write(dir.path().join(FILE), "{}").unwrap();
        let [mended, again] =
            [(); 2].map(|()| Addresses::open_on(Some(8), dir.path(), &[entry("vm0", "sim/net")]).unwrap());
        assert!(!mended.is_copied() && mac(&mended, "vm0") == mac(&again, "vm0"));
        assert!(![mac(&first, "vm0"), Mac::from_name("vm0")].contains(&mac(&mended, "vm0")));
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
