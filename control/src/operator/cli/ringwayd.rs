//! The definition of the program `ringwayd`.

use std::path::PathBuf;

use clap::{CommandFactory, Parser, ValueEnum};

/// A userspace vDPA data plane.
#[derive(Debug, Parser)]
#[command(
    name = "ringwayd",
    version,
    about = "A userspace vDPA data plane; see ringway(8) for its operators"
)]
pub struct Ringwayd {
    /// The operator socket [env: RINGWAY_CTL] [default: /run/ringway/ctl.sock for root, else $XDG_RUNTIME_DIR/ringway/ctl.sock, without that /tmp/ringway-UID/ctl.sock]
    #[arg(long, value_name = "PATH")]
    pub ctl: Option<PathBuf>,
    /// An operator socket for those who may see everything and change nothing [default: none]
    #[arg(long, value_name = "PATH", conflicts_with_all = ["fd", "socket_path"])]
    pub view: Option<PathBuf>,
    /// Whose the view-only socket is: a group, by name or number [default: the daemon's]
    #[arg(long, value_name = "GROUP", conflicts_with_all = ["fd", "socket_path"])]
    pub view_group: Option<String>,
    /// Where Prometheus scrapes GET /metrics: an address with a port, or the path of a socket [default: nowhere]
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["fd", "socket_path"])]
    pub metrics: Option<String>,
    /// Where devices that operators add are kept [default: /var/lib/ringway for root, else $XDG_STATE_HOME/ringway]
    #[arg(long, value_name = "DIRECTORY")]
    pub state_dir: Option<PathBuf>,
    /// The file with the desired state; options on the command line go before it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Cores of the workers, as in 1,3-5 [default: the last core that the process may use, not core 0]
    #[arg(long, value_name = "LIST")]
    pub cores: Option<String>,
    /// What idle workers do [default: adaptive]
    #[arg(long, value_enum, value_name = "POLICY")]
    pub idle: Option<Idle>,
    /// What is logged to standard error: error, warn, info, debug, trace, or filters [env: RINGWAY_LOG] [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
    /// Serve one sim/net device on this socket and nothing else (QEMU's convention for back-end programs)
    #[arg(long, value_name = "PATH", conflicts_with_all = ["fd", "config", "ctl", "state_dir"])]
    pub socket_path: Option<PathBuf>,
    /// Serve one sim/net device on this inherited socket and nothing else (QEMU's convention)
    #[arg(long, value_name = "N", conflicts_with_all = ["config", "ctl", "state_dir"])]
    pub fd: Option<i32>,
    /// Print what the back-end can do as JSON and end (QEMU's convention)
    #[arg(long)]
    pub print_capabilities: bool,
}

/// What idle workers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Idle {
    /// Sleep until a guest wakes them
    Adaptive,
    /// Spin
    Poll,
}

/// The definition, for the manual.
pub fn command() -> clap::Command {
    Ringwayd::command()
}
