"""Device provisioning: enrolments by azure-iothub-provisioningserviceclient, devices by azure-iot-device."""

import pytest
from azure.iot.device import ProvisioningDeviceClient, X509
from azure.iot.device import aio
from azure.iot.device.exceptions import ClientError, CredentialError
from provisioningserviceclient import (
    BulkEnrollmentOperation,
    EnrollmentGroup,
    IndividualEnrollment,
    ProvisioningServiceClient,
    ProvisioningServiceError,
    QuerySpecification,
)
from provisioningserviceclient.models import InitialTwin
from provisioningserviceclient.protocol.models import AttestationMechanism, ReprovisionPolicy
from provisioningserviceclient.protocol.models import SymmetricKeyAttestation

from hub import Certificate, derived_key, new_key, unique


@pytest.fixture(scope="module")
def service(hub):
    return ProvisioningServiceClient.create_from_connection_string(hub.provisioning)


@pytest.fixture
def enrol(service, registry, forget):
    """Makes enrolments that are gone afterwards, with what they brought about."""
    made = []

    def create(model):
        result = service.create_or_update(model)
        made.append(result)
        return result

    yield create
    for model in made:
        try:
            if isinstance(model, EnrollmentGroup):
                service.delete_enrollment_group_by_param(model.enrollment_group_id)
            else:
                service.delete_individual_enrollment_by_param(model.registration_id)
        except ProvisioningServiceError as error:
            assert "404" in str(error)


def by_key(primary=None, secondary=None):
    keys = primary and SymmetricKeyAttestation(primary_key=primary, secondary_key=secondary)
    return AttestationMechanism(type="symmetricKey", symmetric_key=keys)


def registers(hub, registration_id, key, payload=None, **options):
    client = ProvisioningDeviceClient.create_from_symmetric_key(
        hub.host,
        registration_id,
        hub.id_scope,
        key,
        server_verification_cert=hub.ca,
        **options,
    )
    if payload is not None:
        client.provisioning_payload = payload
    return client.register()


def registers_with(hub, registration_id, certificate, **options):
    return ProvisioningDeviceClient.create_from_x509_certificate(
        hub.host,
        registration_id,
        hub.id_scope,
        X509(certificate.certificate_file, certificate.key_file),
        server_verification_cert=hub.ca,
        **options,
    ).register()


def is_assigned(hub, result, device_id):
    assert result.status == "assigned"
    state = result.registration_state
    assert state.device_id == device_id
    assert state.assigned_hub == hub.host
    assert state.sub_status == "initialAssignment"
    assert state.created_date_time and state.last_update_date_time and state.etag
    return state


@pytest.mark.parametrize("websockets", [False, True], ids=["mqtt", "websocket"])
def test_one_device_by_key(hub, registry, enrol, forget, connect, websockets):
    registration_id = unique("dps-one")
    forget(registration_id)
    made = enrol(IndividualEnrollment.create(registration_id, by_key()))
    key = made.attestation.symmetric_key.primary_key
    assert key and made.etag
    result = registers(hub, registration_id, key, websockets=websockets)
    is_assigned(hub, result, registration_id)
    device = registry.get_device(registration_id)
    assert device.authentication.type == "sas"
    client = connect(hub.device_string(registration_id, key))
    assert client.get_twin()["desired"]["$version"] == 1


async def test_one_device_by_key_asynchronously(hub, enrol, forget):
    registration_id = unique("dps-aio")
    forget(registration_id)
    made = enrol(IndividualEnrollment.create(registration_id, by_key()))
    client = aio.ProvisioningDeviceClient.create_from_symmetric_key(
        hub.host,
        registration_id,
        hub.id_scope,
        made.attestation.symmetric_key.secondary_key,
        server_verification_cert=hub.ca,
    )
    is_assigned(hub, await client.register(), registration_id)


def test_a_device_id_of_its_own(hub, registry, enrol, forget):
    registration_id, device_id = unique("dps-reg"), unique("dps-dev")
    forget(device_id)
    primary, secondary = new_key(), new_key()
    enrol(
        IndividualEnrollment.create(
            registration_id,
            by_key(primary, secondary),
            device_id=device_id,
            reprovision_policy=ReprovisionPolicy(migrate_device_data=True),
        )
    )
    is_assigned(hub, registers(hub, registration_id, primary), device_id)
    assert registry.get_device(device_id).authentication.symmetric_key.primary_key == primary


def test_the_initial_twin_and_capabilities(hub, registry, enrol, forget):
    from provisioningserviceclient.protocol.models import DeviceCapabilities

    registration_id = unique("dps-twin")
    forget(registration_id)
    made = enrol(
        IndividualEnrollment.create(
            registration_id,
            by_key(),
            initial_twin=InitialTwin.create(tags={"site": "a"}, desired_properties={"rate": 3}),
            device_capabilities=DeviceCapabilities.create(iot_edge=True),
        )
    )
    registers(hub, registration_id, made.attestation.symmetric_key.primary_key)
    twin = registry.get_twin(registration_id)
    assert twin.tags == {"site": "a"}
    assert twin.properties.desired["rate"] == 3
    assert twin.capabilities.iot_edge is True


def test_a_group_by_key(hub, registry, service, enrol, forget):
    group_key = new_key()
    group = enrol(EnrollmentGroup.create(unique("group"), by_key(group_key, new_key())))
    for number in range(3):
        registration_id = unique(f"dps-member{number}")
        forget(registration_id)
        result = registers(hub, registration_id, derived_key(group_key, registration_id))
        is_assigned(hub, result, registration_id)
        # The device's key is what it derived, at the hub too.
        device = registry.get_device(registration_id)
        assert device.authentication.symmetric_key.primary_key == derived_key(
            group_key, registration_id
        )
        state = service.get_registration_state(registration_id)
        assert (state.status, state.device_id) == ("assigned", registration_id)
    # The SDK's own query object calls this with one argument too many.
    states = service._runtime_client.query_device_registration_states(group.enrollment_group_id)
    assert len(states) == 3


@pytest.mark.parametrize("websockets", [False, True], ids=["mqtt", "websocket"])
def test_one_device_by_certificate(hub, registry, enrol, forget, connect, tmp_path, websockets):
    registration_id = unique("dps-cert")
    forget(registration_id)
    certificate = Certificate(tmp_path, registration_id)
    enrol(
        IndividualEnrollment.create(
            registration_id,
            AttestationMechanism.create_with_x509_client_certs(certificate.own_pem),
        )
    )
    result = registers_with(hub, registration_id, certificate, websockets=websockets)
    is_assigned(hub, result, registration_id)
    device = registry.get_device(registration_id)
    assert device.authentication.type == "selfSigned"
    assert device.authentication.x509_thumbprint.primary_thumbprint.upper() in (
        certificate.sha1,
        certificate.sha256,
    )
    from test_connecting import by_certificate

    client = by_certificate(hub, connect, registration_id, certificate)
    client.connect()
    assert client.get_twin()


def test_a_group_by_certificate(hub, registry, enrol, forget, tmp_path):
    root = Certificate(tmp_path, "dps-root", authority=True)
    intermediate = Certificate(tmp_path, "dps-intermediate", root, authority=True)
    enrol(
        EnrollmentGroup.create(
            unique("group"),
            AttestationMechanism.create_with_x509_signing_certs(intermediate.own_pem),
            reprovision_policy=ReprovisionPolicy(migrate_device_data=True),
        )
    )
    for number in range(2):
        registration_id = unique(f"dps-leaf{number}")
        forget(registration_id)
        leaf = Certificate(tmp_path, registration_id, intermediate)
        is_assigned(hub, registers_with(hub, registration_id, leaf), registration_id)
        assert registry.get_device(registration_id).authentication.type == "selfSigned"
    stranger = Certificate(tmp_path, unique("dps-stranger"), root)
    name = stranger.certificate.subject.rfc4514_string().removeprefix("CN=")
    with pytest.raises(Exception):
        registers_with(hub, name, stranger)


def test_a_payload_goes_along(hub, enrol, forget):
    registration_id = unique("dps-payload")
    forget(registration_id)
    made = enrol(IndividualEnrollment.create(registration_id, by_key()))
    result = registers(
        hub,
        registration_id,
        made.attestation.symmetric_key.primary_key,
        payload={"modelId": "dtmi:com:example:Thermostat;1"},
    )
    is_assigned(hub, result, registration_id)


def test_registering_twice_keeps_the_device(hub, registry, enrol, forget):
    registration_id = unique("dps-twice")
    forget(registration_id)
    key = enrol(
        IndividualEnrollment.create(registration_id, by_key())
    ).attestation.symmetric_key.primary_key
    registers(hub, registration_id, key)
    first = registry.get_device(registration_id)
    again = registers(hub, registration_id, key)
    assert again.status == "assigned"
    assert registry.get_device(registration_id).generation_id == first.generation_id


def test_who_is_not_enrolled_is_refused(hub):
    with pytest.raises((CredentialError, ClientError, Exception)) as error:
        registers(hub, unique("dps-nobody"), new_key())
    assert "AssertionError" not in repr(error.value)


def test_a_wrong_key_is_refused(hub, registry, enrol, status):
    registration_id = unique("dps-wrong")
    enrol(IndividualEnrollment.create(registration_id, by_key()))
    with pytest.raises(Exception):
        registers(hub, registration_id, new_key())
    with status(404):
        registry.get_device(registration_id)


def test_a_disabled_enrolment_registers_nobody(hub, registry, enrol, status):
    registration_id = unique("dps-disabled")
    made = enrol(
        IndividualEnrollment.create(registration_id, by_key(), provisioning_status="disabled")
    )
    key = made.attestation.symmetric_key.primary_key
    try:
        result = registers(hub, registration_id, key)
    except Exception:
        result = None
    assert result is None or result.status != "assigned"
    with status(404):
        registry.get_device(registration_id)


class TestService:
    def test_an_enrolment_goes_round(self, service, enrol):
        registration_id = unique("enrolment")
        made = enrol(IndividualEnrollment.create(registration_id, by_key()))
        found = service.get_individual_enrollment(registration_id)
        assert found.registration_id == registration_id
        assert found.provisioning_status == "enabled"
        assert found.etag == made.etag
        assert found.created_date_time_utc and found.last_updated_date_time_utc
        found.provisioning_status = "disabled"
        changed = service.create_or_update(found)
        assert changed.provisioning_status == "disabled" and changed.etag != made.etag
        with pytest.raises(ProvisioningServiceError, match="412"):
            service.create_or_update(found)
        with pytest.raises(ProvisioningServiceError, match="412"):
            service.delete_individual_enrollment_by_param(registration_id, found.etag)
        service.delete(changed)
        with pytest.raises(ProvisioningServiceError, match="404"):
            service.get_individual_enrollment(registration_id)

    def test_a_group_goes_round(self, service, enrol):
        made = enrol(EnrollmentGroup.create(unique("group"), by_key()))
        found = service.get_enrollment_group(made.enrollment_group_id)
        assert found.enrollment_group_id == made.enrollment_group_id
        mechanism = service.get_enrollment_group_attestation_mechanism(made.enrollment_group_id)
        assert mechanism.type == "symmetricKey"
        assert mechanism.symmetric_key.primary_key
        service.delete(found)
        with pytest.raises(ProvisioningServiceError, match="404"):
            service.get_enrollment_group(made.enrollment_group_id)

    def test_the_attestation_is_told(self, service, enrol):
        registration_id, primary = unique("enrolment"), new_key()
        enrol(IndividualEnrollment.create(registration_id, by_key(primary, new_key())))
        mechanism = service.get_individual_enrollment_attestation_mechanism(registration_id)
        assert mechanism.symmetric_key.primary_key == primary

    def test_many_at_once_and_queries(self, service):
        ids = [unique("bulk") for _ in range(5)]
        models = [IndividualEnrollment.create(one, by_key()) for one in ids]
        made = service.run_bulk_operation(BulkEnrollmentOperation("create", models))
        assert made.is_successful
        found, query = set(), service.create_individual_enrollment_query(
            QuerySpecification("SELECT * FROM enrollments"), 2
        )
        for page in query:
            found |= {one.registration_id for one in page}
        assert set(ids) <= found
        gone = service.run_bulk_operation(BulkEnrollmentOperation("delete", models))
        assert gone.is_successful
        with pytest.raises(ProvisioningServiceError, match="404"):
            service.get_individual_enrollment(ids[0])

    def test_groups_are_queried(self, service, enrol):
        ids = {enrol(EnrollmentGroup.create(unique("group"), by_key())).enrollment_group_id for _ in range(3)}
        found = set()
        for page in service.create_enrollment_group_query(
            QuerySpecification("SELECT * FROM enrollmentGroups"), 2
        ):
            found |= {one.enrollment_group_id for one in page}
        assert ids <= found

    def test_a_registration_is_forgotten(self, hub, service, enrol, forget):
        registration_id = unique("dps-state")
        forget(registration_id)
        made = enrol(IndividualEnrollment.create(registration_id, by_key()))
        registers(hub, registration_id, made.attestation.symmetric_key.primary_key)
        state = service.get_registration_state(registration_id)
        assert state.assigned_hub == hub.host
        service.delete(state)
        with pytest.raises(ProvisioningServiceError, match="404"):
            service.get_registration_state(registration_id)

    def test_a_wrong_key_is_unauthorised(self, hub):
        parts = [
            part if not part.startswith("SharedAccessKey=") else f"SharedAccessKey={new_key()}"
            for part in hub.provisioning.split(";")
        ]
        client = ProvisioningServiceClient.create_from_connection_string(";".join(parts))
        with pytest.raises(ProvisioningServiceError, match="401"):
            client.get_individual_enrollment("anything")
