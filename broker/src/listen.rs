//! Listening sockets, and errors that say what to do.

use std::io;
use std::net::{SocketAddr, TcpListener};
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
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(TcpListener::from(socket))
    };
    open().map_err(|source| ListenError { address, source })
}
