//! Payloads on their way: what the pool of downloads is asked for, and what becomes of its answers.

use fleetwave_agent_core::{Event, FetchError, Record, ReleaseId, VerifyError};
use sha2::{Digest, Sha256};

use super::Shard;
use super::slot::flag;
use crate::device::Device;
use crate::live::fetch::{Ending, Fetched, Job, Whose};

/// A payload that a device is after. It exists as long as the update needs it.
#[derive(Clone, Debug, Default)]
pub(super) struct Payload {
    /// The link of the last grant: a secret.
    pub(super) url: String,
    /// The hash of the bytes in store.
    hash: Sha256,
    hashed: u64,
    /// Bytes from the start that have come before, kept or not.
    seen: u64,
    /// Bytes that came, in all attempts.
    pub(super) spent: u64,
    /// The download whose end will tell what the power cut left.
    salvage: Option<u32>,
}

impl Payload {
    /// The power has gone: the last checkpoint is what there is.
    fn fall_back(&mut self, hardware: &mut Device, fetched: Fetched) {
        if fetched.checkpoint > hardware.stored() {
            hardware.keep(fetched.checkpoint);
            self.hash = fetched.checkpoint_hash;
            self.hashed = fetched.checkpoint;
        }
    }
}

impl Shard {
    pub(super) fn fetch(&mut self, index: u32, release: ReleaseId, offset: u64, inbox: &mut Vec<Event>) {
        let who = self.who(index);
        self.cancel_cut(index);
        let slot = &mut self.slots[index as usize];
        slot.hardware.fetch(who, offset, &mut self.violations);
        let size = self.releases[release].size;
        if offset >= size {
            inbox.push(Event::Fetched);
            return;
        }
        if self.is_link_down(index) {
            inbox.push(Event::FetchFailed { error: FetchError::Interrupted, durable: offset });
            return;
        }
        let doom = self.take_doom(index);
        let stop_at = doom.map(|(through, off_for)| {
            self.fetch_doom(index, off_for);
            offset + (through * (size - offset) as f64) as u64
        });
        let slot = &mut self.slots[index as usize];
        slot.give_up_work();
        slot.set(flag::FETCHING);
        let payload = self.payloads.entry(index).or_default();
        if payload.hashed != offset {
            // Only a fetch from the start goes on without the bytes before.
            debug_assert_eq!(offset, 0, "what is in store has been hashed");
            payload.hash = Sha256::new();
            payload.hashed = 0;
        }
        let whose = Whose { shard: self.index, index, generation: slot.generation };
        let (url, hash, seen) = (payload.url.clone(), payload.hash.clone(), payload.seen);
        self.downloads.start(Job { whose, url, offset, size, stop_at, hash, seen });
    }

    /// Nobody wants the download under way any more.
    pub(super) fn stop_fetching(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.has(flag::FETCHING) {
            self.downloads.abort(Whose { shard: self.index, index, generation: slot.generation });
            slot.give_up_work();
        }
    }

    /// The download breaks off, and the device will notice.
    pub(super) fn interrupt_fetching(&mut self, index: u32) {
        let slot = &self.slots[index as usize];
        if slot.has(flag::FETCHING) {
            self.downloads.abort(Whose { shard: self.index, index, generation: slot.generation });
        }
    }

    /// The power is gone in mid-download: its last checkpoint is what will be left.
    pub(super) fn salvage_fetching(&mut self, index: u32) {
        let slot = &self.slots[index as usize];
        if slot.has(flag::FETCHING) {
            let generation = slot.generation;
            self.payloads.entry(index).or_default().salvage = Some(generation);
            self.stop_fetching(index);
        }
    }

    pub(super) fn discard(&mut self, index: u32) {
        self.stop_fetching(index);
        self.cancel_cut(index);
        let slot = &mut self.slots[index as usize];
        slot.give_up_work();
        slot.hardware.discard();
        if let Some(payload) = self.payloads.get_mut(&index) {
            payload.hash = Sha256::new();
            payload.hashed = 0;
        }
    }

    /// The update no longer needs its payload, or its grant.
    pub(super) fn forget_payload(&mut self, index: u32, record: Record) {
        if matches!(record, Record::Staged(_) | Record::Ended(..)) {
            self.payloads.remove(&index);
        }
        let slot = &mut self.slots[index as usize];
        if matches!(record, Record::Ended(..)) && slot.has(flag::ASKED) {
            slot.clear(flag::ASKED);
            self.meter.grant_withdrawn();
        }
    }

    /// Takes the results of downloads.
    pub(super) fn collect(&mut self) {
        while let Ok(fetched) = self.fetched.try_recv() {
            self.meter.events(1);
            self.download_ended(fetched);
        }
    }

    fn download_ended(&mut self, fetched: Fetched) {
        let Whose { index, generation, .. } = fetched.whose;
        let Some(payload) = self.payloads.get_mut(&index) else { return };
        payload.seen = payload.seen.max(fetched.received);
        payload.spent += fetched.received.saturating_sub(fetched.offset);
        let slot = &mut self.slots[index as usize];
        if payload.salvage == Some(generation) {
            payload.salvage = None;
            // Once the agent runs again it has been told what there is.
            if !slot.has(flag::ON) {
                payload.fall_back(&mut slot.hardware, fetched);
            }
            return;
        }
        if slot.generation != generation || !slot.has(flag::FETCHING) {
            return;
        }
        let cut = self.rare.get_mut(&index).and_then(|rare| rare.fetch_cut.take());
        if let Some(off_for) = cut
            && fetched.ending == Ending::Stopped
        {
            slot.give_up_work();
            payload.fall_back(&mut slot.hardware, fetched);
            self.power_cut(index, &off_for);
            return;
        }
        slot.clear(flag::FETCHING);
        slot.hardware.keep(fetched.received);
        payload.hash = fetched.hash;
        payload.hashed = fetched.received;
        let durable = fetched.received;
        let event = match fetched.ending {
            Ending::Complete => Event::Fetched,
            Ending::Failed(error) => Event::FetchFailed { error, durable },
            Ending::Stopped => Event::FetchFailed { error: FetchError::Interrupted, durable },
        };
        self.tell(index, event);
    }

    /// Compares what was hashed with what was signed.
    pub(super) fn verify(&mut self, index: u32, release: ReleaseId) {
        let release = &self.releases[release];
        let result = match self.payloads.get(&index) {
            Some(payload) if payload.hashed == release.size => {
                if payload.hash.clone().finalize()[..] == release.digest {
                    Ok(())
                } else {
                    Err(VerifyError::Digest)
                }
            }
            _ => Err(VerifyError::Size),
        };
        self.slots[index as usize].hardware.verified(result.is_ok());
        self.tell(index, Event::Verified(result));
    }
}
