//! What there is to make devices with, for checks that need no daemon.

use ringway_pmd::bus::pci::Address;
use ringway_pmd::bus::pci::host;
use ringway_pmd::vdpa::{MgmtInfo, MgmtKindInfo};

use crate::devices::addresses::Addresses;
use crate::devices::naming::check_name_of;
use crate::fault::{Fault, nearest, printable};

/// What there is to make devices with.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Management devices that are there.
    pub mgmtdevs: Vec<MgmtInfo>,
    /// Kinds, of which any name makes one.
    pub kinds: Vec<MgmtKindInfo>,
    /// For checks without a daemon: what a function of the PCI bus can be at most, whatever its address. None: those that are
    /// there are known.
    pub function: Option<MgmtInfo>,
    /// What addresses are made of that are not given.
    pub addresses: Addresses,
}

impl Known {
    /// The management device of this name: one that is there, or one that would be.
    pub fn find(&self, name: &str) -> Option<MgmtInfo> {
        let there = self.mgmtdevs.iter().find(|info| info.name == name).cloned();
        let made = || {
            let (kind, _) = self.kind(name).ok()?;
            Some(MgmtInfo { name: name.to_owned(), ..kind.device.clone() })
        };
        let function = || {
            name.strip_prefix(PCI)?.parse::<Address>().ok()?;
            Some(MgmtInfo { name: name.to_owned(), ..self.function.clone()? })
        };
        there.or_else(made).or_else(function)
    }

    /// The kind of `KIND/NAME`, and the name.
    ///
    /// # Errors
    /// No kind makes it, or the name cannot be one.
    pub fn kind<'n>(&self, name: &'n str) -> Result<(&MgmtKindInfo, &'n str), Fault> {
        let found = name.split_once('/');
        let found =
            found.and_then(|(kind, rest)| Some((self.kinds.iter().find(|info| info.name == kind)?, rest)));
        let (kind, rest) = found.ok_or_else(|| no_such_mgmtdev(name, self))?;
        if rest.is_empty() {
            return Err(Fault::usage(format!("{name} lacks a name behind the slash"))
                .at("mgmtdev")
                .hint(format!("{}/NAME, a name of your choice", kind.name)));
        }
        check_name_of("a management device", rest).map_err(|fault| fault.at("mgmtdev"))?;
        Ok((kind, rest))
    }
}

/// There is no management device of this name, and none can be made by it.
pub(super) fn no_such_mgmtdev(name: &str, known: &Known) -> Fault {
    let fault = Fault::not_found(format!(
        "Fail to find the specified management device: there is no `{}`",
        printable(name)
    ))
    .at("mgmtdev");
    if let Some(address) = name.strip_prefix(PCI) {
        return match address.parse::<Address>() {
            Ok(address) => fault.hint(host::missing(address)),
            Err(bad) => fault.hint(bad.to_string()),
        };
    }
    // A kind that was written wrong.
    let (kind, rest) = name.split_once('/').unwrap_or((name, ""));
    let is_kind = known.kinds.iter().any(|info| info.name == kind);
    if let Some(near) = nearest(kind, known.kinds.iter().map(|info| info.name))
        .filter(|near| !is_kind && check_name_of(near, rest).is_ok())
    {
        return fault.hint(format!("did you mean {near}/{rest}?"));
    }
    if is_kind {
        return fault.hint("ringway mgmtdev show");
    }
    match nearest(name, known.mgmtdevs.iter().map(|info| info.name.as_str())) {
        Some(near) => fault.hint(format!("did you mean {near}?")),
        None => fault.hint("ringway mgmtdev show"),
    }
}

/// What the names of the PCI bus's functions begin with.
const PCI: &str = "pci/";

#[cfg(test)]
pub(crate) mod tests {
    use ringway_pmd::net::{F_MAC, F_MQ, F_MTU};
    use ringway_pmd::vdpa::{AttributeInfo, Class};
    use ringway_ring::features::Features;

    use super::*;

    /// What this build has, with a `sim/net` whose attribute is `swap`.
    pub(crate) fn known() -> Known {
        let mgmtdevs = vec![MgmtInfo {
            name: "sim/net".into(),
            class: Class::Net,
            max_supported_vqs: 32,
            max_devices: None,
            features: Features::VERSION_1 | F_MAC | F_MTU | F_MQ,
            attributes: vec![AttributeInfo { name: "swap", value: "on|off", help: "" }],
            summary: "",
            check: |_, _| Ok(()),
        }];
        Known { mgmtdevs, ..crate::devices::drivers::known() }
    }
}
