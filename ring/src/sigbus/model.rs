//! A slot under loom: a handler that looks at it while it is retracted and published anew.

use loom::sync::Arc;
use loom::thread;

use slot::Slot;

#[path = "slot.rs"]
mod slot;

mod atomics {
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
}

#[test]
fn reader_beside_the_writer_has_one_whole_range_or_none() {
    loom::model(|| {
        let slot = Arc::new(Slot::new());
        slot.publish(0x1000, 0x10, 1);
        let writer = {
            let slot = Arc::clone(&slot);
            thread::spawn(move || slot.publish(0x2000, 0x20, 2))
        };
        let seen = slot.read();
        assert!([None, Some((0x1000, 0x10, 1)), Some((0x2000, 0x20, 2))].contains(&seen), "{seen:x?}");
        writer.join().unwrap();
        assert_eq!(slot.read(), Some((0x2000, 0x20, 2)));
    });
}

#[test]
fn retracted_slot_is_free_and_keeps_no_poison() {
    loom::model(|| {
        let slot = Arc::new(Slot::new());
        slot.publish(0x1000, 0x10, 1);
        assert!(slot.poison());
        assert!(!slot.poison());
        let writer = {
            let slot = Arc::clone(&slot);
            thread::spawn(move || slot.publish(0, 0, 1))
        };
        let seen = slot.read();
        assert!([None, Some((0x1000, 0x10, 1))].contains(&seen), "{seen:x?}");
        writer.join().unwrap();
        assert_eq!(slot.read(), None);
        assert!(!slot.is_poisoned());
    });
}
