//! The operator over REST.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control_api::{Client, ClientError, ErrorKind, Volume};
use futures::FutureExt;
use futures::future::BoxFuture;
use telemetry::chain;
use uuid::Uuid;

use super::ports::{Published, Republish, VolumeError, VolumeErrorKind, Volumes};
use super::record::Target;

/// The operators at the other end of REST: several, of which one leads.
///
/// One that does not lead says so, and one that is gone cannot be connected to; the next is asked at once, over a new
/// connection, as several may also be behind one address that picks one for each connection.
#[derive(Debug)]
pub struct RestVolumes {
    endpoints: Vec<String>,
    look: Duration,
    change: Duration,
    present: Mutex<Present>,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
enum Question<'a> {
    Look,
    Republish(&'a control_api::Republish),
    Destroy(&'a [String]),
    ReportPath { standby: Uuid, node: &'a str },
}

/// Who is asked now.
#[derive(Clone, Debug)]
struct Present {
    turn: usize,
    looks: Client,
    changes: Client,
}

impl RestVolumes {
    /// Operators at these addresses, `http://host:port`, at least one. `look` limits a call that only looks, `change` one
    /// that republishes or destroys.
    pub fn new(endpoints: Vec<String>, look: Duration, change: Duration) -> Result<Self, ClientError> {
        let first = endpoints.first().cloned().unwrap_or_default();
        let present =
            Present { turn: 0, looks: Client::new(&first, look)?, changes: Client::new(&first, change)? };
        Ok(Self { endpoints, look, change, present: Mutex::new(present) })
    }

    /// Asks until one answers that leads, each operator once, and at least twice.
    async fn ask(&self, volume: Uuid, question: Question<'_>) -> Result<Option<Volume>, VolumeError> {
        let mut asked = 1;
        loop {
            let present = self.lock().clone();
            let turn = present.turn;
            match put(&present, volume, question).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    let is_elsewhere = is_elsewhere(&error);
                    let refused = refused(&error);
                    if refused.kind == VolumeErrorKind::Unreachable {
                        self.turn_from(turn);
                    }
                    if !is_elsewhere || asked >= self.endpoints.len().max(2) {
                        return Err(refused);
                    }
                    asked += 1;
                }
            }
        }
    }

    /// The next one's turn, unless somebody else has turned already.
    fn turn_from(&self, turn: usize) {
        let mut present = self.lock();
        if present.turn != turn {
            return;
        }
        let next = turn.wrapping_add(1);
        let Some(base) = self.endpoints.get(next % self.endpoints.len().max(1)) else { return };
        if let (Ok(looks), Ok(changes)) = (Client::new(base, self.look), Client::new(base, self.change)) {
            *present = Present { turn: next, looks, changes };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts the question to who is asked now; what is destroyed has no answer.
async fn put(present: &Present, volume: Uuid, question: Question<'_>) -> Result<Option<Volume>, ClientError> {
    match question {
        Question::Look => present.looks.volume(volume).await.map(Some),
        Question::Republish(request) => present.changes.republish_volume(volume, request).await.map(Some),
        Question::Destroy(registered) => {
            present.changes.destroy_shutdown_targets(volume, registered).await.map(|()| None)
        }
        Question::ReportPath { standby, node } => {
            present.looks.report_path(volume, standby, node).await.map(|()| None)
        }
    }
}

/// Nothing was done, and another operator, or another connection, may do it.
fn is_elsewhere(error: &ClientError) -> bool {
    match error {
        ClientError::Transport { source, .. } => source.is_connect(),
        _ => error.kind() == Some(ErrorKind::Unavailable),
    }
}

impl Volumes for RestVolumes {
    fn published(&self, volume: Uuid) -> BoxFuture<'_, Result<Published, VolumeError>> {
        async move { published(self.ask(volume, Question::Look).await?) }.boxed()
    }

    fn republish<'a>(
        &'a self,
        volume: Uuid,
        republish: &'a Republish,
    ) -> BoxFuture<'a, Result<Target, VolumeError>> {
        async move {
            let request = control_api::Republish {
                frontend_host: republish.frontend_host.clone(),
                target_node: None,
                replaces: republish.replaced,
                reuse_existing: republish.reuse_existing,
                reuse_existing_fallback: republish.reuse_existing_fallback,
            };
            Ok(published(self.ask(volume, Question::Republish(&request)).await?)?.target)
        }
        .boxed()
    }

    fn destroy_shutdown_targets<'a>(
        &'a self,
        volume: Uuid,
        registered: &'a [String],
    ) -> BoxFuture<'a, Result<(), VolumeError>> {
        async move { self.ask(volume, Question::Destroy(registered)).await.map(drop) }.boxed()
    }

    fn report_path<'a>(
        &'a self,
        volume: Uuid,
        standby: Uuid,
        node: &'a str,
    ) -> BoxFuture<'a, Result<(), VolumeError>> {
        async move { self.ask(volume, Question::ReportPath { standby, node }).await.map(drop) }.boxed()
    }
}

fn published(volume: Option<Volume>) -> Result<Published, VolumeError> {
    let empty = || VolumeError::new(VolumeErrorKind::Unreachable, "an empty answer");
    let volume = volume.ok_or_else(empty)?;
    let Some(wanted) = volume.spec.target else {
        return Err(VolumeError::new(VolumeErrorKind::NotPublished, "the volume has no target"));
    };
    // What an engine shows of another nexus is what is left of an older target.
    let is_wanted = |shown: &control_api::Nexus| {
        shown.node == wanted.node && wanted.uuid.is_none_or(|nexus| nexus == shown.uuid)
    };
    let shown = volume.state.target.filter(is_wanted);
    let target = Target {
        nexus: wanted.uuid.or_else(|| shown.as_ref().map(|shown| shown.uuid)),
        node: wanted.node,
        uri: shown.map(|shown| shown.device_uri).filter(|uri| !uri.is_empty()),
    };
    let standby = volume.spec.moving.map(|moving| Target {
        nexus: Some(moving.uuid),
        node: moving.node,
        uri: moving.device_uri.filter(|uri| !uri.is_empty()),
    });
    Ok(Published { target, allowed_hosts: wanted.allowed_hosts, standby })
}

/// Control-plane reference, section 5.2: what the operator's refusal means.
fn refused(error: &ClientError) -> VolumeError {
    let kind = match error.kind() {
        None => VolumeErrorKind::Unreachable,
        Some(kind) => match kind {
            ErrorKind::NotFound => VolumeErrorKind::NotFound,
            ErrorKind::NotPublished => VolumeErrorKind::NotPublished,
            ErrorKind::PermissionDenied => VolumeErrorKind::PermissionDenied,
            ErrorKind::ResourceExhausted | ErrorKind::CapacityLimitExceeded => {
                VolumeErrorKind::ResourceExhausted
            }
            ErrorKind::InvalidArgument | ErrorKind::Deserialize | ErrorKind::Unimplemented => {
                VolumeErrorKind::Refused
            }
            ErrorKind::DeadlineExceeded | ErrorKind::Timeout | ErrorKind::Unavailable => {
                VolumeErrorKind::Unreachable
            }
            _ => VolumeErrorKind::NotNow,
        },
    };
    VolumeError::new(kind, chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operators_refusal_means_what_the_reference_says() {
        let kind = |kind: ErrorKind| {
            let error = control_api::RestJsonError { details: String::new(), message: String::new(), kind };
            refused(&ClientError::Refused { status: kind.status(), error }).kind
        };
        for (answered, expected) in [
            (ErrorKind::PermissionDenied, VolumeErrorKind::PermissionDenied),
            (ErrorKind::NotPublished, VolumeErrorKind::NotPublished),
            (ErrorKind::NotFound, VolumeErrorKind::NotFound),
            (ErrorKind::ResourceExhausted, VolumeErrorKind::ResourceExhausted),
            (ErrorKind::VolumeNoReplicas, VolumeErrorKind::NotNow),
            (ErrorKind::FailedPrecondition, VolumeErrorKind::NotNow),
            (ErrorKind::Conflict, VolumeErrorKind::NotNow),
            (ErrorKind::Unavailable, VolumeErrorKind::Unreachable),
            (ErrorKind::DeadlineExceeded, VolumeErrorKind::Unreachable),
            (ErrorKind::InvalidArgument, VolumeErrorKind::Refused),
        ] {
            assert_eq!(kind(answered), expected, "{answered:?}");
        }
    }
}
