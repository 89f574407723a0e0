//! The PCI bus: functions as a driver sees them, whatever carries the accesses.
//!
//! ```text
//!   driver -- Function --+-- vfio      the host's functions that are bound to vfio-pci
//!                        +-- models    in the process, in tests
//! ```
//!
//! A [`Function`] gives configuration space and BARs as bounded views of registers, memory by DMA, and interrupts by eventfds.
//! What a function says is a claim, as a guest's is: a function that was pulled reads all ones, and one that lies must hurt
//! nobody but its own device.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::str::FromStr;
use std::sync::Arc;

use crate::dma::DmaSpace;
use crate::vdpa::DriverError;

// What a function can do beyond the base, from its configuration space.
pub mod capability;
// The functions of this host that are bound to vfio-pci.
pub mod host;
// What functions tell by interrupts that are no queue's.
pub mod listener;
// A function through the kernel's VFIO.
mod vfio;

/// Where a function is: domain, bus, device and function, as `lspci -D` writes it (`0000:01:10.0`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Segment group.
    pub domain: u32,
    /// Bus number.
    pub bus: u8,
    /// Device on the bus, below 32.
    pub device: u8,
    /// Function of the device, below 8.
    pub function: u8,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

/// Text that is not a function's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not the address of a PCI function: write domain, bus, device and function, as in 0000:01:10.0"
)]
pub struct BadAddress(String);

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Address, BadAddress> {
        let parse = || {
            let (rest, function) = text.rsplit_once('.')?;
            let mut parts = rest.split(':');
            let (domain, bus, device) = (parts.next()?, parts.next()?, parts.next()?);
            let hex =
                |word: &str, digits| (word.len() == digits).then(|| u32::from_str_radix(word, 16).ok())?;
            let device = hex(device, 2).filter(|device| *device < 32)?;
            let function = hex(function, 1).filter(|function| *function < 8)?;
            if parts.next().is_some() || domain.len() < 4 {
                return None;
            }
            Some(Address {
                domain: hex(domain, domain.len())?,
                bus: hex(bus, 2)? as u8,
                device: device as u8,
                function: function as u8,
            })
        };
        parse().ok_or_else(|| BadAddress(text.to_owned()))
    }
}

/// What a function says it is, from the head of its configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id {
    /// Vendor.
    pub vendor: u16,
    /// Device, by the vendor's numbers.
    pub device: u16,
    /// The vendor of the board.
    pub subsystem_vendor: u16,
    /// The board, by its vendor's numbers.
    pub subsystem: u16,
    /// What kind of function, whoever made it: class, subclass, programming interface.
    pub class: u32,
}

/// Bytes of one access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// One byte.
    B1,
    /// Two.
    B2,
    /// Four.
    B4,
    /// Eight.
    B8,
}

impl Width {
    /// How many.
    pub const fn bytes(self) -> u64 {
        match self {
            Width::B1 => 1,
            Width::B2 => 2,
            Width::B4 => 4,
            Width::B8 => 8,
        }
    }

    /// What reads where nothing answers.
    pub const fn ones(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }
}

/// Registers, little-endian: a BAR, or configuration space.
///
/// Each call is one access of that width, done when the call returns (a write may still be on its way to the function, behind
/// all earlier ones). Accesses of one thread keep their order, and come behind what the thread wrote to memory before. Where
/// nothing answers, reads give all ones and writes go nowhere; nothing fails and nothing waits.
pub trait Registers: Send + Sync {
    /// Bytes of it.
    fn size(&self) -> u64;
    /// Reads; `at` is aligned, and all of it below `size`.
    fn read(&self, at: u64, width: Width) -> u64;
    /// Writes the low bytes; likewise.
    fn write(&self, at: u64, width: Width, value: u64);
}

/// A part of some registers: what lies beyond it cannot be reached, and reads all ones.
#[derive(Clone)]
pub struct View {
    registers: Arc<dyn Registers>,
    start: u64,
    size: u64,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("start", &self.start).field("size", &self.size).finish_non_exhaustive()
    }
}

impl View {
    /// All of some registers.
    pub fn new(registers: Arc<dyn Registers>) -> View {
        let size = registers.size();
        View { registers, start: 0, size }
    }

    /// Bytes of it.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The `size` bytes from `at` on, if they lie in it.
    pub fn part(&self, at: u64, size: u64) -> Option<View> {
        at.checked_add(size).filter(|end| *end <= self.size)?;
        Some(View { registers: Arc::clone(&self.registers), start: self.start + at, size })
    }

    /// Reads. All ones beyond it, or unaligned.
    #[inline]
    pub fn read(&self, at: u64, width: Width) -> u64 {
        match self.place(at, width) {
            Some(at) => self.registers.read(at, width) & width.ones(),
            None => width.ones(),
        }
    }

    /// Writes. Nothing beyond it, or unaligned.
    #[inline]
    pub fn write(&self, at: u64, width: Width, value: u64) {
        if let Some(at) = self.place(at, width) {
            self.registers.write(at, width, value & width.ones());
        }
    }

    #[inline]
    fn place(&self, at: u64, width: Width) -> Option<u64> {
        at.checked_add(width.bytes()).filter(|end| *end <= self.size)?;
        let at = self.start + at;
        at.is_multiple_of(width.bytes()).then_some(at)
    }

    /// One byte.
    pub fn read8(&self, at: u64) -> u8 {
        self.read(at, Width::B1) as u8
    }
    /// Two bytes.
    pub fn read16(&self, at: u64) -> u16 {
        self.read(at, Width::B2) as u16
    }
    /// Four bytes.
    pub fn read32(&self, at: u64) -> u32 {
        self.read(at, Width::B4) as u32
    }
    /// One byte.
    pub fn write8(&self, at: u64, value: u8) {
        self.write(at, Width::B1, value.into());
    }
    /// Two bytes.
    #[inline]
    pub fn write16(&self, at: u64, value: u16) {
        self.write(at, Width::B2, value.into());
    }
    /// Four bytes.
    #[inline]
    pub fn write32(&self, at: u64, value: u32) {
        self.write(at, Width::B4, value.into());
    }
}

/// A function that is open: nobody else has it. Bus mastering is on. It is quiet, and let go, when the last holder drops it,
/// which may take some 100 ms: never on a worker or on control's thread.
pub trait Function: Send + Sync + fmt::Debug {
    /// Configuration space.
    fn config(&self) -> View;
    /// The registers behind a BAR.
    ///
    /// # Errors
    /// It has none there, or the host cannot map it.
    fn bar(&self, index: u8) -> io::Result<View>;
    /// What it can reach.
    fn dma(&self) -> Arc<dyn DmaSpace>;
    /// How many interrupt vectors (MSI-X) it has.
    fn vectors(&self) -> u16;
    /// From now on a vector signals this eventfd; None: nobody. May be changed at any time; of the two, the new one gets every
    /// interrupt from when this returns on.
    ///
    /// # Errors
    /// The host's.
    fn bind(&self, vector: u16, to: Option<BorrowedFd<'_>>) -> io::Result<()>;
    /// From now on the host writes `value` to these bytes of a BAR whenever the eventfd is signalled, without this process, and
    /// once now if it was signalled before; None: not any more. The one before is forgotten. A host
    /// has some 1,000 a function (Linux's `VFIO_PCI_IOEVENTFD_MAX`).
    ///
    /// # Errors
    /// The host's, or there is no such place; nobody rings it then.
    fn bind_doorbell(&self, at: &Doorbell, from: Option<BorrowedFd<'_>>) -> io::Result<()>;
    /// Signals `told` when the host wants the function back, so that its holder lets go.
    ///
    /// # Errors
    /// The host's.
    fn on_wanted_back(&self, told: BorrowedFd<'_>) -> io::Result<()>;
    /// Resets it (function level). Takes some 100 ms. What was mapped for DMA stays mapped; vectors are to be bound anew.
    ///
    /// # Errors
    /// It cannot be reset, or did not come back.
    fn reset(&self) -> io::Result<()>;
}

/// A write to a register that tells a function of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doorbell {
    /// In which BAR.
    pub bar: u8,
    /// Where in it, aligned to the width.
    pub at: u64,
    /// How much is written.
    pub width: Width,
    /// What is written.
    pub value: u64,
}

/// A function that a bus announced. The bus looked at it, on a thread that may wait; a driver opens it for each device that it
/// makes, and meanwhile others may have it.
#[derive(Clone)]
pub struct Device<T> {
    /// Where it is.
    pub address: Address,
    /// What it is.
    pub id: Id,
    /// The NUMA node that it is nearest to, if the host says.
    pub numa_node: Option<u32>,
    /// What opens it.
    pub opener: Opener,
    /// What it was like, or why it could not be looked at.
    pub seen: Result<T, OpenError>,
}

/// How functions are looked at before they are announced: those that nobody wants are not even opened.
#[derive(Debug, Clone, Copy)]
pub struct Examiner<T> {
    /// Somebody drives such a function.
    pub wants: fn(Id) -> bool,
    /// Looks at one that nobody else has; the text says why it cannot be driven.
    pub look: fn(&Arc<dyn Function>) -> Result<T, String>,
}

impl<T> Examiner<T> {
    /// Opens a function, looks at it, and closes it again. Takes some 200 ms.
    ///
    /// # Errors
    /// It cannot be opened, or not be driven.
    pub fn examine(&self, address: Address, opener: &Opener) -> Result<T, OpenError> {
        let function = opener()?;
        (self.look)(&function).map_err(|why| OpenError::Unfit { address, why })
    }
}

/// Opens a function, each time anew: nobody else has it then. Takes some 100 ms, and up to 5 s where this process is just
/// closing it.
pub type Opener = Arc<dyn Fn() -> Result<Arc<dyn Function>, OpenError> + Send + Sync>;

impl<T> fmt::Debug for Device<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("address", &self.address).field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why a function cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is not on the bus.
    #[error("there is no PCI function {0}")]
    NotThere(Address),
    /// Another driver has it.
    #[error("PCI function {address} is bound to {driver}, not to vfio-pci")]
    OtherDriver {
        /// Which.
        address: Address,
        /// The kernel's driver, or `no driver`.
        driver: String,
    },
    /// The machine has no IOMMU that is in use.
    #[error("{0}")]
    NoIommu(String),
    /// Others of its IOMMU group are not free.
    #[error("IOMMU group {group} of PCI function {address} is not free: {why}")]
    NotViable {
        /// Which.
        address: Address,
        /// The group.
        group: u32,
        /// Which of its functions are bound to what.
        why: String,
    },
    /// Another process has its IOMMU group.
    #[error("IOMMU group {group} of PCI function {address} is in use{}", by(.holder))]
    Busy {
        /// Which.
        address: Address,
        /// The group.
        group: u32,
        /// Who, if that can be seen.
        holder: Option<String>,
    },
    /// This process has not closed it yet, as it was opened before.
    #[error("PCI function {0} is still being closed: the device that had it was removed a moment ago")]
    Closing(Address),
    /// This process may not.
    #[error("no access to /dev/vfio/{group}, the IOMMU group of PCI function {address}")]
    Forbidden {
        /// Which.
        address: Address,
        /// The group.
        group: u32,
    },
    /// This process does not see the kernel's VFIO: a unit or a container keeps it from it.
    #[error("PCI function {address} is bound to vfio-pci, and there is no opening /dev/vfio/vfio: {why}")]
    Hidden {
        /// Which.
        address: Address,
        /// What the system said.
        why: String,
    },
    /// It is not what it has to be.
    #[error("PCI function {address} cannot be driven: {why}")]
    Unfit {
        /// Which.
        address: Address,
        /// What is missing.
        why: String,
    },
    /// The host's.
    #[error("cannot open PCI function {address}: {why}")]
    Host {
        /// Which.
        address: Address,
        /// What the system said, at what.
        why: String,
    },
}

fn by(holder: &Option<String>) -> String {
    holder.as_ref().map_or_else(String::new, |holder| format!(" by {holder}"))
}

impl OpenError {
    /// What an operator does about it.
    pub fn hint(&self) -> String {
        match self {
            OpenError::NotThere(_) => "see `lspci -D`; a VF is there once its PF has `sriov_numvfs` set".to_owned(),
            OpenError::OtherDriver { address, driver } => bind_hint(*address, driver != NO_DRIVER),
            OpenError::NoIommu(_) => {
                "start the kernel with intel_iommu=on (AMD: amd_iommu=on), switch VT-d or AMD-Vi on in the firmware, and load \
                 vfio-pci"
                    .to_owned()
            }
            OpenError::NotViable { .. } => {
                "functions of one IOMMU group go together: bind the others to vfio-pci too, or to no driver".to_owned()
            }
            OpenError::Busy { .. } => "stop that process, or take another function".to_owned(),
            OpenError::Closing(_) => "try again: it is being shut down, or its last guest's memory unlocked".to_owned(),
            OpenError::Forbidden { group, .. } => {
                format!(
                    "give ringwayd's user the group: chown USER /dev/vfio/{group}; a udev rule keeps it so, as the package's \
                     60-ringway-vfio.rules does"
                )
            }
            OpenError::Hidden { .. } => {
                "what ringwayd runs in hides it: the unit needs the drop-in vfio.conf (docs/installing.md), a container /dev/vfio".to_owned()
            }
            OpenError::Unfit { .. } => "take another function, or another version of its firmware".to_owned(),
            OpenError::Host { .. } => "the kernel's log says more: dmesg | grep -i vfio".to_owned(),
        }
    }
}

/// How a function is given to vfio-pci.
pub fn bind_hint(address: Address, is_bound: bool) -> String {
    let function = format!("/sys/bus/pci/devices/{address}");
    let unbind =
        if is_bound { format!("echo {address} > {function}/driver/unbind; ") } else { String::new() };
    format!(
        "give it to vfio-pci: modprobe vfio-pci; {unbind}echo vfio-pci > {function}/driver_override; \
         echo {address} > /sys/bus/pci/drivers_probe"
    )
}

/// The word for it in [`OpenError::OtherDriver`].
const NO_DRIVER: &str = "no driver";

impl From<OpenError> for DriverError {
    fn from(error: OpenError) -> DriverError {
        match &error {
            OpenError::NotThere(_) => DriverError::NotFound(format!("{error}: {}", error.hint())),
            OpenError::Busy { holder, .. } => {
                DriverError::Conflict { what: error.to_string(), held_by: holder.clone(), hint: error.hint() }
            }
            OpenError::OtherDriver { .. } | OpenError::NotViable { .. } | OpenError::Closing(_) => {
                DriverError::Conflict { what: error.to_string(), held_by: None, hint: error.hint() }
            }
            OpenError::NoIommu(_)
            | OpenError::Forbidden { .. }
            | OpenError::Hidden { .. }
            | OpenError::Unfit { .. }
            | OpenError::Host { .. } => {
                let is_forbidden = matches!(error, OpenError::Forbidden { .. } | OpenError::Hidden { .. });
                let kind = if is_forbidden { io::ErrorKind::PermissionDenied } else { io::ErrorKind::Other };
                DriverError::Unready { what: error.to_string(), hint: error.hint(), kind }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Registers that say where they were read.
    struct Where;

    impl Registers for Where {
        fn size(&self) -> u64 {
            64
        }
        fn read(&self, at: u64, width: Width) -> u64 {
            assert!(at + width.bytes() <= 64 && at.is_multiple_of(width.bytes()));
            at
        }
        fn write(&self, _: u64, _: Width, _: u64) {
            unreachable!("written");
        }
    }

    #[test]
    fn addresses_read_as_they_are_written() {
        for text in ["0000:01:10.0", "ffff:ff:1f.7", "10000:00:00.0"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in
            ["", "01:10.0", "0000:01:20.0", "0000:01:10.8", "0000:1:10.0", "0000:01:10.0.0", "0000:01:10:0.0"]
        {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn view_reaches_nothing_beyond_itself() {
        let all = View::new(Arc::new(Where));
        let part = all.part(16, 8).unwrap();
        assert_eq!((part.read32(0), part.read32(4), part.read8(7)), (16, 20, 23));
        assert_eq!((part.read32(8), part.read16(7), part.read32(2)), (u32::MAX, u16::MAX, u32::MAX));
        assert_eq!((part.read(u64::MAX, Width::B1), part.read(u64::MAX - 3, Width::B4)), (0xff, 0xffff_ffff));
        part.write32(8, 1);
        part.write8(u64::MAX, 1);
        assert!(all.part(60, 5).is_none() && all.part(u64::MAX, 2).is_none());
        assert_eq!(part.part(4, 4).unwrap().read32(0), 20);
        assert!(part.part(4, 5).is_none());
    }
}
