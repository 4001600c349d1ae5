//! What the record says, and its two JSON documents.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::member::Epoch;

/// The document under the nexus's key, as control planes of this API read and write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NexusInfo {
    /// The nexus was shut down with its children equal and flushed.
    pub clean_shutdown: bool,
    /// A control plane asks the nexus to stop; never written by an engine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub do_self_shutdown: bool,
    /// The children, by replica.
    pub children: Vec<ChildInfo>,
}

/// One child in [`NexusInfo`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildInfo {
    /// The replica.
    pub uuid: Uuid,
    /// It has every acknowledged write.
    pub healthy: bool,
}

/// The document beside it: what the compare-and-swap and the epochs need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The volume, so that a record found under a reused key is not taken for ours.
    pub volume: Uuid,
    /// The nexus incarnation that wrote this.
    pub writer: Uuid,
    /// Raised by one with every write of one writer; with `writer` it names one write (SAFETY D6).
    pub sequence: u64,
    /// The epoch that this write raises the members to.
    pub epoch: EpochNote,
    /// The lowest epoch that a healthy member may still be at: the raise follows the record, and a crash in between
    /// leaves members here (SAFETY D4).
    pub confirmed_counter: u64,
}

/// [`Epoch`] as it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochNote {
    /// See [`Epoch::counter`].
    pub counter: u64,
    /// See [`Epoch::raised_by`].
    pub raised_by: Uuid,
}

impl From<Epoch> for EpochNote {
    fn from(epoch: Epoch) -> Self {
        Self { counter: epoch.counter, raised_by: epoch.raised_by }
    }
}

impl From<EpochNote> for Epoch {
    fn from(note: EpochNote) -> Self {
        Self { counter: note.counter, raised_by: note.raised_by }
    }
}

/// A child and its health, as changes of the record are planned.
pub type MemberNote = ChildInfo;

/// Both documents: written together, read together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordValue {
    /// Under the key itself.
    pub info: NexusInfo,
    /// Beside it; `None` where only another engine has written the record.
    pub membership: Option<Membership>,
}

/// The documents could not be read.
#[derive(Debug, thiserror::Error)]
#[error("parse the {document} document of a nexus record")]
pub struct ParseError {
    document: &'static str,
    source: serde_json::Error,
}

impl RecordValue {
    /// The two documents as text: the one under the key, and ours.
    pub fn encode(&self) -> (String, Option<String>) {
        let info = serde_json::to_string(&self.info).expect("plain data always has a JSON form");
        let membership = self
            .membership
            .as_ref()
            .map(|ours| serde_json::to_string(ours).expect("plain data always has a JSON form"));
        (info, membership)
    }

    /// The value of two documents as they were found.
    pub fn decode(info: &[u8], membership: Option<&[u8]>) -> Result<Self, ParseError> {
        let info =
            serde_json::from_slice(info).map_err(|source| ParseError { document: "health", source })?;
        let membership = membership
            .map(serde_json::from_slice)
            .transpose()
            .map_err(|source| ParseError { document: "membership", source })?;
        Ok(Self { info, membership })
    }

    /// The replicas recorded healthy.
    pub fn healthy(&self) -> impl Iterator<Item = Uuid> + '_ {
        self.info.children.iter().filter(|child| child.healthy).map(|child| child.uuid)
    }

    /// Whether the record calls this replica healthy.
    pub fn is_healthy(&self, replica: Uuid) -> bool {
        self.healthy().any(|healthy| healthy == replica)
    }
}

/// The key of our document for the record under `key`.
pub fn membership_key(key: &str) -> String {
    format!("{key}/membership")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value() -> RecordValue {
        RecordValue {
            info: NexusInfo {
                clean_shutdown: false,
                do_self_shutdown: false,
                children: vec![
                    ChildInfo { uuid: Uuid::from_u128(1), healthy: true },
                    ChildInfo { uuid: Uuid::from_u128(2), healthy: false },
                ],
            },
            membership: Some(Membership {
                volume: Uuid::from_u128(3),
                writer: Uuid::from_u128(4),
                sequence: 5,
                epoch: EpochNote { counter: 6, raised_by: Uuid::from_u128(4) },
                confirmed_counter: 5,
            }),
        }
    }

    /// The exact text that control planes parse: fields, their names and their order.
    #[test]
    fn the_health_document_is_what_every_control_plane_reads() {
        let (info, membership) = value().encode();
        assert_eq!(
            info,
            r#"{"clean_shutdown":false,"children":[{"uuid":"00000000-0000-0000-0000-000000000001","healthy":true},{"uuid":"00000000-0000-0000-0000-000000000002","healthy":false}]}"#
        );
        assert_eq!(
            membership.unwrap(),
            r#"{"volume":"00000000-0000-0000-0000-000000000003","writer":"00000000-0000-0000-0000-000000000004","sequence":5,"epoch":{"counter":6,"raised_by":"00000000-0000-0000-0000-000000000004"},"confirmed_counter":5}"#
        );
    }

    #[test]
    fn both_documents_are_read_back() {
        let (info, membership) = value().encode();
        let read = RecordValue::decode(info.as_bytes(), membership.as_deref().map(str::as_bytes)).unwrap();
        assert_eq!(read, value());
    }

    #[test]
    fn fields_of_later_versions_and_a_missing_membership_are_accepted() {
        let info = br#"{"clean_shutdown":true,"do_self_shutdown":true,"children":[],"new":1}"#;
        let read = RecordValue::decode(info, None).unwrap();
        assert!(read.info.clean_shutdown && read.info.do_self_shutdown);
        assert_eq!(read.membership, None);
    }

    #[test]
    fn garbage_is_an_error_that_names_the_document() {
        assert_eq!(
            RecordValue::decode(b"{", None).unwrap_err().to_string(),
            "parse the health document of a nexus record"
        );
        let (info, _) = value().encode();
        assert!(RecordValue::decode(info.as_bytes(), Some(b"[]")).is_err());
    }
}
