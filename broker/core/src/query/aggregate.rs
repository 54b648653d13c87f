//! Aggregates: what shards count by themselves and a driver adds up.
//!
//! The pages name COUNT, AVG, SUM, MIN and MAX and say no more. Assumed is what Azure Cosmos DB's SQL does: what is
//! undefined is left out; a sum or average over anything but numbers is undefined, and so is the extreme of arrays and
//! objects; the sum of nothing is 0, its average and extremes are undefined. Types order as null, booleans, numbers,
//! strings.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::ast::{Aggregate, Item, Path, Select, Selection, What};
use super::rows::{Scope, separate, write_members};
use super::value::{Value, number_text};

/// What the groups have in common: the JSON of each grouped property, or nothing.
type Key = Box<[Option<Box<str>>]>;

/// What a query with aggregates or `GROUP BY` found so far. Partials of one query merge in any order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Partial {
    groups: BTreeMap<Key, Box<[State]>>,
}

#[derive(Clone, Debug, PartialEq)]
struct State {
    /// How many values there were.
    count: u64,
    sum: f64,
    extreme: Option<Value<'static>>,
    /// A value that the aggregate can't be of was among them.
    spoilt: bool,
}

impl State {
    const NEW: Self = Self { count: 0, sum: 0.0, extreme: None, spoilt: false };

    fn add(&mut self, aggregate: Aggregate, value: &Value<'_>, times: u64) {
        if *value == Value::Undefined {
            return;
        }
        self.count += times;
        match (aggregate, value) {
            (Aggregate::Count, _) => {}
            (Aggregate::Sum | Aggregate::Avg, Value::Number(number)) => self.sum += number * times as f64,
            (Aggregate::Sum | Aggregate::Avg, _) | (_, Value::Array | Value::Object) => self.spoilt = true,
            (Aggregate::Min | Aggregate::Max, value) => self.take(aggregate, value),
        }
    }

    fn take(&mut self, aggregate: Aggregate, value: &Value<'_>) {
        let wanted = if aggregate == Aggregate::Min { Ordering::Less } else { Ordering::Greater };
        if self.extreme.as_ref().is_none_or(|extreme| order(value, extreme) == wanted) {
            self.extreme = Some(value.clone().into_owned());
        }
    }

    fn merge(&mut self, aggregate: Aggregate, other: Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.spoilt |= other.spoilt;
        if let Some(extreme) = other.extreme {
            self.take(aggregate, &extreme);
        }
    }

    fn result(&self, aggregate: Aggregate) -> Option<String> {
        let number = match aggregate {
            Aggregate::Count => return Some(self.count.to_string()),
            _ if self.spoilt => return None,
            Aggregate::Sum => self.sum,
            Aggregate::Avg if self.count == 0 => return None,
            Aggregate::Avg => self.sum / self.count as f64,
            Aggregate::Min | Aggregate::Max => return self.extreme.as_ref().map(text),
        };
        number.is_finite().then(|| number_text(number))
    }
}

fn text(value: &Value<'_>) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number_text(*number),
        Value::Text(text) => serde_json::Value::from(&**text).to_string(),
        _ => "null".to_owned(),
    }
}

fn order(left: &Value<'_>, right: &Value<'_>) -> Ordering {
    const fn rank(value: &Value<'_>) -> u8 {
        match value {
            Value::Undefined | Value::Null => 0,
            Value::Bool(_) => 1,
            Value::Number(_) => 2,
            Value::Text(_) => 3,
            Value::Array | Value::Object => 4,
        }
    }
    match (left, right) {
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Number(a), Value::Number(b)) => a.partial_cmp(b).unwrap_or(Ordering::Equal),
        (Value::Text(a), Value::Text(b)) => a.cmp(b),
        _ => rank(left).cmp(&rank(right)),
    }
}

fn aggregates(select: &Select) -> impl Iterator<Item = (Aggregate, Option<&Path>)> {
    let items: &[Item] = match &select.selection {
        Selection::Everything => &[],
        Selection::Items(items) => items,
    };
    items.iter().filter_map(|item| match &item.what {
        What::Path(_) => None,
        What::Aggregate(aggregate, path) => Some((*aggregate, path.as_ref())),
    })
}

fn fresh(select: &Select) -> Box<[State]> {
    aggregates(select).map(|_| State::NEW).collect()
}

impl Partial {
    /// Adds a row that the filter lets through, as often as there are equal ones.
    pub(super) fn add(&mut self, select: &Select, scope: &impl Scope, times: u64) {
        let key: Key = select.group.iter().map(|path| group_key(scope, path)).collect();
        let states = self.groups.entry(key).or_insert_with(|| fresh(select));
        for (state, (aggregate, path)) in states.iter_mut().zip(aggregates(select)) {
            let value = path.map_or(Value::Bool(true), |path| scope.value(path));
            state.add(aggregate, &value, times);
        }
    }

    pub(super) fn merge(&mut self, select: &Select, other: Self) {
        for (key, states) in other.groups {
            let own = self.groups.entry(key).or_insert_with(|| fresh(select));
            for ((own, other), (aggregate, _)) in own.iter_mut().zip(states).zip(aggregates(select)) {
                own.merge(aggregate, other);
            }
        }
    }

    pub(super) fn write_rows(mut self, select: &Select, out: &mut Vec<u8>) -> usize {
        let Selection::Items(items) = &select.selection else { return 0 };
        if select.group.is_empty() {
            // All rows are one group, also where there are none.
            self.groups.entry(Key::default()).or_insert_with(|| fresh(select));
        }
        let top = select.top.map_or(usize::MAX, |top| top as usize);
        let rows = self.groups.len().min(top);
        for (key, states) in self.groups.iter().take(top) {
            separate(out);
            let mut results = states.iter();
            write_members(items, out, |item| match &item.what {
                What::Path(path) => {
                    let place = select.group.iter().position(|other| other == path)?;
                    key[place].as_deref().map(Cow::Borrowed)
                }
                What::Aggregate(aggregate, _) => results.next()?.result(*aggregate).map(Cow::Owned),
            });
        }
        rows
    }
}

/// Equal values have equal text, however a number was written.
fn group_key(scope: &impl Scope, path: &Path) -> Option<Box<str>> {
    match scope.value(path) {
        Value::Undefined => None,
        Value::Array | Value::Object => scope.json(path).map(|json| json.into_owned().into_boxed_str()),
        value => Some(text(&value).into_boxed_str()),
    }
}
