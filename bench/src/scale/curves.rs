//! Curves of throughput: over idle devices, busy devices, regions of memory, ports of a bridge.

use ringway_control::guest::{Guest, GuestOptions};
use ringway_ring::memory::PageKind;

use super::curve::Curve;
use super::load::{balance, introduce, round};
use super::{Options, ScaleError, Subject, driven, on_core};
use crate::progress;

/// Idle devices beside the busy one.
pub const IDLE: [usize; 4] = [0, 16, 256, 1000];

/// Busy devices.
pub const BUSY: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Regions of memory.
pub const REGIONS: [usize; 5] = [1, 8, 64, 256, 509];

/// Ports of a bridge.
pub const PORTS: [usize; 6] = [2, 4, 8, 16, 32, 64];

/// One busy device beside idle connected ones. Each count has a daemon of its own; those that are not measured sleep.
pub fn idle(options: &Options) -> Result<Curve, ScaleError> {
    // Cheap to host in this process: little memory, few pages.
    let sleeper = GuestOptions { queue_size: 8, pages: Some(PageKind::Base), ..driven(options) };
    let mut sleepers = Vec::new();
    let mut setups = Vec::new();
    for count in IDLE {
        let mut subject = Subject::start(options, &["--idle", "adaptive"])?;
        for number in 0..count {
            if number % 16 == 0 {
                progress::show(&format!("idle devices: {number} of {count} connected"));
            }
            sleepers.push(subject.guest(&format!("idle{number}"), "sim/net", sleeper)?);
        }
        let busy = subject.guest("busy", "sim/net", driven(options))?;
        setups.push(Setup::new(subject, vec![busy]));
    }
    curve("idle devices", &IDLE, options, &mut setups)
}

/// So many devices, each driven as fast as it goes by one guest after the other, on one worker.
pub fn busy(options: &Options) -> Result<Curve, ScaleError> {
    let mut setups = Vec::new();
    for count in BUSY {
        let mut subject = Subject::start(options, &[])?;
        let guests =
            (0..count).map(|number| subject.guest(&format!("busy{number}"), "sim/net", driven(options)));
        let guests = guests.collect::<Result<Vec<_>, _>>()?;
        setups.push(Setup::new(subject, guests));
    }
    curve("busy devices", &BUSY, options, &mut setups)
}

/// One device whose guest's buffers are scattered over its regions of memory, so that none is in the same region as the
/// one before. On base pages, at the same places whatever the number of regions.
pub fn regions(options: &Options) -> Result<Curve, ScaleError> {
    let mut setups = Vec::new();
    for count in REGIONS {
        let mut subject = Subject::start(options, &[])?;
        let scattered = GuestOptions {
            regions: u16::try_from(count).ok(),
            pages: Some(PageKind::Base),
            ..driven(options)
        };
        let guest = subject.guest("scattered", "sim/net", scattered)?;
        setups.push(Setup::new(subject, vec![guest]));
    }
    curve("regions", &REGIONS, options, &mut setups)
}

/// A bridge whose ports talk in pairs, all at the same time.
pub fn ports(options: &Options) -> Result<Curve, ScaleError> {
    let address = |port: usize| [0x52, 0x57, 0, 1, 0, port as u8];
    let mut setups = Vec::new();
    for count in PORTS {
        let mut subject = Subject::start(options, &[])?;
        let guests = (0..count).map(|port| {
            // 0 with 1, 2 with 3, ..
            let addressed = GuestOptions {
                destination: address(port ^ 1),
                source: address(port),
                window: Some(driven(options).queue_size / 2),
                ..driven(options)
            };
            subject.guest(&format!("port{port}"), "bridge/b", addressed)
        });
        let mut guests = guests.collect::<Result<Vec<_>, _>>()?;
        introduce(&mut guests).map_err(ScaleError::guest("bridge/b"))?;
        setups.push(Setup::new(subject, guests));
    }
    curve("ports", &PORTS, options, &mut setups)
}

/// What a count is measured on.
struct Setup {
    subject: Subject,
    guests: Vec<Guest>,
    /// Before the first round.
    balance: i64,
}

impl Setup {
    fn new(subject: Subject, guests: Vec<Guest>) -> Setup {
        let balance = balance(&guests);
        Setup { subject, guests, balance }
    }
}

fn curve(over: &str, counts: &[usize], options: &Options, setups: &mut [Setup]) -> Result<Curve, ScaleError> {
    let measured = on_core(options.guest_core, || {
        let mut done = 0;
        let mut curve = Curve::measure(over, counts, options.rounds, |place| {
            let Setup { subject, guests, .. } = &mut setups[place];
            done += 1;
            let all = counts.len() * options.rounds as usize;
            progress::show(&format!("{over}: {}, round {done} of {all}", counts[place]));
            round(subject, guests, options.round)
        })?;
        for (point, setup) in curve.points.iter_mut().zip(setups.iter()) {
            point.lost = balance(&setup.guests) - setup.balance;
        }
        Ok(curve)
    });
    progress::show("");
    measured
}
