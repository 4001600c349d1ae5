//! Who may change an engine (safety rule C3).
//!
//! Every changing call of a control plane carries the registry's incarnation and the leader's revision as gRPC
//! metadata. An engine keeps the highest revision it has seen, durably, and refuses a lower one: a leader that was
//! deposed while it slept cannot act any more.
//!
//! | seen so far | call | answer |
//! | --- | --- | --- |
//! | nothing | without metadata, or `unfenced` | served |
//! | nothing | a leader | served, noted |
//! | a leader | without metadata | refused |
//! | a leader | `unfenced` | served |
//! | a leader | same registry, same or higher revision | served, noted |
//! | a leader | same registry, lower revision | refused |
//! | a leader | another registry | refused, unless it takes over explicitly |

use serde::{Deserialize, Serialize};
use tonic::metadata::{MetadataMap, MetadataValue};
use uuid::Uuid;

use crate::error::{ApiError, ErrorKind};

/// Metadata: incarnation of the caller's registry, a uuid.
pub const REGISTRY_KEY: &str = "mayastor-registry-incarnation";
/// Metadata: revision at which the caller became leader, a decimal number.
pub const REVISION_KEY: &str = "mayastor-leader-revision";
/// Metadata: the caller knows that it is no leader and means it, `true`.
pub const UNFENCED_KEY: &str = "mayastor-unfenced";
/// Metadata: the caller's registry replaces another one on purpose, `true`.
pub const TAKE_OVER_KEY: &str = "mayastor-take-over";

/// On whose authority a change is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// Nobody's: a control plane that knows no fencing, or a tool.
    Absent,
    /// Nobody's, and a person has said that this is meant.
    Unfenced,
    /// A leader's.
    Leader {
        /// Incarnation of its registry.
        registry: Uuid,
        /// Revision at which it became leader; higher is newer.
        revision: u64,
        /// Replace another registry: only recovery says this.
        take_over: bool,
    },
}

impl Fence {
    /// A leader in its own registry.
    pub fn leader(registry: Uuid, revision: u64) -> Self {
        Self::Leader { registry, revision, take_over: false }
    }

    /// Adds the fence to a request's metadata.
    pub fn write(self, metadata: &mut MetadataMap) {
        let mut put = |key: &'static str, value: String| {
            let value = MetadataValue::try_from(value).expect("uuids and numbers are ascii");
            metadata.insert(key, value);
        };
        match self {
            Self::Absent => {}
            Self::Unfenced => put(UNFENCED_KEY, "true".into()),
            Self::Leader { registry, revision, take_over } => {
                put(REGISTRY_KEY, registry.to_string());
                put(REVISION_KEY, revision.to_string());
                if take_over {
                    put(TAKE_OVER_KEY, "true".into());
                }
            }
        }
    }

    /// Reads the fence from a request's metadata; half a fence is an error, never no fence.
    pub fn read(metadata: &MetadataMap) -> Result<Self, ApiError> {
        let text = |key: &str| -> Result<Option<&str>, ApiError> {
            let Some(value) = metadata.get(key) else { return Ok(None) };
            value.to_str().map(Some).map_err(|_| ApiError::invalid(format!("metadata {key} is not text")))
        };
        let is_set = |key: &str| Ok::<_, ApiError>(text(key)? == Some("true"));
        match (text(REGISTRY_KEY)?, text(REVISION_KEY)?) {
            (None, None) if is_set(UNFENCED_KEY)? => Ok(Self::Unfenced),
            (None, None) => Ok(Self::Absent),
            (Some(registry), Some(revision)) => Ok(Self::Leader {
                registry: registry
                    .parse()
                    .map_err(|_| ApiError::invalid(format!("metadata {REGISTRY_KEY} is not a uuid")))?,
                revision: revision
                    .parse()
                    .map_err(|_| ApiError::invalid(format!("metadata {REVISION_KEY} is not a number")))?,
                take_over: is_set(TAKE_OVER_KEY)?,
            }),
            _ => Err(ApiError::invalid(format!(
                "metadata {REGISTRY_KEY} and {REVISION_KEY} belong together; one is missing"
            ))),
        }
    }
}

/// The newest leader an engine has seen; it outlives the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceState {
    /// Registry and revision of that leader.
    pub leader: Option<SeenLeader>,
}

/// A leader as an engine remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenLeader {
    /// Incarnation of its registry.
    pub registry: Uuid,
    /// Highest revision seen of it.
    pub revision: u64,
}

impl FenceState {
    /// Decides a call. `Some` is what must be durable before the call is carried out.
    pub fn admit(self, fence: Fence) -> Result<Option<Self>, ApiError> {
        let refuse = |why: String| Err(ApiError::new(ErrorKind::Fenced, why));
        match (self.leader, fence) {
            (_, Fence::Unfenced) | (None, Fence::Absent) => Ok(None),
            (Some(seen), Fence::Absent) => refuse(format!(
                "this engine obeys the control plane of registry {} (revision {}); a change beside it must say so: \
                 send metadata {UNFENCED_KEY}=true (engine-client: --unfenced)",
                seen.registry, seen.revision
            )),
            (seen, Fence::Leader { registry, revision, take_over }) => match seen {
                Some(seen) if seen.registry == registry && revision < seen.revision => refuse(format!(
                    "leader revision {revision} is deposed: this engine has seen {} of the same registry",
                    seen.revision
                )),
                Some(seen) if seen.registry != registry && !take_over => refuse(format!(
                    "this engine obeys registry {}, not {registry}; only a recovery may take over",
                    seen.registry
                )),
                Some(seen) if seen == (SeenLeader { registry, revision }) => Ok(None),
                _ => Ok(Some(Self { leader: Some(SeenLeader { registry, revision }) })),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn seen(revision: u64) -> FenceState {
        FenceState { leader: Some(SeenLeader { registry: OURS, revision }) }
    }

    /// A leader that was paused after its decision wakes up when another leads: its call has no effect.
    #[test]
    fn c3_a_deposed_leader_is_refused() {
        let refused = seen(9).admit(Fence::leader(OURS, 8)).expect_err("8 is older than 9");
        assert_eq!(refused.kind(), ErrorKind::Fenced);
        assert_eq!(seen(9).admit(Fence::leader(OURS, 9)), Ok(None));
        assert_eq!(seen(9).admit(Fence::leader(OURS, 10)), Ok(Some(seen(10))));
    }

    #[test]
    fn c3_calls_without_a_fence_are_served_until_a_leader_was_seen() {
        assert_eq!(FenceState::default().admit(Fence::Absent), Ok(None));
        assert_eq!(FenceState::default().admit(Fence::leader(OURS, 1)), Ok(Some(seen(1))));
        assert_eq!(seen(1).admit(Fence::Absent).map_err(|error| error.kind()), Err(ErrorKind::Fenced));
        assert_eq!(seen(1).admit(Fence::Unfenced), Ok(None));
    }

    #[test]
    fn c3_another_registry_is_admitted_only_by_take_over() {
        let other = Fence::leader(OTHER, 99);
        assert_eq!(seen(1).admit(other).map_err(|error| error.kind()), Err(ErrorKind::Fenced));
        let take_over = Fence::Leader { registry: OTHER, revision: 3, take_over: true };
        let after = seen(9).admit(take_over).expect("taken over").expect("noted");
        assert_eq!(after.leader, Some(SeenLeader { registry: OTHER, revision: 3 }));
        assert_eq!(after.admit(Fence::leader(OURS, 10)).map_err(|e| e.kind()), Err(ErrorKind::Fenced));
    }

    #[test]
    fn a_fence_survives_the_way_over_the_wire() {
        let take_over = Fence::Leader { registry: OTHER, revision: u64::MAX, take_over: true };
        for fence in [Fence::Absent, Fence::Unfenced, Fence::leader(OURS, 3), take_over] {
            let mut metadata = MetadataMap::new();
            fence.write(&mut metadata);
            assert_eq!(Fence::read(&metadata), Ok(fence));
        }
    }

    #[test]
    fn half_a_fence_is_an_error_not_no_fence() {
        let mut metadata = MetadataMap::new();
        metadata.insert(REVISION_KEY, MetadataValue::from_static("3"));
        assert_eq!(Fence::read(&metadata).map_err(|error| error.kind()), Err(ErrorKind::InvalidArgument));
    }
}
