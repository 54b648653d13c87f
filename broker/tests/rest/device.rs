//! What a device does over HTTPS, and who it has to be.

use std::sync::Arc;

use fleetwave_hub::NewDevice;
use fleetwave_hub::events::{Entry, Source};
use fleetwave_hub_core::{Authentication, C2dMessage, DeviceSpec, Feedback, Identity, Input};
use fleetwave_protocol::WallTime;
use fleetwave_protocol::bag;
use fleetwave_protocol::sas::{self, Key};
use hyper::Method;

use super::client::{Got, HOST, Rig};

/// A hub with the device `d`, its module `d/m`, and the disabled device `off`.
fn rig() -> Rig {
    let rig = Rig::new();
    let off = NewDevice { enabled: false, ..NewDevice::new("off") };
    rig.hub.control().create_devices([NewDevice::new("d"), NewDevice::new("d/m"), off]).unwrap();
    rig
}

fn later(rig: &Rig) -> WallTime {
    let now = rig.hub.control().clock().now().wall;
    WallTime::from_unix_millis(now.as_unix_millis() + 3_600_000)
}

/// The token of a device or module that has the key which the hub derives for it.
pub(super) fn token(rig: &Rig, id: &str) -> String {
    rig.hub.control().device_token(HOST, id, later(rig))
}

fn post(rig: &Rig, token: &str, path: &str, headers: &[(&str, &str)], body: &'static [u8]) -> Got {
    let mut all = vec![("authorization", token)];
    all.extend_from_slice(headers);
    rig.raw(Method::POST, path, &all, body.into())
}

fn events(rig: &Rig) -> Vec<Arc<Entry>> {
    let cloud = rig.hub.cloud_events();
    let all = (0..4).flat_map(|partition| cloud.log.read(partition, 0, 100));
    all.filter(|entry| entry.event.source == Source::Telemetry).collect()
}

#[test]
fn a_device_sends_messages_over_https() {
    let rig = rig();
    let headers = [
        ("iothub-app-level-now", "high"),
        ("IoTHub-MessageId", "m-1"),
        ("iothub-contenttype", "application/json"),
        ("iothub-to", "/devices/d/messages/events"),
        ("dt-subject", "thermostat"),
    ];
    let path = "/devices/d/messages/events?api-version=2021-04-12";
    let got = post(&rig, &token(&rig, "d"), path, &headers, b"{\"t\":1}");
    assert_eq!((got.status.as_u16(), got.body.len()), (204, 0), "{got:?}");
    let seen = events(&rig);
    assert_eq!(seen.len(), 1);
    assert_eq!((&*seen[0].event.id, &seen[0].event.body[..]), ("d", &b"{\"t\":1}"[..]));
    // This client writes the names of headers in title case, and that of a property stays as it was written.
    let mut properties: Vec<_> = bag::members(&seen[0].event.properties).flatten().collect();
    properties.sort();
    let expected =
        [("$.ct", "application/json"), ("$.mid", "m-1"), ("$.sub", "thermostat"), ("Level-Now", "high")];
    assert_eq!(properties, expected.map(|(key, value)| (key.into(), value.into())));
    assert_eq!(rig.hub.control().metrics().unwrap().telemetry, 1);

    let got = post(&rig, &token(&rig, "d/m"), "/devices/d/modules/m/messages/events", &[], b"x");
    assert_eq!(got.status, 204);
    assert!(events(&rig).iter().any(|entry| &*entry.event.id == "d/m"));
    let twin = rig.get("/twins/d").json();
    assert_ne!(twin["lastActivityTime"], "0001-01-01T00:00:00Z", "it was active without a connection");
    assert_eq!(twin["connectionState"], "Disconnected");
}

#[test]
fn a_batch_is_as_many_messages_and_is_taken_whole_or_not_at_all() {
    let rig = rig();
    let headers = [("content-type", "application/vnd.microsoft.iothub.json")];
    let send = |body: &'static str| {
        post(&rig, &token(&rig, "d"), "/devices/d/messages/events", &headers, body.as_bytes())
    };
    let batch = r#"[{"body": "Zmlyc3Q=", "properties":{"iothub-app-a":"1","iothub-messageid":"m"}},
                    {"body":"second","base64Encoded":false},{"body": "dGhpcmQ=","base64Encoded":true}]"#;
    assert_eq!(send(batch).status, 204);
    let seen = events(&rig);
    let bodies: Vec<_> = seen.iter().map(|entry| String::from_utf8_lossy(&entry.event.body)).collect();
    assert_eq!(bodies, ["first", "second", "third"]);
    assert_eq!(bag::get(&seen[0].event.properties, "$.mid").as_deref(), Some("m"));
    assert_eq!(bag::get(&seen[0].event.properties, "a").as_deref(), Some("1"));

    send(r#"[{"body":"Zmlyc3Q="},{"body":"%%%"}]"#).refused(400, "ArgumentInvalid");
    send("[{}]").refused(400, "IotHubFormatError");
    assert_eq!(events(&rig).len(), 3);
}

#[test]
fn a_message_over_https_keeps_the_limit_of_its_size() {
    let rig = rig();
    let body: &'static [u8] = Box::leak(vec![b'x'; 256 * 1024 + 1].into_boxed_slice());
    let send = |body| post(&rig, &token(&rig, "d"), "/devices/d/messages/events", &[], body);
    send(body).refused(413, "MessageTooLarge");
    assert_eq!(send(&body[1..]).status, 204);
}

#[test]
fn a_device_speaks_for_itself_alone() {
    let rig = rig();
    let control = rig.hub.control();
    let own = Authentication::Sas {
        primary: Key::from_bytes(*b"primary"),
        secondary: Key::from_bytes(*b"secondary"),
    };
    let created = control.with_device_blocking("own", move |shard| {
        let identity = Identity { authentication: own, ..Identity::default() };
        shard.create("own", DeviceSpec { identity: Some(&identity), ..DeviceSpec::default() }).map(drop)
    });
    created.unwrap().unwrap();
    let send = |token: &str, path: &str| post(&rig, token, path, &[], b"x");
    let signed = |key: &[u8], resource: &str| {
        sas::token(&Key::from_bytes(key), &format!("{HOST}/{resource}"), later(&rig), None)
    };
    let own = "/devices/own/messages/events";
    assert_eq!(send(&signed(b"primary", "devices/own"), own).status, 204);
    assert_eq!(send(&signed(b"secondary", "devices/own"), own).status, 204);
    assert_eq!(send(&rig.token("device"), own).status, 204);
    assert_eq!(send(&rig.token("iothubowner"), own).status, 204);
    for (token, path) in [
        (" ".to_owned(), own),
        (rig.token("service"), own),
        (rig.token("registryReadWrite"), own),
        (signed(b"third", "devices/own"), own),
        (signed(b"primary", "devices/d"), own),
        (signed(b"primary", "devices/ow"), own),
        (token(&rig, "own"), own),
        (token(&rig, "d"), own),
        (token(&rig, "d"), "/devices/d/modules/m/messages/events"),
        (token(&rig, "d/m"), "/devices/d/messages/events"),
        (token(&rig, "d"), "/devices/d/modules/n/messages/events"),
        (signed(b"primary", "devices/own"), "/devices/nobody/messages/events"),
    ] {
        send(&token, path).refused(401, "IotHubUnauthorizedAccess");
    }
    send(&token(&rig, "d%2Fm"), "/devices/d%2Fm/messages/events").refused(400, "ArgumentInvalid");
    assert_eq!(events(&rig).len(), 4, "nothing of it was taken");

    send(&token(&rig, "nobody"), "/devices/nobody/messages/events").refused(404, "DeviceNotFound");
    send(&token(&rig, "off"), "/devices/off/messages/events").refused(403, "DeviceDisabled");
    let disabled = control.with_device_blocking("d", |shard| {
        let device = shard.find("d")?;
        shard.apply(Input::SetStatus { device, enabled: false })
    });
    disabled.unwrap().unwrap();
    send(&token(&rig, "d/m"), "/devices/d/modules/m/messages/events").refused(403, "DeviceDisabled");
}

#[test]
fn a_device_fetches_a_message_and_settles_it() {
    let rig = rig();
    let control = rig.hub.control();
    let path = "/devices/d/messages/devicebound";
    let ask = |method, path: &str| {
        rig.raw(method, path, &[("authorization", &token(&rig, "d"))], bytes::Bytes::new())
    };
    let fetch = || ask(Method::GET, path);
    let lock = |got: &Got| got.header("etag").unwrap().trim_matches('"').to_owned();
    assert_eq!(fetch().status, 204);
    for id in ["1", "2", "3"] {
        let properties =
            format!("%24.mid={id}&%24.to=%2Fdevices%2Fd&%24.ct=text%2Fplain&level=high%20er&a%20b=c");
        let message = C2dMessage {
            message_id: Some(id.into()),
            properties: properties.into(),
            body: (*b"hello").into(),
            feedback: Feedback::Full,
            expires: None,
        };
        control.send_c2d("d", message).unwrap();
    }
    let first = fetch();
    assert_eq!((first.status.as_u16(), &first.body[..]), (200, &b"hello"[..]));
    for (name, value) in [
        ("iothub-messageid", "1"),
        ("iothub-to", "/devices/d"),
        ("iothub-contenttype", "text/plain"),
        ("iothub-app-level", "high er"),
        ("iothub-deliverycount", "1"),
    ] {
        assert_eq!(first.header(name), Some(value), "{first:?}");
    }
    let (second, third) = (fetch(), fetch());
    assert_eq!(fetch().status, 204, "all are locked");
    let of_first = format!("{path}/{}", lock(&first));
    let others = rig.raw(
        Method::DELETE,
        &of_first.replace("/d/", "/e/"),
        &[("authorization", &token(&rig, "e"))],
        bytes::Bytes::new(),
    );
    others.refused(404, "DeviceNotFound");
    assert_eq!(ask(Method::DELETE, &format!("{of_first}?api-version=2021-04-12")).status, 204);
    ask(Method::DELETE, &of_first).refused(412, "DeviceMessageLockLost");
    ask(Method::DELETE, &format!("{path}/nonsense")).refused(412, "DeviceMessageLockLost");
    let reject = format!("{path}/{}?api-version=2021-04-12&reject", lock(&second));
    assert_eq!(ask(Method::DELETE, &reject).status, 204);
    assert_eq!(ask(Method::POST, &format!("{path}/{}/abandon", lock(&third))).status, 204);
    let again = fetch();
    assert_eq!(
        (again.header("iothub-messageid"), again.header("iothub-deliverycount")),
        (Some("3"), Some("2"))
    );

    let told = rig.hub.cloud_events().feedback.take(control.clock().now().at, 9).unwrap();
    let outcomes: Vec<_> = told
        .records
        .iter()
        .map(|json| {
            let record: serde_json::Value = serde_json::from_str(json).unwrap();
            (record["originalMessageId"].as_str().unwrap().to_owned(), record["statusCode"].clone())
        })
        .collect();
    assert_eq!(outcomes, [("1".into(), "Success".into()), ("2".into(), "Rejected".into())]);
}
