//! Connections over the [memory transport](crate::memory).

use crate::memory::HubPort;

use super::{Sent, Transport};

/// The ports of a shard.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    ports: Vec<Option<HubPort>>,
}

/// One of a port's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wire {
    pub(crate) port: u32,
    pub(crate) number: u32,
}

impl Memory {
    /// A client thread opened a port.
    pub(crate) fn open(&mut self, id: usize, port: HubPort) {
        if self.ports.len() <= id {
            self.ports.resize_with(id + 1, || None);
        }
        self.ports[id] = Some(port);
    }

    /// A client thread has gone; its connections were ended before.
    pub(crate) fn forget(&mut self, id: u32) {
        if let Some(port) = self.ports.get_mut(id as usize) {
            *port = None;
        }
    }

    pub(crate) fn port(&mut self, id: u32) -> Option<&mut HubPort> {
        self.ports.get_mut(id as usize)?.as_mut()
    }
}

impl Transport for Memory {
    type Line = Wire;

    fn send(&mut self, line: &mut Wire, bytes: &[u8]) -> Sent {
        match self.port(line.port) {
            Some(port) => {
                port.send(line.number, bytes);
                Sent::Bytes(bytes.len())
            }
            None => Sent::Broken,
        }
    }

    fn close(&mut self, line: Wire) {
        if let Some(port) = self.port(line.port) {
            port.close(line.number);
        }
    }

    fn flush(&mut self) {
        for port in self.ports.iter_mut().flatten() {
            port.flush();
        }
    }
}
