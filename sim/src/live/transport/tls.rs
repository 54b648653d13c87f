//! Connections over TLS, to a hub that is not ours.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::tcp::{READS_A_TURN, WAKER, connect, is_patience};
use super::{Line, Numbers, Received, Transport};

/// Where connections go, and whom they have to find there.
#[derive(Clone, Debug)]
pub(in super::super) struct Server {
    pub(in super::super) address: SocketAddr,
    pub(in super::super) name: ServerName<'static>,
    pub(in super::super) config: Arc<ClientConfig>,
}

#[derive(Debug)]
struct Peer {
    socket: TcpStream,
    tls: ClientConnection,
}

/// How far reading has come.
enum Reading {
    /// Everything that has come was read.
    Done,
    /// The connection is over.
    Over,
}

impl Peer {
    /// Writes what it can. The rest waits in the connection; what is broken shows when it is read.
    fn write(&mut self) {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// Reads what has come, and appends the plain bytes.
    fn read(&mut self, plain: &mut Vec<u8>) -> Reading {
        loop {
            match self.tls.read_tls(&mut self.socket) {
                Ok(0) => return Reading::Over,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if is_patience(&error) => return Reading::Done,
                Err(_) => return Reading::Over,
            }
            if let Err(error) = self.tls.process_new_packets() {
                tracing::warn!(%error, "TLS with the hub failed");
                // What is wrong is told to the other side.
                self.write();
                return Reading::Over;
            }
            match self.tls.reader().read_to_end(plain) {
                // The other side has said that nothing more comes.
                Ok(_) => return Reading::Over,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Reading::Over,
            }
            // The handshake has something to answer.
            self.write();
        }
    }
}

pub(in super::super) struct Tls {
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    server: Server,
    peers: Vec<Option<Peer>>,
    numbers: Numbers,
    /// Numbers of connections that have something to read.
    ready: Vec<u32>,
    plain: Vec<u8>,
}

impl Tls {
    /// # Errors
    /// If the system gives no poll.
    pub(in super::super) fn new(server: Server) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        Ok(Self {
            poll,
            events: Events::with_capacity(4096),
            waker,
            server,
            peers: Vec::new(),
            numbers: Numbers::default(),
            ready: Vec::new(),
            plain: Vec::new(),
        })
    }

    fn end(&mut self, number: u32) {
        // Closing the descriptor takes it out of the poll as well.
        self.peers[number as usize] = None;
        self.numbers.give_back(number);
    }
}

impl Transport for Tls {
    fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }

    fn connect(&mut self, device: u32, _id: &str) -> io::Result<Line> {
        let mut tls = ClientConnection::new(self.server.config.clone(), self.server.name.clone())
            .map_err(io::Error::other)?;
        // Nothing that a device says is dropped because the handshake is not done.
        tls.set_buffer_limit(None);
        let mut socket = connect(self.server.address, None)?;
        let line = self.numbers.take(device);
        let index = line.number as usize;
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut socket, Token(index), interest) {
            self.numbers.give_back(line.number);
            return Err(error);
        }
        if self.peers.len() <= index {
            self.peers.resize_with(index + 1, || None);
        }
        self.peers[index] = Some(Peer { socket, tls });
        Ok(line)
    }

    fn send(&mut self, line: Line, bytes: &[u8]) {
        if self.numbers.of(line.number).is_none_or(|(open, _)| open != line) {
            return;
        }
        let Some(peer) = &mut self.peers[line.number as usize] else { return };
        // It takes everything: there is no limit.
        if peer.tls.writer().write_all(bytes).is_ok() {
            peer.write();
        }
    }

    fn close(&mut self, line: Line) {
        if self.numbers.disown(line) {
            if let Some(peer) = &mut self.peers[line.number as usize] {
                peer.tls.send_close_notify();
                peer.write();
            }
            self.end(line.number);
        }
    }

    fn flush(&mut self) {
        // Nothing is collected: a write has gone to the kernel.
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let timeout = if self.ready.is_empty() { timeout } else { Duration::ZERO };
        self.poll.poll(&mut self.events, Some(timeout))?;
        for event in &self.events {
            if event.token() == WAKER {
                continue;
            }
            let number = event.token().0 as u32;
            if event.is_writable()
                && let Some(peer) = &mut self.peers[number as usize]
            {
                peer.write();
            }
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                self.ready.push(number);
            }
        }
        Ok(())
    }

    fn receive(&mut self, into: &mut Received) -> bool {
        if self.ready.is_empty() {
            return false;
        }
        let from = self.ready.len().saturating_sub(READS_A_TURN);
        for number in self.ready.split_off(from) {
            // An event of a connection that has ended meanwhile.
            let Some((line, device)) = self.numbers.of(number) else { continue };
            let Some(peer) = &mut self.peers[number as usize] else { continue };
            self.plain.clear();
            let reading = peer.read(&mut self.plain);
            if !self.plain.is_empty() {
                into.add(line, device, &self.plain);
            }
            if matches!(reading, Reading::Over) {
                into.closed(line, device);
                self.end(number);
            }
        }
        true
    }
}
