//! One download.

use std::net::SocketAddr;
use std::time::Duration;

use fleetwave_agent_core::FetchError;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_RANGE, HOST, RANGE, RETRY_AFTER};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use sha2::Digest;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Ending, Fetched, Job, Settings};

/// A download that has not moved.
pub(super) fn unmoved(job: Job, ending: Ending) -> Fetched {
    Fetched {
        whose: job.whose,
        ending,
        offset: job.offset,
        received: job.offset,
        hash: job.hash.clone(),
        checkpoint: job.offset,
        checkpoint_hash: job.hash,
    }
}

/// Downloads until the end, an error, or `stopped`.
pub(super) async fn download(job: Job, settings: Settings, stopped: oneshot::Receiver<()>) -> Fetched {
    let (url, size, stop_at) = (job.url.clone(), job.size, job.stop_at);
    let mut state = unmoved(job, Ending::Stopped);
    let outcome = tokio::select! {
        outcome = receive(&url, size, stop_at, settings, &mut state) => outcome,
        // Nobody aborts any more when the pool ends: the same.
        _ = stopped => Ok(Ending::Stopped),
    };
    state.ending = outcome.unwrap_or_else(Ending::Failed);
    state
}

async fn receive(
    url: &str,
    size: u64,
    stop_at: Option<u64>,
    settings: Settings,
    state: &mut Fetched,
) -> Result<Ending, FetchError> {
    let response = patiently(settings.patience, ask(url, state.received, size)).await?;
    check(&response, state.received, size)?;
    let mut body = response.into_body();
    while state.received < size {
        let Some(frame) = patiently(settings.patience, async { Ok(body.frame().await) }).await? else {
            return Err(FetchError::Interrupted);
        };
        let frame = frame.map_err(|_| FetchError::Interrupted)?;
        let Ok(bytes) = frame.into_data() else { continue };
        if bytes.len() as u64 > size - state.received {
            return Err(FetchError::Protocol);
        }
        let room = stop_at.map_or(bytes.len() as u64, |stop| stop.saturating_sub(state.received));
        let whole = room >= bytes.len() as u64;
        let taken = if whole { &bytes[..] } else { &bytes[..room as usize] };
        keep(taken, settings.checkpoint, state);
        if !whole || stop_at.is_some_and(|stop| state.received >= stop) {
            return Ok(Ending::Stopped);
        }
    }
    Ok(Ending::Complete)
}

/// Hashes bytes, and marks the checkpoints that they reach.
fn keep(mut bytes: &[u8], checkpoint: u64, state: &mut Fetched) {
    let step = checkpoint.max(1);
    while !bytes.is_empty() {
        let next = (state.received / step + 1) * step;
        let length = usize::try_from(next - state.received).unwrap_or(usize::MAX).min(bytes.len());
        let (head, tail) = bytes.split_at(length);
        state.hash.update(head);
        state.received += length as u64;
        if state.received == next {
            state.checkpoint = next;
            state.checkpoint_hash = state.hash.clone();
        }
        bytes = tail;
    }
}

async fn patiently<T>(
    patience: Duration,
    work: impl Future<Output = Result<T, FetchError>>,
) -> Result<T, FetchError> {
    timeout(patience, work).await.unwrap_or(Err(FetchError::Interrupted))
}

/// Asks for everything from `offset` on, up to what was signed, over a connection of its own.
async fn ask(url: &str, offset: u64, size: u64) -> Result<Response<Incoming>, FetchError> {
    let uri: Uri = url.parse().map_err(|_| FetchError::Protocol)?;
    let authority = uri.authority().ok_or(FetchError::Protocol)?;
    let stream = match authority.as_str().parse::<SocketAddr>() {
        Ok(address) => TcpStream::connect(address).await,
        Err(_) => TcpStream::connect((authority.host(), authority.port_u16().unwrap_or(80))).await,
    };
    let stream = stream.map_err(|_| FetchError::Interrupted)?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(HOST, authority.as_str())
        .header(RANGE, format!("bytes={offset}-{}", size - 1))
        .body(Empty::<Bytes>::new())
        .map_err(|_| FetchError::Protocol)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|_| FetchError::Interrupted)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a download's connection broke");
        }
    });
    sender.send_request(request).await.map_err(|_| FetchError::Interrupted)
}

/// Whether the answer is what was asked for.
fn check(response: &Response<Incoming>, offset: u64, size: u64) -> Result<(), FetchError> {
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    match response.status() {
        StatusCode::OK if offset == 0 => Ok(()),
        StatusCode::PARTIAL_CONTENT => {
            let range = header(CONTENT_RANGE).and_then(content_range).ok_or(FetchError::Protocol)?;
            if range == (offset, size) { Ok(()) } else { Err(FetchError::Protocol) }
        }
        StatusCode::FORBIDDEN => Err(FetchError::Forbidden),
        StatusCode::NOT_FOUND => Err(FetchError::NotFound),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            let seconds = header(RETRY_AFTER).and_then(|value| value.parse().ok()).unwrap_or(0);
            Err(FetchError::Busy(Duration::from_secs(seconds)))
        }
        status if status.is_server_error() => Err(FetchError::Server),
        _ => Err(FetchError::Protocol),
    }
}

/// The first byte and the whole's size of `bytes first-last/size`.
fn content_range(value: &str) -> Option<(u64, u64)> {
    let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.parse().ok()?, size.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use sha2::Sha256;

    use super::super::Whose;
    use super::*;

    fn job() -> Job {
        let whose = Whose { shard: 0, index: 0, generation: 0 };
        let url = String::new();
        Job { whose, url, offset: 0, size: 100, stop_at: None, hash: Sha256::new(), seen: 0 }
    }

    #[test]
    fn what_a_power_cut_leaves_ends_at_a_checkpoint_and_has_its_hash() {
        let bytes: Vec<u8> = (0..100).collect();
        let mut state = unmoved(job(), Ending::Stopped);
        keep(&bytes[..25], 40, &mut state);
        assert_eq!((state.received, state.checkpoint), (25, 0));
        keep(&bytes[25..95], 40, &mut state);
        assert_eq!((state.received, state.checkpoint), (95, 80));
        assert_eq!(state.checkpoint_hash.finalize(), Sha256::digest(&bytes[..80]));
        assert_eq!(state.hash.finalize(), Sha256::digest(&bytes[..95]));
    }

    #[test]
    fn a_content_range_is_read_or_refused() {
        assert_eq!(content_range("bytes 5-99/100"), Some((5, 100)));
        for wrong in ["bytes */100", "5-99/100", "bytes 5-99", "bytes x-99/100", ""] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }
}
