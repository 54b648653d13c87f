//! Any text is a query, a condition or an error that lies in it. Those that are good are printed as text that means
//! the same, and give rows that are JSON.
#![no_main]

use std::cell::RefCell;
use std::sync::Arc;

use fleetwave_hub_core::query::{Condition, JsonRow, PageLimits, Query, QueryError};
use fleetwave_hub_core::{Configuration, ConfigurationSpec, DeviceIx, DeviceSpec, Hub, Input, Options};
use fleetwave_protocol::Now;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static HUB: RefCell<Hub> = RefCell::new(hub());
}

fn hub() -> Hub {
    let mut hub = Hub::new(Options::default());
    for id in ["d", "e", "e/m"] {
        let spec = DeviceSpec {
            tags: Some(r#"{"a":1,"b":"x","c":[1,{"d":null}],"é\"":{"f":true}}"#),
            desired: Some(r#"{"a":{"b":2.5}}"#),
            reported: Some(r#"{"a":{"b":"12"}}"#),
            ..DeviceSpec::default()
        };
        hub.create_device(Now::default(), id, spec).expect("a good device");
    }
    let spec = ConfigurationSpec {
        id: "c",
        target_condition: "*",
        device_content: r#"{"properties.desired.c":1}"#,
        ..ConfigurationSpec::default()
    };
    let configuration = Arc::new(Configuration::new(&spec).expect("a good configuration"));
    hub.handle(Now::default(), Input::PutConfiguration { configuration, if_match: None }, &mut Vec::new());
    hub
}

fn check(error: &QueryError, text: &str) {
    assert!(text.get(error.span.clone()).is_some(), "{error:?}");
    assert!(error.caret(text).contains('^'));
}

fuzz_target!(|text: &str| {
    match Condition::parse(text) {
        Ok(condition) => assert_reads(&condition, Condition::parse(&condition.to_string())),
        Err(error) => check(&error, text),
    }
    let query = match Query::parse(text) {
        Ok(query) => query,
        Err(error) => return check(&error, text),
    };
    assert_reads(&query, Query::parse(&query.to_string()));
    let row = serde_json::json!({"deviceId": "d", "jobId": "j", "tags": {"a": [1, {"b": "x"}]}, "a": -1.5});
    let _ = query.matches(&JsonRow(&row));
    HUB.with_borrow(|hub| {
        let mut out = b"[".to_vec();
        let rows = if query.is_aggregate() {
            query.write_rows(hub.query_partial(&query), &mut out)
        } else {
            let limits = PageLimits { rows: 10, twins: 10 };
            hub.query_page(&query, DeviceIx::from_index(0), limits, &mut out).rows
        };
        out.push(b']');
        let json: Vec<serde_json::Value> = serde_json::from_slice(&out).expect("rows are JSON");
        assert_eq!(json.len(), rows);
    });
});

/// What was printed is read as the same, unless its parentheses made it longer or deeper than a query may be.
fn assert_reads<T: std::fmt::Debug + PartialEq>(printed: &T, read: Result<T, QueryError>) {
    use fleetwave_hub_core::query::Problem::{TooLong, Unsupported};
    match read {
        Ok(read) => assert_eq!(&read, printed),
        Err(error) => match &error.problem {
            TooLong { .. } => {}
            Unsupported { feature } if feature.starts_with("nesting deeper") => {}
            _ => panic!("{error:?}"),
        },
    }
}
