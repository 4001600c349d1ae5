//! Runs the scripts of `e2e/setup`, which prepare once on a machine what tests need.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

/// Runs a script to its end and returns what it printed: paths of what it made. What it says meanwhile goes to standard
/// error. The first run on a machine downloads, and from the hub of a laboratory nothing can be downloaded.
pub fn run(script: &str, arguments: &[impl AsRef<OsStr>]) -> Result<Vec<PathBuf>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup").join(script);
    let output = Command::new(file)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run e2e/setup/{script}"))?;
    let status = output.status;
    ensure!(status.success(), "e2e/setup/{script} failed ({status}); its words are above");
    let printed =
        String::from_utf8(output.stdout).with_context(|| format!("e2e/setup/{script} prints paths"))?;
    Ok(printed.lines().map(PathBuf::from).collect())
}

/// The same of a script that prints one path.
pub fn one(script: &str, arguments: &[impl AsRef<OsStr>]) -> Result<PathBuf> {
    match &run(script, arguments)?[..] {
        [path] => Ok(path.clone()),
        other => bail!("e2e/setup/{script} printed {other:?} in place of one path"),
    }
}
