//! Releases that are asked for at the device itself: which of them are taken, and what is said to whoever waits.

use fleetwave_agent_core::{Event, FIRMWARE, ReleaseId, ResultCode, State};
use serde_json::Value;

use super::Device;
use crate::local::{Asked, Verdict, exit};
use crate::unit::Unit;
use crate::units::Bytes;

impl Device<'_> {
    /// Decides about what was asked for, tells how it goes, and ends what has ended; true if a machine has something to
    /// do now.
    pub(super) fn attend(&mut self) -> bool {
        let mut moved = false;
        for asked in std::mem::take(&mut self.desk.asked) {
            moved |= self.decide(asked);
        }
        for index in 0..self.units.len() {
            moved |= self.tell(index);
        }
        self.desk.due = false;
        moved
    }

    fn decide(&mut self, asked: Asked) -> bool {
        let target =
            asked.stick.reference.get("target").and_then(Value::as_str).unwrap_or(FIRMWARE).to_owned();
        let Some(unit) = self.units.iter_mut().find(|unit| unit.target.as_str() == target) else {
            let known = self.units.iter().map(|unit| unit.target.as_str()).collect::<Vec<_>>().join(", ");
            let text = format!("wrong_target: the release is for {target}, and this device has {known}");
            self.desk.refuse(asked, &Verdict::new(exit::GIVEN_UP, text));
            return false;
        };
        if unit.agent().is_none() {
            if let Some(problem) = unit.complains() {
                self.desk.refuse(asked, &Verdict::new(exit::FAILED, problem));
                return false;
            }
            // Until it is known what runs.
            self.desk.asked.push(asked);
            return false;
        }
        if asked.how.cancel {
            if unit.is_wish_for(&asked.stick.reference) {
                tracing::info!(target, "what was asked for here is called off");
                unit.hear(Event::Abort);
                self.desk.wait(asked, &target);
                return true;
            }
            let text = format!("{target}: nothing of this release was asked for here that has not ended");
            self.desk.refuse(asked, &Verdict::new(exit::FAILED, text));
            return false;
        }
        let refusal = match unit.examine(&asked.stick.reference) {
            Err(code) => {
                Some(Verdict::new(exit::GIVEN_UP, format!("{}: {}", code.name(), unit.explain(code))))
            }
            Ok(release) => {
                let (named, size) = (&unit.releases[release].id, unit.releases[release].size);
                let length =
                    asked.stick.file.metadata().map(|file| if file.is_file() { file.len() } else { 0 });
                match length {
                    _ if unit.runs(release) => {
                        Some(Verdict::new(exit::DONE, format!("{target}: {named} runs already")))
                    }
                    Ok(length) if length == size => None,
                    Ok(length) => Some(Verdict::new(
                        exit::GIVEN_UP,
                        format!(
                            "size_mismatch: the payload has {length} bytes, and {size} were signed: it was not copied \
                             whole"
                        ),
                    )),
                    Err(error) => {
                        Some(Verdict::new(exit::FAILED, format!("the payload cannot be read: {error}")))
                    }
                }
            }
        };
        if let Some(refusal) = refusal {
            self.desk.refuse(asked, &refusal);
            return false;
        }
        tracing::info!(target, source = %asked.stick.source.display(), now = asked.how.now, "a release is asked for here");
        match unit.wish(&asked.stick, asked.how.now, self.connected) {
            Ok(()) => {
                self.desk.wait(asked, &target);
                true
            }
            Err(error) => {
                let text = format!("nothing was begun: the state directory cannot be written: {error}");
                self.desk.refuse(asked, &Verdict::new(exit::FAILED, text));
                false
            }
        }
    }

    /// Tells those who wait for a unit how it goes.
    fn tell(&mut self, index: usize) -> bool {
        let unit = &mut self.units[index];
        if !unit.is_local() {
            return false;
        }
        let target = unit.target.to_string();
        if let Some((release, code)) = unit.local_ended() {
            let runs = unit.agent().map_or("", |agent| &*unit.releases[agent.committed()].id);
            let named = &unit.releases[release].id;
            let verdict = if code == ResultCode::Ok {
                Verdict::new(exit::DONE, format!("{target}: {named} runs, and is committed"))
            } else {
                let text = format!("{target}: {named} was given up: {}; {runs} runs", code.name());
                Verdict::new(exit::GIVEN_UP, text)
            };
            tracing::info!(target, code = code.name(), "what was asked for here has ended");
            unit.forget_wish(self.connected);
            self.desk.end(&target, &verdict);
            return true;
        }
        if !self.desk.is_watched(&target) {
            return false;
        }
        if let Some(why) = unit.trouble() {
            let text = format!(
                "{target}: the payload was not copied: {why}\n  = help: give this command again: it goes on from there. \
                 An agent that runs tries for a while by itself"
            );
            self.desk.end(&target, &Verdict::new(exit::FAILED, text));
            return false;
        }
        if let Some((state, text)) = unit.progress() {
            self.desk.say(&target, state, &text);
        }
        false
    }

    /// The machine goes down, for the sake of this unit.
    pub(super) fn tell_of_going_down(&mut self, index: usize) {
        for (at, unit) in self.units.iter().enumerate() {
            let verdict = if at == index && unit.is_local() && unit.state() != Some(State::RollingBack) {
                Verdict::new(
                    exit::DONE,
                    format!(
                        "{}: the machine goes down now, to try the release; after its start the agent commits it or goes \
                         back (`fleetwave-agent status` tells)",
                        unit.target
                    ),
                )
            } else {
                Verdict::new(exit::FAILED, "the machine goes down: the update goes on after its start")
            };
            self.desk.end(unit.target.as_str(), &verdict);
        }
    }

    /// The hub is there no more: its place is taken where something was asked for here.
    pub(super) fn tell_of_loss(&mut self, was_connected: bool) {
        self.lead.hear(Event::Disconnected);
        for unit in &mut self.units {
            if !unit.stands_in() {
                unit.hear(Event::Disconnected);
            } else if was_connected {
                unit.hear(Event::Connected { session_present: true });
            }
        }
    }
}

impl Unit {
    /// What it does, in words.
    fn progress(&self) -> Option<(State, String)> {
        if let Some(problem) = self.complains() {
            return Some((self.state().unwrap_or(State::Failed), problem));
        }
        let state = self.state()?;
        let words = match state {
            State::Downloading if self.parked.is_some() => {
                "waits for the payload of another target".to_owned()
            }
            State::Rebooting if self.parked.is_some() => {
                "waits until what another target tries is committed".to_owned()
            }
            State::Downloading => match self.how_far()? {
                (0, _) => format!("copies {}", self.source()?.display()),
                (bytes, size) => format!("copies, {} of {}", Bytes(bytes), Bytes(size)),
            },
            State::Verifying => "compares it with what was signed".to_owned(),
            State::Staging => "installs it".to_owned(),
            State::Deferred => {
                "waits for a lock, or for the window of installations (which --now does not wait for)"
                    .to_owned()
            }
            State::Rebooting => "starts it".to_owned(),
            State::Probation => "runs it on trial".to_owned(),
            State::Committing => "commits it".to_owned(),
            State::RollingBack => "goes back to what ran before".to_owned(),
            State::Backoff => "waits before it tries again".to_owned(),
            State::Granting | State::Idle | State::Failed => return None,
        };
        Some((state, format!("{}: {words}", self.target)))
    }

    fn runs(&self, release: ReleaseId) -> bool {
        self.agent().is_some_and(|agent| self.releases.same(agent.committed(), release))
    }

    /// Why a release is not taken, and what would help.
    fn explain(&self, code: ResultCode) -> String {
        match code {
            ResultCode::SignatureMissing => {
                "too few of the keys in [trust] have signed it: `fleetwave release sign DIR --key NAME=FILE` adds one"
            }
            ResultCode::SignatureInvalid => {
                "it is not what was signed, or another key than the one in [trust] has signed it"
            }
            ResultCode::ReferenceMalformed => "a member of release.json is missing, or of the wrong form",
            ResultCode::Incompatible => "it is signed for other types of devices than device_type in the configuration",
            ResultCode::Downgrade => {
                let runs = self.agent().map(|agent| &self.releases[agent.committed()]);
                let runs = runs.map_or(String::new(), |runs| format!("{} (seq {})", runs.id, runs.sequence));
                return format!("its sequence is below that of {runs}, which runs: only one that was made with --downgrade goes down");
            }
            ResultCode::TooLarge => "it is larger than slot_bytes in [limits]",
            ResultCode::StartLoop => "it was installed again and again, and something took it back each time",
            _ => "it is not taken",
        }
        .to_owned()
    }
}
