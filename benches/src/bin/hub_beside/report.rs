//! What was measured, as a table and as a document.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

/// Connections a second, a figure a round.
#[derive(Debug, Serialize)]
pub(crate) struct Connects {
    /// Connections that were being made at once.
    pub(crate) window: usize,
    /// None if it is not installed.
    pub(crate) mosquitto: Vec<f64>,
    pub(crate) hub: Vec<f64>,
    pub(crate) raw: Vec<f64>,
}

impl Connects {
    pub(crate) fn of(window: usize) -> Self {
        Self { window, mosquitto: Vec::new(), hub: Vec::new(), raw: Vec::new() }
    }
}

/// Messages a second, a figure for each fleet that was connected.
#[derive(Debug, Default, Serialize)]
pub(crate) struct FanOut {
    pub(crate) message_bytes: u64,
    pub(crate) hub: Vec<f64>,
    pub(crate) raw: Vec<f64>,
}

#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) devices: u32,
    /// Its version.
    pub(crate) mosquitto: Option<String>,
    pub(crate) connects: Vec<Connects>,
    pub(crate) fan_out: FanOut,
}

/// The middle one, or the mean of the two in the middle; 0 of none.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

/// Quotients of what was measured one soon after the other.
fn quotients(of: &[f64], by: &[f64]) -> Vec<f64> {
    of.iter().zip(by).map(|(of, by)| of / by).collect()
}

impl Report {
    /// Everything that was measured, and the medians of the quotients.
    pub(crate) fn document(&self) -> Value {
        let ratio = |of: &[f64], by: &[f64]| (!by.is_empty()).then(|| median(&quotients(of, by)));
        let connects = self.connects.iter().map(|connects| {
            json!({
                "window": connects.window,
                "per_second": { "mosquitto": connects.mosquitto, "hub": connects.hub, "raw": connects.raw },
                "hub_to_mosquitto": ratio(&connects.hub, &connects.mosquitto),
                "hub_to_raw": ratio(&connects.hub, &connects.raw),
            })
        });
        let fan_out = &self.fan_out;
        json!({
            "devices": self.devices,
            "mosquitto": self.mosquitto,
            "connects": connects.collect::<Vec<_>>(),
            "fan_out": {
                "message_bytes": fan_out.message_bytes,
                "per_second": { "hub": fan_out.hub, "raw": fan_out.raw },
                "hub_to_raw": ratio(&fan_out.hub, &fan_out.raw),
            },
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} devices; medians, with the lowest and the highest\n", self.devices)?;
        for connects in &self.connects {
            writeln!(f, "connections a second, {} at once", connects.window)?;
            if let Some(version) = &self.mosquitto {
                row(f, &format!("Mosquitto {version}: CONNECT, SUBSCRIBE"), &connects.mosquitto, 0)?;
            }
            row(f, "hub: CONNECT with a token, SUBSCRIBE, twin read", &connects.hub, 0)?;
            row(f, "raw: TCP connect, a byte each way", &connects.raw, 0)?;
            if self.mosquitto.is_some() {
                let quotients = quotients(&connects.hub, &connects.mosquitto);
                row(f, "hub to Mosquitto (target: above 1)", &quotients, 2)?;
            }
            row(f, "hub to raw", &quotients(&connects.hub, &connects.raw), 2)?;
            writeln!(f)?;
        }
        let fan_out = &self.fan_out;
        writeln!(f, "messages a second, from one change to the last device")?;
        let size = fan_out.message_bytes;
        row(f, &format!("hub: configuration put to PUBLISH, {size} B"), &fan_out.hub, 0)?;
        row(f, &format!("raw: one writer, {size} B"), &fan_out.raw, 0)?;
        row(f, "hub to raw (target: 0.8)", &quotients(&fan_out.hub, &fan_out.raw), 2)
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, figures: &[f64], digits: usize) -> fmt::Result {
    let lowest = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = figures.iter().copied().fold(0.0, f64::max);
    let middle = median(figures);
    writeln!(f, "  {name:<50} {middle:>8.digits$}   {lowest:.digits$} to {highest:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(&[4.0, 1.0, 9.0, 2.0]), 3.0);
    }
}
