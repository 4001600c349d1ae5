//! Whether the hosts of a volume have come to a target that is to take over in a planned move.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use crate::registry::HostAcl;

/// Who knows which hosts are connected to which target. Asked while a move waits, often and without delay.
pub trait Hosts: fmt::Debug + Send + Sync {
    /// Whether the hosts that may connect (`acl`) have a path to this nexus.
    fn have_arrived(&self, nexus: Uuid, acl: &HostAcl) -> bool;
    /// A host reports that it has one.
    fn report(&self, nexus: Uuid, host: &str);
    /// The nexus is of no interest any more.
    fn forget(&self, nexus: Uuid);
}

/// Hosts whose agents report their paths. A restarted operator has heard of none: the move then waits anew, or goes on
/// as a switchover.
#[derive(Debug, Default)]
pub struct ReportedHosts {
    reported: Mutex<BTreeMap<Uuid, BTreeSet<String>>>,
}

/// Reports kept of one nexus; more hosts than that do not share a volume.
const HOSTS_MAX: usize = 64;

impl Hosts for ReportedHosts {
    fn have_arrived(&self, nexus: Uuid, acl: &HostAcl) -> bool {
        let reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let here = reported.get(&nexus);
        match acl {
            HostAcl::Any => here.is_some_and(|here| !here.is_empty()),
            HostAcl::Hosts(hosts) => hosts.iter().all(|host| here.is_some_and(|here| here.contains(host))),
        }
    }

    fn report(&self, nexus: Uuid, host: &str) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let here = reported.entry(nexus).or_default();
        if here.len() < HOSTS_MAX {
            here.insert(host.to_owned());
        }
    }

    fn forget(&self, nexus: Uuid) {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner).remove(&nexus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_arrived_when_every_one_that_may_connect_has_a_path() {
        let hosts = ReportedHosts::default();
        let nexus = Uuid::from_u128(1);
        let two = HostAcl::Hosts(BTreeSet::from(["one".to_owned(), "two".to_owned()]));
        assert!(hosts.have_arrived(nexus, &HostAcl::Hosts(BTreeSet::new())), "nobody may connect");
        assert!(!hosts.have_arrived(nexus, &HostAcl::Any));
        hosts.report(nexus, "one");
        assert!(hosts.have_arrived(nexus, &HostAcl::Any) && !hosts.have_arrived(nexus, &two));
        hosts.report(nexus, "two");
        assert!(hosts.have_arrived(nexus, &two));
        assert!(!hosts.have_arrived(Uuid::from_u128(2), &two), "a report is of one nexus");
        hosts.forget(nexus);
        assert!(!hosts.have_arrived(nexus, &HostAcl::Any));
    }
}
