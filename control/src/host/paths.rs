//! Where things are unless told otherwise.

use std::env;
use std::path::{Path, PathBuf};

/// The operator socket of the daemon that the host's service manager runs.
pub(crate) const HOST_CTL: &str = "/run/ringway/ctl.sock";

/// The operator socket: `--ctl`, else `RINGWAY_CTL`, else `/run/ringway/ctl.sock` for root, else
/// `$XDG_RUNTIME_DIR/ringway/ctl.sock`, else `/tmp/ringway-UID/ctl.sock`.
pub(crate) fn ctl(given: Option<&Path>) -> PathBuf {
    let uid = rustix::process::getuid();
    let chosen = given.map(Path::to_owned).or_else(|| set("RINGWAY_CTL")).unwrap_or_else(|| {
        let dir = match set("XDG_RUNTIME_DIR") {
            _ if uid.is_root() => PathBuf::from("/run/ringway"),
            Some(dir) => dir.join("ringway"),
            None => PathBuf::from(format!("/tmp/ringway-{}", uid.as_raw())),
        };
        dir.join("ctl.sock")
    });
    std::path::absolute(&chosen).unwrap_or(chosen)
}

/// The state directory: as given, else `/var/lib/ringway` for root, else `$XDG_STATE_HOME/ringway`, else
/// `~/.local/state/ringway`.
pub(crate) fn state_dir(given: Option<&Path>) -> PathBuf {
    let chosen = given.map(Path::to_owned).unwrap_or_else(|| {
        let uid = rustix::process::getuid();
        match (set("XDG_STATE_HOME"), set("HOME")) {
            _ if uid.is_root() => PathBuf::from("/var/lib/ringway"),
            (Some(dir), _) => dir.join("ringway"),
            (None, Some(home)) => home.join(".local/state/ringway"),
            (None, None) => PathBuf::from(format!("/tmp/ringway-{}/state", uid.as_raw())),
        }
    });
    std::path::absolute(&chosen).unwrap_or(chosen)
}

fn set(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}
