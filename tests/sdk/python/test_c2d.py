"""Cloud-to-device messages: sent by azure-iot-hub over AMQP, received by azure-iot-device."""

import threading
import time

import pytest
from azure.iot.hub import IoTHubRegistryManager
from uamqp import TransportType

from hub import unique


class Inbox(list):
    def __call__(self, item):
        self.append(item)


def waiting(registry, device):
    return registry.get_device(device.device_id).cloud_to_device_message_count


def purge(registry, device_id):
    return registry.protocol.cloud_to_device_messages.purge_cloud_to_device_message_queue(device_id)


def test_a_message_with_everything(registry, connect, device, wait):
    client = connect(device)
    got = Inbox()
    client.on_message_received = got
    expiry = int(time.time() * 1000) + 600_000
    registry.send_c2d_message(
        device.device_id,
        "hello ü",
        {
            "messageId": "m-1",
            "correlationId": "c-1",
            "contentType": "application/json",
            "contentEncoding": "utf-8",
            "expiryTimeUtc": expiry,
            "custom": "yes",
            "odd &=%/ key": "odd &=%/ ü",
        },
    )
    wait(lambda: got)
    message = got[0]
    assert message.data.decode() == "hello ü"
    assert message.message_id == "m-1"
    assert message.correlation_id == "c-1"
    assert message.content_type == "application/json"
    assert message.content_encoding == "utf-8"
    assert message.expiry_time_utc
    assert message.custom_properties["custom"] == "yes"
    assert message.custom_properties["odd &=%/ key"] == "odd &=%/ ü"
    assert not any(key.startswith("$") for key in message.custom_properties)
    wait(lambda: waiting(registry, device) == 0)


def test_messages_wait_for_the_device_in_order(registry, connect, device, wait):
    for number in range(5):
        registry.send_c2d_message(device.device_id, str(number))
    assert waiting(registry, device) == 5
    client = connect(device)
    got = Inbox()
    client.on_message_received = got
    wait(lambda: len(got) == 5)
    assert [message.data for message in got] == [b"0", b"1", b"2", b"3", b"4"]
    wait(lambda: waiting(registry, device) == 0)


def test_the_subscription_outlives_the_connection(registry, connect, device, wait):
    client = connect(device)
    got = Inbox()
    client.on_message_received = got
    registry.send_c2d_message(device.device_id, "one")
    # Acknowledged too: else it would come again.
    wait(lambda: len(got) == 1 and waiting(registry, device) == 0)
    client.disconnect()
    registry.send_c2d_message(device.device_id, "two")
    client.connect()
    wait(lambda: len(got) == 2)
    assert got[1].data == b"two"


def test_the_receive_call_gives_messages_too(registry, connect, device):
    client = connect(device)
    got = Inbox()
    thread = threading.Thread(target=lambda: got(client.receive_message(timeout=60)))
    thread.start()
    registry.send_c2d_message(device.device_id, "called for")
    thread.join()
    assert got[0].data == b"called for"


@pytest.mark.parametrize("body", ["", "x" * 60_000], ids=["empty", "large"])
def test_bodies(registry, connect, device, wait, body):
    client = connect(device)
    got = Inbox()
    client.on_message_received = got
    registry.send_c2d_message(device.device_id, body, {"messageId": "body"})
    wait(lambda: got)
    assert got[0].data.decode() == body


def test_too_large_a_message_is_refused(registry, device):
    with pytest.raises(Exception):
        registry.send_c2d_message(device.device_id, "x" * 70_000)
    assert waiting(registry, device) == 0


def test_a_queue_holds_fifty(hub, device, registry):
    manager = IoTHubRegistryManager.from_connection_string(hub.service)
    for number in range(50):
        manager.send_c2d_message(device.device_id, str(number))
    with pytest.raises(Exception, match="failure"):
        manager.send_c2d_message(device.device_id, "one too many")
    assert waiting(registry, device) == 50


def test_an_unknown_device_is_refused(hub):
    manager = IoTHubRegistryManager.from_connection_string(hub.service)
    with pytest.raises(Exception, match="failure"):
        manager.send_c2d_message(unique("nobody"), "hello")


def test_purging_empties_the_queue(registry, device, status):
    for _ in range(3):
        registry.send_c2d_message(device.device_id, "x")
    result = purge(registry, device.device_id)
    assert (result.total_messages_purged, result.device_id) == (3, device.device_id)
    assert waiting(registry, device) == 0
    with status(404, "DeviceNotFound"):
        purge(registry, unique("nobody"))


def test_an_expired_message_is_not_delivered(registry, connect, device, wait):
    registry.send_c2d_message(
        device.device_id, "too late", {"expiryTimeUtc": int(time.time() * 1000) + 5000}
    )
    assert waiting(registry, device) == 1
    wait(lambda: waiting(registry, device) == 0)
    registry.send_c2d_message(device.device_id, "in time")
    client = connect(device)
    got = Inbox()
    client.on_message_received = got
    wait(lambda: got)
    assert [message.data for message in got] == [b"in time"]


def test_over_websocket(hub, connect, device, wait):
    manager = IoTHubRegistryManager.from_connection_string(
        hub.service, TransportType.AmqpOverWebsocket
    )
    client = connect(device, websockets=True)
    got = Inbox()
    client.on_message_received = got
    manager.send_c2d_message(device.device_id, "all over 443")
    wait(lambda: got)
    assert got[0].data == b"all over 443"


class TestFeedback:
    """Over REST, through IoTHubHttpRuntimeManager."""

    @pytest.fixture(autouse=True)
    def empty(self, runtime):
        """Feedback is one queue for the hub: what other tests left there goes first."""
        while (answer := self.receive(runtime)).status_code == 200:
            self.complete(runtime, answer)

    def receive(self, runtime):
        messages = runtime.protocol.cloud_to_device_messages
        # The SDK's own call drops the body, so the response is taken as it is.
        return messages.receive_feedback_notification(raw=True).response

    def complete(self, runtime, answer):
        runtime.complete_feedback_notification(answer.headers["ETag"].strip('"'))

    def next(self, runtime, wait):
        answer = wait(
            lambda: (a := self.receive(runtime)).status_code == 200 and a, every=0.3
        )
        return answer

    def test_success_is_told(self, registry, runtime, connect, device, wait):
        registry.send_c2d_message(
            device.device_id, "tell me", {"messageId": "fb-1", "iothub-ack": "full"}
        )
        got = Inbox()
        connect(device).on_message_received = got
        wait(lambda: got)
        answer = self.next(runtime, wait)
        (record,) = answer.json()
        assert record["originalMessageId"] == "fb-1"
        assert record["statusCode"].lower() == "success"
        assert record["deviceId"] == device.device_id
        assert record["deviceGenerationId"] == device.identity.generation_id
        assert record["enqueuedTimeUtc"]
        self.complete(runtime, answer)
        assert self.receive(runtime).status_code == 204

    def test_abandoned_feedback_comes_again(self, registry, runtime, connect, device, wait):
        registry.send_c2d_message(
            device.device_id, "x", {"messageId": "fb-2", "iothub-ack": "positive"}
        )
        got = Inbox()
        connect(device).on_message_received = got
        wait(lambda: got)
        first = self.next(runtime, wait)
        runtime.abandon_feedback_notification(first.headers["ETag"].strip('"'))
        second = self.next(runtime, wait)
        assert second.json() == first.json()
        self.complete(runtime, second)

    def test_expiry_is_told(self, registry, runtime, device, wait):
        registry.send_c2d_message(
            device.device_id,
            "x",
            {
                "messageId": "fb-3",
                "iothub-ack": "negative",
                "expiryTimeUtc": int(time.time() * 1000) + 1000,
            },
        )
        answer = self.next(runtime, wait)
        (record,) = answer.json()
        assert (record["originalMessageId"], record["statusCode"].lower()) == ("fb-3", "expired")
        self.complete(runtime, answer)

    def test_nothing_is_told_when_nobody_asks(self, registry, runtime, connect, device, wait):
        registry.send_c2d_message(device.device_id, "x")
        registry.send_c2d_message(device.device_id, "x", {"iothub-ack": "negative"})
        got = Inbox()
        connect(device).on_message_received = got
        wait(lambda: len(got) == 2 and waiting(registry, device) == 0)
        assert self.receive(runtime).status_code == 204

    def test_a_lock_that_is_none(self, runtime, status):
        with status(412):
            runtime.complete_feedback_notification("no-such-lock")
