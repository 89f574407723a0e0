//! The template of a hardware driver: what `docs/writing-a-driver.md` walks through. It drives the [`Card`] of the model bus
//! beside it; a driver of a real function has the same parts in the same order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_pmd::dma::{Cancel, MapError, Window};
use ringway_pmd::driver::Driver;
use ringway_pmd::net::nic::Nic;
use ringway_pmd::net::plan::Offer;
use ringway_pmd::net::{NIC, NetConfig};
use ringway_pmd::vdpa::{
    Class, ClassOps, ConfigSpace, DataPath, DeviceHost, DeviceSpec, DriverError, Ended, Facts, Kept,
    ManagementDevice, MgmtInfo, NetOps, Placer, QueueBinding, Queues, ServeError, ServedBy, Stopped, Stuck,
    VdpaDevice,
};
use ringway_ring::guest::GuestMap;

use crate::card::{
    Card, Cause, ID, LOOP_CARD, PAIRS, RESET, STATUS, STATUS_LINK, STATUS_READY, WINDOW_BYTES,
};

/// 1. The driver: which devices of the bus it drives, and how it takes one over.
#[derive(Debug, Default)]
pub struct LoopCardDriver;

impl Driver<Card> for LoopCardDriver {
    fn name(&self) -> &'static str {
        "loopcard"
    }

    fn at_most(&self) -> MgmtInfo {
        describe(String::new())
    }

    fn matches(&self, card: &Card) -> bool {
        card.read(ID) == LOOP_CARD
    }

    fn probe(&mut self, name: &str, card: Card) -> Result<Box<dyn ManagementDevice>, DriverError> {
        if card.read(STATUS) & STATUS_READY == 0 {
            return Err(DriverError::Conflict {
                what: format!("{name} is not ready"),
                held_by: None,
                hint: "reset it, or plug it in again".to_owned(),
            });
        }
        Ok(Box::new(LoopCard { name: name.to_owned(), card }))
    }
}

fn describe(name: String) -> MgmtInfo {
    MgmtInfo {
        name,
        class: Class::Net,
        max_supported_vqs: u32::from(PAIRS) * 2,
        // One function, one device.
        max_devices: Some(1),
        features: NIC,
        attributes: Vec::new(),
        functions: None,
        summary: "a model card that gives back what is sent",
        check: |_, _| Ok(()),
    }
}

/// 2. The management device: what operators see of the function, and what makes devices on it.
struct LoopCard {
    name: String,
    card: Card,
}

impl ManagementDevice for LoopCard {
    fn info(&self) -> MgmtInfo {
        describe(self.name.clone())
    }

    fn create(&mut self, spec: &DeviceSpec, host: DeviceHost) -> Result<Box<dyn VdpaDevice>, DriverError> {
        let plan = Offer { mgmtdev: "a loop card", features: NIC, max_pairs: PAIRS }.plan(spec)?;
        // What the card has to tell comes from a thread of its own, as an interrupt does.
        self.card.on_interrupt(Some(Box::new(move |cause| match cause {
            Cause::Link => host.config_changed(),
            Cause::Error => host.needs_reset("the card reports an error"),
            Cause::Gone => host.gone("the card fell off the bus"),
        })));
        Ok(Box::new(LoopDevice {
            window: Window::new(self.card.dma(), 0, WINDOW_BYTES),
            nic: Nic::new(plan, 256),
            card: self.card.clone(),
            kept: Kept::default(),
        }))
    }
}

/// 3. The device: a guest's NIC, as long as it lives.
struct LoopDevice {
    card: Card,
    nic: Nic,
    /// What of the guest's memory the card can reach: nobody unmaps it but this.
    window: Window,
    kept: Kept,
}

impl LoopDevice {
    fn has_link(&self) -> bool {
        self.card.read(STATUS) & STATUS_LINK != 0
    }
}

impl VdpaDevice for LoopDevice {
    fn facts(&self) -> Facts {
        Facts { data_path: DataPath::Hardware, dma: true, ..self.nic.facts() }
    }

    fn config(&mut self) -> &mut dyn ConfigSpace {
        self.nic.set_link(self.has_link());
        &mut self.nic
    }

    fn queues(&mut self) -> &mut dyn Queues {
        self
    }

    fn class(&mut self) -> ClassOps<'_> {
        ClassOps::Net(self)
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    fn set_map(&mut self, map: Option<&Arc<GuestMap>>, cancel: Cancel<'_>) -> Result<(), MapError> {
        self.window.set_map(map.map(|map| &**map), cancel)
    }

    fn reset(&mut self, within: Duration) -> Result<(), Stuck> {
        self.card.write(RESET, 1);
        let until = Instant::now() + within;
        while self.card.read(STATUS) & STATUS_READY == 0 {
            if Instant::now() >= until {
                return Err(Stuck::Device("the card is not ready after its reset".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.nic.reset();
        Ok(())
    }

    fn removed(&mut self) {
        self.card.on_interrupt(None);
    }
}

/// 4. What only network devices do.
impl NetOps for LoopDevice {
    fn net_config(&self) -> NetConfig {
        NetConfig { link_up: self.has_link(), ..self.nic.config() }
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DriverError> {
        self.nic.set_mtu(mtu)
    }
}

/// 5. The queues: given to the card, and taken back from it.
impl Queues for LoopDevice {
    fn start(
        &mut self,
        group: u16,
        queues: Vec<QueueBinding>,
        placer: &Placer,
        _within: Duration,
    ) -> Result<(), ServeError> {
        self.kept.note(group, &queues);
        // Whoever takes queues out unasked says so to the watcher, and is then asked why.
        self.card.enable(group, queues, Arc::clone(&placer.watcher)).map_err(ServeError::Refused)
    }

    fn stop(&mut self, group: u16, within: Duration) -> Result<Stopped, Stuck> {
        if !self.card.disable(group, within) {
            return Err(Stuck::Device(format!("the card still has pair {group}")));
        }
        Ok(Stopped { positions: self.kept.take(group), ended: None })
    }

    fn served_by(&self, group: u16) -> Option<ServedBy> {
        self.card.is_enabled(group).then_some(ServedBy::Hardware)
    }

    fn follow(&mut self, _within: Duration) -> Result<(), ServeError> {
        // No core serves it.
        Ok(())
    }

    fn take_ended(&mut self, _within: Duration) -> Vec<(u16, Ended)> {
        let lost = self.card.take_lost().into_iter();
        lost.map(|group| (group, Ended::DeviceLost("the card gave the queues up".to_owned()))).collect()
    }
}
