import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.microsoft.azure.sdk.iot.device.DeviceClient;
import com.microsoft.azure.sdk.iot.device.IotHubClientProtocol;
import com.microsoft.azure.sdk.iot.device.IotHubMessageResult;
import com.microsoft.azure.sdk.iot.device.IotHubStatusCode;
import com.microsoft.azure.sdk.iot.device.ModuleClient;
import com.microsoft.azure.sdk.iot.device.exceptions.IotHubClientException;
import com.microsoft.azure.sdk.iot.device.transport.NoRetry;
import com.microsoft.azure.sdk.iot.device.twin.DirectMethodResponse;
import com.microsoft.azure.sdk.iot.device.twin.TwinCollection;
import com.microsoft.azure.sdk.iot.service.auth.AuthenticationType;
import com.microsoft.azure.sdk.iot.service.configurations.Configuration;
import com.microsoft.azure.sdk.iot.service.configurations.ConfigurationContent;
import com.microsoft.azure.sdk.iot.service.configurations.ConfigurationMetrics;
import com.microsoft.azure.sdk.iot.service.configurations.ConfigurationsClient;
import com.microsoft.azure.sdk.iot.service.exceptions.IotHubConflictException;
import com.microsoft.azure.sdk.iot.service.exceptions.IotHubGatewayTimeoutException;
import com.microsoft.azure.sdk.iot.service.exceptions.IotHubNotFoundException;
import com.microsoft.azure.sdk.iot.service.exceptions.IotHubPreconditionFailedException;
import com.microsoft.azure.sdk.iot.service.exceptions.IotHubUnauthorizedException;
import com.microsoft.azure.sdk.iot.service.jobs.ScheduledJob;
import com.microsoft.azure.sdk.iot.service.jobs.ScheduledJobStatus;
import com.microsoft.azure.sdk.iot.service.jobs.ScheduledJobType;
import com.microsoft.azure.sdk.iot.service.jobs.ScheduledJobsClient;
import com.microsoft.azure.sdk.iot.service.messaging.AcknowledgementType;
import com.microsoft.azure.sdk.iot.service.messaging.DeliveryAcknowledgement;
import com.microsoft.azure.sdk.iot.service.messaging.FeedbackStatusCode;
import com.microsoft.azure.sdk.iot.service.messaging.IotHubServiceClientProtocol;
import com.microsoft.azure.sdk.iot.service.messaging.MessageFeedbackProcessorClient;
import com.microsoft.azure.sdk.iot.service.messaging.MessagingClient;
import com.microsoft.azure.sdk.iot.service.methods.DirectMethodRequestOptions;
import com.microsoft.azure.sdk.iot.service.methods.DirectMethodsClient;
import com.microsoft.azure.sdk.iot.service.query.JobQueryResponse;
import com.microsoft.azure.sdk.iot.service.query.QueryClient;
import com.microsoft.azure.sdk.iot.service.query.QueryPageOptions;
import com.microsoft.azure.sdk.iot.service.query.RawQueryResponse;
import com.microsoft.azure.sdk.iot.service.query.TwinQueryResponse;
import com.microsoft.azure.sdk.iot.service.registry.Device;
import com.microsoft.azure.sdk.iot.service.registry.DeviceStatus;
import com.microsoft.azure.sdk.iot.service.registry.Module;
import com.microsoft.azure.sdk.iot.service.registry.RegistryClient;
import com.microsoft.azure.sdk.iot.service.twin.Twin;
import com.microsoft.azure.sdk.iot.service.twin.TwinClient;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Date;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.Callable;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** The vendor's Java SDKs, unmodified. They refuse a host name without a dot, so the hub is called 127.0.0.1 here. */
@Timeout(240)
class HubTest {
    private static final String HOST = "127.0.0.1";
    private static final String SERVICE = service();
    /** How long an answer about a twin may take, in milliseconds. */
    private static final int ANSWER_MS = 10_000;

    private final RegistryClient registry = new RegistryClient(SERVICE);
    private final TwinClient twins = new TwinClient(SERVICE);
    private final DirectMethodsClient methods = new DirectMethodsClient(SERVICE);
    private final List<String> made = new ArrayList<>();
    private final List<DeviceClient> open = new ArrayList<>();

    private static String service() {
        try {
            JsonObject ready = JsonParser.parseString(Files.readString(Path.of(System.getenv("FLEETWAVE_READY")))).getAsJsonObject();
            return ready.get("service_connection_string").getAsString().replaceFirst("HostName=[^;]*", "HostName=" + HOST);
        } catch (Exception e) {
            throw new IllegalStateException(e);
        }
    }

    @AfterEach
    void cleanUp() throws Exception {
        for (DeviceClient client : open) {
            client.close();
        }
        for (String id : made) {
            try {
                registry.removeDevice(id);
            } catch (IotHubNotFoundException gone) {
                // A test deleted it.
            }
        }
    }

    private static String unique(String prefix) {
        return prefix + "-" + UUID.randomUUID().toString().substring(0, 13);
    }

    private Device device() throws Exception {
        Device device = registry.addDevice(new Device(unique("java")));
        made.add(device.getDeviceId());
        return device;
    }

    private static String connectionString(Device device) {
        return "HostName=" + HOST + ";DeviceId=" + device.getDeviceId() + ";SharedAccessKey=" + device.getPrimaryKey();
    }

    private DeviceClient open(Device device, IotHubClientProtocol protocol) throws Exception {
        DeviceClient client = new DeviceClient(connectionString(device), protocol);
        client.open(false);
        open.add(client);
        return client;
    }

    /**
     * What asks for an answer about a twin, asked again if none was heard. The SDK may drop an answer that it got: its
     * IotHubTransport hands a received message to a second thread, which forgets who waits for it, before the first one
     * looks that up; on a busy machine the second one now and then is faster (3 of 60 runs, with the hub having
     * answered each time).
     */
    private static <T> T heard(Callable<T> question) throws Exception {
        for (int tries = 1;; tries++) {
            try {
                return question.call();
            } catch (IotHubClientException e) {
                if (e.getStatusCode() != IotHubStatusCode.DEVICE_OPERATION_TIMED_OUT || tries == 4) {
                    throw e;
                }
            }
        }
    }

    private static <T> T eventually(Callable<T> check) throws Exception {
        long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
        while (true) {
            T found = check.call();
            if (found != null && !Boolean.FALSE.equals(found)) {
                return found;
            }
            if (System.nanoTime() > end) {
                throw new AssertionError("it did not happen within 60 s");
            }
            Thread.sleep(50);
        }
    }

    private static <T> T next(BlockingQueue<T> queue) throws InterruptedException {
        T item = queue.poll(60, TimeUnit.SECONDS);
        assertNotNull(item, "nothing came within 60 s");
        return item;
    }

    @Test
    void devicesGoRound() throws Exception {
        Device device = device();
        assertEquals(AuthenticationType.SAS, device.getAuthenticationType());
        assertEquals(DeviceStatus.Enabled, device.getStatus());
        assertNotNull(device.getPrimaryKey());
        assertEquals(device.getPrimaryKey(), registry.getDevice(device.getDeviceId()).getPrimaryKey());
        device.setStatus(DeviceStatus.Disabled);
        Device changed = registry.updateDevice(device);
        assertEquals(DeviceStatus.Disabled, changed.getStatus());
        assertNotEquals(device.getETag(), changed.getETag());
        assertThrows(IotHubPreconditionFailedException.class, () -> registry.removeDevice(device));
        assertThrows(IotHubConflictException.class, () -> registry.addDevice(new Device(device.getDeviceId())));
        registry.removeDevice(changed);
        assertThrows(IotHubNotFoundException.class, () -> registry.getDevice(device.getDeviceId()));
    }

    @Test
    void devicesWithCertificates() throws Exception {
        Device byPrint = new Device(unique("java"), AuthenticationType.SELF_SIGNED);
        byPrint.setThumbprint("A".repeat(40), "B".repeat(40));
        made.add(byPrint.getDeviceId());
        assertEquals("A".repeat(40), registry.addDevice(byPrint).getPrimaryThumbprint());
        Device byAuthority = new Device(unique("java"), AuthenticationType.CERTIFICATE_AUTHORITY);
        made.add(byAuthority.getDeviceId());
        assertEquals(AuthenticationType.CERTIFICATE_AUTHORITY, registry.addDevice(byAuthority).getAuthenticationType());
    }

    @Test
    void modulesGoRound() throws Exception {
        Device device = device();
        Module module = registry.addModule(new Module(device.getDeviceId(), "one"));
        assertEquals(1, registry.getModulesOnDevice(device.getDeviceId()).size());
        assertEquals(module.getPrimaryKey(), registry.getModule(device.getDeviceId(), "one").getPrimaryKey());
        Twin twin = twins.get(device.getDeviceId(), "one");
        assertEquals("one", twin.getModuleId());
        registry.removeModule(device.getDeviceId(), "one");
        assertThrows(IotHubNotFoundException.class, () -> registry.getModule(device.getDeviceId(), "one"));
    }

    @Test
    void statistics() throws Exception {
        long before = registry.getStatistics().getTotalDeviceCount();
        device();
        assertEquals(before + 1, registry.getStatistics().getTotalDeviceCount());
    }

    @Test
    void aWrongKeyIsUnauthorised() {
        RegistryClient wrong = new RegistryClient(SERVICE.replaceFirst("SharedAccessKey=.*", "SharedAccessKey=c29tZXRoaW5nIGVsc2UgYWx0b2dldGhlcg=="));
        assertThrows(IotHubUnauthorizedException.class, () -> wrong.getDevice("anything"));
    }

    @Test
    void twinsArePatchedAndReplaced() throws Exception {
        Device device = device();
        Twin twin = new Twin(device.getDeviceId());
        twin.getTags().put("site", "a");
        twin.getDesiredProperties().put("rate", 5);
        Twin patched = twins.patch(twin);
        assertEquals("a", patched.getTags().get("site"));
        assertEquals(5.0, ((Number) patched.getDesiredProperties().get("rate")).doubleValue());
        assertEquals(2, patched.getDesiredProperties().getVersion());
        assertNotNull(patched.getDesiredProperties().getTwinMetadata("rate").getLastUpdated());
        assertThrows(IotHubPreconditionFailedException.class, () -> twins.patch(twin, "c3RhbGU="));
        // Without that argument a patch is unconditional: no If-Match is sent.
        twin.setETag("c3RhbGU=");
        assertEquals(3, twins.patch(twin).getDesiredProperties().getVersion());
        Twin other = new Twin(device.getDeviceId());
        other.getDesiredProperties().put("only", true);
        Twin replaced = twins.replace(other);
        assertFalse(replaced.getDesiredProperties().containsKey("rate"));
        assertNull(replaced.getTags().get("site"));
    }

    @ParameterizedTest
    @EnumSource(value = IotHubClientProtocol.class, names = {"MQTT", "MQTT_WS"})
    void aDeviceDoesEverything(IotHubClientProtocol protocol) throws Exception {
        Device device = device();
        DeviceClient client = open(device, protocol);

        client.sendEvent(new com.microsoft.azure.sdk.iot.device.Message("telemetry"));
        com.microsoft.azure.sdk.iot.device.Message rich = new com.microsoft.azure.sdk.iot.device.Message("{}");
        rich.setMessageId("m-1");
        rich.setCorrelationId("c-1");
        rich.setContentType("application/json");
        rich.setContentEncoding("utf-8");
        rich.setProperty("odd key", "odd & value");
        client.sendEvent(rich);

        BlockingQueue<com.microsoft.azure.sdk.iot.device.twin.Twin> patches = new LinkedBlockingQueue<>();
        client.subscribeToDesiredProperties((twin, context) -> patches.add(twin), null);
        Twin change = new Twin(device.getDeviceId());
        change.getDesiredProperties().put("color", "red");
        twins.patch(change);
        assertEquals("red", next(patches).getDesiredProperties().get("color"));

        com.microsoft.azure.sdk.iot.device.twin.Twin own = heard(() -> client.getTwin(ANSWER_MS));
        assertEquals(2, own.getDesiredProperties().getVersion());
        heard(() -> {
            TwinCollection report = client.getTwin(ANSWER_MS).getReportedProperties();
            int read = report.getVersion();
            report.put("speed", 7);
            int written = client.updateReportedProperties(report, ANSWER_MS).getVersion();
            assertEquals(read + 1, written);
            return written;
        });
        // A second report on the first version is stale: the client sends the version that it read.
        TwinCollection stale = new TwinCollection();
        stale.setVersion(1);
        stale.put("speed", 8);
        IotHubClientException refused = assertThrows(IotHubClientException.class,
            () -> heard(() -> client.updateReportedProperties(stale, ANSWER_MS)));
        assertEquals(IotHubStatusCode.PRECONDITION_FAILED, refused.getStatusCode());
        assertEquals(7.0, ((Number) twins.get(device.getDeviceId()).getReportedProperties().get("speed")).doubleValue());

        client.subscribeToMethods((name, payload, context) -> new DirectMethodResponse(207, Map.of("echo", payload.getPayloadAsJsonString())), null);
        var answer = methods.invoke(device.getDeviceId(), "reboot",
            DirectMethodRequestOptions.builder().payload("now").methodConnectTimeoutSeconds(10).methodResponseTimeoutSeconds(10).build());
        assertEquals(207, answer.getStatus());
        assertEquals("{\"echo\":\"\\\"now\\\"\"}", answer.getPayloadAsJsonString());
    }

    @Test
    void methodErrorsTellTheirCodes() throws Exception {
        Device device = device();
        IotHubNotFoundException away = assertThrows(IotHubNotFoundException.class, () -> methods.invoke(device.getDeviceId(), "m",
            DirectMethodRequestOptions.builder().methodConnectTimeoutSeconds(0).build()));
        assertEquals(404103, away.getErrorCode());
        DeviceClient client = open(device, IotHubClientProtocol.MQTT);
        client.subscribeToMethods((name, payload, context) -> {
            try {
                Thread.sleep(7000);
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
            return new DirectMethodResponse(200, null);
        }, null);
        assertThrows(IotHubGatewayTimeoutException.class, () -> methods.invoke(device.getDeviceId(), "slow",
            DirectMethodRequestOptions.builder().methodResponseTimeoutSeconds(5).build()));
    }

    @ParameterizedTest
    @EnumSource(IotHubServiceClientProtocol.class)
    void messagesGoToDevicesAndFeedbackComesBack(IotHubServiceClientProtocol protocol) throws Exception {
        Device device = device();
        DeviceClient client = open(device, IotHubClientProtocol.MQTT);
        BlockingQueue<com.microsoft.azure.sdk.iot.device.Message> got = new LinkedBlockingQueue<>();
        client.setMessageCallback((message, context) -> {
            got.add(message);
            return IotHubMessageResult.COMPLETE;
        }, null);

        Set<String> succeeded = Collections.synchronizedSet(new HashSet<>());
        MessageFeedbackProcessorClient feedback = new MessageFeedbackProcessorClient(SERVICE, protocol, batch -> {
            batch.getRecords().stream().filter(record -> record.getStatusCode() == FeedbackStatusCode.success)
                .forEach(record -> succeeded.add(record.getOriginalMessageId()));
            return AcknowledgementType.COMPLETE;
        });
        feedback.start();
        MessagingClient messaging = new MessagingClient(SERVICE, protocol);
        messaging.open();
        var message = new com.microsoft.azure.sdk.iot.service.messaging.Message("hello");
        String id = UUID.randomUUID().toString();
        message.setMessageId(id);
        message.setCorrelationId("c-1");
        message.setDeliveryAcknowledgement(DeliveryAcknowledgement.Full);
        message.setProperties(new HashMap<>(Map.of("plain", "yes")));
        messaging.send(device.getDeviceId(), message);
        var arrived = next(got);
        assertEquals("hello", new String(arrived.getBytes()));
        assertEquals(id, arrived.getMessageId());
        assertEquals("yes", arrived.getProperty("plain"));
        eventually(() -> succeeded.contains(id));
        assertThrows(IotHubNotFoundException.class,
            () -> messaging.send(unique("nobody"), new com.microsoft.azure.sdk.iot.service.messaging.Message("x")));
        messaging.close();
        feedback.stop();
    }

    @Test
    void whoIsNobodyIsTurnedAway() throws Exception {
        Device device = device();
        for (String text : List.of(
            connectionString(device).replaceFirst("SharedAccessKey=.*", "SharedAccessKey=c29tZXRoaW5nIGVsc2UgYWx0b2dldGhlcg=="),
            connectionString(device).replace(device.getDeviceId(), unique("nobody")))) {
            DeviceClient client = new DeviceClient(text, IotHubClientProtocol.MQTT);
            client.setRetryPolicy(new NoRetry());
            IotHubClientException refused = assertThrows(IotHubClientException.class, () -> client.open(false));
            assertEquals(IotHubStatusCode.UNAUTHORIZED, refused.getStatusCode());
            client.close();
        }
    }

    @Test
    void aModuleDoesItsPart() throws Exception {
        Device device = device();
        Module module = registry.addModule(new Module(device.getDeviceId(), "eye"));
        ModuleClient client = new ModuleClient(
            "HostName=" + HOST + ";DeviceId=" + device.getDeviceId() + ";ModuleId=eye;SharedAccessKey=" + module.getPrimaryKey(),
            IotHubClientProtocol.MQTT);
        client.open(false);
        client.sendEvent(new com.microsoft.azure.sdk.iot.device.Message("seen"));
        client.sendEvent(new com.microsoft.azure.sdk.iot.device.Message("seen"), "output");
        client.subscribeToMethods((name, payload, context) -> new DirectMethodResponse(200, null), null);
        assertEquals(200, methods.invoke(device.getDeviceId(), "eye", "blink",
            DirectMethodRequestOptions.builder().methodConnectTimeoutSeconds(10).methodResponseTimeoutSeconds(10).build()).getStatus());
        client.close();
    }

    @Test
    void queriesGoOverPages() throws Exception {
        String site = unique("site");
        Set<String> ids = new HashSet<>();
        for (int number = 0; number < 5; number++) {
            Device device = device();
            ids.add(device.getDeviceId());
            Twin twin = new Twin(device.getDeviceId());
            twin.getTags().put("site", site);
            twins.patch(twin);
        }
        QueryClient queries = new QueryClient(SERVICE);
        TwinQueryResponse response = queries.queryTwins("SELECT * FROM devices WHERE tags.site='" + site + "'",
            QueryPageOptions.builder().pageSize(2).build());
        Set<String> found = new HashSet<>();
        while (response.hasNext()) {
            found.add(response.next().getDeviceId());
        }
        assertEquals(ids, found);
        RawQueryResponse raw = queries.queryRaw("SELECT COUNT() AS n FROM devices WHERE tags.site='" + site + "'");
        assertTrue(raw.hasNext());
        assertEquals("{\"n\":5}", raw.next());
        assertFalse(raw.hasNext());
    }

    @Test
    void configurationsGoRound() throws Exception {
        ConfigurationsClient configurations = new ConfigurationsClient(SERVICE);
        String site = unique("site");
        Device device = device();
        Twin twin = new Twin(device.getDeviceId());
        twin.getTags().put("site", site);
        twins.patch(twin);
        Configuration configuration = new Configuration(unique("java").toLowerCase());
        ConfigurationContent content = new ConfigurationContent();
        content.setDeviceContent(new HashMap<>(Map.of("properties.desired.interval", 30)));
        configuration.setContent(content);
        configuration.setTargetCondition("tags.site='" + site + "'");
        configuration.setPriority(3);
        configuration.setLabels(new HashMap<>(Map.of("team", "java")));
        ConfigurationMetrics metrics = new ConfigurationMetrics();
        metrics.setQueries(new HashMap<>(Map.of("all", "SELECT deviceId FROM devices WHERE tags.site='" + site + "'")));
        configuration.setMetrics(metrics);
        Configuration created = configurations.create(configuration);
        try {
            assertNotNull(created.getEtag());
            eventually(() -> twins.get(device.getDeviceId()).getDesiredProperties().containsKey("interval"));
            eventually(() -> Long.valueOf(1).equals(configurations.get(created.getId()).getSystemMetrics().getResults().get("appliedCount")));
            assertEquals("java", configurations.get(created.getId()).getLabels().get("team"));
            assertTrue(configurations.get(100).stream().anyMatch(one -> one.getId().equals(created.getId())));
            created.setPriority(4);
            assertEquals(4, configurations.replace(created).getPriority());
        } finally {
            configurations.delete(created.getId());
        }
        eventually(() -> !twins.get(device.getDeviceId()).getDesiredProperties().containsKey("interval"));
    }

    @Test
    void jobsRunAndAreAskedFor() throws Exception {
        ScheduledJobsClient jobs = new ScheduledJobsClient(SERVICE);
        Device device = device();
        Twin update = new Twin(device.getDeviceId());
        update.setETag("*");
        update.getDesiredProperties().put("rate", 9);
        String id = unique("job");
        ScheduledJob job = jobs.scheduleUpdateTwin(id, "DeviceId IN ['" + device.getDeviceId() + "']", update, new Date(), 60);
        assertEquals(ScheduledJobType.scheduleUpdateTwin, job.getJobType());
        ScheduledJob done = eventually(() -> {
            ScheduledJob found = jobs.get(id);
            return found.getJobStatus() == ScheduledJobStatus.completed ? found : null;
        });
        assertEquals(1, done.getJobStatistics().getSucceededCount());
        assertTrue(twins.get(device.getDeviceId()).getDesiredProperties().containsKey("rate"));
        JobQueryResponse rows = jobs.query("SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '" + id + "'");
        assertTrue(rows.hasNext());
        ScheduledJob row = rows.next();
        assertEquals(device.getDeviceId(), row.getDeviceId());
        JobQueryResponse all = jobs.query(ScheduledJobType.scheduleUpdateTwin, ScheduledJobStatus.completed);
        boolean found = false;
        while (all.hasNext()) {
            found |= id.equals(all.next().getJobId());
        }
        assertTrue(found);
        String later = unique("job");
        jobs.scheduleDirectMethod(later, "DeviceId IN ['" + device.getDeviceId() + "']", "reboot", new Date(System.currentTimeMillis() + 3_600_000));
        jobs.cancel(later);
        eventually(() -> jobs.get(later).getJobStatus() == ScheduledJobStatus.cancelled);
    }
}
