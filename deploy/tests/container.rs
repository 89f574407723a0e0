//! The container image, built and run by podman on a Debian with systemd.

use std::path::{Path, PathBuf};

use ringway_lab::daemon::binaries;
use ringway_lab::debian::Machine;
use ringway_lab::ensure;
use ringway_lab::error::Result;
use ringway_lab::lab::Lab;
use ringway_lab::pace::WATCHDOG;
use ringway_lab::process;

#[test]
#[ignore = "needs QEMU >= 8, the 6.12 guest kernel and a Debian with systemd and podman: run deploy/test"]
fn daemon_runs_in_a_container_and_its_devices_outlive_it() {
    Lab::run("container", |lab| {
        let context = context(lab)?;
        let mut machine = Machine::boot(lab, &[context])?;
        machine.well("systemctl is-system-running --wait || systemctl --failed")?;
        machine.well("mkdir /image && tar -x -f /mnt/context.tar -C /image")?;
        // Without a file system of layers, which the kernel of the lab does not have loaded.
        machine.well("rm -rf /var/lib/containers && mkdir -p /etc/containers && printf '[storage]\\ndriver = \"vfs\"\\nrunroot = \"/run/containers/storage\"\\ngraphroot = \"/var/lib/containers/storage\"\\n' > /etc/containers/storage.conf")?;
        machine.well("podman build --quiet --tag ringway /image")?;
        // What it is for, in one command and without anything of the host's.
        let said = machine.well(&format!(
            "podman run --rm {LIMITS} --entrypoint /usr/bin/ringway localhost/ringway demo --seconds 1"
        ))?;
        ensure!(said.contains(" 0 lost"), "{said}");

        machine.well("install -d -m 0750 -o 65532 -g 65532 /run/ringway /var/lib/ringway")?;
        machine.well(RUN)?;
        machine.well(&format!("{EXEC} wait --within 30"))?;
        machine.well("grep -x 'CapEff:\t0000000000000000' /proc/$(pidof ringwayd)/status")?;
        machine.well("test $(stat -c %u:%g /proc/$(pidof ringwayd)) = 65532:65532")?;
        machine.well(&format!("{EXEC} dev add name vm0 mgmtdev sim/net"))?;
        // Its socket is the host's to give to a VMM, or to another container.
        machine.well("stat -c '%a %u:%g' /run/ringway/dev/vm0.sock | grep -x '660 65532:65532'")?;
        machine.well("podman kill ringwayd; podman rm --force ringwayd")?;
        machine.well(RUN)?;
        machine.well(&format!("{EXEC} wait vm0 made --within 30"))?;
        machine.well("podman stop --time 5 ringwayd")?;
        machine.well("test ! -e /run/ringway/dev/vm0.sock")?;
        machine.power_off()
    });
}

/// The folder that the image is built in, as one file.
fn context(lab: &Lab) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("container/context");
    let (folder, tar) = (lab.path("context"), lab.path("context.tar"));
    let variable = format!("RINGWAY_BIN={}", binaries()?.display());
    let words = [variable, script.display().to_string(), folder.display().to_string()];
    let made = process::run("env", &words, WATCHDOG)?;
    ensure!(made.code == 0, "deploy/container/context: {}{}", made.stdout, made.stderr);
    // Debug builds carry what nobody debugs in there.
    let strip = "strip --strip-debug \"$1\"/root/usr/sbin/ringwayd \"$1\"/root/usr/bin/ringway && tar -c -f \"$2\" -C \"$1\" .";
    let words =
        ["-c", strip, "sh", &folder.display().to_string(), &tar.display().to_string()].map(String::from);
    let packed = process::run("sh", &words, WATCHDOG)?;
    ensure!(packed.code == 0, "{}", packed.stderr);
    Ok(tar)
}

/// As the Quadlet has it.
const LIMITS: &str = "--network none --read-only --cap-drop all --security-opt no-new-privileges";
const RUN: &str = "podman run --detach --name ringwayd --network none --read-only --cap-drop all \
    --security-opt no-new-privileges --volume /run/ringway:/run/ringway --volume /var/lib/ringway:/var/lib/ringway \
    --volume /run/lock:/run/lock localhost/ringway";
const EXEC: &str = "podman exec ringwayd /usr/bin/ringway";
