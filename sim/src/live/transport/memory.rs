//! Connections over the hub's memory transport: no descriptor each.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use fleetwave_hub::memory::{Event, MemoryConnector, MemoryPort};
use mio::{Events, Poll, Token, Waker};

use super::{Line, Numbers, Received, Transport};

pub(in super::super) struct Memory {
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    port: MemoryPort,
    numbers: Numbers,
}

impl Memory {
    /// # Errors
    /// If the system gives no poll.
    pub(in super::super) fn new(connector: &MemoryConnector) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), Token(0))?);
        let port = connector.port(waker.clone());
        Ok(Self { poll, events: Events::with_capacity(8), waker, port, numbers: Numbers::default() })
    }
}

impl Transport for Memory {
    fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }

    fn connect(&mut self, device: u32, id: &str) -> io::Result<Line> {
        let line = self.numbers.take(device);
        self.port.connect(line.number, id);
        Ok(line)
    }

    fn send(&mut self, line: Line, bytes: &[u8]) {
        if self.numbers.of(line.number).is_some_and(|(open, _)| open == line) {
            self.port.send(line.number, bytes);
        }
    }

    fn close(&mut self, line: Line) {
        // The number is free when the hub has confirmed.
        if self.numbers.disown(line) {
            self.port.close(line.number);
        }
    }

    fn flush(&mut self) {
        self.port.flush();
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.poll.poll(&mut self.events, Some(timeout))
    }

    fn receive(&mut self, into: &mut Received) -> bool {
        let Some(batch) = self.port.receive() else { return false };
        for (number, event) in batch.iter() {
            let open = self.numbers.of(number);
            match (event, open) {
                (Event::Bytes(bytes), Some((line, device))) => into.add(line, device, bytes),
                (Event::Closed, open) => {
                    if let Some((line, device)) = open {
                        into.closed(line, device);
                    }
                    self.numbers.give_back(number);
                }
                (Event::Opened | Event::Bytes(_), _) => {}
            }
        }
        true
    }
}
