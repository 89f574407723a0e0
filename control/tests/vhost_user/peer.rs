//! rust-vmm's front-end as an opinion on the wire format that is not ours. It knows split rings only, 16-bit bases, and
//! kick and call descriptors only.

use std::os::fd::AsRawFd;

use ringway_ring::features::Features;
use ringway_ring::position::Position;
use ringway_ring::queue::{Completion, Format};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
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
