//! The command `ringway`: its definition, from which its parser, its help, its manual and its completion are made.
//!
//! The grammar is that of `vdpa(8)`: an object, a command, then keywords with values; options stand anywhere, and the
//! words of `vdpa(8)` may be shortened as there. Words that only Ringway has are written in full.

use std::ffi::OsString;
use std::io::Write as _;

use clap::Parser as _;
use clap::error::ErrorKind;

use crate::fault::Fault;

use errors::Voice;
use ringway::Cli;

// Commands from a file.
mod batch;
// Everything in one file.
mod bundle;
// Frames of a device, to a file.
mod capture;
mod compat;
// What completes a command line.
mod complete;
// Completion and manual pages.
pub mod docs;
// How an error is told.
pub mod errors;
// The words of `vdpa(8)`, in full.
mod grammar;
// What stands below a command's options.
mod help;
// Rates, again and again.
mod interval;
// What stands at a path of the state.
mod inspect;
// What keywords there are.
pub(crate) mod keywords;
// `log`.
mod logs;
mod render;
// What the words behind a command ask for.
mod requests;
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
// `why`.
mod why;

/// Runs the command with these arguments, the program's name first, and returns the exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    let is_vdpa = compat::is_vdpa(&args);
    let outcome = match parse(args.clone(), is_vdpa) {
        Ok(Some(cli)) => match cli.batch.as_deref().filter(|_| !is_vdpa && cli.object.is_none()) {
            Some(file) => return batch::run_all(file, &cli).map_or_else(|told| told.0.exit_code(), |()| 0),
            None => run::run(cli, is_vdpa),
        },
        Ok(None) => Ok(()),
        Err(fault) => Err(fault),
    };
    let Err(fault) = outcome else { return 0 };
    let _ = std::io::stdout().flush();
    Voice::of(&args).tell(&fault, &args, None);
    if is_vdpa { 1 } else { fault.kind.exit_code() }
}

/// What a command line asks for. None: for its help or its version, which is printed.
fn parse(args: Vec<OsString>, is_vdpa: bool) -> Result<Option<Cli>, Fault> {
    let error = match Cli::try_parse_from(grammar::normalise(args)?) {
        Ok(cli) => return Ok(Some(cli)),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::DisplayVersion if is_vdpa => {
            let _ = writeln!(std::io::stdout(), "vdpa utility, ringway-{}", env!("CARGO_PKG_VERSION"));
        }
        ErrorKind::DisplayHelp if is_vdpa => {
            let _ = writeln!(std::io::stderr(), "{}", compat::USAGE);
        }
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
        }
        _ if is_vdpa => return Err(compat::usage(&error)),
        _ => return Err(Fault::of_clap(&error, "ringway")),
    }
    Ok(None)
}
