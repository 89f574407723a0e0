//! Devices joined by a link and by a bridge, between driver-side rings of the test's own and real workers: each frame
//! arrives where it belongs, once, as its receiver agreed to take it, and what does not arrive is counted by name.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of a test stop it where something is not as it must be"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_engine::{Clock, Engine, EngineConfig, IdlePolicy, Watcher};
use ringway_pmd::counters::{DropReason, Example, QueueCounters, QueueStats};
use ringway_pmd::drivers::bridge::BridgeKind;
use ringway_pmd::drivers::link::LinkKind;
use ringway_pmd::net::offload::{HEAD_BYTES, NetHeader, Offload, Offloads, check, complete_checksum};
use ringway_pmd::net::{F_CSUM, F_GUEST_CSUM, F_GUEST_TSO4, F_HOST_TSO4, F_MRG_RXBUF, Mac, header_len};
use ringway_pmd::notify::EventFd;
use ringway_pmd::vdpa::{
    DeviceHost, DeviceSpec, Ended, FaultReporter, ManagementDevice, MgmtKind, NetSpec, Placer, QueueBinding,
    ServeError, ServedBy, VdpaDevice,
};
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::layout::{DriverConfig, Layout};
use ringway_ring::memory::HostMemory;
use ringway_ring::position::{Position, PositionPage};
use ringway_ring::queue::{Completion, DriverBuffer, DriverRing, Format, QueueConfig, RingSize};
use ringway_ring::tsc;

#[path = "../../engine/tests/common/allocations.rs"]
mod allocations;
#[path = "joined/announce.rs"]
mod announce;
#[path = "joined/bridges.rs"]
mod bridges;
#[path = "joined/changes.rs"]
mod changes;
#[path = "joined/frames.rs"]
mod frames;
#[path = "joined/halves.rs"]
mod halves;
#[path = "joined/links.rs"]
mod links;
#[path = "joined/nic.rs"]
mod nic;
#[path = "joined/offloads.rs"]
mod offloads;
#[path = "joined/parts.rs"]
mod parts;
#[path = "joined/policies.rs"]
mod policies;
#[path = "joined/quiet.rs"]
mod quiet;
#[path = "joined/races.rs"]
mod races;
#[path = "../src/net/tap/scene.rs"]
mod scene;
#[path = "joined/taps.rs"]
mod taps;
#[path = "joined/vlans.rs"]
mod vlans;
#[path = "joined/workers.rs"]
mod workers;

use frames::{frame, large, passes, payload};
use nic::{GPA, Nic, Nobody, RING, Setup};
use workers::{Deaf, engine, hold, is_alone, patient_engine, patient_sleeping_engine, with_descriptors};

const SOON: Duration = Duration::from_secs(20);
const WITHIN: Duration = Duration::from_secs(10);

fn link() -> Box<dyn ManagementDevice> {
    LinkKind.make("l", &BTreeMap::new(), 0).unwrap()
}

fn bridge(engine: &Engine) -> Box<dyn ManagementDevice> {
    BridgeKind.make("b", &BTreeMap::new(), engine.cores()[0]).unwrap()
}

fn all_formats() -> impl Iterator<Item = (Format, Format)> {
    let formats = [Format::Split, Format::Packed];
    formats.into_iter().flat_map(move |one| formats.map(|other| (one, other)))
}
