//! Has a virtio function read an address that nobody mapped for it: what the IOMMU has to stop, and the kernel has to log. It shows
//! that a clean log means something.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_pmd::bus::pci::host::HostBus;
use ringway_pmd::bus::pci::{Examiner, Function};
use ringway_pmd::bus::{Bus, BusEvent};
use ringway_pmd::dma::Division;
use ringway_pmd::virtio::rings::OwnRings;
use ringway_pmd::virtio::transport::{QueueSetup, Transport};
use ringway_ring::features::Features;
use ringway_ring::queue::{Completion, DriverBuffer, Format};

use crate::Result;

/// Does so with the first virtio function that the bus looks at.
pub(crate) fn run() -> Result<()> {
    let look = |function: &Arc<dyn Function>| lead_astray(&**function).map_err(|error| error.to_string());
    let mut bus = HostBus::start(vec![Examiner { wants: |id| id.vendor == VIRTIO, look }])?;
    let begun = Instant::now();
    loop {
        for event in bus.take() {
            if let BusEvent::Announced { address, device } = event {
                device.seen?;
                println!("{address} was told to read {STRAY:#x}");
                return Ok(());
            }
        }
        if begun.elapsed() > LIMIT {
            return Err("no virtio function is bound to vfio-pci".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
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
const TRANSMIT: u16 = 1;
const ENTRIES: u16 = 16;
const STRAY: u64 = 0x9_0000_0000;
const LIMIT: Duration = Duration::from_secs(10);
/// Some functions give a descriptor back that they could not read, and some do not.
const SOON: Duration = Duration::from_secs(1);
