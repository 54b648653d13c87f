//! A device's way to its hub, as far as it outlives connections.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleetwave_protocol::{Profile, WallTime};
use tokio::time::Instant;

use super::assignment::Assignment;
use super::dial::share;
use super::settings::{Address, Hub, Provisioning, check_device, is_loopback};
use super::tls::{Client, TlsPool};
use super::{LinkError, register};
use crate::config::{Rows, authorities, span};
use crate::files;
use crate::identity::{Identity, Proof, SasSigner};

/// Where a device belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Station {
    /// The hub's name in user names and tokens.
    pub(super) hub: String,
    /// Who is called: the hub, or a gateway in front of it.
    pub(super) peer: String,
    /// The port there.
    pub(super) port: u16,
    /// The device's id.
    pub(super) device: Arc<str>,
}

/// A device's way to its hub.
#[derive(Debug)]
pub(crate) struct Access {
    pub(super) hub: Hub,
    pub(super) tls: Client,
    /// What it shows; `None` if its connection string is in a file, and the key with it.
    proof: Option<Proof>,
    pub(super) provisioning: Option<(Provisioning, Proof)>,
    state: PathBuf,
    pub(super) clock: fn() -> WallTime,
    known: Mutex<Known>,
}

/// What was learnt since the start.
#[derive(Debug, Default)]
struct Known {
    assigned: Option<Assignment>,
    station: Option<Arc<Station>>,
    /// When the provisioning service may be asked again.
    ask_again: Option<Instant>,
    /// Since when the hub has refused the device.
    refused_since: Option<Instant>,
    /// The wrong clock has been told of.
    told_of_clock: bool,
}

impl Access {
    /// The way that the configuration describes. Files are read when they are needed, so that a device which comes
    /// up before its disks is not stopped by that.
    ///
    /// # Errors
    /// What does not go together in it.
    pub(crate) fn new(
        hub: &Hub,
        identity: Option<&Identity>,
        provisioning: Option<&Provisioning>,
        state: &Path,
        pool: &TlsPool,
    ) -> Result<Self, String> {
        let ways = [
            hub.connection_string.is_some(),
            hub.connection_string_file.is_some(),
            hub.host.is_some(),
            provisioning.is_some(),
        ];
        if ways.iter().filter(|way| **way).count() != 1 {
            return Err("where the hub is has to be said in one way: connection_string, connection_string_file, host \
                        with device_id, or a section [provisioning]"
                .to_owned());
        }
        if hub.host.is_some() != hub.device_id.is_some() {
            return Err("host and device_id of [hub] go together".to_owned());
        }
        if let Some(device) = &hub.device_id {
            check_device("device_id", device)?;
        }
        if hub.token_seconds < 5 || hub.connect_seconds == 0 || hub.keep_alive_seconds == 0 {
            return Err(
                "token_seconds of [hub] is 5 or more, connect_seconds and keep_alive_seconds 1 or more"
                    .to_owned(),
            );
        }
        let plain_profile = Profile::from(hub.profile) == Profile::Plain;
        if plain_profile && hub.host.is_none() {
            return Err("profile = \"plain\" needs host and device_id of [hub]".to_owned());
        }
        if !plain_profile && (hub.username.is_some() || hub.password_file.is_some()) {
            return Err("username and password_file of [hub] are for profile = \"plain\": an IoT Hub takes a key or a \
                        certificate"
                .to_owned());
        }
        if let Some(provisioning) = provisioning {
            check_device("registration_id", &provisioning.registration_id)?;
        }
        let access = Self {
            hub: hub.clone(),
            tls: Client::new(pool, hub.ca.as_deref()),
            proof: proof(hub, identity)?,
            provisioning: provisioning
                .map(|of| Ok::<_, String>((of.clone(), enrolled(of, identity)?)))
                .transpose()?,
            state: state.to_owned(),
            clock: system_clock,
            known: Mutex::default(),
        };
        if hub.plain
            && [&access.proof, &access.provisioning_proof()].iter().any(|proof| shows_certificate(proof))
        {
            return Err("a certificate is shown in TLS only: remove plain = true".to_owned());
        }
        let names = [&hub.host, &hub.connection_string.as_ref().map(|of| of.host.host.clone())];
        if !hub.plain && names.iter().any(|name| name.as_ref().is_some_and(|name| name.starts_with('['))) {
            return Err(
                "TLS needs a name or an IPv4 address: an address in brackets is for plain = true".to_owned()
            );
        }
        Ok(access)
    }

    /// The TLS that is shared with downloads.
    pub(crate) fn tls_pool(&self) -> &TlsPool {
        self.tls.pool()
    }

    /// What an operator should know before it hurts: secrets that others can read, MQTT without TLS.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let proofs = [self.proof.clone(), self.provisioning_proof()];
        let mut warnings: Vec<String> = proofs.iter().flatten().filter_map(Proof::exposure).collect();
        warnings.extend(self.hub.connection_string_file.as_deref().and_then(crate::identity::exposure));
        warnings.dedup();
        let host = match (&self.hub.connection_string, &self.hub.host, &self.provisioning) {
            (Some(string), ..) => Some(&string.gateway.as_ref().unwrap_or(&string.host).host),
            (None, Some(host), _) => Some(host),
            (None, None, Some((provisioning, _))) => Some(&provisioning.endpoint),
            (None, None, None) => None,
        };
        let name = host.and_then(|host| Address::parse("host", host).ok());
        if self.hub.plain && name.is_none_or(|name| !is_loopback(&name.host)) {
            warnings.push(
                "plain = true: what is said to the hub, and the token or password, can be read and changed on the way"
                    .to_owned(),
            );
        }
        warnings
    }

    /// The way to the hub, for people.
    pub(crate) fn describe(&self) -> Rows {
        let Hub { connection_string: string, connection_string_file: file, host, plain, port, .. } =
            &self.hub;
        let at = |address: &Address| format!("{}:{}", address.host, address.port(*port, *plain));
        let named = |name: &str| Address::parse("host", name).map_or(name.to_owned(), |address| at(&address));
        let (place, shows) = match (string, file, host, &self.provisioning) {
            (Some(string), ..) => {
                let gateway = string.gateway.as_ref().map(|gateway| format!(" through {}", at(gateway)));
                let place = format!("{}{}", at(&string.host), gateway.unwrap_or_default());
                (place, string.key.as_ref().map(|_| "a key, from the configuration".to_owned()))
            }
            (None, Some(file), ..) => {
                (format!("where {} says", file.display()), Some("what it says".to_owned()))
            }
            (None, None, Some(host), _) => (named(host), None),
            (None, None, None, Some((of, proof))) => {
                (format!("where {} says", named(&of.endpoint)), Some(proof.describe()))
            }
            (None, None, None, None) => return Rows::new(),
        };
        let shows = shows.or_else(|| self.proof.as_ref().map(Proof::describe)).unwrap_or_default();
        let topics = match self.profile() {
            Profile::Plain => ", topics of the device's own",
            Profile::IotHub => "",
        };
        let device = if self.name().is_empty() { "named there" } else { self.name() };
        let token = shows.starts_with("a key") || file.is_some();
        let token = token.then(|| ("token", format!("renewed before {}", span(self.hub.token_life()))));
        let rows = [
            ("at", place),
            ("by", format!("MQTT {} TLS{topics}", if *plain { "without" } else { "over" })),
            ("authorities", if *plain { "none".to_owned() } else { authorities(self.hub.ca.as_deref()) }),
            ("device", device.to_owned()),
            ("shows", shows),
        ];
        rows.into_iter().chain(token).collect()
    }

    /// A name of the device that is known before any connection.
    pub(crate) fn name(&self) -> &str {
        match (&self.hub.connection_string, &self.hub.device_id, &self.provisioning) {
            (Some(string), ..) => &string.device,
            (None, Some(device), _) => device,
            (None, None, Some((provisioning, _))) => &provisioning.registration_id,
            (None, None, None) => "",
        }
    }

    pub(crate) fn profile(&self) -> Profile {
        self.hub.profile.into()
    }

    /// Where the device belongs, and what it shows there. Asks the provisioning service if need be.
    pub(super) async fn station(&self) -> Result<(Arc<Station>, Proof), LinkError> {
        if let Some((provisioning, proof)) = &self.provisioning {
            let assigned = match self.assigned(provisioning) {
                Some(assigned) => assigned,
                None => {
                    self.patience(provisioning).await?;
                    let assigned = register::register(self, provisioning, proof).await?;
                    tracing::info!(hub = assigned.hub, device = assigned.device_id, "provisioned");
                    if let Err(error) = assigned.save(&self.state) {
                        let remedy = files::remedy(files::storage_error(&error));
                        tracing::error!(%error, remedy, "the assignment cannot be kept: the next start asks for it again");
                    }
                    let mut known = self.known();
                    known.assigned = Some(assigned.clone());
                    known.refused_since = None;
                    assigned
                }
            };
            let hub = Address::parse("the assigned hub", &assigned.hub).map_err(LinkError::Provisioning)?;
            check_device("the assigned device id", &assigned.device_id).map_err(LinkError::Provisioning)?;
            let port = hub.port(self.hub.port, self.hub.plain);
            return Ok((self.keep(hub.host.clone(), hub.host, port, &assigned.device_id), proof.clone()));
        }
        if let (Some(host), Some(device)) = (&self.hub.host, &self.hub.device_id) {
            let host = Address::parse("host", host).map_err(LinkError::Provisioning)?;
            let port = host.port(self.hub.port, self.hub.plain);
            let station = self.keep(host.host.clone(), host.host, port, device);
            return Ok((station, self.proof.clone().unwrap_or(Proof::Nothing)));
        }
        let string = self.hub.read_connection_string()?;
        let string = string.ok_or_else(|| LinkError::Provisioning("no hub is configured".to_owned()))?;
        let peer = string.gateway.unwrap_or_else(|| string.host.clone());
        let port = peer.port(self.hub.port, self.hub.plain);
        let station = self.keep(string.host.host, peer.host, port, &string.device);
        let held = string.key.map(|key| Proof::Sas(SasSigner::held(key)));
        Ok((station, held.or_else(|| self.proof.clone()).unwrap_or(Proof::Nothing)))
    }

    fn keep(&self, hub: String, peer: String, port: u16, device: &str) -> Arc<Station> {
        let station = Station { hub, peer, port, device: device.into() };
        let mut known = self.known();
        match &known.station {
            Some(before) if **before == station => before.clone(),
            _ => known.station.insert(Arc::new(station)).clone(),
        }
    }

    /// The assignment, unless the hub has refused it for too long.
    fn assigned(&self, provisioning: &Provisioning) -> Option<Assignment> {
        let mut known = self.known();
        let long = Duration::from_secs(provisioning.reprovision_seconds);
        if known.refused_since.is_some_and(|since| since.elapsed() >= long) {
            tracing::warn!(
                "the hub has refused the device for long: the provisioning service is asked again"
            );
            known.assigned = None;
            return None;
        }
        if known.assigned.is_none() {
            known.assigned = Assignment::load(&self.state, provisioning);
        }
        known.assigned.clone()
    }

    /// The provisioning service wants to be left in peace for `pause`. It has said so to many at once: they come back at
    /// different times.
    pub(super) fn is_asked_for_patience(&self, status: u16, pause: Duration) {
        let pause = pause.min(LONGEST_PATIENCE).mul_f64(1.0 + share(self.name()) / 2.0);
        tracing::info!(status, seconds = pause.as_secs(), "the provisioning service asks for patience");
        self.known().ask_again = Some(Instant::now() + pause);
    }

    /// Waits until the provisioning service may be asked, unless that is too long for one try to connect.
    async fn patience(&self, provisioning: &Provisioning) -> Result<(), LinkError> {
        let Some(until) = self.known().ask_again else { return Ok(()) };
        if until > Instant::now() + self.hub.connect_timeout() {
            return Err(LinkError::Unavailable(provisioning.endpoint.clone()));
        }
        tokio::time::sleep_until(until).await;
        Ok(())
    }

    /// Takes down how a try to connect to the hub ended.
    pub(super) fn note(&self, refused: bool) {
        let mut known = self.known();
        if refused {
            known.refused_since.get_or_insert_with(Instant::now);
        } else {
            known.refused_since = None;
        }
    }

    /// Returns once the clock can be right. Before that no token is good, and no certificate is valid yet.
    pub(super) async fn clock_is_set(&self) {
        while (self.clock)() < WRITTEN {
            if !std::mem::replace(&mut self.known().told_of_clock, true) {
                tracing::warn!(
                    "the clock shows {}, a time before this agent was made: it connects once the clock is set (by NTP, \
                     or date -s)",
                    super::error::date((self.clock)())
                );
            }
            tokio::time::sleep(CLOCK_PAUSE).await;
        }
        self.known().told_of_clock = false;
    }

    fn provisioning_proof(&self) -> Option<Proof> {
        self.provisioning.as_ref().map(|(_, proof)| proof.clone())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("nothing panics under this lock")
    }
}

/// No clock that is right shows an earlier time than the one at which this was written: 1 November 2026. A device
/// without a battery behind its clock starts in 1970, or when its image was made.
const WRITTEN: WallTime = WallTime::from_unix_millis(1_793_491_200_000);
/// What else a service says is a slip.
const LONGEST_PATIENCE: Duration = Duration::from_secs(3600);
const CLOCK_PAUSE: Duration = Duration::from_secs(1);

/// A system clock before 1970 counts as 1970.
fn system_clock() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime::from_unix_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn shows_certificate(proof: &Option<Proof>) -> bool {
    matches!(proof, Some(Proof::Certificate(_)))
}

/// What a device shows its hub, if it is not provisioned.
fn proof(hub: &Hub, identity: Option<&Identity>) -> Result<Option<Proof>, String> {
    let key_given = hub.connection_string.as_ref().is_some_and(|string| string.key.is_some());
    if Profile::from(hub.profile) == Profile::Plain {
        let user = hub.username.clone().or_else(|| hub.device_id.clone()).unwrap_or_default();
        return match (identity, &hub.password_file) {
            (Some(_), Some(_)) => {
                Err("[identity] and password_file of [hub] are two ways to show who it is".to_owned())
            }
            (Some(identity), None) if identity.certificate.is_some() => Ok(Some(Proof::of(identity))),
            (Some(_), None) => {
                Err("a broker takes a password (password_file of [hub]) or a certificate: [identity] \
                                    has a key alone"
                    .to_owned())
            }
            (None, Some(file)) => Ok(Some(Proof::Password { user, file: file.clone() })),
            (None, None) => Ok(Some(Proof::Nothing)),
        };
    }
    match identity {
        Some(_) if key_given => {
            Err("the connection string has a key, and there is an [identity]: one of them".to_owned())
        }
        Some(identity) => Ok(Some(Proof::of(identity))),
        None if key_given || hub.connection_string_file.is_some() => Ok(None),
        // Provisioning has keys of its own, which are checked with it.
        None if hub.host.is_none() && hub.connection_string.is_none() => Ok(None),
        None => {
            Err("the device has nothing to show: a connection string with a key, or a section [identity]"
                .to_owned())
        }
    }
}

/// What a device shows the provisioning service, and its hub afterwards.
fn enrolled(of: &Provisioning, identity: Option<&Identity>) -> Result<Proof, String> {
    let group = |signer: SasSigner| Proof::Sas(signer.in_group(&of.registration_id));
    match (&of.key, &of.key_file, &of.group_key, &of.group_key_file, identity) {
        (Some(key), None, None, None, None) => Ok(Proof::Sas(SasSigner::held(key.0.clone()))),
        (None, Some(file), None, None, None) => Ok(Proof::Sas(SasSigner::file(file.clone()))),
        (None, None, Some(key), None, None) => Ok(group(SasSigner::held(key.0.clone()))),
        (None, None, None, Some(file), None) => Ok(group(SasSigner::file(file.clone()))),
        (None, None, None, None, Some(identity)) => Ok(Proof::of(identity)),
        _ => Err(
            "[provisioning] needs one of key, key_file, group_key, group_key_file, or a section [identity]"
                .to_owned(),
        ),
    }
}
