//! Captures of frames.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters of `capture`. Once it is answered, what follows on the connection is pcapng, until the client shuts its side
/// down or the capture ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CaptureRequest {
    /// The device.
    pub name: String,
    /// Only this queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<u16>,
    /// Only frames in this direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// Only frames that were dropped.
    #[serde(default)]
    pub drops: bool,
    /// Only frames that this lets pass: see `ringway capture --help`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Bytes of a frame at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snaplen: Option<u32>,
    /// Ends after so many frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// Where frames go, as Ringway sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// They come in: the guest, the kernel's interface or the function sent them.
    In,
    /// They go out: it is given them.
    Out,
}

/// Answer of `capture`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CaptureBegun {
    /// The device.
    pub capturing: String,
    /// Its queues whose frames are captured.
    pub queues: Vec<u16>,
    /// Bytes of a frame at most.
    pub snaplen: u32,
}

/// A capture that runs, or could not begin and waits for its end, in `dev.show`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CaptureInfo {
    /// Who captures.
    pub by: String,
    /// The queues.
    pub queues: Vec<u16>,
    /// Milliseconds since it began; of one that did not, since it was asked for.
    pub up_ms: u64,
    /// Frames that were written.
    pub captured: u64,
    /// Frames that found no room, since they came faster than they were taken.
    pub missed: u64,
    /// It is over, and what it waits for before its place is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
}
