"""A plain MQTT client (paho-mqtt) as a device: what the protocol's page promises to those without an SDK."""

import json
import queue
import ssl

import paho.mqtt.client as mqtt
import pytest

from hub import sas


class Plain:
    """One connection, everything that came over it, and how it ended."""

    def __init__(self, hub, device, clean=True, host=None, version="2021-04-12", protocol=mqtt.MQTTv311):
        self.messages, self.grants, self.acknowledged = queue.Queue(), queue.Queue(), queue.Queue()
        self.codes, self.ends = queue.Queue(), queue.Queue()
        options = {} if protocol == mqtt.MQTTv5 else {"clean_session": clean}
        self.client = mqtt.Client(device.name, protocol=protocol, **options)
        host = host or hub.host
        self.client.username_pw_set(
            f"{host}/{device.name}/?api-version={version}",
            sas(f"{host}/devices/{device.device_id}", device.key),
        )
        self.client.tls_set(hub.ca_path, cert_reqs=ssl.CERT_REQUIRED)
        self.client.on_connect = lambda *given: self.codes.put((given[3], given[2]))
        self.client.on_disconnect = lambda *given: self.ends.put(given[2])
        self.client.on_message = lambda _, __, message: self.messages.put(message)
        self.client.on_subscribe = lambda *given: self.grants.put(list(given[3]))
        self.client.on_publish = lambda _, __, mid: self.acknowledged.put(mid)
        self.client.connect("localhost", 8883, keepalive=60)
        self.client.loop_start()
        self.code, self.flags = self.codes.get(timeout=60)

    def subscribe(self, topic, qos=1):
        self.client.subscribe(topic, qos)
        return self.grants.get(timeout=60)

    def ask(self, topic, body=b""):
        """Publish, and the next message that comes."""
        self.client.publish(topic, body, qos=1)
        message = self.messages.get(timeout=60)
        return message.topic, json.loads(message.payload) if message.payload else None

    def close(self):
        self.client.on_disconnect = None
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def plain(hub, device):
    made = []

    def make(**options):
        made.append(Plain(hub, options.pop("who", device), **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_twin_is_read_and_reported(plain):
    one = plain()
    assert one.code == 0
    assert one.subscribe("$iothub/twin/res/#") == [1]
    assert one.ask("$iothub/twin/GET/?$rid=7") == (
        "$iothub/twin/res/200/?$rid=7",
        {"desired": {"$version": 1}, "reported": {"$version": 1}},
    )
    assert one.ask("$iothub/twin/PATCH/properties/reported/?$rid=8", '{"a":1}') == (
        "$iothub/twin/res/204/?$rid=8&$version=2",
        None,
    )
    topic, body = one.ask("$iothub/twin/PATCH/properties/reported/?$rid=9", '{"a":')
    assert topic.startswith("$iothub/twin/res/400/?$rid=9")
    assert str(body["errorCode"]).startswith("400") and body["message"]
    topic, body = one.ask("$iothub/twin/PATCH/properties/reported/?$rid=10&$version=1", '{"a":2}')
    assert topic.startswith("$iothub/twin/res/412/?$rid=10")


def test_the_session_is_kept_or_not(plain):
    first = plain(clean=True)
    assert first.flags["session present"] == 0
    first.subscribe("$iothub/twin/res/#")
    first.close()
    second = plain(clean=False)
    assert second.flags["session present"] == 0
    second.subscribe("$iothub/twin/res/#")
    second.close()
    third = plain(clean=False)
    assert third.flags["session present"] == 1
    assert third.ask("$iothub/twin/GET/?$rid=1")[0] == "$iothub/twin/res/200/?$rid=1"


def test_subscribing_at_qos_2_is_granted_1(plain):
    assert plain().subscribe("$iothub/twin/res/#", 2) == [1]


@pytest.mark.parametrize("topic", ["devices/{id}/messages/events", "devices/{id}/messages/events/"])
def test_telemetry_with_and_without_the_last_slash(plain, device, events, topic):
    one = plain()
    one.client.publish(topic.format(id=device.device_id), "hi", qos=1)
    one.acknowledged.get(timeout=60)
    assert events.wait(device)[0].text == "hi"


def test_retained_telemetry_is_marked(plain, device, events):
    one = plain()
    one.client.publish(f"devices/{device.device_id}/messages/events/a=1", "hi", qos=1, retain=True)
    one.acknowledged.get(timeout=60)
    (event,) = events.wait(device)
    assert event.custom["mqtt-retain"] == "true"
    assert event.custom["a"] == "1"


@pytest.mark.parametrize(
    "topic", ["devices/other/messages/events/", "anything/at/all", "$iothub/twin/res/200/?$rid=1", "$SYS/broker"]
)
def test_a_topic_outside_the_list_ends_the_connection(plain, topic):
    one = plain()
    one.client.publish(topic, "x", qos=1)
    assert one.ends.get(timeout=60) != 0


def test_publishing_at_qos_2_ends_the_connection(plain, device):
    one = plain()
    one.client.publish(f"devices/{device.device_id}/messages/events/", "x", qos=2)
    assert one.ends.get(timeout=60) != 0


@pytest.mark.parametrize("topic", ["#", "devices/+/messages/devicebound/#", "devices/other/messages/devicebound/#"])
def test_nobody_listens_to_others(plain, topic, wait):
    one = plain()
    one.client.subscribe(topic, 1)
    wait(lambda: one.grants.qsize() or one.ends.qsize())
    if one.grants.qsize():
        assert one.grants.get() == [128]
    else:
        assert one.ends.get() != 0


@pytest.mark.parametrize("version", ["2016-11-14", "2018-06-30", "2020-09-30", "2021-04-12"])
def test_api_versions(plain, version):
    assert plain(version=version).code == 0


def test_mqtt_5_is_refused(hub, device):
    one = Plain(hub, device, protocol=mqtt.MQTTv5)
    assert one.code != 0
    one.close()
