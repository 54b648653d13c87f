//! The thread beside the shards on which the hub serves the back end: HTTPS, AMQP, whatever speaks TLS over tokio.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use crate::listen::{self, ListenError};

/// How long connections may take to end once the hub stops.
const DRAIN: Duration = Duration::from_secs(3);

/// Something that is served: it gets its listener, and what tells it to stop.
pub(crate) type Service = Box<
    dyn FnOnce(tokio::net::TcpListener, watch::Receiver<bool>) -> Pin<Box<dyn Future<Output = ()> + Send>>
        + Send,
>;

/// The thread, and what runs on it.
#[derive(Debug)]
pub(crate) struct Front {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// A port that is bound and not served yet.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

impl Bound {
    pub(crate) fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let listener = listen::bind(address)?;
        let address = listener.local_addr().map_err(|error| ListenError::new(address, error))?;
        Ok(Self { listener, address })
    }

    /// The address, with the port that the system chose.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Front {
    /// Serves each service on its port.
    pub(crate) fn start(services: Vec<(Bound, Service)>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::Builder::new().name("hub-front".into()).spawn(move || {
            runtime.block_on(async {
                let mut tasks = Vec::with_capacity(services.len());
                for (bound, service) in services {
                    match tokio::net::TcpListener::from_std(bound.listener) {
                        Ok(listener) => tasks.push(tokio::spawn(service(listener, stopped.clone()))),
                        Err(error) => {
                            tracing::error!(address = %bound.address, %error, "a port cannot be served");
                        }
                    }
                }
                for task in tasks {
                    if task.await.is_err() {
                        tracing::error!("a service of the hub panicked");
                    }
                }
                // The listeners are closed; what connections still do gets a moment.
                let metrics = tokio::runtime::Handle::current().metrics();
                let end = tokio::time::Instant::now() + DRAIN;
                while metrics.num_alive_tasks() > 0 && tokio::time::Instant::now() < end {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it: nothing new is taken, what runs comes to its end within a few seconds.
    pub(crate) fn stop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the hub's front panicked");
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop();
    }
}
