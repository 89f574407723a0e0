//! What is to be seen, and what keys do about it: no terminal here.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::Look;
use super::table::{Pane, Table};
use crate::operator::cli::requests::{LEAST_INTERVAL_MS, LONGEST_INTERVAL_MS};
use crate::operator::rates::Rates;

/// What is to be seen.
#[derive(Debug)]
pub(super) struct View {
    pub(super) pane: Pane,
    /// By pane: the column, and whether the largest stands first.
    sorts: [(usize, bool); Pane::ALL.len()],
    /// What names must contain.
    pub(super) filter: String,
    /// The filter is being typed.
    pub(super) is_typing: bool,
    pub(super) is_paused: bool,
    pub(super) has_colours: bool,
    pub(super) every: Duration,
    /// The first row that is shown.
    pub(super) first: usize,
    /// Rows that fit, as they were drawn last.
    pub(super) page: usize,
    pub(super) rates: Option<Rates>,
    pub(super) up_ns: u64,
    /// Which daemon it was that answered last.
    instance: Option<String>,
    /// What is to be known of the daemon.
    pub(super) notice: Option<String>,
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Act {
    Go,
    End,
    Every(Duration),
}

impl View {
    pub(super) fn new(every: Duration, has_colours: bool) -> View {
        View {
            pane: Pane::Devices,
            sorts: Pane::ALL.map(Pane::sorted_at_first),
            filter: String::new(),
            is_typing: false,
            is_paused: false,
            has_colours,
            every,
            first: 0,
            page: 1,
            rates: None,
            up_ns: 0,
            instance: None,
            notice: Some("waiting for a second look".to_owned()),
        }
    }

    /// Column, and whether the largest stands first.
    pub(super) fn sort(&self) -> (usize, bool) {
        self.sorts[self.pane as usize]
    }

    /// The rows of what is to be seen, from the first to the last.
    pub(super) fn table(&self) -> Table {
        let rates = self.rates.as_ref();
        rates.map_or_else(Table::default, |rates| Table::of(self.pane, rates, self.sort(), &self.filter))
    }

    /// A look came.
    pub(super) fn take(&mut self, look: Look) {
        match look {
            Look::Away(fault) => self.notice = Some(fault.to_string()),
            Look::First if self.instance.is_some() => {
                self.notice = Some("ringwayd was away, or is another one since: counted anew".to_owned());
            }
            Look::First => {}
            Look::Rates { instance, up_ns, rates } => {
                self.instance = Some(instance);
                self.notice = None;
                if !self.is_paused {
                    (self.rates, self.up_ns) = (Some(*rates), up_ns);
                }
            }
        }
    }

    /// A key was pressed.
    pub(super) fn key(&mut self, key: KeyEvent) -> Act {
        if key.kind == KeyEventKind::Release {
            return Act::Go;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if matches!(key.code, KeyCode::Char('c' | 'd')) { Act::End } else { Act::Go };
        }
        if self.is_typing {
            self.type_filter(key.code);
            return Act::Go;
        }
        match key.code {
            KeyCode::Char('q') => return Act::End,
            KeyCode::Char('d') => self.turn_to(Pane::Devices),
            KeyCode::Char('u') => self.turn_to(Pane::Queues),
            KeyCode::Char('c') => self.turn_to(Pane::Cores),
            KeyCode::Char('x') => self.turn_to(Pane::Drops),
            KeyCode::Tab => self.turn_to(self.pane.next()),
            KeyCode::Char('s') => self.sort_by(1),
            KeyCode::Char('S') => self.sort_by(self.pane.columns().len() - 1),
            KeyCode::Char('r') => self.sorts[self.pane as usize].1 ^= true,
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char(' ' | 'p') => self.is_paused = !self.is_paused,
            KeyCode::Char('+') => return self.pace(2, 1),
            KeyCode::Char('-') => return self.pace(1, 2),
            KeyCode::Down => self.first = self.first.saturating_add(1),
            KeyCode::Up => self.first = self.first.saturating_sub(1),
            KeyCode::PageDown => self.first = self.first.saturating_add(self.page),
            KeyCode::PageUp => self.first = self.first.saturating_sub(self.page),
            KeyCode::Home => self.first = 0,
            KeyCode::End => self.first = usize::MAX,
            _ => {}
        }
        Act::Go
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.filter.clear();
                self.is_typing = false;
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) if self.filter.len() < LONGEST_FILTER && !c.is_control() => self.filter.push(c),
            _ => {}
        }
        self.first = 0;
    }

    fn turn_to(&mut self, pane: Pane) {
        (self.pane, self.first) = (pane, 0);
    }

    fn sort_by(&mut self, further: usize) {
        let columns = self.pane.columns();
        let sort = &mut self.sorts[self.pane as usize];
        sort.0 = (sort.0 + further) % columns.len();
        // Names from the first on, numbers from the largest.
        sort.1 = columns[sort.0].is_number;
    }

    fn pace(&mut self, by: u32, of: u32) -> Act {
        let bounds = (Duration::from_millis(LEAST_INTERVAL_MS), Duration::from_millis(LONGEST_INTERVAL_MS));
        self.every = (self.every * by / of).clamp(bounds.0, bounds.1);
        Act::Every(self.every)
    }
}

/// More than any name has.
const LONGEST_FILTER: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Fault, Kind};

    fn press(view: &mut View, keys: &str) {
        for key in keys.chars() {
            assert_eq!(view.key(KeyCode::Char(key).into()), Act::Go);
        }
    }

    #[test]
    fn keys_choose_sort_filter_pause_and_end() {
        let mut view = View::new(Duration::from_secs(1), false);
        press(&mut view, "x");
        assert_eq!(view.pane, Pane::Drops);
        press(&mut view, "u");
        let before = view.sort();
        press(&mut view, "s");
        assert_ne!(view.sort().0, before.0);
        press(&mut view, "S");
        assert_eq!(view.sort().0, before.0);
        let largest_first = view.sort().1;
        press(&mut view, "r");
        assert_eq!(view.sort().1, !largest_first);
        // What is typed is no key.
        press(&mut view, "/qd ");
        assert_eq!((view.filter.as_str(), view.pane, view.is_paused), ("qd ", Pane::Queues, false));
        view.key(KeyCode::Backspace.into());
        view.key(KeyCode::Enter.into());
        press(&mut view, " ");
        assert_eq!((view.filter.as_str(), view.is_paused), ("qd", true));
        view.key(KeyCode::Esc.into());
        assert_eq!(view.filter, "");
        assert_eq!(view.key(KeyCode::Char('+').into()), Act::Every(Duration::from_secs(2)));
        for _ in 0..9 {
            view.key(KeyCode::Char('-').into());
        }
        assert_eq!(view.every, Duration::from_millis(LEAST_INTERVAL_MS));
        assert_eq!(view.key(KeyCode::Char('q').into()), Act::End);
        assert_eq!(view.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Act::End);
    }

    #[test]
    fn filter_is_as_long_as_a_name_may_be() {
        let mut view = View::new(Duration::from_secs(1), false);
        press(&mut view, "/");
        press(&mut view, &"x".repeat(LONGEST_FILTER + 1));
        assert_eq!(view.filter.len(), LONGEST_FILTER);
    }

    #[test]
    fn daemon_that_went_and_came_is_told_and_what_is_paused_stays() {
        let mut view = View::new(Duration::from_secs(1), false);
        let rates = |interval_ms| Look::Rates {
            instance: "i".to_owned(),
            up_ns: 1,
            rates: Box::new(Rates { interval_ms, ..Rates::default() }),
        };
        view.take(Look::First);
        view.take(rates(1));
        assert_eq!(view.notice, None);
        view.take(Look::Away(Fault::new(Kind::Unreachable, "nobody there")));
        assert!(view.notice.as_ref().unwrap().contains("nobody there"));
        view.take(Look::First);
        assert!(view.notice.as_ref().unwrap().contains("counted anew"));
        press(&mut view, "p");
        view.take(rates(2));
        assert_eq!((view.rates.as_ref().unwrap().interval_ms, view.notice.as_ref()), (1, None));
        press(&mut view, "p");
        view.take(rates(3));
        assert_eq!(view.rates.as_ref().unwrap().interval_ms, 3);
    }
}
