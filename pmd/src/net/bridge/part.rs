//! A part of a bridge whose ports are on several cores: the ends of the lanes between it and the others, and what it knows of them.
//!
//! ```text
//!   core 1: part [ports a b | fdb] ==frames, stations==> core 2: part [ports c d | fdb]       a lane from each to each
//!                                  <==frames, stations==
//! ```
//!
//! What a part has peeked and checked crosses as an [entry](super::entry), which says where the frame lies; whoever has the receiver
//! copies it, once, and the source gets it back when that is done ([`InFlight`]). A lane that is full presses the source back for a
//! moment, as one core would that has as much to do; then what is for it is dropped by name.
//!
//! All parts of a bridge are made together, and end together: who is told to stop says so to all, and from then on none takes
//! anything from its sources. What is in lanes already is delivered. One whose worker is held, or has panicked, keeps the others
//! waiting for a moment, and not for longer.
//!
//! Each part is on one worker. Budget of all but making: no allocation, no lock that is waited for, no panic; one system call to wake
//! a part that sleeps.

// One whose worker is held, and what is in the lanes to it.
mod held;
// How much of a burst finds room in the lanes, and how long the rest waits.
mod room;
// What the others are told of stations.
mod telling;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringway_ring::chain::Burst;
use ringway_ring::guest::GuestMap;
use ringway_ring::lane::{LINE_WORDS, Reader, Sleeper, TakenBack, WORDS, Writer, lane};

use super::copies::Copies;
use super::decision::AWAY;
use super::entry::{Crossing, Entry, Pieces, To, frame_of, head_of, put_frame};
use super::kept::Kept;
use super::port::Origin;
use crate::net::Mac;
use crate::net::fdb::{Fdb, Heard};
use crate::net::frame::{Frame, Frames, Head};
use crate::net::in_flight::{InFlight, MOST};
use crate::net::offload::HEAD_BYTES;
use crate::net::side::{Load, Passage};
use crate::net::vlan::{Carriers, Tag, Vlans};
use crate::notify::EventFd;
pub(super) use held::look_after;
use held::{Still, Waited};
pub(super) use room::RESERVED;
use room::{Next as NextInLine, Waiting};
use telling::{Arrivals, Retelling};

/// What the parts of a bridge have to know of a port.
#[derive(Debug, Clone)]
pub(crate) struct PartPort {
    /// Its number in the forwarding database.
    pub(crate) slot: u16,
    /// The map that frames of each of its sources lie in, with the number of the source's queue.
    pub(crate) sources: Vec<(u16, Arc<GuestMap>)>,
    /// It has receive queues.
    pub(crate) has_sinks: bool,
    /// How many of those finish later.
    pub(crate) later: usize,
    /// The VLANs that it carries, where the bridge looks at them.
    pub(crate) vlans: Option<Arc<Vlans>>,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Part {
    /// Its number among all.
    own: usize,
    lanes: Vec<Lane>,
    /// The port at each slot that is another part's.
    away: Vec<Option<Away>>,
    /// By slot: the port there is its own.
    is_own: Vec<bool>,
    /// Those of its ports' sources, as the others number them.
    maps: Vec<Arc<GuestMap>>,
    /// Of all ports of all parts.
    carriers: Option<Carriers>,
    copies: Copies,
    /// Since when there has been no place to copy to, in cycles.
    copies_full_since: Option<u64>,
    /// What each of its ports' sources waits for.
    waiting: Vec<Waiting>,
    /// A burst found no room for all of its frames in this turn.
    is_short: bool,
    /// It has slept since it last waited for others.
    has_slept: bool,
    /// One of the lanes is to be taken back.
    is_to_take_back: bool,
    /// Where one of its sinks finishes later.
    pub(super) kept: Option<Box<Kept>>,
    /// Frames that came through a lane and are being given to ports.
    pub(super) come: Box<Come>,
    sleeper: Arc<Sleeper>,
    bell: Arc<EventFd>,
    together: Arc<Together>,
    retelling: Retelling,
    /// How often there was something to announce when that was last looked at.
    pub(super) seen_news: Option<u64>,
    /// In ending: how long it has waited for the others.
    ends: Option<Waited>,
    /// That was long enough.
    is_late: bool,
}

/// What all parts share.
#[derive(Debug)]
struct Together {
    /// One of them was told to stop: all of them do.
    is_ending: AtomicBool,
    /// By number: it puts nothing into its lanes any more.
    is_quiet: Vec<AtomicBool>,
}

/// A lane to another part, and the one from there.
#[derive(Debug)]
struct Lane {
    /// The number of the other part.
    peer: usize,
    writer: Writer,
    /// None once it takes nothing more.
    reader: Option<Reader>,
    /// The other part's sources.
    sources: Arc<[AwaySource]>,
    /// Where it has frames that were in many pieces.
    copies: Arc<GuestMap>,
    /// One of its ports has receive queues.
    has_sinks: bool,
    /// Of its ports that have.
    carriers: Option<Carriers>,
    /// Entries that may be put in, as of the last look for a burst.
    room: usize,
    /// Since when it has had no room, in cycles.
    full_since: Option<u64>,
    /// The source that found none first.
    next: Option<NextInLine>,
    /// What was heard of since then is told in this round, in ticks.
    tells_since: u64,
    /// From when on it was not told of all, in ticks.
    missed: Option<u64>,
    /// Stations that it was told of in this turn beside the round.
    told: usize,
    /// Guests that have arrived of which it is told, or is to be.
    arrivals: Arrivals,
    /// How far it was when somebody waited for it.
    still: Option<Still>,
    /// What its reader has not begun to read is to be taken back.
    is_held: bool,
    /// What was in it when it was closed is counted.
    is_counted: bool,
}

/// A port of another part.
#[derive(Debug, Clone)]
struct Away {
    /// The index of the lane to it.
    lane: u16,
    has_sinks: bool,
    vlans: Option<Arc<Vlans>>,
}

/// A source of another part.
#[derive(Debug)]
struct AwaySource {
    queue: u16,
    map: Arc<GuestMap>,
}

/// Frames that came through a lane, of one source.
#[derive(Debug)]
pub(super) struct Come {
    pub(super) burst: Burst,
    pub(super) frames: [Frame; Burst::CHAINS],
    pub(super) heads: [Head; Burst::CHAINS],
    pub(super) to: [To; Burst::CHAINS],
    pub(super) tags: [Option<Tag>; Burst::CHAINS],
    pub(super) count: usize,
    /// The number of the queue that sent them.
    pub(super) queue: u16,
}

/// What came next through a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing.
    Nothing,
    /// Frames.
    Frames,
    /// An entry that is finished with, by this: a station, or what is known to nobody.
    Done,
    /// So many entries that were taken back by whoever put them in.
    TakenBack(u64),
    /// A guest has arrived.
    Announcement { mac: Mac, tag: Option<Tag>, to: To, queue: u16 },
}

impl Part {
    /// The parts of a bridge with these ports, of each part its own.
    ///
    /// # Errors
    /// There is no memory, or no descriptor.
    pub(crate) fn all(parts: &[Vec<PartPort>]) -> io::Result<Vec<Part>> {
        let count = parts.len();
        let bells = (0..count).map(|_| Ok(Arc::new(EventFd::new()?))).collect::<io::Result<Vec<_>>>()?;
        let sleepers: Vec<Arc<Sleeper>> = bells.iter().cloned().map(sleeper_by).collect();
        let copies =
            (0..count).map(|_| Copies::new(COPIED, count - 1)).collect::<io::Result<Vec<Copies>>>()?;
        let copied: Vec<Arc<GuestMap>> = copies.iter().map(|copies| Arc::clone(copies.map())).collect();
        let sources: Vec<Arc<[AwaySource]>> = parts.iter().map(|ports| sources_of(ports)).collect();
        let is_quiet = (0..count).map(|_| AtomicBool::new(false)).collect();
        let together = Arc::new(Together { is_ending: AtomicBool::new(false), is_quiet });
        let slots = parts.iter().flatten().map(|port| usize::from(port.slot) + 1).max().unwrap_or(0);
        let carriers = carriers_of(parts.iter().flatten());

        let mut made = Vec::with_capacity(count);
        let wakes = sleepers.iter().zip(&bells);
        for (own, ((ports, copies), (sleeper, bell))) in parts.iter().zip(copies).zip(wakes).enumerate() {
            let mut is_own = vec![false; slots];
            for port in ports {
                is_own.get_mut(usize::from(port.slot)).into_iter().for_each(|is_own| *is_own = true);
            }
            let later = ports.iter().map(|port| port.later).sum();
            let kept = if later > 0 { Some(Kept::new(later)?) } else { None };
            let map = copies.map().clone();
            let come = Come {
                burst: Burst::try_new(map)?,
                frames: [Frames::EMPTY; Burst::CHAINS],
                heads: [[0; HEAD_BYTES]; Burst::CHAINS],
                to: [To::All; Burst::CHAINS],
                tags: [None; Burst::CHAINS],
                count: 0,
                queue: 0,
            };
            made.push(Part {
                own,
                lanes: Vec::with_capacity(count - 1),
                away: vec![None; slots],
                is_own,
                maps: ports.iter().flat_map(|port| &port.sources).map(|(_, map)| Arc::clone(map)).collect(),
                carriers: carriers.clone(),
                waiting: vec![Waiting::default(); ports.iter().map(|port| port.sources.len()).sum()],
                copies,
                copies_full_since: None,
                is_short: false,
                has_slept: false,
                is_to_take_back: false,
                kept,
                come: Box::new(come),
                sleeper: Arc::clone(sleeper),
                bell: Arc::clone(bell),
                together: Arc::clone(&together),
                retelling: Retelling::default(),
                seen_news: None,
                ends: None,
                is_late: false,
            });
        }
        // From each to each: the writers and the readers of all, in the order of whom they are to and from.
        let mut readers: Vec<Vec<Reader>> = (0..count).map(|_| Vec::new()).collect();
        let mut writers: Vec<Vec<Writer>> = (0..count).map(|_| Vec::new()).collect();
        for (from, writers) in sleepers.iter().zip(&mut writers) {
            for (to, readers) in sleepers.iter().zip(&mut readers).filter(|(to, _)| !Arc::ptr_eq(to, from)) {
                let (writer, reader) = lane(MOST, from, to);
                writers.push(writer);
                readers.push(reader);
            }
        }
        for ((part, writers), readers) in made.iter_mut().zip(writers).zip(readers) {
            let peers = (0..count).filter(|peer| *peer != part.own);
            for ((peer, writer), reader) in peers.zip(writers).zip(readers) {
                let Some(((ports, sources), copies)) =
                    parts.get(peer).zip(sources.get(peer)).zip(copied.get(peer))
                else {
                    continue;
                };
                let takers = ports.iter().filter(|port| port.has_sinks);
                for port in ports {
                    if let Some(place) = part.away.get_mut(usize::from(port.slot)) {
                        let (lane, vlans) = (part.lanes.len() as u16, port.vlans.clone());
                        *place = Some(Away { lane, has_sinks: port.has_sinks, vlans });
                    }
                }
                part.lanes.push(Lane {
                    peer,
                    writer,
                    reader: Some(reader),
                    sources: Arc::clone(sources),
                    copies: Arc::clone(copies),
                    has_sinks: takers.clone().next().is_some(),
                    carriers: carriers_of(takers),
                    room: 0,
                    full_since: None,
                    next: None,
                    tells_since: 0,
                    missed: None,
                    told: 0,
                    arrivals: Arrivals::default(),
                    still: None,
                    is_held: false,
                    is_counted: false,
                });
            }
        }
        Ok(made)
    }

    /// Lanes, to others and from them.
    pub(super) fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Slots of all ports of the others, each with its number beyond [`AWAY`].
    pub(super) fn away(&self) -> impl Iterator<Item = (usize, u16)> {
        let slots = self.away.iter().enumerate().filter(|(_, away)| away.is_some());
        slots.map(|(slot, _)| (slot, AWAY | slot as u16))
    }

    /// Which VLANs ports of all parts carry, where the bridge looks at them.
    pub(super) fn carriers(&self) -> Option<Carriers> {
        self.carriers.clone()
    }

    /// What wakes it.
    pub(super) fn wake_source(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The port at a slot is its own.
    pub(crate) fn is_own(&self, slot: u16) -> bool {
        self.is_own.get(usize::from(slot)).copied().unwrap_or(false)
    }

    /// The port of another part carries frames of a VLAN.
    pub(super) fn carries(&self, slot: u16, tag: Tag) -> bool {
        let away = self.away.get(usize::from(slot)).and_then(Option::as_ref);
        away.and_then(|away| away.vlans.as_ref()?.carries(tag)).is_some()
    }

    /// True if a frame to everybody would be heard by a port of another part.
    pub(super) fn is_heard(&self, tag: Option<Tag>) -> bool {
        self.lanes.iter().any(|lane| lane.is_heard(tag))
    }

    /// Puts frames into the lane to a port of another part. None: nothing there runs; else how many found no room.
    pub(super) fn send(
        &mut self,
        slot: u16,
        load: &Load<'_>,
        (source, tag): (u16, Option<Tag>),
        run: Origin,
        in_flight: &mut InFlight,
        first_sink: usize,
    ) -> Option<usize> {
        let away = self.away.get(usize::from(slot))?.as_ref().filter(|away| away.has_sinks)?;
        let lane = usize::from(away.lane);
        let to = To::Slot(slot);
        let put = self.put(lane, to, load, (source, tag), run, in_flight, first_sink + lane);
        self.copies.release();
        Some(load.frames.len() - put)
    }

    /// Puts frames to everybody into all lanes: how many of those have somebody to hear them, and how many entries found no room.
    pub(super) fn flood(
        &mut self,
        is_here: bool,
        load: &Load<'_>,
        (source, tag): (u16, Option<Tag>),
        run: Origin,
        in_flight: &mut InFlight,
        first_sink: usize,
    ) -> (u32, usize) {
        let to = if is_here { To::Here } else { To::All };
        let (mut reached, mut lost) = (0, 0);
        for nth in 0..self.lanes.len() {
            if self.lanes.get(nth).is_some_and(|lane| lane.is_heard(tag)) {
                reached += 1;
                let put = self.put(nth, to, load, (source, tag), run, in_flight, first_sink + nth);
                lost += load.frames.len() - put;
            }
        }
        self.copies.release();
        (reached, lost)
    }

    /// Puts frames into a lane, in order, as many as there is room for. How many that are.
    #[expect(clippy::too_many_arguments, reason = "what one frame is, and whose; two callers")]
    fn put(
        &mut self,
        nth: usize,
        to: To,
        load: &Load<'_>,
        (source, tag): (u16, Option<Tag>),
        run: Origin,
        in_flight: &mut InFlight,
        sink: usize,
    ) -> usize {
        let Part { lanes, copies, maps, .. } = self;
        let Some(lane) = lanes.get_mut(nth) else { return 0 };
        // A source whose frames lie elsewhere than the others were told: what it has is copied.
        let is_mapped = maps.get(usize::from(source)).is_some_and(|map| Arc::ptr_eq(map, load.burst.map()));
        let mut words = [0; WORDS];
        let mut done = 0;
        for (((chain, frame), head), number) in
            load.chains.iter().zip(load.frames).zip(load.heads).zip(run.first..)
        {
            let is_full = in_flight.room_at(sink) <= RESERVED || lane.writer.room() == 0;
            if !lane.writer.is_open() || is_full {
                break;
            }
            let span = load.burst.readable_span(chain).part(load.skip as u64, frame.len.into());
            let mut pieces = span.pieces();
            let mut next = || pieces.next().map_or((0, 0), |piece| (piece.gpa, piece.slice.len() as u32));
            let pieces = Pieces([next(), next()]);
            let (_, more) = next();
            let mut crossing = Crossing { to, source, is_copied: false, tag, pieces };
            let mut place = None;
            if more > 0 || !is_mapped {
                let passage = Passage {
                    burst: load.burst,
                    chain,
                    skip: load.skip,
                    frame,
                    beginning: head,
                    swap: false,
                };
                // Copied for one lane, it is for the others.
                let Some((at, number)) = copies.copy(done, &passage) else { break };
                crossing.pieces = Pieces([(at, frame.len), (0, 0)]);
                (crossing.is_copied, place) = (true, Some(number));
            }
            let count = put_frame(&mut words, &crossing, frame, head);
            if lane.writer.put(words.get(..count).unwrap_or_default()).is_err() {
                break;
            }
            if let Some(place) = place {
                copies.keep(nth, lane.writer.given(), place);
            }
            // Its source keeps what was copied, too: nothing of it is done before its receiver has it.
            in_flight.read_by(sink, lane.writer.given(), run.source, number);
            done += 1;
        }
        done
    }

    /// Tells the others that a guest has arrived behind a port of its own, at once or once they turn again: how many of them have somebody to
    /// hear it, and into how many lanes to them it will not get.
    pub(super) fn announce(&mut self, mac: Mac, tag: Option<Tag>, is_here: bool, queue: u16) -> (u32, u64) {
        let to = if is_here { To::Here } else { To::All };
        let words = Entry::Announcement { mac, tag, to, queue }.words();
        let (mut heard, mut lost) = (0, 0);
        for lane in self.lanes.iter_mut().filter(|lane| lane.is_heard(tag)) {
            heard += 1;
            lost += u64::from(!lane.announce(words));
        }
        (heard, lost)
    }

    /// Takes what comes next through a lane, of one kind and source: `most` frames at most. Stations are taken note of.
    pub(super) fn take(&mut self, nth: usize, most: usize, fdb: &mut Fdb, now: u64) -> Next {
        let Part { lanes, come, is_own, .. } = self;
        let Some(lane) = lanes.get_mut(nth) else { return Next::Nothing };
        let Some(reader) = &mut lane.reader else { return Next::Nothing };
        come.count = 0;
        let mut of = None;
        let mut line = [0; LINE_WORDS];
        while come.count < most && reader.peek(&mut line) {
            let crossing = match Entry::of(&line) {
                Entry::Frame(crossing) => crossing,
                _ if come.count > 0 => break,
                Entry::Station { address, slot, at } => {
                    reader.read(&mut []);
                    let heard = fdb.hear(address, slot, at, now);
                    // Both heard of it; it was here later.
                    if let Heard::Later { port, at } = heard
                        && is_own.get(usize::from(port)).copied().unwrap_or(false)
                    {
                        // All of them: others may have been told what this one was.
                        self.tell_station(address, port, at);
                    }
                    return Next::Done;
                }
                Entry::Announcement { mac, tag, to, queue } => {
                    reader.read(&mut []);
                    // Taken back, it is told once more.
                    return match reader.claim() {
                        Ok(()) => Next::Announcement { mac, tag, to, queue },
                        Err(TakenBack) => Next::TakenBack(1 + reader.skip()),
                    };
                }
                Entry::Unknown => {
                    reader.read(&mut []);
                    return Next::Done;
                }
            };
            let key = (crossing.source, crossing.is_copied);
            if *of.get_or_insert(key) != key {
                break;
            }
            if come.count == 0 {
                let Some(source) = lane.sources.get(usize::from(crossing.source)) else {
                    // Not reached: all parts were made of the same ports.
                    reader.read(&mut []);
                    return Next::Done;
                };
                come.burst.restart(if crossing.is_copied { &lane.copies } else { &source.map });
                come.queue = source.queue;
            }
            if !come.put(&crossing, &line, reader) {
                // A place that is not in the map: of a guest whose memory is gone. The frame is.
                if come.count == 0 {
                    reader.read(&mut []);
                    return Next::Done;
                }
                break;
            }
            reader.read(&mut []);
        }
        if come.count == 0 {
            return Next::Nothing;
        }
        // What its frames lie in is touched from here on, and not before.
        match reader.claim() {
            Ok(()) => Next::Frames,
            Err(TakenBack) => {
                let count = std::mem::take(&mut come.count) as u64;
                Next::TakenBack(count + reader.skip())
            }
        }
    }

    /// Looks how many entries a lane has that were not read.
    #[inline]
    pub(super) fn look(&mut self, nth: usize) -> usize {
        let reader = self.lanes.get_mut(nth).and_then(|lane| lane.reader.as_mut());
        reader.map_or(0, |reader| if reader.left() > 0 { reader.left() } else { reader.look() })
    }

    /// So many more of the entries of a lane are finished with.
    pub(super) fn finish(&mut self, nth: usize, entries: u64) {
        if let Some(reader) = self.lanes.get_mut(nth).and_then(|lane| lane.reader.as_mut()) {
            reader.finish(entries);
        }
    }

    /// Shows the others what was put into lanes, and what of theirs is finished with.
    pub(super) fn publish(&mut self) {
        for lane in &mut self.lanes {
            // Refused, it is counted with what was in the lane: see `finished`.
            if let Ok(true) = lane.writer.publish() {
                lane.writer.reader().ring();
            }
            lane.show_finished();
        }
    }

    /// Shows another what of its lane is finished with.
    pub(super) fn tell(&mut self, nth: usize) {
        self.lanes.get_mut(nth).into_iter().for_each(Lane::show_finished);
    }

    /// Looks with how much of what it was given a lane is finished. The second: it was closed before all was read, and this is up to
    /// where; told once.
    pub(super) fn finished(&mut self, nth: usize) -> (u64, Option<u64>) {
        let Part { lanes, copies, .. } = self;
        let Some(lane) = lanes.get_mut(nth) else { return (u64::MAX, None) };
        let finished = lane.writer.finished();
        copies.finished(nth, finished);
        let is_to_be_counted = lane.writer.is_closed() && !lane.is_counted;
        lane.is_counted |= is_to_be_counted;
        (finished, is_to_be_counted.then(|| lane.writer.done()))
    }

    /// One of the parts was told to stop.
    #[inline]
    pub(super) fn is_ending(&self) -> bool {
        // Relaxed: it publishes nothing.
        self.together.is_ending.load(Ordering::Relaxed)
    }

    /// Puts nothing into its lanes from now on, and has all others end as well.
    pub(super) fn end(&mut self) {
        self.publish();
        if !self.is_ending() {
            self.together.is_ending.store(true, Ordering::Relaxed);
        }
        let Some(is_quiet) = self.together.is_quiet.get(self.own) else { return };
        // Release: pairs with the Acquire in `is_drained`, before which all that it put in is published.
        if !is_quiet.swap(true, Ordering::Release) {
            self.lanes.iter().for_each(|lane| lane.writer.reader().ring());
        }
    }

    /// Nothing is left to be read that the others put into their lanes, and nothing will be, or they were waited for long enough.
    pub(super) fn is_drained(&mut self) -> bool {
        let Part { lanes, together, is_late, .. } = self;
        lanes.iter_mut().all(|lane| {
            let Some(reader) = &mut lane.reader else { return true };
            let is_quiet = together.is_quiet.get(lane.peer).is_none_or(|is_quiet| {
                // Acquire: pairs with the Release in `end`.
                is_quiet.load(Ordering::Acquire)
            });
            (is_quiet || *is_late) && reader.look() == 0
        })
    }

    /// Reads nothing more: what others have in lanes to it is theirs again.
    pub(super) fn close(&mut self) {
        for lane in &mut self.lanes {
            if let Some(reader) = lane.reader.take() {
                // Told by whoever put them in.
                drop(reader);
            }
        }
    }

    /// Asks to be woken when something comes, and when something is finished; the caller looks at the latter. True: something has
    /// come, or there is room again for an arrival that waits: whoever made it saw nobody sleep.
    pub(super) fn arm(&mut self) -> bool {
        self.sleeper.doze();
        // One that ends tells of none.
        let tells = !self.is_ending();
        self.lanes.iter_mut().any(|lane| {
            lane.reader.as_mut().is_some_and(|reader| reader.look() > 0) || tells && lane.may_announce()
        })
    }

    /// Takes that back.
    pub(super) fn disarm(&mut self) {
        self.has_slept = true;
        self.sleeper.wake();
    }
}

impl Drop for Part {
    /// A part that panicked holds nobody up: nothing more comes from it, and what is for it goes back.
    fn drop(&mut self) {
        if let Some(is_quiet) = self.together.is_quiet.get(self.own) {
            is_quiet.store(true, Ordering::Release);
        }
        self.close();
    }
}

impl Lane {
    /// Shows its writer what was finished with.
    fn show_finished(&mut self) {
        if let Some(reader) = &mut self.reader
            && reader.tell()
        {
            reader.writer().ring();
        }
    }

    fn is_heard(&self, tag: Option<Tag>) -> bool {
        let carries = |tag| self.carriers.as_ref().is_some_and(|carriers| carriers.has_any(tag));
        self.has_sinks && tag.is_none_or(carries)
    }
}

impl Come {
    /// Adds the frame of an entry. False: there is no room, or the place that it names is in no memory.
    fn put(&mut self, crossing: &Crossing, line: &[u64; LINE_WORDS], reader: &Reader) -> bool {
        let nth = self.count;
        let (Some(frame), Some(head)) = (self.frames.get_mut(nth), self.heads.get_mut(nth)) else {
            return false;
        };
        let (read, has_more) = frame_of(line, head);
        if has_more {
            let mut words = [0; WORDS];
            reader.peek(&mut words);
            head_of(&words, head);
        }
        if !self.burst.push_pieces(nth as u16, crossing.pieces.as_slice()) {
            return false;
        }
        *frame = read;
        if let (Some(to), Some(tag)) = (self.to.get_mut(nth), self.tags.get_mut(nth)) {
            (*to, *tag) = (crossing.to, crossing.tag);
        }
        self.count += 1;
        true
    }
}

/// One who is woken by writing to a descriptor.
fn sleeper_by(bell: Arc<EventFd>) -> Arc<Sleeper> {
    Sleeper::with_bell(move || {
        bell.signal();
    })
}

fn sources_of(ports: &[PartPort]) -> Arc<[AwaySource]> {
    let sources = ports.iter().flat_map(|port| &port.sources);
    sources.map(|(queue, map)| AwaySource { queue: *queue, map: Arc::clone(map) }).collect()
}

/// Which VLANs ports carry; None where the bridge does not look at them.
fn carriers_of<'a>(ports: impl Iterator<Item = &'a PartPort> + Clone) -> Option<Carriers> {
    let vlans = ports.filter_map(|port| port.vlans.as_deref());
    vlans.clone().next()?;
    Some(Carriers::new(vlans))
}

/// Frames in many pieces that are on their way through all lanes of a part at a time: a burst.
const COPIED: u16 = 32;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "what fails here fails the test")]
mod tests;
