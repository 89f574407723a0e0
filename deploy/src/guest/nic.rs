//! The guest's NICs, by way of sysfs.

use std::fs;
use std::path::{Path, PathBuf};

use ringway_lab::agent::{Device, Nic};
use ringway_lab::error::{Context, Error, Result};

use crate::sys;

/// Every virtio NIC that has a driver.
pub(crate) fn all() -> Result<Vec<Nic>> {
    let mut nics = Vec::new();
    for name in names_in(NET)? {
        let folder = Path::new(NET).join(&name);
        let Ok(device) = fs::canonicalize(folder.join("device")) else { continue };
        let device = file_name(&device);
        if !device.starts_with("virtio") {
            continue;
        }
        let channels = sys::channels(&name)?;
        nics.push(Nic {
            mac: read(folder.join("address"))?,
            features: features(&device)?,
            mtu: number(&read(folder.join("mtu"))?)? as u32,
            up: flags(&folder)? & IFF_UP != 0,
            // Reading it fails while the link is set down.
            carrier: read(folder.join("carrier")).is_ok_and(|text| text == "1"),
            rx_packets: number(&read(folder.join("statistics/rx_packets"))?)?,
            tx_packets: number(&read(folder.join("statistics/tx_packets"))?)?,
            pairs: channels.current,
            max_pairs: channels.max,
            device,
            name,
        });
    }
    Ok(nics)
}

/// The NIC with an Ethernet address.
pub(crate) fn by_mac(mac: &str) -> Result<Nic> {
    all()?
        .into_iter()
        .find(|nic| nic.mac == mac)
        .ok_or_else(|| Error::new(format!("no NIC has the address {mac}")))
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
pub(crate) fn set_link(mac: &str, up: bool) -> Result<()> {
    let nic = by_mac(mac)?;
    let folder = Path::new(NET).join(&nic.name);
    let old = flags(&folder)?;
    let new = if up { old | IFF_UP | IFF_PROMISC } else { old & !IFF_UP };
    write(folder.join("flags"), &format!("{new:#x}"))
}

/// Sets the MTU.
pub(crate) fn set_mtu(mac: &str, mtu: u32) -> Result<()> {
    write(Path::new(NET).join(by_mac(mac)?.name).join("mtu"), &mtu.to_string())
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
const VIRTIO: &str = "/sys/bus/virtio/devices";
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_net";
const VIRTIO_ID_NET: u64 = 1;
const IFF_UP: u64 = 0x1;
const IFF_PROMISC: u64 = 0x100;
