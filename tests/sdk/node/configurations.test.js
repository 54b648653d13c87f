// Automatic configurations and jobs: Registry and JobClient.
'use strict';

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { Client, JobClient } = require('azure-iothub');
const { atEnd, eventually, hub, makeDevice, makeModule, opened, plain, registry, unique } = require('./lib');

const made = [];
const add = async (configuration) => {
  const id = unique('conf').toLowerCase();
  made.push(id);
  await registry.addConfiguration({ id, priority: 20, targetCondition: '', ...configuration });
  return id;
};

atEnd(async () => {
  for (const id of made) await registry.removeConfiguration(id).catch(() => {});
});

for (const entity of ['device', 'module']) {
  test(`a ${entity} configuration goes round`, async () => {
    const content = { [`${entity}Content`]: { 'properties.desired': { prop1: 'foo' } } };
    const id = await add({ content });
    const { responseBody: found } = await registry.getConfiguration(id);
    assert.equal(found.id, id);
    assert.deepEqual(found.content, content);
    const { responseBody: all } = await registry.getConfigurations();
    assert.deepEqual(all.find((one) => one.id === id).content, content);
    found.priority = 99;
    await registry.updateConfiguration(found);
    const { responseBody: changed } = await registry.getConfiguration(id);
    assert.equal(changed.priority, 99);
    await assert.rejects(registry.updateConfiguration({ ...found, priority: 98 }), { name: 'InvalidEtagError' });
    await registry.updateConfiguration({ id, content, targetCondition: '', priority: 97 }, true);
    assert.equal((await registry.getConfiguration(id)).responseBody.priority, 97);
    await registry.removeConfiguration(id);
    await assert.rejects(registry.getConfiguration(id));
  });
}

test('it reaches the twins that match', async () => {
  const site = unique('site');
  const { deviceId } = await makeDevice();
  await registry.updateTwin(deviceId, { tags: { site } }, '*');
  const id = await add({
    content: { deviceContent: { 'properties.desired.interval': 30 } },
    targetCondition: `tags.site='${site}'`,
    metrics: { queries: { mine: `SELECT deviceId FROM devices WHERE configurations.[[${'x'}]].status = 'Applied'` } },
  });
  await eventually(async () => {
    const { responseBody } = await registry.getTwin(deviceId);
    return plain(responseBody.properties.desired).interval === 30;
  }, 'the configuration');
  await eventually(async () => {
    const { responseBody } = await registry.getConfiguration(id);
    return responseBody.systemMetrics.results.appliedCount === 1;
  }, 'the count');
  await registry.removeConfiguration(id);
  await eventually(async () => {
    const { responseBody } = await registry.getTwin(deviceId);
    return plain(responseBody.properties.desired).interval === undefined;
  }, 'the removal');
});

test('content is applied to one device', async () => {
  const edge = await makeDevice({ capabilities: { iotEdge: true } });
  const module = await makeModule(edge.deviceId, 'worker');
  await registry.applyConfigurationContentOnDevice(edge.deviceId, {
    modulesContent: {
      $edgeAgent: { 'properties.desired': { schemaVersion: '1.1' } },
      $edgeHub: { 'properties.desired': { schemaVersion: '1.1' } },
      worker: { 'properties.desired': { speed: 4 } },
    },
  });
  const { responseBody } = await registry.getModuleTwin(edge.deviceId, module.moduleId);
  assert.equal(responseBody.properties.desired.speed, 4);
});

const jobs = JobClient.fromConnectionString(hub.service);
const service = Client.fromConnectionString(hub.service);
const reached = (jobId, status) =>
  eventually(async () => {
    const { jobStatus } = await jobs.getJob(jobId);
    return jobStatus.status === status && jobStatus;
  }, `the job's ${status}`, 60000);

test('a twin update for all that match', async () => {
  const { deviceId } = await makeDevice();
  const jobId = unique('job');
  const patch = { etag: '*', tags: { key: 'value2' }, properties: { desired: {}, reported: {} } };
  await jobs.scheduleTwinUpdate(jobId, `deviceId = '${deviceId}'`, patch, new Date(), 120);
  const job = await reached(jobId, 'completed');
  assert.equal(job.deviceJobStatistics.succeededCount, 1);
  const { responseBody } = await registry.getTwin(deviceId);
  assert.equal(responseBody.tags.key, 'value2');
});

test('a method for all that match', async () => {
  const device = await makeDevice();
  const client = await opened(device);
  const calls = [];
  client.onDeviceMethod('testMethod', (request, response) => {
    calls.push(request.payload);
    response.send(200);
  });
  // A job's call does not wait for a device that has yet to subscribe, and `onDeviceMethod` does not tell when it has.
  client.onDeviceMethod('ready', (_, response) => response.send(200));
  await service.invokeDeviceMethod(device.deviceId, { methodName: 'ready', connectTimeoutInSeconds: 60 });
  const jobId = unique('job');
  await jobs.scheduleDeviceMethod(jobId, `deviceId = '${device.deviceId}'`,
    { methodName: 'testMethod', payload: null, timeoutInSeconds: 30 }, new Date(), 120);
  await reached(jobId, 'completed');
  assert.equal(calls.length, 1);
  const query = registry.createQuery(`SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '${jobId}'`);
  const { result } = await query.next();
  assert.equal(result.length, 1);
  assert.equal(result[0].deviceId, device.deviceId);
  assert.equal(result[0].status, 'completed');
});

test('jobs of the future are queued, listed and cancelled', async () => {
  const { deviceId } = await makeDevice();
  const later = new Date(Date.now() + 3600000);
  const twinJob = unique('job');
  const methodJob = unique('job');
  const patch = { etag: '*', tags: {}, properties: { desired: {}, reported: {} } };
  const { jobStatus: first } = await jobs.scheduleTwinUpdate(twinJob, `deviceId = '${deviceId}'`, patch, later, 120);
  const { jobStatus: second } = await jobs.scheduleDeviceMethod(methodJob, `deviceId = '${deviceId}'`,
    { methodName: 'm', payload: null }, later, 120);
  assert.deepEqual([first.jobId, first.status, second.jobId, second.status], [twinJob, 'queued', methodJob, 'queued']);
  const query = jobs.createQuery('scheduleUpdateTwin', 'queued', 100);
  const { result } = await query.next();
  assert.ok(result.some((one) => one.jobId === twinJob));
  assert.ok(!result.some((one) => one.jobId === methodJob));
  for (const jobId of [twinJob, methodJob]) {
    await jobs.cancelJob(jobId);
    await reached(jobId, 'cancelled');
  }
  await assert.rejects(jobs.getJob(unique('nobody')));
});
