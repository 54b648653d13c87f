//! File upload by way of the hub: it is asked for a place in its storage account, the file goes there, and the hub is
//! told how that ended.
//!
//! Source: the IoT Hub guide "Upload files with IoT Hub".

use std::error::Error as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleetwave_protocol::{Profile, bag};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::fetch::{Fetcher, HttpClient};
use crate::link::{Access, LinkError};

/// The largest file.
pub(crate) const MOST: usize = 1 << 20;
/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How much of an answer is read.
const ANSWER: usize = 16 * 1024;
/// Which of the hub's interfaces is meant.
const API: &str = "api-version=2021-04-12";

/// Why there is no upload. No link of the storage account is repeated: its signature is a secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("a broker that is no hub takes no files")]
    NoHub,
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("{who} cannot be reached: {why}")]
    Unreachable { who: String, why: String },
    #[error("the hub refused the upload with {status}: {said}")]
    Refused { status: StatusCode, said: String },
    #[error("the hub's answer cannot be read: {0}")]
    Answer(String),
    #[error("the storage refused the file with {0}")]
    Storage(StatusCode),
    #[error("it took longer than {} s", LIMIT.as_secs())]
    TooSlow,
}

impl UploadError {
    /// For programs.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::NoHub => "no_hub",
            Self::Link(_) => "no_access",
            Self::Unreachable { .. } => "unreachable",
            Self::Refused { .. } => "refused",
            Self::Answer(_) => "bad_answer",
            Self::Storage(_) => "storage_refused",
            Self::TooSlow => "too_slow",
        }
    }
}

/// Where a file lies now.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Place {
    correlation_id: String,
    host_name: String,
    container_name: String,
    blob_name: String,
    sas_token: String,
}

/// Uploads `text` as the file `name` of the device, and says where it is.
pub(crate) async fn upload(
    access: Arc<Access>,
    fetcher: Rc<Fetcher>,
    name: String,
    text: String,
) -> Result<Value, UploadError> {
    match timeout(LIMIT, attempt(&access, &fetcher, &name, text)).await {
        Ok(ended) => ended,
        Err(_) => Err(UploadError::TooSlow),
    }
}

async fn attempt(access: &Access, fetcher: &Fetcher, name: &str, text: String) -> Result<Value, UploadError> {
    if access.profile() == Profile::Plain {
        return Err(UploadError::NoHub);
    }
    let way = access.https().await?;
    let hub = fetcher.http(way.tls);
    let token = way.token.as_deref();
    let files = format!("{}/files", way.device);
    let asked = json!({"blobName": name});
    let (status, said) = post(&hub, &format!("{files}?{API}"), token, &asked).await?;
    if status != StatusCode::OK {
        return Err(refused(status, &said));
    }
    let place: Place =
        serde_json::from_slice(&said).map_err(|error| UploadError::Answer(error.to_string()))?;
    let bytes = text.len();
    let put = store(fetcher, &place, text).await;
    let ended = json!({
        "correlationId": place.correlation_id,
        "isSuccess": put.is_ok(),
        "statusCode": if put.is_ok() { 201 } else { 500 },
        "statusDescription": put.as_ref().err().map(ToString::to_string).unwrap_or_default(),
    });
    let told = post(&hub, &format!("{files}/notifications?{API}"), token, &ended).await;
    put?;
    let (status, said) = told?;
    if !status.is_success() {
        return Err(refused(status, &said));
    }
    Ok(json!({"container": place.container_name, "blob": place.blob_name, "bytes": bytes}))
}

/// Puts the file where the hub said.
async fn store(fetcher: &Fetcher, place: &Place, text: String) -> Result<(), UploadError> {
    let tls = fetcher.store_tls().await?;
    let blob: Vec<String> = place.blob_name.split('/').map(bag::encode).collect();
    let Place { host_name, container_name, sas_token, .. } = place;
    let link = format!("https://{host_name}/{container_name}/{}{sas_token}", blob.join("/"));
    let request = Request::builder()
        .method(Method::PUT)
        .uri(link)
        .header("x-ms-blob-type", "BlockBlob")
        .header(header::CONTENT_TYPE, "text/plain; charset=utf-8");
    let who = format!("the storage at {host_name}");
    let (status, _) = ask(&fetcher.http(tls), &who, request, text.into()).await?;
    if status.is_success() { Ok(()) } else { Err(UploadError::Storage(status)) }
}

async fn post(
    hub: &HttpClient,
    link: &str,
    token: Option<&str>,
    body: &Value,
) -> Result<(StatusCode, Bytes), UploadError> {
    let mut request =
        Request::builder().method(Method::POST).uri(link).header(header::CONTENT_TYPE, "application/json");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, token);
    }
    ask(hub, &format!("the hub at {}", authority(link)), request, body.to_string().into()).await
}

async fn ask(
    client: &HttpClient,
    who: &str,
    request: hyper::http::request::Builder,
    body: Bytes,
) -> Result<(StatusCode, Bytes), UploadError> {
    let unreachable = |why: String| UploadError::Unreachable { who: who.to_owned(), why };
    let request = request.body(Full::new(body)).map_err(|_| unreachable("not a URL".to_owned()))?;
    let answered = client.request(request).await;
    let answer = answered.map_err(|error| {
        // The last cause is what happened; those before it say in which layer.
        let last = std::iter::successors(error.source(), |cause| (*cause).source()).last();
        unreachable(last.map_or_else(|| error.to_string(), ToString::to_string))
    })?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER).collect().await;
    Ok((status, body.map_err(|error| unreachable(error.to_string()))?.to_bytes()))
}

/// Whom a link leads to.
fn authority(link: &str) -> &str {
    link.split('/').nth(2).unwrap_or(link)
}

/// What the hub says is for people.
fn refused(status: StatusCode, said: &[u8]) -> UploadError {
    let said = serde_json::from_slice::<Value>(said).ok();
    let message = said.as_ref().and_then(|said| said["Message"].as_str().or(said["message"].as_str()));
    let said = message.unwrap_or("no cause given").chars().take(300).collect();
    UploadError::Refused { status, said }
}
