//! The kernel's vhost-net as the far side of a queue pair: a thread of the kernel moves frames between rings of ours and a TAP.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringway_pmd::notify::EventFd;
use ringway_ring::features::Features;
use ringway_ring::layout::Areas;
use ringway_ring::memory::HostMemory;
use rustix::process::{ForeignRawFd, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use vhost::net::VhostNet as _;
use vhost::vhost_kern::net::Net;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

use crate::error::BenchError;

/// Descriptors of both queues, as this suite has them and as the crate `vhost` does.
pub(crate) struct Handles {
    pub(crate) kick: [EventFd; 2],
    pub(crate) call: [EventFd; 2],
    pub(crate) events: Events,
}

/// The same eventfds: receive and transmit queue's, kick and call.
pub(crate) type Events = [[vmm_sys_util::eventfd::EventFd; 2]; 2];

impl Handles {
    pub(crate) fn new() -> Result<Handles, BenchError> {
        let event = || {
            vmm_sys_util::eventfd::EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
                .map_err(BenchError::system("cannot make an eventfd"))
        };
        let events = [[event()?, event()?], [event()?, event()?]];
        let [[rx_kick, rx_call], [tx_kick, tx_call]] = &events;
        let (kick, call) = ([ours(rx_kick)?, ours(tx_kick)?], [ours(rx_call)?, ours(tx_call)?]);
        Ok(Handles { kick, call, events })
    }
}

/// Another descriptor of the same eventfd.
fn ours(event: &vmm_sys_util::eventfd::EventFd) -> Result<EventFd, BenchError> {
    let copied = || {
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        pidfd_getfd(own, event.as_raw_fd() as ForeignRawFd, PidfdGetfdFlags::empty())
    };
    let copy = copied().map_err(|errno| BenchError::system("cannot copy an eventfd")(errno.into()))?;
    EventFd::from_peer(copy).map_err(BenchError::system("cannot take an eventfd"))
}

/// A queue pair in the kernel's hands.
pub(crate) struct VhostNet {
    net: Net<Arc<GuestMemoryMmap>>,
    /// Where the kernel tells what its thread has spent; None where it does not.
    pub(super) worker: Option<PathBuf>,
    /// Held for as long as the kernel uses them.
    _events: Events,
    _tap: File,
}

impl VhostNet {
    /// Gives the rings at `areas` of a memory that starts at `gpa` to the kernel, and a TAP's queue as their other side. The
    /// kernel's thread may run where the calling thread may.
    ///
    /// # Errors
    /// There is no vhost-net (`modprobe vhost_net`), or it refuses something.
    pub(crate) fn start(
        memory: &HostMemory,
        gpa: u64,
        features: Features,
        areas: [Areas<u64>; 2],
        entries: u16,
        events: Events,
        tap: OwnedFd,
    ) -> Result<VhostNet, BenchError> {
        let file =
            memory.file().try_clone_to_owned().map_err(BenchError::system("cannot copy a descriptor"))?;
        let size = memory.size();
        // A mapping of the same pages, in the form that the crate takes.
        let range = (GuestAddress(gpa), size as usize, Some(FileOffset::new(File::from(file), 0)));
        let map =
            GuestMemoryMmap::from_ranges_with_files([range]).map_err(|why| refused("its memory", &why))?;
        let start = map.get_host_address(GuestAddress(gpa)).map_err(|why| refused("its memory", &why))?;
        let userspace_addr = start.addr() as u64;
        let before = workers();
        let net = Net::new(Arc::new(map))
            .map_err(|why| refused("/dev/vhost-net (modprobe vhost_net; needs rights on it)", &why))?;
        let tap = File::from(tap);
        net.set_owner().map_err(|why| refused("its owner", &why))?;
        let offered = Features(net.get_features().map_err(|why| refused("its features", &why))?);
        let taken = Features(features.0 & offered.0);
        net.set_features(taken.0).map_err(|why| refused("the features", &why))?;
        net.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr,
            mmap_offset: 0,
            mmap_handle: -1,
        }])
        .map_err(|why| refused("the memory table", &why))?;
        for (queue, (areas, [kick, call])) in areas.iter().zip(&events).enumerate() {
            let ring = VringConfigData {
                queue_max_size: entries,
                queue_size: entries,
                flags: 0,
                desc_table_addr: areas.desc,
                used_ring_addr: areas.device,
                avail_ring_addr: areas.driver,
                log_addr: None,
            };
            let start = || {
                net.set_vring_num(queue, entries)?;
                net.set_vring_base(queue, 0)?;
                net.set_vring_addr(queue, &ring)?;
                net.set_vring_call(queue, call)?;
                net.set_vring_kick(queue, kick)
            };
            start().map_err(|why| refused("a ring", &why))?;
        }
        for queue in 0..areas.len() {
            net.set_backend(queue, Some(&tap)).map_err(|why| refused("the TAP", &why))?;
        }
        let worker = workers().into_iter().find(|worker| !before.contains(worker));
        Ok(VhostNet { net, worker, _events: events, _tap: tap })
    }

    /// Takes the rings back.
    ///
    /// # Errors
    /// The kernel does not give them.
    pub(crate) fn stop(self) -> Result<(), BenchError> {
        (0..2).try_for_each(|queue| self.net.set_backend(queue, None).map_err(|why| refused("to stop", &why)))
    }
}

/// Where the kernel tells what its threads of this process have spent: `vhost-PID`, threads of ours since Linux 6.4.
fn workers() -> Vec<PathBuf> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let is_worker = |thread: &Path| {
        std::fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.starts_with("vhost-"))
    };
    threads
        .map(|entry| entry.path())
        .filter(|path| is_worker(path))
        .map(|path| path.join("schedstat"))
        .collect()
}

fn refused(what: &str, why: &dyn std::fmt::Display) -> BenchError {
    BenchError::Peer { peer: "vhost-net".to_owned(), what: format!("{what}: {why}") }
}
