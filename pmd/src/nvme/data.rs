//! Where a command's data are: a request's pieces of memory, cut into what one command can have, without a copy where that can
//! be.
//!
//! ```text
//!   pieces (address, length) -- cut --> Part, Part, ...   each the data of one command:
//!                                         pages   all but its outer ends lie on borders of pages
//!                                         list    a scatter-gather list, where the controller has such
//!                                         copy    neither: so much has to be copied
//! ```
//!
//! | a command's pieces may | pages | list of dwords | list of bytes |
//! | --- | --- | --- | --- |
//! | begin | on any dword | on any dword | anywhere |
//! | have borders between each other | on borders of pages | on any dword | anywhere |
//! | be | as many as the pages | 256 | 256 |
//!
//! Every part but a request's last is a multiple of a block, so that it is a command of its own.

use ringway_ring::guest::HostSlice;

use super::PAGE;

/// Memory as the controller reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where.
    pub at: u64,
    /// Bytes, not none.
    pub len: u64,
}

/// Adds a piece of a request, joined with the one before where it goes on from there.
#[inline]
pub fn add(pieces: &mut Vec<Piece>, piece: Piece) {
    match pieces.last_mut() {
        Some(last) if last.at.checked_add(last.len) == Some(piece.at) => last.len += piece.len,
        _ if piece.len == 0 => {}
        _ => pieces.push(piece),
    }
}

/// What scatter-gather lists a controller takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scatter {
    /// None.
    No,
    /// Of pieces that begin and end on dwords.
    Dwords,
    /// Of any pieces.
    Bytes,
}

/// What a controller takes as the data of one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Bytes at most: a multiple of a block, and at most [`MOST_BYTES`].
    pub most: u64,
    /// Bytes of a block.
    pub block: u64,
    /// Lists that it takes.
    pub scatter: Scatter,
    /// Bytes at most of a part that is copied: a multiple of a block.
    pub most_copied: u64,
}

/// How a part is described to the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// By its pages.
    Pages,
    /// By a scatter-gather list.
    List,
    /// Not at all: it is copied to, or from, memory of our own.
    Copy,
}

/// The data of one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    /// How it is described.
    pub kind: Kind,
    /// Bytes of it.
    pub bytes: u64,
    cut: Cut<'a>,
}

/// A request's data, from some place on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut<'a> {
    pieces: &'a [Piece],
    /// Bytes of the first piece that were before.
    skip: u64,
    left: u64,
}

impl<'a> Cut<'a> {
    /// All of it: a multiple of a block.
    pub fn new(pieces: &'a [Piece]) -> Cut<'a> {
        Cut { pieces, skip: 0, left: pieces.iter().map(|piece| piece.len).sum() }
    }

    /// What is behind its first bytes.
    #[inline]
    #[must_use]
    pub fn behind(mut self, bytes: u64) -> Cut<'a> {
        self.skip_to(bytes.min(self.left));
        self
    }

    /// Bytes that are left.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The next command's data; None: that was all.
    #[inline]
    pub fn next(&mut self, rules: &Rules) -> Option<Part<'a>> {
        let whole = |bytes: u64| bytes - bytes % rules.block.max(1);
        let limit = self.left.min(rules.most);
        if limit == 0 {
            return None;
        }
        let by_pages = whole(self.pages(limit));
        let by_list = if by_pages == limit { 0 } else { whole(self.list(limit, rules.scatter)) };
        let (kind, bytes) = match () {
            () if by_pages == limit || by_pages > by_list => (Kind::Pages, by_pages),
            () if by_list > 0 => (Kind::List, by_list),
            () => (Kind::Copy, self.copied(limit, rules)),
        };
        let part = Part { kind, bytes, cut: *self };
        self.skip_to(bytes);
        Some(part)
    }

    /// How much has to be copied: up to where a block can be described again.
    fn copied(&self, limit: u64, rules: &Rules) -> u64 {
        let (most, mut rest, mut bytes) = (limit.min(rules.most_copied).max(rules.block), *self, 0);
        while bytes < most {
            let block = rules.block.min(rest.left);
            if block == 0
                || bytes > 0 && (rest.pages(block) == block || rest.list(block, rules.scatter) == block)
            {
                break;
            }
            bytes += block;
            rest.skip_to(block);
        }
        bytes
    }

    /// How many bytes, of `limit`, can be described by their pages.
    #[inline]
    fn pages(&self, limit: u64) -> u64 {
        let mut bytes = 0;
        for (n, piece) in self.blocks(limit).enumerate() {
            let begins = if n == 0 { piece.at.is_multiple_of(4) } else { piece.at.is_multiple_of(PAGE) };
            if !begins {
                break;
            }
            bytes += piece.len;
            if !(piece.at + piece.len).is_multiple_of(PAGE) {
                break;
            }
        }
        bytes
    }

    /// How many bytes, of `limit`, can be described by a list.
    #[inline]
    fn list(&self, limit: u64, scatter: Scatter) -> u64 {
        let takes = |piece: &Piece| match scatter {
            Scatter::No => false,
            Scatter::Dwords => (piece.at | piece.len).is_multiple_of(4),
            Scatter::Bytes => true,
        };
        self.blocks(limit).take(MOST_IN_LIST).take_while(takes).map(|piece| piece.len).sum()
    }

    /// The pieces of the next `bytes`.
    #[inline]
    fn blocks(&self, bytes: u64) -> impl Iterator<Item = Piece> + use<'a> {
        let (mut skip, mut left) = (self.skip, bytes);
        self.pieces.iter().map_while(move |piece| {
            let len = (piece.len - skip).min(left);
            let at = piece.at + skip;
            (skip, left) = (0, left - len);
            (len > 0).then_some(Piece { at, len })
        })
    }

    fn skip_to(&mut self, bytes: u64) {
        self.left -= bytes;
        self.skip += bytes;
        while let Some((first, rest)) = self.pieces.split_first() {
            if self.skip < first.len {
                break;
            }
            self.skip -= first.len;
            self.pieces = rest;
        }
    }
}

/// The two words of a command that say where its data are, and whether they are a scatter-gather list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pointer {
    pub(super) words: (u64, u64),
    pub(super) is_sgl: bool,
}

/// A page of our own for what does not fit into the command.
#[derive(Debug, Clone, Copy)]
pub(super) struct ListPage<'a> {
    pub(super) memory: HostSlice<'a>,
    pub(super) at: u64,
}

impl Part<'_> {
    /// Its pieces.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> {
        self.cut.blocks(self.bytes)
    }

    /// Describes it: not one that is to be copied.
    #[inline]
    pub(super) fn describe(&self, list: ListPage<'_>) -> Pointer {
        match self.kind {
            Kind::Pages | Kind::Copy => Pointer { words: self.describe_pages(list), is_sgl: false },
            Kind::List => Pointer { words: self.describe_list(list), is_sgl: true },
        }
    }

    #[inline]
    fn describe_pages(&self, list: ListPage<'_>) -> (u64, u64) {
        // Of a piece, where it begins, and each border of a page in it.
        let pages = self.pieces().flat_map(|Piece { at, len }| {
            let first = (at / PAGE + 1) * PAGE;
            let borders = (first..at + len).step_by(PAGE as usize);
            std::iter::once(at).chain(borders)
        });
        let (mut words, mut listed) = ((0, 0), 0);
        for (n, page) in pages.enumerate() {
            match n {
                0 => words.0 = page,
                1 => words.1 = page,
                _ => {
                    if n == 2 {
                        list.memory.put_word(0, words.1);
                        (words.1, listed) = (list.at, 1);
                    }
                    list.memory.put_word(listed * 8, page);
                    listed += 1;
                }
            }
        }
        words
    }

    #[inline]
    fn describe_list(&self, list: ListPage<'_>) -> (u64, u64) {
        let mut pieces = self.pieces();
        if let (Some(Piece { at, len }), None) = (pieces.next(), pieces.next()) {
            return (at, len);
        }
        let mut count = 0;
        for Piece { at, len } in self.pieces() {
            list.memory.put_word(count * 16, at);
            list.memory.put_word(count * 16 + 8, len);
            count += 1;
        }
        (list.at, (count as u64 * 16) | LAST_SEGMENT)
    }
}

/// Bytes of one command's data: what a page of our own can list.
pub const MOST_BYTES: u64 = PAGE / 8 * PAGE;
/// Pieces of one command's scatter-gather list: likewise.
pub const MOST_IN_LIST: usize = PAGE as usize / 16;

/// The type of a descriptor, in its last byte, that is of further descriptors.
const LAST_SEGMENT: u64 = 0x30 << 56;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringway_ring::memory::HostMemory;

    use super::*;

    const RULES: Rules = Rules { most: 512 << 10, block: 512, scatter: Scatter::No, most_copied: 64 << 10 };

    fn parts<'a>(pieces: &'a [Piece], rules: &Rules) -> Vec<Part<'a>> {
        let mut cut = Cut::new(pieces);
        std::iter::from_fn(|| cut.next(rules)).collect()
    }

    fn kinds(pieces: &[(u64, u64)], rules: &Rules) -> Vec<(Kind, u64)> {
        let pieces: Vec<Piece> = pieces.iter().map(|&(at, len)| Piece { at, len }).collect();
        parts(&pieces, rules).iter().map(|part| (part.kind, part.bytes)).collect()
    }

    #[test]
    fn requests_are_cut_as_little_as_their_pieces_allow() {
        use Kind::{Copy, List, Pages};
        let dwords = Rules { scatter: Scatter::Dwords, ..RULES };
        let bytes = Rules { scatter: Scatter::Bytes, ..RULES };
        let large = Rules { block: 4096, ..RULES };
        // Inner borders on those of pages.
        assert_eq!(kinds(&[(0x1e00, 0x200), (0x8000, 0x1000), (0x3000, 0x600)], &bytes), [(Pages, 0x1800)]);
        // A border within a page, on one of blocks.
        let odd = [(0x1000, 0x600), (0x8000, 0xa00)];
        assert_eq!(kinds(&odd, &RULES), [(Pages, 0x600), (Pages, 0xa00)]);
        assert_eq!(kinds(&odd, &dwords), [(List, 0x1000)]);
        assert_eq!(kinds(&odd, &large), [(Copy, 0x1000)]);
        // A block that lies in two pieces, and what is behind it.
        let torn = [(0x1000, 0x300), (0x8000, 0x100), (0x9000, 0x1000)];
        assert_eq!(kinds(&torn, &RULES), [(Pages, 0x200), (Copy, 0x200), (Pages, 0x1000)]);
        // Not even on a dword.
        let bad = [(0x1002, 0x1000)];
        assert_eq!(kinds(&bad, &dwords), [(Copy, 0x1000)]);
        assert_eq!(kinds(&bad, &bytes), [(List, 0x1000)]);
        // More than one command takes.
        let long = [(0x1000, 0x100000 + 0x200)];
        assert_eq!(kinds(&long, &RULES), [(Pages, 0x80000), (Pages, 0x80000), (Pages, 0x200)]);
        let many: Vec<(u64, u64)> = (0..300).map(|n| (n * 0x1000, 0x200)).collect();
        assert_eq!(kinds(&many, &bytes), [(List, 256 * 0x200), (List, 44 * 0x200)]);
        assert_eq!(kinds(&[], &bytes), []);
    }

    #[test]
    fn pieces_that_go_on_are_one() {
        let mut pieces = Vec::new();
        for (at, len) in [(0x1000, 0x200), (0x1200, 0), (0x1200, 0x200), (0x3000, 0x10), (0, 0)] {
            add(&mut pieces, Piece { at, len });
        }
        assert_eq!(pieces, [Piece { at: 0x1000, len: 0x400 }, Piece { at: 0x3000, len: 0x10 }]);
    }

    /// What a controller makes of the two words and the page: the addresses of each byte.
    fn understood(pointer: Pointer, page: HostSlice<'_>, bytes: u64) -> Vec<u64> {
        let mut addresses = Vec::new();
        let (first, second) = pointer.words;
        if pointer.is_sgl {
            let count = if second >> 56 == 0x30 { (second as u32 / 16) as usize } else { 0 };
            assert!(second >> 56 == 0 || first == LIST, "a list elsewhere");
            let listed = (0..count).map(|n| (page.word(n * 16), page.word(n * 16 + 8)));
            let single = (count == 0).then_some((first, second));
            for (at, len) in single.into_iter().chain(listed) {
                assert!(len >> 32 == 0, "{len:#x}");
                addresses.extend(at..at + len);
            }
            return addresses;
        }
        assert!(first.is_multiple_of(4));
        let count = (first % PAGE + bytes).div_ceil(PAGE);
        let nth = |n: u64| match (n, count) {
            (0, _) => first,
            (1, 2) => second,
            _ => {
                assert_eq!(second, LIST);
                page.word((n as usize - 1) * 8)
            }
        };
        for n in 0..count {
            let at = nth(n);
            assert!(n == 0 || at.is_multiple_of(PAGE), "{at:#x}");
            addresses.extend(at..(at / PAGE + 1) * PAGE);
        }
        addresses.truncate(bytes as usize);
        addresses
    }

    const LIST: u64 = 0x7000_0000;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever the pieces, a controller that reads the parts' pages and lists reaches each byte of the request once, in order.
        #[test]
        fn every_byte_is_described_once_and_in_order(
            shapes in proptest::collection::vec((0u64..64, 0u64..3, 1u64..20), 1..20),
            scatter in prop_oneof![Just(Scatter::No), Just(Scatter::Dwords), Just(Scatter::Bytes)],
            block in prop_oneof![Just(512u64), Just(4096)],
            most in 1u64..=4,
        ) {
            let mut pieces = Vec::new();
            for (page, kind, units) in shapes {
                let (offset, len) = match kind {
                    0 => (0, units * 0x1000),
                    1 => (units * 0x40 % 0x1000, 0x1000 - units * 0x40 % 0x1000),
                    _ => (units * 7, units * 11),
                };
                add(&mut pieces, Piece { at: page * 0x100_0000 + offset, len });
            }
            let total: u64 = pieces.iter().map(|piece| piece.len).sum();
            let rest = (block - total % block) % block;
            add(&mut pieces, Piece { at: 0x6000_0000, len: rest });
            pieces.retain(|piece| piece.len > 0);
            let rules = Rules { most: most * 0x4000, block, scatter, most_copied: 0x2000 };
            let memory = HostMemory::allocate("list", PAGE).unwrap();
            let map = memory.guest_map(LIST).unwrap();
            let page = map.resolve(LIST, PAGE).unwrap();
            let mut reached: Vec<u64> = Vec::new();
            for part in parts(&pieces, &rules) {
                prop_assert!(part.bytes > 0 && part.bytes <= rules.most && part.bytes.is_multiple_of(block));
                if part.kind == Kind::Copy {
                    prop_assert!(part.bytes <= rules.most_copied);
                    reached.extend(part.pieces().flat_map(|piece| piece.at..piece.at + piece.len));
                } else {
                    let pointer = part.describe(ListPage { memory: page, at: LIST });
                    reached.extend(understood(pointer, page, part.bytes));
                }
            }
            let wanted: Vec<u64> = pieces.iter().flat_map(|piece| piece.at..piece.at + piece.len).collect();
            prop_assert!(reached == wanted, "{} of {} bytes", reached.len(), wanted.len());
        }
    }
}
