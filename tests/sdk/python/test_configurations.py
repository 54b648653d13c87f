"""Automatic device configurations through IoTHubConfigurationManager."""

import pytest
from azure.iot.hub.models import (
    Configuration,
    ConfigurationContent,
    ConfigurationMetrics,
    ConfigurationQueriesTestInput,
    Twin,
)
from msrest.exceptions import HttpOperationError

from hub import unique


@pytest.fixture
def make(configurations):
    made = []

    def create(condition, values=None, priority=10, content=None, **more):
        name = unique("conf")
        made.append(name)
        content = content or ConfigurationContent(
            device_content={f"properties.desired.{path}": value for path, value in values.items()}
        )
        return configurations.create_configuration(
            Configuration(
                id=name,
                schema_version="1.0",
                content=content,
                target_condition=condition,
                priority=priority,
                **more,
            )
        )

    create.forget = made.append
    yield create
    for name in made:
        try:
            configurations.delete_configuration(name)
        except HttpOperationError as error:
            assert error.response.status_code == 404


@pytest.fixture
def site():
    """A tag value that only this test's devices have."""
    return unique("site")


def tagged(registry, make_device, site, **tags):
    device = make_device("target")
    registry.update_twin(device.device_id, Twin(tags={"site": site, **tags}))
    return device


def desired(registry, device):
    found = registry.get_twin(device.device_id).properties.desired
    return {key: value for key, value in found.items() if not key.startswith("$")}


def test_a_configuration_goes_round(configurations, make):
    made = make(
        "tags.site='nowhere'",
        {"color": "red", "limits": {"low": 1}},
        labels={"team": "a"},
        metrics=ConfigurationMetrics(
            queries={"done": "SELECT deviceId FROM devices WHERE properties.reported.ok = true"}
        ),
    )
    found = configurations.get_configuration(made.id)
    assert found.id == made.id and found.schema_version == "1.0"
    assert found.labels == {"team": "a"}
    assert found.priority == 10
    assert found.target_condition == "tags.site='nowhere'"
    assert found.content.device_content == {
        "properties.desired.color": "red",
        "properties.desired.limits": {"low": 1},
    }
    assert set(found.system_metrics.queries) >= {"targetedCount", "appliedCount"}
    assert found.metrics.queries == {
        "done": "SELECT deviceId FROM devices WHERE properties.reported.ok = true"
    }
    assert found.created_time_utc is not None and found.last_updated_time_utc is not None
    assert found.etag
    assert made.id in {one.id for one in configurations.get_configurations()}
    assert len(configurations.get_configurations(1)) == 1


def test_it_reaches_the_devices_that_match(registry, make_device, make, site, wait):
    inside = tagged(registry, make_device, site)
    outside = tagged(registry, make_device, "elsewhere")
    make(f"tags.site='{site}'", {"interval": 60})
    wait(lambda: desired(registry, inside) == {"interval": 60})
    assert desired(registry, outside) == {}
    late = tagged(registry, make_device, site)
    wait(lambda: desired(registry, late) == {"interval": 60})


def test_a_connected_device_is_told(registry, make_device, connect, make, site, wait):
    device = tagged(registry, make_device, site)
    client = connect(device)
    patches = []
    client.on_twin_desired_properties_patch_received = patches.append
    make(f"tags.site='{site}'", {"update": {"version": "2.0"}})
    wait(lambda: patches)
    assert patches[0]["update"] == {"version": "2.0"}
    assert patches[0]["$version"] == 2


def test_the_higher_priority_wins_and_gives_way(
    registry, configurations, make_device, make, site, wait
):
    device = tagged(registry, make_device, site)
    low = make(f"tags.site='{site}'", {"color": "low", "only": "low"}, priority=1)
    wait(lambda: desired(registry, device) == {"color": "low", "only": "low"})
    high = make(f"tags.site='{site}'", {"color": "high"}, priority=9)
    wait(lambda: desired(registry, device) == {"color": "high", "only": "low"})
    configurations.delete_configuration(high.id)
    wait(lambda: desired(registry, device) == {"color": "low", "only": "low"})
    registry.update_twin(device.device_id, Twin(tags={"site": "moved"}))
    wait(lambda: desired(registry, device) == {})
    assert configurations.get_configuration(low.id).id == low.id


def test_metrics_count(registry, configurations, make_device, connect, make, site, wait):
    devices = [tagged(registry, make_device, site) for _ in range(3)]
    made = make(
        f"tags.site='{site}'",
        {"firmware": "2"},
        metrics=ConfigurationMetrics(
            queries={
                "succeeded": "SELECT deviceId FROM devices WHERE "
                "properties.reported.firmware='2' AND configurations.[[conf]].status='Applied'"
            }
        ),
    )
    made.metrics.queries = {
        "succeeded": "SELECT deviceId FROM devices WHERE properties.reported.firmware='2' "
        f"AND configurations.[[{made.id}]].status='Applied'"
    }
    made = configurations.update_configuration(made, made.etag)
    connect(devices[0]).patch_twin_reported_properties({"firmware": "2"})

    def counted():
        found = configurations.get_configuration(made.id)
        return (found.system_metrics.results, found.metrics.results)

    wait(lambda: counted() == ({"targetedCount": 3, "appliedCount": 3}, {"succeeded": 1}))


def test_a_twin_tells_which_configurations_apply(registry, make_device, make, site, wait):
    from azure.iot.hub.models import QuerySpecification

    device = tagged(registry, make_device, site)
    low = make(f"tags.site='{site}'", {"a": 1}, priority=1)
    high = make(f"tags.site='{site}'", {"a": 2}, priority=2)
    query = QuerySpecification(
        query=f"SELECT * FROM devices WHERE deviceId='{device.device_id}'"
    )

    def states():
        twin = registry.query_iot_hub(query).items[0]
        found = twin.additional_properties.get("configurations", {})
        return {name: one["status"] for name, one in found.items()}

    wait(lambda: states() == {low.id: "Targeted", high.id: "Applied"})


def test_labels_and_priority_change_and_stale_etags_do_not(configurations, make, status):
    made = make("tags.site='nowhere'", {"a": 1})
    etag = made.etag
    made.labels = {"changed": "yes"}
    made.priority = 77
    made.target_condition = "tags.site='somewhere'"
    changed = configurations.update_configuration(made, etag)
    assert (changed.priority, changed.labels) == (77, {"changed": "yes"})
    assert changed.etag != etag
    with status(412, "PreconditionFailed"):
        configurations.update_configuration(made, etag)
    with status(412, "PreconditionFailed"):
        configurations.delete_configuration(made.id, etag)
    configurations.update_configuration(changed, "*")
    configurations.delete_configuration(made.id)
    with status(404, "ConfigurationNotFound"):
        configurations.get_configuration(made.id)


def test_an_id_is_taken_once(configurations, make, status):
    made = make("tags.site='nowhere'", {"a": 1})
    with status(409):
        configurations.create_configuration(made)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "Upper-Case"},
        {"target_condition": "tags.site = "},
        {"target_condition": "tags.site = 'a' AND"},
        {"content": ConfigurationContent(device_content={"tags.site": 1})},
        {"metrics": ConfigurationMetrics(queries={"m": "SELECT FROM WHERE"})},
    ],
    ids=["id", "condition", "half a condition", "path", "metric"],
)
def test_what_is_wrong_is_refused(configurations, make, status, change):
    wrong = Configuration(
        id=unique("conf"),
        schema_version="1.0",
        content=ConfigurationContent(device_content={"properties.desired.a": 1}),
        target_condition="tags.site='nowhere'",
        priority=1,
    )
    for name, value in change.items():
        setattr(wrong, name, value)
    make.forget(wrong.id)
    with status(400):
        configurations.create_configuration(wrong)


def test_conditions_and_metrics_are_tested_without_effect(configurations):
    good = configurations.test_configuration_queries(
        ConfigurationQueriesTestInput(
            target_condition="tags.site='a' AND properties.reported.x > 3",
            custom_metric_queries={"m": "SELECT deviceId FROM devices WHERE tags.a=1"},
        )
    )
    assert not good.target_condition_error
    assert not good.custom_metric_query_errors
    bad = configurations.test_configuration_queries(
        ConfigurationQueriesTestInput(
            target_condition="tags.site = ",
            custom_metric_queries={"good": "SELECT deviceId FROM devices", "bad": "SELECT"},
        )
    )
    assert bad.target_condition_error
    assert set(bad.custom_metric_query_errors) == {"bad"}


def test_modules_are_configured(registry, configurations, device, module, make, site, wait):
    registry.update_module_twin(
        device.device_id, module.module_id, Twin(tags={"site": site})
    )
    made = make(
        f"FROM devices.modules WHERE tags.site='{site}'",
        content=ConfigurationContent(module_content={"properties.desired.gain": 3}),
    )

    def gain():
        twin = registry.get_module_twin(device.device_id, module.module_id)
        return twin.properties.desired.get("gain")

    wait(lambda: gain() == 3)
    assert configurations.get_configuration(made.id).content.module_content == {
        "properties.desired.gain": 3
    }
    assert "gain" not in registry.get_twin(device.device_id).properties.desired
    configurations.delete_configuration(made.id)
    wait(lambda: gain() is None)


def test_content_is_applied_to_one_edge_device(registry, configurations, make_device, status):
    edge = make_device("edge", iot_edge=True)
    registry.create_module_with_sas(edge.device_id, "worker", None, None, None)
    configurations.apply_configuration_on_edge_device(
        edge.device_id,
        ConfigurationContent(
            modules_content={
                "$edgeAgent": {"properties.desired": {"schemaVersion": "1.1"}},
                "$edgeHub": {"properties.desired": {"schemaVersion": "1.1"}},
                "worker": {"properties.desired": {"speed": 4}},
            }
        ),
    )
    assert (
        registry.get_module_twin(edge.device_id, "worker").properties.desired["speed"] == 4
    )
    assert (
        registry.get_module_twin(edge.device_id, "$edgeAgent").properties.desired["schemaVersion"]
        == "1.1"
    )
    with status(404):
        configurations.apply_configuration_on_edge_device(
            "no-such-device", ConfigurationContent(modules_content={})
        )


def test_an_edge_deployment_and_its_layers_reach_the_modules(
    registry, make_device, make, site, wait
):
    edge = make_device("edge", iot_edge=True)
    registry.create_module_with_sas(edge.device_id, "worker", None, None, None)
    registry.update_twin(edge.device_id, Twin(tags={"site": site}))
    base = {
        "$edgeAgent": {"properties.desired": {"schemaVersion": "1.1"}},
        "$edgeHub": {"properties.desired": {"schemaVersion": "1.1"}},
        "worker": {"properties.desired": {"speed": 1, "kept": True}},
    }
    make(f"tags.site='{site}'", priority=1, content=ConfigurationContent(modules_content=base))

    def worker():
        found = registry.get_module_twin(edge.device_id, "worker").properties.desired
        return {key: value for key, value in found.items() if not key.startswith("$")}

    wait(lambda: worker() == {"speed": 1, "kept": True})
    layer = {"worker": {"properties.desired.speed": 9}}
    make(f"tags.site='{site}'", priority=2, content=ConfigurationContent(modules_content=layer))
    wait(lambda: worker() == {"speed": 9, "kept": True})
