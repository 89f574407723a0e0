//! The host as a port of a link or a bridge: a device whose other side is a kernel TAP, and no guest.
//!
//! It is opened when it is made, so that what is wrong is told at once if the kernel answers in time, and again by its session whenever the interface
//! went away. Its receive queues are what the kernel is given, its transmit queues what the kernel sends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::joined::{FEATURES, MAX_PAIRS, Members, bridge_port, port_words, served_by, set_port};
use crate::counters::QueueCounters;
use crate::later;
use crate::net::fabric::{Fabric, Port, Side};
use crate::net::netdev::{NetdevSink, NetdevSource, NetdevWatch};
use crate::net::nic::Nic;
use crate::net::plan::Offer;
use crate::net::tap::{TapNetdev, TapSpec, check_ifname, check_namespace, namespace_path};
use crate::notify::EventFd;
use crate::vdpa::{
    AttributeInfo, ClassOps, ClassSpec, ConfigSpace, DeviceSpec, DriverError, Ended, Facts, HostEnd,
    NetdevChange, Placer, QueueBinding, Queues, ServeError, ServedBy, Stopped, Stuck, Unfit, VdpaDevice,
};

/// The attribute that makes a device the host's.
pub(super) const TAP: AttributeInfo = AttributeInfo {
    name: "tap",
    value: "IFNAME",
    help: "the host is the guest: a kernel TAP interface, found or made, in place of a socket",
    live: None,
};

/// Where its interface is.
pub(super) const NETNS: AttributeInfo = AttributeInfo {
    name: "netns",
    value: "NAME",
    help: "the network namespace of the TAP interface, as `ip netns` names it (default: ringwayd's own)",
    live: None,
};

/// A device.
#[derive(Debug)]
pub(super) struct HostPort {
    port: Port,
    nic: Nic,
    spec: TapSpec,
    /// Open: to come into service, or in it, until the interface is gone.
    netdev: Option<TapNetdev>,
    /// Ringway made the interface, so that it is made again should somebody take it away.
    is_own: bool,
    watch: Option<Arc<NetdevWatch>>,
}

impl HostPort {
    /// The interface that a device is to be, if it is to be one.
    pub(super) fn asked(spec: &DeviceSpec) -> Result<Option<TapSpec>, Unfit> {
        let netns = netns(spec)?;
        let Some(name) = spec.attributes.get(TAP.name).cloned() else {
            return match netns {
                Some(_) => Err(Unfit::new(NETNS.name, "netns: goes with tap IFNAME")),
                None => Ok(None),
            };
        };
        check_ifname(&name).map_err(|why| Unfit::new(TAP.name, why))?;
        let ClassSpec::Net(net) = spec.class else {
            return Err(Unfit::new(TAP.name, "tap: goes with network devices"));
        };
        for (is_given, attribute, why) in [
            (
                net.mac.is_some(),
                "mac",
                "the host gives its interface an address (ip link set IFNAME address MAC)",
            ),
            (spec.features.is_some(), "device_features", "there is no guest to offer them to"),
            (spec.attributes.contains_key("spoofchk"), "spoofchk", "the host is trusted"),
            (spec.attributes.contains_key("flood_pps"), "flood_pps", "the host is trusted"),
        ] {
            if is_given {
                return Err(Unfit::new(attribute, format!("{attribute}: {why}")));
            }
        }
        let (queues, mtu) = (net.max_vqp.unwrap_or(1), net.mtu.unwrap_or(1500));
        Ok(Some(TapSpec { name, netns, queues, mtu, seed: net.seed }))
    }

    /// Opens the interface as one of those that are joined, if a device of the host's is asked for.
    pub(super) fn join(
        fabric: &Arc<Fabric>,
        members: &mut Members,
        spec: &DeviceSpec,
    ) -> Result<Option<HostPort>, DriverError> {
        let Some(tap) = HostPort::asked(spec)? else { return Ok(None) };
        let port = bridge_port(fabric, None, &spec.attributes)?;
        let device = HostPort::open(port, spec, tap)?;
        members.add(&spec.name, &device.port);
        Ok(Some(device))
    }

    fn open(port: Port, spec: &DeviceSpec, tap: TapSpec) -> Result<HostPort, DriverError> {
        let plan = Offer { mgmtdev: "the host", features: FEATURES, max_pairs: MAX_PAIRS }.plan(spec)?;
        let wanted = tap.clone();
        let netdev = match later::within(OPEN_WITHIN, move || TapNetdev::open(&wanted, true)) {
            // Of a device that was removed just now, whose session winds up: this one's session waits for it.
            Some(Err(DriverError::Conflict { held_by: Some(holder), .. }))
                if holder.ends_with(&own_pid()) =>
            {
                None
            }
            Some(other) => Some(other?),
            // The kernel takes its time (somebody else changes interfaces): it is the session that waits for it.
            None => None,
        };
        let mut nic = Nic::new(plan, 0);
        nic.set_mac(netdev.as_ref().map_or_else(|| tap.own_mac(), TapNetdev::mac));
        let is_own = netdev.as_ref().is_none_or(TapNetdev::is_own);
        Ok(HostPort { port, nic, spec: tap, netdev, is_own, watch: None })
    }

    fn is_gone(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.is_gone())
    }
}

/// The network namespace that is asked for: a name of `ip netns`, or the path of one.
pub(super) fn netns(spec: &DeviceSpec) -> Result<Option<String>, Unfit> {
    let Some(netns) = spec.attributes.get(NETNS.name) else { return Ok(None) };
    let is_name = !netns.contains('/') && !["", ".", ".."].contains(&netns.as_str());
    if netns.chars().any(char::is_control) || !(is_name || netns.starts_with('/')) {
        let why = "must be a name as `ip netns list` has it, or a path that begins with a slash";
        return Err(Unfit::new(NETNS.name, format!("netns {}: {why}", netns.escape_debug())));
    }
    check_namespace(&namespace_path(Some(netns))).map_err(|why| Unfit::new(NETNS.name, why))?;
    Ok(Some(netns.clone()))
}

/// How long control waits for the kernel's interface; what is wrong with one that takes longer is told by its session.
const OPEN_WITHIN: Duration = Duration::from_secs(1);

/// Why an interface is opened anew.
const GONE: &str = "the kernel's interface is gone";

/// How this process is named as a holder.
fn own_pid() -> String {
    format!("(pid {})", std::process::id())
}

impl VdpaDevice for HostPort {
    fn facts(&self) -> Facts {
        self.nic.facts()
    }

    fn config(&mut self) -> &mut dyn ConfigSpace {
        &mut self.nic
    }

    fn queues(&mut self) -> &mut dyn Queues {
        self
    }

    fn class(&mut self) -> ClassOps<'_> {
        ClassOps::Net(&mut self.nic)
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let tap = (TAP.name.to_owned(), self.spec.name.clone());
        let netns = self.spec.netns.clone().map(|netns| (NETNS.name.to_owned(), netns));
        [tap].into_iter().chain(netns).chain(port_words(&self.port)).collect()
    }

    fn set(&mut self, attributes: &BTreeMap<String, String>, within: Duration) -> Result<(), Stuck> {
        set_port(&mut self.port, attributes, within)
    }

    fn host_end(&mut self) -> Option<&mut dyn HostEnd> {
        Some(self)
    }

    fn removed(&mut self) {
        if let Some(netdev) = self.netdev.take() {
            netdev.remove();
        }
    }
}

impl HostEnd for HostPort {
    fn name(&self) -> &str {
        &self.spec.name
    }

    fn open(
        &mut self,
        counters: &[Arc<QueueCounters>],
        attention: Arc<EventFd>,
        placer: &Placer,
        within: Duration,
    ) -> Result<(), DriverError> {
        // It was taken away: what is there now is another one.
        if self.is_gone() {
            (self.netdev, self.watch) = (None, None);
        }
        let netdev = match self.netdev.take() {
            Some(netdev) => netdev,
            None => {
                let netdev = TapNetdev::open(&self.spec, self.is_own)?;
                self.is_own = netdev.is_own();
                self.nic.set_mac(netdev.mac());
                netdev
            }
        };
        let netdev = &*self.netdev.insert(netdev);
        let watch = NetdevWatch::new(attention);
        let (offloads, mtu) = (netdev.offloads(), self.spec.mtu);
        let counted = |index: usize| counters.get(index).map(Arc::clone).unwrap_or_default();
        let mut sides = Vec::new();
        for (pair, (reader, writer)) in netdev.queues()?.into_iter().enumerate() {
            let (rx, tx) = (pair * 2, pair * 2 + 1);
            let sink = NetdevSink::new(writer, offloads, mtu, counted(rx), Arc::clone(&watch));
            let source = NetdevSource::new(reader, offloads, mtu, counted(tx), Arc::clone(&watch));
            sides.push((rx as u16, true, Side::Sink(Box::new(sink))));
            sides.push((tx as u16, true, Side::Source(Box::new(source))));
        }
        self.port
            .attach(sides, placer, within)
            .map_err(|error| DriverError::Misconfigured(error.to_string()))?;
        self.watch = Some(watch);
        Ok(())
    }

    fn is_own(&self) -> bool {
        self.is_own
    }

    fn gone(&self) -> Option<String> {
        self.is_gone().then(|| GONE.to_owned())
    }

    fn changes(&mut self) -> Vec<NetdevChange> {
        self.netdev.as_mut().map(TapNetdev::changes).unwrap_or_default()
    }
}

impl Queues for HostPort {
    fn start(
        &mut self,
        group: u16,
        _queues: Vec<QueueBinding>,
        _berth: &Placer,
        _within: Duration,
    ) -> Result<(), ServeError> {
        Err(ServeError::Refused(format!("pair {group} is the host's and has no guest")))
    }

    /// The kernel's queues have no position.
    fn stop(&mut self, group: u16, within: Duration) -> Result<Stopped, Stuck> {
        self.port.stop(group, within)?;
        Ok(Stopped::default())
    }

    fn served_by(&self, group: u16) -> Option<ServedBy> {
        served_by(&self.port, group)
    }

    fn beside(&self) -> usize {
        self.port.running()
    }

    fn follow(&mut self, within: Duration) -> Result<(), ServeError> {
        self.port.follow_cores(within)
    }

    fn take_ended(&mut self, within: Duration) -> Vec<(u16, Ended)> {
        self.port.take_ended(within)
    }
}
