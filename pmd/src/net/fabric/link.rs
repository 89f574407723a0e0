//! Two ports, each the other's wire: one pump for each receive queue, fed by the other port's transmit queues.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use ringway_engine::Pump;
use ringway_ring::tsc;

use super::ends::{EndKey, Ends, Half, PumpKey, Side};
use super::kind::{Foreign, Kind};
use crate::counters::DropReason;
use crate::net::transfer::{Sides, Transfer, TransferOptions};

/// See the module's head. A pump's key is that of its receive queue; what is sent to nobody has the sender's, with queue
/// [`NOBODY`].
#[derive(Debug)]
pub(super) struct Link;

impl Kind for Link {
    fn plan(&self, ends: &Ends) -> BTreeMap<PumpKey, Vec<EndKey>> {
        let sinks: Vec<EndKey> = ends.sinks().collect();
        let mut plan: BTreeMap<PumpKey, Vec<EndKey>> = BTreeMap::new();
        for source in ends.sources() {
            // The latest to come is the peer, should one that leaves still be there.
            let peer = ends.ports.iter().rev().find(|(id, port)| **id != source.port && !port.is_leaving());
            let theirs: Vec<&EndKey> =
                sinks.iter().filter(|sink| peer.is_some_and(|(id, _)| *id == sink.port)).collect();
            // Sender's pair i feeds receiver's queue i mod n.
            let pair = usize::from(source.queue / 2);
            match pair.checked_rem(theirs.len()).and_then(|nth| theirs.get(nth)) {
                Some(sink) => {
                    let key = PumpKey { port: sink.port, queue: sink.queue };
                    plan.entry(key).or_insert_with(|| vec![**sink]).push(source);
                }
                None => plan.entry(PumpKey { port: source.port, queue: NOBODY }).or_default().push(source),
            }
        }
        plan
    }

    fn name(&self, _fabric: &str, key: PumpKey, ends: &Ends) -> String {
        let owner = ends.ports.get(&key.port).map_or("", |port| port.placer.name.as_str());
        if key.queue == NOBODY { format!("{owner}.out") } else { format!("{owner}.{}", key.queue / 2) }
    }

    fn core(&self, key: PumpKey, _members: &[EndKey], ends: &Ends) -> usize {
        ends.core_of(key.port, if key.queue == NOBODY { 0 } else { key.queue / 2 })
    }

    fn make(&mut self, ends: &mut Ends, _key: PumpKey, members: &[EndKey]) -> io::Result<Box<dyn Pump>> {
        let scratch = ends.scratch(members, false)?;
        let (mut sink, mut sources) = (None, Vec::new());
        // The sources are of one port, and stand behind the sink.
        let from = members.last().and_then(|end| ends.ports.get(&end.port));
        let announcement = from.map(|port| Arc::clone(&port.announcement));
        for end in members {
            match ends.take(*end) {
                Some((Side::Sink(side), _)) => sink = Some((*end, side.takes(), side)),
                Some((Side::Source(side), half)) => {
                    // To another receiver the frame goes from its start.
                    let is_same = |half: &Half| {
                        sink.as_ref().is_some_and(|(end, takes, _)| (half.sink, half.takes) == (*end, *takes))
                    };
                    sources.push((side, half.filter(is_same).map_or(0, |half| half.segments)));
                }
                None => {}
            }
        }
        let options = TransferOptions { swap_mac: false, absent: DropReason::PeerDown, hertz: tsc::hertz() };
        let sink = sink.map(|(_, _, sink)| sink);
        Ok(Box::new(Transfer::resumed(Sides { sink, sources }, options, scratch, announcement)))
    }

    fn take_apart(&mut self, ends: &mut Ends, members: &[EndKey], pump: Box<dyn Any>) -> Result<(), Foreign> {
        let transfer = pump.downcast::<Transfer>().map_err(|_| Foreign)?;
        let Sides { sink, sources } = transfer.into_sides();
        let to = sink.as_ref().map(|sink| sink.takes()).zip(members.first().copied());
        let sources = sources.into_iter().map(|(source, segments)| {
            let half = to.filter(|_| segments > 0);
            (Side::Source(source), half.map(|(takes, sink)| Half { sink, takes, segments }))
        });
        let sides = sink.map(|sink| (Side::Sink(sink), None)).into_iter().chain(sources);
        for (end, (side, half)) in members.iter().zip(sides) {
            ends.put_back(*end, side, half);
        }
        Ok(())
    }
}

/// The queue of a pump whose frames go nowhere.
const NOBODY: u16 = u16::MAX;
