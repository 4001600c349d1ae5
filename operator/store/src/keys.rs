//! Where objects lie: `/openebs.io/mayastor/apis/v0/clusters/<cluster>/namespaces/<namespace>/<Type>/<id>`.

use crate::election::Role;

/// The key space of one installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    root: String,
}

impl Keys {
    /// The key space of `cluster` (the kube-system uid, or any name that no other cluster in this etcd has) and
    /// `namespace` (the release namespace).
    pub fn new(cluster: &str, namespace: &str) -> Self {
        Self { root: format!("/openebs.io/mayastor/apis/v0/clusters/{cluster}/namespaces/{namespace}") }
    }

    /// Prefix of everything in this installation.
    pub fn root(&self) -> String {
        format!("{}/", self.root)
    }

    /// Prefix of all objects of one type.
    pub fn kind(&self, kind: &str) -> String {
        format!("{}/{kind}/", self.root)
    }

    /// Key of one object.
    pub fn object(&self, kind: &str, id: &str) -> String {
        format!("{}/{kind}/{id}", self.root)
    }

    /// Key of the lock that the leader among operators holds.
    pub fn election(&self) -> String {
        self.election_of(Role::CoreAgent)
    }

    /// Key of the lock that the leader among processes of a kind holds.
    pub fn election_of(&self, role: Role) -> String {
        self.object("StoreLeaseLock", role.name())
    }

    /// Prefix of all that engines keep.
    pub fn nexus_infos(&self) -> String {
        self.kind("volume")
    }

    /// Key under which an engine keeps the record of a nexus of a volume.
    pub fn nexus_info(&self, volume: &str, nexus: &str) -> String {
        format!("{}{volume}/nexus/{nexus}/info", self.nexus_infos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lie_where_other_tools_of_the_product_look() {
        let keys = Keys::new("6f1c", "mayastor");
        assert_eq!(
            keys.object("VolumeSpec", "v1"),
            "/openebs.io/mayastor/apis/v0/clusters/6f1c/namespaces/mayastor/VolumeSpec/v1"
        );
        assert_eq!(
            keys.nexus_info("v1", "n1"),
            "/openebs.io/mayastor/apis/v0/clusters/6f1c/namespaces/mayastor/volume/v1/nexus/n1/info"
        );
    }
}
