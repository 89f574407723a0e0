//! A bridge on one core and on two: what a frame costs, all ports talking, the cycles of both workers together.
//!
//! ```text
//!   one:     [a b c d ..] on one worker, a with b, c with d
//!   within:  [a b ..] on one, [c d ..] on the other: nothing crosses
//!   half:    half of the pairs so, half so: about what crosses if all talk with all
//!   across:  [a c ..] on one, [b d ..] on the other: every frame crosses
//! ```
//! Guests and the two workers each have a core; with two cores in all, guests and workers take turns on them (module `in_turns`): a
//! worker that shares its core with guests that run would be charged for their time.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ringway_guest::frame::Addresses;
use ringway_guest::{Guest, GuestOptions};
use serde::{Deserialize, Serialize};

use super::curve::Curve;
use super::in_turns::{self, Driven};
use super::load::{Round, balance, drive, introduce};
use super::{Options, ScaleError, Subject, driven, on_core};
use crate::progress;
use crate::stats::Spread;

/// Ports of the bridge.
pub const PORTS: usize = 8;

/// What its workers serve, in the order of the points.
pub const WAYS: [&str; 4] = ["one worker", "two, pairs within", "two, half across", "two, pairs across"];

/// The place among them of the one that has a target.
pub const ALL_WITH_ALL: usize = 2;

/// What was found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BridgeCores {
    /// A point for each of [`WAYS`], by the number of workers.
    pub curve: Curve,
    /// Guests and workers took turns on two cores: the rate is mostly the guests' time, and a `slice` is a turn, discarded if it was cut
    /// short; its frames count all the same.
    pub in_turns: bool,
}

impl BridgeCores {
    /// Frames for each busy cycle, both workers together, over those of one worker: of a point.
    pub fn kept(&self, point: usize) -> Option<Spread> {
        let cost = self.curve.points.get(point)?.cost_ratio?;
        Some(Spread { median: 1.0 / cost.median, low: 1.0 / cost.high, high: 1.0 / cost.low })
    }
}

/// Measures it, with the guests on a core of their own where there is one left.
///
/// # Errors
/// A daemon, a guest or the system.
pub fn measure(options: &Options) -> Result<BridgeCores, ScaleError> {
    let one = [options.worker_core];
    let two = [options.worker_core, options.second_core.unwrap_or(options.guest_core)];
    let mut setups = vec![
        Setup::new(options, &one, |_| 0)?,
        // 0 with 1, 2 with 3, ..
        Setup::new(options, &two, |port| port / 2 % 2)?,
        // 0 with 1, 2 with 3, .., and from the middle on each with one of the other.
        Setup::new(options, &two, |port| if port < PORTS / 2 { port / 2 % 2 } else { port % 2 })?,
        Setup::new(options, &two, |port| port % 2)?,
    ];
    let measured = on_core(options.guest_core, || {
        let mut done = 0;
        let mut curve = Curve::measure("workers", &[1, 2, 2, 2], options.rounds, |place| {
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
    Ok(BridgeCores { curve: measured?, in_turns: options.second_core.is_none() })
}

/// A daemon, and the ports of its bridge.
struct Setup {
    subject: Subject,
    /// The socket of each port, its guest, and the core of its worker.
    devices: Vec<(PathBuf, GuestOptions, usize)>,
    guest_core: usize,
    /// The core on which guests and a worker take turns.
    shared_core: Option<usize>,
    /// Frames that a guest sends in a turn, where they take turns.
    send: u16,
    lost: i64,
}

impl Setup {
    /// Each port on the core that `place` says, by its place among `cores`.
    fn new(options: &Options, cores: &[usize], place: impl Fn(usize) -> usize) -> Result<Setup, ScaleError> {
        let mut subject = Subject::start_on(cores, &["--idle", "adaptive"])?;
        let address = |port: usize| [0x52, 0x57, 0, 1, 0, port as u8];
        let in_turns = options.second_core.is_none();
        // Where they take turns, a worker has as many frames in one, however many ports are its own.
        let queue_size = if in_turns { TURNS_QUEUE } else { driven(options).queue_size };
        let window = if in_turns { queue_size / 4 * cores.len() as u16 } else { queue_size / 2 };
        let mut devices = Vec::new();
        for port in 0..PORTS {
            let guest = GuestOptions {
                addresses: Addresses { to: address(port ^ 1), from: address(port) },
                window: Some(window),
                queue_size,
                ..driven(options)
            };
            let core = cores[place(port)];
            devices.push((subject.add_on(&format!("busy{port}"), "bridge/b", core)?, guest, core));
        }
        let shared_core = in_turns.then_some(options.worker_core);
        Ok(Setup { subject, devices, guest_core: options.guest_core, shared_core, send: window, lost: 0 })
    }

    /// Connects the guests, drives them for a round, and has them leave.
    fn round(&mut self, duration: Duration) -> Result<Round, ScaleError> {
        let failed = |source| ScaleError::Guest { device: "the round".to_owned(), source };
        let guests = self.devices.iter().map(|(socket, guest, _)| Guest::connect(socket, *guest));
        let mut guests = guests.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        introduce(&mut guests).map_err(failed)?;
        let (lost, received) = (balance(&guests), came(&guests));
        let before = self.subject.busy()?;
        let begun = Instant::now();
        let (rate, slices, discarded) = match self.shared_core {
            None => {
                let slices = drive(&mut guests, duration).map_err(failed)?;
                (Spread::of(&slices.rates).map(|rate| rate.median), slices.rates.len(), slices.discarded)
            }
            Some(shared) => {
                let mut driven = self.by_core(guests, shared);
                let turns =
                    in_turns::drive(self.subject.daemon.pid(), &mut driven, self.send.into(), duration)?;
                guests = driven.into_iter().flat_map(|driven| driven.guests).collect();
                let frames = came(&guests) - received;
                (Some(frames as f64 / begun.elapsed().as_secs_f64()), turns.whole, turns.cut_short)
            }
        };
        let after = self.subject.busy()?;
        let frames = (came(&guests) - received).max(1) as f64;
        self.lost += balance(&guests) - lost;
        for guest in guests {
            guest.stop().map_err(failed)?;
        }
        Ok(Round {
            mpps: rate.map_or(0.0, |rate| rate / 1e6),
            cycles_per_packet: (after.cycles - before.cycles) as f64 / frames,
            packets_per_burst: frames / (after.bursts - before.bursts).max(1) as f64,
            slices,
            discarded,
        })
    }

    /// The guests by the core that drives them: never that of their worker.
    fn by_core(&self, guests: Vec<Guest>, shared: usize) -> Vec<Driven> {
        let mut driven = [(self.guest_core, shared), (shared, self.guest_core)]
            .map(|(from, worker)| Driven { from, worker, guests: Vec::new() });
        for (guest, (_, _, core)) in guests.into_iter().zip(&self.devices) {
            driven[usize::from(*core != shared)].guests.push(guest);
        }
        driven.into_iter().filter(|driven| !driven.guests.is_empty()).collect()
    }
}

/// Entries of the rings where guests and workers take turns: many, so that what begins a turn counts little.
const TURNS_QUEUE: u16 = 1024;

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
        let costs = [100.0, 80.0, 125.0, 200.0];
        let curve = Curve::measure("workers", &[1, 2, 2, 2], 3, |place| Ok(round(costs[place]))).unwrap();
        let found = BridgeCores { curve, in_turns: false };
        let kept = |point| found.kept(point).unwrap().median;
        assert_eq!((kept(0), kept(1), kept(2), kept(3)), (1.0, 1.25, 0.8, 0.5));
    }
}
