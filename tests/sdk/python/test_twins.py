"""Device twins, the service's side: IoTHubRegistryManager."""

import pytest
from azure.iot.hub.models import Twin, TwinProperties

from hub import nested

SAFE = 4503599627370496


def desired(**values):
    return Twin(properties=TwinProperties(desired=values))


def plain(properties):
    """The properties without `$version` and `$metadata`."""
    return {key: value for key, value in properties.items() if not key.startswith("$")}


def test_a_fresh_twin(registry, device):
    twin = registry.get_twin(device.device_id)
    assert twin.device_id == device.device_id and twin.module_id is None
    assert twin.status == "enabled" and twin.connection_state == "Disconnected"
    assert twin.authentication_type == "sas"
    assert twin.cloud_to_device_message_count == 0
    assert twin.capabilities.iot_edge is False
    assert twin.device_etag == device.identity.etag
    assert twin.etag and twin.version >= 1
    for section in (twin.properties.desired, twin.properties.reported):
        assert plain(section) == {}
        assert section["$version"] == 1
        assert "$lastUpdated" in section["$metadata"]


def test_a_patch_merges(registry, device):
    first = registry.update_twin(
        device.device_id,
        Twin(
            tags={"site": {"floor": 2, "room": "a"}},
            properties=TwinProperties(desired={"a": {"b": 1, "c": [1, 2]}, "d": "text"}),
        ),
    )
    second = registry.update_twin(
        device.device_id,
        Twin(
            tags={"site": {"room": None, "rack": 7}},
            properties=TwinProperties(desired={"a": {"b": None, "c": [3]}, "e": True}),
        ),
        first.etag,
    )
    assert second.tags == {"site": {"floor": 2, "rack": 7}}
    assert plain(second.properties.desired) == {"a": {"c": [3]}, "d": "text", "e": True}
    assert second.properties.desired["$version"] == first.properties.desired["$version"] + 1
    assert second.etag != first.etag and second.version > first.version
    metadata = second.properties.desired["$metadata"]
    assert metadata["a"]["c"]["$lastUpdatedVersion"] == second.properties.desired["$version"]
    assert metadata["d"]["$lastUpdatedVersion"] == first.properties.desired["$version"]


def test_a_replacement_leaves_nothing_behind(registry, device):
    registry.update_twin(
        device.device_id, Twin(tags={"old": 1}, properties=TwinProperties(desired={"old": 1}))
    )
    replaced = registry.replace_twin(
        device.device_id, Twin(tags={"new": 1}, properties=TwinProperties(desired={"new": 1}))
    )
    assert replaced.tags == {"new": 1}
    assert plain(replaced.properties.desired) == {"new": 1}


def test_only_tags_or_only_properties_may_change(registry, device):
    tagged = registry.update_twin(device.device_id, Twin(tags={"a": 1}))
    assert tagged.properties.desired["$version"] == 1
    both = registry.update_twin(device.device_id, desired(x=1))
    assert both.tags == {"a": 1}
    assert both.properties.desired["$version"] == 2


def test_two_writers_with_one_etag(registry, device, status):
    twin = registry.get_twin(device.device_id)
    registry.update_twin(device.device_id, desired(winner=1), twin.etag)
    with status(412, "PreconditionFailed"):
        registry.update_twin(device.device_id, desired(loser=1), twin.etag)
    with status(412, "PreconditionFailed"):
        registry.replace_twin(device.device_id, desired(loser=1), twin.etag)
    registry.update_twin(device.device_id, desired(forced=1), "*")
    registry.update_twin(device.device_id, desired(unconditional=1))
    assert plain(registry.get_twin(device.device_id).properties.desired) == {
        "winner": 1,
        "forced": 1,
        "unconditional": 1,
    }


def test_a_report_keeps_the_etag_valid_for_desired(registry, device, connect):
    client = connect(device)
    before = registry.get_twin(device.device_id)
    client.patch_twin_reported_properties({"seen": 1})
    after = registry.get_twin(device.device_id)
    assert after.properties.reported["seen"] == 1
    assert after.version > before.version
    # The etag covers tags and desired properties alone.
    assert after.etag == before.etag
    registry.update_twin(device.device_id, desired(x=1), before.etag)


@pytest.mark.parametrize(
    "values",
    [
        {"n": SAFE - 1},
        {"n": -(SAFE - 1)},
        {"n": 1.5},
        {"s": "x" * 4096},
        {"u": "grüße, 世界 🚀"},
        {"empty": {}, "list": [], "text": ""},
        nested(10),
        {"list": [1, "two", {"three": 3}, [4]]},
        {"k" * 1024: 1},
    ],
    ids=lambda values: str(values)[:30],
)
def test_values_at_the_limits_are_taken(registry, device, values):
    twin = registry.update_twin(device.device_id, desired(**values))
    assert plain(twin.properties.desired) == values
    assert plain(registry.get_twin(device.device_id).properties.desired) == values


@pytest.mark.parametrize(
    "values",
    [
        {"n": SAFE + 1},
        {"s": "x" * 4097},
        {"a.b": 1},
        {"$x": 1},
        {"a b": 1},
        {"k" * 1025: 1},
        nested(11),
    ],
    ids=lambda values: str(values)[:30],
)
def test_values_beyond_the_limits_are_refused(registry, device, status, values):
    with status(400):
        registry.update_twin(device.device_id, desired(**values))
    assert plain(registry.get_twin(device.device_id).properties.desired) == {}


def test_a_section_has_a_size(registry, device, status):
    big = {f"key{number}": "x" * 4000 for number in range(8)}
    registry.update_twin(device.device_id, desired(**big))
    with status(413):
        registry.update_twin(device.device_id, desired(**{"one": "x" * 4000}))
    tags = {f"key{number}": "x" * 4000 for number in range(2)}
    registry.update_twin(device.device_id, Twin(tags=tags))
    with status(413):
        registry.update_twin(device.device_id, Twin(tags={"one": "x" * 4000}))


def test_everything_goes_with_null(registry, device):
    registry.update_twin(
        device.device_id, Twin(tags={"a": 1}, properties=TwinProperties(desired={"a": {"b": 1}}))
    )
    twin = registry.update_twin(
        device.device_id, Twin(tags={"a": None}, properties=TwinProperties(desired={"a": None}))
    )
    assert not twin.tags
    assert plain(twin.properties.desired) == {}


def test_the_service_cannot_report(registry, device):
    registry.update_twin(
        device.device_id, Twin(properties=TwinProperties(desired={"d": 1}, reported={"r": 1}))
    )
    twin = registry.get_twin(device.device_id)
    assert plain(twin.properties.reported) == {}
