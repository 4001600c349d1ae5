//! What the operator takes from Kubernetes that is not its own: labels of nodes, and PersistentVolumes. The API server,
//! the operator and the engines are real; no controller of Kubernetes runs, so what those do is done by hand.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use control_api::{Client, CreateVolumeBody, ErrorKind, VolumePolicy};
use e2e::lab::{Lab, NAMESPACE, Parts};
use e2e::steps::step;
use e2e::wait::wait_until;
use serde_json::{Value, json};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than several looks of the operator, which looks every two seconds here.
const LOOKS: Duration = Duration::from_secs(8);
const ZONE: &str = "topology.kubernetes.io/zone";
const DRIVER: &str = "io.openebs.csi-mayastor";

#[tokio::test]
async fn the_operator_follows_nodes_and_persistent_volumes() -> Result<()> {
    let parts = Parts { engines: 2, hosts: 0, operators: 1, kubernetes: true };
    let mut lab =
        step("an API server, an operator, two engines", Lab::start("kubernetes-watches", parts)).await?;
    step("nodes have the zones that Kubernetes gives them", zones_come_from_kubernetes(&lab)).await?;
    let rest = step("pools", lab.create_pools()).await?;
    step("c2_ a PersistentVolume holds the deletion of its Volume", c2_held(&lab, &rest)).await?;
    step("c6_ what a reclaimed PersistentVolume leaves behind is deleted", c6_reclaimed(&lab, &rest)).await?;
    step("c6_ everything else is told of and kept", c6_kept(&lab, &rest)).await?;
    step("c6_ what happened while no operator ran", c6_while_away(&mut lab)).await?;
    lab.run.passed();
    Ok(())
}

async fn kubectl(lab: &Lab, args: &[&str]) -> Result<String> {
    lab.kubernetes()?.kubectl().run(args).await
}

async fn zones_come_from_kubernetes(lab: &Lab) -> Result<()> {
    let rest = lab.rest().await?;
    let zone_of = async |node: &str| -> Result<Option<String>> {
        let labels = rest.node(node).await?.spec.map(|spec| spec.labels).unwrap_or_default();
        Ok(labels.get(ZONE).cloned())
    };
    ensure!(zone_of("node-1").await?.is_none());
    for (name, zone) in [("node-1", "a"), ("node-2", "b"), ("node-without-engine", "c")] {
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "labels": { ZONE: zone, "topology.kubernetes.io/region": "r" } },
        });
        lab.kubernetes()?.kubectl().apply(&node.to_string()).await?;
    }
    let becomes = async |node: &str, zone: &str| {
        wait_until(PATIENCE, &format!("{node} to be in zone {zone}"), || async {
            let found = zone_of(node).await?;
            ensure!(found.as_deref() == Some(zone), "{found:?}");
            Ok(())
        })
        .await
    };
    becomes("node-1", "a").await?;
    becomes("node-2", "b").await?;
    kubectl(lab, &["label", "node", "node-2", "--overwrite", &format!("{ZONE}=c")]).await?;
    becomes("node-2", "c").await?;
    rest.label_node("node-2", ZONE, "d", true).await?;
    becomes("node-2", "d").await?;
    rest.unlabel_node("node-2", ZONE).await?;
    becomes("node-2", "c").await?;
    wait_until(PATIENCE, "MayastorNode to show it", || async {
        let shown = lab.kubernetes()?.kubectl().get(&["-n", NAMESPACE, "mayastornode", "node-2"]).await?;
        ensure!(shown["status"]["labels"][ZONE] == "c", "{:#}", shown["status"]);
        Ok(())
    })
    .await
}

/// A volume as csi-controller makes them, or as somebody does by REST.
async fn volume(rest: &Client, made_by: Option<&str>) -> Result<Uuid> {
    let id = Uuid::new_v4();
    let labels = made_by.map(|by| BTreeMap::from([("openebs.io/created-by".to_owned(), by.to_owned())]));
    let body = CreateVolumeBody {
        policy: VolumePolicy { self_heal: true },
        replicas: 1,
        size: 8 << 20,
        thin: true,
        topology: None,
        affinity_group: None,
        labels,
    };
    rest.create_volume(id, &body).await?;
    Ok(id)
}

fn name_of(id: Uuid) -> String {
    format!("pvc-{id}")
}

async fn persistent(lab: &Lab, id: Uuid, policy: &str) -> Result<()> {
    let persistent = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": name_of(id) },
        "spec": {
            "capacity": { "storage": "8Mi" }, "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": policy,
            "csi": { "driver": DRIVER, "volumeHandle": id },
        },
    });
    lab.kubernetes()?.kubectl().apply(&persistent.to_string()).await?;
    wait_until(PATIENCE, "the operator to see it", || async {
        let name = id.to_string();
        kubectl(lab, &["-n", NAMESPACE, "get", "volume", &name]).await.map(drop)
    })
    .await
}

/// Begins the deletion; the API server's admission has put a finalizer on it that its controller takes off.
async fn begin_removal(lab: &Lab, id: Uuid) -> Result<()> {
    kubectl(lab, &["delete", "pv", &name_of(id), "--wait=false"]).await.map(drop)
}

async fn end_removal(lab: &Lab, id: Uuid) -> Result<()> {
    let patch = r#"{"metadata":{"finalizers":null}}"#;
    kubectl(lab, &["patch", "pv", &name_of(id), "--type=merge", "-p", patch]).await?;
    wait_until(PATIENCE, "the PersistentVolume to be gone", || async {
        let found = kubectl(lab, &["get", "pv", &name_of(id), "--ignore-not-found", "-o", "name"]).await?;
        ensure!(found.trim().is_empty(), "{found}");
        Ok(())
    })
    .await
}

async fn gone(rest: &Client, id: Uuid) -> Result<()> {
    wait_until(PATIENCE, "the volume to be gone", || async {
        match rest.volume(id).await {
            Err(error) if error.kind() == Some(ErrorKind::NotFound) => Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    })
    .await
}

async fn until_said(lab: &Lab, id: Uuid, condition: &str, reason: &str) -> Result<Value> {
    wait_until(PATIENCE, &format!("{condition} to be {reason}"), || async {
        let cr = lab.kubernetes()?.kubectl().get(&["-n", NAMESPACE, "volume", &id.to_string()]).await?;
        let conditions = cr["status"]["conditions"].as_array().context("it has conditions")?;
        let said = conditions.iter().find(|said| said["type"] == condition && said["reason"] == reason);
        said.cloned().with_context(|| format!("{conditions:#?}"))
    })
    .await
}

async fn c2_held(lab: &Lab, rest: &Client) -> Result<()> {
    let id = volume(rest, None).await?;
    persistent(lab, id, "Retain").await?;
    kubectl(lab, &["-n", NAMESPACE, "delete", "volume", &id.to_string(), "--wait=false"]).await?;
    let said = until_said(lab, id, "DeletionBlocked", "InUse").await?;
    ensure!(said["message"].as_str().is_some_and(|text| text.contains(&name_of(id))), "{said:#}");
    rest.volume(id).await.context("its data stays")?;
    begin_removal(lab, id).await?;
    end_removal(lab, id).await?;
    gone(rest, id).await
}

async fn c6_reclaimed(lab: &Lab, rest: &Client) -> Result<()> {
    let id = volume(rest, Some(DRIVER)).await?;
    persistent(lab, id, "Delete").await?;
    begin_removal(lab, id).await?;
    end_removal(lab, id).await?;
    gone(rest, id).await
}

async fn c6_kept(lab: &Lab, rest: &Client) -> Result<()> {
    let retained = volume(rest, Some(DRIVER)).await?;
    persistent(lab, retained, "Retain").await?;
    // Somebody thinks again while it goes.
    let saved = volume(rest, Some(DRIVER)).await?;
    persistent(lab, saved, "Delete").await?;
    begin_removal(lab, saved).await?;
    let retain = r#"{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}"#;
    kubectl(lab, &["patch", "pv", &name_of(saved), "--type=merge", "-p", retain]).await?;
    end_removal(lab, saved).await?;
    begin_removal(lab, retained).await?;
    end_removal(lab, retained).await?;
    let by_hand = volume(rest, None).await?;
    persistent(lab, by_hand, "Delete").await?;
    begin_removal(lab, by_hand).await?;
    end_removal(lab, by_hand).await?;
    let never_had_one = volume(rest, Some(DRIVER)).await?;
    for id in [retained, saved, never_had_one] {
        until_said(lab, id, "Orphaned", "RemovalNotSeen").await?;
    }
    stays(rest, &[retained, saved, by_hand, never_had_one]).await?;
    // Who wants it says so with another PersistentVolume.
    persistent(lab, retained, "Retain").await?;
    wait_until(PATIENCE, "the condition to go", || async {
        let cr = lab.kubernetes()?.kubectl().get(&["-n", NAMESPACE, "volume", &retained.to_string()]).await?;
        let conditions = cr["status"]["conditions"].as_array().context("it has conditions")?;
        ensure!(conditions.iter().all(|said| said["type"] != "Orphaned"), "{conditions:#?}");
        Ok(())
    })
    .await
}

async fn stays(rest: &Client, ids: &[Uuid]) -> Result<()> {
    let until = tokio::time::Instant::now() + LOOKS;
    while tokio::time::Instant::now() < until {
        for id in ids {
            rest.volume(*id).await.with_context(|| format!("volume {id} is deleted"))?;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

async fn c6_while_away(lab: &mut Lab) -> Result<()> {
    let rest = lab.rest().await?;
    let seen_going = volume(&rest, Some(DRIVER)).await?;
    let not_seen = volume(&rest, Some(DRIVER)).await?;
    persistent(lab, seen_going, "Delete").await?;
    persistent(lab, not_seen, "Delete").await?;
    begin_removal(lab, seen_going).await?;
    // The note is in the registry before the volume would be looked for again.
    wait_until(PATIENCE, "the operator to note it", || async {
        let keys = lab.etcd.keys("/openebs.io").await?;
        let key = keys.iter().find(|key| key.ends_with(&format!("VolumeSpec/{seen_going}")));
        let spec = lab.etcd.get(key.context("it is registered")?).await?.context("it is there")?;
        ensure!(spec.contains("reclaimed_with"), "{spec}");
        Ok(())
    })
    .await?;
    lab.operators[0].kill();
    end_removal(lab, seen_going).await?;
    begin_removal(lab, not_seen).await?;
    end_removal(lab, not_seen).await?;
    lab.operators[0].start(&lab.processes).await?;
    let rest = lab.rest().await?;
    gone(&rest, seen_going).await?;
    until_said(lab, not_seen, "Orphaned", "RemovalNotSeen").await?;
    stays(&rest, &[not_seen]).await
}
