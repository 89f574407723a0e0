//! The reference: every counter, drop, fault, metric, event, setting, attribute and method, from the code that has them. One list
//! of sections, written as a page (`docs/reference.md`) and as a manual page (ringway-reference(7)).
//!
//! What a field means is the documentation of its type, as the protocol's description has it (`crate::operator::discover`).

use std::fmt::Write as _;

use ringway_pmd::counters::DropReason;
use ringway_pmd::vdpa::Class;
use ringway_ring::queue::RingFault;
use serde_json::Value;

use crate::fault::Kind;
use crate::frontends::cures::{BREACHES, HOST_FAILURES, Told};
use crate::operator::api::{ContentDescriptor, VERSION};
use crate::operator::cli::keywords::{KEYWORDS, PORT_KEYWORDS, STATE};
use crate::operator::discover;
use crate::operator::metrics;
use crate::operator::show::{drop_meaning, fault_cure};

/// A part of the reference.
pub(crate) struct Section {
    pub(crate) title: &'static str,
    /// What stands in it.
    pub(crate) about: String,
    /// What the columns are called behind the first.
    pub(crate) columns: &'static [&'static str],
    pub(crate) rows: Vec<Row>,
}

/// A thing: its name, and what the columns have of it.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) cells: Vec<String>,
}

fn row(name: impl Into<String>, cells: impl IntoIterator<Item = impl Into<String>>) -> Row {
    Row { name: name.into(), cells: cells.into_iter().map(Into::into).collect() }
}

/// All sections.
pub(crate) fn sections() -> Vec<Section> {
    let mut sections = counters();
    sections.extend([drops(), faults(), breaches(), host_failures(), metrics_told(), events()]);
    sections.extend(settings());
    sections.extend([attributes(), methods(), errors()]);
    sections.extend(types());
    sections
}

/// The page `docs/reference.md`.
pub fn page() -> String {
    let mut page = format!(
        "# Reference\n\n\
         Every counter, drop, fault, metric, event, setting, attribute and method of this version, with the protocol's version {VERSION}. It is made \
         from the code, and a test holds it to that; it is written anew by `RINGWAY_WRITE_REFERENCE=1 cargo test -p ringway-control --lib reference`. The same is in \
         ringway-reference(7); the commands are in ringway(8), the options of the daemon in ringwayd(8).\n",
    );
    for section in sections() {
        let _ = write!(page, "\n## {}\n\n{}\n", section.title, section.about);
        if section.rows.is_empty() {
            continue;
        }
        let columns = std::iter::once("name").chain(section.columns.iter().copied());
        let columns: Vec<&str> = columns.collect();
        let _ = write!(page, "\n| {} |\n|{}\n", columns.join(" | "), " --- |".repeat(columns.len()));
        for row in section.rows {
            let cells: Vec<String> =
                row.cells.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect();
            let _ = writeln!(page, "| `{}` | {} |", row.name, cells.join(" | "));
        }
    }
    page
}

/// The fields of a type of the protocol: their names, what they are, and what they mean.
fn fields(of: &str) -> Vec<(String, &'static Value)> {
    let schema = discover::document().components.schemas.get(of);
    let fields = schema.and_then(|schema| schema["properties"].as_object());
    fields.into_iter().flatten().map(|(name, field)| (name.clone(), field)).collect()
}

fn description(field: &Value) -> String {
    field["description"].as_str().unwrap_or_default().replace('\n', " ")
}

/// What a value is, in a word.
pub(crate) fn type_of(schema: &Value) -> String {
    let referred =
        |schema: &Value| schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()).map(str::to_owned);
    if let Some(name) = referred(schema) {
        return name;
    }
    if let Some(variants) =
        schema["anyOf"].as_array().or(schema["oneOf"].as_array()).or(schema["allOf"].as_array())
    {
        let mut variants: Vec<String> = variants.iter().map(type_of).filter(|kind| kind != "null").collect();
        variants.dedup();
        return variants.join(" or ");
    }
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
        return values.join(", ");
    }
    if let Some(value) = schema["const"].as_str() {
        return value.to_owned();
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
        kind => kind.as_str(),
    };
    match kind {
        Some("array") => format!("list of {}", type_of(&schema["items"])),
        Some("object") if schema["additionalProperties"].is_object() => {
            format!("object of {} by name", type_of(&schema["additionalProperties"]))
        }
        Some(kind) => kind.to_owned(),
        None => "anything".to_owned(),
    }
}

/// The numbers of the types that count.
fn counters() -> Vec<Section> {
    let told = [
        (
            "Counters of a queue",
            "QueueInfo",
            "`dev vstats show`, `.vstats.NAME.queues[]`. Each is written by the thread that serves the queue and only grows, from when the device was added.",
        ),
        (
            "Counters of a disk's requests",
            "RequestInfo",
            "`dev vstats show` of a disk, `.requests[]` of a queue, by kind of request.",
        ),
        ("Counters of a device", "History", "`dev show`, `.dev.NAME.history`."),
        ("Counters of a worker", "CoreInfo", "`core show`, `.core.N`."),
        (
            "Counters of a pump",
            "PumpInfo",
            "`core show`, `.core.N.pumps[]`. They begin anew whenever the pump is made anew.",
        ),
        ("What a front-end has", "FrontEnd", "`dev show`, `.dev.NAME.front_end`."),
        ("What a ring is like", "Ring", "`dev show`, `.dev.NAME.rings[]`."),
    ];
    let section = |(title, of, about): (&'static str, &str, &str)| Section {
        title,
        about: about.to_owned(),
        columns: &["type", "meaning"],
        rows: fields(of)
            .into_iter()
            .map(|(name, field)| row(name, [type_of(field), description(field)]))
            .collect(),
    };
    told.into_iter().map(section).collect()
}

fn drops() -> Section {
    let class = |reason: &DropReason| {
        let classes = [(Class::Net, "network"), (Class::Block, "disk")];
        let of = classes.into_iter().find(|(class, _)| DropReason::of(*class).contains(reason));
        of.map_or("", |(_, name)| name)
    };
    let told =
        |reason: &DropReason| row(reason.name(), [class(reason), drop_meaning(*reason), reason.cure()]);
    Section {
        title: "Drops",
        about: "What a queue did not pass on, without fault of its ring, by reason: `.drops` of a queue, and `ringway_queue_drops_total` with the label \
                `reason`. Counted at the queue of whom it concerns: what is wrong with a frame at its sender's, want of room at its receiver's."
            .to_owned(),
        columns: &["of a", "meaning", "what clears it"],
        rows: DropReason::ALL.iter().map(told).collect(),
    }
}

fn faults() -> Section {
    let told = |fault: &RingFault| row(fault.name(), [fault.to_string(), fault_cure(*fault).to_owned()]);
    Section {
        title: "Faults of rings",
        about: "What stops a ring, and it alone, until it is started anew: `.faults` of a queue, `.ring_faults` of a device, the event `ring.fault`, \
                and `ringway_queue_faults_total` with the label `reason`."
            .to_owned(),
        columns: &["meaning", "what clears it"],
        rows: RingFault::ALL.iter().map(told).collect(),
    }
}

fn by_name(all: &[Told]) -> Vec<Row> {
    all.iter().map(|told| row(told.name, [told.meaning, told.cure])).collect()
}

fn breaches() -> Section {
    Section {
        title: "Breaches of front-ends",
        about: "What a front-end (the VMM) did against vhost-user, or asked for and cannot have, by name: `.dev.NAME.history.breaches`, the event \
                `session.breach`, and `ringway_device_breaches_total` with the label `reason`. `last_breach` has the detail."
            .to_owned(),
        columns: &["meaning", "what clears it"],
        rows: by_name(&BREACHES),
    }
}

fn host_failures() -> Section {
    Section {
        title: "Failures of the host",
        about: "What this host lacked that a session needed, without fault of its front-end, by name: `.dev.NAME.history.host_failures`, the event \
                `session.host_failed`, and `ringway_device_host_failures_total` with the label `reason`. `last_host_failure` has the detail."
            .to_owned(),
        columns: &["meaning", "what clears it"],
        rows: by_name(&HOST_FAILURES),
    }
}

fn metrics_told() -> Section {
    let of_types = metrics::SOURCES.iter().flat_map(|(of, name, labels)| {
        fields(of).into_iter().filter_map(move |(field, schema)| {
            let numbers = schema["additionalProperties"].is_object() || type_of(schema) == "object";
            let kind = metrics::kind_of(&field, numbers || type_of(schema) == "integer")?;
            let labels = if numbers { format!("{labels}, reason") } else { (*labels).to_owned() };
            let suffix = if kind == "counter" { "_total" } else { "" };
            Some(row(
                format!("ringway_{name}_{field}{suffix}"),
                [kind.to_owned(), labels, description(schema)],
            ))
        })
    });
    let own = metrics::OWN.iter().map(|(name, kind, labels, meaning)| row(*name, [*kind, *labels, *meaning]));
    Section {
        title: "Metrics",
        about: "What Prometheus scrapes (`ringwayd --metrics`). Those of queues, devices and workers are the numbers above, each under its own name."
            .to_owned(),
        columns: &["type", "labels", "meaning"],
        rows: of_types.chain(own).collect(),
    }
}

fn events() -> Section {
    Section {
        title: "Events",
        about: "`ringway events`. Each has `seq`, `time_ns`, `type`, mostly `dev`, and what is particular to it; one with `try` is a warning in the log."
            .to_owned(),
        columns: &["meaning"],
        rows: crate::operator::events::MEANINGS.iter().map(|(kind, meaning)| row(*kind, [*meaning])).collect(),
    }
}

fn settings() -> Vec<Section> {
    let daemon = crate::operator::config::DAEMON_KEYS
        .iter()
        .map(|key| row(*key, [crate::operator::cli::docs::daemon_key_help(key)]));
    let device = KEYWORDS.iter().map(|keyword| {
        let when = if keyword.is_settable { "also of `dev set`" } else { "" };
        row(keyword.name, [keyword.value, keyword.help, when])
    });
    let port =
        PORT_KEYWORDS.iter().chain([&STATE]).map(|keyword| row(keyword.name, [keyword.value, keyword.help]));
    vec![
        Section {
            title: "Settings of the daemon",
            about: "The table `[daemon]` of the configuration file. An unknown key is an error.".to_owned(),
            columns: &["meaning"],
            rows: daemon.collect(),
        },
        Section {
            title: "Keywords of devices",
            about: "Of `ringway dev add`, and keys of `[[device]]` in the configuration file; what a management device declares beside, is below."
                .to_owned(),
            columns: &["value", "meaning", ""],
            rows: device.collect(),
        },
        Section {
            title: "Keywords of ports",
            about: "Of `ringway port add` and `ringway port function set`, and keys of `[[port]]`.".to_owned(),
            columns: &["value", "meaning"],
            rows: port.collect(),
        },
    ]
}

fn attributes() -> Section {
    let known = crate::devices::drivers::known();
    let on_buses = known.buses.iter().flat_map(|bus| {
        let name = format!("{}/{}", bus.info.name, bus.info.shape);
        bus.at_most.iter().map(move |info| (format!("{name} ({})", info.class.class_name()), info, &[][..]))
    });
    let of_drivers = known.mgmtdevs.iter().map(|info| (info.name.clone(), info, &[][..])).chain(on_buses);
    let kinds =
        known.kinds.iter().map(|kind| (format!("{}/NAME", kind.name), &kind.device, &kind.attributes[..]));
    let mut rows = Vec::new();
    for (name, info, settings) in of_drivers.chain(kinds) {
        // Several drivers of one bus may say the same.
        if rows
            .iter()
            .any(|other: &Row| other.name == name && other.cells.last().is_some_and(|it| it == info.summary))
        {
            continue;
        }
        let functions = info.functions.as_ref().map_or(&[][..], |functions| &functions.attributes);
        rows.push(row(name.clone(), ["", "", info.summary]));
        for (command, attributes) in
            [("dev add", &info.attributes[..]), ("mgmtdev add", settings), ("port function set", functions)]
        {
            for attribute in attributes {
                rows.push(row(
                    format!("{name} {}", attribute.name),
                    [command, attribute.value, attribute.help],
                ));
            }
        }
    }
    Section {
        title: "Management devices and their attributes",
        about: "What each management device declares of the devices, of itself and of the functions that can be made of it.".to_owned(),
        columns: &["of", "value", "meaning"],
        rows,
    }
}

fn methods() -> Section {
    let parameter = |parameter: &ContentDescriptor| {
        let kind = type_of(&parameter.schema);
        let name = if parameter.required { parameter.name.clone() } else { format!("[{}]", parameter.name) };
        format!("{name}: {kind}")
    };
    let rows = discover::document().methods.iter().map(|method| {
        let parameters: Vec<String> = method.params.iter().map(parameter).collect();
        let changes = if method.is_change { "changes" } else { "" };
        row(
            method.name.clone(),
            [
                parameters.join("; "),
                type_of(&method.result.schema),
                changes.to_owned(),
                method.summary.clone(),
            ],
        )
    });
    Section {
        title: "Methods",
        about: "JSON-RPC 2.0 on the operator socket, one message a line, parameters by name; those in brackets may be left out. `ringway rpc discover` \
                has the JSON Schema of each. What `changes` something is logged with who asked."
            .to_owned(),
        columns: &["parameters", "answer", "", "meaning"],
        rows: rows.collect(),
    }
}

fn errors() -> Section {
    let rows = Kind::ALL.iter().map(|kind| {
        row(
            discover::name_of(*kind),
            [kind.exit_code().to_string(), kind.rpc_code().to_string(), kind.meaning().to_owned()],
        )
    });
    Section {
        title: "Errors",
        about: "The `kind` of an error, the exit code of `ringway`, and the code of JSON-RPC. With `-j` an error is an object on a line of standard error."
            .to_owned(),
        columns: &["exit code", "code", "meaning"],
        rows: rows.collect(),
    }
}

/// The types of the protocol that are not in a section of their own.
fn types() -> Vec<Section> {
    let schemas = &discover::document().components.schemas;
    let rows = schemas.iter().flat_map(|(of, schema)| {
        let about = row(of.clone(), [type_of(schema), description(schema)]);
        let fields = fields(of);
        std::iter::once(about).chain(
            fields
                .into_iter()
                .map(move |(name, field)| row(format!("{of}.{name}"), [type_of(field), description(field)])),
        )
    });
    vec![Section {
        title: "Types",
        about: "The answers of methods, and what is in them.".to_owned(),
        columns: &["type", "meaning"],
        rows: rows.collect(),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_of_the_documents_is_that_of_the_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference.md");
        if std::env::var_os("RINGWAY_WRITE_REFERENCE").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        let made = page();
        let first = written.lines().zip(made.lines()).find(|(written, made)| written != made);
        assert!(
            written == made,
            "docs/reference.md is old: RINGWAY_WRITE_REFERENCE=1 cargo test -p ringway-control --lib reference; {first:?}"
        );
    }

    #[test]
    fn every_row_says_what_it_means_and_stands_once() {
        for section in sections() {
            let mut names = std::collections::BTreeSet::new();
            assert!(!section.rows.is_empty(), "{}", section.title);
            for row in section.rows {
                assert_eq!(row.cells.len(), section.columns.len(), "{} {}", section.title, row.name);
                let meaning = section.columns.iter().position(|column| *column == "meaning").unwrap();
                // A type of the protocol may have none of its own, where its values have.
                let may_lack = section.title == "Types" && !row.name.contains('.');
                assert!(may_lack || !row.cells[meaning].is_empty(), "{} {}", section.title, row.name);
                assert!(names.insert((row.name.clone(), row.cells)), "{} {} twice", section.title, row.name);
            }
        }
    }

    #[test]
    fn manual_page_has_every_name() {
        let page = crate::operator::cli::docs::reference_page()
            .replace("\\-", "-")
            .replace("\\fB", "")
            .replace("\\fR", "");
        for row in sections().into_iter().flat_map(|section| section.rows) {
            assert!(page.contains(&row.name), "{}", row.name);
        }
    }
}
