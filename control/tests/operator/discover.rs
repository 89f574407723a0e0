//! The protocol's description of itself, held against what the daemon really takes and answers.

use std::collections::BTreeSet;

use jsonschema::Validator;
use ringway_guest::{Guest, GuestOptions};
use serde_json::{Value, json};

use crate::support::{Daemon, Wire, wait_for};

/// The description, and which methods were called.
struct Described {
    document: Value,
    called: BTreeSet<String>,
}

impl Described {
    fn by(wire: &mut Wire) -> Described {
        let document = wire.call("rpc.discover", json!({}))["result"].clone();
        Described { document, called: BTreeSet::new() }
    }

    /// A validator of a schema of the document's, whose references lead into the document.
    fn validator(&self, schema: &Value) -> Validator {
        let whole = json!({ "$schema": "http://json-schema.org/draft-07/schema#", "allOf": [schema], "components": self.document["components"] });
        jsonschema::validator_for(&whole).unwrap()
    }

    #[track_caller]
    fn check(&self, schema: &Value, value: &Value) {
        let faults: Vec<String> = self
            .validator(schema)
            .iter_errors(value)
            .map(|fault| format!("{}: {fault}", fault.instance_path))
            .collect();
        assert!(faults.is_empty(), "{faults:#?}\n{value:#}");
    }

    fn method(&self, name: &str) -> &Value {
        let methods = self.document["methods"].as_array().unwrap();
        methods.iter().find(|method| method["name"] == name).unwrap()
    }

    /// Calls a method as it is described, and holds its answer, which must be one, against its description.
    #[track_caller]
    fn call(&mut self, wire: &mut Wire, name: &str, params: Value) -> Value {
        let method = self.method(name);
        let described = method["params"].as_array().unwrap();
        for (key, value) in params.as_object().unwrap() {
            let parameter = described.iter().find(|parameter| parameter["name"] == **key);
            self.check(&parameter.unwrap_or_else(|| panic!("{name} has no {key}"))["schema"], value);
        }
        for needed in described.iter().filter(|parameter| parameter["required"] == true) {
            assert!(params.get(needed["name"].as_str().unwrap()).is_some(), "{name} needs {needed}");
        }
        let answer = wire.call(name, params);
        assert!(answer["error"].is_null(), "{name}: {answer}");
        self.check(&method["result"]["schema"], &answer["result"]);
        self.called.insert(name.to_owned());
        answer["result"].clone()
    }
}

#[test]
fn every_method_answers_as_it_is_described_and_none_is_left_out() {
    let daemon = Daemon::start();
    let mut wire = daemon.wire();
    let mut described = Described::by(&mut wire);
    let mut call = |name: &str, params: Value| described.call(&mut wire, name, params);

    call("rpc.discover", json!({}));
    call("dry_run", json!({ "method": "dev.add", "params": { "name": "a", "mgmtdev": "sim/net" } }));
    call("mgmtdev.add", json!({ "name": "simnic/nic0", "attributes": { "queues": "8" } }));
    call("port.add", json!({ "mgmtdev": "simnic/nic0", "flavour": "pcisf", "pfnum": 0, "sfnum": 7 }));
    call("port.function.set", json!({ "name": "simnic/nic0/7", "state": "active" }));
    for name in ["a", "b"] {
        call("dev.add", json!({ "name": name, "mgmtdev": "bridge/br0", "max_vqp": 1, "mtu": 1500 }));
    }
    call("mgmtdev.set", json!({ "name": "bridge/br0", "attributes": { "ageing": "60" } }));
    call("bridge.vlan.add", json!({ "dev": "a", "vid": "100", "pvid": true, "untagged": true }));
    call("bridge.vlan.add", json!({ "dev": "a", "vid": "200-210" }));
    call("bridge.vlan.show", json!({}));
    call("bridge.vlan.del", json!({ "dev": "a", "vid": "200-210" }));
    call("dev.set", json!({ "name": "a", "mac": "52:54:00:00:00:01" }));
    let disk = daemon.dir.join("disk");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    call("dev.add", json!({ "name": "disk", "mgmtdev": "file", "attributes": { "path": disk } }));
    call("dev.add", json!({ "name": "fn", "mgmtdev": "auxiliary/simnic.nic0.sf.7" }));
    let net = call("dev.add", json!({ "name": "vm0", "mgmtdev": "sim/net", "max_vqp": 2 }));

    // With a guest, so that all that there is of a device is shown.
    let mut guest =
        Guest::connect(net["socket"].as_str().unwrap().as_ref(), GuestOptions::default()).unwrap();
    while guest.turn(16).unwrap() == 0 {}
    wait_for("its rings", || daemon.device("vm0")["rings"].as_array().is_some_and(|rings| !rings.is_empty()));
    call("hello", json!({}));
    let shown = call("dev.show", json!({}));
    assert!(shown["dev"]["vm0"]["front_end"]["pid"].is_number(), "{shown:#}");
    call("dev.show", json!({ "name": "disk" }));
    call("dev.config.show", json!({}));
    call("dev.vstats.show", json!({ "name": "vm0" }));
    call("dev.vstats.show", json!({ "name": "vm0", "qidx": 1 }));
    call("dev.vstats.show", json!({ "name": "disk" }));
    let mut look = call("dev.why", json!({ "name": "vm0" }))["look"].take();
    assert!(!look["queues"].as_array().unwrap().is_empty(), "{look:#}");
    // A while ago.
    look["up_ns"] = 0.into();
    call("dev.why", json!({ "name": "vm0", "before": look }));
    call("core.show", json!({}));
    call("core.add", json!({ "core": 0 }));
    call("core.plan", json!({}));
    call("core.balance", json!({}));
    call("core.drain", json!({ "core": 0 }));
    wait_for("nothing to be on core 0", || {
        daemon.run("-j core show").json()["core"]["0"]["pumps"].as_array().is_some_and(Vec::is_empty)
    });
    call("core.del", json!({ "core": 0 }));
    call("metrics.show", json!({}));
    call("sample", json!({}));
    let state = call("inspect", json!({}))["state"].clone();
    assert!(state["devices"]["vm0"]["front_end"]["pid"].is_number(), "{state:#}");
    call("mgmtdev.show", json!({}));
    call("port.show", json!({}));
    let page = call("events", json!({ "since": 0, "types": ["dev"] }));
    assert!(page["events"].as_array().unwrap().len() > 4, "{page}");
    call("events", json!({}));
    let dump = call("config.dump", json!({}));
    let file = json!({ "file": "/f.toml", "text": dump["toml"] });
    call("config.diff", file.clone());
    call("config.apply", file);
    call("dev.del", json!({ "name": "fn" }));
    call("port.del", json!({ "name": "simnic/nic0/7" }));
    call("mgmtdev.del", json!({ "name": "simnic/nic0" }));
    call("log.set", json!({ "level": "debug", "dev": "vm0" }));
    call("log.show", json!({}));
    // It takes its connection along.
    described.call(&mut daemon.wire(), "capture", json!({ "name": "vm0", "direction": "in", "count": 1 }));

    // The whole document is of its type.
    described.check(&json!({ "$ref": "#/components/schemas/State" }), &state);
    let methods = described.document["methods"].as_array().unwrap();
    let all: BTreeSet<String> =
        methods.iter().map(|method| method["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(described.called, all, "each is called here");
    // What the dispatcher knows, in its own words.
    let refused = wire.call("zzz", json!({}));
    let known = refused["error"]["data"]["hint"].as_str().unwrap();
    assert_eq!(known.split(", ").map(str::to_owned).collect::<BTreeSet<_>>(), all);
}

#[test]
fn description_is_openrpc_with_schemas_that_are_schemas_and_refuse_what_is_none() {
    let daemon = Daemon::start();
    let document = daemon.run("rpc discover").json();
    let mut wire = daemon.wire();
    let described = Described::by(&mut wire);
    assert_eq!(document, described.document);
    assert_eq!(document["openrpc"], "1.3.2");
    assert_eq!(document["info"]["version"], wire.call("hello", json!({}))["result"]["api"]);
    let schemas = document["components"]["schemas"].as_object().unwrap();
    assert!(schemas.len() > 30, "{}", schemas.len());
    for (name, schema) in schemas {
        assert!(jsonschema::draft7::meta::is_valid(schema), "{name}");
    }
    for method in document["methods"].as_array().unwrap() {
        let parts = method["params"].as_array().unwrap().iter().chain([&method["result"]]);
        for part in parts {
            assert!(jsonschema::draft7::meta::is_valid(&part["schema"]), "{method:#}");
        }
    }
    // A validator that takes everything would prove nothing.
    let result = &described.method("dev.show")["result"]["schema"];
    let validator = described.validator(result);
    assert!(validator.is_valid(&json!({ "dev": {} })));
    assert!(!validator.is_valid(&json!({ "dev": { "vm0": {} } })) && !validator.is_valid(&json!({})));
}

#[test]
fn errors_and_events_are_as_they_are_described() {
    let daemon = Daemon::start();
    let mut wire = daemon.wire();
    let described = Described::by(&mut wire);
    let errors = described.document["components"]["errors"].as_object().unwrap().clone();
    let data = &described.document["components"]["schemas"]["ErrorData"];
    daemon.run("mgmtdev add name bridge/br0").good();
    for (method, params, kind) in [
        ("dev.add", json!({ "name": "a", "mgmtdev": "sim/net", "mtu": 5 }), "usage"),
        ("dev.del", json!({ "name": "zzz" }), "not_found"),
        ("mgmtdev.add", json!({ "name": "bridge/br0" }), "conflict"),
    ] {
        let error = &wire.call(method, params)["error"];
        assert_eq!(
            (&error["data"]["kind"], &error["code"]),
            (&json!(kind), &errors[kind]["code"]),
            "{error}"
        );
        described.check(data, &error["data"]);
    }
    assert!(wire.call("events", json!({ "follow": true }))["result"].is_object());
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let event = wire.receive();
    assert_eq!((&event["method"], &event["params"]["type"]), (&json!("event"), &json!("dev.added")));
    described.check(&described.document["x-notifications"]["event"], &event["params"]);
}
