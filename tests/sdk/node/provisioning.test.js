// Device provisioning: ProvisioningServiceClient makes enrolments, ProvisioningDeviceClient registers.
'use strict';

const assert = require('node:assert/strict');
const crypto = require('node:crypto');
const { test } = require('node:test');
const { ProvisioningDeviceClient } = require('azure-iot-provisioning-device');
const { Mqtt, MqttWs } = require('azure-iot-provisioning-device-mqtt');
const { Http } = require('azure-iot-provisioning-device-http');
const { ProvisioningServiceClient } = require('azure-iot-provisioning-service');
const { SymmetricKeySecurityClient } = require('azure-iot-security-symmetric-key');
const { X509Security } = require('azure-iot-security-x509');
const { atEnd, call, certificate, forget, hub, newKey, opened, registry, unique } = require('./lib');

const service = ProvisioningServiceClient.fromConnectionString(hub.provisioning);
const enrolments = [];
const groups = [];

const enrol = async (enrolment) => {
  const registrationId = enrolment.registrationId || unique('dps');
  enrolments.push(registrationId);
  forget(enrolment.deviceId || registrationId);
  return (await service.createOrUpdateIndividualEnrollment({
    attestation: { type: 'symmetricKey' }, ...enrolment, registrationId,
  })).responseBody;
};

const group = async (attestation) => {
  const enrollmentGroupId = unique('group');
  groups.push(enrollmentGroupId);
  return (await service.createOrUpdateEnrollmentGroup({ enrollmentGroupId, attestation })).responseBody;
};

atEnd(async () => {
  for (const id of enrolments) await service.deleteIndividualEnrollment(id).catch(() => {});
  for (const id of groups) await service.deleteEnrollmentGroup(id).catch(() => {});
});

const register = (Transport, security, payload) => {
  const one = ProvisioningDeviceClient.create(hub.host, hub.ready.id_scope, new Transport(), security);
  if (payload) one.setProvisioningPayload(payload);
  return one.register();
};

for (const Transport of [Mqtt, MqttWs, Http]) {
  test(`one device by key over ${Transport.name}`, async () => {
    const made = await enrol({});
    const key = made.attestation.symmetricKey.primaryKey;
    const state = await register(Transport, new SymmetricKeySecurityClient(made.registrationId, key), { hello: 1 });
    assert.equal(state.status, 'assigned');
    assert.equal(state.deviceId, made.registrationId);
    assert.equal(state.assignedHub, hub.host);
    const one = await opened(`HostName=${hub.host};DeviceId=${state.deviceId};SharedAccessKey=${key}`);
    assert.ok(await one.getTwin());
  });

  test(`one device by certificate over ${Transport.name}`, async () => {
    const registrationId = unique('dps');
    const own = certificate(registrationId);
    await enrol({ registrationId, attestation: { type: 'x509', x509: { clientCertificates: { primary: { certificate: own.cert } } } } });
    const state = await register(Transport, new X509Security(registrationId, own));
    assert.equal(state.status, 'assigned');
    const { responseBody: device } = await registry.get(state.deviceId);
    assert.equal(device.authentication.type, 'selfSigned');
  });
}

test('a group by key', async () => {
  const primaryKey = newKey();
  await group({ type: 'symmetricKey', symmetricKey: { primaryKey, secondaryKey: newKey() } });
  const registrationId = unique('dps');
  forget(registrationId);
  const derived = crypto.createHmac('sha256', Buffer.from(primaryKey, 'base64')).update(registrationId).digest('base64');
  const state = await register(Mqtt, new SymmetricKeySecurityClient(registrationId, derived));
  assert.equal(state.status, 'assigned');
  assert.equal((await registry.get(registrationId)).responseBody.authentication.symmetricKey.primaryKey, derived);
});

test('a group by certificate', async () => {
  const root = certificate('dps-root', { authority: true });
  await group({ type: 'x509', x509: { signingCertificates: { primary: { certificate: root.cert } } } });
  const registrationId = unique('dps');
  forget(registrationId);
  const leaf = certificate(registrationId, { issuer: root });
  const state = await register(Mqtt, new X509Security(registrationId, leaf));
  assert.equal(state.status, 'assigned');
});

test('a wrong key and an unknown registration are refused', async () => {
  const made = await enrol({});
  await assert.rejects(register(Mqtt, new SymmetricKeySecurityClient(made.registrationId, newKey())));
  await assert.rejects(register(Mqtt, new SymmetricKeySecurityClient(unique('nobody'), newKey())));
  await assert.rejects(register(Http, new SymmetricKeySecurityClient(made.registrationId, newKey())), { name: 'UnauthorizedError' });
});

test('a device id of its own and an initial twin', async () => {
  const deviceId = unique('dps-device');
  const made = await enrol({ deviceId, initialTwin: { tags: { a: 1 }, properties: { desired: { b: 2 } } } });
  const state = await register(Mqtt, new SymmetricKeySecurityClient(made.registrationId, made.attestation.symmetricKey.primaryKey));
  assert.equal(state.deviceId, deviceId);
  const { responseBody: twin } = await registry.getTwin(deviceId);
  assert.equal(twin.tags.a, 1);
  assert.equal(twin.properties.desired.b, 2);
});

test('enrolments go round', async () => {
  const made = await enrol({});
  const { responseBody: found } = await service.getIndividualEnrollment(made.registrationId);
  assert.equal(found.etag, made.etag);
  const { responseBody: mechanism } = await service.getIndividualEnrollmentAttestationMechanism(made.registrationId);
  assert.equal(mechanism.symmetricKey.primaryKey, made.attestation.symmetricKey.primaryKey);
  const { responseBody: changed } = await service.createOrUpdateIndividualEnrollment({ ...found, provisioningStatus: 'disabled' });
  assert.equal(changed.provisioningStatus, 'disabled');
  await assert.rejects(service.createOrUpdateIndividualEnrollment(found), { name: 'InvalidEtagError' });
  await service.deleteIndividualEnrollment(made.registrationId);
  await assert.rejects(service.getIndividualEnrollment(made.registrationId));
});

test('groups go round', async () => {
  const made = await group({ type: 'symmetricKey' });
  const { responseBody: found } = await service.getEnrollmentGroup(made.enrollmentGroupId);
  assert.equal(found.etag, made.etag);
  const { responseBody: mechanism } = await service.getEnrollmentGroupAttestationMechanism(made.enrollmentGroupId);
  assert.ok(mechanism.symmetricKey.primaryKey);
  await service.deleteEnrollmentGroup(made.enrollmentGroupId);
  await assert.rejects(service.getEnrollmentGroup(made.enrollmentGroupId));
});

test('many at once, and queries', async () => {
  const ids = [1, 2, 3].map(() => unique('dps'));
  enrolments.push(...ids);
  const bulk = { mode: 'create', enrollments: ids.map((registrationId) => ({ registrationId, attestation: { type: 'symmetricKey' } })) };
  // Its promise never ends, for this one call.
  const result = await call(service, 'runBulkEnrollmentOperation', bulk);
  assert.equal(result.isSuccessful, true);
  const query = service.createIndividualEnrollmentQuery({ query: '*' }, 2);
  const found = [];
  // With promises, the query has to be told where it stands.
  while (query.hasMoreResults) found.push(...(await query.next(query.continuationToken)).responseBody);
  for (const id of ids) assert.ok(found.some((one) => one.registrationId === id));
});

test('a registration is told and forgotten', async () => {
  const made = await enrol({});
  await register(Mqtt, new SymmetricKeySecurityClient(made.registrationId, made.attestation.symmetricKey.primaryKey));
  const { responseBody: state } = await service.getDeviceRegistrationState(made.registrationId);
  assert.equal(state.status, 'assigned');
  assert.equal(state.assignedHub, hub.host);
  await service.deleteDeviceRegistrationState(made.registrationId);
  await assert.rejects(service.getDeviceRegistrationState(made.registrationId));
});
