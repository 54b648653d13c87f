"""Scheduled jobs through IoTHubJobManager."""

import datetime

import pytest
from azure.iot.device import MethodResponse
from azure.iot.hub.models import CloudToDeviceMethod, JobRequest, QuerySpecification, Twin
from azure.iot.hub.models import TwinProperties

from hub import row_of, unique


def now(**later):
    return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(**later)


def finished(jobs, wait, job_id, expected="completed"):
    def check():
        job = jobs.get_scheduled_job(job_id)
        assert job.status in ("queued", "scheduled", "running", expected), job.as_dict()
        return job if job.status == expected else None

    return wait(check, timeout=60)


@pytest.fixture
def pair(registry, make_device):
    site = unique("site")
    devices = [make_device("job") for _ in range(2)]
    for device in devices:
        registry.update_twin(device.device_id, Twin(tags={"site": site}))
    return site, devices


def twin_job(site, **options):
    return JobRequest(
        job_id=unique("job"),
        type="scheduleUpdateTwin",
        update_twin=Twin(
            etag="*", tags={"done": True}, properties=TwinProperties(desired={"rate": 7})
        ),
        query_condition=f"tags.site='{site}'",
        start_time=options.pop("start_time", now()),
        max_execution_time_in_seconds=options.pop("longest", 60),
    )


def method_job(site, name="reboot", payload=None, **options):
    return JobRequest(
        job_id=unique("job"),
        type="scheduleDeviceMethod",
        cloud_to_device_method=CloudToDeviceMethod(
            method_name=name,
            payload=payload,
            response_timeout_in_seconds=10,
            connect_timeout_in_seconds=0,
        ),
        query_condition=f"tags.site='{site}'",
        start_time=options.pop("start_time", now()),
        max_execution_time_in_seconds=60,
    )


def test_a_twin_update_reaches_every_device(registry, jobs, pair, wait):
    site, devices = pair
    request = twin_job(site)
    made = jobs.create_scheduled_job(request.job_id, request)
    assert made.job_id == request.job_id
    assert made.type == "scheduleUpdateTwin"
    assert made.status in ("queued", "scheduled", "running", "completed")
    job = finished(jobs, wait, request.job_id)
    statistics = job.device_job_statistics
    assert (statistics.device_count, statistics.succeeded_count) == (2, 2)
    assert (statistics.failed_count, statistics.running_count, statistics.pending_count) == (0, 0, 0)
    assert job.end_time is not None and job.created_time is not None
    assert job.query_condition == request.query_condition
    for device in devices:
        twin = registry.get_twin(device.device_id)
        assert twin.tags["done"] is True
        assert twin.properties.desired["rate"] == 7


def test_a_method_is_called_on_every_device(registry, jobs, pair, connect, wait):
    site, devices = pair
    calls = []
    client = connect(devices[0])

    def answer(request):
        calls.append((request.name, request.payload))
        client.send_method_response(MethodResponse.create_from_method_request(request, 200, {"up": 1}))

    client.on_method_request_received = answer
    request = method_job(site, payload={"in": 3})
    jobs.create_scheduled_job(request.job_id, request)
    job = finished(jobs, wait, request.job_id)
    assert calls == [("reboot", {"in": 3})]
    # The other one is not connected.
    statistics = job.device_job_statistics
    assert (statistics.succeeded_count, statistics.failed_count) == (1, 1)
    rows = registry.query_iot_hub(
        QuerySpecification(
            query=f"SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '{request.job_id}'"
        )
    ).items
    rows = [row_of(row) for row in rows]
    states = {row["deviceId"]: row["status"] for row in rows}
    assert states == {devices[0].device_id: "completed", devices[1].device_id: "failed"}
    good = next(row for row in rows if row["status"] == "completed")
    assert good["outcome"]["deviceMethodResponse"] == {"status": 200, "payload": {"up": 1}}


def test_a_job_in_the_future_waits_and_is_cancelled(registry, jobs, pair, wait):
    site, devices = pair
    request = twin_job(site, start_time=now(hours=1))
    made = jobs.create_scheduled_job(request.job_id, request)
    assert made.status in ("queued", "scheduled")
    cancelled = jobs.cancel_scheduled_job(request.job_id)
    assert cancelled.job_id == request.job_id
    finished(jobs, wait, request.job_id, "cancelled")
    assert "done" not in registry.get_twin(devices[0].device_id).tags


def test_a_job_id_is_taken_once(jobs, pair, status):
    site, _ = pair
    request = twin_job(site, start_time=now(hours=1))
    jobs.create_scheduled_job(request.job_id, request)
    with status(409):
        jobs.create_scheduled_job(request.job_id, request)
    jobs.cancel_scheduled_job(request.job_id)


def test_an_unknown_job_is_not_found(jobs, status):
    with status(404):
        jobs.get_scheduled_job(unique("nobody"))
    with status(404):
        jobs.cancel_scheduled_job(unique("nobody"))


def test_a_condition_that_is_none_fails(jobs, status):
    request = twin_job("x")
    request.query_condition = "tags.site = "
    with status(400):
        jobs.create_scheduled_job(request.job_id, request)


def test_a_job_that_nobody_matches_completes(jobs, wait):
    request = twin_job(unique("nowhere"))
    jobs.create_scheduled_job(request.job_id, request)
    job = finished(jobs, wait, request.job_id)
    assert job.device_job_statistics.device_count == 0


def test_jobs_are_listed(jobs, pair):
    """The SDK decodes an object where the service gives an array: only its HTTP answer counts."""
    site, _ = pair
    request = twin_job(site, start_time=now(hours=1))
    jobs.create_scheduled_job(request.job_id, request)
    raw = jobs.protocol.jobs
    client = raw._client
    sent = client.get(
        raw.query_scheduled_jobs.metadata["url"],
        {"api-version": "2021-04-12", "jobType": "scheduleUpdateTwin", "jobStatus": "queued"},
        {},
    )
    answer = client.send(sent, stream=False)
    assert answer.status_code == 200
    listed = answer.json()
    assert isinstance(listed, list)
    assert request.job_id in {one["jobId"] for one in listed} or any(
        one["status"] == "scheduled" for one in listed
    )
    jobs.cancel_scheduled_job(request.job_id)


@pytest.mark.parametrize("call", ["create", "list", "get", "cancel"])
def test_import_and_export_work_or_say_that_they_do_not(jobs, call):
    from azure.iot.hub.models import JobProperties
    from msrest.exceptions import HttpOperationError

    calls = {
        "create": lambda: jobs.create_import_export_job(
            JobProperties(type="export", output_blob_container_uri="https://localhost/c?sas")
        ),
        "list": jobs.get_import_export_jobs,
        "get": lambda: jobs.get_import_export_job("nobody"),
        "cancel": lambda: jobs.cancel_import_export_job("nobody"),
    }
    try:
        calls[call]()
    except HttpOperationError as error:
        assert error.response.status_code in (400, 404, 501), error.response.text
        assert error.response.json()["Message"]
