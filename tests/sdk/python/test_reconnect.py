"""Bad networks and a hub that goes away, with azure-iot-device's own retries."""

import threading

import pytest
from azure.iot.device import MethodResponse
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod, Twin, TwinProperties


class Inbox(list):
    def __call__(self, item):
        self.append(item)


def desired(**values):
    return Twin(properties=TwinProperties(desired=values))


@pytest.fixture
def everything(connect, device, relay):
    """A device behind a cable, which listens to all there is."""
    text = f"{device.connection_string};GatewayHostName={relay.ADDRESS}"
    client = connect(text, keep_alive=2, connection_retry_interval=1)
    client.get_twin()
    return listen(client)


def listen(client):
    patches, messages, calls = Inbox(), Inbox(), Inbox()
    client.on_twin_desired_properties_patch_received = patches
    client.on_message_received = messages

    def answer(request):
        calls(request.name)
        client.send_method_response(MethodResponse.create_from_method_request(request, 200))

    client.on_method_request_received = answer
    return client, patches, messages, calls


def all_works(registry, device, everything, wait, mark):
    """Nothing was subscribed again by the SDK, and yet everything arrives."""
    client, patches, messages, calls = everything
    client.patch_twin_reported_properties({"mark": mark})
    assert client.get_twin()["reported"]["mark"] == mark
    registry.update_twin(device.device_id, desired(mark=mark))
    registry.send_c2d_message(device.device_id, mark)
    result = registry.invoke_device_method(
        device.device_id,
        CloudToDeviceMethod(method_name=mark, payload=1, connect_timeout_in_seconds=10),
    )
    assert result.status == 200
    wait(lambda: any(patch.get("mark") == mark for patch in patches))
    wait(lambda: mark.encode() in [message.data for message in messages])
    assert calls[-1] == mark


def test_a_cut_connection_comes_back_with_its_subscriptions(
    registry, device, relay, everything, wait
):
    client = everything[0]
    all_works(registry, device, everything, wait, "before")
    relay.reject()
    wait(lambda: not client.connected)
    registry.update_twin(device.device_id, desired(away=1))
    registry.send_c2d_message(device.device_id, "while away")
    relay.restore()
    wait(lambda: client.connected, timeout=60)
    wait(lambda: any(patch.get("away") == 1 for patch in everything[1]))
    wait(lambda: b"while away" in [message.data for message in everything[2]])
    all_works(registry, device, everything, wait, "after")


def test_a_message_survives_a_silent_network(events, device, relay, everything, wait):
    client = everything[0]
    relay.drop()
    sending = threading.Thread(target=client.send_message, args=("held",))
    reporting = threading.Thread(target=client.patch_twin_reported_properties, args=({"h": 1},))
    sending.start()
    reporting.start()
    wait(lambda: not client.connected, timeout=60)
    assert sending.is_alive() and reporting.is_alive()
    relay.restore()
    wait(lambda: client.connected, timeout=60)
    sending.join(timeout=60)
    reporting.join(timeout=60)
    assert not sending.is_alive() and not reporting.is_alive()
    assert events.wait(device)[0].text == "held"
    assert client.get_twin()["reported"]["h"] == 1


def test_an_unacknowledged_message_is_delivered_again(registry, device, relay, everything, wait):
    client, _, messages, _ = everything
    registry.send_c2d_message(device.device_id, "first")
    wait(lambda: messages)
    relay.drop()
    registry.send_c2d_message(device.device_id, "second")
    wait(lambda: not client.connected, timeout=60)
    relay.restore()
    wait(lambda: b"second" in [message.data for message in messages], timeout=60)
    wait(lambda: registry.get_device(device.device_id).cloud_to_device_message_count == 0)


@pytest.mark.restarts_hub
@pytest.mark.parametrize("how", ["restart", "kill"])
def test_a_restarted_hub_knows_everything(
    hub, connect, make_device, module, wait, how
):
    if not hub.control:
        pytest.skip("the runner gave no way to restart the hub")
    # A sender whose hub has gone away stays broken: one for each life of the hub.
    registry = IoTHubRegistryManager.from_connection_string(hub.service)
    device, away = make_device("stays"), make_device("away")
    everything = listen(connect(device, keep_alive=2, connection_retry_interval=1))
    client = everything[0]
    all_works(registry, device, everything, wait, "before")
    registry.update_twin(away.device_id, Twin(tags={"kept": 1}))
    registry.send_c2d_message(away.device_id, "kept")
    before = registry.get_twin(device.device_id)

    if how == "kill":
        hub.run("kill")
        hub.run("start")
    else:
        hub.run("restart")

    wait(lambda: client.connected, timeout=60)
    after = registry.get_twin(device.device_id)
    assert after.etag == before.etag
    assert after.properties.reported["mark"] == "before"
    assert after.properties.desired["mark"] == "before"
    assert registry.get_twin(away.device_id).tags == {"kept": 1}
    assert registry.get_device(away.device_id).cloud_to_device_message_count == 1
    assert registry.get_module(module.device_id, module.module_id).etag == module.identity.etag
    fresh = IoTHubRegistryManager.from_connection_string(hub.service)
    all_works(fresh, device, everything, wait, "after")
    got = Inbox()
    connect(away).on_message_received = got
    wait(lambda: [message.data for message in got] == [b"kept"])
