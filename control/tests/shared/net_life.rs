//! The life of a NIC on a function that lies, with a guest, and another device beside it.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use ringway_control::operator::api::{DeviceEntry, MgmtdevShow, Select};
use ringway_control::subsystem::{Options, Subsystem};
use ringway_pmd::bus::virt::VirtualBus;
use ringway_pmd::driver::Attached;
use ringway_pmd::drivers::functions::drivers;
use ringway_pmd::notify::EventFd;
use ringway_ring::features::Features;
use ringway_ring::position::Position;
use ringway_ring::queue::{Completion, DriverBuffer, DriverRing, Format};
use ringway_vhost_user::frontend::{Frontend, FrontendError};
use serde_json::Value;

use super::lies::{AT_MOST, Liar, Lie, Life, Step, in_time, panics};
use super::slot::ModelBus;
use super::support::{Rig, SOON, eventually};

/// What guest, operator and host do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Receive buffers.
    Post(u8),
    Send(u8),
    /// So many frames there and back, as far as they come.
    Exchange(u8),
    /// It looks at what has come.
    Look,
    /// One queue stops, and starts where it stopped.
    Restart(u8),
    /// The guest's driver resets the device, and begins anew.
    Reset,
    /// The front-end goes, and another one comes.
    Leave,
    /// The device is removed, and made anew.
    Remove,
    /// The function is pulled, and another one plugged.
    Pull,
    Rest(u8),
}

pub fn act() -> BoxedStrategy<Act> {
    prop_oneof![
        4 => (1u8..16).prop_map(Act::Post),
        4 => (1u8..16).prop_map(Act::Send),
        6 => (1u8..16).prop_map(Act::Exchange),
        2 => Just(Act::Look),
        2 => (0u8..2).prop_map(Act::Restart),
        1 => Just(Act::Reset),
        1 => Just(Act::Leave),
        1 => Just(Act::Remove),
        1 => Just(Act::Pull),
        2 => (0u8..30).prop_map(Act::Rest),
    ]
    .boxed()
}

/// What a life is lived on.
pub struct Scene<M> {
    pub make: fn(kind: u8) -> M,
    pub entry: fn(kind: u8) -> DeviceEntry,
}

/// A guest with one queue pair.
struct Guest {
    rig: Rig,
    frontend: Frontend,
    rings: [Box<dyn DriverRing>; 2],
    /// What it made available and has not got back, and how much it ever made available.
    out: [BTreeSet<u32>; 2],
    made: [u32; 2],
    kick: Arc<EventFd>,
}

impl Guest {
    /// A guest whose queues were asked to be started; none if the device is not there.
    fn come(path: &Path, format: Format) -> Option<Guest> {
        let mut frontend = Frontend::connect(path, SOON).ok()?;
        let offered = frontend.handshake().ok()?;
        let has_packed = offered.contains(Features::RING_PACKED);
        let rig = Rig::new(if has_packed { format } else { Format::Split }, 2);
        let rings = [0, 1].map(|queue| rig.driver(queue, Position::START));
        let kick = Arc::new(EventFd::new().unwrap());
        let mut guest = Guest { rig, frontend, rings, out: Default::default(), made: [0; 2], kick };
        guest.begin().ok()?;
        Some(guest)
    }

    fn begin(&mut self) -> Result<(), FrontendError> {
        self.frontend.set_features(self.rig.features)?;
        self.frontend.set_mem_table(&[self.rig.region()])?;
        (0..2).try_for_each(|queue| self.start(queue, self.rig.fresh()))
    }

    /// Starts a queue; that it is not served then is no failure.
    fn start(&mut self, queue: u32, base: u32) -> Result<(), FrontendError> {
        let (addr, kick) = (self.rig.addr(queue), Some(self.kick.as_fd()));
        let started = self.frontend.start_ring(queue, Rig::SIZE.into(), base, addr, kick, None);
        is_there(started.and_then(|()| self.frontend.enable_ring(queue, true))).map(drop)
    }

    fn stop(&mut self, queue: u32) -> Result<u32, FrontendError> {
        self.frontend.stop_ring(queue)
    }

    fn post(&mut self, buffers: u8) {
        self.make(0, buffers, Rig::BUFFER, true);
    }

    fn send(&mut self, frames: u8) {
        self.make(1, frames, 76, false);
    }

    fn make(&mut self, queue: usize, count: u8, len: u32, writable: bool) {
        for _ in 0..count {
            let made = self.made[queue];
            // No buffer twice, also where they do not come back in order.
            let oldest = self.out[queue].first().copied().unwrap_or(made);
            if made - oldest >= Rig::SIZE.into() {
                break;
            }
            let gpa = self.rig.buffer(queue as u32, made);
            if !writable {
                let bytes = frame(made);
                self.rig.map.resolve(gpa, bytes.len() as u64).unwrap().write(&bytes);
            }
            if self.rings[queue].add(&[DriverBuffer { gpa, len, writable }], made).is_err() {
                break;
            }
            self.out[queue].insert(made);
            self.made[queue] += 1;
        }
        if self.rings[queue].publish() {
            self.kick.signal();
        }
    }

    /// Takes what has come: only what it made available, and no more than that holds. How many frames came.
    fn look(&mut self) -> usize {
        let mut came = 0;
        for queue in 0..2 {
            let mut done = [Completion::default(); 64];
            let count = self.rings[queue].collect(&mut done).unwrap();
            for done in &done[..count] {
                assert!(
                    self.out[queue].remove(&done.token),
                    "{done:?} on queue {queue} was not made available"
                );
                let most = if queue == 0 { Rig::BUFFER } else { 0 };
                assert!(done.written <= most, "{done:?} on queue {queue}");
            }
            came += if queue == 0 { count } else { 0 };
        }
        came
    }

    /// Nothing was written where the guest had not said that it may be.
    fn check_memory(&self) {
        let slots = u32::from(Rig::SIZE);
        for slot in 0..slots {
            let mut bytes = [0; Rig::BUFFER as usize];
            self.read(0, slot, &mut bytes);
            if slot >= self.made[0] {
                assert!(
                    bytes.iter().all(|byte| *byte == 0),
                    "receive buffer {slot} was never made available"
                );
            }
            self.read(1, slot, &mut bytes);
            // The last frame that was in it.
            let last = (0..self.made[1]).rev().find(|made| made % slots == slot);
            let (is, rest) = bytes.split_at(76);
            assert_eq!(is, last.map_or([0; 76], frame), "frame {last:?} was written over");
            assert!(rest.iter().all(|byte| *byte == 0), "behind frame {last:?} something was written");
        }
    }

    fn read(&self, queue: u32, slot: u32, into: &mut [u8]) {
        let at = self.rig.buffer(queue, slot);
        self.rig.map.resolve(at, into.len() as u64).unwrap().read(into);
    }

    /// Frames there and back.
    fn exchange(&mut self, times: u32) {
        for _ in 0..times {
            self.post(1);
            self.send(1);
            eventually(|| self.look() > 0);
            eventually(|| {
                self.look();
                self.out[1].is_empty()
            });
        }
    }
}

/// A header of zeros and a frame.
fn frame(number: u32) -> [u8; 76] {
    let mut bytes = [number as u8 | 2; 76];
    bytes[..12].fill(0);
    // From one station to another.
    (bytes[12], bytes[18]) = (2, 6);
    bytes
}

/// Whether something was done, if the device is still there.
fn is_there(asked: Result<(), FrontendError>) -> Result<bool, FrontendError> {
    match asked {
        Ok(()) => Ok(true),
        Err(FrontendError::Refused { .. }) => Ok(false),
        Err(gone) => Err(gone),
    }
}

struct Stage<'a, M> {
    scene: &'a Scene<M>,
    kind: u8,
    subsystem: Subsystem,
    bus: ModelBus,
    folder: tempfile::TempDir,
    entry: DeviceEntry,
    model: M,
    other: Guest,
    guest: Option<Guest>,
    /// What it said when it was found may not be so.
    was_lying: bool,
}

/// Lives a life.
pub fn live<M: Liar>(life: &Life<Act>, scene: &Scene<M>) {
    let _ = panics();
    let (bus, folder) = (ModelBus::new(), tempfile::tempdir().unwrap());
    let (kind, model) = (life.kind, (scene.make)(life.kind));
    life.found.iter().for_each(|lie| model.lie(lie));
    in_time("being found", || bus.plug(model.device()));
    let options = Options {
        attachments: vec![Box::new(Attached::new(bus.clone(), drivers(&VirtualBus::default())))],
        ..Options::embedded(folder.path())
    };
    let subsystem = Subsystem::start(options).unwrap();
    let beside =
        DeviceEntry { name: "d1".to_owned(), mgmtdev: "sim/net".to_owned(), ..DeviceEntry::default() };
    subsystem.add(&beside).unwrap();
    let other = Guest::come(&folder.path().join("dev/d1.sock"), Format::Split).unwrap();
    let entry = DeviceEntry { name: "d0".to_owned(), ..(scene.entry)(kind) };
    let mut stage = Stage {
        scene,
        kind,
        subsystem,
        bus,
        folder,
        entry,
        model,
        other,
        guest: None,
        was_lying: !life.found.is_empty(),
    };
    if !in_time("mgmtdev show", || stage.is_found()) {
        stage.plug_anew();
    }
    life.made.iter().for_each(|lie| stage.model.lie(lie));
    stage.add();
    stage.come();
    for step in &life.steps {
        in_time(step, || stage.step(step));
        stage.other.exchange(1);
        if let Some(guest) = &mut stage.guest {
            guest.look();
        }
        assert_eq!(panics(), Vec::<String>::new(), "after {step:?}");
    }
    stage.end();
}

impl<M: Liar> Stage<'_, M> {
    fn show(&self) -> Value {
        serde_json::to_value(self.subsystem.show(None).unwrap()).unwrap()
    }

    fn field(&self, pointer: &str) -> Value {
        self.show().pointer(&format!("/dev/d0/{pointer}")).cloned().unwrap_or(Value::Null)
    }

    fn is_found(&self) -> bool {
        let shown: MgmtdevShow = self.subsystem.call("mgmtdev.show", &Select { name: None }).unwrap();
        shown.mgmtdev.0.iter().any(|(name, _)| *name == self.entry.mgmtdev)
    }

    /// A function as it should be is plugged, in place of the one that is.
    fn plug_anew(&mut self) {
        self.guest = None;
        self.bus.unplug(&self.entry.mgmtdev);
        eventually(|| !self.is_found() && !self.model.slot().is_open());
        assert_eq!(self.model.slot().space.mapped(), 0, "what is gone can reach memory");
        (self.model, self.was_lying) = ((self.scene.make)(self.kind), false);
        self.bus.plug(self.model.device());
        eventually(|| self.is_found());
    }

    /// Makes the device; one that the function says it cannot have is made of it once it keeps to the rules.
    fn add(&mut self) {
        let Err(refused) = in_time("dev add", || self.subsystem.add(&self.entry)) else { return };
        assert!(!refused.message.is_empty());
        self.model.lie(&Lie::Honest);
        if let Err(refused) = self.subsystem.add(&self.entry) {
            // What it said when it was found holds until it is found anew.
            self.plug_anew();
            self.subsystem.add(&self.entry).unwrap_or_else(|again| panic!("{refused:?}, then {again:?}"));
        }
    }

    /// A guest comes, if the device is there.
    fn come(&mut self) {
        let format = if self.kind & 1 == 0 { Format::Split } else { Format::Packed };
        let path = self.folder.path().join("dev/d0.sock");
        self.guest = path.exists().then(|| in_time("a guest", || Guest::come(&path, format))).flatten();
    }

    fn leave(&mut self) {
        let Some(guest) = self.guest.take() else { return };
        guest.check_memory();
        drop(guest);
        eventually(|| self.field("state") != "connected");
        eventually(|| self.model.slot().space.mapped() == 0);
    }

    fn step(&mut self, step: &Step<Act>) {
        let act = match step {
            Step::Lies(lie) => return self.model.lie(lie),
            Step::Do(act) => *act,
        };
        match act {
            Act::Rest(ms) => return std::thread::sleep(Duration::from_millis(ms.into())),
            Act::Leave => {
                self.leave();
                return self.come();
            }
            Act::Remove => {
                if let Some(guest) = self.guest.take() {
                    guest.check_memory();
                }
                let removed = in_time("dev del", || self.subsystem.remove("d0"));
                // One that is not there is remembered, and forgotten.
                assert!(removed.is_ok() || self.field("state").is_null(), "{removed:?}");
                eventually(|| self.model.slot().space.mapped() == 0 && !self.model.slot().is_open());
                if !self.is_found() {
                    self.plug_anew();
                }
                self.add();
                return self.come();
            }
            Act::Pull => {
                self.model.pull();
                self.plug_anew();
                eventually(|| self.field("state") == "waiting");
                return self.come();
            }
            _ => {}
        }
        let Some(guest) = &mut self.guest else { return };
        let is_there = match act {
            Act::Post(buffers) => {
                guest.post(buffers);
                Ok(())
            }
            Act::Send(frames) => {
                guest.send(frames);
                Ok(())
            }
            Act::Exchange(frames) => {
                guest.post(frames);
                guest.send(frames);
                let begun = Instant::now();
                while guest.look() < usize::from(frames) && begun.elapsed() < Duration::from_millis(5) {
                    std::thread::sleep(Duration::from_micros(200));
                }
                Ok(())
            }
            Act::Restart(queue) => guest.stop(queue.into()).and_then(|base| guest.start(queue.into(), base)),
            Act::Reset => (0..2).try_for_each(|queue| guest.stop(queue).map(drop)).and_then(|()| {
                guest.look();
                guest.check_memory();
                let fresh = Rig::new(guest.rig.format, 2);
                guest.rings = [0, 1].map(|queue| fresh.driver(queue, Position::START));
                (guest.rig, guest.out, guest.made) = (fresh, Default::default(), [0; 2]);
                guest.frontend.set_mem_table(&[guest.rig.region()])?;
                (0..2).try_for_each(|queue| guest.start(queue, guest.rig.fresh()))
            }),
            _ => Ok(()),
        };
        if is_there.is_err() {
            // Its device is gone: it is said why.
            guest.check_memory();
            self.guest = None;
        }
    }

    /// What is out of service has a reason that is told.
    fn check_names(&self) {
        let shown = self.show();
        if let Some(why) = shown.pointer("/absent/d0") {
            assert!(why.as_str().is_some_and(|why| !why.is_empty()), "{shown}");
        }
        let Some(device) = shown.pointer("/dev/d0") else { return };
        let history = &device["history"];
        let is_told = history["last_failure"].is_string() || history["last_host_failure"].is_string();
        for fault in
            device["rings"].as_array().into_iter().flatten().filter_map(|ring| ring["fault"].as_str())
        {
            let is_counted = history["ring_faults"][fault].as_u64().is_some_and(|count| count > 0);
            assert!(
                is_counted || is_told,
                "a ring is out of service, and nobody counts or says why: {shown}"
            );
        }
    }

    /// The function keeps to the rules from here on: it serves the next guest, and is let go of.
    fn end(mut self) {
        self.check_names();
        self.model.lie(&Lie::Honest);
        self.leave();
        let begun = Instant::now();
        eventually(|| self.show().pointer("/absent/d0").is_some() || self.field("state") == "waiting");
        if self.was_lying || self.show().pointer("/absent/d0").is_some() {
            self.plug_anew();
            eventually(|| self.field("state") == "waiting");
        }
        self.come();
        self.guest.as_mut().expect("nobody serves the next guest").exchange(3);
        assert!(begun.elapsed() < 2 * AT_MOST, "the next guest waited {:?}", begun.elapsed());
        self.leave();
        let Stage { subsystem, model, .. } = self;
        in_time("the end", || drop(subsystem));
        eventually(|| !model.slot().is_open());
        assert_eq!(panics(), Vec::<String>::new());
        let faults = model.slot().faults();
        assert!(!faults.iter().any(|fault| fault.contains("memory mapped")), "{faults:?}");
    }
}
