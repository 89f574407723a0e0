//! What `ringway doctor` finds: on hosts that are trees of files, good ones and bad ones, and on this one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use crate::support::{Daemon, Done, ringway};

const NO_DAEMON: &str = "/nonexistent/ctl.sock";

/// A host of four cores on two nodes, whose core 3 is a worker's own in every way.
fn host() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| put(dir.path(), path, text);
    write("proc/self/status", "Name:\tringway\nCpus_allowed_list:\t0-3\nCapEff:\t0000000000000000\n");
    write(
        "proc/self/limits",
        "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max open files            1024                 524288               files     \n\
         Max locked memory         8388608              8388608              bytes     \n",
    );
    write("proc/stat", "cpu  9 0 0 0 0 0 0 0 0 0\ncpu3 1000 0 1000 8000 0 0 0 10 0 0\n");
    write("proc/sys/kernel/osrelease", "6.12.41\n");
    let cpu = "sys/devices/system/cpu";
    write(&format!("{cpu}/online"), "0-3\n");
    write(&format!("{cpu}/isolated"), "3\n");
    write(&format!("{cpu}/nohz_full"), "3\n");
    for core in 0..4 {
        write(&format!("{cpu}/cpu{core}/topology/thread_siblings_list"), &format!("{core}\n"));
        write(&format!("{cpu}/cpu{core}/cpufreq/scaling_governor"), "performance\n");
    }
    for (node, cores) in [(0, "0-1"), (1, "2-3")] {
        let node = format!("sys/devices/system/node/node{node}");
        write(&format!("{node}/cpulist"), cores);
        write(&format!("{node}/hugepages/hugepages-2048kB/nr_hugepages"), "64\n");
        write(&format!("{node}/hugepages/hugepages-2048kB/free_hugepages"), "60\n");
    }
    interrupt(dir.path(), 24, "0-2", "1", "eth0-rx-0");
    write("sys/devices/virtual/workqueue/cpumask", "7\n");
    write("sys/devices/virtual/workqueue/writeback/cpumask", "f\n");
    write("sys/class/net/eth0/queues/rx-0/rps_cpus", "0\n");
    write("sys/bus/pci/drivers/x/bind", "");
    dir
}

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn interrupt(root: &Path, irq: u32, allowed: &str, effective: &str, name: &str) {
    put(root, &format!("proc/irq/{irq}/smp_affinity_list"), allowed);
    put(root, &format!("proc/irq/{irq}/effective_affinity_list"), effective);
    fs::create_dir_all(root.join(format!("proc/irq/{irq}/{name}"))).unwrap();
}

/// A function that vfio-pci has, in group 7.
fn function(root: &Path) {
    let folder = root.join("sys/bus/pci/devices/0000:01:00.0");
    put(root, "sys/bus/pci/devices/0000:01:00.0/numa_node", "1\n");
    put(root, "sys/bus/pci/drivers/vfio-pci/bind", "");
    symlink("../../../../devices/0000:01:00.0", root.join("sys/bus/pci/drivers/vfio-pci/0000:01:00.0"))
        .unwrap();
    symlink("../../drivers/vfio-pci", folder.join("driver")).unwrap();
    let group = root.join("sys/kernel/iommu_groups/7");
    fs::create_dir_all(group.join("devices")).unwrap();
    fs::write(group.join("devices/0000:01:00.0"), "").unwrap();
    symlink(&group, folder.join("iommu_group")).unwrap();
    fs::create_dir_all(root.join("sys/class/iommu/dmar0")).unwrap();
    put(root, "proc/1/comm", "init\n");
    fs::create_dir_all(root.join("proc/1/fd")).unwrap();
}

fn doctor(root: &Path, words: &str) -> Done {
    ringway(NO_DAEMON.as_ref(), &format!("-j doctor --root {} {words}", root.display()))
}

/// What is found of one check: its standing, and all of its words.
fn found(done: &Done, check: &str) -> (String, String) {
    let report: Value = serde_json::from_str(&done.out).unwrap();
    let findings = report["doctor"]["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["check"] == check);
    let finding = finding.unwrap_or_else(|| panic!("no {check}: {}", done.out));
    let standing = finding["standing"].as_str().unwrap().to_owned();
    assert_eq!(finding["why"].is_null(), standing == "ok", "{finding}");
    (standing, finding.to_string())
}

#[test]
fn host_that_is_prepared_is_good_in_every_check() {
    let host = host();
    function(host.path());
    put(host.path(), "proc/self/status", "Cpus_allowed_list:\t0-3\nCapEff:\t0000000000004000\n");
    let done = doctor(host.path(), "--strict");
    let report: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(report["doctor"]["cores"], serde_json::json!([3]));
    for finding in report["doctor"]["findings"].as_array().unwrap() {
        assert_eq!(finding["standing"], "ok", "{finding}");
    }
    assert_eq!(done.code, 0, "{done:?}");
    let text = ringway(NO_DAEMON.as_ref(), &format!("doctor --root {}", host.path().display())).good();
    assert!(text.starts_with("no daemon: looked at as if one had workers on cores 3\n"), "{text}");
    assert!(text.ends_with("0 failures, 0 warnings, 0 unknown\n"), "{text}");
}

#[test]
fn each_thing_that_is_wrong_is_found_with_what_to_do() {
    let all = |check: &str, spoil: &dyn Fn(&Path), standing: &str, says: &[&str]| {
        let host = host();
        spoil(host.path());
        let done = doctor(host.path(), "");
        let (stands, words) = found(&done, check);
        assert_eq!(stands, standing, "{check}: {words}");
        for said in says {
            assert!(words.contains(said), "{check}: no {said}: {words}");
        }
        let strict = doctor(host.path(), "--strict");
        let (code, of_strict) = match standing {
            "failure" => (8, 8),
            "warning" => (0, 8),
            _ => (0, 0),
        };
        assert_eq!((done.code, strict.code), (code, of_strict), "{check}: {strict:?}");
    };
    let cpu = "sys/devices/system/cpu";
    let spoil = |path: &'static str, text: &'static str| move |root: &Path| put(root, path, text);
    all(
        "isolated",
        &spoil("sys/devices/system/cpu/isolated", "\n"),
        "warning",
        &["core 3", "isolcpus=managed_irq,domain,3"],
    );
    all(
        "nohz_full",
        &spoil("sys/devices/system/cpu/nohz_full", "(null)\n"),
        "warning",
        &["core 3", "nohz_full=3"],
    );
    all(
        "smt",
        &spoil("sys/devices/system/cpu/cpu3/topology/thread_siblings_list", "1,3\n"),
        "warning",
        &["core 3 is one physical core with core 1"],
    );
    all(
        "governor",
        &spoil("sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "powersave"),
        "warning",
        &["core 3: powersave"],
    );
    all(
        "governor",
        &|root| fs::remove_dir_all(root.join(cpu).join("cpu3/cpufreq")).unwrap(),
        "unknown",
        &["is not there"],
    );
    // Whatever was taken before.
    all("steal", &spoil("proc/stat", "cpu3 1000 0 1000 7000 0 0 0 1000 0 0\n"), "ok", &[]);
    all(
        "irq",
        &|root| interrupt(root, 31, "0-3", "3", "nvme0q1"),
        "warning",
        &["31 (nvme0q1): core 3", "1 of 2", "echo 0-2"],
    );
    // Nobody handles it.
    all("irq", &spoil("proc/irq/40/smp_affinity_list", "0-3"), "ok", &[]);
    all(
        "irq",
        &|root| fs::remove_dir_all(root.join("proc/irq")).unwrap(),
        "unknown",
        &["/proc/irq is not there"],
    );
    all(
        "workqueue",
        &spoil("sys/devices/virtual/workqueue/cpumask", "f"),
        "warning",
        &["writeback/cpumask", "echo 7 >"],
    );
    all(
        "rps",
        &spoil("sys/class/net/eth0/queues/rx-0/rps_cpus", "8"),
        "warning",
        &["eth0/queues/rx-0/rps_cpus", "core 3"],
    );
    all(
        "hugepages",
        &spoil("sys/devices/system/node/node1/hugepages/hugepages-2048kB/free_hugepages", "0"),
        "warning",
        &["node 1", "0 of 64"],
    );
    all("memlock", &function, "warning", &["8 MiB", "LimitMEMLOCK"]);
    all(
        "nofile",
        &spoil("proc/self/limits", "Max open files  1024 1024 files\nMax locked memory 1 1 bytes\n"),
        "warning",
        &["1024 descriptors"],
    );
    all("kernel", &spoil("proc/sys/kernel/osrelease", "4.19.0-x"), "failure", &["4.19.0-x"]);
    let without_iommu = |root: &Path| {
        function(root);
        fs::remove_dir_all(root.join("sys/class/iommu")).unwrap();
    };
    all("iommu", &without_iommu, "failure", &["0000:01:00.0", "intel_iommu=on"]);
    let shared = |root: &Path| {
        function(root);
        put(root, "sys/bus/pci/devices/0000:01:00.1/class", "0x020000");
        symlink("../../drivers/ixgbe", root.join("sys/bus/pci/devices/0000:01:00.1/driver")).unwrap();
        fs::write(root.join("sys/kernel/iommu_groups/7/devices/0000:01:00.1"), "").unwrap();
    };
    all("vfio", &shared, "failure", &["group 7, with 0000:01:00.1, which ixgbe has", "unbind"]);
    let held = |root: &Path| {
        function(root);
        put(root, "proc/812/comm", "qemu\n");
        fs::create_dir_all(root.join("proc/812/fd")).unwrap();
        symlink("/dev/vfio/7", root.join("proc/812/fd/9")).unwrap();
    };
    all("vfio", &held, "warning", &["held by qemu (pid 812)"]);
    let far = |root: &Path| {
        function(root);
        put(root, "sys/bus/pci/devices/0000:01:00.0/numa_node", "0\n");
    };
    all("numa", &far, "warning", &["0000:01:00.0 is of node 0"]);
    all("core_0", &spoil("proc/self/status", "Cpus_allowed_list:\t0\nCapEff:\t0\n"), "warning", &["core 0"]);
}

#[test]
fn cores_are_named_or_refused_and_what_is_not_there_is_not_guessed() {
    let host = host();
    let done = doctor(host.path(), "--cores 2-3");
    let (stands, words) = found(&done, "isolated");
    assert!(stands == "warning" && words.contains("core 2") && words.contains("domain,2-3"), "{words}");
    assert!(doctor(host.path(), "--cores 9").bad(3).contains("there is no core 9"));
    assert!(doctor(host.path(), "--cores x").bad(2).contains("not a core"));
    let nothing = tempfile::tempdir().unwrap();
    assert!(doctor(nothing.path(), "").bad(3).contains("cannot tell which cores there are"));
    let done = doctor(nothing.path(), "--cores 1");
    let report: Value = serde_json::from_str(&done.out).unwrap();
    let told = |finding: &&Value| {
        !["scheduling", "claimed", "program"].contains(&finding["check"].as_str().unwrap())
    };
    for finding in report["doctor"]["findings"].as_array().unwrap().iter().filter(told) {
        assert_eq!(finding["standing"], "unknown", "{finding}");
        assert!(finding["found"].as_str().unwrap().starts_with("cannot tell: /"), "{finding}");
    }
}

#[test]
fn this_host_is_looked_at_with_a_daemon_and_without() {
    let daemon = Daemon::start_with(&["--cores", "1"]);
    let with = ringway(&daemon.ctl(), "-j doctor");
    let report: Value = serde_json::from_str(&with.out).unwrap();
    assert_eq!(report["doctor"]["cores"], serde_json::json!([1]));
    assert_eq!(report["doctor"]["daemon"], daemon.pid());
    assert_eq!(found(&with, "scheduling").0, "ok");
    assert_eq!(found(&with, "program").0, "ok");
    let other = Daemon::start_with(&["--cores", "1"]);
    let (stands, words) = found(&ringway(&daemon.ctl(), "-j doctor"), "claimed");
    assert!(
        stands == "warning" && words.contains(&format!("core 1: ringwayd (pid {}), adaptive", other.pid())),
        "{words}"
    );
    // Once for each.
    assert_eq!(words.matches("(pid ").count(), words.matches("ringwayd (pid ").count(), "{words}");
    assert!(!words.contains(&format!("(pid {})", daemon.pid())), "{words}");
    let without = ringway(NO_DAEMON.as_ref(), "doctor --cores 1").out;
    assert!(
        without.starts_with("no daemon: ") && without.contains(&format!("(pid {})", daemon.pid())),
        "{without}"
    );
}

/// What is taken now is a quarter, and was a tenth of all time.
#[test]
fn core_that_a_hypervisor_takes_away_just_now_is_found() {
    let host = host();
    let mut ticks = 0;
    let mut tell = || {
        ticks += 1;
        let (idle, stolen) = (90_000 + 3 * ticks, 10_000 + ticks);
        // Whole at any moment.
        put(host.path(), "proc/next", &format!("cpu3 0 0 0 {idle} 0 0 0 {stolen} 0 0\n"));
        fs::rename(host.path().join("proc/next"), host.path().join("proc/stat")).unwrap();
    };
    tell();
    let done = std::thread::scope(|scope| {
        let asking = scope.spawn(|| doctor(host.path(), ""));
        while !asking.is_finished() {
            tell();
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        asking.join().unwrap()
    });
    let (stands, words) = found(&done, "steal");
    assert_eq!(stands, "warning", "{words}");
    assert!(
        words.contains("core 3: 25.0 % in the last second, 10.") && words.contains("since the host started"),
        "{words}"
    );
}
