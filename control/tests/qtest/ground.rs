//! QEMU's device models without a guest: a machine whose processor only halts, driven through QEMU's qtest socket. Its functions
//! are [`Function`]s for drivers, without a kernel, an IOMMU or root.
//!
//! Its memory is a file that the test maps as well. A function reaches guest physical addresses, and what a driver maps for it has to
//! lie in that file where the function looks for it: [`Ground::memory`] gives such memory, [`Space`] takes no other. An interrupt
//! is a store into a word of that memory, which a thread looks at; it also rings doorbells in the host's place.

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringway_pmd::bus::pci::capability::capabilities;
use ringway_pmd::bus::pci::{Address, Doorbell, Function, Id, OpenError, Opener, Registers, View, Width};
use ringway_pmd::dma::DmaSpace;
use ringway_pmd::notify::EventFd;
use ringway_ring::guest::{GuestMap, Region, RegionSpec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;

use super::pf::Pf;

/// A machine with one function. A network's wire gives back what it gets, to whom it is from.
pub struct Ground {
    qemu: Child,
    machine: Arc<Machine>,
    /// What drivers open: the function, or a virtual one of it.
    function: Arc<Place>,
    /// Who drives the function that the virtual one is of.
    pf: Option<Pf>,
    _folder: tempfile::TempDir,
}

/// What can be asked of it.
struct Machine {
    wire: Mutex<BufReader<UnixStream>>,
    /// Its memory.
    file: OwnedFd,
}

/// A function of it, with its BARs placed.
struct Place {
    machine: Arc<Machine>,
    /// Of bus 0.
    devfn: u8,
    bars: Vec<PlacedBar>,
    /// What it is, where its own configuration does not say so.
    id: Option<Id>,
    is_open: AtomicBool,
}

#[derive(Clone, Copy)]
struct PlacedBar {
    index: u8,
    start: u64,
    size: u64,
}

impl Ground {
    /// Starts it with this network device.
    pub fn start(device: &str) -> Ground {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        echo(UnixDatagram::bind(path("far")).unwrap(), path("near"));
        let netdev = format!(
            "dgram,id=n0,local.type=unix,local.path={},remote.type=unix,remote.path={}",
            path("near").display(),
            path("far").display()
        );
        let device = format!("{device},netdev=n0,addr={SLOT}");
        Ground::start_with(&["-netdev", &netdev, "-device", &device], folder)
    }

    /// Starts it with what these arguments say: the function is in [`SLOT`].
    pub fn start_with(arguments: &[&str], folder: tempfile::TempDir) -> Ground {
        let path = |name: &str| folder.path().join(name);
        let mut bios = vec![0xf4u8; 64 << 10];
        let reset = bios.len() - 16;
        // cli; hlt; jmp back.
        bios[reset..reset + 4].copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfd]);
        std::fs::write(path("bios"), bios).unwrap();
        let file = rustix::fs::memfd_create("ground", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, MEMORY).unwrap();
        let memory = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let log = std::fs::File::create(path("log")).unwrap();
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-machine", "q35,memory-backend=m0", "-m", &format!("{}M", MEMORY >> 20)])
            .args(["-nodefaults", "-display", "none", "-bios"])
            .arg(path("bios"))
            .arg("-object")
            .arg(format!("memory-backend-file,id=m0,size={}M,mem-path={memory},share=on", MEMORY >> 20))
            .args(arguments)
            .arg("-qtest")
            .arg(format!("unix:{},server=on,wait=off", path("qtest").display()))
            .args(["-qtest-log", "none"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let begun = Instant::now();
        let stream = loop {
            match UnixStream::connect(path("qtest")) {
                Ok(stream) => break stream,
                Err(_) if begun.elapsed() < Duration::from_secs(20) => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => {
                    panic!("QEMU: {error}: {}", std::fs::read_to_string(path("log")).unwrap_or_default())
                }
            }
        };
        let wire = Mutex::new(BufReader::new(stream));
        let machine = Arc::new(Machine { wire, file });
        let function = Arc::new(Place::of(&machine));
        Ground { qemu, machine, function, pf: None, _folder: folder }
    }

    /// Starts it with an 82576, whose first virtual function it is, which its PF gave this address.
    pub fn start_vf(mac: [u8; 6]) -> Ground {
        let mut ground = Ground::start("igb");
        let bar = ground.function.bar_at(0).unwrap().start;
        let registers =
            View::new(Arc::new(Bar { machine: Arc::clone(&ground.machine), start: bar, size: BAR_ROOM }));
        ground.function = Arc::new(Place::first_vf(&ground.function));
        ground.pf = Some(Pf::start(registers, mac));
        ground
    }

    /// Who drives the function that this one is a virtual one of.
    pub fn pf(&self) -> &Pf {
        self.pf.as_ref().unwrap()
    }

    /// Somebody resets the function, as the kernel does it: what the host gave it, it has again.
    pub fn reset_underneath(&self) {
        self.function.reset().unwrap();
    }

    /// As a bus names it.
    pub fn address(&self) -> Address {
        self.function.address()
    }

    /// Memory of the machine at a guest physical address.
    pub fn memory(&self, gpa: u64, size: u64) -> Arc<Region> {
        self.memory_elsewhere(gpa, gpa, size)
    }

    /// Memory that a guest has at `gpa`, and a function at another address.
    pub fn memory_elsewhere(&self, gpa: u64, iova: u64, size: u64) -> Arc<Region> {
        self.machine.region(gpa, iova, size).unwrap()
    }

    /// What opens the function.
    pub fn opener(&self) -> Opener {
        let function = Arc::clone(&self.function);
        Arc::new(move || Ok(Opened::new(Arc::clone(&function))? as _))
    }

    pub fn id(&self) -> Id {
        let config = self.function.config();
        self.function.id.unwrap_or_else(|| Id {
            vendor: config.read16(0),
            device: config.read16(2),
            subsystem_vendor: config.read16(0x2c),
            subsystem: config.read16(0x2e),
            class: config.read32(8) >> 8,
        })
    }

    /// Nobody has the function.
    pub fn is_closed(&self) -> bool {
        !self.function.is_open.load(Ordering::SeqCst)
    }

    /// The machine dies, as a function that is pulled.
    pub fn kill(&mut self) {
        self.qemu.kill().unwrap();
        self.qemu.wait().unwrap();
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The far end of the wire, which sends back to whom it is from: ends with the process.
fn echo(far: UnixDatagram, near: std::path::PathBuf) {
    std::thread::spawn(move || {
        let mut frame = vec![0; 1 << 16];
        while let Ok(length) = far.recv(&mut frame) {
            if length >= 12 {
                let (to, from) = frame[..12].split_at_mut(6);
                to.swap_with_slice(from);
            }
            let _ = far.send_to(&frame[..length], &near);
        }
    });
}

impl Machine {
    /// Asks something; nothing is answered once the machine is gone.
    fn ask(&self, request: &str) -> Option<u64> {
        let mut wire = self.wire.lock().unwrap();
        Machine::ask_on(&mut wire, request)
    }

    fn ask_on(wire: &mut BufReader<UnixStream>, request: &str) -> Option<u64> {
        wire.get_mut().write_all(format!("{request}\n").as_bytes()).ok()?;
        let mut answer = String::new();
        wire.read_line(&mut answer).ok().filter(|length| *length > 0)?;
        let mut words = answer.split_whitespace();
        assert_eq!(words.next(), Some("OK"), "{request}: {answer}");
        match words.next() {
            None => Some(0),
            Some(value) => u64::from_str_radix(value.trim_start_matches("0x"), 16).ok(),
        }
    }

    /// Two requests that belong together.
    fn config(&self, devfn: u8, at: u64, request: &str) -> Option<u64> {
        let mut wire = self.wire.lock().unwrap();
        let select = 0x8000_0000 | u64::from(devfn) << 8 | (at & !3);
        Machine::ask_on(&mut wire, &format!("outl 0xcf8 {select:#x}"))?;
        Machine::ask_on(&mut wire, request)
    }

    fn region(&self, gpa: u64, iova: u64, size: u64) -> io::Result<Arc<Region>> {
        let file_offset = offset(iova, size).ok_or(io::ErrorKind::InvalidInput)?;
        let file = self.file.try_clone()?;
        Region::map(RegionSpec { gpa, size, user_addr: gpa, file_offset, file }).map_err(io::Error::other)
    }
}

impl Place {
    /// The function that the machine has, each BAR at a place of its own; it answers there and reaches memory.
    fn of(machine: &Arc<Machine>) -> Place {
        let devfn = u8::from_str_radix(SLOT, 16).unwrap() << 3;
        let config = View::new(Arc::new(ConfigSpace { machine: Arc::clone(machine), devfn, id: None }));
        let bars = place_bars(&config, 0x10, BARS);
        // Memory space, bus mastering.
        config.write16(4, 6);
        Place { machine: Arc::clone(machine), devfn, bars, id: None, is_open: AtomicBool::new(false) }
    }

    /// The first virtual function of one, switched on.
    fn first_vf(pf: &Place) -> Place {
        // Capabilities beyond the first 256 bytes are in memory, where the host bridge has them.
        pf.machine.config(0, 0x60, &format!("outl 0xcfc {:#x}", ECAM | 1));
        let start = ECAM + (u64::from(pf.devfn) << 12);
        let whole = View::new(Arc::new(Bar { machine: Arc::clone(&pf.machine), start, size: 4096 }));
        let mut at = 0x100;
        while whole.read16(at) != SR_IOV {
            at = u64::from(whole.read16(at + 2) >> 4);
            assert_ne!(at, 0, "the function has no virtual ones");
        }
        let bars = place_bars(&whole, at + 0x24, BARS + 8 * BAR_ROOM);
        whole.write16(at + 0x10, 1);
        // Virtual functions, and their memory space.
        whole.write16(at + 0x08, 9);
        let devfn = pf.devfn + whole.read16(at + 0x14) as u8;
        let id = Id {
            vendor: pf.config().read16(0),
            device: whole.read16(at + 0x1a),
            subsystem_vendor: pf.config().read16(0x2c),
            subsystem: pf.config().read16(0x2e),
            class: 0x020000,
        };
        let machine = Arc::clone(&pf.machine);
        let vf = Place { machine, devfn, bars, id: Some(id), is_open: AtomicBool::new(false) };
        vf.config().write16(4, 6);
        vf
    }

    fn address(&self) -> Address {
        format!("0000:00:{:02x}.{}", self.devfn >> 3, self.devfn & 7).parse().unwrap()
    }

    fn config(&self) -> View {
        View::new(Arc::new(ConfigSpace {
            machine: Arc::clone(&self.machine),
            devfn: self.devfn,
            id: self.id,
        }))
    }

    fn bar_at(&self, index: u8) -> io::Result<PlacedBar> {
        let found = self.bars.iter().find(|bar| bar.index == index);
        found.copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn bar(&self, index: u8) -> io::Result<View> {
        let PlacedBar { start, size, .. } = self.bar_at(index)?;
        Ok(View::new(Arc::new(Bar { machine: Arc::clone(&self.machine), start, size })))
    }

    /// By its own means (function level reset), if it has them; what the host gave it, it has again.
    fn reset(&self) -> io::Result<()> {
        let found = capabilities(&self.config()).into_iter().find(|capability| capability.id == 0x10);
        let express = found.map(|found| found.body).filter(|body| body.read32(4) & 1 << 28 != 0);
        let express = express.ok_or(io::ErrorKind::Unsupported)?;
        express.write16(8, express.read16(8) | 0x8000);
        self.config().write16(4, 6);
        if let Some(msix) = self.msix() {
            msix.write16(2, msix.read16(2) & !0x4000 | 0x8000);
        }
        Ok(())
    }

    /// The capability of MSI-X.
    fn msix(&self) -> Option<View> {
        let found = capabilities(&self.config()).into_iter().find(|capability| capability.id == 0x11)?;
        Some(found.body)
    }
}

/// Gives each BAR in memory a place; the registers of the first are here.
fn place_bars(config: &View, first: u64, from: u64) -> Vec<PlacedBar> {
    let (mut bars, mut is_upper) = (Vec::new(), false);
    for index in 0..6u8 {
        let at = first + 4 * u64::from(index);
        if std::mem::take(&mut is_upper) {
            continue;
        }
        config.write32(at, u32::MAX);
        let mask = config.read32(at);
        if mask == 0 || mask & 1 == 1 {
            continue;
        }
        let (start, size) = (from + BAR_ROOM * u64::from(index), u64::from(!(mask & !15)) + 1);
        is_upper = mask & 4 != 0;
        config.write32(at, start as u32);
        if is_upper {
            config.write32(at + 4, 0);
        }
        bars.push(PlacedBar { index, start, size });
    }
    bars
}

/// Where memory of the machine is in its file, if all of it is there.
fn offset(gpa: u64, size: u64) -> Option<u64> {
    let range = RANGES.iter().find(|range| range.contains(&gpa) && range.contains(&(gpa + size - 1)))?;
    Some(if *range.start() == 0 { gpa } else { gpa - range.start() + RANGES[0].end() + 1 })
}

/// The function, open.
struct Opened {
    function: Arc<Place>,
    space: Arc<Space>,
    vectors: Arc<Vec<Mutex<Option<EventFd>>>>,
    /// Those that the host rings.
    doorbells: Arc<Mutex<Vec<(Doorbell, EventFd)>>>,
    /// The words that interrupts are stored into.
    words: Arc<GuestMap>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened")
    }
}

impl Opened {
    fn new(function: Arc<Place>) -> Result<Arc<Opened>, OpenError> {
        if function.is_open.swap(true, Ordering::SeqCst) {
            return Err(OpenError::Busy { address: function.address(), group: 0, holder: None });
        }
        let machine = &function.machine;
        let words = Arc::new(GuestMap::new(vec![machine.region(WORDS, WORDS, 4096).unwrap()]).unwrap());
        let space = Arc::new(Space(Arc::clone(machine)));
        let mut opened = Opened {
            function,
            space,
            vectors: Arc::default(),
            doorbells: Arc::default(),
            words,
            is_over: Arc::default(),
            thread: None,
        };
        if let Some(msix) = opened.function.msix() {
            let control = msix.read16(2);
            let vectors = (0..=control & 0x7ff).map(|_| Mutex::default()).collect();
            opened.vectors = Arc::new(vectors);
            // On, no vector masked by the function; each is by its own bit.
            msix.write16(2, control & !0x4000 | 0x8000);
        }
        let (vectors, words, is_over) =
            (Arc::clone(&opened.vectors), Arc::clone(&opened.words), Arc::clone(&opened.is_over));
        let (doorbells, registers) = (Arc::clone(&opened.doorbells), Arc::clone(&opened.function));
        let thread = std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                for (vector, to) in (0u64..).zip(&*vectors) {
                    let word = words.resolve(WORDS + vector * 4, 4).unwrap();
                    let mut value = [0; 4];
                    word.read(&mut value);
                    if value != [0; 4] {
                        // Signalled after it: what is stored between the two is signalled as well.
                        word.write(&[0; 4]);
                        if let Some(to) = &*to.lock().unwrap() {
                            to.signal();
                        }
                    }
                }
                let doorbells = doorbells.lock().unwrap();
                // One kick may be for several.
                let rung: Vec<_> = doorbells.iter().filter(|(_, from)| is_signalled(from)).collect();
                for (_, from) in &rung {
                    from.clear();
                }
                for (at, _) in rung {
                    registers.bar(at.bar).unwrap().write(at.at, at.width, at.value);
                }
                drop(doorbells);
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        opened.thread = Some(thread);
        Ok(Arc::new(opened))
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.function.is_open.store(false, Ordering::SeqCst);
    }
}

impl Function for Opened {
    fn config(&self) -> View {
        self.function.config()
    }

    fn bar(&self, index: u8) -> io::Result<View> {
        self.function.bar(index)
    }

    fn dma(&self) -> Arc<dyn DmaSpace> {
        Arc::clone(&self.space) as _
    }

    fn vectors(&self) -> u16 {
        self.vectors.len() as u16
    }

    fn bind(&self, vector: u16, to: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let slot = self.vectors.get(usize::from(vector)).ok_or(io::ErrorKind::NotFound)?;
        let to = to.map(|fd| EventFd::from_peer(fd.try_clone_to_owned()?)).transpose()?;
        let msix = self.function.msix().ok_or(io::ErrorKind::NotFound)?;
        let table = msix.read32(4);
        let table = self
            .bar((table & 7) as u8)?
            .part(u64::from(table & !7) + u64::from(vector) * 16, 16)
            .ok_or(io::ErrorKind::NotFound)?;
        table.write32(0, (WORDS + u64::from(vector) * 4) as u32);
        table.write32(4, 0);
        table.write32(8, 1);
        table.write32(12, u32::from(to.is_none()));
        *slot.lock().unwrap() = to;
        Ok(())
    }

    fn bind_doorbell(&self, at: &Doorbell, from: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let from = from.map(|fd| EventFd::from_peer(fd.try_clone_to_owned()?)).transpose()?;
        let mut doorbells = self.doorbells.lock().unwrap();
        doorbells.retain(|(bound, _)| bound != at);
        doorbells.extend(from.map(|from| (*at, from)));
        Ok(())
    }

    fn on_wanted_back(&self, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        self.function.reset()
    }
}

fn is_signalled(event: &EventFd) -> bool {
    let mut fds = [PollFd::new(event, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}

struct ConfigSpace {
    machine: Arc<Machine>,
    devfn: u8,
    /// What a virtual function's own does not say, and the host does in its place.
    id: Option<Id>,
}

impl Registers for ConfigSpace {
    fn size(&self) -> u64 {
        256
    }
    fn read(&self, at: u64, width: Width) -> u64 {
        if let Some(id) = self.id.filter(|_| at == 0 && width == Width::B2) {
            return id.vendor.into();
        }
        let request = format!("in{} {:#x}", letter(width), 0xcfc + (at & 3));
        self.machine.config(self.devfn, at, &request).unwrap_or(width.ones())
    }
    fn write(&self, at: u64, width: Width, value: u64) {
        let request = format!("out{} {:#x} {value:#x}", letter(width), 0xcfc + (at & 3));
        let _ = self.machine.config(self.devfn, at, &request);
    }
}

struct Bar {
    machine: Arc<Machine>,
    start: u64,
    size: u64,
}

impl Registers for Bar {
    fn size(&self) -> u64 {
        self.size
    }
    fn read(&self, at: u64, width: Width) -> u64 {
        let request = format!("read{} {:#x}", letter(width), self.start + at);
        self.machine.ask(&request).unwrap_or(width.ones())
    }
    fn write(&self, at: u64, width: Width, value: u64) {
        let _ = self.machine.ask(&format!("write{} {:#x} {value:#x}", letter(width), self.start + at));
    }
}

fn letter(width: Width) -> char {
    match width {
        Width::B1 => 'b',
        Width::B2 => 'w',
        Width::B4 => 'l',
        Width::B8 => 'q',
    }
}

/// What the function can reach: the machine's memory, at its own place.
struct Space(Arc<Machine>);

impl DmaSpace for Space {
    fn map(&self, iova: u64, region: &Region, at: u64, len: u64) -> io::Result<()> {
        let facts = |file: BorrowedFd<'_>| rustix::fs::fstat(file).map(|facts| (facts.st_dev, facts.st_ino));
        let is_there = facts(region.file())? == facts(self.0.file.as_fd())?
            && offset(iova, len) == Some(region.file_offset() + at);
        if is_there { Ok(()) } else { Err(io::Error::other("it is not the machine's memory at that place")) }
    }

    fn unmap(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn ranges(&self) -> Vec<RangeInclusive<u64>> {
        RANGES.to_vec()
    }

    fn allocate(&self, iova: u64, size: u64) -> io::Result<GuestMap> {
        let size = size.next_multiple_of(4096);
        let map = GuestMap::new(vec![self.0.region(iova, iova, size)?]).map_err(io::Error::other)?;
        // Others may have had it.
        map.resolve(iova, size).map_err(io::Error::other)?.write(&vec![0; size as usize]);
        Ok(map)
    }
}

/// Bytes of memory, of which few are ever touched.
const MEMORY: u64 = 3 << 30;
/// Where q35 has that much: 2 GiB from 0 on, the rest from 4 GiB on.
const RANGES: [RangeInclusive<u64>; 2] = [0..=(2 << 30) - 1, 4 << 30..=(5 << 30) - 1];
/// Where interrupts are stored.
const WORDS: u64 = 2 << 20;
/// Where BARs are, a MiB each.
const BARS: u64 = 0xe000_0000;
const BAR_ROOM: u64 = 1 << 20;
/// Where all of a function's configuration is, by bus, device and function.
const ECAM: u64 = 0xb000_0000;
/// The extended capability of virtual functions.
const SR_IOV: u16 = 0x10;
/// Where the function is on its bus.
pub const SLOT: &str = "03";
