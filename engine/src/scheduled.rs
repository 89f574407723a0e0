//! How the kernel schedules a thread of this process, as it tells in `/proc`.

use std::fs;

/// A thread's place among those that want its core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduled {
    /// Its scheduling policy.
    pub policy: Policy,
    /// Times that the kernel took the core away from it (`nonvoluntary_ctxt_switches`).
    pub preemptions: u64,
    /// For how long it had to wait for the core while it wanted to run, in nanoseconds.
    pub run_delay_ns: u64,
    /// It runs just now, or waits for the core (state `R`).
    pub is_runnable: bool,
}

/// A scheduling policy of sched(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The default: everybody has a share.
    Other,
    /// Real-time: nobody below it runs while it does.
    Fifo,
    /// Real-time, in turns with those of its priority.
    RoundRobin,
    /// As `Other`, for work that is never waited for.
    Batch,
    /// As `Other`, after everybody else.
    Idle,
    /// Real-time, by deadlines.
    Deadline,
    /// One that is not known here, by its number.
    Unknown(u32),
}

impl Policy {
    fn of_number(number: u32) -> Policy {
        match number {
            0 => Policy::Other,
            1 => Policy::Fifo,
            2 => Policy::RoundRobin,
            3 => Policy::Batch,
            5 => Policy::Idle,
            6 => Policy::Deadline,
            number => Policy::Unknown(number),
        }
    }

    /// Its name, as chrt(1) has it.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Other => "other",
            Policy::Fifo => "fifo",
            Policy::RoundRobin => "rr",
            Policy::Batch => "batch",
            Policy::Idle => "idle",
            Policy::Deadline => "deadline",
            Policy::Unknown(_) => "unknown",
        }
    }

    /// A thread that never sleeps under it keeps everybody without it from the core, the kernel's own threads too.
    pub fn is_real_time(self) -> bool {
        matches!(self, Policy::Fifo | Policy::RoundRobin | Policy::Deadline)
    }
}

impl Scheduled {
    /// What the kernel tells of a thread of this process. None: it has ended, or `/proc` does not tell.
    pub fn of(tid: i32) -> Option<Scheduled> {
        let read = |file: &str| fs::read_to_string(format!("/proc/self/task/{tid}/{file}")).ok();
        let stat = read("stat")?;
        Some(Scheduled {
            policy: policy(&stat)?,
            is_runnable: is_runnable(&stat),
            preemptions: preemptions(&read("status")?)?,
            // Absent from a kernel without CONFIG_SCHED_INFO.
            run_delay_ns: read("schedstat").as_deref().and_then(run_delay_ns).unwrap_or(0),
        })
    }
}

/// The policy in a thread's `stat`: its 41st field; the second, its name in brackets, may have anything in it.
fn policy(stat: &str) -> Option<Policy> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split_whitespace().nth(38)?.parse().ok().map(Policy::of_number)
}

/// By a thread's `stat`: its third field.
fn is_runnable(stat: &str) -> bool {
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with("R "))
}

fn preemptions(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"))?;
    line.trim().parse().ok()
}

/// The second field of `schedstat`.
fn run_delay_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let fields = |policy: u32| {
            let rest: Vec<String> = (3..=52).map(|n| if n == 41 { policy } else { 77 }.to_string()).collect();
            format!("12 (a) b (c) {}", rest.join(" "))
        };
        assert_eq!(policy(&fields(1)), Some(Policy::Fifo));
        assert_eq!(policy(&fields(0)), Some(Policy::Other));
        assert_eq!(policy("12 (a) R"), None);
        assert!(is_runnable("12 (a) S (b) R 1 2") && !is_runnable("12 (a) R (b) S 1 2"));
        assert_eq!(preemptions("voluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t5\n"), Some(5));
        assert_eq!(run_delay_ns("100 200 3\n"), Some(200));
    }

    #[test]
    fn thread_of_this_process_is_told_of_and_another_is_not() {
        let own = Scheduled::of(rustix::thread::gettid().as_raw_nonzero().get()).expect("this thread");
        assert!(!own.policy.is_real_time() && own.is_runnable, "{own:?}");
        assert_eq!(Scheduled::of(i32::MAX), None);
    }
}
