//! The definition of the command `ringway`.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use super::{capture, help, logs};

/// Show and change the vDPA devices of a running ringwayd.
#[derive(Debug, Parser)]
#[command(name = "ringway", version, propagate_version = true, disable_help_subcommand = false)]
#[command(about = "Show and change the vDPA devices of a running ringwayd", after_help = AFTER_HELP)]
pub struct Cli {
    /// Print JSON, one line
    #[arg(short = 'j', long, global = true)]
    pub json: bool,
    /// With -j: indent the JSON by four blanks; text stays as it is
    #[arg(short = 'p', long, global = true)]
    pub pretty: bool,
    /// The operator socket [env: RINGWAY_CTL] [default: /run/ringway/ctl.sock for root, else $XDG_RUNTIME_DIR/ringway/ctl.sock, without that /tmp/ringway-UID/ctl.sock]
    #[arg(long, global = true, value_name = "PATH", value_hint = clap::ValueHint::FilePath)]
    pub ctl: Option<PathBuf>,
    /// How long the daemon may take to answer
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = Self::TIMEOUT)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
    /// Say what a command would change and whom it would disrupt, and change nothing
    #[arg(long, global = true)]
    pub dry_run: bool,
    /// Run the commands of a file, or of standard input (-), one a line with # for comments; end at the first that fails
    #[arg(short = 'b', long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub batch: Option<PathBuf>,
    /// With -b: go on after a command that failed; the exit code is that of the first
    #[arg(long, requires = "batch")]
    pub force: bool,
    /// What to work on
    #[command(subcommand)]
    pub object: Option<Object>,
}

impl Cli {
    /// How long the daemon may take to answer, in seconds, unless it is said.
    pub const TIMEOUT: u64 = 10;
}

/// What to work on.
#[derive(Debug, Subcommand)]
pub enum Object {
    /// Management devices, which make devices
    #[command(subcommand_required = false)]
    Mgmtdev {
        /// What to do
        #[command(subcommand)]
        command: Option<MgmtdevCommand>,
    },
    /// Devices; alone, the same as `dev show`
    Dev {
        /// What to do
        #[command(subcommand)]
        command: Option<DevCommand>,
    },
    /// Ports: functions of hardware that can be divided; alone, the same as `port show`
    Port {
        /// What to do
        #[command(subcommand)]
        command: Option<PortCommand>,
    },
    /// Bridges, in the words of bridge(8)
    Bridge {
        /// What of them
        #[command(subcommand)]
        command: BridgeCommand,
    },
    /// Workers; alone, the same as `core show`
    Core {
        /// What to do
        #[command(subcommand)]
        command: Option<CoreCommand>,
    },
    /// Show what happens in a second, of devices, queues, cores and pumps, while it runs
    #[command(after_help = help::TOP_HELP)]
    Top(TopArgs),
    /// Follow what happens
    #[command(after_help = help::events_help())]
    Events(EventsArgs),
    /// The configuration file
    Config {
        /// What to do
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Say what keeps packets or requests from a device, and what to do next
    Why {
        /// The device
        name: String,
    },
    /// Write the frames of a network device to a file, for tcpdump and Wireshark
    #[command(after_help = capture::words::capture_help())]
    Capture(CaptureArgs),
    /// What the daemon logs; alone, the same as `log show`
    #[command(after_help = logs::log_help())]
    Log {
        /// What to do
        #[command(subcommand)]
        command: Option<LogCommand>,
    },
    /// Show all that there is, or what stands at a path of it, a line for each value
    #[command(after_help = help::INSPECT_HELP)]
    Inspect {
        /// Keys joined by slashes, as in devices/vm0/queues/0/drops; * stands for anything in a key
        path: Option<String>,
    },
    /// Look at the host: what keeps workers from their cores, or Ringway from what it needs; needs no daemon
    #[command(after_help = help::doctor_help())]
    Doctor(DoctorArgs),
    /// Write all that is shown of daemon and host into one file for a report, without what guests send
    #[command(after_help = help::bundle_help())]
    Bundle {
        /// The file; one that is there is left alone [default: ringway-bundle-SECONDS.tar.gz here]
        #[arg(value_hint = clap::ValueHint::FilePath)]
        file: Option<PathBuf>,
    },
    /// Show who answers: version, process, instance, directories
    Hello,
    /// Say whether the daemon runs with all that it was asked for, as the installed program
    #[command(after_help = help::STATUS_HELP)]
    Status,
    /// Wait for the daemon, or for a device of it
    #[command(after_help = help::WAIT_HELP)]
    Wait(WaitArgs),
    /// The protocol of the operator socket
    Rpc {
        /// What to do
        #[command(subcommand)]
        command: RpcCommand,
    },
    /// Run the data plane and a guest in this process, and measure: needs no daemon, no root, no hardware
    Demo(DemoArgs),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
        /// The program whose command lines it completes
        #[arg(value_enum, default_value_t = Completed::Ringway)]
        program: Completed,
    },
    /// Print what may stand at the end of a command line: what completion scripts call
    #[command(hide = true)]
    Complete {
        /// The command line up to the cursor
        #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
        line: String,
    },
    /// Write the manual pages ringway.8, ringwayd.8 and ringway-reference.7 into a directory
    Man {
        /// The directory
        #[arg(value_hint = clap::ValueHint::DirPath)]
        dir: PathBuf,
    },
}

/// Commands of `mgmtdev`.
#[derive(Debug, Subcommand)]
pub enum MgmtdevCommand {
    /// Show management devices: what they make, how large, with which attributes; and which kinds there can be
    #[command(visible_alias = "list")]
    Show {
        /// One of them, as it is shown; a KIND alone shows what can be made of it
        name: Option<String>,
    },
    /// Add a management device, to have it before its first device or with other settings
    #[command(after_help = help::kinds_help())]
    Add {
        /// `name KIND/NAME`, then attributes, each followed by its value
        #[arg(value_name = "KEYWORD VALUE", num_args = 0..)]
        words: Vec<String>,
    },
    /// Change a management device, also while its devices are in use
    #[command(after_help = help::kinds_help())]
    Set {
        /// `name KIND/NAME`, then attributes, each followed by its new value
        #[arg(value_name = "KEYWORD VALUE", num_args = 0..)]
        words: Vec<String>,
    },
    /// Remove a management device with all its devices at once, also while guests use them
    Del {
        /// The management device
        name: String,
    },
}

/// Commands of `port`, in the words of devlink(8).
#[derive(Debug, Subcommand)]
pub enum PortCommand {
    /// Show ports: each with its function, its management device and the devices of that
    #[command(visible_alias = "list", after_help = help::port_show_help())]
    Show {
        /// One of them, MGMTDEV/SFNUM; or those of one management device; all without it
        name: Option<String>,
    },
    /// Add a port: a function with a share of its management device, inactive at first
    #[command(after_help = help::port_add_help())]
    Add {
        /// The management device, as in simnic/nic0
        mgmtdev: String,
        /// Keywords, each followed by its value
        #[arg(value_name = "KEYWORD VALUE", num_args = 0..)]
        words: Vec<String>,
    },
    /// Remove a port at once, also while guests use its function
    Del {
        /// The port: MGMTDEV/SFNUM
        name: String,
    },
    /// The function of a port
    Function {
        /// What to do
        #[command(subcommand)]
        command: PortFunctionCommand,
    },
}

/// Commands of `bridge`.
#[derive(Debug, Subcommand)]
pub enum BridgeCommand {
    /// VLANs of ports
    Vlan {
        /// What to do
        #[command(subcommand)]
        command: VlanCommand,
    },
}

/// Commands of `bridge vlan`, in the words of bridge(8).
#[derive(Debug, Subcommand)]
pub enum VlanCommand {
    /// Show which VLANs the ports carry, on bridges that look at them: where a port was given some
    #[command(visible_alias = "list")]
    Show {
        /// `dev NAME`: one of them
        #[arg(value_name = "dev NAME", num_args = 0..=2)]
        words: Vec<String>,
    },
    /// Have a port carry VLANs, also under traffic: `dev NAME vid VID[-VID] [pvid] [untagged]`
    #[command(after_help = help::VLAN_HELP)]
    Add {
        /// `dev NAME vid VID[-VID]`, then `pvid`, `untagged`
        #[arg(value_name = "KEYWORD", num_args = 0..)]
        words: Vec<String>,
    },
    /// Have a port carry VLANs no more, also under traffic: `dev NAME vid VID[-VID]`
    Del {
        /// `dev NAME vid VID[-VID]`
        #[arg(value_name = "KEYWORD", num_args = 0..)]
        words: Vec<String>,
    },
}

/// Commands of `port function`.
#[derive(Debug, Subcommand)]
pub enum PortFunctionCommand {
    /// Change the function of a port: active, it is a management device; its attributes change while it is inactive
    #[command(after_help = help::function_help())]
    Set {
        /// The port: MGMTDEV/SFNUM
        name: String,
        /// Keywords, each followed by its new value
        #[arg(value_name = "KEYWORD VALUE", num_args = 0..)]
        words: Vec<String>,
    },
}

/// Commands of `dev`.
#[derive(Debug, Subcommand)]
pub enum DevCommand {
    /// Show devices: one in full, or all
    #[command(visible_alias = "list", after_help = help::show_help())]
    Show(DevShowArgs),
    /// Add a device
    #[command(after_help = help::add_help())]
    Add {
        /// Keywords, each followed by its value
        #[arg(value_name = "KEYWORD VALUE", num_args = 0..)]
        words: Vec<String>,
    },
    /// Remove a device at once, also while a guest uses it
    Del {
        /// The device
        name: String,
    },
    /// The configuration space that guests read
    Config {
        /// What to do
        #[command(subcommand)]
        command: Option<DevConfigCommand>,
    },
    /// Statistics of queues
    Vstats {
        /// What to do
        #[command(subcommand)]
        command: DevVstatsCommand,
    },
    /// Change a device
    #[command(after_help = help::set_help())]
    Set {
        /// `name NAME`, then keywords, each followed by its new value
        #[arg(value_name = "KEYWORD VALUE", num_args = 0..)]
        words: Vec<String>,
    },
}

/// What to show of devices.
#[derive(Debug, Args)]
pub struct DevShowArgs {
    /// The device; all without it
    pub name: Option<String>,
    /// Print the QEMU arguments that fit the device
    #[arg(long, requires = "name", conflicts_with = "libvirt")]
    pub qemu: bool,
    /// Print the libvirt XML that fits the device
    #[arg(long, requires = "name")]
    pub libvirt: bool,
}

/// Commands of `dev config`.
#[derive(Debug, Subcommand)]
pub enum DevConfigCommand {
    /// Show the configuration space
    Show {
        /// The device; all without it
        name: Option<String>,
    },
}

/// Commands of `dev vstats`.
#[derive(Debug, Subcommand)]
pub enum DevVstatsCommand {
    /// Show statistics of one queue, or of all; every drop and fault with its meaning and its cure
    Show {
        /// The device
        name: String,
        /// `qidx N`: one queue; `interval SECONDS`: rates since the line before, again and again, `count N` times
        #[arg(value_name = "qidx N", num_args = 0..=6)]
        words: Vec<String>,
    },
}

/// Commands of `log`.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Show what is logged, of everybody and of single devices, and where it goes
    #[command(visible_alias = "list")]
    Show,
    /// Change what is logged, until the daemon ends or a file is applied that says: `LEVEL`, or `LEVEL device NAME`
    #[command(after_help = logs::log_help())]
    Set {
        /// The level; `default`: as the daemon began or a file said since, and of a device: as everybody's
        level: String,
        /// `device NAME`: only of this one
        #[arg(value_name = "device NAME", num_args = 0..=2)]
        words: Vec<String>,
    },
}

/// Commands of `core`.
#[derive(Debug, Subcommand)]
pub enum CoreCommand {
    /// Show workers: busy, idle, asleep, cycles per packet, packets per burst, and what runs on them
    #[command(visible_alias = "list", after_help = help::core_help())]
    Show {
        /// `interval SECONDS`: rates since the line before, again and again, `count N` times
        #[arg(value_name = "interval SECONDS", num_args = 0..=4)]
        words: Vec<String>,
    },
    /// Start a worker on one more core, or have a drained one serve again
    Add {
        /// The core
        core: usize,
    },
    /// Have a worker take nothing more, and what it has go to the others, under traffic; waits until it is gone
    Drain {
        /// The core
        core: usize,
    },
    /// End the worker of a core that was drained
    Del {
        /// The core
        core: usize,
    },
    /// Say how what the workers have can be spread better, by what it does in a while; with --apply it is moved so
    #[command(after_help = help::BALANCE_HELP)]
    Balance(BalanceArgs),
}

/// How to spread what workers have.
#[derive(Debug, Args)]
pub struct BalanceArgs {
    /// Do it, under traffic
    #[arg(long)]
    pub apply: bool,
    /// For how long to look at the load first
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
}

/// What to look at.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// These cores, as in 2-3,8 [default: those of the daemon's workers; without a daemon, the one it would take]
    #[arg(long, value_name = "LIST")]
    pub cores: Option<String>,
    /// Below which directory the host's /proc and /sys are: a copy of another host's; no daemon is asked then
    #[arg(long, value_name = "DIR", default_value = "/", value_hint = clap::ValueHint::DirPath)]
    pub root: PathBuf,
    /// A warning is a failure
    #[arg(long)]
    pub strict: bool,
}

/// What `top` shows, and how often.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// `interval SECONDS`: from one look to the next; 1 without it
    #[arg(value_name = "interval SECONDS", num_args = 0..=2)]
    pub words: Vec<String>,
    /// End after so many looks
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// What to capture.
#[derive(Debug, Args)]
pub struct CaptureArgs {
    /// The device
    pub name: String,
    /// Keywords: see below
    #[arg(value_name = "KEYWORD", num_args = 0..)]
    pub words: Vec<String>,
    /// Where to write pcapng; `-` is standard output
    #[arg(short = 'w', long = "write", value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub file: PathBuf,
}

/// What to follow.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Begin after this event: INSTANCE:NUMBER as `-j` prints them, also of an earlier daemon's, or a number of this one's; 0, and what nobody knows: all that are kept, those of earlier daemons too
    #[arg(long, value_name = "SEQ")]
    pub since: Option<String>,
    /// Only events of this type, as in `dev` or `dev.added`; can be given more than once
    #[arg(long = "type", value_name = "TYPE")]
    pub types: Vec<String>,
    /// Print what is there and end
    #[arg(long)]
    pub once: bool,
}

/// Commands of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a file; needs no daemon
    Check {
        /// The file
        #[arg(value_hint = clap::ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Print what runs as a configuration file
    Dump,
    /// Say what applying a file would change, and whom it would disrupt; changes nothing
    Diff {
        /// The file
        #[arg(value_hint = clap::ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Make what runs what a file says: all of it, or nothing; ends with 65 if some of it is not in force yet
    Apply {
        /// The file
        #[arg(value_hint = clap::ValueHint::FilePath)]
        file: PathBuf,
        /// Also where it names no device, so that all go that it made, or its ports and management devices
        #[arg(long)]
        force: bool,
    },
}

/// Commands of `rpc`.
#[derive(Debug, Subcommand)]
pub enum RpcCommand {
    /// Print the protocol as the daemon describes it: an OpenRPC document, JSON with and without -j
    Discover,
}

/// What to wait for.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// The device; without it, the daemon
    pub name: Option<String>,
    /// How far it is to be
    #[arg(value_enum, default_value_t = WaitFor::Ready)]
    pub until: WaitFor,
    /// How long to wait
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub within: u64,
}

/// How far a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum WaitFor {
    /// It is there, and can be connected to
    Made,
    /// A front-end is connected
    Connected,
    /// Its guest's driver runs, and a core serves it
    Ready,
    /// All its queues are served, and the guest can be given frames
    Up,
}

/// How to run the demo.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// For how long
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Layout of the rings
    #[arg(long, value_enum, default_value_t = DemoRing::Split)]
    pub ring: DemoRing,
}

/// The programs that there is completion for; `ringway-bench completion` prints its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Completed {
    /// The operator's command
    Ringway,
    /// The daemon
    Ringwayd,
}

/// Layout of the demo's rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DemoRing {
    /// Split virtqueues
    Split,
    /// Packed virtqueues
    Packed,
}

/// What the help ends with.
const AFTER_HELP: &str = "Words of vdpa(8) may be shortened as there. Exit codes: 0 done, 1 failed, 2 usage, 3 not \
found, 4 conflict, 5 permission, 6 daemon unreachable, 7 timeout, 8 and 9 see status and doctor, 65 accepted but not in force yet.";

/// The definition, for the manual and the completion.
pub fn command() -> clap::Command {
    Cli::command()
}
