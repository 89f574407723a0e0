//! How front-ends come to devices and leave them: connecting, reconnecting, refusing, revoking.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_guest::frame::Addresses;
use ringway_guest::{Guest, GuestOptions};
use ringway_pmd::net::F_MTU;
use ringway_pmd::notify::EventFd;
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::layout::{DriverConfig, Layout};
use ringway_ring::memory::HostMemory;
use ringway_ring::position::Position;
use ringway_ring::queue::{DriverBuffer, DriverRing, Format, RingSize};
use ringway_vhost_user::frontend::{Frontend, FrontendListener, MemoryRegion, VringAddr};
use ringway_vhost_user::message::protocol;
use serde_json::json;

use crate::pace::Pace;
use crate::support::{Daemon, SOON, wait_for};

fn with_device(line: &str) -> Daemon {
    let daemon = Daemon::start();
    daemon.run(&format!("dev add name vm0 mgmtdev sim/net {line}")).good();
    daemon
}

fn connect(daemon: &Daemon) -> Frontend {
    let mut frontend = Frontend::connect(&daemon.socket("vm0"), SOON).unwrap();
    frontend.set_timeout(SOON);
    frontend.handshake().unwrap();
    frontend
}

fn is_state(daemon: &Daemon, state: &str) {
    wait_for(state, || daemon.device("vm0")["state"] == state);
}

/// Whether the other end has hung up, seen within the time allowed.
fn hung_up(stream: &UnixStream, within: Duration) -> bool {
    stream.set_read_timeout(Some(within)).unwrap();
    let mut rest = [0u8; 64];
    loop {
        match (&mut &*stream).read(&mut rest) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

/// A front-end in a process of its own: this test program, told to run [`front_end_process`] alone.
struct Vmm(Child);

impl Vmm {
    fn start(socket: &Path) -> Vmm {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "front_ends::front_end_process"])
            .env("RINGWAY_TEST_SOCKET", socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Vmm(child)
    }
    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).unwrap();
    }
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test by itself: the front-end of others, in a process of its own. Without a socket there is nothing to do.
#[test]
fn front_end_process() {
    let Some(socket) = std::env::var_os("RINGWAY_TEST_SOCKET") else { return };
    let mut guest = Guest::connect(Path::new(&socket), GuestOptions::default()).unwrap();
    loop {
        if guest.turn(8).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn mtu_that_the_vmm_would_be_refused_for_is_not_set_under_it() {
    let daemon = with_device("mtu 1500");
    let mut frontend = connect(&daemon);
    frontend.set_features(Features::VERSION_1 | F_MTU).unwrap();
    frontend.set_mtu(1500).unwrap();
    wait_for("the MTU is told", || daemon.device("vm0")["front_end"]["mtu"] == 1500);
    let told = daemon.run("dev set name vm0 mtu 1400").bad(4);
    assert!(told.contains("the VM of vm0 uses MTU 1500") && told.contains("host_mtu=1400"), "{told}");
    assert!(told.contains(&format!("(pid {}", std::process::id())), "{told}");
    assert_eq!(daemon.device("vm0")["provisioned"]["mtu"], 1500);
    daemon.run("dev set name vm0 mtu 1500").good();
    daemon.run("dev set name vm0 mtu 2000").bad(65);
    drop(frontend);
    is_state(&daemon, "waiting");
    // Of a VMM that is not connected nobody knows what it will ask for.
    let done = daemon.run("dev set name vm0 mtu 1400");
    assert!(
        done.code == 0 && done.err.contains("larger MTU than 1400") && done.err.contains("host_mtu=1400"),
        "{done:?}"
    );
    let mut frontend = connect(&daemon);
    frontend.set_features(Features::VERSION_1 | F_MTU).unwrap();
    frontend.set_mtu(1500).unwrap_err();
    wait_for("it is told", || daemon.device("vm0")["history"]["breaches"]["mtu"] == 1);
    let shown = daemon.run("dev show vm0").good();
    assert!(shown.contains("breach mtu 1: the front-end wants a larger MTU than the device's"), "{shown}");
    assert!(shown.contains("try: remove the device and add it with that mtu"), "{shown}");
    assert!(!shown.contains("another version of the VMM"), "{shown}");
}

#[test]
fn connected_device_tells_who_and_what_was_agreed_on() {
    let daemon = with_device("mtu 2000");
    let mut frontend = connect(&daemon);
    frontend.set_features(Features::VERSION_1 | F_MTU).unwrap();
    is_state(&daemon, "connected");
    wait_for("features are told", || {
        daemon.device("vm0")["front_end"]["negotiated_features"] == json!(["MTU", "VERSION_1"])
    });
    let event = daemon.run("-j events --once --since 0 --type session.negotiated").json();
    assert_eq!(event["features"], json!(["MTU", "VERSION_1"]));
    let device = daemon.device("vm0");
    assert_eq!(device["front_end"]["pid"], std::process::id());
    assert!(device["front_end"]["protocol_features"].as_array().unwrap().contains(&json!("REPLY_ACK")));
    let text = daemon.run("dev config show vm0").good();
    assert!(text.starts_with("vm0: mtu 2000 \n  negotiated_features MTU VERSION_1\n"), "{text}");
    let out = daemon.run("-j dev config show vm0").good();
    assert!(
        out.starts_with(
            "{\"config\":{\"vm0\":{\"mtu\":2000,\"negotiated_features\":[\"MTU\",\"VERSION_1\"],"
        ),
        "{out}"
    );
    drop(frontend);
    is_state(&daemon, "waiting");
    assert!(daemon.device("vm0")["history"]["last_end"].is_string());
}

#[test]
fn traffic_is_counted_by_queue_and_by_core() {
    let daemon = with_device("max_vqp 2");
    let mut guest = Guest::connect(&daemon.socket("vm0"), GuestOptions::default()).unwrap();
    let until = Instant::now() + SOON;
    let mut back = 0;
    while back < 1000 && Instant::now() < until {
        back += guest.turn(16).unwrap();
    }
    assert!(back >= 1000, "{back}");
    // A burst is shown to the guest before it is counted.
    wait_for("the queue to have counted them", || {
        let tx = daemon.run("-j dev vstats show vm0 qidx 1").json()["vstats"]["vm0"].clone();
        ["packets", "completed_desc"].iter().all(|counter| tx[counter].as_u64().unwrap() >= 1000)
    });
    let worker = || {
        let cores = daemon.run("-j core show").json();
        cores["core"].as_object().unwrap().values().next().unwrap().clone()
    };
    wait_for("the core to have counted them", || worker()["packets"].as_u64().unwrap() >= 1000);
    let worker = worker();
    assert!(worker["pumps"][0]["name"].as_str().unwrap().contains("vm0"), "{worker}");
    let device = daemon.device("vm0");
    assert_eq!(device["rings"].as_array().unwrap().iter().filter(|ring| ring["started"] == true).count(), 2);
    let text = daemon.run("dev show vm0").good();
    assert!(text.contains("  queue 1 size 256 started enabled "), "{text}");
    assert!(text.contains("  queue 2 stopped\n"), "queues that the guest did not start: {text}");
    let core = device["cores"][0].clone();
    daemon.run(&format!("dev set name vm0 core {core}")).good();
    assert!(guest.turn(16).is_ok());
    guest.stop().unwrap();
}

#[test]
fn device_moves_to_another_core_under_traffic() {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let cores: Vec<usize> = (0..1024).filter(|core| allowed.is_set(*core)).take(2).collect();
    let [one, two] = cores[..] else {
        eprintln!("left out: this needs two cores");
        return;
    };
    let daemon = Daemon::start_with(&["--cores", &format!("{one},{two}")]);
    daemon.run(&format!("dev add name vm0 mgmtdev sim/net core {one}")).good();
    daemon.run("dev add name other mgmtdev sim/net").good();
    assert_eq!(daemon.device("other")["cores"], json!([two]), "the least loaded one");
    let mut guest = Guest::connect(&daemon.socket("vm0"), GuestOptions::default()).unwrap();
    for core in [two, one, two] {
        daemon.run(&format!("dev set name vm0 core {core}")).good();
        let received = guest.stats().received;
        let until = Instant::now() + SOON;
        while guest.stats().received < received + 200 && Instant::now() < until {
            guest.turn(16).unwrap();
        }
        assert!(guest.stats().received >= received + 200, "traffic goes on");
        wait_for("the pump is there", || {
            let shown = daemon.run("-j core show").json();
            let pumps = shown["core"][core.to_string()]["pumps"].as_array().unwrap().clone();
            pumps.iter().any(|pump| pump["name"].as_str().unwrap().contains("vm0"))
        });
        assert_eq!(daemon.device("vm0")["cores"], json!([core]));
    }
    let stats = guest.stop().unwrap();
    assert_eq!((stats.skipped, stats.stale, stats.corrupt), (0, 0, 0));
}

#[test]
fn second_front_end_is_refused_after_a_moment_and_counted() {
    let daemon = with_device("");
    let _first = connect(&daemon);
    is_state(&daemon, "connected");
    let second = UnixStream::connect(daemon.socket("vm0")).unwrap();
    assert!(hung_up(&second, SOON));
    wait_for("the refusal is counted", || daemon.device("vm0")["history"]["refused"] == 1);
    let events = daemon.run("events --once --since 0 --type session.refused").good();
    let holder = format!("(pid {}, uid ", std::process::id());
    assert!(events.contains("held_by=") && events.contains(&holder), "{events}");
    assert_eq!(daemon.device("vm0")["state"], "connected");
}

#[test]
fn second_front_end_is_refused_when_its_moment_is_over_and_not_before() {
    let daemon = with_device("");
    let _first = connect(&daemon);
    is_state(&daemon, "connected");
    let moment = Duration::from_millis(100);
    // What it takes here and now to wait so long and to have a word from the daemon then.
    let pace = Pace::of(|| {
        std::thread::sleep(moment);
        is_state(&daemon, "connected");
    });
    for refused in 1..=3 {
        let begun = Instant::now();
        let second = UnixStream::connect(daemon.socket("vm0")).unwrap();
        assert!(hung_up(&second, SOON));
        let took = begun.elapsed();
        assert!(took >= moment, "refused after {took:?} already");
        pace.allows(3, took);
        wait_for("the refusal is counted", || daemon.device("vm0")["history"]["refused"] == refused);
    }
}

#[test]
fn second_front_end_that_waits_out_the_first_is_served() {
    let daemon = with_device("");
    // The second one is given 100 ms. On a machine that had one of the three wait for its core as long as that, the first left too late.
    wait_for("the first to leave in time", || {
        let first = connect(&daemon);
        is_state(&daemon, "connected");
        let mut second = Frontend::connect(&daemon.socket("vm0"), SOON).unwrap();
        second.set_timeout(SOON);
        // Looked at, and not served yet.
        std::thread::sleep(Duration::from_millis(20));
        drop(first);
        let is_served = second.handshake().is_ok();
        drop(second);
        is_state(&daemon, "waiting");
        is_served
    });
}

#[test]
fn killed_vmm_frees_its_device_for_the_next_at_once() {
    let daemon = with_device("");
    let pace = Pace::of(|| {
        drop(connect(&daemon));
        is_state(&daemon, "waiting");
    });
    let mut vmm = Vmm::start(&daemon.socket("vm0"));
    wait_for("traffic", || {
        daemon.run("-j dev vstats show vm0 qidx 1").json()["vstats"]["vm0"]["packets"].as_u64() > Some(100)
    });
    vmm.kill();
    let before = Instant::now();
    wait_for("the next to be served", || {
        let mut next = Frontend::connect(&daemon.socket("vm0"), SOON).unwrap();
        next.set_timeout(SOON);
        next.handshake().is_ok()
    });
    pace.allows_since(20, before);
}

#[test]
fn removal_under_traffic_is_at_once_and_the_name_is_free() {
    let daemon = with_device("");
    let mut guest = Guest::connect(&daemon.socket("vm0"), GuestOptions::default()).unwrap();
    let until = Instant::now() + SOON;
    while guest.stats().received < 100 && Instant::now() < until {
        guest.turn(16).unwrap();
    }
    let before = daemon.descriptors();
    daemon.run("dev del vm0").good();
    assert!(!daemon.socket("vm0").exists());
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    connect(&daemon);
    drop(guest);
    daemon.run("dev del vm0").good();
    wait_for("nothing is left behind", || daemon.descriptors() < before);
}

#[test]
fn stopped_vmm_delays_neither_its_removal_nor_the_end_of_the_daemon() {
    let mut daemon = with_device("");
    daemon.run("dev add name vm1 mgmtdev sim/net").good();
    let vmms = ["vm0", "vm1"].map(|name| Vmm::start(&daemon.socket(name)));
    for name in ["vm0", "vm1"] {
        wait_for("traffic", || {
            daemon.run(&format!("-j dev vstats show {name} qidx 1")).json()["vstats"][name]["packets"]
                .as_u64()
                > Some(100)
        });
    }
    for vmm in &vmms {
        vmm.signal(rustix::process::Signal::STOP);
    }
    let mut wire = daemon.wire();
    let pace = Pace::of(|| {
        assert!(wire.call("dev.add", json!({ "name": "spare", "mgmtdev": "sim/net" }))["error"].is_null());
        assert_eq!(wire.call("dev.del", json!({ "name": "spare" }))["result"]["deleted"], "spare");
    });
    let before = Instant::now();
    assert_eq!(wire.call("dev.del", json!({ "name": "vm0" }))["result"]["deleted"], "vm0");
    pace.allows_since(20, before);
    daemon.run("dev add name vm0 mgmtdev sim/net").good();
    connect(&daemon);
    let (code, took) = daemon.terminate();
    assert_eq!(code, 0);
    daemon.pace().allows(20, took);
    assert!(!daemon.socket("vm1").exists());
}

#[test]
fn change_under_a_connected_guest_is_65_and_in_force_for_the_next() {
    let daemon = with_device("");
    let frontend = connect(&daemon);
    is_state(&daemon, "connected");
    let before = daemon.device("vm0")["provisioned"]["mac"].clone();
    let error = daemon.run("dev set name vm0 mac 52:54:00:00:00:05").bad(65);
    assert!(error.contains("not in force yet\n  try: a front-end is connected"), "{error}");
    assert!(error.contains("QEMU gives its guest the mac"), "{error}");
    assert_eq!(daemon.device("vm0")["provisioned"]["mac"], before);
    assert!(daemon.run("dev show vm0").good().contains("  note: mac changed: in force when the next"));
    // What only the driver knows is no matter of the VMM's arguments.
    assert!(!daemon.run("dev set name vm0 swap on").bad(65).contains("QEMU"));
    drop(frontend);
    wait_for("it is in force", || daemon.device("vm0")["provisioned"]["mac"] == "52:54:00:00:00:05");
    let _next = connect(&daemon);
}

#[test]
fn client_mode_connects_when_the_socket_appears_and_again_after_a_loss() {
    let daemon = Daemon::start();
    let vmm = daemon.dir.join("not/yet/there/vmm.sock");
    daemon.run(&format!("dev add name vm0 mgmtdev sim/net mode client socket {}", vmm.display())).good();
    assert_eq!(daemon.device("vm0")["state"], "waiting");
    std::fs::create_dir_all(vmm.parent().unwrap()).unwrap();
    // A look at a missing socket is taken every ten seconds: what is quicker was told of it.
    let pace = daemon.pace();
    let serve = || {
        let listener = FrontendListener::bind(&vmm).unwrap();
        let before = Instant::now();
        let mut frontend = listener.accept(SOON).unwrap();
        pace.allows_since(20, before);
        frontend.set_timeout(SOON);
        frontend.handshake().unwrap();
        is_state(&daemon, "connected");
        (listener, frontend)
    };
    // The VMM comes and goes with its socket.
    drop(serve());
    is_state(&daemon, "waiting");
    drop(serve());
    is_state(&daemon, "waiting");
    let (listener, frontend) = serve();
    // The listener stays and the connection goes: the device comes back by itself.
    drop(frontend);
    let mut again = listener.accept(SOON).unwrap();
    again.set_timeout(SOON);
    again.handshake().unwrap();
    assert_eq!(daemon.run("dev show vm0").good().matches("  connections 4 ").count(), 1);
}

#[test]
fn daemon_that_was_killed_takes_its_front_ends_back_after_its_start() {
    let mut daemon = with_device("");
    let vmm = daemon.dir.join("vmm.sock");
    daemon.run(&format!("dev add name c mgmtdev sim/net mode client socket {}", vmm.display())).good();
    let listener = FrontendListener::bind(&vmm).unwrap();
    let first = listener.accept(SOON).unwrap();
    let server_side = connect(&daemon);
    daemon.kill();
    assert!(hung_up(server_side.stream(), SOON) && hung_up(first.stream(), SOON));
    daemon.start_again(&[]);
    let mut again = listener.accept(SOON).unwrap();
    again.set_timeout(SOON);
    again.handshake().unwrap();
    connect(&daemon);
}

#[test]
fn connect_and_hang_up_in_a_loop_leaks_nothing_and_delays_nobody() {
    let daemon = with_device("");
    let pace = Pace::of(|| drop(daemon.run("dev show").good()));
    let before = daemon.descriptors();
    let until = Instant::now() + Duration::from_secs(1);
    let mut count = 0;
    while Instant::now() < until {
        drop(UnixStream::connect(daemon.socket("vm0")).unwrap());
        count += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(count > 50, "{count}");
    let asked = Instant::now();
    daemon.run("dev show").good();
    pace.allows_since(50, asked);
    wait_for("every descriptor is closed", || daemon.descriptors() <= before);
    connect(&daemon);
}

/// Rings are started and the driver is ready, and the VMM shares no memory: QEMU without `share=on`.
#[test]
fn memory_that_is_not_shared_is_named_once_with_its_cure() {
    let daemon = with_device("");
    let mut frontend = connect(&daemon);
    frontend.set_features(Features::VERSION_1).unwrap();
    let kick = EventFd::new().unwrap();
    for ring in 0..2u32 {
        frontend.set_vring_kick(ring, Some(std::os::fd::AsFd::as_fd(&kick))).unwrap();
        frontend.enable_ring(ring, true).unwrap();
    }
    frontend.set_status(15).unwrap();
    let shown = || daemon.run("dev show vm0").good();
    wait_for("it is named", || shown().contains("note: started, not run: no guest memory"));
    assert!(shown().contains("share=on"), "{}", shown());
    assert!(shown().contains("queue 0 size 0 started enabled kicks not running"), "{}", shown());
    assert_eq!(daemon.device("vm0")["rings"][1]["runs"], false);
    let counted = daemon.run("dev vstats show vm0").good();
    assert!(counted.contains("queue 1 started, not run: no guest memory"), "{counted}");
    frontend.enable_ring(1, false).unwrap();
    frontend.enable_ring(1, true).unwrap();
    let events = daemon.run("events --once --since 0").good();
    assert_eq!(events.matches("session.not_run").count(), 1, "{events}");
    assert!(!events.contains("running=2") && !events.contains("running=1"), "{events}");
    let log = daemon.logged("share=on");
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("share=on")), "{log}");
}

#[test]
fn further_front_ends_are_told_once_and_counted() {
    let daemon = with_device("");
    let first = connect(&daemon);
    is_state(&daemon, "connected");
    for times in 1..=4u64 {
        let second = UnixStream::connect(daemon.socket("vm0")).unwrap();
        assert!(hung_up(&second, SOON));
        wait_for("the refusal is counted", || daemon.device("vm0")["history"]["refused"] == times);
    }
    let events = || daemon.run("events --once --since 0 --type session.refused").good();
    assert_eq!(events().lines().count(), 1, "{}", events());
    let shown = daemon.run("dev show vm0").good();
    assert!(shown.contains("note: refused 4 times: ") && shown.contains(" holds it"), "{shown}");
    assert!(!shown.contains("were not told"), "{shown}");
    drop(first);
    is_state(&daemon, "waiting");
    let events = events();
    assert!(events.lines().count() == 2 && events.contains("times=4"), "{events}");
    assert!(!daemon.run("dev show vm0").good().contains("wants it"));
}

/// The number of the event that its device was added.
fn last_added(daemon: &Daemon) -> u64 {
    let events = daemon.run("-j events --once --since 0 --type dev.added").good();
    let last: serde_json::Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
    last["seq"].as_u64().unwrap()
}

#[test]
fn connections_that_end_again_and_again_are_told_once_with_the_request() {
    let daemon = with_device("");
    // Which of them end at once is a matter of 100 ms: some may take longer on a machine that is busy, and such ones begin anew.
    let mut wire = daemon.wire();
    let (mut short_ones, begun) = (0, Instant::now());
    while short_ones < 30 {
        assert!(begun.elapsed() < 3 * SOON, "{short_ones}");
        let connected = Instant::now();
        drop(connect(&daemon));
        wait_for("its end is seen", || {
            wire.call("dev.show", json!({ "name": "vm0" }))["result"]["dev"]["vm0"]["state"] == "waiting"
        });
        short_ones += 1;
        if connected.elapsed() >= Duration::from_millis(100) {
            daemon.run("dev del vm0").good();
            daemon.run("dev add name vm0 mgmtdev sim/net").good();
            short_ones = 0;
        }
    }
    let since = last_added(&daemon);
    let shown = daemon.run("dev show vm0").good();
    assert!(shown.contains("connections ended one after another, each at SET_OWNER"), "{shown}");
    assert!(!shown.contains("were not told"), "{shown}");
    let events = daemon.run(&format!("events --once --since {since}")).good();
    assert_eq!(events.matches("session.ended").count(), 1, "{events}");
    assert_eq!(events.matches("session.repeated").count(), 1, "{events}");
    assert!(events.contains("at=\"SET_OWNER\"") && events.contains("times=10"), "{events}");
    // One that lasts is told, and ends the count.
    let _lasts = connect(&daemon);
    wait_for("it is told", || {
        daemon
            .run(&format!("events --once --since {since} --type session.connected"))
            .good()
            .contains("after_short_ones=30")
    });
    assert!(!daemon.run("dev show vm0").good().contains("one after another"));
}

#[test]
fn waiting_device_tells_who_may_open_its_socket() {
    let daemon = with_device("");
    let shown = daemon.run("dev show vm0").good();
    assert!(shown.contains("socket_access owner ") && shown.contains(" mode 0660: "), "{shown}");
    let access = &daemon.device("vm0")["access"];
    assert_eq!(access["mode"], "0660");
    assert!(access["owner"].is_string() && access["group"].is_string());
    let _frontend = connect(&daemon);
    is_state(&daemon, "connected");
    assert!(daemon.device("vm0")["access"].is_null());
}

/// A queue pair whose rings are empty, in memory of the test's own.
pub(crate) struct EmptyPair {
    memory: HostMemory,
    map: Arc<GuestMap>,
    format: Format,
    layout: Layout,
    kick: EventFd,
}

impl EmptyPair {
    const GPA: u64 = 1 << 30;

    pub(crate) fn new(format: Format) -> EmptyPair {
        let memory = HostMemory::allocate("test", 1 << 20).unwrap();
        let map = Arc::new(memory.guest_map(EmptyPair::GPA).unwrap());
        let layout = Layout::new(format, RingSize::new(format, 256).unwrap());
        EmptyPair { memory, map, format, layout, kick: EventFd::new().unwrap() }
    }

    pub(crate) fn features(&self) -> Features {
        let packed = if self.format == Format::Packed { Features::RING_PACKED } else { Features::NONE };
        Features::VERSION_1 | packed
    }

    pub(crate) fn share(&self, frontend: &mut Frontend) {
        let region = MemoryRegion {
            gpa: EmptyPair::GPA,
            size: self.memory.size(),
            user_addr: self.memory.address(),
            file_offset: 0,
            file: self.memory.file(),
        };
        frontend.set_mem_table(&[region]).unwrap();
    }

    pub(crate) fn start(&self, frontend: &mut Frontend) {
        for queue in 0..2u32 {
            let areas = self.layout.at(self.memory.address() + u64::from(queue) * (64 << 10));
            let address =
                VringAddr { desc: areas.desc, driver: areas.driver, device: areas.device, log: None };
            let base = Position::START.to_vhost_base(self.format);
            frontend.start_ring(queue, 256, base, address, Some(self.kick.as_fd()), None).unwrap();
            frontend.enable_ring(queue, true).unwrap();
        }
    }

    /// Posts one receive buffer.
    pub(crate) fn post(&self) {
        let gpa = EmptyPair::GPA + (512 << 10);
        self.publish(0, DriverBuffer { gpa, len: 2048, writable: true });
    }

    /// Sends what is in no memory of the guest's.
    pub(crate) fn send_from_nowhere(&self) {
        self.publish(1, DriverBuffer { gpa: 0x1000, len: 100, writable: false });
        self.kick.signal();
    }

    fn publish(&self, queue: u64, buffer: DriverBuffer) {
        let config = DriverConfig {
            size: RingSize::new(self.format, 256).unwrap(),
            features: self.features(),
            map: Arc::clone(&self.map),
            areas: self.layout.at(EmptyPair::GPA + queue * (64 << 10)),
            position: Position::START,
        };
        let mut ring: Box<dyn DriverRing> = match self.format {
            Format::Split => Box::new(config.start_split().unwrap()),
            Format::Packed => Box::new(config.start_packed().unwrap()),
        };
        ring.add(&[buffer], 0).unwrap();
        ring.publish();
    }
}

/// The guest's driver is there and its interface is down.
#[test]
fn guest_that_has_posted_no_receive_buffers_is_named_until_it_has() {
    for format in [Format::Split, Format::Packed] {
        let daemon = with_device("");
        let mut frontend = connect(&daemon);
        let pair = EmptyPair::new(format);
        frontend.set_features(pair.features()).unwrap();
        pair.share(&mut frontend);
        pair.start(&mut frontend);
        frontend.set_status(15).unwrap();
        let shown = || daemon.run("dev show vm0").good();
        let counted = || daemon.run("dev vstats show vm0").good();
        wait_for("it is named", || shown().contains("note: queue 0: no receive buffers posted yet; try: "));
        let said = counted();
        assert!(
            said.contains("queue 0 no receive buffers posted yet; try: bring the interface up"),
            "{said}"
        );
        assert!(!said.contains("queue 1 no"), "{said}");
        let told = || daemon.run("events --once --since 0 --type session.no_buffers").good();
        wait_for("one event", || told().lines().count() == 1);
        assert!(told().contains("bring the interface up") && told().contains("share=on"), "{}", told());
        pair.post();
        wait_for("it is over", || {
            !shown().contains("no receive buffers") && !counted().contains("no receive")
        });
        assert_eq!(told().lines().count(), 1);
    }
}

/// Without a status, a front-end may start its rings before it tells the memory.
#[test]
fn rings_that_are_started_before_the_memory_is_told_are_not_called_without_memory() {
    let daemon = with_device("");
    let told = || daemon.run("events --once --since 0 --type session.not_run").good();
    // It has a second for it: a machine that takes half of that for what is done here shows nothing.
    let pair = EmptyPair::new(Format::Split);
    let in_time = Duration::from_millis(500);
    wait_for("the memory to be told in time", || {
        let mut frontend = Frontend::connect(&daemon.socket("vm0"), SOON).unwrap();
        frontend.set_timeout(SOON);
        frontend.handshake_with(!protocol::STATUS).unwrap();
        frontend.set_features(pair.features()).unwrap();
        let (before, begun) = (told(), Instant::now());
        pair.start(&mut frontend);
        let shown = daemon.run("dev show vm0").good();
        pair.share(&mut frontend);
        let is_in_time = begun.elapsed() < in_time;
        pair.post();
        wait_for("they run", || daemon.device("vm0")["rings"][0]["runs"] == true);
        assert!(!is_in_time || (!shown.contains("no guest memory") && told() == before), "{shown}");
        drop(frontend);
        is_state(&daemon, "waiting");
        is_in_time
    });
    // One that never tells it is told of, once it had its time.
    let before = told().lines().count();
    let pair = EmptyPair::new(Format::Split);
    let mut frontend = Frontend::connect(&daemon.socket("vm0"), SOON).unwrap();
    frontend.set_timeout(SOON);
    frontend.handshake_with(!protocol::STATUS).unwrap();
    frontend.set_features(pair.features()).unwrap();
    pair.start(&mut frontend);
    wait_for("it is told", || told().lines().count() == before + 1);
    assert!(daemon.run("dev show vm0").good().contains("no guest memory"));
}

/// On a bridge the hint names each device that keeps frames from going anywhere, and its state.
#[test]
fn frames_to_nobody_name_the_devices_at_the_other_end_and_their_state() {
    let daemon = Daemon::start();
    daemon.run("dev add name a mgmtdev link/l mac 52:54:00:00:00:01 spoofchk on").good();
    let mut source = [0x52, 0x54, 0, 0, 0, 1];
    let options = GuestOptions {
        addresses: Addresses { from: source, ..Addresses::TO_ALL },
        ..GuestOptions::default()
    };
    let mut guest = Guest::connect(&daemon.socket("a"), options).unwrap();
    guest.turn(1).unwrap();
    let hint = || daemon.run("dev vstats show a qidx 1").good();
    wait_for("no other device", || hint().contains("link/l has no other device: ringway dev add"));
    daemon.run("dev add name b mgmtdev link/l").good();
    assert!(hint().contains("try: b: no front-end"), "{}", hint());
    let mut frontend = Frontend::connect(&daemon.socket("b"), SOON).unwrap();
    frontend.set_timeout(SOON);
    frontend.handshake().unwrap();
    frontend.set_status(3).unwrap();
    wait_for("its driver is not up", || hint().contains("try: b: driver not up"));
    let pair = EmptyPair::new(Format::Split);
    frontend.set_features(pair.features()).unwrap();
    pair.share(&mut frontend);
    pair.start(&mut frontend);
    frontend.set_status(15).unwrap();
    wait_for("no buffers", || hint().contains("try: b: no receive buffers posted yet"));
    pair.post();
    wait_for("it receives", || hint().contains("try: none: by now every device there receives"));
    // The hint's length is bounded.
    for n in 0..10 {
        daemon.run(&format!("dev add name p{n} mgmtdev bridge/b")).good();
    }
    let mut port = Guest::connect(&daemon.socket("p0"), GuestOptions::default()).unwrap();
    port.turn(1).unwrap();
    wait_for("eight are named", || {
        let said = daemon.run("dev vstats show p0 qidx 1").good();
        said.contains("p8: no front-end; and 1 more") && !said.contains("p9:")
    });
    // A frame from another address: which one is shown, beside the device's.
    drop(guest);
    wait_for("it leaves", || daemon.device("a")["state"] == "waiting");
    source[5] = 0x66;
    let options = GuestOptions {
        addresses: Addresses { from: source, ..Addresses::TO_ALL },
        ..GuestOptions::default()
    };
    let mut guest = Guest::connect(&daemon.socket("a"), options).unwrap();
    guest.turn(1).unwrap();
    let last = "last from 52:54:00:00:00:66, the device's is 52:54:00:00:00:01";
    wait_for("it is shown", || hint().contains(last));
    assert!(daemon.run("dev show a").good().contains(last));
    let json = daemon.run("-j dev vstats show a qidx 1").json();
    let explain = json["vstats"]["a"]["explain"].as_array().unwrap().clone();
    assert!(explain.iter().any(|why| why["example"] == last), "{explain:?}");
}
