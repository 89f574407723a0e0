//! The page of `report`, made from samples by the program and opened in a real browser.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

#[test]
fn page_holds_every_result_and_names_what_it_could_not_read() {
    let folder = samples();
    let (page, warnings) = make(folder.path());
    for part in [
        "dpdk-testpmd",
        "generator-bound, not counted",
        "States of the machine",
        "Busy cycles a packet beside the peer",
        "median of 1 paths and sizes",
        "Bytes a second beside other ways to a TAP",
        "UDP, host to guest, 1514 B, split, vhost-net",
        "A Linux guest as the load, for shape",
        "Throughput by frame size",
        "Latency by percentile",
        "novelty",
        "31337",
        "broken.json:2",
    ] {
        assert!(page.contains(part), "{part} is not on the page");
    }
    assert!(warnings.contains("broken.json:2"), "{warnings}");
    assert!(!page.contains("<script") && !page.contains("<img") && !page.contains("http:"), "{page}");
}

#[test]
fn missing_folder_is_an_error_that_names_it() {
    let output = bench(&["report", "/nowhere/at/all"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere/at/all"));
}

#[test]
#[ignore = "needs chromium: run deploy/test"]
fn browser_draws_the_page() {
    let folder = samples();
    let (page, _) = make(folder.path());
    let file = folder.path().join("report.html");

    // As it is: nothing to complain of, and something to see.
    let shot = folder.path().join("report.png");
    let (_, log) = browse(&file, &[&format!("--screenshot={}", shot.display())]);
    assert!(!log.contains("CONSOLE"), "the browser complained:\n{log}");
    let picture = fs::read(&shot).expect("a screenshot");
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 20_000, "{} bytes", picture.len());

    // With a script of the test's, and without the page's own policy: what a file's strings could start would run.
    let policy = "default-src &#39;none&#39;; style-src &#39;unsafe-inline&#39;";
    assert!(page.contains(policy), "the page has no policy of its own");
    let probed = page
        .replace(policy, "img-src *")
        .replace("<head>", &format!("<head><script>{BEFORE}</script>"))
        .replace("</body>", &format!("<pre id=\"facts\"></pre><script>{PROBE}</script></body>"));
    let probe = folder.path().join("probe.html");
    fs::write(&probe, probed).expect("a page");
    for width in [1280, 1200, 480] {
        let (dom, _) = browse(&probe, &["--dump-dom", &format!("--window-size={width},900")]);
        let facts =
            dom.split_once("<pre id=\"facts\">").and_then(|(_, rest)| Some(rest.split_once("</pre>")?.0));
        let facts: Value = serde_json::from_str(facts.expect("the probe's facts")).expect("JSON");
        println!("{width}: {facts}");
        assert_eq!(facts["title"], "Ringway, measured");
        assert_eq!(facts["faults"], json!([]), "errors in the page");
        assert_eq!(facts["fetched"], 0, "something was fetched");
        assert!(facts["charts"].as_u64() >= Some(14), "too few charts");
        assert_eq!(facts["empty"], json!([]), "charts that were not drawn");
        assert_eq!(facts["outside"], json!([]), "texts beyond the edge of their chart");
        assert_eq!(facts["overlapping"], json!([]), "texts over each other");
        assert_eq!(facts["wider"], 0, "the page is wider than its window");
        if width >= 1200 {
            assert_eq!(facts["hidden"], json!([]), "columns that are seen only by moving a scroll bar");
            assert!(facts["tables"].as_u64() >= Some(10), "too few tables");
        }
    }
}

/// Hears of every error from the first one on.
const BEFORE: &str = "window.faults = []; \
    addEventListener('error', event => faults.push(String(event.message || event.target.tagName)), true);";

/// What the browser made of the page.
const PROBE: &str = "
    const charts = [...document.querySelectorAll('svg.chart')];
    const empty = [], outside = [], overlapping = [];
    for (const chart of charts) {
        const name = chart.getAttribute('aria-label'), box = chart.getBBox(), frame = chart.getBoundingClientRect();
        if (!(box.width > 300 && box.height > 40 && frame.width > 200)) empty.push(name);
        const texts = [...chart.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
        texts.forEach(([text, a], at) => {
            if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.top < frame.top - 1 || a.bottom > frame.bottom + 1)
                outside.push(name + ': ' + text);
            for (const [other, b] of texts.slice(at + 1))
                if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
                    overlapping.push(name + ': ' + text + ' / ' + other);
        });
    }
    document.getElementById('facts').textContent = JSON.stringify({
        title: document.title, faults, fetched: performance.getEntriesByType('resource').length,
        charts: charts.length, empty, outside, overlapping,
        hidden: [...document.querySelectorAll('.wide')].filter(box => box.scrollWidth > box.clientWidth + 1)
            .map(box => [...box.querySelectorAll('th')].map(head => head.textContent).join(' | ') +
                ': ' + box.scrollWidth + ' in ' + box.clientWidth),
        tables: [...document.querySelectorAll('.wide')].filter(box => box.clientWidth > 0).length,
        wider: Math.max(0, document.documentElement.scrollWidth - innerWidth),
    });";

/// Results of every command, and what cannot be read.
fn samples() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: String| fs::write(folder.path().join(name), text).expect("a file");
    let spread = |median: f64| json!({"median": median, "low": median * 0.9, "high": median * 1.1});

    let mut lines = Vec::new();
    for (number, (ring, size, touch, ratio)) in [
        ("split", 64, "header", 1.62),
        ("packed", 64, "header", 1.41),
        ("split", 1518, "header", 1.55),
        ("packed", 1518, "all", 1.31),
    ]
    .into_iter()
    .enumerate()
    {
        lines.push(record(
            "compare",
            number as u64,
            json!({"job": "loopback", "ring": ring, "size": size, "touch": touch}),
            json!({
                "ours": {"mpps": [16.0, 16.5, 15.8]},
                "peer": {"name": "dpdk-testpmd", "version": "22.11.11", "mpps": [10.0, 10.1, 9.9]},
                "latency_ratio": {"pps": 5e6, "p50": spread(0.7), "p99": spread(0.85)},
                "ratio": spread(ratio), "of_limit": 0.55 + number as f64 / 20.0, "discarded": 1,
            }),
        ));
    }
    // As they are now: by which driver, who was the limit, in which state, and what a packet cost.
    let spent = |cycles: f64| json!({"mpps": spread(11.25), "cycles_per_packet": spread(cycles), "packets_per_burst": spread(31.75)});
    let busy: Vec<Value> = [Value::Null, json!(0.25), json!(0.5), json!(0.9)]
        .into_iter()
        .map(|share| json!({"share": share, "ours": spent(123.25), "peer": spent(456.75), "ratio": spread(0.2715)}))
        .collect();
    let state = |line: f64, pairs: u32| json!({"line_ns": spread(line), "pairs": pairs, "ours": spread(30.25), "peer": spread(18.75), "ratio": spread(1.6125)});
    for (bound, driver) in [(true, None), (false, None), (false, Some("in-order-mergeable"))] {
        let mut parameters =
            json!({"job": "link", "ring": "packed", "peer": "dpdk", "size": "1518", "touch": "none"});
        if let Some(path) = driver {
            parameters["driver_path"] = json!(path);
            parameters["queue_size"] = json!(1024);
        }
        let rounds = json!({"rounds": [{"mpps": 30.25}, {"mpps": 29.5}]});
        lines.push(record(
            "compare",
            20,
            parameters,
            json!({
                "ours": {"throughput": rounds}, "peer": {"name": "dpdk", "version": "DPDK 26.11.0-rc0", "throughput": rounds},
                "ratio": spread(1.6125), "of_limit": 0.3875, "ceiling_mpps": 41.25, "generator_bound": bound,
                "busy": busy, "states": [state(28.25, 7), state(115.5, 4)],
            }),
        ));
    }
    for (backing, depth, ratio) in [("memory", 32, 4.6), ("memory", 1, 6.0), ("direct", 32, 1.2)] {
        let rounds = json!({"rounds": [{"kiops": 700.0, "latency": {"p50": 1500, "p99": 4000}}]});
        lines.push(record(
            "compare",
            40,
            json!({"job": "blk", "ring": "split", "peer": "qsd", "backing": backing,
                   "disk": {"op": "read", "size": 4096, "depth": depth, "touch": "head"}}),
            json!({
                "ours": {"throughput": rounds}, "peer": {"name": "qsd", "version": "10.0.2", "throughput": rounds},
                "ratio": spread(ratio), "p50_ratio": spread(0.15), "p99_ratio": spread(0.3),
                "ceiling_kiops": 800.0, "generator_bound": depth == 32, "tried": [["threads", 160.0], ["io_uring", 320.0]],
            }),
        ));
    }
    // With names as long as they come.
    let rounds = json!({"rounds": [{"mpps": 17.1234}, {"mpps": 16.8765}]});
    lines.push(record(
        "compare",
        21,
        json!({"job": "bridge", "ring": "packed", "peer": "ovs", "ports": 64, "size": "1518", "touch": "header", "talk": "one", "flood": 5.0}),
        json!({
            "ours": {"throughput": rounds},
            "peer": {"name": "ovs", "version": "ovs-vswitchd (Open vSwitch) 3.1.0, DPDK 22.11.11", "throughput": rounds},
            "ratio": spread(4.0625), "of_limit": null, "ceiling_mpps": 41.2345, "generator_bound": true,
            "busy": busy, "states": [state(28.2512, 7), state(115.5432, 4)],
        }),
    ));
    let served = |name: &str, version: &str| {
        let way = json!({"sent": 2000, "received": 1999, "lost": 1, "duplicated": 0, "corrupt": null});
        json!({"name": name, "version": version, "flags": [], "kernel": "6.12.117+deb12-amd64", "features": [0, 1], "ways": [way, way]})
    };
    lines.push(record(
        "compare",
        22,
        json!({"job": "link", "ring": "packed", "peer": "dpdk", "size": "1518", "driver": "linux"}),
        json!({"shape": {"ours": served("ringway", "0.1.0 (0123456789ab-dirty)"), "peer": served("dpdk", "DPDK 22.11.11"), "reading": "counts"}}),
    ));
    write("compare-of-all-networks-and-disks.json", lines.join("\n"));

    let books = json!({"sent": 242_123_456u64, "received": 242_123_000u64, "lost": 456, "corrupt": 0, "out_of_order": 0});
    let side = |gbps: f64| json!({"gbps": spread(gbps), "mpps": spread(0.123_45), "cycles_per_frame": spread(47_244.25), "books": books, "rounds": []});
    let row = |protocol: &str, direction: &str, size: Value| {
        json!({"protocol": protocol, "direction": direction, "size": size, "ours": side(12.3456), "peer": side(9.8765),
               "ratio": spread(1.25), "cycles_ratio": spread(0.75), "discarded": 0, "noisy": false, "states": []})
    };
    let rows: Vec<Value> = [("tcp", Value::Null), ("udp", json!(64)), ("udp", json!(1514))]
        .into_iter()
        .flat_map(|(protocol, size)| {
            [row(protocol, "to-host", size.clone()), row(protocol, "to-guest", size)]
        })
        .collect();
    let tap = |peer: &str, version: &str| {
        let who = |name: &str, version: &str| json!({"name": name, "version": version, "flags": []});
        let placed = "the guest's on core 0, the host's on core 2, in turns on core 1 the others";
        let result = json!({"ours": who("ringway", "0.1.0"), "peer": who(peer, version), "placed": placed, "rows": rows});
        record("tap", 50, json!({"peer": peer, "ring": "split", "wrong": null}), result)
    };
    let lines =
        [tap("plain", "read and write, a frame each"), tap("vhost-net", "of Linux 6.12.117+deb12-amd64")];
    write("tap.json", lines.join("\n"));

    let mut lines = Vec::new();
    for (number, depth) in [1, 8, 32, 128].into_iter().enumerate() {
        let round = |factor: f64| {
            json!({"kiops": 90.0 * factor * f64::from(depth).sqrt(), "mbps": 370.0,
                   "counts": {"errors": 0, "malformed": 0, "stale": 0, "torn": 0, "misplaced": 0, "damaged": 0},
                   "latency": {"p50": 1500 * depth, "p90": 1600 * depth, "p99": 4000 * depth, "p999": 9000 * depth, "p9999": 20000 * depth}})
        };
        let outcome = |ring: &str, factor: f64| json!({"ring": ring, "backend": {"name": "ringway"}, "series": {"rounds": [round(factor), round(factor * 1.1)]}});
        lines.push(record(
            "blk",
            60 + number as u64,
            json!({"disk": {"ring": "both", "op": "read", "size": 4096, "depth": depth, "queues": 1}, "rate": null}),
            json!({"runs": [outcome("split", 1.0), outcome("packed", 1.2)]}),
        ));
    }
    write("blk.json", lines.join("\n"));

    let mut lines = Vec::new();
    for (ring, factor) in [("split", 1.0), ("packed", 1.2)] {
        for (size, queue_size) in
            [(64, 256), (256, 256), (1518, 256), (9000, 256), (64, 64), (64, 1024), (64, 4096)]
        {
            let mpps = 16.0 * factor / (1.0 + f64::from(size) / 1000.0) * f64::from(queue_size)
                / (f64::from(queue_size) + 50.0);
            let round = |more: f64| {
                json!({
                    "mpps": mpps * more, "gbps": mpps * more * f64::from(size) * 8e-3,
                    "counts": {"sent": 242_123_456u64, "received": 242_123_455u64, "bytes": 15_495_901_184u64, "lost": 1, "duplicated": 0, "reordered": 0, "corrupt": 0, "stale": 0, "exchanged": 242_123_455u64},
                    "latency": {"p50": 9000, "p90": 11_000, "p99": 14_000, "p999": 60_000, "p9999": 400_000, "max": 900_000},
                })
            };
            let parameters = json!({"ring": ring, "size": size, "touch": "header", "queue_size": queue_size, "seconds": 1.0});
            lines.push(record(
                "net",
                100,
                parameters,
                json!({"series": [round(0.97), round(1.0), round(1.02)]}),
            ));
        }
    }
    // Both formats in one record, their parameters in groups.
    let outcome = |ring: &str| {
        let round = json!({
            "mpps": 1.0, "gbps": 0.5, "counts": {"lost": 0}, "latency": {"p50": 1100, "p90": 1600, "p99": 16_000, "p999": 70_000, "p9999": 220_000},
        });
        json!({"ring": ring, "backend": {"name": "ringway"}, "pages": "4k", "series": {"rounds": [round], "discarded": 1}})
    };
    let parameters =
        json!({"port": {"ring": "both", "size": "64", "touch": "header", "queue_size": 256}, "rate": 1e6});
    lines.push(record("net", 101, parameters, json!({"runs": [outcome("split"), outcome("packed")]})));
    write("net.json", lines.join("\n"));

    let path = |group: &str, batch: u32, ns: f64, ratio: Value| json!({"name": format!("{group} batch {batch} chain 1"), "unit": "descriptor", "ns": [ns, ns * 1.1], "ratio": ratio});
    let paths: Vec<Value> = [1, 8, 32, 128]
        .into_iter()
        .flat_map(|batch| {
            let ns = 6.0 + 14.0 / f64::from(batch);
            [
                path("ringway split device", batch, ns, spread(4.2)),
                path("virtio-queue split device", batch, ns * 4.2, Value::Null),
                path("ringway packed device", batch, ns * 0.9, Value::Null),
            ]
        })
        .collect();
    write("ring.json", record("ring", 210, json!({"rounds": 5}), json!({"times": paths})));
    let floor = json!({"job": "net", "ring": "split", "size": 64, "touch": "header", "mpps": 14.9});
    write("limits.json", record("limits", 220, json!({}), json!({"exchange_ns": 47.0, "floors": [floor]})));

    let point = |count: u64, ratio: f64| {
        let round = json!({"mpps": 12.0 * ratio, "cycles_per_packet": 140.0, "packets_per_burst": 32.0, "slices": 48, "discarded": 2});
        json!({"count": count, "rounds": [round.clone(), round], "ratio": spread(ratio), "cost_ratio": spread(2.0 - ratio), "lost": 0})
    };
    let curve = |over: &str, counts: &[u64]| {
        let points: Vec<Value> =
            counts.iter().enumerate().map(|(at, count)| point(*count, 1.0 - at as f64 / 50.0)).collect();
        json!({"over": over, "points": points})
    };
    let latency = json!({"count": 5000, "p50": 30_000, "p90": 35_000, "p99": 58_000, "p999": 300_000, "p9999": 700_000, "max": 700_000});
    let launch = |ms: f64| json!({"socket_ms": ms * 0.8, "rings_ms": ms * 0.9, "packet_ms": ms, "frames": 1});
    write(
        "scale.json",
        record(
            "scale",
            200,
            json!({"ring": "split", "size": 64, "rounds": 6}),
            json!({
                "idle": curve("idle devices", &[0, 16, 256, 1000]),
                "busy": curve("busy devices", &[1, 2, 4, 8, 16, 32, 64]),
                "regions": curve("regions", &[1, 8, 64, 256, 509]),
                "ports": curve("ports", &[2, 4, 8, 16, 32, 64]),
                "disks": curve("busy disks", &[1, 4, 16, 64]),
                "idle_disks": [{"devices": 64, "cpu_percent": 3.2, "each_percent": 0.05}],
                "start": {
                    "ours": [launch(5.0), launch(6.0)],
                    "peer": {"name": "dpdk-testpmd", "version": "DPDK 22.11.11", "words": [], "launches": [launch(1200.0), launch(1210.0)]},
                },
                "adaptive": {
                    "idle_devices": 100, "idle_cpu_percent": 0.3, "busy": [point(0, 1.0), point(1, 0.99)],
                    "wake": {"samples": 5000, "wakeups": 5000, "pause_us": 1000, "bound_us": 10, "discarded": 34, "latency": latency, "unfiltered": latency, "bare": latency},
                },
            }),
        ),
    );

    // Of a command that the report does not know, from a machine that wishes it ill.
    let hostile = record(
        "novelty</h2><script>document.title='owned'</script>",
        300,
        json!({"\"><img src=x onerror=\"document.title='owned'\">": "<script>document.title='owned'</script>"}),
        json!({"deep": [{"answer": 31337}], "text": "</table></body>&lt;"}),
    );
    write("<img src=x onerror=document.title='owned'>.json", hostile);
    write(
        "broken.json",
        format!(
            "{}\n{{\"suite\": \"<script>document.title='owned'\"\n",
            record("idle", 400, json!({}), json!({"devices": 100}))
        ),
    );
    write("notes.txt", "no result".to_owned());
    folder
}

fn record(command: &str, at: u64, parameters: Value, result: Value) -> String {
    let host = json!({
        "cpu": "A processor <b>of</b> \"some\" kind", "cpus": 2, "smt": "off", "kernel": "6.12.0", "virtual_machine": true,
        "governor": null, "hugepages_1g": 0, "hugepages_2m": 512, "steal_percent": 0.25, "version": "0.1.0", "revision": "0123456789ab",
    });
    let mut record = json!({
        "suite": "ringway-bench", "schema": 1, "command": command, "words": [command, "-j"], "at": 1_790_000_000 + at,
        "host": host, "parameters": parameters,
    });
    let fields = record.as_object_mut().expect("an object");
    fields.extend(result.as_object().expect("an object").clone());
    record.to_string()
}

/// Has the program make the page; the page, and what it warned of.
fn make(folder: &Path) -> (String, String) {
    let output = bench(&["report", &folder.display().to_string()]);
    let warnings = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{warnings}");
    (fs::read_to_string(folder.join("report.html")).expect("the page"), warnings)
}

fn bench(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringway-bench")).args(words).output().expect("ringway-bench")
}

/// Opens a file in the browser; what it printed, and its log.
fn browse(file: &Path, words: &[&str]) -> (String, String) {
    let profile = tempfile::tempdir().expect("a directory");
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(words)
        .arg(format!("file://{}", file.display()))
        .output()
        .expect("chromium is not on PATH: run deploy/test, which installs it");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "chromium: {}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}
