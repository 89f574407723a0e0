//! Looks at what was made on the host: what is gone, what is missing, and which directories nobody has touched.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::fault::{Fault, reason};
use crate::host::standing::{Identity, Standing};

/// Between two looks: what was taken away is there again within a second, also on a host that is busy.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(400);

/// Looks until one that goes through every directory: names may change without a trace in some file systems.
const WHOLE_EVERY: u32 = 10;

/// A directory that was changed so short a time ago may change again without being seen: its clock is a coarse one.
const COARSE: Duration = Duration::from_secs(1);

/// What was seen of directories in the last look.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    seen: HashMap<PathBuf, (Identity, SystemTime)>,
    /// In this look: whether nothing was made in it or taken from it since the last one.
    quiet: HashMap<PathBuf, bool>,
    count: u32,
}

impl Looks {
    /// Begins a look.
    pub(crate) fn begin(&mut self) {
        self.count = self.count.wrapping_add(1);
        let of_this = &self.quiet;
        self.seen.retain(|dir, _| of_this.contains_key(dir));
        self.quiet.clear();
    }

    pub(crate) fn is_quiet(&mut self, dir: &Path) -> bool {
        if let Some(is_quiet) = self.quiet.get(dir) {
            return *is_quiet;
        }
        let now = fs::metadata(dir).and_then(|facts| Ok((Identity::of(&facts), facts.modified()?)));
        let is_quiet = now.is_ok_and(|(identity, modified)| {
            let before = self.seen.insert(dir.to_owned(), (identity, modified));
            let is_old = SystemTime::now().duration_since(modified).is_ok_and(|age| age > COARSE);
            is_old && before == Some((identity, modified))
        });
        let is_quiet = is_quiet && !self.count.is_multiple_of(WHOLE_EVERY);
        self.quiet.insert(dir.to_owned(), is_quiet);
        is_quiet
    }
}

/// What was found of one thing that is not as it was made.
#[derive(Debug)]
pub(crate) enum Finding {
    /// It was gone, and is there again.
    Remade { what: &'static str, path: PathBuf },
    /// It is not there, and will be once somebody has done something.
    Missing(Missing),
}

/// What is missing on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    /// The device that it belongs to; none if it is the daemon's.
    pub(crate) dev: Option<String>,
    pub(crate) what: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) why: String,
    pub(crate) cure: String,
}

impl Finding {
    /// What comes of a thing that was found so: if it is gone, it is made again.
    pub(crate) fn of(
        what: &'static str,
        path: &Path,
        standing: Standing,
        remake: impl FnOnce() -> Result<(), Fault>,
    ) -> Option<Finding> {
        let shown = path.display();
        let (why, cure) = match standing {
            Standing::Ours => return None,
            Standing::Gone => match remake() {
                Ok(()) => return Some(Finding::Remade { what, path: path.to_owned() }),
                Err(fault) => {
                    let again = "it is tried again for as long as it is wanted".to_owned();
                    let holder =
                        fault.held_by.map(|holder| format!(", held by {holder}")).unwrap_or_default();
                    (
                        format!("{what} {shown} was taken away: {}{holder}", fault.message),
                        fault.hint.unwrap_or(again),
                    )
                }
            },
            Standing::Foreign(noun) => (
                format!("{what} {shown} was taken away, and {noun} is in its place"),
                format!("move {shown} away: ringwayd then makes its own again"),
            ),
            Standing::Hidden(error) => (
                format!("cannot look at {what} {shown}: {}", reason(&error)),
                "let ringwayd's user through the directories above it".to_owned(),
            ),
        };
        Some(Finding::Missing(Missing { dev: None, what, path: path.to_owned(), why, cure }))
    }
}
