//! What a VMM must be told to use a device: QEMU's arguments and libvirt's XML.

use std::fmt::Write as _;

use ringway_pmd::vdpa::Class;

use crate::operator::api::{DevInfo, Mode};
use crate::operator::names::FeatureName;

/// Entries of a disk's queue: more than a guest has requests under way.
const DISK_QUEUE: u16 = 256;
/// Queues of a disk that are asked for.
const DISK_QUEUES: u16 = 4;
/// The largest queue that QEMU lets a virtio-net device have.
const QEMU_LARGEST_QUEUE: u16 = 1024;

/// QEMU's arguments for a device. Memory size and machine are the VM's own; what matters of them is that the memory is
/// shared.
pub(super) fn qemu(name: &str, info: &DevInfo) -> Vec<String> {
    let path = info.socket.display().to_string().replace(',', ",,");
    let chardev = match info.mode {
        Mode::Server => format!("socket,id=char-{name},path={path},reconnect-ms=100"),
        Mode::Client | Mode::Netdev | Mode::Uplink => {
            format!("socket,id=char-{name},path={path},server=on,wait=off")
        }
    };
    let mut arguments = vec![
        ("-object", "memory-backend-memfd,id=mem0,size=1G,share=on".to_owned()),
        ("-machine", "q35,memory-backend=mem0".to_owned()),
        ("-m", "1G".to_owned()),
        ("-chardev", chardev),
    ];
    arguments.extend(if is_disk(info) { qemu_disk(name, info) } else { qemu_nic(name, info) });
    arguments.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect()
}

/// A disk has no netdev of its own.
fn qemu_disk(name: &str, info: &DevInfo) -> Vec<(&'static str, String)> {
    let queues = disk_queues(info);
    let size = queue_size(info).min(DISK_QUEUE);
    let mut device = format!("vhost-user-blk-pci,chardev=char-{name},num-queues={queues},queue-size={size}");
    if offers(info, "RING_PACKED") {
        device.push_str(",packed=on");
    }
    vec![("-device", device)]
}

fn qemu_nic(name: &str, info: &DevInfo) -> Vec<(&'static str, String)> {
    let id = format!("net-{name}");
    let pairs = info.max_vqs / 2;
    let mut netdev = format!("vhost-user,id={id},chardev=char-{name}");
    let mut device = format!("virtio-net-pci,netdev={id}");
    if let Some(mac) = &info.provisioned.mac {
        let _ = write!(device, ",mac={mac}");
    }
    if pairs > 1 {
        let _ = write!(netdev, ",queues={pairs}");
        let _ = write!(device, ",mq=on,vectors={}", 2 * pairs + 2);
    }
    if offers(info, "RING_PACKED") {
        device.push_str(",packed=on");
    }
    let size = queue_size(info);
    let _ = write!(device, ",rx_queue_size={size},tx_queue_size={size}");
    if let Some(mtu) = info.provisioned.mtu.filter(|_| offers(info, "MTU")) {
        let _ = write!(device, ",host_mtu={mtu}");
    }
    vec![("-netdev", netdev), ("-device", device)]
}

fn is_disk(info: &DevInfo) -> bool {
    info.kind == Class::Block.type_name()
}

/// As many queues as most guests have CPUs for; with more CPUs, the number can be raised to the device's.
fn disk_queues(info: &DevInfo) -> u16 {
    info.max_vqs.clamp(1, DISK_QUEUES)
}

/// Arguments as a shell reads them, an option a line.
pub(super) fn shell_lines(arguments: &[String]) -> String {
    let quoted = |word: &String| {
        let is_plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.,:/=+@".contains(&b));
        if is_plain { word.clone() } else { format!("'{}'", word.replace('\'', "'\\''")) }
    };
    let lines: Vec<String> =
        arguments.chunks(2).map(|pair| pair.iter().map(quoted).collect::<Vec<_>>().join(" ")).collect();
    lines.join(" \\\n") + "\n"
}

/// The parts of a libvirt domain for a device.
pub(super) fn libvirt(info: &DevInfo) -> String {
    let size = queue_size(info);
    let mut xml = String::new();
    xml.push_str("<memoryBacking>\n  <source type='memfd'/>\n  <access mode='shared'/>\n</memoryBacking>\n");
    if is_disk(info) {
        libvirt_disk(&mut xml, info);
        return xml;
    }
    let pairs = info.max_vqs / 2;
    xml.push_str("<interface type='vhostuser'>\n");
    if let Some(mac) = &info.provisioned.mac {
        let _ = writeln!(xml, "  <mac address='{mac}'/>");
    }
    let path = escaped(&info.socket.display().to_string());
    match info.mode {
        Mode::Server => {
            let _ = writeln!(xml, "  <source type='unix' path='{path}' mode='client'>");
            xml.push_str("    <reconnect enabled='yes' timeout='1'/>\n  </source>\n");
        }
        Mode::Client | Mode::Netdev | Mode::Uplink => {
            let _ = writeln!(xml, "  <source type='unix' path='{path}' mode='server'/>");
        }
    }
    xml.push_str("  <model type='virtio'/>\n");
    let queues = if pairs > 1 { format!(" queues='{pairs}'") } else { String::new() };
    let packed = if offers(info, "RING_PACKED") { " packed='on'" } else { "" };
    let _ = writeln!(xml, "  <driver{queues} rx_queue_size='{size}' tx_queue_size='{size}'{packed}/>");
    if let Some(mtu) = info.provisioned.mtu.filter(|_| offers(info, "MTU")) {
        let _ = writeln!(xml, "  <mtu size='{mtu}'/>");
    }
    xml.push_str("</interface>\n");
    xml
}

fn libvirt_disk(xml: &mut String, info: &DevInfo) {
    let (queues, size) = (disk_queues(info), queue_size(info).min(DISK_QUEUE));
    let packed = if offers(info, "RING_PACKED") { " packed='on'" } else { "" };
    if info.mode != Mode::Server {
        // It has no word for a disk's socket that QEMU makes.
        xml.push_str("<!-- libvirt connects to a disk's socket: this device waits for one of the VMM's; ");
        xml.push_str("add it with mode server -->\n");
        return;
    }
    let path = escaped(&info.socket.display().to_string());
    xml.push_str("<disk type='vhostuser' device='disk'>\n");
    let _ = writeln!(xml, "  <driver name='qemu' type='raw' queues='{queues}' queue_size='{size}'{packed}/>");
    let _ = writeln!(xml, "  <source type='unix' path='{path}'>");
    xml.push_str("    <reconnect enabled='yes' timeout='1'/>\n  </source>\n");
    xml.push_str("  <target dev='vda' bus='virtio'/>\n</disk>\n");
}

fn offers(info: &DevInfo, feature: &str) -> bool {
    info.device_features.iter().any(|name| matches!(name, FeatureName::Name(name) if name == feature))
}

/// The largest power of two that both the device and QEMU take.
fn queue_size(info: &DevInfo) -> u16 {
    let most = info.max_vq_size.clamp(1, QEMU_LARGEST_QUEUE);
    1 << most.ilog2()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::api::{History, Provisioned};

    fn info(mode: Mode, max_vqs: u16) -> DevInfo {
        DevInfo {
            kind: "network".into(),
            mgmtdev: "sim/net".into(),
            vendor_id: 1,
            max_vqs,
            max_vq_size: 32768,
            state: "waiting".into(),
            netdev: None,
            uplink: None,
            socket: "/run/a,b/vm0.sock".into(),
            mode,
            owner: None,
            group: None,
            origin: "operator".into(),
            data_path: "pumped".into(),
            device_features: vec![FeatureName::Name("MTU".into()), FeatureName::Name("RING_PACKED".into())],
            provisioned: Provisioned {
                mac: Some("52:54:00:00:00:01".into()),
                link: None,
                max_vq_pairs: Some(max_vqs / 2),
                mtu: Some(9000),
                ..Provisioned::default()
            },
            attributes: Default::default(),
            deferred: Vec::new(),
            cores: vec![1],
            front_end: None,
            rings: Vec::new(),
            access: None,
            history: History::default(),
            captures: Vec::new(),
            under_way: None,
            findings: Vec::new(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn qemu_arguments_fit_a_server_with_several_pairs() {
        assert_eq!(
            shell_lines(&qemu("vm0", &info(Mode::Server, 8))),
            "-object memory-backend-memfd,id=mem0,size=1G,share=on \\\n\
             -machine q35,memory-backend=mem0 \\\n\
             -m 1G \\\n\
             -chardev socket,id=char-vm0,path=/run/a,,b/vm0.sock,reconnect-ms=100 \\\n\
             -netdev vhost-user,id=net-vm0,chardev=char-vm0,queues=4 \\\n\
             -device virtio-net-pci,netdev=net-vm0,mac=52:54:00:00:00:01,mq=on,vectors=10,packed=on,\
             rx_queue_size=1024,tx_queue_size=1024,host_mtu=9000\n"
        );
    }

    #[test]
    fn qemu_owns_the_socket_of_a_client_and_one_pair_needs_no_mq() {
        let text = shell_lines(&qemu("vm0", &info(Mode::Client, 2)));
        assert!(text.contains("server=on,wait=off") && !text.contains("reconnect"), "{text}");
        assert!(!text.contains("mq=on") && !text.contains("queues="), "{text}");
    }

    #[test]
    fn libvirt_takes_the_other_end_of_the_socket() {
        let server = libvirt(&info(Mode::Server, 8));
        assert!(server.contains("mode='client'") && server.contains("<reconnect"), "{server}");
        assert!(server.contains("<access mode='shared'/>") && server.contains("queues='4'"), "{server}");
        let client = libvirt(&info(Mode::Client, 2));
        assert!(client.contains("mode='server'/>") && !client.contains("<reconnect"), "{client}");
    }

    #[test]
    fn disk_is_a_device_of_its_own() {
        let disk = DevInfo {
            kind: "block".into(),
            max_vq_size: 1024,
            provisioned: Provisioned::default(),
            ..info(Mode::Server, 16)
        };
        let text = shell_lines(&qemu("d0", &disk));
        assert!(
            text.contains("-device vhost-user-blk-pci,chardev=char-d0,num-queues=4,queue-size=256,packed=on"),
            "{text}"
        );
        assert!(!text.contains("netdev"), "{text}");
        let xml = libvirt(&disk);
        assert!(
            xml.contains("<disk type='vhostuser'")
                && xml.contains("queues='4'")
                && !xml.contains("<interface"),
            "{xml}"
        );
        let client = libvirt(&DevInfo { mode: Mode::Client, ..disk });
        assert!(!client.contains("<disk") && client.contains("mode server -->"), "{client}");
    }

    #[test]
    fn words_are_quoted_for_a_shell_where_they_must_be() {
        assert_eq!(shell_lines(&["-x".into(), "it's".into()]), "-x 'it'\\''s'\n");
    }
}
