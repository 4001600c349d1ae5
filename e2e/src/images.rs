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

/// What is made beside images of our programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Besides {
    /// Nothing: as for a user.
    Nothing,
    /// What every node of the laboratory needs.
    Lab,
    /// That, and the rest of what the chart runs: etcd and the sidecars, which are played.
    Whole,
}

/// Makes archives of the programs of this build in `folder`, and returns their files.
pub async fn make(folder: &Path, components: &[&str], besides: Besides) -> Result<Vec<PathBuf>> {
    let programs = program("io-engine")?;
    let programs = programs.parent().context("programs are in a folder")?.to_owned();
    let mut arguments: Vec<OsString> =
        vec!["--programs".into(), programs.into(), "--out".into(), folder.into()];
    arguments.extend(match besides {
        Besides::Nothing => None,
        Besides::Lab => Some("--lab".into()),
        Besides::Whole => Some("--whole".into()),
    });
    arguments.extend(components.iter().map(OsString::from));
    tokio::task::spawn_blocking(move || setup::run(SCRIPT, &arguments)).await.context("wait for images.sh")?
}
