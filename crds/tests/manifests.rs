//! What is committed is what the types say: definitions and examples.
// A test that cannot set up has failed.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use crds::generate::{Rules, definitions, yaml};
use crds::{DiskPool, Volume};
use serde::Deserialize as _;
use serde_json::Value;

fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn documents(path: &str) -> Vec<Value> {
    let text = fs::read_to_string(repository(path)).unwrap();
    serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

#[test]
fn committed_definitions_are_what_the_types_say() {
    for (folder, rules) in [("crds/yaml", Rules::Cel), ("crds/yaml/no-cel", Rules::None)] {
        let mut expected_files = Vec::new();
        for (file, definition) in definitions(rules) {
            let committed = fs::read_to_string(repository(folder).join(file)).unwrap_or_default();
            assert!(
                committed == yaml(&definition).unwrap(),
                "{folder}/{file} is out of date: run `cargo run -p crds --bin crdgen` and commit what it writes"
            );
            expected_files.push(file.to_owned());
        }
        let mut files: Vec<_> = fs::read_dir(repository(folder))
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_file())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        files.sort();
        expected_files.sort();
        assert_eq!(files, expected_files, "{folder} holds a file that nothing generates");
    }
}

/// Older servers drop the rules and their kubectl refuses them, so that set must be free of them.
#[test]
fn only_the_set_for_newer_servers_has_rules() {
    let has_rules = |rules| {
        definitions(rules).iter().any(|(_, crd)| yaml(crd).unwrap().contains("x-kubernetes-validations"))
    };
    assert!(has_rules(Rules::Cel));
    assert!(!has_rules(Rules::None));
}

/// A client of the older version must be able to write back what it read without losing what it does not know.
#[test]
fn both_versions_of_a_disk_pool_have_the_same_schema() {
    for rules in [Rules::Cel, Rules::None] {
        let definitions = definitions(rules);
        let versions = &definitions[0].1.spec.versions;
        let names: Vec<_> = versions.iter().map(|v| (v.name.as_str(), v.served, v.storage)).collect();
        assert_eq!(names, [("v1beta3", true, true), ("v1beta2", true, false)]);
        assert_eq!(versions[0].schema, versions[1].schema);
    }
}

/// `kubectl explain` is the manual of these types.
#[test]
fn every_field_is_documented_and_typed() {
    fn check(path: &str, schema: &Value, missing: &mut Vec<String>) {
        if schema.get("type").is_none() && schema.get("x-kubernetes-int-or-string").is_none() {
            missing.push(format!("{path} has no type"));
        }
        assert!(schema.get("x-kubernetes-preserve-unknown-fields").is_none(), "{path} takes anything");
        for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let path = format!("{path}.{name}");
            if property.get("description").is_none() {
                missing.push(format!("{path} has no description"));
            }
            check(&path, property, missing);
        }
        if let Some(items) = schema.get("items") {
            check(&format!("{path}[]"), items, missing);
        }
    }
    let mut missing = Vec::new();
    for (file, definition) in definitions(Rules::Cel) {
        for version in &definition.spec.versions {
            let schema = serde_json::to_value(&version.schema).unwrap();
            let root = &schema["openAPIV3Schema"];
            for part in ["spec", "status"] {
                check(&format!("{file} {} {part}", version.name), &root["properties"][part], &mut missing);
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn the_disk_pools_of_the_example_are_read() {
    let documents = documents("examples/diskpool.yaml");
    let versions: Vec<_> = documents.iter().map(|d| d["apiVersion"].as_str().unwrap()).collect();
    assert_eq!(versions, ["openebs.io/v1beta3", "openebs.io/v1beta3", "openebs.io/v1beta2"]);
    for document in documents {
        let pool: DiskPool = serde_json::from_value(document).unwrap();
        assert_eq!(pool.spec.disks.len(), 1);
    }
}

#[test]
fn the_volume_of_the_example_is_mirrored_and_published() {
    let [document] = documents("examples/volume.yaml").try_into().unwrap();
    let volume: Volume = serde_json::from_value(document).unwrap();
    assert_eq!(volume.spec.size.bytes(), 1 << 30);
    assert_eq!(volume.spec.replicas, 2);
    assert_eq!(volume.spec.publish.unwrap().allowed_hosts, ["*"]);
}
