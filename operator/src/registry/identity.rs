//! Who this registry is (SAFETY C1, C3).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use store::Object;
use uuid::Uuid;

/// The registry's own object: one per installation, under a fixed id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryIdentity {
    /// Random, made when an empty registry is first opened. Engines compare leaders' revisions within one.
    pub incarnation: Uuid,
    /// The cluster's identity that pools are stamped with; minted with the first pool.
    #[serde(default)]
    pub cluster: Option<Uuid>,
}

impl Object for RegistryIdentity {
    const KIND: &'static str = "RegistryIdentity";

    fn id(&self) -> String {
        "self".to_owned()
    }
}

/// What this registry may do, seen from who it is and what others show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authority {
    /// It is the registry of what it sees, or sees nothing of another's.
    Full,
    /// It must not change anything, for this reason.
    ReadOnly(String),
}

/// Decides from the registry's cluster identity and the identities that pools and CRs show, by who shows them.
///
/// | registry | others show | authority |
/// | --- | --- | --- |
/// | none | none | full: the first pool mints |
/// | none | any | read-only: this registry was wiped, or is another's |
/// | A | A, nothing, or B | full; what shows B is `Unclaimed` and left alone |
pub fn authority(own: Option<Uuid>, shown: &BTreeMap<String, Uuid>) -> Authority {
    match (own, shown.first_key_value()) {
        (Some(_), _) | (None, None) => Authority::Full,
        (None, Some((by, cluster))) => Authority::ReadOnly(format!(
            "the registry is empty, but {by} belongs to cluster {cluster}: nothing is created, changed or destroyed. \
             Restore the registry's etcd from a backup; if {by} is meant to be given up, destroy it on its engine \
             with engine-client first"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c1_a_registry_without_identity_beside_stamped_pools_is_read_only() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let nobody = BTreeMap::new();
        let shown = |cluster| BTreeMap::from([("pool p on node n".to_owned(), cluster)]);
        assert_eq!(authority(None, &nobody), Authority::Full);
        assert_eq!(authority(Some(a), &nobody), Authority::Full);
        assert_eq!(authority(Some(a), &shown(a)), Authority::Full);
        assert_eq!(authority(Some(a), &shown(b)), Authority::Full);
        let Authority::ReadOnly(reason) = authority(None, &shown(b)) else { panic!("must be read-only") };
        assert!(reason.contains("pool p on node n") && reason.contains("Restore"), "{reason}");
    }
}
