//! What is written to a block, so that whoever reads it knows whether it is whole, which block it is, and how new.
//!
//! ```text
//!   sector of 512 bytes:  block u64 | generation u32, sector in the block u16, MARK u16 | check u64 | 61 words of filler
//! ```
//! The check is made from the two words before it, and each word of the filler from the check: no bit is anybody's own, and
//! two sectors of different blocks or generations differ in nearly all of them. If only heads are touched, the first
//! sector of a block has its three words and the rest stays as it was.

use ringway_ring::guest::HostSlice;

use super::config::SECTOR;

/// What is read and written of each block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    /// Nothing: the device need not move any data.
    Nothing,
    /// The head of its first sector.
    Head,
    /// Every byte.
    All,
}

/// What was found in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// What was written to block `block` as its generation `generation`.
    Stamped {
        /// The block.
        block: u64,
        /// The generation.
        generation: u32,
    },
    /// Sectors of the right block, not all of one generation.
    Torn {
        /// The oldest; 0 if some are zeroes.
        oldest: u32,
        /// The newest.
        newest: u32,
    },
    /// Zeroes.
    Zeroes,
    /// Anything else: a sector that is no whole one of those that are written.
    Damaged {
        /// The first such sector of the block.
        sector: u64,
    },
}

/// Writes a block of `place.len()` bytes, whole sectors.
#[inline]
pub fn write(place: HostSlice<'_>, block: u64, generation: u32, touch: Touch) {
    match touch {
        Touch::Nothing => {}
        Touch::Head => {
            let [block, word, check] = head(block, generation, 0);
            place.put_word(0, block);
            place.put_word(8, word);
            place.put_word(16, check);
        }
        Touch::All => {
            for sector in 0..place.len() / SECTOR as usize {
                let words = head(block, generation, sector as u16);
                let mut bytes = [0; SECTOR as usize];
                let [_, _, key] = words;
                for (nth, (to, filler)) in bytes.chunks_exact_mut(8).zip(FILLER).enumerate() {
                    let word = if nth < HEAD { words[nth] } else { filler ^ key };
                    to.copy_from_slice(&word.to_le_bytes());
                }
                place.part(sector * bytes.len(), bytes.len()).write(&bytes);
            }
        }
    }
}

/// Reads a block of `place.len()` bytes, whole sectors, that is to be number `block`; None if nothing is touched.
#[inline]
pub fn read(place: HostSlice<'_>, block: u64, touch: Touch) -> Option<Found> {
    Some(match touch {
        Touch::Nothing => return None,
        Touch::Head => match [place.word(0), place.word(8), place.word(16)] {
            [0, 0, 0] => Found::Zeroes,
            words => match generation([words[0], words[1], words[2]], 0) {
                Some(generation) => Found::Stamped { block: words[0], generation },
                None => Found::Damaged { sector: 0 },
            },
        },
        Touch::All => read_all(place, block),
    })
}

fn read_all(place: HostSlice<'_>, block: u64) -> Found {
    let mut seen: Option<Found> = None;
    for sector in 0..place.len() / SECTOR as usize {
        let found = read_sector(place.part(sector * SECTOR as usize, SECTOR as usize), sector);
        let Some(found) = found else { return Found::Damaged { sector: sector as u64 } };
        seen = match (seen, found) {
            (None, first) => Some(first),
            (Some(seen), found) if seen == found => Some(seen),
            (Some(seen), found) => match (age(seen, block), age(found, block)) {
                (Some((low, high)), Some((lower, higher))) => {
                    Some(Found::Torn { oldest: low.min(lower), newest: high.max(higher) })
                }
                // Sectors of several blocks in one.
                _ => return Found::Damaged { sector: sector as u64 },
            },
        };
    }
    seen.unwrap_or(Found::Damaged { sector: 0 })
}

/// Between which generations of block `of` it is; None if it is another's.
fn age(found: Found, of: u64) -> Option<(u32, u32)> {
    match found {
        Found::Stamped { block, generation } => (block == of).then_some((generation, generation)),
        Found::Torn { oldest, newest } => Some((oldest, newest)),
        Found::Zeroes => Some((0, 0)),
        Found::Damaged { .. } => None,
    }
}

/// A sector as it is by itself; None if it is none that was written.
fn read_sector(place: HostSlice<'_>, sector: usize) -> Option<Found> {
    let mut bytes = [0; SECTOR as usize];
    place.read(&mut bytes);
    let mut words = [0; WORDS];
    for (word, from) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut eight = [0; 8];
        eight.copy_from_slice(from);
        *word = u64::from_le_bytes(eight);
    }
    let [block, second, key, ..] = words;
    if key == 0 {
        return words.iter().all(|word| *word == 0).then_some(Found::Zeroes);
    }
    let generation = generation([block, second, key], sector)?;
    let differs =
        words.iter().zip(FILLER).skip(HEAD).fold(0, |differs, (word, filler)| differs | word ^ filler ^ key);
    (differs == 0).then_some(Found::Stamped { block, generation })
}

#[inline]
fn head(block: u64, generation: u32, sector: u16) -> [u64; HEAD] {
    let word = u64::from(generation) | u64::from(sector) << 32 | MARK << 48;
    [block, word, check(block, word)]
}

/// The generation of a head, if it is whole and of sector `sector`.
#[inline]
fn generation([block, word, found]: [u64; HEAD], sector: usize) -> Option<u32> {
    (found == check(block, word) && word >> 32 == sector as u64 | MARK << 16).then_some(word as u32)
}

/// Never 0.
#[inline]
fn check(block: u64, word: u64) -> u64 {
    mix(block.wrapping_mul(PRIME) ^ word) | 1
}

/// Every bit of the result depends on every bit of the number (splitmix64).
#[inline]
pub(crate) const fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What each word of a sector has of its own.
static FILLER: [u64; WORDS] = {
    let mut filler = [0; WORDS];
    let mut at = 0;
    while at < WORDS {
        filler[at] = mix(at as u64);
        at += 1;
    }
    filler
};

/// Words of 8 bytes in a sector.
const WORDS: usize = SECTOR as usize / 8;
/// Words of its head.
const HEAD: usize = 3;
/// What every head has: "RW".
const MARK: u64 = 0x5752;
const PRIME: u64 = 0xff51_afd7_ed55_8ccd;

#[cfg(test)]
mod tests {
    use ringway_ring::guest::GuestMap;
    use ringway_ring::memory::{HostMemory, PageKind};

    use super::*;

    fn read(place: HostSlice<'_>, block: u64, touch: Touch) -> Found {
        super::read(place, block, touch).unwrap()
    }

    fn memory() -> GuestMap {
        HostMemory::allocate_on(PageKind::Base, "stamp", 8192).unwrap().guest_map(0).unwrap()
    }

    #[test]
    fn what_is_written_is_found() {
        let map = memory();
        let place = map.resolve(0, 4096).unwrap();
        for touch in [Touch::Head, Touch::All] {
            place.write(&[0; 4096]);
            assert_eq!(read(place, 7, touch), Found::Zeroes);
            write(place, 7, 3, touch);
            assert_eq!(read(place, 7, touch), Found::Stamped { block: 7, generation: 3 });
        }
        assert_eq!(super::read(place, 7, Touch::Nothing), None);
    }

    #[test]
    fn each_bit_counts() {
        let map = memory();
        let place = map.resolve(0, 1024).unwrap();
        for bit in 0..1024 * 8 {
            write(place, u64::MAX, u32::MAX, Touch::All);
            let word = place.word(bit / 64 * 8);
            place.put_word(bit / 64 * 8, word ^ 1 << (bit % 64));
            let found = read(place, u64::MAX, Touch::All);
            assert_eq!(found, Found::Damaged { sector: bit as u64 / 4096 }, "bit {bit}");
        }
    }

    #[test]
    fn sectors_of_several_generations_are_torn_and_of_several_blocks_damaged() {
        let map = memory();
        let (place, other) = (map.resolve(0, 2048).unwrap(), map.resolve(4096, 2048).unwrap());
        write(place, 5, 8, Touch::All);
        write(other, 5, 9, Touch::All);
        place.part(512, 512).copy_from(other.part(512, 512));
        assert_eq!(read(place, 5, Touch::All), Found::Torn { oldest: 8, newest: 9 });
        place.part(512, 512).write(&[0; 512]);
        assert_eq!(read(place, 5, Touch::All), Found::Torn { oldest: 0, newest: 8 });
        // The right sector of another block; the wrong sector of this one.
        write(other, 6, 8, Touch::All);
        place.part(512, 512).copy_from(other.part(512, 512));
        assert_eq!(read(place, 5, Touch::All), Found::Damaged { sector: 1 });
        write(place, 5, 8, Touch::All);
        place.part(512, 512).copy_from(place.part(1024, 512));
        assert_eq!(read(place, 5, Touch::All), Found::Damaged { sector: 1 });
        // All of another block is told as what it is.
        assert_eq!(read(other, 5, Touch::All), Found::Stamped { block: 6, generation: 8 });
    }
}
