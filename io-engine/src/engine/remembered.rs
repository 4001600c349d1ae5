//! Small files that outlive the process: written whole to a new file, flushed, and renamed over the old one, so that a
//! crash leaves the old or the new content.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What must be remembered cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading, for a reason other than that there is no file.
    #[error("read {}: may this user? (--state-dir)", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The content makes no sense.
    #[error("{} is damaged; repair it, or move it away to start without what it says", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
    /// Writing.
    #[error("write {}: may this user, and is there space? (--state-dir)", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A pool that the engine has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RememberedPool {
    /// Its name.
    pub(super) name: String,
    /// Its id.
    pub(super) uuid: Uuid,
    /// The device it was last found on.
    pub(super) disk: String,
}

#[derive(Default, Serialize, Deserialize)]
struct PoolFile {
    pools: Vec<RememberedPool>,
}

/// Reads a file; `None` where there is none.
pub(super) fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| StateError::Content { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StateError::Read { path: path.to_owned(), source }),
    }
}

/// Replaces a file; durable when it returns.
pub(super) fn save<T: Serialize>(path: &Path, value: &T) -> Result<(), StateError> {
    let write = || -> io::Result<()> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(value)?)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|source| StateError::Write { path: path.to_owned(), source })
}

/// The pools that the engine had.
pub(super) fn load_pools(path: &Path) -> Result<Vec<RememberedPool>, StateError> {
    Ok(load::<PoolFile>(path)?.unwrap_or_default().pools)
}

/// Notes the pools that the engine has.
pub(super) fn save_pools(path: &Path, pools: Vec<RememberedPool>) -> Result<(), StateError> {
    save(path, &PoolFile { pools })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_what_is_damaged_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("deep/pools.json");
        assert_eq!(load_pools(&path).expect("none yet"), []);
        let pool = RememberedPool { name: "p".into(), uuid: Uuid::from_u128(1), disk: "/d".into() };
        save_pools(&path, vec![pool.clone()]).expect("saved");
        assert_eq!(load_pools(&path).expect("saved"), [pool]);
        fs::write(&path, "{").expect("written");
        let error = load_pools(&path).expect_err("damaged").to_string();
        assert!(error.contains("pools.json"), "{error}");
    }
}
