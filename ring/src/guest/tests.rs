use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::MemfdFlags;

use super::*;

const PAGE: u64 = 4096;

fn memfd(size: u64) -> OwnedFd {
    let file =
        rustix::fs::memfd_create("guest-test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&file, size).unwrap();
    file
}

fn spec(gpa: u64, size: u64, user_addr: u64) -> RegionSpec {
    RegionSpec { gpa, size, user_addr, file_offset: 0, file: memfd(size) }
}

fn region(gpa: u64, size: u64, user_addr: u64) -> Arc<Region> {
    Region::map(spec(gpa, size, user_addr)).unwrap()
}

#[test]
fn lookup_across_adjoining_regions_returns_prefix_then_rest() {
    let map = GuestMap::new(vec![region(PAGE, PAGE, 0x9000_0000), region(0, PAGE, 0x8000_0000)]).unwrap();
    let mut hint = LastHit::default();
    let head = map.lookup(&mut hint, PAGE - 10, 30).unwrap();
    assert_eq!(head.len(), 10);
    let rest = map.lookup(&mut hint, PAGE - 10 + 10, 20).unwrap();
    assert_eq!(rest.len(), 20);
    assert_eq!(rest.write(b"abc"), 3);
    let mut back = [0; 3];
    assert_eq!(map.resolve_user(0x9000_0000, 3).unwrap().read(&mut back), 3);
    assert_eq!(&back, b"abc");
    assert_eq!(map.lookup(&mut hint, 2 * PAGE, 0).unwrap_err(), Miss { address: 2 * PAGE, len: 0 });
}
