//! Captures: frames of a device's queues, written as pcapng to the connection on which an operator asked for them.
//!
//! ```text
//!   workers --copies--> a buffer for each queue <--emptied every few ms-- rw-capture --pcapng--> the client's connection
//!                                                                             |
//!   control <--------------------- what became of it -------------------------+
//! ```
//!
//! The control thread checks what is asked for and gives the connection away; each capture has a thread of its own from then
//! on, which alone waits for the client, for as long as [`SLOWEST_READER`]. While the client does not read, nothing is taken
//! from the queues' buffers: what finds no room there is counted, and is told in the file. What a capture sees it keeps nowhere.
//!
//! Frames are payload of guests: whoever may use the administrators' socket may see them, and each capture is told in the log
//! and as an event.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded};
use ringway_pmd::net::capture::{Filter, Wanted};
use ringway_pmd::vdpa::{Class, DataPath};
use rustix::event::epoll;
use serde_json::{Value, json};

use crate::daemon::{Daemon, Message, Remote};
use crate::fault::{Fault, Kind};
use crate::host::peer::Caller;
use crate::operator::api::{CaptureInfo, CaptureRequest, Direction};
use crate::operator::methods::told_of;
use crate::operator::show::in_use;

use self::stream::Capture;

// Its thread.
mod stream;

/// Captures at a time.
const MOST_CAPTURES: usize = 4;
/// Bytes of a frame that are captured unless it is said otherwise, and at most.
pub(crate) const SNAPLEN: u32 = 262_144;
/// The fewest that can be asked for: what tells who sends to whom.
const LEAST_SNAPLEN: u32 = 14;
/// Characters of a filter at most.
const LONGEST_FILTER: usize = 4096;
/// How long a client may read nothing of a capture.
const SLOWEST_READER: Duration = Duration::from_secs(30);
const STACK_BYTES: usize = 256 * 1024;
/// What the end of a capture may wait for.
const WAITS_FOR: &str = "the end waits for the core that serves it, which gets no time: ringway core show";

/// The captures that run. Owned by the control thread.
#[derive(Debug, Default)]
pub(crate) struct Captures {
    running: Vec<Running>,
    next: u64,
}

#[derive(Debug)]
struct Running {
    id: u64,
    /// The number of its device.
    device: u64,
    name: String,
    caller: Caller,
    since: Instant,
    queues: Vec<u16>,
    /// Its memory is there, and workers copy.
    has_begun: bool,
    shared: Arc<Shared>,
}

/// What both sides know of a capture.
#[derive(Debug, Default)]
struct Shared {
    captured: AtomicU64,
    missed: AtomicU64,
    /// Its end waits for a worker that gets no time.
    waits: AtomicBool,
    /// Set by whoever ends it first.
    end: OnceLock<End>,
}

/// Why a capture ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// As many frames as were asked for.
    Count,
    /// Whoever asked for it has enough, or has gone.
    Stopped,
    SlowReader,
    DeviceRemoved,
    DaemonStopping,
    /// It could not begin, or its thread panicked.
    Failed,
}

/// All of them.
const END: [End; 6] =
    [End::Count, End::Stopped, End::SlowReader, End::DeviceRemoved, End::DaemonStopping, End::Failed];

impl End {
    /// The name that operators see.
    pub(crate) fn name(self) -> &'static str {
        match self {
            End::Count => "count",
            End::Stopped => "stopped",
            End::SlowReader => "slow_reader",
            End::DeviceRemoved => "device_removed",
            End::DaemonStopping => "daemon_stopping",
            End::Failed => "failed",
        }
    }

    /// The one of a name.
    pub(crate) fn named(name: &str) -> Option<End> {
        END.into_iter().find(|end| end.name() == name)
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            End::Count => "as many frames as were asked for",
            End::Stopped => "by whoever asked for it",
            End::SlowReader => "whoever asked for it took nothing for 30 s",
            End::DeviceRemoved => "the device was removed",
            End::DaemonStopping => "the daemon stops",
            End::Failed => "it could not begin or go on",
        }
    }
}

impl Running {
    /// Whether it runs, or holds its place longer than it takes to begin: also one that never began, while a worker has its memory.
    fn is_shown(&self) -> bool {
        self.has_begun || self.shared.waits.load(Ordering::Relaxed)
    }
}

impl Captures {
    /// None runs.
    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Those of a device, for operators.
    pub(crate) fn of(&self, device: u64) -> Vec<CaptureInfo> {
        let info = |running: &Running| CaptureInfo {
            by: running.caller.to_string(),
            queues: running.queues.clone(),
            up_ms: u64::try_from(running.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            captured: running.shared.captured.load(Ordering::Relaxed),
            missed: running.shared.missed.load(Ordering::Relaxed),
            waits_for: running.shared.waits.load(Ordering::Relaxed).then(|| WAITS_FOR.to_owned()),
        };
        let of_it = self.running.iter().filter(|running| running.device == device);
        of_it.filter(|running| running.is_shown()).map(info).collect()
    }

    /// Ends those of a device, or all.
    pub(crate) fn end(&self, device: Option<u64>, why: End) {
        for running in self.running.iter().filter(|running| device.is_none_or(|id| id == running.device)) {
            let _ = running.shared.end.set(why);
        }
    }
}

/// A capture's place among those that may run: control is told that it is free, also by a thread that panics.
struct TakenPlace {
    remote: Remote,
    id: u64,
    /// How it ended, or why it could not begin. None: its thread panicked.
    outcome: Option<Result<End, Fault>>,
}

impl Drop for TakenPlace {
    fn drop(&mut self) {
        self.remote.send(Message::CaptureEnded { id: self.id, outcome: self.outcome.take() });
    }
}

/// A client's connection, with what was not written to it.
type Given = (UnixStream, Vec<u8>);

impl Daemon {
    /// Answers `capture`: the client's connection is the capture's from then on. A fault: it stays a client.
    pub(crate) fn capture(
        &mut self,
        client: u64,
        id: &Value,
        params: Value,
        caller: &Caller,
    ) -> Result<(), Fault> {
        let asked = told_of(params.to_string());
        let begun = self.begin_capture(id, params, caller);
        let outcome =
            begun.as_ref().map_or_else(|fault| told_of(fault.message.clone()), |_| "begins".to_owned());
        tracing::info!(method = "capture", %asked, uid = caller.uid, pid = caller.pid, comm = caller.comm, outcome, "operator");
        let (running, connection) = begun?;
        let Some((stream, unsent)) = self.clients.give_away(client) else { return Ok(()) };
        let _ = epoll::delete(&self.epoll, &stream);
        self.captures.running.push(running);
        let _ = connection.send((stream, unsent));
        Ok(())
    }

    fn begin_capture(
        &mut self,
        id: &Value,
        params: Value,
        caller: &Caller,
    ) -> Result<(Running, Sender<Given>), Fault> {
        let request: CaptureRequest =
            serde_json::from_value(params).map_err(|error| Fault::usage(format!("parameters: {error}")))?;
        if self.is_stopping() {
            return Err(Fault::new(Kind::Runtime, "the daemon is stopping").retryable());
        }
        self.captures.next += 1;
        let number_of_it = self.captures.next;
        let device = self.find(&request.name)?;
        let (name, number) = (device.name().to_owned(), device.id);
        if device.facts.class == Class::Block {
            return Err(Fault::usage(format!(
                "{name} is a disk: what is captured are a network device's frames"
            ))
            .at("name")
            .hint(format!("ringway dev vstats show {name}")));
        }
        let mostly = device.facts.data_path;
        let path = device.connection.as_ref().map_or(mostly, |connection| in_use(mostly, connection));
        if let Some(fault) = unseen(&name, path, device.facts.dma) {
            return Err(fault);
        }
        if let Some(other) = self.captures.running.get(MOST_CAPTURES - 1) {
            return Err(Fault::conflict(format!("{MOST_CAPTURES} captures run already"))
                .held_by(other.caller.to_string())
                .hint("end one of them")
                .retryable());
        }
        let wanted = Arc::new(wanted_of(&request)?);
        let queues = queues_of(&request, device.facts.limits.max_vqs)?;
        let description = device.entry.mgmtdev.clone();
        let counters = queues
            .iter()
            .filter_map(|queue| Some((*queue, Arc::clone(device.shared.counters.get(usize::from(*queue))?))));
        let shared = Arc::<Shared>::default();
        let remote = self.remote();
        let capture = Capture {
            request: id.clone(),
            name: name.clone(),
            description,
            wanted,
            count: request.count,
            queues: counters.collect(),
            shared: Arc::clone(&shared),
            patience: SLOWEST_READER,
        };
        let (connection, given) = bounded::<(UnixStream, Vec<u8>)>(1);
        let serve = move || {
            if let Ok((stream, unsent)) = given.recv() {
                let begun = || {
                    remote.send(Message::CaptureBegun { id: number_of_it });
                };
                let mut place = TakenPlace { remote: remote.clone(), id: number_of_it, outcome: None };
                place.outcome = Some(capture.run(stream, unsent, begun));
            }
        };
        let thread = std::thread::Builder::new().name("rw-capture".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(serve).map_err(|error| Fault::system("cannot start a thread", error))?;
        let running = Running {
            id: number_of_it,
            device: number,
            name,
            caller: caller.clone(),
            since: Instant::now(),
            queues,
            has_begun: false,
            shared,
        };
        Ok((running, connection))
    }

    /// A capture has its memory, and workers copy.
    pub(crate) fn capture_begun(&mut self, id: u64) {
        let Some(running) = self.captures.running.iter_mut().find(|running| running.id == id) else { return };
        (running.has_begun, running.since) = (true, Instant::now());
        let details = json!({ "by": running.caller.to_string(), "queues": running.queues });
        let name = running.name.clone();
        self.events.push("capture.started", Some(&name), details);
    }

    /// A capture has ended, or could not begin. None: its thread panicked.
    pub(crate) fn capture_ended(&mut self, id: u64, outcome: Option<Result<End, Fault>>) {
        let Some(at) = self.captures.running.iter().position(|running| running.id == id) else { return };
        let running = self.captures.running.swap_remove(at);
        let end = match outcome {
            Some(Ok(end)) => end,
            None if running.has_begun => End::Failed,
            other => {
                let fault = other.and_then(Result::err);
                let fault = fault.unwrap_or_else(|| Fault::new(Kind::Runtime, "its thread panicked"));
                let by = running.caller.to_string();
                let cure = fault.hint.as_deref().unwrap_or("see the log of ringwayd");
                let details = json!({ "by": by, "why": fault.message, "try": cure });
                return self.events.push("capture.failed", Some(&running.name), details);
            }
        };
        let details = json!({
            "by": running.caller.to_string(),
            "reason": end.name(),
            "captured": running.shared.captured.load(Ordering::Relaxed),
            "missed": running.shared.missed.load(Ordering::Relaxed),
        });
        self.events.push("capture.ended", Some(&running.name), details);
    }
}

/// Why no frames of a device can be had, and what can be done instead.
fn unseen(name: &str, path: DataPath, dma: bool) -> Option<Fault> {
    let (what, counted) = match path {
        DataPath::Pumped if !dma => return None,
        DataPath::Pumped | DataPath::Relay => (
            "a core passes on descriptors, and what they are of is read and written by its function itself",
            format!("ringway dev vstats show {name} counts them; "),
        ),
        DataPath::Hardware => ("its function serves the guest's rings itself", String::new()),
    };
    let why = format!("frames of {name} cannot be captured here (data_path {}): {what}", path.name());
    let hint = format!(
        "{counted}tcpdump in the guest, on the function's representor on the host (devlink port show), or at the switch's mirror port"
    );
    Some(Fault::usage(why).at("name").hint(hint))
}

fn wanted_of(request: &CaptureRequest) -> Result<Wanted, Fault> {
    let snaplen = request.snaplen.unwrap_or(SNAPLEN);
    if !(LEAST_SNAPLEN..=SNAPLEN).contains(&snaplen) {
        return Err(Fault::usage(format!("snaplen {snaplen}: must be {LEAST_SNAPLEN} to {SNAPLEN} bytes"))
            .at("snaplen"));
    }
    if request.count == Some(0) {
        return Err(Fault::usage("count 0: must be 1 or more frames").at("count"));
    }
    let text = request.filter.as_deref().unwrap_or_default();
    if text.len() > LONGEST_FILTER {
        return Err(
            Fault::usage(format!("the filter is longer than {LONGEST_FILTER} characters")).at("filter")
        );
    }
    let compile = |text: &str| {
        Filter::parse(text).map_err(|error| {
            Fault::usage(format!("filter: {error}"))
                .at("filter")
                .hint("as in 'arp or host 10.0.0.1 and not port 22': ringway capture --help")
        })
    };
    let filter = request.filter.as_deref().map(compile).transpose()?;
    Ok(Wanted { filter, snaplen, only_drops: request.drops })
}

/// The queues whose frames are wanted: those of even number are what the other side receives from.
fn queues_of(request: &CaptureRequest, max_vqs: u16) -> Result<Vec<u16>, Fault> {
    let name = &request.name;
    if let Some(queue) = request.queue.filter(|queue| *queue >= max_vqs) {
        let why = format!("{name} has no queue {queue}: it has {max_vqs} queues, counted from 0");
        return Err(Fault::not_found(why).at("queue"));
    }
    let is_wanted = |queue: &u16| {
        request.queue.is_none_or(|wanted| wanted == *queue)
            && request.direction.is_none_or(|wanted| wanted == direction_of(*queue))
    };
    let queues: Vec<u16> = (0..max_vqs).filter(is_wanted).collect();
    match (request.queue, queues.is_empty()) {
        (Some(queue), true) => {
            let (why, word) = match direction_of(queue) {
                Direction::In => ("in", "out"),
                Direction::Out => ("out", "in"),
            };
            Err(Fault::usage(format!("queue {queue} goes {why}: there is nothing that goes {word}"))
                .at("direction"))
        }
        _ => Ok(queues),
    }
}

/// Where frames of a queue go (virtio 1.3 §5.1.2).
fn direction_of(queue: u16) -> Direction {
    if queue.is_multiple_of(2) { Direction::Out } else { Direction::In }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capture_that_never_began_is_shown_while_its_end_waits() {
        let mut captures = Captures::default();
        let shared = Arc::<Shared>::default();
        captures.running.push(Running {
            id: 1,
            device: 7,
            name: "vm0".to_owned(),
            caller: Caller::own(),
            since: Instant::now(),
            queues: vec![0, 1],
            has_begun: false,
            shared: Arc::clone(&shared),
        });
        let waits_for = |captures: &Captures| -> Vec<Option<String>> {
            captures.of(7).into_iter().map(|capture| capture.waits_for).collect()
        };
        // It is about to begin.
        assert!(waits_for(&captures).is_empty());
        shared.waits.store(true, Ordering::Relaxed);
        assert_eq!(waits_for(&captures), [Some(WAITS_FOR.to_owned())]);
        assert!(captures.of(8).is_empty());
        shared.waits.store(false, Ordering::Relaxed);
        captures.running[0].has_begun = true;
        assert_eq!(waits_for(&captures), [None]);
    }

    #[test]
    fn what_no_core_sees_is_refused_with_the_reason_and_the_next_step() {
        assert_eq!(unseen("a", DataPath::Pumped, false), None);
        for path in [DataPath::Pumped, DataPath::Relay] {
            let said = unseen("a", path, true).unwrap().to_string();
            let expected = format!("(data_path {}): a core passes on descriptors", path.name());
            assert!(said.contains(&expected), "{said}");
            assert!(said.contains("ringway dev vstats show a counts them; tcpdump in the guest"), "{said}");
        }
        let in_hardware = unseen("a", DataPath::Hardware, true).unwrap().to_string();
        assert!(in_hardware.contains("(data_path hardware): its function serves"), "{in_hardware}");
        assert!(in_hardware.contains("try: tcpdump in the guest"), "{in_hardware}");
    }
}
