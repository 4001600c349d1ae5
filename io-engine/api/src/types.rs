//! Pools, replicas, nexuses and nodes as callers see them: sizes in bytes, ids as [`Uuid`], absent things as `None`.

mod nexus;
mod node;
mod pool;
mod replica;

pub use nexus::*;
pub use node::*;
use nvme::node::{NODE_NQN_PREFIX, PRODUCT_NQN_PREFIX};
pub use pool::*;
pub use replica::*;
use uuid::Uuid;

/// Name of the NVMe subsystem of an object: `nqn.2019-05.io.openebs:<name>`.
pub fn subsystem_nqn(name: &str) -> String {
    format!("{PRODUCT_NQN_PREFIX}{name}")
}

/// NVMe host name of a node, for its kernel and for its engine as initiator alike. A name that was never checked goes
/// through [`nvme::node::host_nqn`] first.
pub fn node_host_nqn(node: &str) -> String {
    format!("{NODE_NQN_PREFIX}{node}")
}

/// The `uuid` parameter of a child's or replica's URI, which ties it to the replica.
pub fn uri_uuid(uri: &str) -> Option<Uuid> {
    let (_, query) = uri.split_once('?')?;
    query.split('&').find_map(|pair| pair.strip_prefix("uuid=")).and_then(|text| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuid_of_a_uri_is_found_among_other_parameters() {
        let id = Uuid::from_u128(7);
        assert_eq!(uri_uuid(&format!("bdev:///r1?uuid={id}")), Some(id));
        assert_eq!(uri_uuid(&format!("nvmf+tcp://10.0.0.1:8420/nqn?hostnqn=a&uuid={id}")), Some(id));
        assert_eq!(uri_uuid("bdev:///r1"), None);
        assert_eq!(uri_uuid("bdev:///r1?uuid=nonsense"), None);
    }
}
