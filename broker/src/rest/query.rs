//! Queries over twins and jobs, in pages.
//!
//! A continuation says where the next page begins: the shard, the index of the next device in it (indices are never
//! given to another device, so devices that come and go move nothing), how many rows were given, and which query
//! it is of.

use std::hash::Hasher as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fleetwave_hub_core::query::{Collection, JsonRow, PageLimits, Partial, Query};
use fleetwave_hub_core::{DeviceIx, ErrorCode, throttle};
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::router::{Verb, does};
use super::{Api, ApiError, Call, Operation, Reply};
use crate::policy::Rights;

/// The largest page, and the size of a page whose size nobody gave.
const MOST: usize = 1000;
const DEFAULT: usize = 100;
/// How many twins a shard looks at in one go.
const STEP: usize = 4096;
/// The header with a page's end, in both directions.
const CONTINUATION: &str = "x-ms-continuation";

pub(super) const OPERATIONS: &[Operation] = &[Operation::new(
    "Query twins and jobs",
    Verb::Post,
    "/devices/query",
    Rights::SERVICE_CONNECT,
    does!(run),
)
.limited(throttle::Operation::Query)
.sdk(
    "Python `IoTHubRegistryManager.query_iot_hub`; Node `Registry.createQuery`; Java `QueryClient.query`, \
             `TwinClient`",
)
.test("rest::a_query_comes_in_pages_that_survive_changes")];

#[derive(Deserialize)]
struct QueryBody {
    query: String,
}

/// Where a page begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// Which query it is of.
    query: u64,
    shard: u32,
    device: u32,
    /// How many rows were given before.
    rows: u64,
}

/// The first byte of a continuation.
const FORM: u8 = 1;

impl Place {
    fn start(text: &str) -> Self {
        let mut hasher = rustc_hash::FxHasher::default();
        hasher.write(text.as_bytes());
        Self { query: hasher.finish(), shard: 0, device: 0, rows: 0 }
    }

    /// What a client sends as continuation; nothing is the start.
    fn read(token: Option<&str>, text: &str) -> Result<Self, ApiError> {
        let start = Self::start(text);
        let Some(token) = token.map(str::trim).filter(|token| !token.is_empty()) else { return Ok(start) };
        let bad = |why| ApiError::new(ErrorCode::ArgumentInvalid, format!("the continuation is {why}"));
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad("none of this hub's"))?;
        let [FORM, rest @ ..] = bytes.as_slice() else { return Err(bad("none of this hub's")) };
        let Ok(rest) = <[u8; 24]>::try_from(rest) else { return Err(bad("none of this hub's")) };
        let number = |from: usize, to: usize| {
            rest[from..to].iter().fold(0_u64, |number, &byte| number << 8 | u64::from(byte))
        };
        let short = |from: usize| u32::try_from(number(from, from + 4)).unwrap_or(u32::MAX);
        let place = Self { query: number(0, 8), shard: short(8), device: short(12), rows: number(16, 24) };
        if place.query != start.query {
            return Err(bad("of another query"));
        }
        Ok(place)
    }

    fn write(self) -> String {
        let mut bytes = vec![FORM];
        bytes.extend_from_slice(&self.query.to_be_bytes());
        bytes.extend_from_slice(&self.shard.to_be_bytes());
        bytes.extend_from_slice(&self.device.to_be_bytes());
        bytes.extend_from_slice(&self.rows.to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The same with rows given.
    fn past(self, rows: usize) -> Self {
        Self { rows: self.rows + rows as u64, ..self }
    }
}

/// A page: a JSON array, and where the next one begins.
struct Page {
    rows: Vec<u8>,
    next: Option<Place>,
}

fn page_size(call: &Call) -> Result<usize, ApiError> {
    let Some(text) = call.header("x-ms-max-item-count") else { return Ok(DEFAULT) };
    match text.trim().parse::<usize>() {
        Ok(size) if size > 0 => Ok(size.min(MOST)),
        _ => Err(ApiError::new(
            ErrorCode::ArgumentInvalid,
            format!("x-ms-max-item-count is {text:?}, a number from 1 to {MOST} was expected"),
        )),
    }
}

async fn run(call: Call) -> Result<Reply, ApiError> {
    let QueryBody { query: text } = call.json()?;
    let query = Query::parse(&text)
        .map_err(|error| ApiError::new(ErrorCode::ArgumentInvalid, format!("the query, {error}")))?;
    let size = page_size(&call)?;
    let place = Place::read(call.header(CONTINUATION), &text)?;
    let query = Arc::new(query);
    let Page { rows, next } = match (query.collection(), query.is_aggregate()) {
        (Collection::Jobs, _) => jobs(&call.api, &query, place, size),
        (_, true) => aggregate(&call.api, &query, place, size).await?,
        (Collection::Devices | Collection::Modules, false) => twins(&call.api, &query, place, size).await?,
    };
    let reply = Reply::text(StatusCode::OK, rows).with("x-ms-item-type", query.item_type().as_str());
    Ok(match next {
        Some(place) => reply.with(CONTINUATION, place.write()),
        None => reply,
    })
}

/// How many rows a page may have, of those that the query wants.
fn room(query: &Query, place: Place, size: usize) -> usize {
    let wanted = query.top().map_or(u64::MAX, u64::from).saturating_sub(place.rows);
    size.min(usize::try_from(wanted).unwrap_or(usize::MAX))
}

async fn twins(api: &Api, query: &Arc<Query>, start: Place, size: usize) -> Result<Page, ApiError> {
    let most = room(query, start, size);
    let mut rows = vec![b'['];
    let mut count = 0;
    let mut place = start;
    // The last row that the query wants is also the last that is looked for. Else one more is, when the page is
    // full: nobody should be sent for a page with nothing on it.
    let complete = query.top().is_some_and(|top| u64::from(top) == start.rows + most as u64);
    let next = loop {
        if place.shard as usize >= api.control.shards() || (complete && count == most) {
            break None;
        }
        let (query, from) = (query.clone(), DeviceIx::from_index(place.device));
        let limits = PageLimits { rows: most - count, twins: STEP };
        let found = api.control.with_shard(place.shard as usize, move |shard| {
            let mut rows = vec![b'['];
            let page = shard.hub().query_page(&query, from, limits, &mut rows);
            (page, rows)
        });
        let (page, found) = found.await?;
        if page.rows > 0 {
            if count > 0 {
                rows.push(b',');
            }
            rows.extend_from_slice(&found[1..]);
            count += page.rows;
        }
        match page.next {
            Some(next) => place.device = u32::try_from(next.index()).unwrap_or(u32::MAX),
            None => (place.shard, place.device) = (place.shard + 1, 0),
        }
        if page.full {
            break (!complete).then(|| place.past(count));
        }
    };
    rows.push(b']');
    Ok(Page { rows, next })
}

async fn aggregate(api: &Api, query: &Arc<Query>, place: Place, size: usize) -> Result<Page, ApiError> {
    let shared = query.clone();
    let partials = api.control.with_all(move |shard| shard.hub().query_partial(&shared)).await?;
    let mut whole = Partial::default();
    for partial in partials {
        query.merge(&mut whole, partial);
    }
    let mut rows = vec![b'['];
    query.write_rows(whole, &mut rows);
    rows.push(b']');
    slice(rows, place, size)
}

/// The page of rows that are all there. They are made anew for each page: groups that come and go meanwhile may move.
fn slice(rows: Vec<u8>, place: Place, size: usize) -> Result<Page, ApiError> {
    let all: Vec<&RawValue> = serde_json::from_slice(&rows).map_err(|error| ApiError::bad_json(&error))?;
    let skip = usize::try_from(place.rows).unwrap_or(usize::MAX);
    if skip == 0 && all.len() <= size {
        return Ok(Page { rows, next: None });
    }
    let page: Vec<_> = all.iter().skip(skip).take(size).map(|row| row.get()).collect();
    let next = (skip.saturating_add(page.len()) < all.len()).then(|| place.past(page.len()));
    Ok(Page { rows: format!("[{}]", page.join(",")).into_bytes(), next })
}

fn jobs(api: &Api, query: &Query, place: Place, size: usize) -> Page {
    let skip = usize::try_from(place.rows).unwrap_or(usize::MAX);
    let most = room(query, place, size);
    let (found, more) = api.jobs.query(query, skip, most);
    let mut rows = vec![b'['];
    for row in &found {
        query.write_row(&JsonRow(row), &mut rows);
    }
    rows.push(b']');
    let next = place.past(found.len());
    Page { rows, next: (more && room(query, next, size) > 0).then_some(next) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_continuation_is_read_as_it_was_written_and_only_for_its_query() {
        let query = "SELECT * FROM devices";
        let place = Place { shard: 3, device: 70_000, rows: u64::MAX - 1, ..Place::start(query) };
        assert_eq!(Place::read(Some(&place.write()), query).unwrap(), place);
        assert_eq!(Place::read(None, query).unwrap(), Place::start(query));
        assert!(Place::read(Some(&place.write()), "SELECT deviceId FROM devices").is_err());
        for bad in ["x", "AQ", "{}", &place.write()[1..], &format!("{}AA", place.write())] {
            assert!(Place::read(Some(bad), query).is_err(), "{bad}");
        }
    }
}
