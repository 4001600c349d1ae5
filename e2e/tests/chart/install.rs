//! The chart in a real API server: installed, upgraded, rolled back, used by its accounts, removed.
//!
//! The server has no controllers and no kubelet. What a hook's Job would run is run here, by the Job's own arguments and
//! its ServiceAccount's token.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::cluster::Cluster;
use e2e::helm::{Helm, chart};
use e2e::place::Place;
use e2e::ports::free_port;
use e2e::process::Processes;
use e2e::programs::program;
use e2e::run_dir::RunDir;
use e2e::steps::step;
use e2e::wait::wait_until;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use kube::api::{Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use operator::kube::leads::{LEADS, LEADS_LABEL};
use serde_json::{Value, json};
use store::testing::Etcd;
use store::users;

use super::{NAMESPACE, RELEASE, documents, title};

const PATIENCE: Duration = Duration::from_secs(90);
/// Of Helm's waiting for a hook; more than the hook's own.
const HOOK_SECONDS: u64 = 120;
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// An address of this machine that nothing else serves volumes on.
const ENGINE_ADDRESS: &str = "127.77.0.1";
const DISK_BYTES: u64 = 1 << 30;
/// A word of the definitions that the chart before says otherwise.
const WORDS: (&str, &str) = ("Online, Degraded, Faulted and so on", "How it is");

struct Stage {
    run: RunDir,
    processes: Processes,
    cluster: Cluster,
    client: Client,
    helm: Helm,
    /// The chart of a version before.
    before: PathBuf,
}

impl Stage {
    async fn set() -> Result<Self> {
        let run = RunDir::new("chart")?;
        let processes = Processes::start(&run.path().join("logs"))?;
        let cluster = Cluster::own(&processes, run.path(), Place::loopback()).await?;
        cluster.create_namespace(NAMESPACE).await?;
        let client = client(cluster.kubeconfig()).await?;
        let helm = Helm::new(RELEASE, NAMESPACE)?.with_cluster(cluster.kubeconfig());
        let before = chart_before(run.path())?;
        Ok(Self { run, processes, cluster, client, helm, before })
    }

    async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let args: Vec<_> = ["-n", NAMESPACE].iter().chain(args).copied().collect();
        self.cluster.kubectl().run(&args).await
    }

    /// A folder with the certificates that the install made.
    async fn certificates(&self) -> Result<PathBuf> {
        let folder = self.run.path().join("certificates");
        fs::create_dir(&folder)?;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), NAMESPACE);
        for user in ["server", users::ROOT, users::OPERATOR, users::IO_ENGINE, users::HA_CLUSTER] {
            let data =
                secrets.get(&format!("mayastor-etcd-{user}")).await?.data.context("a Secret with data")?;
            let own = [("tls.crt", format!("{user}.crt")), ("tls.key", format!("{user}.key"))];
            for (name, file) in own.into_iter().chain([("ca.crt", "ca.crt".to_owned())]) {
                fs::write(folder.join(file), &data.get(name).with_context(|| format!("{user} {name}"))?.0)?;
            }
        }
        Ok(folder)
    }

    /// A kubeconfig with nothing but the token of an account.
    async fn kubeconfig_of(&self, account: &str) -> Result<PathBuf> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), NAMESPACE);
        let request = serde_json::from_value::<TokenRequest>(json!({ "spec": { "audiences": [] } }))?;
        let issued = accounts.create_token_request(account, &PostParams::default(), &request).await;
        let token =
            issued.with_context(|| format!("a token for {account}"))?.status.context("a token")?.token;
        let mut config: Value = serde_yaml_ng::from_str(&fs::read_to_string(self.cluster.kubeconfig())?)?;
        config["users"][0]["user"] = json!({ "token": token });
        let path = self.run.path().join(format!("{account}.kubeconfig"));
        fs::write(&path, serde_yaml_ng::to_string(&config)?)?;
        Ok(path)
    }

    async fn deployment(&self) -> Result<Deployment> {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), NAMESPACE);
        deployments.get("mayastor-operator").await.context("look at the operators' Deployment")
    }
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// This tree's chart with another version and other definitions.
fn chart_before(folder: &Path) -> Result<PathBuf> {
    let copied = Command::new("cp").arg("-rL").arg(chart()).arg(folder).status()?;
    ensure!(copied.success(), "the chart could not be copied");
    let copy = folder.join("mayastor");
    let replace = |file: &str, this: &str, that: &str| -> Result<()> {
        let path = copy.join(file);
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains(this), "{file} has no {this:?}");
        Ok(fs::write(&path, text.replace(this, that))?)
    };
    replace("Chart.yaml", "\nversion: ", "\nversion: 0.0.0-before.")?;
    replace("files/crds/no-cel/volumes.yaml", WORDS.0, WORDS.1)?;
    Ok(copy)
}

#[tokio::test]
async fn a_release_lives_from_install_to_uninstall() -> Result<()> {
    let stage = step("an API server", Stage::set()).await?;
    step("every object is accepted by the API server", every_object_is_accepted(&stage)).await?;
    step("install, upgrade with changed kinds, roll back", an_upgrade_upgrades_the_kinds(&stage)).await?;
    step("every example is accepted by the API server", every_example_is_accepted(&stage)).await?;
    step("operator and engine work with the chart's accounts", accounts_suffice(&stage)).await?;
    step("accounts may do nothing else", accounts_may_do_nothing_else(&stage)).await?;
    step("c2_ an uninstall is refused while volumes exist", c2_volumes_hold_an_uninstall(&stage)).await?;
    step("c2_ an uninstall leaves kinds and resources, and nothing that waits", c2_nothing_waits(&stage))
        .await?;
    step("install again over what stayed", what_stayed_is_taken_over(&stage)).await?;
    stage.run.passed();
    Ok(())
}

async fn every_object_is_accepted(stage: &Stage) -> Result<()> {
    let everything = json!({
        "csi": { "controller": { "replicas": 2, "resizer": true } },
        "snapshots": { "enabled": true },
        "io_engine": { "blockDevices": true },
        "networkPolicy": { "enabled": true, "nodeCIDRs": ["10.0.0.0/8"] },
    });
    let hooks = stage.helm.render(&json!({})).await?;
    let hooks = hooks.iter().filter(|(path, _)| path.starts_with("hooks/") || path.starts_with("tests/"));
    let mut accepted = 0;
    let mut apply = async |document: Value| -> Result<()> {
        let text = serde_json::to_string(&document)?;
        // kubectl looks for fields that the server does not know.
        let applied =
            stage.cluster.kubectl().run_with_input(&["apply", "--dry-run=server", "-f", "-"], &text);
        applied.await.with_context(|| title(&document))?;
        accepted += 1;
        Ok(())
    };
    for values in [json!({}), everything] {
        let arguments = json!({ "chart": chart(), "values": values, "dry_run": "server" });
        let release = stage.helm.run("install", arguments).await?;
        for document in documents(release["manifest"].as_str().context("a manifest")?) {
            apply(document).await?;
        }
    }
    for document in hooks.flat_map(|(_, text)| documents(text)) {
        // It needs an account of its own namespace, which the server of a dry run has not.
        if document["kind"] != "Pod" {
            apply(document).await?;
        }
    }
    ensure!(accepted > 60, "{accepted} only");
    Ok(())
}

/// As somebody who has installed the chart applies them.
async fn every_example_is_accepted(stage: &Stage) -> Result<()> {
    let mut accepted = 0;
    for entry in fs::read_dir(chart().join("../../examples"))? {
        let path = entry?.path();
        for document in documents(&fs::read_to_string(&path)?) {
            // The server of 1.20 does not know the one, and has no account for the other as long as no controller makes it.
            if document["kind"] == "VolumeAttributesClass" || document["kind"] == "Pod" {
                continue;
            }
            let text = serde_json::to_string(&document)?;
            let applied =
                stage.cluster.kubectl().run_with_input(&["apply", "--dry-run=server", "-f", "-"], &text);
            applied.await.with_context(|| format!("{}: {}", path.display(), title(&document)))?;
            accepted += 1;
        }
    }
    ensure!(accepted > 15, "{accepted} only");
    Ok(())
}

async fn an_upgrade_upgrades_the_kinds(stage: &Stage) -> Result<()> {
    let words = async || {
        stage
            .kubectl(&["get", "crd", "volumes.openebs.io", "-o", "jsonpath={..additionalPrinterColumns}"])
            .await
    };
    stage.helm.run("install", json!({ "chart": stage.before })).await?;
    ensure!(words().await?.contains(WORDS.1), "the kinds are those of before");
    stage.cluster.kubectl().wait(&["crd", "volumes.openebs.io"], "Established", PATIENCE).await?;
    let volume = json!({
        "apiVersion": "openebs.io/v1alpha1", "kind": "Volume",
        "metadata": { "name": "kept", "namespace": NAMESPACE }, "spec": { "size": "1Gi" },
    });
    stage.cluster.kubectl().apply(&volume.to_string()).await?;

    let uid = stage.kubectl(&["get", "volume", "kept", "-o", "jsonpath={.metadata.uid}"]).await?;
    stage.helm.run("upgrade", json!({ "chart": chart() })).await?;
    ensure!(words().await?.contains(WORDS.0), "an upgrade upgrades the kinds");
    stage.helm.run("rollback", json!({ "version": 1 })).await?;
    ensure!(words().await?.contains(WORDS.1), "a rollback is whole");
    stage.helm.run("upgrade", json!({ "chart": chart() })).await?;
    let kept = stage.kubectl(&["get", "volume", "kept", "-o", "jsonpath={.metadata.uid}"]).await?;
    ensure!(kept == uid, "the resources of a kind stay");
    stage.kubectl(&["delete", "volume", "kept"]).await?;

    let history = stage.helm.run("history", json!({})).await?;
    let statuses: Vec<_> =
        history.as_array().into_iter().flatten().filter_map(|revision| revision["status"].as_str()).collect();
    ensure!(statuses.len() == 4 && statuses.last() == Some(&"deployed"), "{history:#}");
    Ok(())
}

/// Operator and engine with the arguments of the chart, the operator with the token of its account.
async fn accounts_suffice(stage: &Stage) -> Result<()> {
    let certificates = stage.certificates().await?;
    let etcd = Etcd::start_with_certificates(&certificates).await?;
    let (rest, registration, engine_port) = (free_port()?, free_port()?, free_port()?);
    let kubeconfig = stage.kubeconfig_of("mayastor-operator").await?;
    let pods: Api<Pod> = Api::namespaced(stage.client.clone(), NAMESPACE);
    for name in ["operator-a", "operator-b"] {
        // The server has no kubelet: the process below is what runs in the first of them. The second led before.
        let labels = if name == "operator-b" { json!({ LEADS_LABEL: LEADS }) } else { json!({}) };
        let pod = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": labels },
            "spec": {
                "serviceAccountName": "mayastor-operator",
                "automountServiceAccountToken": false,
                "containers": [{ "name": "operator", "image": "operator" }],
            },
        }))?;
        pods.create(&PostParams::default(), &pod).await?;
    }
    let deployment = serde_json::to_value(stage.deployment().await?)?;
    // As the chart says, with what is another on this machine.
    let as_installed = |container: &str, user: &str| -> Result<Command> {
        let mut command = Command::new(program("operator")?);
        let certificates = certificates.display();
        for argument in arguments(&deployment, container)? {
            match argument.split_once('=') {
                Some((name @ "--store", _)) => command.arg(format!("{name}={}", etcd.endpoint())),
                Some((name @ "--etcd-ca", _)) => command.arg(format!("{name}={certificates}/ca.crt")),
                Some((name @ "--etcd-cert", _)) => command.arg(format!("{name}={certificates}/{user}.crt")),
                Some((name @ "--etcd-key", _)) => command.arg(format!("{name}={certificates}/{user}.key")),
                _ => command.arg(argument),
            };
        }
        Ok(command)
    };
    let prepared = stage.processes.spawn("prepare-store", as_installed("prepare-store", users::ROOT)?)?;
    ensure!(prepared.wait_exit(PATIENCE).await?.success(), "{}", prepared.log_tail());
    let mut command = as_installed("operator", users::OPERATOR)?;
    command
        .arg(format!("--http=127.0.0.1:{rest}"))
        .arg(format!("--grpc-server-addr=127.0.0.1:{registration}"))
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .env("MY_POD_NAME", "operator-a")
        .env("MY_POD_NAMESPACE", NAMESPACE);
    let operator = stage.processes.spawn("operator", command)?;

    let disk = stage.run.path().join("pool-1.img");
    fs::File::create(&disk)?.set_len(DISK_BYTES)?;
    let mut command = Command::new(program("io-engine")?);
    command
        .args(["--node-name", "node-1", "--grpc-ip", ENGINE_ADDRESS, "--target", ENGINE_ADDRESS])
        .arg(format!("--grpc-port={engine_port}"))
        .arg(format!("--registration-endpoint=127.0.0.1:{registration}"))
        .arg(format!("--etcd={}", etcd.endpoint()))
        .args(etcd.tls(users::IO_ENGINE).arguments())
        .arg("--state-dir")
        .arg(stage.run.path().join("engine"));
    let engine = stage.processes.spawn("engine", command)?;

    let leads = async |pod: &str| -> Result<bool> {
        let labels = pods.get(pod).await?.metadata.labels.unwrap_or_default();
        Ok(labels.get(LEADS_LABEL).is_some_and(|value| value == LEADS))
    };
    operator
        .wait_until(PATIENCE, "the label on the pod that leads", || async {
            ensure!(leads("operator-a").await? && !leads("operator-b").await?, "not yet");
            Ok(())
        })
        .await?;
    let checked = Command::new(program("operator")?)
        .args(["check", "--engines=1", &format!("--rest-endpoint=http://127.0.0.1:{rest}")])
        .output()?;
    ensure!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));

    let manifests = format!(
        "apiVersion: openebs.io/v1beta3\nkind: DiskPool\nmetadata: {{name: pool-1, namespace: {NAMESPACE}}}\n\
         spec: {{node: node-1, disks: ['{}']}}\n---\n\
         apiVersion: openebs.io/v1alpha1\nkind: Volume\nmetadata: {{name: used, namespace: {NAMESPACE}}}\n\
         spec: {{size: 64Mi, replicas: 1, publish: {{allowedHosts: ['*']}}}}\n",
        disk.display()
    );
    stage.cluster.kubectl().apply(&manifests).await?;
    for what in [["diskpool/pool-1"], ["volume/used"]] {
        let what = ["-n", NAMESPACE, what[0]];
        stage.cluster.kubectl().wait(&what, "Ready", PATIENCE).await.context(operator.log_tail())?;
    }
    // What the operator makes itself, says, and removes.
    for kind in ["mayastornodes", "nexuses"] {
        wait_until(PATIENCE, kind, || async {
            let names = stage.kubectl(&["get", kind, "-o", "name"]).await?;
            ensure!(names.lines().count() == 1, "{names:?}");
            Ok(())
        })
        .await?;
    }
    wait_until(PATIENCE, "an event at the volume", || async {
        let events =
            stage.kubectl(&["get", "events", "--field-selector", "involvedObject.name=used"]).await?;
        ensure!(events.contains("Online"), "{events}");
        Ok(())
    })
    .await?;
    stage.kubectl(&["patch", "volume", "used", "--type=merge", "-p", r#"{"spec":{"publish":null}}"#]).await?;
    c2_what_refers_to_a_volume_is_seen(stage).await.context(operator.log_tail())?;
    let log = fs::read_to_string(operator.log_path())?;
    operator.terminate(STOP_LIMIT).await?;
    ensure!(!leads("operator-a").await?, "who has ended does not lead");
    engine.terminate(STOP_LIMIT).await?;
    if let Some(line) = log.lines().find(|line| line.to_lowercase().contains("forbidden")) {
        bail!("a right is missing: {line}");
    }
    for name in ["operator-a", "operator-b"] {
        stage.kubectl(&["delete", "pod", name, "--grace-period=0", "--force"]).await?;
    }
    Ok(())
}

/// The operator's account may look at PersistentVolumes, and its watch tells it.
async fn c2_what_refers_to_a_volume_is_seen(stage: &Stage) -> Result<()> {
    let uuid = stage.kubectl(&["get", "volume", "used", "-o", "jsonpath={.status.uuid}"]).await?;
    let persistent = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": "refers" },
        "spec": {
            "capacity": { "storage": "64Mi" }, "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "csi": { "driver": "io.openebs.csi-mayastor", "volumeHandle": uuid.trim() },
        },
    });
    stage.cluster.kubectl().apply(&persistent.to_string()).await?;
    stage.kubectl(&["delete", "volume", "used", "--wait=false"]).await?;
    wait_until(PATIENCE, "the Volume to say what holds it", || async {
        let shown = stage.kubectl(&["get", "volume", "used", "-o", "jsonpath={.status.conditions}"]).await?;
        ensure!(shown.contains("refers"), "{shown}");
        Ok(())
    })
    .await?;
    // Nobody of Kubernetes is here to release it.
    let patch = r#"{"metadata":{"finalizers":null}}"#;
    stage.kubectl(&["patch", "pv", "refers", "--type=merge", "-p", patch]).await?;
    stage.kubectl(&["delete", "pv", "refers"]).await?;
    wait_until(PATIENCE, "the Volume to go", || async {
        let left = stage.kubectl(&["get", "volume", "used", "--ignore-not-found", "-o", "name"]).await?;
        ensure!(left.trim().is_empty(), "{left}");
        Ok(())
    })
    .await
}

/// Arguments of a container of a workload.
fn arguments(workload: &Value, container: &str) -> Result<Vec<String>> {
    let of = |kind| workload.pointer(&format!("/spec/template/spec/{kind}")).and_then(Value::as_array);
    let mut containers = [of("initContainers"), of("containers")].into_iter().flatten().flatten();
    let found = containers.find(|one| one["name"] == container);
    let arguments = found.and_then(|one| one["args"].as_array()).context("arguments of the container")?;
    Ok(arguments.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

async fn accounts_may_do_nothing_else(stage: &Stage) -> Result<()> {
    let may = async |account: &str, what: &[&str]| -> bool {
        let account = format!("--as=system:serviceaccount:{NAMESPACE}:mayastor-{account}");
        let args: Vec<_> = ["auth", "can-i", &account].into_iter().chain(what.iter().copied()).collect();
        // kubectl ends with an error where the answer is no.
        stage.kubectl(&args).await.is_ok()
    };
    ensure!(may("operator", &["list", "volumes.openebs.io"]).await, "the question can be answered with yes");
    for what in [
        &["list", "secrets"][..],
        &["delete", "pods"],
        &["delete", "crd"],
        &["patch", "nodes"],
        &["create", "deployments.apps"],
        &["delete", "namespaces"],
    ] {
        for account in
            ["operator", "io-engine", "csi-controller", "csi-node", "ha-cluster", "ha-node", "etcd"]
        {
            ensure!(!may(account, what).await, "{account} may {what:?}");
        }
    }
    ensure!(!may("io-engine", &["get", "pods"]).await && !may("ha-cluster", &["get", "pods"]).await);
    Ok(())
}

/// Helm's uninstall, with somebody who runs the hook.
async fn uninstall(stage: &Stage) -> Result<Value> {
    let removed = stage.helm.run("uninstall", json!({ "timeout": HOOK_SECONDS }));
    let (removed, hook) = tokio::join!(removed, run_hook(stage));
    hook?;
    removed
}

/// What Job controller and kubelet would do.
async fn run_hook(stage: &Stage) -> Result<()> {
    let jobs: Api<Job> = Api::namespaced(stage.client.clone(), NAMESPACE);
    let name = "mayastor-preflight-uninstall";
    let job = wait_until(PATIENCE, "the hook's Job", || async {
        let job = jobs.get(name).await?;
        // One that failed before is replaced.
        ensure!(job.status.as_ref().is_none_or(|status| status.conditions.is_none()), "it is an old one");
        Ok(job)
    })
    .await?;
    let kubeconfig = stage.kubeconfig_of(name).await?;
    let output = tokio::process::Command::new(program("operator")?)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(arguments(&serde_json::to_value(job)?, "preflight-uninstall")?)
        .output()
        .await?;
    fs::write(stage.run.path().join("logs/preflight-uninstall.log"), &output.stderr)?;
    let (count, condition) =
        if output.status.success() { ("succeeded", "Complete") } else { ("failed", "Failed") };
    let now = "2026-01-01T00:00:00Z";
    let status = json!({ "status": {
        count: 1,
        "startTime": now,
        "conditions": [{ "type": condition, "status": "True", "lastTransitionTime": now, "lastProbeTime": now }],
    } });
    jobs.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

async fn c2_volumes_hold_an_uninstall(stage: &Stage) -> Result<()> {
    let volume = json!({
        "apiVersion": "openebs.io/v1alpha1", "kind": "Volume",
        "metadata": {
            "name": "precious", "namespace": NAMESPACE, "finalizers": ["openebs.io/volume-protection"],
        },
        "spec": { "size": "1Gi" },
    });
    stage.cluster.kubectl().apply(&volume.to_string()).await?;
    let refused = uninstall(stage).await;
    let said = fs::read_to_string(stage.run.path().join("logs/preflight-uninstall.log"))?;
    ensure!(refused.is_err(), "removed although there is a volume: {said}");
    ensure!(said.contains("Volume mayastor/precious") && said.contains("allowWithVolumes"), "{said}");
    // Nothing was touched.
    let replicas = stage.deployment().await?.spec.and_then(|spec| spec.replicas);
    ensure!(replicas == Some(3), "{replicas:?} operators");
    let held =
        stage.kubectl(&["get", "volume", "precious", "-o", "jsonpath={.metadata.finalizers[0]}"]).await?;
    ensure!(held == "openebs.io/volume-protection", "{held}");

    // A PersistentVolume of our driver is a volume too, whatever became of its resource.
    stage
        .kubectl(&[
            "patch",
            "volume",
            "precious",
            "--type=merge",
            "-p",
            r#"{"metadata":{"finalizers":null}}"#,
        ])
        .await?;
    stage.kubectl(&["delete", "volume", "precious"]).await?;
    let persistent = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": "pvc-1" },
        "spec": {
            "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"],
            "csi": { "driver": "io.openebs.csi-mayastor", "volumeHandle": "v" },
        },
    });
    stage.cluster.kubectl().apply(&persistent.to_string()).await?;
    let refused = uninstall(stage).await;
    let said = fs::read_to_string(stage.run.path().join("logs/preflight-uninstall.log"))?;
    ensure!(refused.is_err() && said.contains("PersistentVolume pvc-1"), "{said}");
    stage
        .kubectl(&["patch", "pv", "pvc-1", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#])
        .await?;
    stage.kubectl(&["delete", "pv", "pvc-1"]).await.map(drop)
}

async fn c2_nothing_waits(stage: &Stage) -> Result<()> {
    let finalizers = ["get", "diskpool", "pool-1", "-o", "jsonpath={.metadata.finalizers}"];
    ensure!(stage.kubectl(&finalizers).await?.contains("diskpool-protection"), "the pool is held");
    uninstall(stage).await?;
    let left =
        stage.kubectl(&["get", "deployments,daemonsets,statefulsets,services,roles", "-o", "name"]).await?;
    ensure!(left.trim().is_empty(), "left behind: {left}");
    let kinds = stage.kubectl(&["get", "crd", "-o", "name"]).await?;
    ensure!(kinds.matches("openebs.io").count() == 4, "the kinds stay: {kinds}");
    // The pool's resource stays, and goes when it is told to: nobody is there to release a finalizer.
    ensure!(stage.kubectl(&finalizers).await?.is_empty(), "somebody waits for the operator");
    Ok(())
}

async fn what_stayed_is_taken_over(stage: &Stage) -> Result<()> {
    stage.helm.run("install", json!({ "chart": chart() })).await?;
    stage.kubectl(&["get", "diskpool", "pool-1"]).await?;
    stage.kubectl(&["delete", "diskpool", "pool-1", "--timeout=10s"]).await.map(drop)
}
