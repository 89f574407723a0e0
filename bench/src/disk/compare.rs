//! A disk of Ringway's beside a peer's: the same load, generator, memory, cores, rounds taken in turns A B B A, as
//! [`crate::compare`] does it for networks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::fio::{self, Fio};
use super::generator::{Generates, Load, Round};
use super::options::{DiskOptions, Touch};
use super::ours::{Ours, Wanted};
use super::qsd::{self, Qsd};
use super::series::Series;
use super::{null, options::Bytes};
use crate::backend::{self, Identity};
use crate::error::BenchError;
use crate::limits::Gauge;
use crate::options;
use crate::rounds::{Rounds, Timed};
use crate::stats::{self, Spread};
use crate::turns::{Turns, in_turns};

/// What the disks are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// Memory: ours in a memfd, the peer's a file on tmpfs, by threads or by io_uring, whichever is faster
    Memory,
    /// Nothing: no byte is moved by either
    None,
    /// A file in the page cache; writes are durable before they are completed
    Cached,
    /// A file past the page cache (O_DIRECT); writes are durable before they are completed
    Direct,
}

impl Backing {
    /// It is a file, past the page cache or not.
    pub fn file(self) -> Option<bool> {
        match self {
            Backing::Memory | Backing::None => None,
            Backing::Cached => Some(false),
            Backing::Direct => Some(true),
        }
    }
}

/// What a side of the comparison is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// Who it is.
    #[serde(flatten)]
    pub identity: Identity,
    /// Its rounds in closed loop.
    pub throughput: Series,
}

/// What a comparison came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Ringway.
    pub ours: Side,
    /// The peer.
    pub peer: Side,
    /// Requests a second, ours to the peer's.
    pub ratio: Spread,
    /// Medians of latency at the same depth, ours to the peer's.
    pub p50_ratio: Spread,
    /// 99th percentiles.
    pub p99_ratio: Spread,
    /// Thousands of requests a second of the generator against a back-end that does nothing.
    pub ceiling_kiops: Option<f64>,
    /// Ours came so close to that that it is the generator that was measured.
    pub generator_bound: bool,
    /// fio's io_uring on a file, if the disks are files and it knows the load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fio: Option<fio::Beside>,
    /// What the peer's other ways of input and output came to in one round each, in thousands of requests a second.
    pub tried: Vec<(String, f64)>,
}

/// The peer.
#[derive(Debug, Clone)]
pub enum Peer {
    /// QEMU's storage daemon.
    Qsd,
    /// Any socket, of a process that is stopped while it is not its turn if it is known.
    Socket(PathBuf, Option<u32>),
}

/// What to compare.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The load.
    pub options: DiskOptions,
    /// What the disks are made of.
    pub backing: Backing,
    /// Beside whom.
    pub peer: Peer,
    /// Where files are made that are not to be in memory.
    pub folder: PathBuf,
    /// How rounds are made.
    pub how: Rounds,
    /// Cores of the generator.
    pub cores: Vec<usize>,
    /// Core of the back-end whose turn it is.
    pub backend_core: usize,
    /// Ringway's policy.
    pub idle: &'static str,
}

/// What stands behind a socket.
#[derive(Debug)]
enum Behind {
    Ours(Ours),
    Qsd(Qsd),
    Given(PathBuf, Option<u32>, Identity),
}

impl Behind {
    fn socket(&self) -> PathBuf {
        match self {
            Behind::Ours(ours) => ours.socket(),
            Behind::Qsd(qsd) => qsd.socket().to_owned(),
            Behind::Given(socket, ..) => socket.clone(),
        }
    }

    fn identity(&self) -> &Identity {
        match self {
            Behind::Ours(ours) => ours.identity(),
            Behind::Qsd(qsd) => qsd.identity(),
            Behind::Given(.., identity) => identity,
        }
    }

    fn signal(&self, signal: Signal) -> Result<(), BenchError> {
        let pid = match self {
            Behind::Ours(ours) => ours.pid(),
            Behind::Qsd(qsd) => qsd.pid(),
            Behind::Given(_, Some(pid), _) => *pid,
            Behind::Given(..) => return Ok(()),
        };
        backend::send(pid, &self.identity().name, signal)
    }
}

/// A back-end and the generator that is connected to it.
#[derive(Debug)]
struct Contender {
    behind: Behind,
    generator: Box<dyn Generates>,
}

impl Contender {
    /// Connects, and makes a first round, so that those that count are like each other.
    fn new(behind: Behind, setup: &Setup) -> Result<(Contender, f64), BenchError> {
        let generator = super::open(&behind.socket(), &setup.options, &setup.cores)?;
        let mut contender = Contender { behind, generator };
        let first = contender.turn(Load::Closed, setup.how)?;
        Ok((contender, first.kiops))
    }

    /// A round in its turn.
    fn turn(&mut self, load: Load, how: Rounds) -> Result<Round, BenchError> {
        self.behind.signal(Signal::CONT)?;
        let round = self.generator.round(load, Duration::from_secs_f64(how.seconds));
        self.behind.signal(Signal::STOP)?;
        round
    }

    fn leave(self) -> Result<(), BenchError> {
        self.behind.signal(Signal::CONT)?;
        self.generator.close()
    }
}

/// A round of a side, and what fio came to right before one of ours, in thousands of requests a second.
#[derive(Debug, Clone)]
struct Made {
    round: Round,
    fio: Option<f64>,
}

impl Timed for Made {
    fn gap_us(&self) -> f64 {
        self.round.gap_us
    }
}

/// Compares. Tells `progress` what it does.
pub fn compare(setup: &Setup, mut progress: impl FnMut(&str)) -> Result<Comparison, BenchError> {
    let how = setup.how;
    let main_core = setup.cores.first().copied().unwrap_or_default();
    let fio = match setup.backing.file() {
        Some(direct) => Fio::new(&setup.options, direct, setup.backend_core, how.seconds, &setup.folder)?,
        None => None,
    };
    progress("measuring the generator");
    let ceiling_kiops = null::ceiling(&setup.options, how, setup.backend_core, &setup.cores)?;
    let (mut peer, tried) = peer(setup, &mut progress)?;
    progress("starting ringwayd");
    let files = tempfile::Builder::new()
        .prefix("ringway-bench-")
        .tempdir_in(&setup.folder)
        .map_err(BenchError::system(format!("cannot make a directory in {}", setup.folder.display())))?;
    let (mut ours, _) = Contender::new(Behind::Ours(ours(setup, files.path())?), setup)?;
    let touch = match setup.options.touch {
        Touch::None | Touch::Head => options::Touch::Header,
        Touch::All => options::Touch::All,
    };
    let gauge = Gauge::new([main_core, setup.backend_core], touch)?;
    let round = |who| -> Result<Made, BenchError> {
        if who == 0 {
            let fio = fio.as_ref().map(Fio::round).transpose()?;
            return Ok(Made { round: ours.turn(Load::Closed, how)?, fio });
        }
        Ok(Made { round: peer.turn(Load::Closed, how)?, fio: None })
    };
    let turns = in_turns(
        how,
        || gauge.line_ns(),
        round,
        |kept| progress(&format!("{kept} of {} rounds", how.rounds)),
    )?;
    let nothing = || BenchError::Noise("the peer did nothing".to_owned());
    let ratio = |of: fn(&Made) -> f64| turns.ratio(of).ok_or_else(nothing);
    let side = |contender: &Contender, who: usize| -> Result<Side, BenchError> {
        let throughput = series(&turns, who).ok_or_else(nothing)?;
        Ok(Side { identity: contender.behind.identity().clone(), throughput })
    };
    let (ours_side, peer_side) = (side(&ours, 0)?, side(&peer, 1)?);
    let comparison = Comparison {
        ratio: ratio(|made| made.round.kiops)?,
        p50_ratio: ratio(|made| made.round.latency.p50 as f64)?,
        p99_ratio: ratio(|made| made.round.latency.p99 as f64)?,
        generator_bound: null::is_bound(ours_side.throughput.kiops.median, ceiling_kiops),
        ceiling_kiops: Some(ceiling_kiops),
        fio: fio.as_ref().and_then(|fio| beside(fio, &turns)),
        ours: ours_side,
        peer: peer_side,
        tried,
    };
    let wrong = [&ours, &peer].into_iter().find_map(|side| {
        let wrong = side.generator.wrong()?;
        Some(BenchError::Peer { peer: side.behind.identity().name.clone(), what: wrong })
    });
    ours.leave()?;
    peer.leave()?;
    wrong.map_or(Ok(comparison), Err)
}

fn ours(setup: &Setup, files: &Path) -> Result<Ours, BenchError> {
    let (span, queues) = (setup.options.span.0, setup.options.queues.to_string());
    let word = |name: &str, value: String| [name.to_owned(), value];
    let mut words = word("num_queues", queues).to_vec();
    let mgmtdev = match setup.backing.file() {
        None => {
            words.extend(word("size", span.to_string()));
            let data = if setup.backing == Backing::None { "off" } else { "on" };
            words.extend(word("data", data.to_owned()));
            "sim/blk"
        }
        Some(direct) => {
            let path = files.join("disk");
            qsd::make_file(&path, span)?;
            words.extend(word("path", path.display().to_string()));
            words.extend(word("cache", if direct { "direct" } else { "buffered" }.to_owned()));
            words.extend(word("write_back", "off".to_owned()));
            "file"
        }
    };
    let (core, idle) = (setup.backend_core, setup.idle);
    Ours::start(Wanted { core, idle, mgmtdev, words: &words, config: None })
}

/// The peer in the way in which it is fastest, and what its ways came to.
fn peer(
    setup: &Setup,
    progress: &mut impl FnMut(&str),
) -> Result<(Contender, Vec<(String, f64)>), BenchError> {
    let (path, pid) = match &setup.peer {
        Peer::Socket(path, pid) => (path, pid),
        Peer::Qsd => return storage_daemon(setup, progress),
    };
    progress("connecting to the peer");
    let identity =
        Identity { name: "given".to_owned(), version: path.display().to_string(), flags: Vec::new() };
    let (contender, kiops) = Contender::new(Behind::Given(path.clone(), *pid, identity), setup)?;
    Ok((contender, vec![("socket".to_owned(), kiops)]))
}

fn storage_daemon(
    setup: &Setup,
    progress: &mut impl FnMut(&str),
) -> Result<(Contender, Vec<(String, f64)>), BenchError> {
    let file = |uring, direct, through| qsd::Disk::File { uring, direct, through };
    let (ways, place): (&[(&str, qsd::Disk)], _) = match setup.backing {
        Backing::Memory => (
            &[("threads", file(false, false, false)), ("io_uring", file(true, false, false))],
            Path::new(MEMORY_FOLDER),
        ),
        Backing::None => (&[("null-co", qsd::Disk::Null)], Path::new(MEMORY_FOLDER)),
        Backing::Cached => (&[("io_uring", file(true, false, true))], setup.folder.as_path()),
        Backing::Direct => (&[("io_uring", file(true, true, true))], setup.folder.as_path()),
    };
    let Bytes(bytes) = setup.options.span;
    let (mut best, mut tried): (Option<(Contender, f64)>, _) = (None, Vec::new());
    for (name, disk) in ways {
        progress(&format!("starting qemu-storage-daemon: {name}"));
        let qsd = Qsd::start(*disk, setup.backend_core, setup.options.queues, bytes, place)?;
        let (contender, kiops) = Contender::new(Behind::Qsd(qsd), setup)?;
        tried.push(((*name).to_owned(), kiops));
        if best.as_ref().is_none_or(|(_, best)| kiops > *best) {
            best = Some((contender, kiops));
        }
    }
    let (contender, _) = best.ok_or_else(|| BenchError::Usage("no way to have a peer".to_owned()))?;
    Ok((contender, tried))
}

/// The rounds of one side.
fn series(turns: &Turns<Made>, who: usize) -> Option<Series> {
    let rounds = turns.side(who).into_iter().map(|made| made.round).collect();
    Series::of(rounds, turns.discarded, turns.noisy)
}

/// What fio came to in the turns that count.
fn beside(fio: &Fio, turns: &Turns<Made>) -> Option<fio::Beside> {
    let [ours, theirs] = [|made: &Made| Some(made.round.kiops), |made: &Made| made.fio]
        .map(|of| turns.side(0).iter().filter_map(of).collect::<Vec<f64>>());
    Some(fio::Beside {
        version: fio.version.clone(),
        flags: fio.flags.clone(),
        kiops: Spread::of(&theirs)?,
        ratio: stats::paired_ratio(ours.into_iter().zip(theirs))?,
    })
}

/// Files in memory.
const MEMORY_FOLDER: &str = "/dev/shm";
