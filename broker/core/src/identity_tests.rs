//! Identities, modules, and what configurations and services do with them.

use std::sync::Arc;

use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::Key;
use serde_json::{Value, json};

use crate::hub_tests::{Bench, at, code};
use crate::*;

fn keys(name: &str) -> Authentication {
    let key = |which: &str| Key::from_bytes(format!("{name}-{which}").into_bytes());
    Authentication::Sas { primary: key("primary"), secondary: key("secondary") }
}

impl Bench {
    fn make(&mut self, id: &str, identity: &Identity) -> DeviceIx {
        let spec = DeviceSpec { identity: Some(identity), ..DeviceSpec::default() };
        self.hub.create_device(at(self.now), id, spec).unwrap()
    }

    fn module(&mut self, name: &str) -> DeviceIx {
        let identity = Identity { authentication: keys(name), generation_id: 7, ..Identity::default() };
        self.make(&format!("dev-0000001/{name}"), &identity)
    }

    fn refused(&mut self, id: &str, spec: DeviceSpec<'_>) -> ErrorCode {
        self.hub.create_device(at(self.now), id, spec).unwrap_err().code
    }

    fn come(&mut self, device: DeviceIx, session: u32) -> Vec<Output> {
        self.give(Input::Connect { device, session, clean: false, model: None })
    }

    fn change(&mut self, device: DeviceIx, identity: &IdentityChange, if_match: Option<&str>) -> Vec<Output> {
        self.give(Input::PutIdentity { device, identity, if_match })
    }

    fn configure(&mut self, spec: &ConfigurationSpec<'_>) -> Vec<Output> {
        let configuration = Arc::new(Configuration::new(spec).unwrap());
        self.give(Input::PutConfiguration { configuration, if_match: None })
    }

    fn apply(&mut self, device: DeviceIx, content: &Value) -> Vec<Output> {
        self.give(Input::ApplyContent { device, content: content.to_string().as_bytes() })
    }

    fn twin(&self, device: DeviceIx) -> Value {
        let mut json = Vec::new();
        self.hub.write_service_twin(device, &mut json);
        serde_json::from_slice(&json).unwrap()
    }

    fn desired_of(&self, device: DeviceIx) -> &str {
        self.hub.twin(device).desired.text()
    }

    fn find(&self, id: &str) -> DeviceIx {
        self.hub.find(id).unwrap()
    }
}

fn ok(out: &[Output]) {
    assert!(matches!(out.first(), Some(Output::Service(Ok(_)))), "{out:?}");
}

fn closed(out: &[Output]) -> Vec<(u32, CloseReason)> {
    out.iter()
        .filter_map(|output| match output {
            Output::Close { session, reason, .. } => Some((*session, *reason)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_twin_tells_who_it_is_of_as_iot_hub_does() {
    let mut bench = Bench::new();
    let digits = "A361EA6A7119A8B0B7BBFFA2EAFDAD1F9D5BED8C";
    let identity = Identity {
        authentication: Authentication::SelfSigned {
            primary: Some(Thumbprint::parse(digits).unwrap()),
            secondary: None,
        },
        generation_id: 637_121_074_930_370_650,
        status_reason: Some("new".into()),
        ..Identity::default()
    };
    let device = bench.make("dev-2", &identity);
    let twin = bench.twin(device);
    assert_eq!(twin["authenticationType"], "selfSigned");
    assert_eq!(twin["x509Thumbprint"], json!({"primaryThumbprint": digits, "secondaryThumbprint": null}));
    assert_eq!((&twin["statusReason"], &twin["modelId"]), (&json!("new"), &json!("")));
    assert_eq!(twin["statusUpdateTime"], "0001-01-01T00:00:00Z");
    assert_eq!(twin["lastActivityTime"], "0001-01-01T00:00:00Z");
    assert_eq!(twin["capabilities"], json!({"iotEdge": false}));
    assert_eq!(twin["deviceEtag"], bench.hub.identity(device).etag.to_string());
    let model = Some("dtmi:com:example:Thermostat;1");
    bench.give(Input::Connect { device, session: 1, clean: true, model });
    let twin = bench.twin(device);
    assert_eq!((&twin["modelId"], &twin["connectionState"]), (&json!(model), &json!("Connected")));
    assert_eq!(bench.hub.identity(device).connection_updated, Some(at(0).wall));
    bench.come(device, 2);
    assert_eq!(bench.twin(device)["modelId"], "", "the model is that of the last connection");
}

#[test]
fn a_derived_identity_takes_no_memory_and_is_still_complete() {
    let bench = Bench::new();
    let identity = bench.hub.identity(bench.device);
    assert_eq!(*identity.authentication, Authentication::Derived);
    assert_eq!(identity.generation_id.to_string().len(), 18);
    assert!(bench.hub.identities.is_empty());
    assert_eq!(bench.twin(bench.device)["authenticationType"], "sas");
}

#[test]
fn an_identity_is_written_only_with_its_own_etag_which_the_twin_does_not_change() {
    let mut bench = Bench::new();
    let device = bench.device;
    let first = bench.hub.identity(device).etag.to_string();
    bench.give(Input::PatchTwin { device, tags: Some(b"{\"a\":1}"), desired: None, if_match: None });
    let new = IdentityChange { authentication: Some(keys("new")), ..IdentityChange::default() };
    let out = bench.change(device, &new, Some(&format!("\"{first}\"")));
    let [Output::Service(Ok(Done::IdentityPut { etag }))] = out[..] else { panic!("{out:?}") };
    assert_eq!(
        (etag, *bench.hub.identity(device).authentication == keys("new")),
        (bench.hub.identity(device).etag, true)
    );
    assert_eq!(code(&bench.change(device, &new, Some(&first))), ErrorCode::PreconditionFailed);
    for force in [None, Some("*"), Some("\"*\"")] {
        ok(&bench.change(device, &new, force));
    }
    let twin_etag = bench.hub.twin(device).etag.to_string();
    for (if_match, expected) in
        [(first, false), (twin_etag, false), (bench.hub.identity(device).etag.to_string(), true)]
    {
        let out = bench.give(Input::DeleteDevice { device, if_match: Some(&if_match) });
        assert_eq!(matches!(out[..], [Output::Service(Ok(_))]), expected, "{if_match}");
    }
}

#[test]
fn a_status_has_a_reason_and_a_time_and_new_keys_leave_a_connection_alone() {
    let mut bench = Bench::new();
    let device = bench.device;
    bench.come(device, 1);
    bench.now = 5000;
    let change = IdentityChange {
        authentication: Some(keys("new")),
        enabled: Some(true),
        status_reason: Some("checked".into()),
        ..IdentityChange::default()
    };
    let out = bench.change(device, &change, None);
    assert_eq!(closed(&out), []);
    let identity = bench.hub.identity(device);
    assert_eq!((identity.status_reason, identity.status_updated), (Some("checked"), None));
    let change = IdentityChange {
        enabled: Some(false),
        status_reason: Some(String::new()),
        ..IdentityChange::default()
    };
    assert_eq!(closed(&bench.change(device, &change, None)), [(1, CloseReason::Disabled)]);
    let identity = bench.hub.identity(device);
    assert_eq!((identity.status_reason, identity.status_updated), (None, Some(at(5000).wall)));
    let long = IdentityChange { status_reason: Some("x".repeat(129)), ..IdentityChange::default() };
    assert_eq!(code(&bench.change(device, &long, None)), ErrorCode::ArgumentInvalid);
}

#[test]
fn a_module_needs_its_device_and_a_name_of_its_own() {
    let mut bench = Bench::new();
    let plain = DeviceSpec::default();
    let (device, module) = (bench.device, bench.module("m"));
    assert_eq!(bench.hub.modules_of(device), [module]);
    assert_eq!((bench.hub.parent_of(module), bench.hub.parent_of(device)), (Some(device), None));
    assert_eq!(bench.refused("dev-0000001/m", plain), ErrorCode::ModuleAlreadyExistsOnDevice);
    assert_eq!(bench.refused("nobody/m", plain), ErrorCode::DeviceNotFound);
    assert_eq!(bench.refused("dev-0000001/a b", plain), ErrorCode::ArgumentInvalid);
    assert_eq!(bench.refused("dev-0000001/", plain), ErrorCode::ArgumentInvalid);
    assert_eq!(bench.refused("dev-0000001/m/n", plain), ErrorCode::CannotRegisterModuleToModule);
    assert_eq!(
        bench.refused("dev-0000001/n", DeviceSpec { enabled: false, ..plain }),
        ErrorCode::ArgumentInvalid
    );
    let missing = |id| bench.hub.locate(id).unwrap_err().code;
    assert_eq!(bench.hub.locate("dev-0000001/m"), Ok(module));
    assert_eq!(missing("dev-0000001/n"), ErrorCode::ModuleNotFound);
    assert_eq!([missing("nobody/m"), missing("nobody")], [ErrorCode::DeviceNotFound; 2]);
    for number in 1..limits::MODULES {
        bench.module(&format!("m{number}"));
    }
    assert_eq!(bench.refused("dev-0000001/more", plain), ErrorCode::TooManyModulesOnDevice);
    assert_eq!((bench.hub.len(), bench.hub.modules_len()), (1, limits::MODULES));
    let longest = "x".repeat(128);
    let device = bench.hub.create_device(at(0), &longest, plain).unwrap();
    let id = format!("{longest}/{longest}");
    let module = bench.hub.create_device(at(0), &id, plain).unwrap();
    assert_eq!((bench.hub.id(module), bench.hub.parent_of(module)), (&*id, Some(device)));
}

#[test]
fn devices_and_modules_are_listed_apart_and_page_by_page() {
    let mut bench = Bench::new();
    let mut made = vec![bench.device];
    for number in 0..6 {
        let module = bench.module(&format!("m{number}"));
        let device = bench.hub.create_device(at(0), &format!("d{number}"), DeviceSpec::default()).unwrap();
        made.push(device);
        if number == 3 {
            bench.give(Input::DeleteDevice { device: module, if_match: None });
            bench.give(Input::DeleteDevice { device, if_match: None });
            made.pop();
        }
    }
    let (mut pages, mut cursor) = (Vec::new(), DeviceIx::from_index(0));
    loop {
        let page: Vec<_> = bench.hub.devices_from(cursor).take(2).collect();
        let Some(last) = page.last() else { break };
        cursor = last.next();
        pages.extend(page);
    }
    assert_eq!(pages, made);
    assert_eq!(bench.hub.devices().collect::<Vec<_>>(), made);
    assert_eq!((bench.hub.modules().count(), bench.hub.modules_len()), (5, 5));
    bench.come(made[1], 1);
    bench.come(bench.find("dev-0000001/m0"), 1);
    bench.give(Input::SetStatus { device: made[2], enabled: false });
    let expected = Statistics { total: 6, enabled: 5, disabled: 1, connected: 1 };
    assert_eq!(bench.hub.statistics(), expected);
}

#[test]
fn a_module_has_a_twin_a_session_and_methods_of_its_own() {
    let mut bench = Bench::new();
    let (device, module) = (bench.device, bench.module("m"));
    bench.come(device, 1);
    bench.come(module, 2);
    bench.give(Input::Subscribe { device: module, topics: Topics::ALL });
    let patch = Patch::Json(br#"{"a":1}"#);
    bench.give(Input::Report { device: module, base: None, patch });
    let out = bench.give(Input::PatchTwin {
        device: module,
        tags: None,
        desired: Some(br#"{"b":2}"#),
        if_match: None,
    });
    assert!(matches!(out[1], Output::Desired { device, .. } if device == module));
    assert_eq!((bench.hub.twin(device).reported.text(), bench.desired_of(device)), ("{}", "{}"));
    let twin = bench.twin(module);
    assert_eq!((&twin["deviceId"], &twin["moduleId"]), (&json!("dev-0000001"), &json!("m")));
    assert_eq!(twin.get("capabilities"), None);
    let invoke = |tag| Input::InvokeMethod {
        device: module,
        name: "x",
        payload: b"",
        connect_timeout: core::time::Duration::ZERO,
        response_timeout: core::time::Duration::from_secs(1),
        tag,
    };
    assert!(matches!(bench.give(invoke(1))[..], [Output::Method { device, .. }] if device == module));
    let message = Arc::new(C2dMessage::default());
    assert_eq!(code(&bench.give(Input::SendC2d { device: module, message })), ErrorCode::InvalidOperation);
    // Subscriptions outlive the connection, as a device's do.
    bench.give(Input::Disconnect { device: module, session: 2 });
    assert!(matches!(bench.come(module, 3)[..], [Output::Accepted { session_present: true, .. }]));
    assert_eq!(bench.hub.twin(module).topics, Topics::ALL);
    assert!(bench.hub.twin(device).connected);
}

#[test]
fn modules_end_with_their_device_and_wait_while_it_is_disabled() {
    let mut bench = Bench::new();
    let (device, one, two) = (bench.device, bench.module("one"), bench.module("two"));
    for (session, device) in [(1, device), (2, one), (3, two)] {
        bench.come(device, session);
    }
    let out = bench.give(Input::SetStatus { device, enabled: false });
    let by = |reason| [(1, reason), (2, reason), (3, reason)];
    assert_eq!(closed(&out), by(CloseReason::Disabled));
    assert!(matches!(bench.come(one, 4)[..], [Output::Refused { reason: Refusal::Disabled, .. }]));
    assert_eq!(
        code(&bench.give(Input::SetStatus { device: one, enabled: false })),
        ErrorCode::ArgumentInvalid
    );
    bench.give(Input::SetStatus { device, enabled: true });
    for (session, device) in [(1, device), (2, one), (3, two)] {
        assert!(matches!(bench.come(device, session)[..], [Output::Accepted { .. }]));
    }
    bench.give(Input::DeleteDevice { device: two, if_match: None });
    assert_eq!(bench.hub.modules_of(device), [one]);
    assert_eq!(
        code(&bench.give(Input::DeleteDevice { device: two, if_match: None })),
        ErrorCode::ModuleNotFound
    );
    let out = bench.give(Input::DeleteDevice { device, if_match: None });
    assert_eq!(closed(&out), [(1, CloseReason::Deleted), (2, CloseReason::Deleted)]);
    assert_eq!((bench.hub.len(), bench.hub.modules_len(), bench.hub.find("dev-0000001/one")), (0, 0, None));
    assert!(bench.hub.identities.is_empty() && bench.hub.modules.is_empty());
}

#[test]
fn an_edge_device_has_a_scope_and_the_edges_own_modules_without_keys() {
    let mut bench = Bench::new();
    let identity = Identity { edge: true, generation_id: 42, ..Identity::default() };
    let edge = bench.make("gw", &identity);
    let scope = "ms-azure-iot-edge://gw-42";
    let ids: Vec<_> = bench.hub.modules_of(edge).iter().map(|&ix| bench.hub.id(ix)).collect();
    assert_eq!(ids, ["gw/$edgeAgent", "gw/$edgeHub"]);
    let agent = bench.hub.identity(bench.find("gw/$edgeAgent"));
    assert_eq!((agent.authentication, agent.managed_by), (&Authentication::None, Some("iotEdge")));
    let twin = bench.twin(edge);
    assert_eq!((&twin["capabilities"]["iotEdge"], &twin["deviceScope"]), (&json!(true), &json!(scope)));
    let below = Identity { device_scope: Some(scope.into()), ..Identity::default() };
    let leaf = bench.make("leaf", &below);
    assert_eq!(bench.twin(leaf)["parentScopes"], json!([scope]));
    let become_edge = IdentityChange { edge: Some(true), ..IdentityChange::default() };
    let device = bench.device;
    ok(&bench.change(device, &become_edge, None));
    ok(&bench.change(device, &become_edge, None));
    assert_eq!(bench.hub.modules_of(device).len(), 2);
    assert_eq!(
        code(&bench.change(bench.find("gw/$edgeHub"), &become_edge, None)),
        ErrorCode::ArgumentInvalid
    );
}

#[test]
fn configurations_are_for_devices_or_for_modules() {
    let mut bench = Bench::new();
    let (device, module) = (bench.device, bench.module("m"));
    let content = |value| format!(r#"{{"properties.desired.x":{value}}}"#);
    let (for_devices, for_modules) = (content(1), content(2));
    bench.configure(&ConfigurationSpec {
        id: "devices",
        target_condition: "*",
        device_content: &for_devices,
        ..ConfigurationSpec::default()
    });
    let modules = ConfigurationSpec {
        id: "modules",
        target_condition: "from  devices.modules WHERE properties.reported.a = 1 AND deviceId = 'dev-0000001'",
        device_content: "{}",
        module_content: &for_modules,
        modules_content: "{}",
        ..ConfigurationSpec::default()
    };
    bench.configure(&modules);
    for device in [device, module] {
        bench.come(device, 1);
        let patch = Patch::Json(br#"{"a":1}"#);
        bench.give(Input::Report { device, base: None, patch });
    }
    assert_eq!((bench.desired_of(device), bench.desired_of(module)), (r#"{"x":1}"#, r#"{"x":2}"#));
    for id in ["devices", "modules"] {
        assert_eq!(bench.hub.configuration_counts(id), Some(Counts { targeted: 1, applied: 1 }));
    }
    assert_eq!(bench.twin(module)["configurations"], json!({"modules": {"status": "Applied"}}));
    // Without a condition it is for all modules, those that come later too.
    bench.configure(&ConfigurationSpec { target_condition: "FROM devices.modules", ..modules });
    let later = bench.module("later");
    assert_eq!((bench.desired_of(device), bench.desired_of(later)), (r#"{"x":1}"#, r#"{"x":2}"#));
    bench.give(Input::DeleteConfiguration { id: "modules", if_match: None });
    assert_eq!((bench.desired_of(module), bench.desired_of(later)), ("{}", "{}"));
}

#[test]
fn a_configuration_keeps_what_it_was_given_and_has_an_etag() {
    let mut bench = Bench::new();
    let when = WallTime::from_unix_millis;
    let spec = ConfigurationSpec {
        id: "c",
        priority: 3,
        target_condition: "tags.a = 1",
        device_content: r#"{"properties.desired.x":1}"#,
        metrics: &[("done", "SELECT deviceId FROM devices WHERE properties.reported.a = 1")],
        labels: r#"{"App":"Mongo"}"#,
        written: when(1000),
        ..ConfigurationSpec::default()
    };
    bench.configure(&spec);
    let view = bench.hub.configuration("c").unwrap();
    let configuration = view.configuration;
    assert_eq!(configuration.content(), r#"{"deviceContent":{"properties.desired.x":1}}"#);
    assert_eq!((configuration.labels(), configuration.schema_version()), (r#"{"App":"Mongo"}"#, "1.0"));
    assert_eq!((configuration.target_condition(), configuration.priority()), ("tags.a = 1", 3));
    assert_eq!(configuration.metrics()[0].name(), "done");
    assert!(configuration.metrics()[0].text().starts_with("SELECT"));
    assert_eq!((view.created, view.updated, &*view.etag.to_string()), (when(1000), when(1000), "MQ=="));
    let put = |if_match, written| {
        let configuration = Configuration::new(&ConfigurationSpec { written: when(written), ..spec });
        Input::PutConfiguration { configuration: Arc::new(configuration.unwrap()), if_match }
    };
    assert_eq!(code(&bench.give(put(Some("\"Mg==\""), 2000))), ErrorCode::PreconditionFailed);
    ok(&bench.give(put(Some("MQ=="), 2000)));
    let view = bench.hub.configuration("c").unwrap();
    assert_eq!((view.created, view.updated, &*view.etag.to_string()), (when(1000), when(2000), "Mg=="));
    let delete = |if_match| Input::DeleteConfiguration { id: "c", if_match };
    assert_eq!(code(&bench.give(delete(Some("MQ==")))), ErrorCode::PreconditionFailed);
    ok(&bench.give(delete(Some("\"*\""))));
    assert_eq!(code(&bench.give(put(Some("Mg=="), 3000))), ErrorCode::ConfigurationNotFound);
    // One that comes out of a store is as it was.
    bench.configure(&ConfigurationSpec { stored: Some((when(1000), 2)), written: when(2000), ..spec });
    let view = bench.hub.configuration("c").unwrap();
    assert_eq!((view.created, view.updated, view.writes), (when(1000), when(2000), 2));
}

#[test]
fn labels_are_texts() {
    let error = |labels| {
        let spec =
            ConfigurationSpec { id: "c", device_content: "{}", labels, ..ConfigurationSpec::default() };
        Configuration::new(&spec).unwrap_err().code
    };
    for bad in ["[]", "{", r#"{"a":1}"#] {
        assert_eq!(error(bad), ErrorCode::ArgumentInvalid, "{bad}");
    }
}

#[test]
fn content_is_applied_to_a_device_and_its_modules_once_and_whole_or_not_at_all() {
    let mut bench = Bench::new();
    let (device, module) = (bench.device, bench.module("m"));
    for device in [device, module] {
        let desired = Some(br#"{"old":1,"x":{"y":1}}"#.as_slice());
        bench.give(Input::PatchTwin { device, tags: None, desired, if_match: None });
    }
    bench.come(module, 1);
    bench.give(Input::Subscribe { device: module, topics: Topics::DESIRED });
    let out = bench.apply(
        device,
        &json!({
            "deviceContent": {"properties.desired.x": {"z": 2}},
            "modulesContent": {"m": {"properties.desired": {"a": 1}, "properties.desired.b.c": 2}},
        }),
    );
    assert_eq!(bench.desired_of(device), r#"{"old":1,"x":{"z":2}}"#);
    assert_eq!(bench.desired_of(module), r#"{"a":1,"b":{"c":2}}"#);
    let heard = r#"{"a":1,"b":{"c":2},"old":null,"x":null}"#;
    assert!(matches!(&out[1], Output::Desired { patch, version: 3, .. } if patch.text() == heard), "{out:?}");
    let etag = bench.hub.twin(device).etag;
    for (content, expected) in [
        (
            json!({"deviceContent": {"properties.desired.n": 1}, "modulesContent": {"gone": {}}}),
            ErrorCode::ModuleNotFound,
        ),
        (json!({"deviceContent": {"tags.n": 1}}), ErrorCode::InvalidConfigurationContent),
        (json!({"moduleContent": {"properties.desired.n": 1}}), ErrorCode::InvalidConfigurationContent),
        (json!({"surprise": {}}), ErrorCode::InvalidConfigurationContent),
        (json!([]), ErrorCode::InvalidConfigurationContent),
    ] {
        assert_eq!(code(&bench.apply(device, &content)), expected, "{content}");
    }
    assert_eq!(code(&bench.apply(module, &json!({}))), ErrorCode::ArgumentInvalid);
    assert_eq!(bench.hub.twin(device).etag, etag);
}

#[test]
fn a_deployment_to_one_edge_device_makes_the_modules_that_it_names() {
    let mut bench = Bench::new();
    let edge = bench.make("gw", &Identity { edge: true, ..Identity::default() });
    let content = json!({
        "$schema": "http://json.schemastore.org/azure-iot-edge-deployment-2.0",
        "modulesContent": {
            "$edgeAgent": {"properties.desired": {"schemaVersion": "1.0", "modules": {"filter": {}}}},
            "$edgeHub": {"properties.desired": {"schemaVersion": "1.0", "routes": {}}},
            "filter": {"properties.desired": {"threshold": 21}},
        }
    });
    ok(&bench.apply(edge, &content));
    assert_eq!(bench.hub.modules_of(edge).len(), 3);
    assert_eq!(bench.desired_of(bench.find("gw/filter")), r#"{"threshold":21}"#);
    assert_eq!(bench.desired_of(bench.find("gw/$edgeHub")), r#"{"routes":{},"schemaVersion":"1.0"}"#);
}

const AGENT: &str = r#""$edgeAgent":{"properties.desired":{"schemaVersion":"1.0"}}"#;

impl Bench {
    fn deployment(&mut self, id: &str, priority: u32, condition: &str, modules: &str) -> Vec<Output> {
        self.configure(&ConfigurationSpec {
            id,
            priority,
            target_condition: condition,
            modules_content: modules,
            ..ConfigurationSpec::default()
        })
    }

    fn gateway(&mut self, id: &str) -> DeviceIx {
        self.make(id, &Identity { edge: true, generation_id: 1, ..Identity::default() })
    }

    fn filter(&self) -> &str {
        self.desired_of(self.find("gw/filter"))
    }
}

#[test]
fn an_edge_deployment_reaches_the_modules_of_edge_devices_alone() {
    let mut bench = Bench::new();
    let gateway = bench.gateway("gw");
    let base = format!(r#"{{{AGENT},"filter":{{"properties.desired":{{"t":1}}}}}}"#);
    let agent = bench.find("gw/$edgeAgent");
    bench.come(agent, 1);
    bench.give(Input::Subscribe { device: agent, topics: Topics::DESIRED });
    let out = bench.deployment("base", 1, "*", &base);
    let heard = r#"{"schemaVersion":"1.0"}"#;
    assert!(
        matches!(&out[1], Output::Desired { device, patch, .. } if *device == agent && patch.text() == heard),
        "{out:?}"
    );
    assert_eq!(bench.filter(), r#"{"t":1}"#);
    assert_eq!(bench.hub.configuration_counts("base"), Some(Counts { targeted: 1, applied: 1 }));
    assert_eq!(bench.twin(gateway)["configurations"], json!({"base": {"status": "Applied"}}));
    assert_eq!(bench.twin(agent).get("configurations"), None);
    assert!(bench.hub.modules_of(bench.device).is_empty(), "it is no edge device");
    // A device that becomes one, and one that comes later, get it too.
    let edge = |edge| IdentityChange { edge: Some(edge), ..IdentityChange::default() };
    bench.change(bench.device, &edge(true), None);
    bench.gateway("gw-2");
    for module in ["dev-0000001/filter", "gw-2/filter"] {
        assert_eq!(bench.desired_of(bench.find(module)), r#"{"t":1}"#);
    }
    assert_eq!(bench.hub.configuration_counts("base"), Some(Counts { targeted: 3, applied: 3 }));
    bench.change(bench.device, &edge(false), None);
    assert_eq!(bench.desired_of(bench.find("dev-0000001/filter")), "{}");
    bench.give(Input::DeleteConfiguration { id: "base", if_match: None });
    assert_eq!((bench.filter(), bench.desired_of(agent)), ("{}", "{}"));
}

#[test]
fn of_edge_deployments_the_highest_base_applies_with_the_layers_above_it() {
    let mut bench = Bench::new();
    let gateway = bench.gateway("gw");
    let base = |t| format!(r#"{{{AGENT},"filter":{{"properties.desired":{{"t":{t}}}}}}}"#);
    let layer = |name, value| format!(r#"{{"filter":{{"properties.desired.{name}":{value}}}}}"#);
    bench.deployment("below", 3, "*", &layer("x", 3));
    assert_eq!(bench.hub.configuration_counts("below"), Some(Counts { targeted: 1, applied: 0 }));
    assert_eq!(bench.hub.find("gw/filter"), None, "a layer alone is nothing");
    bench.deployment("low", 1, "*", &base(1));
    assert_eq!(bench.filter(), r#"{"t":1,"x":3}"#);
    bench.deployment("high", 5, "tags.a = 1", &base(5));
    bench.deployment("above", 7, "*", &layer("y", 7));
    assert_eq!(bench.filter(), r#"{"t":1,"x":3,"y":7}"#);
    let tag = |tags: &'static [u8]| Input::PatchTwin {
        device: gateway,
        tags: Some(tags),
        desired: None,
        if_match: None,
    };
    bench.give(tag(br#"{"a":1}"#));
    assert_eq!(bench.filter(), r#"{"t":5,"y":7}"#);
    let counts =
        ["low", "below", "high", "above"].map(|id| bench.hub.configuration_counts(id).unwrap().applied);
    assert_eq!(counts, [0, 0, 1, 1]);
    // A report of the module, and a write of its own properties, change nothing of that.
    let module = bench.find("gw/filter");
    bench.come(module, 1);
    bench.give(Input::Report { device: module, base: None, patch: Patch::Json(br#"{"a":1}"#) });
    let own = Some(br#"{"own":1}"#.as_slice());
    bench.give(Input::PatchTwin { device: module, tags: Some(br#"{"b":1}"#), desired: own, if_match: None });
    assert_eq!(bench.filter(), r#"{"t":5,"y":7}"#);
    bench.deployment("high", 5, "tags.a = 1", &base(6));
    assert_eq!(bench.filter(), r#"{"t":6,"y":7}"#);
    bench.give(tag(br#"{"a":2}"#));
    assert_eq!(bench.filter(), r#"{"t":1,"x":3,"y":7}"#);
    // With a base that does not name the module, nothing is deployed to it: what was its own comes back.
    bench.deployment("top", 9, "*", &format!("{{{AGENT}}}"));
    assert_eq!(bench.filter(), r#"{"own":1}"#);
}

#[test]
fn modules_and_devices_with_equal_twins_get_each_their_own_part() {
    let mut bench = Bench::new();
    bench.gateway("gw");
    let modules = format!(
        r#"{{{AGENT},"one":{{"properties.desired":{{"n":1}}}},"two":{{"properties.desired":{{"n":2}}}}}}"#
    );
    bench.deployment("base", 1, "*", &modules);
    bench.configure(&ConfigurationSpec {
        id: "all-modules",
        target_condition: "FROM devices.modules",
        module_content: r#"{"properties.desired.m":true}"#,
        ..ConfigurationSpec::default()
    });
    assert_eq!(
        bench.desired_of(bench.find("gw/one")),
        r#"{"n":1}"#,
        "the deployment is above it and says all"
    );
    assert_eq!(bench.desired_of(bench.find("gw/$edgeHub")), r#"{"m":true}"#);
    bench.configure(&ConfigurationSpec {
        id: "all-modules",
        priority: 2,
        target_condition: "FROM devices.modules",
        module_content: r#"{"properties.desired.m":true}"#,
        ..ConfigurationSpec::default()
    });
    assert_eq!(bench.desired_of(bench.find("gw/one")), r#"{"m":true,"n":1}"#);
    assert_eq!(bench.desired_of(bench.find("gw/two")), r#"{"m":true,"n":2}"#);
    assert_eq!(bench.hub.configuration_counts("all-modules"), Some(Counts { targeted: 4, applied: 4 }));
}

#[test]
fn edge_deployments_wait_for_the_cycle_as_others_do() {
    let cycle = Cycle::Every(core::time::Duration::from_secs(300));
    let mut bench = Bench::with(Options { cycle, ..Options::default() });
    bench.deployment("base", 1, "*", &format!(r#"{{{AGENT},"filter":{{"properties.desired":{{"t":1}}}}}}"#));
    bench.gateway("gw");
    assert_eq!(bench.hub.find("gw/filter"), None);
    bench.now = 300_000;
    bench.give(Input::Timer);
    assert_eq!(bench.filter(), r#"{"t":1}"#);
}

#[test]
fn contents_exclude_each_other_and_name_modules_that_can_be() {
    let spec = ConfigurationSpec { id: "c", target_condition: "*", ..ConfigurationSpec::default() };
    let error = |spec| Configuration::new(&spec).unwrap_err().code;
    let twin = r#"{"properties.desired.x":1}"#;
    for (device_content, module_content, modules_content) in [
        (twin, twin, ""),
        (twin, "", r#"{"m":{}}"#),
        ("", twin, r#"{"m":{}}"#),
        ("", "", ""),
        ("", "", "[1]"),
        ("", "", r#"{"m":1}"#),
        ("", "", r#"{"m":{"properties.desired":1}}"#),
        ("", "", r#"{"m":{"tags.x":1}}"#),
    ] {
        let spec = ConfigurationSpec { device_content, module_content, modules_content, ..spec };
        assert_eq!(error(spec), ErrorCode::InvalidConfigurationContent, "{spec:?}");
    }
    let modules_content = r#"{"a b":{}}"#;
    assert_eq!(error(ConfigurationSpec { modules_content, ..spec }), ErrorCode::ArgumentInvalid);
}
