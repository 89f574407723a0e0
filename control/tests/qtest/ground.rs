//! QEMU's device models without a guest: a machine whose processor only halts, driven through QEMU's qtest socket. Its functions
//! are [`Function`]s for drivers, without a kernel, an IOMMU or root.
//!
//! Its memory is a file that the test maps as well. A function reaches guest physical addresses, and what a driver maps for it has to
//! lie in that file where the function looks for it: [`Ground::memory`] gives such memory, [`Space`] takes no other. An interrupt
//! is a store into a word of that memory, which a thread looks at.

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
use rustix::fs::MemfdFlags;

/// A machine with one function. A network's wire gives back what it gets.
pub struct Ground {
    qemu: Child,
    machine: Arc<Machine>,
    _folder: tempfile::TempDir,
}

/// What can be asked of it.
struct Machine {
    wire: Mutex<BufReader<UnixStream>>,
    /// Its memory.
    file: OwnedFd,
    is_open: AtomicBool,
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
        let machine = Arc::new(Machine { wire, file, is_open: AtomicBool::new(false) });
        machine.place_bars();
        Ground { qemu, machine, _folder: folder }
    }

    /// Memory of the machine at a guest physical address.
    pub fn memory(&self, gpa: u64, size: u64) -> Arc<Region> {
        self.machine.region(gpa, size).unwrap()
    }

    /// What opens the function.
    pub fn opener(&self) -> Opener {
        let machine = Arc::clone(&self.machine);
        Arc::new(move || Ok(Opened::new(Arc::clone(&machine))? as _))
    }

    pub fn id(&self) -> Id {
        let config = View::new(Arc::new(ConfigSpace(Arc::clone(&self.machine))));
        Id {
            vendor: config.read16(0),
            device: config.read16(2),
            subsystem_vendor: config.read16(0x2c),
            subsystem: config.read16(0x2e),
        }
    }

    /// Nobody has the function.
    pub fn is_closed(&self) -> bool {
        !self.machine.is_open.load(Ordering::SeqCst)
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

pub fn address() -> Address {
    format!("0000:00:{SLOT}.0").parse().unwrap()
}

/// The far end of the wire: ends with the process.
fn echo(far: UnixDatagram, near: std::path::PathBuf) {
    std::thread::spawn(move || {
        let mut frame = vec![0; 1 << 16];
        while let Ok(length) = far.recv(&mut frame) {
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
    fn config(&self, at: u64, request: &str) -> Option<u64> {
        let mut wire = self.wire.lock().unwrap();
        let slot = u64::from_str_radix(SLOT, 16).unwrap();
        let select = 0x8000_0000 | slot << 11 | (at & !3);
        Machine::ask_on(&mut wire, &format!("outl 0xcf8 {select:#x}"))?;
        Machine::ask_on(&mut wire, request)
    }

    /// Gives each BAR a place, and has the function answer there and reach memory.
    fn place_bars(self: &Arc<Machine>) {
        let config = View::new(Arc::new(ConfigSpace(Arc::clone(self))));
        for bar in 0..6u8 {
            if let Some((at, _, is_64)) = self.bar(bar) {
                config.write32(at, (BARS + BAR_ROOM * u64::from(bar)) as u32);
                if is_64 {
                    config.write32(at + 4, 0);
                }
            }
        }
        // Memory space, bus mastering.
        config.write16(4, 6);
    }

    /// Where the register of a BAR in memory is, its bytes, and whether it is of 64 bits.
    fn bar(self: &Arc<Machine>, bar: u8) -> Option<(u64, u64, bool)> {
        let config = View::new(Arc::new(ConfigSpace(Arc::clone(self))));
        let at = 0x10 + 4 * u64::from(bar);
        let is_upper = bar > 0 && config.read32(at - 4) & 7 == 4;
        let was = config.read32(at);
        config.write32(at, u32::MAX);
        let mask = config.read32(at);
        config.write32(at, was);
        let is_memory = mask != 0 && mask & 1 == 0 && !is_upper;
        is_memory.then(|| (at, u64::from(!(mask & !15)) + 1, mask & 4 != 0))
    }

    fn region(&self, gpa: u64, size: u64) -> io::Result<Arc<Region>> {
        let file_offset = offset(gpa, size).ok_or(io::ErrorKind::InvalidInput)?;
        let file = self.file.try_clone()?;
        Region::map(RegionSpec { gpa, size, user_addr: gpa, file_offset, file }).map_err(io::Error::other)
    }
}

/// Where memory of the machine is in its file, if all of it is there.
fn offset(gpa: u64, size: u64) -> Option<u64> {
    let range = RANGES.iter().find(|range| range.contains(&gpa) && range.contains(&(gpa + size - 1)))?;
    Some(if *range.start() == 0 { gpa } else { gpa - range.start() + RANGES[0].end() + 1 })
}

/// The function, open.
struct Opened {
    machine: Arc<Machine>,
    space: Arc<Space>,
    vectors: Arc<Vec<Mutex<Option<EventFd>>>>,
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
    fn new(machine: Arc<Machine>) -> Result<Arc<Opened>, OpenError> {
        if machine.is_open.swap(true, Ordering::SeqCst) {
            return Err(OpenError::Busy { address: address(), group: 0, holder: None });
        }
        let words = Arc::new(GuestMap::new(vec![machine.region(WORDS, 4096).unwrap()]).unwrap());
        let space = Arc::new(Space(Arc::clone(&machine)));
        let mut opened =
            Opened { machine, space, vectors: Arc::default(), words, is_over: Arc::default(), thread: None };
        if let Some(msix) = opened.msix() {
            let control = msix.read16(2);
            let vectors = (0..=control & 0x7ff).map(|_| Mutex::default()).collect();
            opened.vectors = Arc::new(vectors);
            // On, no vector masked by the function; each is by its own bit.
            msix.write16(2, control & !0x4000 | 0x8000);
        }
        let (vectors, words, is_over) =
            (Arc::clone(&opened.vectors), Arc::clone(&opened.words), Arc::clone(&opened.is_over));
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
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        opened.thread = Some(thread);
        Ok(Arc::new(opened))
    }

    /// The capability of MSI-X.
    fn msix(&self) -> Option<View> {
        let found = capabilities(&self.config()).into_iter().find(|capability| capability.id == 0x11)?;
        Some(found.body)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.machine.is_open.store(false, Ordering::SeqCst);
    }
}

impl Function for Opened {
    fn config(&self) -> View {
        View::new(Arc::new(ConfigSpace(Arc::clone(&self.machine))))
    }

    fn bar(&self, index: u8) -> io::Result<View> {
        let (_, size, _) = self.machine.bar(index).ok_or(io::ErrorKind::NotFound)?;
        let start = BARS + BAR_ROOM * u64::from(index);
        Ok(View::new(Arc::new(Bar { machine: Arc::clone(&self.machine), start, size })))
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
        let msix = self.msix().ok_or(io::ErrorKind::NotFound)?;
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

    fn bind_doorbell(&self, _: &Doorbell, from: Option<BorrowedFd<'_>>) -> io::Result<()> {
        match from {
            Some(_) => Err(io::ErrorKind::Unsupported.into()),
            None => Ok(()),
        }
    }

    fn on_wanted_back(&self, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

struct ConfigSpace(Arc<Machine>);

impl Registers for ConfigSpace {
    fn size(&self) -> u64 {
        256
    }
    fn read(&self, at: u64, width: Width) -> u64 {
        let request = format!("in{} {:#x}", letter(width), 0xcfc + (at & 3));
        self.0.config(at, &request).unwrap_or(width.ones())
    }
    fn write(&self, at: u64, width: Width, value: u64) {
        let request = format!("out{} {:#x} {value:#x}", letter(width), 0xcfc + (at & 3));
        let _ = self.0.config(at, &request);
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
        let map = GuestMap::new(vec![self.0.region(iova, size)?]).map_err(io::Error::other)?;
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
/// Where the function is on its bus.
pub const SLOT: &str = "03";
