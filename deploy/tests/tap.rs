//! The host's network behind a guest, beside the kernel's vhost-net: `ringway-bench tap` in a Linux whose kernel has it. Its
//! processors are emulated in turns, so that what it tells is that everything arrives, and nothing of speed.

use std::time::Duration;

use ringway_lab::daemon::suite;
use ringway_lab::debian::Machine;
use ringway_lab::error::Context;
use ringway_lab::lab::Lab;
use ringway_lab::{ensure, fail};
use serde_json::Value;

#[test]
#[ignore = "needs QEMU >= 8, the 6.12 guest kernel and a Debian with systemd: run deploy/test"]
fn what_goes_beside_the_kernels_vhost_net_arrives() {
    Lab::run("tap-vhost-net", |lab| {
        let mut machine = Machine::boot(lab, &suite()?)?;
        machine.well("test -c /dev/vhost-net && nproc | grep -x 2")?;
        let words =
            "/mnt/ringway-bench -j tap --peer vhost-net --no-states --idle adaptive --rounds 1 --seconds 0.5";
        let said = machine.well_within(LIMIT, &words.split(' ').collect::<Vec<_>>())?;
        let line = said.lines().find(|line| line.starts_with('{')).unwrap_or_default();
        let told: Value = serde_json::from_str(line).context(|| said.clone())?;
        ensure!(told["peer"]["name"] == "vhost-net", "{told}");
        let Some(rows) = told["rows"].as_array() else { fail!("{told}") };
        // TCP, and UDP in two sizes, both ways.
        ensure!(rows.len() == 6, "{} rows: {told}", rows.len());
        for row in rows {
            for side in [&row["ours"], &row["peer"]] {
                let count = |name: &str| side["books"][name].as_u64();
                let received = count("received").unwrap_or_default();
                ensure!(received > 0 && count("corrupt") == Some(0), "{row}");
                ensure!(count("out_of_order") == Some(0), "{row}");
                ensure!(row["protocol"] != "tcp" || count("lost") == Some(0), "{row}");
                ensure!(side["cycles_per_frame"]["median"].as_f64() > Some(0.0), "{row}");
            }
            lab.say(format_args!(
                "{} {} {}: {} and {} Gbit/s, under emulation",
                row["protocol"],
                row["direction"],
                row["size"],
                row["ours"]["gbps"]["median"],
                row["peer"]["gbps"]["median"]
            ));
        }
        // Nothing is left behind, also of what is killed.
        let killed = "timeout --signal KILL 8 /mnt/ringway-bench tap --no-states --rounds 100; sleep 1; \
                      ! pidof ringwayd && ! ip -o link | grep rwtap0";
        machine.well(killed)?;
        machine.power_off()
    });
}

/// What takes a second takes many under emulation.
const LIMIT: Duration = Duration::from_secs(300);
