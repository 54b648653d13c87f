//! An HTTP(S) endpoint for firmware: blobs by name, byte ranges, signed expiring URLs, and faults on demand.
//!
//! It answers as Azure's blob service does where an agent can tell: `206` with `Content-Range`, `416`, `ETag`,
//! `403` for a bad signature, `503` when it is busy. It holds no copy of what it serves.

mod body;
mod content;
mod fault;
mod service;
mod url;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use fleetwave_protocol::WallTime;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

pub use content::{Content, FileContent};
pub use fault::{Fault, FaultKind};

use crate::clock::Clock;
use crate::listen::{self, ListenError};
use crate::recorder::Recorder;
use body::Pacer;
use url::Signer;

const PREFIX: &str = "/blobs/";

/// Why the endpoint could not start, or a blob not be stored.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The address cannot be listened on.
    #[error("the blob endpoint: {0}")]
    Listen(#[from] ListenError),
    /// No thread or runtime could be had.
    #[error("the blob endpoint could not start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// The name would not survive in a URL.
    #[error("blob name {0:?}: use letters, digits and - . _ ~ /")]
    Name(String),
}

/// What the endpoint has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests that arrived.
    pub requests: u64,
    /// Payload bytes handed to sockets.
    pub bytes: u64,
    /// Requests refused with 403 because of their signature or expiry.
    pub refused: u64,
    /// Requests turned away with 503 because too many were under way.
    pub busy: u64,
    /// Requests that a fault struck.
    pub faults: u64,
    /// Downloads under way.
    pub in_flight: u64,
    /// The most downloads that were ever under way at once.
    pub peak_in_flight: u64,
}

#[derive(Debug, Default)]
struct Tally {
    requests: AtomicU64,
    bytes: AtomicU64,
    refused: AtomicU64,
    busy: AtomicU64,
    faults: AtomicU64,
    in_flight: AtomicU64,
    peak_in_flight: AtomicU64,
}

/// One download under way.
struct Flight(Arc<Shared>);

impl Flight {
    /// Takes one of the places, if one is free.
    fn begin(shared: &Arc<Shared>) -> Option<Self> {
        let tally = &shared.tally;
        let now = tally.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        // From here on the place is given back when the value is dropped.
        let flight = Self(shared.clone());
        if shared.max_concurrent.is_some_and(|most| now > most) {
            return None;
        }
        tally.peak_in_flight.fetch_max(now, Ordering::Relaxed);
        Some(flight)
    }

    fn sent(&self, bytes: u64) {
        self.0.tally.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.tally.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the endpoint's threads and its control share.
struct Shared {
    clock: Clock,
    signer: Signer,
    seed: u64,
    max_concurrent: Option<u64>,
    bandwidth: Option<Arc<Pacer>>,
    blobs: RwLock<HashMap<String, Content>>,
    faults: RwLock<Arc<[Fault]>>,
    tally: Tally,
    recorder: Option<Arc<Recorder>>,
}

/// Settings of the endpoint.
#[derive(Debug)]
pub struct BlobServerBuilder {
    address: SocketAddr,
    secret: Vec<u8>,
    clock: Clock,
    seed: u64,
    bandwidth: Option<u64>,
    max_concurrent: Option<u64>,
    threads: usize,
    tls: Option<Arc<ServerConfig>>,
    host: Option<String>,
    recorder: Option<Arc<Recorder>>,
}

impl BlobServerBuilder {
    /// The address to listen on; a free port of the loopback interface if not set.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    /// The key that URLs are signed with.
    #[must_use]
    pub fn secret(mut self, secret: impl Into<Vec<u8>>) -> Self {
        self.secret = secret.into();
        self
    }

    /// The clock that decides about expiry.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// What the choice of requests for faults depends on.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The bytes a second that all downloads share; no limit if not set.
    #[must_use]
    pub fn bandwidth(mut self, bytes_per_second: u64) -> Self {
        self.bandwidth = Some(bytes_per_second);
        self
    }

    /// How many downloads may be under way at once; the next one gets 503. No limit if not set.
    #[must_use]
    pub fn max_concurrent(mut self, downloads: u64) -> Self {
        self.max_concurrent = Some(downloads);
        self
    }

    /// Serves HTTPS; HTTP if not set.
    #[must_use]
    pub fn tls(mut self, config: Arc<ServerConfig>) -> Self {
        self.tls = Some(config);
        self
    }

    /// The host in URLs; the address if not set.
    #[must_use]
    pub fn host(mut self, name: impl Into<String>) -> Self {
        self.host = Some(name.into());
        self
    }

    /// Keeps every request and what it was answered with.
    #[must_use]
    pub fn recorder(mut self, recorder: Arc<Recorder>) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// How many threads serve; one if not set.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Listens and serves.
    ///
    /// # Errors
    /// If the address is taken or not of this machine, or no thread can be had.
    pub fn start(self) -> Result<BlobServer, BlobError> {
        let listener = listen::bind(self.address)?;
        let address = listener.local_addr().map_err(|error| ListenError::new(self.address, error))?;
        let shared = Arc::new(Shared {
            clock: self.clock,
            signer: Signer::new(&self.secret),
            seed: self.seed,
            max_concurrent: self.max_concurrent,
            bandwidth: self.bandwidth.map(|rate| Arc::new(Pacer::new(rate))),
            blobs: RwLock::default(),
            faults: RwLock::new(Arc::from([])),
            tally: Tally::default(),
            recorder: self.recorder,
        });
        let (stop, stopped) = watch::channel(false);
        let mut threads = Vec::with_capacity(self.threads);
        for index in 0..self.threads {
            let listener = listener.try_clone().map_err(BlobError::Thread)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(BlobError::Thread)?;
            let (shared, stopped, tls) = (shared.clone(), stopped.clone(), self.tls.clone());
            let thread = std::thread::Builder::new()
                .name(format!("blob-{index}"))
                .spawn(move || runtime.block_on(serve(listener, tls, shared, stopped)))
                .map_err(BlobError::Thread)?;
            threads.push(thread);
        }
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let host = self.host.map_or_else(|| address.to_string(), |name| format!("{name}:{}", address.port()));
        let control = BlobControl { address, origin: format!("{scheme}://{host}").into(), shared };
        Ok(BlobServer { control, stop, threads: Mutex::new(threads) })
    }
}

/// A running endpoint. It stops when it is dropped.
pub struct BlobServer {
    control: BlobControl,
    stop: watch::Sender<bool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl BlobServer {
    /// Settings to start with.
    #[must_use]
    pub fn builder() -> BlobServerBuilder {
        BlobServerBuilder {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            secret: b"fleetwave-blob".to_vec(),
            clock: Clock::new(),
            seed: 0,
            bandwidth: None,
            max_concurrent: None,
            threads: 1,
            tls: None,
            host: None,
            recorder: None,
        }
    }

    /// The handle to fill and to watch it.
    #[must_use]
    pub fn control(&self) -> BlobControl {
        self.control.clone()
    }

    /// Ends all downloads and waits for the threads. Doing it twice does nothing.
    pub fn stop(&self) {
        self.stop.send_replace(true);
        let threads = std::mem::take(&mut *self.threads.lock().expect("nothing panics under this lock"));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the blob endpoint panicked");
            }
        }
    }
}

impl Drop for BlobServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Fills, watches and disturbs an endpoint, from any thread.
#[derive(Clone)]
pub struct BlobControl {
    address: SocketAddr,
    /// What URLs begin with.
    origin: Arc<str>,
    shared: Arc<Shared>,
}

impl BlobControl {
    /// The address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stores a blob, in place of one of the same name.
    ///
    /// # Errors
    /// If the name is not fit for a URL.
    pub fn put(&self, name: &str, content: Content) -> Result<(), BlobError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
        if name.is_empty() || !name.bytes().all(allowed) {
            return Err(BlobError::Name(name.to_owned()));
        }
        let mut blobs = self.shared.blobs.write().expect("nothing panics under this lock");
        blobs.insert(name.to_owned(), content);
        Ok(())
    }

    /// Removes a blob; false if there was none.
    #[must_use]
    pub fn remove(&self, name: &str) -> bool {
        let mut blobs = self.shared.blobs.write().expect("nothing panics under this lock");
        blobs.remove(name).is_some()
    }

    /// A URL under which `name`, and nothing else, can be read until `expires`.
    #[must_use]
    pub fn sign_url(&self, name: &str, expires: WallTime) -> String {
        format!("{}{}", self.origin, self.shared.signer.sign(&format!("{PREFIX}{name}"), expires))
    }

    /// Replaces the faults; of those that strike a request the first in the list counts.
    pub fn set_faults(&self, faults: &[Fault]) {
        *self.shared.faults.write().expect("nothing panics under this lock") = faults.into();
    }

    /// What the endpoint has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let tally = &self.shared.tally;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            requests: read(&tally.requests),
            bytes: read(&tally.bytes),
            refused: read(&tally.refused),
            busy: read(&tally.busy),
            faults: read(&tally.faults),
            in_flight: read(&tally.in_flight),
            peak_in_flight: read(&tally.peak_in_flight),
        }
    }
}

/// How long a client may take for its part of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

async fn serve(
    listener: std::net::TcpListener,
    tls: Option<Arc<ServerConfig>>,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    let tls = tls.map(TlsAcceptor::from);
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the blob endpoint cannot use its listener"),
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // The sender's end is the endpoint's end, too.
            _ = stopped.changed() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                let shared = shared.clone();
                match tls.clone() {
                    None => drop(tokio::spawn(converse(stream, shared))),
                    Some(acceptor) => drop(tokio::spawn(async move {
                        match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                            Ok(Ok(stream)) => converse(stream, shared).await,
                            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                            Err(_) => tracing::debug!("a TLS handshake took too long"),
                        }
                    })),
                }
            }
            Err(error) => {
                // Out of descriptors, as a rule: some will come back.
                tracing::warn!(%error, "the blob endpoint cannot accept");
                tokio::time::sleep(listen::ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    let service = hyper::service::service_fn(move |request| service::answer(shared.clone(), request));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a blob connection ended early");
    }
}
