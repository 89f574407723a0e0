//! What each command does: a request to the daemon, and its answer as text or JSON.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::CommandFactory as _;
use ringway_ring::queue::Format;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::devices::placement::parse_cores;
use crate::fault::{Fault, Kind};
use crate::operator::api::{
    ConfigApply, ConfigPlan, ConfigShow, ConfigText, CoreChanged, CorePlan, CoreShow, CoreTarget, DevAdded,
    DevChanged, DevDeleted, DevShow, DryRun, Dump, Event, EventPage, Follow, Hello, Inspect, Inspected,
    LogShow, MgmtdevChanged, MgmtdevDeleted, MgmtdevShow, Named, PortDeleted, PortShow, Queue, Select,
    Target, VlanShow, VstatsShow,
};
use crate::operator::cli::errors::Voice;
use crate::operator::cli::ringway::{
    BridgeCommand, Cli, ConfigCommand, CoreCommand, DemoArgs, DemoRing, DevCommand, DevConfigCommand,
    DevShowArgs, DevVstatsCommand, DoctorArgs, EventsArgs, LogCommand, MgmtdevCommand, Object, PortCommand,
    PortFunctionCommand, RpcCommand, VlanCommand,
};
use crate::operator::cli::{
    bundle, capture, compat, complete, docs, inspect, interval, logs, render, requests, status, top, vmm, why,
};
use crate::operator::client::Client;
use crate::operator::doctor::{self, Report, Told};
use crate::{devices::drivers, host::paths, operator::config, operator::demo};

/// Between two looks at what is left on a core.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);
/// Between two tries of what passes by itself, in the end.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// For how long nothing is said of a wait.
const TELLS_AFTER: Duration = Duration::from_secs(1);

/// How output is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    json: bool,
    pretty: bool,
    /// Only what `vdpa(8)` prints.
    is_vdpa: bool,
    /// Nothing is changed: it is said what would be.
    is_dry: bool,
}

/// Runs a parsed command line.
pub(super) fn run(cli: Cli, is_vdpa: bool) -> Result<(), Fault> {
    let output = Output { json: cli.json, pretty: cli.pretty, is_vdpa, is_dry: cli.dry_run };
    if is_vdpa {
        if cli.batch.is_some() || cli.dry_run {
            return Err(Fault::usage(format!("Unknown option.\n{}", compat::USAGE)));
        }
        compat::check(cli.object.as_ref())?;
    } else if cli.batch.is_some() {
        return Err(Fault::usage("-b takes its commands from its file").at("batch").hint("ringway -b FILE"));
    }
    let ctl = paths::ctl(cli.ctl.as_deref());
    let within = Duration::from_secs(cli.timeout);
    let connect = || Client::connect(&ctl, within);
    match cli.object {
        None | Some(Object::Mgmtdev { command: None }) if is_vdpa => {
            let _ = writeln!(io::stderr(), "{}", compat::USAGE);
            Ok(())
        }
        None => help(&[]),
        Some(Object::Mgmtdev { command: None }) => help(&["mgmtdev"]),
        Some(Object::Mgmtdev { command: Some(MgmtdevCommand::Show { name }) }) => {
            let mut answer: MgmtdevShow = connect()?.call("mgmtdev.show", &Select { name })?;
            if is_vdpa {
                answer.kinds = Named::default();
            }
            output.print(&answer, || render::mgmtdevs(&answer))
        }
        Some(Object::Mgmtdev { command: Some(MgmtdevCommand::Add { words }) }) => {
            let entry = requests::mgmt_entry(&words)?;
            let done: Option<MgmtdevChanged> = output.change(connect, "mgmtdev.add", &entry)?;
            done.map_or(Ok(()), |answer| output.print(&answer, String::new))
        }
        Some(Object::Mgmtdev { command: Some(MgmtdevCommand::Set { words }) }) => {
            let entry = requests::mgmt_entry(&words)?;
            let done: Option<MgmtdevChanged> = output.change(connect, "mgmtdev.set", &entry)?;
            done.map_or(Ok(()), |answer| output.print(&answer, String::new))
        }
        Some(Object::Mgmtdev { command: Some(MgmtdevCommand::Del { name }) }) => {
            let done: Option<MgmtdevDeleted> = output.change(connect, "mgmtdev.del", &Target { name })?;
            done.map_or(Ok(()), |answer| output.done(&answer, &answer.notes))
        }
        Some(Object::Dev { command }) => dev(command, output, within, connect),
        Some(Object::Port { command }) => port(command, output, connect),
        Some(Object::Bridge { command: BridgeCommand::Vlan { command } }) => vlan(command, output, connect),
        Some(Object::Core { command }) => core(command, output, within, connect),
        Some(Object::Doctor(args)) => {
            let report = ask_doctor(&args, &connect, output)?;
            output.print(&json!({ "doctor": report }), || report.text())?;
            report.verdict(args.strict)
        }
        Some(Object::Bundle { file }) => {
            let made = bundle::make(file, &connect)?;
            output.print(&made, || made.text())
        }
        Some(Object::Top(args)) => top::run(&args, cli.json, &ctl, within),
        Some(Object::Events(args)) => events(&args, output, connect()?),
        Some(Object::Config { command: ConfigCommand::Dump }) => {
            let dump: Dump = connect()?.call("config.dump", &json!({}))?;
            output.print(&dump.config, || dump.toml.clone())
        }
        Some(Object::Config { command: ConfigCommand::Diff { file } }) => {
            let plan: ConfigPlan = connect()?.call("config.diff", &config_text(&file)?)?;
            output.print(&plan, || render::plan(&plan, false))?;
            output.tell(&plan.notes);
            Ok(())
        }
        Some(Object::Config { command: ConfigCommand::Apply { file, force } }) => {
            let ConfigText { file, text } = config_text(&file)?;
            let given = ConfigApply { file, text, force };
            let done: Option<ConfigPlan> = output.change(connect, "config.apply", &given)?;
            let Some(plan) = done else { return Ok(()) };
            output.print(&plan, || render::plan(&plan, true))?;
            output.tell(&plan.notes);
            in_force(&plan)
        }
        Some(Object::Config { command: ConfigCommand::Check { file } }) => {
            let (desired, mut faults) = config::read_all(&file, &drivers::known())?;
            let (of_host, notes) = desired.check_host();
            // What is wrong in the file may be wrong on the host as well, at the same place.
            for fault in of_host {
                if faults.iter().all(|other| other.path.is_none() || other.path != fault.path) {
                    faults.push(fault);
                }
            }
            refuse(&file.display().to_string(), faults, output.voice())?;
            let count = desired.devices.len();
            output.print(&json!({ "file": file, "devices": count }), || {
                format!("{}: good, {count} device{}\n", file.display(), if count == 1 { "" } else { "s" })
            })?;
            output.tell(&notes);
            Ok(())
        }
        Some(Object::Why { name }) => {
            let why = why::ask(&mut connect()?, &[&name])?;
            output.print(&why, || why::text(&why))
        }
        Some(Object::Capture(args)) => {
            let request = capture::words::capture_request(&args.name, &args.words)?;
            let outcome = capture::run(&request, &args.file, connect()?)?;
            // What is captured may be on standard output.
            if output.json && args.file != Path::new("-") {
                return output.print(&json!({ "capture": outcome }), String::new);
            }
            let _ = write!(io::stderr(), "{}", outcome.text());
            Ok(())
        }
        Some(Object::Log { command: None | Some(LogCommand::Show) }) => {
            let answer: LogShow = connect()?.call("log.show", &json!({}))?;
            output.print(&answer, || logs::text(&answer))
        }
        Some(Object::Log { command: Some(LogCommand::Set { level, words }) }) => {
            let set = logs::log_set(&level, &words)?;
            let done: Option<LogShow> = output.change(connect, "log.set", &set)?;
            done.map_or(Ok(()), |answer| output.print(&answer, || logs::text(&answer)))
        }
        Some(Object::Inspect { path }) => {
            let asked = Inspect { path: path.unwrap_or_default() };
            let answer: Inspected = connect()?.call("inspect", &asked)?;
            output.print(&answer, || inspect::text(&answer))?;
            output.tell(&answer.left_out);
            Ok(())
        }
        Some(Object::Hello) => {
            let hello: Hello = connect()?.call("hello", &json!({}))?;
            output.print(&hello, || render::hello(&hello))
        }
        Some(Object::Rpc { command: RpcCommand::Discover }) => {
            let document: Value = connect()?.call("rpc.discover", &json!({}))?;
            write(&(output.json_text(&document)? + "\n"))
        }
        Some(Object::Status) => {
            let status = status::look(&mut connect()?)?;
            output.print(&json!({ "status": status }), || status.text())?;
            status.verdict()
        }
        Some(Object::Wait(args)) => {
            let reached = status::wait(&args, &connect)?;
            output.print(&reached, String::new)
        }
        Some(Object::Demo(args)) => run_demo(&args, output.json),
        Some(Object::Completion { shell, program }) => write(&docs::completion(shell, program)),
        Some(Object::Complete { line }) => write(&complete::text(&line, &ctl)),
        Some(Object::Man { .. }) if output.is_dry => Err(Fault::usage("man has no dry run").at("dry-run")),
        Some(Object::Man { dir }) => docs::write_manual(&dir),
    }
}

fn core(
    command: Option<CoreCommand>,
    output: Output,
    within: Duration,
    connect: impl Fn() -> Result<Client, Fault>,
) -> Result<(), Fault> {
    let (method, core) = match command.unwrap_or(CoreCommand::Show { words: Vec::new() }) {
        CoreCommand::Show { words } => {
            let (looks, others) = requests::looks(&words)?;
            requests::nothing_more(&others, "interval SECONDS count N")?;
            if let Some(looks) = looks {
                return interval::cores(looks, &mut connect()?, output);
            }
            let answer: CoreShow = connect()?.call("core.show", &json!({}))?;
            return output.print(&answer, || render::cores(&answer));
        }
        CoreCommand::Balance(args) => {
            // From here on it counts.
            let mut client = connect()?;
            let _: CorePlan = client.call("core.plan", &json!({}))?;
            std::thread::sleep(Duration::from_secs(args.seconds));
            let plan: CorePlan = match args.apply {
                true => match output.change(connect, "core.balance", &json!({}))? {
                    Some(plan) => plan,
                    None => return Ok(()),
                },
                false => client.call("core.plan", &json!({}))?,
            };
            output.print(&plan, || render::core_plan(&plan))?;
            output.tell(&plan.notes);
            return Ok(());
        }
        CoreCommand::Add { core } => ("core.add", core),
        CoreCommand::Drain { core } => ("core.drain", core),
        CoreCommand::Del { core } => ("core.del", core),
    };
    let begun = Instant::now();
    let done: Option<CoreChanged> = output.change_soon(&connect, within, method, &CoreTarget { core })?;
    let Some(changed) = done else { return Ok(()) };
    output.print(&changed, || render::core_changed(&changed))?;
    output.tell(&changed.notes);
    if method != "core.drain" {
        return Ok(());
    }
    let mut client = connect()?;
    loop {
        let shown: CoreShow = client.call("core.show", &json!({}))?;
        let left: Vec<&str> = shown
            .core
            .find(&core.to_string())
            .map_or_else(Vec::new, |info| info.pumps.iter().map(|pump| pump.name.as_str()).collect());
        if left.is_empty() {
            return Ok(());
        }
        if begun.elapsed() >= within {
            let message = format!("core {core} takes nothing more, and has still {}", left.join(", "));
            let fault = Fault::new(Kind::NotApplied, message);
            return Err(fault.hint(
                "they go once what they have under way has ended: ringway core show, ringway dev show",
            ));
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

/// Looks at the host, with what a daemon tells if one answers.
fn ask_doctor(
    args: &DoctorArgs,
    connect: &impl Fn() -> Result<Client, Fault>,
    output: Output,
) -> Result<Report, Fault> {
    let cores = match &args.cores {
        Some(list) => parse_cores(list).map_err(|why| Fault::usage(why).at("cores"))?,
        None => Vec::new(),
    };
    let mut told = Told::default();
    if args.root == Path::new("/") {
        let asked = connect().and_then(|mut client| {
            let hello: Hello = client.call("hello", &json!({}))?;
            let cores: CoreShow = client.call("core.show", &json!({}))?;
            Ok(Told::of(&hello, &cores))
        });
        match asked {
            Ok(of_daemon) => told = of_daemon,
            Err(fault) if fault.kind == Kind::Unreachable => {}
            Err(fault) => output.tell(&[format!("the daemon is not asked: {}", fault.message)]),
        }
    }
    doctor::examine(&args.root, &told, &cores)
}

/// A file, for the daemon to read as its own.
fn config_text(file: &Path) -> Result<ConfigText, Fault> {
    let text = config::text_of(file)?;
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    Ok(ConfigText { file: file.display().to_string(), text })
}

/// Runs the demo.
fn run_demo(args: &DemoArgs, json: bool) -> Result<(), Fault> {
    let format = match args.ring {
        DemoRing::Split => Format::Split,
        DemoRing::Packed => Format::Packed,
    };
    demo::run_and_print(&demo::DemoOptions { duration: Duration::from_secs(args.seconds), format, json })
}

/// Tells all that is wrong with a file in the order of its lines. The exit code is that of the first.
fn refuse(file: &str, mut faults: Vec<Fault>, voice: Voice) -> Result<(), Fault> {
    let line = |fault: &Fault| -> Option<usize> { fault.path.as_ref()?.rsplit(':').next()?.parse().ok() };
    faults.sort_by_key(line);
    let (Some(first), count) = (faults.first(), faults.len()) else { return Ok(()) };
    if count == 1 {
        return Err(first.clone());
    }
    for fault in &faults {
        voice.tell(fault, &[], None);
    }
    Err(Fault::new(first.kind, format!("{file}: {count} mistakes")))
}

fn port(
    command: Option<PortCommand>,
    output: Output,
    connect: impl Fn() -> Result<Client, Fault>,
) -> Result<(), Fault> {
    let shown: Option<PortShow> = match command.unwrap_or(PortCommand::Show { name: None }) {
        PortCommand::Show { name } => Some(connect()?.call("port.show", &Select { name })?),
        PortCommand::Add { mgmtdev, words } => {
            output.change(connect, "port.add", &requests::port_entry(&mgmtdev, &words)?)?
        }
        PortCommand::Function { command: PortFunctionCommand::Set { name, words } } => {
            output.change(connect, "port.function.set", &requests::port_set(&name, &words)?)?
        }
        PortCommand::Del { name } => {
            let done: Option<PortDeleted> = output.change(connect, "port.del", &Target { name })?;
            return done.map_or(Ok(()), |answer| output.done(&answer, &answer.notes));
        }
    };
    shown.map_or(Ok(()), |shown| output.print(&shown, || render::ports(&shown)))
}

fn dev(
    command: Option<DevCommand>,
    output: Output,
    within: Duration,
    connect: impl Fn() -> Result<Client, Fault>,
) -> Result<(), Fault> {
    let show_all = DevShowArgs { name: None, qemu: false, libvirt: false };
    match command.unwrap_or(DevCommand::Show(show_all)) {
        DevCommand::Show(DevShowArgs { name, qemu, libvirt }) => {
            let answer: DevShow = connect()?.call("dev.show", &Select { name: name.clone() })?;
            if let Some((name, ifname)) = name
                .as_ref()
                .filter(|_| qemu || libvirt)
                .and_then(|name| Some((name, answer.dev.find(name)?.other_side()?)))
            {
                return Err(Fault::usage(format!("{name} is {ifname}: no VMM connects to it")));
            }
            match (name.as_ref().and_then(|name| Some((name, answer.dev.find(name)?))), qemu, libvirt) {
                (Some((name, info)), true, _) => {
                    let arguments = vmm::qemu(name, info);
                    output.print(&json!({ "qemu": { name: arguments } }), || vmm::shell_lines(&arguments))
                }
                (Some((name, info)), _, true) => {
                    let xml = vmm::libvirt(info);
                    output.print(&json!({ "libvirt": { name: xml } }), || xml.clone())
                }
                _ => output.print(&answer, || render::devices(&answer, name.is_some())),
            }
        }
        DevCommand::Add { words } => {
            let entry = requests::add_entry(&words)?;
            let done: Option<DevAdded> = output.change_soon(connect, within, "dev.add", &entry)?;
            done.map_or(Ok(()), |answer| output.done(&answer, &answer.notes))
        }
        DevCommand::Del { name } => {
            let done: Option<DevDeleted> = output.change(connect, "dev.del", &Target { name })?;
            done.map_or(Ok(()), |answer| output.done(&answer, &answer.notes))
        }
        DevCommand::Config { command } => {
            let name = command.and_then(|DevConfigCommand::Show { name }| name);
            let answer: ConfigShow = connect()?.call("dev.config.show", &Select { name })?;
            output.print(&answer, || render::config(&answer))
        }
        DevCommand::Vstats { command: DevVstatsCommand::Show { name, words } } => {
            let (looks, others) = requests::looks(&words)?;
            let qidx = requests::qidx(&others)?;
            if let Some(looks) = looks {
                return interval::queues(looks, Queue { name, qidx }, &mut connect()?, output);
            }
            let answer: VstatsShow = connect()?.call("dev.vstats.show", &Queue { name, qidx })?;
            output.print(&answer, || render::vstats(&answer))
        }
        DevCommand::Set { words } => {
            let set = requests::set_request(&words)?;
            let done: Option<DevChanged> = output.change(connect, "dev.set", &set)?;
            done.map_or(Ok(()), |answer| changed(&answer, output))
        }
    }
}

/// Nothing of what a file says waits.
fn in_force(plan: &ConfigPlan) -> Result<(), Fault> {
    let mut waiting: Vec<String> =
        plan.not_in_force().map(|(name, keys)| format!("{name} ({})", keys.join(", "))).collect();
    let mut hints = Vec::new();
    if !waiting.is_empty() {
        hints.push("what is said of each; `ringway status` names those that wait for their next front-end");
    }
    let before = waiting.len();
    waiting.extend(plan.waiting_for_a_start().map(|step| {
        let keys: Vec<&str> = step.changes.iter().map(|change| change.key.as_str()).collect();
        let name = if step.name.is_empty() { &step.what } else { &step.name };
        format!("{name} ({})", keys.join(", "))
    }));
    if waiting.len() > before {
        hints.push("a restart of ringwayd, for what is marked `*`: that disrupts all devices for a moment");
    }
    if waiting.is_empty() {
        return Ok(());
    }
    let message = format!("the file is applied, but not in force yet: {}", waiting.join(", "));
    Err(Fault::new(Kind::NotApplied, message).hint(hints.join("; ")))
}

/// Tells what came of a change to a device.
fn changed(answer: &DevChanged, output: Output) -> Result<(), Fault> {
    output.print(answer, String::new)?;
    if answer.applied {
        output.tell(&answer.notes);
        return Ok(());
    }
    let message = format!("{} is changed, but not in force yet", answer.changed);
    Err(Fault::new(Kind::NotApplied, message).hint(answer.notes.join("; ")))
}

fn vlan(
    command: VlanCommand,
    output: Output,
    connect: impl Fn() -> Result<Client, Fault>,
) -> Result<(), Fault> {
    match command {
        VlanCommand::Show { words } => {
            let answer: VlanShow = connect()?.call("bridge.vlan.show", &requests::vlan_select(&words)?)?;
            output.print(&answer, || render::vlans(&answer))
        }
        VlanCommand::Add { words } => {
            let change = requests::vlan_change(&words)?;
            let done: Option<DevChanged> = output.change(connect, "bridge.vlan.add", &change)?;
            done.map_or(Ok(()), |answer| changed(&answer, output))
        }
        VlanCommand::Del { words } => {
            let change = requests::vlan_change(&words)?;
            let done: Option<DevChanged> = output.change(connect, "bridge.vlan.del", &change)?;
            done.map_or(Ok(()), |answer| changed(&answer, output))
        }
    }
}

fn events(args: &EventsArgs, output: Output, mut client: Client) -> Result<(), Fault> {
    let (instance, since) = match args.since.as_deref() {
        None => (None, None),
        Some(text) => {
            let (instance, number) = match text.rsplit_once(':') {
                Some((instance, number)) => (Some(instance.to_owned()), number),
                None => (None, text),
            };
            let number = number
                .parse()
                .map_err(|_| Fault::usage(format!("`{text}` is not the number of an event")).at("since"))?;
            (instance, Some(number))
        }
    };
    let follow = Follow { since, instance, types: args.types.clone(), follow: !args.once };
    let page: EventPage = client.call("events", &follow)?;
    if let Some(snapshot) = &page.snapshot {
        let line = json!({ "instance": page.instance, "seq": page.seq, "type": "snapshot", "dev": snapshot });
        output.line(&line, || render::snapshot(&page))?;
    }
    let print = |event: &Event| {
        let mut line = json!({ "instance": page.instance });
        if let (Value::Object(line), Ok(Value::Object(event))) = (&mut line, serde_json::to_value(event)) {
            line.extend(event);
        }
        output.line(&line, || render::event(event))
    };
    for event in &page.events {
        print(event)?;
    }
    if args.once {
        return Ok(());
    }
    loop {
        print(&client.next_event()?)?;
    }
}

/// Prints the help of a command; exit code 0, as `vdpa(8)` does.
fn help(of: &[&str]) -> Result<(), Fault> {
    let mut command = Cli::command();
    command.build();
    let mut command = &mut command;
    for name in of {
        command =
            command.find_subcommand_mut(name).ok_or_else(|| Fault::usage(format!("no command {name}")))?;
    }
    write(&command.render_help().to_string())
}

/// Writes to standard output. A reader that went away (`ringway … | head`) is no failure.
pub(super) fn write(text: &str) -> Result<(), Fault> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Fault::system("cannot write", error)),
        Err(_) => std::process::exit(0),
        Ok(()) => Ok(()),
    }
}

impl Output {
    fn voice(self) -> Voice {
        match (self.is_vdpa, self.json) {
            (true, _) => Voice::Vdpa,
            (false, true) => Voice::Json,
            (false, false) => Voice::Text,
        }
    }

    /// Says what else the operator should know.
    fn tell(self, notes: &[String]) {
        for note in notes {
            self.voice().note(note);
        }
    }

    /// Has the daemon change something; None: it only said what it would do, which is printed.
    fn change<R: DeserializeOwned>(
        self,
        connect: impl Fn() -> Result<Client, Fault>,
        method: &str,
        params: &impl Serialize,
    ) -> Result<Option<R>, Fault> {
        let mut client = connect()?;
        if !self.is_dry {
            return client.call(method, params).map(Some);
        }
        let params = serde_json::to_value(params).map_err(|error| Fault::usage(error.to_string()))?;
        let plan: ConfigPlan = client.call("dry_run", &DryRun { method: method.to_owned(), params })?;
        self.print(&plan, || match (method, plan.steps.as_slice()) {
            ("config.apply", _) | (_, [_, ..]) => render::plan(&plan, false),
            _ => "nothing to change\n".to_owned(),
        })?;
        self.tell(&plan.notes);
        Ok(None)
    }

    /// [`Output::change`], asked for again, in ever longer steps, where it is refused for what passes by itself: a device that was
    /// removed a moment ago is still being let go of, or what was drained is on its way. A dry run tells what is so now.
    fn change_soon<R: DeserializeOwned>(
        self,
        connect: impl Fn() -> Result<Client, Fault>,
        within: Duration,
        method: &str,
        params: &impl Serialize,
    ) -> Result<Option<R>, Fault> {
        let begun = Instant::now();
        let (mut is_told, mut pause) = (false, Duration::ZERO);
        loop {
            let fault = match self.change(&connect, method, params) {
                Err(fault) if !self.is_dry && begun.elapsed() < within => fault,
                outcome => return outcome,
            };
            let Some(after) = fault.retry_after_ms else { return Err(fault) };
            let after = Duration::from_millis(after.get().into());
            if !is_told && begun.elapsed() > TELLS_AFTER {
                is_told = true;
                self.tell(&[format!("{}; waiting", fault.message)]);
            }
            pause = (pause * 2).clamp(after, LONGEST_PAUSE.max(after));
            std::thread::sleep(pause);
        }
    }

    /// Prints what was done: nothing but what else the operator should know, and with -j the answer.
    fn done(self, answer: &impl Serialize, notes: &[String]) -> Result<(), Fault> {
        self.print(answer, String::new)?;
        self.tell(notes);
        Ok(())
    }

    /// Prints an answer.
    fn print(self, answer: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Fault> {
        match (self.json, self.is_vdpa) {
            (false, false) => write(&text()),
            (false, true) => write(&compat::text(&text())),
            (true, false) => write(&(self.json_text(answer)? + "\n")),
            (true, true) => {
                let answer = serde_json::to_value(answer).map_err(|error| Fault::usage(error.to_string()))?;
                match compat::json(answer) {
                    Some(answer) => write(&(self.json_text(&answer)? + "\n")),
                    None => Ok(()),
                }
            }
        }
    }

    /// Prints one line of many: JSON is never indented, so that each line stands alone.
    pub(super) fn line(self, answer: &Value, text: impl FnOnce() -> String) -> Result<(), Fault> {
        if self.json { write(&format!("{answer}\n")) } else { write(&text()) }
    }

    fn json_text(self, answer: &impl Serialize) -> Result<String, Fault> {
        let failed = |error: serde_json::Error| Fault::new(Kind::Runtime, error.to_string());
        if !self.pretty {
            return serde_json::to_string(answer).map_err(failed);
        }
        let mut text = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
        answer.serialize(&mut serializer).map_err(failed)?;
        String::from_utf8(text).map_err(|error| Fault::new(Kind::Runtime, error.to_string()))
    }
}
