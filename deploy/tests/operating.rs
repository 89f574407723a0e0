//! The page for operators, from an empty machine to nothing left behind: every command of it in its order, with two guests, as it is
//! written but for what is named here.

use ringway_lab::document::Step;
use ringway_lab::error::{Error, Result};
use ringway_lab::lab::Lab;
use ringway_lab::walk::{Walk, key, page};
use ringway_lab::{ensure, system};

#[test]
#[ignore = "needs QEMU >= 9.2, syslinux, the 6.12 guest kernel, tcpdump and root: run deploy/test"]
fn operating_goes_as_their_document_says() {
    Lab::run("document-operating", |lab| {
        system::write_image(lab, &[], &lab.path("vm0.qcow2"))?;
        std::fs::copy(lab.path("vm0.qcow2"), lab.path("vm1.qcow2"))?;
        let mut walk = Walk::begin(lab, &SHOWN, &SOMETIMES)?;
        let text = page("operating.md")?;
        let mut day = Day::default();
        let steps = walk.steps(&text)?;
        for step in &steps {
            let line = key(step);
            day.before(&mut walk, lab, &line)?;
            let mut looked_at = step.clone();
            match line.as_str() {
                // An echo or two are lost in the guest now and then, at the moment in which its link goes down.
                "vm0# cat /ping.log" => looked_at.shown.retain(|line| !line.contains(" packets received, ")),
                // What it finds is the machine's.
                "ringway doctor" => looked_at.shown.retain(|line| line.starts_with("workers ")),
                _ => {}
            }
            let said = walk.run_as(&looked_at, &day.command(lab, &line, &step.command))?;
            day.after(&mut walk, step, &said.text)?;
        }
        ensure!(day.replaced == REPLACED.len(), "{} of the replaced words are on the page", day.replaced);
        // The file at the end is one that a daemon takes.
        let file = text.rsplit("\n```\n").nth(1).ok_or_else(|| Error::new("no file at the page's end"))?;
        std::fs::write(lab.path("ports.toml"), file)?;
        walk.also("ringway config check ports.toml")?;
        walk.end()
    });
}

/// What is shown without a command.
const SHOWN: [(&str, &str); 2] = [
    (
        "ringway top: devices, ringwayd up 3 min 12 s, every 1 s",
        "a screen: control/tests/operator/top.rs reads one",
    ),
    ("[[mgmtdev]]", "a file, which is checked at the end"),
];

/// What is printed only where there is something of the kind.
const SOMETIMES: [&str; 10] = [
    // Where nobody has them.
    "free hugepages: ",
    // Both queues may have begun before it is told of one.
    "session.rings vm0 running=1",
    "session.rings vm1 running=1",
    // A frame that came before the guest's driver was up.
    "no_rx_buffer",
    "the guest did not refill its receive queue in time",
    // A core with more to do than these guests give it.
    "; then busy ",
    " group 0 would go from ",
    "nothing is done yet: ",
    // Where a worker's core is the scheduler's, or an interrupt's.
    "preemptions ",
    "pump bridge/br0: ",
];

/// Words that this machine has others for, each with those. `OWN` is the core of the worker, `SPARE` another one.
const REPLACED: [(&str, &str, &str); 7] = [
    ("ringway dev add name up1 ", "uplink pci/0000:02:00.1", "tap rwt1"),
    ("ringway dev add name vm4 ", "core 2", "core SPARE"),
    ("ringway dev set name vm1 core 3", "core 3", "core OWN"),
    ("ringway core add 3", "3", "SPARE"),
    ("ringway core drain 1", "1", "OWN"),
    ("ringway core del 1", "1", "OWN"),
    ("ringway doctor", "ringway doctor", "ringway doctor || test $? = 8"),
];

/// Where the walk stands.
#[derive(Debug, Default)]
struct Day {
    /// The worker's core.
    own: String,
    /// The address of vm0's NIC.
    address: String,
    /// How many of [`REPLACED`] were met.
    replaced: usize,
    pings_were_read: bool,
}

impl Day {
    /// What is typed in the place of a command.
    fn command(&mut self, lab: &Lab, line: &str, command: &str) -> String {
        let mut command = command.to_string();
        for (begin, from, to) in REPLACED {
            if line.starts_with(begin) {
                self.replaced += 1;
                command = command.replace(from, &to.replace("OWN", &self.own).replace("SPARE", SPARE));
            }
        }
        // The host's own folder for configurations stays as it is.
        let file = lab.path("ringwayd.toml").display().to_string();
        command = command.replace("/etc/ringway/ringwayd.toml", &file);
        if command.ends_with('&') && line.contains("ringwayd") {
            return format!("{command}\nuntil ringway status > /dev/null 2>&1; do sleep 0.1; done; sleep 1");
        }
        // The operator's Ctrl-C.
        command.replace("ringway capture", "timeout --preserve-status -s INT 5 ringway capture")
    }

    /// What the page says in words, or leaves to the reader, before a command.
    fn before(&mut self, walk: &mut Walk<'_>, lab: &Lab, line: &str) -> Result<()> {
        match line {
            "vm0# ip addr add 10.0.0.1/24 dev eth0" => {
                for name in ["vm0", "vm1"] {
                    let command = format!(
                        "eval \"qemu-system-x86_64 -accel tcg -cpu max -nographic -drive file={name}.qcow2,if=virtio \
                         $(ringway dev show {name} --qemu)\""
                    );
                    walk.boot(name, &command)?;
                }
                let address = walk.also_in("vm0", "cat /sys/class/net/eth0/address")?;
                self.address = address.trim().to_string();
            }
            "ringway dev add name vm4 mgmtdev bridge/br0 core 2" => {
                walk.also("ringway mgmtdev del bridge/br1")?;
                walk.also(&format!("ringway core add {SPARE}"))?;
            }
            "ringway dev set name vm0 max_tx_rate 1gbit max_rx_rate 1gbit max_tx_pps 200000" => {
                walk.also(&format!(
                    "ringway dev del vm4; ringway core drain {SPARE}; ringway core del {SPARE}"
                ))?;
            }
            // The guest has its own address back.
            "vm0# ping -i 0.1 -c 60 -q 10.0.0.2 > /ping.log &" => {
                let set = format!(
                    "ip link set eth0 down; ip link set eth0 address {}; ip link set eth0 up",
                    self.address
                );
                walk.also_in("vm0", &set)?;
                walk.also_in("vm0", "until ping -c 1 -W 1 10.0.0.2 > /dev/null; do :; done")?;
            }
            "vm0# cat /ping.log" => {
                walk.also_in("vm0", "wait")?;
            }
            "ringway mgmtdev show bridge/br0" if self.pings_were_read => {
                // The host sends, too.
                walk.also("(echo > /dev/udp/10.0.0.1/9) 2> /dev/null; sleep 0.5")?;
            }
            "ringway doctor" => {
                let Day { own, .. } = self;
                walk.also(&format!(
                    "ringway core add {own}; ringway core drain {SPARE}; ringway core del {SPARE}"
                ))?;
            }
            "ringway capture vm0 count 20 -w - | tcpdump -nr -" => {
                walk.also_in("vm0", "ping -i 0.1 10.0.0.2 > /dev/null &")?;
            }
            "ringway events --once --since 0 --type daemon --type session" => {
                walk.also_in("vm0", "kill $!")?;
            }
            "ringway config diff /etc/ringway/ringwayd.toml" => {
                let file = lab.path("ringwayd.toml");
                let device = |name: &str, more: &str| {
                    format!(
                        "[[device]]\nname = \"{name}\"\nmgmtdev = \"bridge/br0\"\nspoofchk = \"on\"\n{more}\n"
                    )
                };
                let before = device("vm0", "max_tx_rate = \"100mbit\"") + &device("vm1", "");
                std::fs::write(&file, before)?;
                walk.also(&format!("ringway config apply {}", file.display()))?;
                std::fs::write(&file, device("vm0", "max_tx_rate = \"1gbit\"") + &device("vm2", ""))?;
            }
            _ => {}
        }
        Ok(())
    }

    /// What is looked at, or put back, after a command.
    fn after(&mut self, walk: &mut Walk<'_>, step: &Step, said: &str) -> Result<()> {
        match key(step).as_str() {
            "ringwayd &" => {
                let core = walk.also("ringway -j core show | sed 's/[^0-9]*\\([0-9]*\\).*/\\1/'")?;
                self.own = core.trim().to_string();
                walk.leave()?;
            }
            "kill -9 $(pidof ringwayd); sleep 0.3; ringwayd &" => walk.leave()?,
            "vm0# cat /ping.log" => {
                let received = said.split(" packets transmitted, ").nth(1);
                let received = received.and_then(|said| said.split(' ').next()?.parse::<u32>().ok());
                ensure!(received.is_some_and(|received| (54..=60).contains(&received)), "{said}");
                self.pings_were_read = true;
            }
            "ip link set rwt0 mtu 9000; sleep 1; ringway dev show host0" => {
                walk.also("ip link set rwt0 mtu 1500")?;
            }
            "ringway doctor" => {
                let found = checks(said.lines());
                let shown = checks(step.shown.iter().map(String::as_str));
                ensure!(
                    shown.len() > 2 && shown.iter().all(|name| found.contains(name)),
                    "{shown:?}: {said}"
                );
            }
            "ringway capture vm0 direction in filter 'arp or icmp' -w - | tcpdump -nr -" => {
                ensure!(said.contains("ICMP echo request") && !said.contains("ICMP echo reply"), "{said}");
            }
            "ringway config apply /etc/ringway/ringwayd.toml" => {
                // And back, as the page says.
                walk.also("ringway config apply /var/lib/ringway/previous.toml")?;
                walk.also("ringway wait vm1 up")?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// The names of the doctor's checks in these lines.
fn checks<'l>(lines: impl Iterator<Item = &'l str>) -> Vec<&'l str> {
    let check = |line: &'l str| {
        let mut words = line.split_whitespace();
        let is_finding = ["ok", "warning", "failure", "unknown"].contains(&words.next()?);
        words.next()?.strip_suffix(':').filter(|_| is_finding)
    };
    lines.filter_map(check).collect()
}

/// A core that the daemon does not have at its start.
const SPARE: &str = "0";
