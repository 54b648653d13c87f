//! Who a client is: keys, policies and certificates; and that nobody reaches what is another's.

mod support;

use fleetwave_hub::policy::{DEFAULT_POLICIES, Policy};
use fleetwave_hub::{HubServer, HubServerBuilder, TwinChange};
use fleetwave_hub_core::{Authentication, C2dMessage, Thumbprint};
use fleetwave_protocol::sas::{self, Key};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData as _,
};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    Connect, ConnectReturnCode, Packet, Publish, Subscribe, SubscribeFilter, SubscribeReasonCode,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use support::{Client, EVERY_WAY, HOST, PKI, Shown, Way, later, register, user_name};

fn key(text: &str) -> Key {
    Key::from_bytes(text.as_bytes())
}

fn pair(name: &str) -> Authentication {
    Authentication::Sas {
        primary: key(&format!("{name}, primary")),
        secondary: key(&format!("{name}, secondary")),
    }
}

fn policy((name, rights): (&str, fleetwave_hub::policy::Rights)) -> Policy {
    Policy {
        name: name.to_owned(),
        primary: key(&format!("policy {name}, primary")),
        secondary: key(&format!("policy {name}, secondary")),
        rights,
    }
}

/// A hub with the usual policies, whose devices may be vouched for by `authority`.
fn hub(authority: &str) -> HubServer {
    let local = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let builder = HubServer::builder()
        .shards(2)
        .tcp(local)
        .tls(local, PKI.server_config())
        .https(local, Some(PKI.server_config()))
        .host_name(HOST)
        .host_name("real.azure-devices.net")
        .device_ca(authority);
    let builder = DEFAULT_POLICIES.into_iter().map(policy).fold(builder, HubServerBuilder::policy);
    let server = builder.start().expect("a hub on a free port");
    support::create(&server.control());
    server
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a certificate")).expect("a certificate")
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn shown(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Shown {
    (chain, PrivateKeyDer::try_from(key.serialize_der()).expect("a certificate"))
}

fn copy((chain, key): &Shown) -> Shown {
    (chain.clone(), key.clone_key())
}

fn self_signed(name: &str) -> Shown {
    let key = KeyPair::generate().expect("a certificate");
    let certificate = named(name).self_signed(&key).expect("a certificate");
    shown(vec![certificate.der().clone()], &key)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a CONNECT without a password is answered with.
fn code_with(server: &HubServer, id: &str, shown: Shown) -> ConnectReturnCode {
    let mut connect = Connect::new(id);
    connect.set_login(user_name(id), "");
    let mut client = Client::showing(server, copy(&shown));
    client.send(Packet::Connect(connect.clone()));
    let code = client.connack().code;
    let mut client = Client::showing_over_websocket(server, shown);
    client.send(Packet::Connect(connect));
    assert_eq!(client.connack().code, code, "the same over WebSocket");
    code
}

fn code(server: &HubServer, way: Way, id: &str, user: &str, password: &str) -> ConnectReturnCode {
    let mut connect = Connect::new(id);
    connect.set_login(user, password);
    let mut client = Client::open(server, way, id);
    client.send(Packet::Connect(connect));
    client.connack().code
}

const YES: ConnectReturnCode = ConnectReturnCode::Success;
const NO: ConnectReturnCode = ConnectReturnCode::NotAuthorized;

#[test]
fn either_key_of_a_device_or_module_lets_it_in_and_no_other_key() {
    let server = hub(&authority("unused").pem());
    let control = server.control();
    register(&control, "own", pair("own"));
    register(&control, "own/m", pair("own/m"));
    register(&control, "d1/m", Authentication::Derived);
    let until = later(&control);
    let of = |key: Key, resource: &str| sas::token(&key, &format!("{HOST}/{resource}"), until, None);
    let derived = |id: &str| control.device_key(id);
    for (case, id, token, expected) in [
        ("primary", "own", of(key("own, primary"), "devices/own"), YES),
        ("secondary", "own", of(key("own, secondary"), "devices/own"), YES),
        ("derived", "own", of(derived("own"), "devices/own"), NO),
        ("derived", "d1", of(derived("d1"), "devices/d1"), YES),
        ("in another case", "own", of(key("own, primary"), "devices/OWN"), NO),
        ("primary", "own/m", of(key("own/m, primary"), "devices/own/modules/m"), YES),
        ("secondary", "own/m", of(key("own/m, secondary"), "devices/own/modules/m"), YES),
        ("its key, the device's resource", "own/m", of(key("own/m, primary"), "devices/own"), YES),
        ("the device's key", "own/m", of(key("own, primary"), "devices/own/modules/m"), NO),
        ("the module's key", "own", of(key("own/m, primary"), "devices/own"), NO),
        ("derived", "d1/m", of(derived("d1/m"), "devices/d1/modules/m"), YES),
        ("the device's derived", "d1/m", of(derived("d1"), "devices/d1/modules/m"), NO),
        ("no such module", "d1/n", of(derived("d1/n"), "devices/d1/modules/n"), NO),
    ] {
        for way in EVERY_WAY {
            assert_eq!(code(&server, way, id, &user_name(id), &token), expected, "{id} by {case}, {way:?}");
        }
    }
}

#[test]
fn policies_with_the_right_to_it_let_any_device_in() {
    let server = hub(&authority("unused").pem());
    let control = server.control();
    register(&control, "cert", Authentication::CertificateAuthority);
    let until = later(&control);
    for (policy, rights) in DEFAULT_POLICIES {
        let may = rights.include(fleetwave_hub::policy::Rights::DEVICE_CONNECT);
        for which in ["primary", "secondary"] {
            let key = key(&format!("policy {policy}, {which}"));
            for (resource, id, covers) in [
                ("", "d1", true),
                ("", "cert", true),
                ("/devices/d1", "d1", true),
                ("/devices/d2", "d1", false),
            ] {
                let token = sas::token(&key, &format!("{HOST}{resource}"), until, Some(policy));
                let expected = if may && covers { YES } else { NO };
                let case = format!("{policy} {which} for {resource:?} as {id}");
                assert_eq!(code(&server, Way::Tls, id, &user_name(id), &token), expected, "{case}");
            }
        }
    }
}

#[test]
fn a_user_name_is_understood_in_each_form_that_clients_send() {
    use ConnectReturnCode::BadUserNamePassword;
    let server = hub(&authority("unused").pem());
    let control = server.control();
    let until = later(&control);
    let signed = |host: &str| control.device_token(host, "d1", until);
    let agent = "DeviceClientType=azure-iot-device-iothub-py%2F2.14.0%283.11%3BLinux%29";
    let cases = [
        (format!("{HOST}/d1/?api-version=2019-10-01&{agent}"), HOST, YES),
        (format!("{HOST}/d1/?api-version=2021-04-12&model-id=dtmi%3Aa:b%3B1&{agent}"), HOST, YES),
        (format!("{HOST}/d1/?{agent}&api-version=2020-09-30"), HOST, YES),
        (format!("{HOST}/d1/{agent}&api-version=2016-11-14"), HOST, YES),
        (format!("{HOST}/d1/api-version=2016-11-14"), HOST, YES),
        ("HUB.EXAMPLE/d1/?api-version=2021-04-12".into(), HOST, YES),
        (format!("{HOST}:8883/d1/?api-version=2021-04-12"), HOST, YES),
        ("real.azure-devices.net/d1/?api-version=2021-04-12".into(), "real.azure-devices.net", YES),
        ("real.azure-devices.net/d1/?api-version=2021-04-12".into(), HOST, YES),
        ("other.azure-devices.net/d1/?api-version=2021-04-12".into(), "other.azure-devices.net", NO),
        (format!("{HOST}/d1/?api-version=2021-04-12"), "other.azure-devices.net", NO),
        (format!("{HOST}/d2/?api-version=2021-04-12"), HOST, BadUserNamePassword),
        (format!("{HOST}/d1/m/?api-version=2021-04-12"), HOST, BadUserNamePassword),
        (format!("{HOST}/d1"), HOST, BadUserNamePassword),
        (format!("{HOST}/d1/?{agent}"), HOST, BadUserNamePassword),
        ("d1".into(), HOST, BadUserNamePassword),
    ];
    for (user, host, expected) in cases {
        assert_eq!(
            code(&server, Way::Tls, "d1", &user, &signed(host)),
            expected,
            "{user}, signed for {host}"
        );
        if user.contains("model-id") {
            let twin = String::from_utf8(control.twin("d1").unwrap()).unwrap();
            assert!(twin.contains(r#""modelId":"dtmi:a:b;1""#), "{twin}");
        }
    }
}

#[test]
fn a_certificate_of_its_own_lets_a_device_in_by_its_thumbprint() {
    let server = hub(&authority("unused").pem());
    let control = server.control();
    let [first, second, other] = ["d", "whatever", "d"].map(self_signed);
    let sha1 = hexadecimal(&Sha1::digest(&first.0[0]));
    let sha256 = hexadecimal(&Sha256::digest(&second.0[0])).to_uppercase();
    let registered = Authentication::SelfSigned {
        primary: Some(Thumbprint::parse(&sha1).unwrap()),
        secondary: Some(Thumbprint::parse(&sha256).unwrap()),
    };
    register(&control, "d", registered.clone());
    register(&control, "d/m", registered);
    assert_eq!(code_with(&server, "d", copy(&first)), YES);
    assert_eq!(code_with(&server, "d", copy(&second)), YES, "the name in it does not matter");
    assert_eq!(code_with(&server, "d/m", copy(&first)), YES);
    assert_eq!(code_with(&server, "d", copy(&other)), NO, "another certificate of the same name");
    assert_eq!(code_with(&server, "d1", first), NO, "a device that has a key");
    let token = control.device_token(HOST, "d", later(&control));
    assert_eq!(code(&server, Way::Tls, "d", &user_name("d"), &token), NO, "it has no key");
    assert_eq!(code(&server, Way::Tls, "d", &user_name("d"), ""), NO, "nothing shown");
    let mut connect = Connect::new("d");
    connect.set_login(user_name("d"), "");
    let mut bytes = support::encode(&Packet::Connect(connect)).to_vec();
    assert_eq!(bytes[9] & 0x40, 0, "the codec writes an empty password as none");
    // A password that is there, and empty.
    bytes[9] |= 0x40;
    bytes.extend_from_slice(&[0, 0]);
    bytes[1] += 2;
    let mut client = Client::showing(&server, second);
    client.send_bytes(&bytes);
    assert_eq!(client.connack().code, YES);
    client.send(Packet::PingReq);
    assert_eq!(client.next(), Some(Packet::PingResp));
}

#[test]
fn an_authority_vouches_for_the_devices_whose_names_it_signed_while_it_is_valid() {
    let root = authority("a manufacturer");
    let server = hub(&root.pem());
    let control = server.control();
    register(&control, "d", Authentication::CertificateAuthority);
    register(&control, "e", Authentication::CertificateAuthority);
    let device = KeyPair::generate().unwrap();
    let signed = |params: CertificateParams, issuer: &CertifiedIssuer<'_, KeyPair>| {
        params.signed_by(&device, issuer).unwrap().der().clone()
    };
    let direct = shown(vec![signed(named("d"), &root)], &device);
    assert_eq!(code_with(&server, "d", copy(&direct)), YES);
    assert_eq!(code_with(&server, "e", direct), NO, "made out to another device");
    let mut params = named("a factory");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let factory = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &root).unwrap();
    let leaf = signed(named("d"), &factory);
    let chain = vec![leaf.clone(), factory.der().clone()];
    assert_eq!(code_with(&server, "d", shown(chain, &device)), YES, "through an authority between");
    assert_eq!(code_with(&server, "d", shown(vec![leaf], &device)), NO, "which must be shown");
    let stranger = authority("a manufacturer");
    assert_ne!(stranger.key().der_bytes(), root.key().der_bytes());
    let forged = signed(named("d"), &stranger);
    assert_eq!(code_with(&server, "d", shown(vec![forged], &device)), NO, "an authority of the same name");
    assert_eq!(code_with(&server, "d", self_signed("d")), NO);
    let mut ended = named("d");
    ended.not_after = ended.not_before;
    assert_eq!(code_with(&server, "d", shown(vec![signed(ended, &root)], &device)), NO, "out of date");
}

/// Everything that one device could try to reach of another, or of all.
fn foreign_filters() -> Vec<String> {
    let mut filters: Vec<String> = [
        "#",
        "+",
        "+/#",
        "$iothub/#",
        "$iothub/+/res/#",
        "$iothub/twin/#",
        "$iothub/twin/res/+",
        "$iothub/methods/#",
        "$iothub/methods/POST/d2/#",
        "$iothub/methods/res/#",
        "$iothub/twin/GET/#",
        "$iothub/twin/PATCH/properties/reported/#",
        "$iothub/twin/PATCH/properties/+/#",
        "$dps/registrations/res/#",
        "$dps/#",
        "$SYS/#",
        "$share/g/devices/d2/messages/devicebound/#",
        "$iothub/twin/res/d2/#",
        "devices/#",
        "devices/+/messages/devicebound/#",
        "devices/d1/+/devicebound/#",
        "devices/d1/#",
        "devices/d1/messages/#",
        "devices/d1/messages/events/#",
        "devices/d1/inputs/#",
        "devices/d1/modules/m/inputs/#",
        "devices/d1/modules/m/messages/devicebound/#",
        "devices/d1/modules/+/#",
        "fleetwave/#",
        "fleetwave/events/#",
        "",
    ]
    .map(str::to_owned)
    .into();
    for other in ["d2", "d11", "D1", "d1/../d2", "d2/modules/m", "", "d1 ", "d1%2F..%2Fd2"] {
        filters.push(format!("devices/{other}/messages/devicebound/#"));
        filters.push(format!("devices/{other}/messages/events/#"));
        filters.push(format!("devices/{other}/#"));
    }
    filters
}

fn foreign_topics() -> Vec<String> {
    let mut topics: Vec<String> = [
        "$iothub/twin/res/200/?$rid=1",
        "$iothub/twin/PATCH/properties/desired/?$version=9",
        "$iothub/methods/POST/reboot/?$rid=1",
        "$iothub/twin/GET/",
        "$iothub/twin/d2/GET/?$rid=1",
        "$iothub/d2/twin/GET/?$rid=1",
        "$iothub/twin/PATCH/properties/reported/d2/?$rid=1",
        "$iothub/twin/PATCH/tags/?$rid=1",
        "$dps/registrations/PUT/iotdps-register/?$rid=1",
        "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=1&operationId=1",
        "devices/d1/messages/devicebound/",
        "devices/d1/modules/m/messages/events/",
        "devices/d1/events/",
        "fleetwave/events/telemetry/d2",
        "$SYS/broker",
        "devices",
        "messages/events/",
    ]
    .map(str::to_owned)
    .into();
    for other in ["d2", "d11", "D1", "d2/modules/m", "", "d1 ", "d1%2F..%2Fd2"] {
        topics.push(format!("devices/{other}/messages/events/a=b"));
        topics.push(format!("devices/{other}/messages/devicebound/a=b"));
        topics.push(format!("devices/{other}/modules/m/messages/events/"));
    }
    topics
}

#[test]
fn no_filter_brings_a_device_what_is_anothers() {
    let server = support::hub();
    let control = server.control();
    register(&control, "d1/m", Authentication::Derived);
    let foreign = foreign_filters();
    for way in EVERY_WAY {
        let mut spy = Client::open(&server, way, "d1");
        spy.log_in(&control, "d1");
        let filters: Vec<_> =
            foreign.iter().map(|path| SubscribeFilter::new(path.clone(), QoS::AtLeastOnce)).collect();
        let mut subscribe = Subscribe::new_many(filters);
        subscribe.pkid = 5;
        spy.send(Packet::Subscribe(subscribe));
        let Some(Packet::SubAck(ack)) = spy.next() else { panic!("no SUBACK") };
        for (filter, code) in foreign.iter().zip(ack.return_codes) {
            assert_eq!(code, SubscribeReasonCode::Failure, "{filter}");
        }
        // All that can happen to the others, and to the module of the same device.
        for other in ["d2", "d1/m"] {
            let mut client = Client::open(&server, way, other);
            client.log_in(&control, other);
            let report = "$iothub/twin/PATCH/properties/reported/?$rid=1";
            client.publish_at_most_once(report, format!(r#"{{"way":"{way:?}"}}"#).as_bytes());
            let desired = TwinChange { desired: Some(br#"{"a":1}"#.to_vec()), ..TwinChange::default() };
            control.patch_twin(other, desired).unwrap();
        }
        control.send_c2d("d2", C2dMessage { body: b"secret"[..].into(), ..C2dMessage::default() }).unwrap();
        // The next thing that the spy hears is the answer to its own question, with its own twin.
        spy.send(Packet::Subscribe(support::filters("d1")));
        assert!(matches!(spy.next(), Some(Packet::SubAck(_))));
        let twin = spy.twin();
        assert_eq!(twin, r#"{"desired":{"$version":1},"reported":{"$version":1}}"#);
        spy.send(Packet::Disconnect);
        spy.expect_end();
    }
}

#[test]
fn no_topic_lets_a_device_speak_for_another() {
    let (sender, heard) = std::sync::mpsc::channel();
    let server = support::hub_with(move |message| {
        sender.send((message.device.to_owned(), message.properties.to_owned())).unwrap();
    });
    let control = server.control();
    register(&control, "d1/m", Authentication::Derived);
    let twin_of = |id: &str| control.twin(id).unwrap();
    let before = ["d2", "d1/m"].map(twin_of);
    for way in EVERY_WAY {
        for topic in foreign_topics() {
            let mut client = Client::open(&server, way, "d1");
            client.log_in(&control, "d1");
            client.send(Packet::Publish(Publish::new(&topic, QoS::AtMostOnce, r#"{"forged":true}"#)));
            client.expect_end();
        }
    }
    assert_eq!(["d2", "d1/m"].map(twin_of), before);
    assert!(heard.try_recv().is_err(), "nothing was taken for telemetry");
}

#[test]
fn a_module_speaks_and_listens_on_topics_of_its_own() {
    let (sender, heard) = std::sync::mpsc::channel();
    let server = support::hub_with(move |message| {
        sender.send((message.device.to_owned(), message.properties.to_owned())).unwrap();
    });
    let control = server.control();
    register(&control, "d1/m", Authentication::Derived);
    for way in EVERY_WAY {
        let mut module = Client::open(&server, way, "d1/m");
        module.log_in(&control, "d1/m");
        let paths = [
            ("$iothub/twin/res/#", true),
            ("$iothub/twin/PATCH/properties/desired/#", true),
            ("$iothub/methods/POST/#", true),
            ("devices/d1/modules/m/inputs/#", true),
            ("devices/d1/modules/n/inputs/#", false),
            ("devices/d1/messages/devicebound/#", false),
        ];
        let filters = paths.map(|(path, _)| SubscribeFilter::new(path.into(), QoS::AtMostOnce));
        let mut subscribe = Subscribe::new_many(filters);
        subscribe.pkid = 1;
        module.send(Packet::Subscribe(subscribe));
        let Some(Packet::SubAck(ack)) = module.next() else { panic!("no SUBACK") };
        for ((path, granted), code) in paths.iter().zip(ack.return_codes) {
            assert_eq!(code != SubscribeReasonCode::Failure, *granted, "{path}");
        }
        let events = "devices/d1/modules/m/messages/events/%24.on=out&k=v/";
        module.publish_at_most_once(events, b"x");
        let message = heard.recv_timeout(support::PATIENCE).unwrap();
        assert_eq!(message, ("d1/m".to_owned(), "%24.on=out&k=v".to_owned()));
        let reboot = fleetwave_hub::MethodCall {
            name: "re boot".into(),
            payload: bytes::Bytes::from_static(b"7"),
            connect_timeout: std::time::Duration::ZERO,
            response_timeout: support::PATIENCE,
        };
        let pending = control.invoke_method("d1/m", reboot).unwrap();
        let (topic, body) = module.message();
        let rid = topic.strip_prefix("$iothub/methods/POST/re%20boot/?$rid=").expect("the method's topic");
        assert_eq!(body, "7");
        module.publish_at_most_once(&format!("$iothub/methods/res/201/?$rid={rid}"), b"8");
        let answer = pending.wait().unwrap();
        assert_eq!((answer.status, &answer.payload[..]), (201, &b"8"[..]));
        let desired = format!(r#"{{"way":"{way:?}"}}"#);
        let change = TwinChange { desired: Some(desired.clone().into_bytes()), ..TwinChange::default() };
        control.patch_twin("d1/m", change).unwrap();
        let (topic, body) = module.message();
        assert!(topic.starts_with("$iothub/twin/PATCH/properties/desired/?$version="), "{topic}");
        assert!(body.contains(&format!("{way:?}")), "{body}");
        assert!(module.twin().contains(&format!("{way:?}")));
        let mut other = Client::open(&server, way, "d1");
        other.log_in(&control, "d1");
        assert_eq!(control.metrics().unwrap().connections, 2, "they do not replace one another");
        other.send(Packet::Disconnect);
        other.expect_end();
        module.send(Packet::Disconnect);
        module.expect_end();
    }
}
