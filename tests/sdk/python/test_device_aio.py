"""What a device can do while connected: azure-iot-device, the asynchronous client."""

import asyncio
import threading

import pytest
from azure.iot.device import Message, MethodResponse, X509
from azure.iot.device.aio import IoTHubDeviceClient, IoTHubModuleClient
from azure.iot.device.exceptions import ClientError, CredentialError, ServiceError
from azure.iot.hub.models import CloudToDeviceMethod, Twin, TwinProperties

from hub import Certificate, new_key, sas, unique


def desired(**values):
    return Twin(properties=TwinProperties(desired=values))


async def until(check, timeout=60):
    async with asyncio.timeout(timeout):
        while not check():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("websockets", [False, True], ids=["mqtt", "websocket"])
async def test_every_way_to_connect(hub, registry, forget, device, tmp_path, websockets):
    certificate = Certificate(tmp_path, "self-signed")
    by_print = unique("thumb")
    forget(by_print)
    registry.create_device_with_x509(by_print, certificate.sha1, None, "enabled")
    registry.create_module_with_x509(device.device_id, "printed", None, certificate.sha1, None)
    x509 = X509(certificate.certificate_file, certificate.key_file)
    options = {"server_verification_cert": hub.ca, "websockets": websockets}
    for client in (
        IoTHubDeviceClient.create_from_connection_string(device.connection_string, **options),
        IoTHubDeviceClient.create_from_symmetric_key(
            device.key, hub.host, device.device_id, **options
        ),
        IoTHubDeviceClient.create_from_sastoken(
            sas(f"{hub.host}/devices/{device.device_id}", device.key), **options
        ),
        IoTHubDeviceClient.create_from_x509_certificate(x509, hub.host, by_print, **options),
        IoTHubModuleClient.create_from_x509_certificate(
            x509, hub.host, device.device_id, "printed", **options
        ),
    ):
        await client.connect()
        assert client.connected
        assert (await client.get_twin())["desired"]["$version"] == 1
        await client.shutdown()


async def test_a_wrong_key_is_refused(hub, aconnect, device):
    client = await aconnect(hub.device_string(device.device_id, new_key()), open=False)
    with pytest.raises(CredentialError):
        await client.connect()


async def test_twin(registry, aconnect, device):
    client = await aconnect(device)
    patches = []
    client.on_twin_desired_properties_patch_received = patches.append
    await client.patch_twin_reported_properties({"a": 1})
    with pytest.raises(ClientError) as error:
        await client.patch_twin_reported_properties({"$bad": 1})
    assert isinstance(error.value.__cause__, ServiceError)
    registry.update_twin(device.device_id, desired(b=2))
    await until(lambda: patches)
    assert patches == [{"b": 2, "$version": 2}]
    assert await client.get_twin() == {
        "desired": {"b": 2, "$version": 2},
        "reported": {"a": 1, "$version": 2},
    }


async def test_the_receive_calls(registry, aconnect, device):
    client = await aconnect(device)
    # Each call subscribes first: what is sent after that arrives.
    patch = asyncio.create_task(client.receive_twin_desired_properties_patch())
    request = asyncio.create_task(client.receive_method_request())
    message = asyncio.create_task(client.receive_message())
    subscribed = client._mqtt_pipeline.feature_enabled
    await until(lambda: subscribed["twin_patches"] and subscribed["methods"] and subscribed["c2d"])
    registry.update_twin(device.device_id, desired(x=1))
    registry.send_c2d_message(device.device_id, "hi")
    assert (await asyncio.wait_for(patch, 60)) == {"x": 1, "$version": 2}
    assert (await asyncio.wait_for(message, 60)).data == b"hi"
    call = asyncio.create_task(
        asyncio.to_thread(
            registry.invoke_device_method,
            device.device_id,
            CloudToDeviceMethod(method_name="m", payload=[1]),
        )
    )
    got = await asyncio.wait_for(request, 60)
    assert (got.name, got.payload) == ("m", [1])
    await client.send_method_response(MethodResponse.create_from_method_request(got, 207, {"r": 1}))
    result = await call
    assert (result.status, result.payload) == (207, {"r": 1})


async def test_methods_by_handler(registry, aconnect, device):
    client = await aconnect(device)

    async def handler(request):
        await client.send_method_response(
            MethodResponse.create_from_method_request(request, 200, request.payload)
        )

    client.on_method_request_received = handler
    results = await asyncio.gather(
        *(
            asyncio.to_thread(
                registry.invoke_device_method,
                device.device_id,
                CloudToDeviceMethod(
                    method_name="echo", payload={"n": n}, connect_timeout_in_seconds=10
                ),
            )
            for n in range(8)
        )
    )
    assert [result.payload for result in results] == [{"n": n} for n in range(8)]


async def test_messages(registry, events, aconnect, device):
    client = await aconnect(device)
    got = []
    client.on_message_received = got.append
    registry.send_c2d_message(device.device_id, "down", {"p": "1"})
    await until(lambda: got)
    assert got[0].custom_properties == {"p": "1"}
    message = Message("up", content_type="text/plain")
    message.custom_properties["p"] = "2"
    await client.send_message(message)
    (event,) = await asyncio.to_thread(events.wait, device)
    assert (event.text, event.custom) == ("up", {"p": "2"})


async def test_many_operations_overlap(events, aconnect, device):
    client = await aconnect(device)
    await asyncio.gather(*(client.send_message(str(n)) for n in range(50)))
    await asyncio.gather(*(client.patch_twin_reported_properties({f"k{n}": n}) for n in range(50)))
    twins = await asyncio.gather(*(client.get_twin() for _ in range(50)))
    assert all(len(twin["reported"]) == 51 for twin in twins)
    found = await asyncio.to_thread(events.wait, device, 50)
    assert sorted(int(event.text) for event in found) == list(range(50))


async def test_a_module(registry, events, aconnect, module):
    client = await aconnect(module)
    await client.send_message("m")
    await client.send_message_to_output("o", "alarm")
    await asyncio.to_thread(events.wait, module, 2)
    patches = []
    client.on_twin_desired_properties_patch_received = patches.append
    await client.patch_twin_reported_properties({"a": 1})
    registry.update_module_twin(module.device_id, module.module_id, desired(b=1))
    await until(lambda: patches)
    assert (await client.get_twin())["reported"] == {"a": 1, "$version": 2}


async def test_overlapped_connects_and_disconnects(aconnect, device):
    client = await aconnect(device)
    for _ in range(3):
        await asyncio.gather(
            *(client.connect() if n % 2 else client.disconnect() for n in range(6)),
        )
    await client.connect()
    assert client.connected
    assert await client.get_twin()


async def test_a_disconnect_inside_the_connected_handler(events, aconnect, device):
    client = await aconnect(device, open=False)
    # Handlers run in a thread of the client's own: an event of asyncio would wake nobody here.
    once = threading.Event()

    async def handler():
        if client.connected and not once.is_set():
            once.set()
            await client.disconnect()

    client.on_connection_state_change = handler
    await client.connect()
    await until(once.is_set)
    await until(lambda: not client.connected)
    await client.connect()
    await client.send_message("still here")
    await asyncio.to_thread(events.wait, device)
