//! The installer against a real API server (`tools/devkube.sh`): the test plays the machine.

mod access;
mod cuts;
mod updates;

use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use fleetwave_agent_core::{Release, Releases, TrustRoot, sign};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::*;
pub(super) use crate::cluster::Server;
use crate::target::Kind;

/// Long enough for a loaded machine; nothing waits so long unless it fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// The one that the tests share, each in a namespace of its own.
pub(super) fn shared() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    SERVER.get_or_init(Server::start).as_ref()
}

/// A test's namespace, the administrator's view of it, and the installer's directory.
struct World {
    client: Client,
    namespace: String,
    dir: tempfile::TempDir,
    options: Options,
}

impl World {
    async fn new(server: &Server) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let namespace = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let kubeconfig = server.kubeconfig("admin");
        let options =
            json!({"namespace": namespace, "kubeconfig": kubeconfig, "timeout_seconds": PATIENCE.as_secs()});
        let options = serde_json::from_value(options).expect("a configuration");
        let Ok(client) = super::access::client(&options) else { panic!("no access by {kubeconfig:?}") };
        let world = Self { client, namespace, dir: tempfile::tempdir().expect("a directory"), options };
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": world.namespace}});
        let namespaces: Api<DynamicObject> =
            Api::all_with(world.client.clone(), &resource("v1", "Namespace"));
        let namespace = serde_json::from_value(body).expect("an object");
        namespaces.create(&Default::default(), &namespace).await.expect("a namespace");
        world
    }

    /// The installer as after a start: it knows what is on disk and in the cluster.
    fn workload(&self) -> Rc<Workload> {
        workload(&self.options, "web", self.dir.path())
    }

    /// Puts the payload where it belongs, and stages it.
    async fn stage(&self, release: &(Release, String)) -> Result<(), InstallError> {
        let place = self.workload().place(&release.0).expect("a place");
        fs::write(place.path, &release.1).expect("the payload is written");
        self.workload().stage(release.0.clone()).await
    }

    /// A whole update that goes well.
    async fn update(&self, release: &(Release, String)) {
        self.stage(release).await.expect("staged");
        let activated = self.workload().activate().await.expect("activated");
        assert_eq!(activated, Activated::Running);
        assert_eq!(self.standing().await.0, *release.0.id);
        self.workload().healthy().await.expect("healthy");
        self.workload().commit().await.expect("committed");
        let both = (release.0.id.to_string(), release.0.id.to_string());
        assert_eq!(self.standing().await, both);
    }

    /// The ids of what runs and of what is committed.
    async fn standing(&self) -> (String, String) {
        let standing = self.workload().standing().await.expect("a standing");
        let id = |reference: &Reference| reference["id"].as_str().expect("an id").to_owned();
        (id(&standing.running), id(&standing.committed))
    }

    fn api(&self, version: &str, kind: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource(version, kind))
    }

    async fn get(&self, version: &str, kind: &str, name: &str) -> Option<Value> {
        let found = self.api(version, kind).get_opt(name).await.expect("the cluster answers");
        found.map(|object| serde_json::to_value(object).expect("JSON"))
    }

    async fn deployment(&self) -> Value {
        self.get("apps/v1", "Deployment", "web").await.expect("there is a deployment")
    }

    /// How many of the old and how many of all pods serve.
    async fn serving(&self, image: &str) -> usize {
        let pods = self.api("v1", "Pod").list(&ListParams::default()).await.expect("pods");
        let serves = |pod: &&DynamicObject| {
            let ready = &pod.data["status"]["conditions"][0];
            ready["status"] == "True" && pod.data["spec"]["containers"][0]["image"] == image
        };
        pods.iter().filter(serves).count()
    }

    /// Applies an object as somebody else.
    async fn apply_as(&self, manager: &str, version: &str, kind: &str, name: &str, mut body: Value) {
        body["apiVersion"] = version.into();
        body["kind"] = kind.into();
        body["metadata"]["name"] = name.into();
        let how = PatchParams::apply(manager).force();
        self.api(version, kind).patch(name, &how, &Patch::Apply(&body)).await.expect("applied");
    }
}

fn resource(version: &str, kind: &str) -> ApiResource {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

/// The installer of the workload `name`, whose records are in `state`.
fn workload(options: &Options, name: &str, state: &Path) -> Rc<Workload> {
    let target = Target::within(Kind::Workload, name).expect("a name");
    let installed = Reference::from_iter([("id".to_owned(), "web-0".into()), ("seq".to_owned(), 0.into())]);
    let dir = target.dir(state);
    Rc::new(Workload::new(options.clone(), Site { target, dir, installed }))
}

/// A signed release with its payload.
fn release(sequence: u64, manifest: &str) -> (Release, String) {
    let key = SigningKey::from_bytes(&[7; 32]);
    let mut releases = Releases::new(TrustRoot::new(vec![("k1".to_owned(), key.verifying_key())], 1));
    let digest = Sha256::digest(manifest.as_bytes()).into();
    let reference =
        sign(&format!("web-{sequence}"), sequence, manifest.len() as u64, &digest, false, &[("k1", &key)]);
    let id = releases.intern(&reference);
    (releases[id].clone(), manifest.to_owned())
}

/// A deployment of two replicas that gives up after two seconds.
fn web(image: &str) -> String {
    format!(
        "---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 2
  progressDeadlineSeconds: 2
  selector:
    matchLabels: {{app: web}}
  template:
    metadata:
      labels: {{app: web}}
    spec:
      containers:
        - name: main
          image: {image}
"
    )
}

fn map(name: &str, value: &str) -> String {
    format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{key: {value}}}\n")
}

/// Runs a test on a runtime like the agent's; not at all where there is no cluster.
fn with_world(test: impl AsyncFnOnce(World)) {
    let Some(server) = shared() else { return };
    block_on(async { test(World::new(server).await).await });
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}
