//! Twin operations a second that one hub does for its devices: reads, reports, and changes of desired properties.
//!
//! ```text
//! cargo run --release -p fleetwave-benches --bin twin_rates -- --seconds 5
//! ```
//!
//! Hub and clients share the process and its cores. Each client thread has so many connections and keeps so many
//! requests open on each, over TCP and then over TLS 1.3; an operation counts when its answer, or the change, has
//! arrived. Changes go to one twin each, by the hub's own interface.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::BytesMut;
use clap::Parser;
use fleetwave_hub::pki::Pki;
use fleetwave_hub::{HubServer, NewDevice, TwinChange};
use fleetwave_protocol::{WallTime, sas};
use rumqttc::mqttbytes::v4::{Connect, Packet, Publish, Subscribe, SubscribeFilter};
use rumqttc::mqttbytes::{self, QoS};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const HOST: &str = "localhost";
const PATIENCE: Duration = Duration::from_secs(30);
/// The end of all tokens: 2100.
const FAR_AWAY: WallTime = WallTime::from_unix_millis(4_102_444_800_000);

/// Measures twin operations of a hub.
#[derive(Debug, Parser)]
struct Arguments {
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Client threads, and shards of the hub.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Connections of each client thread.
    #[arg(long, default_value_t = 250)]
    connections: usize,
    /// Requests that are open on each connection.
    #[arg(long, default_value_t = 8)]
    window: usize,
    /// Keep the hub in this folder, which is to be new: answers wait for the disk.
    #[arg(long)]
    data: Option<PathBuf>,
}

trait Line: Read + Write + Send {}

impl<T: Read + Write + Send> Line for T {}

/// A connected device.
struct Device {
    line: Box<dyn Line>,
    input: BytesMut,
    id: String,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let pki = Pki::load_or_create(None, &[])?;
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut builder =
        HubServer::builder().shards(arguments.threads).tcp(loopback).tls(loopback, pki.server_config());
    if let Some(folder) = &arguments.data {
        builder = builder.data(folder);
    }
    let hub = builder.start()?;
    let count = arguments.threads * arguments.connections;
    hub.control().create_devices((0..count).map(|number| NewDevice::new(id(number))))?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pki.ca_pem().as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    println!("{count} devices, {} threads, {} open on each connection", arguments.threads, arguments.window);
    for (name, tls) in [("TCP", None), ("TLS", Some(&config))] {
        let mut fleet: Vec<Vec<Device>> = (0..arguments.threads)
            .map(|thread| {
                let numbers = thread * arguments.connections..(thread + 1) * arguments.connections;
                numbers.map(|number| Device::connect(&hub, number, tls)).collect()
            })
            .collect::<anyhow::Result<_>>()?;
        let time = Duration::from_secs(arguments.seconds);
        let read = rate(&mut fleet, time, arguments.window, |_| ("$iothub/twin/GET/?$rid=1", Vec::new()))?;
        println!("{name}: {read:.0} twin reads/s");
        let report = rate(&mut fleet, time, arguments.window, |number| {
            let body = format!("{{\"firmware\":{{\"progress\":{}}}}}", number % 100).into_bytes();
            ("$iothub/twin/PATCH/properties/reported/?$rid=1", body)
        })?;
        println!("{name}: {report:.0} reports/s");
        let changes = changes(&hub, &mut fleet, time)?;
        println!("{name}: {changes:.0} desired changes/s");
        drop(fleet);
        // The next transport's devices take the sessions over.
    }
    hub.stop();
    Ok(())
}

fn id(number: usize) -> String {
    format!("dev-{number:05}")
}

/// Operations a second of all threads: each connection has `window` requests open, and the next ones when all of them
/// are answered.
fn rate(
    fleet: &mut [Vec<Device>],
    time: Duration,
    window: usize,
    request: impl Fn(u64) -> (&'static str, Vec<u8>) + Sync,
) -> anyhow::Result<f64> {
    let began = Instant::now();
    let done: u64 = thread::scope(|scope| {
        let threads: Vec<_> = fleet
            .iter_mut()
            .map(|devices| {
                let request = &request;
                scope.spawn(move || -> anyhow::Result<u64> {
                    let mut done = 0;
                    while began.elapsed() < time {
                        for device in devices.iter_mut() {
                            let mut bytes = BytesMut::new();
                            for _ in 0..window {
                                let (topic, body) = request(done);
                                Publish::new(topic, QoS::AtMostOnce, body).write(&mut bytes)?;
                                done += 1;
                            }
                            device.line.write_all(&bytes)?;
                            device.line.flush()?;
                        }
                        for device in devices.iter_mut() {
                            for _ in 0..window {
                                device.message()?;
                            }
                        }
                    }
                    Ok(done)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no thread panics"))
            .sum::<anyhow::Result<u64>>()
    })?;
    Ok(done as f64 / began.elapsed().as_secs_f64())
}

/// Changes of desired properties a second: a thread writes to one twin after the other, the devices count.
fn changes(hub: &HubServer, fleet: &mut [Vec<Device>], time: Duration) -> anyhow::Result<f64> {
    let stop = AtomicBool::new(false);
    let began = Instant::now();
    let arrived: u64 = thread::scope(|scope| {
        let (stop, control) = (&stop, hub.control());
        let readers: Vec<_> = fleet
            .iter_mut()
            .map(|devices| {
                let control = control.clone();
                scope.spawn(move || -> anyhow::Result<u64> {
                    let mut arrived = 0;
                    while !stop.load(Ordering::Relaxed) {
                        for device in devices.iter_mut() {
                            let patch = format!("{{\"interval\":{arrived}}}").into_bytes();
                            let change = TwinChange { desired: Some(patch), ..TwinChange::default() };
                            control.patch_twin(&device.id, change)?;
                            arrived += 1;
                        }
                        for device in devices.iter_mut() {
                            device.message()?;
                        }
                    }
                    Ok(arrived)
                })
            })
            .collect();
        thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        readers
            .into_iter()
            .map(|thread| thread.join().expect("no thread panics"))
            .sum::<anyhow::Result<u64>>()
    })?;
    Ok(arrived as f64 / began.elapsed().as_secs_f64())
}

impl Device {
    fn connect(hub: &HubServer, number: usize, tls: Option<&Arc<ClientConfig>>) -> anyhow::Result<Self> {
        let id = id(number);
        let address = if tls.is_some() { hub.tls_address() } else { hub.address() };
        let socket = TcpStream::connect(address.context("the hub was told to listen")?)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let line: Box<dyn Line> = match tls {
            None => Box::new(socket),
            Some(config) => {
                let connection = ClientConnection::new(config.clone(), ServerName::try_from(HOST)?)?;
                Box::new(StreamOwned::new(connection, socket))
            }
        };
        let key = hub.control().device_key(&id);
        let token = sas::token(&key, &format!("{HOST}/devices/{id}"), FAR_AWAY, None);
        let mut connect = Connect::new(&id);
        connect.set_login(format!("{HOST}/{id}/?api-version=2021-04-12"), token);
        let mut bytes = BytesMut::new();
        connect.write(&mut bytes)?;
        let filters = ["$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#"]
            .map(|path| SubscribeFilter::new(path.to_owned(), QoS::AtMostOnce));
        let mut subscribe = Subscribe::new_many(filters);
        subscribe.pkid = 1;
        subscribe.write(&mut bytes)?;
        let mut device = Self { line, input: BytesMut::new(), id };
        device.line.write_all(&bytes)?;
        device.line.flush()?;
        match (device.next()?, device.next()?) {
            (Packet::ConnAck(_), Packet::SubAck(_)) => Ok(device),
            other => bail!("the hub did not let {} in: {other:?}", device.id),
        }
    }

    fn next(&mut self) -> anyhow::Result<Packet> {
        let mut buffer = [0; 16_384];
        loop {
            match Packet::read(&mut self.input, 1024 * 1024) {
                Ok(packet) => return Ok(packet),
                Err(mqttbytes::Error::InsufficientBytes(_)) => match self.line.read(&mut buffer)? {
                    0 => bail!("the hub closed the connection of {}", self.id),
                    length => self.input.extend_from_slice(&buffer[..length]),
                },
                Err(error) => bail!("the hub sent garbage: {error}"),
            }
        }
    }

    fn message(&mut self) -> anyhow::Result<()> {
        match self.next()? {
            Packet::Publish(_) => Ok(()),
            other => bail!("a message was expected, not {other:?}"),
        }
    }
}
