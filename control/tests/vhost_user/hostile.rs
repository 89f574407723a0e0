//! Peers that mean ill, or are merely broken: what they do costs them their ring or their connection, nobody else
//! anything, and us no descriptor, no memory and no time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringway_control::frontends::life::status;
use ringway_control::frontends::session::{Command, NetdevSetup, Report, spawn_netdev};
use ringway_guest::{Guest, GuestOptions};
use ringway_pmd::counters::DropReason;
use ringway_pmd::drivers::tap::TapKind;
use ringway_pmd::notify::EventFd;
use ringway_pmd::vdpa::{DeviceHost, DeviceSpec, MgmtKind, NetSpec};
use ringway_ring::features::Features;
use ringway_ring::position::Position;
use ringway_ring::queue::{Completion, DriverBuffer, Format};
use ringway_vhost_user::frontend::{BackendMessage, Frontend, MemoryRegion};
use ringway_vhost_user::message::{
    FLAG_NEED_REPLY, FLAG_VERSION, Header, MAX_PAYLOAD, MemRegion, RULES, Request, Rule, VringState,
    encode_mem_table, protocol,
};

use crate::support::*;

/// A second session with its own traffic, which must not notice anything.
struct Neighbour {
    running: Running,
    guest: Guest,
}

impl Neighbour {
    fn new() -> Neighbour {
        let (running, frontend) = sim_with_frontend("neighbour", 1);
        Neighbour { running, guest: Guest::start(frontend, GuestOptions::default()).unwrap() }
    }

    /// Traffic goes on, and requests are answered.
    fn proceeds(&mut self) {
        let deadline = Instant::now() + SOON;
        let before = self.guest.stats().received;
        while self.guest.stats().received < before + 500 {
            assert!(Instant::now() < deadline, "the neighbour stands still: {:?}", self.guest.stats());
            self.guest.turn(8).unwrap();
        }
        self.running.collect();
        for report in &self.running.seen {
            assert!(!matches!(report, Report::RingFault { .. } | Report::Ended { .. }), "{report:?}");
        }
    }
}

/// Descriptors of this process whose link starts with `name`: made by one test alone, so that others do not count.
fn open_descriptors(name: &str) -> usize {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|link| link.to_string_lossy().starts_with(&format!("/memfd:{name} ")))
        .count()
}

fn memfd(name: &str, size: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, size).unwrap();
    fd
}

#[test]
fn every_request_of_every_size_is_obeyed_or_refused_and_nothing_else() {
    let mut neighbour = Neighbour::new();
    for rule in RULES {
        let fresh = || {
            if rule.needs & !protocol::OFFERED == 0 {
                let (running, stream) = start_sim("sizes", 1);
                let mut peer = Raw::new(stream);
                peer.agree();
                return (running, peer);
            }
            let device = sim_blk("sizes", 1);
            let shared = shared("sizes", &*device);
            let (running, stream) = start(device, shared);
            let mut peer = Raw::new(stream);
            let of_disks = protocol::KNOWN & !(protocol::RARP | protocol::MTU);
            assert_eq!(peer.ask(Request::SetProtocolFeatures, &of_disks.to_ne_bytes(), &[]), Some(0));
            (running, peer)
        };
        let (running, mut peer) = fresh();
        for size in (0..=rule.max_bytes + 1).filter(|size| *size <= 48 || *size + 2 > rule.max_bytes) {
            let (min, max) = (rule.min_bytes, rule.max_bytes);
            let right = (min..=max).contains(&size);
            // Zeros: a count, an index, a size that are claims of nothing.
            assert!(peer.send(rule.request as u32, FLAG_NEED_REPLY, &vec![0; size], &[]));
            match peer.hear() {
                Heard::Answer(frame) if !right && !rule.answers => {
                    assert_eq!(
                        frame.payload(),
                        Some(&1u64.to_ne_bytes()[..]),
                        "{:?} of {size}",
                        rule.request
                    );
                }
                // A request with an answer of its own cannot be refused but by the end.
                Heard::Closed if !right && rule.answers => {
                    peer = fresh().1;
                }
                Heard::Answer(_) if right => {}
                // GET_CONFIG whose own size is wrong, GET_INFLIGHT_FD for no queues.
                Heard::Closed if [Request::GetConfig, Request::GetInflightFd].contains(&rule.request) => {
                    peer = fresh().1;
                }
                heard => panic!("{:?} of {size} bytes: {heard:?}", rule.request),
            }
        }
        drop(running);
    }
    neighbour.proceeds();
}

#[test]
fn ring_index_is_compared_in_all_its_32_bits() {
    let (mut running, stream) = start_sim("index", 1);
    let mut peer = Raw::new(stream);
    peer.agree();
    for index in [0x1_0000, 0x1_00ff, 0x100, 0xffff_0000, u32::MAX] {
        let state = VringState { index, num: 64 }.encode();
        assert_eq!(peer.ask(Request::SetVringNum, &state, &[]), Some(1));
    }
    assert_eq!(running.wait_for_breach(), "ring_index");
    let rings =
        running.seen.iter().filter(|report| matches!(report, Report::Rings(rings) if rings[0].size != 0));
    assert_eq!(rings.count(), 0, "no ring has a size");
    // GET_VRING_BASE has no refusal: it ends.
    assert_eq!(peer.ask(Request::GetVringBase, &VringState { index: 0x1_0000, num: 0 }.encode(), &[]), None);
}

#[test]
fn descriptors_on_every_message_are_closed() {
    let (_running, stream) = start_sim("fds", 1);
    let mut peer = Raw::new(stream);
    peer.agree();
    let file = memfd("flooded", 4096);
    let fds = [file.as_fd(); 8];
    for _ in 0..20 {
        for request in Request::ALL {
            let payload = vec![0; Rule::of(*request).map_or(8, |rule| rule.min_bytes)];
            assert!(peer.send(*request as u32, FLAG_NEED_REPLY, &payload, &fds));
            match peer.hear() {
                Heard::Answer(_) => {}
                Heard::Closed => {
                    peer = Raw::new(start_sim("fds", 1).1);
                    peer.agree();
                }
            }
        }
    }
    // All but our own, once the last message was answered.
    assert_eq!(peer.ask(Request::SetOwner, &[], &[]), Some(0));
    eventually(|| open_descriptors("flooded") == 1);
}

#[test]
fn descriptors_of_refused_tables_are_closed() {
    let (_running, stream) = start_sim("tables", 1);
    let mut peer = Raw::new(stream);
    peer.agree();
    let file = memfd("tabled", 16 << 12);
    let region = |n: u64| MemRegion { gpa: n << 12, size: 4096, user_addr: n << 12, mmap_offset: n << 12 };
    let good: Vec<_> = (0..8).map(region).collect();
    let overlapping: Vec<_> = (0..8).map(|_| region(1)).collect();
    let mut beyond = good.clone();
    beyond[7].size = 1 << 40;
    for _ in 0..50 {
        assert_eq!(peer.ask(Request::SetMemTable, &encode_mem_table(&good), &[file.as_fd(); 8]), Some(0));
        assert_eq!(
            peer.ask(Request::SetMemTable, &encode_mem_table(&overlapping), &[file.as_fd(); 8]),
            Some(1)
        );
        assert_eq!(peer.ask(Request::SetMemTable, &encode_mem_table(&beyond), &[file.as_fd(); 8]), Some(1));
        assert_eq!(peer.ask(Request::SetMemTable, &encode_mem_table(&good), &[file.as_fd(); 7]), Some(1));
    }
    // Ours and the eight of the table in force; what came with the last message may be closed behind its answer.
    eventually(|| open_descriptors("tabled") == 9);
    assert_eq!(peer.ask(Request::SetMemTable, &encode_mem_table(&[]), &[]), Some(0));
    eventually(|| open_descriptors("tabled") == 1);
}

#[test]
fn memory_that_is_none_is_refused() {
    let (_running, stream) = start_sim("none", 1);
    let mut peer = Raw::new(stream);
    peer.agree();
    let table = |region: MemRegion| encode_mem_table(&[region]);
    let region = MemRegion { gpa: 0, size: 4096, user_addr: 0x1000, mmap_offset: 0 };
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    let eventfd = EventFd::new().unwrap();
    let zero = std::fs::File::open("/dev/zero").unwrap();
    let program = std::fs::File::open("/proc/self/exe").unwrap();
    for fd in [pipe.as_fd(), eventfd.as_fd(), zero.as_fd(), program.as_fd(), peer.stream.as_fd()].map(owned) {
        assert_eq!(peer.ask(Request::SetMemTable, &table(region), &[fd.as_fd()]), Some(1));
    }
    // Sparse and vast: the address space is everybody's.
    let vast = memfd("vast", 1 << 45);
    let fds = [vast.as_fd()];
    assert_eq!(peer.ask(Request::SetMemTable, &table(MemRegion { size: 1 << 45, ..region }), &fds), Some(1));
    for wrong in [
        MemRegion { size: 0, ..region },
        MemRegion { gpa: u64::MAX - 4094, ..region },
        MemRegion { user_addr: u64::MAX, ..region },
        MemRegion { mmap_offset: u64::MAX - 4095, ..region },
        MemRegion { size: u64::MAX, ..region },
    ] {
        assert_eq!(peer.ask(Request::SetMemTable, &table(wrong), &fds), Some(1), "{wrong:?}");
    }
    assert_eq!(peer.ask(Request::SetMemTable, &table(region), &fds), Some(0));
}

fn owned(fd: BorrowedFd<'_>) -> OwnedFd {
    fd.try_clone_to_owned().unwrap()
}

#[test]
fn ring_set_up_again_and_again_leaks_nothing() {
    let (_running, stream) = start_sim("leaks", 1);
    let mut peer = Raw::new(stream);
    peer.agree();
    let rig = Rig::new(Format::Split, 2);
    let kick = EventFd::new().unwrap();
    let round = |peer: &mut Raw, times: u32| {
        for n in 0..times {
            let num = VringState { index: n % 2, num: 1 << (n % 15) }.encode();
            assert!(peer.send(Request::SetVringNum as u32, 0, &num, &[]));
            if n % 100 == 0 {
                let index = u64::from(n % 2).to_ne_bytes();
                for request in [Request::SetVringCall, Request::SetVringErr, Request::SetVringKick] {
                    assert_eq!(peer.ask(request, &index, &[kick.as_fd()]), Some(0));
                }
                assert!(peer.send(
                    Request::GetVringBase as u32,
                    0,
                    &VringState { index: n % 2, num: 0 }.encode(),
                    &[]
                ));
                assert!(matches!(peer.hear(), Heard::Answer(_)));
            }
        }
        assert_eq!(peer.ask(Request::SetVringNum, &VringState { index: 0, num: 64 }.encode(), &[]), Some(0));
    };
    drop(rig);
    round(&mut peer, 2000);
    let (before, eventfds) = (resident_kib(), count_eventfds());
    round(&mut peer, 100_000);
    let (after, eventfds_after) = (resident_kib(), count_eventfds());
    // Other tests run in this process: bounds, not equality.
    assert!(after < before + 32 * 1024, "{before} KiB before, {after} KiB after");
    assert!(eventfds_after < eventfds + 500, "{eventfds} eventfds before, {eventfds_after} after");
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn count_eventfds() -> usize {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|link| link.to_string_lossy() == "anon_inode:[eventfd]")
        .count()
}

#[test]
fn one_byte_then_silence_costs_no_time_and_delays_nobody() {
    let pace = pace_of_revoking();
    let mut neighbour = Neighbour::new();
    let (running, mut stream) = start_sim("silent", 1);
    stream.write_all(&[1]).unwrap();
    neighbour.proceeds();
    let thread = thread_named("rw-silent");
    let (before, began) = (cpu_ticks(thread), Instant::now());
    std::thread::sleep(Duration::from_millis(1500));
    let (spent, passed) = (cpu_ticks(thread) - before, began.elapsed());
    assert!(TICK * u32::try_from(spent).unwrap() < passed / 25, "{spent} ticks of 10 ms in {passed:?}");
    // And it is removed at once all the same.
    let began = Instant::now();
    assert!(running.handle.send(Command::Revoke));
    assert!(running.wait_for_end().0.is_none());
    pace.allows_since(REVOKED_WITHIN, began);
    neighbour.proceeds();
}

#[test]
fn message_that_never_ends_ends_the_connection() {
    let (mut running, mut stream) = start_sim("stalled", 1);
    let began = Instant::now();
    stream.write_all(&Header { request: 2, flags: FLAG_VERSION, size: 8 }.encode()).unwrap();
    assert_eq!(running.wait_for_breach(), "message_stalled");
    let (device, reason) = running.wait_for_end();
    assert!(device.is_some() && reason.contains("did not end within"), "{reason}");
    assert!(began.elapsed() > Duration::from_secs(9), "{:?}", began.elapsed());
}

#[test]
fn silence_between_messages_is_no_offence() {
    let (_running, stream) = start_sim("patient", 1);
    let mut peer = Raw::new(stream);
    peer.agree();
    std::thread::sleep(Duration::from_secs(11));
    assert_eq!(peer.ask(Request::SetOwner, &[], &[]), Some(0));
}

#[test]
fn peer_that_never_reads_answers_is_dropped_and_can_be_revoked_before() {
    let pace = pace_of_revoking();
    for revoke in [false, true] {
        let (mut running, stream) = start_sim("deaf", 1);
        stream.set_nonblocking(true).unwrap();
        let ask = Header { request: Request::GetFeatures as u32, flags: FLAG_VERSION, size: 0 }.encode();
        // Until neither side of the socket takes any more.
        let mut stuck = 0;
        while stuck < 20 {
            if (&stream).write_all(&ask).is_ok() {
                stuck = 0;
            } else {
                std::thread::sleep(Duration::from_millis(5));
                stuck += 1;
            }
        }
        let began = Instant::now();
        if revoke {
            assert!(running.handle.send(Command::Revoke));
            assert!(running.wait_for_end().0.is_none());
            pace.allows_since(REVOKED_WITHIN, began);
        } else {
            assert_eq!(running.wait_for_breach(), "answer_unread");
            assert!(running.wait_for_end().0.is_some());
        }
    }
}

#[test]
fn flood_of_messages_is_slowed_down_and_delays_no_command() {
    let pace = pace_of_revoking();
    let mut neighbour = Neighbour::new();
    let (running, stream) = start_sim("flood", 1);
    let flooding = std::thread::spawn(move || {
        let num = VringState { index: 0, num: 64 }.encode();
        let header = Header { request: Request::SetVringNum as u32, flags: FLAG_VERSION, size: 8 }.encode();
        let batch = [&header[..], &num[..]].concat().repeat(64);
        // Until it is cut off.
        while (&stream).write_all(&batch).is_ok() {}
    });
    // Once the burst is spent, what is left is the rate, at a few microseconds each.
    let thread = thread_named("rw-flood");
    eventually(|| {
        let (before, began) = (cpu_ticks(thread), Instant::now());
        std::thread::sleep(Duration::from_millis(1000));
        let (spent, passed) = (cpu_ticks(thread) - before, began.elapsed());
        println!("{spent} ticks of 10 ms in {passed:?}");
        TICK * u32::try_from(spent).unwrap() * 5 < passed * 4
    });
    neighbour.proceeds();
    let began = Instant::now();
    assert!(running.handle.send(Command::Revoke));
    running.wait_for_end();
    pace.allows_since(REVOKED_WITHIN, began);
    flooding.join().unwrap();
}

#[test]
fn flood_of_breaches_is_reported_at_a_bounded_rate() {
    let (mut running, stream) = start_sim("breaches", 1);
    let mut peer = Raw::new(stream);
    peer.agree();
    for _ in 0..2000 {
        assert_eq!(peer.ask(Request::SetLogFd, &[], &[]), Some(1));
    }
    running.collect();
    let told = running.seen.iter().filter(|report| matches!(report, Report::PeerMisbehaved { .. })).count();
    assert!((1..200).contains(&told), "{told} reports of 2000 breaches");
}

/// A task of this process by its name, as the kernel shortens it.
fn thread_named(name: &str) -> u32 {
    let mut found = None;
    eventually(|| {
        found = std::fs::read_dir("/proc/self/task").unwrap().find_map(|entry| {
            let entry = entry.ok()?;
            let comm = std::fs::read_to_string(entry.path().join("comm")).ok()?;
            (comm.trim() == name).then(|| entry.file_name().to_string_lossy().parse().ok())?
        });
        found.is_some()
    });
    found.unwrap()
}

const TICK: Duration = Duration::from_millis(10);

/// User and system time of a task, in ticks.
fn cpu_ticks(task: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{task}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn ring_that_breaks_the_rules_stops_alone_and_everybody_is_told() {
    for format in [Format::Split, Format::Packed] {
        let (mut running, mut frontend) = sim_with_frontend("broken", 2);
        let rig = Rig::new(format, 4);
        rig.introduce(&mut frontend);
        frontend.set_backend_req_fd().unwrap();
        frontend.set_status(15).unwrap();
        let (mut bad, mut good) =
            (HandPair::new(&rig, 0, Position::START), HandPair::new(&rig, 1, Position::START));
        bad.start(&mut frontend, rig.fresh());
        good.start(&mut frontend, rig.fresh());
        let err = EventFd::new().unwrap();
        frontend.set_vring_err(1, Some(err.as_fd())).unwrap();
        bad.exchange(3);
        good.exchange(3);
        // A buffer outside the guest's memory.
        bad.tx.add(&[DriverBuffer { gpa: 0xdead_0000, len: 100, writable: false }], 0).unwrap();
        bad.tx.publish();
        let fault = running.wait_for(|report| match report {
            Report::RingFault { queue, fault } => Some((*queue, *fault)),
            _ => None,
        });
        assert_eq!(fault, (1, "unmapped"));
        running.wait_for(|report| matches!(report, Report::Status(79)).then_some(()));
        let rings = running.wait_for_rings(|rings| rings[1].fault == Some("unmapped"));
        assert!(!rings[1].started && rings[0].core().is_some(), "{rings:?}");
        eventually(|| err.clear());
        assert_eq!(frontend.status().unwrap() & status::NEEDS_RESET, status::NEEDS_RESET);
        // Among the calls, which come as messages too.
        let mut messages = std::iter::from_fn(|| frontend.backend_message(SOON).unwrap());
        assert!(messages.any(|message| message == BackendMessage::ConfigChanged));
        good.exchange(10);
        // It stays stopped at whatever is changed about it.
        frontend.set_vring_call(1, Some(err.as_fd())).unwrap();
        frontend.enable_ring(1, false).unwrap();
        frontend.enable_ring(1, true).unwrap();
        bad.send(1);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(bad.tx.collect(&mut [Completion::default()]), Ok(0));
        // Until it is stopped and started anew.
        frontend.stop_ring(1).unwrap();
        frontend.set_status(0).unwrap();
        assert_eq!(frontend.status().unwrap(), 0);
        let mut bad = HandPair::new(&rig, 0, Position::START);
        bad.start(&mut frontend, rig.fresh());
        bad.exchange(3);
    }
}

#[test]
fn guest_memory_cut_off_under_a_ring_faults_that_device_alone() {
    let mut neighbour = Neighbour::new();
    let (mut running, mut frontend) = sim_with_frontend("cut", 1);
    let rig = Rig::new(Format::Split, 2);
    frontend.handshake().unwrap();
    frontend.set_features(rig.features).unwrap();
    // The rings in the rig's memory, which is sealed; one buffer in memory that is not.
    let loose = memfd("loose", 1 << 16);
    let region =
        MemoryRegion { gpa: 1 << 40, size: 1 << 16, user_addr: 1 << 40, file_offset: 0, file: loose.as_fd() };
    frontend.set_mem_table(&[rig.region(), region]).unwrap();
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, 0);
    pair.exchange(3);
    pair.post(4);
    rustix::fs::ftruncate(&loose, 0).unwrap();
    pair.tx.add(&[DriverBuffer { gpa: 1 << 40, len: 100, writable: false }], 0).unwrap();
    pair.tx.publish();
    let fault = running.wait_for(|report| match report {
        Report::RingFault { fault, .. } => Some(*fault),
        _ => None,
    });
    assert_eq!(fault, "truncated_memory");
    assert_eq!(frontend.queue_num().unwrap(), 1);
    neighbour.proceeds();
}

#[test]
#[ignore = "makes a TAP interface: needs root"]
fn guest_memory_cut_off_under_a_netdev_that_reads_it_loses_that_frame_alone() {
    let mut tap = TapKind.make("rwcut0", &BTreeMap::new(), engine().cores()[0]).unwrap();
    let spec = DeviceSpec::net("cutter", NetSpec::default());
    let host = tap.create(&tap.implied(&spec).unwrap(), DeviceHost::unheard()).unwrap();
    let (host_shared, reports) = (shared("rwcut0", &*host), Arc::new(Mutex::new(Vec::new())));
    let host = spawn_netdev(NetdevSetup {
        id: 2,
        device: host,
        shared: Arc::clone(&host_shared),
        engine: engine(),
        reports: Arc::new({
            let reports = Arc::clone(&reports);
            move |_, report| reports.lock().unwrap().push(report)
        }),
    })
    .unwrap();
    let written = || host_shared.counters[0].snapshot();
    eventually(|| {
        reports
            .lock()
            .unwrap()
            .iter()
            .any(|report| matches!(report, Report::Rings(rings) if rings.len() == 2))
    });
    let guest = tap.create(&spec, DeviceHost::unheard()).unwrap();
    let guest_shared = shared("cutter", &*guest);
    let (mut running, stream) = start(guest, guest_shared);
    let mut frontend = Frontend::from_stream(stream);
    let rig = Rig::new(Format::Split, 2);
    frontend.handshake().unwrap();
    frontend.set_features(rig.features).unwrap();
    let loose = memfd("tapped", 1 << 16);
    let region =
        MemoryRegion { gpa: 1 << 40, size: 1 << 16, user_addr: 1 << 40, file_offset: 0, file: loose.as_fd() };
    frontend.set_mem_table(&[rig.region(), region]).unwrap();
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, 0);
    pair.send(2);
    pair.settle(2, false);
    eventually(|| written().packets == 2);

    // The head of the frame is where we read it; the rest, which only the kernel reads, is cut off.
    let head = rig.buffer(1, 0);
    rustix::fs::ftruncate(&loose, 0).unwrap();
    let parts = [
        DriverBuffer { gpa: head, len: 12 + 14, writable: false },
        DriverBuffer { gpa: 1 << 40, len: 1000, writable: false },
    ];
    pair.tx.add(&parts, 0).unwrap();
    pair.tx.publish();
    pair.settle(1, false);
    eventually(|| written().drops.contains(&(DropReason::NetdevRefused, 1)));
    // Nothing else of it is affected.
    pair.send(3);
    pair.settle(3, false);
    eventually(|| written().packets == 5);
    running.collect();
    for report in running.seen.iter().chain(&*reports.lock().unwrap()) {
        assert!(!matches!(report, Report::RingFault { .. } | Report::Ended { .. }), "{report:?}");
    }
    // The interface goes with its device.
    assert!(host.send(Command::Revoke));
    eventually(|| !std::path::Path::new("/sys/class/net/rwcut0").exists());
}

#[test]
fn ring_memory_cut_off_before_the_ring_starts_fails_the_ring() {
    let (mut running, mut frontend) = sim_with_frontend("cutring", 1);
    let rig = Rig::new(Format::Split, 2);
    frontend.handshake().unwrap();
    frontend.set_features(rig.features).unwrap();
    let loose = memfd("cutring", 1 << 20);
    let base = rig.memory.address();
    let region = MemoryRegion { gpa: 0, size: 1 << 20, user_addr: base, file_offset: 0, file: loose.as_fd() };
    frontend.set_mem_table(&[region]).unwrap();
    rustix::fs::ftruncate(&loose, 0).unwrap();
    frontend.enable_ring(0, true).unwrap();
    rig.start_ring(&mut frontend, 0, 0);
    running.wait_for(|report| matches!(report, Report::RingFault { queue: 0, .. }).then_some(()));
    assert_eq!(frontend.queue_num().unwrap(), 1);
}

#[test]
fn front_end_killed_at_every_step_leaves_a_device_that_the_next_can_have() {
    let file_name = "killed";
    let mut device = Some(sim_net("killed", 1));
    let shared = shared("killed", &**device.as_ref().unwrap());
    let rig = Rig::new(Format::Packed, 2);
    for step in 0.. {
        let (running, stream) = start(device.take().unwrap(), std::sync::Arc::clone(&shared));
        let mut frontend = Frontend::from_stream(stream);
        let file = memfd(file_name, 4096);
        let extra =
            MemoryRegion { gpa: 1 << 40, size: 4096, user_addr: 1 << 40, file_offset: 0, file: file.as_fd() };
        let pair = RefCell::new(HandPair::new(&rig, 0, Position::START));
        let mut left = step;
        let mut go_on = || {
            left -= 1;
            left >= 0
        };
        let steps: &mut [&mut dyn FnMut(&mut Frontend)] = &mut [
            &mut |frontend| assert_ne!(frontend.handshake().unwrap(), Features::NONE),
            &mut |frontend| frontend.set_features(rig.features).unwrap(),
            &mut |frontend| frontend.set_backend_req_fd().unwrap(),
            &mut |frontend| frontend.set_mem_table(&[rig.region(), extra]).unwrap(),
            &mut |frontend| pair.borrow().start(frontend, rig.fresh()),
            &mut |frontend| frontend.set_status(15).unwrap(),
            &mut |_| pair.borrow_mut().exchange(3),
            &mut |frontend| assert_eq!(frontend.stop_ring(0).unwrap(), 0x8003_8003),
        ];
        let all =
            steps.iter_mut().take_while(|_| go_on()).map(|step| step(&mut frontend)).count() == steps.len();
        drop(frontend);
        device = running.wait_for_end().0;
        assert!(device.is_some());
        drop(file);
        // It tells its end before it has let go of everything.
        eventually(|| open_descriptors(file_name) == 0);
        if all {
            break;
        }
    }
}

#[test]
fn connections_made_and_closed_leave_nothing() {
    let mut device = Some(sim_net("loop", 1));
    let shared = shared("loop", &**device.as_ref().unwrap());
    for n in 0..300 {
        let (running, stream) = start(device.take().unwrap(), std::sync::Arc::clone(&shared));
        match n % 3 {
            0 => drop(stream),
            1 => drop((&stream).write_all(&[0xff; 40])),
            _ => {
                running.handle.send(Command::Close);
            }
        }
        device = running.wait_for_end().0;
        assert!(device.is_some());
    }
    eventually(|| {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let named = |entry: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(entry.ok()?.path().join("comm"))
                .ok()
                .filter(|comm| comm.trim() == "rw-loop")
        };
        tasks.filter_map(named).count() == 0
    });
}

#[test]
fn command_to_a_session_that_is_over_says_so() {
    let (running, stream) = start_sim("over", 1);
    drop(stream);
    let shared = std::sync::Arc::clone(&running.shared);
    eventually(|| !running.handle.send(Command::ConfigChanged));
    drop(shared);
}

#[test]
fn peers_credentials_are_those_of_the_process() {
    let (running, _stream) = start_sim("cred", 1);
    assert_eq!(running.handle.peer.pid, std::process::id() as i32);
    assert_eq!(running.handle.peer.uid, rustix::process::getuid().as_raw());
    assert_eq!(running.handle.peer.gid, rustix::process::getgid().as_raw());
}

#[test]
fn long_message_is_refused_and_a_vast_one_ends() {
    let (running, stream) = start_sim("long", 1);
    let mut peer = Raw::new(stream);
    peer.agree();
    for size in [MAX_PAYLOAD + 1, 4096] {
        assert_eq!(peer.ask(Request::SetConfig, &vec![0; size], &[]), Some(1));
    }
    assert!(peer.send(Request::SetConfig as u32, FLAG_NEED_REPLY, &vec![0; 4097], &[]));
    // The rest of it is never read: the end may come as a reset.
    let (_, reason) = running.wait_for_end();
    assert!(reason.contains("claims 4097 bytes"), "{reason}");
    drop::<UnixStream>(peer.stream);
    assert_eq!(protocol::OFFERED & protocol::INFLIGHT_SHMFD, 0);
}
