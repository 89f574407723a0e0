//! The definition of the program `ringwayd`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser, ValueEnum};

use crate::settings::Override;

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

impl Ringwayd {
    /// Keys of the configuration file that these options go before, and RINGWAY_CTL of the environment, if that is set.
    pub(crate) fn overrides(&self, variable: Option<&OsStr>) -> Vec<Override> {
        let shown = |path: &Option<PathBuf>| path.as_deref().map(|path: &Path| path.display().to_string());
        let idle = self.idle.and_then(|idle| idle.to_possible_value());
        let options = [
            ("cores", "--cores", self.cores.clone()),
            ("idle", "--idle", idle.map(|idle| idle.get_name().to_owned())),
            ("ctl", "--ctl", shown(&self.ctl)),
            ("view", "--view", shown(&self.view)),
            ("view_group", "--view-group", self.view_group.clone()),
            ("metrics", "--metrics", self.metrics.clone()),
            ("state_dir", "--state-dir", shown(&self.state_dir)),
        ];
        let of_option = |(key, option, value): (_, &str, Option<String>)| {
            Some(Override { key, by: format!("the command line: `{option} {}`", value?) })
        };
        let variable = variable.filter(|_| self.ctl.is_none()).map(|path| Override {
            key: "ctl",
            by: format!("the environment: `RINGWAY_CTL={}`", Path::new(path).display()),
        });
        options.into_iter().filter_map(of_option).chain(variable).collect()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_and_the_variable_are_told_as_they_were_given() {
        let told = |line: &str, variable: Option<&str>| {
            let args = Ringwayd::try_parse_from(line.split(' ')).unwrap();
            let overrides = args.overrides(variable.map(OsStr::new));
            overrides.into_iter().map(|other| format!("{} {}", other.key, other.by)).collect::<Vec<_>>()
        };
        assert_eq!(told("ringwayd --config f --log debug", None), Vec::<String>::new());
        let all =
            "ringwayd --cores 1,3-5 --idle poll --ctl c --view v --view-group g --metrics m --state-dir s";
        let expected = [
            "cores the command line: `--cores 1,3-5`",
            "idle the command line: `--idle poll`",
            "ctl the command line: `--ctl c`",
            "view the command line: `--view v`",
            "view_group the command line: `--view-group g`",
            "metrics the command line: `--metrics m`",
            "state_dir the command line: `--state-dir s`",
        ];
        // The option goes before the variable.
        assert_eq!(told(all, Some("/e")), expected);
        assert_eq!(told("ringwayd", Some("/e")), ["ctl the environment: `RINGWAY_CTL=/e`"]);
    }
}
