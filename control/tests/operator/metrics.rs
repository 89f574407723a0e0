//! What Prometheus scrapes, from a daemon that runs.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringway_guest::block::{BlockOptions, Port, Request, Status};
use ringway_guest::{Guest, GuestOptions};
use serde_json::Value;

use crate::support::{Daemon, SOON, wait_for};

/// Scrapes of which the fastest counts.
const SCRAPES: usize = 8;

/// So many times as long as that of a hundred devices the scrape of a thousand may take. How long that is, processors differ in:
/// `ringway-bench scale --only watched` tells.
const SCRAPED_WITHIN: u32 = 30;

/// Of the daemon's scrapers at a time.
const SCRAPERS: usize = 8;

pub(super) fn ask(path: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let _ = stream.write_all(request.as_bytes());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn counters_are_scraped_and_hostile_scrapers_are_bounded_and_counted() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("metrics.sock");
    let daemon = Daemon::start_with(&["--metrics", path.to_str().unwrap()]);
    daemon.run("dev add name vm0 mgmtdev sim/net max_vqp 1").good();
    let scrape = || ask(&path, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let answer = scrape();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    for line in [
        "# HELP ringway_queue_bursts Bursts that moved something",
        "# TYPE ringway_queue_packets counter",
        "ringway_queue_packets_total{dev=\"vm0\",queue=\"1\",type=\"tx\"} 0",
        "ringway_device_connections_total{dev=\"vm0\"} 0",
        "ringway_device_state{dev=\"vm0\",mgmtdev=\"sim/net\",state=\"waiting\"} 1",
        "# TYPE ringway_core_busy_cycles counter",
        "# TYPE ringway_core_longest_turn_ns gauge",
        "# TYPE ringway_core_tsc_hz gauge",
        "ringway_scrapes_total 0",
        "ringway_absent{kind=\"device\"} 0",
        "ringway_absent{kind=\"mgmtdev\"} 0",
        "ringway_outdated 0",
        "ringway_events_lost_total 0",
        "ringway_log_lines_lost_total 0",
    ] {
        assert!(body.lines().any(|known| known == line), "{line} is not in\n{body}");
    }
    let reference =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference.md")).unwrap();
    for told in body.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = told.split_once(' ').unwrap();
        let suffix = if kind == "counter" { "_total" } else { "" };
        assert!(
            reference.contains(&format!("| `{name}{suffix}` | {kind} |")),
            "{told} is not in docs/reference.md"
        );
    }
    assert!(ask(&path, "GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    // As many as are served at a time say nothing: the next one is turned away at once.
    let silent: Vec<_> = (0..SCRAPERS).map(|_| UnixStream::connect(&path).unwrap()).collect();
    assert_eq!(scrape(), "");
    drop(silent);
    wait_for("a place, and both to be counted", || {
        let answer = scrape();
        let refused =
            |line: &str| answer.lines().any(|known| known.starts_with(line) && !known.ends_with(" 0"));
        refused("ringway_scrapes_refused_total{reason=\"too_many\"}")
            && refused("ringway_scrapes_refused_total{reason=\"failed\"}")
    });
}

#[test]
fn what_could_not_be_made_and_what_a_disk_has_under_way_are_told() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("metrics.sock");
    let mut daemon = Daemon::start();
    daemon.terminate();
    // The first one's socket is where a directory stands.
    let (socket, image) = (daemon.dir.join("taken.sock"), daemon.dir.join("d.img"));
    std::fs::create_dir(&socket).unwrap();
    std::fs::File::create(&image).and_then(|file| file.set_len(1 << 20)).unwrap();
    let file = daemon.dir.join("r.toml");
    let text = format!(
        "[[device]]\nname = \"a\"\nmgmtdev = \"sim/net\"\nsocket = \"{}\"\n[[device]]\nname = \"d\"\nmgmtdev = \"file\"\npath = \"{}\"\n",
        socket.display(),
        image.display()
    );
    std::fs::write(&file, text).unwrap();
    daemon.start_again(&["--config", file.to_str().unwrap(), "--metrics", path.to_str().unwrap()]);
    let scrape = || ask(&path, "GET /metrics HTTP/1.1\r\n\r\n");
    let answer = scrape();
    let value = |name: &str, labels: &[&str]| told(&answer, name, labels);
    assert_eq!(value("ringway_absent", &["kind=\"device\""]), Some(1.0), "{answer}");
    assert_eq!(value("ringway_disk_requests_under_way", &["dev=\"d\""]), Some(0.0), "{answer}");
    assert_eq!(value("ringway_disk_oldest_request_seconds", &["dev=\"d\""]), Some(0.0), "{answer}");
    // It can be made from now on, which is tried by itself.
    std::fs::remove_dir(&socket).unwrap();
    wait_for("it is made", || told(&scrape(), "ringway_absent", &["kind=\"device\""]) == Some(0.0));
}

/// The value of a metric with these labels; None: it is not told.
fn told(answer: &str, metric: &str, labels: &[&str]) -> Option<f64> {
    let is_it = |line: &&str| {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        name == metric && labels.iter().all(|label| line.contains(label))
    };
    answer.lines().find(is_it)?.rsplit(' ').next()?.parse().ok()
}

#[test]
fn bursts_are_told_by_size_and_by_how_long_they_took_each_once() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("metrics.sock");
    let daemon = Daemon::start_with(&["--metrics", path.to_str().unwrap()]);
    daemon.run("mgmtdev add name bridge/br0").good();
    for (name, mgmtdev) in
        [("one", "sim/net"), ("l0", "link/l"), ("l1", "link/l"), ("b0", "bridge/br0"), ("b1", "bridge/br0")]
    {
        daemon.run(&format!("dev add name {name} mgmtdev {mgmtdev}")).good();
    }
    let guest = |name| Guest::connect(&daemon.socket(name), GuestOptions::default()).unwrap();
    for names in [&["one"][..], &["l0", "l1"], &["b0", "b1"]] {
        let mut guests: Vec<Guest> = names.iter().map(|name| guest(name)).collect();
        wait_for("frames", || {
            for guest in &mut guests {
                guest.turn(16).unwrap();
            }
            guests.iter().all(|guest| guest.stats().received > 500)
        });
        for name in names {
            for qidx in 0..2 {
                let number = |what: &str, value: &Value| {
                    value[what].as_u64().unwrap_or_else(|| panic!("{name} {qidx} {what}: {value}"))
                };
                let shown = || {
                    let shown = daemon.run(&format!("-j dev vstats show {name} qidx {qidx}")).json();
                    shown["vstats"][*name].clone()
                };
                // All that is asked for is of one moment, if nothing moved meanwhile.
                let (mut answer, mut text, mut all) = (String::new(), String::new(), Value::Null);
                wait_for("nothing moves any more", || {
                    all = shown();
                    answer = ask(&path, "GET /metrics HTTP/1.1\r\n\r\n");
                    text = daemon.run(&format!("dev vstats show {name} qidx {qidx}")).good();
                    all == shown()
                });
                let shown = all;
                let (sizes, latency) = (&shown["burst_sizes"], &shown["latency"]);
                let of_sizes = ["p50", "p99", "max"].map(|what| number(what, sizes));
                let of_times = ["p50_ns", "p99_ns", "p999_ns", "max_ns"].map(|what| number(what, latency));
                assert!(of_sizes.is_sorted() && of_sizes[0] > 0, "{shown}");
                assert!(of_times.is_sorted() && of_times[0] > 0, "{shown}");
                let labels = [&*format!("dev=\"{name}\""), &*format!("queue=\"{qidx}\"")];
                let (bursts, chains) =
                    (number("bursts", &shown) as f64, number("completed_desc", &shown) as f64);
                let value = |metric: &str| told(&answer, metric, &labels);
                assert_eq!(value("ringway_queue_burst_chains_count"), Some(bursts), "{name} {qidx}");
                assert_eq!(value("ringway_queue_burst_chains_sum"), Some(chains), "{name} {qidx}");
                assert_eq!(value("ringway_queue_latency_seconds_count"), Some(bursts), "{name} {qidx}");
                let endless = [labels[0], labels[1], "le=\"+Inf\""];
                assert_eq!(told(&answer, "ringway_queue_latency_seconds_bucket", &endless), Some(bursts));
                let mean = value("ringway_queue_latency_seconds_sum").unwrap() / bursts;
                assert!(
                    mean > 1e-8 && mean <= number("max_ns", latency) as f64 / 1e9,
                    "{name} {qidx}: {mean}"
                );
                // As text.
                let line = format!("  queue {qidx} burst p50 {} p99 {}", of_sizes[0], of_sizes[1]);
                assert!(text.contains(&line) && text.contains(" latency_us p50 "), "{text}");
            }
        }
    }
    let answer = ask(&path, "GET /metrics HTTP/1.1\r\n\r\n");
    let cores = daemon.run("-j core show").json();
    for (core, info) in cores["core"].as_object().unwrap() {
        let label = [&*format!("core=\"{core}\"")];
        let bursts = info["bursts"].as_u64().unwrap();
        if bursts > 0 {
            assert_eq!(told(&answer, "ringway_core_burst_packets_count", &label), Some(bursts as f64));
            assert!(told(&answer, "ringway_core_busy_turn_seconds_count", &label).unwrap() <= bursts as f64);
        }
    }
    assert!(daemon.run("core show").good().contains(" turn_us p50 "));
}

#[test]
fn thousand_devices_are_scraped_in_one_read_and_what_was_used_has_its_zeros() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("metrics.sock");
    let mut daemon = Daemon::start();
    let file = daemon.dir.join("r.toml");
    let mut scraped = |devices: u32| {
        daemon.terminate();
        let devices = (0..devices).map(|n| format!("[[device]]\nname = \"d{n}\"\nmgmtdev = \"sim/net\"\n"));
        std::fs::write(&file, devices.collect::<String>()).unwrap();
        daemon.start_again(&["--config", file.to_str().unwrap(), "--metrics", path.to_str().unwrap()]);
        // The fastest tells what it takes; the others, what else is on.
        let (mut answer, mut fastest) = (String::new(), Duration::MAX);
        for _ in 0..SCRAPES {
            let begun = Instant::now();
            answer = ask(&path, "GET /metrics HTTP/1.1\r\n\r\n");
            fastest = fastest.min(begun.elapsed());
            // One that comes sooner waits for its part of the time.
            std::thread::sleep(Duration::from_millis(500));
        }
        (answer, fastest)
    };
    let (of_hundred, (answer, fastest)) = (scraped(100).1, scraped(1000));
    println!("scraped in {fastest:?}; a hundred in {of_hundred:?}");
    assert!(fastest < of_hundred * SCRAPED_WITHIN, "{fastest:?}, and {of_hundred:?} of a hundred");
    let lines = answer.lines().filter(|line| line.starts_with("ringway_queue_packets_total{")).count();
    assert_eq!(lines, 2000);
    assert!(!answer.contains("ringway_queue_drops_total{"), "of queues that nobody used");
    let mut guest = Guest::connect(&daemon.socket("d7"), GuestOptions::default()).unwrap();
    while guest.turn(16).unwrap() == 0 {}
    wait_for("its drops are told", || {
        let answer = ask(&path, "GET /metrics HTTP/1.1\r\n\r\n");
        answer.contains(
            "ringway_queue_drops_total{dev=\"d7\",queue=\"1\",type=\"tx\",reason=\"spoofed_mac\"} 0\n",
        )
    });
}

/// However often they ask, and however often they only come.
#[test]
fn scrapers_together_have_their_part_of_the_daemons_time_and_no_more() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("metrics.sock");
    let daemon = Daemon::start_with(&["--metrics", path.to_str().unwrap()]);
    let scrape = || ask(&path, "GET /metrics HTTP/1.1\r\n\r\n");
    let begun = Instant::now();
    let answers: Vec<String> = std::thread::scope(|scope| {
        let scrapers: Vec<_> =
            (0..4).map(|_| scope.spawn(|| [scrape(), scrape(), scrape(), scrape()])).collect();
        scrapers.into_iter().flat_map(|scraper| scraper.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|answer| answer.ends_with("# EOF\n")), "{answers:?}");
    let made = answers.iter().collect::<BTreeSet<_>>().len() as u128;
    assert!(made >= 4 && made <= begun.elapsed().as_millis() / 250 + 1, "{made} in {:?}", begun.elapsed());

    let is_over = AtomicBool::new(false);
    let (busy, passed) = std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    drop(UnixStream::connect(&path));
                    // Others have the processor, too, and what waits to be taken is not without end.
                    std::thread::sleep(Duration::from_micros(100));
                }
            });
        }
        let (before, begun) = (daemon.control_ticks(), Instant::now());
        std::thread::sleep(Duration::from_secs(2));
        let busy = Duration::from_millis(10) * u32::try_from(daemon.control_ticks() - before).unwrap();
        is_over.store(true, Ordering::Relaxed);
        (busy, begun.elapsed())
    });
    // A tenth is theirs, without what it takes to begin a turn.
    assert!(busy < passed / 3, "{busy:?} of {passed:?}");
    wait_for("they waited", || told(&scrape(), "ringway_scrape_waits_total", &[]) > Some(0.0));
}

/// The rules that are installed beside the programs.
fn rules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus")
}

/// What the dashboard asks a Prometheus, with its variables replaced by all that there is.
fn queries() -> Vec<String> {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("expr").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| collect(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let file = rules().join("../grafana/ringway.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut found = Vec::new();
    collect(&dashboard, &mut found);
    let variables = [("$__rate_interval", "10s"), ("$job", "ringway"), ("$instance", ".*"), ("$dev", ".*")];
    for query in &mut found {
        for (name, value) in variables {
            *query = query.replace(name, value);
        }
        assert!(!query.contains('$'), "{query} has a variable that nothing stands for");
    }
    assert!(found.len() > 20, "{found:?}");
    found
}

/// A guest's network device and disk that were used, and a disk on a file.
fn used(daemon: &Daemon) -> (Guest, Port) {
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    daemon.run("dev add name d0 mgmtdev sim/blk size 1M").good();
    let image = daemon.dir.join("d1.img");
    std::fs::File::create(&image).and_then(|file| file.set_len(1 << 20)).unwrap();
    daemon.run(&format!("dev add name d1 mgmtdev file path {}", image.display())).good();
    let mut guest = Guest::connect(&daemon.socket("vm0"), GuestOptions::default()).unwrap();
    while guest.turn(16).unwrap() == 0 {}
    let mut port = Port::connect(&daemon.socket("d0"), BlockOptions::default()).unwrap();
    read(&mut port);
    (guest, port)
}

fn read(port: &mut Port) {
    let (status, _) = port.perform(Request::read(0, 4096), &mut [0; 4096]).unwrap();
    assert_eq!(status, Status::Ok);
}

#[test]
fn alert_rules_and_the_dashboard_name_only_metrics_that_a_daemon_has() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("metrics.sock");
    let daemon = Daemon::start_with(&["--metrics", path.to_str().unwrap()]);
    let _used = used(&daemon);
    let text = std::fs::read_to_string(rules().join("ringway.rules.yml")).unwrap() + &queries().join("\n");
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let named = text.split(|c| !is_of_name(c)).filter(|word| word.starts_with("ringway_"));
    let named: BTreeSet<&str> = named.collect();
    assert!(named.len() > 20, "{named:?}");
    let mut missing = named.clone();
    wait_for("all are told", || {
        let answer = ask(&path, "GET /metrics HTTP/1.1\r\n\r\n");
        let is_told = |name: &str| answer.lines().any(|line| line.split(['{', ' ']).next() == Some(name));
        missing.retain(|name| !is_told(name));
        missing.is_empty()
    });
    // Each says what it is in a sentence.
    let answer = ask(&path, "GET /metrics HTTP/1.1\r\n\r\n");
    let helps: Vec<&str> = answer.lines().filter(|line| line.starts_with("# HELP ")).collect();
    assert!(helps.len() > 40, "{helps:?}");
    for help in helps {
        assert!(help.split(' ').count() > 4, "{help}");
    }
}

#[test]
#[ignore = "needs prometheus and promtool (prometheus)"]
fn prometheus_scrapes_a_daemon_and_takes_the_alert_rules_and_the_dashboards_queries() {
    for words in [["check", "rules", "ringway.rules.yml"], ["test", "rules", "ringway.rules.test.yml"]] {
        let done = Command::new("promtool").args(words).current_dir(rules()).output().unwrap();
        assert!(done.status.success(), "{words:?}: {done:?}");
    }
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (own, theirs) = (free(), free());
    let daemon = Daemon::start_with(&["--metrics", &own.to_string()]);
    let (mut guest, mut port) = used(&daemon);
    let place = tempfile::tempdir().unwrap();
    let config = place.path().join("prometheus.yml");
    let text = format!(
        "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
         rule_files: [{}]\n\
         scrape_configs:\n- job_name: ringway\n  static_configs:\n  - targets: [\"{own}\"]\n",
        rules().join("ringway.rules.yml").display()
    );
    std::fs::write(&config, text).unwrap();
    let log = std::fs::File::create(place.path().join("log")).unwrap();
    let mut prometheus = Command::new("prometheus");
    prometheus
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", place.path().join("data").display()))
        .arg(format!("--web.listen-address={theirs}"))
        .stdout(Stdio::null())
        .stderr(log);
    let _ends = Ends(prometheus.spawn().unwrap());
    let query = |what: &str| -> Option<Value> {
        let mut stream = TcpStream::connect(theirs).ok()?;
        write!(stream, "GET {what} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    };
    let value = |name: &str| -> Option<String> {
        let answer = query(&format!("/api/v1/query?query={name}"))?;
        Some(answer["data"]["result"][0]["value"][1].as_str()?.to_owned())
    };
    wait_for("it is scraped", || value("up").as_deref() == Some("1"));
    wait_for("its counters are there", || value("ringway_queue_packets_total").is_some());
    // Each query of the dashboard is one, and is answered with something.
    let asked = queries();
    let rule = |(nth, query): (usize, &String)| {
        format!("  - record: query:{nth}\n    expr: {}\n", serde_json::to_string(query).unwrap())
    };
    let text = asked.iter().enumerate().map(rule).collect::<String>();
    let file = place.path().join("dashboard.yml");
    std::fs::write(&file, format!("groups:\n- name: dashboard\n  rules:\n{text}")).unwrap();
    let checked = Command::new("promtool").args(["check", "rules"]).arg(&file).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
    for asked in &asked {
        let what = format!("/api/v1/query?query={}", encoded(asked));
        wait_for(asked, || {
            guest.turn(16).unwrap();
            read(&mut port);
            let answer = query(&what).unwrap_or_default();
            answer["data"]["result"].as_array().is_some_and(|result| !result.is_empty())
        });
    }
    let loaded = query("/api/v1/rules").unwrap();
    assert_eq!(loaded["data"]["groups"][0]["rules"].as_array().unwrap().len(), 11, "{loaded}");
    drop(daemon);
    wait_for("it is seen to be gone", || value("up").as_deref() == Some("0"));
}

/// As a part of a URL.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// A program that ends with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
