//! The one document of all that there is, by path: what `show` and `-j` have, and nothing else.

use serde_json::{Value, json};

use crate::support::Daemon;

#[test]
fn answer_that_would_be_too_long_or_take_too_long_is_cut_and_says_so() {
    let daemon = Daemon::start();
    let mut wire = daemon.wire();
    let mut add = |nth: usize| {
        let device = json!({ "name": format!("vm{nth}"), "mgmtdev": "sim/net", "max_vqp": 16 });
        let added = wire.call("dev.add", device);
        assert!(added["result"].is_object(), "{added}");
        wire.call("inspect", json!({ "path": format!("devices/vm{nth}/queues") })).to_string().len()
    };
    let bytes = add(0);
    // More than an answer has.
    let total = (4 << 20) / bytes + 10;
    for nth in 1..total {
        add(nth);
    }
    for path in ["", "*", "devices", "devices/*", "devices/vm*/queues"] {
        let answer = wire.call("inspect", json!({ "path": path }));
        let text = answer.to_string();
        assert!(text.len() < (4 << 20) + 4096, "{path}: {} bytes", text.len());
        let left_out = answer["result"]["left_out"].as_array().unwrap();
        assert_eq!(left_out.len(), 1, "{path}: {left_out:?}");
        let told = left_out[0].as_str().unwrap();
        assert!(
            told.starts_with("devices: ") && told.contains(&format!(" of {total} are here, as ")),
            "{told}"
        );
        // The path that has it is there.
        let narrower = told.rsplit_once("as ").unwrap().1;
        let answer = wire.call("inspect", json!({ "path": narrower }))["result"].clone();
        assert!(answer["state"][narrower].is_object() && answer["left_out"].is_null(), "{narrower}");
    }
    // The parts of few things are whole.
    let whole = wire.call("inspect", json!({ "path": "*" }))["result"]["state"].clone();
    assert!(whole["daemon"].is_object() && whole["cores"].is_object() && whole["draining"].is_object());
    let done = daemon.run("inspect devices");
    assert!(done.err.contains("a narrower path has the others, as devices/vm"), "{}", done.err);
    assert!(done.good().lines().count() > 100);
}

#[test]
fn document_has_what_the_shows_have_at_its_paths() {
    let daemon = Daemon::start();
    daemon.run("dev add name vm0 mgmtdev bridge/br0 mtu 1400").good();
    daemon.run("dev add name vm1 mgmtdev sim/net max_vqp 2").good();
    daemon.run("mgmtdev add name simnic/nic0").good();
    daemon.run("port add simnic/nic0 sfnum 7").good();
    let at = |path: &str| -> Value { daemon.run(&format!("-j inspect {path}")).json()["state"].clone() };

    let config = daemon.run("-j dev config show vm0").json()["config"]["vm0"].clone();
    assert_eq!(at("devices/vm0/config"), json!({ "devices/vm0/config": config }));
    let queues = daemon.run("-j dev vstats show vm1").json()["vstats"]["vm1"]["queues"].clone();
    assert_eq!(at("devices/vm1/queues/3"), json!({ "devices/vm1/queues/3": queues[3] }));
    let shown = daemon.device("vm0");
    let whole = at("devices/vm0")["devices/vm0"].clone();
    for (key, value) in shown.as_object().unwrap() {
        assert_eq!(&whole[key], value, "{key}");
    }
    let mtus = at("devices/*/provisioned/mtu");
    assert_eq!(mtus["devices/vm0/provisioned/mtu"], 1400, "{mtus}");
    assert_eq!(mtus.as_object().unwrap().len(), 2, "{mtus}");
    let bridge = daemon.run("-j mgmtdev show bridge/br0").json()["mgmtdev"]["bridge/br0"]["settings"].clone();
    assert_eq!(at("mgmtdevs/bridge/br0/settings")["mgmtdevs/bridge/br0/settings"], bridge);
    assert_eq!(at("ports/*/sfnum"), json!({ "ports/simnic/nic0/7/sfnum": 7 }));
    let parts = at("");
    let parts: Vec<&str> = parts.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(parts.len(), 8, "{parts:?}");
    // As text, a line for each value.
    let text = daemon.run("inspect devices/vm0/provisioned").good();
    assert!(text.lines().any(|line| line == "devices/vm0/provisioned/mtu 1400"), "{text}");
    let cores = daemon.run("inspect cores/*/idle_policy").good();
    assert!(cores.starts_with("cores/") && cores.ends_with("/idle_policy adaptive\n"), "{cores}");
    assert!(daemon.run("inspect absent").good().is_empty());

    let error = daemon.run("inspect devices/vm9").bad(3);
    assert!(error.contains("ringway inspect devices shows what is there"), "{error}");
    assert!(daemon.run("inspect device/vm0").bad(3).contains("did you mean devices?"));
}
