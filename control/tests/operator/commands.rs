//! What each command prints, as text and as JSON. Lines and keys of vdpa(8) are pinned byte for byte.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Daemon, finish, wait_for};

const FEATURES: &str = "MTU MAC MRG_RXBUF STATUS CTRL_VQ CTRL_RX GUEST_ANNOUNCE MQ";

fn with_device(line: &str) -> Daemon {
    let daemon = Daemon::start();
    assert_eq!(daemon.run(&format!("dev add name vm0 mgmtdev sim/net {line}")).good(), "");
    daemon
}

#[test]
fn mgmtdev_show_has_the_lines_and_keys_of_vdpa_first() {
    let daemon = Daemon::start();
    let text = daemon.run("mgmtdev show").good();
    let start =
        format!("sim/net: \n  supported_classes net\n  max_supported_vqs 32\n  dev_features {FEATURES}");
    assert!(text.starts_with(&start), "{text}");
    assert!(text.contains("  attribute swap on|off: "), "{text}");
    for line in ["mgmtdev list", "m s"] {
        assert_eq!(daemon.run(line).good(), text, "{line}");
    }
    let one = daemon.run("mgmtdev show sim/net").good();
    assert!(text.starts_with(&one) && one.ends_with("  devices 0\n"), "{one}");
    assert_eq!(daemon.run("mgmtdev li sim/net").good(), one);
    let out = daemon.run("-j mgmtdev show").good();
    let start = "{\"mgmtdev\":{\"sim/net\":{\"supported_classes\":[\"net\"],\"max_supported_vqs\":32,\
                 \"dev_features\":[\"MTU\",\"MAC\",\"MRG_RXBUF\",\"STATUS\"";
    assert!(out.starts_with(start) && out.ends_with("}\n"), "{out}");
}

#[test]
fn kinds_that_come_to_be_by_being_named_are_shown_with_how_to_make_one() {
    let daemon = Daemon::start();
    let text = daemon.run("mgmtdev show").good();
    for (line, settings) in [
        ("link/NAME: two devices joined, each the other's wire; one comes to be by being named\n", 0),
        ("bridge/NAME: any number of devices joined by a learning bridge; one comes to be", 2),
        ("tap/NAME: a guest joined with the kernel's TAP interface of that name; one comes to be", 0),
    ] {
        assert!(text.contains(line), "{text}");
        let bus = line.split('/').next().unwrap();
        let one = daemon.run(&format!("mgmtdev show {bus}")).good();
        assert!(one.starts_with(line) && text.contains(&one), "{one}");
        assert!(one.contains(&format!("  add ringway dev add name DEVICE mgmtdev {bus}/")), "{one}");
        assert!(one.contains("  attribute spoofchk on|off: "), "{one}");
        assert_eq!(one.matches("  setting ").count(), settings, "{one}");
        let help = daemon.run("mgmtdev add --help").good();
        assert!(help.contains(&format!("{bus}/NAME")), "{help}");
    }
    assert!(daemon.run("mgmtdev add --help").good().contains("ageing SECONDS"));
    let json = daemon.run("-j mgmtdev show").json();
    assert_eq!(json["kinds"]["bridge/NAME"]["settings"][0]["name"], "ageing");
    assert_eq!(json["mgmtdev"].as_object().unwrap().len(), 3, "sim/net, sim/blk, file");
    daemon.run("mgmtdev show bridge/nosuch").bad(3);
}

#[test]
fn words_of_dev_show_are_explained_where_they_stand_and_in_the_help() {
    let daemon = with_device("");
    daemon.run("dev add name vm1 mgmtdev sim/net mode client").good();
    let shown = daemon.run("dev show vm0").good();
    assert!(
        shown.contains("  mode server: Ringway makes the socket and listens; the VMM connects"),
        "{shown}"
    );
    assert!(!shown.contains("    refused "), "{shown}");
    assert!(daemon.run("dev show vm1").good().contains("  mode client: the VMM makes the socket"));
    let help = daemon.run("dev show --help").good();
    for word in ["server", "client", "refused", "left", "origin"] {
        assert!(help.contains(&format!("  {word} ")), "{help}");
    }
}

#[test]
fn dev_show_has_the_line_and_keys_of_vdpa_first() {
    let daemon = with_device("max_vqp 4");
    let first = "vm0: type network mgmtdev sim/net vendor_id 21079 max_vqs 8 max_vq_size 32768\n";
    let socket = daemon.socket("vm0");
    let second = format!("  state waiting socket {} mode server\n", socket.display());
    for line in ["dev show", "dev", "dev list", "d s"] {
        assert_eq!(daemon.run(line).good(), format!("{first}{second}"), "{line}");
    }
    let full = daemon.run("dev show vm0").good();
    assert!(full.starts_with(&format!("{first}{second}")), "{full}");
    assert!(
        full.contains("  provisioned mac 52:57:") && full.contains(" max_vq_pairs 4 mtu 1500\n"),
        "{full}"
    );
    assert!(full.contains("  attributes swap off\n"), "{full}");
    let out = daemon.run("dev show -j").good();
    let start = "{\"dev\":{\"vm0\":{\"type\":\"network\",\"mgmtdev\":\"sim/net\",\"vendor_id\":21079,\
                 \"max_vqs\":8,\"max_vq_size\":32768,\"state\":\"waiting\"";
    assert!(out.starts_with(start), "{out}");
}

#[test]
fn pretty_json_is_indented_by_four_blanks() {
    let daemon = with_device("");
    for line in ["-jp dev show", "dev show -p -j", "dev -j show --pretty"] {
        let out = daemon.run(line).good();
        let start = "{\n    \"dev\": {\n        \"vm0\": {\n            \"type\": \"network\",\n";
        assert!(out.starts_with(start), "{line}: {out}");
    }
    assert_eq!(daemon.run("-p dev show").good(), daemon.run("dev show").good());
}

#[test]
fn nothing_there_prints_nothing_as_text_and_an_empty_object_as_json() {
    let daemon = Daemon::start();
    assert_eq!(daemon.run("dev show").good(), "");
    assert_eq!(daemon.run("-j dev show").good(), "{\"dev\":{}}\n");
    assert_eq!(daemon.run("-j dev config show").good(), "{\"config\":{}}\n");
}

#[test]
fn config_show_before_negotiation_has_what_was_provisioned() {
    let daemon = with_device("mac 52:54:00:12:34:56 mtu 9000");
    let text = "vm0: \n  provisioned mac 52:54:00:12:34:56 link up max_vq_pairs 1 mtu 9000\n";
    for line in ["dev config show vm0", "dev config show", "dev config", "d c s"] {
        assert_eq!(daemon.run(line).good(), text, "{line}");
    }
    assert_eq!(
        daemon.run("-j dev config show vm0").json(),
        json!({"config": {"vm0": {"provisioned":
            {"mac": "52:54:00:12:34:56", "link": "up", "max_vq_pairs": 1, "mtu": 9000}}}})
    );
}

#[test]
fn vstats_show_one_queue_as_vdpa_does_and_all_in_a_table() {
    let daemon = with_device("max_vqp 2");
    let text = daemon.run("dev vstats show vm0 qidx 1").good();
    assert!(text.starts_with("vm0: queue_type tx received_desc 0 completed_desc 0 \n  qidx 1 "), "{text}");
    let out = daemon.run("-j dev vstats show vm0 qidx 2").good();
    let start =
        "{\"vstats\":{\"vm0\":{\"queue_type\":\"rx\",\"received_desc\":0,\"completed_desc\":0,\"qidx\":2,";
    assert!(out.starts_with(start), "{out}");
    let table = daemon.run("dev vstats show vm0").good();
    let rows: Vec<Vec<&str>> = table.lines().skip(2).map(|row| row.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 4, "{table}");
    assert_eq!((rows[3][0], rows[3][1]), ("3", "tx"));
    let all = daemon.run("-j dev vstats show vm0").json();
    assert_eq!(all["vstats"]["vm0"]["queues"].as_array().unwrap().len(), 4);
    assert_eq!(all["vstats"]["vm0"]["queues"][0]["drops"]["no_rx_buffer"], 0);
    assert_eq!(all["vstats"]["vm0"]["queues"][0]["faults"]["avail_index"], 0);
}

#[test]
fn features_limit_a_device_by_mask_and_by_name() {
    let daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev sim/net device_features 0x100000028").good();
    daemon.run("dev add name b mgmtdev sim/net device_features MTU,MAC,VERSION_1").good();
    assert_eq!(daemon.device("a")["device_features"], json!(["MTU", "MAC", "VERSION_1"]));
    assert_eq!(daemon.device("a")["device_features"], daemon.device("b")["device_features"]);
}

#[test]
fn set_changes_an_unconnected_device_at_once() {
    let daemon = with_device("");
    assert_eq!(daemon.run("dev set name vm0 mac 52:54:00:00:00:09 mtu 2000 swap on").good(), "");
    let device = daemon.device("vm0");
    assert_eq!(device["provisioned"]["mac"], "52:54:00:00:00:09");
    assert_eq!(device["provisioned"]["mtu"], 2000);
    assert_eq!(device["attributes"]["swap"], "on");
    let events = daemon.run("-j events --once --since 0 --type dev.changed").json();
    assert_eq!(
        events["set"],
        json!({ "mac": "52:54:00:00:00:09", "mtu": 2000, "attributes": { "swap": "on" } }),
        "{events}"
    );
    let core = device["cores"][0].as_u64().unwrap();
    daemon.run(&format!("dev set name vm0 core {core}")).good();
    let error = daemon.run("dev set name vm0 core 4095").bad(3);
    assert!(error.contains("no worker runs on core 4095\n  held by: workers run on cores "), "{error}");
    let error = daemon.run("dev set name vm0 swap perhaps").bad(2);
    assert!(error.contains("on or off"), "{error}");
    assert_eq!(daemon.device("vm0")["attributes"]["swap"], "on");
    assert_eq!(daemon.device("vm0")["state"], "waiting");
}

#[test]
fn set_that_a_driver_refuses_is_told_as_an_addition_is_and_changes_nothing() {
    let daemon = Daemon::start();
    let disk = |name: &str| {
        let path = daemon.dir.join(name);
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path.display().to_string()
    };
    let (a, b) = (disk("a"), disk("b"));
    daemon.run(&format!("dev add name d0 mgmtdev file path {a}")).good();
    daemon.run(&format!("dev add name d1 mgmtdev file path {b}")).good();
    for verb in ["add name d2 mgmtdev file", "set name d1"] {
        let error = daemon.run(&format!("dev {verb} path {a}")).bad(4);
        assert!(error.contains("in use as a disk\n  held by: device d0\n  try: "), "{error}");
        let error = daemon.run(&format!("dev {verb} path {}", daemon.dir.display())).bad(4);
        assert!(error.contains("it is a directory"), "{error}");
        let error = daemon.run(&format!("dev {verb} path {a}.none")).bad(3);
        assert!(error.contains("no such file"), "{error}");
    }
    let device = daemon.device("d1");
    assert_eq!((&device["attributes"]["path"], &device["state"]), (&json!(b), &json!("waiting")));
}

#[test]
fn disk_of_another_size_is_an_event() {
    let daemon = Daemon::start();
    let path = daemon.dir.join("disk");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    daemon.run(&format!("dev add name d0 mgmtdev file path {}", path.display())).good();
    file.set_len(2 << 20).unwrap();
    let line = "-j events --once --since 0 --type dev.resized";
    wait_for("it is told", || !daemon.run(line).good().is_empty());
    let event = daemon.run(line).json();
    assert_eq!(
        (&event["dev"], &event["before"], &event["bytes"]),
        (&json!("d0"), &json!(1 << 20), &json!(2 << 20))
    );
}

#[test]
fn core_show_tells_each_worker() {
    let daemon = with_device("max_vqp 3");
    let cores = daemon.run("-j core show").json();
    let (core, info) = cores["core"].as_object().unwrap().iter().next().unwrap();
    assert_eq!(info["groups"], 3);
    assert!(info["tsc_hz"].as_u64().unwrap() > 1_000_000, "{info}");
    wait_for("its time to be told", || {
        let info = &daemon.run("-j core show").json()["core"][core];
        info["sleep_cycles"].as_u64().unwrap() + info["idle_cycles"].as_u64().unwrap() > 0
    });
    let status = format!("/proc/{}/task/{}/status", daemon.pid(), info["tid"]);
    let status = std::fs::read_to_string(status).unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    assert_eq!(allowed.trim(), core.as_str());
    let text = daemon.run("core show").good();
    assert!(text.starts_with(&format!("core {core}: busy ")) && text.contains(" policy adaptive "), "{text}");
    // Who else is on the core may change from one look to the next.
    let own = |text: &str| text.lines().filter(|line| !line.contains(" shared with ")).count();
    assert_eq!(own(&daemon.run("core").good()), own(&text));
}

#[test]
fn qemu_arguments_and_libvirt_xml_fit_the_device() {
    let daemon = with_device("max_vqp 2 mode client socket /tmp/of-the-vmm.sock");
    let arguments = daemon.run("dev show vm0 --qemu").good();
    assert!(arguments.contains("path=/tmp/of-the-vmm.sock,server=on,wait=off"), "{arguments}");
    assert!(arguments.contains(",queues=2") && arguments.contains("vectors=6"), "{arguments}");
    assert!(arguments.contains("share=on"), "{arguments}");
    let list = daemon.run("-j dev show vm0 --qemu").json();
    assert_eq!(list["qemu"]["vm0"][0], "-object");
    let xml = daemon.run("dev show --libvirt vm0").good();
    assert!(xml.contains("path='/tmp/of-the-vmm.sock' mode='server'"), "{xml}");
    daemon.run("dev show --qemu").bad(2);
}

#[test]
fn events_are_numbered_followed_and_filtered() {
    let daemon = with_device("");
    let mut follower = daemon.wire();
    let page = follower.call("events", json!({ "follow": true }));
    assert_eq!(page["result"]["snapshot"], json!({ "vm0": "waiting" }));
    let seq = page["result"]["seq"].as_u64().unwrap();
    let mut picky = daemon.wire();
    picky.call("events", json!({ "since": 0, "follow": true, "types": ["dev.removed"] }));

    daemon.run("dev add name vm1 mgmtdev sim/net").good();
    daemon.run("dev del vm0").good();
    let first = follower.receive();
    assert_eq!((&first["method"], &first["params"]["type"]), (&json!("event"), &json!("dev.added")));
    assert_eq!((&first["params"]["dev"], &first["params"]["seq"]), (&json!("vm1"), &json!(seq + 1)));
    let second = follower.receive();
    assert_eq!(
        (&second["params"]["type"], &second["params"]["seq"]),
        (&json!("dev.removed"), &json!(seq + 2))
    );
    assert_eq!(picky.receive()["params"]["dev"], "vm0");

    let lines = daemon.run(&format!("-j events --once --since {seq}")).good();
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1]["type"], "dev.removed");
    let text = daemon.run(&format!("events --once --since {seq} --type dev.added")).good();
    assert!(text.contains(" dev.added vm1 mgmtdev=\"sim/net\""), "{text}");
    let stranger =
        daemon.run(&format!("events --once --since 00000000-0000-4000-8000-000000000000:{seq}")).good();
    assert_eq!(stranger.lines().count(), usize::try_from(seq).unwrap() + 2);
    for (line, said) in [
        ("events --once --since x", "`x` is not the number of an event"),
        ("events --once --since foo:3", "`foo` is no daemon's instance"),
        (
            "events --once --type foo",
            "there is no event of type `foo`\n  try: one of: capture.ended, capture.failed, capture.started, config.applied, config.refused",
        ),
        ("events --once --type dev --type hots", "did you mean host? There are capture.ended"),
        ("events --once --since -3", "unexpected argument '-3'"),
    ] {
        let told = daemon.run(line).bad(2);
        assert!(told.contains(said) && !told.contains("-- -3"), "{told}");
    }
    assert!(
        daemon.run("events --help").good().contains(
            "Types: capture.ended, capture.failed, capture.started, config.applied, config.refused"
        )
    );
}

#[test]
fn hello_tells_who_answers() {
    let daemon = Daemon::start();
    let hello = daemon.run("-j hello").json();
    assert_eq!(hello["api"], "1.6");
    assert_eq!(hello["pid"], daemon.pid());
    assert_eq!(hello["device_dir"], daemon.dir.join("dev").to_str().unwrap());
    assert!(hello["instance"].as_str().unwrap().len() > 8 && hello["boot_id"].as_str().unwrap().len() > 8);
    let generation = |hello: &serde_json::Value| hello["generation"].as_u64().unwrap();
    daemon.run("dev add name a mgmtdev sim/net").good();
    assert_eq!(generation(&daemon.run("-j hello").json()), generation(&hello) + 1);
    assert!(daemon.run("hello").good().starts_with("ringway "));
}

#[test]
fn called_vdpa_it_prints_what_vdpa_prints_and_nothing_else() {
    let daemon = with_device("max_vqp 2 mac 52:54:00:00:00:01");
    let link = daemon.dir.join("vdpa");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ringway"), &link).unwrap();
    let vdpa = |line: &str| {
        let mut command = std::process::Command::new(&link);
        command.env("RINGWAY_CTL", daemon.ctl()).args(line.split_whitespace());
        finish(command)
    };
    let text = "vm0: type network mgmtdev sim/net vendor_id 21079 max_vqs 4 max_vq_size 32768\n";
    assert_eq!(vdpa("dev show").good(), text);
    assert_eq!(vdpa("dev show vm0").good(), text);
    assert_eq!(
        vdpa("-j dev show").good(),
        "{\"dev\":{\"vm0\":{\"type\":\"network\",\"mgmtdev\":\"sim/net\",\"vendor_id\":21079,\"max_vqs\":4,\
         \"max_vq_size\":32768}}}\n"
    );
    assert_eq!(vdpa("mgmtdev show").good().lines().count(), 3 * 4);
    assert_eq!(vdpa("dev config show").good(), "vm0: \n");
    assert_eq!(vdpa("-j dev config show").good(), "{\"config\":{\"vm0\":{}}}\n");
    assert_eq!(
        vdpa("dev vstats show vm0 qidx 0").good(),
        "vm0: queue_type rx received_desc 0 completed_desc 0 \n"
    );
    assert_eq!(vdpa("-j dev add name vm1 mgmtdev sim/net").good(), "");
    assert_eq!(vdpa("dev del vm1").good(), "");
    assert_eq!(vdpa("nonsense").bad(1), "Object \"nonsense\" not found\n");
    assert_eq!(vdpa("hello").bad(1), "Object \"hello\" not found\n");
    assert_eq!(vdpa("dev nonsense").bad(1), "Command \"nonsense\" not found\n");
    assert_eq!(vdpa("dev add name x mgmtdev sim/net core 1").bad(1), "Unknown option \"core\"\n");
    assert_eq!(vdpa("dev add name x").bad(1), "management device handle not set.\n");
    assert_eq!(vdpa("dev vstats show vm0").bad(1), "kernel answers: Invalid argument\n");
    assert_eq!(
        vdpa("dev add name x mgmtdev a/b/c").bad(1),
        "Wrong vdpa mgmtdev identification string format\nExpected \"mgmtdev_bus_name/mgmtdev_name\"\n\
         Expected \"mgmtdev_name\"\n"
    );
    for line in ["-s dev show", "dev show -n"] {
        assert!(vdpa(line).bad(1).starts_with("Unknown option.\nUsage: vdpa [ OPTIONS ] OBJECT"), "{line}");
    }
    assert!(vdpa("dev vstats").bad(1).starts_with("Usage: vdpa "));
    for line in ["", "help", "mgmtdev", "-h"] {
        let done = vdpa(line);
        assert!(done.code == 0 && done.out.is_empty() && done.err.starts_with("Usage: vdpa "), "{done:?}");
    }
    let error = vdpa("dev add name vm0 mgmtdev sim/net").bad(1);
    assert_eq!(error, "Error: vdpa: device vm0 is there already.\nkernel answers: File exists\n");
    assert!(vdpa("-V").good().starts_with("vdpa utility, "));
}

#[test]
fn owner_and_group_are_given_to_the_socket() {
    use std::os::unix::fs::MetadataExt as _;
    let daemon = Daemon::start();
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    // Only root may give a socket to somebody else.
    let (owner, group) = if uid == 0 { (54321, 54322) } else { (uid, gid) };
    daemon.run(&format!("dev add name vm0 mgmtdev sim/net owner {owner} group {group}")).good();
    let meta = std::fs::metadata(daemon.socket("vm0")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (owner, group, 0o660));
    let device = daemon.device("vm0");
    assert_eq!((&device["owner"], &device["group"]), (&json!(owner.to_string()), &json!(group.to_string())));
    if uid == 0 {
        let done = daemon.run(&format!("dev add name vm1 mgmtdev sim/net owner {owner}"));
        assert!(done.code == 0 && done.err.starts_with("note: "), "{done:?}");
        // The directory above is closed to that user: the socket's owner is told so.
        assert!(device["notes"][0].as_str().unwrap().contains("the socket's owner or group cannot pass"));
        // Until it is open to that user.
        use std::os::unix::fs::PermissionsExt as _;
        for dir in [daemon.dir.clone(), daemon.dir.join("dev")] {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o751)).unwrap();
        }
        assert!(
            daemon.device("vm0")["notes"].as_array().is_none_or(Vec::is_empty),
            "{}",
            daemon.device("vm0")
        );
    }
}

#[test]
fn thousand_devices_come_and_go_without_a_trace() {
    let daemon = Daemon::start();
    let mut wire = daemon.wire();
    let mut turn = |n: u32| {
        let added = wire.call("dev.add", json!({ "name": format!("d{n}"), "mgmtdev": "sim/net" }));
        assert_eq!(added["result"]["added"], format!("d{n}"), "{added}");
        let deleted = wire.call("dev.del", json!({ "name": format!("d{n}") }));
        assert_eq!(deleted["result"]["deleted"], format!("d{n}"), "{deleted}");
    };
    turn(0);
    let before = daemon.descriptors();
    (1..1000).for_each(&mut turn);
    // It may have one open for a moment at each of the two looks.
    wait_for("none is left open", || daemon.descriptors() <= before);
    for dir in ["dev", "positions"] {
        assert_eq!(std::fs::read_dir(daemon.dir.join(dir)).unwrap().count(), 0, "{dir}");
    }
    assert_eq!(
        daemon.run("-j core show").json()["core"].as_object().unwrap().values().next().unwrap()["groups"],
        0
    );
}

#[test]
fn positions_of_devices_that_are_gone_are_kept_for_the_last_of_them() {
    let daemon = Daemon::start();
    let positions = daemon.dir.join("positions");
    daemon.run("dev add name stays mgmtdev sim/net").good();
    let of = |n: u64| positions.join(format!("gone{n}"));
    let begin = std::time::SystemTime::now() - std::time::Duration::from_secs(10_000);
    for n in 0..1030 {
        let file = std::fs::File::create(of(n)).unwrap();
        file.set_modified(begin + std::time::Duration::from_secs(n)).unwrap();
    }
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    daemon.run("dev del vm0").good();
    assert_eq!(std::fs::read_dir(&positions).unwrap().count(), 1 + 1024);
    assert!(positions.join("stays").exists());
    assert!(!of(5).exists() && of(6).exists(), "the oldest go");
}

#[test]
fn idle_daemon_with_a_hundred_devices_costs_next_to_nothing() {
    let daemon = Daemon::start();
    let mut wire = daemon.wire();
    for n in 0..100 {
        let mode = if n % 2 == 0 { "server" } else { "client" };
        let added =
            wire.call("dev.add", json!({ "name": format!("d{n}"), "mgmtdev": "sim/net", "mode": mode }));
        assert!(added["error"].is_null(), "{added}");
    }
    // How often its threads woke, and nanoseconds on a core: what a wake-up costs differs tenfold between machines, and between
    // a busy and an idle one.
    let used = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        let task = |task: PathBuf| {
            let status = std::fs::read_to_string(task.join("status")).unwrap();
            let woke = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            let spent = std::fs::read_to_string(task.join("schedstat")).unwrap();
            let number = |text: &str| text.trim().parse::<u64>().unwrap();
            (number(woke), number(spent.split(' ').next().unwrap()))
        };
        tasks.map(|entry| task(entry.unwrap().path())).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    };
    // Those that connect look for their sockets first, and what was done is written.
    wait_for("it to rest", || {
        let (before, start) = (used(), Instant::now());
        std::thread::sleep(Duration::from_secs(3));
        let (after, passed) = (used(), start.elapsed());
        let (woke, spent) = (after.0 - before.0, Duration::from_nanos(after.1 - before.1));
        println!("woke {woke} times in {passed:?}, and used {spent:?}");
        // A hundred times a second for the watchdog, twenty times for all else.
        woke as f64 <= passed.as_secs_f64() * 120.0 && spent * 10 < passed
    });
}
