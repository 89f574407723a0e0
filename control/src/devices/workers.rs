//! Workers started, drained and ended while the daemon runs, and what they serve spread anew.
//!
//! The control thread does it. What is moved is told to the session that has it, which moves its pumps under traffic
//! ([`Command::Move`]); a worker ends once it has no pump. What operators asked for stays as it was asked for: a device with a core of
//! its own goes elsewhere only where that core is drained, and nothing of this is kept over a restart.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;

use serde_json::json;

use crate::daemon::Daemon;
use crate::devices::apply::plan::{change, step};
use crate::devices::placement::{allowed_cores, check_allowed};
use crate::fault::{Fault, Kind};
use crate::frontends::session::Command;
use crate::host::topology::node_of_function;
use crate::operator::api::{
    ConfigAction, ConfigPlan, ConfigStep, CoreChanged, CoreLoad, CoreMove, CorePlan, CoreTarget, Disrupts,
};

/// What each pump had done when loads were last asked for. Owned by the control thread.
#[derive(Debug, Default)]
pub(crate) struct Loads {
    /// When, in cycles; 0: never.
    at: u64,
    busy: HashMap<String, u64>,
}

/// What is placed as one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    name: String,
    /// None: a management device with all that it made.
    group: Option<u16>,
    core: usize,
    /// How many groups it is.
    groups: usize,
    /// Of a core's time, in hundredths of a per cent.
    busy_x100: u64,
    /// An operator asked for this core.
    is_pinned: bool,
    /// The memory node of its hardware.
    near: Option<usize>,
}

impl Daemon {
    /// Starts a worker on one more core, or has one that is drained take groups again.
    pub(crate) fn add_core(&mut self, target: CoreTarget) -> Result<CoreChanged, Fault> {
        let core = target.core;
        let mut notes = Vec::new();
        if self.placement.find(core).is_ok() {
            if !self.placement.is_draining(core) {
                return Err(has_a_worker(core));
            }
            self.placement.add(core);
            notes.push(format!("core {core} takes groups again; ringway core balance spreads them"));
        } else {
            let allowed = allowed_cores().map_err(|error| Fault::system("cannot read the cpuset", error))?;
            check_allowed(&allowed, core).map_err(|fault| fault.at("core"))?;
            self.claims.add(core, self.settings.idle)?;
            if let Err(error) = self.engine.add_worker(core, self.settings.idle) {
                self.claims.remove(core);
                return Err(Fault::new(Kind::Runtime, error.to_string()).at("core"));
            }
            self.placement.add(core);
            self.settings.cores.push(core);
            if core == 0 && allowed.len() > 1 {
                notes.push(
                    "core 0 has work of the kernel's that no setting moves: another core is better"
                        .to_owned(),
                );
            }
            notes.extend(self.beside(core));
            notes.push(
                "nothing is moved by itself: ringway core balance, or ringway dev set name NAME core N"
                    .to_owned(),
            );
            notes.push(self.until_restart());
        }
        self.events.push("core.added", None, json!({ "core": core }));
        Ok(CoreChanged { core, moved: Vec::new(), notes })
    }

    /// Has a worker take no more groups, and all that it has go elsewhere.
    pub(crate) fn drain_core(&mut self, target: CoreTarget) -> Result<CoreChanged, Fault> {
        let core = target.core;
        let (mut moved, mut notes) = (Vec::new(), Vec::new());
        for (item, to) in self.drained(core)? {
            if item.is_pinned {
                notes.push(format!(
                    "{} was asked for on core {core}, and is again when ringwayd starts anew",
                    item.name
                ));
            }
            // It is counted there already.
            self.placement.release(&vec![to; item.groups]);
            moved.push(self.move_item(&item, to)?);
        }
        notes.dedup();
        self.events.push("core.drained", None, json!({ "core": core, "moved": moved.len() }));
        Ok(CoreChanged { core, moved, notes })
    }

    /// Ends the worker of a core that was drained.
    pub(crate) fn delete_core(&mut self, target: CoreTarget) -> Result<CoreChanged, Fault> {
        let core = target.core;
        self.check_delete_core(core)?;
        if let Err(error) = self.engine.remove_worker(core) {
            let workers = self.engine.workers();
            let pumps = workers.iter().filter(|worker| worker.core == core).flat_map(|worker| &worker.pumps);
            let names: Vec<&str> = pumps.map(|pump| pump.name.as_str()).take(MOST_NAMED).collect();
            return Err(Fault::conflict(format!("{error}"))
                .at("core")
                .held_by(names.join(", "))
                .hint("once their sessions have moved them; one that does not go has something under way: ringway dev show")
                .passing());
        }
        self.placement.remove(core);
        self.claims.remove(core);
        self.settings.cores.retain(|known| *known != core);
        self.events.push("core.removed", None, json!({ "core": core }));
        Ok(CoreChanged { core, moved: Vec::new(), notes: vec![self.until_restart()] })
    }

    /// Whether the worker of a core can be ended.
    fn check_delete_core(&self, core: usize) -> Result<(), Fault> {
        self.placement.find(core)?;
        if !self.placement.is_draining(core) {
            return Err(Fault::conflict(format!("the worker of core {core} takes groups still"))
                .at("core")
                .hint(format!("ringway core drain {core} first: what it has goes elsewhere")));
        }
        let placed = self.placement.groups_on(core);
        if placed > 0 {
            return Err(Fault::conflict(format!("{placed} groups came to core {core} since it was drained"))
                .at("core")
                .hint(format!("ringway core drain {core} once more")));
        }
        Ok(())
    }

    /// What `core.add` would do.
    pub(crate) fn plan_add_core(&self, target: CoreTarget) -> Result<ConfigPlan, Fault> {
        let core = target.core;
        if self.placement.find(core).is_ok() && !self.placement.is_draining(core) {
            return Err(has_a_worker(core));
        }
        let allowed = allowed_cores().map_err(|error| Fault::system("cannot read the cpuset", error))?;
        check_allowed(&allowed, core).map_err(|fault| fault.at("core"))?;
        Ok(of_core(core, ConfigAction::Add, &[]))
    }

    /// What `core.drain` would do.
    pub(crate) fn plan_drain_core(&mut self, target: CoreTarget) -> Result<ConfigPlan, Fault> {
        let core = target.core;
        let before = self.placement.clone();
        let moves = self.drained(core);
        self.placement = before;
        let moves: Vec<CoreMove> = moves?.into_iter().map(|(item, to)| item.moved_to(to)).collect();
        Ok(of_core(core, ConfigAction::Set, &moves))
    }

    /// What `core.del` would do.
    pub(crate) fn plan_delete_core(&self, target: CoreTarget) -> Result<ConfigPlan, Fault> {
        self.check_delete_core(target.core)?;
        Ok(of_core(target.core, ConfigAction::Del, &[]))
    }

    /// What `core.balance` would do, by what was done since loads were last asked for: they stay as they are for whoever asks next.
    pub(crate) fn plan_balance_cores(&mut self) -> Result<ConfigPlan, Fault> {
        let (elapsed, done) = self.loads.since(&self.loads_now());
        let items = self.items(&done, elapsed.max(1));
        let planned = plan(&items, &self.open_cores());
        let moves = items.iter().zip(planned).filter(|(item, to)| item.core != *to);
        let steps = moves.map(|(item, to)| of_move(&item.moved_to(to))).collect();
        Ok(ConfigPlan { steps, ..ConfigPlan::default() })
    }

    /// The cores that take groups, each with its memory node.
    fn open_cores(&self) -> Vec<(usize, Option<usize>)> {
        self.placement.open().map(|core| (core, self.placement.topology().node(core))).collect()
    }

    /// Says how what is placed can be spread better over the workers, by what it did since this was last asked, and does it if that is
    /// asked for.
    pub(crate) fn balance_cores(&mut self, is_applied: bool) -> Result<CorePlan, Fault> {
        let now = self.loads_now();
        let (elapsed, done) = self.loads.since(&now);
        self.loads = now;
        let items = self.items(&done, elapsed.max(1));
        let cores = self.open_cores();
        let planned = plan(&items, &cores);
        let mut core: BTreeMap<usize, CoreLoad> =
            cores.iter().map(|(open, _)| (*open, CoreLoad::default())).collect();
        for (item, to) in items.iter().zip(&planned) {
            let from = core.entry(item.core).or_default();
            from.before_x100 += item.busy_x100;
            from.groups_before += 1;
            let to = core.entry(*to).or_default();
            to.after_x100 += item.busy_x100;
            to.groups_after += 1;
        }
        let mut moves = Vec::new();
        for (item, to) in items.iter().zip(planned).filter(|(item, to)| item.core != *to) {
            moves.push(if is_applied { self.move_item(item, to)? } else { item.moved_to(to) });
        }
        let pinned = items.iter().filter(|item| item.is_pinned).count();
        let notes = (pinned > 0).then(|| format!("{pinned} groups stay where they were asked for (core N)"));
        if is_applied {
            self.events.push("core.balanced", None, json!({ "moved": moves.len() }));
        }
        let hertz = ringway_ring::tsc::hertz().max(1);
        Ok(CorePlan {
            applied: is_applied,
            over_ms: u64::try_from(u128::from(elapsed) * 1000 / u128::from(hertz)).unwrap_or(u64::MAX),
            core: core.into_iter().map(|(core, load)| (core.to_string(), load)).collect(),
            moves,
            notes: notes.into_iter().collect(),
        })
    }

    fn loads_now(&self) -> Loads {
        let pumps = self.engine.workers().into_iter().flat_map(|worker| worker.pumps);
        Loads {
            at: ringway_ring::tsc::cycles(),
            busy: pumps.map(|pump| (pump.name, pump.busy_cycles)).collect(),
        }
    }

    /// Has a core take nothing more, and says where what it has is to go, each of it counted there.
    fn drained(&mut self, core: usize) -> Result<Vec<(Item, usize)>, Fault> {
        self.placement.drain(core)?;
        let mut moves = Vec::new();
        for item in self.items(&HashMap::new(), 1).into_iter().filter(|item| item.core == core) {
            let to = self.placement.place(1, None, item.near)?.first().copied().unwrap_or(core);
            // More than one go there together.
            let more = vec![to; item.groups - 1];
            self.placement.place(more.len(), Some(to), None)?;
            moves.push((item, to));
        }
        Ok(moves)
    }

    /// All that is placed, with what it did, by the names of its pumps, in `elapsed` cycles.
    fn items(&mut self, done: &HashMap<String, u64>, elapsed: u64) -> Vec<Item> {
        let share = |cycles: u64| {
            u64::try_from(u128::from(cycles) * 10_000 / u128::from(elapsed)).unwrap_or(u64::MAX)
        };
        let mut of_one = Vec::new();
        for name in self.registry.mgmtdev_names() {
            if self.registry.mgmtdev(&name).is_ok_and(|mgmtdev| mgmtdev.device.shared_core().is_some()) {
                of_one.push(name);
            }
        }
        let mut items = Vec::new();
        let mut shared: BTreeMap<String, u64> = BTreeMap::new();
        for device in self.registry.devices() {
            let cycles = |group: usize| done.get(&format!("{}.{group}", device.name())).copied().unwrap_or(0);
            if device.shares_core {
                let sum: u64 = (0..device.cores().len()).map(cycles).sum();
                *shared.entry(device.entry.mgmtdev.clone()).or_default() += sum;
                continue;
            }
            let cores = device.cores();
            if of_one.contains(&device.entry.mgmtdev) {
                // A port with a core of its own: all its queues are there.
                items.push(Item {
                    name: device.name().to_owned(),
                    group: None,
                    core: cores.first().copied().unwrap_or(0),
                    groups: cores.len(),
                    busy_x100: 0,
                    is_pinned: true,
                    near: None,
                });
                continue;
            }
            for (group, core) in cores.into_iter().enumerate() {
                items.push(Item {
                    name: device.name().to_owned(),
                    group: u16::try_from(group).ok(),
                    core,
                    groups: 1,
                    busy_x100: share(cycles(group)),
                    is_pinned: device.entry.core.is_some(),
                    near: node_of_function(&device.entry.mgmtdev),
                });
            }
        }
        for name in self.registry.mgmtdev_names() {
            let family = self.family(&name);
            let Ok(mgmtdev) = self.registry.mgmtdev(&name) else { continue };
            let Some(core) = mgmtdev.device.shared_core() else { continue };
            let own = name.split_once('/').map_or(name.as_str(), |(_, own)| own);
            let cycles: u64 = [name.as_str(), own].iter().filter_map(|pump| done.get(*pump)).sum::<u64>()
                + family.iter().filter_map(|member| shared.get(member)).sum::<u64>();
            items.push(Item {
                is_pinned: mgmtdev.asked.contains_key("core"),
                name,
                group: None,
                core,
                groups: 1,
                busy_x100: share(cycles),
                near: None,
            });
        }
        items
    }

    /// Has an item served by another core, under traffic if there is any.
    fn move_item(&mut self, item: &Item, to: usize) -> Result<CoreMove, Fault> {
        match item.group {
            Some(group) => {
                let id = self.registry.id_of(&item.name)?;
                if let Some(device) = self.registry.by_id(id) {
                    if let Some(slot) = device.shared.cores.get(usize::from(group)) {
                        slot.store(to, Ordering::Relaxed);
                    }
                    if let Some(connection) = &device.connection {
                        connection.handle.send(Command::Move);
                    }
                }
                self.placement.release(&[item.core]);
                self.placement.place(1, Some(to), None)?;
            }
            None if self.registry.has_mgmtdev(&item.name) => {
                let core = BTreeMap::from([("core".to_owned(), to.to_string())]);
                self.registry.mgmtdev(&item.name)?.device.set(&core).map_err(Fault::from)?;
                self.follow_mgmtdev(&item.name, &[item.core], to);
            }
            None => {
                let id = self.registry.id_of(&item.name)?;
                let before = self.registry.by_id(id).map_or_else(Vec::new, |device| device.serve_by(to));
                self.placement.release(&before);
                self.placement.place(before.len(), Some(to), None)?;
            }
        }
        Ok(item.moved_to(to))
    }

    /// What is said of a core that is one physical core with another worker's.
    fn beside(&self, core: usize) -> Option<String> {
        let siblings = self.placement.topology().siblings(core);
        let other = siblings.iter().find(|other| self.placement.find(**other).is_ok())?;
        Some(format!(
            "core {core} is one physical core with core {other}, which has a worker: each slows the other down"
        ))
    }

    fn until_restart(&self) -> String {
        let cores = super::placement::list(&self.settings.cores);
        let is_overridden = self.overrides.iter().any(|other| other.key == "cores");
        match &self.config_file {
            Some(file) if is_overridden => format!(
                "until ringwayd starts anew; for good: --cores on its command line, which goes before {}",
                file.display()
            ),
            Some(file) => format!(
                "until ringwayd starts anew; for good: [daemon] cores = [{cores}] in {}",
                file.display()
            ),
            None => format!(
                "until ringwayd starts anew; for good: --cores, or [daemon] cores = [{cores}] in its file"
            ),
        }
    }
}

impl Loads {
    /// How long it is from these to `now`, in cycles, and for how many of them each pump was busy; 0 and none where these were never
    /// asked for.
    fn since(&self, now: &Loads) -> (u64, HashMap<String, u64>) {
        if self.at == 0 {
            return (0, HashMap::new());
        }
        // One that was made anew meanwhile began at 0.
        let since = |(name, cycles): (&String, &u64)| {
            let old = self.busy.get(name).copied().filter(|old| old <= cycles).unwrap_or(0);
            (name.clone(), cycles - old)
        };
        (now.at.saturating_sub(self.at), now.busy.iter().map(since).collect())
    }
}

impl Item {
    fn moved_to(&self, to: usize) -> CoreMove {
        CoreMove {
            name: self.name.clone(),
            group: self.group,
            from: self.core,
            to,
            busy_x100: self.busy_x100,
        }
    }
}

fn has_a_worker(core: usize) -> Fault {
    Fault::conflict(format!("core {core} has a worker")).at("core").hint("ringway core show")
}

/// What is said beforehand of a core, and of what goes from it.
fn of_core(core: usize, action: ConfigAction, moves: &[CoreMove]) -> ConfigPlan {
    let own = step("core", &core.to_string(), action, Disrupts::Nothing, Vec::new());
    ConfigPlan {
        steps: std::iter::once(own).chain(moves.iter().map(of_move)).collect(),
        ..ConfigPlan::default()
    }
}

fn of_move(step_of: &CoreMove) -> ConfigStep {
    let [from, to] = [step_of.from, step_of.to].map(|core| core.to_string());
    let changes = vec![change("core", Some(&from), Some(&to))];
    step("device", &step_of.name, ConfigAction::Set, Disrupts::Queue, changes)
}

/// The core of each item, so that none of `cores` (each with its memory node) has more to do than it must: one item after
/// another goes from the busiest core to the idlest, as long as that makes the busiest less busy by what is worth it, then
/// from that with the most items to that with the fewest, where neither has anything to do.
fn plan(items: &[Item], cores: &[(usize, Option<usize>)]) -> Vec<usize> {
    let mut at: Vec<usize> = items.iter().map(|item| item.core).collect();
    let may_go = |item: &Item, (_, node): (usize, Option<usize>)| {
        // What is near to its hardware stays near.
        !item.is_pinned
            && (item.near.is_none() || item.near == node || !cores.iter().any(|(_, has)| *has == item.near))
    };
    for _ in 0..items.len() {
        let load = |core: usize| -> u64 {
            items.iter().zip(&at).filter(|(_, at)| **at == core).map(|(item, _)| item.busy_x100).sum()
        };
        let mut best: Option<(u64, usize, usize)> = None;
        let Some(&(busiest, _)) = cores.iter().max_by_key(|(core, _)| load(*core)) else { break };
        for &to in cores.iter().filter(|(core, _)| *core != busiest) {
            for (nth, item) in items.iter().enumerate().filter(|(nth, _)| at[*nth] == busiest) {
                let after = (load(to.0) + item.busy_x100).max(load(busiest) - item.busy_x100);
                let gain = load(busiest).saturating_sub(after);
                if gain >= WORTH_X100 && may_go(item, to) && best.is_none_or(|(most, ..)| gain > most) {
                    best = Some((gain, nth, to.0));
                }
            }
        }
        let Some((_, nth, to)) = best else { break };
        at[nth] = to;
    }
    for _ in 0..items.len() {
        let count = |core: usize| at.iter().filter(|at| **at == core).count();
        let most = cores.iter().copied().max_by_key(|(core, _)| count(*core));
        let fewest = cores.iter().copied().min_by_key(|(core, _)| count(*core));
        let (Some(most), Some(fewest)) = (most, fewest) else { break };
        if count(most.0) < count(fewest.0) + 2 {
            break;
        }
        let idle = items
            .iter()
            .enumerate()
            .position(|(nth, item)| at[nth] == most.0 && item.busy_x100 < IDLE_X100 && may_go(item, fewest));
        let Some(nth) = idle else { break };
        at[nth] = fewest.0;
    }
    at
}

/// A move is worth so much of the busiest core's time.
const WORTH_X100: u64 = 300;
/// What does less than this of a core's time has nothing to do.
const IDLE_X100: u64 = 10;
/// Pumps that a refusal names.
const MOST_NAMED: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn item(core: usize, busy_x100: u64) -> Item {
        Item { name: "d".into(), group: Some(0), core, groups: 1, busy_x100, is_pinned: false, near: None }
    }

    const TWO: [(usize, Option<usize>); 2] = [(1, Some(0)), (2, Some(1))];

    #[test]
    fn busy_items_are_spread_and_what_is_worth_little_stays() {
        let items = [item(1, 4000), item(1, 3000), item(1, 2000), item(2, 100)];
        let planned = plan(&items, &TWO);
        let load = |core: usize| -> u64 {
            items.iter().zip(&planned).filter(|(_, at)| **at == core).map(|(item, _)| item.busy_x100).sum()
        };
        assert!(load(1).abs_diff(load(2)) <= 1100, "{planned:?}");
        // Moving either changes next to nothing.
        assert_eq!(plan(&[item(1, 5000), item(2, 4900)], &TWO), [1, 2]);
        assert_eq!(plan(&[item(1, 9000)], &TWO), [1]);
    }

    #[test]
    fn loads_are_counted_from_when_they_were_last_asked_for_and_of_pumps_made_anew_from_their_start() {
        let loads = |at, a, b| Loads { at, busy: HashMap::from([("a".to_owned(), a), ("b".to_owned(), b)]) };
        let (elapsed, busy) = loads(100, 10, 50).since(&loads(400, 210, 20));
        assert_eq!((elapsed, busy["a"], busy["b"]), (300, 200, 20));
        let (elapsed, busy) = Loads::default().since(&loads(400, 210, 20));
        assert_eq!((elapsed, busy.len()), (0, 0));
    }

    #[test]
    fn idle_items_are_spread_by_their_number() {
        let items: Vec<Item> = (0..5).map(|_| item(1, 0)).collect();
        let planned = plan(&items, &TWO);
        assert_eq!(planned.iter().filter(|at| **at == 2).count(), 2);
    }

    #[test]
    fn what_was_asked_for_and_what_is_near_to_its_hardware_stays() {
        let pinned = Item { is_pinned: true, ..item(1, 4000) };
        assert_eq!(plan(&[pinned.clone(), pinned], &TWO), [1, 1]);
        let near = Item { near: Some(0), ..item(1, 4000) };
        assert_eq!(plan(&[near.clone(), near.clone()], &TWO), [1, 1]);
        let far = Item { near: Some(7), ..near };
        assert_eq!(plan(&[far.clone(), far], &TWO).iter().filter(|at| **at == 2).count(), 1);
    }

    #[test]
    fn core_that_takes_nothing_is_left() {
        // Core 3 is drained: what is still on it is none of the plan's to add to.
        let planned = plan(&[item(1, 0), item(1, 0), item(3, 0)], &TWO);
        assert!(!planned[..2].contains(&3));
    }
}
