//! What the hub core costs on this machine: nanoseconds an operation and bytes a device.
//!
//! `cargo run --release -p fleetwave-hub-core --example cost -- [DEVICES]`, a million by default.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use fleetwave_hub_core::query::{PageLimits, Query};
use fleetwave_hub_core::{
    Configuration, ConfigurationSpec, DeviceIx, DeviceSpec, Hub, Input, Options, Output, Patch, Topics,
};
use fleetwave_protocol::{Instant, Now, WallTime};

const RUNNING: &str = r#"{"firmware":{"running":{"id":"fw-1","seq":1},"state":"idle"}}"#;
const STARTED: &str = r#"{"firmware":{"state":"downloading","target":"fw-2"}}"#;
const DONE: &str =
    r#"{"firmware":{"running":{"id":"fw-2","seq":2},"state":"idle","target":null,"code":"ok"}}"#;

fn main() {
    let count: u32 = std::env::args().nth(1).and_then(|devices| devices.parse().ok()).unwrap_or(1_000_000);
    let mut hub = Hub::new(Options::default());
    let mut out = Vec::new();
    let now = Now { at: Instant::ZERO, wall: WallTime::from_unix_millis(1_700_000_000_000) };
    let devices: Vec<DeviceIx> = time("create", count, || {
        let make = |number: u32| {
            let tags = if number.is_multiple_of(10) { r#"{"ring":1}"# } else { r#"{"ring":2}"# };
            let spec = DeviceSpec { tags: Some(tags), ..DeviceSpec::default() };
            hub.create_device(now, &format!("dev-{number:07}"), spec).expect("a good device")
        };
        (0..count).map(make).collect()
    });
    time("connect, subscribe, read", count, || {
        for &device in &devices {
            hub.handle(now, Input::Connect { device, session: 1, clean: true, model: None }, &mut out);
            hub.handle(now, Input::Subscribe { device, topics: Topics::ALL }, &mut out);
            hub.handle(now, Input::TwinGet { device }, &mut out);
            black_box(hub.device_twin_len(device));
            out.clear();
        }
    });
    report(&mut hub, &devices, "report, interned", RUNNING, true);
    own_values(&mut hub, &devices, "report of a value of its own, no configuration");
    for number in 0..98 {
        let condition = format!(
            "tags.ring = {number} AND properties.reported.firmware.running.id = 'fw-9' \
             AND IS_DEFINED(properties.reported.part{number}.id)"
        );
        put(&mut hub, &format!("idle-{number}"), &condition, number + 2, 2, &mut out);
    }
    out.clear();
    time("configuration over all twins, 98 others there", count, || {
        put(&mut hub, "fw-2", "*", 1, 2, &mut out);
    });
    println!("{:>12} desired patches", out.iter().filter(|o| matches!(o, Output::Desired { .. })).count());
    out = Vec::new();
    report(&mut hub, &devices, "report, interned, 99 configurations", STARTED, true);
    time("method call and answer", count, || {
        for &device in &devices {
            let (connect_timeout, response_timeout) = (Duration::ZERO, Duration::from_secs(30));
            let (name, payload) = ("grant", &b"{\"url\":\"\"}"[..]);
            let input =
                Input::InvokeMethod { device, name, payload, connect_timeout, response_timeout, tag: 1 };
            hub.handle(now, input, &mut out);
            if let Some(&Output::Method { call, .. }) = out.last() {
                hub.handle(now, Input::MethodResponse { device, call, status: 200, body: b"" }, &mut out);
            }
            out.clear();
        }
    });
    report(&mut hub, &devices, "report, as JSON, 99 configurations", DONE, false);
    let query =
        Query::parse("SELECT deviceId FROM devices WHERE properties.reported.firmware.running.id = 'fw-2'");
    let query = query.expect("a good query");
    let found = time("count by a query", count, || hub.count_where(&query));
    assert_eq!(found, u64::from(count));
    queries(&hub, count);
    out = Vec::new();
    let start = Clock::now();
    let condition = "tags.ring = 1 AND properties.reported.firmware.running.id = 'fw-2'";
    put(&mut hub, "tenth", condition, 200, 3, &mut out);
    let seconds = start.elapsed().as_secs_f64();
    let patches = out.iter().filter(|o| matches!(o, Output::Desired { .. })).count();
    println!("{seconds:>12.3} s: one configuration put over all twins, 99 others there; {patches} match");
    own_values(&mut hub, &devices, "report of a value of its own, 100 configurations that do not mention it");
    println!("{:>12.1} bytes a device, ids included", hub.device_heap() as f64 / f64::from(count));
}

fn queries(hub: &Hub, count: u32) {
    let all = PageLimits { rows: usize::MAX, twins: usize::MAX };
    for text in [
        "SELECT tags.ring, COUNT() AS n FROM devices GROUP BY tags.ring",
        "SELECT connectionState, COUNT() AS n FROM devices GROUP BY connectionState",
    ] {
        let query = Query::parse(text).expect("a good query");
        let mut out = Vec::new();
        time(text, count, || query.write_rows(hub.query_partial(&query), &mut out));
    }
    for text in [
        "SELECT deviceId FROM devices WHERE tags.ring = 3",
        "SELECT deviceId FROM devices WHERE deviceId = 'dev-0000003'",
        "SELECT deviceId FROM devices WHERE tags.ring = 1",
    ] {
        let query = Query::parse(text).expect("a good query");
        let mut out = Vec::new();
        time(text, count, || hub.query_page(&query, DeviceIx::from_index(0), all, &mut out));
    }
}

/// Unlike other reports, each of these makes a document of its own. A tenth of the devices does it.
fn own_values(hub: &mut Hub, devices: &[DeviceIx], what: &str) {
    let devices = &devices[..devices.len() / 10];
    let mut out = Vec::new();
    let patches: Vec<_> = (0..devices.len()).map(|number| format!(r#"{{"uptime":{number}}}"#)).collect();
    time(what, u32::try_from(devices.len()).expect("as many as were made"), || {
        for (&device, patch) in devices.iter().zip(&patches) {
            let patch = Patch::Json(patch.as_bytes());
            hub.handle(Now::default(), Input::Report { device, base: None, patch }, &mut out);
            assert!(matches!(out.last(), Some(Output::ReportAnswer { status: 204, .. })));
            out.clear();
        }
    });
    report(hub, devices, "the same, removed", r#"{"uptime":null}"#, true);
}

fn put(hub: &mut Hub, id: &str, condition: &str, priority: u32, seq: u32, out: &mut Vec<Output>) {
    let content = format!(r#"{{"properties.desired.firmware":{{"id":"fw-2","seq":{seq},"size":65536}}}}"#);
    let configuration = Configuration::new(&ConfigurationSpec {
        id,
        priority,
        target_condition: condition,
        device_content: &content,
        ..ConfigurationSpec::default()
    });
    let configuration = Arc::new(configuration.expect("a good configuration"));
    let input = Input::PutConfiguration { configuration, if_match: None };
    hub.handle(Now::default(), input, out);
}

fn report(hub: &mut Hub, devices: &[DeviceIx], what: &str, json: &str, interned: bool) {
    let json = json.as_bytes();
    let patch = if interned {
        Patch::Interned(hub.intern_patch(json).expect("a good patch"))
    } else {
        Patch::Json(json)
    };
    let mut out = Vec::new();
    time(what, u32::try_from(devices.len()).expect("as many as were made"), || {
        for &device in devices {
            hub.handle(Now::default(), Input::Report { device, base: None, patch }, &mut out);
            assert!(matches!(out.last(), Some(Output::ReportAnswer { status: 204, .. })));
            out.clear();
        }
    });
}

fn time<T>(what: &str, count: u32, run: impl FnOnce() -> T) -> T {
    let start = Clock::now();
    let result = run();
    println!("{:>12.1} ns a device: {what}", start.elapsed().as_secs_f64() * 1e9 / f64::from(count));
    result
}
