//! `status` and `wait`: what scripts ask, answered by an exit code.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use crate::devices::addresses;
use crate::fault::{Fault, Kind};
use crate::operator::api::{
    Binary, DevInfo, DevShow, Hello, MgmtdevShow, Named, PortShow, Queue, Select, Vstats, VstatsShow,
};
use crate::operator::cli::ringway::{WaitArgs, WaitFor};
use crate::operator::client::Client;

/// How the daemon is.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    /// `running`, `degraded` or `outdated`.
    state: &'static str,
    build: String,
    pid: u32,
    up_ms: u64,
    binary: Binary,
    /// How long nobody served before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    gap_ms: Option<u64>,
    /// The state directory, where its number for addresses was made on another machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    addresses_copied: Option<PathBuf>,
    devices: usize,
    connected: usize,
    /// What was asked for and could not be made, and why.
    absent: Named<String>,
    /// What was set of a device and is not in force before its next front-end connects, or before it is made anew.
    #[serde(skip_serializing_if = "Named::is_empty")]
    deferred: Named<Vec<String>>,
    /// Those of them whose other side is the host's, and whose they are: only a new device has what was set.
    #[serde(skip)]
    of_the_host: Named<String>,
}

/// Asks the daemon.
pub(super) fn look(client: &mut Client) -> Result<Status, Fault> {
    let hello: Hello = client.call("hello", &json!({}))?;
    let devices: DevShow = client.call("dev.show", &Select::default())?;
    let mgmtdevs: MgmtdevShow = client.call("mgmtdev.show", &Select::default())?;
    let ports: PortShow = client.call("port.show", &Select::default())?;
    let absent = [mgmtdevs.absent.0, ports.absent.0, devices.absent.0].concat();
    let connected = devices.dev.0.iter().filter(|(_, device)| is_connected(device)).count();
    let deferred = devices.dev.0.iter().filter(|(_, device)| !device.deferred.is_empty());
    let deferred = deferred.map(|(name, device)| (name.clone(), device.deferred.clone())).collect();
    let of_the_host =
        devices.dev.0.iter().filter(|(_, device)| device.netdev.is_some() || device.uplink.is_some());
    let of_the_host = of_the_host.map(|(name, device)| (name.clone(), device.origin.clone())).collect();
    Ok(Status {
        state: match (absent.is_empty(), hello.binary) {
            (false, _) => "degraded",
            (true, Binary::Installed) => "running",
            (true, _) => "outdated",
        },
        build: hello.build,
        pid: hello.pid,
        up_ms: hello.up_ms,
        binary: hello.binary,
        gap_ms: hello.gap_ms,
        addresses_copied: hello.state_dir.filter(|_| hello.addresses_copied),
        devices: devices.dev.0.len(),
        connected,
        absent: Named(absent),
        deferred: Named(deferred),
        of_the_host: Named(of_the_host),
    })
}

impl Status {
    /// As a text.
    pub(super) fn text(&self) -> String {
        let plural = if self.devices == 1 { "" } else { "s" };
        let mut text = format!(
            "{} {} (pid {}), up for {}\n  {} device{plural}, {} connected\n",
            self.state,
            self.build,
            self.pid,
            span(self.up_ms),
            self.devices,
            self.connected
        );
        if let Some(gap) = self.gap_ms {
            let _ = writeln!(text, "  gap {} before its start, when nobody served", span(gap));
        }
        if let Some(dir) = &self.addresses_copied {
            let _ = writeln!(
                text,
                "  {} was made on another machine: devices there may have the same addresses; try: write {{}} into it, restart ringwayd, give the VMs the new ones",
                dir.join(addresses::FILE).display()
            );
        }
        for (name, why) in &self.absent.0 {
            let _ = writeln!(text, "  {name}: not made: {why}");
        }
        for (name, keys) in &self.deferred.0 {
            let keys = keys.join(", ");
            let until = match self.of_the_host.find(name).map(String::as_str) {
                Some("config") => "it is made anew (ringway config apply FILE, once the file says so too)",
                Some(_) => "it is made anew (ringway dev del and dev add, or a restart of ringwayd)",
                None => "its next front-end connects",
            };
            let _ = writeln!(text, "  {name}: not in force before {until}: {keys}");
        }
        match self.binary {
            Binary::Installed => {}
            Binary::Replaced => text += "  an older program runs than is installed\n",
            Binary::Removed => text += "  the program that runs is not installed any more\n",
        }
        text
    }

    /// The exit code.
    pub(super) fn verdict(&self) -> Result<(), Fault> {
        let names = || self.absent.0.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        match self.state {
            "degraded" => Err(Fault::new(Kind::Degraded, format!("not made: {}", names()))
                .hint("what is said of each; it is tried again by itself where that may help")),
            "outdated" => Err(Fault::new(Kind::Outdated, "the program that runs is not the installed one")
                .hint("systemctl restart ringwayd, when the guests can spare it; `ringway status` then tells the gap")),
            _ => Ok(()),
        }
    }
}

/// Waits until the daemon, or a device of it, is as far as was asked for.
pub(super) fn wait(
    args: &WaitArgs,
    connect: &impl Fn() -> Result<Client, Fault>,
) -> Result<serde_json::Value, Fault> {
    let begin = Instant::now();
    let limit = Duration::from_secs(args.within);
    // Kept for as long as it answers: a thousand connections would be a thousand lines of the daemon's.
    let mut client = None;
    loop {
        let fault = match far(args, &mut client, connect) {
            Ok(None) => {
                let waited = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Ok(json!({ "waited_ms": waited }));
            }
            Ok(Some(why)) => Fault::new(Kind::Timeout, why),
            Err(fault) if matches!(fault.kind, Kind::Permission | Kind::Usage) => return Err(fault),
            Err(fault) => {
                client = None;
                fault
            }
        };
        if begin.elapsed() >= limit {
            let message = format!("not within {} s: {}", args.within, fault.message);
            return Err(Fault { kind: Kind::Timeout, message, ..fault });
        }
        std::thread::sleep(LOOK_EVERY.min(limit.saturating_sub(begin.elapsed())));
    }
}

/// What keeps it from being so far; nothing: it is.
fn far(
    args: &WaitArgs,
    client: &mut Option<Client>,
    connect: &impl Fn() -> Result<Client, Fault>,
) -> Result<Option<String>, Fault> {
    let client = match client {
        Some(client) => client,
        None => client.insert(connect()?),
    };
    let Some(name) = &args.name else {
        client.call::<_, Hello>("hello", &json!({}))?;
        return Ok(None);
    };
    let shown: DevShow = client.call("dev.show", &Select::default())?;
    let Some(device) = shown.dev.find(name) else {
        let why = shown
            .absent
            .find(name)
            .map_or_else(|| format!("there is no device {name}"), |why| format!("{name}: not made: {why}"));
        return Ok(Some(why));
    };
    if args.until >= WaitFor::Connected && !is_connected(device) {
        return Ok(Some(format!("{name} is {}", device.state)));
    }
    // The host's own interface has no driver that could be missing.
    if args.until < WaitFor::Ready || device.other_side().is_some() {
        return Ok(None);
    }
    let status = device.front_end.as_ref().and_then(|front_end| front_end.status.as_ref());
    let has_driver = status.is_none_or(|status| status.iter().any(|word| word == "DRIVER_OK"));
    if !has_driver || !device.rings.iter().any(|ring| ring.runs) {
        return Ok(Some(format!("{name} is connected, and no driver of its guest runs")));
    }
    if args.until < WaitFor::Up {
        return Ok(None);
    }
    if let Some(ring) = device.rings.iter().find(|ring| ring.started && ring.enabled && !ring.runs) {
        return Ok(Some(format!("{name}: queue {} is not served", ring.qidx)));
    }
    let stats: VstatsShow = client.call("dev.vstats.show", &Queue { name: name.clone(), qidx: None })?;
    let queues = match stats.vstats.find(name) {
        Some(Vstats::All { queues }) => queues.as_slice(),
        Some(Vstats::One(queue)) => std::slice::from_ref(&**queue),
        None => &[],
    };
    let lacks = queues.iter().find_map(|queue| Some((queue.qidx, queue.not_run.as_ref()?)));
    Ok(lacks.map(|(qidx, why)| format!("{name}: queue {qidx}: {why}")))
}

fn is_connected(device: &DevInfo) -> bool {
    device.state == "connected"
}

/// A span of time, with as much of it as matters.
pub(super) fn span(ms: u64) -> String {
    match ms / 1000 {
        0 => format!("{ms} ms"),
        s @ 1..60 => format!("{s}.{} s", ms % 1000 / 100),
        s @ 60..3600 => format!("{} min {} s", s / 60, s % 60),
        s @ 3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        s => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// How often a device is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short_and_never_longer_than_they_are() {
        for (ms, text) in [
            (7, "7 ms"),
            (1250, "1.2 s"),
            (59_999, "59.9 s"),
            (61_000, "1 min 1 s"),
            (3_660_000, "1 h 1 min"),
            (90_000_000, "1 d 1 h"),
        ] {
            assert_eq!(span(ms), text);
        }
    }
}
