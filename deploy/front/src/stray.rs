//! Has a virtio function, or an NVMe controller, read an address that nobody mapped for it: what the IOMMU has to stop, and the kernel has to log. It shows
//! that a clean log means something.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_pmd::bus::pci::host::HostBus;
use ringway_pmd::bus::pci::{Address, Examiner, Function};
use ringway_pmd::bus::{Bus, BusEvent};
use ringway_pmd::dma::Division;
use ringway_pmd::nvme::command::Command;
use ringway_pmd::nvme::controller::Controller;
use ringway_pmd::virtio::rings::OwnRings;
use ringway_pmd::virtio::transport::{QueueSetup, Transport};
use ringway_ring::features::Features;
use ringway_ring::queue::{Completion, DriverBuffer, Format};

use crate::Result;

/// Does so with the function at an address, or the first virtio function that the bus looks at.
pub(crate) fn run(address: Option<&str>) -> Result<()> {
    let wanted = address.map(str::parse::<Address>).transpose()?;
    // Nothing is done to any of them before it is the one.
    type Astray = (Arc<dyn Function>, fn(Arc<dyn Function>) -> Result<()>);
    let virtio = |function: &Arc<dyn Function>| -> std::result::Result<Astray, String> {
        Ok((Arc::clone(function), |function| lead_astray(&*function)))
    };
    let nvme = |function: &Arc<dyn Function>| -> std::result::Result<Astray, String> {
        Ok((Arc::clone(function), lead_controller_astray))
    };
    let examiners = vec![
        Examiner { wants: |id| id.vendor == VIRTIO, look: virtio },
        Examiner { wants: |id| id.class == NVME, look: nvme },
    ];
    let mut bus = HostBus::start(examiners)?;
    let begun = Instant::now();
    loop {
        for event in bus.take() {
            let BusEvent::Announced { device, .. } = event else { continue };
            if wanted.is_some_and(|wanted| device.address != wanted) {
                continue;
            }
            let (function, lead) = device.seen?;
            lead(function)?;
            println!("{} was told to read {STRAY:#x}", device.address);
            return Ok(());
        }
        if begun.elapsed() > LIMIT {
            return Err("no such function is bound to vfio-pci".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A write of what is at the address: it is read for that. A controller that may not may fail.
fn lead_controller_astray(function: Arc<dyn Function>) -> Result<()> {
    let controller = Controller::open(function)?;
    let mut pair = controller.make_pair(ENTRIES, 0)?;
    pair.submit_at(Command::write(LAST_NAMESPACE, 0, 1), STRAY).ok_or("it has no room")?;
    pair.ring();
    let begun = Instant::now();
    while pair.reap().is_none() && begun.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(1));
    }
    pair.ring();
    controller.delete_pair(&pair)?;
    Ok(())
}

fn lead_astray(function: &dyn Function) -> Result<()> {
    let transport = Transport::find(function)?;
    transport.reset(LIMIT)?;
    let features = Features::VERSION_1 | Features::ACCESS_PLATFORM;
    transport.negotiate(features)?;
    let size = transport.queue_size(TRANSMIT, Format::Split, ENTRIES).ok_or("it cannot transmit")?;
    let own = Division::of(&*function.dma()).ok_or("there are no addresses for its ring")?.own;
    let rings = OwnRings::new(function.dma(), own, features, &[size])?;
    let mut ring = rings.begin(0)?.boxed();
    let (size, areas) = rings.layout(0).ok_or("there is no ring")?;
    let doorbell = transport.enable(TRANSMIT, &QueueSetup { size, areas, vector: None })?;
    transport.start()?;
    ring.add(&[DriverBuffer { gpa: STRAY, len: 64, writable: false }], 0)?;
    ring.publish();
    doorbell.ring();
    let begun = Instant::now();
    while ring.collect(&mut [Completion::default()])? == 0 && begun.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(1));
    }
    transport.reset(LIMIT)?;
    Ok(())
}

const VIRTIO: u16 = 0x1af4;
const NVME: u32 = 0x01_08_02;
/// Of the machine's controller, nobody's disk.
const LAST_NAMESPACE: u32 = 3;
const TRANSMIT: u16 = 1;
const ENTRIES: u16 = 16;
const STRAY: u64 = 0x9_0000_0000;
const LIMIT: Duration = Duration::from_secs(10);
/// Some functions give a descriptor back that they could not read, and some do not.
const SOON: Duration = Duration::from_secs(1);
