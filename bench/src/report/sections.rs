//! Results of commands that have a form of their own: what they found, as charts and tables.
//!
//! Forms are read leniently: what a result lacks is left out here, and all of it stands in its tables.

// Ours beside a peer's.
mod compare;
// What a machine could do at best.
mod limits;
// Throughput and latency.
mod net;
// What a descriptor costs.
mod ring;
// How cost grows.
mod scale;
// The host's network behind a guest.
mod tap;

use super::html::Html;
use super::reading::Sourced;
use crate::record::Record;

pub(crate) use compare::comparison;
pub(crate) use ring::{PEER, paths};
pub(crate) use scale::scaled;

/// What a command measures, in words.
pub(crate) fn words(command: &str) -> &'static str {
    match command {
        "compare" => {
            "The same job by Ringway and by a peer: one port whose frames go back with their addresses exchanged \
             (loopback, net), two ports joined untouched (link), or a disk (blk). Rounds were taken in turns on the same cores with the same load; the \
             ratio is that of the medians of packets or requests a second, its whiskers those of the quartiles. Touch: the load reads and \
             writes only headers, or every byte, or (none) only descriptors. Generator-bound: the load alone, beside a back-end that does \
             nothing, did less than 1.5 times what the faster one did, so that the ratio says less than there is. Busy cycles: what \
             each back-end says it spent on a packet in turns that moved something. Rounds of one state of the machine count, by what \
             a cache line costs from core to core; those of others are told."
        }
        "net" => {
            "A load generator as a guest's driver over a device's socket. Throughput counts frames that came back intact; \
             latency is from the intended time of sending to receipt, so that a stall counts for every frame that it delayed. \
             Whiskers: lowest and highest round."
        }
        "blk" => {
            "A load generator as a guest's driver over a disk's socket. Requests count that were completed; every block that is read \
             is checked, unless nothing is touched. Latency is from the intended time of submission to completion. Whiskers: \
             lowest and highest round."
        }
        "scale" => {
            "How cost grows. Every count is measured in passes there and back, and related to the first count within the same \
             pass (median and quartiles); slices of time in which a core was away are discarded. Cycles a packet are the worker's own: they tell of a \
             cost that throughput hides while the guests are the slower side."
        }
        "ring" => {
            "What one descriptor costs in each ring format, on either side, by the number of chains in a batch and of descriptors \
             in a chain; beside rust-vmm's virtio-queue at the same work."
        }
        "tap" => {
            "The host's network behind a guest, through Ringway's tap/IFNAME beside another way to a TAP: a plain reader and writer of \
             it (a program of the host, without virtqueues), or the kernel's vhost-net. TCP leaves checksums and segmentation to the \
             other side, so that a frame has up to 64 KiB; UDP negotiates no offload. Rounds were taken in turns; rates are what the \
             receiver had, which compares all of it with what was sent."
        }
        "limits" => "What this machine could do at best: the floor that results are held against.",
        "idle" => "What connected devices cost while nobody uses them.",
        _ => "A command that this report knows no form of.",
    }
}

/// Whether a record has a form that is drawn here.
pub(crate) fn knows(record: &Record) -> bool {
    match record.command.as_str() {
        "compare" => comparison(record).is_some() || compare::shape(record).is_some(),
        "net" | "blk" => net::runs(record).is_some(),
        "ring" => ring::paths(record).is_some(),
        "tap" => tap::compared(record).is_some(),
        "scale" => !scaled(record).is_empty(),
        _ => false,
    }
}

/// Draws what the records of one command found, as far as their form is known.
pub(crate) fn draw(html: &mut Html, command: &str, records: &[&Sourced]) {
    match command {
        "compare" => compare::draw(html, records),
        "net" => net::draw(html, records, &net::FRAMES),
        "blk" => net::draw(html, records, &net::REQUESTS),
        "ring" => records.iter().for_each(|sourced| ring::draw(html, sourced)),
        "tap" => tap::draw(html, records),
        "limits" => records.iter().for_each(|sourced| limits::draw(html, sourced)),
        "scale" => {
            let known = records.iter().filter(|sourced| knows(&sourced.record));
            known.for_each(|sourced| scale::draw(html, sourced));
        }
        _ => {}
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A record made here.
    pub(crate) fn record(command: &str, parameters: Value, result: Value) -> Record {
        Record {
            suite: crate::record::SUITE.to_owned(),
            schema: crate::record::SCHEMA,
            command: command.to_owned(),
            words: vec![command.to_owned()],
            at: 0,
            host: crate::host::Host::read(),
            parameters,
            result,
        }
    }

    #[test]
    fn records_of_another_form_are_not_known() {
        assert!(!knows(&record("net", json!({}), json!({"split": []}))));
        assert!(!knows(&record("compare", json!({}), json!({"ratio": 1}))));
        assert!(!knows(&record("scale", json!({}), json!({"idle": 1}))));
        assert!(knows(&record("scale", json!({}), json!({"idle": {"over": "x", "points": []}}))));
    }
}
