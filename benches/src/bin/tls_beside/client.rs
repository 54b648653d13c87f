//! Clients of the hub, in processes of their own: each thread makes one connection after the other.

use std::env;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::BytesMut;
use fleetwave_protocol::{WallTime, sas};
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, PeerIncompatible, SignatureScheme,
    StreamOwned,
};
use socket2::SockRef;

use crate::hub::{self, Hub};

/// Devices that take part in a storm.
pub(crate) const DEVICES: u32 = 4_096;
/// Devices of one thread, which connect in turn.
const TURNS: u32 = 16;
const HOST: &str = "localhost";
const PATIENCE: Duration = Duration::from_secs(15);
/// The end of all tokens: 2100.
const FAR_AWAY: WallTime = WallTime::from_unix_millis(4_102_444_800_000);

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// What one process is.
pub(crate) struct Clients {
    pub(crate) address: SocketAddr,
    pub(crate) first: u32,
    pub(crate) window: u32,
}

impl Clients {
    /// Connects for so long; says how often a second.
    pub(crate) fn storm(&self, time: Duration) -> anyhow::Result<()> {
        let config = config()?;
        let hellos: Vec<Vec<Vec<u8>>> = (0..self.window)
            .map(|thread| {
                (0..TURNS).map(|turn| hello((self.first + thread * TURNS + turn) % DEVICES)).collect()
            })
            .collect();
        let connections = AtomicU64::new(0);
        let began = Instant::now();
        thread::scope(|scope| {
            let threads: Vec<_> = hellos
                .iter()
                .map(|hellos| {
                    scope.spawn(|| -> anyhow::Result<()> {
                        for hello in hellos.iter().cycle() {
                            let stream = connect(self.address, &config, hello)?;
                            connections.fetch_add(1, Ordering::Relaxed);
                            // Ends with a reset: ports in TIME_WAIT would be in the way of the next measurement.
                            SockRef::from(&stream.sock).set_linger(Some(Duration::ZERO))?;
                            if began.elapsed() >= time {
                                break;
                            }
                        }
                        Ok(())
                    })
                })
                .collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
        })?;
        println!("{}", connections.into_inner() as f64 / began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Connects so many devices, says so, and holds them until the standard input ends.
    pub(crate) fn hold(&self, sessions: u32) -> anyhow::Result<()> {
        let config = config()?;
        let streams: Vec<Stream> = thread::scope(|scope| {
            let threads: Vec<_> = (0..self.window)
                .map(|thread| {
                    let config = &config;
                    scope.spawn(move || -> anyhow::Result<Vec<Stream>> {
                        (thread..sessions)
                            .step_by(self.window as usize)
                            .map(|number| connect(self.address, config, &hello(self.first + number)))
                            .collect()
                    })
                })
                .collect();
            let streams = threads.into_iter().map(|thread| thread.join().expect("no thread panics"));
            streams.collect::<Result<Vec<_>, _>>().map(|streams| streams.into_iter().flatten().collect())
        })?;
        println!("{}", streams.len());
        io::stdin().read_to_end(&mut Vec::new())?;
        Ok(())
    }
}

/// The CONNECT of a device.
fn hello(number: u32) -> Vec<u8> {
    let id = hub::device(number);
    let token = sas::token(&hub::group_key().derive(&id), &format!("{HOST}/devices/{id}"), FAR_AWAY, None);
    let mut connect = Connect::new(&id);
    connect.clean_session = false;
    connect.keep_alive = 1740;
    connect.set_login(format!("{HOST}/{id}/?api-version=2021-04-12"), token);
    let mut bytes = BytesMut::new();
    connect.write(&mut bytes).expect("far below 256 MiB");
    bytes.to_vec()
}

fn config() -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AsSTime(provider)))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn connect(address: SocketAddr, config: &Arc<ClientConfig>, hello: &[u8]) -> anyhow::Result<Stream> {
    let socket = TcpStream::connect(address).context("the hub does not accept")?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let connection = ClientConnection::new(config.clone(), ServerName::try_from(HOST)?)?;
    let mut stream = StreamOwned::new(connection, socket);
    stream.write_all(hello)?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).context("the hub did not answer")?;
    match Packet::read(&mut BytesMut::from(&answer[..]), answer.len()) {
        Ok(Packet::ConnAck(ack)) if ack.code == ConnectReturnCode::Success => {}
        other => bail!("the hub did not let a device in: {other:?}"),
    }
    Ok(stream)
}

/// Looks at a certificate as `openssl s_time` does: the server must have its key, whoever it is.
#[derive(Debug)]
struct AsSTime(Arc<CryptoProvider>);

impl ServerCertVerifier for AsSTime {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A process of clients. It is killed when it is dropped.
pub(crate) struct Process(Child);

impl Process {
    fn start(hub: &Hub, arguments: [(&str, u32); 4]) -> anyhow::Result<Self> {
        let program = env::current_exe().context("where this program is")?;
        let mut command = Command::new(program);
        command.args(["--client", &hub.address.to_string()]);
        for (name, value) in arguments {
            command.args([name, &value.to_string()]);
        }
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        child.map(Self).context("clients could not be started")
    }

    /// The line that it says when it has done its part.
    fn result(&mut self) -> anyhow::Result<f64> {
        let output = self.0.stdout.take().context("its output is piped")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        line.trim().parse().context("the clients ended early; what they said stands above")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails if it has ended already, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Connections a second of several processes.
pub(crate) fn storm(hub: &Hub, processes: u32, window: u32, seconds: u32) -> anyhow::Result<f64> {
    let mut running: Vec<Process> = (0..processes)
        .map(|number| {
            let first = number * window * TURNS;
            Process::start(
                hub,
                [("--first", first), ("--window", window), ("--seconds", seconds), ("--sessions", 0)],
            )
        })
        .collect::<Result<_, _>>()?;
    running.iter_mut().map(Process::result).sum()
}

/// Processes that hold so many sessions together.
pub(crate) fn hold(hub: &Hub, processes: u32, window: u32, sessions: u32) -> anyhow::Result<Vec<Process>> {
    let mut running = Vec::new();
    for number in 0..processes {
        let (first, end) = (sessions * number / processes, sessions * (number + 1) / processes);
        if first < end {
            let arguments =
                [("--first", first), ("--window", window), ("--seconds", 1), ("--sessions", end - first)];
            running.push(Process::start(hub, arguments)?);
        }
    }
    for process in &mut running {
        process.result()?;
    }
    Ok(running)
}
