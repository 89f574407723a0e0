//! Where each queue stands, kept by 64-bit stores in a small page of shared memory that outlives the process: a
//! restarted daemon trusts it over what the front-end repeats once it agrees with the ring's own flags.
//!
//! The page has one slot per queue, each on a cache line of its own:
//!
//! ```text
//!   63     62 ........ 34  33         32          31 ...... 16  15 ...... 0
//!   valid  epoch           used_wrap  avail_wrap  used_idx      avail_idx
//! ```
//!
//! A burst is published between two stores. The first says from where to where it goes: the used half is where the ring
//! stands without the burst, the available half where it stands with it. The second says that it is done: both halves are
//! where it stands now. So a process that dies at any instruction leaves a word that names the true position: the only one
//! in it, or one of two, of which the ring shows which. Builds that knew one store a burst always wrote equal halves; they
//! read the used half, which is right but where a death fell between the two stores and after publishing.
//!
//! The worker that owns a queue stores; its session loads and clears while no worker owns the queue, or a successor
//! of the process does. Also here: what vhost-user calls a ring's base, in either format (vhost-user, GET_VRING_BASE).
//! Nothing here knows a ring's size: whoever starts a queue checks the indexes against it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt, MetadataExt as _, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, OFlags};
use rustix::io::Errno;

use crate::format::Format;
use crate::mapping::Mapping;

/// How far a queue has come (virtio 1.3 §2.7, §2.8). For a split ring the wrap counters are unused and the indexes run
/// freely over 16 bits; for a packed ring they are below the ring's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Next available entry to look at.
    pub avail_idx: u16,
    /// Device's avail wrap counter (packed).
    pub avail_wrap: bool,
    /// Next used entry to write.
    pub used_idx: u16,
    /// Device's used wrap counter (packed).
    pub used_wrap: bool,
}

/// A ring base that no ring of its format can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ring base {base:#x} of a split ring is above 16 bits")]
pub struct BadBase {
    /// The claimed base.
    pub base: u32,
}

impl Position {
    /// Where a fresh queue of either format starts.
    pub const START: Position = Position { avail_idx: 0, avail_wrap: true, used_idx: 0, used_wrap: true };

    /// What SET_VRING_BASE claims. The rings were drained when the base was taken, so for a split ring, which has no
    /// word for it, the used index is the available one.
    ///
    /// A packed base has both positions, 15 bits of index and a wrap counter each: available below, used above. Some
    /// front-ends (DPDK) send only the lower half and say 0x8000 for a fresh ring: an upper half of 0 beside a lower
    /// half that is not 0 therefore means "used as available".
    ///
    /// # Errors
    /// A split base above 16 bits. Whether an index is below a packed ring's size is for the ring to check.
    pub fn from_vhost_base(format: Format, base: u32) -> Result<Position, BadBase> {
        let (avail, used) = (base as u16, (base >> 16) as u16);
        match format {
            Format::Split if used != 0 => Err(BadBase { base }),
            Format::Split => Ok(Position { avail_idx: avail, used_idx: avail, ..Position::START }),
            Format::Packed => {
                let used = if used == 0 { avail } else { used };
                Ok(Position {
                    avail_idx: avail & INDEX_15,
                    avail_wrap: avail & WRAP_15 != 0,
                    used_idx: used & INDEX_15,
                    used_wrap: used & WRAP_15 != 0,
                })
            }
        }
    }

    /// What GET_VRING_BASE answers: the available index of a split ring, both halves of a packed one.
    pub fn to_vhost_base(self, format: Format) -> u32 {
        let half = |idx: u16, wrap: bool| u32::from(idx & INDEX_15 | if wrap { WRAP_15 } else { 0 });
        match format {
            Format::Split => self.avail_idx.into(),
            Format::Packed => {
                half(self.avail_idx, self.avail_wrap) | half(self.used_idx, self.used_wrap) << 16
            }
        }
    }

    fn to_bits(self) -> u64 {
        u64::from(self.avail_idx)
            | u64::from(self.used_idx) << 16
            | u64::from(self.avail_wrap) << 32
            | u64::from(self.used_wrap) << 33
    }

    fn from_bits(bits: u64) -> Position {
        Position {
            avail_idx: bits as u16,
            used_idx: (bits >> 16) as u16,
            avail_wrap: bits >> 32 & 1 != 0,
            used_wrap: bits >> 33 & 1 != 0,
        }
    }
}

/// One page of positions for up to [`PositionPage::QUEUES`] queues of one device.
#[derive(Debug)]
pub struct PositionPage {
    map: Mapping,
    /// What the page shows. Held, so that no other file has its number meanwhile. Locked by those who look at the words,
    /// so that none looks while they are taken over into a new file; never by a worker.
    file: Mutex<File>,
}

/// What the file of a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageFile {
    /// The number of its file system.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// It has its length still: nobody cut it.
    pub is_whole: bool,
}

/// The slot of one queue in a [`PositionPage`].
#[derive(Clone)]
pub struct PositionSlot {
    page: Arc<PositionPage>,
    /// Below [`PositionPage::QUEUES`].
    index: usize,
}

impl PositionPage {
    /// Slots in a page.
    pub const QUEUES: usize = 64;

    /// A page in anonymous shared memory.
    pub fn anonymous() -> io::Result<Arc<PositionPage>> {
        let file = File::from(rustix::fs::memfd_create("ringway-positions", MemfdFlags::CLOEXEC)?);
        file.set_len(PAGE_BYTES)?;
        PositionPage::map(file)
    }

    /// A page in a file, kept over restarts; made if it is not there, readable and writable for its owner alone.
    /// Contents are claims until checked.
    ///
    /// # Errors
    /// Those of opening and mapping; `InvalidData` for a symbolic link, for what is no regular file, and for a file
    /// that this module did not make.
    pub fn open(path: &Path) -> io::Result<Arc<PositionPage>> {
        let refuse = |why: &str| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{} is {why}: refused", path.display()))
        };
        // O_NONBLOCK: a pipe in its place must not make this wait.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags.bits() as i32)
            .open(path)
            .map_err(|error| {
                if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
                    refuse("a symbolic link")
                } else {
                    error
                }
            })?;
        let facts = file.metadata()?;
        if !facts.is_file() {
            return Err(refuse("not a regular file"));
        }
        let mut page = [0; PAGE_BYTES as usize];
        match facts.len() {
            0 => {}
            PAGE_BYTES => file.read_exact_at(&mut page, 0)?,
            other => {
                let why = format!("{other} bytes long, where a page of queue positions has {PAGE_BYTES}");
                return Err(refuse(&why));
            }
        }
        if page[MARK_AT..][..MARK.len()] != MARK {
            // All zeros: new, or its maker was killed before it could mark it.
            if page.iter().any(|&byte| byte != 0) {
                return Err(refuse("not a page of queue positions of this version"));
            }
            // The whole page, so that a full disk is an error here and not a SIGBUS at the first store.
            page[MARK_AT..][..MARK.len()].copy_from_slice(&MARK);
            if let Err(error) = file.write_all_at(&page, 0) {
                // Nothing half made stays, which the next one would have to refuse.
                let _ = file.set_len(0);
                return Err(error);
            }
        }
        PositionPage::map(file)
    }

    /// The slot of queue `index`, or None beyond [`PositionPage::QUEUES`].
    pub fn slot(self: &Arc<PositionPage>, index: usize) -> Option<PositionSlot> {
        (index < PositionPage::QUEUES).then(|| PositionSlot { page: Arc::clone(self), index })
    }

    /// What its file is now.
    pub fn file(&self) -> io::Result<PageFile> {
        let facts = self.lock().metadata()?;
        let is_whole = facts.len() == PAGE_BYTES;
        Ok(PageFile { device: facts.dev(), inode: facts.ino(), is_whole })
    }

    /// True once its file was cut and somebody found it so (see [`crate::sigbus`]).
    pub fn is_poisoned(&self) -> bool {
        self.map.is_poisoned()
    }

    /// Goes on in a new file at `path`, where there must be none, with the positions that it has: the old file was taken
    /// away, or cut. Workers may store meanwhile; nothing that they keep is lost.
    ///
    /// # Errors
    /// Those of making and mapping the file. The page is as before then.
    pub fn renew(&self, path: &Path) -> io::Result<()> {
        let mut old = self.lock();
        let before = std::array::from_fn(|index| word_of(&self.map, index).load(Ordering::Acquire));
        let mut page = [0; PAGE_BYTES as usize];
        for (slot, word) in page.chunks_exact_mut(SLOT_BYTES).zip(before) {
            slot[..size_of::<u64>()].copy_from_slice(&u64::to_ne_bytes(word));
        }
        page[MARK_AT..][..MARK.len()].copy_from_slice(&MARK);
        let new = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        if let Err(error) = new.write_all_at(&page, 0).and_then(|()| self.map.show(new.as_fd())) {
            // Made by this call, and of no use.
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        self.take_over(&before, &old);
        *old = new;
        Ok(())
    }

    /// Takes over what was kept in the `old` file after its words were read, unless something newer was kept since.
    fn take_over(&self, before: &[u64; PositionPage::QUEUES], old: &File) {
        for (index, &word) in before.iter().enumerate() {
            let mut last = [0; size_of::<u64>()];
            // One that was cut has nothing newer.
            if old.read_exact_at(&mut last, (index * SLOT_BYTES) as u64).is_err() {
                return;
            }
            let last = u64::from_ne_bytes(last);
            if last != word {
                let order = (Ordering::AcqRel, Ordering::Relaxed);
                let _ = word_of(&self.map, index).compare_exchange(word, last, order.0, order.1);
            }
        }
    }

    fn map(file: File) -> io::Result<Arc<PositionPage>> {
        let map = Mapping::new(file.as_fd(), 0, PAGE_BYTES as usize, rustix::param::page_size())?;
        Ok(Arc::new(PositionPage { map, file: Mutex::new(file) }))
    }

    fn lock(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The word of slot `index`, which is below [`PositionPage::QUEUES`].
#[inline(always)]
fn word_of(map: &Mapping, index: usize) -> &AtomicU64 {
    debug_assert!(index < PositionPage::QUEUES);
    // SAFETY: `index` is below QUEUES, so that the word lies inside the page, aligned to its slot; the page is mapped for
    // as long as `map` lives and only ever accessed as atomics. What it shows may change from one access to the next (see
    // `Mapping::show`), and a file that is cut becomes a page of zeros (see `crate::sigbus`).
    unsafe { AtomicU64::from_ptr(map.start().add(index * SLOT_BYTES).cast()) }
}

impl PositionSlot {
    /// Keeps a position: one store. Equal halves: where the queue stands. Before a burst is published: `used` is where
    /// it stands without the burst, `avail` where it stands with it.
    ///
    /// Release: whoever sees the word sees what the ring was made before it, so that a position is never kept of a burst
    /// that is not published. It pairs with the Acquire in [`PositionSlot::load`]. The store before a burst is published
    /// comes before the Release fence of `publish`, so that whoever sees the burst published sees that word. Its reader
    /// is the same thread, or a session after the worker acknowledged the queue's retirement, or a successor after this
    /// process ended: a process that is killed has made the stores up to one place in the program, and none after it.
    #[inline]
    pub fn store(&self, position: Position) {
        self.keeping().store(position);
    }

    /// For several stores while the same worker owns the queue: its epoch does not change meanwhile.
    #[inline(always)]
    pub(crate) fn keeping(&self) -> Keeping<'_> {
        let word = self.word();
        Keeping { word, life: word.load(Ordering::Relaxed) & EPOCH_MASK | VALID }
    }

    /// The position kept, or None if none was stored since [`PositionSlot::clear`].
    pub fn load(&self) -> Option<Position> {
        let _whole = self.page.lock();
        // Acquire: pairs with the Release in `store`.
        let bits = self.word().load(Ordering::Acquire);
        (bits & VALID != 0).then(|| Position::from_bits(bits))
    }

    /// Forgets the position and begins a new epoch. Only while no worker owns the queue.
    pub fn clear(&self) {
        let _whole = self.page.lock();
        let word = self.word();
        let epoch = word.load(Ordering::Relaxed).wrapping_add(EPOCH_ONE) & EPOCH_MASK;
        word.store(epoch, Ordering::Relaxed);
    }

    /// How often the slot was cleared since its page was made, modulo 2^29: tells two lives of a queue apart.
    pub fn epoch(&self) -> u32 {
        ((self.word().load(Ordering::Relaxed) & EPOCH_MASK) >> EPOCH_SHIFT) as u32
    }

    #[inline(always)]
    fn word(&self) -> &AtomicU64 {
        word_of(&self.page.map, self.index)
    }
}

/// See [`PositionSlot::keeping`].
pub(crate) struct Keeping<'slot> {
    word: &'slot AtomicU64,
    /// What a word has beside the position.
    life: u64,
}

impl Keeping<'_> {
    /// See [`PositionSlot::store`].
    #[inline(always)]
    pub(crate) fn store(&self, position: Position) {
        self.word.store(position.to_bits() | self.life, Ordering::Release);
    }
}

impl fmt::Debug for PositionSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PositionSlot")
            .field("index", &self.index)
            .field("epoch", &self.epoch())
            .field("position", &self.load())
            .finish()
    }
}

const SLOT_BYTES: usize = 64;
const PAGE_BYTES: u64 = (PositionPage::QUEUES * SLOT_BYTES) as u64;

const VALID: u64 = 1 << 63;
const EPOCH_SHIFT: u32 = 34;
const EPOCH_ONE: u64 = 1 << EPOCH_SHIFT;
const EPOCH_MASK: u64 = VALID - EPOCH_ONE;

/// Marks a file as a page of positions of this layout; in the unused end of the first slot.
const MARK: [u8; 8] = *b"rwpos\0\0\x01";
const MARK_AT: usize = SLOT_BYTES - MARK.len();

/// The index in one half of a packed base.
const INDEX_15: u16 = 0x7fff;
/// The wrap counter in one half of a packed base.
const WRAP_15: u16 = 0x8000;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    fn position(avail_idx: u16, avail_wrap: bool, used_idx: u16, used_wrap: bool) -> Position {
        Position { avail_idx, avail_wrap, used_idx, used_wrap }
    }

    #[test]
    fn slot_beyond_the_page_is_none() {
        let page = PositionPage::anonymous().unwrap();
        assert!(page.slot(PositionPage::QUEUES - 1).is_some());
        assert!(page.slot(PositionPage::QUEUES).is_none());
    }

    #[test]
    fn load_gives_what_was_stored_until_cleared() {
        let slot = PositionPage::anonymous().unwrap().slot(3).unwrap();
        assert_eq!(slot.load(), None);
        slot.store(Position::START);
        assert_eq!(slot.load(), Some(Position::START));
        slot.clear();
        assert_eq!(slot.load(), None);
        slot.store(position(7, false, 6, true));
        assert_eq!(slot.load(), Some(position(7, false, 6, true)));
        assert_eq!(slot.epoch(), 1);
    }

    #[test]
    fn epoch_wraps_without_touching_the_valid_bit() {
        let slot = PositionPage::anonymous().unwrap().slot(0).unwrap();
        slot.word().store(EPOCH_MASK, Ordering::Relaxed);
        slot.clear();
        assert_eq!((slot.epoch(), slot.load()), (0, None));
    }

    #[test]
    fn slots_of_one_page_do_not_touch_each_other() {
        let page = PositionPage::anonymous().unwrap();
        let slots: Vec<_> = (0..PositionPage::QUEUES).map(|index| page.slot(index).unwrap()).collect();
        for (index, slot) in slots.iter().enumerate() {
            slot.store(position(index as u16, true, !(index as u16), false));
        }
        for (index, slot) in slots.iter().enumerate() {
            assert_eq!(slot.load(), Some(position(index as u16, true, !(index as u16), false)));
        }
    }

    #[test]
    fn file_reopened_has_the_positions_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("positions");
        let page = PositionPage::open(&path).unwrap();
        // Slot 0 shares its line with the file's mark.
        page.slot(0).unwrap().store(position(u16::MAX, true, u16::MAX, true));
        page.slot(9).unwrap().store(position(41, true, 40, false));
        page.slot(10).unwrap().clear();
        drop(page);
        let page = PositionPage::open(&path).unwrap();
        assert_eq!(page.slot(0).unwrap().load(), Some(position(u16::MAX, true, u16::MAX, true)));
        assert_eq!(page.slot(9).unwrap().load(), Some(position(41, true, 40, false)));
        assert_eq!((page.slot(10).unwrap().load(), page.slot(10).unwrap().epoch()), (None, 1));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn two_openers_of_a_file_see_the_same_slot() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("positions");
        let (one, other) = (PositionPage::open(&path).unwrap(), PositionPage::open(&path).unwrap());
        one.slot(5).unwrap().store(Position::START);
        assert_eq!(other.slot(5).unwrap().load(), Some(Position::START));
    }

    #[test]
    fn open_of_what_is_no_position_page_is_refused_and_leaves_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| {
            let error = PositionPage::open(path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            error.to_string()
        };
        let short = folder.path().join("short");
        std::fs::write(&short, "not ours").unwrap();
        assert!(refused(&short).contains("8 bytes long"));
        assert_eq!(std::fs::read(&short).unwrap(), b"not ours");

        let foreign = folder.path().join("foreign");
        std::fs::write(&foreign, [1; PAGE_BYTES as usize]).unwrap();
        assert!(refused(&foreign).contains("not a page of queue positions"));
        assert_eq!(std::fs::read(&foreign).unwrap(), [1; PAGE_BYTES as usize]);

        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &link).unwrap();
        assert!(refused(&link).contains("symbolic link"));
        assert!(!folder.path().join("elsewhere").exists());

        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(refused(&pipe).contains("not a regular file"));
    }

    /// The position that a new opener finds.
    fn kept(path: &Path, index: usize) -> Option<Position> {
        PositionPage::open(path).unwrap().slot(index).unwrap().load()
    }

    #[test]
    fn page_whose_file_was_taken_away_goes_on_in_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("positions");
        let page = PositionPage::open(&path).unwrap();
        let slot = page.slot(5).unwrap();
        slot.clear();
        slot.store(position(3, true, 3, true));
        std::fs::remove_file(&path).unwrap();
        let before = page.file().unwrap();
        page.renew(&path).unwrap();
        let after = page.file().unwrap();
        assert!(after != before && after.is_whole);
        assert_eq!((slot.load(), slot.epoch()), (Some(position(3, true, 3, true)), 1));
        slot.store(position(9, false, 8, true));
        assert_eq!(kept(&path, 5), Some(position(9, false, 8, true)));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        // What somebody put there is left alone.
        std::fs::write(&path, "his").unwrap();
        assert_eq!(page.renew(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"his");
    }

    #[test]
    fn positions_kept_while_the_file_is_made_anew_are_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("positions");
        let page = PositionPage::open(&path).unwrap();
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (slot, own) = (page.slot(1).unwrap(), page.slot(1).unwrap());
            let keeper = scope.spawn(|| {
                let slot = own;
                let mut last = 0u16;
                while !is_over.load(Ordering::Relaxed) {
                    // Pauses, so that many a renewal sees the last store of a row.
                    for _ in 0..3 {
                        last = last.wrapping_add(1);
                        slot.store(position(last, true, last, true));
                    }
                    for _ in 0..u32::from(last) % 4096 {
                        std::hint::spin_loop();
                    }
                    assert_eq!(slot.load(), Some(position(last, true, last, true)));
                }
                last
            });
            // A busy machine may begin the thread late.
            while slot.load().is_none() {
                std::thread::yield_now();
            }
            for _ in 0..2000 {
                std::fs::remove_file(&path).unwrap();
                page.renew(&path).unwrap();
            }
            is_over.store(true, Ordering::Relaxed);
            let last = keeper.join().unwrap();
            assert_eq!(kept(&path, 1), Some(position(last, true, last, true)));
        });
    }

    #[test]
    fn page_whose_file_was_cut_kills_nobody_and_is_made_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("positions");
        let page = PositionPage::open(&path).unwrap();
        let slot = page.slot(2).unwrap();
        for round in 1..3 {
            std::fs::File::create(&path).unwrap();
            assert!(!page.file().unwrap().is_whole);
            slot.store(position(round, true, round, true));
            std::fs::remove_file(&path).unwrap();
            page.renew(&path).unwrap();
            assert_eq!(kept(&path, 2), Some(position(round, true, round, true)));
            slot.store(position(7, true, 7, true));
            assert_eq!(kept(&path, 2), Some(position(7, true, 7, true)));
        }
    }

    #[test]
    fn file_whose_maker_died_before_marking_it_is_taken_as_new() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("positions");
        std::fs::write(&path, [0; PAGE_BYTES as usize]).unwrap();
        assert_eq!(PositionPage::open(&path).unwrap().slot(0).unwrap().load(), None);
        assert_eq!(&std::fs::read(&path).unwrap()[MARK_AT..][..8], MARK);
    }

    #[test]
    fn fresh_packed_base_is_read_as_qemu_and_as_dpdk_send_it() {
        assert_eq!(Position::START.to_vhost_base(Format::Packed), 0x8000_8000);
        assert_eq!(Position::from_vhost_base(Format::Packed, 0x8000_8000), Ok(Position::START));
        assert_eq!(Position::from_vhost_base(Format::Packed, 0x8000), Ok(Position::START));
    }

    #[test]
    fn packed_base_with_high_half_zero_takes_used_from_avail() {
        assert_eq!(
            Position::from_vhost_base(Format::Packed, 0x0000_8123),
            Ok(position(0x123, true, 0x123, true))
        );
        assert_eq!(Position::from_vhost_base(Format::Packed, 0x0000_0001), Ok(position(1, false, 1, false)));
        assert_eq!(Position::from_vhost_base(Format::Packed, 0), Ok(position(0, false, 0, false)));
    }

    #[test]
    fn packed_base_with_high_half_set_survives_a_round_trip() {
        let base = 0x0005_8007;
        let found = Position::from_vhost_base(Format::Packed, base).unwrap();
        assert_eq!(found, position(7, true, 5, false));
        assert_eq!(found.to_vhost_base(Format::Packed), base);
    }

    #[test]
    fn split_base_above_16_bits_is_refused() {
        assert_eq!(Position::from_vhost_base(Format::Split, 0x1_0000), Err(BadBase { base: 0x1_0000 }));
        let last = Position::from_vhost_base(Format::Split, 0xffff).unwrap();
        assert_eq!((last.avail_idx, last.used_idx), (0xffff, 0xffff));
    }

    proptest! {
        #[test]
        fn any_position_survives_its_slot(avail: u16, used: u16, avail_wrap: bool, used_wrap: bool, clears in 0..5u32) {
            let slot = PositionPage::anonymous().unwrap().slot(1).unwrap();
            (0..clears).for_each(|_| slot.clear());
            let stored = position(avail, avail_wrap, used, used_wrap);
            slot.store(stored);
            prop_assert_eq!(slot.load(), Some(stored));
            prop_assert_eq!(slot.epoch(), clears);
        }

        #[test]
        fn any_packed_base_but_a_half_filled_one_survives_a_round_trip(base: u32) {
            prop_assume!(base >> 16 != 0);
            let found = Position::from_vhost_base(Format::Packed, base).unwrap();
            prop_assert_eq!(found.to_vhost_base(Format::Packed), base);
        }

        #[test]
        fn any_split_base_survives_a_round_trip(base in 0..=0xffffu32) {
            let found = Position::from_vhost_base(Format::Split, base).unwrap();
            prop_assert_eq!((found.avail_idx, found.used_idx), (base as u16, base as u16));
            prop_assert_eq!(found.to_vhost_base(Format::Split), base);
        }
    }
}
