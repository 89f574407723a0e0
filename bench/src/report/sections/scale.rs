//! How cost grows: curves, starts, times, and the idle policy.

use serde::de::DeserializeOwned;

use super::super::axis::{Scale, short};
use super::super::chart::{Bars, Line, Lines, told};
use super::super::html::Html;
use super::super::reading::Sourced;
use super::super::reading::plain;
use super::super::tables::table;
use crate::record::Record;
use crate::scale::adaptive::Adaptive;
use crate::scale::bridge_cores::{BridgeCores, WAYS};
use crate::scale::curve::{Curve, Point};
use crate::scale::disks::Idle;
use crate::scale::start::{Launch, Start, packet_ms};
use crate::scale::times::Times;
use crate::scale::watched::Scrape;
use crate::stats::{Latency, Spread};

/// What `scale` found; what was not measured, or has another form, is None.
#[derive(Debug)]
pub(crate) struct Scaled {
    pub(crate) idle: Option<Curve>,
    busy: Option<Curve>,
    pub(crate) regions: Option<Curve>,
    pub(crate) watched: Option<Curve>,
    pub(crate) scrape: Option<Scrape>,
    ports: Option<Curve>,
    times: Option<Times>,
    pub(crate) start: Option<Start>,
    pub(crate) adaptive: Option<Adaptive>,
    disks: Option<Curve>,
    pub(crate) idle_disks: Option<Vec<Idle>>,
    pub(crate) bridge_cores: Option<BridgeCores>,
}

impl Scaled {
    /// Nothing of it was understood.
    pub(crate) fn is_empty(&self) -> bool {
        let curves = [&self.idle, &self.busy, &self.regions, &self.watched, &self.ports, &self.disks];
        curves.iter().all(|curve| curve.is_none())
            && self.scrape.is_none()
            && self.times.is_none()
            && self.start.is_none()
            && self.adaptive.is_none()
            && self.idle_disks.is_none()
            && self.bridge_cores.is_none()
    }
}

/// Reads it.
pub(crate) fn scaled(record: &Record) -> Scaled {
    fn part<T: DeserializeOwned>(record: &Record, name: &str) -> Option<T> {
        serde_json::from_value(record.result.get(name)?.clone()).ok()
    }
    Scaled {
        idle: part(record, "idle"),
        busy: part(record, "busy"),
        regions: part(record, "regions"),
        watched: part(record, "watched"),
        scrape: part(record, "scrape"),
        ports: part(record, "ports"),
        times: part(record, "times"),
        start: part(record, "start"),
        adaptive: part(record, "adaptive"),
        disks: part(record, "disks"),
        idle_disks: part(record, "idle_disks"),
        bridge_cores: part(record, "bridge_cores"),
    }
}

/// Draws one run.
pub(crate) fn draw(html: &mut Html, sourced: &Sourced) {
    let found = scaled(&sourced.record);
    let ring = sourced.record.parameters.get("ring").map(plain).unwrap_or_default();
    let size = sourced.record.parameters.get("size").map(plain).unwrap_or_default();
    html.leaf("h3", &[], &format!("{}: {ring} rings, {size} bytes", sourced.source));
    for (title, curve) in [
        ("One busy device beside idle ones", &found.idle),
        ("Busy devices on one core, all together", &found.busy),
        ("Buffers scattered over regions of memory", &found.regions),
        ("One busy device while others look at its daemon", &found.watched),
        ("Ports of a bridge that talk in pairs, all together", &found.ports),
    ] {
        if let Some(curve) = curve {
            draw_curve(html, title, curve, PACKETS);
        }
    }
    if let Some(scrape) = &found.scrape {
        let row = vec![scrape.devices.to_string(), told(scrape.ms)];
        table(html, &["devices in one scrape", "milliseconds"], &[row]);
    }
    if let Some(found) = &found.bridge_cores {
        draw_bridge_cores(html, found);
    }
    if let Some(start) = &found.start {
        draw_start(html, start);
    }
    if let Some(times) = &found.times {
        let row = |what: &str, spread: Spread| vec![what.to_owned(), told(spread)];
        let rows = [
            row("dev.add, the first 100 devices", times.add_us[0]),
            row("dev.add, the last 100 of 1,000", times.add_us[1]),
            row("the command `ringway dev add` beside 1,000 devices", times.command_us),
            row("connecting a front-end, the first 100", times.connect_us[0]),
            row("connecting a front-end, the last 100 of 1,000", times.connect_us[1]),
            row("the first frame there and back, the first 100", times.first_frame_us[0]),
            row("the first frame there and back, the last 100 of 1,000", times.first_frame_us[1]),
        ];
        table(html, &["what", "microseconds"], &rows);
    }
    if let Some(adaptive) = &found.adaptive {
        draw_adaptive(html, adaptive);
    }
    if let Some(curve) = &found.disks {
        draw_curve(html, "Busy disks in memory on one core, all together", curve, REQUESTS);
    }
    if let Some(idle) = &found.idle_disks {
        let rows: Vec<Vec<String>> = idle
            .iter()
            .map(|point| vec![point.devices.to_string(), short(point.cpu_percent), short(point.each_percent)])
            .collect();
        table(html, &["idle disks on files, adaptive", "% of a core", "% of a core a device"], &rows);
    }
}

fn draw_bridge_cores(html: &mut Html, found: &BridgeCores) {
    let rows: Vec<Vec<String>> = WAYS
        .iter()
        .enumerate()
        .filter_map(|(place, way)| {
            let cycles = found.curve.points.get(place)?.spread(|round| round.cycles_per_packet)?;
            Some(vec![(*way).to_owned(), told(cycles), told(found.kept(place)?)])
        })
        .collect();
    table(html, &["a bridge's workers", "cycles a frame, of both", "frames a busy cycle, beside one"], &rows);
    if found.in_turns {
        html.leaf(
            "p",
            &[],
            "Guests and workers took turns on two cores, a worker's guests on the other one.",
        );
    }
}

fn draw_curve(html: &mut Html, title: &str, curve: &Curve, counted: Counted) {
    let counts: Vec<f64> = curve.points.iter().map(|point| point.count as f64).collect();
    let line = |name: &str, of: fn(&Point) -> Option<Spread>| Line {
        name: name.to_owned(),
        points: curve.points.iter().filter_map(|point| Some((point.count as f64, of(point)?))).collect(),
    };
    Lines {
        title: title.to_owned(),
        x_name: curve.over.clone(),
        y_name: "beside the first (times)".to_owned(),
        x: Scale::Steps(counts),
        y: Scale::Linear,
        lines: vec![
            line("throughput", |point| point.ratio),
            line(&format!("the worker's {}", counted.cycles), |point| point.cost_ratio),
        ],
        mark: Some((1.0, String::new())),
    }
    .draw(html);
    let rows: Vec<Vec<String>> =
        curve.points.iter().map(|point| row(point.count.to_string(), point)).collect();
    let heads = [curve.over.as_str()].into_iter().chain(counted.heads()).collect::<Vec<_>>();
    table(html, &heads, &rows);
}

/// What a curve counts, in words.
#[derive(Clone, Copy)]
struct Counted {
    rate: &'static str,
    cycles: &'static str,
}

impl Counted {
    /// The heads of a point's row.
    fn heads(self) -> [&'static str; 6] {
        [self.rate, "beside the first", self.cycles, "beside the first", "slices discarded", "lost"]
    }
}

const PACKETS: Counted = Counted { rate: "Mpps", cycles: "cycles a packet" };
const REQUESTS: Counted = Counted { rate: "M requests/s", cycles: "cycles a request" };

fn row(name: String, point: &Point) -> Vec<String> {
    let spread = |of: Option<Spread>| of.map_or("-".to_owned(), told);
    let (kept, discarded) = point.slices();
    vec![
        name,
        spread(point.mpps()),
        spread(point.ratio),
        spread(point.spread(|round| round.cycles_per_packet)),
        spread(point.cost_ratio),
        format!("{discarded} of {}", kept + discarded),
        point.lost.to_string(),
    ]
}

fn draw_start(html: &mut Html, start: &Start) {
    let mut bars = Vec::new();
    let mut rows = Vec::new();
    let peer = start.peer.iter().map(|peer| (peer.version.clone(), &peer.launches));
    for (name, launches) in [("ringwayd".to_owned(), &start.ours)].into_iter().chain(peer) {
        let Some(packet) = packet_ms(launches) else { continue };
        let part = |of: fn(&Launch) -> f64| {
            Spread::of(&launches.iter().map(of).collect::<Vec<_>>()).map_or("-".to_owned(), told)
        };
        rows.push(vec![
            name.clone(),
            part(|launch| launch.socket_ms),
            part(|launch| launch.rings_ms),
            told(packet),
            launches.len().to_string(),
        ]);
        bars.push((name, packet, None));
    }
    let title = "From the start of the process to the first packet".to_owned();
    Bars { title, name: "milliseconds".to_owned(), bars, mark: Some((100.0, "target".to_owned())) }
        .draw(html);
    table(html, &["process", "socket, ms", "rings, ms", "first packet, ms", "starts"], &rows);
}

fn draw_adaptive(html: &mut Html, adaptive: &Adaptive) {
    let wake = &adaptive.wake;
    let us = |ns: u64| short(ns as f64 / 1e3);
    let latency = |name: &str, of: &Latency| {
        let parts = [of.p50, of.p90, of.p99, of.p999, of.p9999, of.max].map(us);
        [vec![name.to_owned(), of.count.to_string()], parts.to_vec()].concat()
    };
    html.leaf(
        "p",
        &[],
        &format!(
            "Under adaptive, {} idle devices take {} % of a core. A frame through a worker that slept, {} µs after the last \
             one: {} of {} were discarded because the guest's own core was away for more than {} µs; the worker woke {} times.",
            adaptive.idle_devices,
            short(adaptive.idle_cpu_percent),
            wake.pause_us,
            wake.discarded,
            wake.samples,
            wake.bound_us,
            wake.wakeups,
        ),
    );
    let heads = ["waking, µs", "frames", "p50", "p90", "p99", "p99.9", "p99.99", "slowest"];
    table(
        html,
        &heads,
        &[
            latency("kept", &wake.latency),
            latency("all", &wake.unfiltered),
            latency("a bare eventfd", &wake.bare),
        ],
    );
    let policies = crate::scale::adaptive::POLICIES.iter().zip(&adaptive.busy);
    let rows: Vec<Vec<String>> = policies.map(|(policy, point)| row((*policy).to_owned(), point)).collect();
    let heads = ["busy under"].into_iter().chain(PACKETS.heads()).collect::<Vec<_>>();
    table(html, &heads, &rows);
}
