//! What a Prometheus scrapes: every counter of queues, devices and workers as OpenMetrics, over HTTP.
//!
//! It is no second list of counters: what is told of a queue, a device and a worker is every number of the structures
//! that `ringway -j` prints ([`QueueInfo`](crate::operator::api::QueueInfo), [`History`], [`CoreInfo`]). Reading takes nothing from a counter, so
//! any number of readers see the same.
//!
//! The control thread accepts, and answers a scraper's thread with what it owns ([`Reading`]); the rest, the counters of
//! queues included, is read and written by that thread. Each has [`SCRAPE_WITHIN`] for one request. Scrapers who ask at the same time
//! share what one of their threads makes (`shared`), and all together have a part of control's time, their coming included:
//! beyond it none is let in until that is made up for.

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded};
use prometheus_client::registry::Registry;
use ringway_engine::{BurstSizes, Times};
use ringway_pmd::counters::QueueCounters;
use ringway_pmd::vdpa::{Class, Health};
use rustix::event::epoll::{self, EventFlags};
use rustix::net::sockopt;

use crate::daemon::{Daemon, Message, Remote, Token};
use crate::fault::Fault;
use crate::frontends::session::DeviceConfig;
use crate::host::endpoint::Listening;
use crate::operator::api::{Binary, CoreInfo, History};
use crate::operator::clients::ACCEPT_AGAIN;
use crate::operator::share::Share;
use crate::operator::show;

use self::families::{Families, Labels, with};
use self::shared::Shared;

pub(crate) use self::families::{OWN, SOURCES, kind_of};

// What is told.
mod families;
// What each metric tells, in a sentence.
mod help;
// The numbers of what is told.
mod numbers;
// What several scrapers share.
mod shared;

/// Scrapers that are served at a time; a further one is closed and counted.
const MOST_SCRAPERS: usize = 8;
/// The longest request, its headers included.
const LONGEST_SCRAPE: usize = 8192;
/// How long one request may take, from its acceptance to its last byte.
const SCRAPE_WITHIN: Duration = Duration::from_secs(5);
/// Scrapers taken in one turn of the control thread.
const SCRAPERS_PER_TURN: usize = 16;
/// Scrapers take one part of so many and one of control's time.
const OTHER_PARTS: u32 = 9;

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
    /// How often they were let in later, for their part of control's time.
    waits: AtomicU64,
    shared: Shared,
}

/// What scrapers together take of the control thread's time.
#[derive(Debug)]
pub(crate) struct ScrapersTime {
    share: Share,
    /// None is let in until then.
    pub(crate) shut_until: Option<Instant>,
}

impl Default for ScrapersTime {
    fn default() -> ScrapersTime {
        ScrapersTime { share: Share::new(OTHER_PARTS), shut_until: None }
    }
}

/// What the control thread gives a scraper.
pub(crate) struct Reading {
    generation: u64,
    /// What was asked for and could not be made: how much, by kind.
    absent: [(&'static str, usize); 3],
    is_outdated: bool,
    lost_events: u64,
    lost_log_lines: u64,
    devices: Vec<DeviceReading>,
    cores: Vec<CoreReading>,
}

struct CoreReading {
    number: usize,
    info: CoreInfo,
    burst_sizes: BurstSizes,
    busy_turns: Times,
}

struct DeviceReading {
    name: String,
    mgmtdev: String,
    state: &'static str,
    /// How much of it was set and is not in force yet.
    deferred: usize,
    class: Class,
    config: DeviceConfig,
    history: History,
    queues: Vec<Arc<QueueCounters>>,
    health: Option<Arc<dyn Health>>,
}

impl Daemon {
    /// Lets scrapers in, if they did not have their part of the time.
    pub(crate) fn accept_scrapers(&mut self) {
        let begun = Instant::now();
        if let Some(at) = self.scrapers_time.share.served_at(begun) {
            self.scrapers_time.shut_until = Some(at);
            self.scrapers.waits.fetch_add(1, Ordering::Relaxed);
            return self.watch_scraped(false);
        }
        self.take_scrapers();
        self.scrapers_time.share.took(begun.elapsed(), Instant::now());
    }

    /// Lets scrapers in again.
    pub(crate) fn admit_scrapers(&mut self) {
        self.scrapers_time.shut_until = None;
        self.watch_scraped(true);
    }

    /// Answers a scraper's thread.
    pub(crate) fn answer_scraper(&mut self, reply: &Reply) {
        let begun = Instant::now();
        // It may have given up.
        let _ = reply.send(self.reading());
        self.scrapers_time.share.took(begun.elapsed(), Instant::now());
    }

    fn take_scrapers(&mut self) {
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
            deferred: device.deferred.len(),
            class: device.facts.class,
            config: device.facts.config,
            history: device.history.clone(),
            queues: device.shared.counters.to_vec(),
            health: device.health.clone(),
        };
        let core = |worker: ringway_engine::WorkerStats| CoreReading {
            number: worker.core,
            burst_sizes: worker.burst_sizes,
            busy_turns: worker.busy_turns.clone(),
            info: self.core_info(worker),
        };
        Reading {
            generation: self.generation,
            absent: [
                ("device", self.absent.len()),
                ("mgmtdev", self.absent_mgmtdevs.len()),
                ("port", self.ports.iter().filter(|port| port.why.is_some()).count()),
            ],
            is_outdated: self.program.standing() != Binary::Installed,
            lost_events: self.events.lost_on_disk(),
            lost_log_lines: crate::host::log::lost(),
            devices: self.registry.devices().map(device).collect(),
            cores: self.engine.workers().into_iter().map(core).collect(),
        }
    }
}

/// Answers one request. An error: it was none that is answered with metrics.
fn serve(mut stream: Box<dyn Stream>, remote: &Remote, scrapers: &Scrapers) -> io::Result<()> {
    let by = Instant::now() + SCRAPE_WITHIN;
    let (status, body) = match request(&mut *stream, by)? {
        Asked::Metrics => {
            let made = scrapers.shared.text(Instant::now(), || {
                let (reply, answer) = bounded(1);
                remote.send(Message::Metrics { reply });
                let reading = answer.recv_timeout(by.saturating_duration_since(Instant::now())).ok()?;
                Some(text(reading, scrapers))
            });
            match made {
                Some(text) => ("200 OK", text),
                None => ("503 Service Unavailable", Arc::default()),
            }
        }
        Asked::Else(status) => (status, Arc::default()),
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

/// What is scraped.
pub(crate) fn text(reading: Reading, scrapers: &Scrapers) -> String {
    let hertz = ringway_ring::tsc::hertz();
    let mut families = Families::default();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let none = || Labels::from([]);
    let build = Labels::from([("version", env!("CARGO_PKG_VERSION").to_owned())]);
    families.add_gauge("ringway_build_info", build, 1);
    families.add_gauge("ringway_config_generation", none(), reading.generation);
    for (kind, count) in reading.absent {
        families.add_gauge("ringway_absent", Labels::from([("kind", kind.to_owned())]), count as u64);
    }
    families.add_gauge("ringway_outdated", none(), reading.is_outdated.into());
    families.add_counter("ringway_events_lost", none(), reading.lost_events);
    families.add_counter("ringway_log_lines_lost", none(), reading.lost_log_lines);
    families.add_counter("ringway_scrapes", none(), count(&scrapers.served));
    families.add_counter("ringway_scrape_waits", none(), count(&scrapers.waits));
    for (reason, counter) in [("failed", &scrapers.refused), ("too_many", &scrapers.too_many)] {
        let labels = Labels::from([("reason", reason.to_owned())]);
        families.add_counter("ringway_scrapes_refused", labels, count(counter));
    }
    for device in reading.devices {
        let labels = Labels::from([("dev", device.name.clone())]);
        families.add_numbers("device", &device.history, &labels, 1);
        let state = with(&with(&labels, "mgmtdev", &device.mgmtdev), "state", device.state);
        families.add_gauge("ringway_device_state", state, 1);
        families.add_gauge("ringway_device_deferred", Arc::clone(&labels), device.deferred as u64);
        if let Some(health) = &device.health {
            let (count, age) = health.requests();
            families.add_gauge("ringway_disk_requests_under_way", Arc::clone(&labels), count as u64);
            families.add_seconds("ringway_disk_oldest_request_seconds", Arc::clone(&labels), age);
        }
        for (index, counters) in device.queues.iter().enumerate() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let stats = counters.snapshot();
            let info = show::queue_info(device.class, &device.config, index, &stats);
            families.add_queue(&info, &stats, &device.name, hertz);
        }
    }
    for core in reading.cores {
        let labels = Labels::from([("core", core.number.to_string())]);
        for pump in &core.info.pumps {
            families.add_numbers("pump", pump, &with(&labels, "pump", &pump.name), 1);
        }
        let packets = core.info.packets;
        families.add_sizes("ringway_core_burst_packets", Arc::clone(&labels), &core.burst_sizes, packets);
        families.add_times("ringway_core_busy_turn", Arc::clone(&labels), &core.busy_turns, hertz);
        families.add_numbers("core", &core.info, &labels, 1);
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
