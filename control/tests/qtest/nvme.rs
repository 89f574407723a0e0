//! The NVMe library, and the driver, on QEMU's own controller.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringway_control::operator::api::{DeviceEntry, PortDeleted, PortEntry, PortShow, PortState, Target};
use ringway_control::subsystem::{Options, Subsystem};
use ringway_pmd::bus::pci::Device;
use ringway_pmd::bus::virt::VirtualBus;
use ringway_pmd::driver::{Attached, Attachments};
use ringway_pmd::drivers::nvme::{EXAMINER, Nvme, NvmeFunction};
use ringway_pmd::nvme::NvmeFault;
use ringway_pmd::nvme::command::{Command, Range, Status};
use ringway_pmd::nvme::controller::Controller;
use ringway_pmd::nvme::data::{Cut, Kind, MOST_BYTES, Piece, Rules, Scatter, add};
use ringway_pmd::nvme::identify::NamespaceInfo;
use ringway_pmd::nvme::queue::{Done, Found, QueuePair};
use ringway_ring::guest::GuestMap;
use ringway_ring::position::Position;
use ringway_ring::queue::{Completion, DriverBuffer, DriverRing, Format};
use ringway_vhost_user::frontend::Frontend;

use super::ground::{Ground, SLOT};
use super::support::{Rig, SOON, eventually};

/// A machine with a controller of two namespaces: 1 of blocks of 512 bytes, 2 of 4096, each with a file.
struct Scene {
    ground: Ground,
    files: Vec<std::fs::File>,
    memory: GuestMap,
}

/// What was submitted.
struct Sent {
    commands: usize,
    kinds: Vec<Kind>,
}

impl Scene {
    fn new() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let (mut arguments, mut files) = (Vec::new(), Vec::new());
        arguments.extend(["-device".to_owned(), format!("nvme,id=c0,serial=RW0001,addr={SLOT}")]);
        for (id, block) in [(1, 512), (2, 4096)] {
            let path = folder.path().join(format!("disk{id}"));
            let file = std::fs::File::create_new(&path).unwrap();
            file.set_len(DISK).unwrap();
            files.push(std::fs::File::open(&path).unwrap());
            arguments.extend([
                "-drive".to_owned(),
                format!("file={},if=none,id=d{id},format=raw,discard=unmap", path.display()),
                "-device".to_owned(),
                format!(
                    "nvme-ns,bus=c0,drive=d{id},nsid={id},logical_block_size={block},physical_block_size={block}"
                ),
            ]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let ground = Ground::start_with(&arguments, folder);
        let memory = GuestMap::new(vec![ground.memory(MEMORY, 16 << 20)]).unwrap();
        Scene { ground, files, memory }
    }

    /// The driver of its controller, and that of the controller's functions, under a whole subsystem.
    fn subsystem(&self) -> (Subsystem, tempfile::TempDir) {
        let (address, opener) = (self.ground.address(), self.ground.opener());
        let seen = EXAMINER.examine(address, &opener);
        let device = Device { address, id: self.ground.id(), numa_node: None, opener, seen };
        let (bus, virt) = (super::OneFunction(Some(Mutex::new(device))), VirtualBus::default());
        let folder = tempfile::tempdir().unwrap();
        let attachments: Vec<Box<dyn Attachments>> = vec![
            Box::new(Attached::new(virt.clone(), vec![Box::new(NvmeFunction)])),
            Box::new(Attached::new(bus, vec![Box::new(Nvme(virt))])),
        ];
        let options = Options { attachments, ..Options::embedded(folder.path()) };
        (Subsystem::start(options).unwrap(), folder)
    }

    /// Its controller's management device.
    fn name(&self) -> String {
        format!("pci/{}", self.ground.address())
    }

    fn open(&self) -> Controller {
        Controller::open(self.ground.opener()().unwrap()).unwrap()
    }

    fn fill(&self, pieces: &[Piece], seed: u64) -> Vec<u8> {
        let mut all = Vec::new();
        for piece in pieces {
            let from = all.len() as u64;
            let bytes: Vec<u8> = (from..from + piece.len).map(|at| pattern(seed, at)).collect();
            self.memory.resolve(piece.at, piece.len).unwrap().write(&bytes);
            all.extend(bytes);
        }
        all
    }

    fn bytes(&self, pieces: &[Piece]) -> Vec<u8> {
        let mut all = Vec::new();
        for piece in pieces {
            let mut bytes = vec![0; piece.len as usize];
            self.memory.resolve(piece.at, piece.len).unwrap().read(&mut bytes);
            all.extend(bytes);
        }
        all
    }

    fn stored(&self, namespace: u32, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.files[namespace as usize - 1].read_exact_at(&mut bytes, at).unwrap();
        bytes
    }
}

fn pattern(seed: u64, at: u64) -> u8 {
    ((seed + at).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// Pieces, by place and length.
type Shape = &'static [(u64, u64)];

fn pieces(of: &[(u64, u64)]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    of.iter().for_each(|&(at, len)| add(&mut pieces, Piece { at: MEMORY + at, len }));
    pieces
}

/// The next command that ends.
fn next(pair: &mut QueuePair) -> Done {
    let begun = Instant::now();
    loop {
        match pair.reap() {
            Some(Found::Done(done)) => return done,
            Some(Found::Stray) => panic!("{:?}", pair.strays()),
            None => assert!(begun.elapsed() < Duration::from_secs(10), "nothing ends"),
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn run(pair: &mut QueuePair, command: Command) -> Status {
    let place = pair.submit(command).unwrap();
    pair.ring();
    let done = next(pair);
    assert_eq!(done.place, place);
    pair.ring();
    done.status
}

/// Reads or writes, in as many commands as it takes; None where something would have to be copied.
fn transfer(
    pair: &mut QueuePair,
    namespace: NamespaceInfo,
    (rules, pieces): (Rules, &[Piece]),
    first: u64,
    is_write: bool,
) -> Option<Sent> {
    let mut sent = Sent { commands: 0, kinds: Vec::new() };
    let (mut cut, mut block) = (Cut::new(pieces), first);
    while let Some(part) = cut.next(&rules) {
        let blocks = (part.bytes / namespace.block()) as u32;
        let make = if is_write { Command::write } else { Command::read };
        if part.kind == Kind::Copy {
            return None;
        }
        pair.submit_part(make(namespace.id, block, blocks), &part).unwrap();
        block += u64::from(blocks);
        sent.commands += 1;
        sent.kinds.push(part.kind);
    }
    pair.ring();
    for _ in 0..sent.commands {
        let status = next(pair).status;
        assert!(status.is_ok(), "{status}");
    }
    pair.ring();
    Some(sent)
}

const DISK: u64 = 32 << 20;
const MEMORY: u64 = 64 << 20;

#[test]
#[ignore = "needs QEMU >= 8: run deploy/test"]
fn qemus_controller_says_who_it_is() {
    let scene = Scene::new();
    let controller = scene.open();
    let info = controller.info();
    assert_eq!((info.serial.as_str(), info.model.as_str()), ("RW0001", "QEMU NVMe Ctrl"));
    assert_eq!((info.most_bytes, info.scatter), (512 << 10, Scatter::Bytes));
    assert!(info.has_cache && info.can_deallocate && info.can_zero && info.tells_changes);
    assert_eq!((controller.pairs(), controller.most_entries()), (64, 1024));
    assert!(controller.limits().most_in_range.is_some());
    assert_eq!(controller.namespaces(), Ok(vec![1, 2]));
    for (id, block) in [(1, 512), (2, 4096)] {
        let namespace = controller.namespace(id).unwrap();
        assert_eq!((namespace.bytes(), namespace.block()), (DISK, block));
        assert!(!namespace.is_read_only && namespace.reads_zeros);
    }
    let error = controller.namespace(3).unwrap_err().to_string();
    assert!(error.contains("its namespace 3 is not there"), "{error}");
    let error = controller.namespace(1000).unwrap_err().to_string();
    assert!(error.contains("invalid namespace"), "{error}");
    assert_eq!(controller.is_caching(), Ok(true));
    controller.set_caching(false).unwrap();
    assert_eq!(controller.is_caching(), Ok(false));
    assert_eq!(controller.has_changed(), Ok(false));
    drop(controller);
    assert!(scene.ground.is_closed());
}

/// By pages, with and without a list of them, and by scatter-gather lists.
#[test]
#[ignore = "needs QEMU >= 8: run deploy/test"]
fn what_was_written_is_stored_and_read_back_whatever_pieces_it_is_in() {
    let scene = Scene::new();
    let controller = scene.open();
    let mut pair = controller.make_pair(64, 0).unwrap();
    for id in [1, 2] {
        let namespace = controller.namespace(id).unwrap();
        let shapes: [(Shape, Kind, usize); 7] = [
            (&[(0, 0x1000)], Kind::Pages, 1),
            (&[(0x800, 0x1000)], Kind::Pages, 1),
            (&[(0x1800, 0x800), (0x8000, 0x3000), (0x4000, 0x800)], Kind::Pages, 1),
            (&[(0, 512 << 10)], Kind::Pages, 1),
            (&[(0x204, 1 << 20)], Kind::Pages, 2),
            (&[(0x1001, 0x3e8), (0x3003, 0xc18)], Kind::List, 1),
            (&[(0x1001, 0x1000)], Kind::List, 1),
        ];
        for (seed, (shape, kind, commands)) in (1..).zip(shapes) {
            let out = pieces(shape);
            let written = scene.fill(&out, seed);
            let rules = Rules {
                most: controller.info().most_bytes.min(MOST_BYTES),
                block: namespace.block(),
                scatter: controller.info().scatter,
                most_copied: 64 << 10,
            };
            let at = seed * (2 << 20);
            let first = at / namespace.block();
            let sent = transfer(&mut pair, namespace, (rules, &out), first, true).unwrap();
            assert_eq!((sent.commands, sent.kinds[0]), (commands, kind), "{shape:?}");
            assert!(run(&mut pair, Command::flush(id)).is_ok());
            assert!(scene.stored(id, at, written.len()) == written, "{shape:?}");
            let into = pieces(&[(8 << 20, written.len() as u64)]);
            transfer(&mut pair, namespace, (rules, &into), first, false).unwrap();
            assert!(scene.bytes(&into) == written, "{shape:?}");
            // And into the same pieces.
            scene.fill(&out, 99);
            transfer(&mut pair, namespace, (rules, &out), first, false).unwrap();
            assert!(scene.bytes(&out) == written, "{shape:?}");
        }
    }
    assert_eq!(pair.strays().total(), 0);
    controller.delete_pair(&pair).unwrap();
}

#[test]
#[ignore = "needs QEMU >= 8: run deploy/test"]
fn zeros_are_written_and_ranges_deallocated_and_what_is_beyond_the_end_is_refused() {
    let scene = Scene::new();
    let controller = scene.open();
    let mut pair = controller.make_pair(16, 0).unwrap();
    for id in [1, 2] {
        let namespace = controller.namespace(id).unwrap();
        let block = namespace.block();
        let rules = Rules { most: 512 << 10, block, scatter: Scatter::No, most_copied: block };
        let (out, at) = (pieces(&[(0, 256 << 10)]), 1 << 20);
        let first = at / block;
        let written = scene.fill(&out, 5);
        transfer(&mut pair, namespace, (rules, &out), first, true).unwrap();
        assert!(scene.stored(id, at, written.len()) == written);
        let blocks = (32 << 10) / block;
        assert!(run(&mut pair, Command::write_zeroes(id, first, blocks as u32, true)).is_ok());
        let ranges = [64 << 10, 128 << 10]
            .map(|from: u64| Range { first: first + from / block, blocks: blocks as u32 });
        pair.submit_ranges(id, &ranges).unwrap();
        pair.ring();
        assert!(next(&mut pair).status.is_ok());
        let mut expected = written;
        for from in [0, 64 << 10, 128 << 10] {
            expected[from..from + (32 << 10)].fill(0);
        }
        transfer(&mut pair, namespace, (rules, &out), first, false).unwrap();
        assert!(scene.bytes(&out) == expected);
        let status = run(&mut pair, Command::write_zeroes(id, namespace.blocks, 1, false));
        assert_eq!((status.code(), status.is_final()), (0x080, true));
        let status = run(&mut pair, Command::flush(9));
        assert!(!status.is_ok(), "{status}");
    }
}

/// Around the queues several times, with as many outstanding as there can be.
#[test]
#[ignore = "needs QEMU >= 8: run deploy/test"]
fn queue_pairs_are_made_filled_deleted_and_made_anew() {
    let scene = Scene::new();
    let controller = scene.open();
    let namespace = controller.namespace(1).unwrap();
    for size in [2, 3, 8, 64] {
        let mut pair = controller.make_pair(size, 0).unwrap();
        let other = controller.make_pair(size, 0).unwrap();
        assert_eq!((pair.id(), other.id()), (1, 2));
        let memory: Arc<Vec<Piece>> = Arc::new(pieces(&[(0, 512)]));
        let rules = Rules { most: 512, block: 512, scatter: Scatter::No, most_copied: 512 };
        let (mut done, mut sent) = (0, 0);
        while done < 4 * usize::from(size) {
            while pair.room() > 0 {
                let part = Cut::new(&memory).next(&rules).unwrap();
                pair.submit_part(Command::read(namespace.id, sent, 1), &part).unwrap();
                sent += 1;
            }
            assert_eq!(pair.outstanding(), usize::from(size) - 1);
            pair.ring();
            assert!(next(&mut pair).status.is_ok());
            done += 1;
        }
        // One is deleted with commands on it.
        controller.delete_pair(&pair).unwrap();
        controller.delete_pair(&other).unwrap();
    }
}

#[test]
#[ignore = "needs QEMU >= 8: run deploy/test"]
fn controller_that_is_reset_begins_anew_and_one_that_is_gone_is_told_of() {
    let mut scene = Scene::new();
    let controller = scene.open();
    let mut pair = controller.make_pair(16, 0).unwrap();
    assert!(run(&mut pair, Command::flush(1)).is_ok());
    let place = pair.submit(Command::flush(1)).unwrap();
    controller.abort(pair.id(), pair.command_id(place).unwrap()).unwrap();
    pair.ring();
    next(&mut pair);
    pair.submit(Command::flush(1)).unwrap();
    controller.reset().unwrap();
    // Its number is its own until it is deleted.
    controller.make_anew(&mut pair, 0).unwrap();
    assert_eq!((pair.id(), pair.outstanding()), (1, 0));
    assert!(run(&mut pair, Command::flush(1)).is_ok());
    controller.reset().unwrap();
    controller.delete_pair(&pair).unwrap();
    let mut pair = controller.make_pair(16, 0).unwrap();
    assert_eq!(pair.id(), 1);
    assert!(run(&mut pair, Command::flush(1)).is_ok());
    scene.ground.kill();
    assert_eq!(controller.check(), Err(NvmeFault::Gone));
    assert_eq!(controller.namespaces(), Err(NvmeFault::Gone));
    assert_eq!(controller.delete_pair(&pair), Err(NvmeFault::Gone));
}

/// A guest's request, done: its status, and what it read.
fn ask(rig: &Rig, ring: &mut dyn DriverRing, (kind, sector): (u32, u64), data: &mut [u8]) -> u8 {
    let base = rig.buffer(0, 0);
    let at = |gpa: u64, len: u64| rig.map.resolve(gpa, len).unwrap();
    // In two pieces whose border is on nothing.
    let (header, first, second, status) = (base, base + 0x1001, base + 0x8003, base + 0x18000);
    let bytes = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    at(header, 16).write(&bytes);
    at(status, 1).write(&[0xff]);
    let (cut, writable) = (data.len() / 3, kind == 0);
    let mut buffers = vec![DriverBuffer { gpa: header, len: 16, writable: false }];
    for (gpa, part) in [(first, &data[..cut]), (second, &data[cut..])] {
        if !part.is_empty() {
            at(gpa, part.len() as u64).write(part);
            buffers.push(DriverBuffer { gpa, len: part.len() as u32, writable });
        }
    }
    buffers.push(DriverBuffer { gpa: status, len: 1, writable: true });
    ring.add(&buffers, 1).unwrap();
    ring.publish();
    eventually(|| ring.collect(&mut [Completion::default(); 4]).unwrap() == 1);
    let cut = data.len() / 3;
    if writable {
        at(first, cut as u64).read(&mut data[..cut]);
        at(second, (data.len() - cut) as u64).read(&mut data[cut..]);
    }
    let mut answer = [0];
    at(status, 1).read(&mut answer);
    answer[0]
}

/// A guest's first queue, begun.
fn begin(rig: &Rig, folder: &Path, name: &str) -> (Frontend, Box<dyn DriverRing>) {
    let mut frontend = None;
    eventually(|| {
        frontend = Frontend::connect(&folder.join(format!("dev/{name}.sock")), SOON).ok();
        frontend.is_some()
    });
    let mut frontend = frontend.unwrap();
    rig.introduce(&mut frontend);
    let ring = rig.driver(0, Position::START);
    rig.start_ring(&mut frontend, 0, rig.fresh());
    frontend.enable_ring(0, true).unwrap();
    (frontend, ring)
}

/// The driver under the whole subsystem: what a guest writes is in the namespace's file, and comes back.
#[test]
#[ignore = "needs QEMU >= 8: run deploy/test"]
fn guests_disk_is_a_namespace_of_qemus_controller() {
    let scene = Scene::new();
    let (subsystem, folder) = scene.subsystem();
    let mgmtdev = scene.name();
    let mut entry = DeviceEntry { name: "d0".to_owned(), mgmtdev, ..DeviceEntry::default() };
    entry.attributes.insert("namespace".to_owned(), "2".to_owned());
    subsystem.add(&entry).unwrap();
    for format in [Format::Split, Format::Packed] {
        let rig = Rig::within(format, 1, |bytes| scene.ground.memory(Rig::GPA, bytes.next_multiple_of(4096)));
        let (mut frontend, mut ring) = begin(&rig, folder.path(), "d0");
        for n in 0..20u64 {
            let mut data: Vec<u8> = (0..8192).map(|at| pattern(n, at)).collect();
            let written = data.clone();
            assert_eq!(ask(&rig, &mut *ring, (1, n * 16), &mut data), 0);
            assert_eq!(ask(&rig, &mut *ring, (4, 0), &mut []), 0);
            assert!(scene.stored(2, n * 8192, 8192) == written);
            data.fill(0);
            assert_eq!(ask(&rig, &mut *ring, (0, n * 16), &mut data), 0);
            assert!(data == written);
        }
        // Less than a block, and beyond the end.
        assert_eq!(ask(&rig, &mut *ring, (0, 1), &mut [0; 4096]), 1);
        assert_eq!(ask(&rig, &mut *ring, (0, DISK / 512), &mut [0; 4096]), 1);
        frontend.stop_ring(0).unwrap();
    }
    drop(subsystem);
    eventually(|| scene.ground.is_closed());
}

/// Two guests, whose memory has the same addresses, each on a function of the controller: a queue pair and a namespace of its own. One
/// function goes, and the other one goes on.
#[test]
#[ignore = "needs QEMU >= 8: run deploy/test"]
fn guests_disks_are_queue_pairs_of_qemus_controller_handed_out_one_by_one() {
    const GPA: u64 = 16 << 20;
    let scene = Scene::new();
    let (subsystem, folder) = scene.subsystem();
    let controller = scene.name();
    let function = |number: u32, namespace: u32| {
        let port = PortEntry {
            mgmtdev: controller.clone(),
            flavour: "pcisf".to_owned(),
            pfnum: 0,
            sfnum: number,
            state: PortState::Active,
            attributes: [("namespace".to_owned(), namespace.to_string())].into(),
        };
        subsystem.call::<_, PortShow>("port.add", &port).unwrap();
        let mgmtdev = format!("auxiliary/{}.sf.{number}", controller.replace('/', "."));
        let entry = DeviceEntry { name: format!("f{number}"), mgmtdev, ..DeviceEntry::default() };
        subsystem.add(&entry).unwrap();
    };
    function(1, 1);
    function(2, 2);
    // The first who comes has the controller's first GiB, the second the next.
    let rig = |nth: u64| {
        Rig::within(Format::Packed, 1, |bytes| {
            scene.ground.memory_elsewhere(GPA, (nth << 30) + GPA, bytes.next_multiple_of(4096))
        })
    };
    let rigs = [rig(0), rig(1)];
    let mut first = begin(&rigs[0], folder.path(), "f1");
    let mut second = begin(&rigs[1], folder.path(), "f2");
    let write = |rig: &Rig, ring: &mut dyn DriverRing, namespace: u32, n: u64| {
        let mut data: Vec<u8> = (0..8192).map(|at| pattern(n << 8 | u64::from(namespace), at)).collect();
        let written = data.clone();
        assert_eq!(ask(rig, ring, (1, n * 16), &mut data), 0);
        assert_eq!(ask(rig, ring, (4, 0), &mut []), 0);
        assert!(scene.stored(namespace, n * 8192, 8192) == written);
        data.fill(0);
        assert_eq!(ask(rig, ring, (0, n * 16), &mut data), 0);
        assert!(data == written);
    };
    for n in 0..10 {
        write(&rigs[0], &mut *first.1, 1, n);
        write(&rigs[1], &mut *second.1, 2, n);
    }
    let deleted: PortDeleted =
        subsystem.call("port.del", &Target { name: format!("{controller}/1") }).unwrap();
    assert_eq!(deleted.devices, ["f1"]);
    eventually(|| first.0.queue_num().is_err());
    (10..20).for_each(|n| write(&rigs[1], &mut *second.1, 2, n));
    // Its namespace, and its addresses, are another's.
    function(3, 1);
    let again = rig(0);
    let mut third = begin(&again, folder.path(), "f3");
    let mut data = vec![0; 8192];
    assert_eq!(ask(&again, &mut *third.1, (0, 16), &mut data), 0);
    assert!(data == scene.stored(1, 8192, 8192));
    (0..10).for_each(|n| write(&rigs[1], &mut *second.1, 2, n));
    (20..30).for_each(|n| write(&again, &mut *third.1, 1, n));
    drop(subsystem);
    eventually(|| scene.ground.is_closed());
}
