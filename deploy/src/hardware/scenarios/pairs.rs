//! Several queue pairs.

use super::{HERE, PULSE_MS, THERE};
use crate::error::Result;
use crate::hardware::{Echoer, Front, IGB, Machine, VIRTIO};

/// A guest changes how many of its four pairs it uses, under traffic; testpmd uses two and four.
pub(super) fn changed(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    machine.give_to_vfio(VIRTIO)?;
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(VIRTIO)?;
    machine.ringway(&["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev, "max_vqp", "4"])?;
    for (packed, in_turn) in [(false, &[4, 2, 4][..]), (true, &[1, 4])] {
        machine.start_front(&Front { pairs: 4, packed, ..Front::new("vm0") })?;
        machine.linux().start_pulse(THERE, PULSE_MS)?;
        for pairs in in_turn {
            machine.tell_front("vm0", &format!("pairs {pairs}"))?;
            machine.pulse_goes_on(THERE)?;
            machine.pairs_send("vm0", *pairs)?;
        }
        machine.linux().stop_pulse(THERE)?;
        machine.pings_of_all_sizes(THERE, 1500)?;
        machine.stop_front("vm0")?;
    }
    for queues in [2, 4] {
        machine.start_testpmd(&Echoer { queues, ..Echoer::new("vm0", queues == 4) })?;
        machine.pings_of_all_sizes(THERE, 1500)?;
        machine.stop_testpmd()?;
    }
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.stop_ringwayd()
}
