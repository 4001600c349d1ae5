//! Who may change the engine (SAFETY C3): the newest leader seen, kept durably beside the pools' list.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use engine_api::{ApiError, ErrorKind, Fence, FenceState};

use super::remembered::{self, StateError};

/// Every change passes here: see [`engine_api::fence`] for the rules.
pub(super) struct Gatekeeper {
    path: PathBuf,
    state: Mutex<FenceState>,
    /// One leader is noted at a time.
    noting: tokio::sync::Mutex<()>,
}

impl Gatekeeper {
    /// Reads what is remembered.
    pub(super) fn open(state_dir: &Path) -> Result<Self, StateError> {
        let path = state_dir.join("leader.json");
        let state = remembered::load(&path)?.unwrap_or_default();
        Ok(Self { path, state: Mutex::new(state), noting: tokio::sync::Mutex::default() })
    }

    fn state(&self) -> FenceState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a caller in or not; a new leader is durable before it is let in.
    pub(super) async fn admit(&self, fence: Fence) -> Result<(), ApiError> {
        if self.state().admit(fence)?.is_none() {
            return Ok(());
        }
        let _turn = self.noting.lock().await;
        let Some(newer) = self.state().admit(fence)? else { return Ok(()) };
        let path = self.path.clone();
        let saved = tokio::task::spawn_blocking(move || remembered::save(&path, &newer)).await;
        match saved {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(ApiError::internal(format!("note the leader: {error}"))),
            Err(_) => return Err(ApiError::internal("note the leader: the task was lost")),
        }
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = newer;
        tracing::info!(leader = ?newer.leader, "a new leader is obeyed");
        Ok(())
    }

    /// Looks again at a caller that was let in and had to wait since.
    pub(super) fn check(&self, fence: Fence) -> Result<(), ApiError> {
        match self.state().admit(fence) {
            // A leader newer than what is noted was let in, so it is noted: unless it took over and was taken over from.
            Ok(Some(_)) => Err(ApiError::new(ErrorKind::Fenced, "another registry took over meanwhile")),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// A leader is deposed, the engine restarts, and the deposed leader's call still has no effect.
    #[tokio::test]
    async fn c3_the_newest_leader_is_remembered_over_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let registry = Uuid::from_u128(1);
        let keeper = Gatekeeper::open(dir.path()).expect("empty");
        keeper.admit(Fence::leader(registry, 9)).await.expect("the first");
        drop(keeper);
        let keeper = Gatekeeper::open(dir.path()).expect("readable");
        let refused = keeper.admit(Fence::leader(registry, 8)).await.expect_err("deposed");
        assert_eq!(refused.kind(), ErrorKind::Fenced);
        assert!(keeper.check(Fence::leader(registry, 9)).is_ok());
    }

    /// A call is let in, waits for its turn, and another leader comes meanwhile.
    #[tokio::test]
    async fn c3_a_call_that_waited_is_looked_at_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let registry = Uuid::from_u128(1);
        let keeper = Gatekeeper::open(dir.path()).expect("empty");
        keeper.admit(Fence::leader(registry, 1)).await.expect("let in");
        keeper.admit(Fence::leader(registry, 2)).await.expect("let in");
        assert!(keeper.check(Fence::leader(registry, 1)).is_err());
    }
}
