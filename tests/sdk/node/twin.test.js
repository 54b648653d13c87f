// Twins from both sides: Registry, the service's Twin, the device's Twin.
'use strict';

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { MqttWs } = require('azure-iot-device-mqtt');
const { call, client, eventually, listening, makeDevice, makeModule, Mqtt, opened, plain, registry } = require('./lib');

const props = { foo: 1, bar: { baz: 2, tweedle: { dee: 3 } } };
const merged = { foo: 1, bar: { baz: 3, tweedle: { dee: 3 } } };

for (const Transport of [Mqtt, MqttWs]) {
  test(`a report reaches the service over ${Transport.name}`, async () => {
    const device = await makeDevice();
    const twin = await (await opened(device, Transport)).getTwin();
    assert.equal(twin.properties.reported.$version, 1);
    await call(twin.properties.reported, 'update', props);
    await call(twin.properties.reported, 'update', { bar: { baz: 3 } });
    const { responseBody: seen } = await registry.getTwin(device.deviceId);
    assert.deepEqual(plain(seen.properties.reported), merged);
    await call(twin.properties.reported, 'update', { bar: { tweedle: null } });
    const { responseBody: cut } = await registry.getTwin(device.deviceId);
    assert.deepEqual(plain(cut.properties.reported), { foo: 1, bar: { baz: 3 } });
  });

  test(`desired properties arrive and merge over ${Transport.name}`, async () => {
    const device = await makeDevice();
    const twin = await listening(await opened(device, Transport));
    const seen = [];
    const paths = [];
    // The SDK hands out its own copy of the properties the first time, and changes it later.
    twin.on('properties.desired', (delta) => seen.push(delta.$version));
    twin.on('properties.desired.bar.baz', (value) => paths.push(value));
    await eventually(() => seen.length === 1, 'the first state');
    const { responseBody: service } = await registry.getTwin(device.deviceId);
    await service.update({ properties: { desired: props } });
    await eventually(() => seen.length === 2, 'the first change');
    await service.update({ properties: { desired: { bar: { baz: 3 } } } });
    await eventually(() => seen.length === 3, 'the second change');
    assert.deepEqual(seen, [1, 2, 3]);
    assert.deepEqual(plain(twin.properties.desired), merged);
    assert.deepEqual(paths, [2, 3]);
  });
}

test('all desired properties go with one null', async () => {
  const device = await makeDevice();
  const twin = await listening(await opened(device));
  const seen = [];
  twin.on('properties.desired', (delta) => seen.push(delta));
  await eventually(() => seen.length === 1, 'the first state');
  await registry.updateTwin(device.deviceId, { properties: { desired: props } }, '*');
  await eventually(() => seen.length === 2, 'the change');
  await registry.updateTwin(device.deviceId, { properties: { desired: null } }, '*');
  const { responseBody: after } = await registry.getTwin(device.deviceId);
  assert.deepEqual(plain(after.properties.desired), {});
});

test('tags are the service\'s alone', async () => {
  const device = await makeDevice();
  const { responseBody: twin } = await registry.getTwin(device.deviceId);
  await twin.update({ tags: props });
  assert.deepEqual(plain(twin.tags), props);
  await twin.update({ tags: { bar: null } });
  assert.deepEqual(plain(twin.tags), { foo: 1 });
  const own = await (await opened(device)).getTwin();
  assert.equal(own.tags, undefined);
});

test('an etag that is stale is refused', async () => {
  const device = await makeDevice();
  const { responseBody: twin } = await registry.getTwin(device.deviceId);
  const { responseBody: changed } = await registry.updateTwin(device.deviceId, { properties: { desired: { a: 1 } } }, twin.etag);
  assert.equal(changed.properties.desired.a, 1);
  for (const etag of [twin.etag, 'abc']) {
    await assert.rejects(registry.updateTwin(device.deviceId, { properties: { desired: { a: 2 } } }, etag), { name: 'InvalidEtagError' });
  }
  await registry.updateTwin(device.deviceId, { properties: { desired: { a: 3 } } }, '*');
});

test('a refused report is an error', async () => {
  const device = await makeDevice();
  const twin = await (await opened(device)).getTwin();
  for (const patch of [{ 'a.b': 1 }, { long: 'x'.repeat(4097) }, { n: 4503599627370497 }]) {
    await assert.rejects(call(twin.properties.reported, 'update', patch), /./, JSON.stringify(patch).slice(0, 40));
  }
  await call(twin.properties.reported, 'update', { fine: true });
  const { responseBody: seen } = await registry.getTwin(device.deviceId);
  assert.deepEqual(plain(seen.properties.reported), { fine: true });
});

test('changes of an absence are there on return', async () => {
  const device = await makeDevice();
  const first = await opened(device);
  const twin = await first.getTwin();
  const seen = [];
  twin.on('properties.desired', (delta) => seen.push(plain(delta)));
  await eventually(() => seen.length === 1, 'the first state');
  await first.close();
  await registry.updateTwin(device.deviceId, { properties: { desired: props } }, '*');
  await registry.updateTwin(device.deviceId, { properties: { desired: { bar: { baz: 3 } } } }, '*');
  const second = client(device);
  await second.open();
  assert.deepEqual(plain((await second.getTwin()).properties.desired), merged);
});

test('a module has its own twin', async () => {
  const device = await makeDevice();
  const module = await makeModule(device.deviceId);
  const twin = await listening(await opened(module));
  const seen = [];
  twin.on('properties.desired', (delta) => seen.push(delta));
  await eventually(() => seen.length === 1, 'the first state');
  await call(twin.properties.reported, 'update', { r: 1 });
  const { responseBody: service } = await registry.getModuleTwin(device.deviceId, module.moduleId);
  assert.deepEqual(plain(service.properties.reported), { r: 1 });
  await registry.updateModuleTwin(device.deviceId, module.moduleId, { properties: { desired: { d: 1 } } }, service.etag);
  await eventually(() => seen.length === 2, 'the change');
  assert.equal(twin.properties.desired.d, 1);
  const { responseBody: untouched } = await registry.getTwin(device.deviceId);
  assert.deepEqual(plain(untouched.properties.reported), {});
});

test('a page of twins, and the rest of them', async () => {
  const site = `site-${Date.now()}`;
  const ids = [];
  for (let number = 0; number < 5; number += 1) {
    const { deviceId } = await makeDevice();
    ids.push(deviceId);
    await registry.updateTwin(deviceId, { tags: { site, number } }, '*');
  }
  const query = registry.createQuery(`SELECT * FROM devices WHERE tags.site = '${site}'`, 2);
  const found = [];
  let pages = 0;
  while (query.hasMoreResults) {
    // With promises, the query has to be told where it stands.
    const { result } = await query.nextAsTwin(query.continuationToken);
    pages += 1;
    found.push(...result);
  }
  assert.equal(pages, 3);
  assert.deepEqual(found.map((twin) => twin.deviceId).sort(), ids.sort());
  await found[0].update({ tags: { seen: true } });
  const aggregate = registry.createQuery(`SELECT COUNT() AS n FROM devices WHERE tags.site = '${site}' AND tags.number >= 2`);
  const { result: counted } = await aggregate.next();
  assert.deepEqual(counted, [{ n: 3 }]);
  await assert.rejects(registry.createQuery('SELECT FROM WHERE').next(), { name: 'ArgumentError' });
});
