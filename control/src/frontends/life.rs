//! The life cycles of a session, each one table of transitions: the connection, the device's virtio status, and a ring.
//!
//! What is not in a table is illegal and answered by an [`Illegal`] that names event and state. [`dot`] draws the
//! tables; the drawing is compared with `life.dot` beside this file.

use std::fmt::{Debug, Write};

/// A state of a life cycle.
pub trait State: Copy + Eq + Debug + 'static {
    /// What can happen to it.
    type Event: Copy + Eq + Debug + 'static;
    /// The life cycle's name.
    const NAME: &'static str;
    /// Every legal transition: event, from, to.
    const TABLE: &'static [(Self::Event, Self, Self)];

    /// The state after `event`.
    fn after(self, event: Self::Event) -> Result<Self, Illegal> {
        Self::TABLE
            .iter()
            .find(|(what, from, _)| (*what, *from) == (event, self))
            .map(|(_, _, to)| *to)
            .ok_or_else(|| Illegal {
                machine: Self::NAME,
                event: format!("{event:?}"),
                state: format!("{self:?}"),
            })
    }
}

/// An event that cannot happen in the state that is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{machine}: {event} is illegal in state {state}")]
pub struct Illegal {
    /// The life cycle.
    pub machine: &'static str,
    /// The event.
    pub event: String,
    /// The state that stays.
    pub state: String,
}

/// A connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// Nothing but questions so far.
    Connected,
    /// The front-end said that it owns the session.
    Owned,
    /// Features are agreed on, without an owner.
    Unowned,
    /// Owned, and features are agreed on.
    Ready,
    /// Over.
    Closed,
}

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionEvent {
    /// SET_OWNER. QEMU sends it again on a connection that it has owned before; as in DPDK, that changes nothing.
    SetOwner,
    /// RESET_OWNER.
    ResetOwner,
    /// SET_FEATURES.
    SetFeatures,
    /// Either side ends it.
    Close,
}

impl State for Connection {
    type Event = ConnectionEvent;
    const NAME: &'static str = "connection";
    const TABLE: &'static [(ConnectionEvent, Connection, Connection)] = {
        use Connection::*;
        use ConnectionEvent::*;
        &[
            (SetOwner, Connected, Owned),
            (SetOwner, Unowned, Ready),
            (SetOwner, Owned, Owned),
            (SetOwner, Ready, Ready),
            (ResetOwner, Connected, Connected),
            (ResetOwner, Owned, Connected),
            (ResetOwner, Unowned, Unowned),
            (ResetOwner, Ready, Unowned),
            (SetFeatures, Connected, Unowned),
            (SetFeatures, Owned, Ready),
            (SetFeatures, Unowned, Unowned),
            (SetFeatures, Ready, Ready),
            (Close, Connected, Closed),
            (Close, Owned, Closed),
            (Close, Unowned, Closed),
            (Close, Ready, Closed),
        ]
    };
}

/// The device's status (virtio 1.3 §2.1), as far as it decides anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// 0: not in use, or never told.
    Reset,
    /// A driver is there.
    Driver,
    /// Features are settled.
    FeaturesOk,
    /// The driver is ready.
    DriverOk,
    /// The driver gave up.
    Failed,
}

/// What SET_STATUS does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusEvent {
    /// The value 0.
    Reset,
    /// ACKNOWLEDGE or DRIVER and no more.
    Driver,
    /// FEATURES_OK, not DRIVER_OK.
    FeaturesOk,
    /// DRIVER_OK.
    DriverOk,
    /// FAILED.
    Fail,
}

impl StatusEvent {
    /// What a value of SET_STATUS means.
    pub fn of(value: u8) -> StatusEvent {
        match value & !status::NEEDS_RESET {
            0 => StatusEvent::Reset,
            bits if bits & status::FAILED != 0 => StatusEvent::Fail,
            bits if bits & status::DRIVER_OK != 0 => StatusEvent::DriverOk,
            bits if bits & status::FEATURES_OK != 0 => StatusEvent::FeaturesOk,
            _ => StatusEvent::Driver,
        }
    }
}

/// Bits of the virtio status (virtio 1.3 §2.1).
pub mod status {
    /// ACKNOWLEDGE.
    pub const ACKNOWLEDGE: u8 = 1;
    /// DRIVER.
    pub const DRIVER: u8 = 2;
    /// DRIVER_OK.
    pub const DRIVER_OK: u8 = 4;
    /// FEATURES_OK.
    pub const FEATURES_OK: u8 = 8;
    /// DEVICE_NEEDS_RESET: the device's own.
    pub const NEEDS_RESET: u8 = 64;
    /// FAILED.
    pub const FAILED: u8 = 128;
}

impl State for Status {
    type Event = StatusEvent;
    const NAME: &'static str = "status";
    // virtio 1.3 §2.1.1: the driver sets bits in order and clears them only by reset. Front-ends leave steps out (QEMU
    // begins with FEATURES_OK), so that steps may be skipped, never taken back.
    const TABLE: &'static [(StatusEvent, Status, Status)] = {
        use Status as S;
        use StatusEvent as E;
        &[
            (E::Reset, S::Reset, S::Reset),
            (E::Reset, S::Driver, S::Reset),
            (E::Reset, S::FeaturesOk, S::Reset),
            (E::Reset, S::DriverOk, S::Reset),
            (E::Reset, S::Failed, S::Reset),
            (E::Driver, S::Reset, S::Driver),
            (E::Driver, S::Driver, S::Driver),
            (E::FeaturesOk, S::Reset, S::FeaturesOk),
            (E::FeaturesOk, S::Driver, S::FeaturesOk),
            (E::FeaturesOk, S::FeaturesOk, S::FeaturesOk),
            (E::DriverOk, S::Reset, S::DriverOk),
            (E::DriverOk, S::Driver, S::DriverOk),
            (E::DriverOk, S::FeaturesOk, S::DriverOk),
            (E::DriverOk, S::DriverOk, S::DriverOk),
            (E::Fail, S::Reset, S::Failed),
            (E::Fail, S::Driver, S::Failed),
            (E::Fail, S::FeaturesOk, S::Failed),
            (E::Fail, S::DriverOk, S::Failed),
            (E::Fail, S::Failed, S::Failed),
        ]
    };
}

/// A ring: started or stopped or stopped for a fault, and, independently, enabled or disabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingLife {
    /// Stopped, disabled: at first.
    Stopped,
    /// Stopped, enabled.
    StoppedEnabled,
    /// Started, disabled.
    Started,
    /// Started, enabled.
    StartedEnabled,
    /// Stopped for a fault, disabled.
    Faulted,
    /// Stopped for a fault, enabled.
    FaultedEnabled,
}

/// What happens to a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingEvent {
    /// The front-end starts it (vhost-user: SET_VRING_KICK).
    Start,
    /// The front-end stops it (GET_VRING_BASE).
    Stop,
    /// SET_VRING_ENABLE 1, or features without PROTOCOL_FEATURES.
    Enable,
    /// SET_VRING_ENABLE 0, or RESET_OWNER.
    Disable,
    /// It broke the rules.
    Fault,
    /// The device was reset.
    Reset,
}

impl RingLife {
    /// Started, and without a fault since.
    pub fn is_started(self) -> bool {
        matches!(self, RingLife::Started | RingLife::StartedEnabled)
    }
    /// Enabled.
    pub fn is_enabled(self) -> bool {
        matches!(self, RingLife::StoppedEnabled | RingLife::StartedEnabled | RingLife::FaultedEnabled)
    }
}

impl State for RingLife {
    type Event = RingEvent;
    const NAME: &'static str = "ring";
    const TABLE: &'static [(RingEvent, RingLife, RingLife)] = {
        use RingEvent as E;
        use RingLife as S;
        &[
            (E::Start, S::Stopped, S::Started),
            (E::Start, S::StoppedEnabled, S::StartedEnabled),
            (E::Start, S::Started, S::Started),
            (E::Start, S::StartedEnabled, S::StartedEnabled),
            (E::Start, S::Faulted, S::Started),
            (E::Start, S::FaultedEnabled, S::StartedEnabled),
            (E::Stop, S::Stopped, S::Stopped),
            (E::Stop, S::StoppedEnabled, S::StoppedEnabled),
            (E::Stop, S::Started, S::Stopped),
            (E::Stop, S::StartedEnabled, S::StoppedEnabled),
            (E::Stop, S::Faulted, S::Stopped),
            (E::Stop, S::FaultedEnabled, S::StoppedEnabled),
            (E::Enable, S::Stopped, S::StoppedEnabled),
            (E::Enable, S::StoppedEnabled, S::StoppedEnabled),
            (E::Enable, S::Started, S::StartedEnabled),
            (E::Enable, S::StartedEnabled, S::StartedEnabled),
            (E::Enable, S::Faulted, S::FaultedEnabled),
            (E::Enable, S::FaultedEnabled, S::FaultedEnabled),
            (E::Disable, S::Stopped, S::Stopped),
            (E::Disable, S::StoppedEnabled, S::Stopped),
            (E::Disable, S::Started, S::Started),
            (E::Disable, S::StartedEnabled, S::Started),
            (E::Disable, S::Faulted, S::Faulted),
            (E::Disable, S::FaultedEnabled, S::Faulted),
            (E::Fault, S::Started, S::Faulted),
            (E::Fault, S::StartedEnabled, S::FaultedEnabled),
            (E::Reset, S::Stopped, S::Stopped),
            (E::Reset, S::StoppedEnabled, S::Stopped),
            (E::Reset, S::Started, S::Stopped),
            (E::Reset, S::StartedEnabled, S::Stopped),
            (E::Reset, S::Faulted, S::Stopped),
            (E::Reset, S::FaultedEnabled, S::Stopped),
        ]
    };
}

/// Every life cycle as a drawing for `dot`.
pub fn dot() -> String {
    let mut text = String::from("digraph life {\n");
    draw::<Connection>(&mut text);
    draw::<Status>(&mut text);
    draw::<RingLife>(&mut text);
    text.push_str("}\n");
    text
}

fn draw<S: State>(text: &mut String) {
    let name = S::NAME;
    // Writing to a string cannot fail.
    let _ = writeln!(text, "  subgraph cluster_{name} {{\n    label = \"{name}\";");
    for (event, from, to) in S::TABLE {
        let _ = writeln!(text, "    {name}_{from:?} -> {name}_{to:?} [label = \"{event:?}\"];");
    }
    text.push_str("  }\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawing_is_the_one_beside_this_file() {
        let kept = include_str!("life.dot");
        let drawn = dot();
        assert!(kept == drawn, "the tables changed; if that was meant, life.dot becomes:\n{drawn}");
    }

    #[test]
    fn no_event_has_two_outcomes() {
        fn check<S: State>() {
            for (at, (event, from, _)) in S::TABLE.iter().enumerate() {
                assert!(
                    !S::TABLE[..at].iter().any(|(e, f, _)| (e, f) == (event, from)),
                    "{event:?} in {from:?} appears twice"
                );
            }
        }
        check::<Connection>();
        check::<Status>();
        check::<RingLife>();
    }

    #[test]
    fn second_owner_changes_nothing() {
        for state in [Connection::Owned, Connection::Ready] {
            assert_eq!(state.after(ConnectionEvent::SetOwner), Ok(state));
        }
    }

    #[test]
    fn illegal_event_says_where() {
        let error = Connection::Closed.after(ConnectionEvent::SetOwner).unwrap_err();
        assert_eq!(error.to_string(), "connection: SetOwner is illegal in state Closed");
    }

    #[test]
    fn status_taken_back_is_illegal() {
        assert!(Status::DriverOk.after(StatusEvent::of(status::ACKNOWLEDGE)).is_err());
        assert!(Status::Failed.after(StatusEvent::of(status::DRIVER_OK)).is_err());
        assert_eq!(Status::Failed.after(StatusEvent::of(0)), Ok(Status::Reset));
        assert_eq!(Status::Reset.after(StatusEvent::of(15)), Ok(Status::DriverOk));
    }

    #[test]
    fn stopped_ring_cannot_fault() {
        assert!(RingLife::StoppedEnabled.after(RingEvent::Fault).is_err());
        assert_eq!(RingLife::StartedEnabled.after(RingEvent::Fault), Ok(RingLife::FaultedEnabled));
    }
}
