//! The HTTP server of the page. It shares the agent's one thread, so it takes few connections and waits for none long.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Counters;

/// Connections at once; others wait.
const CONNECTIONS: usize = 4;
/// How long a connection may take to ask, and to be served.
const PATIENCE: Duration = Duration::from_secs(5);
const LIFE: Duration = Duration::from_secs(60);

/// The page, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Page {
    address: SocketAddr,
    _task: JoinSet<()>,
}

impl Page {
    /// Begins to serve.
    ///
    /// # Errors
    /// If the port cannot be had.
    pub(crate) async fn serve(address: SocketAddr, counters: Counters) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let mut task = JoinSet::new();
        task.spawn(accept(listener, counters));
        Ok(Self { address, _task: task })
    }

    /// Where it is served; the port is a real one also where 0 was asked for.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn accept(listener: TcpListener, counters: Counters) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(seat) = seats.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            // The process is out of descriptors, say. The next try is not at once.
            tokio::time::sleep(PATIENCE).await;
            continue;
        };
        let counters = counters.clone();
        connections.spawn(async move {
            let service = service_fn(|request| {
                let answer = answer(&request, &counters);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(8 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            // A reader who goes away, or stays too long, is no concern of anybody's.
            let _ = tokio::time::timeout(LIFE, connection).await;
            drop(seat);
        });
    }
}

fn answer(request: &Request<Incoming>, counters: &Counters) -> Response<Full<Bytes>> {
    let text = |status: StatusCode, text: String| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        let plain = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, plain);
        response
    };
    if request.uri().path() != "/metrics" {
        return text(StatusCode::NOT_FOUND, "the metrics are at /metrics\n".to_owned());
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "GET reads them\n".to_owned());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    text(StatusCode::OK, counters.text())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(address: SocketAddr, line: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("the page listens");
        let request = format!("{line} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("asked");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    }

    #[tokio::test]
    async fn a_scraper_reads_what_is_so_at_that_time() {
        let counters = Counters::default();
        let page = Page::serve(([127, 0, 0, 1], 0).into(), counters.clone()).await.expect("a port");
        let first = ask(page.address(), "GET /metrics").await;
        assert!(first.starts_with("HTTP/1.1 200 OK\r\n"), "{first}");
        assert!(first.contains("text/plain; version=0.0.4"), "{first}");
        assert!(first.contains("\nfleetwave_agent_reports_total 0\n"), "{first}");
        counters.reported();
        assert!(ask(page.address(), "GET /metrics").await.contains("\nfleetwave_agent_reports_total 1\n"));
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        let page = Page::serve(([127, 0, 0, 1], 0).into(), Counters::default()).await.expect("a port");
        assert!(ask(page.address(), "GET /").await.starts_with("HTTP/1.1 404"));
        assert!(ask(page.address(), "POST /metrics").await.starts_with("HTTP/1.1 405"));
    }

    #[tokio::test]
    async fn some_who_say_nothing_do_not_keep_the_page_from_others() {
        let page = Page::serve(([127, 0, 0, 1], 0).into(), Counters::default()).await.expect("a port");
        let mut silent = Vec::new();
        for _ in 1..CONNECTIONS {
            silent.push(TcpStream::connect(page.address()).await.expect("the page listens"));
        }
        assert!(ask(page.address(), "GET /metrics").await.starts_with("HTTP/1.1 200"));
    }
}
