//! Which devices are to have which release, and by which change: what convergence is judged by and grants are given
//! by. The harness works it out for itself, from the configurations that it put and the groups of the fleet.

use fleetwave_agent_core::ReleaseId;

use crate::measure::ChangeId;

/// A release that devices are to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Aim {
    /// The change that said so.
    pub(super) change: ChangeId,
    /// The release.
    pub(super) release: ReleaseId,
}

/// Whom a configuration is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// All devices of these groups, by their index.
    Groups(Vec<bool>),
    /// That depends on more than the group: a device shows it by what its twin says.
    Open,
}

#[derive(Clone, Debug)]
struct Put {
    id: String,
    priority: u32,
    aim: Aim,
    audience: Audience,
}

/// The configurations that are in force, the oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Board(Vec<Put>);

impl Board {
    /// A configuration is put, in place of one of the same id.
    pub(super) fn put(&mut self, id: &str, priority: u32, aim: Aim, audience: Audience) {
        self.remove(id);
        self.0.push(Put { id: id.to_owned(), priority, aim, audience });
    }

    /// A configuration is removed.
    pub(super) fn remove(&mut self, id: &str) {
        self.0.retain(|put| put.id != id);
    }

    /// What the devices of a group are to have: the highest priority wins, and of equal ones the newest.
    pub(super) fn of_group(&self, group: usize) -> Option<Aim> {
        let is_for = |put: &&Put| matches!(&put.audience, Audience::Groups(groups) if groups[group]);
        self.0.iter().filter(is_for).max_by_key(|put| put.priority).map(|put| put.aim)
    }

    /// What devices may be asked to have whatever their group.
    pub(super) fn open(&self) -> impl Iterator<Item = Aim> {
        self.0.iter().filter(|put| put.audience == Audience::Open).map(|put| put.aim)
    }
}

#[cfg(test)]
mod tests {
    use fleetwave_agent_core::Releases;

    use super::*;

    fn aims() -> [Aim; 2] {
        let mut releases = Releases::default();
        [0, 1].map(|n| Aim { change: ChangeId(n), release: releases.preinstalled("fw", u64::from(n)) })
    }

    #[test]
    fn the_higher_priority_wins_and_of_equal_ones_the_newest() {
        let [old, new] = aims();
        let everyone = || Audience::Groups(vec![true, true]);
        let mut board = Board::default();
        board.put("a", 10, old, everyone());
        board.put("b", 10, new, Audience::Groups(vec![false, true]));
        assert_eq!([board.of_group(0), board.of_group(1)], [Some(old), Some(new)]);
        board.put("b", 9, new, everyone());
        assert_eq!(board.of_group(1), Some(old));
        board.remove("a");
        assert_eq!(board.of_group(0), Some(new));
        board.remove("b");
        assert_eq!(board.of_group(0), None);
    }

    #[test]
    fn an_open_audience_is_nobodys_until_devices_show_it() {
        let [old, _] = aims();
        let mut board = Board::default();
        board.put("a", 10, old, Audience::Open);
        assert_eq!(board.of_group(0), None);
        assert_eq!(board.open().collect::<Vec<_>>(), [old]);
    }
}
