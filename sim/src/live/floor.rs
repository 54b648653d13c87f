//! What this machine does at best, without agent and hub: measured at the start of each live run, in about a second,
//! so that its figures have something to stand beside.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use fleetwave_report::record::{Floor, Transport};
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};

/// The size of a notification.
const MESSAGE: usize = 300;
/// Sockets of the message floor: enough that the cost of many shows, few enough to be made quickly.
const MOST_SOCKETS: u64 = 5_000;
const CONNECT_FOR: Duration = Duration::from_millis(400);
const WRITE_FOR: Duration = Duration::from_millis(400);
const DOWNLOAD_FOR: Duration = Duration::from_millis(300);
/// A batch of the memory transport.
const BATCH: usize = 128 * 1024;

/// The best rate that a measurement held for a while: what else this machine had to do in between is not its limit.
struct Peak {
    since: Instant,
    sum: u64,
    best: f64,
}

impl Peak {
    /// Long enough for a rate, short enough that some of them are undisturbed.
    const WINDOW: Duration = Duration::from_millis(50);

    fn new() -> Self {
        Self { since: Instant::now(), sum: 0, best: 0.0 }
    }

    fn add(&mut self, amount: u64) {
        self.sum += amount;
        if self.since.elapsed() >= Self::WINDOW {
            self.close();
        }
    }

    fn close(&mut self) {
        let span = self.since.elapsed();
        self.best = self.best.max(self.sum as f64 / span.as_secs_f64());
        self.since = Instant::now();
        self.sum = 0;
    }

    /// The best rate of a second; of the whole if it was over before a window was.
    fn rate(mut self) -> f64 {
        if self.best == 0.0 {
            self.close();
        }
        self.best
    }
}

/// Measures the floor for a fleet of so many devices. What cannot be measured is left out.
pub(super) fn measure(transport: Transport, devices: u64) -> Floor {
    let mut floor = Floor { blob_bytes_per_second: measured("download", download()), ..Floor::default() };
    if transport == Transport::Memory {
        floor.messages_per_second = Some(batches());
    } else if let Some((connects, messages)) = measured("sockets", sockets(devices.clamp(1, MOST_SOCKETS))) {
        floor.connects_per_second = Some(connects);
        floor.messages_per_second = Some(messages);
    }
    floor
}

fn measured<T>(what: &str, outcome: io::Result<T>) -> Option<T> {
    outcome
        .inspect_err(|error| tracing::warn!(%error, what, "the machine's own rate could not be measured"))
        .ok()
}

/// A listener whose queue takes a storm: a connection that finds it full tries again a second later.
fn listener() -> io::Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(MOST_SOCKETS as i32)?;
    let listener = TcpListener::from(socket);
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Connections a second, and messages a second from one writer to all of them.
fn sockets(most: u64) -> io::Result<(f64, f64)> {
    let (listener, address) = listener()?;
    listener.set_nonblocking(true)?;
    let made = AtomicBool::new(false);
    thread::scope(|scope| {
        let acceptor = scope.spawn(|| accept(&listener, &made));
        let began = Instant::now();
        let mut peak = Peak::new();
        let mut clients = Vec::new();
        let mut outcome = Ok(());
        while (clients.len() as u64) < most && began.elapsed() < CONNECT_FOR {
            match TcpStream::connect(address) {
                Ok(client) => {
                    clients.push(client);
                    peak.add(1);
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        made.store(true, Relaxed);
        let writers = acceptor.join().map_err(|_| io::Error::other("the accepting thread panicked"))??;
        outcome?;
        Ok((peak.rate(), messages(&writers, clients)?))
    })
}

/// Accepts until nobody connects any more.
fn accept(listener: &TcpListener, made: &AtomicBool) -> io::Result<Vec<TcpStream>> {
    let mut accepted = Vec::new();
    loop {
        // Whatever was connected before this is in the queue by then.
        let last = made.load(Relaxed);
        loop {
            match listener.accept() {
                Ok((socket, _)) => accepted.push(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if last {
            return Ok(accepted);
        }
        thread::sleep(Duration::from_micros(200));
    }
}

/// Messages a second from one writer to many sockets that one reader reads.
fn messages(writers: &[TcpStream], clients: Vec<TcpStream>) -> io::Result<f64> {
    let mut poll = Poll::new()?;
    let mut readers = Vec::with_capacity(clients.len());
    for client in clients {
        client.set_nonblocking(true)?;
        let mut client = mio::net::TcpStream::from_std(client);
        poll.registry().register(&mut client, Token(readers.len()), Interest::READABLE)?;
        readers.push(client);
    }
    for writer in writers {
        writer.set_nonblocking(true)?;
        writer.set_nodelay(true)?;
    }
    let over = AtomicBool::new(false);
    let began = Instant::now();
    let bytes = thread::scope(|scope| {
        scope.spawn(|| {
            let message = [0x30; MESSAGE];
            while began.elapsed() < WRITE_FOR && !writers.is_empty() {
                for mut writer in writers {
                    // A reader that is behind gets its message in the next round.
                    let _ = writer.write(&message);
                }
            }
            over.store(true, Relaxed);
        });
        read_all(&mut poll, &mut readers, &over)
    })?;
    Ok(bytes / MESSAGE as f64)
}

/// Reads until nothing comes any more; gives the bytes a second.
fn read_all(poll: &mut Poll, readers: &mut [mio::net::TcpStream], over: &AtomicBool) -> io::Result<f64> {
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    let mut peak = Peak::new();
    loop {
        let last = over.load(Relaxed);
        poll.poll(&mut events, Some(Duration::from_millis(5)))?;
        for event in &events {
            let reader = &mut readers[event.token().0];
            while let Ok(length) = reader.read(&mut buffer) {
                peak.add(length as u64);
                if length < buffer.len() {
                    break;
                }
            }
        }
        if last && events.is_empty() {
            return Ok(peak.rate());
        }
    }
}

/// Messages a second through a channel, in batches, copied in and copied out.
fn batches() -> f64 {
    let (sender, receiver) = crossbeam_channel::bounded::<Vec<u8>>(64);
    let began = Instant::now();
    let reader = thread::spawn(move || {
        let mut message = [0; MESSAGE];
        let mut peak = Peak::new();
        for batch in receiver {
            let frames = batch.chunks_exact(MESSAGE);
            let messages = frames.len() as u64;
            for frame in frames {
                message.copy_from_slice(frame);
                std::hint::black_box(&message);
            }
            peak.add(messages);
        }
        peak.rate()
    });
    let message = [0x30; MESSAGE];
    while began.elapsed() < WRITE_FOR {
        let mut batch = Vec::with_capacity(BATCH);
        while batch.len() + MESSAGE <= BATCH {
            batch.extend_from_slice(std::hint::black_box(&message));
        }
        if sender.send(batch).is_err() {
            break;
        }
    }
    drop(sender);
    reader.join().unwrap_or(0.0)
}

/// Bytes a second from one sender to one receiver.
fn download() -> io::Result<f64> {
    let (listener, address) = listener()?;
    let mut receiver = TcpStream::connect(address)?;
    let (mut sender, _) = listener.accept()?;
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(move || {
            let piece = vec![0x30; 64 * 1024];
            while began.elapsed() < DOWNLOAD_FOR && sender.write_all(&piece).is_ok() {}
        });
        let mut buffer = vec![0; 64 * 1024];
        let mut peak = Peak::new();
        loop {
            match receiver.read(&mut buffer)? {
                0 => return Ok(peak.rate()),
                length => peak.add(length as u64),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transport_has_a_floor() {
        let tcp = measure(Transport::Tcp, 50);
        assert!(tcp.connects_per_second > Some(0.0) && tcp.messages_per_second > Some(0.0), "{tcp:?}");
        let memory = measure(Transport::Memory, 50);
        assert!(memory.messages_per_second > Some(0.0) && memory.connects_per_second.is_none(), "{memory:?}");
        assert!(memory.blob_bytes_per_second > Some(0.0));
    }
}
