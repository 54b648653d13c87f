//! Runs on a hub that the harness knows by its public surface alone.

mod process;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fleetwave::progress::Progress;
use fleetwave::remote::clean::Cleaner;
use fleetwave::remote::{Access, Remote};
use fleetwave::run::{EngineError, RunPlan, Target, engine, judge};
use fleetwave::scenario::load_text;
use fleetwave::scenario::model::Tier;
use fleetwave_hub::pki::Pki;
use fleetwave_hub::policy::{Policy, Rights};
use fleetwave_hub::{HubServer, NewDevice};
use fleetwave_hub_core::query::Query;
use fleetwave_protocol::sas::Key;
use fleetwave_report::record::{Engine, RunRecord, Transport, Verdict};

const SCENARIO: &str = "
schema = 1
name = 'remote'
[fleet]
devices = 30
[[fleet.group]]
name = 'gateway'
share = '50%'
tags = { site = 'berlin' }
verify = '1Gbit/s'
install = '50ms..100ms'
reboot = '50ms..100ms'
probation = '20ms..50ms'
[[fleet.group]]
name = 'rest'
verify = '1Gbit/s'
install = '50ms..100ms'
reboot = '50ms..100ms'
probation = '20ms..50ms'
[[release]]
id = 'fw-2'
seq = 2
size = '64KiB'
[[release]]
id = 'fw-3'
seq = 3
size = '64KiB'
[agent]
splay = '200ms'
backoff = { first = '100ms', max = '1s' }
reconnect = { first = '100ms', max = '500ms' }
[harness]
max_lag = '10s'
max_duration = '60s'
[[step]]
connect = { over = '200ms' }
[[step]]
wait = { until = 'connected >= 100%', timeout = '30s' }
[[step]]
configure = { id = 'pilot', release = 'fw-2', target = \"tags.site = 'berlin'\" }
[[step]]
wait = { until = 'converged >= 100%', timeout = '30s' }
[[step]]
configure = { id = 'rollout', release = 'fw-3', priority = 20 }
[[step]]
wait = { until = 'converged >= 100%', timeout = '30s' }
[expect]
'devices.missing' = '= 0'
'devices.converged' = '= 30'
";

const KEY: &[u8; 32] = b"the key of the policy of a test!";

/// A hub with TLS, as somebody else would run it.
struct Bench {
    hub: HubServer,
    dir: tempfile::TempDir,
}

impl Bench {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let pki = Pki::load_or_create(Some(dir.path()), &[]).expect("certificates");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let key = Key::from_bytes(*KEY);
        let hub = HubServer::builder()
            .tls(any, pki.server_config())
            .https(any, Some(pki.server_config()))
            .host_name("my-hub.azure-devices.net")
            .policy(Policy {
                name: "iothubowner".to_owned(),
                primary: key.clone(),
                secondary: key,
                rights: Rights::REGISTRY_READ | Rights::REGISTRY_WRITE | Rights::SERVICE_CONNECT,
            })
            .start()
            .expect("a hub");
        let bench = Self { hub, dir };
        bench.create("bystander", "{}");
        bench
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    fn key(&self) -> String {
        Key::from_bytes(*KEY).to_base64()
    }

    fn access(&self, key: &str) -> Access {
        let port = self.hub.https_address().expect("HTTPS").port();
        format!(
            "HostName=my-hub.azure-devices.net:{port};SharedAccessKeyName=iothubowner;SharedAccessKey={key};\
             GatewayHostName=localhost"
        )
        .parse()
        .expect("well formed")
    }

    /// A run on it, by way of a gateway name, as a real connection string has it.
    fn remote(&self) -> Remote {
        let access = self.access(&self.key());
        Remote {
            mqtt_port: self.hub.tls_address().expect("MQTT over TLS").port(),
            ca: Some(self.ca()),
            limits: Some((Tier::None, 1)),
            ..Remote::new(access)
        }
    }

    fn run(&self, remote: &Remote, stop: &AtomicBool, set: &[&str]) -> Result<RunRecord, EngineError> {
        let sets: Vec<String> = set.iter().map(|set| (*set).to_owned()).collect();
        let plan = plan(remote, &sets);
        let outcome = engine(Engine::Live)(&plan, &Progress::default(), stop)?;
        Ok(judge(&plan, &outcome))
    }

    fn create(&self, id: &str, tags: &str) {
        let device = NewDevice { tags: Some(tags.into()), ..NewDevice::new(id) };
        self.hub.control().create_devices([device]).expect("the hub runs");
    }

    /// How many devices the hub has.
    fn devices(&self) -> u64 {
        let all = Query::parse("SELECT * FROM devices").expect("a query");
        self.hub.control().count_where(all).expect("the hub runs")
    }

    fn twin(&self, id: &str) -> String {
        let twin = self.hub.control().twin(id).expect("the hub runs");
        String::from_utf8(twin).expect("a twin is text")
    }
}

fn plan(remote: &Remote, sets: &[String]) -> RunPlan {
    plan_of(SCENARIO, remote, sets)
}

fn plan_of(text: &str, remote: &Remote, sets: &[String]) -> RunPlan {
    let loaded = load_text("remote.toml", text, sets).expect("the scenario is right");
    RunPlan {
        scenario: loaded.scenario,
        sha256: loaded.sha256,
        overrides: sets.to_vec(),
        engine: Engine::Live,
        target: Target::Remote(Arc::new(remote.clone())),
        transport: Transport::Tcp,
        threads: None,
        replay: String::new(),
    }
}

fn go() -> AtomicBool {
    AtomicBool::new(false)
}

fn run_to_the_end(bench: &Bench, remote: &Remote, set: &[&str]) -> RunRecord {
    bench.run(remote, &go(), set).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

fn assert_clean(bench: &Bench, remote: &Remote) {
    let left = Cleaner::new(remote).expect("trusted").find(None).expect("the hub answers");
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(bench.devices(), 1, "the bystander alone is left");
}

#[test]
fn a_rollout_runs_on_a_hub_elsewhere_and_leaves_nothing_but_what_was_there() {
    let bench = Bench::start();
    let before = bench.twin("bystander");
    let remote = Remote { limits: Some((Tier::S3, 20)), ..bench.remote() };
    let record = run_to_the_end(&bench, &remote, &[]);
    assert_eq!(record.verdict, Verdict::Passed, "{:#?}", record.notes);
    assert_eq!((record.devices.converged, record.devices.failed), (30, 0));
    assert_eq!(record.target, "hub my-hub.azure-devices.net by localhost");
    let json = serde_json::to_string(&record).expect("a record is JSON");
    assert!(!json.contains("SharedAccessKey") && !json.contains(&bench.key()), "{json}");
    assert_eq!(bench.twin("bystander"), before, "`*` is for the run's devices alone");
    assert_clean(&bench, &remote);
}

#[test]
fn no_more_is_sent_than_the_limits_let_pass_and_what_waits_is_late() {
    let bench = Bench::start();
    let remote = Remote { limits: Some((Tier::S1, 1)), ..bench.remote() };
    let (steps, _) = SCENARIO.split_once("[[step]]\nconfigure").expect("it has that step");
    let storm = steps.replace("connect = { over = '200ms' }", "connect = { storm = true }");
    let plan = plan_of(&storm, &remote, &["fleet.devices=250".to_owned()]);
    let outcome = engine(Engine::Live)(&plan, &Progress::default(), &go());
    let record = judge(&plan, &outcome.unwrap_or_else(|error| panic!("{}", chain(&error))));
    assert_eq!(record.verdict, Verdict::Passed, "{:#?}", record.notes);
    // A hundred pass at once, and then a hundred in a second.
    let latest = record.connect_latency.corrected.max.expect("devices connected");
    assert!(latest >= 1.4, "{latest} s");
    assert_clean(&bench, &remote);
}

#[test]
fn a_run_that_is_stopped_or_breaks_removes_what_it_has_created() {
    let bench = Bench::start();
    let remote = bench.remote();
    let (progress, stop) = (Progress::default(), go());
    let plan = plan(&remote, &[]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while progress.connected.get() < 10 {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(bench.devices() > 1, "there is something to be removed");
            stop.store(true, Ordering::Relaxed);
        });
        let outcome = engine(Engine::Live)(&plan, &progress, &stop).expect("it was stopped");
        assert_eq!(judge(&plan, &outcome).verdict, Verdict::Interrupted);
    });
    assert_clean(&bench, &remote);

    // Devices cannot be reached: the run breaks after it has created them.
    let lost = Remote { mqtt_port: unused_port(), ..bench.remote() };
    let error = bench.run(&lost, &go(), &[]).expect_err("nobody listens there");
    assert!(chain(&error).contains("for MQTT over TLS"), "{}", chain(&error));
    assert_clean(&bench, &remote);
}

#[test]
fn what_a_run_has_left_is_found_by_its_id_and_removed() {
    let bench = Bench::start();
    for id in ["fleetwave-0badcafe-0000001", "fleetwave-0badcafe-0000002"] {
        bench.create(id, r#"{"fleetwave":{"run":"0badcafe"}}"#);
    }
    // Its tag says so, its id does not: somebody else's.
    bench.create("fleetwave-agent", r#"{"fleetwave":{"run":"0badcafe"}}"#);
    let cleaner = Cleaner::new(&bench.remote()).expect("trusted");
    assert!(cleaner.find(Some("00000000")).expect("the hub answers").is_empty());
    let found = cleaner.find(Some("0badcafe")).expect("the hub answers");
    let left = &found["0badcafe"];
    assert_eq!(left.devices.len(), 2, "{left:?}");
    cleaner.remove(left, |_| {}).expect("the hub lets us");
    assert!(cleaner.find(None).expect("the hub answers").is_empty());
    assert_eq!(bench.devices(), 2, "the bystander and somebody else's");
}

#[test]
fn what_cannot_be_there_is_refused_before_anything_is_created() {
    let bench = Bench::start();
    let remote = bench.remote();
    let refused = bench.run(&remote, &go(), &["grant.channel=c2d"]).expect_err("AMQP is not spoken");
    assert_eq!(refused.exit_code(), 2);
    assert_eq!(bench.devices(), 1);

    let stranger = Remote { ca: None, ..bench.remote() };
    let error = bench.run(&stranger, &go(), &[]).expect_err("the certificate is nobody's");
    assert!(chain(&error).contains("--target-ca"), "{}", chain(&error));
    let wrong =
        Remote { access: bench.access(&Key::from_bytes(*b"another key").to_base64()), ..bench.remote() };
    let error = bench.run(&wrong, &go(), &[]).expect_err("the key is wrong");
    assert!(chain(&error).contains("401"), "{}", chain(&error));
    assert_eq!(bench.devices(), 1);
}

/// A port at which nobody listens.
fn unused_port() -> u16 {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}
