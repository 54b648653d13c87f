use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, PostParams};
use serde_json::json;

use super::*;
use crate::install::kubernetes::tests::{block_on, shared};

/// A kubeconfig with another cluster, user, or context than the usual ones.
fn with(change: impl FnOnce(&mut Value)) -> Result<Access, String> {
    let authority = rcgen::generate_simple_self_signed(["api".to_owned()]).expect("a certificate");
    let pem = authority.cert.pem();
    let mut config = json!({
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "pi", "user": "agent"}}],
        "clusters": [{"name": "pi", "cluster": {
            "server": "https://127.0.0.1:6443",
            "certificate-authority-data": STANDARD.encode(&pem),
        }}],
        "users": [{"name": "agent", "user": {
            "client-certificate-data": STANDARD.encode(&pem),
            "client-key-data": STANDARD.encode(authority.signing_key.serialize_pem()),
        }}],
    });
    change(&mut config);
    kubeconfig(Path::new("/etc/it"), &config.to_string(), None).map_err(|error| error.to_string())
}

#[test]
fn a_certificate_or_a_token_gives_access() {
    let access = with(|_| ()).expect("a certificate");
    assert_eq!((access.server.as_str(), access.authorization), ("https://127.0.0.1:6443", None));
    let access = with(|config| config["users"][0]["user"] = json!({"token": "secret"})).expect("a token");
    assert_eq!(access.authorization.expect("a header"), "Bearer secret");
}

#[test]
fn what_is_not_supported_or_missing_is_named_with_the_way_out() {
    let user = |value: Value| with(|config| config["users"][0]["user"] = value);
    let cluster = |key: &str, value: Value| with(|config| config["clusters"][0]["cluster"][key] = value);
    for (refused, words) in [
        (
            user(json!({"exec": {"command": "aws"}})),
            "`exec` is not supported: give the user a client certificate",
        ),
        (user(json!({"token": "x", "as": "root"})), "`as` is not supported"),
        (user(json!({"token": "two\nlines"})), "what should be a token is none"),
        (user(json!({"tokenFile": "gone"})), "/etc/gone: No such file"),
        (user(json!({"client-certificate-data": "AAAA"})), "belong together"),
        (
            user(json!({"client-certificate-data": "AAAA", "client-key-data": "AAAA"})),
            "no certificate in PEM form",
        ),
        (cluster("insecure-skip-tls-verify", json!(true)), "certificate-authority"),
        (cluster("proxy-url", json!("http://it")), "`proxy-url` is not supported: take it out"),
        (cluster("server", json!("http://it")), "no address with https"),
        (cluster("certificate-authority-data", Value::Null), "the cluster has no certificate-authority"),
        (cluster("certificate-authority-data", json!("%")), "certificate-authority-data is not Base64"),
        (with(|config| config["current-context"] = Value::Null), "no current-context"),
        (with(|config| config["current-context"] = json!("there")), "no context \"there\""),
        (with(|config| config["users"] = Value::Null), "no user \"agent\""),
    ] {
        let refused = refused.err().expect("refused");
        assert!(refused.contains(words), "{refused:?} does not say {words:?}");
    }
    let secret = kubeconfig(Path::new("/etc/it"), "users: [token: secret", None).err().expect("not YAML");
    assert!(secret.to_string().contains("not YAML") && !secret.to_string().contains("secret"), "{secret}");
}

/// What a pod finds: its account's token, and the cluster's authority. A real API server lets it in.
#[test]
fn a_pod_gets_in_by_its_accounts_token() {
    let Some(server) = shared() else { return };
    block_on(async {
        let options = json!({"namespace": "default", "kubeconfig": server.kubeconfig("admin")});
        let Ok(admin) = client(&serde_json::from_value(options).expect("options")) else {
            panic!("no access")
        };
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "ServiceAccount"));
        let accounts: Api<DynamicObject> = Api::namespaced_with(admin, "default", &resource);
        let account = DynamicObject::new("pod", &resource);
        accounts.create(&PostParams::default(), &account).await.expect("an account");
        let wanted = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let made: Value = accounts
            .create_subresource("token", "pod", &PostParams::default(), &wanted)
            .await
            .expect("a token");

        let text = std::fs::read_to_string(server.kubeconfig("admin")).expect("a kubeconfig");
        let config: Value = serde_saphyr::from_str(&text).expect("YAML");
        let cluster = &config["clusters"][0]["cluster"];
        let (_, authority) = material(&server.kubeconfig("admin"), cluster, "certificate-authority")
            .ok()
            .flatten()
            .expect("one");
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("ca.crt"), authority).expect("written");
        std::fs::write(dir.path().join("token"), made["status"]["token"].as_str().expect("a token"))
            .expect("written");
        let server = cluster["server"].as_str().and_then(|server| server.strip_prefix("https://"));
        let (host, port) = server.and_then(|server| server.rsplit_once(':')).expect("host and port");

        let Ok(access) = pod(host, port, dir.path()) else { panic!("no access") };
        let accounts: Api<DynamicObject> = Api::namespaced_with(access.client(), "default", &resource);
        // It is known, and may do nothing.
        let error = accounts.get("pod").await.expect_err("no rights");
        assert!(error.to_string().contains("system:serviceaccount:default:pod"), "{error}");
    });
}
