// Messages both ways: the service's Client over AMQP, devices over MQTT and HTTPS; uploads.
'use strict';

const assert = require('node:assert/strict');
const crypto = require('node:crypto');
const { Readable } = require('node:stream');
const { before, test } = require('node:test');
const { Client, AmqpWs } = require('azure-iothub');
const { MqttWs } = require('azure-iot-device-mqtt');
const { Http } = require('azure-iot-device-http');
const { Message } = require('azure-iot-common');
const { atEnd, client, eventually, hub, makeDevice, Mqtt, next, opened, registry, unique } = require('./lib');

const service = Client.fromConnectionString(hub.service);
let feedback;
const records = [];

before(async () => {
  await service.open();
  feedback = (await service.getFeedbackReceiver()).result || (await service.getFeedbackReceiver());
  feedback.on('errorReceived', () => {});
  feedback.on('message', async (message) => {
    records.push(...JSON.parse(message.data.toString()));
    await feedback.complete(message);
  });
});

atEnd(() => service.close());

const told = (messageId) => eventually(() => records.find((one) => one.originalMessageId === messageId), 'the feedback');

for (const Transport of [Mqtt, MqttWs, Http]) {
  test(`a message with everything reaches a device over ${Transport.name}`, async () => {
    const device = await makeDevice();
    const one = client(device, Transport);
    if (Transport === Http) one.setOptions({ http: { receivePolicy: { interval: 1 } } });
    await one.open();
    const arrives = next(one, 'message');
    const message = new Message('hello ü');
    message.messageId = crypto.randomUUID();
    message.correlationId = 'c-1';
    message.contentType = 'application/json';
    message.contentEncoding = 'utf-8';
    message.expiryTimeUtc = Date.now() + 60000;
    message.ack = 'full';
    message.properties.add('plain', 'yes');
    message.properties.add('odd &=%/ key', 'odd &=%/ ü');
    await service.send(device.deviceId, message);
    const got = await arrives;
    assert.equal(got.data.toString(), 'hello ü');
    assert.equal(got.messageId, message.messageId);
    assert.equal(got.correlationId, 'c-1');
    // Over HTTPS this SDK calls properties by their headers' names.
    assert.equal(got.properties.getValue(Transport === Http ? 'iothub-app-plain' : 'plain'), 'yes');
    if (Transport !== Http) {
      assert.equal(got.contentType, 'application/json');
      assert.equal(got.contentEncoding, 'utf-8');
      assert.equal(got.properties.getValue('odd &=%/ key'), 'odd &=%/ ü');
    }
    await one.complete(got);
    const record = await told(message.messageId);
    assert.equal(record.statusCode.toLowerCase(), 'success');
    assert.equal(record.deviceId, device.deviceId);
    assert.equal(record.deviceGenerationId, device.identity.generationId);
  });
}

test('an abandoned message comes again, a rejected one does not (over HTTPS)', async () => {
  const device = await makeDevice();
  const one = client(device, Http);
  one.setOptions({ http: { receivePolicy: { interval: 1 } } });
  await one.open();
  const got = [];
  one.on('message', (message) => got.push(message));
  const message = new Message('again');
  message.messageId = crypto.randomUUID();
  message.ack = 'negative';
  await service.send(device.deviceId, message);
  await eventually(() => got.length === 1, 'the message');
  await one.abandon(got[0]);
  await eventually(() => got.length === 2, 'the message again');
  await one.reject(got[1]);
  assert.equal((await told(message.messageId)).statusCode.toLowerCase(), 'rejected');
});

test('empty and large bodies', async () => {
  const device = await makeDevice();
  const one = await opened(device);
  const got = [];
  one.on('message', (message) => {
    got.push(message);
    one.complete(message);
  });
  await service.send(device.deviceId, new Message(''));
  await service.send(device.deviceId, new Message(Buffer.alloc(65536 - 1024, 7)));
  await eventually(() => got.length === 2, 'both');
  assert.equal(got[0].data.length, 0);
  assert.equal(got[1].data.length, 64512);
});

test('a queue holds fifty, an unknown device none', async () => {
  const device = await makeDevice();
  for (let number = 0; number < 50; number += 1) await service.send(device.deviceId, new Message(String(number)));
  await assert.rejects(service.send(device.deviceId, new Message('one too many')), { name: 'DeviceMaximumQueueDepthExceededError' });
  await assert.rejects(service.send(unique('nobody'), new Message('x')), { name: 'DeviceNotFoundError' });
});

test('over WebSocket alone', async () => {
  const own = Client.fromConnectionString(hub.service, AmqpWs);
  await own.open();
  const device = await makeDevice();
  const one = await opened(device, MqttWs);
  const arrives = next(one, 'message');
  await own.send(device.deviceId, new Message('all over 443'));
  assert.equal((await arrives).data.toString(), 'all over 443');
  await own.close();
});

test('a wrong key opens nothing', async () => {
  const wrong = Client.fromConnectionString(hub.service.replace(hub.hubKey, crypto.randomBytes(32).toString('base64')));
  await assert.rejects(wrong.open());
});

test('telemetry of every kind is taken', async () => {
  const device = await makeDevice();
  const one = await opened(device);
  const message = new Message(JSON.stringify({ t: 1 }));
  message.messageId = 'm';
  message.contentType = 'application/json';
  message.contentEncoding = 'utf-8';
  message.properties.add('alert', 'true');
  message.properties.add('dt-subject', 'part');
  const result = await one.sendEvent(message);
  assert.equal(result.constructor.name, 'MessageEnqueued');
  await one.sendEvent(new Message(''));
  await one.sendEvent(new Message(Buffer.alloc(65536 - 512, 1)));
  await Promise.all(Array.from({ length: 50 }, (_, number) => one.sendEvent(new Message(String(number)))));
});

test('a file goes up, and the service is told', { skip: !hub.ready.uploads }, async () => {
  const device = await makeDevice();
  const one = await opened(device);
  const receiver = (await service.getFileNotificationReceiver()).result || (await service.getFileNotificationReceiver());
  receiver.on('errorReceived', () => {});
  const notified = new Promise((resolve) => {
    receiver.on('message', async (message) => {
      const note = JSON.parse(message.data.toString());
      await receiver.complete(message);
      if (note.deviceId === device.deviceId) resolve(note);
    });
  });
  const body = Buffer.from('what happened');
  await one.uploadToBlob('today.txt', Readable.from([body]), body.length);
  const note = await notified;
  assert.equal(note.blobName, `${device.deviceId}/today.txt`);
  assert.equal(note.blobSizeInBytes, body.length);
  assert.ok(registry);
});
