use ringway_ring::memory::{HostMemory, PageKind};

use super::*;
use crate::net::frame::Head;

/// A frame in memory of its own, behind a header of 12 bytes.
struct Bed {
    burst: Burst,
    bytes: Vec<u8>,
    _memory: HostMemory,
}

impl Bed {
    fn new(len: usize) -> Bed {
        let memory = HostMemory::allocate_on(PageKind::Base, "test", 1 << 20).unwrap();
        let map = Arc::new(memory.guest_map(0).unwrap());
        let mut bytes: Vec<u8> = (0..len).map(|at| (at * 7 + at / 256) as u8).collect();
        bytes.splice(12..14, [8, 6]);
        map.resolve(12, len as u64).unwrap().write(&bytes);
        let mut burst = Burst::new(map);
        assert!(burst.push_own(0, 0, len as u32 + 12));
        Bed { burst, bytes, _memory: memory }
    }

    /// Shows it; its first bytes are what was looked at, and other ones stand there by now.
    fn show(&self, counters: &QueueCounters, dropped: Option<DropReason>, at: u64) {
        self.show_looked_at(14, counters, dropped, at);
    }

    /// The same, where so many bytes were looked at.
    fn show_looked_at(
        &self,
        looked_at: usize,
        counters: &QueueCounters,
        dropped: Option<DropReason>,
        at: u64,
    ) {
        let mut beginning: Head = [0; 192];
        beginning[..looked_at].copy_from_slice(&self.bytes[..looked_at]);
        self.burst.map().resolve(12, 12).unwrap().write(&[0xdd; 12]);
        let looked_at = looked_at.try_into().unwrap();
        let frame = Frame { len: self.bytes.len() as u32, looked_at, ..Frames::EMPTY };
        let chain = &self.burst.chains()[0];
        let from = Passage {
            burst: &self.burst,
            chain,
            skip: 12,
            frame: &frame,
            beginning: &beginning,
            swap: false,
        };
        counters.capture(from, dropped, at);
    }
}

fn capture(filter: Option<&str>, snaplen: u32, only_drops: bool, bytes: usize) -> Arc<QueueCapture> {
    let filter = filter.map(|text| Filter::parse(text).unwrap());
    Arc::new(QueueCapture::new(Arc::new(Wanted { filter, snaplen, only_drops }), bytes).unwrap())
}

fn taken(capture: &QueueCapture, bytes: usize) -> Vec<u8> {
    let mut into = buffer(bytes).unwrap();
    assert!(capture.exchange(&mut into));
    into
}

#[test]
fn frame_is_shown_as_it_goes_on_to_everybody_who_wants_it_and_as_much_as_they_want() {
    let (bed, counters) = (Bed::new(300), QueueCounters::default());
    let all = capture(None, 1 << 18, false, 4096);
    let short = capture(Some("arp"), 20, false, 4096);
    let drops = capture(None, 60, true, 4096);
    let others = capture(Some("not arp"), 60, false, 4096);
    assert!(!counters.is_captured());
    for each in [&all, &short, &drops, &others] {
        assert!(counters.begin_capture(each) && counters.is_captured());
    }
    bed.show(&counters, None, 5);
    bed.show(&counters, Some(DropReason::Vlan), 6);
    counters.capture_bytes(&bed.bytes[..30], None, 7);
    let of = |capture: &QueueCapture| {
        let bytes = taken(capture, 4096);
        let told = |record: Record<'_>| (record.at, record.len, record.dropped, record.bytes.to_vec());
        records(&bytes).map(told).collect::<Vec<_>>()
    };
    let whole = bed.bytes.clone();
    let dropped = Some(DropReason::Vlan);
    assert_eq!(
        of(&all),
        [
            (5, 300, None, whole.clone()),
            (6, 300, dropped, whole.clone()),
            (7, 30, None, whole[..30].to_vec())
        ]
    );
    let beginning = whole[..20].to_vec();
    assert_eq!(
        of(&short),
        [(5, 300, None, beginning.clone()), (6, 300, dropped, beginning.clone()), (7, 30, None, beginning)]
    );
    assert_eq!(of(&drops), [(6, 300, dropped, whole[..60].to_vec())]);
    assert!(of(&others).is_empty());
    for (left, each) in [&all, &short, &drops, &others].iter().enumerate() {
        assert!(counters.end_capture(each));
        assert_eq!(counters.is_captured(), left < 3);
    }
    bed.show(&counters, None, 8);
    assert!(of(&all).is_empty() && counters.unseen() == 0);
}

#[test]
fn frame_that_finds_no_room_is_counted_and_the_next_says_so() {
    let (bed, counters) = (Bed::new(100), QueueCounters::default());
    let room = 2 * (RECORD_BYTES + 100);
    for (bytes, fit) in [(room - 1, 1), (room, 2), (room + 1, 2)] {
        let capture = capture(None, 1000, false, bytes);
        counters.begin_capture(&capture);
        (0..5).for_each(|at| bed.show(&counters, None, at));
        let first = taken(&capture, bytes);
        assert_eq!((records(&first).count(), capture.missed()), (fit, 5 - fit as u64), "{bytes}");
        bed.show(&counters, None, 9);
        let next = taken(&capture, bytes);
        assert_eq!(records(&next).map(|record| record.missed).collect::<Vec<_>>(), [5 - fit as u64]);
        // Nothing was allocated: what a worker writes to stays as large as it was made.
        assert_eq!((first.capacity(), next.capacity()), (bytes, bytes));
        counters.end_capture(&capture);
    }
}

#[test]
fn worker_goes_on_while_somebody_holds_the_buffer_or_the_list_and_what_it_could_not_show_is_counted() {
    let (bed, counters) = (Bed::new(100), QueueCounters::default());
    let capture = capture(None, 1000, false, 4096);
    counters.begin_capture(&capture);
    {
        let _held = capture.filled.lock().unwrap();
        bed.show(&counters, None, 1);
    }
    assert_eq!((capture.missed(), counters.unseen()), (1, 0));
    std::thread::scope(|scope| {
        let (held, is_held) = std::sync::mpsc::channel();
        let (go, may_go) = std::sync::mpsc::channel::<()>();
        let counters = &counters;
        scope.spawn(move || {
            counters.change_held(|| {
                held.send(()).unwrap();
                may_go.recv().unwrap();
            });
        });
        is_held.recv().unwrap();
        bed.show(counters, None, 2);
        let begun = Instant::now();
        assert!(!counters.end_capture(&capture), "it is held");
        assert!(begun.elapsed() >= EXCHANGE_WITHIN && counters.is_captured());
        go.send(()).unwrap();
    });
    assert_eq!((capture.missed(), counters.unseen()), (1, 1));
    // It stands in the list, and nothing is copied for it.
    bed.show(&counters, None, 3);
    counters.capture_bytes(&[0x55; 60], None, 4);
    assert!(counters.is_captured());
    assert_eq!((capture.missed(), records(&taken(&capture, 4096)).count()), (1, 0));
    assert!(counters.end_capture(&capture));
}

/// What stands in a buffer comes from a worker; what is cut off is not made up.
#[test]
fn records_end_where_the_bytes_do() {
    let (bed, counters) = (Bed::new(100), QueueCounters::default());
    let capture = capture(None, 1000, false, 4096);
    counters.begin_capture(&capture);
    (0..2).for_each(|at| bed.show(&counters, None, at));
    let bytes = taken(&capture, 4096);
    for len in 0..bytes.len() {
        assert_eq!(records(&bytes[..len]).count(), len / (RECORD_BYTES + 100), "{len}");
    }
}

#[test]
fn less_than_was_looked_at_of_a_frame_is_its_beginning() {
    let bed = Bed::new(300);
    for looked_at in [14, 18, 188, 192] {
        for snaplen in [14, 17, 60, 191, 192, 193, 299, 300, 301] {
            let (counters, all) = (QueueCounters::default(), capture(None, snaplen, false, 4096));
            assert!(counters.begin_capture(&all));
            bed.show_looked_at(looked_at, &counters, None, 5);
            let bytes = taken(&all, 4096);
            let record = records(&bytes).next().unwrap();
            let wanted = &bed.bytes[..300.min(snaplen as usize)];
            assert_eq!((record.len, record.bytes), (300, wanted), "{looked_at} {snaplen}");
        }
    }
}

#[test]
fn those_who_come_and_go_at_a_time_leave_it_said_whether_anybody_looks_on() {
    let counters = QueueCounters::default();
    for _ in 0..200 {
        let stays = capture(None, 60, false, 64);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let comes_and_goes = capture(None, 60, false, 64);
                    while !counters.begin_capture(&comes_and_goes) {}
                    assert!(counters.is_captured());
                    while !counters.end_capture(&comes_and_goes) {}
                });
            }
            scope.spawn(|| while !counters.begin_capture(&stays) {});
        });
        assert!(counters.is_captured());
        while !counters.end_capture(&stays) {}
        assert!(!counters.is_captured());
    }
}
