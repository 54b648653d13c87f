//! The names of headers as a client wrote them. Names of properties have a case, names of headers have none, and hyper
//! gives them in lower case.
//!
//! hyper does keep them as they were, and tells it in one way only: a request of its own that has the extensions of
//! the one that came is written with them. So one is written, into a pipe.

use std::collections::HashMap;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::http::Extensions;
use hyper::{HeaderMap, Request};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, DuplexStream};

/// How much of a request is in the pipe at once.
const PIPE: usize = 16 * 1024;

/// The names of `headers` as they were written, by their names in lower case. Those that are missing have been lost.
pub(super) async fn original(headers: HeaderMap, extensions: Extensions) -> HashMap<String, String> {
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.headers_mut() = headers;
    *request.extensions_mut() = extensions;
    let (near, far) = tokio::io::duplex(PIPE);
    let handshake = http1::Builder::new().preserve_header_case(true).handshake(TokioIo::new(near));
    let Ok((mut sender, connection)) = handshake.await else { return HashMap::new() };
    let text = tokio::select! {
        text = head(far) => text,
        _ = connection => String::new(),
        _ = sender.send_request(request) => String::new(),
    };
    text.split("\r\n")
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| (name.to_ascii_lowercase(), name.to_owned()))
        .collect()
}

/// Reads up to the end of a request's headers.
async fn head(mut stream: DuplexStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
