//! What takes releases: `[firmware]`, `[component.NAME]`, `[workload.NAME]`.
//!
//! The members that every target has are read here; what is left of a section belongs to its installer.

use std::convert::Infallible;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer as _, Visitor};
use serde_json::json;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Error, ValueDeserializer};

use super::mistakes::{explain, nearest};
use crate::hooks::Hooks;
use crate::install::{self, Options, Reference};
use crate::target::{Kind, Target};

/// The release that a target came with.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Installed {
    /// Its name.
    pub id: String,
    /// Its sequence.
    pub seq: u64,
}

impl Default for Installed {
    fn default() -> Self {
        Self { id: "none".to_owned(), seq: 0 }
    }
}

impl Installed {
    pub(crate) fn reference(&self) -> Reference {
        Reference::from_iter([("id".to_owned(), json!(self.id)), ("seq".to_owned(), json!(self.seq))])
    }
}

/// The members of every target's section.
const COMMON: [&str; 3] = ["installer", "installed", "hooks"];

/// A target and its installer.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// What takes the releases.
    pub target: Target,
    /// What runs before the first update.
    pub installed: Installed,
    /// The installer's name.
    pub installer: String,
    /// What is run around its steps.
    pub hooks: Hooks,
    pub(crate) options: Arc<dyn Options>,
}

impl TargetConfig {
    fn read(target: Target, value: Spanned<DeValue<'_>>) -> Result<Self, Error> {
        let mut section = Section::new(value)?;
        let installed = section.take("installed")?.unwrap_or_default();
        let hooks = section.take("hooks")?.unwrap_or_default();
        let Some(installer) = section.take::<String>("installer")? else {
            return Err(section.without_installer());
        };
        if install::FIRMWARE_ONLY.contains(&installer.as_str()) && target != Target::firmware() {
            return Err(section.mistake(format!("the installer {installer:?} is for [firmware]")));
        }
        let options = install::options(&installer, section)?;
        Ok(Self { target, installed, installer, hooks, options })
    }
}

/// All targets of a configuration, the firmware first.
pub(super) fn read(mut document: DeTable<'_>) -> Result<Vec<TargetConfig>, Error> {
    let mut targets = Vec::new();
    if let Some(value) = document.remove("firmware") {
        targets.push(TargetConfig::read(Target::firmware(), value)?);
    }
    for (key, kind) in [("component", Kind::Component), ("workload", Kind::Workload)] {
        let Some(value) = document.remove(key) else { continue };
        for (name, value) in Section::new(value)?.table {
            let target = Target::within(kind, name.get_ref()).map_err(|why| {
                at(name.span(), format!("{:?} cannot be a {key}'s name: {why}", name.get_ref()))
            })?;
            targets.push(TargetConfig::read(target, value)?);
        }
    }
    Ok(targets)
}

/// A part of the configuration, with the places of all that is in it.
#[derive(Debug)]
pub(crate) struct Section<'a> {
    table: DeTable<'a>,
    span: Range<usize>,
}

impl<'a> Section<'a> {
    fn new(value: Spanned<DeValue<'a>>) -> Result<Self, Error> {
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(table) => Ok(Self { table, span }),
            other => Err(at(span, format!("a table is needed here, not a {}", other.type_str()))),
        }
    }

    /// Takes a member out and reads it.
    ///
    /// # Errors
    /// If it is there and wrong.
    pub(crate) fn take<T: for<'de> Deserialize<'de>>(&mut self, key: &str) -> Result<Option<T>, Error> {
        self.table.remove(key).map(|value| T::deserialize(ValueDeserializer::from(value))).transpose()
    }

    /// Reads what is left.
    ///
    /// # Errors
    /// At the place of the first mistake.
    pub(crate) fn read<T: for<'de> Deserialize<'de>>(self) -> Result<T, Error> {
        let names: Vec<_> = self.table.keys().map(Spanned::span).collect();
        let whole = Spanned::new(self.span.clone(), DeValue::Table(self.table));
        T::deserialize(ValueDeserializer::from(whole)).map_err(|error| {
            let span = error.span().unwrap_or(self.span);
            // The installer does not know of what every target has.
            let more = if names.contains(&span) { &COMMON[..] } else { &[] };
            at(span, explain(error.message(), more))
        })
    }

    /// Whoever mistyped `installer` is not told that it is missing.
    fn without_installer(&self) -> Error {
        let mistyped = self.table.keys().find(|name| nearest(name.get_ref(), &["installer"]).is_some());
        match mistyped {
            Some(name) => {
                at(name.span(), format!("unknown field `{}`: did you mean `installer`?", name.get_ref()))
            }
            None => {
                self.mistake(format!("missing field `installer`: {} are there", install::NAMES.join(", ")))
            }
        }
    }

    /// A mistake of the section as a whole.
    pub(crate) fn mistake(&self, message: impl Into<String>) -> Error {
        at(self.span.clone(), message.into())
    }
}

/// A mistake in this place. Only the parser gives an error its place: it reads something there that is refused.
pub(super) fn at(span: Range<usize>, message: String) -> Error {
    struct Refusal(String);

    impl Visitor<'_> for Refusal {
        type Value = Infallible;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.0)
        }

        fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Infallible, E> {
            Err(E::custom(self.0))
        }
    }
    let value = ValueDeserializer::from(Spanned::new(span, DeValue::Boolean(true)));
    match value.deserialize_any(Refusal(message)) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}
