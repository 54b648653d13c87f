// Registry: device and module identities, bulk operations, statistics.
'use strict';

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { Registry } = require('azure-iothub');
const { call, forget, hub, makeDevice, newKey, registry, unique } = require('./lib');

const key = (text) => Buffer.from(text).toString('base64');

test('a device of an id alone gets keys', async () => {
  const { deviceId, identity } = await makeDevice();
  assert.equal(identity.deviceId, deviceId);
  assert.equal(identity.status, 'enabled');
  assert.equal(identity.authentication.type, 'sas');
  const { responseBody } = await registry.get(deviceId);
  assert.equal(responseBody.authentication.symmetricKey.primaryKey, identity.authentication.symmetricKey.primaryKey);
});

test('keys of its own are kept, and the type is guessed', async () => {
  const deviceId = unique('node');
  forget(deviceId);
  const authentication = { symmetricKey: { primaryKey: key('1234567890qwerty'), secondaryKey: key('ytrewq0987654321') } };
  await registry.create({ deviceId, status: 'disabled', authentication });
  const { responseBody: device } = await registry.get(deviceId);
  assert.deepEqual({ ...device.authentication.symmetricKey }, authentication.symmetricKey);
  assert.equal(device.authentication.type, 'sas');
  authentication.symmetricKey.secondaryKey = key('qwertyuiopasdfghjkl');
  const { responseBody: updated } = await registry.update({ deviceId, status: 'disabled', authentication });
  assert.equal(updated.authentication.symmetricKey.secondaryKey, authentication.symmetricKey.secondaryKey);
});

test('thumbprints without a type make a self-signed device', async () => {
  const deviceId = unique('node');
  forget(deviceId);
  const x509Thumbprint = { primaryThumbprint: '0'.repeat(40), secondaryThumbprint: '1'.repeat(40) };
  await registry.create({ deviceId, status: 'disabled', authentication: { x509Thumbprint } });
  const { responseBody: device } = await registry.get(deviceId);
  assert.equal(device.authentication.type, 'selfSigned');
  assert.deepEqual({ ...device.authentication.x509Thumbprint }, x509Thumbprint);
});

test('an id with a slash is refused', async () => {
  await assert.rejects(registry.create({ deviceId: 'invalid/name' }), { name: 'ArgumentError' });
});

test('an id is taken once', async () => {
  const { deviceId } = await makeDevice();
  await assert.rejects(registry.create({ deviceId }), { name: 'DeviceAlreadyExistsError' });
});

test('all devices are listed', async () => {
  const one = await makeDevice();
  const other = await makeDevice();
  const { responseBody: devices } = await registry.list();
  const ids = devices.map((device) => device.deviceId);
  assert.ok(ids.includes(one.deviceId) && ids.includes(other.deviceId));
});

test('what is unknown or deleted is not found', async () => {
  const { deviceId } = await makeDevice();
  await registry.delete(deviceId);
  await assert.rejects(registry.get(deviceId), { name: 'DeviceNotFoundError' });
  await assert.rejects(registry.delete(deviceId), { name: 'DeviceNotFoundError' });
  await assert.rejects(registry.getTwin(deviceId), { name: 'DeviceNotFoundError' });
});

test('a wrong key is unauthorised', async () => {
  const wrong = Registry.fromConnectionString(hub.service.replace(hub.hubKey, newKey()));
  await assert.rejects(wrong.get('anything'), { name: 'UnauthorizedError' });
});

test('a token of the service opens the registry too', async () => {
  const { SharedAccessSignature } = require('azure-iothub');
  const token = SharedAccessSignature.create(hub.host, hub.policy, hub.hubKey, Math.ceil(Date.now() / 1000) + 3600).toString();
  const { deviceId } = await makeDevice();
  const { responseBody } = await Registry.fromSharedAccessSignature(token).get(deviceId);
  assert.equal(responseBody.deviceId, deviceId);
});

test('edge devices nest, and a scope does not change at will', async () => {
  const edge = await makeDevice({ capabilities: { iotEdge: true } });
  assert.ok(edge.identity.capabilities.iotEdge);
  assert.ok(edge.identity.deviceScope);
  const child = await makeDevice({ capabilities: { iotEdge: true }, parentScopes: [edge.identity.deviceScope] });
  assert.deepEqual(child.identity.parentScopes, [edge.identity.deviceScope]);
  const leaf = await makeDevice({ deviceScope: child.identity.deviceScope, parentScopes: [child.identity.deviceScope] });
  assert.equal(leaf.identity.deviceScope, child.identity.deviceScope);
  assert.deepEqual(leaf.identity.parentScopes, [child.identity.deviceScope]);
  await assert.rejects(registry.update({ ...leaf.identity, deviceScope: unique('scope') }));
});

test('bulk adds, updates and removes', async () => {
  const ids = [1, 2, 3].map(() => unique('bulk'));
  ids.forEach(forget);
  const authentication = { symmetricKey: { primaryKey: newKey(), secondaryKey: newKey() } };
  const steps = [
    [await registry.addDevices(ids.map((deviceId) => ({ deviceId, status: 'disabled', authentication }))), 'disabled'],
    [await registry.updateDevices(ids.map((deviceId) => ({ deviceId, status: 'enabled' })), true), 'enabled'],
  ];
  for (const [{ responseBody }] of steps) {
    assert.equal(responseBody.isSuccessful, true);
    assert.deepEqual([...responseBody.errors], []);
  }
  for (const deviceId of ids) {
    const { responseBody: device } = await registry.get(deviceId);
    assert.equal(device.status, 'enabled');
    assert.equal(device.authentication.symmetricKey.primaryKey, authentication.symmetricKey.primaryKey);
  }
  const { responseBody: removed } = await registry.removeDevices(ids.map((deviceId) => ({ deviceId })), true);
  assert.equal(removed.isSuccessful, true);
  await assert.rejects(registry.get(ids[0]), { name: 'DeviceNotFoundError' });
});

test('bulk compares etags and tells what failed', async () => {
  const { deviceId } = await makeDevice();
  await assert.rejects(
    registry.updateDevices([{ deviceId, status: 'disabled', etag: 'c3RhbGU=' }], false),
    (error) => {
      assert.equal(error.name, 'ArgumentError');
      const body = typeof error.responseBody === 'string' ? JSON.parse(error.responseBody) : error.responseBody;
      assert.equal(body.isSuccessful, false);
      assert.equal(body.errors[0].deviceId, deviceId);
      return true;
    },
  );
  const { responseBody: device } = await registry.get(deviceId);
  assert.equal(device.status, 'enabled');
  await registry.updateDevices([{ deviceId, status: 'disabled', etag: device.etag }], false);
  assert.equal((await registry.get(deviceId)).responseBody.status, 'disabled');
});

test('statistics', async () => {
  const before = (await registry.getRegistryStatistics()).responseBody;
  await makeDevice();
  const after = (await registry.getRegistryStatistics()).responseBody;
  assert.equal(after.totalDeviceCount, before.totalDeviceCount + 1);
  assert.equal(after.enabledDeviceCount, before.enabledDeviceCount + 1);
});

test('modules go round', async () => {
  const { deviceId } = await makeDevice();
  await registry.addModule({ deviceId, moduleId: 'one', managedBy: 'somebody' });
  await assert.rejects(registry.addModule({ deviceId, moduleId: 'one' }));
  const { responseBody: module } = await registry.getModule(deviceId, 'one');
  assert.equal(module.managedBy, 'somebody');
  assert.deepEqual((await registry.getModulesOnDevice(deviceId)).responseBody.map((one) => one.moduleId), ['one']);
  module.managedBy = 'else';
  await registry.updateModule(module);
  const { responseBody: changed } = await registry.getModule(deviceId, 'one');
  assert.equal(changed.managedBy, 'else');
  assert.notEqual(changed.etag, module.etag);
  // The first etag is stale by now; forced, it doesn't count.
  await assert.rejects(registry.updateModule(module), { name: 'InvalidEtagError' });
  await registry.updateModule(module, true);
  const { responseBody: last } = await registry.getModule(deviceId, 'one');
  // With promises, the SDK takes ids alone here.
  await assert.rejects(call(registry, 'removeModule', changed));
  await call(registry, 'removeModule', last);
  await assert.rejects(registry.getModule(deviceId, 'one'));
  await registry.addModule({ deviceId, moduleId: 'two' });
  await registry.removeModule(deviceId, 'two');
  assert.deepEqual([...(await registry.getModulesOnDevice(deviceId)).responseBody], []);
});
