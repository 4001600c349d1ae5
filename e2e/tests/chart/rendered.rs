//! What Helm makes of the chart without a cluster, which is what it makes for a current Kubernetes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::helm::{Helm, chart};
use e2e::programs::program;
use serde_json::{Value, json};

use super::{NAMESPACE, RELEASE, documents, title, types};

/// The definitions have a test of their own.
mod certificates;

const DEFINITIONS: &str = "crds.yaml";
const NOTES: &str = "NOTES.txt";

fn helm() -> Helm {
    Helm::new(RELEASE, NAMESPACE).unwrap()
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn single_node() -> Value {
    let text = fs::read_to_string(chart().join("values-single-node.yaml")).unwrap();
    serde_yaml_ng::from_str(&text).unwrap()
}

/// All that can be switched on.
fn everything() -> Value {
    json!({
        "csi": { "controller": { "replicas": 2, "resizer": true }, "node": { "registration": true } },
        "storageClass": { "allowVolumeExpansion": true, "default": "single-replica" },
        "snapshots": { "enabled": true },
        "io_engine": { "blockDevices": true, "coreList": [2], "target": { "nvmf": { "iface": "name:eth1" } } },
        "networkPolicy": { "enabled": true, "nodeCIDRs": ["10.0.0.0/8"] },
        "metrics": {
            "enabled": true,
            "serviceMonitor": { "enabled": true, "labels": { "release": "prometheus" } },
            "dashboard": { "enabled": true },
        },
        "image": { "pullSecrets": ["registry"] },
    })
}

fn external_etcd() -> Value {
    json!({ "etcd": { "externalUrl": "http://a:2379,http://b:2379" }, "clusterUid": "6f1c" })
}

/// All documents of a rendering, the definitions left out.
async fn objects(values: &Value) -> Vec<Value> {
    let files = helm().render(values).await.unwrap();
    let manifests = files.iter().filter(|(path, _)| path != DEFINITIONS && path != NOTES);
    manifests.flat_map(|(_, text)| documents(text)).collect()
}

fn pod_spec(object: &Value) -> Option<&Value> {
    match object["kind"].as_str()? {
        "Pod" => object.get("spec"),
        _ => object.pointer("/spec/template/spec"),
    }
}

fn containers(objects: &[Value]) -> Vec<(String, Value)> {
    let pods = objects.iter().filter_map(|object| Some((title(object), pod_spec(object)?)));
    pods.flat_map(|(title, pod)| {
        let of = |kind: &str| pod[kind].as_array().cloned().unwrap_or_default();
        let containers = [of("initContainers"), of("containers")].concat();
        containers
            .into_iter()
            .map(move |container| (format!("{title} {}", container["name"].as_str().unwrap()), container))
    })
    .collect()
}

/// They are made anew at each rendering without a cluster.
fn without_certificates(rendered: &str) -> String {
    let is_one = |line: &str| {
        ["  ca.crt: ", "  tls.crt: ", "  tls.key: "].into_iter().find(|file| line.starts_with(file))
    };
    let line = |line| is_one(line).map_or_else(|| line.to_owned(), |file| format!("{file}(made)"));
    let lines: Vec<String> = rendered.split('\n').map(line).collect();
    lines.join("\n")
}

/// `UPDATE_GOLDEN=1` writes them anew.
async fn golden(name: &str, values: &Value) {
    let mut text = String::new();
    for (path, rendered) in helm().render(values).await.unwrap() {
        if path != DEFINITIONS {
            text.extend(["##### ", &path, "\n", &without_certificates(&rendered), "\n"]);
        }
    }
    let file = repository("e2e/tests/golden/chart").join(format!("{name}.yaml"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, &text).unwrap();
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    let differs = text.lines().zip(expected.lines()).position(|(is, was)| is != was);
    assert!(
        text == expected,
        "the chart renders otherwise than {} from line {} on; look at `git diff` after UPDATE_GOLDEN=1",
        file.display(),
        differs.map_or(text.lines().count().min(expected.lines().count()), |line| line) + 1
    );
}

#[tokio::test]
async fn the_default_renders_as_before() {
    golden("default", &json!({})).await;
}

#[tokio::test]
async fn one_node_renders_as_before() {
    golden("single-node", &single_node()).await;
}

#[tokio::test]
async fn everything_renders_as_before() {
    golden("everything", &everything()).await;
}

#[tokio::test]
async fn a_current_kubernetes_knows_every_field() {
    for values in [json!({}), single_node(), everything(), external_etcd()] {
        for (path, text) in helm().render(&values).await.unwrap() {
            if path == NOTES {
                continue;
            }
            for document in documents(&text) {
                // A kind of the Prometheus operator.
                if document["kind"] == "ServiceMonitor" {
                    continue;
                }
                if let Err(error) = types::check(&document) {
                    panic!("{path}: {}: {error:#}", title(&document));
                }
            }
        }
    }
}

#[tokio::test]
async fn helm_finds_nothing_to_complain_about() {
    for values in [json!({}), single_node(), everything()] {
        let report = helm().run("lint", json!({ "chart": chart(), "values": values })).await.unwrap();
        assert_eq!(report["errors"].as_array().map_or(0, Vec::len), 0, "{report:#}");
    }
}

#[tokio::test]
async fn a_slip_of_the_pen_is_refused_by_name() {
    for (values, name) in [
        (json!({ "replica": 3 }), "replica"),
        (json!({ "agents": { "core": { "replica": 3 } } }), "replica"),
        (json!({ "io_engine": { "blockdevices": true } }), "blockdevices"),
        (json!({ "io_engine": { "coreList": [2, 3] } }), "coreList"),
        (json!({ "etcd": { "replicaCount": 2 } }), "replicaCount"),
        (json!({ "etcd": { "externalUrl": "https://a:2379,http://b:2379" } }), "externalUrl"),
        (json!({ "agents": { "core": { "leaseTtl": "10" } } }), "leaseTtl"),
        (json!({ "csi": { "node": { "kubeletDir": "/var/lib/kubelet/" } } }), "kubeletDir"),
        (json!({ "storageClass": { "default": "gold" } }), "default"),
    ] {
        let error = helm().run("values_error", json!({ "chart": chart(), "values": values })).await.unwrap();
        let error = error.as_str().unwrap_or_else(|| panic!("{values} is taken"));
        assert!(error.contains(name), "{values}: {error}");
    }
    for values in [json!({}), single_node(), everything(), external_etcd()] {
        let error = helm().run("values_error", json!({ "chart": chart(), "values": values })).await.unwrap();
        assert_eq!(error, Value::Null);
    }
}

/// A folder of values that took names which nobody knows would swallow a slip of the pen.
#[test]
fn no_value_takes_names_that_nobody_knows() {
    fn look(path: &str, schema: &Value) {
        match schema {
            Value::Object(fields) => {
                let is_closed = fields.get("additionalProperties") == Some(&Value::Bool(false));
                assert!(is_closed || !fields.contains_key("properties"), "{path} is open");
                fields.iter().for_each(|(name, schema)| look(&format!("{path}/{name}"), schema));
            }
            Value::Array(all) => all.iter().for_each(|schema| look(path, schema)),
            _ => {}
        }
    }
    let text = fs::read_to_string(chart().join("values.schema.json")).unwrap();
    look("", &serde_json::from_str(&text).unwrap());
}

/// What is in one piece for Kubernetes has one comment.
const IN_ONE_PIECE: [&str; 6] =
    ["resources", "sidecarResources", "nodeSelector", "seccompProfile", "labels", "tolerations"];

#[test]
fn every_value_has_a_comment() {
    let text = fs::read_to_string(chart().join("values.yaml")).unwrap();
    let (mut before, mut within) = ("", None);
    let mut bare = Vec::new();
    for line in text.lines() {
        let depth = line.len() - line.trim_start().len();
        let field = line.trim().split_once(':').filter(|_| !line.trim_start().starts_with(['#', '-']));
        if within.is_some_and(|piece| depth <= piece) {
            within = None;
        }
        if let Some((name, value)) = field.filter(|_| within.is_none()) {
            let is_piece = IN_ONE_PIECE.contains(&name);
            if (is_piece || !value.is_empty()) && !before.trim_start().starts_with('#') {
                bare.push(line);
            }
            within = is_piece.then_some(depth);
        }
        before = line;
    }
    assert_eq!(bare, [""; 0]);
}

/// Freezing somebody's file systems needs no password there.
#[tokio::test]
async fn nodes_serve_nothing_to_strangers_unless_asked_to() {
    for (values, serves) in [(json!({}), false), (everything(), true)] {
        let all = containers(&objects(&values).await);
        let (_, node) = all.iter().find(|(name, _)| name.ends_with("/mayastor-csi-node csi-node")).unwrap();
        assert_eq!(node["args"].as_array().unwrap().contains(&"--enable-registration".into()), serves);
    }
}

#[test]
fn the_seccomp_profile_lets_an_engine_work_and_keeps_the_machine_from_it() {
    let text = fs::read_to_string(chart().join("files/seccomp/io-engine.json")).unwrap();
    let profile: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ALLOW");
    let refused = &profile["syscalls"][0];
    assert_eq!(refused["action"], "SCMP_ACT_ERRNO");
    let refused: BTreeSet<&str> =
        refused["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    for needed in ["io_uring_setup", "io_uring_enter", "io_uring_register", "fallocate", "mmap", "mlock"] {
        assert!(!refused.contains(needed), "{needed}");
    }
    for foreign in ["mount", "bpf", "ptrace", "kexec_load", "init_module", "setns", "unshare", "keyctl"] {
        assert!(refused.contains(foreign), "{foreign}");
    }
}

/// A value that the schema does not know could never be set; one without a default would not be found.
#[test]
fn schema_and_values_have_the_same_names() {
    fn names(path: &str, value: &Value, found: &mut BTreeSet<String>) {
        for (name, value) in value.as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            // Values of their own kind, which Kubernetes knows.
            let is_whole = IN_ONE_PIECE.contains(&name.as_str());
            if value.as_object().is_none_or(serde_json::Map::is_empty) || is_whole {
                found.insert(path);
            } else {
                names(&path, value, found);
            }
        }
    }
    fn schema_names(path: &str, schema: &Value, found: &mut BTreeSet<String>) {
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            let is_whole = IN_ONE_PIECE.contains(&name.as_str());
            if schema.get("properties").is_none() || is_whole {
                found.insert(path);
            } else {
                schema_names(&path, schema, found);
            }
        }
    }
    let values: Value =
        serde_yaml_ng::from_str(&fs::read_to_string(chart().join("values.yaml")).unwrap()).unwrap();
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(chart().join("values.schema.json")).unwrap()).unwrap();
    let (mut given, mut known) = (BTreeSet::new(), BTreeSet::new());
    names("", &values, &mut given);
    schema_names("", &schema, &mut known);
    // Helm's own.
    known.remove(".global");
    assert_eq!(given, known);
}

#[tokio::test]
async fn an_etcd_of_somebody_else_needs_an_identity_of_ours() {
    let error = helm().render(&json!({ "etcd": { "externalUrl": "http://a:2379" } })).await.unwrap_err();
    assert!(format!("{error:#}").contains("clusterUid is needed"), "{error:#}");
    let objects = objects(&external_etcd()).await;
    assert!(objects.iter().all(|object| !title(object).contains("etcd")), "the chart has an etcd of its own");
    let all = serde_json::to_string(&objects).unwrap();
    assert!(all.contains("--store=http://a:2379,http://b:2379") && all.contains("--cluster=6f1c"));
}

#[tokio::test]
async fn without_high_availability_its_agents_are_not_there_and_the_operator_knows() {
    let objects = objects(&json!({ "agents": { "ha": { "enabled": false } } })).await;
    // Its certificate is made with the others, by an authority that nobody keeps.
    let names: Vec<_> = objects.iter().filter(|object| object["kind"] != "Secret").map(title).collect();
    assert!(!names.iter().any(|name| name.contains("-ha-")), "{names:?}");
    let operator = containers(&objects).into_iter().find(|(name, _)| name.ends_with(" operator")).unwrap().1;
    assert!(operator["args"].as_array().unwrap().contains(&"--disable-ha".into()));
}

#[tokio::test]
async fn sidecars_that_the_driver_has_nothing_for_are_not_there() {
    let kinds = |objects: &[Value]| -> BTreeSet<String> {
        objects.iter().map(|object| object["kind"].as_str().unwrap().to_owned()).collect()
    };
    let without = kinds(&objects(&json!({ "csi": { "enabled": false } })).await);
    assert!(!without.contains("CSIDriver") && !without.contains("StorageClass"));
    let default = objects(&json!({})).await;
    assert!(kinds(&default).contains("CSIDriver") && kinds(&default).contains("StorageClass"));
    let sidecars = |objects: &[Value]| -> Vec<String> {
        let all = containers(objects).into_iter().map(|(name, _)| name);
        let controller = all
            .filter_map(|name| name.strip_prefix("Deployment/mayastor-csi-controller ").map(str::to_owned));
        controller.collect()
    };
    assert_eq!(sidecars(&default), ["csi-controller", "csi-provisioner", "csi-attacher", "csi-resizer"]);
    let rigid = objects(&json!({ "csi": { "controller": { "resizer": false } } })).await;
    assert!(!sidecars(&rigid).contains(&"csi-resizer".to_owned()));
    assert_eq!(sidecars(&objects(&everything()).await).len(), 5);
}

/// What the chart's classes ask for is what the driver reads.
#[tokio::test]
async fn classes_ask_for_what_the_driver_knows() {
    let values = json!({ "storageClass": { "default": "3-replicas", "parameters": { "thin": "true" } } });
    let objects = objects(&values).await;
    let classes: Vec<_> = objects.iter().filter(|object| object["kind"] == "StorageClass").collect();
    let mut asked = Vec::new();
    for class in classes {
        let params: HashMap<String, String> = serde_json::from_value(class["parameters"].clone()).unwrap();
        let params = csi::params::Params::parse(&params).unwrap();
        let is_default = &class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"];
        asked.push((params.replicas, params.thin, is_default == "true"));
    }
    assert_eq!(asked, [(3, true, true), (1, true, false)]);
}

/// Everybody else has no more than an ordinary container.
#[tokio::test]
async fn only_who_must_is_privileged() {
    let privileged = |objects: &[Value]| -> Vec<String> {
        let all = containers(objects).into_iter();
        let found = all.filter(|(_, container)| container["securityContext"]["privileged"] == true);
        found.map(|(name, _)| name.rsplit_once(' ').unwrap().1.to_owned()).collect()
    };
    assert_eq!(privileged(&objects(&json!({})).await), ["csi-node", "ha-node"]);
    assert_eq!(privileged(&objects(&everything()).await), ["csi-node", "ha-node", "io-engine"]);
    for values in [json!({}), everything()] {
        let objects = objects(&values).await;
        for (name, container) in containers(&objects) {
            let context = &container["securityContext"];
            // Tools of file systems keep notes.
            assert!(context["readOnlyRootFilesystem"] == true || name.ends_with(" csi-node"), "{name}");
            if context["privileged"] != true {
                assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
                assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{name}");
            }
        }
        for pod in objects.iter().filter_map(pod_spec) {
            let mounts_token = pod["automountServiceAccountToken"] != false;
            let account = pod["serviceAccountName"].as_str().unwrap_or_default();
            let talks = ["operator", "csi-controller", "preflight-uninstall"];
            assert!(!mounts_token || talks.iter().any(|name| account.ends_with(name)), "{account}");
        }
    }
}

#[tokio::test]
async fn every_container_says_what_it_takes() {
    for values in [json!({}), everything()] {
        for (name, container) in containers(&objects(&values).await) {
            for what in ["/requests/cpu", "/requests/memory", "/limits/memory"] {
                assert!(container["resources"].pointer(what).is_some(), "{name} lacks {what}");
            }
            let image = container["image"].as_str().unwrap();
            assert!(!image.ends_with(":latest") && image.contains(':'), "{image}");
        }
    }
}

#[tokio::test]
async fn no_role_has_a_wildcard_and_each_workload_an_account_of_its_own() {
    let objects = objects(&everything()).await;
    for role in objects.iter().filter(|object| object["kind"].as_str().unwrap().ends_with("Role")) {
        assert!(!role["rules"].to_string().contains("\"*\""), "{}", title(role));
        assert!(!role["rules"].to_string().contains("secrets"), "{}", title(role));
    }
    let mut accounts = BTreeMap::new();
    for object in &objects {
        if let Some(account) = pod_spec(object).and_then(|pod| pod["serviceAccountName"].as_str()) {
            assert_eq!(accounts.insert(account.to_owned(), title(object)), None);
            assert!(objects.iter().any(|one| title(one) == format!("ServiceAccount/{account}")), "{account}");
        }
    }
}

/// What selects pods must select some.
#[tokio::test]
async fn services_budgets_and_policies_select_pods_of_the_chart() {
    let objects = objects(&everything()).await;
    let labels: Vec<_> = objects
        .iter()
        .filter_map(|object| object.pointer("/spec/template/metadata/labels"))
        .filter_map(Value::as_object)
        .collect();
    let mut seen = 0;
    for object in &objects {
        let selector = match object["kind"].as_str().unwrap() {
            "Service" => &object["spec"]["selector"],
            "PodDisruptionBudget" => &object["spec"]["selector"]["matchLabels"],
            "NetworkPolicy" => &object["spec"]["podSelector"]["matchLabels"],
            _ => continue,
        };
        seen += 1;
        let mut selector = selector.as_object().unwrap().clone();
        // This one the operator that leads puts on its pod.
        if selector.remove(operator::kube::leads::LEADS_LABEL).is_some() {
            assert_eq!(title(object), "Service/mayastor-operator");
        }
        let is_on = |labels: &&serde_json::Map<String, Value>| {
            selector.iter().all(|(name, value)| labels.get(name) == Some(value))
        };
        assert_eq!(labels.iter().copied().filter(is_on).count(), 1, "{}", title(object));
    }
    assert!(seen >= 8, "{seen}");
}

/// The test server is older than the rules: it gets the set without them (`install.rs`).
#[tokio::test]
async fn definitions_are_those_of_the_product() {
    for folder in ["", "no-cel"] {
        let ours = repository("charts/mayastor/files/crds").join(folder);
        let theirs = repository("crds/yaml").join(folder);
        let files = |folder: &Path| -> BTreeMap<String, String> {
            let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            let files = entries.filter(|path| path.is_file()).map(|path| {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, fs::read_to_string(&path).unwrap())
            });
            files.collect()
        };
        assert!(files(&ours) == files(&theirs), "charts/mayastor/files/crds is old: run `make generate`");
    }
    let files: BTreeMap<_, _> = helm().render(&json!({})).await.unwrap().into_iter().collect();
    let rendered = documents(&files[DEFINITIONS]);
    let expected: Vec<_> = fs::read_dir(repository("crds/yaml"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .flat_map(|path| documents(&fs::read_to_string(path).unwrap()))
        .collect();
    assert_eq!(rendered.len(), expected.len());
    for definition in expected {
        assert!(rendered.contains(&definition), "{}", title(&definition));
        assert_eq!(definition["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    }
}

/// An option that a program does not have shows in a pod that never starts, and nowhere before.
#[tokio::test]
async fn every_program_knows_the_options_it_is_given() {
    let mut started = BTreeSet::new();
    let metrics = json!({ "metrics": { "enabled": true } });
    for values in [json!({}), single_node(), external_etcd(), metrics] {
        for (title, container) in containers(&objects(&values).await) {
            let image = container["image"].as_str().unwrap();
            let Some((name, _)) =
                image.strip_prefix("localhost/mayastor/").and_then(|image| image.split_once(':'))
            else {
                continue;
            };
            let args: Vec<_> =
                container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
            let mut command = Command::new(program(name).unwrap());
            for variable in container["env"].as_array().into_iter().flatten() {
                let value = match variable["value"].as_str() {
                    Some(value) => value,
                    // An address where one is asked for; a name will do elsewhere.
                    None if variable["name"].as_str().unwrap().ends_with("_IP") => "10.0.0.1",
                    None => "name",
                };
                command.env(variable["name"].as_str().unwrap(), value);
            }
            // Subcommands have no version, but help.
            let last = if args.iter().any(|arg| !arg.starts_with("--")) { "--help" } else { "--version" };
            let output = command.args(&args).arg(last).output().unwrap();
            assert!(output.status.success(), "{title} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
            started.insert(name.to_owned());
        }
    }
    let expected = ["csi-controller", "csi-node", "ha-cluster", "ha-node", "io-engine", "operator"];
    assert_eq!(started.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

/// A figure by another name would be an empty panel, which looks like calm.
#[test]
fn the_dashboard_asks_for_figures_that_are_there() {
    let text = fs::read_to_string(chart().join("files/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut asked = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let ours = ["ha_cluster_", "ha_node_", "operator_", "io_engine_", "csi_node_"];
            let is_ours = |word: &&str| ours.iter().any(|prefix| word.starts_with(prefix));
            asked.extend(words.filter(is_ours).map(str::to_owned));
        }
    }
    assert!(asked.len() >= 15, "{asked:?}");
    let sources = [
        ("ha_cluster_", "ha/src/cluster/metrics.rs"),
        ("ha_node_", "ha/src/node/metrics.rs"),
        ("operator_", "operator/src/metrics.rs"),
        ("io_engine_", "io-engine/src/metrics.rs"),
        ("csi_node_", "csi/src/node/metrics.rs"),
    ];
    for name in asked {
        let (prefix, file) = sources.iter().find(|(prefix, _)| name.starts_with(prefix)).unwrap();
        let source = fs::read_to_string(repository(file)).unwrap();
        let family = name.trim_start_matches(prefix).trim_end_matches("_total");
        let family = family.trim_end_matches("_seconds_bucket").trim_end_matches("_bytes");
        // Figures of I/O are alike for nexuses and replicas.
        let shared = family.replace("nexus_", "{what}_").replace("replica_", "{what}_");
        let is_there = [family, &shared].iter().any(|family| source.contains(&format!("\"{family}\"")));
        assert!(is_there, "{name} is no figure of {file}");
    }
}

#[tokio::test]
async fn etcd_knows_the_options_it_is_given() {
    for values in [json!({}), single_node(), everything()] {
        let all = containers(&objects(&values).await);
        let (_, container) = all.into_iter().find(|(name, _)| name.ends_with(" etcd")).unwrap();
        let command = container["command"].as_array().unwrap().iter();
        let command: Vec<_> =
            command.map(|word| word.as_str().unwrap().replace("$(POD_NAME)", "mayastor-etcd-0")).collect();
        let output = Command::new("etcd").args(&command[1..]).arg("--version").output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
