//! Listening sockets, and errors that say what to do.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait to be accepted: a storm of ten thousand fits. The kernel caps it at
/// `net.core.somaxconn`.
const BACKLOG: i32 = 16_384;

/// How long to wait after a failed accept (no descriptors left, as a rule) before the next.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {}", reason(source))]
pub struct ListenError {
    /// The address that was wanted.
    pub address: SocketAddr,
    /// What the system says.
    pub source: io::Error,
}

impl ListenError {
    pub(crate) fn new(address: SocketAddr, source: io::Error) -> Self {
        Self { address, source }
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another process uses this port; choose another one, or 0 for any".into(),
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has this address".into(),
        io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege; choose a higher one".into(),
        _ => error.to_string(),
    }
}

/// A listening socket that does not block. The port is shared with no other process.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // Without it a hub could not come back on its port while old connections linger in TIME_WAIT.
        socket.set_reuse_address(true)?;
        // Linux hands this on to accepted sockets: one system call less for each connection.
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(TcpListener::from(socket))
    };
    open().map_err(|source| ListenError { address, source })
}

/// A hub's port: one queue of arriving connections, from which each shard takes when it has time.
#[derive(Debug)]
pub(crate) struct Port {
    address: SocketAddr,
    /// The socket that shards clone; none while the hub is down.
    listener: Mutex<Option<TcpListener>>,
}

impl Port {
    pub(crate) fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let listener = bind(address)?;
        let address = listener.local_addr().map_err(|error| ListenError::new(address, error))?;
        Ok(Self { address, listener: Mutex::new(Some(listener)) })
    }

    /// The address, with the port that the system chose.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A shard's hold on the port. Opens it if it was closed.
    pub(crate) fn open(&self) -> Result<mio::net::TcpListener, ListenError> {
        let mut listener = self.listener.lock().expect("nothing panics under this lock");
        let open = match listener.take() {
            Some(open) => open,
            None => bind(self.address)?,
        };
        let clone = open.try_clone().map_err(|error| ListenError::new(self.address, error));
        *listener = Some(open);
        clone.map(mio::net::TcpListener::from_std)
    }

    /// Closes the port, once the shards have dropped their holds: connecting is refused then.
    pub(crate) fn close(&self) {
        self.listener.lock().expect("nothing panics under this lock").take();
    }
}
