//! What those who follow a hub hear of identities that come and go.

use std::sync::{Arc, Mutex};

use fleetwave_hub::HubServer;
use fleetwave_hub::events::{EventKind, EventSink, HubEvent};
use fleetwave_hub_core::{DeviceSpec, Identity, Input};
use fleetwave_protocol::Now;

/// What happened, in words.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl EventSink for Heard {
    fn event(&self, _now: Now, event: &HubEvent<'_>) {
        let what = match event.kind {
            EventKind::Created { .. } => "made",
            EventKind::Deleted { .. } => "deleted",
            _ => return,
        };
        self.0.lock().expect("no test panics here").push(format!("{what} {} {}", event.id, event.generation));
    }
}

#[test]
fn events_carry_the_generation_and_tell_of_the_modules_that_the_hub_makes() {
    let heard = Arc::new(Heard::default());
    let hub = HubServer::builder().events(heard.clone()).start().unwrap();
    hub.control()
        .with_device_blocking("gw", |shard| {
            let identity = Identity { edge: true, generation_id: 42, ..Identity::default() };
            let spec = DeviceSpec { identity: Some(&identity), ..DeviceSpec::default() };
            let device = shard.create("gw", spec).unwrap();
            let content = br#"{"modulesContent":{"filter":{"properties.desired":{"t":1}}}}"#;
            shard.apply(Input::ApplyContent { device, content }).unwrap();
            shard.apply(Input::DeleteDevice { device, if_match: None }).unwrap();
        })
        .unwrap();
    assert_eq!(hub.control().metrics().unwrap().devices, 0, "modules are not counted");
    hub.stop();
    assert_eq!(
        *heard.0.lock().unwrap(),
        ["made gw 42", "made gw/$edgeAgent 43", "made gw/$edgeHub 44", "made gw/filter 45", "deleted gw 42"]
    );
}
