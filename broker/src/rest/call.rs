//! A request, as an operation sees it.

use std::sync::Arc;

use bytes::Bytes;
use fleetwave_protocol::bag;
use hyper::HeaderMap;
use serde::de::DeserializeOwned;

use super::{Api, ApiError};
use crate::tls::PeerIdentity;

/// One request for an operation.
pub(crate) struct Call {
    pub(crate) api: Arc<Api>,
    /// What stands in the place of the path's parameters, decoded, in order.
    pub(crate) params: Vec<String>,
    /// The encoded query, without its question mark.
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The name that the client asked for, with its port if it gave one.
    pub(crate) host: String,
    /// For an operation of a device: who it is, as its token or certificate proved.
    pub(crate) identity: Option<String>,
    /// Who is at the other end, as far as TLS tells.
    pub(crate) peer: PeerIdentity,
}

impl Call {
    /// The path's parameter of this place.
    pub(crate) fn param(&self, place: usize) -> &str {
        self.params.get(place).map_or("", String::as_str)
    }

    /// The client id `{device}/{module}` of a path with both.
    pub(crate) fn module_id(&self) -> String {
        format!("{}/{}", self.param(0), self.param(1))
    }

    /// A parameter of the query, decoded.
    pub(crate) fn query_param(&self, name: &str) -> Option<String> {
        bag::members(&self.query).flatten().find_map(|(key, value)| (key == name).then(|| value.into_owned()))
    }

    /// A header's text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The etag that must be current, without quotes; `None` when the client forces it or asks for nothing.
    pub(crate) fn if_match(&self) -> Option<&str> {
        self.header("if-match").map(|etag| etag.trim().trim_matches('"')).filter(|etag| *etag != "*")
    }

    /// The body as JSON of a certain shape.
    ///
    /// # Errors
    /// 400 with what was wrong and where.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.body).map_err(|error| ApiError::bad_json(&error))
    }
}
