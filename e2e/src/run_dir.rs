//! The directory of one run: sockets, disks, logs. Kept for the reader when the run did not pass.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use nix::unistd::getuid;

/// How many directories of earlier, failed runs are left for reading; older ones are swept at the next start.
const KEPT_FAILURES: usize = 8;

/// Tells the run directories of one process apart.
static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A directory `mayastor-lab-<uid>/<pid>-<serial>-<name>` below the system's directory for temporary files (`TMPDIR`).
///
/// Dropping it removes the directory only after [`RunDir::passed`]: a test that panics or returns early leaves its
/// logs behind and prints where they are.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    passed: AtomicBool,
}

impl RunDir {
    /// Makes the directory, and sweeps directories of runs that are long gone.
    pub fn new(name: &str) -> Result<Self> {
        // By user, so that one user's directory does not stand in another's way.
        let root = std::env::temp_dir().join(format!("mayastor-lab-{}", getuid()));
        fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
        sweep(&root);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("{}-{serial}-{name}", std::process::id()));
        // A left-over of an earlier process with this id would mix its logs with ours.
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("remove left-over {}", path.display()))?;
        }
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self { path, passed: AtomicBool::new(false) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says that the run held what it promised: nobody will want to read its logs.
    pub fn passed(&self) {
        self.passed.store(true, Ordering::Relaxed);
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.passed.load(Ordering::Relaxed) {
            if let Err(error) = fs::remove_dir_all(&self.path) {
                eprintln!("cannot remove {}: {error}", self.path.display());
            }
        } else {
            eprintln!("the files and logs of this run are kept in {}", self.path.display());
        }
    }
}

/// Removes all but the newest [`KEPT_FAILURES`] directories whose process is gone. Best effort: a sweep that fails
/// costs disk space, not a run.
fn sweep(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    let mut dead: Vec<_> = entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.split('-').next()?.parse::<u32>().ok());
            pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    dead.sort();
    let surplus = dead.len().saturating_sub(KEPT_FAILURES);
    for (_, path) in dead.into_iter().take(surplus) {
        // Two runs may sweep at once; the second finds the directory gone.
        fs::remove_dir_all(path).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logs are wanted exactly when something went wrong.
    #[test]
    fn a_directory_goes_only_when_its_run_passed() {
        let failed = RunDir::new("failed").unwrap();
        let kept = failed.path().to_owned();
        drop(failed);
        assert!(kept.is_dir());
        fs::remove_dir_all(kept).unwrap();

        let good = RunDir::new("good").unwrap();
        let gone = good.path().to_owned();
        good.passed();
        drop(good);
        assert!(!gone.exists());
    }
}
