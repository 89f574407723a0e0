//! The command `ringway`: its definition, from which its parser, its help, its manual and its completion are made.
//!
//! The grammar is that of `vdpa(8)`: an object, a command, then keywords with values; options stand anywhere, and the
//! words of `vdpa(8)` may be shortened as there. Words that only Ringway has are written in full.

use std::ffi::OsString;
use std::io::Write as _;

use clap::Parser as _;
use clap::error::ErrorKind;

use crate::fault::Fault;

use ringway::Cli;

mod compat;
// Completion and manual pages.
pub mod docs;
// What the words of a command line mean.
pub mod grammar;
// Rates, again and again.
mod interval;
mod render;
// What `ringway` takes.
pub mod ringway;
// What `ringwayd` takes.
pub mod ringwayd;
mod run;
// `status` and `wait`.
mod status;
// What happens in a second, while it runs.
mod top;
mod vmm;
// What keeps packets from a device.
mod why;

/// Runs the command with these arguments, the program's name first, and returns the exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    let is_vdpa = compat::is_vdpa(&args);
    let outcome = grammar::normalise(args).and_then(|args| match Cli::try_parse_from(args) {
        Ok(cli) => run::run(cli, is_vdpa),
        Err(error) => match error.kind() {
            ErrorKind::DisplayVersion if is_vdpa => {
                let _ = writeln!(std::io::stdout(), "vdpa utility, ringway-{}", env!("CARGO_PKG_VERSION"));
                Ok(())
            }
            ErrorKind::DisplayHelp if is_vdpa => {
                let _ = writeln!(std::io::stderr(), "{}", compat::USAGE);
                Ok(())
            }
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                let _ = error.print();
                Ok(())
            }
            _ if is_vdpa => Err(compat::usage(&error)),
            _ => Err(Fault::of_clap(&error, "ringway")),
        },
    });
    let Err(fault) = outcome else { return 0 };
    let _ = std::io::stdout().flush();
    if is_vdpa {
        let _ = writeln!(std::io::stderr(), "{}", compat::fault(&fault));
        return 1;
    }
    let _ = writeln!(std::io::stderr(), "{fault}");
    fault.kind.exit_code()
}
