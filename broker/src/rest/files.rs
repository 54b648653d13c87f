//! File upload: what a device asks for and tells over HTTPS, whichever way it is connected otherwise.

use fleetwave_hub_core::{ErrorCode, Iso8601};
use serde::Deserialize;
use serde_json::json;

use super::router::{Verb, does};
use super::{ApiError, Call, Operation, Reply};
use crate::upload::Uploads;

const BEGIN_SDK: &str = "Python `IoTHubDeviceClient.get_storage_info_for_blob`; Node `Client.getBlobSharedAccessSignature`, \
                         `uploadToBlob`; Java `DeviceClient.getFileUploadSasUri`";
const END_SDK: &str = "Python `IoTHubDeviceClient.notify_blob_upload_status`; Node `Client.notifyBlobUploadStatus`, \
                       `uploadToBlob`; Java `DeviceClient.completeFileUpload`";
const LIMIT: &str = "the tier's limit of uploads a second; uploads under way are forgotten when the hub ends";
const TEST: &str = "rest::a_device_uploads_a_file_and_the_service_is_told";

pub(super) const OPERATIONS: &[Operation] = &[
    Operation::of_device("Begin a file upload", Verb::Post, "/devices/{id}/files", does!(begin))
        .sdk(BEGIN_SDK)
        .test(TEST)
        .short(LIMIT),
    Operation::of_device(
        "Begin a file upload, the old way",
        Verb::Get,
        "/devices/{id}/files/{name}",
        does!(begin_named),
    )
    .sdk("SDKs of 2016")
    .test("rest::an_upload_begins_in_the_old_way_too")
    .short(LIMIT),
    Operation::of_device(
        "Tell how a file upload ended",
        Verb::Post,
        "/devices/{id}/files/notifications",
        does!(end),
    )
    .sdk(END_SDK)
    .test(TEST),
    Operation::of_device(
        "Tell how a file upload of this correlation id ended",
        Verb::Post,
        "/devices/{id}/files/notifications/{correlation}",
        does!(end),
    )
    .sdk(END_SDK)
    .test(TEST),
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BeginBody {
    blob_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndBody {
    correlation_id: Option<String>,
    is_success: Option<bool>,
}

fn uploads(call: &Call) -> Result<&Uploads, ApiError> {
    call.api.uploads.as_deref().ok_or_else(|| {
        ApiError::new(
            ErrorCode::DefaultStorageEndpointNotConfigured,
            "the hub has no storage account for uploads: start it with one (`fleetwave hub --storage CONNECTION-STRING`)",
        )
    })
}

async fn begin(call: Call) -> Result<Reply, ApiError> {
    let body: BeginBody = call.json()?;
    let name = body
        .blob_name
        .filter(|name| !name.is_empty())
        .ok_or_else(|| ApiError::new(ErrorCode::ArgumentNull, "blobName is missing"))?;
    grant(&call, &name)
}

async fn begin_named(call: Call) -> Result<Reply, ApiError> {
    grant(&call, call.param(1))
}

fn grant(call: &Call, name: &str) -> Result<Reply, ApiError> {
    let uploads = uploads(call)?;
    let device = call.identity.as_deref().unwrap_or_default();
    let grant = uploads.begin(device, name, call.api.control.clock().now())?;
    Ok(Reply::ok(&json!({
        "correlationId": grant.correlation,
        "hostName": uploads.account().host_name(),
        "containerName": uploads.account().container(),
        "blobName": grant.blob,
        "sasToken": format!("?{}", grant.signature),
    })))
}

async fn end(call: Call) -> Result<Reply, ApiError> {
    let uploads = uploads(&call)?;
    let body: EndBody = call.json()?;
    let in_path = call.params.get(1).cloned();
    let correlation = in_path.or(body.correlation_id).ok_or_else(|| {
        ApiError::new(ErrorCode::InvalidFileUploadCorrelationId, "correlationId is missing")
    })?;
    let success = body.is_success.ok_or_else(|| {
        let message = "isSuccess is missing: true or false was expected";
        ApiError::new(ErrorCode::InvalidFileUploadCompletionStatus, message)
    })?;
    let device = call.identity.as_deref().unwrap_or_default();
    let ended = uploads.end(device, &correlation, success, call.api.control.clock().now()).await?;
    if let Some((name, blob)) = ended {
        let notification = json!({
            "deviceId": device,
            "blobUri": uploads.account().uri_of(&name),
            "blobName": name,
            "lastUpdatedTime": blob.modified,
            "blobSizeInBytes": blob.size,
            "enqueuedTimeUtc": Iso8601(call.api.control.clock().now().wall).to_string(),
        });
        call.api.cloud.files.push(notification.to_string());
    }
    Ok(Reply::no_content())
}
