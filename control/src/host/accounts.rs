//! Users and groups by name: the host's own tables first, then the name service (NSS: LDAP, sssd, systemd's dynamic users).
//!
//! A name service may be a directory at the other end of a network, and control waits for nobody: it is asked by threads of
//! its own, and given a moment. What it answers later is kept for the next who asks.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::{Group, User};

use crate::fault::{Fault, Kind};

/// A user's name, or a group's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Account {
    /// The owner of a socket.
    User,
    /// The group of a socket.
    Group,
}

impl Account {
    fn table(self) -> &'static Path {
        Path::new(match self {
            Account::User => "/etc/passwd",
            Account::Group => "/etc/group",
        })
    }

    /// The noun, and the keyword.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Account::User => ("user", "owner"),
            Account::Group => ("group", "group"),
        }
    }

    /// The number of a name or of a number; `within` is how long the name service has.
    pub(crate) fn id(self, word: &str, within: Duration) -> Result<u32, Fault> {
        let (noun, keyword) = self.words();
        match word.parse::<u32>() {
            // chown(2) takes it for "as it is".
            Ok(u32::MAX) => {
                return Err(Fault::usage(format!("{keyword}: {} is no {noun}", u32::MAX)).at(keyword));
            }
            Ok(id) => return Ok(id),
            Err(_) => {}
        }
        if word.len() > LONGEST_NAME {
            let what = format!("{keyword}: a name of {} bytes, at most {LONGEST_NAME}", word.len());
            return Err(Fault::usage(what).at(keyword));
        }
        let shown = crate::fault::printable(word);
        if let Some(id) = find(self.table(), |name, _| name == word).map(|(_, id)| id) {
            return Ok(id);
        }
        match SERVICE.ask(self, word, within, look_up) {
            Answer::Is(id) => Ok(id),
            Answer::IsNone => Err(Fault::not_found(format!("there is no {noun} `{shown}`"))
                .at(keyword)
                .hint(format!("a name that `getent {}` knows, or a number", self.database()))),
            Answer::Failed(why) => {
                let what = format!("cannot look up the {noun} `{shown}`: {why}");
                Err(Fault::new(Kind::Runtime, what).at(keyword).hint("a number").retryable())
            }
            Answer::NotYet => {
                let what = format!("who the {noun} `{shown}` is: the name service has not answered yet");
                Err(Fault::new(Kind::Timeout, what)
                    .at(keyword)
                    .hint("again in a moment, or a number")
                    .retryable())
            }
        }
    }

    /// The name of a number, as far as it is known without waiting; else the number.
    pub(crate) fn name(self, id: u32) -> String {
        let named = find(self.table(), |_, number| number == id).map(|(name, _)| name);
        named.or_else(|| SERVICE.name(self, id)).unwrap_or_else(|| id.to_string())
    }

    fn database(self) -> &'static str {
        match self {
            Account::User => "passwd",
            Account::Group => "group",
        }
    }
}

/// Bytes of a name at most (`LOGIN_NAME_MAX`, limits.h).
const LONGEST_NAME: usize = 256;
/// Answers that are kept at a time.
const MOST_KEPT: usize = 64;
/// How long control waits for the name service.
pub(crate) const A_MOMENT: Duration = Duration::from_millis(200);
/// How long a command waits for it.
pub(crate) const A_WHILE: Duration = Duration::from_secs(5);
/// How long an answer is good.
const GOOD_FOR: Duration = Duration::from_secs(30);
/// Questions that are open at a time: each has a thread.
const MOST_OPEN: usize = 8;

/// The first line of a table (`NAME:x:NUMBER:...`) that is meant.
fn find(table: &Path, is_meant: impl Fn(&str, u32) -> bool) -> Option<(String, u32)> {
    let text = std::fs::read_to_string(table).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let id = fields.nth(1)?.parse().ok()?;
        is_meant(name, id).then(|| (name.to_owned(), id))
    })
}

/// Asks the C library, which waits for as long as it takes.
fn look_up(account: Account, word: &str) -> Answer {
    let found = match account {
        Account::User => User::from_name(word).map(|user| user.map(|user| user.uid.as_raw())),
        Account::Group => Group::from_name(word).map(|group| group.map(|group| group.gid.as_raw())),
    };
    match found {
        Ok(Some(id)) => Answer::Is(id),
        Ok(None) => Answer::IsNone,
        Err(error) => Answer::Failed(error.desc().to_owned()),
    }
}

/// What the name service says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Is(u32),
    IsNone,
    Failed(String),
    NotYet,
}

/// An answer, and when it came.
#[derive(Debug, Clone)]
struct Answered {
    answer: Answer,
    at: Instant,
}

type Known = HashMap<(Account, String), Option<Answered>>;

/// Forgets the oldest answer, where as many are kept as may be.
fn make_room(known: &mut Known) {
    if known.len() < MOST_KEPT {
        return;
    }
    let answered = known.iter().filter_map(|(key, answer)| Some((answer.as_ref()?.at, key)));
    if let Some(oldest) = answered.min_by_key(|(at, _)| *at).map(|(_, key)| key.clone()) {
        known.remove(&oldest);
    }
}

/// The questions to the name service: open ones, and those answered lately.
#[derive(Default)]
struct Service {
    /// None: asked, and not answered.
    known: Mutex<Known>,
    answered: Condvar,
}

static SERVICE: std::sync::LazyLock<Arc<Service>> = std::sync::LazyLock::new(Arc::default);

impl Service {
    fn ask(
        self: &Arc<Self>,
        account: Account,
        word: &str,
        within: Duration,
        look_up: fn(Account, &str) -> Answer,
    ) -> Answer {
        let key = (account, word.to_owned());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, answer| answer.as_ref().is_none_or(|answered| answered.at.elapsed() < GOOD_FOR));
        if !known.contains_key(&key) {
            if known.values().filter(|answer| answer.is_none()).count() >= MOST_OPEN {
                return Answer::NotYet;
            }
            make_room(&mut known);
            let (service, asked) = (Arc::clone(self), key.clone());
            let thread = std::thread::Builder::new().name("rw-names".to_owned()).spawn(move || {
                let answer = look_up(asked.0, &asked.1);
                let mut known = service.known.lock().unwrap_or_else(PoisonError::into_inner);
                known.insert(asked, Some(Answered { answer, at: Instant::now() }));
                service.answered.notify_all();
            });
            if let Err(error) = thread {
                return Answer::Failed(crate::fault::reason(&error));
            }
            known.insert(key.clone(), None);
        }
        let is_open = |known: &mut HashMap<_, Option<_>>| known.get(&key).is_some_and(Option::is_none);
        let (known, _) =
            self.answered.wait_timeout_while(known, within, is_open).unwrap_or_else(PoisonError::into_inner);
        known.get(&key).cloned().flatten().map_or(Answer::NotYet, |answered| answered.answer)
    }

    /// A name that was answered with this number.
    fn name(&self, account: Account, id: u32) -> Option<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it =
            |answered: &Option<Answered>| answered.as_ref().is_some_and(|it| it.answer == Answer::Is(id));
        let found = known.iter().find(|((kind, _), answer)| *kind == account && is_it(answer));
        found.map(|((_, name), _)| name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hosts_tables_and_numbers_are_known_at_once() {
        assert_eq!(Account::User.id("root", Duration::ZERO).unwrap(), 0);
        assert_eq!(Account::Group.id("12345", Duration::ZERO).unwrap(), 12345);
        assert_eq!(
            (Account::User.name(0).as_str(), Account::Group.name(987_654).as_str()),
            ("root", "987654")
        );
    }

    #[test]
    fn name_that_nobody_knows_is_not_found_by_the_name_service_either() {
        for account in [Account::User, Account::Group] {
            let fault = account.id("no such name", A_WHILE).unwrap_err();
            assert_eq!(fault.kind, Kind::NotFound, "{fault}");
            assert!(fault.hint.unwrap().contains("getent"));
        }
    }

    #[test]
    fn name_service_that_hangs_is_not_waited_for_and_its_answer_kept() {
        let service = Arc::new(Service::default());
        static GATE: Mutex<()> = Mutex::new(());
        let slow = |_: Account, word: &str| {
            drop(GATE.lock().unwrap());
            Answer::Is(word.len() as u32)
        };
        let ask = |word: &str, within| service.ask(Account::User, word, within, slow);
        let shut = GATE.lock().unwrap();
        assert_eq!(ask("alice", Duration::ZERO), Answer::NotYet);
        drop(shut);
        // Another question waits for its own answer, and the first is there by then.
        assert_eq!(ask("bob", A_WHILE), Answer::Is(3));
        assert_eq!(ask("alice", A_WHILE), Answer::Is(5));
        assert_eq!(service.name(Account::User, 5).as_deref(), Some("alice"));
        assert_eq!(service.name(Account::Group, 5), None);
    }

    #[test]
    fn names_and_answers_that_are_kept_are_bounded() {
        let service = Arc::new(Service::default());
        let at_once = |_: Account, word: &str| Answer::Is(word.parse().unwrap());
        for n in 0..2 * MOST_KEPT as u32 {
            let answer = service.ask(Account::User, &n.to_string(), A_WHILE, at_once);
            assert_eq!(answer, Answer::Is(n));
        }
        let known = service.known.lock().unwrap();
        assert_eq!(known.len(), MOST_KEPT);
        // The newest are those that stay.
        let oldest = known.keys().map(|(_, word)| word.parse::<usize>().unwrap()).min();
        assert_eq!(oldest, Some(MOST_KEPT));
        let told = Account::User.id(&"x".repeat(LONGEST_NAME + 1), Duration::ZERO).unwrap_err();
        assert_eq!(told.kind, Kind::Usage, "{told}");
    }

    #[test]
    fn open_questions_are_bounded() {
        let service = Arc::new(Service::default());
        let never = |_: Account, _: &str| -> Answer {
            loop {
                std::thread::park();
            }
        };
        for n in 0..MOST_OPEN + 3 {
            assert_eq!(service.ask(Account::User, &n.to_string(), Duration::ZERO, never), Answer::NotYet);
        }
        assert_eq!(service.known.lock().unwrap().len(), MOST_OPEN);
    }
}
