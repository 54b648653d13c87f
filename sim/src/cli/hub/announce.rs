//! What a hub says when it is ready.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use fleetwave_hub::HubServer;
use serde_json::json;

use super::args::{Place, Serve, TierName};
use super::home::{Home, Keys};

/// The port that HTTPS clients use if they are told none.
const HTTPS: u16 = 443;

/// What there is to know about a running hub.
pub(super) struct Ready {
    names: Vec<String>,
    service: String,
    provisioning: String,
    /// For clients of Event Hubs, which know no other port than 5671.
    events: String,
    id_scope: String,
    ca: PathBuf,
    state: PathBuf,
    data: Option<PathBuf>,
    /// The arguments that other commands need to find this hub.
    place: String,
    tier: TierName,
    units: u32,
    mqtt: Option<SocketAddr>,
    https: Option<SocketAddr>,
    amqps: Option<SocketAddr>,
    plain_mqtt: Option<SocketAddr>,
    bus: Option<SocketAddr>,
    /// Where releases are offered.
    releases: Option<SocketAddr>,
    /// Whether devices can upload files.
    uploads: bool,
    admin: SocketAddr,
    address: IpAddr,
    /// How many scripted devices there are, and the id of the first.
    scripted: Option<(u64, String)>,
}

impl Ready {
    pub(super) fn of(
        arguments: &Serve,
        hub: &HubServer,
        home: &Home,
        keys: &Keys,
        names: &[String],
        admin: SocketAddr,
        scripted: Option<(u64, String)>,
    ) -> Self {
        let https = hub.https_address();
        // Only some clients take a port there, but none finds the hub without it.
        let host = match https {
            Some(address) if address.port() != HTTPS => format!("{}:{}", names[0], address.port()),
            _ => names[0].clone(),
        };
        let service = keys.service_connection_string(&host);
        let key = service.split_once(';').map_or("", |(_, key)| key);
        let events = format!("Endpoint=sb://{}/;{key};EntityPath={}", names[0], hub.cloud_events().name());
        Self {
            names: names.to_vec(),
            service,
            events,
            provisioning: keys.provisioning_connection_string(&host),
            id_scope: keys.id_scope.clone(),
            ca: home.ca(),
            state: home.state.clone(),
            data: home.data.clone(),
            place: place(&arguments.place),
            tier: arguments.tier,
            units: arguments.units.unwrap_or(1),
            mqtt: hub.tls_address(),
            https,
            amqps: hub.amqps_address(),
            plain_mqtt: hub.address(),
            bus: hub.bus_address(),
            uploads: hub.takes_uploads(),
            admin,
            address: arguments.bind,
            scripted,
            releases: None,
        }
    }

    /// With the place where releases are offered.
    pub(super) fn offering(self, releases: Option<SocketAddr>) -> Self {
        Self { releases, ..self }
    }

    /// For machines: one line.
    pub(super) fn json(&self) -> String {
        let port = |address: Option<SocketAddr>| address.map(|address| address.port());
        let ready = json!({
            "event": "ready",
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "hub_name": self.names[0],
            "names": self.names,
            "service_connection_string": self.service,
            "provisioning_connection_string": self.provisioning,
            "events_connection_string": self.events,
            "id_scope": self.id_scope,
            "ca": self.ca,
            "data": self.data,
            "address": self.address,
            "mqtt_port": port(self.mqtt),
            "https_port": port(self.https),
            "amqps_port": port(self.amqps),
            "plain_mqtt_port": port(self.plain_mqtt),
            "scripted_devices": self.scripted.as_ref().map(|(count, _)| count),
            "bus_port": port(self.bus),
            "releases_port": port(self.releases),
            "uploads": self.uploads,
            "admin": format!("http://{}", self.admin),
        });
        format!("{ready}\n")
    }
}

/// For machines: the hub is about to end, and why if it was not asked to.
pub(super) fn event(problem: Option<&str>) -> String {
    let event = match problem {
        None => json!({ "event": "draining" }),
        Some(problem) => json!({ "event": "failed", "problem": problem }),
    };
    format!("{event}\n")
}

/// For people. Lines have at most 100 columns, as far as names and paths let them.
pub(super) fn table(ready: &Ready) -> String {
    let mut text = format!("fleetwave hub {} is ready; Ctrl-C ends it\n\n", env!("CARGO_PKG_VERSION"));
    let mut row = |name: &str, value: &str| {
        writeln!(text, "  {name:<14}{value}").expect("a string takes everything");
    };
    let at = |address: Option<SocketAddr>| address.map_or("not served".to_owned(), |at| at.to_string());
    row("names", &ready.names.join(", "));
    row("MQTT", &format!("{}, TLS", at(ready.mqtt)));
    if ready.plain_mqtt.is_some() {
        row("", &format!("{}, without TLS", at(ready.plain_mqtt)));
    }
    row("HTTPS", &format!("{}, MQTT over WebSocket, too", at(ready.https)));
    row("AMQP", &format!("{}, TLS", at(ready.amqps)));
    if ready.bus.is_some() {
        row("event bus", &format!("{}, MQTT without TLS, fleetwave/events/#", at(ready.bus)));
    }
    if ready.releases.is_some() {
        row("releases", &format!("{}, HTTPS", at(ready.releases)));
    }
    row("admin", &format!("http://{}/healthz, /metrics, /ca.pem", ready.admin));
    row("limits", &limits(ready));
    row("certificate", &ready.ca.display().to_string());
    row("keys", &ready.state.join("keys.json").display().to_string());
    match &ready.data {
        Some(data) => row("devices", &format!("kept in {}", data.display())),
        None => row("devices", "in memory: they are gone when it ends (--data DIR keeps them)"),
    }
    if let Some((count, first)) = &ready.scripted {
        row("", &format!("{count} of them scripted, from {first} on"));
    }
    row("DPS id scope", &ready.id_scope);
    write!(
        text,
        "
Connection string of the service, with all rights:
{}

Connection string of the provisioning service:
{}

To create a device, and get its connection string:
  fleetwave hub device add my-device{}

To make the hub's certificate known, with its path above as CA:
  Python  azure-iot-device   server_verification_cert=open(CA).read()
          azure-iot-hub      REQUESTS_CA_BUNDLE=CA
  Node    azure-iot-device   client.setOptions({{ ca: fs.readFileSync(CA, 'utf8') }})
          azure-iothub       NODE_EXTRA_CA_CERTS=CA
  Others  docs/sdks.md
",
        ready.service, ready.provisioning, ready.place,
    )
    .expect("a string takes everything");
    text
}

fn limits(ready: &Ready) -> String {
    let units = if ready.units == 1 { "1 unit".to_owned() } else { format!("{} units", ready.units) };
    match ready.tier {
        TierName::None => "none (--tier S1 keeps IoT Hub's)".to_owned(),
        TierName::S1 => format!("those of S1, {units}"),
        TierName::S2 => format!("those of S2, {units}"),
        TierName::S3 => format!("those of S3, {units}"),
    }
}

/// The arguments of a place, as they were given.
fn place(place: &Place) -> String {
    let mut text = String::new();
    for (option, value) in [("--data", &place.data), ("--cert-dir", &place.cert_dir)] {
        if let Some(path) = value {
            write!(text, " {option} {}", path.display()).expect("a string takes everything");
        }
    }
    text
}
