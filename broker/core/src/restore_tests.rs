//! Shards that come back from what they gave to a store: they are what they were, and go on as if nothing had been.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use core::time::Duration;
use fleetwave_protocol::sas::Key;
use fleetwave_protocol::{Instant, Now, WallTime};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::*;

/// A store that loses nothing.
#[derive(Debug, Default)]
pub(crate) struct MemoryStore {
    parts: BTreeMap<u64, Vec<u8>>,
    devices: BTreeMap<u64, Vec<u8>>,
    configurations: BTreeMap<String, Vec<u8>>,
    next: u64,
}

/// Parts as a shard gets them, with a note of which it asked for.
struct Source<'a> {
    parts: &'a BTreeMap<u64, Vec<u8>>,
    asked: BTreeSet<u64>,
    keeps: bool,
}

impl Parts for Source<'_> {
    fn part(&mut self, number: u64) -> Option<(&[u8], bool)> {
        self.asked.insert(number);
        self.parts.get(&number).map(|record| (&record[..], self.keeps))
    }
}

const FIRST: Numbers = Numbers { next: 1, step: 1 };

impl MemoryStore {
    /// Takes over what has changed.
    pub(crate) fn take(&mut self, hub: &mut Hub) {
        assert_eq!(hub.has_changes(), {
            let mut any = false;
            hub.take_changes(|change| {
                any = true;
                self.apply(change);
            });
            any
        });
        assert!(!hub.has_changes());
    }

    fn apply(&mut self, change: Change<'_>) {
        fn put<K: Ord>(map: &mut BTreeMap<K, Vec<u8>>, key: K, record: Option<&[u8]>) {
            match record {
                Some(record) => {
                    map.insert(key, record.to_vec());
                }
                None => {
                    map.remove(&key);
                }
            }
        }
        match change {
            Change::Part { number, record } => {
                assert_ne!(number, 0);
                assert_ne!(
                    record.is_some(),
                    self.parts.contains_key(&number),
                    "a part is written and removed once"
                );
                self.next = self.next.max(number + 1);
                put(&mut self.parts, number, record);
            }
            Change::Device { number, record } => {
                assert_ne!(number, 0);
                self.next = self.next.max(number + 1);
                put(&mut self.devices, number, record);
            }
            Change::Configuration { id, record } => put(&mut self.configurations, id.to_owned(), record),
        }
    }

    /// Makes a shard of what is here, and says which parts it needed.
    pub(crate) fn restore(
        &self,
        options: Options,
        now: Now,
        keeps: bool,
        out: &mut Vec<Output>,
    ) -> (Hub, BTreeSet<u64>) {
        let mut restore = Restore::new(options, Numbers { next: self.next.max(1), step: 1 });
        restore.configurations(self.configurations.values().map(|record| &record[..])).unwrap();
        let mut source = Source { parts: &self.parts, asked: BTreeSet::new(), keeps };
        for (&number, record) in &self.devices {
            restore.device(now, number, record, &mut source).unwrap();
        }
        (restore.finish(now, out), source.asked)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Create { device: usize, edge: bool, keys: bool },
    CreateModule { device: usize, module: usize },
    Delete { device: usize },
    Identity { device: usize, change: usize },
    Connect { device: usize, clean: bool, model: Option<usize> },
    Disconnect { device: usize },
    Subscribe { device: usize, bits: u8 },
    Unsubscribe { device: usize, bits: u8 },
    Report { device: usize, patch: Value },
    Patch { device: usize, patch: Value },
    SendC2d { device: usize, seconds: Option<u64> },
    Acknowledge { device: usize },
    Fetch { device: usize, lock: u128 },
    Settle { device: usize, lock: u128, outcome: Settlement },
    Purge { device: usize },
    Put { id: usize, kind: usize, condition: usize, value: i64 },
    DeleteConfiguration { id: usize },
    Wait { seconds: u64 },
    Restart,
}

const DEVICES: usize = 3;
/// Devices, and two modules of each.
const IDS: usize = 3 * DEVICES;
const MODULE_NAMES: [&str; 2] = ["$edgeAgent", "m"];

fn id_of(device: usize) -> String {
    match device.checked_sub(DEVICES) {
        None => format!("d{device}"),
        Some(module) => format!("d{}/{}", module / 2, MODULE_NAMES[module % 2]),
    }
}

fn object() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        3 => (0..3_i64).prop_map(Value::from),
        1 => prop::num::f64::NORMAL.prop_map(Value::from),
        1 => "[a-z\"\\\\\u{e4}]{0,3}".prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    let member = leaf.prop_recursive(2, 6, 3, |inner| {
        prop::collection::btree_map("[ab]", inner, 0..3)
            .prop_map(|members| Value::Object(members.into_iter().collect()))
    });
    prop::collection::btree_map("[ab]", member, 0..3)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
}

fn step() -> impl Strategy<Value = Step> {
    let any_id = || 0..IDS;
    prop_oneof![
        4 => (0..DEVICES, any::<bool>(), any::<bool>())
            .prop_map(|(device, edge, keys)| Step::Create { device, edge, keys }),
        2 => (0..DEVICES, 0..2_usize).prop_map(|(device, module)| Step::CreateModule { device, module }),
        1 => any_id().prop_map(|device| Step::Delete { device }),
        2 => (any_id(), 0..6_usize).prop_map(|(device, change)| Step::Identity { device, change }),
        4 => (any_id(), any::<bool>(), prop::option::of(0..2_usize))
            .prop_map(|(device, clean, model)| Step::Connect { device, clean, model }),
        2 => any_id().prop_map(|device| Step::Disconnect { device }),
        3 => (any_id(), 1..16_u8).prop_map(|(device, bits)| Step::Subscribe { device, bits }),
        1 => (any_id(), 1..16_u8).prop_map(|(device, bits)| Step::Unsubscribe { device, bits }),
        5 => (any_id(), object()).prop_map(|(device, patch)| Step::Report { device, patch }),
        3 => (any_id(), object()).prop_map(|(device, patch)| Step::Patch { device, patch }),
        4 => (0..DEVICES, prop::option::of(1..10_u64))
            .prop_map(|(device, seconds)| Step::SendC2d { device, seconds }),
        2 => (0..DEVICES).prop_map(|device| Step::Acknowledge { device }),
        2 => (0..DEVICES, 0..3_u128).prop_map(|(device, lock)| Step::Fetch { device, lock }),
        2 => (0..DEVICES, 0..3_u128, settlement())
            .prop_map(|(device, lock, outcome)| Step::Settle { device, lock, outcome }),
        1 => (0..DEVICES).prop_map(|device| Step::Purge { device }),
        3 => (0..3_usize, 0..3_usize, 0..3_usize, 0..3_i64)
            .prop_map(|(id, kind, condition, value)| Step::Put { id, kind, condition, value }),
        1 => (0..3_usize).prop_map(|id| Step::DeleteConfiguration { id }),
        2 => (0..5_u64).prop_map(|seconds| Step::Wait { seconds }),
        2 => Just(Step::Restart),
    ]
}

fn settlement() -> impl Strategy<Value = Settlement> {
    prop_oneof![Just(Settlement::Complete), Just(Settlement::Reject), Just(Settlement::Abandon)]
}

fn configuration(id: usize, kind: usize, condition: usize, value: i64, written: WallTime) -> Configuration {
    let place = if kind == 2 { "whole" } else { "a" };
    let content = json!({ (format!("properties.desired.{place}")): value }).to_string();
    let modules =
        json!({"$edgeAgent": {"properties.desired": {"v": value}}, "m": {"properties.desired.x": value}});
    let condition = ["*", "tags.a = 1", "deviceId = 'd1'"][condition];
    let of_modules = format!("FROM devices.modules WHERE {condition}").replace("WHERE *", "");
    let mut spec = ConfigurationSpec {
        id: &format!("c{id}"),
        priority: 3 - u32::try_from(value).unwrap(),
        target_condition: condition,
        metrics: &[("m", "SELECT deviceId FROM devices WHERE tags.a = 1")],
        labels: r#"{"l":"\u00e4"}"#,
        written,
        ..ConfigurationSpec::default()
    };
    let modules = modules.to_string();
    match kind {
        0 => spec.device_content = &content,
        1 => (spec.module_content, spec.target_condition) = (&content, &of_modules),
        _ => spec.modules_content = &modules,
    }
    Configuration::new(&spec).unwrap()
}

fn keys(name: &str) -> Authentication {
    let key = |which: &str| Key::from_bytes(format!("{name}{which}").into_bytes());
    Authentication::Sas { primary: key("1"), secondary: key("2") }
}

fn identity_change(change: usize) -> IdentityChange {
    let none = IdentityChange::default();
    let thumbprint = |digit: &str| Thumbprint::parse(&digit.repeat(40)).ok();
    match change {
        0 => IdentityChange { enabled: Some(false), status_reason: Some("lost".into()), ..none },
        1 => IdentityChange { enabled: Some(true), ..none },
        2 => IdentityChange { authentication: Some(keys("k")), managed_by: Some("me".into()), ..none },
        3 => {
            let (primary, secondary) = (thumbprint("a"), None);
            let authentication = Some(Authentication::SelfSigned { primary, secondary });
            IdentityChange { authentication, device_scope: Some("scope".into()), ..none }
        }
        4 => IdentityChange { authentication: Some(Authentication::CertificateAuthority), ..none },
        _ => IdentityChange { edge: Some(true), parent_scopes: Some(vec!["p".into(), "q".into()]), ..none },
    }
}

struct Run {
    hub: Hub,
    store: MemoryStore,
    options: Options,
    small: usize,
    now: Now,
    sessions: u32,
    under_way: BTreeMap<usize, Vec<u32>>,
    out: Vec<Output>,
}

impl Run {
    fn new(small: usize, cycle: Cycle) -> Self {
        let options = Options { cycle, c2d_max_deliveries: 2, ..Options::default() };
        let mut hub = Hub::new(options);
        hub.store.sweep_above(small);
        hub.track_changes(FIRST);
        let now = Now { at: Instant::ZERO, wall: WallTime::from_unix_millis(1_000_000) };
        let store = MemoryStore::default();
        Self { hub, store, options, small, now, sessions: 0, under_way: BTreeMap::new(), out: Vec::new() }
    }

    fn pass(&mut self, millis: u64) {
        self.now.at = self.now.at + Duration::from_millis(millis);
        self.now.wall = WallTime::from_unix_millis(self.now.wall.as_unix_millis() + millis);
    }

    fn give(&mut self, input: Input<'_>) {
        self.hub.handle(self.now, input, &mut self.out);
    }

    fn step(&mut self, step: &Step) {
        self.pass(1);
        self.out.clear();
        let find = |hub: &Hub, device: usize| hub.find(&id_of(device));
        let now = self.now;
        match step {
            Step::Create { device, edge, keys: own } => {
                let authentication = if *own { keys("d") } else { Authentication::Derived };
                let identity =
                    Identity { authentication, generation_id: 5, edge: *edge, ..Identity::default() };
                let identity = (*own || *edge).then_some(&identity);
                let spec = DeviceSpec { tags: Some(r#"{"a":1}"#), identity, ..DeviceSpec::default() };
                let _ = self.hub.create_device(now, &id_of(*device), spec);
            }
            Step::CreateModule { device, module } => {
                let id = id_of(DEVICES + 2 * device + module);
                let _ = self.hub.create_device(now, &id, DeviceSpec::default());
            }
            Step::Put { id, kind, condition, value } => {
                let configuration = Arc::new(configuration(*id, *kind, *condition, *value, now.wall));
                self.give(Input::PutConfiguration { configuration, if_match: None });
            }
            Step::DeleteConfiguration { id } => {
                self.give(Input::DeleteConfiguration { id: &format!("c{id}"), if_match: None });
            }
            Step::Wait { seconds } => {
                self.pass(1000 * seconds);
                self.give(Input::Timer);
            }
            Step::Restart => self.restart(),
            Step::Delete { device }
            | Step::Identity { device, .. }
            | Step::Connect { device, .. }
            | Step::Disconnect { device }
            | Step::Subscribe { device, .. }
            | Step::Unsubscribe { device, .. }
            | Step::Report { device, .. }
            | Step::Patch { device, .. }
            | Step::SendC2d { device, .. }
            | Step::Acknowledge { device }
            | Step::Fetch { device, .. }
            | Step::Settle { device, .. }
            | Step::Purge { device } => {
                if let Some(ix) = find(&self.hub, *device) {
                    self.of_device(step, *device, ix);
                }
            }
        }
        for output in &self.out {
            if let Output::C2d { device, delivery, .. } = output {
                let place = (0..IDS).find(|&d| find(&self.hub, d) == Some(*device)).unwrap();
                self.under_way.entry(place).or_default().push(*delivery);
            }
        }
        self.store.take(&mut self.hub);
    }

    fn of_device(&mut self, step: &Step, place: usize, device: DeviceIx) {
        let session = self.hub.twin(device).session;
        match step {
            Step::Delete { .. } => self.give(Input::DeleteDevice { device, if_match: None }),
            Step::Identity { change, .. } => {
                self.give(Input::PutIdentity { device, identity: &identity_change(*change), if_match: None });
            }
            Step::Connect { clean, model, .. } => {
                self.sessions += 1;
                let model = model.map(|model| ["dtmi:a;1", "dtmi:b;1"][model]);
                self.give(Input::Connect { device, session: self.sessions, clean: *clean, model });
            }
            Step::Disconnect { .. } => self.give(Input::Disconnect { device, session }),
            Step::Subscribe { bits, .. } => {
                self.give(Input::Subscribe { device, topics: Topics::from_bits(u64::from(*bits)) });
            }
            Step::Unsubscribe { bits, .. } => {
                self.give(Input::Unsubscribe { device, topics: Topics::from_bits(u64::from(*bits)) });
            }
            Step::Report { patch, .. } => {
                let bytes = patch.to_string().into_bytes();
                self.give(Input::Report { device, base: None, patch: Patch::Json(&bytes) });
            }
            Step::Patch { patch, .. } => {
                let bytes = patch.to_string().into_bytes();
                let (tags, desired) = (Some(&bytes[..]), Some(&bytes[..]));
                self.give(Input::PatchTwin { device, tags, desired, if_match: None });
            }
            Step::SendC2d { seconds, .. } => {
                let expires = seconds.map(|seconds| self.now.wall.as_unix_millis() + 1000 * seconds);
                let message = C2dMessage {
                    message_id: seconds.map(|seconds| seconds.to_string().into()),
                    properties: "a=b".into(),
                    body: [1, 2, 3][..].into(),
                    feedback: Feedback::Full,
                    expires: expires.map(WallTime::from_unix_millis),
                };
                self.give(Input::SendC2d { device, message: Arc::new(message) });
            }
            Step::Acknowledge { .. } => {
                if let Some(delivery) = self.under_way.entry(place).or_default().pop() {
                    self.give(Input::C2dAck { device, delivery });
                }
            }
            Step::Fetch { lock, .. } => self.give(Input::ReceiveC2d { device, lock: *lock }),
            Step::Settle { lock, outcome, .. } => {
                self.give(Input::SettleC2d { device, lock: *lock, outcome: *outcome });
            }
            _ => self.give(Input::PurgeC2d { device }),
        }
    }

    fn restart(&mut self) {
        // An instant means nothing to the next process.
        self.now.at = Instant::from_micros(7);
        let (mut hub, asked) = self.store.restore(self.options, self.now, true, &mut self.out);
        self.store.parts.retain(|number, _| asked.contains(number));
        hub.store.sweep_above(self.small);
        self.hub = hub;
        self.under_way.clear();
    }

    /// All that is durable, by id.
    fn state(&self, hub: &Hub) -> BTreeMap<String, String> {
        let mut state = BTreeMap::new();
        for (ix, device) in hub.registry.iter() {
            let mut json = Vec::new();
            hub.write_service_twin(ix, &mut json);
            let mut twin: Value = serde_json::from_slice(&json).unwrap();
            let view = format!(
                "{:?}",
                IdentityView {
                    connected: false,
                    connection_updated: None,
                    last_activity: None,
                    c2d_waiting: 0,
                    ..hub.identity(ix)
                }
            );
            for name in ["connectionState", "lastActivityTime", "cloudToDeviceMessageCount"] {
                twin[name].take();
            }
            let queue = hub.c2d.get(&ix).map(|queue| queue.durable(self.options.c2d_max_deliveries));
            let rest = (device.lasting(), device.enabled, device.module, device.edge);
            let queue = queue.filter(|queue| !queue.is_empty());
            state.insert(hub.id(ix).to_owned(), format!("{twin} {view} {rest:?} {queue:?}"));
        }
        for view in hub.configurations() {
            let ConfigurationView { configuration, created, updated, etag, writes } = view;
            let counts = hub.configuration_counts(configuration.id());
            let metrics = configuration.metrics().iter().map(|metric| (metric.name(), metric.text()));
            let says = (
                (configuration.priority(), configuration.target_condition(), configuration.content()),
                (configuration.labels(), configuration.schema_version(), metrics.collect::<Vec<_>>()),
                (created, updated, etag, writes),
            );
            state.insert(format!("{}!", configuration.id()), format!("{says:?} {counts:?}"));
        }
        let ids: Vec<_> = hub.registry.iter().map(|(ix, _)| hub.id(ix)).collect();
        state.insert("order".into(), format!("{ids:?}"));
        state
    }

    /// What the store would give back is what is here. With one shard it is written again under the same numbers; one
    /// that does not keep the parts writes all of it anew.
    fn compare(&mut self) {
        for keeps in [true, false] {
            let (mut copy, asked) = self.store.restore(self.options, self.now, keeps, &mut Vec::new());
            assert_eq!(self.state(&self.hub), self.state(&copy));
            let unknown: Vec<_> =
                asked.iter().filter(|number| !self.store.parts.contains_key(number)).collect();
            assert!(unknown.is_empty(), "{unknown:?}");
            let mut second = MemoryStore::default();
            copy.take_changes(|change| match change {
                Change::Part { record: None, .. } | Change::Device { record: None, .. } => {}
                change => second.apply(change),
            });
            // Messages that were delivered for the last time end with a restart, and that is written.
            let most = self.options.c2d_max_deliveries;
            let some_end = self.hub.c2d.values().any(|queue| queue.has_worn(most));
            if keeps && !some_end && self.options.cycle == Cycle::Immediate {
                assert!(second.devices.is_empty() && second.parts.is_empty(), "{second:?}");
            } else if !keeps {
                second.configurations.clone_from(&self.store.configurations);
                let (third, _) = second.restore(self.options, self.now, true, &mut Vec::new());
                assert_eq!(self.state(&self.hub), self.state(&third));
            }
        }
    }

    /// After a sweep the store has nothing that is not here too.
    fn is_tidy(&mut self) {
        self.hub.sweep();
        self.store.take(&mut self.hub);
        let (_, asked) = self.store.restore(self.options, self.now, true, &mut Vec::new());
        // A document may be here for something that has a part of its own.
        let unused: Vec<_> = self
            .store
            .parts
            .keys()
            .filter(|number| !asked.contains(number) && !self.hub.store.has_document(**number))
            .collect();
        assert!(unused.is_empty(), "{unused:?}");
    }
}

fn cycle() -> impl Strategy<Value = Cycle> {
    prop_oneof![2 => Just(Cycle::Immediate), 1 => Just(Cycle::Every(Duration::from_secs(3)))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// After any operations and restarts, what a store was given makes the same shard: twins with their metadata,
    /// identities, modules, configurations, subscriptions that last, queues. So nothing durable changes without the
    /// store hearing of it. Assumes that connections end with a restart.
    #[test]
    fn a_shard_comes_back_as_it_was(
        small in prop::sample::select(vec![8, 40, 1024]),
        cycle in cycle(),
        steps in prop::collection::vec(step(), 1..50),
    ) {
        let mut run = Run::new(small, cycle);
        for step in &steps {
            run.step(step);
            run.compare();
        }
        run.is_tidy();
    }

    #[test]
    fn damaged_records_are_refused_and_do_no_harm(
        steps in prop::collection::vec(step(), 10..30),
        place in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut run = Run::new(1024, Cycle::Immediate);
        steps.iter().for_each(|step| run.step(step));
        let MemoryStore { parts, devices, .. } = &mut run.store;
        let mut records: Vec<_> = parts.values_mut().chain(devices.values_mut()).collect();
        if records.is_empty() {
            return Ok(());
        }
        let place = place.index(records.len());
        let record = &mut *records[place];
        let at = at.index(record.len());
        record[at] = byte;
        let mut restore = Restore::new(run.options, FIRST);
        let configurations = run.store.configurations.values().map(|record| &record[..]);
        restore.configurations(configurations).unwrap();
        let mut source = Source { parts: &run.store.parts, asked: BTreeSet::new(), keeps: true };
        let whole = run.store.devices.iter().all(|(&number, record)| {
            restore.device(run.now, number, record, &mut source).is_ok()
        });
        if whole {
            let _ = restore.finish(run.now, &mut Vec::new());
        }
    }
}

#[test]
fn a_missing_part_is_named() {
    let mut run = Run::new(1024, Cycle::Immediate);
    run.step(&Step::Create { device: 0, edge: false, keys: false });
    run.store.parts.clear();
    let (&number, record) = run.store.devices.first_key_value().unwrap();
    let mut source = Source { parts: &run.store.parts, asked: BTreeSet::new(), keeps: true };
    let error = Restore::new(run.options, FIRST).device(run.now, number, record, &mut source).unwrap_err();
    let RecordError::MissingPart(part) = error else { panic!("{error}") };
    assert_eq!(
        error.to_string(),
        format!("it refers to the part {part}, which is missing or of another kind")
    );
    assert_eq!(device_id(record), Ok("d0"));
}
