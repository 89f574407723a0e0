//! All that there is, read by path: `devices/vm0/queues/0/drops`, `cores/*/busy_cycles`.
//!
//! It is one document ([`State`]), put together of what `show` has: there is no second view. Only the parts that a path leads
//! into are made, one thing after another, until the answer is as long as an answer may be or took as long as it may: what is left
//! out is told. On the control thread; changes nothing.
//!
//! [`State`]: crate::operator::api::State

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::daemon::Daemon;
use crate::devices::device::Device;
use crate::fault::{Fault, Kind, nearest, printable};
use crate::operator::api::{DeviceState, Inspect, Inspected, Queue, Select};
use crate::operator::role::Role;
use crate::operator::show::kind_info;

/// The parts of the document.
pub(crate) const PARTS: [&str; 8] =
    ["daemon", "mgmtdevs", "kinds", "ports", "devices", "cores", "absent", "draining"];

/// Bytes of an answer, and how long control goes on to make it; beyond the first one that does not fit nothing is looked at.
const LONGEST_ANSWER: usize = 4 << 20;
const LONGEST_LOOK: Duration = Duration::from_millis(100);

impl Daemon {
    /// What stands at a path.
    pub(crate) fn inspect(&mut self, asked: &Inspect, role: Role) -> Result<Inspected, Fault> {
        let path = match asked.path.trim_matches('/') {
            "" => "*",
            path => path,
        };
        let mut parts: Vec<(&'static str, &str)> =
            PARTS.into_iter().filter_map(|part| Some((part, rest_behind(part, path)?))).collect();
        // There are the most of them: the others have their place before.
        parts.sort_by_key(|(part, _)| *part == "devices");
        let mut found = Found::new(LONGEST_ANSWER, Instant::now() + LONGEST_LOOK);
        self.look_into(&parts, role, &mut found)?;
        // A part that has nothing in it is there.
        for (part, _) in parts.iter().filter(|(_, rest)| rest.is_empty()) {
            found.state.entry(*part).or_insert_with(|| Value::Object(Map::new()));
        }
        if !found.state.is_empty() || !found.left_out.is_empty() {
            return Ok(Inspected { state: found.state, left_out: found.left_out });
        }
        let fault =
            Fault::not_found(format!("there is nothing at `{}`", printable(path))).at("path").given(path);
        let first = path.split('/').next().unwrap_or(path);
        Err(match (parts.is_empty(), path.rsplit_once('/')) {
            (false, Some((above, _))) => fault.hint(format!("ringway inspect {above} shows what is there")),
            _ => match nearest(first, PARTS) {
                Some(near) => fault.expected(PARTS).hint(format!("did you mean {near}?")),
                None => fault.expected(PARTS).hint(format!("one of: {}", PARTS.join(", "))),
            },
        })
    }

    fn look_into(
        &mut self,
        parts: &[(&'static str, &str)],
        role: Role,
        found: &mut Found,
    ) -> Result<(), Fault> {
        for &(part, rest) in parts {
            match part {
                "daemon" => found.one(part, rest, &self.hello(role))?,
                "mgmtdevs" => {
                    let all = self.registry.mgmtdevs();
                    let all: Vec<_> = all.map(|mgmtdev| (mgmtdev, mgmtdev.device.info())).collect();
                    let names = all.iter().map(|(_, info)| info.name.as_str());
                    found.each(part, rest, names, |nth| {
                        let (mgmtdev, info) = &all[nth];
                        to_value(&self.mgmtdev_info(mgmtdev, info))
                    })?;
                }
                "kinds" => {
                    let kinds: Vec<_> = self.registry.known().kinds.iter().map(kind_info).collect();
                    found.all(part, rest, &kinds)?;
                }
                "ports" => {
                    let made = self.ports.iter().enumerate().filter(|(_, port)| port.why.is_none());
                    let made: Vec<(usize, String)> =
                        made.map(|(at, port)| (at, port.entry.handle())).collect();
                    let names = made.iter().map(|(_, handle)| handle.as_str());
                    found.each(part, rest, names, |nth| to_value(&self.port_info(made[nth].0)?))?;
                }
                "cores" => {
                    let cores = self.engine.cores();
                    let names: Vec<String> = cores.iter().map(usize::to_string).collect();
                    let gone = || Fault::not_found("the worker is gone");
                    found.each(part, rest, names.iter().map(String::as_str), |nth| {
                        let worker = self.engine.worker(cores[nth]).ok_or_else(gone)?;
                        to_value(&self.core_info(worker))
                    })?;
                }
                "draining" => {
                    let all = self.draining.iter();
                    let all: Vec<(String, String)> =
                        all.filter_map(|(name, health)| Some((name.clone(), health.under_way()?))).collect();
                    found.all(part, rest, &all)?;
                }
                "absent" => {
                    let mgmtdevs = self.absent_mgmtdevs.iter();
                    let mgmtdevs = mgmtdevs.map(|absent| (absent.entry.name.clone(), absent.why.clone()));
                    let ports =
                        self.ports.iter().filter_map(|port| Some((port.entry.handle(), port.why.clone()?)));
                    let devices =
                        self.absent.iter().map(|absent| (absent.entry.name.clone(), absent.why.clone()));
                    let all: Vec<(String, String)> = mgmtdevs.chain(ports).chain(devices).collect();
                    found.all(part, rest, &all)?;
                }
                _ => {
                    let names: Vec<&str> = self.registry.devices().map(Device::name).collect();
                    let state = |nth: usize| to_value(&self.device_state(names[nth])?);
                    found.each(part, rest, names.iter().copied(), state)?;
                }
            }
        }
        Ok(())
    }

    fn device_state(&self, name: &str) -> Result<DeviceState, Fault> {
        let gone = || Fault::not_found("the device is gone");
        let select = || Select { name: Some(name.to_owned()) };
        let take = |(_, value)| value;
        let info = self.show_devices(select())?.dev.0.pop().map(take).ok_or_else(gone)?;
        let config = self.show_config(select())?.config.0.pop().map(|(_, config)| config).ok_or_else(gone)?;
        let shown = self.show_vstats(Queue { name: name.to_owned(), qidx: None })?.vstats.0;
        let queues = shown.into_iter().flat_map(|(_, stats)| stats.into_queues());
        let queues = queues.map(|queue| (queue.qidx.to_string(), queue)).collect();
        Ok(DeviceState { info, config, queues })
    }
}

/// What was found, within its bounds.
struct Found {
    state: Map<String, Value>,
    /// Bytes that there is room for.
    room: usize,
    until: Instant,
    left_out: Vec<String>,
}

/// Why no more is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    Bytes,
    Time,
}

impl Full {
    fn why(self) -> String {
        match self {
            Full::Bytes => format!("an answer has {} MiB at most", LONGEST_ANSWER >> 20),
            Full::Time => format!("it is looked for {} ms at most", LONGEST_LOOK.as_millis()),
        }
    }
}

impl Found {
    fn new(room: usize, until: Instant) -> Found {
        Found { state: Map::new(), room, until, left_out: Vec::new() }
    }

    /// A part that is one thing.
    fn one(&mut self, part: &str, rest: &str, value: &impl Serialize) -> Result<(), Fault> {
        if let Err(full) = self.select(&to_value(value)?, rest, part) {
            self.left_out.push(format!("{part} is left out: {}", full.why()));
        }
        Ok(())
    }

    /// A part that is many things by name.
    fn all<T: Serialize>(&mut self, part: &str, rest: &str, all: &[(String, T)]) -> Result<(), Fault> {
        self.each(part, rest, all.iter().map(|(name, _)| name.as_str()), |nth| to_value(&all[nth].1))
    }

    /// The same, each made when its turn comes: those alone that the path leads into. `make` is given their place among the names.
    fn each<'n>(
        &mut self,
        part: &str,
        rest: &str,
        names: impl Iterator<Item = &'n str>,
        mut make: impl FnMut(usize) -> Result<Value, Fault>,
    ) -> Result<(), Fault> {
        let is_wanted = |(_, name): &(usize, &str)| rest.is_empty() || rest_behind(name, rest).is_some();
        let wanted: Vec<(usize, &str)> = names.enumerate().filter(is_wanted).collect();
        let total = wanted.len();
        for (nth, (at, name)) in wanted.into_iter().enumerate() {
            let put = match Instant::now() < self.until {
                true => self.put(part, rest, name, make(at)?),
                false => Err(Full::Time),
            };
            if let Err(full) = put {
                let why = full.why();
                let how = format!("a narrower path has the others, as {part}/{name}");
                self.left_out.push(format!("{part}: {nth} of {total} are here, as {why}; {how}"));
                break;
            }
        }
        Ok(())
    }

    fn put(&mut self, part: &str, rest: &str, name: &str, value: Value) -> Result<(), Full> {
        if !rest.is_empty() {
            let below = rest_behind(name, rest).unwrap_or_default();
            return self.select(&value, below, &format!("{part}/{name}"));
        }
        self.take_room(name, &value)?;
        let whole = self.state.entry(part).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(whole) = whole {
            whole.insert(name.to_owned(), value);
        }
        Ok(())
    }

    /// Everything in a value that a path leads to, by the path that it has.
    fn select(&mut self, value: &Value, path: &str, at: &str) -> Result<(), Full> {
        if path.is_empty() {
            self.take_room(at, value)?;
            self.state.insert(at.to_owned(), value.clone());
            return Ok(());
        }
        let mut go_on = |key: &str, value: &Value| match rest_behind(key, path) {
            Some(rest) => self.select(value, rest, &format!("{at}/{key}")),
            None => Ok(()),
        };
        match value {
            Value::Object(fields) => fields.iter().try_for_each(|(key, value)| go_on(key, value)),
            Value::Array(values) => {
                let mut values = values.iter().enumerate();
                values.try_for_each(|(index, value)| go_on(&index.to_string(), value))
            }
            _ => Ok(()),
        }
    }

    /// Takes room for a value and its path, as they are written.
    fn take_room(&mut self, path: &str, value: &Value) -> Result<(), Full> {
        let mut bytes = Bytes(path.len() + SIGNS);
        // Nothing that it writes to fails.
        let _ = serde_json::to_writer(&mut bytes, value);
        self.room = self.room.checked_sub(bytes.0).ok_or(Full::Bytes)?;
        Ok(())
    }
}

/// Quotes, colon and comma around a path and its value.
const SIGNS: usize = 4;

/// Counts what is written.
struct Bytes(usize);

impl Write for Bytes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn to_value(value: &impl Serialize) -> Result<Value, Fault> {
    serde_json::to_value(value).map_err(|error| Fault::new(Kind::Runtime, error.to_string()))
}

/// What of a path is left behind a key, which may have slashes of its own. None: it leads elsewhere.
fn rest_behind<'p>(key: &str, path: &'p str) -> Option<&'p str> {
    match path.strip_prefix(key) {
        Some("") => return Some(""),
        Some(rest) if rest.starts_with('/') => return Some(&rest[1..]),
        _ => {}
    }
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    (first.contains('*') && is_like(first, key)).then_some(rest)
}

/// Whether a key is like a pattern, in which `*` stands for anything.
fn is_like(pattern: &str, key: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut left) = parts.next().and_then(|begin| key.strip_prefix(begin)) else { return false };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return left.ends_with(part);
        }
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_lead_through_keys_with_slashes_lists_and_patterns() {
        let whole = json!({ "mgmtdevs": { "bridge/br0": { "a": 1 }, "bridge/br1": { "a": 2 } }, "list": [{ "x": 3 }, { "x": 4 }] });
        let found = |path: &str| {
            let mut found = Found::new(LONGEST_ANSWER, Instant::now() + LONGEST_LOOK);
            for (part, value) in whole.as_object().unwrap() {
                rest_behind(part, path).map(|rest| found.select(value, rest, part));
            }
            Value::Object(found.state).to_string()
        };
        assert_eq!(found("mgmtdevs/bridge/br0/a"), r#"{"mgmtdevs/bridge/br0/a":1}"#);
        assert_eq!(found("mgmtdevs/*/a"), r#"{"mgmtdevs/bridge/br0/a":1,"mgmtdevs/bridge/br1/a":2}"#);
        assert_eq!(found("list/1/x"), r#"{"list/1/x":4}"#);
        assert_eq!(found("list/*/x"), r#"{"list/0/x":3,"list/1/x":4}"#);
        assert_eq!(found("l*/0"), r#"{"list/0":{"x":3}}"#);
        assert_eq!(found("list/2"), "{}");
        assert_eq!(found("mgmtdevs/bridge"), "{}");
        assert_eq!(found("list/0/x/y"), "{}");
    }

    #[test]
    fn answer_has_so_many_bytes_and_takes_so_long_and_what_is_left_out_is_told() {
        let all: Vec<(String, Value)> =
            (0..10).map(|nth| (format!("vm{nth}"), json!({ "x": "y".repeat(90) }))).collect();
        let in_time = || Instant::now() + Duration::from_secs(60);
        // `"vm0":{"x":"..."},` of each.
        for (rest, bytes) in [("", 105), ("*/x", 109), ("vm*", 113)] {
            let mut found = Found::new(3 * bytes, in_time());
            found.all("devices", rest, &all).unwrap();
            let [told] = &found.left_out[..] else { panic!("{:?}", found.left_out) };
            let expected = "devices: 3 of 10 are here, as an answer has 4 MiB at most; a narrower path has the others, as devices/vm3";
            assert_eq!(told, expected, "{rest}");
            let written = Value::Object(found.state).to_string();
            assert!(written.contains("vm2") && !written.contains("vm3"), "{written}");
            assert!(written.len() <= 3 * bytes + "{\"devices\":{}}".len(), "{} {rest}", written.len());
            let mut found = Found::new(10 * bytes, in_time());
            found.all("devices", rest, &all).unwrap();
            assert!(found.left_out.is_empty() && found.room == 0, "{rest} {}", found.room);
        }
        let mut found = Found::new(LONGEST_ANSWER, Instant::now());
        found
            .all("cores", "1*", &[("1", 5), ("2", 6), ("12", 7)].map(|(name, n)| (name.to_owned(), n)))
            .unwrap();
        let expected = "cores: 0 of 2 are here, as it is looked for 100 ms at most; a narrower path has the others, as cores/1";
        assert_eq!((found.left_out, found.state.len()), (vec![expected.to_owned()], 0));
    }

    #[test]
    fn what_the_path_does_not_lead_into_or_comes_too_late_is_not_made() {
        let made = |rest: &str, until: Instant| {
            let (mut found, mut made) = (Found::new(LONGEST_ANSWER, until), Vec::new());
            let make = |at| {
                made.push(at);
                Ok(json!({ "x": at }))
            };
            found.each("mgmtdevs", rest, ["bridge/br0", "bridge/br1", "link/l"].into_iter(), make).unwrap();
            (made, found.state.len() + found.left_out.len())
        };
        let in_time = Instant::now() + Duration::from_secs(60);
        assert_eq!(made("bridge/br1/x", in_time), (vec![1], 1));
        assert_eq!(made("bridge/*", in_time), (vec![], 0));
        assert_eq!(made("bridge/br2", in_time), (vec![], 0));
        assert_eq!(made("l*", in_time), (vec![2], 1));
        assert_eq!(made("*", in_time).0, [0, 1, 2]);
        assert_eq!(made("", Instant::now()), (vec![], 1));
    }

    #[test]
    fn star_stands_for_anything() {
        for (pattern, key, is) in [
            ("*", "", true),
            ("*", "a/b", true),
            ("vm*", "vm12", true),
            ("vm*", "v", false),
            ("*_total", "x_total", true),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "a1c", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(is_like(pattern, key), is, "{pattern} {key}");
        }
    }
}
