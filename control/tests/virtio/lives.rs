//! The function lies as a fuzzer chooses.

use ringway_ring::features::Features;

use super::entry;
use super::lies::Step::{Do, Lies};
use super::lies::{Lie, Life, Word, fuzz};
use super::model::Model;
use super::net_life::Act::Leave;
use super::net_life::{Scene, act, live};

/// What it is by its kind: with packed or split rings of the driver's own, relayed or in hardware.
const SCENE: Scene<Model> = Scene {
    make: |kind| match kind >> 1 & 3 {
        0 => Model::new(),
        1 => Model::split(4),
        2 => Model::with(Features::RING_RESET, 4),
        _ => Model::movable(Features::RING_RESET, 4),
    },
    entry: |kind| {
        let mut entry = entry(1);
        if kind >> 3 & 1 == 1 {
            entry.attributes.insert("datapath".to_owned(), "hardware".to_owned());
        }
        entry
    },
};

#[test]
fn function_that_lies_at_random_harms_its_own_guest_alone() {
    fuzz(act(), |life| live(life, &SCENE));
}

/// It had every queue of the next guest wait for its reset, and again for its being made quiet: 14 s.
#[test]
fn function_that_never_resets_itself_is_waited_for_once() {
    let late = Lie::Read { register: 4, value: Word::Is(1), times: u8::MAX };
    live(&Life { kind: 0, found: vec![], made: vec![], steps: vec![Lies(late), Do(Leave)] }, &SCENE);
}
