//! A mirrored volume made by hand over gRPC: what a control plane does, call by call.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use engine_api::layout::{DATA_OFFSET_BYTES, replica_bytes};
use engine_api::types::{
    CNTLID_RANGE, Child, ChildAction, ChildRef, ChildState, CreateNexus, CreatePool, CreateReplica,
    DestroyReplica, Nexus, Share, node_host_nqn,
};
use engine_api::{Call, ErrorKind};
use serde::Deserialize;
use tokio::process::Command;
use uuid::Uuid;

use super::Lab;
use crate::programs::program;
use crate::vm::ConnectOptions;

/// A copy of the volume.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Number of its node.
    pub node: u8,
    /// The replica.
    pub uuid: Uuid,
    /// Where a nexus finds it.
    pub uri: String,
}

/// A volume with its copies and the nexus that serves it.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// The volume: name of the nexus, and what hosts see.
    pub volume: Uuid,
    /// The nexus of the moment.
    pub nexus: Uuid,
    /// Number of the node with the nexus.
    pub home: u8,
    /// Bytes that hosts see.
    pub size_bytes: u64,
    /// Controller ids that its nexus gives out. A host with two paths to it must meet different ones.
    pub cntlids: RangeInclusive<u16>,
    /// Its copies.
    pub copies: Vec<Copy>,
}

/// The record of a nexus, as far as stories look at it.
#[derive(Clone, Debug, Deserialize)]
struct Record {
    children: Vec<RecordChild>,
}

#[derive(Clone, Debug, Deserialize)]
struct RecordChild {
    uuid: Uuid,
    healthy: bool,
}

impl Lab {
    /// Makes a pool of a disk, by path or URI, on a node.
    pub async fn create_pool(
        &self,
        node: u8,
        name: &str,
        disk: &str,
        cluster_bytes: Option<u32>,
    ) -> Result<()> {
        let request = CreatePool {
            name: name.to_owned(),
            uuid: None,
            disk: disk.to_owned(),
            cluster_bytes,
            cluster: None,
        };
        self.node(node).api()?.create_pool(Call::plain(), request).await?;
        Ok(())
    }
}

impl Mirror {
    /// Makes a replica in each of `pools` (node and pool), and a nexus over them on node `home`.
    pub async fn create(lab: &Lab, home: u8, pools: &[(u8, &str)], size_bytes: u64) -> Result<Self> {
        let volume = Uuid::new_v4();
        let mut mirror = Self {
            volume,
            nexus: Uuid::new_v4(),
            home,
            size_bytes,
            cntlids: CNTLID_RANGE,
            copies: Vec::new(),
        };
        for (node, pool) in pools {
            let uuid = Uuid::new_v4();
            // Only the node with the nexus may connect.
            let share = Share { allowed_hosts: vec![node_host_nqn(&lab.node(home).name())] };
            let request = CreateReplica {
                name: uuid.to_string(),
                uuid,
                pool: (*pool).to_owned(),
                size_bytes: replica_bytes(size_bytes),
                thin: true,
                share: (*node != home).then_some(share),
                entity_id: Some(volume.to_string()),
            };
            let replica = lab.node(*node).api()?.create_replica(Call::plain(), request).await?;
            ensure!(replica.shared == (*node != home), "{replica:?}");
            mirror.copies.push(Copy { node: *node, uuid, uri: replica.uri });
        }
        mirror.open(lab).await?;
        Ok(mirror)
    }

    /// Makes a nexus of all copies; after its engine died, a new one in place of the old.
    pub async fn open(&mut self, lab: &Lab) -> Result<Nexus> {
        self.nexus = Uuid::new_v4();
        let request = CreateNexus {
            name: self.volume.to_string(),
            uuid: self.nexus,
            size_bytes: self.size_bytes,
            cntlids: self.cntlids.clone(),
            reservation: None,
            standby: false,
            given_up: Vec::new(),
            children: self.copies.iter().map(|copy| copy.uri.clone()).collect(),
            info_key: Some(self.record_key()),
        };
        Ok(lab.node(self.home).api()?.create_nexus(Call::plain(), request).await?)
    }

    /// Exports the nexus to these hosts.
    pub async fn publish(&self, lab: &Lab, hosts: &[String]) -> Result<ConnectOptions> {
        connect_options(&self.publish_uri(lab, hosts).await?)
    }

    /// Exports the nexus to these hosts, and returns the URI under which they find it.
    pub async fn publish_uri(&self, lab: &Lab, hosts: &[String]) -> Result<String> {
        let share = Share { allowed_hosts: hosts.to_vec() };
        let nexus = lab.node(self.home).api()?.publish_nexus(Call::plain(), self.nexus, share).await?;
        nexus.device_uri.context("a published nexus has a URI")
    }

    /// Lets the nexus on node `home` use every copy, beside those that may already: before [`Mirror::open`] elsewhere.
    pub async fn admit(&self, lab: &Lab, homes: &[u8]) -> Result<()> {
        let hosts: Vec<_> = homes.iter().map(|home| node_host_nqn(&lab.node(*home).name())).collect();
        for copy in &self.copies {
            let share = Share { allowed_hosts: hosts.clone() };
            lab.node(copy.node).api()?.share_replica(Call::plain(), copy.uuid, share).await?;
        }
        Ok(())
    }

    /// The nexus as its engine shows it.
    pub async fn look(&self, lab: &Lab) -> Result<Nexus> {
        let nexuses = lab.node(self.home).api()?.list_nexuses().await?;
        nexuses
            .into_iter()
            .find(|nexus| nexus.uuid == self.nexus)
            .context("the engine does not list the nexus")
    }

    /// The copy on a node.
    pub fn copy_on(&self, node: u8) -> Result<&Copy> {
        self.copies.iter().find(|copy| copy.node == node).with_context(|| format!("no copy on node {node}"))
    }

    /// The child on a node, as the nexus shows it.
    pub async fn child_on(&self, lab: &Lab, node: u8) -> Result<Child> {
        let uri = &self.copy_on(node)?.uri;
        let nexus = self.look(lab).await?;
        let child = nexus.children.iter().find(|child| child.uri == *uri).cloned();
        child.with_context(|| format!("no child {uri}: {nexus:?}"))
    }

    /// Waits until the child on a node is in a state.
    pub async fn wait_child(&self, lab: &Lab, node: u8, state: ChildState, limit: Duration) -> Result<Child> {
        crate::wait::wait_until(limit, &format!("the child on node {node} to be {state:?}"), || async {
            let child = self.child_on(lab, node).await?;
            ensure!(child.state == state, "{child:?}");
            Ok(child)
        })
        .await
    }

    /// What the control plane does when a lost replica is back: it brings the child online, which rebuilds it.
    pub async fn bring_back(&self, lab: &Lab, node: u8, limit: Duration) -> Result<()> {
        let child = ChildRef { nexus: self.nexus, uri: self.copy_on(node)?.uri.clone() };
        let api = lab.node(self.home).api()?;
        crate::wait::wait_until(limit, "the child to be opened", || async {
            api.child_operation(Call::plain(), child.clone(), ChildAction::Online).await?;
            Ok(())
        })
        .await?;
        self.wait_child(lab, node, ChildState::Online, limit).await.map(drop)
    }

    /// Whether the record in etcd calls the copy on a node healthy.
    pub async fn is_recorded_healthy(&self, lab: &Lab, node: u8) -> Result<bool> {
        let text = lab.etcd.get(&self.record_key()).await?.context("there is no record")?;
        let record: Record =
            serde_json::from_str(&text).with_context(|| format!("read the record {text}"))?;
        let uuid = self.copy_on(node)?.uuid;
        let child = record.children.iter().find(|child| child.uuid == uuid);
        Ok(child.with_context(|| format!("the record does not name {uuid}: {text}"))?.healthy)
    }

    /// The regions of the volume that the disk of a node calls open, and bytes per region. The node's engine may be
    /// down or running; while it runs, an error may mean that the disk changed under the reader.
    pub async fn open_regions(&self, lab: &Lab, node: u8) -> Result<(u64, BTreeSet<u64>)> {
        let mut inspect = Command::new(program("pool-inspect")?);
        let output = inspect.arg(lab.node(node).disk()).output().await.context("run pool-inspect")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let found = open_regions_in(&text, self.copy_on(node)?.uuid)
            .with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))?;
        let (region_bytes, open) = found;
        // Regions are counted from the replica's start; what lies around the volume's data is nobody's.
        let first = DATA_OFFSET_BYTES / region_bytes;
        let end = first + self.size_bytes.div_ceil(region_bytes);
        Ok((region_bytes, open.into_iter().filter(|region| (first..end).contains(region)).collect()))
    }

    /// Removes the nexus; its copies stay.
    pub async fn close(&self, lab: &Lab) -> Result<()> {
        Ok(lab.node(self.home).api()?.destroy_nexus(Call::plain(), self.nexus).await?)
    }

    /// Removes nexus and copies.
    pub async fn destroy(self, lab: &Lab) -> Result<()> {
        self.close(lab).await?;
        for copy in &self.copies {
            let request = DestroyReplica { uuid: copy.uuid, pool: None, despite_reservation: true };
            match lab.node(copy.node).api()?.destroy_replica(Call::plain(), request).await {
                Err(error) if error.kind() != ErrorKind::Gone => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Exports the copy on a node to a host, so that the copies can be compared with each other; the nexus must be
    /// gone.
    pub async fn expose(&self, lab: &Lab, node: u8, host: &str) -> Result<ConnectOptions> {
        let copy = self.copy_on(node)?;
        let share = Share { allowed_hosts: vec![host.to_owned()] };
        let replica = lab.node(node).api()?.share_replica(Call::plain(), copy.uuid, share).await?;
        connect_options(&replica.uri)
    }

    /// Where the record is in etcd.
    pub fn record_key(&self) -> String {
        format!("/stories/volume/{}/info", self.volume)
    }
}

/// The line of `pool-inspect` about a replica: `replica <uuid>, regions of 65536 bytes: [80..96, 112..113]`.
fn open_regions_in(text: &str, replica: Uuid) -> Option<(u64, BTreeSet<u64>)> {
    let begin = format!("  replica {replica}, regions of ");
    let line = text.lines().rev().find_map(|line| line.strip_prefix(&begin))?;
    let (bytes, runs) = line.split_once(" bytes: [")?;
    let runs = runs.strip_suffix(']')?.split(", ").filter(|run| !run.is_empty());
    let runs: Option<Vec<Range<u64>>> = runs
        .map(|run| {
            let (start, end) = run.split_once("..")?;
            Some(start.parse().ok()?..end.parse().ok()?)
        })
        .collect();
    Some((bytes.parse().ok()?, runs?.into_iter().flatten().collect()))
}

/// How a host connects to what `nvmf://address:port/nqn?…` names.
pub fn connect_options(uri: &str) -> Result<ConnectOptions> {
    let parts = || {
        let (_, rest) = uri.split_once("://")?;
        let (authority, path) = rest.split_once('/')?;
        let nqn = path.split_once('?').map_or(path, |(nqn, _)| nqn);
        let address: SocketAddrV4 = authority.parse().ok()?;
        Some((*address.ip(), address.port(), nqn))
    };
    let (address, port, nqn): (Ipv4Addr, u16, &str) =
        parts().with_context(|| format!("read the URI {uri}"))?;
    Ok(ConnectOptions::new(nqn, address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_regions_are_read_from_what_pool_inspect_prints() {
        let text = |runs: &str| {
            format!("open regions:\n  replica {}, regions of 65536 bytes: {runs}\n", Uuid::nil())
        };
        let read = |runs: &str| open_regions_in(&text(runs), Uuid::nil());
        assert_eq!(read("[]"), Some((65536, BTreeSet::new())));
        assert_eq!(read("[1..3, 7..8]"), Some((65536, BTreeSet::from([1, 2, 7]))));
        assert_eq!(read("[1..x]"), None);
        assert_eq!(open_regions_in("", Uuid::nil()), None);
    }
}
