//! The face of `vdpa(8)`: the same program called by that name prints its texts and keys alone and ends with its exit
//! codes, so that what was written for `vdpa(8)` runs unchanged (`ln -s ringway vdpa`).

use std::ffi::OsString;
use std::path::Path;

use clap::error::ErrorKind;
use serde_json::Value;

use crate::fault::{Fault, Kind};
use crate::operator::cli::ringway::{DevCommand, DevVstatsCommand, MgmtdevCommand, Object};

/// Whether the program was called `vdpa`.
pub(super) fn is_vdpa(args: &[OsString]) -> bool {
    args.first().and_then(|name| Path::new(name).file_name()).is_some_and(|name| name == "vdpa")
}

/// Refuses what `vdpa(8)` does not have.
pub(super) fn check(object: Option<&Object>) -> Result<(), Fault> {
    let missing = |name: &str| Err(Fault::usage(format!("Object \"{name}\" not found")));
    match object {
        Some(Object::Mgmtdev { command: Some(command) }) => {
            let word = match command {
                MgmtdevCommand::Show { .. } => return Ok(()),
                MgmtdevCommand::Add { .. } => "add",
                MgmtdevCommand::Set { .. } => "set",
                MgmtdevCommand::Del { .. } => "del",
            };
            Err(Fault::usage(format!("Command \"{word}\" not found")))
        }
        None | Some(Object::Mgmtdev { command: None }) => Ok(()),
        Some(Object::Dev { command }) => match command {
            Some(DevCommand::Add { words } | DevCommand::Set { words }) => {
                let keywords =
                    words.iter().step_by(2).map(|word| crate::operator::cli::grammar::keyword(word));
                let unknown = keywords.into_iter().find(|word| !KEYWORDS.contains(&word.as_str()));
                unknown.map_or(Ok(()), |word| Err(Fault::usage(format!("Unknown option \"{word}\""))))
            }
            Some(DevCommand::Vstats { command: DevVstatsCommand::Show { words, .. } })
                if words.is_empty() =>
            {
                Err(Fault::usage("kernel answers: Invalid argument"))
            }
            Some(DevCommand::Vstats { command: DevVstatsCommand::Show { words, .. } }) => {
                let unknown = words.iter().step_by(2).find(|word| *word != "qidx");
                unknown.map_or(Ok(()), |word| Err(Fault::usage(format!("Unknown option \"{word}\""))))
            }
            _ => Ok(()),
        },
        Some(Object::Port { .. }) => missing("port"),
        Some(Object::Bridge { .. }) => missing("bridge"),
        Some(Object::Core { .. }) => missing("core"),
        Some(Object::Top(_)) => missing("top"),
        Some(Object::Events(_)) => missing("events"),
        Some(Object::Config { .. }) => missing("config"),
        Some(Object::Why { .. }) => missing("why"),
        Some(Object::Rpc { .. }) => missing("rpc"),
        Some(Object::Capture(_)) => missing("capture"),
        Some(Object::Log { .. }) => missing("log"),
        Some(Object::Inspect { .. }) => missing("inspect"),
        Some(Object::Doctor(_)) => missing("doctor"),
        Some(Object::Bundle { .. }) => missing("bundle"),
        Some(Object::Hello) => missing("hello"),
        Some(Object::Status) => missing("status"),
        Some(Object::Wait(_)) => missing("wait"),
        Some(Object::Demo(_)) => missing("demo"),
        Some(Object::Completion { .. }) => missing("completion"),
        Some(Object::Complete { .. }) => missing("complete"),
        Some(Object::Man { .. }) => missing("man"),
    }
}

/// An answer with the keys of `vdpa(8)` alone. None: it prints nothing.
pub(super) fn json(mut answer: Value) -> Option<Value> {
    let Value::Object(top) = &mut answer else { return None };
    top.retain(|key, _| KEYS.iter().any(|(object, _)| object == key));
    for (object, things) in top.iter_mut() {
        let keys = KEYS.iter().find(|(name, _)| name == object).map_or(&[][..], |(_, keys)| keys);
        for thing in things.as_object_mut().into_iter().flat_map(|things| things.values_mut()) {
            if let Value::Object(thing) = thing {
                thing.retain(|key, _| keys.contains(&key.as_str()));
            }
        }
    }
    (!top.is_empty()).then_some(answer)
}

/// A text with the lines of `vdpa(8)` alone.
pub(super) fn text(text: &str) -> String {
    let is_its = |line: &&str| match line.strip_prefix("  ") {
        None => !line.contains(": not made: "),
        Some(rest) => LINES.iter().any(|start| rest.starts_with(start)),
    };
    let own = |line: &str| match line.split_once("features ") {
        Some((before, names)) => {
            let names: Vec<String> = names.split(' ').map(crate::operator::names::as_vdpa).collect();
            format!("{before}features {}\n", names.join(" "))
        }
        None => format!("{line}\n"),
    };
    text.lines().filter(is_its).map(own).collect()
}

/// Its usage, printed to standard error.
pub(super) const USAGE: &str = "\
Usage: vdpa [ OPTIONS ] OBJECT { COMMAND | help }
where  OBJECT := { mgmtdev | dev }
       OPTIONS := { -V[ersion] | -n[o-nice-names] | -j[son] | -p[retty] }";

/// What clap found wrong, in the words of `vdpa(8)`. Its `vstats` alone is help that fails.
pub(super) fn usage(error: &clap::Error) -> Fault {
    let text = match error.kind() {
        ErrorKind::UnknownArgument => format!("Unknown option.\n{USAGE}"),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => USAGE.to_owned(),
        _ => Fault::of_clap(error, "vdpa").message,
    };
    Fault::usage(text)
}

/// A fault in the words of `vdpa(8)`; the exit code is always 1.
pub(super) fn fault(fault: &Fault) -> String {
    let answers = match fault.kind {
        Kind::Unreachable => return "Failed to connect to vdpa Netlink".to_owned(),
        _ if fault.message.starts_with("Wrong vdpa mgmtdev") => {
            return format!("{}\n{HANDLE}", fault.message);
        }
        _ if OWN.iter().any(|start| fault.message.starts_with(start)) => return fault.message.clone(),
        Kind::NotFound => "No such device",
        Kind::Conflict => "File exists",
        Kind::Permission => "Operation not permitted",
        Kind::Timeout => "Connection timed out",
        _ => "Invalid argument",
    };
    format!("Error: vdpa: {}.\nkernel answers: {answers}", fault.message)
}

/// Keywords of `dev add` and `dev set`.
const KEYWORDS: [&str; 6] = ["name", "mgmtdev", "mac", "mtu", "max_vqp", "device_features"];
/// Objects and the keys of their things.
const KEYS: [(&str, &[&str]); 4] = [
    ("mgmtdev", &["supported_classes", "max_supported_vqs", "dev_features"]),
    ("dev", &["type", "mgmtdev", "vendor_id", "max_vqs", "max_vq_size"]),
    ("config", &["mac", "link ", "link_announce ", "max_vq_pairs", "mtu", "negotiated_features"]),
    ("vstats", &["queue_type", "received_desc", "completed_desc"]),
];
/// Indented lines.
const LINES: [&str; 4] =
    ["supported_classes ", "max_supported_vqs ", "dev_features ", "negotiated_features "];
/// What a management device's name must be.
const HANDLE: &str = "Expected \"mgmtdev_bus_name/mgmtdev_name\"\nExpected \"mgmtdev_name\"";
/// Errors that `vdpa(8)` finds itself and prints alone.
const OWN: [&str; 10] = [
    "Unknown option.",
    "Usage: vdpa ",
    "Object \"",
    "Command \"",
    "Unknown option \"",
    "management device handle not set.",
    "device name is not set.",
    "String parameter expected",
    "number expected",
    "kernel answers: ",
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_its_keys_stay_and_in_their_order() {
        let answer = json!({ "config": { "vm0": {
            "mac": "m", "link ": "up", "link_announce ": false, "provisioned": {}, "guest_mtu": 1 } }, "absent": {} });
        assert_eq!(
            json(answer).unwrap().to_string(),
            r#"{"config":{"vm0":{"mac":"m","link ":"up","link_announce ":false}}}"#
        );
        assert_eq!(json(json!({ "added": "vm0" })), None);
    }

    #[test]
    fn only_its_lines_stay() {
        let ours =
            "vm0: mac m \n  negotiated_features MAC HOST_USO\n  provisioned mac m\nvm1: not made: busy\n";
        assert_eq!(text(ours), "vm0: mac m \n  negotiated_features MAC bit_56\n");
    }

    #[test]
    fn faults_speak_its_words() {
        assert_eq!(fault(&Fault::usage("String parameter expected")), "String parameter expected");
        assert_eq!(
            fault(&Fault::not_found("there is no device `x`")),
            "Error: vdpa: there is no device `x`.\nkernel answers: No such device"
        );
    }
}
