//! A guest's disk, one request at a word. None is waited for: what a request came to is told when it is answered.
//!
//! ```text
//! write SECTOR BYTE   fill the 4 KiB from this sector on with a byte
//! read SECTOR
//! flush
//! reconnect           connect again, with the rings and what is in flight as they are
//! quit
//! ```

use std::io::BufRead;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use ringway_guest::block::request::{Request, Status};
use ringway_guest::block::{BlockOptions, Port};
use ringway_ring::queue::Format;

use crate::Result;

/// Serves its input until `quit`.
pub(crate) fn run(socket: &str, format: Format) -> Result<()> {
    let options = BlockOptions { format, patience: PATIENCE, ..Default::default() };
    let mut port = Port::connect(Path::new(socket), options)?;
    let (sender, words) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(|line| line.ok()) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    println!("ready");
    let (mut done, mut number) = (Vec::new(), 0_u64);
    // By slot: the number of the word that it serves.
    let mut numbers = [0; DEPTH];
    loop {
        match words.recv_timeout(LOOK_EVERY) {
            Ok(line) => {
                number += 1;
                match line.split_whitespace().collect::<Vec<_>>().as_slice() {
                    ["quit"] => return Ok(()),
                    ["reconnect"] => {
                        port.reconnect(Path::new(socket))?;
                        println!("{number} done");
                    }
                    request => {
                        let slot = submit(&mut port, request)?;
                        *numbers.get_mut(slot).ok_or("too many requests")? = number;
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        let queue = port.queues_mut().first_mut().ok_or("no queue")?;
        queue.collect(&mut done)?;
        for request in done.drain(..) {
            let number = numbers.get(request.slot.number()).copied().unwrap_or_default();
            let mut data = [0; 4096];
            queue.data(&request.slot).read(&mut data);
            let all = data.iter().all(|byte| *byte == data[0]);
            match request.status {
                Status::Ok if request.request.operation.is_to_guest() && all => {
                    println!("{number} ok {}", data[0])
                }
                Status::Ok if request.request.operation.is_to_guest() => println!("{number} torn"),
                Status::Ok => println!("{number} ok"),
                Status::IoError => println!("{number} error"),
                other => println!("{number} {other:?}"),
            }
            queue.release(request.slot);
        }
    }
}

/// Hands a request over; gives its slot.
fn submit(port: &mut Port, words: &[&str]) -> Result<usize> {
    let (request, fill) = match words {
        ["write", sector, byte] => (Request::write(sector.parse()?, 4096), Some(byte.parse::<u8>()?)),
        ["read", sector] => (Request::read(sector.parse()?, 4096), None),
        ["flush"] => (Request::FLUSH, None),
        _ => return Err(format!("{words:?} is not understood").into()),
    };
    let queue = port.queues_mut().first_mut().ok_or("no queue")?;
    let slot = queue.reserve().ok_or("too many requests")?;
    if let Some(byte) = fill {
        queue.data(&slot).write(&[byte; 4096]);
    }
    let number = slot.number();
    queue.submit(slot, request, 0).map_err(|_| "no room in the ring")?;
    queue.publish();
    Ok(number)
}

/// A daemon under emulation takes its time.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// As many as a port has.
const DEPTH: usize = 32;
