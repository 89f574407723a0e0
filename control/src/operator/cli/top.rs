//! `top`: what happens in a second, of devices, queues, cores and pumps, while it runs.
//!
//! ```text
//!   looking thread:  daemon --sample--> rates --> channel        this thread:  channel, keys --> view --> screen
//! ```
//!
//! A daemon that does not answer holds up no key. Where it is away, or another one since, that is said, and the looks go on.

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::json;

use crate::fault::{Fault, Kind};
use crate::operator::api::Sample;
use crate::operator::cli::requests::{self, Looks};
use crate::operator::cli::ringway::TopArgs;
use crate::operator::cli::run::write;
use crate::operator::client::Client;
use crate::operator::rates::Rates;

use view::View;

// What is on the screen.
mod screen;
// Rows and columns.
mod table;
// What is to be seen, and what keys do.
mod view;

/// Between two looks, if nothing else is said.
const EVERY: Duration = Duration::from_secs(1);
/// How long keys wait for at most.
const KEYS_WITHIN: Duration = Duration::from_millis(50);

/// Runs until it is told to end, or has shown as many looks as were asked for.
pub(super) fn run(args: &TopArgs, json: bool, ctl: &Path, within: Duration) -> Result<(), Fault> {
    let (looks, others) = requests::looks(&args.words)?;
    requests::nothing_more(&others, "interval SECONDS")?;
    let every = looks.map_or(EVERY, |looks| looks.every);
    let looks = Looks { every, count: args.count.or(looks.and_then(|looks| looks.count)) };
    let source = Source { ctl: ctl.to_owned(), within, client: None, before: None };
    if json {
        return lines(source, looks);
    }
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    if is_dumb || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let hint = "ringway -j top prints a line for each look, for scripts";
        return Err(Fault::usage("top needs a terminal that can move its cursor").hint(hint));
    }
    on_screen(source, looks)
}

/// What came of a look.
#[derive(Debug)]
enum Look {
    /// What happened since the one before.
    Rates { instance: String, up_ns: u64, rates: Box<Rates> },
    /// There is none before it, or it was of another daemon.
    First,
    /// Nobody answered.
    Away(Fault),
}

/// Who is asked.
#[derive(Debug)]
struct Source {
    ctl: std::path::PathBuf,
    within: Duration,
    client: Option<Client>,
    before: Option<Sample>,
}

impl Source {
    fn look(&mut self) -> Look {
        let now = match self.sample() {
            Ok(now) => now,
            Err(fault) => {
                (self.client, self.before) = (None, None);
                return Look::Away(fault);
            }
        };
        let before = self.before.take().filter(|before| before.instance == now.instance);
        let look = before.map_or(Look::First, |before| Look::Rates {
            instance: now.instance.clone(),
            up_ns: now.up_ns,
            rates: Box::new(Rates::between(&before, &now)),
        });
        self.before = Some(now);
        look
    }

    fn sample(&mut self) -> Result<Sample, Fault> {
        let client = match &mut self.client {
            Some(client) => client,
            None => self.client.insert(Client::connect(&self.ctl, self.within)?),
        };
        client.call("sample", &json!({}))
    }
}

/// What does not pass by itself.
fn is_final(fault: &Fault) -> bool {
    !matches!(fault.kind, Kind::Unreachable | Kind::Timeout)
}

/// A line of `-j`.
#[derive(Serialize)]
struct Line<'a> {
    /// Since 1970.
    time_ms: u64,
    instance: &'a str,
    up_ns: u64,
    #[serde(flatten)]
    rates: &'a Rates,
}

/// A line of JSON for each look. Looks at a daemon that is away count, so that it ends.
fn lines(mut source: Source, looks: Looks) -> Result<(), Fault> {
    let (mut shown, mut next) = (0, Instant::now());
    let most = looks.count.unwrap_or(u64::MAX);
    loop {
        let look = source.look();
        match &look {
            Look::Rates { instance, up_ns, rates } => {
                let line = Line { time_ms: now_ms(), instance, up_ns: *up_ns, rates };
                let line = serde_json::to_string(&line)
                    .map_err(|error| Fault::new(Kind::Runtime, error.to_string()))?;
                write(&(line + "\n"))?;
                shown += 1;
            }
            Look::First => {}
            Look::Away(fault) if is_final(fault) => return Err(fault.clone()),
            Look::Away(fault) => {
                write(&format!("{}\n", json!({ "time_ms": now_ms(), "away": fault.to_string() })))?;
                shown += 1;
            }
        }
        if shown >= most {
            return if let Look::Away(fault) = look { Err(fault) } else { Ok(()) };
        }
        next = (next + looks.every).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Looks until nobody listens; a time that comes is the new interval.
fn look_on(mut source: Source, mut every: Duration, found: &Sender<Look>, intervals: &Receiver<Duration>) {
    let mut next = Instant::now();
    while found.send(source.look()).is_ok() {
        next = (next + every).max(Instant::now());
        loop {
            match intervals.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(other) => {
                    every = other;
                    next = next.min(Instant::now() + every);
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

fn on_screen(source: Source, looks: Looks) -> Result<(), Fault> {
    let (found, news) = channel();
    let (told, intervals) = channel();
    // It ends with the process: what it waits for may be a daemon that hangs.
    std::thread::Builder::new()
        .name("looks".to_owned())
        .spawn(move || look_on(source, looks.every, &found, &intervals))
        .map_err(|error| Fault::system("cannot start a thread", error))?;
    let failed = |error| Fault::system("cannot use the terminal", error);
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let mut view = View::new(looks.every, std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()));
    let outcome = watch(&mut terminal, &mut view, &news, &told, looks.count);
    ratatui::restore();
    outcome.map_err(|ended| match ended {
        Ended::Terminal(error) => failed(error),
        Ended::Daemon(fault) => fault,
    })
}

/// Why nothing is shown any more.
enum Ended {
    Terminal(io::Error),
    Daemon(Fault),
}

fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    view: &mut View,
    news: &Receiver<Look>,
    told: &Sender<Duration>,
    count: Option<u64>,
) -> Result<(), Ended> {
    use ratatui::crossterm::event;
    let mut left = count.unwrap_or(u64::MAX);
    loop {
        terminal.draw(|frame| screen::draw(frame, view)).map_err(Ended::Terminal)?;
        if left == 0 {
            return Ok(());
        }
        if event::poll(KEYS_WITHIN).map_err(Ended::Terminal)?
            && let event::Event::Key(key) = event::read().map_err(Ended::Terminal)?
        {
            match view.key(key) {
                view::Act::Go => {}
                view::Act::End => return Ok(()),
                // The thread that is told ends with this one only.
                view::Act::Every(every) => drop(told.send(every)),
            }
        }
        for look in news.try_iter() {
            match look {
                Look::Away(fault) if is_final(&fault) => return Err(Ended::Daemon(fault)),
                Look::Rates { .. } => left = left.saturating_sub(1),
                _ => {}
            }
            view.take(look);
        }
    }
}
