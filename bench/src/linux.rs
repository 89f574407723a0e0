//! A Linux guest as the load, for shape: the lab boots one under QEMU, its kernel's own driver on the back-end's sockets, and a
//! number of frames is sent and accounted for. The guest's processor is emulated: counts tell whether a back-end serves the driver
//! that most guests have, and nothing tells how fast.
//!
//! One port: each frame comes back with its addresses exchanged, and is compared with what was sent. Two: what one sends the
//! other's driver counts, both ways.

use std::time::Duration;

use ringway_lab::agent::{CastOrder, FramesOrder};
use ringway_lab::error::Error;
use ringway_lab::lab::{Lab, wait_for};
use ringway_lab::qemu::{Guest, Nic};
use serde::{Deserialize, Serialize};

use crate::backend::{Backend, Identity};
use crate::compare::{self, Setup};
use crate::error::BenchError;
use crate::options::{Job, Ring};
use ringway_guest::frame::Sizes;

/// What both back-ends did with a Linux guest's frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Ringway.
    pub ours: Served,
    /// The peer.
    pub peer: Served,
    /// What the counts are, in words.
    pub reading: String,
}

/// What a back-end did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Who it is.
    #[serde(flatten)]
    pub identity: Identity,
    /// The guest's kernel.
    pub kernel: String,
    /// Features that its driver negotiated, by their numbers.
    pub features: Vec<u32>,
    /// One for each way.
    pub ways: Vec<Account>,
}

/// What became of the frames of one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Given to the driver.
    pub sent: u64,
    /// Came, each counted once.
    pub received: u64,
    /// Did not come.
    pub lost: u64,
    /// Came again.
    pub duplicated: u64,
    /// Came as something else; None where what came is counted and not looked at.
    pub corrupt: Option<u64>,
}

impl Account {
    /// Every frame came, once and as it was sent.
    pub fn is_whole(&self) -> bool {
        self.sent > 0 && self.lost == 0 && self.duplicated == 0 && self.corrupt.unwrap_or(0) == 0
    }
}

/// Has each back-end serve a guest of its own, one after the other. Tells `progress` what it does.
///
/// # Errors
/// The lab or the peer is not here, or a guest does not come up.
pub fn shape(setup: &Setup, frames: u32, mut progress: impl FnMut(&str)) -> Result<Shape, BenchError> {
    let Sizes::Fixed(size) = setup.port.size else {
        return Err(BenchError::Usage("--driver linux sends frames of one size: --size BYTES".to_owned()));
    };
    progress("a Linux guest on the peer");
    let peer = compare::start_peer(setup, setup.cores.first().copied().unwrap_or_default())?;
    let peer = serve(&peer, setup, size, frames)?;
    progress("a Linux guest on ringwayd");
    let ours = serve(&compare::start_ours(setup)?, setup, size, frames)?;
    Ok(Shape { ours, peer, reading: READING.to_owned() })
}

fn serve(backend: &Backend, setup: &Setup, size: u16, frames: u32) -> Result<Served, BenchError> {
    let name = &backend.identity().name;
    let failed =
        |why: Error| BenchError::Peer { peer: format!("Linux guest on {name}"), what: why.to_string() };
    let nics: Vec<Nic> = (1u8..)
        .zip(backend.sockets())
        .map(|(number, socket)| {
            let nic = Nic::new(number, socket).packed(setup.port.ring == Ring::Packed).without_offloads();
            nic.ring_size(setup.port.queue_size.into())
        })
        .collect();
    let lab = Lab::quiet(&format!("bench-linux-{name}")).map_err(failed)?;
    let attempt = || {
        let mut guest = Guest::boot(&lab, "generator", 1, &nics)?;
        let mut features = Vec::new();
        for nic in &nics {
            let shown = guest.link_up(&nic.mac)?;
            features = (0..64).filter(|bit| shown.has(*bit)).collect();
        }
        let kernel = guest.shell("busybox uname -r")?.output.trim().to_owned();
        let ways = match (setup.job, nics.as_slice()) {
            (Job::Loopback, [nic, ..]) => vec![there_and_back(&mut guest, nic, size, frames)?],
            (_, [one, other, ..]) => {
                vec![
                    across(&mut guest, [one, other], size, frames)?,
                    across(&mut guest, [other, one], size, frames)?,
                ]
            }
            _ => return Err(Error::new("a link has two ports")),
        };
        guest.kill()?;
        Ok(Served { identity: backend.identity().clone(), kernel, features, ways })
    };
    attempt().map_err(failed)
}

/// Each frame comes back, and is compared.
fn there_and_back(guest: &mut Guest, nic: &Nic, size: u16, frames: u32) -> Result<Account, Error> {
    let report = guest.frames(FramesOrder {
        nic: nic.mac.clone(),
        shortest: size.into(),
        longest: size.into(),
        rounds: frames,
        window: UNDER_WAY,
        flows: 1,
        swapped: true,
        quiet_ms: QUIET_MS,
    })?;
    Ok(Account {
        sent: report.sent,
        received: report.received,
        lost: report.missing,
        duplicated: report.duplicated,
        corrupt: Some(report.corrupt),
    })
}

/// What one port sends comes to the other, whose driver counts it.
fn across(guest: &mut Guest, [from, to]: [&Nic; 2], size: u16, frames: u32) -> Result<Account, Error> {
    let before = guest.nic(&to.mac)?.rx_packets;
    let mut sent = 0;
    // No more at once than find room in a ring.
    while sent < u64::from(frames) {
        sent += guest.cast(CastOrder {
            nic: from.mac.clone(),
            destination: to.mac.clone(),
            source: from.mac.clone(),
            length: size.into(),
            frames: (u64::from(frames) - sent).min(UNDER_WAY.into()),
        })?;
        // Frames that do not come are told by the account.
        let _ = wait_for("frames at the other port", Duration::from_millis(QUIET_MS), || {
            Ok((guest.nic(&to.mac)?.rx_packets - before >= sent).then_some(()))
        });
    }
    let received = guest.nic(&to.mac)?.rx_packets - before;
    Ok(Account {
        sent,
        received: received.min(sent),
        lost: sent.saturating_sub(received),
        duplicated: received.saturating_sub(sent),
        corrupt: None,
    })
}

/// Frames under way at most.
const UNDER_WAY: u32 = 64;

/// Without a frame for so long, those that are out are lost.
const QUIET_MS: u64 = 3000;

const READING: &str =
    "counts of a guest whose processor is emulated: that its frames arrive, and nothing of speed";
