//! The copy on aarch64, with the vector registers that every such processor has.
//!
//! Every form is the overlapping one: the last bytes are loaded and stored as a whole vector that overlaps what
//! precedes it, so that no length takes a loop over a rest.

use std::arch::asm;

/// See [`super::copy`].
///
/// # Safety
/// That of [`super::copy`].
#[inline(always)]
pub(super) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    // One past the last byte of each; the short forms count back from there.
    let (from_end, to_end) = (from.wrapping_add(len), to.wrapping_add(len));
    // SAFETY: the caller's promise; each arm touches only the first and last bytes of the `len` that it names.
    unsafe {
        if len > 64 {
            wide(to, from, len);
        } else if len >= 32 {
            asm!(
                "ldp {a:q}, {b:q}, [{from}]",
                "ldp {c:q}, {d:q}, [{from_end}, #-32]",
                "stp {a:q}, {b:q}, [{to}]",
                "stp {c:q}, {d:q}, [{to_end}, #-32]",
                to = in(reg) to, from = in(reg) from, to_end = in(reg) to_end, from_end = in(reg) from_end,
                a = out(vreg) _, b = out(vreg) _, c = out(vreg) _, d = out(vreg) _,
                options(nostack, preserves_flags)
            );
        } else if len >= 16 {
            asm!(
                "ldr {a:q}, [{from}]",
                "ldur {b:q}, [{from_end}, #-16]",
                "str {a:q}, [{to}]",
                "stur {b:q}, [{to_end}, #-16]",
                to = in(reg) to, from = in(reg) from, to_end = in(reg) to_end, from_end = in(reg) from_end,
                a = out(vreg) _, b = out(vreg) _,
                options(nostack, preserves_flags)
            );
        } else if len >= 8 {
            asm!(
                "ldr {a:x}, [{from}]",
                "ldur {b:x}, [{from_end}, #-8]",
                "str {a:x}, [{to}]",
                "stur {b:x}, [{to_end}, #-8]",
                to = in(reg) to, from = in(reg) from, to_end = in(reg) to_end, from_end = in(reg) from_end,
                a = out(reg) _, b = out(reg) _,
                options(nostack, preserves_flags)
            );
        } else if len >= 4 {
            asm!(
                "ldr {a:w}, [{from}]",
                "ldur {b:w}, [{from_end}, #-4]",
                "str {a:w}, [{to}]",
                "stur {b:w}, [{to_end}, #-4]",
                to = in(reg) to, from = in(reg) from, to_end = in(reg) to_end, from_end = in(reg) from_end,
                a = out(reg) _, b = out(reg) _,
                options(nostack, preserves_flags)
            );
        } else if len >= 2 {
            asm!(
                "ldrh {a:w}, [{from}]",
                "ldurh {b:w}, [{from_end}, #-2]",
                "strh {a:w}, [{to}]",
                "sturh {b:w}, [{to_end}, #-2]",
                to = in(reg) to, from = in(reg) from, to_end = in(reg) to_end, from_end = in(reg) from_end,
                a = out(reg) _, b = out(reg) _,
                options(nostack, preserves_flags)
            );
        } else if len == 1 {
            asm!(
                "ldrb {a:w}, [{from}]",
                "strb {a:w}, [{to}]",
                to = in(reg) to, from = in(reg) from, a = out(reg) _,
                options(nostack, preserves_flags)
            );
        }
    }
}

/// Any alignment.
///
/// # Safety
/// 8 bytes at `from` can be read, whoever writes them.
#[inline(always)]
pub(super) unsafe fn load_word(from: *const u8) -> u64 {
    let word;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ldr {:x}, [{}]", out(reg) word, in(reg) from, options(readonly, nostack, preserves_flags));
    }
    word
}

/// Any alignment.
///
/// # Safety
/// 8 bytes at `to` can be written, whoever reads or writes them, and no Rust reference forbids it.
#[inline(always)]
pub(super) unsafe fn store_word(to: *mut u8, word: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("str {1:x}, [{0}]", in(reg) to, in(reg) word, options(nostack, preserves_flags)) }
}

#[inline(always)]
pub(super) fn prefetch_read(line: *const u8) {
    // SAFETY: a hint without architectural effect, whatever the address.
    unsafe {
        asm!("prfm pldl1keep, [{}]", in(reg) line, options(readonly, nostack, preserves_flags));
    }
}

#[inline(always)]
pub(super) fn prefetch_write(line: *const u8) {
    // SAFETY: a hint without architectural effect, whatever the address.
    unsafe {
        asm!("prfm pstl1keep, [{}]", in(reg) line, options(readonly, nostack, preserves_flags));
    }
}

/// More than 64 bytes: four vectors at a time; the last four, which overlap what the loop copied, were loaded before
/// it began.
///
/// # Safety
/// That of [`super::copy`], and `len` is at least 64.
#[inline(never)]
unsafe fn wide(to: *mut u8, from: *const u8, len: usize) {
    let (from_end, to_end) = (from.wrapping_add(len), to.wrapping_add(len));
    // SAFETY: the caller's promise. The loop moves 64 bytes while more than 64 are left, and so ends at most 64 before
    // the end.
    unsafe {
        asm!(
            "ldp q4, q5, [{from_end}, #-64]",
            "ldp q6, q7, [{from_end}, #-32]",
            "subs {left}, {left}, #64",
            "b.ls 3f",
            "2:",
            "ldp q0, q1, [{from}]",
            "ldp q2, q3, [{from}, #32]",
            "stp q0, q1, [{to}]",
            "stp q2, q3, [{to}, #32]",
            "add {from}, {from}, #64",
            "add {to}, {to}, #64",
            "subs {left}, {left}, #64",
            "b.hi 2b",
            "3:",
            "stp q4, q5, [{to_end}, #-64]",
            "stp q6, q7, [{to_end}, #-32]",
            to = inout(reg) to => _,
            from = inout(reg) from => _,
            left = inout(reg) len => _,
            to_end = in(reg) to_end,
            from_end = in(reg) from_end,
            out("v0") _, out("v1") _, out("v2") _, out("v3") _,
            out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            options(nostack)
        );
    }
}
