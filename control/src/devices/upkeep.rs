//! What the daemon made on the host and somebody took away: found by a look at every path, some times a second, and made
//! again for as long as it is wanted. What somebody put in its place is left alone and told, once, with what to do.
//!
//! ```text
//!   runtime directory   dev/NAME.sock   positions/NAME   CTL   VIEW   CTL.lock   ringwayd.lock
//!   state directory     devices.json    addresses.json   lock
//! ```
//!
//! The control thread does it. A directory that has not changed is not looked through, so that a look costs a few system
//! calls however many devices there are; now and then every device is looked at all the same. Front-ends that are connected
//! notice nothing: they have their sockets, and workers go on in the page of positions that they have. Interfaces are looked
//! after by their sessions.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use ringway_pmd::block::SECTOR;
use serde_json::json;

use crate::daemon::{Daemon, Token, make_dir};
use crate::devices::device::Device;
use crate::fault::Fault;
use crate::host::accounts::{A_MOMENT, Account};
use crate::host::endpoint::Listening;
use crate::host::look::{Finding, Missing};
use crate::host::manager::status_of;
use crate::host::share::{CURE, Changed};
use crate::host::standing::{Identity, Standing, noun};
use crate::settings::View;

/// A directory of ours: any will do, with what belongs into it.
fn standing_of_directory(path: &Path) -> Standing {
    match fs::metadata(path) {
        Ok(facts) if facts.is_dir() => Standing::Ours,
        Ok(facts) => Standing::Foreign(noun(facts.file_type())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Standing::Gone,
        Err(error) => Standing::Hidden(error),
    }
}

impl Daemon {
    /// Looks at all that was made, and makes again what is gone.
    pub(crate) fn look_after(&mut self) {
        let mut found = Vec::new();
        let runtime = self.runtime_dir.clone();
        for path in [runtime.clone(), runtime.join("dev"), runtime.join("positions")] {
            let standing = standing_of_directory(&path);
            found.extend(Finding::of("the directory", &path, standing, || make_dir(&path)));
        }
        // Told once for all that belongs below it.
        let blocked = |found: &[Finding], path: &Path| {
            found.iter().any(|finding| match finding {
                Finding::Missing(missing) => path != missing.path && path.starts_with(&missing.path),
                Finding::Remade { .. } => false,
            })
        };
        for guard in &mut self.guards {
            let path = guard.path().to_owned();
            if !blocked(&found, &path) {
                found.extend(Finding::of("the lock file", &path, guard.standing(), || guard.renew()));
            }
        }
        if let Some(state) = &mut self.state {
            found.extend(state.look_after());
        }
        found.extend(self.events.missing().map(Finding::Missing));
        if let Some(path) = self.ctl_path.clone().filter(|path| !blocked(&found, path)) {
            let standing = self.ctl.as_ref().map_or(Standing::Ours, Listening::standing);
            let made = Finding::of("the operator socket", &path, standing, || {
                let ctl = Listening::make(&path, None, None)?;
                self.epoll_add(&ctl.socket, Token::Control)?;
                self.ctl = Some(ctl);
                Ok(())
            });
            found.extend(made);
        }
        if let Some(View { path, group }) =
            self.view_asked.clone().filter(|view| !blocked(&found, &view.path))
        {
            let standing = self.view.as_ref().map_or(Standing::Ours, Listening::standing);
            let made = Finding::of("the view-only socket", &path, standing, || {
                let group = group.map(|name| Account::Group.id(&name, A_MOMENT)).transpose()?;
                let view = Listening::make(&path, None, group)?;
                self.epoll_add(&view.socket, Token::View)?;
                self.view = Some(view);
                Ok(())
            });
            found.extend(made);
        }
        let mut of_devices = Vec::new();
        for id in self.devices_to_look_at() {
            let Some(device) = self.registry.by_id(id) else { continue };
            let (name, socket) = (device.name().to_owned(), device.socket.clone());
            let standing = device.listening.as_ref().map_or(Standing::Ours, Listening::standing);
            let positions = device.shared.positions.clone();
            let mut own = Vec::new();
            if !blocked(&found, &socket) {
                own.extend(Finding::of("the socket", &socket, standing, || self.listen_again(id)));
            }
            let path = self.positions_file(&name);
            if !blocked(&found, &path) {
                let renew =
                    || positions.renew(&path).map_err(|error| Fault::system("it cannot be made", error));
                own.extend(Finding::of("the positions file", &path, standing_of(&positions, &path), renew));
            }
            of_devices.extend(own.into_iter().map(|finding| (Some(name.clone()), finding)));
        }
        let found = found.into_iter().map(|finding| (None, finding)).chain(of_devices).collect();
        self.tell_found(found);
        self.look_at_health();
        self.look_at_shares();
        if let Some(mut line) = self.status_line.take() {
            line.tell(self.status());
            self.status_line = Some(line);
        }
    }

    /// What there is, and what was asked for and is not there, as the service manager shows it.
    fn status(&self) -> String {
        let mgmtdevs = self.absent_mgmtdevs.iter().map(|absent| absent.entry.name.clone());
        let ports = self.ports.iter().filter(|port| port.why.is_some()).map(|port| port.entry.handle());
        let devices = self.absent.iter().map(|absent| absent.entry.name.clone());
        let absent: Vec<String> = mgmtdevs.chain(ports).chain(devices).collect();
        status_of(self.registry.devices().count(), &absent)
    }

    /// Has workers give way that would keep everybody else from their cores.
    fn look_at_shares(&mut self) {
        for Changed { core, gives_way } in self.shares.look(&self.engine) {
            let details = match gives_way {
                Some(policy) => json!({
                    "core": core,
                    "gives_way": true,
                    "why": format!("its worker has the real-time policy {}, under which nothing else would run there", policy.name()),
                    "try": CURE,
                }),
                None => json!({ "core": core, "gives_way": false }),
            };
            self.events.push("core.gives_way", None, details);
        }
    }

    /// Tells of disks whose size is another, and of requests that failed, in a while together.
    fn look_at_health(&mut self) {
        self.draining.retain(|(_, health)| !health.is_over());
        let now = Instant::now();
        for id in self.registry.ids() {
            let Some(device) = self.registry.by_id(id) else { continue };
            let capacity = device.facts.config.block().map(|config| config.capacity);
            let told = std::mem::replace(&mut device.capacity, capacity);
            if let (Some(before), Some(capacity)) = (told, capacity)
                && before != capacity
            {
                let details = json!({ "bytes": capacity * SECTOR, "before": before * SECTOR });
                self.events.push("dev.resized", Some(device.entry.name.as_str()), details);
            }
            for (kind, times) in device.quota.take_held() {
                let details = json!({ "of": kind, "n": times });
                self.events.push("events.repeated", Some(device.entry.name.as_str()), details);
            }
            let Some(health) = &device.health else { continue };
            let (count, (told, at)) = (health.failures(), device.failures);
            if count == told || at.is_some_and(|at| now.duration_since(at) < TELL_FAILURES_EVERY) {
                continue;
            }
            device.failures = (count, Some(now));
            let details = json!({ "failures": count - told, "why": health.words() });
            let name = device.name().to_owned();
            self.events.push("dev.failing", Some(&name), details);
        }
    }

    /// Those whose files may have changed.
    fn devices_to_look_at(&mut self) -> Vec<u64> {
        let Daemon { registry, looks, missing, runtime_dir, .. } = self;
        looks.begin();
        let are_positions_quiet = looks.is_quiet(&runtime_dir.join("positions"));
        let mut changed = |device: &&Device| {
            let is_quiet = match device.socket.parent().filter(|_| device.listening.is_some()) {
                Some(dir) => looks.is_quiet(dir),
                None => true,
            };
            let is_missing = || missing.iter().any(|missing| missing.dev.as_deref() == Some(device.name()));
            !is_quiet || !are_positions_quiet || device.shared.positions.is_poisoned() || is_missing()
        };
        registry.devices().filter(|device| changed(device)).map(|device| device.id).collect()
    }

    /// Makes a device's socket again.
    fn listen_again(&mut self, id: u64) -> Result<(), Fault> {
        let Some(device) = self.registry.by_id(id) else { return Ok(()) };
        let (entry, socket) = (device.entry.clone(), device.socket.clone());
        let owner = entry.owner.as_deref().map(|name| Account::User.id(name, A_MOMENT)).transpose()?;
        let group = entry.group.as_deref().map(|name| Account::Group.id(name, A_MOMENT)).transpose()?;
        let listening = Listening::make(&socket, owner, group)?;
        self.epoll_add(&listening.socket, Token::Device(id))?;
        if let Some(device) = self.registry.by_id(id) {
            device.listening = Some(listening);
        }
        Ok(())
    }

    /// Tells of what was gone and is there again.
    pub(crate) fn tell_remade(&mut self, dev: Option<&str>, what: &str, path: &Path) {
        self.events.push("host.remade", dev, json!({ "what": what, "path": path }));
    }

    fn tell_found(&mut self, found: Vec<(Option<String>, Finding)>) {
        let mut missing = Vec::new();
        for (dev, finding) in found {
            match finding {
                Finding::Remade { what, path } => self.tell_remade(dev.as_deref(), what, &path),
                Finding::Missing(one) => {
                    let one = Missing { dev, ..one };
                    if !self.missing.contains(&one) {
                        let details =
                            json!({ "what": one.what, "path": one.path, "why": one.why, "try": one.cure });
                        self.events.push("host.missing", one.dev.as_deref(), details);
                    }
                    missing.push(one);
                }
            }
        }
        self.missing = missing;
    }
}

/// What stands where a device's positions are kept. A file of ours that somebody cut is as good as none, and goes.
pub(crate) fn standing_of(positions: &ringway_ring::position::PositionPage, path: &Path) -> Standing {
    let file = match positions.file() {
        Ok(file) => file,
        Err(error) => return Standing::Hidden(error),
    };
    match (Identity { device: file.device, inode: file.inode }).standing(path) {
        Standing::Ours if !file.is_whole => match fs::remove_file(path) {
            Ok(()) => Standing::Gone,
            Err(error) => Standing::Hidden(error),
        },
        standing => standing,
    }
}

/// Between two events of the failures of one device.
const TELL_FAILURES_EVERY: Duration = Duration::from_secs(10);
