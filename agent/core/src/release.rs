//! Releases: what the twin refers to, and a catalogue that a whole fleet shares.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::ResultCode;
use crate::reference::{Archive, FIRMWARE, TrustRoot, Unsigned};

/// A release in a [`Releases`] catalogue: what a device holds instead of the release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReleaseId(u32);

impl ReleaseId {
    /// Its place in the catalogue.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A release as its reference in the twin describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Release {
    /// The operator's name for it.
    pub id: Arc<str>,
    /// Rises with every release: a device takes none that is below the one it has, unless that is signed too.
    pub sequence: u64,
    /// The payload's size in bytes.
    pub size: u64,
    /// The payload's SHA-256.
    pub digest: [u8; 32],
    /// Whether a device may go down to it from a higher sequence.
    pub downgrade: bool,
    /// What of a device it is for: `components.app`, say. The firmware if that is not said.
    pub target: Option<Arc<str>>,
    /// The types of devices that it is for; all of them if none is named.
    pub compatible: Box<[Arc<str>]>,
    /// The chunked archive of the same payload.
    pub delta: Option<Archive>,
    /// Whether enough release keys have signed all of the above.
    pub trust: Result<(), ResultCode>,
    /// Whether it is for the target and the type of device that the catalogue belongs to.
    pub fit: Result<(), ResultCode>,
    /// The reference as it stood in the twin, so that a merge patch can be applied to it.
    reference: Map<String, Value>,
}
impl Release {
    /// One that nobody may install: it came with the device, or its reference makes no sense.
    fn unusable(id: &str, sequence: u64, reference: Map<String, Value>) -> Self {
        Self {
            id: id.into(),
            sequence,
            size: 0,
            digest: [0; 32],
            downgrade: false,
            target: None,
            compatible: Box::default(),
            delta: None,
            trust: Err(ResultCode::ReferenceMalformed),
            fit: Ok(()),
            reference,
        }
    }

    /// The reference as it stands in the twin, without signatures of its own making.
    #[must_use]
    pub fn reference(&self) -> &Map<String, Value> {
        &self.reference
    }
}

/// The releases that a fleet knows, each once, however many devices refer to it.
#[derive(Clone, Debug, Default)]
pub struct Releases {
    trust: TrustRoot,
    /// What of a device they are for; the firmware if `None`.
    target: Option<Arc<str>>,
    device_type: Option<Arc<str>>,
    entries: Vec<Release>,
}

impl Releases {
    /// An empty catalogue; what is added to it is checked against `trust`, once.
    #[must_use]
    pub fn new(trust: TrustRoot) -> Self {
        Self { trust, target: None, device_type: None, entries: Vec::new() }
    }

    /// The same, for a `target` (`firmware`, `components.app`) of a device of this type: what is added from now on is
    /// compared with them, too.
    #[must_use]
    pub fn fitting(self, target: &str, device_type: Option<&str>) -> Self {
        Self { target: Some(target.into()), device_type: device_type.map(Into::into), ..self }
    }

    /// A release that devices run without having got it by an update: it has no payload and nobody signed it.
    pub fn preinstalled(&mut self, id: &str, sequence: u64) -> ReleaseId {
        if let Some(found) = self.find(id, sequence) {
            return found;
        }
        // A reference that says no more than this is malformed. It is not empty: an empty one in a twin must not
        // pass for a release that somebody runs.
        let reference = Map::from_iter([("id".into(), id.into()), ("seq".into(), sequence.into())]);
        self.push(Release::unusable(id, sequence, reference))
    }

    /// The release of a reference in the twin; one that is already known is not checked again.
    ///
    /// A reference that is malformed, or that too few keys signed, gets an entry too: [`Release::trust`] says
    /// what is wrong, so that the device can report it.
    pub fn intern(&mut self, reference: &Map<String, Value>) -> ReleaseId {
        if let Some(index) = self.entries.iter().rposition(|release| release.reference == *reference) {
            return ReleaseId(index as u32);
        }
        let release = match Unsigned::read(reference) {
            Some(said) => Release {
                id: said.id.into(),
                sequence: said.sequence,
                size: said.size,
                digest: said.digest,
                downgrade: said.downgrade,
                target: said.target.map(Into::into),
                compatible: said.compatible.iter().map(|name| (*name).into()).collect(),
                delta: said.delta,
                trust: self.trust.check(&said.statement(), reference.get("sigs")),
                fit: self.fits(&said),
                reference: reference.clone(),
            },
            None => {
                let text = |name| reference.get(name).and_then(Value::as_str).unwrap_or_default();
                let sequence = reference.get("seq").and_then(Value::as_u64).unwrap_or_default();
                Release::unusable(text("id"), sequence, reference.clone())
            }
        };
        self.push(release)
    }

    fn fits(&self, said: &Unsigned<'_>) -> Result<(), ResultCode> {
        if said.target.unwrap_or(FIRMWARE) != self.target.as_deref().unwrap_or(FIRMWARE) {
            return Err(ResultCode::WrongTarget);
        }
        // A device that was not told its type takes only what is for all.
        let compatible = said.compatible.is_empty()
            || self.device_type.as_deref().is_some_and(|own| said.compatible.contains(&own));
        if compatible { Ok(()) } else { Err(ResultCode::Incompatible) }
    }

    /// The first release with this name and sequence.
    #[must_use]
    pub fn find(&self, id: &str, sequence: u64) -> Option<ReleaseId> {
        let index =
            self.entries.iter().position(|release| &*release.id == id && release.sequence == sequence)?;
        Some(ReleaseId(index as u32))
    }

    /// The last release with this name.
    #[must_use]
    pub fn by_name(&self, id: &str) -> Option<ReleaseId> {
        let index = self.entries.iter().rposition(|release| &*release.id == id)?;
        Some(ReleaseId(index as u32))
    }

    /// Whether both stand for the same image.
    #[must_use]
    pub fn same(&self, a: ReleaseId, b: ReleaseId) -> bool {
        a == b || (self[a].id == self[b].id && self[a].sequence == self[b].sequence)
    }

    /// All releases with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (ReleaseId, &Release)> {
        self.entries.iter().enumerate().map(|(index, release)| (ReleaseId(index as u32), release))
    }

    fn push(&mut self, release: Release) -> ReleaseId {
        let id = ReleaseId(self.entries.len() as u32);
        self.entries.push(release);
        id
    }
}

impl core::ops::Index<ReleaseId> for Releases {
    type Output = Release;

    fn index(&self, id: ReleaseId) -> &Release {
        &self.entries[id.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalogue_refuses_what_is_for_another_target_or_another_type_of_device() {
        let fit = |catalogue: Releases, target, compatible: &[&'static str]| {
            let mut catalogue = catalogue;
            let said =
                Unsigned { target, compatible: compatible.to_vec(), ..Unsigned::new("a", 2, 10, [7; 32]) };
            let id = catalogue.intern(&said.sign(&[]));
            catalogue[id].fit
        };
        let plain = Releases::default;
        assert_eq!(fit(plain(), None, &[]), Ok(()));
        assert_eq!(fit(plain(), Some("firmware"), &[]), Ok(()));
        assert_eq!(fit(plain(), Some("components.app"), &[]), Err(ResultCode::WrongTarget));
        assert_eq!(fit(plain(), None, &["pi-4"]), Err(ResultCode::Incompatible));
        let app = || Releases::default().fitting("components.app", Some("pi-4"));
        assert_eq!(fit(app(), Some("components.app"), &["pi-3", "pi-4"]), Ok(()));
        assert_eq!(fit(app(), Some("components.app"), &["pi-3"]), Err(ResultCode::Incompatible));
        assert_eq!(fit(app(), Some("components.apps"), &[]), Err(ResultCode::WrongTarget));
        assert_eq!(fit(app(), None, &[]), Err(ResultCode::WrongTarget));
    }
}
