//! The operator socket's clients: newline-framed JSON-RPC 2.0 on non-blocking streams.
//!
//! Nobody waits for a client. What it sends is bounded by [`LONGEST_REQUEST`]; what it has not read is bounded too:
//! while [`OUTBOX_PAUSE`] bytes wait for it, its requests are not read, and its events stay in the history. A client
//! that reads no answer for [`SLOWEST_READER`] is dropped; a follower is not, since what it costs is bounded and what
//! it loses is told. When all places are taken, the one that has been silent longest gives way. Every drop is counted
//! under a name.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ringway_vhost_user::bucket::Bucket;
use serde_json::{Value, json};

use crate::fault::{Fault, Kind};
use crate::host::peer::Caller;
use crate::operator::api::ErrorData;
use crate::operator::config::LONGEST_FILE;
use crate::operator::methods::names;
use crate::operator::role::Role;
use crate::operator::viewers::ViewersTime;

/// The longest request of an administrator, in bytes with its newline: a configuration file is sent as one, in which each quote
/// and each end of a line takes two.
pub(crate) const LONGEST_REQUEST: usize = 2 * LONGEST_FILE + 64 * 1024;
/// The longest request of a viewer.
const LONGEST_OF_VIEWER: usize = 256 * 1024;
/// The most clients at a time.
pub(crate) const MOST_CLIENTS: usize = 64;
/// The most of them that came by the view-only socket: the others' places are the administrators'.
pub(crate) const MOST_VIEWERS: usize = 32;
/// Bytes waiting for a client above which nothing more is read from it.
const OUTBOX_PAUSE: usize = 256 * 1024;
/// How long a client may leave an answer unread.
const SLOWEST_READER: Duration = Duration::from_secs(10);
/// A client that has said nothing for this long gives way to a new one when all places are taken.
const SILENT: Duration = Duration::from_secs(1);
/// Bytes read from one client in one turn of the loop.
const READ_PER_TURN: usize = 64 * 1024;
/// Refused requests of all viewers that are logged at once, and a second in the long run.
const REFUSALS_AT_ONCE: u32 = 20;
const REFUSALS_PER_SECOND: u32 = 1;

/// What a client follows.
#[derive(Debug, Clone)]
pub(crate) struct Subscription {
    /// The place of the last event sent.
    pub(crate) cursor: u64,
    pub(crate) types: Vec<String>,
}

/// A connected client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    pub(crate) caller: Caller,
    pub(crate) role: Role,
    /// The loop tells of what it sends or takes.
    pub(crate) is_watched: bool,
    /// It asked for what a viewer may not, which was logged.
    pub(crate) was_refused: bool,
    pub(crate) subscription: Option<Subscription>,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    sent: usize,
    heard: Instant,
    stalled: Option<Instant>,
    /// Nothing more is read; it goes when its outbox is empty.
    is_ending: bool,
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Request {
    /// None: a notification, which has no answer.
    pub(crate) id: Option<Value>,
    pub(crate) method: String,
    pub(crate) params: Value,
}

/// What a turn with a client came to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Line {
    /// A request.
    Request(Request),
    /// Not a request; the answer to send.
    Refused(Value),
    /// Longer than a request may be; the answer to send. The client ends.
    Oversize(Value),
}

/// All clients. Owned by the control thread.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    slots: HashMap<u64, Client>,
    next: u64,
    pub(crate) dropped: BTreeMap<String, u64>,
    /// Requests of viewers that are the administrators'.
    pub(crate) refused: u64,
    /// How many of them may still be logged; None: none was.
    refusals: Option<Bucket>,
    /// What viewers took of control's time.
    pub(crate) viewers: ViewersTime,
}

impl Clients {
    /// Whether one more refusal is logged.
    pub(crate) fn may_log_refusal(&mut self, now: Instant) -> bool {
        self.refusals.get_or_insert_with(|| Bucket::new(REFUSALS_AT_ONCE, REFUSALS_PER_SECOND, now)).take(now)
    }

    /// Takes a new client in, if need be in the place of the one that has been silent longest. A viewer takes no administrator's place.
    pub(crate) fn admit(&mut self, stream: UnixStream, caller: Caller, role: Role) -> Option<u64> {
        let viewers = self.slots.values().filter(|client| client.role == Role::Viewer).count();
        if self.slots.len() >= MOST_CLIENTS || (role == Role::Viewer && viewers >= MOST_VIEWERS) {
            let silent = self
                .slots
                .iter()
                .filter(|(_, client)| role == Role::Administrator || client.role == Role::Viewer)
                .filter(|(id, client)| client.heard.elapsed() >= SILENT && !self.viewers.is_waiting(**id))
                // A follower has nothing to say; it is in use as long as it reads.
                .filter(|(_, client)| client.subscription.is_none() || client.stalled.is_some())
                .min_by_key(|(_, client)| client.heard)
                .map(|(id, _)| *id);
            match silent {
                Some(id) => self.drop_client(id, "silent"),
                None => {
                    let fault = Fault::conflict("too many clients are connected")
                        .held_by(format!("{} clients that are in use", self.slots.len()))
                        .retryable();
                    let _ = (&stream).write_all(&line_of(&error_answer(Value::Null, &fault)));
                    *self.dropped.entry("too_many_clients".to_owned()).or_default() += 1;
                    return None;
                }
            }
        }
        self.next += 1;
        let client = Client {
            stream,
            caller,
            role,
            is_watched: false,
            was_refused: false,
            subscription: None,
            inbox: Vec::new(),
            outbox: Vec::new(),
            sent: 0,
            heard: Instant::now(),
            stalled: None,
            is_ending: false,
        };
        self.slots.insert(self.next, client);
        Some(self.next)
    }

    /// Gives a client's connection to somebody else, with what waits to be written to it.
    pub(crate) fn give_away(&mut self, id: u64) -> Option<(UnixStream, Vec<u8>)> {
        let mut client = self.slots.remove(&id)?;
        Some((client.stream, client.outbox.split_off(client.sent)))
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn ids(&self) -> Vec<u64> {
        self.slots.keys().copied().collect()
    }

    pub(crate) fn by_id(&mut self, id: u64) -> Option<&mut Client> {
        self.slots.get_mut(&id)
    }

    /// Drops a client; `reason` is counted.
    pub(crate) fn drop_client(&mut self, id: u64, reason: &str) {
        if let Some(client) = self.slots.remove(&id) {
            tracing::debug!(client = %client.caller, reason, "client dropped");
            *self.dropped.entry(reason.to_owned()).or_default() += 1;
        }
    }

    /// A client that went by itself.
    pub(crate) fn forget(&mut self, id: u64) {
        self.slots.remove(&id);
    }

    /// Drops the clients that left an answer unread for too long; not those that follow.
    pub(crate) fn drop_stalled(&mut self) {
        let is_stalled = |client: &Client| {
            client.subscription.is_none()
                && client.stalled.is_some_and(|since| since.elapsed() >= SLOWEST_READER)
        };
        let stalled =
            self.slots.iter().filter(|(id, client)| is_stalled(client) && !self.viewers.is_waiting(**id));
        let stalled: Vec<u64> = stalled.map(|(id, _)| *id).collect();
        for id in stalled {
            self.drop_client(id, "slow_reader");
        }
    }

    /// True if some client has an answer waiting, so that time must be watched.
    pub(crate) fn any_waiting(&self) -> bool {
        self.slots.values().any(|client| client.subscription.is_none() && client.stalled.is_some())
    }
}

impl Client {
    /// Reads what is there, within bounds. False: the stream failed.
    pub(crate) fn fill(&mut self) -> bool {
        let mut buffer = [0u8; 16 * 1024];
        let mut budget = READ_PER_TURN;
        while self.wants_to_read() && budget > 0 {
            match (&self.stream).read(&mut buffer) {
                Ok(0) => {
                    self.is_ending = true;
                }
                Ok(n) => {
                    self.heard = Instant::now();
                    self.inbox.extend_from_slice(&buffer[..n]);
                    budget = budget.saturating_sub(n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// It was not read from until now: what it did not say meanwhile is not held against it.
    pub(crate) fn has_waited(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Whether more may be read now.
    pub(crate) fn wants_to_read(&self) -> bool {
        !self.is_ending && !self.is_full() && self.inbox.len() <= self.longest_request()
    }

    /// The longest request that it may make, in bytes with its newline.
    fn longest_request(&self) -> usize {
        match self.role {
            Role::Administrator => LONGEST_REQUEST,
            Role::Viewer => LONGEST_OF_VIEWER,
        }
    }

    /// Whether something waits to be written.
    pub(crate) fn wants_to_write(&self) -> bool {
        self.sent < self.outbox.len()
    }

    /// So much waits for it that nothing more should be made for it.
    pub(crate) fn is_full(&self) -> bool {
        self.outbox.len() - self.sent >= OUTBOX_PAUSE
    }

    /// Everything was said, and it will not ask again.
    pub(crate) fn is_done(&self) -> bool {
        self.is_ending && !self.wants_to_write() && !self.inbox.contains(&b'\n')
    }

    /// Whether a request could be taken now.
    pub(crate) fn has_line(&self) -> bool {
        !self.is_full() && (self.inbox.contains(&b'\n') || self.inbox.len() > self.longest_request())
    }

    /// Takes the next request, if a whole one is there.
    pub(crate) fn take_line(&mut self) -> Option<Line> {
        if self.is_full() {
            return None;
        }
        let end = self.inbox.iter().position(|byte| *byte == b'\n');
        let longest = self.longest_request();
        let is_too_long = end.map_or(self.inbox.len(), |end| end + 1) > longest;
        if is_too_long {
            self.inbox = Vec::new();
            self.is_ending = true;
            let fault = Fault::usage(format!("the request is longer than {longest} bytes"));
            return Some(Line::Oversize(protocol_error(-32600, &fault)));
        }
        let line: Vec<u8> = self.inbox.drain(..=end?).collect();
        Some(parse(&line))
    }

    /// Queues a message.
    pub(crate) fn say(&mut self, message: &Value) {
        self.send(line_of(message));
    }

    /// Queues a line.
    pub(crate) fn send(&mut self, line: Vec<u8>) {
        if self.outbox.is_empty() {
            self.outbox = line;
        } else {
            self.outbox.extend_from_slice(&line);
        }
    }

    /// Writes what the client takes. False: the stream failed.
    pub(crate) fn flush(&mut self) -> bool {
        while self.sent < self.outbox.len() {
            match (&self.stream).write(&self.outbox[self.sent..]) {
                Ok(0) => return false,
                Ok(n) => {
                    self.sent += n;
                    self.stalled = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stalled.get_or_insert_with(Instant::now);
                    self.outbox.drain(..self.sent);
                    self.sent = 0;
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.outbox = Vec::new();
        self.sent = 0;
        self.stalled = None;
        true
    }
}

/// Reads a line as a request.
pub(crate) fn parse(line: &[u8]) -> Line {
    let value: Value = match serde_json::from_slice(line) {
        Ok(value) => value,
        Err(error) => {
            let fault =
                Fault::usage(format!("this is not JSON: {error}")).hint("one JSON-RPC 2.0 request a line");
            return Line::Refused(protocol_error(-32700, &fault));
        }
    };
    let Value::Object(mut request) = value else {
        let fault =
            Fault::usage("a request is a JSON object; batches are not taken").hint("one request a line");
        return Line::Refused(protocol_error(-32600, &fault));
    };
    let id = request.remove("id");
    let answer_to = id.clone().unwrap_or(Value::Null);
    let refuse = |why: &str| {
        let mut answer = protocol_error(-32600, &Fault::usage(why));
        answer["id"] =
            if answer_to.is_string() || answer_to.is_number() { answer_to.clone() } else { Value::Null };
        Line::Refused(answer)
    };
    if request.get("jsonrpc") != Some(&json!("2.0")) {
        return refuse("`jsonrpc` must be \"2.0\"");
    }
    if id.as_ref().is_some_and(|id| !(id.is_string() || id.is_number() || id.is_null())) {
        return refuse("`id` must be a string or a number");
    }
    let Some(Value::String(method)) = request.remove("method") else {
        return refuse("`method` must be a string");
    };
    match request.remove("params").unwrap_or_else(|| json!({})) {
        params @ Value::Object(_) => Line::Request(Request { id, method, params }),
        Value::Null => Line::Request(Request { id, method, params: json!({}) }),
        _ => refuse("`params` must be an object"),
    }
}

/// The line that answers a request that succeeded, by the text of its result.
pub(crate) fn answer(id: &Value, result: &str) -> Vec<u8> {
    let mut line = format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":");
    line.reserve_exact(result.len() + 2);
    line.push_str(result);
    line.push_str("}\n");
    line.into_bytes()
}

/// The answer to a request that failed.
pub(crate) fn error_answer(id: Value, fault: &Fault) -> Value {
    error_with(id, fault.kind.rpc_code(), fault)
}

/// The answer to a request for a method that there is not.
pub(crate) fn no_such_method(id: Value, method: &str) -> Value {
    let near = crate::fault::nearest(method, names());
    let fault = Fault::new(Kind::Usage, format!("there is no method `{}`", crate::fault::printable(method)));
    let fault = match near {
        Some(near) => fault.hint(format!("did you mean {near}?")),
        None => fault.hint(names().collect::<Vec<_>>().join(", ")),
    };
    error_with(id, -32601, &fault)
}

fn protocol_error(code: i64, fault: &Fault) -> Value {
    error_with(Value::Null, code, fault)
}

fn error_with(id: Value, code: i64, fault: &Fault) -> Value {
    let data = ErrorData {
        kind: fault.kind,
        held_by: fault.held_by.clone(),
        hint: fault.hint.clone(),
        path: fault.path.clone(),
        given: fault.given_word().map(str::to_owned),
        expected: fault.expected_words().to_vec(),
        retryable: fault.retryable,
        retry_after_ms: fault.retry_after_ms,
    };
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": fault.message, "data": data } })
}

pub(crate) fn line_of(message: &Value) -> Vec<u8> {
    let mut line = message.to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> i64 {
        match parse(text.as_bytes()) {
            Line::Refused(answer) => answer["error"]["code"].as_i64().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn client() -> (Client, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut clients = Clients::default();
        let id = clients.admit(ours, Caller::own(), Role::Administrator).unwrap();
        (clients.slots.remove(&id).unwrap(), theirs)
    }

    /// A feature of serde_json, which any package may turn on for all, has such an object read as the JSON in its string, without a bound
    /// of depth: a line of a viewer's could end the daemon.
    #[test]
    fn object_is_read_as_it_stands_and_no_deeper_than_the_reader_goes() {
        let key = "$serde_json::private::RawValue";
        let read = |value: &str| -> Value {
            serde_json::from_str(&format!("{{\"{key}\":{value}}}")).unwrap_or_default()
        };
        assert_eq!(read("\"[1]\""), json!({ key: "[1]" }));
        let deep = format!("{{\"method\":\"hello\",\"params\":{}", "[".repeat(100_000));
        assert!(matches!(parse(deep.as_bytes()), Line::Refused(_)));
    }

    #[test]
    fn request_is_read_with_and_without_parameters() {
        let expected = Request { id: Some(json!(7)), method: "hello".into(), params: json!({}) };
        assert_eq!(parse(br#"{"jsonrpc":"2.0","id":7,"method":"hello"}"#), Line::Request(expected.clone()));
        assert_eq!(
            parse(br#"{"jsonrpc":"2.0","id":7,"method":"hello","params":null}"#),
            Line::Request(expected)
        );
    }

    #[test]
    fn what_is_no_request_is_refused_by_code() {
        assert_eq!(refused("{"), -32700);
        assert_eq!(refused(&"[".repeat(100_000)), -32700);
        assert_eq!(refused("[]"), -32600);
        assert_eq!(refused(r#"{"id":1,"method":"hello"}"#), -32600);
        assert_eq!(refused(r#"{"jsonrpc":"2.0","id":{},"method":"hello"}"#), -32600);
        assert_eq!(refused(r#"{"jsonrpc":"2.0","id":1,"method":5}"#), -32600);
        assert_eq!(refused(r#"{"jsonrpc":"2.0","id":1,"method":"hello","params":[]}"#), -32600);
    }

    #[test]
    fn requests_split_and_joined_on_the_wire_are_whole_lines() {
        let (mut client, mut theirs) = client();
        let text = br#"{"jsonrpc":"2.0","id":1,"method":"hello"}"#;
        theirs.write_all(&text[..10]).unwrap();
        assert!(client.fill());
        assert_eq!(client.take_line(), None);
        theirs.write_all(&text[10..]).unwrap();
        theirs.write_all(b"\n").unwrap();
        theirs.write_all(text).unwrap();
        assert!(client.fill());
        assert!(matches!(client.take_line(), Some(Line::Request(_))));
        assert_eq!(client.take_line(), None);
    }

    #[test]
    fn oversize_request_is_refused_and_the_client_ends() {
        let (mut client, mut theirs) = client();
        let writer = std::thread::spawn(move || {
            let _ = theirs.write_all(&vec![b'x'; LONGEST_REQUEST + 1]);
            theirs
        });
        let line = loop {
            assert!(client.fill());
            if let Some(line) = client.take_line() {
                break line;
            }
        };
        assert!(matches!(line, Line::Oversize(_)));
        assert!(!client.wants_to_read() && client.is_done());
        drop(client);
        writer.join().unwrap();
    }

    #[test]
    fn request_and_answers_are_taken_up_to_their_bounds() {
        for (len, is_good) in
            [(LONGEST_REQUEST - 1, true), (LONGEST_REQUEST, true), (LONGEST_REQUEST + 1, false)]
        {
            let (mut client, _theirs) = client();
            // The newline is one of them.
            client.inbox = [vec![b' '; len - 1], vec![b'\n']].concat();
            assert!(client.has_line());
            assert_eq!(!matches!(client.take_line(), Some(Line::Oversize(_))), is_good, "{len}");
        }
        for (len, is_full) in [(OUTBOX_PAUSE - 1, false), (OUTBOX_PAUSE, true), (OUTBOX_PAUSE + 1, true)] {
            let (mut client, _theirs) = client();
            client.outbox = vec![b' '; len];
            client.inbox = b"{}\n".to_vec();
            assert_eq!(
                (client.is_full(), client.wants_to_read(), client.has_line()),
                (is_full, !is_full, !is_full)
            );
            // What was written of it waits no more.
            client.sent = 2;
            assert!(!client.is_full() && client.take_line().is_some());
        }
    }

    #[test]
    fn client_that_does_not_read_is_paused_then_dropped() {
        let (mut client, theirs) = client();
        let message = json!("x".repeat(10_000));
        while !client.is_full() {
            client.say(&message);
            assert!(client.flush());
        }
        client.inbox = b"{}\n".to_vec();
        assert_eq!(client.take_line(), None);
        assert!(!client.wants_to_read() && client.stalled.is_some());
        client.stalled = Instant::now().checked_sub(SLOWEST_READER);
        // A follower may rest (in a pager, say) for as long as its place is not needed.
        client.subscription = Some(Subscription { cursor: 0, types: Vec::new() });
        let mut clients = Clients::default();
        clients.slots.insert(1, client);
        clients.drop_stalled();
        assert_eq!(clients.len(), 1);
        clients.slots.get_mut(&1).unwrap().subscription = None;
        clients.drop_stalled();
        assert_eq!((clients.len(), clients.dropped["slow_reader"]), (0, 1));
        drop(theirs);
    }

    #[test]
    fn silent_client_gives_way_when_all_places_are_taken() {
        let mut clients = Clients::default();
        let mut held = Vec::new();
        for _ in 0..MOST_CLIENTS {
            let (ours, theirs) = UnixStream::pair().unwrap();
            held.push(theirs);
            clients.admit(ours, Caller::own(), Role::Administrator).unwrap();
        }
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(clients.admit(ours, Caller::own(), Role::Administrator), None);
        let mut told = String::new();
        theirs.read_to_string(&mut told).unwrap();
        assert!(told.contains("too many clients"), "{told}");
        let silent = clients.by_id(3).unwrap();
        silent.heard = Instant::now().checked_sub(SILENT).unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        clients.admit(ours, Caller::own(), Role::Administrator).unwrap();
        assert!(clients.by_id(3).is_none());
        assert_eq!(clients.dropped["silent"], 1);
    }

    #[test]
    fn refusals_are_logged_at_a_rate_however_many_connections_there_are() {
        let (mut clients, now) = (Clients::default(), Instant::now());
        let taken = (0..100).filter(|_| clients.may_log_refusal(now)).count();
        assert_eq!(taken, REFUSALS_AT_ONCE as usize);
        let later = now + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| clients.may_log_refusal(later)).count(), REFUSALS_PER_SECOND as usize);
    }

    #[test]
    fn viewers_leave_the_administrators_their_places() {
        let mut clients = Clients::default();
        let mut held = Vec::new();
        let mut come = |clients: &mut Clients, role| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            held.push(theirs);
            clients.admit(ours, Caller::own(), role)
        };
        let administrator = come(&mut clients, Role::Administrator).unwrap();
        for _ in 0..MOST_VIEWERS {
            come(&mut clients, Role::Viewer).unwrap();
        }
        // However long the administrator has been silent.
        clients.by_id(administrator).unwrap().heard = Instant::now().checked_sub(SILENT).unwrap();
        assert_eq!(come(&mut clients, Role::Viewer), None);
        assert!(clients.by_id(administrator).is_some());
        for _ in 1..MOST_CLIENTS - MOST_VIEWERS {
            come(&mut clients, Role::Administrator).unwrap();
        }
        assert_eq!(clients.len(), MOST_CLIENTS);
    }
}
