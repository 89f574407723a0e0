//! The copy on x86-64: SSE2, which every such processor has, and AVX where it is found.
//!
//! Every form is the overlapping one: the last bytes are loaded and stored as a whole vector that overlaps what
//! precedes it, so that no length takes a loop over a rest.

use std::arch::asm;

/// See [`super::copy`]. Up to [`INLINE`] bytes in place (headers, the smallest frames), else out of line.
///
/// # Safety
/// That of [`super::copy`].
#[inline(always)]
pub(super) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller's promise; each arm touches only the first and last bytes of the `len` that it names.
    unsafe {
        if len > INLINE {
            wide(to, from, len);
        } else if len >= 32 {
            asm!(
                "movups {a}, [{from}]",
                "movups {b}, [{from} + 16]",
                "movups {c}, [{from} + {len} - 32]",
                "movups {d}, [{from} + {len} - 16]",
                "movups [{to}], {a}",
                "movups [{to} + 16], {b}",
                "movups [{to} + {len} - 32], {c}",
                "movups [{to} + {len} - 16], {d}",
                to = in(reg) to, from = in(reg) from, len = in(reg) len,
                a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
                options(nostack, preserves_flags)
            );
        } else if len >= 16 {
            asm!(
                "movups {a}, [{from}]",
                "movups {b}, [{from} + {len} - 16]",
                "movups [{to}], {a}",
                "movups [{to} + {len} - 16], {b}",
                to = in(reg) to, from = in(reg) from, len = in(reg) len,
                a = out(xmm_reg) _, b = out(xmm_reg) _,
                options(nostack, preserves_flags)
            );
        } else if len >= 8 {
            asm!(
                "mov {a}, [{from}]",
                "mov {b}, [{from} + {len} - 8]",
                "mov [{to}], {a}",
                "mov [{to} + {len} - 8], {b}",
                to = in(reg) to, from = in(reg) from, len = in(reg) len, a = out(reg) _, b = out(reg) _,
                options(nostack, preserves_flags)
            );
        } else if len >= 4 {
            asm!(
                "mov {a:e}, [{from}]",
                "mov {b:e}, [{from} + {len} - 4]",
                "mov [{to}], {a:e}",
                "mov [{to} + {len} - 4], {b:e}",
                to = in(reg) to, from = in(reg) from, len = in(reg) len, a = out(reg) _, b = out(reg) _,
                options(nostack, preserves_flags)
            );
        } else if len >= 2 {
            asm!(
                "movzx {a:e}, word ptr [{from}]",
                "movzx {b:e}, word ptr [{from} + {len} - 2]",
                "mov word ptr [{to}], {a:x}",
                "mov word ptr [{to} + {len} - 2], {b:x}",
                to = in(reg) to, from = in(reg) from, len = in(reg) len, a = out(reg) _, b = out(reg) _,
                options(nostack, preserves_flags)
            );
        } else if len == 1 {
            asm!(
                "mov {a}, byte ptr [{from}]",
                "mov byte ptr [{to}], {a}",
                to = in(reg) to, from = in(reg) from, a = out(reg_byte) _,
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
        asm!("mov {}, qword ptr [{}]", out(reg) word, in(reg) from, options(readonly, nostack, preserves_flags));
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
    unsafe { asm!("mov qword ptr [{}], {}", in(reg) to, in(reg) word, options(nostack, preserves_flags)) }
}

#[inline(always)]
pub(super) fn prefetch_read(line: *const u8) {
    // SAFETY: a hint without architectural effect, whatever the address.
    unsafe {
        asm!("prefetcht0 byte ptr [{}]", in(reg) line, options(readonly, nostack, preserves_flags));
    }
}

/// Processors without PREFETCHW take it as a no-op.
#[inline(always)]
pub(super) fn prefetch_write(line: *const u8) {
    // SAFETY: a hint without architectural effect, whatever the address.
    unsafe {
        asm!("prefetchw byte ptr [{}]", in(reg) line, options(readonly, nostack, preserves_flags));
    }
}

/// The most bytes that are copied in place.
const INLINE: usize = 64;

/// More than [`INLINE`] bytes. The choice costs a load and a branch that always goes the same way.
///
/// AVX and no more: 512-bit vectors gain only where both sides lie in the first-level cache, and slow the clock of
/// older processors; `rep movsb` is slower than either up to 64 KiB, at frame sizes several times.
///
/// # Safety
/// That of [`super::copy`], and `len` is above [`INLINE`].
#[inline(never)]
unsafe fn wide(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller's promise; AVX is used only where the processor and the kernel have it.
    unsafe {
        if len >= 128 && std::arch::is_x86_feature_detected!("avx") {
            wide_avx(to, from, len);
        } else {
            wide_sse(to, from, len);
        }
    }
}

/// Four vectors at a time; the last four, which overlap what the loop copied, were loaded before it began.
macro_rules! four_at_a_time {
    ($name:ident, $move:literal, $register:literal, $bytes:literal, $after:literal) => {
        #[doc = concat!("Vectors of ", $bytes, " bytes.\n\n# Safety\nThat of [`super::copy`], the processor has the ")]
        #[doc = concat!("instructions, and `len` is at least 4 * ", $bytes, ".")]
        #[inline(always)]
        unsafe fn $name(to: *mut u8, from: *const u8, len: usize) {
            // SAFETY: the caller's promise. The loop moves 4 vectors while more than 4 are left, and so ends at most 4
            // before the end. All vector registers are named as clobbered: VZEROUPPER changes the upper half of each.
            unsafe {
                asm!(
                    concat!($move, " ", $register, "4, [{from} + {left} - 4 * ", $bytes, "]"),
                    concat!($move, " ", $register, "5, [{from} + {left} - 3 * ", $bytes, "]"),
                    concat!($move, " ", $register, "6, [{from} + {left} - 2 * ", $bytes, "]"),
                    concat!($move, " ", $register, "7, [{from} + {left} - ", $bytes, "]"),
                    "lea {end}, [{to} + {left}]",
                    concat!("sub {left}, 4 * ", $bytes),
                    "jbe 3f",
                    "2:",
                    concat!($move, " ", $register, "0, [{from}]"),
                    concat!($move, " ", $register, "1, [{from} + ", $bytes, "]"),
                    concat!($move, " ", $register, "2, [{from} + 2 * ", $bytes, "]"),
                    concat!($move, " ", $register, "3, [{from} + 3 * ", $bytes, "]"),
                    concat!($move, " [{to}], ", $register, "0"),
                    concat!($move, " [{to} + ", $bytes, "], ", $register, "1"),
                    concat!($move, " [{to} + 2 * ", $bytes, "], ", $register, "2"),
                    concat!($move, " [{to} + 3 * ", $bytes, "], ", $register, "3"),
                    concat!("add {from}, 4 * ", $bytes),
                    concat!("add {to}, 4 * ", $bytes),
                    concat!("sub {left}, 4 * ", $bytes),
                    "ja 2b",
                    "3:",
                    concat!($move, " [{end} - 4 * ", $bytes, "], ", $register, "4"),
                    concat!($move, " [{end} - 3 * ", $bytes, "], ", $register, "5"),
                    concat!($move, " [{end} - 2 * ", $bytes, "], ", $register, "6"),
                    concat!($move, " [{end} - ", $bytes, "], ", $register, "7"),
                    $after,
                    to = inout(reg) to => _,
                    from = inout(reg) from => _,
                    left = inout(reg) len => _,
                    end = out(reg) _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                    out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                    out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                    options(nostack)
                );
            }
        }
    };
}

four_at_a_time!(wide_sse, "movups", "xmm", "16", "");
four_at_a_time!(wide_avx, "vmovups", "ymm", "32", "vzeroupper");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_vector_widths_copy_every_length_and_nothing_beside_it() {
        type Wide = unsafe fn(*mut u8, *const u8, usize);
        let mut forms: Vec<(Wide, usize)> = vec![(wide_sse, 64)];
        if std::arch::is_x86_feature_detected!("avx") {
            forms.push((wide_avx, 128));
        }
        for (form, least) in forms {
            for len in (least..700).chain([1518, 4096, 9000, 65536]) {
                super::super::tests::check(len, len % 7, len % 11, |to, from| {
                    // SAFETY: both have `len` bytes, at least `least`; the width is one that the processor has.
                    unsafe { form(to.as_mut_ptr(), from.as_ptr(), len) }
                });
            }
        }
    }
}
