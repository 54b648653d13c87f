//! The admin port: health, metrics and the authority's certificate, over plain HTTP for this machine alone.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::exposition::{CONTENT_TYPE, Instruments};
use crate::listen::{self, ListenError};
use crate::{ControlError, HubControl};

/// Shards that take longer than this to answer count as stuck.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a client may take for a request's header.
const HEADER: Duration = Duration::from_secs(10);

/// How a hub is, told by its parts. Clones are the same hub's.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    draining: bool,
    /// The parts that told something of themselves, and what is wrong with them.
    parts: Vec<(&'static str, Option<String>)>,
}

impl Health {
    /// A part works.
    pub fn good(&self, part: &'static str) {
        self.set(part, None);
    }

    /// A part does not work, and why.
    pub fn bad(&self, part: &'static str, why: impl Into<String>) {
        self.set(part, Some(why.into()));
    }

    /// The hub is about to end.
    pub fn drain(&self) {
        self.0.lock().expect("nothing panics under this lock").draining = true;
    }

    /// What is wrong, if something is.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let state = self.0.lock().expect("nothing panics under this lock");
        state.parts.iter().find_map(|(part, why)| Some(format!("{part}: {}", why.as_ref()?)))
    }

    fn set(&self, part: &'static str, why: Option<String>) {
        let mut state = self.0.lock().expect("nothing panics under this lock");
        match state.parts.iter_mut().find(|(name, _)| *name == part) {
            Some(found) => found.1 = why,
            None => state.parts.push((part, why)),
        }
    }

    /// The report, and whether all is well.
    fn report(&self, shards: Option<String>) -> (bool, serde_json::Value) {
        let state = self.0.lock().expect("nothing panics under this lock");
        let parts = std::iter::once(("shards", &shards)).chain(state.parts.iter().map(|(n, w)| (*n, w)));
        let mut good = true;
        let mut report = serde_json::Map::new();
        for (part, why) in parts {
            good &= why.is_none();
            report.insert(part.into(), why.as_deref().unwrap_or("ok").into());
        }
        let status = match (state.draining, good) {
            (true, _) => "draining",
            (false, true) => "ok",
            (false, false) => "failing",
        };
        (good && !state.draining, json!({ "status": status, "parts": report }))
    }
}

/// What the admin port shows.
#[derive(Clone)]
pub struct Admin {
    /// The hub.
    pub control: HubControl,
    /// What it measures.
    pub instruments: Instruments,
    /// How it is.
    pub health: Health,
    /// The certificate that clients have to trust, in PEM form; 404 without.
    pub ca_pem: Option<String>,
}

/// Why the admin port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// It is a port for this machine alone.
    #[error(
        "{0} can be reached by others: the admin port has no access control and listens on loopback only"
    )]
    NotLoopback(SocketAddr),
    /// It cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Its thread cannot be started.
    #[error("the admin port's thread could not be started: {0}")]
    Thread(#[source] io::Error),
}

/// A running admin port. It ends when it is dropped.
pub struct AdminServer {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for AdminServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl AdminServer {
    /// Serves on `address`, which has to be a loopback one; port 0 takes a free one.
    ///
    /// # Errors
    /// If the address is not loopback or taken, or threads are out.
    pub fn start(address: SocketAddr, admin: Admin) -> Result<Self, AdminError> {
        if !address.ip().is_loopback() {
            return Err(AdminError::NotLoopback(address));
        }
        let listener = listen::bind(address)?;
        let address = listener.local_addr().map_err(|error| ListenError::new(address, error))?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AdminError::Thread)?;
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("hub-admin".into())
            .spawn(move || {
                runtime.block_on(async {
                    match TcpListener::from_std(listener) {
                        Ok(listener) => serve(listener, Arc::new(admin), stopped).await,
                        Err(error) => tracing::error!(%error, "the admin port cannot be served"),
                    }
                });
                runtime.shutdown_background();
            })
            .map_err(AdminError::Thread)?;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the admin port panicked");
        }
    }
}

async fn serve(listener: TcpListener, admin: Arc<Admin>, mut stop: watch::Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the admin port cannot accept a connection");
                tokio::time::sleep(listen::ACCEPT_PAUSE).await;
                continue;
            }
        };
        let admin = admin.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let admin = admin.clone();
                async move { Ok::<_, Infallible>(answer(&admin, &request).await) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADER);
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "a connection to the admin port broke off");
            }
        });
    }
}

async fn answer(admin: &Admin, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "the admin port is for reading: use GET\n");
    }
    match request.uri().path() {
        "/healthz" => {
            let (good, report) = admin.health.report(shards(&admin.control).await);
            let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            reply(status, "application/json", format!("{report}\n"))
        }
        "/metrics" => match admin.control.metrics_async().await {
            Ok(metrics) => reply(StatusCode::OK, CONTENT_TYPE, admin.instruments.render(&metrics)),
            Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{error}\n")),
        },
        "/ca.pem" => match &admin.ca_pem {
            Some(pem) => reply(StatusCode::OK, "application/x-pem-file", pem.clone()),
            None => text(StatusCode::NOT_FOUND, "this hub has no authority of its own\n"),
        },
        _ => text(StatusCode::NOT_FOUND, "there are /healthz, /metrics and /ca.pem\n"),
    }
}

/// What is wrong with the shards.
async fn shards(control: &HubControl) -> Option<String> {
    match tokio::time::timeout(PATIENCE, control.with_all(|_| ())).await {
        Ok(Ok(_)) => None,
        Ok(Err(ControlError::Stopped)) => Some("stopped".into()),
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

fn text(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", message.to_owned())
}

fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
