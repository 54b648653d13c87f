//! The text that a scenario was read from, and where in it each value stands.

use core::ops::Range;

use toml_edit::{Document, Item, TableLike};

use super::diagnostic::{Diagnostic, Diagnostics, Place};
use super::path::{Path, Segment};

/// A scenario's text and the arguments that override it.
pub(crate) struct Source {
    file: String,
    document: Document<String>,
    /// What each `--set` argument overrode.
    sets: Vec<(Path, String)>,
    problems: Vec<Diagnostic>,
    /// Where errors were found.
    wrong: Vec<Path>,
}

impl Source {
    /// Parses `text`, which came from `file`.
    pub(crate) fn parse(file: &str, text: &str) -> Result<Self, Diagnostics> {
        match Document::parse(text.to_owned()) {
            Ok(document) => Ok(Self {
                file: file.to_owned(),
                document,
                sets: Vec::new(),
                problems: Vec::new(),
                wrong: Vec::new(),
            }),
            Err(error) => {
                let span = error.span().unwrap_or(0..0);
                Err(Diagnostics(vec![Diagnostic {
                    message: format!("not valid TOML: {}", error.message().trim().replace('\n', ", ")),
                    help: None,
                    place: Some(place_in(file, text, span)),
                    warning: false,
                }]))
            }
        }
    }

    pub(super) const fn document(&self) -> &Document<String> {
        &self.document
    }

    pub(super) fn overridden(&mut self, path: Path, argument: &str) {
        self.sets.push((path, argument.to_owned()));
    }

    /// Whether anything was found that keeps the scenario from running.
    pub(super) fn failed(&self) -> bool {
        self.problems.iter().any(|problem| !problem.warning)
    }

    /// Whether something is wrong at `path` or inside it: what more is wrong there may only follow from that.
    pub(super) fn is_wrong(&self, path: &Path) -> bool {
        self.wrong.iter().any(|wrong| path.is_prefix_of(wrong))
    }

    /// What was found, in the order of the file.
    pub(super) fn into_problems(mut self) -> Vec<Diagnostic> {
        self.problems.sort_by_key(|problem| problem.place.as_ref().map(|place| (place.line, place.start)));
        self.problems
    }

    /// The value at `path` is wrong.
    pub(crate) fn error(&mut self, path: &Path, message: impl Into<String>, help: Option<String>) {
        let place = self.place(path, false);
        self.wrong.push(path.clone());
        self.push(message.into(), help, place, false);
    }

    /// A part of the text at `path` is wrong: the bytes `part` of its content.
    pub(crate) fn error_within(
        &mut self,
        path: &Path,
        part: Range<usize>,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        let mut place = self.place(path, false);
        // Only where the text stands in the file as it is, without escapes; else the whole value is shown.
        if let Some(value) = self.locate(path, false)
            && self.set_of(path).is_none()
            && self.text().get(value.clone()).is_some_and(|raw| {
                raw.starts_with(['"', '\'']) && !raw.contains(['\\', '\n']) && part.end <= raw.len() - 2
            })
        {
            let start = value.start + 1 + part.start;
            place = Some(place_in(&self.file, self.text(), start..start + part.len().max(1)));
        }
        self.push(message.into(), help, place, false);
    }

    /// The key that `path` ends with is wrong.
    pub(super) fn key_error(&mut self, path: &Path, message: String, help: Option<String>) {
        let place = self.place(path, true);
        self.wrong.push(path.clone());
        self.push(message, help, place, false);
    }

    /// An argument is wrong: the part `part` of it.
    pub(super) fn set_error(
        &mut self,
        argument: &str,
        part: Range<usize>,
        message: String,
        help: Option<String>,
    ) {
        self.push(message, help, Some(place_of_set(argument, part)), false);
    }

    /// The value at `path` may not be what was meant.
    pub(crate) fn warn(&mut self, path: &Path, message: impl Into<String>, help: Option<String>) {
        let place = self.place(path, false);
        self.push(message.into(), help, place, true);
    }

    fn push(&mut self, message: String, help: Option<String>, place: Option<Place>, warning: bool) {
        let problem = Diagnostic { message, help, place, warning };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn text(&self) -> &str {
        self.document.raw()
    }

    fn set_of(&self, path: &Path) -> Option<&str> {
        self.sets.iter().rev().find(|(set, _)| set.is_prefix_of(path)).map(|(_, argument)| argument.as_str())
    }

    fn place(&self, path: &Path, key: bool) -> Option<Place> {
        if let Some(argument) = self.set_of(path) {
            let split = argument.find('=').unwrap_or(argument.len());
            let part = if key { 0..split } else { (split + 1).min(argument.len())..argument.len() };
            return Some(place_of_set(argument, part));
        }
        // Something that is not there is shown at the nearest thing around it that is.
        (0..=path.0.len()).rev().find_map(|end| {
            let around = Path(path.0[..end].to_vec());
            let span = self.locate(&around, key && end == path.0.len())?;
            Some(place_in(&self.file, self.text(), span))
        })
    }

    fn locate(&self, path: &Path, key: bool) -> Option<Range<usize>> {
        let mut at = At::Item(self.document.as_item());
        let mut key_span = None;
        for segment in &path.0 {
            at = match segment {
                Segment::Key(name) => {
                    let (found, item) = at.table()?.get_key_value(name)?;
                    key_span = found.span();
                    At::Item(item)
                }
                Segment::Index(index) => {
                    key_span = None;
                    at.member(*index)?
                }
            };
        }
        if path.0.is_empty() {
            return None;
        }
        if key { key_span.or_else(|| at.span()) } else { at.span().or(key_span) }
    }
}

/// A place in the tree: members of an array of tables are tables and not items.
enum At<'a> {
    Item(&'a Item),
    Table(&'a toml_edit::Table),
    Value(&'a toml_edit::Value),
}

impl<'a> At<'a> {
    fn table(&self) -> Option<&'a dyn TableLike> {
        match self {
            Self::Item(item) => item.as_table_like(),
            Self::Table(table) => Some(*table),
            Self::Value(value) => value.as_inline_table().map(|table| table as &dyn TableLike),
        }
    }

    fn member(&self, index: usize) -> Option<Self> {
        match self {
            Self::Item(Item::ArrayOfTables(tables)) => tables.get(index).map(Self::Table),
            Self::Item(Item::Value(value)) => value.as_array()?.get(index).map(Self::Value),
            Self::Value(value) => value.as_array()?.get(index).map(Self::Value),
            Self::Item(_) | Self::Table(_) => None,
        }
    }

    fn span(&self) -> Option<Range<usize>> {
        match self {
            Self::Item(item) => item.span(),
            Self::Table(table) => table.span(),
            Self::Value(value) => value.span(),
        }
    }
}

/// The first line of `span` in `text`.
fn place_in(file: &str, text: &str, span: Range<usize>) -> Place {
    let boundary = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = boundary(span.start);
    let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
    let end = boundary(span.end).clamp(start, line_end);
    let line = text[..start].matches('\n').count() + 1;
    let before = text[line_start..start].chars().count();
    Place {
        origin: format!("{file}:{line}:{}", before + 1),
        line: Some(line),
        text: text[line_start..line_end].trim_end().to_owned(),
        start: before,
        length: text[start..end].trim_end().chars().count().max(1),
    }
}

fn place_of_set(argument: &str, part: Range<usize>) -> Place {
    Place {
        origin: "--set".to_owned(),
        line: None,
        text: argument.to_owned(),
        start: argument[..part.start].chars().count(),
        length: argument[part].chars().count().max(1),
    }
}
