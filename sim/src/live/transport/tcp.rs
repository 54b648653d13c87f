//! Connections over TCP.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use rustc_hash::FxHashMap;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Line, Numbers, Received, Transport};

pub(super) const WAKER: Token = Token(usize::MAX);
const READ_BUFFER: usize = 64 * 1024;
/// Sockets that are read before the shard deals with what came.
pub(super) const READS_A_TURN: usize = 256;
/// Connections from one source address before the next one is taken: well below the number of ephemeral ports.
const PORTS_AN_ADDRESS: u32 = 20_000;

pub(in super::super) struct Tcp {
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    address: SocketAddr,
    sockets: Vec<Option<TcpStream>>,
    numbers: Numbers,
    /// What a socket would not take yet.
    unsent: FxHashMap<u32, BytesMut>,
    /// Numbers of connections that have something to read.
    ready: Vec<u32>,
    /// Numbers of connections that take bytes again.
    writable: Vec<u32>,
    buffer: Box<[u8]>,
    /// Connections that were ever made: which source address is next.
    made: u32,
    /// Source addresses are spread over the loopback network: its ephemeral ports ran out on one.
    spread: bool,
}

impl Tcp {
    /// # Errors
    /// If the system gives no poll.
    pub(in super::super) fn new(address: SocketAddr) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        Ok(Self {
            poll,
            events: Events::with_capacity(4096),
            waker,
            address,
            sockets: Vec::new(),
            numbers: Numbers::default(),
            unsent: FxHashMap::default(),
            ready: Vec::new(),
            writable: Vec::new(),
            buffer: vec![0; READ_BUFFER].into_boxed_slice(),
            made: 0,
            spread: false,
        })
    }

    fn open(&mut self) -> io::Result<TcpStream> {
        self.made = self.made.wrapping_add(1);
        let source = self.spread.then(|| loopback_source(self.made / PORTS_AN_ADDRESS));
        match connect(self.address, source) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrNotAvailable && self.address.ip().is_loopback() =>
            {
                self.spread = self.address.is_ipv4();
                connect(self.address, self.spread.then(|| loopback_source(self.made / PORTS_AN_ADDRESS + 1)))
            }
            other => other,
        }
    }

    fn end(&mut self, number: u32) {
        // Closing the descriptor takes it out of the poll as well.
        self.sockets[number as usize] = None;
        self.unsent.remove(&number);
        self.numbers.give_back(number);
    }

    /// Writes what it can; what is left waits. A broken connection shows when it is read.
    fn write(&mut self, number: u32) {
        let Some(socket) = self.sockets.get_mut(number as usize).and_then(Option::as_mut) else { return };
        let Some(waiting) = self.unsent.get_mut(&number) else { return };
        while !waiting.is_empty() {
            match socket.write(waiting) {
                Ok(0) => break,
                Ok(length) => waiting.advance(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_patience(&error) => return,
                Err(_) => break,
            }
        }
        self.unsent.remove(&number);
    }
}

/// Not connected yet, or its buffer is full: writable will come.
pub(super) fn is_patience(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}

/// An address of the loopback network other than the usual one.
fn loopback_source(number: u32) -> IpAddr {
    let [.., high, low] = (number % 0xfffe + 1).to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 77, high, low))
}

/// Begins to connect; `source` is where from.
pub(super) fn connect(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    match socket.connect(&address.into()) {
        Ok(()) => {}
        // This is how a connect that does not wait begins.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) => return Err(error),
    }
    Ok(TcpStream::from_std(socket.into()))
}

impl Transport for Tcp {
    fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }

    fn connect(&mut self, device: u32, _id: &str) -> io::Result<Line> {
        let mut socket = self.open()?;
        let line = self.numbers.take(device);
        let index = line.number as usize;
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut socket, Token(index), interest) {
            self.numbers.give_back(line.number);
            return Err(error);
        }
        if self.sockets.len() <= index {
            self.sockets.resize_with(index + 1, || None);
        }
        self.sockets[index] = Some(socket);
        Ok(line)
    }

    fn send(&mut self, line: Line, bytes: &[u8]) {
        if self.numbers.of(line.number).is_none_or(|(open, _)| open != line) {
            return;
        }
        let Some(socket) = &mut self.sockets[line.number as usize] else { return };
        if let Some(waiting) = self.unsent.get_mut(&line.number) {
            waiting.extend_from_slice(bytes);
            return;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match socket.write(rest) {
                Ok(0) => return,
                Ok(length) => rest = &rest[length..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_patience(&error) => {
                    self.unsent.insert(line.number, BytesMut::from(rest));
                    return;
                }
                // What is broken shows when it is read.
                Err(_) => return,
            }
        }
    }

    fn close(&mut self, line: Line) {
        if self.numbers.disown(line) {
            self.end(line.number);
        }
    }

    fn flush(&mut self) {
        // Nothing is collected: a write has gone to the kernel.
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let timeout = if self.ready.is_empty() { timeout } else { Duration::ZERO };
        self.poll.poll(&mut self.events, Some(timeout))?;
        let mut writable = std::mem::take(&mut self.writable);
        for event in &self.events {
            if event.token() == WAKER {
                continue;
            }
            let number = event.token().0 as u32;
            if event.is_writable() && !self.unsent.is_empty() {
                writable.push(number);
            }
            if event.is_readable() {
                self.ready.push(number);
            }
            // What came before the end is read first, and then the end.
            if event.is_read_closed() || event.is_error() {
                self.ready.push(number);
            }
        }
        for number in writable.drain(..) {
            self.write(number);
        }
        self.writable = writable;
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
            let Some(socket) = &mut self.sockets[number as usize] else { continue };
            match socket.read(&mut self.buffer) {
                Ok(length) if length > 0 => {
                    into.add(line, device, &self.buffer[..length]);
                    // A read that fills the buffer may have left something; no event will say so.
                    if length == self.buffer.len() {
                        self.ready.push(number);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => self.ready.push(number),
                Err(error) if is_patience(&error) => {}
                Ok(_) | Err(_) => {
                    into.closed(line, device);
                    self.end(number);
                }
            }
        }
        true
    }
}
