//! A release's manifest: YAML as `kubectl` reads it, and what an agent takes of that.

use std::collections::BTreeSet;

use kube::api::ApiResource;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::install::InstallError;

/// The largest manifest. The API server takes no larger object either.
pub(super) const LARGEST: u64 = 1 << 20;
/// The most objects in one.
const MOST: usize = 200;

/// The kinds that a workload is made of. None of them lies outside a namespace, and none gives anybody rights.
pub(super) const USUAL_KINDS: [&str; 14] = [
    "ConfigMap",
    "CronJob.batch",
    "DaemonSet.apps",
    "Deployment.apps",
    "HorizontalPodAutoscaler.autoscaling",
    "Ingress.networking.k8s.io",
    "Job.batch",
    "NetworkPolicy.networking.k8s.io",
    "PersistentVolumeClaim",
    "PodDisruptionBudget.policy",
    "Secret",
    "Service",
    "ServiceAccount",
    "StatefulSet.apps",
];

/// Annotations that say which release an object is of, and of which target.
const RELEASE: &str = "fleetwave-agent/release";
const SEQUENCE: &str = "fleetwave-agent/sequence";
const TARGET: &str = "fleetwave-agent/target";
/// The label by which people find what is not theirs to change.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// An object of a manifest, with what is needed to ask for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Item {
    pub(super) resource: ApiResource,
    /// `None` if it lies outside of namespaces.
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    /// The object as it is applied.
    pub(super) body: Value,
}

impl Item {
    /// Whether both are the same object of the cluster, in whatever version of its API.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        let of = |item: &Self| (item.resource.group.clone(), item.resource.kind.clone());
        of(self) == of(other) && self.namespace == other.namespace && self.name == other.name
    }

    pub(super) fn is_in(&self, items: &[Self]) -> bool {
        items.iter().any(|item| item.is_same_as(self))
    }

    /// How people call it.
    pub(super) fn title(&self) -> String {
        format!("{} {}", self.resource.kind, self.name)
    }

    /// Whether it may be deleted when no release has it any more. What holds data is left to people.
    pub(super) fn is_disposable(&self) -> bool {
        self.resource.kind != "PersistentVolumeClaim"
    }

    /// Nothing but which object this is: applied, it lets go of all that the agent had set.
    pub(super) fn bare(&self) -> Value {
        let mut metadata = Map::from_iter([("name".to_owned(), self.name.clone().into())]);
        if let Some(namespace) = &self.namespace {
            metadata.insert("namespace".to_owned(), namespace.clone().into());
        }
        serde_json::json!({
            "apiVersion": self.resource.api_version,
            "kind": self.resource.kind,
            "metadata": metadata,
        })
    }
}

/// Who an object belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) target: String,
    pub(super) release: String,
    pub(super) sequence: String,
}

impl Mark {
    /// The mark that an object's annotations make; `None` if no agent put one there.
    pub(super) fn read(annotation: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let (target, release) = (annotation(TARGET)?, annotation(RELEASE)?);
        Some(Self { target, release, sequence: annotation(SEQUENCE)? })
    }

    /// Puts it on an object. Only on the object itself, never on its pods: those need not start again for it.
    fn put_on(&self, metadata: &mut Map<String, Value>) {
        let annotations = object_at(metadata, "annotations");
        for (name, value) in [(TARGET, &self.target), (RELEASE, &self.release), (SEQUENCE, &self.sequence)] {
            annotations.insert(name.to_owned(), value.clone().into());
        }
        object_at(metadata, "labels").entry(MANAGED_BY).or_insert_with(|| "fleetwave-agent".into());
    }
}

/// An object as it stands in the manifest: checked as far as that goes without a cluster.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
    name: String,
    body: Map<String, Value>,
}

impl Document {
    pub(super) fn title(&self) -> String {
        format!("{} {}", self.kind, self.name)
    }

    /// The object to be applied, once the cluster has said what it calls such objects and where they lie.
    pub(super) fn settle(
        mut self,
        resource: ApiResource,
        namespaced: bool,
        namespace: &str,
        mark: &Mark,
    ) -> Result<Item, InstallError> {
        let title = self.title();
        let metadata = object_at(&mut self.body, "metadata");
        let said = metadata.get("namespace").map(|said| said.as_str().unwrap_or_default());
        match said {
            Some(said) if !namespaced => {
                return Err(unfit(format!(
                    "{title} lies outside of namespaces, but says namespace {said:?}: remove that"
                )));
            }
            Some(said) if said != namespace => {
                return Err(unfit(format!(
                    "{title} is for namespace {said:?}, the workload's is {namespace:?}: leave it out, or make \
                     another workload"
                )));
            }
            _ => {}
        }
        if namespaced {
            metadata.insert("namespace".to_owned(), namespace.into());
        }
        mark.put_on(metadata);
        let namespace = namespaced.then(|| namespace.to_owned());
        Ok(Item { resource, namespace, name: self.name, body: Value::Object(self.body) })
    }
}

/// Reads a manifest of one or more objects, whose kinds must be among `kinds`.
///
/// # Errors
/// [`InstallError::Payload`]. It quotes nothing of the values: a manifest may hold secrets.
pub(super) fn parse(text: &str, kinds: &BTreeSet<String>) -> Result<Vec<Document>, InstallError> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        // As `kubectl` has it: `defaultMode: 0644` is octal.
        legacy_octal_numbers: true,
    };
    let values: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let words = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
        unfit(format!("not YAML as Kubernetes has it: {words}"))
    })?;
    if values.is_empty() || values.len() > MOST {
        return Err(unfit(format!("{} objects: 1 to {MOST}", values.len())));
    }
    let mut seen = BTreeSet::new();
    let mut documents = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        let document = check(value, kinds).map_err(|what| unfit(format!("object {}: {what}", index + 1)))?;
        if !seen.insert((document.group.clone(), document.kind.clone(), document.name.clone())) {
            return Err(unfit(format!("{} is there twice", document.title())));
        }
        documents.push(document);
    }
    Ok(documents)
}

fn check(value: Value, kinds: &BTreeSet<String>) -> Result<Document, String> {
    let Value::Object(mut body) = value else { return Err("no mapping".to_owned()) };
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let api_version = text(body.get("apiVersion")).ok_or("no `apiVersion`")?;
    let kind = text(body.get("kind")).ok_or("no `kind`")?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let full = if group.is_empty() { kind.clone() } else { format!("{kind}.{group}") };
    if !kinds.contains(&full) {
        return Err(format!(
            "{full} is not among the kinds that this workload may have: name it in `kinds` if it should be"
        ));
    }
    let Some(Value::Object(metadata)) = body.get_mut("metadata") else {
        return Err(format!("{kind}: no `metadata`"));
    };
    let name = text(metadata.get("name")).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| format!("{kind}: no `metadata.name`"))?;
    for member in ["managedFields", "ownerReferences", "resourceVersion", "uid"] {
        if metadata.contains_key(member) {
            return Err(format!("{kind} {name}: `metadata.{member}` is the cluster's to say: remove it"));
        }
    }
    for member in ["annotations", "labels"] {
        if metadata.get(member).is_some_and(|value| !value.is_object()) {
            return Err(format!("{kind} {name}: `metadata.{member}` is no mapping"));
        }
    }
    // `kubectl create --dry-run -o yaml` writes both, empty.
    metadata.remove("creationTimestamp");
    body.remove("status");
    Ok(Document { group: group.to_owned(), version: version.to_owned(), kind, name, body })
}

/// The object at `name`, made if there is none.
fn object_at<'a>(parent: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let value = parent.entry(name).or_insert_with(|| Value::Object(Map::new()));
    value.as_object_mut().expect("checked when the manifest was read")
}

fn unfit(what: String) -> InstallError {
    InstallError::Payload(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Document>, String> {
        let kinds = USUAL_KINDS.into_iter().map(str::to_owned).collect();
        parse(text, &kinds).map_err(|error| error.to_string())
    }

    fn refused(text: &str) -> String {
        read(text).expect_err("refused")
    }

    fn resource(kind: &str) -> ApiResource {
        ApiResource {
            group: String::new(),
            version: "v1".to_owned(),
            api_version: "v1".to_owned(),
            kind: kind.to_owned(),
            plural: format!("{}s", kind.to_lowercase()),
        }
    }

    const MAP: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}";

    #[test]
    fn a_manifest_has_many_documents_and_empty_ones_are_none() {
        let text =
            format!("---\n{MAP}\n---\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: b\n");
        let read = read(&text).expect("well-formed");
        let titles: Vec<_> = read.iter().map(Document::title).collect();
        assert_eq!(titles, ["ConfigMap a", "Deployment b"]);
        assert_eq!((read[1].group.as_str(), read[1].version.as_str()), ("apps", "v1"));
    }

    #[test]
    fn numbers_and_booleans_are_what_kubectl_takes_them_for() {
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\nx: [0644, yes, '0644', 1.5, 1e3]\n";
        let read = read(text).expect("well-formed");
        assert_eq!(read[0].body["x"], serde_json::json!([420, true, "0644", 1.5, 1000.0]));
    }

    #[test]
    fn what_no_workload_may_have_is_refused_with_the_way_out() {
        let role = "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: a}}";
        assert!(refused(role).contains("ClusterRole.rbac.authorization.k8s.io"), "{}", refused(role));
        assert!(refused(role).contains("`kinds`"));
        for (text, cause) in [
            ("", "0 objects"),
            ("[]", "object 1: no mapping"),
            ("{kind: ConfigMap}", "apiVersion"),
            ("{apiVersion: v1, kind: ConfigMap, metadata: {generateName: a}}", "metadata.name"),
            ("{apiVersion: v1, kind: ConfigMap, metadata: {name: a, uid: b}}", "metadata.uid"),
            ("{apiVersion: v1, kind: ConfigMap, metadata: {name: a, labels: 1}}", "metadata.labels"),
            ("{apiVersion: v1, kind: ConfigMap, kind: Secret}", "line 1"),
        ] {
            assert!(refused(text).contains(cause), "{}", refused(text));
        }
        assert!(refused(&format!("{MAP}\n---\n{MAP}")).contains("twice"));
        let many = format!("{MAP}\n---\n").repeat(201);
        assert!(refused(&many).contains("201 objects"));
    }

    #[test]
    fn a_refusal_never_quotes_a_value() {
        for text in
            ["a: 's3cret", "{apiVersion: v1, kind: Secret, data: s3cret: s3cret}", "a: s3cret\na: s3cret"]
        {
            assert!(!refused(text).contains("s3cret"), "{}", refused(text));
        }
    }

    #[test]
    fn aliases_cannot_blow_a_manifest_up() {
        let mut text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (this, last) in ('b'..='j').zip('a'..) {
            text += &format!("{this}: &{this} [{}]\n", vec![format!("*{last}"); 10].join(", "));
        }
        read(&text).expect_err("refused");
    }

    #[test]
    fn an_object_goes_to_the_workloads_namespace_and_carries_the_release() {
        let mark = Mark { target: "workloads.web".into(), release: "web-2".into(), sequence: "2".into() };
        let document = read(MAP).expect("well-formed").remove(0);
        let item = document.settle(resource("ConfigMap"), true, "shop", &mark).expect("fits");
        assert_eq!(item.body["metadata"]["namespace"], "shop");
        let annotation =
            |body: &Value, name: &str| Some(body["metadata"]["annotations"].get(name)?.as_str()?.to_owned());
        assert_eq!(Mark::read(|name| annotation(&item.body, name)), Some(mark.clone()));
        assert_eq!(Mark::read(|name| annotation(&item.bare(), name)), None);

        let elsewhere =
            read("{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: kube-system}}");
        let document = elsewhere.expect("well-formed").remove(0);
        let error = document.settle(resource("ConfigMap"), true, "shop", &mark).expect_err("refused");
        assert!(error.to_string().contains("\"kube-system\""), "{error}");
    }
}
