//! What a hub with a store costs a large fleet: making it, a configuration for a tenth of it, and a restart.
//!
//! ```text
//! cargo run --release -p fleetwave-benches --bin durable -- --devices 1000000 --data /var/tmp/hub
//! ```
//!
//! Each device has a tag of its own tenth and has reported once; a tenth of the fleet says something that only it says.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::Parser;
use fleetwave_hub::{HubServer, NewDevice};
use fleetwave_hub_core::{Configuration, ConfigurationSpec};

/// Measures a hub that keeps a fleet on disk.
#[derive(Debug, Parser)]
struct Arguments {
    /// Devices of the fleet.
    #[arg(long, default_value_t = 1_000_000)]
    devices: usize,
    /// Shards of the hub.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// The folder, which is to be new.
    #[arg(long)]
    data: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let file = arguments.data.join("hub.redb");
    ensure!(!file.exists(), "{} is there already: give a new folder", file.display());
    let start = || HubServer::builder().shards(arguments.threads).data(&arguments.data).start();

    let hub = start()?;
    let tags: Vec<Arc<str>> = (0..10).map(|ring| format!(r#"{{"ring":{ring},"site":"a"}}"#).into()).collect();
    let usual: Arc<str> = r#"{"firmware":{"version":"1.4.2","state":"idle"},"battery":97}"#.into();
    let devices = (0..arguments.devices).map(|number| {
        let reported = match number % 10 {
            3 => format!(r#"{{"firmware":{{"version":"1.4.2","state":"idle"}},"serial":{number}}}"#).into(),
            _ => usual.clone(),
        };
        NewDevice {
            tags: Some(tags[number % 10].clone()),
            reported: Some(reported),
            ..NewDevice::new(format!("device-{number:07}"))
        }
    });
    let began = Instant::now();
    hub.control().create_devices(devices)?;
    tell("made the fleet", began);
    println!("{:.0} bytes on disk a device", size(&file)? / arguments.devices as f64);

    let began = Instant::now();
    hub.control().put_configuration(Configuration::new(&ConfigurationSpec {
        id: "fw-2",
        priority: 10,
        target_condition: "tags.ring = 7",
        device_content: r#"{"properties.desired.firmware":{"id":"fw-2","url":"https://example.com/fw-2"}}"#,
        ..ConfigurationSpec::default()
    })?)?;
    tell("a configuration for a tenth of it", began);
    println!("{:.0} bytes on disk a device", size(&file)? / arguments.devices as f64);
    let counts = hub.control().counts("fw-2")?.context("the configuration is there")?;
    drop(hub);

    let began = Instant::now();
    let hub = start()?;
    let again = hub.control().counts("fw-2")?;
    tell("started again", began);
    ensure!(again == Some(counts), "{again:?} after the restart, {counts:?} before");
    let last = hub.control().twin(&format!("device-{:07}", arguments.devices - 1))?;
    println!("the last twin: {}", String::from_utf8(last)?);
    Ok(())
}

fn tell(what: &str, began: Instant) {
    println!("{what}: {:.2} s", began.elapsed().as_secs_f64());
}

fn size(file: &Path) -> anyhow::Result<f64> {
    Ok(fs::metadata(file)?.len() as f64)
}
