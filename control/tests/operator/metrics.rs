//! What Prometheus scrapes, from a daemon that runs.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::support::{Daemon, SOON};

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
    crate::support::wait_for("a place", || {
        answer = scrape();
        !answer.is_empty()
    });
    let refused = |line: &str| answer.lines().any(|known| known.starts_with(line) && !known.ends_with(" 0"));
    assert!(refused("ringway_scrapes_refused_total{reason=\"too_many\"}"), "{answer}");
    assert!(refused("ringway_scrapes_refused_total{reason=\"failed\"}"), "{answer}");
}
