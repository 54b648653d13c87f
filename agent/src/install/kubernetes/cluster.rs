//! The cluster, as far as the installer talks to it. What fails because the API server is away or busy is tried again
//! until the step's time is over; what it refuses is told with its own words.

use std::time::Duration;

use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, Preconditions,
};
use kube::discovery::{self, Scope};
use kube::{Client, Error};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::manifest::{Document, Item};
use super::{Options, access};
use crate::crash;
use crate::install::InstallError;

/// Who the agent is to the cluster: fields that others set are not its own.
const MANAGER: &str = "fleetwave-agent";
/// Pauses between tries: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// What came in the way of a step.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClusterError {
    #[error("the cluster's API server cannot be reached: {0}")]
    Away(String),
    #[error("no access to the cluster: {0}")]
    Access(String),
    #[error(
        "{object}: others hold fields that the release sets. Take them out of the release, or let it have them with \
         `force = true`: {words}"
    )]
    Conflict { object: String, words: String },
    #[error(
        "{object}: the agent's role in the cluster does not cover this, docs/agent.md has one that does: {words}"
    )]
    Forbidden { object: String, words: String },
    #[error("{object}: it lacks something that the cluster has to have first: {words}")]
    Missing { object: String, words: String },
    #[error("{object}: the cluster does not take it: {words}")]
    Invalid { object: String, words: String },
}

impl From<ClusterError> for InstallError {
    fn from(error: ClusterError) -> Self {
        match error {
            ClusterError::Invalid { .. } => Self::Payload(error.to_string()),
            _ => Self::Refused(error.to_string()),
        }
    }
}

/// An answer that is no success.
pub(super) enum Setback {
    /// It may go better later.
    Passing(String),
    Final(ClusterError),
}

impl From<ClusterError> for Setback {
    fn from(error: ClusterError) -> Self {
        Self::Final(error)
    }
}

pub(super) struct Cluster {
    client: Client,
    force: bool,
    deadline: Instant,
}

impl Cluster {
    /// A client, which is made for one step: nothing of it is kept while there is nothing to do, and certificates that
    /// were renewed meanwhile are read again. No request is made yet.
    pub(super) async fn reach(options: &Options, deadline: Instant) -> Result<Self, ClusterError> {
        let client = retry(deadline, async || access::client(options)).await?;
        Ok(Self { client, force: options.force, deadline })
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What the cluster calls such objects, and whether they lie in a namespace.
    pub(super) async fn resolve(&self, document: &Document) -> Result<(ApiResource, bool), ClusterError> {
        let kind = GroupVersionKind::gvk(&document.group, &document.version, &document.kind);
        let title = document.title();
        let found = self.ask(&title, async || discovery::pinned_kind(&self.client, &kind).await).await;
        let (resource, capabilities) = found.map_err(|error| match error {
            ClusterError::Missing { object, .. } => {
                let words = format!("it does not serve {}", kind.api_version());
                ClusterError::Invalid { object, words }
            }
            error => error,
        })?;
        Ok((resource, capabilities.scope == Scope::Namespaced))
    }

    /// Applies `body` to an object as its field manager, or tries that out.
    pub(super) async fn apply(&self, item: &Item, body: &Value, dry: bool) -> Result<(), ClusterError> {
        let mut how = PatchParams::apply(MANAGER).validation_strict();
        how.force = self.force;
        how.dry_run = dry;
        let api = self.api(item);
        let patch = Patch::Apply(body);
        let apply = async || api.patch(&item.name, &how, &patch).await;
        if dry {
            self.ask(&item.title(), apply).await?;
            return Ok(());
        }
        crash::point("kubernetes: before applying");
        self.ask(&item.title(), apply).await?;
        crash::point("kubernetes: applied");
        Ok(())
    }

    /// The object as it is, if it is there.
    pub(super) async fn get(&self, item: &Item) -> Result<Option<DynamicObject>, ClusterError> {
        let api = self.api(item);
        self.ask(&item.title(), async || api.get_opt(&item.name).await).await
    }

    /// Deletes just this object, with what it made; none of the same name that came after it.
    pub(super) async fn delete(&self, item: &Item, object: &DynamicObject) -> Result<(), ClusterError> {
        let uid = object.metadata.uid.clone();
        let how = DeleteParams::background().preconditions(Preconditions { uid, resource_version: None });
        let (api, title) = (self.api(item), item.title());
        let delete = async || match api.delete(&item.name, &how).await {
            // Somebody else was faster.
            Err(Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Ok(()),
        };
        crash::point("kubernetes: before deleting");
        self.ask(&title, delete).await?;
        crash::point("kubernetes: deleted");
        Ok(())
    }

    fn api(&self, item: &Item) -> Api<DynamicObject> {
        let client = self.client.clone();
        match &item.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &item.resource),
            None => Api::all_with(client, &item.resource),
        }
    }

    async fn ask<T>(
        &self,
        object: &str,
        mut request: impl AsyncFnMut() -> kube::Result<T>,
    ) -> Result<T, ClusterError> {
        retry(self.deadline, async || request().await.map_err(|error| setback(object, error))).await
    }
}

/// Tries again what may go better later, as long as there is time.
async fn retry<T>(
    deadline: Instant,
    mut step: impl AsyncFnMut() -> Result<T, Setback>,
) -> Result<T, ClusterError> {
    let (mut pause, longest) = PAUSES;
    let mut told = false;
    loop {
        let words = match step().await {
            Ok(value) => return Ok(value),
            Err(Setback::Final(error)) => return Err(error),
            Err(Setback::Passing(words)) => words,
        };
        if Instant::now() + pause >= deadline {
            return Err(ClusterError::Away(words));
        }
        if !told {
            tracing::warn!(words, "the cluster's API server does not serve, and is asked again");
            told = true;
        }
        sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

fn setback(object: &str, error: Error) -> Setback {
    let object = object.to_owned();
    match error {
        Error::Api(status) => {
            let words = status.message.clone();
            let held = || {
                let causes = status.details.iter().flat_map(|details| &details.causes);
                causes.into_iter().any(|cause| cause.reason == "FieldManagerConflict")
            };
            Setback::Final(match status.code {
                401 => ClusterError::Access(words),
                403 => ClusterError::Forbidden { object, words },
                409 if held() => ClusterError::Conflict { object, words },
                404 => ClusterError::Missing { object, words },
                // The server could not make sense of the object, but says that it is at fault.
                500 if words.contains("typed patch object") => ClusterError::Invalid { object, words },
                409 | 429 | 500.. => return Setback::Passing(format!("{object}: {words}")),
                _ => ClusterError::Invalid { object, words },
            })
        }
        Error::Discovery(_) => {
            let words = "it has no such kind in this version".to_owned();
            Setback::Final(ClusterError::Invalid { object, words })
        }
        error => Setback::Passing(format!("{object}: {}", chain(&error))),
    }
}

/// An error with its causes: the outermost alone says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_words = inner.to_string();
        if !words.contains(&inner_words) {
            words = format!("{words}: {inner_words}");
        }
        cause = inner.source();
    }
    words
}
