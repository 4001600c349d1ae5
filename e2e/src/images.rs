//! Container images of our programs, made without a container engine by `e2e/setup/images.sh`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::programs::program;

/// Programs that have an image.
pub const COMPONENTS: &[&str] =
    &["operator", "io-engine", "ha-cluster", "ha-node", "csi-controller", "csi-node"];

/// Downloads what is needed for it, where it is missing: from the hub of a lab nothing can be downloaded.
pub fn prepare() -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/images.sh");
    let status = Command::new(script).arg("--prepare").stdin(Stdio::null()).status();
    ensure!(status.context("run e2e/setup/images.sh")?.success(), "e2e/setup/images.sh failed, see above");
    Ok(())
}

/// Makes archives of the programs of this build in `folder`, and returns their files. With `lab` also what a node of
/// the laboratory needs besides.
pub async fn make(folder: &Path, components: &[&str], lab: bool) -> Result<Vec<PathBuf>> {
    let programs = program("io-engine")?;
    let programs = programs.parent().context("programs are in a folder")?.to_owned();
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/images.sh"));
    command.arg("--programs").arg(programs).arg("--out").arg(folder);
    command.args(lab.then_some("--lab")).args(components);
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .context("wait for images.sh")?
        .context("run e2e/setup/images.sh")?;
    ensure!(output.status.success(), "e2e/setup/images.sh failed, see above");
    let text = String::from_utf8(output.stdout).context("the script prints paths")?;
    Ok(text.lines().map(PathBuf::from).collect())
}
