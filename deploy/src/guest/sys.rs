//! The calls for which no crate has a safe form: binding a packet socket, `ethtool` requests, and commands to NVMe controllers.
//!
//! This is the lab's only module with `unsafe`; everything it offers is safe to call.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::os::fd::OwnedFd;

use ringway_lab::agent::Offload;
use ringway_lab::error::{Context, Error, Result};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};

/// A raw packet socket on one interface. It receives IPv4 frames that arrive, not those that leave: the kernel shows
/// leaving frames only to sockets that ask for every protocol.
pub(crate) fn packet_socket(interface_idx: u32) -> Result<OwnedFd> {
    let protocol = Protocol::from_raw((ETH_P_IP.to_be() as u32).try_into().context(|| "protocol".into())?);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(protocol))
        .context(|| "packet socket".into())?;
    let address = LinkAddress {
        family: AddressFamily::PACKET.as_raw(),
        protocol_be: ETH_P_IP.to_be(),
        interface_idx: interface_idx as i32,
        hardware_type: 0,
        packet_type: 0,
        address_bytes: 0,
        address: [0; 8],
    };
    rustix::net::bind(&socket, &address).context(|| format!("bind to interface {interface_idx}"))?;
    Ok(socket)
}

/// How many queue pairs a driver uses, and how many it could.
pub(crate) struct Channels {
    pub(crate) current: u32,
    pub(crate) max: u32,
}

/// Asks a driver for its queue pairs; one that has no such notion has one.
pub(crate) fn channels(interface: &str) -> Result<Channels> {
    let mut words = [0_u32; CHANNEL_WORDS];
    words[0] = ETHTOOL_GCHANNELS;
    match ethtool(interface, &mut words) {
        Ok(()) => Ok(Channels { current: words[COMBINED], max: words[MAX_COMBINED] }),
        Err(Errno::OPNOTSUPP) => Ok(Channels { current: 1, max: 1 }),
        Err(errno) => Err(Error::new(format!("channels of {interface}: {errno}"))),
    }
}

/// Has a driver use `pairs` queue pairs.
pub(crate) fn set_channels(interface: &str, pairs: u32) -> Result<()> {
    let mut words = [0_u32; CHANNEL_WORDS];
    words[0] = ETHTOOL_SCHANNELS;
    words[COMBINED] = pairs;
    ethtool(interface, &mut words).context(|| format!("{pairs} channels on {interface}"))
}

/// Whether an offload is on; one that a driver does not know is off.
pub(crate) fn offload(interface: &str, offload: Offload) -> Result<bool> {
    let mut words = [0_u32; CHANNEL_WORDS];
    words[0] = offload_command(offload);
    match ethtool(interface, &mut words) {
        Ok(()) => Ok(words[1] != 0),
        Err(Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(Error::new(format!("{offload:?} of {interface}: {errno}"))),
    }
}

/// Turns an offload on or off.
pub(crate) fn set_offload(interface: &str, offload: Offload, on: bool) -> Result<()> {
    let mut words = [0_u32; CHANNEL_WORDS];
    // The command that sets follows the one that asks.
    words[0] = offload_command(offload) + 1;
    words[1] = u32::from(on);
    ethtool(interface, &mut words).context(|| format!("{offload:?} of {interface} to {on}"))
}

/// The command that asks for an offload.
fn offload_command(offload: Offload) -> u32 {
    match offload {
        Offload::RxChecksum => 0x14,
        Offload::TxChecksum => 0x16,
        Offload::ScatterGather => 0x18,
        Offload::Tso => 0x1e,
        Offload::Gso => 0x23,
        Offload::Gro => 0x2b,
    }
}

/// One `ethtool` request about channels or an offload; the first word is the command.
fn ethtool(interface: &str, words: &mut [u32; CHANNEL_WORDS]) -> rustix::io::Result<()> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut name = [0; INTERFACE_NAME_BYTES];
    let bytes = interface.as_bytes();
    if bytes.len() >= name.len() {
        return Err(Errno::NODEV);
    }
    name[..bytes.len()].copy_from_slice(bytes);
    let request = EthtoolRequest { name, words: words.as_mut_ptr(), rest: [0; 16] };
    // SAFETY: SIOCETHTOOL takes a `struct ifreq` (`EthtoolRequest` has its layout) whose pointer is valid for reads and
    // writes of `words`, borrowed exclusively for the call. The only commands
    // used here read or write a `struct ethtool_channels`, which is CHANNEL_WORDS words long, or a `struct
    // ethtool_value`, which is two.
    unsafe { rustix::ioctl::ioctl(&socket, request) }
}

/// `struct ifreq` with `ifr_data`.
#[repr(C)]
struct EthtoolRequest {
    name: [u8; INTERFACE_NAME_BYTES],
    words: *mut u32,
    rest: [u8; 16],
}

// SAFETY: the pointer given to the kernel is to `self`, which has the layout of `struct ifreq` on 64-bit Linux (16 + 24
// bytes) and lives through the call; the request returns nothing but success.
unsafe impl Ioctl for EthtoolRequest {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        SIOCETHTOOL
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// Gives a controller of the kernel's an admin command without data, and waits for its result.
pub(crate) fn nvme_admin(controller: &str, opcode: u8, dwords: [u32; 2]) -> Result<u32> {
    let what = || format!("admin command {opcode:#x} {dwords:x?} to {controller}");
    let file = std::fs::File::open(format!("/dev/{controller}")).context(what)?;
    let mut request = NvmeCommand { opcode, ..NvmeCommand::default() };
    request.dwords[..2].copy_from_slice(&dwords);
    // SAFETY: NVME_IOCTL_ADMIN_CMD takes a `struct nvme_passthru_cmd` (`NvmeCommand` has its layout), which has no pointers:
    // addresses and lengths of data are 0.
    let (status, result) = unsafe { rustix::ioctl::ioctl(&file, request) }.context(what)?;
    if status == 0 { Ok(result) } else { Err(Error::new(format!("{}: status {status:#x}", what()))) }
}

/// `struct nvme_passthru_cmd`.
#[repr(C)]
#[derive(Default)]
struct NvmeCommand {
    opcode: u8,
    flags: u8,
    reserved: u16,
    namespace: u32,
    second: [u32; 2],
    addresses: [u64; 2],
    lengths: [u32; 2],
    dwords: [u32; 6],
    timeout_ms: u32,
    result: u32,
}

// SAFETY: the pointer given to the kernel is to `self`, which has the layout of `struct nvme_passthru_cmd` and lives through the
// call; the kernel writes its result there, and nothing beyond it.
unsafe impl Ioctl for NvmeCommand {
    type Output = (i32, u32);
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        NVME_IOCTL_ADMIN_CMD
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self).cast()
    }

    unsafe fn output_from_ptr(status: IoctlOutput, command: *mut c_void) -> rustix::io::Result<(i32, u32)> {
        // SAFETY: it is the pointer that `as_ptr` gave, to a command that lives still.
        let result = unsafe { (*command.cast::<NvmeCommand>()).result };
        Ok((status, result))
    }
}

/// `struct sockaddr_ll`.
#[repr(C)]
struct LinkAddress {
    family: u16,
    protocol_be: u16,
    interface_idx: i32,
    hardware_type: u16,
    packet_type: u8,
    address_bytes: u8,
    address: [u8; 8],
}

// SAFETY: `f` gets a pointer to `self`, valid and initialised for the given length (no padding: 2+2+4+2+1+1+8 = 20 bytes)
// for as long as the call lasts.
unsafe impl SocketAddrArg for LinkAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f(std::ptr::from_ref(self).cast(), size_of::<LinkAddress>() as SocketAddrLen)
    }
}

const _: () = assert!(size_of::<LinkAddress>() == 20 && size_of::<EthtoolRequest>() == 40);
const _: () = assert!(size_of::<NvmeCommand>() == 72);

const ETH_P_IP: u16 = 0x0800;
const INTERFACE_NAME_BYTES: usize = 16;
/// `_IOWR('N', 0x41, struct nvme_passthru_cmd)`.
const NVME_IOCTL_ADMIN_CMD: Opcode = 0xc048_4e41;
const SIOCETHTOOL: Opcode = 0x8946;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;
const CHANNEL_WORDS: usize = 9;
const MAX_COMBINED: usize = 4;
const COMBINED: usize = 8;
