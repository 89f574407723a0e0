//! What the generator can do: rounds against the null back-end, in the same run as those of a comparison.
//!
//! A machine may change its state between these and those, so rounds are taken before and after, and those count that were
//! taken in the state of the comparison's.

use std::time::Duration;

use crate::error::BenchError;
use crate::generator::{Generator, Load};
use crate::limits::Gauge;
use crate::null::{NullBackend, NullOptions};
use crate::options::{PortOptions, Touch};
use crate::turns::is_same_state;

/// A round against the null back-end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Taken {
    /// Millions of frames a second.
    pub mpps: f64,
    /// What a line each way cost, in nanoseconds.
    pub line_ns: f64,
}

/// Rounds against a null back-end on `backend_core`, with as many ports as the comparison's. Nothing else may run there.
///
/// # Errors
/// As those of the generator.
pub fn measure(
    port: &PortOptions,
    ports: usize,
    talkers: usize,
    cores: &[usize],
    backend_core: usize,
    gauge: &Gauge,
    seconds: f64,
) -> Result<Vec<Taken>, BenchError> {
    let options = NullOptions {
        copies_payload: port.touch == Touch::All,
        bare: port.touch == Touch::None,
        wrong: None,
    };
    // It fills one buffer a frame.
    let mergeable = port.mergeable && port.size.max() <= ONE_BUFFER;
    let port = PortOptions { sampled: false, listen: false, mergeable, flood: None, ..port.clone() };
    let mut taken = Vec::new();
    let mut before = gauge.line_ns();
    for _ in 0..ROUNDS {
        // One for each round: it polls, and what a line costs is asked of a core that is free.
        let null = NullBackend::start(backend_core, options)?;
        let mut generator = Generator::open(&vec![null.socket(); ports], &port, cores)?;
        generator.let_talk(talkers * usize::from(port.pairs));
        let round = generator.round(Load::Closed, Duration::from_secs_f64(seconds))?;
        generator.close()?;
        drop(null);
        let after = gauge.line_ns();
        // Of a round in which the machine changed it is not known what it did when.
        if is_same_state(before, after) {
            taken.push(Taken { mpps: round.mpps, line_ns: (before + after) / 2.0 });
        }
        before = after;
    }
    Ok(taken)
}

/// The best that was taken while a line cost as much as `line_ns`; None if none was.
pub fn of_state(taken: &[Taken], line_ns: f64) -> Option<f64> {
    let same = taken.iter().filter(|one| is_same_state(one.line_ns, line_ns));
    same.map(|one| one.mpps).max_by(f64::total_cmp)
}

/// It is the generator that was measured, or may be: its ceiling is less than so many times what the faster one did, or was
/// not measured in the same state of the machine.
pub fn is_bound(ceiling: Option<f64>, fastest: f64) -> bool {
    ceiling.is_none_or(|ceiling| ceiling < fastest * ROOM)
}

/// A generator must be able to do so many times what is measured by it.
pub const ROOM: f64 = 1.5;

const ROUNDS: u32 = 3;

/// Longest frame for one mergeable buffer, its header left out.
pub const ONE_BUFFER: u16 = 2036;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ceiling_is_that_of_the_same_state() {
        let taken = [(40.0, 10.0), (42.0, 11.0), (16.0, 45.0)].map(|(mpps, line_ns)| Taken { mpps, line_ns });
        assert_eq!((of_state(&taken, 10.0), of_state(&taken, 44.0)), (Some(42.0), Some(16.0)));
        assert_eq!(of_state(&taken, 100.0), None);
    }

    #[test]
    fn a_generator_needs_half_as_much_again() {
        assert!(!is_bound(Some(15.0), 10.0));
        assert!(is_bound(Some(14.9), 10.0) && is_bound(None, 1.0));
    }
}
