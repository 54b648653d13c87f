//! `fleetwave hub --releases`: hands out the releases of a shelf to the devices whose twins ask for them.
//!
//! A device asks over MQTT for a link to a payload. It gets one if its own twin asks it to install exactly this release,
//! as the shelf has it: short-lived, for this payload alone, over HTTPS with the hub's certificate.

use std::net::SocketAddr;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use fleetwave_agent_core::FIRMWARE;
use fleetwave_agent_core::grant::{Answer, METHOD, Outcome, PROPERTIES, Request};
use fleetwave_hub::blob::{BlobControl, BlobServer, Content};
use fleetwave_hub::pki::Pki;
use fleetwave_hub::{Clock, Hooks, HubControl, MethodCall, Replies, Telemetry};
use fleetwave_protocol::{Now, WallTime};
use rand::Rng as _;
use serde_json::{Map, Value};

use super::HubError;
use crate::release::{Shelf, ShelfError};

/// How long a link is good: a device that needs more time asks again.
const LINK_LIFE: Duration = Duration::from_secs(900);
/// How long a device may take to answer the method that carries its link.
const METHOD_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests that wait; of what comes beyond, devices ask again.
const QUEUE: usize = 10_000;

/// A device's request.
struct Asked {
    device: String,
    request: Request,
}

/// Hears devices ask, on the hub's threads.
struct Ear(Sender<Asked>);

impl Hooks for Ear {
    fn telemetry(&mut self, _: Now, message: Telemetry<'_>, _: &mut Replies) {
        if message.properties.split('&').any(|property| property == PROPERTIES)
            && let Ok(request) = serde_json::from_slice(message.body)
            && self.0.try_send(Asked { device: message.device.to_owned(), request }).is_err()
        {
            tracing::warn!(device = message.device, "too many devices ask for releases at once");
        }
    }
}

/// The shelf's endpoint, before the hub runs.
pub(super) struct Offers {
    shelf: Shelf,
    blobs: BlobServer,
    asked: Receiver<Asked>,
    ear: Sender<Asked>,
}

impl Offers {
    /// Opens the endpoint.
    pub(super) fn open(
        dir: &Path,
        address: SocketAddr,
        host: &str,
        pki: &Pki,
        clock: Clock,
    ) -> Result<Self, HubError> {
        // Named in the error before any device asks.
        std::fs::read_dir(dir).map_err(|source| HubError::Read { path: dir.to_owned(), source })?;
        let mut secret = [0; 32];
        rand::rng().fill_bytes(&mut secret);
        let blobs = BlobServer::builder()
            .listen(address)
            .host(host)
            .tls(pki.server_config())
            .clock(clock)
            .secret(secret.to_vec())
            .start()?;
        let (ear, asked) = bounded(QUEUE);
        Ok(Self { shelf: Shelf::new(dir), blobs, asked, ear })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.blobs.control().address()
    }

    /// What a shard of the hub gets.
    pub(super) fn hooks(&self) -> impl FnMut(usize) -> Box<dyn Hooks> + Send + 'static {
        let ear = self.ear.clone();
        move |_| Box::new(Ear(ear.clone()))
    }

    /// Answers devices until the hub ends.
    pub(super) fn serve(self, control: HubControl) -> Serving {
        let Self { shelf, blobs, asked, ear: _ } = self;
        let desk = Desk { shelf, blobs: blobs.control(), control };
        let thread = thread::Builder::new().name("offers".to_owned()).spawn(move || {
            for Asked { device, request } in asked {
                desk.answer(&device, request);
            }
        });
        Serving { _blobs: blobs, _thread: thread.ok() }
    }
}

/// The endpoint while the hub runs.
pub(super) struct Serving {
    _blobs: BlobServer,
    // It ends with the hub's shards, which hold the other end of its channel.
    _thread: Option<JoinHandle<()>>,
}

struct Desk {
    shelf: Shelf,
    blobs: BlobControl,
    control: HubControl,
}

impl Desk {
    fn answer(&self, device: &str, request: Request) {
        let outcome = self.decide(device, &request).unwrap_or_else(|why| {
            tracing::warn!(device, release = request.id, why, "no link");
            Outcome::Refused(why)
        });
        if matches!(outcome, Outcome::Granted { .. }) {
            tracing::info!(device, release = request.id, "a link for a device");
        }
        let answer = Answer { id: request.id, seq: request.seq, target: request.target, outcome };
        let call = MethodCall {
            name: METHOD.to_owned(),
            payload: Bytes::from(serde_json::to_vec(&answer).expect("an answer is JSON")),
            response_timeout: METHOD_TIMEOUT,
            connect_timeout: Duration::ZERO,
        };
        // A device that is gone meanwhile asks again.
        if let Err(error) = self.control.invoke_method(device, call) {
            tracing::debug!(device, %error, "the answer found no device");
        }
    }

    fn decide(&self, device: &str, request: &Request) -> Result<Outcome, String> {
        let target = request.target.as_deref().unwrap_or(FIRMWARE);
        let twin = self.control.twin(device).map_err(|error| error.to_string())?;
        let twin: Value = serde_json::from_slice(&twin).map_err(|error| error.to_string())?;
        let desired = desired(&twin, target).ok_or("the device's twin does not ask for this release")?;
        let text = |name: &str| desired.get(name).and_then(Value::as_str);
        if text("id") != Some(&request.id) || desired.get("seq").and_then(Value::as_u64) != Some(request.seq)
        {
            return Err("the device's twin does not ask for this release".to_owned());
        }
        let found = self
            .shelf
            .find(&request.id, request.seq, target)
            .map_err(|error: ShelfError| error.to_string())?;
        let release = found.ok_or("it is not on the shelf")?;
        if release.reference.get("sha256") != desired.get("sha256") {
            return Err("what the twin asks for has another digest than what is on the shelf".to_owned());
        }
        let now = self.control.clock().now().wall.as_unix_millis();
        let expires = WallTime::from_unix_millis(now + LINK_LIFE.as_millis() as u64);
        let digest = text("sha256").unwrap_or_default();
        let link = |path: &Path, suffix: &str| {
            let name = format!("{digest}{suffix}");
            let content = Content::file(path).map_err(|error| format!("{}: {error}", path.display()))?;
            self.blobs.put(&name, content).map_err(|error| error.to_string())?;
            Ok::<_, String>(self.blobs.sign_url(&name, expires))
        };
        let archive = release.archive();
        let delta_url = if archive.is_file() { Some(link(&archive, ".archive")?) } else { None };
        Ok(Outcome::Granted {
            url: link(&release.payload(), "")?,
            delta_url,
            expires: expires.as_unix_secs(),
        })
    }
}

/// The section of the desired properties at a dotted path.
fn desired<'a>(twin: &'a Value, target: &str) -> Option<&'a Map<String, Value>> {
    let mut at = &twin["properties"]["desired"];
    for part in target.split('.') {
        at = at.get(part)?;
    }
    at.as_object()
}
