//! The hub beside Mosquitto and beside bare sockets, in one run: connections a second, and messages a second from one
//! change to a whole fleet.
//!
//! ```text
//! cargo run --release -p fleetwave-benches --bin hub_beside -- --devices 9000 --rounds 3
//! ```
//!
//! Each server is a process of its own, with descriptors of its own and one thread that serves; one thread of this
//! process is all its clients. In each round each server starts afresh, one after the other, so that what slows the
//! machine down for a while meets all of them; quotients are of one round. Everything that clients send is made before
//! the clock starts.

mod fleet;
mod peer;
mod report;
mod serve;

use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use fleet::{Dialog, Fleet};
use peer::{Mosquitto, Own, Peer};
use report::{Connects, FanOut, Report};

/// Connections that are being made at once: as many as the queue of a listening Mosquitto holds, and a storm.
const WINDOWS: [usize; 2] = [100, 1_000];
/// Changes in a row to the same connected fleet; the median counts.
const CHANGES: u32 = 5;
/// What this process opens beside its connections.
const RESERVE: u64 = 64;

/// Measures the hub beside Mosquitto and bare sockets.
#[derive(Debug, Parser)]
struct Arguments {
    /// Devices, each with a connection of its own.
    #[arg(long, default_value_t = 9_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    devices: u32,
    /// How often everything is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    /// Be the server that is measured, for the process that started this one.
    #[arg(long, hide = true)]
    serve: Option<Own>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.serve {
        Some(Own::Hub) => return serve::hub(arguments.devices),
        Some(Own::Raw) => return serve::raw(),
        None => {}
    }
    make_room(arguments.devices)?;
    let mosquitto = Mosquitto::find();
    if mosquitto.is_none() {
        eprintln!("skipped: mosquitto is not installed (apt-get install mosquitto)");
    }
    let report = measure(&arguments, mosquitto.as_ref())?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report.document())?);
    } else {
        print!("{report}");
    }
    Ok(())
}

/// Raises this process's limit of descriptors, which its servers inherit, and checks that the fleet fits.
fn make_room(devices: u32) -> anyhow::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
            .context("the limit of file descriptors could not be raised; do it with ulimit -n")?;
    }
    let needed = u64::from(devices) + RESERVE;
    let limit = maximum.unwrap_or(u64::MAX);
    ensure!(
        needed <= limit,
        "{devices} devices need {needed} file descriptors, and this process may have {limit}: take --devices {}, or \
         raise the limit (ulimit -n)",
        limit.saturating_sub(RESERVE),
    );
    Ok(())
}

fn measure(arguments: &Arguments, mosquitto: Option<&Mosquitto>) -> anyhow::Result<Report> {
    let devices = arguments.devices;
    let mut connects = WINDOWS.map(Connects::of);
    let mut fan_out = FanOut::default();
    for round in 1..=arguments.rounds {
        for connects in &mut connects {
            eprintln!("round {round} of {}, {} at once", arguments.rounds, connects.window);
            if let Some(mosquitto) = mosquitto {
                let peer = mosquitto.start()?;
                let (_fleet, rate) = storm(&peer, Dialog::Subscriber, devices, connects.window)?;
                connects.mosquitto.push(rate);
            }
            let mut hub = peer::own(Own::Hub, devices)?;
            let (mut fleet, rate) = storm(&hub, Dialog::Device, devices, connects.window)?;
            connects.hub.push(rate);
            let rate = median_change(&mut hub, &mut fleet, |number| format!("notify {number}"))?;
            let size = fleet.heard().bytes / u64::from(devices);
            fan_out.hub.push(rate);
            drop((fleet, hub));

            let mut raw = peer::own(Own::Raw, devices)?;
            let (mut fleet, rate) = storm(&raw, Dialog::Raw { message: size }, devices, connects.window)?;
            connects.raw.push(rate);
            fan_out.raw.push(median_change(&mut raw, &mut fleet, |_| format!("write {size}"))?);
            fan_out.message_bytes = size;
        }
    }
    let mosquitto = mosquitto.map(|mosquitto| mosquitto.version.clone());
    Ok(Report { devices, mosquitto, connects: connects.into(), fan_out })
}

/// Connects the whole fleet; gives connections a second.
fn storm(peer: &Peer, dialog: Dialog, devices: u32, window: usize) -> anyhow::Result<(Fleet, f64)> {
    let mut fleet = Fleet::new(peer.address, dialog, devices)?;
    let began = Instant::now();
    fleet.connect(window).with_context(|| format!("while connecting to {}", peer.name))?;
    Ok((fleet, f64::from(devices) / began.elapsed().as_secs_f64()))
}

/// Has the server tell the whole fleet something, a few times; gives the median of messages a second, from the command
/// to the last device.
fn median_change(peer: &mut Peer, fleet: &mut Fleet, command: impl Fn(u32) -> String) -> anyhow::Result<f64> {
    let mut rates = Vec::new();
    for number in 1..=CHANGES {
        fleet.forget();
        let began = Instant::now();
        peer.command(&command(number))?;
        fleet.listen().with_context(|| format!("while {} told its devices", peer.name))?;
        rates.push(fleet.heard().messages as f64 / began.elapsed().as_secs_f64());
    }
    Ok(report::median(&rates))
}
