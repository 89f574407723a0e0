//! Containment of faults in memory that a peer truncated.
//!
//! One process-wide SIGBUS handler with a lock-free table of guest regions. A fault at an unknown address gets the
//! default action; at a known one, the faulting page is replaced by an anonymous page, the region is marked poisoned
//! and execution goes on: the pump sees the poison after its burst. Nothing jumps out of the handler. A page that the
//! hardware reports as lost is contained in the same way.
//!
//! ```text
//!   session                     worker                      handler, on the worker's thread
//!   Watch::new  --> slot -----> touches the region --SIGBUS-> finds the slot, maps a page, poisons
//!   Watch::drop --> slot free   is_poisoned()? <------------- returns; the access runs again
//! ```
//!
//! The handler takes no lock, allocates nothing and calls only what is async-signal-safe. Slots are immortal: chunks of
//! them are allocated as needed and never freed, so that a handler can always read one. A slot's words are guarded by
//! its version (odd while they change). A handler can skip slots that are changing: the one it looks for is not among
//! them, since a region is only touched after it was published and before it is retracted.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use slot::Slot;

mod slot;

/// What slots are made of: the process's own atomics even under loom, since the table is static. The model below has
/// slots of loom's.
mod atomics {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
}

/// Faults contained since the process started: one per page touched.
pub fn contained_faults() -> u64 {
    CONTAINED.load(Ordering::Relaxed)
}

/// Regions poisoned since the process started. Changes only when some region of some guest becomes poisoned, so that
/// one look at it tells whether anything is new.
#[inline(always)]
pub(crate) fn poisoned_regions() -> u64 {
    // Acquire: pairs with the Release in `contain`.
    POISONED.load(Ordering::Acquire)
}

/// An address range in which faults are contained, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Watch {
    slot: &'static Slot,
    index: usize,
}

impl Watch {
    /// Publishes `[start, start + len)`, which this caller owns and keeps mapped until it has dropped the watch; installs
    /// the handler if it is the first. `page_bytes` is the size of the pages that it is mapped by.
    ///
    /// # Errors
    /// `OutOfMemory` with [`SLOTS`] ranges watched; what `sigaction(2)` says.
    ///
    /// # Safety
    /// The range is a shared file mapping of whole pages, owned by the caller, of which any page may be replaced by
    /// an anonymous one when an access to it faults.
    pub(crate) unsafe fn new(start: *mut u8, len: usize, page_bytes: usize) -> io::Result<Watch> {
        let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
        if !table.installed {
            install()?;
            table.installed = true;
        }
        let index = match table.free.pop() {
            Some(index) => index,
            None => table.grow()?,
        };
        let slot = slot(index).ok_or(io::ErrorKind::OutOfMemory)?;
        slot.publish(start.addr(), len, page_bytes);
        Ok(Watch { slot, index })
    }

    /// True once a fault in the range was contained.
    #[inline]
    pub(crate) fn is_poisoned(&self) -> bool {
        self.slot.is_poisoned()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
        self.slot.publish(0, 0, 1);
        table.free.push(self.index);
    }
}

/// What only those who publish and retract touch.
struct Table {
    installed: bool,
    /// Slots that were used and are free again.
    free: Vec<usize>,
    /// Slots ever used; [`HIGH`] follows it.
    used: usize,
}

impl Table {
    /// Takes a slot that was never used.
    fn grow(&mut self) -> io::Result<usize> {
        let index = self.used;
        let chunk = CHUNKS.get(index / CHUNK).ok_or(io::ErrorKind::OutOfMemory)?;
        if index.is_multiple_of(CHUNK) {
            // Release: pairs with the Acquire in `slot`.
            chunk.store(Box::into_raw(new_chunk()?), Ordering::Release);
        }
        // Release: pairs with the Acquire in `find`: a slot below the mark is in a chunk that is there.
        self.used += 1;
        HIGH.store(self.used, Ordering::Release);
        Ok(index)
    }
}

type Chunk = [Slot; CHUNK];

/// Made in the heap, and apart, so that no caller's stack has room for a chunk: sessions come this way, and what their
/// stacks touch once they keep.
#[inline(never)]
fn new_chunk() -> io::Result<Box<Chunk>> {
    let slots: Box<[Slot]> = (0..CHUNK).map(|_| Slot::new()).collect();
    slots.try_into().map_err(|_| io::ErrorKind::OutOfMemory.into())
}

fn slot(index: usize) -> Option<&'static Slot> {
    // Acquire: pairs with the Release in `grow`.
    let chunk = CHUNKS.get(index / CHUNK)?.load(Ordering::Acquire);
    // SAFETY: null, or a chunk that `grow` leaked: valid for ever, only ever accessed as atomics.
    unsafe { chunk.as_ref() }?.get(index % CHUNK)
}

fn find(address: usize) -> Option<(&'static Slot, usize, usize, usize)> {
    (0..HIGH.load(Ordering::Acquire)).find_map(|index| {
        let slot = slot(index)?;
        let (start, len, page_bytes) = slot.read()?;
        (address.wrapping_sub(start) < len).then_some((slot, start, len, page_bytes))
    })
}

/// The action that was installed before this one: for faults that are none of ours.
struct Previous(libc::sigaction);

fn install() -> io::Result<()> {
    let mut previous = MaybeUninit::uninit();
    // SAFETY: asks for the present action; the pointer is valid for one, which is read only if the call succeeded.
    let previous = unsafe {
        check(libc::sigaction(libc::SIGBUS, ptr::null(), previous.as_mut_ptr()))?;
        previous.assume_init()
    };
    // Kept before the handler can run.
    PREVIOUS.get_or_init(|| Previous(previous));
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigbus;
    // SAFETY: an all-zero `sigaction` is valid: no flags, empty mask. The handler has the type that SA_SIGINFO demands
    // and does only what is async-signal-safe. SA_ONSTACK: on threads that have a signal stack, as std's have.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        check(libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()))
    }
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO a valid siginfo; errno's location is the thread's own. The
    // two codes are those of an access that failed, by this thread, at `si_addr`. Others are sent without one: by a process,
    // or by the kernel for memory that went bad and that nobody touched yet, whose range may be another's by now.
    let contained = unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        let contained = is_of_an_access((*info).si_code) && contain((*info).si_addr().addr());
        *errno = saved;
        contained
    };
    if !contained {
        // SAFETY: the arguments are this handler's own.
        unsafe { pass_on(signal, info, context) }
    }
}

/// True for what is sent because an access failed: beyond the end of a file, or to memory that went bad.
fn is_of_an_access(code: c_int) -> bool {
    matches!(code, libc::BUS_ADRERR | libc::BUS_MCEERR_AR)
}

/// Puts an anonymous page where the fault was, if that is in a watched range.
fn contain(address: usize) -> bool {
    let Some((slot, start, len, page_bytes)) = find(address) else { return false };
    let page = address & !(page_bytes - 1);
    // If the process has no room for one mapping more, the whole range takes one less.
    if !replace(page, page_bytes) && !replace(start, len) {
        return false;
    }
    if slot.poison() {
        // Release: pairs with the Acquire in `poisoned_regions`: who sees the count sees the poison.
        POISONED.fetch_add(1, Ordering::Release);
    }
    CONTAINED.fetch_add(1, Ordering::Relaxed);
    true
}

fn replace(start: usize, len: usize) -> bool {
    // SAFETY: the range lies in one that a `Watch` covers, whose owner allowed that its pages be replaced when they
    // fault, and which is mapped: the faulting access shows that its owner still holds it. A raw system call in the
    // C library, async-signal-safe.
    let page = unsafe {
        libc::mmap(
            ptr::with_exposed_provenance_mut(start),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    page != libc::MAP_FAILED
}

/// Does what would have been done without this handler.
///
/// # Safety
/// The arguments are those of a running signal handler.
unsafe fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: `info` is valid by contract. The previous action's function is called as its flags say it wants. The
    // rest are async-signal-safe calls with valid arguments.
    unsafe {
        let sent = (*info).si_code <= 0;
        let action = PREVIOUS.get().map_or(libc::SIG_DFL, |previous| previous.0.sa_sigaction);
        match action {
            libc::SIG_IGN if sent => return,
            libc::SIG_DFL | libc::SIG_IGN => {
                let mut default: libc::sigaction = mem::zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &default, ptr::null_mut());
            }
            function => {
                if PREVIOUS.get().is_some_and(|previous| previous.0.sa_flags & libc::SA_SIGINFO != 0) {
                    mem::transmute::<usize, extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void)>(
                        function,
                    )(signal, info, context);
                } else {
                    mem::transmute::<usize, extern "C" fn(c_int)>(function)(signal);
                }
            }
        }
        // With the default action restored, by this function or (as std's handler does it) by the previous one, a
        // fault happens again on return and ends the process. A signal that was sent does not: send it again.
        let mut now: libc::sigaction = mem::zeroed();
        if sent && libc::sigaction(signal, ptr::null(), &mut now) == 0 && now.sa_sigaction == libc::SIG_DFL {
            libc::raise(signal);
        }
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Slots in a chunk.
const CHUNK: usize = 1024;
/// The most ranges watched at a time: about as many mappings as a process may have (`vm.max_map_count`).
const SLOTS: usize = 64 * CHUNK;

static TABLE: Mutex<Table> = Mutex::new(Table { installed: false, free: Vec::new(), used: 0 });
static CHUNKS: [AtomicPtr<Chunk>; SLOTS / CHUNK] = [const { AtomicPtr::new(ptr::null_mut()) }; SLOTS / CHUNK];
/// Slots ever used: how far a handler looks.
static HIGH: AtomicUsize = AtomicUsize::new(0);
static PREVIOUS: OnceLock<Previous> = OnceLock::new();
static POISONED: AtomicU64 = AtomicU64::new(0);
static CONTAINED: AtomicU64 = AtomicU64::new(0);

#[cfg(test)]
#[cfg(loom)]
mod model;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
