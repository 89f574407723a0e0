//! rust-vmm's front-end as an opinion on the wire format that is not ours. It knows split rings only, 16-bit bases, and
//! kick and call descriptors only.

use std::os::fd::AsRawFd;

use ringway_pmd::block::{F_CONFIG_WCE, F_FLUSH, F_MQ};
use ringway_ring::features::Features;
use ringway_ring::position::Position;
use ringway_ring::queue::{Completion, DriverBuffer, DriverRing, Format};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserInflight, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::support::*;

fn region(rig: &Rig) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: Rig::GPA,
        memory_size: rig.memory.size(),
        userspace_addr: rig.memory.address(),
        mmap_offset: 0,
        mmap_handle: rig.memory.file().as_raw_fd(),
    }
}

fn addresses(rig: &Rig, queue: u32) -> VringConfigData {
    let addr = rig.addr(queue);
    VringConfigData {
        queue_max_size: Rig::SIZE,
        queue_size: Rig::SIZE,
        flags: 0,
        desc_table_addr: addr.desc,
        used_ring_addr: addr.device,
        avail_ring_addr: addr.driver,
        log_addr: None,
    }
}

#[test]
fn rust_vmm_front_end_gets_through_set_up_traffic_and_stop() {
    for acknowledged in [false, true] {
        let (_running, stream) = start_sim("rustvmm", 2);
        let mut peer = Frontend::from_stream(stream, 4);
        peer.set_owner().unwrap();
        let offered = peer.get_features().unwrap();
        let rig = Rig::new(Format::Split, 2);
        let features = rig.features | Features::PROTOCOL_FEATURES;
        assert!(Features(offered).contains(features));
        let protocol = peer.get_protocol_features().unwrap();
        let names = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::STATUS;
        assert!(protocol.contains(names), "{protocol:?}");
        let unsure = VhostUserProtocolFeatures::GPA_ADDRESSES | VhostUserProtocolFeatures::SHMEM;
        assert!(!protocol.intersects(unsure), "{protocol:?}");
        let mut wanted = names;
        if acknowledged {
            wanted |= VhostUserProtocolFeatures::REPLY_ACK;
        }
        peer.set_protocol_features(wanted).unwrap();
        if acknowledged {
            peer.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        }
        peer.set_features(features.0).unwrap();
        assert_eq!(peer.get_queue_num().unwrap(), 2);
        assert_eq!(peer.get_max_mem_slots().unwrap(), 509);
        let (_, config) = peer.get_config(6, 6, VhostUserConfigFlags::empty(), &[0; 6]).unwrap();
        assert_eq!(config[4..6], 9000u16.to_le_bytes());
        peer.set_mem_table(&[region(&rig)]).unwrap();

        let base = 65533;
        let at = Position { avail_idx: base, used_idx: base, ..Position::START };
        let mut pair = HandPair::new(&rig, 0, at);
        let new = || EventFd::new(EFD_NONBLOCK).unwrap();
        let (kick, call, err) = (new(), new(), new());
        for queue in 0..2 {
            peer.set_vring_num(queue, Rig::SIZE).unwrap();
            peer.set_vring_addr(queue, &addresses(&rig, queue as u32)).unwrap();
            peer.set_vring_base(queue, base).unwrap();
            peer.set_vring_call(queue, &call).unwrap();
            peer.set_vring_kick(queue, &kick).unwrap();
            peer.set_vring_err(queue, &err).unwrap();
            peer.set_vring_enable(queue, true).unwrap();
        }
        let mut done = [Completion::default(); 4];
        for _ in 0..20 {
            pair.rx.enable_calls();
            pair.post(1);
            pair.send(1);
            kick.write(1).unwrap();
            let mut came = 0;
            eventually(|| {
                pair.tx.collect(&mut done).unwrap();
                came += pair.rx.collect(&mut done).unwrap();
                came == 1
            });
            eventually(|| call.read().is_ok());
        }
        assert!(err.read().is_err());
        for queue in 0..2 {
            assert_eq!(peer.get_vring_base(queue).unwrap(), u32::from(base.wrapping_add(20)));
        }
        // Memory region by region, then a reset, then everything again.
        peer.reset_device().unwrap();
        let other = Rig::new(Format::Split, 2);
        let other = VhostUserMemoryRegionInfo { guest_phys_addr: 1 << 40, ..region(&other) };
        peer.add_mem_region(&other).unwrap();
        peer.remove_mem_region(&other).unwrap();
        if acknowledged {
            assert!(peer.remove_mem_region(&other).is_err());
            assert!(peer.set_vring_num(3, 0).is_err());
        }
        assert_eq!(peer.get_features().unwrap(), offered);
    }
}

/// A disk's header, data and status lie in buffers of their own of queue `queue`.
fn ask(
    rig: &Rig,
    ring: &mut dyn DriverRing,
    queue: u32,
    kind: u32,
    sector: u64,
    data: Option<(bool, &[u8])>,
) {
    let place = |n| rig.buffer(queue, n);
    let write = |gpa, bytes: &[u8]| rig.map.resolve(gpa, bytes.len() as u64).unwrap().write(bytes);
    write(place(0), &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
    write(place(2), &[0xff]);
    let mut chain = vec![DriverBuffer { gpa: place(0), len: 16, writable: false }];
    if let Some((writable, bytes)) = data {
        write(place(1), bytes);
        chain.push(DriverBuffer { gpa: place(1), len: bytes.len() as u32, writable });
    }
    chain.push(DriverBuffer { gpa: place(2), len: 1, writable: true });
    ring.add(&chain, 0).unwrap();
    ring.publish();
}

#[test]
fn rust_vmm_front_end_gets_through_set_up_requests_and_stop_of_a_disk() {
    for acknowledged in [false, true] {
        let device = sim_blk("rustvmm-disk", 2);
        let of_device = shared("rustvmm-disk", &*device);
        let (_running, stream) = start(device, of_device);
        let mut peer = Frontend::from_stream(stream, 4);
        peer.set_owner().unwrap();
        let rig = Rig::new(Format::Split, 2);
        let features = rig.features | Features::PROTOCOL_FEATURES | F_FLUSH | F_CONFIG_WCE | F_MQ;
        assert!(Features(peer.get_features().unwrap()).contains(features));
        let mut wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        assert!(peer.get_protocol_features().unwrap().contains(wanted));
        if acknowledged {
            wanted |= VhostUserProtocolFeatures::REPLY_ACK;
        }
        peer.set_protocol_features(wanted).unwrap();
        if acknowledged {
            peer.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        }
        peer.set_features(features.0).unwrap();
        assert_eq!(peer.get_queue_num().unwrap(), 2);
        // cloud-hypervisor's length: that of the whole structure as Linux has it.
        let flags = VhostUserConfigFlags::WRITABLE;
        let (_, config) = peer.get_config(0, 60, flags, &[0; 60]).unwrap();
        assert_eq!((&config[..8], config[32], config[34]), (&2048u64.to_le_bytes()[..], 1, 2));
        peer.set_config(32, flags, &[0]).unwrap();
        assert_eq!(peer.get_config(32, 1, flags, &[1]).unwrap().1, [0], "writes are durable from now on");
        // The structure is padded to 24 bytes, as QEMU's.
        let records = VhostUserInflight::new(0, 0, 2, Rig::SIZE);
        let (records, file) = peer.get_inflight_fd(&records).unwrap();
        assert_eq!((records.num_queues, records.queue_size), (2, Rig::SIZE));
        assert_eq!(file.metadata().unwrap().len(), records.mmap_size);
        peer.set_inflight_fd(&records, file.as_raw_fd()).unwrap();
        peer.add_mem_region(&region(&rig)).unwrap();

        let base = 65533;
        let at = Position { avail_idx: base, used_idx: base, ..Position::START };
        let mut rings = [0, 1].map(|queue| rig.driver(queue, at));
        let new = || EventFd::new(EFD_NONBLOCK).unwrap();
        let (kick, call, err) = (new(), new(), new());
        for queue in 0..2 {
            peer.set_vring_num(queue, Rig::SIZE).unwrap();
            peer.set_vring_addr(queue, &addresses(&rig, queue as u32)).unwrap();
            peer.set_vring_base(queue, base).unwrap();
            // Before the call: what was kicked meanwhile is not lost.
            peer.set_vring_kick(queue, &kick).unwrap();
            peer.set_vring_call(queue, &call).unwrap();
            peer.set_vring_err(queue, &err).unwrap();
            peer.set_vring_enable(queue, true).unwrap();
        }
        let mut done = [Completion::default(); 4];
        let mut data = [0; 1024];
        // Sectors 7 and 8 are written through one queue and read through the other; more than the ring has until its end.
        for turn in 0..10u8 {
            let (write, read) = ((false, [turn; 1024]), (true, [0xee; 1024]));
            for (queue, kind, bytes) in [(0, 1, Some(write)), (1, 0, Some(read)), (0, 4, None)] {
                let ring = &mut *rings[queue as usize];
                ring.enable_calls();
                let data = bytes.as_ref().map(|(writable, bytes)| (*writable, &bytes[..]));
                ask(&rig, ring, queue, kind, if kind == 4 { 0 } else { 7 }, data);
                kick.write(1).unwrap();
                eventually(|| ring.collect(&mut done).unwrap() == 1);
                assert_eq!(done[0].written, if kind == 0 { 1025 } else { 1 });
                eventually(|| call.read().is_ok());
                let mut status = [0xff];
                rig.map.resolve(rig.buffer(queue, 2), 1).unwrap().read(&mut status);
                assert_eq!(status, [0], "request {kind} of turn {turn}");
            }
            rig.map.resolve(rig.buffer(1, 1), 1024).unwrap().read(&mut data);
            assert_eq!(data, [turn; 1024]);
        }
        assert!(err.read().is_err());
        for (queue, requests) in [(0, 20), (1, 10)] {
            assert_eq!(peer.get_vring_base(queue).unwrap(), u32::from(base.wrapping_add(requests)));
        }
        if acknowledged {
            // Read-only: the capacity is the device's.
            assert!(peer.set_config(0, flags, &[0; 8]).is_err());
        }
        peer.remove_mem_region(&region(&rig)).unwrap();
    }
}
