//! What is scraped, made for all who ask for it at the same time: by one scraper's thread at a time, and so often a second at most.
//!
//! Nobody is given what is older than what he asked. The others wait for whoever makes it. Threads: the scrapers'.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two makings.
const EVERY: Duration = Duration::from_millis(250);

/// The text that was made last.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<Option<Made>>);

#[derive(Debug)]
struct Made {
    /// When it was begun: all in it is from then or later.
    begun: Instant,
    text: Arc<str>,
}

impl Shared {
    /// What is scraped, for one who asked at `came`. None: it could not be made.
    pub(super) fn text(&self, came: Instant, make: impl FnOnce() -> Option<String>) -> Option<Arc<str>> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &*last {
            if made.begun >= came {
                return Some(Arc::clone(&made.text));
            }
            std::thread::sleep((made.begun + EVERY).saturating_duration_since(Instant::now()));
        }
        let begun = Instant::now();
        let text: Arc<str> = make()?.into();
        *last = Some(Made { begun, text: Arc::clone(&text) });
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn text_is_made_once_for_all_who_asked_before_and_so_often_at_most() {
        let (shared, made, begin) = (Shared::default(), AtomicU64::new(0), Instant::now());
        let make = || Some(made.fetch_add(1, Ordering::Relaxed).to_string());
        let text = |came: Instant| shared.text(came, make).unwrap().to_string();
        assert_eq!(text(begin), "0");
        // One who asked before it was begun has the same; one who asks now has another.
        assert_eq!(text(begin), "0");
        assert_eq!(text(Instant::now()), "1");
        assert!(begin.elapsed() >= EVERY, "{:?}", begin.elapsed());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..4).for_each(|_| drop(text(Instant::now()))));
            }
        });
        let most = begin.elapsed().as_millis() / EVERY.as_millis() + 1;
        let made_so_far = u128::from(made.load(Ordering::Relaxed));
        assert!(made_so_far > 4 && made_so_far <= most, "{made_so_far} of {most}");
        // What could not be made is nobody's.
        assert_eq!(shared.text(Instant::now(), || None), None);
        assert_eq!(text(begin), made.load(Ordering::Relaxed).saturating_sub(1).to_string());
    }
}
