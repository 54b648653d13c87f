use std::borrow::Cow;

use proptest::prelude::*;

use super::*;

/// The parts that a message is made of, owned, so that proptest can make them.
#[derive(Clone, Debug)]
struct Parts {
    client: String,
    rid: String,
    name: String,
    bag: String,
    body: Vec<u8>,
    status: u16,
    version: Option<u64>,
}

fn parts(client: &'static str) -> impl Strategy<Value = Parts> {
    (
        client,
        "[0-9a-f-]{1,36}",
        ".{1,20}",
        prop::collection::vec((".{1,8}", ".{0,8}"), 0..3),
        prop::collection::vec(any::<u8>(), 0..64),
        100u16..600,
        any::<Option<u64>>(),
    )
        .prop_map(|(client, rid, name, members, body, status, version)| {
            let mut bag = String::new();
            for (key, value) in members {
                crate::bag::push(&mut bag, &key, &value);
            }
            Parts { client, rid, name, bag, body, status, version }
        })
}

fn ups(p: &Parts) -> [Up<'_>; 4] {
    [
        Up::TwinGet { rid: &p.rid },
        Up::Report { rid: &p.rid, base: p.version, patch: &p.body },
        Up::Telemetry { properties: &p.bag, body: &p.body },
        Up::MethodResponse { rid: &p.rid, status: i32::from(p.status), body: &p.body },
    ]
}

fn downs(p: &Parts) -> [Down<'_>; 4] {
    [
        Down::TwinAnswer { rid: &p.rid, status: p.status, version: p.version, body: &p.body },
        Down::Desired { version: p.version.unwrap_or(1), body: &p.body },
        Down::Method { name: Cow::Borrowed(&p.name), rid: &p.rid, body: &p.body },
        Down::CloudToDevice { properties: &p.bag, body: &p.body },
    ]
}

fn round_trips(profile: Profile, p: &Parts) -> Result<(), TestCaseError> {
    let mut topic = String::new();
    for message in ups(p) {
        let packet = profile.encode_up(&p.client, &message, &mut topic);
        prop_assert!(!topic.contains(['#', '+', '\0']), "{topic} cannot be published");
        prop_assert_eq!(profile.decode_up(&p.client, &topic, packet.payload), Ok(message));
    }
    for message in downs(p) {
        let packet = profile.encode_down(&p.client, &message, &mut topic);
        prop_assert!(!topic.contains(['#', '+', '\0']), "{topic} cannot be published");
        prop_assert_eq!(profile.decode_down(&p.client, &topic, packet.payload), Ok(message.clone()));
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_message_survives_the_iot_hub_profile(p in parts("[A-Za-z0-9_.-]{1,16}(/[A-Za-z0-9_.-]{1,16})?")) {
        round_trips(Profile::IotHub, &p)?;
    }

    #[test]
    fn every_message_survives_the_plain_profile(p in parts("[A-Za-z0-9_.-]{1,16}")) {
        round_trips(Profile::Plain, &p)?;
    }

    #[test]
    fn no_topic_makes_a_decoder_panic(topic in ".*", tail in "[/?$=&a-z0-9%]*") {
        let known = ["", "$iothub/twin/res/", "$iothub/methods/POST/", "devices/d/", "fleetwave/d/up/", "fleetwave/d/down/"];
        for prefix in known {
            for topic in [format!("{prefix}{topic}"), format!("{prefix}{tail}")] {
                for profile in [Profile::IotHub, Profile::Plain] {
                    let _ = profile.decode_up("d", &topic, b"");
                    let _ = profile.decode_down("d", &topic, b"");
                }
            }
        }
    }
}

#[test]
fn iot_hub_topics_are_those_of_its_guide() {
    let mut topic = String::new();
    let cases: [(Up<'_>, &str); 5] = [
        (Up::TwinGet { rid: "7" }, "$iothub/twin/GET/?$rid=7"),
        (Up::Report { rid: "7", base: None, patch: b"{}" }, "$iothub/twin/PATCH/properties/reported/?$rid=7"),
        (
            Up::Report { rid: "7", base: Some(3), patch: b"{}" },
            "$iothub/twin/PATCH/properties/reported/?$rid=7&$version=3",
        ),
        (Up::Telemetry { properties: "a=b", body: b"x" }, "devices/d1/messages/events/a=b"),
        (Up::MethodResponse { rid: "7", status: 200, body: b"" }, "$iothub/methods/res/200/?$rid=7"),
    ];
    for (message, expected) in cases {
        Profile::IotHub.encode_up("d1", &message, &mut topic);
        assert_eq!(topic, expected);
    }
}

#[test]
fn no_client_speaks_or_listens_for_another() {
    let theirs = "devices/d2/messages/events/";
    assert_eq!(Profile::IotHub.decode_up("d1", theirs, b""), Err(UnknownTopic));
    assert_eq!(iothub::channel("d1", "devices/d2/messages/devicebound/#"), None);
    assert_eq!(iothub::channel("d1", "devices/d1/messages/devicebound/#"), Some(Channel::CloudToDevice));
    assert_eq!(iothub::channel("d1", "#"), None);
    assert_eq!(iothub::channel("d1", "devices/d1/inputs/#"), None);
    assert_eq!(iothub::channel("d1/m", "devices/d1/modules/m/inputs/#"), Some(Channel::Inputs));
    assert_eq!(Profile::Plain.decode_up("d1", "fleetwave/d2/up/get/1", b""), Err(UnknownTopic));
    assert_eq!(Profile::Plain.decode_down("d1", "fleetwave/d2/down/desired/1", b""), Err(UnknownTopic));
}

#[test]
fn every_filter_of_the_agent_names_a_channel() {
    for client in ["d1", "d1/m"] {
        for (filter, _) in Profile::IotHub.filters(client) {
            assert!(iothub::channel(client, &filter).is_some(), "{filter}");
        }
    }
}
