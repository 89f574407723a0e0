//! A bridge on one core and on two: what a frame costs, all ports talking, the cycles of both workers together.
//!
//! ```text
//!   one:     [a b c d ..] on one worker, a with b, c with d
//!   within:  [a b ..] on one, [c d ..] on the other: nothing crosses
//!   across:  [a c ..] on one, [b d ..] on the other: every frame crosses
//! ```
//! Guests and the two workers need a core each: with fewer, nothing is measured, since a worker that shares its core with the guests
//! is charged for their time.

use std::path::PathBuf;
use std::time::Duration;

use ringway_guest::frame::Addresses;
use ringway_guest::{Guest, GuestOptions};
use serde::{Deserialize, Serialize};

use super::curve::Curve;
use super::load::{Round, balance, drive, introduce};
use super::{Options, ScaleError, Subject, driven, on_core};
use crate::progress;
use crate::stats::Spread;

/// Ports of the bridge.
pub const PORTS: usize = 8;

/// What its workers serve, in the order of the points.
pub const WAYS: [&str; 3] = ["one worker", "two, pairs within", "two, pairs across"];

/// What was found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BridgeCores {
    /// A point for each of [`WAYS`], by the number of workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub curve: Option<Curve>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_measured: Option<String>,
}

impl BridgeCores {
    /// Frames for each busy cycle, both workers together, over those of one worker: of a point.
    pub fn kept(&self, point: usize) -> Option<Spread> {
        let cost = self.curve.as_ref()?.points.get(point)?.cost_ratio?;
        Some(Spread { median: 1.0 / cost.median, low: 1.0 / cost.high, high: 1.0 / cost.low })
    }
}

/// Measures it, where there are three cores.
///
/// # Errors
/// A daemon, a guest or the system.
pub fn measure(options: &Options) -> Result<BridgeCores, ScaleError> {
    let Some(second) = options.second_core else {
        let why =
            "needs three cores, one for the guests and two for workers: name the second by --second-core";
        return Ok(BridgeCores { curve: None, not_measured: Some(why.to_owned()) });
    };
    let one = [options.worker_core];
    let two = [options.worker_core, second];
    let mut setups = vec![
        Setup::new(options, &one, |_| 0)?,
        // 0 with 1, 2 with 3, ..
        Setup::new(options, &two, |port| port / 2 % 2)?,
        Setup::new(options, &two, |port| port % 2)?,
    ];
    let measured = on_core(options.guest_core, || {
        let mut done = 0;
        let mut curve = Curve::measure("workers", &[1, 2, 2], options.rounds, |place| {
            done += 1;
            let all = WAYS.len() * options.rounds as usize;
            progress::show(&format!("bridge on {}: round {done} of {all}", WAYS[place]));
            setups[place].round(options.round)
        })?;
        for (point, setup) in curve.points.iter_mut().zip(&setups) {
            point.lost = setup.lost;
        }
        Ok(curve)
    });
    progress::show("");
    Ok(BridgeCores { curve: Some(measured?), not_measured: None })
}

/// A daemon, and the ports of its bridge.
struct Setup {
    subject: Subject,
    devices: Vec<(PathBuf, GuestOptions)>,
    lost: i64,
}

impl Setup {
    /// Each port on the core that `place` says, by its place among `cores`.
    fn new(options: &Options, cores: &[usize], place: impl Fn(usize) -> usize) -> Result<Setup, ScaleError> {
        let mut subject = Subject::start_on(cores, &[])?;
        let address = |port: usize| [0x52, 0x57, 0, 1, 0, port as u8];
        let mut devices = Vec::new();
        for port in 0..PORTS {
            let guest = GuestOptions {
                addresses: Addresses { to: address(port ^ 1), from: address(port) },
                window: Some(driven(options).queue_size / 2),
                ..driven(options)
            };
            let socket = subject.add_on(&format!("busy{port}"), "bridge/b", cores[place(port)])?;
            devices.push((socket, guest));
        }
        Ok(Setup { subject, devices, lost: 0 })
    }

    /// Connects the guests, drives them for a round, and has them leave.
    fn round(&mut self, duration: Duration) -> Result<Round, ScaleError> {
        let failed = |source| ScaleError::Guest { device: "the round".to_owned(), source };
        let guests = self.devices.iter().map(|(socket, guest)| Guest::connect(socket, *guest));
        let mut guests = guests.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        introduce(&mut guests).map_err(failed)?;
        let (lost, received) = (balance(&guests), came(&guests));
        let before = self.subject.busy()?;
        let slices = drive(&mut guests, duration).map_err(failed)?;
        let after = self.subject.busy()?;
        let frames = (came(&guests) - received).max(1) as f64;
        self.lost += balance(&guests) - lost;
        for guest in guests {
            guest.stop().map_err(failed)?;
        }
        Ok(Round {
            mpps: Spread::of(&slices.rates).map_or(0.0, |rate| rate.median / 1e6),
            cycles_per_packet: (after.cycles - before.cycles) as f64 / frames,
            packets_per_burst: frames / (after.bursts - before.bursts).max(1) as f64,
            slices: slices.rates.len(),
            discarded: slices.discarded,
        })
    }
}

/// Frames that all guests together received.
fn came(guests: &[Guest]) -> u64 {
    guests.iter().map(|guest| guest.stats().received).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_the_inverse_of_what_a_frame_costs() {
        let round = |cycles_per_packet| Round {
            mpps: 1.0,
            cycles_per_packet,
            packets_per_burst: 1.0,
            slices: 1,
            discarded: 0,
        };
        let costs = [100.0, 125.0, 200.0];
        let curve = Curve::measure("workers", &[1, 2, 2], 3, |place| Ok(round(costs[place]))).unwrap();
        let found = BridgeCores { curve: Some(curve), not_measured: None };
        let kept = |point| found.kept(point).unwrap().median;
        assert_eq!((kept(0), kept(1), kept(2)), (1.0, 0.8, 0.5));
    }
}
