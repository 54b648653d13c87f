"""The Event-Hub-compatible endpoint: azure-eventhub, and what Microsoft's tools do with its AMQP parts."""

import datetime
import threading
import time
from collections import namedtuple

import pytest
from azure.eventhub import EventData, EventHubConsumerClient, EventHubProducerClient
from azure.eventhub._pyamqp import ReceiveClient
from azure.eventhub._pyamqp.authentication import _CBSAuth
from azure.eventhub._pyamqp.error import AMQPLinkRedirect
from azure.eventhub.exceptions import AuthenticationError, ConnectError, ConnectionLostError
from azure.iot.device import Message

from hub import new_key, parts, sas, unique

Token = namedtuple("Token", ["token", "expires_on"])


class Reader:
    """One reader of one partition, on a thread of its own. In batches: one by one, the SDK gives some five a second."""

    def __init__(self, hub, partition, group="$Default", **options):
        self.seen = []
        self.errors = []
        self.closed = []
        self.changed = threading.Condition()
        self.ready = threading.Event()
        self.client = EventHubConsumerClient.from_connection_string(
            hub.events, consumer_group=group, connection_verify=hub.ca_path, retry_total=0
        )
        self.thread = threading.Thread(
            target=lambda: self.client.receive_batch(
                on_event_batch=self._batch,
                on_error=lambda _, error: self._note(self.errors, error),
                on_partition_initialize=lambda _: self.ready.set(),
                on_partition_close=lambda _, reason: self._note(self.closed, reason),
                partition_id=partition,
                **options,
            ),
            daemon=True,
        )
        self.thread.start()

    def _note(self, where, what):
        with self.changed:
            where.append(what)
            self.changed.notify_all()

    def _batch(self, context, batch):
        for event in batch:
            event.newest = context.last_enqueued_event_properties
            self._note(self.seen, event)

    def wait(self, check, timeout=60):
        with self.changed:
            assert self.changed.wait_for(lambda: check(self), timeout), (self.seen, self.errors)

    def numbers(self):
        return [event.sequence_number for event in self.seen]

    def of(self, device):
        """The telemetry of one device: what the hub tells of others may come in between at any time."""
        own = device.device_id.encode()
        return [
            event
            for event in list(self.seen)
            if event.system_properties.get(b"iothub-connection-device-id") == own
            and event.system_properties.get(b"iothub-message-source") == b"Telemetry"
        ]

    def close(self):
        self.client.close()
        self.thread.join(20)


@pytest.fixture
def read(hub):
    readers = []

    def make(partition, **options):
        readers.append(Reader(hub, partition, **options))
        return readers[-1]

    yield make
    for reader in readers:
        reader.close()


@pytest.fixture
def client(hub):
    client = EventHubConsumerClient.from_connection_string(
        hub.events, consumer_group="$Default", connection_verify=hub.ca_path, retry_total=0
    )
    yield client
    client.close()


@pytest.fixture
def sender(device, connect):
    return connect(device)


@pytest.fixture
def sent(events, device, sender):
    """Six messages of a device, 30 ms apart, as they stand in the event log."""
    for number in range(6):
        sender.send_message(f"number {number}")
        time.sleep(0.03)
    found = events.wait(device, 6)
    assert [event.text for event in found] == [f"number {number}" for number in range(6)]
    return found


def test_the_log_describes_itself(client, sent):
    about = client.get_eventhub_properties()
    assert about["eventhub_name"]
    assert about["created_at"] <= datetime.datetime.now(datetime.timezone.utc)
    assert about["partition_ids"] == client.get_partition_ids()
    last = sent[-1]
    partition = client.get_partition_properties(last.partition)
    assert partition["id"] == last.partition
    assert not partition["is_empty"]
    assert partition["last_enqueued_sequence_number"] >= last.sequence_number
    assert int(partition["last_enqueued_offset"]) >= int(last.offset)
    assert partition["last_enqueued_time_utc"] >= last.enqueued_time
    assert partition["beginning_sequence_number"] <= sent[0].sequence_number


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("by", ["sequence_number", "offset", "enqueued_time"])
def test_reading_begins_at_a_position(read, device, sent, by, inclusive):
    start = sent[2]
    reader = read(
        start.partition,
        starting_position=getattr(start, by),
        starting_position_inclusive=inclusive,
    )
    expected = [event.sequence_number for event in sent if event is not start][2:]
    if inclusive:
        expected.insert(0, start.sequence_number)
    reader.wait(lambda reader: len(reader.of(device)) >= len(expected))
    assert [event.sequence_number for event in reader.of(device)] == expected


def test_reading_begins_with_the_oldest_or_the_next(sender, device, read, sent, wait):
    partition = sent[0].partition
    oldest = read(partition, starting_position="-1")
    latest = read(partition, starting_position="@latest")
    oldest.wait(lambda reader: sent[-1].sequence_number in reader.numbers())
    assert set(oldest.numbers()) >= {event.sequence_number for event in sent}
    assert latest.ready.wait(60)
    # Ready is said before the link is open: it is sent until one is heard.
    wait(lambda: sender.send_message("late") or latest.of(device), every=0.5)
    assert latest.of(device)[0].body_as_str() == "late"
    assert min(latest.numbers()) > sent[-1].sequence_number


def test_an_event_carries_what_the_hub_knows_of_it(events, device, sender):
    message = Message('{"t": 1}', message_id="m-1", content_encoding="utf-8", content_type="application/json")
    message.correlation_id = "c-1"
    message.user_id = "u-1"
    message.custom_properties["odd &=%/ key"] = "odd &=%/ ü"
    sender.send_message(message)
    (event,) = events.wait(device)
    assert event.text == '{"t": 1}'
    assert event.message_id == "m-1"
    assert event.correlation_id == "c-1"
    assert event.content_type == "application/json"
    assert event.custom == {"odd &=%/ key": "odd &=%/ ü"}
    assert event.system["user-id"] == "u-1"
    assert event.system["content-encoding"] == "utf-8"
    assert event.system["iothub-connection-device-id"] == device.device_id
    assert event.system["iothub-connection-auth-generation-id"] == device.identity.generation_id
    assert '"type":"sas"' in event.system["iothub-connection-auth-method"]
    assert event.system["iothub-message-source"] == "Telemetry"
    age = datetime.datetime.now(datetime.timezone.utc) - event.enqueued_time
    assert abs(age) < datetime.timedelta(minutes=1)


def test_large_events_and_many(events, device, sender, read):
    sender.send_message("x" * 200_000)
    (first,) = events.wait(device)
    assert len(first.raw) == 200_000
    for number in range(1000):
        sender.send_message(str(number))
    reader = read(
        first.partition,
        starting_position=first.sequence_number,
        starting_position_inclusive=True,
    )
    own = lambda: [event.body_as_str() for event in reader.of(device)]
    reader.wait(lambda _: len(own()) == 1001, timeout=120)
    assert own() == ["x" * 200_000] + [str(number) for number in range(1000)]


def test_the_newest_event_is_told_along(read, sent):
    reader = read(sent[0].partition, starting_position="-1", track_last_enqueued_event_properties=True)
    reader.wait(lambda reader: reader.seen)
    newest = reader.seen[0].newest
    assert newest["sequence_number"] >= sent[-1].sequence_number
    assert newest["enqueued_time"] >= sent[-1].enqueued_time


def test_a_reader_of_a_higher_level_takes_the_partition(read, sent):
    group = unique("group")
    partition = sent[0].partition
    low = read(partition, group=group, owner_level=1, starting_position="-1")
    low.wait(lambda reader: reader.seen)
    high = read(partition, group=group, owner_level=2, starting_position="-1")
    high.wait(lambda reader: reader.seen)
    low.wait(lambda reader: reader.errors)
    assert isinstance(low.errors[0], ConnectionLostError)
    assert "amqp:link:stolen" in str(low.errors[0])
    plain = read(partition, group=group, starting_position="-1")
    plain.wait(lambda reader: reader.errors)
    other = read(partition, group=unique("group"), starting_position="-1")
    other.wait(lambda reader: reader.seen)


def test_a_partition_that_there_is_not(client):
    with pytest.raises(ConnectError) as refused:
        client.get_partition_properties("77")
    assert "404" in str(refused.value)


@pytest.mark.parametrize("wrong", ["key", "entity", "policy"])
def test_who_may_not_read_is_told_so(hub, wrong):
    text = hub.events
    if wrong == "key":
        text = text.replace(parts(text)["SharedAccessKey"], new_key())
    elif wrong == "entity":
        text = text.replace(f"EntityPath={parts(text)['EntityPath']}", "EntityPath=elsewhere")
    else:
        text = text.replace(f"KeyName={parts(text)['SharedAccessKeyName']}", "KeyName=nobody")
    client = EventHubConsumerClient.from_connection_string(
        text, consumer_group="$Default", connection_verify=hub.ca_path, retry_total=0
    )
    with client, pytest.raises(AuthenticationError):
        client.get_partition_ids()


def test_only_devices_send_to_the_log(hub):
    producer = EventHubProducerClient.from_connection_string(
        hub.events, connection_verify=hub.ca_path, retry_total=0
    )
    with producer, pytest.raises((AuthenticationError, ConnectionLostError)) as refused:
        producer.send_event(EventData("x"))
    assert "Send" in str(refused.value)


@pytest.mark.parametrize("path", ["$management", "ConsumerGroups/$Default/Partitions/0"])
def test_the_endpoint_is_found_by_a_redirect(hub, path):
    """The way of `az iot hub monitor-events`: from the hub's connection string alone."""
    token = sas(hub.host, hub.key, policy=hub.policy)
    source = f"amqps://{hub.host}/messages/events/{path}"
    auth = _CBSAuth(
        uri=source,
        audience=hub.host,
        token_type=b"servicebus.windows.net:sastoken",
        get_token=lambda: Token(token, int(time.time()) + 3600),
        expires_in=3600,
    )
    client = ReceiveClient(
        hub.host, source, auth=auth, connection_verify=hub.ca_path, timeout=30, prefetch=1
    )
    with pytest.raises(AMQPLinkRedirect) as redirect:
        client.open()
        client.receive_message_batch(max_batch_size=1, timeout=60)
    client.close()
    assert redirect.value.hostname == parts(hub.service)["HostName"]
    name = parts(hub.events)["EntityPath"]
    port = hub.ready.get("amqps_port", 5671)
    assert redirect.value.address == f"amqps://{redirect.value.hostname}:{port}/{name}/{path}"
