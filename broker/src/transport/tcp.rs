//! Connections over TCP.

use std::io::{self, Read, Write};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::{Sent, Transport};

/// The sockets of a shard: one registration each for its whole life, edge-triggered in both directions.
#[derive(Debug)]
pub(crate) struct Tcp {
    registry: Registry,
}

/// What a read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// So many bytes, and more may be waiting.
    Full(usize),
    /// So many bytes, and nothing waits now.
    Drained(usize),
    /// The client has gone.
    Ended,
}

impl Tcp {
    pub(crate) fn new(registry: Registry) -> Self {
        Self { registry }
    }

    /// Watches a socket for the session `token`.
    pub(crate) fn adopt(&mut self, line: &mut TcpStream, token: u32) -> io::Result<()> {
        self.registry.register(line, Token(token as usize), Interest::READABLE | Interest::WRITABLE)
    }

    /// Stops watching, for another shard to adopt the socket.
    pub(crate) fn release(&mut self, line: &mut TcpStream) -> io::Result<()> {
        self.registry.deregister(line)
    }

    /// Reads once. A read that does not fill the buffer has emptied the socket: the next byte, or the end of
    /// the stream, makes a new event.
    pub(crate) fn receive(&mut self, line: &mut TcpStream, buffer: &mut [u8]) -> Received {
        loop {
            match line.read(buffer) {
                Ok(0) => return Received::Ended,
                Ok(length) if length == buffer.len() => return Received::Full(length),
                Ok(length) => return Received::Drained(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Received::Drained(0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Received::Ended,
            }
        }
    }
}

impl Transport for Tcp {
    type Line = TcpStream;

    fn send(&mut self, line: &mut TcpStream, bytes: &[u8]) -> Sent {
        let mut sent = 0;
        while sent < bytes.len() {
            match line.write(&bytes[sent..]) {
                Ok(0) => return Sent::Broken,
                Ok(length) => sent += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Sent::Broken,
            }
        }
        Sent::Bytes(sent)
    }

    fn close(&mut self, line: TcpStream) {
        // Closing the descriptor takes it out of the poll as well.
        drop(line);
    }

    fn flush(&mut self) {
        // Nothing is collected: a write has gone to the kernel.
    }
}
