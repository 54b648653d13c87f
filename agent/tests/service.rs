//! The agent as a service: what it says to systemd, to journald, and to Prometheus.

mod support;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

use fleetwave_hub::blob::Content;
use serde_json::json;

use support::{PATIENCE, Process, World, eventually, program, runs};

/// A service manager that listens.
struct Manager(UnixDatagram);

impl Manager {
    fn new(world: &World) -> Self {
        let socket = UnixDatagram::bind(world.dir.path().join("notify")).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self(socket)
    }

    /// What is said up to and with a message that has `wanted` in it.
    fn hears(&self, wanted: &str) -> String {
        let mut heard = String::new();
        let mut message = [0; 1024];
        loop {
            let length = self.0.recv(&mut message).unwrap_or_else(|_| panic!("no {wanted} after:\n{heard}"));
            heard.push_str(&String::from_utf8_lossy(&message[..length]));
            if heard.contains(wanted) {
                return heard;
            }
        }
    }

    /// What was said and not heard yet is passed over.
    fn forgets(&self) {
        self.0.set_nonblocking(true).expect("a mode");
        while self.0.recv(&mut [0; 1024]).is_ok() {}
        self.0.set_nonblocking(false).expect("a mode");
    }
}

#[test]
fn systemd_hears_that_the_agent_is_ready_what_it_does_that_it_lives_and_that_it_ends() {
    let world = World::new(None, &[]);
    let manager = Manager::new(&world);
    let agent = program()
        .args(["run", "--config"])
        .arg(world.config())
        .env("NOTIFY_SOCKET", world.dir.path().join("notify"))
        .env("WATCHDOG_USEC", "200000")
        .stderr(Stdio::null())
        .spawn()
        .expect("the agent starts");
    let agent = Process(agent);
    manager.hears("READY=1\n");
    manager.hears("STATUS=up to date\n");
    let heard = manager.hears("WATCHDOG=1\n") + &manager.hears("WATCHDOG=1\n");
    assert_eq!(heard.matches("READY=1").count(), 0, "once is enough: {heard}");
    assert!(agent.terminate().success());
    manager.hears("STOPPING=1\n");
}

#[test]
fn systemd_hears_that_the_agent_lives_while_the_machine_goes_down() {
    let world = World::with(None, &[], "[reboot]\ncommand = [\"true\"]\n");
    let manager = Manager::new(&world);
    let agent = program()
        .args(["run", "--config"])
        .arg(world.config())
        .env("NOTIFY_SOCKET", world.dir.path().join("notify"))
        // Not so often that nobody hears it while something else is waited for: a socket keeps ten messages.
        .env("WATCHDOG_USEC", "2000000")
        .stderr(File::create(world.dir.path().join("log")).expect("a log"))
        .spawn()
        .expect("the agent starts");
    let agent = Process(agent);
    manager.hears("STATUS=up to date\n");
    assert_eq!(world.call("reboot", &json!(null)).0, 200);
    eventually("the machine goes down", || {
        manager.forgets();
        world.log().contains("the machine goes down")
    });
    // One of these may have been under way before.
    manager.forgets();
    for _ in 0..3 {
        manager.hears("WATCHDOG=1\n");
    }
    assert!(agent.terminate().success());
}

#[test]
fn journald_gets_priorities_and_no_times() {
    let world = World::new(None, &[]);
    let log = world.dir.path().join("journal");
    let file = File::create(&log).expect("a log");
    let place = file.metadata().expect("it is there");
    let status = program()
        .args(["run", "--once", "--config"])
        .arg(world.config())
        .env("JOURNAL_STREAM", format!("{}:{}", place.dev(), place.ino()))
        .stderr(file)
        .stdout(Stdio::null())
        .status()
        .expect("the agent runs");
    assert!(status.success());
    let log = fs::read_to_string(log).expect("text");
    assert!(log.lines().count() > 2, "{log}");
    for line in log.lines() {
        let (priority, rest) = line.split_once('>').unwrap_or_else(|| panic!("no priority: {line}"));
        let level = rest.split(' ').next().expect("never empty");
        let wanted = match level {
            "ERROR" => "<3",
            "WARN" => "<4",
            "INFO" => "<6",
            _ => panic!("a level comes first: {line}"),
        };
        assert_eq!(priority, wanted, "{line}");
    }
}

/// What Prometheus reads.
fn scrape(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    Some(page)
}

#[test]
fn prometheus_reads_what_an_update_took() {
    let world = World::new(None, &[]);
    let mut config = fs::read_to_string(world.config()).expect("a configuration");
    config.push_str("[metrics]\nlisten = \"127.0.0.1:0\"\n");
    fs::write(world.config(), config).expect("written");
    let content = || Content::Generated { seed: 2, size: 300_000 };
    world.release("fw-2", 2, &content(), content());
    let _agent = world.start();
    world.reports_until(runs("fw-2"));
    let log = world.log();
    let (_, address) = log.split_once("metrics are served address=").expect("the log says where the page is");
    let address = address.split_whitespace().next().expect("never empty");
    let lines = [
        "fleetwave_agent_connected 1",
        "fleetwave_agent_updates_total{target=\"firmware\",code=\"ok\"} 1",
        "fleetwave_agent_target_state{target=\"firmware\",state=\"idle\"} 1",
        "fleetwave_agent_journal_errors_total{target=\"firmware\"} 0",
    ];
    let mut page = String::new();
    eventually("the page says all that", || {
        page = scrape(address).unwrap_or_default();
        lines.iter().all(|line| page.lines().any(|found| found == *line))
    });
    let number = |name: &str| {
        let line = page.lines().find(|line| line.starts_with(&format!("fleetwave_agent_{name} ")));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
    };
    let bytes = number("download_bytes_total");
    assert!(bytes.is_some_and(|bytes| (300_000..310_000).contains(&bytes)), "{page}");
    // Each connection that the hub took, and each report that it got.
    for name in ["connects_total", "reports_total", "download_requests_total"] {
        let count = number(name);
        assert!(count.is_some_and(|count| (1..10).contains(&count)), "{name}:\n{page}");
    }
}
