//! A guest's disk under load: reads, writes, flushes, discards and zeroes of blocks each of which is stamped, and checked when it is
//! read.
//!
//! By its input it is told:
//!
//! ```text
//! more N     say when N requests more have ended
//! check      read all blocks and check them, then go on
//! quit       check all blocks, stop the rings in order, and end
//! ```

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use ringway_guest::block::lane::{Mix, Offer, Work};
use ringway_guest::block::stamp::Touch;
use ringway_guest::block::{BlockOptions, Lane, Port};
use ringway_guest::presence::Presence;
use ringway_ring::memory::PageKind;
use ringway_ring::queue::Format;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::Result;

/// Works until it is told to quit.
pub(crate) fn run(socket: &str, format: Format) -> Result<()> {
    let options = BlockOptions {
        format,
        depth: DEPTH,
        pages: Some(PageKind::Base),
        patience: PATIENCE,
        ..BlockOptions::default()
    };
    let mut port = Port::connect(Path::new(socket), options)?;
    let mix = Mix { read: 4, write: 4, flush: 1, discard: 1, zeroes: 1 };
    let work = Work {
        mix,
        request_bytes: 4096,
        block_bytes: 4096,
        touch: Touch::All,
        sequential: false,
        overlap: false,
        first_sector: 0,
        bytes: BYTES,
        seed: 7,
    };
    let mut lane = Lane::new(work, DEPTH.into())?;
    let queue = port.queues_mut().first_mut().ok_or("it has no queue")?;
    lane.fill(queue, PATIENCE)?;
    println!("ready");
    let (mut input, mut told) = (std::io::stdin(), Vec::new());
    // What is to be said, and when so many requests have ended.
    let mut until: Option<(String, u64)> = None;
    loop {
        let stream = port.frontend().stream().as_fd().try_clone_to_owned()?;
        let mut fds = [PollFd::new(&input, PollFlags::IN), PollFd::new(&stream, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        let [is_told, is_closed] = [0, 1].map(|at: usize| !fds[at].revents().is_empty());
        if is_closed {
            return Err("the device has closed the connection".into());
        }
        if is_told && until.is_none() {
            let mut bytes = [0; 256];
            let count = input.read(&mut bytes)?;
            told.extend_from_slice(&bytes[..count]);
            if count == 0 {
                return quit(port, lane);
            }
        }
        if let Some(end) = told.iter().position(|byte| *byte == b'\n').filter(|_| until.is_none()) {
            let line: Vec<u8> = told.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            match line.split_whitespace().collect::<Vec<_>>().as_slice() {
                ["more", more] => {
                    until = Some((line.clone(), lane.counts().completed + more.parse::<u64>()?));
                }
                ["check"] => {
                    check(&mut port, &mut lane)?;
                    println!("done: {line}");
                }
                ["quit"] => return quit(port, lane),
                _ => return Err(format!("`{line}` is no command").into()),
            }
        }
        let queue = port.queues_mut().first_mut().ok_or("it has no queue")?;
        if lane.turn(queue, Offer::All, &mut { Presence::ASSUMED })? == 0 {
            // There is one processor for all.
            std::thread::sleep(PAUSE);
        }
        if let Some((line, _)) = until.take_if(|(_, until)| lane.counts().completed >= *until) {
            println!("done: {line}");
        }
    }
}

fn check(port: &mut Port, lane: &mut Lane) -> Result<()> {
    let queue = port.queues_mut().first_mut().ok_or("it has no queue")?;
    lane.check_all(queue, PATIENCE)?;
    let counts = lane.counts();
    if counts.faults() > 0 {
        return Err(format!("{counts:?}: {:?}", lane.wrong()).into());
    }
    Ok(())
}

fn quit(mut port: Port, mut lane: Lane) -> Result<()> {
    check(&mut port, &mut lane)?;
    port.stop()?;
    let counts = lane.counts();
    println!("{} requests, {} blocks checked", counts.completed, counts.checked);
    Ok(())
}

const DEPTH: u16 = 16;
const BYTES: u64 = 256 << 10;
const PAUSE: Duration = Duration::from_micros(500);
const PATIENCE: Duration = Duration::from_secs(40);
