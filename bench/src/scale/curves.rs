//! Curves of throughput: over idle devices, busy devices, regions of memory, ports of a bridge.
//!
//! Each count has a daemon of its own; those that are not measured sleep. The guests that are driven connect anew for each
//! round: where a guest's memory happens to lie is worth more than a tenth of its speed, and so no count keeps a good
//! place or a bad one. Those of a pass get the same pages, one after the other, where the kernel hands out last what
//! was given back last.

use std::path::PathBuf;
use std::time::Duration;

use ringway_guest::frame::Addresses;
use ringway_guest::{Guest, GuestOptions};
use ringway_ring::memory::PageKind;

use super::curve::Curve;
use super::load::{Round, balance, introduce, round};
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

/// One busy device beside idle connected ones.
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
        setups.push(Setup::new(subject, "sim/net", vec![driven(options)])?);
    }
    curve("idle devices", &IDLE, options, &mut setups)
}

/// So many devices, each driven as fast as it goes by one guest after the other, on one worker.
pub fn busy(options: &Options) -> Result<Curve, ScaleError> {
    let mut setups = Vec::new();
    for count in BUSY {
        let subject = Subject::start(options, &[])?;
        setups.push(Setup::new(subject, "sim/net", vec![driven(options); count])?);
    }
    curve("busy devices", &BUSY, options, &mut setups)
}

/// One device whose guest's buffers are scattered over its regions of memory, so that none is in the same region as the
/// one before. On base pages, at the same places whatever the number of regions.
pub fn regions(options: &Options) -> Result<Curve, ScaleError> {
    let mut setups = Vec::new();
    for count in REGIONS {
        let subject = Subject::start(options, &[])?;
        let scattered = GuestOptions {
            regions: u16::try_from(count).ok(),
            pages: Some(PageKind::Base),
            ..driven(options)
        };
        setups.push(Setup::new(subject, "sim/net", vec![scattered])?);
    }
    curve("regions", &REGIONS, options, &mut setups)
}

/// A bridge whose ports talk in pairs, all at the same time.
pub fn ports(options: &Options) -> Result<Curve, ScaleError> {
    let address = |port: usize| [0x52, 0x57, 0, 1, 0, port as u8];
    let mut setups = Vec::new();
    for count in PORTS {
        let subject = Subject::start(options, &[])?;
        let ports = (0..count).map(|port| GuestOptions {
            // 0 with 1, 2 with 3, ..
            addresses: Addresses { to: address(port ^ 1), from: address(port) },
            window: Some(driven(options).queue_size / 2),
            ..driven(options)
        });
        setups.push(Setup::new(subject, "bridge/b", ports.collect())?);
    }
    curve("ports", &PORTS, options, &mut setups)
}

/// What a count is measured on.
pub(super) struct Setup {
    subject: Subject,
    /// The devices' sockets, and what their guests are like.
    devices: Vec<(PathBuf, GuestOptions)>,
    lost: i64,
}

impl Setup {
    /// Adds a device for each of these guests.
    pub(super) fn new(
        mut subject: Subject,
        mgmtdev: &str,
        guests: Vec<GuestOptions>,
    ) -> Result<Setup, ScaleError> {
        let devices = guests.into_iter().enumerate();
        let devices = devices
            .map(|(number, guest)| Ok((subject.add(&format!("busy{number}"), mgmtdev)?, guest)))
            .collect::<Result<Vec<_>, ScaleError>>()?;
        Ok(Setup { subject, devices, lost: 0 })
    }

    /// Frames lost, damaged or doubled so far.
    pub(super) fn lost(&self) -> i64 {
        self.lost
    }

    /// Connects the guests, drives them for a round, and has them leave.
    pub(super) fn round(&mut self, duration: Duration) -> Result<Round, ScaleError> {
        let failed = |source| ScaleError::Guest { device: "the round".to_owned(), source };
        let guests = self.devices.iter().map(|(socket, guest)| Guest::connect(socket, *guest));
        let mut guests = guests.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        introduce(&mut guests).map_err(failed)?;
        let before = balance(&guests);
        let done = round(&mut self.subject, &mut guests, duration)?;
        self.lost += balance(&guests) - before;
        for guest in guests {
            guest.stop().map_err(failed)?;
        }
        Ok(done)
    }
}

fn curve(over: &str, counts: &[usize], options: &Options, setups: &mut [Setup]) -> Result<Curve, ScaleError> {
    let measured = on_core(options.guest_core, || {
        let mut done = 0;
        let mut curve = Curve::measure(over, counts, options.rounds, |place| {
            done += 1;
            let all = counts.len() * options.rounds as usize;
            progress::show(&format!("{over}: {}, round {done} of {all}", counts[place]));
            setups[place].round(options.round)
        })?;
        for (point, setup) in curve.points.iter_mut().zip(setups.iter()) {
            point.lost = setup.lost;
        }
        Ok(curve)
    });
    progress::show("");
    measured
}
