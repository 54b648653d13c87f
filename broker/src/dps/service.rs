//! What the service's back end does: enrollments and registrations, one by one, in bulk, by query.

use fleetwave_protocol::sas::Key;
use serde_json::{Value, json};

use super::enrollment::Enrollment;
use super::kept::Place;
use super::registration::State;
use super::{Dps, DpsError, Kept, check_id};

/// A page of a query's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) items: Vec<Value>,
    /// Where the next page begins, if there is one.
    pub(crate) continuation: Option<String>,
}

/// Which of the two kinds of enrollments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Individual,
    Group,
}

impl Kind {
    const fn of(group: bool) -> Self {
        if group { Self::Group } else { Self::Individual }
    }
}

fn draw() -> Key {
    Key::from_bytes(rand::random::<[u8; 32]>().to_vec())
}

/// What a bulk operation does to each enrollment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bulk {
    Create,
    Update,
    UpdateIfMatch,
    Delete,
}

impl Bulk {
    pub(crate) fn parse(mode: &str) -> Option<Self> {
        [
            ("create", Self::Create),
            ("update", Self::Update),
            ("updateIfMatchETag", Self::UpdateIfMatch),
            ("delete", Self::Delete),
        ]
        .into_iter()
        .find_map(|(name, bulk)| name.eq_ignore_ascii_case(mode).then_some(bulk))
    }
}

impl Kept {
    fn table(&mut self, kind: Kind) -> &mut std::collections::BTreeMap<String, Enrollment> {
        match kind {
            Kind::Individual => &mut self.enrollments,
            Kind::Group => &mut self.groups,
        }
    }
}

impl Dps {
    /// Creates an enrollment, or changes it if the etag is current. Without an etag an existing one is a conflict.
    pub(crate) fn put(
        &self,
        group: bool,
        id: &str,
        body: &Value,
        if_match: Option<&str>,
    ) -> Result<Value, DpsError> {
        let key = check_id(id)?;
        let wall = self.wall();
        let mut kept = self.kept();
        let before = kept.table(Kind::of(group)).get(&key).cloned();
        match (&before, if_match) {
            (Some(_), None) => {
                return Err(DpsError::new(
                    409_204,
                    format!("there is an enrollment {id:?}: send its etag in If-Match to change it"),
                ));
            }
            (Some(before), Some(etag)) => check_etag(&before.etag, etag)?,
            (None, Some(etag)) if etag.trim_matches('"') != "*" => {
                return Err(DpsError::not_found(format!("no enrollment {id:?}")));
            }
            (None, _) => {}
        }
        let mut enrollment = Enrollment::read(id, body, group, before.as_ref(), &mut draw)?;
        enrollment.etag = kept.etag();
        enrollment.created = before.map_or(wall, |before| before.created);
        enrollment.updated = wall;
        let written = self.written(&kept, &enrollment, true);
        kept.table(Kind::of(group)).insert(key.clone(), enrollment);
        self.begin_saving(&kept, [Place::Enrollment { group, id: key }]);
        Ok(written)
    }

    fn written(&self, kept: &Kept, enrollment: &Enrollment, with_keys: bool) -> Value {
        let state = kept
            .states
            .get(&enrollment.id.to_ascii_lowercase())
            .filter(|_| !enrollment.group)
            .map(|state| state.write(&self.settings.hub));
        enrollment.write(with_keys, state.as_ref())
    }

    pub(crate) fn get(&self, group: bool, id: &str) -> Result<Value, DpsError> {
        let mut kept = self.kept();
        let enrollment = kept.table(Kind::of(group)).get(&id.to_ascii_lowercase()).cloned();
        let enrollment = enrollment.ok_or_else(|| DpsError::not_found(format!("no enrollment {id:?}")))?;
        Ok(self.written(&kept, &enrollment, false))
    }

    /// The attestation with its keys.
    pub(crate) fn attestation(&self, group: bool, id: &str) -> Result<Value, DpsError> {
        let mut kept = self.kept();
        let enrollment = kept.table(Kind::of(group)).get(&id.to_ascii_lowercase());
        enrollment
            .map(|enrollment| enrollment.attestation.write(true))
            .ok_or_else(|| DpsError::not_found(format!("no enrollment {id:?}")))
    }

    pub(crate) fn delete(&self, group: bool, id: &str, if_match: Option<&str>) -> Result<(), DpsError> {
        let key = id.to_ascii_lowercase();
        let mut kept = self.kept();
        let table = kept.table(Kind::of(group));
        let enrollment =
            table.get(&key).ok_or_else(|| DpsError::not_found(format!("no enrollment {id:?}")))?;
        if let Some(etag) = if_match {
            check_etag(&enrollment.etag, etag)?;
        }
        table.remove(&key);
        let of_it = |(id, state): (&String, &State)| {
            let gone = if group { state.group.as_deref() == Some(&key) } else { *id == key };
            gone.then(|| id.clone())
        };
        let gone: Vec<String> = kept.states.iter().filter_map(of_it).collect();
        for id in &gone {
            kept.states.remove(id);
        }
        let places = gone.into_iter().map(Place::Registration);
        self.begin_saving(&kept, places.chain([Place::Enrollment { group, id: key }]));
        Ok(())
    }

    /// All enrollments of a kind, by pages.
    pub(crate) fn list(
        &self,
        group: bool,
        query: &str,
        max: usize,
        continuation: Option<&str>,
    ) -> Result<Page, DpsError> {
        check_query(query, if group { "enrollmentGroups" } else { "enrollments" })?;
        let mut kept = self.kept();
        let all: Vec<Enrollment> = kept.table(Kind::of(group)).values().cloned().collect();
        page(
            all.iter().map(|enrollment| (enrollment.id.to_ascii_lowercase(), enrollment)),
            max,
            continuation,
            |e| self.written(&kept, e, false),
        )
    }

    /// Does the same to many individual enrollments.
    pub(crate) fn bulk(&self, bulk: Bulk, enrollments: &[Value]) -> Value {
        let mut errors = Vec::new();
        for body in enrollments {
            let id = body["registrationId"].as_str().unwrap_or_default();
            let etag = body["etag"].as_str().unwrap_or("*");
            let result = match bulk {
                Bulk::Create => self.put(false, id, body, None).map(drop),
                Bulk::Update => self.put(false, id, body, Some("*")).map(drop),
                Bulk::UpdateIfMatch => self.put(false, id, body, Some(etag)).map(drop),
                Bulk::Delete => self.delete(false, id, Some(etag)),
            };
            if let Err(error) = result {
                errors.push(json!({
                    "registrationId": id,
                    "errorCode": error.code,
                    "errorStatus": error.message,
                }));
            }
        }
        json!({ "isSuccessful": errors.is_empty(), "errors": errors })
    }

    pub(crate) fn registration(&self, id: &str) -> Result<Value, DpsError> {
        let kept = self.kept();
        let state = kept.states.get(&id.to_ascii_lowercase());
        state
            .map(|state| state.write(&self.settings.hub))
            .ok_or_else(|| DpsError::not_found(format!("no registration {id:?}")))
    }

    pub(crate) fn delete_registration(&self, id: &str, if_match: Option<&str>) -> Result<(), DpsError> {
        let key = id.to_ascii_lowercase();
        let mut kept = self.kept();
        let state =
            kept.states.get(&key).ok_or_else(|| DpsError::not_found(format!("no registration {id:?}")))?;
        if let Some(etag) = if_match {
            check_etag(&state.etag, etag)?;
        }
        kept.states.remove(&key);
        self.begin_saving(&kept, [Place::Registration(key)]);
        Ok(())
    }

    /// The registrations of a group, by pages.
    pub(crate) fn registrations(
        &self,
        group: &str,
        max: usize,
        continuation: Option<&str>,
    ) -> Result<Page, DpsError> {
        let key = group.to_ascii_lowercase();
        let kept = self.kept();
        if !kept.groups.contains_key(&key) {
            return Err(DpsError::not_found(format!("no enrollment group {group:?}")));
        }
        let own = kept.states.iter().filter(|(_, state)| state.group.as_deref() == Some(&key));
        page(own.map(|(id, state)| (id.clone(), state)), max, continuation, |state| {
            state.write(&self.settings.hub)
        })
    }
}

fn check_etag(current: &str, given: &str) -> Result<(), DpsError> {
    let given = given.trim_matches('"');
    if given == "*" || given == current { Ok(()) } else { Err(DpsError::stale(current)) }
}

/// The only queries there are select everything.
fn check_query(query: &str, from: &str) -> Result<(), DpsError> {
    let words: Vec<&str> = query.split_whitespace().collect();
    match words[..] {
        // The vendor's own samples ask for `*` alone.
        [] | ["*"] => Ok(()),
        [select, star, from_word, table]
            if select.eq_ignore_ascii_case("select")
                && star == "*"
                && from_word.eq_ignore_ascii_case("from")
                && table.eq_ignore_ascii_case(from) =>
        {
            Ok(())
        }
        _ => Err(DpsError::new(501_000, format!("only `SELECT * FROM {from}` is modelled, not {query:?}"))),
    }
}

fn page<T>(
    items: impl Iterator<Item = (String, T)>,
    max: usize,
    continuation: Option<&str>,
    write: impl Fn(T) -> Value,
) -> Result<Page, DpsError> {
    let after = continuation.map(|token| {
        fleetwave_protocol::bag::decode(token)
            .ok_or_else(|| DpsError::invalid("the continuation is not one of ours"))
    });
    let after = after.transpose()?;
    let mut rest =
        items.filter(|(key, _)| after.as_deref().is_none_or(|after| key.as_str() > after)).peekable();
    let mut page = Page { items: Vec::new(), continuation: None };
    let mut last = String::new();
    while page.items.len() < max
        && let Some((key, item)) = rest.next()
    {
        page.items.push(write(item));
        last = key;
    }
    if rest.peek().is_some() {
        page.continuation = Some(fleetwave_protocol::bag::encode(&last));
    }
    Ok(page)
}
