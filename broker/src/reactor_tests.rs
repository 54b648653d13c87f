//! A shard whose turns the test takes: what one client can make the others wait for.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use fleetwave_hub_core::{DeviceSpec, Hub, Options};
use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::{self, Key};
use rumqttc::mqttbytes::v4::{Connect, Packet, Publish};
use rumqttc::mqttbytes::{self, QoS};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;
use crate::clock::Clock;
use crate::engine::EngineParts;
use crate::pki::Pki;
use crate::policy::Policies;
use crate::transport::Transports;
use crate::transport::memory::Memory;
use crate::transport::tcp::Tcp;
use crate::transport::tls::Tls;
use crate::x509::Authorities;

const HOST: &str = "localhost";

struct World {
    shard: Shard,
    events: Events,
    plain: SocketAddr,
    secure: SocketAddr,
    client: Arc<ClientConfig>,
    clock: Clock,
}

impl World {
    /// A shard with the devices `d0` to `d2` that nobody runs.
    fn new() -> Self {
        let pki = Pki::load_or_create(None, &[]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pki.ca_pem().as_bytes()).unwrap()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let poll = Poll::new().unwrap();
        let waker = mio::Waker::new(poll.registry(), WAKER).unwrap();
        let (inbox, messages) = Inbox::new(waker);
        let ports = [(); 2].map(|()| Arc::new(Port::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()));
        let [plain, secure] = [ports[0].address(), ports[1].address()];
        let [first, second] = ports;
        let registry = || poll.registry().try_clone().unwrap();
        let transports =
            Transports { tcp: Tcp::new(registry()), tls: Tls::new(registry()), memory: Memory::default() };
        let clock = Clock::new();
        let mut engine = Engine::new(EngineParts {
            hub: Hub::new(Options::default()),
            clock: clock.clone(),
            hooks: Box::new(()),
            throttles: None,
            sinks: Arc::default(),
            journal: None,
            instruments: crate::exposition::Instruments::new(),
        });
        for id in ["d0", "d1", "d2"] {
            engine.create(id, DeviceSpec::default()).unwrap();
        }
        let gate = Gate {
            policies: Arc::new(Policies::default()),
            group_key: group(),
            authorities: Authorities::default(),
        };
        let mut shard = Shard::new(Parts {
            index: 0,
            shards: Arc::new([inbox]),
            assign: Assign::by_hash(),
            gate: Arc::new(gate),
            engine,
            sessions: Sessions::new(transports, false),
            dps: None,
            poll,
            inbox: messages,
            doors: vec![Door::new(first, None), Door::new(second, Some(pki.server_config()))],
        });
        shard.listen();
        Self { shard, events: Events::with_capacity(4096), plain, secure, client: Arc::new(client), clock }
    }

    /// One turn of the shard, without waiting.
    fn turn(&mut self) {
        self.shard.poll.poll(&mut self.events, Some(Duration::ZERO)).unwrap();
        self.shard.turn(&self.events);
    }

    fn open(&self, secure: bool) -> Client {
        let stream = TcpStream::connect(if secure { self.secure } else { self.plain }).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        let name = HOST.try_into().unwrap();
        let tls = secure.then(|| ClientConnection::new(self.client.clone(), name).unwrap());
        Client { stream, tls, input: BytesMut::new() }
    }

    /// A device that is connected. The shard takes as many turns as it needs.
    fn connected(&mut self, id: &str, secure: bool) -> Client {
        let mut client = self.open(secure);
        let mut connect = Connect::new(id);
        let until = WallTime::from_unix_millis(u64::MAX / 2);
        let token = sas::token(&group().derive(id), &format!("{HOST}/devices/{id}"), until, None);
        connect.set_login(format!("{HOST}/{id}/?api-version=2021-04-12"), token);
        client.send(&encode(&Packet::Connect(connect)));
        loop {
            self.turn();
            client.pump();
            if let Some(packet) = client.receive() {
                assert!(matches!(packet, Packet::ConnAck(_)), "{packet:?}");
                return client;
            }
        }
    }
}

fn group() -> Key {
    Key::from_bytes(*b"group")
}

fn encode(packet: &Packet) -> BytesMut {
    let mut bytes = BytesMut::new();
    packet.write(&mut bytes, MAX_PACKET).unwrap();
    bytes
}

/// A client that never waits.
struct Client {
    stream: TcpStream,
    tls: Option<ClientConnection>,
    input: BytesMut,
}

impl Client {
    /// Sends; over TCP only as much as the socket takes.
    fn send(&mut self, bytes: &[u8]) {
        match &mut self.tls {
            None => drop(self.stream.write(bytes)),
            Some(tls) => {
                let _ = tls.writer().write(bytes);
                self.pump();
            }
        }
    }

    /// Moves what TLS has to say.
    fn pump(&mut self) {
        let Some(tls) = &mut self.tls else { return };
        while tls.read_tls(&mut self.stream).is_ok_and(|length| length > 0) {
            tls.process_new_packets().unwrap();
        }
        while tls.wants_write() && tls.write_tls(&mut self.stream).is_ok() {}
    }

    /// Writes until the socket takes nothing more; says how many bytes it took.
    fn flood(&mut self, packet: &[u8]) -> u64 {
        let many = packet.repeat(16 * 1024 / packet.len());
        let mut sent = 0;
        loop {
            match &mut self.tls {
                None => match self.stream.write(&many) {
                    Ok(length) => sent += length as u64,
                    Err(_) => return sent,
                },
                Some(tls) => {
                    if !tls.wants_write() {
                        tls.writer().write_all(&many).unwrap();
                    }
                    match tls.write_tls(&mut self.stream) {
                        Ok(length) => sent += length as u64,
                        Err(_) => return sent,
                    }
                }
            }
        }
    }

    /// The next packet, if it is there.
    fn receive(&mut self) -> Option<Packet> {
        let mut buffer = [0; 4096];
        self.pump();
        let read = match &mut self.tls {
            None => self.stream.read(&mut buffer),
            Some(tls) => tls.reader().read(&mut buffer),
        };
        self.input.extend_from_slice(&buffer[..read.unwrap_or(0)]);
        match Packet::read(&mut self.input, MAX_PACKET) {
            Ok(packet) => Some(packet),
            Err(mqttbytes::Error::InsufficientBytes(_)) => None,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_flood_of_one_client_leaves_every_other_its_part_of_each_turn() {
    for secure in [false, true] {
        let mut world = World::new();
        let mut flooder = world.connected("d0", secure);
        let mut others = [world.connected("d1", true), world.connected("d2", false)];
        let telemetry = Publish::new("devices/d0/messages/events/", QoS::AtMostOnce, vec![b'x'; 1000]);
        let telemetry = encode(&Packet::Publish(telemetry));
        let get = Publish::new("$iothub/twin/GET/?$rid=1", QoS::AtMostOnce, " ");
        let subscribe = rumqttc::mqttbytes::v4::Subscribe::new("$iothub/twin/res/#", QoS::AtMostOnce);
        let ask = [
            Packet::Subscribe(rumqttc::mqttbytes::v4::Subscribe { pkid: 1, ..subscribe }),
            Packet::PingReq,
            Packet::Publish(get),
        ];
        let mut interrupted = 0;
        let mut sent = 0;
        for _ in 0..12 {
            sent += flooder.flood(&telemetry);
            for other in &mut others {
                ask.iter().for_each(|packet| other.send(&encode(packet)));
            }
            let before = world.shard.engine.metrics.bytes_in;
            world.turn();
            let taken = world.shard.engine.metrics.bytes_in - before;
            let most = (READS_A_TURN * READ_BUFFER) as u64 + 4096;
            assert!(taken <= most, "{taken} bytes in one turn");
            interrupted += usize::from(!world.shard.unfinished.is_empty());
            for other in &mut others {
                assert!(matches!(other.receive(), Some(Packet::SubAck(_))), "after one turn");
                assert_eq!(other.receive(), Some(Packet::PingResp));
                assert!(
                    matches!(other.receive(), Some(Packet::Publish(twin)) if twin.topic.contains("/200/"))
                );
            }
        }
        assert!(interrupted > 0, "the flood of {sent} bytes was never more than a turn takes");
    }
}

#[test]
fn a_storm_of_handshakes_leaves_connected_devices_their_part_of_each_turn() {
    let mut world = World::new();
    let mut device = world.connected("d1", true);
    let mut storm: Vec<Client> = (0..3 * HANDSHAKES_A_TURN).map(|_| world.open(true)).collect();
    storm.iter_mut().for_each(Client::pump);
    // They are accepted, and found to have sent something.
    let mut turns = 0;
    let mut answered = 0;
    while answered < storm.len() {
        device.send(&encode(&Packet::PingReq));
        world.turn();
        turns += 1;
        assert_eq!(device.receive(), Some(Packet::PingResp), "in turn {turns}");
        let mut buffer = [0; 1];
        let now = storm.iter().filter(|client| client.stream.peek(&mut buffer).is_ok()).count();
        assert!(
            now - answered <= HANDSHAKES_A_TURN as usize,
            "{} handshakes in turn {turns}",
            now - answered
        );
        answered = now;
        assert!(turns < 20, "{answered} of {} handshakes were answered", storm.len());
    }
    for client in &mut storm {
        client.pump();
        assert!(client.tls.as_ref().is_some_and(|tls| !tls.is_handshaking()));
    }
}

#[test]
fn what_comes_before_the_device_is_known_is_bounded_and_buys_no_time() {
    for secure in [false, true] {
        let mut world = World::new();
        let mut idle = world.open(secure);
        // The length of the largest CONNECT, and of one that is larger.
        for (length, kept) in [([0x80, 0x80, 0x01], true), ([0x81, 0x80, 0x01], false)] {
            let mut client = world.open(secure);
            client.send(&[&[0x10][..], &length, b"\0\x04MQTT\x04\x02"].concat());
            for _ in 0..8 {
                world.turn();
                client.pump();
                client.receive();
            }
            let mut buffer = [0; 1];
            let closed = client.stream.peek(&mut buffer).is_ok_and(|length| length == 0);
            assert_eq!(closed, !kept, "TLS: {secure}");
            if kept {
                // It sends a byte now and then, and is dropped with the one that never sent any.
                for _ in 0..4 {
                    world.clock.advance(Duration::from_secs(9));
                    client.send(b"x");
                    idle.pump();
                    world.turn();
                }
                assert_eq!(world.shard.engine.metrics.expired, 2);
            }
        }
    }
}
