//! The driver of 82576 VFs on QEMU's igb.

use ringway_control::operator::api::{MgmtdevShow, Select};
use ringway_ring::position::Position;
use ringway_ring::queue::{Completion, DriverBuffer, Format};
use serde_json::Value;

use super::Host;
use super::ground::Ground;
use super::support::{HandPair, eventually};

const MAC: [u8; 6] = [2, 0, 0, 0, 7, 1];

fn setting(host: &Host, name: &str) -> Value {
    let shown: MgmtdevShow = host.subsystem.call("mgmtdev.show", &Select { name: None }).unwrap();
    shown.mgmtdev.find(&host.name()).map(|function| function.settings[name].clone()).into()
}

/// A frame of so many bytes from the function to a station on the wire, which sends it back: that it comes back whole.
fn there_and_back(pair: &mut HandPair<'_>, len: usize) {
    let mut frame: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 9, 9]);
    frame[6..12].copy_from_slice(&MAC);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    let (rig, gpa) = (pair.rig, pair.rig.buffer(1, 0));
    let bytes = [&[0; 12][..], &frame].concat();
    rig.map.resolve(gpa, bytes.len() as u64).unwrap().write(&bytes);
    pair.post(1);
    pair.tx.add(&[DriverBuffer { gpa, len: bytes.len() as u32, writable: false }], 0).unwrap();
    pair.tx.publish();
    let mut came = [Completion::default()];
    eventually(|| pair.rx.collect(&mut came).unwrap() == 1);
    eventually(|| pair.tx.collect(&mut [Completion::default()]).unwrap() == 1);
    let mut back = vec![0; came[0].written as usize];
    rig.map.resolve(rig.buffer(0, came[0].token), back.len() as u64).unwrap().read(&mut back);
    frame[..12].rotate_left(6);
    assert_eq!(back[12..], frame);
}

#[test]
#[ignore = "needs QEMU >= 8: run deploy/test"]
fn frames_go_through_qemus_82576_vf_and_come_back() {
    let host = Host::on(Ground::start_vf(MAC), 1, &[]);
    assert_eq!((setting(&host, "pf"), setting(&host, "mac")), ("serves".into(), "02:00:00:00:07:01".into()));
    for format in [Format::Split, Format::Packed] {
        let rig = host.rig(format, 2);
        let mut frontend = host.connect();
        rig.introduce(&mut frontend);
        let mut pair = HandPair::new(&rig, 0, Position::START);
        pair.start(&mut frontend, rig.fresh());
        // Nothing is received before.
        eventually(|| host.field("provisioned/link") == "up");
        for len in [60, 61, 64, 255, 1024, 1513, 1514] {
            there_and_back(&mut pair, len);
        }
        // Around every ring of the way: the function's has 512 entries.
        (0..520).for_each(|_| there_and_back(&mut pair, 60));
        // Buffers that the function has are the guest's again after a stop, and are filled after the next start.
        let bases = [0, 1].map(|queue| frontend.stop_ring(queue).unwrap());
        for (queue, base) in (0u32..).zip(bases) {
            rig.start_ring(&mut frontend, queue, base);
            frontend.enable_ring(queue, true).unwrap();
        }
        (0..20).for_each(|_| there_and_back(&mut pair, 60));
        drop((pair, frontend));
    }
    host.finish();
}

#[test]
#[ignore = "needs QEMU >= 8: run deploy/test"]
fn reset_of_qemus_82576_or_of_its_vf_is_survived() {
    let host = Host::on(Ground::start_vf(MAC), 1, &[]);
    let rig = host.rig(Format::Split, 2);
    let mut frontend = host.connect();
    rig.introduce(&mut frontend);
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, rig.fresh());
    eventually(|| host.field("provisioned/link") == "up");
    for resets in ["1", "2", "3"] {
        (0..20).for_each(|_| there_and_back(&mut pair, 60));
        if resets == "2" {
            host.ground.pf().reset()
        } else {
            host.ground.reset_underneath()
        }
        eventually(|| host.field("provisioned/link") == "up");
        eventually(|| setting(&host, "pf_resets") == resets && setting(&host, "pf") == "serves");
    }
    (0..20).for_each(|_| there_and_back(&mut pair, 60));
    drop((pair, frontend));
    host.finish();
}
