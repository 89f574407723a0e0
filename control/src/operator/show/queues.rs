//! What queues have counted, and what it means.

use ringway_pmd::counters::{DropReason, Example, QueueStats, RequestStats};
use ringway_pmd::vdpa::Class;
use ringway_ring::queue::RingFault;

use super::devices::lack_text;
use crate::daemon::Daemon;
use crate::devices::device::Device;
use crate::devices::life::Life;
use crate::fault::Fault;
use crate::frontends::session::{DeviceConfig, Lack};
use crate::operator::api::{Explained, Named, Queue, QueueInfo, RequestInfo, Vstats, VstatsShow};
use crate::operator::sample::{nanoseconds, sizes, times};

/// Devices that a hint names at most.
const MOST_NAMED: usize = 8;

impl Daemon {
    pub(crate) fn show_vstats(&self, queue: Queue) -> Result<VstatsShow, Fault> {
        let device = self.find(&queue.name)?;
        let all = || device.shared.counters.iter().enumerate();
        let info = |(index, counters): (usize, &std::sync::Arc<ringway_pmd::counters::QueueCounters>)| {
            let facts = &device.facts;
            let mut info = queue_info(facts.class, &facts.config, index as u32, &counters.snapshot());
            let ring = device.connection.as_ref().and_then(|connection| connection.rings.get(index));
            info.not_run = ring.and_then(|ring| ring.lacks).map(lack_text);
            let is_alone = |why: &&mut Explained| why.name == DropReason::PeerDown.name();
            if let Some(why) = info.explain.iter_mut().find(is_alone) {
                why.cure = self.peers(device);
            }
            info
        };
        let vstats = match queue.qidx {
            None => Vstats::All { queues: all().map(info).collect() },
            Some(qidx) => match all().find(|(index, _)| *index as u32 == qidx) {
                Some(found) => Vstats::One(Box::new(info(found))),
                None => {
                    return Err(Fault::not_found(format!(
                        "{} has no queue {qidx}: it has {} queues, counted from 0",
                        queue.name, device.facts.limits.max_vqs
                    ))
                    .at("qidx"));
                }
            },
        };
        Ok(VstatsShow { vstats: Named(vec![(queue.name, vstats)]) })
    }

    /// Who is at the other end of a device, as far as nothing can be delivered there.
    fn peers(&self, device: &Device) -> String {
        let mgmtdev = &device.entry.mgmtdev;
        let family = self.family(mgmtdev);
        let others = self.registry.devices().filter(|other| family.contains(&other.entry.mgmtdev));
        let mut others = others.filter(|other| other.id != device.id).peekable();
        if others.peek().is_none() {
            return format!("{mgmtdev} has no other device: ringway dev add name OTHER mgmtdev {mgmtdev}");
        }
        let down: Vec<String> =
            others.filter_map(|other| Some(format!("{}: {}", other.name(), not_reached(other)?))).collect();
        match down.get(MOST_NAMED..) {
            None | Some([]) if down.is_empty() => "none: by now every device there receives".to_owned(),
            None | Some([]) => down.join("; "),
            Some(more) => format!("{}; and {} more", down[..MOST_NAMED].join("; "), more.len()),
        }
    }
}

/// Why nothing can be delivered to a device, if nothing can.
fn not_reached(device: &Device) -> Option<String> {
    let Some(connection) = &device.connection else {
        return Some(
            if device.life == Life::Waiting { "no front-end" } else { device.life.name() }.to_owned(),
        );
    };
    let mut receives = connection.rings.iter().filter(|ring| ring.index.is_multiple_of(2));
    if receives.clone().any(|ring| ring.runs && ring.lacks.is_none()) {
        return None;
    }
    let why = receives.clone().find_map(|ring| ring.fault.map(|fault| format!("fault {fault}")));
    let lack = || receives.find_map(|ring| ring.lacks).map(|lack| lack.what().to_owned());
    Some(why.or_else(lack).unwrap_or_else(|| {
        if connection.is_ready() { "no receive queue runs" } else { "driver not up" }.to_owned()
    }))
}

pub(crate) fn queue_info(class: Class, config: &DeviceConfig, qidx: u32, stats: &QueueStats) -> QueueInfo {
    let queue_type = match class {
        Class::Net if qidx.is_multiple_of(2) => "rx",
        Class::Net => "tx",
        Class::Block => "request",
    };
    let drops = drops_of(class, stats).map(|(reason, count)| (reason.name(), count)).collect();
    let faults = stats.faults.iter().map(|(fault, count)| (fault.name(), *count)).collect();
    // Nothing was ever taken from the ring.
    let never = |reason: DropReason| {
        (reason == DropReason::NoRxBuffer && stats.received_desc == 0 && queue_type == "rx")
            .then_some(Lack::Buffers)
    };
    let dropped = stats.drops.iter().filter(|(_, count)| *count > 0).map(|(reason, count)| Explained {
        name: reason.name().to_owned(),
        count: *count,
        meaning: never(*reason).map_or(drop_meaning(*reason), Lack::what).to_owned(),
        example: example(*reason, stats, config),
        cure: never(*reason).map_or(reason.cure(), Lack::cure).to_owned(),
    });
    let faulted = stats.faults.iter().filter(|(_, count)| *count > 0).map(|(fault, count)| Explained {
        name: fault.name().to_owned(),
        count: *count,
        meaning: fault.to_string(),
        example: None,
        cure: fault_cure(*fault).to_owned(),
    });
    QueueInfo {
        queue_type: queue_type.to_owned(),
        received_desc: stats.received_desc,
        completed_desc: stats.completed_desc,
        qidx,
        packets: stats.packets,
        bytes: stats.bytes,
        calls: stats.calls,
        bursts: stats.bursts,
        burst_sizes: sizes(&stats.burst_sizes),
        latency: times(&stats.latency),
        sw_checksums: stats.checksums,
        sw_segmented: stats.segmented,
        sw_segments: stats.segments,
        netdev_calls: stats.netdev_calls,
        resubmitted: stats.resubmitted,
        held: stats.held,
        drops,
        faults,
        requests: stats.requests.iter().map(request_info).collect(),
        not_run: None,
        explain: dropped.chain(faulted).collect(),
    }
}

/// What the last frame was like that was dropped for a reason.
pub(super) fn example(reason: DropReason, stats: &QueueStats, config: &DeviceConfig) -> Option<String> {
    let config = config.net()?;
    let (_, example) = stats.examples.iter().find(|(known, _)| *known == reason)?;
    Some(match (reason, example) {
        (DropReason::SpoofedMac, Example::Address(from)) => {
            format!("last from {from}, the device's is {}", config.mac)
        }
        (_, Example::Address(to)) => format!("last to {to}"),
        (_, Example::Bytes(bytes)) => format!("last of {bytes} bytes"),
    })
}

fn request_info(stats: &RequestStats) -> RequestInfo {
    let hertz = ringway_ring::tsc::hertz();
    let took = |thousandths| nanoseconds(stats.took.per_mille(thousandths), hertz);
    RequestInfo {
        kind: stats.kind.name().to_owned(),
        count: stats.took.count(),
        bytes: stats.bytes,
        p50_ns: took(500),
        p99_ns: took(990),
        p999_ns: took(999),
        max_ns: nanoseconds(stats.took.longest(), hertz),
    }
}

/// The reasons that a device of this class can have, and how often each was.
fn drops_of(class: Class, stats: &QueueStats) -> impl Iterator<Item = (DropReason, u64)> {
    let is_its = move |(reason, _): &&(DropReason, u64)| DropReason::of(class).contains(reason);
    stats.drops.iter().filter(is_its).copied()
}

/// What a drop means, in few words.
pub(crate) fn drop_meaning(reason: DropReason) -> &'static str {
    match reason {
        DropReason::NoRxBuffer => "no receive buffer for longer than the bounded wait",
        DropReason::RxDisabled => "the receiving queue is stopped or disabled",
        DropReason::RxBufferTooSmall => "the frame does not fit the receive buffers",
        DropReason::Oversize => "the frame is longer than the MTU allows",
        DropReason::Runt => "the frame is shorter than an Ethernet header",
        DropReason::TxDisabled => "the sending queue is disabled",
        DropReason::BadOffload => "what the sender asks to be done to its frame does not fit it",
        DropReason::SpoofedMac => "the source address is not the device's",
        DropReason::PeerDown => "no device at the other end has a running receive queue",
        DropReason::RxOversize => "the frame is longer than the receiver's MTU allows",
        DropReason::FloodLimit => "more frames to everybody than the port may send",
        DropReason::NetdevDown => "the kernel's interface is down",
        DropReason::NetdevRefused => "the kernel did not take the frame",
        DropReason::ReservedAddress => "the frame is to an address that a bridge does not pass on",
        DropReason::SamePort => "sender and receiver are behind the same port",
        DropReason::UplinkFull => "the uplink had no room for the frame",
        DropReason::Reflected => "the function gave back a frame that was sent from here",
        DropReason::Vlan => "the port, or the one that it is for, does not carry the frame's VLAN",
        DropReason::RateLimit => "more than the port is given in a second",
        DropReason::LaneFull => "the core that serves the receiver did not take the frame in time",
        DropReason::Damaged => "the function received the frame damaged",
        DropReason::BeyondEnd => "the request is for sectors beyond the disk's end",
        DropReason::Misaligned => "the request is for less than whole blocks",
        DropReason::ReadOnly => "the disk is read-only",
        DropReason::Unsupported => "the disk does no such thing",
        DropReason::TooManySegments => "the request is in more pieces than the disk takes",
        DropReason::BadRange => "ranges are more or longer than the disk takes",
        DropReason::GuestMemory => "the guest's memory for the request is not there",
        DropReason::BackingFailed => "what is behind the disk failed",
    }
}

/// What clears a fault of a ring.
pub(crate) fn fault_cure(fault: RingFault) -> &'static str {
    match fault {
        RingFault::Poisoned => {
            "the VMM shrank the memory it shares: restart the VM, with memory-backend-memfd (sealed) and share=on"
        }
        RingFault::Unmapped => {
            "the guest's address is outside the memory its VMM shares: see that all of it is share=on; then reset the device in the guest"
        }
        RingFault::Direction | RingFault::TooShort => {
            "the guest's driver built a buffer that this queue cannot have: reset the device in the guest; if it comes again, its driver is broken or hostile"
        }
        RingFault::CallBlocked => {
            "the VMM filled the descriptor by which its guest is interrupted and made it block: restart the VM; if it comes again, its VMM is hostile"
        }
        RingFault::UsedIndex | RingFault::UsedId | RingFault::UsedLength => {
            "the function that the device stands on broke the rules of its own rings: reset the device in the guest; if it comes again, take another function"
        }
        _ => {
            "the guest's driver broke the rules of its ring: reset the device in the guest (reload its driver); if it comes again, the driver is broken or hostile"
        }
    }
}

#[cfg(test)]
mod tests {
    use ringway_pmd::net::{Mac, NetConfig};

    use super::*;

    #[test]
    fn what_was_dropped_or_faulted_is_explained_and_nothing_else() {
        let counters = ringway_pmd::counters::QueueCounters::default();
        counters.add_drops(DropReason::NoRxBuffer, 3);
        counters.add_fault(RingFault::Unmapped);
        let config = NetConfig { mac: Mac([2; 6]), mtu: 1500, max_vq_pairs: 1, link_up: true };
        let config = DeviceConfig::Net(config);
        let info = queue_info(Class::Net, &config, 1, &counters.snapshot());
        let names: Vec<_> = info.explain.iter().map(|e| (e.name.as_str(), e.count)).collect();
        assert_eq!(names, [("no_rx_buffer", 3), ("unmapped", 1)]);
        assert!(info.explain.iter().all(|e| !e.meaning.is_empty() && !e.cure.is_empty()));
        assert_eq!(
            (info.queue_type.as_str(), info.drops.has("runt"), info.drops.of("runt")),
            ("tx", true, 0)
        );
        // The last one stands for all.
        for (reason, example, text) in [
            (
                DropReason::SpoofedMac,
                Example::Address(Mac([6; 6])),
                "last from 06:06:06:06:06:06, the device's is 02:02:02:02:02:02",
            ),
            (DropReason::SamePort, Example::Address(Mac([0; 6])), "last to 00:00:00:00:00:00"),
            (DropReason::Oversize, Example::Bytes(9019), "last of 9019 bytes"),
        ] {
            counters.add_drops(reason, 1);
            counters.set_example(reason, Example::Bytes(1));
            counters.set_example(reason, example);
            let info = queue_info(Class::Net, &config, 1, &counters.snapshot());
            let shown = info.explain.iter().find(|why| why.name == reason.name()).unwrap();
            assert_eq!(shown.example.as_deref(), Some(text));
        }
    }
}
