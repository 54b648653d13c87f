//! MQTT over WebSocket: connections that HTTP servers have accepted, carried to the shards.
//!
//! One thread holds a port of the [memory transport](crate::memory); the connections are tasks of whatever tokio runtime
//! serves them. What a client sends waits until the shards have read what came before; what it does not read is held up
//! to a limit, and then the connection ends.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use mio::{Events, Poll, Token, Waker};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::codec::{self, MAX_PACKET};
use crate::memory::{Event, MemoryConnector, MemoryPort};
use crate::rest::Upgrade;
use crate::tls::PeerIdentity;

/// Where clients find it, in IoT Hub and in its device provisioning.
pub(crate) const PATH: &str = "/$iothub/websocket";
const PROTOCOL: &str = "mqtt";
/// Frames that wait for the bridge's thread.
const QUEUE: usize = 64;
/// Bytes that the shards may leave unread before clients have to wait.
const MAX_UNREAD: usize = 1024 * 1024;
/// How long the thread naps while they do.
const NAP: Duration = Duration::from_millis(1);
/// Bytes that a client may leave unread.
const MAX_UNSENT: usize = 1024 * 1024;
/// How long a client may take to say who it is, and to read a message.
const PATIENCE: Duration = Duration::from_secs(30);
/// A connection at rest owns its reading buffer.
const READ_BUFFER: usize = 4 * 1024;

/// Carries WebSocket connections to the shards of a hub.
#[derive(Clone)]
pub struct Bridge(Arc<Shared>);

struct Shared {
    /// Gone only when the bridge is dropped.
    commands: Option<mpsc::Sender<Command>>,
    waker: Arc<Waker>,
    stopping: Arc<AtomicBool>,
    numbers: Arc<Mutex<Numbers>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.commands = None;
        crate::inbox::wake(&self.waker);
    }
}

/// Numbers of connections, dense.
#[derive(Default)]
struct Numbers {
    free: Vec<u32>,
    next: u32,
}

enum Command {
    Open { number: u32, client: String, peer: PeerIdentity, to_client: Outgoing },
    Bytes { number: u32, bytes: Bytes },
    Close { number: u32 },
}

/// The way to a client, and the bytes that it has not read.
struct Outgoing {
    sender: mpsc::UnboundedSender<Bytes>,
    waiting: Arc<AtomicUsize>,
}

impl Bridge {
    /// Starts the bridge's thread. It ends when the bridge and its connections are gone.
    ///
    /// # Errors
    /// If the system has no descriptors or threads left.
    pub fn new(connector: &MemoryConnector) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), Token(0))?);
        let (commands, received) = mpsc::channel(QUEUE);
        let numbers = Arc::<Mutex<Numbers>>::default();
        let stopping = Arc::<AtomicBool>::default();
        let thread = Thread {
            poll,
            stopping: stopping.clone(),
            port: connector.port(waker.clone()),
            commands: received,
            numbers: numbers.clone(),
            clients: HashMap::new(),
        };
        std::thread::Builder::new().name("hub-websocket".into()).spawn(move || thread.run())?;
        Ok(Self(Arc::new(Shared { commands: Some(commands), waker, stopping, numbers })))
    }

    /// Ends all connections, and the thread. Later ones end at once.
    pub(crate) fn stop(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
        crate::inbox::wake(&self.0.waker);
    }

    /// Serves a connection whose opening handshake is done, until it ends.
    pub async fn serve<S>(&self, io: S, peer: PeerIdentity)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_message_size(Some(MAX_PACKET + 5))
            .max_frame_size(Some(MAX_PACKET + 5));
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
        let Ok(Some((client, first))) = tokio::time::timeout(PATIENCE, first_packet(&mut socket)).await
        else {
            let _ = tokio::time::timeout(PATIENCE, socket.close(None)).await;
            return;
        };
        let number = self.0.numbers.lock().expect("nothing panics under this lock").take();
        let (sender, mut from_hub) = mpsc::unbounded_channel();
        let waiting = Arc::<AtomicUsize>::default();
        let to_client = Outgoing { sender, waiting: waiting.clone() };
        if !self.send(Command::Open { number, client, peer, to_client }).await
            || !self.send(Command::Bytes { number, bytes: first }).await
        {
            return;
        }
        // The number is this task's until its last word, a `Close`.
        loop {
            tokio::select! {
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => {
                        if !self.send(Command::Bytes { number, bytes }).await {
                            break;
                        }
                    }
                    // The library answers pings.
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                    // MQTT is binary; and whatever else ends here is an end.
                    Some(Ok(Message::Text(_) | Message::Close(_)) | Err(_)) | None => break,
                },
                bytes = from_hub.recv() => match bytes {
                    Some(bytes) => {
                        waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
                        let sent = tokio::time::timeout(PATIENCE, socket.send(Message::Binary(bytes))).await;
                        if !matches!(sent, Ok(Ok(()))) {
                            break;
                        }
                    }
                    None => break,
                },
            }
        }
        self.send(Command::Close { number }).await;
        let _ = tokio::time::timeout(PATIENCE, socket.close(None)).await;
    }

    /// Hands a command to the thread; false if it has gone.
    async fn send(&self, command: Command) -> bool {
        let Some(commands) = &self.0.commands else { return false };
        let sent = commands.send(command).await.is_ok();
        if sent {
            crate::inbox::wake(&self.0.waker);
        }
        sent
    }
}

/// The client id of the first packet, and all bytes up to there; `None` if the connection ended before.
async fn first_packet<S>(socket: &mut WebSocketStream<S>) -> Option<(String, Bytes)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut input = BytesMut::new();
    loop {
        match socket.next().await? {
            Ok(Message::Binary(bytes)) => input.extend_from_slice(&bytes),
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
            Ok(Message::Text(_) | Message::Close(_)) => return None,
            Err(Error::ConnectionClosed | Error::AlreadyClosed) => return None,
            Err(error) => {
                tracing::debug!(%error, "a client broke the WebSocket protocol");
                return None;
            }
        }
        // What is no CONNECT is refused by a shard, whichever.
        if let Some(client) = codec::client_id(&input) {
            return Some((client, input.freeze()));
        }
    }
}

impl Numbers {
    fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }
}

/// The bridge's thread.
struct Thread {
    poll: Poll,
    port: MemoryPort,
    commands: mpsc::Receiver<Command>,
    stopping: Arc<AtomicBool>,
    numbers: Arc<Mutex<Numbers>>,
    clients: HashMap<u32, Client>,
}

/// A connection. Its number is free again when both sides have done with it.
struct Client {
    /// Gone once one of them has.
    to_client: Option<Outgoing>,
    /// The hub has confirmed the end.
    confirmed: bool,
    /// The connection's task will send nothing more.
    done: bool,
}

impl Thread {
    fn run(mut self) {
        let mut events = Events::with_capacity(4);
        loop {
            while let Some(batch) = self.port.receive() {
                for (number, event) in batch.iter() {
                    self.heard(number, event);
                }
            }
            if self.stopping.load(Ordering::Relaxed) {
                return;
            }
            let full = loop {
                if self.port.unread() > MAX_UNREAD {
                    break true;
                }
                match self.commands.try_recv() {
                    Ok(command) => self.command(command),
                    Err(mpsc::error::TryRecvError::Empty) => break false,
                    Err(mpsc::error::TryRecvError::Disconnected) => return,
                }
            };
            self.port.flush();
            match self.poll.poll(&mut events, full.then_some(NAP)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!(%error, "the hub cannot carry WebSockets any more");
                    return;
                }
            }
        }
    }

    fn heard(&mut self, number: u32, event: Event<'_>) {
        match event {
            Event::Bytes(bytes) => {
                let Some(client) = self.clients.get_mut(&number) else { return };
                let Some(outgoing) = &client.to_client else { return };
                let waiting = outgoing.waiting.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
                let sent = outgoing.sender.send(Bytes::copy_from_slice(bytes)).is_ok();
                if !sent || waiting > MAX_UNSENT {
                    client.to_client = None;
                    self.port.close(number);
                }
            }
            Event::Closed => {
                if let Some(client) = self.clients.get_mut(&number) {
                    client.to_client = None;
                    client.confirmed = true;
                    self.forget(number);
                }
            }
            // The hub opens nothing.
            Event::Opened => {}
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Open { number, client: id, peer, to_client } => {
                let client = Client { to_client: Some(to_client), confirmed: false, done: false };
                self.clients.insert(number, client);
                self.port.connect_as(number, &id, peer);
            }
            Command::Bytes { number, bytes } => {
                if self.clients.get(&number).is_some_and(|client| client.to_client.is_some()) {
                    self.port.send(number, &bytes);
                }
            }
            Command::Close { number } => {
                if let Some(client) = self.clients.get_mut(&number) {
                    client.done = true;
                    if client.to_client.take().is_some() {
                        self.port.close(number);
                    }
                    self.forget(number);
                }
            }
        }
    }

    fn forget(&mut self, number: u32) {
        if self.clients.get(&number).is_some_and(|client| client.confirmed && client.done) {
            self.clients.remove(&number);
            self.numbers.lock().expect("nothing panics under this lock").free.push(number);
        }
    }
}

/// Whether a request asks for a WebSocket of this protocol on one of these paths.
pub(crate) fn asks_for<B>(request: &Request<B>, paths: &[&str], protocol: &str) -> bool {
    let has = |name: header::HeaderName, wanted: &str| {
        request
            .headers()
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|item| item.trim().eq_ignore_ascii_case(wanted)))
    };
    // One SDK writes a slash at the end.
    let path = request.uri().path().trim_end_matches('/');
    let is = |wanted: &&str| {
        path == *wanted
            || path.strip_prefix("/%24").is_some_and(|rest| Some(rest) == wanted.strip_prefix("/$"))
    };
    paths.iter().any(is)
        && has(header::UPGRADE, "websocket")
        && has(header::CONNECTION, "upgrade")
        && has(header::SEC_WEBSOCKET_PROTOCOL, protocol)
}

/// The answer that opens a WebSocket; `None` if the request has no key, or another version.
pub(crate) fn switch(headers: &HeaderMap, protocol: &'static str) -> Option<Response<Full<Bytes>>> {
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return None;
    }
    let accept = derive_accept_key(headers.get(header::SEC_WEBSOCKET_KEY)?.as_bytes());
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&accept).ok()?);
    Some(response)
}

impl Upgrade for Bridge {
    fn upgrade(&self, request: &mut Request<Incoming>, peer: &PeerIdentity) -> Option<Response<Full<Bytes>>> {
        if !asks_for(request, &[PATH], PROTOCOL) {
            return None;
        }
        let response = switch(request.headers(), PROTOCOL)?;
        let (bridge, peer) = (self.clone(), peer.clone());
        let upgraded = hyper::upgrade::on(request);
        tokio::spawn(async move {
            match upgraded.await {
                Ok(io) => bridge.serve(TokioIo::new(io), peer).await,
                Err(error) => tracing::debug!(%error, "a WebSocket did not open"),
            }
        });
        Some(response)
    }
}
