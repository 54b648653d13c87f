//! One request, one answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::body::{BlobBody, Pacer};
use super::content::Content;
use super::fault::{self, FaultKind};
use super::url::Range;
use super::{Flight, PREFIX, Shared};

pub(super) async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<BlobBody>, Infallible> {
    let number = shared.tally.requests.fetch_add(1, Ordering::Relaxed);
    let response = respond(&shared, &request, number);
    if let Some(recorder) = &shared.recorder {
        recorder.download(told(&request, &response));
    }
    Ok(response)
}

/// A request and its answer, without the signature.
fn told(request: &Request<Incoming>, response: &Response<BlobBody>) -> String {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let range = header(header::RANGE).map_or(String::new(), |range| format!(" {range}"));
    let retry = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry = retry.map_or(String::new(), |seconds| format!(", retry after {seconds} s"));
    let (method, path, status) = (request.method(), request.uri().path(), response.status().as_u16());
    format!("{method} {path}{range}: {status}{retry}")
}

fn respond(shared: &Arc<Shared>, request: &Request<Incoming>, number: u64) -> Response<BlobBody> {
    let path = request.uri().path();
    let head = match *request.method() {
        Method::GET => false,
        Method::HEAD => true,
        _ => return error(StatusCode::METHOD_NOT_ALLOWED, "UnsupportedHttpVerb"),
    };
    let query = request.uri().query().unwrap_or_default();
    if let Err(refusal) = shared.signer.check(path, query, shared.clock.now().wall) {
        count(&shared.tally.refused);
        tracing::debug!(path, ?refusal, "a blob request was refused");
        return error(StatusCode::FORBIDDEN, refusal.code());
    }
    let faults = shared.faults.read().expect("nothing panics under this lock").clone();
    let fault = fault::strike(&faults, shared.seed, number);
    if fault.is_some() {
        count(&shared.tally.faults);
    }
    if let Some(FaultKind::Status { code, retry_after }) = fault {
        let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return busy(error(status, "InjectedFault"), retry_after);
    }
    let content = path
        .strip_prefix(PREFIX)
        .and_then(|name| shared.blobs.read().expect("nothing panics under this lock").get(name).cloned());
    let Some(content) = content else {
        return error(StatusCode::NOT_FOUND, "BlobNotFound");
    };
    let size = content.size();
    let etag = etag(path, &content);
    let range = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
    let range = match range {
        Some(range) if still_current(request, &etag) => Range::parse(range, size),
        _ => Range::Whole,
    };
    let (status, start, end) = match range {
        Range::Whole => (StatusCode::OK, 0, size),
        Range::Part(start, end) => (StatusCode::PARTIAL_CONTENT, start, end),
        Range::Unsatisfiable => {
            let mut response = error(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange");
            set(&mut response, header::CONTENT_RANGE, format!("bytes */{size}"));
            return response;
        }
    };
    let Some(flight) = Flight::begin(shared) else {
        count(&shared.tally.busy);
        return busy(error(StatusCode::SERVICE_UNAVAILABLE, "ServerBusy"), Some(1));
    };
    let body = if head {
        BlobBody::empty()
    } else {
        disturbed(BlobBody::new(content, start, end), fault, shared).counted_by(flight)
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    set(&mut response, header::CONTENT_LENGTH, (end - start).to_string());
    if status == StatusCode::PARTIAL_CONTENT {
        set(&mut response, header::CONTENT_RANGE, format!("bytes {start}-{}/{size}", end - 1));
    }
    set(&mut response, header::ETAG, etag);
    response.headers_mut().insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let octets = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, octets);
    response
}

fn disturbed(body: BlobBody, fault: Option<FaultKind>, shared: &Shared) -> BlobBody {
    let body = match &shared.bandwidth {
        Some(pacer) => body.paced_by(pacer.clone()),
        None => body,
    };
    match fault {
        Some(FaultKind::Truncated) => body.truncated(),
        Some(FaultKind::Corrupted) => body.corrupted(),
        Some(FaultKind::Slow { bytes_per_second }) => body.paced_by(Arc::new(Pacer::new(bytes_per_second))),
        Some(FaultKind::Status { .. }) | None => body,
    }
}

/// A blob's entity tag. Content is immutable, so what identifies it is enough; the bytes are not hashed.
fn etag(path: &str, content: &Content) -> String {
    match content {
        Content::Bytes(bytes) => format!("\"{:x}-{:x}\"", bytes.as_ptr().addr(), bytes.len()),
        Content::Generated { seed, size } => format!("\"g{seed:x}-{size:x}-{:x}\"", path.len()),
        Content::File(file) => format!("\"f{:x}-{:x}\"", file.tag(), content.size()),
    }
}

/// Whether the range applies: `If-Range` is missing or names the blob as it is.
fn still_current(request: &Request<Incoming>, etag: &str) -> bool {
    request.headers().get(header::IF_RANGE).is_none_or(|value| value.as_bytes() == etag.as_bytes())
}

fn error(status: StatusCode, code: &'static str) -> Response<BlobBody> {
    let mut response = Response::new(BlobBody::empty());
    *response.status_mut() = status;
    response.headers_mut().insert("x-ms-error-code", HeaderValue::from_static(code));
    response
}

fn busy(mut response: Response<BlobBody>, retry_after: Option<u32>) -> Response<BlobBody> {
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

fn set(response: &mut Response<BlobBody>, name: header::HeaderName, value: String) {
    let value = HeaderValue::try_from(value).expect("digits and ASCII punctuation only");
    response.headers_mut().insert(name, value);
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
