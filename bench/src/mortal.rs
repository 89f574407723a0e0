//! Programs that end when this one does, however that ends: what polls a core would do so for ever.

use std::ffi::OsStr;
use std::process::Command;

/// A command that is killed when the thread that started it is gone.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}
