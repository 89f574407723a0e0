//! The control thread's turns with the clients of the operator socket: letting them in, answering their requests,
//! feeding those that follow. What a client is and how it is bounded: [`crate::operator::rpc`].

use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventFlags};

use crate::daemon::{Daemon, Token};
use crate::fault::{Fault, Kind, reason};
use crate::host::peer::Caller;
use crate::operator::api::{EventPage, Follow};
use crate::operator::events::{check_instance, check_types, wanted};
use crate::operator::methods::Asker;
use crate::operator::role::Role;
use crate::operator::rpc::{Line, Subscription, answer, error_answer, no_such_method};

/// Requests of one client in one turn: of an administrator, and of a viewer, who there may be many of.
const REQUESTS_PER_TURN: usize = 16;
const VIEWS_PER_TURN: usize = 1;
/// How long clients wait that cannot be accepted for want of a descriptor.
pub(crate) const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

impl Daemon {
    /// Lets those in who wait at one of the sockets.
    pub(crate) fn accept_clients(&mut self, role: Role) {
        for _ in 0..16 {
            let listening = match role {
                Role::Administrator => &self.ctl,
                Role::Viewer => &self.view,
            };
            let Some(listening) = listening else { return };
            let stream = match listening.socket.accept() {
                Ok((stream, _)) => {
                    self.accept_failed = false;
                    stream
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                // It waits there and stays readable, while this process cannot take it.
                Err(error) => {
                    if !std::mem::replace(&mut self.accept_failed, true) {
                        let hint = "raise LimitNOFILE= of ringwayd's unit (ulimit -n)";
                        tracing::error!(hint, "cannot accept an operator: {}", reason(&error));
                    }
                    self.accept_again_at = Some(Instant::now() + ACCEPT_AGAIN);
                    return self.watch_ctl(false);
                }
            };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let caller = Caller::of(&stream);
            if let Some(id) = self.clients.admit(stream, caller, role)
                && let Some(client) = self.clients.by_id(id)
                && epoll::add(&self.epoll, &client.stream, Token::Client(id).data(), EventFlags::IN).is_err()
            {
                self.clients.drop_client(id, "no_descriptor");
            }
        }
    }

    /// Looks again for the clients that could not be accepted.
    pub(crate) fn accept_again(&mut self) {
        self.accept_again_at = None;
        self.watch_ctl(true);
        self.watch_scraped(true);
    }

    fn watch_ctl(&self, is_on: bool) {
        let flags = if is_on { EventFlags::IN } else { EventFlags::empty() };
        for (listening, token) in [(&self.ctl, Token::Control), (&self.view, Token::View)] {
            if let Some(listening) = listening {
                let _ = epoll::modify(&self.epoll, &listening.socket, token.data(), flags);
            }
        }
    }

    /// One turn with a client. True if it has more requests for the next turn.
    pub(crate) fn serve_client(&mut self, id: u64) -> bool {
        if self.waits_its_turn(id) {
            return false;
        }
        let Some(client) = self.clients.by_id(id) else { return false };
        if !client.fill() {
            self.clients.forget(id);
            return false;
        }
        let most = match client.role {
            Role::Administrator => REQUESTS_PER_TURN,
            Role::Viewer => VIEWS_PER_TURN,
        };
        for _ in 0..most {
            let Some(client) = self.clients.by_id(id) else { return false };
            let Some(line) = client.take_line() else { break };
            let (role, begun) = (client.role, Instant::now());
            let asker = Asker { caller: client.caller.clone(), client: Some(id), role };
            let message = match line {
                Line::Refused(refusal) => Some(refusal),
                Line::Oversize(refusal) => {
                    *self.clients.dropped.entry("oversize_request".to_owned()).or_default() += 1;
                    Some(refusal)
                }
                Line::Request(request) => {
                    let result = match (request.method.as_str(), &request.id) {
                        // Its connection is another thread's from then on.
                        ("capture", Some(number)) if role == Role::Administrator => {
                            match self.capture(id, number, request.params, &asker.caller) {
                                Ok(()) => return false,
                                Err(fault) => Some(Err(fault)),
                            }
                        }
                        (method, _) => self.call(method, request.params, &asker),
                    };
                    request.id.map(|id| match result {
                        Some(Ok(result)) => answer(id, result),
                        Some(Err(fault)) => error_answer(id, &fault),
                        None => no_such_method(id, &request.method),
                    })
                }
            };
            if let (Some(client), Some(message)) = (self.clients.by_id(id), message) {
                client.say(&message);
            }
            if role == Role::Viewer {
                let now = Instant::now();
                self.clients.viewers.took(now.duration_since(begun), now);
            }
        }
        self.settle_client(id)
    }

    /// Whether it is a viewer that is not served before the others had their part of the time: it is not watched until then.
    fn waits_its_turn(&mut self, id: u64) -> bool {
        if self.clients.viewers.served_at(Instant::now()).is_none() {
            return false;
        }
        let Some(client) = self.clients.by_id(id).filter(|client| client.role == Role::Viewer) else {
            return false;
        };
        let _ = epoll::delete(&self.epoll, &client.stream);
        self.clients.viewers.wait(id);
        true
    }

    /// The viewers that have waited long enough; they are watched again.
    pub(crate) fn rested_viewers(&mut self) -> Vec<u64> {
        let rested = self.clients.viewers.rested(Instant::now());
        for id in &rested {
            if let Some(client) = self.clients.by_id(*id)
                && epoll::add(&self.epoll, &client.stream, Token::Client(*id).data(), EventFlags::IN).is_err()
            {
                self.clients.drop_client(*id, "no_descriptor");
            }
        }
        rested
    }

    /// Counts what a viewer may not, and logs the first of each, of all viewers together at a rate: more than that would be a
    /// viewer's way to fill the log.
    pub(crate) fn refuse(&mut self, method: &str, asker: &Asker) -> Fault {
        self.clients.refused += 1;
        let client = asker.client.and_then(|id| self.clients.by_id(id));
        let is_first = client.is_some_and(|client| !std::mem::replace(&mut client.was_refused, true));
        if is_first && self.clients.may_log_refusal(Instant::now()) {
            let Caller { uid, pid, comm, .. } = &asker.caller;
            let refused = self.clients.refused;
            tracing::info!(
                method,
                refused,
                uid,
                pid,
                comm,
                outcome = "refused: the socket is view-only",
                "operator"
            );
        }
        Fault::new(Kind::Permission, format!("{method}: this socket is view-only"))
            .hint("the operator socket (--ctl), for whoever may open it")
    }

    /// Writes what waits for a client and watches it for what it can do next. True if it has more requests.
    pub(crate) fn settle_client(&mut self, id: u64) -> bool {
        let Some(client) = self.clients.by_id(id) else { return false };
        if !client.flush() || client.is_done() {
            self.clients.forget(id);
            return false;
        }
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, client.wants_to_read());
        flags.set(EventFlags::OUT, client.wants_to_write());
        let has_line = client.has_line();
        let _ = epoll::modify(&self.epoll, &client.stream, Token::Client(id).data(), flags);
        has_line
    }

    /// Sends each follower the events that it has room for.
    pub(crate) fn feed_subscribers(&mut self) {
        let last = self.events.place();
        for id in self.clients.ids() {
            let Some(client) = self.clients.by_id(id) else { continue };
            let Some(subscription) = client.subscription.clone() else { continue };
            if subscription.cursor == last || client.is_full() {
                continue;
            }
            let mut cursor = subscription.cursor;
            for (place, event) in self.events.after(subscription.cursor) {
                if client.is_full() {
                    break;
                }
                cursor = place;
                if wanted(&subscription.types, &event.kind) {
                    client.say(&serde_json::json!({ "jsonrpc": "2.0", "method": "event", "params": event }));
                }
            }
            client.subscription = Some(Subscription { cursor, ..subscription });
            self.settle_client(id);
        }
    }

    /// Answers `events`, and makes the client a follower if it asks for that.
    pub(crate) fn subscribe(&mut self, client: Option<u64>, follow: Follow) -> Result<EventPage, Fault> {
        check_types(&follow.types)?;
        follow.instance.as_deref().map(check_instance).transpose()?;
        let since = follow.since.map(|seq| self.events.place_of(seq, follow.instance.as_deref()));
        let seq = self.events.last();
        let mut page = EventPage { instance: self.instance.clone(), seq, ..EventPage::default() };
        match since {
            None => {
                let states = self.registry.devices().map(|d| (d.name().to_owned(), d.life.name().to_owned()));
                page.snapshot = Some(states.collect());
            }
            Some(since) if !follow.follow => {
                let events = self.events.after(since).map(|(_, event)| event);
                page.events = events.filter(|event| wanted(&follow.types, &event.kind)).collect();
            }
            Some(_) => {}
        }
        if follow.follow
            && let Some(client) = client.and_then(|id| self.clients.by_id(id))
        {
            let cursor = since.unwrap_or(self.events.place());
            client.subscription = Some(Subscription { cursor, types: follow.types });
        }
        Ok(page)
    }
}
