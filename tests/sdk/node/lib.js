// The hub under test, as the runner (tools/sdk-tests.sh) describes it, and what the suites share.
'use strict';

const { execFileSync } = require('node:child_process');
const crypto = require('node:crypto');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { after } = require('node:test');

const { Registry } = require('azure-iothub');
const { NoRetry } = require('azure-iot-common');
const { Client: DeviceClient, ModuleClient } = require('azure-iot-device');
const { Mqtt } = require('azure-iot-device-mqtt');

const parts = (text) =>
  Object.fromEntries(text.split(';').map((part) => [part.slice(0, part.indexOf('=')), part.slice(part.indexOf('=') + 1)]));

const ready = JSON.parse(fs.readFileSync(process.env.FLEETWAVE_READY, 'utf8'));
const service = ready.service_connection_string;
const { HostName: host, SharedAccessKey: hubKey, SharedAccessKeyName: policy } = parts(service);

const hub = {
  ready,
  service,
  host,
  hubKey,
  policy,
  provisioning: ready.provisioning_connection_string || service,
  ca: fs.readFileSync(ready.ca, 'utf8'),
  run: (action) => execFileSync(process.env.FLEETWAVE_HUB_CONTROL, [action]),
};

const unique = (prefix) => `${prefix}-${crypto.randomUUID().slice(0, 13)}`;
const newKey = () => crypto.randomBytes(32).toString('base64');

const registry = Registry.fromConnectionString(service);
const made = [];
const clients = [];

/** A device that is deleted when the file's tests are done. */
async function makeDevice(description = {}) {
  const deviceId = description.deviceId || unique('node');
  made.push(deviceId);
  const { responseBody } = await registry.create({ ...description, deviceId });
  const key = responseBody.authentication.symmetricKey.primaryKey;
  return {
    deviceId,
    key,
    identity: responseBody,
    connectionString: `HostName=${host};DeviceId=${deviceId};SharedAccessKey=${key}`,
  };
}

async function makeModule(deviceId, moduleId = 'sensor') {
  await registry.addModule({ deviceId, moduleId });
  const { responseBody } = await registry.getModule(deviceId, moduleId);
  const key = responseBody.authentication.symmetricKey.primaryKey;
  return {
    deviceId,
    moduleId,
    key,
    identity: responseBody,
    connectionString: `HostName=${host};DeviceId=${deviceId};ModuleId=${moduleId};SharedAccessKey=${key}`,
  };
}

/** A device's or module's client, not opened; closed when the file's tests are done. */
function client(who, Transport = Mqtt) {
  const text = typeof who === 'string' ? who : who.connectionString;
  const Kind = text.includes('ModuleId=') ? ModuleClient : DeviceClient;
  return keep(Kind.fromConnectionString(text, Transport));
}

function keep(one) {
  one.on('error', () => {});
  clients.push(one);
  return one;
}

async function opened(who, Transport = Mqtt) {
  const one = client(who, Transport);
  await one.open();
  return one;
}

const forget = (deviceId) => made.push(deviceId);

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Polls until `check` gives something true. */
async function eventually(check, what = 'it', timeout = 60000) {
  const end = Date.now() + timeout;
  for (;;) {
    const last = await check();
    if (last) return last;
    if (Date.now() > end) throw new Error(`${what} did not happen within ${timeout} ms, last seen ${JSON.stringify(last)}`);
    await sleep(50);
  }
}

/** The promise of an event's first argument. */
const next = (emitter, event, timeout = 60000) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no '${event}' within ${timeout} ms`)), timeout);
    emitter.once(event, (...args) => {
      clearTimeout(timer);
      resolve(args.length > 1 ? args : args[0]);
    });
  });

/** A call with a callback as a promise. */
const call = (object, method, ...args) =>
  new Promise((resolve, reject) => object[method](...args, (error, result) => (error ? reject(error) : resolve(result))));

/** The twin of an open client, which hears of each change of desired properties from now on: `on` alone does not tell when. */
async function listening(one) {
  const twin = await one.getTwin();
  await call(twin, 'enableTwinDesiredPropertiesUpdates');
  return twin;
}

/** Without methods, and without the members that begin with `$`. */
const plain = (properties) => {
  const json = JSON.parse(JSON.stringify(properties));
  return Object.fromEntries(Object.entries(json).filter(([key]) => !key.startsWith('$')));
};

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fleetwave-node-'));

/** A self-signed certificate, or one that `issuer` signed. */
function certificate(commonName, { issuer, authority = false } = {}) {
  const file = path.join(folder, unique('c'));
  const openssl = (...args) => execFileSync('openssl', args, { stdio: ['ignore', 'pipe', 'ignore'] }).toString();
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', `${file}.key`];
  const basic = `basicConstraints=critical,CA:${authority ? 'TRUE' : 'FALSE'}`;
  if (issuer) {
    fs.writeFileSync(`${file}.ext`, basic);
    openssl('req', ...key, '-subj', `/CN=${commonName}`, '-out', `${file}.csr`);
    openssl('x509', '-req', '-in', `${file}.csr`, '-CA', issuer.certificateFile, '-CAkey', issuer.keyFile,
      '-set_serial', `0x${crypto.randomBytes(8).toString('hex')}`, '-days', '2', '-extfile', `${file}.ext`, '-out', `${file}.pem`);
  } else {
    openssl('req', '-x509', ...key, '-days', '2', '-subj', `/CN=${commonName}`, '-addext', basic, '-out', `${file}.pem`);
  }
  const cert = fs.readFileSync(`${file}.pem`, 'utf8');
  return {
    cert,
    key: fs.readFileSync(`${file}.key`, 'utf8'),
    thumbprint: new crypto.X509Certificate(cert).fingerprint.replaceAll(':', ''),
    certificateFile: `${file}.pem`,
    keyFile: `${file}.key`,
  };
}

const deviceCa = process.env.FLEETWAVE_DEVICE_CA && {
  certificateFile: process.env.FLEETWAVE_DEVICE_CA,
  keyFile: process.env.FLEETWAVE_DEVICE_CA_KEY,
};

const endings = [];

/** What a file has to clear away itself. Not with `after`: that would run when the process is about to end already. */
const atEnd = (step) => endings.push(step);

after(async () => {
  for (const step of endings) await step();
  for (const one of clients) {
    one.removeAllListeners();
    one.on('error', () => {});
    await Promise.race([one.close().catch(() => {}), sleep(5000)]);
  }
  for (let start = 0; start < made.length; start += 100) {
    const batch = [...new Set(made)].slice(start, start + 100).map((deviceId) => ({ deviceId }));
    if (batch.length) await registry.removeDevices(batch, true).catch(() => {});
  }
  fs.rmSync(folder, { recursive: true, force: true });
  // The SDKs keep timers and sockets of their own.
  setTimeout(() => process.exit(), 500).unref();
});

module.exports = {
  atEnd, call, certificate, client, DeviceClient, deviceCa, eventually, forget, hub, keep, listening, makeDevice,
  makeModule, ModuleClient, Mqtt, newKey, next, NoRetry, opened, plain, registry, sleep, unique,
};
