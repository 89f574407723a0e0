//! What a device tells the subsystem unasked.
//!
//! A device gets a [`DeviceHost`] when it is made and may keep it on any of its threads. Telling never waits and never
//! grows: there is room for one word of each kind, and one that was not heard yet stands for those that follow.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// What a device told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upcall {
    /// Its configuration space is another: the guest is told.
    ConfigChanged,
    /// It does not work any more until it is reset (virtio 1.3 §2.1.2): the guest is told.
    NeedsReset(String),
    /// It is not there any more: it is removed, and comes back if its management device can make it again.
    Gone(String),
}

/// The way from a device to the subsystem.
#[derive(Clone)]
pub struct DeviceHost(Arc<Line>);

struct Line {
    untold: Mutex<Untold>,
    wake: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default, PartialEq)]
struct Untold {
    config_changed: bool,
    needs_reset: Option<String>,
    gone: Option<String>,
}

impl fmt::Debug for DeviceHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceHost").finish_non_exhaustive()
    }
}

impl DeviceHost {
    /// A line whose other end is woken by `wake`, which must not wait, whenever there is something and was nothing.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> DeviceHost {
        DeviceHost(Arc::new(Line { untold: Mutex::default(), wake: Box::new(wake) }))
    }

    /// A line that nobody listens at, for devices that are made without a subsystem.
    pub fn unheard() -> DeviceHost {
        DeviceHost::new(|| {})
    }

    /// Configuration space changed.
    pub fn config_changed(&self) {
        self.tell(|untold| untold.config_changed = true);
    }

    /// The device needs a reset, and why, for people.
    pub fn needs_reset(&self, why: impl Into<String>) {
        let why = why.into();
        self.tell(|untold| untold.needs_reset = Some(why));
    }

    /// The device is gone, and why, for people.
    pub fn gone(&self, why: impl Into<String>) {
        let why = why.into();
        self.tell(|untold| untold.gone = Some(why));
    }

    /// What was told since the last time, in the order in which it is to be heard.
    pub fn take(&self) -> Vec<Upcall> {
        let Untold { config_changed, needs_reset, gone } = std::mem::take(&mut *self.untold());
        let changed = config_changed.then_some(Upcall::ConfigChanged);
        changed.into_iter().chain(needs_reset.map(Upcall::NeedsReset)).chain(gone.map(Upcall::Gone)).collect()
    }

    fn tell(&self, what: impl FnOnce(&mut Untold)) {
        let was_heard = {
            let mut untold = self.untold();
            let was_heard = *untold == Untold::default();
            what(&mut untold);
            was_heard
        };
        if was_heard {
            (self.0.wake)();
        }
    }

    /// The lock is held for an assignment.
    fn untold(&self) -> std::sync::MutexGuard<'_, Untold> {
        self.0.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn words_of_one_kind_are_one_word_and_none_is_lost() {
        let woken = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&woken);
        let host = DeviceHost::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let theirs = host.clone();
        for _ in 0..1000 {
            theirs.config_changed();
        }
        theirs.gone("unplugged");
        theirs.needs_reset("first");
        theirs.needs_reset("second");
        assert_eq!(woken.load(Ordering::Relaxed), 1, "until it was heard");
        let heard = [
            Upcall::ConfigChanged,
            Upcall::NeedsReset("second".to_owned()),
            Upcall::Gone("unplugged".to_owned()),
        ];
        assert_eq!(host.take(), heard);
        assert!(host.take().is_empty());
        theirs.config_changed();
        assert_eq!(host.take(), [Upcall::ConfigChanged]);
        assert_eq!(woken.load(Ordering::Relaxed), 2);
    }
}
