//! Random edge deployments and module configurations beside a model that works everything out anew after each step.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::hub_tests::at;
use crate::tree::tests::merge_patch;
use crate::*;

const GATEWAYS: [&str; 3] = ["g0", "g1", "g2"];
const MODULES: [&str; 3] = ["$edgeAgent", "m0", "m1"];

/// What a configuration is.
#[derive(Clone, Debug)]
enum Body {
    /// For modules whose reported `r` is this.
    Modules(i64),
    /// For edge devices whose tag `t` is this; the modules that it has something for. A base says all.
    Edge { tag: i64, base: bool, modules: Vec<usize> },
}

#[derive(Clone, Debug)]
struct Config {
    priority: u32,
    created: usize,
    value: i64,
    body: Body,
}

#[derive(Clone, Debug)]
enum Step {
    Put { id: usize, config: Config },
    Delete { id: usize },
    Tag { gateway: usize, tag: i64 },
    Edge { gateway: usize, edge: bool },
    Report { gateway: usize, module: usize, value: i64 },
    Write { gateway: usize, module: usize, value: i64 },
    Remake { gateway: usize },
}

fn body() -> impl Strategy<Value = Body> {
    let modules = prop::sample::subsequence(vec![1_usize, 2], 0..=2);
    prop_oneof![
        1 => (0..2_i64).prop_map(Body::Modules),
        3 => (0..2_i64, any::<bool>(), modules)
            .prop_map(|(tag, base, modules)| Body::Edge { tag, base, modules }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let gateway = 0..GATEWAYS.len();
    let module = 0..MODULES.len();
    let config = (0..3_u32, 0..3_i64, body()).prop_map(|(priority, value, body)| Config {
        priority,
        created: 0,
        value,
        body,
    });
    prop_oneof![
        4 => (0..4_usize, config).prop_map(|(id, config)| Step::Put { id, config }),
        1 => (0..4_usize).prop_map(|id| Step::Delete { id }),
        2 => (gateway.clone(), 0..2_i64).prop_map(|(gateway, tag)| Step::Tag { gateway, tag }),
        1 => (gateway.clone(), any::<bool>()).prop_map(|(gateway, edge)| Step::Edge { gateway, edge }),
        2 => (gateway.clone(), module.clone(), 0..2_i64)
            .prop_map(|(gateway, module, value)| Step::Report { gateway, module, value }),
        1 => (gateway.clone(), module, 0..3_i64)
            .prop_map(|(gateway, module, value)| Step::Write { gateway, module, value }),
        1 => gateway.prop_map(|gateway| Step::Remake { gateway }),
    ]
}

#[derive(Clone, Debug, Default)]
struct Module {
    own: Map<String, Value>,
    reported: Option<i64>,
}

#[derive(Clone, Debug, Default)]
struct Gateway {
    edge: bool,
    tag: Option<i64>,
    modules: BTreeMap<&'static str, Module>,
}

/// All that there is, as plain values.
#[derive(Default)]
struct Model {
    gateways: Vec<Gateway>,
    configs: BTreeMap<usize, Config>,
    created: usize,
}

impl Model {
    fn in_order(&self) -> Vec<&Config> {
        let mut configs: Vec<_> = self.configs.values().collect();
        configs.sort_by_key(|config| (config.priority, config.created));
        configs
    }

    /// The deployments that apply to a gateway, in rising order.
    fn deployments(&self, gateway: &Gateway) -> Vec<&Config> {
        let targets = |config: &&Config| matches!(config.body, Body::Edge { tag, .. } if gateway.edge && gateway.tag == Some(tag));
        let all: Vec<_> = self.in_order().into_iter().filter(targets).collect();
        let base = all.iter().rposition(|config| matches!(config.body, Body::Edge { base: true, .. }));
        base.map_or(Vec::new(), |base| all[base..].to_vec())
    }

    fn make_modules(&mut self) {
        for place in 0..self.gateways.len() {
            let mut names = Vec::new();
            for config in self.deployments(&self.gateways[place]) {
                let Body::Edge { base, modules, .. } = &config.body else { continue };
                names.extend(modules.iter().map(|&module| MODULES[module]));
                names.extend(base.then_some(MODULES[0]));
            }
            for name in names {
                self.gateways[place].modules.entry(name).or_default();
            }
        }
    }

    fn desired(&self, gateway: &Gateway, name: &str, module: &Module) -> Value {
        let deployments = self.deployments(gateway);
        let mut desired = module.own.clone();
        for config in self.in_order() {
            match &config.body {
                Body::Modules(reported) if module.reported == Some(*reported) => {
                    desired.insert("x".into(), json!(config.value));
                }
                Body::Modules(_) => {}
                Body::Edge { base, modules, .. } => {
                    let applies = deployments.iter().any(|other| other.created == config.created);
                    let named =
                        name == MODULES[0] && *base || modules.iter().any(|&module| MODULES[module] == name);
                    if !applies || !named {
                        continue;
                    }
                    if *base {
                        desired.clear();
                        desired.insert("all".into(), json!(config.value));
                    } else {
                        desired.insert("x".into(), json!({"layer": config.value}));
                    }
                }
            }
        }
        Value::Object(desired)
    }
}

fn spec_of(config: &Config) -> (String, String, String) {
    match &config.body {
        Body::Modules(reported) => (
            format!("FROM devices.modules WHERE properties.reported.r = {reported}"),
            json!({"properties.desired.x": config.value}).to_string(),
            String::new(),
        ),
        Body::Edge { tag, base, modules } => {
            let mut content = Map::new();
            for &module in modules {
                let (path, value) = if *base {
                    ("properties.desired", json!({"all": config.value}))
                } else {
                    ("properties.desired.x", json!({"layer": config.value}))
                };
                content.insert(MODULES[module].into(), json!({path: value}));
            }
            if *base {
                content.insert(MODULES[0].into(), json!({"properties.desired": {"all": config.value}}));
            }
            (format!("tags.t = {tag}"), String::new(), Value::Object(content).to_string())
        }
    }
}

/// Whether a configuration says anything.
fn is_given(config: &Config) -> bool {
    !matches!(&config.body, Body::Edge { base: false, modules, .. } if modules.is_empty())
}

struct Run {
    hub: Hub,
    model: Model,
    /// What the module that is called so has heard.
    heard: BTreeMap<String, Value>,
}

impl Run {
    fn new(small: usize) -> Self {
        let mut hub = Hub::new(Options::default());
        hub.store.sweep_above(small);
        let mut run = Self { hub, model: Model::default(), heard: BTreeMap::new() };
        for name in GATEWAYS {
            run.make(name);
            run.model.gateways.push(fresh());
        }
        run.compare();
        run
    }

    fn make(&mut self, name: &str) {
        let identity = Identity { edge: true, ..Identity::default() };
        let spec = DeviceSpec { identity: Some(&identity), ..DeviceSpec::default() };
        self.hub.create_device(at(0), name, spec).unwrap();
    }

    fn give(&mut self, input: Input<'_>) {
        let mut out = Vec::new();
        self.hub.handle(at(1), input, &mut out);
        for output in out {
            if let Output::Desired { device, patch, .. } = output {
                let heard = self.heard.get_mut(self.hub.id(device)).unwrap();
                let patch = serde_json::from_str(patch.text()).unwrap();
                *heard = merge_patch(heard.take(), &patch);
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Put { id, config } if is_given(config) => {
                let (condition, module_content, modules_content) = spec_of(config);
                let configuration = Configuration::new(&ConfigurationSpec {
                    id: &format!("c{id}"),
                    priority: config.priority,
                    target_condition: &condition,
                    module_content: &module_content,
                    modules_content: &modules_content,
                    ..ConfigurationSpec::default()
                });
                let configuration = Arc::new(configuration.unwrap());
                self.give(Input::PutConfiguration { configuration, if_match: None });
                self.model.created += 1;
                let created = self.model.configs.get(id).map_or(self.model.created, |old| old.created);
                self.model.configs.insert(*id, Config { created, ..config.clone() });
            }
            Step::Put { .. } => {}
            Step::Delete { id } => {
                self.give(Input::DeleteConfiguration { id: &format!("c{id}"), if_match: None });
                self.model.configs.remove(id);
            }
            Step::Tag { gateway, tag } => {
                let device = self.hub.find(GATEWAYS[*gateway]).unwrap();
                let tags = json!({"t": tag}).to_string();
                let tags = Some(tags.as_bytes());
                self.give(Input::PatchTwin { device, tags, desired: None, if_match: None });
                self.model.gateways[*gateway].tag = Some(*tag);
            }
            Step::Edge { gateway, edge } => {
                let device = self.hub.find(GATEWAYS[*gateway]).unwrap();
                let identity = &IdentityChange { edge: Some(*edge), ..IdentityChange::default() };
                self.give(Input::PutIdentity { device, identity, if_match: None });
                self.model.gateways[*gateway].edge = *edge;
            }
            Step::Report { gateway, module, value } => {
                let name = format!("{}/{}", GATEWAYS[*gateway], MODULES[*module]);
                let Some(device) = self.hub.find(&name) else { return };
                let patch = json!({"r": value}).to_string();
                self.give(Input::Report { device, base: None, patch: Patch::Json(patch.as_bytes()) });
                let module = self.model.gateways[*gateway].modules.get_mut(MODULES[*module]).unwrap();
                module.reported = Some(*value);
            }
            Step::Write { gateway, module, value } => {
                let name = format!("{}/{}", GATEWAYS[*gateway], MODULES[*module]);
                let Some(device) = self.hub.find(&name) else { return };
                let desired = json!({"own": value}).to_string();
                let desired = Some(desired.as_bytes());
                self.give(Input::PatchTwin { device, tags: None, desired, if_match: None });
                let module = self.model.gateways[*gateway].modules.get_mut(MODULES[*module]).unwrap();
                module.own.insert("own".into(), json!(value));
            }
            Step::Remake { gateway } => {
                let device = self.hub.find(GATEWAYS[*gateway]).unwrap();
                self.give(Input::DeleteDevice { device, if_match: None });
                let prefix = format!("{}/", GATEWAYS[*gateway]);
                self.heard.retain(|name, _| !name.starts_with(&prefix));
                self.make(GATEWAYS[*gateway]);
                self.model.gateways[*gateway] = fresh();
            }
        }
        self.model.make_modules();
        self.compare();
    }

    fn compare(&mut self) {
        let mut counts: BTreeMap<usize, Counts> = BTreeMap::new();
        for (place, gateway) in self.model.gateways.iter().enumerate() {
            let device = self.hub.find(GATEWAYS[place]).unwrap();
            assert_eq!(self.hub.modules_of(device).len(), gateway.modules.len());
            let applied: Vec<_> =
                self.model.deployments(gateway).iter().map(|config| config.created).collect();
            for (&id, config) in &self.model.configs {
                let count = counts.entry(id).or_default();
                match config.body {
                    Body::Edge { tag, .. } if gateway.edge && gateway.tag == Some(tag) => {
                        count.targeted += 1;
                        count.applied += u64::from(applied.contains(&config.created));
                    }
                    Body::Edge { .. } => {}
                    Body::Modules(reported) => {
                        let hits = |module: &&Module| module.reported == Some(reported);
                        count.targeted += gateway.modules.values().filter(hits).count() as u64;
                    }
                }
            }
            for (name, module) in &gateway.modules {
                let id = format!("{}/{name}", GATEWAYS[place]);
                let desired = self.model.desired(gateway, name, module);
                let ix = self.hub.find(&id).unwrap();
                let found: Value = serde_json::from_str(self.hub.twin(ix).desired.text()).unwrap();
                assert_eq!(found, desired, "{id}");
                match self.heard.get(&id) {
                    Some(heard) => assert_eq!(*heard, desired, "{id}"),
                    // It comes as soon as it is there, and reads its twin.
                    None => {
                        let mut out = Vec::new();
                        let input = Input::Connect { device: ix, session: 1, clean: true, model: None };
                        self.hub.handle(at(1), input, &mut out);
                        let input = Input::Subscribe { device: ix, topics: Topics::DESIRED };
                        self.hub.handle(at(1), input, &mut out);
                        self.heard.insert(id, desired);
                    }
                }
            }
        }
        for (id, expected) in counts {
            let found = self.hub.configuration_counts(&format!("c{id}")).unwrap();
            assert_eq!(found.targeted, expected.targeted, "c{id}");
            if matches!(self.model.configs[&id].body, Body::Edge { .. }) {
                assert_eq!(found.applied, expected.applied, "c{id}");
            }
        }
    }
}

/// An edge device that has just been made.
fn fresh() -> Gateway {
    let modules = ["$edgeAgent", "$edgeHub"].map(|name| (name, Module::default()));
    Gateway { edge: true, tag: None, modules: modules.into() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// After any operations, the modules that there are, their desired properties, what each has heard, and the counts
    /// are the model's. Assumes configurations that are evaluated at once.
    #[test]
    fn deployments_do_what_the_model_does(
        small in prop::sample::select(vec![8_usize, 40, 1024]),
        steps in prop::collection::vec(step(), 1..50),
    ) {
        let mut run = Run::new(small);
        for step in &steps {
            run.step(step);
        }
    }
}
