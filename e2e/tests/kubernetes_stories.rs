//! What a user does with kubectl, and what the product answers: operator and engines are real, and so is the API server.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::lab::{Lab, NAMESPACE, Parts};
use e2e::steps::step;
use e2e::wait::wait_until;
use engine_api::Call;
use engine_api::types::CreatePool;
use serde_json::Value;

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(90);
/// What comes back is noticed within this: pauses are of two seconds, and the machine may be slow.
const NOTICED: Duration = Duration::from_secs(10);

/// One cluster for all of it: each claim uses names of its own.
#[tokio::test]
async fn kubectl_gets_what_it_asks_for_or_a_reason() -> Result<()> {
    let parts = Parts { engines: 2, hosts: 0, operators: 1, kubernetes: true };
    let lab =
        step("an API server, an operator, two engines", Lab::start("kubernetes-stories", parts)).await?;
    step("kubectl apply makes pools and a published volume", apply_makes_pools_and_a_volume(&lab)).await?;
    step("a pool on a node that nobody knows", a_pool_on_an_unknown_node_names_the_node(&lab)).await?;
    step("a pool on a disk that is not there", a_pool_on_a_missing_disk_names_the_disk(&lab)).await?;
    step("a second pool on a disk", a_second_pool_on_a_disk_is_refused(&lab)).await?;
    step("a pool whose name the engine has already", a_pool_name_that_is_taken_is_refused(&lab)).await?;
    step("c7_ disks with somebody's data", c7_a_disk_with_data_is_refused_untouched(&lab)).await?;
    step("a volume larger than every pool", a_volume_that_fits_nowhere_says_why_pool_by_pool(&lab)).await?;
    step("a volume that shall shrink", a_shrink_is_refused_and_stays_in_the_spec(&lab)).await?;
    step("a size that is no quantity", a_bad_quantity_is_refused_by_the_schema(&lab)).await?;
    step("c2_ a published volume is deleted", c2_a_published_volume_waits_with_its_deletion(&lab)).await?;
    step("c2_ the kind itself is deleted", c2_a_deleted_kind_destroys_no_data(&lab)).await?;
    lab.run.passed();
    Ok(())
}

fn pool(name: &str, node: &str, disk: &str) -> String {
    format!(
        "---\napiVersion: openebs.io/v1beta3\nkind: DiskPool\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec: \
         {{node: {node}, disks: ['{disk}']}}\n"
    )
}

fn volume(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: openebs.io/v1alpha1\nkind: Volume\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec: \
         {spec}\n"
    )
}

async fn apply(lab: &Lab, manifests: &str) -> Result<()> {
    lab.kubernetes()?.kubectl().apply(manifests).await.map(drop)
}

async fn patch(lab: &Lab, kind: &str, name: &str, patch: &str) -> Result<()> {
    let args = ["-n", NAMESPACE, "patch", kind, name, "--type=merge", "-p", patch];
    lab.kubernetes()?.kubectl().run(&args).await.map(drop)
}

async fn delete(lab: &Lab, kind: &str, name: &str) -> Result<()> {
    lab.kubernetes()?.kubectl().run(&["-n", NAMESPACE, "delete", kind, name, "--wait=false"]).await.map(drop)
}

async fn until(
    lab: &Lab,
    kind: &str,
    name: &str,
    what: &str,
    check: impl Fn(&Value) -> bool,
) -> Result<Value> {
    wait_until(PATIENCE, &format!("{kind} {name}: {what}"), || async {
        let cr = lab.kubernetes()?.kubectl().get(&["-n", NAMESPACE, kind, name]).await?;
        ensure!(check(&cr), "{:#}", cr["status"]);
        Ok(cr)
    })
    .await
}

async fn until_gone(lab: &Lab, kind: &str, name: &str) -> Result<()> {
    wait_until(PATIENCE, &format!("{kind} {name} to be gone"), || async {
        let args = ["-n", NAMESPACE, "get", kind, name, "--ignore-not-found", "-o", "name"];
        let found = lab.kubernetes()?.kubectl().run(&args).await?;
        ensure!(found.trim().is_empty(), "{found} is there");
        Ok(())
    })
    .await
}

fn condition<'a>(cr: &'a Value, type_: &str) -> Option<&'a Value> {
    cr["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == type_)
}

fn is(cr: &Value, type_: &str, status: &str) -> bool {
    condition(cr, type_).is_some_and(|condition| condition["status"] == status)
}

/// Waits until Ready is False with every one of these words in its message, and returns the message.
async fn not_ready(lab: &Lab, kind: &str, name: &str, words: &[&str]) -> Result<String> {
    let message = |cr: &Value| {
        condition(cr, "Ready").and_then(|ready| ready["message"].as_str()).unwrap_or_default().to_owned()
    };
    let tells = |cr: &Value| is(cr, "Ready", "False") && words.iter().all(|word| message(cr).contains(word));
    let cr = until(lab, kind, name, &format!("not ready because of {words:?}"), tells).await?;
    let message = message(&cr);
    println!("    {kind} {name}: {message}");
    Ok(message)
}

/// A further disk of a node.
fn disk(lab: &Lab, node: u8, name: &str, bytes: u64) -> Result<PathBuf> {
    let path = lab.node(node).disk().with_file_name(name);
    fs::File::create(&path)
        .and_then(|file| file.set_len(bytes))
        .with_context(|| format!("make the disk {}", path.display()))?;
    Ok(path)
}

async fn apply_makes_pools_and_a_volume(lab: &Lab) -> Result<()> {
    let pools: String = lab
        .engines
        .iter()
        .map(|engine| {
            pool(&format!("pool-{}", engine.name()), &engine.name(), &engine.disk().display().to_string())
        })
        .collect();
    let spec = "{size: 64Mi, replicas: 2, thin: true, publish: {allowedHosts: ['*']}}";
    apply(lab, &(pools + &volume("served", spec))).await?;
    lab.kubernetes()?.kubectl().wait(&["-n", NAMESPACE, "dsp", "--all"], "Ready", PATIENCE).await?;
    lab.wait_condition("volume/served", "Ready", PATIENCE).await?;
    let cr =
        until(lab, "msv", "served", "a target", |cr| cr["status"]["target"]["connect"].is_string()).await?;
    let line = cr["status"]["target"]["connect"].as_str().unwrap_or_default();
    ensure!(line.starts_with("nvme connect ") && line.contains("--ctrl-loss-tmo=-1"), "{line}");
    ensure!(cr["status"]["replicasReady"] == "2/2", "{:#}", cr["status"]);
    until(lab, "msx", "served", "ready", |cr| is(cr, "Ready", "True")).await?;
    until(lab, "msn", "node-1", "ready", |cr| is(cr, "Ready", "True")).await?;
    Ok(())
}

async fn a_pool_on_an_unknown_node_names_the_node(lab: &Lab) -> Result<()> {
    apply(lab, &pool("lost", "node-9", "/dev/sdz")).await?;
    not_ready(lab, "dsp", "lost", &["node-9"]).await?;
    delete(lab, "dsp", "lost").await?;
    until_gone(lab, "dsp", "lost").await
}

async fn a_pool_on_a_missing_disk_names_the_disk(lab: &Lab) -> Result<()> {
    let missing = lab.node(1).disk().with_file_name("missing");
    let missing = missing.display().to_string();
    apply(lab, &pool("diskless", "node-1", &missing)).await?;
    not_ready(lab, "dsp", "diskless", &[&missing]).await?;
    // It is asked for, not given up: the disk comes, and so does the pool.
    disk(lab, 1, "missing", 128 * MIB)?;
    until(lab, "dsp", "diskless", "ready", |cr| is(cr, "Ready", "True")).await?;
    delete(lab, "dsp", "diskless").await?;
    until_gone(lab, "dsp", "diskless").await
}

async fn a_second_pool_on_a_disk_is_refused(lab: &Lab) -> Result<()> {
    let disk = lab.node(1).disk().display().to_string();
    apply(lab, &pool("second", "node-1", &disk)).await?;
    not_ready(lab, "dsp", "second", &["pool-node-1"]).await?;
    delete(lab, "dsp", "second").await?;
    until_gone(lab, "dsp", "second").await?;
    until(lab, "dsp", "pool-node-1", "still ready", |cr| is(cr, "Ready", "True")).await.map(drop)
}

async fn a_pool_name_that_is_taken_is_refused(lab: &Lab) -> Result<()> {
    let (theirs, ours) = (disk(lab, 2, "theirs", 64 * MIB)?, disk(lab, 2, "ours", 64 * MIB)?);
    let request = CreatePool {
        name: "clash".to_owned(),
        uuid: None,
        disk: theirs.display().to_string(),
        cluster_bytes: None,
        cluster: None,
    };
    // Somebody with engine-client was here first.
    let made = lab.node(2).api()?.create_pool(Call::unfenced(), request).await?;
    apply(lab, &pool("clash", "node-2", &ours.display().to_string())).await?;
    not_ready(lab, "dsp", "clash", &["clash"]).await?;
    delete(lab, "dsp", "clash").await?;
    until_gone(lab, "dsp", "clash").await?;
    let pools = lab.node(2).api()?.list_pools().await?;
    ensure!(pools.iter().any(|pool| pool.uuid == made.uuid), "somebody's pool is gone: {pools:?}");
    Ok(())
}

async fn c7_a_disk_with_data_is_refused_untouched(lab: &Lab) -> Result<()> {
    let (formatted, used) = (disk(lab, 1, "formatted", 64 * MIB)?, disk(lab, 1, "used", 64 * MIB)?);
    let made = tokio::process::Command::new("/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-F"])
        .arg(&formatted)
        .status()
        .await
        .context("mke2fs (of e2fsprogs) makes a disk that is somebody's")?;
    ensure!(made.success(), "mke2fs: {made}");
    // No signature that anybody knows, and yet data.
    fs::write(&used, [&[0xa5; 4096][..], &vec![0; 64 << 20]].concat())?;
    for (name, path, words) in [("formatted", formatted, &["ext4"][..]), ("used", used, &[][..])] {
        let before = fs::read(&path)?;
        let text = path.display().to_string();
        apply(lab, &pool(name, "node-1", &text)).await?;
        not_ready(lab, "dsp", name, &[&[text.as_str()], words].concat()).await?;
        delete(lab, "dsp", name).await?;
        until_gone(lab, "dsp", name).await?;
        ensure!(fs::read(&path)? == before, "the disk {text} was touched");
    }
    Ok(())
}

async fn a_volume_that_fits_nowhere_says_why_pool_by_pool(lab: &Lab) -> Result<()> {
    apply(lab, &volume("huge", "{size: 1Ti, replicas: 1}")).await?;
    not_ready(lab, "msv", "huge", &["pool-node-1", "pool-node-2"]).await?;
    delete(lab, "msv", "huge").await?;
    until_gone(lab, "msv", "huge").await
}

async fn a_shrink_is_refused_and_stays_in_the_spec(lab: &Lab) -> Result<()> {
    // Newer API servers refuse it by themselves.
    if let Err(error) = patch(lab, "msv", "served", r#"{"spec":{"size":"32Mi"}}"#).await {
        ensure!(format!("{error:#}").contains("a volume cannot shrink"), "{error:#}");
        return Ok(());
    }
    let cr = until(lab, "msv", "served", "refused", |cr| is(cr, "Accepted", "False")).await?;
    ensure!(
        condition(&cr, "Accepted").is_some_and(|accepted| accepted["reason"] == "CannotShrink"),
        "{cr:#}"
    );
    ensure!(cr["spec"]["size"] == "32Mi" && cr["status"]["sizeBytes"] == 64 * MIB, "{cr:#}");
    patch(lab, "msv", "served", r#"{"spec":{"size":"64Mi"}}"#).await?;
    until(lab, "msv", "served", "accepted", |cr| is(cr, "Accepted", "True")).await.map(drop)
}

async fn a_bad_quantity_is_refused_by_the_schema(lab: &Lab) -> Result<()> {
    for size in ["lots", "1 potato", "-1Gi"] {
        let refused = apply(lab, &volume("odd", &format!("{{size: '{size}'}}"))).await;
        let error = refused.err().with_context(|| format!("a size of {size:?} was taken"))?;
        ensure!(format!("{error:#}").contains("spec.size"), "{error:#}");
    }
    Ok(())
}

/// The replicas that engines hold.
async fn replicas(lab: &Lab) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for engine in &lab.engines {
        found
            .extend(engine.api()?.list_replicas().await?.into_iter().map(|replica| replica.uuid.to_string()));
    }
    Ok(found)
}

async fn c2_a_published_volume_waits_with_its_deletion(lab: &Lab) -> Result<()> {
    let before = replicas(lab).await?;
    ensure!(before.len() == 2, "{before:?}");
    delete(lab, "msv", "served").await?;
    let cr = until(lab, "msv", "served", "held", |cr| is(cr, "DeletionBlocked", "True")).await?;
    let blocked = condition(&cr, "DeletionBlocked").context("it is there")?;
    ensure!(blocked["reason"] == "Published", "{blocked:#}");
    ensure!(replicas(lab).await? == before, "its data is gone");
    patch(lab, "msv", "served", r#"{"spec":{"publish":null}}"#).await?;
    until_gone(lab, "msv", "served").await?;
    wait_until(PATIENCE, "its replicas to be gone", || async {
        let left = replicas(lab).await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}

async fn c2_a_deleted_kind_destroys_no_data(lab: &Lab) -> Result<()> {
    apply(lab, &volume("kept", "{size: 64Mi, replicas: 2, publish: {allowedHosts: ['*']}}")).await?;
    lab.wait_condition("volume/kept", "Ready", PATIENCE).await?;
    let before = replicas(lab).await?;
    let kubectl = lab.kubernetes()?.kubectl();
    // Returns when all CRs of the kind are gone: finalizers are released at once.
    kubectl.run(&["delete", "crd", "volumes.openebs.io", "diskpools.openebs.io"]).await?;
    ensure!(replicas(lab).await? == before, "data is gone");
    let volumes = lab.rest().await?.volumes().await?.entries;
    ensure!(volumes.len() == 1, "the registry forgot it: {volumes:?}");
    // The kinds come back, as with a chart that is installed again: the data is found.
    lab.kubernetes()?.apply_definitions().await?;
    let begun = tokio::time::Instant::now();
    until(lab, "msv", "kept", "back", |cr| is(cr, "Ready", "True")).await?;
    for pool in ["pool-node-1", "pool-node-2"] {
        until(lab, "dsp", pool, "back", |cr| is(cr, "Ready", "True")).await?;
    }
    let took = begun.elapsed();
    println!("    back after {:.1} s", took.as_secs_f64());
    // Nobody waits for the next look at everything, which may be a minute away.
    ensure!(took < NOTICED, "the kinds were there again for {took:?} before their objects were");
    ensure!(replicas(lab).await? == before, "data is gone");
    Ok(())
}
