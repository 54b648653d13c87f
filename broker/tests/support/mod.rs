//! A raw MQTT client that a test can hold, over either transport; and the hubs that it talks to.

#![allow(dead_code, reason = "each test crate uses its part")]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::BytesMut;
use fleetwave_hub::memory::{Event, MemoryPort};
use fleetwave_hub::pki::Pki;
use fleetwave_hub::{Hooks, HubControl, HubServer, NewDevice, Replies, Telemetry};
use fleetwave_hub_core::{Authentication, DeviceSpec, Identity};
use fleetwave_protocol::{Now, WallTime};
use rumqttc::mqttbytes::v4::{
    ConnAck, Connect, ConnectReturnCode, Packet, Publish, Subscribe, SubscribeFilter,
};
use rumqttc::mqttbytes::{self, QoS};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

/// The hub's name in these tests.
pub(crate) const HOST: &str = "hub.example";
/// Long enough for a loaded machine; nothing waits so long unless it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
const MAX_PACKET: usize = 1024 * 1024;

/// How a client's bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Tcp,
    Tls,
    WebSocket,
    Memory,
}

pub(crate) const EVERY_WAY: [Way; 4] = [Way::Tcp, Way::Tls, Way::WebSocket, Way::Memory];

type TlsStream = rustls::StreamOwned<ClientConnection, TcpStream>;

enum Line {
    Tcp(TcpStream),
    Tls(Box<TlsStream>),
    WebSocket(Box<WebSocket<TlsStream>>),
    Memory { port: MemoryPort, poll: mio::Poll, arrived: VecDeque<Vec<u8>>, closed: bool },
}

/// A client with nothing clever in it.
pub(crate) struct Client {
    line: Line,
    input: BytesMut,
}

const CONNECTION: u32 = 3;

impl Client {
    pub(crate) fn open(server: &HubServer, way: Way, device: &str) -> Self {
        let line = match way {
            Way::Tcp => Line::Tcp(connect_tcp(server.address().expect("the hub listens"))),
            Way::Tls => Line::Tls(Box::new(handshake(server, tls_client(None)))),
            Way::WebSocket => Line::WebSocket(Box::new(websocket(server, None))),
            Way::Memory => {
                let poll = mio::Poll::new().expect("poll");
                let waker = mio::Waker::new(poll.registry(), mio::Token(0)).expect("waker");
                let mut port = server.memory().port(Arc::new(waker));
                port.connect(CONNECTION, device);
                port.flush();
                Line::Memory { port, poll, arrived: VecDeque::new(), closed: false }
            }
        };
        Self { line, input: BytesMut::new() }
    }

    /// A client that shows a certificate.
    pub(crate) fn showing(server: &HubServer, shown: Shown) -> Self {
        let line = Line::Tls(Box::new(handshake(server, tls_client(Some(shown)))));
        Self { line, input: BytesMut::new() }
    }

    /// The same over WebSocket.
    pub(crate) fn showing_over_websocket(server: &HubServer, shown: Shown) -> Self {
        Self { line: Line::WebSocket(Box::new(websocket(server, Some(shown)))), input: BytesMut::new() }
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        match &mut self.line {
            // A hub that closed the connection meanwhile is what the test then looks at.
            Line::Tcp(stream) => drop(stream.write_all(bytes)),
            Line::Tls(stream) => drop(stream.write_all(bytes).and_then(|()| stream.flush())),
            Line::WebSocket(socket) => drop(socket.send(Message::Binary(bytes.to_vec().into()))),
            Line::Memory { port, .. } => {
                port.send(CONNECTION, bytes);
                port.flush();
            }
        }
    }

    pub(crate) fn send(&mut self, packet: Packet) {
        self.send_bytes(&encode(&packet));
    }

    /// The next bytes, or `None` at the end of the connection.
    fn receive(&mut self) -> Option<Vec<u8>> {
        let read = |stream: &mut dyn Read| {
            let mut buffer = vec![0; 65_536];
            match stream.read(&mut buffer) {
                Ok(0) => None,
                Ok(length) => Some(buffer[..length].to_vec()),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
                Err(error) => panic!("nothing came: {error}"),
            }
        };
        match &mut self.line {
            Line::Tcp(stream) => read(stream),
            Line::Tls(stream) => read(stream),
            Line::WebSocket(socket) => loop {
                match socket.read() {
                    Ok(Message::Binary(bytes)) => return Some(bytes.to_vec()),
                    Ok(Message::Close(_)) => {}
                    Ok(other) => panic!("the hub sent {other:?}"),
                    Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        panic!("nothing came")
                    }
                    Err(_) => return None,
                }
            },
            Line::Memory { port, poll, arrived, closed } => {
                let mut events = mio::Events::with_capacity(8);
                let give_up = std::time::Instant::now() + PATIENCE;
                loop {
                    while let Some(batch) = port.receive() {
                        for (connection, event) in batch.iter() {
                            assert_eq!(connection, CONNECTION);
                            match event {
                                Event::Bytes(bytes) => arrived.push_back(bytes.to_vec()),
                                Event::Closed => *closed = true,
                                Event::Opened => panic!("a hub opens nothing"),
                            }
                        }
                    }
                    if let Some(bytes) = arrived.pop_front() {
                        return Some(bytes);
                    }
                    if *closed {
                        return None;
                    }
                    assert!(std::time::Instant::now() < give_up, "nothing came");
                    poll.poll(&mut events, Some(Duration::from_millis(100))).expect("poll");
                }
            }
        }
    }

    /// The next packet, or `None` at the end of the connection.
    pub(crate) fn next(&mut self) -> Option<Packet> {
        loop {
            match Packet::read(&mut self.input, MAX_PACKET) {
                Ok(packet) => return Some(packet),
                Err(mqttbytes::Error::InsufficientBytes(_)) => {
                    let bytes = self.receive()?;
                    self.input.extend_from_slice(&bytes);
                }
                Err(error) => panic!("the hub sent garbage: {error}"),
            }
        }
    }

    /// The next PUBLISH: its topic and its payload as text.
    pub(crate) fn message(&mut self) -> (String, String) {
        let publish = self.publish();
        (publish.topic, String::from_utf8(publish.payload.to_vec()).expect("text"))
    }

    pub(crate) fn publish(&mut self) -> Publish {
        match self.next() {
            Some(Packet::Publish(publish)) => publish,
            other => panic!("a PUBLISH was expected, not {other:?}"),
        }
    }

    /// Asserts that the hub closes the connection, perhaps after packets that were under way.
    pub(crate) fn expect_end(&mut self) {
        while self.next().is_some() {}
    }

    pub(crate) fn connack(&mut self) -> ConnAck {
        match self.next() {
            Some(Packet::ConnAck(ack)) => ack,
            other => panic!("a CONNACK was expected, not {other:?}"),
        }
    }

    /// Connects as a device, with a good token.
    pub(crate) fn log_in(&mut self, control: &HubControl, device: &str) -> ConnAck {
        self.send(Packet::Connect(login(control, device)));
        let ack = self.connack();
        assert_eq!(ack.code, ConnectReturnCode::Success);
        ack
    }

    /// Subscribes to everything that a device may, in one packet.
    pub(crate) fn subscribe(&mut self, device: &str) {
        self.send(Packet::Subscribe(filters(device)));
        match self.next() {
            Some(Packet::SubAck(ack)) => assert_eq!(ack.return_codes.len(), 4),
            other => panic!("a SUBACK was expected, not {other:?}"),
        }
    }

    pub(crate) fn publish_at_most_once(&mut self, topic: &str, body: &[u8]) {
        self.send(Packet::Publish(Publish::new(topic, QoS::AtMostOnce, body)));
    }

    /// Reads the twin, which also proves that everything sent before was dealt with.
    pub(crate) fn twin(&mut self) -> String {
        self.publish_at_most_once("$iothub/twin/GET/?$rid=twin", b" ");
        let (topic, body) = self.message();
        assert_eq!(topic, "$iothub/twin/res/200/?$rid=twin");
        body
    }

    /// Sends nothing any more, as far as the transport has such a thing.
    pub(crate) fn hang_up(self) {
        if let Line::Memory { mut port, .. } = self.line {
            port.close(CONNECTION);
            port.flush();
        }
    }
}

pub(crate) fn encode(packet: &Packet) -> BytesMut {
    let mut bytes = BytesMut::new();
    packet.write(&mut bytes, MAX_PACKET).expect("a packet that a client may send");
    bytes
}

/// The certificates of all hubs here.
pub(crate) static PKI: LazyLock<Pki> =
    LazyLock::new(|| Pki::load_or_create(None, &[HOST.to_owned()]).expect("certificates"));

/// A client's certificate chain and its key.
pub(crate) type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The authority of all hubs here.
pub(crate) fn roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(PKI.ca_pem().as_bytes()).expect("a CA")).expect("a CA");
    roots
}

/// How a client speaks TLS: it trusts the hubs here, and shows a certificate if it has one.
pub(crate) fn tls_client(shown: Option<Shown>) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots());
    match shown {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("a pair"),
    }
}

/// A TLS connection to a hub, its handshake done.
pub(crate) fn handshake(server: &HubServer, config: ClientConfig) -> TlsStream {
    handshake_with(server.tls_address().expect("the hub listens"), config)
}

fn handshake_with(address: SocketAddr, config: ClientConfig) -> TlsStream {
    let name = HOST.try_into().expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a configuration");
    handshake_of(address, connection)
}

pub(crate) fn handshake_of(address: SocketAddr, connection: ClientConnection) -> TlsStream {
    let mut stream = rustls::StreamOwned::new(connection, connect_tcp(address));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).expect("a handshake");
    }
    stream
}

/// A WebSocket to a hub, open.
fn websocket(server: &HubServer, shown: Option<Shown>) -> WebSocket<TlsStream> {
    let address = server.https_address().expect("the hub serves HTTPS");
    let mut request = format!("wss://{HOST}/$iothub/websocket").into_client_request().expect("a request");
    request.headers_mut().insert("sec-websocket-protocol", "mqtt".parse().expect("a name"));
    let stream = handshake_with(address, tls_client(shown));
    let (socket, answer) = tungstenite::client(request, stream).expect("an open WebSocket");
    assert_eq!(answer.headers()["sec-websocket-protocol"], "mqtt");
    socket
}

fn connect_tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("the hub accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    stream.set_nodelay(true).expect("nodelay");
    stream
}

/// A time far after every test.
pub(crate) fn later(control: &HubControl) -> WallTime {
    WallTime::from_unix_millis(control.clock().now().wall.as_unix_millis() + 3_600_000)
}

pub(crate) fn user_name(device: &str) -> String {
    format!("{HOST}/{device}/?api-version=2021-04-12&DeviceClientType=test")
}

pub(crate) fn login(control: &HubControl, device: &str) -> Connect {
    let mut connect = Connect::new(device);
    connect.keep_alive = 60;
    connect.set_login(user_name(device), control.device_token(HOST, device, later(control)));
    connect
}

pub(crate) fn filters(device: &str) -> Subscribe {
    let paths = [
        "$iothub/twin/res/#".to_owned(),
        "$iothub/twin/PATCH/properties/desired/#".to_owned(),
        "$iothub/methods/POST/#".to_owned(),
        format!("devices/{device}/messages/devicebound/#"),
    ];
    let mut subscribe = Subscribe::new_many(paths.map(|path| SubscribeFilter::new(path, QoS::AtLeastOnce)));
    subscribe.pkid = 9;
    subscribe
}

/// Registers a device or module that shows who it is in this way.
pub(crate) fn register(control: &HubControl, id: &str, authentication: Authentication) {
    let name = id.to_owned();
    let created = control.with_device_blocking(id, move |shard| {
        let identity = Identity { authentication, generation_id: 1, ..Identity::default() };
        shard.create(&name, DeviceSpec { identity: Some(&identity), ..DeviceSpec::default() }).map(drop)
    });
    created.expect("the hub runs").expect("a new device");
}

/// A hub on every transport with the devices `d1` to `d4`.
pub(crate) fn hub() -> HubServer {
    let server = HubServer::builder()
        .tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
        .tls(SocketAddr::from(([127, 0, 0, 1], 0)), PKI.server_config())
        .https(SocketAddr::from(([127, 0, 0, 1], 0)), Some(PKI.server_config()))
        .host_name(HOST)
        .start()
        .expect("a hub on a free port");
    create(&server.control());
    server
}

pub(crate) fn create(control: &HubControl) {
    let devices = ["d1", "d2", "d3", "d4"].map(NewDevice::new);
    assert_eq!(control.create_devices(devices).expect("new devices"), 4);
}

struct OnTelemetry<F>(F);

impl<F: FnMut(Telemetry<'_>) + Send> Hooks for OnTelemetry<F> {
    fn telemetry(&mut self, _: Now, message: Telemetry<'_>, _: &mut Replies) {
        (self.0)(message);
    }
}

/// The same, with something that hears its telemetry.
pub(crate) fn hub_with(telemetry: impl FnMut(Telemetry<'_>) + Send + 'static) -> HubServer {
    let mut hooks: Option<Box<dyn Hooks>> = Some(Box::new(OnTelemetry(telemetry)));
    let server = HubServer::builder()
        .tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
        .tls(SocketAddr::from(([127, 0, 0, 1], 0)), PKI.server_config())
        .https(SocketAddr::from(([127, 0, 0, 1], 0)), Some(PKI.server_config()))
        .hooks(move |_| hooks.take().expect("one shard"))
        .start()
        .expect("a hub on a free port");
    create(&server.control());
    server
}
