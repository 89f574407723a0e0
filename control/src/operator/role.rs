//! What a client of an operator socket may do: which of the two sockets it came by decides, and nothing that it says.
//!
//! A viewer sees what there is and what happens; whatever changes something, or shows what guests send, is an administrator's.

use serde_json::Value;

use crate::fault::{Fault, Kind};
use crate::operator::config::names_namespaces_by_path;
use crate::operator::methods::Method;

/// By which socket a client came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The operator socket: everything.
    Administrator,
    /// The view-only socket.
    Viewer,
}

impl Role {
    /// Its name, as `hello` tells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::Administrator => "administrator",
            Role::Viewer => "viewer",
        }
    }

    /// Whether it may call this method.
    pub(crate) fn may(self, method: &Method) -> bool {
        self == Role::Administrator || (!method.is_change && !PRIVATE.contains(&method.name))
    }

    /// Checks that it may have said what a change with these parameters would do: whoever only looks has control wait for no
    /// name service.
    ///
    /// # Errors
    /// A viewer gives a name of an account.
    pub(crate) fn may_rehearse(self, params: &Value) -> Result<(), Fault> {
        let is_name = |keyword: &&&str| {
            params.get(**keyword).and_then(Value::as_str).is_some_and(|word| word.parse::<u32>().is_err())
        };
        if self == Role::Administrator {
            return Ok(());
        }
        if let Some(keyword) = ACCOUNTS.iter().find(is_name) {
            let what = format!("dry_run: names of accounts ({keyword}) are not looked up for viewers");
            return Err(Fault::new(Kind::Permission, what)
                .at(*keyword)
                .hint("a number, or the operator socket (--ctl)"));
        }
        let netns = params.pointer("/attributes/netns").and_then(Value::as_str).unwrap_or_default();
        if netns.contains('/') {
            return Err(of_paths());
        }
        params.get("text").and_then(Value::as_str).map_or(Ok(()), |text| self.may_diff(text))
    }

    /// Checks that it may be told what a file with this text would change: whoever only looks has control look at no path of their
    /// choice, which may lead to a file system that does not answer.
    ///
    /// # Errors
    /// A viewer names a path.
    pub(crate) fn may_diff(self, text: &str) -> Result<(), Fault> {
        match self == Role::Viewer && names_namespaces_by_path(text) {
            true => Err(of_paths()),
            false => Ok(()),
        }
    }
}

fn of_paths() -> Fault {
    let what = "paths of network namespaces are not looked at for viewers";
    Fault::new(Kind::Permission, what).at("netns").hint("the name of one, or the operator socket (--ctl)")
}

/// What names accounts, among the parameters of changes.
const ACCOUNTS: [&str; 2] = ["owner", "group"];

/// What changes nothing, and is not for everybody all the same: what guests send, and a measurement that begins anew for whoever asks next.
const PRIVATE: [&str; 2] = ["capture", "core.plan"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::operator::methods::METHODS;

    #[test]
    fn viewers_have_nothing_looked_up_outside_the_daemon() {
        let file = |netns: &str| format!("[[device]]\nname = \"a\"\n\"net\\u006es\" = \"{netns}\"\n");
        for (params, is_refused) in [
            (json!({ "name": "a", "owner": "root" }), true),
            (json!({ "name": "a", "owner": "0", "group": "0" }), false),
            (json!({ "name": "a", "attributes": { "netns": "/net/host/x" } }), true),
            (json!({ "name": "a", "attributes": { "netns": "blue" } }), false),
            (json!({ "file": "f", "text": file("/net/host/x") }), true),
            (json!({ "file": "f", "text": file("blue") }), false),
            (json!({ "file": "f", "text": "[" }), false),
        ] {
            assert_eq!(Role::Viewer.may_rehearse(&params).is_err(), is_refused, "{params}");
            assert!(Role::Administrator.may_rehearse(&params).is_ok());
        }
        assert!(Role::Viewer.may_diff(&file("../x")).is_err() && Role::Viewer.may_diff(&file("x")).is_ok());
    }

    #[test]
    fn viewers_may_call_these_and_nothing_else() {
        let of_viewers: Vec<&str> =
            METHODS.iter().filter(|method| Role::Viewer.may(method)).map(|method| method.name).collect();
        let known = [
            "rpc.discover",
            "hello",
            "mgmtdev.show",
            "port.show",
            "dev.show",
            "dev.config.show",
            "dev.vstats.show",
            "dev.why",
            "bridge.vlan.show",
            "core.show",
            "metrics.show",
            "sample",
            "inspect",
            "events",
            "log.show",
            "dry_run",
            "config.dump",
            "config.diff",
        ];
        assert_eq!(of_viewers, known, "a new one is thought over before it is shown to everybody");
        assert!(METHODS.iter().all(|method| Role::Administrator.may(method)));
    }
}
