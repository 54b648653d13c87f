//! The servers: the hub, and bare sockets. They say their port, obey lines on standard input, and end with it.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context as _, bail};
use fleetwave_hub::{HubServer, NewDevice};
use fleetwave_hub_core::{Configuration, ConfigurationSpec};
use fleetwave_protocol::sas::Key;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::{Domain, Protocol, Socket, Type};

const LOCAL: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
/// The same as the hub's.
const BACKLOG: i32 = 16_384;

/// The key that the devices' own are derived from.
pub(crate) fn group_key() -> Key {
    Key::from_bytes(*b"hub-beside")
}

/// The id of a device.
pub(crate) fn device(number: u32) -> String {
    format!("dev-{number:07}")
}

fn say_port(address: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", address.port())?;
    out.flush()
}

/// The hub; `notify N` puts configuration N.
pub(crate) fn hub(devices: u32) -> anyhow::Result<()> {
    let server = HubServer::builder().tcp(LOCAL.into()).group_key(group_key()).start()?;
    let control = server.control();
    control.create_devices((0..devices).map(|number| NewDevice {
        tags: Some(r#"{"ring":"stable","site":"here"}"#.into()),
        reported: Some(r#"{"firmware":{"running":{"id":"fw-1","seq":1},"state":"idle"}}"#.into()),
        ..NewDevice::new(device(number))
    }))?;
    say_port(server.address().context("it was told to listen")?)?;
    for line in io::stdin().lines() {
        let line = line?;
        let number = line.strip_prefix("notify ").and_then(|number| number.parse().ok());
        let Some(number) = number else { bail!("`notify N` was expected, not {line:?}") };
        control.put_configuration(release(number)?)?;
    }
    Ok(())
}

/// A release as a rollout names it, of the size that such a thing has. Nothing in it but the size is the same as in the
/// one before: a twin's change carries only what has changed.
fn release(number: u32) -> anyhow::Result<Configuration> {
    let content = format!(
        r#"{{"properties.desired.firmware":{{"id":"fw-{number}","seq":{number},"size":65536,"sha256":"{number:064x}","sigs":{{"main":"{number:086}=="}}}}}}"#,
    );
    let spec = ConfigurationSpec {
        id: "rollout",
        priority: 10,
        target_condition: "*",
        device_content: &content,
        ..ConfigurationSpec::default()
    };
    Ok(Configuration::new(&spec)?)
}

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);

/// Bare sockets: a byte for a byte; `write N` writes N bytes to each, one write a socket.
pub(crate) fn raw() -> anyhow::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from(LOCAL).into())?;
    socket.listen(BACKLOG)?;
    let mut listener = TcpListener::from_std(socket.into());
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let commands = commands(Waker::new(poll.registry(), WAKER)?);
    say_port(listener.local_addr()?)?;

    let mut sockets: Vec<TcpStream> = Vec::new();
    let mut events = Events::with_capacity(1024);
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        for event in &events {
            match event.token() {
                LISTENER => accept(&listener, &poll, &mut sockets)?,
                WAKER => loop {
                    match commands.try_recv() {
                        Ok(line) => write(&line, &mut sockets)?,
                        Err(mpsc::TryRecvError::Empty) => break,
                        Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
                    }
                },
                Token(index) => answer(&mut sockets[index]),
            }
        }
    }
}

/// Lines of standard input, each with a call of the waker; the channel ends with the input.
fn commands(waker: Waker) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            if sender.send(line).is_err() || waker.wake().is_err() {
                return;
            }
        }
        drop(sender);
        // It fails when nobody waits any more.
        let _ = waker.wake();
    });
    receiver
}

fn accept(listener: &TcpListener, poll: &Poll, sockets: &mut Vec<TcpStream>) -> anyhow::Result<()> {
    loop {
        match listener.accept() {
            Ok((mut socket, _)) => {
                poll.registry().register(&mut socket, Token(sockets.len()), Interest::READABLE)?;
                sockets.push(socket);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("a connection could not be accepted"),
        }
    }
}

/// A byte for a byte. A client that has gone, or takes nothing, is missed by the other side.
fn answer(socket: &mut TcpStream) {
    let mut byte = [0];
    if let Ok(1) = socket.read(&mut byte) {
        let _ = socket.write(&byte);
    }
}

fn write(line: &str, sockets: &mut [TcpStream]) -> anyhow::Result<()> {
    let size = line.strip_prefix("write ").and_then(|size| size.parse().ok());
    let Some(size) = size else { bail!("`write N` was expected, not {line:?}") };
    let message = vec![0x30; size];
    for socket in sockets {
        let written = socket.write(&message)?;
        if written < size {
            bail!("a socket took {written} of {size} bytes");
        }
    }
    Ok(())
}
