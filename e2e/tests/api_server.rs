//! Our kinds on a real API server: what it takes, what it refuses, what it shows.

// A test that cannot set up has failed.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use e2e::cluster::Cluster;
use e2e::etcd::Etcd;
use e2e::kubectl::Kubectl;
use e2e::place::Place;
use e2e::process::Processes;
use e2e::run_dir::RunDir;
use e2e::wait::wait_until;

fn example(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name)).unwrap()
}

/// What the server says; kubectl's own checks are left out, which come and go with the documents it has fetched.
async fn refusal(kubectl: &Kubectl, manifest: &str) -> String {
    format!("{:#}", kubectl.apply_unchecked(manifest).await.expect_err(manifest))
}

fn volume(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: openebs.io/v1alpha1\nkind: Volume\nmetadata: {{name: {name}, namespace: mayastor}}\nspec: {spec}\n"
    )
}

fn disk_pool(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: openebs.io/v1beta3\nkind: DiskPool\nmetadata: {{name: {name}, namespace: mayastor}}\nspec: {spec}\n"
    )
}

/// One server for all of it: its start costs more than every check together.
#[tokio::test]
async fn an_api_server_takes_our_kinds_refuses_bad_input_and_shows_columns() {
    let run = RunDir::new("api-server").unwrap();
    let processes = Processes::start(&run.path().join("logs")).unwrap();
    let mut cluster = Cluster::own(&processes, run.path(), Place::loopback()).await.unwrap();
    cluster.apply_definitions().await.unwrap();
    // A second time changes nothing: `kubectl apply` of a release over the last one.
    cluster.apply_definitions().await.unwrap();
    cluster.create_namespace("mayastor").await.unwrap();

    let kubectl = cluster.kubectl();
    the_examples_are_accepted(kubectl).await;
    bad_input_is_refused_by_the_schema(kubectl).await;
    every_field_is_explained(kubectl).await;
    a_slip_of_the_pen_is_told(kubectl).await;
    columns_show_the_status_in_human_units(kubectl).await;
    an_older_client_keeps_what_it_does_not_know(kubectl).await;
    what_was_stored_survives_both_servers(&mut cluster, &processes).await;
    run.passed();
}

async fn the_examples_are_accepted(kubectl: &Kubectl) {
    for name in ["diskpool.yaml", "volume.yaml"] {
        kubectl.apply(&example(name)).await.unwrap();
    }
    let volume = kubectl.get(&["-n", "mayastor", "msv", "mirrored"]).await.unwrap();
    // Defaults are the schema's, so that every reader sees the same.
    assert_eq!(volume["spec"]["policy"]["selfHeal"], true);
    assert_eq!(volume["spec"]["policy"]["sparePreference"], "MostFree");
    let pools = kubectl.get(&["-n", "mayastor", "dsp"]).await.unwrap();
    assert_eq!(pools["items"].as_array().unwrap().len(), 3);
    // As other operators have written them.
    kubectl
        .apply(&disk_pool("nulls", "{node: a, disks: [/dev/sdb], topology: null, encryptionConfig: null}"))
        .await
        .unwrap();
    kubectl.run(&["-n", "mayastor", "delete", "dsp", "nulls"]).await.unwrap();
    let all = kubectl.run(&["-n", "mayastor", "get", "mayastor", "-o", "name"]).await.unwrap();
    assert_eq!(all.lines().count(), 4, "{all}");
}

async fn bad_input_is_refused_by_the_schema(kubectl: &Kubectl) {
    let cases = [
        (volume("bad", "{size: ten}"), "spec.size", "should match"),
        (volume("bad", "{size: -1}"), "spec.size", "greater than or equal to 1"),
        (volume("bad", "{size: 0Gi}"), "spec.size", "should match"),
        (volume("bad", "{size: 10GiB}"), "spec.size", "should match"),
        (volume("bad", "{replicas: 2}"), "spec.size", "Required value"),
        (volume("bad", "{size: 1Gi, replicas: 0}"), "spec.replicas", "greater than or equal to 1"),
        (
            volume("bad", "{size: 1Gi, deletionPolicy: Burn}"),
            "spec.deletionPolicy",
            "supported values: \"Delete\", \"Retain\"",
        ),
        (
            volume("bad", "{size: 1Gi, policy: {replaceAfter: soon}}"),
            "spec.policy.replaceAfter",
            "should match",
        ),
        (volume("bad", "{size: 1Gi, uuid: mine}"), "spec.uuid", "should match"),
        (volume("bad", "{size: 1Gi, publish: {allowedHosts: [everybody]}}"), "allowedHosts", "should match"),
        (disk_pool("bad", "{node: a, disks: []}"), "spec.disks", "at least 1"),
        (disk_pool("bad", "{node: a, disks: [/dev/sdb, /dev/sdc]}"), "spec.disks", "at most 1"),
        (disk_pool("bad", "{node: '', disks: [/dev/sdb]}"), "spec.node", "at least 1"),
        (
            disk_pool("bad", "{node: a, disks: [/dev/sdb], maxExpansion: lots}"),
            "maxExpansion",
            "should match",
        ),
    ];
    for (manifest, field, why) in cases {
        let said = refusal(kubectl, &manifest).await;
        assert!(said.contains(field) && said.contains(why), "{manifest}: {said}");
    }
    // Plain bytes need no quotes, and an absurd size is no reason to refuse: no pool will hold it.
    for (name, spec) in [("bytes", "{size: 10737418240}"), ("absurd", "{size: 999999999Pi}")] {
        kubectl.apply(&volume(name, spec)).await.unwrap();
    }
}

async fn every_field_is_explained(kubectl: &Kubectl) {
    for (field, words) in [
        ("volume.spec.size", "cannot"),
        ("volume.spec.publish.allowedHosts", "Empty admits nobody"),
        ("volume.status.target.connect", "connects a Linux host"),
        ("diskpool.spec.disks", "It must be empty"),
        ("nexus.spec.node", "moves the target"),
        ("mayastornode.status.availableDisks", "a DiskPool could use"),
    ] {
        // The server publishes the documentation of new kinds a moment after it serves them.
        let explain = || async move { kubectl.run(&["explain", field]).await };
        let said = wait_until(Duration::from_secs(30), "the documentation", explain).await.unwrap();
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(words), "{field}: {said}");
    }
}

/// An unknown field would be dropped in silence otherwise, and the user be left with one replica.
async fn a_slip_of_the_pen_is_told(kubectl: &Kubectl) {
    let error = kubectl.apply(&volume("bad", "{size: 1Gi, replicsa: 3}")).await.unwrap_err();
    assert!(format!("{error:#}").contains("unknown field \"replicsa\""), "{error:#}");
}

async fn columns_show_the_status_in_human_units(kubectl: &Kubectl) {
    let status = serde_json::json!({
        "cr_state": "Created", "pool_status": "Online",
        "capacity": 10_737_418_240_u64, "used": 1_500_000_000, "available": 9_237_418_240_u64,
        "capacity_q": "10 GiB", "used_q": "1.3 GiB", "available_q": "8.6 GiB",
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "Online", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"
        }]
    });
    patch_status(kubectl, "openebs.io/v1beta3", "diskpools", "pool-1", &status).await;
    let table = kubectl.run(&["-n", "mayastor", "get", "dsp", "pool-1"]).await.unwrap();
    let columns: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        columns,
        ["NAME", "NODE", "STATE", "STATUS", "READY", "REASON", "CAPACITY", "USED", "AVAILABLE", "AGE"]
    );
    for shown in ["node-1", "Created", "Online", "True", "10 GiB", "1.3 GiB", "8.6 GiB"] {
        assert!(table.contains(shown), "{table}");
    }

    let status = serde_json::json!({
        "state": "Degraded", "size": "1 GiB", "replicasReady": "1/2",
        "target": { "node": "node-2", "state": "Degraded" },
        "usage": { "allocated": "12 MiB", "allocatedBytes": 12_582_912, "totalBytes": 25_165_824 },
        "conditions": [{
            "type": "Ready", "status": "False", "reason": "ReplicaLost", "message": "replica on node-1 is gone",
            "lastTransitionTime": "2026-01-01T00:00:00Z"
        }]
    });
    patch_status(kubectl, "openebs.io/v1alpha1", "volumes", "mirrored", &status).await;
    let table = kubectl.run(&["-n", "mayastor", "get", "msv", "mirrored"]).await.unwrap();
    for shown in ["Degraded", "1 GiB", "1/2", "node-2", "12 MiB", "False", "ReplicaLost"] {
        assert!(table.contains(shown), "{table}");
    }
}

/// This kubectl cannot patch a subresource, so the whole object goes to the status by its path.
async fn patch_status(
    kubectl: &Kubectl,
    version: &str,
    plural: &str,
    name: &str,
    status: &serde_json::Value,
) {
    let path = format!("/apis/{version}/namespaces/mayastor/{plural}/{name}");
    let mut object: serde_json::Value =
        serde_json::from_str(&kubectl.run(&["get", "--raw", &path]).await.unwrap()).unwrap();
    object["status"] = status.clone();
    kubectl
        .run_with_input(&["replace", "--raw", &format!("{path}/status"), "-f", "-"], &object.to_string())
        .await
        .unwrap();
}

/// The server prunes what the version of a request does not know; so both versions know the same.
async fn an_older_client_keeps_what_it_does_not_know(kubectl: &Kubectl) {
    kubectl
        .apply(&disk_pool("grows", "{node: node-9, disks: [/dev/sdz], clusterSize: 4MiB, maxExpansion: 20x}"))
        .await
        .unwrap();
    let old = kubectl.get(&["-n", "mayastor", "diskpools.v1beta2.openebs.io", "grows"]).await.unwrap();
    assert_eq!(old["apiVersion"], "openebs.io/v1beta2");
    kubectl.run_with_input(&["replace", "-f", "-"], &old.to_string()).await.unwrap();
    let new = kubectl.get(&["-n", "mayastor", "diskpools.v1beta3.openebs.io", "grows"]).await.unwrap();
    assert_eq!(new["spec"]["maxExpansion"], "20x");
    assert_eq!(new["spec"]["clusterSize"], "4MiB");
}

async fn what_was_stored_survives_both_servers(cluster: &mut Cluster, processes: &Processes) {
    let own = cluster.own_servers().unwrap();
    own.server.kill();
    own.etcd.kill();
    own.etcd.resume(processes).await.unwrap();
    own.server.resume(processes).await.unwrap();
    // Kinds are served a moment after the server is ready.
    wait_until(Duration::from_secs(30), "the volume to be served again", || async {
        cluster.kubectl().get(&["-n", "mayastor", "msv", "mirrored"]).await
    })
    .await
    .unwrap();
}

/// The faults that the stories inject into the registry are real ones.
#[tokio::test]
async fn an_etcd_can_be_killed_frozen_and_wiped() {
    let run = RunDir::new("etcd").unwrap();
    let processes = Processes::start(&run.path().join("logs")).unwrap();
    let mut etcd = Etcd::start(&processes, run.path(), "etcd", Place::loopback()).await.unwrap();
    let member = run.path().join("etcd/member");
    assert!(member.is_dir());
    etcd.freeze().unwrap();
    etcd.thaw().unwrap();
    etcd.stop().await.unwrap();
    assert!(etcd.freeze().is_err());
    etcd.resume(&processes).await.unwrap();
    fs::write(member.join("mark"), "").unwrap();
    etcd.kill();
    etcd.resume(&processes).await.unwrap();
    assert!(member.join("mark").exists());
    etcd.wipe(&processes).await.unwrap();
    assert!(member.is_dir() && !member.join("mark").exists());
    run.passed();
}
