//! Answers.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Response, StatusCode, header};
use serde_json::Value;

/// An answer to a request.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    /// 204.
    pub(crate) fn no_content() -> Self {
        Self { status: StatusCode::NO_CONTENT, headers: HeaderMap::new(), body: Bytes::new() }
    }

    /// JSON that is text already.
    pub(crate) fn text(status: StatusCode, json: impl Into<Bytes>) -> Self {
        let mut headers = HeaderMap::new();
        let json_type = HeaderValue::from_static("application/json; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, json_type);
        Self { status, headers, body: json.into() }
    }

    /// JSON.
    pub(crate) fn json(status: StatusCode, value: &Value) -> Self {
        Self::text(status, value.to_string())
    }

    /// 200 with JSON.
    pub(crate) fn ok(value: &Value) -> Self {
        Self::json(StatusCode::OK, value)
    }

    /// With a header. One that cannot stand in HTTP is left out.
    pub(crate) fn with<N, V>(mut self, name: N, value: V) -> Self
    where
        N: TryInto<HeaderName>,
        V: TryInto<HeaderValue>,
    {
        if let (Ok(name), Ok(value)) = (name.try_into(), value.try_into()) {
            self.headers.insert(name, value);
        }
        self
    }

    /// With an `ETag` header, quoted.
    pub(crate) fn etag(self, etag: &str) -> Self {
        self.with(header::ETAG, format!("\"{etag}\""))
    }

    pub(crate) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}
