//! A function of the host's as a port of a bridge: a device whose other side is a wire, and no guest.
//!
//! It is opened by its session, and again whenever it broke the rules or needs a reset. Its receive queue is what the function
//! is given to send, its transmit queue what the function received.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::joined::{FEATURES, Members, bridge_port, port_words, served_by, set_port};
use crate::bus::pci::Address;
use crate::counters::QueueCounters;
use crate::net::fabric::{BridgeSettings, Fabric, Port, Side};
use crate::net::nic::Nic;
use crate::net::plan::Offer;
use crate::net::uplink::{Uplink, UplinkFunction, UplinkOptions, UplinkWatch};
use crate::net::vlan::Vlans;
use crate::net::{Mac, NetConfig};
use crate::notify::EventFd;
use crate::vdpa::{
    AttributeInfo, ClassOps, ClassSpec, ConfigSpace, DeviceHost, DeviceSpec, DriverError, Ended, Facts,
    HostEnd, NetOps, NetdevChange, Placer, QueueBinding, Queues, ServeError, ServedBy, Stopped, Stuck, Unfit,
    VdpaDevice,
};

/// The attribute that makes a device a bridge's way out.
pub(super) const UPLINK: AttributeInfo = AttributeInfo {
    name: "uplink",
    value: "pci/ADDRESS",
    help: "a function of the host's is the bridge's way to the network, in place of a socket",
    live: None,
};

/// A device.
#[derive(Debug)]
pub(super) struct UplinkPort {
    port: Port,
    nic: Nic,
    /// The management device that the function is.
    name: String,
    function: Arc<dyn UplinkFunction>,
    host: DeviceHost,
    work: Option<Box<dyn Uplink>>,
    /// What the bridge has learned.
    settings: Arc<BridgeSettings>,
    /// The stations that a selective function was told last, and what came of it.
    told: Option<Told>,
    watch: Option<Arc<UplinkWatch>>,
}

/// What a selective function was told.
#[derive(Debug)]
struct Told {
    stations: Vec<Mac>,
    /// What it lacks.
    lack: Option<NetdevChange>,
    at: Instant,
}

impl Told {
    /// Nothing is to be said: it has all of them, or was asked just now.
    fn holds(&self, stations: &[Mac]) -> bool {
        self.stations == stations && (self.lack.is_none() || self.at.elapsed() < AGAIN_AFTER)
    }
}

impl UplinkPort {
    /// Checks what is asked for, if an uplink is: the management device that it is to be.
    pub(super) fn asked(spec: &DeviceSpec) -> Result<Option<String>, Unfit> {
        let Some(name) = spec.attributes.get(UPLINK.name).cloned() else { return Ok(None) };
        let is_function = name.strip_prefix(PCI).is_some_and(|address| address.parse::<Address>().is_ok());
        if !is_function {
            let why = format!(
                "uplink {}: must be a function of the PCI bus, as in pci/0000:01:10.0 (ringway mgmtdev show)",
                name.escape_debug()
            );
            return Err(Unfit::new(UPLINK.name, why));
        }
        let ClassSpec::Net(net) = spec.class else {
            return Err(Unfit::new(UPLINK.name, "uplink: goes with network devices"));
        };
        let its_own = "the function has its own address, and what passes has the guests'";
        for (is_given, attribute, why) in [
            (net.mac.is_some(), "mac", its_own),
            (
                net.max_vqp.is_some_and(|pairs| pairs > 1),
                "max_vqp",
                "one core serves a bridge, which one pair keeps busy",
            ),
            (spec.features.is_some(), "device_features", "there is no guest to offer them to"),
            (
                spec.attributes.contains_key("tap"),
                "tap",
                "a port is the host's interface or an uplink, not both",
            ),
            (spec.attributes.contains_key("netns"), "netns", "goes with tap IFNAME"),
            (
                spec.attributes.contains_key("spoofchk"),
                "spoofchk",
                "all the network's addresses are behind it",
            ),
            (
                spec.attributes.contains_key("flood_pps"),
                "flood_pps",
                "what the network sends to all is for all",
            ),
        ] {
            if is_given {
                return Err(Unfit::new(attribute, format!("{attribute}: {why}")));
            }
        }
        Ok(Some(name))
    }

    /// Makes the function one of those that are joined. It is opened by its session.
    pub(super) fn join(
        fabric: &Arc<Fabric>,
        settings: &Arc<BridgeSettings>,
        members: &mut Members,
        spec: &DeviceSpec,
        function: Arc<dyn UplinkFunction>,
        host: DeviceHost,
    ) -> Result<UplinkPort, DriverError> {
        let Some(name) = UplinkPort::asked(spec)? else {
            return Err(DriverError::misconfigured("uplink: which function is missing"));
        };
        let facts = function.facts();
        let mut spec = spec.clone();
        if let ClassSpec::Net(net) = &mut spec.class {
            if let Some(mtu) = net.mtu.filter(|mtu| *mtu > facts.most_mtu) {
                let why = format!("mtu {mtu}: {name} has at most {}", facts.most_mtu);
                return Err(DriverError::Misconfigured(why));
            }
            net.mtu = net.mtu.or(facts.mtu);
        }
        let plan = Offer { mgmtdev: "an uplink", features: FEATURES, max_pairs: 1 }.plan(&spec)?;
        let mut nic = Nic::new(plan, 0);
        if let Some(mac) = facts.mac {
            nic.set_mac(mac);
        }
        nic.set_link(false);
        let port = bridge_port(fabric, None, &spec.attributes)?;
        let port = if facts.reflects { port.reflecting() } else { port };
        members.add(&spec.name, &port);
        let settings = Arc::clone(settings);
        Ok(UplinkPort { port, nic, name, function, host, work: None, settings, told: None, watch: None })
    }

    /// Who is behind the bridge's other ports: the devices' own addresses first, and few others of each port: a guest sends what
    /// source address it likes, and filters are everybody's on the host.
    fn stations(&self) -> Vec<Mac> {
        let mut stations = self.port.others();
        stations.sort_unstable();
        stations.dedup();
        let mut learned = self.settings.stations().seen();
        // A station of a VLAN that does not go out there is nobody's there.
        let vlans = self.port.vlans().cloned().unwrap_or_else(Vlans::default_of_a_port);
        let goes_out = |vid: u16| vid == 0 || vlans.holds(vid);
        learned.retain(|seen| {
            seen.slot != self.port.slot() && goes_out(seen.vid) && stations.binary_search(&seen.mac).is_err()
        });
        // The same ones each time, as long as they are there.
        learned.sort_unstable_by_key(|seen| (seen.slot, seen.mac));
        // Once, in however many VLANs.
        learned.dedup_by_key(|seen| (seen.slot, seen.mac));
        let few =
            learned.chunk_by(|one, next| one.slot == next.slot).flat_map(|its| its.iter().take(LEARNED));
        let mut few: Vec<Mac> = few.map(|seen| seen.mac).collect();
        few.sort_unstable();
        few.dedup();
        stations.extend(few);
        stations
    }

    /// The function touches no memory once this returns Ok.
    fn close(&mut self, within: Duration) -> Result<(), Stuck> {
        if let Some(work) = &mut self.work {
            work.close(within)?;
            (self.work, self.told) = (None, None);
        }
        self.nic.set_link(false);
        Ok(())
    }
}

impl VdpaDevice for UplinkPort {
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
        ClassOps::Net(self)
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let uplink = (UPLINK.name.to_owned(), self.name.clone());
        [uplink].into_iter().chain(port_words(&self.port)).collect()
    }

    fn set(&mut self, attributes: &BTreeMap<String, String>, within: Duration) -> Result<(), Stuck> {
        set_port(&mut self.port, attributes, within)
    }

    fn host_end(&mut self) -> Option<&mut dyn HostEnd> {
        Some(self)
    }
}

impl NetOps for UplinkPort {
    fn net_config(&self) -> NetConfig {
        NetConfig { link_up: self.work.as_ref().is_some_and(|work| work.has_link()), ..self.nic.config() }
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DriverError> {
        self.nic.set_mtu(mtu)
    }
}

impl HostEnd for UplinkPort {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(
        &mut self,
        counters: &[Arc<QueueCounters>],
        attention: Arc<EventFd>,
        placer: &Placer,
        within: Duration,
    ) -> Result<(), DriverError> {
        let stuck = |stuck: Stuck| DriverError::Resource {
            what: stuck.to_string(),
            source: std::io::ErrorKind::ResourceBusy.into(),
        };
        self.close(within).map_err(stuck)?;
        let watch = UplinkWatch::new(attention);
        let counted = |index: usize| counters.get(index).map(Arc::clone).unwrap_or_default();
        let mut work = self.function.open(UplinkOptions {
            mac: self.nic.config().mac,
            mtu: self.nic.mtu(),
            sent: counted(0),
            received: counted(1),
            watch: Arc::clone(&watch),
            host: self.host.clone(),
        })?;
        let sides = work.sides();
        self.work = Some(work);
        self.watch = Some(watch);
        let sides =
            sides.map(|(source, sink)| [(0, true, Side::Sink(sink)), (1, true, Side::Source(source))]);
        let attached = self.port.attach(sides.into_iter().flatten().collect(), placer, within);
        if let Err(error) = attached {
            // What is left of it is let go when the device is.
            let _ = self.close(within);
            return Err(DriverError::Misconfigured(error.to_string()));
        }
        Ok(())
    }

    fn is_own(&self) -> bool {
        true
    }

    fn gone(&self) -> Option<String> {
        match self.watch.as_ref()?.fault() {
            Some(fault) => Some(format!("the function broke the rules of its ring: {fault}")),
            None => self.work.as_ref()?.gone(),
        }
    }

    fn changes(&mut self) -> Vec<NetdevChange> {
        if self.work.as_ref().is_none_or(|work| !work.is_selective()) {
            return Vec::new();
        }
        let stations = self.stations();
        let is_done = self.told.as_ref().is_some_and(|told| told.holds(&stations));
        if let Some(work) = self.work.as_mut().filter(|_| !is_done) {
            let lack = work.set_stations(&stations).err();
            self.told = Some(Told { stations, lack, at: Instant::now() });
        }
        self.told.iter().filter_map(|told| told.lack.clone()).collect()
    }
}

impl Queues for UplinkPort {
    fn start(
        &mut self,
        group: u16,
        _queues: Vec<QueueBinding>,
        _berth: &Placer,
        _within: Duration,
    ) -> Result<(), ServeError> {
        Err(ServeError::Refused(format!("pair {group} is an uplink's and has no guest")))
    }

    /// Its queues have no position. Without them the function has nothing to do.
    fn stop(&mut self, group: u16, within: Duration) -> Result<Stopped, Stuck> {
        self.port.stop(group, within)?;
        self.close(within)?;
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

/// Addresses beside its device's own of which a port's frames are asked for.
const LEARNED: usize = 4;
/// What a selective function lacks is asked for once more.
const AGAIN_AFTER: Duration = Duration::from_secs(30);
/// What the names of the PCI bus's functions begin with.
const PCI: &str = "pci/";

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::net::side::{Sink, Source};
    use crate::net::uplink::UplinkFacts;
    use crate::vdpa::NetSpec;

    /// A selective function with so many filters.
    #[derive(Debug, Clone)]
    struct Few(usize, Arc<Mutex<Vec<Vec<Mac>>>>);

    impl UplinkFunction for Few {
        fn facts(&self) -> UplinkFacts {
            UplinkFacts { mac: None, most_mtu: 9000, mtu: None, reflects: true }
        }
        fn open(&self, _: UplinkOptions) -> Result<Box<dyn Uplink>, DriverError> {
            Ok(Box::new(self.clone()))
        }
    }

    impl Uplink for Few {
        fn sides(&mut self) -> Option<(Box<dyn Source>, Box<dyn Sink>)> {
            None
        }
        fn has_link(&self) -> bool {
            true
        }
        fn is_selective(&self) -> bool {
            true
        }
        fn set_stations(&mut self, stations: &[Mac]) -> Result<(), NetdevChange> {
            self.1.lock().unwrap().push(stations.to_vec());
            match stations.get(self.0) {
                None => Ok(()),
                Some(mac) => {
                    let what = format!("no filter is left for {mac}");
                    Err(NetdevChange { what, cure: String::new(), stops: false })
                }
            }
        }
        fn close(&mut self, _: Duration) -> Result<(), Stuck> {
            Ok(())
        }
    }

    #[test]
    fn selective_function_is_told_who_is_there_and_says_whom_it_has_no_filter_for() {
        let (fabric, settings) = Fabric::bridge("b", 0, Duration::from_secs(300), [1, 2]);
        let mut spec = DeviceSpec::net("up0", NetSpec::default());
        spec.attributes.insert(UPLINK.name.to_owned(), "pci/0000:01:10.0".to_owned());
        let (told, mut members) = (Arc::default(), Members::default());
        let function = Arc::new(Few(2, Arc::clone(&told)));
        let mut port = UplinkPort::join(
            &fabric,
            &settings,
            &mut members,
            &spec,
            function.clone(),
            DeviceHost::unheard(),
        )
        .unwrap();
        assert!(port.changes().is_empty() && told.lock().unwrap().is_empty(), "it is not open");
        port.work = Some(Box::new((*function).clone()));
        let others: Vec<Port> = (1..4).map(|_| fabric.port(None).unwrap()).collect();
        let mut fdb = settings.stations().empty_fdb().unwrap();
        let mac = |last| Mac([2, 0, 0, 0, 0, last]);
        let mut now = 1;
        let mut learns = |last, slot| {
            now += 1;
            fdb.learn(mac(last), slot, now);
            settings.stations().views(1)[0].show(&fdb, now, |_| true);
        };
        // Those behind the uplink itself are none.
        learns(9, port.port.slot());
        learns(2, others[0].slot());
        learns(1, others[1].slot());
        assert!(port.changes().is_empty());
        assert!(port.changes().is_empty());
        assert_eq!(*told.lock().unwrap(), [[mac(1), mac(2)]], "told once");
        learns(3, others[2].slot());
        let lacks =
            |port: &mut UplinkPort| port.changes().into_iter().map(|lack| lack.what).collect::<Vec<_>>();
        assert_eq!(lacks(&mut port), [format!("no filter is left for {}", mac(3))]);
        // What is missing is tried again, not at every look: each is a line in the host's log.
        assert_eq!((lacks(&mut port).len(), told.lock().unwrap().len()), (1, 2));
        port.told.as_mut().unwrap().at -= AGAIN_AFTER;
        assert_eq!((lacks(&mut port).len(), told.lock().unwrap().len()), (1, 3));
        // It moved to the network.
        learns(2, port.port.slot());
        assert!(lacks(&mut port).is_empty());
        assert_eq!(told.lock().unwrap().last().unwrap()[..], [mac(1), mac(3)]);
        // A guest that makes up addresses has a few, and the others keep theirs.
        (100..120).for_each(|last| learns(last, others[0].slot()));
        lacks(&mut port);
        let made_up: Vec<Mac> = (100..104).map(mac).collect();
        assert_eq!(*told.lock().unwrap().last().unwrap(), [&[mac(1), mac(3)], &made_up[..]].concat());
    }
}
