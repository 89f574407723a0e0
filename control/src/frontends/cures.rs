//! What operators are told of what front-ends and this host did: what it means, and what to do.

/// What a front-end did, in few words.
pub(crate) fn breach_meaning(what: &str) -> &'static str {
    match what {
        "mtu" => "the front-end wants a larger MTU than the device's: its guest has no network",
        "spoofed_mac" | "announced_address" => {
            "the front-end announced an address that the device may not have"
        }
        _ => "the front-end broke the vhost-user protocol",
    }
}

/// What to do about it.
pub(crate) fn breach_cure(what: &str) -> &'static str {
    match what {
        "mtu" => {
            "remove the device and add it with that mtu (QEMU with reconnect-ms then comes back by itself), or restart the VM with \
             a host_mtu that is not above the device's"
        }
        "spoofed_mac" => "give the guest the device's address, or set spoofchk off",
        _ => "another version of the VMM; report this with its version",
    }
}

/// What to do where this host lacks something.
pub(crate) fn host_cure(what: &str) -> &'static str {
    match what {
        "worker_stuck" => {
            "a worker had no core for seconds: leave the cores of `ringway core show` to ringwayd alone, and see its preemptions"
        }
        "device_stuck" | "memory_lost" => {
            "the device does not do what it is told: see the log of the kernel about it"
        }
        "device_unavailable" => {
            "the function cannot be opened now, as the detail says: the VM is served once it connects again"
        }
        "driver_refused" => {
            "the device cannot serve these queues, as the detail says: its guest gets them by a restart once that is mended"
        }
        "memory_not_mapped" => {
            "the host does not let the device reach the guest's memory: see LimitMEMLOCK of ringwayd's unit, and the detail"
        }
        "memory_map_failed" => {
            "the host has no memory or address space left: see ulimit -v and vm.max_map_count"
        }
        "eventfd" | "descriptors_short" => "ringwayd has no file descriptor left: raise its LimitNOFILE",
        "memory_short" => "the host has no memory or address space left: see ulimit -v and vm.max_map_count",
        "share_exceeded" => {
            "others hold the rest, as the detail says: remove a device, or raise the limit that it names"
        }
        _ => "see the log of ringwayd",
    }
}

/// What to do about a front-end whose connections end again and again.
pub(crate) const REPEATED_CURE: &str = "the front-end gives up by itself and tries again: its own log says why (queues, features or MTU that it does not get)";

/// What to do about a second front-end.
pub(crate) const REFUSED_CURE: &str = "end one of the two, or give the second VMM a device of its own";
