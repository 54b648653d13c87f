//! The clients: one thread, one poll, rumqttc's codec.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::BytesMut;
use fleetwave_protocol::profile::{Profile, QoS};
use fleetwave_protocol::{Up, WallTime, sas};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rumqttc::SubscribeFilter;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, Publish, Subscribe, SubscribeReasonCode};
use rumqttc::mqttbytes::{self, Error};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::serve;

/// Connections that are begun before the ones under way are looked after.
const BURST: usize = 64;
/// A server that has done nothing for so long will not do it. A connection that was not queued tries again after 1, 3
/// and 7 seconds.
const PATIENCE: Duration = Duration::from_secs(15);
const MAX_PACKET: usize = 64 * 1024;
/// Connections from one source address: below the number of ephemeral ports.
const PORTS_AN_ADDRESS: usize = 20_000;
const HOST: &str = "fleetwave.local";
const WRITABLE: &str = "far below 256 MiB, and acknowledged packets have an identifier";

/// What a client says, and when it is ready.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dialog {
    /// A byte there, a byte back; then messages of so many bytes.
    Raw { message: u64 },
    /// CONNECT, CONNACK, SUBSCRIBE, SUBACK.
    Subscriber,
    /// CONNECT with a token, CONNACK, SUBSCRIBE and twin GET, SUBACK and the twin.
    Device,
}

impl Dialog {
    /// What one client sends: at first, and when it has been let in.
    fn script(self, id: &str) -> Script {
        let (mut opening, mut then) = (BytesMut::new(), BytesMut::new());
        match self {
            Self::Raw { .. } => opening.extend_from_slice(b"?"),
            Self::Subscriber => {
                Connect::new(id).write(&mut opening).expect(WRITABLE);
                subscribe([(format!("devices/{id}/down/#"), QoS::AtLeastOnce)], &mut then);
            }
            Self::Device => {
                let mut connect = Connect::new(id);
                connect.clean_session = false;
                let key = serve::group_key().derive(id);
                let token = sas::token(&key, &format!("{HOST}/devices/{id}"), FAR_AWAY, None);
                connect.set_login(format!("{HOST}/{id}/?api-version=2021-04-12"), token);
                connect.write(&mut opening).expect(WRITABLE);
                subscribe(Profile::IotHub.filters(id), &mut then);
                let mut topic = String::new();
                Profile::IotHub.encode_up(id, &Up::TwinGet { rid: "1" }, &mut topic);
                let get = Publish::new(topic, mqttbytes::QoS::AtMostOnce, []);
                get.write(&mut then).expect(WRITABLE);
            }
        }
        Script { opening: opening.to_vec(), then: then.to_vec() }
    }

    /// Answers to what it sent when it had been let in.
    fn answers(self) -> u8 {
        match self {
            Self::Raw { .. } | Self::Subscriber => 1,
            Self::Device => 2,
        }
    }
}

/// The end of all tokens: 2100.
const FAR_AWAY: WallTime = WallTime::from_unix_millis(4_102_444_800_000);

fn subscribe(filters: impl IntoIterator<Item = (String, QoS)>, out: &mut BytesMut) {
    let filters = filters.into_iter().map(|(path, quality)| SubscribeFilter {
        path,
        qos: match quality {
            QoS::AtMostOnce => mqttbytes::QoS::AtMostOnce,
            QoS::AtLeastOnce => mqttbytes::QoS::AtLeastOnce,
        },
    });
    let mut subscribe = Subscribe::new_many(filters);
    subscribe.pkid = 1;
    subscribe.write(out).expect(WRITABLE);
}

#[derive(Debug)]
struct Script {
    opening: Vec<u8>,
    then: Vec<u8>,
}

#[derive(Debug)]
struct Client {
    socket: TcpStream,
    opened: bool,
    answers: u8,
    /// The beginning of a packet whose rest has not come.
    rest: Vec<u8>,
}

/// What came for clients that were ready.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Heard {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// All clients of a server.
pub(crate) struct Fleet {
    address: SocketAddr,
    dialog: Dialog,
    scripts: Vec<Script>,
    clients: Vec<Client>,
    ready: usize,
    heard: Heard,
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    input: BytesMut,
}

impl Fleet {
    /// Clients that have yet to connect; what they will send is made here.
    pub(crate) fn new(address: SocketAddr, dialog: Dialog, devices: u32) -> anyhow::Result<Self> {
        Ok(Self {
            address,
            dialog,
            scripts: (0..devices).map(|number| dialog.script(&serve::device(number))).collect(),
            clients: Vec::with_capacity(devices as usize),
            ready: 0,
            heard: Heard::default(),
            poll: Poll::new().context("no poll; are descriptors left (ulimit -n)?")?,
            events: Events::with_capacity(1024),
            buffer: vec![0; 16 * 1024],
            input: BytesMut::with_capacity(32 * 1024),
        })
    }

    /// Connects everyone, `window` at once, until each is ready.
    pub(crate) fn connect(&mut self, window: usize) -> anyhow::Result<()> {
        let mut patience = Patience::new();
        while self.ready < self.scripts.len() {
            let free = window.saturating_sub(self.clients.len() - self.ready);
            let left = self.scripts.len() - self.clients.len();
            let more = free.min(left);
            for _ in 0..more.min(BURST) {
                self.open()?;
            }
            self.turn(more > BURST)?;
            let ready = self.ready as u64;
            patience.check(ready, || format!("{ready} of {} clients are ready", self.scripts.len()))?;
        }
        Ok(())
    }

    /// Forgets what was heard before.
    pub(crate) fn forget(&mut self) {
        self.heard = Heard::default();
    }

    /// What was heard since.
    pub(crate) fn heard(&self) -> Heard {
        self.heard
    }

    /// Listens until there is a message for everyone.
    pub(crate) fn listen(&mut self) -> anyhow::Result<()> {
        let mut patience = Patience::new();
        while self.heard.messages < self.clients.len() as u64 {
            self.turn(false)?;
            let heard = self.heard;
            patience.check(heard.bytes, || {
                format!("{} of {} messages came", heard.messages, self.clients.len())
            })?;
        }
        Ok(())
    }

    fn open(&mut self) -> anyhow::Result<()> {
        let index = self.clients.len();
        let mut socket = begin(self.address, index / PORTS_AN_ADDRESS)
            .with_context(|| format!("client {index} could not begin to connect to {}", self.address))?;
        self.poll.registry().register(&mut socket, Token(index), Interest::READABLE | Interest::WRITABLE)?;
        self.clients.push(Client { socket, opened: false, answers: 0, rest: Vec::new() });
        Ok(())
    }

    /// Deals with what happened; waits for it unless there is something else to do.
    fn turn(&mut self, busy: bool) -> anyhow::Result<()> {
        let timeout = if busy { Duration::ZERO } else { Duration::from_millis(200) };
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            let index = event.token().0;
            let client = &mut self.clients[index];
            if event.is_writable() && !client.opened {
                client.opened = true;
                client
                    .socket
                    .write_all(&self.scripts[index].opening)
                    .context("the server refused a client")?;
            }
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                self.read(index)?;
            }
        }
        self.events = events;
        Ok(())
    }

    fn read(&mut self, index: usize) -> anyhow::Result<()> {
        loop {
            match self.clients[index].socket.read(&mut self.buffer) {
                Ok(0) => bail!("the server closed the connection of client {index}"),
                Ok(length) => {
                    self.take(index, length)?;
                    // A read that does not fill the buffer has emptied the socket.
                    if length < self.buffer.len() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context(format!("the connection of client {index} broke")),
            }
        }
    }

    /// So many bytes in the buffer came for a client.
    fn take(&mut self, index: usize, length: usize) -> anyhow::Result<()> {
        if let Dialog::Raw { message } = self.dialog {
            let client = &mut self.clients[index];
            if client.answers == 0 {
                client.answers = 1;
                self.ready += 1;
            } else {
                self.heard.bytes += length as u64;
                self.heard.messages = self.heard.bytes / message;
            }
            return Ok(());
        }
        // One buffer for all: a client owns bytes only between the halves of a packet.
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(&self.clients[index].rest);
        self.clients[index].rest.clear();
        input.extend_from_slice(&self.buffer[..length]);
        loop {
            match Packet::read(&mut input, MAX_PACKET) {
                Ok(packet) => self.packet(index, &packet)?,
                Err(Error::InsufficientBytes(_)) => break,
                Err(error) => bail!("client {index} got what is not MQTT: {error}"),
            }
        }
        self.clients[index].rest.extend_from_slice(&input);
        input.clear();
        self.input = input;
        Ok(())
    }

    fn packet(&mut self, index: usize, packet: &Packet) -> anyhow::Result<()> {
        let client = &mut self.clients[index];
        let expected = self.dialog.answers();
        match packet {
            Packet::ConnAck(ack) => {
                ensure!(ack.code == ConnectReturnCode::Success, "client {index} was refused: {:?}", ack.code);
                client.socket.write_all(&self.scripts[index].then)?;
                return Ok(());
            }
            Packet::SubAck(ack) => {
                let refused = ack.return_codes.contains(&SubscribeReasonCode::Failure);
                ensure!(!refused, "a subscription of client {index} was refused");
            }
            Packet::Publish(_) if client.answers == expected => {
                self.heard.messages += 1;
                self.heard.bytes += packet.size() as u64;
                return Ok(());
            }
            Packet::Publish(publish) => {
                let topic = &publish.topic;
                ensure!(
                    topic.starts_with("$iothub/twin/res/200/"),
                    "client {index} got no twin, but {topic}"
                );
            }
            other => bail!("client {index} did not expect {other:?}"),
        }
        client.answers += 1;
        self.ready += usize::from(client.answers == expected);
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for client in &self.clients {
            // Ends with a reset: thousands of ports in TIME_WAIT would be in the way of the next measurement. Where it
            // fails they are, and nothing else.
            let _ = SockRef::from(&client.socket).set_linger(Some(Duration::ZERO));
        }
    }
}

/// Begins to connect. The first source addresses are the system's choice.
fn begin(address: SocketAddr, source: usize) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if source > 0 {
        let last = u8::try_from(source + 1).map_err(|_| io::ErrorKind::AddrNotAvailable)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0)).into())?;
    }
    match socket.connect(&address.into()) {
        // This is how a connect that does not wait begins.
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
            Err(error)
        }
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

/// Ends a wait for what does not come.
struct Patience {
    progress: u64,
    since: Instant,
}

impl Patience {
    fn new() -> Self {
        Self { progress: 0, since: Instant::now() }
    }

    fn check(&mut self, progress: u64, state: impl Fn() -> String) -> anyhow::Result<()> {
        if progress != self.progress {
            *self = Self { progress, since: Instant::now() };
        }
        ensure!(
            self.since.elapsed() < PATIENCE,
            "nothing has come for {} s: {}; try fewer --devices, or a calmer machine",
            PATIENCE.as_secs(),
            state(),
        );
        Ok(())
    }
}
