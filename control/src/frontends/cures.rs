//! What operators are told of what front-ends and this host did: what it means, and what to do. By the stable short names under
//! which it is counted.

/// Something by its name.
pub(crate) struct Told {
    pub(crate) name: &'static str,
    pub(crate) meaning: &'static str,
    /// The next step.
    pub(crate) cure: &'static str,
}

const fn told(name: &'static str, meaning: &'static str, cure: &'static str) -> Told {
    Told { name, meaning, cure }
}

const REPORT: &str = "another version of the VMM; report this with its version";
const SHARE: &str =
    "give the VM memory that can be shared: ringway dev show NAME --qemu, or --libvirt, prints it (share=on)";

/// What a front-end may do that is against vhost-user, or that it cannot have.
pub(crate) const BREACHES: [Told; 38] = [
    told("announced_address", "it announced its guest under an address that no NIC has", REPORT),
    told(
        "answer_unread",
        "it left an answer unread for 10 s, and was disconnected",
        "see in the VMM's log why it stood still; it is served once it connects again",
    ),
    told("backend_channel", "the channel that it gave for requests of ours is no stream socket", REPORT),
    told("config_range", "it named bytes beyond the configuration space", REPORT),
    told("config_read_only", "it wrote what of the configuration space is only read", REPORT),
    told("config_value", "it wrote a value to the configuration space that it cannot have", REPORT),
    told(
        "eventfd",
        "an eventfd could not be made for a queue that it polls",
        "see the detail: what the kernel says",
    ),
    told("features", "it took features that were not offered, or changed them while rings run", REPORT),
    told("illegal_event", "a request came where none of its kind can be", REPORT),
    told("inflight_queues", "it asked for records of another number of queues than there are", REPORT),
    told(
        "inflight_region",
        "the records of requests under way that it gave back are not those of this device, or are damaged",
        "restart the VM: what was under way is not done again then",
    ),
    told(
        "memory_beyond_device",
        "memory of its guest lies where the device's function cannot reach it",
        "less memory for the VM, or a device without a function of hardware",
    ),
    told(
        "memory_beyond_file",
        "it shared more of a file than that has",
        "see that nothing cuts the file of the VM's memory short",
    ),
    told("memory_map_failed", "memory that it shares cannot be mapped", SHARE),
    told("memory_no_such_region", "it took a region back that it had not given", REPORT),
    told(
        "memory_not_shareable",
        "what it gave as its guest's memory is no file of shared memory or hugepages",
        SHARE,
    ),
    told("memory_overlap", "it gave two regions of memory that lie over each other", REPORT),
    told(
        "memory_region",
        "it gave a region of memory that can be none: empty, or beyond all addresses",
        REPORT,
    ),
    told(
        "memory_too_much",
        "it shared more regions, or more bytes, than one guest may have",
        "fewer memory devices for the VM, or less memory",
    ),
    told("message_fds", "a message came with other descriptors than it must have", REPORT),
    told("message_oversize", "a message claimed to be longer than any is", REPORT),
    told("message_reply", "a request was marked as an answer", REPORT),
    told("message_size", "a message had another length than it must have", REPORT),
    told(
        "message_stalled",
        "a message that was begun did not end within 10 s",
        "see in the VMM's log why it stood still; it is served once it connects again",
    ),
    told(
        "message_truncated",
        "it closed the connection inside a message",
        "see in the VMM's log why it ended",
    ),
    told(
        "message_version",
        "a message was of another version than 1: it may not speak vhost-user",
        "see who connects to the device's socket",
    ),
    told(
        "mtu",
        "the front-end wants a larger MTU than the device's: its guest has no network",
        "remove the device and add it with that mtu (QEMU with reconnect-ms then comes back by itself), or restart the VM with \
         a host_mtu that is not above the device's",
    ),
    told("not_an_eventfd", "it gave something else than an eventfd to be kicked or called by", REPORT),
    told("protocol_features", "it took features of the protocol that were not offered", REPORT),
    told("request_not_negotiated", "a request needs a feature of the protocol that it did not take", REPORT),
    told("request_unknown", "a request has a number that vhost-user has not", REPORT),
    told("request_unsupported", "a request is none of those that are served", REPORT),
    told("ring_enable", "a ring was to be enabled with a value that is neither 0 nor 1", REPORT),
    told(
        "ring_index",
        "it named a ring that the device has not",
        "no more queues in the VM than the device has: ringway dev show NAME",
    ),
    told("ring_log", "it wants a ring's writes logged at an address that cannot be", REPORT),
    told(
        "ring_size",
        "it gave a ring a size that it cannot have",
        "rx_queue_size and tx_queue_size, or num-queues and queue-size, of the VM as ringway dev show NAME has them",
    ),
    told(
        "spoofed_mac",
        "the front-end announced an address that the device may not have",
        "give the guest the device's address, or set spoofchk off",
    ),
    told("status", "it told a status that virtio has not", REPORT),
];

/// What this host may lack that a session needs.
pub(crate) const HOST_FAILURES: [Told; 14] = [
    told("descriptors_short", "the process has no descriptor left for it", NO_DESCRIPTOR),
    told("device_stuck", "a device did not come back from what it was told", NOT_OBEYED),
    told(
        "device_unavailable",
        "the function behind the device cannot be opened",
        "the function cannot be opened now, as the detail says: the VM is served once it connects again",
    ),
    told(
        "driver_refused",
        "the driver cannot have these queues served",
        "the device cannot serve these queues, as the detail says: its guest gets them by a restart once that is mended",
    ),
    told("eventfd", "an eventfd could not be made", NO_DESCRIPTOR),
    told("inflight_region", "there is nothing to keep records of requests under way in", NO_MEMORY),
    told("memory_lost", "the device lost the guest's memory", NOT_OBEYED),
    told("memory_map_failed", "the guest's memory could not be mapped", NO_MEMORY),
    told(
        "memory_not_mapped",
        "the guest's memory could not be mapped for the device",
        "the host does not let the device reach the guest's memory: see LimitMEMLOCK of ringwayd's unit, and the detail",
    ),
    told("memory_short", "the process has no memory or address space left for it", NO_MEMORY),
    told("revoked", "the device was removed meanwhile", "none: that is what was asked for"),
    told(
        "share_exceeded",
        "it would have more of what all share than one may",
        "others hold the rest, as the detail says: remove a device, or raise the limit that it names",
    ),
    told(
        "worker_refused",
        "no worker took the queues",
        "ringway core show: fewer devices on that core, or another core",
    ),
    told(
        "worker_stuck",
        "a worker did not let go of the queues in time",
        "a worker had no core for seconds: leave the cores of `ringway core show` to ringwayd alone, and see its preemptions",
    ),
];

const NO_DESCRIPTOR: &str = "ringwayd has no file descriptor left: raise its LimitNOFILE";
const NO_MEMORY: &str = "the host has no memory or address space left: see ulimit -v and vm.max_map_count";
const NOT_OBEYED: &str = "the device does not do what it is told: see the log of the kernel about it";

fn find(all: &'static [Told], name: &str) -> Option<&'static Told> {
    all.iter().find(|told| told.name == name)
}

/// What a front-end did, in few words.
pub(crate) fn breach_meaning(what: &str) -> &'static str {
    find(&BREACHES, what).map_or("the front-end broke the vhost-user protocol", |told| told.meaning)
}

/// What to do about it.
pub(crate) fn breach_cure(what: &str) -> &'static str {
    find(&BREACHES, what).map_or(REPORT, |told| told.cure)
}

/// What to do where this host lacks something.
pub(crate) fn host_cure(what: &str) -> &'static str {
    find(&HOST_FAILURES, what).map_or("see the log of ringwayd", |told| told.cure)
}

/// What to do about a front-end whose connections end again and again.
pub(crate) const REPEATED_CURE: &str = "the front-end gives up by itself and tries again: its own log says why (queues, features or MTU that it does not get)";

/// What to do about a second front-end.
pub(crate) const REFUSED_CURE: &str = "end one of the two, or give the second VMM a device of its own";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// The names that the sources of front-ends have for what is against the protocol, and for what a host lacks.
    fn named() -> BTreeSet<String> {
        let mut files = vec![];
        for folder in ["src/frontends", "vhost-user/src"] {
            collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut files);
        }
        let mut named = BTreeSet::new();
        for file in files.iter().filter(|file| !file.ends_with("cures.rs")) {
            let text = std::fs::read_to_string(file).unwrap();
            let text = text.split("mod tests {").next().unwrap();
            for call in [
                "Refusal::breach(",
                "Refusal::soft(",
                "Refusal::short(",
                "Refusal::system(",
                "misbehaved(&mut self.plane,",
                "what:",
            ] {
                named.extend(text.split(call).skip(1).filter_map(literal));
            }
            // Errors that have a name of their own.
            let own = [
                "fn name(&self) -> &'static str {",
                "fn name(self) -> &'static str {",
                "fn breach(&self) -> Option<&'static str> {",
            ];
            for body in own.iter().flat_map(|head| text.split(head).skip(1)) {
                let body = body.split("\n    }\n").next().unwrap();
                named.extend(body.split("=>").skip(1).filter_map(|arm| {
                    literal(arm.trim_start().trim_start_matches("Some(").trim_start_matches('{'))
                }));
            }
        }
        named
    }

    fn literal(text: &str) -> Option<String> {
        let name = text.trim_start().strip_prefix('"')?.split('"').next()?;
        let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        is_name.then(|| name.to_owned())
    }

    fn collect(folder: &Path, files: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => collect(&path, files),
                false => files.push(path),
            }
        }
    }

    #[test]
    fn every_name_that_is_counted_has_its_meaning_and_its_cure() {
        let told: BTreeSet<String> =
            BREACHES.iter().chain(&HOST_FAILURES).map(|told| told.name.to_owned()).collect();
        let named = named();
        assert!(named.len() > 30 && named.contains("message_truncated") && named.contains("worker_stuck"));
        let untold: Vec<_> = named.difference(&told).collect();
        assert!(untold.is_empty(), "without a meaning: {untold:?}");
        // These names are those of constants, or of what every failure of the system comes to.
        let known = ["spoofed_mac", "worker_refused"];
        let nobodys: Vec<_> =
            told.difference(&named).filter(|name| !known.contains(&name.as_str())).collect();
        assert!(nobodys.is_empty(), "nobody counts: {nobodys:?}");
        for all in [&BREACHES[..], &HOST_FAILURES] {
            assert!(all.iter().all(|told| !told.meaning.is_empty() && !told.cure.is_empty()));
            assert!(all.is_sorted_by(|a, b| a.name < b.name), "in order, each once");
        }
    }
}
