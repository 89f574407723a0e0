//! A bus of slots, and the model of a card that can be put into one: registers, DMA, interrupts, and faults on demand.
//!
//! The card is a thread that works on the rings it was given, in memory that was mapped for it and no other: it refuses rings
//! outside of it, as an IOMMU would.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::queue::SegQueue;
use ringway_engine::{Budget, Watcher};
use ringway_pmd::bus::{Bus, BusEvent, BusInfo};
use ringway_pmd::dma::DmaSpace;
use ringway_pmd::drivers::sim_net::Loop;
use ringway_pmd::notify::EventFd;
use ringway_pmd::vdpa::{DeviceSpec, MakePump as _, NetSpec, QueueBinding};
use ringway_ring::guest::Region;
use ringway_ring::tsc;

/// Registers.
pub const ID: usize = 0;
pub const STATUS: usize = 1;
pub const RESET: usize = 2;
const REGISTERS: usize = 3;

/// In ID.
pub const LOOP_CARD: u32 = 0x100b;
/// In STATUS.
pub const STATUS_READY: u32 = 1;
pub const STATUS_LINK: u32 = 2;

pub const PAIRS: u16 = 2;
pub const WINDOW_BYTES: u64 = 1 << 39;

/// What the card interrupts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Link,
    Error,
    Gone,
}

type Interrupt = Box<dyn Fn(Cause) + Send>;

/// Access to a card: what the bus hands to a driver.
#[derive(Clone)]
pub struct Card(Arc<Hardware>);

struct Hardware {
    registers: [AtomicU32; REGISTERS],
    space: Arc<Space>,
    interrupt: Mutex<Option<Interrupt>>,
    pairs: Mutex<BTreeMap<u16, Pair>>,
    /// Pairs that it gave up by itself.
    lost: Mutex<Vec<u16>>,
    reset_hangs: AtomicBool,
    stop_hangs: AtomicBool,
}

struct Pair {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    watcher: Arc<dyn Watcher>,
}

impl Card {
    pub fn new(id: u32) -> Card {
        let registers = [AtomicU32::new(id), AtomicU32::new(STATUS_READY | STATUS_LINK), AtomicU32::new(0)];
        Card(Arc::new(Hardware {
            registers,
            space: Arc::default(),
            interrupt: Mutex::default(),
            pairs: Mutex::default(),
            lost: Mutex::default(),
            reset_hangs: AtomicBool::new(false),
            stop_hangs: AtomicBool::new(false),
        }))
    }

    pub fn read(&self, register: usize) -> u32 {
        self.0.registers[register].load(Ordering::Acquire)
    }

    pub fn write(&self, register: usize, value: u32) {
        if register == RESET && value == 1 {
            let is_ready = !self.0.reset_hangs.load(Ordering::Relaxed);
            self.0.registers[STATUS].store(STATUS_LINK | u32::from(is_ready), Ordering::Release);
            return;
        }
        self.0.registers[register].store(value, Ordering::Release);
    }

    pub fn dma(&self) -> Arc<dyn DmaSpace> {
        self.0.space.clone()
    }

    pub fn on_interrupt(&self, handler: Option<Interrupt>) {
        *self.0.interrupt.lock().unwrap() = handler;
    }

    /// Gives the card rings to work on.
    pub fn enable(
        &self,
        group: u16,
        queues: Vec<QueueBinding>,
        watcher: Arc<dyn Watcher>,
    ) -> Result<(), String> {
        for queue in &queues {
            let ring = queue
                .config
                .map
                .resolve_user(queue.config.desc_user_addr, 16)
                .map_err(|miss| miss.to_string())?;
            if !self.0.space.reaches(ring.as_ptr() as u64) {
                return Err(format!("DMA fault: ring {} is not mapped for the card", queue.index));
            }
        }
        let spec = DeviceSpec::net("card", NetSpec::default());
        let made = Loop::new(&spec).and_then(|mut wire| wire.pump(group, queues));
        let mut pump = made.map_err(|error| error.to_string())?;
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !theirs.load(Ordering::Relaxed) {
                pump.poll(&Budget::default(), tsc::cycles());
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        self.0.pairs.lock().unwrap().insert(group, Pair { stop, thread, watcher });
        Ok(())
    }

    /// Takes them back; false: it still works on them.
    pub fn disable(&self, group: u16, within: Duration) -> bool {
        let Some(pair) = self.0.pairs.lock().unwrap().remove(&group) else { return true };
        if !self.0.stop_hangs.load(Ordering::Relaxed) {
            pair.stop.store(true, Ordering::Relaxed);
        }
        let until = Instant::now() + within;
        while !pair.thread.is_finished() {
            if Instant::now() >= until {
                self.0.pairs.lock().unwrap().insert(group, pair);
                return false;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        true
    }

    pub fn is_enabled(&self, group: u16) -> bool {
        self.0.pairs.lock().unwrap().contains_key(&group)
    }

    pub fn take_lost(&self) -> Vec<u16> {
        std::mem::take(&mut self.0.lost.lock().unwrap())
    }
}

/// What a test does to a card.
impl Card {
    pub fn interrupt(&self, cause: Cause) {
        if let Some(handler) = &*self.0.interrupt.lock().unwrap() {
            handler(cause);
        }
    }

    pub fn set_link(&self, is_up: bool) {
        let link = if is_up { STATUS_LINK } else { 0 };
        self.0.registers[STATUS].store(STATUS_READY | link, Ordering::Release);
        self.interrupt(Cause::Link);
    }

    /// It gives a pair up.
    pub fn lose(&self, group: u16) {
        let watcher = Arc::clone(&self.0.pairs.lock().unwrap()[&group].watcher);
        assert!(self.disable(group, Duration::from_secs(20)));
        self.0.lost.lock().unwrap().push(group);
        watcher.pump_ended();
    }

    pub fn reset_hangs(&self, hangs: bool) {
        self.0.reset_hangs.store(hangs, Ordering::Relaxed);
    }

    /// It goes on with rings that it is to give back.
    pub fn stop_hangs(&self, hangs: bool) {
        self.0.stop_hangs.store(hangs, Ordering::Relaxed);
    }

    /// The host does not take memory away from it.
    pub fn unmap_fails(&self, fails: bool) {
        self.0.space.unmap_fails.store(fails, Ordering::Relaxed);
    }

    pub fn break_down(&self) {
        self.0.registers[STATUS].store(0, Ordering::Release);
    }

    pub fn pins_at_most(&self, bytes: u64) {
        *self.0.space.limit.lock().unwrap() = Some(bytes);
    }

    /// Bytes that are mapped for it.
    pub fn mapped(&self) -> u64 {
        self.0.space.mapped.lock().unwrap().values().map(|(_, len)| len).sum()
    }
}

/// What the card can reach.
#[derive(Default)]
struct Space {
    /// By IOVA: the host's address, and the length.
    mapped: Mutex<BTreeMap<u64, (u64, u64)>>,
    limit: Mutex<Option<u64>>,
    unmap_fails: AtomicBool,
}

impl Space {
    fn reaches(&self, address: u64) -> bool {
        let mapped = self.mapped.lock().unwrap();
        mapped.values().any(|(host, len)| (*host..host + len).contains(&address))
    }
}

impl DmaSpace for Space {
    fn map(&self, iova: u64, region: &Region, at: u64, len: u64) -> io::Result<()> {
        if self.limit.lock().unwrap().is_some_and(|most| len > most) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.mapped.lock().unwrap().insert(iova, (region.host_address() + at, len));
        Ok(())
    }
    fn unmap(&self, iova: u64, _len: u64) -> io::Result<()> {
        if self.unmap_fails.load(Ordering::Relaxed) {
            return Err(io::Error::other("the IOMMU does not answer"));
        }
        assert!(self.mapped.lock().unwrap().remove(&iova).is_some());
        Ok(())
    }
    fn ranges(&self) -> Vec<RangeInclusive<u64>> {
        vec![0..=WINDOW_BYTES - 1]
    }
}

/// The bus.
#[derive(Clone)]
pub struct ModelBus {
    news: Arc<EventFd>,
    events: Arc<SegQueue<BusEvent<Card>>>,
}

impl ModelBus {
    pub fn new() -> ModelBus {
        ModelBus { news: Arc::new(EventFd::new().unwrap()), events: Arc::default() }
    }

    pub fn plug(&self, slot: &str, card: &Card) {
        self.events.push(BusEvent::Announced { address: slot.to_owned(), device: card.clone() });
        self.news.signal();
    }

    pub fn pull(&self, slot: &str) {
        self.events.push(BusEvent::Withdrawn { address: slot.to_owned(), why: "pulled out".to_owned() });
        self.news.signal();
    }
}

impl Bus for ModelBus {
    type Device = Card;
    fn info(&self) -> BusInfo {
        BusInfo {
            name: "model",
            shape: "SLOT",
            check: |_| Ok(()),
            missing: |slot| format!("plug a card into {slot}"),
        }
    }
    fn news(&self) -> Option<BorrowedFd<'_>> {
        Some(self.news.as_fd())
    }
    fn take(&mut self) -> Vec<BusEvent<Card>> {
        self.news.clear();
        std::iter::from_fn(|| self.events.pop()).collect()
    }
}
