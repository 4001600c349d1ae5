//! Who has a certificate for etcd, and which.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{containers, helm, objects, pod_spec};

fn secrets(objects: &[Value]) -> BTreeMap<&str, &Value> {
    let secrets = objects.iter().filter(|object| object["kind"] == "Secret");
    secrets.map(|secret| (secret["metadata"]["name"].as_str().unwrap(), &secret["data"])).collect()
}

fn secret_of<'a>(objects: &'a [Value], kind: &str, name: &str, volume: &str) -> Option<&'a str> {
    let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
    let volumes = pod_spec(objects.iter().find(is_it)?)?["volumes"].as_array()?;
    volumes.iter().find(|it| it["name"] == volume)?["secret"]["secretName"].as_str()
}

#[tokio::test]
async fn etcd_its_members_and_its_users_have_certificates() {
    let objects = objects(&json!({})).await;
    let secrets = secrets(&objects);
    let names = ["ha-cluster", "io-engine", "operator", "peer", "root", "server"]
        .map(|it| format!("mayastor-etcd-{it}"));
    assert!(names.iter().eq(secrets.keys()), "{:?}", secrets.keys());
    for (name, data) in &secrets {
        for file in ["ca.crt", "tls.crt", "tls.key"] {
            assert!(data[file].as_str().is_some_and(|text| text.len() > 500), "{name} {file}");
        }
    }
    let users = secrets.iter().filter(|(name, _)| !name.ends_with("peer"));
    assert_eq!(
        users.map(|(_, data)| data["ca.crt"].to_string()).collect::<BTreeSet<_>>().len(),
        1,
        "one authority"
    );
    let set = objects.iter().find(|object| object["kind"] == "StatefulSet").unwrap().to_string();
    assert!(set.contains("--peer-client-cert-auth") && set.contains("\"secretName\":\"mayastor-etcd-peer\""));
    assert!(set.contains("https://mayastor-etcd-2.mayastor-etcd-headless.mayastor.svc:2380"));
    assert!(set.contains("--client-cert-auth") && set.contains("\"secretName\":\"mayastor-etcd-server\""));
    for (kind, user) in [("Deployment", "operator"), ("DaemonSet", "io-engine"), ("Deployment", "ha-cluster")]
    {
        let secret = secret_of(&objects, kind, &format!("mayastor-{user}"), "etcd-client");
        assert_eq!(secret, Some(format!("mayastor-etcd-{user}").as_str()));
    }
    // Root's certificate is in one container, which ends before the others start.
    let holds_root =
        |(_, container): &&(String, Value)| container["volumeMounts"].to_string().contains("etcd-root");
    let containers = containers(&objects);
    let holders: Vec<_> = containers.iter().filter(holds_root).map(|(title, _)| title.as_str()).collect();
    assert!(matches!(holders[..], [one] if one.ends_with(" prepare-store")), "{holders:?}");
}

#[tokio::test]
async fn certificates_of_ones_own_take_the_place_of_those_that_are_made() {
    let named = json!({ "server": "s", "root": "r", "operator": "o", "io-engine": "i", "ha-cluster": "h" });
    let own = json!({ "etcd": { "auth": { "client": { "existingSecrets": named }, "peer": { "existingSecret": "p" } } } });
    let rendered = objects(&own).await;
    assert!(secrets(&rendered).is_empty());
    assert_eq!(secret_of(&rendered, "Deployment", "mayastor-operator", "etcd-client"), Some("o"));
    assert_eq!(secret_of(&rendered, "Deployment", "mayastor-operator", "etcd-root"), Some("r"));

    let some = json!({ "etcd": { "auth": { "client": { "existingSecrets": { "operator": "o" } } } } });
    let error = helm().render(&some).await.unwrap_err().to_string();
    assert!(error.contains("one authority has to sign them all"), "{error}");

    let mut outside = json!({ "etcd": { "externalUrl": "https://a:2379" }, "clusterUid": "6f1c" });
    let error = helm().render(&outside).await.unwrap_err().to_string();
    assert!(error.contains("existingSecrets"), "{error}");
    outside["etcd"]["auth"] = json!({ "client": { "existingSecrets": named } });
    let rendered = objects(&outside).await;
    assert_eq!(secret_of(&rendered, "DaemonSet", "mayastor-io-engine", "etcd-client"), Some("i"));
    assert_eq!(
        secret_of(&rendered, "Deployment", "mayastor-operator", "etcd-root"),
        None,
        "users are its admin's"
    );
    assert!(secrets(&rendered).is_empty());
}
