//! Completion scripts and manual pages, made from the definitions that the parsers are made from.

use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

use crate::fault::{Fault, Kind};
use crate::operator::cli::capture::words::{CAPTURE_TEXT, CAPTURED};
use crate::operator::cli::keywords::{CORE_SHOWN, KEYWORDS, PORT_KEYWORDS, PORT_SHOWN, SHOWN, STATE};
use crate::operator::cli::logs::LEVELS;
use crate::operator::cli::ringway::{Completed, command};

/// The completion script of a shell for one of the programs. That of `ringway` asks `ringway complete`, where there is one written for the
/// shell; others have what their definition says.
pub fn completion(shell: Shell, program: Completed) -> String {
    match (program, shell) {
        (Completed::Ringway, Shell::Bash) => include_str!("completion/ringway.bash").to_owned(),
        (Completed::Ringway, Shell::Zsh) => include_str!("completion/ringway.zsh").to_owned(),
        (Completed::Ringway, Shell::Fish) => include_str!("completion/ringway.fish").to_owned(),
        (Completed::Ringway, _) => completion_of(shell, command(), "ringway"),
        (Completed::Ringwayd, _) => {
            completion_of(shell, crate::operator::cli::ringwayd::command(), "ringwayd")
        }
    }
}

/// The completion script of a shell, of what a definition says.
pub fn completion_of(shell: Shell, mut command: Command, program: &str) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, program, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The manual page of a program by what its definition says: `about`, then its options and commands.
pub fn page_of(mut command: Command, program: &str, about: &str, text: &str) -> String {
    command.build();
    let mut page = Page::new(&program.to_uppercase(), &format!("{program} - {about}"));
    page.section("SYNOPSIS");
    page.synopsis(&command);
    page.section("DESCRIPTION");
    page.text(text);
    page.section("OPTIONS");
    page.options(&command);
    page.section("COMMANDS");
    page.commands(&command);
    page.section("SEE ALSO");
    page.text("ringway(8), ringwayd(8)");
    page.finish()
}

/// The manual page ringway(8).
pub fn ringway_page() -> String {
    let mut page = Page::new("RINGWAY", "ringway - show and change the vDPA devices of a running ringwayd");
    let mut command = command();
    command.build();
    page.section("SYNOPSIS");
    page.synopsis(&command);
    page.section("DESCRIPTION");
    page.text(
        "The grammar is that of vdpa(8): an object, a command, then keywords, each followed by its value. The words \
         of vdpa(8) may be shortened as there; options stand anywhere. With -j, the keys of vdpa(8) come first, in \
         its spelling; what it lacks follows under keys of its own.",
    );
    page.section("OPTIONS");
    page.options(&command);
    page.section("COMMANDS");
    page.commands(&command);
    page.section("KEYWORDS");
    page.text("Of dev add; those marked * also of dev set.");
    for keyword in KEYWORDS {
        let mark = if keyword.is_settable { " *" } else { "" };
        page.item(vec![bold(keyword.name), roman(" "), italic(keyword.value), roman(mark)], keyword.help);
    }
    page.text("A driver's own attributes are further keywords: see MANAGEMENT DEVICES.");
    page.section("MANAGEMENT DEVICES");
    page.text(
        "What makes devices. Those of a driver are there as long as what it drives is; of the kinds KIND/NAME there is one of any name as soon as it is \
         named in dev add, until its last device is removed. Added by mgmtdev add, or changed by mgmtdev set, it stays.",
    );
    let known = crate::devices::drivers::known();
    let on_buses = known.buses.iter().flat_map(|bus| {
        let name = format!("{}/{}", bus.info.name, bus.info.shape);
        bus.at_most.iter().map(move |info| (name.clone(), info, &[][..]))
    });
    let of_drivers = known.mgmtdevs.iter().map(|info| (info.name.clone(), info, &[][..])).chain(on_buses);
    let kinds =
        known.kinds.iter().map(|kind| (format!("{}/NAME", kind.name), &kind.device, &kind.attributes[..]));
    for (name, info, settings) in of_drivers.chain(kinds) {
        page.item(vec![bold(name.as_str())], info.summary);
        let functions = info.functions.as_ref().map_or(&[][..], |functions| &functions.attributes);
        let of_all =
            [("dev add", &info.attributes[..]), ("mgmtdev add", settings), ("port function set", functions)];
        for (command, attributes) in of_all {
            for attribute in attributes {
                let term = [bold(attribute.name), roman(" "), italic(attribute.value)];
                let of = roman(format!(" ({command}, {name})"));
                page.item(term.into_iter().chain([of]).collect(), attribute.help);
            }
        }
    }
    page.section("PORTS");
    page.text(
        "Hardware that can be divided is divided by ports, in the words of devlink(8): port add takes a share out of a management \
         device, port function set says what the function is and makes it active. Active, it is a management device of its own, \
         auxiliary/PARENT.sf.SFNUM, with a point for the slash of its parent's name. Inactive, or with its port or its parent \
         removed, it is gone at once, and so are devices that were made with it, also under traffic; those are kept, and made \
         again should it come back.",
    );
    for keyword in PORT_KEYWORDS {
        page.item(vec![bold(keyword.name), roman(" "), italic(keyword.value)], keyword.help);
    }
    page.item(vec![bold(STATE.name), roman(" "), italic(STATE.value)], STATE.help);
    for (word, meaning) in PORT_SHOWN {
        page.item(vec![bold(word)], meaning);
    }
    page.section("WORDS OF DEV SHOW");
    for (word, meaning) in SHOWN {
        page.item(vec![bold(word)], meaning);
    }
    page.section("WORDS OF CORE SHOW");
    for (word, meaning) in CORE_SHOWN {
        page.item(vec![bold(word)], meaning);
    }
    page.section("WORDS OF CAPTURE");
    for (word, meaning) in CAPTURED {
        page.item(vec![bold(word)], meaning);
    }
    for text in CAPTURE_TEXT {
        page.text(text);
    }
    page.section("LEVELS OF THE LOG");
    for (word, meaning) in LEVELS {
        page.item(vec![bold(word)], meaning);
    }
    page.section("CHECKS OF DOCTOR");
    page.text("Each finding is of one of these, and says what was found, why it matters, and what to do.");
    for (name, why) in crate::operator::doctor::all_checks() {
        page.item(vec![bold(name)], why);
    }
    page.section("FILES OF A BUNDLE");
    for (name, what) in crate::operator::cli::bundle::CONTENTS {
        page.item(vec![bold(name)], what);
    }
    page.section("TYPES OF EVENTS");
    page.text(&format!("{}.", crate::operator::events::TYPES.join(", ")));
    page.section("EXAMPLES");
    for (line, help) in [
        ("ringway mgmtdev show", "what devices there can be, and which attributes they take"),
        ("ringway dev add name vm0 mgmtdev sim/net max_vqp 4 mtu 9000", "a device with four pairs of queues"),
        ("ringway dev show vm0 --qemu", "the arguments with which QEMU uses it"),
        ("ringway dev vstats show vm0", "what its queues did, dropped and refused, and what to do about it"),
        ("ringway status", "whether it runs with all that it was asked for; for scripts by its exit code"),
        ("ringway wait vm0 up --within 60", "returns when the guest's driver runs and can be given frames"),
        ("ringway core show", "what the workers spend their time on"),
        ("ringway core show interval 1", "the same of each second, a line for each core"),
        ("ringway top", "what happens in a second, of devices, queues, cores and pumps, while it runs"),
        ("ringway -j top interval 5 -n 12", "the same for a minute, as lines of JSON"),
        ("ringway doctor", "what of the host keeps workers from their cores, and what to do about it"),
        ("ringway core add 3", "a worker on one more core, while all else runs"),
        ("ringway core balance", "how what the workers have can be spread better; --apply does it"),
        ("ringway core drain 3 && ringway core del 3", "what the worker has goes to the others, and it ends"),
        ("ringway bundle", "all that is shown of daemon and host, in one file for a report"),
        ("ringway -j events", "every device, then everything that happens, a line each"),
        ("ringway why vm0", "what keeps packets from it, and what to do next"),
        (
            "ringway capture vm0 drops -w vm0.pcapng",
            "what is dropped of its frames, for tcpdump -r and Wireshark",
        ),
        ("ringway config dump", "what runs, as a file for ringwayd --config"),
        ("ringway config diff /etc/ringway.toml", "what applying it would change, and whom it would disrupt"),
    ] {
        page.item(vec![bold(line)], help);
    }
    page.section("EXIT STATUS");
    page.item(vec![bold("0")], "done");
    for kind in Kind::ALL {
        page.item(vec![bold(kind.exit_code().to_string())], kind.meaning());
    }
    page.section("ENVIRONMENT");
    page.item(vec![bold("RINGWAY_CTL")], "the operator socket, unless --ctl names it");
    page.section("FILES");
    page.item(vec![italic("/run/ringway/ctl.sock")], "the operator socket of root's daemon");
    page.item(
        vec![italic("$XDG_RUNTIME_DIR/ringway/ctl.sock")],
        "that of a user's; /tmp/ringway-UID/ctl.sock without XDG_RUNTIME_DIR",
    );
    page.section("SEE ALSO");
    page.text("ringwayd(8), ringway-reference(7), vdpa(8), bridge(8), devlink(8), qemu(1)");
    page.finish()
}

/// The manual page ringwayd(8).
pub fn ringwayd_page() -> String {
    let mut page = Page::new("RINGWAYD", "ringwayd - a userspace vDPA data plane");
    let mut command = crate::operator::cli::ringwayd::command();
    command.build();
    page.section("SYNOPSIS");
    page.synopsis(&command);
    page.section("DESCRIPTION");
    page.text(
        "Gives virtual machines standard virtio devices over vhost-user sockets, moved by pinned cores. Operators use \
         it by ringway(8). Devices that operators add are there again after a restart. Needs neither root nor \
         hugepages; what it got, it says once when it starts.",
    );
    page.section("OPTIONS");
    page.options(&command);
    page.section("CONFIGURATION");
    page.text(
        "One TOML file holds the desired state: a table [daemon], a table [[device]] for each device, a table \
               [[mgmtdev]] for each link, bridge or simnic that is to differ from the default, and a table [[port]] for each port. An unknown key is an error.",
    );
    for key in crate::operator::config::DAEMON_KEYS {
        page.item(vec![roman("[daemon] "), bold(key)], daemon_key_help(key));
    }
    page.text("A [[device]] takes the keywords of ringway dev add, the driver's own attributes among them:");
    for keyword in KEYWORDS {
        page.item(vec![roman("[[device]] "), bold(keyword.name)], keyword.help);
    }
    page.text(
        "A [[mgmtdev]] has a name, as in bridge/br0, and the attributes that ringway mgmtdev add takes: for a bridge, \
         ageing and core; for a simnic, queues and core.",
    );
    page.text("A [[port]] takes the words of ringway port add and ringway port function set:");
    for key in crate::operator::config::PORT_KEYS {
        let keyword = PORT_KEYWORDS.iter().chain([&STATE]).find(|keyword| keyword.name == key);
        let help = keyword.map_or(
            "the management device: a [[mgmtdev]] of the file, or hardware (pci/ADDRESS)",
            |keyword| keyword.help,
        );
        page.item(vec![roman("[[port]] "), bold(key)], help);
    }
    page.section("EXIT STATUS");
    page.text("0 when it was told to stop by SIGTERM or SIGINT; else as ringway(8).");
    page.section("SIGNALS");
    page.item(vec![bold("SIGTERM, SIGINT")], "close every session, remove the sockets, end");
    page.item(vec![bold("SIGHUP")], "apply the configuration file as it is now, as ringway config apply does: all of it, or nothing, told by an event");
    page.section("LOG");
    page.text(
        "It goes to standard error. A reader that stops delays nobody: lines that find no room are lost, counted by \
         ringway hello, and told when it reads on.",
    );
    page.section("ENVIRONMENT");
    page.item(vec![bold("RINGWAY_CTL")], "the operator socket, unless --ctl names it");
    page.item(
        vec![bold("RINGWAY_LOG")],
        "what is logged, unless --log or the file says: error, warn, info, debug, trace, or filters",
    );
    page.item(
        vec![bold("NOTIFY_SOCKET")],
        "told READY=1 when the daemon serves and every device was made or is named, in STATUS=; and STOPPING=1",
    );
    page.item(
        vec![bold("WATCHDOG_USEC, WATCHDOG_PID")],
        "how often the thread that answers operators and front-ends has to tell WATCHDOG=1: it does so thrice as often",
    );
    page.item(
        vec![bold("LISTEN_FDS, LISTEN_PID")],
        "the operator socket, handed over by the service manager",
    );
    page.section("FILES");
    page.item(
        vec![italic("stopped")],
        "beside the operator socket: when a daemon was told to stop, for its successor to tell the gap (ringway status)",
    );
    page.item(vec![italic("dev/NAME.sock")], "a device's socket, beside the operator socket");
    page.item(
        vec![italic("/run/lock/ringway-core-N, /run/lock/ringway-core-N.poll")],
        "locks, by which the daemons of a host see each other on core N; with --idle poll the second is one daemon's alone",
    );
    page.item(
        vec![italic("positions/NAME")],
        "where its queues stand, so that a restarted daemon goes on from there",
    );
    page.item(
        vec![italic("inflight/NAME")],
        "what a disk's queues have in flight, for a front-end that has no place for it, so that a restarted daemon does it again",
    );
    page.item(
        vec![italic("ctl.sock.lock, ringwayd.lock")],
        "locks, beside the operator socket: one daemon alone uses it and its directory",
    );
    page.item(
        vec![italic("/var/lib/ringway/devices.json")],
        "the devices that operators added (for users: below $XDG_STATE_HOME/ringway)",
    );
    page.item(
        vec![italic("/var/lib/ringway/addresses.json")],
        "the random number that addresses are made of which were not given; to be removed from an image of which hosts are made",
    );
    page.item(vec![italic("/var/lib/ringway/lock")], "a lock: one daemon alone uses the directory");
    page.text(
        "What of these, and of its directories and interfaces, somebody takes away is made again within a second (event \
         host.remade). What is in the place of one is left alone and told (host.missing); what others change of an \
         interface is told (netdev.changed) and left as it is.",
    );
    page.section("SEE ALSO");
    page.text("ringway(8), ringway-reference(7), vdpa(8), qemu(1)");
    page.finish()
}

pub(crate) fn daemon_key_help(key: &str) -> &'static str {
    match key {
        "cores" => "cores of the workers: a list, or a string as in \"2-3\"; restart to change",
        "idle" => "what idle workers do: \"adaptive\" (sleep) or \"poll\" (spin); restart to change",
        "ctl" => "the operator socket; restart to change",
        "view" => "an operator socket for those who may see everything and change nothing; restart to change",
        "view_group" => "whose the view-only socket is: a group; restart to change",
        "metrics" => {
            "where Prometheus scrapes: an address with a port, or the path of a socket; restart to change"
        }
        "state_dir" => "where devices that operators add are kept; restart to change",
        _ => "what is logged",
    }
}

/// The manual page ringway-reference(7).
pub fn reference_page() -> String {
    let mut page = Page::of_section(
        "7",
        "RINGWAY-REFERENCE",
        "ringway-reference - every counter, drop, fault, metric, event, setting, attribute and method",
    );
    for section in crate::operator::reference::sections() {
        page.section(&section.title.to_uppercase());
        page.text(&section.about.replace('`', ""));
        for row in section.rows {
            let cells = section.columns.iter().zip(&row.cells).filter(|(_, cell)| !cell.is_empty());
            let cells: Vec<String> = cells
                .map(|(column, cell)| match *column {
                    "meaning" | "" => cell.clone(),
                    column => format!("{column}: {cell}"),
                })
                .collect();
            // What formats manual pages takes ASCII for granted.
            page.item(vec![bold(row.name)], &cells.join("; ").replace('…', "..."));
        }
    }
    page.section("SEE ALSO");
    page.text("ringway(8), ringwayd(8)");
    page.finish()
}

/// Writes all pages into a directory.
///
/// # Errors
/// The directory cannot be written to.
pub fn write_manual(dir: &Path) -> Result<(), Fault> {
    for (name, page) in [
        ("ringway.8", ringway_page()),
        ("ringwayd.8", ringwayd_page()),
        ("ringway-reference.7", reference_page()),
    ] {
        let path = dir.join(name);
        std::fs::write(&path, page)
            .map_err(|error| Fault::system(format!("cannot write {}", path.display()), error))
            .map_err(|fault| fault.hint("a directory that is there and that you may write to"))?;
    }
    Ok(())
}

/// A manual page in the making.
struct Page {
    roff: Roff,
}

impl Page {
    fn new(title: &str, summary: &str) -> Page {
        Page::of_section("8", title, summary)
    }

    fn of_section(section: &str, title: &str, summary: &str) -> Page {
        let mut roff = Roff::new();
        let source = format!("Ringway {}", env!("CARGO_PKG_VERSION"));
        roff.control("TH", [title, section, "", source.as_str(), "Ringway"]);
        let mut page = Page { roff };
        page.section("NAME");
        page.text(summary);
        page
    }

    fn section(&mut self, title: &str) {
        self.roff.control("SH", [title]);
    }

    fn text(&mut self, text: &str) {
        self.roff.control("PP", []);
        self.roff.text([roman(text)]);
    }

    fn item(&mut self, term: Vec<Inline>, text: &str) {
        self.roff.control("TP", []);
        self.roff.text(term);
        self.roff.text([roman(text)]);
    }

    fn synopsis(&mut self, command: &Command) {
        let usage = command.clone().render_usage().to_string();
        self.text(usage.trim_start_matches("Usage: "));
    }

    /// Options and arguments of one command, those of every command left out below the top.
    fn options(&mut self, command: &Command) {
        for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
            let mut term = Vec::new();
            if let Some(short) = arg.get_short() {
                term.push(bold(format!("-{short}")));
            }
            if let Some(long) = arg.get_long() {
                if !term.is_empty() {
                    term.push(roman(", "));
                }
                term.push(bold(format!("--{long}")));
            }
            if arg.is_positional() || arg.get_action().takes_values() {
                let name = arg
                    .get_value_names()
                    .and_then(|names| names.first())
                    .map_or(arg.get_id().as_str(), |n| n);
                if !term.is_empty() {
                    term.push(roman(" "));
                }
                term.push(italic(name));
            }
            let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let values: Vec<String> =
                arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
            if !values.is_empty() && arg.get_action().takes_values() {
                help.push_str(&format!(" [{}]", values.join(", ")));
            }
            // A flag's default is that it is not given.
            let default = arg.get_default_values().first().filter(|_| arg.get_action().takes_values());
            if let Some(default) = default {
                help.push_str(&format!(" [default: {}]", default.to_string_lossy()));
            }
            self.item(term, &help);
        }
    }

    fn commands(&mut self, command: &Command) {
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help" && !sub.is_hide_set()) {
            let aliases: Vec<&str> = sub.get_visible_aliases().collect();
            self.roff.control("SS", []);
            let usage = sub.clone().render_usage().to_string();
            self.roff.text([bold(usage.trim_start_matches("Usage: "))]);
            self.text(&sub.get_about().map(ToString::to_string).unwrap_or_default());
            if !aliases.is_empty() {
                self.text(&format!("Also: {}.", aliases.join(", ")));
            }
            let own = sub.clone();
            let own = own.mut_args(|arg| {
                let is_common = arg.is_global_set() || ["help", "version"].contains(&arg.get_id().as_str());
                arg.hide(is_common)
            });
            self.options(&own);
            self.commands(sub);
        }
    }

    fn finish(self) -> String {
        self.roff.to_roff()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command's path and every long option of a definition.
    fn everything(command: &Command, above: &str, found: &mut Vec<String>) {
        for arg in command.get_arguments() {
            found.extend(arg.get_long().map(|long| format!("--{long}")));
        }
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help" && !sub.is_hide_set()) {
            let path = format!("{above} {}", sub.get_name());
            found.push(path.clone());
            everything(sub, &path, found);
        }
    }

    fn plain(page: &str) -> String {
        page.replace("\\-", "-").replace("\\fB", "").replace("\\fI", "").replace("\\fR", "")
    }

    #[test]
    fn manual_has_every_command_option_keyword_and_exit_code() {
        let page = plain(&ringway_page());
        let mut wanted = Vec::new();
        let mut command = command();
        command.build();
        everything(&command, "ringway", &mut wanted);
        assert!(wanted.len() > 25, "{wanted:?}");
        wanted.extend(KEYWORDS.iter().map(|keyword| format!("{} {}", keyword.name, keyword.value)));
        wanted.extend(Kind::ALL.iter().map(|kind| format!("{}\n{}", kind.exit_code(), kind.meaning())));
        let known = crate::devices::drivers::known();
        for kind in &known.kinds {
            wanted.push(format!("{}/NAME", kind.name));
            let functions = kind.device.functions.iter().flat_map(|functions| &functions.attributes);
            let attributes = kind.device.attributes.iter().chain(&kind.attributes).chain(functions);
            wanted.extend(attributes.map(|attribute| format!("{} {}", attribute.name, attribute.value)));
        }
        wanted.extend(PORT_KEYWORDS.iter().map(|keyword| format!("{} {}", keyword.name, keyword.value)));
        wanted.extend(SHOWN.iter().map(|(word, meaning)| format!("{word}\n{meaning}")));
        for word in wanted {
            assert!(page.contains(&word), "ringway.8 lacks `{word}`:\n{page}");
        }
        assert!(!page.contains("[default: false]"), "{page}");
        assert!(page.contains("[default: 3]"), "{page}");
    }

    #[test]
    fn manual_of_the_daemon_has_every_option_and_key() {
        let page = plain(&ringwayd_page());
        let mut wanted = Vec::new();
        everything(&crate::operator::cli::ringwayd::command(), "ringwayd", &mut wanted);
        wanted.extend(crate::operator::config::DAEMON_KEYS.iter().map(|key| format!("[daemon] {key}")));
        for word in wanted {
            assert!(page.contains(&word), "ringwayd.8 lacks `{word}`:\n{page}");
        }
    }

    #[test]
    fn completion_of_other_programs_has_every_option_and_that_of_ringway_asks_it() {
        let mut wanted = Vec::new();
        everything(&crate::operator::cli::ringwayd::command(), "", &mut wanted);
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            assert!(completion(shell, Completed::Ringway).contains(" complete --line "), "{shell}");
            let script = completion(shell, Completed::Ringwayd);
            for word in &wanted {
                // fish writes a long option as `-l name`.
                let word = if shell == Shell::Fish { word.trim_start_matches("--") } else { word };
                assert!(script.contains(word), "{shell}: no `{word}`");
            }
        }
    }
}
