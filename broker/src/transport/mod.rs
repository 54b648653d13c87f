//! How bytes reach a client: one trait, three siblings.
//!
//! A session knows neither sockets nor ports. What a transport receives goes to the shard as
//! (session, bytes); what a session sends goes through [`Transport::send`].

pub(crate) mod memory;
pub(crate) mod tcp;
pub(crate) mod tls;

use std::io;

use mio::net::TcpStream;

use crate::tls::PeerIdentity;
use tcp::Received;

/// What became of bytes that were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// So many of them went; the transport will say when more can.
    Bytes(usize),
    /// The client is gone.
    Broken,
}

/// Carries bytes to clients.
pub(crate) trait Transport {
    /// A connection, as the transport knows it. A session owns it.
    type Line;

    /// Sends as much of `bytes` as goes without waiting.
    fn send(&mut self, line: &mut Self::Line, bytes: &[u8]) -> Sent;

    /// Ends a connection. Bytes that were sent before still arrive.
    fn close(&mut self, line: Self::Line);

    /// Hands over what was collected. Called once after each turn of the shard.
    fn flush(&mut self);
}

/// A connection of whichever transport.
#[derive(Debug)]
pub(crate) enum Line {
    Tcp(TcpStream),
    Tls(Box<tls::TlsLine>),
    Memory(memory::Wire),
}

impl Line {
    /// What the client has shown in a handshake. Of the memory transport, the session knows.
    pub(crate) fn peer(&self) -> PeerIdentity {
        match self {
            Line::Tls(line) => line.peer(),
            Line::Tcp(_) | Line::Memory(_) => PeerIdentity::NONE,
        }
    }

    /// Whether the next bytes cost a handshake.
    pub(crate) fn is_handshaking(&self) -> bool {
        matches!(self, Line::Tls(line) if line.is_handshaking())
    }

    /// Bytes that the transport holds for it.
    pub(crate) fn buffered(&self) -> usize {
        match self {
            Line::Tls(line) => line.buffered(),
            Line::Tcp(_) | Line::Memory(_) => 0,
        }
    }
}

/// The transports of a shard.
#[derive(Debug)]
pub(crate) struct Transports {
    pub(crate) tcp: tcp::Tcp,
    pub(crate) tls: tls::Tls,
    pub(crate) memory: memory::Memory,
}

impl Transports {
    /// Watches a connection for the session `token`, if its transport has sockets.
    pub(crate) fn adopt(&mut self, line: &mut Line, token: u32) -> io::Result<()> {
        match line {
            Line::Tcp(line) => self.tcp.adopt(line, token),
            Line::Tls(line) => self.tls.adopt(line, token),
            Line::Memory(_) => Ok(()),
        }
    }

    /// Stops watching, for another shard to adopt the connection; false if it cannot leave this shard.
    pub(crate) fn release(&mut self, line: &mut Line) -> bool {
        match line {
            Line::Tcp(line) => self.tcp.release(line).is_ok(),
            Line::Tls(line) => self.tls.release(line).is_ok(),
            Line::Memory(_) => false,
        }
    }

    /// Reads a connection's socket once; `None` if it has none.
    pub(crate) fn receive(&mut self, line: &mut Line, buffer: &mut [u8]) -> Option<Received> {
        match line {
            Line::Tcp(line) => Some(self.tcp.receive(line, buffer)),
            Line::Tls(line) => Some(self.tls.receive(line, buffer)),
            Line::Memory(_) => None,
        }
    }
}

impl Transport for Transports {
    type Line = Line;

    fn send(&mut self, line: &mut Line, bytes: &[u8]) -> Sent {
        match line {
            Line::Tcp(line) => self.tcp.send(line, bytes),
            Line::Tls(line) => self.tls.send(line, bytes),
            Line::Memory(line) => self.memory.send(line, bytes),
        }
    }

    fn close(&mut self, line: Line) {
        match line {
            Line::Tcp(line) => self.tcp.close(line),
            Line::Tls(line) => self.tls.close(*line),
            Line::Memory(line) => self.memory.close(line),
        }
    }

    fn flush(&mut self) {
        self.tcp.flush();
        self.tls.flush();
        self.memory.flush();
    }
}
