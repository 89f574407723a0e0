//! Versions: of the kernel, and of the programs that run and are installed.

use super::{Check, Finding, Found, Look};
use crate::operator::api::Binary;

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "kernel",
        why: "what an older kernel lacks is done in another way, or not at all: docs/hardware.md and docs/disks.md say what needs which",
        look: kernel,
    },
    Check {
        name: "program",
        why: "what was installed since is not in force, and command and daemon may not understand each other",
        look: program,
    },
];

fn kernel(look: &Look<'_>) -> Found {
    let release = look.host.text("/proc/sys/kernel/osrelease")?;
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < OLDEST {
        let cure = format!("Linux {}.{} or newer", OLDEST.0, OLDEST.1);
        return Ok(Finding::failure(format!("Linux {release}"), cure));
    }
    match version < BEST {
        true => Ok(Finding::ok(format!(
            "Linux {release}; from {}.{} a TAP's reads need fewer system calls",
            BEST.0, BEST.1
        ))),
        false => Ok(Finding::ok(format!("Linux {release}"))),
    }
}

fn program(look: &Look<'_>) -> Found {
    let own = env!("CARGO_PKG_VERSION");
    let Some(build) = &look.told.build else { return Ok(Finding::ok(format!("ringway {own}; no daemon"))) };
    match look.told.binary {
        Some(Binary::Installed) => Ok(Finding::ok(format!("ringway {own}, ringwayd {build}, as installed"))),
        _ => Ok(Finding::warning(
            format!("ringwayd {build} runs from a file that is not the installed one any more"),
            "systemctl restart ringwayd, when the guests can spare it",
        )),
    }
}

/// The first that has all that is needed.
const OLDEST: (u32, u32) = (5, 15);
/// From which on nothing is done in another way.
const BEST: (u32, u32) = (6, 10);
