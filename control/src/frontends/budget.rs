//! What front-ends may take of that which the whole process has only so much of: descriptors and address space.
//!
//! A quarter of the descriptors and an eighth of the address space are kept back for operators, devices, workers and
//! state. Of the rest, a front-end may hold only so much that a fair part stays free after it (see `Pool::share`). What
//! every front-end needs (its socket, its rings' descriptors, a few regions) is set aside when it comes, so that only
//! further memory can be refused. So is what a device needs whose other side is a kernel's interface, which is refused
//! where there is less.
//!
//! A region in which a disk's front-end has its requests in flight recorded is not counted: it is one a front-end, of 2 MiB at
//! most, and keeps no descriptor.
//!
//! Sessions take and give back here, control lets them in. The lock is held for a few comparisons, never across a
//! system call.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringway_pmd::vdpa::Class;
use rustix::process::{Resource, getrlimit};

/// What the process has and what is held of it.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Pools>);

#[derive(Debug)]
struct Pools {
    descriptors: Pool,
    space: Pool,
}

#[derive(Debug)]
struct Pool {
    what: Kind,
    /// What front-ends may hold together.
    total: u64,
    /// By session: whose, and how much.
    held: Mutex<BTreeMap<u64, (String, u64)>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Descriptors,
    Space,
}

/// What there is too little of: who holds it, and what helps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Short(String);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Short {}

impl Budget {
    /// That of this process, by its limits now.
    pub fn of_process() -> Budget {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Budget::new(limit - kept_back(limit), ADDRESS_SPACE - ADDRESS_SPACE / 8)
    }

    /// Descriptors and bytes of address space for all front-ends together.
    pub fn new(descriptors: u64, space: u64) -> Budget {
        let pool = |what, total| Pool { what, total, held: Mutex::default() };
        Budget(Arc::new(Pools {
            descriptors: pool(Kind::Descriptors, descriptors),
            space: pool(Kind::Space, space),
        }))
    }

    /// Lets a front-end in: sets aside what every one needs for so many rings of a device of this class.
    ///
    /// # Errors
    /// There are not so many descriptors left.
    pub fn admit(&self, session: u64, device: &str, class: Class, rings: usize) -> Result<Lease, Short> {
        let behind = match class {
            Class::Net => 0,
            Class::Block => DESCRIPTORS_PER_DISK_QUEUE,
        };
        let each = DESCRIPTORS_PER_RING + behind;
        self.set_aside(session, device, BASE_DESCRIPTORS + each * rings as u64)
    }

    /// Sets aside what a device needs whose other side is a kernel's interface of so many queues. `holder` is a session's
    /// number that no session has.
    ///
    /// # Errors
    /// There are not so many descriptors left.
    pub fn admit_interface(&self, holder: u64, device: &str, queues: usize) -> Result<Lease, Short> {
        self.set_aside(
            holder,
            device,
            INTERFACE_DESCRIPTORS + DESCRIPTORS_PER_INTERFACE_QUEUE * queues as u64,
        )
    }

    fn set_aside(&self, session: u64, device: &str, base: u64) -> Result<Lease, Short> {
        let pool = &self.0.descriptors;
        let mut held = pool.lock();
        if base > pool.free(&held, session) {
            return Err(pool.short(&held, device, base, base));
        }
        held.insert(session, (device.to_owned(), base));
        drop(held);
        Ok(Lease { budget: self.clone(), session, device: device.to_owned(), base })
    }
}

/// Of so many descriptors, those that no front-end gets.
fn kept_back(limit: u64) -> u64 {
    (limit / 4).max(LEAST_DESCRIPTORS_KEPT).min(limit / 2)
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, (String, u64)>> {
        // Nothing panics while it is held, and a map of numbers is whole after any step.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is left if this session held nothing.
    fn free(&self, held: &BTreeMap<u64, (String, u64)>, session: u64) -> u64 {
        let others = held.iter().filter(|(id, _)| **id != session).map(|(_, (_, n))| *n);
        self.total.saturating_sub(others.fold(0, u64::saturating_add))
    }

    /// The most that one front-end may hold of what the others leave: half of the descriptors, an eighth of the address
    /// space.
    fn share(&self, free: u64) -> u64 {
        match self.what {
            Kind::Descriptors => free / 2,
            Kind::Space => free / 8,
        }
    }

    fn short(&self, held: &BTreeMap<u64, (String, u64)>, device: &str, wanted: u64, most: u64) -> Short {
        let mut holders: Vec<&(String, u64)> = held.values().collect();
        holders.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        let named = holders.iter().take(HOLDERS_NAMED).map(|(name, n)| format!("{name} {}", self.amount(*n)));
        let named = named.collect::<Vec<_>>().join(", ");
        let (total, most) = (self.amount(self.total), self.amount(most));
        // Rounded up: a page too much is seen to be too much.
        let wanted = match self.what {
            Kind::Descriptors => wanted.to_string(),
            Kind::Space => format!("{} MiB", wanted.div_ceil(1 << 20)),
        };
        let (what, cure) = match self.what {
            Kind::Descriptors => (
                "descriptors",
                "raise LimitNOFILE= of ringwayd's unit (ulimit -n), or give the VMs fewer memory slots, or TAPs fewer queues (max_vqp)",
            ),
            Kind::Space => {
                ("address space", "give the VMs less memory, or spread them over several ringwayd")
            }
        };
        Short(format!(
            "not enough {what}: {device} would hold {wanted}, may hold {most}; front-ends and TAPs share {total}, held by: {}; {cure}",
            if named.is_empty() { "nobody" } else { &named }
        ))
    }

    fn amount(&self, n: u64) -> String {
        match self.what {
            Kind::Descriptors => n.to_string(),
            Kind::Space => format!("{} MiB", n >> 20),
        }
    }

    /// Holds `at_once` for now, if `lasting` is within the share and `at_once` is there.
    fn take(&self, lease: &Lease, at_once: u64, lasting: u64, base: u64) -> Result<(), Short> {
        let mut held = self.lock();
        let free = self.free(&held, lease.session);
        for (wanted, most) in [(lasting, self.share(free).max(base)), (at_once, free.max(base))] {
            if wanted > most {
                return Err(self.short(&held, &lease.device, wanted, most));
            }
        }
        held.insert(lease.session, (lease.device.clone(), at_once));
        Ok(())
    }
}

/// What one front-end holds; given back when dropped.
#[derive(Debug)]
pub struct Lease {
    budget: Budget,
    session: u64,
    device: String,
    /// Descriptors set aside from the beginning.
    base: u64,
}

impl Lease {
    /// Of a session that shares its process with no other.
    pub fn alone() -> Lease {
        Lease { budget: Budget::new(u64::MAX, u64::MAX), session: 0, device: String::new(), base: 0 }
    }

    /// Before memory is mapped: the regions and bytes that will stand while the old map stands too, and those that will
    /// last.
    ///
    /// # Errors
    /// More than its share, or than there is; what it holds is as before.
    pub fn take(&self, at_once: Memory, lasting: Memory) -> Result<(), Short> {
        let Pools { descriptors, space } = &*self.budget.0;
        let before = space.lock().get(&self.session).map_or(0, |(_, n)| *n);
        space.take(self, at_once.bytes, lasting.bytes, 0)?;
        let files = |memory: Memory| self.base + (memory.regions as u64).saturating_sub(BASE_REGIONS);
        descriptors.take(self, files(at_once), files(lasting), self.base).inspect_err(|_| {
            space.lock().insert(self.session, (self.device.clone(), before));
        })
    }

    /// After it: what is held now.
    pub fn settle(&self, memory: Memory) {
        let Pools { descriptors, space } = &*self.budget.0;
        let files = self.base + (memory.regions as u64).saturating_sub(BASE_REGIONS);
        descriptors.lock().insert(self.session, (self.device.clone(), files));
        space.lock().insert(self.session, (self.device.clone(), memory.bytes));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        for pool in [&self.budget.0.descriptors, &self.budget.0.space] {
            pool.lock().remove(&self.session);
        }
    }
}

/// Memory of a guest that is or will be mapped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Regions, each of which keeps its file open.
    pub regions: usize,
    /// Bytes.
    pub bytes: u64,
}

/// What a process can map on the smallest of the machines that we know.
const ADDRESS_SPACE: u64 = 1 << 47;
/// Descriptors kept back at least, unless that is half of them.
const LEAST_DESCRIPTORS_KEPT: u64 = 64;
/// Descriptors of a ring: kick, call and error, and the kick once more for the worker that it wakes.
const DESCRIPTORS_PER_RING: u64 = 4;
/// Descriptors behind a queue of a disk: its file, its io_uring, and what wakes the worker, twice.
const DESCRIPTORS_PER_DISK_QUEUE: u64 = 4;
/// Descriptors of a queue of a kernel's interface: the queue's own, and for either direction one more of it, its io_uring,
/// and what wakes the worker.
const DESCRIPTORS_PER_INTERFACE_QUEUE: u64 = 7;
/// Its socket, its session's eventfd, and one by which it is looked at.
const INTERFACE_DESCRIPTORS: u64 = 3;
/// Regions that a front-end may always have: as many as one SET_MEM_TABLE brings.
const BASE_REGIONS: u64 = 8;
/// Its socket and eventfd, the back-end channel, those regions, and a message's descriptors on their way.
const BASE_DESCRIPTORS: u64 = 3 + BASE_REGIONS + 8;
/// Holders named in a refusal, the largest first.
const HOLDERS_NAMED: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn regions(regions: usize) -> Memory {
        Memory { regions, bytes: 0 }
    }

    fn bytes(bytes: u64) -> Memory {
        Memory { regions: 1, bytes }
    }

    #[test]
    fn one_more_front_end_is_let_in_however_much_the_others_take() {
        let budget = Budget::new(768, 1 << 46);
        let mut leases = Vec::new();
        for id in 0..4 {
            let lease = budget.admit(id, "a", Class::Net, 2).unwrap();
            let most = (0..=509).take_while(|n| lease.take(regions(*n), regions(*n)).is_ok()).last();
            assert!(most.unwrap() >= 8, "front-end {id}: {most:?}");
            leases.push(lease);
        }
        assert!(leases[0].take(regions(509), regions(509)).is_err());
        budget.admit(9, "late", Class::Net, 2).unwrap();
    }

    #[test]
    fn part_of_the_descriptors_is_kept_back() {
        for (limit, kept) in [(0, 0), (126, 63), (128, 64), (130, 64), (252, 64), (256, 64), (260, 65)] {
            assert_eq!(kept_back(limit), kept, "{limit}");
        }
    }

    #[test]
    fn base_is_granted_at_the_border_and_not_beyond() {
        let base = BASE_DESCRIPTORS + 2 * DESCRIPTORS_PER_RING;
        let budget = Budget::new(2 * base, 1 << 40);
        let first = budget.admit(1, "a", Class::Net, 2).unwrap();
        first.take(regions(8), regions(8)).unwrap();
        assert!(first.take(regions(9), regions(9)).is_err());
        let _second = budget.admit(2, "b", Class::Net, 2).unwrap();
        let refused = budget.admit(3, "c", Class::Net, 2).unwrap_err().to_string();
        assert!(refused.contains("a 27") && refused.contains("LimitNOFILE"), "{refused}");
        drop(first);
        budget.admit(3, "c", Class::Net, 2).unwrap();
    }

    #[test]
    fn disk_is_granted_what_is_behind_its_queues_and_one_queue_more_is_refused() {
        let needs =
            |queues: u64| BASE_DESCRIPTORS + queues * (DESCRIPTORS_PER_RING + DESCRIPTORS_PER_DISK_QUEUE);
        let budget = Budget::new(needs(16), 1 << 40);
        let refused = budget.admit(1, "d0", Class::Block, 17).unwrap_err().to_string();
        assert!(refused.contains("d0 would hold 155"), "{refused}");
        budget.admit(1, "d0", Class::Block, 16).unwrap();
    }

    #[test]
    fn interface_is_granted_what_its_queues_need_and_one_queue_more_is_refused() {
        let needs = |queues: u64| INTERFACE_DESCRIPTORS + queues * DESCRIPTORS_PER_INTERFACE_QUEUE;
        let budget = Budget::new(needs(16) + needs(1), 1 << 40);
        let first = budget.admit_interface(1, "h0", 16).unwrap();
        let refused = budget.admit_interface(2, "h1", 2).unwrap_err().to_string();
        assert!(refused.contains("h1 would hold 17") && refused.contains("held by: h0 115"), "{refused}");
        assert!(refused.contains("LimitNOFILE") && refused.contains("max_vqp"), "{refused}");
        let _second = budget.admit_interface(2, "h1", 1).unwrap();
        assert!(budget.admit(3, "vm0", Class::Net, 2).is_err(), "front-ends have of the same");
        drop(first);
        budget.admit(3, "vm0", Class::Net, 2).unwrap();
    }

    #[test]
    fn address_space_is_left_for_those_that_come_later() {
        let budget = Budget::new(u64::MAX, 112 << 40);
        let leases: Vec<_> =
            (0..40).map(|id| budget.admit(id, &format!("d{id}"), Class::Net, 2).unwrap()).collect();
        for lease in &leases {
            assert!((12..=42).rev().any(|shift| lease.take(bytes(1 << shift), bytes(1 << shift)).is_ok()));
        }
        let late = budget.admit(99, "late", Class::Net, 2).unwrap();
        late.take(bytes(64 << 30), bytes(64 << 30)).unwrap();
        let refused = late.take(bytes(4 << 40), bytes(4 << 40)).unwrap_err().to_string();
        assert!(
            refused.contains("late would hold 4194304 MiB") && refused.contains("held by: d"),
            "{refused}"
        );
    }

    #[test]
    fn address_space_of_the_process_is_given_out_to_the_last_page_and_no_further() {
        const PAGE: u64 = 4096;
        let all = ADDRESS_SPACE - ADDRESS_SPACE / 8;
        let budget = Budget::new(u64::MAX, Budget::of_process().0.space.total);
        let (first, second) =
            (budget.admit(1, "a", Class::Net, 2).unwrap(), budget.admit(2, "b", Class::Net, 2).unwrap());
        // What lasts, up to the share.
        first.take(bytes(all / 8), bytes(all / 8)).unwrap();
        let refused = first.take(bytes(all / 8 + PAGE), bytes(all / 8 + PAGE)).unwrap_err().to_string();
        assert!(
            refused.contains("not enough address space: a would hold 14680065 MiB, may hold 14680064 MiB"),
            "{refused}"
        );
        // What stands for a moment, up to all that the others leave.
        second.settle(bytes(1 << 30));
        let left = all - (1 << 30);
        first.take(bytes(left), bytes(PAGE)).unwrap();
        assert!(second.take(bytes((1 << 30) + PAGE), bytes(PAGE)).is_err(), "not a page is left");
        let refused = first.take(bytes(left + PAGE), bytes(PAGE)).unwrap_err().to_string();
        assert!(refused.contains("a would hold 117439489 MiB, may hold 117439488 MiB"), "{refused}");
        assert!(refused.contains("share 117440512 MiB, held by: a 117439488 MiB, b 1024 MiB"), "{refused}");
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let budget = Budget::new(64, 1 << 40);
        let lease = budget.admit(1, "a", Class::Net, 2).unwrap();
        lease.settle(Memory { regions: 3, bytes: 77 });
        lease.take(Memory { regions: 500, bytes: 99 }, Memory { regions: 500, bytes: 99 }).unwrap_err();
        assert_eq!(budget.0.space.lock()[&1].1, 77);
        assert_eq!(budget.0.descriptors.lock()[&1].1, lease.base);
        drop(lease);
        assert!(budget.0.space.lock().is_empty() && budget.0.descriptors.lock().is_empty());
    }
}
