//! The operator over REST.

use std::time::Duration;

use control_api::{Client, ClientError, ErrorKind, Volume};
use futures::FutureExt;
use futures::future::BoxFuture;
use uuid::Uuid;

use super::ports::{Published, Republish, VolumeError, VolumeErrorKind, Volumes};
use super::record::Target;

/// The operator at the other end of a REST client.
#[derive(Clone, Debug)]
pub struct RestVolumes {
    changes: Client,
    looks: Client,
}

impl RestVolumes {
    /// An operator, or several behind one address, at `http://host:port`. `look` limits a call that only looks, `change`
    /// one that republishes or destroys.
    pub fn new(base: &str, look: Duration, change: Duration) -> Result<Self, ClientError> {
        Ok(Self { changes: Client::new(base, change)?, looks: Client::new(base, look)? })
    }
}

impl Volumes for RestVolumes {
    fn published(&self, volume: Uuid) -> BoxFuture<'_, Result<Published, VolumeError>> {
        async move { published(self.looks.volume(volume).await.map_err(|error| refused(&error))?) }.boxed()
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
            let answer = self.changes.republish_volume(volume, &request).await;
            Ok(published(answer.map_err(|error| refused(&error))?)?.target)
        }
        .boxed()
    }

    fn destroy_shutdown_targets<'a>(
        &'a self,
        volume: Uuid,
        registered: &'a [String],
    ) -> BoxFuture<'a, Result<(), VolumeError>> {
        async move {
            let answer = self.changes.destroy_shutdown_targets(volume, registered).await;
            answer.map_err(|error| refused(&error))
        }
        .boxed()
    }
}

fn published(volume: Volume) -> Result<Published, VolumeError> {
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
    Ok(Published { target, allowed_hosts: wanted.allowed_hosts })
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

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
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
