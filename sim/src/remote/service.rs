//! The operations of a hub's service side that a run needs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fleetwave_hub::Clock;
use fleetwave_hub_core::throttle::{Operation, Tier};
use fleetwave_protocol::{Instant, bag};
use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::access::Access;
use super::client::{Call, Client, ServiceError, refused};
use super::pace::Pacer;
use super::trust;

/// The most devices of one request.
pub(crate) const BATCH: usize = 100;
/// The most rows of one answer to a query.
const PAGE: &str = "100";
/// What a method call takes beside the time that the device has.
const METHOD_MARGIN: Duration = Duration::from_secs(20);

/// The service side of one hub. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    client: Client,
    pacer: Arc<Pacer>,
}

impl Service {
    /// Of the hub of `access`, within the limits of that tier.
    pub(crate) fn new(
        access: Access,
        ca: Option<&Path>,
        tier: Tier,
        units: u32,
        clock: &Clock,
    ) -> Result<Self, ServiceError> {
        let pacer = Arc::new(Pacer::new(tier, units, clock.clone()));
        let tls = trust::client_config(ca)?;
        Ok(Self { client: Client::new(access, tls, clock.clone(), pacer.clone()), pacer })
    }

    /// What keeps everything of the run within the hub's limits.
    pub(crate) fn pacer(&self) -> Arc<Pacer> {
        self.pacer.clone()
    }

    /// Creates devices, a hundred at most. Those that are there already stay as they are.
    pub(crate) async fn create_devices(&self, devices: Vec<Value>) -> Result<(), ServiceError> {
        self.bulk("creating devices", devices, &["DeviceAlreadyExists", "409301"]).await
    }

    /// Deletes devices, a hundred at most. Those that are not there are gone already.
    pub(crate) async fn delete_devices(&self, ids: &[String]) -> Result<(), ServiceError> {
        let items = ids.iter().map(|id| json!({ "id": id, "importMode": "delete" })).collect();
        self.bulk("deleting devices", items, &["DeviceNotFound", "404001"]).await
    }

    /// `fine` are errors of items that leave things as they are to be.
    async fn bulk(&self, what: &str, items: Vec<Value>, fine: &[&str]) -> Result<(), ServiceError> {
        debug_assert!(items.len() <= BATCH, "a request has no more than a hundred devices");
        let mut call = Call::new(what, Method::POST, "/devices".to_owned(), Operation::Registry)
            .json(&Value::Array(items));
        // What was done is done: the second time it counts among what is fine.
        call.repeatable = true;
        let answer = self.client.ask(&call, &[StatusCode::OK, StatusCode::BAD_REQUEST]).await?;
        let body = answer.json(what)?;
        let Some(errors) = body.get("errors").and_then(Value::as_array) else {
            return if answer.status == StatusCode::OK { Ok(()) } else { Err(refused(what, &answer)) };
        };
        let wrong = errors.iter().find(|error| {
            let code = error.get("errorCode").map(ToString::to_string).unwrap_or_default();
            !fine.iter().any(|fine| code.contains(fine))
        });
        match wrong {
            None => Ok(()),
            Some(error) => Err(ServiceError::Refused {
                what: what.to_owned(),
                status: answer.status,
                message: error.to_string(),
            }),
        }
    }

    /// Creates a configuration; says when it was sent. Its id is of this run alone: one that is there already was made by
    /// a try before.
    pub(crate) async fn put_configuration(&self, id: &str, body: &Value) -> Result<Instant, ServiceError> {
        let call = Call::new(
            format!("putting configuration {id}"),
            Method::PUT,
            configuration_path(id),
            Operation::Configuration,
        );
        let expected = [StatusCode::OK, StatusCode::CREATED, StatusCode::CONFLICT];
        Ok(self.client.ask(&call.json(body), &expected).await?.sent)
    }

    /// Deletes a configuration. One that is not there is gone already.
    pub(crate) async fn delete_configuration(&self, id: &str) -> Result<(), ServiceError> {
        let call = Call::new(
            format!("deleting configuration {id}"),
            Method::DELETE,
            configuration_path(id),
            Operation::Configuration,
        )
        .header("if-match", HeaderValue::from_static("*"));
        let expected = [StatusCode::NO_CONTENT, StatusCode::OK, StatusCode::NOT_FOUND];
        self.client.ask(&call, &expected).await.map(drop)
    }

    /// The ids of all configurations.
    pub(crate) async fn configurations(&self) -> Result<Vec<String>, ServiceError> {
        let what = "listing configurations";
        let path = "/configurations?top=100".to_owned();
        let call = Call::new(what, Method::GET, path, Operation::Configuration);
        let body = self.client.ask(&call, &[StatusCode::OK]).await?.json(what)?;
        let listed = body.as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(listed.iter().filter_map(|one| Some(one.get("id")?.as_str()?.to_owned())).collect())
    }

    /// The rows of a query, all pages.
    pub(crate) async fn query(&self, query: &str) -> Result<Vec<Value>, ServiceError> {
        let what = "querying devices";
        let mut rows = Vec::new();
        let mut continuation = None;
        loop {
            let mut call = Call::new(what, Method::POST, "/devices/query".to_owned(), Operation::Query)
                .json(&json!({ "query": query }))
                .header("x-ms-max-item-count", HeaderValue::from_static(PAGE));
            call.repeatable = true;
            if let Some(continuation) = continuation.take() {
                call = call.header("x-ms-continuation", continuation);
            }
            let answer = self.client.ask(&call, &[StatusCode::OK]).await?;
            if let Value::Array(page) = answer.json(what)? {
                rows.extend(page);
            }
            continuation = answer.headers.get("x-ms-continuation").filter(|next| !next.is_empty()).cloned();
            if continuation.is_none() {
                return Ok(rows);
            }
        }
    }

    /// How many devices a condition is for now.
    pub(crate) async fn count(&self, condition: &str) -> Result<u64, ServiceError> {
        let rows = self.query(&format!("SELECT COUNT() AS n FROM devices WHERE {condition}")).await?;
        Ok(rows.first().and_then(|row| row.get("n")?.as_u64()).unwrap_or(0))
    }

    /// Calls a method of a device; gives the status that the device answered.
    ///
    /// It is not called a second time if the first call was lost: the device may have heard it.
    pub(crate) async fn invoke(
        &self,
        device: &str,
        method: &str,
        payload: &Value,
        patience: Duration,
    ) -> Result<u64, ServiceError> {
        let what = format!("calling {method} of {device}");
        let body = json!({
            "methodName": method,
            "payload": payload,
            "responseTimeoutInSeconds": patience.as_secs(),
        });
        let path = format!("/twins/{}/methods", bag::encode(device));
        let mut call = Call::new(&*what, Method::POST, path, Operation::Method).json(&body);
        call.cost = u32::try_from(call.body.len()).unwrap_or(u32::MAX);
        call.patience = patience + METHOD_MARGIN;
        let answer = self.client.ask(&call, &[StatusCode::OK]).await?.json(&what)?;
        Ok(answer.get("status").and_then(Value::as_u64).unwrap_or(0))
    }
}

fn configuration_path(id: &str) -> String {
    format!("/configurations/{}", bag::encode(id))
}
