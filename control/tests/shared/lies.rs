//! A fuzzer of drivers: it chooses how a function in this process lies, and when, over a short life of its device.
//!
//! Nothing here knows what function, or what device, it is. A model that is [`Liar`] turns a [`Lie`], whose numbers are any, into
//! one of its own [`Rules`](super::slot::Rules), or into a word written where its completions are. What a guest does meanwhile is
//! the `Act` of whoever drives one; for NICs it is in `net_life.rs`.
//!
//! What a life must not do, whatever the function says:
//!
//! - panic, in any thread;
//! - keep whoever asks something waiting longer than [`AT_MOST`];
//! - complete to the guest what it did not make available, or more of it than there is, or write anywhere else;
//! - disturb another device;
//! - take a queue out of service without saying why;
//! - leave a function that begins to keep to the rules, plugged anew if it was said to be gone, of no use.
//!
//! Lives are drawn from a fixed seed, [`CASES`] of them. `RINGWAY_LIES=2000` draws so many from a seed of the moment instead; the
//! shortest life that fails is printed as it stands in a test.

use std::fmt::Debug;
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use ringway_pmd::bus::pci::Device;
use ringway_pmd::drivers::functions::Seen;

use super::slot::Slot;

/// How a function lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lie {
    /// One of its registers reads as something else, so often.
    Read { register: u8, value: Word, times: u8 },
    /// What is written to one of its registers is lost.
    Write { register: u8, times: u8 },
    /// What it is asked for is answered with something else, or not.
    Answer { what: u8, value: Option<u32>, times: u8 },
    /// The next one of its completions, or one near it ([`near`]), says this, at once; it shows so many more than there are.
    Complete { queue: u8, entry: u8, id: u32, len: u32, more: u8 },
    /// An interrupt that has no cause.
    Interrupt { vector: u8 },
    /// It serves nothing until it is honest again.
    Stall,
    /// Somebody else resets it.
    Reset,
    /// It keeps to the rules again.
    Honest,
}

/// What is read instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    Is(u64),
    /// This bit is wrong.
    Flip(u8),
}

/// A step of a life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<Act> {
    Do(Act),
    Lies(Lie),
}

/// A life: what is lied before the function is found, before its device is made, and then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life<Act> {
    /// Which of its kind the function, its device and its guest are: a number of one's own.
    pub kind: u8,
    pub found: Vec<Lie>,
    pub made: Vec<Lie>,
    pub steps: Vec<Step<Act>>,
}

/// A model that can be told to lie.
pub trait Liar: Clone {
    fn slot(&self) -> &Slot;
    /// As a bus announces it: it is looked at now.
    fn device(&self) -> Device<Seen>;
    /// It lies, if it has anything such to lie about.
    fn lie(&self, lie: &Lie);
    fn pull(&self);
}

/// Draws lives and lives them.
pub fn fuzz<Act: Debug + Clone + 'static>(act: BoxedStrategy<Act>, live: impl Fn(&Life<Act>)) {
    let asked = std::env::var("RINGWAY_LIES").ok().map(|cases| cases.parse().unwrap());
    let config = Config {
        cases: asked.unwrap_or(CASES),
        rng_seed: if asked.is_some() { RngSeed::Random } else { RngSeed::Fixed(SEED) },
        failure_persistence: None,
        max_shrink_time: SHRINK_MS,
        ..Config::default()
    };
    let step = prop_oneof![3 => act.prop_map(Step::Do), 2 => lie().prop_map(Step::Lies)];
    let rarely = || prop_oneof![2 => Just(Vec::new()), 1 => proptest::collection::vec(lie(), 1..3)];
    let life = (any::<u8>(), rarely(), rarely(), proptest::collection::vec(step, 4..40))
        .prop_map(|(kind, found, made, steps)| Life { kind, found, made, steps });
    let outcome = TestRunner::new(config).run(&life, |life| {
        live(&life);
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, life)) => panic!("{why}\nin this life: {life:?}"),
        Err(why) => panic!("{why}"),
    }
}

fn lie() -> impl Strategy<Value = Lie> {
    let times = || prop_oneof![4 => 1u8..4, 1 => Just(u8::MAX)];
    let number = || prop_oneof![2 => 0u32..4, 2 => 0u32..2048, 2 => 2048u32..0x10100, 1 => Just(u32::MAX), 1 => Just(0x8000_0000), 1 => any::<u32>()];
    let word = prop_oneof![
        2 => number().prop_map(|value| Word::Is(value.into())),
        1 => Just(Word::Is(u64::MAX)),
        2 => (0u8..32).prop_map(Word::Flip),
    ];
    let more = prop_oneof![3 => Just(1), 1 => 0u8..4, 1 => any::<u8>()];
    prop_oneof![
        6 => (any::<u8>(), word, times())
            .prop_map(|(register, value, times)| Lie::Read { register, value, times }),
        3 => (any::<u8>(), times()).prop_map(|(register, times)| Lie::Write { register, times }),
        6 => (any::<u8>(), proptest::option::of(number()), times())
            .prop_map(|(what, value, times)| Lie::Answer { what, value, times }),
        6 => (0u8..3, any::<u8>(), prop_oneof![0u32..8, number()], number(), more)
            .prop_map(|(queue, entry, id, len, more)| Lie::Complete { queue, entry, id, len, more }),
        1 => any::<u8>().prop_map(|vector| Lie::Interrupt { vector }),
        1 => Just(Lie::Stall),
        1 => Just(Lie::Reset),
        2 => Just(Lie::Honest),
    ]
}

/// How often a rule holds.
pub fn often(times: u8) -> usize {
    if times == u8::MAX { usize::MAX } else { times.into() }
}

/// How far a completion is behind the one that comes next: mostly it is that one, or close to it.
pub fn near(entry: u8) -> u64 {
    if entry < 192 { u64::from(entry % 4) } else { entry.into() }
}

/// Does something that is not to take longer than [`AT_MOST`].
#[track_caller]
pub fn in_time<T>(what: impl Debug, act: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = act();
    let took = begun.elapsed();
    assert!(took < AT_MOST, "{what:?} took {took:?}");
    done
}

/// What panicked since this was asked last, in threads that are no test's.
pub fn panics() -> Vec<String> {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // A test's own thread has the test's name, and its own end.
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            if !name.contains("::") && !name.contains("lie") {
                PANICS.lock().unwrap().push(format!("{name}: {panic}"));
            }
            told(panic);
        }));
    });
    std::mem::take(&mut PANICS.lock().unwrap())
}

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What is asked is answered within this, whatever the function does: its own second for a reset several times over, on a machine
/// that is busy.
pub const AT_MOST: Duration = Duration::from_secs(9);
/// Lives of one test.
const CASES: u32 = 12;
const SEED: u64 = 0x82576;
/// Of a life that fails, shorter ones are looked for so long.
const SHRINK_MS: u32 = 120_000;
