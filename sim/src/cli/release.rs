//! `fleetwave release`: keys, and releases that are signed with them.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use ed25519_dalek::SigningKey;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};

use super::{CliError, output};
use crate::release::{self, Recipe, Shelf, ShelfError, SigningKeyFile};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fleetwave release key release.pem
  fleetwave release create firmware.img --id fw-2 --seq 2 --key k1=release.pem --out releases
  fleetwave release create firmware.img --id fw-3 --seq 3 --delta --key k1=release.pem --out releases
  fleetwave release create app.tar.zst --id app-7 --seq 7 --target components.app --key k1=release.pem --out releases
  fleetwave release sign releases/fw-2-2 --key k2=other.pem
  fleetwave hub --releases releases")]
pub(super) struct Release {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key that signs releases, and print its public half for the devices' [trust]
    Key {
        /// The new file; keep it where no device and no hub can read it
        file: PathBuf,
    },
    /// Make a release of a payload
    Create(Create),
    /// Add a signature to a release
    Sign {
        /// The release's directory
        release: PathBuf,

        /// A key, and the name under which devices trust it; may be given more than once
        #[arg(long, value_name = "NAME=FILE", required = true)]
        key: Vec<SigningKeyFile>,
    },
    /// Print the reference of a release, as it goes into twins
    Show {
        /// The release's directory
        release: PathBuf,
    },
}

/// The largest whole number that a twin takes.
const MOST: u64 = 4_503_599_627_370_496;

#[derive(Debug, Args)]
struct Create {
    /// What devices install: an image, an archive, a manifest
    payload: PathBuf,

    /// The release's name
    #[arg(long)]
    id: String,

    /// Rises with every release of a target: devices take none that is below the one they have
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(u64).range(1..=MOST)
    )]
    seq: u64,

    /// What it is for: `firmware`, `components.NAME` or `workloads.NAME`
    #[arg(long, value_name = "TARGET", default_value = "firmware")]
    target: String,

    /// A device type that may install it; may be given more than once [default: any]
    #[arg(long, value_name = "TYPE")]
    compatible: Vec<String>,

    /// Let devices go down to it from a higher sequence
    #[arg(long)]
    downgrade: bool,

    /// Make a chunked archive, too: devices fetch from it what they lack of the payload
    #[arg(long)]
    delta: bool,

    /// A key, and the name under which devices trust it; may be given more than once
    #[arg(long, value_name = "NAME=FILE", required = true)]
    key: Vec<SigningKeyFile>,

    /// The directory of releases
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(super) fn run(arguments: &Release) -> Result<u8, CliError> {
    match &arguments.command {
        Command::Key { file } => output::print(&format!("{}\n", release::create_key(file)?))?,
        Command::Create(create) => {
            let recipe = Recipe {
                id: create.id.clone(),
                seq: create.seq,
                target: Some(create.target.clone()).filter(|target| target != "firmware"),
                compatible: create.compatible.clone(),
                downgrade: create.downgrade,
                delta: create.delta,
            };
            let bar = if create.delta { bar(&create.payload) } else { ProgressBar::hidden() };
            let keys = load(&create.key)?;
            let made =
                Shelf::new(&create.out).create(&create.payload, &recipe, &keys, |bytes| bar.inc(bytes))?;
            bar.finish_and_clear();
            output::print(&format!("{}\n", made.dir.display()))?;
        }
        Command::Sign { release, key } => print(&release::endorse(release, &load(key)?)?)?,
        Command::Show { release } => print(&release::read_reference(release)?)?,
    }
    Ok(0)
}

/// How far an archive is; nothing is drawn where nobody looks.
fn bar(payload: &Path) -> ProgressBar {
    let size = payload.metadata().map_or(0, |payload| payload.len());
    let style = ProgressStyle::with_template("{bytes}/{total_bytes} in the archive, {eta} left");
    ProgressBar::new(size).with_style(style.expect("a template of its own"))
}

fn load(keys: &[SigningKeyFile]) -> Result<Vec<(String, SigningKey)>, CliError> {
    for (place, key) in keys.iter().enumerate() {
        if keys[..place].iter().any(|other| other.name == key.name) {
            let problem = format!("--key {}=… is given twice: a name stands for one key", key.name);
            return Err(ShelfError::Wrong(problem).into());
        }
    }
    keys.iter().map(|key| Ok((key.name.clone(), key.load()?))).collect()
}

fn print(reference: &Map<String, Value>) -> Result<(), CliError> {
    Ok(output::print(&format!("{}\n", serde_json::to_string_pretty(reference).expect("an object is JSON")))?)
}
