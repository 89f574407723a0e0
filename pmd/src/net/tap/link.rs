//! What the kernel says of an interface (rtnetlink(7), `linux/if_link.h`): what it is, and how many queues of a TAP are
//! attached, by whomever.

use std::io;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// An interface, as the namespace of the asking thread has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Interface {
    /// `ARPHRD_*`.
    hardware: u16,
    /// `tun`, `veth`, `bridge` and the like; empty for what comes from a driver.
    kind: String,
    is_tap: bool,
    is_multi_queue: bool,
    /// Queues that some process has, of one that can have several.
    pub(super) queues: u32,
}

impl Interface {
    /// Looks. None: there is none of that name.
    pub(super) fn find(name: &str) -> io::Result<Option<Interface>> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        let mut request = vec![0; HEADER + INFO];
        request[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
        request[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
        let len = (4 + name.len() + 1) as u16;
        request.extend_from_slice(&len.to_ne_bytes());
        request.extend_from_slice(&libc::IFLA_IFNAME.to_ne_bytes());
        request.extend_from_slice(name.as_bytes());
        request.resize((request.len() + 1).next_multiple_of(4), 0);
        let len = request.len() as u32;
        request[..4].copy_from_slice(&len.to_ne_bytes());
        send(&socket, &request, SendFlags::empty())?;
        let mut answer = vec![0; 64 << 10];
        let (len, _) = recv(&socket, &mut *answer, RecvFlags::empty())?;
        parse(answer.get(..len).unwrap_or_default())
    }

    /// What it is, if Ringway cannot be its other side.
    pub(super) fn misfit(&self, queues: u16) -> Option<String> {
        if self.kind != "tun" {
            let what = match (self.kind.as_str(), self.hardware) {
                ("", libc::ARPHRD_LOOPBACK) => "the loopback interface".to_owned(),
                ("", libc::ARPHRD_ETHER) => "an Ethernet interface of the host's".to_owned(),
                ("", _) => "an interface of the host's".to_owned(),
                (kind, _) => format!("a {kind} interface"),
            };
            return Some(format!("{what}, no TAP"));
        }
        if !self.is_tap {
            return Some("a TUN interface (IP packets without Ethernet), no TAP".to_owned());
        }
        if !self.is_multi_queue && queues > 1 {
            return Some(format!("a TAP with one queue, and {queues} are asked for (max_vqp)"));
        }
        None
    }
}

/// Reads the kernel's answer.
fn parse(answer: &[u8]) -> io::Result<Option<Interface>> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut short");
    let message_type = number(answer, 4, 2).ok_or_else(short)?;
    if message_type == libc::NLMSG_ERROR as u32 {
        let error = number(answer, HEADER, 4).ok_or_else(short)? as i32;
        return match -error {
            libc::ENODEV => Ok(None),
            error => Err(io::Error::from_raw_os_error(error)),
        };
    }
    let mut link = Interface {
        hardware: number(answer, HEADER + 2, 2).ok_or_else(short)? as u16,
        ..Interface::default()
    };
    let rest = answer.get(HEADER + INFO..).unwrap_or_default();
    for (_, info) in attributes(rest).filter(|(kind, _)| *kind == libc::IFLA_LINKINFO) {
        for (kind, value) in attributes(info) {
            match kind {
                libc::IFLA_INFO_KIND => {
                    link.kind = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
                }
                // Of this kind alone: the numbers mean other things for others.
                libc::IFLA_INFO_DATA if link.kind == "tun" => {
                    for (kind, value) in attributes(value) {
                        let value = number(value, 0, value.len().min(4)).unwrap_or(0);
                        match kind {
                            TUN_TYPE => link.is_tap = value == libc::IFF_TAP as u32,
                            TUN_MULTI_QUEUE => link.is_multi_queue = value != 0,
                            TUN_NUM_QUEUES | TUN_NUM_DISABLED_QUEUES => link.queues += value,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
    }
    Ok(Some(link))
}

/// The attributes in a row: number and value of each.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = number(bytes, 0, 2)? as usize;
        let kind = number(bytes, 2, 2)? as u16 & !NESTED;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A number of some bytes, in the machine's order.
fn number(bytes: &[u8], at: usize, len: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + len)?;
    match *bytes {
        [a] => Some(a.into()),
        [a, b] => Some(u16::from_ne_bytes([a, b]).into()),
        [a, b, c, d] => Some(u32::from_ne_bytes([a, b, c, d])),
        _ => None,
    }
}

/// Bytes of `nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `ifinfomsg`.
const INFO: usize = 16;
/// NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const NESTED: u16 = 0xc000;
// `IFLA_TUN_*`.
const TUN_TYPE: u16 = 3;
const TUN_MULTI_QUEUE: u16 = 7;
const TUN_NUM_QUEUES: u16 = 8;
const TUN_NUM_DISABLED_QUEUES: u16 = 9;

#[cfg(test)]
mod tests {
    use super::super::scene::{in_own_namespace, run};
    use super::*;

    #[test]
    fn what_an_interface_is_is_told() {
        in_own_namespace(|| {
            let misfit = |name: &str, queues| Interface::find(name).unwrap().unwrap().misfit(queues);
            assert_eq!(Interface::find("none").unwrap(), None);
            assert_eq!(misfit("lo", 1).unwrap(), "the loopback interface, no TAP");
            for words in ["one mode tap", "many mode tap multi_queue", "raw0 mode tun"] {
                run(&format!("ip tuntap add dev {words}"));
            }
            assert!(misfit("raw0", 1).unwrap().starts_with("a TUN interface"));
            assert_eq!(misfit("one", 1), None);
            assert!(misfit("one", 4).unwrap().contains("one queue, and 4"));
            assert_eq!(misfit("many", 4), None);
            run("ip link add v0 type veth peer name v1");
            assert_eq!(misfit("v0", 1).unwrap(), "a veth interface, no TAP");
        });
    }

    #[test]
    fn answers_cut_anywhere_are_no_panic() {
        let mut answer = vec![0; HEADER + INFO];
        answer.extend([8, 0, 18, 0, 9, 0, 1, 0]);
        for len in 0..answer.len() {
            let _ = parse(&answer[..len]);
        }
    }
}
