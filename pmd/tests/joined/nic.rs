//! A guest's NIC: the driver's rings of the test's own, and the device behind them.

use super::*;

pub(super) const GPA: u64 = 0x4000_0000;
pub(super) const MEMORY: u64 = 32 << 20;
pub(super) const RING: u16 = 256;

pub(super) struct Nobody;

impl Watcher for Nobody {
    fn pump_ended(&self) {
        panic!("a pump ended");
    }
}

/// What a guest agreed on, and how large its buffers are.
#[derive(Clone, Copy)]
pub(super) struct Setup {
    pub(super) format: Format,
    pub(super) features: Features,
    pub(super) pairs: u16,
    pub(super) buffer: usize,
    pub(super) mtu: u16,
    pub(super) spoofchk: bool,
    pub(super) flood_pps: Option<&'static str>,
    pub(super) vlan: Option<&'static str>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            format: Format::Split,
            features: Features::VERSION_1 | F_MRG_RXBUF,
            pairs: 1,
            buffer: 1600,
            mtu: 1500,
            spoofchk: false,
            flood_pps: None,
            vlan: None,
        }
    }
}

/// A guest's NIC: the driver's rings, and the device behind them.
pub(super) struct Nic {
    pub(super) device: Box<dyn VdpaDevice>,
    pub(super) rings: Vec<Box<dyn DriverRing>>,
    pub(super) counters: Vec<Arc<QueueCounters>>,
    /// Its queues start where they stopped.
    pub(super) goes_on: bool,
    pub(super) setup: Setup,
    pub(super) features: Features,
    pub(super) memory: HostMemory,
    pub(super) map: Arc<GuestMap>,
    /// Buffers that are posted, by pair.
    pub(super) posted: Vec<BTreeMap<u32, DriverBuffer>>,
    pub(super) next_token: u32,
    pub(super) free: u64,
    pub(super) placer: Placer,
    pub(super) mac: Mac,
    /// Its queues have kick descriptors.
    pub(super) kicks: bool,
    pub(super) kicked: BTreeMap<u16, Arc<EventFd>>,
    /// How long a start waits for a worker.
    pub(super) within: Duration,
    pub(super) positions: Arc<PositionPage>,
}

impl Nic {
    pub(super) fn new(mgmtdev: &mut dyn ManagementDevice, name: &str, setup: Setup, engine: &Engine) -> Nic {
        let mac = Mac::from_name(name);
        let word = if setup.spoofchk { "on" } else { "off" };
        let flood = setup.flood_pps.map(|pps| ("flood_pps", pps));
        let vlan = setup.vlan.map(|vlan| ("vlan", vlan));
        let attributes = [("spoofchk", word)].into_iter().chain(flood).chain(vlan);
        let net = NetSpec { mac: Some(mac), seed: None, mtu: Some(setup.mtu), max_vqp: Some(setup.pairs) };
        let mut spec = DeviceSpec::net(name, net);
        spec.attributes = attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let device = mgmtdev.create(&spec, DeviceHost::unheard()).unwrap();
        let features = match setup.format {
            Format::Split => setup.features,
            Format::Packed => setup.features | Features::RING_PACKED,
        };
        assert!(device.facts().features.contains(features));
        let memory = HostMemory::allocate("test", MEMORY).unwrap();
        let map = Arc::new(memory.guest_map(GPA).unwrap());
        let core = parts::core_of(name, engine);
        let placer = Placer {
            name: name.to_owned(),
            engine: engine.clone(),
            core_of: Arc::new(move |_| core),
            watcher: Arc::new(Nobody),
        };
        Nic {
            device,
            rings: Vec::new(),
            counters: (0..setup.pairs * 2).map(|_| Arc::default()).collect(),
            goes_on: false,
            posted: vec![BTreeMap::new(); setup.pairs.into()],
            next_token: 0,
            free: GPA + (1 << 20),
            setup,
            features,
            memory,
            map,
            placer,
            mac,
            kicks: false,
            kicked: BTreeMap::new(),
            within: WITHIN,
            positions: PositionPage::anonymous().unwrap(),
        }
    }

    /// Starts every pair, `enabled` of them for receiving.
    pub(super) fn start(&mut self, enabled: u16) {
        self.try_start(enabled).unwrap();
    }

    pub(super) fn try_start(&mut self, enabled: u16) -> Result<(), ServeError> {
        let size = RingSize::new(self.setup.format, RING.into()).unwrap();
        let layout = Layout::new(self.setup.format, size);
        self.rings.clear();
        for index in 0..self.setup.pairs * 2 {
            let at = u64::from(index) * layout.total.next_multiple_of(64);
            let config = DriverConfig {
                size,
                features: self.features,
                map: Arc::clone(&self.map),
                areas: layout.at(GPA + at),
                position: Position::START,
            };
            self.rings.push(match self.setup.format {
                Format::Split => Box::new(config.start_split().unwrap()),
                Format::Packed => Box::new(config.start_packed().unwrap()),
            });
        }
        self.device.negotiated(self.features).unwrap();
        for group in 0..self.setup.pairs {
            self.start_pair(group, group < enabled)?;
        }
        Ok(())
    }

    /// Has the device serve a pair from the start of its rings.
    pub(super) fn start_pair(&mut self, group: u16, enabled: bool) -> Result<(), ServeError> {
        let size = RingSize::new(self.setup.format, RING.into()).unwrap();
        let layout = Layout::new(self.setup.format, size);
        let attention = Arc::new(EventFd::new().unwrap());
        if self.kicks {
            let kicks = [group * 2, group * 2 + 1].map(|index| (index, Arc::new(EventFd::new().unwrap())));
            self.kicked.extend(kicks);
        }
        let kept = |index: u16| self.positions.slot(index.into()).unwrap().load();
        let binding = |index: u16| {
            let areas =
                layout.at(self.memory.address() + u64::from(index) * layout.total.next_multiple_of(64));
            QueueBinding {
                index,
                enabled,
                format: self.setup.format,
                config: QueueConfig {
                    size,
                    features: self.features,
                    map: Arc::clone(&self.map),
                    desc_user_addr: areas.desc,
                    driver_user_addr: areas.driver,
                    device_user_addr: areas.device,
                    position: kept(index).filter(|_| self.goes_on).unwrap_or(Position::START),
                    keeper: self.positions.slot(index.into()).unwrap(),
                    skip_used: false,
                },
                record: None,
                kick: self.kicked.get(&index).cloned(),
                call: None,
                counters: Arc::clone(&self.counters[usize::from(index)]),
                fault: FaultReporter::new(Arc::clone(&attention)),
            }
        };
        let queues = vec![binding(group * 2), binding(group * 2 + 1)];
        self.device.queues().start(group, queues, &self.placer, self.within)
    }

    pub(super) fn stop(&mut self) {
        for group in 0..self.setup.pairs {
            self.device.queues().stop(group, WITHIN).unwrap();
        }
    }

    pub(super) fn allocate(&mut self, len: usize) -> u64 {
        let at = self.free;
        self.free += len as u64 + 7;
        if self.free > GPA + MEMORY {
            self.free = GPA + (1 << 20);
            return self.allocate(len);
        }
        at
    }

    /// Posts receive buffers on a pair.
    pub(super) fn post(&mut self, pair: u16, count: usize) {
        for _ in 0..count {
            let len = self.setup.buffer;
            let buffer = DriverBuffer { gpa: self.allocate(len), len: len as u32, writable: true };
            let token = self.next_token;
            self.next_token += 1;
            self.rings[usize::from(pair) * 2].add(&[buffer], token).unwrap();
            self.posted[usize::from(pair)].insert(token, buffer);
        }
        self.rings[usize::from(pair) * 2].publish();
        self.kick(pair * 2);
    }

    pub(super) fn kick(&self, queue: u16) {
        if let Some(kick) = self.kicked.get(&queue) {
            kick.signal();
        }
    }

    /// Sends a frame behind a header.
    pub(super) fn send(&mut self, pair: u16, header: NetHeader, frame: &[u8]) {
        let ours = header_len(self.features);
        let mut bytes = header.to_bytes()[..ours].to_vec();
        bytes.extend_from_slice(frame);
        let gpa = self.allocate(bytes.len());
        self.map.resolve(gpa, bytes.len() as u64).unwrap().write(&bytes);
        let ring = &mut self.rings[usize::from(pair) * 2 + 1];
        let deadline = Instant::now() + SOON;
        while ring.free_slots() == 0 {
            assert!(Instant::now() < deadline);
            ring.collect(&mut [Completion::default(); 64]).unwrap();
        }
        ring.add(&[DriverBuffer { gpa, len: bytes.len() as u32, writable: false }], 0).unwrap();
        ring.publish();
        self.kick(pair * 2 + 1);
    }

    pub(super) fn send_plain(&mut self, pair: u16, frame: &[u8]) {
        self.send(pair, NetHeader::default(), frame);
    }

    /// What has arrived on a pair: header and frame.
    pub(super) fn received(&mut self, pair: u16) -> Vec<(NetHeader, Vec<u8>)> {
        let mut done = [Completion::default(); 64];
        let count = self.rings[usize::from(pair) * 2].collect(&mut done).unwrap();
        let mut frames = Vec::new();
        let mut chains = done[..count].iter();
        while let Some(first) = chains.next() {
            let mut bytes = self.bytes(pair, first);
            let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
            for _ in 1..buffers {
                let next = chains.next().expect("all buffers of a frame are published at once");
                bytes.extend(self.bytes(pair, next));
            }
            let header = NetHeader::from_bytes(&bytes[..12].try_into().unwrap());
            frames.push((header, bytes[12..].to_vec()));
        }
        frames
    }

    pub(super) fn bytes(&mut self, pair: u16, completion: &Completion) -> Vec<u8> {
        let buffer = self.posted[usize::from(pair)].remove(&completion.token).unwrap();
        let mut bytes = vec![0; completion.written as usize];
        self.map.resolve(buffer.gpa, bytes.len() as u64).unwrap().read(&mut bytes);
        bytes
    }

    /// Waits until `count` frames have arrived on a pair.
    pub(super) fn expect(&mut self, pair: u16, count: usize) -> Vec<(NetHeader, Vec<u8>)> {
        let deadline = Instant::now() + SOON;
        let mut frames = Vec::new();
        while frames.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} frames arrived", frames.len());
            frames.extend(self.received(pair));
        }
        assert_eq!(frames.len(), count);
        frames
    }

    pub(super) fn stats(&self, queue: u16) -> QueueStats {
        self.counters[usize::from(queue)].snapshot()
    }

    pub(super) fn example(&self, queue: u16, reason: DropReason) -> Option<Example> {
        self.stats(queue).examples.into_iter().find(|(other, _)| *other == reason).map(|(_, example)| example)
    }

    pub(super) fn drops(&self, queue: u16, reason: DropReason) -> u64 {
        self.stats(queue).drops.into_iter().find(|(other, _)| *other == reason).unwrap().1
    }

    /// Waits until so many frames of a queue are counted, and no more: whoever has them has them a moment before.
    pub(super) fn expect_packets(&self, queue: u16, count: u64) {
        let deadline = Instant::now() + SOON;
        while self.stats(queue).packets != count {
            assert!(Instant::now() < deadline, "{count} of {:?}", self.stats(queue));
        }
    }

    /// Waits until so many frames of a queue were dropped for a reason.
    pub(super) fn expect_drops(&self, queue: u16, reason: DropReason, count: u64) {
        let deadline = Instant::now() + SOON;
        while self.drops(queue, reason) != count {
            assert!(Instant::now() < deadline, "{reason:?}: {:?}", self.stats(queue));
        }
    }
}
