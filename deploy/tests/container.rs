//! The container image, built and run by podman on a Debian with systemd.

use std::fs;
use std::path::{Path, PathBuf};

use ringway_lab::daemon::binaries;
use ringway_lab::debian::Machine;
use ringway_lab::ensure;
use ringway_lab::error::{Context, Error, Result};
use ringway_lab::lab::Lab;
use ringway_lab::pace::WATCHDOG;
use ringway_lab::process;

#[test]
#[ignore = "needs QEMU >= 8, the 6.12 guest kernel and a Debian with systemd and podman: run deploy/test"]
fn daemon_runs_in_a_container_and_its_devices_outlive_it() {
    Lab::run("container", |lab| {
        let context = context(lab)?;
        // This Debian's podman does not read Quadlets yet, so the unit that a newer one would make is made here.
        let unit = lab.path("ringwayd.service");
        fs::write(&unit, service(&quadlet()?, "container/ringwayd.container")?)?;
        let mut machine = Machine::boot(lab, &[context, unit])?;
        machine.well("systemctl is-system-running --wait || systemctl --failed")?;
        machine.well("mkdir /image && tar -x -f /mnt/context.tar -C /image")?;
        // Without a file system of layers, which the kernel of the lab does not have loaded.
        machine.well("rm -rf /var/lib/containers && mkdir -p /etc/containers && printf '[storage]\\ndriver = \"vfs\"\\nrunroot = \"/run/containers/storage\"\\ngraphroot = \"/var/lib/containers/storage\"\\n' > /etc/containers/storage.conf")?;
        machine.well("podman build --quiet --tag ringway /image")?;
        // What it is for, in one command and without anything of the host's.
        let said = machine.well(&format!(
            "podman run --rm {} --entrypoint /usr/bin/ringway localhost/ringway demo --seconds 1",
            limits(&quadlet()?).join(" ")
        ))?;
        ensure!(said.contains(" 0 lost"), "{said}");

        machine.well("cp /mnt/ringwayd.service /etc/systemd/system/ && systemctl daemon-reload")?;
        machine.well("systemctl start ringwayd && systemctl is-active ringwayd")?;
        machine.well(&format!("{EXEC} wait --within 30"))?;
        machine.well("grep -x 'CapEff:\t0000000000000000' /proc/$(pidof ringwayd)/status")?;
        machine.well("test $(stat -c %u:%g /proc/$(pidof ringwayd)) = 65532:65532")?;
        machine.well(&format!("{EXEC} dev add name vm0 mgmtdev sim/net"))?;
        // Its socket is the host's to give to a VMM, or to another container.
        machine.well("stat -c '%a %u:%g' /run/ringway/dev/vm0.sock | grep -x '660 65532:65532'")?;
        // The configuration file is applied, or the reload fails and changes nothing.
        let file = "/etc/ringway/ringwayd.toml";
        machine.well(&format!("printf '[[device]]\\nname = \"vm1\"\\nmgmtdev = \"sim/net\"\\n' > {file} && systemctl reload ringwayd && {EXEC} wait vm1 made"))?;
        let (code, said) = machine.shell(&format!("echo 'x = [' > {file}; systemctl reload ringwayd"))?;
        ensure!(code != 0, "a file with an error: {said}");
        machine.well(&format!("{EXEC} wait vm1 made --within 0 && rm {file}"))?;
        // It is killed, and there again with what operators added; the file, which is made where it is not, names nothing.
        machine.well("pidof ringwayd > /pid; podman kill ringwayd")?;
        machine.within("another daemon", |machine| {
            Ok(machine
                .shell("pid=$(pidof ringwayd) && test $pid != $(cat /pid) && systemctl is-active ringwayd")?
                .0
                == 0)
        })?;
        machine.well(&format!("{EXEC} wait vm0 made --within 30"))?;
        machine.well(&format!("test -e {file} && systemctl stop ringwayd"))?;
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

/// The keys of each section, in their order.
type Sections = Vec<(String, Vec<(String, String)>)>;

fn quadlet() -> Result<Sections> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("container/ringwayd.container");
    let text = fs::read_to_string(&path).context(|| path.display().to_string())?;
    let mut sections = Sections::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let section = line.strip_prefix('[').and_then(|line| line.strip_suffix(']'));
        match (section, line.split_once('='), sections.last_mut()) {
            (Some(section), ..) => sections.push((section.into(), Vec::new())),
            (None, Some((key, value)), Some((_, keys))) => keys.push((key.into(), value.into())),
            _ => return Err(Error::new(format!("{}: {line}", path.display()))),
        }
    }
    Ok(sections)
}

fn keys<'a>(sections: &'a Sections, name: &str) -> &'a [(String, String)] {
    sections.iter().find(|(section, _)| section == name).map_or(&[], |(_, keys)| keys)
}

/// What a container is kept from, as options of `podman run`.
fn limits(sections: &Sections) -> Vec<String> {
    let option = |(key, value): &(String, String)| match (key.as_str(), value.as_str()) {
        ("Network", value) => Some(format!("--network={value}")),
        ("ReadOnly", "true") => Some("--read-only".into()),
        ("DropCapability", value) => Some(format!("--cap-drop={value}")),
        ("NoNewPrivileges", "true") => Some("--security-opt=no-new-privileges".into()),
        _ => None,
    };
    keys(sections, "Container").iter().filter_map(option).collect()
}

/// The unit that podman makes of a Quadlet (podman-systemd.unit(5)): its own sections as they are, and `podman run` of what
/// `[Container]` has. Podman 4.3 leaves the file with its container's id, and does not start while it is there: it is removed.
fn service(sections: &Sections, source: &str) -> Result<String> {
    let (mut options, mut image, mut words) = (limits(sections), None, None);
    for (key, value) in keys(sections, "Container") {
        match key.as_str() {
            "Image" => image = Some(value),
            "Exec" => words = Some(value),
            "ContainerName" => options.push(format!("--name={value}")),
            "Volume" => options.push(format!("--volume={value}")),
            "Notify" if value == "true" => options.push("--sdnotify=container".into()),
            "Network" | "ReadOnly" | "DropCapability" | "NoNewPrivileges" => {}
            _ => return Err(Error::new(format!("{source}: what is {key}={value} to podman?"))),
        }
    }
    let (Some(image), Some(words)) = (image, words) else {
        return Err(Error::new(format!("{source}: no image, or nothing to run")));
    };
    let mut unit = String::new();
    for (section, keys) in sections.iter().filter(|(section, _)| section != "Container") {
        unit += &format!("[{section}]\n");
        unit.extend(keys.iter().map(|(key, value)| format!("{key}={value}\n")));
        if section == "Service" {
            unit += "Environment=PODMAN_SYSTEMD_UNIT=%n\nKillMode=mixed\nDelegate=yes\nType=notify\nNotifyAccess=all\n\
                     ExecStartPre=-/bin/rm -f %t/%N.cid\n\
                     ExecStop=/usr/bin/podman rm -f -i --cidfile=%t/%N.cid\nExecStopPost=-/usr/bin/podman rm -f -i --cidfile=%t/%N.cid\n\
                     ExecStopPost=-/bin/rm -f %t/%N.cid\n";
            unit += &format!(
                "ExecStart=/usr/bin/podman run --cidfile=%t/%N.cid --replace --rm --cgroups=split -d {} {image} {words}\n",
                options.join(" ")
            );
        }
    }
    Ok(unit)
}

const EXEC: &str = "podman exec ringwayd /usr/bin/ringway";
