// Direct methods: the service's Client and a device's or module's handlers.
'use strict';

const assert = require('node:assert/strict');
const { before, test } = require('node:test');
const { Client } = require('azure-iothub');
const { MqttWs } = require('azure-iot-device-mqtt');
const { call, hub, makeDevice, makeModule, Mqtt, opened, unique } = require('./lib');

const service = Client.fromConnectionString(hub.service);
let device;

before(async () => {
  device = await makeDevice();
});

const invoke = async (who, params) => (await service.invokeDeviceMethod(...who, { connectTimeoutInSeconds: 10, ...params })).result;

for (const Transport of [Mqtt, MqttWs]) {
  test(`payloads go both ways over ${Transport.name}`, async () => {
    const own = await makeDevice();
    const client = await opened(own, Transport);
    const requests = [];
    client.onDeviceMethod('echo', async (request, response) => {
      requests.push(request);
      await response.send(298, request.payload === undefined ? null : request.payload);
    });
    for (const payload of [{ a: { b: [1, null] } }, 'text', 7, true, [], {}, null, 'ü 🚀']) {
      const result = await invoke([own.deviceId], { methodName: 'echo', payload });
      assert.equal(result.status, 298);
      assert.deepEqual(result.payload, payload);
    }
    assert.equal(requests[0].methodName, 'echo');
  });
}

test('a status alone is an answer', async () => {
  const client = await opened(device);
  client.onDeviceMethod('bare', (_, response) => response.send(204));
  const result = await invoke([device.deviceId], { methodName: 'bare', payload: null });
  assert.equal(result.status, 204);
  assert.equal(result.payload, null);
});

test('a method that the device does not know is a 501 of the device', async () => {
  const own = await makeDevice();
  const client = await opened(own);
  client.onDeviceMethod('known', (_, response) => response.send(200));
  await invoke([own.deviceId], { methodName: 'known' });
  await assert.rejects(
    async () => {
      const result = await invoke([own.deviceId], { methodName: 'unknown', responseTimeoutInSeconds: 5 });
      if (result.status !== 200) throw new Error(`status ${result.status}`);
    },
  );
});

test('a device that is away, that is unknown, that does not answer', async () => {
  const away = await makeDevice();
  await assert.rejects(invoke([away.deviceId], { methodName: 'm', connectTimeoutInSeconds: 0 }), (error) => {
    assert.equal(error.response.statusCode, 404);
    assert.match(error.responseBody, /404103/);
    return true;
  });
  await assert.rejects(invoke([unique('nobody')], { methodName: 'm' }), (error) => {
    assert.equal(error.response.statusCode, 404);
    assert.match(error.responseBody, /404001/);
    return true;
  });
  const silent = await makeDevice();
  const client = await opened(silent);
  client.onDeviceMethod('silent', () => {});
  await assert.rejects(invoke([silent.deviceId], { methodName: 'silent', responseTimeoutInSeconds: 5 }), (error) => {
    assert.equal(error.response.statusCode, 504);
    assert.match(error.responseBody, /504101/);
    return true;
  });
});

test('a module has methods', async () => {
  const module = await makeModule((await makeDevice()).deviceId);
  const client = await opened(module);
  client.onMethod('zoom', (request, response) => response.send(200, { by: request.payload.by + 1 }));
  const result = await invoke([module.deviceId, module.moduleId], { methodName: 'zoom', payload: { by: 1 } });
  assert.deepEqual(result.payload, { by: 2 });
});

test('times outside the limits are refused', async () => {
  await assert.rejects(invoke([device.deviceId], { methodName: 'm', responseTimeoutInSeconds: 301 }), { name: 'ArgumentError' });
  assert.equal(typeof call, 'function');
});
