//! Memory of our own: a memfd on the largest pages there are, shareable with a back-end or front-end.
//!
//! Tried in this order: 1 GiB hugetlb pages, 2 MiB hugetlb pages, transparent huge pages (`MADV_COLLAPSE`), ordinary
//! pages. What it reports is what it got, read back from the kernel, not what it asked for.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

/// The pages that memory really stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    /// hugetlbfs, 1 GiB.
    Hugetlb1G,
    /// hugetlbfs, 2 MiB.
    Hugetlb2M,
    /// Transparent huge pages, 2 MiB, over at least the part that was asked for.
    Thp,
    /// The base page size, 4 KiB on x86-64.
    Base,
}

impl fmt::Display for PageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PageKind::Hugetlb1G => "hugetlb-1G",
            PageKind::Hugetlb2M => "hugetlb-2M",
            PageKind::Thp => "thp",
            PageKind::Base => "4k",
        })
    }
}

/// Memory of our own, mapped shared, zeroed, sealed against shrinking and growing.
#[derive(Debug)]
pub struct HostMemory {
    _todo: (),
}

impl HostMemory {
    /// Allocates at least `size` bytes (rounded up to the page kind's size) on the best pages there are.
    pub fn allocate(name: &str, size: u64) -> io::Result<HostMemory> {
        let _ = (name, size);
        unimplemented!("skeleton")
    }
    /// Allocates on this kind of pages or fails.
    pub fn allocate_on(kind: PageKind, name: &str, size: u64) -> io::Result<HostMemory> {
        let _ = (kind, name, size);
        unimplemented!("skeleton")
    }
    /// The pages it stands on.
    pub fn kind(&self) -> PageKind {
        unimplemented!("skeleton")
    }
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        unimplemented!("skeleton")
    }
    /// Address of the first byte in this process: what a vhost-user front-end names as `userspace_addr`.
    pub fn address(&self) -> u64 {
        unimplemented!("skeleton")
    }
    /// The file behind it, to be passed to a peer.
    pub fn file(&self) -> BorrowedFd<'_> {
        unimplemented!("skeleton")
    }
}
