//! Where a remote namespace is, and as whom we connect: `nvmf+tcp://10.0.0.7:8420/nqn…?hostnqn=…`.

use std::fmt;
use std::net::SocketAddr;

use nvme::{HostId, Nqn};
use uuid::Uuid;

/// The port of a URI without one.
const DEFAULT_PORT: u16 = 8420;

/// A remote namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmfUri {
    /// The target.
    pub address: SocketAddr,
    /// The subsystem; its namespace is nsid 1.
    pub subsystem: Nqn,
    /// Our name.
    pub host: Nqn,
    /// Our identifier: the same on all connections of this engine (SAFETY F6).
    pub host_id: HostId,
}

/// Why text is not such a URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Not `nvmf://` or `nvmf+tcp://`.
    #[error("{uri}: the scheme is not nvmf or nvmf+tcp")]
    Scheme {
        /// The text.
        uri: String,
    },
    /// No IP address, with or without port.
    #[error("{uri}: the address is not an IP address and a port")]
    Address {
        /// The text.
        uri: String,
    },
    /// The path is not an NQN.
    #[error("{uri}: the path is not an NQN")]
    Subsystem {
        /// The text.
        uri: String,
        /// Why not.
        source: nvme::nqn::NqnError,
    },
    /// The parameter `hostnqn` is not an NQN.
    #[error("{uri}: hostnqn is not an NQN")]
    Host {
        /// The text.
        uri: String,
        /// Why not.
        source: nvme::nqn::NqnError,
    },
}

/// The identifier of the host `name`: derived, so that it is the same after a restart (SAFETY F6).
pub fn host_id(name: &Nqn) -> HostId {
    HostId(Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_str().as_bytes()).into_bytes())
}

impl NvmfUri {
    /// Reads a URI; `host` is our name where the URI has no `hostnqn`. Other parameters are left alone.
    pub fn parse(uri: &str, host: &Nqn) -> Result<Self, UriError> {
        let text = || uri.to_owned();
        let rest = ["nvmf+tcp://", "nvmf://"]
            .iter()
            .find_map(|scheme| uri.strip_prefix(scheme))
            .ok_or_else(|| UriError::Scheme { uri: text() })?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let address = authority
            .parse()
            .or_else(|_| authority.parse().map(|ip| SocketAddr::new(ip, DEFAULT_PORT)))
            .map_err(|_| UriError::Address { uri: text() })?;
        let subsystem = Nqn::new(path).map_err(|source| UriError::Subsystem { uri: text(), source })?;
        let named = query.split('&').find_map(|pair| pair.strip_prefix("hostnqn="));
        let host = match named {
            Some(name) => Nqn::new(name).map_err(|source| UriError::Host { uri: text(), source })?,
            None => host.clone(),
        };
        let host_id = host_id(&host);
        Ok(Self { address, subsystem, host, host_id })
    }
}

impl fmt::Display for NvmfUri {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "nvmf+tcp://{}/{}", self.address, self.subsystem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us() -> Nqn {
        Nqn::new("nqn.2019-05.io.openebs:node-name:n1").expect("valid")
    }

    #[test]
    fn a_uri_names_target_subsystem_and_host() {
        let uri = "nvmf://10.1.0.7:8420/nqn.2019-05.io.openebs:a?hostnqn=nqn.2019-05.io.openebs:node-name:n2&uuid=x";
        let parsed = NvmfUri::parse(uri, &us()).expect("valid");
        assert_eq!(parsed.address, "10.1.0.7:8420".parse().expect("an address"));
        assert_eq!(parsed.subsystem.as_str(), "nqn.2019-05.io.openebs:a");
        assert_eq!(parsed.host.as_str(), "nqn.2019-05.io.openebs:node-name:n2");
        assert_eq!(parsed.to_string(), "nvmf+tcp://10.1.0.7:8420/nqn.2019-05.io.openebs:a");
    }

    #[test]
    fn without_port_and_host_the_defaults_hold() {
        let parsed = NvmfUri::parse("nvmf+tcp://10.1.0.7/nqn.2019-05.io.openebs:a", &us()).expect("valid");
        assert_eq!(parsed.address.port(), 8420);
        assert_eq!((parsed.host.clone(), parsed.host_id), (us(), host_id(&us())));
    }

    #[test]
    fn what_is_no_uri_is_refused() {
        assert!(matches!(NvmfUri::parse("iscsi://10.1.0.7/x", &us()), Err(UriError::Scheme { .. })));
        assert!(matches!(
            NvmfUri::parse("nvmf://node/nqn.2019-05.io:a", &us()),
            Err(UriError::Address { .. })
        ));
        assert!(matches!(NvmfUri::parse("nvmf://10.1.0.7/disk", &us()), Err(UriError::Subsystem { .. })));
        let bad_host = "nvmf://10.1.0.7/nqn.2019-05.io:a?hostnqn=me";
        assert!(matches!(NvmfUri::parse(bad_host, &us()), Err(UriError::Host { .. })));
    }
}
