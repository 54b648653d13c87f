// C2D sending and feedback over AMQP, as far as a receiver's settling and a client's refusals go.
'use strict';

const assert = require('node:assert/strict');
const crypto = require('node:crypto');
const { before, test } = require('node:test');
const { Client } = require('azure-iothub');
const { Message } = require('azure-iot-common');
const { atEnd, call, eventually, hub, makeDevice, opened, unique } = require('./lib');

const service = Client.fromConnectionString(hub.service);
let feedback;
// What to do with feedback that comes; by default it is completed.
let decide = () => 'complete';
const records = [];

before(async () => {
  await service.open();
  feedback = await call(service, 'getFeedbackReceiver');
  feedback.on('errorReceived', () => {});
  feedback.on('message', (message) => {
    const batch = JSON.parse(message.data.toString());
    records.push(...batch);
    feedback[decide(batch)](message).catch(() => {});
  });
});

atEnd(() => service.close());

const of = (id) => records.filter((record) => record.originalMessageId === id);

async function send(deviceId, ack, body = 'hello', id = crypto.randomUUID()) {
  const message = new Message(body);
  message.messageId = id;
  message.ack = ack;
  await service.send(deviceId, message);
  return message.messageId;
}

for (const [ack, told] of [['none', 0], ['positive', 1], ['negative', 0], ['full', 1]]) {
  test(`with ack=${ack} there is ${told ? 'a' : 'no'} record of success`, async () => {
    const device = await makeDevice();
    const one = await opened(device);
    const got = [];
    one.on('message', (message) => {
      got.push(message);
      one.complete(message);
    });
    const id = await send(device.deviceId, ack);
    await eventually(() => got.length === 1, 'the message');
    // What is told, is told in order: the record of a later message says that there is none of this one.
    const later = await send(device.deviceId, 'full');
    await eventually(() => of(later).length === 1, 'the later record');
    assert.equal(of(id).length, told);
    for (const record of of(id)) {
      assert.equal(record.statusCode, 'Success');
      assert.equal(record.deviceId, device.deviceId);
      assert.equal(record.deviceGenerationId, device.identity.generationId);
      assert.ok(Math.abs(Date.now() - Date.parse(record.enqueuedTimeUtc)) < 60000);
    }
  });
}

test('abandoned feedback comes again', async () => {
  const device = await makeDevice();
  const one = await opened(device);
  one.on('message', (message) => one.complete(message));
  // Known before it is sent: the record may be here before the sending is confirmed.
  const id = crypto.randomUUID();
  decide = (batch) => (batch.some((record) => record.originalMessageId === id) && of(id).length === 1 ? 'abandon' : 'complete');
  try {
    await send(device.deviceId, 'full', 'hello', id);
    await eventually(() => of(id).length === 2, 'the record again');
  } finally {
    decide = () => 'complete';
  }
});

test('an expired message is told of', async () => {
  const device = await makeDevice();
  const message = new Message('too late');
  message.messageId = crypto.randomUUID();
  message.ack = 'negative';
  message.expiryTimeUtc = Date.now() + 1000;
  await service.send(device.deviceId, message);
  await eventually(() => of(message.messageId).length === 1, 'the record');
  assert.equal(of(message.messageId)[0].statusCode, 'Expired');
});

// By name: the package has its own copies of the classes.
test('refusals have their error classes', async () => {
  const device = await makeDevice();
  await assert.rejects(send(unique('nobody'), 'none'), { name: 'DeviceNotFoundError' });
  await assert.rejects(send(device.deviceId, 'none', 'x'.repeat(70000)), { name: 'MessageTooLargeError' });
  for (let number = 0; number < 50; number += 1) await send(device.deviceId, 'none');
  await assert.rejects(send(device.deviceId, 'none'), { name: 'DeviceMaximumQueueDepthExceededError' });
  // The link survives all of them.
  const other = await makeDevice();
  const one = await opened(other);
  const got = [];
  one.on('message', (message) => got.push(message));
  await send(other.deviceId, 'none');
  await eventually(() => got.length === 1, 'the message');
});

test('many at once keep their order', async () => {
  const device = await makeDevice();
  const one = await opened(device);
  const got = [];
  one.on('message', (message) => {
    got.push(message.data.toString());
    one.complete(message);
  });
  const bodies = Array.from({ length: 40 }, (_, number) => String(number));
  await Promise.all(bodies.map((body) => send(device.deviceId, 'none', body)));
  await eventually(() => got.length === 40, 'all');
  assert.deepEqual(got, bodies);
});

test('a client that closes and opens again is served', async () => {
  const own = Client.fromConnectionString(hub.service);
  const device = await makeDevice();
  for (let round = 0; round < 3; round += 1) {
    await own.open();
    await own.send(device.deviceId, new Message(`round ${round}`));
    await own.close();
  }
});

test('a wrong key opens nothing', async () => {
  const wrong = Client.fromConnectionString(hub.service.replace(hub.hubKey, crypto.randomBytes(32).toString('base64')));
  await assert.rejects(wrong.open(), (error) => error.amqpError.name === 'UnauthorizedError');
});
