//! Whatever JSON a service or a device sends into the core is taken or refused, and twins stay JSON.
#![no_main]

use std::sync::Arc;

use fleetwave_hub_core::{Configuration, ConfigurationSpec, DeviceSpec, Hub, Input, Options, Patch, Topics};
use fleetwave_protocol::Now;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str, &str)| {
    let (first, second, third) = input;
    let now = Now::default();
    let mut hub = Hub::new(Options::default());
    let mut out = Vec::new();
    let spec = DeviceSpec { tags: Some(first), desired: Some(second), reported: Some(third), ..DeviceSpec::default() };
    let device = match hub.create_device(now, "d", spec) {
        Ok(device) => device,
        Err(_) => hub.create_device(now, "d", DeviceSpec::default()).expect("a good device"),
    };
    hub.handle(now, Input::Connect { device, session: 1, clean: true, model: Some(third) }, &mut out);
    hub.handle(now, Input::Subscribe { device, topics: Topics::ALL }, &mut out);
    let (tags, desired, if_match) = (Some(second.as_bytes()), Some(third.as_bytes()), None);
    hub.handle(now, Input::PatchTwin { device, tags, desired, if_match }, &mut out);
    let patch = Patch::Json(first.as_bytes());
    hub.handle(now, Input::Report { device, base: None, patch }, &mut out);
    let spec = ConfigurationSpec {
        id: "c",
        target_condition: "*",
        device_content: first,
        labels: second,
        ..ConfigurationSpec::default()
    };
    if let Ok(configuration) = Configuration::new(&spec) {
        let configuration = Arc::new(configuration);
        hub.handle(now, Input::PutConfiguration { configuration, if_match: None }, &mut out);
    }
    let (tags, desired) = (Some(third.as_bytes()), Some(first.as_bytes()));
    hub.handle(now, Input::ReplaceTwin { device, tags, desired, if_match: None }, &mut out);
    let patch = Patch::Json(second.as_bytes());
    hub.handle(now, Input::Report { device, base: None, patch }, &mut out);
    let mut twin = Vec::new();
    hub.write_service_twin(device, &mut twin);
    let _: serde_json::Value = serde_json::from_slice(&twin).expect("a twin is JSON");
    twin.clear();
    hub.write_device_twin(device, &mut twin);
    assert_eq!(twin.len(), hub.device_twin_len(device));
    let _: serde_json::Value = serde_json::from_slice(&twin).expect("a twin is JSON");
});
