//! NVMe host names that this product makes of node names: of a node's kernel and of its engine as initiator alike.

use crate::nqn::{NQN_BYTES_MAX, Nqn};

/// What every NQN of this product begins with.
pub const PRODUCT_NQN_PREFIX: &str = "nqn.2019-05.io.openebs:";
/// What the host NQN of a node begins with; its name follows.
pub const NODE_NQN_PREFIX: &str = "nqn.2019-05.io.openebs:node-name:";
/// Bytes of a node's name at most: Kubernetes allows 253, an NQN has no room for them (base 4.5).
pub const NODE_NAME_BYTES_MAX: usize = NQN_BYTES_MAX - NODE_NQN_PREFIX.len();

/// Why no host name can be made of a node's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeNameError {
    /// There is none.
    #[error("a node needs a name")]
    Empty,
    /// The NQN would be longer than one may be.
    #[error(
        "a node's name has {NODE_NAME_BYTES_MAX} bytes at most and this one has {bytes}: the node's NVMe host name is \
         {NODE_NQN_PREFIX}<name>, and an NQN has {NQN_BYTES_MAX} bytes at most (NVMe base specification 4.5); give the \
         node a shorter name (for Kubernetes: kubelet --hostname-override)"
    )]
    TooLong {
        /// Of the name.
        bytes: usize,
    },
    /// Not to be written in one line.
    #[error("a node's name has no control characters")]
    Control,
}

/// The host NQN of the node of this name.
pub fn host_nqn(node: &str) -> Result<Nqn, NodeNameError> {
    match node.len() {
        0 => Err(NodeNameError::Empty),
        bytes if bytes > NODE_NAME_BYTES_MAX => Err(NodeNameError::TooLong { bytes }),
        // Nothing else can be wrong with it: the prefix has the form.
        _ => Nqn::new(format!("{NODE_NQN_PREFIX}{node}")).map_err(|_| NodeNameError::Control),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_may_have_a_name_for_which_its_nqn_has_room_and_no_longer_one() {
        assert_eq!(NODE_NAME_BYTES_MAX, 190);
        assert!(NODE_NQN_PREFIX.starts_with(PRODUCT_NQN_PREFIX));
        let longest = host_nqn(&"n".repeat(190)).expect("it fits");
        assert_eq!(longest.as_str().len(), NQN_BYTES_MAX);
        assert_eq!(host_nqn("node-1").expect("a name").as_str(), "nqn.2019-05.io.openebs:node-name:node-1");
        let error = host_nqn(&"n".repeat(191)).expect_err("it does not fit");
        assert_eq!(error, NodeNameError::TooLong { bytes: 191 });
        for told in ["190 bytes at most and this one has 191", "223 bytes", "--hostname-override"] {
            assert!(error.to_string().contains(told), "{error}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        assert_eq!(host_nqn(""), Err(NodeNameError::Empty));
        assert_eq!(host_nqn("a\nb"), Err(NodeNameError::Control));
    }
}
