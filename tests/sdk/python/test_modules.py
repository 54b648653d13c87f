"""Module identities and twins through IoTHubRegistryManager."""

import pytest
from azure.iot.hub.models import Twin, TwinProperties

from hub import new_key


def test_a_module_goes_round(registry, device, status):
    made = registry.create_module_with_sas(device.device_id, "sensor", "IotEdge", None, None)
    assert (made.device_id, made.module_id, made.managed_by) == (
        device.device_id,
        "sensor",
        "IotEdge",
    )
    assert made.connection_state == "Disconnected"
    assert made.authentication.type == "sas"
    assert made.authentication.symmetric_key.primary_key != device.key
    assert registry.get_module(device.device_id, "sensor").as_dict() == made.as_dict()
    listed = registry.get_modules(device.device_id)
    assert [module.module_id for module in listed] == ["sensor"]
    registry.delete_module(device.device_id, "sensor")
    assert registry.get_modules(device.device_id) == []
    with status(404, "ModuleNotFound"):
        registry.get_module(device.device_id, "sensor")


def test_a_module_is_taken_once(registry, device, status):
    registry.create_module_with_sas(device.device_id, "one", None, None, None)
    with status(409, "ModuleAlreadyExistsOnDevice"):
        registry.create_module_with_sas(device.device_id, "one", None, None, None)


def test_a_module_needs_its_device(registry, status):
    with status(404, "DeviceNotFound"):
        registry.create_module_with_sas("no-such-device", "one", None, None, None)
    with status(404, "DeviceNotFound"):
        registry.get_modules("no-such-device")


def test_module_keys_and_thumbprints_change(registry, device, status):
    made = registry.create_module_with_sas(device.device_id, "keys", None, None, None)
    primary, secondary = new_key(), new_key()
    changed = registry.update_module_with_sas(
        device.device_id, "keys", None, made.etag, primary, secondary
    )
    assert changed.authentication.symmetric_key.primary_key == primary
    assert changed.etag != made.etag
    with status(412, "PreconditionFailed"):
        registry.update_module_with_sas(
            device.device_id, "keys", None, made.etag, new_key(), new_key()
        )
    by_certificate = registry.update_module_with_x509(
        device.device_id, "keys", None, changed.etag, "A" * 40, "B" * 40
    )
    assert by_certificate.authentication.type == "selfSigned"
    by_authority = registry.update_module_with_certificate_authority(
        device.device_id, "keys", None, by_certificate.etag
    )
    assert by_authority.authentication.type == "certificateAuthority"
    with status(412, "PreconditionFailed"):
        registry.delete_module(device.device_id, "keys", made.etag)
    registry.delete_module(device.device_id, "keys", by_authority.etag)


def test_modules_are_made_with_certificates(registry, device):
    by_print = registry.create_module_with_x509(device.device_id, "p", None, "A" * 40, "B" * 40)
    assert by_print.authentication.x509_thumbprint.primary_thumbprint == "A" * 40
    by_authority = registry.create_module_with_certificate_authority(device.device_id, "a", None)
    assert by_authority.authentication.type == "certificateAuthority"


def test_a_module_has_its_own_twin(registry, device, module, status):
    twin = registry.get_module_twin(device.device_id, module.module_id)
    assert (twin.device_id, twin.module_id) == (device.device_id, module.module_id)
    patched = registry.update_module_twin(
        device.device_id,
        module.module_id,
        Twin(tags={"role": "eye"}, properties=TwinProperties(desired={"rate": 5})),
        twin.etag,
    )
    assert patched.tags == {"role": "eye"}
    assert patched.properties.desired["rate"] == 5
    assert not registry.get_twin(device.device_id).tags
    with status(412, "PreconditionFailed"):
        registry.update_module_twin(
            device.device_id, module.module_id, Twin(tags={"role": "ear"}), twin.etag
        )
    replaced = registry.replace_module_twin(
        device.device_id,
        module.module_id,
        Twin(tags={"only": True}, properties=TwinProperties(desired={"new": 1})),
        patched.etag,
    )
    assert replaced.tags == {"only": True}
    assert "rate" not in replaced.properties.desired
    assert replaced.properties.desired["new"] == 1


def test_unknown_modules_are_not_found(registry, device, status):
    with status(404, "ModuleNotFound"):
        registry.get_module_twin(device.device_id, "nobody")
    with status(404, "ModuleNotFound"):
        registry.delete_module(device.device_id, "nobody")


def test_a_deleted_device_takes_its_modules_along(registry, make_device, status):
    device = make_device("parent")
    registry.create_module_with_sas(device.device_id, "child", None, None, None)
    registry.delete_device(device.device_id)
    with status(404):
        registry.get_module(device.device_id, "child")


def test_a_device_has_fifty_modules_at_most(registry, device, status):
    for number in range(50):
        registry.create_module_with_sas(device.device_id, f"m{number}", None, None, None)
    with status(413, "TooManyModulesOnDevice"):
        registry.create_module_with_sas(device.device_id, "one-too-many", None, None, None)
    assert len(registry.get_modules(device.device_id)) == 50


@pytest.mark.parametrize("module_id", ["with space", "ü", "x" * 129])
def test_a_module_id_outside_the_alphabet_is_refused(registry, device, status, module_id):
    with status(400):
        registry.create_module_with_sas(device.device_id, module_id, None, None, None)
