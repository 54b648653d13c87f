//! AMQP over WebSocket: the same bytes in binary messages.
//!
//! Source: the service SDKs: IoT Hub's use its WebSocket path, Event Hubs' a path of their own, both the sub-protocol
//! `AMQPWSB10`.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::service::AmqpService;
use crate::rest::Upgrade;
use crate::tls::PeerIdentity;
use crate::websocket::{asks_for, switch};

const PROTOCOL: &str = "AMQPWSB10";
const PATHS: [&str; 2] = [crate::websocket::PATH, "/$servicebus/websocket"];
/// Bytes between the two halves, in each direction.
const PIPE: usize = 64 * 1024;
/// The longest message that is taken: SDKs put a frame of AMQP into one.
const MAX_MESSAGE: usize = 256 * 1024;
/// How long a client may take to read a message.
const PATIENCE: Duration = Duration::from_secs(30);

impl Upgrade for AmqpService {
    fn upgrade(
        &self,
        request: &mut Request<Incoming>,
        _peer: &PeerIdentity,
    ) -> Option<Response<Full<Bytes>>> {
        if !asks_for(request, &PATHS, PROTOCOL) {
            return None;
        }
        let response = switch(request.headers(), PROTOCOL)?;
        let service = self.clone();
        let upgraded = hyper::upgrade::on(request);
        tokio::spawn(async move {
            match upgraded.await {
                Ok(io) => service.websocket(TokioIo::new(io)).await,
                Err(error) => tracing::debug!(%error, "a WebSocket did not open"),
            }
        });
        Some(response)
    }
}

impl AmqpService {
    /// Serves a connection whose opening handshake is done, until it ends.
    async fn websocket<S: AsyncRead + AsyncWrite + Unpin + Send>(self, io: S) {
        let config =
            WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
        let (outside, inside) = tokio::io::duplex(PIPE);
        let stop = self.stopping.clone();
        tokio::join!(carry(socket, outside), self.connection(inside, stop));
    }
}

/// Carries bytes until one side ends.
async fn carry<S, P>(socket: WebSocketStream<S>, pipe: P)
where
    S: AsyncRead + AsyncWrite + Unpin,
    P: AsyncRead + AsyncWrite,
{
    let (mut to_client, mut from_client) = socket.split();
    let (mut from_hub, mut to_hub) = tokio::io::split(pipe);
    let up = async {
        while let Some(message) = from_client.next().await {
            match message {
                Ok(Message::Binary(bytes)) => {
                    if to_hub.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
                // The library answers pings.
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Ok(Message::Text(_) | Message::Close(_)) | Err(_) => break,
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; PIPE / 2];
        while let Ok(count @ 1..) = from_hub.read(&mut buffer).await {
            let message = Message::Binary(Bytes::copy_from_slice(&buffer[..count]));
            if !matches!(tokio::time::timeout(PATIENCE, to_client.send(message)).await, Ok(Ok(()))) {
                break;
            }
        }
        let _ = tokio::time::timeout(PATIENCE, to_client.close()).await;
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
