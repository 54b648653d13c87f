//! The grammar of `fleetwave hub`.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::scenario::quantity::Span;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  fleetwave hub --https-port 8443
  fleetwave hub --name my-hub.azure-devices.net --data ~/hub --tier S1
  fleetwave hub --devices quickstart --set fleet.devices=50 --set script.refuse=5%
  fleetwave hub device add my-device
  fleetwave hub --releases releases --data ~/hub
  fleetwave hub configure rollout-1 --release releases/fw-2-2 --condition \"tags.site = 'berlin'\" --data ~/hub

It ends by Ctrl-C or SIGTERM: connections are closed, and what is to be kept is written. A second one ends at once.

Exit codes:
  0  it was asked to end, and did
  2  wrong usage
  1  anything else, e.g. a port in use"
)]
pub(crate) struct Hub {
    #[command(subcommand)]
    pub(super) command: Option<HubCommand>,

    #[command(flatten)]
    pub(super) serve: Serve,
}

#[derive(Debug, Subcommand)]
pub(super) enum HubCommand {
    /// Create devices at a hub that runs on this machine
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Print the twin of a device of a hub that runs on this machine
    Twin {
        /// The device's id
        id: String,

        #[command(flatten)]
        place: Place,
    },
    /// Ask a group of devices for a release, by a device configuration at a hub that runs on this machine
    Configure(Configure),
    /// Delete a device configuration; what it asked for goes from the twins
    Unconfigure {
        /// The configuration's id
        id: String,

        #[command(flatten)]
        place: Place,
    },
}

#[derive(Debug, Args)]
pub(super) struct Configure {
    /// The configuration's id: lower-case letters, digits and -:+%_#*?!(),=@;'
    pub(super) id: String,

    /// The release's directory, as `fleetwave release create` made it
    #[arg(long, value_name = "DIR")]
    pub(super) release: PathBuf,

    /// Which devices: a condition over tags and reported properties, e.g. "tags.site = 'berlin'"; * is all of them
    #[arg(long, value_name = "CONDITION")]
    pub(super) condition: String,

    /// Where configurations meet in a device, the higher one counts
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(super) priority: u32,

    /// Call the release off: devices that have not begun its trial stop, and stay on what they run. A configuration that
    /// asks for it needs a lower priority
    #[arg(long)]
    pub(super) cancel: bool,

    #[command(flatten)]
    pub(super) place: Place,
}

#[derive(Debug, Subcommand)]
pub(super) enum DeviceCommand {
    /// Create a device, and print its connection string
    Add {
        /// Its id
        id: String,

        /// Tags of its twin, by which configurations find it: a JSON object
        #[arg(long, value_name = "JSON")]
        tags: Option<String>,

        #[command(flatten)]
        place: Place,
    },
}

/// Where a hub keeps what it has to keep.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Place {
    /// Keep the hub in this directory: devices, twins and all else, and its keys; without it, devices are in memory
    #[arg(long, value_name = "DIR", help_heading = "What is kept")]
    pub(super) data: Option<PathBuf>,

    /// Directory of the certificates [default: `certs` in --data, or in the user's data directory]
    #[arg(long, value_name = "DIR", help_heading = "What is kept")]
    pub(super) cert_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// A name that the hub answers to, beside `localhost`; may be given more than once, the first is in connection
    /// strings [default: localhost]
    #[arg(long, value_name = "NAME", help_heading = "What it is")]
    pub(super) name: Vec<String>,

    /// The tier whose limits it keeps
    #[arg(long, value_enum, ignore_case = true, default_value = "none", help_heading = "What it is")]
    pub(super) tier: TierName,

    /// The tier's units [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "What it is")]
    pub(super) units: Option<u32>,

    /// Apply configurations at multiples of this time, as IoT Hub does every five minutes [default: at once]
    #[arg(long, value_name = "SPAN", help_heading = "What it is")]
    pub(super) config_cycle: Option<Span>,

    /// What the Event-Hub-compatible endpoint gives, as IoT Hub's routes would; telemetry alone is what a new hub routes
    #[arg(
        long,
        value_name = "KIND[,KIND…]",
        value_enum,
        value_delimiter = ',',
        default_value = "telemetry",
        help_heading = "What it is"
    )]
    pub(super) events: Vec<EventKind>,

    /// A file with an authority's certificate in PEM form, for devices that are registered with one; may be given
    /// more than once
    #[arg(long, value_name = "FILE", help_heading = "What it is")]
    pub(super) device_ca: Vec<PathBuf>,

    /// Where devices' files go: a storage account's connection string, or a file that holds one; the environment
    /// variable FLEETWAVE_STORAGE says it, too [default: uploads are refused]
    #[arg(long, value_name = "FILE|STRING", help_heading = "What it is")]
    pub(super) storage: Option<String>,

    /// The container in that account [default: uploads]
    #[arg(long, value_name = "NAME", help_heading = "What it is")]
    pub(super) storage_container: Option<String>,

    /// A file with an authority's certificate in PEM form that vouches for the storage account's endpoint, beside the
    /// hub's own authority and the system's
    #[arg(long, value_name = "FILE", help_heading = "What it is")]
    pub(super) storage_ca: Option<PathBuf>,

    /// Fill the hub with scripted devices: the fleet of a scenario, which answers by its `[script]`
    #[arg(long, value_name = "SCENARIO", help_heading = "What it is")]
    pub(super) devices: Option<String>,

    /// Change any key of that scenario, e.g. `fleet.devices=50` or `script.refuse=5%`; may be given more than once
    #[arg(long, value_name = "KEY=VALUE", help_heading = "What it is")]
    pub(super) set: Vec<String>,

    /// Hand out the releases of this directory (`fleetwave release create` makes them) to the devices whose twins ask for
    /// them
    #[arg(long, value_name = "DIR", help_heading = "What it is")]
    pub(super) releases: Option<PathBuf>,

    /// Threads that serve devices [default: one for each core]
    #[arg(long, value_name = "N", help_heading = "What it is")]
    pub(super) threads: Option<NonZeroUsize>,

    /// The address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = "Where it listens")]
    pub(super) bind: IpAddr,

    /// Port of MQTT over TLS; like all ports, 0 takes a free one. Device SDKs know no other than 8883
    #[arg(long, value_name = "PORT", default_value_t = 8883, help_heading = "Where it listens")]
    pub(super) mqtt_port: u16,

    /// Port of the REST operations, and of MQTT over WebSocket
    #[arg(long, value_name = "PORT", default_value_t = 443, help_heading = "Where it listens")]
    pub(super) https_port: u16,

    /// Port of AMQP for service SDKs
    #[arg(long, value_name = "PORT", default_value_t = 5671, help_heading = "Where it listens")]
    pub(super) amqps_port: u16,

    /// Port of health, metrics and the certificate: plain HTTP, on loopback only
    #[arg(long, value_name = "PORT", default_value_t = 8484, help_heading = "Where it listens")]
    pub(super) admin_port: u16,

    /// Port from which devices download releases, over HTTPS [default: 8444]
    #[arg(long, value_name = "PORT", help_heading = "Where it listens")]
    pub(super) releases_port: Option<u16>,

    /// Listen for MQTT without TLS, too: keys can be read on the way [default: off]
    #[arg(long, value_name = "PORT", help_heading = "Where it listens")]
    pub(super) plain_mqtt_port: Option<u16>,

    /// Run an MQTT broker beside it, on which every event is published under `fleetwave/events/` [default: off]
    #[arg(long, value_name = "PORT", help_heading = "Where it listens")]
    pub(super) bus_port: Option<u16>,

    #[command(flatten)]
    pub(super) place: Place,

    /// Does nothing: MQTT over WebSocket is always served, on the HTTPS port
    #[arg(long, hide = true)]
    pub(super) ws: bool,

    /// Print one line of JSON when it is ready, in place of the table
    #[arg(long, help_heading = "What it prints")]
    pub(super) json: bool,
}

/// Kinds of events, by the names that routes in IoT Hub know them by, shortened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EventKind {
    Telemetry,
    Twin,
    Lifecycle,
    Connection,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum TierName {
    #[default]
    None,
    #[value(name = "S1")]
    S1,
    #[value(name = "S2")]
    S2,
    #[value(name = "S3")]
    S3,
}
