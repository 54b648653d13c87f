//! Takes the power away at every point of whole updates: the real agent kills itself at the first point that it passes,
//! then at the second in another life, and so on through all of them: each step of each durable write, half of a write
//! included, and each effect. After every one of these deaths the disk must be fit to boot from, and the next start
//! must bring the update to its end.

#[path = "common/pack.rs"]
mod pack;
mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;
use fleetwave_agent::chunks::Chunks;
use fleetwave_agent_core::Unsigned;
use fleetwave_agent_core::grant::{Answer, METHOD, Outcome, PROPERTIES, Request};
use fleetwave_hub::blob::{BlobControl, BlobServer, Content};
use fleetwave_hub::{Clock, Hooks, HubServer, NewDevice, Replies, Reply, Telemetry};
use fleetwave_protocol::{Now, WallTime, rng};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use support::{PATIENCE, program};

/// Small, so that a life is short.
const SIZE: u64 = 40_000;
/// Larger, so that the header of its archive is a small part of it.
const DELTA_SIZE: u64 = 200_000;
/// Deaths at random pairs of points, in each story.
const PAIRS: usize = 100;

/// What an update is, and how it must end.
#[derive(Clone, Copy)]
struct Story {
    name: &'static str,
    /// What the twin asks for, and what it asks for while the device is dead, if that is something else.
    asks: &'static str,
    then: Option<&'static str>,
    /// It is not the twin that asks, but somebody at the device, with a stick and without a hub.
    stick: bool,
    health: &'static str,
    /// What a journal may grow to, if that is to be so little that it is written anew in each life.
    journal_bound: Option<&'static str>,
    /// What must run in the end: one of them.
    ends: &'static [&'static str],
    /// The code of exit of the last life.
    exit: i32,
    /// So many points there are at least: a point that is lost must not pass for a test that passes.
    least: usize,
}

const STORIES: &[Story] = &[
    Story {
        name: "a good release",
        asks: "fw-2",
        then: None,
        stick: false,
        health: "true",
        journal_bound: None,
        ends: &["fw-2"],
        exit: 0,
        least: 70,
    },
    Story {
        name: "a release that is unhealthy",
        asks: "fw-2",
        then: None,
        stick: false,
        health: "false",
        journal_bound: Some("1"),
        ends: &["fw-1"],
        exit: 3,
        least: 70,
    },
    Story {
        name: "a payload that is not what was signed",
        asks: "bad-2",
        then: None,
        stick: false,
        health: "true",
        journal_bound: None,
        ends: &["fw-1"],
        exit: 3,
        least: 30,
    },
    Story {
        name: "a newer release while the device is dead",
        asks: "fw-2",
        then: Some("fw-3"),
        stick: false,
        health: "true",
        journal_bound: None,
        ends: &["fw-3"],
        exit: 0,
        least: 70,
    },
    Story {
        name: "a release of which much runs already",
        asks: "delta-2",
        then: None,
        stick: false,
        health: "true",
        journal_bound: None,
        ends: &["delta-2"],
        exit: 0,
        least: 75,
    },
    Story {
        name: "called off while the device is dead",
        asks: "fw-2",
        then: Some("nothing"),
        stick: false,
        health: "true",
        journal_bound: None,
        // What has gone so far that only the slot decides, is finished.
        ends: &["fw-1", "fw-2"],
        exit: 0,
        least: 70,
    },
    Story {
        name: "from a stick",
        asks: "fw-2",
        then: None,
        stick: true,
        health: "true",
        journal_bound: None,
        ends: &["fw-2"],
        exit: 0,
        least: 60,
    },
];

/// A release that is signed, and what is served for it: the payload, and an archive if it has one.
fn release(id: &str, key: &SigningKey) -> (Map<String, Value>, Content, Option<Content>) {
    let seq: u64 = id.rsplit('-').next().and_then(|seq| seq.parse().ok()).expect("a sequence");
    let size = size_of(id);
    let content = |seed| Content::Generated { seed, size };
    let (signed, served) = (content(seq), content(if id.starts_with("bad") { 99 } else { seq }));
    let payload = read(&signed, size);
    let archive = id.starts_with("delta").then(|| pack::pack(&payload));
    let delta = archive.as_ref().map(|(_, signed)| *signed);
    let digest = Sha256::digest(&payload).into();
    let reference = Unsigned { delta, ..Unsigned::new(id, seq, size, digest) }.sign(&[("k1", key)]);
    (reference, served, archive.map(|(archive, _)| Content::Bytes(archive.into())))
}

fn read(content: &Content, size: u64) -> Vec<u8> {
    let mut payload = Vec::new();
    while (payload.len() as u64) < size {
        payload.extend_from_slice(&content.read(payload.len() as u64, u64::MAX));
    }
    payload
}

fn size_of(id: &str) -> u64 {
    if id.starts_with("delta") { DELTA_SIZE } else { SIZE }
}

/// What runs before the update: the most of it stands in the next release, too.
fn delivered() -> Vec<u8> {
    let mut image = read(&Content::Generated { seed: 2, size: DELTA_SIZE }, DELTA_SIZE);
    image[120_000..121_000].fill(0);
    image
}

/// Grants whatever is asked for.
struct Cloud(BlobControl);

impl Hooks for Cloud {
    fn telemetry(&mut self, now: Now, message: Telemetry<'_>, replies: &mut Replies) {
        if message.properties != PROPERTIES {
            return;
        }
        let Request { id, seq, target } = serde_json::from_slice(message.body).expect("a grant request");
        let expires = WallTime::from_unix_millis(now.wall.as_unix_millis() + 3_600_000);
        let url = self.0.sign_url(&id, expires);
        let delta_url = id.starts_with("delta").then(|| self.0.sign_url(&format!("{id}.archive"), expires));
        let outcome = Outcome::Granted { url, delta_url, expires: expires.as_unix_secs() };
        let payload = serde_json::to_vec(&Answer { id, seq, target, outcome }).expect("JSON").into();
        replies.send(Reply::Method { name: METHOD.to_owned(), payload, timeout: PATIENCE });
    }
}

/// A hub and a store for one round after the other.
struct Yard {
    hub: HubServer,
    blobs: BlobServer,
    key: SigningKey,
    dir: tempfile::TempDir,
}

impl Yard {
    fn new() -> Self {
        let clock = Clock::new();
        let blobs = BlobServer::builder().clock(clock.clone()).start().expect("the store starts");
        let key = SigningKey::from_bytes(&[7; 32]);
        for id in ["fw-2", "fw-3", "bad-2", "delta-2"] {
            let (_, payload, archive) = release(id, &key);
            blobs.control().put(id, payload).expect("a blob");
            if let Some(archive) = archive {
                blobs.control().put(&format!("{id}.archive"), archive).expect("a blob");
            }
        }
        let control = blobs.control();
        let hub = HubServer::builder()
            .shards(1)
            .clock(clock)
            .tcp(([127, 0, 0, 1], 0).into())
            .hooks(move |_| Box::new(Cloud(control.clone())))
            .start()
            .expect("the hub starts");
        Self { hub, blobs, key, dir: tempfile::tempdir().expect("a directory") }
    }

    fn device(&self, name: &str, story: &Story) -> Device<'_> {
        let dir = self.dir.path().join(name);
        fs::create_dir(&dir).expect("a directory");
        let hub = self.hub.control();
        let mut device = NewDevice::new(name);
        let twin_asks = if story.stick { "nothing" } else { story.asks };
        device.desired = Some(self.desired(twin_asks).to_string().into());
        hub.create_devices([device]).expect("a device");
        let state = dir.join("state").display().to_string();
        let public = STANDARD.encode(self.key.verifying_key().to_bytes());
        let (address, key) = (self.hub.address().expect("it listens"), hub.device_key(name).to_base64());
        let config = format!(
            "state = {state:?}\n\
             [hub]\nplain = true\nconnection_string = \"HostName={address};DeviceId={name};SharedAccessKey={key}\"\n\
             [trust]\nthreshold = 1\nkeys = {{ k1 = \"{public}\" }}\n\
             [firmware]\ninstaller = \"directory\"\ninstalled = {{ id = \"fw-1\", seq = 1 }}\nhealth = [{:?}]\n\
             [limits]\nsplay_seconds = 0\nretry_seconds = 0.01\nreconnect_seconds = 0.01\n",
            story.health,
        );
        fs::write(dir.join("agent.toml"), config).expect("the configuration is written");
        let slot = dir.join("state/firmware/slot-a");
        fs::create_dir_all(&slot).expect("a directory");
        fs::write(slot.join("image"), delivered()).expect("an image");
        let stick = story.stick.then(|| self.stick(&dir, story.asks));
        let name = name.to_owned();
        Device { yard: self, name, dir, stick, lives: 0, journal_bound: story.journal_bound }
    }

    /// A release in a directory.
    fn stick(&self, dir: &Path, id: &str) -> PathBuf {
        let (stick, (reference, content, _)) = (dir.join("stick"), release(id, &self.key));
        fs::create_dir(&stick).expect("a directory");
        fs::write(stick.join("release.json"), Value::Object(reference).to_string()).expect("written");
        fs::write(stick.join("payload"), read(&content, SIZE)).expect("written");
        stick
    }

    fn desired(&self, asks: &str) -> Value {
        match asks {
            "nothing" => json!({ "firmware": null }),
            id => json!({ "firmware": release(id, &self.key).0 }),
        }
    }
}

struct Device<'a> {
    yard: &'a Yard,
    name: String,
    dir: PathBuf,
    stick: Option<PathBuf>,
    lives: u32,
    journal_bound: Option<&'static str>,
}

impl Device<'_> {
    fn firmware(&self) -> PathBuf {
        self.dir.join("state/firmware")
    }

    /// One life: until it has nothing left to do, or until it dies at that point.
    fn live(&mut self, at: Option<usize>) -> ExitStatus {
        match self.stick.clone() {
            Some(stick) => self.run(&["install".as_ref(), stick.as_ref()], at),
            None => self.run(&["run".as_ref(), "--once".as_ref()], at),
        }
    }

    fn run(&mut self, arguments: &[&OsStr], at: Option<usize>) -> ExitStatus {
        self.lives += 1;
        let log = fs::File::options().create(true).append(true).open(self.dir.join("log")).expect("a log");
        let mut command = program();
        command.args(arguments).arg("--config").arg(self.dir.join("agent.toml"));
        command.env("FLEETWAVE_CRASH_LOG", self.dir.join(format!("points-{}", self.lives)));
        if let Some(bound) = self.journal_bound {
            command.env("FLEETWAVE_JOURNAL_BOUND", bound);
        }
        if let Some(at) = at {
            command.env("FLEETWAVE_CRASH_AT", at.to_string());
        }
        let mut child = command.stdout(Stdio::null()).stderr(log).spawn().expect("the agent starts");
        let give_up = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("a child of ours") {
                return status;
            }
            if Instant::now() > give_up {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{} does not end:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// The points that the last life has passed.
    fn points(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join(format!("points-{}", self.lives))).unwrap_or_default();
        text.lines().map(|line| line.split_once(' ').expect("a number and a name").1.to_owned()).collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn asks(&self, asks: &str) {
        let desired = Some(self.yard.desired(asks).to_string().into_bytes());
        let change = fleetwave_hub::TwinChange { desired, ..Default::default() };
        self.yard.hub.control().patch_twin(&self.name, change).expect("accepted");
    }

    /// What a boot loader finds: every slot that it may boot holds a release, as it was signed.
    fn must_boot(&self) -> u64 {
        let dir = self.firmware();
        let Some(pointer) = json_of(&dir.join("boot.json")) else {
            // Before the first start has made it: the device is as it was delivered.
            return 1;
        };
        let slot = |slot: &Value| {
            let dir = dir.join(format!("slot-{}", slot.as_str().expect("a slot's name")));
            let reference = json_of(&dir.join("release.json"))?;
            let image = fs::read(dir.join("image")).ok()?;
            if let Some(signed) = reference.get("sha256") {
                let digest: String = Sha256::digest(&image).iter().map(|b| format!("{b:02x}")).collect();
                assert_eq!(
                    signed,
                    &json!(digest),
                    "{}: a slot that may boot is not what was signed",
                    self.name
                );
            }
            reference["seq"].as_u64()
        };
        // One that is asked for once falls back to the default one if it is not whole.
        let _ = pointer.get("once").filter(|once| once.is_string()).and_then(slot);
        match slot(&pointer["default"]) {
            Some(sequence) => sequence,
            // What the device was delivered with has no record.
            None => {
                assert_eq!(pointer["default"], "a", "{}: nothing boots", self.name);
                1
            }
        }
    }

    /// Bytes of the payload that are durable, of `id` if that is in flight or staged.
    fn durable(&self, id: &str) -> u64 {
        let output = program().args(["status", "--config"]).arg(self.dir.join("agent.toml")).output();
        let output = output.expect("the agent runs");
        assert!(output.status.success(), "{}: {output:?}", self.name);
        let text = String::from_utf8(output.stdout).expect("text");
        let Some(line) = text.lines().find(|line| line.starts_with("in flight") && line.contains(id)) else {
            return 0;
        };
        if line.contains("staged") || line.contains("trial") {
            return size_of(id);
        }
        let bytes = line.split(", ").nth(2).or_else(|| line.split(", ").nth(1)).expect("bytes");
        bytes.split(' ').next().and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
    }

    fn served(&self) -> u64 {
        self.yard.blobs.control().counters().bytes
    }

    fn twin(&self) -> Value {
        let twin = self.yard.hub.control().twin(&self.name).expect("a twin");
        serde_json::from_slice(&twin).expect("JSON")
    }
}

fn json_of(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// One round: dies at each of `deaths`, one life after the other, and is then left in peace.
fn round(yard: &Yard, story: &Story, name: &str, deaths: &[usize]) -> Option<String> {
    let mut device = yard.device(name, story);
    let mut sequence = 1;
    let mut last = None;
    for &at in deaths {
        let status = device.live(Some(at));
        use std::os::unix::process::ExitStatusExt as _;
        if status.signal() != Some(9) {
            // This life was shorter than the others.
            break;
        }
        last = device.points().last().cloned();
        let boots = device.must_boot();
        assert!(boots >= sequence, "{name}: from {sequence} down to {boots}, killed at {last:?}");
        sequence = boots;
    }
    let durable = device.durable(story.asks);
    if let Some(then) = story.then {
        device.asks(then);
    }
    let before = device.served();
    // What was asked for with a stick goes on by itself when the agent starts, once that is durable. In the other rounds
    // somebody asks again.
    let goes_on = story.stick && deaths[0].is_multiple_of(2) && device.firmware().join("local.json").exists();
    let asked = if goes_on { None } else { Some(device.live(None)) };
    let mut status = asked.unwrap_or_default();
    if story.stick && status.success() {
        // The hub has not heard of it yet.
        status = device.run(&["run".as_ref(), "--once".as_ref()], None);
    }
    let context =
        || format!("{}, killed at {deaths:?}, the last was {last:?}:\n{}", story.name, device.log());
    assert_eq!(status.code(), Some(story.exit), "{}", context());
    assert!(device.must_boot() >= sequence, "{}", context());
    let twin = device.twin();
    let reported = &twin["properties"]["reported"]["firmware"];
    let runs = reported["running"]["id"].as_str().unwrap_or_default();
    assert!(story.ends.contains(&runs), "{runs} runs: {}", context());
    // Without one the device is as it was delivered.
    let pointer = json_of(&device.firmware().join("boot.json")).unwrap_or_else(|| json!({"default": "a"}));
    let slot = device.firmware().join(format!("slot-{}", pointer["default"].as_str().expect("a name")));
    // What the device was delivered with has no record.
    let installed = json_of(&slot.join("release.json")).unwrap_or_else(|| json!({"id": "fw-1"}));
    assert_eq!(installed["id"], reported["running"]["id"], "what is reported runs: {}", context());
    assert!(reported["state"] != "updating", "{reported}: {}", context());
    if story.then.is_none() && !story.asks.starts_with("bad") {
        let fetched = device.served() - before;
        // By chunks it is a part of it, and the header of the archive once more if that was not kept.
        let most = if story.asks.starts_with("delta") { DELTA_SIZE / 4 } else { SIZE - durable };
        assert!(fetched <= most, "{fetched} fetched with {durable} durable: {}", context());
    }
    fs::remove_dir_all(&device.dir).expect("removed");
    last
}

/// Every death of a story, on several yards at once.
fn play(story: &Story) -> BTreeMap<String, usize> {
    let yard = Yard::new();
    let mut whole = yard.device("whole", story);
    let status = whole.live(None);
    if story.then.is_none() {
        assert_eq!(status.code(), Some(story.exit), "{}: {}", story.name, whole.log());
    }
    let points = whole.points().len();
    assert!(points >= story.least, "{}: {points} points are fewer than {}", story.name, story.least);
    drop(yard);

    let draw = |n: u64| rng::mix(n ^ rng::mix(story.name.len() as u64));
    let few = story.stick || story.asks.starts_with("delta");
    let pairs = if few { PAIRS / 4 } else { PAIRS };
    let pairs = (0..pairs as u64).map(|n| {
        let [first, second] = [2 * n, 2 * n + 1].map(|n| 1 + (draw(n) % points as u64) as usize);
        vec![first, second]
    });
    let deaths: Vec<Vec<usize>> = (1..=points).map(|at| vec![at]).chain(pairs).collect();
    let (next, seen) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let yard = Yard::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(deaths) = deaths.get(number) else { break };
                    let name = format!("round-{number}");
                    if let Some(point) = round(&yard, story, &name, deaths) {
                        *seen.lock().expect("no panic under it").entry(point).or_insert(0) += 1;
                    }
                }
            });
        }
    });
    seen.into_inner().expect("no panic under it")
}

#[test]
fn whenever_the_power_goes_the_device_boots_and_the_update_comes_to_its_end() {
    let mut all = BTreeMap::new();
    for story in STORIES {
        let began = Instant::now();
        let seen = play(story);
        let deaths: usize = seen.values().sum();
        println!("{}: {deaths} deaths, {} s", story.name, began.elapsed().as_secs());
        for (point, deaths) in seen {
            *all.entry(point).or_insert(0) += deaths;
        }
    }
    let deaths: usize = all.values().sum();
    for (point, deaths) in &all {
        println!("{deaths:5}  {point}");
    }
    println!("{deaths:5}  deaths in all");
    assert!(all.contains_key("journal: compacting"), "a journal is made shorter in one of them");
    assert!(deaths >= 900, "{deaths} deaths are fewer than there should be");
}
