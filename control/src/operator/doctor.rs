//! `doctor`: what of a host keeps workers from their cores, or Ringway from what it needs.
//!
//! It reads files of `/proc` and `/sys` below a root, which a test or a copy of another host's can be, and changes nothing. What
//! a daemon tells of its workers goes first; without one it looks at the cores that one would take. It runs in the command
//! `ringway`, as whoever calls it: what that user may not read is said as "cannot tell", and never guessed.
//!
//! | file | checks |
//! | --- | --- |
//! | `cores` | which cores: core 0, isolation, SMT siblings, NUMA, governor, steal, scheduling, other pollers |
//! | `work` | what else lands on them: interrupts, workqueues, received packets |
//! | `memory` | hugepages, and the limits of the process |
//! | `functions` | IOMMU, groups of VFIO, and who holds them |
//! | `versions` | kernel and programs |

mod cores;
mod files;
mod functions;
mod memory;
mod versions;
mod work;

use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::devices::placement::list;
use crate::fault::{Fault, Kind};
use crate::operator::api::{Binary, CoreShow, Hello};
use files::Host;

/// How a finding stands, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// As it should be.
    Ok,
    /// The host does not tell, or not this user.
    Unknown,
    /// It works, and costs something.
    Warning,
    /// It harms the host, or keeps Ringway from working.
    Failure,
}

/// What was found of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which check: one of `CHECKS`.
    pub check: String,
    /// How it stands.
    pub standing: Standing,
    /// What was found.
    pub found: String,
    /// What it is of, one by one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<String>,
    /// Why it matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

/// Everything that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The cores that were looked at.
    pub cores: Vec<usize>,
    /// The daemon that has workers there; without it, the cores are those that one would take, or that were named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daemon: Option<u32>,
    /// What was found, check by check.
    pub findings: Vec<Finding>,
}

/// What a daemon tells of itself.
#[derive(Debug, Clone, Default)]
pub struct Told {
    pub(crate) pid: Option<u32>,
    pub(crate) build: Option<String>,
    pub(crate) binary: Option<Binary>,
    pub(crate) workers: Vec<Worker>,
}

/// What it tells of one worker.
#[derive(Debug, Clone)]
pub(crate) struct Worker {
    pub(crate) core: usize,
    pub(crate) scheduling: Option<String>,
    /// Other processes that work there.
    pub(crate) others: Vec<String>,
}

impl Told {
    /// By its answers.
    pub(crate) fn of(hello: &Hello, cores: &CoreShow) -> Told {
        let worker = |(core, info): &(String, crate::operator::api::CoreInfo)| {
            Some(Worker {
                core: core.parse().ok()?,
                scheduling: info.scheduling.clone(),
                others: info.others.clone(),
            })
        };
        Told {
            pid: Some(hello.pid),
            build: Some(hello.build.clone()),
            binary: Some(hello.binary),
            workers: cores.core.0.iter().filter_map(worker).collect(),
        }
    }
}

/// What a check looks at.
struct Look<'a> {
    host: &'a Host,
    /// The cores of the workers, ascending.
    cores: &'a [usize],
    told: &'a Told,
}

/// What a check found; or the sentence why the host does not tell.
type Found = Result<Finding, String>;

/// A check.
struct Check {
    name: &'static str,
    why: &'static str,
    look: fn(&Look<'_>) -> Found,
}

/// Looks at the host whose files are below `root`. `cores` goes before what the daemon told, and that before the default.
///
/// # Errors
/// It is not told which cores there are, or one that was named is not there.
pub fn examine(root: &Path, told: &Told, cores: &[usize]) -> Result<Report, Fault> {
    let host = Host::below(root);
    let mut cores = match (cores, told.workers.is_empty()) {
        ([], false) => told.workers.iter().map(|worker| worker.core).collect(),
        ([], true) => cores::default(&host)?,
        (cores, _) => cores.to_vec(),
    };
    cores.sort_unstable();
    cores.dedup();
    if let Ok(online) = host.cores(files::ONLINE)
        && let Some(core) = cores.iter().find(|core| !online.contains(core))
    {
        let fault = Fault::not_found(format!("there is no core {core}"));
        return Err(fault.at("cores").held_by(format!("cores {} are there", ranges(&online))));
    }
    let look = Look { host: &host, cores: &cores, told };
    let tables = [cores::CHECKS, work::CHECKS, memory::CHECKS, functions::CHECKS, versions::CHECKS];
    let findings = tables.iter().flat_map(|table| table.iter()).map(|check| check.finding(&look)).collect();
    Ok(Report { cores, daemon: told.pid, findings })
}

impl Check {
    fn finding(&self, look: &Look<'_>) -> Finding {
        let mut finding = (self.look)(look).unwrap_or_else(|why| Finding {
            standing: Standing::Unknown,
            ..Finding::ok(format!("cannot tell: {why}"))
        });
        finding.check = self.name.to_owned();
        finding.why = (finding.standing != Standing::Ok).then(|| self.why.to_owned());
        finding
    }
}

impl Finding {
    fn ok(found: impl Into<String>) -> Finding {
        Finding {
            check: String::new(),
            standing: Standing::Ok,
            found: found.into(),
            items: Vec::new(),
            why: None,
            cure: None,
        }
    }

    fn warning(found: impl Into<String>, cure: impl Into<String>) -> Finding {
        Finding { standing: Standing::Warning, cure: Some(cure.into()), ..Finding::ok(found) }
    }

    fn failure(found: impl Into<String>, cure: impl Into<String>) -> Finding {
        Finding { standing: Standing::Failure, ..Finding::warning(found, cure) }
    }

    /// One by one.
    fn of(mut self, items: Vec<String>) -> Finding {
        self.items = items;
        self
    }
}

impl Report {
    fn count(&self, standing: Standing) -> usize {
        self.findings.iter().filter(|finding| finding.standing == standing).count()
    }

    /// As a text.
    pub fn text(&self) -> String {
        let mut text = match self.daemon {
            Some(pid) => format!("workers of ringwayd (pid {pid}) on cores {}\n", ranges(&self.cores)),
            None => format!("no daemon: looked at as if one had workers on cores {}\n", ranges(&self.cores)),
        };
        for finding in &self.findings {
            let word = match finding.standing {
                Standing::Ok => "ok",
                Standing::Unknown => "unknown",
                Standing::Warning => "warning",
                Standing::Failure => "failure",
            };
            let _ = writeln!(text, "{word:<8} {}: {}", finding.check, finding.found);
            for item in finding.items.iter().take(MOST_ITEMS) {
                let _ = writeln!(text, "           {item}");
            }
            if let Some(more) = finding.items.len().checked_sub(MOST_ITEMS).filter(|more| *more > 0) {
                let _ = writeln!(text, "           and {more} more (ringway -j doctor)");
            }
            if finding.standing > Standing::Unknown {
                for (word, said) in [("why", &finding.why), ("try", &finding.cure)] {
                    if let Some(said) = said {
                        let _ = writeln!(text, "         {word}: {said}");
                    }
                }
            }
        }
        let _ = writeln!(
            text,
            "{} failures, {} warnings, {} unknown",
            self.count(Standing::Failure),
            self.count(Standing::Warning),
            self.count(Standing::Unknown)
        );
        text
    }

    /// The exit code: a failure is one, and a warning where one is strict.
    ///
    /// # Errors
    /// What there is of them.
    pub fn verdict(&self, is_strict: bool) -> Result<(), Fault> {
        let (failures, warnings) = (self.count(Standing::Failure), self.count(Standing::Warning));
        let counts = is_strict && warnings > 0;
        if failures == 0 && !counts {
            return Ok(());
        }
        let first = self.findings.iter().find(|finding| {
            finding.standing == Standing::Failure || (counts && finding.standing == Standing::Warning)
        });
        let says = first.map_or_else(String::new, |first| format!("{}: {}", first.check, first.found));
        let fault = Fault::new(Kind::Degraded, format!("the host harms ringwayd or is harmed: {says}"));
        Err(match first.and_then(|first| first.cure.clone()) {
            Some(cure) => fault.hint(cure),
            None => fault,
        })
    }
}

/// The name and the reason of every check, for the manual.
pub(crate) fn all_checks() -> impl Iterator<Item = (&'static str, &'static str)> {
    [cores::CHECKS, work::CHECKS, memory::CHECKS, functions::CHECKS, versions::CHECKS]
        .into_iter()
        .flatten()
        .map(|check| (check.name, check.why))
}

/// Cores as the kernel lists them: `0-3,8`.
pub(crate) fn ranges(cores: &[usize]) -> String {
    let mut spans: Vec<(usize, usize)> = Vec::new();
    for &core in cores {
        match spans.last_mut() {
            Some((_, last)) if *last + 1 == core => *last = core,
            _ => spans.push((core, core)),
        }
    }
    if spans.is_empty() {
        return list(cores);
    }
    let text = |&(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    spans.iter().map(text).collect::<Vec<_>>().join(",")
}

/// Items of a finding that the text shows.
const MOST_ITEMS: usize = 12;
