//! A cluster that the user names, to which nothing of the laboratory's network leads.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, LABEL, LABEL_VALUE};
use e2e::lab::{Lab, NAMESPACE, Parts};
use e2e::place::Place;
use e2e::process::Processes;
use e2e::run_dir::RunDir;
use e2e::steps::step;

const PATIENCE: Duration = Duration::from_secs(90);

#[tokio::test]
async fn c7_a_cluster_elsewhere_is_used_and_what_is_ours_there_is_removed_by_the_next_run() -> Result<()> {
    let run = RunDir::new("somebodys-cluster")?;
    let processes = Processes::start(&run.path().join("logs"))?;
    let theirs = step(
        "an API server in the network that the run is started in",
        Cluster::own(&processes, run.path(), Place::loopback()),
    )
    .await?;
    step("somebody's namespace of our name is refused as it is", async {
        let kubectl = theirs.kubectl();
        kubectl.run(&["create", "namespace", NAMESPACE]).await?;
        let refused = theirs.create_namespace(NAMESPACE).await;
        ensure!(matches!(&refused, Err(why) if why.to_string().contains("did not make")), "{refused:?}");
        let namespace = kubectl.get(&["namespace", NAMESPACE]).await?;
        ensure!(namespace.pointer(&format!("/metadata/labels/{LABEL}")).is_none(), "labelled: {namespace}");
        // No controller ends a namespace here: the label makes it one of ours.
        kubectl.run(&["label", "namespace", NAMESPACE, &format!("{LABEL}={LABEL_VALUE}")]).await.map(drop)
    })
    .await?;

    let parts = Parts { engines: 1, hosts: 0, operators: 1, kubernetes: true };
    let mut lab = step("the laboratory's network", Lab::prepare("outside", parts)).await?;
    let direct = theirs.kubectl().run(&["get", "--raw", "/readyz"]).await;
    ensure!(direct.is_err(), "there is a way out of the laboratory: {direct:?}");
    step("our kinds are applied there", lab.use_cluster(theirs.kubeconfig())).await?;
    step("an operator that uses it", lab.start_operators(parts.operators)).await?;
    step("an engine", lab.start_engines(parts.engines)).await?;
    step("a pool is Ready there", async {
        let disk = lab.node(1).disk();
        let manifest = format!(
            "apiVersion: openebs.io/v1beta3\nkind: DiskPool\nmetadata: {{name: pool, namespace: {NAMESPACE}}}\nspec: \
             {{node: node-1, disks: ['{}']}}\n",
            disk.display()
        );
        lab.kubernetes()?.kubectl().apply(&manifest).await?;
        lab.wait_condition("diskpool/pool", "Ready", PATIENCE).await
    })
    .await?;
    let copy = lab.kubernetes()?.kubeconfig().to_owned();
    ensure!(copy.starts_with(lab.run.path()) && copy.exists(), "{}", copy.display());
    step("the next run finds no pool of this one", async {
        lab.cluster = None;
        ensure!(!copy.exists(), "the credentials of a cluster that is not used any more are kept");
        for operator in &mut lab.operators {
            operator.kill();
        }
        lab.use_cluster(theirs.kubeconfig()).await?;
        // Past kubectl's memory of kinds, which is from before.
        let pools = "/apis/openebs.io/v1beta3/diskpools";
        let pools = lab.kubernetes()?.kubectl().run(&["get", "--raw", pools]).await?;
        ensure!(pools.contains(r#""items":[]"#), "{pools}");
        Ok(())
    })
    .await?;
    lab.run.passed();
    run.passed();
    Ok(())
}
