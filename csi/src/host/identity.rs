//! Who a host is to targets. SAFETY F6: one host, one identity.

use nvme::node::NodeNameError;
pub use nvme::node::{NODE_NQN_PREFIX, PRODUCT_NQN_PREFIX};
use uuid::Uuid;

/// The NQN and the identifier that a host introduces itself with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostIdentity {
    /// Host NQN.
    pub nqn: String,
    /// Host identifier: reservations and associations at a target belong to it.
    pub id: Uuid,
}

impl HostIdentity {
    /// The host with this NQN. Its id is derived, so that it is the same after a restart and in every program of this
    /// host: UUIDv5 of the NQN in the namespace of URLs, as engines derive theirs.
    pub fn of(nqn: impl Into<String>) -> Self {
        let nqn = nqn.into();
        let id = Uuid::new_v5(&Uuid::NAMESPACE_URL, nqn.as_bytes());
        Self { nqn, id }
    }

    /// The application node of this name, as the control plane admits it; refused where no NQN has room for the name.
    pub fn of_node(name: &str) -> Result<Self, NodeNameError> {
        Ok(Self::of(nvme::node::host_nqn(name)?.as_str()))
    }

    /// With an id that somebody configured.
    pub fn with_id(self, id: Option<Uuid>) -> Self {
        Self { id: id.unwrap_or(self.id), ..self }
    }
}

/// Whether a subsystem is a volume of ours: the product's prefix and a UUID. Replicas and hosts have the prefix too;
/// nobody but nexuses connects to replicas.
pub fn is_volume(nqn: &str) -> bool {
    volume_of(nqn).is_some()
}

/// The volume that a subsystem is.
pub fn volume_of(nqn: &str) -> Option<Uuid> {
    nqn.strip_prefix(PRODUCT_NQN_PREFIX).and_then(|name| Uuid::try_parse(name).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F6: a changed derivation makes a host another host to its own reservations and associations.
    #[test]
    fn f6_the_host_id_is_a_function_of_the_host_nqn_and_never_changes() {
        let host = HostIdentity::of_node("node-1").expect("a name");
        assert_eq!(host.nqn, "nqn.2019-05.io.openebs:node-name:node-1");
        assert_eq!(host.id.to_string(), "1082e472-e96e-5f97-9a2f-6f8a69e1abd3");
        assert_eq!(HostIdentity::of_node("node-1").as_ref(), Ok(&host));
        let configured = Uuid::from_u128(7);
        assert_eq!(host.clone().with_id(Some(configured)).id, configured);
        assert_eq!(host.clone().with_id(None), host);
    }

    #[test]
    fn a_node_whose_name_no_nqn_has_room_for_is_no_host() {
        let longest = "n".repeat(nvme::node::NODE_NAME_BYTES_MAX);
        assert_eq!(HostIdentity::of_node(&longest).expect("it fits").nqn.len(), 223);
        let error = HostIdentity::of_node(&format!("{longest}n")).expect_err("too long");
        assert!(error.to_string().contains("190 bytes at most"), "{error}");
    }

    #[test]
    fn only_volumes_of_ours_are_watched() {
        assert!(is_volume("nqn.2019-05.io.openebs:0f1c3a52-9a9e-4b0c-8a37-6c2b8f0f6b11"));
        for foreign in [
            "nqn.2014-08.org.nvmexpress.discovery",
            "nqn.2014-08.org.nvmexpress:uuid:0f1c3a52-9a9e-4b0c-8a37-6c2b8f0f6b11",
            "nqn.2019-05.io.openebs:node-name:node-1",
        ] {
            assert!(!is_volume(foreign), "{foreign}");
        }
    }
}
