//! Container images of our programs, made without a container engine by `e2e/setup/images.sh`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::programs::program;
use crate::setup;

const SCRIPT: &str = "images.sh";

/// Programs that have an image.
pub const COMPONENTS: &[&str] =
    &["operator", "io-engine", "ha-cluster", "ha-node", "csi-controller", "csi-node"];

/// Downloads what is needed for it, where it is missing: from the hub of a lab nothing can be downloaded.
pub fn prepare() -> Result<()> {
    setup::run(SCRIPT, &["--prepare"]).map(drop)
}

/// Makes archives of the programs of this build in `folder`, and returns their files. With `lab` also what a node of
/// the laboratory needs besides.
pub async fn make(folder: &Path, components: &[&str], lab: bool) -> Result<Vec<PathBuf>> {
    let programs = program("io-engine")?;
    let programs = programs.parent().context("programs are in a folder")?.to_owned();
    let mut arguments: Vec<OsString> =
        vec!["--programs".into(), programs.into(), "--out".into(), folder.into()];
    arguments.extend(lab.then(|| "--lab".into()));
    arguments.extend(components.iter().map(OsString::from));
    tokio::task::spawn_blocking(move || setup::run(SCRIPT, &arguments)).await.context("wait for images.sh")?
}
