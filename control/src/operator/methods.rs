//! The methods of the operator protocol: one table, of which requests are dispatched and the protocol is described
//! ([`crate::operator::discover`]). A method that is not in it can neither be called nor found; what is described of it is
//! the types that its request is read as and that its answer is written from.
//!
//! All of it runs on the control thread.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::fault::{Fault, Kind};
use crate::host::peer::Caller;
use crate::operator::api::{
    CaptureBegun, CaptureRequest, ConfigApply, ConfigPlan, ConfigShow, ConfigText, CoreChanged, CorePlan,
    CoreShow, CoreTarget, DevAdded, DevChanged, DevDeleted, DevSet, DevShow, DeviceEntry, Discovered, DryRun,
    Dump, EventPage, Follow, Hello, Inspect, Inspected, LogSet, LogShow, MetricsText, MgmtEntry,
    MgmtdevChanged, MgmtdevDeleted, MgmtdevShow, PortDeleted, PortEntry, PortSet, PortShow, Queue, Sample,
    Select, Target, VlanChange, VlanShow, VstatsShow, Why, WhyShow,
};
use crate::operator::discover;
use crate::operator::role::Role;

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    /// Its process.
    pub(crate) caller: Caller,
    /// Its place among the clients of the operator socket; none from within the process.
    pub(crate) client: Option<u64>,
    /// By which socket.
    pub(crate) role: Role,
}

/// A method.
pub(crate) struct Method {
    pub(crate) name: &'static str,
    /// What it is for, in one sentence.
    pub(crate) summary: &'static str,
    /// It changes something: it stands in the log, with who asked, and is refused once the daemon is stopping.
    pub(crate) is_change: bool,
    /// Its answer is written once, as text: that of a thousand devices is large, and control makes nothing else of it.
    call: fn(&mut Daemon, &Asker, Value) -> Result<String, Fault>,
    /// Says what the same call would do, of a method that changes something.
    plan: Option<PlanOf>,
    /// The type that its parameters are read as.
    pub(crate) params: fn(&mut SchemaGenerator) -> Schema,
    /// The type that its answer is written from.
    pub(crate) result: fn(&mut SchemaGenerator) -> Schema,
}

/// What says what a call with these parameters would do.
type PlanOf = fn(&mut Daemon, Value) -> Result<ConfigPlan, Fault>;

/// Each line: whether it only shows or changes something, its name, parameters, answer and summary, what does it, and of a change
/// what says beforehand what it would do.
macro_rules! methods {
    ($($sort:ident $name:literal ($params:ty) -> $answer:ty, $summary:literal, $run:expr $(, $plan:expr)?;)*) => {
        /// Every method.
        pub(crate) static METHODS: &[Method] = &[$(Method {
            name: $name,
            summary: $summary,
            is_change: is_change!($sort),
            call: |daemon, asker, params| {
                let run: fn(&mut Daemon, &Asker, $params) -> Result<$answer, Fault> = $run;
                text_of(&run(daemon, asker, read(params)?)?)
            },
            plan: plan!($sort, $params $(, $plan)?),
            params: |generator| generator.root_schema_for::<$params>(),
            result: |generator| generator.subschema_for::<$answer>(),
        }),*];
    };
}

macro_rules! is_change {
    (show) => {
        false
    };
    (change) => {
        true
    };
}

macro_rules! plan {
    (show, $params:ty) => {
        None
    };
    (change, $params:ty, $plan:expr) => {
        Some(|daemon, params| {
            let plan: fn(&mut Daemon, $params) -> Result<ConfigPlan, Fault> = $plan;
            plan(daemon, read(params)?)
        })
    };
}

methods! {
    show "rpc.discover" (Nothing) -> Discovered,
        "This description: an OpenRPC document",
        |_, _, _| Ok(discover::document().clone());
    show "hello" (Nothing) -> Hello,
        "Who answers: version, process, instance, directories",
        |daemon, asker, _| Ok(daemon.hello(asker.role));
    show "mgmtdev.show" (Select) -> MgmtdevShow,
        "Management devices, those that could not be made, and the kinds that there can be",
        |daemon, _, select| daemon.show_mgmtdevs(select);
    change "mgmtdev.add" (MgmtEntry) -> MgmtdevChanged,
        "Adds a management device",
        |daemon, _, entry| daemon.add_mgmtdev(entry),
        |daemon, entry| daemon.plan_add_mgmtdev(&entry);
    change "mgmtdev.set" (MgmtEntry) -> MgmtdevChanged,
        "Changes a management device, also while its devices are in use",
        |daemon, _, entry| daemon.set_mgmtdev(&entry),
        |daemon, entry| daemon.plan_set_mgmtdev(&entry);
    change "mgmtdev.del" (Target) -> MgmtdevDeleted,
        "Removes a management device with all its devices",
        |daemon, _, target| daemon.delete_mgmtdev(&target),
        |daemon, target| daemon.plan_delete_mgmtdev(&target);
    show "port.show" (Select) -> PortShow,
        "Ports: each with its function, its management device and the devices of that",
        |daemon, _, select| daemon.show_ports(&select);
    change "port.add" (PortEntry) -> PortShow,
        "Adds a port, inactive unless it says otherwise",
        |daemon, _, entry| daemon.add_port(entry),
        |daemon, entry| daemon.plan_add_port(&entry);
    change "port.del" (Target) -> PortDeleted,
        "Removes a port, with what was made with its function",
        |daemon, _, target| daemon.delete_port(&target),
        |daemon, target| daemon.plan_delete_port(&target);
    change "port.function.set" (PortSet) -> PortShow,
        "Changes the function of a port",
        |daemon, _, set| daemon.set_port(&set),
        |daemon, set| daemon.plan_set_port(&set);
    change "dev.add" (DeviceEntry) -> DevAdded,
        "Adds a device",
        |daemon, _, entry| daemon.add(entry),
        |daemon, entry| daemon.plan_add(&entry);
    change "dev.del" (Target) -> DevDeleted,
        "Removes a device at once, also while a guest uses it",
        |daemon, _, target| daemon.delete(&target),
        |daemon, target| daemon.plan_delete(&target);
    show "dev.show" (Select) -> DevShow,
        "Devices, with their front-ends, rings and history",
        |daemon, _, select| daemon.show_devices(select);
    show "dev.config.show" (Select) -> ConfigShow,
        "The configuration space that guests read",
        |daemon, _, select| daemon.show_config(select);
    show "dev.vstats.show" (Queue) -> VstatsShow,
        "Statistics of one queue, or of all queues of a device",
        |daemon, _, queue| daemon.show_vstats(queue);
    show "dev.why" (Why) -> WhyShow,
        "What keeps packets or requests from a device; asked again with the answer's `look`, what does just now",
        |daemon, _, asked| daemon.why(asked);
    change "dev.set" (DevSet) -> DevChanged,
        "Changes a device",
        |daemon, _, set| daemon.set(&set),
        |daemon, set| daemon.plan_set(&set);
    show "bridge.vlan.show" (Select) -> VlanShow,
        "The VLANs that ports of bridges carry",
        |daemon, _, select| daemon.show_vlans(&select);
    change "bridge.vlan.add" (VlanChange) -> DevChanged,
        "Has a port carry VLANs",
        |daemon, _, change| daemon.change_vlans(&change, true),
        |daemon, change| daemon.vlans_to_set(&change, true).and_then(|set| daemon.plan_set(&set));
    change "bridge.vlan.del" (VlanChange) -> DevChanged,
        "Has a port carry VLANs no more",
        |daemon, _, change| daemon.change_vlans(&change, false),
        |daemon, change| daemon.vlans_to_set(&change, false).and_then(|set| daemon.plan_set(&set));
    show "core.show" (Nothing) -> CoreShow,
        "Workers since their start, and the pumps that run on them",
        |daemon, _, _| Ok(daemon.show_cores());
    change "core.add" (CoreTarget) -> CoreChanged,
        "Starts a worker on one more core, or has a drained one take groups again",
        |daemon, _, target| daemon.add_core(target),
        |daemon, target| daemon.plan_add_core(target);
    change "core.drain" (CoreTarget) -> CoreChanged,
        "Has a worker take no more groups, and those that it has go to the others",
        |daemon, _, target| daemon.drain_core(target),
        |daemon, target| daemon.plan_drain_core(target);
    change "core.del" (CoreTarget) -> CoreChanged,
        "Ends the worker of a core that was drained",
        |daemon, _, target| daemon.delete_core(target),
        |daemon, target| daemon.plan_delete_core(target);
    show "core.plan" (Nothing) -> CorePlan,
        "How what is placed can be spread better over the workers, by what it did since this was last asked",
        |daemon, _, _| daemon.balance_cores(false);
    change "core.balance" (Nothing) -> CorePlan,
        "Spreads what is placed as core.plan says",
        |daemon, _, _| daemon.balance_cores(true),
        |daemon, _| daemon.plan_balance_cores();
    show "metrics.show" (Nothing) -> MetricsText,
        "What is scraped, as one text",
        |daemon, _, _| Ok(MetricsText { text: crate::operator::metrics::text(daemon.reading(), &daemon.scrapers) });
    show "sample" (Nothing) -> Sample,
        "What all queues and workers stand at, at one time: what rates are worked out of",
        |daemon, _, _| Ok(daemon.sample());
    show "inspect" (Inspect) -> Inspected,
        "All that there is, as one document of the type State, or what stands at a path of it",
        |daemon, asker, asked| daemon.inspect(&asked, asker.role);
    show "events" (Follow) -> EventPage,
        "What happened; with `follow`, each further event comes as a notification `event`",
        |daemon, asker, follow| daemon.subscribe(asker.client, follow);
    show "capture" (CaptureRequest) -> CaptureBegun,
        "Frames of a network device: once it is answered, pcapng follows on the connection until either side ends it",
        |_, _, _| Err(Fault::usage("a capture is asked for on a connection to the operator socket, with an `id`"));
    show "log.show" (Nothing) -> LogShow,
        "What is logged, of everybody and of single devices",
        |daemon, _, _| Ok(daemon.show_log());
    change "log.set" (LogSet) -> LogShow,
        "Changes what is logged, until the daemon ends or a file is applied that says",
        |daemon, _, set| daemon.set_log(&set),
        |daemon, set| daemon.check_log(&set).map(|_| ConfigPlan::default());
    show "dry_run" (DryRun) -> ConfigPlan,
        "What a change would do and whom it would disrupt, checked as far as that can be told; changes nothing",
        |daemon, asker, asked| daemon.dry_run(asked, asker.role);
    show "config.dump" (Nothing) -> Dump,
        "What runs, as a configuration file",
        |daemon, _, _| daemon.dump();
    show "config.diff" (ConfigText) -> ConfigPlan,
        "What applying a file would change, and whom it would disrupt",
        |daemon, asker, text| daemon.diff(&text, asker.role);
    change "config.apply" (ConfigApply) -> ConfigPlan,
        "Makes what runs what a file says: all of it, or nothing",
        |daemon, _, given| daemon.apply(&given),
        |daemon, given| daemon.plan_apply(&given);
}

/// The names of all methods.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    METHODS.iter().map(|method| method.name)
}

/// Parameters of a method that takes none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

impl Daemon {
    /// Calls a method. None: there is no such method.
    pub(crate) fn call(
        &mut self,
        method: &str,
        params: Value,
        asker: &Asker,
    ) -> Option<Result<String, Fault>> {
        let method = METHODS.iter().find(|known| known.name == method)?;
        if !asker.role.may(method) {
            return Some(Err(self.refuse(method.name, asker)));
        }
        Some(if method.is_change {
            self.change(method, params, asker)
        } else {
            (method.call)(self, asker, params)
        })
    }

    /// Says what a change would do.
    fn dry_run(&mut self, asked: DryRun, role: Role) -> Result<ConfigPlan, Fault> {
        role.may_rehearse(&asked.params)?;
        let changes = || METHODS.iter().filter(|method| method.is_change).map(|method| method.name);
        match METHODS.iter().find(|known| known.name == asked.method).and_then(|method| method.plan) {
            Some(plan) => plan(self, asked.params),
            None => {
                let shown = crate::fault::printable(&asked.method);
                let fault = Fault::usage(format!("`{shown}` is no method that changes something"));
                Err(fault.at("method").given(asked.method).expected(changes()))
            }
        }
    }

    /// Calls a method that changes something, and logs who asked for what, and what came of it.
    fn change(&mut self, method: &Method, params: Value, asker: &Asker) -> Result<String, Fault> {
        let asked = match method.name {
            // Its steps are told as events, each for itself.
            "config.apply" => json!({ "file": params.get("file"), "force": params.get("force") }).to_string(),
            _ => params.to_string(),
        };
        let asked = told_of(asked);
        let result = if self.is_stopping() {
            Err(Fault::new(Kind::Runtime, "the daemon is stopping").retryable())
        } else {
            (method.call)(self, asker, params)
        };
        let outcome = match &result {
            Ok(_) => "ok".to_owned(),
            // It may repeat what was asked for.
            Err(fault) => told_of(fault.message.clone()),
        };
        let Caller { uid, pid, comm, .. } = &asker.caller;
        tracing::info!(method = method.name, %asked, uid, pid, comm, outcome, "operator");
        result
    }
}

/// What was asked for or answered, as it stands in the log: its beginning, if it is long.
pub(crate) fn told_of(mut asked: String) -> String {
    let len = asked.len();
    if len > LONGEST_TOLD {
        asked.truncate(asked.floor_char_boundary(LONGEST_TOLD));
        asked += &format!("... ({len} bytes)");
    }
    asked
}

/// Bytes of what was asked for, and of what is said of it, that stand in the log.
const LONGEST_TOLD: usize = 64 * 1024;

fn read<T: serde::de::DeserializeOwned>(params: Value) -> Result<T, Fault> {
    serde_json::from_value(params).map_err(|error| {
        let text = error.to_string();
        if text.ends_with("there are no fields") {
            return Fault::usage("this method takes no parameters");
        }
        let fault = Fault::usage(format!("parameters: {text}"));
        match unknown_field(&text) {
            Some((field, near)) => fault.at(field).hint(format!("did you mean {near}?")),
            None => fault,
        }
    })
}

/// The unknown field that serde named, and the nearest of those that it expected.
fn unknown_field(text: &str) -> Option<(&str, &str)> {
    let mut words = text.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let field = words.next()?;
    Some((field, crate::fault::nearest(field, words)?))
}

/// An answer as the JSON text that it is sent as. No `RawValue`: with that feature of serde_json a request whose object has its key is read as
/// the JSON inside of a string, as deep as anybody likes.
pub(crate) fn text_of<T: Serialize>(answer: &T) -> Result<String, Fault> {
    serde_json::to_string(answer).map_err(|error| Fault::new(Kind::Runtime, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_stands_in_the_log_up_to_its_bound() {
        let asked = |len: usize| "x".repeat(len - 2) + "\u{e9}";
        assert_eq!(told_of(asked(LONGEST_TOLD)), asked(LONGEST_TOLD));
        let told = told_of(asked(LONGEST_TOLD + 1));
        assert_eq!(told, format!("{}... ({} bytes)", "x".repeat(LONGEST_TOLD - 1), LONGEST_TOLD + 1));
    }
}
