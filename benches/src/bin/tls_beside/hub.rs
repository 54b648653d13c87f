//! The hub as a process of its own, which ends with its handle.

use std::env;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use fleetwave_hub::pki::Pki;
use fleetwave_hub::{HubServer, NewDevice};
use fleetwave_protocol::sas::Key;

use crate::client;

/// The key that the devices' own are derived from.
pub(crate) fn group_key() -> Key {
    Key::from_bytes(*b"tls-beside")
}

/// The id of a device.
pub(crate) fn device(number: u32) -> String {
    format!("dev-{number:07}")
}

/// Be the hub until the standard input ends; says the port.
pub(crate) fn serve(directory: &Path, shards: u32, sessions: u32) -> anyhow::Result<()> {
    let pki = Pki::load_or_create(Some(directory), &[])?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = HubServer::builder()
        .shards(shards as usize)
        .tls(address, pki.server_config())
        .group_key(group_key())
        .start()?;
    let devices = sessions.max(client::DEVICES);
    server.control().create_devices((0..devices).map(|number| NewDevice::new(device(number))))?;
    let mut out = io::stdout().lock();
    writeln!(out, "{}", server.tls_address().context("it was told to listen")?.port())?;
    out.flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// The running hub.
pub(crate) struct Hub {
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Hub {
    pub(crate) fn start(directory: &Path, shards: u32, sessions: u32) -> anyhow::Result<Self> {
        let program = env::current_exe().context("where this program is")?;
        let mut child = Command::new(program)
            .arg("--hub")
            .arg(directory)
            .args(["--pairs", &shards.to_string(), "--sessions", &sessions.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the hub could not be started")?;
        let output = child.stdout.take().context("its output is piped")?;
        let mut hub = Self { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), child };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let port =
            line.trim().parse().with_context(|| format!("the hub did not say its port, but {line:?}"))?;
        hub.address.set_port(port);
        Ok(hub)
    }

    /// Bytes of memory that it occupies.
    pub(crate) fn resident(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).with_context(|| format!("{path} could not be read"))?;
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(kilobytes.with_context(|| format!("{path} has no VmRSS"))? * 1024)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // Fails if it has ended already, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
