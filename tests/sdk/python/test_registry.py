"""Device identities through IoTHubRegistryManager."""

import pytest
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import AuthenticationMechanism, ExportImportDevice, SymmetricKey
from azure.iot.hub.protocol.models import PropertyContainer

from hub import new_key, unique


def test_a_device_gets_keys_when_none_are_given(registry, make_device):
    made = make_device().identity
    assert made.status == "enabled"
    assert made.connection_state == "Disconnected"
    assert made.authentication.type == "sas"
    assert len(made.authentication.symmetric_key.primary_key) >= 44
    assert (
        made.authentication.symmetric_key.primary_key
        != made.authentication.symmetric_key.secondary_key
    )
    assert made.etag and made.generation_id
    assert made.cloud_to_device_message_count == 0
    again = registry.get_device(made.device_id)
    assert again.as_dict() == made.as_dict()


def test_given_keys_are_kept(registry, forget):
    device_id, primary, secondary = unique("own-keys"), new_key(), new_key()
    forget(device_id)
    registry.create_device_with_sas(device_id, primary, secondary, "disabled", status_reason="stock")
    found = registry.get_device(device_id)
    assert found.authentication.symmetric_key.primary_key == primary
    assert found.authentication.symmetric_key.secondary_key == secondary
    assert (found.status, found.status_reason) == ("disabled", "stock")


@pytest.mark.parametrize(
    "device_id", ["a.b", "A-b:c", "x%20y", "d_1", "d#1", "d*", "d?q", "d!", "d(1)", "d,e", "d=e", "d@h", "d;e", "d$e", "d'e", "d+e"]
)
def test_every_character_of_an_id_goes_round(registry, forget, device_id):
    device_id = f"{device_id}-{unique('x')}"
    forget(device_id)
    registry.create_device_with_sas(device_id, None, None, "enabled")
    assert registry.get_device(device_id).device_id == device_id
    assert registry.get_twin(device_id).device_id == device_id
    registry.delete_device(device_id)


def test_a_device_with_thumbprints(registry, forget, status):
    device_id = unique("thumb")
    forget(device_id)
    made = registry.create_device_with_x509(device_id, "A" * 40, "b" * 64, "enabled")
    assert made.authentication.type == "selfSigned"
    assert made.authentication.x509_thumbprint.primary_thumbprint == "A" * 40
    assert made.authentication.x509_thumbprint.secondary_thumbprint.upper() == "B" * 64
    twin = registry.get_twin(device_id)
    assert twin.authentication_type == "selfSigned"
    assert twin.x509_thumbprint.primary_thumbprint == "A" * 40
    changed = registry.update_device_with_x509(
        device_id, made.etag, "C" * 40, None, "disabled", status_reason="lost"
    )
    assert changed.authentication.x509_thumbprint.primary_thumbprint == "C" * 40
    assert changed.status == "disabled" and changed.etag != made.etag
    with status(400):
        registry.update_device_with_x509(device_id, None, "not a thumbprint", None, "enabled")


def test_a_device_with_a_certificate_authority(registry, forget):
    device_id = unique("authority")
    forget(device_id)
    made = registry.create_device_with_certificate_authority(device_id, "enabled")
    assert made.authentication.type == "certificateAuthority"
    assert registry.get_twin(device_id).authentication_type == "certificateAuthority"
    changed = registry.update_device_with_certificate_authority(device_id, made.etag, "disabled")
    assert changed.status == "disabled"


def test_a_device_changes_how_it_authenticates(registry, device):
    changed = registry.update_device_with_x509(
        device.device_id, device.identity.etag, "D" * 40, "E" * 40, "enabled"
    )
    assert changed.authentication.type == "selfSigned"
    assert changed.generation_id == device.identity.generation_id
    back = registry.update_device_with_sas(
        device.device_id, changed.etag, new_key(), new_key(), "enabled"
    )
    assert back.authentication.type == "sas"


def test_an_id_is_taken_once(registry, device, status):
    with status(409, "DeviceAlreadyExists"):
        registry.create_device_with_sas(device.device_id, None, None, "enabled")


@pytest.mark.parametrize("device_id", ["with space", "with/slash", "ü", "x" * 129])
def test_an_id_outside_the_alphabet_is_refused(registry, status, device_id):
    with status(400):
        registry.create_device_with_sas(device_id, None, None, "enabled")


@pytest.mark.parametrize("key", ["not base64!", "c2hvcnQ="])
def test_a_key_that_is_no_key_is_refused(registry, status, key):
    with status(400):
        registry.create_device_with_sas(unique("badkey"), key, new_key(), "enabled")


def test_an_unknown_device_is_not_found(registry, status):
    device_id = unique("nobody")
    with status(404, "DeviceNotFound") as answer:
        registry.get_device(device_id)
    assert device_id in answer.error["Message"]
    with status(404, "DeviceNotFound"):
        registry.get_twin(device_id)
    with status(404, "DeviceNotFound"):
        registry.delete_device(device_id)
    with status(404, "DeviceNotFound"):
        registry.update_device_with_sas(device_id, "*", new_key(), new_key(), "enabled")


def test_a_stale_etag_does_not_overwrite(registry, device, status):
    etag = device.identity.etag
    first = registry.update_device_with_sas(
        device.device_id, etag, device.key, device.second_key, "disabled"
    )
    assert first.etag != etag
    with status(412, "PreconditionFailed"):
        registry.update_device_with_sas(
            device.device_id, etag, device.key, device.second_key, "enabled"
        )
    assert registry.get_device(device.device_id).status == "disabled"
    registry.update_device_with_sas(
        device.device_id, None, device.key, device.second_key, "enabled"
    )
    with status(412, "PreconditionFailed"):
        registry.delete_device(device.device_id, etag)
    registry.delete_device(device.device_id, registry.get_device(device.device_id).etag)
    with status(404, "DeviceNotFound"):
        registry.get_device(device.device_id)


def test_a_device_made_again_is_another_one(registry, forget):
    device_id = unique("again")
    forget(device_id)
    first = registry.create_device_with_sas(device_id, None, None, "enabled")
    registry.delete_device(device_id)
    second = registry.create_device_with_sas(device_id, None, None, "enabled")
    assert second.generation_id != first.generation_id
    assert registry.get_twin(device_id).properties.desired["$version"] == 1


def test_edge_devices_have_scopes(registry, make_device, status):
    parent = make_device("edge", iot_edge=True).identity
    assert parent.capabilities.iot_edge is True
    assert parent.device_scope.startswith(f"ms-azure-iot-edge://{parent.device_id}-")
    child = make_device("edge", iot_edge=True, parent_scopes=[parent.device_scope]).identity
    assert child.parent_scopes == [parent.device_scope]
    assert child.device_scope != parent.device_scope
    leaf = make_device("leaf", device_scope=child.device_scope).identity
    assert leaf.device_scope == child.device_scope
    assert leaf.parent_scopes == [child.device_scope]
    modules = {module.module_id for module in registry.get_modules(parent.device_id)}
    assert modules >= {"$edgeAgent", "$edgeHub"}
    with status(400):
        registry.update_device_with_sas(
            leaf.device_id, None, new_key(), new_key(), "enabled", device_scope="no scope at all"
        )


def test_listing_gives_up_to_the_number_asked_for(registry, make_device):
    made = {make_device("listed").device_id for _ in range(3)}
    assert len(registry.get_devices(2)) == 2
    assert made <= {found.device_id for found in registry.get_devices()}
    one = next(found for found in registry.get_devices() if found.device_id in made)
    assert one.authentication.symmetric_key.primary_key


def bulk_item(device_id, mode, **more):
    return ExportImportDevice(id=device_id, import_mode=mode, **more)


def test_bulk_creates_updates_and_deletes(registry, forget, status):
    ids = [unique("bulk") for _ in range(100)]
    for device_id in ids:
        forget(device_id)
    keys = {device_id: new_key() for device_id in ids}
    made = registry.bulk_create_or_update_devices(
        [
            bulk_item(
                device_id,
                "create",
                status="disabled",
                authentication=AuthenticationMechanism(
                    type="sas",
                    symmetric_key=SymmetricKey(primary_key=keys[device_id], secondary_key=new_key()),
                ),
                tags={"batch": number},
                properties=PropertyContainer(desired={"color": "blue"}),
            )
            for number, device_id in enumerate(ids)
        ]
    )
    assert made.is_successful is True and not made.errors
    found = registry.get_device(ids[7])
    assert found.status == "disabled"
    assert found.authentication.symmetric_key.primary_key == keys[ids[7]]
    twin = registry.get_twin(ids[7])
    assert twin.tags == {"batch": 7}
    assert twin.properties.desired["color"] == "blue"

    updated = registry.bulk_create_or_update_devices(
        [bulk_item(device_id, "update", status="enabled") for device_id in ids[:3]]
        + [bulk_item(ids[3], "updateTwin", tags={"batch": "changed"})]
    )
    assert updated.is_successful is True
    for device_id in ids[:3]:
        found = registry.get_device(device_id)
        assert found.status == "enabled"
        assert found.authentication.symmetric_key.primary_key == keys[device_id]
    assert registry.get_twin(ids[3]).tags == {"batch": "changed"}

    deleted = registry.bulk_create_or_update_devices(
        [bulk_item(device_id, "delete") for device_id in ids]
    )
    assert deleted.is_successful is True
    with status(404):
        registry.get_device(ids[0])


def test_bulk_tells_which_items_failed(registry, device, forget):
    other = unique("bulk")
    forget(other)
    result = registry.bulk_create_or_update_devices(
        [
            bulk_item(device.device_id, "create", status="enabled"),
            bulk_item(other, "create", status="enabled"),
            bulk_item(unique("nobody"), "delete"),
            bulk_item(device.device_id + "x", "updateIfMatchETag", e_tag="c3RhbGU="),
        ]
    )
    assert result.is_successful is False
    wrong = {error.device_id: error.error_code for error in result.errors}
    assert wrong[device.device_id] == "DeviceAlreadyExists"
    assert other not in wrong
    assert registry.get_device(other).device_id == other
    assert len(wrong) == 3


def test_bulk_compares_etags(registry, device):
    stale = registry.bulk_create_or_update_devices(
        [bulk_item(device.device_id, "updateIfMatchETag", status="disabled", e_tag="c3RhbGU=")]
    )
    assert stale.is_successful is False
    assert stale.errors[0].error_code == "PreconditionFailed"
    assert registry.get_device(device.device_id).status == "enabled"
    etag = registry.get_device(device.device_id).etag
    right = registry.bulk_create_or_update_devices(
        [bulk_item(device.device_id, "updateIfMatchETag", status="disabled", e_tag=etag)]
    )
    assert right.is_successful is True
    assert registry.get_device(device.device_id).status == "disabled"


def test_bulk_takes_a_hundred_at_most(registry, status):
    with status(413, "TooManyDevices"):
        registry.bulk_create_or_update_devices(
            [bulk_item(unique("many"), "create", status="enabled") for _ in range(101)]
        )


def test_statistics_count_devices(registry, make_device):
    before = registry.get_device_registry_statistics()
    make_device("counted")
    make_device("counted", status="disabled")
    after = registry.get_device_registry_statistics()
    assert after.total_device_count == before.total_device_count + 2
    assert after.enabled_device_count == before.enabled_device_count + 1
    assert after.disabled_device_count == before.disabled_device_count + 1


def test_service_statistics_count_connected_devices(registry, device, connect, wait):
    def connected():
        return registry.get_service_statistics().connected_device_count

    # The hub notices that a device of an earlier test has gone some time after the device itself.
    wait(lambda: connected() == 0)
    connect(device)
    wait(lambda: connected() == 1)
    found = registry.get_device(device.device_id)
    assert found.connection_state == "Connected"
    assert found.connection_state_updated_time is not None


def test_a_wrong_key_is_unauthorised(hub, status):
    wrong = hub.service.replace(hub.key, new_key())
    manager = IoTHubRegistryManager.from_connection_string(wrong)
    with status(401, "Unauthorized"):
        manager.get_device("anything")


def test_an_unknown_policy_is_unauthorised(hub, status):
    wrong = hub.service.replace(f"SharedAccessKeyName={hub.policy}", "SharedAccessKeyName=nobody")
    with status(401, "Unauthorized"):
        IoTHubRegistryManager.from_connection_string(wrong).get_device("anything")


@pytest.mark.parametrize(
    "policy, reads, writes, talks",
    [
        ("registryRead", True, False, False),
        ("registryReadWrite", True, True, False),
        ("service", False, False, True),
        ("device", False, False, False),
    ],
)
def test_a_policy_allows_what_its_rights_say(
    hub, registry, device, forget, status, policy, reads, writes, talks
):
    text = hub.policy_string(policy)
    if text is None:
        pytest.skip("the hub's keys.json, with the keys of the other policies, is not on this machine")
    manager = IoTHubRegistryManager.from_connection_string(text)

    def attempt(allowed, call):
        if allowed:
            return call()
        with status(401):
            call()

    device_id = unique("policy")
    forget(device_id)
    attempt(reads, lambda: manager.get_device(device.device_id))
    attempt(writes, lambda: manager.create_device_with_sas(device_id, None, None, "enabled"))
    attempt(talks, lambda: manager.get_twin(device.device_id))
    attempt(talks, manager.get_service_statistics)
