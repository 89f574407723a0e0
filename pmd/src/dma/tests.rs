//! A window over a space that remembers, and that fails when told to.

use std::collections::BTreeMap;
use std::sync::Mutex;

use proptest::prelude::*;
use ringway_ring::guest::RegionSpec;

use super::*;

/// What is behind each address, and what fails.
#[derive(Default)]
struct Model {
    mapped: Mutex<BTreeMap<u64, (u64, u64)>>,
    /// IOVAs that are not unmapped.
    sticky: Mutex<Vec<u64>>,
    /// Calls of `map` until one fails.
    fails_after: Mutex<Option<usize>>,
    calls: Mutex<Vec<u64>>,
}

impl DmaSpace for Model {
    fn map(&self, iova: u64, region: &Region, at: u64, len: u64) -> io::Result<()> {
        if let Some(left) = &mut *self.fails_after.lock().unwrap() {
            if *left == 0 {
                return Err(io::Error::other("no more memory can be pinned"));
            }
            *left -= 1;
        }
        self.calls.lock().unwrap().push(len);
        let mut mapped = self.mapped.lock().unwrap();
        let free = |(start, (length, _)): (&u64, &(u64, u64))| iova + len <= *start || start + length <= iova;
        assert!(mapped.iter().all(free), "something is behind {iova:#x} already");
        mapped.insert(iova, (len, region.host_address() + at));
        Ok(())
    }
    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        if self.sticky.lock().unwrap().contains(&iova) {
            return Err(io::Error::other("the IOMMU does not answer"));
        }
        let there = self.mapped.lock().unwrap().remove(&iova);
        assert_eq!(there.map(|(length, _)| length), Some(len), "as it was mapped");
        Ok(())
    }
    fn ranges(&self) -> Vec<RangeInclusive<u64>> {
        vec![0..=0xfedf_ffff, 0xfef0_0000..=(1 << 39) - 1]
    }
}

/// A region of so many pages at a page of the guest's, of which none was touched.
fn region(page: u64, pages: u64) -> Arc<Region> {
    let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let (gpa, size) = (page * 4096, pages * 4096);
    rustix::fs::ftruncate(&file, size).unwrap();
    Region::map(RegionSpec { gpa, size, user_addr: gpa, file_offset: 0, file }).unwrap()
}

fn map_of(regions: &[Arc<Region>]) -> GuestMap {
    GuestMap::new(regions.to_vec()).unwrap()
}

fn behind(model: &Model) -> Vec<(u64, u64)> {
    model.mapped.lock().unwrap().iter().map(|(iova, (len, _))| (*iova, *len)).collect()
}

#[test]
fn change_of_a_map_touches_what_changes_alone() {
    let model = Arc::new(Model::default());
    let mut window = Window::new(model.clone(), 1 << 32, 1 << 32);
    let (low, high) = (region(0, 4), region(16, 4));
    window.set_map(Some(&map_of(&[low.clone(), high.clone()])), Cancel::never()).unwrap();
    let base = 1u64 << 32;
    assert_eq!(behind(&model), [(base, 16384), (base + 65536, 16384)]);
    assert_eq!(window.iova(100, 50), Some(base + 100));
    assert_eq!(window.iova(16380, 8), None, "beyond its region");
    // The front-end's addresses of these regions are the guest's.
    assert_eq!(window.iova_of_user(65536 + 5, 50), Some(base + 65536 + 5));
    assert_eq!(window.iova_of_user(16380, 8), None);
    model.calls.lock().unwrap().clear();
    let other = region(32, 1);
    window.set_map(Some(&map_of(&[low, other])), Cancel::never()).unwrap();
    assert_eq!(model.calls.lock().unwrap().as_slice(), [4096]);
    assert_eq!(behind(&model), [(base, 16384), (base + 0x20000, 4096)]);
    assert_eq!(Arc::strong_count(&high), 1, "what is not mapped is not held");
    drop(window);
    assert!(behind(&model).is_empty());
}

#[test]
fn what_the_function_cannot_reach_is_refused_before_anything_is_touched() {
    let model = Arc::new(Model::default());
    let mut window = Window::new(model.clone(), 0, 1 << 40);
    let good = map_of(&[region(0, 1)]);
    window.set_map(Some(&good), Cancel::never()).unwrap();
    // The interrupt range of x86, and the space's end.
    for page in [0xfee00, (1 << 27) - 1] {
        let bad = map_of(&[region(page, 2)]);
        let refused = window.set_map(Some(&bad), Cancel::never()).unwrap_err();
        assert!(matches!(refused, MapError::Beyond { .. }), "{refused}");
        assert_eq!(behind(&model), [(0, 4096)]);
    }
    let mut small = Window::new(model, 1 << 20, 8192);
    assert!(matches!(
        small.set_map(Some(&map_of(&[region(1, 2)])), Cancel::never()),
        Err(MapError::Beyond { .. })
    ));
}

#[test]
fn region_beyond_a_step_is_mapped_in_steps_and_unmapped_likewise() {
    for (bytes, steps) in [
        (STEP - 4096, vec![STEP - 4096]),
        (STEP, vec![STEP]),
        (STEP + 4096, vec![STEP, 4096]),
        (2 * STEP + 4096, vec![STEP, STEP, 4096]),
    ] {
        let model = Arc::new(Model::default());
        let mut window = Window::new(model.clone(), 0, 1 << 39);
        window.set_map(Some(&map_of(&[region(1, bytes / 4096)])), Cancel::never()).unwrap();
        assert_eq!(*model.calls.lock().unwrap(), steps);
        // Each is taken away as it was put there: the model insists.
        window.set_map(None, Cancel::never()).unwrap();
        assert!(behind(&model).is_empty());
    }
}

#[test]
fn memory_that_is_not_whole_pages_is_refused_and_what_was_mapped_stays() {
    let model = Arc::new(Model::default());
    let mut window = Window::new(model.clone(), 0, 1 << 30);
    window.set_map(Some(&map_of(&[region(0, 1)])), Cancel::never()).unwrap();
    for (gpa, size, file_offset) in [(0x2800, 4096, 0), (0x2000, 4000, 0), (0x2000, 4096, 2048)] {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 16384).unwrap();
        let odd = Region::map(RegionSpec { gpa, size, user_addr: gpa, file_offset, file }).unwrap();
        let refused = window.set_map(Some(&map_of(&[odd])), Cancel::never());
        assert!(matches!(refused, Err(MapError::Unaligned { .. })), "{refused:?}");
        assert_eq!(behind(&model), [(0, 4096)]);
    }
}

#[test]
fn what_the_host_does_not_take_away_is_held_and_what_it_does_is_not_asked_for_twice() {
    let model = Arc::new(Model::default());
    let mut window = Window::new(model.clone(), 0, 1 << 39);
    let (large, small) = (region(0, (2 * STEP + 4096) / 4096), region(1 << 20, 1));
    window.set_map(Some(&map_of(&[large.clone(), small.clone()])), Cancel::never()).unwrap();
    // Its middle stays.
    model.sticky.lock().unwrap().push(STEP);
    let lost = window.set_map(Some(&map_of(std::slice::from_ref(&small))), Cancel::never());
    assert!(matches!(lost, Err(MapError::Lost(_))), "{lost:?}");
    assert_eq!((window.iova(0, 1), window.iova(2 * STEP, 1)), (None, None), "no part of it is used");
    assert_eq!(behind(&model), [(0, STEP), (STEP, STEP), (1 << 32, 4096)]);
    // Once the host answers, the rest goes, and nothing is asked for that has gone.
    model.sticky.lock().unwrap().clear();
    window.set_map(Some(&map_of(std::slice::from_ref(&small))), Cancel::never()).unwrap();
    assert_eq!(behind(&model), [(1 << 32, 4096)]);
    assert_eq!(Arc::strong_count(&large), 1);
    // A window that goes while the host does not answer keeps the memory, and takes away what it can.
    window.set_map(Some(&map_of(&[large.clone(), small.clone()])), Cancel::never()).unwrap();
    model.sticky.lock().unwrap().push(STEP);
    drop(window);
    assert_eq!(behind(&model), [(STEP, STEP)]);
    assert_eq!((Arc::strong_count(&large), Arc::strong_count(&small)), (2, 1));
}

#[test]
fn cancelled_map_leaves_the_one_before_unless_it_was_in_the_way() {
    let model = Arc::new(Model::default());
    let mut window = Window::new(model.clone(), 0, 1 << 30);
    let flag = AtomicBool::new(false);
    window.set_map(Some(&map_of(&[region(0, 1)])), Cancel::on(&flag)).unwrap();
    flag.store(true, Ordering::Relaxed);
    let cancelled = window.set_map(Some(&map_of(&[region(1, 2)])), Cancel::on(&flag));
    assert!(matches!(cancelled, Err(MapError::Cancelled)));
    assert_eq!(behind(&model), [(0, 4096)]);
    // Who is removed does not wait for memory to be mapped that nobody will use.
    let cancelled = window.set_map(Some(&map_of(&[region(0, 2)])), Cancel::on(&flag));
    assert!(matches!(cancelled, Err(MapError::Lost(_))));
    assert!(behind(&model).is_empty());
}

proptest! {
    /// Whatever maps come one after the other, and whichever step fails: what is mapped is the new map, or the old one.
    #[test]
    fn map_is_in_force_as_a_whole_or_not_at_all(
        maps in proptest::collection::vec(proptest::collection::vec((0u64..8, 1u64..4), 0..4), 1..6),
        fails in proptest::collection::vec(proptest::option::of(0usize..4), 6),
    ) {
        let model = Arc::new(Model::default());
        let mut window = Window::new(model.clone(), 0, 1 << 30);
        let mut known: BTreeMap<(u64, u64), Arc<Region>> = BTreeMap::new();
        let mut before = Vec::new();
        for (pages, fails) in maps.into_iter().zip(fails) {
            let mut regions = Vec::new();
            for (page, count) in pages {
                let one = known.entry((page, count)).or_insert_with(|| region(page, count)).clone();
                if regions.iter().all(|other: &Arc<Region>| !overlap(other, &one)) {
                    regions.push(one);
                }
            }
            let map = map_of(&regions);
            *model.fails_after.lock().unwrap() = fails;
            let outcome = window.set_map(Some(&map), Cancel::never());
            *model.fails_after.lock().unwrap() = None;
            let mut wanted: Vec<(u64, u64)> = map.regions().iter().map(|one| (one.gpa(), one.size())).collect();
            wanted.sort_unstable();
            match outcome {
                Ok(()) => before = wanted,
                Err(MapError::Lost(_)) => {
                    // Putting the old map back failed as well: nothing is left to compare with.
                    window.set_map(None, Cancel::never()).unwrap();
                    before = Vec::new();
                }
                Err(_) => {}
            }
            prop_assert_eq!(&behind(&model), &before);
        }
        window.set_map(None, Cancel::never()).unwrap();
        prop_assert!(behind(&model).is_empty());
    }
}

#[test]
fn addresses_are_divided_where_our_own_have_room_beyond_every_guest() {
    struct Ranges(Vec<RangeInclusive<u64>>);
    impl DmaSpace for Ranges {
        fn map(&self, _: u64, _: &Region, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn unmap(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn ranges(&self) -> Vec<RangeInclusive<u64>> {
            self.0.clone()
        }
    }
    let own =
        |ranges: &[RangeInclusive<u64>]| Division::of(&Ranges(ranges.to_vec())).map(|division| division.own);
    let low = 0..=0xfedf_ffff;
    assert_eq!(own(&[low.clone(), 0xfef0_0000..=(1 << 48) - 1]), Some((1 << 48) - OWN_BYTES));
    assert_eq!(own(&[low.clone(), 0xfef0_0000..=(1 << 39) - 1]), Some((1 << 39) - OWN_BYTES));
    assert_eq!(own(&[0..=u64::MAX]), Some(u64::MAX - OWN_BYTES + 1));
    // A last range that has no room for it at a whole multiple is passed over.
    assert_eq!(own(&[low, 0xfef0_0000..=0xffff_fffe]), Some(0x8000_0000));
    assert_eq!(own(&[OWN_BYTES..=2 * OWN_BYTES - 1]), Some(OWN_BYTES));
    assert_eq!(own(&[OWN_BYTES..=2 * OWN_BYTES - 2]), None);
    assert_eq!(own(&[0..=0xfff]), None);
    assert_eq!(own(&[]), None);
}
