//! HTTPS requests to a hub: connections that are kept, tokens, pauses where the hub asks for them.
//!
//! hyper on one connection at a time, with a pool that is a list: a run has a few hundred requests under way at most,
//! all to one name, which is no work for a larger client.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fleetwave_hub::Clock;
use fleetwave_hub_core::throttle::Operation;
use fleetwave_protocol::{Instant, WallTime};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::access::Access;
use super::pace::Pacer;

/// The version of the operations.
const API: &str = "2021-04-12";
/// How long the hub may take to accept a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a token lasts, and what is left when a new one is made.
const TOKEN_LASTS: Duration = Duration::from_secs(3600);
const TOKEN_LEFT: Duration = Duration::from_secs(300);
/// How often a request is sent at most.
const TRIES: u32 = 8;
/// The first pause where the hub names none; it doubles.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause that is waited for.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// Why a hub did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// It could not be reached.
    #[error("{host}:{port} cannot be reached")]
    Unreachable {
        /// The name that was tried.
        host: String,
        /// The port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// Its certificate was not trusted, or TLS failed otherwise.
    #[error("no TLS connection to {host}:{port}; its authority's certificate can be given by --target-ca")]
    Tls {
        /// The name that was tried.
        host: String,
        /// The port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or what came was no HTTP.
    #[error("the connection to the hub broke in the middle of a request")]
    Broken(#[from] hyper::Error),
    /// No answer.
    #[error("the hub did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// It refused.
    #[error("{what}: the hub answered {status}{}{message}", if message.is_empty() { "" } else { ": " })]
    Refused {
        /// What was asked for.
        what: String,
        /// The status.
        status: StatusCode,
        /// What it says about it.
        message: String,
    },
    /// An answer that is not what it should be.
    #[error("{what}: the hub's answer is not what was expected")]
    Unexpected {
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of certificates that is of no use.
    #[error(transparent)]
    Trust(#[from] super::trust::TrustError),
    /// A file that cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ServiceError {
    /// The status with which the hub refused.
    #[must_use]
    pub const fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the hub cannot have heard of the request.
    fn is_unsent(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            // A connection that was kept and had ended meanwhile.
            Self::Broken(error) => error.is_canceled(),
            _ => false,
        }
    }

    /// Whether the request can have been lost, so that sending it again is worth it.
    const fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Broken(_) | Self::Silent(_))
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// For messages.
    pub(super) what: String,
    pub(super) method: Method,
    /// The path, encoded.
    pub(super) path: String,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Bytes,
    /// What it counts as at the hub, and how much.
    pub(super) operation: Operation,
    pub(super) cost: u32,
    /// Doing it twice is doing it once.
    pub(super) repeatable: bool,
    pub(super) patience: Duration,
}

impl Call {
    pub(super) fn new(what: impl Into<String>, method: Method, path: String, operation: Operation) -> Self {
        Self {
            what: what.into(),
            repeatable: method != Method::POST,
            method,
            path,
            headers: Vec::new(),
            body: Bytes::new(),
            operation,
            cost: 1,
            patience: PATIENCE,
        }
    }

    pub(super) fn json(mut self, body: &Value) -> Self {
        self.body = body.to_string().into();
        self.headers.push((CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8")));
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: HeaderValue) -> Self {
        self.headers.push((HeaderName::from_static(name), value));
        self
    }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// When the request went out that this is the answer to.
    pub(super) sent: Instant,
}

impl Answer {
    pub(super) fn json(&self, what: &str) -> Result<Value, ServiceError> {
        serde_json::from_slice(&self.body)
            .map_err(|error| ServiceError::Unexpected { what: what.to_owned(), source: error.into() })
    }

    fn retry_after(&self) -> Option<Duration> {
        self.headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
    }
}

type Connection = SendRequest<Full<Bytes>>;

/// A client of one hub. Clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    access: Access,
    tls: Arc<ClientConfig>,
    clock: Clock,
    pacer: Arc<Pacer>,
    /// Connections that nobody uses now. Held to take or give one back.
    idle: Mutex<Vec<Connection>>,
    /// The token in use and its end. Held to read it or make a new one.
    token: Mutex<Option<(HeaderValue, WallTime)>>,
    /// Whether the hub was ever reached: one that never was is waited for in vain.
    known: AtomicBool,
}

impl Client {
    pub(super) fn new(access: Access, tls: Arc<ClientConfig>, clock: Clock, pacer: Arc<Pacer>) -> Self {
        let (idle, token) = (Mutex::default(), Mutex::default());
        let known = AtomicBool::new(false);
        Self(Arc::new(Inner { access, tls, clock, pacer, idle, token, known }))
    }

    /// Asks, within the hub's limits, and again where that is safe. Answers that the caller does not expect are
    /// errors.
    pub(super) async fn ask(&self, call: &Call, expected: &[StatusCode]) -> Result<Answer, ServiceError> {
        let mut pause = PAUSE;
        for attempt in 1.. {
            self.0.pacer.wait(call.operation, call.cost).await;
            let outcome = self.once(call).await;
            let again = attempt < TRIES;
            let wait = match outcome {
                Ok(answer) if expected.contains(&answer.status) => return Ok(answer),
                // What was refused for now has not been done.
                Ok(answer)
                    if again
                        && (answer.status == StatusCode::TOO_MANY_REQUESTS
                            || (call.repeatable && answer.status.is_server_error())) =>
                {
                    tracing::debug!(status = %answer.status, what = call.what, "the hub asks for a pause");
                    answer.retry_after().unwrap_or(pause)
                }
                Ok(answer) => return Err(refused(&call.what, &answer)),
                Err(error @ ServiceError::Unreachable { .. }) if !self.0.known.load(Ordering::Relaxed) => {
                    return Err(error);
                }
                Err(error) if again && (error.is_unsent() || (call.repeatable && error.is_transient())) => {
                    tracing::debug!(%error, what = call.what, "a request is sent again");
                    pause
                }
                Err(error) => return Err(error),
            };
            tokio::time::sleep(wait.min(LONGEST_PAUSE)).await;
            pause *= 2;
        }
        unreachable!("the last try returns")
    }

    async fn once(&self, call: &Call) -> Result<Answer, ServiceError> {
        let silent = |patience| move |_| ServiceError::Silent(patience);
        let mut connection = match self.kept().await {
            Some(connection) => connection,
            None => timeout(CONNECT_PATIENCE, self.connect()).await.map_err(silent(CONNECT_PATIENCE))??,
        };
        let request = self.request(call)?;
        let sent = self.0.clock.now().at;
        let exchange = async {
            let response = connection.send_request(request).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>(Answer { status: head.status, headers: head.headers, body, sent })
        };
        let answer = timeout(call.patience, exchange).await.map_err(silent(call.patience))??;
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        Ok(answer)
    }

    /// A connection that is open still.
    async fn kept(&self) -> Option<Connection> {
        loop {
            let connection = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            let mut connection = connection;
            if connection.ready().await.is_ok() {
                return Some(connection);
            }
        }
    }

    async fn connect(&self) -> Result<Connection, ServiceError> {
        let (host, port) = (self.0.access.reach(), self.0.access.https_port());
        let unreachable = |source| ServiceError::Unreachable { host: host.to_owned(), port, source };
        let failed = |source| ServiceError::Tls { host: host.to_owned(), port, source };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(io::Error::other(error)))?;
        let stream = TcpStream::connect((host, port)).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let stream = TlsConnector::from(self.0.tls.clone()).connect(name, stream).await.map_err(failed)?;
        self.0.known.store(true, Ordering::Relaxed);
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "a connection to the hub has ended");
            }
        });
        Ok(sender)
    }

    fn request(&self, call: &Call) -> Result<Request<Full<Bytes>>, ServiceError> {
        let inner = &self.0;
        let separator = if call.path.contains('?') { '&' } else { '?' };
        let host = match inner.access.https_port() {
            443 => inner.access.host().to_owned(),
            port => format!("{}:{port}", inner.access.host()),
        };
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(format!("{}{separator}api-version={API}", call.path))
            .header(HOST, host)
            .header(AUTHORIZATION, self.token())
            .header("user-agent", concat!("fleetwave/", env!("CARGO_PKG_VERSION")));
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        request
            .body(Full::new(call.body.clone()))
            .map_err(|error| ServiceError::Unexpected { what: call.what.clone(), source: error.into() })
    }

    fn token(&self) -> HeaderValue {
        let now = self.0.clock.now().wall;
        let after = |span: Duration| {
            WallTime::from_unix_millis(now.as_unix_millis().saturating_add(span.as_millis() as u64))
        };
        let mut kept = self.0.token.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((token, end)) if *end > after(TOKEN_LEFT) => token.clone(),
            _ => {
                let end = after(TOKEN_LASTS);
                let mut token = HeaderValue::try_from(self.0.access.token(end))
                    .expect("a token is ASCII: what is not is percent-encoded");
                token.set_sensitive(true);
                *kept = Some((token.clone(), end));
                token
            }
        }
    }
}

/// What the hub says about a refusal: its own words if they are in the form that IoT Hub's have.
pub(super) fn refused(what: &str, answer: &Answer) -> ServiceError {
    const MOST: usize = 300;
    let text = String::from_utf8_lossy(&answer.body);
    let message = serde_json::from_slice::<Value>(&answer.body)
        .ok()
        .and_then(|body| Some(body.get("Message").or_else(|| body.get("message"))?.as_str()?.to_owned()))
        .unwrap_or_else(|| text.into_owned());
    let message = message.chars().take(MOST).collect::<String>().trim().to_owned();
    ServiceError::Refused { what: what.to_owned(), status: answer.status, message }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
