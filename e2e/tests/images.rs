//! The images: well formed, what the chart runs, and able to run.
//!
//! Made of the programs of this build, as `make images` makes those of a release.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use e2e::helm::Helm;
use e2e::images::{Besides, COMPONENTS, make};
use e2e::run_dir::RunDir;
use e2e::steps::step;
use serde_json::{Value, json};

/// An image, opened.
struct Opened {
    config: Value,
    tags: Vec<String>,
    /// What a container of it sees.
    root: PathBuf,
}

fn sh(program: &str, arguments: &[&Path]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn digest(file: &Path) -> Result<String> {
    let words = sh("sha256sum", &[file])?;
    Ok(words.split(' ').next().unwrap_or_default().to_owned())
}

/// Opens an archive, and checks of it what container engines check.
fn open(archive: &Path, folder: &Path) -> Result<Opened> {
    let (parts, root) = (folder.join("parts"), folder.join("root"));
    fs::create_dir_all(&parts)?;
    fs::create_dir_all(&root)?;
    sh("tar", &["-xf".as_ref(), archive, "-C".as_ref(), &parts])?;
    let manifest: Value = serde_json::from_str(&fs::read_to_string(parts.join("manifest.json"))?)?;
    let image = manifest.get(0).context("one image")?;
    let words = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let config_name = image["Config"].as_str().context("a config")?;
    let config_file = parts.join(config_name);
    ensure!(format!("{}.json", digest(&config_file)?) == config_name, "the config is named by its digest");
    let config: Value = serde_json::from_str(&fs::read_to_string(config_file)?)?;
    let (layers, ids) = (words(&image["Layers"]), words(&config["rootfs"]["diff_ids"]));
    ensure!(!layers.is_empty() && layers.len() == ids.len(), "{layers:?} and {ids:?}");
    for (layer, id) in layers.iter().zip(ids) {
        let layer = parts.join(layer);
        ensure!(format!("sha256:{}", digest(&layer)?) == id, "a layer is another than its id says");
        sh("tar", &["-xf".as_ref(), &layer, "-C".as_ref(), &root])?;
    }
    Ok(Opened { config, tags: words(&image["RepoTags"]), root })
}

/// Image to the users that containers of it run as, in everything that the chart makes by default.
async fn chart_runs() -> Result<BTreeMap<String, BTreeSet<i64>>> {
    let mut found: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (path, text) in Helm::new("mayastor", "mayastor")?.render(&json!({})).await? {
        if path.ends_with("NOTES.txt") {
            continue;
        }
        for document in text.split("\n---") {
            let document: Value = serde_yaml_ng::from_str(document)?;
            let spec = document.pointer("/spec/template/spec").or(document.get("spec"));
            for container in spec.and_then(|spec| spec["containers"].as_array()).into_iter().flatten() {
                let image = container["image"].as_str().context("a container has an image")?;
                let user = container.pointer("/securityContext/runAsUser").and_then(Value::as_i64);
                found.entry(image.to_owned()).or_default().extend(user);
            }
        }
    }
    Ok(found)
}

#[tokio::test]
async fn images_are_what_the_chart_runs() -> Result<()> {
    let run = RunDir::new("images")?;
    let archives =
        step("make them", async { make(&run.path().join("archives"), COMPONENTS, Besides::Nothing).await })
            .await?;
    let runs = step("render the chart", chart_runs()).await?;
    let ours: BTreeSet<_> =
        runs.keys().filter(|image| image.starts_with("localhost/mayastor/")).cloned().collect();
    let mut made = BTreeSet::new();
    for archive in &archives {
        let name = archive.file_stem().and_then(|name| name.to_str()).context("a name")?;
        step(&format!("{name} is well formed and runs"), async {
            let image = open(archive, &run.path().join(name))?;
            let program = format!("/usr/local/bin/{name}");
            ensure!(image.config["config"]["Entrypoint"] == json!([program]), "{}", image.config);
            let user = image.config["config"]["User"].as_str().context("a user")?;
            for tag in &image.tags {
                let uid: i64 = user.split(':').next().unwrap_or_default().parse()?;
                let wanted = &runs.get(tag).with_context(|| format!("{tag} is not in the chart"))?;
                ensure!(wanted.iter().all(|wanted| *wanted == uid), "{tag} runs as {wanted:?}, not as {uid}");
            }
            // With the libraries in it and no others.
            let answer = sh("chroot", &[&image.root, program.as_ref(), "--version".as_ref()])?;
            ensure!(answer.contains(env!("CARGO_PKG_VERSION")), "{answer}");
            if name == "csi-node" {
                for (tool, option) in
                    [("mkfs.ext4", "-V"), ("mkfs.xfs", "-V"), ("mkfs.btrfs", "-V"), ("mount", "-V")]
                {
                    sh("chroot", &[&image.root, tool.as_ref(), option.as_ref()])?;
                }
                for tool in ["blkid", "resize2fs", "xfs_growfs", "btrfs", "umount"] {
                    let found = ["bin", "sbin"].iter().any(|dir| image.root.join(dir).join(tool).exists());
                    ensure!(found, "no {tool}");
                }
            }
            made.extend(image.tags);
            Ok(())
        })
        .await?;
    }
    ensure!(made == ours, "{made:?} are made, and the chart runs {ours:?}");
    run.passed();
    Ok(())
}

/// The Dockerfile, which no machine of ours can build, says the same as the archives.
#[tokio::test]
async fn the_dockerfile_has_a_stage_for_each_image() -> Result<()> {
    let file = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Dockerfile"))?;
    let stages: Vec<_> = file.split("\nFROM ").collect();
    for name in COMPONENTS {
        let stage = stages
            .iter()
            .find(|stage| stage.lines().next().unwrap_or_default().ends_with(&format!(" AS {name}")));
        let stage = stage.with_context(|| format!("no stage {name}"))?;
        let root = ["io-engine", "ha-node", "csi-node"].contains(name);
        let user = if root { "USER 0:0" } else { "USER 65532:65532" };
        ensure!(stage.contains(user), "{name}: {stage}");
        ensure!(stage.contains(&format!("ENTRYPOINT [\"/usr/local/bin/{name}\"]")), "{name}: {stage}");
    }
    Ok(())
}
