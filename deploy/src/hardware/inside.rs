//! Ringway inside the machine, and what talks to it there: testpmd as a front-end that answers pings, Linux that sends them.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::programs::{NICE, RINGWAY, RINGWAYD, SETPRIV, STDBUF, TESTPMD};
use super::{Front, Machine};
use crate::agent::ShellReport;
use crate::error::{Context, Result};
use crate::lab::wait_for;
use crate::pace::WATCHDOG;
use crate::{ensure, exchange};

/// DPDK's testpmd as a front-end that answers ARP and ICMP echo requests for whatever address.
#[derive(Debug, Clone)]
pub struct Echoer {
    /// The device whose socket it connects to.
    pub device: String,
    /// Packed rings, else split ones.
    pub packed: bool,
    /// Queue pairs.
    pub queues: u32,
    /// Descriptors in each ring.
    pub queue_size: u32,
    /// Its Ethernet address; `None`: one by chance.
    pub mac: Option<String>,
}

impl Echoer {
    /// One pair of rings of 256 descriptors.
    pub fn new(device: &str, packed: bool) -> Echoer {
        Echoer { device: device.into(), packed, queues: 1, queue_size: 256, mac: None }
    }
}

/// Who answers on a device's socket: testpmd takes several seconds to start, the lab's own front-end one.
#[derive(Debug, Clone)]
pub enum Answerer {
    /// DPDK's.
    Testpmd(Echoer),
    /// The lab's.
    Front(Front),
}

impl Machine<'_> {
    /// Starts one; returns when it answers.
    pub fn start_answerer(&mut self, who: &Answerer) -> Result<()> {
        match who {
            Answerer::Testpmd(echoer) => self.start_testpmd(echoer),
            Answerer::Front(front) => self.start_front(front),
        }
    }

    /// Ends it as its user would.
    pub fn stop_answerer(&mut self, who: &Answerer) -> Result<()> {
        match who {
            Answerer::Testpmd(_) => self.stop_testpmd(),
            Answerer::Front(front) => self.stop_front(&front.device),
        }
    }

    /// Starts `ringwayd`; returns when it answers.
    pub fn start_ringwayd(&mut self) -> Result<()> {
        self.step("ringwayd started", |machine| {
            machine.guest.launch("ringwayd", &[RINGWAYD, "--cores", "0"])?;
            machine.await_ringwayd()
        })
    }

    /// Starts `ringwayd` as a user who is not root, may lock so many KiB of memory, or `unlimited`, and has the group of one
    /// function; returns when it answers.
    pub fn start_ringwayd_unprivileged(&mut self, function: &str, memlock: &str) -> Result<()> {
        let group = self.group_of_its_own(function)?;
        self.step(&format!("ringwayd started as user {USER}, RLIMIT_MEMLOCK {memlock}"), |machine| {
            machine
                .sh(&format!("mkdir -p /run/ringway && chown -R {USER} /dev/vfio/{group} /run/ringway"))?;
            let daemon =
                format!("{RINGWAYD} --cores 0 --ctl /run/ringway/ctl.sock --state-dir /run/ringway/state");
            let user = format!("{SETPRIV} --reuid {USER} --regid {USER} --clear-groups");
            let line = format!("ulimit -l {memlock} && exec {user} {daemon}");
            machine.guest.launch("ringwayd", &["/bin/busybox", "sh", "-c", &line])?;
            machine.await_ringwayd()
        })
    }

    fn await_ringwayd(&mut self) -> Result<()> {
        wait_for("an answer of ringwayd", WATCHDOG, || {
            self.still_runs("ringwayd")?;
            Ok((self.ringway_raw(&["mgmtdev", "show"])?.code == 0).then_some(()))
        })
    }

    /// Ends `ringwayd` with SIGTERM, which must end well.
    pub fn stop_ringwayd(&mut self) -> Result<()> {
        self.step("ringwayd ended", |machine| {
            machine.guest.signal("ringwayd", Signal::TERM)?;
            let code = wait_for("end of ringwayd", WATCHDOG, || Ok(machine.guest.program("ringwayd")?.code))?;
            let left = machine.end_program("ringwayd")?;
            ensure!(code == 0, "exit code {code}:\n{left}");
            Ok(())
        })
    }

    /// Runs `ringway` with these words, however it ends.
    pub fn ringway_raw(&mut self, words: &[&str]) -> Result<ShellReport> {
        self.run(&[&[RINGWAY], words].concat(), WATCHDOG)
    }

    /// Runs `ringway` with these words, which must succeed; tells it as a step.
    pub fn ringway(&mut self, words: &[&str]) -> Result<String> {
        let line = format!("ringway {}", words.join(" "));
        self.step(&line, |machine| machine.ringway_quietly(words))
    }

    /// Runs `ringway` with these words, which must end with a code and say a word of what to do.
    pub fn refused(&mut self, words: &[&str], code: i32, says: &str) -> Result<()> {
        let report = self.ringway_raw(words)?;
        let (line, said) = (words.join(" "), report.output.trim());
        ensure!(report.code == code, "ringway {line}: exit code {} and not {code}: {said}", report.code);
        ensure!(said.contains(says), "ringway {line} does not say {says}: {said}");
        self.say(format_args!("ringway {line}: exit code {code}: {said}"));
        Ok(())
    }

    /// Waits until a function that was given to vfio-pci is a management device; gives its name.
    pub fn function_is_shown(&mut self, function: &str) -> Result<String> {
        let mgmtdev = format!("pci/{function}");
        self.step(&format!("{mgmtdev} is shown"), |machine| {
            let mut last = String::new();
            let shown = wait_for("the management device", WATCHDOG, || {
                let report = machine.ringway_raw(&["mgmtdev", "show", &mgmtdev])?;
                last = report.output;
                Ok((report.code == 0).then_some(()))
            });
            shown.context(|| last.trim().to_string())?;
            machine.say(last.trim());
            Ok(())
        })?;
        Ok(mgmtdev)
    }

    /// Waits until a function is no management device any more.
    pub fn function_is_gone(&mut self, function: &str) -> Result<()> {
        let mgmtdev = format!("pci/{function}");
        self.step(&format!("{mgmtdev} is shown no more"), |machine| {
            wait_for("the management device's end", WATCHDOG, || {
                Ok((machine.ringway_raw(&["mgmtdev", "show", &mgmtdev])?.code == NOT_FOUND).then_some(()))
            })
        })
    }

    /// Starts a shell that holds something once it has said so, and nothing else; gives its process.
    pub fn hold(&mut self, line: &str) -> Result<u32> {
        self.guest.launch(HOLDER, &["/bin/busybox", "sh", "-c", line])?;
        wait_for("the holder's word", WATCHDOG, || {
            let report = self.guest.program(HOLDER)?;
            ensure!(report.code.is_none(), "it ended: {}", report.output);
            Ok((!report.output.is_empty()).then_some(report.pid))
        })
    }

    /// Ends what [`Machine::hold`] started.
    pub fn release(&mut self) -> Result<()> {
        self.step("the holder lets go", |machine| machine.end_program(HOLDER).map(|_| ()))
    }

    /// Waits until a program in the background has written a text.
    pub fn log_says(&mut self, name: &str, text: &str) -> Result<()> {
        self.step(&format!("{name} says {text}"), |machine| {
            let line = wait_for("these words in its log", WATCHDOG, || {
                machine.still_runs(name)?;
                let output = machine.guest.program(name)?.output;
                Ok(output.lines().find(|line| line.contains(text)).map(str::to_string))
            })?;
            machine.say(line);
            Ok(())
        })
    }

    /// Runs `ringway -j` with these words, which must succeed, and reads its JSON.
    pub fn ringway_json(&mut self, words: &[&str]) -> Result<Value> {
        let text = self.ringway_quietly(&[&["-j"], words].concat())?;
        serde_json::from_str(&text).context(|| format!("ringway -j {}: {text}", words.join(" ")))
    }

    /// Starts testpmd as `echoer` says; returns when it forwards.
    pub fn start_testpmd(&mut self, echoer: &Echoer) -> Result<()> {
        let kind = if echoer.packed { "packed" } else { "split" };
        self.step(&format!("testpmd answers on {} over {kind} rings", echoer.device), |machine| {
            machine.begin_testpmd(echoer)?;
            wait_for("testpmd's prompt", WATCHDOG, || {
                machine.still_runs(TESTPMD_NAME)?;
                let said = machine.guest.program(TESTPMD_NAME)?.output;
                Ok(said.ends_with("testpmd> ").then_some(()))
            })
        })
    }

    /// Starts testpmd as `echoer` says, whatever becomes of it.
    pub fn begin_testpmd(&mut self, echoer: &Echoer) -> Result<()> {
        let vdev = format!(
            "net_virtio_user0,path=/run/ringway/dev/{}.sock,queues={},queue_size={},packed_vq={}",
            echoer.device,
            echoer.queues,
            echoer.queue_size,
            u8::from(echoer.packed)
        ) + &echoer.mac.as_ref().map_or(String::new(), |mac| format!(",mac={mac}"));
        let preload = format!("LD_PRELOAD={STDBUF}");
        let queues = [format!("--rxq={}", echoer.queues), format!("--txq={}", echoer.queues)];
        // It polls: whatever else has something to do goes first.
        let mut words = vec![NICE, "-n", "19", "/bin/env", &preload, "_STDBUF_O=L", TESTPMD];
        words.extend(["--lcores", "0@0,1@0", "--main-lcore", "0", "--no-pci", "-m", "64"]);
        words.extend(["--in-memory", "--single-file-segments", "--vdev", &vdev, "--", "-i"]);
        // DPDK 22.11 marks the header of a frame in pieces as writable in a packed ring's indirect table, and what follows
        // as readable, which is against the rules: a frame in one piece has no such table.
        let buffer = if echoer.packed { "--mbuf-size=10240" } else { "--mbuf-size=2176" };
        words.extend(["--forward-mode=icmpecho", "--nb-cores=1", "--total-num-mbufs=2048", buffer]);
        words.extend(["--no-lsc-interrupt", "--disable-link-check"]);
        words.extend([queues[0].as_str(), &queues[1], "--auto-start"]);
        self.guest.launch(TESTPMD_NAME, &words)
    }

    /// Kills testpmd.
    pub fn kill_testpmd(&mut self) -> Result<()> {
        self.step("testpmd killed", |machine| machine.end_program(TESTPMD_NAME).map(|_| ()))
    }

    /// Kills `ringwayd`.
    pub fn kill_ringwayd(&mut self) -> Result<()> {
        self.step("ringwayd killed", |machine| machine.end_program("ringwayd").map(|_| ()))
    }

    /// Ends testpmd as its user would.
    pub fn stop_testpmd(&mut self) -> Result<()> {
        self.step("testpmd ended", |machine| {
            machine.guest.tell(TESTPMD_NAME, "quit")?;
            let code =
                wait_for("end of testpmd", WATCHDOG, || Ok(machine.guest.program(TESTPMD_NAME)?.code))?;
            let left = machine.end_program(TESTPMD_NAME)?;
            ensure!(code == 0, "exit code {code}:\n{left}");
            Ok(())
        })
    }

    /// Linux sends echo requests of some 40 sizes of an MTU, several at a time: every one must be answered, once and equal.
    pub fn pings_of_all_sizes(&mut self, to: IpAddr, mtu: usize) -> Result<()> {
        let mut answered = 0;
        self.step(&format!("{to} answers pings of every border size up to an MTU of {mtu}"), |machine| {
            for order in exchange::border_sizes(to, mtu) {
                answered += exchange::echo(&mut machine.guest, order)?.received;
            }
            Ok(())
        })?;
        self.say(format_args!("  {answered} answered, once and equal"));
        Ok(())
    }

    /// Waits until a pulse is answered, again if it was not.
    pub fn pulse_goes_on(&mut self, to: IpAddr) -> Result<()> {
        self.step(&format!("a pulse to {to} is answered"), |machine| {
            let so_far = machine.guest.pulse(to)?.received;
            machine.guest.pulse_resumed(to, so_far + ANSWERS, Instant::now()).map(|_| ())
        })
    }

    /// Waits until a pulse is not answered any more.
    pub fn pulse_stands(&mut self, to: IpAddr) -> Result<()> {
        self.step(&format!("a pulse to {to} is not answered"), |machine| {
            machine.guest.pulse_stalled(to).map(|_| ())
        })
    }

    /// Waits until an interface receives nothing for a while; gives how many frames it has received.
    pub fn nothing_more_comes(&mut self, interface: &str) -> Result<u64> {
        let mut seen = (self.guest.nic(interface)?.rx_packets, Instant::now());
        wait_for(&format!("quiet on {interface}"), WATCHDOG, || {
            let now = self.guest.nic(interface)?.rx_packets;
            if now != seen.0 {
                seen = (now, Instant::now());
            }
            Ok((seen.1.elapsed() > QUIET).then_some(now))
        })
    }

    /// Waits until `dev show` says that of a device's link.
    pub fn device_link(&mut self, device: &str, link: &str) -> Result<()> {
        self.step(&format!("{device}: link {link}"), |machine| {
            wait_for("the device's link", WATCHDOG, || {
                let shown = machine.ringway_quietly(&["dev", "show", device])?;
                Ok(shown.contains(&format!("link {link}")).then_some(()))
            })
        })
    }

    /// Sets an interface's MTU and waits for its link, which a physical function loses by that.
    pub fn set_mtu(&mut self, interface: &str, mtu: u32) -> Result<()> {
        self.step(&format!("{interface}: MTU {mtu}"), |machine| {
            machine.guest.set_mtu(interface, mtu)?;
            machine.await_link(interface)
        })
    }

    /// Gives an interface an IPv4 address, `10.9.0.1/24`, in place of those it has.
    pub fn set_address(&mut self, interface: &str, address: &str) -> Result<()> {
        self.ip(&format!("address flush dev {interface}"))?;
        self.ip(&format!("address add {address} dev {interface}")).map(|_| ())
    }

    /// Makes an interface for a VLAN of another one, up, with an address.
    pub fn make_vlan(&mut self, interface: &str, id: u16, address: &str) -> Result<()> {
        self.step(&format!("VLAN {id} on {interface}"), |machine| {
            machine.ip(&format!("link add link {interface} name {interface}.{id} type vlan id {id}"))?;
            machine.set_address(&format!("{interface}.{id}"), address)?;
            machine.ip(&format!("link set {interface}.{id} up")).map(|_| ())
        })
    }

    /// Ends what a scenario that failed has left running; what the devices counted is kept with the test's other logs.
    pub fn end_programs(&mut self) {
        if self.guest.program("ringwayd").is_ok() {
            // It only explains what failed.
            let _ = self.keep_counters();
        }
        self.end_fronts();
        for name in [TESTPMD_NAME, "ringwayd", HOLDER] {
            // It need not run.
            let _ = self.end_program(name);
        }
    }

    /// The last lines that ringwayd has logged: they may say why something failed.
    pub fn end_of_log(&mut self) -> String {
        let Ok(report) = self.guest.program("ringwayd") else { return String::new() };
        let lines: Vec<&str> = report.output.lines().collect();
        lines[lines.len().saturating_sub(super::kernel_log::END_LINES)..].join("\n")
    }

    fn keep_counters(&mut self) -> Result<()> {
        let mut counters = String::new();
        let shown = self.ringway_json(&["dev", "show"])?;
        for device in shown["dev"].as_object().into_iter().flatten().map(|(name, _)| name) {
            counters += &self.ringway_quietly(&["dev", "vstats", "show", device])?;
        }
        counters += &self.sh("cat /proc/net/dev")?;
        std::fs::write(self.lab.path("counters.log"), counters).context(|| "counters".into())
    }

    /// Ends a program and keeps what it wrote with the test's other logs.
    pub(super) fn end_program(&mut self, name: &str) -> Result<String> {
        let output = self.guest.end(name)?.output;
        std::fs::write(self.lab.path(&format!("{name}.log")), &output)?;
        Ok(output)
    }

    pub(super) fn still_runs(&mut self, name: &str) -> Result<()> {
        let report = self.guest.program(name)?;
        ensure!(report.code.is_none(), "{name} ended with {:?}:\n{}", report.code, report.output);
        Ok(())
    }

    fn ringway_quietly(&mut self, words: &[&str]) -> Result<String> {
        let report = self.ringway_raw(words)?;
        let line = words.join(" ");
        ensure!(report.code == 0, "ringway {line}: exit code {}: {}", report.code, report.output.trim());
        Ok(report.output)
    }
}

/// Longer than a frame is under way.
const QUIET: Duration = Duration::from_millis(500);
/// A pulse that has so many answers goes on.
const ANSWERS: u64 = 20;
/// By which name the agent knows testpmd.
const TESTPMD_NAME: &str = "testpmd";
/// Any that is not root.
const USER: u32 = 1000;
const HOLDER: &str = "holder";
/// `ringway`'s exit code.
const NOT_FOUND: i32 = 3;
