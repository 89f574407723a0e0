use proptest::prelude::*;
use rustix::fs::MemfdFlags;

use super::*;

const PAGE: u64 = 4096;
const HUGE: u64 = 2 << 20;

fn memfd_named(name: &str, size: u64) -> OwnedFd {
    let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&file, size).unwrap();
    file
}

fn spec(gpa: u64, size: u64, user_addr: u64) -> RegionSpec {
    RegionSpec { gpa, size, user_addr, file_offset: 0, file: memfd_named("guest-test", size) }
}

fn region(gpa: u64, size: u64, user_addr: u64) -> Arc<Region> {
    Region::map(spec(gpa, size, user_addr)).unwrap()
}

fn refusal(spec: RegionSpec) -> MapError {
    Region::map(spec).unwrap_err()
}

/// Two adjoining regions (by guest physical address, in reverse order by front-end's), a hole, and a third.
fn three() -> GuestMap {
    GuestMap::new(vec![
        region(8 * PAGE, PAGE, 0x7000_0000),
        region(0, 2 * PAGE, 0x9000_0000),
        region(2 * PAGE, PAGE, 0x8000_0000),
    ])
    .unwrap()
}

fn lookup(map: &GuestMap, gpa: u64, len: u32) -> Option<(u64, usize)> {
    let found = map.lookup(&mut LastHit::default(), gpa, len).ok()?;
    Some((found.as_ptr().addr() as u64, found.len()))
}

#[test]
fn lookup_across_adjoining_regions_returns_prefix_then_rest() {
    let map = three();
    let mut hint = LastHit::default();
    let head = map.lookup(&mut hint, 2 * PAGE - 10, 30).unwrap();
    assert_eq!(head.len(), 10);
    let rest = map.lookup(&mut hint, 2 * PAGE, 20).unwrap();
    assert_eq!(rest.len(), 20);
    assert_eq!(rest.write(b"abc"), 3);
    let mut back = [0; 3];
    assert_eq!(map.resolve_user(0x8000_0000, 3).unwrap().read(&mut back), 3);
    assert_eq!(&back, b"abc");
}

#[test]
fn last_byte_hits_and_one_past_it_misses() {
    let map = three();
    let last = map.regions()[1].host_address() + PAGE - 1;
    assert_eq!(lookup(&map, 3 * PAGE - 1, 1), Some((last, 1)));
    assert_eq!(lookup(&map, 3 * PAGE - 1, 2), Some((last, 1)), "the prefix that there is");
    let error = map.lookup(&mut LastHit::default(), 3 * PAGE, 1).unwrap_err();
    assert_eq!(error, Miss { address: 3 * PAGE, len: 1 });
    assert_eq!(error.to_string(), "no guest memory at 0x3000, 1 bytes");
}

#[test]
fn zero_length_hits_inside_and_misses_outside() {
    let map = three();
    assert_eq!(lookup(&map, PAGE, 0).map(|found| found.1), Some(0));
    assert_eq!(lookup(&map, 3 * PAGE, 0), None);
    assert_eq!(lookup(&map, 8 * PAGE - 1, 0), None);
    assert_eq!(lookup(&map, u64::MAX, 0), None);
    assert!(map.resolve(3 * PAGE, 0).is_err());
    assert!(map.resolve_user(0, 0).is_err());
}

#[test]
fn resolve_takes_a_whole_region_and_nothing_that_leaves_it() {
    let map = three();
    assert_eq!(map.resolve(0, 2 * PAGE).unwrap().len() as u64, 2 * PAGE);
    assert_eq!(map.resolve(0, 2 * PAGE + 1).unwrap_err(), Miss { address: 0, len: 2 * PAGE + 1 });
    assert!(map.resolve(1, u64::MAX).is_err());
    assert_eq!(map.resolve_user(0x9000_0000, 2 * PAGE).unwrap().len() as u64, 2 * PAGE);
    assert!(map.resolve_user(0x9000_0001, 2 * PAGE).is_err());
    assert!(map.resolve_user(0x6fff_ffff, 1).is_err());
    assert!(map.resolve_user(0x9000_2000, 1).is_err());
}

#[test]
fn hint_of_another_map_is_harmless() {
    let (map, other) = (three(), GuestMap::new(vec![region(0, PAGE, 0)]).unwrap());
    let mut hint = LastHit::default();
    map.lookup(&mut hint, 8 * PAGE, 1).unwrap();
    assert_eq!(hint.0, 2);
    let found = other.lookup(&mut hint, 7, 1).unwrap();
    assert_eq!(found.as_ptr().addr() as u64, other.regions()[0].host_address() + 7);
    assert!(GuestMap::new(Vec::new()).unwrap().lookup(&mut LastHit(2), 0, 1).is_err());
}

#[test]
fn region_at_the_top_of_the_address_space_is_found_to_its_last_byte() {
    let top = u64::MAX - PAGE + 1;
    let map = GuestMap::new(vec![region(top, PAGE, top), region(0, PAGE, 0)]).unwrap();
    assert_eq!(lookup(&map, u64::MAX, 9).map(|found| found.1), Some(1));
    assert_eq!(map.resolve_user(u64::MAX, 1).unwrap().len(), 1);
}

#[test]
fn as_many_regions_as_allowed_are_all_found_and_one_more_is_refused() {
    let at = |index: u64| (0x10_0000 + index * 2 * PAGE, 0x7f00_0000_0000 - index * 4 * PAGE);
    let regions: Vec<_> =
        (0..MAX_REGIONS as u64).map(|index| region(at(index).0, PAGE, at(index).1)).collect();
    let mut shuffled = regions.clone();
    shuffled.reverse();
    shuffled.swap(3, 400);
    let map = GuestMap::new(shuffled).unwrap();
    let mut hint = LastHit::default();
    for (index, region) in regions.iter().enumerate() {
        let (gpa, user_addr) = at(index as u64);
        let found = map.lookup(&mut hint, gpa + PAGE - 1, 1).unwrap();
        assert_eq!(found.as_ptr().addr() as u64, region.host_address() + PAGE - 1);
        assert!(map.lookup(&mut hint, gpa + PAGE, 1).is_err());
        assert_eq!(map.resolve_user(user_addr, PAGE).unwrap().as_ptr().addr() as u64, region.host_address());
    }
    assert!(matches!(map.with(region(0, PAGE, 0)), Err(MapError::TooMany { count: 513 })));
}

#[test]
fn overlap_in_either_address_space_is_refused() {
    let overlap = |a, b| match GuestMap::new(vec![a, b]).unwrap_err() {
        MapError::Overlap { address } => address,
        other => panic!("{other}"),
    };
    assert_eq!(overlap(region(0, 2 * PAGE, 0), region(PAGE, PAGE, 0x10_0000)), PAGE);
    assert_eq!(overlap(region(PAGE, PAGE, 0), region(PAGE, PAGE, 0x10_0000)), PAGE);
    assert_eq!(overlap(region(0, 2 * PAGE, 0x10_0000), region(0x20_0000, PAGE, 0x10_1fff)), 0x10_1fff);
    let top = u64::MAX - 2 * PAGE + 1;
    assert_eq!(overlap(region(top, 2 * PAGE, 0), region(top + PAGE, PAGE, 0x10_0000)), top + PAGE);
    assert!(GuestMap::new(vec![region(0, PAGE, PAGE), region(PAGE, PAGE, 0)]).is_ok(), "adjoining");
}

#[test]
fn claims_that_wrap_or_are_empty_are_refused() {
    assert!(matches!(refusal(spec(0x5000, 0, 0)), MapError::Empty { gpa: 0x5000 }));
    for (gpa, user_addr, file_offset) in
        [(u64::MAX, 0, 0), (0, u64::MAX, 0), (0, 0, u64::MAX), (0, 0, u64::MAX - PAGE + 1)]
    {
        let wrapping = RegionSpec { gpa, user_addr, file_offset, ..spec(0, PAGE, 0) };
        assert!(matches!(refusal(wrapping), MapError::Wrap { size: PAGE, .. }));
    }
    let endless = RegionSpec { size: u64::MAX, ..spec(0, PAGE, 0) };
    assert!(matches!(refusal(endless), MapError::BeyondFile { end: u64::MAX, file_size: PAGE }));
}

#[test]
fn region_beyond_its_file_is_refused() {
    let beyond = |file_offset, size| refusal(RegionSpec { size, file_offset, ..spec(0, PAGE, 0) });
    assert!(matches!(beyond(0, PAGE + 1), MapError::BeyondFile { end: 4097, file_size: PAGE }));
    assert!(matches!(beyond(1, PAGE), MapError::BeyondFile { .. }));
    assert!(matches!(beyond(1 << 62, 1), MapError::BeyondFile { .. }));
}

#[test]
fn descriptor_of_anything_but_a_memory_file_is_refused() {
    let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    let open = |path: &str| OwnedFd::from(std::fs::File::open(path).unwrap());
    // /dev often says that it is tmpfs: its devices are told by not being regular files.
    for file in [eventfd, pipe, open("/proc/self/maps"), open("/dev/zero"), open("/dev"), open("/")] {
        let error = refusal(RegionSpec { gpa: 0, size: PAGE, user_addr: 0, file_offset: 0, file });
        assert!(matches!(error, MapError::NotMemory { .. }), "{error}");
    }
}

#[test]
fn file_that_is_not_writable_is_refused() {
    let file = memfd_named("read-only", PAGE);
    rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE).unwrap();
    let error = refusal(RegionSpec { gpa: 0, size: PAGE, user_addr: 0, file_offset: 0, file });
    assert!(matches!(error, MapError::Map(_)), "{error}");
}

#[test]
fn region_at_an_odd_file_offset_shows_exactly_its_bytes() {
    let file = memfd_named("odd", 3 * PAGE);
    rustix::io::pwrite(&file, b"here", PAGE + 123).unwrap();
    let map = GuestMap::new(vec![
        Region::map(RegionSpec { gpa: 0, size: PAGE, user_addr: 0, file_offset: PAGE + 123, file }).unwrap(),
    ])
    .unwrap();
    let mut found = [0; 4];
    map.resolve(0, PAGE).unwrap().read(&mut found);
    assert_eq!(&found, b"here");
    assert!(map.resolve(0, PAGE + 1).is_err());
}

#[test]
fn large_region_is_placed_so_that_huge_pages_fit() {
    for file_offset in [0, 3 * PAGE, HUGE + PAGE + 5] {
        let file = memfd_named("large", 8 * HUGE);
        let size = 4 * HUGE + PAGE;
        let region = Region::map(RegionSpec { gpa: 0, size, user_addr: 0, file_offset, file }).unwrap();
        assert_eq!(region.host_address() % HUGE, file_offset % HUGE);
        let map = GuestMap::new(vec![region]).unwrap();
        assert_eq!(map.resolve(size - 1, 1).unwrap().write(&[1]), 1);
    }
}

#[test]
fn hugetlb_region_at_an_odd_offset_shows_exactly_its_bytes() {
    use crate::memory::{HostMemory, PageKind};
    let memory = match HostMemory::allocate_on(PageKind::Hugetlb2M, "odd", 2 * HUGE) {
        Ok(memory) => memory,
        Err(error) => return eprintln!("left out: no 2 MiB pages: {error}"),
    };
    let (size, file_offset) = (HUGE, HUGE - PAGE - 3);
    let file = memory.file().try_clone_to_owned().unwrap();
    let region = Region::map(RegionSpec { gpa: 0, size, user_addr: 0, file_offset, file }).unwrap();
    assert_eq!((region.page_bytes(), region.size()), (HUGE, size));
    let (map, whole) = (GuestMap::new(vec![region]).unwrap(), memory.guest_map(0).unwrap());
    map.resolve(0, 3).unwrap().write(b"abc");
    map.resolve(size - 1, 1).unwrap().write(b"z");
    let mut found = [0; 4];
    whole.resolve(file_offset, 3).unwrap().read(&mut found);
    whole.resolve(file_offset + size - 1, 1).unwrap().read(&mut found[3..]);
    assert_eq!(&found, b"abcz");
}

#[test]
fn seal_against_shrinking_is_seen() {
    let file = memfd_named("sealed", PAGE);
    assert!(!region(0, PAGE, 0).is_sealed());
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    let sealed = Region::map(RegionSpec { gpa: 0, size: PAGE, user_addr: 0, file_offset: 0, file }).unwrap();
    assert!(sealed.is_sealed());
}

#[test]
fn region_is_the_same_only_if_every_claim_and_the_file_are() {
    let file = memfd_named("same", 4 * PAGE);
    let again = || RegionSpec {
        gpa: PAGE,
        size: PAGE,
        user_addr: 0x10_0000,
        file_offset: PAGE,
        file: file.try_clone().unwrap(),
    };
    let region = Region::map(again()).unwrap();
    assert!(region.is_same(&again()));
    assert!(!region.is_same(&RegionSpec { gpa: 0, ..again() }));
    assert!(!region.is_same(&RegionSpec { size: 2 * PAGE, ..again() }));
    assert!(!region.is_same(&RegionSpec { user_addr: 0, ..again() }));
    assert!(!region.is_same(&RegionSpec { file_offset: 0, ..again() }));
    assert!(!region.is_same(&RegionSpec { file: memfd_named("same", 4 * PAGE), ..again() }));
}

#[test]
fn map_with_and_without_a_region_shares_the_others() {
    let map = three();
    let more = map.with(region(4 * PAGE, PAGE, 0x1_0000)).unwrap();
    assert_eq!(more.regions().len(), 4);
    assert!(Arc::ptr_eq(&map.regions()[0], &more.regions()[0]));
    assert!(matches!(map.with(region(PAGE, PAGE, 0x1_0000)), Err(MapError::Overlap { .. })));

    let fewer = more.without(2 * PAGE, 0x8000_0000, PAGE).unwrap();
    let gpas: Vec<_> = fewer.regions().iter().map(|region| region.gpa()).collect();
    assert_eq!(gpas, [0, 4 * PAGE, 8 * PAGE]);
    for (gpa, user_addr, size) in
        [(0, 0x9000_0001, 2 * PAGE), (1, 0x9000_0000, 2 * PAGE), (0, 0x9000_0000, PAGE)]
    {
        assert!(matches!(fewer.without(gpa, user_addr, size), Err(MapError::NoSuchRegion { .. })));
    }
}

#[test]
fn region_is_unmapped_and_its_file_closed_with_the_last_map() {
    let name = "guest-test-dropped";
    let mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().contains(name);
    let open = || {
        std::fs::read_dir("/proc/self/fd").unwrap().flatten().any(|entry| {
            std::fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().contains(name))
        })
    };
    for size in [PAGE, 3 * HUGE] {
        let spec = RegionSpec { file: memfd_named(name, size), ..spec(0, size, 0) };
        let map = GuestMap::new(vec![Region::map(spec).unwrap()]).unwrap();
        let other = map.with(region(1 << 40, PAGE, 1 << 40)).unwrap();
        drop(map);
        assert!(mapped() && open());
        drop(other);
        assert!(!mapped() && !open());
    }
}

#[test]
fn populate_makes_the_pages_of_a_slice_present_and_no_others() {
    let map = GuestMap::new(vec![region(0, 64 * PAGE, 0)]).unwrap();
    map.resolve(10 * PAGE + 100, 2 * PAGE).unwrap().populate().unwrap();
    let host = map.regions()[0].host_address();
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&format!("{host:x}-")));
    let rss = lines.find(|line| line.starts_with("Rss:")).unwrap();
    assert_eq!(rss.split_ascii_whitespace().nth(1), Some("12"));
    let flags = lines.find(|line| line.starts_with("VmFlags:")).unwrap();
    assert!(flags.contains(" dd"), "kept out of core dumps: {flags}");
    map.resolve(0, 0).unwrap().populate().unwrap();
}

#[test]
fn populate_of_truncated_memory_is_an_error_and_no_signal() {
    let file = memfd_named("cut", PAGE);
    let spec = RegionSpec { file: file.try_clone().unwrap(), ..spec(0, PAGE, 0) };
    let map = GuestMap::new(vec![Region::map(spec).unwrap()]).unwrap();
    rustix::fs::ftruncate(&file, 0).unwrap();
    assert!(map.resolve(0, PAGE).unwrap().populate().is_err());
    assert!(!map.is_poisoned());
}

/// What a lookup must find, said as plainly as can be: where in which region, and how much.
fn oracle(layout: &[(u64, u64)], gpa: u64, len: u64) -> Option<(usize, u64, u64)> {
    layout.iter().enumerate().find_map(|(index, &(start, size))| {
        let (gpa, start, end) = (u128::from(gpa), u128::from(start), u128::from(start) + u128::from(size));
        (start <= gpa && gpa < end)
            .then(|| (index, (gpa - start) as u64, u128::from(len).min(end - gpa) as u64))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn lookup_finds_what_the_interval_model_finds(
        pages in prop::collection::vec((0u64..3, 1u64..5), 0..12),
        base in prop::sample::select(vec![0u64, 1 << 20, 0xffff_f000, 1 << 46]),
        probes in prop::collection::vec((0u64..70 * PAGE, 0u32..40_000, any::<bool>()), 200),
    ) {
        // Gaps of 0 pages make adjoining regions.
        let mut at = base;
        let layout: Vec<_> = pages
            .iter()
            .map(|&(gap, count)| {
                let start = at + gap * PAGE;
                at = start + count * PAGE;
                (start, count * PAGE)
            })
            .collect();
        let map = GuestMap::new(
            layout.iter().rev().map(|&(gpa, size)| region(gpa, size, !gpa - size)).collect()
        ).unwrap();
        let mut hint = LastHit::default();
        for (offset, len, near_an_edge) in probes {
            let offset = if near_an_edge { (offset & !(PAGE - 1)) + offset % 3 } else { offset };
            let gpa = base.wrapping_add(offset).wrapping_sub(1);
            let wanted = oracle(&layout, gpa, len.into());
            let host = |index: usize, at: u64| map.regions()[index].host_address() + at;
            let found = map.lookup(&mut hint, gpa, len).ok();
            prop_assert_eq!(
                found.map(|slice| (slice.as_ptr().addr() as u64, slice.len() as u64)),
                wanted.map(|(index, at, len)| (host(index, at), len))
            );
            let whole = wanted.filter(|found| found.2 == u64::from(len));
            prop_assert_eq!(
                map.resolve(gpa, len.into()).ok().map(|slice| slice.as_ptr().addr() as u64),
                whole.map(|(index, at, _)| host(index, at))
            );
            // The same claim by the front-end's addresses, where the regions lie in reverse order and apart.
            if let Some((index, at, _)) = wanted {
                let user_addr = map.regions()[index].user_addr() + at;
                prop_assert_eq!(map.resolve_user(user_addr, len.into()).is_ok(), whole.is_some());
            }
        }
    }
}
