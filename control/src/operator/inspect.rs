//! All that there is, read by path: `devices/vm0/queues/0/drops`, `cores/*/busy_cycles`.
//!
//! It is one document ([`State`]), put together of what `show` has: there is no second view. Only the parts that a path leads
//! into are made. On the control thread; changes nothing.

use serde_json::{Map, Value};

use crate::daemon::Daemon;
use crate::fault::{Fault, Kind, nearest, printable};
use crate::operator::api::{DeviceState, Inspect, Inspected, Named, Queue, Select, State, Vstats};
use crate::operator::role::Role;

/// The parts of the document.
pub(crate) const PARTS: [&str; 8] =
    ["daemon", "mgmtdevs", "kinds", "ports", "devices", "cores", "absent", "draining"];

impl Daemon {
    /// What stands at a path.
    pub(crate) fn inspect(&mut self, asked: &Inspect, role: Role) -> Result<Inspected, Fault> {
        let path = match asked.path.trim_matches('/') {
            "" => "*",
            path => path,
        };
        let parts: Vec<(&str, &str)> =
            PARTS.into_iter().filter_map(|part| Some((part, rest_behind(part, path)?))).collect();
        let mut state = State::default();
        for (part, rest) in &parts {
            self.fill(&mut state, part, rest, role)?;
        }
        let whole =
            serde_json::to_value(&state).map_err(|error| Fault::new(Kind::Runtime, error.to_string()))?;
        let mut found = Map::new();
        select(&whole, path, "", &mut found);
        // A part that has nothing in it is there.
        for (part, rest) in &parts {
            if rest.is_empty() && !found.contains_key(*part) {
                found.insert((*part).to_owned(), Value::Object(Map::new()));
            }
        }
        if !found.is_empty() {
            return Ok(Inspected { state: found });
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

    /// Makes a part, of the devices those that the rest of the path leads to.
    fn fill(&mut self, state: &mut State, part: &str, rest: &str, role: Role) -> Result<(), Fault> {
        match part {
            "daemon" => state.daemon = Some(self.hello(role)),
            "mgmtdevs" => state.mgmtdevs = self.show_mgmtdevs(Select::default())?.mgmtdev,
            "kinds" => state.kinds = self.show_mgmtdevs(Select::default())?.kinds,
            "ports" => state.ports = self.show_ports(&Select::default())?.port,
            "cores" => state.cores = self.show_cores().core,
            "draining" => state.draining = self.show_devices(Select::default())?.draining,
            "absent" => {
                let mgmtdevs = self.show_mgmtdevs(Select::default())?.absent.0;
                let ports = self.show_ports(&Select::default())?.absent.0;
                let devices = self.show_devices(Select::default())?.absent.0;
                state.absent = Named([mgmtdevs, ports, devices].concat());
            }
            _ => {
                let names = self.registry.devices().map(|device| device.name().to_owned());
                let wanted = names.filter(|name| rest.is_empty() || rest_behind(name, rest).is_some());
                for name in wanted.collect::<Vec<_>>() {
                    state.devices.0.push((name.clone(), self.device_state(&name)?));
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
        let shown = self.show_vstats(Queue { name: name.to_owned(), qidx: None })?.vstats.0.pop();
        let queues = match shown {
            Some((_, Vstats::All { queues })) => queues,
            _ => Vec::new(),
        };
        let queues = queues.into_iter().map(|queue| (queue.qidx.to_string(), queue)).collect();
        Ok(DeviceState { info, config, queues })
    }
}

/// Everything in a value that a path leads to, by the path that it has.
fn select(value: &Value, path: &str, at: &str, found: &mut Map<String, Value>) {
    if path.is_empty() {
        found.insert(at.to_owned(), value.clone());
        return;
    }
    let mut go_on = |key: &str, value: &Value| {
        if let Some(rest) = rest_behind(key, path) {
            let below = if at.is_empty() { key.to_owned() } else { format!("{at}/{key}") };
            select(value, rest, &below, found);
        }
    };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| go_on(key, value)),
        Value::Array(values) => {
            values.iter().enumerate().for_each(|(index, value)| go_on(&index.to_string(), value));
        }
        _ => {}
    }
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
            let mut found = Map::new();
            select(&whole, path, "", &mut found);
            Value::Object(found).to_string()
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
