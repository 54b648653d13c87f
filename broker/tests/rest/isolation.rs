//! Nobody gets at an operation with somebody else's token: each operation of the coverage page is tried.

use fleetwave_hub::NewDevice;
use fleetwave_hub::policy::DEFAULT_POLICIES;
use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::{self, Key};
use hyper::Method;

use super::client::{HOST, Rig, key};

/// Method, path and who may, of each operation on the page.
fn operations() -> Vec<(Method, String, String)> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/hub-coverage.md");
    let page = std::fs::read_to_string(page).unwrap();
    let operations: Vec<_> = page
        .lines()
        .filter_map(|line| {
            let cells: Vec<_> = line.split(" | ").collect();
            let (method, path) = cells.get(1)?.strip_prefix('`')?.strip_suffix('`')?.split_once(' ')?;
            // The first parameter is the device; what the others are does not matter.
            let mut path = path.to_owned();
            let mut fill = "d1";
            while let (Some(start), Some(end)) = (path.find('{'), path.find('}')) {
                path.replace_range(start..=end, fill);
                fill = "x";
            }
            Some((method.parse().unwrap(), path, cells[2].to_owned()))
        })
        .collect();
    assert!(operations.len() > 40, "the page has its table");
    operations
}

#[test]
fn no_token_opens_more_than_it_is_for() {
    let rig = Rig::new();
    let control = rig.hub.control();
    control.create_devices([NewDevice::new("d1"), NewDevice::new("d2")]).unwrap();
    let now = control.clock().now().wall;
    let later = WallTime::from_unix_millis(now.as_unix_millis() + 3_600_000);
    let past = WallTime::from_unix_millis(now.as_unix_millis() - 1000);
    let (own, other) = (control.device_key("d1"), control.device_key("d2"));
    let owner = key("iothubowner");
    let sign = |key: &Key, resource: &str, expires, policy| sas::token(key, resource, expires, policy);
    let never = [
        String::new(),
        "Bearer x".into(),
        sign(&other, &format!("{HOST}/devices/d2"), later, None),
        sign(&other, &format!("{HOST}/devices/d1"), later, None),
        sign(&other, HOST, later, None),
        sign(&own, HOST, later, Some("iothubowner")),
        sign(&owner, HOST, past, Some("iothubowner")),
        sign(&owner, "other.example", later, Some("iothubowner")),
        sign(&owner, &format!("{HOST}/elsewhere"), later, Some("iothubowner")),
        sign(&owner, HOST, later, Some("nobody")),
        sign(&owner, HOST, later, None),
    ];
    let devices = [sign(&own, &format!("{HOST}/devices/d1"), later, None), sign(&own, HOST, later, None)];
    for (method, path, who) in operations() {
        let allowed = |token: &str| {
            let got = rig.ask_with(method.clone(), &path, &[("authorization", token)], None);
            let refused = got.status == 401;
            assert!(!refused || got.header("www-authenticate").is_some(), "{got:?}");
            !refused
        };
        if who == "by its own check" {
            continue;
        }
        // An operation before may have deleted it; if not, this is refused.
        let _ = control.create_devices([NewDevice::new("d1")]);
        for token in &never {
            // An empty header would be left out, and the owner's put in its place.
            let token = if token.is_empty() { " " } else { token };
            assert!(!allowed(token), "{method} {path} with {token}");
        }
        let device_side = who.starts_with("the device");
        let of_module = path.contains("/modules/");
        for token in &devices {
            let may = device_side && !of_module;
            assert_eq!(allowed(token), may, "{method} {path} with a device's token");
        }
        for (policy, rights) in DEFAULT_POLICIES {
            let named = rights.to_string();
            let right = who.rsplit(' ').next().unwrap();
            let has = named.split(", ").any(|name| name == right);
            assert_eq!(allowed(&rig.token(policy)), has, "{method} {path} needs {who}, {policy} has {named}");
        }
    }
}
