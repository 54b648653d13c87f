//! Pairs of openssl's server and client.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(5);

/// The version, if it is installed.
pub(crate) fn version() -> Option<String> {
    let output =
        Command::new("openssl").arg("version").output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).split_whitespace().nth(1).map(str::to_owned)
}

/// Runs pairs side by side; gives the sum of their connections a second.
pub(crate) fn storm(certificates: &Path, pairs: u32, seconds: u32) -> anyhow::Result<f64> {
    let servers: Vec<Server> = (0..pairs).map(|_| Server::start(certificates)).collect::<Result<_, _>>()?;
    let clients: Vec<Child> = servers
        .iter()
        .map(|server| {
            Command::new("openssl")
                .args(["s_time", "-new", "-tls1_3", "-time", &seconds.to_string()])
                .args(["-connect", &format!("127.0.0.1:{}", server.port)])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
        })
        .collect::<Result<_, _>>()
        .context("openssl s_time could not be started")?;
    let mut sum = 0.0;
    for client in clients {
        let output = client.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        sum += rate(&text).with_context(|| format!("openssl s_time did not say how many, but {text:?}"))?;
    }
    Ok(sum)
}

/// From `4711 connections in 6 real seconds, …`.
fn rate(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.contains(" real seconds"))?;
    let mut words = line.split_whitespace();
    let connections: f64 = words.next()?.parse().ok()?;
    let seconds: f64 = words.nth(2)?.parse().ok()?;
    (seconds > 0.0).then(|| connections / seconds)
}

struct Server {
    port: u16,
    child: Child,
}

impl Server {
    fn start(certificates: &Path) -> anyhow::Result<Self> {
        // Nothing holds the port until the server takes it; if somebody else is faster, it says so.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let child = Command::new("openssl")
            .args(["s_server", "-tls1_3", "-www", "-quiet", "-accept", &format!("127.0.0.1:{port}")])
            .arg("-cert")
            .arg(certificates.join("server.pem"))
            .arg("-key")
            .arg(certificates.join("server.key"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("openssl s_server could not be started")?;
        let mut server = Self { port, child };
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("openssl s_server ended at its start ({status}); is port {port} taken? Run this again");
            }
            ensure!(began.elapsed() < START, "openssl s_server does not listen after {START:?}");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails if it has ended already, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_of_real_seconds() {
        let text = "\n\n2204 connections in 1.57s; 1403.82 connections/user sec, bytes read 0\n\
                    2204 connections in 4 real seconds, 0 bytes read per connection\n";
        assert_eq!(rate(text), Some(551.0));
        assert_eq!(rate("ERROR"), None);
    }
}
