//! The manifests under `examples/`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use control_api::NodeTopology;
use csi::host::mount::FileSystem;
use csi::params::{ConnectParams, Params};
use serde_json::Value;

use super::{documents, title, types};

/// The provisioner of our classes.
const DRIVER: &str = "io.openebs.csi-mayastor";

fn examples() -> BTreeMap<String, Vec<Value>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, documents(&fs::read_to_string(&path).unwrap()))
        })
        .collect()
}

#[test]
fn every_example_is_of_a_kind_that_kubernetes_or_we_know() {
    for (file, documents) in examples() {
        assert!(!documents.is_empty(), "{file}");
        for document in documents {
            if let Err(error) = types::check(&document) {
                panic!("{file}: {}: {error:#}", title(&document));
            }
        }
    }
}

/// A parameter that the driver refuses would be found with the first claim.
#[test]
fn classes_ask_for_what_the_driver_knows() {
    let asked: BTreeMap<_, _> = examples()["storageclass.yaml"]
        .iter()
        .map(|class| {
            assert_eq!(class["provisioner"], DRIVER);
            let params: HashMap<String, String> =
                serde_json::from_value(class["parameters"].clone()).unwrap();
            (class["metadata"]["name"].as_str().unwrap().to_owned(), Params::parse(&params).unwrap())
        })
        .collect();
    let replicas: Vec<_> = asked.iter().map(|(name, params)| (name.as_str(), params.replicas)).collect();
    assert_eq!(
        replicas,
        [
            ("mayastor-apart", 1),
            ("mayastor-one-zone", 2),
            ("mayastor-replicated", 3),
            ("mayastor-single", 1),
            ("mayastor-ssd-zones", 2),
            ("mayastor-thin", 2)
        ]
    );
    let Some(NodeTopology::Labelled(near)) = &asked["mayastor-one-zone"].topology.node_topology else {
        panic!("near each other")
    };
    assert_eq!(near.affinitykey, ["topology.kubernetes.io/zone"]);
    assert!(asked["mayastor-thin"].thin);
    let grouped: Vec<_> =
        asked.iter().filter(|(_, params)| params.sts_affinity_group).map(|(name, _)| name).collect();
    assert_eq!(grouped, ["mayastor-apart"]);
    assert_eq!(asked["mayastor-replicated"].fs_type, Some(FileSystem::Xfs));
    let topology = &asked["mayastor-ssd-zones"].topology;
    assert!(topology.node_topology.is_some() && topology.pool_topology.is_some());
}

#[test]
fn a_class_for_volumes_that_exist_changes_the_number_of_replicas() {
    let examples = examples();
    let [class] = &examples["volumeattributesclass.yaml"][..] else { panic!("one class") };
    assert_eq!(class["driverName"], DRIVER);
    assert_eq!(class["parameters"], serde_json::json!({ "repl": "2" }));
}

/// Nobody should have to guess which class an example means.
#[test]
fn claims_ask_for_classes_of_the_examples() {
    let all: Vec<_> = examples().into_values().flatten().collect();
    let classes: Vec<_> = all
        .iter()
        .filter(|document| document["kind"] == "StorageClass")
        .map(|class| class["metadata"]["name"].as_str().unwrap())
        .collect();
    let claims = all
        .iter()
        .filter(|document| document["kind"] == "PersistentVolumeClaim")
        .map(|claim| &claim["spec"])
        .chain(all.iter().filter_map(|set| set.pointer("/spec/volumeClaimTemplates/0/spec")));
    for claim in claims {
        let class = claim["storageClassName"].as_str().unwrap();
        // A static volume has none, so that nobody makes another.
        assert!(class.is_empty() || classes.contains(&class), "{class} is none of {classes:?}");
    }
}

/// What is on it decides how it is mounted, and nothing that Kubernetes does takes it away.
#[test]
fn an_adopted_volume_keeps_its_data() {
    let examples = examples();
    let [persistent, claim, pod] = &examples["adopt-volume.yaml"][..] else { panic!("three documents") };
    let (spec, asked) = (&persistent["spec"], &claim["spec"]);
    assert_eq!(spec["csi"]["driver"], DRIVER);
    spec["csi"]["volumeHandle"].as_str().unwrap().parse::<uuid::Uuid>().unwrap();
    let context: HashMap<String, String> =
        serde_json::from_value(spec["csi"]["volumeAttributes"].clone()).unwrap();
    assert_eq!(ConnectParams::parse(&context).unwrap().nr_io_queues, Some(2));
    assert_eq!(spec["csi"].get("fsType"), None, "another file system than it has would not be mounted");
    assert_eq!(spec["persistentVolumeReclaimPolicy"], "Retain");
    // Each names the other: neither is bound to anything else.
    assert_eq!(spec["claimRef"]["name"], claim["metadata"]["name"]);
    assert_eq!(spec["claimRef"]["namespace"], claim["metadata"]["namespace"]);
    assert_eq!(asked["volumeName"], persistent["metadata"]["name"]);
    for field in ["storageClassName", "accessModes"] {
        assert_eq!(asked[field], spec[field]);
    }
    assert_eq!(asked["resources"]["requests"]["storage"], spec["capacity"]["storage"]);
    assert_eq!(
        pod.pointer("/spec/volumes/0/persistentVolumeClaim/claimName"),
        claim.pointer("/metadata/name")
    );
    // The Volume that it speaks of.
    let [volume] = &examples["volume.yaml"][..] else { panic!("one document") };
    assert_eq!(volume["metadata"]["name"], persistent["metadata"]["name"]);
    assert_eq!(volume["spec"]["size"], spec["capacity"]["storage"]);
}

#[test]
fn the_static_volume_is_the_one_that_its_persistent_volume_names() {
    let examples = examples();
    let [volume, persistent, claim] = &examples["static-pv.yaml"][..] else { panic!("three documents") };
    assert_eq!(persistent["spec"]["csi"]["driver"], DRIVER);
    assert_eq!(persistent["spec"]["csi"]["volumeHandle"], volume["spec"]["uuid"]);
    assert_eq!(persistent["spec"]["claimRef"]["name"], claim["metadata"]["name"]);
    assert_eq!(claim["spec"]["volumeName"], persistent["metadata"]["name"]);
    // Deleting the claim must not delete data that was there before it.
    assert_eq!(persistent["spec"]["persistentVolumeReclaimPolicy"], "Retain");
    assert_eq!(volume["spec"]["deletionPolicy"], "Retain");
}
