"""DigitalTwinClient: what the hub models of Plug and Play, or its clear refusal."""

import pytest
from azure.iot.device import MethodResponse
from msrest.exceptions import HttpOperationError

MODEL = "dtmi:com:example:Thermostat;1"


def modelled(call):
    """The call's answer, or a skip when the hub says that the feature isn't there."""
    try:
        return call()
    except HttpOperationError as error:
        if error.response.status_code != 501:
            raise
        message = error.response.json()["Message"]
        assert "digital" in message.lower(), message
        pytest.skip(f"not modelled: {message}")


def test_the_model_of_a_device_is_known(registry, digital_twins, device, connect):
    connect(device, product_info=MODEL)
    twin = modelled(lambda: digital_twins.get_digital_twin(device.device_id))
    assert twin["$dtId"] == device.device_id
    assert twin["$metadata"]["$model"] == MODEL
    found = registry.get_twin(device.device_id)
    assert found.additional_properties.get("modelId") == MODEL


def test_a_property_is_written(registry, digital_twins, device, connect):
    connect(device, product_info=MODEL)
    modelled(
        lambda: digital_twins.update_digital_twin(
            device.device_id, [{"op": "add", "path": "/targetTemperature", "value": 42}]
        )
    )
    assert registry.get_twin(device.device_id).properties.desired["targetTemperature"] == 42


def test_commands_are_methods(digital_twins, device, connect):
    client = connect(device, product_info=MODEL)
    names = []

    def answer(request):
        names.append(request.name)
        client.send_method_response(
            MethodResponse.create_from_method_request(request, 200, {"got": request.payload})
        )

    client.on_method_request_received = answer
    root = modelled(lambda: digital_twins.invoke_command(device.device_id, "reboot", {"in": 1}))
    assert root == {"got": {"in": 1}}
    component = modelled(
        lambda: digital_twins.invoke_component_command(
            device.device_id, "thermostat1", "getReport", "now"
        )
    )
    assert component == {"got": "now"}
    assert names == ["reboot", "thermostat1*getReport"]


def test_an_unknown_device(digital_twins):
    try:
        digital_twins.get_digital_twin("nobody-here")
        raise AssertionError("was accepted")
    except HttpOperationError as error:
        assert error.response.status_code in (404, 501)
