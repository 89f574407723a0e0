//! Disks on volumes that fail, wait and hang, through the real daemon: inside a guest, whose kernel has a device mapper.

use std::time::{Duration, Instant};

use ringway_lab::ensure;
use ringway_lab::error::Result;
use ringway_lab::lab::Lab;
use ringway_lab::pace::Pace;
use ringway_lab::volumes::Machine;

#[test]
#[ignore = "needs QEMU >= 8, dmsetup and the 6.12 guest kernel: run deploy/test"]
fn disks_on_volumes_that_fail_wait_and_hang() {
    Lab::run("volumes", |lab| {
        let mut machine = Machine::boot(lab)?;
        machine.start_ringwayd()?;
        failing(&mut machine)?;
        late(&mut machine)?;
        hanging(&mut machine)?;
        machine.power_off()
    });
}

/// A medium that fails writes: the guest has an error, the operator has its name, and reads go on.
fn failing(machine: &mut Machine<'_>) -> Result<()> {
    machine.volume("bad", "flakey", "1000 0")?;
    machine.well("dev add name d0 mgmtdev file path /dev/mapper/bad cache direct")?;
    machine.start_front("d0")?;
    machine.asks("write 8 1", "ok")?;
    machine.asks("flush", "ok")?;
    machine.change("bad", "flakey", "0 1000 1 error_writes")?;
    machine.asks("write 64 2", "error")?;
    machine.asks("read 8", "ok 1")?;
    let said = machine.well("dev show d0")?;
    ensure!(
        said.contains("requests failed: 1 x Input/output error") && said.contains("at sector 64"),
        "{said}"
    );
    machine.change("bad", "flakey", "1000 0")?;
    machine.asks("write 64 3", "ok")?;
    machine.asks("read 64", "ok 3")?;
    machine.end_front()?;
    machine.well("dev del d0")?;
    machine.dmsetup("remove bad")
}

/// What a dead daemon has under way may be written after its end: its successor waits for that, and no write comes after a later one.
fn late(machine: &mut Machine<'_>) -> Result<()> {
    machine.volume("slow", "delay", "0 /dev/ram0 0 3000")?;
    machine.well("dev add name d0 mgmtdev file path /dev/mapper/slow cache direct")?;
    machine.start_front("d0")?;
    let old = machine.tell("write 8 4")?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(machine.answered(old)?.is_none(), "the volume does not wait");
    machine.kill_ringwayd()?;
    machine.start_ringwayd()?;
    machine.asks("reconnect", "done")?;
    ensure!(machine.answer(old)? == "ok", "the write of the dead daemon is not done");
    machine.asks("write 8 5", "ok")?;
    machine.asks("read 8", "ok 5")?;
    machine.end_front()?;
    machine.well("dev del d0")?;
    machine.dmsetup("remove slow")
}

/// A volume that answers nothing: the device is removed at once and shown as draining, keeps its guest's memory and its file, and is gone
/// when the volume answers.
fn hanging(machine: &mut Machine<'_>) -> Result<()> {
    machine.volume("hung", "delay", "0 /dev/ram0 0 0")?;
    machine.well("dev add name d0 mgmtdev file path /dev/mapper/hung cache direct")?;
    machine.start_front("d0")?;
    machine.asks("write 8 6", "ok")?;
    let unused = machine.guests_mapped()?;
    ensure!(unused > 0, "no guest's memory is mapped");
    machine.dmsetup("suspend --noflush --nolockfs hung")?;
    let number = machine.tell("write 16 7")?;
    let said = machine.until("dev show d0", "it does not answer", true)?;
    ensure!(said.contains("1 requests under way, the oldest a write at sector 16"), "{said}");
    let said = machine.until("-j why d0", "not_answering", true)?;
    ensure!(said.contains("the oldest a write at sector 16") && !said.contains("idle"), "{said}");
    ensure!(machine.answered(number)?.is_none(), "a suspended volume answered");

    let pace = Pace::of(|| {
        let begun = Instant::now();
        machine.well("mgmtdev show file")?;
        Ok(begun.elapsed())
    })?;
    let begun = Instant::now();
    machine.well("dev del d0")?;
    pace.allows("dev del", ANSWERED_WITHIN, begun.elapsed())?;
    let said = machine.until("dev show", "draining", true)?;
    ensure!(
        said.contains("d0: let go of, draining: 1 requests under way, the oldest a write at sector 16"),
        "{said}"
    );
    let said = machine.well("-j why d0")?;
    ensure!(said.contains("\"draining\"") && said.contains("the oldest a write at sector 16"), "{said}");
    let (code, said) = machine.ringway("dev add name d1 mgmtdev file path /dev/mapper/hung cache direct")?;
    ensure!(code == 4 && said.contains("held by: device d0"), "{code}: {said}");
    ensure!(machine.guests_mapped()? > 0, "the memory of what is under way is gone");

    machine.dmsetup("resume hung")?;
    machine.until("dev show", "draining", false)?;
    ensure!(machine.guests_mapped()? == 0, "a guest's memory stays");
    machine.end_front()?;
    machine.well("dev add name d1 mgmtdev file path /dev/mapper/hung cache direct")?;
    machine.start_front("d1")?;
    machine.asks("read 16", "ok 7")?;
    machine.end_front()?;
    machine.well("dev del d1").map(drop)
}

/// A command that waits for nothing is answered within so many times what another one takes.
const ANSWERED_WITHIN: u32 = 10;
