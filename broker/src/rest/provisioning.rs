//! Device provisioning over HTTPS: enrollments for back ends, registration for devices.

use hyper::StatusCode;
use hyper::header;
use serde_json::Value;

use super::router::{Handler, Outcome, Verb};
use super::{Access, ApiError, Call, Operation, Reply};
use crate::dps::{Answer, Bulk, Credential, Dps, DpsError, Page, Registration};

macro_rules! operations {
    ($($name:literal $verb:ident $path:literal $sdk:literal $test:literal $handler:expr;)+) => {
        &[$(Operation {
            name: $name,
            method: Verb::$verb,
            path: $path,
            access: Access::Own,
            limit: None,
            sdk: $sdk,
            test: concat!("rest::", $test),
            short: "",
            handler: Handler::Does(|call| -> Outcome { Box::pin(done(call, $handler)) }),
        }),+]
    };
}

#[rustfmt::skip]
pub(super) const OPERATIONS: &[Operation] = operations! {
    "Create or change an enrollment" Put "/enrollments/{id}"
        "Node `ProvisioningServiceClient.createOrUpdateIndividualEnrollment`" "an_enrollment_is_written_read_and_deleted"
        |call: &Call| put(call, false);
    "Read an enrollment" Get "/enrollments/{id}"
        "Node `ProvisioningServiceClient.getIndividualEnrollment`" "an_enrollment_is_written_read_and_deleted"
        |call: &Call| get(call, false);
    "Delete an enrollment" Delete "/enrollments/{id}"
        "Node `ProvisioningServiceClient.deleteIndividualEnrollment`" "an_enrollment_is_written_read_and_deleted"
        |call: &Call| delete(call, false);
    "Read an enrollment's keys" Post "/enrollments/{id}/attestationmechanism"
        "Node `ProvisioningServiceClient.getIndividualEnrollmentAttestationMechanism`" "an_enrollment_is_written_read_and_deleted"
        |call: &Call| attestation(call, false);
    "List enrollments" Post "/enrollments/query"
        "Node `ProvisioningServiceClient.createIndividualEnrollmentQuery`" "enrollments_come_by_pages_and_in_bulk"
        |call: &Call| list(call, false);
    "Change many enrollments" Post "/enrollments"
        "Node `ProvisioningServiceClient.runBulkEnrollmentOperation`" "enrollments_come_by_pages_and_in_bulk"
        bulk;
    "Create or change an enrollment group" Put "/enrollmentGroups/{id}"
        "Node `ProvisioningServiceClient.createOrUpdateEnrollmentGroup`" "a_device_of_a_group_comes_with_a_derived_key"
        |call: &Call| put(call, true);
    "Read an enrollment group" Get "/enrollmentGroups/{id}"
        "Node `ProvisioningServiceClient.getEnrollmentGroup`" "a_device_of_a_group_comes_with_a_derived_key"
        |call: &Call| get(call, true);
    "Delete an enrollment group" Delete "/enrollmentGroups/{id}"
        "Node `ProvisioningServiceClient.deleteEnrollmentGroup`" "a_device_of_a_group_comes_with_a_derived_key"
        |call: &Call| delete(call, true);
    "Read an enrollment group's keys" Post "/enrollmentGroups/{id}/attestationmechanism"
        "Node `ProvisioningServiceClient.getEnrollmentGroupAttestationMechanism`" "a_device_of_a_group_comes_with_a_derived_key"
        |call: &Call| attestation(call, true);
    "List enrollment groups" Post "/enrollmentGroups/query"
        "Node `ProvisioningServiceClient.createEnrollmentGroupQuery`" "enrollments_come_by_pages_and_in_bulk"
        |call: &Call| list(call, true);
    "Read a registration" Get "/registrations/{id}"
        "Node `ProvisioningServiceClient.getDeviceRegistrationState`" "a_device_of_a_group_comes_with_a_derived_key"
        registration;
    "Delete a registration" Delete "/registrations/{id}"
        "Node `ProvisioningServiceClient.deleteDeviceRegistrationState`" "a_device_of_a_group_comes_with_a_derived_key"
        delete_registration;
    "List a group's registrations" Post "/registrations/{id}/query"
        "Node `ProvisioningServiceClient.createEnrollmentGroupDeviceRegistrationStateQuery`" "a_device_of_a_group_comes_with_a_derived_key"
        registrations;
    "Register a device" Put "/{scope}/registrations/{id}/register"
        "Node `ProvisioningDeviceClient.register` over HTTP" "a_device_of_a_group_comes_with_a_derived_key"
        register;
    "Ask what became of a registration" Get "/{scope}/registrations/{id}/operations/{operation}"
        "Node `ProvisioningDeviceClient.register` over HTTP" "a_device_of_a_group_comes_with_a_derived_key"
        status;
    "Read one's own registration" Post "/{scope}/registrations/{id}"
        "C# `ProvisioningDeviceClient`" "a_device_of_a_group_comes_with_a_derived_key"
        lookup;
};

/// Does an operation; its answer waits until all that was written is durable.
async fn done(call: Call, what: fn(&Call) -> Result<Reply, ApiError>) -> Result<Reply, ApiError> {
    let reply = what(&call)?;
    dps(&call)?.saved().await?;
    Ok(reply)
}

impl From<DpsError> for ApiError {
    fn from(error: DpsError) -> Self {
        Self::Provisioning(error)
    }
}

fn dps(call: &Call) -> Result<&std::sync::Arc<Dps>, ApiError> {
    call.api.dps.as_ref().ok_or(ApiError::NotModelled("device provisioning: this hub was started without it"))
}

/// The service, for a back end that may use it.
fn owned(call: &Call) -> Result<&Dps, ApiError> {
    let dps = dps(call)?;
    let token = call.header("authorization").unwrap_or_default();
    let wall = call.api.control.clock().now().wall;
    dps.check_owner(token, &call.host, wall)?;
    Ok(dps)
}

fn put(call: &Call, group: bool) -> Result<Reply, ApiError> {
    let body: Value = call.json()?;
    let written = owned(call)?.put(group, call.param(0), &body, call.header("if-match"))?;
    Ok(Reply::ok(&written))
}

fn get(call: &Call, group: bool) -> Result<Reply, ApiError> {
    Ok(Reply::ok(&owned(call)?.get(group, call.param(0))?))
}

fn delete(call: &Call, group: bool) -> Result<Reply, ApiError> {
    owned(call)?.delete(group, call.param(0), call.header("if-match"))?;
    Ok(Reply::no_content())
}

fn attestation(call: &Call, group: bool) -> Result<Reply, ApiError> {
    Ok(Reply::ok(&owned(call)?.attestation(group, call.param(0))?))
}

/// The largest page, and the size of a page whose size nobody gave.
const PAGE: usize = 1000;

fn page_size(call: &Call) -> usize {
    let asked = call.header("x-ms-max-item-count").and_then(|count| count.parse().ok());
    asked.unwrap_or(PAGE).clamp(1, PAGE)
}

fn paged(page: Page, item_type: &'static str) -> Reply {
    let reply = Reply::ok(&Value::Array(page.items)).with("x-ms-item-type", item_type);
    match page.continuation {
        Some(token) => reply.with("x-ms-continuation", token),
        None => reply,
    }
}

fn list(call: &Call, group: bool) -> Result<Reply, ApiError> {
    let dps = owned(call)?;
    let body: Value = call.json()?;
    let query = body["query"].as_str().unwrap_or_default();
    let page = dps.list(group, query, page_size(call), call.header("x-ms-continuation"))?;
    Ok(paged(page, if group { "EnrollmentGroup" } else { "Enrollment" }))
}

fn bulk(call: &Call) -> Result<Reply, ApiError> {
    let dps = owned(call)?;
    let body: Value = call.json()?;
    let mode = body["mode"].as_str().unwrap_or_default();
    let mode = Bulk::parse(mode).ok_or_else(|| DpsError {
        code: 400_004,
        message: format!("mode is {mode:?}: create, update, updateIfMatchETag or delete was expected"),
    })?;
    let Some(enrollments) = body["enrollments"].as_array().filter(|all| (1..=10).contains(&all.len())) else {
        let message = "enrollments: a list of one to ten was expected".to_owned();
        return Err(DpsError { code: 400_004, message }.into());
    };
    Ok(Reply::ok(&dps.bulk(mode, enrollments)))
}

fn registration(call: &Call) -> Result<Reply, ApiError> {
    Ok(Reply::ok(&owned(call)?.registration(call.param(0))?))
}

fn delete_registration(call: &Call) -> Result<Reply, ApiError> {
    owned(call)?.delete_registration(call.param(0), call.header("if-match"))?;
    Ok(Reply::no_content())
}

fn registrations(call: &Call) -> Result<Reply, ApiError> {
    let dps = owned(call)?;
    let page = dps.registrations(call.param(0), page_size(call), call.header("x-ms-continuation"))?;
    Ok(paged(page, "DeviceRegistration"))
}

/// The device that asks.
fn device(call: &Call) -> Result<Registration, ApiError> {
    let dps = dps(call)?;
    let shown = match call.header("authorization") {
        Some(token) => Credential::Token(token),
        None => Credential::Chain(call.peer.chain()),
    };
    Ok(dps.authenticate(call.param(0), call.param(1), shown)?)
}

fn told(answer: Answer) -> Reply {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let reply = Reply::json(status, &answer.body);
    match answer.retry_after {
        Some(seconds) => reply.with(header::RETRY_AFTER, seconds.to_string()),
        None => reply,
    }
}

fn register(call: &Call) -> Result<Reply, ApiError> {
    let who = device(call)?;
    let body: Value = if call.body.is_empty() { Value::Null } else { call.json()? };
    let payload = Some(body["payload"].clone()).filter(|payload| !payload.is_null());
    Ok(told(dps(call)?.register(&who, payload)))
}

fn status(call: &Call) -> Result<Reply, ApiError> {
    let who = device(call)?;
    Ok(told(dps(call)?.status(&who, call.param(2))))
}

fn lookup(call: &Call) -> Result<Reply, ApiError> {
    let who = device(call)?;
    Ok(told(dps(call)?.lookup(&who)))
}
