//! Frames of every length, each of which must return intact and once.

use std::time::{Duration, Instant};

use ringway_lab::agent::{CastOrder, FramesOrder, FramesReport};
use ringway_lab::ensure;
use ringway_lab::error::{Error, Result};
use ringway_lab::exchange::new_run;
use ringway_lab::frame::{Frame, LONGEST, SHORTEST, mac_from_text};

use crate::wire::{Received, Rounds, Sent, Wire};

/// Sends and receives as ordered; returns when every frame is back, or none has come back for the quiet time.
pub(crate) fn run(order: &FramesOrder) -> Result<FramesReport> {
    ensure!(
        SHORTEST <= order.shortest && order.shortest <= order.longest && order.longest <= LONGEST,
        "lengths must lie within {SHORTEST}..={LONGEST}"
    );
    ensure!(
        order.window > 0 && order.flows > 0 && order.rounds > 0,
        "window, flows and rounds are at least 1"
    );
    let mut wire = Wire::open(&order.nic, order.swapped)?;
    let lengths = (order.longest - order.shortest + 1) as u64;
    let length_of = |sequence: u64| order.shortest + (sequence % lengths) as usize;
    let total = lengths * u64::from(order.rounds);
    let run = new_run();
    let start = Instant::now();
    let quiet = Duration::from_millis(order.quiet_ms);
    let mut seen = vec![false; total as usize];
    let mut report = FramesReport::default();
    let mut back = 0;
    let mut rounds = Rounds::new();
    let mut last_progress = Instant::now();
    loop {
        let mut refused = false;
        while report.sent < total && report.sent - back < u64::from(order.window) {
            let sequence = report.sent;
            let frame = Frame {
                run,
                sequence,
                flow: (sequence % u64::from(order.flows)) as u16,
                length: length_of(sequence),
            };
            match wire.send(frame) {
                Sent::Yes => report.sent += 1,
                Sent::Later => break,
                Sent::Refused(errno) => {
                    // A queue that is full or a link that comes up soon; for longer than the quiet time it is an error.
                    ensure!(last_progress.elapsed() < quiet, "frame {sequence} was refused: {errno}");
                    refused = true;
                    break;
                }
            }
            rounds.step();
        }
        if refused {
            std::thread::sleep(Duration::from_millis(1));
        }
        match wire.receive(run, length_of) {
            Ok(Received::Intact(frame)) => {
                last_progress = Instant::now();
                back += count(&mut report, &mut seen, frame, None);
            }
            Ok(Received::Corrupt(frame, how)) => {
                last_progress = Instant::now();
                back += count(&mut report, &mut seen, frame, Some(how));
            }
            Ok(Received::Foreign) => {}
            Ok(Received::Nothing) => {
                if last_progress.elapsed() >= quiet || back == total {
                    break;
                }
                wire.wait(Duration::from_millis(20));
            }
            Err(errno) => ringway_lab::fail!("receiving: {errno}"),
        }
    }
    // Whatever comes now is one too many.
    let settled = Instant::now() + SETTLE;
    while Instant::now() < settled {
        match wire.receive(run, length_of) {
            Ok(Received::Intact(frame)) => {
                count(&mut report, &mut seen, frame, None);
            }
            Ok(Received::Corrupt(frame, how)) => {
                count(&mut report, &mut seen, frame, Some(how));
            }
            Ok(Received::Foreign) => {}
            Ok(Received::Nothing) => wire.wait(Duration::from_millis(10)),
            Err(errno) => ringway_lab::fail!("receiving: {errno}"),
        }
    }
    for (sequence, seen) in seen.iter().enumerate().take(report.sent as usize) {
        if !seen {
            report.missing += 1;
            note_length(&mut report, length_of(sequence as u64));
        }
    }
    ensure!(
        report.sent == total,
        "only {} of {total} frames could be sent, {} came back",
        report.sent,
        report.received
    );
    report.elapsed_ms = start.elapsed().as_millis() as u64;
    Ok(report)
}

/// Sends frames with the ordered addresses, and gives how many: all of them.
pub(crate) fn cast(order: &CastOrder) -> Result<u64> {
    let address = |text: &str| {
        mac_from_text(text).ok_or_else(|| Error::new(format!("not an Ethernet address: {text}")))
    };
    let (destination, source) = (address(&order.destination)?, address(&order.source)?);
    let mut wire = Wire::open(&order.nic, false)?;
    let run = new_run();
    let mut sent = 0;
    let mut last_progress = Instant::now();
    while sent < order.frames {
        let frame = Frame { run, sequence: sent, flow: 0, length: order.length };
        match wire.send_as(frame, destination, source) {
            Sent::Yes => {
                sent += 1;
                last_progress = Instant::now();
                continue;
            }
            Sent::Later => {}
            Sent::Refused(errno) => {
                ensure!(last_progress.elapsed() < SETTLE * 5, "frame {sent} was refused: {errno}");
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(sent)
}

/// Counts a returned frame; gives 1 when it is the first of its sequence number, else 0.
fn count(report: &mut FramesReport, seen: &mut [bool], frame: Frame, corruption: Option<String>) -> u64 {
    // A sequence number that was never sent can only come from a changed frame.
    let known = (frame.sequence < report.sent).then(|| seen.get_mut(frame.sequence as usize)).flatten();
    let first = known.map(|seen| !std::mem::replace(seen, true));
    match (corruption, first) {
        (None, Some(true)) => report.received += 1,
        (None, Some(false)) => report.duplicated += 1,
        (corruption, _) => {
            report.corrupt += 1;
            note_length(report, frame.length);
            report.first_corruption.get_or_insert(corruption.unwrap_or_else(|| "a number never sent".into()));
        }
    }
    u64::from(first == Some(true))
}

fn note_length(report: &mut FramesReport, length: usize) {
    if report.bad_lengths.len() < 16 && !report.bad_lengths.contains(&length) {
        report.bad_lengths.push(length);
    }
}

const SETTLE: Duration = Duration::from_millis(200);
