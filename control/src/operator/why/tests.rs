use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;

fn core(changes: Value) -> CoreInfo {
    let mut info = json!({
        "tid": 1, "idle_policy": "poll", "tsc_hz": 1, "busy_cycles": 0, "idle_cycles": 0, "sleep_cycles": 0, "turns": 7,
        "packets": 0, "bursts": 0, "wakeups": 0, "longest_turn_ns": 0, "panics": 0, "groups": 1, "pumps": [],
    });
    info.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    serde_json::from_value(info).unwrap()
}

fn words(before: Value, now: Value) -> Vec<String> {
    let between = Duration::from_millis(500);
    core_causes(1, Some(core_look(&core(before))), &core(now), between)
        .into_iter()
        .map(|cause| cause.cause)
        .collect()
}

/// One that takes a core whole is one switch, and what a worker waits is added up when it is over.
#[test]
fn core_is_taken_by_many_switches_by_a_long_wait_or_whole() {
    let preempted =
        |times| words(json!({ "preemptions": 5 }), json!({ "preemptions": 5 + times, "turns": 8 }));
    assert_eq!((preempted(20), preempted(21)), (vec![], vec!["core_taken".to_owned()]));
    let waited = |ns: u64| words(json!({ "run_delay_ns": 9 }), json!({ "run_delay_ns": 9 + ns, "turns": 8 }));
    assert_eq!((waited(50_000_000), waited(50_000_001)), (vec![], vec!["core_taken".to_owned()]));
    let whole = |wanted: bool, turns| {
        words(json!({ "wants_core": true }), json!({ "wants_core": wanted, "turns": turns }))
    };
    assert_eq!(whole(true, 7), ["core_taken"]);
    assert!(whole(false, 7).is_empty() && whole(true, 8).is_empty());
    let all = json!({ "busy_cycles": 980, "idle_cycles": 20, "preemptions": 30, "gives_way": true });
    assert_eq!(words(json!({ "preemptions": 0 }), all), ["core_taken", "core_gives_way", "core_at_limit"]);
    assert!(words(json!({}), json!({ "busy_cycles": 970, "idle_cycles": 30 })).is_empty());
    // What the kernel tells only now is of all the time before.
    assert!(
        words(json!({}), json!({ "run_delay_ns": 1_u64 << 40, "preemptions": 1000, "turns": 8 })).is_empty()
    );
}

#[test]
fn one_look_tells_nothing_of_just_now() {
    let all = json!({
        "busy_cycles": 980, "idle_cycles": 20, "preemptions": 30, "run_delay_ns": 1_u64 << 40, "wants_core": true,
        "gives_way": true,
    });
    let found = core_causes(1, None, &core(all), Duration::MAX);
    assert_eq!(found.into_iter().map(|cause| cause.cause).collect::<Vec<_>>(), ["core_gives_way"]);

    let asked = json!({ "under_way": "1 requests under way, the oldest a write at sector 16, for 1 s" });
    let mut failed = queue(8, 7);
    failed.drops = crate::operator::api::Counts::from_iter([("beyond_end", 3)]);
    failed.explain = vec![Explained {
        name: "beyond_end".to_owned(),
        count: 3,
        meaning: "the request is for sectors beyond the disk's end".to_owned(),
        example: None,
        cure: "-".to_owned(),
    }];
    failed.held = 5;
    let said = |before: Option<QueueInfo>| -> Vec<(String, String)> {
        let causes = of_disk(asked.clone(), before, failed.clone());
        causes.into_iter().map(|cause| (cause.cause, cause.says)).collect()
    };
    let once = said(None);
    let [(first, whether), (second, lost)] = &once[..] else { panic!("{once:?}") };
    assert_eq!((first.as_str(), second.as_str()), ("none", "beyond_end"));
    assert!(whether.ends_with("a second one tells whether they flow"), "{whether}");
    assert!(lost.starts_with("queue 0 failed 3 since it was added: "), "{lost}");
    let words: Vec<String> = said(Some(queue(8, 7))).into_iter().map(|(word, _)| word).collect();
    assert_eq!(words, ["beyond_end", "rate"]);
}

fn queue(received: u64, completed: u64) -> QueueInfo {
    serde_json::from_value(json!({
        "queue_type": "request", "received_desc": received, "completed_desc": completed, "qidx": 0, "packets": completed,
        "bytes": 0, "calls": 0, "bursts": 0, "drops": {}, "faults": {},
    }))
    .unwrap()
}

fn of_disk(changes: Value, before: Option<QueueInfo>, now: QueueInfo) -> Vec<Cause> {
    let mut info = json!({
        "type": "block", "mgmtdev": "file", "vendor_id": 0, "max_vqs": 1, "max_vq_size": 1, "state": "connected",
        "socket": "/d0.sock", "mode": "server", "origin": "operator", "data_path": "pumped", "device_features": [],
        "provisioned": {}, "cores": [], "history": { "connections": 1, "refused": 0, "left": 0, "pump_panics": 0 },
        "front_end": { "pid": 1, "uid": 0, "comm": "vmm", "connected_ms": 1, "memory_regions": 1, "memory_bytes": 1 },
        "rings": [{ "qidx": 0, "size": 1, "started": true, "enabled": true, "kicks": true, "runs": true }],
    });
    info.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let info: DevInfo = serde_json::from_value(info).unwrap();
    let before = before.map(|before| Look {
        queues: vec![queue_look(&before)],
        up_ns: 500_000_000,
        ..Look::default()
    });
    let cores = BTreeMap::new();
    let looks = Looks {
        info: &info,
        queues: &[now],
        cores: &cores,
        before: before.as_ref(),
        between: Duration::from_millis(500),
    };
    looks.why("d0")
}

#[test]
fn disk_that_gives_nothing_back_is_not_idle() {
    let hangs = json!({
        "under_way": "1 requests under way, the oldest a write at sector 16, for 7 s",
        "findings": [{ "finding": "not_answering", "says": "it does not answer: 1 requests", "try": "see the disk" }],
    });
    let first = |causes: Vec<Cause>| (causes[0].cause.clone(), causes[0].says.clone(), causes.len());
    let expected = ("not_answering".to_owned(), "it does not answer: 1 requests".to_owned(), 1);
    assert_eq!(first(of_disk(hangs, Some(queue(8, 7)), queue(8, 7))), expected);
    // For a shorter time.
    let asked = json!({ "under_way": "1 requests under way, the oldest a write at sector 16, for 1 s" });
    let (word, says, _) = first(of_disk(asked.clone(), Some(queue(8, 7)), queue(8, 7)));
    assert!(word == "not_answering" && says.ends_with("the oldest a write at sector 16, for 1 s"), "{says}");
    let (word, says, _) = first(of_disk(json!({}), Some(queue(7, 7)), queue(9, 7)));
    assert!(word == "not_answering" && says.ends_with("2 requests taken just now"), "{says}");
    let (word, says, _) = first(of_disk(asked, Some(queue(8, 7)), queue(20, 18)));
    assert!(word == "none" && says.contains("11 requests"), "{says}");
    // What was given up with its session is not waited for.
    assert_eq!(first(of_disk(json!({}), Some(queue(8, 7)), queue(8, 7))).0, "idle");
}

/// Of a guest of whose queues each was stopped by a fault.
fn of_faulted() -> Vec<(String, String)> {
    let ring = json!({
        "qidx": 0, "size": 1, "started": false, "enabled": true, "kicks": true, "runs": false, "fault": "truncated_memory",
    });
    let causes = of_disk(json!({ "rings": [ring] }), None, queue(0, 0));
    causes.into_iter().map(|cause| (cause.cause, cause.says)).collect()
}

/// A VM that is paused and a link that the VMM took away look like a guest without a driver: what is said of it depends on what was before.
#[test]
fn guest_without_a_driver_is_told_by_how_far_it_came() {
    let said = |front_end: Value, kind: &str| {
        let mut whole = json!({
            "pid": 7, "uid": 0, "comm": "vmm", "connected_ms": 1, "memory_regions": 0, "memory_bytes": 0,
        });
        whole.as_object_mut().unwrap().extend(front_end.as_object().unwrap().clone());
        let changes = json!({ "front_end": whole, "rings": [], "type": kind });
        let causes = of_disk(changes, None, queue(0, 0));
        let words =
            |cause: &Cause| (cause.cause.clone(), format!("{} {}", cause.says, cause.cure.as_ref().unwrap()));
        causes.iter().map(words).collect::<Vec<_>>()
    };
    let [(word, text)] = &said(json!({}), "net")[..] else { panic!() };
    assert_eq!(word, "driver_not_up");
    assert!(
        text.contains("its guest has not begun") && text.contains("wait for the guest to boot"),
        "{text}"
    );
    assert!(text.contains("virtio_net") && text.contains("set_link"), "{text}");
    let [(_, text)] = &said(json!({ "status": ["ACKNOWLEDGE", "DRIVER"] }), "net")[..] else { panic!() };
    assert!(text.contains("its guest's driver is at ACKNOWLEDGE DRIVER"), "{text}");
    let [(_, text)] = &said(json!({ "has_run": true, "status": [] }), "block")[..] else { panic!() };
    assert!(text.contains("its queues ran, and were stopped: ") && text.contains("not paused"), "{text}");
    assert!(text.contains("virtio_blk") && !text.contains("set_link") && !text.contains("to boot"), "{text}");
    let [(word, text)] = &of_faulted()[..] else { panic!() };
    assert!(
        word == "ring_fault" && text.contains("queue 0 is stopped by a fault, truncated_memory"),
        "{text}"
    );
    let refused = said(json!({ "breach": "mtu: 9000 is more than 1500" }), "net");
    let [(first, text), (second, _)] = &refused[..] else { panic!("{refused:?}") };
    assert_eq!((first.as_str(), second.as_str()), ("breach", "driver_not_up"));
    assert!(text.contains("was refused: mtu: 9000 is more than 1500") && text.contains("host_mtu"), "{text}");
}

/// Only where the function is the guest's own does the guest see its link.
#[test]
fn function_without_a_link_is_its_guests_or_the_uplinks() {
    let said = |uplink: Value| {
        let changes = json!({ "type": "net", "mgmtdev": "bridge/b", "uplink": uplink, "provisioned": { "link": "down" } });
        let mut causes = of_disk(changes, None, queue(0, 0));
        let first = causes.remove(0);
        assert_eq!(first.cause, "link_down");
        first.says
    };
    let (own, uplink) = (said(Value::Null), said(json!("pci/0000:02:00.1")));
    assert!(own.starts_with("bridge/b has no link: its guest sees that"), "{own}");
    assert!(uplink.starts_with("pci/0000:02:00.1 has no link") && !uplink.contains("guest"), "{uplink}");
}

/// The words of the first column of the page's table, and those that are names of drops, of which it has examples.
fn words_of_the_page() -> (BTreeSet<String>, Vec<String>) {
    let page = include_str!("../../../../docs/troubleshooting.md");
    let (_, table) = page.split_once("| word | it is |\n").unwrap();
    let (mut words, mut drops) = (BTreeSet::new(), Vec::new());
    for row in table.lines().skip(1).take_while(|line| line.starts_with('|')) {
        let cell = row.split('|').nth(1).unwrap();
        let of_row = cell.split('`').skip(1).step_by(2).map(str::to_owned);
        match cell.contains("another drop") {
            true => drops.extend(of_row),
            false => words.extend(of_row),
        }
    }
    (words, drops)
}

/// The words that a source gives to calls of this function: as a text, or by a constant's name.
fn words_of(source: &str, call: &str) -> BTreeSet<String> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut words = BTreeSet::new();
    for (at, _) in source.match_indices(call) {
        let argument = source[at + call.len()..].trim_start();
        if source[..at].ends_with(is_of_name) {
            continue;
        }
        if let Some(text) = argument.strip_prefix('"') {
            words.insert(text.split('"').next().unwrap().to_owned());
        } else if argument.starts_with(|c: char| c.is_ascii_uppercase()) {
            let name = argument.split(|c| !is_of_name(c)).next().unwrap();
            let (_, value) = source.split_once(&format!("const {name}: &str = \"")).unwrap();
            words.insert(value.split('"').next().unwrap().to_owned());
        }
    }
    words
}

/// Who reads `-j` finds each word in docs/troubleshooting.md, and none there that no device can have.
#[test]
fn words_are_those_of_the_pages_table() {
    let source = include_str!("../why.rs");
    let mut known = words_of(source, "cause(");
    let (_, constants) = source.split_once("/// Words of causes that the daemon finds").unwrap();
    let constants = constants.lines().skip(1).take_while(|line| line.starts_with("const "));
    known.extend(constants.map(|line| line.split('"').nth(1).unwrap().to_owned()));
    known.extend(words_of(include_str!("../show/devices.rs"), "finding("));
    known.insert("none".to_owned());
    let (words, drops) = words_of_the_page();
    assert_eq!(known, words);
    assert!(known.len() > 18 && drops.len() > 3, "{drops:?}");
    let is_drop =
        |name: &String| ringway_pmd::counters::DropReason::ALL.iter().any(|drop| drop.name() == name);
    assert!(drops.iter().all(is_drop), "{drops:?}");
}
