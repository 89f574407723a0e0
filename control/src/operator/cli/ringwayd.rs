//! The definition of the program `ringwayd`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser, ValueEnum};

use crate::devices::placement::{list, parse_cores};
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
        let as_given: fn(&str) -> String = str::to_owned;
        let options = [
            ("cores", "--cores", self.cores.clone(), cores_of as fn(&str) -> String),
            ("idle", "--idle", idle.map(|idle| idle.get_name().to_owned()), as_given),
            ("ctl", "--ctl", shown(&self.ctl), whole_path),
            ("view", "--view", shown(&self.view), whole_path),
            ("view_group", "--view-group", self.view_group.clone(), as_given),
            ("metrics", "--metrics", self.metrics.clone(), as_given),
            ("state_dir", "--state-dir", shown(&self.state_dir), whole_path),
            ("log", "--log", self.log.clone(), as_given),
        ];
        let of_option = |(key, option, given, value): (_, &str, Option<String>, fn(&str) -> String)| {
            let given = given?;
            Some(Override { key, value: value(&given), by: format!("the command line: `{option} {given}`") })
        };
        let variable = variable.filter(|_| self.ctl.is_none()).map(|path| {
            let given = Path::new(path).display().to_string();
            Override {
                key: "ctl",
                value: whole_path(&given),
                by: format!("the environment: `RINGWAY_CTL={given}`"),
            }
        });
        options.into_iter().filter_map(of_option).chain(variable).collect()
    }
}

/// A list of cores as it is shown.
fn cores_of(given: &str) -> String {
    parse_cores(given).map_or_else(|_| given.to_owned(), |cores| list(&cores))
}

/// A path as it is shown, from the root.
fn whole_path(given: &str) -> String {
    std::path::absolute(given).map_or_else(|_| given.to_owned(), |path| path.display().to_string())
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
            overrides
                .into_iter()
                .map(|other| format!("{} {}: {}", other.key, other.value, other.by))
                .collect::<Vec<_>>()
        };
        assert_eq!(told("ringwayd --config f", None), Vec::<String>::new());
        let log = "log debug: the command line: `--log debug`";
        assert_eq!(told("ringwayd --config f --log debug", None), [log]);
        let all = "ringwayd --cores 1,3-5 --idle poll --ctl /c --view /r//v --view-group g --metrics m --state-dir /s/.";
        let expected = [
            "cores 1, 3, 4, 5: the command line: `--cores 1,3-5`",
            "idle poll: the command line: `--idle poll`",
            "ctl /c: the command line: `--ctl /c`",
            "view /r/v: the command line: `--view /r//v`",
            "view_group g: the command line: `--view-group g`",
            "metrics m: the command line: `--metrics m`",
            "state_dir /s: the command line: `--state-dir /s/.`",
        ];
        // The option goes before the variable.
        assert_eq!(told(all, Some("/e")), expected);
        assert_eq!(told("ringwayd", Some("/e")), ["ctl /e: the environment: `RINGWAY_CTL=/e`"]);
    }
}
