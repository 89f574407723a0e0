//! Which descriptor of the control thread's became ready.

use rustix::event::epoll::EventData;

/// Which descriptor became ready: the kind in the highest byte, a number below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Control,
    View,
    Client(u64),
    Device(u64),
    Watch,
    Inbox,
    Signals,
    Reload,
    Metrics,
    Bus(usize),
}

impl Token {
    pub(crate) fn data(self) -> EventData {
        let (kind, id) = match self {
            Token::Control => (0, 0),
            Token::Client(id) => (1, id),
            Token::Device(id) => (2, id),
            Token::Watch => (3, 0),
            Token::Inbox => (4, 0),
            Token::Signals => (5, 0),
            Token::Bus(at) => (6, at as u64),
            Token::Reload => (7, 0),
            Token::Metrics => (8, 0),
            Token::View => (9, 0),
        };
        EventData::new_u64(kind << 56 | id)
    }

    pub(super) fn of(data: EventData) -> Token {
        let (kind, id) = (data.u64() >> 56, data.u64() & ((1 << 56) - 1));
        match kind {
            1 => Token::Client(id),
            2 => Token::Device(id),
            3 => Token::Watch,
            4 => Token::Inbox,
            5 => Token::Signals,
            6 => Token::Bus(id as usize),
            7 => Token::Reload,
            8 => Token::Metrics,
            9 => Token::View,
            _ => Token::Control,
        }
    }
}
