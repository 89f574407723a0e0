//! The Ethernet interfaces, by way of sysfs: a guest's virtio NICs, or whatever a namespace holds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ringway_lab::agent::{Device, Nic, Offload};
use ringway_lab::ensure;
use ringway_lab::error::{Context, Error, Result};

use crate::sys;

/// Every Ethernet interface.
pub(crate) fn all() -> Result<Vec<Nic>> {
    let mut nics = Vec::new();
    for name in names_in(NET)? {
        // One that goes away while it is looked at is not there.
        match one(&name) {
            Ok(Some(nic)) => nics.push(nic),
            Ok(None) => {}
            Err(error) if Path::new(NET).join(&name).exists() => return Err(error),
            Err(_) => {}
        }
    }
    Ok(nics)
}

/// An interface as it stands; `None` when it is not an Ethernet one.
fn one(name: &str) -> Result<Option<Nic>> {
    let folder = Path::new(NET).join(name);
    // Others than interfaces have files here too: bonding_masters.
    if read(folder.join("type")).ok().as_deref() != Some(ARPHRD_ETHER) {
        return Ok(None);
    }
    let device = fs::canonicalize(folder.join("device")).map(|path| file_name(&path)).unwrap_or_default();
    let device = if device.starts_with("virtio") { device } else { String::new() };
    let channels = sys::channels(name)?;
    let count = |what: &str| number(&read(folder.join("statistics").join(what))?);
    let mut offloads = Vec::new();
    for offload in Offload::ALL {
        if sys::offload(name, offload)? {
            offloads.push(offload);
        }
    }
    Ok(Some(Nic {
        mac: read(folder.join("address"))?,
        features: if device.is_empty() { 0 } else { features(&device)? },
        offloads,
        mtu: number(&read(folder.join("mtu"))?)? as u32,
        up: flags(&folder)? & IFF_UP != 0,
        // Reading it fails while the link is set down.
        carrier: read(folder.join("carrier")).is_ok_and(|text| text == "1"),
        rx_packets: count("rx_packets")?,
        tx_packets: count("tx_packets")?,
        rx_bytes: count("rx_bytes")?,
        tx_bytes: count("tx_bytes")?,
        rx_dropped: count("rx_dropped")?,
        tx_dropped: count("tx_dropped")?,
        pairs: channels.current,
        max_pairs: channels.max,
        device,
        name: name.to_string(),
    }))
}

/// The NIC with an Ethernet address or of the kernel's name.
pub(crate) fn find(nic: &str) -> Result<Nic> {
    all()?
        .into_iter()
        .find(|found| found.mac == nic || found.name == nic)
        .ok_or_else(|| Error::new(format!("there is no NIC {nic}")))
}

/// Gives a NIC an IP address. Nobody is asked whether it is taken, so it serves at once.
pub(crate) fn add_address(nic: &str, address: &str) -> Result<()> {
    let name = find(nic)?.name;
    if address.contains(':') {
        let folder = Path::new("/proc/sys/net/ipv6/conf").join(&name);
        for (file, value) in [("accept_dad", "0"), ("dad_transmits", "0"), ("router_solicitations", "0")] {
            write(folder.join(file), value)?;
        }
    }
    let output = Command::new(BUSYBOX)
        .args(["ip", "addr", "add", address, "dev", &name])
        .stdin(Stdio::null())
        .output()
        .context(|| BUSYBOX.into())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{address} to {name}: {}", said.trim());
    Ok(())
}

/// The kernel's number of an interface.
pub(crate) fn interface_idx(name: &str) -> Result<u32> {
    Ok(number(&read(Path::new(NET).join(name).join("ifindex"))?)? as u32)
}

/// Every virtio network device, with or without a driver.
pub(crate) fn devices() -> Result<Vec<Device>> {
    let mut devices = Vec::new();
    for device in names_in(VIRTIO)? {
        let folder = Path::new(VIRTIO).join(&device);
        if number(&read(folder.join("device"))?)? == VIRTIO_ID_NET {
            devices.push(Device { bound: folder.join("driver").exists(), device });
        }
    }
    Ok(devices)
}

/// Sets the link up, promiscuous, or down.
pub(crate) fn set_link(nic: &str, up: bool) -> Result<()> {
    let folder = Path::new(NET).join(find(nic)?.name);
    let old = flags(&folder)?;
    let new = if up { old | IFF_UP | IFF_PROMISC } else { old & !IFF_UP };
    write(folder.join("flags"), &format!("{new:#x}"))
}

/// Sets the MTU.
pub(crate) fn set_mtu(nic: &str, mtu: u32) -> Result<()> {
    write(Path::new(NET).join(find(nic)?.name).join("mtu"), &mtu.to_string())
}

/// Takes the driver off a device.
pub(crate) fn unbind(device: &str) -> Result<()> {
    write(Path::new(DRIVER).join("unbind"), device)
}

/// Puts the driver onto a device.
pub(crate) fn bind(device: &str) -> Result<()> {
    write(Path::new(DRIVER).join("bind"), device)
}

/// sysfs shows the features as 64 digits, bit 0 first.
fn features(device: &str) -> Result<u64> {
    let digits = read(Path::new(VIRTIO).join(device).join("features"))?;
    Ok(digits
        .bytes()
        .take(64)
        .enumerate()
        .filter(|(_, digit)| *digit == b'1')
        .fold(0, |bits, (bit, _)| bits | 1 << bit))
}

fn flags(folder: &Path) -> Result<u64> {
    number(&read(folder.join("flags"))?)
}

fn names_in(folder: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).context(|| folder.to_string())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: PathBuf) -> Result<String> {
    Ok(fs::read_to_string(&path).context(|| format!("read {}", path.display()))?.trim().to_string())
}

fn write(path: PathBuf, text: &str) -> Result<()> {
    fs::write(&path, text).context(|| format!("write {text} to {}", path.display()))
}

fn number(text: &str) -> Result<u64> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.context(|| format!("a number was expected, not {text}"))
}

const NET: &str = "/sys/class/net";
const BUSYBOX: &str = "/bin/busybox";
const ARPHRD_ETHER: &str = "1";
const VIRTIO: &str = "/sys/bus/virtio/devices";
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_net";
const VIRTIO_ID_NET: u64 = 1;
const IFF_UP: u64 = 0x1;
const IFF_PROMISC: u64 = 0x100;
