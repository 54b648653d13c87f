//! Reading as much from a connection at once as there is. TLS by itself gives a record, and each piece costs its way
//! through client and download.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_service::Service;

use super::connect::{BoxError, Metered, Route};

/// Makes such connections.
#[derive(Clone, Debug)]
pub(crate) struct Gathering(pub(super) HttpsConnector<Route>);

impl Service<Uri> for Gathering {
    type Response = TokioIo<Gathered>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, link: Uri) -> Self::Future {
        let connecting = self.0.call(link);
        Box::pin(async move {
            let stream = TokioIo::new(connecting.await?);
            Ok(TokioIo::new(Gathered { stream, failed: None }))
        })
    }
}

/// A connection that gives all it has.
#[derive(Debug)]
pub(crate) struct Gathered {
    stream: TokioIo<MaybeHttpsStream<TokioIo<Metered>>>,
    /// Behind the bytes that were given last.
    failed: Option<io::Error>,
}

impl Connection for Gathered {
    fn connected(&self) -> Connected {
        self.stream.connected()
    }
}

impl AsyncRead for Gathered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        let before = buffer.filled().len();
        while buffer.remaining() > 0 {
            let have = buffer.filled().len();
            match Pin::new(&mut self.stream).poll_read(cx, buffer) {
                Poll::Ready(Ok(())) if buffer.filled().len() > have => {}
                Poll::Ready(Err(error)) if have > before => {
                    self.failed = Some(error);
                    break;
                }
                Poll::Pending if have > before => break,
                ended => return ended,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
