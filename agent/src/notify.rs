//! What the agent tells systemd, if that started it: that it is ready, what it does, that it is alive.
//!
//! The watchdog is fed from the agent's one loop, and nowhere else: an agent that is stuck is started anew.

use std::time::Duration;

use sd_notify::NotifyState;

/// The service manager, or nobody.
#[derive(Debug, Default)]
pub(crate) struct Supervisor {
    listens: bool,
    watchdog: Option<Duration>,
    ready: bool,
    said: String,
}

impl Supervisor {
    /// The one that started this process. Agents that share a process with others have none: [`Self::default`].
    pub(crate) fn of_this_process() -> Self {
        Self {
            listens: std::env::var_os("NOTIFY_SOCKET").is_some(),
            watchdog: sd_notify::watchdog_enabled(),
            ..Self::default()
        }
    }

    /// Whether there is one.
    pub(crate) fn listens(&self) -> bool {
        self.listens
    }

    /// How often [`Self::alive`] has to be called, if at all: twice in the time that systemd waits.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.watchdog.map(|patience| patience / 2)
    }

    /// The loop runs. Later calls say nothing.
    pub(crate) fn ready(&mut self) {
        if !self.ready {
            self.ready = true;
            self.tell(&[NotifyState::Ready]);
        }
    }

    /// What the agent does, for `systemctl status`. Said when it is something else than before.
    pub(crate) fn status(&mut self, doing: &str) {
        if self.listens && self.said != doing {
            doing.clone_into(&mut self.said);
            self.tell(&[NotifyState::Status(&doing.replace('\n', " "))]);
        }
    }

    /// The loop is not stuck.
    pub(crate) fn alive(&self) {
        if self.watchdog.is_some() {
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    /// The agent ends, and needs no longer than `within`: systemd is not to kill it before.
    pub(crate) fn stopping(&self, within: Duration) {
        let micros = u32::try_from(within.as_micros()).unwrap_or(u32::MAX);
        self.tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if self.listens
            && let Err(error) = sd_notify::notify(states)
        {
            tracing::debug!(%error, "systemd cannot be told");
        }
    }
}
