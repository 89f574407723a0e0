//! Pins the calling thread to one core, and reads back whether it took.

use rustix::thread::{CpuSet, sched_getaffinity};

use crate::error::StartError;

/// Pins the calling thread to exactly `core`.
pub(crate) fn pin_to(core: usize) -> Result<(), StartError> {
    let failed = |why: String| StartError::Pin { core, why };
    if core >= CpuSet::MAX_CPU {
        return Err(failed(format!("the highest core that can be named is {}", CpuSet::MAX_CPU - 1)));
    }
    // Its answer carries no reason; the mask read back tells.
    let took = core_affinity::set_for_current(core_affinity::CoreId { id: core });
    let mask =
        sched_getaffinity(None).map_err(|error| failed(format!("the mask cannot be read back: {error}")))?;
    if mask.count() == 1 && mask.is_set(core) {
        return Ok(());
    }
    let found = list(&mask);
    Err(failed(if took {
        format!("the system said yes, but the thread may run on {found}")
    } else {
        format!("the system refused; this process may run on {found}")
    }))
}

/// The cores of a mask as the kernel lists them: `0-3,8`.
fn list(mask: &CpuSet) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for core in (0..CpuSet::MAX_CPU).filter(|&core| mask.is_set(core)) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == core => *last = core,
            _ => ranges.push((core, core)),
        }
    }
    let text = |&(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mask_is_listed_as_the_kernel_does() {
        let mut mask = CpuSet::new();
        for core in [0, 1, 2, 8, 10, 11] {
            mask.set(core);
        }
        assert_eq!(list(&mask), "0-2,8,10-11");
        assert_eq!(list(&CpuSet::new()), "");
    }
}
