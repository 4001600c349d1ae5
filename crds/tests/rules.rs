//! The CEL rules, evaluated as a newer API server would.
// A test that cannot set up has failed.
#![allow(clippy::unwrap_used)]

use crds::generate::{Rules, definitions};
use kube_cel::Validator;
use serde_json::{Value, json};

const UUID: &str = "ec4e66fd-3b33-4439-b504-d49aba53da26";

/// What the rules of a kind say to a change of its spec, as one text; empty if nothing.
fn verdict(file: &str, old: Option<&Value>, new: &Value) -> String {
    let definitions = definitions(Rules::Cel);
    let (_, definition) = definitions.iter().find(|(name, _)| *name == file).unwrap();
    let schema = serde_json::to_value(&definition.spec.versions[0].schema).unwrap();
    let object = |spec: &Value| json!({ "metadata": { "name": "x" }, "spec": spec });
    match Validator::new().validate(&schema["openAPIV3Schema"], &object(new), old.map(object).as_ref()) {
        Ok(()) => String::new(),
        Err(errors) => format!("{errors:?}"),
    }
}

fn changed(spec: &Value, field: &str, to: Value) -> Value {
    let mut new = spec.clone();
    match to {
        Value::Null => new.as_object_mut().unwrap().remove(field),
        to => new.as_object_mut().unwrap().insert(field.to_owned(), to),
    };
    new
}

fn volume() -> Value {
    json!({ "uuid": UUID, "size": "10Gi", "replicas": 2, "thin": true, "publish": { "allowedHosts": ["*"] } })
}

#[test]
fn a_volume_may_grow_and_cannot_shrink() {
    let old = volume();
    for size in [json!("11Gi"), json!("10Gi"), json!("10.5Gi"), json!("1Ti"), json!(10_737_418_240_u64)] {
        assert_eq!(verdict("volumes.yaml", Some(&old), &changed(&old, "size", size.clone())), "", "{size}");
    }
    for size in [json!("9Gi"), json!("10G"), json!(1024)] {
        let said = verdict("volumes.yaml", Some(&old), &changed(&old, "size", size.clone()));
        assert!(said.contains("a volume cannot shrink"), "{size}: {said}");
    }
}

#[test]
fn the_identity_of_a_volume_is_set_once() {
    let with = volume();
    let without = changed(&with, "uuid", Value::Null);
    assert_eq!(verdict("volumes.yaml", Some(&without), &with), "");
    let other = changed(&with, "uuid", json!("00000000-3b33-4439-b504-d49aba53da26"));
    for new in [&other, &without] {
        assert!(verdict("volumes.yaml", Some(&with), new).contains("identity of a volume"));
    }
}

#[test]
fn thin_stays_thin_and_other_fields_may_change() {
    let old = volume();
    assert!(
        verdict("volumes.yaml", Some(&old), &changed(&old, "thin", json!(false))).contains("thin or thick")
    );
    assert_eq!(verdict("volumes.yaml", Some(&old), &changed(&old, "replicas", json!(3))), "");
    assert_eq!(verdict("volumes.yaml", Some(&old), &changed(&old, "publish", Value::Null)), "");
}

#[test]
fn the_affinity_group_stays() {
    let (without, with) = (volume(), changed(&volume(), "affinityGroup", json!("shop/db")));
    assert_eq!(verdict("volumes.yaml", None, &with), "");
    assert_eq!(verdict("volumes.yaml", Some(&with), &with), "");
    let other = changed(&with, "affinityGroup", json!("shop/logs"));
    for (old, new) in [(&without, &with), (&with, &without), (&with, &other)] {
        assert!(verdict("volumes.yaml", Some(old), new).contains("affinity group"), "{new}");
    }
}

/// Mixed with names the star would look like a restriction that it is not.
#[test]
fn c8_any_host_is_written_alone() {
    let hosts = |hosts: Value| changed(&volume(), "publish", json!({ "allowedHosts": hosts }));
    for admitted in
        [json!([]), json!(["*"]), json!(["nqn.2014-08.org.nvmexpress:uuid:1", "nqn.2019-05.io.openebs:x"])]
    {
        assert_eq!(verdict("volumes.yaml", None, &hosts(admitted)), "");
    }
    assert!(
        verdict("volumes.yaml", None, &hosts(json!(["*", "nqn.2014-08.org.nvmexpress:x"])))
            .contains("stands alone")
    );
}

#[test]
fn a_pool_keeps_its_node_disk_and_layout() {
    let old = json!({ "node": "a", "disks": ["/dev/sdb"], "clusterSize": "4MiB" });
    assert_eq!(verdict("diskpools.yaml", Some(&old), &old), "");
    let labelled = changed(&old, "topology", json!({ "labelled": { "media": "ssd" } }));
    assert_eq!(verdict("diskpools.yaml", Some(&old), &labelled), "");
    for (field, to, said) in [
        ("node", json!("b"), "stays on its node"),
        ("disks", json!(["/dev/sdc"]), "stays on its disk"),
        ("clusterSize", json!("8MiB"), "unit of space"),
        ("clusterSize", Value::Null, "unit of space"),
        ("maxExpansion", json!("2x"), "room for growth"),
        ("encryptionConfig", json!({ "source": { "secret": { "name": "key" } } }), "encryption"),
    ] {
        let verdict = verdict("diskpools.yaml", Some(&old), &changed(&old, field, to));
        assert!(verdict.contains(said), "{field}: {verdict}");
    }
}

#[test]
fn a_target_may_move_and_stays_with_its_volume() {
    let old = json!({ "volume": UUID, "node": "a" });
    assert_eq!(verdict("nexuses.yaml", Some(&old), &changed(&old, "node", json!("b"))), "");
    let other = changed(&old, "volume", json!("00000000-3b33-4439-b504-d49aba53da26"));
    assert!(verdict("nexuses.yaml", Some(&old), &other).contains("stays with its volume"));
}
