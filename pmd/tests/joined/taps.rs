//! A guest whose wire is a kernel TAP interface, and what the kernel makes of its frames.

use ringway_pmd::drivers::tap::TapKind;
use ringway_pmd::net::tap::{HEADER_BYTES, TapNetdev, TapReader, TapSpec, TapWriter};

use super::scene::{in_own_namespace, run};
use super::*;

/// The interface, joined by a bridge of the kernel's with another one, from which is read what it sends on.
pub(super) struct Wire {
    /// What the guests' devices are made of.
    pub(super) mgmtdev: Box<dyn ManagementDevice>,
    pub(super) host: Box<dyn VdpaDevice>,
    /// Of what the kernel is given, and of what it sends.
    counters: Vec<Arc<QueueCounters>>,
    reader: TapReader,
    writer: TapWriter,
    _other: TapNetdev,
}

impl Wire {
    /// In a namespace that this thread has for itself.
    pub(super) fn new(engine: &Engine) -> Wire {
        let core = engine.cores()[0];
        let tap = TapKind.make("rwx0", &BTreeMap::new(), core).unwrap();
        let spec = tap.implied(&DeviceSpec::net("a", NetSpec::default())).unwrap();
        Wire::of(tap, &spec, engine, Arc::new(move |_| core))
    }

    /// The interface is a port of a bridge.
    pub(super) fn of_bridge(
        bridge: Box<dyn ManagementDevice>,
        engine: &Engine,
        core_of: Arc<dyn Fn(u16) -> usize + Send + Sync>,
    ) -> Wire {
        let mut spec = DeviceSpec::net("rwx0", NetSpec::default());
        spec.attributes.insert("tap".to_owned(), "rwx0".to_owned());
        Wire::of(bridge, &spec, engine, core_of)
    }

    fn of(
        mut mgmtdev: Box<dyn ManagementDevice>,
        spec: &DeviceSpec,
        engine: &Engine,
        core_of: Arc<dyn Fn(u16) -> usize + Send + Sync>,
    ) -> Wire {
        let mut host = mgmtdev.create(spec, DeviceHost::unheard()).unwrap();
        let counters: Vec<Arc<QueueCounters>> = (0..2).map(|_| Arc::default()).collect();
        let placer =
            Placer { name: "rwx0".to_owned(), engine: engine.clone(), core_of, watcher: Arc::new(Nobody) };
        let attention = Arc::new(EventFd::new().unwrap());
        host.host_end().unwrap().open(&counters, attention, &placer, WITHIN).unwrap();
        let other = TapSpec { name: "rwx1".into(), netns: None, queues: 1, mtu: 1500, seed: None };
        let other = TapNetdev::open(&other, true).unwrap();
        let (reader, writer) = other.queues().unwrap().remove(0);
        run("for i in rwx0 rwx1; do sysctl -qw net.ipv6.conf.$i.disable_ipv6=1; ip link set $i up; done");
        run("ip link show br0 >/dev/null 2>&1 || ip link add br0 type bridge; ip link set br0 up");
        run(
            "sysctl -qw net.ipv6.conf.br0.disable_ipv6=1; ip link set rwx0 master br0; ip link set rwx1 master br0",
        );
        Wire { mgmtdev, host, counters, reader, writer, _other: other }
    }

    /// Has the other interface given a frame, which the kernel sends on.
    pub(super) fn give(&mut self, frame: &[u8]) {
        assert!(self.writer.push_bytes([0; HEADER_BYTES], frame, &[]));
        self.writer.submit();
        self.writer.reap();
    }

    /// Frames that came out at the other interface.
    pub(super) fn sent_on(&mut self) -> Vec<(NetHeader, Vec<u8>)> {
        let count = self.reader.peek(32).unwrap();
        let burst = self.reader.burst();
        let frame = |chain| {
            let parts = burst.readable(chain);
            let mut bytes = vec![0; parts.clone().map(|part| part.len()).sum()];
            let mut at = 0;
            parts.for_each(|part| at += part.read(&mut bytes[at..]));
            (
                NetHeader::from_bytes(&bytes[..HEADER_BYTES].try_into().unwrap()),
                bytes[HEADER_BYTES..].to_vec(),
            )
        };
        let frames = burst.chains().iter().map(frame).collect();
        self.reader.consume(count);
        frames
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.host.queues().stop(0, WITHIN).unwrap();
        self.host.removed();
    }
}

#[test]
fn backlog_of_a_guest_goes_to_the_kernel_in_batches() {
    in_own_namespace(|| {
        let engine = engine(1);
        let mut wire = Wire::new(&engine);
        let mut a = Nic::new(&mut *wire.mgmtdev, "a", Setup::default(), &engine);
        a.start(1);
        let bytes = [&[0; 12][..], &frame(Mac([0xff; 6]), a.mac, 60, 1)].concat();
        let gpa = a.allocate(bytes.len());
        a.map.resolve(gpa, bytes.len() as u64).unwrap().write(&bytes);
        let deadline = Instant::now() + SOON;
        for round in 1..=20 {
            // Seen all at once.
            for _ in 0..32 {
                let buffer = DriverBuffer { gpa, len: bytes.len() as u32, writable: false };
                a.rings[1].add(&[buffer], 0).unwrap();
            }
            a.rings[1].publish();
            let mut came = 0;
            while came < 32 {
                assert!(Instant::now() < deadline, "{came} of round {round}: {:?}", a.stats(1));
                came += wire.sent_on().len();
            }
            while a.rings[1].free_slots() < usize::from(RING) {
                assert!(Instant::now() < deadline);
                a.rings[1].collect(&mut [Completion::default(); 64]).unwrap();
            }
        }
        let written = || wire.counters[0].snapshot();
        while written().packets != 20 * 32 {
            assert!(Instant::now() < deadline, "{:?}", written());
        }
        let written = written();
        assert!(written.netdev_calls <= written.packets / 16, "{} calls", written.netdev_calls);
    });
}
