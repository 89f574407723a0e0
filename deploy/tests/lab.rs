//! The lab proved against itself: DPDK's vhost back-end in Ringway's place. When a test against Ringway fails and these pass, it
//! is not the lab.

use std::process::{Command, Stdio};
use std::time::Duration;

use ringway_lab::ensure;
use ringway_lab::error::Result;
use ringway_lab::image::{Archive, Kernel};
use ringway_lab::lab::{Lab, wait_for};
use ringway_lab::qemu::{Guest, Nic, all_came_back, every_length, steady_traffic};
use ringway_lab::testpmd::{FrontEnd, Role, Testpmd};

#[test]
#[ignore = "needs cpio: run deploy/test"]
fn cpio_lists_what_the_archive_holds() {
    let mut archive = Archive::default();
    archive.folder("bin");
    archive.file("bin/a", 0o755, b"content");
    archive.file("init", 0o755, &[7; 4097]);
    let folder = std::env::temp_dir().join(format!("ringway-lab-cpio-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("a.cpio"), archive.finish()).unwrap();
    let mut cpio = Command::new("cpio");
    cpio.args(["--extract", "--quiet", "--make-directories", "--file=a.cpio"]).current_dir(&folder);
    let status = cpio.stdin(Stdio::null()).status().expect("cpio is not installed: run deploy/test");
    assert!(status.success());
    assert_eq!(std::fs::read(folder.join("bin/a")).unwrap(), b"content");
    assert_eq!(std::fs::read(folder.join("init")).unwrap(), [7; 4097]);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
#[ignore = "needs the 6.12 guest kernel and xz: run deploy/test"]
fn the_kernels_modules_come_in_an_order_in_which_they_load() {
    Lab::run("modules", |_| {
        let names: Vec<String> = Kernel::find()?
            .modules(&["virtio_net", "virtio_pci"])?
            .into_iter()
            .map(|module| module.name)
            .collect();
        ensure!(names == ["failover", "net_failover", "virtio_net"], "{names:?}");
        Ok(())
    });
}

#[test]
#[ignore = "needs QEMU >= 8, the 6.12 guest kernel and dpdk-testpmd: run deploy/test"]
fn a_guests_frames_return_from_a_dpdk_back_end() {
    Lab::run("guest-and-dpdk", |lab| {
        let socket = lab.socket("v.sock");
        let mut back =
            Testpmd::start(lab, "back", &Role::BackEnd { socket: socket.clone(), queues: 1 }, "io")?;
        back.command("start")?;
        let nic = Nic::new(1, &socket);
        let mut guest = Guest::boot(lab, "guest", 1, std::slice::from_ref(&nic))?;
        lab.say(format_args!("{:?}", guest.link_up(&nic.mac)?));
        let report = guest.frames(every_length(&nic, 1500))?;
        lab.say(format_args!("{report:?}"));
        all_came_back(&report)?;
        guest.start_traffic(steady_traffic(&nic))?;
        std::thread::sleep(Duration::from_secs(2));
        let report = guest.stop_traffic(&nic.mac)?;
        lab.say(format_args!("{report:?}"));
        ensure!(report.received > 0 && report.corrupt == 0 && report.duplicated == 0, "{report:?}");
        let device = guest.devices()?.remove(0).device;
        guest.unbind(&device)?;
        ensure!(guest.nics()?.is_empty() && !guest.devices()?[0].bound, "still bound");
        guest.bind(&device)?;
        guest.link_up(&nic.mac)?;
        all_came_back(&guest.frames(every_length(&nic, 1500))?)?;
        guest.reboot()?;
        guest.link_up(&nic.mac)?;
        all_came_back(&guest.frames(every_length(&nic, 1500))?)?;
        lab.say(format_args!("{:?}", guest.nic(&nic.mac)?));
        lab.say(format_args!("{:?}", guest.shell("busybox uname -a; exit 3")?));
        guest.power_off()?;
        back.quit()
    });
}

#[test]
#[ignore = "needs QEMU >= 8, the 6.12 guest kernel and dpdk-testpmd: run deploy/test"]
fn a_guests_four_packed_queue_pairs_carry_frames_to_a_dpdk_back_end() {
    Lab::run("guest-and-dpdk-4", |lab| {
        let socket = lab.socket("v.sock");
        let mut back =
            Testpmd::start(lab, "back", &Role::BackEnd { socket: socket.clone(), queues: 4 }, "io")?;
        back.command("start")?;
        let nic = Nic::new(1, &socket).packed(true).pairs(4);
        let mut guest = Guest::boot(lab, "guest", 2, std::slice::from_ref(&nic))?;
        guest.set_channels(&nic.mac, 4)?;
        let shown = guest.link_up(&nic.mac)?;
        ensure!(shown.pairs == 4 && shown.has(34), "{shown:?}");
        all_came_back(&guest.frames(every_length(&nic, 1500))?)?;
        let stats = back.extended_stats()?;
        for queue in 0..4 {
            let name = format!("rx_q{queue}_good_packets");
            ensure!(stats.get(&name).is_some_and(|packets| *packets > 0), "{name} is not above 0: {stats:?}");
        }
        guest.power_off()?;
        back.quit()
    });
}

#[test]
#[ignore = "needs dpdk-testpmd: run deploy/test"]
fn dpdk_front_ends_of_every_kind_talk_to_a_dpdk_back_end() {
    Lab::run("dpdk-and-dpdk", |lab| -> Result<()> {
        let socket = lab.socket("v.sock");
        let mut back =
            Testpmd::start(lab, "back", &Role::BackEnd { socket: socket.clone(), queues: 1 }, "io")?;
        back.command("start")?;
        for (packed, vectorized) in [(false, false), (true, false), (false, true), (true, true)] {
            let front = FrontEnd {
                packed,
                vectorized,
                mergeable: !vectorized,
                in_order: packed,
                ..FrontEnd::new(&socket)
            };
            let name = format!("front{}{}", u8::from(packed), u8::from(vectorized));
            let mut front = Testpmd::start(lab, &name, &Role::FrontEnd(front), "mac")?;
            front.command("start tx_first 8")?;
            std::thread::sleep(Duration::from_millis(500));
            front.command("stop")?;
            front.command("set fwd rxonly")?;
            front.command("start")?;
            let stats = wait_for("every frame back", Duration::from_secs(5), || {
                Ok(Some(front.stats()?).filter(|stats| stats.rx_packets == stats.tx_packets))
            })?;
            lab.say(format_args!("{name}: {stats:?}"));
            ensure!(stats.tx_packets > 256, "no traffic: {stats:?}");
            let queue = front.extended_stats()?.get("rx_q0_good_packets").copied();
            ensure!(queue == Some(stats.rx_packets), "by queue {queue:?}, in all {stats:?}");
            front.quit()?;
        }
        back.quit()
    });
}
