//! The state directory: the devices that operators added, kept over restarts.
//!
//! One file, `devices.json`, replaced as a whole: written beside, flushed to disk, renamed. A file that cannot be read
//! stops the start with an error that names it; it is never overwritten unread. Keys that a newer version wrote are told
//! once, have no effect, and are written back as they were.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::fault::{Fault, Kind, printable};
use crate::host::guard::Guard;
use crate::host::look::{Finding, Missing};
use crate::host::standing::{Identity, Standing, noun};
use crate::operator::api::{DeviceEntry, MgmtEntry, PortEntry};

/// The name of the file.
const FILE: &str = "devices.json";
/// The format of the file.
const FORMAT: u32 = 1;
/// Of a file's mode, what says who may do what.
const PERMISSIONS: u32 = 0o777;

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    format: u32,
    /// Changes to the devices, over restarts.
    pub(crate) generation: u64,
    /// Management devices that operators added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) mgmtdevs: Vec<MgmtEntry>,
    /// Ports that operators added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ports: Vec<PortEntry>,
    /// In the order in which they were added.
    pub(crate) devices: Vec<DeviceEntry>,
    /// Keys of a newer version.
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

impl Default for Kept {
    fn default() -> Self {
        Kept::new(0, Vec::new(), Vec::new(), Vec::new())
    }
}

impl Kept {
    pub(crate) fn new(
        generation: u64,
        mgmtdevs: Vec<MgmtEntry>,
        ports: Vec<PortEntry>,
        devices: Vec<DeviceEntry>,
    ) -> Kept {
        Kept { format: FORMAT, generation, mgmtdevs, ports, devices, unknown: Map::new() }
    }
}

/// Keys of a newer version: of the file, and of its entries by list and name.
#[derive(Debug, Default)]
struct Unknown {
    file: Map<String, Value>,
    entries: BTreeMap<(&'static str, String), Map<String, Value>>,
}

/// The lists of the file.
const LISTS: [&str; 3] = ["mgmtdevs", "ports", "devices"];

/// By what an entry of a list is told from the others.
fn key_of(list: &str, entry: &Map<String, Value>) -> Option<String> {
    match list {
        "ports" => Some(format!("{}/{}", entry.get("mgmtdev")?.as_str()?, entry.get("sfnum")?.as_u64()?)),
        _ => Some(entry.get("name")?.as_str()?.to_owned()),
    }
}

/// Takes the keys that `T` does not know out of an entry.
fn take_unknown<T: DeserializeOwned>(entry: &mut Map<String, Value>) -> Map<String, Value> {
    let mut unknown = Map::new();
    while let Err(error) = T::deserialize(&Value::Object(entry.clone())) {
        let text = error.to_string();
        let key = text.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
        let Some((key, value)) = key.and_then(|key| entry.remove_entry(key)) else { break };
        unknown.insert(key, value);
    }
    unknown
}

/// The state directory, held for as long as the process.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    /// What the file holds beyond what this version knows.
    unknown: Unknown,
    /// Its files, as they were last read or written.
    own: Vec<Own>,
    guard: Guard,
}

/// A file as this process left it.
#[derive(Debug)]
struct Own {
    name: &'static str,
    text: Vec<u8>,
    mode: u32,
    mark: Mark,
}

/// By what it is seen that nobody has touched a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    identity: Identity,
    len: u64,
    modified: Option<SystemTime>,
}

impl Mark {
    fn of(facts: &fs::Metadata) -> Mark {
        Mark { identity: Identity::of(facts), len: facts.len(), modified: facts.modified().ok() }
    }
}

impl Own {
    /// What stands in its place. A file that says the same is as good.
    fn standing(&mut self, dir: &Path) -> Standing {
        let path = dir.join(self.name);
        let facts = match fs::metadata(&path) {
            Ok(facts) => facts,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Standing::Gone,
            Err(error) => return Standing::Hidden(error),
        };
        let mark = Mark::of(&facts);
        if mark == self.mark {
            return Standing::Ours;
        }
        if facts.is_file() && crate::host::input::read(&path).is_ok_and(|text| text == self.text) {
            self.mark = mark;
            return Standing::Ours;
        }
        Standing::Foreign(noun(facts.file_type()))
    }

    /// Writes it again, where there must be nothing.
    fn restore(&mut self, dir: &Path) -> io::Result<()> {
        let path = dir.join(self.name);
        let mut beside = tempfile::Builder::new()
            .prefix(self.name)
            .permissions(fs::Permissions::from_mode(self.mode))
            .tempfile_in(dir)?;
        beside.write_all(&self.text)?;
        beside.as_file().sync_all()?;
        beside.persist_noclobber(&path)?;
        self.mark = Mark::of(&fs::metadata(&path)?);
        Ok(())
    }
}

impl StateDir {
    /// Takes the directory, makes it if it is not there, and reads what is kept.
    pub(crate) fn open(path: &Path) -> Result<(StateDir, Kept), Fault> {
        let shown = path.display();
        make(path)?;
        let guard = Guard::take(&path.join("lock"), "state directory", &shown.to_string())?;
        let mut dir = StateDir { path: path.to_owned(), unknown: Unknown::default(), own: Vec::new(), guard };
        let kept = dir.read()?;
        if dir.file().exists() {
            dir.also(FILE)?;
        }
        Ok((dir, kept))
    }

    /// Sees to a file of the directory from now on, as it is.
    pub(crate) fn also(&mut self, name: &'static str) -> Result<(), Fault> {
        let path = self.path.join(name);
        let read = crate::host::input::read(&path).and_then(|text| Ok((text, fs::metadata(&path)?)));
        let (text, facts) =
            read.map_err(|error| Fault::system(format!("cannot read {}", path.display()), error))?;
        self.own.retain(|own| own.name != name);
        let mode = facts.permissions().mode() & PERMISSIONS;
        self.own.push(Own { name, text, mode, mark: Mark::of(&facts) });
        Ok(())
    }

    /// Looks at the directory and what it holds, and makes again what is gone.
    pub(crate) fn look_after(&mut self) -> Vec<Finding> {
        let StateDir { path: dir, own, guard, .. } = self;
        let mut found = Vec::new();
        if !dir.exists() {
            found.extend(Finding::of("the state directory", dir, Standing::Gone, || make(dir)));
        }
        if found.iter().any(|finding| matches!(finding, Finding::Missing(_))) {
            return found;
        }
        let lock = guard.path().to_owned();
        found.extend(Finding::of("the lock file", &lock, guard.standing(), || guard.renew()));
        for own in own {
            let (path, standing) = (dir.join(own.name), own.standing(dir));
            let finding = Finding::of("the file", &path, standing, || {
                own.restore(dir).map_err(|error| Fault::system("it cannot be written", error))
            });
            found.extend(finding.map(|finding| match finding {
                Finding::Missing(missing) if path.exists() => Finding::Missing(changed(missing)),
                other => other,
            }));
        }
        found
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self) -> PathBuf {
        self.path.join(FILE)
    }

    fn read(&mut self) -> Result<Kept, Fault> {
        let file = self.file();
        let text = match crate::host::input::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
            Err(error) => return Err(Fault::system(format!("cannot read {}", file.display()), error)),
        };
        let refuse = |why: String| {
            Fault::new(Kind::Runtime, format!("the state file {} cannot be used: {why}", file.display()))
                .at(file.display().to_string())
                .hint("mend it, or move it away to start without the devices it holds; nothing was changed")
        };
        if text.is_empty() {
            let shown = file.display();
            return Err(Fault { hint: None, ..refuse("it is empty, as a crash of the host may leave it".to_owned()) }
                .hint(format!(
                    "put a copy of it back, or rm {shown}: ringwayd then starts without the devices that operators added, which \
                     ringway dev add brings back"
                )));
        }
        let mut value: Value = serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
        if let Some(other) = value.get("format").and_then(Value::as_u64).filter(|it| *it != u64::from(FORMAT))
        {
            return Err(refuse(format!("format {other} is not known to this version, which knows {FORMAT}")));
        }
        let mut unknown = Unknown::default();
        for list in LISTS {
            let entries = value.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
            for entry in entries.filter_map(Value::as_object_mut) {
                let keys = match list {
                    "devices" => take_unknown::<DeviceEntry>(entry),
                    "ports" => take_unknown::<PortEntry>(entry),
                    _ => take_unknown::<MgmtEntry>(entry),
                };
                if let Some(key) = key_of(list, entry).filter(|_| !keys.is_empty()) {
                    unknown.entries.insert((list, key), keys);
                }
            }
        }
        let mut kept: Kept = serde_json::from_value(value).map_err(|error| refuse(error.to_string()))?;
        unknown.file = std::mem::take(&mut kept.unknown);
        let names: BTreeSet<&String> =
            unknown.entries.values().chain([&unknown.file]).flat_map(Map::keys).collect();
        if !names.is_empty() {
            tracing::warn!(
                file = %file.display(),
                "keys that this version does not know are kept and have no effect: {}",
                names.into_iter().map(|name| printable(name)).collect::<Vec<_>>().join(", ")
            );
        }
        self.unknown = unknown;
        Ok(kept)
    }

    /// Replaces what is kept. When this returns Ok, it is on disk.
    ///
    /// What somebody else wrote there is not overwritten.
    pub(crate) fn write(&mut self, kept: &Kept) -> Result<(), Fault> {
        let file = self.file();
        let dir = self.path.clone();
        let is_foreign = match self.own.iter_mut().find(|own| own.name == FILE) {
            Some(own) => matches!(own.standing(&dir), Standing::Foreign(_)),
            None => file.exists(),
        };
        if is_foreign {
            let shown = file.display().to_string();
            return Err(Fault::conflict(format!("somebody else wrote {shown}: the change was not made"))
                .at(shown)
                .hint(CHANGED_CURE));
        }
        self.replace(&file, kept).map_err(|error| {
            Fault::system(format!("cannot keep the change in {}", file.display()), error)
                .hint("mend what is named (space, permissions, or more descriptors: LimitNOFILE); the change was not made")
        })
    }

    fn replace(&mut self, file: &Path, kept: &Kept) -> io::Result<()> {
        let beside = self.path.join("devices.json.new");
        let mut value = serde_json::to_value(kept)?;
        for list in LISTS {
            let entries = value.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
            for entry in entries.filter_map(Value::as_object_mut) {
                let key = key_of(list, entry).unwrap_or_default();
                entry.extend(self.unknown.entries.get(&(list, key)).cloned().unwrap_or_default());
            }
        }
        if let Value::Object(value) = &mut value {
            value.extend(self.unknown.file.clone());
        }
        let mut text = serde_json::to_vec_pretty(&value)?;
        text.push(b'\n');
        // What can lack comes before the rename: a change that is refused is not in the file.
        let dir = File::open(&self.path)?;
        let mut new = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&beside)?;
        new.write_all(&text)?;
        new.sync_all()?;
        fs::rename(&beside, file)?;
        let facts = new.metadata()?;
        let (mark, mode) = (Mark::of(&facts), facts.permissions().mode() & PERMISSIONS);
        // Made either way; a power failure now may take it back.
        let _ = dir.sync_all();
        self.own.retain(|own| own.name != FILE);
        self.own.push(Own { name: FILE, text, mode, mark });
        Ok(())
    }
}

/// Makes the directory if it is not there.
fn make(path: &Path) -> Result<(), Fault> {
    let made = DirBuilder::new().recursive(true).mode(0o750).create(path);
    made.map_err(|error| {
        Fault::system(format!("cannot make the state directory {}", path.display()), error)
            .hint("ringwayd --state-dir DIRECTORY")
    })
}

/// How it is told that a file there says something else than this process wrote.
fn changed(missing: Missing) -> Missing {
    let why =
        format!("somebody else wrote {}: it is left alone, and has no effect yet", missing.path.display());
    Missing { why, cure: CHANGED_CURE.to_owned(), ..missing }
}

const CHANGED_CURE: &str =
    "move it away and ringwayd writes its own again; or start ringwayd anew, which then goes by that file";

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> DeviceEntry {
        DeviceEntry {
            name: name.into(),
            mgmtdev: "sim/net".into(),
            mtu: Some(9000),
            ..DeviceEntry::default()
        }
    }

    #[test]
    fn what_was_written_is_read_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::new(7, Vec::new(), Vec::new(), vec![entry("b"), entry("a")]);
        {
            let (mut state, empty) = StateDir::open(&dir.path().join("deep/er")).unwrap();
            assert_eq!(empty, Kept::default());
            state.write(&kept).unwrap();
        }
        assert_eq!(StateDir::open(&dir.path().join("deep/er")).unwrap().1, kept);
    }

    #[test]
    fn corrupt_file_is_an_error_that_names_it_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("devices.json");
        for bad in ["{\"format\":1,", "", "{\"format\":99,\"generation\":0,\"devices\":[]}"] {
            fs::write(&file, bad).unwrap();
            let fault = StateDir::open(dir.path()).unwrap_err();
            assert!(fault.to_string().contains("devices.json"), "{fault}");
            assert_eq!(fs::read_to_string(&file).unwrap(), bad);
        }
    }

    #[test]
    fn keys_of_a_newer_version_are_kept_and_written_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("devices.json");
        let newer = r#"{"format":1,"generation":3,"newkey":{"a":[1]},
            "mgmtdevs":[{"name":"bridge/b","colour":"red"}],
            "devices":[{"name":"a","mgmtdev":"sim/net","mtu":9000,"rate":7,"burst":null},{"name":"b","mgmtdev":"sim/net","rate":1}]}"#;
        fs::write(&file, newer).unwrap();
        let (mut state, mut kept) = StateDir::open(dir.path()).unwrap();
        assert_eq!((kept.devices[0].clone(), kept.devices.len()), (entry("a"), 2));
        kept.devices.truncate(1);
        kept.devices.push(entry("c"));
        state.write(&kept).unwrap();
        let back: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(back["newkey"], serde_json::json!({"a": [1]}));
        assert_eq!(back["mgmtdevs"][0]["colour"], "red");
        assert_eq!(
            (&back["devices"][0]["rate"], &back["devices"][0]["burst"]),
            (&Value::from(7), &Value::Null)
        );
        assert!(back["devices"][0].as_object().unwrap().contains_key("burst"));
        assert!(back["devices"][1].get("rate").is_none());
        drop(state);
        assert_eq!(StateDir::open(dir.path()).unwrap().1, kept);
    }

    #[test]
    fn half_written_file_of_a_crash_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("devices.json.new"), "{\"form").unwrap();
        assert_eq!(StateDir::open(dir.path()).unwrap().1, Kept::default());
    }

    #[test]
    fn second_holder_is_refused_and_the_first_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let _first = StateDir::open(dir.path()).unwrap();
        let fault = StateDir::open(dir.path()).unwrap_err();
        assert_eq!(fault.kind, Kind::Conflict);
        assert!(fault.held_by.unwrap().contains(&format!("pid {}", std::process::id())));
    }
}
