//! A controller that is open: brought up, asked who it is, its queue pairs made and deleted, brought down.
//!
//! All that stands on one controller shares it: its namespaces, and the memory that it reaches. Admin commands are one thread's
//! at a time, and each has its time; who may not wait does not call.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::command::{ACTIVE, CONTROLLER, Command, NAMESPACE, NVM_LIMITS};
use super::identify::{self, Answer, ControllerInfo, Limits, NamespaceInfo, refused};
use super::queue::{Done, Found, QueuePair};
use super::registers::{AdminPlace, Registers};
use super::{NvmeFault, PAGE};
use crate::bus::pci::Function;
use crate::dma::{Division, OwnMemory};

/// A controller, enabled. Disabled when dropped.
pub struct Controller {
    info: ControllerInfo,
    limits: Limits,
    /// Queue pairs that it grants.
    pairs: u16,
    /// Where our own memory is, as it sees it.
    own: u64,
    registers: Registers,
    // In this order: the admin queue, then the function.
    admin: Mutex<Admin>,
    function: Arc<dyn Function>,
}

struct Admin {
    registers: Registers,
    queue: QueuePair,
    /// What it answers is written here.
    answer: OwnMemory,
    /// The queue pairs that there are, or may be: their memory stays until it is known that they are not.
    made: BTreeMap<u16, Made>,
    /// The command that ends when something happens, and whether something did.
    event: Option<u16>,
    has_news: bool,
    /// A command did not end in time.
    is_stuck: bool,
}

/// A queue pair's memory, and whether the controller may have the pair.
struct Made {
    memory: Arc<OwnMemory>,
    is_known: bool,
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Controller {
    /// Brings a function up. Takes as long as the controller says that it may.
    ///
    /// # Errors
    /// It cannot be.
    pub fn open(function: Arc<dyn Function>) -> Result<Controller, NvmeFault> {
        let registers = Registers::find(&*function)?;
        let space = function.dma();
        let division = Division::of(&*space);
        let division =
            division.ok_or_else(|| NvmeFault::Host("it reaches no memory to speak of".to_owned()))?;
        registers.disable()?;
        let size = ADMIN_ENTRIES.min(registers.most_entries());
        let memory = memory(&*function, division.own, 0, size)?;
        let answer = OwnMemory::new(space, division.own + STRIDE - PAGE, PAGE);
        let answer = answer.map_err(|error| NvmeFault::Host(format!("memory for answers: {error}")))?;
        let queue = QueuePair::new(&registers, 0, memory, size).ok_or_else(no_doorbells)?;
        let mut admin = Admin {
            registers: registers.clone(),
            queue,
            answer,
            made: BTreeMap::new(),
            event: None,
            has_news: false,
            is_stuck: false,
        };
        registers.enable(place(&admin.queue))?;
        let answer = admin.ask(Command::identify(CONTROLLER, 0), "say who it is")?;
        let info = ControllerInfo::parse(&answer)?;
        // Those from before version 2.0 have no such answer.
        let limits = match admin.ask(Command::identify(NVM_LIMITS, 0), "say what it can do at most") {
            Ok(answer) => Limits::parse(&answer),
            Err(NvmeFault::Refused { .. }) => Limits::NONE,
            Err(error) => return Err(error),
        };
        let pairs = admin.ask_for_queues()?;
        Ok(Controller {
            info,
            limits,
            pairs,
            own: division.own,
            registers,
            admin: Mutex::new(admin),
            function,
        })
    }

    /// The function.
    pub fn function(&self) -> &Arc<dyn Function> {
        &self.function
    }

    /// Who it is.
    pub fn info(&self) -> &ControllerInfo {
        &self.info
    }

    /// What it can do at most of some commands.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Queue pairs that it grants.
    pub fn pairs(&self) -> u16 {
        self.pairs
    }

    /// Entries of a queue at most.
    pub fn most_entries(&self) -> u16 {
        self.registers.most_entries().min(super::queue::MOST_ENTRIES)
    }

    /// It answers, and works. One that somebody else reset does not, and says nothing of it but that it is not ready; so does one that
    /// is being reset by [`Controller::reset`].
    ///
    /// # Errors
    /// It does not.
    pub fn check(&self) -> Result<(), NvmeFault> {
        self.registers.check()?;
        if self.registers.is_ready() { Ok(()) } else { Err(NvmeFault::Failed) }
    }

    /// It reaches no memory any more, whatever it does, until the function is opened anew.
    pub fn cut_off(&self) {
        let config = self.function.config();
        config.write16(COMMAND, config.read16(COMMAND) & !COMMAND_MASTER);
    }

    /// The namespaces that are attached to it, by number; at most [`MOST_NAMESPACES`] of them.
    ///
    /// # Errors
    /// It does not say.
    pub fn namespaces(&self) -> Result<Vec<u32>, NvmeFault> {
        let mut admin = lock(&self.admin);
        let mut ids: Vec<u32> = Vec::new();
        loop {
            let above = ids.last().copied().unwrap_or(0);
            let answer = admin.ask(Command::identify(ACTIVE, above), "list its namespaces")?;
            let (more, goes_on) = identify::active(&answer, above)?;
            ids.extend(more);
            if !goes_on || ids.len() >= MOST_NAMESPACES {
                ids.truncate(MOST_NAMESPACES);
                return Ok(ids);
            }
        }
    }

    /// What a namespace is.
    ///
    /// # Errors
    /// There is none, or none that can be driven.
    pub fn namespace(&self, id: u32) -> Result<NamespaceInfo, NvmeFault> {
        let answer = lock(&self.admin).ask(Command::identify(NAMESPACE, id), "say what the namespace is")?;
        NamespaceInfo::parse(id, &answer)
    }

    /// Whether its write cache is on. It has one.
    ///
    /// # Errors
    /// It does not say.
    pub fn is_caching(&self) -> Result<bool, NvmeFault> {
        let done = lock(&self.admin).run(Command::write_cache(), "say whether its cache is on")?;
        Ok(done.result & 1 != 0)
    }

    /// Turns its write cache, which all namespaces share, on or off.
    ///
    /// # Errors
    /// It refuses.
    pub fn set_caching(&self, is_on: bool) -> Result<(), NvmeFault> {
        lock(&self.admin).run(Command::set_write_cache(is_on), "turn its cache on or off").map(drop)
    }

    /// Makes a queue pair of so many entries, 2 to [`Controller::most_entries`]. Its completions interrupt by the vector of its
    /// number, if that is below `vectors`.
    ///
    /// # Errors
    /// There is none left, or the controller refuses.
    pub fn make_pair(&self, size: u16, vectors: u16) -> Result<QueuePair, NvmeFault> {
        let mut admin = lock(&self.admin);
        let mut found =
            Err(NvmeFault::Host(format!("all {} queue pairs of the controller are taken", self.pairs)));
        for id in (1..=self.pairs).filter(|id| !admin.made.contains_key(id)) {
            // That of a pair that was deleted just now may still be mapped.
            found = memory(&*self.function, self.own, id, size).map(|memory| (id, memory));
            if found.is_ok() {
                break;
            }
        }
        let (id, memory) = found?;
        let pair = QueuePair::new(&self.registers, id, Arc::clone(&memory), size).ok_or_else(no_doorbells)?;
        admin.made.insert(id, Made { memory, is_known: false });
        let made = admin.create(&pair, vectors);
        if made.is_err() {
            // What the controller may have, it has until it is reset.
            admin.made.retain(|_, made| made.is_known || made.memory.iova() != pair.submissions_at());
        }
        made.map(|()| pair)
    }

    /// Makes a queue pair anew, with its number: what was outstanding on it is over, and is not told of.
    ///
    /// # Errors
    /// The controller did not say that it let the old one go, or refuses.
    pub fn make_anew(&self, pair: &mut QueuePair, vectors: u16) -> Result<(), NvmeFault> {
        let mut admin = lock(&self.admin);
        admin.delete(pair.id())?;
        pair.empty();
        admin.create(pair, vectors)
    }

    /// Deletes a queue pair: what was outstanding on it is over, and the controller touches no memory for it once this returns Ok.
    ///
    /// # Errors
    /// The controller did not say so: it may have it still, until it is reset. Its memory stays as long.
    pub fn delete_pair(&self, pair: &QueuePair) -> Result<(), NvmeFault> {
        let mut admin = lock(&self.admin);
        admin.delete(pair.id())?;
        admin.made.remove(&pair.id());
        Ok(())
    }

    /// Memory of our own beside a queue pair's: at most [`BESIDE_BYTES`].
    ///
    /// # Errors
    /// The host has none, or does not map it.
    pub fn memory_beside(&self, pair: &QueuePair, bytes: u64) -> Result<OwnMemory, NvmeFault> {
        let at = self.own + u64::from(pair.id()) * STRIDE + STRIDE - BESIDE_BYTES;
        OwnMemory::new(self.function.dma(), at, bytes.min(BESIDE_BYTES))
            .map_err(|error| NvmeFault::Host(format!("memory for copies: {error}")))
    }

    /// Asks that an outstanding command end: by its pair's number and its own ([`QueuePair::command_id`]). How it ends, its
    /// completion tells, if there is one.
    ///
    /// # Errors
    /// The controller does not answer.
    pub fn abort(&self, pair: u16, command: u16) -> Result<(), NvmeFault> {
        let mut admin = lock(&self.admin);
        // Of a queue that it does not have, some read beyond their memory.
        if !admin.made.get(&pair).is_some_and(|made| made.is_known) {
            return Ok(());
        }
        admin.run(Command::abort(pair, command), "abort a command").map(drop)
    }

    /// It begins anew: all queue pairs are gone, and what was outstanding on them with them.
    ///
    /// # Errors
    /// It does not come back, and may not have stopped.
    pub fn reset(&self) -> Result<(), NvmeFault> {
        let mut admin = lock(&self.admin);
        self.registers.disable()?;
        admin.made.values_mut().for_each(|made| made.is_known = false);
        (admin.event, admin.has_news, admin.is_stuck) = (None, false, false);
        admin.queue.empty();
        self.registers.enable(place(&admin.queue))?;
        let granted = admin.ask_for_queues()?;
        if granted < self.pairs {
            let why =
                format!("it grants {granted} queue pairs after a reset, and granted {} before", self.pairs);
            return Err(NvmeFault::Lied(why));
        }
        Ok(())
    }

    /// Namespaces changed since this was asked last, as far as the controller tells.
    ///
    /// # Errors
    /// It does not answer.
    pub fn has_changed(&self) -> Result<bool, NvmeFault> {
        let mut admin = lock(&self.admin);
        admin.hear()?;
        let news = std::mem::take(&mut admin.has_news);
        if news {
            // What was read may change once more, and is told again then.
            admin.ask(Command::log(CHANGED_NAMESPACES, PAGE as u32), "say what changed")?;
        }
        if admin.event.is_none() {
            admin.event = admin.queue.submit(Command::event());
            admin.queue.ring();
        }
        Ok(news)
    }
}

impl Admin {
    fn ask_for_queues(&mut self) -> Result<u16, NvmeFault> {
        let granted = self.run(Command::set_queues(MOST_PAIRS), "grant queues")?.result;
        let least = (granted as u16).min((granted >> 16) as u16).saturating_add(1);
        Ok(least.min(MOST_PAIRS))
    }

    fn create(&mut self, pair: &QueuePair, vectors: u16) -> Result<(), NvmeFault> {
        let (id, size) = (pair.id(), pair.size());
        if let Some(made) = self.made.get_mut(&id) {
            made.is_known = true;
        }
        let vector = Some(id).filter(|id| *id < vectors);
        let create = Command::create_completions(id, size, pair.completions_at(), vector);
        let completions = self.run(create, "make a completion queue");
        let submissions = completions.and_then(|_| {
            let create = Command::create_submissions(id, size, pair.submissions_at());
            let made = self.run(create, "make a submission queue");
            if made.is_err() {
                self.run(Command::delete_completions(id), "delete a completion queue")?;
            }
            made
        });
        if let (Err(NvmeFault::Refused { .. }), Some(made)) = (&submissions, self.made.get_mut(&id)) {
            made.is_known = false;
        }
        submissions.map(drop)
    }

    /// The controller forgets a pair, if it may have it.
    fn delete(&mut self, id: u16) -> Result<(), NvmeFault> {
        if !self.made.get(&id).is_some_and(|made| made.is_known) {
            return Ok(());
        }
        for (command, what) in [
            (Command::delete_submissions(id), "delete a submission queue"),
            (Command::delete_completions(id), "delete a completion queue"),
        ] {
            self.run(command, what)?;
        }
        if let Some(made) = self.made.get_mut(&id) {
            made.is_known = false;
        }
        Ok(())
    }

    /// Runs a command whose answer is a page.
    fn ask(&mut self, command: Command, what: &'static str) -> Result<Answer, NvmeFault> {
        let (map, at) = (Arc::clone(self.answer.map()), self.answer.iova());
        let page = map.resolve(at, PAGE);
        let page = page.map_err(|_| NvmeFault::Host("memory for answers is gone".to_owned()))?;
        let mut answer = [0; PAGE as usize];
        page.write(&answer);
        self.run(command.at(at, 0), what)?;
        page.read(&mut answer);
        Ok(answer)
    }

    /// Runs a command, and waits until it ended. Once one did not end in time, none is run until the controller is reset: what it
    /// answers might be another's.
    fn run(&mut self, command: Command, what: &'static str) -> Result<Done, NvmeFault> {
        let late = |what| NvmeFault::Late { what, within: COMMAND_WITHIN };
        self.registers.check()?;
        let place = if self.is_stuck { None } else { self.queue.submit(command) };
        let Some(place) = place else { return Err(late("end an admin command before this")) };
        self.queue.ring();
        let begun = Instant::now();
        loop {
            // As many as there can be; more were made up.
            for _ in 0..ADMIN_ENTRIES {
                match self.queue.reap() {
                    Some(Found::Done(done)) if done.place == place => {
                        self.queue.ring();
                        let status = done.status;
                        return if status.is_ok() { Ok(done) } else { Err(refused(what, status)) };
                    }
                    Some(Found::Done(done)) => self.note(&done),
                    Some(Found::Stray) => {}
                    None => break,
                }
            }
            self.queue.ring();
            self.registers.check()?;
            if begun.elapsed() >= COMMAND_WITHIN {
                self.is_stuck = true;
                return Err(late(what));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Looks at what ended that nobody waits for.
    fn hear(&mut self) -> Result<(), NvmeFault> {
        for _ in 0..ADMIN_ENTRIES {
            match self.queue.reap() {
                Some(Found::Done(done)) => self.note(&done),
                Some(Found::Stray) => {}
                None => break,
            }
        }
        self.queue.ring();
        self.registers.check()
    }

    /// A command ended that nobody waits for: late, or because something happened.
    fn note(&mut self, done: &Done) {
        if self.event == Some(done.place) {
            self.event = None;
            self.has_news |= done.status.is_ok();
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        // What it does not do by itself, the host's reset does when the function is closed; its memory is unmapped before.
        let _ = self.registers.shut_down().and_then(|()| self.registers.disable());
    }
}

/// Held for a few commands, each of which has its time.
fn lock(admin: &Mutex<Admin>) -> MutexGuard<'_, Admin> {
    admin.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory of a queue pair.
fn memory(function: &dyn Function, own: u64, id: u16, size: u16) -> Result<Arc<OwnMemory>, NvmeFault> {
    let (bytes, at) = (QueuePair::bytes(size), own + u64::from(id) * STRIDE);
    let memory = OwnMemory::new(function.dma(), at, bytes);
    memory.map(Arc::new).map_err(|error| NvmeFault::Host(format!("memory for a queue pair: {error}")))
}

fn place(queue: &QueuePair) -> AdminPlace {
    AdminPlace {
        submissions: queue.submissions_at(),
        completions: queue.completions_at(),
        size: queue.size(),
    }
}

fn no_doorbells() -> NvmeFault {
    NvmeFault::NotOne("it has no doorbells for as many queues as it grants".to_owned())
}

/// Where a queue pair's memory is from the one's before it: more than the largest has.
const STRIDE: u64 = 8 << 20;
/// Bytes at its end that are for others of the pair's.
pub const BESIDE_BYTES: u64 = 1 << 20;
/// Queue pairs of a controller that are used.
pub const MOST_PAIRS: u16 = 64;
/// Namespaces of a controller that are looked at.
pub const MOST_NAMESPACES: usize = 1024;
/// Entries of the admin queues.
const ADMIN_ENTRIES: u16 = 32;
/// An admin command has ended within this.
const COMMAND_WITHIN: Duration = Duration::from_secs(5);
const CHANGED_NAMESPACES: u8 = 0x04;
// In configuration space.
const COMMAND: u64 = 0x04;
const COMMAND_MASTER: u16 = 1 << 2;
