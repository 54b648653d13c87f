//! A request, as an operation sees it.

use std::sync::Arc;

use bytes::Bytes;
use fleetwave_hub_core::ErrorCode;
use fleetwave_protocol::bag;
use hyper::HeaderMap;
use hyper::http::Extensions;
use serde::Deserialize;

use super::{Api, ApiError};
use crate::tls::PeerIdentity;

/// `If-Match`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It is not there: where things are created and changed alike, that means to create.
    None,
    /// `*`.
    Exists,
    /// This etag, without quotes.
    Is(String),
}

impl Condition {
    /// The etag that must be current, if there is one.
    pub(crate) fn etag(&self) -> Option<&str> {
        match self {
            Self::Is(etag) => Some(etag),
            Self::None | Self::Exists => None,
        }
    }
}

/// One request for an operation.
pub(crate) struct Call {
    pub(crate) api: Arc<Api>,
    /// What stands in the place of the path's parameters, decoded, in order.
    pub(crate) params: Vec<String>,
    /// The encoded query, without its question mark.
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    /// What else hyper knows of the request.
    pub(crate) extensions: Extensions,
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

    /// Whom the path is about: the id of a device, or `{device}/{module}` for a path with both.
    ///
    /// # Errors
    /// 400 for ids with a slash in them, which would be somebody else's.
    pub(crate) fn target(&self) -> Result<String, ApiError> {
        if let Some(id) = self.params.iter().take(2).find(|id| id.contains('/')) {
            return Err(ApiError::new(
                ErrorCode::ArgumentInvalid,
                format!("{id:?} is no id: it has a slash"),
            ));
        }
        Ok(match self.params.as_slice() {
            [device, module, ..] => format!("{device}/{module}"),
            _ => self.param(0).to_owned(),
        })
    }

    /// A parameter of the query, decoded.
    pub(crate) fn query_param(&self, name: &str) -> Option<String> {
        bag::members(&self.query).flatten().find_map(|(key, value)| (key == name).then(|| value.into_owned()))
    }

    /// How many items the client wants, at most `most`.
    ///
    /// # Errors
    /// 400 for anything else.
    pub(crate) fn top(&self, most: usize) -> Result<usize, ApiError> {
        let Some(text) = self.query_param("top") else { return Ok(most) };
        match text.parse() {
            Ok(top) if (1..=most).contains(&top) => Ok(top),
            _ => Err(ApiError::new(
                ErrorCode::ArgumentInvalid,
                format!("top is {text:?}, a number from 1 to {most} was expected"),
            )),
        }
    }

    /// A header's text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What the client asks of the etag.
    pub(crate) fn condition(&self) -> Condition {
        let given = self.header("if-match").map(|etag| etag.trim().trim_matches('"'));
        match given.filter(|etag| !etag.is_empty()) {
            None => Condition::None,
            Some("*") => Condition::Exists,
            Some(etag) => Condition::Is(etag.to_owned()),
        }
    }

    /// The etag that must be current, without quotes; `None` when the client forces it or asks for nothing.
    pub(crate) fn if_match(&self) -> Option<String> {
        self.condition().etag().map(str::to_owned)
    }

    /// The body as JSON of a certain shape.
    ///
    /// # Errors
    /// 400 with what was wrong and where.
    pub(crate) fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.body).map_err(|error| ApiError::bad_json(&error))
    }
}
