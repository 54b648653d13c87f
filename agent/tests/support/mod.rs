//! A hub, a blob store and a state directory of a test's own, and the real agent as a process between them.

#![allow(dead_code, reason = "each test crate uses its part")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;
use fleetwave_agent_core::Unsigned;
use fleetwave_agent_core::grant::{Answer, METHOD, Outcome, PROPERTIES, Request};
use fleetwave_hub::blob::{BlobControl, BlobServer, Content};
use fleetwave_hub::pki::Pki;
use fleetwave_hub::{
    Clock, ControlError, Hooks, HubServer, HubServerBuilder, MethodCall, NewDevice, PendingMethod, Replies,
    Reply, Telemetry, TwinChange,
};
use fleetwave_hub_core::{Configuration, ConfigurationSpec};
use fleetwave_protocol::{Now, WallTime};
use serde_json::{Value, json};

/// The agent: the one that was built with the tests, or what `FLEETWAVE_AGENT` names (a program and its first arguments,
/// e.g. an emulator and the agent for its processor).
pub(crate) fn program() -> Command {
    let named = std::env::var("FLEETWAVE_AGENT").unwrap_or_default();
    let mut words = named.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or(env!("CARGO_BIN_EXE_fleetwave-agent")));
    command.args(words);
    command
}

/// The size of a payload, where a test does not care.
pub(crate) const SIZE: u64 = 400_000;

/// A payload; another one for each seed.
pub(crate) fn content(seed: u64) -> Content {
    Content::Generated { seed, size: SIZE }
}

/// Its bytes.
pub(crate) fn bytes(content: &Content) -> Vec<u8> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < content.size() {
        bytes.extend_from_slice(&content.read(bytes.len() as u64, u64::MAX));
    }
    bytes
}

pub(crate) const DEVICE: &str = "dev-1";
const INSTALLED: &str = "installed = { id = \"fw-1\", seq = 1 }\n";
/// Long enough for a loaded machine; nothing waits so long unless it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for something that another process does.
pub(crate) fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < give_up, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Grants whatever is asked for, and passes reports on.
struct Cloud {
    blobs: BlobControl,
    reports: Sender<Value>,
}

impl Hooks for Cloud {
    fn telemetry(&mut self, now: Now, message: Telemetry<'_>, replies: &mut Replies) {
        if message.properties != PROPERTIES {
            return;
        }
        let request: Request = serde_json::from_slice(message.body).expect("a grant request");
        let expires = WallTime::from_unix_millis(now.wall.as_unix_millis() + 3_600_000);
        let url = self.blobs.sign_url(&request.id, expires);
        let outcome = Outcome::Granted { url, delta_url: None, expires: expires.as_unix_secs() };
        let answer = Answer { id: request.id, seq: request.seq, target: request.target, outcome };
        let payload = serde_json::to_vec(&answer).expect("an answer is JSON").into();
        replies.send(Reply::Method { name: METHOD.to_owned(), payload, timeout: PATIENCE });
    }

    fn reported(&mut self, _now: Now, _device: &str, _version: u64, patch: &[u8]) {
        let patch: Value = serde_json::from_slice(patch).expect("a report is JSON");
        // The test may have ended.
        let _ = self.reports.send(patch);
    }
}

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) blobs: BlobServer,
    pub(crate) reports: Receiver<Value>,
    /// What the agent finds in its environment on top.
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) hub: HubServer,
    pki: Pki,
    key: SigningKey,
}

impl World {
    /// `bandwidth`: bytes a second of the blob store.
    pub(crate) fn new(bandwidth: Option<u64>, health: &[&str]) -> Self {
        Self::with(bandwidth, health, "")
    }

    /// The same, with more `sections` in the configuration.
    pub(crate) fn with(bandwidth: Option<u64>, health: &[&str], sections: &str) -> Self {
        let world = Self::at_hub(bandwidth, |hub| hub);
        let text = world.toml(health, &world.without_tls()) + sections;
        fs::write(world.config(), text).expect("the configuration is written");
        world
    }

    /// With a hub to which `more` was added; the configuration is that of a device without TLS.
    pub(crate) fn at_hub(
        bandwidth: Option<u64>,
        more: impl FnOnce(HubServerBuilder) -> HubServerBuilder,
    ) -> Self {
        let clock = Clock::new();
        let blobs = BlobServer::builder().clock(clock.clone());
        let blobs = match bandwidth {
            Some(rate) => blobs.bandwidth(rate),
            None => blobs,
        };
        let blobs = blobs.start().expect("the blob store starts");
        let (sender, reports) = mpsc::channel();
        let control = blobs.control();
        let pki = Pki::load_or_create(None, &[]).expect("certificates");
        let hub = HubServer::builder()
            .clock(clock)
            .tcp(([127, 0, 0, 1], 0).into())
            .tls(([127, 0, 0, 1], 0).into(), pki.server_config())
            .hooks(move |_| Box::new(Cloud { blobs: control.clone(), reports: sender.clone() }));
        let hub = more(hub).start().expect("the hub starts");
        hub.control().create_devices([NewDevice::new(DEVICE)]).expect("a device");
        let dir = tempfile::tempdir().expect("a directory");
        let key = SigningKey::from_bytes(&[7; 32]);
        let world = Self { dir, blobs, reports, environment: Vec::new(), hub, pki, key };
        world.configure(&[], &world.without_tls());
        world
    }

    /// Writes the configuration, with these sections about the way to the hub.
    pub(crate) fn configure(&self, health: &[&str], reach: &str) {
        fs::write(self.config(), self.toml(health, reach)).expect("the configuration is written");
    }

    /// Adds sections to the configuration.
    pub(crate) fn add(&self, sections: &str) {
        let text = fs::read_to_string(self.config()).expect("a configuration");
        fs::write(self.config(), text + sections).expect("the configuration is written");
    }

    /// The section of a hub on loopback.
    pub(crate) fn without_tls(&self) -> String {
        let address = self.hub.address().expect("the hub listens");
        let key = self.device_key();
        let string = format!("HostName={address};DeviceId={DEVICE};SharedAccessKey={key}");
        format!("[hub]\nconnection_string = \"{string}\"\nplain = true\n")
    }

    pub(crate) fn device_key(&self) -> String {
        self.hub.control().device_key(DEVICE).to_base64()
    }

    pub(crate) fn tls_port(&self) -> u16 {
        self.hub.tls_address().expect("the hub listens").port()
    }

    /// The file of the authority that vouches for the hub.
    pub(crate) fn ca(&self) -> PathBuf {
        let path = self.dir.path().join("ca.pem");
        fs::write(&path, self.pki.ca_pem()).expect("written");
        path
    }

    fn toml(&self, health: &[&str], reach: &str) -> String {
        let health = if health.is_empty() { String::new() } else { format!("health = {health:?}\n") };
        self.with_firmware(&format!("installer = \"directory\"\n{INSTALLED}{health}"), reach)
    }

    /// The configuration of a device with this in its firmware's section, and lines and tables that follow.
    fn with_firmware(&self, firmware: &str, reach: &str) -> String {
        let public = STANDARD.encode(self.key.verifying_key().to_bytes());
        let state = self.state().display().to_string();
        format!(
            "state = {state:?}\n\
             {reach}\
             [trust]\nthreshold = 1\nkeys = {{ k1 = \"{public}\" }}\n\
             [firmware]\n{firmware}\
             [limits]\nsplay_seconds = 0\nretry_seconds = 1\nreconnect_seconds = 1\n"
        )
    }

    /// Has the agent install firmware in another way.
    pub(crate) fn install_by(&self, firmware: &str) {
        let text = self.with_firmware(&format!("{INSTALLED}{firmware}"), &self.without_tls());
        fs::write(self.config(), text).expect("the configuration is written");
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("agent.toml")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Where the firmware's unit keeps what it needs.
    pub(crate) fn firmware(&self) -> PathBuf {
        self.state().join("firmware")
    }

    pub(crate) fn download(&self) -> u64 {
        fs::metadata(self.firmware().join("slot-b/image")).map_or(0, |file| file.len())
    }

    pub(crate) fn journal(&self) -> Vec<u8> {
        fs::read(self.firmware().join("journal")).expect("there is a journal")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).expect("the agent writes a log")
    }

    /// Signs a release of the firmware whose payload should be `signed`, stores `served` for it, and configures all
    /// devices.
    pub(crate) fn release(&self, id: &str, seq: u64, signed: &Content, served: Content) {
        let reference = self.sign(None, id, seq, signed, served);
        let content = json!({"properties.desired.firmware": reference}).to_string();
        self.configure_all(id, seq, &content);
    }

    /// Configures all devices with this.
    pub(crate) fn configure_all(&self, id: &str, priority: u64, content: &str) {
        let configuration = Configuration::new(&ConfigurationSpec {
            id,
            priority: u32::try_from(priority).expect("small"),
            target_condition: "*",
            device_content: content,
            ..ConfigurationSpec::default()
        });
        self.hub.control().put_configuration(configuration.expect("well-formed")).expect("accepted");
    }

    /// Signs a release of a target (the firmware if there is none) and stores its payload.
    pub(crate) fn sign(
        &self,
        target: Option<&str>,
        id: &str,
        seq: u64,
        signed: &Content,
        served: Content,
    ) -> Value {
        let digest = signed.sha256();
        let digest: [u8; 32] = std::array::from_fn(|byte| {
            u8::from_str_radix(&digest[2 * byte..2 * byte + 2], 16).expect("hexadecimal")
        });
        self.blobs.control().put(id, served).expect("a blob");
        let unsigned = Unsigned { target, ..Unsigned::new(id, seq, signed.size(), digest) };
        unsigned.sign(&[("k1", &self.key)]).into()
    }

    /// A signed reference as it would be if it were for these types of devices alone.
    pub(crate) fn sign_for(&self, types: &[&str], reference: &Value) -> Value {
        let reference = reference.as_object().expect("a reference");
        let mut unsigned = Unsigned::read(reference).expect("well-formed");
        unsigned.compatible = types.to_vec();
        unsigned.sign(&[("k1", &self.key)]).into()
    }

    /// Changes the device's desired properties.
    pub(crate) fn desire(&self, patch: &Value) {
        let desired = Some(patch.to_string().into_bytes());
        let change = TwinChange { desired, ..TwinChange::default() };
        self.hub.control().patch_twin(DEVICE, change).expect("accepted");
    }

    /// Calls a direct method of the device; its status and what it says. One that meets the end of a connection is lost,
    /// and called again.
    pub(crate) fn call(&self, name: &str, payload: &Value) -> (i32, Value) {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match self.begin_call(name, payload, Duration::from_secs(5)).and_then(PendingMethod::wait) {
                Ok(answer) => {
                    return (answer.status, serde_json::from_slice(&answer.payload).expect("JSON"));
                }
                Err(error) if Instant::now() > give_up => panic!("{name}: {error}; log:\n{}", self.log()),
                Err(_) => {}
            }
        }
    }

    /// Calls one, and does not wait for the answer.
    pub(crate) fn begin_call(
        &self,
        name: &str,
        payload: &Value,
        response_timeout: Duration,
    ) -> Result<PendingMethod, ControlError> {
        let (name, payload) = (name.to_owned(), payload.to_string().into());
        let call = MethodCall { name, payload, connect_timeout: PATIENCE, response_timeout };
        self.hub.control().invoke_method(DEVICE, call)
    }

    /// Takes the hub away for a while.
    pub(crate) fn restart_hub(&self, down_for: Duration) {
        self.hub.control().restart(down_for).expect("the hub restarts");
    }

    fn command(&self, once: bool) -> Command {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).expect("a log");
        let mut command = program();
        command.arg("run").arg("--config").arg(self.config()).stderr(Stdio::from(log));
        command.envs(self.environment.iter().cloned());
        if once {
            command.arg("--once");
        }
        command
    }

    pub(crate) fn start(&self) -> Process {
        self.start_with(&[])
    }

    /// With more in its environment.
    pub(crate) fn start_with(&self, environment: &[(&str, &Path)]) -> Process {
        let mut command = self.command(false);
        command.envs(environment.iter().copied());
        Process(command.spawn().expect("the agent starts"))
    }

    /// Runs the agent until nothing is left to do.
    pub(crate) fn run_once(&self) -> ExitStatus {
        let mut process =
            Process(self.command(true).stdout(Stdio::null()).spawn().expect("the agent starts"));
        let mut status = None;
        eventually("the agent ends", || {
            status = process.0.try_wait().expect("a child of ours");
            status.is_some()
        });
        status.expect("just seen")
    }

    pub(crate) fn status(&self) -> String {
        let output = agent(&["status", "--config"], &self.config());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// The next report of the firmware, if there is one by now, with its state and code as text.
    pub(crate) fn next_report(&self) -> Option<(String, Value)> {
        let report = self.reports.try_recv().ok()?["firmware"].take();
        Some((told(&report), report))
    }

    /// The next report: a patch of the reported properties.
    pub(crate) fn report(&self) -> Value {
        let report = self.reports.recv_timeout(PATIENCE);
        report.unwrap_or_else(|_| panic!("no report; log:\n{}", self.log()))
    }

    /// The reports of the firmware up to the one that `wanted` accepts, as running release, state and code.
    pub(crate) fn reports_until(&self, mut wanted: impl FnMut(&Value) -> bool) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            let report = self
                .reports
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("no such report, but {seen:?}; log:\n{}", self.log()));
            let Some(report) = report.get("firmware") else { continue };
            seen.push(told(report));
            if wanted(report) {
                return seen;
            }
        }
    }
}

/// A report as what runs, state and code.
fn told(report: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    format!("{} {} {}", text(&report["running"]["id"]), text(&report["state"]), text(&report["code"]))
}

pub(crate) fn runs(id: &str) -> impl Fn(&Value) -> bool {
    move |report| report["running"]["id"] == *id
}

/// Runs one of the agent's other commands.
pub(crate) fn agent(arguments: &[&str], file: &Path) -> Output {
    program().args(arguments).arg(file).output().expect("the agent runs")
}

/// A running agent; killed if the test ends before it does.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.0.kill().expect("it still runs");
        self.0.wait().expect("a child of ours");
    }

    /// `kill -TERM`, and how it ends then.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        let killed = Command::new("kill").arg(self.0.id().to_string()).status().expect("kill runs");
        assert!(killed.success());
        self.0.wait().expect("a child of ours")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
