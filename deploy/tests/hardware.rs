//! Machines with network hardware behind an IOMMU, emulated: one boot a test, all of a machine's scenarios to a boot.

use ringway_lab::hardware::{Model, scenarios};
use ringway_lab::lab::Lab;

#[test]
#[ignore = "needs QEMU >= 8, the 6.12 guest kernel and dpdk-testpmd: run deploy/test"]
fn igb_and_a_virtio_function_behind_an_iommu() {
    Lab::run("hardware", |lab| scenarios::play_all(lab, Model::Function));
}

#[test]
#[ignore = "needs QEMU >= 11.1, the 6.12 guest kernel and dpdk-testpmd: run deploy/test"]
fn virtio_virtual_functions_behind_an_iommu() {
    Lab::run("hardware-vf", |lab| scenarios::play_all(lab, Model::VirtualFunctions));
}

#[test]
#[ignore = "needs QEMU >= 8, the 6.12 guest kernel and dpdk-testpmd: run deploy/test"]
fn functions_without_an_iommu() {
    Lab::run("hardware-no-iommu", |lab| scenarios::play_all(lab, Model::NoIommu));
}

#[test]
#[ignore = "needs QEMU >= 8, the 6.12 guest kernel, dpdk-testpmd and root: run deploy/test"]
fn queue_pairs_of_a_virtio_function() {
    Lab::run("hardware-pairs", |lab| scenarios::play_all(lab, Model::QueuePairs));
}
