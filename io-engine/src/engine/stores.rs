//! Where nexuses keep their records: etcd, or memory for an engine without one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use store::Tls;
use tokio::runtime::Handle;

use crate::record::Store;
use crate::record::etcd::{EtcdOptions, EtcdStore};
use crate::record::memory::MemoryStore;

/// Where a registry keeps who it is, below the prefix of its installation.
const IDENTITY: &str = "RegistryIdentity/self";

/// One connection per installation that nexuses have records in.
pub(super) struct Stores {
    tokio: Handle,
    endpoints: Vec<String>,
    timeout: Duration,
    tls: Option<Tls>,
    memory: MemoryStore,
    etcd: RefCell<BTreeMap<String, EtcdStore>>,
}

/// The key of the identity that stands beside a record (SAFETY D6): `<installation>/volume/…` and
/// `<installation>/nexus/…` belong to `<installation>/RegistryIdentity/self`. A record elsewhere has none.
fn identity_key(record_key: &str) -> String {
    let root = ["/volume/", "/nexus/"].iter().find_map(|part| Some(record_key.split_once(part)?.0));
    format!("{}/{IDENTITY}", root.unwrap_or(record_key))
}

impl Stores {
    pub(super) fn new(tokio: Handle, endpoints: Vec<String>, timeout: Duration, tls: Option<Tls>) -> Self {
        Self { tokio, endpoints, timeout, tls, memory: MemoryStore::default(), etcd: RefCell::default() }
    }

    /// The store of the record under a key.
    pub(super) fn of(&self, record_key: &str) -> Store {
        if self.endpoints.is_empty() {
            return Store::Memory(self.memory.clone());
        }
        let identity_key = identity_key(record_key);
        let mut etcd = self.etcd.borrow_mut();
        let store = etcd.entry(identity_key.clone()).or_insert_with(|| {
            let options = EtcdOptions {
                endpoints: self.endpoints.clone(),
                timeout: self.timeout,
                tls: self.tls.clone(),
                identity_key,
            };
            EtcdStore::new(self.tokio.clone(), options)
        });
        Store::Etcd(store.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d6_a_record_has_the_identity_of_its_installation() {
        let root = "/openebs.io/mayastor/apis/v0/clusters/c/namespaces/n";
        let identity = format!("{root}/RegistryIdentity/self");
        assert_eq!(identity_key(&format!("{root}/volume/v/nexus/x/info")), identity);
        assert_eq!(identity_key(&format!("{root}/nexus/x/info")), identity);
        assert_eq!(identity_key("x"), "x/RegistryIdentity/self");
    }
}
