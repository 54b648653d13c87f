//! MQTT over TLS: versions, resumption, records, and what a session at rest holds.

mod support;

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use fleetwave_hub_core::{Authentication, Thumbprint};
use rcgen::{CertificateParams, KeyPair};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, Publish};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, SupportedProtocolVersion};
use sha2::{Digest as _, Sha256};
use support::{Client, HOST, Way, encode, hub, register, user_name};

/// A client configuration for one version of TLS.
fn only(version: &'static SupportedProtocolVersion) -> (ClientConfig, Thumbprint) {
    let key = KeyPair::generate().expect("a certificate");
    let certificate = CertificateParams::default().self_signed(&key).expect("a certificate");
    let digits: String = Sha256::digest(certificate.der()).iter().map(|byte| format!("{byte:02x}")).collect();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("a certificate")
        .with_root_certificates(support::roots())
        .with_client_auth_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).expect("a certificate"),
        )
        .expect("a certificate");
    (config, Thumbprint::parse(&digits).expect("a certificate"))
}

#[test]
fn both_versions_are_spoken_and_a_resumed_session_still_shows_its_certificate() {
    let server = hub();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (config, thumbprint) = only(version);
        let config = Arc::new(config);
        let id =
            format!("{version:?}").chars().filter(char::is_ascii_alphanumeric).take(40).collect::<String>();
        let registered = Authentication::SelfSigned { primary: Some(thumbprint), secondary: None };
        register(&server.control(), &id, registered);
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let name = HOST.try_into().unwrap();
            let connection = ClientConnection::new(config.clone(), name).unwrap();
            let mut stream = support::handshake_of(server.tls_address().unwrap(), connection);
            let mut connect = Connect::new(&id);
            connect.set_login(user_name(&id), "");
            stream.write_all(&encode(&Packet::Connect(connect))).unwrap();
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer, [0x20, 2, 0, 0], "{version:?}, {expected:?}");
            assert_eq!(stream.conn.handshake_kind(), Some(expected), "{version:?}");
            let spoken = stream.conn.protocol_version();
            assert_eq!(spoken == Some(ProtocolVersion::TLSv1_3), *version == rustls::version::TLS13);
        }
    }
}

#[test]
fn messages_of_many_records_arrive_whole_in_both_directions() {
    let (sender, heard) = std::sync::mpsc::channel();
    let server = support::hub_with(move |message| sender.send(message.body.to_vec()).unwrap());
    let mut client = Client::open(&server, Way::Tls, "d1");
    client.log_in(&server.control(), "d1");
    client.subscribe("d1");
    let body: Vec<u8> = (0..250_000u32).map(|byte| byte.to_le_bytes()[1]).collect();
    client.send(Packet::Publish(Publish::new("devices/d1/messages/events/", QoS::AtMostOnce, body.clone())));
    assert!(heard.recv_timeout(support::PATIENCE).unwrap() == body);
    let message = fleetwave_hub_core::C2dMessage {
        body: body[..60_000].into(),
        ..fleetwave_hub_core::C2dMessage::default()
    };
    server.control().send_c2d("d1", message).unwrap();
    assert!(client.publish().payload[..] == body[..60_000]);
    assert_eq!(server.control().metrics().unwrap().buffered, 0, "a session at rest owns no buffer");
}

#[test]
fn garbage_instead_of_a_handshake_is_answered_with_an_alert_and_nothing_else_suffers() {
    let server = hub();
    let mut device = Client::open(&server, Way::Tls, "d1");
    device.log_in(&server.control(), "d1");
    let connect = encode(&Packet::Connect(support::login(&server.control(), "d2")));
    // MQTT without TLS, HTTP, a record of a length that none has, and a handshake message that never ends.
    let endless = [&b"\x16\x03\x01\x40\x00\x01\x00\xff\xff"[..], &[0; 40_000]].concat();
    for bytes in [&connect[..], b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", &endless] {
        let mut stream = std::net::TcpStream::connect(server.tls_address().unwrap()).unwrap();
        stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
        // It may be closed before all of it is written.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => assert_eq!(answer.first(), Some(&0x15), "an alert, not {answer:?}"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
    device.send(Packet::PingReq);
    assert_eq!(device.next(), Some(Packet::PingResp));
    let mut second = Client::open(&server, Way::Tls, "d2");
    assert_eq!(second.log_in(&server.control(), "d2").code, ConnectReturnCode::Success);
}
