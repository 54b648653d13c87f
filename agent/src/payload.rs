//! The payload's way into a file: HTTP with byte ranges, and the comparison with what was signed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use fleetwave_agent_core::{Event, FetchError, Release, VerifyError};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::is_loopback;
use crate::crash;
use crate::files::{self, storage_error};
use crate::install::Place;
use crate::progress::Progress;

/// How long the server may take for the next sign of life.
const SILENCE: Duration = Duration::from_secs(30);
/// The download is made durable each time that so many bytes have come.
const CHECKPOINT: u64 = 128 << 10;
/// How much is hashed before others get their turn.
const PIECE: usize = 256 * 1024;

/// Why a link in a grant is not followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the link is not a URL")]
    Malformed,
    #[error("the link is not http://: this version of the agent has no TLS yet")]
    Scheme,
    #[error(
        "the link leads to another machine: without TLS, which this version does not have yet, anyone on the way \
             could read it"
    )]
    Elsewhere,
}

/// Checks the link of a grant. It is a secret: no error repeats it.
pub(crate) fn check_link(url: &str) -> Result<Uri, LinkError> {
    let url: Uri = url.parse().map_err(|_| LinkError::Malformed)?;
    match url.scheme_str() {
        Some("http") => {}
        Some(_) => return Err(LinkError::Scheme),
        None => return Err(LinkError::Malformed),
    }
    let host = url.host().ok_or(LinkError::Malformed)?;
    if is_loopback(host) { Ok(url) } else { Err(LinkError::Elsewhere) }
}

/// Fetches what is missing from `offset` on into its place, and says how that went.
pub(crate) async fn fetch(url: Uri, place: Place, offset: u64, size: u64, progress: Progress) -> Event {
    let mut sink = match Sink::open(&place, offset, progress) {
        Ok(sink) => sink,
        Err(error) => {
            tracing::error!(%error, path = %place.path.display(), "the download cannot be written");
            // Whether it still holds what it held is for a later try to find out.
            return Event::FetchFailed { error: FetchError::Storage(storage_error(&error)), durable: offset };
        }
    };
    let ended = match download(&url, &mut sink, size).await {
        Ok(()) => sink.sync().map_err(Stop::from),
        Err(stop) => Err(stop),
    };
    let Err(Stop { error, why }) = ended else { return Event::Fetched };
    // What came before it broke off counts, if it can be kept.
    let kept = sink.sync();
    tracing::warn!(code = error.code().name(), why, durable = sink.durable, "the download stopped");
    let error = match (error, kept) {
        (FetchError::Storage(_), _) | (_, Ok(())) => error,
        (_, Err(storage)) => FetchError::Storage(storage_error(&storage)),
    };
    Event::FetchFailed { error, durable: sink.durable }
}

/// Why a download stopped: for the machine, and for the log.
struct Stop {
    error: FetchError,
    why: String,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self { error: FetchError::Storage(storage_error(&error)), why: error.to_string() }
    }
}

fn stop(error: FetchError, why: impl ToString) -> Stop {
    Stop { error, why: why.to_string() }
}

fn cut(why: impl ToString) -> Stop {
    stop(FetchError::Interrupted, why)
}

fn silent(_: tokio::time::error::Elapsed) -> Stop {
    cut("the server is silent")
}

/// The file that a download goes into.
struct Sink {
    file: File,
    progress: Progress,
    written: u64,
    durable: u64,
}

impl Sink {
    fn open(place: &Place, offset: u64, progress: Progress) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&place.path)?;
        if place.capacity.is_none() {
            // What lies behind was never said to be durable.
            file.set_len(offset)?;
            files::sync_dir(place.path.parent().expect("a download lies in the state directory"))?;
        }
        Ok(Self { file, progress, written: offset, durable: offset })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.written)?;
        self.written += bytes.len() as u64;
        if self.written - self.durable >= CHECKPOINT { self.sync() } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        crash::point("payload: before");
        self.file.sync_data()?;
        self.progress.write(self.written)?;
        self.durable = self.written;
        Ok(())
    }
}

async fn download(url: &Uri, sink: &mut Sink, size: u64) -> Result<(), Stop> {
    let host = url.host().ok_or_else(|| stop(FetchError::Protocol, "the link has no host"))?;
    let address = format!("{host}:{}", url.port_u16().unwrap_or(80));
    let stream = timeout(SILENCE, TcpStream::connect(&address)).await.map_err(silent)?.map_err(cut)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(cut)?;
    // Ends with this download, however that ends.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::get(url.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, &address)
        .header(header::RANGE, format!("bytes={}-{}", sink.written, size - 1))
        .body(Empty::<Bytes>::new())
        .map_err(|error| stop(FetchError::Protocol, error))?;
    let response = timeout(SILENCE, sender.send_request(request)).await.map_err(silent)?.map_err(cut)?;
    let Coming { end, total } = coming(&response, sink.written, size)?;
    receive(response, sink, end).await?;
    match total {
        // The store has no more: the comparison with what was signed will say what that means.
        Some(total) if end == total => Ok(()),
        _ if end == size => Ok(()),
        _ => Err(cut("the server sent a part of the range")),
    }
}

/// Which bytes an answer brings: up to `end`, of `total` if it says so.
struct Coming {
    end: u64,
    total: Option<u64>,
}

fn coming(response: &Response<Incoming>, offset: u64, size: u64) -> Result<Coming, Stop> {
    let headers = response.headers();
    let status = response.status();
    let error = match status {
        StatusCode::PARTIAL_CONTENT => {
            let range = text(headers, header::CONTENT_RANGE).and_then(content_range);
            return match range {
                Some((start, last, total)) if start == offset && (start..size).contains(&last) => {
                    Ok(Coming { end: last + 1, total })
                }
                _ => Err(stop(FetchError::Protocol, "another range than the one asked for")),
            };
        }
        StatusCode::OK if offset == 0 => {
            let length = text(headers, header::CONTENT_LENGTH).and_then(|text| text.parse().ok());
            return Ok(Coming { end: length.unwrap_or(size).min(size), total: length });
        }
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => FetchError::Forbidden,
        StatusCode::NOT_FOUND | StatusCode::GONE => FetchError::NotFound,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            let seconds = text(headers, header::RETRY_AFTER).and_then(|text| text.parse().ok());
            FetchError::Busy(Duration::from_secs(seconds.unwrap_or(0)))
        }
        status if status.is_server_error() => FetchError::Server,
        _ => FetchError::Protocol,
    };
    Err(stop(error, status))
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// First byte, last byte and total of `bytes 0-99/200` or `bytes 0-99/*`.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((first.parse().ok()?, last.parse().ok()?, total))
}

async fn receive(mut response: Response<Incoming>, sink: &mut Sink, end: u64) -> Result<(), Stop> {
    while sink.written < end {
        let Some(frame) = timeout(SILENCE, response.frame()).await.map_err(silent)? else {
            return Err(cut("the answer ended early"));
        };
        let frame = frame.map_err(cut)?;
        if let Some(bytes) = frame.data_ref() {
            let wanted = usize::try_from(end - sink.written).unwrap_or(usize::MAX).min(bytes.len());
            sink.write(&bytes[..wanted])?;
        }
    }
    Ok(())
}

/// Compares the payload as it lies in the file with what was signed.
pub(crate) async fn verify(path: PathBuf, release: Release) -> Event {
    match digest(&path, release.size).await {
        Ok(digest) if digest == Some(release.digest) => Event::Verified(Ok(())),
        Ok(Some(_)) => Event::Verified(Err(VerifyError::Digest)),
        Ok(None) => Event::Verified(Err(VerifyError::Size)),
        Err(error) => {
            tracing::error!(%error, path = %path.display(), "the payload cannot be read");
            // Bytes that cannot be read back are not the ones that were signed.
            Event::Verified(Err(VerifyError::Digest))
        }
    }
}

/// The SHA-256 of a file, or `None` if it is not `size` long.
async fn digest(path: &Path, size: u64) -> io::Result<Option<[u8; 32]>> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() != size {
        return Ok(None);
    }
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(Some(hash.finalize().into())),
            length => hash.update(&piece[..length]),
        }
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_to_this_machine_are_followed_and_none_is_repeated() {
        assert!(check_link("http://127.0.0.1:80/blobs/fw-2?sig=secret").is_ok());
        for (link, why) in [
            ("https://store.example/fw-2?sig=secret", "no TLS yet"),
            ("http://store.example/fw-2?sig=secret", "another machine"),
            ("/fw-2?sig=secret", "not a URL"),
        ] {
            let error = check_link(link).expect_err(link).to_string();
            assert!(error.contains(why) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_content_range_is_read_with_and_without_a_total() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, 9, None)));
        for text in ["bytes */10", "5-9/10", "bytes 5-/10", ""] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }
}
