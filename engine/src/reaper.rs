//! The reaper: one thread that drops the pumps whose holders have gone, so that neither workers nor holders do. A drop
//! may be the last of a guest's memory and take its time.

use std::sync::Arc;

use crate::desk::Desk;
use crate::workers::Workers;

/// The reaper's thread.
pub(crate) fn run(workers: &Workers) {
    let alarm = &workers.alarm;
    loop {
        // Before the sweep: what is buried during it makes the wait return at once.
        let seen = alarm.seen();
        sweep(&workers.desks());
        if alarm.must_stop() {
            break;
        }
        alarm.wait(seen);
    }
    for desk in workers.desks() {
        desk.set_reaperless();
    }
    sweep(&workers.desks());
}

fn sweep(desks: &[Arc<Desk>]) {
    for desk in desks.iter().filter(|desk| desk.graves.has_mail()) {
        desk.graves.collect(|slot| desk.reclaim(slot as u32));
    }
}
