//! The life of a device: the states it can be in, and the one table of what leads from each to which.
//!
//! ```text
//!   waiting <--ended-- connected --lost--> failed
//!      |  ---connect-->   |
//!      +--close-> stopped <-ended/lost- closing <-close- connected        any --remove--> removed
//! ```
//!
//! The control thread alone feeds events to it.

use std::fmt::Write as _;

/// Where a device is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Life {
    /// Held by control; its endpoint waits for a front-end.
    Waiting,
    /// Held by the session of a connected front-end.
    Connected,
    /// Told to end its session because the process stops.
    Closing,
    /// Its driver's device was lost with a session and could not be made anew.
    Failed,
    /// The process stops; nothing is held any more.
    Stopped,
    /// Removed by an operator.
    Removed,
}

/// What happens to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LifeEvent {
    /// A session took the device over.
    Connect,
    /// A session ended and gave the device back.
    Ended,
    /// A session ended without giving the device back, or the driver could not make it anew.
    Lost,
    /// The driver made the device anew.
    Remade,
    /// The process stops.
    Close,
    /// An operator removes it.
    Remove,
}

/// An event that the present state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a device that is {} cannot {}", state.name(), event.name())]
pub struct IllegalEvent {
    /// The present state.
    pub state: Life,
    /// What was to happen.
    pub event: LifeEvent,
}

/// `event: from -> to`, all there are.
const TRANSITIONS: &[(LifeEvent, Life, Life)] = &[
    (LifeEvent::Connect, Life::Waiting, Life::Connected),
    (LifeEvent::Ended, Life::Connected, Life::Waiting),
    (LifeEvent::Lost, Life::Connected, Life::Failed),
    (LifeEvent::Lost, Life::Waiting, Life::Failed),
    (LifeEvent::Remade, Life::Failed, Life::Waiting),
    (LifeEvent::Close, Life::Waiting, Life::Stopped),
    (LifeEvent::Close, Life::Failed, Life::Stopped),
    (LifeEvent::Close, Life::Connected, Life::Closing),
    (LifeEvent::Ended, Life::Closing, Life::Stopped),
    (LifeEvent::Lost, Life::Closing, Life::Stopped),
    (LifeEvent::Remove, Life::Waiting, Life::Removed),
    (LifeEvent::Remove, Life::Connected, Life::Removed),
    (LifeEvent::Remove, Life::Closing, Life::Removed),
    (LifeEvent::Remove, Life::Failed, Life::Removed),
];

impl Life {
    /// The state after `event`.
    ///
    /// # Errors
    /// The table has no such transition; the state stays.
    pub fn after(self, event: LifeEvent) -> Result<Life, IllegalEvent> {
        TRANSITIONS
            .iter()
            .find(|(on, from, _)| *on == event && *from == self)
            .map(|(_, _, to)| *to)
            .ok_or(IllegalEvent { state: self, event })
    }

    /// Moves on by `event`.
    ///
    /// # Errors
    /// As [`Life::after`].
    pub fn apply(&mut self, event: LifeEvent) -> Result<(), IllegalEvent> {
        *self = self.after(event)?;
        Ok(())
    }

    /// The name that operators see.
    pub fn name(self) -> &'static str {
        match self {
            Life::Waiting => "waiting",
            Life::Connected => "connected",
            Life::Closing => "closing",
            Life::Failed => "failed",
            Life::Stopped => "stopped",
            Life::Removed => "removed",
        }
    }

    /// The table as a graph for dot(1).
    pub fn dot() -> String {
        let mut dot = String::from("digraph life {\n");
        for (event, from, to) in TRANSITIONS {
            let _ = writeln!(dot, "  {} -> {} [label=\"{}\"];", from.name(), to.name(), event.name());
        }
        dot.push_str("}\n");
        dot
    }
}

impl LifeEvent {
    /// What it is called in errors and in the graph.
    pub fn name(self) -> &'static str {
        match self {
            LifeEvent::Connect => "connect",
            LifeEvent::Ended => "end its session",
            LifeEvent::Lost => "lose its device",
            LifeEvent::Remade => "be made anew",
            LifeEvent::Close => "close",
            LifeEvent::Remove => "be removed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [Life; 6] =
        [Life::Waiting, Life::Connected, Life::Closing, Life::Failed, Life::Stopped, Life::Removed];
    const EVENTS: [LifeEvent; 6] = [
        LifeEvent::Connect,
        LifeEvent::Ended,
        LifeEvent::Lost,
        LifeEvent::Remade,
        LifeEvent::Close,
        LifeEvent::Remove,
    ];

    #[test]
    fn graph_is_as_drawn() {
        assert_eq!(
            Life::dot(),
            r#"digraph life {
  waiting -> connected [label="connect"];
  connected -> waiting [label="end its session"];
  connected -> failed [label="lose its device"];
  waiting -> failed [label="lose its device"];
  failed -> waiting [label="be made anew"];
  waiting -> stopped [label="close"];
  failed -> stopped [label="close"];
  connected -> closing [label="close"];
  closing -> stopped [label="end its session"];
  closing -> stopped [label="lose its device"];
  waiting -> removed [label="be removed"];
  connected -> removed [label="be removed"];
  closing -> removed [label="be removed"];
  failed -> removed [label="be removed"];
}
"#
        );
    }

    #[test]
    fn illegal_event_names_the_state_and_changes_nothing() {
        let mut life = Life::Waiting;
        let error = life.apply(LifeEvent::Ended).unwrap_err();
        assert_eq!(error.to_string(), "a device that is waiting cannot end its session");
        assert_eq!(life, Life::Waiting);
    }

    #[test]
    fn ended_states_have_no_way_out() {
        for state in [Life::Stopped, Life::Removed] {
            for event in EVENTS {
                assert_eq!(state.after(event), Err(IllegalEvent { state, event }));
            }
        }
    }

    #[test]
    fn each_event_leads_to_at_most_one_state() {
        for state in STATES {
            for event in EVENTS {
                let ways = TRANSITIONS.iter().filter(|(on, from, _)| *on == event && *from == state).count();
                assert!(ways <= 1, "{state:?} {event:?}");
            }
        }
    }
}
