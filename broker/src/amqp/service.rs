//! The AMQP endpoint on tokio: sockets, TLS, time, and the way to the shards.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fleetwave_hub_core::throttle::Operation;
use fleetwave_hub_core::{ErrorCode, HubError, Input};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;

use super::connection::Delivery;
use super::desk::{Desk, Shared, Work};
use super::link::LinkId;
use crate::control::{ControlError, HubControl};

/// How long a client may take for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// Connections at once; others wait in the kernel's queue.
const CONNECTIONS: usize = 1024;
/// Bytes that are read at once.
const READ: usize = 32 * 1024;
/// Bytes that may wait for the socket; no more is read from a client that does not take its answers.
const WRITE: usize = 1 << 20;

/// How long a client may take to read the last of what it is sent.
const LAST_WORDS: Duration = Duration::from_secs(5);

type Done = (LinkId, Delivery, Result<(), Box<HubError>>);

/// The endpoint.
#[derive(Clone)]
pub(crate) struct AmqpService {
    pub(crate) control: HubControl,
    pub(crate) shared: Arc<Shared>,
    /// Plain TCP without; for tests.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// Turns true when the hub ends: for connections over WebSocket.
    pub(crate) stopping: watch::Receiver<bool>,
}

impl AmqpService {
    /// Serves a port until `stop` turns true.
    pub(crate) async fn serve(self, listener: TcpListener, mut stop: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let acceptor = self.tls.clone().map(TlsAcceptor::from);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = ended(&mut stop) => break,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "the hub cannot accept an AMQP connection");
                    tokio::time::sleep(crate::listen::ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().acquire_owned().await else { break };
            let (service, acceptor, stop) = (self.clone(), acceptor.clone(), stop.clone());
            tokio::spawn(async move {
                service.tcp(stream, from, acceptor, stop).await;
                drop(place);
            });
        }
    }

    async fn tcp(
        self,
        stream: TcpStream,
        from: SocketAddr,
        acceptor: Option<TlsAcceptor>,
        stop: watch::Receiver<bool>,
    ) {
        let _ = stream.set_nodelay(true);
        match acceptor {
            None => self.connection(stream, stop).await,
            Some(acceptor) => match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => self.connection(stream, stop).await,
                Ok(Err(error)) => tracing::debug!(%from, %error, "a TLS handshake failed"),
                Err(_) => tracing::debug!(%from, "a TLS handshake took too long"),
            },
        }
    }

    /// Serves one client, over anything that carries its bytes.
    pub(crate) async fn connection<S>(self, stream: S, mut stop: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Send,
    {
        let clock = self.control.clock().clone();
        let cloud = self.shared.cloud.clone();
        let mut desk = Desk::new(self.shared.clone(), clock.now().at);
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (done, mut results) = mpsc::unbounded_channel::<Done>();
        let mut input = vec![0; READ];
        let mut output = Vec::new();
        let mut written = 0;
        let mut stopping = false;
        loop {
            // Whoever waits from before the pump misses nothing that comes behind it.
            let mut logged = std::pin::pin!(cloud.log.changed());
            let mut feedback = std::pin::pin!(cloud.feedback.changed());
            let mut files = std::pin::pin!(cloud.files.changed());
            logged.as_mut().enable();
            feedback.as_mut().enable();
            files.as_mut().enable();
            desk.tick(clock.now());
            while let Some(work) = desk.take_work() {
                self.work(work, done.clone());
            }
            if written == output.len() {
                output = desk.take_output(clock.now());
                written = 0;
            }
            if desk.is_closed() {
                let mut rest = output.split_off(written);
                rest.append(&mut desk.take_output(clock.now()));
                let _ = tokio::time::timeout(LAST_WORDS, writer.write_all(&rest)).await;
                break;
            }
            let now = clock.now();
            let wait = desk.deadline(now).map_or(Duration::from_secs(3600), |at| at.since(now.at));
            let listens = desk.listens();
            let may_read = output.len() - written < WRITE;
            tokio::select! {
                count = reader.read(&mut input), if may_read => match count {
                    Ok(0) | Err(_) => break,
                    Ok(count) => desk.receive(clock.now(), &input[..count]),
                },
                count = writer.write(&output[written..]), if written < output.len() => match count {
                    Ok(count) if count > 0 => {
                        written += count;
                        if written == output.len() && writer.flush().await.is_err() {
                            break;
                        }
                    }
                    _ => break,
                },
                Some((link, delivery, result)) = results.recv() => {
                    desk.done(clock.now(), link, delivery, result);
                }
                () = &mut logged, if listens => {}
                () = &mut feedback, if listens => {}
                () = &mut files, if listens => {}
                () = ended(&mut stop), if !stopping => {
                    stopping = true;
                    desk.close(clock.now());
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
        let _ = tokio::time::timeout(LAST_WORDS, writer.shutdown()).await;
    }

    /// Sends a C2D message by its device's shard. Tasks start in the order of their making, and so do the messages of
    /// one sender reach their queue.
    fn work(&self, work: Work, done: mpsc::UnboundedSender<Done>) {
        let control = self.control.clone();
        tokio::spawn(async move {
            let Work { link, delivery, send } = work;
            let result = async {
                control.admitted(Operation::CloudToDevice, 1).await?;
                let message = Arc::new(send.message);
                let device = send.device.clone();
                let sent = control.with_device(&send.device, move |shard| {
                    let device = shard.find(&device)?;
                    shard.apply(Input::SendC2d { device, message }).map(drop)
                });
                sent.await.unwrap_or_else(|error| Err(stopped(error)))
            };
            // The client may be gone.
            let _ = done.send((link, delivery, result.await));
        });
    }
}

/// Waits for the hub's end.
async fn ended(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn stopped(error: ControlError) -> Box<HubError> {
    match error {
        ControlError::Refused(error) => error,
        ControlError::Stopped => {
            Box::new(HubError { code: ErrorCode::GatewayTimeout, message: "the hub has stopped".into() })
        }
    }
}
