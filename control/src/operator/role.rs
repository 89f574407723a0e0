//! What a client of an operator socket may do: which of the two sockets it came by decides, and nothing that it says.
//!
//! A viewer sees what there is and what happens; whatever changes something, or shows what guests send, is an administrator's.

use serde_json::Value;

use crate::fault::{Fault, Kind};
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
        match ACCOUNTS.iter().find(is_name) {
            Some(keyword) if self == Role::Viewer => {
                let what = format!("dry_run: names of accounts ({keyword}) are not looked up for viewers");
                Err(Fault::new(Kind::Permission, what)
                    .at(*keyword)
                    .hint("a number, or the operator socket (--ctl)"))
            }
            _ => Ok(()),
        }
    }
}

/// What names accounts, among the parameters of changes.
const ACCOUNTS: [&str; 2] = ["owner", "group"];

/// What changes nothing, and is not for everybody all the same: what guests send, and a measurement that begins anew for whoever asks next.
const PRIVATE: [&str; 2] = ["capture", "core.plan"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::methods::METHODS;

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
