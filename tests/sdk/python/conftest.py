import threading
import time

import pytest
from azure.eventhub import EventHubConsumerClient
from azure.iot.device import IoTHubDeviceClient, IoTHubModuleClient
from azure.iot.device import aio as device_aio
from azure.iot.hub import (
    DigitalTwinClient,
    IoTHubConfigurationManager,
    IoTHubHttpRuntimeManager,
    IoTHubJobManager,
    IoTHubRegistryManager,
)
from msrest.exceptions import HttpOperationError

import hub as support


def pytest_collection_modifyitems(items):
    """Tests that restart the hub come last."""
    items.sort(key=lambda item: item.get_closest_marker("restarts_hub") is not None)


@pytest.fixture(scope="session")
def hub():
    return support.Hub()


@pytest.fixture(scope="session")
def registry(hub):
    manager = IoTHubRegistryManager.from_connection_string(hub.service)
    yield manager
    manager.amqp_svc_client.disconnect_sync()


@pytest.fixture(scope="session")
def configurations(hub):
    return IoTHubConfigurationManager.from_connection_string(hub.service)


@pytest.fixture(scope="session")
def jobs(hub):
    return IoTHubJobManager.from_connection_string(hub.service)


@pytest.fixture(scope="session")
def runtime(hub):
    return IoTHubHttpRuntimeManager.from_connection_string(hub.service)


@pytest.fixture(scope="session")
def digital_twins(hub):
    return DigitalTwinClient.from_connection_string(hub.service)


class Made:
    """A device or module that a test made, with what is needed to connect as it."""

    def __init__(self, hub, identity):
        self.identity = identity
        self.device_id = identity.device_id
        self.module_id = getattr(identity, "module_id", None)
        keys = identity.authentication and identity.authentication.symmetric_key
        self.key = keys and keys.primary_key
        self.second_key = keys and keys.secondary_key
        self.name = f"{self.device_id}/{self.module_id}" if self.module_id else self.device_id
        if not self.key:
            self.connection_string = None
        elif self.module_id:
            self.connection_string = hub.module_string(self.device_id, self.module_id, self.key)
        else:
            self.connection_string = hub.device_string(self.device_id, self.key)


@pytest.fixture
def forget(registry):
    """Ids given to it are deleted afterwards, whether they still exist or not."""
    ids = []
    yield ids.append
    for device_id in ids:
        try:
            registry.delete_device(device_id)
        except HttpOperationError as error:
            if error.response.status_code != 404:
                raise


@pytest.fixture
def make_device(hub, registry, forget):
    def make(prefix="device", status="enabled", **options):
        device_id = support.unique(prefix)
        forget(device_id)
        return Made(
            hub, registry.create_device_with_sas(device_id, None, None, status, **options)
        )

    return make


@pytest.fixture
def device(make_device):
    return make_device()


@pytest.fixture
def module(hub, registry, device):
    return Made(
        hub, registry.create_module_with_sas(device.device_id, "sensor", None, None, None)
    )


@pytest.fixture
def connect(hub, forget):
    """Makes synchronous clients that are shut down afterwards, before their devices are forgotten."""
    clients = []

    def make(who, kind=None, open=True, **options):
        options.setdefault("server_verification_cert", hub.ca)
        text = who if isinstance(who, str) else who.connection_string
        kind = kind or (IoTHubModuleClient if "ModuleId=" in text else IoTHubDeviceClient)
        client = kind.create_from_connection_string(text, **options)
        clients.append(client)
        if open:
            client.connect()
        return client

    def keep(client):
        clients.append(client)
        return client

    make.keep = keep
    yield make
    for client in clients:
        client.shutdown()


@pytest.fixture
async def aconnect(hub, forget):
    """Makes asynchronous clients that are shut down afterwards, before their devices are forgotten."""
    clients = []

    async def make(who, open=True, **options):
        options.setdefault("server_verification_cert", hub.ca)
        text = who if isinstance(who, str) else who.connection_string
        kind = (
            device_aio.IoTHubModuleClient
            if "ModuleId=" in text
            else device_aio.IoTHubDeviceClient
        )
        client = kind.create_from_connection_string(text, **options)
        clients.append(client)
        if open:
            await client.connect()
        return client

    yield make
    for client in clients:
        await client.shutdown()


def _text(value):
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {_text(key): _text(item) for key, item in value.items()}
    return value


class Events:
    """Every event that the hub's Event-Hub-compatible endpoint gave since the session began.

    One client for each partition: a client that reads several waits at the quiet ones in turn.
    """

    def __init__(self, hub):
        self.seen = []
        self.changed = threading.Condition()
        self.errors = []
        self.ready = set()
        self.clients = [self._client(hub)]
        partitions = self.clients[0].get_partition_ids()
        self.clients += [self._client(hub) for _ in partitions[1:]]
        for client, partition in zip(self.clients, partitions):
            threading.Thread(target=self._run, args=(client, partition), daemon=True).start()
        with self.changed:
            assert self.changed.wait_for(
                lambda: len(self.ready) == len(partitions), timeout=60
            ), f"partitions {partitions} were not opened: {self.errors}"

    def _client(self, hub):
        return EventHubConsumerClient.from_connection_string(
            hub.events, consumer_group="$Default", connection_verify=hub.ca_path
        )

    def _run(self, client, partition):
        client.receive_batch(
            on_event_batch=self._events,
            on_error=lambda _, error: self.errors.append(error),
            on_partition_initialize=self._opened,
            partition_id=partition,
            starting_position="-1",
            max_wait_time=1,
        )

    def _opened(self, partition):
        with self.changed:
            self.ready.add(partition.partition_id)
            self.changed.notify_all()

    def _events(self, partition, events):
        with self.changed:
            for event in events:
                event.partition = partition.partition_id
                event.system = _text(dict(event.system_properties or {}))
                event.custom = _text(dict(event.properties or {}))
                event.raw = b"".join(event.body) if event.body else b""
                event.text = event.raw.decode(errors="replace")
                self.seen.append(event)
            self.changed.notify_all()

    def of(self, who, source="Telemetry"):
        """What came of one device or module, from one message source, in order."""
        device, _, module = who.name.partition("/")
        return [
            event
            for event in list(self.seen)
            if event.system.get("iothub-connection-device-id", event.custom.get("deviceId"))
            == device
            and (event.system.get("iothub-connection-module-id") or event.custom.get("moduleId"))
            == (module or None)
            and event.system.get("iothub-message-source") == source
        ]

    def wait(self, who, count=1, source="Telemetry", timeout=60, where=lambda event: True):
        def enough():
            found = [event for event in self.of(who, source) if where(event)]
            return found if len(found) >= count else None

        with self.changed:
            found = self.changed.wait_for(enough, timeout=timeout)
        assert found, (
            f"{count} {source} of {who.name} did not come, {len(self.of(who, source))} of them and "
            f"{len(self.seen)} in all did; errors: {self.errors}"
        )
        return found

    def close(self):
        for client in self.clients:
            client.close()


@pytest.fixture(scope="session")
def events(hub):
    events = Events(hub)
    yield events
    events.close()


@pytest.fixture
def relay():
    """A cable between a device and the hub, to pull. Connect with `gateway=relay.ADDRESS`."""
    cable = support.Relay(8883)
    yield cable
    cable.close()


@pytest.fixture
def status():
    """`with status(404, "DeviceNotFound"):` expects an HTTP answer, and its error code."""
    return Status


class Status:
    def __init__(self, code, name=None):
        self.code, self.name, self.error = code, name, None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        assert error is not None, f"was accepted, expected HTTP {self.code}"
        if not isinstance(error, HttpOperationError):
            return False
        answer = error.response
        assert answer.status_code == self.code, f"{answer.status_code}: {answer.text}"
        self.error = answer.json()
        assert set(self.error) >= {"Message", "ExceptionMessage"}, self.error
        if self.name:
            assert self.name in self.error["Message"], self.error
            if not self.name.isdigit():
                assert self.name in answer.headers["iothub-errorcode"], answer.headers
        return True


@pytest.fixture
def wait():
    return support.eventually


@pytest.fixture(scope="session", autouse=True)
def _time_of_the_session():
    begun = time.monotonic()
    yield
    print(f"\n{time.monotonic() - begun:.0f} s")
