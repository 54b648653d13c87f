//! The fleet that a scenario describes: which group each device is in, and everything that is drawn for it.
//!
//! Nothing here is stored for a device; all of it is computed from the seed and the device's number when it is asked
//! for. Groups are spread over the fleet by a seeded shuffle and have exactly the sizes that their shares say, so that
//! a block of devices (a shard) is a fair sample of the fleet. Each draw comes from a stream of its own, so that
//! neither the order of the questions nor a draw that was added later changes another one.

use core::fmt::Write as _;
use core::time::Duration;

use fleetwave_protocol::CounterRng;
use fleetwave_protocol::rng::mix;

use super::fault::CutMoment;
use super::model::{Group, Release, Scenario, Share};
use super::permute::Permutation;
use super::quantity::Percent;
use super::step::Arrival;

/// What a device's random numbers are for. Each purpose has its own stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Purpose {
    /// The latency of its link.
    Latency = 1,
    /// Which of its messages are lost.
    Loss,
    /// What the agent itself draws: splay, backoff.
    Agent,
    /// How long it writes its slot.
    Install,
    /// How long it boots.
    Reboot,
    /// How long its health checks take.
    Probation,
    /// Whether it can write a release.
    InstallFailure,
    /// Whether it boots a release.
    BootFailure,
    /// Whether it is healthy with a release.
    HealthFailure,
    /// When it loses power, and for how long.
    PowerCut,
    /// How long the grant service takes for it.
    Grant,
    /// How long the blob store takes to its first byte.
    Blob,
    /// What it does by its script.
    Script,
    /// Whether it may be interrupted.
    Busy,
}

/// Streams that shuffle the fleet rather than belong to a device.
const SHUFFLE_GROUPS: u64 = 0x67_726f_7570;
const SHUFFLE_ARRIVALS: u64 = 0x6172_7269_7665;
const SHUFFLE_FAULTS: u64 = 0x66_6175_6c74;

/// A planned fleet.
#[derive(Clone, Debug)]
pub struct Fleet {
    seed: u64,
    devices: u64,
    digits: usize,
    /// What every device's id begins with.
    prefix: Box<str>,
    shuffle: Permutation,
    groups: Vec<PlannedGroup>,
}

/// A group, and which part of the shuffled fleet it is.
#[derive(Clone, Debug)]
pub struct PlannedGroup {
    /// What the scenario says of it.
    pub spec: Group,
    /// Its tags as JSON.
    pub tags: String,
    first: u64,
    devices: u64,
}

impl PlannedGroup {
    /// How many devices are in it.
    #[must_use]
    pub const fn devices(&self) -> u64 {
        self.devices
    }
}

impl Fleet {
    /// Plans the fleet of `scenario`.
    #[must_use]
    pub fn plan(scenario: &Scenario) -> Self {
        let devices = scenario.fleet.devices.0;
        let specs = if scenario.fleet.groups.is_empty() {
            vec![Group::named("all")]
        } else {
            scenario.fleet.groups.clone()
        };
        let shares: Vec<Share> = specs.iter().map(|group| group.share).collect();
        let mut first = 0;
        let groups = specs
            .into_iter()
            .zip(sizes(devices, &shares))
            .map(|(spec, devices)| {
                let tags = serde_json::Value::from_iter(spec.tags.clone()).to_string();
                let group = PlannedGroup { spec, tags, first, devices };
                first += devices;
                group
            })
            .collect();
        Self {
            seed: scenario.seed,
            devices,
            digits: devices.to_string().len().max(7),
            prefix: "dev".into(),
            shuffle: Permutation::new(mix(scenario.seed ^ SHUFFLE_GROUPS), devices),
            groups,
        }
    }

    /// The same fleet, whose devices' ids begin with `prefix` in place of `dev`.
    #[must_use]
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How many devices there are.
    #[must_use]
    pub const fn devices(&self) -> u64 {
        self.devices
    }

    /// The groups, in the scenario's order.
    #[must_use]
    pub fn groups(&self) -> &[PlannedGroup] {
        &self.groups
    }

    /// The index of the group of that name.
    #[must_use]
    pub fn group_named(&self, name: &str) -> Option<usize> {
        self.groups.iter().position(|group| group.spec.name == name)
    }

    /// The index of the group that a device is in.
    ///
    /// # Panics
    /// If there is no such device.
    #[must_use]
    pub fn group_of(&self, device: u64) -> usize {
        self.group_at(self.shuffle.place(device))
    }

    fn group_at(&self, place: u64) -> usize {
        self.groups.partition_point(|group| group.first + group.devices <= place)
    }

    /// Writes a device's id: the prefix (`dev`), a hyphen and its number, as wide for every device of the fleet.
    pub fn write_id(&self, device: u64, id: &mut String) {
        write!(id, "{}-{device:0width$}", self.prefix, width = self.digits)
            .expect("a string takes everything");
    }

    /// A device's id.
    #[must_use]
    pub fn id(&self, device: u64) -> String {
        let mut id = String::with_capacity(self.prefix.len() + 1 + self.digits);
        self.write_id(device, &mut id);
        id
    }

    /// The number of the device of that id, if it is one of this fleet's.
    #[must_use]
    pub fn device_of(&self, id: &str) -> Option<u64> {
        let digits = id.strip_prefix(&*self.prefix)?.strip_prefix('-')?;
        if digits.len() != self.digits || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        digits.parse().ok().filter(|device| *device < self.devices)
    }

    /// The stream of one device for one purpose.
    #[must_use]
    pub const fn rng(&self, device: u64, purpose: Purpose) -> CounterRng {
        CounterRng::of(mix(self.seed ^ ((purpose as u64) << 48)), device)
    }

    /// The one-way latency of a device's link.
    #[must_use]
    pub fn latency(&self, device: u64, group: usize) -> Duration {
        self.groups[group].spec.link.latency.sample(&mut self.rng(device, Purpose::Latency))
    }

    /// Whether a device cannot write that release: the group's fault or the release's. The same however often it tries.
    #[must_use]
    pub fn install_fails(&self, device: u64, group: usize, release: &Release) -> bool {
        let chances = [self.groups[group].spec.install_failure, release.install_failure];
        self.fails(device, Purpose::InstallFailure, release, chances)
    }

    /// Whether a device does not boot that release. The same however often it tries.
    #[must_use]
    pub fn boot_fails(&self, device: u64, group: usize, release: &Release) -> bool {
        let chances = [self.groups[group].spec.boot_failure, release.boot_failure];
        self.fails(device, Purpose::BootFailure, release, chances)
    }

    /// Whether a device that runs that release is not healthy. The same however often it tries.
    #[must_use]
    pub fn health_fails(&self, device: u64, group: usize, release: &Release) -> bool {
        let chances = [self.groups[group].spec.health_failure, release.health_failure];
        self.fails(device, Purpose::HealthFailure, release, chances)
    }

    fn fails(&self, device: u64, purpose: Purpose, release: &Release, chances: [Percent; 2]) -> bool {
        if chances == [Percent::ZERO; 2] {
            return false;
        }
        let release = release.id.bytes().fold(release.seq, |hash, byte| mix(hash ^ u64::from(byte)));
        let mut rng = CounterRng::of(mix(self.seed ^ ((purpose as u64) << 48)) ^ release, device);
        chances.into_iter().any(|chance| rng.chance(chance.fraction()))
    }

    /// The members of `group`, or of the fleet, as a range of shuffled places.
    fn members(&self, group: Option<usize>) -> (u64, u64) {
        group.map_or((0, self.devices), |group| (self.groups[group].first, self.groups[group].devices))
    }

    /// A device's number among the members of `group`, if it is one.
    fn member(&self, device: u64, group: Option<usize>) -> Option<u64> {
        let (first, devices) = self.members(group);
        self.shuffle.place(device).checked_sub(first).filter(|member| *member < devices)
    }

    /// How many devices a connect step or a fault of `group` is about.
    #[must_use]
    pub fn member_count(&self, group: Option<usize>) -> u64 {
        self.members(group).1
    }

    /// How long after the start of the connect step `step` a device begins to connect; `None` if it is not of its group.
    #[must_use]
    pub fn arrival(
        &self,
        device: u64,
        step: usize,
        group: Option<usize>,
        arrival: Arrival,
    ) -> Option<Duration> {
        let count = self.member_count(group);
        let member = self.member(device, group)?;
        let rank = self.step_order(SHUFFLE_ARRIVALS, step, count).place(member);
        Some(arrival.offset(rank, count))
    }

    /// The `rank`-th device to arrive in the connect step `step`, and when: the inverse of [`arrival`](Self::arrival),
    /// for engines that go through them in order.
    ///
    /// # Panics
    /// If `rank` is not below [`member_count`](Self::member_count).
    #[must_use]
    pub fn nth_arrival(
        &self,
        rank: u64,
        step: usize,
        group: Option<usize>,
        arrival: Arrival,
    ) -> (u64, Duration) {
        let (first, count) = self.members(group);
        let member = self.step_order(SHUFFLE_ARRIVALS, step, count).index(rank);
        (self.shuffle.index(first + member), arrival.offset(rank, count))
    }

    /// Whether the fault of step `step` happens to a device: to exactly `share` of the members, the nearest count.
    #[must_use]
    pub fn is_hit(&self, device: u64, step: usize, group: Option<usize>, share: Percent) -> bool {
        let count = self.member_count(group);
        self.member(device, group).is_some_and(|member| {
            self.step_order(SHUFFLE_FAULTS, step, count).place(member) < share.of(count)
        })
    }

    /// In which state the power cut of step `step` finds a device, and how far through it: 0 to 1.
    #[must_use]
    pub fn power_cut(&self, device: u64, step: usize, during: CutMoment) -> (CutMoment, f64) {
        let mut rng = CounterRng::of(self.rng(device, Purpose::PowerCut).next_u64(), step as u64);
        let states = CutMoment::STATES;
        // Drawn in any case, so that naming a state changes nothing else.
        let drawn = states[rng.below(states.len() as u64) as usize];
        let moment = if during == CutMoment::Random { drawn } else { during };
        (moment, rng.unit())
    }

    const fn step_order(&self, purpose: u64, step: usize, count: u64) -> Permutation {
        Permutation::new(mix(mix(self.seed ^ purpose) ^ step as u64), count)
    }
}

/// How many of `devices` each share is: cumulative rounding, so that the sizes add up to the whole whatever the
/// shares; what percentages leave goes to those that take the rest.
fn sizes(devices: u64, shares: &[Share]) -> Vec<u64> {
    let given: u64 =
        shares.iter().map(|share| percent(*share).map_or(0, |p| u64::from(p.millionths()))).sum();
    let takers = shares.iter().filter(|share| percent(**share).is_none()).count() as u128;
    let rest = u128::from(1_000_000u64.saturating_sub(given));
    let whole = 1_000_000 * takers.max(1);
    let (mut sum, mut before) = (0u128, 0u64);
    shares
        .iter()
        .map(|share| {
            // In units of a millionth of the fleet over the number of takers, so that thirds add up.
            sum += percent(*share).map_or(rest, |p| u128::from(p.millionths()) * takers.max(1));
            let until = (u128::from(devices) * sum.min(whole) + whole / 2) / whole;
            let until = u64::try_from(until).unwrap_or(devices);
            let size = until - before;
            before = until;
            size
        })
        .collect()
}

const fn percent(share: Share) -> Option<Percent> {
    match share {
        Share::Of(percent) => Some(percent),
        Share::Rest => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::read::load_text;

    fn fleet(devices: u64, groups: &str) -> Fleet {
        let text = format!("schema = 1\nname = 'x'\nseed = 5\n[fleet]\ndevices = {devices}\n{groups}");
        Fleet::plan(&load_text("x.toml", &text, &[]).unwrap().scenario)
    }

    const THREE: &str = "[[fleet.group]]\nname = 'a'\nshare = '1%'\ntags = { ring = 'canary' }\n\
                         [[fleet.group]]\nname = 'b'\nshare = '33.3333%'\n[[fleet.group]]\nname = 'c'\n";

    #[test]
    fn groups_have_exactly_their_shares_and_lie_mixed() {
        let fleet = fleet(10_000, THREE);
        let mut counts = [0; 3];
        for device in 0..fleet.devices() {
            counts[fleet.group_of(device)] += 1;
        }
        assert_eq!(counts, [100, 3333, 6567]);
        assert_eq!(counts.map(Some), [0, 1, 2].map(|g| Some(fleet.groups()[g].devices())));
        let early = (0..1000).filter(|device| fleet.group_of(*device) == 1).count();
        assert!((250..420).contains(&early), "{early}");
        assert_eq!(fleet.groups()[0].tags, r#"{"ring":"canary"}"#);
    }

    #[test]
    fn sizes_add_up_to_the_fleet_whatever_the_shares() {
        for devices in [1, 2, 3, 10, 99, 1001] {
            let shares = [Share::Rest, Share::Of("0.1%".parse().unwrap()), Share::Rest, Share::Rest];
            assert_eq!(sizes(devices, &shares).iter().sum::<u64>(), devices);
        }
    }

    #[test]
    fn ids_are_as_wide_as_the_fleet_needs_and_lead_back() {
        let fleet = fleet(20_000_000, "");
        assert_eq!(fleet.id(3), "dev-00000003");
        assert_eq!(fleet.device_of("dev-00000003"), Some(3));
        for stranger in ["dev-0000003", "dev-20000000", "dev-+0000003", "x"] {
            assert_eq!(fleet.device_of(stranger), None, "{stranger}");
        }
    }

    #[test]
    fn arrivals_fill_the_ramp_evenly_and_can_be_asked_for_in_order() {
        let fleet = fleet(500, THREE);
        let arrival = Arrival::Over("10s".parse().unwrap());
        let group = fleet.group_named("c");
        let count = fleet.member_count(group);
        let mut last = Duration::ZERO;
        for rank in 0..count {
            let (device, at) = fleet.nth_arrival(rank, 0, group, arrival);
            assert_eq!(fleet.group_of(device), 2);
            assert_eq!(fleet.arrival(device, 0, group, arrival), Some(at));
            assert!(at >= last);
            last = at;
        }
        assert_eq!(last, Duration::from_secs(10));
        let others = (0..500).filter(|d| fleet.arrival(*d, 0, group, arrival).is_none()).count() as u64;
        assert_eq!(others, 500 - count);
    }

    #[test]
    fn a_fault_hits_exactly_its_share_and_another_step_hits_others() {
        let fleet = fleet(1000, THREE);
        let hit = |step: usize, group| {
            let share = "20%".parse().unwrap();
            (0..1000).filter(|d| fleet.is_hit(*d, step, group, share)).collect::<Vec<u64>>()
        };
        assert_eq!(hit(0, None).len(), 200);
        assert_ne!(hit(0, None), hit(1, None));
        assert_eq!(hit(0, fleet.group_named("b")).len(), 67);
        assert!(hit(0, fleet.group_named("b")).iter().all(|d| fleet.group_of(*d) == 1));
    }

    #[test]
    fn random_power_cuts_find_every_state_about_as_often() {
        let fleet = fleet(8000, "");
        for state in CutMoment::STATES {
            let found = (0..8000).filter(|d| fleet.power_cut(*d, 3, CutMoment::Random).0 == state).count();
            assert!((850..1150).contains(&found), "{state:?}: {found}");
        }
        assert_eq!(fleet.power_cut(1, 3, CutMoment::Staging).0, CutMoment::Staging);
    }

    #[test]
    fn purposes_and_devices_draw_apart_from_each_other() {
        let fleet = fleet(10, "");
        let draw = |device, purpose| fleet.rng(device, purpose).next_u64();
        assert_ne!(draw(1, Purpose::Latency), draw(2, Purpose::Latency));
        assert_ne!(draw(1, Purpose::Latency), draw(1, Purpose::Loss));
        assert_eq!(draw(1, Purpose::Latency), draw(1, Purpose::Latency));
    }
}
