//! Locks on a disk's file as QEMU has them, so that neither opens what the other has.
//!
//! QEMU locks single bytes, shared: 100 and what it does with the file, 200 and what it lets nobody else do; and then asks whether
//! anybody has the opposite. They are of the open file, and last until nothing of it is under way any more.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Says what is done with the file.
///
/// # Errors
/// The kernel or the file system has no such locks.
pub(in crate::block) fn take(file: BorrowedFd<'_>, writes: bool) -> io::Result<()> {
    let does: &[i64] = if writes { &[READ, WRITE, RESIZE] } else { &[READ] };
    let bytes = does.iter().map(|what| DOES + what).chain([WRITE, RESIZE].map(|what| ALONE + what));
    for byte in bytes {
        fcntl(file, libc::F_OFD_SETLK, libc::F_RDLCK as _, byte)?;
    }
    Ok(())
}

/// Somebody does with the file what does not go with it, or lets nobody do what is to be done.
///
/// # Errors
/// The kernel or the file system has no such locks.
pub(in crate::block) fn is_in_use(file: BorrowedFd<'_>, writes: bool) -> io::Result<bool> {
    let does: &[i64] = if writes { &[READ, WRITE, RESIZE] } else { &[READ] };
    let bytes =
        [WRITE, RESIZE].map(|what| DOES + what).into_iter().chain(does.iter().map(|what| ALONE + what));
    for byte in bytes {
        // Who has it shared, too, is in the way of one who wants it alone: this is only a question.
        if fcntl(file, libc::F_OFD_GETLK, libc::F_WRLCK as _, byte)? != libc::F_UNLCK as _ {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Asks the kernel about the lock of one byte; what it says then.
fn fcntl(file: BorrowedFd<'_>, command: i32, kind: i16, byte: i64) -> io::Result<i16> {
    let mut lock =
        libc::flock { l_type: kind, l_whence: libc::SEEK_SET as _, l_start: byte, l_len: 1, l_pid: 0 };
    // SAFETY: the kernel reads and writes the structure, which is what these commands work on, during the call alone.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(lock.l_type) }
}

/// The first byte for what is done, and for what nobody else may do.
const DOES: i64 = 100;
const ALONE: i64 = 200;
/// What there is to be done: read what is there, write, change the size.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
