//! What the cluster refuses, and a cluster that is away.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

/// The role that the documentation has to be copied, for a namespace.
fn documented_role(namespace: &str) -> Vec<Value> {
    let page = include_str!("../../../../../docs/agent.md");
    let (_, rest) = page.split_once("```yaml\n# rbac.yaml").expect("the page has a role");
    let (text, _) = rest.split_once("```").expect("the block ends");
    let text = text
        .split_once('\n')
        .expect("a first line")
        .1
        .replace("namespace: shop", &format!("namespace: {namespace}"));
    serde_saphyr::from_multiple(&text).expect("YAML")
}

#[test]
fn the_documented_role_is_enough_in_its_namespace_and_good_for_nothing_elsewhere() {
    let Some(server) = shared() else { return };
    block_on(async {
        let mut world = World::new(server).await;
        world.options.kubeconfig = Some(server.kubeconfig("agent"));
        let error = world.stage(&release(1, &web("good/web:1"))).await.expect_err("no rights yet");
        assert!(matches!(&error, InstallError::Refused(words) if words.contains("docs/agent.md")), "{error}");

        for body in documented_role(&world.namespace) {
            let text = |name: &str| body[name].as_str().expect("text").to_owned();
            let name = body["metadata"]["name"].as_str().expect("a name").to_owned();
            world.apply_as("admin", &text("apiVersion"), &text("kind"), &name, body).await;
        }
        // Rights take a moment to spread.
        while let Err(error) = world.stage(&release(1, &(web("good/web:1") + &map("old", "x")))).await {
            assert!(error.to_string().contains("cannot"), "{error}");
        }
        world.update(&release(1, &(web("good/web:1") + &map("old", "x")))).await;
        world.update(&release(2, &web("good/web:2"))).await;
        assert_eq!(world.get("v1", "ConfigMap", "old").await, None);
        world.stage(&release(3, &web("bad/web:3"))).await.expect("staged");
        world.workload().activate().await.expect("activated");
        world.workload().go_back().await.expect("back");
        assert_eq!(world.standing().await, ("web-2".into(), "web-2".into()));

        let mut elsewhere = World::new(server).await;
        elsewhere.options.kubeconfig = Some(server.kubeconfig("agent"));
        let error = elsewhere.stage(&release(1, &web("good/web:1"))).await.expect_err("refused");
        assert!(matches!(&error, InstallError::Refused(words) if words.contains("forbidden")), "{error}");
        assert_eq!(elsewhere.get("apps/v1", "Deployment", "web").await, None);
    });
}

#[test]
fn fields_that_others_hold_are_left_to_them_unless_force_is_configured() {
    with_world(async |mut world| {
        world.update(&release(1, &web("good/web:1"))).await;
        world.apply_as("people", "apps/v1", "Deployment", "web", json!({"spec": {"replicas": 5}})).await;

        let next = release(2, &web("good/web:2"));
        let error = world.stage(&next).await.expect_err("refused");
        let InstallError::Refused(words) = error else { panic!("{error}") };
        assert!(
            words.contains("people") && words.contains(".spec.replicas") && words.contains("`force = true`"),
            "{words}"
        );
        assert_eq!(world.standing().await, ("web-1".into(), "web-1".into()));

        world.options.force = true;
        world.update(&next).await;
        assert_eq!(world.deployment().await["spec"]["replicas"], 2);
    });
}

#[test]
fn a_conflict_that_comes_up_after_staging_undoes_what_was_applied_before_it() {
    with_world(async |world| {
        world.update(&release(1, &(map("first", "one") + &web("good/web:1")))).await;
        world.stage(&release(2, &(map("first", "two") + &web("good/web:2")))).await.expect("staged");
        world
            .apply_as(
                "people",
                "apps/v1",
                "Deployment",
                "web",
                json!({"spec": {"paused": false, "template": {"spec": {
            "containers": [{"name": "main", "image": "good/other:1"}]}}}}),
            )
            .await;
        let error = world.workload().activate().await.expect_err("refused");
        assert!(matches!(&error, InstallError::Refused(words) if words.contains("people")), "{error}");
        let first = world.get("v1", "ConfigMap", "first").await.expect("there");
        assert_eq!(first["data"]["key"], "one");
    });
}

#[test]
fn mistakes_in_a_manifest_are_told_at_staging_with_the_servers_words() {
    with_world(async |mut world| {
        let unknown = web("good/web:1").replace("replicas: 2", "replicas: 2\n  bogus: 1");
        let mistakes = [
            (unknown, "bogus"),
            (web("good/web:1").replace("name: web", "name: Web"), "Web"),
            (web("good/web:1").replace("apps/v1", "apps/v7"), "apps/v7"),
            (web("good/web:1").replace("Deployment", "Gizmo"), "`kinds`"),
        ];
        for (manifest, words) in mistakes {
            let error = world.stage(&release(1, &manifest)).await.expect_err(words);
            let InstallError::Payload(told) = &error else { panic!("{error}") };
            assert!(told.contains(words), "{told}");
        }
        // What lies outside of namespaces has to be named, and what nobody has is told.
        let outside = "{apiVersion: v1, kind: Namespace, metadata: {name: extra-of-a-test}}";
        world.stage(&release(1, outside)).await.expect_err("not among the usual kinds");
        world.options.kinds.insert("Namespace".into());
        world.stage(&release(1, outside)).await.expect("named");
        world.options.kinds.insert("Gizmo.apps".into());
        let error = world.stage(&release(1, &web("good/web:1").replace("Deployment", "Gizmo"))).await;
        assert!(error.expect_err("refused").to_string().contains("no such kind"));

        world.options.namespace = "nowhere".into();
        let error = world.stage(&release(1, &web("good/web:1"))).await.expect_err("refused");
        assert!(matches!(&error, InstallError::Refused(words) if words.contains("nowhere")), "{error}");
    });
}

#[test]
fn an_object_of_another_workload_is_not_taken_over() {
    with_world(async |world| {
        world.update(&release(1, &web("good/web:1"))).await;
        let other = || workload(&world.options, "api", world.dir.path());
        let (release, manifest) = release(1, &web("good/api:1"));
        fs::write(other().place(&release).expect("a place").path, manifest).expect("written");
        let error = other().stage(release).await.expect_err("refused");
        assert!(matches!(&error, InstallError::Refused(words) if words.contains("workloads.web")), "{error}");
    });
}

#[test]
fn an_api_server_that_is_killed_and_comes_back_in_the_middle_delays_an_update_and_no_more() {
    let Some(mut server) = Server::start() else { return };
    block_on(async {
        let world = World::new(&server).await;
        let text = fs::read_to_string(server.kubeconfig("admin")).expect("a kubeconfig");
        let (_, rest) = text.split_once("https://127.0.0.1:").expect("an address");
        let port: u16 = rest.split_once('"').expect("its end").0.parse().expect("a port");

        world.update(&release(1, &web("good/web:1"))).await;
        world.stage(&release(2, &web("good/web:2"))).await.expect("staged");
        server.kill();
        let (activated, back) = tokio::join!(
            world.workload().activate(),
            tokio::task::spawn_blocking(move || {
                server.restart(port);
                server
            }),
        );
        activated.expect("activated");
        let mut server = back.expect("restarted");
        server.kill();
        let (healthy, back) = tokio::join!(
            world.workload().healthy(),
            tokio::task::spawn_blocking(move || {
                server.restart(port);
                server
            }),
        );
        healthy.expect("healthy");
        let mut server = back.expect("restarted");
        server.kill();
        // Nothing is asked of the cluster that a commit depends on, and a start tells what it knows.
        world.workload().commit().await.expect("committed");
        assert_eq!(world.standing().await, ("web-2".into(), "web-2".into()));
    });
}

#[test]
fn a_cluster_that_stays_away_is_told_when_time_is_over() {
    block_on(async {
        let dir = tempfile::tempdir().expect("a directory");
        let kubeconfig = dir.path().join("kubeconfig");
        let options = json!({"namespace": "shop", "kubeconfig": kubeconfig, "timeout_seconds": 1});
        let options: Options = serde_json::from_value(options).expect("a configuration");
        let workload = || workload(&options, "web", dir.path());
        let standing = workload().standing().await.expect("nothing was ever installed");
        assert_eq!(standing.running["id"], "web-0");

        let (release, manifest) = release(1, &web("good/web:1"));
        fs::write(workload().place(&release).expect("a place").path, manifest).expect("written");
        let error = workload().stage(release.clone()).await.expect_err("no kubeconfig");
        assert!(matches!(&error, InstallError::Refused(words) if words.contains("kubeconfig")), "{error}");

        // Nobody listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .expect("a port");
        let authority = rcgen::generate_simple_self_signed(["api".to_owned()]).expect("a certificate");
        let mut config = json!({
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://{port}"),
                "certificate-authority-data": STANDARD.encode(authority.cert.pem()),
                "proxy-url": "http://127.0.0.1:1",
            }}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "c",
        });
        fs::write(&kubeconfig, config.to_string()).expect("written");
        let error = workload().stage(release.clone()).await.expect_err("not supported");
        assert!(matches!(&error, InstallError::Refused(words) if words.contains("`proxy-url`")), "{error}");
        config["clusters"][0]["cluster"]["proxy-url"] = Value::Null;
        fs::write(&kubeconfig, config.to_string()).expect("written");
        let error = workload().stage(release).await.expect_err("away");
        assert!(
            matches!(&error, InstallError::Refused(words) if words.contains("cannot be reached")),
            "{error}"
        );
    });
}
