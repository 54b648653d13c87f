//! Connections over TLS.
//!
//! A connection at rest holds its keys and nothing else: records are opened and sealed in buffers that a whole shard
//! shares. Only the part of a record that has come so far, or that the socket did not take, is kept with it.

use std::io::{self, Read, Write};
use std::sync::Arc;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::ServerConfig;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};

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
#[derive(Debug)]
pub(crate) struct TlsLine {
    stream: TcpStream,
    session: TlsSession,
    /// Sealed bytes that the socket has not taken.
    unsent: Vec<u8>,
}

/// The protocol's part of a connection.
struct TlsSession {
    connection: UnbufferedServerConnection,
    /// The beginning of a record, or of a handshake message. The connection's state refers to places in it: whatever
    /// is asked of the connection has to come with these bytes.
    partial: Vec<u8>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// The client has said that nothing more will come.
    Ended,
    /// The client broke the protocol. The connection must not be asked for anything any more.
    Broken,
}

impl TlsLine {
    /// A connection on which the handshake is still to come.
    pub(crate) fn new(stream: TcpStream, config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self { stream, session: TlsSession::new(config)?, unsent: Vec::new() })
    }

    /// Whether the handshake goes on.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.session.connection.is_handshaking()
    }

    /// What the client has shown.
    pub(crate) fn peer(&self) -> PeerIdentity {
        PeerIdentity::of(&self.session.connection)
    }

    /// Bytes that it holds beside its state.
    pub(crate) fn buffered(&self) -> usize {
        self.session.partial.capacity() + self.unsent.capacity()
    }
}

impl std::fmt::Debug for TlsSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsSession").field("phase", &self.phase).finish_non_exhaustive()
    }
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
        if line.session.phase != Phase::Open {
            return Received::Ended;
        }
        // What records hold is never more than they are long.
        self.sealed.resize(buffer.len(), 0);
        let held = line.session.partial.len();
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
        self.out.clear();
        let filled = held + read;
        let plain = line.session.open(&mut self.sealed[..filled], buffer, &mut self.out);
        if !self.out.is_empty() {
            line.unsent.extend_from_slice(&self.out);
            if flush(line) == Flushed::Broken {
                return Received::Ended;
            }
        }
        // Nothing for the session does not mean that nothing waits.
        if plain == 0 || line.session.phase != Phase::Open || filled == self.sealed.len() {
            Received::Full(plain)
        } else {
            Received::Drained(plain)
        }
    }
}

impl TlsSession {
    fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let connection = UnbufferedServerConnection::new(config)?;
        Ok(Self { connection, partial: Vec::new(), phase: Phase::Open })
    }

    /// Opens records, in place: `sealed` has room for the bytes that were left, and new ones behind it. Their contents
    /// go to the beginning of `buffer`, what the protocol wants to say to `out`. Says how many bytes `buffer` got.
    fn open(&mut self, sealed: &mut [u8], buffer: &mut [u8], out: &mut Vec<u8>) -> usize {
        let partial = std::mem::take(&mut self.partial);
        sealed[..partial.len()].copy_from_slice(&partial);
        let (mut used, mut plain) = (0, 0);
        loop {
            let UnbufferedStatus { mut discard, state, .. } =
                self.connection.process_tls_records(&mut sealed[used..]);
            let mut starved = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        match record {
                            Ok(record) => {
                                discard += record.discard;
                                buffer[plain..plain + record.payload.len()].copy_from_slice(record.payload);
                                plain += record.payload.len();
                            }
                            Err(error) => {
                                tracing::debug!(%error, "a client broke the TLS protocol");
                                self.phase = Phase::Broken;
                                break;
                            }
                        }
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, out),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => self.phase = Phase::Ended,
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => starved = true,
                // The hub offers no early data.
                Ok(_) => self.phase = Phase::Broken,
                Err(error) => {
                    tracing::debug!(%error, "a client broke the TLS protocol");
                    self.phase = Phase::Broken;
                }
            }
            used += discard;
            if self.phase == Phase::Broken {
                self.say_why(&mut sealed[used..], out);
            }
            if starved || self.phase != Phase::Open {
                break;
            }
        }
        if sealed.len() - used > MAX_PARTIAL {
            self.phase = Phase::Broken;
        }
        if self.phase != Phase::Broken {
            self.partial = sealed[used..].to_vec();
        }
        plain
    }

    /// The alert of a connection that is broken, if it has one to send.
    fn say_why(&mut self, left: &mut [u8], out: &mut Vec<u8>) {
        while self.connection.wants_write()
            && let Ok(ConnectionState::EncodeTlsData(mut data)) =
                self.connection.process_tls_records(left).state
        {
            encode(&mut data, out);
        }
    }

    /// Seals bytes, or the word that nothing more will come, into `out`; `None` if the connection can't any more.
    fn seal(&mut self, out: &mut Vec<u8>, what: Seal<'_>) -> Option<usize> {
        if self.phase == Phase::Broken {
            return None;
        }
        out.resize(RECORD + OVERHEAD, 0);
        let UnbufferedStatus { discard, state, .. } = self.connection.process_tls_records(&mut self.partial);
        let sealed = match state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => match what {
                Seal::Bytes(bytes) => traffic.encrypt(bytes, out).ok(),
                Seal::End => traffic.queue_close_notify(out).ok(),
            },
            _ => None,
        };
        self.partial.drain(..discard);
        if sealed.is_none() {
            self.phase = Phase::Broken;
        }
        sealed
    }
}

/// What a session is to seal.
#[derive(Clone, Copy, Debug)]
enum Seal<'a> {
    Bytes(&'a [u8]),
    End,
}

/// Appends what the protocol wants to say.
fn encode(data: &mut EncodeTlsData<'_, ServerConnectionData>, out: &mut Vec<u8>) {
    let start = out.len();
    let mut room = RECORD + OVERHEAD;
    loop {
        out.resize(start + room, 0);
        match data.encode(&mut out[start..]) {
            Ok(written) => return out.truncate(start + written),
            Err(EncodeError::InsufficientSize(needed)) => room = needed.required_size,
            Err(EncodeError::AlreadyEncoded) => return out.truncate(start),
        }
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
            let sealed = line.session.seal(&mut self.out, Seal::Bytes(chunk));
            let Some(length) = sealed else { return Sent::Broken };
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
        if !line.is_handshaking()
            && flush(&mut line) == Flushed::All
            && let Some(length) = line.session.seal(&mut self.out, Seal::End)
        {
            // Closing waits for nobody.
            let _ = write(&mut line.stream, &self.out[..length]);
        }
    }

    fn flush(&mut self) {
        // Nothing is collected: a write has gone to the kernel.
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;
    use crate::pki::Pki;

    /// A client and a session whose bytes the test carries.
    struct Pair {
        client: ClientConnection,
        session: TlsSession,
        /// What the session has opened.
        plain: Vec<u8>,
    }

    impl Pair {
        fn new() -> Self {
            static PKI: std::sync::LazyLock<Pki> =
                std::sync::LazyLock::new(|| Pki::load_or_create(None, &[]).unwrap());
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(PKI.ca_pem().as_bytes()).unwrap()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            let client = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
            Self { client, session: TlsSession::new(PKI.server_config()).unwrap(), plain: Vec::new() }
        }

        /// Bytes reach the session in pieces of these sizes; its answers reach the client.
        fn deliver(&mut self, bytes: &[u8], pieces: &[usize]) {
            let mut rest = bytes;
            let mut pieces = pieces.iter().copied().cycle();
            while !rest.is_empty() && self.session.phase == Phase::Open {
                let (now, later) = rest.split_at(pieces.next().unwrap_or(rest.len()).clamp(1, rest.len()));
                rest = later;
                let held = self.session.partial.len();
                let mut sealed = [&vec![0; held], now].concat();
                let mut buffer = vec![0; sealed.len()];
                let mut out = Vec::new();
                let plain = self.session.open(&mut sealed, &mut buffer, &mut out);
                self.plain.extend_from_slice(&buffer[..plain]);
                let mut out = &out[..];
                while !out.is_empty() && self.client.read_tls(&mut out).is_ok() {
                    let _ = self.client.process_new_packets();
                }
                // A session may be asked to send at any moment.
                if !self.session.connection.is_handshaking() {
                    self.session.seal(&mut Vec::new(), Seal::Bytes(b"x"));
                }
            }
        }

        /// What the client has to say.
        fn said(&mut self) -> Vec<u8> {
            let mut bytes = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut bytes).unwrap();
            }
            bytes
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn records_in_pieces_open_to_what_was_sent(
            body in prop::collection::vec(any::<u8>(), 0..40_000),
            pieces in prop::collection::vec(1usize..9000, 1..8),
        ) {
            let mut pair = Pair::new();
            pair.client.set_buffer_limit(None);
            io::Write::write_all(&mut pair.client.writer(), &body).unwrap();
            for _ in 0..4 {
                let said = pair.said();
                pair.deliver(&said, &pieces);
            }
            prop_assert!(pair.plain == body);
            prop_assert_eq!(pair.session.partial.len(), 0);
        }

        #[test]
        fn no_damage_on_the_way_makes_a_session_panic(
            places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            when in 0usize..3,
            pieces in prop::collection::vec(1usize..3000, 1..8),
            tail in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut pair = Pair::new();
            for turn in 0..4 {
                let _ = io::Write::write_all(&mut pair.client.writer(), b"hello");
                let mut said = pair.said();
                if turn == when && !said.is_empty() {
                    for (place, value) in &places {
                        let place = place.index(said.len());
                        said[place] = *value;
                    }
                    said.extend_from_slice(&tail);
                }
                pair.deliver(&said, &pieces);
            }
            // The end of whatever has become of it.
            if !pair.session.connection.is_handshaking() {
                pair.session.seal(&mut Vec::new(), Seal::End);
            }
        }

        #[test]
        fn no_bytes_make_a_session_panic(
            kind in prop::sample::select(vec![0x14u8, 0x15, 0x16, 0x17]),
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..6),
            message in prop::sample::select(vec![0u8, 1, 2, 11, 15, 16, 20, 24]),
            length in 0u8..2,
            pieces in prop::collection::vec(1usize..100, 1..8),
        ) {
            let mut bytes = Vec::new();
            for body in &bodies {
                let body = [&[message, 0, length, 40], &body[..]].concat();
                bytes.extend_from_slice(&[kind, 3, 3, 0, u8::try_from(body.len()).unwrap()]);
                bytes.extend_from_slice(&body);
            }
            Pair::new().deliver(&bytes, &pieces);
        }
    }
}
