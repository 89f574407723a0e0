//! The data plane: see [`ringway_control::operator::serve`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(ringway_control::operator::serve::main(std::env::args_os()))
}
