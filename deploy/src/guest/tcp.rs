//! TCP transfers through the kernel: content that follows from a seed, digested with SHA-256 at both ends.
//!
//! A connection carries one transfer. Its client says which:
//! ```text
//! client -> server   S or F (1 byte), seed (8), bytes (8)
//! S: client -> server the content; server -> client one byte when it has digested all
//! F: server -> client the content
//! ```

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringway_lab::agent::{TcpEnd, TcpOrder, TcpReport};
use ringway_lab::content::Content;
use ringway_lab::ensure;
use ringway_lab::error::{Context, Error, Result};
use sha2::{Digest, Sha256};

/// A port that serves transfers for as long as the agent runs.
pub(crate) struct Server {
    ended: Arc<Mutex<Vec<TcpEnd>>>,
}

impl Server {
    /// Listens from now on; each connection has a thread of its own.
    pub(crate) fn start(port: u16) -> Result<Server> {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
            .context(|| format!("TCP port {port}"))?;
        let ended = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&ended);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                let ended = Arc::clone(&ended);
                std::thread::spawn(move || match serve(&stream) {
                    Ok(end) => ended.lock().unwrap_or_else(PoisonError::into_inner).push(end),
                    Err(error) => eprintln!("tcp server: {error}"),
                });
            }
        });
        Ok(Server { ended: all })
    }

    /// The transfers that ended since this was last asked.
    pub(crate) fn ended(&self) -> Vec<TcpEnd> {
        std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Sends and fetches as ordered, both at once.
pub(crate) fn run(order: &TcpOrder) -> Result<TcpReport> {
    let (to, seed, bytes) = (order.to, order.seed, order.send_bytes);
    let sending = (bytes > 0).then(|| std::thread::spawn(move || ask(to, SEND, seed, bytes)));
    let fetched =
        (order.fetch_bytes > 0).then(|| ask(to, FETCH, seed.wrapping_add(1), order.fetch_bytes)).transpose();
    let sent = sending.map(|thread| match thread.join() {
        Ok(end) => end,
        Err(_) => Err(Error::new("the sending thread panicked")),
    });
    Ok(TcpReport { sent: sent.transpose()?, fetched: fetched? })
}

fn ask(to: SocketAddr, direction: u8, seed: u64, bytes: u64) -> Result<TcpEnd> {
    let mut stream = TcpStream::connect_timeout(&to, LIMIT).context(|| format!("connect to {to}"))?;
    limit(&stream)?;
    let mut header = [direction; HEADER_BYTES];
    header[1..9].copy_from_slice(&seed.to_be_bytes());
    header[9..].copy_from_slice(&bytes.to_be_bytes());
    stream.write_all(&header).context(|| format!("to {to}"))?;
    if direction == FETCH {
        return receive(&stream, seed, bytes).context(|| format!("from {to}"));
    }
    send(&stream, seed, bytes).context(|| format!("to {to}"))
}

fn serve(stream: &TcpStream) -> Result<TcpEnd> {
    limit(stream)?;
    let mut header = [0; HEADER_BYTES];
    let mut reader = stream;
    reader.read_exact(&mut header).context(|| "read what is asked for".into())?;
    let number = |at: usize| header[at..at + 8].iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
    let (seed, bytes) = (number(1), number(9));
    match header[0] {
        SEND => {
            let end = receive(stream, seed, bytes)?;
            let mut writer = stream;
            writer.write_all(&[SEND]).context(|| "say that all is there".into())?;
            Ok(end)
        }
        FETCH => send(stream, seed, bytes),
        other => Err(Error::new(format!("unknown request {other}"))),
    }
}

/// Sends the content, and waits until the other side has it all: it answers, or closes.
fn send(mut stream: &TcpStream, seed: u64, bytes: u64) -> Result<TcpEnd> {
    let start = Instant::now();
    let (mut content, mut digest, mut left) = (Content::new(seed), Sha256::new(), bytes);
    let mut block = vec![0; BLOCK_BYTES];
    while left > 0 {
        let step = &mut block[..left.min(BLOCK_BYTES as u64) as usize];
        content.fill(step);
        digest.update(&*step);
        stream.write_all(step).context(|| format!("{left} of {bytes} bytes were left to send"))?;
        left -= step.len() as u64;
    }
    let _ = stream.read(&mut block[..1]).context(|| "wait until all is there".into())?;
    Ok(ended(seed, true, bytes, digest, start))
}

fn receive(mut stream: &TcpStream, seed: u64, bytes: u64) -> Result<TcpEnd> {
    let start = Instant::now();
    let (mut digest, mut left) = (Sha256::new(), bytes);
    let mut block = vec![0; BLOCK_BYTES];
    while left > 0 {
        let step = left.min(BLOCK_BYTES as u64) as usize;
        let count =
            stream.read(&mut block[..step]).context(|| format!("{left} of {bytes} bytes were to come"))?;
        ensure!(count > 0, "the other side ended with {left} of {bytes} bytes to come");
        digest.update(&block[..count]);
        left -= count as u64;
    }
    Ok(ended(seed, false, bytes, digest, start))
}

fn ended(seed: u64, sender: bool, bytes: u64, digest: Sha256, start: Instant) -> TcpEnd {
    let sha256 = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    TcpEnd { seed, sender, bytes, sha256, elapsed_ms: start.elapsed().as_millis() as u64 }
}

/// No call waits for ever on a peer that is gone.
fn limit(stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(())
}

const SEND: u8 = b'S';
const FETCH: u8 = b'F';
const HEADER_BYTES: usize = 17;
const BLOCK_BYTES: usize = 128 << 10;
const LIMIT: Duration = Duration::from_secs(30);
