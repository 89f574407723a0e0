//! How long the kernel's own work on every core takes: a read of `/proc/sys/vm/stat_refresh` has each core collect its
//! statistics of memory, and waits for all of them.

use std::fs;
use std::time::{Duration, Instant};

use ringway_lab::error::{Context, Result};

/// Reads it again and again for so many seconds, then says how often and how long the longest took.
pub(crate) fn collect(seconds: &str) -> Result<()> {
    let seconds: u64 = seconds.parse().context(|| seconds.into())?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut longest, mut reads) = (Duration::ZERO, 0_u32);
    while Instant::now() < end {
        let began = Instant::now();
        fs::read(REFRESH).context(|| REFRESH.into())?;
        longest = longest.max(began.elapsed());
        reads += 1;
        std::thread::sleep(PAUSE);
    }
    println!("{reads} reads, the longest {} us", longest.as_micros());
    Ok(())
}

const REFRESH: &str = "/proc/sys/vm/stat_refresh";
const PAUSE: Duration = Duration::from_millis(20);
