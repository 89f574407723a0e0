//! Containment of panics: a call into a pump that unwinds ends the pump, not the worker.
//!
//! The process's panic hook would format and print on the worker; while a contained call runs, it is replaced by a
//! note of where the panic was, in memory of the thread's own. Panics elsewhere reach the hook that was there before.
//! A panic inside a panic's own unwinding aborts the process; nothing can contain that.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;

/// A panic that was caught, as it is carried off the worker: nothing of it is formatted or dropped there.
pub(crate) struct Caught {
    payload: Box<dyn Any + Send>,
    place: Place,
}

/// Calls into foreign code; a panic becomes an error.
#[inline]
pub(crate) fn contained<R>(call: impl FnOnce() -> R) -> Result<R, Caught> {
    CONTAINED.set(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    CONTAINED.set(false);
    result.map_err(|payload| Caught { payload, place: PLACE.get() })
}

/// Puts the hook in front of the process's own, once.
pub(crate) fn install_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // A thread whose locals are gone is no worker.
            if CONTAINED.try_with(Cell::get).unwrap_or(false) {
                PLACE.set(Place::of(info));
            } else {
                previous(info);
            }
        }));
    });
}

impl Caught {
    /// What the panic said and where, shortened. Not on the worker: it allocates.
    pub(crate) fn message(&self) -> String {
        let said = if let Some(text) = self.payload.downcast_ref::<&'static str>() {
            text
        } else if let Some(text) = self.payload.downcast_ref::<String>() {
            text.as_str()
        } else {
            "a panic without text"
        };
        let mut message: String = said.chars().take(LONGEST_MESSAGE).collect();
        if message.len() < said.len() {
            message.push('…');
        }
        let file = String::from_utf8_lossy(&self.place.file[..usize::from(self.place.length)]);
        if file.is_empty() { message } else { format!("{message} ({file}:{})", self.place.line) }
    }
}

impl std::fmt::Debug for Caught {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Caught").field(&self.message()).finish()
    }
}

/// Where a panic was: the end of the file's path, which names it best.
#[derive(Clone, Copy)]
struct Place {
    file: [u8; LONGEST_FILE],
    length: u8,
    line: u32,
}

impl Place {
    const UNKNOWN: Place = Place { file: [0; LONGEST_FILE], length: 0, line: 0 };

    fn of(info: &PanicHookInfo<'_>) -> Place {
        let Some(location) = info.location() else { return Place::UNKNOWN };
        let path = location.file().as_bytes();
        let path = &path[path.len().saturating_sub(LONGEST_FILE)..];
        let mut place = Place { line: location.line(), length: path.len() as u8, ..Place::UNKNOWN };
        place.file[..path.len()].copy_from_slice(path);
        place
    }
}

thread_local! {
    /// Set while this thread is inside `contained`.
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
    /// Where its last contained panic was.
    static PLACE: Cell<Place> = const { Cell::new(Place::UNKNOWN) };
}

const LONGEST_MESSAGE: usize = 200;
const LONGEST_FILE: usize = 96;

#[cfg(test)]
mod tests {
    use super::*;

    fn message_of(call: impl FnOnce()) -> String {
        install_hook();
        contained(call).expect_err("it panics").message()
    }

    #[test]
    fn panic_becomes_its_text_and_place() {
        let message = message_of(|| panic!("queue {} is odd", 3));
        assert!(message.starts_with("queue 3 is odd (") && message.contains("contain.rs:"), "{message}");
        assert!(message_of(|| panic!("plain")).starts_with("plain ("));
        assert!(message_of(|| std::panic::panic_any(7u8)).starts_with("a panic without text ("));
    }

    #[test]
    fn long_message_is_shortened_at_a_character() {
        let message = message_of(|| panic!("{}", "ü".repeat(500)));
        assert!(message.starts_with(&"ü".repeat(LONGEST_MESSAGE)) && message.contains('…'), "{message}");
        assert!(message.chars().count() < 2 * LONGEST_MESSAGE);
    }

    #[test]
    fn call_that_returns_keeps_its_value() {
        assert_eq!(contained(|| 7).expect("no panic"), 7);
    }
}
