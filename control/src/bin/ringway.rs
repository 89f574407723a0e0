//! The operator's command: see [`ringway_control::cli`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(ringway_control::cli::main(std::env::args_os()))
}
