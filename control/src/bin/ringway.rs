//! The operator's command: see [`ringway_control::operator::cli`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(ringway_control::operator::cli::main(std::env::args_os()))
}
