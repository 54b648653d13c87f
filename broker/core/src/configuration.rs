//! Automatic device configurations: what they say, and what they make of a twin's desired properties.
//!
//! A configuration *owns* the paths that its content names (`properties.desired.firmware` owns `firmware`): while it
//! applies, what stands there is its value and nothing else. Of several that name the same path, or one inside the
//! other's, the higher priority wins, and of equal ones the newest. What the back end itself wrote at such a path is
//! hidden as long as a configuration applies and comes back when none does. The real hub overwrites it for good; ours
//! keeps both, because then the desired properties are a function of what was written and which configurations
//! apply, and no order of events can leave a twin with remains of a configuration that is gone.

mod content;
mod set;

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleetwave_protocol::WallTime;
use serde_json::Value;

use crate::changes::configuration as field;
use crate::error::{ErrorCode, HubError};
use crate::identity::is_forced;
use crate::limits;
use crate::query::{Collection, Condition, Query};
use crate::record::{put_bytes, put_nested, put_number};

pub(crate) use content::{Content, bad_content};
pub(crate) use set::{Active, ConfigurationSet, Kind, Part};

/// Most configurations that a hub may have.
pub const MAX_CONFIGURATIONS: usize = 100;

/// What a configuration is made from.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConfigurationSpec<'a> {
    /// The id.
    pub id: &'a str,
    /// The higher wins.
    pub priority: u32,
    /// `*` or an expression; nothing targets nothing. With a `moduleContent`, which is for modules:
    /// `FROM devices.modules` alone or with `WHERE` and an expression.
    pub target_condition: &'a str,
    /// The `deviceContent`: a JSON object from `properties.desired.PATH` to values, or with `properties.desired`, which
    /// replaces all. Of the three contents one is given; an empty text, `{}` and `null` count as absent beside another one.
    pub device_content: &'a str,
    /// The `moduleContent`, of the same form, for the twins of modules.
    pub module_content: &'a str,
    /// The `modulesContent` of an edge deployment: a JSON object from names of modules to objects with
    /// `properties.desired`, which replaces all, or `properties.desired.PATH`. It targets edge devices.
    pub modules_content: &'a str,
    /// Own metrics: names and queries.
    pub metrics: &'a [(&'a str, &'a str)],
    /// A JSON object of texts, or nothing.
    pub labels: &'a str,
    /// `1.0` if nothing.
    pub schema_version: &'a str,
    /// When this was written. All shards get the same, so that they answer the same.
    pub written: WallTime,
    /// Of a configuration that comes out of a store: when it was created, and how often it had been written.
    pub stored: Option<(WallTime, u32)>,
}

/// A configuration, checked and compiled; shards share it.
#[derive(Debug)]
pub struct Configuration {
    id: Box<str>,
    priority: u32,
    target_condition: Box<str>,
    condition: Condition,
    body: Body,
    content_text: Box<str>,
    metrics: Box<[Metric]>,
    labels: Box<str>,
    schema_version: Box<str>,
    written: WallTime,
    stored: Option<(WallTime, u32)>,
}

/// For whom a configuration is, and what they get.
#[derive(Debug)]
enum Body {
    Devices(Content),
    Modules(Content),
    /// For modules of edge devices, by their names.
    Edge(EdgeContent),
}

/// What an edge deployment has for modules, by their names.
type EdgeContent = Box<[(Box<str>, Content)]>;

impl Body {
    fn of(spec: &ConfigurationSpec<'_>) -> Result<(Self, Box<str>), HubError> {
        let (name, text) = content_of(spec)?;
        let body = match name {
            "deviceContent" => Self::Devices(Content::parse(text)?),
            "moduleContent" => Self::Modules(Content::parse(text)?),
            _ => Self::Edge(edge_content(text)?),
        };
        Ok((body, format!("{{\"{name}\":{text}}}").into()))
    }
}

/// Whose twins a configuration is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Devices, edge devices among them.
    Devices,
    /// Modules.
    Modules,
    /// Edge devices; what is written are the twins of their modules.
    Edge,
}

/// A metric of a configuration's own.
#[derive(Debug)]
pub struct Metric {
    name: Box<str>,
    text: Box<str>,
    query: Query,
}

impl Metric {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The query as it was given.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The query, for [`Hub::count_where`](crate::Hub::count_where).
    #[must_use]
    pub const fn query(&self) -> &Query {
        &self.query
    }
}

/// The etag of a configuration, without quotes: it changes with each write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigurationEtag(u32);

impl ConfigurationEtag {
    /// Whether a given etag, in quotes or bare, is this one.
    #[must_use]
    pub fn is(self, given: &str) -> bool {
        given.trim_matches('"') == self.to_string()
    }

    fn check(self, if_match: Option<&str>) -> Result<(), HubError> {
        if is_forced(if_match) || if_match.is_some_and(|given| self.is(given)) {
            return Ok(());
        }
        let given = if_match.unwrap_or_default().trim_matches('"');
        Err(HubError::new(
            ErrorCode::PreconditionFailed,
            format!("the configuration's etag is {self}, not {given}"),
        ))
    }
}

impl fmt::Display for ConfigurationEtag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0.to_string()))
    }
}

/// A configuration as it is in force.
#[derive(Clone, Copy, Debug)]
pub struct ConfigurationView<'a> {
    /// What it says.
    pub configuration: &'a Arc<Configuration>,
    /// When it was created.
    pub created: WallTime,
    /// When it was written last.
    pub updated: WallTime,
    /// Changes with each write.
    pub etag: ConfigurationEtag,
    /// How often it was written, for [`ConfigurationSpec::stored`].
    pub writes: u32,
}

impl Configuration {
    /// Checks and compiles a configuration.
    ///
    /// # Errors
    /// 400401 for the condition, 400402 for the content, 400404 for a metric, 400004 for the id or the labels.
    pub fn new(spec: &ConfigurationSpec<'_>) -> Result<Self, HubError> {
        check_id(spec.id)?;
        let (body, content_text) = Body::of(spec)?;
        let bad_condition = |what: String| {
            HubError::new(ErrorCode::InvalidConfigurationTargetCondition, format!("target condition: {what}"))
        };
        let condition =
            Condition::parse(spec.target_condition).map_err(|error| bad_condition(error.to_string()))?;
        if !matches!(body, Body::Modules(_)) && condition.collection() == Collection::Modules {
            return Err(bad_condition("FROM devices.modules is for a moduleContent".to_owned()));
        }
        let metrics = spec
            .metrics
            .iter()
            .map(|(name, query_text)| match Query::parse(query_text) {
                Ok(query) if query.is_aggregate() => Err(HubError::new(
                    ErrorCode::InvalidConfigurationCustomMetricsQuery,
                    format!(
                        "metric {name:?}: it counts rows, so its query selects them, as deviceId for instance"
                    ),
                )),
                Ok(query) => Ok(Metric { name: Box::from(*name), text: Box::from(*query_text), query }),
                Err(error) => Err(HubError::new(
                    ErrorCode::InvalidConfigurationCustomMetricsQuery,
                    format!("metric {name:?}: {error}"),
                )),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            id: spec.id.into(),
            priority: spec.priority,
            target_condition: spec.target_condition.into(),
            condition,
            body,
            content_text,
            metrics,
            labels: checked_labels(spec.labels)?,
            schema_version: if spec.schema_version.is_empty() { "1.0" } else { spec.schema_version }.into(),
            written: spec.written,
            stored: spec.stored,
        })
    }

    /// The id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The priority.
    #[must_use]
    pub const fn priority(&self) -> u32 {
        self.priority
    }

    /// The target condition as it was given.
    #[must_use]
    pub fn target_condition(&self) -> &str {
        &self.target_condition
    }

    /// Whose twins it is for.
    #[must_use]
    pub const fn targets(&self) -> Targets {
        match self.body {
            Body::Devices(_) => Targets::Devices,
            Body::Modules(_) => Targets::Modules,
            Body::Edge(_) => Targets::Edge,
        }
    }

    /// What it puts into a twin; of an edge deployment into that of the module of a name.
    fn content_for(&self, module: Option<&str>) -> Option<&Content> {
        match &self.body {
            Body::Devices(content) | Body::Modules(content) => Some(content),
            Body::Edge(contents) => {
                contents.iter().find(|(name, _)| Some(&**name) == module).map(|(_, content)| content)
            }
        }
    }

    /// The modules that an edge deployment names.
    fn module_names(&self) -> impl Iterator<Item = &str> {
        let contents: &[(Box<str>, Content)] = match &self.body {
            Body::Devices(_) | Body::Modules(_) => &[],
            Body::Edge(contents) => contents,
        };
        contents.iter().map(|(name, _)| &**name)
    }

    /// Whether it says all that an edge device is to run; if not, it is a layer on a deployment that does.
    fn is_base(&self) -> bool {
        let edge = matches!(self.body, Body::Edge(_));
        edge && self.content_for(Some("$edgeAgent")).is_some_and(Content::is_whole)
    }

    /// Its content as JSON: an object with one member, `deviceContent`, `moduleContent` or `modulesContent`.
    #[must_use]
    pub fn content(&self) -> &str {
        &self.content_text
    }

    /// Its labels, a JSON object.
    #[must_use]
    pub fn labels(&self) -> &str {
        &self.labels
    }

    /// The version of the schema that it was given in.
    #[must_use]
    pub fn schema_version(&self) -> &str {
        &self.schema_version
    }

    /// Its own metrics.
    #[must_use]
    pub fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    /// Appends what a store keeps of it.
    fn write_record(&self, out: &mut Vec<u8>) {
        put_bytes(field::ID, self.id.as_bytes(), out);
        put_number(field::PRIORITY, u64::from(self.priority), out);
        put_bytes(field::CONDITION, self.target_condition.as_bytes(), out);
        let (kind, name) = match self.body {
            Body::Devices(_) => (0, "deviceContent"),
            Body::Modules(_) => (1, "moduleContent"),
            Body::Edge(_) => (2, "modulesContent"),
        };
        put_number(field::TARGETS, kind, out);
        let frame = "{\"\":".len() + name.len();
        put_bytes(field::CONTENT, self.content_text[frame..self.content_text.len() - 1].as_bytes(), out);
        for metric in &self.metrics {
            put_nested(field::METRIC, out, |out| {
                put_bytes(field::METRIC_NAME, metric.name.as_bytes(), out);
                put_bytes(field::METRIC_QUERY, metric.text.as_bytes(), out);
            });
        }
        put_bytes(field::LABELS, self.labels.as_bytes(), out);
        put_bytes(field::SCHEMA_VERSION, self.schema_version.as_bytes(), out);
        put_number(field::WRITTEN, self.written.as_unix_millis(), out);
    }

    pub(crate) const fn condition(&self) -> &Condition {
        &self.condition
    }
}

fn check_id(id: &str) -> Result<(), HubError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-:+%_#*?!(),=@;$'".contains(&b);
    if (1..=128).contains(&id.len()) && id.bytes().all(allowed) {
        return Ok(());
    }
    Err(limits::invalid(format!(
        "the configuration id {id:?} is not 1 to 128 lowercase letters, digits and -:+%_#*?!(),=@;$'"
    )))
}

/// Which of the contents is given, and what it is.
fn content_of<'a>(spec: &ConfigurationSpec<'a>) -> Result<(&'static str, &'a str), HubError> {
    let contents = [
        ("deviceContent", spec.device_content),
        ("moduleContent", spec.module_content),
        ("modulesContent", spec.modules_content),
    ];
    let says_something = |text: &str| {
        let text: String = text.split_ascii_whitespace().collect();
        !matches!(&*text, "" | "{}" | "null")
    };
    let mut given = contents.into_iter().filter(|(_, text)| says_something(text));
    match (given.next(), given.next()) {
        (Some(one), None) => Ok(one),
        (Some((one, _)), Some((other, _))) => {
            Err(bad_content(format!("{one} and {other} exclude each other")))
        }
        // Of empty ones the condition tells for whom it is.
        (None, _) if spec.module_content.contains('{') && is_for_modules(spec.target_condition) => {
            Ok(contents[1])
        }
        (None, _) => Ok(contents[0]),
    }
}

/// The content of each module in an edge deployment.
fn edge_content(text: &str) -> Result<EdgeContent, HubError> {
    let modules: serde_json::Map<String, Value> =
        serde_json::from_str(text).map_err(|error| bad_content(format!("the modulesContent: {error}")))?;
    if modules.len() > limits::MODULES {
        let message = format!("{} modules: a device has at most {}", modules.len(), limits::MODULES);
        return Err(bad_content(message));
    }
    let content = |(name, content): (String, Value)| {
        limits::check_id("module", &name)?;
        let Value::Object(members) = content else {
            return Err(bad_content(format!("the content of the module {name:?} is not a JSON object")));
        };
        Ok((name.into_boxed_str(), Content::of_any(members)?))
    };
    modules.into_iter().map(content).collect()
}

fn is_for_modules(condition: &str) -> bool {
    condition.trim_start().get(..4).is_some_and(|word| word.eq_ignore_ascii_case("FROM"))
}

/// Checks labels: an object of texts.
fn checked_labels(text: &str) -> Result<Box<str>, HubError> {
    if text.trim().is_empty() {
        return Ok("{}".into());
    }
    let bad = |what: String| limits::invalid(format!("the labels are not a JSON object of texts: {what}"));
    match serde_json::from_str(text).map_err(|error| bad(error.to_string()))? {
        Value::Null => Ok("{}".into()),
        Value::Object(labels) => match labels.iter().find(|(_, value)| !value.is_string()) {
            None => Ok(text.trim().into()),
            Some((name, value)) => Err(bad(format!("{name:?} is {value}"))),
        },
        other => Err(bad(format!("they are {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(spec: ConfigurationSpec<'_>) -> ErrorCode {
        Configuration::new(&spec).unwrap_err().code
    }

    const GOOD: ConfigurationSpec<'_> = ConfigurationSpec {
        id: "fw-2",
        priority: 1,
        target_condition: "*",
        device_content: r#"{"properties.desired.a.b":1,"properties.desired.c":{"d":[null]}}"#,
        metrics: &[("done", "SELECT deviceId FROM devices WHERE properties.reported.a = 1")],
        module_content: "",
        modules_content: "",
        labels: "",
        schema_version: "",
        written: WallTime::from_unix_millis(0),
        stored: None,
    };

    #[test]
    fn a_configuration_is_checked_before_it_is_taken() {
        assert!(Configuration::new(&GOOD).is_ok());
        for id in ["", "Upper", "a b", "a/b", &"x".repeat(129)] {
            assert_eq!(error(ConfigurationSpec { id, ..GOOD }), ErrorCode::ArgumentInvalid, "{id}");
        }
        let target_condition = "tags.a =";
        assert_eq!(
            error(ConfigurationSpec { target_condition, ..GOOD }),
            ErrorCode::InvalidConfigurationTargetCondition
        );
        let metrics = &[("n", "SELECT COUNT() FROM devices")];
        assert_eq!(
            error(ConfigurationSpec { metrics, ..GOOD }),
            ErrorCode::InvalidConfigurationCustomMetricsQuery
        );
    }

    #[test]
    fn content_that_can_not_be_desired_properties_is_refused() {
        for device_content in [
            "",
            "[]",
            r#"{"properties.reported.a":1}"#,
            r#"{"properties.desired":7}"#,
            r#"{"properties.desired.a":null}"#,
            r#"{"properties.desired.a":{"b":null}}"#,
            r#"{"properties.desired.a":1,"properties.desired.a.b":2}"#,
            r#"{"properties.desired.a b":1}"#,
            &format!(r#"{{"properties.desired.a":[{}"x"]}}"#, format!("\"{}\",", "x".repeat(4000)).repeat(9)),
        ] {
            let code = error(ConfigurationSpec { device_content, ..GOOD });
            assert_eq!(code, ErrorCode::InvalidConfigurationContent, "{device_content}");
        }
    }
}
