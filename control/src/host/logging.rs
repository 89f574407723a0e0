//! What is logged, and in which form: levels that can be changed while the process runs, for all or for one device, and lines
//! as whoever reads them wants them.
//!
//! | level | what |
//! | --- | --- |
//! | `error` | something failed that somebody has to see to |
//! | `warn` | something is wrong; the line says what to do |
//! | `info` | what happened, and what operators changed |
//! | `debug` | each vhost-user message of a device, and what was answered |
//! | `trace` | their bytes as well |
//!
//! A line for people begins with the time and the level. Where standard error is the journal's stream, journald knows the time:
//! it is given the priority, and the fields by name where its socket is there.
//!
//! Lines are written by the log's thread ([`super::log`]); here they are made, on whichever thread logs. No worker does.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterExt as _, filter_fn};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::log::{Form, Log};
use crate::fault::{Fault, Kind};

/// Where a device's own level lets lines through that everybody's would not.
pub(crate) const OF_DEVICE: &str = "ringway::device";

/// What of this process's log can be changed.
struct Levels {
    handle: reload::Handle<EnvFilter, Registry>,
    form: Form,
    filters: Mutex<Filters>,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filters {
    /// As the options or the file say.
    pub(crate) said: String,
    /// As it is: an operator may have set something else.
    pub(crate) now: String,
}

static LEVELS: OnceLock<Levels> = OnceLock::new();

/// Reads what is to be logged.
pub(crate) fn filter(wanted: &str) -> Result<EnvFilter, Fault> {
    if wanted.len() > LONGEST_FILTERS {
        let fault = Fault::usage(format!("log: {} bytes, at most {LONGEST_FILTERS}", wanted.len()));
        return Err(fault.at("log").hint("error, warn, info, debug, trace, or MODULE=LEVEL"));
    }
    // Of spans, which this program has none of, and of fields.
    if wanted.contains(['[', '{']) {
        let fault = Fault::usage(format!("log `{}`: no spans or fields", crate::fault::printable(wanted)));
        return Err(fault.at("log").hint("error, warn, info, debug, trace, or MODULE=LEVEL"));
    }
    // A word alone would be taken for the name of a module, and a mistyped level would silence everything.
    let is_level = |word: &&str| LEVEL_NAMES.iter().any(|level| level.eq_ignore_ascii_case(word));
    if let Some(word) = wanted.split(',').find(|word| !word.contains('=') && !is_level(&word.trim())) {
        let word = crate::fault::printable(word);
        let fault =
            Fault::usage(format!("log `{}`: `{word}` is not a level", crate::fault::printable(wanted)));
        return Err(fault.at("log").hint("error, warn, info, debug, trace, or MODULE=LEVEL"));
    }
    // Without regular expressions: one that is small as text may need all the memory there is.
    EnvFilter::builder().with_regex(false).parse(wanted).map_err(|error| {
        let wanted = crate::fault::printable(wanted);
        Fault::usage(format!("log `{wanted}`: {error}")).at("log").hint("error, warn, info, debug or trace")
    })
}

/// Bytes of what is to be logged, at most.
const LONGEST_FILTERS: usize = 1024;

/// The words for levels, from nothing to everything.
pub(crate) const LEVEL_NAMES: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Has everything logged that this process says from now on.
///
/// # Errors
/// It is no level, or the thread cannot be started.
pub(crate) fn start(wanted: &str) -> Result<Log, Fault> {
    let filter = filter(wanted)?;
    let started = match of_journal(io::stderr()) {
        false => Log::start(io::stderr(), Form::Text),
        true => match UnixDatagram::unbound().and_then(|socket| {
            socket.connect(Path::new(JOURNAL))?;
            Ok(socket)
        }) {
            Ok(socket) => Log::start(Journal { socket }, Form::Journal),
            Err(_) => Log::start(io::stderr(), Form::Prefixed),
        },
    };
    let log = started.map_err(|error| Fault::system("cannot start the log's thread", error))?;
    log.take_panics();
    let (filter, handle) = reload::Layer::new(filter);
    let filter = filter.or(filter_fn(|line| line.target() == OF_DEVICE));
    let form = log.form();
    let made = match form {
        Form::Text => {
            let lines = tracing_subscriber::fmt::layer()
                .with_writer(log.clone())
                .with_ansi(false)
                .with_target(false)
                // A line that cannot be written is lost; telling so on the same stream would panic.
                .log_internal_errors(false);
            tracing_subscriber::registry().with(lines.with_filter(filter)).try_init()
        }
        Form::Prefixed | Form::Journal => {
            let lines = Lines { log: log.clone() };
            tracing_subscriber::registry().with(lines.with_filter(filter)).try_init()
        }
    };
    made.map_err(|error| Fault::new(Kind::Runtime, error.to_string()))?;
    let filters = Mutex::new(Filters { said: wanted.to_owned(), now: wanted.to_owned() });
    let _ = LEVELS.set(Levels { handle, form, filters });
    Ok(log)
}

/// What is logged now, and where it goes. None: this process's log is somebody else's.
pub(crate) fn now() -> Option<(String, &'static str)> {
    let levels = LEVELS.get()?;
    let to = match levels.form {
        Form::Text => "standard error",
        Form::Prefixed => "standard error, for journald",
        Form::Journal => "journald",
    };
    Some((filters()?.now, to))
}

/// What is logged now, and what was said to be. None: this process's log is somebody else's.
pub(crate) fn filters() -> Option<Filters> {
    Some(LEVELS.get()?.filters.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Says whether this can be logged.
///
/// # Errors
/// It is no level, and no filters.
pub(crate) fn check(wanted: &str) -> Result<(), Fault> {
    if wanted == "default" { Ok(()) } else { filter(wanted).map(drop) }
}

/// Has something else logged from now on: a level or filters; `default`: as the options or the file say.
///
/// # Errors
/// It is none of these.
pub(crate) fn set(wanted: &str) -> Result<(), Fault> {
    let Some(Filters { said, .. }) = filters() else {
        return Err(Fault::new(Kind::Runtime, "this process's log is not ringwayd's own"));
    };
    let now = if wanted == "default" { said.clone() } else { wanted.to_owned() };
    replace(Filters { said, now })
}

/// Has something else logged from now on, and said to be. Does nothing where this process's log is somebody else's.
///
/// # Errors
/// It is no level, and no filters.
pub(crate) fn replace(filters: Filters) -> Result<(), Fault> {
    let Some(levels) = LEVELS.get() else { return Ok(()) };
    let filter = filter(&filters.now)?;
    levels.handle.reload(filter).map_err(|error| Fault::new(Kind::Runtime, error.to_string()))?;
    *levels.filters.lock().unwrap_or_else(PoisonError::into_inner) = filters;
    Ok(())
}

/// Whether a stream is the one that the journal gave this process (systemd.exec(5), `JOURNAL_STREAM`).
fn of_journal(stream: impl AsFd) -> bool {
    let Some(told) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    rustix::fs::fstat(stream).is_ok_and(|facts| told == format!("{}:{}", facts.st_dev, facts.st_ino))
}

/// Lines for journald, one event each.
struct Lines {
    log: Log,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        let priority = priority(*event.metadata().level());
        match self.log.form() {
            Form::Journal => self.log.add(&said.entry(priority)),
            Form::Text | Form::Prefixed => {
                // journald takes each line of a stream for a message.
                let text = said.text().replace('\n', " ");
                self.log.add(format!("<{priority}>{text}\n").as_bytes());
            }
        }
    }
}

/// As syslog(3) counts them.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// What an event says: its message and its fields.
#[derive(Debug, Default)]
struct Said {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Said {
    /// As a line has it, without time and level.
    fn text(&self) -> String {
        let mut text = self.message.clone();
        for (name, value) in &self.fields {
            let gap = if text.is_empty() { "" } else { " " };
            let _ = write!(text, "{gap}{name}={value}");
        }
        text
    }

    /// As journald's own protocol has it.
    fn entry(&self, priority: u8) -> Vec<u8> {
        let mut entry = entry_of(priority, &self.text());
        for (name, value) in &self.fields {
            put_field(&mut entry, &format!("RINGWAY_{}", field_name(name)), value.as_bytes());
        }
        entry
    }
}

/// An entry of a text alone.
pub(super) fn entry_of(priority: u8, text: &str) -> Vec<u8> {
    let mut entry = Vec::new();
    put_field(&mut entry, "PRIORITY", priority.to_string().as_bytes());
    put_field(&mut entry, "SYSLOG_IDENTIFIER", b"ringwayd");
    put_field(&mut entry, "MESSAGE", text.trim_end().as_bytes());
    entry
}

fn field_name(name: &str) -> String {
    name.chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_uppercase() } else { '_' })
        .collect()
}

/// A field, with its length where its value has several lines.
fn put_field(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            name => self.fields.push((name, value.to_owned())),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.fields.push((name, format!("{value:?}"))),
        }
    }
}

/// journald's socket: what is written in one call is an entry.
struct Journal {
    socket: UnixDatagram,
}

impl Write for Journal {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        // It was started anew, or what was said is larger than it takes so.
        if self.socket.send(entry).is_err() {
            let again = self.socket.connect(Path::new(JOURNAL)).and_then(|()| self.socket.send(entry));
            if again.is_err() {
                self.socket.send(&entry_of(4, "a line of the log was larger than journald takes"))?;
            }
        }
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const JOURNAL: &str = "/run/systemd/journal/socket";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_has_a_priority_its_text_and_each_field_by_a_name_that_journald_takes() {
        let said = Said {
            message: "operator".into(),
            fields: vec![("dev", "vm0".into()), ("held-by", "a\nb".into())],
        };
        assert_eq!(said.text(), "operator dev=vm0 held-by=a\nb");
        let expected = [
            &b"PRIORITY=6\nSYSLOG_IDENTIFIER=ringwayd\nMESSAGE\n"[..],
            &28u64.to_le_bytes(),
            b"operator dev=vm0 held-by=a\nb\nRINGWAY_DEV=vm0\nRINGWAY_HELD_BY\n",
            &3u64.to_le_bytes(),
            b"a\nb\n",
        ];
        assert_eq!(said.entry(6), expected.concat());
    }

    #[test]
    fn each_event_is_one_line_with_its_priority_and_no_time() {
        let (mut reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        let log = Log::start(writer, Form::Prefixed).unwrap();
        let lines = Lines { log: log.clone() };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            tracing::error!(dev = "vm0", times = 3, "first\nof {}", 2);
            tracing::warn!("second");
            tracing::info!("third");
            tracing::debug!(log_form = %"x", "fourth");
        });
        log.add_text("a panic\n");
        drop(log);
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).unwrap();
        assert_eq!(
            text,
            "<3>first of 2 dev=vm0 times=3\n<4>second\n<6>third\n<7>fourth log_form=x\n<3>a panic\n"
        );
    }

    #[test]
    fn text_that_is_no_level_is_refused() {
        for text in ["info", "warn,ringway_pmd=debug", "OFF"] {
            filter(text).unwrap();
        }
        let told = filter("inof").unwrap_err().to_string();
        assert!(told.contains("`inof` is not a level"), "{told}");
        assert!(filter("x=loud").is_err());
        // Nothing of it is a regular expression, and none is long.
        for text in ["[{dev=(a|b)*a(a|b)(a|b)}]=info", "ringway[x]=info", "info,x[{a}]=debug"] {
            let told = filter(text).unwrap_err().to_string();
            assert!(told.contains("no spans or fields"), "{told}");
        }
        let most = format!("{}=info", "x".repeat(LONGEST_FILTERS - 5));
        filter(&most).unwrap();
        let told = check(&format!("x{most}")).unwrap_err().to_string();
        assert!(told.contains("1025 bytes, at most 1024"), "{told}");
    }
}
