//! A line on the terminal that says how far a measurement is.

use std::io::{IsTerminal, Write};

/// Shows a line of progress on standard error, in the place of the one before, if that is a terminal; an empty one takes
/// it away.
pub fn show(text: &str) {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        let _ = write!(out, "\r\x1b[K{text}");
        let _ = out.flush();
    }
}
