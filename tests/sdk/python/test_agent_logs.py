"""The production agent uploads its log to a blob container, by the hub, whatever it shows to the hub."""

import base64
import datetime
import hashlib
import hmac
import json
import os
import subprocess

import pytest
import requests
from azure.iot.hub.models import CloudToDeviceMethod
from msrest.exceptions import HttpOperationError

from hub import Certificate, unique

pytestmark = pytest.mark.uploads

AGENT = os.environ.get("FLEETWAVE_AGENT")


@pytest.fixture(autouse=True)
def needed(hub):
    if not hub.ready.get("uploads"):
        pytest.skip("the hub has no blob container")
    if not AGENT:
        assert os.environ.get("FLEETWAVE_TEST_REAL") != "1", "FLEETWAVE_TEST_REAL=1, but there is no agent"
        pytest.skip("fleetwave-agent is not built: `cargo build -p fleetwave-agent`")


@pytest.fixture
def run_agent(hub, tmp_path):
    """Runs the agent with what its configuration says of the hub and of itself, and gives its log's file."""
    running = []

    def run(connection_string, identity=""):
        config, log = tmp_path / "config.toml", tmp_path / "agent.log"
        trusted = f"ca = {json.dumps(hub.ca_path)}"
        config.write_text(
            f"""
state = "{tmp_path}/state"
[hub]
connection_string = "{connection_string}"
{trusted}
[download]
{trusted}
{identity}
[trust]
threshold = 1
keys = {{ k1 = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=" }}
[firmware]
installer = "directory"
""",
            encoding="utf-8",
        )
        config.chmod(0o600)
        with open(log, "wb") as file:
            command = [AGENT, "run", "--config", str(config)]
            running.append(subprocess.Popen(command, stdout=file, stderr=file))
        return log

    yield run
    for agent in running:
        agent.terminate()
    for agent in running:
        agent.wait(timeout=30)


def uploaded(hub, registry, wait, device_id, log):
    """Asks the device for its log, and gives what lies in the container then."""
    call = CloudToDeviceMethod(
        method_name="collect-logs", payload={"upload": True}, response_timeout_in_seconds=90
    )

    def answer():
        try:
            return registry.invoke_device_method(device_id, call)
        except HttpOperationError as error:  # it is not connected yet
            assert error.response.status_code == 404, error
            return None

    said = wait(answer)
    assert said.status == 200 and "blob" in said.payload, (said.payload, log.read_text())
    assert said.payload["container"] == "uploads"
    assert said.payload["blob"].startswith(f"{device_id}/logs/")
    return said.payload


def stored(hub, payload):
    """What is stored under the name that the device gave, read with the account's key."""
    account, key, endpoint = (os.environ[f"FLEETWAVE_BLOB_{name}"] for name in ("ACCOUNT", "KEY", "ENDPOINT"))
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT")
    path = f"/{account}/{payload['container']}/{payload['blob']}"
    signed = "GET" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:2020-10-02\n/{account}{path}"
    signature = base64.b64encode(hmac.new(base64.b64decode(key), signed.encode(), hashlib.sha256).digest())
    answer = requests.get(
        endpoint + path,
        headers={
            "x-ms-date": date,
            "x-ms-version": "2020-10-02",
            "Authorization": f"SharedKey {account}:{signature.decode()}",
        },
        verify=hub.ca_path,
        timeout=20,
    )
    assert answer.status_code == 200, answer.text
    return answer.content


def lies_there(hub, registry, wait, device_id, log):
    payload = uploaded(hub, registry, wait, device_id, log)
    content = stored(hub, payload)
    assert len(content) == payload["bytes"]
    assert f'connected device="{device_id}"' in content.decode()
    assert "sig=" not in log.read_text(), "the link's signature is a secret"


def test_the_log_of_a_device_with_a_key(hub, registry, wait, device, run_agent):
    log = run_agent(device.connection_string)
    lies_there(hub, registry, wait, device.device_id, log)


def identity(certificate):
    return f'[identity]\ncertificate = "{certificate.certificate_file}"\nkey = "{certificate.key_file}"'


def test_the_log_of_a_device_with_a_certificate_of_its_own(
    hub, registry, forget, wait, tmp_path, run_agent
):
    device_id = unique("agent")
    certificate = Certificate(tmp_path, device_id)
    forget(device_id)
    registry.create_device_with_x509(device_id, certificate.sha1, None, "enabled")
    log = run_agent(f"HostName={hub.host};DeviceId={device_id};x509=true", identity(certificate))
    lies_there(hub, registry, wait, device_id, log)


@pytest.mark.device_ca
def test_the_log_of_a_device_that_an_authority_vouches_for(
    hub, registry, forget, wait, tmp_path, run_agent
):
    if not hub.device_ca:
        pytest.skip("the runner gave no device CA")
    device_id = unique("agent")
    root = Certificate.load(hub.device_ca, hub.device_ca_key)
    certificate = Certificate(tmp_path, device_id, issuer=root)
    forget(device_id)
    registry.create_device_with_certificate_authority(device_id, "enabled")
    log = run_agent(f"HostName={hub.host};DeviceId={device_id};x509=true", identity(certificate))
    lies_there(hub, registry, wait, device_id, log)
