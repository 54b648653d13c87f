//! Connections over TLS.
//!
//! A connection at rest holds its keys and nothing else: records are opened and sealed in buffers that a whole shard
//! shares. Only the part of a record that has come so far, or that the socket did not take, is kept with it.

use std::io::{self, Read, Write};
use std::sync::Arc;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};

use super::tcp::Received;
use super::{Sent, Transport};
use crate::tls::PeerIdentity;

/// What one record carries at most.
const RECORD: usize = 16 * 1024;
/// What sealing adds to it, with room to spare.
const OVERHEAD: usize = 512;
/// The most that is kept of a record, or of a message of the handshake, until the rest comes: certificates are larger
/// than records may be.
const MAX_PARTIAL: usize = 32 * 1024;

/// The TLS connections of a shard.
#[derive(Debug)]
pub(crate) struct Tls {
    registry: Registry,
    /// Records that were read, opened in place.
    sealed: Vec<u8>,
    /// Records to be written.
    out: Vec<u8>,
}

/// One connection.
pub(crate) struct TlsLine {
    stream: TcpStream,
    connection: UnbufferedServerConnection,
    /// The beginning of a record.
    partial: Vec<u8>,
    /// Sealed bytes that the socket has not taken.
    unsent: Vec<u8>,
    /// The client has said that nothing more will come.
    ended: bool,
}

impl TlsLine {
    /// A connection on which the handshake is still to come.
    pub(crate) fn new(stream: TcpStream, config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let connection = UnbufferedServerConnection::new(config)?;
        Ok(Self { stream, connection, partial: Vec::new(), unsent: Vec::new(), ended: false })
    }

    /// Whether the handshake goes on.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// What the client has shown.
    pub(crate) fn peer(&self) -> PeerIdentity {
        PeerIdentity::of(&self.connection)
    }

    /// Bytes that it holds beside its state.
    pub(crate) fn buffered(&self) -> usize {
        self.partial.capacity() + self.unsent.capacity()
    }
}

impl std::fmt::Debug for TlsLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsLine").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// How far the opening of records has come.
enum Opened {
    /// More bytes are needed.
    Starved,
    /// The client has ended the connection.
    Closed,
    /// It broke the protocol.
    Broken,
}

impl Tls {
    pub(crate) fn new(registry: Registry) -> Self {
        Self { registry, sealed: Vec::new(), out: Vec::new() }
    }

    /// Watches a connection for the session `token`.
    pub(crate) fn adopt(&mut self, line: &mut TlsLine, token: u32) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.registry.register(&mut line.stream, Token(token as usize), interest)
    }

    /// Stops watching, for another shard to adopt the connection.
    pub(crate) fn release(&mut self, line: &mut TlsLine) -> io::Result<()> {
        self.registry.deregister(&mut line.stream)
    }

    /// Reads the socket once, and puts what its records hold into `buffer`.
    pub(crate) fn receive(&mut self, line: &mut TlsLine, buffer: &mut [u8]) -> Received {
        if line.ended {
            return Received::Ended;
        }
        // What records hold is never more than they are long.
        self.sealed.resize(buffer.len(), 0);
        let held = line.partial.len();
        self.sealed[..held].copy_from_slice(&line.partial);
        let read = loop {
            match line.stream.read(&mut self.sealed[held..]) {
                Ok(length) => break length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Received::Drained(0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Received::Ended,
            }
        };
        if read == 0 {
            return Received::Ended;
        }
        line.partial = Vec::new();
        let filled = held + read;
        let mut plain = 0;
        self.out.clear();
        let (used, opened) =
            open(&mut line.connection, &mut self.sealed[..filled], buffer, &mut plain, &mut self.out);
        if !self.out.is_empty() {
            line.unsent.extend_from_slice(&self.out);
            if flush(line) == Flushed::Broken {
                return Received::Ended;
            }
        }
        match opened {
            Opened::Starved if filled - used <= MAX_PARTIAL => {
                line.partial = self.sealed[used..filled].to_vec();
            }
            Opened::Starved | Opened::Broken | Opened::Closed => line.ended = true,
        }
        // Nothing for the session does not mean that nothing waits.
        if plain == 0 || line.ended || filled == self.sealed.len() {
            Received::Full(plain)
        } else {
            Received::Drained(plain)
        }
    }
}

/// Opens the records in `sealed`: their contents go to `plain`, what the protocol wants to say to `out`. Says how many
/// bytes of `sealed` are done with.
fn open(
    connection: &mut UnbufferedServerConnection,
    sealed: &mut [u8],
    buffer: &mut [u8],
    plain: &mut usize,
    out: &mut Vec<u8>,
) -> (usize, Opened) {
    let mut used = 0;
    loop {
        let UnbufferedStatus { mut discard, state, .. } = connection.process_tls_records(&mut sealed[used..]);
        let opened = match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                match traffic.next_record() {
                    Some(Ok(record)) => {
                        discard += record.discard;
                        buffer[*plain..*plain + record.payload.len()].copy_from_slice(record.payload);
                        *plain += record.payload.len();
                    }
                    Some(Err(error)) => {
                        tracing::debug!(%error, "a client broke the TLS protocol");
                        break Some(Opened::Broken);
                    }
                    None => break None,
                }
            },
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                let start = out.len();
                let mut room = RECORD + OVERHEAD;
                loop {
                    out.resize(start + room, 0);
                    match data.encode(&mut out[start..]) {
                        Ok(written) => {
                            out.truncate(start + written);
                            break None;
                        }
                        Err(EncodeError::InsufficientSize(needed)) => room = needed.required_size,
                        Err(EncodeError::AlreadyEncoded) => {
                            out.truncate(start);
                            break None;
                        }
                    }
                }
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                None
            }
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Some(Opened::Closed),
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => Some(Opened::Starved),
            // The hub offers no early data.
            Ok(_) => Some(Opened::Broken),
            Err(error) => {
                tracing::debug!(%error, "a client broke the TLS protocol");
                alert(connection, out);
                Some(Opened::Broken)
            }
        };
        used += discard;
        if let Some(opened) = opened {
            return (used, opened);
        }
    }
}

/// Appends what a broken connection still has to say.
fn alert(connection: &mut UnbufferedServerConnection, out: &mut Vec<u8>) {
    while let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.process_tls_records(&mut []).state {
        let start = out.len();
        out.resize(start + RECORD + OVERHEAD, 0);
        let written = data.encode(&mut out[start..]).unwrap_or(0);
        out.truncate(start + written);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flushed {
    All,
    Part,
    Broken,
}

/// Writes the bytes that wait with a connection.
fn flush(line: &mut TlsLine) -> Flushed {
    if line.unsent.is_empty() {
        return Flushed::All;
    }
    match write(&mut line.stream, &line.unsent) {
        Some(sent) if sent == line.unsent.len() => {
            line.unsent = Vec::new();
            Flushed::All
        }
        Some(sent) => {
            line.unsent.drain(..sent);
            Flushed::Part
        }
        None => Flushed::Broken,
    }
}

/// Writes as much as goes; `None` if the client is gone.
fn write(stream: &mut TcpStream, bytes: &[u8]) -> Option<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.write(&bytes[sent..]) {
            Ok(0) => return None,
            Ok(length) => sent += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(sent)
}

impl Transport for Tls {
    type Line = TlsLine;

    /// Bytes count as sent once they are sealed: at most one record is, before the socket has taken the last.
    fn send(&mut self, line: &mut TlsLine, bytes: &[u8]) -> Sent {
        match flush(line) {
            Flushed::All => {}
            Flushed::Part => return Sent::Bytes(0),
            Flushed::Broken => return Sent::Broken,
        }
        let mut sent = 0;
        for chunk in bytes.chunks(RECORD) {
            self.out.resize(RECORD + OVERHEAD, 0);
            let state = line.connection.process_tls_records(&mut line.partial).state;
            let Ok(ConnectionState::WriteTraffic(mut traffic)) = state else { return Sent::Broken };
            let Ok(length) = traffic.encrypt(chunk, &mut self.out) else { return Sent::Broken };
            sent += chunk.len();
            match write(&mut line.stream, &self.out[..length]) {
                Some(written) if written == length => {}
                Some(written) => {
                    line.unsent = self.out[written..length].to_vec();
                    break;
                }
                None => return Sent::Broken,
            }
        }
        Sent::Bytes(sent)
    }

    fn close(&mut self, mut line: TlsLine) {
        // A client that finds the end without these words must take it for an attack.
        if !line.is_handshaking() && flush(&mut line) == Flushed::All {
            self.out.resize(RECORD + OVERHEAD, 0);
            if let Ok(ConnectionState::WriteTraffic(mut traffic)) =
                line.connection.process_tls_records(&mut line.partial).state
                && let Ok(length) = traffic.queue_close_notify(&mut self.out)
            {
                // Closing waits for nobody.
                let _ = write(&mut line.stream, &self.out[..length]);
            }
        }
    }

    fn flush(&mut self) {
        // Nothing is collected: a write has gone to the kernel.
    }
}
