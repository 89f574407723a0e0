//! What a Prometheus scrapes: every counter of queues, devices and workers as OpenMetrics, over HTTP.
//!
//! It is no second list of counters: what is told of a queue, a device and a worker is every number of the structures
//! that `ringway -j` prints ([`QueueInfo`], [`History`], [`CoreInfo`]). Reading takes nothing from a counter, so
//! any number of readers see the same.
//!
//! The control thread accepts, and answers a scraper's thread with what it owns ([`Reading`]); the rest, the counters of
//! queues included, is read and written by that thread. Each has [`SCRAPE_WITHIN`] for one request.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use ringway_pmd::counters::QueueCounters;
use ringway_pmd::vdpa::Class;
use rustix::event::epoll::{self, EventFlags};
use rustix::net::sockopt;
use serde_json::{Map, Value};

use crate::daemon::{Daemon, Message, Remote, Token};
use crate::fault::Fault;
use crate::frontends::session::DeviceConfig;
use crate::host::endpoint::Listening;
use crate::operator::api::{CoreInfo, History, QueueInfo};
use crate::operator::clients::ACCEPT_AGAIN;
use crate::operator::show;

/// Scrapers that are served at a time; a further one is closed and counted.
const MOST_SCRAPERS: usize = 8;
/// The longest request, its headers included.
const LONGEST_SCRAPE: usize = 8192;
/// How long one request may take, from its acceptance to its last byte.
const SCRAPE_WITHIN: Duration = Duration::from_secs(5);
/// Scrapers taken in one turn of the control thread.
const SCRAPERS_PER_TURN: usize = 16;

/// Numbers that go down as well.
const GAUGES: [&str; 3] = ["groups", "longest_turn_ns", "tsc_hz"];
/// Numbers that identify, or that are worked out of counters that are told.
const NOT_TOLD: [&str; 8] =
    ["qidx", "tid", "cycles_per_packet", "packets_per_burst_x100", "p50_ns", "p99_ns", "p999_ns", "max_ns"];

/// Where scrapers come.
pub(crate) enum Scraped {
    Unix(Listening),
    Tcp(TcpListener),
}

impl Scraped {
    /// Listens on a path, which begins with `/`, or on an address and port.
    pub(crate) fn open(place: &str) -> Result<Scraped, Fault> {
        if place.starts_with('/') {
            return Ok(Scraped::Unix(Listening::open(place.as_ref(), None, None)?));
        }
        let address: std::net::SocketAddr = place.parse().map_err(|_| {
            Fault::usage(format!("`{}` is no address with a port", crate::fault::printable(place)))
                .at("metrics")
                .hint("--metrics 127.0.0.1:9178, or the path of a socket")
        })?;
        let made = TcpListener::bind(address).and_then(|made| made.set_nonblocking(true).map(|()| made));
        made.map(Scraped::Tcp)
            .map_err(|error| Fault::system(format!("cannot listen on {address}"), error).at("metrics"))
    }

    fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Scraped::Unix(listening) => Box::new(listening.socket.accept()?.0),
            Scraped::Tcp(listener) => Box::new(listener.accept()?.0),
        })
    }
}

impl AsFd for Scraped {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Scraped::Unix(listening) => listening.socket.as_fd(),
            Scraped::Tcp(listener) => listener.as_fd(),
        }
    }
}

trait Stream: Read + Write + AsFd + Send {}
impl<T: Read + Write + AsFd + Send> Stream for T {}

/// Who scrapes, and what became of them.
#[derive(Debug, Default)]
pub(crate) struct Scrapers {
    running: AtomicUsize,
    served: AtomicU64,
    refused: AtomicU64,
    too_many: AtomicU64,
}

/// What the control thread gives a scraper.
pub(crate) struct Reading {
    generation: u64,
    devices: Vec<DeviceReading>,
    cores: Vec<(String, CoreInfo)>,
}

struct DeviceReading {
    name: String,
    mgmtdev: String,
    state: &'static str,
    class: Class,
    config: DeviceConfig,
    history: History,
    queues: Vec<Arc<QueueCounters>>,
}

impl Daemon {
    pub(crate) fn accept_scrapers(&mut self) {
        for _ in 0..SCRAPERS_PER_TURN {
            let Some(scraped) = &self.scraped else { return };
            let stream = match scraped.accept() {
                Ok(stream) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It waits there and stays readable, while this process cannot take it.
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a scraper");
                    self.accept_again_at = Some(Instant::now() + ACCEPT_AGAIN);
                    return self.watch_scraped(false);
                }
            };
            let scrapers = Arc::clone(&self.scrapers);
            if scrapers.running.load(Ordering::Relaxed) >= MOST_SCRAPERS {
                scrapers.too_many.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            scrapers.running.fetch_add(1, Ordering::Relaxed);
            let (remote, own) = (self.remote(), Arc::clone(&scrapers));
            let serve = move || {
                let served = serve(stream, &remote, &own);
                let counter = if served.is_ok() { &own.served } else { &own.refused };
                counter.fetch_add(1, Ordering::Relaxed);
                own.running.fetch_sub(1, Ordering::Relaxed);
            };
            if std::thread::Builder::new().name("metrics".to_owned()).spawn(serve).is_err() {
                scrapers.running.fetch_sub(1, Ordering::Relaxed);
                scrapers.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn watch_scraped(&self, is_on: bool) {
        let flags = if is_on { EventFlags::IN } else { EventFlags::empty() };
        if let Some(scraped) = &self.scraped {
            let _ = epoll::modify(&self.epoll, scraped, Token::Metrics.data(), flags);
        }
    }

    pub(crate) fn reading(&self) -> Reading {
        let device = |device: &crate::devices::device::Device| DeviceReading {
            name: device.name().to_owned(),
            mgmtdev: device.entry.mgmtdev.clone(),
            state: device.life.name(),
            class: device.facts.class,
            config: device.facts.config,
            history: device.history.clone(),
            queues: device.shared.counters.to_vec(),
        };
        Reading {
            generation: self.generation,
            devices: self.registry.devices().map(device).collect(),
            cores: self.show_cores().core.0,
        }
    }
}

/// Answers one request. An error: it was none that is answered with metrics.
fn serve(mut stream: Box<dyn Stream>, remote: &Remote, scrapers: &Scrapers) -> io::Result<()> {
    let by = Instant::now() + SCRAPE_WITHIN;
    let (status, body) = match request(&mut *stream, by)? {
        Asked::Metrics => {
            let (reply, answer) = bounded(1);
            remote.send(Message::Metrics { reply });
            match answer.recv_timeout(SCRAPE_WITHIN) {
                Ok(reading) => ("200 OK", text(reading, scrapers)),
                Err(_) => ("503 Service Unavailable", String::new()),
            }
        }
        Asked::Else(status) => (status, String::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    for mut rest in [head.as_bytes(), body.as_bytes()] {
        while !rest.is_empty() {
            set_timeout(&*stream, sockopt::Timeout::Send, by)?;
            match stream.write(rest)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => rest = &rest[written..],
            }
        }
    }
    if status.starts_with("200") { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Metrics,
    Else(&'static str),
}

fn request(stream: &mut dyn Stream, by: Instant) -> io::Result<Asked> {
    let mut read = Vec::new();
    let mut buffer = [0; 1024];
    while !read.windows(4).any(|end| end == b"\r\n\r\n") {
        if read.len() >= LONGEST_SCRAPE {
            return Ok(Asked::Else("431 Request Header Fields Too Large"));
        }
        set_timeout(stream, sockopt::Timeout::Recv, by)?;
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => read.extend_from_slice(&buffer[..n]),
        }
    }
    Ok(asked(&read))
}

fn asked(request: &[u8]) -> Asked {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    match (words.next(), words.next().and_then(|path| path.split(|byte| *byte == b'?').next())) {
        (Some(b"GET"), Some(b"/metrics")) => Asked::Metrics,
        (Some(b"GET"), _) => Asked::Else("404 Not Found"),
        _ => Asked::Else("405 Method Not Allowed"),
    }
}

fn set_timeout(stream: &dyn Stream, which: sockopt::Timeout, by: Instant) -> io::Result<()> {
    let left = by.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(sockopt::set_socket_timeout(stream, which, Some(left))?)
}

type Labels = Vec<(&'static str, String)>;

/// A metric, with every value that it has.
#[derive(Debug, Default)]
struct Family {
    is_gauge: bool,
    values: Vec<(Labels, u64)>,
}

/// Metrics by name.
#[derive(Debug, Default)]
struct Families(std::collections::BTreeMap<String, Family>);

impl Families {
    fn add(&mut self, name: String, is_gauge: bool, labels: Labels, value: u64) {
        let family = self.0.entry(name).or_default();
        family.is_gauge = is_gauge;
        family.values.push((labels, value));
    }

    /// Every number of a structure, as JSON has it; of what is counted by a name, what is at `least` so much.
    fn add_numbers(&mut self, of: &str, shown: impl serde::Serialize, labels: &Labels, least: u64) {
        let Ok(Value::Object(fields)) = serde_json::to_value(shown) else { return };
        for (field, value) in &fields {
            match value {
                Value::Number(number) if !NOT_TOLD.contains(&field.as_str()) => {
                    let Some(number) = number.as_u64() else { continue };
                    let is_gauge = GAUGES.contains(&field.as_str());
                    self.add(format!("ringway_{of}_{field}"), is_gauge, labels.clone(), number);
                }
                Value::Object(by_name) => self.add_named(of, field, by_name, labels, least),
                _ => {}
            }
        }
    }

    fn add_named(
        &mut self,
        of: &str,
        field: &str,
        by_name: &Map<String, Value>,
        labels: &Labels,
        least: u64,
    ) {
        for (name, value) in by_name {
            if let Some(number) = value.as_u64().filter(|number| *number >= least) {
                let labels = [labels.as_slice(), &[("reason", name.clone())]].concat();
                self.add(format!("ringway_{of}_{field}"), false, labels, number);
            }
        }
    }

    fn add_queue(&mut self, info: QueueInfo, dev: &str) {
        let labels: Labels = vec![
            ("dev", dev.to_owned()),
            ("queue", info.qidx.to_string()),
            ("type", info.queue_type.clone()),
        ];
        for request in &info.requests {
            let labels = [labels.as_slice(), &[("kind", request.kind.clone())]].concat();
            self.add_numbers("request", request, &labels, 1);
        }
        // A rate needs the zero before the first: told of queues that a guest has used.
        let least = if info.received_desc > 0 { 0 } else { 1 };
        self.add_numbers("queue", info, &labels, least);
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, family) in &self.0 {
            let kind = if family.is_gauge { MetricType::Gauge } else { MetricType::Counter };
            if let [(labels, value)] = family.values.as_slice()
                && labels.is_empty()
            {
                let metric = encoder.encode_descriptor(name, "as in ringway -j", None, kind)?;
                if family.is_gauge {
                    ConstGauge::new(*value).encode(metric)?;
                } else {
                    ConstCounter::new(*value).encode(metric)?;
                }
                continue;
            }
            let mut metric = encoder.encode_descriptor(name, "as in ringway -j", None, kind)?;
            for (labels, value) in &family.values {
                let one = metric.encode_family(labels)?;
                if family.is_gauge {
                    ConstGauge::new(*value).encode(one)?;
                } else {
                    ConstCounter::new(*value).encode(one)?;
                }
            }
        }
        Ok(())
    }
}

fn text(reading: Reading, scrapers: &Scrapers) -> String {
    let mut families = Families::default();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let build = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    families.add("ringway_build_info".to_owned(), true, build, 1);
    families.add("ringway_config_generation".to_owned(), true, Vec::new(), reading.generation);
    families.add("ringway_scrapes".to_owned(), false, Vec::new(), count(&scrapers.served));
    for (reason, counter) in [("failed", &scrapers.refused), ("too_many", &scrapers.too_many)] {
        let labels = vec![("reason", reason.to_owned())];
        families.add("ringway_scrapes_refused".to_owned(), false, labels, count(counter));
    }
    for device in reading.devices {
        let labels: Labels = vec![("dev", device.name.clone())];
        families.add_numbers("device", &device.history, &labels, 1);
        let state = [("mgmtdev", device.mgmtdev), ("state", device.state.to_owned())];
        families.add("ringway_device_state".to_owned(), true, [labels.as_slice(), &state].concat(), 1);
        for (index, counters) in device.queues.iter().enumerate() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let info = show::queue_info(device.class, &device.config, index, &counters.snapshot());
            families.add_queue(info, &device.name);
        }
    }
    for (core, info) in reading.cores {
        let labels: Labels = vec![("core", core)];
        for pump in &info.pumps {
            let labels = [labels.as_slice(), &[("pump", pump.name.clone())]].concat();
            families.add_numbers("pump", pump, &labels, 1);
        }
        families.add_numbers("core", info, &labels, 1);
    }
    let mut registry = Registry::default();
    registry.register_collector(Box::new(families));
    let mut text = String::new();
    // Writing into a string does not fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

/// The line on which a scraper's thread is answered.
pub(crate) type Reply = Sender<Reading>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_request_for_metrics_is_answered_with_them() {
        assert_eq!(asked(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), Asked::Metrics);
        assert_eq!(asked(b"GET /metrics?x=1 HTTP/1.0\r\n\r\n"), Asked::Metrics);
        assert_eq!(asked(b"GET / HTTP/1.1\r\n\r\n"), Asked::Else("404 Not Found"));
        assert_eq!(asked(b"POST /metrics HTTP/1.1\r\n\r\n"), Asked::Else("405 Method Not Allowed"));
        assert_eq!(asked(b"\0\r\n\r\n"), Asked::Else("405 Method Not Allowed"));
    }

    #[test]
    fn endless_request_is_refused_at_its_bound() {
        let (mut ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        theirs.write_all(&vec![b'x'; LONGEST_SCRAPE]).unwrap();
        let by = Instant::now() + SCRAPE_WITHIN;
        let answer = Asked::Else("431 Request Header Fields Too Large");
        assert_eq!(request(&mut ours, by).unwrap(), answer);
        // Nothing is waited for beyond the time of the whole request.
        assert_eq!(request(&mut ours, Instant::now()).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
