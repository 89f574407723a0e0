//! What a back-end spent on what it moved, as it tells it itself: Ringway by `core show`, testpmd by `show fwd stats`, Open
//! vSwitch by `dpif-netdev/pmd-stats-show`. Cycles are those of the processor's clock, which all three read; turns in which
//! there was nothing are left out by all three.

use serde::{Deserialize, Serialize};

/// Counts since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Busy {
    /// Cycles in turns that moved something.
    pub cycles: u64,
    /// Packets that it took in.
    pub packets: u64,
    /// Bursts in which it moved them.
    pub bursts: f64,
}

/// What a packet took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// Busy cycles.
    pub cycles_per_packet: f64,
    /// Packets in a burst.
    pub packets_per_burst: f64,
}

impl Busy {
    /// What was spent since `before`; None if nothing was moved.
    pub fn since(&self, before: &Busy) -> Option<Spent> {
        self.since_over(before, self.packets.checked_sub(before.packets)?)
    }

    /// The same by packets that somebody else has counted: a frame that goes to many is one, however each back-end counts its
    /// copies.
    pub fn since_over(&self, before: &Busy, packets: u64) -> Option<Spent> {
        let own = self.packets.checked_sub(before.packets).filter(|own| *own > 0)? as f64;
        let cycles = self.cycles.checked_sub(before.cycles)? as f64;
        (packets > 0).then(|| Spent {
            cycles_per_packet: cycles / packets as f64,
            packets_per_burst: own / (self.bursts - before.bursts).max(1.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_packet_took_is_that_of_the_time_between() {
        let before = Busy { cycles: 1000, packets: 10, bursts: 2.0 };
        let after = Busy { cycles: 11_000, packets: 110, bursts: 12.0 };
        assert_eq!(after.since(&before), Some(Spent { cycles_per_packet: 100.0, packets_per_burst: 10.0 }));
        assert_eq!(after.since(&after), None);
        // Of 100 packets, 75 were copies.
        let of_frames = Some(Spent { cycles_per_packet: 400.0, packets_per_burst: 10.0 });
        assert_eq!(after.since_over(&before, 25), of_frames);
        assert_eq!(after.since_over(&before, 0), None);
        // A back-end that began to count anew.
        assert_eq!(before.since(&after), None);
    }
}
