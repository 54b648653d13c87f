"""What a device can do while connected: azure-iot-device, the synchronous client."""

import json
import threading
import time

import pytest
from azure.iot.device import Message, MethodResponse
from azure.iot.device.exceptions import ClientError, OperationCancelled, ServiceError
from azure.iot.hub.models import CloudToDeviceMethod, Twin, TwinProperties

from hub import nested, unique


def desired(**values):
    return Twin(properties=TwinProperties(desired=values))


class Inbox(list):
    """A handler that keeps what it was given."""

    def __call__(self, item):
        self.append(item)


def refused_with(error, status):
    """The service's refusal is inside: the client wraps it as an unexpected failure."""
    assert isinstance(error.value.__cause__, ServiceError)
    assert str(status) in str(error.value.__cause__)


class TestTwin:
    def test_the_twin_of_a_fresh_device(self, connect, device):
        assert connect(device).get_twin() == {
            "desired": {"$version": 1},
            "reported": {"$version": 1},
        }

    def test_a_report_is_merged(self, registry, connect, device):
        client = connect(device)
        client.patch_twin_reported_properties({"a": {"b": 1, "c": [1]}, "d": "text"})
        client.patch_twin_reported_properties({"a": {"b": None, "e": 2.5}, "d": None})
        assert client.get_twin()["reported"] == {"a": {"c": [1], "e": 2.5}, "$version": 3}
        found = registry.get_twin(device.device_id).properties.reported
        assert found["a"] == {"c": [1], "e": 2.5}
        assert "d" not in found
        assert found["$metadata"]["a"]["e"]["$lastUpdated"]

    @pytest.mark.parametrize(
        "patch",
        [
            {"a.b": 1},
            {"$x": 1},
            {"a b": 1},
            {"n": 4503599627370497},
            {"s": "x" * 4097},
            nested(11),
        ],
        ids=lambda patch: str(patch)[:30],
    )
    def test_a_report_against_the_rules_is_refused(self, connect, device, patch):
        client = connect(device)
        with pytest.raises(ClientError) as error:
            client.patch_twin_reported_properties(patch)
        refused_with(error, 400)
        assert client.connected
        assert client.get_twin()["reported"] == {"$version": 1}

    def test_too_large_a_report_is_refused(self, connect, device):
        client = connect(device)
        client.patch_twin_reported_properties({f"key{n}": "x" * 4000 for n in range(8)})
        with pytest.raises(ClientError) as error:
            client.patch_twin_reported_properties({"one": "x" * 4000})
        refused_with(error, 413)
        assert client.connected

    def test_what_cannot_be_json_does_not_leave_the_client(self, connect, device):
        client = connect(device)
        with pytest.raises(ClientError) as error:
            client.patch_twin_reported_properties({"f": print})
        assert isinstance(error.value.__cause__, TypeError)

    def test_a_desired_patch_arrives(self, registry, connect, device, wait):
        client = connect(device)
        patches = Inbox()
        client.on_twin_desired_properties_patch_received = patches
        registry.update_twin(device.device_id, desired(color="red", gone={"x": 1}))
        registry.update_twin(device.device_id, desired(color="blue", gone=None))
        wait(lambda: len(patches) == 2)
        assert patches == [
            {"color": "red", "gone": {"x": 1}, "$version": 2},
            {"color": "blue", "gone": None, "$version": 3},
        ]
        assert client.get_twin()["desired"] == {"color": "blue", "$version": 3}

    def test_a_replacement_arrives_whole(self, registry, connect, device, wait):
        registry.update_twin(device.device_id, desired(old=1, kept=1))
        client = connect(device)
        patches = Inbox()
        client.on_twin_desired_properties_patch_received = patches
        registry.replace_twin(device.device_id, desired(kept=2))
        wait(lambda: patches)
        assert patches[0]["kept"] == 2 and patches[0]["$version"] == 3
        assert client.get_twin()["desired"] == {"kept": 2, "$version": 3}

    def test_tags_alone_tell_a_device_nothing(self, registry, connect, device, wait):
        client = connect(device)
        patches = Inbox()
        client.on_twin_desired_properties_patch_received = patches
        registry.update_twin(device.device_id, Twin(tags={"secret": 1}))
        registry.update_twin(device.device_id, desired(after=1))
        wait(lambda: patches)
        assert patches == [{"after": 1, "$version": 2}]
        assert "tags" not in client.get_twin()

    def test_changes_of_an_absence_are_found_on_return(self, registry, connect, device, wait):
        client = connect(device)
        patches = Inbox()
        client.on_twin_desired_properties_patch_received = patches
        # The client asks for the twin when it returns, but hears the answer only if it has asked once before.
        client.get_twin()
        registry.update_twin(device.device_id, desired(first=1))
        wait(lambda: patches)
        client.disconnect()
        registry.update_twin(device.device_id, desired(second=2))
        registry.update_twin(device.device_id, desired(third=3))
        client.connect()
        # The client compares versions on its own and hands over the whole section.
        wait(lambda: len(patches) > 1)
        assert patches[-1] == {"first": 1, "second": 2, "third": 3, "$version": 4}
        registry.update_twin(device.device_id, desired(fourth=4))
        wait(lambda: patches[-1] == {"fourth": 4, "$version": 5})

    def test_the_receive_call_gives_patches_too(self, registry, connect, device, wait):
        client = connect(device)
        got = Inbox()
        thread = threading.Thread(
            target=lambda: got(client.receive_twin_desired_properties_patch(timeout=60))
        )
        thread.start()
        wait(lambda: registry.update_twin(device.device_id, desired(a=time.time())) and got, every=1)
        thread.join()
        assert "a" in got[0]

    def test_many_reports_at_once(self, connect, device):
        client = connect(device)
        errors = Inbox()

        def report(number):
            try:
                client.patch_twin_reported_properties({f"k{number}": number})
            except Exception as error:
                errors(error)

        threads = [threading.Thread(target=report, args=(n,)) for n in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        reported = client.get_twin()["reported"]
        assert reported.pop("$version") == 31
        assert reported == {f"k{n}": n for n in range(30)}


class TestMethods:
    @pytest.fixture
    def answering(self, connect, device):
        client = connect(device)
        requests = Inbox()

        def handler(request):
            requests(request)
            if request.name == "silent":
                return
            status, payload = (request.payload or {}).get("answer", [200, None])
            client.send_method_response(
                MethodResponse.create_from_method_request(request, status, payload)
            )

        client.on_method_request_received = handler
        return requests

    def invoke(self, registry, device, name, payload=None, **options):
        return registry.invoke_device_method(
            device.device_id, CloudToDeviceMethod(method_name=name, payload=payload, **options)
        )

    @pytest.mark.parametrize("status", [0, 200, 299, 404, 500, -1])
    @pytest.mark.parametrize("answer", [None, {"ok": [1]}, "text", 7, True, [], {}])
    def test_status_and_payload_come_back(self, registry, device, answering, status, answer):
        result = self.invoke(registry, device, "go", {"answer": [status, answer]})
        assert result.status == status
        assert result.payload == answer

    @pytest.mark.parametrize("payload", [None, {"a": {"b": [1, None]}}, {"u": "ü 🚀"}])
    def test_a_payload_reaches_the_device(self, registry, device, answering, payload):
        self.invoke(registry, device, "go", payload)
        # azure-iot-hub sends an empty string for none.
        assert answering[0].payload == (payload if payload is not None else "")
        assert answering[0].name == "go"

    @pytest.mark.parametrize("name", ["a-b_c.d", "with space", "käse", "a/b", "a%2Fb", "c*d", "q?x=1&y"])
    def test_any_name_reaches_the_device(self, registry, device, answering, name):
        assert self.invoke(registry, device, name).status == 200
        assert answering[0].name == name

    def test_an_unknown_device(self, registry, status):
        with status(404, "404001"):
            registry.invoke_device_method(
                unique("nobody"), CloudToDeviceMethod(method_name="go", payload=1)
            )

    def test_a_device_that_is_away(self, registry, device, status):
        with status(404, "404103") as answer:
            self.invoke(registry, device, "go")
        detail = json.loads(answer.error["Message"])
        assert detail["errorCode"] == 404103
        assert detail["trackingId"] and detail["timestampUtc"]
        assert answer.error["ExceptionMessage"] == ""

    def test_a_device_that_listens_to_no_methods(self, registry, connect, device, status):
        connect(device)
        with status(404, "404103"):
            self.invoke(registry, device, "go")

    def test_a_device_that_does_not_answer(self, registry, device, answering, status):
        with status(504, "504101"):
            self.invoke(registry, device, "silent", response_timeout_in_seconds=5)
        assert self.invoke(registry, device, "go").status == 200

    def test_a_call_waits_for_the_device_to_come(self, registry, connect, device, wait):
        result = Inbox()
        thread = threading.Thread(
            target=lambda: result(
                self.invoke(
                    registry, device, "go", connect_timeout_in_seconds=30,
                    response_timeout_in_seconds=30,
                )
            )
        )
        thread.start()
        client = connect(device, open=False)
        client.on_method_request_received = lambda request: client.send_method_response(
            MethodResponse.create_from_method_request(request, 201, {"late": True})
        )
        client.connect()
        thread.join(timeout=40)
        assert (result[0].status, result[0].payload) == (201, {"late": True})

    @pytest.mark.parametrize(
        "options",
        [
            {"response_timeout_in_seconds": 4},
            {"response_timeout_in_seconds": 301},
            {"connect_timeout_in_seconds": 301},
            {"connect_timeout_in_seconds": -1},
        ],
        ids=str,
    )
    def test_times_outside_the_limits_are_refused(self, registry, device, answering, status, options):
        with status(400):
            self.invoke(registry, device, "go", **options)

    def test_a_payload_has_a_size(self, registry, device, answering, status):
        self.invoke(registry, device, "go", {"pad": "x" * 120_000})
        with status(413):
            self.invoke(registry, device, "go", {"pad": "x" * 140_000})

    def test_calls_do_not_mix(self, registry, device, answering):
        results = {}

        def call(number):
            results[number] = self.invoke(
                registry, device, "go", {"answer": [200, number]}
            ).payload

        threads = [threading.Thread(target=call, args=(n,)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {n: n for n in range(20)}

    def test_a_module_has_methods(self, registry, connect, module, status):
        call = CloudToDeviceMethod(method_name="zoom", payload={"by": 2})
        with status(404, "404103"):
            registry.invoke_device_module_method(module.device_id, module.module_id, call)
        client = connect(module)
        client.on_method_request_received = lambda request: client.send_method_response(
            MethodResponse.create_from_method_request(request, 200, request.payload)
        )
        result = None
        for _ in range(50):
            try:
                result = registry.invoke_device_module_method(
                    module.device_id, module.module_id, call
                )
                break
            except Exception:
                time.sleep(0.1)
        assert result and result.payload == {"by": 2}

    def test_the_receive_call_gives_requests_too(self, registry, connect, device):
        client = connect(device)

        def serve(name):
            request = client.receive_method_request(name, timeout=60)
            client.send_method_response(
                MethodResponse.create_from_method_request(request, 202, f"received {request.name}")
            )

        for wanted in (None, "only-this"):
            # Subscribes, and makes the inbox: a request that comes before there is one for its name goes to the other.
            assert client.receive_method_request(wanted, block=False) is None
            thread = threading.Thread(target=serve, args=(wanted,))
            thread.start()
            result = self.invoke(registry, device, "only-this", connect_timeout_in_seconds=20)
            thread.join()
            assert (result.status, result.payload) == (202, "received only-this")


class TestTelemetry:
    def test_a_message_with_everything(self, events, connect, device):
        client = connect(device)
        message = Message(json.dumps({"t": 21.5}))
        message.message_id = unique("message")
        message.correlation_id = "corr & elation=1"
        message.user_id = "someone"
        message.content_type = "application/json"
        message.content_encoding = "utf-8"
        message.custom_properties = {"plain": "yes", "odd &=%/ key": "odd &=%/ ü 🚀", "empty": ""}
        client.send_message(message)
        (event,) = events.wait(device)
        assert event.body_as_json() == {"t": 21.5}
        assert event.custom == {"plain": "yes", "odd &=%/ key": "odd &=%/ ü 🚀", "empty": ""}
        assert event.system["message-id"] == message.message_id
        assert event.system["correlation-id"] == "corr & elation=1"
        assert event.system["user-id"] == "someone"
        assert event.system["content-type"] == "application/json"
        assert event.system["content-encoding"] == "utf-8"
        assert event.system["iothub-connection-auth-generation-id"] == device.identity.generation_id
        assert json.loads(event.system["iothub-connection-auth-method"])["scope"] == "device"
        assert event.system["iothub-enqueuedtime"]
        assert event.enqueued_time is not None and event.sequence_number >= 0

    @pytest.mark.parametrize("body", ["text", "", "ü 🚀", '{"json": true}'])
    def test_text_is_a_message(self, events, connect, device, body):
        connect(device).send_message(body)
        (event,) = events.wait(device)
        assert event.text == body

    def test_bytes_arrive_as_they_were(self, events, connect, device):
        body = bytes(range(256))
        connect(device).send_message(Message(body))
        (event,) = events.wait(device)
        assert event.raw == body

    def test_many_messages_keep_their_order(self, events, connect, device):
        client = connect(device)
        for number in range(100):
            client.send_message(str(number))
        found = events.wait(device, 100)
        assert [event.text for event in found] == [str(number) for number in range(100)]
        assert len({event.partition for event in found}) == 1

    def test_a_large_message_arrives_and_a_larger_one_does_not_leave(self, events, connect, device):
        client = connect(device)
        client.send_message("x" * 255_000)
        (event,) = events.wait(device)
        assert len(event.text) == 255_000
        with pytest.raises(ValueError):
            client.send_message("x" * 300_000)

    def test_a_module_sends(self, events, connect, module):
        client = connect(module)
        client.send_message("from the module")
        (event,) = events.wait(module)
        assert event.text == "from the module"
        assert event.system["iothub-connection-module-id"] == module.module_id

    def test_a_module_sends_to_an_output(self, events, connect, module):
        client = connect(module)
        client.send_message_to_output(Message("out"), "alarm")
        (event,) = events.wait(module)
        assert event.text == "out"

    def test_sending_connects(self, events, connect, device):
        client = connect(device, open=False)
        client.send_message("hello")
        assert client.connected
        events.wait(device)

    def test_without_auto_connect_it_does_not(self, connect, device):
        client = connect(device, open=False, auto_connect=False)
        with pytest.raises(ClientError):
            client.send_message("hello")


class TestHubEvents:
    def test_twin_changes_are_events(self, registry, events, connect, device):
        client = connect(device)
        client.patch_twin_reported_properties({"a": 1})
        client.patch_twin_reported_properties({"a": None})
        registry.update_twin(device.device_id, Twin(tags={"t": 1}))
        found = events.wait(device, 3, source="twinChangeEvents")
        first, second, third = [event.body_as_json() for event in found[:3]]
        assert first["properties"]["reported"]["a"] == 1
        assert second["properties"]["reported"]["a"] is None
        assert third["tags"] == {"t": 1}
        assert found[0].custom["opType"] == "updateTwin"

    def test_life_cycle_is_an_event(self, registry, events, make_device):
        device = make_device()
        registry.delete_device(device.device_id)
        found = events.wait(device, 2, source="deviceLifecycleEvents")
        assert [event.custom["opType"] for event in found[:2]] == [
            "createDeviceIdentity",
            "deleteDeviceIdentity",
        ]

    def test_connecting_is_an_event(self, events, connect, device):
        client = connect(device)
        client.disconnect()
        found = events.wait(device, 2, source="deviceConnectionStateEvents")
        assert [event.custom["opType"] for event in found[:2]] == [
            "deviceConnected",
            "deviceDisconnected",
        ]


class TestEndings:
    def test_it_connects_again_and_again(self, connect, device):
        client = connect(device)
        for _ in range(10):
            client.disconnect()
            assert not client.connected
            client.connect()
            assert client.connected
        assert client.get_twin()

    def test_a_second_connection_ends_the_first(self, connect, device, wait):
        first = connect(device, connection_retry=False)
        second = connect(device, connection_retry=False)
        wait(lambda: not first.connected)
        assert second.connected
        assert second.get_twin()

    def test_disabling_ends_the_connection(self, registry, connect, device, wait):
        client = connect(device, connection_retry=False)
        registry.update_device_with_sas(
            device.device_id, None, device.key, device.second_key, "disabled"
        )
        wait(lambda: not client.connected)

    def test_deleting_ends_the_connection(self, registry, connect, make_device, module, wait):
        device = make_device()
        client = connect(device, connection_retry=False)
        registry.delete_device(device.device_id)
        wait(lambda: not client.connected)
        part = connect(module, connection_retry=False)
        registry.delete_module(module.device_id, module.module_id)
        wait(lambda: not part.connected)

    def test_an_operation_ends_with_its_connection(self, registry, connect, device, relay, wait):
        text = f"{device.connection_string};GatewayHostName={relay.ADDRESS}"
        client = connect(text, connection_retry=False, keep_alive=2)
        relay.drop()
        with pytest.raises((OperationCancelled, ClientError)):
            client.send_message("never")
        wait(lambda: not client.connected)
        relay.restore()
        client.connect()
        assert client.get_twin()
