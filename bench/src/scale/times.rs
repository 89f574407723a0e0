//! How long it takes to add a device and to connect a front-end, with few others and with a thousand.

use std::time::{Duration, Instant};

use ringway_guest::{Guest, GuestOptions};
use ringway_ring::memory::PageKind;
use serde::{Deserialize, Serialize};

use super::{Options, ScaleError, Subject, driven, on_core};
use crate::progress;
use crate::stats::Spread;

/// What was found, in microseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Times {
    /// `dev.add` on the operator's socket, from request to answer: the first [`SOME`] devices, and the last before
    /// [`MANY`].
    pub add_us: [Spread; 2],
    /// The command `ringway dev add`, its own start included, beside [`MANY`] devices.
    pub command_us: Spread,
    /// A front-end from `connect` to enabled rings: beside none to [`SOME`] others, and beside [`MANY`].
    pub connect_us: [Spread; 2],
    /// The next frame through the device, there and back.
    pub first_frame_us: [Spread; 2],
}

/// Devices that are timed.
pub const SOME: usize = 100;

/// Devices that there are in the end.
pub const MANY: usize = 1000;

/// Measures all of them on one daemon.
pub fn measure(options: &Options) -> Result<Times, ScaleError> {
    let mut subject = Subject::start(options, &[])?;
    // Off the worker's core: who spins there waits for its own time slice to end.
    on_core(options.guest_core, || with(&mut subject, options))
}

fn with(subject: &mut Subject, options: &Options) -> Result<Times, ScaleError> {
    let guest = GuestOptions { queue_size: 8, pages: Some(PageKind::Base), ..driven(options) };
    let mut guests = Vec::with_capacity(MANY);
    let mut adds = Vec::with_capacity(MANY);
    let mut connects = Vec::with_capacity(MANY);
    let mut frames = Vec::with_capacity(MANY);
    for number in 0..MANY {
        if number % 16 == 0 {
            progress::show(&format!("{number} of {MANY} devices"));
        }
        let name = format!("dev{number}");
        let begun = Instant::now();
        let socket = subject.add(&name, "sim/net")?;
        adds.push(micros(begun));
        let begun = Instant::now();
        let mut guest = Guest::connect(&socket, guest).map_err(ScaleError::guest(&name))?;
        connects.push(micros(begun));
        frames.push(first_frame(&mut guest, &name)?);
        guests.push(guest);
    }
    let mut commands = Vec::with_capacity(COMMANDS);
    for number in 0..COMMANDS {
        let begun = Instant::now();
        subject.daemon.ringway(&["dev", "add", "name", &format!("cmd{number}"), "mgmtdev", "sim/net"])?;
        commands.push(micros(begun));
    }
    progress::show("");
    let ends = |series: &[f64]| [spread(&series[..SOME]), spread(&series[MANY - SOME..])];
    Ok(Times {
        add_us: ends(&adds),
        command_us: spread(&commands),
        connect_us: ends(&connects),
        first_frame_us: ends(&frames),
    })
}

/// Sends one frame and waits until it is back; how long that took, in microseconds.
pub(crate) fn first_frame(guest: &mut Guest, device: &str) -> Result<f64, ScaleError> {
    let begun = Instant::now();
    let mut send = 1;
    while guest.turn(send).map_err(ScaleError::guest(device))? == 0 {
        send = 0;
        if begun.elapsed() > PATIENCE {
            return Err(ScaleError::NoFrame { device: device.to_owned(), within: PATIENCE });
        }
    }
    Ok(micros(begun))
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

fn spread(series: &[f64]) -> Spread {
    Spread::of(series).unwrap_or(Spread { median: f64::NAN, low: f64::NAN, high: f64::NAN })
}

const COMMANDS: usize = 20;

const PATIENCE: Duration = Duration::from_secs(10);
