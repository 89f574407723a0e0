//! Numbered UDP datagrams: what was sent and what has come is known to the datagram, so a loss is seen at both ends.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringway_lab::agent::{UdpOrder, UdpReceived, UdpSent};
use ringway_lab::content::Content;
use ringway_lab::ensure;
use ringway_lab::error::{Context, Result};
use rustix::io::Errno;

/// Sends as ordered.
pub(crate) fn send(order: &UdpOrder) -> Result<UdpSent> {
    ensure!((HEADER_BYTES..=LONGEST).contains(&order.size), "sizes lie within {HEADER_BYTES}..={LONGEST}");
    let any = if order.to.is_ipv4() {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
    };
    let socket = UdpSocket::bind(any).context(|| "UDP socket".into())?;
    socket.connect(order.to).context(|| format!("a way to {}", order.to))?;
    let start = Instant::now();
    let mut report = UdpSent::default();
    let mut datagram = Vec::new();
    while report.sent < order.packets {
        write(order.run, report.sent, order.size, &mut datagram);
        match socket.send(&datagram) {
            Ok(_) => report.sent += 1,
            Err(error) => {
                report.refused += 1;
                ensure!(report.refused < REFUSED_LIMIT, "datagram {} was refused: {error}", report.sent);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        if let Some(due_ns) = (report.sent * NS_PER_S).checked_div(order.per_second) {
            let due = start + Duration::from_nanos(due_ns);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    report.elapsed_ms = start.elapsed().as_millis() as u64;
    Ok(report)
}

/// A port whose datagrams are received for as long as the agent runs.
pub(crate) struct Receiver {
    runs: Arc<Mutex<BTreeMap<u32, Run>>>,
    /// What the kernel had dropped, for want of room, before.
    overflowed: u64,
}

/// One sender's datagrams.
#[derive(Default)]
struct Run {
    counts: UdpReceived,
    /// A bit for each number.
    seen: Vec<u64>,
    /// The highest number that has come.
    highest: u64,
}

impl Receiver {
    /// Receives from now on.
    pub(crate) fn start(port: u16) -> Result<Receiver> {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))
            .context(|| format!("UDP port {port}"))?;
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BYTES)
            .context(|| "receive buffer".into())?;
        let runs = Arc::new(Mutex::new(BTreeMap::new()));
        let filled = Arc::clone(&runs);
        std::thread::spawn(move || {
            let (mut datagram, mut expected) = (vec![0; 1 << 16], Vec::new());
            loop {
                match socket.recv(&mut datagram) {
                    Ok(count) => count_one(&filled, &datagram[..count], &mut expected),
                    // Errors about answers that nobody sends do not concern this socket.
                    Err(error) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()) => {}
                    Err(error) => {
                        eprintln!("udp port {port}: {error}");
                        return;
                    }
                }
            }
        });
        Ok(Receiver { runs, overflowed: overflowed()? })
    }

    /// What has come of a run so far.
    pub(crate) fn report(&self, run: u32) -> Result<UdpReceived> {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = runs.get(&run).map(|run| run.counts.clone()).unwrap_or_default();
        Ok(UdpReceived { overflowed: overflowed()? - self.overflowed, ..counts })
    }
}

fn count_one(runs: &Mutex<BTreeMap<u32, Run>>, datagram: &[u8], expected: &mut Vec<u8>) {
    if datagram.len() < HEADER_BYTES || datagram[..4] != MARK {
        return;
    }
    let number = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
    let (run, sequence) = (number(&datagram[4..8]) as u32, number(&datagram[8..16]));
    write(run, sequence, datagram.len(), expected);
    let mut runs = runs.lock().unwrap_or_else(PoisonError::into_inner);
    let state = runs.entry(run).or_default();
    if *datagram != **expected || sequence >= SEQUENCE_LIMIT {
        state.counts.corrupt += 1;
        return;
    }
    let (word, bit) = ((sequence / 64) as usize, 1 << (sequence % 64));
    if state.seen.len() <= word {
        state.seen.resize(word + 1, 0);
    }
    if state.seen[word] & bit != 0 {
        state.counts.duplicated += 1;
        return;
    }
    state.seen[word] |= bit;
    state.counts.received += 1;
    if sequence < state.highest {
        state.counts.reordered += 1;
    }
    state.highest = state.highest.max(sequence);
}

fn write(run: u32, sequence: u64, size: usize, into: &mut Vec<u8>) {
    into.clear();
    into.resize(size, 0);
    into[..4].copy_from_slice(&MARK);
    into[4..8].copy_from_slice(&run.to_be_bytes());
    into[8..16].copy_from_slice(&sequence.to_be_bytes());
    Content::new((u64::from(run) << 32) ^ sequence).fill(&mut into[HEADER_BYTES..]);
}

/// Datagrams that the kernel has dropped for want of room, of both versions of IP: in the socket, or in all sockets together.
fn overflowed() -> Result<u64> {
    let four = std::fs::read_to_string("/proc/net/snmp").context(|| "/proc/net/snmp".into())?;
    // Absent without IPv6.
    let six = std::fs::read_to_string("/proc/net/snmp6").unwrap_or_default();
    let count = |name: &str| {
        column(&four, "Udp:", name).unwrap_or(0) + row(&six, &format!("Udp6{name}")).unwrap_or(0)
    };
    Ok(count("RcvbufErrors") + count("MemErrors"))
}

/// `/proc/net/snmp` has a line of names and one of values for each protocol.
fn column(text: &str, protocol: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(protocol));
    let at = lines.next()?.split_whitespace().position(|word| word == name)?;
    lines.next()?.split_whitespace().nth(at)?.parse().ok()
}

/// `/proc/net/snmp6` has a line for each name.
fn row(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

const MARK: [u8; 4] = *b"RWud";
const HEADER_BYTES: usize = 16;
const LONGEST: usize = 65_507;
const SEQUENCE_LIMIT: u64 = 1 << 32;
const SOCKET_BYTES: usize = 64 << 20;
const REFUSED_LIMIT: u64 = 3000;
const NS_PER_S: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_in_both_files() {
        let four = "Ip: A B\nIp: 1 2\nUdp: InDatagrams RcvbufErrors InCsumErrors\nUdp: 5 6 7\n";
        assert_eq!(column(four, "Udp:", "RcvbufErrors"), Some(6));
        assert_eq!(
            row("Ip6InReceives \t 3\nUdp6RcvbufErrors                \t4\n", "Udp6RcvbufErrors"),
            Some(4)
        );
    }

    #[test]
    fn datagrams_are_counted_once_and_compared() {
        let runs = Mutex::new(BTreeMap::new());
        let (mut datagram, mut expected) = (Vec::new(), Vec::new());
        for sequence in [0, 2, 1, 1] {
            write(9, sequence, 100, &mut datagram);
            count_one(&runs, &datagram, &mut expected);
        }
        datagram[50] ^= 1;
        count_one(&runs, &datagram, &mut expected);
        let counts = runs.into_inner().unwrap()[&9].counts.clone();
        assert_eq!(
            counts,
            UdpReceived { received: 3, duplicated: 1, reordered: 1, corrupt: 1, overflowed: 0 }
        );
    }
}
