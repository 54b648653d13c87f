//! Jobs v2: scheduled twin updates and direct methods.

use fleetwave_hub_core::throttle;
use fleetwave_protocol::bag;
use serde_json::Value;

use super::router::{Handler, Outcome, Verb};
use super::{Access, ApiError, Call, Operation, Reply};
use crate::jobs::{JobRequest, Status};
use crate::policy::Rights;

const fn operation(name: &'static str, method: Verb, path: &'static str) -> Operation {
    Operation {
        name,
        method,
        path,
        access: Access::Policy(Rights::SERVICE_CONNECT),
        limit: Some(throttle::Operation::Registry),
        sdk: "",
        test: "",
        short: "",
        handler: Handler::NotModelled(""),
    }
}

/// What there is of it in the real hub needs a blob container.
const BULK: &str = "import and export jobs (`/jobs/create`): use bulk operations of the registry";

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        sdk: "Python `IoTHubJobManager.query_scheduled_jobs`, Node `JobClient.createQuery`",
        test: "rest::jobs_come_by_pages_type_and_status",
        handler: Handler::Does(|call| -> Outcome { Box::pin(async move { list(&call) }) }),
        ..operation("List jobs", Verb::Get, "/jobs/v2/query")
    },
    Operation {
        sdk: "Python `IoTHubJobManager.create_scheduled_job`, Node `JobClient.scheduleTwinUpdate`, \
              `JobClient.scheduleDeviceMethod`",
        test: "rest::a_job_writes_the_twins_that_its_condition_selects",
        short: "a job that runs when the hub ends has failed; more jobs than the tier lets run wait",
        handler: Handler::Does(|call| -> Outcome { Box::pin(create(call)) }),
        ..operation("Schedule a job", Verb::Put, "/jobs/v2/{id}")
    },
    Operation {
        sdk: "Python `IoTHubJobManager.get_scheduled_job`, Node `JobClient.getJob`",
        test: "rest::a_job_writes_the_twins_that_its_condition_selects",
        handler: Handler::Does(|call| -> Outcome { Box::pin(async move { get(&call) }) }),
        ..operation("Read a job", Verb::Get, "/jobs/v2/{id}")
    },
    Operation {
        sdk: "Python `IoTHubJobManager.cancel_scheduled_job`, Node `JobClient.cancelJob`",
        test: "rest::a_job_that_has_not_begun_is_cancelled",
        handler: Handler::Does(|call| -> Outcome { Box::pin(cancel(call)) }),
        ..operation("Cancel a job", Verb::Post, "/jobs/v2/{id}/cancel")
    },
    Operation {
        sdk: "Python `IoTHubJobManager.create_import_export_job`",
        handler: Handler::NotModelled(BULK),
        ..operation("Create an import or export job", Verb::Post, "/jobs/create")
    },
    Operation {
        sdk: "Python `IoTHubJobManager.get_import_export_jobs`",
        handler: Handler::NotModelled(BULK),
        ..operation("List import and export jobs", Verb::Get, "/jobs")
    },
    Operation {
        sdk: "Python `IoTHubJobManager.get_import_export_job`",
        handler: Handler::NotModelled(BULK),
        ..operation("Read an import or export job", Verb::Get, "/jobs/{id}")
    },
    Operation {
        sdk: "Python `IoTHubJobManager.cancel_import_export_job`",
        handler: Handler::NotModelled(BULK),
        ..operation("Cancel an import or export job", Verb::Delete, "/jobs/{id}")
    },
];

async fn create(call: Call) -> Result<Reply, ApiError> {
    let id = call.param(0);
    let body: Value = call.json()?;
    let request = JobRequest::read(id, &body)?;
    let control = call.api.control.clone();
    let written = call.api.jobs.add(id, request, control.clock().now().wall)?;
    call.api.jobs.keep(id).await?;
    call.api.jobs.spawn(control, id.to_owned());
    Ok(Reply::ok(&written))
}

fn get(call: &Call) -> Result<Reply, ApiError> {
    Ok(Reply::ok(&call.api.jobs.with(call.param(0), |job| job.write())?))
}

async fn cancel(call: Call) -> Result<Reply, ApiError> {
    let now = call.api.control.clock().now().wall;
    let job = call.api.jobs.with(call.param(0), |job| {
        job.end(Status::Cancelled, None, now);
        job.write()
    })?;
    call.api.jobs.keep(call.param(0)).await?;
    Ok(Reply::ok(&job))
}

fn list(call: &Call) -> Result<Reply, ApiError> {
    let (kind, status) = (call.query_param("jobType"), call.query_param("jobStatus"));
    let max = call.header("x-ms-max-item-count").and_then(|count| count.parse().ok()).unwrap_or(100);
    let after = call.header("x-ms-continuation").filter(|token| !token.is_empty()).map(|token| {
        let decoded = bag::decode(token).map(String::from);
        decoded.ok_or_else(|| {
            ApiError::new(
                fleetwave_hub_core::ErrorCode::ArgumentInvalid,
                "the continuation is not one of ours",
            )
        })
    });
    let after = after.transpose()?;
    let page: usize = max;
    let (jobs, next) =
        call.api.jobs.list(kind.as_deref(), status.as_deref(), after.as_deref(), page.clamp(1, 1000));
    let reply = Reply::ok(&Value::Array(jobs)).with("x-ms-item-type", "JobResponse");
    Ok(match next {
        Some(token) => reply.with("x-ms-continuation", bag::encode(&token)),
        None => reply,
    })
}
