"""How a device proves who it is: azure-iot-device, every factory, and every way to be turned away."""

import time

import pytest
from azure.iot.device import IoTHubDeviceClient, IoTHubModuleClient, X509
from azure.iot.device.exceptions import ClientError, ConnectionFailedError, CredentialError

from hub import Certificate, new_key, sas, unique


def lives(client):
    """It is connected, and the hub answers it."""
    assert client.connected
    assert "$version" in client.get_twin()["desired"]
    return True


def refused(client, error=CredentialError):
    with pytest.raises(error):
        client.connect()
    assert not client.connected


@pytest.mark.parametrize("websockets", [False, True], ids=["mqtt", "websocket"])
class TestTransports:
    def test_by_connection_string(self, connect, device, websockets):
        assert lives(connect(device, websockets=websockets))

    def test_by_symmetric_key(self, hub, connect, device, websockets):
        client = connect.keep(
            IoTHubDeviceClient.create_from_symmetric_key(
                device.key,
                hub.host,
                device.device_id,
                server_verification_cert=hub.ca,
                websockets=websockets,
            )
        )
        client.connect()
        assert lives(client)

    def test_by_token(self, hub, connect, device, websockets):
        token = sas(f"{hub.host}/devices/{device.device_id}", device.key)
        client = connect.keep(
            IoTHubDeviceClient.create_from_sastoken(
                token, server_verification_cert=hub.ca, websockets=websockets
            )
        )
        client.connect()
        assert lives(client)

    def test_by_thumbprint(self, hub, registry, forget, connect, tmp_path, websockets):
        certificate = Certificate(tmp_path, unique("self"))
        device_id = unique("thumb")
        forget(device_id)
        registry.create_device_with_x509(device_id, certificate.sha1, None, "enabled")
        client = by_certificate(hub, connect, device_id, certificate, websockets=websockets)
        client.connect()
        assert lives(client)

    def test_a_module(self, connect, module, websockets):
        assert lives(connect(module, websockets=websockets))


def by_certificate(hub, connect, device_id, certificate, module_id=None, **options):
    x509 = X509(certificate.certificate_file, certificate.key_file)
    options["server_verification_cert"] = hub.ca
    if module_id:
        return connect.keep(
            IoTHubModuleClient.create_from_x509_certificate(
                x509, hub.host, device_id, module_id, **options
            )
        )
    return connect.keep(
        IoTHubDeviceClient.create_from_x509_certificate(x509, hub.host, device_id, **options)
    )


def test_by_the_second_key(hub, connect, device):
    assert lives(connect(hub.device_string(device.device_id, device.second_key)))


def test_by_a_policy_of_the_hub(hub, connect, device):
    token = sas(hub.host, hub.key, policy=hub.policy)
    client = connect.keep(
        IoTHubDeviceClient.create_from_sastoken(
            sas(f"{hub.host}/devices/{device.device_id}", hub.key, policy=hub.policy),
            server_verification_cert=hub.ca,
        )
    )
    client.connect()
    assert lives(client)
    assert token


def test_through_a_gateway_name(hub, connect, device):
    text = hub.device_string(device.device_id, device.key, host=hub.cloud_name, gateway=hub.host)
    assert lives(connect(text))


def test_the_second_thumbprint_and_the_long_one(hub, registry, forget, connect, tmp_path):
    first, second = Certificate(tmp_path, "first"), Certificate(tmp_path, "second")
    device_id = unique("thumbs")
    forget(device_id)
    registry.create_device_with_x509(device_id, first.sha256, second.sha256, "enabled")
    for certificate in (first, second):
        client = by_certificate(hub, connect, device_id, certificate)
        client.connect()
        assert lives(client)
        client.disconnect()


def test_a_module_by_thumbprint(hub, registry, connect, device, tmp_path):
    certificate = Certificate(tmp_path, "module")
    registry.create_module_with_x509(device.device_id, "by-print", None, certificate.sha1, None)
    client = by_certificate(hub, connect, device.device_id, certificate, module_id="by-print")
    client.connect()
    assert lives(client)


@pytest.mark.device_ca
@pytest.mark.parametrize("depth", [0, 1], ids=["signed by the root", "with an intermediate"])
def test_by_a_certificate_of_a_known_authority(hub, registry, forget, connect, tmp_path, depth):
    if not hub.device_ca:
        pytest.skip("the runner gave no device CA")
    issuer = Certificate.load(hub.device_ca, hub.device_ca_key)
    if depth:
        issuer = Certificate(tmp_path, "intermediate", issuer, authority=True)
    device_id = unique("signed")
    forget(device_id)
    registry.create_device_with_certificate_authority(device_id, "enabled")
    client = by_certificate(hub, connect, device_id, Certificate(tmp_path, device_id, issuer))
    client.connect()
    assert lives(client)


@pytest.mark.device_ca
def test_certificates_that_prove_nothing_are_refused(hub, registry, forget, connect, tmp_path):
    if not hub.device_ca:
        pytest.skip("the runner gave no device CA")
    root = Certificate.load(hub.device_ca, hub.device_ca_key)
    device_id = unique("signed")
    forget(device_id)
    registry.create_device_with_certificate_authority(device_id, "enabled")
    stranger = Certificate(tmp_path, "stranger-root", authority=True)
    for certificate in (
        Certificate(tmp_path, unique("another-name"), root),
        Certificate(tmp_path, device_id, stranger),
        Certificate(tmp_path, device_id),
        Certificate(tmp_path, device_id, root, days=-1),
    ):
        refused(by_certificate(hub, connect, device_id, certificate))


def test_another_certificate_is_refused(hub, registry, forget, connect, tmp_path):
    device_id = unique("thumb")
    forget(device_id)
    registry.create_device_with_x509(
        device_id, Certificate(tmp_path, "right").sha1, None, "enabled"
    )
    refused(by_certificate(hub, connect, device_id, Certificate(tmp_path, "wrong")))
    refused(connect(hub.device_string(device_id, new_key()), open=False))


def test_a_wrong_key_is_refused(hub, connect, device):
    refused(connect(hub.device_string(device.device_id, new_key()), open=False))


def test_an_unknown_device_is_refused(hub, connect, device):
    refused(connect(hub.device_string(unique("nobody"), device.key), open=False))


def test_another_devices_key_is_refused(hub, connect, make_device):
    one, other = make_device(), make_device()
    refused(connect(hub.device_string(one.device_id, other.key), open=False))


def test_a_token_for_another_device_is_refused(hub, connect, device):
    client = IoTHubDeviceClient.create_from_sastoken(
        sas(f"{hub.host}/devices/{device.device_id}x", device.key), server_verification_cert=hub.ca
    )
    refused(connect.keep(client))


def test_a_token_of_another_hub_is_refused(hub, connect, device):
    text = hub.device_string(
        device.device_id, device.key, host="other.example.net", gateway=hub.host
    )
    refused(connect(text, open=False))


def test_a_disabled_device_is_refused_until_enabled(hub, registry, connect, make_device):
    device = make_device(status="disabled")
    refused(connect(device, open=False))
    registry.update_device_with_sas(
        device.device_id, None, device.key, device.second_key, "enabled"
    )
    assert lives(connect(device))


def test_a_module_of_nobody_is_refused(hub, connect, device):
    refused(connect(hub.module_string(device.device_id, "nobody", device.key), open=False))


def test_a_disabled_device_takes_its_modules_along(registry, connect, device, module):
    registry.update_device_with_sas(
        device.device_id, None, device.key, device.second_key, "disabled"
    )
    refused(connect(module, open=False))


def test_the_wrong_authority_is_not_trusted(connect, device, tmp_path):
    stranger = Certificate(tmp_path, "stranger", authority=True)
    client = connect(device, open=False, server_verification_cert=stranger.own_pem)
    with pytest.raises(ClientError) as error:
        client.connect()
    assert not isinstance(error.value, CredentialError)


def test_a_hub_that_is_not_there(connect, device, hub):
    text = hub.device_string(device.device_id, device.key, gateway="127.0.0.3")
    refused(connect(text, open=False, connection_retry=False), ConnectionFailedError)


def test_a_renewed_key_counts_at_the_next_connect(hub, registry, connect, device):
    key = new_key()
    registry.update_device_with_sas(device.device_id, None, key, new_key(), "enabled")
    refused(connect(device, open=False))
    assert lives(connect(hub.device_string(device.device_id, key)))


def test_a_token_that_runs_out_ends_the_connection(hub, connect, device, wait):
    token = sas(f"{hub.host}/devices/{device.device_id}", device.key, ttl=8)
    client = connect.keep(
        IoTHubDeviceClient.create_from_sastoken(
            token, server_verification_cert=hub.ca, connection_retry=False
        )
    )
    client.connect()
    assert client.connected
    wait(lambda: not client.connected)


def test_a_token_is_handed_in_anew(hub, connect, device, wait):
    resource = f"{hub.host}/devices/{device.device_id}"
    client = connect.keep(
        IoTHubDeviceClient.create_from_sastoken(
            sas(resource, device.key, ttl=130), server_verification_cert=hub.ca
        )
    )
    renewed = []

    def renew():
        client.update_sastoken(sas(resource, device.key))
        renewed.append(time.monotonic())

    client.on_new_sastoken_required = renew
    client.connect()
    # Not when it is asked for: the client goes away and comes back with its new token.
    wait(lambda: renewed)
    wait(lambda: client.connected)
    assert lives(client)


def test_a_key_renews_its_token_by_itself(hub, connect, device, wait):
    client = connect(device, open=False, sastoken_ttl=125)
    states = []
    client.on_connection_state_change = lambda: states.append(client.connected)
    client.connect()
    before = str(client._mqtt_pipeline.pipeline_configuration.sastoken)
    wait(lambda: str(client._mqtt_pipeline.pipeline_configuration.sastoken) != before)
    wait(lambda: states[-1:] == [True] and states.count(True) >= 2)
    assert lives(client)


def test_a_keep_alive_of_seconds_keeps_a_quiet_device(connect, device):
    client = connect(device, keep_alive=4)
    changes = []
    client.on_connection_state_change = lambda: changes.append(client.connected)
    time.sleep(13)
    assert lives(client)
    assert False not in changes
