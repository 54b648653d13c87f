//! How far a run has come: counters that engines bump, and the thread that draws them.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::timeline::Counts;

/// A number that threads share.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Takes `n` away.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }

    /// Sets it to `n`.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How far a run has come. Engines write it, in steps as coarse as they like; only the display reads it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Devices in the fleet.
    pub total: Gauge,
    /// Devices that are connected.
    pub connected: Gauge,
    /// Devices that a configuration gives a release.
    pub targeted: Gauge,
    /// Targeted devices that know of it.
    pub notified: Gauge,
    /// Targeted devices that run it.
    pub converged: Gauge,
    /// Targeted devices whose update failed.
    pub failed: Gauge,
    /// Payload bytes received.
    pub payload: Gauge,
    /// The engine's time, in microseconds since the run's start.
    pub micros: Gauge,
    phase: Mutex<String>,
}

impl Progress {
    /// Says what the run is at.
    pub fn phase(&self, phase: impl Into<String>) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase.into();
    }

    /// Sets everything that the timeline counts.
    pub fn counts(&self, counts: &Counts) {
        self.total.set(counts.total);
        self.connected.set(counts.connected);
        self.targeted.set(counts.targeted);
        self.notified.set(counts.notified);
        self.converged.set(counts.converged);
        self.failed.set(counts.failed);
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            phase: self.phase.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            total: self.total.get(),
            connected: self.connected.get(),
            targeted: self.targeted.get(),
            notified: self.notified.get(),
            converged: self.converged.get(),
            failed: self.failed.get(),
            payload: self.payload.get(),
            micros: self.micros.get(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Snapshot {
    phase: String,
    total: u64,
    connected: u64,
    targeted: u64,
    notified: u64,
    converged: u64,
    failed: u64,
    payload: u64,
    micros: u64,
}

impl Snapshot {
    /// What the run does most of now, as done and to be done: outcomes once there are targets, else connections.
    fn goal(&self) -> (u64, u64) {
        if self.targeted > 0 {
            (self.converged + self.failed, self.targeted)
        } else {
            (self.connected, self.total)
        }
    }

    /// The line that a run prints, given what it was like `span` of wall time before.
    fn line(&self, before: &Self, span: Duration) -> String {
        let seconds = span.as_secs_f64().max(1e-3);
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        let mut line = format!(
            "{:>8}  {}  connected {}  notified {}  converged {}  failed {}",
            format!("t+{:.1}s", self.micros as f64 / 1e6),
            self.phase,
            share(self.connected, self.total),
            share(self.notified, self.targeted),
            share(self.converged, self.targeted),
            self.failed,
        );
        let payload = rate(self.payload, before.payload);
        if payload >= 1.0 {
            line.push_str(&format!("  {:.1} MB/s", payload / 1e6));
        }
        let (done, goal) = self.goal();
        let speed = if goal == before.goal().1 { rate(done, before.goal().0) } else { 0.0 };
        if speed > 0.0 {
            let left = goal.saturating_sub(done) as f64 / speed;
            line.push_str(&format!("  {speed:.0}/s  about {left:.0} s left"));
        }
        line
    }
}

fn share(part: u64, whole: u64) -> String {
    if whole == 0 { part.to_string() } else { format!("{part}/{whole}") }
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Live lines on a terminal, else a plain line every five seconds; both on standard error.
    Auto,
    /// Not at all.
    Quiet,
}

/// The thread that draws a [`Progress`] until it is [finished](Display::finish).
#[derive(Debug)]
pub struct Display {
    done: std::sync::Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

const REDRAW: Duration = Duration::from_millis(200);
const PLAIN: Duration = Duration::from_secs(5);

impl Display {
    /// Starts drawing.
    #[must_use]
    pub fn start(progress: std::sync::Arc<Progress>, show: Show) -> Self {
        let done = std::sync::Arc::new(AtomicBool::new(false));
        let thread = (show == Show::Auto).then(|| {
            let done = std::sync::Arc::clone(&done);
            thread::spawn(move || {
                if io::stderr().is_terminal() {
                    draw_live(&progress, &done);
                } else {
                    print_plain(&progress, &done);
                }
            })
        });
        Self { done, thread }
    }

    /// Takes the display away.
    pub fn finish(mut self) {
        self.done.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A display that panicked must not take the run's result with it.
            let _ = thread.join();
        }
    }
}

fn draw_live(progress: &Progress, done: &AtomicBool) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style =
        ProgressStyle::with_template("{msg}\n[{bar:50}] {percent:>3} %").expect("the template is valid");
    bar.set_style(style.progress_chars("=> "));
    let mut before = (Snapshot::default(), Instant::now());
    let mut window = before.clone();
    while !done.load(Relaxed) {
        let now = progress.snapshot();
        let (reached, goal) = now.goal();
        bar.set_length(goal.max(1));
        bar.set_position(reached);
        bar.set_message(now.line(&window.0, window.1.elapsed()));
        // Rates are over the last one to two seconds: steady enough to be read.
        if before.1.elapsed() > Duration::from_secs(1) {
            window = before;
            before = (now, Instant::now());
        }
        thread::park_timeout(REDRAW);
    }
    bar.finish_and_clear();
}

fn print_plain(progress: &Progress, done: &AtomicBool) {
    let mut before = (Snapshot::default(), Instant::now());
    loop {
        thread::park_timeout(PLAIN.saturating_sub(before.1.elapsed()));
        if done.load(Relaxed) {
            return;
        }
        if before.1.elapsed() < PLAIN {
            continue;
        }
        let now = progress.snapshot();
        // Standard error may be gone; the run goes on without its display.
        let _ = writeln!(io::stderr(), "{}", now.line(&before.0, before.1.elapsed()));
        before = (now, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_phase_counts_rates_and_the_time_left() {
        let before = Snapshot { targeted: 1000, converged: 100, ..Snapshot::default() };
        let now = Snapshot {
            phase: "wait until converged >= 99%".to_owned(),
            total: 1000,
            connected: 1000,
            targeted: 1000,
            notified: 990,
            converged: 290,
            failed: 10,
            payload: 50_000_000,
            micros: 12_300_000,
        };
        insta::assert_snapshot!(
            now.line(&before, Duration::from_secs(5)),
            @" t+12.3s  wait until converged >= 99%  connected 1000/1000  notified 990/1000  converged 290/1000  failed 10  10.0 MB/s  40/s  about 18 s left"
        );
    }

    #[test]
    fn no_time_is_promised_when_the_goal_has_just_changed() {
        let before = Snapshot { total: 10, connected: 5, ..Snapshot::default() };
        let now = Snapshot { total: 10, connected: 10, targeted: 10, converged: 1, ..Snapshot::default() };
        assert!(!now.line(&before, Duration::from_secs(1)).contains("left"));
    }

    #[test]
    fn a_quiet_display_has_no_thread() {
        let display = Display::start(std::sync::Arc::default(), Show::Quiet);
        assert!(display.thread.is_none());
        display.finish();
    }
}
