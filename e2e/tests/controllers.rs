//! The CR controllers on a real API server, before a control plane in memory.

// A test that cannot set up has failed.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use crds::mayastor_node::{MayastorNodeStatus, NodeState};
use e2e::cluster::Cluster;
use e2e::kubectl::Kubectl;
use e2e::place::Place;
use e2e::process::Processes;
use e2e::run_dir::RunDir;
use e2e::wait::wait_until;
use kube::config::{KubeConfigOptions, Kubeconfig};
use operator::kube::Controllers;
use operator::kube::memory::{Call, MemoryPlane};
use operator::kube::port::{NodeObject, Refusal, RefusalKind};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "mayastor";
const SOON: Duration = Duration::from_secs(60);

/// Controllers that run, and what they talk to.
struct Lab {
    cluster: Cluster,
    plane: Arc<MemoryPlane>,
    stop: CancellationToken,
    controllers: JoinHandle<()>,
}

impl Lab {
    async fn start(run: &RunDir, processes: &Processes) -> Self {
        let cluster = Cluster::own(processes, run.path(), Place::loopback()).await.unwrap();
        cluster.apply_definitions().await.unwrap();
        cluster.create_namespace(NAMESPACE).await.unwrap();
        let plane = Arc::new(MemoryPlane::default());
        let (stop, controllers) = start_controllers(&cluster, &plane).await;
        Self { cluster, plane, stop, controllers }
    }

    /// What an operator that is killed and started again does to the controllers.
    async fn restart_controllers(&mut self) {
        self.controllers.abort();
        let (stop, controllers) = start_controllers(&self.cluster, &self.plane).await;
        (self.stop, self.controllers) = (stop, controllers);
    }

    async fn stop(self) {
        self.stop.cancel();
        self.controllers.await.unwrap();
    }

    fn kubectl(&self) -> &Kubectl {
        self.cluster.kubectl()
    }

    async fn get(&self, kind: &str, name: &str) -> Result<Value> {
        self.kubectl().get(&["-n", NAMESPACE, kind, name]).await
    }

    async fn patch(&self, kind: &str, name: &str, patch: &str) {
        self.kubectl()
            .run(&["-n", NAMESPACE, "patch", kind, name, "--type=merge", "-p", patch])
            .await
            .unwrap();
    }

    async fn delete(&self, kind: &str, name: &str) {
        self.kubectl().run(&["-n", NAMESPACE, "delete", kind, name, "--wait=false"]).await.unwrap();
    }

    async fn until(&self, what: &str, kind: &str, name: &str, check: impl Fn(&Value) -> bool) -> Value {
        wait_until(SOON, what, || async {
            let cr = self.get(kind, name).await?;
            ensure!(check(&cr), "{kind} {name} is {cr:#}");
            Ok(cr)
        })
        .await
        .unwrap()
    }

    async fn until_gone(&self, kind: &str, name: &str) {
        wait_until(SOON, "it to be gone", || async {
            let found = self
                .kubectl()
                .run(&["-n", NAMESPACE, "get", kind, name, "--ignore-not-found", "-o", "name"])
                .await?;
            ensure!(found.trim().is_empty(), "{found} is there");
            Ok(())
        })
        .await
        .unwrap();
    }
}

async fn start_controllers(
    cluster: &Cluster,
    plane: &Arc<MemoryPlane>,
) -> (CancellationToken, JoinHandle<()>) {
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let client = kube::Client::try_from(config).unwrap();
    let controllers = Controllers::new(client, NAMESPACE, "operator-test", Arc::clone(plane));
    let stop = CancellationToken::new();
    let task = tokio::spawn({
        let stop = stop.clone();
        async move { controllers.run(stop).await }
    });
    (stop, task)
}

fn condition<'a>(cr: &'a Value, type_: &str) -> Option<&'a Value> {
    cr["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == type_)
}

fn says(cr: &Value, type_: &str, status: &str, reason: &str) -> bool {
    condition(cr, type_)
        .is_some_and(|c| c["status"] == status && (reason.is_empty() || c["reason"] == reason))
}

fn is_ready(cr: &Value) -> bool {
    says(cr, "Ready", "True", "")
}

fn pools() -> String {
    let pool = |n: u8| {
        format!(
            "---\napiVersion: openebs.io/v1beta2\nkind: DiskPool\nmetadata: {{name: pool-{n}, namespace: \
             {NAMESPACE}}}\nspec: {{node: node-{n}, disks: [/dev/sd{n}]}}\n"
        )
    };
    [1, 2, 3].map(pool).concat()
}

fn volume(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: openebs.io/v1alpha1\nkind: Volume\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
         spec: {spec}\n"
    )
}

/// One server and one set of controllers for all stories: each uses names of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_and_registry_come_together_and_nothing_is_lost_on_the_way() {
    let run = RunDir::new("controllers").unwrap();
    let processes = Processes::start(&run.path().join("logs")).unwrap();
    let mut lab = Lab::start(&run, &processes).await;

    pools_become_ready(&lab).await;
    an_engine_is_shown(&lab).await;
    a_published_volume_is_ready_and_says_how_to_connect(&lab).await;
    c2_a_published_volume_waits_with_its_deletion(&lab).await;
    a_refusal_is_told_and_tried_again(&lab).await;
    c4_wishes_and_changes_elsewhere_meet(&mut lab).await;
    a_shrink_is_refused_without_cel(&lab).await;
    a_cr_deleted_by_force_comes_back(&lab).await;
    a_volume_deleted_elsewhere_takes_its_cr_along(&lab).await;
    retained_data_is_found_again(&lab).await;
    c2_a_pool_with_replicas_is_not_deleted(&lab).await;
    c1_a_lost_registry_leaves_resources_unclaimed(&mut lab).await;
    lab.stop().await;
    run.passed();
}

async fn pools_become_ready(lab: &Lab) {
    lab.kubectl().apply(&pools()).await.unwrap();
    lab.kubectl().wait(&["-n", NAMESPACE, "dsp", "--all"], "Ready", SOON).await.unwrap();
    let pool = lab.get("dsp", "pool-1").await.unwrap();
    assert_eq!(pool["status"]["cr_state"], "Created");
    assert_eq!(pool["status"]["capacity_q"], "10 GiB");
    assert_eq!(pool["status"]["clusterId"], "cluster-1");
    assert_eq!(pool["metadata"]["finalizers"][0], "openebs.io/diskpool-protection");
    assert_eq!(pool["status"]["observedGeneration"], pool["metadata"]["generation"]);
    lab.patch("dsp", "pool-1", r#"{"spec":{"topology":{"labelled":{"media":"ssd"}}}}"#).await;
    wait_until(SOON, "the label to reach the registry", || async {
        ensure!(lab.plane.calls().contains(&"label_pool pool-1".to_owned()), "{:?}", lab.plane.calls());
        Ok(())
    })
    .await
    .unwrap();
    // Older servers have no rules, so the operator refuses what they would.
    lab.patch("dsp", "pool-1", r#"{"spec":{"node":"elsewhere"}}"#).await;
    lab.until("the refusal", "dsp", "pool-1", |cr| says(cr, "Accepted", "False", "Immutable")).await;
    lab.patch("dsp", "pool-1", r#"{"spec":{"node":"node-1"}}"#).await;
    lab.until("peace", "dsp", "pool-1", |cr| says(cr, "Accepted", "True", "")).await;
}

async fn an_engine_is_shown(lab: &Lab) {
    let status = MayastorNodeStatus {
        state: NodeState::Online,
        version: Some("0.1.0".to_owned()),
        grpc_endpoint: Some("192.0.2.1:10124".to_owned()),
        schedulable: true,
        pool_count: 1,
        ..MayastorNodeStatus::default()
    };
    lab.plane.register("node-1", NodeObject { status, problem: None });
    let node = lab.until("the node", "msn", "node-1", is_ready).await;
    assert_eq!(node["status"]["grpcEndpoint"], "192.0.2.1:10124");
}

async fn a_published_volume_is_ready_and_says_how_to_connect(lab: &Lab) {
    let spec = "{size: 1Gi, replicas: 2, publish: {allowedHosts: ['*']}}";
    lab.kubectl().apply(&volume("served", spec)).await.unwrap();
    let cr = lab.until("it to be served", "msv", "served", is_ready).await;
    let uuid = cr["metadata"]["uid"].as_str().unwrap();
    // The identity is in the spec, so that a backup of the manifest finds its volume.
    let cr = lab.until("its identity", "msv", "served", |cr| cr["spec"]["uuid"] == uuid).await;
    assert_eq!(
        cr["status"]["target"]["connect"],
        format!(
            "nvme connect --transport=tcp --traddr=192.0.2.1 --trsvcid=8420 --nqn=nqn.2019-05.io.openebs:{uuid} \
             --reconnect-delay=1 --ctrl-loss-tmo=-1"
        )
    );
    assert_eq!(cr["status"]["replicasReady"], "2/2");
    assert!(cr["spec"]["publish"]["node"].is_null(), "the choice of a node is the operator's");
    let nexus = lab.until("its nexus", "msx", "served", is_ready).await;
    assert_eq!(nexus["metadata"]["ownerReferences"][0]["name"], "served");
    assert_eq!(nexus["spec"]["volume"], uuid);
    // A Nexus that somebody deletes comes back while the volume is published.
    lab.delete("msx", "served").await;
    let uid = nexus["metadata"]["uid"].clone();
    lab.until("its nexus again", "msx", "served", |cr| cr["metadata"]["uid"] != uid && is_ready(cr)).await;
    let events = lab.kubectl().run(&["-n", NAMESPACE, "get", "events"]).await.unwrap();
    assert!(events.contains("volume/served") && events.contains("Online"), "{events}");
}

async fn c2_a_published_volume_waits_with_its_deletion(lab: &Lab) {
    lab.delete("msv", "served").await;
    let cr = lab
        .until("what blocks it", "msv", "served", |cr| says(cr, "DeletionBlocked", "True", "Published"))
        .await;
    assert!(condition(&cr, "DeletionBlocked").unwrap()["message"].as_str().unwrap().contains("spec.publish"));
    assert!(!lab.plane.calls().contains(&"destroy_volume served".to_owned()));
    lab.patch("msv", "served", r#"{"spec":{"publish":null}}"#).await;
    lab.until_gone("msv", "served").await;
    lab.until_gone("msx", "served").await;
    assert!(lab.plane.calls().contains(&"destroy_volume served".to_owned()));
}

async fn a_refusal_is_told_and_tried_again(lab: &Lab) {
    let refusal = Refusal {
        kind: RefusalKind::Precondition,
        reason: "NotEnoughPools".to_owned(),
        message: "2 pools are needed; pool-1: node is cordoned".to_owned(),
    };
    lab.plane.refuse(Call::CreateVolume, refusal);
    lab.kubectl().apply(&volume("late", "{size: 1Gi, replicas: 2}")).await.unwrap();
    let cr =
        lab.until("the refusal", "msv", "late", |cr| says(cr, "Accepted", "False", "NotEnoughPools")).await;
    assert!(says(&cr, "Ready", "False", "NotEnoughPools"));
    assert_eq!(cr["status"]["state"], "Pending");
    lab.plane.relent();
    lab.until("it to be made", "msv", "late", is_ready).await;
    lab.delete("msv", "late").await;
    lab.until_gone("msv", "late").await;
}

async fn c4_wishes_and_changes_elsewhere_meet(lab: &mut Lab) {
    lab.kubectl().apply(&volume("mixed", "{size: 1Gi, replicas: 1}")).await.unwrap();
    lab.until("it to be made", "msv", "mixed", is_ready).await;
    lab.patch("msv", "mixed", r#"{"spec":{"replicas":3}}"#).await;
    lab.until("three copies", "msv", "mixed", |cr| cr["status"]["replicasReady"] == "3/3").await;
    // REST takes one away: the CR follows and does not put it back, also not after a restart.
    lab.plane.change_behind("mixed", |volume| {
        volume.spec.replicas = 2;
        volume.replicas.pop();
    });
    lab.until("the CR to follow", "msv", "mixed", |cr| cr["spec"]["replicas"] == 2).await;
    lab.restart_controllers().await;
    let cr = lab.until("two copies", "msv", "mixed", |cr| cr["status"]["replicasReady"] == "2/2").await;
    assert_eq!(cr["spec"]["replicas"], 2);
    let changes = lab.plane.calls().iter().filter(|call| call.starts_with("change_volume mixed")).count();
    assert_eq!(changes, 1, "{:?}", lab.plane.calls());
}

async fn a_shrink_is_refused_without_cel(lab: &Lab) {
    lab.patch("msv", "mixed", r#"{"spec":{"size":"512Mi"}}"#).await;
    let cr =
        lab.until("the refusal", "msv", "mixed", |cr| says(cr, "Accepted", "False", "CannotShrink")).await;
    assert_eq!(cr["spec"]["size"], "512Mi", "a refused wish stays in the spec");
    assert_eq!(cr["status"]["size"], "1 GiB");
    lab.patch("msv", "mixed", r#"{"spec":{"size":"1Gi"}}"#).await;
    lab.until("peace", "msv", "mixed", |cr| says(cr, "Accepted", "True", "")).await;
}

/// Tearing the finalizer out removes the CR, not the volume; and the CR is only its face.
async fn a_cr_deleted_by_force_comes_back(lab: &Lab) {
    lab.kubectl()
        .apply(&volume("forced", "{size: 1Gi, replicas: 1, publish: {allowedHosts: []}}"))
        .await
        .unwrap();
    let cr = lab.until("it to be served", "msv", "forced", is_ready).await;
    let uid = cr["metadata"]["uid"].clone();
    let volume_uuid = cr["status"]["uuid"].clone();
    lab.delete("msv", "forced").await;
    lab.patch("msv", "forced", r#"{"metadata":{"finalizers":null}}"#).await;
    let cr = lab
        .until("it to come back", "msv", "forced", |cr| cr["metadata"]["uid"] != uid && is_ready(cr))
        .await;
    assert_eq!(cr["status"]["uuid"], volume_uuid);
    assert!(!lab.plane.calls().contains(&"destroy_volume forced".to_owned()));
}

async fn a_volume_deleted_elsewhere_takes_its_cr_along(lab: &Lab) {
    lab.plane.delete_behind("forced");
    lab.until_gone("msv", "forced").await;
    lab.until_gone("msx", "forced").await;
}

async fn retained_data_is_found_again(lab: &Lab) {
    lab.kubectl().apply(&volume("kept", "{size: 1Gi, deletionPolicy: Retain}")).await.unwrap();
    let cr = lab.until("it to be made", "msv", "kept", is_ready).await;
    let uuid = cr["status"]["uuid"].as_str().unwrap().to_owned();
    lab.delete("msv", "kept").await;
    lab.until_gone("msv", "kept").await;
    lab.kubectl().apply(&volume("found", &format!("{{size: 1Gi, uuid: {uuid}}}"))).await.unwrap();
    let cr = lab.until("it to be found", "msv", "found", is_ready).await;
    assert_eq!(cr["status"]["uuid"], uuid);
    assert!(!lab.plane.calls().contains(&"create_volume found".to_owned()));
}

async fn c2_a_pool_with_replicas_is_not_deleted(lab: &Lab) {
    lab.delete("dsp", "pool-2").await;
    let blocked = |cr: &Value| says(cr, "DeletionBlocked", "True", "HasReplicas");
    let cr = lab.until("what blocks it", "dsp", "pool-2", blocked).await;
    assert_eq!(cr["status"]["cr_state"], "Terminating");
    assert!(!lab.plane.calls().contains(&"destroy_pool pool-2".to_owned()));
    lab.plane.delete_behind("mixed");
    lab.until_gone("dsp", "pool-2").await;
    assert!(lab.plane.calls().contains(&"destroy_pool pool-2".to_owned()));
}

async fn c1_a_lost_registry_leaves_resources_unclaimed(lab: &mut Lab) {
    lab.plane.lose_registry();
    lab.restart_controllers().await;
    for (kind, name) in [("dsp", "pool-1"), ("msv", "found")] {
        lab.until("it to be unclaimed", kind, name, |cr| says(cr, "Ready", "False", "Unclaimed")).await;
    }
    let cr = lab.get("msv", "found").await.unwrap();
    assert_eq!(cr["status"]["state"], "Unclaimed");
    assert!(lab.plane.shown_identities().contains(&("Volume found".to_owned(), "cluster-1".to_owned())));
    // Somebody deletes them: they stay, and say why.
    lab.delete("msv", "found").await;
    lab.until("what blocks it", "msv", "found", |cr| says(cr, "DeletionBlocked", "True", "Unclaimed")).await;
    assert_eq!(lab.plane.calls(), Vec::<String>::new(), "nothing was made, changed or destroyed");
}

/// A chart that is removed with its kinds, or a namespace that is deleted, must destroy nothing and must not hang.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c2_a_kind_or_namespace_that_is_deleted_goes_at_once_and_destroys_nothing() {
    let run = RunDir::new("teardown").unwrap();
    let processes = Processes::start(&run.path().join("logs")).unwrap();
    let lab = Lab::start(&run, &processes).await;
    lab.kubectl().apply(&pools()).await.unwrap();
    lab.kubectl().wait(&["-n", NAMESPACE, "dsp", "--all"], "Ready", SOON).await.unwrap();
    let spec = "{size: 1Gi, replicas: 2, publish: {allowedHosts: ['*']}}";
    lab.kubectl().apply(&volume("served", spec)).await.unwrap();
    lab.kubectl().wait(&["-n", NAMESPACE, "msv", "served"], "Ready", SOON).await.unwrap();

    let uuid = lab.get("msv", "served").await.unwrap()["status"]["uuid"].clone();

    lab.kubectl().run(&["delete", "crd", "volumes.openebs.io"]).await.unwrap();
    // The kind is back, and the registry knows the volume: so its CR is back too.
    lab.cluster.apply_definitions().await.unwrap();
    lab.plane.change_behind("served", |_| {});
    lab.until("the volume to be shown again", "msv", "served", |cr| {
        cr["status"]["uuid"] == uuid && is_ready(cr)
    })
    .await;

    // The namespace controller, which deletes what is in it, is not part of this cluster: the test is it.
    lab.kubectl().run(&["delete", "namespace", NAMESPACE, "--wait=false"]).await.unwrap();
    lab.kubectl().run(&["-n", NAMESPACE, "delete", "dsp", "--all"]).await.unwrap();
    let calls = lab.plane.calls();
    assert!(
        !calls.iter().any(|call| call.starts_with("destroy") || call.starts_with("release")),
        "{calls:?}"
    );
    lab.stop().await;
    run.passed();
}
