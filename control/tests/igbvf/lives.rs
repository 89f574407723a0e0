//! The function lies as a fuzzer chooses.

use super::lies::fuzz;
use super::model::Model;
use super::net_life::{Scene, act, live};
use super::{direct, entry};

/// What it is by its kind: frames by the guest's buffers, or copied.
const SCENE: Scene<Model> =
    Scene { make: |_| Model::new(), entry: |kind| if kind >> 1 & 1 == 0 { direct() } else { entry() } };

#[test]
fn function_that_lies_at_random_harms_its_own_guest_alone() {
    fuzz(act(), |life| live(life, &SCENE));
}
