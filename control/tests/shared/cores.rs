//! Cores for a bridge that has several.

/// Two cores for workers, if the machine has them.
pub(crate) fn two_cores() -> Option<[usize; 2]> {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let mut cores = (0..1024).rev().filter(|core| allowed.is_set(*core));
    let cores = cores.next().zip(cores.next()).map(|(one, other)| [one, other]);
    if cores.is_none() {
        println!("left out: this needs two cores");
    }
    cores
}
