//! What Prometheus scrapes, from a daemon that runs.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringway_guest::{Guest, GuestOptions};

use crate::support::{Daemon, SOON, wait_for};

/// Of the daemon's scrapers at a time.
const SCRAPERS: usize = 8;

fn ask(path: &Path, request: &str) -> String {
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
        "# TYPE ringway_queue_packets counter",
        "ringway_queue_packets_total{dev=\"vm0\",queue=\"1\",type=\"tx\"} 0",
        "ringway_device_connections_total{dev=\"vm0\"} 0",
        "ringway_device_state{dev=\"vm0\",mgmtdev=\"sim/net\",state=\"waiting\"} 1",
        "# TYPE ringway_core_busy_cycles counter",
        "# TYPE ringway_core_longest_turn_ns gauge",
        "# TYPE ringway_core_tsc_hz gauge",
        "ringway_scrapes_total 0",
    ] {
        assert!(body.lines().any(|known| known == line), "{line} is not in\n{body}");
    }
    assert!(ask(&path, "GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    // As many as are served at a time say nothing: the next one is turned away at once.
    let silent: Vec<_> = (0..SCRAPERS).map(|_| UnixStream::connect(&path).unwrap()).collect();
    assert_eq!(scrape(), "");
    drop(silent);
    let mut answer = String::new();
    wait_for("a place", || {
        answer = scrape();
        !answer.is_empty()
    });
    let refused = |line: &str| answer.lines().any(|known| known.starts_with(line) && !known.ends_with(" 0"));
    assert!(refused("ringway_scrapes_refused_total{reason=\"too_many\"}"), "{answer}");
    assert!(refused("ringway_scrapes_refused_total{reason=\"failed\"}"), "{answer}");
}

#[test]
fn thousand_devices_are_scraped_in_one_read_and_what_was_used_has_its_zeros() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("metrics.sock");
    let mut daemon = Daemon::start();
    daemon.terminate();
    let file = daemon.dir.join("r.toml");
    let devices = (0..1000).map(|n| format!("[[device]]\nname = \"d{n}\"\nmgmtdev = \"sim/net\"\n"));
    std::fs::write(&file, devices.collect::<String>()).unwrap();
    daemon.start_again(&["--config", file.to_str().unwrap(), "--metrics", path.to_str().unwrap()]);
    let begun = Instant::now();
    let answer = ask(&path, "GET /metrics HTTP/1.1\r\n\r\n");
    // Built without optimisation, on a machine that is busy: 50 ms is what it takes as it is installed.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
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

/// The rules that are installed beside the programs.
fn rules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus")
}

#[test]
fn alert_rules_name_only_metrics_that_a_daemon_has() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("metrics.sock");
    let daemon = Daemon::start_with(&["--metrics", path.to_str().unwrap()]);
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    let mut guest = Guest::connect(&daemon.socket("vm0"), GuestOptions::default()).unwrap();
    while guest.turn(16).unwrap() == 0 {}
    let text = std::fs::read_to_string(rules().join("ringway.rules.yml")).unwrap();
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let named = text.split(|c| !is_of_name(c)).filter(|word| word.starts_with("ringway_"));
    let named: BTreeSet<&str> = named.map(|word| word.trim_end_matches("_total")).collect();
    assert!(named.len() > 5, "{named:?}");
    wait_for("all are told", || {
        let answer = ask(&path, "GET /metrics HTTP/1.1\r\n\r\n");
        named.iter().all(|name| answer.contains(&format!("# TYPE {name} counter\n")))
    });
}

#[test]
#[ignore = "needs prometheus and promtool (prometheus)"]
fn prometheus_scrapes_a_daemon_and_takes_the_alert_rules() {
    for words in [["check", "rules", "ringway.rules.yml"], ["test", "rules", "ringway.rules.test.yml"]] {
        let done = Command::new("promtool").args(words).current_dir(rules()).output().unwrap();
        assert!(done.status.success(), "{words:?}: {done:?}");
    }
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (own, theirs) = (free(), free());
    let daemon = Daemon::start_with(&["--metrics", &own.to_string()]);
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
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
    let query = |what: &str| -> Option<serde_json::Value> {
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
    let loaded = query("/api/v1/rules").unwrap();
    assert_eq!(loaded["data"]["groups"][0]["rules"].as_array().unwrap().len(), 7, "{loaded}");
    drop(daemon);
    wait_for("it is seen to be gone", || value("up").as_deref() == Some("0"));
}

/// A program that ends with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
