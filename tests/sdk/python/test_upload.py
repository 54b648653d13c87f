"""File upload onto a blob container: azure-iot-device's two calls around a plain HTTP PUT."""

import pytest
import requests
from azure.iot.device.exceptions import ClientError

from hub import unique

pytestmark = pytest.mark.uploads


@pytest.fixture(autouse=True)
def storage(hub):
    if not hub.ready.get("uploads"):
        pytest.skip("the hub has no blob container")


def address(info):
    return f"https://{info['hostName']}/{info['containerName']}/{info['blobName']}{info['sasToken']}"


def test_a_file_goes_up(hub, connect, device):
    client = connect(device)
    info = client.get_storage_info_for_blob("logs/today.txt")
    assert set(info) >= {"correlationId", "hostName", "containerName", "blobName", "sasToken"}
    assert info["blobName"] == f"{device.device_id}/logs/today.txt"
    assert info["sasToken"].startswith("?")
    sent = requests.put(
        address(info),
        data=b"what happened",
        headers={"x-ms-blob-type": "BlockBlob"},
        verify=hub.ca_path,
        timeout=20,
    )
    assert sent.status_code == 201, sent.text
    client.notify_blob_upload_status(info["correlationId"], True, 201, "done")


def test_a_failed_upload_is_told(connect, device):
    client = connect(device)
    info = client.get_storage_info_for_blob("broken.bin")
    client.notify_blob_upload_status(info["correlationId"], False, 500, "disk full")


def test_a_correlation_that_is_none(connect, device):
    client = connect(device)
    with pytest.raises(ClientError):
        client.notify_blob_upload_status(unique("none"), True, 200, "done")


def test_ten_uploads_at_once(connect, device):
    client = connect(device)
    open_ones = [client.get_storage_info_for_blob(f"{n}")["correlationId"] for n in range(10)]
    with pytest.raises(ClientError):
        client.get_storage_info_for_blob("eleven")
    client.notify_blob_upload_status(open_ones[0], False, 499, "given up")
    client.get_storage_info_for_blob("eleven")
