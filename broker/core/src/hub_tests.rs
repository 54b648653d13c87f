//! Sessions, reports, methods, C2D and the rest of what a driver sees.

use core::time::Duration;
use std::sync::Arc;

use fleetwave_protocol::{Instant, Now, WallTime};

use crate::*;

pub(crate) fn at(millis: u64) -> Now {
    Now { at: Instant::from_micros(millis * 1000), wall: WallTime::from_unix_millis(1_000_000 + millis) }
}

pub(crate) struct Bench {
    pub(crate) hub: Hub,
    pub(crate) device: DeviceIx,
    pub(crate) now: u64,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        let mut hub = Hub::new(options);
        hub.store.sweep_above(8);
        let device = hub.create_device(at(0), "dev-0000001", DeviceSpec::default()).unwrap();
        Self { hub, device, now: 0 }
    }

    fn online() -> Self {
        let mut bench = Self::new();
        bench.connect(1, true);
        bench.give(Input::Subscribe { device: bench.device, topics: Topics::ALL });
        bench
    }

    pub(crate) fn give(&mut self, input: Input<'_>) -> Vec<Output> {
        let mut out = Vec::new();
        self.hub.handle(at(self.now), input, &mut out);
        out
    }

    fn connect(&mut self, session: u32, clean: bool) -> Vec<Output> {
        self.give(Input::Connect { device: self.device, session, clean, model: None })
    }

    fn report(&mut self, json: &str) -> (u16, u64, Option<ErrorCode>) {
        let patch = Patch::Json(json.as_bytes());
        let out = self.give(Input::Report { device: self.device, base: None, patch });
        let [Output::ReportAnswer { status, version, error, .. }, ..] = &out[..] else { panic!("{out:?}") };
        (*status, *version, error.as_ref().map(|error| error.code))
    }

    fn invoke(&mut self, connect_timeout: u64, tag: u64) -> Vec<Output> {
        self.give(Input::InvokeMethod {
            device: self.device,
            name: "grant",
            payload: b"{}",
            connect_timeout: Duration::from_millis(connect_timeout),
            response_timeout: Duration::from_millis(500),
            tag,
        })
    }

    fn send(&mut self, body: &str, feedback: Feedback) -> Vec<Output> {
        let message = Arc::new(C2dMessage {
            message_id: Some("m".into()),
            body: body.as_bytes().into(),
            feedback,
            ..C2dMessage::default()
        });
        self.give(Input::SendC2d { device: self.device, message })
    }

    fn put(&mut self, id: &str, priority: u32, target: &str, content: &str) -> Vec<Output> {
        let configuration = Configuration::new(&ConfigurationSpec {
            id,
            priority,
            target_condition: target,
            device_content: content,
            ..ConfigurationSpec::default()
        });
        self.give(Input::PutConfiguration { configuration: Arc::new(configuration.unwrap()), if_match: None })
    }

    fn desired(&self) -> &str {
        self.hub.twin(self.device).desired.text()
    }
}

pub(crate) fn code(out: &[Output]) -> ErrorCode {
    match out {
        [Output::Service(Err(error)) | Output::MethodResult { result: Err(error), .. }] => error.code,
        _ => panic!("{out:?}"),
    }
}

fn deliveries(out: &[Output]) -> Vec<(u32, String)> {
    out.iter()
        .filter_map(|output| match output {
            Output::C2d { delivery, message, .. } => {
                Some((*delivery, String::from_utf8(message.body.to_vec()).unwrap()))
            }
            _ => None,
        })
        .collect()
}

fn feedback(out: &[Output]) -> Vec<FeedbackStatus> {
    out.iter()
        .filter_map(|output| match output {
            Output::Feedback { status, .. } => Some(*status),
            _ => None,
        })
        .collect()
}

#[test]
fn a_second_connection_closes_the_first_and_a_late_disconnect_changes_nothing() {
    let mut bench = Bench::new();
    assert!(matches!(
        bench.connect(1, true)[..],
        [Output::Accepted { session: 1, session_present: false, .. }]
    ));
    let out = bench.connect(2, true);
    assert!(matches!(
        out[..],
        [
            Output::Close { session: 1, reason: CloseReason::TakenOver, .. },
            Output::Accepted { session: 2, .. }
        ]
    ));
    bench.give(Input::Disconnect { device: bench.device, session: 1 });
    assert!(bench.hub.twin(bench.device).connected);
    bench.give(Input::Disconnect { device: bench.device, session: 2 });
    assert!(!bench.hub.twin(bench.device).connected);
}

#[test]
fn subscriptions_outlive_a_connection_only_without_clean_session() {
    let mut bench = Bench::new();
    bench.connect(1, false);
    bench.give(Input::Subscribe { device: bench.device, topics: Topics::ALL });
    bench.give(Input::Disconnect { device: bench.device, session: 1 });
    assert!(matches!(bench.connect(2, false)[..], [Output::Accepted { session_present: true, .. }]));
    assert_eq!(bench.hub.twin(bench.device).topics, Topics::ALL);
    assert!(matches!(bench.connect(3, true)[1], Output::Accepted { session_present: false, .. }));
    assert_eq!(bench.hub.twin(bench.device).topics, Topics::NONE);
    bench.give(Input::Disconnect { device: bench.device, session: 3 });
    assert!(matches!(bench.connect(4, false)[..], [Output::Accepted { session_present: false, .. }]));
}

#[test]
fn unknown_and_disabled_devices_are_refused() {
    let mut bench = Bench::online();
    let stranger = DeviceIx::from_index(7);
    let out = bench.give(Input::Connect { device: stranger, session: 9, clean: true, model: None });
    assert!(matches!(out[..], [Output::Refused { reason: Refusal::Unknown, .. }]));
    let out = bench.give(Input::SetStatus { device: bench.device, enabled: false });
    assert!(matches!(
        out[..],
        [Output::Service(Ok(Done::StatusSet)), Output::Close { reason: CloseReason::Disabled, .. }]
    ));
    assert!(matches!(bench.connect(2, true)[..], [Output::Refused { reason: Refusal::Disabled, .. }]));
    bench.give(Input::SetStatus { device: bench.device, enabled: true });
    assert!(matches!(bench.connect(3, true)[..], [Output::Accepted { .. }]));
}

#[test]
fn what_comes_after_the_end_of_a_session_is_dropped() {
    let mut bench = Bench::online();
    let device = bench.device;
    bench.give(Input::Disconnect { device, session: 1 });
    for input in [
        Input::TwinGet { device },
        Input::Report { device, base: None, patch: Patch::Json(b"{}") },
        Input::Telemetry { device, properties: "", body: b"" },
        Input::C2dAck { device, delivery: 1 },
        Input::Subscribe { device, topics: Topics::ALL },
    ] {
        assert!(bench.give(input).is_empty());
    }
    assert_eq!(bench.hub.twin(device).reported_version, 1);
}

#[test]
fn reports_are_answered_with_their_version_or_an_error() {
    let mut bench = Bench::online();
    assert_eq!(bench.report(r#"{"a":{"b":1}}"#), (204, 2, None));
    assert_eq!(bench.report("{"), (400, 2, Some(ErrorCode::IotHubFormatError)));
    assert_eq!(bench.report(r#"{"$version":1}"#), (400, 2, Some(ErrorCode::ArgumentInvalid)));
    let strings = |count| vec![format!("\"{}\"", "x".repeat(4096)); count].join(",");
    assert_eq!(
        bench.report(&format!("{{\"a\":[{}]}}", strings(8))),
        (413, 2, Some(ErrorCode::MessageTooLarge))
    );
    assert_eq!(bench.report(&format!("{{\"a\":[{}]}}", strings(7))), (204, 3, None));
    let out = bench.give(Input::Report { device: bench.device, base: Some(2), patch: Patch::Json(b"{}") });
    assert!(matches!(&out[..], [Output::ReportAnswer { status: 412, version: 3, .. }]));
    let out = bench.give(Input::Report { device: bench.device, base: Some(3), patch: Patch::Json(b"{}") });
    assert!(matches!(&out[..], [Output::ReportAnswer { status: 204, version: 4, .. }]));
}

#[test]
fn an_interned_report_is_the_same_as_its_json() {
    let mut bench = Bench::online();
    let json = br#"{"state":"idle","firmware":{"id":"fw-1"}}"#;
    let patch = Patch::Interned(bench.hub.intern_patch(json).unwrap());
    for round in 2..40 {
        // Others make the tables overflow in between.
        bench.report(&format!("{{\"n\":{round}}}"));
        bench.give(Input::Report { device: bench.device, base: None, patch });
    }
    assert_eq!(
        bench.hub.twin(bench.device).reported.text(),
        r#"{"firmware":{"id":"fw-1"},"n":39,"state":"idle"}"#
    );
    assert_eq!(bench.hub.twin(bench.device).reported.get(&["firmware", "id"]), Some("\"fw-1\""));
}

#[test]
fn answers_say_whether_the_device_subscribed_to_them() {
    let mut bench = Bench::new();
    bench.connect(1, true);
    let out = bench.give(Input::TwinGet { device: bench.device });
    assert!(matches!(out[..], [Output::TwinAnswer { status: 200, deliver: false, .. }]));
    bench.give(Input::Subscribe { device: bench.device, topics: Topics::TWIN_ANSWERS });
    let out = bench.give(Input::TwinGet { device: bench.device });
    assert!(matches!(out[..], [Output::TwinAnswer { deliver: true, .. }]));
}

#[test]
fn telemetry_passes_and_too_much_of_it_closes_the_connection() {
    let mut bench = Bench::online();
    let device = bench.device;
    let body = vec![0; limits::D2C_SIZE];
    assert!(matches!(
        bench.give(Input::Telemetry { device, properties: "", body: &body })[..],
        [Output::Telemetry { .. }]
    ));
    assert!(matches!(
        bench.give(Input::Telemetry { device, properties: "a", body: &body })[..],
        [Output::Close { reason: CloseReason::MessageTooLarge, .. }]
    ));
}

#[test]
fn a_method_is_called_answered_and_its_result_given_back() {
    let mut bench = Bench::online();
    let out = bench.invoke(0, 77);
    let [Output::Method { call, name, payload, .. }] = &out[..] else { panic!("{out:?}") };
    assert_eq!((&**name, &**payload), ("grant", &b"{}"[..]));
    let device = bench.device;
    let out = bench.give(Input::MethodResponse { device, call: *call, status: 200, body: b"[1]" });
    let [Output::MethodResult { tag: 77, result: Ok(answer) }] = &out[..] else { panic!("{out:?}") };
    assert_eq!((answer.status, &answer.payload[..]), (200, &b"[1]"[..]));
    assert!(bench.give(Input::MethodResponse { device, call: *call, status: 200, body: b"" }).is_empty());
    assert_eq!(bench.hub.next_deadline(), None);
}

#[test]
fn a_method_without_an_answer_times_out() {
    let mut bench = Bench::online();
    bench.invoke(0, 1);
    assert_eq!(bench.hub.next_deadline(), Some(at(500).at));
    bench.now = 499;
    assert!(bench.give(Input::Timer).is_empty());
    bench.now = 500;
    assert_eq!(code(&bench.give(Input::Timer)), ErrorCode::GatewayTimeout);
}

#[test]
fn a_method_waits_for_its_device_as_long_as_it_may() {
    let mut bench = Bench::new();
    assert_eq!(code(&bench.invoke(0, 1)), ErrorCode::DeviceNotOnline);
    assert!(bench.invoke(100, 2).is_empty());
    assert!(bench.invoke(200, 3).is_empty());
    bench.now = 100;
    assert_eq!(code(&bench.give(Input::Timer)), ErrorCode::DeviceNotOnline);
    bench.now = 150;
    assert!(matches!(bench.connect(1, true)[..], [Output::Accepted { .. }]));
    let out = bench.give(Input::Subscribe { device: bench.device, topics: Topics::METHODS });
    assert!(matches!(out[..], [Output::Method { .. }]));
    assert_eq!(bench.hub.next_deadline(), Some(at(650).at));
}

#[test]
fn c2d_messages_wait_are_delivered_in_order_and_completed_by_their_acknowledgement() {
    let mut bench = Bench::new();
    assert!(matches!(bench.send("a", Feedback::Full)[..], [Output::Service(Ok(Done::Queued { depth: 1 }))]));
    bench.send("b", Feedback::None);
    bench.connect(1, false);
    let out = bench.give(Input::Subscribe { device: bench.device, topics: Topics::C2D });
    assert_eq!(deliveries(&out), [(1, "a".into()), (2, "b".into())]);
    assert_eq!(deliveries(&bench.send("c", Feedback::None)), [(3, "c".into())]);
    let device = bench.device;
    assert_eq!(feedback(&bench.give(Input::C2dAck { device, delivery: 1 })), [FeedbackStatus::Success]);
    assert!(bench.give(Input::C2dAck { device, delivery: 1 }).is_empty());
    assert!(bench.give(Input::C2dAck { device, delivery: 3 }).is_empty());
    assert_eq!(bench.hub.twin(device).c2d_waiting, 1);
    // Without an acknowledgement it comes again with the next connection.
    bench.give(Input::Disconnect { device, session: 1 });
    assert_eq!(deliveries(&bench.connect(2, false)), [(4, "b".into())]);
}

#[test]
fn a_c2d_message_ends_after_ten_deliveries() {
    let mut bench = Bench::online();
    bench.send("poison", Feedback::Negative);
    let device = bench.device;
    for session in 1..10 {
        assert_eq!(feedback(&bench.give(Input::Disconnect { device, session })), []);
        bench.connect(session + 1, true);
        let out = bench.give(Input::Subscribe { device, topics: Topics::C2D });
        assert_eq!(deliveries(&out).len(), 1);
    }
    let out = bench.give(Input::Disconnect { device, session: 10 });
    assert_eq!(feedback(&out), [FeedbackStatus::DeliveryCountExceeded]);
    assert_eq!(bench.hub.twin(device).c2d_waiting, 0);
}

#[test]
fn a_c2d_message_that_was_fetched_is_locked_until_it_is_settled_or_a_minute_has_passed() {
    let mut bench = Bench::new();
    let device = bench.device;
    let fetch = |bench: &mut Bench, lock| match &bench.give(Input::ReceiveC2d { device, lock })[..] {
        [Output::Service(Ok(Done::Received(received)))] => received.as_ref().map(|received| {
            (String::from_utf8_lossy(&received.message.body).into_owned(), received.deliveries)
        }),
        out => panic!("{out:?}"),
    };
    let settle = |bench: &mut Bench, lock, outcome| bench.give(Input::SettleC2d { device, lock, outcome });
    let fetched = |body: &str, deliveries| Some((body.to_owned(), deliveries));
    assert_eq!(fetch(&mut bench, 1), None);
    for body in ["a", "b", "c"] {
        bench.send(body, Feedback::Full);
    }
    assert_eq!(fetch(&mut bench, 2), fetched("a", 1));
    assert_eq!(fetch(&mut bench, 3), fetched("b", 1));
    let out = settle(&mut bench, 2, Settlement::Complete);
    assert!(matches!(out[0], Output::Service(Ok(Done::Settled))));
    assert_eq!(feedback(&out), [FeedbackStatus::Success]);
    assert_eq!(code(&settle(&mut bench, 2, Settlement::Complete)), ErrorCode::DeviceMessageLockLost);
    assert_eq!(feedback(&settle(&mut bench, 3, Settlement::Abandon)), []);
    assert_eq!(fetch(&mut bench, 4), fetched("b", 2), "it comes again, in its old place");
    assert_eq!(feedback(&settle(&mut bench, 4, Settlement::Reject)), [FeedbackStatus::Rejected]);

    // A connection gets what is not locked; the rest when the lock passes.
    assert_eq!(fetch(&mut bench, 5), fetched("c", 1));
    bench.send("d", Feedback::None);
    bench.connect(1, false);
    let out = bench.give(Input::Subscribe { device, topics: Topics::C2D });
    assert_eq!(deliveries(&out), [(1, "d".into())]);
    bench.now = 59_999;
    assert!(bench.give(Input::Timer).is_empty());
    bench.now = 60_000;
    assert_eq!(deliveries(&bench.give(Input::Timer)), [(2, "c".into())]);
    assert_eq!(code(&settle(&mut bench, 5, Settlement::Complete)), ErrorCode::DeviceMessageLockLost);
    // A connection's end returns what it had, and not what is locked.
    bench.give(Input::C2dAck { device, delivery: 2 });
    bench.give(Input::Disconnect { device, session: 1 });
    assert_eq!(fetch(&mut bench, 6), fetched("d", 2));
    bench.connect(2, false);
    bench.give(Input::Disconnect { device, session: 2 });
    assert_eq!(fetch(&mut bench, 7), None);
    bench.give(Input::PurgeC2d { device });
    assert_eq!(bench.hub.next_deadline(), None, "no lock is left");
}

#[test]
fn a_c2d_message_that_is_always_abandoned_ends_after_ten_deliveries() {
    let mut bench = Bench::new();
    bench.send("poison", Feedback::Negative);
    let device = bench.device;
    for lock in 1..=10 {
        bench.give(Input::ReceiveC2d { device, lock });
        let out = bench.give(Input::SettleC2d { device, lock, outcome: Settlement::Abandon });
        let expected: &[FeedbackStatus] =
            if lock == 10 { &[FeedbackStatus::DeliveryCountExceeded] } else { &[] };
        assert_eq!(feedback(&out), expected);
    }
    assert_eq!(bench.hub.twin(device).c2d_waiting, 0);
}

#[test]
fn a_c2d_queue_is_bounded_expires_and_can_be_purged() {
    let mut bench = Bench::new();
    for _ in 0..limits::C2D_QUEUE {
        bench.send("x", Feedback::Negative);
    }
    assert_eq!(code(&bench.send("x", Feedback::None)), ErrorCode::DeviceMaximumQueueDepthExceeded);
    assert_eq!(code(&bench.send(&"x".repeat(64 * 1024 + 1), Feedback::None)), ErrorCode::MessageTooLarge);
    bench.now = 3_600_000;
    assert_eq!(bench.hub.next_deadline(), Some(at(bench.now).at));
    assert_eq!(feedback(&bench.give(Input::Timer)), vec![FeedbackStatus::Expired; 50]);
    let device = bench.device;
    let expires = Some(at(bench.now + 20).wall);
    let message = Arc::new(C2dMessage { expires, feedback: Feedback::Full, ..C2dMessage::default() });
    bench.give(Input::SendC2d { device, message: Arc::clone(&message) });
    assert_eq!(bench.hub.next_deadline(), Some(at(bench.now + 20).at));
    let out = bench.give(Input::PurgeC2d { device });
    assert!(matches!(out[0], Output::Service(Ok(Done::Purged { dropped: 1 }))));
    assert_eq!(feedback(&out), [FeedbackStatus::Purged]);
    assert_eq!(bench.hub.next_deadline(), None);
    bench.now += 20;
    assert_eq!(code(&bench.give(Input::SendC2d { device, message })), ErrorCode::InvalidMessageExpiryTime);
}

#[test]
fn a_deleted_device_takes_what_was_its_with_it() {
    let mut bench = Bench::online();
    bench.invoke(0, 5);
    bench.send("x", Feedback::Full);
    bench.put("c", 1, "*", r#"{"properties.desired.a":1}"#);
    let device = bench.device;
    let out = bench.give(Input::DeleteDevice { device, if_match: None });
    assert!(matches!(
        &out[..],
        [
            Output::Service(Ok(Done::DeviceDeleted)),
            Output::Close { reason: CloseReason::Deleted, .. },
            Output::MethodResult { tag: 5, result: Err(_) }
        ]
    ));
    assert_eq!((bench.hub.len(), bench.hub.find("dev-0000001"), bench.hub.next_deadline()), (0, None, None));
    assert_eq!(bench.hub.configuration_counts("c"), Some(Counts::default()));
    assert_eq!(code(&bench.give(Input::DeleteDevice { device, if_match: None })), ErrorCode::DeviceNotFound);
    assert_eq!(code(&bench.invoke(0, 6)), ErrorCode::DeviceNotFound);
    let again = bench.hub.create_device(at(9), "dev-0000001", DeviceSpec::default()).unwrap();
    assert_ne!(again, device);
    assert_eq!(bench.hub.twin(again).desired.text(), r#"{"a":1}"#);
}

#[test]
fn a_device_is_made_once_with_checked_sections() {
    let mut bench = Bench::new();
    let mut make = |id, spec| bench.hub.create_device(at(0), id, spec).map_err(|error| error.code);
    assert_eq!(make("dev-0000001", DeviceSpec::default()), Err(ErrorCode::DeviceAlreadyExists));
    assert_eq!(make("no good", DeviceSpec::default()), Err(ErrorCode::ArgumentInvalid));
    let tags = format!("{{\"a\":[{}]}}", vec![format!("\"{}\"", "x".repeat(4096)); 2].join(","));
    let spec = DeviceSpec { tags: Some(&tags), ..DeviceSpec::default() };
    assert_eq!(make("dev-2", spec), Err(ErrorCode::MessageTooLarge));
    let spec = DeviceSpec { reported: Some("[]"), ..DeviceSpec::default() };
    assert_eq!(make("dev-2", spec), Err(ErrorCode::IotHubFormatError));
    assert_eq!(bench.hub.len(), 1);
}

#[test]
fn a_twin_write_with_a_stale_etag_is_refused() {
    let mut bench = Bench::new();
    let device = bench.device;
    let tag = |if_match| Input::PatchTwin { device, tags: Some(b"{\"a\":1}"), desired: None, if_match };
    assert_eq!(bench.hub.twin(device).etag.to_string(), "AAAAAAAAAAE=");
    assert!(matches!(bench.give(tag(Some("\"AAAAAAAAAAE=\"")))[..], [Output::Service(Ok(_))]));
    assert_eq!(code(&bench.give(tag(Some("AAAAAAAAAAE=")))), ErrorCode::PreconditionFailed);
    for force in [Some("*"), Some("\"*\""), None] {
        assert!(matches!(bench.give(tag(force))[..], [Output::Service(Ok(_))]));
    }
}

#[test]
fn read_only_members_that_a_service_sends_back_are_ignored() {
    let mut bench = Bench::online();
    let desired: &[u8] = br#"{"a":1,"$version":9,"$metadata":{"x":1}}"#;
    let device = bench.device;
    let out = bench.give(Input::ReplaceTwin { device, tags: None, desired: Some(desired), if_match: None });
    assert!(matches!(&out[1], Output::Desired { version: 2, patch, .. } if patch.text() == r#"{"a":1}"#));
}

#[test]
fn a_device_hears_of_a_patch_as_the_back_end_sent_it() {
    let mut bench = Bench::online();
    let device = bench.device;
    let desired: &[u8] = br#"{"a":{"b":1},"gone":null}"#;
    let out = bench.give(Input::PatchTwin { device, tags: None, desired: Some(desired), if_match: None });
    let Output::Desired { version, patch, .. } = &out[1] else { panic!("{out:?}") };
    let mut body = Vec::new();
    patch.write(*version, &mut body);
    assert_eq!(body, br#"{"a":{"b":1},"gone":null,"$version":2}"#);
    let mut twin = Vec::new();
    bench.hub.write_device_twin(device, &mut twin);
    assert_eq!(twin, br#"{"desired":{"a":{"b":1},"$version":2},"reported":{"$version":1}}"#);
}

#[test]
fn priorities_decide_and_what_a_higher_one_hid_comes_back() {
    let mut bench = Bench::online();
    let device = bench.device;
    let write: &[u8] = br#"{"a":{"own":1}}"#;
    bench.give(Input::PatchTwin { device, tags: None, desired: Some(write), if_match: None });
    bench.put("low", 1, "*", r#"{"properties.desired.a":{"x":1}}"#);
    assert_eq!(bench.desired(), r#"{"a":{"x":1}}"#);
    let out = bench.put("high", 2, "*", r#"{"properties.desired.a":{"y":2}}"#);
    assert!(matches!(&out[1], Output::Desired { patch, .. } if patch.text() == r#"{"a":{"x":null,"y":2}}"#));
    assert_eq!(bench.hub.configuration_counts("low"), Some(Counts { targeted: 1, applied: 0 }));
    // What is hidden can change, and the device hears nothing of it.
    assert!(matches!(
        bench.put("low", 1, "*", r#"{"properties.desired.a":{"x":3}}"#)[..],
        [Output::Service(Ok(_))]
    ));
    let input = Input::PatchTwin { device, tags: None, desired: Some(br#"{"a":{"own":2}}"#), if_match: None };
    assert!(matches!(bench.give(input)[..], [Output::Service(Ok(_))]));
    bench.give(Input::DeleteConfiguration { id: "high", if_match: None });
    assert_eq!(bench.desired(), r#"{"a":{"x":3}}"#);
    bench.give(Input::DeleteConfiguration { id: "low", if_match: None });
    assert_eq!(bench.desired(), r#"{"a":{"own":2}}"#);
    assert_eq!(
        code(&bench.give(Input::DeleteConfiguration { id: "low", if_match: None })),
        ErrorCode::ConfigurationNotFound
    );
}

#[test]
fn a_write_says_whether_a_configuration_hides_some_of_it() {
    let mut bench = Bench::online();
    let device = bench.device;
    bench.put("rollout", 1, "*", r#"{"properties.desired.firmware":{"id":"fw-2"}}"#);
    for (desired, hidden, heard) in [
        (r#"{"firmware":{"cancel":true}}"#, true, None),
        (r#"{"firmware":{"cancel":true},"other":1}"#, true, Some(r#"{"other":1}"#)),
        (r#"{"firmware":null}"#, true, None),
        // As it stands there: what SDKs write back that have read a twin.
        (r#"{"firmware":{"id":"fw-2"},"other":2}"#, false, Some(r#"{"firmware":{"id":"fw-2"},"other":2}"#)),
        ("{}", false, None),
    ] {
        let desired = Some(desired.as_bytes());
        let out = bench.give(Input::PatchTwin { device, tags: None, desired, if_match: None });
        let sent = out.iter().find_map(|output| match output {
            Output::Desired { patch, .. } => Some(patch.text()),
            _ => None,
        });
        assert_eq!(sent, heard, "{out:?}");
        let Output::Service(Ok(Done::TwinWritten { hidden: said })) = out[0] else { panic!("{out:?}") };
        assert_eq!(said, hidden, "{out:?}");
    }
    // What a configuration of higher priority puts inside the other's path counts, and goes with it.
    let out = bench.put("stop", 2, "*", r#"{"properties.desired.firmware.cancel":true}"#);
    assert!(
        matches!(&out[1], Output::Desired { patch, .. } if patch.text() == r#"{"firmware":{"cancel":true}}"#)
    );
    let out = bench.give(Input::DeleteConfiguration { id: "stop", if_match: None });
    assert!(
        matches!(&out[1], Output::Desired { patch, .. } if patch.text() == r#"{"firmware":{"cancel":null}}"#)
    );
}

#[test]
fn a_twin_that_leaves_a_condition_by_its_own_report_loses_the_values() {
    let mut bench = Bench::online();
    bench.put("c", 1, "properties.reported.a = 1", r#"{"properties.desired.x":1}"#);
    bench.report(r#"{"a":1}"#);
    assert_eq!(bench.desired(), r#"{"x":1}"#);
    let patch = Patch::Json(br#"{"a":2}"#);
    let out = bench.give(Input::Report { device: bench.device, base: None, patch });
    assert!(matches!(&out[1], Output::Desired { version: 3, patch, .. } if patch.text() == r#"{"x":null}"#));
}

#[test]
fn a_condition_on_the_id_tells_equal_twins_apart() {
    let mut hub = Hub::new(Options::default());
    let mut out = Vec::new();
    let devices = ["one", "two"].map(|id| hub.create_device(at(0), id, DeviceSpec::default()).unwrap());
    let condition = "(deviceId = 'two' AND properties.reported.a = 1) OR (deviceId = 'one' AND tags.b = 1)";
    let configuration = Configuration::new(&ConfigurationSpec {
        id: "c",
        target_condition: condition,
        device_content: r#"{"properties.desired.x":1}"#,
        ..ConfigurationSpec::default()
    });
    hub.handle(
        at(0),
        Input::PutConfiguration { configuration: Arc::new(configuration.unwrap()), if_match: None },
        &mut out,
    );
    for device in devices {
        hub.handle(at(0), Input::Connect { device, session: 1, clean: true, model: None }, &mut out);
        let patch = Patch::Json(br#"{"a":1}"#);
        hub.handle(at(0), Input::Report { device, base: None, patch }, &mut out);
    }
    assert_eq!(devices.map(|device| hub.twin(device).desired.text()), ["{}", r#"{"x":1}"#]);
    for device in devices.into_iter().rev() {
        let tags: &[u8] = br#"{"b":1}"#;
        let input = Input::PatchTwin { device, tags: Some(tags), desired: None, if_match: None };
        hub.handle(at(0), input, &mut out);
    }
    assert_eq!(devices.map(|device| hub.twin(device).desired.text()), [r#"{"x":1}"#; 2]);
}

#[test]
fn content_that_does_not_fit_into_a_twin_targets_it_and_is_not_applied() {
    let mut bench = Bench::online();
    let strings = |count| vec![format!("\"{}\"", "x".repeat(4096)); count].join(",");
    let content = |path: &str, count| format!("{{\"properties.desired.{path}\":[{}]}}", strings(count));
    bench.put("low", 1, "*", &content("a", 5));
    bench.put("high", 2, "*", &content("b", 5));
    assert_eq!(bench.hub.configuration_counts("low"), Some(Counts { targeted: 1, applied: 0 }));
    assert_eq!(bench.hub.configuration_counts("high"), Some(Counts { targeted: 1, applied: 1 }));
    bench.give(Input::DeleteConfiguration { id: "high", if_match: None });
    assert_eq!(bench.hub.configuration_counts("low"), Some(Counts { targeted: 1, applied: 1 }));
}

#[test]
fn a_hub_has_at_most_a_hundred_configurations_and_each_can_still_be_changed() {
    let mut bench = Bench::new();
    for number in 0..MAX_CONFIGURATIONS {
        bench.put(&format!("c{number}"), 1, "*", r#"{"properties.desired.a":1}"#);
    }
    assert_eq!(code(&bench.put("more", 1, "*", "{}")), ErrorCode::ConfigurationCountLimitExceeded);
    bench.put("c0", 2, "*", r#"{"properties.desired.a":2}"#);
    assert_eq!(bench.desired(), r#"{"a":2}"#);
}

#[test]
fn with_a_cycle_changed_twins_wait_for_it_and_changed_configurations_do_not() {
    let mut bench =
        Bench::with(Options { cycle: Cycle::Every(Duration::from_secs(300)), ..Options::default() });
    bench.now = 299_000;
    assert_eq!(bench.hub.next_deadline(), Some(at(300_000).at));
    bench.connect(1, true);
    bench.put("c", 1, "properties.reported.a = 1", r#"{"properties.desired.x":1}"#);
    bench.now = 300_000;
    bench.give(Input::Timer);
    assert_eq!(bench.hub.next_deadline(), None);
    assert_eq!(bench.report(r#"{"other":1}"#).0, 204);
    assert_eq!(bench.hub.next_deadline(), None, "no condition mentions it");
    bench.report(r#"{"a":1}"#);
    assert_eq!(bench.desired(), "{}");
    assert_eq!(bench.hub.next_deadline(), Some(at(600_000).at));
    bench.now = 600_000;
    bench.give(Input::Timer);
    assert_eq!(bench.desired(), r#"{"x":1}"#);
    bench.put("c", 1, "properties.reported.a = 1", r#"{"properties.desired.x":2}"#);
    assert_eq!(bench.desired(), r#"{"x":2}"#);
}

#[test]
fn a_fleet_that_reports_unique_values_leaves_nothing_behind() {
    let mut hub = Hub::new(Options::default());
    hub.store.sweep_above(8);
    let mut out = Vec::new();
    let devices: Vec<_> = (0..20)
        .map(|number| hub.create_device(at(0), &format!("d{number}"), DeviceSpec::default()).unwrap())
        .collect();
    for &device in &devices {
        hub.handle(at(0), Input::Connect { device, session: 1, clean: true, model: None }, &mut out);
    }
    for round in 0..100 {
        for &device in &devices {
            let json = format!("{{\"at\":{round},\"who\":{}}}", device.index());
            let patch = Patch::Json(json.as_bytes());
            hub.handle(at(round), Input::Report { device, base: None, patch }, &mut out);
        }
    }
    assert!(hub.store.entries() < 500, "{}", hub.store.entries());
    assert_eq!(hub.twin(devices[7]).reported.text(), r#"{"at":99,"who":7}"#);
}

#[test]
fn twins_with_the_same_content_share_it() {
    let mut hub = Hub::new(Options::default());
    let spec = DeviceSpec { tags: Some(r#"{"ring":1}"#), ..DeviceSpec::default() };
    let mut make = |id| hub.create_device(at(0), id, spec).unwrap();
    let (one, two) = (make("one"), make("two"));
    let (one, two) = (hub.twin(one), hub.twin(two));
    assert_eq!(one.tags.serial(), two.tags.serial());
    assert!(std::ptr::eq(one.tags, two.tags));
}
