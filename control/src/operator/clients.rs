//! The control thread's turns with the clients of the operator socket: letting them in, answering their requests,
//! feeding those that follow. What a client is and how it is bounded: [`crate::operator::rpc`].

use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventFlags};

use crate::daemon::{Daemon, Token};
use crate::fault::{Fault, Kind, reason};
use crate::host::endpoint::Listening;
use crate::host::peer::Caller;
use crate::operator::api::{EventPage, Follow};
use crate::operator::events::{check_instance, check_types, wanted};
use crate::operator::methods::Asker;
use crate::operator::role::Role;
use crate::operator::rpc::{Line, Subscription, answer, error_answer, line_of, no_such_method};

/// Requests of one client in one turn: of an administrator, and of a viewer, who there may be many of.
const REQUESTS_PER_TURN: usize = 16;
const VIEWS_PER_TURN: usize = 1;
/// How long clients wait that cannot be accepted for want of a descriptor.
pub(crate) const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

impl Daemon {
    /// Lets those in who wait at one of the sockets; viewers, if all of them did not have their part of the time.
    pub(crate) fn accept_clients(&mut self, role: Role) {
        let begun = Instant::now();
        if role == Role::Administrator {
            return self.take_clients(role);
        }
        if self.clients.viewers.wait_outside(begun) {
            return self.watch_view(false);
        }
        self.take_clients(role);
        self.viewers_took(begun);
    }

    fn take_clients(&mut self, role: Role) {
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
            if let Some(id) = self.clients.admit(stream, caller, role) {
                self.watch_client(id, EventFlags::IN);
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
        self.watch_listening(self.ctl.as_ref(), Token::Control, is_on);
        self.watch_view(is_on);
    }

    fn watch_view(&self, is_on: bool) {
        self.watch_listening(self.view.as_ref(), Token::View, is_on);
    }

    fn watch_listening(&self, listening: Option<&Listening>, token: Token, is_on: bool) {
        let flags = if is_on { EventFlags::IN } else { EventFlags::empty() };
        if let Some(listening) = listening {
            let _ = epoll::modify(&self.epoll, &listening.socket, token.data(), flags);
        }
    }

    /// Watches a client for these; for none, not at all: one that has left would be told of again and again.
    fn watch_client(&mut self, id: u64, flags: EventFlags) {
        let Some(client) = self.clients.by_id(id) else { return };
        let data = Token::Client(id).data();
        let was_watched = std::mem::replace(&mut client.is_watched, !flags.is_empty());
        let done = match (was_watched, flags.is_empty()) {
            (true, true) => epoll::delete(&self.epoll, &client.stream),
            (true, false) => epoll::modify(&self.epoll, &client.stream, data, flags),
            (false, false) => epoll::add(&self.epoll, &client.stream, data, flags),
            (false, true) => Ok(()),
        };
        if done.is_err() {
            self.clients.drop_client(id, "no_descriptor");
        }
    }

    /// One turn with a client. True if it has more requests for the next turn.
    pub(crate) fn serve_client(&mut self, id: u64) -> bool {
        if self.waits_its_turn(id) {
            return false;
        }
        let Some(client) = self.clients.by_id(id) else { return false };
        let (role, begun) = (client.role, Instant::now());
        let has_more = self.take_turn(id);
        if role == Role::Viewer {
            // In its own turn: at the end of all turns another one may have had their part of the time.
            self.feed(id);
            self.viewers_took(begun);
        }
        has_more
    }

    fn take_turn(&mut self, id: u64) -> bool {
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
            let role = client.role;
            let asker = Asker { caller: client.caller.clone(), client: Some(id), role };
            let answer = match line {
                Line::Refused(refusal) => Some(line_of(&refusal)),
                Line::Oversize(refusal) => {
                    *self.clients.dropped.entry("oversize_request".to_owned()).or_default() += 1;
                    Some(line_of(&refusal))
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
                        Some(Ok(result)) => answer(&id, &result),
                        Some(Err(fault)) => line_of(&error_answer(id, &fault)),
                        None => line_of(&no_such_method(id, &request.method)),
                    })
                }
            };
            if let (Some(client), Some(answer)) = (self.clients.by_id(id), answer) {
                client.send(answer);
            }
        }
        self.settle_client(id)
    }

    /// Something for viewers has gone on since then.
    fn viewers_took(&mut self, begun: Instant) {
        let now = Instant::now();
        self.clients.viewers.took(now.duration_since(begun), now);
    }

    /// Whether it is a viewer that is not served before the others had their part of the time: until then it is watched for nothing but
    /// that it takes what was made for it, which nobody's turn is needed for.
    fn waits_its_turn(&mut self, id: u64) -> bool {
        let begun = Instant::now();
        if self.clients.viewers.served_at(begun).is_none() {
            return false;
        }
        let Some(client) = self.clients.by_id(id).filter(|client| client.role == Role::Viewer) else {
            return false;
        };
        if !client.flush() {
            self.clients.forget(id);
            return true;
        }
        let (uid, mut flags) = (client.caller.uid, EventFlags::empty());
        flags.set(EventFlags::OUT, client.wants_to_write());
        self.clients.viewers.wait(id, uid);
        self.watch_client(id, flags);
        self.viewers_took(begun);
        true
    }

    /// The viewers that have waited long enough; they are watched again. Those who wait outside are let in before them every second
    /// time: whoever is inside and asks without a pause keeps nobody out, and whoever comes without a pause holds up nobody inside.
    pub(crate) fn rested_viewers(&mut self) -> Vec<u64> {
        let begun = Instant::now();
        if self.clients.viewers.opens(begun) {
            self.watch_view(true);
            if self.clients.viewers.is_doors_turn() {
                self.take_clients(Role::Viewer);
                self.viewers_took(begun);
            }
        }
        let now = Instant::now();
        let rested = self.clients.viewers.rested(now);
        for id in &rested {
            if let Some(client) = self.clients.by_id(*id) {
                client.has_waited(now);
            }
            self.watch_client(*id, EventFlags::IN);
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

    /// Sends each follower the events that it has room for; a viewer, if all of them did not have their part of the time.
    pub(crate) fn feed_subscribers(&mut self) {
        let last = self.events.place();
        for id in self.clients.ids() {
            let Some(client) = self.clients.by_id(id) else { continue };
            let is_behind = client.subscription.as_ref().is_some_and(|follows| follows.cursor != last);
            if !is_behind || client.is_full() {
                continue;
            }
            let (role, begun) = (client.role, Instant::now());
            if role == Role::Viewer && (self.clients.viewers.is_waiting(id) || self.waits_its_turn(id)) {
                continue;
            }
            self.feed(id);
            if role == Role::Viewer {
                self.viewers_took(begun);
            }
        }
    }

    /// Sends a client the events that it follows and has room for.
    fn feed(&mut self, id: u64) {
        let last = self.events.place();
        let Some(client) = self.clients.by_id(id).filter(|client| !client.is_full()) else { return };
        let follows = client.subscription.clone().filter(|follows| follows.cursor != last);
        let Some(subscription) = follows else { return };
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
