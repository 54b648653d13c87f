//! Servers as processes of their own, which end with their handle.

use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tempfile::NamedTempFile;

/// How long a Mosquitto may take to listen.
const START: Duration = Duration::from_secs(5);

/// What this program itself can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Own {
    /// The hub.
    Hub,
    /// Bare sockets.
    Raw,
}

/// A server that runs. It is killed when it is dropped.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    child: Child,
    /// Where commands go. Its end is the server's, should this process die without a word.
    commands: Option<ChildStdin>,
    /// Read by the server at its start; deleted with this.
    _config: Option<NamedTempFile>,
}

impl Peer {
    /// Sends a line to a server of our own.
    pub(crate) fn command(&mut self, line: &str) -> anyhow::Result<()> {
        let commands = self.commands.as_mut().context("Mosquitto takes no commands")?;
        // One write, so that the server wakes up once.
        commands
            .write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("{} has ended; what it said stands above", self.name))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Fails if it has ended already, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts this program as a server.
pub(crate) fn own(kind: Own, devices: u32) -> anyhow::Result<Peer> {
    let (name, argument) = match kind {
        Own::Hub => ("the hub", "hub"),
        Own::Raw => ("the raw server", "raw"),
    };
    let program = env::current_exe().context("where this program is")?;
    let mut child = Command::new(program)
        .args(["--serve", argument, "--devices", &devices.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{name} could not be started"))?;
    let commands = child.stdin.take();
    let output = child.stdout.take();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut peer = Peer { name, address, child, commands, _config: None };
    let mut line = String::new();
    BufReader::new(output.context("its output is piped")?).read_line(&mut line)?;
    let port = line.trim().parse().with_context(|| format!("{name} did not say its port, but {line:?}"))?;
    peer.address.set_port(port);
    Ok(peer)
}

/// A Mosquitto that is installed here.
pub(crate) struct Mosquitto {
    program: PathBuf,
    pub(crate) version: String,
}

impl Mosquitto {
    /// Looks in PATH, and where Debian puts it, which is not in every user's.
    pub(crate) fn find() -> Option<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let program = env::split_paths(&path)
            .chain([PathBuf::from("/usr/sbin")])
            .map(|folder| folder.join("mosquitto"))
            .find(|program| program.is_file())?;
        let help = Command::new(&program).arg("-h").output().ok()?;
        let help = String::from_utf8_lossy(&help.stdout);
        let version = help.lines().next().and_then(|line| line.rsplit(' ').next());
        Some(Self { program, version: version.unwrap_or("of unknown version").to_owned() })
    }

    /// Starts it with settings of its own, and waits until it listens.
    pub(crate) fn start(&self) -> anyhow::Result<Peer> {
        // Nothing holds the port until Mosquitto takes it; if somebody else is faster, it says so.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut config = NamedTempFile::new().context("no temporary file; is there space (TMPDIR)?")?;
        write!(
            config,
            "listener {} {}\nallow_anonymous true\nmax_queued_messages 0\npersistence false\nlog_dest none\n",
            address.port(),
            address.ip(),
        )?;
        let child = Command::new(&self.program)
            .arg("-c")
            .arg(config.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("{} could not be started", self.program.display()))?;
        let mut peer = Peer { name: "Mosquitto", address, child, commands: None, _config: Some(config) };
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            if let Some(status) = peer.child.try_wait()? {
                bail!(
                    "mosquitto ended at its start ({status}); is port {} taken? Run this again",
                    address.port()
                );
            }
            ensure!(began.elapsed() < START, "mosquitto does not listen on {address} after {START:?}");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(peer)
    }
}
