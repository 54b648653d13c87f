//! Random operations on a hub beside a model that is slow and obviously right: plain JSON values, every
//! configuration evaluated anew for every device after every step.

use std::collections::BTreeMap;
use std::sync::Arc;

use fleetwave_protocol::{Instant, Now, WallTime};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::query::Query;
use crate::restore_tests::MemoryStore;
use crate::tree::tests::merge_patch;
use crate::*;

const DEVICES: usize = 3;

/// A target condition as text and as what it means.
#[derive(Clone, Copy, Debug)]
enum Target {
    All,
    Nobody,
    Device(usize),
    Tag(i64),
    NoTag,
    Reported(i64),
    TagAndReported(i64, i64),
    DeviceOrReported(usize, i64),
    NestedReported(i64),
}

impl Target {
    fn text(self) -> String {
        match self {
            Self::All => "*".into(),
            Self::Nobody => String::new(),
            Self::Device(d) => format!("deviceId = 'd{d}'"),
            Self::Tag(n) => format!("tags.a = {n}"),
            Self::NoTag => "NOT IS_DEFINED(tags.a)".into(),
            Self::Reported(n) => format!("properties.reported.a >= {n}"),
            Self::TagAndReported(n, m) => format!("tags.a = {n} AND properties.reported.b IN [{m}, 'x']"),
            Self::DeviceOrReported(d, n) => format!("(deviceId = \"d{d}\") OR properties.reported.a = {n}"),
            Self::NestedReported(n) => format!("properties.reported.c.a = {n}"),
        }
    }

    fn hits(self, device: usize, twin: &Twin) -> bool {
        match self {
            Self::All => true,
            Self::Nobody => false,
            Self::Device(d) => d == device,
            Self::Tag(n) => twin.tags["a"] == json!(n),
            Self::NoTag => twin.tags.get("a").is_none(),
            Self::Reported(n) => twin.reported["a"].as_i64().is_some_and(|a| a >= n),
            Self::TagAndReported(n, m) => twin.tags["a"] == json!(n) && twin.reported["b"] == json!(m),
            Self::DeviceOrReported(d, n) => d == device || twin.reported["a"] == json!(n),
            Self::NestedReported(n) => twin.reported["c"]["a"] == json!(n),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put { id: usize, priority: u32, target: Target, content: Vec<(&'static str, Value)> },
    Delete { id: usize },
    Report { device: usize, patch: Value },
    Patch { device: usize, tags: Option<Value>, desired: Option<Value> },
    Replace { device: usize, tags: Option<Value>, desired: Option<Value> },
    Connect { device: usize },
    Disconnect { device: usize },
    Restart,
}

fn small_tables() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![8, 40, 1024])
}

fn small() -> impl Strategy<Value = i64> {
    0_i64..3
}

fn object() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![3 => small().prop_map(Value::from), 1 => Just(Value::Null)];
    let member = leaf.prop_recursive(2, 6, 3, |inner| {
        prop::collection::btree_map("[abc]", inner, 0..3)
            .prop_map(|members| Value::Object(members.into_iter().collect()))
    });
    prop::collection::btree_map("[abc]", member, 0..3)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        Just(Target::All),
        Just(Target::Nobody),
        (0..DEVICES).prop_map(Target::Device),
        small().prop_map(Target::Tag),
        Just(Target::NoTag),
        small().prop_map(Target::Reported),
        (small(), small()).prop_map(|(n, m)| Target::TagAndReported(n, m)),
        (0..DEVICES, small()).prop_map(|(d, n)| Target::DeviceOrReported(d, n)),
        small().prop_map(Target::NestedReported),
    ]
}

fn content() -> impl Strategy<Value = Vec<(&'static str, Value)>> {
    let value = prop_oneof![
        small().prop_map(Value::from),
        (small(), small()).prop_map(|(a, b)| json!({"a": a, "b": {"c": b}})),
        Just(json!({})),
    ];
    let paths = prop_oneof![
        Just(vec!["a"]),
        Just(vec!["a.b"]),
        Just(vec!["b"]),
        Just(vec!["a.b", "b"]),
        Just(vec!["a.a", "a.b.c"]),
        Just(vec![]),
    ];
    (paths, prop::collection::vec(value, 2))
        .prop_map(|(paths, values)| paths.into_iter().zip(values).collect())
}

fn step() -> impl Strategy<Value = Step> {
    let device = 0..DEVICES;
    prop_oneof![
        3 => (0..4_usize, 0..3_u32, target(), content())
            .prop_map(|(id, priority, target, content)| Step::Put { id, priority, target, content }),
        1 => (0..4_usize).prop_map(|id| Step::Delete { id }),
        4 => (device.clone(), object()).prop_map(|(device, patch)| Step::Report { device, patch }),
        2 => (device.clone(), prop::option::of(object()), prop::option::of(object()))
            .prop_map(|(device, tags, desired)| Step::Patch { device, tags, desired }),
        1 => (device.clone(), prop::option::of(object()), prop::option::of(object()))
            .prop_map(|(device, tags, desired)| Step::Replace { device, tags, desired }),
        3 => device.clone().prop_map(|device| Step::Connect { device }),
        1 => device.prop_map(|device| Step::Disconnect { device }),
        1 => Just(Step::Restart),
    ]
}

#[derive(Clone, Debug)]
struct Twin {
    tags: Value,
    own: Value,
    desired: Value,
    desired_version: u64,
    desired_meta: Value,
    reported: Value,
    reported_version: u64,
    reported_meta: Value,
    connected: bool,
    /// What the device itself knows of its desired properties, and of which version.
    known: (Value, u64),
}

#[derive(Clone, Debug)]
struct Config {
    priority: u32,
    created: usize,
    target: Target,
    content: Vec<(&'static str, Value)>,
}

/// Metadata of a value that was written all at once.
fn fresh(value: &Value, stamp: &Value) -> Value {
    let mut meta = stamp.clone();
    if let Value::Object(members) = value {
        for (key, value) in members {
            meta[key] = fresh(value, stamp);
        }
    }
    meta
}

/// Metadata after a patch: what it named, and all around that, is new.
fn after_patch(meta: &Value, new: &Value, patch: &Value, stamp: &Value) -> Value {
    let mut result = stamp.clone();
    for (key, value) in new.as_object().into_iter().flatten() {
        result[key] = match patch.get(key) {
            None => meta[key].clone(),
            Some(patch) if patch.is_object() => after_patch(&meta[key], value, patch, stamp),
            Some(_) => fresh(value, stamp),
        };
    }
    result
}

/// Metadata after a change: what differs, and all around that, is new.
fn after_change(meta: &Value, old: &Value, new: &Value, stamp: &Value) -> Value {
    if old == new {
        return meta.clone();
    }
    let (Value::Object(olds), Value::Object(news)) = (old, new) else { return fresh(new, stamp) };
    let mut result = stamp.clone();
    for (key, value) in news {
        result[key] = match olds.get(key) {
            Some(old) => after_change(&meta[key], old, value, stamp),
            None => fresh(value, stamp),
        };
    }
    result
}

fn set_path(object: &mut Value, path: &[&str], value: &Value) {
    if !object.is_object() {
        *object = json!({});
    }
    match path {
        [key] => object[*key] = value.clone(),
        [key, rest @ ..] => {
            let member = object.as_object_mut().unwrap().entry(*key).or_insert(json!({}));
            set_path(member, rest, value);
        }
        [] => unreachable!(),
    }
}

struct Model {
    twins: Vec<Twin>,
    configs: BTreeMap<usize, Config>,
    created: usize,
}

impl Model {
    fn in_order(&self) -> Vec<(usize, &Config)> {
        let mut configs: Vec<_> = self.configs.iter().map(|(&id, config)| (id, config)).collect();
        configs.sort_by_key(|(_, config)| (config.priority, config.created));
        configs
    }

    fn effective(&self, device: usize) -> Value {
        let twin = &self.twins[device];
        let mut desired = twin.own.clone();
        for (_, config) in self.in_order() {
            if config.target.hits(device, twin) {
                for (path, value) in &config.content {
                    set_path(&mut desired, &path.split('.').collect::<Vec<_>>(), value);
                }
            }
        }
        desired
    }

    /// Ids of the configurations that target a device and of those that are applied to it.
    fn statuses(&self, device: usize) -> (Vec<usize>, Vec<usize>) {
        let twin = &self.twins[device];
        let order = self.in_order();
        let hits: Vec<_> = order.into_iter().filter(|(_, config)| config.target.hits(device, twin)).collect();
        let inside = |inner: &str, outer: &str| inner == outer || inner.starts_with(&format!("{outer}."));
        let applied = hits.iter().enumerate().filter(|(place, (_, config))| {
            let higher = || hits[place + 1..].iter().flat_map(|(_, config)| &config.content);
            let taken = |path: &str| higher().any(|(outer, _)| inside(path, outer));
            config.content.is_empty() || config.content.iter().any(|(path, _)| !taken(path))
        });
        let applied = applied.map(|(_, (id, _))| *id).collect();
        (hits.into_iter().map(|(id, _)| id).collect(), applied)
    }
}

fn stamp(now: Now, version: u64) -> Value {
    let at = crate::time_text::Iso8601(now.wall).to_string();
    json!({"$lastUpdated": at, "$lastUpdatedVersion": version})
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

struct Run {
    hub: Hub,
    devices: Vec<DeviceIx>,
    model: Model,
    out: Vec<Output>,
    small: usize,
    store: MemoryStore,
}

impl Run {
    /// `small` says how often tables are swept: with few entries always, with many never.
    fn new(small: usize) -> Self {
        let mut hub = Hub::new(Options::default());
        hub.store.sweep_above(small);
        hub.track_changes(Numbers { next: 1, step: 1 });
        let now = Now::default();
        let devices: Vec<_> = (0..DEVICES)
            .map(|d| hub.create_device(now, &format!("d{d}"), DeviceSpec::default()).unwrap())
            .collect();
        let mut store = MemoryStore::default();
        store.take(&mut hub);
        let empty = || json!({});
        let twin = Twin {
            tags: empty(),
            own: empty(),
            desired: empty(),
            desired_version: 1,
            desired_meta: stamp(now, 1),
            reported: empty(),
            reported_version: 1,
            reported_meta: stamp(now, 1),
            connected: false,
            known: (empty(), 1),
        };
        Self {
            hub,
            devices,
            model: Model { twins: vec![twin; DEVICES], configs: BTreeMap::new(), created: 0 },
            out: Vec::new(),
            small,
            store,
        }
    }

    fn step(&mut self, now: Now, step: &Step) {
        self.out.clear();
        let mut sent: Option<(usize, Value)> = None;
        match step {
            Step::Put { id, priority, target, content } => {
                let (text, name) = (target.text(), format!("c{id}"));
                let device_content: Map<_, _> = content
                    .iter()
                    .map(|(path, value)| (format!("properties.desired.{path}"), value.clone()))
                    .collect();
                let configuration = Configuration::new(&ConfigurationSpec {
                    id: &name,
                    priority: *priority,
                    target_condition: &text,
                    device_content: &Value::Object(device_content).to_string(),
                    ..ConfigurationSpec::default()
                });
                self.hub.handle(
                    now,
                    Input::PutConfiguration {
                        configuration: Arc::new(configuration.unwrap()),
                        if_match: None,
                    },
                    &mut self.out,
                );
                self.model.created += 1;
                let created = self.model.configs.get(id).map_or(self.model.created, |old| old.created);
                let config =
                    Config { priority: *priority, created, target: *target, content: content.clone() };
                self.model.configs.insert(*id, config);
            }
            Step::Delete { id } => {
                self.hub.handle(
                    now,
                    Input::DeleteConfiguration { id: &format!("c{id}"), if_match: None },
                    &mut self.out,
                );
                let known = self.model.configs.remove(id).is_some();
                assert_eq!(matches!(self.out[0], Output::Service(Ok(_))), known);
            }
            Step::Report { device, patch } => {
                let bytes = patch.to_string().into_bytes();
                let input =
                    Input::Report { device: self.devices[*device], base: None, patch: Patch::Json(&bytes) };
                self.hub.handle(now, input, &mut self.out);
                let twin = &mut self.model.twins[*device];
                if twin.connected {
                    let new = merge_patch(twin.reported.clone(), patch);
                    twin.reported_version += 1;
                    let stamp = stamp(now, twin.reported_version);
                    twin.reported_meta = after_patch(&twin.reported_meta, &new, patch, &stamp);
                    twin.reported = new;
                } else {
                    assert!(self.out.is_empty());
                }
            }
            Step::Patch { device, tags, desired } => {
                let bytes =
                    |value: &Option<Value>| value.as_ref().map(|value| value.to_string().into_bytes());
                let (tags_json, desired_json) = (bytes(tags), bytes(desired));
                let input = Input::PatchTwin {
                    device: self.devices[*device],
                    tags: tags_json.as_deref(),
                    desired: desired_json.as_deref(),
                    if_match: None,
                };
                self.hub.handle(now, input, &mut self.out);
                let twin = &mut self.model.twins[*device];
                if let Some(patch) = tags {
                    twin.tags = merge_patch(twin.tags.clone(), patch);
                }
                if let Some(patch) = desired {
                    twin.own = merge_patch(twin.own.clone(), patch);
                    sent = Some((*device, patch.clone())).filter(|_| *patch != json!({}));
                }
            }
            Step::Replace { device, tags, desired } => {
                let bytes =
                    |value: &Option<Value>| value.as_ref().map(|value| value.to_string().into_bytes());
                let (tags_json, desired_json) = (bytes(tags), bytes(desired));
                let input = Input::ReplaceTwin {
                    device: self.devices[*device],
                    tags: tags_json.as_deref(),
                    desired: desired_json.as_deref(),
                    if_match: Some("\"*\""),
                };
                self.hub.handle(now, input, &mut self.out);
                let twin = &mut self.model.twins[*device];
                if let Some(tags) = tags {
                    twin.tags = merge_patch(json!({}), tags);
                }
                if let Some(desired) = desired {
                    twin.own = merge_patch(json!({}), desired);
                }
            }
            Step::Connect { device } => {
                let ix = self.devices[*device];
                self.hub.handle(
                    now,
                    Input::Connect { device: ix, session: 1, clean: true, model: None },
                    &mut self.out,
                );
                self.hub.handle(now, Input::Subscribe { device: ix, topics: Topics::ALL }, &mut self.out);
                let twin = &mut self.model.twins[*device];
                twin.connected = true;
                twin.known = (twin.desired.clone(), twin.desired_version);
            }
            Step::Disconnect { device } => {
                let input = Input::Disconnect { device: self.devices[*device], session: 1 };
                self.hub.handle(now, input, &mut self.out);
                self.model.twins[*device].connected = false;
            }
            Step::Restart => {
                let (mut hub, _) = self.store.restore(Options::default(), now, true, &mut self.out);
                hub.store.sweep_above(self.small);
                self.hub = hub;
                self.model.twins.iter_mut().for_each(|twin| twin.connected = false);
            }
        }
        self.store.take(&mut self.hub);
        self.settle(now, sent.as_ref());
        self.devices_follow();
        self.compare();
    }

    /// Evaluates every configuration for every device.
    fn settle(&mut self, now: Now, sent: Option<&(usize, Value)>) {
        for device in 0..DEVICES {
            let new = self.model.effective(device);
            let twin = &mut self.model.twins[device];
            let patch =
                sent.filter(|(to, patch)| *to == device && merge_patch(twin.desired.clone(), patch) == new);
            if patch.is_none() && new == twin.desired {
                continue;
            }
            twin.desired_version += 1;
            let stamp = stamp(now, twin.desired_version);
            twin.desired_meta = match patch {
                Some((_, patch)) => after_patch(&twin.desired_meta, &new, patch, &stamp),
                None => after_change(&twin.desired_meta, &twin.desired, &new, &stamp),
            };
            twin.desired = new;
        }
    }

    /// Each device applies the patches that it gets: exactly one for each version.
    fn devices_follow(&mut self) {
        for output in &self.out {
            if let Output::Desired { device, version, patch } = output {
                let twin = &mut self.model.twins[device.index()];
                assert!(twin.connected);
                assert_eq!(*version, twin.known.1 + 1);
                twin.known = (merge_patch(twin.known.0.clone(), &parse(patch.text())), *version);
                let mut body = Vec::new();
                patch.write(*version, &mut body);
                assert_eq!(body.len(), patch.len(*version));
                assert_eq!(parse(std::str::from_utf8(&body).unwrap())["$version"], json!(version));
            }
        }
    }

    fn compare(&self) {
        let mut counts: BTreeMap<usize, Counts> =
            self.model.configs.keys().map(|&id| (id, Counts::default())).collect();
        for (device, twin) in self.model.twins.iter().enumerate() {
            let ix = self.devices[device];
            let mut json = Vec::new();
            self.hub.write_service_twin(ix, &mut json);
            let mut seen: Value = serde_json::from_slice(&json).unwrap();
            assert_eq!(seen["tags"], twin.tags);
            let section = |value: &Value, meta: &Value, version: u64| {
                let mut section = value.clone();
                section["$metadata"] = meta.clone();
                section["$version"] = json!(version);
                section
            };
            let properties = seen["properties"].take();
            assert_eq!(
                properties["desired"],
                section(&twin.desired, &twin.desired_meta, twin.desired_version)
            );
            assert_eq!(
                properties["reported"],
                section(&twin.reported, &twin.reported_meta, twin.reported_version)
            );
            if twin.connected {
                assert_eq!(twin.known, (twin.desired.clone(), twin.desired_version));
            }

            let mut json = Vec::new();
            self.hub.write_device_twin(ix, &mut json);
            assert_eq!(json.len(), self.hub.device_twin_len(ix));

            let (targeted, applied) = self.model.statuses(device);
            for id in &targeted {
                counts.get_mut(id).unwrap().targeted += 1;
                let status = if applied.contains(id) { "Applied" } else { "Targeted" };
                assert_eq!(seen["configurations"][format!("c{id}")]["status"], status);
            }
            for id in applied {
                counts.get_mut(&id).unwrap().applied += 1;
            }
        }
        for (id, counts) in counts {
            assert_eq!(self.hub.configuration_counts(&format!("c{id}")), Some(counts));
            let applied = format!("SELECT * FROM devices WHERE configurations.c{id}.status = 'Applied'");
            assert_eq!(self.hub.count_where(&Query::parse(&applied).unwrap()), counts.applied);
        }
        let query = Query::parse("SELECT * FROM devices WHERE deviceId = 'd1' OR deviceId = 'd2'").unwrap();
        assert_eq!(self.hub.count_where(&query), 2);
        let high = self.model.twins.iter().filter(|twin| twin.desired["a"].as_i64().is_some_and(|a| a > 0));
        let query = Query::parse("SELECT deviceId FROM devices WHERE properties.desired.a > 0").unwrap();
        assert_eq!(self.hub.count_where(&query), high.count() as u64);
    }
}

fn now(step: usize) -> Now {
    let step = step as u64 + 1;
    Now { at: Instant::from_micros(step * 1000), wall: WallTime::from_unix_millis(step) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// After any operations, twins, versions, metadata, counts and what devices have heard are the model's. Assumes
    /// configurations that are evaluated at once, and operations that each take a millisecond.
    #[test]
    fn a_hub_does_what_the_model_does(small in small_tables(), steps in prop::collection::vec(step(), 1..60)) {
        let mut run = Run::new(small);
        for (place, step) in steps.iter().enumerate() {
            run.step(now(place), step);
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]

    /// The same operations give the same outputs.
    #[test]
    fn a_hub_is_deterministic(small in small_tables(), steps in prop::collection::vec(step(), 1..60)) {
        let play = || {
            let mut run = Run::new(small);
            let log = |(place, step)| {
                run.step(now(place), step);
                format!("{:?}", run.out)
            };
            steps.iter().enumerate().map(log).collect::<Vec<_>>()
        };
        prop_assert_eq!(play(), play());
    }
}
