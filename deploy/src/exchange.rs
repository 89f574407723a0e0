//! What two stations exchange, checked at both ends.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::agent::{EchoOrder, EchoReport, TcpEnd, TcpOrder, TcpReport, UdpOrder, UdpReceived, UdpSent};
use crate::ensure;
use crate::error::Result;
use crate::lab::wait_for;
use crate::pace::WATCHDOG;
use crate::station::Station;

/// The port on which [`serve`] has a station serve TCP.
pub const TCP_PORT: u16 = 5001;
/// The port on which [`serve`] has a station receive datagrams.
pub const UDP_PORT: u16 = 5002;

/// Has a station serve what the others here ask for; once in its life.
pub fn serve(station: &mut Station) -> Result<()> {
    station.tcp_serve(TCP_PORT)?;
    station.udp_receive(UDP_PORT)
}

/// Every size of an echo request that fits a packet of an MTU.
pub fn every_size(to: IpAddr, mtu: usize) -> EchoOrder {
    let longest = mtu - ip_bytes(to) - ICMP_BYTES;
    EchoOrder { to, shortest: 0, longest, step: 1, window: 16, quiet_ms: 5000 }
}

/// Some 40 sizes of echo requests that fit a packet of an MTU, in runs of requests that are under way at once: the shortest
/// and the longest, both sides of a frame's shortest length and of the powers of two, and steps between them.
pub fn border_sizes(to: IpAddr, mtu: usize) -> Vec<EchoOrder> {
    let longest = mtu - ip_bytes(to) - ICMP_BYTES;
    let run = |shortest, longest, step| EchoOrder { to, shortest, longest, step, window: 16, quiet_ms: 5000 };
    let shortest_frame = 60 - 14 - ip_bytes(to).min(20) - ICMP_BYTES;
    let mut runs = vec![run(0, 2, 1), run(shortest_frame - 1, shortest_frame + 1, 1)];
    let powers = [64, 256, 1024, 2048, 4096, 8192].into_iter().filter(|power| power + 1 < longest - 2);
    runs.extend(powers.map(|power| run(power - 1, power + 1, 1)));
    runs.extend([run(longest / 21, longest, longest / 21), run(longest - 2, longest, 1)]);
    runs
}

/// Sizes that need fragments: just above an MTU, and in steps up to what IPv4 can hold.
pub fn fragmented_sizes(to: IpAddr, mtu: usize) -> EchoOrder {
    let shortest = mtu - ip_bytes(to) - ICMP_BYTES + 1;
    EchoOrder { to, shortest, longest: 65_000, step: 4_999, window: 2, quiet_ms: 5000 }
}

/// Sends echo requests; every reply must come, once and equal.
pub fn echo(from: &mut Station, order: EchoOrder) -> Result<EchoReport> {
    let report = from.echo(order.clone())?;
    ensure!(
        report.sent > 0
            && report.received == report.sent
            && report.mismatched == 0
            && report.duplicated == 0
            && report.missing == 0,
        "{}: {order:?}: not every reply came, once and equal: {report:?}",
        from.name()
    );
    Ok(report)
}

/// Moves that many bytes each way at once by TCP; both ends must have digested the same.
pub fn tcp(from: &mut Station, to: &mut Station, address: IpAddr, bytes: u64) -> Result<TcpReport> {
    to.tcp_served(TCP_PORT)?;
    let seed = u64::from(new_run());
    let address = SocketAddr::new(address, TCP_PORT);
    let report = from.tcp(TcpOrder { to: address, seed, send_bytes: bytes, fetch_bytes: bytes })?;
    same_at_both_ends(&report, to, bytes)?;
    Ok(report)
}

/// An error unless the server's ends of both directions of a report are equal to it.
pub fn same_at_both_ends(report: &TcpReport, server: &mut Station, bytes: u64) -> Result<()> {
    let mut served: Vec<TcpEnd> = Vec::new();
    // A connection's end is seen by its server a little later.
    wait_for("the server's ends of both transfers", WATCHDOG, || {
        served.extend(server.tcp_served(TCP_PORT)?);
        Ok((served.len() >= 2).then_some(()))
    })?;
    for end in [&report.sent, &report.fetched].into_iter().flatten() {
        let other = served.iter().find(|other| other.seed == end.seed && other.sender != end.sender);
        ensure!(
            end.bytes == bytes
                && other.is_some_and(|other| other.bytes == bytes && other.sha256 == end.sha256),
            "the two ends differ: {end:?}, {served:?}"
        );
    }
    ensure!(report.sent.is_some() && report.fetched.is_some(), "a direction is missing: {report:?}");
    Ok(())
}

/// Sends that many datagrams of a size, so many a second, and gives both ends' counts once no more come.
pub fn udp(
    from: &mut Station,
    to: &mut Station,
    address: IpAddr,
    (packets, size, per_second): (u64, usize, u64),
) -> Result<(UdpSent, UdpReceived)> {
    let run = new_run();
    let address = SocketAddr::new(address, UDP_PORT);
    let sent = from.udp_send(UdpOrder { to: address, run, packets, size, per_second })?;
    let received = settled(to, run, sent.sent)?;
    ensure!(
        received.corrupt == 0 && received.duplicated == 0 && received.received <= sent.sent,
        "{} sent {sent:?}, {} received {received:?}",
        from.name(),
        to.name()
    );
    Ok((sent, received))
}

/// A run's counts once all have come, or no more come.
pub fn settled(to: &mut Station, run: u32, sent: u64) -> Result<UdpReceived> {
    let mut last = to.udp_received(UDP_PORT, run)?;
    for _ in 0..QUIET_LOOKS {
        if last.received == sent {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
        let now = to.udp_received(UDP_PORT, run)?;
        if now == last {
            break;
        }
        last = now;
    }
    Ok(last)
}

/// A number that tells an exchange from others.
pub fn new_run() -> u32 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (now.as_nanos() as u32) ^ (now.as_secs() as u32)
}

fn ip_bytes(to: IpAddr) -> usize {
    if to.is_ipv4() { 20 } else { 40 }
}

const ICMP_BYTES: usize = 8;
const QUIET_LOOKS: u32 = 50;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn border_sizes_are_some_forty_from_nothing_to_the_mtu() {
        let to = IpAddr::V4(Ipv4Addr::LOCALHOST);
        for mtu in [1500, 9000] {
            let runs = border_sizes(to, mtu);
            let sizes = runs.iter().flat_map(|run| (run.shortest..=run.longest).step_by(run.step));
            let sizes: Vec<usize> = sizes.collect();
            assert!((35..=55).contains(&sizes.len()), "{}", sizes.len());
            assert_eq!((sizes.iter().min(), sizes.iter().max()), (Some(&0), Some(&(mtu - 28))));
            assert!(sizes.contains(&18) && sizes.contains(&1025), "{sizes:?}");
        }
    }
}
