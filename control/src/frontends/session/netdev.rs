//! The session of a device whose other side is a kernel's interface: no front-end and no socket, else as any session. It
//! opens the interface, obeys commands, looks now and then at what others change of the interface, and ends when the interface is gone, or the function of an uplink of no use any more, so that control has it opened again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ringway_pmd::vdpa::Ended;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::plane::EnginePlane;
use super::run::text_of;
use super::{Command, DeviceConfig, DeviceShared, Inbox, NetdevSetup, Report, RingReport};
use crate::frontends::budget::Lease;
use crate::frontends::virtdev::Plane;
use crate::host::look::LOOK_EVERY;

/// Why a session ends whose function says so.
const NEEDS_RESET: &str = "the function needs a reset";

/// Runs a session to its end.
pub(super) fn run(setup: NetdevSetup, inbox: &Inbox) {
    let NetdevSetup { id, device, shared, engine, reports } = setup;
    let mut plane = EnginePlane::new(
        id,
        device,
        Arc::clone(&shared),
        engine,
        Arc::new(Lease::alone()),
        reports.clone(),
        inbox,
    );
    let (mut reason, is_revoked) = catch_unwind(AssertUnwindSafe(|| serve(&mut plane, &shared, inbox)))
        .unwrap_or_else(|panic| (format!("bug: the session panicked: {}", text_of(&*panic)), false));
    for group in 0..shared.cores.len() as u16 {
        if let Err(error) = plane.retire(group) {
            reason.push_str(&format!("; {error}"));
        }
    }
    if is_revoked {
        plane.device.removed();
    }
    inbox.over.store(true, Ordering::Relaxed);
    let device = Some(plane.device).filter(|_| !is_revoked);
    reports(id, Report::Ended { device, reason, last: None });
}

/// Serves until something ends it: why, and whether the device was removed.
fn serve(plane: &mut EnginePlane<'_>, shared: &DeviceShared, inbox: &Inbox) -> (String, bool) {
    if let Err(why) = plane.open_host_end() {
        let is_revoked =
            std::iter::from_fn(|| inbox.commands.pop()).any(|command| command == Command::Revoke);
        return (why, is_revoked);
    }
    report_rings(plane, shared);
    let config = DeviceConfig::of(&mut *plane.device);
    plane.report(Report::Config(config));
    let (mut changes, mut look_at) = (Vec::new(), Instant::now() + LOOK_EVERY);
    loop {
        let wait = look_at.saturating_duration_since(Instant::now());
        let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
        match poll(&mut [PollFd::new(&*inbox.wake, PollFlags::IN)], Some(&wait)) {
            Ok(_) => {
                inbox.wake.clear();
            }
            Err(Errno::INTR) => continue,
            Err(error) => return (format!("poll: {error}"), false),
        }
        while let Some(command) = inbox.commands.pop() {
            match command {
                Command::Revoke => return ("the device was removed".to_owned(), true),
                Command::Close => return ("closed by ringway".to_owned(), false),
                Command::Move => {
                    if let Err(error) = plane.follow_cores() {
                        return (error.to_string(), false);
                    }
                    report_rings(plane, shared);
                }
                Command::Set(attributes) => {
                    if let Err(error) = plane.set(&attributes) {
                        return (error.to_string(), false);
                    }
                }
                // Nobody reads its configuration space: operators are shown its link.
                Command::ConfigChanged => {
                    let config = DeviceConfig::of(&mut *plane.device);
                    plane.report(Report::Config(config));
                }
                Command::NeedsReset => return (NEEDS_RESET.to_owned(), false),
            }
        }
        match plane.take_ended().into_iter().next() {
            None => {}
            Some((_, Ended::Panicked(_))) => return ("its pump panicked".to_owned(), false),
            Some((_, Ended::NotPlaced(why) | Ended::DeviceLost(why))) => return (why, false),
        }
        if let Some(why) = plane.device.host_end().and_then(|end| end.gone()) {
            return (why, false);
        }
        if Instant::now() >= look_at {
            look_at = Instant::now() + LOOK_EVERY;
            let now = plane.device.host_end().map(|end| end.changes()).unwrap_or_default();
            if now != changes {
                changes.clone_from(&now);
                plane.report(Report::Netdev(now));
            }
        }
    }
}

fn report_rings(plane: &mut EnginePlane<'_>, shared: &DeviceShared) {
    let rings = (0..shared.counters.len() as u16).map(|index| RingReport {
        index,
        size: 0,
        started: true,
        enabled: true,
        kicks: true,
        fault: None,
        runs: true,
        lacks: None,
        served_by: plane.served_by(index / 2),
    });
    let rings = rings.collect();
    plane.report(Report::Rings(rings));
}
