//! Device-to-cloud messages beside the requests for grants: how each update ended, and that the device is alive. Each
//! message costs the fleet, so there are none unless the configuration asks for them.
//!
//! They are news and not the truth, which is the twin: a message that was on its way when a connection broke, or that
//! waited when the power went, is lost.

use std::collections::VecDeque;
use std::time::Duration;

use fleetwave_protocol::CounterRng;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::metrics::Counters;
use crate::units::Span;

/// The property bag of an outcome, and of a heartbeat: JSON in UTF-8, so that the hub can route by what is in it.
pub(crate) const OUTCOME: &str = "kind=outcome&%24.ct=application%2Fjson&%24.ce=utf-8";
pub(crate) const HEARTBEAT: &str = "kind=heartbeat&%24.ct=application%2Fjson&%24.ce=utf-8";

/// So many outcomes wait for a connection; of what comes beyond, the oldest go.
const QUEUE: usize = 16;

/// `[telemetry]`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Whether a message says how each update ended.
    pub outcomes: bool,
    /// How often a message says that the device is alive; never without this.
    pub heartbeat: Option<Pace>,
}

/// The time between two heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Span")]
pub struct Pace(pub Duration);

impl Pace {
    const LEAST: Duration = Duration::from_secs(60);
}

impl TryFrom<Span> for Pace {
    type Error = &'static str;

    fn try_from(span: Span) -> Result<Self, Self::Error> {
        let pace = span.duration();
        if pace < Self::LEAST {
            return Err("each heartbeat costs a message: 60 s or more between two");
        }
        Ok(Self(pace))
    }
}

/// What waits to be told. It outlives the lives of the machines.
#[derive(Debug)]
pub(crate) struct News {
    config: Telemetry,
    rng: CounterRng,
    beat: Option<Instant>,
    outcomes: VecDeque<Value>,
    /// Outcomes that were not told, since the last one that was.
    dropped: u64,
}

impl News {
    /// The first heartbeat comes at any time within the interval: a fleet that was switched on at once spreads itself.
    pub(crate) fn new(config: Telemetry, seed: u64, now: Instant) -> Self {
        let mut rng = CounterRng::new(seed);
        let beat = config.heartbeat.map(|Pace(pace)| now + part(pace, 0, 100, &mut rng));
        Self { config, rng, beat, outcomes: VecDeque::new(), dropped: 0 }
    }

    /// An update ended; `outcome` is an object. Nothing waits for it to be told.
    pub(crate) fn ended(&mut self, outcome: Value, counters: &Counters) {
        if !self.config.outcomes {
            return;
        }
        if self.outcomes.len() == QUEUE {
            self.outcomes.pop_front();
            self.dropped += 1;
            counters.untold();
        }
        self.outcomes.push_back(outcome);
    }

    /// The next outcome, to be sent now.
    pub(crate) fn next(&mut self) -> Option<Vec<u8>> {
        let mut outcome = self.outcomes.pop_front()?;
        if self.dropped > 0 {
            outcome["dropped"] = std::mem::take(&mut self.dropped).into();
        }
        Some(outcome.to_string().into_bytes())
    }

    /// When the next heartbeat is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.beat
    }

    /// Whether a heartbeat is due. One that finds no connection is not made up for.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let (Some(beat), Some(Pace(pace))) = (self.beat, self.config.heartbeat) else { return false };
        let due = beat <= now;
        if due {
            // Up to a tenth later, so that devices which once agreed do not for ever.
            self.beat = Some(now + part(pace, 100, 110, &mut self.rng));
        }
        due
    }
}

/// Somewhere from `low` to `high` per cent of a time.
fn part(whole: Duration, low: u32, high: u32, rng: &mut CounterRng) -> Duration {
    let (low, high) = (whole * low / 100, whole * high / 100);
    low + (high - low).mul_f64(rng.unit())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(text: &str) -> Result<Telemetry, String> {
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn what_does_not_fit_into_the_queue_is_counted_and_the_newest_are_kept() {
        let counters = Counters::default();
        let mut news = News::new(config("outcomes = true").expect("right"), 1, Instant::now());
        for seq in 0..QUEUE + 3 {
            news.ended(json!({"seq": seq}), &counters);
        }
        let told: Vec<Value> = std::iter::from_fn(|| news.next())
            .map(|body| serde_json::from_slice(&body).expect("JSON"))
            .collect();
        assert_eq!(told.len(), QUEUE);
        assert_eq!(told[0], json!({"seq": 3, "dropped": 3}));
        assert_eq!(told[1], json!({"seq": 4}), "they are told of once");
        assert!(counters.text().contains("fleetwave_agent_telemetry_dropped_total 3\n"));
    }

    #[test]
    fn nothing_is_said_unless_it_was_asked_for() {
        let mut news = News::new(config("").expect("right"), 1, Instant::now());
        news.ended(json!({}), &Counters::default());
        assert_eq!((news.next(), news.due(), news.is_due(Instant::now())), (None, None, false));
    }

    #[test]
    fn heartbeats_begin_within_the_interval_and_are_never_closer_than_it() {
        for seed in 0..50 {
            let begun = Instant::now();
            let mut news = News::new(config("heartbeat = '10 min'").expect("right"), seed, begun);
            let first = news.due().expect("there is one");
            assert!(first - begun <= Duration::from_secs(600));
            assert!(news.is_due(first) && !news.is_due(first));
            let pause = news.due().expect("there is another") - first;
            assert!(pause >= Duration::from_secs(600) && pause <= Duration::from_secs(661), "{pause:?}");
        }
    }

    #[test]
    fn a_heartbeat_that_would_be_too_often_is_refused() {
        assert!(config("heartbeat = '59 s'").is_err_and(|error| error.contains("60 s or more")));
        assert!(config("heartbeat = '1 min'").is_ok());
    }
}
