//! What was measured, as a table and as a document.

use std::fmt;

use serde::Serialize;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pairs: u32,
    window: u32,
    /// None if it is not installed.
    pub(crate) openssl_version: Option<String>,
    /// Connections a second, a figure a round.
    pub(crate) openssl: Vec<f64>,
    pub(crate) hub: Vec<f64>,
    /// Sessions that the hub held at the end, and what each added to it.
    pub(crate) sessions: u32,
    pub(crate) bytes_a_session: Option<u64>,
}

impl Report {
    pub(crate) fn new(pairs: u32, window: u32, openssl_version: Option<String>) -> Self {
        Self {
            pairs,
            window,
            openssl_version,
            openssl: Vec::new(),
            hub: Vec::new(),
            sessions: 0,
            bytes_a_session: None,
        }
    }
}

/// The middle one, or the upper of the two in the middle; 0 of none.
fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "TLS 1.3 connections a second, P-256, no resumption; medians, with the lowest and the highest\n"
        )?;
        if let Some(version) = &self.openssl_version {
            row(
                f,
                &format!("openssl {version}: {} pairs of s_server, s_time", self.pairs),
                &self.openssl,
                0,
            )?;
        }
        let (pairs, window) = (self.pairs, self.window);
        row(f, &format!("hub: handshake, CONNECT, CONNACK; {pairs} clients of {window}"), &self.hub, 0)?;
        if self.openssl_version.is_some() {
            let quotients: Vec<f64> = self.hub.iter().zip(&self.openssl).map(|(hub, by)| hub / by).collect();
            row(f, "hub to openssl (target: 0.8)", &quotients, 2)?;
        }
        if let Some(bytes) = self.bytes_a_session {
            writeln!(f, "\n{} sessions: {bytes} bytes each", self.sessions)?;
        }
        Ok(())
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, figures: &[f64], digits: usize) -> fmt::Result {
    let lowest = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = figures.iter().copied().fold(0.0, f64::max);
    let middle = median(figures);
    writeln!(f, "  {name:<56} {middle:>8.digits$}   {lowest:.digits$} to {highest:.digits$}")
}
