use proptest::prelude::*;

use super::*;

const CANARY: u8 = 0xa5;
const MARGIN: usize = 80;

/// Runs a copy of `len` bytes between buffers at the given distance from a line's start, and looks at every byte of
/// the destination and around it.
pub(super) fn check(len: usize, to_at: usize, from_at: usize, copy: impl FnOnce(&mut [u8], &[u8])) {
    let from: Vec<u8> = (0..len + 2 * MARGIN).map(|at| (at * 7 + at / 251) as u8 & 0x7f).collect();
    let mut to = vec![CANARY; len + 2 * MARGIN];
    let (from_at, to_at) = (aligned(&from) + from_at, aligned(&to) + to_at);
    let wanted = &from[from_at..from_at + len];
    copy(&mut to[to_at..to_at + len], wanted);
    assert_eq!(&to[to_at..to_at + len], wanted, "{len} bytes");
    assert!(
        to[..to_at].iter().chain(&to[to_at + len..]).all(|&byte| byte == CANARY),
        "{len} bytes: beside them"
    );
}

fn aligned(buffer: &[u8]) -> usize {
    buffer.as_ptr().align_offset(64)
}

fn slice(bytes: &mut [u8]) -> HostSlice<'_> {
    // SAFETY: borrowed exclusively for as long as the slice.
    unsafe { HostSlice::new(bytes.as_mut_ptr(), bytes.len()) }
}

#[test]
fn every_length_and_alignment_arrives_and_nothing_beside_it_changes() {
    for len in 0..=600 {
        for (to_at, from_at) in [(0, 0), (0, 1), (1, 0), (12, 0), (0, 12), (4, 15), (15, 4), (8, 16), (13, 7)]
        {
            check(len, to_at, from_at, |to, from| {
                // SAFETY: both have `len` bytes; the compiler's own references end with the call.
                unsafe { copy(to.as_mut_ptr(), from.as_ptr(), len) }
            });
        }
    }
}

#[test]
fn long_lengths_arrive() {
    for len in [1499, 1500, 1514, 1518, 2048, 8999, 9000, 9018, 65535, 65536, 65549] {
        // SAFETY: both have `len` bytes.
        check(len, 12, 0, |to, from| unsafe { copy(to.as_mut_ptr(), from.as_ptr(), len) });
    }
}

#[test]
fn part_ends_where_the_slice_ends_and_get_has_all_or_nothing() {
    let mut memory = *b"0123456789";
    let whole = slice(&mut memory);
    for (at, len, part, got) in
        [(0, 10, 10, true), (4, 6, 6, true), (4, 7, 6, false), (10, 0, 0, true), (11, 0, 0, false)]
    {
        assert_eq!(whole.part(at, len).len(), part, "{at} {len}");
        assert_eq!(whole.get(at, len).map(HostSlice::len), got.then_some(len), "{at} {len}");
    }
    assert!(whole.get(1, usize::MAX).is_none() && whole.get(usize::MAX, 1).is_none());
}

#[test]
fn words_are_little_endian_and_inside() {
    let mut memory = *b"0123456789";
    let (first, third) = (u64::from_le_bytes(*b"01234567"), u64::from_le_bytes(*b"23456789"));
    assert_eq!(
        [0, 2, 3, 10, 11, usize::MAX].map(|at| slice(&mut memory).word(at)),
        [first, third, 0, 0, 0, 0]
    );
    slice(&mut memory).put_word(1, u64::from_le_bytes(*b"abcdefgh"));
    assert_eq!(&memory, b"0abcdefgh9");
    for beyond in [3, 10, 11, usize::MAX] {
        slice(&mut memory).put_word(beyond, 0);
    }
    assert_eq!(&memory, b"0abcdefgh9");
    assert_eq!(slice(&mut memory[..7]).word(0), 0);
}

#[test]
fn read_and_write_stop_at_the_shorter_side() {
    let mut memory = [1, 2, 3, 4];
    let mut into = [0; 6];
    assert_eq!(slice(&mut memory).read(&mut into), 4);
    assert_eq!(into, [1, 2, 3, 4, 0, 0]);
    assert_eq!(slice(&mut memory).read(&mut into[..1]), 1);
    assert_eq!(slice(&mut memory).write(&[9; 9]), 4);
    assert_eq!(memory, [9; 4]);
    assert_eq!(slice(&mut memory).write(&[5]), 1);
    assert_eq!(memory, [5, 9, 9, 9]);
}

#[test]
fn copy_between_slices_stops_at_the_shorter_one() {
    let (mut one, mut other) = ([1, 2, 3], [0; 5]);
    assert_eq!(slice(&mut other).copy_from(slice(&mut one)), 3);
    assert_eq!(other, [1, 2, 3, 0, 0]);
    assert_eq!(slice(&mut one).copy_from(slice(&mut other).part(3, 9)), 2);
    assert_eq!(one, [0, 0, 3]);
}

#[test]
fn part_beyond_the_end_is_empty() {
    let mut memory = [1, 2, 3, 4];
    let whole = slice(&mut memory);
    assert_eq!(whole.part(4, 1).len(), 0);
    assert_eq!(whole.part(usize::MAX, usize::MAX).len(), 0);
    assert_eq!(whole.part(1, usize::MAX).len(), 3);
    assert_eq!(whole.part(4, 1).read(&mut [0; 8]), 0);
}

#[test]
fn prefetch_of_any_address_is_harmless() {
    let mut memory = [0];
    slice(&mut memory).prefetch_read(usize::MAX / 2);
    slice(&mut memory).prefetch_write(usize::MAX / 2);
    slice(&mut memory).own_behind(usize::MAX / 2, usize::MAX);
    prefetch_read(std::ptr::null());
    prefetch_write(std::ptr::null());
}

#[test]
fn word_that_is_there_already_is_not_written() {
    let mut page = memmap2::MmapMut::map_anon(4096).unwrap();
    page[8..16].copy_from_slice(&7u64.to_le_bytes());
    let page = page.make_read_only().unwrap();
    // SAFETY: mapped for as long as the slice; a write would end the test with a fault, and there is none.
    let slice = unsafe { HostSlice::new(page.as_ptr().cast_mut(), page.len()) };
    slice.keep_word(0, 0);
    slice.keep_word(8, 7);
    // Not all of it is inside.
    slice.keep_word(4089, 1);
    let mut page = page.make_mut().unwrap();
    super::tests::slice(&mut page).keep_word(8, 9);
    assert_eq!(page[8..16], 9u64.to_le_bytes());
}

#[test]
fn lines_are_made_ours_behind_the_header_and_inside_the_buffer() {
    // Where the buffer begins on its line, its length, the header's and the frame's: where stores are.
    for (begins, len, at, frame, stores) in [
        // The header on a line of its own, as DPDK's driver has it.
        (52, 2048, 12, 64, vec![12]),
        (52, 2048, 12, 1514, vec![12]),
        // Header and frame on one line, the frame over its end or not.
        (0, 1536, 12, 64, vec![12, 64]),
        (0, 1536, 12, 52, vec![12]),
        (0, 1536, 10, 60, vec![10, 64]),
        // Nothing is stored where no word has room.
        (0, 12, 12, 64, vec![]),
        (0, 66, 12, 64, vec![12]),
        (52, 19, 12, 64, vec![]),
    ] {
        let mut bytes = [0xaa; 4096];
        let first = aligned(&bytes) + begins;
        let (_, rest) = bytes.split_at_mut(first);
        slice(&mut rest[..len]).own_behind(at, frame);
        let mut wanted = [0xaa; 4096];
        for store in stores {
            wanted[first + store..][..8].fill(0);
        }
        assert!(bytes == wanted, "{begins} {len} {at} {frame}");
    }
}

#[test]
fn overlapping_copy_stays_inside_the_destination() {
    for len in 1..=300usize {
        let mut memory: Vec<u8> = (0..len + 64).map(|at| at as u8).collect();
        let before = memory.clone();
        let at = memory.as_mut_ptr();
        // SAFETY: source and destination lie inside `memory`, which nothing borrows meanwhile.
        unsafe { copy(at.add(20), at.add(10), len) };
        assert_eq!(memory[..20], before[..20]);
        assert_eq!(memory[20 + len..], before[20 + len..]);
    }
}

proptest! {
    #[test]
    fn parts_copied_one_by_one_are_the_whole(
        bytes in prop::collection::vec(any::<u8>(), 0..4000),
        cuts in prop::collection::vec(0usize..500, 0..20),
    ) {
        let mut from = bytes.clone();
        let mut to = vec![0; bytes.len()];
        let (source, target) = (slice(&mut from), slice(&mut to));
        let mut at = 0;
        for cut in cuts.into_iter().chain([usize::MAX]) {
            at += target.part(at, cut).copy_from(source.part(at, cut));
        }
        prop_assert_eq!(at, bytes.len());
        prop_assert_eq!(to, bytes);
    }
}
