//! One device and nothing else: QEMU's conventions for vhost-user back-end programs.
//!
//! `--socket-path PATH` listens there; `--fd N` takes an inherited socket, connected or listening. No operator
//! socket, nothing kept. With a connected socket the program ends with its front-end.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::devices::addresses::Addresses;
use crate::fault::Fault;
use crate::host::endpoint::Inherited;
use crate::operator::api::{DeviceEntry, Mode};
use crate::settings::{Options, Settings};
use crate::subsystem::Subsystem;

/// What `--print-capabilities` prints.
pub(crate) const CAPABILITIES: &str = r#"{"type": "net", "features": []}"#;

/// The device's name.
const NAME: &str = "net0";

/// Serves one `sim/net` device until told to stop.
pub(crate) fn serve(
    path: Option<&Path>,
    fd: Option<i32>,
    settings: Settings,
    signals: UnixStream,
) -> Result<(), Fault> {
    let runtime = tempfile::Builder::new()
        .prefix("ringwayd-")
        .tempdir()
        .map_err(|error| Fault::system("cannot make a directory for this run", error))?;
    let socket = match path {
        Some(path) => std::path::absolute(path)
            .map_err(|error| Fault::system("cannot tell where the socket is", error))?,
        None => runtime.path().join("front-end.sock"),
    };
    // One name for all of them: what tells two of a host apart is the socket.
    let mac = Addresses::of_machine().mac_of(&format!("socket {}", socket.display()));
    let entry = DeviceEntry {
        name: NAME.to_owned(),
        mac: Some(mac.to_string()),
        mgmtdev: "sim/net".to_owned(),
        socket: Some(socket.clone()),
        mode: Some(Mode::Server),
        ..DeviceEntry::default()
    };
    let inherited = fd.map(inherit).transpose()?;
    let subsystem = Subsystem::start(Options {
        settings,
        claims_cores: true,
        signals: Some(signals),
        reload: None,
        ..Options::embedded(runtime.path())
    })?;
    match inherited {
        None => {
            subsystem.add(&entry)?;
        }
        Some(inherited) => subsystem.adopt(DeviceEntry { socket: None, ..entry }, inherited)?,
    }
    tracing::info!("serving one sim/net device on {}", describe(&socket, fd));
    subsystem.wait();
    Ok(())
}

/// Takes descriptor `number` of this process over: a duplicate, made by the kernel from the number.
fn inherit(number: i32) -> Result<Inherited, Fault> {
    let refused =
        |error: rustix::io::Errno| Fault::system(format!("cannot use descriptor {number}"), error).at("fd");
    let own = pidfd_open(getpid(), PidfdFlags::empty()).map_err(refused)?;
    let socket: OwnedFd = pidfd_getfd(own, number, PidfdGetfdFlags::empty()).map_err(refused)?;
    if rustix::net::sockopt::socket_acceptconn(&socket).map_err(refused)? {
        Ok(Inherited::Listening(UnixListener::from(socket)))
    } else {
        Ok(Inherited::Connected(UnixStream::from(socket)))
    }
}

fn describe(socket: &Path, fd: Option<i32>) -> String {
    match fd {
        Some(number) => format!("descriptor {number}"),
        None => PathBuf::from(socket).display().to_string(),
    }
}
