//! What the agent made of its configuration, for whoever wrote it: also what was left out, and what may hurt later.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleetwave_agent_core as core;
use fleetwave_protocol::WallTime;
use serde_json::{Map, Value, json};

use super::{Config, TargetConfig, Window};
use crate::identity::exposure;
use crate::link::TlsPool;
use crate::units::Bytes;
use crate::watchdog::WatchdogConfig;

/// Names and what was understood, in the order in which people read them.
pub(crate) type Rows = Vec<(&'static str, String)>;

/// What a configuration means.
#[derive(Debug)]
pub struct Understood {
    sections: Vec<(String, Rows)>,
    /// A code for programs, and what people should know.
    warnings: Vec<(&'static str, String)>,
}

impl Config {
    /// What the configuration in the file `path` means. `now` is what the clock shows, and `offset` how many seconds local
    /// time is ahead of UTC, if that is known.
    #[must_use]
    pub fn understood(&self, path: &Path, now: SystemTime, offset: Option<i32>) -> Understood {
        let mut sections = vec![("device".to_owned(), self.device())];
        let mut warnings = Vec::new();
        if let Ok(access) = self.access(&TlsPool::default()) {
            warnings.extend(access.warnings().into_iter().map(|warning| ("connection", warning)));
            sections.push(("hub".to_owned(), access.describe()));
        }
        if self.holds_secrets() {
            warnings.extend(exposure(path).map(|warning| ("secret", warning)));
        }
        sections.push(("trust".to_owned(), vec![("keys", self.trust.describe())]));
        for target in &self.targets {
            sections.push((target.target.to_string(), self.of_target(target, &mut warnings)));
        }
        let wall = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let wall = WallTime::from_unix_millis(u64::try_from(wall).unwrap_or(u64::MAX));
        let policy = core::Policy { utc_offset: offset.unwrap_or(0), ..self.policy() };
        let when = |window: &Option<Window>| match window {
            None => "at any time".to_owned(),
            Some(window) => opening(&window.hours(), policy.local(wall)),
        };
        let windows =
            vec![("downloads", when(&self.windows.download)), ("installs", when(&self.windows.install))];
        sections.push(("windows".to_owned(), windows));
        sections.push(("locks".to_owned(), self.locks.describe()));
        sections.push(("downloads".to_owned(), self.downloads(&mut warnings)));
        sections.push(("limits".to_owned(), self.limits()));
        sections.push(("operations".to_owned(), self.operations()));
        Understood { sections, warnings }
    }

    fn device(&self) -> Rows {
        let kind = self.device_type.as_deref();
        vec![
            ("state", self.state.display().to_string()),
            ("type", kind.unwrap_or("not said: releases for certain types are refused").to_owned()),
        ]
    }

    fn of_target(&self, target: &TargetConfig, warnings: &mut Vec<(&'static str, String)>) -> Rows {
        let name = &target.target;
        let trial = target.options.trial();
        let mut rows = vec![
            ("installer", target.installer.clone()),
            ("installed", format!("{} (seq {})", target.installed.id, target.installed.seq)),
        ];
        rows.extend(target.options.describe());
        match trial {
            None => {
                rows.push(("trial", "has to reach the hub".to_owned()));
                let why = "nothing is asked of a release on trial but that the hub is reached";
                warnings.push(("no_check", format!("{name}: {why}: give it a health check")));
            }
            Some((checks, deadline)) => {
                rows.push(("trial", format!("{checks}, within {deadline} s, and has to reach the hub")));
                let most = self.limits.probation_seconds.0;
                if Duration::from_secs(deadline) > most {
                    let why =
                        "its checks may take longer than probation_seconds of [limits], which ends a trial";
                    warnings.push(("short_trial", format!("{name}: {why}: {deadline} and {}", span(most))));
                }
            }
        }
        match &*target.installer {
            "directory" => {
                warnings.push(("tryout", format!("{name}: nothing boots what installer = \"directory\" installs: it is for trying the agent out")));
            }
            "slot" | "rauc" if self.watchdog.is_none() => {
                let why = "firmware on trial that hangs stays until somebody pulls the plug";
                warnings.push((
                    "no_watchdog",
                    format!("{name}: {why}: [watchdog], or RuntimeWatchdogSec= of systemd"),
                ));
            }
            _ => {}
        }
        let hooks = target.hooks.names().join(", ");
        if !hooks.is_empty() {
            rows.push(("hooks", hooks));
        }
        rows
    }

    fn downloads(&self, warnings: &mut Vec<(&'static str, String)>) -> Rows {
        let (download, ledger) = (&self.download, &self.ledger);
        let limit = |bytes: Option<Bytes>| bytes.map_or("no limit".to_owned(), |bytes| bytes.to_string());
        if ledger.caps().is_none() {
            let why = "a release may cost what it is large, at each try: per_update and per_window of [ledger] limit that";
            warnings.push(("no_cap", why.to_owned()));
        }
        if download.http {
            let why = "http = true: links, which are secrets, and payloads can be read on the way";
            warnings.push(("http_links", why.to_owned()));
        }
        let total = download.total_timeout.map_or("no limit".to_owned(), |most| span(most.duration()));
        vec![
            ("proxy", download.proxy_name().to_owned()),
            ("authorities", authorities(download.ca.as_deref())),
            (
                "rate",
                download.rate.map_or("no limit".to_owned(), |rate| format!("{} a second", Bytes(rate.0))),
            ),
            (
                "timeouts",
                format!(
                    "connecting {}, silence {}, a try {total}",
                    span(download.connect_timeout.duration()),
                    span(download.idle_timeout.duration())
                ),
            ),
            ("an update", limit(ledger.per_update)),
            ("a window", format!("{} in {}", limit(ledger.per_window), span(ledger.window.duration()))),
        ]
    }

    fn limits(&self) -> Rows {
        let limits = &self.limits;
        vec![
            ("delay", format!("up to {} before an update", span(limits.splay_seconds.0))),
            ("tries", format!("again after {} and more", span(limits.retry_seconds.0))),
            ("connecting", format!("again after {} and more", span(limits.reconnect_seconds.0))),
            ("trial", format!("{} at the most", span(limits.probation_seconds.0))),
            ("payload", format!("{} at the most", Bytes(limits.slot_bytes))),
        ]
    }

    fn operations(&self) -> Rows {
        let telemetry = &self.telemetry;
        let beat = telemetry.heartbeat.map(|pace| format!("a heartbeat every {}", span(pace.0)));
        let told = match (telemetry.outcomes, beat) {
            (true, Some(beat)) => format!("outcomes, and {beat}"),
            (true, None) => "outcomes".to_owned(),
            (false, beat) => beat.unwrap_or_else(|| "none".to_owned()),
        };
        let metrics =
            self.metrics.listen.map_or("not served".to_owned(), |at| format!("http://{}/metrics", at.0));
        let watchdog = self.watchdog.as_ref().map_or("not used".to_owned(), WatchdogConfig::describe);
        vec![
            ("telemetry", told),
            ("metrics", metrics),
            ("watchdog", watchdog),
            ("reboot", self.reboot.command.name().to_owned()),
        ]
    }
}

/// Who vouches for a server.
pub(crate) fn authorities(file: Option<&Path>) -> String {
    file.map_or("the system's".to_owned(), |file| file.display().to_string())
}

/// A window, and when it opens next from the local time `local`.
fn opening(window: &core::Window, local: WallTime) -> String {
    let days: Vec<_> =
        (0..7).filter(|day| window.days.has(*day)).map(|day| core::Days::NAMES[day as usize]).collect();
    let days = if days.len() == 7 { "every day".to_owned() } else { days.join(", ") };
    let minute = |since: Duration| {
        let minutes = since.as_secs() / 60 % (24 * 60);
        format!("{:02}:{:02}", minutes / 60, minutes % 60)
    };
    let (from, to) = (minute(window.opens), minute(window.opens + window.lasts));
    let next = match window.place(local) {
        core::Place::Open(left) => format!("open now, for {}", span(left)),
        _ => format!("opens in {}", span(window.wait(local))),
    };
    let grace =
        if window.grace.is_zero() { String::new() } else { format!(" and {} of grace", span(window.grace)) };
    format!("{days} from {from} to {to}{grace}: {next}")
}

/// A time as people say it: two units at the most.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let Some(first) = units.iter().position(|(size, _)| seconds >= *size) else {
        return format!("{} s", time.as_secs_f64());
    };
    let (size, name) = units[first];
    let mut text = format!("{} {name}", seconds / size);
    if let Some((smaller, name)) = units.get(first + 1)
        && seconds % size >= *smaller
    {
        write!(text, " {} {name}", seconds % size / smaller).expect("a String never fails to grow");
    }
    text
}

impl Understood {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |label: &str, text: &str| {
            writeln!(out, "{}", format!("  {label:<16}{text}").trim_end())
                .expect("a String never fails to grow");
        };
        for (section, rows) in &self.sections {
            line(section, "");
            rows.iter().for_each(|(name, said)| line(&format!("  {name}"), said));
        }
        for (_, warning) in &self.warnings {
            line("warning", warning);
        }
        out
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let sections = self.sections.iter().map(|(section, rows)| {
            let rows = rows.iter().map(|(name, said)| ((*name).to_owned(), Value::from(said.as_str())));
            (section.clone(), Value::Object(rows.collect()))
        });
        let warnings = self.warnings.iter().map(|(code, message)| json!({"code": code, "message": message}));
        json!({
            "understood": Value::Object(sections.collect::<Map<_, _>>()),
            "warnings": warnings.collect::<Vec<_>>(),
        })
    }
}
