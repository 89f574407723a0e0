//! The processor's cycle counter, for accounting of time on a core.

/// Reads the counter: constant rate, not serialising, comparable between cores of one socket.
#[inline]
pub fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: RDTSC has no operands and no memory effects; user mode may execute it (CR4.TSD is clear on Linux
        // unless a thread asked for it by prctl, which this process does not).
        unsafe { std::arch::x86_64::_rdtsc() }
    }
    #[cfg(target_arch = "aarch64")]
    {
        let count: u64;
        // SAFETY: reads the virtual counter, which Linux lets user mode read; no memory effects.
        unsafe { std::arch::asm!("mrs {}, cntvct_el0", out(reg) count, options(nomem, nostack)) };
        count
    }
}

/// Cycles per second, measured once against the monotonic clock (takes 2 ms at its first call).
pub fn hertz() -> u64 {
    static HERTZ: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *HERTZ.get_or_init(|| {
        let (wall, start) = (std::time::Instant::now(), cycles());
        while wall.elapsed() < std::time::Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        let (passed_ns, passed) = (wall.elapsed().as_nanos() as u64, cycles() - start);
        passed.saturating_mul(1_000_000_000) / passed_ns.max(1)
    })
}
