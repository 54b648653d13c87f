//! Connections for downloads: TLS, proxies, every byte counted, and no faster than the device may.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Uri;
use hyper::header::HeaderValue;
#[cfg(feature = "kubernetes")]
use hyper_rustls::FixedServerNameResolver;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
#[cfg(feature = "kubernetes")]
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_service::Service;

use super::gather::Gathering;
use super::rate::Limiter;
use super::settings::{Download, Proxy};
use crate::config::is_loopback;

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Dialling = Pin<Box<dyn Future<Output = Result<TokioIo<Metered>, BoxError>> + Send>>;

/// Makes requests.
pub(crate) type HttpClient = Client<Gathering, Full<Bytes>>;

/// What is read from a connection at once, by TLS, which wants little at a time.
const AHEAD: usize = 64 * 1024;
/// Nothing is read but what is wanted.
const NOT_AHEAD: usize = 1;
/// The most that comes to a download at once.
const PIECE: usize = 128 * 1024;

/// What went over a try's connections, TLS and headers included.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Meter {
    /// Bytes in both directions.
    pub(crate) fn total(&self) -> u64 {
        self.received.load(Ordering::Relaxed) + self.sent.load(Ordering::Relaxed)
    }
}

/// Which hosts are reached through which proxy.
#[derive(Debug)]
pub(crate) struct Proxies {
    matcher: Matcher,
    /// From the environment, which is not meant for this machine itself.
    inherited: bool,
}

impl Proxies {
    pub(crate) fn new(download: &Download) -> Self {
        let (matcher, inherited) = match &download.proxy {
            None => (Matcher::from_env(), true),
            Some(Proxy::None) => (Matcher::builder().build(), false),
            Some(Proxy::Http(url)) => {
                (Matcher::builder().all(url.clone()).no(download.no_proxy.join(",")).build(), false)
            }
        };
        Self { matcher, inherited }
    }

    /// The proxy for `link`, and what it is shown.
    fn proxy(&self, link: &Uri) -> Option<(Uri, Option<HeaderValue>)> {
        if self.inherited && is_loopback(link.host()?) {
            return None;
        }
        let proxy = self.matcher.intercept(link)?;
        Some((proxy.uri().clone(), proxy.basic_auth().cloned()))
    }

    /// What a request without TLS has to show its proxy; with TLS the tunnel shows it.
    pub(crate) fn authorization(&self, link: &Uri) -> Option<HeaderValue> {
        if link.scheme_str() == Some("http") { self.proxy(link)?.1 } else { None }
    }
}

/// A client for one try: what goes over its connections is `meter`ed.
pub(crate) fn client(
    tls: Arc<ClientConfig>,
    proxies: Arc<Proxies>,
    limiter: Option<Arc<Limiter>>,
    meter: Arc<Meter>,
    connect: Duration,
) -> HttpClient {
    // A limited connection is read as slowly as it may be.
    let ahead = if limiter.is_some() { NOT_AHEAD } else { AHEAD };
    let route = Route::new(proxies, Dial { meter, limiter, ahead, ..Dial::new(connect) });
    build(HttpsConnector::from((route, tls)))
}

/// A client for what is no download: no proxy, no limit, nobody's bill. The server's certificate is for `name`, or for
/// the host in the link.
#[cfg(feature = "kubernetes")]
pub(crate) fn direct_client(
    tls: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
    connect: Duration,
) -> HttpClient {
    let proxies = Proxies { matcher: Matcher::builder().build(), inherited: false };
    let route = Route::new(Arc::new(proxies), Dial::new(connect));
    build(match name {
        Some(name) => HttpsConnector::new(route, tls, true, Arc::new(FixedServerNameResolver::new(name))),
        None => HttpsConnector::from((route, tls)),
    })
}

fn build(connector: HttpsConnector<Route>) -> HttpClient {
    let mut client = Client::builder(TokioExecutor::new());
    client.pool_max_idle_per_host(1).http1_max_buf_size(PIECE).build(Gathering(connector))
}

/// Connects to a host or to its proxy.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    dial: Dial,
    proxies: Arc<Proxies>,
}

impl Route {
    fn new(proxies: Arc<Proxies>, mut dial: Dial) -> Self {
        dial.tcp.set_recv_buffer_size(dial.limiter.as_ref().map(|limiter| limiter.socket_buffer()));
        Self { dial, proxies }
    }
}

impl Service<Uri> for Route {
    type Response = TokioIo<Metered>;
    type Error = BoxError;
    type Future = Dialling;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.dial.poll_ready(cx)
    }

    fn call(&mut self, link: Uri) -> Dialling {
        match self.proxies.proxy(&link) {
            None => self.dial.call(link),
            Some((proxy, authorization)) if link.scheme_str() == Some("https") => {
                let mut tunnel = Tunnel::new(proxy, self.dial.clone());
                if let Some(authorization) = authorization {
                    tunnel = tunnel.with_auth(authorization);
                }
                let tunnelling = tunnel.call(link);
                Box::pin(async move { Ok(tunnelling.await?) })
            }
            Some((proxy, _)) => Dial { proxied: true, ..self.dial.clone() }.call(proxy),
        }
    }
}

#[derive(Clone, Debug)]
struct Dial {
    tcp: HttpConnector,
    meter: Arc<Meter>,
    limiter: Option<Arc<Limiter>>,
    /// What is read at once for who wants less.
    ahead: usize,
    proxied: bool,
}

impl Dial {
    /// Without limits, and counted by nobody.
    fn new(connect: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(connect));
        Self { tcp, meter: Arc::default(), limiter: None, ahead: NOT_AHEAD, proxied: false }
    }
}

impl Service<Uri> for Dial {
    type Response = TokioIo<Metered>;
    type Error = BoxError;
    type Future = Dialling;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, address: Uri) -> Dialling {
        let dialling = self.tcp.call(address);
        let (meter, ahead, proxied) = (self.meter.clone(), self.ahead, self.proxied);
        let slow = self.limiter.clone();
        Box::pin(async move {
            let tcp = BufReader::with_capacity(ahead, dialling.await?.into_inner());
            let slow = slow.map(|limiter| Slow {
                piece: vec![0; limiter.piece()],
                limiter,
                until: Box::pin(sleep_until(Instant::now())),
            });
            Ok(TokioIo::new(Metered { tcp, meter, slow, proxied }))
        })
    }
}

/// A connection whose bytes are counted.
#[derive(Debug)]
pub(crate) struct Metered {
    tcp: BufReader<TcpStream>,
    meter: Arc<Meter>,
    slow: Option<Slow>,
    proxied: bool,
}

#[derive(Debug)]
struct Slow {
    limiter: Arc<Limiter>,
    /// Nothing is read before.
    until: Pin<Box<Sleep>>,
    piece: Vec<u8>,
}

impl Connection for Metered {
    fn connected(&self) -> Connected {
        let connected = self.tcp.get_ref().connected();
        if self.proxied { connected.proxy(true) } else { connected }
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len() + this.tcp.buffer().len();
        match &mut this.slow {
            None => ready!(Pin::new(&mut this.tcp).poll_read(cx, buffer))?,
            Some(slow) => {
                ready!(slow.until.as_mut().poll(cx));
                let room = buffer.remaining().min(slow.piece.len());
                let mut piece = ReadBuf::new(&mut slow.piece[..room]);
                ready!(Pin::new(&mut this.tcp).poll_read(cx, &mut piece))?;
                buffer.put_slice(piece.filled());
                let next = slow.limiter.took(piece.filled().len(), Instant::now());
                slow.until.as_mut().reset(next);
            }
        }
        // What was read ahead has come, too.
        let after = buffer.filled().len() + this.tcp.buffer().len();
        this.meter.received.fetch_add((after - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.tcp).poll_write(cx, bytes))?;
        self.meter.sent.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
