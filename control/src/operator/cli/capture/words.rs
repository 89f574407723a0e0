//! The words of `ringway capture`.

use crate::fault::{Fault, nearest, printable};
use crate::operator::api::{CaptureRequest, Direction};
use crate::operator::cli::requests::number;

/// What `capture` asks for.
///
/// # Errors
/// A word that is none of its, or a value that is missing or cannot be read.
pub(crate) fn capture_request(name: &str, words: &[String]) -> Result<CaptureRequest, Fault> {
    let mut request = CaptureRequest { name: name.to_owned(), ..CaptureRequest::default() };
    let mut seen: Vec<&str> = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let word = word.as_str();
        if seen.contains(&word) {
            return Err(Fault::usage(format!("{} is given twice", printable(word))).at(word));
        }
        seen.push(word);
        if word == "drops" {
            request.drops = true;
            continue;
        }
        if !CAPTURE_WORDS.contains(&word) {
            let why = format!("`{}` is no word of capture", printable(word));
            let near = nearest(word, CAPTURE_WORDS.iter().copied().chain(["drops"]));
            return Err(Fault::usage(why).hint(match near {
                Some(near) => format!("did you mean {near}?"),
                None if seen.contains(&"filter") => "the filter is one word: in quotes".to_owned(),
                None => format!("{}, drops", CAPTURE_WORDS.join(", ")),
            }));
        }
        let Some(value) = words.next() else {
            return Err(Fault::usage(format!("{word} has no value")).at(word).hint("ringway capture --help"));
        };
        match word {
            "queue" => request.queue = Some(number(word, value)?),
            "snaplen" => request.snaplen = Some(number(word, value)?),
            "count" => request.count = Some(number(word, value)?),
            "filter" => request.filter = Some(value.clone()),
            _ => {
                request.direction = Some(match value.as_str() {
                    "in" => Direction::In,
                    "out" => Direction::Out,
                    other => {
                        let why = format!("direction `{}`", printable(other));
                        return Err(Fault::usage(why).at("direction").hint("direction in, or direction out"));
                    }
                });
            }
        }
    }
    Ok(request)
}

/// Words of `capture` that have a value.
const CAPTURE_WORDS: [&str; 5] = ["queue", "direction", "filter", "snaplen", "count"];

/// Words of `capture`, and what they mean.
pub(crate) const CAPTURED: [(&str, &str); 6] = [
    ("queue N", "only this queue, as ringway dev vstats show counts them"),
    (
        "direction in|out",
        "in: what the guest, the kernel's interface or the function sent; out: what it was given",
    ),
    ("drops", "only frames that were dropped; each has its reason as a comment"),
    ("filter EXPR", "only frames that EXPR lets pass; it is one word, in quotes"),
    ("snaplen N", "so many bytes of each frame at most [default: 262144]"),
    ("count N", "end after so many frames"),
];

/// What is said of a capture beside.
pub(crate) const CAPTURE_TEXT: [&str; 2] = [
    "EXPR is in the words of pcap-filter(7): arp, ip, ip6, tcp, udp, icmp, icmp6, broadcast, multicast, vlan [VID], \
     ethertype N, proto N; mac MAC, host ADDRESS, net ADDRESS/BITS, port N, each with src or dst before it or without; joined by \
     and, or, not and parentheses. All of them look behind VLAN tags.",
    "Frames are as their sender left them: before a checksum is completed or a segment cut. One that goes from one guest to \
     another is in the captures of both. What comes faster than it is written is missed and counted, in the file and at the end; it \
     delays nobody. The file is its owner's alone to read. Ends with Ctrl-C.",
];

/// What stands below the help of `capture`.
pub(crate) fn capture_help() -> String {
    let lines = CAPTURED.iter().map(|(word, meaning)| format!("  {word:<18} {meaning}"));
    format!(
        "Keywords:\n{}\n\n{}\n\nExamples: ringway capture vm0 filter 'arp or port 53' count 20 -w - | tcpdump -nr -\n          \
         ringway capture vm0 drops -w vm0-drops.pcapng",
        lines.collect::<Vec<_>>().join("\n"),
        CAPTURE_TEXT.join("\n\n")
    )
}
