//! Overrides from the command line: `--set release.size=64KiB`.

use core::ops::Range;

use toml_edit::{Array, InlineTable, Value};

use super::path::{Path, Segment};
use super::source::Source;
use crate::scenario::near;

/// Applies one argument to the scenario.
pub(super) fn apply(argument: &str, root: &mut InlineTable, source: &mut Source) {
    let Some((key, text)) = argument.split_once('=') else {
        let help = Some("write KEY=VALUE, for instance release.size=64KiB".to_owned());
        source.set_error(argument, 0..argument.len(), "there is no `=` in this argument".to_owned(), help);
        return;
    };
    match Route::find(key, root) {
        Ok(path) => {
            put(root, &path.0, value(text));
            source.overridden(path, argument);
        }
        Err(Miss { part, message, help }) => source.set_error(argument, part, message, help),
    }
}

/// What `text` is in TOML, or the text itself: `64KiB`, `20%` and `02:00` need no quotes here.
fn value(text: &str) -> Value {
    match text.trim().parse::<Value>() {
        Ok(Value::Datetime(_)) | Err(_) => Value::from(text.trim()),
        Ok(value) => value,
    }
}

/// Why a key leads nowhere: the part of the argument that is at fault, and what would have been right.
struct Miss {
    part: Range<usize>,
    message: String,
    help: Option<String>,
}

/// The way of one key through a scenario.
struct Route<'a> {
    key: &'a str,
    /// The parts between dots and brackets, with their place in the argument.
    parts: Vec<(Range<usize>, Part<'a>)>,
}

#[derive(Clone, Copy)]
enum Part<'a> {
    Name(&'a str),
    Number(usize),
}

impl<'a> Route<'a> {
    fn find(key: &'a str, root: &InlineTable) -> Result<Path, Miss> {
        let route = Route { key, parts: split(key)? };
        let mut path = Path::default();
        let mut here: Option<&Value> = None;
        let mut at = 0;
        while let Some((range, part)) = route.parts.get(at) {
            match (here, *part) {
                (Some(Value::Array(array)), _) => {
                    let (index, used) = route.member(array, at, &path)?;
                    path = path.index(index);
                    here = array.get(index);
                    at += used;
                }
                (_, Part::Number(_)) => {
                    return Err(Miss {
                        part: range.clone(),
                        message: format!("{} is not an array", path.table_name()),
                        help: None,
                    });
                }
                (_, Part::Name(name)) => {
                    // Metrics have dots in their names.
                    let (name, used) = if path == Path::of("expect") {
                        (&key[range.start..], route.parts.len() - at)
                    } else {
                        (name, 1)
                    };
                    let table = match here {
                        None if at == 0 => Some(root),
                        None => None,
                        Some(value) => Some(value.as_inline_table().ok_or_else(|| Miss {
                            part: range.clone(),
                            message: format!("`{path}` is a value and has no key `{name}`"),
                            help: None,
                        })?),
                    };
                    here = table.and_then(|table| table.get(name));
                    path = path.key(name);
                    if here.is_none()
                        && ["release", "step", "fleet.group"].iter().any(|x| path == Path::of(x))
                    {
                        return Err(Miss {
                            part: 0..range.end,
                            message: format!("the scenario has no [[{path}]] that could be changed"),
                            help: None,
                        });
                    }
                    at += used;
                }
            }
        }
        Ok(path)
    }

    /// The member of `array` that the parts from `at` name, and how many of them it took: `[1]`, a name (which
    /// may have dots), or nothing at all if there is only one.
    fn member(&self, array: &Array, at: usize, path: &Path) -> Result<(usize, usize), Miss> {
        let (range, part) = &self.parts[at];
        if let Part::Number(index) = *part {
            return if index < array.len() {
                Ok((index, 1))
            } else {
                Err(Miss {
                    part: range.clone(),
                    message: format!("`{path}` has no member [{index}]"),
                    help: Some(format!("it has {}, counted from [0]", array.len())),
                })
            };
        }
        let names: Vec<Option<&str>> = array.iter().map(name_of).collect();
        for end in (at..self.parts.len()).rev() {
            let wanted = &self.key[range.start..self.parts[end].0.end];
            if let Some(index) = names.iter().position(|name| *name == Some(wanted)) {
                return Ok((index, end + 1 - at));
            }
        }
        if array.len() == 1 {
            return Ok((0, 0));
        }
        let given = &self.key[range.clone()];
        let known = names.iter().copied().flatten();
        Err(Miss {
            part: range.clone(),
            message: format!(
                "`{path}` has {} members and none is named `{given}`{}",
                array.len(),
                near::did_you_mean(given, known.clone())
            ),
            help: Some(format!(
                "name one ({}) or count from [0]",
                if known.clone().count() == 0 { "these have no names".to_owned() } else { near::list(known) }
            )),
        })
    }
}

/// What a member of an array goes by.
fn name_of(member: &Value) -> Option<&str> {
    let table = member.as_inline_table()?;
    let configuration = || table.get("configure")?.as_inline_table()?.get("id");
    table.get("name").or_else(|| table.get("id")).or_else(configuration)?.as_str()
}

fn split(key: &str) -> Result<Vec<(Range<usize>, Part<'_>)>, Miss> {
    let mut parts = Vec::new();
    let mut at = 0;
    let malformed = |part: Range<usize>| Miss {
        part,
        message: "this is not a key".to_owned(),
        help: Some("write keys as release.size, fleet.group.NAME.share or step[2].wait.timeout".to_owned()),
    };
    while at < key.len() || parts.is_empty() {
        let rest = &key[at..];
        if let Some(inside) = rest.strip_prefix('[') {
            let end = inside.find(']').ok_or_else(|| malformed(at..key.len()))?;
            let number = inside[..end].parse().map_err(|_| malformed(at..at + end + 2))?;
            parts.push((at..at + end + 2, Part::Number(number)));
            at += end + 2;
        } else {
            let name = rest.strip_prefix('.').filter(|_| !parts.is_empty()).unwrap_or(rest);
            let start = key.len() - name.len();
            let end = name.find(['.', '[']).unwrap_or(name.len());
            if end == 0 || (start == at && at > 0) {
                return Err(malformed(0..key.len()));
            }
            parts.push((start..start + end, Part::Name(&name[..end])));
            at = start + end;
        }
    }
    Ok(parts)
}

fn put(table: &mut InlineTable, path: &[Segment], value: Value) {
    let [Segment::Key(key), rest @ ..] = path else { return };
    let Some(next) = rest.first() else {
        table.insert(key, value);
        return;
    };
    if !table.contains_key(key) {
        table.insert(key, Value::InlineTable(InlineTable::new()));
    }
    let Some(inner) = table.get_mut(key) else { return };
    match (inner, next) {
        (Value::InlineTable(inner), _) => put(inner, rest, value),
        (Value::Array(array), Segment::Index(index)) => match (array.get_mut(*index), &rest[1..]) {
            (Some(member), []) => *member = value,
            (Some(Value::InlineTable(inner)), rest) => put(inner, rest, value),
            _ => {}
        },
        _ => {}
    }
}
