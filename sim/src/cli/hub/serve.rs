//! Runs the hub until it is asked to end.

use std::env;
use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use fleetwave_hub::admin::{Admin, AdminError, AdminServer};
use fleetwave_hub::blob::BlobError;
use fleetwave_hub::events::{EventOptions, Source};
use fleetwave_hub::pki::Pki;
use fleetwave_hub::x509::Authorities;
use fleetwave_hub::{Clock, DpsSettings, HubServer, ListenError, StartError, StorageAccount};
use fleetwave_hub_core::throttle::Tier;
use fleetwave_hub_core::{Cycle, Options};
use tracing_subscriber::EnvFilter;

use super::HubError;
use super::announce::{self, Ready};
use super::args::{EventKind, Serve, TierName};
use super::home::{Home, Keys, write_secret};
use super::offers::Offers;
use super::usage;
use crate::cli::{CliError, output};
use crate::live::script::ScriptedFleet;
use crate::scenario;

/// The environment variable that says where devices' files go.
const STORAGE: &str = "FLEETWAVE_STORAGE";
/// What takes longer is told.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the hub's health is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Shards beyond this many cost more than they give.
const MOST_THREADS: usize = 16;
/// What is logged if `RUST_LOG` does not say.
const LOG: &str = "warn,fleetwave=info,fleetwave_hub=info,rumqttd=off";

pub(super) fn serve(arguments: &Serve) -> Result<u8, CliError> {
    let storage = storage_text(arguments);
    usage::check(arguments, storage.is_some())?;
    log();
    let signals = signals()?;
    let home = Home::find(&arguments.place)?;
    let keys = Keys::load_or_create(&home)?;
    let scenario = match &arguments.devices {
        Some(scenario) => Some(scenario::load(scenario, &arguments.set)?.scenario),
        None => None,
    };
    let mut names = arguments.name.clone();
    if names.is_empty() {
        names.push("localhost".to_owned());
    }
    let pki = Pki::load_or_create(Some(&home.certs), &names).map_err(HubError::from)?;
    let clock = Clock::new();
    let offers = match &arguments.releases {
        Some(dir) => Some(offer(dir, arguments, &names, &pki, clock.clone())?),
        None => None,
    };
    let hub = told("starting the hub, and loading what it keeps", || {
        start(arguments, storage, &home, &keys, &names, &pki, clock, offers.as_ref())
    })?;
    let releases = offers.as_ref().map(Offers::address);
    let _serving = offers.map(|offers| offers.serve(hub.control()));
    let admin = Admin {
        control: hub.control(),
        instruments: hub.control().instruments().clone(),
        health: hub.health(),
        ca_pem: Some(pki.ca_pem().to_owned()),
    };
    let address = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), arguments.admin_port);
    let admin = AdminServer::start(address, admin).map_err(|error| match error {
        AdminError::Listen(error) => port_error(&error, "--admin-port"),
        other => HubError::Admin(other),
    })?;

    let fleet = match &scenario {
        Some(scenario) => {
            let made = || ScriptedFleet::start(scenario, &hub, &names[0]);
            Some(told("making the scripted devices", made).map_err(HubError::from)?)
        }
        None => None,
    };
    let scripted = fleet.as_ref().map(|fleet| (fleet.devices(), fleet.first().to_owned()));

    let ready =
        Ready::of(arguments, &hub, &home, &keys, &names, admin.address(), scripted).offering(releases);
    let running = home.running();
    write_secret(&running, &ready.json(), true)
        .map_err(|source| HubError::Write { path: running.clone(), source })?;
    output::print(&if arguments.json { ready.json() } else { announce::table(&ready) })?;

    // It ends by a signal, or when something is wrong that only a new start can mend.
    let mut problem = None;
    while problem.is_none() && signals.recv_timeout(LOOK).is_err_and(|error| error.is_timeout()) {
        problem = hub.health().problem();
    }
    tracing::info!("the hub ends");
    if arguments.json {
        output::print(&announce::event(problem.as_deref()))?;
    }
    hub.health().drain();
    drop(fleet);
    told("closing connections and writing what is kept", || hub.stop());
    let _ = fs::remove_file(&running);
    drop(admin);
    match problem {
        None => Ok(0),
        Some(problem) => Err(HubError::Broken(problem).into()),
    }
}

#[expect(clippy::too_many_arguments, reason = "they are what a hub is made of")]
fn start(
    arguments: &Serve,
    storage: Option<String>,
    home: &Home,
    keys: &Keys,
    names: &[String],
    pki: &Pki,
    clock: Clock,
    offers: Option<&Offers>,
) -> Result<HubServer, HubError> {
    let at = |port| SocketAddr::new(arguments.bind, port);
    let threads = arguments
        .threads
        .map_or_else(|| thread::available_parallelism().map_or(1, Into::into).min(MOST_THREADS), Into::into);
    let tier = match arguments.tier {
        TierName::None => Tier::None,
        TierName::S1 => Tier::S1,
        TierName::S2 => Tier::S2,
        TierName::S3 => Tier::S3,
    };
    let cycle = arguments.config_cycle.map_or(Cycle::Immediate, |span| Cycle::Every(span.duration()));
    let source = |kind: &EventKind| match kind {
        EventKind::Telemetry => Source::Telemetry,
        EventKind::Twin => Source::TwinChanges,
        EventKind::Lifecycle => Source::Lifecycle,
        EventKind::Connection => Source::ConnectionState,
    };
    let sources = arguments.events.iter().map(source).collect();
    let provisioning = DpsSettings {
        id_scope: keys.id_scope.clone(),
        hub: names[0].clone(),
        keys: keys.provisioning.clone(),
    };
    let mut builder = HubServer::builder()
        .shards(threads)
        .tls(at(arguments.mqtt_port), pki.server_config())
        .https(at(arguments.https_port), Some(pki.server_config()))
        .amqps(at(arguments.amqps_port), Some(pki.server_config()))
        .event_options(EventOptions { name: Some(short_name(names)), sources, ..EventOptions::default() })
        .group_key(keys.group_key.clone())
        .tier(tier, arguments.units.unwrap_or(1))
        .options(Options { cycle, ..Options::default() })
        .provisioning(provisioning)
        .clock(clock);
    if let Some(offers) = offers {
        builder = builder.hooks(offers.hooks());
    }
    if let Some(data) = &home.data {
        builder = builder.data(data);
    }
    if let Some(account) = storage.map(|given| account(given, arguments, pki)).transpose()? {
        builder = builder.storage(account);
    }
    if let Some(port) = arguments.plain_mqtt_port {
        builder = builder.tcp(at(port));
    }
    if let Some(port) = arguments.bus_port {
        builder = builder.bus(at(port));
    }
    for name in all_names(names, arguments.bind) {
        builder = builder.host_name(&name);
    }
    for policy in &keys.policies {
        builder = builder.policy(policy.clone());
    }
    for path in &arguments.device_ca {
        let pem = read(path)?;
        Authorities::from_pem([pem.as_str()]).map_err(|error| HubError::Usage {
            problem: format!("--device-ca {}: {error}", path.display()),
            fix: "give a file with the authority's certificate, from -----BEGIN CERTIFICATE----- on"
                .to_owned(),
        })?;
        builder = builder.device_ca(&pem);
    }
    builder.start().map_err(|error| match error {
        StartError::Listen(error) => port_error(&error, option_of(arguments, error.address.port())),
        other => HubError::Start(other),
    })
}

/// Opens the endpoint for releases. Its name in links has to be one that the certificate has and devices can resolve.
fn offer(
    dir: &Path,
    arguments: &Serve,
    names: &[String],
    pki: &Pki,
    clock: Clock,
) -> Result<Offers, HubError> {
    let named = names.iter().find(|name| !name.ends_with(".azure-devices.net"));
    let host = named.map_or("localhost", String::as_str);
    let address = SocketAddr::new(arguments.bind, arguments.releases_port.unwrap_or(usage::RELEASES_PORT));
    Offers::open(dir, address, host, pki, clock).map_err(|error| match error {
        HubError::Offers(BlobError::Listen(error)) => port_error(&error, "--releases-port"),
        other => other,
    })
}

/// Where devices' files go, as it was given.
fn storage_text(arguments: &Serve) -> Option<String> {
    let given = arguments.storage.clone().or_else(|| env::var(STORAGE).ok());
    given.filter(|given| !given.is_empty())
}

/// The storage account.
fn account(given: String, arguments: &Serve, pki: &Pki) -> Result<StorageAccount, HubError> {
    let path = Path::new(&given);
    // A connection string is made of members with `=`.
    let text = if given.contains('=') && !path.is_file() { given } else { read(path)? };
    let mut account =
        StorageAccount::parse(&text, arguments.storage_container.as_deref().unwrap_or("uploads"))?
            .trust(pki.ca_pem())?;
    if let Some(path) = &arguments.storage_ca {
        account = account.trust(&read(path)?)?;
    }
    Ok(account)
}

fn read(path: &Path) -> Result<String, HubError> {
    fs::read_to_string(path).map_err(|source| HubError::Read { path: path.to_owned(), source })
}

/// The hub's name in its own events: the first part of its first name.
fn short_name(names: &[String]) -> String {
    let named = names.iter().find(|name| !name.eq_ignore_ascii_case("localhost"));
    let name = named.map_or("fleetwave", |name| name.split('.').next().unwrap_or(name));
    name.to_owned()
}

/// The names that the hub answers to: those that it was told, and those by which this machine is called.
fn all_names(names: &[String], bind: IpAddr) -> Vec<String> {
    let mut all = names.to_vec();
    let more = ["localhost".to_owned(), "127.0.0.1".to_owned(), "[::1]".to_owned(), bind.to_string()];
    for name in more {
        if !all.iter().any(|known| known.eq_ignore_ascii_case(&name)) {
            all.push(name);
        }
    }
    all
}

/// The option that gave a port.
fn option_of(arguments: &Serve, port: u16) -> &'static str {
    let ports = [
        (Some(arguments.mqtt_port), "--mqtt-port"),
        (Some(arguments.https_port), "--https-port"),
        (Some(arguments.amqps_port), "--amqps-port"),
        (arguments.plain_mqtt_port, "--plain-mqtt-port"),
        (arguments.bus_port, "--bus-port"),
    ];
    ports.iter().find(|(given, _)| *given == Some(port)).map_or("--bind", |(_, option)| option)
}

/// What is wrong with a port, and what to do.
fn port_error(error: &ListenError, option: &str) -> HubError {
    let (address, port) = (error.address, error.address.port());
    let other = u32::from(port) + if port < 1024 { 8000 } else { 10_000 };
    let other = if other > u32::from(u16::MAX) { 0 } else { other };
    let (why, fix) = match error.source.kind() {
        io::ErrorKind::PermissionDenied => (
            format!("ports below {} are not for every user", unprivileged()),
            format!(
                "choose another one: `{option} {other}`; or let everybody have it: \
                 `sudo sysctl net.ipv4.ip_unprivileged_port_start={port}`; or only this program: \
                 `sudo setcap cap_net_bind_service=+ep \"$(command -v fleetwave)\"`"
            ),
        ),
        io::ErrorKind::AddrInUse => (
            "another process uses this port".to_owned(),
            format!(
                "`ss -ltnp 'sport = :{port}'` shows which; end it, or choose another port: `{option} {other}`"
            ),
        ),
        io::ErrorKind::AddrNotAvailable => (
            "no interface of this machine has this address".to_owned(),
            "give one that it has by --bind: `ip address` lists them".to_owned(),
        ),
        _ => (
            error.source.to_string(),
            format!("choose another port by {option}, or another address by --bind"),
        ),
    };
    HubError::Port { problem: format!("cannot listen on {address} ({option}): {why}"), fix }
}

/// The first port that every user may have.
fn unprivileged() -> u16 {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    text.trim().parse().unwrap_or(1024)
}

/// Does `what`, and says so if it takes long.
fn told<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let (done, over) = crossbeam_channel::bounded::<()>(0);
    thread::scope(|scope| {
        scope.spawn(move || {
            let began = Instant::now();
            while over.recv_timeout(PATIENCE) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
                say(&format!("{what}, {} s so far\n", began.elapsed().as_secs()));
            }
        });
        let result = act();
        drop(done);
        result
    })
}

/// Hears the first Ctrl-C or termination signal; the second ends the process.
fn signals() -> Result<crossbeam_channel::Receiver<()>, ctrlc::Error> {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    ctrlc::set_handler(move || {
        if sender.try_send(()).is_err() {
            std::process::exit(130);
        }
        say("the hub ends; press Ctrl-C again to end at once\n");
    })?;
    Ok(receiver)
}

/// Logs to standard error. A second logger in one process would be an error, and is none here.
fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(io::stderr().is_terminal());
    let _ = log.with_writer(io::stderr).try_init();
}

fn say(text: &str) {
    // There is nowhere left to complain when standard error is gone.
    let _ = io::stderr().write_all(text.as_bytes());
}
