//! The ioctls of TAP and of network interfaces. Nothing here knows what they are for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_short, c_uint, c_ulong, ifreq};

use crate::net::Mac;

/// A request that names an interface.
fn request(name: &str) -> ifreq {
    // SAFETY: a structure of numbers and arrays of numbers, for which zeros are valid.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().take(room).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn outcome(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Calls an ioctl that reads and writes an `ifreq`.
fn with_ifreq(fd: BorrowedFd<'_>, number: c_ulong, request: &mut ifreq) -> io::Result<()> {
    // SAFETY: the kernel reads and writes one `ifreq` for every number that this file passes; it is borrowed for as long.
    outcome(unsafe { libc::ioctl(fd.as_raw_fd(), number as _, std::ptr::from_mut(request)) })
}

/// TUNSETIFF: attaches to the interface, which is made if it is not there.
pub(super) fn attach(fd: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags as c_short;
    with_ifreq(fd, libc::TUNSETIFF as c_ulong, &mut request)
}

/// TUNSETVNETHDRSZ: bytes of the header before each frame.
pub(super) fn set_header_bytes(fd: BorrowedFd<'_>, bytes: c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one int.
    outcome(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, std::ptr::from_ref(&bytes)) })
}

/// TUNSETOFFLOAD: what may be left to be done for frames that are read.
pub(super) fn set_offload(fd: BorrowedFd<'_>, offload: c_uint) -> io::Result<()> {
    // SAFETY: the argument is a number.
    outcome(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, c_ulong::from(offload)) })
}

/// TUNSETPERSIST: whether the interface outlives its descriptors.
pub(super) fn set_persistent(fd: BorrowedFd<'_>, is_persistent: bool) -> io::Result<()> {
    // SAFETY: the argument is a number.
    outcome(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETPERSIST as _, c_ulong::from(is_persistent)) })
}

/// SIOCGIFHWADDR.
pub(super) fn mac(socket: BorrowedFd<'_>, name: &str) -> io::Result<Mac> {
    let mut request = request(name);
    with_ifreq(socket, libc::SIOCGIFHWADDR, &mut request)?;
    // SAFETY: the kernel filled in the address.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(address) {
        *to = from as u8;
    }
    Ok(Mac(mac))
}

/// SIOCSIFHWADDR.
pub(super) fn set_mac(socket: BorrowedFd<'_>, name: &str, mac: Mac) -> io::Result<()> {
    let mut request = request(name);
    // SAFETY: a structure of numbers, for which zeros are valid.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    address.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in address.sa_data.iter_mut().zip(mac.0) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = address;
    with_ifreq(socket, libc::SIOCSIFHWADDR, &mut request)
}

/// SIOCGIFMTU.
pub(super) fn mtu(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    let mut request = request(name);
    with_ifreq(socket, libc::SIOCGIFMTU, &mut request)?;
    // SAFETY: the kernel filled in the MTU.
    Ok(u32::try_from(unsafe { request.ifr_ifru.ifru_mtu }).unwrap_or(0))
}

/// SIOCSIFMTU.
pub(super) fn set_mtu(socket: BorrowedFd<'_>, name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_mtu = mtu.into();
    with_ifreq(socket, libc::SIOCSIFMTU, &mut request)
}

/// TUNGETIFF: the name that the interface has now.
pub(super) fn name(queue: BorrowedFd<'_>) -> io::Result<String> {
    let mut request = request("");
    with_ifreq(queue, libc::TUNGETIFF as c_ulong, &mut request)?;
    let bytes = request.ifr_name.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0);
    Ok(String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned())
}

/// TUNGETDEVNETNS: the network namespace that the interface is in.
pub(super) fn namespace(queue: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: no argument; nothing is read or written.
    let fd = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNGETDEVNETNS as _) };
    outcome(fd)?;
    // SAFETY: the kernel made this descriptor for the call above; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// SIOCGIFFLAGS: whether the interface is up.
pub(super) fn is_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    let mut request = request(name);
    with_ifreq(socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the kernel filled in the flags.
    Ok(unsafe { request.ifr_ifru.ifru_flags } & libc::IFF_UP as c_short != 0)
}

/// SIOCSIFFLAGS: sets the interface up.
pub(super) fn set_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = request(name);
    with_ifreq(socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the kernel filled in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as c_short;
    with_ifreq(socket, libc::SIOCSIFFLAGS, &mut request)
}
