//! Guests and workers that share their cores, one after the other: for a host that has no core to spare for the guests.
//!
//! ```text
//!   the daemon stands (SIGSTOP), its workers asleep    | it runs (SIGCONT), the guests do nothing      | ..
//!   core 0: guests of the worker on core 1 fill rings  | the worker of core 0 takes what was sent      |
//!   core 1: guests of the worker on core 0 do so       | the worker of core 1 does, both go to sleep   |
//! ```
//! So no worker is charged for the time of a guest, and as if the guests had a core of their own none finds a line in its caches that a guest
//! has just written there: it is the other core that drives them. What else a worker had in its caches is displaced before it runs, whoever
//! drove. What a frame costs a worker is told so; what moves in a second is not: most of it is the guests' time.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ringway_guest::Guest;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use super::ScaleError;
use super::load::balance;
use crate::{backend, host};

/// Guests that are driven from one core, and the core of their worker.
#[derive(Debug)]
pub(crate) struct Driven {
    pub(crate) from: usize,
    pub(crate) worker: usize,
    pub(crate) guests: Vec<Guest>,
}

/// Turns that were taken.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    pub(crate) whole: usize,
    /// Of these not all had come in time: a worker may have been made to stand at work, and be charged for that.
    pub(crate) cut_short: usize,
}

/// Drives the guests for a while, `send` frames of each in one go. The thread is on another core after it.
pub(crate) fn drive(
    daemon: u32,
    driven: &mut [Driven],
    send: u32,
    duration: Duration,
) -> Result<Turns, ScaleError> {
    let held = Held(daemon);
    let mut displaced = vec![0_u64; DISPLACED / size_of::<u64>()];
    let (begun, mut turns) = (Instant::now(), Turns::default());
    while begun.elapsed() < duration {
        held.stand()?;
        let before = under_way(driven);
        sweep(driven, send)?;
        for group in driven.iter() {
            pin(group.worker)?;
            displace(&mut displaced);
        }
        held.run()?;
        if all_come(driven, before)? { turns.whole += 1 } else { turns.cut_short += 1 }
    }
    Ok(turns)
}

/// Waits until all has come but what was lost before, and the workers are asleep. False: not all has.
fn all_come(driven: &mut [Driven], lost: i64) -> Result<bool, ScaleError> {
    let begun = Instant::now();
    loop {
        std::thread::sleep(ASLEEP);
        while sweep(driven, 0)? > 0 {}
        let is_all = under_way(driven) <= lost;
        if is_all || begun.elapsed() > PATIENCE {
            std::thread::sleep(ASLEEP);
            return Ok(is_all);
        }
    }
}

/// Frames that were sent and have not come.
fn under_way(driven: &[Driven]) -> i64 {
    driven.iter().map(|group| balance(&group.guests)).sum()
}

/// One turn of each guest, on the core that drives it; how many frames came.
fn sweep(driven: &mut [Driven], send: u32) -> Result<u64, ScaleError> {
    let mut received = 0;
    for group in driven {
        pin(group.from)?;
        for guest in &mut group.guests {
            let mut left = send;
            loop {
                let some = left.min(BATCH);
                received += u64::from(guest.turn(some).map_err(ScaleError::guest("the round"))?);
                left -= some;
                if left == 0 {
                    break;
                }
            }
        }
    }
    Ok(received)
}

fn pin(core: usize) -> Result<(), ScaleError> {
    if host::pin(core) { Ok(()) } else { Err(ScaleError::Core(core)) }
}

/// Writes each line of a part of memory that is larger than a core's own caches.
fn displace(memory: &mut [u64]) {
    for line in memory.chunks_exact_mut(LINE_WORDS) {
        line[0] = line[0].wrapping_add(1);
    }
    black_box(memory);
}

/// A daemon that can be made to stand, and runs again at last.
struct Held(u32);

impl Held {
    /// Has it stand, and waits until the last of its threads does: what a worker were to do still it would be charged for.
    fn stand(&self) -> Result<(), ScaleError> {
        self.signal(Signal::STOP)?;
        let failed = ScaleError::system("ringwayd does not stop");
        let pid = i32::try_from(self.0).ok().and_then(Pid::from_raw).unwrap_or(Pid::INIT);
        match waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED) {
            Ok(_) => Ok(()),
            Err(error) => Err(failed(error.into())),
        }
    }

    fn run(&self) -> Result<(), ScaleError> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<(), ScaleError> {
        let failed = ScaleError::system("cannot stop ringwayd, or have it go on");
        backend::send(self.0, "ringwayd", signal).map_err(|error| failed(std::io::Error::other(error)))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.run();
    }
}

/// Frames that a guest sends at once.
const BATCH: u32 = 32;

/// After so long without work a worker that is `adaptive` has been asleep for long.
const ASLEEP: Duration = Duration::from_millis(1);

/// How long all are waited for: a hundred times what the workers take.
const PATIENCE: Duration = Duration::from_millis(50);

/// Larger than a core's own caches.
const DISPLACED: usize = 4 << 20;

/// Words in a cache line.
const LINE_WORDS: usize = 8;
