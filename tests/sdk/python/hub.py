"""The hub under test, as the runner (tools/sdk-tests.sh) describes it, and what the suites share."""

import base64
import datetime
import hashlib
import hmac
import json
import os
import socket
import subprocess
import threading
import time
import urllib.parse
import uuid

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def parts(connection_string):
    """A connection string as a dictionary."""
    return dict(part.split("=", 1) for part in connection_string.split(";") if part)


class Hub:
    """What the hub's ready line said. Nothing here knows how the hub is made."""

    def __init__(self):
        with open(os.environ["FLEETWAVE_READY"], encoding="utf-8") as file:
            self.ready = json.load(file)
        self.service = self.ready["service_connection_string"]
        self.host = parts(self.service)["HostName"]
        self.key = parts(self.service)["SharedAccessKey"]
        self.policy = parts(self.service)["SharedAccessKeyName"]
        self.ca_path = self.ready["ca"]
        with open(self.ca_path, encoding="utf-8") as file:
            self.ca = file.read()
        self.id_scope = self.ready.get("id_scope")
        self.admin = self.ready.get("admin", "").rstrip("/")
        # A second name of the same hub, the one that a cloud's connection string would carry.
        self.cloud_name = os.environ.get("FLEETWAVE_CLOUD_NAME", "fleetwave.azure-devices.net")
        self.control = os.environ.get("FLEETWAVE_HUB_CONTROL")
        self.device_ca = os.environ.get("FLEETWAVE_DEVICE_CA")
        self.device_ca_key = os.environ.get("FLEETWAVE_DEVICE_CA_KEY")

    def policy_string(self, name):
        """The connection string of a built-in policy, or None when the hub's `keys.json` is not to be had."""
        if name == self.policy:
            return self.service
        try:
            with open(os.path.join(self.ready["data"], "keys.json"), encoding="utf-8") as file:
                key = json.load(file)["policies"][name][0]
        except (OSError, TypeError):  # its data is not on this machine, or not kept
            return None
        return f"HostName={self.host};SharedAccessKeyName={name};SharedAccessKey={key}"

    @property
    def events(self):
        """The Event-Hub-compatible connection string."""
        given = self.ready.get("events_connection_string")
        return given or (
            f"Endpoint=sb://{self.host}/;SharedAccessKeyName={self.policy};"
            f"SharedAccessKey={self.key};EntityPath={self.ready['hub_name']}"
        )

    @property
    def provisioning(self):
        """The connection string of the provisioning service."""
        given = self.ready.get("provisioning_connection_string")
        return given or self.service

    def device_string(self, device_id, key, host=None, gateway=None):
        text = f"HostName={host or self.host};DeviceId={device_id};SharedAccessKey={key}"
        return f"{text};GatewayHostName={gateway}" if gateway else text

    def module_string(self, device_id, module_id, key):
        return (
            f"HostName={self.host};DeviceId={device_id};ModuleId={module_id};SharedAccessKey={key}"
        )

    def run(self, action):
        """Ask the runner to `stop`, `kill` (without warning), `start` or `restart` the hub."""
        subprocess.run([self.control, action], check=True, timeout=120)


def unique(prefix):
    """An id that no other test uses."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def new_key(size=32):
    return base64.b64encode(os.urandom(size)).decode()


def sas(resource, key, ttl=3600, policy=None, expiry=None):
    """A shared access signature, made by hand."""
    quoted = urllib.parse.quote(resource, safe="")
    expiry = int(time.time() + ttl) if expiry is None else expiry
    signature = base64.b64encode(
        hmac.new(base64.b64decode(key), f"{quoted}\n{expiry}".encode(), hashlib.sha256).digest()
    ).decode()
    token = f"SharedAccessSignature sr={quoted}&sig={urllib.parse.quote(signature, safe='')}&se={expiry}"
    return f"{token}&skn={policy}" if policy else token


def derived_key(group_key, registration_id):
    """The key of one device of a group enrolment."""
    return base64.b64encode(
        hmac.new(base64.b64decode(group_key), registration_id.encode(), hashlib.sha256).digest()
    ).decode()


def eventually(check, timeout=60, every=0.05):
    """Poll until `check` gives something true, and give that back. Fails with the last error or value."""
    end = time.monotonic() + timeout
    last = None
    while True:
        try:
            last = check()
            if last:
                return last
        except Exception as error:  # what counts is whether it holds in the end
            last = error
        if time.monotonic() > end:
            if isinstance(last, Exception):
                raise last
            raise AssertionError(f"not within {timeout} s, last seen: {last!r}")
        time.sleep(every)


def row_of(twin):
    """A query's row as the JSON that came, out of the Twin that azure-iot-hub makes of any row."""
    found = {
        shape["key"]: getattr(twin, name)
        for name, shape in twin._attribute_map.items()
        if getattr(twin, name) is not None
    }
    return found | twin.additional_properties


def nested(depth):
    """Objects in objects, that deep, around one value."""
    return {f"level{depth}": nested(depth - 1)} if depth else {"value": 1}


class Certificate:
    """A certificate and its key: self-signed, or signed by `issuer`. Kept in files for the SDKs."""

    def __init__(self, folder, common_name, issuer=None, authority=False, days=1):
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        now = datetime.datetime.now(datetime.timezone.utc)
        signer = issuer or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(signer.certificate.subject if issuer else name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=abs(days) + 1))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        self.certificate = builder.sign(signer.key, hashes.SHA256())
        pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()
        self.own_pem = pem
        self.pem = pem + (issuer.chain if issuer and issuer.is_sent else "")
        self.chain = self.pem
        self.is_sent = authority and issuer is not None
        self.certificate_file = str(folder / f"{common_name}.pem")
        self.key_file = str(folder / f"{common_name}.key")
        with open(self.certificate_file, "w", encoding="utf-8") as file:
            file.write(self.pem)
        with open(self.key_file, "wb") as file:
            file.write(
                self.key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.TraditionalOpenSSL,
                    serialization.NoEncryption(),
                )
            )

    @classmethod
    def load(cls, certificate_file, key_file):
        """A root that somebody else made. It is not sent along by those it signs."""
        self = cls.__new__(cls)
        with open(certificate_file, "rb") as file:
            self.certificate = x509.load_pem_x509_certificate(file.read())
        with open(key_file, "rb") as file:
            self.key = serialization.load_pem_private_key(file.read(), None)
        self.own_pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()
        self.chain = self.own_pem
        self.is_sent = False
        self.certificate_file, self.key_file = certificate_file, key_file
        return self

    @property
    def sha1(self):
        return self.certificate.fingerprint(hashes.SHA1()).hex().upper()

    @property
    def sha256(self):
        return self.certificate.fingerprint(hashes.SHA256()).hex().upper()


class Relay:
    """A cable that can be pulled: forwards TCP from another loopback address to the hub.

    `drop()` leaves the connections open and lets nothing through; `reject()` cuts them and refuses
    new ones; `restore()` makes it whole again.
    """

    ADDRESS = "127.0.0.2"

    def __init__(self, port, target=("127.0.0.1", None)):
        self.port = port
        self.target = (target[0], target[1] or port)
        self.passing = threading.Event()
        self.passing.set()
        self.pairs = []
        self.lock = threading.Lock()
        self.listener = None
        self._listen()

    def _listen(self):
        listener = socket.create_server((self.ADDRESS, self.port), reuse_port=False)
        self.listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.target, timeout=5)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            with self.lock:
                self.pairs.append((client, server))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source, sink):
        try:
            while data := source.recv(65536):
                self.passing.wait()
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def drop(self):
        self.passing.clear()

    def cut(self):
        """End the connections that there are; new ones are welcome."""
        with self.lock:
            pairs, self.pairs = self.pairs, []
        for pair in pairs:
            for end in pair:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                end.close()

    def reject(self):
        self._deaf()
        self.cut()

    def _deaf(self):
        listener, self.listener = self.listener, None
        if listener is not None:
            # Closing alone does not wake the thread that waits in accept.
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def restore(self):
        if not self.passing.is_set():
            # What was dropped is lost, as on a real network after a long outage.
            self.cut()
            self.passing.set()
        if self.listener is None:
            self._listen()

    def close(self):
        """Nobody new; whoever is connected still has to say goodbye."""
        self._deaf()
        self.passing.set()
