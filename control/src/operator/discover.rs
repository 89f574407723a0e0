//! The operator protocol described by itself: an OpenRPC document of every method ([`crate::operator::methods`]), with JSON
//! Schemas of the types that requests are read as and answers are written from.
//!
//! Nothing here is written by hand but names: what a field means is the documentation of the field.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use crate::fault::Kind;
use crate::operator::api::{
    ContentDescriptor, Discovered, DiscoveredComponents, DiscoveredError, DiscoveredInfo, DiscoveredMethod,
    ErrorData, Event, State, VERSION,
};
use crate::operator::methods::{METHODS, Method};

/// The version of OpenRPC that the document is written in.
const OPENRPC: &str = "1.3.2";
/// Where definitions stand in the document.
const DEFINITIONS: &str = "/components/schemas";

/// The description: the same for as long as the program runs.
pub(crate) fn document() -> &'static Discovered {
    static DOCUMENT: OnceLock<Discovered> = OnceLock::new();
    DOCUMENT.get_or_init(describe)
}

fn describe() -> Discovered {
    let mut answers = answers();
    let mut methods: Vec<DiscoveredMethod> =
        METHODS.iter().map(|method| describe_method(method, &mut answers)).collect();
    methods.sort_by(|a, b| a.name.cmp(&b.name));
    let event = answers.subschema_for::<Event>();
    answers.subschema_for::<ErrorData>();
    answers.subschema_for::<State>();
    let errors = Kind::ALL.iter().map(|kind| {
        let error = DiscoveredError { code: kind.rpc_code(), message: kind.meaning().to_owned() };
        (name_of(*kind), error)
    });
    Discovered {
        openrpc: OPENRPC.to_owned(),
        info: DiscoveredInfo {
            title: "ringwayd".to_owned(),
            version: VERSION.to_owned(),
            description: "JSON-RPC 2.0 over a Unix socket, one message a line; parameters by name".to_owned(),
        },
        methods,
        components: DiscoveredComponents {
            schemas: answers.take_definitions(true),
            errors: errors.collect(),
        },
        notifications: BTreeMap::from([("event".to_owned(), event.to_value())]),
    }
}

/// Schemas of what is written.
fn answers() -> SchemaGenerator {
    settings().for_serialize().into_generator()
}

fn settings() -> SchemaSettings {
    SchemaSettings::draft07().with(|settings| settings.definitions_path = DEFINITIONS.into())
}

fn describe_method(method: &Method, answers: &mut SchemaGenerator) -> DiscoveredMethod {
    // Parameters are named one by one, so their schemas stand where they are.
    let mut requests =
        settings().for_deserialize().with(|settings| settings.inline_subschemas = true).into_generator();
    let params = (method.params)(&mut requests).to_value();
    DiscoveredMethod {
        name: method.name.to_owned(),
        summary: method.summary.to_owned(),
        param_structure: "by-name".to_owned(),
        params: parameters(&params),
        result: ContentDescriptor {
            name: "result".to_owned(),
            description: None,
            required: true,
            schema: (method.result)(answers).to_value(),
        },
        is_change: method.is_change,
    }
}

/// The properties of an object, as parameters; what must be there first.
fn parameters(object: &Value) -> Vec<ContentDescriptor> {
    let none = Map::new();
    let properties = object["properties"].as_object().unwrap_or(&none);
    let required: Vec<&str> =
        object["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut parameters: Vec<ContentDescriptor> = properties
        .iter()
        .map(|(name, schema)| {
            let mut schema = schema.clone();
            let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
            ContentDescriptor {
                name: name.clone(),
                description: description.and_then(|text| text.as_str().map(str::to_owned)),
                required: required.contains(&name.as_str()),
                schema,
            }
        })
        .collect();
    parameters.sort_by_key(|parameter| !parameter.required);
    parameters
}

/// The name of a kind of error, as it stands in an error's data.
pub(crate) fn name_of(kind: Kind) -> String {
    serde_json::to_value(kind).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_and_every_parameter_says_what_it_is() {
        let document = document();
        assert_eq!(document.methods.len(), METHODS.len());
        for method in &document.methods {
            assert!(!method.summary.is_empty(), "{}", method.name);
            for parameter in &method.params {
                let description = parameter.description.as_deref().unwrap_or_default();
                assert!(!description.is_empty(), "{} {}", method.name, parameter.name);
            }
        }
        let add = document.methods.iter().find(|method| method.name == "dev.add").unwrap();
        let required: Vec<&str> = add
            .params
            .iter()
            .filter(|parameter| parameter.required)
            .map(|parameter| parameter.name.as_str())
            .collect();
        assert_eq!(required, ["name", "mgmtdev"]);
        assert!(add.is_change);
    }

    #[test]
    fn no_two_methods_have_one_name() {
        for (n, method) in METHODS.iter().enumerate() {
            assert!(METHODS[..n].iter().all(|other| other.name != method.name), "{}", method.name);
        }
    }

    #[test]
    fn every_reference_leads_to_a_definition_and_every_definition_is_referred_to() {
        let text = serde_json::to_string(document()).unwrap();
        let referred: std::collections::BTreeSet<&str> = text
            .split("\"$ref\":\"#/components/schemas/")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        let defined: std::collections::BTreeSet<&str> =
            document().components.schemas.keys().map(String::as_str).collect();
        let beside: Vec<&&str> = defined.symmetric_difference(&referred).collect();
        // What every error carries, and what `inspect` reads parts of, stand in no method.
        assert_eq!(beside, [&"ErrorData", &"State"]);
    }
}
