//! Every request in every state: random sequences against a model of what must be refused and of what state the rings
//! are in, beside a session that must not notice.

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use ringway_control::frontends::session::Report;
use ringway_guest::{Guest, GuestOptions};
use ringway_pmd::notify::EventFd;
use ringway_ring::features::Features;
use ringway_ring::queue::Format;
use ringway_vhost_user::frontend::MemoryRegion;
use ringway_vhost_user::message::{
    ConfigRange, FLAG_NEED_REPLY, MemRegion, Request, Rule, VRING_NO_FD, VringAddrs, VringState,
    encode_mem_table, protocol,
};

use crate::support::*;

/// What a front-end does.
#[derive(Debug, Clone)]
enum Op {
    SetOwner,
    ResetOwner,
    SetFeatures(Choice),
    SetProtocol(u64),
    Table(Table),
    AddReg,
    RemReg,
    Num(u32, u32),
    Base(u32, u32),
    Addr(u32, Option<u64>),
    Kick(u32, Fd),
    Call(u32, Fd),
    Err(u32, Fd),
    Enable(u32, u32),
    GetBase(u32),
    VringKick(u32),
    Status(u64),
    Reset,
    Mtu(u64),
    Config(u32, u32),
    /// Any request with any payload and any number of descriptors.
    Any(u32, Vec<u8>, usize),
    /// The guest makes garbage available.
    Scribble(u64, u8),
}

#[derive(Debug, Clone, Copy)]
enum Choice {
    Split,
    Packed,
    Without30,
    NotOffered,
}

impl Choice {
    fn bits(self) -> Features {
        let v1 = Features::VERSION_1;
        match self {
            Choice::Split => v1 | Features::PROTOCOL_FEATURES | Features::EVENT_IDX,
            Choice::Packed => v1 | Features::PROTOCOL_FEATURES | Features::RING_PACKED,
            Choice::Without30 => v1,
            Choice::NotOffered => v1 | Features::ACCESS_PLATFORM,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Table {
    Good,
    Empty,
    Overlapping,
    FdMissing,
}

#[derive(Debug, Clone, Copy)]
enum Fd {
    Event,
    None,
    File,
    Both,
}

fn op() -> impl Strategy<Value = Op> {
    let ring = || prop_oneof![8 => 0u32..2, 1 => Just(2u32), 1 => Just(0x1_0000u32)];
    let fd =
        || prop_oneof![4 => Just(Fd::Event), 3 => Just(Fd::None), 1 => Just(Fd::File), 1 => Just(Fd::Both)];
    let choice = prop_oneof![
        4 => Just(Choice::Split),
        4 => Just(Choice::Packed),
        1 => Just(Choice::Without30),
        1 => Just(Choice::NotOffered)
    ];
    let table = prop_oneof![
        6 => Just(Table::Good),
        1 => Just(Table::Empty),
        1 => Just(Table::Overlapping),
        1 => Just(Table::FdMissing)
    ];
    let protocols = prop_oneof![
        6 => Just(protocol::OFFERED),
        1 => Just(protocol::OFFERED & !protocol::STATUS),
        1 => Just(0u64),
        1 => Just(protocol::INBAND_NOTIFICATIONS),
        1 => Just(1u64 << 20)
    ];
    let num = prop_oneof![6 => Just(64u32), 1 => Just(0u32), 1 => Just(3u32), 1 => Just(65536u32)];
    let base = prop_oneof![4 => Just(0u32), 4 => Just(0x8000_8000u32), 1 => any::<u32>()];
    let addr = prop_oneof![8 => Just(None), 1 => any::<u64>().prop_map(Some), 1 => Just(Some(8u64))];
    let value =
        prop_oneof![Just(0u64), Just(1u64), Just(3u64), Just(11u64), Just(15u64), Just(128u64), Just(256u64)];
    prop_oneof![
        2 => Just(Op::SetOwner),
        1 => Just(Op::ResetOwner),
        6 => choice.prop_map(Op::SetFeatures),
        4 => protocols.prop_map(Op::SetProtocol),
        6 => table.prop_map(Op::Table),
        1 => Just(Op::AddReg),
        1 => Just(Op::RemReg),
        6 => (ring(), num).prop_map(|(ring, num)| Op::Num(ring, num)),
        3 => (ring(), base).prop_map(|(ring, base)| Op::Base(ring, base)),
        6 => (ring(), addr).prop_map(|(ring, addr)| Op::Addr(ring, addr)),
        8 => (ring(), fd()).prop_map(|(ring, fd)| Op::Kick(ring, fd)),
        4 => (ring(), fd()).prop_map(|(ring, fd)| Op::Call(ring, fd)),
        2 => (ring(), fd()).prop_map(|(ring, fd)| Op::Err(ring, fd)),
        6 => (ring(), prop_oneof![4 => Just(1u32), 2 => Just(0u32), 1 => Just(2u32)])
            .prop_map(|(ring, num)| Op::Enable(ring, num)),
        4 => ring().prop_map(Op::GetBase),
        2 => ring().prop_map(Op::VringKick),
        4 => value.prop_map(Op::Status),
        1 => Just(Op::Reset),
        1 => prop_oneof![Just(1500u64), Just(1u64), any::<u64>()].prop_map(Op::Mtu),
        1 => (any::<u32>(), 0u32..250).prop_map(|(offset, size)| Op::Config(offset % 300, size)),
        6 => (0u32..50, proptest::collection::vec(any::<u8>(), 0..60), 0usize..4)
            .prop_map(|(request, payload, fds)| Op::Any(request, payload, fds)),
        6 => (0u64..20_000, any::<u8>()).prop_map(|(at, byte)| Op::Scribble(at, byte)),
    ]
}

/// What must be so of a session.
#[derive(Debug, Clone, Default)]
struct Model {
    owned: bool,
    features: Option<Features>,
    protocol: u64,
    /// By ring: started, unless a fault stopped it since.
    started: [bool; 2],
    enabled: [bool; 2],
    /// Garbage was made available or random things were said: faults can stop rings, and nothing is predicted.
    wild: bool,
}

/// What a message must lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Obeyed,
    Refused,
    Closed,
    /// Either: depends on what is not modelled.
    Any,
}
use Fate::{Closed, Obeyed, Refused};

impl Model {
    fn ring(ring: u32) -> Option<usize> {
        (ring < 2).then_some(ring as usize)
    }

    /// Without the protocol feature, a request is refused: by the end, if it has an answer of its own.
    fn needs(&self, request: Request) -> Option<Fate> {
        let rule = Rule::of(request)?;
        (rule.needs & !self.protocol != 0).then_some(if rule.answers { Closed } else { Refused })
    }

    fn apply(&mut self, op: &Op) -> Fate {
        let of_ring =
            |ring: &u32, right: bool| if Self::ring(*ring).is_some() && right { Obeyed } else { Refused };
        let right_fd = |fd: &Fd| matches!(fd, Fd::Event | Fd::None);
        match op {
            Op::SetOwner => {
                // Again and again: QEMU does.
                self.owned = true;
                Obeyed
            }
            Op::ResetOwner => {
                self.owned = false;
                if self.features.is_some_and(|features| features.contains(Features::PROTOCOL_FEATURES)) {
                    self.enabled = [false; 2];
                }
                Obeyed
            }
            Op::SetFeatures(choice) => self.set_features(choice.bits()),
            Op::SetProtocol(bits) if bits & !protocol::OFFERED != 0 => Refused,
            Op::SetProtocol(protocol::INBAND_NOTIFICATIONS) => Closed,
            Op::SetProtocol(bits) => {
                self.protocol = *bits;
                Obeyed
            }
            Op::Table(Table::Good | Table::Empty) => Obeyed,
            Op::Table(_) => Refused,
            Op::AddReg | Op::RemReg | Op::Config(..) | Op::Any(..) => {
                self.wild |= matches!(op, Op::Any(..));
                Fate::Any
            }
            Op::Num(ring, num) => of_ring(ring, (1..=32768).contains(num)),
            Op::Base(ring, base) => {
                // Somewhere in the midst of what memory happens to hold: any fault can come of it.
                self.wild |= *base != 0 && *base != 0x8000_8000;
                of_ring(ring, true)
            }
            Op::Addr(ring, addr) => {
                self.wild |= addr.is_some();
                of_ring(ring, true)
            }
            Op::Kick(ring, fd) => {
                let fate = of_ring(ring, right_fd(fd));
                if fate == Obeyed {
                    self.started[*ring as usize] = true;
                }
                fate
            }
            Op::Call(ring, fd) | Op::Err(ring, fd) => of_ring(ring, right_fd(fd)),
            Op::Enable(ring, num) => {
                let fate = of_ring(ring, *num < 2);
                if fate == Obeyed {
                    self.enabled[*ring as usize] = *num == 1;
                }
                fate
            }
            Op::GetBase(ring) => match Self::ring(*ring) {
                Some(ring) => {
                    self.started[ring] = false;
                    Obeyed
                }
                None => Closed,
            },
            Op::VringKick(ring) => self.needs(Request::VringKick).unwrap_or_else(|| of_ring(ring, true)),
            Op::Status(value) => self.needs(Request::SetStatus).unwrap_or_else(|| {
                if *value == 0 {
                    self.reset();
                    Obeyed
                } else if *value > 255 {
                    Refused
                } else {
                    Fate::Any
                }
            }),
            Op::Reset => self.needs(Request::ResetDevice).unwrap_or_else(|| {
                self.reset();
                Obeyed
            }),
            Op::Mtu(mtu) => self.needs(Request::NetSetMtu).unwrap_or(if (68..=9000).contains(mtu) {
                Obeyed
            } else {
                Refused
            }),
            Op::Scribble(..) => {
                self.wild = true;
                Fate::Any
            }
        }
    }

    fn set_features(&mut self, bits: Features) -> Fate {
        if bits.contains(Features::ACCESS_PLATFORM) {
            return Refused;
        }
        let before = self.features;
        if before == Some(bits) {
            return Obeyed;
        }
        if before.is_some() && self.started.iter().any(|started| *started) {
            return if self.wild { Fate::Any } else { Refused };
        }
        self.features = Some(bits);
        let without = |features: Features| !features.contains(Features::PROTOCOL_FEATURES);
        if without(bits) {
            self.enabled = [true; 2];
        } else if before.is_some_and(without) {
            self.enabled = [false; 2];
        }
        Obeyed
    }

    fn reset(&mut self) {
        let without = |features: Features| !features.contains(Features::PROTOCOL_FEATURES);
        self.started = [false; 2];
        self.enabled = [self.features.is_some_and(without); 2];
    }
}

/// Sends an operation with need_reply; returns what became of it.
fn perform(peer: &mut Raw, op: &Op, rig: &Rig, event: &EventFd) -> Fate {
    let index = |ring: u32, fd: Fd| {
        let none = matches!(fd, Fd::None | Fd::Both);
        (u64::from(ring) | if none { VRING_NO_FD } else { 0 }).to_ne_bytes().to_vec()
    };
    let fds_of = |fd: Fd| match fd {
        Fd::Event | Fd::Both => vec![event.as_fd()],
        Fd::None => vec![],
        Fd::File => vec![rig.memory.file()],
    };
    let state = |index: u32, num: u32| VringState { index, num }.encode().to_vec();
    let MemoryRegion { gpa, size, user_addr, file_offset, file } = rig.region();
    let region = MemRegion { gpa, size, user_addr, mmap_offset: file_offset };
    let more = MemRegion { gpa: 1 << 41, user_addr: 1 << 41, ..region };
    let (request, payload, fds) = match op {
        Op::SetOwner => (Request::SetOwner, vec![], vec![]),
        Op::ResetOwner => (Request::ResetOwner, vec![], vec![]),
        Op::SetFeatures(choice) => (Request::SetFeatures, choice.bits().0.to_ne_bytes().to_vec(), vec![]),
        Op::SetProtocol(bits) => (Request::SetProtocolFeatures, bits.to_ne_bytes().to_vec(), vec![]),
        Op::Table(Table::Good) => (Request::SetMemTable, encode_mem_table(&[region]), vec![file]),
        Op::Table(Table::Empty) => (Request::SetMemTable, encode_mem_table(&[]), vec![]),
        Op::Table(Table::Overlapping) => {
            (Request::SetMemTable, encode_mem_table(&[region, region]), vec![file, file])
        }
        Op::Table(Table::FdMissing) => (Request::SetMemTable, encode_mem_table(&[region]), vec![]),
        Op::AddReg => (Request::AddMemReg, more.encode_single().to_vec(), vec![file]),
        Op::RemReg => (Request::RemMemReg, more.encode_single().to_vec(), vec![]),
        Op::Num(ring, num) => (Request::SetVringNum, state(*ring, *num), vec![]),
        Op::Base(ring, base) => (Request::SetVringBase, state(*ring, *base), vec![]),
        Op::Addr(ring, wrong) => {
            let addr = rig.addr((*ring).min(1));
            let desc = wrong.map_or(addr.desc, |wrong| addr.desc.wrapping_add(wrong));
            let addrs =
                VringAddrs { index: *ring, flags: 0, desc, device: addr.device, driver: addr.driver, log: 0 };
            (Request::SetVringAddr, addrs.encode().to_vec(), vec![])
        }
        Op::Kick(ring, fd) => (Request::SetVringKick, index(*ring, *fd), fds_of(*fd)),
        Op::Call(ring, fd) => (Request::SetVringCall, index(*ring, *fd), fds_of(*fd)),
        Op::Err(ring, fd) => (Request::SetVringErr, index(*ring, *fd), fds_of(*fd)),
        Op::Enable(ring, num) => (Request::SetVringEnable, state(*ring, *num), vec![]),
        Op::GetBase(ring) => (Request::GetVringBase, state(*ring, 0), vec![]),
        Op::VringKick(ring) => (Request::VringKick, state(*ring, 0), vec![]),
        Op::Status(value) => (Request::SetStatus, value.to_ne_bytes().to_vec(), vec![]),
        Op::Reset => (Request::ResetDevice, vec![], vec![]),
        Op::Mtu(mtu) => (Request::NetSetMtu, mtu.to_ne_bytes().to_vec(), vec![]),
        Op::Config(offset, size) => {
            let range = ConfigRange { offset: *offset, size: *size, flags: 0 };
            (Request::GetConfig, range.encode(&vec![0; *size as usize]), vec![])
        }
        Op::Any(request, payload, fds) => {
            let fds = vec![event.as_fd(); *fds];
            assert!(peer.send(*request, FLAG_NEED_REPLY, payload, &fds));
            return match peer.hear() {
                Heard::Answer(_) => Obeyed,
                Heard::Closed => Closed,
            };
        }
        Op::Scribble(at, byte) => {
            if let Ok(slice) = rig.map.resolve(Rig::GPA + at, 1) {
                slice.write(&[*byte]);
            }
            event.signal();
            return Obeyed;
        }
    };
    assert!(peer.send(request as u32, FLAG_NEED_REPLY, &payload, &fds));
    match peer.hear() {
        Heard::Closed => Closed,
        Heard::Answer(frame) if Rule::of(request).is_some_and(|rule| rule.answers) => {
            assert!(frame.header.is_reply());
            Obeyed
        }
        Heard::Answer(frame) if frame.payload() == Some(&0u64.to_ne_bytes()[..]) => Obeyed,
        Heard::Answer(_) => Refused,
    }
}

fn run(ops: &[Op]) -> Result<(), TestCaseError> {
    let rig = Rig::new(Format::Split, 2);
    let event = EventFd::new().unwrap();
    let (mut running, stream) = start_sim("model", 1);
    let (mut peer, mut model) = (Raw::new(stream), Model::default());
    for op in ops {
        let fate = model.apply(op);
        let was = perform(&mut peer, op, &rig, &event);
        if fate != Fate::Any {
            prop_assert_eq!(was, fate, "{:?} in {:?}", op, model);
        }
        if was == Closed {
            let shared = Arc::clone(&running.shared);
            let (device, reason) = running.wait_for_end();
            prop_assert!(!reason.contains("bug"), "{}", reason);
            let (again, stream) = start(device.expect("given back"), shared);
            (running, peer, model) =
                (again, Raw::new(stream), Model { wild: model.wild, ..Model::default() });
            continue;
        }
        running.collect();
        let rings = running.seen.iter().rev().find_map(|report| match report {
            Report::Rings(rings) => Some(rings),
            _ => None,
        });
        for (index, ring) in rings.into_iter().flatten().enumerate() {
            if !model.wild {
                prop_assert_eq!(ring.started, model.started[index], "ring {} after {:?}", index, op);
                prop_assert_eq!(ring.enabled, model.enabled[index], "ring {} after {:?}", index, op);
            }
            // What is served was started and, as far as it goes, told; a fault and a core exclude each other.
            prop_assert!(ring.core().is_none() || (ring.started && ring.fault.is_none()), "{:?}", ring);
        }
    }
    let device = running.close();
    prop_assert_eq!(device.facts().limits.max_vqs, 2);
    Ok(())
}

/// True for what makes the rest unpredictable: see [`Model::wild`].
fn is_wild(op: &Op) -> bool {
    let mut model = Model::default();
    model.apply(op);
    model.wild
}

/// Runs random sequences beside a session that must not notice.
fn check(cases: u32, keep: fn(&Op) -> bool) {
    let (mut neighbour, frontend) = sim_with_frontend("bystander", 1);
    let guest = RefCell::new(Guest::start(frontend, GuestOptions::default()).unwrap());
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let ops = proptest::collection::vec(op().prop_filter("kept", keep), 1..80);
    let outcome = runner.run(&ops, |ops| {
        run(&ops)?;
        guest.borrow_mut().turn(8).unwrap();
        Ok(())
    });
    outcome.unwrap();
    let mut guest = guest.into_inner();
    let before = guest.stats().received;
    eventually(|| {
        guest.turn(8).unwrap();
        guest.stats().received > before + 1000
    });
    neighbour.collect();
    let harmed = |report: &Report| matches!(report, Report::RingFault { .. } | Report::Ended { .. });
    assert!(!neighbour.seen.iter().any(harmed));
}

#[test]
fn every_request_in_every_state_is_as_the_model_says_and_harms_nobody() {
    check(150, |op| !is_wild(op));
}

#[test]
fn garbage_in_every_state_harms_nobody() {
    check(150, |_| true);
}
