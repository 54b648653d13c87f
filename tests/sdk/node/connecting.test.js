// How a device proves who it is, and every way to be turned away.
'use strict';

const assert = require('node:assert/strict');
const { test } = require('node:test');
const device = require('azure-iot-device');
const { SharedAccessKeyAuthenticationProvider } = require('azure-iot-device');
const { MqttWs } = require('azure-iot-device-mqtt');
const { Http } = require('azure-iot-device-http');
const { Message } = require('azure-iot-common');
const {
  certificate, client, DeviceClient, deviceCa, eventually, forget, hub, keep, listening, makeDevice, makeModule, Mqtt,
  newKey, NoRetry, opened, registry, unique,
} = require('./lib');

const soon = () => Math.ceil(Date.now() / 1000) + 3600;
const once = (one) => {
  one.setRetryPolicy(new NoRetry());
  return one;
};

for (const Transport of [Mqtt, MqttWs]) {
  test(`by key, by token and by thumbprint over ${Transport.name}`, async () => {
    const made = await makeDevice();
    await (await opened(made, Transport)).close();

    const token = device.SharedAccessSignature.create(hub.host, made.deviceId, made.key, soon()).toString();
    const byToken = keep(DeviceClient.fromSharedAccessSignature(token, Transport));
    await byToken.open();
    assert.ok(await byToken.getTwin());
    await byToken.close();

    const own = certificate('self-signed');
    const deviceId = unique('thumb');
    forget(deviceId);
    await registry.create({ deviceId, authentication: { x509Thumbprint: { primaryThumbprint: own.thumbprint } } });
    const byThumbprint = client(`HostName=${hub.host};DeviceId=${deviceId};x509=true`, Transport);
    await byThumbprint.setOptions({ cert: own.cert, key: own.key });
    await byThumbprint.open();
    assert.ok(await byThumbprint.getTwin());
  });

  test(`by a certificate of a known authority over ${Transport.name}`, { skip: !deviceCa }, async () => {
    const deviceId = unique('signed');
    forget(deviceId);
    await registry.create({ deviceId, authentication: { type: 'certificateAuthority' } });
    const signed = certificate(deviceId, { issuer: deviceCa });
    const one = client(`HostName=${hub.host};DeviceId=${deviceId};x509=true`, Transport);
    await one.setOptions({ cert: signed.cert, key: signed.key });
    await one.open();
    assert.ok(await one.getTwin());
  });

  test(`a wrong key, a stale token, an id that is none, over ${Transport.name}`, async () => {
    const made = await makeDevice();
    const string = (deviceId, key) => `HostName=${hub.host};DeviceId=${deviceId};SharedAccessKey=${key}`;
    const yesterday = Math.ceil(Date.now() / 1000) - 86400;
    for (const one of [
      client(string(made.deviceId, newKey()), Transport),
      client(string(`${made.deviceId}foo`, made.key), Transport),
      client(string(`${made.deviceId}#+foo`, made.key), Transport),
      keep(DeviceClient.fromSharedAccessSignature(
        device.SharedAccessSignature.create(hub.host, made.deviceId, made.key, yesterday).toString(), Transport)),
    ]) {
      await assert.rejects(once(one).open(), (error) =>
        ['UnauthorizedError', 'NotConnectedError'].includes(error.name));
    }
  });

  test(`another certificate is refused over ${Transport.name}`, async () => {
    const deviceId = unique('thumb');
    forget(deviceId);
    await registry.create({ deviceId, authentication: { x509Thumbprint: { primaryThumbprint: certificate('right').thumbprint } } });
    const wrong = certificate('wrong');
    const one = once(client(`HostName=${hub.host};DeviceId=${deviceId};x509=true`, Transport));
    await one.setOptions({ cert: wrong.cert, key: wrong.key });
    await assert.rejects(one.open(), { name: 'UnauthorizedError' });
  });
}

test('a disabled device is refused', async () => {
  const made = await makeDevice({ status: 'disabled' });
  await assert.rejects(once(client(made)).open(), { name: 'UnauthorizedError' });
});

test('a module', async () => {
  const module = await makeModule((await makeDevice()).deviceId);
  const one = await opened(module);
  await one.sendEvent(new Message('from a module'));
  await one.sendOutputEvent('alarm', new Message('to an output'));
  assert.ok(await one.getTwin());
});

test('a token is renewed by hand, and subscriptions stay', async () => {
  const made = await makeDevice();
  const token = (ttl) =>
    device.SharedAccessSignature.create(hub.host, made.deviceId, made.key, Math.ceil(Date.now() / 1000) + ttl).toString();
  const one = keep(DeviceClient.fromSharedAccessSignature(token(3600), Mqtt));
  await one.open();
  const twin = await listening(one);
  const seen = [];
  twin.on('properties.desired', (delta) => seen.push(delta));
  await eventually(() => seen.length === 1, 'the first state');
  await new Promise((resolve, reject) => one.updateSharedAccessSignature(token(7200), (error) => (error ? reject(error) : resolve())));
  await registry.updateTwin(made.deviceId, { properties: { desired: { after: 1 } } }, '*');
  await eventually(() => seen.length === 2, 'the change after the renewal');
  await new Promise((resolve, reject) => twin.properties.reported.update({ r: 1 }, (error) => (error ? reject(error) : resolve())));
});

test('a token is renewed by the client itself', async () => {
  const made = await makeDevice();
  const provider = SharedAccessKeyAuthenticationProvider.fromConnectionString(made.connectionString, 6, 2);
  const one = keep(DeviceClient.fromAuthenticationProvider(provider, Mqtt));
  let renewals = 0;
  provider.on('newTokenAvailable', () => { renewals += 1; });
  await one.open();
  await one.getTwin();
  await eventually(() => renewals >= 3, 'the renewals');
  await one.sendEvent(new Message('still there'));
});

test('a second connection ends the first', async () => {
  const made = await makeDevice();
  const first = once(await opened(made));
  const gone = new Promise((resolve) => first.on('disconnect', resolve));
  const second = once(await opened(made));
  await gone;
  await second.sendEvent(new Message('the second'));
});

test('deleting a device ends its connection', async () => {
  const made = await makeDevice();
  const one = once(await opened(made));
  const gone = new Promise((resolve) => one.on('disconnect', resolve));
  await registry.delete(made.deviceId);
  await gone;
});

test('over HTTPS: send, and be turned away', async () => {
  const made = await makeDevice();
  const one = await opened(made, Http);
  const message = new Message('over https');
  message.properties.add('p', 'v');
  message.messageId = 'h-1';
  await one.sendEvent(message);
  await one.sendEventBatch([new Message('one'), new Message('two')]);
  const wrong = client(`HostName=${hub.host};DeviceId=${made.deviceId};SharedAccessKey=${newKey()}`, Http);
  await assert.rejects(once(wrong).sendEvent(new Message('x')), { name: 'UnauthorizedError' });
  const nobody = client(`HostName=${hub.host};DeviceId=${unique('nobody')};SharedAccessKey=${made.key}`, Http);
  await assert.rejects(once(nobody).sendEvent(new Message('x')), (error) =>
    ['UnauthorizedError', 'DeviceNotFoundError'].includes(error.name));
});
