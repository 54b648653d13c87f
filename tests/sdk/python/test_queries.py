"""The query language through IoTHubRegistryManager.query_iot_hub."""

import pytest
from azure.iot.hub.models import QuerySpecification, Twin, TwinProperties

from hub import row_of, unique


def rows(registry, text, size=None):
    """All rows over all pages, and how many pages there were."""
    found, pages, token = [], 0, None
    while True:
        page = registry.query_iot_hub(QuerySpecification(query=text), token, size)
        found.extend(page.items)
        pages += 1
        token = page.continuation_token
        if not token:
            return found, pages


def raw(registry, text, size=None):
    """As `rows`, with each row as the JSON that came: the SDK makes a Twin of whatever it is."""
    found, _ = rows(registry, text, size)
    return [row_of(twin) for twin in found]


@pytest.fixture(scope="module")
def fleet(hub):
    """Twelve devices of one site, made in one go, with tags and desired properties."""
    from azure.iot.hub import IoTHubRegistryManager
    from azure.iot.hub.models import ExportImportDevice
    from azure.iot.hub.protocol.models import PropertyContainer

    registry = IoTHubRegistryManager.from_connection_string(hub.service)
    site = unique("site")
    ids = [f"{site}-{number:02}" for number in range(12)]
    result = registry.bulk_create_or_update_devices(
        [
            ExportImportDevice(
                id=device_id,
                import_mode="create",
                status="enabled" if number % 4 else "disabled",
                tags={
                    "site": site,
                    "floor": number % 3,
                    "room": {"name": f"R{number}"},
                    "odd": bool(number % 2),
                },
                properties=PropertyContainer(desired={"level": number, "name": f"n-{number}"}),
            )
            for number, device_id in enumerate(ids)
        ]
    )
    assert result.is_successful, result.as_dict()
    yield site, ids
    registry.bulk_create_or_update_devices(
        [ExportImportDevice(id=device_id, import_mode="delete") for device_id in ids]
    )


def test_all_twins_over_several_pages(registry, fleet):
    site, ids = fleet
    found, pages = rows(registry, f"SELECT * FROM devices WHERE tags.site='{site}'", 5)
    assert sorted(twin.device_id for twin in found) == ids
    assert pages == 3
    assert all(isinstance(twin, Twin) for twin in found)
    assert all(twin.tags["site"] == site for twin in found)


def test_a_page_tells_its_type(registry, fleet):
    site, _ = fleet
    query = QuerySpecification(query=f"SELECT * FROM devices WHERE tags.site='{site}'")
    page = registry.query_iot_hub(query, None, 4)
    assert page.type.lower() == "twin"
    assert len(page.items) == 4 and page.continuation_token
    raw_page = registry.query_iot_hub(
        QuerySpecification(query=f"SELECT deviceId FROM devices WHERE tags.site='{site}'")
    )
    assert raw_page.type.lower() == "raw"
    assert raw_page.continuation_token is None


def test_nothing_found_is_an_empty_page(registry):
    found, pages = rows(registry, "SELECT * FROM devices WHERE tags.site='nowhere at all'")
    assert (found, pages) == ([], 1)


@pytest.mark.parametrize(
    "condition, expected",
    [
        ("tags.floor = 1", {1, 4, 7, 10}),
        ("tags.floor != 1", {0, 2, 3, 5, 6, 8, 9, 11}),
        ("tags.floor <> 1", {0, 2, 3, 5, 6, 8, 9, 11}),
        ("properties.desired.level >= 10", {10, 11}),
        ("properties.desired.level < 2 OR properties.desired.level > 10", {0, 1, 11}),
        ("NOT tags.odd", {0, 2, 4, 6, 8, 10}),
        ("tags.odd = true AND tags.floor = 0", {3, 9}),
        ("tags.floor IN [0, 2]", {0, 2, 3, 5, 6, 8, 9, 11}),
        ("tags.floor NIN [0, 2]", {1, 4, 7, 10}),
        ("tags.room.name = 'R7'", {7}),
        ("STARTSWITH(tags.room.name, 'R1')", {1, 10, 11}),
        ("endswith(properties.desired.name, '-3')", {3}),
        ("CONTAINS(properties.desired.name, '-1')", {1, 10, 11}),
        ("IS_DEFINED(tags.nothing)", set()),
        ("IS_NUMBER(tags.floor) AND is_string(tags.room.name) AND properties.desired.nothing < 1", set()),
        ("IS_BOOL(tags.odd) AND IS_OBJECT(tags.room) AND tags.floor = 0", {0, 3, 6, 9}),
        ("status = 'disabled'", {0, 4, 8}),
        ("connectionState = 'Connected'", set()),
        ("properties.desired.level + 1 = 5", {4}),
        ("properties.desired.level % 5 = 0", {0, 5, 10}),
        ("properties.reported.x = 1", set()),
        ("properties.desired.$version = 2", set(range(12))),
    ],
)
def test_conditions(registry, fleet, condition, expected):
    site, ids = fleet
    if "$version" in condition:
        version = registry.get_twin(ids[0]).properties.desired["$version"]
        condition = condition.replace("2", str(version))
    found = raw(
        registry, f"SELECT deviceId FROM devices WHERE tags.site='{site}' AND ({condition})"
    )
    assert {row["deviceId"] for row in found} == {ids[number] for number in expected}


def test_projections(registry, fleet):
    site, ids = fleet
    found = raw(
        registry,
        "SELECT deviceId, tags.room.name AS room, properties.desired.level AS level "
        f"FROM devices WHERE tags.site='{site}' AND properties.desired.level = 3",
    )
    assert found == [{"deviceId": ids[3], "room": "R3", "level": 3}]


def test_aggregates(registry, fleet):
    site, _ = fleet
    found = raw(
        registry,
        "SELECT tags.floor AS floor, COUNT() AS number, MAX(properties.desired.level) AS top "
        f"FROM devices WHERE tags.site='{site}' GROUP BY tags.floor",
    )
    assert sorted(found, key=lambda row: row["floor"]) == [
        {"floor": 0, "number": 4, "top": 9},
        {"floor": 1, "number": 4, "top": 10},
        {"floor": 2, "number": 4, "top": 11},
    ]
    assert raw(
        registry, f"SELECT COUNT() AS total FROM devices WHERE tags.site='{site}'"
    ) == [{"total": 12}]


def test_the_first_few(registry, fleet):
    site, _ = fleet
    found = raw(registry, f"SELECT TOP 3 deviceId FROM devices WHERE tags.site='{site}'")
    assert len(found) == 3


def test_modules_are_asked_for(registry, device, module):
    registry.update_module_twin(
        device.device_id,
        module.module_id,
        Twin(tags={"kind": "camera"}, properties=TwinProperties(desired={"on": True})),
    )
    found = raw(
        registry,
        "SELECT deviceId, moduleId FROM devices.modules "
        f"WHERE deviceId='{device.device_id}' AND tags.kind='camera'",
    )
    assert found == [{"deviceId": device.device_id, "moduleId": module.module_id}]
    twins, _ = rows(
        registry, f"SELECT * FROM devices.modules WHERE deviceId='{device.device_id}'"
    )
    assert twins[0].module_id == module.module_id
    assert twins[0].properties.desired["on"] is True


def test_reported_properties_and_connection_are_found(registry, device, connect):
    client = connect(device)
    client.patch_twin_reported_properties({"marker": device.device_id, "deep": {"er": [1, 2]}})
    found, _ = rows(
        registry,
        f"SELECT * FROM devices WHERE properties.reported.marker='{device.device_id}' "
        "AND connectionState='Connected'",
    )
    assert [twin.device_id for twin in found] == [device.device_id]
    assert found[0].connection_state == "Connected"
    assert found[0].properties.reported["deep"] == {"er": [1, 2]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SELECT",
        "SELECT * FROM",
        "SELECT * FROM nothing",
        "SELECT * FROM devices WHERE",
        "SELECT * FROM devices WHERE tags.a =",
        "SELECT * FROM devices WHERE tags.a = 'open",
        "SELECT * FROM devices WHERE NOSUCH(tags.a)",
        "DELETE FROM devices",
        "SELECT * FROM devices WHERE " + "(" * 5000,
    ],
    ids=lambda text: text[:40] or "empty",
)
def test_what_is_no_query_is_refused(registry, status, text):
    with status(400):
        registry.query_iot_hub(QuerySpecification(query=text))


def test_a_continuation_that_is_none_is_refused(registry, status):
    with status(400):
        registry.query_iot_hub(QuerySpecification(query="SELECT * FROM devices"), "nonsense", 10)


def test_pages_hold_while_devices_come_and_go(registry, fleet, make_device):
    site, ids = fleet
    text = QuerySpecification(query=f"SELECT * FROM devices WHERE tags.site='{site}'")
    first = registry.query_iot_hub(text, None, 6)
    make_device("bystander")
    rest = registry.query_iot_hub(text, first.continuation_token, 100)
    got = [twin.device_id for twin in first.items + rest.items]
    assert sorted(got) == ids
