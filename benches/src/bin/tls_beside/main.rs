//! TLS connections to the hub beside pairs of `openssl s_server` and `openssl s_time`, in one run: connections a second,
//! and what a session at rest occupies.
//!
//! ```text
//! cargo run --release -p fleetwave-benches --bin tls_beside -- --rounds 5 --sessions 15000
//! ```
//!
//! Both serve the same certificate (P-256) by TLS 1.3, without resumption. A connection to the hub is a handshake, a
//! CONNECT with a token, and its CONNACK. Each server and each set of clients is a process of its own; in each round all
//! are measured, one soon after the other, and quotients are of one round.

mod client;
mod hub;
mod openssl;
mod report;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser;
use fleetwave_hub::pki::Pki;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use report::Report;

/// What a process opens beside its connections.
const RESERVE: u32 = 100;

/// Measures TLS connections to the hub beside openssl's.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often everything is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Pairs of openssl's server and client; as many processes are the hub's clients, and threads the hub's shards.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..64))]
    pairs: u32,
    /// Connections to the hub that each of its clients makes at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..1000))]
    window: u32,
    /// Sessions that the hub holds at the end.
    #[arg(long, default_value_t = 15_000)]
    sessions: u32,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    /// Be the hub, with the certificates of this directory, for the process that started this one.
    #[arg(long, hide = true)]
    hub: Option<PathBuf>,
    /// Be clients of the hub at this address.
    #[arg(long, hide = true)]
    client: Option<SocketAddr>,
    /// The number of the client's first device.
    #[arg(long, hide = true, default_value_t = 0)]
    first: u32,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(directory) = &arguments.hub {
        return hub::serve(directory, arguments.pairs, arguments.sessions);
    }
    if let Some(address) = arguments.client {
        let clients = client::Clients { address, first: arguments.first, window: arguments.window };
        return match arguments.sessions {
            0 => clients.storm(Duration::from_secs(arguments.seconds.into())),
            sessions => clients.hold(sessions),
        };
    }
    make_room(arguments.sessions)?;
    let report = measure(&arguments)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

/// Raises the limit of descriptors, which servers and clients inherit, and checks that the sessions fit.
fn make_room(sessions: u32) -> anyhow::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
            .context("the limit of file descriptors could not be raised; do it with ulimit -n")?;
    }
    let limit = maximum.unwrap_or(u64::MAX);
    ensure!(
        u64::from(sessions + RESERVE) <= limit,
        "{sessions} sessions need {} file descriptors, and a process may have {limit}: take --sessions {}, or raise \
         the limit (ulimit -n)",
        sessions + RESERVE,
        limit.saturating_sub(u64::from(RESERVE)),
    );
    Ok(())
}

fn measure(arguments: &Arguments) -> anyhow::Result<Report> {
    let directory = tempfile::tempdir().context("no temporary directory; is there space (TMPDIR)?")?;
    Pki::load_or_create(Some(directory.path()), &[])?;
    let openssl = openssl::version();
    if openssl.is_none() {
        eprintln!("skipped: openssl is not installed (apt-get install openssl)");
    }
    let mut report = Report::new(arguments.pairs, arguments.window, openssl);
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}", arguments.rounds);
        if report.openssl_version.is_some() {
            report.openssl.push(openssl::storm(directory.path(), arguments.pairs, arguments.seconds)?);
        }
        let hub = hub::Hub::start(directory.path(), arguments.pairs, arguments.sessions)?;
        report.hub.push(client::storm(&hub, arguments.pairs, arguments.window, arguments.seconds)?);
        if round == arguments.rounds && arguments.sessions > 0 {
            eprintln!("{} sessions", arguments.sessions);
            let before = hub.resident()?;
            let held = client::hold(&hub, arguments.pairs, arguments.window, arguments.sessions)?;
            report.sessions = arguments.sessions;
            report.bytes_a_session =
                Some(hub.resident()?.saturating_sub(before) / u64::from(arguments.sessions));
            drop(held);
        }
    }
    Ok(report)
}
