//! The back end's side of C2D messages and uploads: purging a queue, and reading what became of messages and files.

use fleetwave_hub_core::{Done, ErrorCode, Input};
use hyper::StatusCode;
use serde_json::json;

use super::router::{Verb, does};
use super::{ApiError, Call, Operation, Reply};
use crate::events::{LockToken, Mailbox};
use crate::policy::Rights;

/// How many records one answer has at most: a batch of IoT Hub's.
const BATCH: usize = 64;

const FEEDBACK_SDK: &str =
    "Python `CloudToDeviceMessagesOperations`, which `IoTHubRegistryManager.protocol` has";
const FEEDBACK: &str = "rest::feedback_is_read_locked_and_completed";
const FILES: &str = "rest::file_notifications_are_read_locked_and_completed";

const fn service(
    name: &'static str,
    method: Verb,
    path: &'static str,
    handler: super::router::Handler,
) -> Operation {
    Operation::new(name, method, path, Rights::SERVICE_CONNECT, handler)
}

pub(super) const OPERATIONS: &[Operation] = &[
    service("Purge a device's C2D messages", Verb::Delete, "/devices/{id}/commands", does!(purge))
        .sdk("Python `CloudToDeviceMessagesOperations.purge_cloud_to_device_message_queue`; Azure CLI `az iot device c2d-message purge`")
        .test("rest::a_queue_is_purged"),
    service("Read feedback", Verb::Get, "/messages/serviceBound/feedback", does!(feedback))
        .sdk(FEEDBACK_SDK)
        .test(FEEDBACK),
    service(
        "Complete feedback",
        Verb::Delete,
        "/messages/serviceBound/feedback/{lock}",
        does!(complete_feedback),
    )
    .sdk(FEEDBACK_SDK)
    .test(FEEDBACK),
    service(
        "Abandon feedback",
        Verb::Post,
        "/messages/serviceBound/feedback/{lock}/abandon",
        does!(abandon_feedback),
    )
    .sdk(FEEDBACK_SDK)
    .test(FEEDBACK),
    service("Read file notifications", Verb::Get, "/messages/serviceBound/filenotifications", does!(files))
        .test(FILES),
    service(
        "Complete file notifications",
        Verb::Delete,
        "/messages/serviceBound/filenotifications/{lock}",
        does!(complete_files),
    )
    .test(FILES),
    service(
        "Abandon file notifications",
        Verb::Post,
        "/messages/serviceBound/filenotifications/{lock}/abandon",
        does!(abandon_files),
    )
    .test(FILES),
];

async fn purge(call: Call) -> Result<Reply, ApiError> {
    let id = call.target()?;
    let device_id = id.clone();
    let purged = call.api.control.with_device(&id.clone(), move |shard| {
        let device = shard.find(&id)?;
        shard.apply(Input::PurgeC2d { device })
    });
    let dropped = match purged.await?? {
        Done::Purged { dropped } => dropped,
        _ => 0,
    };
    Ok(Reply::ok(&json!({
        "totalMessagesPurged": dropped,
        "deviceId": device_id,
        "moduleId": null,
    })))
}

/// A batch, as an array.
async fn feedback(call: Call) -> Result<Reply, ApiError> {
    let reply = take(&call, &call.api.cloud.feedback, BATCH, |records| format!("[{}]", records.join(",")));
    Ok(reply)
}

async fn complete_feedback(call: Call) -> Result<Reply, ApiError> {
    settle(&call, &call.api.cloud.feedback, true)
}

async fn abandon_feedback(call: Call) -> Result<Reply, ApiError> {
    settle(&call, &call.api.cloud.feedback, false)
}

/// One at a time, as an object.
async fn files(call: Call) -> Result<Reply, ApiError> {
    Ok(take(&call, &call.api.cloud.files, 1, <[Box<str>]>::concat))
}

async fn complete_files(call: Call) -> Result<Reply, ApiError> {
    settle(&call, &call.api.cloud.files, true)
}

async fn abandon_files(call: Call) -> Result<Reply, ApiError> {
    settle(&call, &call.api.cloud.files, false)
}

/// Records and the token of their lock, or 204.
fn take(call: &Call, mailbox: &Mailbox, most: usize, body: fn(&[Box<str>]) -> String) -> Reply {
    match mailbox.take(call.api.control.clock().now().at, most) {
        Some(taken) => Reply::text(StatusCode::OK, body(&taken.records)).etag(&taken.lock.to_string()),
        None => Reply::no_content(),
    }
}

fn settle(call: &Call, mailbox: &Mailbox, complete: bool) -> Result<Reply, ApiError> {
    let now = call.api.control.clock().now().at;
    let settled = LockToken::parse(call.param(0))
        .is_some_and(|lock| if complete { mailbox.complete(now, lock) } else { mailbox.abandon(now, lock) });
    if settled { Ok(Reply::no_content()) } else { Err(lock_lost(call.param(0))) }
}

/// The lock has passed, or never was.
pub(super) fn lock_lost(token: &str) -> ApiError {
    let message = format!("there is no lock {token:?}: it was settled, or has expired");
    ApiError::new(ErrorCode::DeviceMessageLockLost, message)
}
