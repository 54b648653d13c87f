//! Automatic configurations of devices, modules and edge devices.

use std::collections::BTreeMap;
use std::sync::Arc;

use fleetwave_hub_core::query::{Condition as Target, Query};
use fleetwave_hub_core::{
    Configuration, ConfigurationSpec, ConfigurationView, ErrorCode, Input, Iso8601, MAX_CONFIGURATIONS,
    Targets, throttle,
};
use fleetwave_protocol::WallTime;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::call::Condition;
use super::router::{Verb, does};
use super::{Api, ApiError, Call, Operation, Reply};
use crate::ShardView;
use crate::policy::Rights;

const PATH: &str = "/configurations/{id}";

const fn operation(
    name: &'static str,
    verb: Verb,
    path: &'static str,
    rights: Rights,
    handler: super::router::Handler,
) -> Operation {
    Operation::new(name, verb, path, rights, handler).limited(throttle::Operation::Configuration)
}

pub(super) const OPERATIONS: &[Operation] = &[
    operation("List configurations", Verb::Get, "/configurations", Rights::REGISTRY_READ, does!(list))
        .sdk(
            "Python `IoTHubConfigurationManager.get_configurations`; Node `Registry.getConfigurations`; \
             Java `ConfigurationsClient.get`",
        )
        .test("rest::a_configuration_is_created_read_changed_and_deleted"),
    operation(
        "Test a target condition and metrics",
        Verb::Post,
        "/configurations/testQueries",
        Rights::REGISTRY_READ,
        does!(test_queries),
    )
    .sdk("Python `IoTHubConfigurationManager.test_configuration_queries`; Node `Registry.testConfigurationQueries`")
    .test("rest::conditions_and_metrics_are_tried_without_a_configuration"),
    operation("Create or change a configuration", Verb::Put, PATH, Rights::REGISTRY_WRITE, does!(put))
        .sdk(
            "Python `IoTHubConfigurationManager.create_configuration`, `update_configuration`; \
             Node `Registry.addConfiguration`, `updateConfiguration`; Java `ConfigurationsClient.create`, `replace`",
        )
        .test("rest::a_configuration_is_created_read_changed_and_deleted"),
    operation("Read a configuration", Verb::Get, PATH, Rights::REGISTRY_READ, does!(get))
        .sdk(
            "Python `IoTHubConfigurationManager.get_configuration`; Node `Registry.getConfiguration`; \
             Java `ConfigurationsClient.get`",
        )
        .test("rest::metrics_count_what_a_configuration_reached"),
    operation("Delete a configuration", Verb::Delete, PATH, Rights::REGISTRY_WRITE, does!(delete))
        .sdk(
            "Python `IoTHubConfigurationManager.delete_configuration`; Node `Registry.removeConfiguration`; \
             Java `ConfigurationsClient.delete`",
        )
        .test("rest::a_configuration_is_created_read_changed_and_deleted"),
    operation(
        "Apply content to a device",
        Verb::Post,
        "/devices/{id}/applyConfigurationContent",
        Rights::REGISTRY_WRITE,
        does!(apply),
    )
    .sdk(
        "Python `IoTHubConfigurationManager.apply_configuration_content`; \
         Node `Registry.applyConfigurationContentOnDevice`; Java `ConfigurationsClient.applyConfigurationContentOnDevice`",
    )
    .test("rest::content_is_applied_to_a_device_and_its_modules"),
];

/// A configuration as a service sends it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    id: Option<String>,
    schema_version: Option<String>,
    #[serde(borrow)]
    labels: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<ContentBody<'a>>,
    target_condition: Option<String>,
    priority: Option<i64>,
    metrics: Option<MetricsBody>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContentBody<'a> {
    #[serde(borrow)]
    device_content: Option<&'a RawValue>,
    #[serde(borrow)]
    module_content: Option<&'a RawValue>,
    #[serde(borrow)]
    modules_content: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct MetricsBody {
    queries: Option<BTreeMap<String, String>>,
}

impl Body<'_> {
    /// Checks and compiles it. One without content keeps what there is.
    fn compile(
        &self,
        id: &str,
        old: Option<&Configuration>,
        now: WallTime,
    ) -> Result<Configuration, ApiError> {
        if let Some(other) = self.id.as_deref().filter(|other| *other != id) {
            let message = format!("the body's id is {other:?}, the path's is {id:?}");
            return Err(ApiError::new(ErrorCode::ArgumentInvalid, message));
        }
        let priority = self.priority.unwrap_or(0);
        let priority = u32::try_from(priority).map_err(|_| {
            let message = format!("the priority is {priority}, 0 to {} were expected", u32::MAX);
            ApiError::new(ErrorCode::ArgumentInvalid, message)
        })?;
        let queries = self.metrics.as_ref().and_then(|metrics| metrics.queries.as_ref());
        let metrics: Vec<_> =
            queries.into_iter().flatten().map(|(name, query)| (name.as_str(), query.as_str())).collect();
        let kept: ContentBody<'_> = match (&self.content, old) {
            (None, Some(old)) => {
                serde_json::from_str(old.content()).map_err(|error| ApiError::bad_json(&error))?
            }
            _ => ContentBody::default(),
        };
        let content = self.content.as_ref().unwrap_or(&kept);
        let text = |raw: Option<&RawValue>| raw.map_or("", RawValue::get).to_owned();
        let [device, module, modules] =
            [content.device_content, content.module_content, content.modules_content].map(text);
        let configuration = Configuration::new(&ConfigurationSpec {
            id,
            priority,
            target_condition: self.target_condition.as_deref().unwrap_or_default(),
            device_content: &device,
            module_content: &module,
            modules_content: &modules,
            metrics: &metrics,
            labels: self.labels.map_or("", RawValue::get),
            schema_version: self.schema_version.as_deref().unwrap_or_default(),
            written: now,
            stored: None,
        })?;
        if let Some(old) = old
            && !same(old.content(), configuration.content())
        {
            let message = "the content of a configuration can't be changed: delete it, or make another one";
            return Err(ApiError::new(ErrorCode::CannotModifyImmutableConfigurationContent, message));
        }
        Ok(configuration)
    }
}

/// Whether two texts are the same JSON.
fn same(one: &str, other: &str) -> bool {
    let parse = |text| serde_json::from_str::<Value>(text).ok();
    one == other || parse(one) == parse(other)
}

async fn put(call: Call) -> Result<Reply, ApiError> {
    let id = call.param(0).to_owned();
    let body: Body<'_> = call.json()?;
    // One writer at a time, so that all shards see writes in the same order.
    let writing = call.api.configurations.lock().await;
    let old = existing(&call.api, &id).await?;
    match (call.condition(), &old) {
        (Condition::None, Some(_)) => {
            let message = format!("there is a configuration {id:?}: a change of it needs If-Match");
            return Err(ApiError::new(ErrorCode::ConfigurationAlreadyExists, message));
        }
        (Condition::Exists | Condition::Is(_), None) => return Err(missing(&id)),
        (Condition::Is(etag), Some((_, current))) if etag != *current => {
            let message = format!("the configuration's etag is {current}, not {etag}");
            return Err(ApiError::new(ErrorCode::PreconditionFailed, message));
        }
        _ => {}
    }
    let now = call.api.control.clock().now().wall;
    let configuration = Arc::new(body.compile(&id, old.as_ref().map(|(old, _)| &**old), now)?);
    let put = call.api.control.with_all(move |shard| {
        let configuration = configuration.clone();
        shard.apply(Input::PutConfiguration { configuration, if_match: None }).map(drop)
    });
    put.await?.into_iter().collect::<Result<(), _>>()?;
    drop(writing);
    read(&call.api, &id).await
}

/// The configuration of an id and its etag.
async fn existing(api: &Api, id: &str) -> Result<Option<(Arc<Configuration>, String)>, ApiError> {
    let id = id.to_owned();
    let found = api.control.with_shard(0, move |shard| {
        shard.hub().configuration(&id).map(|view| (view.configuration.clone(), view.etag.to_string()))
    });
    Ok(found.await?)
}

fn missing(id: &str) -> ApiError {
    ApiError::new(ErrorCode::ConfigurationNotFound, format!("there is no configuration {id:?}"))
}

async fn get(call: Call) -> Result<Reply, ApiError> {
    read(&call.api, call.param(0)).await
}

async fn read(api: &Api, id: &str) -> Result<Reply, ApiError> {
    let wanted = id.to_owned();
    let found = api
        .control
        .with_all(move |shard| shard.hub().configuration(&wanted).map(|view| Seen::of(shard, view)));
    let seen = found.await?.into_iter().flatten().reduce(Seen::plus).ok_or_else(|| missing(id))?;
    Ok(Reply::ok(&seen.json).etag(seen.json["etag"].as_str().unwrap_or_default()))
}

async fn list(call: Call) -> Result<Reply, ApiError> {
    let top = call.top(MAX_CONFIGURATIONS)?;
    let found = call.api.control.with_all(move |shard| {
        let views = shard.hub().configurations();
        views.into_iter().take(top).map(|view| Seen::of(shard, view)).collect::<Vec<_>>()
    });
    let mut all = BTreeMap::<(u64, String), Seen>::new();
    for (seen, place) in found.await?.into_iter().flat_map(|shard| shard.into_iter().zip(0_u64..)) {
        let key = (place, seen.json["id"].as_str().unwrap_or_default().to_owned());
        match all.remove(&key) {
            Some(other) => all.insert(key, other.plus(seen)),
            None => all.insert(key, seen),
        };
    }
    Ok(Reply::ok(&all.into_values().map(|seen| seen.json).collect()))
}

async fn delete(call: Call) -> Result<Reply, ApiError> {
    let (id, if_match) = (call.param(0).to_owned(), call.if_match());
    let writing = call.api.configurations.lock().await;
    let deleted = call.api.control.with_all(move |shard| {
        shard.apply(Input::DeleteConfiguration { id: &id, if_match: if_match.as_deref() }).map(drop)
    });
    deleted.await?.into_iter().collect::<Result<(), _>>()?;
    drop(writing);
    Ok(Reply::no_content())
}

async fn apply(call: Call) -> Result<Reply, ApiError> {
    let (id, content) = (call.target()?, call.body.clone());
    let applied = call.api.control.with_device(&id.clone(), move |shard| {
        let device = shard.find(&id)?;
        shard.apply(Input::ApplyContent { device, content: &content })
    });
    applied.await??;
    Ok(Reply::no_content())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Tested {
    target_condition: Option<String>,
    custom_metric_queries: Option<BTreeMap<String, Option<String>>>,
}

async fn test_queries(call: Call) -> Result<Reply, ApiError> {
    let tested: Tested = call.json()?;
    let condition = Target::parse(tested.target_condition.as_deref().unwrap_or_default());
    let queries = tested.custom_metric_queries.unwrap_or_default();
    let errors: Map<_, _> = queries
        .iter()
        .filter_map(|(name, query)| {
            Some((name.clone(), metric_error(query.as_deref().unwrap_or_default())?.into()))
        })
        .collect();
    Ok(Reply::ok(&json!({
        "targetConditionError": condition.err().map(|error| error.to_string()),
        "customMetricQueryErrors": errors,
    })))
}

/// What is wrong with the query of a metric.
fn metric_error(text: &str) -> Option<String> {
    match Query::parse(text) {
        Ok(query) if query.is_aggregate() => {
            Some("a metric counts rows, so its query selects them, as deviceId for instance".into())
        }
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    }
}

/// A configuration as one shard sees it, or some.
struct Seen {
    json: Value,
}

/// The members whose numbers are added up over shards.
const RESULTS: [&str; 2] = ["/systemMetrics/results", "/metrics/results"];

impl Seen {
    fn of(shard: &ShardView<'_>, view: ConfigurationView<'_>) -> Self {
        let configuration = view.configuration;
        let raw = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
        let counts = shard.hub().configuration_counts(configuration.id()).unwrap_or_default();
        let mut system_results = json!({ "targetedCount": counts.targeted, "appliedCount": counts.applied });
        let system_queries = system_queries(configuration);
        if configuration.targets() == Targets::Edge {
            for name in ["reportedSuccessfulCount", "reportedFailedCount"] {
                let query = system_queries.get(name).and_then(Value::as_str).map(Query::parse);
                system_results[name] =
                    query.and_then(Result::ok).map_or(0, |query| shard.hub().count_where(&query)).into();
            }
        }
        let (mut results, mut queries) = (Map::new(), Map::new());
        for metric in configuration.metrics() {
            results.insert(metric.name().into(), shard.hub().count_where(metric.query()).into());
            queries.insert(metric.name().into(), metric.text().into());
        }
        Self {
            json: json!({
                "id": configuration.id(),
                "schemaVersion": configuration.schema_version(),
                "labels": raw(configuration.labels()),
                "content": raw(configuration.content()),
                "targetCondition": configuration.target_condition(),
                "createdTimeUtc": Iso8601(view.created).to_string(),
                "lastUpdatedTimeUtc": Iso8601(view.updated).to_string(),
                "priority": configuration.priority(),
                "systemMetrics": { "results": system_results, "queries": system_queries },
                "metrics": { "results": results, "queries": queries },
                "etag": view.etag.to_string(),
            }),
        }
    }

    /// With what another shard sees of it.
    fn plus(mut self, other: Self) -> Self {
        for place in RESULTS {
            let (Some(Value::Object(sums)), Some(Value::Object(more))) =
                (self.json.pointer_mut(place), other.json.pointer(place))
            else {
                continue;
            };
            for (name, sum) in sums {
                let more = more.get(name).and_then(Value::as_u64).unwrap_or_default();
                *sum = (sum.as_u64().unwrap_or_default() + more).into();
            }
        }
        self
    }
}

/// The queries whose rows the system metrics count.
fn system_queries(configuration: &Configuration) -> Map<String, Value> {
    let id = configuration.id();
    let condition = configuration.target_condition().trim();
    let mut queries = Map::new();
    let mut put = |name: &str, text: String| queries.insert(name.into(), text.into());
    if configuration.targets() == Targets::Edge {
        let agent = "select deviceId from devices.modules where moduleId = '$edgeAgent'";
        let applied = format!("{agent} and configurations.[[{id}]].status = 'Applied'");
        put("targetedCount", format!("{agent} and configurations.[[{id}]].status = 'Targeted'"));
        put("appliedCount", applied.clone());
        let reported = format!(
            "{applied} and properties.desired.$version = properties.reported.lastDesiredVersion \
             and properties.reported.lastDesiredStatus.code"
        );
        put("reportedSuccessfulCount", format!("{reported} = 200"));
        put("reportedFailedCount", format!("{reported} != 200"));
        return queries;
    }
    let (select, from) = match configuration.targets() {
        Targets::Modules => ("select deviceId, moduleId", "from devices.modules"),
        _ => ("select deviceId", "from devices"),
    };
    let status = |status| format!("{select} {from} where configurations.[[{id}]].status = '{status}'");
    put(
        "targetedCount",
        match condition {
            "" => status("Targeted"),
            "*" => format!("{select} {from}"),
            _ if condition.get(..4).is_some_and(|word| word.eq_ignore_ascii_case("from")) => {
                format!("{select} {condition}")
            }
            _ => format!("{select} {from} where {condition}"),
        },
    );
    put("appliedCount", status("Applied"));
    queries
}
