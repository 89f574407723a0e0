//! The lab's own front-end inside the machine, and what `ringwayd` holds.

use std::net::IpAddr;

use rustix::process::Signal;

use super::Machine;
use super::programs::FRONT;
use crate::daemon::DeviceStats;
use crate::error::Result;
use crate::lab::wait_for;
use crate::pace::WATCHDOG;
use crate::{ensure, fail};

/// `ringway-front`: it answers ARP and ICMP echo requests, and sleeps where nothing comes.
#[derive(Debug, Clone)]
pub struct Front {
    /// The device whose socket it connects to.
    pub device: String,
    /// Packed rings, else split ones.
    pub packed: bool,
    /// Queue pairs.
    pub pairs: u32,
    /// Memory at least, in MiB.
    pub memory_mib: u32,
    /// What it answers for; `None`: whatever it is asked for.
    pub address: Option<IpAddr>,
    /// Bytes of a buffer: a frame has to fit, with its header.
    pub buffer: u32,
    /// It connects again, with its rings as they stand, when the connection is lost.
    pub reconnect: bool,
}

impl Front {
    /// One pair of split rings, and as much memory as their buffers need.
    pub fn new(device: &str) -> Front {
        Front {
            device: device.into(),
            packed: false,
            pairs: 1,
            memory_mib: 0,
            address: None,
            buffer: 2048,
            reconnect: false,
        }
    }

    /// With buffers that hold a frame of an MTU of 9,000.
    #[must_use]
    pub fn jumbo(self) -> Front {
        Front { buffer: 10_240, ..self }
    }

    /// That answers for one address.
    #[must_use]
    pub fn of(self, address: IpAddr) -> Front {
        Front { address: Some(address), ..self }
    }

    fn words(&self) -> Vec<String> {
        let mut words = vec![FRONT.into(), "echo".into(), format!("/run/ringway/dev/{}.sock", self.device)];
        words.extend([format!("pairs={}", self.pairs), format!("memory={}", self.memory_mib)]);
        words.push(format!("buffer={}", self.buffer));
        words.extend(self.packed.then(|| "packed".into()));
        words.extend(self.reconnect.then(|| "reconnect".into()));
        words.extend(self.address.map(|address| format!("address={address}")));
        words
    }
}

/// What a process has of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    /// Open descriptors.
    pub descriptors: usize,
    /// Mappings of files, of devices and of memory that has a name.
    pub mappings: usize,
    /// Threads.
    pub threads: usize,
}

impl Machine<'_> {
    /// Starts a front-end; returns when its rings are in service.
    pub fn start_front(&mut self, front: &Front) -> Result<()> {
        let kind = if front.packed { "packed" } else { "split" };
        let what = format!(
            "a front-end on {}: {kind} rings, {} pairs, {} MiB",
            front.device, front.pairs, front.memory_mib
        );
        self.step(&what, |machine| {
            machine.begin_front(front)?;
            machine.front_says(&front.device, "ready")
        })
    }

    /// Starts a front-end, whatever becomes of it.
    pub fn begin_front(&mut self, front: &Front) -> Result<()> {
        let words = front.words();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.guest.launch(&name(&front.device), &words)
    }

    /// Waits until a front-end has connected again.
    pub fn front_is_back(&mut self, device: &str) -> Result<()> {
        self.step(&format!("the front-end on {device} has connected again"), |machine| {
            machine.front_says(device, "connected again")
        })
    }

    /// Tells a front-end something, and waits until it has done so.
    pub fn tell_front(&mut self, device: &str, line: &str) -> Result<()> {
        self.step(&format!("the front-end on {device} is told: {line}"), |machine| {
            machine.guest.tell(&name(device), line)?;
            machine.front_says(device, &format!("done: {line}"))
        })
    }

    /// Ends a front-end in order.
    pub fn stop_front(&mut self, device: &str) -> Result<()> {
        self.step(&format!("the front-end on {device} ended"), |machine| {
            machine.guest.tell(&name(device), "quit")?;
            let code = wait_for("its end", WATCHDOG, || Ok(machine.guest.program(&name(device))?.code))?;
            let said = machine.end_program(&name(device))?;
            ensure!(code == 0, "exit code {code}: {said}");
            Ok(())
        })
    }

    /// Kills a front-end.
    pub fn kill_front(&mut self, device: &str) -> Result<()> {
        self.step(&format!("the front-end on {device} killed"), |machine| {
            machine.end_program(&name(device)).map(|_| ())
        })
    }

    /// Stops a front-end where it stands.
    pub fn freeze_front(&mut self, device: &str) -> Result<()> {
        self.step(&format!("the front-end on {device} is stopped (SIGSTOP)"), |machine| {
            machine.guest.signal(&name(device), Signal::STOP)
        })
    }

    /// Lets a front-end go on.
    pub fn thaw_front(&mut self, device: &str) -> Result<()> {
        self.step(&format!("the front-end on {device} goes on"), |machine| {
            machine.guest.signal(&name(device), Signal::CONT)
        })
    }

    /// Removes a device, and waits until the group of its function can be opened again; tells both times. True: it was seen that
    /// `dev del` had answered before.
    pub fn remove(&mut self, device: &str, group: u32) -> Result<bool> {
        let report = self.run(&[FRONT, "removal", device, &group.to_string()], WATCHDOG)?;
        let said = report.output.trim();
        let mut words = said.splitn(4, ' ');
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        let (Some(pace), Some(answered), Some(open)) = (number(), number(), number()) else {
            fail!("{said}")
        };
        let order = words.next().unwrap_or_default();
        self.say(format_args!(
            "dev del {device}: {answered} ms to the answer, {open} ms more until group {group} is open again ({order}); \
             a run of `ringway dev show` takes up to {pace} ms"
        ));
        // A machine that has others to serve takes longer, for a run of a program too.
        ensure!(answered + open < REMOVAL_MS.max(10 * pace), "dev del {device} took {answered} + {open} ms");
        Ok(order == ANSWERED_FIRST)
    }

    /// Has the function that is bound to vfio-pci read an address that nobody mapped for it.
    pub fn lead_astray(&mut self) -> Result<()> {
        self.step("a function is told to read what it must not", |machine| {
            let report = machine.run(&[FRONT, "stray"], WATCHDOG)?;
            ensure!(report.code == 0, "{}", report.output.trim());
            machine.say(report.output.trim());
            Ok(())
        })
    }

    /// Waits until a fault of one of a device's rings is counted by a name.
    pub fn fault_is_counted(&mut self, device: &str, fault: &str) -> Result<()> {
        self.step(&format!("{device}: fault {fault} is counted"), |machine| {
            wait_for("the fault", WATCHDOG, || {
                let stats = machine.stats(device)?;
                Ok(stats.queues.iter().any(|queue| queue.faults.get(fault) == Some(&1)).then_some(()))
            })
        })
    }

    /// Waits until each of the first `pairs` queue pairs of a device sends, and no other.
    pub fn pairs_send(&mut self, device: &str, pairs: usize) -> Result<()> {
        self.step(&format!("{device}: {pairs} pairs send"), |machine| {
            let sent = |machine: &mut Self| -> Result<Vec<u64>> {
                let stats = machine.stats(device)?;
                let sending = stats.queues.iter().filter(|queue| queue.queue_type == "tx");
                Ok(sending.map(|queue| queue.packets).collect())
            };
            let before = sent(machine)?;
            let moved = wait_for("frames of each", WATCHDOG, || {
                let now = sent(machine)?;
                let moved: Vec<bool> = now.iter().zip(&before).map(|(now, before)| now > before).collect();
                Ok(moved.iter().take(pairs).all(|moved| *moved).then_some(moved))
            })?;
            ensure!(!moved.iter().skip(pairs).any(|moved| *moved), "others send too: {moved:?}");
            Ok(())
        })
    }

    /// What a device's queues have done.
    pub fn stats(&mut self, device: &str) -> Result<DeviceStats> {
        DeviceStats::from_shown(&self.ringway_json(&["dev", "vstats", "show", device])?, device)
    }

    /// Has the kernel forget which pages `ringwayd` has touched.
    pub fn forget_references(&mut self) -> Result<()> {
        let process = self.guest.program("ringwayd")?.pid;
        self.sh(&format!("echo 1 > /proc/{process}/clear_refs")).map(|_| ())
    }

    /// How much `ringwayd` has touched since of the payload of each front-end that is connected, in KiB.
    pub fn referenced(&mut self) -> Result<Vec<u64>> {
        let process = self.guest.program("ringwayd")?.pid;
        let line = format!(
            "awk '/memfd:payload/ {{ ours = 1 }} ours && /^Referenced:/ {{ print $2; ours = 0 }}' /proc/{process}/smaps"
        );
        Ok(self.sh(&line)?.lines().filter_map(|kib| kib.parse().ok()).collect())
    }

    /// Waits until `ringwayd` has touched the payload of each of two front-ends.
    pub fn payload_is_touched(&mut self) -> Result<()> {
        wait_for("pages that ringwayd touched", WATCHDOG, || {
            let touched = self.referenced()?;
            Ok((touched.len() == 2 && touched.iter().all(|kib| *kib > 0)).then_some(()))
        })
    }

    /// What `ringwayd` holds now.
    pub fn holdings(&mut self) -> Result<Holdings> {
        let process = format!("/proc/{}", self.guest.program("ringwayd")?.pid);
        let line = format!(
            "ls {process}/fd | wc -l; grep -c -e ' /' -e anon_inode {process}/maps; ls {process}/task | wc -l"
        );
        let said = self.sh(&line)?;
        let counts: Vec<usize> = said.lines().filter_map(|count| count.trim().parse().ok()).collect();
        match counts[..] {
            [descriptors, mappings, threads] => Ok(Holdings { descriptors, mappings, threads }),
            _ => fail!("what ringwayd holds: {said}"),
        }
    }

    /// Waits until `ringwayd` holds no more than it did.
    pub fn holds_again(&mut self, before: Holdings) -> Result<()> {
        let mut last = Holdings { descriptors: 0, mappings: 0, threads: 0 };
        let what = format!("ringwayd holds what it held: {before:?}");
        self.step(&what, |machine| {
            let settled = wait_for("its descriptors, mappings and threads", WATCHDOG, || {
                // A thread or a descriptor that goes meanwhile may be missed.
                last = machine.holdings().unwrap_or(last);
                Ok((last == before).then_some(()))
            });
            ensure!(settled.is_ok(), "it holds {last:?}");
            Ok(())
        })
    }

    pub(super) fn front_says(&mut self, device: &str, text: &str) -> Result<()> {
        wait_for(&format!("the front-end's word: {text}"), WATCHDOG, || {
            self.still_runs(&name(device))?;
            let said = self.guest.program(&name(device))?.output;
            Ok(said.lines().any(|line| line == text).then_some(()))
        })
    }

    /// Ends all front-ends that run.
    pub(super) fn end_fronts(&mut self) {
        for device in DEVICES {
            // It need not run.
            let _ = self.end_program(&name(device));
        }
    }
}

/// By which name the agent knows it.
pub(super) fn name(device: &str) -> String {
    format!("front-{device}")
}

/// What a removal may take, all of it, on a machine that is free; it takes a third of a second.
const REMOVAL_MS: u64 = 2000;
/// The front-end's word for it.
const ANSWERED_FIRST: &str = "answered first";
/// What the lab's devices are called.
const DEVICES: [&str; 2] = ["vm0", "vm1"];
