//! Listens, speaks HTTP, and asks the router.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fleetwave_protocol::bag;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::router::{self, Found, Handler};
use super::{Access, Api, ApiError, Call, Reply, device_access};
use crate::tls::PeerIdentity;

/// The largest body: a bulk operation of a hundred identities with their twins.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// How long a client may take for its TLS handshake, and for a request's header.
const HANDSHAKE: Duration = Duration::from_secs(15);
const HEADER: Duration = Duration::from_secs(30);
/// And for a request's body.
const BODY: Duration = Duration::from_secs(60);
/// Connections at once; others wait in the kernel's queue.
const CONNECTIONS: usize = 2048;
/// The Java SDK, whose HTTP client knows no PATCH, sends it as a POST with this header.
const OVERRIDE: &str = "x-http-method-override";

/// Takes over connections that leave HTTP: WebSockets.
pub(crate) trait Upgrade: Send + Sync {
    /// The answer to a request that asks for it; `None` if it is not for this one. The upgraded connection is served
    /// by a task that the implementation spawns.
    fn upgrade(&self, request: &mut Request<Incoming>, peer: &PeerIdentity) -> Option<Response<Full<Bytes>>>;
}

/// The HTTPS surface of a hub.
pub(crate) struct RestServer {
    pub(crate) api: Arc<Api>,
    /// Plain HTTP without; for tests behind a proxy of their own.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    pub(crate) upgrades: Vec<Arc<dyn Upgrade>>,
}

impl RestServer {
    /// Serves until `stop` turns true, then lets the requests that run come to their end.
    pub(crate) async fn serve(self, listener: TcpListener, mut stop: watch::Receiver<bool>) {
        let server = Arc::new(self);
        for job in server.api.jobs.waiting() {
            server.api.jobs.spawn(server.api.control.clone(), job);
        }
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let acceptor = server.tls.clone().map(TlsAcceptor::from);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stopped(&mut stop) => break,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "the hub cannot accept an HTTPS connection");
                    tokio::time::sleep(crate::listen::ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().acquire_owned().await else { break };
            let (server, acceptor, stop) = (server.clone(), acceptor.clone(), stop.clone());
            tokio::spawn(async move {
                server.connection(stream, from, acceptor, stop).await;
                drop(place);
            });
        }
        server.api.jobs.stop();
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        from: SocketAddr,
        acceptor: Option<TlsAcceptor>,
        stop: watch::Receiver<bool>,
    ) {
        let _ = stream.set_nodelay(true);
        match acceptor {
            None => self.http(stream, PeerIdentity::NONE, stop).await,
            Some(acceptor) => match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let peer = PeerIdentity::of(stream.get_ref().1);
                    self.http(stream, peer, stop).await;
                }
                Ok(Err(error)) => tracing::debug!(%from, %error, "a TLS handshake failed"),
                Err(_) => tracing::debug!(%from, "a TLS handshake took too long"),
            },
        }
    }

    async fn http<S>(self: Arc<Self>, stream: S, peer: PeerIdentity, mut stop: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| {
            let (server, peer) = (self.clone(), peer.clone());
            async move { Ok::<_, Infallible>(server.request(request, peer).await) }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEADER).preserve_header_case(true);
        let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopped(&mut stop) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an HTTPS connection broke off");
        }
    }

    async fn request(&self, mut request: Request<Incoming>, peer: PeerIdentity) -> Response<Full<Bytes>> {
        if request.headers().contains_key(header::UPGRADE)
            && let Some(answer) =
                self.upgrades.iter().find_map(|upgrade| upgrade.upgrade(&mut request, &peer))
        {
            return answer;
        }
        let began = Instant::now();
        let number = self.api.requests.fetch_add(1, Ordering::Relaxed);
        let tracking = format!("{number:016x}");
        let (mut parts, body) = request.into_parts();
        if parts.method == Method::POST && parts.headers.get(OVERRIDE).is_some_and(|verb| verb == "PATCH") {
            parts.method = Method::PATCH;
        }
        let (name, outcome) = match router::find(&parts.method, parts.uri.path()) {
            Found::Nothing => {
                tracing::warn!(method = %parts.method, path = parts.uri.path(), "no such operation in this hub");
                ("", Err(ApiError::NotModelled("this operation (see docs/hub-coverage.md)")))
            }
            Found::OtherMethod(allowed) => ("", Err(ApiError::OtherMethod { allowed: allowed.join(", ") })),
            Found::Operation(operation, params) => {
                let outcome = self.operation(operation, params, &parts, body, peer).await;
                (operation.name, outcome)
            }
        };
        let reply = outcome.unwrap_or_else(|error| {
            tracing::debug!(operation = name, tracking, status = %error.status(), ?error, "refused");
            error.reply(&tracking, self.api.control.clock().now().wall)
        });
        let response = reply.with("x-ms-request-id", tracking).into_response();
        let name = if name.is_empty() { "none" } else { name };
        self.api.control.instruments().request(name, response.status().as_u16(), began.elapsed());
        response
    }

    async fn operation(
        &self,
        operation: &router::Operation,
        params: Vec<String>,
        parts: &hyper::http::request::Parts,
        body: Incoming,
        peer: PeerIdentity,
    ) -> Result<Reply, ApiError> {
        let host = parts
            .headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok())
            .or_else(|| parts.uri.host())
            .unwrap_or_default();
        let mut call = Call {
            api: self.api.clone(),
            params,
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers.clone(),
            extensions: parts.extensions.clone(),
            body: Bytes::new(),
            host: host.to_owned(),
            identity: None,
            peer,
        };
        self.authorize(operation, parts.uri.path(), &mut call).await?;
        let handler = match operation.handler {
            Handler::Does(handler) => handler,
            Handler::NotModelled(feature) => {
                tracing::warn!(feature, "asked for, and not modelled");
                return Err(ApiError::NotModelled(feature));
            }
        };
        call.body = read(body).await?;
        if let Some(limit) = operation.limit {
            let cost = u32::try_from(call.body.len()).unwrap_or(u32::MAX);
            let cost = if limit == fleetwave_hub_core::throttle::Operation::Method { cost } else { 1 };
            self.api.control.admitted(limit, cost).await?;
        }
        handler(call).await
    }

    async fn authorize(
        &self,
        operation: &router::Operation,
        path: &str,
        call: &mut Call,
    ) -> Result<(), ApiError> {
        let api = &self.api;
        let rights = match operation.access {
            Access::Own => return Ok(()),
            Access::Policy(rights) => rights,
            Access::Device => {
                call.identity = Some(device_access::authenticate(operation, call).await?);
                return Ok(());
            }
        };
        let token = call.header("authorization").unwrap_or_default();
        let path = bag::decode(path).unwrap_or_default();
        let resource = format!("{}{path}", call.host);
        let wall = api.control.clock().now().wall;
        match api.policies.check(token, &resource, rights, wall) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Waits for the hub's end.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn read(body: Incoming) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(BODY, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError::Other {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            name: "RequestEntityTooLarge",
            message: format!("a body may have {MAX_BODY} bytes"),
        }),
        Ok(Err(_)) | Err(_) => Err(ApiError::Other {
            status: StatusCode::REQUEST_TIMEOUT,
            name: "RequestTimeout",
            message: "the body did not arrive whole".into(),
        }),
    }
}
