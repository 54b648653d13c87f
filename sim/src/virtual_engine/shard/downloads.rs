//! Downloads: what they are planned to cost, what is asked of the blob store, and what comes of it.

use std::time::Duration;

use fleetwave_agent_core::{Event as AgentEvent, FetchError, Method, Plan, ReleaseId};

use super::super::blob::{Address, Part, What, part, told, whole};
use super::super::delta::Pair;
use super::super::event::Kind;
use super::{Env, Event, Request, Shard, Worker, flag, instant, life};

/// What the store asks of those whom it refuses with 429 or 503.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// So often an archive's header may not come before all of the payload is fetched in its place, as with real agents.
const TRIES: u8 = 3;

/// What is asked of the store at a time.
struct Ask {
    part: Part,
    /// From this byte of the payload on.
    from: u64,
    bytes: u64,
    requests: u32,
}

impl Shard {
    /// What the rest of the payload costs; `None` as long as the device does not know: its archive's header comes first.
    pub(super) fn plan(
        &mut self,
        index: u16,
        at: u64,
        release: ReleaseId,
        offset: u64,
        env: &Env,
        worker: &mut Worker,
    ) -> Option<Plan> {
        let state = self.devices[usize::from(index)].life;
        let header = match self.pair(index, release, env) {
            Some(pair) if state & (life::HEADER | life::WHOLE) == 0 => pair.header(),
            _ => return Some(self.planned(index, release, offset, env)),
        };
        self.ask_store(
            index,
            at,
            Ask { part: Part::Header, from: offset, bytes: header, requests: 1 },
            env,
            worker,
        );
        None
    }

    /// The same for one that has the header, or does without.
    fn planned(&mut self, index: u16, release: ReleaseId, offset: u64, env: &Env) -> Plan {
        let spent = self.spent.get(&index).copied().unwrap_or_default();
        let pair = self.pair(index, release, env);
        let device = &mut self.devices[usize::from(index)];
        if device.life & life::WHOLE == 0
            && let Some(plan) = pair.map(|pair| pair.plan(offset))
        {
            if plan.method == Method::Delta {
                device.life |= life::CHUNKS;
                return plan.price(spent, u64::MAX);
            }
            device.refuse_chunks();
        }
        Plan { spent, ..Plan::full(self.releases[release].size, offset) }
    }

    /// What the device lacks of a release, if that has an archive.
    fn pair<'e>(&self, index: u16, release: ReleaseId, env: &'e Env) -> Option<&'e Pair> {
        env.deltas().between(self.devices[usize::from(index)].hardware.running(), release)
    }

    /// The same of the release that it is about to get.
    fn pair_under_way<'e>(&self, index: u16, env: &'e Env) -> Option<&'e Pair> {
        let payload = usize::from(self.devices[usize::from(index)].payload);
        self.pair(index, env.release_at(payload), env)
    }

    pub(super) fn fetch(
        &mut self,
        index: u16,
        at: u64,
        release: ReleaseId,
        offset: u64,
        env: &Env,
        worker: &mut Worker,
    ) {
        let who = self.who(index);
        let size = self.releases[release].size;
        let device = &mut self.devices[usize::from(index)];
        device.hardware.fetch(who, offset, &mut worker.violations);
        let planned = device.life & life::CHUNKS != 0;
        let ask = match self.pair(index, release, env).filter(|_| planned) {
            Some(pair) => {
                let plan = pair.by_chunks(offset);
                Ask { part: Part::Chunks, from: offset, bytes: plan.bytes, requests: plan.requests }
            }
            None => {
                Ask { part: Part::Payload, from: offset, bytes: size.saturating_sub(offset), requests: 1 }
            }
        };
        self.ask_store(index, at, ask, env, worker);
    }

    fn ask_store(&mut self, index: u16, at: u64, ask: Ask, env: &Env, worker: &mut Worker) {
        let Ask { part, from: offset, bytes, requests } = ask;
        let who = self.who(index);
        let device = &mut self.devices[usize::from(index)];
        device.fetch_from = offset;
        device.fetch_asked = at;
        device.set(flag::FETCHING);
        device.work = device.work.wrapping_add(1);
        let (generation, group) = (device.work, device.group);
        worker.meter.requested(u64::from(requests));
        let Some(more) = requests.checked_sub(1) else {
            // All of it stands on the device.
            device.fetch_arrives = at;
            let (a, b) = told(0, part);
            self.schedule(Event { at, device: index, kind: Kind::Fetched, generation, a, b });
            return;
        };
        let first_byte = env.span(&env.world().scenario().blob.latency, who.number, &mut device.draws);
        let draw = env.draw_bits(who.number, &mut device.draws);
        let latency = u64::from(device.latency);
        // SYN, SYN-ACK, the request, and the store's own time. Ranges are asked for one after the other, and what waits
        // between them is added up before the first.
        let mut arrives = at + 3 * latency + first_byte + u64::from(more) * (2 * latency + first_byte);
        let rate = env.link(group).down.max(1e-9);
        if let Some(outage) = self.outage(index, at) {
            arrives += outage.until - at;
        }
        self.devices[usize::from(index)].fetch_arrives = arrives;
        let what = What::Fetch { part, group, generation, bytes, latency, draw };
        let from = Address { shard: self.index, device: index };
        Self::submit(Request { at: arrives, from, what }, worker);
        self.doom(index, at, arrives - at + (bytes as f64 / rate) as u64);
    }

    /// All that was asked for has come, though it may not be what it should be.
    pub(super) fn fetched(&mut self, event: &Event, env: &Env, worker: &mut Worker) {
        let Event { device: index, at, .. } = *event;
        let spoilt = event.kind == Kind::FetchedCorrupt;
        let stored = self.reached(event, env);
        let device = &mut self.devices[usize::from(index)];
        device.clear(flag::FETCHING);
        let offset = device.fetch_from;
        match part(event) {
            Part::Header => {
                self.count_payload(event, env, worker);
                let device = &mut self.devices[usize::from(index)];
                if spoilt {
                    device.refuse_chunks();
                } else {
                    device.life |= life::HEADER;
                }
                self.tell_plan(index, at, offset, env, worker);
            }
            Part::Chunks if spoilt => {
                // Each chunk is compared with its digest: nothing of this is taken for the payload.
                self.count_payload(event, env, worker);
                let device = &mut self.devices[usize::from(index)];
                device.refuse_chunks();
                let (error, durable) = (FetchError::Unplanned, device.hardware.stored());
                self.tell(index, at, AgentEvent::FetchFailed { error, durable }, env, worker);
            }
            part => {
                if spoilt {
                    device.set(flag::CORRUPT);
                } else {
                    device.clear(flag::CORRUPT);
                }
                device.hardware.keep(stored);
                let took = Duration::from_micros(at - device.fetch_asked);
                self.count_payload(event, env, worker);
                worker.meter.downloaded(whole(event), took);
                if part == Part::Chunks {
                    worker.meter.assembled();
                }
                self.tell(index, at, AgentEvent::Fetched, env, worker);
            }
        }
    }

    /// The store has refused.
    pub(super) fn fetch_refused(&mut self, event: &Event, env: &Env, worker: &mut Worker) {
        let Event { device: index, at, .. } = *event;
        let device = &mut self.devices[usize::from(index)];
        device.clear(flag::FETCHING);
        let error = match whole(event) {
            403 => FetchError::Forbidden,
            404 => FetchError::NotFound,
            429 | 503 => FetchError::Busy(RETRY_AFTER),
            _ => FetchError::Server,
        };
        match part(event) {
            Part::Header => self.no_header(index, at, error, env, worker),
            Part::Chunks if error == FetchError::NotFound => {
                device.refuse_chunks();
                let (error, durable) = (FetchError::Unplanned, device.hardware.stored());
                self.tell(index, at, AgentEvent::FetchFailed { error, durable }, env, worker);
            }
            Part::Chunks | Part::Payload => {
                let durable = device.hardware.stored();
                self.tell(index, at, AgentEvent::FetchFailed { error, durable }, env, worker);
            }
        }
    }

    /// The download has broken off.
    pub(super) fn fetch_cut(&mut self, event: &Event, env: &Env, worker: &mut Worker) {
        let Event { device: index, at, .. } = *event;
        let durable = self.reached(event, env);
        let device = &mut self.devices[usize::from(index)];
        device.clear(flag::FETCHING);
        let error = FetchError::Interrupted;
        if part(event) == Part::Header {
            self.count_payload(event, env, worker);
            self.no_header(index, at, error, env, worker);
            return;
        }
        device.hardware.keep(durable);
        self.count_payload(event, env, worker);
        self.tell(index, at, AgentEvent::FetchFailed { error, durable }, env, worker);
    }

    /// An archive's header has not come: a try that failed, or there will be none.
    fn no_header(&mut self, index: u16, at: u64, error: FetchError, env: &Env, worker: &mut Worker) {
        let device = &mut self.devices[usize::from(index)];
        let failures = (device.life & life::FAILURES) / life::FAILURE + 1;
        if error != FetchError::NotFound && failures < TRIES {
            device.life += life::FAILURE;
            self.tell(index, at, AgentEvent::Planned(Err(error)), env, worker);
        } else {
            device.refuse_chunks();
            let offset = device.fetch_from;
            self.tell_plan(index, at, offset, env, worker);
        }
    }

    fn tell_plan(&mut self, index: u16, at: u64, offset: u64, env: &Env, worker: &mut Worker) {
        let payload = usize::from(self.devices[usize::from(index)].payload);
        let plan = self.planned(index, env.release_at(payload), offset, env);
        self.tell(index, at, AgentEvent::Planned(Ok(plan)), env, worker);
    }

    /// So many bytes from the payload's start are there after what an event tells of.
    pub(super) fn reached(&self, event: &Event, env: &Env) -> u64 {
        let from = self.devices[usize::from(event.device)].fetch_from;
        match part(event) {
            Part::Payload => from + whole(event),
            Part::Header => from,
            Part::Chunks => {
                let pair = self.pair_under_way(event.device, env);
                pair.map_or(from, |pair| pair.reached(from, whole(event)))
            }
        }
    }

    /// Stops a download that nobody wants any more; its bytes are counted when the store has said how many.
    pub(super) fn stop_fetching(&mut self, index: u16, at: u64, worker: &mut Worker) {
        let device = &mut self.devices[usize::from(index)];
        if !device.has(flag::FETCHING) {
            return;
        }
        device.clear(flag::FETCHING);
        let arrives = (at + u64::from(device.latency)).max(device.fetch_arrives);
        let what = What::Stop { generation: device.work, wanted: false, notices: 0 };
        device.work = device.work.wrapping_add(1);
        let from = Address { shard: self.index, device: index };
        Self::submit(Request { at: arrives, from, what }, worker);
    }

    /// A download breaks off; the device notices after `notices`.
    pub(super) fn cut_download(&mut self, index: u16, at: u64, notices: u64, worker: &mut Worker) {
        let device = &mut self.devices[usize::from(index)];
        if device.has(flag::FETCHING) {
            let what = What::Stop { generation: device.work, wanted: true, notices };
            let from = Address { shard: self.index, device: index };
            Self::submit(Request { at: at.max(device.fetch_arrives), from, what }, worker);
        }
    }

    /// Bytes of a payload came, or of its archive, as an event tells.
    pub(super) fn count_payload(&mut self, event: &Event, env: &Env, worker: &mut Worker) {
        let (index, bytes, part) = (event.device, whole(event), part(event));
        let end = self.reached(event, env);
        let device = &self.devices[usize::from(index)];
        let (from, known) = (device.fetch_from, device.furthest.min(end));
        let again = match part {
            Part::Payload => known.saturating_sub(from),
            Part::Chunks if known > from => {
                self.pair_under_way(index, env).map_or(0, |pair| pair.cost(from, known))
            }
            Part::Chunks | Part::Header => 0,
        };
        // Nobody asks what an update has cost without a cap.
        if env.world().scenario().agent.update_cap.is_some() {
            *self.spent.entry(index).or_default() += bytes;
        }
        let device = &mut self.devices[usize::from(index)];
        device.furthest = device.furthest.max(end);
        worker.meter.payload(instant(device.fetch_asked), instant(event.at), bytes, again);
        if part != Part::Payload {
            worker.meter.by_delta(bytes);
        }
    }
}
