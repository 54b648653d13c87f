//! How bytes reach a client: one trait, two siblings.
//!
//! A session knows neither sockets nor ports. What a transport receives goes to the shard as
//! (session, bytes); what a session sends goes through [`Transport::send`].

pub(crate) mod memory;
pub(crate) mod tcp;

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

/// A connection of either transport.
#[derive(Debug)]
pub(crate) enum Line {
    Tcp(<tcp::Tcp as Transport>::Line),
    Memory(<memory::Memory as Transport>::Line),
}

/// Both transports of a shard.
#[derive(Debug)]
pub(crate) struct Transports {
    pub(crate) tcp: tcp::Tcp,
    pub(crate) memory: memory::Memory,
}

impl Transport for Transports {
    type Line = Line;

    fn send(&mut self, line: &mut Line, bytes: &[u8]) -> Sent {
        match line {
            Line::Tcp(line) => self.tcp.send(line, bytes),
            Line::Memory(line) => self.memory.send(line, bytes),
        }
    }

    fn close(&mut self, line: Line) {
        match line {
            Line::Tcp(line) => self.tcp.close(line),
            Line::Memory(line) => self.memory.close(line),
        }
    }

    fn flush(&mut self) {
        self.tcp.flush();
        self.memory.flush();
    }
}
